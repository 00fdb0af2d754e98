"""Learning rates over a run, and AdamW in 8 bits where its package is installed."""

import math
import sys
from pathlib import Path

import pytest
import torch

from girsanov import optimizers
from girsanov.checkpoint import load, save
from girsanov.errors import GirsanovError
from girsanov.optimizers import OPTIMIZERS, SCHEDULES
from girsanov.train import iterate
from tests.tiny import tiny_run

DEFAULT = optimizers.LARGE


@pytest.mark.parametrize("name", SCHEDULES)
def test_a_rate_rises_then_follows_its_curve(name: str) -> None:
    """Four updates of warm-up, then 1, 1 - u or (1 + cos pi u) / 2 on the other eight, and its end after them."""
    rate = [SCHEDULES[name](4, 12, k) for k in range(16)]
    assert rate[:4] == [0.25, 0.5, 0.75, 1.0]
    u = [min(1.0, k / 8) for k in range(12)]
    curve = {
        "constant": [1.0] * 12,
        "linear": [1 - v for v in u],
        "cosine": [(1 + math.cos(math.pi * v)) / 2 for v in u],
    }
    assert rate[4:] == pytest.approx(curve[name], abs=1e-12)
    assert SCHEDULES[name](0, 0, 5) == pytest.approx(curve[name][-1], abs=1e-12)


def test_eight_bits_are_an_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "bitsandbytes", None)
    monkeypatch.setitem(sys.modules, "bitsandbytes.optim", None)
    with pytest.raises(GirsanovError, match=r"pip install 'girsanov\[eightbit\]'"):
        OPTIMIZERS["adamw8bit"]()
    with pytest.raises(GirsanovError, match="adamw8bit needs the package bitsandbytes"):
        tiny_run(optimizer="adamw8bit")


def test_a_run_in_eight_bits_resumes(tmp_path: Path) -> None:
    """Small tensors stay in 32 bits, so the run is AdamW's to 1e-6; a resumed one is the same to the bit."""
    pytest.importorskip("bitsandbytes")
    curves = {}
    for name in ("adamw", "adamw8bit"):
        run = tiny_run(optimizer=name, dtype=torch.float32)
        curves[name] = []
        for _ in range(4):
            curves[name].append(iterate(run)["loss"])
            run.done += 1
            if run.done == 2 and name == "adamw8bit":
                path = save(run, tmp_path)
    assert curves["adamw8bit"] == pytest.approx(curves["adamw"], rel=1e-5)
    again = tiny_run(optimizer="adamw8bit", dtype=torch.float32)
    assert path is not None
    load(again, path)
    assert [iterate(again)["loss"]] == curves["adamw8bit"][2:3]


def test_large_networks_are_stepped_in_one_pass(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """The weights are those of the ordinary step but for rounding, and a run resumes to the bit."""
    curves, weights = {}, {}
    for large in (DEFAULT, 1):
        monkeypatch.setattr(optimizers, "LARGE", large)
        run = tiny_run(weight_decay=0.1, max_grad_norm=0.5)
        assert run.optimizers["policy"].param_groups[0]["fused"] is (True if large == 1 else None)
        curves[large] = []
        for _ in range(4):
            curves[large].append(iterate(run)["loss"])
            run.done += 1
            if run.done == 2:
                path = save(run, tmp_path / str(large))
        weights[large] = run.policy.state()
    for name, w in weights[1].items():
        torch.testing.assert_close(w, weights[DEFAULT][name], rtol=1e-10, atol=1e-12)
    assert path is not None
    again = tiny_run(weight_decay=0.1, max_grad_norm=0.5)
    load(again, path)
    assert iterate(again)["loss"] == curves[1][2]
    monkeypatch.setattr(optimizers, "LARGE", DEFAULT)
    small = tiny_run(weight_decay=0.1, max_grad_norm=0.5)
    load(small, path)  # another machine, or another release: the run's own way of stepping stays
    assert small.optimizers["policy"].param_groups[0]["fused"] is None
    assert iterate(small)["loss"] == pytest.approx(curves[1][2], rel=1e-10)
