"""Where requests come from: whole groups of samples per prompt, the same on any number of processes.

An epoch is a permutation of the N prompts keyed by (seed, epoch); the endless sequence of prompts is one epoch after
another, and iteration i takes its ``n`` groups from position ``i n`` on. Where a batch crosses into the next epoch,
the prompts it already has move behind the others of that epoch, so no batch asks twice for the same prompt. When a
batch has more groups than there are prompts, it asks ``n // N`` times for each and draws the rest this way.

All of it is a pure function of the iteration: a resumed run needs no position. Process r of W takes the r-th of W
equal runs of groups, and ids and groups count over all processes, so any W gives the same union of requests.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from girsanov.errors import GirsanovError
from girsanov.noise import generator
from girsanov.types import Cond, Prompts

PROMPT_STREAM = 7001  # keeps the order of prompts apart from everything else that is keyed by the seed


def groups_in(batch: int, group_size: int) -> int:
    """How many groups of ``group_size`` make a batch. Raises GirsanovError if it does not divide the batch."""
    if batch < 1 or group_size < 1 or batch % group_size:
        low = max(1, group_size) * max(1, batch // max(1, group_size))
        raise GirsanovError(
            f"a batch of {batch} samples does not divide into groups of {group_size}: "
            f"use {low} or {low + max(1, group_size)} samples"
        )
    return batch // group_size


@dataclass(frozen=True)
class Groups:
    """Which prompts each iteration asks for, and how the groups spread over processes.

    Attributes:
        prompts: N, the number of prompts.
        groups_per_batch: prompts asked for in an iteration, over all processes.
        group_size: samples of each prompt.
        seed: key of the order.
    """

    prompts: int
    groups_per_batch: int
    group_size: int
    seed: int = 0
    _last: dict[str, Any] = field(default_factory=dict, init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        if self.prompts < 1:
            raise GirsanovError(f"the number of prompts (or classes) is {self.prompts}: there must be at least one")
        for name in ("groups_per_batch", "group_size"):
            if getattr(self, name) < 1:
                raise GirsanovError(f"{name} = {getattr(self, name)} must be at least 1")

    def rows(self, iteration: int) -> Tensor:
        """The prompts of an iteration, int64 [groups_per_batch] of 0 .. N - 1."""
        whole, n = divmod(self.groups_per_batch, self.prompts)
        every = torch.arange(self.prompts).repeat(whole)
        if n == 0:
            return every
        start = iteration * n
        epoch, first = divmod(start, self.prompts)
        row = self._epoch(epoch)[first : first + n]
        if len(row) < n:
            row = torch.cat([row, self._epoch(epoch + 1)[: n - len(row)]])
        return torch.cat([row, every])

    def _epoch(self, epoch: int) -> Tensor:
        """The order of an epoch [N]: what shares a batch with the end of the epoch before comes from the others."""
        known, order = self._last.get("epoch", (-1, torch.empty(0, dtype=torch.int64)))
        if known > epoch:
            known, order = -1, torch.empty(0, dtype=torch.int64)
        n = self.groups_per_batch % self.prompts
        for e in range(known + 1, epoch + 1):
            before = order
            order = torch.randperm(self.prompts, generator=generator((self.seed, PROMPT_STREAM, e)))
            tail = (e * self.prompts) % n  # how many of the seam's batch the epoch before has given
            if tail:
                taken = torch.isin(order, before[-tail:])
                fresh, repeated = order[~taken], order[taken]
                order = torch.cat([fresh[: n - tail], repeated, fresh[n - tail :]])
        self._last["epoch"] = (epoch, order)
        return order

    def share(self, iteration: int, rank: int = 0, world_size: int = 1) -> tuple[Tensor, Tensor, Tensor]:
        """One process's part: prompt rows [P] of its groups, sample ids [P G] and group numbers [P G].

        Raises GirsanovError if the groups do not spread evenly over the processes.
        """
        if self.groups_per_batch % world_size:
            low = world_size * max(1, self.groups_per_batch // world_size)
            raise GirsanovError(
                f"{self.groups_per_batch} groups a batch do not spread over {world_size} processes in whole groups: "
                f"use {low} or {low + world_size} groups"
            )
        count = self.groups_per_batch // world_size
        first = rank * count
        ids = torch.arange(first * self.group_size, (first + count) * self.group_size)
        return self.rows(iteration)[first : first + count], ids, ids // self.group_size


@dataclass(frozen=True, kw_only=True)
class ClassPrompts:
    """Requests for classes 0 .. num_classes - 1, each class a prompt.

    Attributes:
        num_classes: C.
        groups_per_batch: classes asked for in an iteration, over all processes.
        group_size: samples of each.
        null_class: label of the unconditional branch, for guidance; None leaves it out.
        seed: key of the order of the classes.

    The condition is ``cond["label"]`` (int64 [B]); ``meta`` holds the same labels as integers.
    """

    num_classes: int
    groups_per_batch: int
    group_size: int
    null_class: int | None = None
    seed: int = 0
    groups: Groups = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "groups", Groups(self.num_classes, self.groups_per_batch, self.group_size, self.seed))

    def batch(self, iteration: int, rank: int = 0, world_size: int = 1) -> Prompts:
        """This process's requests, the samples of a group side by side."""
        rows, ids, group = self.groups.share(iteration, rank, world_size)
        label = rows.repeat_interleave(self.group_size)
        null = None
        if self.null_class is not None:
            null = Cond({"label": torch.tensor([self.null_class])}, torch.zeros_like(label))
        return Prompts(Cond({"label": torch.arange(self.num_classes)}, label, null), ids, group, tuple(label.tolist()))


Encoder = Callable[[Sequence[str]], Mapping[str, Tensor]]
"""``encode(texts) -> named tables [R, ...]``, one row a text; all texts padded to one length."""


@dataclass(frozen=True, kw_only=True)
class TextPrompts:
    """Requests from a list of texts, each with what the reward may want to know about it.

    Attributes:
        texts: the prompts; a text that appears twice is asked for twice as often.
        encode: the text encoder, called once a batch with this process's texts; the G samples of a group share a row.
        groups_per_batch: prompts asked for in an iteration, over all processes.
        group_size: samples of each.
        metadata: a mapping for each text, or nothing.
        negative: text of the negative branch of guidance; None leaves it out. Encoded once.
        encode_negative: encodes it, where negative prompts are encoded in another way than others.
        conditions: further tables of conditions, one row a text (pictures to edit, control); both branches get them.
        seed: key of the order.

    ``meta`` of a sample is ``{"text": its text, **its metadata}``.
    """

    texts: Sequence[str]
    encode: Encoder
    groups_per_batch: int
    group_size: int
    metadata: Sequence[Mapping[str, Any]] | None = None
    negative: str | None = None
    encode_negative: Encoder | None = None
    conditions: Mapping[str, Tensor] = field(default_factory=dict, repr=False)
    seed: int = 0
    groups: Groups = field(init=False, repr=False, compare=False)
    _negative: dict[str, Mapping[str, Tensor]] = field(default_factory=dict, init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        if isinstance(self.texts, str) or not all(isinstance(t, str) for t in self.texts):
            raise GirsanovError("texts is a list of strings, one a prompt")
        if not self.texts:
            raise GirsanovError("texts is empty: give at least one prompt")
        if self.metadata is not None and len(self.metadata) != len(self.texts):
            raise GirsanovError(f"{len(self.metadata)} entries of metadata for {len(self.texts)} texts: give one each")
        for name, table in self.conditions.items():
            if len(table) != len(self.texts):
                raise GirsanovError(
                    f"{len(table)} rows of the condition {name!r} for {len(self.texts)} texts: give one each"
                )
        object.__setattr__(self, "groups", Groups(len(self.texts), self.groups_per_batch, self.group_size, self.seed))

    def batch(self, iteration: int, rank: int = 0, world_size: int = 1) -> Prompts:
        """This process's requests, the samples of a group side by side."""
        rows, ids, group = self.groups.share(iteration, rank, world_size)
        chosen = rows.tolist()
        own = {name: table[rows] for name, table in self.conditions.items()}
        tables = {**self._encoded(self.encode, [self.texts[r] for r in chosen]), **own}
        index = torch.arange(len(chosen)).repeat_interleave(self.group_size)
        null = None
        if self.negative is not None:
            if not self._negative:
                self._negative["tables"] = self._encoded(self.encode_negative or self.encode, [self.negative])
            null = Cond(self._negative["tables"], torch.zeros_like(index))
            if own:
                wide = {k: v.expand(len(chosen), *v.shape[1:]) for k, v in self._negative["tables"].items()}
                null = Cond({**wide, **own}, index)
        extra: Sequence[Mapping[str, Any]] = [{}] * len(self.texts) if self.metadata is None else self.metadata
        entries = [{"text": self.texts[r], **extra[r]} for r in chosen]
        return Prompts(Cond(tables, index, null), ids, group, tuple(e for e in entries for _ in range(self.group_size)))

    def _encoded(self, encode: Encoder, texts: Sequence[str]) -> Mapping[str, Tensor]:
        tables = encode(texts)
        for name, table in tables.items():
            if len(table) != len(texts):
                raise GirsanovError(
                    f"the text encoder returned {len(table)} rows of {name!r} for {len(texts)} texts: it must return "
                    "one row a text, in order"
                )
        return tables
