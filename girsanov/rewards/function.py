"""A user's own function as a reward, and how it is read from a file."""

import importlib.util
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from girsanov.errors import GirsanovError
from girsanov.rewards.base import Reward
from girsanov.rewards.scores import as_scores, check_finite, told
from girsanov.types import Prompts


class FunctionReward(Reward):
    """A function ``fn(images, prompts) -> scores`` as a reward.

    ``images`` are the decoded samples [B, *D]; ``prompts`` is the list of the B samples' prompts (``Prompts.meta``:
    the digit, the text); the scores are B finite numbers. A function that is not differentiable is called without a
    graph.

    Args:
        fn: the function. ``fn.differentiable = False`` says that it has no gradient; it is taken to have one otherwise,
            and the first call that shows the contrary is an error.
        name: what messages call it, the function's own name by default.
        differentiable: overrides ``fn.differentiable``.
    """

    def __init__(
        self, fn: Callable[[Tensor, list[Any]], Any], name: str | None = None, differentiable: bool | None = None
    ) -> None:
        self.fn = fn
        self.name = name if name is not None else str(getattr(fn, "__name__", type(fn).__name__))
        self.differentiable = bool(getattr(fn, "differentiable", True)) if differentiable is None else differentiable

    def __call__(self, x: Tensor, prompts: Prompts) -> Tensor:
        """The function's scores [B].

        Raises GirsanovError if the function raises, if they are not B finite numbers, or if they carry no gradient
        though one is asked for.
        """
        if self.differentiable:
            scores = self._attached(x, list(prompts.meta))
        else:
            with torch.no_grad():
                scores = self._called(x.detach(), list(prompts.meta), False)
        check_finite(scores.detach(), self.name)
        return scores

    def _attached(self, x: Tensor, meta: list[Any]) -> Tensor:
        wanted = x.requires_grad and torch.is_grad_enabled()
        scores = self._called(x, meta, wanted)
        if wanted and not scores.requires_grad:
            raise self._no_gradient()
        return scores

    def _called(self, x: Tensor, meta: list[Any], wanted: bool) -> Tensor:
        try:
            return as_scores(self.fn(x, meta), len(x), self.name)
        except GirsanovError:
            raise
        except Exception as error:
            if wanted and "requires grad" in str(error):  # numpy() of a tensor in a graph
                raise self._no_gradient() from error
            raise GirsanovError(
                f"the reward {self.name!r} raised {told(error)}; mend it, or let failures pass with "
                "PooledReward(..., on_failure=drop)"
            ) from error

    def _no_gradient(self) -> GirsanovError:
        return GirsanovError(
            f"the reward {self.name!r} gives no gradient: write it in differentiable torch operations, or declare it "
            f"with {self.name}.differentiable = False and use a method that needs none (clipped-pg, nft)"
        )


def load_object(spec: str) -> Any:
    """The object ``name`` of the user's file, for ``"path/to/file.py:name"``; the file may import from its own folder.

    Raises GirsanovError if the spec is no such pair, the file is missing or fails to import, or has no such name.
    """
    path_text, _, name = spec.rpartition(":")
    if not path_text or not name.isidentifier():
        raise GirsanovError(f"{spec!r} does not name an object in a file: write it as my_file.py:name")
    path = Path(path_text).expanduser().resolve()
    if not path.is_file():
        raise GirsanovError(f"there is no file {path_text}: give its path from the current folder, as my_file.py:name")
    module_name = f"girsanov_user_{path.stem}"
    found = importlib.util.spec_from_file_location(module_name, path)
    if found is None or found.loader is None:
        raise GirsanovError(f"{path_text} is not a Python file: give one that ends in .py, as my_file.py:name")
    module = importlib.util.module_from_spec(found)
    sys.modules[module_name] = module  # dataclasses and pickling look their module up
    sys.path.insert(0, str(path.parent))
    try:
        found.loader.exec_module(module)
    except Exception as error:
        what = f"{type(error).__name__}: {error}{_line_in(error, path)}"
        raise GirsanovError(f"{path_text} could not be imported, mend it first: {what}") from error
    finally:
        sys.path.remove(str(path.parent))
    if not hasattr(module, name):
        own = [k for k, v in vars(module).items() if getattr(v, "__module__", None) == module_name]
        raise GirsanovError(f"{path_text} has no {name!r}: it has {', '.join(own) or 'no functions'}")
    return getattr(module, name)


def _line_in(error: BaseException, path: Path) -> str:
    """`` (line n)``, the last line of the file that the error passed through; a syntax error names its own."""
    lines, trace = [], error.__traceback__
    while trace is not None:
        if trace.tb_frame.f_code.co_filename == str(path):
            lines.append(trace.tb_lineno)
        trace = trace.tb_next
    return f" (line {lines[-1]})" if lines else ""


def as_reward(value: Any, name: str | None = None) -> Reward:
    """A reward, a reward class without arguments, or a function ``fn(images, prompts)``, as a reward."""
    if isinstance(value, type) and issubclass(value, Reward):
        return value()
    if isinstance(value, Reward):
        return value
    if callable(value):
        return FunctionReward(value, name)
    raise GirsanovError(f"a reward is a function fn(images, prompts) -> scores, not a {type(value).__name__}")
