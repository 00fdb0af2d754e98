"""ImageReward on a tiny checkpoint in the published layout, against a forward pass written from that layout alone."""

import math

import pytest
import torch
import torch.nn.functional as F

from girsanov.config import Part, make
from girsanov.errors import GirsanovError
from girsanov.rewards import ImageReward, Reward
from girsanov.rewards.blip import blip_of, from_blip, to_blip
from girsanov.rewards.pixels import pixels
from girsanov.types import Cond, Prompts

PATCH, SIZE, IMAGE, TEXT, LAYERS = 8, 16, 192, 128, 2  # heads of 64: three for images, two for texts
WORDS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "a", "red", "fox", "two", "cubes", "snow"]
LINES = ["a red fox", "two cubes", "snow"]


def ask(meta):
    n = len(meta)
    return Prompts(Cond({}, torch.arange(n)), torch.arange(n), torch.arange(n), meta)


def images(seed=0, dtype=torch.float32):
    return torch.rand(3, 3, 20, 24, generator=torch.Generator().manual_seed(seed), dtype=dtype) * 1.6 - 0.8


def published():
    """Random tensors with the names and the shapes of ``ImageReward.pt``, and some that the reward does not read."""
    g = torch.Generator().manual_seed(5)
    found = {}

    def linear(name, rows, columns):
        found[f"{name}.weight"] = torch.randn(rows, columns, generator=g) / math.sqrt(columns)
        found[f"{name}.bias"] = 0.1 * torch.randn(rows, generator=g)

    def norm(name, width):
        found[f"{name}.weight"] = 1 + 0.1 * torch.randn(width, generator=g)
        found[f"{name}.bias"] = 0.1 * torch.randn(width, generator=g)

    v, t = "blip.visual_encoder.", "blip.text_encoder."
    found[f"{v}cls_token"] = torch.randn(1, 1, IMAGE, generator=g)
    found[f"{v}pos_embed"] = torch.randn(1, (SIZE // PATCH) ** 2 + 1, IMAGE, generator=g)
    found[f"{v}patch_embed.proj.weight"] = torch.randn(IMAGE, 3, PATCH, PATCH, generator=g) / PATCH
    found[f"{v}patch_embed.proj.bias"] = torch.randn(IMAGE, generator=g)
    norm(f"{v}norm", IMAGE)
    found[f"{t}embeddings.word_embeddings.weight"] = torch.randn(len(WORDS), TEXT, generator=g)
    found[f"{t}embeddings.position_embeddings.weight"] = torch.randn(40, TEXT, generator=g)
    found[f"{t}embeddings.position_ids"] = torch.arange(40)[None]
    norm(f"{t}embeddings.LayerNorm", TEXT)
    for i in range(LAYERS):
        b, e = f"{v}blocks.{i}.", f"{t}encoder.layer.{i}."
        norm(f"{b}norm1", IMAGE), norm(f"{b}norm2", IMAGE)
        linear(f"{b}attn.qkv", 3 * IMAGE, IMAGE), linear(f"{b}attn.proj", IMAGE, IMAGE)
        linear(f"{b}mlp.fc1", 48, IMAGE), linear(f"{b}mlp.fc2", IMAGE, 48)
        for part, width in (("attention", TEXT), ("crossattention", IMAGE)):
            linear(f"{e}{part}.self.query", TEXT, TEXT)
            linear(f"{e}{part}.self.key", TEXT, width), linear(f"{e}{part}.self.value", TEXT, width)
            linear(f"{e}{part}.output.dense", TEXT, TEXT), norm(f"{e}{part}.output.LayerNorm", TEXT)
        linear(f"{e}intermediate.dense", 56, TEXT), linear(f"{e}output.dense", TEXT, 56)
        norm(f"{e}output.LayerNorm", TEXT)
    linear("blip.vision_proj", 8, IMAGE), linear("blip.text_proj", 8, TEXT)  # of the contrastive loss: not read
    widths = (TEXT, 10, 8, 6, 4, 1)
    for i, a, b in zip((0, 2, 4, 6, 7), widths, widths[1:], strict=False):
        linear(f"mlp.layers.{i}", b, a)
    return found


@pytest.fixture(scope="module")
def options(tmp_path_factory):
    from transformers import BertTokenizer

    folder = tmp_path_factory.mktemp("image_reward")
    torch.save(published(), folder / "ImageReward.pt")
    BertTokenizer(vocab={w: i for i, w in enumerate(WORDS)}).save_pretrained(folder / "bert")
    return {"weights": str(folder / "ImageReward.pt"), "tokenizer": str(folder / "bert")}


def attend(q, k, v, mask=None):
    """Heads of 64; [L, width] and [M, width]."""
    heads = []
    for a in range(0, q.shape[1], 64):
        scores = q[:, a : a + 64] @ k[:, a : a + 64].T / 8
        if mask is not None:
            scores = scores.masked_fill(mask[None] == 0, float("-inf"))
        heads.append(scores.softmax(-1) @ v[:, a : a + 64])
    return torch.cat(heads, 1)


def by_hand(w, image, ids, mask):
    """h of one standardised image [3, SIZE, SIZE] and one prompt (ids, mask [L]), by the formulas of the layout."""

    def linear(name, h):
        return h @ w[f"{name}.weight"].T + w[f"{name}.bias"]

    def norm(name, h, eps):
        h = (h - h.mean(-1, keepdim=True)) / (h.var(-1, unbiased=False, keepdim=True) + eps).sqrt()
        return h * w[f"{name}.weight"] + w[f"{name}.bias"]

    v, t = "blip.visual_encoder.", "blip.text_encoder."
    patches = F.unfold(image[None], PATCH, stride=PATCH)[0].T
    h = patches @ w[f"{v}patch_embed.proj.weight"].flatten(1).T + w[f"{v}patch_embed.proj.bias"]
    h = torch.cat([w[f"{v}cls_token"][0], h]) + w[f"{v}pos_embed"][0]
    for i in range(LAYERS):
        b = f"{v}blocks.{i}."
        h = h + linear(f"{b}attn.proj", attend(*linear(f"{b}attn.qkv", norm(f"{b}norm1", h, 1e-6)).chunk(3, 1)))
        h = h + linear(f"{b}mlp.fc2", F.gelu(linear(f"{b}mlp.fc1", norm(f"{b}norm2", h, 1e-6))))
    seen = norm(f"{v}norm", h, 1e-6)
    h = w[f"{t}embeddings.word_embeddings.weight"][ids] + w[f"{t}embeddings.position_embeddings.weight"][: len(ids)]
    h = norm(f"{t}embeddings.LayerNorm", h, 1e-12)
    for i in range(LAYERS):
        e = f"{t}encoder.layer.{i}."
        for part, other, seeing in (("attention", None, mask), ("crossattention", seen, None)):
            source = h if other is None else other
            q, k, val = (
                linear(f"{e}{part}.self.query", h),
                *(linear(f"{e}{part}.self.{n}", source) for n in ("key", "value")),
            )
            mixed = linear(f"{e}{part}.output.dense", attend(q, k, val, seeing))
            h = norm(f"{e}{part}.output.LayerNorm", mixed + h, 1e-12)
        inner = linear(f"{e}output.dense", F.gelu(linear(f"{e}intermediate.dense", h)))
        h = norm(f"{e}output.LayerNorm", inner + h, 1e-12)
    found = h[0]
    for i in (0, 2, 4, 6, 7):
        found = linear(f"mlp.layers.{i}", found)
    return found[0]


def test_the_score_is_that_of_the_published_layout(options) -> None:
    """float64; each prompt unpadded by hand, so the 35 tokens of padding must not show."""
    x, w = images(dtype=torch.float64), {k: v.double() for k, v in published().items() if v.is_floating_point()}
    reward = make(Reward, Part("image-reward", options))
    reward.judge().blip.double(), reward.judge().head.double()
    ids = {"a red fox": [2, 5, 6, 7, 3], "two cubes": [2, 8, 9, 3], "snow": [2, 10, 3]}
    expected = [
        by_hand(w, image, torch.tensor(ids[line]), torch.ones(len(ids[line])))
        for image, line in zip(pixels(x, SIZE), LINES, strict=True)
    ]
    found = reward(x, ask([{"text": line} for line in LINES]))
    torch.testing.assert_close(
        found, (torch.stack(expected) - 0.16717362830052426) / 1.0333394966054072, rtol=1e-6, atol=1e-6
    )
    assert found.dtype == torch.float64 and found.std() > 1e-2
    assert (reward(x, ask(LINES[::-1])) - found).abs()[0] > 1e-3  # the prompt counts


def test_gradients_are_those_of_finite_differences(options) -> None:
    """Central differences of 1e-5 along a random direction, float64."""
    reward = ImageReward(**options)
    reward.judge().blip.double(), reward.judge().head.double()
    x, direction = images(dtype=torch.float64).requires_grad_(True), images(1, torch.float64)
    (gradient,) = torch.autograd.grad(reward(x, ask(LINES)).sum(), x)
    with torch.no_grad():
        up, down = (reward(x + h * direction, ask(LINES)) for h in (1e-5, -1e-5))
    slope = (gradient * direction).flatten(1).sum(1)
    torch.testing.assert_close(slope, (up - down) / 2e-5, rtol=1e-5, atol=1e-8)
    assert slope.abs().min() > 1e-7 and reward.differentiable
    assert not any(p.requires_grad for p in reward.judge().blip.parameters())


def test_names_go_to_transformers_and_back() -> None:
    blip = {k.removeprefix("blip."): v for k, v in published().items() if k.startswith("blip.")}
    read = {k: v for k, v in blip.items() if "_proj." not in k and not k.endswith("position_ids")}
    assert set(to_blip(from_blip(blip))) == set(read)
    held = blip_of(blip, "tiny").state_dict()
    assert all(torch.equal(v, held[k]) for k, v in from_blip(blip).items()) and len(held) == len(read)


def test_long_prompts_are_cut_off_at_35_tokens(options) -> None:
    reward, x = ImageReward(**options), images()[:1]
    long = "fox " * 33  # with its two ends 35 tokens
    torch.testing.assert_close(reward(x, ask([long + "snow two"])), reward(x, ask([long])))
    assert (reward(x, ask(["fox " * 32])) - reward(x, ask([long]))).abs() > 1e-5


def test_other_weights_and_prompts_give_one_sentence(options, tmp_path) -> None:
    def saved(name, tensors):
        torch.save(tensors, tmp_path / name)
        return ImageReward(str(tmp_path / name), options["tokenizer"]).prepare

    every = published()
    short = {k: v for k, v in every.items() if k != "blip.visual_encoder.blocks.1.attn.qkv.weight"}
    wide = every | {"blip.text_encoder.embeddings.LayerNorm.bias": torch.zeros(3)}
    for wrong, sentence in (
        (ImageReward(str(tmp_path / "no.pt")).prepare, "there is no file"),
        (saved("clip.pt", {"logit_scale": torch.zeros(())}), "these weights belong to another model"),
        (saved("short.pt", short), "lacks vision.encoder.layers.1.self_attn.qkv.weight: these weights"),
        (saved("wide.pt", wide), "has text.embeddings.LayerNorm.bias of shape [3], which is [128] in a Blip"),
        (saved("head.pt", {k: v for k, v in every.items() if k.startswith("blip.")}), "no chain of linear layers"),
        (lambda: ImageReward(**options)(images(), ask([1, 2, 3])), "reads the text of each prompt"),
    ):
        with pytest.raises(GirsanovError) as error:
            wrong()
        assert sentence in str(error.value) and "\n" not in str(error.value)
