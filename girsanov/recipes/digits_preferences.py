"""What a preference method has learned from an annotator whose taste is known, on digits: recovered reward, win rate.

Besides the numbers of every run (``digits_evaluation.py``): the implicit reward of the tuned model against the true one
on pairs of the pretrained model's pictures that nobody trained on, and how often the tuned picture beats the pretrained
one from the same noise, by the reward. The judge of legibility knows nothing of either.
"""

from dataclasses import dataclass, field

import torch
from torch import Tensor

from girsanov.evaluation.implicit import agreement, implicit_reward, recovery
from girsanov.evaluation.intervals import share_interval
from girsanov.items import draw_items
from girsanov.methods.base import Method
from girsanov.models import ModelLike
from girsanov.precision import as_wide
from girsanov.recipes.base import Metric
from girsanov.recipes.digits_data import balanced_labels, digit_prompts
from girsanov.recipes.digits_evaluation import LOT, Evaluator
from girsanov.train import Run
from girsanov.types import Prompts

METRICS = (
    Metric("win_rate", "Win rate against the pretrained model", "high", percent=True),
    Metric("recovered", "Implicit against true reward, correlation", "high"),
    Metric("ordered", "Held-out pairs in order", "high", percent=True),
)
FAMILY = "girsanov.methods.preference."
HELD_OUT_SEED = 9_000_011  # apart from the seeds of the pairs that are trained on


def learns_preferences(method: Method) -> bool:
    """Whether a method is of the preference family, on given comparisons or on its own samples.

    The implicit reward means something for both: whoever ends at ``p_ref exp(r / beta)`` denoises what r likes better.
    """
    return method.data != "prompts" or type(method).__module__.startswith(FAMILY)


@dataclass(frozen=True)
class PreferenceEvaluator:
    """The numbers of an evaluator, and those of an annotator who is known.

    Attributes:
        inner: the evaluator of every run.
        items, reward: held-out pairs [N, 2, *D] of the pretrained model in model space, and their true rewards [N, 2].
        prompts: what was asked for, N requests.
        untuned: true rewards of the pretrained model's evaluation pictures.
    """

    inner: Evaluator
    items: Tensor
    reward: Tensor
    prompts: Prompts
    untuned: Tensor = field(repr=False)

    @classmethod
    @torch.no_grad()
    def of(cls, inner: Evaluator, base: ModelLike) -> "PreferenceEvaluator":
        """Draws the held-out pairs, and the pictures that tuned ones must beat."""
        prompts = digit_prompts(balanced_labels(max(3, inner.samples))).to(inner.device)

        def lot(ids: Tensor) -> tuple[Tensor, Tensor]:
            asked = prompts.take(ids)
            drawn = draw_items(base, inner.sampler, inner.grid, inner.reward, asked, 2, HELD_OUT_SEED)
            return drawn[0].cpu(), drawn[1].cpu()

        items, reward = (torch.cat(c) for c in zip(*inner.spread.together(len(prompts), LOT, lot), strict=True))
        return cls(inner, items, reward, prompts, as_wide(inner.scored(*inner.draw(base, inner.samples, inner.seed))))

    @torch.no_grad()
    def __call__(self, run: Run) -> dict[str, float]:
        """All numbers of the deployed model."""
        tuned, base = run.model(), run.reference()
        x, labels = self.inner.draw(tuned, self.inner.samples, self.inner.seed)
        numbers = self.inner.measure(x, labels) | self.inner.drift(tuned, base)

        def lot(ids: Tensor) -> Tensor:
            items, asked = self.items[ids].to(self.inner.device), self.prompts.take(ids)
            return implicit_reward(tuned, base, items, asked.cond, ids=ids).cpu()

        numbers |= recovery(torch.cat(self.inner.spread.together(len(self.items), LOT, lot)), self.reward)
        return numbers | self.wins(as_wide(self.inner.scored(x, labels)))

    def wins(self, reward: Tensor) -> dict[str, float]:
        """How often these rewards are above the untuned ones, ties counted half; of those that are finite."""
        gap = (reward - self.untuned)[reward.isfinite() & self.untuned.isfinite()]
        rate = share_interval(float(((gap.sign() + 1) / 2).sum()), max(1, len(gap)))
        return {"win_rate": rate.value, "win_rate_se": (rate.high - rate.low) / (2 * 1.959964)}

    def facts(self, temperature: float) -> dict[str, str]:
        """What the annotator's labels are worth."""
        right = agreement(self.reward, temperature)
        return {
            "The annotator": f"follows the reward with noise of temperature {temperature:g}: of two pictures it orders "
            f"{right:.1%} as the reward does, measured on {len(self.reward)} pairs that are not trained on"
        }
