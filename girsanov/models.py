r"""A network with what it takes to read it: its process, the kind of its prediction, its guidance.

``Model(x, t, cond)`` is the raw prediction, [B, *D] in the dtype of x. Guidance wraps the model, never the sampler: a
guided prediction ``p_null + w (p_cond - p_null)`` has weights that sum to 1, and every conversion of predictions is
affine with the same part in x, so guiding commutes with converting and any sampler takes a guided model.

Reference: Ho & Salimans 2022, arXiv:2207.12598 (classifier-free guidance).
"""

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor

from girsanov.errors import GirsanovError
from girsanov.predictions import Prediction, convert, is_singular
from girsanov.processes import Process
from girsanov.types import Cond

Network = Callable[[Tensor, Tensor, Any], Tensor]
"""``net(x [B, *D], t [B], cond) -> raw prediction [B, *D]``."""


def identity(x: Tensor) -> Tensor:
    """The decoder of a model that works on the data itself."""
    return x


def extrapolated(p_cond: Tensor, p_null: Tensor, scale: float) -> Tensor:
    """``p_null + scale (p_cond - p_null)``, [B, *D]."""
    return torch.lerp(p_null, p_cond, scale)


class ModelLike(Protocol):
    """What a sampler needs: a callable that knows its process and its kind of prediction."""

    @property
    def process(self) -> Process: ...
    @property
    def prediction(self) -> Prediction: ...
    @property
    def shape(self) -> tuple[int, ...]: ...
    @property
    def decode(self) -> Callable[[Tensor], Tensor]: ...
    def __call__(self, x: Tensor, t: Tensor, cond: Cond | None = None) -> Tensor: ...


@dataclass(frozen=True)
class Model:
    """A network, the process it was trained on and what it predicts.

    Attributes:
        net: ``net(x, t, cond)`` with t of shape [B] in the dtype of x.
        process: the noising process.
        prediction: "x0", "eps", "score", "velocity" or "v".
        shape: data shape ``*D``.
        decode: sample space to what the reward sees (the decoder of a latent model).
        time: process time in [0, 1] to what the net receives.
        autocast: dtype of the network's arithmetic, or None for that of x; the result is cast back to x's.
        guide: ``guide(p_cond, p_null, scale)``: how guidance combines two predictions (some models were released with
            a rule of their own).
    """

    net: Network
    process: Process
    prediction: Prediction
    shape: tuple[int, ...]
    decode: Callable[[Tensor], Tensor] = identity
    time: Callable[[Tensor], Tensor] = identity
    autocast: torch.dtype | None = None
    guide: Callable[[Tensor, Tensor, float], Tensor] = extrapolated

    def __call__(self, x: Tensor, t: Tensor, cond: Cond | None = None) -> Tensor:
        """The raw prediction [B, *D] at states x [B, *D] and times t ([] or [B])."""
        if x.shape[1:] != self.shape:
            raise GirsanovError(f"the model works on samples of shape {list(self.shape)}, got {list(x.shape[1:])}")
        if cond is not None and len(cond) != len(x):
            raise GirsanovError(f"{len(cond)} conditions for {len(x)} samples: use Cond.take to match them")
        if t.ndim > 0 and len(t) != len(x):
            raise GirsanovError(f"{len(t)} times for {len(x)} samples: give one time, or one per sample")
        # The clock runs before the cast to x's dtype: 1000 t - 1 of a float32 t is off by 6e-5.
        times = self.time(t.reshape(-1))
        if t.ndim == 0 and times.device.type == "cpu":  # a fill does not wait for the accelerator, a copy does
            times = torch.full((len(x),), float(times), device=x.device, dtype=x.dtype)
        times = times.to(x).expand(len(x))
        if self.autocast is None:
            p = self.net(x, times, cond)
        else:
            with torch.autocast(x.device.type, dtype=self.autocast):
                p = self.net(x, times, cond).to(x.dtype)
        if p.shape != x.shape or p.dtype != x.dtype:
            raise GirsanovError(
                f"the network returned {list(p.shape)} {p.dtype} for a state of {list(x.shape)} {x.dtype}: it must "
                "return one prediction of the same shape and dtype"
            )
        return p


class Wrapper(ABC):
    """A model made of others of the same process, prediction kind and shape; only the prediction is its own."""

    @property
    @abstractmethod
    def inner(self) -> ModelLike:
        """The model whose facts are those of the whole."""

    @property
    def process(self) -> Process:
        """The process of the wrapped model."""
        return self.inner.process

    @property
    def prediction(self) -> Prediction:
        """The prediction kind of the wrapped model."""
        return self.inner.prediction

    @property
    def shape(self) -> tuple[int, ...]:
        """The data shape of the wrapped model."""
        return self.inner.shape

    @property
    def decode(self) -> Callable[[Tensor], Tensor]:
        """The decoder of the wrapped model."""
        return self.inner.decode

    @abstractmethod
    def __call__(self, x: Tensor, t: Tensor, cond: Cond | None = None) -> Tensor:
        """The prediction [B, *D]."""


@dataclass(frozen=True)
class Guided(Wrapper):
    """Classifier-free guidance: ``p_null + scale (p_cond - p_null)``, two network passes in one batch.

    ``cond.null`` holds the conditions of the negative branch. ``scale = 1`` is the conditional model.
    """

    model: Model
    scale: float

    @property
    def inner(self) -> Model:
        """The unguided model."""
        return self.model

    def __call__(self, x: Tensor, t: Tensor, cond: Cond | None = None) -> Tensor:
        """The guided prediction [B, *D]."""
        if cond is None or cond.null is None:
            raise GirsanovError("guidance needs conditions with a null branch: give Cond(..., null=...)")
        tables, null = cond.with_null_rows()
        both = Cond(tables, torch.cat([cond.index, null]))
        times = t if t.ndim == 0 else torch.cat([t, t])
        p_cond, p_null = self.model(torch.cat([x, x]), times, both).chunk(2)
        return self.model.guide(p_cond, p_null, self.scale)


@dataclass(frozen=True)
class Gated(Wrapper):
    """One model at times up to ``until``, another above: a control that acts near the data only.

    Both models have the same process, prediction and shape; times are grid steps (shape []).
    """

    model: Model | Guided
    above: Model | Guided
    until: float

    @property
    def inner(self) -> "Model | Guided":
        """The model near the data."""
        return self.model

    def __call__(self, x: Tensor, t: Tensor, cond: Cond | None = None) -> Tensor:
        """The prediction [B, *D] of the model in charge at t."""
        if t.ndim > 0:
            raise GirsanovError("a gated model takes grid times (shape []), not one time a sample")
        return (self.model if float(t) <= self.until else self.above)(x, t, cond)


@dataclass(frozen=True)
class Shared(Wrapper):
    """A model asked once where ``copies`` rows side by side hold one state under one condition.

    Rows ``j copies, ..., (j + 1) copies - 1`` of x, of the times and of the conditions must be equal; the first of them
    speaks for all. The prediction is what the model alone would give, at a fraction of the cost.
    """

    model: ModelLike
    copies: int

    @property
    def inner(self) -> ModelLike:
        """The model that is asked."""
        return self.model

    def __call__(self, x: Tensor, t: Tensor, cond: Cond | None = None) -> Tensor:
        """The prediction [B, *D]. Raises GirsanovError if B is no multiple of ``copies``."""
        if len(x) % self.copies:
            raise GirsanovError(f"{len(x)} rows do not come in runs of {self.copies}: give every state as often")
        once = None if cond is None else cond.take(torch.arange(0, len(x), self.copies, device=cond.index.device))
        p = self.model(x[:: self.copies], t if t.ndim == 0 else t[:: self.copies], once)
        return p.repeat_interleave(self.copies, 0)


def velocity(model: ModelLike, x: Tensor, t: Tensor, cond: Cond | None = None) -> Tensor:
    """The model's prediction as a velocity ``d_alpha x_0 + d_sigma eps``, [B, *D]."""
    return convert(model(x, t, cond), x, model.process(t), model.prediction, "velocity")


def denoised(model: ModelLike, x: Tensor, t: Tensor, cond: Cond | None = None) -> Tensor:
    """The model's prediction as the denoised sample x_0, [B, *D]."""
    return convert(model(x, t, cond), x, model.process(t), model.prediction, "x0")


def has_velocity(model: ModelLike, t: Tensor) -> bool:
    """Whether the model fixes a finite velocity at t (a host bool)."""
    c = model.process(t)
    return not is_singular(c, model.prediction) and bool(c.d_alpha.isfinite().all() and c.d_sigma.isfinite().all())
