"""CPG and CPPO: their gradient against the exact policy gradient, the trust region's laws, and where training ends.

LQ, float64. The gradient: 10 batches of 300 paths at dt = 0.1, horizon 8, exact value of the chain, |z| < 4.5.
"""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from girsanov.control import LQ, LQSolution
from girsanov.control.agents import AGENTS, CPG, CPPO, LinearKL, SqrtKL, trust
from girsanov.control.agents.base import Agent
from girsanov.control.critics import Galerkin
from girsanov.control.gaussian import ActionLaw
from girsanov.control.occupation import Discounted
from girsanov.control.policies import AffineActor, check_admissible, random_admissible
from girsanov.control.rates import Centred, Generator, Rate
from girsanov.methods.base import State, Turn
from girsanov.policy import Policy
from girsanov.prompts import ClassPrompts
from girsanov.train import TrainConfig, fit
from tests.laws.control_cases import POLICY, Exact, actor, z_scores
from tests.laws.mutation import Mutation, check, mutants

ENV, Z = LQ(dt=0.1), 4.5


def gradients(make: Callable[..., Agent], solution: LQSolution, rate: Rate, batches: int = 10) -> Tensor:
    """Less the gradient of the loss in (slope, offset, log std), a row a batch."""
    rows = []
    for seed in range(batches):
        policy = Policy(actor(ENV))
        agent = make(environment=ENV, critic=Exact(solution), rate=rate, occupation=Discounted(8.0))
        state: State = agent.setup(policy)
        prompts = ClassPrompts(num_classes=1, groups_per_batch=300, group_size=1).batch(0, 0, 1)
        with torch.no_grad():
            batch = agent.collect(policy, prompts, state, Turn(seed, 0))
        sum(chunk.loss for chunk in agent.losses(policy, batch, state)).backward()
        rows.append(-torch.cat([p.grad.flatten() for p in policy.parameters() if p.grad is not None]))
    return torch.stack(rows)


def exact(solution: LQSolution) -> Tensor:
    """The derivative in (slope, offset, log std): that in the variance times ``2 S``."""
    g = solution.policy_gradient
    return torch.stack([g.slope[0, 0], g.offset[0], 2 * g.covariance[0, 0] * POLICY.covariance[0, 0]])


@pytest.mark.parametrize("name", AGENTS)
def test_the_expected_gradient_is_the_exact_policy_gradient(name: str) -> None:
    """Of the chain, with rates along the paths; of the order of the parameters of ``ActorNet``."""
    solution = ENV.chain().evaluate(POLICY)
    assert [n for n, p in actor(ENV).net.named_parameters() if p.numel()] == [
        "mean.weight",
        "mean.bias",
        "factor.log_diagonal",
    ]
    want = exact(solution)
    assert float(want.abs().min()) > 0.02
    assert float(z_scores(gradients(AGENTS[name], solution, Centred()), want).abs().max()) < Z


def test_both_agents_start_with_the_same_gradient() -> None:
    """At ratio 1 and distance 0; to 1e-6, the smoothing of the root."""
    solution = ENV.chain().evaluate(POLICY)
    one, two = (gradients(a, solution, Centred(), 1) for a in (CPG, CPPO))
    torch.testing.assert_close(one, two, atol=1e-6, rtol=1e-6)


def gradient_law() -> None:
    test_the_expected_gradient_is_the_exact_policy_gradient("cpg")


MUTATIONS = [
    Mutation(CPG, "objective", "self.environment.entropy * entropy", "0 * entropy", gradient_law),
    Mutation(Agent, "collect", "q + env.entropy * paths.entropy", "q + paths.reward", gradient_law),
    Mutation(Discounted, "weights", "discounts(environment", "0.5 * discounts(environment", gradient_law),
]


@mutants(MUTATIONS)
def test_a_defect_of_the_gradient_is_noticed(mutation: Mutation, monkeypatch: pytest.MonkeyPatch) -> None:
    check(mutation, monkeypatch)


# ---- the trust region


def shifted(by: float) -> Tensor:
    """KL of N(0, 1/4) from N(by, 1/4), for one state."""
    tril = torch.full((1, 1), 0.5, dtype=torch.float64)
    laws = [ActionLaw(torch.full((1, 1), m, dtype=torch.float64), tril) for m in (0.0, by)]
    return laws[0].kl(laws[1])


def test_the_root_is_a_norm_of_the_step_and_the_kl_its_square() -> None:
    """``sqrt(KL) = |d| / (sqrt 2 std)``."""
    for by in (0.2, -0.1):
        assert float(SqrtKL().distance(shifted(by))) == pytest.approx(abs(by) / (2**0.5 * 0.5), abs=2e-6)
        assert float(LinearKL().distance(shifted(by))) == pytest.approx(by**2 / (2 * 0.25))


@pytest.mark.parametrize(("kind", "moves"), [(SqrtKL, False), (LinearKL, True)])
def test_below_its_weight_over_root_two_the_root_does_not_move_at_all(
    kind: type[trust.TrustRegion], moves: bool
) -> None:
    """``max g d - C D(d)``, std 1/2: at g < C / (sqrt 2 std) the root stays at 0, the KL goes to ``g std^2 / C``."""
    weight, gradient = 1.0, 0.9 / (2**0.5 * 0.5)
    grid = torch.linspace(-1, 1, 4001, dtype=torch.float64)
    values = gradient * grid - weight * torch.cat([kind().distance(shifted(float(d))) for d in grid])
    best = float(grid[values.argmax()])
    assert best == pytest.approx(gradient * 0.25 / weight if moves else 0.0, abs=1e-3)


def test_the_weight_follows_the_distance() -> None:
    rule = SqrtKL(target=0.1, slack=0.1, factor=1.5, weight=2.0, most=2.5)
    assert rule.adapted(1.0, 0.111) == 1.5 and rule.adapted(1.0, 0.089) == pytest.approx(1 / 1.5)
    assert rule.adapted(1.0, 0.105) == rule.adapted(1.0, 0.095) == 1.0 and rule.adapted(2.0, 1.0) == 2.5


def test_the_distance_of_an_iteration_is_that_of_its_two_policies() -> None:
    """Slope moved by 0.1: ``E |0.1 x| / (sqrt 2 std)`` over the states of the batch."""
    policy, agent = Policy(actor(ENV)), CPPO(environment=ENV, critic=Galerkin(), rate=Generator())
    state = agent.setup(policy)
    prompts = ClassPrompts(num_classes=1, groups_per_batch=64, group_size=1).batch(0, 0, 1)
    with torch.no_grad():
        batch = agent.collect(policy, prompts, state, Turn(0, 0))
        policy.parameters()[0].add_(0.1)
        agent.collect(policy, prompts, state, Turn(0, 1))
    want = float((0.1 * batch.at[:, 0]).abs().mean()) / (2**0.5 * 0.5)
    assert state["distance"] == pytest.approx(want, rel=1e-4)


# ---- where training ends


def errors(agent: Agent, seed: int, lr: float, batch: int, **train: object) -> list[float]:
    """Relative errors of slope, offset and variance after training from a random admissible start."""
    env = agent.environment
    policy = Policy(AffineActor().build(env, seed))
    config = TrainConfig(seed=seed, lr=lr, betas=(0.9, 0.99), schedule="cosine", max_grad_norm=5.0, **train)
    run = fit(policy, agent, ClassPrompts(num_classes=1, groups_per_batch=batch, group_size=1), config)
    best = env.solution().affine
    assert run.config.ema is not None
    slope, offset, log_std = (w.double() for w in list(run.policy.state("ema").values())[:3])
    found = (slope, best.slope), (offset, best.offset), ((2 * log_std).exp(), best.covariance)
    return [abs(float((a - b).squeeze() / b.squeeze())) for a, b in found]


SEVERAL = {"epochs": 4, "minibatches": 4}


def test_random_starts_are_admissible_and_different() -> None:
    """Seeds 0 to 9: the denominators of the exact value are positive."""
    env = LQ()
    found = [random_admissible(env, seed=seed) for seed in range(10)]
    for policy in found:
        th = float(policy.slope)
        assert env.discount - 2 * (env.A + env.B * th) - (env.C + env.D * th) ** 2 > 0
        check_admissible(env, policy)
    assert len({float(p.slope) for p in found}) == 10


def test_cppo_ends_at_the_exact_policy() -> None:
    """dt = 0.2, where the chain's own optimum is 4 % off: value and q by the generator have no error in dt. Seed 0, 128
    paths; 1.5 % in slope and offset, 4 % in the variance, whose noise is that of few actions."""
    agent = CPPO(environment=LQ(dt=0.2), critic=Galerkin(), rate=Generator(), trust=SqrtKL(target=0.3))
    slope, offset, variance = errors(agent, 0, 0.05, 128, iterations=80, ema=0.99, epochs=4, minibatches=2)
    assert slope < 0.015 and offset < 0.015 and variance < 0.04
    chain = agent.environment.chain()
    assert isinstance(chain, LQSolution)
    assert abs(float(chain.affine.slope / LQ().solution().affine.slope) - 1) > 0.03


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(5))
def test_cppo_ends_within_two_percent_from_any_start(seed: int) -> None:
    """The recipe's setting: dt = 0.02, 256 paths, 80 iterations."""
    env = LQ(dt=0.02)
    agent = CPPO(environment=env, critic=Galerkin(), rate=Generator(), trust=SqrtKL(target=0.3))
    assert max(errors(agent, seed, 0.03, 256, iterations=80, ema=0.995, **SEVERAL)) < 0.02


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(5))
def test_cpg_ends_within_two_percent_from_any_start(seed: int) -> None:
    """dt = 0.05, 256 paths, 300 updates."""
    agent = CPG(environment=LQ(), critic=Galerkin(), rate=Generator())
    assert max(errors(agent, seed, 0.05, 256, iterations=300, ema=0.97)) < 0.02


@pytest.mark.slow
def test_the_published_model_free_form_ends_within_five_percent() -> None:
    """td rates and least squares, which know neither drift nor diffusion; dt = 0.05, 1024 paths, 100 iterations."""
    agent = CPPO(environment=LQ(), trust=SqrtKL(target=0.3))
    assert max(errors(agent, 0, 0.03, 1024, iterations=100, ema=0.997, **SEVERAL)) < 0.05
