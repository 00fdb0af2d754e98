"""The records that flow through a run: conditions, prompts, steps, trajectories, batches.

Letters: ``B`` batch, ``T`` steps, ``*D`` data dimensions. Every record is frozen; ``take`` makes a smaller one.
"""

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Self

import torch
from torch import Tensor

from girsanov.errors import GirsanovError
from girsanov.kernels import Kernel as Kernel
from girsanov.kernels import Stage as Stage
from girsanov.precision import as_wide


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

    def with_null_rows(self) -> tuple[dict[str, Tensor], Tensor]:
        """Tables that hold the rows of both branches, and where in them the null row of each sample is, int64 [B]."""
        if self.null is None:
            raise GirsanovError("these conditions have no null branch: give Cond(..., null=...)")
        tables = {k: torch.cat([self.tables[k], v]) for k, v in self.null.tables.items()}
        return tables, self.null.index + len(next(iter(self.tables.values())))

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


def wide(x: Tensor) -> Tensor:
    """States in the dtype of step arithmetic: float32 at least. Itself where it is that already."""
    return x.to(torch.promote_types(x.dtype, torch.float32))


@dataclass(frozen=True)
class Transition:
    """One step that was taken: from x_t to x_s under the recorded kernel.

    Attributes:
        x_t, x_s: states, [B, *D], in the dtype they are kept in.
        step: times and index; the times are of shape [].
        mean, std, stochastic: the kernel x_s was drawn from.
        stages: the points at which the network was asked (x_t itself for one-stage samplers).
        state: the solver's state before the step (multistep solvers).
        parent: row of the step before that each sample came from; None on a chain.
        cond: the conditions of the batch at this step.
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
    cond: Cond | None = None

    @property
    def asked(self) -> Tensor:
        """x_t in the dtype of step arithmetic, float32 at least: what the sampler steps from, [B, *D]."""
        return wide(self.x_t)

    def take(self, index: Tensor) -> "Transition":
        """The chosen samples."""
        if self.parent is not None:
            raise GirsanovError(
                "samples of a tree cannot be taken apart, they share their past: take whole trees, or a chain"
            )
        x_t, std = self.x_t[index], self.std if self.std.ndim == 0 else self.std[index]
        stages = tuple(Stage(x_t if s.x is self.x_t else s.x[index], s.t, s.weight) for s in self.stages)
        state, cond = (None if v is None else v.take(index) for v in (self.state, self.cond))
        return dataclasses.replace(
            self, x_t=x_t, x_s=self.x_s[index], mean=self.mean[index], std=std, stages=stages, state=state, cond=cond
        )


@dataclass(frozen=True)
class Trajectory:
    """What a rollout kept.

    Attributes:
        x0: the end states, [B, *D].
        transitions: the kept steps, noisiest first.
        cond: the conditions of the batch.
        state: the solver's state after the last step, to go on from (multistep solvers).
    """

    x0: Tensor
    transitions: tuple[Transition, ...]
    cond: Cond | None
    state: Any = None

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
        state = None if self.state is None else self.state.take(index)
        return Trajectory(self.x0[index], tuple(tr.take(index) for tr in self.transitions), cond, state)


@dataclass(frozen=True)
class Batch:
    """Base of what ``collect`` returns: fields are tensors [B, ...], records with ``take``, tuples of them, or None."""

    def metrics(self) -> dict[str, Tensor | float]:
        """Numbers of the whole batch to log; the mean and spread of its ``reward`` [B] if it has one."""
        reward = getattr(self, "reward", None)
        if reward is None:
            return {}
        values = as_wide(reward)
        return {"reward": values.mean(), "reward_std": values.std(correction=0)}

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
