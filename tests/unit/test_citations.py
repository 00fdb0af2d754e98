"""Every method and every sampler can be cited, and what is printed is BibTeX of the paper that its file names."""

import inspect
import re
import sys
from pathlib import Path

import pytest

from girsanov.citations import CITATIONS, cite, references
from girsanov.control.agents import AGENTS
from girsanov.errors import GirsanovError
from girsanov.language.named import LANGUAGE_METHODS
from girsanov.methods import METHODS
from girsanov.preferences import LOSSES
from girsanov.rewards import REWARDS
from girsanov.samplers import SAMPLERS
from girsanov.sequences import SEQUENCE_RL

OURS = {"bold", "thin", "ink", "symmetric", "slanted"}  # rewards that are nobody's paper
MADE_OF_OTHERS = {"trained", "sum", "pooled", "remote"}
PUBLISHED_REWARDS = {name: reward for name, reward in REWARDS.items() if name not in OURS | MADE_OF_OTHERS}
LISTED = {**METHODS, **SAMPLERS, **AGENTS, **PUBLISHED_REWARDS}


def test_every_listed_name_is_cited_and_every_paper_is_somebodys() -> None:
    assert set(LISTED) - set(CITATIONS) == set(), "give these an entry in girsanov/citations.py"
    assert {*LOSSES, *LANGUAGE_METHODS, *SEQUENCE_RL} - set(CITATIONS) == set()
    assert {key for keys in CITATIONS.values() for key in keys} == set(references())


@pytest.mark.parametrize("name", [name for name in CITATIONS if name in LISTED])
def test_the_file_names_the_paper(name: str) -> None:
    """The first paper of every entry is referred to in the docstring of the file that implements it."""
    doc = inspect.getdoc(sys.modules[LISTED[name].__module__]) or ""
    number = re.search(r"eprint = \{(.*)\}", references()[CITATIONS[name][0]])
    assert number is not None and f"arXiv:{number[1]}" in doc


@pytest.mark.parametrize("name", sorted({*LOSSES, *LANGUAGE_METHODS, *SEQUENCE_RL} - set(LISTED) - {"cdpo"}))
def test_papers_of_losses_are_those_of_the_survey_page(name: str) -> None:
    """The number stands in the row of the page that names the loss (sft is the first step of PPO's paper)."""
    page = (Path(__file__).parents[2] / "docs" / "papers" / "survey.md").read_text(encoding="utf-8")
    number = re.search(r"eprint = \{(.*)\}", references()[CITATIONS[name][0]])
    assert number is not None and number[1] in page
    rows = [row for row in page.splitlines() if f"`{name}`" in row and "arxiv.org" in row]
    assert any(number[1] in row for row in rows) or name in ("sft", "best-of-n")


@pytest.mark.parametrize("name", REWARDS)
def test_every_reward_is_on_its_page(name: str) -> None:
    """One that reads published weights has a row with its unit, whether it has a gradient, and a licence."""
    page = (Path(__file__).parents[2] / "docs" / "rewards.md").read_text(encoding="utf-8")
    assert any(form in page for form in (f"`{name}`", f"kind: {name}", f"kind={name}"))
    rows = [row for row in page.splitlines() if row.startswith(f"| `{name}` | ") and row.count(" | ") == 3]
    needs = inspect.signature(REWARDS[name]).parameters.keys() & {"weights", "model", "engine", "detector"}
    if needs and name in PUBLISHED_REWARDS:
        assert len(rows) == 1
        gradient, licence = [cell.strip() for cell in rows[0].strip("| ").split(" | ")][2:]
        assert gradient == ("yes" if REWARDS[name].differentiable is True else "no")
        assert re.search(r"MIT|Apache-2.0|BSD|those of (the model|your)", licence)


@pytest.mark.parametrize("name", CITATIONS)
def test_entries_are_bibtex(name: str) -> None:
    """Balanced braces, one entry a paper, all fields, and authors as ``Last, First and Last, First`` or ``{body}``."""
    text = cite(name)
    assert text.count("{") == text.count("}")
    entries = re.findall(r"@misc\{(\w+),\n(.*?)\n\}", text, re.DOTALL)
    assert [key for key, _ in entries] == list(CITATIONS[name])
    for _, body in entries:
        fields = dict(re.findall(r"  (\w+) = \{(.*)\}", body))
        if "eprint" not in fields:  # a note that is no paper
            assert set(fields) == {"title", "author", "year", "note"}
            continue
        assert set(fields) - {"note"} == {"title", "author", "year", "eprint", "archivePrefix", "url"}
        assert re.fullmatch(r"\d{4}\.\d{5}", fields["eprint"]) and fields["url"].endswith(fields["eprint"])
        assert 2000 + int(fields["eprint"][:2]) == int(fields["year"])
        assert all(a.count(",") == 1 or a[0] + a[-1] == "{}" for a in fields["author"].split(" and "))


def test_an_unknown_name_gets_the_nearest_one() -> None:
    with pytest.raises(GirsanovError, match="no method, sampler or reward is called 'odeam': did you mean ode-am?"):
        cite("odeam")
    with pytest.raises(GirsanovError, match="choose one of am, ode-am"):
        cite("xyz")
