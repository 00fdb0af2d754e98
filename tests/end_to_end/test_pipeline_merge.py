"""A tuned pipeline written whole (``girsanov merge``), and a run that begins from pictures."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from girsanov.adapters.base import PipelineConfig
from girsanov.adapters.load import load_pipeline
from girsanov.adapters.pictures import PictureEncoder
from girsanov.cli import main
from girsanov.launch import load_run
from girsanov.merging import merge_run
from girsanov.noise import Noise
from girsanov.types import Cond
from tests.end_to_end.test_pipeline_recipes import SMALL, folder, lines, root  # noqa: F401  (fixtures)
from tests.pipelines import LINES, autoencoder, folder_of, sit_checkpoint

pytest.importorskip("peft")
diffusers = pytest.importorskip("diffusers")

ASKED = ["prompts=p.jsonl", "reward=r.py:named", *SMALL, "train.iterations=1", "train.lr=0.05"]
ASKED += ["kl_samples=0", "samples=2", "pictured=1"]


def drawn(pipe: Any) -> torch.Tensor:
    """Two guided steps of plain diffusers from the noise of seed 0."""
    pipe.set_progress_bar_config(disable=True)
    g = torch.Generator().manual_seed(0)
    return torch.as_tensor(
        pipe(LINES[0], 16, 24, num_inference_steps=2, guidance_scale=3.0, generator=g, output_type="pt").images
    )


def apart(a: torch.Tensor, b: torch.Tensor) -> float:
    return float((a - b).norm() / b.norm())


def test_a_run_is_merged_into_an_ordinary_pipeline(root: Any, folder: Path, capsys: Any) -> None:  # noqa: F811
    """SD1.5: from_pretrained of the merged folder draws what the adapters draw, at strength 1 and 0.5: 1e-4.

    At strength 0 it is the pretrained pipeline, to 1e-6; the adapters are gone; what is in the way is told.
    """
    model = str(folder_of("sd15", root))
    assert main(["run", "text-to-image", f"model={model}", *ASKED, "--out", "run"]) == 0
    plain, tuned = (diffusers.StableDiffusionPipeline.from_pretrained(model) for _ in range(2))
    tuned.load_lora_weights("run/weights")
    before, after = drawn(plain), drawn(tuned)
    tuned.set_adapters("default_0", 0.5)
    half = drawn(tuned)
    capsys.readouterr()
    assert main(["merge", "run", "--out", "whole"]) == 0
    said = capsys.readouterr().out.splitlines()
    assert said[0] == "whole holds the whole pipeline; load it with"
    merged = eval(said[1], {"diffusers": diffusers})
    assert not any("lora" in n for n, _ in merged.unet.named_parameters())
    assert apart(drawn(merged), after) < 1e-4 < 1e-3 < apart(after, before)
    for strength, expected in ((0.5, half), (0.0, before)):
        merge_run(Path("run"), Path(f"at-{strength}"), strength=strength)
        assert apart(drawn(diffusers.DiffusionPipeline.from_pretrained(f"at-{strength}")), expected) < 1e-4
    line = merge_run(Path("run"), Path("small"), dtype="bf16")
    assert line == "diffusers.StableDiffusionPipeline.from_pretrained('small', dtype=torch.bfloat16)"
    brief = eval(line, {"diffusers": diffusers, "torch": torch})
    assert {p.dtype for p in brief.unet.parameters()} == {torch.bfloat16}
    gap = [
        apart(a.detach().float(), b.detach())
        for a, b in zip(brief.unet.parameters(), merged.unet.parameters(), strict=True)
    ]
    assert max(gap) < 2**-7
    assert main(["merge", "run", "--out", "whole"]) == 2
    assert "whole is not empty: give another --out" in capsys.readouterr().err
    assert main(["merge", "nothing", "--out", "x"]) == 2
    assert "nothing holds no run" in capsys.readouterr().err
    assert not list(folder.glob(".*writing"))


@pytest.mark.slow
def test_full_weights_and_a_sit_are_merged(root: Any, folder: Path, capsys: Any) -> None:  # noqa: F811
    """Full fine-tuning of SD3 at strength 0.5 is half way between the weights; SiT loads again: 1e-6."""
    model = str(folder_of("sd3", root))
    asked = [*(s for s in ASKED if s not in ("lora=2", "train.lr=0.05")), "lora=null", "train.lr=1e-3"]
    assert main(["run", "text-to-image", f"model={model}", *asked, "pipeline.tokens=40", "--out", "full"]) == 0
    assert main(["merge", "full", "--out", "half", "--strength", "0.5"]) == 0
    names = (model, "half")
    base, half = (diffusers.StableDiffusion3Pipeline.from_pretrained(n).transformer.state_dict() for n in names)
    tuned = diffusers.SD3Transformer2DModel.from_pretrained("full/weights").state_dict()
    assert any(not torch.equal(tuned[n], base[n]) for n in base)
    assert all(torch.allclose(half[n], (base[n] + tuned[n]) / 2, atol=1e-7) for n in base)

    autoencoder(scaling_factor=0.18215).save_pretrained("vae")
    sit_checkpoint(folder / "SiT.pt")
    Path("any.py").write_text("def any(images, prompts):\n    return images.flatten(1).square().mean(1)\n")
    small = [s for s in ASKED if not s.startswith(("pipeline", "prompts", "reward"))]
    command = ["run", "class-to-image", "model=SiT.pt,vae", "reward=any.py:any", "classes=4", *small]
    assert main([*command, "--out", "sit"]) == 0
    line = merge_run(Path("sit"), Path("sit-whole"))
    assert line == "girsanov.adapters.load_pipeline('sit-whole/network.pt,sit-whole/vae')"
    merged, first = load_pipeline("sit-whole/network.pt,sit-whole/vae"), load_pipeline("SiT.pt,vae")
    assert merged.network.state_dict().keys() == first.network.state_dict().keys()
    index = torch.arange(2)
    cond = Cond({"label": torch.tensor([1, 3])}, index, Cond({"label": torch.tensor([10])}, 0 * index))
    x = torch.randn(2, *first.shape, generator=torch.Generator().manual_seed(0))
    _, parts = load_run(Path("sit"), torch.device("cpu"))
    with torch.no_grad():
        a, b = (m(x, torch.tensor(0.5), cond) for m in (merged.model(), parts.run.policy.view()))
    assert apart(a, b) < 1e-6 and apart(a, first.model()(x, torch.tensor(0.5), cond)) > 1e-5
    capsys.readouterr()


def test_a_run_without_a_pipeline_is_told(folder: Path, capsys: Any) -> None:  # noqa: F811
    """A folder of the mixture recipe."""
    Path("mix").mkdir()
    about = {"format": "girsanov-run", "schema": 1, "recipe": "mixture"}
    Path("mix/run.json").write_text(json.dumps(about))
    Path("mix/config.yaml").write_text("method: am\n")
    assert main(["merge", "mix", "--out", "whole"]) == 2
    assert "mix is a run of mixture, which tunes no pipeline of diffusers" in capsys.readouterr().err


def test_a_run_begins_from_pictures(root: Any, folder: Path, capsys: Any) -> None:  # noqa: F811
    """SD1.5, a column of pictures, strength 0.34 of six steps: two steps from ``alpha latents + sigma z``, to 1e-6.

    Trained and evaluated; without pictures, or without a strength, a sentence.
    """
    from PIL import Image

    rows = []
    for i, text in enumerate(LINES[:4]):
        Image.effect_mandelbrot((24, 16), (-2, -1.5, 1, 1.5), 5 + 20 * i).convert("RGB").save(f"{i}.png")
        rows.append({"prompt": text, "first": text[0], "weight": 1.0, "picture": f"{i}.png"})
    Path("begin.jsonl").write_text("".join(json.dumps(r) + "\n" for r in rows))
    model = str(folder_of("sd15", root))
    command = ["run", "text-to-image", f"model={model}", "reward=r.py:named", *SMALL, "prompts=begin.jsonl"]
    command += ["train.iterations=1", "method.grid.n=6", "steps=6", "prompts_image=picture"]
    assert main([*command, "pipeline.strength=0.34", "--out", "near"]) == 0
    first = lines(folder / "near")
    assert all(row["ratio_max"] == row["ratio_min"] == 1.0 for row in first if "ratio_max" in row)
    assert main([*command, "--out", "none"]) == 2
    assert "begin from them with pipeline.strength=0.6" in capsys.readouterr().err
    plain = [c for c in command if not c.startswith("prompts_image")]
    assert main([*plain, "pipeline.strength=0.34", "--out", "none"]) == 2
    assert "begins from pictures and there are none: name the column" in capsys.readouterr().err
    _, parts = load_run(folder / "near", torch.device("cpu"))
    evaluator, model_ = parts.evaluate, parts.run.reference()
    asked = evaluator.requests(torch.arange(4))
    x, _ = evaluator.start(model_, evaluator.grid, asked, seed=3)
    z = Noise(3, 0, asked.ids).normal(model_.shape)
    latents = PictureEncoder(load_pipeline(model, PipelineConfig(height=16, width=24)))
    clean = latents([Path(f"{i}.png") for i in range(4)])
    c = model_.process(evaluator.grid.ts[0])
    assert apart(x, float(c.alpha) * clean + float(c.sigma) * z) < 1e-6
    assert len(evaluator.grid) == len(parts.run.method.grid) == 2
    assert evaluator.grid.ts[0] == parts.run.method.grid.ts[0] < 0.5
