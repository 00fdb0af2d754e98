"""Class-conditional networks: DiT against its pipeline, SiT against DiT's blocks and against its own conventions."""

import argparse
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from girsanov.adapters.load import load_pipeline
from girsanov.adapters.sit import SiT, SiTNetwork, frequencies, read_sit, sizes
from girsanov.adapters.weights import save_weights, train_adapters
from girsanov.errors import GirsanovError
from girsanov.models import Guided
from girsanov.policy import Policy
from girsanov.rollout import rollout
from girsanov.samplers import Euler
from girsanov.types import Cond
from tests.pipelines import autoencoder, folder_of, shaken, sit_checkpoint

diffusers = pytest.importorskip("diffusers")

CLASSES, SCALE, STEPS = [3, 7], 2.5, 10


def close(a: Tensor, b: Tensor, tolerance: float) -> None:
    assert a.shape == b.shape
    assert float((a - b).norm() / b.norm()) < tolerance


def classes(null: int) -> Cond:
    """The two classes, and the null class."""
    index = torch.arange(2)
    return Cond({"label": torch.tensor(CLASSES)}, index, Cond({"label": torch.tensor([null])}, 0 * index))


@pytest.mark.parametrize("scheduler", ["DDIMScheduler", "DPMSolverMultistepScheduler"])
def test_sampling_dit_is_that_of_the_pipeline(scheduler: str, tmp_path_factory: Any) -> None:
    """Ten guided steps and their pictures, to 1e-4; the pipeline draws its noise from seed 0.

    Not under Euler: the pipeline forgets to scale its noise for that scheduler."""
    adapter = load_pipeline(folder_of("dit", tmp_path_factory.getbasetemp()))
    pipe = adapter.pipe
    pipe.set_progress_bar_config(disable=True)
    kind = getattr(diffusers, scheduler)
    pipe.scheduler = kind.from_config(pipe.scheduler.config, timestep_spacing="leading")
    g = torch.Generator().manual_seed(0)
    theirs = pipe(CLASSES, SCALE, g, STEPS, output_type="pt").images
    model = adapter.model()
    start = torch.randn(2, *model.shape, generator=torch.Generator().manual_seed(0))
    assert adapter.classes is not None
    with torch.no_grad():
        x0 = rollout(Guided(model, SCALE), adapter.sampler(), adapter.grid(STEPS), start, classes(adapter.classes)).x0
        ours = (model.decode(x0) / 2 + 0.5).clamp(0, 1)
    close(ours, theirs, 1e-4)


def as_dit(weights: dict[str, Tensor], depth: int) -> dict[str, Tensor]:
    """SiT's weights under the names of diffusers' DiT."""
    out = {
        "pos_embed.proj.weight": weights["x_embedder.proj.weight"],
        "pos_embed.proj.bias": weights["x_embedder.proj.bias"],
    }
    for i in range(depth):
        block, new = f"blocks.{i}.", f"transformer_blocks.{i}."
        for kind in ("weight", "bias"):
            q, k, v = weights[f"{block}attn.qkv.{kind}"].chunk(3)
            out |= {f"{new}attn1.to_{n}.{kind}": w for n, w in zip("qkv", (q, k, v), strict=True)}
            out[f"{new}attn1.to_out.0.{kind}"] = weights[f"{block}attn.proj.{kind}"]
            out[f"{new}ff.net.0.proj.{kind}"] = weights[f"{block}mlp.fc1.{kind}"]
            out[f"{new}ff.net.2.{kind}"] = weights[f"{block}mlp.fc2.{kind}"]
            out[f"{new}norm1.linear.{kind}"] = weights[f"{block}adaLN_modulation.1.{kind}"]
            for a, b in (("0", "1"), ("2", "2")):
                name = f"{new}norm1.emb.timestep_embedder.linear_{b}.{kind}"
                out[name] = weights[f"t_embedder.mlp.{a}.{kind}"]
        table = f"{new}norm1.emb.class_embedder.embedding_table.weight"
        out[table] = weights["y_embedder.embedding_table.weight"]
    for kind in ("weight", "bias"):
        out[f"proj_out_1.{kind}"] = weights[f"final_layer.adaLN_modulation.1.{kind}"]
        out[f"proj_out_2.{kind}"] = weights[f"final_layer.linear.{kind}"]
    return out


def test_the_network_of_sit_is_that_of_dit() -> None:
    """At time 0, where the two packages' frequencies (which differ a little) both give cosine 1 and sine 0: 1e-5."""
    ours = SiTNetwork(size=8, patch=2, channels=4, out_channels=8, width=32, depth=2, heads=2, classes=10)
    shaken(ours, 0.1)
    theirs = diffusers.DiTTransformer2DModel(
        num_attention_heads=2,
        attention_head_dim=16,
        in_channels=4,
        out_channels=8,
        num_layers=2,
        sample_size=8,
        patch_size=2,
        num_embeds_ada_norm=10,
        norm_num_groups=2,
    ).eval()
    theirs.load_state_dict(as_dit(ours.state_dict(), 2), strict=True)
    theirs.pos_embed.pos_embed.copy_(ours.pos_embed)
    x = torch.randn(3, 4, 8, 8, generator=torch.Generator().manual_seed(1))
    t, label = torch.zeros(3), torch.tensor([0, 4, 10])
    with torch.no_grad():
        expected = theirs(x, timestep=t, class_labels=label).sample[:, :4]
        close(ours(x, t, label), expected, 1e-5)


def test_its_frequencies() -> None:
    """cos and sin of ``t 10000^(-k / 128)``, to float32."""
    t = torch.tensor([0.0, 0.3, 1.0])
    k = torch.arange(128, dtype=torch.float64)
    angle = t.double()[:, None] * 10000 ** (-k / 128)
    expected = torch.cat([angle.cos(), angle.sin()], 1)
    torch.testing.assert_close(frequencies(t, 256).double(), expected, atol=1e-6, rtol=0)


PUBLISHED = {
    "pos_embed": (1, 256, 1152),
    "x_embedder.proj.weight": (1152, 4, 2, 2),
    "t_embedder.mlp.0.weight": (1152, 256),
    "t_embedder.mlp.2.weight": (1152, 1152),
    "y_embedder.embedding_table.weight": (1001, 1152),
    "blocks.0.attn.qkv.weight": (3456, 1152),
    "blocks.27.attn.proj.weight": (1152, 1152),
    "blocks.27.mlp.fc1.weight": (4608, 1152),
    "blocks.27.mlp.fc2.weight": (1152, 4608),
    "blocks.27.adaLN_modulation.1.weight": (6912, 1152),
    "final_layer.linear.weight": (32, 1152),
    "final_layer.adaLN_modulation.1.weight": (2304, 1152),
}
"""Names and shapes in the published SiT-XL-2-256x256.pt."""


def test_the_published_layout_gives_sit_xl_2() -> None:
    with torch.device("meta"):
        network = SiTNetwork(size=32, patch=2, channels=4, out_channels=8, width=1152, depth=28, heads=16, classes=1000)
    weights = network.state_dict()
    assert {k: tuple(weights[k].shape) for k in PUBLISHED} == PUBLISHED
    found = sizes(weights)
    assert (found["width"], found["depth"], found["heads"], found["classes"], found["size"]) == (1152, 28, 16, 1000, 32)
    assert sum(p.numel() for p in network.parameters()) == 675_129_632  # as DiT-XL/2 reports of itself


@pytest.fixture(scope="module")
def sit(tmp_path_factory: pytest.TempPathFactory) -> SiT:
    """The small checkpoint, loaded as a user would."""
    folder = tmp_path_factory.mktemp("sit")
    autoencoder(scaling_factor=0.18215).save_pretrained(folder / "vae")
    path = sit_checkpoint(folder / "SiT-tiny.pt")
    adapter = load_pipeline(f"{path},{folder / 'vae'}")
    assert isinstance(adapter, SiT)
    return adapter


def test_sampling_sit_is_a_loop_in_its_own_time(sit: SiT) -> None:
    """Ten guided Euler steps of dx/dt = data - noise from noise at 0 to data at 1, and the decoded result: 1e-5."""
    model, network = sit.model(), sit.network
    start = torch.randn(2, *model.shape, generator=torch.Generator().manual_seed(0))
    label, null = torch.tensor(CLASSES), torch.full((2,), 10)
    x = start
    with torch.no_grad():
        for i in range(STEPS):
            t = torch.full((2,), i / STEPS)
            v = network(x, t, null) + SCALE * (network(x, t, label) - network(x, t, null))
            x = x + v / STEPS
        ours = rollout(Guided(model, SCALE), Euler(), sit.grid(STEPS), start, classes(10)).x0
        picture = sit.pipe.vae.decode(x / 0.18215).sample
        close(ours, x, 1e-5)
        close(model.decode(ours), picture, 1e-5)
    assert not torch.allclose(ours[0], start[0], rtol=0.1)


def test_a_training_checkpoint_gives_its_averaged_weights(sit: SiT, tmp_path: Path) -> None:
    weights = sit.network.state_dict()
    other = {k: torch.zeros_like(v) for k, v in weights.items()}
    torch.save({"ema": weights, "model": other, "args": argparse.Namespace(model="SiT-XL/2")}, tmp_path / "a.pt")
    sit.pipe.vae.save_pretrained(tmp_path / "vae")
    again = load_pipeline(f"{tmp_path / 'a.pt'},{tmp_path / 'vae'}")
    assert all(torch.equal(v, weights[k]) for k, v in again.network.state_dict().items())


@pytest.mark.parametrize("zipped", [True, False], ids=["mapped", "old file"])
def test_a_checkpoint_is_read_once_in_the_dtype_asked_for(sit: SiT, tmp_path: Path, zipped: bool) -> None:
    """No network is drawn at random first, and what is written over the file later changes no weight."""
    weights = {k: v.clone() for k, v in sit.network.state_dict().items()}
    torch.save(weights, tmp_path / "a.pt", _use_new_zipfile_serialization=zipped)
    before = torch.random.get_rng_state()
    network = read_sit(tmp_path / "a.pt", torch.bfloat16)
    assert torch.equal(before, torch.random.get_rng_state())
    with (tmp_path / "a.pt").open("r+b") as file:
        file.write(bytes((tmp_path / "a.pt").stat().st_size))
    assert all(torch.equal(v, weights[k].bfloat16()) for k, v in network.state_dict().items())
    assert not network.pos_embed.requires_grad and network.final_layer["linear"].weight.requires_grad


def test_what_is_no_sit_is_told_in_a_sentence(sit: SiT, tmp_path: Path) -> None:
    with pytest.raises(GirsanovError, match="without an autoencoder: write"):
        load_pipeline("SiT-XL-2-256x256.pt")
    with pytest.raises(GirsanovError, match="there is no file"):
        load_pipeline(f"{tmp_path / 'missing.pt'},vae")
    torch.save({"weight": torch.ones(3)}, tmp_path / "other.pt")
    with pytest.raises(GirsanovError, match="holds no SiT network"):
        load_pipeline(f"{tmp_path / 'other.pt'},vae")
    path = sit_checkpoint(tmp_path / "a.pt")
    with pytest.raises(GirsanovError, match="is no autoencoder"):
        load_pipeline(f"{path},{tmp_path / 'no-vae'}")


def test_adapters_without_a_loader_are_in_the_layout_of_peft(tmp_path: Path, tmp_path_factory: Any) -> None:
    """The line that is told puts them into DiT's pipeline: rank 2, alpha 4, 1e-6."""
    peft = pytest.importorskip("peft")
    folder = folder_of("dit", tmp_path_factory.getbasetemp())
    adapter = load_pipeline(folder)
    train_adapters(adapter, rank=2, alpha=4)
    policy = Policy(adapter.model())
    g = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for p in policy.parameters():
            p.add_(0.3 * torch.randn(p.shape, generator=g))
    line = save_weights(adapter, policy.state(), tmp_path)
    pipe = load_pipeline(folder).pipe
    asked = {"timestep": torch.tensor([10, 500]), "class_labels": torch.tensor(CLASSES)}
    x = torch.randn(2, 4, 8, 8, generator=g)
    with torch.no_grad():
        plain = pipe.transformer(x, **asked).sample
        exec(line, {"pipe": pipe, "peft": peft})
        close(pipe.transformer(x, **asked).sample, adapter.network(x, **asked).sample, 1e-6)
    assert float((plain - pipe.transformer(x, **asked).sample).norm() / plain.norm()) > 1e-2
