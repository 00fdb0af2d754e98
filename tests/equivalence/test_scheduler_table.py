"""Which schedulers fit which family, and what takes their steps here: a table over families and schedulers.

``=`` are the steps of the scheduler itself (held to the pipeline in ``test_pipelines.py``), ``~`` its times with the
nearest step, ``-`` one that does not describe the network: refused in a sentence.
"""

import json
import logging
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from girsanov.adapters.schedule import grid_of, noising_of, sampler_of, tell_nearest
from girsanov.errors import GirsanovError
from girsanov.grids import Grid
from girsanov.samplers import GDDIM, DPMSolverPP2M, Euler
from tests.equivalence.test_pipelines import FLOW
from tests.pipelines import folder_of

diffusers = pytest.importorskip("diffusers")

SCHEDULERS = {
    "DDIM": "DDIMScheduler",
    "Euler": "EulerDiscreteScheduler",
    "ancestral": "EulerAncestralDiscreteScheduler",
    "DDPM": "DDPMScheduler",
    "DPM++2M": "DPMSolverMultistepScheduler",
    "PNDM": "PNDMScheduler",
    "UniPC": "UniPCMultistepScheduler",
    "Heun": "HeunDiscreteScheduler",
    "KDPM2": "KDPM2DiscreteScheduler",
    "flow Euler": "FlowMatchEulerDiscreteScheduler",
    "EDM DPM++": "EDMDPMSolverMultistepScheduler",
    "EDM Euler": "EDMEulerScheduler",
}
STEPS = {"DDIM": GDDIM(0.0), "Euler": GDDIM(0.0), "ancestral": GDDIM(1.0), "DDPM": GDDIM(1.0), "flow Euler": Euler()}
STEPS |= {"DPM++2M": DPMSolverPP2M(), "EDM DPM++": DPMSolverPP2M(), "EDM Euler": GDDIM(0.0)}
TABLE = dict.fromkeys(("DDIM", "Euler", "ancestral", "DDPM", "DPM++2M"), "=")
TABLE |= dict.fromkeys(("PNDM", "UniPC", "Heun"), "~")
FLOWS = {"flow Euler": "=", "DPM++2M": "=", "UniPC": "~", **dict.fromkeys(("DDIM", "Euler", "PNDM", "Heun"), "-")}
EDM = {"EDM DPM++": "=", "EDM Euler": "="}
FITS = {
    **dict.fromkeys(("sd15", "sd2", "sdxl", "dit", "controlnet"), TABLE),
    **dict.fromkeys(("sd3", "flux", "flux2-klein", "qwen-image", "sana", "wan"), FLOWS),
    "stable-audio": EDM,
}


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Any:
    return tmp_path_factory.getbasetemp()


def scheduler_of(family: str, kind: str, root: Path) -> Any:
    """A scheduler set ``from_config`` of the family's own; solvers that know flows are told what diffusers asks for."""
    config = json.loads((folder_of(family, root) / "scheduler" / "scheduler_config.json").read_text())
    flow = {"use_flow_sigmas": True, "prediction_type": "flow_prediction", "flow_shift": 3.0}
    told = (flow if kind != "flow Euler" else {"shift": 3.0}) if FITS[family] is FLOWS else FLOW.get(family, {})
    return getattr(diffusers, SCHEDULERS[kind]).from_config(config, **told)


QUICK = ("sd15", "sd3", "wan", "stable-audio")


@pytest.mark.parametrize("family", [f if f in QUICK else pytest.param(f, marks=pytest.mark.slow) for f in FITS])
def test_the_table_of_schedulers(family: str, root: Path) -> None:
    for kind, fit in FITS[family].items():
        where = f"{family} with {kind}"
        if fit == "-":
            with pytest.raises(GirsanovError, match="into the pipeline|give your own Model"):
                scheduler = scheduler_of(family, kind, root)
                noising_of(scheduler)
                grid_of(scheduler, 10)
            continue
        scheduler = scheduler_of(family, kind, root)
        mu = 0.6 if scheduler.config.get("use_dynamic_shifting", False) else None
        grid = grid_of(scheduler, 10, None, mu)
        nearest = Euler() if FITS[family] is FLOWS else GDDIM(0.0)
        assert sampler_of(scheduler) == STEPS.get(kind, nearest), where
        assert isinstance(grid, Grid) and len(grid) == 10 and 0.7 < float(grid.ts[0]) <= 1, where


@pytest.mark.parametrize(("family", "name"), [("sd15", "PNDMScheduler"), ("wan", "UniPCMultistepScheduler")])
def test_a_solver_of_its_own_is_told_once(family: str, name: str, root: Path, caplog: Any) -> None:
    """What SD 1.5 and Wan ship: the scheduler's times to 1e-6, the nearest step, one line however often it is asked."""
    kind = next(k for k, v in SCHEDULERS.items() if v == name)
    scheduler = scheduler_of(family, kind, root)
    tell_nearest.cache_clear()
    with caplog.at_level(logging.WARNING, "girsanov"):
        for _ in range(3):
            sampler_of(scheduler)
    (line,) = caplog.messages
    assert line.startswith(f"{name} has a solver of its own: evaluations take its times with")
    scheduler.set_timesteps(7)
    times = torch.unique(scheduler.timesteps.double()).flip(0)
    t = grid_of(scheduler, 7).ts[:-1]
    clock = noising_of(scheduler).time(t)
    assert torch.allclose(clock, times, atol=1e-4)


def test_a_scheduler_with_steps_in_between_is_refused(root: Path) -> None:
    with pytest.raises(GirsanovError, match="KDPM2DiscreteScheduler asks its network between the steps"):
        grid_of(scheduler_of("sd15", "KDPM2", root), 10)


def test_every_exact_scheduler_is_silent(root: Path, caplog: Any) -> None:
    tell_nearest.cache_clear()
    for kind in ("DDIM", "Euler", "ancestral", "DDPM", "DPM++2M"):
        sampler_of(scheduler_of("sd15", kind, root))
    assert not caplog.messages


def test_a_refiner_and_an_ip_adapter_are_refused(root: Path) -> None:
    """Both would be tuned as something that they are not."""
    from girsanov.adapters.base import PipelineConfig
    from girsanov.adapters.load import family_of, load_pipeline
    from girsanov.adapters.sdxl import StableDiffusionXL

    adapter = load_pipeline(folder_of("sd15", root), PipelineConfig(height=16, width=16))
    Projection = type("MultiIPAdapterImageProjection", (torch.nn.Module,), {})  # diffusers' own class's name
    adapter.network.encoder_hid_proj = Projection()
    with pytest.raises(GirsanovError, match="an IP-adapter is loaded .* unload it with pipe.unload_ip_adapter()"):
        type(adapter)(adapter.pipe)
    refiner = SimpleNamespace(text_encoder=None, config={"requires_aesthetics_score": True}, components={})
    with pytest.raises(GirsanovError, match="this is the refiner of SDXL"):
        StableDiffusionXL(refiner)
    with pytest.raises(GirsanovError, match="the refiner of SDXL"):
        family_of("StableDiffusionXLImg2ImgPipeline", "refiner")
