"""Presets from the command line on a tiny pipeline: a dry run, a run, and what is told before work is lost."""

import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from girsanov import dry_run
from girsanov.cli import main
from tests.pipelines import LINES, folder_of

pytest.importorskip("peft")
pytest.importorskip("diffusers")

TINY = ["pipeline.height=16", "pipeline.width=24", "precision=fp32", "groups=2", "train.minibatches=1"]
TINY += ["method.grid.n=3", "steps=2", "samples=4", "kl_samples=2", "pictured=2", "--device", "cpu"]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(folder_of("sd15", tmp_path_factory.getbasetemp()))


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("GIRSANOV_CACHE", str(tmp_path / "cache"))
    (tmp_path / "p.txt").write_text("\n".join(LINES[:4]) + "\n")
    return tmp_path


def test_a_dry_run_looks_at_everything_and_leaves_no_folder(model: str, folder: Path, capsys: Any) -> None:
    assert main(["run", "sd15", "--model", model, "prompts=p.txt", *TINY, "--dry-run", "--out", "run"]) == 0
    said = capsys.readouterr().out
    assert [line.split()[1] for line in said.splitlines() if line.startswith("  ok")] == [
        *("settings", "parts", "trained", "drawn", "reward", "iteration", "memory", "disk")
    ]
    assert "FAIL" not in said and said.rstrip().endswith("the run can begin")
    assert not (folder / "run").exists() and not (folder / "runs").exists()


SHORTAGES = {
    "memory": ("available", lambda device: 10_000, "of 10 KB: "),
    "disk": ("free_space", lambda out: 5_000, "of 5 KB free: "),
}


@pytest.mark.parametrize("what", SHORTAGES)
def test_too_little_memory_or_disk_fails_with_what_to_lower(
    what: str, model: str, folder: Path, capsys: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    name, less, there = SHORTAGES[what]
    monkeypatch.setattr(dry_run, name, less)
    assert main(["run", "sd15", "--model", model, "prompts=p.txt", *TINY, "--dry-run"]) == 2
    said = " ".join(capsys.readouterr().out.split())
    assert f"FAIL {what}" in said and there in said and "lower" in said and "mend this first" in said


@pytest.mark.parametrize("dry", [["--dry-run"], []], ids=["dry run", "run"])
def test_a_reward_server_that_is_down_is_noticed_first(dry: list[str], model: str, folder: Path, capsys: Any) -> None:
    reward = "reward={kind: remote, url: 'http://127.0.0.1:9', retries: 0}"
    assert main(["run", "sd15", "--model", model, "prompts=p.txt", reward, *TINY, *dry, "--out", "run"]) == 2
    both = " ".join("".join(capsys.readouterr()).split())
    assert "the reward server http://127.0.0.1:9" in both and "start it with girsanov serve-reward" in both
    assert not (folder / "run").exists()


class Gated(BaseHTTPRequestHandler):
    """A hub that answers as it does for a repository whose terms were not accepted."""

    def do_HEAD(self) -> None:
        self.send_response(403)
        self.send_header("X-Error-Code", "GatedRepo")
        self.send_header("Content-Length", "0")
        self.end_headers()

    do_GET = do_HEAD

    def log_message(self, *args: object) -> None:
        """Nothing on the terminal."""


@pytest.fixture
def gated_hub(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[None]:
    from huggingface_hub import constants

    server = HTTPServer(("127.0.0.1", 0), Gated)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    address = f"http://127.0.0.1:{server.server_port}"
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "ENDPOINT", address)
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", address + "/{repo_id}/resolve/{revision}/{filename}")
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    yield
    server.shutdown()
    server.server_close()


def test_a_repository_that_asks_for_a_token(gated_hub: None, folder: Path, capsys: Any) -> None:
    assert main(["run", "sd3", "--method", "rwr", "prompts=p.txt", "--device", "cpu", "--out", "run"]) == 2
    error = capsys.readouterr().err.strip().splitlines()[-1]
    assert error.startswith("error: stabilityai/stable-diffusion-3.5-medium asks for its terms to be accepted: ")
    assert error.endswith("do so on its page, then log in with `hf auth login`")
    assert not (folder / "run").exists()


def test_a_run_with_sheets_and_adapters_of_another_network(model: str, folder: Path, capsys: Any) -> None:
    """One run of the preset with its report; then its adapters with another width are refused before any training."""
    command = ["run", "sd15", "--model", model, "prompts=p.txt", *TINY]
    assert main([*command, "train.iterations=2", "pictures_every=1", "patience=5", "--out", "run"]) == 0
    assert sorted(p.name for p in (folder / "run" / "samples").glob("0*.png")) == [f"000000{i}.png" for i in range(3)]
    report = (folder / "run" / "report.html").read_text()
    assert report.count("data:image/png;base64,") == 5 and "iteration 2" in report
    assert "pipe.load_lora_weights('run/weights')" in (folder / "run" / "README.md").read_text()
    file = next((folder / "run" / "weights").glob("*.safetensors"))
    wide = {k: torch.cat([v, v], 0 if "lora_B" in k or "lora.up" in k else 1) for k, v in load_file(file).items()}
    (folder / "other").mkdir()
    save_file(wide, folder / "other" / file.name)
    capsys.readouterr()
    assert main([*command, "lora_from=other", "--out", "again"]) == 2
    error = capsys.readouterr().err.strip().splitlines()[-1]
    assert "other holds no low-rank adapters for this StableDiffusionPipeline" in error
    assert "they belong to the network they were trained on" in error and not (folder / "again").exists()
