r"""The bench: train every method on every problem and say how far it is from where it must end.

Three errors a method: *training* (end point to the method's own limit on the grid), *order* (how the limit approaches
the law it aims at as the number of steps doubles) and *total* (end point to that law). Methods without a limit are
scored on the frontier: they are stopped where the common chain spends the path KL of the path-KL optimum, and ``share``
is the part of the best possible gain in reward that they reach with it.
"""

import dataclasses
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from girsanov.bench.nets import Correction
from girsanov.bench.problems import BETA, COMMON, PROBLEMS, STEPS, BenchProblem
from girsanov.bench.training import Budget, Requests, train_one
from girsanov.bench.values import HatScalar
from girsanov.errors import GirsanovError
from girsanov.grids import Grid
from girsanov.methods import METHODS
from girsanov.methods.adjoint.costs import QuadraticCost
from girsanov.methods.advantages import LeaveOneOut, RunningBuffer
from girsanov.methods.base import Method
from girsanov.methods.continuous.price import PathKLPrice
from girsanov.methods.forward.errors import VelocityError
from girsanov.methods.forward.old import ConstantDecay
from girsanov.methods.forward.times import GridTimes
from girsanov.methods.policy_gradient.credit import StepLength
from girsanov.methods.policy_gradient.penalty import PathKL, PerStepKL
from girsanov.methods.policy_gradient.windows import SlidingWindow
from girsanov.methods.preference.weights import TiltWeight
from girsanov.models import Model
from girsanov.nets.skip import CosineSkip, FullSkip, Skip
from girsanov.nets.value import DenoisedReward
from girsanov.policy import Policy
from girsanov.preferences import Score, make_loss
from girsanov.surrogates import ScoreFunction

UNIT = 2 * BETA
"""Weight of the KL where advantages come in units of the reward's std, which is about a half here."""


def step_kl(share: float = 1.0) -> PerStepKL:
    """A KL of steps weighted by their length, as flow_grpo's code has it: ``share * UNIT`` for each of the STEPS."""
    return PerStepKL(share * UNIT * STEPS, StepLength())


def _buffered() -> dict[str, Any]:
    """Unclipped, since +-5 cuts the tail of a curved reward; of 256, since the std of 32 such rewards is too noisy."""
    return {"advantage": RunningBuffer(256, 16), "kl": PathKL(UNIT), "sampler": COMMON}


def full(p: BenchProblem) -> Skip:
    """The skip that is exact for the value of untuned Gaussian data."""
    return FullSkip(float(p.law.cov.trace() / p.law.d) ** 0.5)


def value(p: BenchProblem, skip: Skip) -> DenoisedReward:
    """A value whose network is linear in its weights, with a skip."""
    return DenoisedReward(skip, HatScalar(p.law, p.grid, p.features))


def _regression() -> dict[str, Any]:
    return {"advantage": LeaveOneOut(), "times": GridTimes(), "draws": 5}


def _round(p: BenchProblem) -> dict[str, Any]:
    """The weight that tilts round data; at t = 1 the images of a pair or a list are the same noise."""
    weight = TiltWeight(beta=BETA, std=float(p.law.cov.trace() / p.law.d) ** 0.5)
    return {"weight": weight, "times": GridTimes(), "grid": Grid.uniform(STEPS, start=0.999), "draws": 5}


MOVING = SlidingWindow(every=1, leave=2)
"""A window that comes by every few iterations: its limit is that of the average over its positions."""

SETTINGS: dict[str, Callable[[BenchProblem], dict[str, Any]]] = {
    "am": lambda p: {"beta": BETA, "sampler": COMMON},
    "ode-am": lambda p: {"cost": QuadraticCost(BETA)},
    "clipped-pg": lambda p: {
        "advantage": LeaveOneOut(),
        "kl": PathKL(BETA),
        "surrogate": ScoreFunction(),
        "sampler": COMMON,
    },
    "ddpo": lambda p: _buffered(),
    "ddpo-sf": lambda p: _buffered(),
    "dpok": lambda p: {"kl": PerStepKL(BETA), "sampler": COMMON},
    "flow-grpo": lambda p: {"kl": step_kl()},
    "flow-grpo-fast": lambda p: {"kl": step_kl()},
    "dance-grpo": lambda p: {"kl": PerStepKL(UNIT)},
    "mix-grpo": lambda p: {"kl": PerStepKL(UNIT), "schedule": MOVING},
    "mix-grpo-flash": lambda p: {"kl": PerStepKL(UNIT), "schedule": MOVING},
    "branch-grpo": lambda p: {"kl": PerStepKL(BETA), "advantage": LeaveOneOut()},
    "grpo-guard": lambda p: {"kl": step_kl(STEPS**0.5)},  # its loss counts std / |dt| times, about sqrt(STEPS)
    "pcpo": lambda p: {"kl": step_kl(STEPS**-0.5)},  # and its log-ratios std
    "tempflow-grpo": lambda p: {"kl": step_kl(4.5 * STEPS**-0.5)},
    "flow-dppo": lambda p: {"kl": step_kl()},
    "rsm-hinge": lambda p: {"kl": step_kl()},
    "ctrl": lambda p: {"price": PathKLPrice(BETA), "sampler": COMMON, "value": value(p, full(p))},
    "ctrl-ratio": lambda p: {"value": value(p, CosineSkip())},
    "ctrl-few-step": lambda p: {"value": value(p, full(p))},
    "nft": lambda p: _regression() | {"kappa": BETA, "error": VelocityError(), "decay": ConstantDecay(0.0)},
    "fpo": lambda p: _regression() | {"kappa": BETA},
    "ram": lambda p: _regression() | {"beta": BETA},
    "rvm": lambda p: _regression() | {"scale": 0.5, "b": 0.5 * BETA},
    "orw-cfm-w2": lambda p: _regression() | {"tau": 0.5, "kappa": 0.5 * BETA},
    "crd": lambda p: _regression() | {"kappa": 2 * BETA, "error": VelocityError(), "decay": ConstantDecay(0.0)},
    "prdp": lambda p: {"beta": BETA, "sampler": COMMON},
    "rwr": lambda p: {"beta": BETA, "times": GridTimes(), "draws": 5},
    "diffusion-dpo": _round,
    "rank-dpo": lambda p: _round(p) | {"loss": make_loss("plackett-luce", score=Score(1.0))},
    "diffusion-sdpo": _round,
    "dspo": _round,
    "diffusion-kto": _round,
    "online-dpo": _round,
}
"""Options that give a method a limit, or B(t) the scale of this data (published ones are of images, and change nothing
here); the others run as published, on the bench's grid."""


def make_method(name: str, problem: BenchProblem) -> Method:
    """The method as the bench runs it."""
    cls, options = METHODS[name], SETTINGS.get(name, lambda p: {})(problem)
    fields = {f.name for f in dataclasses.fields(cls)}  # type: ignore[arg-type]
    shared = {"reward": problem.reward, "grid": problem.grid}
    return cls(**{k: v for k, v in shared.items() if k in fields} | options)


@dataclass(frozen=True)
class Result:
    """One method, one problem, one seed.

    Attributes:
        problem, method, seed: which.
        mean, variance: of the end law, first coordinate; weight: mass right of 0 (mixture).
        kl, reward: of the common chain.
        stopped: the iteration whose weights are measured: the last one, or the one that reaches the reference KL.
        calls: forward passes of the network, each on a batch.
        seconds: of training.
        to_limit: end law to limit, or None where there is none.
        to_law: end law to the law aimed at.
        share: part of the best gain in reward at the same KL.
    """

    problem: str
    method: str
    seed: int
    mean: float
    variance: float
    weight: float | None
    kl: float
    reward: float
    stopped: float
    calls: int
    seconds: float
    to_limit: float | None
    to_law: float | None
    share: float


def tuned(problem: BenchProblem, net: Correction, weight: Tensor) -> Model:
    """The model with the given weights of the correction."""
    net.weight.data.copy_(weight)
    return dataclasses.replace(problem.model, net=net)


def stopped(problem: BenchProblem, net: Correction, path: Sequence[Tensor], kl: float) -> float:
    """The iteration at which the common chain first spends a path KL, by bisection on the path of the weights.

    Between two iterations the weights are interpolated; a run that spends less is not stopped.
    """

    def spends(at: float) -> bool:
        return not problem.score(tuned(problem, net, along(path, at)))[0] < kl

    low, high = 0.0, float(len(path) - 1)
    if not spends(high):
        return high
    while high - low > 1 / 64:
        middle = 0.5 * (low + high) if high - low <= 1 else float((int(low) + int(high)) // 2)
        low, high = (low, middle) if spends(middle) else (middle, high)
    return low


def along(path: Sequence[Tensor], at: float) -> Tensor:
    """The weights at a fraction of an iteration."""
    i = min(int(at), len(path) - 2)
    return torch.lerp(path[i], path[i + 1], at - i)


def run_one(name: str, problem: BenchProblem, seed: int, budget: Budget) -> Result:
    """Trains one method on one problem with one seed and measures it."""
    method = make_method(name, problem)
    net = Correction(problem.law, problem.model, problem.grid, problem.features)
    policy = Policy(dataclasses.replace(problem.model, net=net))
    requests = Requests(problem.law, problem.reward, budget, method.data)
    limit, aim = problem.limit(method), problem.aim(method)
    trained = train_one(method, policy, requests, seed, budget.free_lr if limit is None else budget.lr)
    last = float(budget.iterations)
    if limit is None:
        last = stopped(problem, net, trained.path, problem.optimum(BETA)[0])
    model = tuned(problem, net, along(trained.path, last))
    end = problem.end(model, COMMON if limit is None else getattr(method, "sampler", problem.deploy))
    kl, reward = problem.score(model)
    untuned = problem.frontier.reward[0]
    return Result(
        problem.name,
        name,
        seed,
        float(end.mean[0]),
        float(end.cov[0, 0]),
        end.weight,
        kl,
        reward,
        last,
        trained.calls,
        trained.seconds,
        None if limit is None else end.error(limit),
        None if aim is None else end.error(aim),
        (reward - untuned) / (problem.frontier.best(kl) - untuned),
    )


@dataclass(frozen=True)
class Approach:
    """How a limit tends to the law aimed at: error on the bench's grid, observed order, Richardson's error."""

    error: float
    order: float
    richardson: float


def approach(name: str, problem: BenchProblem) -> Approach | None:
    """From the limits on 1, 4 and 8 times the steps; no training."""
    method = make_method(name, problem)
    aim = problem.aim(method)
    if aim is None:
        return None
    laws = {n: problem.limit(method, n) for n in (STEPS, 4 * STEPS, 8 * STEPS)}
    errors = {n: law.error(aim) for n, law in laws.items() if law is not None}
    coarse, fine = laws[4 * STEPS], laws[8 * STEPS]
    assert coarse is not None and fine is not None
    order = float(np.log2(errors[4 * STEPS] / errors[8 * STEPS]))
    factor = 2.0 ** round(order)
    return Approach(errors[STEPS], order, fine.extrapolated(coarse, factor).error(aim))


def bench(
    methods: Sequence[str], problems: Sequence[str], seeds: int, budget: Budget, progress: Callable[[str], None]
) -> Iterator[Result]:
    """Every method on every problem with seeds 0 .. seeds - 1. Raises GirsanovError on an unknown name."""
    for kind, names, known in (("method", methods, METHODS), ("problem", problems, PROBLEMS)):
        for name in names:
            if name not in known:
                raise GirsanovError(f"the bench knows no {kind} {name!r}: choose from {', '.join(known)}")
    for p in problems:
        for m in methods:
            for seed in range(seeds):
                result = run_one(m, PROBLEMS[p], seed, budget)
                progress(f"{p:16s} {m:16s} seed {seed}  {result.seconds:6.1f} s")
                yield result
