"""Noise: keyed by sample, never by batch."""

import math

import pytest
import torch

from girsanov.noise import Noise, generator

IDS = torch.tensor([5, 0, 12, 7])


def test_a_sample_has_the_same_noise_in_any_batch() -> None:
    """Whole batch, shuffled batch, micro-batches of 1 and 3, three draws in a row: the same numbers to the bit."""
    like = torch.zeros(4, 2, 3)
    whole = Noise(3, 1, IDS)
    draws = [whole(like) for _ in range(3)]
    order = torch.tensor([2, 3, 0, 1])
    shuffled = Noise(3, 1, IDS[order])
    parts = [Noise(3, 1, IDS[:1]), Noise(3, 1, IDS[1:])]
    for draw in draws:
        assert torch.equal(shuffled(like), draw[order])
        assert torch.equal(torch.cat([parts[0](like[:1]), parts[1](like[1:])]), draw)


def test_every_part_of_the_key_counts() -> None:
    base = Noise(3, 1, IDS, stream=2).normal((8,))
    others = [
        Noise(4, 1, IDS, stream=2),
        Noise(3, 2, IDS, stream=2),
        Noise(3, 1, IDS, stream=3),
        Noise(3, 1, IDS + 1, 2),
    ]
    for other in others:
        assert not bool((other.normal((8,)) == base).any())
    assert torch.equal(Noise(3, 1, IDS, stream=2).normal((8,)), base)
    assert not torch.equal(base[0], base[1])


def test_swapped_keys_are_other_keys() -> None:
    """(1, 2) is not (2, 1), and ids do not run into the iteration."""
    a, b = (torch.rand(4, generator=generator(key)) for key in ((1, 2, 0, 3), (2, 1, 0, 3)))
    assert not torch.equal(a, b)


def test_calls_go_on_and_do_not_repeat() -> None:
    noise = Noise(0, 0, IDS)
    first, second = noise(torch.zeros(4, 5)), noise(torch.zeros(4, 5))
    assert not bool((first == second).any())


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_normal_moments(dtype: torch.dtype) -> None:
    """400 samples x 400 numbers, seed 0: mean, variance, fourth moment, correlation of neighbours within 4 s.e."""
    z = Noise(0, 0, torch.arange(400)).normal((400,), dtype)
    assert z.dtype == dtype and z.shape == (400, 400)
    z, n = z.double(), 160000
    assert abs(float(z.mean())) < 4 / math.sqrt(n)
    assert abs(float((z**2).mean()) - 1) < 4 * math.sqrt(2 / n)
    assert abs(float((z**4).mean()) - 3) < 4 * math.sqrt(96 / n)
    assert abs(float((z[1:] * z[:-1]).mean())) < 4 / math.sqrt(n - 400)


def test_uniform_moments() -> None:
    """400 samples x 100 numbers, seed 1: inside [0, 1), mean and variance within 4 s.e.; scalars have shape [B]."""
    noise = Noise(1, 0, torch.arange(400))
    u, n = noise.uniform((100,)), 40000
    assert bool(((u >= 0) & (u < 1)).all())
    assert abs(float(u.mean()) - 0.5) < 4 / math.sqrt(12 * n)
    assert abs(float(u.var()) - 1 / 12) < 4 * math.sqrt(1 / 180 / n)
    assert noise.uniform().shape == (400,)
