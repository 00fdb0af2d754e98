"""Parts of the agents one at a time, and one clear sentence for every mistake."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from girsanov.config import make
from girsanov.config.parts import Part
from girsanov.control import LQ
from girsanov.control.agents import CPG, CPPO, Agent, LinearKL, SqrtKL
from girsanov.control.critics import CRITICS, Equations, LeastSquares, TemporalDifference, Trace
from girsanov.control.environments import ENVIRONMENTS
from girsanov.control.gaussian import ActionLaw
from girsanov.control.occupation import Discounted, simulate
from girsanov.control.policies import POLICIES, Actor, AffineActor, MLPActor, actor_of
from girsanov.control.rates import RATES, Regressed
from girsanov.errors import GirsanovError
from girsanov.launch import configure
from girsanov.methods.base import Turn
from girsanov.policy import Policy
from girsanov.prompts import ClassPrompts
from girsanov.recipes import get_recipe
from girsanov.recipes.control import require_same
from girsanov.train import TrainConfig, fit
from tests.tiny import tiny_policy

ENV = LQ(dt=0.1)
START = AffineActor(slope=((-0.3,),), offset=(-0.4,), std=0.5)
EIGHT = ClassPrompts(num_classes=1, groups_per_batch=8, group_size=1)


def run(agent: Agent, **train: Any) -> Any:
    return fit(
        Policy(START.build(agent.environment)), agent, EIGHT, TrainConfig(**{"iterations": 2, "lr": 0.01, **train})
    )


# ---- every combination runs


@pytest.mark.parametrize("critic", CRITICS)
@pytest.mark.parametrize("rate", RATES)
def test_every_critic_goes_with_every_rate(critic: str, rate: str) -> None:
    done = run(CPPO(environment=ENV, critic=CRITICS[critic](), rate=RATES[rate]()), epochs=2, minibatches=2)
    before = START.build(ENV).net.state_dict()
    moved = [float((v - before[k]).abs().max()) for k, v in done.policy.state().items() if v.numel()]
    assert min(moved) > 0 and max(moved) < 0.1


@pytest.mark.parametrize("name", POLICIES)
@pytest.mark.parametrize("environment", ENVIRONMENTS)
def test_every_policy_acts_in_every_environment(name: str, environment: str) -> None:
    """The same seed gives the same policy, and it runs."""
    env = ENVIRONMENTS[environment]()
    one, two = (POLICIES[name]().build(env, 3) for _ in range(2))
    x = env.start(5, torch.Generator().manual_seed(0), torch.float64)
    torch.testing.assert_close(one(x).mean, two(x).mean)
    assert one(x).mean.shape == (5, env.action_dim) and bool(one(x).entropy().detach().isfinite().all())


def test_a_policy_may_look_at_some_of_the_states() -> None:
    env = ENVIRONMENTS["pairs"]()
    act = AffineActor(slope=((-2.0,),), sees=(0,)).build(env)
    x = torch.tensor([[0.5, 1.0], [0.5, -3.0]], dtype=torch.float64)
    assert act(x).mean.flatten().tolist() == [-1.0, -1.0]


def test_the_factor_keeps_its_start() -> None:
    env = ENVIRONMENTS["portfolio"]()
    law = AffineActor(slope=((0.0,) * env.state_dim,) * env.action_dim, std=0.3).build(env)(
        env.start(2, torch.Generator().manual_seed(0), torch.float64)
    )
    torch.testing.assert_close(law.covariance, 0.09 * torch.eye(env.action_dim, dtype=torch.float64))


# ---- mistakes


class Wide(nn.Module):
    """Two values a state."""

    def __init__(self, n: int) -> None:
        super().__init__()
        self.layer = nn.Linear(n, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(x)


class Blown(nn.Module):
    """No number."""

    def __init__(self, n: int) -> None:
        super().__init__()
        self.layer = nn.Linear(n, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(x) * float("nan")


MISTAKES: dict[str, tuple[Any, str]] = {
    "critic of a wrong shape": (
        lambda: CPPO(environment=ENV, critic=TemporalDifference(net=Wide)),
        r"the critic returned \[3, 2\] for 3 states: it must return one value a state, \[3\] or \[3, 1\]",
    ),
    "critic without a number": (
        lambda: CPPO(environment=ENV, critic=TemporalDifference(net=Blown)),
        "the critic returned a value that is not finite",
    ),
    "inadmissible start": (
        lambda: AffineActor(slope=((2.0,),)).build(ENV),
        r"this policy has no value: .* 2 \(A \+ B slope\) \+ \(C \+ D slope\)\^2 < discount",
    ),
    "slope of a wrong shape": (
        lambda: AffineActor(slope=((2.0, 1.0),)).build(ENV),
        "actor.slope needs 1 rows of 1 numbers",
    ),
    "offset of a wrong shape": (
        lambda: AffineActor(slope=((0.0,),), offset=(1.0, 2.0)).build(ENV),
        "actor.offset needs 1 numbers",
    ),
    "offset alone": (lambda: AffineActor(offset=(1.0,)).build(ENV), r"needs a slope too: give it as actor.slope"),
    "std of zero": (lambda: AffineActor(slope=((0.0,),), std=0.0), "AffineActor.std must be greater than 0"),
    "a state that is not there": (lambda: MLPActor(sees=(1,)).build(ENV), r"actor.sees = \[1\] must name some of the"),
    "horizon below a step": (
        lambda: Discounted(0.05).weights(ENV, torch.zeros(2)),
        "a horizon of 0.05 / discount is shorter than one step of dt = 0.1 at discount 1: lower dt or raise the",
    ),
    "horizon of nothing": (lambda: Discounted(0.0), "horizon = 0.0 must be above 0"),
    "a negative trace": (lambda: Trace(-1.0), "the rate of a trace must not be negative"),
    "memory of one": (lambda: Equations(memory=1.0), r"memory = 1.0 must be in \[0, 1\)"),
    "a width of nothing": (lambda: TemporalDifference(width=0), "width = 0 of the critic must be at least 1"),
    "a negative ridge": (lambda: Regressed(ridge=-1.0), "ridge = -1.0 must not be negative"),
    "a target of nothing": (lambda: SqrtKL(target=0.0), "a trust region needs target > 0"),
    "a weight out of range": (lambda: LinearKL(weight=0.0), "the weight 0.0 must lie between"),
    "noise of a wrong shape": (
        lambda: simulate(ENV, START.build(ENV), torch.zeros(3, 1).double(), torch.zeros(3, 4, 1).double()),
        r"noise of shape \[3, 4, 1\] does not fit 3 paths: give \[B, T, 2\]",
    ),
    "another environment's policy": (
        lambda: CPG(environment=ENV).setup(Policy(START.build(ENV).__class__(nn.Linear(2, 1), 2, 1))),
        "a policy of 2 states and 1 actions does not fit an environment of 1 states and 1 actions",
    ),
    "a generative model": (
        lambda: actor_of(tiny_policy(), ENV),
        r"an agent acts in an environment: give it Policy\(actor\), not a generative model's policy",
    ),
    "a law of wrong shapes": (
        lambda: ActionLaw(torch.zeros(3, 2), torch.eye(3)),
        r"a law of actions with mean \[3, 2\] and factor \[3, 3\] does not fit",
    ),
    "actions of a wrong shape": (
        lambda: Actor(lambda x: (torch.zeros(len(x), 2), torch.eye(2)), 1, 1)(torch.zeros(3, 1)),
        r"the policy returned actions \[3, 2\] for 3 states: the environment takes \[B, 1\]",
    ),
    "states of a wrong shape": (
        lambda: START.build(ENV)(torch.zeros(3, 2).double()),
        r"the policy acts on states \[B, 1\], got \[3, 2\]",
    ),
    "several updates of CPG": (
        lambda: run(CPG(environment=ENV), epochs=2),
        "CPG takes one update a batch: set train.epochs=1 and train.minibatches=1, or use cppo",
    ),
    "another dt": (
        lambda: require_same(LQ(dt=0.1), LQ(dt=0.2)),
        r"the agent's environment \(dt = 0.1, discount = 1\) is not that of the run \(dt = 0.2, discount = 1\)",
    ),
    "another discount": (lambda: require_same(LQ(discount=2.0), LQ()), r"discount = 2\) is not that of the run"),
    "an unknown agent": (lambda: make(Agent, Part("nft"), ENV), "'nft' is no agent: there are cpg, cppo"),
    "a value before any path": (
        lambda: CPG(environment=ENV).value({"critic": {}}),
        "the critic has seen no paths yet: train for an iteration first",
    ),
}


@pytest.mark.parametrize("name", MISTAKES)
def test_a_mistake_is_told_in_a_sentence(name: str) -> None:
    act, sentence = MISTAKES[name]
    with pytest.raises(GirsanovError, match=sentence):
        act()


def test_states_that_leave_the_numbers_are_told() -> None:
    """A slope of 1e8 makes the square of the state overflow within a few steps."""
    act = AffineActor(slope=((0.0,),)).build(ENV)
    with torch.no_grad():
        act.net.mean.weight.fill_(1e100)
    noise = torch.ones(2, 60, 2, dtype=torch.float64)
    with pytest.raises(GirsanovError, match=r"a state or reward is not finite at step \d+ \(time .*admissible policy"):
        simulate(ENV, act, torch.ones(2, 1, dtype=torch.float64), noise)


def test_equations_without_a_solution_are_told() -> None:
    """All states the same, and no ridge."""
    env = LQ(dt=0.1, start_std=0.0)
    still = Actor(lambda x: (torch.zeros_like(x), 1e-300 * torch.eye(1, dtype=x.dtype)), 1, 1)
    paths = simulate(env, still, torch.zeros(4, 1, dtype=torch.float64), torch.zeros(4, 5, 2, dtype=torch.float64))
    with pytest.raises(GirsanovError, match="the critic's equations cannot be solved: the states do not vary enough"):
        LeastSquares(equations=Equations(ridge=0.0)).fit(env, None, paths, {}, Turn(0, 0).reduce)


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        ({"method": {"kind": "cppo", "trust": "sqrt"}}, "'sqrt' is no trust region: did you mean sqrt-kl"),
        ({"method": {"kind": "cppo", "ratte": "td"}}, "method.ratte is no setting: did you mean rate"),
        ({"method": {"kind": "cppo", "rate": "tdd"}}, "'tdd' is no rate: did you mean td"),
        ({"environment": {"kind": "lq", "dt": -1}}, "dt must be greater than 0"),
        ({"environment": {"kind": "lq", "discount": 0}}, "discount must be greater than 0"),
        ({"actor": {"kind": "afine"}}, "did you mean affine"),
        ({"method": "nft"}, "'nft' is no agent"),
    ],
)
def test_mistakes_in_the_settings_of_a_recipe(settings: dict[str, Any], sentence: str) -> None:
    with pytest.raises(GirsanovError, match=sentence):
        configure(get_recipe("lq"), [settings])
