"""What a preference loss reads: B prompts with K items each, best first, and what is known of every item.

An item is anything that was compared: an answer of a language model, an image (whose "log-prob" is minus a weighted
denoising error, or the log-density of a sampler's step). K = 2 is the usual pair, column 0 chosen, column 1 rejected. A
loss reads the fields it needs and says which one is missing.

Half-precision fields become float32, whatever autocast is on; float64 stays.
"""

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from girsanov.errors import GirsanovError

PER_ITEM = ("logp", "ref", "length", "score", "wins", "sign", "divergence", "valid")
HINTS = {
    "ref": "the reference's log-probs",
    "length": "the items' lengths in tokens",
    "score": "the items' scores",
    "wins": "the items' win probabilities",
    "divergence": "the items' sequence KL from the reference (sum over positions)",
    "dispersion": "the prompts' dispersion (girsanov.preferences.dispersion)",
    "mismatched": "the log-ratios of mismatched prompts and items",
}


@dataclass(frozen=True)
class Compared:
    """A batch of compared items, best first.

    Attributes:
        logp: log-probs under the policy, summed over tokens, [B, K].
        ref: the same under the reference, [B, K].
        length: tokens of each item, [B, K], at least 1.
        score: scores of an annotator or reward model, larger is better, [B, K].
        wins: probability that the item beats its opponent (the policy it is played against), [B, K].
        sign: +1 desirable, -1 undesirable, [B, K]; the first item against all others if not given.
        divergence: ``sum_t KL(ref || policy)`` over the positions of each item, [B, K].
        valid: which items are there, bool [B, K]; all if not given. Column 0 always is.
        dispersion: how sharp the preferences of a prompt are (Mallows), [B].
        target: log-prob of the answer that a supervised term imitates, [B]; the first item's if not given.
        mismatched: log-ratios ``logp - ref`` of items under prompts of others, any shape: an estimate of the KL.
        baseline: a baseline known from elsewhere (all processes, a running mean), shape [].
    """

    logp: Tensor
    ref: Tensor | None = None
    length: Tensor | None = None
    score: Tensor | None = None
    wins: Tensor | None = None
    sign: Tensor | None = None
    divergence: Tensor | None = None
    valid: Tensor | None = None
    dispersion: Tensor | None = None
    target: Tensor | None = None
    mismatched: Tensor | None = None
    baseline: Tensor | None = None

    def __post_init__(self) -> None:
        if self.logp.ndim != 2 or 0 in self.logp.shape:
            raise GirsanovError(f"log-probs of compared items have shape [B, K], not {list(self.logp.shape)}")
        for field in dataclasses.fields(self):
            value = getattr(self, field.name)
            if value is None:
                continue
            per_item, per_row = field.name in PER_ITEM, field.name in ("dispersion", "target")
            shape = self.logp.shape if per_item else self.logp.shape[:1] if per_row else value.shape
            if value.shape != shape:
                raise GirsanovError(f"{field.name} must have shape {list(shape)}, not {list(value.shape)}")
            if value.dtype in (torch.float16, torch.bfloat16):
                object.__setattr__(self, field.name, value.float())
        self._check_lengths()

    def _check_lengths(self) -> None:
        if self.length is None or self.length.device.type != "cpu":  # an accelerator would have to be waited for
            return
        short = (self.length <= 0).any(1).nonzero().flatten().tolist()
        if short:
            raise GirsanovError(f"an item of row {short[0]} is empty (length 0): leave such rows out")

    @classmethod
    def pair(
        cls,
        chosen: Tensor,
        rejected: Tensor,
        ref_chosen: Tensor | None = None,
        ref_rejected: Tensor | None = None,
        **more: Tensor | None,
    ) -> "Compared":
        """From log-probs [B] of both sides; ``more`` are fields as above."""
        ref = None if ref_chosen is None or ref_rejected is None else torch.stack([ref_chosen, ref_rejected], 1)
        return cls(torch.stack([chosen, rejected], 1), ref, **more)

    def __len__(self) -> int:
        return len(self.logp)

    @property
    def items(self) -> int:
        """K."""
        return self.logp.shape[1]

    def need(self, name: str) -> Tensor:
        """A field. Raises GirsanovError with what is missing."""
        value: Tensor | None = getattr(self, name)
        if value is None:
            raise GirsanovError(f"this loss needs {HINTS[name]}: give Compared(..., {name}=...)")
        return value

    @property
    def there(self) -> Tensor:
        """Which items are there, bool [B, K]."""
        return torch.ones_like(self.logp, dtype=torch.bool) if self.valid is None else self.valid

    @property
    def signs(self) -> Tensor:
        """+1 desirable, -1 undesirable, [B, K]."""
        if self.sign is not None:
            return self.sign.to(self.logp.dtype)
        sign = -torch.ones_like(self.logp)
        sign[:, 0] = 1.0
        return sign

    def take(self, index: Tensor) -> "Compared":
        """The chosen prompts."""
        parts = {f.name: getattr(self, f.name) for f in dataclasses.fields(self)}
        whole = ("mismatched", "baseline")
        return Compared(**{k: v if v is None or k in whole else v[index] for k, v in parts.items()})

    def columns(self, index: Tensor, valid: Tensor | None = None) -> "Compared":
        """The items ``index`` [B, K'] of every prompt, in that order; ``valid`` [B, K'] replaces the old one."""
        parts = {n: getattr(self, n) for n in PER_ITEM}
        picked: dict[str, Any] = {k: None if v is None else v.gather(1, index) for k, v in parts.items()}
        return dataclasses.replace(self, **picked | ({} if valid is None else {"valid": valid}))


def completion(
    token_logp: Tensor, mask: Tensor, emphasis: Tensor | None = None, gamma: float = 1.0
) -> tuple[Tensor, Tensor]:
    r"""Log-prob [B] and length [B] of completions from their tokens' log-probs [B, L] and mask [B, L].

    Dense DPO (RLHF-V) gives the tokens of corrected segments, ``emphasis`` bool [B, L], the weight gamma,

    .. math:: \log\pi(y) = \sum_{i \notin c} \log p_i + \gamma \sum_{i \in c} \log p_i, \qquad
        N = |y \setminus c| + \gamma |y \cap c|

    and divides by N (``Score(length=1)``). gamma = 1 is the plain sum and the number of tokens.

    Reference: Yu et al. 2023, arXiv:2312.00849, Eq. 2.
    """
    if token_logp.shape != mask.shape:
        raise GirsanovError(f"token log-probs {list(token_logp.shape)} and their mask {list(mask.shape)} must agree")
    wide = torch.promote_types(token_logp.dtype, torch.float32)
    weight = mask.to(wide)
    if emphasis is not None:
        weight = weight * torch.where(emphasis, gamma, 1.0).to(wide)
    empty = (weight.sum(1) <= 0).nonzero().flatten().tolist()
    if empty:
        raise GirsanovError(f"the completion of row {empty[0]} is empty: leave such rows out")
    logp = torch.where(mask.bool(), token_logp, torch.zeros_like(token_logp)).to(wide)  # -inf outside the mask is fine
    return (weight * logp).sum(1), weight.sum(1)


def sequence_kl(logp: Tensor, ref: Tensor, mask: Tensor) -> Tensor:
    """``sum_t KL(ref || policy)`` [B] of next-token distributions with log-probs [B, L, V], over the mask [B, L].

    Reference: Zeng et al. 2024, arXiv:2404.11999, Eq. 10 (TDPO).
    """
    wide = torch.promote_types(logp.dtype, torch.float32)
    p, q = ref.to(wide), logp.to(wide)
    kl = torch.where(p > -torch.inf, p.exp() * (p - q), torch.zeros_like(p)).sum(-1)
    return torch.where(mask.bool(), kl, torch.zeros_like(kl)).sum(1)


def dispersion(entropy: Tensor, vocabulary: int) -> Tensor:
    r"""Mallows-DPO's dispersion ``phi = -log(H / log n)`` [B] from the mean next-token entropy H [B] of the reference.

    H is the mean over positions and both answers of the entropy of the reference's next-token law, n the size of the
    vocabulary: ``H / log n`` lies in [0, 1]. The text of the survey sums over positions instead, which is no share and
    can make phi negative; the mean is what gives the limits that the model has: phi -> infinity for a prompt with one
    answer (H = 0, a deterministic ranking) and phi = 0 for a uniform one (H = log n, no preference).

    Reference: Chen et al. 2024, arXiv:2405.14953, section 4.
    """
    share = entropy / torch.log(torch.tensor(float(vocabulary), dtype=entropy.dtype, device=entropy.device))
    return -share.clamp(1e-6, 1.0).log()


def stack(items: Sequence[Tensor]) -> Tensor:
    """K tensors [B] as [B, K]."""
    return torch.stack(list(items), 1)
