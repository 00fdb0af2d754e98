"""The guards of tools/guards.py can fail: each is shown one case that it must refuse and one that it must let pass."""

from pathlib import Path

import pytest

from tools.guards import ROOT, bad_pins, lock_files, unwanted_packages


def test_the_committed_pins_are_clean() -> None:
    assert bad_pins((ROOT / "constraints.txt").read_text()) == []


@pytest.mark.parametrize(
    "line",
    [
        "torch==2.13.0+cpu",
        "numpy>=1.26",
        "--index-url x",
        "# note",
        "",
        "jinja2 == 3.1.6",
        "pot @ file:pot.whl",
        "a==1 ; x",
    ],
)
def test_anything_but_name_and_version_is_refused(line: str) -> None:
    assert len(bad_pins(f"{line}\ntorch==2.13.0\n")) >= 1


def test_a_pin_held_twice_and_a_missing_torch_are_refused() -> None:
    assert "twice" in bad_pins("numpy==2.0\nnumpy==2.1\ntorch==2.13.0\n")[0]
    assert "does not pin torch" in bad_pins("numpy==2.0\n")[0]


def test_torchvision_is_refused_even_beside_cuda() -> None:
    assert len(unwanted_packages({"torchvision"}, cuda=True)) == 1


@pytest.mark.parametrize(("cuda", "failures"), [(False, 1), (True, 0)])
def test_cuda_packages_need_the_machine_to_say_so(cuda: bool, failures: int) -> None:
    assert len(unwanted_packages({"torch", "nvidia-cudnn", "nvidia-nccl"}, cuda=cuda)) == failures


def test_lock_files_are_refused(tmp_path: Path) -> None:
    assert lock_files(tmp_path) == []
    (tmp_path / "uv.lock").touch()
    assert len(lock_files(tmp_path)) == 1
