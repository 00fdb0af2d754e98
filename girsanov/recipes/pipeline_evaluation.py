"""How a pipeline is measured: on fixed prompts and noise, by the reward, a held-out judge, diversity and drift."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from girsanov.evaluation.diversity import within_class
from girsanov.evaluation.drift import path_kl
from girsanov.grids import Grid, default_grid
from girsanov.models import ModelLike
from girsanov.noise import Noise
from girsanov.precision import as_wide
from girsanov.recipes.base import Metric, Samples
from girsanov.rewards.base import Reward
from girsanov.rollout import rollout
from girsanov.samplers import GDDIM, Sampler
from girsanov.spread import Spread
from girsanov.starts import first_states, has_start
from girsanov.train import Run
from girsanov.types import Cond, Prompts

METRICS = (
    Metric("reward", "Reward", "high"),
    Metric("judge", "Held-out judge", "high"),
    Metric("diversity", "Diversity (RMS distance within a prompt)"),
    Metric("kl", "Path KL from the pretrained model"),
)


@dataclass(frozen=True)
class PipelineEvaluator:
    """Numbers of a model on fixed prompts and noise.

    Attributes:
        sampler, grid: the deployed solver.
        cond: conditions of the P prompts, one row each.
        meta, labels: what the reward may read of each prompt, and what people read.
        reward, judge: who measures; the judge may be missing.
        samples, batch: how many are drawn, and how many at a time.
        kl_samples: on how many the path KL is measured; 0 leaves it out.
        seed: key of the noise.
        device: where they are made.
        spread: the processes that draw and score them, ``batch`` at a time.
    """

    sampler: Sampler
    grid: Grid
    cond: Cond
    meta: Sequence[Any]
    labels: Sequence[str]
    reward: Reward
    judge: Reward | None
    samples: int
    batch: int
    kl_samples: int
    seed: int
    device: torch.device
    spread: Spread = field(default_factory=Spread)

    def requests(self, ids: Tensor) -> Prompts:
        """The requests with these ids; the prompts take turns."""
        index = ids % len(self.meta)
        meta = tuple(self.meta[i] for i in index.tolist())
        return Prompts(self.cond.take(index).to(self.device), ids, index, meta)

    def start(self, model: ModelLike, grid: Grid, asked: Prompts, seed: int) -> tuple[Tensor, Noise]:
        """First states [n, *D], and the noise of the steps."""
        noise = Noise(seed, 0, asked.ids, device=self.device)
        return first_states(model, grid, noise, asked.cond), noise

    @torch.no_grad()
    def sample(self, model: ModelLike, n: int, seed: int) -> Samples:
        """n decoded samples on the host with their prompts."""

        def draw(ids: Tensor) -> Tensor:
            asked = self.requests(ids)
            x_T, noise = self.start(model, self.grid, asked, seed)
            path = rollout(model, self.sampler, self.grid, x_T, asked.cond, noise=noise, keep=())
            return model.decode(path.x0).cpu()

        x = torch.cat(self.spread.together(n, self.batch, draw))
        return Samples(x, tuple(self.labels[i % len(self.labels)] for i in range(n)))

    @torch.no_grad()
    def __call__(self, run: Run) -> dict[str, float]:
        """The numbers of the deployed model; ``NAME_se`` is a standard error."""
        drawn, ids = self.sample(run.model(), self.samples, self.seed), torch.arange(self.samples)
        values: dict[str, Tensor] = {"reward": self.scored(self.reward, drawn.x)}
        if self.judge is not None:
            values["judge"] = self.scored(self.judge, drawn.x)
        spread = within_class(drawn.x, ids % len(self.meta)) / math.sqrt(drawn.x[0].numel())
        values["diversity"] = spread
        if self.kl_samples:
            values["kl"] = self.drift(run.model(), run.reference())
        values = {k: as_wide(v[v.isfinite()]) for k, v in values.items()}
        found = {k: float(v.mean()) for k, v in values.items() if len(v)}
        return found | {f"{k}_se": float(v.std()) / math.sqrt(len(v)) for k, v in values.items() if len(v) > 1}

    def scored(self, reward: Reward, x: Tensor) -> Tensor:
        """Scores [n] of the samples, a batch at a time."""

        def score(ids: Tensor) -> Tensor:
            return reward(x[ids].to(self.device), self.requests(ids)).cpu().float()

        return torch.cat(self.spread.apart(len(x), self.batch, score))

    def drift(self, tuned: ModelLike, base: ModelLike) -> Tensor:
        """The path KL of the chain at eta = 1 on each of a few samples, in nats.

        On the default grid of as many steps: the pipeline's own may end with a step so short that the noise there,
        and with it the KL, says nothing. Where samples begin from pictures, that grid is scaled to begin where the
        pipeline's does.
        """
        grid = default_grid(tuned, len(self.grid))
        if has_start(self.cond):
            grid = Grid(grid.ts * (self.grid.ts[0] / grid.ts[0]))

        def kl(ids: Tensor) -> Tensor:
            asked = self.requests(ids)
            x_T, noise = self.start(tuned, grid, asked, self.seed)
            return path_kl(tuned, base, GDDIM(1.0), grid, x_T, asked.cond, noise=noise).cpu()

        return torch.cat(self.spread.together(self.kl_samples, self.batch, kl))

    def metrics(self) -> tuple[Metric, ...]:
        """What it measures."""
        left_out = {"judge"} if self.judge is None else set()
        left_out |= set() if self.kl_samples else {"kl"}
        left_out |= set() if self.samples >= 2 * len(self.meta) else {"diversity"}
        return tuple(m for m in METRICS if m.key not in left_out)


def told(entry: Mapping[str, Any] | Any) -> str:
    """A prompt's metadata as a caption."""
    return str(entry["text"]) if isinstance(entry, Mapping) and "text" in entry else str(entry)
