"""The layout rules of CONTRIBUTING.md: sizes of files and functions, depth of folders, evaluated annotations."""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
PACKAGE = ROOT / "girsanov"
FILES = sorted(PACKAGE.rglob("*.py")) if PACKAGE.is_dir() else []

MAX_FILE_LINES = 300
MAX_METHOD_FILE_LINES = 150
MAX_FUNCTION_LINES = 70
MAX_FOLDER_DEPTH = 2

# Functions that may be longer, "path/below/girsanov.py:Qualified.name" -> why one piece reads better than two.
LONG_FUNCTIONS: dict[str, str] = {}

pytestmark = pytest.mark.skipif(not FILES, reason="the package folder is empty")


def relative(path: Path) -> str:
    return path.relative_to(PACKAGE).as_posix()


def functions(tree: ast.AST, prefix: str = "") -> Iterator[tuple[str, int]]:
    """Qualified name and length of every function, decorators left out and the docstring counted."""
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            yield prefix + node.name, node.end_lineno - node.lineno + 1
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            yield from functions(node, f"{prefix}{node.name}.")
        else:
            yield from functions(node, prefix)


def long_functions() -> dict[str, int]:
    return {
        f"{relative(path)}:{name}": length
        for path in FILES
        for name, length in functions(ast.parse(path.read_text(encoding="utf-8")))
        if length > MAX_FUNCTION_LINES
    }


@pytest.mark.parametrize("path", FILES, ids=relative)
def test_a_file_holds_one_concept(path: Path) -> None:
    limit = MAX_METHOD_FILE_LINES if relative(path).startswith("methods/") else MAX_FILE_LINES
    lines = len(path.read_text(encoding="utf-8").splitlines())
    assert lines <= limit, f"{relative(path)} has {lines} lines, {limit} is the limit: split it by concept"


def test_functions_fit_on_a_screen() -> None:
    over = {name: length for name, length in long_functions().items() if name not in LONG_FUNCTIONS}
    assert not over, f"longer than {MAX_FUNCTION_LINES} lines: split them, or name them with a reason in LONG_FUNCTIONS"


def test_the_named_exceptions_are_still_needed() -> None:
    stale = set(LONG_FUNCTIONS) - set(long_functions())
    assert not stale, "short or gone: take them out of LONG_FUNCTIONS"


@pytest.mark.parametrize("path", FILES, ids=relative)
def test_folders_are_shallow(path: Path) -> None:
    assert len(path.relative_to(PACKAGE).parts) - 1 <= MAX_FOLDER_DEPTH, "folders go two deep below girsanov/"


@pytest.mark.parametrize("path", FILES, ids=relative)
def test_annotations_are_evaluated(path: Path) -> None:
    """Configuration classes and shape checkers read annotations at run time, so they must be objects, not text."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    modules = [node.module for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)]
    assert "__future__" not in modules, f"{relative(path)} imports from __future__"
