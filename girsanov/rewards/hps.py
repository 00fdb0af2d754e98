r"""HPSv2.1: the cosine between image and prompt of a CLIP ViT-H/14 that was tuned on people's choices.

.. math:: r(x) = \Big\langle \frac{f(x)}{|f(x)|}, \frac{g(y)}{|g(y)|} \Big\rangle

about 0.2 to 0.35 (tables show it times 100). The published checkpoint has the layout of open_clip; it is read into a
``transformers.CLIPModel`` with the configuration and the tokenizer of the model it was tuned from. Images are padded to
a square, not cropped. Differentiable in x.

Reference: Wu et al. 2023, arXiv:2306.09341 (HPSv2; v2.1 is a later checkpoint of github.com/tgxs002/HPSv2).
"""

import torch
from torch import Tensor

from girsanov.rewards.base import Reward
from girsanov.rewards.clip import Towers
from girsanov.rewards.once import Once
from girsanov.rewards.open_clip import from_open_clip
from girsanov.rewards.pixels import texts
from girsanov.rewards.pretrained import check_vocabulary, fill, pretrained, read_tensors, transformers
from girsanov.types import Prompts


def load(weights: str, base: str) -> Towers:
    """The towers with the weights of a checkpoint. Raises GirsanovError if there are none, or they are another's."""
    model = transformers().CLIPModel(pretrained("CLIPConfig", base))
    fill(model, from_open_clip(read_tensors(weights)), weights)
    tokenizer = pretrained("CLIPTokenizer", base)
    check_vocabulary(tokenizer, int(model.config.text_config.vocab_size), base)
    return Towers(model, tokenizer, fit="pad")


class HPSv2(Reward):
    """The human preference score, version 2.1 (or 2.0 by its weights).

    Args:
        weights: file of the weights, or ``OWNER/NAME/FILE`` on the hub.
        base: folder or name of the CLIP model of transformers whose configuration and tokenizer it has.
    """

    name = "hpsv2"
    differentiable = True

    def __init__(
        self,
        weights: str = "xswu/HPSv2/HPS_v2.1_compressed.pt",
        base: str = "laion/CLIP-ViT-H-14-laion2B-s32B-b79K",
    ) -> None:
        self.weights, self.base = str(weights), str(base)
        self.towers = Once(load, self.weights, self.base)

    def prepare(self, device: torch.device | str = "cpu") -> None:
        """Loads the model. Raises GirsanovError if there is none."""
        self.towers().to(device)

    def __call__(self, x: Tensor, prompts: Prompts) -> Tensor:
        """Scores [B]. Raises GirsanovError if the prompts are no texts."""
        return self.towers().agreement(x, texts(prompts.meta, len(x), self.name))
