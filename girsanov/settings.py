"""Settings: frozen dataclasses that check themselves, from a file or from Python, and say what is wrong in a sentence.

``@settings`` makes a pydantic dataclass: keyword arguments only, unknown names refused, ranges given in the
annotations. A mistake raises ``GirsanovError``, not pydantic's own exception, whoever constructs the object.
"""

import dataclasses
import difflib
import functools
import re
from collections.abc import Iterable, Mapping
from typing import Annotated, Any, TypeVar, dataclass_transform

from pydantic import ConfigDict, Field, ValidationError
from pydantic.dataclasses import dataclass as pydantic_dataclass
from pydantic_core import ArgsKwargs

from girsanov.errors import GirsanovError

C = TypeVar("C")

Positive = Annotated[float, Field(gt=0, allow_inf_nan=False)]
NonNegative = Annotated[float, Field(ge=0, allow_inf_nan=False)]
Finite = Annotated[float, Field(allow_inf_nan=False)]
Share = Annotated[float, Field(gt=0, le=1)]
Decay = Annotated[float, Field(ge=0, lt=1)]
Count = Annotated[int, Field(ge=1)]
Natural = Annotated[int, Field(ge=0)]

LEAF_CONFIG = ConfigDict(arbitrary_types_allowed=True, extra="forbid")


@dataclass_transform(kw_only_default=True, frozen_default=True, field_specifiers=(Field, dataclasses.field))
def settings(cls: type[C]) -> type[C]:
    """Class decorator: a frozen, keyword-only dataclass whose fields are checked against their annotations."""
    made = pydantic_dataclass(cls, frozen=True, kw_only=True, config=LEAF_CONFIG)
    init = made.__init__

    @functools.wraps(init)
    def checked(self: Any, **values: Any) -> None:
        try:
            init(self, **values)
        except ValidationError as error:
            known = [f.name for f in dataclasses.fields(type(self))]
            found = [f"{cls.__name__}.{place} {what}" if place else what for place, what in sentences(error, known)]
            raise GirsanovError("; ".join(found)) from None

    made.__init__ = checked  # type: ignore[method-assign]
    return made  # type: ignore[return-value]


def sentences(error: ValidationError, known: Iterable[str] = ()) -> list[tuple[str, str]]:
    """Every mistake of a pydantic error as (dotted place, what is wrong with it)."""
    found = []
    for e in error.errors():
        place = ".".join(str(part) for part in e["loc"])
        if e["type"] in ("unexpected_keyword_argument", "extra_forbidden"):
            found.append((place, unknown(str(e["loc"][-1]), known)))
        elif e["type"] in ("missing", "missing_argument", "missing_keyword_only_argument"):
            found.append((place, "is missing"))
        elif isinstance(e["input"], ArgsKwargs):  # raised by __post_init__, of how the fields fit together
            found.append((place, complaint(e)))
        else:
            found.append((place, f"{complaint(e)}, not {show(e['input'])}"))
    return found


def complaint(e: Mapping[str, Any]) -> str:
    """pydantic's message as the end of a sentence that starts with the place."""
    message = str(e["msg"])
    for start, end in (("Input should be ", "must be "), ("Value error, ", ""), ("Assertion failed, ", "")):
        if message.startswith(start):
            message = end + message.removeprefix(start)
    message = re.sub(r"^\w+ should (have at (most|least) \d+ items?).*", r"must \1", message)
    message = message.split(", unable to parse")[0].split(", got a number")[0]
    return message[0].lower() + message[1:]


def unknown(name: str, known: Iterable[str], what: str = "setting") -> str:
    """ "is no setting: did you mean ...?", with the nearest known name, or with all of them."""
    names = [str(k) for k in known]
    near = difflib.get_close_matches(name, names, n=1, cutoff=0.55)
    if near:
        return f"is no {what}: did you mean {near[0]}?"
    return f"is no {what}: there {'are' if len(names) > 1 else 'is'} {', '.join(names) or 'none'}"


def show(value: Any, limit: int = 60) -> str:
    """A value as it may stand in a sentence."""
    text = repr(value)
    return text if len(text) <= limit else text[: limit - 3] + "..."
