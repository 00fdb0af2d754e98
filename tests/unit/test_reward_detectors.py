"""Detectors of transformers, tiny, of the real classes, from a folder; what they find against their formulas."""

import json
import shutil

import pytest
import torch
import torch.nn.functional as F

from girsanov.config import load_config, make
from girsanov.errors import GirsanovError
from girsanov.recipes.pipelines import PipelineRunConfig
from girsanov.rewards import ObjectRules, Reward
from girsanov.rewards.colors import COLORS, Colors, cut
from girsanov.rewards.detected import Detected
from girsanov.rewards.detectors import DETECTORS, Boxes, Masks, Sight, masked
from girsanov.rewards.zero_shot import Words, shared
from girsanov.types import Cond, Prompts
from tests.clip_models import save_clip
from tests.pipelines import shaken

LABELS = {0: "dog", 1: "sofa", 2: "mouse"}
NAMES = ["dog", "couch", "computer mouse"]


def ask(meta):
    n = len(meta)
    return Prompts(Cond({}, torch.arange(n)), torch.arange(n), torch.arange(n), meta)


def images(n=2, height=40, width=60):
    return torch.rand(n, 3, height, width, generator=torch.Generator().manual_seed(0)) * 1.8 - 0.9


def detr():
    from transformers import DetrConfig, DetrForObjectDetection, ResNetConfig

    backbone = ResNetConfig(
        embedding_size=8, hidden_sizes=[8] * 4, depths=[1] * 4, layer_type="basic", out_features=["stage4"]
    )
    sizes = {"encoder_layers": 1, "decoder_layers": 1, "encoder_attention_heads": 2, "decoder_attention_heads": 2}
    sizes |= {"encoder_ffn_dim": 16, "decoder_ffn_dim": 16, "num_queries": 6, "d_model": 16}
    config = DetrConfig(use_timm_backbone=False, backbone_config=backbone, id2label=LABELS, **sizes)
    return DetrForObjectDetection(config)


def mask2former():
    from transformers import Mask2FormerConfig, Mask2FormerForUniversalSegmentation, SwinConfig

    backbone = SwinConfig(
        image_size=32,
        embed_dim=8,
        depths=[1] * 4,
        num_heads=[1, 1, 2, 2],
        window_size=4,
        out_features=["stage1", "stage2", "stage3", "stage4"],
    )
    sizes = {"encoder_layers": 1, "decoder_layers": 2, "num_attention_heads": 2, "num_queries": 6}
    sizes |= dict.fromkeys(("feature_size", "mask_feature_size", "hidden_dim"), 32)
    sizes |= {"encoder_feedforward_dim": 16, "dim_feedforward": 16}
    return Mask2FormerForUniversalSegmentation(Mask2FormerConfig(backbone_config=backbone, id2label=LABELS, **sizes))


def owlv2():
    from transformers import Owlv2Config, Owlv2ForObjectDetection

    layers = {"num_hidden_layers": 1, "num_attention_heads": 2, "hidden_size": 16, "intermediate_size": 24}
    text = {"vocab_size": 400, "max_position_embeddings": 16, **layers}
    vision = {"image_size": 32, "patch_size": 8, **layers}
    return Owlv2ForObjectDetection(Owlv2Config(text_config=text, vision_config=vision, projection_dim=16))


def words_tokenizer():
    """CLIP's, with the special tokens at the end of the vocabulary as in the published one: 0 marks what is no text."""
    from transformers import CLIPTokenizer

    words = ["!", *(f"{w}</w>" for w in ("a", "photo", "of", "dog", "couch", "cat")), "<|startoftext|>"]
    letters = sorted({c for w in ("photo", "dog", "couch", "cat", "of") for c in w})
    every = list(dict.fromkeys([*words[:-1], *letters, *(f"{c}</w>" for c in letters), "<|startoftext|>"]))
    vocabulary = {w: i for i, w in enumerate([*every, "<|endoftext|>"])}
    return CLIPTokenizer(vocab=vocabulary, merges=[], pad_token="!")


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """Boxes (with a longest side, standardised), masks (a fixed size, not standardised) and a CLIP."""
    found = {}
    settings = {
        "boxes": {"size": {"shortest_edge": 64, "longest_edge": 80}, "image_mean": [0.5] * 3, "image_std": [0.2] * 3},
        "masks": {"size": {"height": 64, "width": 64}, "do_normalize": False},
        "words": {"size": {"height": 32, "width": 32}, "image_mean": [0.4] * 3, "image_std": [0.3] * 3},
    }
    for name, build in (("boxes", detr), ("masks", mask2former), ("words", owlv2)):
        torch.manual_seed(4)
        folder = tmp_path_factory.mktemp(name)
        shaken(build(), 0.1).save_pretrained(folder)
        (folder / "preprocessor_config.json").write_text(json.dumps(settings[name]))
        found[name] = str(folder)
    words_tokenizer().save_pretrained(found["words"])
    found["clip"] = str(save_clip(tmp_path_factory.mktemp("clip")))
    return found


def resized(x, height, width):
    return F.interpolate((x + 1) / 2, (height, width), mode="bilinear", antialias=True, align_corners=False)


def test_boxes_are_those_of_the_network(folders) -> None:
    """Shortest side 64 would make the longest 96, so the longest is 80: 53 x 80. The last class is "nothing"."""
    x, detector = images(), Boxes(folders["boxes"])
    detector.prepare()
    with torch.no_grad():
        out = detector.sight().model(pixel_values=(resized(x, 53, 80) - 0.5) / 0.2)
    found = detector(x, [{}, {}])
    for i in range(2):
        chances = out.logits[i].softmax(-1)[:, :3]
        order = chances.amax(1).argsort(descending=True)
        assert len(found[i]) == 6 and [o.label for o in found[i]] == [NAMES[c] for c in chances.argmax(1)[order]]
        for o, q in zip(found[i], order, strict=True):
            cx, cy, w, h = out.pred_boxes[i, q].tolist()
            expected = (60 * (cx - w / 2), 40 * (cy - h / 2), 60 * (cx + w / 2), 40 * (cy + h / 2))
            assert o.box == pytest.approx(expected, abs=1e-3) and o.score == pytest.approx(float(chances[q].max()))


def test_masks_are_those_of_the_network(folders) -> None:
    x, detector = images(1), Masks(folders["masks"])
    with torch.no_grad():
        out = detector.sight().model(pixel_values=resized(x, 64, 64))
    chances = out.class_queries_logits[0].softmax(-1)[:, :3]
    logits = F.interpolate(out.masks_queries_logits, (40, 60), mode="bilinear", align_corners=False)[0]
    expected = {}
    for q in range(6):
        on = logits[q] > 0
        if on.any():
            rows, columns = torch.where(on)
            box = (columns.min(), rows.min(), columns.max() + 1, rows.max() + 1)
            score = chances[q].max() * logits[q].sigmoid()[on].mean()
            expected[round(float(score), 5)] = (tuple(map(float, box)), NAMES[int(chances[q].argmax())])
    (found,) = detector(x, [{}])
    assert {round(o.score, 5): (o.box, o.label) for o in found} == expected and len(expected) > 1
    assert found == sorted(found, key=lambda o: -o.score)


def test_words_are_looked_for_in_a_padded_square(folders) -> None:
    """The network itself on each image alone, black below it; texts of its own rules and nothing of its neighbours."""
    x = images(2, 24, 32)
    detector = Words(folders["words"], overlap=1.0)
    rules = [{"include": [{"class": "dog", "count": 1}]}, {"include": [{"class": "couch", "count": 1}]}]
    rules[1]["exclude"] = [{"class": "cat", "count": 1}]
    found = detector(x, rules)
    sight = detector.sight()
    square = torch.cat([(x + 1) / 2, torch.zeros(2, 3, 8, 32)], 2)
    for i, own in enumerate((["dog"], ["couch", "cat"])):
        texts = [f"a photo of a {w}" for w in own]
        read = sight.tokenizer(texts, padding="max_length", max_length=16, return_tensors="pt")
        with torch.no_grad():
            out = sight.model(pixel_values=(square[i : i + 1] - 0.4) / 0.3, **read)
        scores, labels = out.logits[0].sigmoid().max(-1)
        order = [q for q in scores.argsort(descending=True).tolist() if scores[q] >= 0.05]
        assert len(order) == len(found[i]) > 1 and [o.label for o in found[i]] == [own[labels[q]] for q in order]
        for o, q in zip(found[i], order, strict=True):
            cx, cy, w, h = (32 * out.pred_boxes[0, q]).tolist()
            assert o.box == pytest.approx((cx - w / 2, cy - h / 2, cx + w / 2, cy + h / 2), abs=1e-3)
            assert o.score == pytest.approx(float(scores[q]), abs=1e-5)


def test_of_boxes_that_overlap_the_surest_stays() -> None:
    boxes = torch.tensor([[0.0, 0, 10, 10], [0, 0, 10, 8], [20, 0, 30, 10], [0, 0, 10, 10]])
    logits = torch.tensor([[2.0, 0.0], [3.0, 0.0], [1.0, 0.0], [0.0, 1.5]])
    kept = Words("m", overlap=0.5).of(boxes, logits, ["dog", "cat"])
    assert [(o.label, o.box[0], o.box[3]) for o in kept] == [("dog", 0, 8), ("cat", 0, 10), ("dog", 20, 10)]
    assert len(Words("m", overlap=0.79).of(boxes, logits, ["dog", "cat"])) == 3
    assert len(Words("m", overlap=0.8).of(boxes, logits, ["dog", "cat"])) == 4  # exactly 0.8 is not more
    assert shared(kept[0], kept[2]) == 0.0
    with pytest.raises(GirsanovError, match="overlap = 2 is a share"):
        Words("m", overlap=2)


def test_a_mask_gives_the_smallest_box_and_an_empty_one_no_object() -> None:
    chances = torch.full((5, 7), 0.2)
    chances[1:3, 2:6] = torch.tensor([0.6, 0.8, 0.8, 0.6])
    found = masked(chances, "dog", 0.5)
    assert found.box == (2.0, 1.0, 6.0, 3.0) and found.score == pytest.approx(0.35) and int(found.mask.sum()) == 8
    assert masked(torch.full((5, 7), 0.5), "dog", 0.5) is None


def test_classes_are_judged_one_by_one_where_there_is_none_for_nothing(folders) -> None:
    sight = Sight(detr(), {})
    logits = torch.tensor([[[0.0, 2.0, 1.0]]])
    score, label = sight.judged(logits)
    assert float(score) == pytest.approx(1 / (1 + torch.tensor(-2.0).exp().item())) and int(label) == 1
    score, label = sight.judged(torch.tensor([[[0.0, 2.0, 1.0, 5.0]]]))
    assert float(score) == pytest.approx(float(torch.tensor([0.0, 2, 1, 5]).softmax(0)[1])) and int(label) == 1
    with pytest.raises(GirsanovError, match="has 7 logits for 3 classes"):
        sight.judged(torch.zeros(1, 1, 7))


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({"size": {"height": 32, "width": 48}}, (32, 48)),
        ({"size": {"shortest_edge": 80, "longest_edge": 1000}}, (80, 120)),
        ({"size": {"shortest_edge": 80, "longest_edge": 60}}, (40, 60)),
        ({"size": 20, "max_size": 1000}, (20, 30)),
        ({"size": {"height": 32, "width": 48}, "do_resize": False}, (40, 60)),
        ({}, (40, 60)),
    ],
)
def test_images_are_resized_as_the_settings_say(settings, expected) -> None:
    assert Sight(detr(), settings).sides(40, 60) == expected


# ---- colours


def test_a_colour_is_the_likeliest_text_by_clip(folders) -> None:
    """Cosines with the mean of three features of length one, from the towers themselves; grey where the mask is not."""
    colors, x = Colors(folders["clip"]), images(1)[0]
    mask = torch.zeros(40, 60, dtype=torch.bool)
    mask[5:20, 10:40] = True
    one = Detected("dog", (10.0, 5.0, 40.0, 20.0), mask=mask)
    grey = x.clone()
    grey[:, ~mask] = 0x99 / 127.5 - 1
    assert torch.equal(cut(x, one), grey[:, 5:20, 10:40])
    towers = colors.towers()
    cosines = []
    for c in COLORS:
        texts = towers.texts([f"a photo of a {c} dog", f"a photo of a {c}-colored dog", f"a photo of a {c} object"])
        cosines.append(float(towers.images(cut(x, one)[None])[0] @ F.normalize(texts.mean(0), dim=0)))
    assert colors.color(x, one) == COLORS[max(range(10), key=lambda i: cosines[i])]


def test_colours_are_named_where_a_rule_asks_for_one(folders) -> None:
    colors = Colors(folders["clip"])
    scene = [Detected("dog", (0, 0, 20, 20)) for _ in range(18)] + [Detected("cat", (0, 0, 20, 20))]
    rules = {"include": [{"class": "dog", "count": 1, "color": "red"}, {"class": "cat", "count": 1}]}
    named = colors(images(1)[0], scene, rules)
    assert [o.color is not None for o in named] == [True] * 16 + [False] * 3
    assert colors(images(1)[0], [Detected("dog", (70, 70, 80, 80))], rules)[0].color == "white"  # outside the image


# ---- by name


@pytest.mark.parametrize("kind", DETECTORS)
def test_a_configuration_names_the_detector(kind, folders) -> None:
    data = {"kind": "objects", "detector": {"kind": kind, "model": folders[kind], "colors": {"model": folders["clip"]}}}
    reward = make(Reward, load_config(PipelineRunConfig, {"reward": data}).reward)
    assert isinstance(reward, ObjectRules) and isinstance(reward.detector, DETECTORS[kind])
    reward.prepare()
    x = images()
    named = {"include": [{"class": "dog", "count": 1}]}
    (best, *_), _ = reward.detector(x, [named, named])
    reward.threshold = best.score
    rules = {"include": [{"class": best.label, "count": 1}]}
    assert reward(x, ask([rules, rules]))[0] == 1.0
    reward.counting = best.score + 1e-3  # random networks may be surer than 0.9
    counted = rules | {"tag": "counting"}
    assert reward(x, ask([counted, counted]))[0] == 0.0


def test_what_is_missing_is_told(tmp_path, folders) -> None:
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(GirsanovError, match="cannot be loaded as an AutoModelForObjectDetection"):
        ObjectRules(Boxes(str(tmp_path))).prepare()
    with pytest.raises(GirsanovError, match="cannot be loaded as a CLIPModel"):
        ObjectRules(Boxes(folders["boxes"], Colors(str(tmp_path)))).prepare()
    with pytest.raises(GirsanovError, match="a detector is a function detect"):
        ObjectRules(3)
    detr().save_pretrained(tmp_path / "bare")
    with pytest.raises(GirsanovError, match="it needs a preprocessor_config.json"):
        Boxes(str(tmp_path / "bare")).prepare()


# ---- the folder of another model


@pytest.mark.parametrize("kind", DETECTORS)
def test_another_model_under_the_name_of_this_one_is_refused(kind, folders, tmp_path) -> None:
    """Its own config.json beside the weights of a CLIP, and a folder that says itself what it is."""
    shutil.copytree(folders[kind], tmp_path / "mixed")
    shutil.copy(f"{folders['clip']}/model.safetensors", tmp_path / "mixed")
    with pytest.raises(GirsanovError) as error:
        DETECTORS[kind](str(tmp_path / "mixed")).prepare()
    said = str(error.value)
    assert said.startswith(f"{tmp_path}/mixed/model.safetensors lacks ") and "\n" not in said
    assert said.endswith(": these weights belong to another model")
    with pytest.raises(GirsanovError, match="holds a model of the kind clip, and an? .* is needed: give the folder"):
        DETECTORS[kind](folders["clip"]).prepare()
