"""Pretraining reaches the law of its data for every process and prediction; the loss is one number for all of them."""

import pytest
import torch

from girsanov.errors import GirsanovError
from girsanov.grids import Grid
from girsanov.models import Model
from girsanov.nets import MLPConfig
from girsanov.noise import Noise
from girsanov.predictions import ROWS
from girsanov.pretrain import Dataset, PretrainConfig, draw, make_model, pretrain
from girsanov.processes import PROCESSES, VE, Process, RectifiedFlow, VPTable
from girsanov.rollout import rollout
from girsanov.samplers import GDDIM
from girsanov.types import Cond

MEAN = torch.tensor([0.8, -0.3])
COV = torch.tensor([[0.9, 0.5], [0.5, 0.6]])


def gaussian(n: int = 4096, seed: int = 0) -> Dataset:
    """Points whose sample mean and covariance are MEAN and COV to rounding."""
    z = torch.randn(n, 2, generator=torch.Generator().manual_seed(seed))
    z = z - z.mean(0)
    z = z @ torch.linalg.inv(torch.linalg.cholesky(z.T @ z / n)).T
    return Dataset(MEAN + z @ torch.linalg.cholesky(COV).T)


def process(name: str) -> Process:
    if name == "vp-table":
        return VPTable.stable_diffusion(100, beta_start=0.0085, beta_end=0.12)
    return VE(20.0) if name == "ve" else PROCESSES[name]()


def small(classes: int = 0) -> torch.nn.Module:
    return MLPConfig(shape=(2,), width=48, embed=32, blocks=2, classes=classes).build(0)


def sample(model: Model, n: int, cond: Cond | None = None) -> torch.Tensor:
    """DDIM on 40 steps of equal length in the clock of the signal-to-noise ratio."""
    u = torch.linspace(0.995, 0.02, 40, dtype=torch.float64)
    ts = model.process.time_of_rho(torch.tan(u * torch.pi / 2)).clamp(max=0.9999).unique().flip(0)
    z = Noise(1, 0, torch.arange(n))(torch.empty(n, 2))
    with torch.no_grad():
        x_T = model.process.prior(z)
        return rollout(model, GDDIM(eta=0.0), Grid([*ts.tolist(), 0.0]), x_T, cond, keep=()).x0


@pytest.mark.parametrize("prediction", ROWS)
@pytest.mark.parametrize("name", PROCESSES)
def test_pretraining_reaches_the_law_of_a_gaussian(name: str, prediction: str) -> None:
    """150 steps of 128; 4,000 samples (standard error of a mean .015): tolerance .08 on means, .1 on covariances."""
    data = gaussian()
    settings = PretrainConfig(iterations=150, batch=128, lr=4e-3, ema=0.97)
    model = pretrain(make_model(small(), process(name), prediction, data), data, settings, progress=False)
    x = sample(model, 4000)
    torch.testing.assert_close(x.mean(0), MEAN, rtol=0, atol=0.08)
    torch.testing.assert_close(torch.cov(x.T), COV, rtol=0, atol=0.1)


@pytest.mark.parametrize("name", PROCESSES)
def test_the_loss_is_one_number_for_every_kind(name: str) -> None:
    """Same seed, float64: losses of the first ten steps agree to 1e-6 over all kinds of prediction."""
    data = gaussian().to("cpu", torch.float64)
    curves = []
    for prediction in ROWS:
        losses: list[float] = []
        model = make_model(small().double(), process(name), prediction, data)
        settings = PretrainConfig(iterations=10, batch=64)
        pretrain(model, data, settings, progress=False, on_step=lambda i, loss, losses=losses: losses.append(loss))
        curves.append(losses)
    for curve in curves[1:]:
        assert curve == pytest.approx(curves[0], rel=1e-6)


def test_a_seed_fixes_the_weights() -> None:
    data = gaussian(256)

    def weights(seed: int) -> torch.Tensor:
        model = make_model(small(), RectifiedFlow(), "velocity", data)
        made = pretrain(model, data, PretrainConfig(iterations=5, batch=32, seed=seed), progress=False)
        return torch.cat([p.detach().flatten() for p in made.net.parameters()])

    assert torch.equal(weights(0), weights(0))
    assert not torch.equal(weights(0), weights(1))


def test_classes_and_the_null_class_learn_their_own_laws() -> None:
    """Two classes at -1 and 1, sd .2: conditional means to .1, and the null class gives the mixture."""
    n = 2048
    labels = torch.arange(n) % 2
    x0 = (2.0 * labels - 1)[:, None] + 0.2 * torch.randn(n, 2, generator=torch.Generator().manual_seed(0))
    cond = two_classes(labels)
    data = Dataset(x0, cond)
    settings = PretrainConfig(iterations=500, batch=256, lr=4e-3, ema=0.98, dropout=0.3)
    model = pretrain(make_model(small(classes=2), RectifiedFlow(), "velocity", data), data, settings, progress=False)
    x = sample(model, 2000, two_classes(torch.arange(2000) % 2))
    assert x[0::2].mean(0).tolist() == pytest.approx([-1, -1], abs=0.1)
    assert x[1::2].mean(0).tolist() == pytest.approx([1, 1], abs=0.1)
    assert x[1::2].std(0).tolist() == pytest.approx([0.2, 0.2], abs=0.06)
    null = sample(model, 2000)
    assert float((null[:, 0] > 0).float().mean()) == pytest.approx(0.5, abs=0.1)
    assert float(null.abs().mean()) == pytest.approx(1.0, abs=0.12)


def two_classes(labels: torch.Tensor) -> Cond:
    return Cond({"label": torch.arange(2)}, labels, Cond({"label": torch.tensor([2])}, torch.zeros_like(labels)))


def test_conditions_are_dropped_with_their_probability() -> None:
    """20,000 draws at .3: the share of null labels within four standard errors (.013)."""
    labels = torch.arange(100) % 2
    data = Dataset(labels[:, None].float(), two_classes(labels))
    x0, cond = draw(data, 20_000, 0.3, torch.Generator().manual_seed(0))
    label = cond["label"]
    assert float((label == 2).float().mean()) == pytest.approx(0.3, abs=0.013)
    kept = label != 2
    assert torch.equal(label[kept], x0[kept, 0].long())


def test_the_average_of_the_weights_is_what_comes_back() -> None:
    """One step with decay d: the average is ``w_0 + (1 - d)(w_1 - w_0)`` with d = min(ema, 1/10)."""
    data = gaussian(64)

    def run(ema: float) -> tuple[torch.Tensor, torch.Tensor]:
        model = make_model(small(), RectifiedFlow(), "v", data)
        before = torch.cat([p.detach().clone().flatten() for p in model.net.parameters()])
        pretrain(model, data, PretrainConfig(iterations=1, batch=16, ema=ema), progress=False)
        return before, torch.cat([p.detach().flatten() for p in model.net.parameters()])

    before, last = run(0.0)
    _, average = run(0.9)
    assert not torch.equal(before, last)
    torch.testing.assert_close(average, before + 0.9 * (last - before), rtol=1e-6, atol=1e-7)


def test_bad_data_and_settings_are_refused() -> None:
    labels = torch.zeros(4, dtype=torch.int64)
    cases = [
        (lambda: Dataset(torch.full((4, 2), torch.nan)), "data is a finite floating tensor [N, *D]"),
        (lambda: Dataset(torch.zeros(5, 2), two_classes(labels)), "4 conditions for 5 samples"),
        (lambda: PretrainConfig(iterations=0), "PretrainConfig.iterations must be greater than or equal to 1, not 0"),
        (lambda: PretrainConfig(ema=1.0), "PretrainConfig.ema must be less than 1, not 1.0"),
    ]
    for make, start in cases:
        with pytest.raises(GirsanovError) as error:
            make()
        assert str(error.value).startswith(start)
    data = Dataset(torch.randn(4, 2), Cond({"label": torch.arange(2)}, labels))
    model = make_model(small(2), RectifiedFlow(), "velocity", data)
    with pytest.raises(GirsanovError, match="dropping conditions needs their null branch"):
        pretrain(model, data, PretrainConfig(iterations=1), progress=False)
    model = make_model(small(), RectifiedFlow(), "velocity", gaussian(64))
    with pytest.raises(GirsanovError, match="the loss of pretraining is .* at iteration 1: lower lr"):
        pretrain(model, gaussian(64), PretrainConfig(iterations=2, lr=1e30), progress=False)
