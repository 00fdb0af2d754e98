"""The preference core as a library: what it imports, how it fails, and that every part has a name."""

import importlib
import inspect
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from girsanov.config import Part
from girsanov.config.parts import construct, describe, make, members
from girsanov.errors import GirsanovError
from girsanov.language.named import LANGUAGE_METHODS
from girsanov.methods import METHODS
from girsanov.preferences import LOSSES, Compared, Score, completion, extrapolate, make_loss
from girsanov.preferences.base import Loss
from girsanov.preferences.labels import Smoothed
from girsanov.preferences.links import Exo
from girsanov.preferences.moves import Copied, Soft
from girsanov.preferences.scores import Alpha
from girsanov.preferences.selection import Accepted, Judged, Top, lowest
from girsanov.reward_models.losses import REWARD_LOSSES
from girsanov.sequences import SEQUENCE_RL

ROOT = Path(__file__).resolve().parents[2]
PAIR = Compared(torch.zeros(2, 2), torch.zeros(2, 2))


def test_the_core_needs_torch_alone() -> None:
    """No framework, no other part of the package but its errors; torch itself imports numpy."""
    code = (
        "import sys, girsanov.preferences; "
        "own = [m for m in sys.modules if m.startswith('girsanov.') and 'girsanov.preferences' not in m]; "
        "print(*sorted(own), "
        "*sorted({'accelerate', 'diffusers', 'transformers', 'pydantic', 'scipy', 'sklearn'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["girsanov.errors"]


@pytest.mark.parametrize("name", LOSSES)
def test_every_loss_is_built_by_name_and_described(name: str) -> None:
    """A loss is plain data and back: what YAML needs."""
    loss = make(Loss, Part(name))
    assert loss == make_loss(name)
    again = construct(Loss, describe(loss))
    assert again == loss and repr(again) == repr(loss)
    assert name in members(Loss)


@pytest.mark.parametrize(
    ("call", "sentence"),
    [
        (lambda: Compared(torch.zeros(3)), "log-probs of compared items have shape [B, K], not [3]"),
        (lambda: Compared(torch.zeros(2, 2), torch.zeros(2, 3)), "ref must have shape [2, 2], not [2, 3]"),
        (
            lambda: Compared(torch.zeros(2, 2), dispersion=torch.zeros(2, 2)),
            "dispersion must have shape [2], not [2, 2]",
        ),
        (
            lambda: Compared(torch.zeros(2, 2), length=torch.tensor([[1, 1], [2, 0]])),
            "an item of row 1 is empty (length 0): leave such rows out",
        ),
        (
            lambda: make_loss("dpo")(Compared(torch.zeros(2, 2))),
            "this loss needs the reference's log-probs: give Compared(..., ref=...)",
        ),
        (
            lambda: make_loss("simpo")(PAIR),
            "this loss needs the items' lengths in tokens: give Compared(..., length=...)",
        ),
        (
            lambda: make_loss("kto")(PAIR),
            "this loss needs the log-ratios of mismatched prompts and items: give Compared(..., mismatched=...)",
        ),
        (lambda: make_loss("odpo")(PAIR), "this loss needs the items' scores: give Compared(..., score=...)"),
        (
            lambda: make_loss("dpo")(Compared(torch.zeros(2, 1), torch.zeros(2, 1))),
            "a loss of pairs needs at least two items a prompt, best first",
        ),
        (lambda: make_loss("povid")(PAIR), "2 weights of negatives and 1 negatives: match them"),
        (
            lambda: make_loss("aot")(Compared(torch.zeros(2, 3), torch.zeros(2, 3))),
            "sorted losses compare two columns, chosen and rejected, not 3 items",
        ),
        (lambda: Score(0.0), "beta of a preference loss must be positive, not 0.0"),
        (lambda: Score(0.1, reference=1.5), "the share of the reference must lie in [0, 1], not 1.5"),
        (lambda: Alpha(0.0), "alpha must lie in (0, 1] (ReverseKL() is 0), not 0.0"),
        (lambda: Smoothed(0.5), "a share of wrong labels must lie in [0, 0.5), not 0.5"),
        (lambda: Exo(0.0), "the reverse KL needs a label noise between 0 and 0.5, not 0.0"),
        (lambda: Soft(0.0), "a reference moves by a share in (0, 1] every 1 or more updates, not 0.0 every 1"),
        (lambda: Copied(0), "a reference is copied every 1 or more updates, not every 0"),
        (lambda: Top(0), "the best 0 of a group is nobody: give 1 or more"),
        (lambda: Accepted(0.0), "the temperature of rejection sampling must be positive, not 0.0"),
        (
            lambda: Accepted(1.0)(Compared(torch.zeros(2, 2), score=torch.zeros(2, 2))),
            "this selection is random: pass uniform numbers u [B, K]",
        ),
        (
            lambda: Judged()(Compared(torch.zeros(2, 3)), torch.zeros(2, 3)),
            "a judge compares two items, not 3: take Ranked() for more",
        ),
        (lambda: lowest(torch.zeros(2), 0.0), "the share of prompts that are generated anew lies in (0, 1], not 0.0"),
        (
            lambda: completion(torch.zeros(2, 3), torch.tensor([[True] * 3, [False] * 3])),
            "the completion of row 1 is empty: leave such rows out",
        ),
        (
            lambda: completion(torch.zeros(2, 3), torch.ones(2, 2)),
            "token log-probs [2, 3] and their mask [2, 2] must agree",
        ),
        (
            lambda: extrapolate({"a": torch.zeros(2)}, {"b": torch.zeros(2)}, 0.1),
            "weights can be extrapolated between two states of one network: names or shapes differ",
        ),
        (lambda: make_loss("dpo", tau=1), "the loss dpo has no setting 'tau': it has beta"),
    ],
)
def test_errors_say_what_to_do(call: object, sentence: str) -> None:
    with pytest.raises(GirsanovError) as error:
        call()
    assert str(error.value) == sentence


PAGE = (ROOT / "docs" / "papers" / "survey.md").read_text(encoding="utf-8")
SECTIONS = dict(re.findall(r"^## (.+?)\n(.*?)(?=^## |\Z)", PAGE, re.DOTALL | re.MULTILINE))
HOMES = [importlib.import_module(f"girsanov.{m}") for m in ("preferences.games", "sequences", "reward_models.gated")]
HOMES += [
    importlib.import_module(f"girsanov.{m}") for m in ("evaluation.win_rates", "evaluation.ranking", "data.layouts")
]
HOMES += [importlib.import_module(f"girsanov.{m}") for m in ("judging", "reward_models")]


def cells(section: str) -> list[list[str]]:
    """The rows of a section's table."""
    lines = [line for line in SECTIONS[section].splitlines() if line.startswith("| ")]
    return [[cell.strip() for cell in line.strip("| ").split(" | ")] for line in lines[2:]]


ROWS = cells("Losses and policy gradients")


def places(code: str) -> dict[str, set[str]]:
    """Each name of a cell with the files that it may come from: its own, and those of the parts it is made of."""

    def file(what: object) -> str:
        return Path(inspect.getsourcefile(inspect.unwrap(what))).relative_to(ROOT).as_posix()

    found = {}
    for name in re.findall(r"`([\w+-]+)`", code):
        if name in METHODS and ("(method)" in code or name not in LOSSES):
            found[name] = {file(METHODS[name])}
        elif name in LOSSES:
            loss = make_loss(name)
            parts = [p for v in vars(loss).values() for p in (v if isinstance(v, tuple) else (v,))]
            shapes = [type(p.shape) for p in parts if isinstance(p, Score)]
            kinds = [type(loss), *shapes, *(type(p) for p in parts)]
            own = {file(k) for k in kinds if k.__module__.startswith("girsanov.")}
            found[name] = own | {file(LOSSES[name]), "girsanov/preferences/moves.py"}
        elif name in SEQUENCE_RL:
            found[name] = {file(SEQUENCE_RL[name]), "girsanov/sequences/credit.py"}
        elif name in LANGUAGE_METHODS:
            found[name] = {file(LANGUAGE_METHODS[name])}
        elif name in REWARD_LOSSES:
            found[name] = {"girsanov/reward_models/losses.py"}
        else:
            (home,) = {h for h in HOMES if hasattr(h, name)}
            part = getattr(home, name)
            found[name] = {file(part if callable(part) else home)}
    return found


@pytest.mark.parametrize("row", ROWS + cells("Reward models, judges and data"), ids=lambda row: row[0])
def test_a_row_of_the_coverage_table_is_full_and_true(row: list[str]) -> None:
    """Method, survey, paper, formula, code, file, test: filled in; names exist, and stand in the files it says."""
    assert len(row) == 7 and all(row) and row[1] in ("formula", "named", "no")
    assert re.search(r"arxiv.org/abs/\d{4}\.\d{5}|\bnote\b|here", row[2])
    files, known = set(re.findall(r"`(girsanov/[\w/.]+)`", row[5])), places(row[4])
    assert known and files and files <= set().union(*known.values()), f"{row[4]} is not in {row[5]}"
    assert all(files & there for there in known.values()), "a name without a file"
    ((place, test),) = re.findall(r"`(tests/[\w/.]+)::(\w+)`", row[6])
    assert f"def {test}(" in (ROOT / place).read_text(encoding="utf-8")


def test_the_coverage_table_names_every_loss_and_every_preference_method() -> None:
    named = set(re.findall(r"`([\w+-]+)`", " ".join(row[4] for row in ROWS)))
    here = {n for n, cls in METHODS.items() if ".preference." in cls.__module__}
    every = set(LOSSES) | set(SEQUENCE_RL) | set(LANGUAGE_METHODS) - {"sft"} | here
    assert every <= named, "docs/papers/survey.md: give these a row"
    assert len(ROWS) > 65


SURVEY = """
RLHF A2C TRPO P3O PTR-PPO RLHF-V Constitutional MaxMin-RLHF Multilingual RLHF-Workflow ReMax RLOO GRPO OAIF Iterative
self-rewarding OPTune RRHF RAFT ReST SuperHF Nash-MD Nash-MD-PG SPPO DDPO DPOK ReFL DRaFT AlignProp PRDP DLPO HIVE
LLaVA-RLHF RichHF-18K DPO IPO f-DPO KTO ODPO Mallows-DPO R-DPO CPO ORPO SimPO RainbowPO RSO GPO rDPO sDPO VPO PRO ALLO
SLiC-HF Diffusion-DPO POVID BPPO Fakoor RTO ExPO ArmoRM MetaMetrics-RM Bradley-Terry
""".split()
"""What the survey's tables name."""


@pytest.mark.parametrize("method", SURVEY)
def test_every_method_of_the_survey_has_a_row_or_a_reason(method: str) -> None:
    words = cells("Words only in the survey")
    assert all(len(row) == 3 and all(row) for row in words)
    listed = [row[0] for row in ROWS + cells("Reward models, judges and data") + words]
    assert any(re.search(rf"(?<![\w-]){re.escape(method)}(?![\w-])", row) for row in listed)


def test_every_check_of_the_survey_has_a_test() -> None:
    assert len(cells("Checks of the whole family")) > 20
    assert all(len(row) == 2 and all(row) for row in cells("Checks of the whole family"))


def test_an_unknown_loss_gets_the_names_there_are() -> None:
    with pytest.raises(GirsanovError, match="no preference loss is called 'dppo': there are dpo, ipo, "):
        make_loss("dppo")
