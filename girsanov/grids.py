r"""Time grids: decreasing times from noise to data, on the host, apart from any sampler.

==========  ===================================================================================================
uniform     ``t_k = 1 - k/n``
shifted     ``u -> a u / (1 + (a - 1) u)`` of a uniform grid: more steps at the noise end for ``a > 1`` (SD3, FLUX)
karras      ``rho_k^(1/p)`` linear in k between the noise-to-signal ratios of the ends (EDM)
trailing    table indices ``round(N - k N/n) - 1``: starts at the last training step
leading     table indices ``k N//n + offset`` read backwards: the spacing Stable Diffusion was released with
pipeline    the times that a pretrained pipeline's own scheduler takes, its shift and spacing included
==========  ===================================================================================================

References: Esser et al. 2024, arXiv:2403.03206, section 5.3.2 (shift); Karras et al. 2022, arXiv:2206.00364, Eq. 5;
Lin et al. 2023, arXiv:2305.08891, Table 2 (leading, trailing).
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from girsanov.errors import GirsanovError
from girsanov.models import ModelLike
from girsanov.predictions import is_singular
from girsanov.processes import Process, VPTable
from girsanov.types import Step


class Grid:
    """Decreasing times ``t_0 > t_1 > ... > t_n`` in [0, 1]; ``n`` steps.

    Args:
        ts: the times, noise first. A grid may start below 1 and end above 0.
    """

    def __init__(self, ts: Sequence[float] | Tensor) -> None:
        times = torch.as_tensor(ts, dtype=torch.float64).cpu()
        if times.ndim != 1 or len(times) < 2:
            raise GirsanovError("a grid is a list of at least two times, noise first")
        if not bool(((times >= 0) & (times <= 1)).all()):
            raise GirsanovError("a grid holds times in [0, 1]: data is at t = 0 and noise at t = 1")
        if bool((times.diff() >= 0).any()):
            raise GirsanovError("a grid's times must fall, from noise (t = 1) to data (t = 0): reverse the list")
        self.ts = times

    def __len__(self) -> int:
        """The number of steps."""
        return len(self.ts) - 1

    def __iter__(self) -> Iterator[Step]:
        return (self[i] for i in range(len(self)))

    def __getitem__(self, i: int) -> Step:
        n = len(self)
        if not 0 <= i < n:
            raise IndexError(i)
        return Step(self.ts[i], self.ts[i + 1], i, n)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Grid) and torch.equal(self.ts, other.ts)

    def __hash__(self) -> int:
        return hash(tuple(self.ts.tolist()))

    def __repr__(self) -> str:
        return f"Grid({len(self)} steps, {float(self.ts[0]):.4g} -> {float(self.ts[-1]):.4g})"

    @classmethod
    def uniform(cls, n: int, start: float = 1.0, end: float = 0.0) -> "Grid":
        """n equal steps from start to end."""
        return cls(torch.linspace(start, end, _steps(n) + 1, dtype=torch.float64))

    @classmethod
    def shifted(cls, n: int, shift: float = 3.0, start: float = 1.0, end: float = 0.0) -> "Grid":
        """The uniform grid mapped by ``u -> shift u / (1 + (shift - 1) u)``."""
        if not shift > 0:
            raise GirsanovError(f"the shift of a grid must be positive, not {shift}")
        u = torch.linspace(start, end, _steps(n) + 1, dtype=torch.float64)
        return cls(shift * u / (1 + (shift - 1) * u))

    @classmethod
    def karras(
        cls, n: int, process: Process, power: float = 7.0, start: float = 0.999, last: float = 1e-3, end: float = 0.0
    ) -> "Grid":
        """EDM spacing: ``rho^(1/power)`` linear from time ``start`` to time ``last``, then one step to ``end``."""
        lo, hi = process.rho(last), process.rho(start)
        if not bool(torch.isfinite(hi)):
            raise GirsanovError("a Karras grid needs a finite noise ratio where it starts: give start < 1")
        u = torch.linspace(0, 1, _steps(n), dtype=torch.float64)
        rho = (hi ** (1 / power) + u * (lo ** (1 / power) - hi ** (1 / power))) ** power
        return cls(torch.cat([process.time_of_rho(rho), torch.tensor([end], dtype=torch.float64)]))

    @classmethod
    def trailing(cls, n: int, process: VPTable, end: float = 0.0) -> "Grid":
        """The "trailing" spacing of a table: starts at its last index."""
        total = _table_length(n, process)
        index = (total - torch.arange(_steps(n), dtype=torch.float64) * total / n).round().long() - 1
        return cls(torch.cat([(index + 1) / total, torch.tensor([end], dtype=torch.float64)]))

    @classmethod
    def leading(cls, n: int, process: VPTable, offset: int = 1, end: float = 0.0) -> "Grid":
        """The "leading" spacing of a table: ``k N//n + offset``. ``end=1/N`` is ``set_alpha_to_one=False``."""
        total = _table_length(n, process)
        index = torch.arange(_steps(n), dtype=torch.float64).flip(0) * (total // n) + offset
        if index[0] >= total:
            most = total - 1 - (n - 1) * (total // n)
            raise GirsanovError(
                f"an offset of {offset} leads past the table's last index {total - 1}: take at most {most}"
            )
        return cls(torch.cat([(index + 1) / total, torch.tensor([end], dtype=torch.float64)]))


def _steps(n: int) -> int:
    if n < 1:
        raise GirsanovError(f"a grid has at least one step, not {n}")
    return n


def _table_length(n: int, process: VPTable) -> int:
    total = len(process.alphas_cumprod)
    if _steps(n) > total:
        raise GirsanovError(f"{n} steps do not fit a table of {total} times: take at most {total}")
    return total


def default_grid(model: ModelLike, n: int) -> Grid:
    """The grid of n steps to use when none is asked for: uniform from t = 1, or from 0.999 where t = 1 is singular.

    An eps or score prediction says nothing of x_0 where alpha = 0 (rectified flow and cosine at t = 1). Table processes
    get their "trailing" indices, the times the network was trained at.
    """
    if isinstance(model.process, VPTable):
        return Grid.trailing(n, model.process)
    return Grid.uniform(n, start=0.999 if is_singular(model.process(1.0), model.prediction) else 1.0)


@dataclass(frozen=True)
class PipelineTimes:
    """The grids of a pretrained pipeline: ``times(n)`` is the one of n steps."""

    times: Callable[[int], Grid]


def pipeline(n: int, source: PipelineTimes) -> Grid:
    """The n steps that a pretrained pipeline's own scheduler takes."""
    return source.times(_steps(n))


GRIDS: dict[str, Callable[..., Grid]] = {
    "uniform": Grid.uniform,
    "shifted": Grid.shifted,
    "karras": Grid.karras,
    "trailing": Grid.trailing,
    "leading": Grid.leading,
    "pipeline": pipeline,
}
"""Every grid by name; "karras", "trailing" and "leading" also need the process, "pipeline" a pipeline."""
