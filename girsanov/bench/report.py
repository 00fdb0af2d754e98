"""The bench's output: rows over seeds, as a table, as JSON, and as the plot of reward against KL with the frontier."""

import dataclasses
import json
import statistics
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from girsanov.bench.problems import BETA, PROBLEMS, STEPS, BenchProblem
from girsanov.bench.run import Approach, Result, approach, bench
from girsanov.bench.training import FAST, FULL, Budget
from girsanov.disk import write_text
from girsanov.errors import GirsanovError
from girsanov.methods import METHODS

COLUMNS = {
    "method": "method",
    "mean": "mean",
    "variance": "variance",
    "weight": "weight",
    "kl": "path KL",
    "reward": "reward",
    "to_limit": "end-limit %",
    "limit_error": "limit-law %",
    "order": "order",
    "richardson": "Richardson %",
    "to_law": "end-law %",
    "share": "share %",
    "calls": "passes",
    "stopped": "stopped at",
    "seconds": "seconds",
}
PERCENT = ("to_limit", "limit_error", "richardson", "to_law", "share")
AVERAGED = ("mean", "variance", "weight", "kl", "reward", "stopped", "calls", "seconds", "to_limit", "to_law", "share")


def row(results: Sequence[Result], tends: Approach | None) -> dict[str, Any]:
    """One method on one problem: means over seeds, and the largest training error of any seed."""
    made: dict[str, Any] = {"problem": results[0].problem, "method": results[0].method, "seeds": len(results)}
    for name in AVERAGED:
        values = [getattr(r, name) for r in results]
        made[name] = None if values[0] is None else statistics.fmean(values)
    limits = [r.to_limit for r in results if r.to_limit is not None]
    made["to_limit_worst"] = max(limits) if limits else None
    made["limit_error"] = None if tends is None else tends.error
    made["order"] = None if tends is None else tends.order
    made["richardson"] = None if tends is None else tends.richardson
    return made


def number(name: str, value: Any) -> str:
    """A cell of the table."""
    if value is None:
        return "-"
    if name in ("method", "problem"):
        return str(value)
    if name == "calls":
        return f"{value:.0f}"
    if name in ("order", "seconds", "stopped"):
        return f"{value:.1f}"
    return f"{100 * value:.2f}" if name in PERCENT else f"{value:.4f}"


def table(rows: Sequence[dict[str, Any]]) -> str:
    """Markdown, one table a problem."""
    parts = []
    for problem in dict.fromkeys(r["problem"] for r in rows):
        mine = [r for r in rows if r["problem"] == problem]
        names = [n for n in COLUMNS if any(r[n] is not None for r in mine)]
        lines = [f"### {problem}", "", "| " + " | ".join(COLUMNS[n] for n in names) + " |", "|" + " --- |" * len(names)]
        lines += ["| " + " | ".join(number(n, r[n]) for n in names) + " |" for r in mine]
        parts.append("\n".join(lines))
    return "\n\n".join(parts)


def exact(problem: BenchProblem) -> dict[str, Any]:
    """The frontier and the law aimed at, for the record."""
    target = problem.target
    return {
        "frontier": {"kl": problem.frontier.kl.tolist(), "reward": problem.frontier.reward.tolist()},
        "tilted": {"mean": target.mean.tolist(), "cov": target.cov.tolist(), "weights": target.weights.tolist()},
    }


def draw(path: Path, rows: Sequence[dict[str, Any]]) -> None:
    """Reward against path KL of the common chain, one panel a problem, with the exact frontier."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    names = list(dict.fromkeys(r["problem"] for r in rows))
    place = {m: i for i, m in enumerate(dict.fromkeys(r["method"] for r in rows))}
    shown = dict[str, Any]()
    figure = Figure(figsize=(5.2 * len(names), 4.6), dpi=130, layout="constrained")
    FigureCanvasAgg(figure)
    for axes, name in zip(np.atleast_1d(figure.subplots(1, len(names))), names, strict=True):
        curve, mine = PROBLEMS[name].frontier, [r for r in rows if r["problem"] == name]
        edge = 1.15 * max([r["kl"] for r in mine] + [1e-3])
        spread = np.linspace(0, edge, 200) ** 2 / edge
        shown["exact frontier"] = axes.plot(spread, [curve.best(float(k)) for k in spread], color="#c2571a", lw=1.6)[0]
        for r in mine:
            i = place[r["method"]]
            marker = "osD^vP*Xd<>h"[i % 12]
            shown[r["method"]] = axes.plot(r["kl"], r["reward"], marker, ms=6, color=f"C{i % 10}", alpha=0.85)[0]
        axes.set(xlim=(-0.02 * edge, edge), xlabel="path KL (nats)", ylabel="expected reward", title=name)
        low, high = float(curve.reward[0]), curve.best(edge)
        axes.set_ylim(low - 0.08 * (high - low), high + 0.08 * (high - low))
        axes.spines[["top", "right"]].set_visible(False)
    handles, labels = list(shown.values()), list(shown)
    figure.legend(handles, labels, fontsize=7.5, frameon=False, loc="outside lower center", ncols=3 * len(names) + 1)
    figure.savefig(path, facecolor="white")


def settings(budget: Budget) -> dict[str, Any]:
    """What all rows of a record share."""
    return {"steps": STEPS, "beta": BETA, "budget": dataclasses.asdict(budget)}


def merge(old: dict[str, Any], new: dict[str, Any]) -> dict[str, Any]:
    """A record with another's rows in place of its own of the same problem and method; methods in their usual order.

    Raises GirsanovError if the two were made with other settings.
    """
    if old.get("settings") != new["settings"]:
        raise GirsanovError(
            "this file's rows were made with other settings (steps, beta or budget): give --json a new file"
        )
    ran = {(r["problem"], r["method"]) for r in new["rows"]}
    usual = {key: i for i, key in enumerate((p, m) for p in PROBLEMS for m in METHODS)}

    def together(name: str) -> list[dict[str, Any]]:
        kept = [r for r in old[name] if (r["problem"], r["method"]) not in ran]
        return sorted([*kept, *new[name]], key=lambda r: usual.get((r["problem"], r["method"]), len(usual)))

    commands = [*(c for c in old["commands"] if c not in new["commands"]), *new["commands"]]
    exact = {**old["exact"], **new["exact"]}
    return {**new, "commands": commands, "rows": together("rows"), "results": together("results"), "exact": exact}


def run_bench(
    json_path: Path | str | None = None,
    plot_path: Path | str | None = None,
    methods: Sequence[str] | None = None,
    seeds: int | None = None,
    fast: bool = False,
    problems: Sequence[str] | None = None,
    command: str = "run_bench",
) -> list[dict[str, Any]]:
    """``girsanov bench``: trains, prints the table, writes JSON and plot; returns the rows that ran.

    Args:
        json_path: where the numbers go; rows of a file that is there already stay or are replaced. None writes none.
        plot_path: where the PNG goes, of all rows of the JSON file; None draws none.
        methods: names in ``METHODS``; None is all.
        seeds: how many, from 0; None is 5 (1 with ``fast``).
        fast: a coarse check with a smaller budget.
        problems: names in ``PROBLEMS``; None is all.
        command: what was typed, for the record.

    Raises:
        GirsanovError: an unknown name, a JSON file made with other settings.
    """
    chosen, where = list(methods or METHODS), list(problems or PROBLEMS)
    count, budget = seeds or (1 if fast else 5), FAST if fast else FULL
    before = None if json_path is None or not Path(json_path).exists() else json.loads(Path(json_path).read_text())
    empty: dict[str, Any] = {
        "commands": [command],
        "settings": settings(budget),
        "rows": [],
        "results": [],
        "exact": {},
    }
    if before is not None:
        merge(before, empty)  # what does not fit is said before anything is trained
    results: dict[tuple[str, str], list[Result]] = {}
    for result in bench(chosen, where, count, budget, lambda line: print(line, file=sys.stderr, flush=True)):
        results.setdefault((result.problem, result.method), []).append(result)
    rows = [row(found, approach(method, PROBLEMS[p])) for (p, method), found in results.items()]
    print(table(rows))
    record = {
        **empty,
        "rows": rows,
        "results": [dataclasses.asdict(r) for found in results.values() for r in found],
        "exact": {name: exact(PROBLEMS[name]) for name in where},
    }
    record = record if before is None else merge(before, record)
    if json_path is not None:
        write_text(Path(json_path), json.dumps(record, indent=1) + "\n")
    if plot_path is not None:
        draw(Path(plot_path), record["rows"])
    return rows
