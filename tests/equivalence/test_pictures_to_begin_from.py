"""Beginning from a picture: each family against its img2img pipeline in diffusers, with the same noise, and its recipe.

Strength 0.6 of ten steps, batch 2, a negative prompt, guidance, pictures of 16 x 24 read from files; 1e-4 of the norm.
The autoencoder's law is replaced by its mean in the pipeline too (``sample_mode="argmax"``): here a picture has one
latent.
"""

import functools
import importlib
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from girsanov.adapters.base import PipelineConfig
from girsanov.adapters.load import load_pipeline
from girsanov.adapters.pictures import PictureEncoder
from girsanov.errors import GirsanovError
from girsanov.models import Guided
from girsanov.noise import Noise
from girsanov.rollout import rollout
from girsanov.starts import START, first_states
from girsanov.types import Cond
from tests.equivalence.test_pipelines import CASES, FLOW, LINES, SCALE, STEPS, TEXTS, close, conditions
from tests.pipelines import folder_of

diffusers = pytest.importorskip("diffusers")

STRENGTH = 0.6
PIPELINES = {
    ("sd15", "DDIMScheduler"): "StableDiffusionImg2ImgPipeline",
    ("sd15", "DPMSolverMultistepScheduler"): "StableDiffusionImg2ImgPipeline",
    ("sd15", "EulerDiscreteScheduler"): "StableDiffusionImg2ImgPipeline",
    ("sdxl", None): "StableDiffusionXLImg2ImgPipeline",
    ("sd3", None): "StableDiffusion3Img2ImgPipeline",
    ("flux", None): "FluxImg2ImgPipeline",
    ("qwen-image", None): "QwenImageImg2ImgPipeline",
}


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Any:
    return tmp_path_factory.getbasetemp()


class Given(Noise):
    """Noise that was drawn elsewhere."""

    def __init__(self, z: Tensor) -> None:
        self.z = z

    def normal(self, shape: tuple[int, ...], dtype: torch.dtype = torch.float32) -> Tensor:
        return self.z.to(dtype)


def drawn(folder: Path, n: int = 2, size: tuple[int, int] = (24, 16)) -> list[Path]:
    """Pictures in files."""
    from PIL import Image

    paths = [folder / f"{i}.png" for i in range(n)]
    for i, path in enumerate(paths):
        Image.effect_mandelbrot(size, (-2, -1.5, 1, 1.5), 9 + 30 * i).convert("RGB").rotate(30 * i).save(path)
    return paths


QUICK = (("sd15", "DDIMScheduler"), ("sd3", None), ("flux", None))


@pytest.mark.parametrize(
    ("name", "scheduler"), [p if p in QUICK else pytest.param(*p, marks=pytest.mark.slow) for p in PIPELINES]
)
def test_it_is_img2img_of_diffusers(
    name: str, scheduler: str | None, root: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from PIL import Image

    case = CASES[name]
    options = {k: v for k, v in vars(case.config).items() if not k.startswith("_") and v is not None}
    config = PipelineConfig(**{**options, "strength": STRENGTH})
    adapter = load_pipeline(folder_of(name, root), config)
    if scheduler is not None:
        kind = getattr(diffusers, scheduler)
        adapter.pipe.scheduler = kind.from_config(adapter.pipe.scheduler.config, **FLOW.get(name, {}))
    cls = getattr(diffusers, PIPELINES[name, scheduler])
    module = importlib.import_module(cls.__module__)
    first = functools.partial(module.retrieve_latents, sample_mode="argmax")
    monkeypatch.setattr(module, "retrieve_latents", first)
    parts = dict(adapter.pipe.components)
    checker = {"requires_safety_checker": False} if "safety_checker" in parts else {}
    pipe = cls(**parts, **checker)
    pipe.set_progress_bar_config(disable=True)

    paths, model = drawn(tmp_path), adapter.model()
    z = torch.randn(2, *model.shape, generator=torch.Generator().manual_seed(0))
    sizes = {k: getattr(config, k) for k in ("height", "width")} if name not in ("sd15", "sdxl") else {}
    theirs = pipe(
        prompt=TEXTS,
        negative_prompt=[LINES[4]] * 2,
        image=[Image.open(path).convert("RGB") for path in paths],
        strength=STRENGTH,
        num_inference_steps=STEPS,
        generator=torch.Generator().manual_seed(0),
        output_type="latent",
        return_dict=False,
        **sizes,
        **case.call,
        **{case.guidance: SCALE},
    )[0]
    plain, index = conditions(adapter, LINES[4]), torch.arange(2)
    start = {START: PictureEncoder(adapter, folder=tmp_path)(paths)}
    assert plain.null is not None
    null = {k: v.expand(2, *v.shape[1:]) for k, v in plain.null.tables.items()}
    cond, grid = Cond(plain.tables | start, index, Cond(null | start, index)), adapter.grid(STEPS)
    assert len(grid) == 6
    with torch.no_grad():
        x = first_states(model, grid, Given(z), cond)
        ours = rollout(Guided(model, SCALE), adapter.sampler(), grid, x, cond).x0
        other = first_states(model, grid, Given(z), Cond({START: start[START].flip(0)}, index))
    close(ours, case.layout(theirs, adapter), 1e-4)
    assert float((other - x).norm() / x.norm()) > 1e-2, "the picture has no influence"


def test_other_families_take_no_strength(root: Any) -> None:
    for name in ("wan", "controlnet"):
        with pytest.raises(GirsanovError, match="pipeline.strength means nothing to"):
            load_pipeline(folder_of(name, root), PipelineConfig(strength=0.5))
    with pytest.raises(GirsanovError, match="strength must be less than or equal to 1, not 1.5"):
        PipelineConfig(strength=1.5)
