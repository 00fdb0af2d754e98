r"""ImageReward: a head on BLIP's text encoder, which reads the prompt and looks at the image by cross-attention.

.. math:: r(x) = \frac{h(f(x, y)) - m}{s}, \qquad h: 768 \to 1024 \to 128 \to 64 \to 16 \to 1

with f the features at the first token of the prompt y, h a chain of linear layers without activations, and m, s the
mean and the standard deviation of h over the authors' data: about -2 to 2. The prompt is padded to 35 tokens, or cut
off there. The published ``ImageReward.pt`` loads as it is. Differentiable in x.

Reference: Xu et al. 2023, arXiv:2304.05977; the layout is that of ImageReward.py in github.com/THUDM/ImageReward.
"""

from typing import Any

import torch
from torch import Tensor

from girsanov.rewards.aesthetic import Head, head_of
from girsanov.rewards.base import Reward
from girsanov.rewards.blip import Blip, blip_of
from girsanov.rewards.once import Once
from girsanov.rewards.pixels import pixels, texts
from girsanov.rewards.pretrained import check_vocabulary, pretrained, read_tensors
from girsanov.types import Prompts

MEAN, STD = 0.16717362830052426, 1.0333394966054072
TOKENS = 35


class Judge:
    """Networks, head and tokenizer."""

    def __init__(self, blip: Blip, head: Head, tokenizer: Any) -> None:
        self.blip, self.head, self.tokenizer = blip, head, tokenizer

    def to(self, device: torch.device | str) -> "Judge":
        """Moves them."""
        self.blip.to(device)
        self.head.to(device)
        return self

    def score(self, x: Tensor, words: list[str]) -> Tensor:
        """h [B] of images [B, 1 or 3, H, W] in [-1, 1] and their prompts."""
        read = self.tokenizer(words, padding="max_length", truncation=True, max_length=TOKENS, return_tensors="pt")
        dtype = next(self.blip.parameters()).dtype
        seen = pixels(x, self.blip.size).to(dtype)
        features = self.blip(seen, read["input_ids"].to(x.device), read["attention_mask"].to(x.device))
        return self.head(features.to(next(self.head.parameters()).dtype))


def load(weights: str, tokenizer: str) -> Judge:
    """The judge of a checkpoint. Raises GirsanovError if it is missing, or that of another model."""
    held = read_tensors(weights)
    blip = blip_of({k.removeprefix("blip."): v for k, v in held.items() if k.startswith("blip.")}, weights)
    head = head_of({k: v for k, v in held.items() if k.startswith("mlp.")}, weights)
    words = pretrained("BertTokenizer", tokenizer)
    check_vocabulary(words, int(blip.text.config.vocab_size), tokenizer)
    return Judge(blip, head, words)


class ImageReward(Reward):
    """The score of ImageReward.

    Args:
        weights: file of the weights, or ``OWNER/NAME/FILE`` on the hub.
        tokenizer: folder or name of BERT's tokenizer.
    """

    name = "image-reward"
    differentiable = True

    def __init__(
        self, weights: str = "THUDM/ImageReward/ImageReward.pt", tokenizer: str = "google-bert/bert-base-uncased"
    ) -> None:
        self.weights, self.tokenizer = str(weights), str(tokenizer)
        self.judge = Once(load, self.weights, self.tokenizer)

    def prepare(self, device: torch.device | str = "cpu") -> None:
        """Loads the model. Raises GirsanovError if there is none."""
        self.judge().to(device)

    def __call__(self, x: Tensor, prompts: Prompts) -> Tensor:
        """Scores [B]. Raises GirsanovError if the prompts are no texts."""
        words = texts(prompts.meta, len(x), self.name)
        return (self.judge().to(x.device).score(x, words).to(x.dtype) - MEAN) / STD
