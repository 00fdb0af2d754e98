"""Records: conditions, prompts, batches, and how a part of one is taken."""

from dataclasses import dataclass

import pytest
import torch
from torch import Tensor

from girsanov.errors import GirsanovError
from girsanov.types import Batch, Cond, Prompts, Step

TABLE = {"text": torch.arange(6.0).view(3, 2), "size": torch.tensor([64, 32, 16])}
COND = Cond(TABLE, torch.tensor([0, 0, 2, 1]), Cond(TABLE, torch.tensor([1, 1, 1, 1])))


def test_samples_of_one_prompt_share_a_row() -> None:
    assert len(COND) == 4
    assert COND["text"].tolist() == [[0, 1], [0, 1], [4, 5], [2, 3]] and COND["size"].tolist() == [64, 64, 16, 32]
    part = COND.take(torch.tensor([3, 0]))
    assert part["size"].tolist() == [32, 64] and len(part.null) == 2
    assert part.tables is COND.tables, "the tables are shared, not copied"
    moved = COND.to("cpu")
    assert torch.equal(moved["text"], COND["text"]) and torch.equal(moved.null.index, COND.null.index)


def test_a_missing_condition_is_told() -> None:
    with pytest.raises(GirsanovError) as error:
        COND["mask"]
    assert str(error.value) == "no condition is called 'mask': this batch has text, size"
    with pytest.raises(GirsanovError) as error:
        Cond({}, torch.arange(2))["mask"]
    assert str(error.value) == "no condition is called 'mask': this batch has none"


def test_prompts_are_taken_with_all_they_hold() -> None:
    prompts = Prompts(COND, torch.tensor([10, 11, 12, 13]), torch.tensor([4, 4, 5, 6]), ("a", "b", "c", "d"))
    part = prompts.take(torch.tensor([2, 0]))
    assert (part.ids.tolist(), part.group.tolist(), part.meta) == ([12, 10], [5, 4], ("c", "a"))
    assert part.cond["size"].tolist() == [16, 64] and len(part) == 2
    assert Prompts(COND, prompts.ids, prompts.group).take(torch.tensor([1])).meta == ()


def test_a_step_goes_down() -> None:
    step = Step(torch.tensor(0.5, dtype=torch.float64), torch.tensor(0.3, dtype=torch.float64), 2, 10)
    assert float(step.h) == pytest.approx(-0.2, abs=1e-16)


@dataclass(frozen=True)
class Pair(Batch):
    """A batch of its own fields."""

    reward: Tensor
    cond: Cond
    nested: tuple[Tensor, ...]
    nothing: Tensor | None = None


def test_a_batch_takes_every_field() -> None:
    batch = Pair(torch.arange(4.0), COND, (torch.arange(4), torch.arange(4) * 10))
    part = batch.take(torch.tensor([3, 1]))
    assert len(batch) == 4 and len(part) == 2 and isinstance(part, Pair)
    assert part.reward.tolist() == [3, 1] and part.cond["size"].tolist() == [32, 64]
    assert [n.tolist() for n in part.nested] == [[3, 1], [30, 10]] and part.nothing is None
