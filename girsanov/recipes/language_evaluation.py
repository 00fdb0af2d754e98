"""How a tuned language model is measured: on held-out comparisons, and on its own completions of held-out prompts.

The implicit reward of a completion is its log-ratio to the reference, ``log pi(y|x) - log pi_ref(y|x)``, in nats (a
method's beta multiplies it and changes no order). *Accuracy* is how often the better completion has more of it, ties
counted half, so a model that has not been tuned scores one half; *margin* is the mean difference. *Likelier* compares
the plain log-probs. All are means within a prompt first, and intervals are over prompts. The KL from the reference is
the mean log-ratio of the model's own completions.

Completions that are only labelled are compared across prompts: the share of (good, bad) pairs of all of them in which
the good one has more implicit reward, its standard error by DeLong et al. 1988 (Biometrics 44, 837).
"""

import io
import textwrap
import warnings
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor

from girsanov.evaluation.intervals import quantile, share_interval
from girsanov.jsonl import write_rows
from girsanov.language.data import TextComparisons, text_of
from girsanov.language.generation import Sampling, generate
from girsanov.language.model import LanguageModel
from girsanov.language.rewards import TextReward
from girsanov.language.tokens import Completions, Prompt, join
from girsanov.models import ModelLike
from girsanov.noise import Noise
from girsanov.recipes.base import Metric, Samples
from girsanov.spread import Spread
from girsanov.train import Run

ACCURACY = "held-out pairs ordered by the implicit reward as given"
SEPARATED = "held-out good completions above bad ones by the implicit reward"
WIDTH = 110


@dataclass
class LanguageEvaluator:
    """Numbers of a model on fixed comparisons, prompts and noise.

    Attributes:
        pairs: held-out comparisons, or None.
        labelled: held-out completions, each called good or bad, or None.
        prompts: what is completed, in turn.
        reward: what scores completions, or None.
        sampling: how they are drawn.
        samples, batch: how many are drawn, and how many rows are in one pass.
        seed: key of the noise.
        spread: the processes that draw and score, ``batch`` rows at a time.
    """

    pairs: TextComparisons | None
    labelled: TextComparisons | None
    prompts: Sequence[Prompt]
    reward: TextReward | None
    sampling: Sampling
    samples: int
    batch: int
    seed: int
    spread: Spread = field(default_factory=Spread)
    _fixed: dict[str, Tensor] = field(default_factory=dict, init=False, repr=False)

    def __post_init__(self) -> None:
        if self.labelled is not None and any(not side.any() for side in good_and_bad(self.labelled)):
            self.labelled = None  # nothing to compare

    def metrics(self) -> tuple[Metric, ...]:
        """What it measures; the accuracy is the headline where there is no reward."""
        headline = [Metric("reward", "Reward", "high")] if self.reward is not None else []
        if self.pairs is not None:
            headline.append(Metric("accuracy" if headline else "reward", ACCURACY.capitalize(), "high", percent=True))
            headline.append(Metric("margin", "Margin of the implicit reward in nats", "high"))
            headline.append(Metric("likelier", "Chosen likelier than rejected", "high", percent=True))
        if self.labelled is not None:
            headline.append(Metric("separated" if headline else "reward", SEPARATED.capitalize(), "high", percent=True))
        return (*headline, Metric("kl", "KL from the start"), Metric("length", "Tokens of a completion"))

    @torch.no_grad()
    def __call__(self, run: Run) -> dict[str, float]:
        """The numbers of the deployed model; ``NAME_se`` is a standard error."""
        model, reference = language(run.model()), language(run.reference())
        rows = self.drawn(model, self.samples, self.seed)

        def moved(ids: Tensor) -> Tensor:
            part = rows.take(ids).to(model.device)
            return (model.logp(part) - reference.logp(part)).cpu()

        values = {"kl": torch.cat(self.spread.together(len(rows), self.batch, moved)), "length": rows.length}
        asked = [text_of(p) for p in self.turns(self.samples)]
        if self.reward is not None:
            values["reward"] = self.scored(self.reward, asked, model.encoder.texts(rows))
        found = dict[str, float]()
        for name, value in values.items():
            found |= told(name, by_prompt(value.double(), asked))
        if self.pairs is not None:
            found |= self.held_out(self.pairs, model, reference)
        return found | ({} if self.labelled is None else self.separation(self.labelled, model, reference))

    def scored(self, reward: TextReward, asked: Sequence[str], texts: Sequence[str]) -> Tensor:
        """Scores [n] of completions."""

        def lot(ids: Tensor) -> Tensor:
            return reward([asked[i] for i in ids.tolist()], [texts[i] for i in ids.tolist()]).cpu()

        return torch.cat(self.spread.apart(len(texts), self.batch, lot))

    def separation(self, rows: TextComparisons, model: LanguageModel, reference: LanguageModel) -> dict[str, float]:
        """How well the implicit reward tells good completions from bad ones."""
        moved = self.logp(rows, model) - self.before("labelled", rows, reference)
        good, bad = (moved[side] for side in good_and_bad(rows))
        name = "separated" if self.reward is not None or self.pairs is not None else "reward"
        value, error = separated(good, bad)
        return {name: value, f"{name}_se": error}

    def before(self, name: str, rows: TextComparisons, reference: LanguageModel) -> Tensor:
        """The reference's log-probs [N, K], computed once."""
        if name not in self._fixed:
            self._fixed[name] = self.logp(rows, reference)
        return self._fixed[name]

    def held_out(self, pairs: TextComparisons, model: LanguageModel, reference: LanguageModel) -> dict[str, float]:
        """Accuracy, margin and plain accuracy on the held-out comparisons."""
        before, logp = self.before("pairs", pairs, reference), self.logp(pairs, model)
        better, worse = torch.triu_indices(logp.shape[1], logp.shape[1], 1)
        there = pairs.valid[:, better] & pairs.valid[:, worse]

        def means(score: Tensor, share: bool) -> Tensor:
            gap = score[:, better] - score[:, worse]
            value = (gap > 0).double() + 0.5 * (gap == 0).double() if share else gap
            rows = torch.where(there, value, torch.zeros_like(value)).sum(1) / there.sum(1).clamp_min(1)
            real = there.any(1)
            return by_prompt(rows[real], [t for t, r in zip(pairs.texts, real.tolist(), strict=True) if r])

        moved = logp - before
        found = told("margin", means(moved, False)) | shares("likelier", means(logp, True))
        return found | shares("accuracy" if self.reward is not None else "reward", means(moved, True))

    def logp(self, pairs: TextComparisons, model: LanguageModel) -> Tensor:
        """Log-probs [N, K] of the held-out completions, float64 on the host."""
        k = pairs.valid.shape[1]

        def lot(ids: Tensor) -> Tensor:
            return model.logp(pairs.items.take(ids).to(model.device).flat()).double().cpu()

        found = self.spread.together(len(pairs.items), max(1, self.batch // k), lot)
        return torch.cat(found).unflatten(0, (-1, k))

    def turns(self, n: int) -> list[Prompt]:
        """n prompts, in turn."""
        return [self.prompts[i % len(self.prompts)] for i in range(n)]

    def drawn(self, model: LanguageModel, n: int, seed: int) -> Completions:
        """n completions, on the host."""
        asked = [model.encoder.prompt(p) for p in self.turns(n)]

        def lot(ids: Tensor) -> Completions:
            return generate(model, [asked[i] for i in ids.tolist()], Noise(seed, 0, ids), self.sampling).to("cpu")

        return join(self.spread.together(n, self.batch, lot), model.encoder.filler)

    def sample(self, model: ModelLike, n: int, seed: int) -> Samples:
        """n prompts with completions."""
        lm = language(model)
        texts = lm.encoder.texts(self.drawn(lm, n, seed))
        asked = [text_of(p) for p in self.turns(n)]
        return Samples(torch.zeros(n, 0), tuple(asked), tuple(zip(asked, texts, strict=True)))


def language(model: Any) -> LanguageModel:
    """A view of a policy as a language model."""
    return cast(LanguageModel, model)


def by_prompt(values: Tensor, texts: Sequence[str]) -> Tensor:
    """Means of values [N] within each prompt, [P]."""
    place = {text: i for i, text in enumerate(dict.fromkeys(texts))}
    index = torch.tensor([place[t] for t in texts], dtype=torch.int64)
    total = torch.zeros(len(place), dtype=torch.float64).index_add_(0, index, values.double())
    return total / index.bincount(minlength=len(place))


def told(name: str, values: Tensor) -> dict[str, float]:
    """Mean and standard error over prompts."""
    error = {f"{name}_se": float(values.std()) / len(values) ** 0.5} if len(values) > 1 else {}
    return {name: float(values.mean())} | error


def good_and_bad(rows: TextComparisons) -> tuple[Tensor, Tensor]:
    """Which completions are labelled good, and which bad, bool [N, K]."""
    sign = torch.zeros_like(rows.valid, dtype=torch.float64) if rows.sign is None else rows.sign
    return rows.valid & (sign > 0), rows.valid & (sign < 0)


def separated(good: Tensor, bad: Tensor) -> tuple[float, float]:
    """``P(good > bad)``, ties counted half, and its standard error (0 where one side has a single member)."""
    wins = (good[:, None] > bad).double() + 0.5 * (good[:, None] == bad).double()
    parts = [side.var(correction=1) / len(side) if len(side) > 1 else 0.0 for side in (wins.mean(1), wins.mean(0))]
    return float(wins.mean()), float(sum(parts)) ** 0.5


def shares(name: str, values: Tensor) -> dict[str, float]:
    """A share, and the standard error of which 1.96 are half of Wilson's interval (never 0, even at 100 %)."""
    found = share_interval(float(values.sum()), len(values))
    return {name: found.value, f"{name}_se": (found.high - found.low) / 2 / quantile(0.95)}


def write(samples: Samples, folder: Path) -> None:
    """Prompts and completions, one object a line, in ``completions.jsonl``."""
    write_rows(folder / "completions.jsonl", [{"prompt": p, "completion": c} for p, c in samples.texts])


def draw(samples: Samples) -> bytes:
    """Prompts (bold) and completions as PNG."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    lines = list[tuple[str, bool]]()
    for prompt, completion in samples.texts:
        for text, bold in ((prompt, True), (completion or "(nothing)", False)):
            lines += [(line, bold) for line in textwrap.wrap(text, WIDTH)[:12] or [""]]
        lines.append(("", False))
    figure = Figure(figsize=(9, 0.2 * len(lines) + 0.2), dpi=110)
    FigureCanvasAgg(figure)
    for i, (line, bold) in enumerate(lines):
        y = 1 - (i + 1) / (len(lines) + 1)
        weight = "bold" if bold else "normal"
        figure.text(0.02, y, line, fontsize=8, weight=weight, parse_math=False, color="#211f1c")
    buffer = io.BytesIO()
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Glyph")  # a letter that the font lacks
        figure.savefig(buffer, format="png", facecolor="white")
    return buffer.getvalue()
