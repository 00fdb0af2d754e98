"""The records that flow through a run: conditions, prompts, Gaussian kernels, trajectories.

Letters: ``B`` batch, ``T`` steps, ``*D`` data dimensions. Every record is frozen; ``take`` makes a smaller one.
"""

import dataclasses
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, Self

import torch
from torch import Tensor

from girsanov.errors import GirsanovError
from girsanov.predictions import scale

Reduce = Literal["sum", "mean"]


@dataclass(frozen=True)
class Cond:
    """Conditions of a batch: named tables with R rows, and the row of each of the B samples.

    The G samples of one prompt share a row, so an embedding is stored (and moved) once. ``null`` is the unconditional
    or negative counterpart that guidance needs.

    Attributes:
        tables: name -> tensor [R, ...].
        index: row of each sample, int64 [B].
        null: conditions of the same B samples for the negative branch, or None.
    """

    tables: Mapping[str, Tensor]
    index: Tensor
    null: "Cond | None" = None

    def __len__(self) -> int:
        return len(self.index)

    def __getitem__(self, name: str) -> Tensor:
        """The named condition of every sample, [B, ...]."""
        if name not in self.tables:
            raise GirsanovError(f"no condition is called {name!r}: this batch has {', '.join(self.tables) or 'none'}")
        return self.tables[name][self.index]

    def take(self, index: Tensor) -> "Cond":
        """The conditions of the chosen samples; the tables are shared, not copied."""
        return Cond(self.tables, self.index[index], None if self.null is None else self.null.take(index))

    def to(self, device: torch.device | str) -> "Cond":
        """The same conditions on a device."""
        tables = {k: v.to(device) for k, v in self.tables.items()}
        return Cond(tables, self.index.to(device), None if self.null is None else self.null.to(device))


@dataclass(frozen=True)
class Prompts:
    """A batch of requests: what to draw, and which sample each is.

    Attributes:
        cond: conditions of the B samples.
        ids: number of each sample in its iteration, over all processes; the key of its noise, int64 [B] on the host.
        group: group (prompt) of each sample over all processes, int64 [B] on the host.
        meta: what the reward may read of each sample's prompt, B entries.
    """

    cond: Cond
    ids: Tensor
    group: Tensor
    meta: Sequence[Any] = ()

    def __len__(self) -> int:
        return len(self.ids)

    def to(self, device: torch.device | str) -> "Prompts":
        """The same requests with their conditions on a device."""
        return dataclasses.replace(self, cond=self.cond.to(device))

    def take(self, index: Tensor) -> "Prompts":
        """The chosen requests."""
        host = index.cpu()
        meta = tuple(self.meta[i] for i in host.tolist()) if self.meta else ()
        return Prompts(self.cond.take(index.to(self.cond.index.device)), self.ids[host], self.group[host], meta)


@dataclass(frozen=True)
class Step:
    """One step of a grid, from time t to the cleaner time s < t.

    Attributes:
        t, s: float64, shape [] on the host or [B].
        i: index of the step, 0 is the noisiest.
        n: number of steps of the grid.
    """

    t: Tensor
    s: Tensor
    i: int
    n: int

    @property
    def h(self) -> Tensor:
        """The signed time increment ``s - t`` (negative)."""
        return self.s - self.t


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


def _total(values: Tensor, reduce: Reduce) -> Tensor:
    """Sum (or mean) of [B, *D] over the data dimensions, accumulated in float64: shape [B]."""
    wide = torch.float32 if values.device.type == "mps" else torch.float64
    flat = values.flatten(1)
    return flat.sum(1, dtype=wide) if reduce == "sum" else flat.mean(1, dtype=wide)


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
        raw: the state, the network's raw prediction and the affine map to x0, from which ``x0`` is made when asked.
    """

    mean: Tensor
    std: Tensor
    stochastic: bool
    gain: Tensor | None = None
    stages: tuple[Stage, ...] = ()
    raw: tuple[Tensor, Tensor, Tensor, Tensor] | None = field(default=None, repr=False)

    @property
    def x0(self) -> Tensor:
        """The denoised prediction at the start of the step, [B, *D]."""
        if self.raw is None:
            raise GirsanovError("this kernel keeps no denoised prediction: ask a single-stage sampler for it")
        x, p, c_x, c_p = self.raw
        a, b = scale(c_x, x), scale(c_p, x)
        return x * a + p * b

    def sample(self, noise: Tensor | None) -> Tensor:
        """``mean + std * noise`` [B, *D]; a deterministic kernel ignores the noise."""
        if not self.stochastic:
            return self.mean
        if noise is None or noise.shape != self.mean.shape:
            got = "nothing" if noise is None else f"shape {list(noise.shape)}"
            raise GirsanovError(f"a stochastic step needs noise of shape {list(self.mean.shape)}, got {got}")
        std = scale(self.std, self.mean)
        if isinstance(std, float):
            return torch.add(self.mean, noise, alpha=std)
        return torch.addcmul(self.mean, noise, std)

    def _variance(self) -> Tensor:
        if not self.stochastic:
            raise GirsanovError(
                "a deterministic step has no density: use a stochastic sampler, for example GDDIM(eta=1.0), and "
                "leave out steps whose noise is zero (Trajectory.trainable lists the others)"
            )
        return self.std.to(self.mean.device) ** 2

    def log_prob(self, x: Tensor, reduce: Reduce = "sum") -> Tensor:
        r"""Log density of ``x`` under the kernel, float64 [B].

        .. math:: \log p = -\frac{\|x - mean\|^2}{2 std^2} - d \log std - \frac d2 \log 2\pi

        ``reduce="mean"`` divides by d, as most published code does. Raises if the step is deterministic.
        """
        variance = self._variance()
        square = _total((x - self.mean).square(), reduce)
        d = 1 if reduce == "mean" else self.mean[0].numel()
        return -0.5 * square / variance - 0.5 * d * torch.log(2 * math.pi * variance)

    def log_ratio(self, old_mean: Tensor, x: Tensor, reduce: Reduce = "sum") -> Tensor:
        r"""``log p(x) - log p_old(x)`` for a kernel of the same std and mean ``old_mean``, float64 [B].

        .. math:: \frac{\langle \delta,\, x - old - \delta / 2 \rangle}{std^2}, \qquad \delta = mean - old

        The constants the two densities share are never formed, so a small ratio in many dimensions is not lost to
        rounding; it is 0 to the bit when the means are equal.
        """
        variance = self._variance()
        delta = self.mean - old_mean
        return _total(torch.sub(x - old_mean, delta, alpha=0.5).mul(delta), reduce) / variance

    def kl(self, other_mean: Tensor, reduce: Reduce = "sum") -> Tensor:
        r"""``KL(self || other) = |mean - other_mean|^2 / (2 std^2)`` for equal std, float64 [B]."""
        variance = self._variance()
        return 0.5 * _total((self.mean - other_mean).square(), reduce) / variance


@dataclass(frozen=True)
class Transition:
    """One step that was taken: from x_t to x_s under the recorded kernel.

    Attributes:
        x_t, x_s: states, [B, *D].
        step: times and index; the times are of shape [].
        mean, std, stochastic: the kernel x_s was drawn from.
        stages: the points at which the network was asked (x_t itself for one-stage samplers).
        state: the solver's state before the step (multistep solvers).
        parent: row of x_t's batch that each sample came from; the identity on a chain.
    """

    x_t: Tensor
    x_s: Tensor
    step: Step
    mean: Tensor
    std: Tensor
    stochastic: bool
    stages: tuple[Stage, ...] = ()
    state: Any = None
    parent: Tensor | None = None

    def take(self, index: Tensor) -> "Transition":
        """The chosen samples."""
        if self.parent is not None or self.state is not None:
            raise GirsanovError(
                "samples of a tree or of a multistep solver cannot be taken apart: use a single-step chain"
            )
        stages = tuple(Stage(self.x_t[index] if s.x is self.x_t else s.x[index], s.t, s.weight) for s in self.stages)
        x_t = stages[0].x if self.stages and self.stages[0].x is self.x_t else self.x_t[index]
        return dataclasses.replace(self, x_t=x_t, x_s=self.x_s[index], mean=self.mean[index], stages=stages)


@dataclass(frozen=True)
class Trajectory:
    """What a rollout kept.

    Attributes:
        x0: the end states, [B, *D].
        transitions: the kept steps, noisiest first.
        cond: the conditions of the batch.
    """

    x0: Tensor
    transitions: tuple[Transition, ...]
    cond: Cond | None

    def __len__(self) -> int:
        return len(self.x0)

    def __iter__(self) -> Iterator[Transition]:
        return iter(self.transitions)

    @property
    def trainable(self) -> tuple[Transition, ...]:
        """The kept steps that have a density."""
        return tuple(tr for tr in self.transitions if tr.stochastic)

    def take(self, index: Tensor) -> "Trajectory":
        """The chosen samples."""
        cond = None if self.cond is None else self.cond.take(index)
        return Trajectory(self.x0[index], tuple(tr.take(index) for tr in self.transitions), cond)


@dataclass(frozen=True)
class Batch:
    """Base of what ``collect`` returns: fields are tensors [B, ...], records with ``take``, tuples of them, or None."""

    def metrics(self) -> dict[str, Tensor | float]:
        """Numbers of the whole batch to log; the mean and spread of its ``reward`` [B] if it has one."""
        reward = getattr(self, "reward", None)
        if reward is None:
            return {}
        spread = reward.double().std(correction=0)
        return {"reward": reward.double().mean(), "reward_std": spread}

    def __len__(self) -> int:
        return len(getattr(self, dataclasses.fields(self)[0].name))

    def take(self, index: Tensor) -> Self:
        """The chosen samples of every field."""
        parts = {f.name: getattr(self, f.name) for f in dataclasses.fields(self)}
        return type(self)(**{k: _take(v, index) for k, v in parts.items()})


def _take(value: Any, index: Tensor) -> Any:
    if value is None:
        return None
    if isinstance(value, tuple):
        return tuple(_take(v, index) for v in value)
    if isinstance(value, Tensor):
        return value[index.to(value.device)]
    return value.take(index)
