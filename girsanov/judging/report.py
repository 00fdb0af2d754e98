"""What ``girsanov judge`` and ``girsanov rank`` print."""

import argparse
import dataclasses
import json
from collections.abc import Sequence
from pathlib import Path

from girsanov.disk import write_text
from girsanov.errors import GirsanovError
from girsanov.evaluation.intervals import Interval
from girsanov.jsonl import write_rows
from girsanov.judging.base import BothOrders, PairJudge, position_bias
from girsanov.judging.parsing import READERS
from girsanov.judging.scoring import ScoreJudge
from girsanov.judging.server import SYSTEM, ServerJudge
from girsanov.judging.tournament import Against, Game, against, elo_ratings, play, ranking, read_answers, read_games
from girsanov.judging.trained import RewardJudge
from girsanov.rewards.function import load_object
from girsanov.settings import unknown

MAX_PATH = 1024  # characters: a longer text is no file name


def judge_of(chosen: argparse.Namespace) -> PairJudge:
    """The judge of the command line. Raises GirsanovError unless there is exactly one."""
    if (chosen.score is None) == (chosen.url is None):
        raise GirsanovError(
            "name one judge: --url and --model of a server, or --score with my_file.py:fn or a reward model's folder"
        )
    if chosen.score is not None:
        return scoring_judge(chosen.score, chosen.soft)
    if chosen.reader not in READERS:
        raise GirsanovError(f"{chosen.reader!r} {unknown(chosen.reader, READERS, 'reader')}")
    reader = READERS[chosen.reader]()
    system = SYSTEM if chosen.criteria is None else criteria(chosen.criteria)
    server = ServerJudge(
        chosen.url, chosen.model or "", system=system, reader=reader, soft=chosen.soft, cache=chosen.cache
    )
    return BothOrders(server)


def criteria(given: str) -> str:
    """How to judge: a text, or that of a file. Raises GirsanovError if it is empty, or the file cannot be read."""
    path = Path(given).expanduser()
    if len(given) < MAX_PATH and path.is_file():
        try:
            given = path.read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise GirsanovError(f"{path} cannot be read as text ({error}): give --criteria a text file") from error
    if not given.strip():
        raise GirsanovError("--criteria is empty: say how to judge, or leave it out")
    return given.strip()


def scoring_judge(spec: str, soft: bool) -> PairJudge:
    """A judge made of a function, ``my_file.py:fn``, or of a reward model by its folder."""
    from girsanov.reward_models.model import is_reward_model, load_reward_model

    temperature = 1.0 if soft else 0.0
    if is_reward_model(spec):
        return RewardJudge(load_reward_model(spec), temperature)
    if Path(spec).is_dir():
        raise GirsanovError(f"{spec} holds no reward model: give the --out of girsanov train-reward, or my_file.py:fn")
    return ScoreJudge(load_object(spec), temperature)


def judge_files(chosen: argparse.Namespace) -> str:
    """Judges every two files, writes the verdicts, and says what came out."""
    judge = judge_of(chosen)
    models = [read_answers(p) for p in chosen.answers]
    games = play(models, judge)
    write_rows(chosen.out, [g.row() for g in games])
    lost = sum(g.verdict.value is None for g in games)
    lines = [f"{len(games)} pairs judged" + (f", {lost} of them without a usable verdict" if lost else "")]
    names = [m.model for m in models]
    lines += [told(against(games, a, b)) for i, a in enumerate(names) for b in names[i + 1 :] if _met(games, a, b)]
    both = [g.verdict for g in games]
    if sum(v.first is not None and v.second is not None for v in both) > 1:
        lines.append(f"being shown first adds {shares(position_bias(both))} to a verdict; both orders take it away")
    return "\n".join([*lines, f"verdicts: {chosen.out}"])


def _met(games: Sequence[Game], a: str, b: str) -> bool:
    return any({g.a, g.b} == {a, b} and g.verdict.value is not None for g in games)


def shares(i: Interval) -> str:
    """An interval in percent."""
    return f"{i.value:.1%} [{i.low:.1%}, {i.high:.1%}]"


def told(a: Against) -> str:
    """A win rate as a line."""
    line = f"{a.model} over {a.other}: {shares(a.rate)} of {a.rate.n} prompts, {a.ties:.1%} ties"
    if a.controlled is None:
        return line
    return f"{line}; at equal length {shares(a.controlled.rate)}"


def rank_files(paths: Sequence[Path], baseline: str | None, prior: float, json_path: Path | None) -> str:
    """Ratings, Elo and win rates over a baseline, as text; as JSON too if asked."""
    games = [g for p in paths for g in read_games(p)]
    found = ranking(games, prior)
    base = baseline or found.names[-1]
    if base not in found.names:
        raise GirsanovError(f"{base!r} {unknown(base, found.names, 'model')}")
    running = elo_ratings(games)
    rates = [against(games, name, base) for name in found.names if name != base and _met(games, name, base)]
    if json_path is not None:
        values = {
            "ratings": {n: dataclasses.asdict(r) for n, r in zip(found.names, found.ratings, strict=True)},
            "elo": running,
            "win_rates": [dataclasses.asdict(r) for r in rates],
        }
        write_text(json_path, json.dumps(values, indent=2) + "\n")
    order = ", ".join(f"{name} {running[name]:.0f}" for name in found.names)
    return "\n".join([found.table(), f"Elo (mean of 20 orders): {order}", *map(told, rates)])
