"""A causal language model from a folder or a name, and its tuned weights as ``transformers`` and ``peft`` read them.

Nothing is saved but what was trained: low-rank adapters in peft's own layout, or the whole model where all of it was.
"""

import copy
import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from girsanov.adapters.lora import add_lora
from girsanov.building import ran_out
from girsanov.disk import full_disk
from girsanov.errors import GirsanovError
from girsanov.language.model import LanguageModel, LanguageNet, lora_targets
from girsanov.language.tokens import Encoder

PREFIX, ADAPTER = "lm.", "default"


def load_language_model(
    name: str,
    tokenizer: str | None = None,
    *,
    dtype: torch.dtype = torch.float32,
    max_length: int = 1024,
    chunk: int | None = 1024,
    packed: int | None = None,
) -> LanguageModel:
    """The model and the tokenizer of a folder, or of a name on the Hugging Face hub.

    Args:
        name: what ``AutoModelForCausalLM.from_pretrained`` takes; a folder of adapters that names its model does too.
        tokenizer: what ``AutoTokenizer.from_pretrained`` takes; the model's own by default.
        dtype: of the weights.
        max_length: tokens of a row; the model's own limit goes before it.
        chunk, packed: as ``LanguageNet`` takes them.

    Raises:
        GirsanovError: no transformers, nothing to read at that place, weights that are missing there, a tokenizer with
            more tokens than the model.
    """
    try:
        from transformers import AutoModelForCausalLM
    except ImportError:
        raise GirsanovError("language models need the package transformers: pip install 'girsanov[llm]'") from None
    lm, facts = read(AutoModelForCausalLM, name, "causal language model", output_loading_info=True)
    if missing := sorted(facts["missing_keys"]):
        raise GirsanovError(f"{name} lacks the weights {missing[0]}: it is no complete causal language model")
    net = LanguageNet(lm.to(dtype).eval(), chunk, packed)
    return LanguageModel(net, load_encoder(tokenizer or name, max_length))


def load_encoder(name: str, max_length: int = 1024) -> Encoder:
    """The tokenizer of a folder or a name. Raises GirsanovError if there is none, or no transformers."""
    try:
        from transformers import AutoTokenizer
    except ImportError:
        raise GirsanovError("language models need the package transformers: pip install 'girsanov[llm]'") from None
    return Encoder(read(AutoTokenizer, name, "tokenizer"), max_length)


def load_beside(name: str, encoder: Encoder, dtype: torch.dtype = torch.float32, **more: Any) -> LanguageModel:
    """A second model that reads the same tokens, frozen: a reference, or a model whose log-probs are rewards.

    Args:
        name: folder of a run (its ``weights``), folder of a model or of adapters, or a name on the hub.
        encoder: the tokens of the policy.
        dtype: of its weights.
        more: as ``load_language_model`` takes them.

    Raises:
        GirsanovError: as ``load_language_model``; a run without weights; other tokens than the policy's.
    """
    place = Path(name).expanduser()
    if (place / "run.json").is_file():
        if not (place / "weights").is_dir():
            raise GirsanovError(f"{name} holds a run without weights: let it end (--resume), they are written then")
        place = place / "weights"
    model = load_language_model(
        str(place) if place.exists() else name, dtype=dtype, max_length=encoder.max_length, **more
    )
    own, other = encoder.tokenizer.get_vocab(), model.encoder.tokenizer.get_vocab()
    if own != other:
        strange = next(iter(sorted(set(own) ^ set(other))), "one that both have")
        raise GirsanovError(
            f"{name} reads {len(other)} tokens and the policy {len(own)}, and {strange!r} is not the same in both: "
            "it must have the policy's vocabulary"
        )
    model.net.requires_grad_(False)
    return dataclasses.replace(model, encoder=encoder)


def read(kind: Any, name: str, what: str, **more: Any) -> Any:
    """``kind.from_pretrained(name)``. Raises GirsanovError in one sentence if there is nothing to read."""
    place = Path(name).expanduser()
    if not place.exists() and (name.startswith((".", "/", "~")) or name.count("/") > 1):
        raise GirsanovError(f"there is no folder {name}: give one with a {what}, or OWNER/NAME on the hub")
    try:
        with quiet():
            return kind.from_pretrained(str(place) if place.exists() else name, **more)
    except Exception as error:  # transformers raises many kinds for what is simply not there
        if ran_out(error):
            raise
        said = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise GirsanovError(f"{name} cannot be read as a {what}: {said}") from error


@contextmanager
def quiet() -> Iterator[None]:
    """Without the notices and the progress bar of loading; errors are shown."""
    from transformers.utils import logging

    level = logging.get_verbosity()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(level)
        logging.enable_progress_bar()


def add_adapters(
    net: LanguageNet, rank: int, alpha: int | None = None, targets: Sequence[str] | None = None, seed: int = 0
) -> None:
    """Freezes the model and adds low-rank adapters in float32 to its linear layers (all but the head by default)."""
    chosen = targets or [n.removeprefix(PREFIX) for n in lora_targets(net)]
    add_lora(net.lm, rank, chosen, seed, alpha)
    for p in net.parameters():
        if p.requires_grad:
            p.data = p.data.float()


def save_tuned(net: LanguageNet, encoder: Encoder, weights: Mapping[str, Tensor], folder: Path) -> str:
    """Writes trained weights (``Policy.state(name)``), and returns the line of Python that loads them."""
    from safetensors.torch import save_file

    named = {n.removeprefix(PREFIX): w.detach().cpu().contiguous() for n, w in weights.items()}
    with full_disk(f"the weights in {folder}"), quiet():
        folder.mkdir(parents=True, exist_ok=True)
        encoder.tokenizer.save_pretrained(str(folder))
        if any("lora_" in n for n in named):
            plain = {f"base_model.model.{n.replace(f'.{ADAPTER}.', '.')}": w for n, w in named.items()}
            save_file(plain, folder / "adapter_model.safetensors", {"format": "pt"})
            config = copy.copy(net.lm.peft_config[ADAPTER])
            config.base_model_name_or_path = getattr(net.lm, "name_or_path", None) or None
            config.save_pretrained(str(folder))
            return f"peft.PeftModel.from_pretrained(model, {str(folder)!r})"
        state = {k: v.detach().cpu() for k, v in net.lm.state_dict().items() if k not in named} | named
        net.lm.save_pretrained(str(folder), state_dict=state)
    return f"transformers.AutoModelForCausalLM.from_pretrained({str(folder)!r})"
