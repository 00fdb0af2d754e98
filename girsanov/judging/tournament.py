"""Answers of several models to the same prompts, judged in pairs: files in, verdicts, win rates and a ranking out.

An answers file has a row a prompt: ``{"prompt": ..., "answer": ..., "image": path or nothing, "model": name or
nothing}``; the model is the file's name where a row names none. A verdict is a row ``{"prompt", "a", "b", "value",
"length_a", "length_b", ...}`` with the value of ``girsanov/judging/base.py``; the same file is what ``girsanov rank``
reads, whoever wrote it. Lengths are in characters.
"""

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from girsanov.errors import GirsanovError
from girsanov.evaluation.intervals import Interval
from girsanov.evaluation.ranking import Games, Ranking, elo, rank
from girsanov.evaluation.win_rates import LengthControlled, length_controlled, outcome_rate
from girsanov.jsonl import field, read_rows
from girsanov.judging.base import Answer, Comparison, PairJudge, Verdict


@dataclass(frozen=True)
class Answers:
    """A model's answers: prompt -> answer."""

    model: str
    answers: dict[str, Answer]


def read_answers(path: str | Path) -> Answers:
    """The answers of a file. Raises GirsanovError with the row of what is wrong."""
    path = Path(path)
    found, names = dict[str, Answer](), set[str]()
    for number, row in read_rows(path):
        where = f"{path}, row {number}"
        prompt = field(row, "prompt", str, where)
        if prompt in found:
            raise GirsanovError(f"{where} answers a prompt for the second time: keep one answer a prompt")
        try:
            found[prompt] = Answer(str(row.get("answer") or ""), picture(row.get("image"), path.parent, where))
        except GirsanovError as error:
            raise GirsanovError(str(error) if str(error).startswith(where) else f"{where}: {error}") from None
        names.add(str(row.get("model", path.stem)))
    if not found:
        raise GirsanovError(f"{path} holds no answers: a row is {{'prompt': ..., 'answer': ...}}")
    if len(names) > 1:
        raise GirsanovError(f"{path} holds answers of {', '.join(sorted(names))}: give each model a file of its own")
    return Answers(names.pop(), found)


def picture(name: Any, folder: Path, where: str) -> bytes | None:
    """The bytes of a picture named in a row, relative to its file."""
    if not name:
        return None
    path = folder / str(name)
    if not path.is_file():
        raise GirsanovError(f"{where}: there is no picture {path}")
    return path.read_bytes()


@dataclass(frozen=True)
class Game:
    """A judged pair: who played, on which prompt, the verdict, and how long the answers were."""

    prompt: str
    a: str
    b: str
    verdict: Verdict
    length_a: int
    length_b: int

    def row(self) -> dict[str, Any]:
        """As a row of a file."""
        v = self.verdict
        found = {"prompt": self.prompt, "a": self.a, "b": self.b, "value": v.value}
        orders = {} if v.first is None else {"first": v.first, "second": v.second}
        return found | orders | {"length_a": self.length_a, "length_b": self.length_b, "reason": v.reason}


def play(models: Sequence[Answers], judge: PairJudge) -> list[Game]:
    """Every two models on every prompt that both answered. Raises GirsanovError if there is none, or names repeat."""
    if len({m.model for m in models}) < len(models) or len(models) < 2:
        raise GirsanovError("a comparison needs two models or more, each with a name of its own")
    met = list(_meetings(models))
    if not met:
        raise GirsanovError(f"{' and '.join(m.model for m in models)} have no prompt in common")
    verdicts = judge([Comparison(p, one.answers[p], other.answers[p]) for one, other, p in met])
    return [
        Game(p, one.model, other.model, v, len(one.answers[p].text), len(other.answers[p].text))
        for (one, other, p), v in zip(met, verdicts, strict=True)
    ]


def _meetings(models: Sequence[Answers]) -> Iterator[tuple[Answers, Answers, str]]:
    for one, other in itertools.combinations(models, 2):
        for prompt in one.answers:
            if prompt in other.answers:
                yield one, other, prompt


def read_games(path: str | Path) -> list[Game]:
    """Games from a file of verdicts; one without a value is kept, and left out of the statistics."""
    found = []
    for number, row in read_rows(path):
        where = f"{path}, row {number}"
        a, b = field(row, "a", str, where), field(row, "b", str, where)
        value = None if row.get("value") is None else float(field(row, "value", (int, float), where))
        if a == b:
            raise GirsanovError(f"{where} sets {a!r} against itself: leave it out")
        if value is not None and not 0 <= value <= 1:
            raise GirsanovError(f"{where}: the value is {value:g}: 1 is a win of a, 0.5 a tie, 0 a loss")
        lengths = [int(field(row, k, (int, float), where)) if k in row else 0 for k in ("length_a", "length_b")]
        verdict = Verdict(value, row.get("first"), row.get("second"), str(row.get("reason", "")))
        found.append(Game(str(row.get("prompt", number)), a, b, verdict, *lengths))
    return found


def usable(games: Sequence[Game]) -> list[Game]:
    """Those with a value. Raises GirsanovError if there is none."""
    kept = [g for g in games if g.verdict.value is not None]
    if not kept:
        raise GirsanovError("no game has a usable verdict: look at the judge's replies")
    return kept


def ranking(games: Sequence[Game], prior: float = 0.0) -> Ranking:
    """Bradley-Terry ratings of all models."""
    return rank(_columns(usable(games)), prior)


def elo_ratings(games: Sequence[Game], k: float = 4.0, shuffles: int = 20, seed: int = 0) -> dict[str, float]:
    """Elo's ratings by name."""
    columns = _columns(usable(games))
    return dict(zip(columns.names, elo(columns, k, shuffles, seed).tolist(), strict=True))


def _columns(games: Sequence[Game]) -> Games:
    y = [float(g.verdict.value) for g in games if g.verdict.value is not None]
    return Games.of([g.a for g in games], [g.b for g in games], y, [g.prompt for g in games])


@dataclass(frozen=True)
class Against:
    """A model against another: the win rate, and the same with length held equal where lengths differ."""

    model: str
    other: str
    rate: Interval
    controlled: LengthControlled | None
    ties: float


def against(games: Sequence[Game], model: str, other: str) -> Against:
    """The win rate of one model over another. Raises GirsanovError if they never met."""
    met = [g for g in usable(games) if {g.a, g.b} == {model, other}]
    if not met:
        raise GirsanovError(f"{model} and {other} never met with a usable verdict")
    forward = np.array([g.a == model for g in met])
    value = np.array([float(g.verdict.value) for g in met if g.verdict.value is not None])
    y = np.where(forward, value, 1 - value)
    index = np.unique([g.prompt for g in met], return_inverse=True)[1]
    first, second = np.array([g.length_a for g in met]), np.array([g.length_b for g in met])
    own, others = np.where(forward, first, second), np.where(forward, second, first)
    varied = len(np.unique(index)) == len(y) >= 10 and bool((own != others).any()) and bool(np.ptp(y) > 0)
    controlled = length_controlled(y, own, others) if varied else None
    return Against(model, other, outcome_rate(y, index), controlled, float((y == 0.5).mean()))
