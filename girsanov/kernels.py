r"""The Gaussian kernel of one sampler step: what is drawn, how likely it was, and how far from another policy.

.. math:: x_s \sim N(mean, std^2 I), \qquad
    \log \frac{p(x)}{p_{old}(x)} = \frac{\langle \delta,\, x - old - \delta / 2 \rangle}{std^2}, \quad
    \delta = mean - old

A log-prob is the density of what was sampled. Sums over the data dimensions are accumulated in float64
(``reductions``).
"""

import math
from dataclasses import dataclass, field

import torch
from torch import Tensor

from girsanov.errors import GirsanovError
from girsanov.precision import onto
from girsanov.predictions import Prediction, add_scaled, convert
from girsanov.processes import Schedule
from girsanov.reductions import Reduction, cross, square_distance


@dataclass(frozen=True)
class Stage:
    """A point at which a solver asks for the velocity.

    Attributes:
        x: the point, [B, *D].
        t: its time.
        weight: this stage's share of ``int dt`` over the step, positive; what a running cost is weighted with.
    """

    x: Tensor
    t: Tensor
    weight: Tensor


@dataclass(frozen=True)
class Kernel:
    r"""The law of one sampler step, ``x_s ~ N(mean, std^2 I)``.

    Attributes:
        mean: [B, *D].
        std: float64, shape [] (host) or [B].
        stochastic: whether ``std > 0``; a host bool, so asking does not wait for the accelerator.
        gain: ``d mean / d velocity``, shape [] or [B]: turns a shift of the mean into a control, also when std = 0.
            None for solvers of several stages.
        stages: the points at which the network was asked.
        raw: the state, the network's raw prediction, its schedule and kind, from which ``x0`` is made when asked.
    """

    mean: Tensor
    std: Tensor
    stochastic: bool
    gain: Tensor | None = None
    stages: tuple[Stage, ...] = ()
    raw: tuple[Tensor, Tensor, Schedule, Prediction] | None = field(default=None, repr=False)

    @property
    def x0(self) -> Tensor:
        """The denoised prediction at the start of the step, [B, *D]."""
        if self.raw is None:
            raise GirsanovError("this kernel keeps no denoised prediction: ask a single-stage sampler for it")
        x, p, c, kind = self.raw
        return convert(p, x, c, kind, "x0")

    def sample(self, noise: Tensor | None) -> Tensor:
        """``mean + std * noise`` [B, *D]; a deterministic kernel ignores the noise."""
        if not self.stochastic:
            return self.mean
        if noise is None or noise.shape != self.mean.shape:
            got = "nothing" if noise is None else f"shape {list(noise.shape)}"
            raise GirsanovError(f"a stochastic step needs noise of shape {list(self.mean.shape)}, got {got}")
        return add_scaled(self.mean, noise, self.std)

    def _variance(self) -> Tensor:
        if not self.stochastic or (self.std.device.type == "cpu" and not bool((self.std > 0).all())):
            raise GirsanovError(
                "a deterministic step has no density: use a stochastic sampler, for example GDDIM(eta=1.0), and "
                "leave out steps whose noise is zero (Trajectory.trainable lists the others)"
            )
        return onto(self.std, self.mean.device) ** 2

    def log_prob(self, x: Tensor, reduce: Reduction = "sum") -> Tensor:
        r"""Log density of ``x`` under the kernel, float64 [B].

        .. math:: \log p = -\frac{\|x - mean\|^2}{2 std^2} - d \log std - \frac d2 \log 2\pi

        ``reduce="mean"`` divides by d, as most published code does. Raises if the step is deterministic.
        """
        variance = self._variance()
        square = square_distance(x, self.mean, reduce)
        d = 1 if reduce == "mean" else self.mean[0].numel()
        return -0.5 * square / variance - 0.5 * d * torch.log(2 * math.pi * variance)

    def log_ratio(self, old_mean: Tensor, x: Tensor, reduce: Reduction = "sum") -> Tensor:
        r"""``log p(x) - log p_old(x)`` for a kernel of the same std and mean ``old_mean``, float64 [B].

        .. math:: \frac{\langle \delta,\, x - old - \delta / 2 \rangle}{std^2}, \qquad \delta = mean - old

        The constants the two densities share are never formed, so a small ratio in many dimensions is not lost to
        rounding; it is 0 to the bit when the means are equal.
        """
        variance = self._variance()
        return cross(self.mean, old_mean, x, reduce) / variance

    def kl(self, other_mean: Tensor, reduce: Reduction = "sum") -> Tensor:
        r"""``KL(self || other) = |mean - other_mean|^2 / (2 std^2)`` for equal std, float64 [B]."""
        return 0.5 * square_distance(self.mean, other_mean, reduce) / self._variance()
