"""Laws of one step: every sampler's formula, against its paper's and against what every kernel owes its users."""

import inspect
import math

import pytest
import torch

from girsanov.errors import GirsanovError
from girsanov.grids import Grid, default_grid
from girsanov.models import velocity
from girsanov.noise import Noise
from girsanov.predictions import Prediction
from girsanov.processes import Process, RectifiedFlow
from girsanov.rollout import rollout
from girsanov.samplers import (
    CPS,
    GDDIM,
    PRECISE,
    SAMPLERS,
    DanceSDE,
    DPMSolverPP2M,
    Euler,
    EulerMaruyama,
    FlowSDE,
    Heun,
    MemorylessFlow,
    Mixed,
    Sampler,
)
from girsanov.samplers.dpm_solver import History
from tests.laws.cases import (
    DIALS,
    EVERY_PROCESS,
    EVERY_SAMPLER,
    F64,
    KINDS,
    PLANE,
    PRESERVING,
    SOLID,
    known,
    make_process,
    normal,
    pairs,
    step,
)

FLOW = RectifiedFlow()
X0, EPS = normal(4, 3, seed=1), normal(4, 3, seed=2)
NO_SIGNAL = ("rectified-flow", "cosine")  # alpha = 0 at t = 1
STEPS = [(1.0, 0.9), (0.7, 0.55), (0.31, 0.04), (0.1, 0.0)]


def at(process: Process, t: float) -> torch.Tensor:
    """The state that x_0 and eps make at t."""
    c = process(t)
    return c.alpha * X0 + c.sigma * EPS


def test_every_listed_sampler_is_tested() -> None:
    assert set(DIALS) == set(SAMPLERS)
    for name, members in DIALS.items():
        assert members and all(type(m) is SAMPLERS[name] for m in members)
        assert SAMPLERS[name]() in members or name == "euler", "the default must be among the tested values"


# ---------------------------------------------------------------- T1: gDDIM is DDIM and DDPM


def check_ddpm() -> None:
    """T1: gDDIM(1) is DDPM's ancestral step and gDDIM(0) is DDIM, to 1e-12, for long and short steps."""
    for name in ("vp", "vp-table"):
        process = EVERY_PROCESS[name]
        for t, s in ((0.9, 0.8), (0.5, 0.1), (0.013, 0.007)):
            x, st = at(process, t), step(t, s)
            abar_t, abar_s = process(t).alpha ** 2, process(s).alpha ** 2
            one = abar_t / abar_s
            kernel = GDDIM(1.0).kernel(known(X0, EPS, process, "eps"), x, st)[0]
            mean = abar_s.sqrt() * (1 - one) / (1 - abar_t) * X0 + one.sqrt() * (1 - abar_s) / (1 - abar_t) * x
            variance = (1 - abar_s) / (1 - abar_t) * (1 - one)
            assert torch.allclose(kernel.mean, mean, rtol=0, atol=1e-12)
            assert torch.allclose(kernel.std**2, variance, rtol=1e-12, atol=1e-14)
            ddim = GDDIM(0.0).kernel(known(X0, EPS, process, "eps"), x, st)[0]
            assert torch.allclose(ddim.mean, at(process, s), rtol=0, atol=1e-12)
            assert not ddim.stochastic and float(ddim.std) == 0.0


def test_ddpm() -> None:
    check_ddpm()


@pytest.mark.parametrize("name", EVERY_PROCESS)
@pytest.mark.parametrize("eta", [0.1, 0.5, 1.0, 3.0, 30.0])
def test_any_eta_is_valid(name: str, eta: float) -> None:
    """The step's noise stays below the marginal's at any eta (DDIM's own scaling roots a negative number)."""
    process = EVERY_PROCESS[name]
    for t, s in STEPS:
        kernel = GDDIM(eta).kernel(known(X0, EPS, process, "velocity"), at(process, t), step(t, s))[0]
        assert 0 <= float(kernel.std) <= float(process(s).sigma)
        assert bool(kernel.mean.isfinite().all())


# ---------------------------------------------------------------- published formulas, in x and v


def check_published() -> None:
    """Flow-SDE, Dance-SDE, CPS, PRECISE and the memoryless flow as their papers print them, in x and v: 1e-12."""
    v = EPS - X0
    model = known(X0, EPS, FLOW, "velocity")
    for t, s in STEPS:
        x, st, dt = at(FLOW, t), step(t, s), s - t
        a = 0.7
        sigma = a * math.sqrt(t / (1 - (s if t == 1 else t)))
        flow = x * (1 + sigma**2 * dt / (2 * t)) + v * (1 + sigma**2 * (1 - t) / (2 * t)) * dt
        k = (s * (1 - t) / (t * (1 - s))) ** (a**2 / 2)
        dance = x + (v + 0.3**2 / 2 * (x - (1 - t) * X0) / t**2) * dt
        u, h = 1 - t, -dt  # the clock of adjoint matching: its velocity is -v, its offsets are one step
        ours = x + h * (2 * -v - x / (u + h))
        angle = math.pi * 0.7 / 2
        published = [
            (FlowSDE(a), flow, sigma * math.sqrt(-dt)),
            (DanceSDE(0.3), dance, 0.3 * math.sqrt(-dt)),
            (CPS(0.7), (1 - s) * X0 + s * math.cos(angle) * EPS, s * math.sin(angle)),
            (PRECISE(a), (1 - s) * X0 + s * k * EPS, s * math.sqrt(1 - k**2)),
            (MemorylessFlow(1.0), ours, math.sqrt(2 * (1 - u + h) / (u + h)) * math.sqrt(h)),
        ]
        for sampler, mean, std in published:
            kernel = sampler.kernel(model, x, st)[0]
            assert torch.allclose(kernel.mean, mean, rtol=0, atol=1e-12), (sampler, t)
            assert float(kernel.std) == pytest.approx(std, abs=1e-12), (sampler, t)


def test_published() -> None:
    check_published()


@pytest.mark.parametrize(("t", "s"), STEPS)
def test_aliases(t: float, s: float) -> None:
    """To 1e-14: PRECISE(a) = GDDIM(a / sqrt 2), Flow-SDE(a) = Euler-Maruyama(a / sqrt 2); no noise makes each of them
    Euler, which on a rectified flow is DDIM."""
    model, x, st = known(X0, EPS, FLOW, "velocity"), at(FLOW, t), step(t, s)
    root = math.sqrt(2)
    equal = [
        (PRECISE(0.7), GDDIM(0.7 / root)),
        (FlowSDE(0.7), EulerMaruyama(0.7 / root)),
        (FlowSDE(0.0), Euler()),
        (DanceSDE(0.0), Euler()),
        (EulerMaruyama(0.0), Euler()),
        (GDDIM(0.0), Euler()),
        (PRECISE(0.0), Euler()),
        (CPS(0.0), Euler()),
    ]
    for one, other in equal:
        p, q = one.kernel(model, x, st)[0], other.kernel(model, x, st)[0]
        assert torch.allclose(p.mean, q.mean, rtol=0, atol=1e-14) and torch.allclose(p.std, q.std, rtol=0, atol=1e-14)
        assert p.stochastic == q.stochastic


def test_the_offsets_vanish_with_the_step() -> None:
    """The memoryless flow is Euler-Maruyama at eta = 1 up to a relative O(h) of its step."""
    model, t = known(X0, EPS, FLOW, "velocity"), 0.5
    gaps = []
    for h in (1e-2, 1e-3):
        one, other = (s.kernel(model, at(FLOW, t), step(t, t - h))[0] for s in (MemorylessFlow(), EulerMaruyama(1.0)))
        gaps.append(float((one.mean - other.mean).abs().max()) / h)
    assert gaps[0] / gaps[1] == pytest.approx(10, rel=0.05)


def test_declared_facts() -> None:
    root = math.sqrt(2)
    memoryless = [GDDIM(1.0), EulerMaruyama(1.0), FlowSDE(root), PRECISE(root), MemorylessFlow()]
    assert all(s.memoryless and s.stochastic for s in memoryless)
    others = [GDDIM(0.5), EulerMaruyama(2.0), FlowSDE(1.0), PRECISE(1.0), DanceSDE(1.0), CPS(1.0), Mixed(), Euler()]
    assert not any(s.memoryless for s in others)
    assert [s.order for s in (Euler(), Heun(), DPMSolverPP2M(), GDDIM())] == [1, 2, 2, 1]
    assert not DPMSolverPP2M().single_step and Heun().single_step and Mixed().single_step


# ---------------------------------------------------------------- deterministic solvers of second order


def check_heun() -> None:
    """Heun is the trapezoid rule, and Euler where the second stage has no finite velocity; both with their stages."""
    for name, kind, t, s, stages in [
        ("rectified-flow", "velocity", 1.0, 0.9, 2),
        ("rectified-flow", "velocity", 0.1, 0.0, 2),
        ("rectified-flow", "x0", 0.1, 0.0, 1),  # x0 says nothing of eps at sigma = 0
        ("vp", "eps", 0.5, 0.4, 2),
        ("vp", "eps", 0.1, 0.0, 1),  # d_sigma is infinite at t = 0
        ("cosine", "v", 0.1, 0.0, 2),
    ]:
        process = EVERY_PROCESS[name]
        model, x, h = SOLID.model(process, kind), at(process, t), s - t
        kernel = Heun().kernel(model, x, step(t, s))[0]
        v = velocity(model, x, torch.tensor(t, dtype=F64))
        expected = x + h * v
        if stages == 2:
            expected = x + h / 2 * (v + velocity(model, expected, torch.tensor(s, dtype=F64)))
        assert torch.allclose(kernel.mean, expected, rtol=0, atol=1e-12), (name, kind, t)
        assert len(kernel.stages) == stages
        assert sum(float(p.weight) for p in kernel.stages) == pytest.approx(-h, abs=1e-15)
        assert [float(p.t) for p in kernel.stages] == [t, s][:stages]


def test_heun() -> None:
    check_heun()


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("name", "process"), pairs(EVERY_SAMPLER, EVERY_PROCESS))
def test_kernel_and_dialogue_agree(name: str, process: str, kind: Prediction) -> None:
    """Whoever holds a solver's dialogue with the model's velocities gets the kernel's mean and its stages, to 1e-9."""
    sampler, proc = EVERY_SAMPLER[name], EVERY_PROCESS[process]
    model, x = SOLID.model(proc, kind), at(proc, 0.12)
    for t, s in ((0.12, 0.05), (0.12, 0.0)):
        if sampler.stochastic or not sampler.single_step:
            with pytest.raises(GirsanovError, match=r"use a deterministic single-step solver \(Euler, Heun, GDDIM"):
                next(iter(sampler.stages(model, x, step(t, s))))
            continue
        kernel = sampler.kernel(model, x, step(t, s))[0]
        dialogue, asked, mean = sampler.stages(model, x, step(t, s)), [], None
        point = next(dialogue)
        while mean is None:
            asked.append(point)
            try:
                point = dialogue.send(velocity(model, point.x, point.t))
            except StopIteration as end:
                mean = end.value
        assert torch.allclose(mean, kernel.mean, rtol=1e-9, atol=1e-9)
        assert len(asked) == len(kernel.stages)
        for p, q in zip(asked, kernel.stages, strict=True):
            assert torch.equal(p.t, q.t) and torch.equal(p.weight, q.weight)


def check_dpm_solver() -> None:
    """DPM-Solver++(2M) extrapolates the data prediction to the middle of the step in log-SNR, away from the ends."""
    process = EVERY_PROCESS["vp"]
    before, t, s = 0.62, 0.5, 0.41
    lam = {u: -math.log(float(process.rho(u))) for u in (before, t, s)}
    old, model, x = normal(4, 3, seed=5), known(X0, EPS, process, "eps"), at(process, t)
    kernel, state = DPMSolverPP2M().kernel(model, x, step(t, s), None, History(old, torch.tensor(before, dtype=F64)))
    h, r = lam[s] - lam[t], (lam[t] - lam[before]) / (lam[s] - lam[t])
    data = (1 + 1 / (2 * r)) * X0 - 1 / (2 * r) * old  # Algorithm 2, line 9
    c, d = process(t), process(s)
    expected = d.sigma / c.sigma * x - d.alpha * math.expm1(-h) * data
    assert torch.allclose(kernel.mean, expected, rtol=0, atol=1e-12)
    assert torch.allclose(state.x0, X0, rtol=0, atol=1e-12) and float(state.t) == t
    first = DPMSolverPP2M().kernel(model, x, step(t, s))[0]
    assert torch.allclose(first.mean, GDDIM(0.0).kernel(model, x, step(t, s))[0].mean, rtol=0, atol=1e-12)


def test_dpm_solver() -> None:
    check_dpm_solver()


def test_dpm_solver_is_first_order_at_both_ends() -> None:
    """From alpha = 0 and to sigma = 0 the correction is left out: equal to DDIM, whatever the history."""
    model = known(X0, EPS, FLOW, "velocity")
    after_noise = History(normal(4, 3, seed=6), torch.tensor(1.0, dtype=F64))
    plain = History(normal(4, 3, seed=7), torch.tensor(0.3, dtype=F64))
    for state, (t, s) in ((after_noise, (0.9, 0.8)), (plain, (0.1, 0.0)), (after_noise, (0.5, 0.0))):
        kernel = DPMSolverPP2M().kernel(model, at(FLOW, t), step(t, s), None, state)[0]
        assert torch.allclose(kernel.mean, at(FLOW, s), rtol=0, atol=1e-12)


# ---------------------------------------------------------------- what every kernel owes


@pytest.mark.parametrize(("name", "process"), pairs(EVERY_SAMPLER, EVERY_PROCESS))
def test_gain_and_x0(name: str, process: str) -> None:
    """``gain = d mean / d velocity`` (a unit shift of the velocity, 1e-9), and ``x0`` is the posterior mean (1e-9)."""
    sampler, proc, delta = EVERY_SAMPLER[name], EVERY_PROCESS[process], normal(4, 3, seed=8)
    model = SOLID.model(proc, "velocity")
    exact = SOLID.model(proc, "x0")
    shifted = model.__class__(lambda x, t, c: model.net(x, t, c) + delta, proc, "velocity", (3,))
    for t, s in ((0.8, 0.65), (0.3, 0.0)):
        x, st = at(proc, t), step(t, s, i=3)
        kernel = sampler.kernel(model, x, st)[0]
        if len(kernel.stages) > 1:
            assert kernel.gain is None
            continue
        if kernel.gain is not None:
            moved = sampler.kernel(shifted, x, st)[0].mean - kernel.mean
            assert torch.allclose(moved, kernel.gain * delta, rtol=1e-8, atol=1e-9)
            assert torch.allclose(kernel.x0, exact(x, st.t), rtol=1e-8, atol=1e-9)


@pytest.mark.parametrize(("name", "process"), pairs(EVERY_SAMPLER, EVERY_PROCESS))
def test_times_of_a_batch_are_those_of_each_sample(name: str, process: str) -> None:
    """A step with times [B] is each sample's own step, also with as many samples as columns (B = d = 3), to 1e-11."""
    sampler, proc = EVERY_SAMPLER[name], EVERY_PROCESS[process]
    t, s = torch.tensor([0.9, 0.52, 0.2], dtype=F64), torch.tensor([0.7, 0.5, 0.05], dtype=F64)
    x, model = normal(3, 3, seed=9), SOLID.model(proc, "velocity")
    state = History(normal(3, 3, seed=10), torch.tensor([0.95, 0.6, 0.25], dtype=F64))
    kernel, after = sampler.kernel(model, x, step(t, s, i=3), None, state)
    for i in range(3):
        row = torch.tensor([i])
        alone, then = sampler.kernel(model, x[row], step(t[i], s[i], i=3), None, History(state.x0[row], state.t[i]))
        assert torch.allclose(kernel.mean[row], alone.mean, rtol=1e-11, atol=1e-11)
        assert kernel.stochastic == alone.stochastic
        if alone.stochastic:
            assert float(kernel.std[i]) == pytest.approx(float(alone.std), rel=1e-12)
            z = normal(3, 3, seed=11)
            assert torch.allclose(kernel.sample(z)[row], alone.sample(z[row]), rtol=1e-11, atol=1e-11)
            assert torch.allclose(kernel.log_prob(x)[row], alone.log_prob(x[row]), rtol=1e-9)
        if alone.gain is not None:
            assert float(kernel.gain[i]) == pytest.approx(float(alone.gain), rel=1e-11)
            assert torch.allclose(kernel.x0[row], alone.x0, rtol=1e-10, atol=1e-10)
        if isinstance(after, History):
            assert torch.allclose(after.x0[row], then.x0, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("dtype", [torch.float32, F64], ids=["f32", "f64"])
@pytest.mark.parametrize(("name", "process"), pairs(EVERY_SAMPLER, EVERY_PROCESS))
def test_finite_on_the_default_grid(name: str, process: str, dtype: torch.dtype) -> None:
    """Every sampler, process and prediction kind gives finite samples of d = 3 on the grid users get, 8 and 4 steps.

    The exponential integrators are stable at any number of steps: their 16 samples lie within 8 standard deviations.
    """
    sampler, proc = EVERY_SAMPLER[name], EVERY_PROCESS[process]
    if isinstance(sampler, Mixed):
        sampler = Mixed(sampler.inside, sampler.outside, start=sampler.start, length=1)
    x_T = proc.prior(Noise(0, 0, torch.arange(16)).normal((3,), dtype))
    for kind in KINDS:
        model = SOLID.model(proc, kind)
        for n in (8, 4):
            noise = Noise(1, 0, torch.arange(16))
            end = rollout(model, sampler, default_grid(model, n), x_T, noise=noise).x0
            assert end.dtype == dtype
            assert bool(end.isfinite().all())
            if isinstance(sampler, GDDIM | PRECISE | CPS | DPMSolverPP2M):
                assert float((end.double() - SOLID.mean).abs().max()) < 8.0, (kind, n)


@pytest.mark.parametrize("kind", ["eps", "score"])
@pytest.mark.parametrize(("name", "process"), pairs(EVERY_SAMPLER, {n: EVERY_PROCESS[n] for n in NO_SIGNAL}))
def test_singular_starts_are_told(name: str, process: str, kind: Prediction) -> None:
    """eps and score know nothing of x_0 at alpha = 0: t = 1 is refused with the fix, and ``default_grid`` avoids it."""
    sampler, proc = EVERY_SAMPLER[name], EVERY_PROCESS[process]
    model = SOLID.model(proc, kind)
    assert float(default_grid(model, 4).ts[0]) == 0.999
    with pytest.raises(GirsanovError) as error:
        sampler.kernel(model, normal(2, 3), step(1.0, 0.9))
    assert str(error.value) == (
        f"a {kind} prediction does not determine the sample at alpha = 0.0, sigma = 1.0: start the grid below t = 1 "
        "(for example start=0.999) and evaluate above t = 0, or use a velocity model"
    )


# ---------------------------------------------------------------- marginals, step by step


def check_marginals(sampler: Sampler, process: Process) -> None:
    """As h -> 0 a step is ``drift h + sqrt(q |h|) z`` with ``drift = v - (q / 2) score``: the marginals' condition.

    The Fokker-Planck equation of the reverse process keeps ``p_t`` iff that holds, for any diffusion rate q > 0.
    Checked on a two-dimensional mixture by first differences at |h| = 1e-5 and 1e-6, extrapolated; relative 1e-4.
    """
    model, score = PLANE.model(process, "velocity"), PLANE.model(process, "score")
    for t in (0.1, 0.5, 0.9):
        c = process(t)
        x = PLANE.noised(float(c.alpha), float(c.sigma)).sample(5, torch.Generator().manual_seed(3))
        time = torch.tensor(t, dtype=F64)
        drifts, rates = [], []
        for h in (1e-5, 1e-6):
            kernel = sampler.kernel(model, x, step(t, t - h))[0]
            drifts.append((kernel.mean - x) / -h)
            rates.append(float(kernel.std) ** 2 / h)
        drift = (10 * drifts[1] - drifts[0]) / 9
        rate = (10 * rates[1] - rates[0]) / 9
        assert rate == pytest.approx(rates[1], rel=1e-2), "the variance of a step must be proportional to its length"
        assert rate > 0
        expected = model(x, time) - rate / 2 * score(x, time)
        assert torch.allclose(drift, expected, rtol=1e-4, atol=1e-4 * float(expected.abs().max())), (t, sampler)


@pytest.mark.parametrize(("name", "process"), pairs(PRESERVING, EVERY_PROCESS))
def test_marginals(name: str, process: str) -> None:
    check_marginals(PRESERVING[name], EVERY_PROCESS[process])


@pytest.mark.parametrize("eta", [0.1, 0.3, 0.8, 1.5, 4.0])
@pytest.mark.parametrize("family", [GDDIM, EulerMaruyama, DanceSDE])
def test_marginals_at_any_eta(family: type[Sampler], eta: float) -> None:
    check_marginals(family(eta), FLOW)


def test_cps_does_not_keep_the_marginals() -> None:
    with pytest.raises(AssertionError, match="proportional to its length"):
        check_marginals(CPS(), FLOW)


# ---------------------------------------------------------------- the mixed sampler


def test_mixed_is_its_parts() -> None:
    """Inside the window the one sampler, outside the other, whose history starts afresh after the window."""
    inside, outside = GDDIM(1.0), DPMSolverPP2M()
    mixed, grid, model = Mixed(inside, outside, start=3, length=2), Grid.uniform(8), PLANE.model(FLOW)
    path = rollout(model, mixed, grid, normal(5, 2), noise=Noise(0, 0, torch.arange(5)))
    assert [tr.stochastic for tr in path] == [3 <= i < 5 for i in range(8)]
    assert [tr.step.i for tr in path.trainable] == [3, 4]
    before = None
    for tr in path:
        now = inside if 3 <= tr.step.i < 5 else outside
        kernel, after = now.kernel(model, tr.x_t, tr.step, None, before)
        assert torch.equal(kernel.mean, tr.mean)
        before = None if 3 <= tr.step.i < 5 else after
    assert path.transitions[5].state is None and path.transitions[6].state is not None


def test_mixed_bad_input_is_told() -> None:
    model = PLANE.model(FLOW)

    def sentence(action: object) -> str:
        with pytest.raises(GirsanovError) as error:
            action()
        return str(error.value)

    assert sentence(
        lambda: rollout(model, Mixed(start=6, length=4), Grid.uniform(8), normal(2, 2), noise=torch.randn_like)
    ) == ("the window of steps 6 .. 9 leaves the grid's 0 .. 7: move it, shorten it, or take more steps")
    assert sentence(lambda: Mixed(Euler(), Heun())) == (
        "a mixed sampler is stochastic inside its window and deterministic outside, not Euler and Heun: for example "
        "Mixed(GDDIM(1.0), DPMSolverPP2M(), start=0, length=4)"
    )
    assert sentence(lambda: Mixed(start=-1)) == "a window of 4 steps from step -1 is empty or starts before step 0"
    assert sentence(lambda: Mixed(length=0)) == "a window of 0 steps from step 0 is empty or starts before step 0"
    vp = PLANE.model(make_process("vp"))
    assert sentence(lambda: Mixed(FlowSDE()).init(vp, Grid.uniform(8))) == (
        "FlowSDE is defined for RectifiedFlow, not for VP: use GDDIM, which takes any process and any eta"
    )


@pytest.mark.parametrize(
    ("make", "sentence"),
    [
        (lambda: GDDIM(-1.0), "eta scales a standard deviation and must be at least 0, not -1.0"),
        (lambda: EulerMaruyama(-0.5), "eta scales a standard deviation and must be at least 0, not -0.5"),
        (lambda: FlowSDE(-1.0), "the noise level a must be at least 0, not -1.0"),
        (lambda: DanceSDE(-1.0), "a diffusion coefficient must be at least 0, not -1.0"),
        (lambda: CPS(1.2), "the eta of CPS is an angle over pi / 2 and lies in [0, 1], not 1.2"),
        (lambda: PRECISE(-0.1), "a noise level must be at least 0, not -0.1"),
        (
            lambda: MemorylessFlow(0.0),
            "the offset keeps the first step finite and must be positive, not 0.0: use EulerMaruyama(1.0) for the same "
            "sampler without offsets",
        ),
    ],
)
def test_bad_dials_are_told(make: object, sentence: str) -> None:
    with pytest.raises(GirsanovError) as error:
        make()
    assert str(error.value) == sentence


def test_samplers_open_no_no_grad() -> None:
    """Gradients belong to the caller: the mean of every sampler is differentiable in x and in the network."""
    for sampler in EVERY_SAMPLER.values():
        assert "no_grad" not in inspect.getsource(type(sampler))
        x = normal(2, 3).requires_grad_(True)
        scale = torch.ones((), dtype=F64, requires_grad=True)
        model = SOLID.model(FLOW)
        tuned = model.__class__(
            lambda x, t, c, scale=scale: scale * SOLID.model(FLOW).net(x, t, c), FLOW, "velocity", (3,)
        )
        kernel = sampler.kernel(tuned, x, step(0.5, 0.4, i=1))[0]
        grads = torch.autograd.grad(kernel.mean.sum(), [x, scale])
        assert all(bool((g != 0).any()) for g in grads)
