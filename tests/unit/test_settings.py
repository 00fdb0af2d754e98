"""Settings check themselves and say what is wrong, also when made in Python."""

import dataclasses

import pytest

from girsanov.errors import GirsanovError
from girsanov.train import TrainConfig

MISTAKES = {
    "negative": ({"lr": -1}, "TrainConfig.lr must be greater than 0, not -1"),
    "zero": ({"iterations": 0}, "TrainConfig.iterations must be greater than or equal to 1, not 0"),
    "nan": ({"lr": float("nan")}, "TrainConfig.lr must be a finite number, not nan"),
    "infinite": ({"lr": float("inf")}, "TrainConfig.lr must be a finite number, not inf"),
    "text": ({"lr": "fast"}, "TrainConfig.lr must be a valid number, not 'fast'"),
    "fraction": ({"epochs": 1.5}, "TrainConfig.epochs must be a valid integer, not 1.5"),
    "choice": ({"schedule": "cosin"}, "TrainConfig.schedule must be 'constant', 'linear' or 'cosine', not 'cosin'"),
    "range": ({"ema": 1.0}, "TrainConfig.ema must be less than 1, not 1.0"),
    "unknown": ({"iteration": 5}, "TrainConfig.iteration is no setting: did you mean iterations?"),
    "two": (
        {"lr": 0, "warmup": -1},
        "TrainConfig.lr must be greater than 0, not 0; TrainConfig.warmup must be greater than or equal to 0, not -1",
    ),
}


@pytest.mark.parametrize(("values", "sentence"), MISTAKES.values(), ids=MISTAKES)
def test_a_mistake_in_python_is_one_sentence(values: dict, sentence: str) -> None:
    with pytest.raises(GirsanovError) as error:
        TrainConfig(**values)
    assert str(error.value) == sentence


def test_settings_are_frozen_and_replacing_checks_again() -> None:
    config = TrainConfig(lr="1e-3")
    assert config.lr == 1e-3 and dataclasses.replace(config, lr=2).lr == 2.0
    with pytest.raises(dataclasses.FrozenInstanceError):
        config.lr = 1.0
    with pytest.raises(GirsanovError, match="must be greater than 0"):
        dataclasses.replace(config, lr=-2)
