"""What accelerate launch asks for: taken as a setting of the run, handed to DeepSpeed, or refused with a sentence."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from girsanov.accelerators import accelerator_of
from girsanov.errors import GirsanovError
from girsanov.launchers import asked, check, zero_settings
from girsanov.recipes import get_recipe

RECIPE = get_recipe("digits")
CPU = torch.device("cpu")
FSDP = {"ACCELERATE_USE_FSDP": "true"}
LAUNCHED = {  # what accelerate launch --use_fsdp sets by itself
    **FSDP,
    "FSDP_VERSION": "1",
    "FSDP_SHARDING_STRATEGY": "FULL_SHARD",
    "FSDP_RESHARD_AFTER_FORWARD": "true",
    "FSDP_OFFLOAD_PARAMS": "false",
    "FSDP_ACTIVATION_CHECKPOINTING": "false",
    "ACCELERATE_MIXED_PRECISION": "no",
    "ACCELERATE_DYNAMO_BACKEND": "NO",
}


def settings(**given: Any) -> Any:
    return RECIPE.config(**given)


def zero(path: Path, given: Any, **config: Any) -> dict[str, Any]:
    path = path / "zero.json"
    path.write_text(given if isinstance(given, str) else json.dumps(given))
    return zero_settings({"ACCELERATE_DEEPSPEED_CONFIG_FILE": str(path)}, settings(**config))


def test_fsdp_is_shard() -> None:
    assert asked({}, []) == asked({"ACCELERATE_USE_FSDP": "false"}, [{"shard": False}]) == []
    assert asked(FSDP, [{"shard": True}]) == asked(FSDP, []) == [{"shard": True}]
    with pytest.raises(GirsanovError, match="--use_fsdp is shard=true, and the settings say shard=false"):
        asked(FSDP, [{"lora": 2}, {"shard": False}])


@pytest.mark.parametrize("more", [{}, {"FSDP_AUTO_WRAP_POLICY": "TRANSFORMER_BASED_WRAP"}, {"FSDP_VERSION": "2"}])
def test_what_fsdp_is_asked_for_and_shard_does_anyway(more: dict[str, str]) -> None:
    check({**LAUNCHED, **more}, settings(shard=True))


@pytest.mark.parametrize(
    ("variable", "value"),
    [
        ("FSDP_OFFLOAD_PARAMS", "true"),
        ("FSDP_AUTO_WRAP_POLICY", "SIZE_BASED_WRAP"),
        ("FSDP_AUTO_WRAP_POLICY", "NO_WRAP"),
        ("FSDP_TRANSFORMER_CLS_TO_WRAP", "Block"),
        ("FSDP_SHARDING_STRATEGY", "SHARD_GRAD_OP"),
        ("FSDP_RESHARD_AFTER_FORWARD", "false"),
        ("FSDP_IGNORED_MODULES", "head"),
        ("FSDP_ACTIVATION_CHECKPOINTING", "true"),
        ("FSDP_ACTIVATION_CHECKPOINTING_OFFLOAD", "true"),
    ],
)
def test_options_of_fsdp_that_shard_does_not_follow(variable: str, value: str) -> None:
    with pytest.raises(GirsanovError, match=f"--{variable.lower()} {value} is not what shard=true does .* leave it"):
        check({**LAUNCHED, variable: value}, settings(shard=True))


@pytest.mark.parametrize(
    ("environment", "said"),
    [
        ({"ACCELERATE_USE_MEGATRON_LM": "true"}, "--use_megatron_lm splits layers"),
        ({"ACCELERATE_USE_PARALLELISM_CONFIG": "true"}, "--use_parallelism_config splits layers"),
        ({"ACCELERATE_MIXED_PRECISION": "bf16"}, "--mixed_precision bf16 is a setting of the run: give precision=bf16"),
        ({"ACCELERATE_MIXED_PRECISION": "fp8"}, "--mixed_precision fp8 is not known here"),
        ({"ACCELERATE_DYNAMO_BACKEND": "INDUCTOR"}, "give compile=true"),
    ],
)
def test_settings_of_a_run_are_not_given_to_the_launcher(
    monkeypatch: pytest.MonkeyPatch, environment: dict[str, str], said: str
) -> None:
    for variable, value in environment.items():
        monkeypatch.setenv(variable, value)
    with pytest.raises(GirsanovError, match=said):
        accelerator_of(RECIPE, settings(), CPU)


def test_the_same_precision_twice_is_one() -> None:
    check({"ACCELERATE_MIXED_PRECISION": "bf16"}, settings(precision="bf16"))


def test_deepspeed_gets_a_stage_and_buckets(tmp_path: Path) -> None:
    found = zero_settings({"ACCELERATE_DEEPSPEED_ZERO_STAGE": "1", "ACCELERATE_GRADIENT_CLIPPING": "1.0"}, settings())
    assert found["zero_optimization"] == {"stage": 1}
    assert found["managed_gradient_accumulation"] is False
    usual = {
        "train_batch_size": "auto",
        "train_micro_batch_size_per_gpu": 1,
        "gradient_accumulation_steps": 1,
        "gradient_clipping": "auto",
        "bf16": {"enabled": "auto"},
        "fp16": {"enabled": False, "loss_scale": 0},
        "steps_per_print": 100,
        "zero_optimization": {
            "stage": 2,
            "reduce_bucket_size": 1000,
            "offload_optimizer": {"device": "none"},
            "overlap_comm": False,
        },
    }
    assert zero(tmp_path, usual)["zero_optimization"] == {"stage": 2, "reduce_bucket_size": 1000}


@pytest.mark.parametrize(
    ("option", "value", "said"),
    [
        ("optimizer", {"type": "Adam"}, "give train.lr, train.betas and train.weight_decay"),
        ("scheduler", {"type": "WarmupLR"}, "give train.schedule and train.warmup"),
        ("fp16", {"enabled": True}, "give precision=bf16"),
        ("bf16", {"enabled": True}, "give precision=bf16"),
        ("gradient_clipping", 0.5, "give train.max_grad_norm"),
        ("gradient_accumulation_steps", 4, "give train.micro_batch"),
        ("train_batch_size", 16, "give groups and train.micro_batch"),
        ("activation_checkpointing", {"partition_activations": True}, "pipeline.checkpointing=true"),
        ("zero_optimization.offload_optimizer", {"device": "cpu"}, "shard=true splits"),
        ("zero_optimization.offload_param", {"device": "nvme"}, "shard=true splits"),
        ("zero_optimization.overlap_comm", True, "leave it out$"),
        ("compression_training", {"weight_quantization": {}}, "leave it out$"),
    ],
)
def test_options_of_deepspeed_that_would_be_ignored(tmp_path: Path, option: str, value: Any, said: str) -> None:
    given: dict[str, Any] = {"zero_optimization": {"stage": 2}}
    *outer, name = option.split(".")
    (given[outer[0]] if outer else given)[name] = value
    with pytest.raises(GirsanovError, match=f"DeepSpeed's option {option} would change nothing here.*{said}"):
        zero(tmp_path, given)


def test_launch_options_of_deepspeed_that_would_be_ignored() -> None:
    with pytest.raises(GirsanovError, match="offload_optimizer would change nothing"):
        zero_settings({"ACCELERATE_DEEPSPEED_OFFLOAD_OPTIMIZER_DEVICE": "cpu"}, settings())
    with pytest.raises(GirsanovError, match="gradient_clipping would change nothing"):
        zero_settings({"ACCELERATE_GRADIENT_CLIPPING": "0.3"}, settings())


@pytest.mark.parametrize(
    ("given", "config", "said"),
    [
        ({"zero_optimization": {"stage": 3}}, {}, "stage 3 gathers .* give shard=true"),
        ({"zero_optimization": {"stage": 0}}, {}, "stage is 0: give --zero_stage 1 or 2"),
        ({"zero_optimization": {"stage": "two"}}, {}, "stage is 'two'"),
        ({"fp16": {}}, {}, "names no stage"),
        ("[1]", {}, "names no stage"),
        ("{", {}, "cannot be read: give a JSON file"),
        ({"zero_optimization": {"stage": 2}}, {"shard": True}, "take one of them"),
        ({"zero_optimization": {"stage": 2}}, {"precision": "fp16"}, "take precision=bf16 instead of fp16"),
        ({"zero_optimization": {"stage": 2}}, {"train": {"optimizer": "adamw8bit"}}, "which adamw8bit cannot be"),
    ],
)
def test_what_deepspeed_cannot_do_here(tmp_path: Path, given: Any, config: dict[str, Any], said: str) -> None:
    with pytest.raises(GirsanovError, match=said):
        zero(tmp_path, given, **config)


def test_a_missing_file_and_a_missing_package(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    with pytest.raises(GirsanovError, match=r"nowhere.json cannot be read"):
        zero_settings({"ACCELERATE_DEEPSPEED_CONFIG_FILE": str(tmp_path / "nowhere.json")}, settings())
    monkeypatch.setenv("ACCELERATE_USE_DEEPSPEED", "true")
    monkeypatch.setenv("DS_ACCELERATOR", "cpu")
    monkeypatch.setattr("accelerate.utils.is_deepspeed_available", lambda: False)
    with pytest.raises(GirsanovError, match=r"pip install 'girsanov\[deepspeed\]'"):
        accelerator_of(RECIPE, settings(), CPU)
