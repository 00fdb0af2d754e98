"""Laws of the Gaussian kernel: densities, ratios in many dimensions, divergences, their gradients."""

import math

import pytest
import torch

from girsanov.errors import GirsanovError
from girsanov.kernels import Kernel
from girsanov.reductions import BLOCK, cross, square_distance
from girsanov.samplers import GDDIM, Euler
from tests.laws.cases import EVERY_PROCESS, F64, SOLID, normal, step

STD = torch.tensor(0.37, dtype=F64)
SHAPES = [(4, 3), (3, 3), (1, 1), (5, 2, 3, 4), (2, 300, 301), (70001, 2)]  # below, at and above a block, both ways
NO_DENSITY = (
    "a deterministic step has no density: use a stochastic sampler, for example GDDIM(eta=1.0), and leave out steps "
    "whose noise is zero (Trajectory.trainable lists the others)"
)


def make(shape: tuple[int, ...]) -> tuple[Kernel, torch.Tensor, torch.Tensor]:
    mean, old, x = (normal(*shape, seed=i) for i in (1, 2, 3))
    return Kernel(mean, STD, True), old, x


def reference(mean: torch.Tensor, x: torch.Tensor, std: float) -> torch.Tensor:
    return torch.distributions.Normal(mean, std).log_prob(x).flatten(1).sum(1)


def check_log_prob(shape: tuple[int, ...] = (5, 2, 3, 4)) -> None:
    """The log density is torch's, summed over the data; the mean divides it by d: relative 1e-12."""
    kernel, _, x = make(shape)
    expected = reference(kernel.mean, x, float(STD))
    assert torch.allclose(kernel.log_prob(x), expected, rtol=1e-12, atol=1e-9)
    assert torch.allclose(kernel.log_prob(x, "mean"), expected / kernel.mean[0].numel(), rtol=1e-12, atol=1e-9)


def check_log_ratio(shape: tuple[int, ...] = (5, 2, 3, 4)) -> None:
    """The ratio is the difference of two log densities, its gradients are theirs, and so is its mean: 1e-10."""
    kernel, old, x = make(shape)
    leaves = [t.requires_grad_(True) for t in (kernel.mean, old, x)]
    weights = normal(shape[0], seed=4)
    expected = reference(kernel.mean, x, float(STD)) - reference(old, x, float(STD))
    got = kernel.log_ratio(old, x)
    assert got.dtype == F64
    assert torch.allclose(got, expected, rtol=1e-10, atol=1e-8)
    assert torch.allclose(kernel.log_ratio(old, x, "mean"), expected / kernel.mean[0].numel(), rtol=1e-10, atol=1e-8)
    for a, b in zip(
        torch.autograd.grad((weights * got).sum(), leaves),
        torch.autograd.grad((weights * expected).sum(), leaves),
        strict=True,
    ):
        assert torch.allclose(a, b, rtol=1e-10, atol=1e-10)


def check_kl(shape: tuple[int, ...] = (5, 2, 3, 4)) -> None:
    """KL in closed form (torch's, summed), and the mean of the log-ratio over its own samples, exact for pairs +-z."""
    kernel, old, _ = make(shape)
    dist = torch.distributions
    expected = dist.kl_divergence(dist.Normal(kernel.mean, STD), dist.Normal(old, STD)).flatten(1).sum(1)
    assert torch.allclose(kernel.kl(old), expected, rtol=1e-12, atol=1e-9)
    assert torch.allclose(kernel.kl(old, "mean"), expected / kernel.mean[0].numel(), rtol=1e-12, atol=1e-9)
    z = normal(*shape, seed=5)
    pair = (kernel.log_ratio(old, kernel.sample(z)) + kernel.log_ratio(old, kernel.sample(-z))) / 2
    assert torch.allclose(pair, expected, rtol=1e-9, atol=1e-8)


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("law", [check_log_prob, check_log_ratio, check_kl], ids=lambda f: f.__name__)
def test_law(law: object, shape: tuple[int, ...]) -> None:
    law(shape)


def test_the_log_prob_is_the_density_of_what_was_sampled() -> None:
    """A step of a real sampler: the exponent of the drawn state's density is the noise it was drawn with, to 1e-10."""
    process = EVERY_PROCESS["vp"]
    kernel = GDDIM(1.0).kernel(SOLID.model(process), normal(6, 3), step(0.6, 0.5))[0]
    z = normal(6, 3, seed=1)
    logp = kernel.log_prob(kernel.sample(z))
    expected = -0.5 * (z**2).sum(1) - 3 * math.log(float(kernel.std)) - 1.5 * math.log(2 * math.pi)
    assert torch.allclose(logp, expected, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_the_ratio_is_zero_to_the_bit_at_equal_means(dtype: torch.dtype) -> None:
    mean, x = (normal(3, 4, 64, 64, seed=i).to(dtype) for i in (1, 2))
    ratio = Kernel(mean, STD, True).log_ratio(mean.clone(), x)
    assert torch.equal(ratio, torch.zeros(3, dtype=F64))


@pytest.mark.parametrize("size", [1e-2, 1e-3, 1e-4])
def test_a_small_ratio_in_many_dimensions_is_not_lost(size: float) -> None:
    """4 x 256 x 256 float32 latents: an error of at most 1e-6 against float64 arithmetic on the same numbers.

    The difference of two float32 log-probs is off by more than 1e-3 here, which is shown too.
    """
    shape, std = (4, 4, 256, 256), torch.tensor(0.2, dtype=F64)
    old, z, direction = (normal(*shape, seed=i).float() for i in (1, 2, 3))
    mean = old + direction * (size * 0.2 / math.sqrt(262144))  # a log-ratio of standard deviation ``size``
    x = old + 0.2 * z
    exact = reference(mean.double(), x.double(), 0.2) - reference(old.double(), x.double(), 0.2)
    got = Kernel(mean, std, True).log_ratio(old, x)
    assert float((got - exact).abs().max()) <= 1e-6
    naive = [(torch.distributions.Normal(m, 0.2).log_prob(x)).flatten(1).sum(1) for m in (mean, old)]
    assert float((naive[0].double() - naive[1].double() - exact).abs().max()) > 1e-3


def test_second_derivatives() -> None:
    """The written derivatives have derivatives: gradcheck and gradgradcheck in float64."""
    tensors = tuple(normal(2, 3, seed=i).requires_grad_(True) for i in (1, 2, 3))
    assert torch.autograd.gradcheck(cross, tensors) and torch.autograd.gradgradcheck(cross, tensors)
    assert torch.autograd.gradcheck(square_distance, tensors[:2])
    assert torch.autograd.gradgradcheck(square_distance, tensors[:2])


def test_blocks_add_up() -> None:
    """Sums over ragged blocks, and over transposed memory, are the plain float64 sums: relative 1e-12."""
    for rows, width in ((1, 2 * BLOCK + 17), (3, BLOCK - 1), (2 * BLOCK + 5, 1), (257, 300)):
        a, b = normal(width, rows, seed=1).mT, normal(rows, width, seed=2)
        assert torch.allclose(square_distance(a, b), ((a - b) ** 2).sum(1), rtol=1e-12, atol=0)


def test_shapes_are_not_broadcast() -> None:
    kernel, _, _ = make((3, 3))
    with pytest.raises(GirsanovError) as error:
        kernel.log_prob(torch.zeros(3, dtype=F64))
    assert str(error.value) == (
        "means and states must have one shape [B, *D], got [3], [3, 3]: broadcasting would mix samples"
    )


def test_a_deterministic_step_has_no_density() -> None:
    model, x = SOLID.model(EVERY_PROCESS["rectified-flow"]), normal(2, 3)
    last = GDDIM(1.0).kernel(model, x, step(0.1, 0.0))[0]
    mixed = Kernel(x, torch.tensor([0.3, 0.0], dtype=F64), True)
    for kernel in (Euler().kernel(model, x, step(0.5, 0.4))[0], last, mixed):
        for ask in (lambda k: k.log_prob(x), lambda k: k.log_ratio(x, x), lambda k: k.kl(x)):
            with pytest.raises(GirsanovError) as error:
                ask(kernel)
            assert str(error.value) == NO_DENSITY
    assert not last.stochastic and torch.equal(last.sample(None), last.mean)


def test_noise_of_another_shape_is_told() -> None:
    kernel, _, _ = make((4, 3))
    with pytest.raises(GirsanovError) as error:
        kernel.sample(torch.zeros(4))
    assert str(error.value) == "a stochastic step needs noise of shape [4, 3], got shape [4]"
    with pytest.raises(GirsanovError) as error:
        kernel.sample(None)
    assert str(error.value) == "a stochastic step needs noise of shape [4, 3], got nothing"


def test_a_kernel_without_a_prediction_says_so() -> None:
    with pytest.raises(GirsanovError) as error:
        _ = make((4, 3))[0].x0
    assert str(error.value) == "this kernel keeps no denoised prediction: ask a single-stage sampler for it"
