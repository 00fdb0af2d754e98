"""The example of docs/models.md: a pipeline that is not known here, added in one short file, equal to its pipeline."""

import re
from pathlib import Path
from typing import Any

import pytest
import torch

from girsanov.adapters import PipelineConfig, PromptEncoder, load_pipeline
from girsanov.cli import main
from girsanov.config.parts import load
from girsanov.errors import GirsanovError
from girsanov.models import Guided
from girsanov.rollout import rollout
from girsanov.types import Cond
from tests.pipelines import LINES, folder_of

pytest.importorskip("diffusers")

PAGE = Path(__file__).resolve().parents[2] / "docs" / "models.md"
MOST = 45


@pytest.fixture
def own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> type:
    """The adapter of the page, from its file."""
    (text,) = re.findall(r"^```python\n(# my_pixart.py\n.*?)^```", PAGE.read_text(), re.DOTALL | re.MULTILINE)
    assert len(text.splitlines()) <= MOST, "the page promises a short file"
    (tmp_path / "my_pixart.py").write_text(text)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("GIRSANOV_CACHE", str(tmp_path / "cache"))
    found: type = load("my_pixart.py:PixArtSigma")
    return found


def test_the_example_equals_its_pipeline(own: Any, tmp_path_factory: Any) -> None:
    """Ten guided steps of two prompts with a negative one: 1e-4."""
    folder = folder_of("pixart", tmp_path_factory.getbasetemp())
    with pytest.raises(GirsanovError, match="PixArtSigmaPipeline, a family that is not known here: .* docs/models.md"):
        load_pipeline(folder)
    adapter = load_pipeline(folder, PipelineConfig(height=16, width=24, tokens=20), family=own)
    encode, index = PromptEncoder(adapter), torch.arange(2)
    cond = Cond(encode(LINES[:2]), index, Cond(encode.negative([LINES[4]]), 0 * index))
    model = adapter.model()
    start = torch.randn(2, *model.shape, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        ours = rollout(Guided(model, 3.0), adapter.sampler(), adapter.grid(10), start, cond).x0
    adapter.pipe.set_progress_bar_config(disable=True)
    theirs = adapter.pipe(
        LINES[:2],
        [LINES[4]] * 2,
        10,
        guidance_scale=3.0,
        height=16,
        width=24,
        latents=start,
        output_type="latent",
        max_sequence_length=20,
        use_resolution_binning=False,
        clean_caption=False,
    ).images
    assert float((ours - theirs).norm() / theirs.norm()) < 1e-4


def test_the_example_is_tuned_from_the_command_line(
    own: Any, tmp_path_factory: Any, tmp_path: Path, capsys: Any
) -> None:
    assert own.pipelines == ("PixArtSigmaPipeline",)
    folder = folder_of("pixart", tmp_path_factory.getbasetemp())
    (tmp_path / "p.txt").write_text("\n".join(LINES[:2]))
    command = ["run", "text-to-image", f"model={folder}", "prompts=p.txt", "family=my_pixart.py:PixArtSigma"]
    small = [
        "pipeline.height=16",
        "pipeline.width=24",
        "pipeline.tokens=32",
        "train.iterations=1",
        "groups=2",
        "lora=2",
    ]
    small += ["group_size=2", "method.grid.n=3", "samples=4", "steps=2", "kl_samples=2", "--device", "cpu"]
    assert main([*command, *small, "long_prompts=cut", "--out", "run"]) == 0
    assert (tmp_path / "run" / "weights").is_dir()
    assert main([*command, "family=my_pixart.py:Tensor", *small, "--out", "other"]) == 2
    assert "my_pixart.py:Tensor is no adapter: derive it from girsanov.adapters.Adapter" in capsys.readouterr().err
