r"""Pretraining: denoising (flow matching) for any process and any kind of prediction.

.. math:: L = E \left[ \frac{\| p_\theta(x_t, t, c) - (a_t x_0 + b_t \epsilon) \|^2}{d\, c_{out}(t)^2} \right], \qquad
    x_t = \alpha_t x_0 + \sigma_t \epsilon

The target is the model's row of the prediction table. The weight ``1 / c_out^2`` (nets/precondition.py) makes the loss
the same number for every kind and every process: for unit data it is the "SNR + 1" weighting of x0, the plain loss of
v and, up to a bounded factor, that of the velocity of a rectified flow. Times are uniform in the angle ``atan(sigma /
(alpha s))`` and stratified over the batch. With probability ``dropout`` a sample's condition is replaced by its null
condition, for classifier-free guidance. The result carries the moving average of the weights.

References: Ho et al. 2020, arXiv:2006.11239; Lipman et al. 2023, arXiv:2210.02747; Salimans & Ho 2022,
arXiv:2202.00512, section 4; Karras et al. 2022, arXiv:2206.00364, Eq. 8.
"""

import dataclasses
import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from tqdm import tqdm

from girsanov.errors import GirsanovError
from girsanov.models import Model
from girsanov.nets.precondition import Preconditioned, coefficients, time_of_clock
from girsanov.noise import generator
from girsanov.predictions import Prediction, row, scale
from girsanov.processes import Process
from girsanov.settings import Count, Decay, Natural, NonNegative, Positive, settings
from girsanov.types import Cond


@dataclass(frozen=True)
class Dataset:
    """Data in memory.

    Attributes:
        x0: [N, *D].
        cond: conditions of the N samples, with a null branch if they are to be dropped; None for unconditional data.
    """

    x0: Tensor
    cond: Cond | None = None

    def __post_init__(self) -> None:
        if (
            self.x0.ndim < 2
            or not len(self.x0)
            or not self.x0.is_floating_point()
            or not bool(self.x0.isfinite().all())
        ):
            raise GirsanovError(
                f"data is a finite floating tensor [N, *D], got {self.x0.dtype} of shape {list(self.x0.shape)}"
            )
        if self.cond is not None and len(self.cond) != len(self.x0):
            raise GirsanovError(f"{len(self.cond)} conditions for {len(self.x0)} samples: give one condition a sample")

    def __len__(self) -> int:
        return len(self.x0)

    @property
    def std(self) -> float:
        """Standard deviation over all entries."""
        return float(self.x0.double().std())

    def to(self, device: torch.device | str, dtype: torch.dtype | None = None) -> "Dataset":
        """The same data on a device, in a dtype."""
        return Dataset(self.x0.to(device, dtype), None if self.cond is None else self.cond.to(device))


@settings
class PretrainConfig:
    """Settings of pretraining.

    Attributes:
        iterations, batch: optimiser steps and samples of each.
        lr: highest learning rate; rises linearly over the first twentieth, then falls as a cosine to 0.
        weight_decay, clip: AdamW's decay and the largest norm of the gradient.
        ema: decay of the moving average of the weights (shorter during the first steps).
        dropout: probability of the null condition.
        seed: of data order, times, noise and dropout.
    """

    iterations: Count = 1000
    batch: Count = 256
    lr: Positive = 2e-3
    weight_decay: NonNegative = 0.0
    clip: Positive = 1.0
    ema: Decay = 0.995
    dropout: Decay = 0.1
    seed: Natural = 0

    def lr_at(self, i: int) -> float:
        """The learning rate of step i."""
        warmup = max(1, self.iterations // 20)
        if i < warmup:
            return self.lr * (i + 1) / warmup
        return 0.5 * self.lr * (1 + math.cos(math.pi * (i - warmup) / max(1, self.iterations - warmup)))


def make_model(net: nn.Module, process: Process, prediction: Prediction, data: Dataset) -> Model:
    """An untrained model of the data: the network inside the preconditioning of this process and prediction."""
    wrapped = Preconditioned(net, process, prediction, data.std)
    return Model(wrapped, process, prediction, tuple(data.x0.shape[1:]))


def pretrain(
    model: Model,
    data: Dataset,
    config: PretrainConfig | None = None,
    *,
    progress: bool = True,
    on_step: Callable[[int, float], None] | None = None,
) -> Model:
    """Trains the model's network in place and returns the model with the moving average of the weights.

    Deterministic on one device: the same network, data and configuration give the same weights.

    Args:
        model: of any process and prediction; ``make_model`` makes one whose network learns well for all of them.
        data: on the device and in the dtype of the network.
        config: settings, PretrainConfig() by default.
        progress: show a progress bar.
        on_step: called with the step and its loss; reading the loss waits for the device.

    Raises:
        GirsanovError: the network is not a module, dropout without null conditions, or a loss that is not finite.
    """
    config = config or PretrainConfig()
    net = model.net
    if not isinstance(net, nn.Module):
        raise GirsanovError("pretraining trains a torch.nn.Module: give Model(net=module, ...)")
    if config.dropout and data.cond is not None and data.cond.null is None:
        raise GirsanovError("dropping conditions needs their null branch: give Cond(..., null=...) or dropout=0")
    params = [p for p in net.parameters() if p.requires_grad]
    optimiser = torch.optim.AdamW(params, lr=config.lr, weight_decay=config.weight_decay, foreach=True)
    average = [p.detach().clone() for p in params]
    random = generator((config.seed, 0))
    std = data.std
    with tqdm(range(config.iterations), "pretraining", disable=not progress, unit="it", mininterval=0.5) as bar:
        for i in bar:
            for group in optimiser.param_groups:
                group["lr"] = config.lr_at(i)
            optimiser.zero_grad(set_to_none=True)
            loss = _loss(model, *draw(data, config.batch, config.dropout, random), std, random)
            loss.backward()
            nn.utils.clip_grad_norm_(params, config.clip)
            optimiser.step()
            with torch.no_grad():
                torch._foreach_lerp_(average, list[Tensor](params), 1 - min(config.ema, (1 + i) / (10 + i)))
            if on_step is not None:
                on_step(i, float(loss.detach()))
            if i % 50 == 0 or i + 1 == config.iterations:
                _check(float(loss.detach()), i)
                bar.set_postfix(loss=f"{float(loss.detach()):.4f}", refresh=False)
    with torch.no_grad():
        for p, mean in zip(params, average, strict=True):
            p.copy_(mean)
    return dataclasses.replace(model)


def _check(loss: float, i: int) -> None:
    if not math.isfinite(loss):
        raise GirsanovError(
            f"the loss of pretraining is {loss} at iteration {i}: lower lr, or look at the scale of the data"
        )


def draw(data: Dataset, batch: int, dropout: float, random: torch.Generator) -> tuple[Tensor, Cond | None]:
    """A batch of data with its conditions, some of them replaced by the null condition: x0 [B, *D] and Cond."""
    index = torch.randint(len(data), (batch,), generator=random).to(data.x0.device)
    if data.cond is None:
        return data.x0[index], None
    cond = data.cond.take(index)
    if not dropout or cond.null is None:
        return data.x0[index], cond
    dropped = (torch.rand(batch, generator=random) < dropout).to(cond.index.device)
    tables, null = cond.with_null_rows()
    return data.x0[index], Cond(tables, torch.where(dropped, null, cond.index))


def _loss(model: Model, x0: Tensor, cond: Cond | None, data_std: float, random: torch.Generator) -> Tensor:
    """The weighted denoising error of a batch, a scalar."""
    batch = len(x0)
    u = (torch.arange(batch, dtype=torch.float64) + torch.rand(batch, generator=random, dtype=torch.float64)) / batch
    t = time_of_clock(u.clamp(1e-3, 1 - 1e-3), model.process, data_std).to(x0)
    eps = torch.randn(x0.shape, generator=random, dtype=x0.dtype).to(x0.device)
    c = model.process(t)
    a, b = row(c, model.prediction)
    _, _, c_out = coefficients(c, model.prediction, data_std)
    x_t = x0 * scale(c.alpha, x0) + eps * scale(c.sigma, x0)
    target = x0 * scale(a, x0) + eps * scale(b, x0)
    return ((model(x_t, t, cond) - target) / scale(c_out, x0)).square().mean()
