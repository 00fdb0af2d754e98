"""How a model of digits is measured: on fixed noise, by the reward, the judge, its diversity and its drift."""

import math
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from girsanov.evaluation.diversity import nearest, within_class
from girsanov.evaluation.drift import path_kl
from girsanov.evaluation.judge import Judge
from girsanov.grids import Grid
from girsanov.models import ModelLike
from girsanov.noise import Noise
from girsanov.precision import as_wide
from girsanov.recipes.base import Metric, Samples
from girsanov.recipes.digits_data import CLASSES, SHAPE, balanced_labels, digit_cond, digit_prompts
from girsanov.rewards.base import Reward
from girsanov.rewards.strokes import ink, stroke_mask
from girsanov.samplers.base import Sampler
from girsanov.samplers.gddim import GDDIM
from girsanov.sampling import sample
from girsanov.spread import Spread
from girsanov.train import Run

LOT = 125  # pictures that a process draws at a time
METRICS = (
    Metric("reward", "Reward", "high"),
    Metric("judge", "Judge", "high", percent=True),
    Metric("diversity", "Diversity"),
    Metric("kl", "Path KL from the pretrained model"),
    Metric("probability", "Judge's probability", "high", percent=True),
    Metric("worst_class", "Judge on the digit it reads worst", "high", percent=True),
    Metric("background", "Ink outside strokes", "low"),
    Metric("nearest", "Distance to the nearest training picture"),
)


@dataclass(frozen=True)
class Evaluator:
    """Numbers of a model on fixed noise.

    Attributes:
        sampler, grid: the deployed solver.
        judge, reward: who measures.
        data: the pictures that the model was trained on, [N, 1, 8, 8].
        samples, seed: how many pictures, and the key of their noise.
        device: where they are made.
        spread: the processes that draw them.
    """

    sampler: Sampler
    grid: Grid
    judge: Judge
    reward: Reward
    data: Tensor
    samples: int
    seed: int
    device: torch.device
    spread: Spread = field(default_factory=Spread)

    def draw(self, model: ModelLike, n: int, seed: int) -> tuple[Tensor, Tensor]:
        """n decoded samples, every digit equally often, and what was asked for: [n, 1, 8, 8] on the host and [n]."""
        labels = balanced_labels(n)
        how: dict[str, Any] = {"sampler": self.sampler, "grid": self.grid, "seed": seed, "device": self.device}

        def lot(ids: Tensor) -> Tensor:
            return sample(model, cond=digit_cond(labels[ids]).to(self.device), ids=ids, **how).cpu()

        return torch.cat(self.spread.together(n, LOT, lot)), labels

    def sample(self, model: ModelLike, n: int, seed: int) -> Samples:
        """Pictures with their labels."""
        x, labels = self.draw(model, n, seed)
        return Samples(x, tuple(str(v) for v in labels.tolist()))

    def __call__(self, run: Run) -> dict[str, float]:
        """The numbers of the deployed model; ``NAME_se`` is a standard error."""
        numbers = self.measure(*self.draw(run.model(), self.samples, self.seed))
        return numbers | self.drift(run.model(), run.reference())

    @torch.no_grad()
    def measure(self, x: Tensor, labels: Tensor) -> dict[str, float]:
        """What pictures [n, 1, 8, 8] of digits [n] are worth."""
        verdict = self.judge(x, labels)
        values = {
            "reward": self.scored(x, labels),
            "judge": verdict.correct,
            "probability": verdict.asked,
            "background": background(x),
            "nearest": nearest(x.cpu(), self.data),
            "diversity": within_class(x.cpu(), labels),
        }
        for name in ("reward", "diversity"):  # a score that a pool dropped; a class with one picture
            values[name] = values[name][values[name].isfinite()]
        found = {name: float(as_wide(v).mean()) for name, v in values.items()}
        found |= {f"{name}_se": float(as_wide(v).std()) / math.sqrt(len(v)) for name, v in values.items()}
        worst = float(verdict.class_accuracy.nan_to_num(1.0).min())
        per_class = len(x) / CLASSES
        return found | {"worst_class": worst, "worst_class_se": math.sqrt(worst * (1 - worst) / per_class)}

    def scored(self, x: Tensor, labels: Tensor) -> Tensor:
        """Rewards [n] of pictures [n, 1, 8, 8] of digits [n], on the host."""
        asked = digit_prompts(labels)

        def lot(ids: Tensor) -> Tensor:
            return self.reward(x[ids].to(self.device), asked.take(ids).to(self.device)).cpu()

        return torch.cat(self.spread.apart(len(x), LOT, lot))

    @torch.no_grad()
    def drift(self, tuned: ModelLike, base: ModelLike) -> dict[str, float]:
        """The path KL of the chain at eta = 1, in nats."""
        labels = balanced_labels(self.samples)

        def lot(ids: Tensor) -> Tensor:
            noise = Noise(self.seed, 1, ids, device=self.device)
            x_T, cond = tuned.process.prior(noise.normal(SHAPE)), digit_cond(labels[ids]).to(self.device)
            return path_kl(tuned, base, GDDIM(1.0), self.grid, x_T, cond, noise=noise).cpu()

        total = torch.cat(self.spread.together(self.samples, LOT, lot))
        return {"kl": float(total.mean()), "kl_se": float(total.std()) / math.sqrt(len(total))}


def background(x: Tensor) -> Tensor:
    """Mean ink outside strokes of each picture, [n]."""
    amount = ink(x).clamp(0, 1)
    outside = 1 - stroke_mask(amount)
    return (amount * outside).flatten(1).sum(1) / outside.flatten(1).sum(1)
