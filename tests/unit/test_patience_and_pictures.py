"""Early stopping on evaluations, and the sheets of samples during a run."""

import io
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from girsanov.callbacks import Evaluation, Patience, Pictures
from girsanov.callbacks.trackers import TRACKERS
from girsanov.folder import RunFolder
from girsanov.models import ModelLike
from girsanov.report.run import strip
from girsanov.train import Run, train
from tests.tiny import tiny_run

CURVES = {  # evaluations at iterations 0, 1, ...; the sign; how many iterations a patience of 2 allows
    "rising": ([0.0, 1.0, 2.0, 3.0, 4.0, 5.0, 6.0], 1.0, 6),
    "falling": ([0.0, -1.0, -2.0, -3.0, -4.0, -5.0, -6.0], 1.0, 2),
    "falling is good": ([0.0, -1.0, -2.0, -3.0, -4.0, -5.0, -6.0], -1.0, 6),
    "wavering": ([0.0, 2.0, 1.0, 3.0, 2.0, 2.9, 9.0], 1.0, 5),
    "flat": ([1.0, 1.0, 1.0, 1.0, 1.0, 1.0, 1.0], 1.0, 2),
}


def watched(values: list[float], sign: float, tmp_path: Path, run: Run, patience: int = 2) -> Run:
    """The run, with evaluations that give these numbers at iterations 0, 1, ..."""
    evaluation = Evaluation(lambda run: {"judge": values[run.done]}, 1, RunFolder(tmp_path))
    return train(run, [evaluation, Patience("judge", sign, patience)])


@pytest.mark.parametrize("curve", CURVES)
def test_a_run_ends_when_evaluations_no_longer_get_better(curve: str, tmp_path: Path) -> None:
    values, sign, allowed = CURVES[curve]
    run = watched(values, sign, tmp_path, tiny_run(iterations=6))
    assert run.done == allowed and (run.stopped is None) == (allowed == 6)


def test_the_reason_names_the_best_evaluation_and_waiting_goes_on_after_a_resume(tmp_path: Path) -> None:
    values = [0.0, 2.0, 1.0, 1.5, 1.0, 1.0, 1.0]
    first = watched(values, 1.0, tmp_path, tiny_run(iterations=2), 3)
    assert first.stopped is None and first.callback_state["patience"] == {"best": 2.0, "iteration": 1, "waited": 1}
    second = tiny_run(iterations=6)
    second.done, second.callback_state = 2, first.callback_state
    watched(values, 1.0, tmp_path, second, 3)
    assert second.done == 4
    assert second.stopped == "patience: 3 evaluations without a better judge than 2, that of iteration 1"


def sheet(points: torch.Tensor) -> bytes:
    """Points as a picture of grey levels."""
    buffer = io.BytesIO()
    Image.fromarray((points.clamp(0, 1) * 255).to(torch.uint8).numpy()).save(buffer, format="png")
    return buffer.getvalue()


def points(model: ModelLike, n: int, seed: int) -> torch.Tensor:
    """One prediction of the model at fixed points and a fixed time: what changes is what was learned."""
    assert not torch.is_grad_enabled()
    x = torch.randn(n, 2, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return model(x, torch.tensor(0.5), tiny_run().prompts.batch(0, 0, 1).cond.take(torch.arange(n))).sigmoid()


def test_sheets_are_drawn_before_and_every_so_often_and_reach_the_tracker(tmp_path: Path) -> None:
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    folder = RunFolder(tmp_path)
    folder.samples.mkdir()
    tracker = TRACKERS["tensorboard"](folder, {})
    run = tiny_run(iterations=5, ema=None)
    train(run, [tracker, Pictures(points, sheet, 2, 3, folder, [tracker])])
    names = sorted(p.name for p in folder.samples.iterdir())
    assert names == ["0000000.png", "0000002.png", "0000004.png"]
    first, later = (np.asarray(Image.open(folder.samples / n)) for n in (names[0], names[2]))
    assert first.shape == (3, 2) and (first != later).any()
    with torch.no_grad():
        again = sheet(points(tiny_run(iterations=5, ema=None).model(), 3, 20_000_003))
    assert (folder.samples / names[0]).read_bytes() == again, "the same points and noise each time"
    events = EventAccumulator(str(tmp_path / "tensorboard"))
    events.Reload()
    assert [e.step for e in events.Images("samples")] == [0, 2, 4]
    assert [p["iteration"] for p in strip(folder)] == [0, 2, 4]


def test_the_report_shows_at_most_eight_sheets_with_the_first_and_the_last(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path)
    folder.samples.mkdir()
    assert strip(folder) == []
    for i in range(0, 210, 10):
        (folder.samples / f"{i:07d}.png").write_bytes(b"sheet")
    chosen = [p["iteration"] for p in strip(folder)]
    assert len(chosen) == 8 and chosen[0] == 0 and chosen[-1] == 200
    assert max(b - a for a, b in zip(chosen, chosen[1:], strict=False)) <= 30
