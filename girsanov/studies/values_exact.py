r"""Value networks on problems whose values are known.

Gaussian data and two modes on the line, with quadratic rewards: the value of the *untuned* model, ``E[r(x_0) | x_t]``,
which pretraining regresses, and the *optimal* one with a path KL, both at eta = 1. The untuned model's paths are exact
draws of ``(x_t, x_0)``; the optimal policy's are rolled out with the tilted law's network on 50 steps and pay their
path KL. Every skip has the same network, optimiser and budget.
"""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from girsanov.grids import Grid
from girsanov.methods.continuous.price import PathKLPrice
from girsanov.methods.continuous.returns import LambdaReturn
from girsanov.models import denoised
from girsanov.nets.skip import SKIPS, Skip
from girsanov.nets.value import ScalarMLPConfig, Value
from girsanov.problems.control import mixture_value
from girsanov.problems.laws import Gaussian, Mixture
from girsanov.problems.rewards import QuadraticReward, tilt
from girsanov.processes import RectifiedFlow
from girsanov.rollout import rollout
from girsanov.samplers.gddim import GDDIM
from girsanov.studies.page import Section, Table

BETA, PROCESS, STEPS = 0.7, RectifiedFlow(), 50
TIMES = (0.1, 0.3, 0.5, 0.7, 0.9)
PATHS = (128, 1024)
SEEDS = (0, 1)


@dataclass(frozen=True)
class Known:
    """A problem whose values are known.

    Attributes:
        name: in tables.
        law, reward: data and pay-off.
    """

    name: str
    law: Mixture
    reward: QuadraticReward

    def value(self, kind: str, x: Tensor, t: Tensor) -> Tensor:
        """The exact value [B] at states x [B, d], differentiable in x."""
        if kind == "optimal":
            return mixture_value(self.law, self.reward, BETA, PROCESS, x, t)
        c = PROCESS(t.expand(len(x)))
        post = self.law.posterior(x, c.alpha, c.sigma)
        covs, A, b = self.law.posterior_covs(c.alpha, c.sigma), self.reward.A, self.reward.b
        spread = torch.einsum("ij,bkij->bk", A, covs)
        bent = torch.einsum("bki,ij,bkj->bk", post.means, A, post.means)
        return (post.log_weights.exp() * (post.means @ b - 0.5 * (bent + spread))).sum(1)

    def states(self, kind: str, t: Tensor, n: int, g: torch.Generator) -> Tensor:
        """States [n, d] at a time, as the policy meets them."""
        law = tilt(self.law, self.reward, BETA) if kind == "optimal" else self.law
        c = PROCESS(t)
        return c.alpha * law.sample(n, g) + c.sigma * torch.randn(n, law.d, dtype=torch.float64, generator=g)


PROBLEMS = (
    Known(
        "Gaussian",
        Gaussian([0.8, -0.3], [[1.2, 0.4], [0.4, 0.6]]),
        QuadraticReward([[1.5, 0.3], [0.3, 0.4]], [0.6, -0.5]),
    ),
    Known(
        "two modes",
        Mixture([0.7, 0.3], [[-1.5], [1.5]], [[[0.25]], [[0.25]]]),
        QuadraticReward([[0.6]], [0.5]),
    ),
)
KINDS = ("untuned", "optimal")


@dataclass(frozen=True)
class Data:
    """States and Monte-Carlo returns of n paths at every time: x [T, n, d], times [T], returns [T, n]."""

    x: Tensor
    t: Tensor
    y: Tensor


def paths(problem: Known, kind: str, n: int, seed: int) -> Data:
    """What a value is regressed on."""
    g, grid = torch.Generator().manual_seed(seed), Grid.uniform(STEPS)
    d = problem.law.d
    if kind == "untuned":  # the memoryless reverse process is the noising process read backwards, in one draw a time
        clean = problem.law.sample(n, g)
        z = torch.randn(STEPS, n, d, dtype=torch.float64, generator=g)
        c = PROCESS(grid.ts[:-1])
        x = c.alpha[:, None, None] * clean + c.sigma[:, None, None] * z
        return Data(x, grid.ts[:-1], problem.reward(clean).expand(STEPS, n))
    model, base = tilt(problem.law, problem.reward, BETA).model(PROCESS), problem.law.model(PROCESS)

    def noise(like: Tensor) -> Tensor:
        return torch.randn(like.shape, dtype=torch.float64, generator=g)

    with torch.no_grad():
        path = rollout(model, GDDIM(1.0), grid, noise(torch.empty(n, d)), noise=noise)
        price, paid = PathKLPrice(BETA), list[Tensor]()
        for tr in path:
            kernel = GDDIM(1.0).kernel(base, tr.x_t, tr.step)[0]
            paid.append(-price.charge(kernel, tr.step, tr.mean, kernel.mean))
    reward = problem.reward(path.x0)
    returns = LambdaReturn(1.0)(reward.unsqueeze(1).expand(n, STEPS + 1), torch.stack(paid, 1))
    return Data(torch.stack([tr.x_t for tr in path]), grid.ts[:-1], returns.mT)


def fit(problem: Known, skip: Skip, data: Data, seed: int, updates: int) -> Value:
    """A value regressed on the returns: Adam, minibatches of 512 of (path, step) at one time each."""
    value = Value(ScalarMLPConfig(width=64, embed=32).build((problem.law.d,), PROCESS, seed).double(), skip, PROCESS)
    value = value.double()
    value.calibrate(data.y[-1])
    g, base = torch.Generator().manual_seed(seed), problem.law.model(PROCESS)
    with torch.no_grad():
        reward = torch.stack([problem.reward(denoised(base, x, t)) for x, t in zip(data.x, data.t, strict=True)])
    optimiser = torch.optim.Adam(value.parameters(), lr=3e-3)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, updates)
    T, n = data.y.shape
    for _ in range(updates):
        k, i = torch.randint(T, (512,), generator=g), torch.randint(n, (512,), generator=g)
        error = (value(data.x[k, i], data.t[k], None, reward[k, i]) - data.y[k, i]) / value.scale
        optimiser.zero_grad(set_to_none=True)
        error.square().mean().backward()
        optimiser.step()
        schedule.step()
    return value


def errors(problem: Known, kind: str, value: Value | None, skip: Skip) -> tuple[float, float]:
    """Errors of V (over the spread of the reward) and of its gradient (relative), root mean squares over all states.

    Without a value: those of the skip's first guess, the reward of the denoised sample.
    """
    g, base = torch.Generator().manual_seed(99), problem.law.model(PROCESS)
    wrong, slope, size = [], [], []
    for at in TIMES:
        t = torch.tensor(at, dtype=torch.float64)
        x = problem.states(kind, t, 400, g).requires_grad_(True)
        reward = problem.reward(denoised(base, x, t))
        found = reward if value is None else value(x, t, None, reward)
        exact = problem.value(kind, x, t)
        (G,), (H,) = (torch.autograd.grad(v.sum(), x, retain_graph=True) for v in (found, exact))
        wrong.append((found - exact).detach().square().mean())
        slope.append((G - H).square().sum(1).mean())
        size.append(H.square().sum(1).mean())
    law = tilt(problem.law, problem.reward, BETA) if kind == "optimal" else problem.law
    spread = problem.reward(law.sample(4000, g)).std()
    rms = torch.stack(wrong).mean().sqrt() / spread
    return float(rms), float((torch.stack(slope).sum() / torch.stack(size).sum()).sqrt())


def exact_section(problem: Known, fast: bool) -> Section:
    """All skips on one problem."""
    updates, counts, seeds = (30, PATHS[:1], SEEDS[:1]) if fast else (400, PATHS, SEEDS)
    rows: list[dict[str, Any]] = []
    for kind in KINDS:
        for n in counts:
            data = [paths(problem, kind, n, seed) for seed in seeds]
            for name, made in SKIPS.items():
                found = [
                    errors(problem, kind, fit(problem, made(), d, s, updates), made())
                    for d, s in zip(data, seeds, strict=True)
                ]
                means = [sum(v) / len(seeds) for v in zip(*found, strict=True)]
                rows.append({"value": kind, "paths": n, "skip": name, "error": means[0], "slope": means[1]})
    guess = {kind: errors(problem, kind, None, SKIPS["full"]()) for kind in KINDS}
    heads = [f"{kind}, {n}" for kind in KINDS for n in counts]

    def cells(name: str) -> list[str]:
        found = {(r["value"], r["paths"]): r for r in rows if r["skip"] == name}
        return [f"{100 * found[k, n]['error']:.1f} / {100 * found[k, n]['slope']:.1f}" for k in KINDS for n in counts]

    first = [f"{100 * guess[k][0]:.1f} / {100 * guess[k][1]:.1f}" for k in KINDS for _ in counts]
    table = Table(
        ("skip", *heads),
        [*([name, *cells(name)] for name in SKIPS), ["reward of x0_hat, untrained", *first]],
        "Error of V in percent of the reward's spread / relative error of its gradient in percent, over states of the "
        f"policy at t = {', '.join(map(str, TIMES))}; columns: which value, and how many paths. Means of {len(seeds)} "
        "seeds.",
    )
    key = problem.name.replace(" ", "-")
    record = {"rows": rows, "untrained": guess, "updates": updates, "seeds": list(seeds)}
    text = (
        f"{problem.name}, quadratic reward. A residual MLP of width 64, {updates} steps of Adam on Monte-Carlo returns."
    )
    return Section(key, f"Exact values: {problem.name}", (text,), [table], (), record)
