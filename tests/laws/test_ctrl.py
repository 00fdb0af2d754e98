"""Score as action as a method: its fixed points with the policy's own value, its updates, returns and diagnosis.

The value here is the exact one of the current affine policy (``Exact``), computed by the backward recursion of its
chain, so that nothing is left to training; learned values are tested in ``test_bench.py``.
"""

import dataclasses
from collections.abc import Sequence

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from girsanov.errors import GirsanovError
from girsanov.grids import Grid
from girsanov.methods import METHODS
from girsanov.methods.base import Method, Turn
from girsanov.methods.continuous import (
    CTRL,
    CTRLFewStep,
    CTRLRatio,
    EnergyPrice,
    FewStepForm,
    GradientForm,
    Increments,
    LambdaReturn,
    PathKLPrice,
    RatioForm,
    SquareRootKL,
    Standardised,
    TerminalReward,
)
from girsanov.methods.continuous import martingale as martingale_file
from girsanov.methods.continuous.batch import Part, ValuedPaths
from girsanov.methods.continuous.martingale import martingale_test
from girsanov.methods.continuous.trust import LinearKL
from girsanov.nets.skip import CosineSkip, FullSkip, NoSkip, TemperedSkip
from girsanov.nets.value import DenoisedReward, ScalarMLPConfig, Value, ValueDesign
from girsanov.policy import Policy
from girsanov.problems import Gaussian, LinearReward, QuadraticReward, affine_kernels, end_law
from girsanov.problems.limits.continuous import continuous_aim, continuous_limit
from girsanov.problems.limits.problem import GaussianProblem
from girsanov.problems.moments import AffineKernel
from girsanov.processes import Process
from girsanov.rewards import FunctionReward
from girsanov.samplers import GDDIM, Euler, Heun, MemorylessFlow
from girsanov.surrogates import ScoreFunction
from girsanov.train import iterate
from girsanov.types import Cond, Kernel, Transition
from tests.laws.mutation import Mutation, check, mutants
from tests.laws.tuning import Affine, ExactTurn, SigmaPoints, affine_policy, close, lift, requests
from tests.tiny import tiny_run

F64, BETA = torch.float64, 0.7
PLANE = Gaussian([0.8, -0.3], [[1.2, 0.4], [0.4, 0.6]])
BENT = QuadraticReward([[1.5, 0.3], [0.3, 0.4]], [0.6, -0.5])
PROBLEM = GaussianProblem(PLANE, BENT)
GRID = Grid.uniform(4)


# ---- the exact value of an affine policy


class Quadratic(Value):
    """``q_k x - x^T Q_k x / 2`` at every time of a grid; the constants do not matter to what is tested."""

    def __init__(self, process: Process) -> None:
        super().__init__(nn.Identity(), NoSkip(), process)
        self.weight = nn.Parameter(torch.zeros(()))
        self.table: dict[float, tuple[Tensor, Tensor]] = {}

    def forward(self, x: Tensor, t: Tensor, cond: Cond | None = None, reward: Tensor | None = None) -> Tensor:
        Q, q = self.table[round(float(t), 9)]
        return x @ q - 0.5 * torch.einsum("bi,ij,bj->b", x, Q, x) + 0 * self.weight

    def learn(
        self,
        tuned: Sequence[AffineKernel],
        base: Sequence[AffineKernel],
        grid: Grid,
        stiff: Sequence[float],
        priced: bool,
    ) -> None:
        """The backward recursion: expectation under the tuned chain, less the price of its shifts."""
        Q, q = BENT.A, BENT.b
        self.table = {round(float(grid.ts[-1]), 9): (Q, q)}
        for k in reversed(range(len(grid))):
            F, c = tuned[k].F, tuned[k].c
            Q, q = F.mT @ Q @ F, F.mT @ (q - Q @ c)
            if priced:
                D, e = F - base[k].F, c - base[k].c
                Q, q = Q + stiff[k] * D.mT @ D, q - stiff[k] * D.mT @ e
            self.table[round(float(grid.ts[k]), 9)] = (Q, q)


@dataclasses.dataclass(frozen=True)
class Exact(ValueDesign):
    """Builds ``Quadratic``."""

    skip: NoSkip = NoSkip()

    def build(self, shape: tuple[int, ...], process: Process) -> Value:
        return Quadratic(process)


def stiffnesses(method: CTRL, base: Sequence[AffineKernel]) -> list[float]:
    found = []
    for step, kernel in zip(method.grid, base, strict=True):
        std = torch.tensor(kernel.std, dtype=F64)
        made = Kernel(torch.zeros(1, 2, dtype=F64), std, kernel.std > 0, torch.tensor(kernel.gain, dtype=F64))
        assert method.price is not None
        found.append(method.price.stiffness(made, step) if method.price.acts(made.stochastic) else 0.0)
    return found


def refreshed(method: CTRL, policy: Policy, priced: bool) -> None:
    """Puts the value of the policy as it stands into the method."""
    tuned, base = (affine_kernels(policy.view(n), method.sampler, method.grid) for n in ("current", "reference"))
    value = method.modules()["value"]
    assert isinstance(value, Quadratic)
    value.learn(tuned, base, method.grid, stiffnesses(method, base), priced)


class Apart(ExactTurn):
    """Sigma points whose first draw is the start and whose others are the noise of the steps."""

    def noise(self, ids: Tensor, stream: int = 0) -> SigmaPoints:  # type: ignore[override]
        points = SigmaPoints(self.d, self.draws)
        if stream:
            next(points.draws)
        return points


def population(method: CTRL, iterations: int = 16, damping: float = 0.75) -> Policy:
    """Policy iteration with exact values and exact regressions (sigma points).

    The target is taken at the states of the policy as it was, so undamped it is an explicit iteration of an implicit
    equation, which needs ``std^2 |curvature of V| < beta`` at every step.
    """
    policy = affine_policy(PROBLEM.model, method.grid)
    turn, net = Apart(0, 0, d=2, draws=len(method.grid) + 1), policy.net
    state = method.setup(policy)
    assert isinstance(net, Affine)
    for _ in range(iterations):
        refreshed(method, policy, isinstance(method.target, LambdaReturn))
        batch = method.collect(policy, requests(turn.samples), state, turn)
        assert isinstance(batch, ValuedPaths)
        with torch.no_grad():
            for part in batch.parts:
                gain = float(method.kernel(policy, part).gain or 1.0)
                found = torch.linalg.lstsq(lift(part.tr.x_t), part.signal / gain).solution.T
                weight = net.weight[net.at(part.tr.step.t)]
                weight.add_(found - weight, alpha=damping)
    return policy


CASES: dict[str, CTRL] = {
    "kl": CTRL(reward=BENT, grid=GRID, value=Exact(), price=PathKLPrice(BETA)),
    "kl-flow": CTRL(reward=BENT, grid=GRID, value=Exact(), price=PathKLPrice(BETA), sampler=MemorylessFlow()),
    "terminal": CTRL(reward=BENT, grid=GRID, value=Exact(), price=PathKLPrice(BETA), target=TerminalReward()),
    "energy": CTRL(reward=BENT, grid=GRID, value=Exact(), price=EnergyPrice(0.9), sampler=Euler()),
    "energy-ddim": CTRL(reward=BENT, grid=GRID, value=Exact(), price=EnergyPrice(0.9), sampler=GDDIM(0.0)),
}


def check_fixed_point(name: str) -> None:
    """End law of the population iteration against ``limit``: 1e-6."""
    method = CASES[name]
    wanted = continuous_limit(method, PROBLEM)
    assert wanted is not None
    try:
        policy = population(method, 40, 0.4) if name == "kl-flow" else population(method)
        found = end_law(policy.view(), method.sampler, method.grid)
    except GirsanovError:
        raise AssertionError("policy iteration diverges") from None
    close([found.mean, found.cov], [wanted.law.mean, wanted.law.cov], 1e-6)


@pytest.mark.parametrize("name", CASES)
def test_the_gradient_form_converges_to_its_limit(name: str) -> None:
    check_fixed_point(name)


def test_limits_and_aims() -> None:
    """The limit tends to the aim with order 1; compositions without a fixed point have none."""
    for name in ("kl", "energy"):
        errors, target = [], continuous_aim(CASES[name], PROBLEM)
        assert target is not None
        for n in (40, 80):
            law = continuous_limit(dataclasses.replace(CASES[name], grid=Grid.uniform(n)), PROBLEM).law
            errors.append(float((law.mean - target.mean).norm() + (law.cov - target.cov).norm()))
        assert 0.75 < np.log2(errors[0] / errors[1]) < 1.25
    step, path = (continuous_limit(CASES[n], PROBLEM).law for n in ("terminal", "kl"))
    assert float((step.mean - path.mean).norm()) > 1e-3 and continuous_aim(CASES["terminal"], PROBLEM) is None
    ratio = CTRL(reward=BENT, grid=GRID, price=PathKLPrice(BETA), update=RatioForm(ScoreFunction(), Increments()))
    torch.testing.assert_close(continuous_limit(ratio, PROBLEM).law.mean, path.mean)
    for method in (CTRLRatio(reward=BENT), CTRLFewStep(reward=BENT), dataclasses.replace(ratio, update=RatioForm())):
        assert continuous_limit(method, PROBLEM) is None


# ---- updates


def one_step(policy: Policy, method: CTRL, x: Tensor, noise: Tensor) -> tuple[Transition, Kernel]:
    """A step from states x with given noise, and its kernel with a graph."""
    step = method.grid[2]
    kernel = method.sampler.kernel(policy.view(), x, step, None)[0]
    mean = kernel.mean.detach()
    drawn = mean + float(kernel.std) * noise
    return Transition(x, drawn, step, mean, kernel.std, True, cond=None), kernel


def check_ratio() -> None:
    """``E`` of the ratio form's gradient over the step's noise is that of ``-E V(x_s) + price``: 40-node quadrature.

    Log-ratios are sums; with the mean over dimensions everything is divided by d.
    """
    nodes, weights = (torch.from_numpy(v) for v in np.polynomial.hermite_e.hermegauss(20))
    z = torch.cartesian_prod(nodes, nodes)
    w = torch.cartesian_prod(weights, weights).prod(1)
    w = w / w.sum()
    policy = affine_policy(PROBLEM.model, GRID, seed=3)
    x = torch.tensor([[0.4, -0.9]], dtype=F64).expand(len(z), 2)
    for surrogate, d in ((ScoreFunction("sum"), 1), (ScoreFunction("mean"), 2)):
        method = CTRL(reward=BENT, grid=GRID, price=PathKLPrice(BETA), update=RatioForm(surrogate, Increments()))
        tr, kernel = one_step(policy, method, x, z)
        reference = method.sampler.kernel(policy.view("reference"), x, tr.step, None)[0].mean.detach()
        value = BENT(tr.x_s)
        part = Part(tr, value, reference)
        loss, _ = method.update.loss(kernel, part, method.price)
        found = torch.autograd.grad((w * loss).sum(), policy.parameters())
        kernel = method.sampler.kernel(policy.view(), x, tr.step, None)[0]
        mean, std = kernel.mean, float(kernel.std)
        paid = BETA * (mean - reference).square().sum(1) / (2 * std**2)
        wanted = torch.autograd.grad((w * (paid - BENT(mean + std * z))).sum() / d, policy.parameters())
        close(found, wanted, 1e-9)


def test_the_ratio_form_is_the_policy_gradient_of_reward_less_price() -> None:
    check_ratio()


def check_gradient_form() -> None:
    """Its loss is ``2 / (beta d)`` times ``c |m|^2 / 2 - <m, G>`` up to a constant: same gradient."""
    policy, method = affine_policy(PROBLEM.model, GRID, seed=4), CASES["kl"]
    g = torch.Generator().manual_seed(5)
    x, z, G = (torch.randn(7, 2, dtype=F64, generator=g) for _ in range(3))
    tr, kernel = one_step(policy, method, x, z)
    reference = method.sampler.kernel(policy.view("reference"), x, tr.step, None)[0].mean.detach()
    c = BETA / float(kernel.std) ** 2
    loss, _ = method.update.loss(kernel, Part(tr, G / c, reference), method.price)
    found = torch.autograd.grad(loss.sum(), policy.parameters())
    shift = method.sampler.kernel(policy.view(), x, tr.step, None)[0].mean - reference
    objective = 0.5 * c * shift.square().sum(1) - (shift * G).sum(1)
    wanted = torch.autograd.grad(2 / (BETA * 2) * objective.sum(), policy.parameters())
    close(found, wanted, 1e-10)


def test_the_gradient_form_is_the_closed_form_advantage_climbed() -> None:
    check_gradient_form()


def test_the_few_step_form_is_the_clipped_displacement() -> None:
    """Value and gradient against the formula, with each of the three ranges biting; no gradient where it bites."""
    policy, method = affine_policy(PROBLEM.model, GRID, seed=6), CTRLFewStep(reward=BENT, grid=GRID)
    g = torch.Generator().manual_seed(7)
    x, z, G = (torch.randn(9, 2, dtype=F64, generator=g) for _ in range(3))
    tr, _ = one_step(policy, method, x, z)
    for form in (FewStepForm(), FewStepForm(0.3, 0.2), FewStepForm(10.0, 100.0, bound=0.5)):
        kernel = method.sampler.kernel(policy.view(), x, tr.step, None)[0]
        loss, _ = form.loss(kernel, Part(tr, G), None)
        found = torch.autograd.grad(loss.sum(), policy.parameters())
        after = method.sampler.kernel(policy.view(), x, tr.step, None)[0].mean + float(tr.std) * z
        after = after if form.bound is None else after.clamp(-form.bound, form.bound)
        product = (G * (after - x).clamp(-form.displacement, form.displacement)).sum(1)
        wanted = -product.clamp(-form.limit, form.limit)
        close(loss, wanted, 1e-12)
        close(found, torch.autograd.grad(wanted.sum(), policy.parameters()), 1e-12)


def test_standardised_advantages_lose_the_weight_of_a_step() -> None:
    """Increments that differ tenfold: ten times apart as they are, alike once standardised, and clipped at 5."""
    g, turn = torch.Generator().manual_seed(8), Turn(0, 0)
    big = torch.randn(400, dtype=F64, generator=g)
    big[0] = 80.0
    plain = [Increments()(v, turn) for v in (big, 0.1 * big)]
    alike = [Standardised()(v, turn) for v in (big, 0.1 * big + 3)]
    torch.testing.assert_close(plain[1], 0.1 * plain[0])
    torch.testing.assert_close(alike[0], alike[1], rtol=1e-6, atol=1e-7)
    assert float(alike[0].max()) == 5.0
    with_gap = torch.cat([big, torch.tensor([float("nan")], dtype=F64)])
    torch.testing.assert_close(Standardised()(with_gap, turn)[:-1], alike[0])


# ---- returns and the martingale test


def check_returns() -> None:
    """TD(lambda) against its sum: ``sum_j lam^j (running + (1 - lam) V)``; lam = 1 Monte Carlo, 0 one step."""
    g = torch.Generator().manual_seed(9)
    values, running = torch.randn(3, 5, dtype=F64, generator=g), torch.randn(3, 4, dtype=F64, generator=g)
    for lam in (0.0, 0.6, 1.0):
        found = LambdaReturn(lam)(values, running)
        for k in range(4):
            n_step = [running[:, k : j + 1].sum(1) + values[:, j + 1] for j in range(k, 4)]
            weights = [(1 - lam) * lam ** (j - k) for j in range(k, 3)] + [lam ** (3 - k)]
            wanted = sum(w * r for w, r in zip(weights, n_step, strict=True))
            torch.testing.assert_close(found[:, k], wanted, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(TerminalReward()(values, running), values[:, -1:].expand(3, 4))


def test_returns() -> None:
    check_returns()


def chain_values(n: int, wrong: float, seed: int) -> tuple[Tensor, Tensor]:
    """A random walk, running reward -.1 x^2, pay-off -x^2 / 2: its exact value with its curvature ``wrong`` off."""
    g, K, std = torch.Generator().manual_seed(seed), 8, 0.5
    P, c, table = -1.0, 0.0, [(-1.0, 0.0)]
    for _ in range(K):
        P, c = P - 0.2, c + 0.5 * P * std**2
        table.insert(0, (P, c))
    x, values, running = torch.randn(n, dtype=F64, generator=g), [], []
    for k in range(K + 1):
        P, c = table[k]
        values.append(0.5 * (P + (wrong if k < K else 0.0)) * x**2 + c)
        if k < K:
            running.append(-0.1 * x**2)
            x = x + std * torch.randn(n, dtype=F64, generator=g)
    return torch.stack(values, 1), torch.stack(running, 1)


def check_martingale() -> None:
    """20 batches of 4000 paths, seeds 0 to 19: the exact value has a mean z within 4 / sqrt(20) and |z| < 5; one with a
    curvature 0.3 off is noticed every time (z > 10), and its drift is larger than five times the exact one's.
    """
    exact = [martingale_test(*chain_values(4000, 0.0, seed)) for seed in range(20)]
    wrong = [martingale_test(*chain_values(4000, 0.3, seed)) for seed in range(20)]
    z = [r["martingale_z"] for r in exact]
    assert abs(np.mean(z)) < 4 / 20**0.5 and max(map(abs, z)) < 5
    assert min(r["martingale_z"] for r in wrong) > 10
    drift = [np.mean([r["martingale_drift"] for r in rows]) for rows in (exact, wrong)]
    assert drift[1] > 5 * drift[0]


def test_the_martingale_test_knows_a_value() -> None:
    check_martingale()


def test_the_martingale_test_of_almost_nothing() -> None:
    flat = {"martingale_z": 0.0, "martingale_drift": 0.0}
    assert martingale_test(torch.ones(2, 4), torch.zeros(2, 3)) == flat
    assert martingale_test(torch.ones(9, 4), torch.zeros(9, 3)) == flat


# ---- the method


def small(**options: object) -> CTRL:
    return CTRL(**{"reward": LinearReward([1.0, 0.5]), "grid": Grid.uniform(4), **options})


def weights(run: object) -> tuple[Tensor, Tensor]:
    policy = torch.cat([p.detach().flatten() for p in run.policy.parameters()])
    value = torch.cat([p.detach().flatten() for p in run.method.modules()["value"].parameters()])
    return policy.clone(), value.clone()


def test_pretraining_moves_the_value_alone_and_then_the_policy_too() -> None:
    run = tiny_run(small(pretrain=2), iterations=4, warmup=0, lr=1e-2)
    before = weights(run)
    for i in range(3):
        iterate(run)
        run.done += 1
        now = weights(run)
        assert not torch.equal(now[1], before[1])
        assert torch.equal(now[0], before[0]) == (i < 2)


def test_a_new_run_has_a_new_value_of_the_policys_dtype() -> None:
    method = small()
    tiny_run(method)
    first = method.modules()["value"]
    tiny_run(method)
    assert method.modules()["value"] is not first
    assert {p.dtype for p in first.parameters()} == {F64}
    assert first.loc.dtype == F64


@pytest.mark.parametrize("update", [GradientForm(), RatioForm()], ids=["gradient", "ratio"])
def test_the_trust_region_holds_several_updates_back(update: object) -> None:
    """Four updates a batch: a heavy penalty moves the policy less than none, and falls where it may move more."""
    moved, states = [], []
    for trust in (None, SquareRootKL(delta=5.0, weight=200.0), LinearKL(delta=5.0, weight=200.0)):
        run = tiny_run(
            small(update=update, trust=trust), iterations=2, warmup=0, lr=1e-2, epochs=4, schedule="constant"
        )
        before = weights(run)[0]
        for _ in range(2):
            metrics = iterate(run)
            run.done += 1
        moved.append(float((weights(run)[0] - before).norm()))
        states.append(run.state)
    assert moved[1] < 0.8 * moved[0] and moved[2] < moved[0]
    assert states[1]["trust_weight"] < 200.0 and 0 < states[1]["trust_distance"] < 5 and metrics["trust_kl"] >= 0


@pytest.mark.parametrize("update", [GradientForm(), RatioForm()], ids=["gradient", "ratio"])
def test_micro_batches_do_not_change_the_trusted_gradient(update: object) -> None:
    ends = []
    for micro in (None, 3):
        options = {"iterations": 2, "epochs": 2, "warmup": 0, "lr": 1e-2, "micro_batch": micro}
        run = tiny_run(small(update=update, trust=SquareRootKL(delta=0.1, weight=5.0)), **options)
        for _ in range(2):
            iterate(run)
            run.done += 1
        ends.append(torch.cat(weights(run)))
    torch.testing.assert_close(ends[0], ends[1], rtol=1e-7, atol=1e-9)


def test_a_reward_without_gradient_is_carried_by_the_network() -> None:
    """With ``skip=none`` the gradient form learns from a black box: its reward rises; with a skip it is refused."""
    blind = FunctionReward(lambda x, prompts: [float(v) for v in x[:, 0]], differentiable=False, name="blind")
    with pytest.raises(GirsanovError, match="'blind' has none: use value.skip=none"):
        small(reward=blind)
    value = DenoisedReward(skip=NoSkip(), net=ScalarMLPConfig(width=32, blocks=1, embed=8))
    method = small(reward=blind, value=value, price=PathKLPrice(0.3), pretrain=20)
    run = tiny_run(method, batch=128, iterations=45, warmup=0, lr=1e-2, module_lr=1e-2, schedule="constant")
    rewards = []
    for _ in range(45):
        rewards.append(iterate(run)["reward"])
        run.done += 1
    assert np.mean(rewards[-5:]) > np.mean(rewards[:20]) + 0.3
    CTRLRatio(reward=blind)  # needs no gradient


class Wide(nn.Module):
    """A network that forgets to squeeze."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(2, 1)

    def forward(self, x: Tensor, t: Tensor, cond: object = None) -> Tensor:
        return self.layer(x)


@dataclasses.dataclass(frozen=True)
class WideDesign(ValueDesign):
    """Builds it."""

    skip: FullSkip = FullSkip()

    def build(self, shape: tuple[int, ...], process: Process) -> Value:
        return Value(Wide(), self.skip, process)


@pytest.mark.parametrize(
    ("make", "sentence"),
    [
        (lambda: small(sampler=Heun()), "needs a sampler of one stage and one step and Heun is not one"),
        (lambda: small(sampler=Euler()), "path KL of Euler is infinite: use price={kind: energy}"),
        (lambda: small(sampler=Euler(), price=None, update=RatioForm()), "need a density, Euler draws no noise"),
        (lambda: small(sampler=Euler(), price=EnergyPrice(), trust=SquareRootKL()), "need a density, Euler"),
        (lambda: small(price=None), "divides the value's gradient by a price"),
        (lambda: small(pretrain=-1), "pretrain = -1 must be at least 0"),
        (lambda: LambdaReturn(1.5), r"lies in \[0, 1\], not 1.5"),
        (lambda: Standardised(0.0), "clipped to a positive range"),
        (lambda: FewStepForm(displacement=0.0), "displacement of the few-step form is a range and must be positive"),
        (lambda: iterate(tiny_run(small(value=WideDesign()))), r"returned \[8, 1\] for 8 samples: it must return one"),
        (lambda: iterate(tiny_run(small(grid=Grid.uniform(1)))), "no step of the grid can be trained"),
    ],
)
def test_bad_input_is_one_sentence(make: object, sentence: str) -> None:
    with pytest.raises(GirsanovError, match=sentence) as error:
        make()
    assert "\n" not in str(error.value)


def test_the_published_names_are_points_of_the_composition() -> None:
    """A named method is the composition with its parts; on the same requests it differs from its nearest neighbour."""
    reward, grid = LinearReward([1.0, 0.5]), Grid.uniform(4)
    named: dict[str, Method] = {
        n: METHODS[n](reward=reward, grid=grid) for n in ("ctrl", "ctrl-ratio", "ctrl-few-step")
    }
    spelled = {
        "ctrl": small(value=DenoisedReward(TemperedSkip()), target=LambdaReturn(0.95), price=PathKLPrice(1.0)),
        "ctrl-ratio": small(
            value=DenoisedReward(CosineSkip()), target=TerminalReward(), price=None, update=RatioForm()
        ),
        "ctrl-few-step": small(target=LambdaReturn(0.0), price=None, update=FewStepForm()),
    }
    ends = {}
    for name, method in named.items():
        pair = []
        for one in (method, spelled[name]):
            run = tiny_run(one, iterations=2, warmup=0)
            for _ in range(2):
                iterate(run)
                run.done += 1
            pair.append(weights(run)[0])
        assert torch.equal(*pair), name
        ends[name] = pair[0]
    assert not torch.equal(ends["ctrl"], ends["ctrl-ratio"]) and not torch.equal(ends["ctrl"], ends["ctrl-few-step"])


# ---- committed defects

DEFECTS = [
    Mutation(GradientForm, "signal", "/ price", "* -1 / price", lambda: check_fixed_point("kl")),
    Mutation(GradientForm, "signal", "after.gradient /", "0.5 * after.gradient /", lambda: check_fixed_point("kl")),
    Mutation(GradientForm, "loss", "kernel.mean - part.reference", "part.reference - kernel.mean", check_gradient_form),
    Mutation(GradientForm, "loss", "(price.weight *", "(2 * price.weight *", check_gradient_form),
    Mutation(RatioForm, "loss", "loss + paid", "loss - paid", check_ratio),
    Mutation(RatioForm, "loss", ' if reduce == "mean" else 1', "", check_ratio),
    Mutation(
        EnergyPrice, "stiffness", "self.lam * abs(float(step.h))", "self.lam", lambda: check_fixed_point("energy")
    ),
    Mutation(LambdaReturn, "__call__", "(1 - self.lam) *", "", check_returns),
    Mutation(LambdaReturn, "__call__", "values[:, k + 1]", "values[:, k]", check_returns),
    Mutation(martingale_file, "martingale_test", "v.diff(dim=1) + c", "v.diff(dim=1) - c", check_martingale),
    Mutation(martingale_file, "martingale_test", "(2 * m) ** 0.5", "m**0.5 + 100", check_martingale),
]


@mutants(DEFECTS)
def test_a_defect_is_noticed(mutation: Mutation, monkeypatch: pytest.MonkeyPatch) -> None:
    check(mutation, monkeypatch)
