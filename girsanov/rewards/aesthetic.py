r"""An aesthetic-style score: a small head on features of an image, ``r(x) = h(\phi(x) / |\phi(x)|)``.

``phi`` is any feature function (a CLIP image tower, a classifier's penultimate layer) from images [B, C, H, W] in
[-1, 1] to features [B, F]; the head is an MLP whose weights come from a safetensors file. Differentiable where the
features are.

The public aesthetic predictors are a stack of linear layers (with dropout between them, which is nothing at
evaluation) on CLIP ViT-L/14 features of length one; a file with the tensors ``layers.0.weight``, ``layers.0.bias``,
``layers.2.weight``, ... loads here: what matters is the order of the numbers and the shapes.

Reference: Schuhmann et al. 2022, arXiv:2210.08402 (LAION aesthetics predictor); Black et al. 2023, arXiv:2305.13301.
"""

import re
from collections.abc import Callable, Mapping
from pathlib import Path

import torch
import torch.nn.functional as F
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from girsanov.errors import GirsanovError
from girsanov.rewards.base import Reward
from girsanov.rewards.once import Once
from girsanov.types import Prompts

Features = Callable[[Tensor], Tensor]
"""``phi(images [B, C, H, W] in [-1, 1]) -> features [B, F]``."""

LAYER = re.compile(r"(?:.*\.)?(\d+)\.(weight|bias)")


class Head(nn.Module):
    """Linear layers with an activation between them, features [B, F] to scores [B].

    Args:
        widths: F, then the hidden widths; one score comes after the last.
        activation: between the layers; the public predictors have none.
    """

    def __init__(self, widths: tuple[int, ...], activation: Callable[[Tensor], Tensor] | None = None) -> None:
        super().__init__()
        self.layers = nn.ModuleList(nn.Linear(a, b) for a, b in zip(widths, (*widths[1:], 1), strict=True))
        self.activation = activation

    def forward(self, features: Tensor) -> Tensor:
        """Scores [B]."""
        h = features
        for i, layer in enumerate(self.layers):
            h = layer(h if i == 0 or self.activation is None else self.activation(h))
        return h[:, 0]

    def save(self, path: str | Path) -> None:
        """Writes the weights as safetensors."""
        save_file({f"layers.{k.split('.', 1)[1]}": v.contiguous() for k, v in self.state_dict().items()}, path)


def load_head(path: str | Path, activation: Callable[[Tensor], Tensor] | None = None) -> Head:
    """The head whose layers are in a safetensors file, in the order of their numbers.

    Raises GirsanovError if the file is missing, is not safetensors (a pickle is never opened), or holds no chain of
    linear layers that ends in one score.
    """
    if not Path(path).is_file():
        raise GirsanovError(f"there is no file {path}: give the head's weights as a safetensors file")
    try:
        tensors = load_file(path)
    except SafetensorError as error:
        raise GirsanovError(
            f"{path} is not a safetensors file, and nothing else is opened because pickles can run code: convert it "
            "with safetensors.torch.save_file"
        ) from error
    return head_of(tensors, path, activation)


def head_of(
    tensors: Mapping[str, Tensor], path: str | Path, activation: Callable[[Tensor], Tensor] | None = None
) -> Head:
    """The head with these layers, in the order of their numbers; ``path`` is for messages.

    Raises GirsanovError if they are no chain of linear layers that ends in one score.
    """
    weights, biases = _layers(tensors, path)
    head = Head(tuple(w.shape[1] for w in weights), activation)
    with torch.no_grad():
        for layer, w, b in zip(head.layers, weights, biases, strict=True):
            layer.weight.copy_(w)  # type: ignore[operator]
            layer.bias.copy_(b)  # type: ignore[operator]
    return head.requires_grad_(False)


def _layers(tensors: Mapping[str, Tensor], path: str | Path) -> tuple[list[Tensor], list[Tensor]]:
    """Weights and biases in order."""
    found: dict[int, dict[str, Tensor]] = {}
    for name, tensor in tensors.items():
        match = LAYER.fullmatch(name)
        if match is None:
            raise GirsanovError(
                f"{path} holds {name!r}, which is no layer: name the tensors layers.0.weight, layers.0.bias, ..."
            )
        found.setdefault(int(match[1]), {})[match[2]] = tensor
    layers = [found[i] for i in sorted(found)]
    shapes = [list(l["weight"].shape) if "weight" in l and "bias" in l else [] for l in layers]
    chained = all(len(s) == 2 for s in shapes) and all(a[0] == b[1] for a, b in zip(shapes, shapes[1:], strict=False))
    if not layers or not chained or shapes[-1][0] != 1:
        raise GirsanovError(
            f"{path} holds no chain of linear layers that ends in one score, but weights of shapes {shapes}: every "
            "layer has a weight [out, in] and a bias [out]"
        )
    return [l["weight"] for l in layers], [l["bias"] for l in layers]


def given(head: nn.Module | str | Path) -> nn.Module:
    """A head, or that of a file."""
    return head if isinstance(head, nn.Module) else load_head(head)


class Aesthetic(Reward):
    """A head on normalised features.

    Args:
        features: images to features [B, F].
        head: features to scores [B], or the path of its safetensors file.
        differentiable: whether the features carry a gradient.
        normalise: divide the features by their length.
    """

    name = "aesthetic"

    def __init__(
        self, features: Features, head: nn.Module | str | Path, differentiable: bool = True, normalise: bool = True
    ) -> None:
        self.features = features
        self.head, self.layers = head, Once(given, head)
        self.differentiable = differentiable
        self.normalise = normalise

    def prepare(self, device: torch.device | str = "cpu") -> None:
        """Loads the head. Raises GirsanovError if there is none."""
        self.layers().to(device)

    def __call__(self, x: Tensor, prompts: Prompts) -> Tensor:
        """Scores [B]."""
        head = self.layers()
        with torch.set_grad_enabled(self.differentiable and torch.is_grad_enabled()):
            phi = self.features(x)
            if phi.ndim != 2 or len(phi) != len(x):
                raise GirsanovError(
                    f"the feature function returned shape {list(phi.shape)} for {len(x)} images: it must return "
                    f"[{len(x)}, F]"
                )
            width = next((p.shape[1] for p in head.parameters() if p.ndim == 2), phi.shape[1])
            if phi.shape[1] != width:
                raise GirsanovError(
                    f"the head reads {width} features and the feature function returns {phi.shape[1]}: they do not "
                    "belong together"
                )
            return head.to(phi)(F.normalize(phi, dim=1) if self.normalise else phi)
