"""TensorBoard and Weights & Biases get what the metrics file gets; without their packages there is a sentence."""

import builtins
from pathlib import Path

import pytest

from girsanov.callbacks import TRACKERS
from girsanov.errors import GirsanovError
from girsanov.folder import RunFolder
from girsanov.train import train
from tests.tiny import tiny_run


def test_tensorboard_holds_every_metric(tmp_path: Path) -> None:
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    run = tiny_run(iterations=3)
    run.callback_state["baseline"] = {"judge": 0.5}
    train(run, [TRACKERS["tensorboard"](RunFolder(tmp_path), {})])
    events = EventAccumulator(str(tmp_path / "tensorboard"))
    events.Reload()
    assert {"loss", "reward", "grad_norm", "eval/judge"} <= set(events.Tags()["scalars"])
    assert [e.step for e in events.Scalars("loss")] == [1, 2, 3]
    assert [(e.step, e.value) for e in events.Scalars("eval/judge")] == [(0, 0.5)]


def test_wandb_runs_offline(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("wandb")
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_SILENT", "true")
    train(tiny_run(iterations=2), [TRACKERS["wandb"](RunFolder(tmp_path), {"a": 1})])
    assert list((tmp_path / "wandb").glob("offline-run-*"))


MISSING = {
    "tensorboard": "tracking with TensorBoard needs the package tensorboard: pip install 'girsanov[tracking]'",
    "wandb": "tracking with Weights & Biases needs the package wandb: pip install 'girsanov[tracking]'",
}


@pytest.mark.parametrize("name", TRACKERS)
def test_a_missing_package_is_one_sentence(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    find = builtins.__import__

    def without(module: str, *args: object, **kwargs: object) -> object:
        if module.startswith(("tensorboard", "wandb", "torch.utils.tensorboard")):
            raise ImportError(module)
        return find(module, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(GirsanovError) as error:
        train(tiny_run(iterations=1), [TRACKERS[name](RunFolder(tmp_path), {})])
    assert str(error.value) == MISSING[name]
