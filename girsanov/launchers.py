"""What ``accelerate launch`` asks for besides processes: taken as the run's own setting, or refused, never ignored.

The launcher speaks through the environment. ``--use_fsdp`` is ``shard=true``: our own FSDP2, whichever version it
names. ``--use_deepspeed`` is ZeRO 1 or 2 (``zero.py``). Everything else that changes the numbers is a setting of the
run, so that the run folder tells it: precision, compilation, clipping, how many samples at a time.
"""

import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from girsanov.errors import GirsanovError
from girsanov.recipes.base import RunConfig

Environment = Mapping[str, str]

FSDP = {
    "FSDP_OFFLOAD_PARAMS": ("false", "weights stay on the device"),
    "FSDP_AUTO_WRAP_POLICY": ("transformer_based_wrap", "blocks are those that the network names"),
    "FSDP_TRANSFORMER_CLS_TO_WRAP": ("", "blocks are those that the network names"),
    "FSDP_SHARDING_STRATEGY": ("full_shard", "everything is split"),
    "FSDP_RESHARD_AFTER_FORWARD": ("true", "what is gathered is put back after every pass"),
    "FSDP_IGNORED_MODULES": ("", "the whole network is split"),
    "FSDP_ACTIVATION_CHECKPOINTING": ("false", "pipeline.checkpointing=true recomputes activations"),
    "FSDP_ACTIVATION_CHECKPOINTING_OFFLOAD": ("false", "pipeline.checkpointing=true recomputes activations"),
}
"""Options of FSDP: the value that is what ``shard=true`` does, and why there is no other."""
SAME = {"FSDP_SHARDING_STRATEGY": "1", "FSDP_RESHARD_AFTER_FORWARD": "full_shard"}  # other words for that value

ZERO = {"stage", "reduce_bucket_size", "allgather_bucket_size", "reduce_scatter", "contiguous_gradients"}
"""Options of ZeRO that are handed on: they change messages, not numbers."""
INSTEAD = {
    "optimizer": "give train.lr, train.betas and train.weight_decay",
    "scheduler": "give train.schedule and train.warmup",
    "bf16": "give precision=bf16",
    "fp16": "give precision=bf16, which needs no scaled losses",
    "gradient_clipping": "give train.max_grad_norm",
    "gradient_accumulation_steps": "give train.micro_batch",
    "train_batch_size": "give groups and train.micro_batch",
    "train_micro_batch_size_per_gpu": "give train.micro_batch",
    "activation_checkpointing": "give pipeline.checkpointing=true",
    "zero_optimization.offload_optimizer": "shard=true splits weights, gradients and averages without offloading",
    "zero_optimization.offload_param": "shard=true splits weights, gradients and averages without offloading",
}
"""What to give in the place of an option of DeepSpeed."""
ONCE = {"gradient_accumulation_steps", "train_micro_batch_size_per_gpu"}  # 1 says nothing
SILENT = {"steps_per_print", "wall_clock_breakdown", "zero_allow_untested_optimizer"}  # what it prints; ours is AdamW


def on(environment: Environment, variable: str) -> bool:
    """Whether a switch of the launcher is set."""
    return environment.get(variable, "false").lower() in ("true", "1")


def asked(environment: Environment, layers: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """The settings that a launcher asks for, as the last layer: ``shard=true`` under ``--use_fsdp``.

    Raises GirsanovError where the layers say otherwise.
    """
    if not on(environment, "ACCELERATE_USE_FSDP"):
        return []
    if any(layer.get("shard") is False for layer in layers):
        raise GirsanovError(
            "accelerate launch --use_fsdp is shard=true, and the settings say shard=false: leave one of them out"
        )
    return [{"shard": True}]


def check(environment: Environment, config: RunConfig) -> None:
    """Raises GirsanovError for what a launcher asks for and a run would not do."""
    if on(environment, "ACCELERATE_USE_MEGATRON_LM") or on(environment, "ACCELERATE_USE_PARALLELISM_CONFIG"):
        option = "megatron_lm" if on(environment, "ACCELERATE_USE_MEGATRON_LM") else "parallelism_config"
        raise GirsanovError(
            f"accelerate launch --use_{option} splits layers, which girsanov does not: launch without it and split the "
            "network with shard=true"
        )
    precision = environment.get("ACCELERATE_MIXED_PRECISION", "no")
    if precision not in ("no", config.precision):
        raise GirsanovError(
            f"accelerate launch --mixed_precision {precision} is a setting of the run: give precision={precision}"
            if precision in ("bf16", "fp16")
            else f"accelerate launch --mixed_precision {precision} is not known here: give precision=bf16"
        )
    if environment.get("ACCELERATE_DYNAMO_BACKEND", "no").lower() != "no":
        raise GirsanovError("accelerate launch --dynamo_backend is a setting of the run: give compile=true")
    if on(environment, "ACCELERATE_USE_FSDP"):
        for variable, (usual, why) in FSDP.items():
            value = environment.get(variable, usual)
            if value.lower() not in (usual, SAME.get(variable, usual)):
                raise GirsanovError(
                    f"accelerate launch --{variable.lower()} {value} is not what shard=true does ({why}): leave it out"
                )


def zero_settings(environment: Environment, config: RunConfig) -> dict[str, Any]:
    """DeepSpeed's configuration for a run: what the launch asks for, where that changes no numbers of ours.

    Raises GirsanovError for another stage than 1 or 2, for options that would be ignored, and for settings of the run
    that do not go together with DeepSpeed.
    """
    if config.shard:
        raise GirsanovError("--use_deepspeed and shard=true both split the run: take one of them")
    if config.precision == "fp16":
        raise GirsanovError("--use_deepspeed does not scale losses here: take precision=bf16 instead of fp16")
    if config.train.optimizer != "adamw":
        raise GirsanovError(
            f"DeepSpeed splits the optimiser's averages, which {config.train.optimizer} cannot be: take "
            "train.optimizer=adamw, or launch without --use_deepspeed"
        )
    wanted = file_of(environment)
    zero = wanted.pop("zero_optimization", None) or {}
    stage = zero.get("stage", 0)
    if stage == 3:
        raise GirsanovError(
            "DeepSpeed's stage 3 gathers the weights of one network, and girsanov runs several sets of weights: launch "
            "without --use_deepspeed and give shard=true, which splits weights, gradients and averages as well"
        )
    if stage not in (1, 2):
        raise GirsanovError(f"DeepSpeed's stage is {stage!r}: give --zero_stage 1 or 2, or leave --use_deepspeed out")
    # a clipping that is the run's own is no other
    limit = config.train.max_grad_norm
    given = {name: value for name, value in options(wanted) if not (name == "gradient_clipping" and value == limit)}
    given |= {f"zero_optimization.{name}": value for name, value in options(zero) if name not in ZERO}
    for name in given:
        raise GirsanovError(
            f"DeepSpeed's option {name} would change nothing here: leave it out"
            + (f", and {INSTEAD[name]}" if name in INSTEAD else "")
        )
    return {
        "train_micro_batch_size_per_gpu": 1,
        "gradient_accumulation_steps": 1,
        "managed_gradient_accumulation": False,
        "zero_optimization": {name: value for name, value in options(zero) if name in ZERO},
    }


def file_of(environment: Environment) -> dict[str, Any]:
    """DeepSpeed's file of a launch with the launcher's own options in it."""
    path = environment.get("ACCELERATE_DEEPSPEED_CONFIG_FILE", "none")
    found: Any = {"zero_optimization": {"stage": int(environment.get("ACCELERATE_DEEPSPEED_ZERO_STAGE", "2"))}}
    if path != "none":
        try:
            found = json.loads(Path(path).read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            raise GirsanovError(f"DeepSpeed's configuration {path} cannot be read: give a JSON file") from error
        if not isinstance(found, dict) or not isinstance(found.get("zero_optimization"), dict):
            raise GirsanovError(
                f'DeepSpeed\'s configuration {path} names no stage: "zero_optimization": {{"stage": 2}}'
            )
    for variable, name in (
        ("ACCELERATE_GRADIENT_CLIPPING", "gradient_clipping"),
        ("ACCELERATE_GRADIENT_ACCUMULATION_STEPS", "gradient_accumulation_steps"),
    ):
        if environment.get(variable, "auto") not in ("auto", "none"):
            found.setdefault(name, float(environment[variable]))
    for name in ("optimizer", "param"):
        device = environment.get(f"ACCELERATE_DEEPSPEED_OFFLOAD_{name.upper()}_DEVICE", "none")
        found["zero_optimization"].setdefault(f"offload_{name}", {"device": device})
    return found


def options(given: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    """The options that ask for something: neither empty nor off, nor left to others ("auto")."""
    for name, value in given.items():
        off = value in (None, False, "auto", "none", {}, []) or name in SILENT
        switched = isinstance(value, Mapping) and (
            value.get("enabled", True) in (False, "auto") or value.get("device", "cpu") in (None, "none", "auto")
        )
        if not off and not switched and not (value == 1 and name in ONCE):
            yield name, value
