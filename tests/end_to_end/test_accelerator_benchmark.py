"""``benchmarks/accelerator.py`` runs as it would on a card, with small networks: every model, every method, a table."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.slow

ROOT = Path(__file__).resolve().parents[2]
SCRIPT = [sys.executable, str(ROOT / "benchmarks/accelerator.py")]
ROWS = ["ode-am", "am", "flow-grpo", "nft", "diffusion-dpo"]


def test_every_row_is_measured_and_the_table_holds_them(tmp_path: Path) -> None:
    lines, page = tmp_path / "lines.jsonl", tmp_path / "table.md"
    options = ["--tiny", "--device", "cpu", "--repeats", "1", "--json", str(lines), "--table", str(page)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}

    def run(*more: str) -> None:
        done = subprocess.run([*SCRIPT, *options, *more], env=environment, capture_output=True, text=True, timeout=280)
        assert done.returncode == 0, done.stderr[-3000:]

    run("--compile", "off")
    run("--compile", "on", "--models", "sit-xl", "--methods", "ode-am")
    found = [json.loads(line) for line in lines.read_text().splitlines()]
    assert [(f["model"].split()[0], f["method"]) for f in found[:-1]] == [
        (model, method) for model in ("sit-xl", "sd15", "flux2-klein") for method in ROWS
    ]
    assert [f["compile"] for f in found] == [False] * 15 + [True]
    for f in found:
        assert sum(f["phases"].values()) == pytest.approx(f["seconds"], rel=0.1, abs=0.01)
        assert f["mfu"] is None and f["mfu_loss"] is None  # a processor has no peak
        adapters = f["model"].startswith("flux2")
        assert f["trained"] < 0.5 * f["parameters"] if adapters else f["trained"] > 0.9 * f["parameters"]
    text = page.read_text()
    assert text.count("\n| sit-xl") == 6 and text.count("% of am's time") == 3
    assert text.startswith("## cpu, torch ")


def test_the_sizes_are_the_published_ones() -> None:
    """The sizes themselves, without their memory: 675, 860 and 3876 million parameters."""
    from runpy import run_path

    import torch

    models = run_path(str(ROOT / "benchmarks/accelerator.py"))["MODELS"]
    with torch.device("meta"):
        networks = {name: make(False).network for name, make in models.items()}
    sizes = {k: sum(p.numel() for n, p in net.named_parameters() if "lora" not in n) for k, net in networks.items()}
    assert {name: round(n / 1e6) for name, n in sizes.items()} == {"sit-xl": 675, "sd15": 860, "flux2-klein": 3876}
