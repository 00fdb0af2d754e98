r"""The coefficient B(t) of Diffusion-DPO's logit, ``-(B/2) [(e_w - e_l) - (e_w - e_l)_{ref}]``.

What it does to the optimum, on data ``N(m, s^2 I)`` with Bradley-Terry labels of the reward ``a^T x``: with shared
noise and time the reference's error differs between the two images by ``k alpha (x_w - x_l)``, ``k = sigma / (alpha^2
s^2 + sigma^2)``. A shift ``eps_theta = eps_ref + delta`` has the logit ``-B k alpha delta^T (x_w - x_l)``, so
``delta = -a / (B k alpha)`` gives the true odds of every pair: the minimum of the loss over all functions. In the mean
of the law it is, at time t, a shift by

.. math:: \frac{a}{B k^2 \alpha^2}

which depends on t: a network tuned with a constant B is the denoiser of no single law. The law tilted with
``r / beta`` needs the shift ``a s^2 / beta`` at every t,

.. math:: B(t) = \frac{\beta}{k^2 \alpha^2 s^2}

for errors of eps, summed over d. An error of another prediction ``p`` is ``eps_hat - eps = c_p (p_hat - p)``, so its
coefficient is ``c_p^2 B(t)``. B grows without bound at both ends of time, where one image says nothing about the
other's reward; ``cap`` bounds it.

Noise of its own for each image would hide the reward: the errors then differ by ``-k alpha [x_w - x_l - (alpha s^2 /
sigma)(eps_w - eps_l)]``, and regressing on a noisy difference shrinks the shift, to first order in a, by

.. math:: \frac{\sigma^2}{\sigma^2 + \alpha^2 s^2}

which is 1/2 where signal and noise are alike and goes to 0 towards the data, where shared noise loses nothing. What is
left of the information of a pair is the same number, so as many more pairs are wanted. Over the whole flow, with ``u =
alpha s / (alpha^2 s^2 + sigma^2)^{1/2}`` going from 0 to 1, a shift of the velocity at t moves the end by ``du`` of the
tilt's; with noise of their own it is ``(1 - u^2) du``, 2/3 in all: a third is lost, for every process and every s.

References: Wallace et al. 2023, arXiv:2311.12908, Eq. 14 (constant); the tilt weight is derived here.
"""

from abc import ABC, abstractmethod
from dataclasses import dataclass

import torch
from torch import Tensor

from girsanov.errors import GirsanovError
from girsanov.predictions import Prediction, determinant
from girsanov.processes import Schedule


class PairWeight(ABC):
    """A coefficient per pair."""

    @abstractmethod
    def __call__(self, c: Schedule, prediction: Prediction, d: int) -> Tensor:
        """B for squared errors summed over d dimensions, float64 of the shape of the schedule."""


@dataclass(frozen=True)
class ConstantWeight(PairWeight):
    """As published: ``beta`` times the *mean* squared error of the prediction, at every time.

    Published beta: 5000 (SDXL), 2000 (SD1.5); 2000 for velocity errors of flow models.
    """

    beta: float = 2000.0

    def __post_init__(self) -> None:
        if not self.beta > 0:
            raise GirsanovError(f"beta of a preference loss must be positive, not {self.beta}")

    def __call__(self, c: Schedule, prediction: Prediction, d: int) -> Tensor:
        """``beta / d``."""
        return torch.full_like(c.alpha, self.beta / d)


@dataclass(frozen=True)
class TiltWeight(PairWeight):
    """``beta / (k alpha s)^2``: the weight whose optimum on Gaussian data is the tilted law.

    Attributes:
        beta: of the tilt, for labels of temperature 1 (for temperature T the optimum is tilted with beta T).
        std: s, the standard deviation of the data, per dimension.
        cap: upper bound of B.
    """

    beta: float = 1.0
    std: float = 1.0
    cap: float = 1e6

    def __post_init__(self) -> None:
        if not (self.beta > 0 and self.std > 0 and self.cap > 0):
            raise GirsanovError(f"beta, std and cap must be positive, not {self.beta}, {self.std} and {self.cap}")

    def __call__(self, c: Schedule, prediction: Prediction, d: int) -> Tensor:
        """``c_p^2 beta / (k alpha s)^2``, at most ``cap``."""
        k = c.sigma / (c.alpha**2 * self.std**2 + c.sigma**2)
        det = determinant(c, prediction)  # c_p = alpha / det: alpha cancels, so a velocity has a finite B at alpha = 0
        return (self.beta / (k * self.std * det) ** 2).clamp(max=self.cap)
