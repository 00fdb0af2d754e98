"""The trained weights of a pipeline: choosing what is trained, reading and writing low-rank adapters, merging them.

What is written is what plain diffusers reads: ``pipe.load_lora_weights(folder)`` for adapters, where the pipeline has
that function (peft's own layout where it has not: DiT, SiT, Stable Audio), and the folder of the trained component for
full fine-tuning. Frozen weights may be in bf16; trained ones are in float32.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from girsanov.adapters.base import Adapter
from girsanov.adapters.lora import add_lora
from girsanov.building import ran_out
from girsanov.disk import full_disk
from girsanov.errors import GirsanovError

PREFIX = "network."  # of the parameters' names in a policy (``Denoiser.network``)
ADAPTER = "default"


def train_adapters(
    adapter: Adapter, rank: int = 16, alpha: int | None = None, targets: Sequence[str] | None = None, seed: int = 0
) -> None:
    """Adds new low-rank adapters; they alone are trained.

    Args:
        adapter: the pipeline.
        rank: r.
        alpha: scale of the adapters times r; r by default.
        targets: ends of the names of the layers; the family's own by default.
        seed: of the first factor.

    Raises:
        GirsanovError: no peft, no such layer, adapters that are there already.
    """
    add_lora(adapter.network, rank, targets or adapter.targets, seed, alpha)
    adapter.network._hf_peft_config_loaded = True  # what diffusers asks before it fuses or switches adapters
    only_adapters(adapter.network)


def resume_adapters(adapter: Adapter, name: str) -> None:
    """Goes on training published low-rank adapters: a folder or a hub name, as ``load_lora_weights`` takes it.

    The reference of the policy is the pipeline without them.

    Raises:
        GirsanovError: nothing to read there, or adapters of another network.
    """
    try:
        if hasattr(adapter.pipe, "load_lora_weights"):
            adapter.pipe.load_lora_weights(name, adapter_name=ADAPTER)
        else:
            load_peft(adapter.network, Path(name).expanduser())
    except (OSError, ValueError, RuntimeError, KeyError, SafetensorError) as error:
        if ran_out(error):
            raise
        what = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise GirsanovError(
            f"{name} holds no low-rank adapters for this {type(adapter.pipe).__name__} ({what}): they belong to the "
            "network they were trained on"
        ) from error
    if not any("lora_" in n for n, _ in adapter.network.named_parameters()):
        raise GirsanovError(
            f"{name} holds no low-rank adapters for the {adapter.component} of a {type(adapter.pipe).__name__}: they "
            "belong to the network they were trained on"
        )
    only_adapters(adapter.network)


def train_everything(adapter: Adapter) -> None:
    """Full fine-tuning: every weight of the component, in float32."""
    fixed = {n for n, p in adapter.network.named_parameters() if not p.requires_grad}
    adapter.network.float()
    adapter.dtype = torch.float32
    for name, p in adapter.network.named_parameters():
        p.requires_grad_(name not in fixed)


def only_adapters(network: nn.Module) -> None:
    """Freezes all but the adapters, which are put into float32."""
    for name, p in network.named_parameters():
        p.requires_grad_("lora_" in name)
        if "lora_" in name:
            p.data = p.data.float()


# ---- writing


def save_weights(adapter: Adapter, weights: Mapping[str, Tensor], folder: Path, strength: float = 1.0) -> str:
    """Writes trained weights for plain diffusers.

    Args:
        adapter: the pipeline.
        weights: ``Policy.state(name)``: the trained parameters by name.
        folder: where to.
        strength: scale of the adapters' product B A.

    Returns:
        The line of Python that loads them into ``pipe``.
    """
    named = {n.removeprefix(PREFIX): w.detach().cpu() for n, w in weights.items()}
    with full_disk(f"the weights in {folder}"):
        folder.mkdir(parents=True, exist_ok=True)
        if not any("lora_" in n for n in named):
            return save_component(adapter, named, folder)
        named = {n: w * strength if "lora_B" in n else w for n, w in named.items()}
        plain = {n.replace(f".{ADAPTER}.", "."): w.contiguous() for n, w in named.items()}
        config = adapter.network.peft_config[ADAPTER]
        if hasattr(adapter.pipe, "save_lora_weights"):
            part = {f"{adapter.component}_lora_layers": plain}
            facts = {f"{adapter.component}_lora_adapter_metadata": told(config)}
            type(adapter.pipe).save_lora_weights(str(folder), **part, **facts)
            return f"pipe.load_lora_weights({str(folder)!r})"
        save_file({f"base_model.model.{n}": w for n, w in plain.items()}, folder / "adapter_model.safetensors")
        config.save_pretrained(str(folder))
    return f"pipe.{adapter.component} = peft.PeftModel.from_pretrained(pipe.{adapter.component}, {str(folder)!r})"


def told(config: Any) -> dict[str, Any]:
    """A LoraConfig as diffusers keeps it in the file: without it every scale would be read as 1."""
    facts = {k: sorted(v) if isinstance(v, set) else v for k, v in config.to_dict().items()}
    return {k: v for k, v in facts.items() if isinstance(v, str | int | float | bool | list | dict) or v is None}


def save_component(adapter: Adapter, named: Mapping[str, Tensor], folder: Path) -> str:
    """The whole component with trained weights, and the line that puts it into a pipeline."""
    if not hasattr(adapter.network, "save_pretrained"):  # a network of this package
        state = adapter.network.state_dict() | dict(named)
        torch.save(state, folder / "weights.pt")
        return f"network.load_state_dict(torch.load({str(folder / 'weights.pt')!r}))"
    state = {k: v.detach().cpu() for k, v in adapter.network.state_dict().items()} | dict(named)
    adapter.network.state_dict = lambda: state  # diffusers takes no other weights than those the network names
    try:
        adapter.network.save_pretrained(str(folder))
    finally:
        del adapter.network.state_dict
    name = type(adapter.network).__name__
    return f"pipe.{adapter.component} = diffusers.{name}.from_pretrained({str(folder)!r})"


# ---- peft's own layout


def load_peft(network: nn.Module, folder: Path) -> None:
    """Adapters that ``save_weights`` wrote for a pipeline without ``load_lora_weights``."""
    from peft import LoraConfig, inject_adapter_in_model, set_peft_model_state_dict

    config = LoraConfig.from_pretrained(str(folder))
    config.inference_mode = False
    inject_adapter_in_model(config, network, ADAPTER)
    saved = load_file(folder / "adapter_model.safetensors")
    plain = {n.removeprefix("base_model.model."): w for n, w in saved.items()}
    unexpected: list[str] = getattr(set_peft_model_state_dict(network, plain, ADAPTER), "unexpected_keys", [])
    if unexpected:
        raise KeyError(f"there is no layer {unexpected[0]}")


def merge_adapters(network: nn.Module, strength: float = 1.0) -> None:
    """Adds ``strength (alpha / r) B A`` to the weights and takes the adapters away, in place.

    The network is then an ordinary one: it can be saved as a whole, or get new adapters whose reference is this one.
    """
    from peft.tuners.lora import LoraLayer

    layers: list[tuple[str, Any]] = list(network.named_modules())
    for name, module in layers:
        if isinstance(module, LoraLayer):
            module.set_scale(ADAPTER, strength)
            module.merge(safe_merge=True, adapter_names=[ADAPTER])
            parent, _, leaf = name.rpartition(".")
            setattr(network.get_submodule(parent), leaf, module.get_base_layer())
    if hasattr(network, "peft_config"):
        del network.peft_config
    network._hf_peft_config_loaded = False  # type: ignore[assignment]
