"""Environments as parts and as things that refuse bad input in a sentence."""

import copy
import pickle
import re
from typing import Any

import pytest
import torch

from girsanov.config import Part, make
from girsanov.config.parts import construct, describe, members
from girsanov.control import ENVIRONMENTS, LQ, Environment
from girsanov.control.environments import DoubleWell, Pairs, Portfolio, VectorLQ
from girsanov.errors import GirsanovError


@pytest.mark.parametrize("name", ENVIRONMENTS)
def test_an_environment_is_a_part(name: str) -> None:
    env = ENVIRONMENTS[name](discount=0.8, dt=0.01)
    data = describe(env)
    assert data["kind"] == name and data["discount"] == 0.8
    assert construct(Environment, data) == env
    assert make(Environment, Part(name, {"dt": 0.2})).dt == 0.2
    assert members(Environment)[name] is ENVIRONMENTS[name]


REFUSED: list[tuple[str, dict[str, Any], str]] = [
    *((name, {"dt": 0.0}, "dt must be greater than 0, not 0") for name in ENVIRONMENTS),
    *((name, {"discount": -1.0}, "discount must be greater than 0, not -1") for name in ENVIRONMENTS),
    *((name, {"entropy": 0.0}, "entropy must be greater than 0, not 0") for name in ENVIRONMENTS),
    *((name, {"dt": float("nan")}, "dt must be") for name in ENVIRONMENTS),
    *((name, {"disocunt": 1.0}, "disocunt is no setting: did you mean discount?") for name in ENVIRONMENTS),
    ("lq", {"A": 5.0, "B": 0.0}, "no feedback was found that keeps the growth of the state's second moment below it"),
    ("lq", {"A": float("inf")}, "A must be a finite number"),
    ("lq", {"N": -1.0}, "N - sum_j D_j' K D_j, the cost of the action less what its noise gains"),
    ("lq", {"A": -30.0, "B": 0.05, "dt": 0.2}, "the value in steps of dt = 0.2 does not exist at discount 1"),
    ("lq", {"M": 0.1, "R": -4.0, "B": 1.0, "D": 0.0}, "[[M, R'], [R, N]]"),
    ("lq-nd", {"B": ((0.0,),)}, "the shape of B is [1, 1] and must be [2, 1]: there are 2 states (rows of A)"),
    ("lq-nd", {"A": ((0.0, 1.0), (0.0,))}, "the rows of A are not equally long"),
    ("lq-nd", {"M": ((1.0, 0.5), (0.0, 1.0))}, "the matrix M must be symmetric"),
    ("lq-nd", {"A": ((1.0, 0.0), (0.0, 1.0))}, "the value does not exist at discount 0.5"),
    ("pairs", {"speed": 0.0}, "speed must be greater than 0"),
    ("pairs", {"correlation": 1.5}, "correlation must be between -1 and 1, not 1.5"),
    ("portfolio", {"excess": (0.1,)}, "1 assets need 1 equally long rows of volatility"),
    ("portfolio", {"volatility": ((0.2, 0.2), (0.2, 0.2))}, "covariance L L' of the assets must be positive definite"),
    ("double-well", {"cost": 0.0}, "cost must be greater than 0"),
    ("mountain-car", {"friction": -0.1}, "friction must be greater than or equal to 0"),
]


@pytest.mark.parametrize(("name", "parameters", "message"), REFUSED)
def test_bad_parameters_are_refused_in_a_sentence(name: str, parameters: dict[str, Any], message: str) -> None:
    with pytest.raises(GirsanovError, match=re.escape(message)):
        ENVIRONMENTS[name](**parameters)


def test_bad_states_and_actions_are_refused_in_a_sentence() -> None:
    env = VectorLQ()
    x, a = torch.zeros(3, 2), torch.zeros(3, 1)
    env.check(x, a)
    bad = a.clone()
    bad[1] = float("nan")
    for states, actions, message in (
        (x, bad, "the actions hold NaN or infinite numbers: the policy has diverged"),
        (x + float("inf"), a, "the states hold NaN or infinite numbers"),
        (x, torch.zeros(3, 2), "actions of shape [3, 2] do not fit: they are [B, 1] here"),
        (x[:, :1], a, "states of shape [3, 1] do not fit: they are [B, 2] here"),
        (x, a[:2], "3 states and 2 actions: give one action for each state"),
    ):
        with pytest.raises(GirsanovError, match=re.escape(message)):
            env.check(states, actions)


def test_policies_without_a_value_are_refused() -> None:
    env = Pairs()
    affine = env.solution().affine
    with pytest.raises(GirsanovError, match="only a policy that does not look at the wealth"):
        env.solution().evaluate(type(affine)(affine.slope + 1, affine.offset, affine.covariance))
    folio = Portfolio().solution()
    with pytest.raises(GirsanovError, match="symmetric and positive definite"):
        folio.evaluate(folio.mean, -folio.covariance)


def test_an_environment_whose_answer_is_known_can_be_copied_and_stored() -> None:
    for env in (LQ(), DoubleWell()):
        x = torch.tensor([[0.3]])
        value = env.solution().value(x)
        for again in (copy.deepcopy(env), pickle.loads(pickle.dumps(env))):
            assert again == env and torch.equal(again.solution().value(x), value)


def test_answers_have_the_dtype_of_the_question() -> None:
    for name, cls in ENVIRONMENTS.items():
        if name == "mountain-car":
            continue  # its reference takes seconds
        env = cls()
        x = env.start(4)
        mean, covariance = env.solution().policy(x)
        found = (env.solution().value(x), env.solution().gradient(x), env.solution().q(x, mean), mean, covariance)
        assert {v.dtype for v in found} == {torch.float32}, name
        assert [tuple(v.shape) for v in found] == [
            (4,),
            (4, env.state_dim),
            (4,),
            (4, env.action_dim),
            (4, env.action_dim, env.action_dim),
        ]
    assert LQ().solution() is not LQ().solution()
    env = LQ()
    assert env.solution() is env.solution() and env.chain() is env.chain()
