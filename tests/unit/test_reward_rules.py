"""Rewards that check a rule: the spelling of written text, and the objects that a detector finds."""

import random
import sys

import pytest
import torch

from girsanov.config import Part, make
from girsanov.errors import GirsanovError
from girsanov.rewards import ObjectRules, OCRAccuracy, Reward
from girsanov.rewards.objects import Detected, check, relations
from girsanov.rewards.ocr import accuracy, edit_distance
from girsanov.types import Cond, Prompts


def ask(meta):
    n = len(meta)
    return Prompts(Cond({}, torch.arange(n)), torch.arange(n), torch.arange(n), meta)


# ---- spelling


def plain_distance(a: str, b: str) -> int:
    """By its recursion."""
    if not a or not b:
        return len(a) + len(b)
    same = plain_distance(a[1:], b[1:]) + (a[0] != b[0])
    return min(same, plain_distance(a[1:], b) + 1, plain_distance(a, b[1:]) + 1)


def test_the_edit_distance_is_that_of_its_recursion() -> None:
    """100 pairs of words of up to 5 letters a, b, c; seed 0."""
    rng = random.Random(0)
    for _ in range(100):
        a, b = ("".join(rng.choices("abc", k=rng.randint(0, 5))) for _ in range(2))
        assert edit_distance(a, b) == plain_distance(a, b) == edit_distance(b, a)
    assert edit_distance("kitten", "sitting") == 3


@pytest.mark.parametrize(
    ("read", "wanted", "expected"),
    [
        ("HELLO\nworld", "Hello World", 1.0),
        ("shop: hello world, open", "hello world", 1.0),
        ("helo world", "hello world", 0.9),
        ("", "stop", 0.0),
        ("something else entirely", "stop", 0.0),
    ],
)
def test_accuracy_is_its_formula(read, wanted, expected) -> None:
    assert accuracy(read, wanted) == pytest.approx(expected)


def brightness(image) -> str:
    """Reads "open" in bright images and "shut" in dark ones."""
    assert image.shape[2] == 3 and image.dtype.name == "uint8"
    return "open" if image.mean() > 127 else "shut"


@pytest.mark.parametrize("channels", [1, 3])
def test_the_text_is_in_quotes_or_in_a_column(channels) -> None:
    x = torch.cat([torch.ones(2, channels, 4, 6), -torch.ones(2, channels, 4, 6)])
    meta = [
        'a sign that says "Open"',
        {"text": "a sign", "ocr": "oven"},
        {"text": "a \u201cshut\u201d door"},
        '"s" "hut"',
    ]
    assert OCRAccuracy(brightness)(x, ask(meta)).tolist() == [1.0, 0.75, 1.0, 1.0]
    assert not OCRAccuracy().differentiable


def test_what_cannot_be_spelt_gives_one_sentence(monkeypatch) -> None:
    x = torch.zeros(1, 3, 4, 4)
    with pytest.raises(
        GirsanovError, match="^the prompt 'a sign' does not say what is to be written: put it in double"
    ):
        OCRAccuracy(brightness)(x, ask(["a sign"]))
    with pytest.raises(GirsanovError, match="is empty: leave such prompts out"):
        OCRAccuracy(brightness)(x, ask([{"text": "", "ocr": " "}]))
    monkeypatch.setitem(sys.modules, "pytesseract", None)
    with pytest.raises(GirsanovError, match=r"needs the package pytesseract: pip install 'girsanov\[ocr\]'"):
        make(Reward, Part("ocr"))(x, ask(['"stop"']))


# ---- objects


def at(label, x, y, size=2.0, score=0.9, color=None):
    return Detected(label, (x - size / 2, y - size / 2, x + size / 2, y + size / 2), score, color)


@pytest.mark.parametrize(
    ("dx", "dy", "expected"),
    [
        (-10, 0, {"left of"}),
        (10, 1, {"right of"}),
        (0, -10, {"above"}),
        (1, 10, {"below"}),
        (-10, -10, {"left of", "above"}),
        (0.3, 0.3, set()),  # within the margin of 0.1 (2 + 2)
        (0, 0, set()),
    ],
)
def test_where_an_object_lies_from_another(dx, dy, expected) -> None:
    b = at("b", 20, 20)
    assert relations(at("a", 20 + dx, 20 + dy), b) == expected
    opposite = {"left of": "right of", "right of": "left of", "above": "below", "below": "above"}
    assert relations(b, at("a", 20 + dx, 20 + dy)) == {opposite[r] for r in expected}


def test_the_margin_is_a_tenth_of_both_sizes() -> None:
    """Sizes 10 and 20, centres 6 apart along x and 0 along y: (6 - 3) / 6 = 1/2, which is not beyond 1/2."""
    b = at("b", 50, 50, 20)
    assert relations(at("a", 44, 50, 10), b) == set()
    assert relations(at("a", 43.9, 50, 10), b) == {"left of"}


SCENE = [
    at("dog", 10, 10, score=0.9, color="red"),
    at("dog", 10, 30, score=0.6, color="black"),
    at("cat", 40, 20, score=0.8, color="white"),
]


@pytest.mark.parametrize(
    ("rules", "held"),
    [
        ({"include": [{"class": "dog", "count": 2}]}, [True]),
        ({"include": [{"class": "dog", "count": 3}]}, [False]),
        ({"include": [{"class": "dog", "count": 1}], "exclude": [{"class": "dog", "count": 2}]}, [True, False]),
        ({"include": [{"class": "dog", "count": 2}], "exclude": [{"class": "dog", "count": 3}]}, [True, True]),
        ({"include": [{"class": "dog", "count": 1, "color": "red"}]}, [True]),
        ({"include": [{"class": "dog", "count": 1, "color": "black"}]}, [False]),  # the surest one is red
        ({"include": [{"class": "dog", "count": 2, "color": "red"}]}, [False]),
        (
            {"include": [{"class": "cat", "count": 1}, {"class": "dog", "count": 2, "position": ["left of", 0]}]},
            [True, True],
        ),
        (
            {"include": [{"class": "cat", "count": 1}, {"class": "dog", "count": 1, "position": ["below", 0]}]},
            [True, False],
        ),
        (
            {"include": [{"class": "bird", "count": 1}, {"class": "dog", "count": 1, "position": ["above", 0]}]},
            [False, False],
        ),
    ],
)
def test_rules_are_checked_on_the_surest_objects(rules, held) -> None:
    assert check(SCENE[::-1], rules) == held


def test_the_reward_is_all_or_the_share_and_weak_objects_do_not_count() -> None:
    def detector(images, rules):
        assert len(images) == len(rules) == 2 and not images.requires_grad
        return [SCENE, SCENE[2:]]

    rules = {"text": "a dog and a cat", "include": [{"class": "dog", "count": 1}, {"class": "cat", "count": 1}]}
    x = torch.zeros(2, 3, 8, 8, requires_grad=True)
    assert ObjectRules(detector)(x, ask([rules, rules])).tolist() == [1.0, 0.0]
    assert ObjectRules(detector, partial=True)(x, ask([rules, rules])).tolist() == [1.0, 0.5]
    assert ObjectRules(detector, threshold=0.85, partial=True)(x, ask([rules, rules])).tolist() == [0.5, 0.0]


def test_a_detector_is_named_in_a_configuration(tmp_path) -> None:
    (tmp_path / "mine.py").write_text(
        "from girsanov.rewards.objects import Detected\n"
        "def boxes(images, rules):\n    return [[Detected('dog', (0, 0, 4, 4))] for _ in images]\n"
    )
    reward = make(Reward, Part("objects", {"detector": f"{tmp_path / 'mine.py'}:boxes"}))
    rules = {"include": [{"class": "dog", "count": 1}]}
    assert reward(torch.zeros(2, 3, 8, 8), ask([rules, rules])).tolist() == [1.0, 1.0]


@pytest.mark.parametrize(
    ("rules", "sentence"),
    [
        ({"text": "a dog"}, "needs rules: give the prompts a column include or exclude"),
        ("a dog", "needs rules: give the prompts a column include or exclude"),
        ({"include": [{"class": "dog"}]}, 'write it as {"class": "dog", "count": 1}'),
        ({"include": ["dog"]}, 'write it as {"class": "dog", "count": 1}'),
        ({"include": [{"class": "dog", "count": 1, "position": ["beside", 0]}]}, "write one of left of, right of"),
        (
            {"include": [{"class": "dog", "count": 1, "position": ["above", 0]}]},
            "the number of an earlier include rule",
        ),
    ],
)
def test_rules_that_cannot_be_read_give_one_sentence(rules, sentence) -> None:
    with pytest.raises(GirsanovError) as error:
        ObjectRules(lambda images, rules: [SCENE])(torch.zeros(1, 3, 8, 8), ask([rules]))
    assert sentence in str(error.value) and "\n" not in str(error.value)


def test_a_detector_that_loses_images_is_told() -> None:
    with pytest.raises(GirsanovError, match="gave 1 lists of objects for 2 images"):
        ObjectRules(lambda images, rules: [SCENE])(torch.zeros(2, 3, 8, 8), ask([{}, {}]))
