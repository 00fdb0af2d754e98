"""Rewards on CLIP: tiny models of the real classes, saved to a folder and loaded from there.

Against transformers' own forward pass, Pillow's resizing and, for HPS, a model written in open_clip's layout.
"""

import pickle
import sys

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from safetensors.torch import save_file
from torch import nn

from girsanov.config import Part, make
from girsanov.errors import GirsanovError
from girsanov.rewards import CLIPScore, HPSv2, LAIONAesthetic, PickScore, Reward, WeightedSum
from girsanov.rewards.aesthetic import Head
from girsanov.rewards.open_clip import from_open_clip, to_open_clip
from girsanov.rewards.pixels import MEAN, STD, pixels
from girsanov.rewards.pretrained import pretrained, read_tensors
from girsanov.types import Cond, Prompts
from tests.clip_models import PATCH, SHARED, SIZE, WIDTH, save_clip

LINES = ["a photo of a red fox", "three blue cubes", "a photo of a red fox"]


def ask(meta):
    n = len(meta)
    return Prompts(Cond({}, torch.arange(n)), torch.arange(n), torch.arange(n), meta)


def images(*shape, seed=0, dtype=torch.float32):
    return torch.rand(*shape, generator=torch.Generator().manual_seed(seed), dtype=dtype) * 1.6 - 0.8


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return str(save_clip(tmp_path_factory.mktemp("clip")))


@pytest.fixture(scope="module")
def hps_file(folder, tmp_path_factory):
    path = tmp_path_factory.mktemp("hps") / "HPS.pt"
    state = to_open_clip(pretrained("CLIPModel", folder).state_dict())
    torch.save({"epoch": 1, "state_dict": {f"module.{k}": v for k, v in state.items()}}, path)
    return str(path)


@pytest.fixture(scope="module")
def head_file(tmp_path_factory):
    """In the published form: a checkpoint of torch, numbered 0, 2, 4, 6, 7."""
    torch.manual_seed(1)
    path = tmp_path_factory.mktemp("head") / "linearMSE.pth"
    widths = (SHARED, 10, 8, 6, 4, 1)
    layers = {i: nn.Linear(a, b) for i, a, b in zip((0, 2, 4, 6, 7), widths, widths[1:], strict=False)}
    torch.save({f"layers.{i}.{n}": p.detach() for i, m in layers.items() for n, p in m.named_parameters()}, path)
    return str(path)


def described(name, folder, hps_file, head_file):
    return {
        "clip-score": {"model": folder},
        "pick-score": {"model": folder, "processor": None},
        "hpsv2": {"weights": hps_file, "base": folder},
        "laion-aesthetic": {"head": head_file, "model": folder},
    }[name]


NAMES = ("clip-score", "pick-score", "hpsv2", "laion-aesthetic")


def doubled(reward):
    """The reward with its networks in float64."""
    reward.towers().model.double()
    return reward


# ---- pixels


@pytest.mark.parametrize("shape", [(40, 40), (50, 40), (23, 61), (9, 12), (16, 16)])
def test_images_are_resized_and_cropped_as_by_pillow(shape) -> None:
    """Pillow rounds to 8 bits after both of its passes: within 1.6 of 255 levels, on noise that is never clipped."""
    levels = torch.randint(80, 176, (1, 3, *shape), generator=torch.Generator().manual_seed(0))
    found = pixels(levels / 127.5 - 1, SIZE)[0]
    short = min(shape)
    height, width = (max(SIZE, int(SIZE * n / short)) for n in shape)
    picture = Image.fromarray(levels[0].permute(1, 2, 0).to(torch.uint8).numpy())
    picture = picture.resize((width, height), Image.Resampling.BICUBIC)
    left, top = round((width - SIZE) / 2), round((height - SIZE) / 2)
    picture = picture.crop((left, top, left + SIZE, top + SIZE))
    expected = torch.from_numpy(np.array(picture)).permute(2, 0, 1) / 255
    shown = found * torch.tensor(STD).view(3, 1, 1) + torch.tensor(MEAN).view(3, 1, 1)
    assert (shown - expected).abs().max() < 1.6 / 255


def test_padding_keeps_the_whole_image_in_the_middle_of_black() -> None:
    x = torch.ones(1, 1, 8, 16)
    shown = pixels(x, 8, "pad") * torch.tensor(STD).view(3, 1, 1) + torch.tensor(MEAN).view(3, 1, 1)
    rows = shown[0, 0].mean(1)
    torch.testing.assert_close(rows, torch.tensor([0.0, 0, 1, 1, 1, 1, 0, 0]), atol=1e-6, rtol=0)
    assert shown.shape == (1, 3, 8, 8)


# ---- the scores are what they say


def test_clip_and_pick_scores_are_those_of_the_model(folder) -> None:
    """``CLIPModel``'s own logits: exp(tau) times the cosine of every pair; ours are on the diagonal."""
    x = images(3, 3, 20, 28)
    model, tokenizer = pretrained("CLIPModel", folder), pretrained("CLIPTokenizer", folder)
    read = tokenizer(LINES, padding=True, return_tensors="pt")
    with torch.no_grad():
        logits = model(pixel_values=pixels(x, SIZE), **read).logits_per_image.diagonal()
    prompts = ask([{"text": t} for t in LINES])
    torch.testing.assert_close(PickScore(folder, None)(x, prompts), logits, rtol=1e-5, atol=1e-5)
    cosines = logits / model.logit_scale.exp()
    torch.testing.assert_close(CLIPScore(folder)(x, prompts), 100 * cosines, rtol=1e-5, atol=1e-5)
    assert cosines.std() > 1e-3
    prefixed = CLIPScore(folder, 2.5, "a photo of ")(x, ask(["snow"] * 3))
    torch.testing.assert_close(prefixed, CLIPScore(folder, 2.5)(x, ask(["a photo of snow"] * 3)))


def test_a_score_depends_on_image_and_prompt_and_not_on_the_rest_of_the_batch(folder) -> None:
    x, reward = images(3, 3, 20, 20), CLIPScore(folder)
    whole = reward(x, ask(LINES))
    for i in range(3):
        torch.testing.assert_close(reward(x[i : i + 1], ask(LINES[i : i + 1])), whole[i : i + 1], rtol=1e-4, atol=1e-4)
    other = reward(x, ask(LINES[::-1][1:] + LINES[:1]))
    assert (other[0] - whole[0]).abs() > 1e-3


def test_grey_images_and_long_prompts_are_scored(folder) -> None:
    scores = CLIPScore(folder)(images(2, 1, 12, 12), ask(["fox " * 200, "fox"]))
    assert scores.shape == (2,) and bool(scores.isfinite().all())


def test_the_laion_head_reads_features_of_length_one(folder, head_file) -> None:
    x, model = images(2, 3, SIZE, SIZE), pretrained("CLIPModel", folder)
    with torch.no_grad():
        pooled = model.vision_model(pixel_values=pixels(x, SIZE)).pooler_output
        h = F.normalize(model.visual_projection(pooled), dim=1)
    held = torch.load(head_file, weights_only=True)
    for i in (0, 2, 4, 6, 7):
        h = h @ held[f"layers.{i}.weight"].T + held[f"layers.{i}.bias"]
    torch.testing.assert_close(LAIONAesthetic(head_file, folder)(x, ask(["", ""])), h[:, 0], rtol=1e-5, atol=1e-6)


# ---- open_clip


class Stack(nn.Module):
    """Pre-norm layers named as open_clip names them."""

    def __init__(self, width, layers, heads, hidden) -> None:
        super().__init__()
        self.resblocks = nn.ModuleList()
        for _ in range(layers):
            block = nn.Module()
            block.ln_1, block.ln_2 = nn.LayerNorm(width), nn.LayerNorm(width)
            block.attn = nn.MultiheadAttention(width, heads, batch_first=True)
            block.mlp = nn.Module()
            block.mlp.c_fc, block.mlp.c_proj = nn.Linear(width, hidden), nn.Linear(hidden, width)
            self.resblocks.append(block)

    def forward(self, h, mask=None):
        for b in self.resblocks:
            n = b.ln_1(h)
            h = h + b.attn(n, n, n, attn_mask=mask, need_weights=False)[0]
            h = h + b.mlp.c_proj(F.gelu(b.mlp.c_fc(b.ln_2(h))))
        return h


class OpenCLIP(nn.Module):
    """The layout of open_clip: projections from the right, query, key and value in one matrix."""

    def __init__(self, vocabulary, context) -> None:
        super().__init__()
        self.visual = nn.Module()
        v = self.visual
        v.conv1 = nn.Conv2d(3, WIDTH, PATCH, PATCH, bias=False)
        v.class_embedding = nn.Parameter(torch.randn(WIDTH))
        v.positional_embedding = nn.Parameter(torch.randn((SIZE // PATCH) ** 2 + 1, WIDTH))
        v.ln_pre, v.ln_post = nn.LayerNorm(WIDTH), nn.LayerNorm(WIDTH)
        v.transformer, v.proj = Stack(WIDTH, 2, 2, 24), nn.Parameter(torch.randn(WIDTH, SHARED))
        self.token_embedding = nn.Embedding(vocabulary, WIDTH)
        self.positional_embedding = nn.Parameter(torch.randn(context, WIDTH))
        self.transformer, self.ln_final = Stack(WIDTH, 2, 2, 24), nn.LayerNorm(WIDTH)
        self.text_projection = nn.Parameter(torch.randn(WIDTH, SHARED))
        self.logit_scale = nn.Parameter(torch.tensor(2.0))

    def images(self, p):
        v = self.visual
        h = v.conv1(p).flatten(2).transpose(1, 2)
        h = torch.cat([v.class_embedding.expand(len(h), 1, -1), h], 1) + v.positional_embedding
        return F.normalize(v.ln_post(v.transformer(v.ln_pre(h))[:, 0]) @ v.proj, dim=-1)

    def texts(self, ids, ends):
        n = ids.shape[1]
        h = self.token_embedding(ids) + self.positional_embedding[:n]
        h = self.ln_final(self.transformer(h, torch.full((n, n), float("-inf")).triu(1)))
        return F.normalize(h[torch.arange(len(ids)), ends] @ self.text_projection, dim=-1)


def test_a_checkpoint_in_the_layout_of_open_clip_scores_as_open_clip_does(folder, tmp_path) -> None:
    torch.manual_seed(3)
    tokenizer = pretrained("CLIPTokenizer", folder)
    model = OpenCLIP(len(tokenizer), 20).eval()
    path = tmp_path / "HPS_v2.1.pt"
    torch.save({"state_dict": {**model.state_dict(), "attn_mask": torch.zeros(2, 2)}}, path)
    x = images(3, 3, 24, 16)
    ids = tokenizer(LINES, padding=True, return_tensors="pt")["input_ids"]
    ends = (ids == tokenizer.eos_token_id).int().argmax(1)
    with torch.no_grad():
        expected = (model.images(pixels(x, SIZE, "pad")) * model.texts(ids, ends)).sum(-1)
    found = HPSv2(str(path), folder)(x, ask(LINES))
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)
    assert expected.std() > 1e-3


def test_the_layouts_are_each_other_s_inverse(folder) -> None:
    theirs = pretrained("CLIPModel", folder).state_dict()
    ours = to_open_clip(theirs)
    back = from_open_clip(ours)
    assert set(back) == set(theirs) and all(torch.equal(back[k], theirs[k]) for k in theirs)
    own = OpenCLIP(pretrained("CLIPConfig", folder).text_config.vocab_size, 20).state_dict()
    assert {k: v.shape for k, v in ours.items()} == {k: v.shape for k, v in own.items()}


# ---- by name, gradients, combination


@pytest.mark.parametrize("name", NAMES)
def test_gradients_are_those_of_finite_differences(name, folder, hps_file, head_file) -> None:
    """Built by its name from a configuration; central differences of 1e-5 along a random direction, float64."""
    reward = doubled(make(Reward, Part(name, described(name, folder, hps_file, head_file))))
    assert reward.name == name and reward.differentiable
    x = images(3, 3, 20, 24, dtype=torch.float64).requires_grad_(True)
    direction = images(3, 3, 20, 24, seed=1, dtype=torch.float64)
    prompts = ask(LINES)
    scores = reward(x, prompts)
    assert scores.shape == (3,) and scores.dtype == torch.float64
    (gradient,) = torch.autograd.grad(scores.sum(), x)
    with torch.no_grad():
        up, down = (reward(x + h * direction, prompts) for h in (1e-5, -1e-5))
    slope = (gradient * direction).flatten(1).sum(1)
    torch.testing.assert_close(slope, (up - down) / 2e-5, rtol=1e-5, atol=1e-8)
    assert slope.abs().min() > 1e-9


@pytest.mark.parametrize("name", NAMES)
def test_weights_of_rewards_are_never_trained(name, folder, hps_file, head_file) -> None:
    reward = make(Reward, Part(name, described(name, folder, hps_file, head_file)))
    model = reward.towers().model
    assert not model.training and not any(p.requires_grad for p in model.parameters())


def test_several_of_them_keep_their_columns(folder, head_file) -> None:
    parts = [PickScore(folder, None), LAIONAesthetic(head_file, folder)]
    both = WeightedSum(parts, [1.0, 0.5])
    x, prompts = images(2, 3, 20, 20), ask(LINES[:2])
    assert both.differentiable and both.column_names == ("pick-score", "laion-aesthetic")
    columns = both.scores(x, prompts)
    for j, part in enumerate(parts):
        torch.testing.assert_close(columns[:, j], part(x, prompts))


# ---- what goes wrong


class Bomb:
    def __reduce__(self):
        return (pytest.fail, ("the file ran code",))


def test_wrong_files_and_prompts_give_one_sentence(folder, tmp_path) -> None:
    (tmp_path / "bomb.pt").write_bytes(pickle.dumps(Bomb(), 2))
    torch.save(torch.ones(2), tmp_path / "one.pt")
    save_file({"logit_scale": torch.zeros(())}, tmp_path / "short.safetensors")
    wide = str(tmp_path / "head.safetensors")
    Head((SHARED + 1, 4)).save(wide)
    x = images(2, 3, 8, 8)
    for wrong, sentence in (
        (CLIPScore(str(tmp_path)).prepare, f"{tmp_path} cannot be loaded as a CLIPModel ("),
        (HPSv2(str(tmp_path / "no.pt"), folder).prepare, f"there is no file {tmp_path / 'no.pt'}: give the weights"),
        (HPSv2(str(tmp_path / "bomb.pt"), folder).prepare, "files that could run code are never opened"),
        (HPSv2(str(tmp_path / "one.pt"), folder).prepare, "holds no dictionary of tensors"),
        (HPSv2(str(tmp_path / "short.safetensors"), folder).prepare, "these weights belong to another model"),
        (lambda: LAIONAesthetic(wide, folder)(x, ask(["", ""])), "do not belong together"),
        (lambda: CLIPScore(folder)(x, ask([1, 2])), "reads the text of each prompt, and these prompts have none"),
        (lambda: CLIPScore(folder)(x, ask([])), "reads the text of each prompt, and these prompts have none"),
        (lambda: CLIPScore(folder)(images(2, 4, 8, 8), ask(["", ""])), "an image is grey or RGB"),
    ):
        with pytest.raises(GirsanovError) as error:
            wrong()
        assert sentence in str(error.value) and "\n" not in str(error.value)
    assert list(read_tensors(str(tmp_path / "short.safetensors"))) == ["logit_scale"]


def test_without_the_extra_it_says_what_to_install(monkeypatch) -> None:
    monkeypatch.setitem(sys.modules, "transformers", None)
    with pytest.raises(GirsanovError) as error:
        CLIPScore("anything").prepare()
    assert str(error.value) == "this reward needs the package transformers: pip install 'girsanov[rewards]'"
