"""What a backward pass keeps, counted against what the layers are known to save."""

import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from girsanov.memory import SavedBytes, held, size, told


def test_what_is_kept_is_the_inputs_of_each_layer() -> None:
    """A linear layer keeps its input, tanh its output, a square its argument: 10 rows of 8, 16 and 4 floats."""
    net = nn.Sequential(nn.Linear(8, 16), nn.Tanh(), nn.Linear(16, 4))
    x = torch.randn(10, 8)
    with SavedBytes(net) as kept:
        loss = net(x).square().sum()
    assert kept.peak == kept.now == 4 * 10 * (8 + 16 + 4)
    loss.backward()
    del loss
    assert kept.now == 0 and kept.peak == 4 * 10 * (8 + 16 + 4)


def test_storage_that_two_layers_keep_counts_once() -> None:
    """The same input [5, 3] feeds two layers; their outputs multiply, and each is kept by the other's side."""
    a, b, x = nn.Linear(3, 7), nn.Linear(3, 7), torch.randn(5, 3)
    with SavedBytes(nn.ModuleList([a, b])) as kept:
        loss = (a(x) * b(x)).sum()
    assert kept.peak == 4 * (5 * 3 + 2 * 5 * 7)
    loss.backward()


def test_one_pass_after_another_needs_no_more_than_one() -> None:
    net, x = nn.Linear(6, 6), torch.randn(4, 6)
    with SavedBytes(net) as kept:
        for _ in range(3):
            net(x).square().sum().backward()
    assert kept.peak == 4 * 2 * 4 * 6


def test_checkpointing_keeps_the_input_alone() -> None:
    net = nn.Sequential(nn.Linear(6, 50), nn.Tanh(), nn.Linear(50, 6))
    x = torch.randn(4, 6, requires_grad=True)
    with SavedBytes(net) as kept:
        loss = checkpoint(net, x, use_reentrant=False).sum()
    assert kept.peak < 4 * 4 * 50
    loss.backward()


def test_sizes() -> None:
    x = torch.zeros(10, dtype=torch.float64)
    assert size({"a": x, "b": [x[:5], x[5:]]}) == 80  # views share their storage
    assert held(nn.BatchNorm1d(3)) == 4 * 3 * 4 + 8  # weight, bias, two running buffers, a counter
    assert [told(n) for n in (5, 1234, 5e6, 7.25e9)] == ["5 B", "1.23 KB", "5 MB", "7.25 GB"]
