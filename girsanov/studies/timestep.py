r"""``girsanov study timestep``: does policy optimisation get worse as the time step shrinks?

Parts: ``variance`` (spreads of rates and gradients, ``timestep_variance.py``), ``time`` (training at equal environment
time) and ``samples`` (at an equal number of steps), on the linear-quadratic problem, where the loss of any affine
policy is known in closed form. PPO is that of stable-baselines3; without that package its rows are left out, and the
page says so.

Reference: Zhao et al. 2023, arXiv:2305.18901.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from statistics import mean
from typing import Any

import torch

from girsanov.control import LQ, AffinePolicy
from girsanov.control.agents import CPG, CPPO, Agent, LinearKL, SqrtKL
from girsanov.control.critics import Galerkin, LeastSquares
from girsanov.control.policies import Actor, AffineActor, random_admissible
from girsanov.control.rates import TD, Generator
from girsanov.errors import GirsanovError
from girsanov.policy import Policy
from girsanov.prompts import ClassPrompts
from girsanov.report.svg import Line
from girsanov.studies.page import TONES, Plot, Section, Table, study_of, write_study
from girsanov.studies.timestep_variance import HORIZON, variance_section
from girsanov.train import Run, TrainConfig, fit

STEPS = (0.2, 0.05, 0.0125)
COPIES, ITERATIONS, SEEDS, MIDDLE = 32, 30, 2, 0.05  # at dt = MIDDLE both budgets are the same


@dataclass(frozen=True)
class Budget:
    """How many copies an iteration has at a dt."""

    key: str
    title: str
    copies: Callable[[float], int]


EQUAL_TIME = Budget("time", "Training at equal environment time", lambda dt: COPIES)
EQUAL_SAMPLES = Budget(
    "samples", "Training at an equal number of steps", lambda dt: max(2, round(COPIES * dt / MIDDLE))
)

Trainer = Callable[[LQ, AffinePolicy, int, int, int], AffinePolicy]
"""``train(environment, start, copies, iterations, seed)`` -> the policy at the end."""


def agent(make: Callable[[LQ], Agent], **train: Any) -> Trainer:
    """An agent of ours, with 16 updates a batch for those that take several."""

    def run(env: LQ, start: AffinePolicy, copies: int, iterations: int, seed: int) -> AffinePolicy:
        policy = Policy(as_config(start).build(env))
        passes: dict[str, Any] = {"epochs": 1, "minibatches": 1} if train.get("single") else several(copies)
        settings = {k: v for k, v in train.items() if k != "single"}
        config = TrainConfig(
            iterations=iterations,
            seed=seed,
            betas=(0.9, 0.99),
            schedule="linear",
            max_grad_norm=5.0,
            **passes,
            **settings,
        )
        done = fit(policy, make(env), ClassPrompts(num_classes=1, groups_per_batch=copies, group_size=1), config)
        return as_numbers(done)

    return run


def several(copies: int) -> dict[str, int]:
    """16 updates: 4 passes of 4 minibatches, or as many as there are paths."""
    minibatches = min(4, copies)
    return {"epochs": 16 // minibatches, "minibatches": minibatches}


def as_config(start: AffinePolicy) -> AffineActor:
    """The start as settings of a policy."""
    slope = tuple(tuple(row) for row in start.slope.tolist())
    return AffineActor(slope=slope, offset=tuple(start.offset.tolist()), std=float(start.covariance[0, 0]) ** 0.5)


def as_numbers(run: Run) -> AffinePolicy:
    """The policy of a finished run."""
    actor: Any = run.policy.view("current")
    assert isinstance(actor, Actor)
    with torch.no_grad():
        law = actor(torch.tensor([[0.0], [1.0]], dtype=torch.float64))
    offset = law.mean[0]
    return AffinePolicy((law.mean[1] - offset)[:, None], offset, law.covariance)


def ppo(trace: float | None) -> Trainer:
    """PPO of stable-baselines3."""

    def run(env: LQ, start: AffinePolicy, copies: int, iterations: int, seed: int) -> AffinePolicy:
        from girsanov.control.sb3 import Baseline

        return Baseline(copies=copies, horizon=HORIZON, iterations=iterations, trace=trace).train(env, start, seed)

    return run


OURS: dict[str, Trainer] = {
    "CPG, td": agent(lambda env: CPG(environment=env, rate=TD(), critic=LeastSquares()), lr=0.08, single=True),
    "CPPO, td": agent(lambda env: CPPO(environment=env, rate=TD(), trust=SqrtKL(target=0.3)), lr=0.03),
    "CPPO linear KL, td": agent(lambda env: CPPO(environment=env, rate=TD(), trust=LinearKL(target=0.09)), lr=0.03),
    "CPPO, generator": agent(
        lambda env: CPPO(environment=env, rate=Generator(), critic=Galerkin(), trust=SqrtKL(target=0.3)), lr=0.03
    ),
}
BASELINES: dict[str, Trainer] = {
    "PPO, lambda 0.95 a step": ppo(None),
    "PPO, lambda in time": ppo(2.0),
}


def loss_of(env: LQ, policy: AffinePolicy) -> float | None:
    """What a policy loses against the best one in continuous time; None where it has no value."""
    best = env.solution()
    try:
        return best.objective - best.evaluate(policy).objective
    except GirsanovError:
        return None


def attempt(train: Trainer, dt: float, copies: int, iterations: int, seed: int) -> float | None:
    """Loss after training from a random admissible start, as a share of the loss there; None if it diverged."""
    env = LQ(dt=dt)
    start = random_admissible(env, seed=seed)
    before = loss_of(env, start)
    assert before is not None
    try:
        after = loss_of(env, train(env, start, copies, iterations, seed))
    except GirsanovError:
        return None
    return None if after is None else after / before


def training_section(budget: Budget, fast: bool) -> Section:
    """Every method at every dt, under one kind of budget."""
    steps, iterations, seeds = (STEPS[:2], 2, 1) if fast else (STEPS, ITERATIONS, SEEDS)
    there = find_spec("stable_baselines3") is not None
    methods: Mapping[str, Trainer] = {**OURS, **(BASELINES if there else {})}
    found = dict[tuple[str, float], list[float | None]]()
    for name, train in methods.items():
        for dt in steps:
            losses = [attempt(train, dt, budget.copies(dt), iterations, seed) for seed in range(seeds)]
            found[name, dt] = losses
            print(f"{budget.key}: {name}, dt = {dt:g}: {shown(losses)}", flush=True)
    rows = [{"method": m, "dt": dt, "copies": budget.copies(dt), "losses": v} for (m, dt), v in found.items()]
    cells = [[name, *(shown(found[name, dt]) for dt in steps)] for name in methods]
    note = (
        f"Loss left after {iterations} iterations in % of that of the start; geometric mean over {seeds} random "
        f"admissible starts (largest in brackets). An iteration has {budget.copies(steps[0])} to "
        f"{budget.copies(steps[-1])} paths of length {HORIZON:g} / discount."
    )
    if not there:
        note += " PPO was left out: stable-baselines3 is not installed (pip install 'girsanov[rl]')."
    table = Table(("method", *(f"dt = {dt:g}" for dt in steps)), cells, note)
    x = [-math.log10(dt) for dt in steps]
    lines = [
        Line(x, [log_mean(found[name, dt]) for dt in steps], name=name, style=[*TONES, "line-grey"][i], dots=True)
        for i, name in enumerate(methods)
    ]
    plot = Plot(f"timestep-{budget.key}", "log10 of the share of the loss left", "log10 of 1 / dt", lines)
    return Section(budget.key, budget.title, verdicts(found, steps), [table], [plot], {"rows": rows})


def log_mean(losses: Sequence[float | None]) -> float | None:
    """Mean of the logarithm to base 10; None if a run diverged."""
    finite = [v for v in losses if v is not None]
    return mean(math.log10(max(v, 1e-9)) for v in finite) if len(finite) == len(losses) else None


def shown(losses: Sequence[float | None]) -> str:
    """Geometric mean and largest, in percent."""
    middle = log_mean(losses)
    if middle is None:
        return f"{sum(v is None for v in losses)} of {len(losses)} diverged"
    return f"{100 * 10**middle:.3f} ({100 * max(v for v in losses if v is not None):.3f})"


def verdicts(found: Mapping[tuple[str, float], Sequence[float | None]], steps: Sequence[float]) -> Sequence[str]:
    """A sentence a method: how its loss changes from the largest dt to the smallest."""
    told = []
    for name in dict.fromkeys(name for name, _ in found):
        first, last = log_mean(found[name, steps[0]]), log_mean(found[name, steps[-1]])
        change = "diverged at one end" if first is None or last is None else f"{10 ** (last - first):.2f}"
        told.append(f"{name}: {change}")
    return (f"Loss left at dt = {steps[-1]:g} over that at {steps[0]:g}. {'; '.join(told)}.",)


PARTS: dict[str, Callable[[bool], Sequence[Section]]] = {
    "variance": lambda fast: [variance_section(fast)],
    "time": lambda fast: [training_section(EQUAL_TIME, fast)],
    "samples": lambda fast: [training_section(EQUAL_SAMPLES, fast)],
}
"""Parts of the study by name."""


def run_study(out: Path, command: str, parts: Sequence[str] | None = None, fast: bool = False) -> Path:
    """Runs the parts (all by default) and writes the study; the path of its page.

    Raises GirsanovError on an unknown part.
    """
    sections = study_of(PARTS, parts, fast)
    lead = (
        "An action held for a time dt moves the state by dt, the noise by its root. Does learning get worse as dt "
        "shrinks, and for whom?"
    )
    return write_study(out, "Time steps", lead, sections, command)
