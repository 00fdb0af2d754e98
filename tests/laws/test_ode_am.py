"""Deterministic adjoint matching against the discrete proximal map and against direct minimisation (control.md T8).

Everything is float64 and without randomness beyond fixed starts: tolerances are rounding, not statistics.
"""

import dataclasses
import functools

import pytest
import torch
from torch import Tensor, nn

from girsanov.errors import GirsanovError
from girsanov.grids import Grid
from girsanov.methods.adjoint import ode, sweep, targets
from girsanov.methods.adjoint.costs import ConvexCost, Cost, PowerCost, QuadraticCost
from girsanov.methods.adjoint.gauss_newton import GaussNewton
from girsanov.methods.adjoint.ode import ODEAdjointMatching
from girsanov.methods.base import Turn
from girsanov.models import Guided, Model, velocity
from girsanov.nets import DiTConfig
from girsanov.policy import Policy
from girsanov.problems import Classes, Gaussian, Mixture, QuadraticReward
from girsanov.problems.proximal import DiscreteFlow, discrete_flow
from girsanov.processes import VP, RectifiedFlow
from girsanov.rewards.base import Reward
from girsanov.rollout import rollout
from girsanov.samplers import GDDIM, DPMSolverPP2M, Euler, Heun, Sampler
from girsanov.types import Cond, Prompts
from tests.laws.mutation import Mutation, check, mutants
from tests.laws.tuning import F64, Affine, affine_policy, close, lift, requests

LAW = Gaussian([0.8, -0.2], [[1.69, 0.3], [0.3, 0.8]])
REWARD = QuadraticReward([[1.5, 0.2], [0.2, 1.0]], [0.6, 0.1])
MODES = Mixture([0.6, 0.4], [[-1.0, 0.5], [1.2, -0.3]], [[[0.3, 0.1], [0.1, 0.4]], [[0.5, -0.2], [-0.2, 0.2]]])
FLOW = RectifiedFlow()
CASES: dict[str, tuple[Sampler, Model, Grid, int | None]] = {
    "euler": (Euler(), LAW.model(FLOW), Grid.uniform(5), None),
    "euler-3": (Euler(), LAW.model(FLOW), Grid.shifted(6, 3.0), 3),
    "ddim-vp": (GDDIM(0.0), LAW.model(VP()), Grid.uniform(5), None),
    "ddim-vp-2": (GDDIM(0.0), LAW.model(VP()), Grid.uniform(5, 1.0, 0.01), 2),
}


def starts(n: int, model: Model) -> Tensor:
    """The x_T that the method draws for n requests at iteration 0."""
    return model.process.prior(Turn(0, 0).noise(requests(n).ids).normal(model.shape, F64))


def fit(method: ODEAdjointMatching, policy: Policy, iterations: int, damping: float, n: int = 8) -> None:
    """Damped exact regressions onto the method's targets."""
    net = policy.net
    assert isinstance(net, Affine)
    for _ in range(iterations):
        batch = method.collect(policy, requests(n), {}, Turn(0, 0))
        with torch.no_grad():
            for target in batch.targets:
                found = torch.linalg.lstsq(lift(target.x), target.control).solution.T
                weight = net.weight[net.at(target.t)]
                weight.add_(found - weight, alpha=damping)


def ends(method: ODEAdjointMatching, policy: Policy, n: int = 8) -> Tensor:
    """End points of the tuned model from the starts."""
    return rollout(method.deploy(policy), method.sampler, method.grid, starts(n, policy.model), keep=()).x0


@pytest.mark.parametrize("name", CASES)
def test_it_converges_to_the_discrete_proximal_map(name: str) -> None:
    sampler, base, grid, last = CASES[name]
    flow = discrete_flow(base, sampler, grid, last)
    lam = float(torch.linalg.matrix_norm(flow.gramian @ REWARD.A, 2))  # a smaller one needs more damping
    policy = affine_policy(base, grid)
    parts = {"sampler": sampler, "grid": grid, "last": last, "cost": QuadraticCost(lam), "gate": last is not None}
    method = ODEAdjointMatching(reward=REWARD, **parts)
    fit(method, policy, 60, 0.4)
    with torch.no_grad():
        found = ends(method, policy)
    close(found, flow.controls(REWARD, lam, starts(8, base))[0], 1e-6)


def test_the_numbers_of_one_path() -> None:
    """Data N(.8, 1.3^2), r = -.75 x^2 + .6 x, lam = .9, x_T = -.7, six Euler steps."""
    base, reward = Gaussian(0.8, 1.69).model(FLOW), QuadraticReward(1.5, 0.6)
    grid, x_T = Grid.uniform(6), torch.full((1, 1), -0.7, dtype=F64)
    ways = {last: discrete_flow(base, Euler(), grid, last).controls(reward, 0.9, x_T) for last in (6, 3)}
    assert float(ways[6][0]) == pytest.approx(0.3125074960, abs=1e-10)
    assert float(ways[3][0]) == pytest.approx(0.2479597082, abs=1e-10)
    # The oracle's controls are the method's targets on the path that they make; the clock runs from data to noise.
    policy = open_loop(base, ways[3][1], before=3)
    problem_targets = targets_from(policy, Euler(), grid, reward, QuadraticCost(0.9), 3, x_T)
    close(torch.stack(problem_targets).flatten(), -torch.tensor([0.34260256, 0.29704982, 0.25340049], dtype=F64), 1e-8)


class OpenLoop(nn.Module):
    """The base field plus a control of its own for every stage and sample, in the order the solver asks."""

    def __init__(self, base: Model, controls: Tensor) -> None:
        super().__init__()
        self.base, self.calls = base, 0
        self.controls = nn.Parameter(controls.clone())

    def forward(self, x: Tensor, t: Tensor, cond: Cond | None = None) -> Tensor:
        u = self.controls[self.calls % len(self.controls)]
        self.calls += int(self.controls.requires_grad)  # calls of the reference, whose controls are 0, do not count
        return self.base.net(x, t, cond) + u


def open_loop(base: Model, controls: Tensor, before: int = 0) -> Policy:
    """A policy with the given stage controls [J, B, d] after ``before`` free stages."""
    every = torch.cat([torch.zeros(before, *controls.shape[1:], dtype=F64), controls])
    policy = Policy(dataclasses.replace(base, net=OpenLoop(base, torch.zeros_like(every))))
    policy.load("current", {"controls": every})
    return policy


def problem_at(
    policy: Policy, sampler: Sampler, grid: Grid, reward: Reward, cost: Cost, last: int, x_T: Tensor
) -> targets.Problem:
    """The method's problem on the path from given starts."""
    with torch.no_grad():
        path = rollout(
            policy.view(), sampler, grid, x_T, requests(len(x_T)).cond, keep=range(len(grid) - last, len(grid))
        )
    return targets.Problem(policy, policy.view(), sampler, path, reward, cost, requests(len(x_T)))


def targets_from(
    policy: Policy, sampler: Sampler, grid: Grid, reward: Reward, cost: Cost, last: int, x_T: Tensor
) -> list[Tensor]:
    """First-order controls on the path from given starts."""
    found = targets.FirstOrder().find(problem_at(policy, sampler, grid, reward, cost, last, x_T))[1]
    return [target.control for target in found]


class Ring(Reward):
    """``-(|x|^2 - 1)^2 + x_0``: smooth, not quadratic, with a Hessian of both signs."""

    name, differentiable = "ring", True

    def __call__(self, x: Tensor, prompts: Prompts | None = None) -> Tensor:
        return -((x.square().sum(1) - 1) ** 2) + x[:, 0]


def quadratic(u: Tensor) -> Tensor:
    return 0.5 * 2.0 * u.square().sum(-1)


def power(q: float) -> tuple[Cost, object]:
    return PowerCost(1.5, q), lambda u: 1.5 / q * u.square().sum(-1).add(1e-300) ** (q / 2)


def entropy(u: Tensor) -> Tensor:
    """Convex conjugate of ``sum log cosh``: finite inside the cube only."""
    return (0.5 * (torch.xlogy(1 + u, 1 + u) + torch.xlogy(1 - u, 1 - u))).sum(-1)


COSTS = {
    "quadratic": (QuadraticCost(2.0), quadratic),
    "cubic": power(3.0),
    "power-1.5": power(1.5),
    "entropy": (ConvexCost(torch.tanh), entropy),
}


def minimise(
    base: Model, sampler: Sampler, grid: Grid, reward: Reward, cost: object, last: int, x_T: Tensor, inside: bool
) -> tuple[Tensor, int]:
    """Stage controls [J, B, d] that minimise the discretised objective, and the number of stages before the window."""

    def run(u: Tensor | None) -> tuple[Tensor, list[Tensor], int]:
        x, weights, before = x_T, list[Tensor](), 0
        for step in grid:
            dialogue = sampler.stages(base, x, step)
            stage = next(dialogue)
            while True:
                v = velocity(base, stage.x, stage.t)
                if step.i < len(grid) - last:
                    before += 1
                else:
                    v = v if u is None else v + u[len(weights)]
                    weights.append(stage.weight)
                try:
                    stage = dialogue.send(v)
                except StopIteration as end:
                    x = end.value
                    break
        return x, weights, before

    _, weights, before = run(None)
    raw = torch.zeros(len(weights), *x_T.shape, dtype=F64).add_(0.05).requires_grad_(True)
    w = torch.stack(weights).unsqueeze(1)

    def value(free: Tensor) -> Tensor:
        u = torch.tanh(free) if inside else free
        return ((w * cost(u)).sum(0) - reward(run(u)[0])).sum()

    lbfgs = torch.optim.LBFGS([raw], max_iter=200, line_search_fn="strong_wolfe")

    def closure() -> Tensor:
        lbfgs.zero_grad()
        loss = value(raw)
        loss.backward()
        return loss

    lbfgs.step(closure)
    for _ in range(6):  # Newton: a line search on values stops at the root of the rounding error
        (slope,) = torch.autograd.grad(value(raw), raw)
        curve = torch.autograd.functional.hessian(value, raw.detach()).reshape(raw.numel(), raw.numel())
        with torch.no_grad():
            raw -= torch.linalg.solve(curve, slope.flatten()).view_as(raw)
    assert torch.linalg.eigvalsh(curve).min() > 0 and slope.abs().max() < 1e-11
    return (torch.tanh(raw) if inside else raw).detach(), before


SETTINGS = {
    "euler": (Euler(), FLOW, Grid.uniform(5), 5),
    "euler-2": (Euler(), FLOW, Grid.uniform(5), 2),
    "heun": (Heun(), FLOW, Grid.uniform(4), 4),
    "heun-2": (Heun(), FLOW, Grid.uniform(4), 2),
    "heun-vp": (Heun(), VP(), Grid.uniform(4), 4),  # the last step falls back to Euler
    "ddim-vp": (GDDIM(0.0), VP(), Grid.uniform(4), 4),
}
CHOSEN = [(name, cost) for name in SETTINGS for cost in COSTS if cost == "quadratic" or name in ("euler", "heun")]
X_T = torch.tensor([[-0.7, 0.3], [1.1, 0.8], [0.2, -1.4]], dtype=F64)


@functools.cache
def optimum(name: str, cost: str) -> tuple[Tensor, int]:
    """``minimise`` at a setting; it runs none of the method's code."""
    sampler, process, grid, last = SETTINGS[name]
    return minimise(MODES.model(process), sampler, grid, Ring(), COSTS[cost][1], last, X_T, inside=cost == "entropy")


@pytest.mark.parametrize(("name", "cost"), CHOSEN)
def test_the_optimum_of_the_discretised_objective_is_its_fixed_point(name: str, cost: str) -> None:
    """A mixture's field, a reward that is not quadratic: on the optimal path the targets are the optimal controls."""
    sampler, process, grid, last = SETTINGS[name]
    best, before = optimum(name, cost)
    policy = open_loop(MODES.model(process), best, before)
    found = targets_from(policy, sampler, grid, Ring(), COSTS[cost][0], last, X_T)
    assert best.abs().max() > 0.05
    close(torch.stack(found), best, 1e-8)


@pytest.mark.parametrize("sampler", [Euler(), Heun(), GDDIM(0.0)], ids=repr)
@pytest.mark.parametrize("last", [5, 2])
def test_gauss_newton_is_at_the_proximal_map_after_one_step(sampler: Sampler, last: int) -> None:
    """Affine field, quadratic reward, any current control, and a lam at which the first-order iteration diverges."""
    base, grid, lam = LAW.model(FLOW), Grid.uniform(5), 0.2
    flow = discrete_flow(base, sampler, grid, last)
    assert float(torch.linalg.matrix_norm(flow.gramian @ REWARD.A / lam, 2)) > 2
    policy = affine_policy(base, grid, seed=3)
    problem = problem_at(policy, sampler, grid, REWARD, QuadraticCost(lam), last, starts(6, base))
    _, found = GaussNewton(steps=2).find(problem)
    close(torch.stack([t.control for t in found]), window_controls(flow, problem, lam, grid, last), 1e-9)
    plain = targets.FirstOrder().find(problem)[1]
    assert (found[-1].control - plain[-1].control).abs().max() > 0.1


def window_controls(flow: DiscreteFlow, problem: targets.Problem, lam: float, grid: Grid, last: int) -> Tensor:
    """The oracle's stage controls from the states at which the window begins."""
    first, base = problem.path.transitions[0].x_t, LAW.model(FLOW)
    return discrete_flow(base, problem.sampler, Grid(grid.ts[len(grid) - last :])).controls(REWARD, lam, first)[1]


@pytest.mark.parametrize("name", ["euler", "heun"])
def test_gauss_newton_has_the_fixed_points_of_the_objective(name: str) -> None:
    sampler, process, grid, last = SETTINGS[name]
    best, before = optimum(name, "quadratic")
    problem = problem_at(
        open_loop(MODES.model(process), best, before), sampler, grid, Ring(), QuadraticCost(2.0), last, X_T
    )
    found = GaussNewton(steps=2).find(problem)[1]
    close(torch.stack([t.control for t in found]), best, 1e-7)
    close(torch.stack([t.x for t in found]), torch.stack([s.x for tr in problem.path for s in tr.stages]), 1e-7)


@pytest.mark.parametrize("sampler", [Euler(), Heun(), GDDIM(0.0)], ids=repr)
def test_push_is_the_transpose_of_pull(sampler: Sampler) -> None:
    """``<a, A dx + sum B_i u_i> = <A^T a, dx> + sum <B_i^T a, u_i>`` on a nonlinear field."""
    base, grid = MODES.model(FLOW), Grid.uniform(3)
    g = torch.Generator().manual_seed(0)
    tr = rollout(base, sampler, grid, X_T).transitions[1]
    a, dx, *us = (torch.randn(3, 2, dtype=F64, generator=g) for _ in range(2 + len(tr.stages)))
    before, gs, _ = sweep.pull(sampler, base, tr, a, None)
    forth = sweep.push(sampler, base, tr, dx, us, None)
    assert before is not None
    close((a * forth).sum(), (before * dx).sum() + sum((gi * u).sum() for gi, u in zip(gs, us, strict=True)), 1e-12)


def test_push_is_the_transpose_of_pull_through_attention() -> None:
    """Fused attention has no forward derivative; a small transformer in float64."""
    net = DiTConfig(shape=(1, 8, 8), width=16, blocks=2, heads=2).build(0).double()
    g = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for p in net.parameters():
            p.add_(0.1 * torch.randn(p.shape, dtype=F64, generator=g))
    model = Model(net.requires_grad_(False), FLOW, "velocity", (1, 8, 8))
    a, dx, u, x_T = (torch.randn(2, 1, 8, 8, dtype=F64, generator=g) for _ in range(4))
    tr = rollout(model, Euler(), Grid.uniform(3), x_T).transitions[1]
    before, (b,), _ = sweep.pull(Euler(), model, tr, a, None)
    forth = sweep.push(Euler(), model, tr, dx, [u], None)
    assert before is not None
    close((a * forth).sum(), (before * dx).sum() + (b * u).sum(), 1e-12)


def test_guidance_is_that_of_the_guided_field() -> None:
    """Guided in all its uses, the method is the unguided one on the field ``null + w (cond - null)``."""
    classes = Classes([MODES, Gaussian([1.0, 0.0], [[0.5, 0.1], [0.1, 0.3]])])
    grid, labels, w = Grid.uniform(4), classes.cond([0, 1, 1], null=True), 2.5
    guided_field = dataclasses.replace(classes.model(FLOW), net=Guided(classes.model(FLOW), w))
    prompts = dataclasses.replace(requests(3), cond=labels)
    parts = {"reward": Ring(), "grid": grid, "last": 3, "sampler": Heun()}

    def found(base: Model, guidance: dict[str, float]) -> tuple[targets.Target, ...]:
        policy = Policy(dataclasses.replace(base, net=Affine(base, grid)), guidance)
        return ODEAdjointMatching(**parts).collect(policy, prompts, {}, Turn(0, 0)).targets

    every = found(classes.model(FLOW), {"rollout": w, "adjoint": w, "train": w})
    for a, b in zip(every, found(guided_field, {}), strict=True):
        close([a.x, a.control, a.reference], [b.x, b.control, b.reference], 1e-10)
    # guided in the rollout alone: the points are those, the costate is that of the conditional field
    some = found(classes.model(FLOW), {"rollout": w})
    close([a.x for a in some], [a.x for a in every], 1e-10)
    assert (some[0].control - every[0].control).abs().max() > 1e-3


@pytest.mark.parametrize("sampler", [Euler(), Heun(), GDDIM(0.0)], ids=repr)
def test_the_costate_is_the_gradient_of_the_whole_chain(sampler: Sampler) -> None:
    """Untuned, with cost |u|^2 / 2: a stage's target is minus the derivative of the reward in its velocity, over w."""
    base, grid = MODES.model(FLOW), Grid.uniform(4)
    stages = len(grid) * (2 if isinstance(sampler, Heun) else 1)
    policy = open_loop(base, torch.zeros(stages, *X_T.shape, dtype=F64))
    found = torch.stack(targets_from(policy, sampler, grid, Ring(), QuadraticCost(1.0), 4, X_T))
    path = rollout(policy.view(), sampler, grid, X_T)
    (slope,) = torch.autograd.grad(Ring()(path.x0).sum(), policy.parameters())
    weights = torch.stack([s.weight for tr in path for s in tr.stages]).reshape(-1, 1, 1)
    close(found, slope / weights, 1e-12)


def test_the_loss_is_the_mean_square_distance_from_its_targets() -> None:
    base, grid = MODES.model(FLOW), Grid.uniform(4)
    policy = affine_policy(base, grid, seed=1)
    method = ODEAdjointMatching(reward=Ring(), grid=grid, sampler=Heun(), last=3, cost=QuadraticCost(0.7))
    batch = method.collect(policy, requests(5), {}, Turn(0, 0))
    found = sum(chunk.loss for chunk in method.losses(policy, batch, {}))
    gaps = [policy.view()(t.x, t.t) - base(t.x, t.t) - t.control for t in batch.targets]
    close(found, torch.stack(gaps).square().mean(), 1e-12)
    assert len(batch.targets) == 6


def test_power_and_quadratic_costs_agree_at_two() -> None:
    p = torch.tensor([[0.3, -2.0], [0.0, 0.0]], dtype=F64)
    close(PowerCost(1.7, 2.0).control(p), QuadraticCost(1.7).control(p), 1e-14)


def test_gated_solvers_and_foreign_parts_are_refused() -> None:
    with pytest.raises(GirsanovError, match="a gate cannot cut Heun at its window"):
        ODEAdjointMatching(reward=REWARD, sampler=Heun(), last=3, gate=True)
    ODEAdjointMatching(reward=REWARD, sampler=Heun(), gate=True)
    with pytest.raises(GirsanovError, match=r"DPMSolverPP2M is not one: use Euler\(\), Heun\(\) or GDDIM\(eta=0\)"):
        ODEAdjointMatching(reward=REWARD, sampler=DPMSolverPP2M())
    with pytest.raises(
        GirsanovError, match="Gauss-Newton targets are derived for a quadratic running cost, not PowerCost"
    ):
        ODEAdjointMatching(reward=REWARD, target=GaussNewton(), cost=PowerCost())


def test_a_gate_samples_the_reference_outside_the_window() -> None:
    base, grid = LAW.model(FLOW), Grid.uniform(6)
    policy = affine_policy(base, grid, seed=2)
    method = ODEAdjointMatching(reward=REWARD, grid=grid, last=2, gate=True)
    gated, free = method.deploy(policy), policy.view()
    x = starts(4, base)
    for step in grid:
        expected = free if step.i >= 4 else base
        assert torch.equal(gated(x, step.t), expected(x, step.t))


def law() -> None:
    for name in ("euler", "heun-2"):
        test_the_optimum_of_the_discretised_objective_is_its_fixed_point(name, "quadratic")


MUTATIONS = [
    Mutation(targets.FirstOrder, "find", "costate, g, velocities", "_, g, velocities", law),
    Mutation(targets.FirstOrder, "find", "costate, targets = -gradient", "costate, targets = gradient", law),
    Mutation(sweep, "pull", "costate))", "costate * 0.5))", law),
    Mutation(ode.QuadraticCost, "control", "p / self.lam", "p / (2 * self.lam)", law),
]


@mutants(MUTATIONS)
def test_defects_are_noticed(mutation: Mutation, monkeypatch: pytest.MonkeyPatch) -> None:
    check(mutation, monkeypatch)


def test_pairing_with_the_costate_before_the_step_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    """The published index error: targets from ``a_t`` instead of ``a_s``."""
    right = sweep.pull

    def early(sampler, model, tr, costate, cond, carry=True):
        before, _, v = right(sampler, model, tr, costate, cond)
        return before, right(sampler, model, tr, before, cond)[1], v

    law()
    monkeypatch.setattr(targets, "pull", early)
    with pytest.raises(AssertionError):
        law()
