"""Saved models: what is written comes back to the bit; what is damaged, foreign or newer is refused in one sentence."""

import dataclasses
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from girsanov.errors import GirsanovError
from girsanov.models import Model
from girsanov.nets import NETS, MLPConfig, Preconditioned
from girsanov.predictions import ROWS
from girsanov.processes import PROCESSES, Process, RectifiedFlow, VPTable
from girsanov.store import cache_folder, cached, fingerprint, load_pretrained, read_settings, save_pretrained

SMALL = {"mlp": {"width": 8, "embed": 4}, "dit": {"width": 8}, "unet": {"channels": (8, 8), "groups": 4, "embed": 4}}


def process(name: str) -> Process:
    return VPTable([0.9, 0.5, 0.1]) if name == "vp-table" else PROCESSES[name]()


def model(net: str = "mlp", name: str = "rectified-flow", prediction: str = "velocity", seed: int = 0) -> Model:
    inner = NETS[net](shape=(1, 4, 4), classes=2, **SMALL[net]).build()
    g = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for p in inner.parameters():
            p.normal_(generator=g)
    return Model(Preconditioned(inner, process(name), prediction, 0.7), process(name), prediction, (1, 4, 4))


def weights(m: Model) -> dict[str, torch.Tensor]:
    return m.net.state_dict()


@pytest.mark.parametrize(
    ("net", "name", "prediction"),
    [(n, "vp", "eps") for n in NETS] + [("mlp", p, "v") for p in PROCESSES] + [("mlp", "cosine", r) for r in ROWS],
)
def test_a_model_comes_back_to_the_bit(tmp_path: Path, net: str, name: str, prediction: str) -> None:
    saved = model(net, name, prediction)
    folder = save_pretrained(saved, tmp_path / "a" / "m", notes={"seed": 3})
    loaded = load_pretrained(folder)
    assert loaded.process == saved.process and loaded.prediction == prediction and loaded.shape == saved.shape
    x, t = torch.randn(2, 1, 4, 4), torch.tensor([0.3, 0.8])
    assert torch.equal(loaded(x, t), saved(x, t))
    assert read_settings(folder)["notes"] == {"seed": 3}
    assert sorted(p.name for p in folder.parent.iterdir()) == ["m"]
    assert all(p.requires_grad for p in loaded.net.parameters())


def test_a_bare_network_and_another_dtype_come_back(tmp_path: Path) -> None:
    bare = Model(MLPConfig(shape=(3,)).build().double(), RectifiedFlow(), "velocity", (3,))
    save_pretrained(bare, tmp_path / "m")
    loaded = load_pretrained(tmp_path / "m")
    assert isinstance(loaded.net, type(bare.net))
    assert {p.dtype for p in loaded.net.parameters()} == {torch.float64}


def test_saving_again_replaces_the_model_and_leaves_other_folders_alone(tmp_path: Path) -> None:
    save_pretrained(model(seed=0), tmp_path / "m")
    save_pretrained(model(seed=1), tmp_path / "m")
    torch.testing.assert_close(weights(load_pretrained(tmp_path / "m")), weights(model(seed=1)), rtol=0, atol=0)
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("years of work")
    with pytest.raises(GirsanovError) as error:
        save_pretrained(model(), tmp_path / "mine")
    assert str(error.value) == f"{tmp_path}/mine holds something else than a saved model: name a new folder"
    assert (tmp_path / "mine" / "thesis.txt").read_text() == "years of work"


def change(folder: Path, **values: object) -> None:
    settings = json.loads((folder / "model.json").read_text())
    (folder / "model.json").write_text(json.dumps(settings | values))


DAMAGE = {
    "no folder": (lambda f: os.rename(f, f.parent / "away"), "there is no saved model in {}: it has no model.json"),
    "cut json": (
        lambda f: (f / "model.json").write_text('{"format": "girs'),
        "the model in {} is damaged (model.json cannot be read): delete the folder and make it again",
    ),
    "foreign": (
        lambda f: (f / "model.json").write_text('{"architectures": ["UNet"]}'),
        "{} was not written by Girsanov: name a folder that save_pretrained wrote",
    ),
    "newer": (lambda f: change(f, schema=99), "the model in {} was written by a newer Girsanov: update the package"),
    "cut weights": (
        lambda f: (f / "model.safetensors").write_bytes((f / "model.safetensors").read_bytes()[:-4]),
        "the model in {} is damaged (model.safetensors is not what was written): delete the folder and make it again",
    ),
    "one bit": (
        lambda f: (f / "model.safetensors").write_bytes((f / "model.safetensors").read_bytes()[:-1] + b"?"),
        "the model in {} is damaged (model.safetensors is not what was written): delete the folder and make it again",
    ),
    "own code": (
        lambda f: change(f, net={"kind": "evil.py:net"}),
        "the model in {} is damaged (unknown net 'evil.py:net'): delete the folder and make it again",
    ),
    "other sizes": (
        lambda f: change(f, net={"kind": "mlp", "shape": [1, 4, 4], "classes": 2, "width": 9, "embed": 4}),
        "the model in {} is damaged (Error(s) in loading state_dict for Preconditioned:): delete the folder and make "
        "it again",
    ),
}


@pytest.mark.parametrize("what", DAMAGE)
def test_a_damaged_or_foreign_folder_is_one_sentence(tmp_path: Path, what: str) -> None:
    harm, sentence = DAMAGE[what]
    folder = save_pretrained(model(), tmp_path / "m")
    harm(folder)
    with pytest.raises(GirsanovError) as error:
        load_pretrained(folder)
    assert str(error.value) == sentence.format(folder)


def test_what_cannot_be_rebuilt_is_refused(tmp_path: Path) -> None:
    good = model()
    cases = [
        (
            dataclasses.replace(good, net=torch.nn.Linear(2, 2)),
            "a saved model holds one of the networks mlp, dit, unet",
        ),
        (dataclasses.replace(good, net=lambda x, t, cond: x), "only models with a torch.nn.Module can be saved"),
        (dataclasses.replace(good, decode=torch.tanh), "a decoder or a time map is code and cannot be saved"),
    ]
    for bad, start in cases:
        with pytest.raises(GirsanovError) as error:
            save_pretrained(bad, tmp_path / "m")
        assert str(error.value).startswith(start)
    assert list(tmp_path.iterdir()) == []


# ---- cache


def test_the_cache_makes_a_model_once_for_a_key(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GIRSANOV_CACHE", str(tmp_path / "cache"))
    made = []

    def make() -> Model:
        made.append(1)
        return model(seed=len(made))

    key = {"config": MLPConfig(shape=(2,)), "data": fingerprint(torch.zeros(3, 2))}
    first, again = cached("digits", key, make), cached("digits", key, make)
    assert len(made) == 1 and cache_folder() == tmp_path / "cache"
    torch.testing.assert_close(weights(again), weights(first), rtol=0, atol=0)
    cached("digits", key | {"config": MLPConfig(shape=(2,), width=8)}, make)
    cached("digits", key | {"data": fingerprint(torch.ones(3, 2))}, make)
    assert len(made) == 3


def test_a_damaged_entry_is_made_again_with_a_warning(tmp_path: Path) -> None:
    cached("digits", {"seed": 0}, model, tmp_path)
    (entry,) = tmp_path.iterdir()
    (entry / "model.safetensors").write_bytes(b"")
    with pytest.warns(UserWarning, match="is damaged .*it is being made again now"):
        cached("digits", {"seed": 0}, model, tmp_path)
    torch.testing.assert_close(weights(load_pretrained(entry)), weights(model()), rtol=0, atol=0)


def test_a_cache_that_cannot_be_written_does_not_stop_the_run(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    with pytest.warns(UserWarning, match="the model was not cached, the next run makes it again"):
        made = cached("digits", {"seed": 0}, model, tmp_path / "file")
    torch.testing.assert_close(weights(made), weights(model()), rtol=0, atol=0)


SAVE_FOREVER = """
import sys, torch
from girsanov.models import Model
from girsanov.nets import MLPConfig
from girsanov.processes import RectifiedFlow
from girsanov.store import save_pretrained
net = MLPConfig(shape=(64,), width=512, blocks=4).build()
while True:
    save_pretrained(Model(net, RectifiedFlow(), "velocity", (64,)), sys.argv[1])
    print("saved", flush=True)
"""


def test_a_kill_at_any_moment_leaves_a_whole_model(tmp_path: Path) -> None:
    """SIGKILL at three moments while one model is saved over another again and again (10 MB a time)."""
    folder = tmp_path / "m"
    for delay in (0.0, 0.013, 0.031):
        with subprocess.Popen([sys.executable, "-c", SAVE_FOREVER, str(folder)], stdout=subprocess.PIPE) as writer:
            assert writer.stdout is not None and writer.stdout.readline() == b"saved\n"
            time.sleep(delay)
            writer.send_signal(signal.SIGKILL)
        if folder.exists():
            load_pretrained(folder)
        else:  # between moving the old folder away and the new one in: the new one is whole beside it
            whole = [p for p in tmp_path.iterdir() if (p / "model.json").is_file()]
            assert whole
