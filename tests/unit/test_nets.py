"""Networks: contract, gradients, conditioning; and the preconditioning that makes every prediction one target."""

import dataclasses

import pytest
import torch

from girsanov.errors import GirsanovError
from girsanov.nets import NETS, DiTConfig, MLPConfig, NetConfig, Preconditioned, UNetConfig
from girsanov.nets.precondition import clock, coefficients, time_of_clock
from girsanov.predictions import ROWS, row
from girsanov.processes import PROCESSES, VE, Process, RectifiedFlow, VPTable
from girsanov.types import Cond

SHAPE, CLASSES, VECTOR, B = (2, 4, 4), 3, 5, 6
SMALL = {
    "mlp": {"width": 16, "embed": 8, "blocks": 2},
    "dit": {"width": 16, "heads": 2, "blocks": 2},
    "unet": {"channels": (8, 16), "groups": 4, "embed": 8},
}
CONDITIONS = {
    "none": {},
    "classes": {"classes": CLASSES},
    "vector": {"vector": VECTOR},
    "both": {"classes": CLASSES, "vector": VECTOR},
}


def config(name: str, conditions: str) -> NetConfig:
    return NETS[name](shape=SHAPE, **SMALL[name], **CONDITIONS[conditions])


def randomised(net: torch.nn.Module, seed: int = 0) -> torch.nn.Module:
    """Every parameter drawn anew: the zeroed layers would hide everything before them."""
    g = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for p in net.parameters():
            p.copy_(0.3 * torch.randn(p.shape, generator=g, dtype=p.dtype))
    return net


def inputs(dtype: torch.dtype = torch.float64) -> tuple[torch.Tensor, torch.Tensor, Cond]:
    g = torch.Generator().manual_seed(1)
    x = torch.randn(B, *SHAPE, generator=g, dtype=dtype)
    t = torch.rand(B, generator=g, dtype=dtype)
    tables = {"label": torch.arange(CLASSES + 1), "vector": torch.randn(CLASSES + 1, VECTOR, generator=g, dtype=dtype)}
    return x, t, Cond(tables, torch.arange(B) % (CLASSES + 1))


ALL = [(n, c) for n in NETS for c in CONDITIONS]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16], ids=str)
@pytest.mark.parametrize(("name", "conditions"), ALL)
def test_prediction_has_the_shape_and_dtype_of_the_state(name: str, conditions: str, dtype: torch.dtype) -> None:
    net = randomised(config(name, conditions).build()).to(dtype)
    x, t, cond = inputs(dtype)
    p = net(x, t, cond)
    assert p.shape == x.shape and p.dtype == dtype
    assert bool(p.isfinite().all())


@pytest.mark.parametrize(("name", "conditions"), ALL)
def test_float64_is_not_rounded_on_the_way(name: str, conditions: str) -> None:
    """A hidden float32 would show as a difference quotient off by 1e-4 or more."""
    net = randomised(config(name, conditions).build()).double()
    x, t, cond = inputs()
    direction = torch.randn(x.shape, generator=torch.Generator().manual_seed(2), dtype=x.dtype)
    x.requires_grad_(True)
    (gradient,) = torch.autograd.grad(net(x, t, cond).square().sum(), x)
    h = 1e-6
    with torch.no_grad():
        up, down = (net(x + k * direction, t, cond).square().sum() for k in (h, -h))
    torch.testing.assert_close((gradient * direction).sum(), (up - down) / (2 * h), rtol=1e-7, atol=1e-7)


@pytest.mark.parametrize(("name", "conditions"), ALL)
def test_gradient_flows_to_every_parameter(name: str, conditions: str) -> None:
    net = randomised(config(name, conditions).build()).double()
    net(*inputs()).square().sum().backward()
    for parameter, p in net.named_parameters():
        assert p.grad is not None and bool((p.grad != 0).any()), parameter


@pytest.mark.parametrize(("name", "conditions"), ALL)
def test_samples_do_not_see_their_batch(name: str, conditions: str) -> None:
    net = randomised(config(name, conditions).build()).double()
    x, t, cond = inputs()
    index = torch.tensor([4, 1])
    torch.testing.assert_close(
        net(x[index], t[index], cond.take(index)), net(x, t, cond)[index], rtol=1e-12, atol=1e-12
    )


@pytest.mark.parametrize(("name", "conditions"), ALL)
def test_state_time_and_condition_matter(name: str, conditions: str) -> None:
    net = randomised(config(name, conditions).build()).double()
    x, t, cond = inputs()
    base, other = net(x, t, cond), Cond(cond.tables, (cond.index + 1) % (CLASSES + 1))
    assert not torch.allclose(net(x + 0.1, t, cond), base)
    assert not torch.allclose(net(x, t * 0.9, cond), base)
    assert torch.allclose(net(x, t, other), base) == (conditions == "none")


@pytest.mark.parametrize("name", NETS)
def test_no_condition_is_the_null_condition(name: str) -> None:
    net = randomised(config(name, "both").build()).double()
    x, t, _ = inputs()
    null = Cond({"label": torch.tensor([CLASSES]), "vector": torch.zeros(1, VECTOR)}, torch.zeros(B, dtype=torch.int64))
    torch.testing.assert_close(net(x, t, null), net(x, t, None), rtol=0, atol=0)


@pytest.mark.parametrize("name", NETS)
def test_a_fresh_network_predicts_zero_and_a_seed_fixes_it(name: str) -> None:
    before = torch.random.get_rng_state()
    first, again, other = (config(name, "both").build(seed) for seed in (3, 3, 4))
    assert torch.equal(torch.random.get_rng_state(), before)
    x, t, cond = inputs(torch.float32)
    assert not bool(first(x, t, cond).any())
    states = [torch.cat([p.flatten() for p in net.parameters()]) for net in (first, again, other)]
    assert torch.equal(states[0], states[1]) and not torch.equal(states[0], states[2])


def test_dit_patches_keep_every_pixel_in_place() -> None:
    net = DiTConfig(shape=(3, 4, 6), patch=2, width=8, heads=2).build()
    x = torch.arange(2 * 3 * 4 * 6, dtype=torch.float32).reshape(2, 3, 4, 6)
    tokens = net._patches(x)
    assert torch.equal(net._image(tokens), x)
    assert torch.equal(
        tokens[1, 1], x[1, :, 0:2, 2:4].flatten()
    )  # the second token is the second patch of the first row


@pytest.mark.parametrize(
    ("make", "sentence"),
    [
        (lambda: MLPConfig(shape=()), "MLPConfig.shape must have at least 1 item, not ()"),
        (lambda: MLPConfig(shape=(2,), width=0), "MLPConfig.width must be greater than or equal to 1, not 0"),
        (lambda: MLPConfig(shape=(2,), embed=9), "MLPConfig.embed must be a multiple of 2, not 9"),
        (
            lambda: DiTConfig(shape=(1, 8, 8), patch=3),
            "a DiT works on images [C, H, W] whose sides are multiples of its patch of 3, not on [1, 8, 8]",
        ),
        (
            lambda: UNetConfig(shape=(1, 9, 8)),
            "a UNet of 2 levels works on images [C, H, W] with sides divisible by 2, not on [1, 9, 8]",
        ),
    ],
)
def test_bad_sizes_are_refused_with_a_sentence(make, sentence: str) -> None:
    with pytest.raises(GirsanovError) as error:
        make()
    assert str(error.value) == sentence


def test_labels_out_of_range_are_refused() -> None:
    net = config("mlp", "classes").build()
    x, t, cond = inputs(torch.float32)
    far = Cond({"label": torch.tensor([CLASSES + 1])}, torch.zeros(B, dtype=torch.int64))
    with pytest.raises(GirsanovError, match="labels run from 0 to 2, and 3 is the null class: got 4 to 4"):
        net(x, t, far)
    with pytest.raises(GirsanovError, match="no condition is called 'label'"):
        net(x, t, Cond({"text": cond["vector"]}, cond.index))


# ------------------------------------------------------------------------------------------------ preconditioning


def processes() -> dict[str, Process]:
    table = VPTable(torch.linspace(0.98, 0.02, 20, dtype=torch.float64).tolist())
    return {name: table if name == "vp-table" else made() for name, made in PROCESSES.items()}


@pytest.mark.parametrize("prediction", ROWS)
@pytest.mark.parametrize("name", PROCESSES)
def test_every_kind_and_process_has_one_target(name: str, prediction: str) -> None:
    """``c_skip x + c_out (cos eps - sin x0 / s)`` is the prediction, to rounding; and the input has unit scale."""
    process, s = processes()[name], 0.7
    g = torch.Generator().manual_seed(0)
    u = torch.linspace(0.05, 0.9, 9, dtype=torch.float64)
    t = time_of_clock(u, process, s)
    c = process(t)
    x0, eps = (torch.randn(9, generator=g, dtype=torch.float64) for _ in range(2))
    theta = torch.atan2(c.sigma, c.alpha * s)
    x = c.alpha * x0 + c.sigma * eps
    a, b = row(c, prediction)
    c_in, c_skip, c_out = coefficients(c, prediction, s)
    target = torch.cos(theta) * eps - torch.sin(theta) * x0 / s
    torch.testing.assert_close(c_skip * x + c_out * target, a * x0 + b * eps, rtol=1e-10, atol=1e-10)
    torch.testing.assert_close(c_in * x, torch.cos(theta) * x0 / s + torch.sin(theta) * eps, rtol=1e-10, atol=1e-10)
    inside = t < 1
    torch.testing.assert_close(clock(c, s)[inside], u[inside], rtol=1e-9, atol=1e-9)


def test_x0_and_ve_give_the_coefficients_of_edm() -> None:
    s, sigma = 0.5, torch.tensor([0.1, 1.0, 30.0], dtype=torch.float64)
    c_in, c_skip, c_out = coefficients(VE(80.0)(sigma / 80), "x0", s)
    torch.testing.assert_close(c_in, (s**2 + sigma**2).rsqrt())
    torch.testing.assert_close(c_skip, s**2 / (s**2 + sigma**2))
    torch.testing.assert_close(-c_out, sigma * s / (s**2 + sigma**2).sqrt())


@pytest.mark.parametrize("prediction", ["x0", "eps", "velocity", "v"])
@pytest.mark.parametrize("name", PROCESSES)
def test_the_wrapper_is_finite_at_both_ends(name: str, prediction: str) -> None:
    process = processes()[name]
    if name == "vp" and prediction == "velocity":
        pytest.skip("the velocity of the linear-beta process is infinite at t = 0 (see processes.VP)")
    net = Preconditioned(randomised(config("mlp", "none").build()), process, prediction, 0.5).double()
    x = torch.randn(2, *SHAPE, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    assert bool(net(x, torch.tensor([0.0, 1.0], dtype=torch.float64)).isfinite().all())


def test_a_configuration_is_frozen_and_its_network_knows_it() -> None:
    made = MLPConfig(shape=[2, 3])
    assert made.shape == (2, 3) and made.build().config == made
    with pytest.raises(dataclasses.FrozenInstanceError):
        made.width = 3
    with pytest.raises(GirsanovError, match="the standard deviation of the data must be positive, not 0"):
        Preconditioned(made.build(), RectifiedFlow(), "x0", 0.0)
