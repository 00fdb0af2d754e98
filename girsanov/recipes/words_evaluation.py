"""What a model of words is worth: reward, real words, different words, and the KL; and how words are shown."""

import io
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor

from girsanov.language.generation import Sampling, generate
from girsanov.language.model import LanguageModel
from girsanov.language.rewards import TextReward
from girsanov.language.tokens import Completions, join
from girsanov.models import ModelLike
from girsanov.noise import Noise
from girsanov.policy import Policy
from girsanov.recipes.base import Metric, Samples
from girsanov.recipes.words_data import LETTERS, ROW, Words
from girsanov.spread import Spread
from girsanov.train import Run

DRAW = Sampling(max_tokens=ROW - 1)
LOT = 260  # words that a process draws at a time
METRICS = (
    Metric("reward", "Reward", "high"),
    Metric("judge", "Real words", "high", percent=True),
    Metric("diversity", "Different words", percent=True),
    Metric("kl", "KL from the pretrained model"),
)


def drawn(model: LanguageModel, letters: Sequence[str], seed: int, spread: Spread) -> Completions:
    """A word for every first letter, on the host."""

    def lot(ids: Tensor) -> Completions:
        prompts = [model.encoder.prompt(letters[i]) for i in ids.tolist()]
        return generate(model, prompts, Noise(seed, 0, ids), DRAW).to("cpu")

    return join(spread.together(len(letters), LOT, lot), model.encoder.filler)


def draw(model: LanguageModel, letters: Sequence[str], seed: int, spread: Spread) -> list[str]:
    """The rest of a word for every first letter."""
    return model.encoder.texts(drawn(model, letters, seed, spread))


class Evaluator:
    """Words of a model, and what they are worth.

    Args:
        words: the real ones.
        reward: what is aimed at.
        samples: how many words.
        seed: of their noise.
        spread: the processes that draw them.
    """

    def __init__(self, words: Words, reward: TextReward, samples: int, seed: int, spread: Spread | None = None) -> None:
        self.words, self.reward, self.samples, self.seed = words, reward, samples, seed
        self.spread = spread or Spread()

    def __call__(self, run: Run) -> dict[str, float]:
        """Numbers of the tuned model."""
        return self.measure(run.policy, cast(LanguageModel, cast(Any, run.model())))

    @torch.no_grad()
    def measure(self, policy: Policy, model: LanguageModel) -> dict[str, float]:
        """Reward, share of real and of different words, and KL from the reference, with standard errors."""
        letters = [LETTERS[i % len(LETTERS)] for i in range(self.samples)]
        rows = drawn(model, letters, self.seed, self.spread)
        rests = model.encoder.texts(rows)
        words = [a + w for a, w in zip(letters, rests, strict=True)]
        reference = cast(LanguageModel, policy.view("reference"))

        def moved(ids: Tensor) -> Tensor:
            part = rows.take(ids).to(model.device)
            return (model.logp(part) - reference.logp(part)).cpu()

        numbers: dict[str, Tensor] = {
            "reward": self.reward(letters, rests),
            "judge": torch.tensor([float(w in self.words) for w in words]),
            "kl": torch.cat(self.spread.together(len(rows), LOT, moved)),
        }
        means = {k: float(v.double().mean()) for k, v in numbers.items()}
        errors = {f"{k}_se": float(v.double().std()) / math.sqrt(len(v)) for k, v in numbers.items()}
        return means | errors | {"diversity": len(set(words)) / len(words)}

    def sample(self, model: ModelLike, n: int, seed: int) -> Samples:
        """n words, the letters in turn."""
        letters = [LETTERS[i % len(LETTERS)] for i in range(n)]
        rests = draw(cast(LanguageModel, cast(Any, model)), letters, seed, self.spread)
        return Samples(torch.zeros(n, 0), tuple(a + w for a, w in zip(letters, rests, strict=True)))

    def draw(self, samples: Samples) -> bytes:
        """Words in columns as PNG; real ones are dark."""
        return picture(samples.labels, self.words)


def picture(words: Sequence[str], known: Words) -> bytes:
    """Words in columns of 26 as PNG bytes."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    columns = max(1, math.ceil(len(words) / len(LETTERS)))
    figure = Figure(figsize=(1.35 * columns, 5.6), dpi=140)
    FigureCanvasAgg(figure)
    for i, word in enumerate(words):
        column, row = divmod(i, len(LETTERS))
        colour = "#211f1c" if word in known else "#b0a797"
        x, y = (column + 0.12) / columns, 1 - (row + 0.7) / len(LETTERS)
        figure.text(x, y, word, fontsize=9, family="monospace", color=colour)
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", facecolor="white")
    return buffer.getvalue()


def write(samples: Samples, folder: Path) -> None:
    """The words, one a line, in ``words.txt``."""
    (folder / "words.txt").write_text("\n".join(samples.labels) + "\n", encoding="utf-8")
