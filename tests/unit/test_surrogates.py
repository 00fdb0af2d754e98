"""Surrogates: values, gradients, where they are silent, and that nothing is ever NaN."""

import pytest
import torch

from girsanov.errors import GirsanovError
from girsanov.surrogates import SURROGATES, Clip, Hinge, ScoreFunction, TrustMask

F64 = torch.float64


def run(surrogate: object, log_ratio: list[float], advantage: list[float], divergence: float = 1.0) -> tuple:
    x = torch.tensor(log_ratio, dtype=F64).unsqueeze(1).requires_grad_(True)
    a, mask = torch.tensor(advantage, dtype=F64), torch.ones(len(advantage), dtype=torch.bool)
    loss, silent = surrogate(x, a, mask, torch.full_like(x, divergence))
    (slope,) = torch.autograd.grad(loss.sum(), x)
    return loss.detach().squeeze(1), slope.squeeze(1), float(silent)


def test_the_clip_is_the_published_formula() -> None:
    rho = torch.tensor([0.7, 0.9, 1.0, 1.1, 1.5, 0.7, 1.5], dtype=F64)
    a = torch.tensor([1.0, 1.0, -2.0, 1.0, 1.0, -1.0, -1.0], dtype=F64)
    loss, slope, silent = run(Clip(0.2), rho.log().tolist(), a.tolist())
    want = -torch.minimum(rho * a, rho.clamp(0.8, 1.2) * a)
    torch.testing.assert_close(loss, want)
    # Silent: rho = 1.5 with A > 0 and rho = 0.7 with A < 0, no other term beyond the range.
    assert silent == pytest.approx(2 / 7) and (slope == 0).tolist() == [False] * 4 + [True, True, False]


def test_the_clip_fraction_respects_the_sign_of_the_advantage() -> None:
    """Ratios beyond the range count only where the clip bites: half of them, for advantages of either sign."""
    g = torch.Generator().manual_seed(0)
    log_ratio, a = 0.3 * torch.randn(4000, generator=g, dtype=F64), torch.randn(4000, generator=g, dtype=F64)
    _, slope, silent = run(Clip(0.2), log_ratio.tolist(), a.tolist())
    beyond = ((log_ratio.exp() - 1).abs() > 0.2).double().mean()
    assert silent == pytest.approx(float((slope == 0).double().mean()), abs=1e-12)
    assert silent == pytest.approx(float(beyond) / 2, rel=0.1)


def test_an_upper_range_of_its_own() -> None:
    _, slope, _ = run(Clip(0.1, 0.4), [0.3, -0.3, 0.3], [1.0, -1.0, -1.0])
    assert (slope == 0).tolist() == [False, True, False]


def test_the_hinge_is_silent_where_the_clip_is_for_small_log_ratios() -> None:
    g = torch.Generator().manual_seed(1)
    log_ratio, a = 1e-3 * torch.randn(2000, generator=g, dtype=F64), torch.randn(2000, generator=g, dtype=F64)
    clip, hinge = (run(s, log_ratio.tolist(), a.tolist())[1] == 0 for s in (Clip(1e-3), Hinge(1e-3)))
    assert float((clip != hinge).double().mean()) < 1e-3 and 0.1 < float(hinge.double().mean()) < 0.9


def test_the_trust_mask_drops_what_leaves_the_region_and_keeps_what_returns() -> None:
    inside = run(TrustMask(0.5), [0.1, -0.1, 0.1, -0.1], [1.0, -1.0, -1.0, 1.0], divergence=0.4)
    outside = run(TrustMask(0.5), [0.1, -0.1, 0.1, -0.1], [1.0, -1.0, -1.0, 1.0], divergence=0.5)
    assert inside[2] == 0 and (outside[1] == 0).tolist() == [True, True, False, False] and outside[2] == 0.5


@pytest.mark.parametrize("name", SURROGATES)
def test_the_gradient_at_ratio_1_is_minus_the_advantage(name: str) -> None:
    a = [2.0, -3.0, 0.5]
    _, slope, silent = run(SURROGATES[name](), [0.0] * 3, a, divergence=0.0)
    torch.testing.assert_close(slope, -torch.tensor(a, dtype=F64), rtol=1e-14, atol=0)
    assert silent == 0


@pytest.mark.parametrize("name", SURROGATES)
def test_extreme_ratios_give_no_nan(name: str) -> None:
    loss, slope, _ = run(SURROGATES[name](), [1e6, -1e6, 1e6, -1e6, 800.0], [1.0, 1.0, -1.0, -1.0, 0.0])
    assert bool(loss.isfinite().all()) and bool(slope.isfinite().all())


@pytest.mark.parametrize("name", SURROGATES)
def test_what_is_masked_has_no_loss_and_no_gradient_and_does_not_count(name: str) -> None:
    x = torch.full((2, 3), 0.5, dtype=F64, requires_grad=True)
    mask = torch.tensor([[True, False, True], [False, False, False]])
    loss, silent = SURROGATES[name]()(x, torch.ones(2, 3), mask, torch.ones(2, 3, dtype=F64))
    (slope,) = torch.autograd.grad(loss.sum(), x)
    assert bool((loss[~mask] == 0).all()) and bool((slope[~mask] == 0).all())
    assert float(silent) in (0.0, 1.0)


def test_one_advantage_serves_all_steps() -> None:
    x = torch.zeros(2, 3, dtype=F64)
    loss, _ = ScoreFunction()(x + 0.1, torch.tensor([1.0, -2.0]), torch.tensor([True, True]))
    torch.testing.assert_close(loss, torch.tensor([[-0.1] * 3, [0.2] * 3], dtype=F64))


@pytest.mark.parametrize(
    ("call", "sentence"),
    [
        (
            lambda: Clip()(torch.zeros(3), torch.zeros(3), torch.ones(3, dtype=torch.bool)),
            "a surrogate takes log-ratios [B, K], not [3]",
        ),
        (
            lambda: Clip()(torch.zeros(3, 2), torch.zeros(4), torch.ones(3, dtype=torch.bool)),
            "advantage and mask have shape [B] or [B, K] of the ratios [3, 2], got [4]",
        ),
        (
            lambda: TrustMask()(torch.zeros(3, 1), torch.zeros(3), torch.ones(3, dtype=torch.bool)),
            "TrustMask needs the divergence of each term: pass divergence=KL [B, K]",
        ),
        (lambda: Clip(-0.1), "a clip range must be positive, not -0.1 and -0.1"),
        (lambda: Hinge(0.0), "a hinge needs a positive range, not 0.0"),
        (lambda: TrustMask(0.0), "a trust region needs a positive size, not 0.0"),
    ],
)
def test_errors_say_what_to_do(call: object, sentence: str) -> None:
    with pytest.raises(GirsanovError) as error:
        call()
    assert str(error.value) == sentence
