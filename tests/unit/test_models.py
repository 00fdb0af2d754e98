"""Models: what the network is given, what it must return, guidance."""

import pytest
import torch
from torch import Tensor

from girsanov.errors import GirsanovError
from girsanov.models import Guided, Model, has_velocity
from girsanov.processes import VP, RectifiedFlow, VPTable
from girsanov.types import Cond

FLOW = RectifiedFlow()


def sentence(action: object) -> str:
    with pytest.raises(GirsanovError) as error:
        action()
    return str(error.value)


def test_the_network_gets_one_time_a_sample_in_the_dtype_of_the_state() -> None:
    seen: list[Tensor] = []

    def net(x: Tensor, t: Tensor, cond: object) -> Tensor:
        seen.append(t)
        return x

    model = Model(net, VPTable.stable_diffusion(), "eps", (2,), time=lambda t: (t * 1000).round() - 1)
    x = torch.zeros(3, 2)
    model(x, torch.tensor(0.981, dtype=torch.float64))
    model(x, torch.tensor([0.001, 0.5, 1.0], dtype=torch.float64))
    assert [t.tolist() for t in seen] == [[980.0] * 3, [0.0, 499.0, 999.0]]
    assert all(t.dtype == torch.float32 for t in seen)


def test_autocast_is_for_the_network_alone() -> None:
    layer = torch.nn.Linear(2, 2)
    dtypes: list[torch.dtype] = []

    def net(x: Tensor, t: Tensor, cond: object) -> Tensor:
        out = layer(x)
        dtypes.append(out.dtype)
        return out

    model = Model(net, FLOW, "velocity", (2,), autocast=torch.bfloat16)
    assert model(torch.zeros(3, 2), torch.tensor(0.5)).dtype == torch.float32
    assert dtypes == [torch.bfloat16]


def test_wrong_input_and_output_are_told() -> None:
    good = Model(lambda x, t, c: x, FLOW, "velocity", (3, 8, 8))
    half = torch.tensor(0.5, dtype=torch.float64)
    assert sentence(lambda: good(torch.zeros(2, 3, 8, 9), half)) == (
        "the model works on samples of shape [3, 8, 8], got [3, 8, 9]"
    )
    assert sentence(lambda: good(torch.zeros(2, 3, 8, 8), half.repeat(3))) == (
        "3 times for 2 samples: give one time, or one per sample"
    )
    six = Model(lambda x, t, c: torch.cat([x, x], 1), FLOW, "velocity", (3, 8, 8))
    assert sentence(lambda: six(torch.zeros(2, 3, 8, 8), half)) == (
        "the network returned [2, 6, 8, 8] torch.float32 for a state of [2, 3, 8, 8] torch.float32: it must return one "
        "prediction of the same shape and dtype"
    )
    double = Model(lambda x, t, c: x.double(), FLOW, "velocity", (3,))
    assert sentence(lambda: double(torch.zeros(2, 3), half)) == (
        "the network returned [2, 3] torch.float64 for a state of [2, 3] torch.float32: it must return one "
        "prediction of the same shape and dtype"
    )


def test_guidance_is_one_batched_pass() -> None:
    """``p_null + w (p_cond - p_null)``, tables of different lengths; one call of twice the batch; w = 1 the model."""
    calls: list[int] = []

    def net(x: Tensor, t: Tensor, cond: Cond) -> Tensor:
        calls.append(len(x))
        return x * t[:, None] + cond["shift"][:, None]

    model = Model(net, FLOW, "velocity", (2,))
    table, negative = {"shift": torch.tensor([1.0, 2.0, 5.0])}, {"shift": torch.tensor([-1.0])}
    cond = Cond(table, torch.tensor([2, 0, 1]), Cond(negative, torch.zeros(3, dtype=torch.int64)))
    x, t = torch.ones(3, 2), torch.tensor([0.1, 0.5, 0.9])
    got = Guided(model, 4.0)(x, t, cond)
    assert calls == [6]
    shift = -1 + 4 * (torch.tensor([5.0, 1.0, 2.0]) + 1)
    assert torch.allclose(got, (t + shift)[:, None].expand(3, 2), atol=1e-5)
    assert torch.allclose(Guided(model, 1.0)(x, t, cond), model(x, t, cond), atol=1e-6)
    assert sentence(lambda: Guided(model, 4.0)(x, t, Cond(table, torch.tensor([2, 0, 1])))) == (
        "guidance needs conditions with a null branch: give Cond(..., null=...)"
    )


@pytest.mark.parametrize(
    ("process", "kind", "t", "finite"),
    [
        (FLOW, "velocity", 0.0, True),
        (FLOW, "x0", 0.0, False),
        (FLOW, "eps", 1.0, False),
        (VP(), "eps", 0.0, False),
        (VP(), "eps", 1.0, True),
        (VP(), "velocity", 0.5, True),
    ],
)
def test_where_a_velocity_exists(process: object, kind: str, t: float, finite: bool) -> None:
    model = Model(lambda x, t, c: x, process, kind, (2,))
    assert has_velocity(model, torch.tensor(t, dtype=torch.float64)) is finite


def test_the_clock_runs_in_float64_and_reaches_the_network_in_its_dtype():
    """``1000 t - 1`` at a table's times is a whole number to the bit, for one time and for one a sample, in float32."""
    seen = []

    def net(x, t, cond):
        seen.append(t)
        return x

    model = Model(net, RectifiedFlow(), "velocity", (2,), time=lambda t: 1000 * t - 1)
    index = torch.arange(1000, dtype=torch.float64)
    x = torch.zeros(1000, 2)
    model(x, (index + 1) / 1000)
    model(x[:3], torch.tensor(962 / 1000, dtype=torch.float64))
    assert seen[0].dtype == seen[1].dtype == torch.float32
    assert torch.equal(seen[0].double(), index) and seen[1].tolist() == [961.0] * 3


def test_a_model_may_bring_its_own_rule_of_guidance():
    """Here the larger of the two predictions, whatever the scale."""
    model = Model(
        lambda x, t, cond: cond["p"][:, None].expand_as(x), RectifiedFlow(), "velocity", (2,),
        guide=lambda p_cond, p_null, scale: torch.maximum(p_cond, p_null),
    )  # fmt: skip
    index = torch.arange(2)
    cond = Cond({"p": torch.tensor([1.0, -1.0])}, index, Cond({"p": torch.tensor([0.0])}, 0 * index))
    assert Guided(model, 3.0)(torch.zeros(2, 2), torch.tensor(0.5), cond)[:, 0].tolist() == [1.0, 0.0]
