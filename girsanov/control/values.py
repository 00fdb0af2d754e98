r"""Learned value functions: V with its gradient and its Hessian, at states x [B, n].

``QuadraticValue`` is ``theta . phi(x)`` with the features ``phi = (1, x_i, x_i x_j for i <= j)``; ``NetValue`` is any
network ``net(x [B, n]) -> [B]`` or [B, 1], differentiated by ``torch.func``.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.func import grad, hessian, vmap

from girsanov.errors import GirsanovError


class Value(ABC):
    """A value function that can be differentiated twice."""

    @abstractmethod
    def __call__(self, x: Tensor) -> Tensor:
        """V(x), [B]."""

    @abstractmethod
    def gradient(self, x: Tensor) -> Tensor:
        """grad V(x), [B, n]."""

    @abstractmethod
    def hessian(self, x: Tensor) -> Tensor:
        """The second derivatives, [B, n, n]."""


def quadratic(x: Tensor) -> Tensor:
    """``(1, x_i, x_i x_j for i <= j)``, [..., p] with p = (n + 1)(n + 2) / 2, of x [..., n]."""
    i, j = torch.triu_indices(x.shape[-1], x.shape[-1], device=x.device)
    return torch.cat([torch.ones_like(x[..., :1]), x, x[..., i] * x[..., j]], -1)


def generator_of_quadratic(x: Tensor, drift: Tensor, diffusion: Tensor) -> Tensor:
    """``b . grad phi + tr(sigma sigma' phi'') / 2`` [B, p] of the quadratic features, b [B, n] and sigma [B, n, k].

    It is 0, b_i, and ``b_i x_j + x_i b_j + (sigma sigma')_ij``.
    """
    i, j = torch.triu_indices(x.shape[1], x.shape[1], device=x.device)
    spread = diffusion @ diffusion.mT
    return torch.cat(
        [torch.zeros_like(x[:, :1]), drift, drift[:, i] * x[:, j] + x[:, i] * drift[:, j] + spread[:, i, j]], 1
    )


@dataclass(frozen=True)
class QuadraticValue(Value):
    """``theta . phi(x)``.

    Attributes:
        theta: coefficients, [p].
        n: size of the state.
    """

    theta: Tensor
    n: int

    @staticmethod
    def of(form: Tensor) -> "QuadraticValue":
        """``y' form y / 2`` with ``y = (x, 1)``, form symmetric [n + 1, n + 1]."""
        n = len(form) - 1
        i, j = torch.triu_indices(n, n, device=form.device)
        second = form[i, j] * torch.where(i == j, 0.5, 1.0)
        return QuadraticValue(torch.cat([form[n:, n] / 2, form[:n, n], second]), n)

    def __call__(self, x: Tensor) -> Tensor:
        """V(x), [B]."""
        return quadratic(x) @ self.theta.to(x)

    @property
    def curvature(self) -> Tensor:
        """The Hessian, the same everywhere, [n, n]."""
        i, j = torch.triu_indices(self.n, self.n, device=self.theta.device)
        upper = self.theta.new_zeros(self.n, self.n).index_put((i, j), self.theta[1 + self.n :])
        return upper + upper.T

    def gradient(self, x: Tensor) -> Tensor:
        """``theta_i + sum_j H_ij x_j``, [B, n]."""
        return self.theta[1 : 1 + self.n].to(x) + x @ self.curvature.to(x)

    def hessian(self, x: Tensor) -> Tensor:
        """H, [B, n, n]."""
        return self.curvature.to(x).expand(len(x), -1, -1)


@dataclass(frozen=True)
class NetValue(Value):
    """A network as a value function.

    Attributes:
        net: ``net(x [B, n])`` -> [B] or [B, 1].
    """

    net: Callable[[Tensor], Tensor]

    def __call__(self, x: Tensor) -> Tensor:
        """V(x), [B]. Raises GirsanovError if the network returns anything but one finite number a state."""
        v = self.net(x)
        if v.shape not in (x.shape[:1], (*x.shape[:1], 1)):
            raise GirsanovError(
                f"the critic returned {list(v.shape)} for {len(x)} states: it must return one value a state, "
                f"[{len(x)}] or [{len(x)}, 1]"
            )
        if not bool(v.isfinite().all()):
            raise GirsanovError("the critic returned a value that is not finite: lower train.module_lr")
        return v.reshape(len(x))

    def _one(self, x: Tensor) -> Tensor:
        return self.net(x[None]).reshape(())

    def gradient(self, x: Tensor) -> Tensor:
        """grad V(x), [B, n]."""
        return vmap(grad(self._one))(x).detach()

    def hessian(self, x: Tensor) -> Tensor:
        """The Hessian, [B, n, n]."""
        return vmap(hessian(self._one))(x).detach()
