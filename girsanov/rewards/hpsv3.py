r"""HPSv3: a vision-language model reads image and prompt in one question, and a head rates them at a token of its own.

.. math:: r(x) = h(z)_1, \qquad h: 3584 \to 1024 \to 16 \to 2 \quad (\text{ReLU between})

with z the last hidden state of Qwen2-VL-7B at the token ``<|Reward|>``, h_1 the mean of a Gaussian over preferences
and h_2 its spread, which is not read. The image makes 256 tokens. As in the authors' code, positions simply count on
over image and text (the spatial positions of Qwen2-VL are not used). Differentiable in x.

The weights know one question, which is not part of this package: give the authors' file ``data_collator_qwen.py``
(github.com/MizzenAI/HPSv3, folder hpsv3/dataset), whose texts are read and whose code is not run, or a text file.

Reference: Ma et al. 2025, arXiv:2508.03789; the layout is that of hpsv3/model/qwen2vl_trainer.py.
"""

import ast
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from girsanov.errors import GirsanovError
from girsanov.rewards.aesthetic import Head, head_of
from girsanov.rewards.base import Reward
from girsanov.rewards.once import Once
from girsanov.rewards.pixels import texts
from girsanov.rewards.pretrained import fitting, frozen, pretrained, read_tensors, transformers
from girsanov.rewards.qwen_pixels import patches, standardised
from girsanov.types import Prompts

RATED, SLOT = "<|Reward|>", "{text_prompt}"
TOKENS = 256
BEFORE = "<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n<|im_start|>user\n<|vision_start|>"
IMAGE, AFTER_IMAGE = "<|image_pad|>", "<|vision_end|>"
AFTER = "<|im_end|>\n<|im_start|>assistant\n"


def read_question(place: str) -> str:
    """The question, with a slot for the prompt, of a text file or of the authors' Python file.

    Raises GirsanovError if the file is missing or holds no such question.
    """
    hint = "give data_collator_qwen.py of github.com/MizzenAI/HPSv3, or a text file"
    path = Path(place).expanduser()
    try:
        text = path.read_text(encoding="utf-8")
        if path.suffix == ".py":
            found = dict(assigned(ast.parse(text)))
            text = found["INSTRUCTION"] + found["prompt_with_special_token"]
    except (OSError, UnicodeDecodeError):
        raise GirsanovError(f"the question of hpsv3 cannot be read from {place}: {hint}") from None
    except (SyntaxError, KeyError, ValueError):
        raise GirsanovError(f"{place} holds no INSTRUCTION and prompt_with_special_token: {hint}") from None
    if text.count(RATED) != 1 or text.count(SLOT) != 1:
        raise GirsanovError(f"the question in {place} must hold {SLOT} and {RATED} once each: {hint}")
    return text


def assigned(tree: ast.Module) -> list[tuple[str, str]]:
    """The texts that a module gives names to."""
    return [
        (target.id, statement.value.value)
        for statement in tree.body
        if isinstance(statement, ast.Assign) and isinstance(statement.value, ast.Constant)
        for target in statement.targets
        if isinstance(target, ast.Name) and isinstance(statement.value.value, str)
    ]


def from_published(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The state dict of a ``transformers.Qwen2VLModel``; heads are left out.

    The language model is ``model`` in the checkpoint and ``language_model`` in transformers; newer checkpoints have
    ``model.language_model`` and ``model.visual``.
    """
    found = {}
    for name, value in tensors.items():
        rest = name.removeprefix("model.")
        if rest.startswith(("language_model.", "visual.")):
            found[rest] = value
        elif name.startswith("model."):
            found[f"language_model.{rest}"] = value
    return found


class Rater:
    """Model, head and tokenizer.

    Args:
        model: a ``transformers.Qwen2VLModel``.
        head: of the mean.
        tokenizer: with the token of the rating.
        question: with a slot for the prompt.
    """

    def __init__(self, model: Any, head: Head, tokenizer: Any, question: str) -> None:
        self.model, self.head, self.tokenizer, self.question = model, head, tokenizer, question
        vision = model.config.vision_config
        self.patch, self.merge = int(vision.patch_size), int(vision.spatial_merge_size)
        self.temporal = int(vision.temporal_patch_size)

    def to(self, device: torch.device | str) -> "Rater":
        """Moves them."""
        self.model.to(device)
        self.head.to(device)
        return self

    def asked(self, words: list[str], tokens: int) -> tuple[Tensor, Tensor]:
        """Ids and mask [B, L] of the questions about images of so many tokens each."""
        start = f"{BEFORE}{IMAGE * tokens}{AFTER_IMAGE}"
        read = self.tokenizer(
            [f"{start}{self.question.replace(SLOT, w)}{AFTER}" for w in words],
            padding=True,
            padding_side="right",
            add_special_tokens=False,
            return_tensors="pt",
        )
        return read["input_ids"], read["attention_mask"]

    def rate(self, x: Tensor, words: list[str]) -> Tensor:
        """Means [B] of images [B, 1 or 3, H, W] in [-1, 1]. Raises GirsanovError if a prompt holds a special token."""
        seen, grid = patches(standardised(x, self.patch * self.merge, TOKENS), self.patch, self.merge, self.temporal)
        ids, mask = (v.to(x.device) for v in self.asked(words, int(grid[0].prod()) // self.merge**2))
        features = torch.cat(self.model.get_image_features(seen, grid).pooler_output)
        rated = ids == self.tokenizer.convert_tokens_to_ids(RATED)
        slots = ids == self.model.config.image_token_id
        if bool((rated.sum(1) != 1).any()) or int(slots.sum()) != len(features):
            raise GirsanovError(f"a prompt holds {RATED} or {IMAGE}, which are the judge's own: leave them out")
        embedded = self.model.get_input_embeddings()(ids)
        embedded = embedded.masked_scatter(slots[..., None], features.to(embedded.dtype))
        states = self.model.language_model(inputs_embeds=embedded, attention_mask=mask).last_hidden_state
        return self.head(states[rated].to(next(self.head.parameters()).dtype))


def load(weights: str, base: str, question: str) -> Rater:
    """The rater of a checkpoint. Raises GirsanovError if something is missing, or of another model."""
    from accelerate import init_empty_weights

    text, held = read_question(question), read_tensors(weights)
    config, tokenizer = pretrained("Qwen2VLConfig", base), pretrained("AutoTokenizer", base)
    tokenizer.add_tokens([RATED], special_tokens=True)
    config.text_config.vocab_size = len(tokenizer)
    with init_empty_weights():  # not twice in memory
        model = transformers().Qwen2VLModel(config)
    model.load_state_dict(fitting(model, from_published(held), weights), assign=True)
    head = {k: v for k, v in held.items() if k.startswith("rm_head.")}
    mean = {k: v[:1] if len(v) == 2 else v for k, v in head.items()}  # the second output is the spread
    return Rater(frozen(model), head_of(mean, weights, torch.relu), tokenizer, text)


class HPSv3(Reward):
    """The human preference score, version 3.

    Args:
        question: the authors' ``data_collator_qwen.py``, or a text file with the question.
        weights: file of the weights, or ``OWNER/NAME/FILE`` on the hub.
        base: folder or name of the Qwen2-VL whose configuration and tokenizer it has.
    """

    name = "hpsv3"
    differentiable = True

    def __init__(
        self, question: str, weights: str = "MizzenAI/HPSv3/HPSv3.safetensors", base: str = "Qwen/Qwen2-VL-7B-Instruct"
    ) -> None:
        self.question, self.weights, self.base = str(question), str(weights), str(base)
        self.rater = Once(load, self.weights, self.base, self.question)

    def prepare(self, device: torch.device | str = "cpu") -> None:
        """Loads the model. Raises GirsanovError if there is none."""
        self.rater().to(device)

    def __call__(self, x: Tensor, prompts: Prompts) -> Tensor:
        """Scores [B]. Raises GirsanovError if the prompts are no texts."""
        words = texts(prompts.meta, len(x), self.name)
        return self.rater().to(x.device).rate(x, words).to(x.dtype)
