"""At its limit the mean gradient of a method's own loss is zero; elsewhere it is not. One policy, every member."""

import dataclasses
import math

import pytest
import torch

from girsanov.grids import Grid
from girsanov.methods.advantages import (
    BatchNormalised,
    Clipped,
    GlobalStd,
    GroupCentred,
    GroupNormalised,
    LeaveOneOut,
    PerReward,
    RunningBuffer,
    Trimmed,
)
from girsanov.methods.base import Method
from girsanov.methods.forward import AWM, CRD, DGPO, FPO, ORW, RAM, RVM, ConstantDecay, DiffusionNFT
from girsanov.methods.forward.errors import VelocityError
from girsanov.methods.forward.times import GridTimes
from girsanov.methods.policy_gradient import AnnealedEta, SlidingWindow
from girsanov.methods.policy_gradient.branch import BranchGRPO
from girsanov.methods.policy_gradient.clipped import ClippedPG
from girsanov.methods.policy_gradient.credit import StepLength
from girsanov.methods.policy_gradient.ddpo import DDPO
from girsanov.methods.policy_gradient.grpo import DanceGRPO, FlowGRPO, FlowGRPOFast, MixGRPO, MixGRPOFlash
from girsanov.methods.policy_gradient.penalty import PathKL, PerStepKL
from girsanov.methods.policy_gradient.remedies import PCPO, FlowDPPO, GRPOGuard, RSMHinge, TempFlowGRPO
from girsanov.policy import Policy
from girsanov.problems import Gaussian, LinearReward, QuadraticReward, end_law, tilt
from girsanov.problems.limits import GaussianProblem, aim, forward, limit, policy_gradient, scales
from girsanov.problems.limits.scales import mean_group_std, reward_std, settled, signal_scale
from girsanov.processes import RectifiedFlow
from girsanov.samplers import Heun
from tests.laws.correction import PLANE, FastTurn, gradient, requests, tunable
from tests.laws.mutation import Mutation, check, mutants

F64 = torch.float64
GRID, GROUP = Grid.uniform(5), 8
CURVED = GaussianProblem(PLANE, QuadraticReward([[0.5, 0.1], [0.1, 0.4]], [0.5, -0.3]), group=GROUP)
LINEAR = GaussianProblem(Gaussian(0.8, 1.69), LinearReward(0.4), group=GROUP)
SHARED = {"grid": GRID, "advantage": LeaveOneOut(), "times": GridTimes(), "draws": 5, "sampler": Heun()}


def forward_members(problem: GaussianProblem) -> dict[str, Method]:
    """Every forward method with a limit, at kappa = 1.2 (or its own way to say so)."""
    s = SHARED | {"reward": problem.reward}
    return {
        "nft": DiffusionNFT(**s, kappa=1.2, error=VelocityError(), limit=50.0, decay=ConstantDecay(0.0)),
        "ram": RAM(**s, beta=1.2),
        "rvm": RVM(**s | {"advantage": GlobalStd()}, scale=0.5, b=1.2),
        "fpo": FPO(**s, kappa=1.2),
        "crd": CRD(**s, kappa=2.4, error=VelocityError(), decay=ConstantDecay(0.0)),
        "orw": ORW(**s, tau=0.6, kappa=0.8),
    }


UNIT = {"grid": GRID, "reward": LINEAR.reward}
POLICY_GRADIENTS: dict[str, Method] = {
    "ddpo": DDPO(**UNIT, kl=PathKL(2.0)),
    "flow-grpo": FlowGRPO(**UNIT, kl=PerStepKL(5.0, StepLength())),
    "flow-grpo-fast": FlowGRPOFast(**UNIT, kl=PerStepKL(5.0, StepLength())),
    "dance-grpo": DanceGRPO(**UNIT, kl=PerStepKL(1.0)),
    "mix-grpo": MixGRPO(**UNIT, kl=PerStepKL(1.0), schedule=SlidingWindow(every=1, leave=1)),
    "mix-grpo-flash": MixGRPOFlash(**UNIT, kl=PerStepKL(1.0), schedule=SlidingWindow(every=1, leave=1)),
    "branch-grpo": BranchGRPO(**UNIT, advantage=LeaveOneOut(), kl=PerStepKL(0.5)),
    "grpo-guard": GRPOGuard(**UNIT, kl=PerStepKL(20.0, StepLength())),
    "pcpo": PCPO(**UNIT, kl=PerStepKL(2.0, StepLength())),
    "tempflow-grpo": TempFlowGRPO(**UNIT, kl=PerStepKL(5.0, StepLength())),
    "flow-dppo": FlowDPPO(**UNIT, kl=PerStepKL(5.0, StepLength())),
    "rsm-hinge": RSMHinge(**UNIT, kl=PerStepKL(5.0, StepLength())),
}


def policy_at(method: Method, problem: GaussianProblem, strength: float = 1.0) -> Policy:
    """A policy with ``strength`` times the correction of its limit; its old copy is itself."""
    tuned, found = tunable(problem.law.model(RectifiedFlow()), GRID), limit(method, problem)
    assert found is not None
    field = found.field
    if field is None:
        kernels, rest = found.kernels, problem.chain(method.sampler, GRID)[0]
        assert kernels is not None
        pairs = list(zip(kernels, rest, strict=True))
        field = (
            torch.stack([(a.F - b.F) / b.gain for a, b in pairs]),
            torch.stack([(a.c - b.c) / b.gain for a, b in pairs]),
        )
    with torch.no_grad():
        tuned.net.M[: len(GRID)], tuned.net.c[: len(GRID)] = strength * field[0], strength * field[1]
    tuned.keep_copy("old")
    return tuned


def pulls(method: Method, problem: GaussianProblem, strength: float, n: int) -> tuple[float, float]:
    """Largest z of the mean gradient over the parameters, and z of the gradient along the limit's correction.

    Seed 0, 20 batches of n samples in groups of 8, after 4 that fill the running buffers (19 degrees of freedom).
    """
    tuned, state, found = policy_at(method, problem, strength), {}, []
    for i in range(24):
        batch = method.collect(tuned, requests(n, GROUP), state, FastTurn(0, i, 24))
        found.append(gradient(tuned, method, batch, state))
    values = torch.stack(found[4:]).detach()
    spread = values.std(0) / len(values) ** 0.5
    used = spread > 1e-12
    way = torch.cat(
        [(p - q).flatten() for p, q in zip(tuned.parameters(), tuned.weights.reference.values(), strict=True)]
    )
    along = values @ way.detach()
    return (
        float((values.mean(0)[used] / spread[used]).abs().max()),
        float(along.mean() / along.std() * len(along) ** 0.5),
    )


def rests(method: Method, problem: GaussianProblem, n: int) -> None:
    """At the limit no parameter is pulled (|z| < 5); at half of its correction all of it is pulled on (z < -4)."""
    assert max(map(abs, pulls(method, problem, 1.0, n))) < 5
    assert pulls(method, problem, 0.5, n)[1] < -4


def listed(names: object, fast: set[str]) -> list[object]:
    """All names, those that are not in ``fast`` marked slow."""
    return [n if n in fast else pytest.param(n, marks=pytest.mark.slow) for n in names]


@pytest.mark.parametrize("name", listed(forward_members(CURVED), {"nft", "rvm", "orw"}))
def test_forward_methods_rest_at_their_limit(name: str) -> None:
    """Curved reward, two dimensions, 30 parameters."""
    rests(forward_members(CURVED)[name], CURVED, 512)


FAST = {"ddpo", "flow-grpo-fast", "dance-grpo", "mix-grpo-flash", "grpo-guard", "tempflow-grpo"}


@pytest.mark.parametrize("name", listed(POLICY_GRADIENTS, FAST))
def test_policy_gradients_rest_at_their_limit(name: str) -> None:
    """Linear reward, advantages in units of a std, 10 parameters."""
    rests(POLICY_GRADIENTS[name], LINEAR, 1024)


def test_a_curved_reward_has_the_same_rule() -> None:
    """Global std and a beta a step in two dimensions (30 parameters); the std is that of the tuned law."""
    rests(FlowGRPO(grid=GRID, reward=CURVED.reward, kl=PerStepKL(5.0, StepLength())), CURVED, 1024)


def test_the_closed_form_of_windows_is_the_recursion_where_there_is_none() -> None:
    """A linear reward and a fixed sampler: noise maps to the end, or step by step, to rounding."""
    for method in (POLICY_GRADIENTS[n] for n in ("flow-grpo", "dance-grpo", "grpo-guard", "pcpo", "flow-dppo")):
        closed, stepwise = limit(method, LINEAR), policy_gradient._per_step(method, LINEAR)
        assert closed is not None and stepwise is not None and closed.kernels is None
        torch.testing.assert_close(closed.law.cov, stepwise.law.cov, rtol=1e-10, atol=0)
        if not method.same_start:  # whose spread within a group the recursion does not know
            torch.testing.assert_close(closed.law.mean, stepwise.law.mean, rtol=1e-10, atol=0)


# ---- forward members among each other


def test_the_linear_members_end_in_one_law() -> None:
    """NFT, RAM, FPO and CRD with kappa, beta, kappa, kappa / 2; RVM with b / scale times the std of the rewards."""
    for problem in (CURVED, LINEAR):
        found = {name: limit(m, problem) for name, m in forward_members(problem).items()}
        for name in ("ram", "fpo", "crd"):
            torch.testing.assert_close(found[name].law.mean, found["nft"].law.mean, rtol=1e-8, atol=1e-9)
            torch.testing.assert_close(found[name].law.cov, found["nft"].law.cov, rtol=1e-8, atol=1e-9)
        kept, law = 1 - 1 / GROUP, found["rvm"].law
        kappa = (1.2 / 0.5) * (reward_std(law, problem.reward) + 1e-4) / kept
        same = limit(RAM(**SHARED, reward=problem.reward, beta=kappa), problem)
        torch.testing.assert_close(same.law.mean, law.mean, rtol=1e-6, atol=1e-7)


def test_a_linear_reward_leads_to_the_tilted_law() -> None:
    """The end law of the tilted law's own velocity on 10 steps, but for the samples' deviation from the law (.0024)."""
    for name, method in forward_members(LINEAR).items():
        if name == "orw":
            assert aim(method, LINEAR) is None
            continue
        target = aim(method, LINEAR)
        own = end_law(target.model(RectifiedFlow()), method.sampler, Grid.uniform(10))
        found = limit(method, LINEAR, Grid.uniform(10)).law
        assert float((found.mean - own.mean).abs()) < 0.005 and float((found.cov / own.cov - 1).abs()) < 0.005
    beta = 1.2 * 2 * (0.4 * 1.3 + 1e-4) / (1 - 1 / GROUP)  # RVM: b / scale, times the std of the rewards
    torch.testing.assert_close(
        aim(forward_members(LINEAR)["rvm"], LINEAR).mean, tilt(LINEAR.law, LINEAR.reward, beta).mean
    )


def test_reward_weighting_is_the_tilt_of_its_own_samples() -> None:
    """E[e^(tau A) y y^T] is Z times the tilted moment: Monte Carlo with 200,000 samples (seed 3), every z below 5."""
    law, t, tau = PLANE, torch.tensor([0.4], dtype=F64), 0.6
    exact = forward.weighted(law, CURVED, t, 1.0, tau)[0]
    g, n = torch.Generator().manual_seed(3), 200_000
    x0, eps = law.sample(n, g), torch.randn(n, 2, dtype=F64, generator=g)
    y = torch.cat([torch.ones(n, 1, dtype=F64), 0.6 * x0 + 0.4 * eps, eps - x0], 1)
    r = CURVED.reward(x0) - CURVED.reward.expected(law.mean, law.cov)
    for w, want in (((tau * r).exp(), exact), (r, forward.weighted(law, CURVED, t, 1.0, None)[0])):
        each = w[:, None, None] * y[:, :, None] * y[:, None, :]
        assert bool(((each.mean(0) - want).abs() < 5 * each.std(0) / n**0.5).all())


# ---- scales


def test_the_std_of_a_small_group() -> None:
    """k_n: mean std of 100,000 groups of n normals (seed 5, standard error below .0015); 1 for large groups."""
    g = torch.Generator().manual_seed(5)
    for n in (2, 4, 16):
        std = torch.randn(100_000, n, dtype=F64, generator=g).std(1, correction=0)
        assert abs(float(std.mean()) - mean_group_std(n)) < 0.006
    assert mean_group_std(None) == 1 and abs(mean_group_std(1000) - 1) < 1e-3


@pytest.mark.parametrize(
    "advantage",
    [
        LeaveOneOut(),
        GroupCentred(),
        GlobalStd(),
        BatchNormalised(),
        GroupNormalised(),
        PerReward(GroupNormalised()),
        Clipped(GroupNormalised(), 1.0),
        RunningBuffer(16, 4),
    ],
    ids=lambda a: type(a).__name__,
)
def test_the_scale_is_the_mean_slope_of_the_advantage(advantage: object) -> None:
    """``c = E[A_i z_i] / s`` for rewards ``s z``: s = 1.7, 20 batches of 4096 in groups of 8, z < 5."""
    c, state, found = signal_scale(advantage, 8, 1.7, 1.7), {}, []
    for i in range(24):
        turn = FastTurn(1, i)
        z = turn.noise(torch.arange(4096)).normal((), F64)
        a, _ = advantage(1.7 * z, torch.arange(4096) // 8, state, turn)
        found.append(float((a * z).mean()) / 1.7)
    kept = torch.tensor(found[4:])
    assert abs(float(kept.mean()) - c) < 5 * float(kept.std()) / math.sqrt(20) + 1e-3 * c


def test_the_scale_settles_where_its_own_law_has_it() -> None:
    """DDPO on a curved reward: beta times the tuned law's own std over k_32."""
    method = DDPO(grid=GRID, reward=CURVED.reward, kl=PathKL(1.0))
    found = limit(method, CURVED)
    beta = (reward_std(found.law, CURVED.reward) + 1e-6) / mean_group_std(32)
    plain = limit(ClippedPG(grid=GRID, reward=CURVED.reward, advantage=LeaveOneOut(), kl=PathKL(beta)), CURVED)
    torch.testing.assert_close(plain.law.mean, found.law.mean, rtol=1e-6, atol=1e-7)
    assert settled(lambda c: CURVED.law, lambda law: None) is None and signal_scale(Trimmed(), 8, 1.0, 1.0) is None


def test_what_has_no_limit() -> None:
    """No anchor, a repelling one, moments without a closed form, no KL, and scales that are not known."""
    s, r = SHARED | {"reward": LINEAR.reward}, LINEAR.reward
    for method in (
        DiffusionNFT(**s, kappa=1.2),
        DiffusionNFT(**s, kappa=0.0, error=VelocityError()),
        RAM(**s, beta=0.3),
        ORW(**s, kappa=0.0),
        AWM(**s),
        DGPO(**s),
        RAM(**s | {"advantage": Trimmed()}),
        FlowGRPO(**UNIT, kl=None),
        BranchGRPO(**UNIT, kl=PerStepKL(1.0)),
        MixGRPO(**UNIT, kl=PathKL(1.0)),
        dataclasses.replace(POLICY_GRADIENTS["flow-grpo"], schedule=AnnealedEta()),
        dataclasses.replace(POLICY_GRADIENTS["flow-grpo"], correct=2.0),
    ):
        assert limit(method, LINEAR) is None and aim(method, LINEAR) is None
    curved = dataclasses.replace(POLICY_GRADIENTS["mix-grpo"], reward=r)
    assert limit(curved, CURVED) is None and limit(curved, LINEAR) is not None


@mutants(
    [
        Mutation(forward, "weighted", "- C.mT", "+ C.mT", lambda: rests(forward_members(CURVED)["ram"], CURVED, 256)),
        Mutation(
            forward,
            "anchor",
            "method.kappa / 2",
            "method.kappa",
            lambda: test_the_linear_members_end_in_one_law(),
        ),
        Mutation(forward, "weighted", "log_z.exp() *", "", test_reward_weighting_is_the_tilt_of_its_own_samples),
        Mutation(scales, "mean_group_std", "(n - 1) / 2", "n / 2", test_the_std_of_a_small_group),
        Mutation(scales, "reward_std", "0.5 * (AS", "(AS", test_a_curved_reward_has_the_same_rule),
        Mutation(
            policy_gradient,
            "_linear",
            "c * float",
            "float",
            lambda: rests(POLICY_GRADIENTS["dance-grpo"], LINEAR, 512),
        ),
        Mutation(policy_gradient, "_per_step", "beta / c for", "beta for", test_a_curved_reward_has_the_same_rule),
    ]
)
def test_mutations_are_noticed(mutation: Mutation, monkeypatch: pytest.MonkeyPatch) -> None:
    check(mutation, monkeypatch)
