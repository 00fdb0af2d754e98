r"""The LAION aesthetics predictor: a head of linear layers on the image features of CLIP ViT-L/14, of length one.

.. math:: r(x) = h\big(f(x) / |f(x)|\big), \qquad h: 768 \to 1024 \to 128 \to 64 \to 16 \to 1

about 1 to 10. The published file ``sac+logos+ava1-l14-linearMSE.pth`` loads as it is; the prompt is not read.

Reference: Schuhmann et al. 2022, arXiv:2210.08402; the head of improved-aesthetic-predictor (github).
"""

import torch
from torch import Tensor

from girsanov.rewards.aesthetic import Aesthetic, Head, head_of
from girsanov.rewards.base import Reward
from girsanov.rewards.clip import Towers
from girsanov.rewards.once import Once
from girsanov.rewards.pretrained import read_tensors
from girsanov.types import Prompts


def load_published(head: str) -> Head:
    """The head of a file. Raises GirsanovError if there is none."""
    return head_of(read_tensors(head), head)


class LAIONAesthetic(Reward):
    """The aesthetics predictor with its features.

    Args:
        head: file of the head's weights, or ``OWNER/NAME/FILE`` on the hub.
        model: folder or name of the CLIP model it was trained on.
    """

    name = "laion-aesthetic"
    differentiable = True

    def __init__(self, head: str, model: str = "openai/clip-vit-large-patch14") -> None:
        self.head, self.model = str(head), str(model)
        self.layers, self.towers = Once(load_published, self.head), Once(Towers.load, self.model)

    def prepare(self, device: torch.device | str = "cpu") -> None:
        """Loads head and model. Raises GirsanovError if one is missing."""
        self.layers().to(device)
        self.towers().to(device)

    def __call__(self, x: Tensor, prompts: Prompts) -> Tensor:
        """Scores [B]."""
        return Aesthetic(self.towers().images, self.layers())(x, prompts).to(x.dtype)
