r"""``girsanov study discretisation``: trained on N steps, sampled on fewer and more, and with other solvers.

A continuous-time method should learn a field, not the steps of a grid. Part ``exact``: the fixed points of score as
action and of a policy gradient with a KL per step on a grid of N steps (Gaussian data, a quadratic reward), as fields
between the grid's times, sampled on other grids with four solvers; no training, no sampling error. Part ``digits``:
score as action (gradient and ratio form) and DDPO, each trained with the same number of network calls, the same
weights sampled with half and twice the steps.

Reference: arXiv:2502.01819, 2025 (their study: 50 steps, evaluated with 25 and 100; DDPO and CTRL).
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from girsanov.bench.problems import Summary
from girsanov.evaluation.intervals import mean_interval
from girsanov.grids import Grid
from girsanov.launch import configure
from girsanov.models import ModelLike
from girsanov.problems.laws import Gaussian
from girsanov.problems.moments import affine_kernels, end_law, prior_moments
from girsanov.problems.recursions import Limit, path_kl_limit, per_step_kl_limit, tuned_model
from girsanov.problems.rewards import QuadraticReward, tilt
from girsanov.processes import RectifiedFlow
from girsanov.recipes import get_recipe
from girsanov.recipes.base import Assembled
from girsanov.report.svg import Line
from girsanov.samplers import GDDIM, DPMSolverPP2M, Euler, Heun, Sampler
from girsanov.studies.digits import evaluator_of, half, pictures, quality, rewards
from girsanov.studies.page import TONES, Plot, Section, Table, study_of, write_study
from girsanov.train import Run, train

SOLVERS: dict[str, Sampler] = {"SDE": GDDIM(1.0), "Euler": Euler(), "Heun": Heun(), "DPM++2M": DPMSolverPP2M()}
TRAINED = 20
LAW, REWARD, BETA = (
    Gaussian([0.8, -0.3], [[1.2, 0.4], [0.4, 0.6]]),
    QuadraticReward([[0.8, 0.2], [0.2, 0.4]], [0.6, -0.4]),
    1.0,
)
FIXED: dict[str, Callable[..., Limit]] = {
    "score as action": path_kl_limit,
    "policy gradient, per-step KL": per_step_kl_limit,
}


# ---- exact


def exact_section(fast: bool) -> Section:
    """Errors of the end law, of the two fixed points on N steps under every solver and number of steps."""
    counts = (TRAINED,) if fast else (TRAINED // 2, TRAINED, 2 * TRAINED, 4 * TRAINED)
    grids = (TRAINED,) if fast else (TRAINED, 4 * TRAINED)
    model, target = LAW.model(RectifiedFlow()), tilt(LAW, REWARD, BETA)
    start, rows = prior_moments(model), list[dict[str, Any]]()
    for name, recursion in FIXED.items():
        for trained in grids:
            grid = Grid.uniform(trained)
            base = affine_kernels(model, GDDIM(1.0), grid)
            found = recursion(base, start, REWARD, BETA)
            assert found.kernels is not None
            field = tuned_model(model, grid, base, found.kernels)
            for solver, sampler in SOLVERS.items():
                for n in counts:
                    law = end_law(field, sampler, Grid.uniform(n))
                    error = Summary.of(law).error(Summary.of(target))
                    untuned = end_law(model, sampler, Grid.uniform(n))
                    gain = float(REWARD.expected(law.mean, law.cov) - REWARD.expected(untuned.mean, untuned.cov))
                    rows.append(
                        {"method": name, "trained": trained, "solver": solver, "steps": n, "error": error, "gain": gain}
                    )
    best = float(REWARD.expected(target.mean, target.cov) - REWARD.expected(LAW.mean, LAW.cov))

    def cells(name: str, trained: int, solver: str) -> list[str]:
        mine = [r for r in rows if (r["method"], r["trained"], r["solver"]) == (name, trained, solver)]
        return [f"{r['gain']:.3f} ({100 * r['error']:.1f} %)" for r in mine]

    table = Table(
        ("method", "trained on", "solver", *(f"{n} steps" for n in counts)),
        [[m, str(n), s, *cells(m, n, s)] for m in FIXED for n in grids for s in SOLVERS],
        "Gain in expected reward over the untuned model with the same solver and steps (the tilted law gains "
        f"{best:.3f} over the data), and in brackets the error of the end law against the tilted law: the larger of "
        "the mean's error in stds and the covariance's relative one.",
    )
    lines = [
        Line(
            [float(n) for n in counts],
            [r["gain"] for r in rows if (r["method"], r["trained"], r["solver"]) == ("score as action", TRAINED, s)],
            name=s,
            style=TONES[i],
            dots=True,
        )
        for i, s in enumerate(SOLVERS)
    ]
    lines.append(Line([float(n) for n in counts], [best] * len(counts), name="tilted law", style="line-grey"))
    text = (
        f"Gaussian data in the plane, a quadratic reward, beta = 1, gDDIM(1). The fixed point on {TRAINED} steps as a "
        "field, sampled on other grids.",
    )
    plot = Plot("discretisation-exact", f"Fixed point of {TRAINED} steps: gain in reward", "steps when sampling", lines)
    return Section("exact", "Fixed points on other grids", text, [table], [plot], {"rows": rows, "tilted": best})


# ---- digits


class Calls:
    """Counts samples passed through a network: forwards, and backwards where a graph was asked for."""

    def __init__(self, net: nn.Module) -> None:
        self.forward, self.backward = 0, 0
        net.register_forward_hook(self)

    def __call__(self, net: nn.Module, inputs: tuple[Any, ...], output: Tensor) -> None:
        self.forward += len(output)
        self.backward += len(output) if output.requires_grad else 0

    @property
    def total(self) -> int:
        """Forwards and backwards."""
        return self.forward + self.backward


@dataclass
class Until:
    """Ends a run when it has used its calls.

    Attributes:
        calls: the counter.
        limit: how many there are; None is no limit.
    """

    calls: Calls
    limit: int | None
    spent: list[int] = field(default_factory=list)

    def start(self, run: Run) -> None:
        """Counts from here."""
        self.calls.forward = self.calls.backward = 0

    def iteration(self, run: Run, metrics: dict[str, float]) -> None:
        """Stops where another iteration would use more than there are."""
        self.spent.append(self.calls.total)
        if self.limit is not None and self.calls.total * (run.done + 1) / run.done > self.limit:
            run.stop("its calls are used")

    def end(self, run: Run) -> None:
        """Nothing more."""


UNIFORM = {"kind": "uniform", "n": TRAINED}
RUNS: dict[str, Mapping[str, Any]] = {
    "ctrl": {"method": {"kind": "ctrl", "grid": UNIFORM, "price": {"kind": "kl", "beta": 0.6}}, "train": {"lr": 5e-4}},
    "ctrl-ratio": {"method": {"kind": "ctrl-ratio", "grid": UNIFORM}, "train": {"lr": 2e-4}},
    "ddpo": {"method": {"kind": "ddpo", "grid": UNIFORM}, "train": {"lr": 2e-4}},
}
"""What is trained, each on gDDIM(1); published forms have no KL."""


def assemble(layer: Mapping[str, Any], iterations: int) -> Assembled:
    """The digits recipe with a method."""
    recipe = get_recipe("digits")
    train_layer = {**layer["train"], "iterations": iterations}
    return recipe.build(configure(recipe, [{**layer, "group_size": 6, "train": train_layer}]), torch.device("cpu"))


@torch.no_grad()
def look(model: ModelLike, base: ModelLike, parts: Assembled, n: int) -> list[dict[str, Any]]:
    """Gain in reward over the untuned model, and the judge, for every solver and number of steps; paired noise."""
    evaluator, rows = evaluator_of(parts), list[dict[str, Any]]()
    for solver, sampler in SOLVERS.items():
        for steps in (TRAINED // 2, TRAINED, 2 * TRAINED):
            there = replace(evaluator, grid=Grid.uniform(steps))
            before, after = rewards(base, sampler, there, n), rewards(model, sampler, there, n)
            gain = mean_interval(after - before)
            rows.append(
                {
                    "solver": solver,
                    "steps": steps,
                    "reward": float(after.mean()),
                    "gain": gain.value,
                    "half": half(gain),
                }
            )
            rows[-1] |= quality(*pictures(model, sampler, there, n), evaluator)
    return rows


def run_one(name: str, iterations: int, limit: int | None, n: int) -> dict[str, Any]:
    """Trains a method and samples it everywhere."""
    parts = assemble(RUNS[name], iterations)
    run = parts.run
    until = Until(Calls(run.policy.net), limit)
    train(run, [until])
    rows = look(run.model(), run.reference(), parts, n)
    kl = evaluator_of(parts).drift(run.model(), run.reference())["kl"]
    return {"method": name, "iterations": run.done, "calls": until.spent[-1], "kl": kl, "rows": rows}


def digits_section(fast: bool) -> Section:
    """Each method with the calls that the first one used."""
    iterations, n = (2, 40) if fast else (30, 500)
    found = [run_one("ctrl", iterations, None, n)]
    limit = found[0]["calls"]
    found += [run_one(name, 10 * iterations, limit, n) for name in RUNS if name != "ctrl"]

    def cell(r: Mapping[str, Any], solver: str, steps: int) -> str:
        row = next(v for v in r["rows"] if (v["solver"], v["steps"]) == (solver, steps))
        return f"{row['gain']:.2f} ± {row['half']:.2f}"

    counts = (TRAINED // 2, TRAINED, 2 * TRAINED)
    gains = Table(
        ("method", "solver", *(f"{n} steps" for n in counts)),
        [[r["method"], s, *(cell(r, s, c) for c in counts)] for r in found for s in SOLVERS],
        f"Gain in reward over the untuned model with the same solver, steps and noise; {n} pictures, paired 95 % "
        f"intervals. Trained on {TRAINED} steps of gDDIM(1), one seed.",
    )
    at = {r["method"]: next(v for v in r["rows"] if (v["solver"], v["steps"]) == ("SDE", TRAINED)) for r in found}
    cost = Table(
        ("method", "iterations", "calls", "path KL", "judge", "kept at half", "kept at twice", "kept by Heun"),
        [
            [
                r["method"],
                str(r["iterations"]),
                f"{r['calls']}",
                r["kl"],
                f"{100 * at[r['method']]['judge']:.1f} %",
                *(
                    f"{100 * kept(r, s, c) / at[r['method']]['gain']:.1f} %"
                    for s, c in (("SDE", TRAINED // 2), ("SDE", 2 * TRAINED), ("Heun", TRAINED))
                ),
            ]
            for r in found
        ],
        "Calls: samples through the network, forwards and backwards. Judge: of the SDE on the trained steps. Kept: the "
        "gain with other steps or another solver, in percent of that of the SDE on the trained steps.",
    )
    lines = [
        Line(
            [float(c) for c in counts],
            [kept(r, s, c) for c in counts],
            name=f"{r['method']}, {s}",
            style=TONES[i],
            dots=True,
        )
        for i, (r, s) in enumerate([(r, s) for r in found for s in ("SDE", "Heun")][:5])
    ]
    plot = Plot("discretisation-digits", "Digits: gain in reward", "steps when sampling", lines)
    text = "Trained with equal network calls, sampled on other grids and with other solvers."
    return Section("digits", "Digits", (text,), [cost, gains], [plot], {"runs": found, "n": n})


def kept(r: Mapping[str, Any], solver: str, steps: int) -> float:
    """The gain of a run with a solver and a number of steps."""
    return float(next(v["gain"] for v in r["rows"] if (v["solver"], v["steps"]) == (solver, steps)))


PARTS: dict[str, Callable[[bool], Sequence[Section]]] = {
    "exact": lambda fast: [exact_section(fast)],
    "digits": lambda fast: [digits_section(fast)],
}
"""Parts of the study by name."""


def run_study(out: Path, command: str, parts: Sequence[str] | None = None, fast: bool = False) -> Path:
    """Runs the parts (all by default) and writes the study; the path of its page.

    Raises GirsanovError on an unknown part.
    """
    sections = study_of(PARTS, parts, fast)
    lead = "Weights that were trained on some steps, sampled on fewer and more, and with other solvers: what stays?"
    return write_study(out, "Discretisation", lead, sections, command)
