"""Prompt sources: every prompt once an epoch, never twice in a batch, a pure function of the iteration."""

from collections import Counter

import hypothesis.strategies as st
import pytest
import torch
from hypothesis import given

from girsanov.errors import GirsanovError
from girsanov.models import Guided, Model
from girsanov.processes import RectifiedFlow
from girsanov.prompts import ClassPrompts, Groups, TextPrompts, groups_in


@given(prompts=st.integers(1, 25), per_batch=st.integers(1, 60), seed=st.integers(0, 3))
def test_an_epoch_asks_once_for_every_prompt_and_a_batch_never_twice(prompts, per_batch, seed):
    groups = Groups(prompts, per_batch, 2, seed)
    batches = [groups.rows(i) for i in range(2 * prompts)]
    often = -(-per_batch // prompts)
    for rows in batches:
        counts = Counter(rows.tolist()).values()
        assert len(rows) == per_batch
        assert max(counts) <= often
    whole, n = divmod(per_batch, prompts)
    stream = torch.cat([rows[:n] for rows in batches])
    for epoch in stream.split(prompts):
        assert len(epoch.unique()) == len(epoch)
    total = torch.bincount(torch.cat(batches), minlength=prompts)
    assert total.tolist() == [2 * per_batch] * prompts  # 2 N batches are 2 per_batch epochs


def test_resuming_gives_the_same_order():
    straight = ClassPrompts(num_classes=10, groups_per_batch=6, group_size=4, seed=1)
    seen = [straight.batch(i).cond["label"] for i in range(40)]
    for i in (39, 3, 17, 0, 38):
        fresh = ClassPrompts(num_classes=10, groups_per_batch=6, group_size=4, seed=1)
        assert torch.equal(fresh.batch(i).cond["label"], seen[i])
        assert torch.equal(straight.batch(i).cond["label"], seen[i])
    other = ClassPrompts(num_classes=10, groups_per_batch=6, group_size=4, seed=2)
    assert any(not torch.equal(other.batch(i).cond["label"], seen[i]) for i in range(3))


def test_class_prompts_share_a_row_a_group_and_carry_the_null_class():
    batch = ClassPrompts(num_classes=10, groups_per_batch=5, group_size=3, null_class=10).batch(2)
    labels = batch.cond["label"].view(5, 3)
    assert (labels == labels[:, :1]).all() and len(labels[:, 0].unique()) == 5
    assert batch.group.tolist() == [g for g in range(5) for _ in range(3)]
    assert batch.ids.tolist() == list(range(15))
    assert batch.meta == tuple(batch.cond["label"].tolist())
    assert batch.cond.null["label"].tolist() == [10] * 15
    assert ClassPrompts(num_classes=10, groups_per_batch=5, group_size=3).batch(0).cond.null is None


def test_guidance_takes_the_null_branch_of_both_sources():
    def net(x, t, cond):
        return x * 0 + cond["label"].to(x)[:, None]

    model = Guided(Model(net, RectifiedFlow(), "velocity", (2,)), 3.0)
    batch = ClassPrompts(num_classes=10, groups_per_batch=4, group_size=2, null_class=10).batch(0)
    p = model(torch.zeros(8, 2, dtype=torch.float64), torch.tensor(0.5, dtype=torch.float64), batch.cond)
    assert torch.equal(p[:, 0], 10.0 + 3.0 * (batch.cond["label"] - 10.0).double())
    texts = TextPrompts(texts=["a", "bb", "ccc"], encode=lengths, groups_per_batch=3, group_size=2, negative="-----")
    batch = texts.batch(0)
    p = model(torch.zeros(6, 2, dtype=torch.float64), torch.tensor(0.5, dtype=torch.float64), batch.cond)
    assert torch.equal(p[:, 0], 5.0 + 3.0 * (batch.cond["label"] - 5.0).double())


def lengths(texts):
    return {"label": torch.tensor([len(t) for t in texts])}


def test_text_prompts_encode_each_text_once_and_keep_its_metadata():
    calls = []

    def encode(texts):
        calls.append(list(texts))
        return lengths(texts)

    source = TextPrompts(
        texts=["a", "bb", "ccc"], encode=encode, groups_per_batch=2, group_size=4, negative="",
        metadata=[{"count": 1}, {"count": 2}, {"count": 3}],
    )  # fmt: skip
    first, second = source.batch(0), source.batch(1)
    assert [len(c) for c in calls] == [2, 1, 2] and calls[1] == [""]
    for batch in (first, second):
        assert [len(m["text"]) for m in batch.meta] == batch.cond["label"].tolist()
        assert [m["count"] for m in batch.meta] == batch.cond["label"].tolist()
        assert len(batch.cond.tables["label"]) == 2


@pytest.mark.parametrize(
    "wrong, sentence",
    [
        (
            lambda: groups_in(100, 8),
            "a batch of 100 samples does not divide into groups of 8: use 96 or 104 samples",
        ),
        (
            lambda: ClassPrompts(num_classes=10, groups_per_batch=6, group_size=2).batch(0, 0, 4),
            "6 groups a batch do not spread over 4 processes in whole groups: use 4 or 8 groups",
        ),
        (
            lambda: ClassPrompts(num_classes=10, groups_per_batch=6, group_size=0),
            "group_size = 0 must be at least 1",
        ),
        (
            lambda: ClassPrompts(num_classes=0, groups_per_batch=6, group_size=2),
            "the number of prompts (or classes) is 0: there must be at least one",
        ),
        (
            lambda: TextPrompts(texts=[], encode=lengths, groups_per_batch=1, group_size=1),
            "texts is empty: give at least one prompt",
        ),
        (
            lambda: TextPrompts(texts="a cat", encode=lengths, groups_per_batch=1, group_size=1),
            "texts is a list of strings, one a prompt",
        ),
        (
            lambda: TextPrompts(texts=["a"], encode=lengths, groups_per_batch=1, group_size=1, metadata=[{}, {}]),
            "2 entries of metadata for 1 texts: give one each",
        ),
        (
            lambda: TextPrompts(
                texts=["a"], encode=lambda t: {"text": torch.zeros(2, 3)}, groups_per_batch=1, group_size=1
            ).batch(0),
            "the text encoder returned 2 rows of 'text' for 1 texts: it must return one row a text, in order",
        ),
    ],
)
def test_bad_input_gives_one_sentence(wrong, sentence):
    with pytest.raises(GirsanovError) as error:
        wrong()
    assert str(error.value) == sentence


def test_groups_in_divides():
    assert groups_in(96, 8) == 12


def test_further_conditions_follow_their_text_into_both_branches():
    """A table with a row a text reaches the samples of that text and their negative branch, which is encoded apart."""
    extra = torch.tensor([[1.0], [2.0], [3.0]])
    source = TextPrompts(
        texts=["a", "bb", "ccc"], encode=lengths, encode_negative=lambda t: {"label": torch.tensor([-1])},
        negative="x", conditions={"picture": extra}, groups_per_batch=2, group_size=2,
    )  # fmt: skip
    for iteration in range(3):
        cond = source.batch(iteration).cond
        assert torch.equal(cond["picture"][:, 0], cond["label"].float())
        assert torch.equal(cond.null["picture"], cond["picture"]) and cond.null["label"].tolist() == [-1] * 4
        tables, null = cond.with_null_rows()
        assert torch.equal(tables["picture"][null], cond["picture"])
    with pytest.raises(GirsanovError, match="2 rows of the condition 'picture' for 3 texts: give one each"):
        TextPrompts(
            texts=["a", "bb", "c"], encode=lengths, conditions={"picture": extra[:2]}, groups_per_batch=1, group_size=1
        )  # fmt: skip
