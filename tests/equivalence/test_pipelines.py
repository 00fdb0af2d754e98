"""Every family's adapter against its own pipeline in diffusers: one prediction, ten guided steps, the decoded result.

The pipelines are tiny (``tests/pipelines.py``). Batch 2, a negative prompt, guidance, a picture that is not square;
start noise from seed 0. A prediction agrees to 1e-6 of its norm, ten steps and the decoded result to 1e-4 of theirs.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import pytest
import torch
from torch import Tensor

from girsanov.adapters.base import Adapter, PipelineConfig
from girsanov.adapters.latents import pack, unpack
from girsanov.adapters.load import load_pipeline
from girsanov.adapters.text import PromptEncoder
from girsanov.models import Guided, Model
from girsanov.rollout import rollout
from girsanov.types import Cond
from tests.pipelines import LINES, folder_of

pytest.importorskip("diffusers")

STEPS, SCALE = 10, 3.5
TEXTS = LINES[:2]


@dataclass
class Case:
    """How a family's pipeline is called.

    Attributes:
        config: what the adapter is asked for.
        schedulers: classes that the pipeline is run with besides its own.
        call: further arguments of the pipeline.
        guidance: the name of its guidance scale.
        layout: the network's or the pipeline's tensors as states [B, *D].
        start: states as the pipeline takes them.
        negative: the negative prompt, where the pipeline takes one.
        data: what the adapter decodes as the pipeline gives it out.
    """

    config: PipelineConfig = field(default_factory=lambda: PipelineConfig(height=16, width=24))
    schedulers: tuple[str, ...] = ()
    call: dict[str, Any] = field(default_factory=dict)
    guidance: str = "guidance_scale"
    layout: Callable[[Tensor, Adapter], Tensor] = lambda x, adapter: x
    start: Callable[[Tensor], Tensor] = lambda x: x
    negative: str | None = LINES[4]
    data: Callable[[Tensor], Tensor] = lambda x: (x / 2 + 0.5).clamp(0, 1)


def grid_of_tokens(x: Tensor, adapter: Adapter) -> Tensor:
    """FLUX.2: tokens [B, h w, C] in the order of their positions, or the latents that the pipeline gives out."""
    if x.ndim == 4:
        mean, var = adapter.pipe.vae.bn.running_mean, adapter.pipe.vae.bn.running_var
        std = (var + adapter.pipe.vae.config.batch_norm_eps).sqrt()
        return (adapter.pipe._patchify_latents(x) - mean.view(1, -1, 1, 1)) / std.view(1, -1, 1, 1)
    return x.transpose(1, 2).reshape(len(x), *adapter.shape)


TABLE = ("DDIMScheduler", "EulerDiscreteScheduler", "DPMSolverMultistepScheduler")
CASES: dict[str, Case] = {
    "sd15": Case(schedulers=TABLE),
    "sd3": Case(
        config=PipelineConfig(height=16, width=24, tokens=20),
        schedulers=("DPMSolverMultistepScheduler",),
        call={"max_sequence_length": 20},
    ),
    "flux2-klein": Case(
        config=PipelineConfig(height=16, width=24, tokens=40),
        schedulers=("DPMSolverMultistepScheduler",),
        call={"max_sequence_length": 40},
        layout=lambda x, adapter: grid_of_tokens(x, adapter),
        negative=None,
    ),
    "sd2": Case(schedulers=TABLE),
    "sdxl": Case(schedulers=TABLE),
    "flux": Case(
        config=PipelineConfig(height=16, width=24, tokens=20, guidance_input=2.0),
        call={"max_sequence_length": 20, "guidance_scale": 2.0},
        schedulers=("DPMSolverMultistepScheduler",),
        guidance="true_cfg_scale",
        layout=lambda x, adapter: unpack(x, *adapter.shape[1:]),
        start=pack,
    ),
    "qwen-image": Case(guidance="true_cfg_scale", layout=lambda x, adapter: unpack(x, *adapter.shape[1:]), start=pack),
    "sana": Case(
        config=PipelineConfig(height=32, width=64, tokens=20),
        schedulers=("FlowMatchEulerDiscreteScheduler",),
        call={"max_sequence_length": 20, "use_resolution_binning": False},
    ),
    "wan": Case(
        config=PipelineConfig(height=16, width=32, frames=5, tokens=20),
        schedulers=("FlowMatchEulerDiscreteScheduler", "DPMSolverMultistepScheduler"),
        call={"max_sequence_length": 20, "num_frames": 5},
        data=lambda x: (x.transpose(1, 2) / 2 + 0.5).clamp(0, 1),
    ),
    "stable-audio": Case(
        config=PipelineConfig(seconds=1.5),
        schedulers=("EDMEulerScheduler",),
        call={"audio_end_in_s": 1.5},
        data=lambda x: x,
    ),
}


class Pair:
    """A pipeline, its adapter, and the conditions of the two texts."""

    def __init__(self, name: str, root: Any, scheduler: str | None) -> None:
        import diffusers

        self.case = CASES[name]
        self.adapter = load_pipeline(folder_of(name, root), self.case.config)
        self.pipe = self.adapter.pipe
        self.pipe.set_progress_bar_config(disable=True)
        if scheduler is not None:
            self.pipe.scheduler = getattr(diffusers, scheduler).from_config(
                self.pipe.scheduler.config, **FLOW.get(name, {})
            )
            self.adapter = type(self.adapter)(self.pipe, self.case.config)
        self.model: Model = self.adapter.model()
        self.cond = conditions(self.adapter, self.case.negative or "")
        self.start = torch.randn(2, *self.model.shape, generator=torch.Generator().manual_seed(0))

    def run(self, steps: int, **more: Any) -> Tensor:
        """What the pipeline makes of the start."""
        negative = {} if self.case.negative is None else {"negative_prompt": [self.case.negative] * 2}
        size = {k: getattr(self.case.config, k) for k in ("height", "width") if getattr(self.case.config, k)}
        return self.pipe(
            prompt=TEXTS,
            **negative,
            **size,
            **{self.case.guidance: SCALE},
            latents=self.case.start(self.start),
            num_inference_steps=steps,
            return_dict=False,
            **{"output_type": "latent", **self.case.call, **more},
        )[0]


def conditions(adapter: Adapter, negative: str) -> Cond:
    """The two texts and the negative prompt."""
    encode = PromptEncoder(adapter)
    encode.prepare([negative], negative=True)
    index = torch.arange(2)
    return Cond(encode(TEXTS), index, Cond(encode.negative([negative]), torch.zeros_like(index)))


def close(a: Tensor, b: Tensor, tolerance: float) -> None:
    assert a.shape == b.shape
    assert float((a - b).norm() / b.norm()) < tolerance


@pytest.fixture(scope="session")
def root(tmp_path_factory: pytest.TempPathFactory) -> Any:
    return tmp_path_factory.mktemp("pipelines")


FLOW: dict[str, dict[str, Any]] = {
    "wan": {"shift": 3.0},
    "sana": {"shift": 3.0},
    **dict.fromkeys(
        ("sd3", "flux", "flux2-klein"),
        {"use_flow_sigmas": True, "prediction_type": "flow_prediction", "flow_shift": 3.0},
    ),
}
"""What a scheduler must be told besides the configuration of the pipeline's own."""

EVERY = [(name, s) for name, case in CASES.items() for s in (None, *case.schedulers)]
FAST = [n for n in CASES if n != "sd2"]  # SD 2.x differs from 1.x in its prediction alone: one scheduler will do
ALIKE = ("flux", "flux2-klein", "wan")  # what DPM-Solver++ does to a flow is seen on SD3 and Sana
SLOW = [(n, s) for n, s in EVERY if s is not None and (n == "sdxl" or (n == "sd2" and s != "DDIMScheduler"))]
SLOW += [(n, "DPMSolverMultistepScheduler") for n in ALIKE]


@pytest.mark.parametrize("name", FAST)
def test_a_prediction_is_that_of_the_pipeline(name: str, root: Any) -> None:
    pair = Pair(name, root, None)
    seen: list[Tensor] = []
    hook = pair.adapter.network.register_forward_hook(
        lambda module, args, out: seen.append(out[0] if isinstance(out, tuple) else out.sample)
    )
    pair.run(2)
    hook.remove()
    calls = len(seen) // 2  # per step: both branches in one batch, or one after the other
    null, cond = seen[0].chunk(2) if calls == 1 else (seen[1], seen[0])
    t = pair.adapter.grid(2).ts[0]
    assert pair.cond.null is not None
    with torch.no_grad():
        ours = pair.model(pair.start, t, pair.cond), pair.model(pair.start, t, pair.cond.null)
    close(ours[0], pair.case.layout(cond, pair.adapter), 1e-6)
    close(ours[1], pair.case.layout(null, pair.adapter), 1e-6)
    assert not torch.allclose(cond[0], cond[1], rtol=1e-3), "the prompt has no influence"


@pytest.mark.parametrize(
    ("name", "scheduler"), [pytest.param(*p, marks=pytest.mark.slow) if p in SLOW else p for p in EVERY]
)
def test_sampling_is_that_of_the_pipeline(name: str, scheduler: str | None, root: Any) -> None:
    pair = Pair(name, root, scheduler)
    if scheduler is None and type(pair.pipe.scheduler).__name__ in ("PNDMScheduler", "UniPCMultistepScheduler"):
        pytest.skip("a solver of its own, sampled with DDIM here")
    theirs = pair.case.layout(pair.run(STEPS), pair.adapter)
    guided = Guided(pair.model, SCALE)
    with torch.no_grad():
        ours = rollout(guided, pair.adapter.sampler(), pair.adapter.grid(STEPS), pair.start, pair.cond).x0
    close(ours, theirs, 1e-4)


@pytest.mark.parametrize("name", FAST)
def test_what_is_decoded_is_that_of_the_pipeline(name: str, root: Any) -> None:
    pair = Pair(name, root, CASES[name].schedulers[0] if CASES[name].schedulers else None)
    theirs = pair.run(2, output_type="pt")
    with torch.no_grad():
        x0 = rollout(Guided(pair.model, SCALE), pair.adapter.sampler(), pair.adapter.grid(2), pair.start, pair.cond).x0
        ours = pair.model.decode(x0)
    close(pair.case.data(ours), theirs, 1e-4)


def test_pictures_to_edit_enter_as_conditions(root: Any) -> None:
    """FLUX.2 with a picture for each prompt, against the pipeline one prompt at a time: ten steps, 1e-4."""
    from PIL import Image

    pair = Pair("flux2-klein", root, None)
    images = [Image.effect_mandelbrot((64, 80), (-2, -1.5, 1, 1.5), q).convert("RGB") for q in (9, 40)]
    tables = pair.adapter.image_conditions(images)
    assert pair.cond.null is not None
    index = torch.arange(2)
    null = {k: v.expand(2, *v.shape[1:]) for k, v in pair.cond.null.tables.items()}
    cond = Cond(pair.cond.tables | tables, index, Cond(null | tables, index))
    with torch.no_grad():
        ours = rollout(Guided(pair.model, SCALE), pair.adapter.sampler(), pair.adapter.grid(4), pair.start, cond).x0
    for i, image in enumerate(images):
        theirs = pair.pipe(
            image=image,
            prompt=TEXTS[i],
            height=16,
            width=24,
            guidance_scale=SCALE,
            latents=pair.start[i : i + 1],
            num_inference_steps=4,
            max_sequence_length=40,
            output_type="latent",
            return_dict=False,
        )[0]
        close(ours[i : i + 1], pair.case.layout(theirs, pair.adapter), 1e-4)
    plain = rollout(Guided(pair.model, SCALE), pair.adapter.sampler(), pair.adapter.grid(4), pair.start, pair.cond).x0
    assert not torch.allclose(ours, plain, rtol=1e-2), "the picture has no influence"


def test_a_control_picture_enters_as_a_condition(root: Any) -> None:
    """ControlNet against its pipeline, one prompt at a time: four guided steps, 1e-4; the ControlNet stays frozen."""
    from PIL import Image

    adapter = load_pipeline(folder_of("controlnet", root), PipelineConfig(height=16, width=24))
    images = [Image.effect_mandelbrot((24, 16), (-2, -1.5, 1, 1.5), q).convert("RGB") for q in (9, 40)]
    plain, index = conditions(adapter, LINES[4]), torch.arange(2)
    assert plain.null is not None
    tables, null = (
        adapter.image_conditions(images),
        {k: v.expand(2, *v.shape[1:]) for k, v in plain.null.tables.items()},
    )
    cond = Cond(plain.tables | tables, index, Cond(null | tables, index))
    model = adapter.model()
    start = torch.randn(2, *model.shape, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        ours = rollout(Guided(model, SCALE), adapter.sampler(), adapter.grid(4), start, cond).x0
    adapter.pipe.set_progress_bar_config(disable=True)
    for i, image in enumerate(images):
        theirs = adapter.pipe(
            TEXTS[i],
            image,
            16,
            24,
            num_inference_steps=4,
            guidance_scale=SCALE,
            negative_prompt=LINES[4],
            latents=start[i : i + 1],
            output_type="latent",
        ).images
        close(ours[i : i + 1], theirs, 1e-4)
    other = {"control": tables["control"].flip(0)}
    swapped = Cond(plain.tables | other, index, Cond(null | other, index))
    with torch.no_grad():
        far = rollout(Guided(model, SCALE), adapter.sampler(), adapter.grid(4), start, swapped).x0
    assert float((far - ours).norm() / ours.norm()) > 1e-3, "the picture has no influence"
    model(start, torch.tensor(0.5), cond).sum().backward()
    assert all(p.grad is None for p in adapter.pipe.controlnet.parameters())
