"""The documents tell the truth: names, defaults, commands, files, links and examples in them are those of the code."""

import dataclasses
import importlib
import inspect
import re
import shlex
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from girsanov.cli import main, parser
from girsanov.config import dump_config, make, parse_overrides
from girsanov.config.parts import members
from girsanov.control import LQ
from girsanov.control.agents import AGENTS, Agent
from girsanov.errors import GirsanovError
from girsanov.grids import GRIDS, Grid
from girsanov.launch import configure
from girsanov.methods import METHODS
from girsanov.methods.base import Method
from girsanov.methods.forward.base import ForwardMethod
from girsanov.processes import Process, RectifiedFlow
from girsanov.recipes import get_recipe
from girsanov.rewards import Bold
from girsanov.samplers import SAMPLERS

ROOT = Path(__file__).resolve().parents[2]
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", ROOT / "NOTATION.md", ROOT / "CHANGELOG.md", ROOT / "LOG.md"]
PAGES += sorted((ROOT / "docs").rglob("*.md"))
METHODS_PAGE = (ROOT / "docs" / "methods.md").read_text(encoding="utf-8")
FIELDS = ("Paper", "Formula", "File", "Run", "Parameters", "Composition", "Limit", "Evidence")
ELSEWHERE = {"reward", "rollout_micro_batch", "storage"}
"""Options that docs/rewards.md and docs/models.md explain once for all methods."""


def name(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


def blocks(path: Path, language: str) -> list[str]:
    """The fenced blocks of a language."""
    return re.findall(rf"^```{language}\n(.*?)^```", path.read_text(encoding="utf-8"), re.DOTALL | re.MULTILINE)


def marked(path: Path) -> list[str]:
    """The python blocks under a line ``<!-- runs -->``."""
    return re.findall(
        r"^<!-- runs -->\n```python\n(.*?)^```", path.read_text(encoding="utf-8"), re.DOTALL | re.MULTILINE
    )


def entries(text: str) -> dict[str, dict[str, str]]:
    """Heading -> field -> text, of the sections that open with a list of ``- **Field**: ...``."""
    found = {}
    for heading, body in re.findall(r"^### (.+?)\n(.*?)(?=^##|\Z)", text, re.DOTALL | re.MULTILINE):
        fields = re.findall(r"^- \*\*(\w+)\*\*:?\s+(.*?)(?=^- \*\*|^\n|\Z)", body, re.DOTALL | re.MULTILINE)
        found[heading.strip("`")] = {key: " ".join(value.split()) for key, value in fields}
    return found


def rows(text: str, heading: str) -> list[list[str]]:
    """The cells of the first table under a heading."""
    section = text.partition(f"\n## {heading}\n")[2].partition("\n## ")[0]
    table = re.search(r"^\| ---[^\n]*\n((?:\|[^\n]*\n)+)", section, re.MULTILINE)
    assert table is not None, heading
    return [[cell.strip() for cell in line.strip("| \n").split(" | ")] for line in table[1].splitlines()]


ENTRIES = entries(METHODS_PAGE)
SHARED = "Shared by the forward-process methods"


# ---- methods and samplers


VOCABULARY = ("girsanov.methods", "girsanov.samplers", "girsanov.surrogates", "girsanov.annealing", "girsanov.control")
LISTED: dict[str, type[Method]] = {**METHODS, **AGENTS}
"""Everything that has an entry: what tunes generative models, and the agents of environments."""


def vocabulary() -> dict[str, Any]:
    """What defaults are written with: the classes of the parts, by their names."""
    found: dict[str, Any] = {"Grid": Grid}
    for place in list(sys.modules):
        if place.startswith(VOCABULARY):
            found |= {k: v for k, v in vars(sys.modules[place]).items() if inspect.isclass(v)}
    return found


def written(entry: dict[str, str]) -> dict[str, Any]:
    """The defaults that an entry names, evaluated; each must say where it is from."""
    found = {}
    for key, value, source in re.findall(r"`(\w+) = ([^`]+)`, (published|chosen here)?", entry["Parameters"]):
        assert source, f"{key} has no source"
        found[key] = eval(value, vocabulary())
    assert len(found) == len(re.findall(r"`\w+ = ", entry["Parameters"])), (
        "write `name = value`, published (or chosen here)"
    )
    return found


def own(cls: type) -> set[str]:
    """The fields that a class itself defines."""
    return {f.name for f in dataclasses.fields(cls) if f.init and f.name in cls.__annotations__} - ELSEWHERE


def defaults(cls: type, names: Iterable[str]) -> dict[str, Any]:
    """The defaults of some fields."""
    fields = [f for f in dataclasses.fields(cls) if f.name in names]
    return {f.name: f.default_factory() if callable(f.default_factory) else f.default for f in fields}  # type: ignore[misc]


def commands(text: str) -> list[str]:
    return re.findall(r"`(girsanov [^`]+)`", text)


def test_every_method_and_sampler_has_an_entry_and_no_other_has_one() -> None:
    assert set(ENTRIES) - {SHARED} == set(LISTED)
    assert {row[0].strip("`") for row in rows(METHODS_PAGE, "Samplers")} == set(SAMPLERS)


@pytest.mark.parametrize("method", LISTED)
def test_an_entry_says_everything_and_names_the_right_file(method: str) -> None:
    entry = ENTRIES.get(method, {})
    assert tuple(entry) == FIELDS, f"docs/methods.md: the entry of {method} has the fields {', '.join(FIELDS)}"
    file = inspect.getsourcefile(LISTED[method])
    assert file is not None and f"`{name(Path(file))}`" == entry["File"].rstrip(".")
    assert re.search(r"arxiv.org/abs/\d{4}\.\d{5}", entry["Paper"]) and "test" in entry["Evidence"]


@pytest.mark.parametrize("method", [*LISTED, SHARED])
def test_the_defaults_are_those_of_the_class(method: str) -> None:
    """Every field that it defines itself is there; of those it inherits an entry may name some."""
    cls, found = LISTED.get(method, ForwardMethod), written(ENTRIES[method])
    assert own(cls) <= set(found) and found == defaults(cls, found)


@pytest.mark.parametrize("method", LISTED)
def test_its_command_builds_it(method: str) -> None:
    """Through the whole configuration, up to training."""
    lines = commands(ENTRIES[method]["Run"])
    assert lines and all(f" --method {method}" in line for line in lines)
    for line in lines:
        chosen = parse(line)
        config = configure(get_recipe(chosen.recipe), [{"method": chosen.method}, parse_overrides(chosen.settings)])
        family = Agent if method in AGENTS else Method
        assert type(make(family, config.method, Bold(), RectifiedFlow(), LQ())) is LISTED[method]


@pytest.mark.parametrize("row", rows(METHODS_PAGE, "Samplers"), ids=lambda row: row[0])
def test_a_sampler_is_what_its_row_says(row: list[str]) -> None:
    key, _, order, stochastic, memoryless, processes, file, source = row
    cls = SAMPLERS[key.strip("`")]
    sampler = cls()
    assert order in (str(sampler.order), "that of the lower")
    assert stochastic == {True: "yes", False: "no"}[sampler.stochastic]
    if memoryless != "never":
        assert eval(memoryless.strip("`"), vocabulary()).memoryless
    else:
        assert not sampler.memoryless
    kinds = {(Process,): "any", (RectifiedFlow,): "rectified flow"}[cls.processes]
    assert processes in (kinds, "that of its two")
    assert file == f"`{name(Path(inspect.getsourcefile(cls) or ''))}`"
    assert source == "ours" or re.search(r"arxiv.org/abs/\d{4}\.\d{5}", source)


@pytest.mark.parametrize("row", rows(METHODS_PAGE, "Parts by name"), ids=lambda row: row[0])
def test_the_names_of_the_parts_are_all_there(row: list[str]) -> None:
    _, _, names, file = row
    module = importlib.import_module(file.strip("`").removesuffix(".py").replace("/", "."))
    families = [c for c in vars(module).values() if inspect.isclass(c) and inspect.isabstract(c)]
    listed = [set(members(c)) for c in families if c.__module__.startswith("girsanov.")]
    assert {n.strip("` ") for n in names.split(",")} in listed


def test_the_names_of_the_grids_are_all_there() -> None:
    (line,) = re.findall(r"^Grids \(.*?\):(.*?);", METHODS_PAGE, re.DOTALL | re.MULTILINE)
    assert set(re.findall(r"`([\w-]+)`", line)) == {*GRIDS, "times"}


def test_the_table_of_the_readme_names_every_method() -> None:
    table = [row[1] for row in rows((ROOT / "README.md").read_text(encoding="utf-8"), "Methods")]
    assert set(re.findall(r"`([\w-]+)`", " ".join(table))) == set(LISTED)


# ---- links, files, commands


def anchors(path: Path) -> set[str]:
    """The anchors of a page's headings, as they are made on the web."""
    headings = re.findall(r"^#+ (.*)$", path.read_text(encoding="utf-8"), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", h.lower()).replace(" ", "-") for h in headings}


@pytest.mark.parametrize("path", PAGES, ids=name)
def test_relative_links_lead_somewhere(path: Path) -> None:
    text = re.sub(r"^```.*?^```", "", path.read_text(encoding="utf-8"), flags=re.DOTALL | re.MULTILINE)
    for target in re.findall(r"\]\(([^)\s]+)\)", text):
        place, _, anchor = target.partition("#")
        if re.match(r"\w+:", place):
            continue
        found = path.parent / place if place else path
        assert found.exists(), f"{name(path)} links to {target}"
        assert not anchor or anchor in anchors(found), f"{name(path)} links to {target}, which has no such heading"


@pytest.mark.parametrize("path", PAGES, ids=name)
def test_files_and_tests_that_are_named_exist(path: Path) -> None:
    text = path.read_text(encoding="utf-8")
    for place, test in re.findall(r"`((?:girsanov|tests|docs|tools|benchmarks)/[\w./-]*)(?:::(\w+))?`", text):
        found = ROOT / place
        assert found.exists(), f"{name(path)} names {place}"
        assert not test or f"def {test}(" in found.read_text(encoding="utf-8"), f"{name(path)} names {place}::{test}"


def shown(path: Path) -> list[str]:
    """The girsanov commands of a page: whole lines of its shell blocks, and what stands between backticks."""
    lines = [line for block in blocks(path, "sh") for line in block.splitlines()]
    found = [line for line in lines if re.match(r"(\w+=\S+ )*girsanov ", line)]
    return [*found, *(c for c in commands(path.read_text(encoding="utf-8")) if len(c.split()) > 2)]


def parse(line: str) -> Any:
    """The command line as ``main`` reads it; an unknown option is an AssertionError."""
    words = shlex.split(line, comments=True)
    chosen, rest = parser().parse_known_args(words[words.index("girsanov") + 1 :])
    assert not rest or (chosen.command == "run" and not any(word.startswith("-") for word in rest)), line
    if rest:
        chosen.settings += rest
    return chosen


@pytest.mark.parametrize("path", PAGES, ids=name)
def test_commands_parse(path: Path) -> None:
    for line in shown(path):
        parse(line)


def test_the_parser_of_this_file_notices_a_wrong_option() -> None:
    with pytest.raises(AssertionError):
        parse("girsanov sample runs/a --strenght 0.5")
    with pytest.raises(SystemExit):
        parse("girsanov tune digits")


def write_files(page: Path, folder: Path) -> None:
    """The python blocks of a page that open with the comment ``# my_file.py``, as files."""
    for block in blocks(page, "python"):
        if (file := re.match(r"# (\w+\.py)\n", block)) is not None:
            (folder / file[1]).write_text(block, encoding="utf-8")


@pytest.mark.parametrize("path", PAGES, ids=name)
def test_settings_on_shown_command_lines_are_settings(path: Path, tmp_path: Path, monkeypatch: Any) -> None:
    """Every ``girsanov run`` without placeholders gives a configuration."""
    monkeypatch.chdir(tmp_path)
    for page in PAGES:
        write_files(page, tmp_path)
    for line in shown(path):
        chosen = parse(line)
        if chosen.command == "run" and not re.search(r"\b[A-Z]{3,}\b|\.\.\.", line) and chosen.config is None:
            layers = [{"method": chosen.method}] if chosen.method else []
            configure(get_recipe(chosen.recipe), [*layers, parse_overrides(chosen.settings)])


# ---- examples


@pytest.mark.parametrize("path", PAGES, ids=name)
def test_python_compiles(path: Path) -> None:
    for block in blocks(path, "python"):
        compile(block, name(path), "exec")


@pytest.mark.parametrize("path", [p for p in PAGES if marked(p)], ids=name)
def test_marked_examples_run(path: Path, tmp_path: Path, monkeypatch: Any) -> None:
    """Each block by itself, in a folder with the page's files; an example asserts what it claims."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    write_files(path, tmp_path)
    for block in marked(path):
        torch.manual_seed(0)
        module = type(sys)("example")
        monkeypatch.setitem(sys.modules, "example", module)  # dataclasses look their module up
        exec(compile(block, name(path), "exec"), module.__dict__)


def test_a_method_of_ones_own_runs_from_the_command_line(tmp_path: Path, monkeypatch: Any, capsys: Any) -> None:
    page = ROOT / "docs" / "add-your-own.md"
    monkeypatch.chdir(tmp_path)
    write_files(page, tmp_path)
    (line,) = [c for c in shown(page) if "my_method.py" in c and c.startswith("girsanov run mixture")]
    small = ["samples=50", "batch=16", "group_size=8", "width=8", "grid.n=4", "train.iterations=1", "--device", "cpu"]
    assert main([*shlex.split(line, comments=True)[1:], *small]) == 0
    assert (tmp_path / "runs" / "mine" / "report.html").exists()
    capsys.readouterr()


CONFIGURATION = ROOT / "docs" / "configuration.md"


def test_the_example_file_of_the_page_on_configuration_is_a_configuration() -> None:
    (text,) = blocks(CONFIGURATION, "yaml")
    data = yaml.safe_load(text)
    config = configure(get_recipe("digits"), [data])
    again = yaml.safe_load(dump_config(config))

    def within(part: Any, whole: Any) -> bool:
        if isinstance(part, dict):
            whole = {"kind": whole} if isinstance(whole, str) else whole
            return all(within(v, whole[k]) for k, v in part.items())
        if isinstance(part, list):
            return len(part) == len(whole) and all(within(p, w) for p, w in zip(part, whole, strict=True))
        return part == (whole["kind"] if isinstance(whole, dict) and isinstance(part, str) else whole)

    assert within(data, again)


def test_the_mistakes_on_the_page_on_configuration_are_told_as_shown() -> None:
    (block,) = [b for b in blocks(CONFIGURATION, "text") if b.startswith("$ girsanov run")]
    line, _, answer = block.partition("\n")
    chosen = parse(line.removeprefix("$ "))
    layers = [{"method": chosen.method}] if chosen.method else []
    with pytest.raises(GirsanovError) as error:
        configure(get_recipe(chosen.recipe), [*layers, parse_overrides(chosen.settings)])
    assert f"error: {error.value}\n" == answer
