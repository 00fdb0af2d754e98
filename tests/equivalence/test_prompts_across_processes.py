"""One, two and four processes ask for the same samples of the same prompts, in whole groups."""

import pytest
import torch

from girsanov.prompts import ClassPrompts, TextPrompts


def encode(texts):
    return {"label": torch.tensor([int(t) for t in texts])}


SOURCES = {
    "classes": ClassPrompts(num_classes=10, groups_per_batch=8, group_size=3, null_class=10),
    "more groups than classes": ClassPrompts(num_classes=3, groups_per_batch=8, group_size=2),
    "texts": TextPrompts(
        texts=[str(i) for i in range(11)], encode=encode, groups_per_batch=4, group_size=5, negative="99"
    ),
}


@pytest.mark.parametrize("name", SOURCES)
@pytest.mark.parametrize("world_size", [2, 4])
def test_any_number_of_processes_asks_for_the_same_union(name, world_size):
    source = SOURCES[name]
    for iteration in range(12):
        one = source.batch(iteration, 0, 1)
        parts = [source.batch(iteration, rank, world_size) for rank in range(world_size)]
        for part in parts:
            counts = part.group.unique(return_counts=True)[1]
            assert set(counts.tolist()) == {source.group_size}  # whole groups on every rank
        assert torch.equal(torch.cat([p.ids for p in parts]), one.ids)
        assert torch.equal(torch.cat([p.group for p in parts]), one.group)
        assert torch.equal(torch.cat([p.cond["label"] for p in parts]), one.cond["label"])
        assert sum((p.meta for p in parts), ()) == one.meta
        if one.cond.null is not None:
            assert torch.equal(torch.cat([p.cond.null["label"] for p in parts]), one.cond.null["label"])
