"""Committed mutations: a deliberate defect in a formula, and the law that must notice it.

A mutation is a small edit of a function's source. ``check`` runs the law on the code as it is (it must pass), then on
the edited code (it must raise AssertionError), and puts the code back. The function object is edited in place, so a
defect reaches every module that imported the function. An edit whose text is no longer in the source fails: mutations
cannot go stale in silence.
"""

import functools
import inspect
import textwrap
import types
from collections.abc import Callable
from dataclasses import dataclass

import pytest

from girsanov.samplers.plan import remembered


@dataclass(frozen=True)
class Mutation:
    """One defect.

    Attributes:
        owner: module or class that holds the function.
        name: of the function, method, static method or property.
        old, new: the text of the source that is replaced (its first occurrence after the docstring), and by what.
        law: a check that passes on the right code and raises AssertionError on the wrong one.
    """

    owner: object
    name: str
    old: str
    new: str
    law: Callable[[], None]

    @property
    def label(self) -> str:
        """Owner, name and edit, for test ids."""
        owner = getattr(self.owner, "__name__", str(self.owner)).removeprefix("girsanov.")
        return f"{owner}.{self.name}: {self.old} -> {self.new}"


def function_of(owner: object, name: str) -> types.FunctionType:
    """The plain function behind an attribute."""
    found = inspect.getattr_static(owner, name)
    kinds = ("fget", "func", "__func__")  # of properties, cached properties, static methods
    found = next((f for f in (getattr(found, kind, None) for kind in kinds) if f), None) or inspect.unwrap(found)
    assert isinstance(found, types.FunctionType), f"{name} is no function"
    return found


def mutated_code(function: types.FunctionType, old: str, new: str) -> types.CodeType:
    """The code of a function with its source edited; its docstring is left alone."""
    source = textwrap.dedent(inspect.getsource(function))
    doc = function.__doc__ or ""
    body = source.find('"""', source.find('"""') + 3) + 3 if doc else 0
    at = source.find(old, body)
    assert at >= 0, f"{function.__qualname__} has no {old!r} left: update the mutation"
    edited = source[:at] + new + source[at + len(old) :]
    edited = edited[edited.index("def ") :]  # decorators are applied already
    scope: dict[str, object] = {}
    free = function.__code__.co_freevars  # a closure keeps its cells: rebuild them around the edited function
    if free:
        head = f"def _outer({', '.join(free)}):\n"
        exec(head + textwrap.indent(edited, "    ") + f"\n    return {function.__name__}", function.__globals__, scope)
        return scope["_outer"](*[None] * len(free)).__code__
    exec(edited, function.__globals__, scope)
    return scope[function.__name__].__code__


def check(mutation: Mutation, monkeypatch: pytest.MonkeyPatch) -> None:
    """The law holds, and notices the defect."""
    mutation.law()
    function = function_of(mutation.owner, mutation.name)
    monkeypatch.setattr(function, "__code__", mutated_code(function, mutation.old, mutation.new))
    remembered.cache_clear()
    try:
        with pytest.raises(AssertionError):
            mutation.law()
    finally:
        remembered.cache_clear()  # steps of the edited code must not outlive it


def mutants(mutations: list[Mutation]) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """``pytest.mark.parametrize`` over mutations, with readable ids; the argument is called ``mutation``."""
    return functools.partial(pytest.mark.parametrize, "mutation", mutations, ids=[m.label for m in mutations])()
