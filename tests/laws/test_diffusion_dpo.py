"""Laws of Diffusion-DPO, of its pairs and of the simulated annotator."""

import dataclasses
import math

import pytest
import torch
from torch import Tensor

from girsanov.errors import GirsanovError
from girsanov.grids import Grid
from girsanov.methods.base import Turn
from girsanov.methods.forward.times import GridTimes
from girsanov.methods.preference import PAIR_WEIGHTS, DiffusionDPO, base, noised, weights
from girsanov.methods.preference.base import ItemBatch
from girsanov.methods.preference.weights import ConstantWeight, TiltWeight
from girsanov.pairs import PairPrompts, Pairs, simulate_pairs
from girsanov.problems import Gaussian, LinearReward, end_law, tilt
from girsanov.problems.limits import GaussianProblem
from girsanov.problems.limits.preference import dpo_shift, shifted_model
from girsanov.processes import VP, Cosine, Process, RectifiedFlow
from girsanov.samplers import Euler, Heun
from girsanov.types import Cond
from tests.laws.correction import descend, gradient, requests, tunable
from tests.laws.mutation import Mutation, check, mutants

F64 = torch.float64
GRID = Grid.uniform(6, start=0.95, end=0.05)
LAW, A = Gaussian(0.8, 1.69), 0.7  # the annotator's reward is A x
METHOD = DiffusionDPO(weight=TiltWeight(beta=1.3, std=1.3), times=GridTimes(), draws=6, grid=GRID)
PROCESSES = [(RectifiedFlow(), "velocity"), (VP(), "eps"), (Cosine(), "v"), (RectifiedFlow(), "x0")]


def pairs(n: int, law: Gaussian = LAW, reward: Tensor | None = None, seed: int = 0) -> Pairs:
    """Exact draws of the law, labelled by Bradley-Terry with temperature 1."""
    g = torch.Generator().manual_seed(seed)
    first, second = law.sample(n, g), law.sample(n, g)
    a = torch.full((law.d,), A, dtype=F64) if reward is None else reward
    wins = torch.rand(n, dtype=F64, generator=g) < torch.sigmoid((first - second) @ a)
    better, worse = (torch.where(w[:, None], first, second) for w in (wins, ~wins))
    return Pairs(Cond({}, torch.zeros(n, dtype=torch.int64)), better, worse, n)


def odds(data: Pairs) -> float:
    """The coefficient of a logistic regression of the labels on ``x_w - x_l``, by Newton: what the data says A is."""
    gap, a = (data.chosen - data.rejected).squeeze(1), 0.0
    for _ in range(50):
        p = torch.sigmoid(-a * gap)
        a += float((p * gap).sum() / (p * (1 - p) * gap.square()).sum())
    return a


def batch_of(method: DiffusionDPO, policy: object, data: Pairs) -> ItemBatch:
    return method.collect(policy, data.batch(0), {}, Turn(0, 0))


# ---- at the reference


@pytest.mark.parametrize(("process", "prediction"), PROCESSES)
@pytest.mark.parametrize("weight", list(PAIR_WEIGHTS))
def test_the_loss_at_the_reference_is_log_2(process: Process, prediction: str, weight: str) -> None:
    policy = tunable(LAW.model(process, prediction), GRID)
    method = dataclasses.replace(METHOD, weight=PAIR_WEIGHTS[weight]())
    chunks = list(method.losses(policy, batch_of(method, policy, pairs(32)), {}))
    assert float(sum(c.loss.detach() for c in chunks)) == pytest.approx(math.log(2), rel=1e-15)
    assert all(float(c.metrics["logit"]) == 0 for c in chunks)


def test_swapping_the_pair_flips_the_logit() -> None:
    policy = tunable(LAW.model(RectifiedFlow()), GRID, scale=0.3)
    data = pairs(32)
    other = dataclasses.replace(data, chosen=data.rejected, rejected=data.chosen)
    logits = [
        [float(c.metrics["logit"]) for c in METHOD.losses(policy, batch_of(METHOD, policy, d), {})]
        for d in (data, other)
    ]
    assert logits[0] == pytest.approx([-x for x in logits[1]], rel=1e-12) and all(abs(x) > 1e-3 for x in logits[0])


def test_beta_scales_the_logit_and_the_published_form_is_met() -> None:
    """``inside = -0.5 beta [(mse_w - mse_l)_theta - (mse_w - mse_l)_ref]``, mse the mean over dimensions."""
    law = Gaussian([0.0, 1.0, -1.0], torch.eye(3))
    policy = tunable(law.model(Cosine(), "eps"), GRID, scale=0.3)
    method = dataclasses.replace(METHOD, weight=ConstantWeight(20.0), draws=1)
    batch = batch_of(method, policy, pairs(16, law))
    (draw,) = batch.draws
    cond = batch.cond

    def mse(view: str, x: Tensor, target: Tensor) -> Tensor:
        return (policy.view(view)(x, draw.t, cond) - target).square().mean(1)

    sides = list(zip(draw.x.unbind(1), draw.target.unbind(1), strict=True))
    theta, old = ([mse(v, *s) for s in sides] for v in ("current", "reference"))
    inside = -0.5 * 20.0 * ((theta[0] - theta[1]) - (old[0] - old[1]))
    (chunk,) = method.losses(policy, batch, {})
    assert float(chunk.loss.detach()) == pytest.approx(
        float(-torch.nn.functional.logsigmoid(inside.detach()).mean()), rel=1e-12
    )
    assert float(chunk.metrics["logit"]) == pytest.approx(float(inside.detach().mean()), rel=1e-9)
    # The noise is shared: what is left of x_w - x_l is alpha times the difference of the images.
    c = policy.model.process(draw.t)
    data = pairs(16, law).batch(0)
    torch.testing.assert_close(draw.x[:, 0] - draw.x[:, 1], c.alpha[:, None] * (data.chosen - data.rejected))
    assert torch.equal(draw.target[:, 0], draw.target[:, 1])


# ---- the optimum


def shift_is_stationary(method: DiffusionDPO, shift: object, process: Process, prediction: str) -> None:
    """The gradient vanishes, to rounding, at the shift of the mean that the labels imply (convex in the shift)."""
    data = pairs(4000)
    a = odds(data)
    policy = tunable(LAW.model(process, prediction), GRID)
    c = process(GRID.ts[:-1])
    moved = [Gaussian(LAW.mean + shift(a, process(t)), LAW.cov).model(process, prediction) for t in GRID.ts[:-1]]
    zero = torch.zeros(1, 1, dtype=F64)
    with torch.no_grad():
        for k, t in enumerate(GRID.ts[:-1]):
            policy.net.c[k] = (moved[k](zero, t) - LAW.model(process, prediction)(zero, t))[0]
    batch = batch_of(method, policy, data)
    at = gradient(policy, method, batch)[: len(GRID)]
    with torch.no_grad():
        policy.net.c.mul_(1.01)
    beside = gradient(policy, method, batch)[: len(GRID)]
    assert len(c.alpha) == len(GRID)
    assert float((at.abs() / beside.abs()).max()) < 1e-6


def constant_optimum() -> None:
    """Constant B (errors of eps): at time t a shift of the mean by ``a / (B k^2 alpha^2)``."""

    def shift(a: float, c: object) -> Tensor:
        k = c.sigma / (c.alpha**2 * 1.69 + c.sigma**2)
        return a / (2.5 * k**2 * c.alpha**2)

    shift_is_stationary(dataclasses.replace(METHOD, weight=ConstantWeight(2.5)), shift, VP(), "eps")


def tilt_optimum() -> None:
    """The tilt weight: the velocity (eps, v, x0) of the law tilted with beta, at every time."""
    for process, prediction in PROCESSES:
        shift_is_stationary(METHOD, lambda a, c: a * 1.69 / 1.3, process, prediction)


def test_the_optimum_of_a_constant_weight_is_a_shift_that_depends_on_time() -> None:
    constant_optimum()


def test_the_optimum_of_the_tilt_weight_is_the_tilted_law() -> None:
    tilt_optimum()
    assert odds(pairs(4000)) == pytest.approx(A, abs=4 * 0.03)  # standard error 0.03 at 4000 pairs


@mutants(
    [
        Mutation(base, "compared", "-0.5 *", "-1.0 *", tilt_optimum),
        Mutation(base, "compared", "half * known", "-half * known", tilt_optimum),
        Mutation(noised.Noised, "look", "self.target.transpose(0, 1)", "self.target", tilt_optimum),
        Mutation(weights.TiltWeight, "__call__", "* det) ** 2", "* det)", tilt_optimum),
        Mutation(weights.ConstantWeight, "__call__", "self.beta / d", "2 * self.beta / d", constant_optimum),
    ]
)
def test_mutations_are_noticed(mutation: Mutation, monkeypatch: pytest.MonkeyPatch) -> None:
    check(mutation, monkeypatch)


def test_training_reaches_the_tilted_law() -> None:
    """2000 exact pairs, 6 times, 150 steps of Adam, seed 0: the shift of the velocity is that of the tilt that the
    labels imply, to 0.5 %."""
    grid = Grid.uniform(6, start=0.95)
    policy, data = tunable(LAW.model(RectifiedFlow()), grid, slope=False), pairs(2000)
    descend(policy, dataclasses.replace(METHOD, grid=grid), data.batch(0), iterations=150, lr=0.1, tail=10)
    tuned, wanted = policy.view("ema"), tilt(LAW, LinearReward(odds(data)), 1.3).model(RectifiedFlow())
    zero = torch.zeros(1, 1, dtype=F64)
    for t in grid.ts[:-1]:
        torch.testing.assert_close(tuned(zero, t), wanted(zero, t), rtol=0.005, atol=0.005)


@pytest.mark.parametrize("t", [0.2, 0.5, 0.8])
def test_what_independent_noise_loses(t: float) -> None:
    """The slope on the noisy difference is ``A sigma^2 / (sigma^2 + alpha^2 s^2)``: 200,000 pairs, z below 4.5."""
    a, s2, n, g = 0.15, 1.69, 200_000, torch.Generator().manual_seed(0)
    c = RectifiedFlow()(t)
    gap = math.sqrt(2 * s2) * torch.randn(n, dtype=F64, generator=g)
    wins = torch.rand(n, dtype=F64, generator=g) < torch.sigmoid(a * gap)
    blur = float(c.alpha * s2 / c.sigma) * math.sqrt(2) * torch.randn(n, dtype=F64, generator=g)
    seen = torch.where(wins, gap, -gap) + blur  # winner minus loser; the blur is symmetric
    zero = torch.zeros(n, 1, dtype=F64)
    slope = odds(Pairs(Cond({}, torch.zeros(n, dtype=torch.int64)), seen.unsqueeze(1), zero, n))
    share = float(c.sigma**2 / (c.sigma**2 + c.alpha**2 * s2))
    error = 2 / float(seen.square().sum()) ** 0.5
    assert abs(slope - a * share) < 4.5 * error + 0.01 * a  # 1 % for the terms of third order in A


@pytest.mark.parametrize(("process", "prediction"), PROCESSES[:3])
def test_independent_noise_reaches_two_thirds_of_the_tilt(process: Process, prediction: str) -> None:
    """Whatever the process and the spread of the data: each time's shift times ``sigma^2 / (sigma^2 + alpha^2 s^2)``,
    sampled by 100 steps of Heun's solver, moves the law by 2/3; with shared noise by all of it. The spread stays."""
    grid = Grid.uniform(100)
    for s2 in (0.25, 1.69):
        law = Gaussian(0.8, s2)
        problem = GaussianProblem(law, LinearReward(A), process, prediction, Heun(), grid)
        shift = dpo_shift(problem, TiltWeight(beta=1.3, std=s2**0.5, cap=1e12))

        def share(t: Tensor, s2: float = s2) -> Tensor:
            c = process(t)
            return c.sigma**2 / (c.sigma**2 + c.alpha**2 * s2)

        for lost, wanted in ((False, 1.0), (True, 2 / 3)):

            def moved(t: Tensor, shift: object = shift, lost: bool = lost, share: object = share) -> Tensor:
                inside = t.clamp(1e-4, 1 - 1e-4)
                return shift(inside) * (share(inside) if lost else 1.0)

            ends = [end_law(m, Heun(), grid) for m in (problem.model, shifted_model(problem.model, moved))]
            reached = float(ends[1].mean - ends[0].mean) / (A * s2 / 1.3)
            assert reached == pytest.approx(wanted, abs=0.01)
            torch.testing.assert_close(ends[1].cov, ends[0].cov)


# ---- gradients


def test_the_gradient_is_that_of_the_written_out_loss_and_micro_batches_add_up() -> None:
    policy = tunable(LAW.model(Cosine(), "v"), GRID, scale=0.2)
    batch = batch_of(METHOD, policy, pairs(24))
    whole = gradient(policy, METHOD, batch)
    assert torch.equal(whole, gradient(policy, METHOD, batch))
    total = torch.zeros((), dtype=F64)
    for draw in batch.draws:
        errors = {}
        for view in ("current", "reference"):
            model = policy.view(view)
            good, bad = ((model(draw.x[:, k], draw.t) - draw.target[:, k]).square().sum(1) for k in (0, 1))
            errors[view] = good - bad
        logit = -0.5 * draw.weight * (errors["current"] - errors["reference"])
        total = total + torch.log1p(torch.exp(-logit)).mean() / len(batch.draws)
    grads = torch.autograd.grad(total, policy.parameters())
    torch.testing.assert_close(whole, torch.cat([g.flatten() for g in grads]), rtol=1e-9, atol=1e-12)
    parts = sum(gradient(policy, METHOD, batch.take(r)) * len(r) / 24 for r in torch.arange(24).split(7))
    torch.testing.assert_close(parts, whole, rtol=1e-10, atol=1e-13)


# ---- pairs and the annotator


def test_pairs_are_served_in_epochs_that_any_number_of_processes_share() -> None:
    data = dataclasses.replace(pairs(10), batch_size=4)
    seen = torch.cat([data.batch(i).group for i in range(5)])
    assert sorted(seen[:8].tolist() + seen[8:10].tolist()) == list(range(10))
    one = data.batch(3)
    two = [data.batch(3, rank, 2) for rank in (0, 1)]
    assert torch.equal(torch.cat([p.chosen for p in two]), one.chosen)
    assert torch.equal(torch.cat([p.ids for p in two]), one.ids)
    assert isinstance(one.take(torch.tensor([2, 0])), PairPrompts)
    assert torch.equal(one.take(torch.tensor([2, 0])).rejected, one.rejected[[2, 0]])
    assert torch.equal(one.to("cpu").chosen, data.chosen[one.group])


def test_the_annotator_is_bradley_and_terrys() -> None:
    """20,000 pairs, seed 5: the regression finds ``A / T``, z below 4.5; T = 0 never errs."""
    model, reward = LAW.model(RectifiedFlow()), LinearReward(A)
    for temperature in (1.0, 2.0):
        data = simulate_pairs(
            model, Heun(), Grid.uniform(6), reward, requests(20_000), bt_temperature=temperature, seed=5, dtype=F64
        )
        gap = (data.chosen - data.rejected).squeeze(1)
        p = torch.sigmoid(A / temperature * gap)
        error = float((p * (1 - p) * gap.square()).sum()) ** -0.5
        assert abs(odds(data) - A / temperature) < 4.5 * error
        images = torch.cat([data.chosen, data.rejected])
        law = end_law(model, Heun(), Grid.uniform(6))
        assert float(images.mean()) == pytest.approx(float(law.mean), abs=4.5 * float(law.cov.sqrt()) / 200)
    strict = simulate_pairs(model, Euler(), Grid.uniform(4), reward, requests(50), bt_temperature=0.0, dtype=F64)
    assert bool((strict.chosen > strict.rejected).all())
    again = simulate_pairs(model, Euler(), Grid.uniform(4), reward, requests(50), bt_temperature=0.0, dtype=F64)
    assert torch.equal(strict.chosen, again.chosen)


# ---- errors


@pytest.mark.parametrize(
    ("make", "sentence"),
    [
        (
            lambda: METHOD.collect(tunable(LAW.model(RectifiedFlow()), GRID), requests(4), {}, Turn(0, 0)),
            "DiffusionDPO learns from pairs: give a Pairs source, for example simulate_pairs(...)",
        ),
        (
            lambda: Pairs(Cond({}, torch.zeros(2, dtype=torch.int64)), torch.zeros(2, 1), torch.zeros(3, 1)),
            "pairs need as many conditions, chosen and rejected samples of one shape, not 2, [2, 1] and [3, 1]",
        ),
        (
            lambda: Pairs(Cond({}, torch.zeros(2, dtype=torch.int64)), torch.tensor([[0.0], [1.0]]), torch.ones(2, 1)),
            "chosen equals rejected in 1 pairs (row 1 first): leave them out",
        ),
        (
            lambda: simulate_pairs(
                LAW.model(RectifiedFlow()), Euler(), GRID, LinearReward(1.0), requests(2), bt_temperature=-1.0
            ),
            "an annotator's temperature must be at least 0, not -1.0",
        ),
        (lambda: ConstantWeight(0.0), "beta of a preference loss must be positive, not 0.0"),
        (lambda: TiltWeight(std=0.0), "beta, std and cap must be positive, not 1.0, 0.0 and 1000000.0"),
    ],
)
def test_errors_say_what_to_do(make: object, sentence: str) -> None:
    with pytest.raises(GirsanovError) as error:
        make()
    assert str(error.value) == sentence


@pytest.mark.parametrize("prediction", ["velocity", "v", "x0"])
def test_the_tilt_weight_is_finite_at_pure_noise(prediction: str) -> None:
    """At t = 1 alpha cancels: B = beta / (k s det)^2 with k = 1, and det = 1 (velocity), sigma^2 (v), -sigma (x0)."""
    b = TiltWeight(beta=1.3, std=0.7)(RectifiedFlow()(1.0), prediction, 4)
    torch.testing.assert_close(b, torch.tensor(1.3 / 0.7**2, dtype=torch.float64))
