"""Laws of the time grids, and of the indices that tables are visited at."""

import pytest
import torch

from girsanov.errors import GirsanovError
from girsanov.grids import GRIDS, Grid, PipelineTimes, default_grid
from girsanov.processes import VE, VP, Cosine, RectifiedFlow, VPTable
from tests.laws.cases import EVERY_PROCESS, F64, KINDS, SOLID

TABLE = VPTable.stable_diffusion()


def indices(grid: Grid) -> list[int]:
    """Table indices of a grid's step starts: ``t = (i + 1) / N``."""
    return (grid.ts[:-1] * 1000 - 1).round().long().tolist()


@pytest.mark.parametrize("n", [1, 2, 7, 50])
@pytest.mark.parametrize("name", GRIDS)
def test_every_grid_falls_from_noise_to_data(name: str, n: int) -> None:
    times = {"karras": VE(80.0), "trailing": TABLE, "leading": TABLE, "pipeline": PipelineTimes(Grid.uniform)}
    needs = (times[name],) if name in times else ()
    if name == "karras" and n == 1:
        return  # checked below: one step goes from the start to the end
    grid = GRIDS[name](n, *needs)
    assert len(grid) == n and len(list(grid)) == n
    assert bool((grid.ts.diff() < 0).all()) and grid.ts.dtype == F64
    assert float(grid.ts[-1]) == 0.0
    steps = list(grid)
    assert [s.i for s in steps] == list(range(n)) and all(s.n == n for s in steps)
    for one, other in zip(steps, steps[1:], strict=False):
        assert torch.equal(one.s, other.t)
    assert float(steps[0].h) == float(grid.ts[1] - grid.ts[0]) < 0


def test_uniform() -> None:
    assert torch.allclose(Grid.uniform(4).ts, torch.tensor([1, 0.75, 0.5, 0.25, 0], dtype=F64), atol=0, rtol=0)
    part = Grid.uniform(2, start=0.9, end=0.1)
    assert torch.allclose(part.ts, torch.tensor([0.9, 0.5, 0.1], dtype=F64), atol=1e-15)


def test_shifted_moves_rho_by_the_shift() -> None:
    """On a rectified flow the map multiplies ``rho = t / (1 - t)`` by the shift; both ends stay: 1e-12."""
    plain, moved = Grid.uniform(8).ts[1:-1], Grid.shifted(8, shift=3.0).ts
    assert float(moved[0]) == 1.0 and float(moved[-1]) == 0.0
    inner = moved[1:-1]
    assert torch.allclose(inner / (1 - inner), 3 * plain / (1 - plain), rtol=1e-12, atol=0)
    assert Grid.shifted(8, shift=1.0) == Grid.uniform(8)


def check_karras() -> None:
    """EDM's formula: ``(hi^(1/7) + k/(n-1) (lo^(1/7) - hi^(1/7)))^7`` from 80 to .002, then 0; relative 1e-9."""
    n, hi, lo = 18, 80.0, 0.002
    grid = Grid.karras(n, VE(80.0), start=1.0, last=lo / hi)
    expected = [(hi ** (1 / 7) + k / (n - 1) * (lo ** (1 / 7) - hi ** (1 / 7))) ** 7 for k in range(n)]
    assert torch.allclose(grid.ts[:-1] * 80, torch.tensor(expected, dtype=F64), rtol=1e-9, atol=0)
    assert float(grid.ts[-1]) == 0.0


def test_karras() -> None:
    check_karras()


@pytest.mark.parametrize("process", [RectifiedFlow(), Cosine(), VP(), TABLE], ids=lambda p: type(p).__name__)
def test_karras_is_even_in_the_root_of_rho(process: object) -> None:
    """On any process ``rho^(1/7)`` falls by equal amounts between the ends asked for: relative 1e-6."""
    grid = Grid.karras(12, process, start=0.99, last=0.01)
    root = process.rho(grid.ts[:-1]) ** (1 / 7)
    assert torch.allclose(root.diff(), root.diff().mean().expand(11), rtol=1e-6, atol=0)
    assert float(grid.ts[0]) == pytest.approx(0.99, abs=1e-9) and float(grid.ts[-2]) == pytest.approx(0.01, abs=1e-9)


@pytest.mark.parametrize(
    ("n", "first", "last"),
    [(10, [999, 899, 799], [199, 99]), (20, [999, 949, 899], [99, 49]), (3, [999, 666, 332], [666, 332])],
)
def test_trailing(n: int, first: list[int], last: list[int]) -> None:
    """``round(N - k N / n) - 1``: starts at the last training step (Lin et al. 2023, Table 2)."""
    got = indices(Grid.trailing(n, TABLE))
    assert got[:3] == first and got[-2:] == last


@pytest.mark.parametrize("offset", [0, 1])
def test_leading(offset: int) -> None:
    """``k (N // n) + offset`` read backwards: Stable Diffusion's 50 steps are 981, 961, .. 1 with offset 1."""
    got = indices(Grid.leading(50, TABLE, offset=offset))
    assert got == [k * 20 + offset for k in reversed(range(50))]


def test_a_grid_may_end_above_zero() -> None:
    """``set_alpha_to_one=False`` ends at the table's first alpha, t = 1/N."""
    grid = Grid.leading(50, TABLE, end=1 / 1000)
    assert float(TABLE(grid.ts[-1]).alpha ** 2) == pytest.approx(TABLE.alphas_cumprod[0], rel=1e-12)
    with pytest.raises(GirsanovError, match="must fall"):
        Grid.leading(50, TABLE, offset=0, end=1 / 1000)  # its last index is 0: t = 1/N already


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", EVERY_PROCESS)
def test_the_default_grid_starts_where_the_model_can_answer(name: str, kind: str) -> None:
    """From t = 1, but from .999 for eps and score on processes without signal at t = 1; tables at their own times."""
    model = SOLID.model(EVERY_PROCESS[name], kind)
    grid = default_grid(model, 10)
    if name == "vp-table":
        assert grid == Grid.trailing(10, TABLE)
    else:
        blind = name in ("rectified-flow", "cosine") and kind in ("eps", "score")
        assert grid == Grid.uniform(10, start=0.999 if blind else 1.0)


def test_grids_are_values() -> None:
    assert Grid.uniform(4) == Grid([1, 0.75, 0.5, 0.25, 0]) and hash(Grid.uniform(4)) == hash(Grid.uniform(4))
    assert Grid.uniform(4) != Grid.uniform(5)
    assert repr(Grid.uniform(4)) == "Grid(4 steps, 1 -> 0)"


@pytest.mark.parametrize(
    ("make", "sentence"),
    [
        (lambda: Grid([0, 0.5, 1]), "a grid's times must fall, from noise (t = 1) to data (t = 0): reverse the list"),
        (lambda: Grid([1, 0.5, 0.5]), "a grid's times must fall, from noise (t = 1) to data (t = 0): reverse the list"),
        (lambda: Grid([1000, 500, 0]), "a grid holds times in [0, 1]: data is at t = 0 and noise at t = 1"),
        (lambda: Grid([1.0, float("nan"), 0.0]), "a grid holds times in [0, 1]: data is at t = 0 and noise at t = 1"),
        (lambda: Grid([1.0]), "a grid is a list of at least two times, noise first"),
        (lambda: Grid.uniform(0), "a grid has at least one step, not 0"),
        (lambda: Grid.shifted(4, shift=0.0), "the shift of a grid must be positive, not 0.0"),
        (
            lambda: Grid.karras(4, RectifiedFlow(), start=1.0),
            "a Karras grid needs a finite noise ratio where it starts: give start < 1",
        ),
        (
            lambda: Grid.trailing(2000, TABLE),
            "2000 steps do not fit a table of 1000 times: take at most 1000",
        ),
        (
            lambda: Grid.leading(2000, TABLE),
            "2000 steps do not fit a table of 1000 times: take at most 1000",
        ),
        (
            lambda: Grid.leading(50, TABLE, offset=25),
            "an offset of 25 leads past the table's last index 999: take at most 19",
        ),
    ],
)
def test_bad_grids_are_told(make: object, sentence: str) -> None:
    with pytest.raises(GirsanovError) as error:
        make()
    assert str(error.value) == sentence
