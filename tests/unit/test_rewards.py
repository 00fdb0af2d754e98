"""Rewards: formulas against hand-made images, gradients against finite differences, and the user's own functions."""

from pathlib import Path

import pytest
import torch
from torch import Tensor

from girsanov.errors import GirsanovError
from girsanov.rewards import REWARDS, Bold, FunctionReward, Reward, load_reward
from girsanov.rewards.strokes import blur
from girsanov.types import Cond, Prompts

WITH_WEIGHTS = ("clip-score", "pick-score", "hpsv2", "hpsv3", "image-reward", "laion-aesthetic")  # elsewhere
DIFFERENTIABLE = [n for n, reward in REWARDS.items() if reward.differentiable is True and n not in WITH_WEIGHTS]


def prompts(n: int) -> Prompts:
    zero = torch.zeros(n, dtype=torch.int64)
    return Prompts(Cond({}, zero), torch.arange(n), zero, tuple(range(n)))


def line(width: int, lean: int = 0) -> Tensor:
    """A vertical stroke of some width in an 8 x 8 image, leaning ``lean`` columns to the right from bottom to top."""
    x = -torch.ones(1, 1, 8, 8, dtype=torch.float64)
    for v in range(8):
        start = 3 + round(lean * (3.5 - v) / 7)
        x[0, 0, v, start : start + width] = 1
    return x


def score(name: str, x: Tensor) -> float:
    return float(REWARDS[name]()(x, prompts(len(x)))[0])


@pytest.mark.parametrize("name", DIFFERENTIABLE)
def test_gradient_is_that_of_finite_differences(name: str) -> None:
    """Six random images, float64; the kinks of max and clamp are almost surely missed."""
    g = torch.Generator().manual_seed(0)
    x = 0.8 * torch.randn(6, 1, 8, 8, generator=g, dtype=torch.float64)
    direction = torch.randn(x.shape, generator=g, dtype=torch.float64)
    reward = REWARDS[name]()
    assert reward.differentiable and reward.name == name
    x.requires_grad_(True)
    scores = reward(x, prompts(6))
    assert scores.shape == (6,) and scores.dtype == x.dtype
    (gradient,) = torch.autograd.grad(scores.sum(), x)
    with torch.no_grad():
        up, down = (reward(x + h * direction, prompts(6)) for h in (1e-6, -1e-6))
    slope = (gradient * direction).flatten(1).sum(1)
    torch.testing.assert_close(slope, (up - down) / 2e-6, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("name", DIFFERENTIABLE)
def test_the_gradient_of_blank_paper_is_finite(name: str) -> None:
    x = torch.full((2, 1, 8, 8), -1.0, requires_grad=True)
    (gradient,) = torch.autograd.grad(REWARDS[name]()(x, prompts(2)).sum(), x)
    assert bool(gradient.isfinite().all())


def test_bold_is_its_formula() -> None:
    """Written out again with loops over pixels."""
    x = torch.rand(1, 1, 8, 8, generator=torch.Generator().manual_seed(3), dtype=torch.float64) * 2.4 - 1.2
    w = ((x + 1) / 2)[0, 0]
    expected = 0.0
    for v in range(8):
        for u in range(8):
            near = sum(
                float(w[i, j]) for i in (v - 1, v, v + 1) for j in (u - 1, u, u + 1) if 0 <= i < 8 and 0 <= j < 8
            )
            m = 1 / (1 + torch.exp(torch.tensor(-12 * (near / 9 - 0.3), dtype=torch.float64)))
            expected += float(m * min(float(w[v, u]), 1.0) - 2 * (1 - m) * w[v, u] ** 2)
    assert score("bold", x) == pytest.approx(expected, rel=1e-12)


def test_bold_and_thin_order_strokes_by_their_width() -> None:
    """Two and three pixels against one; thin of a line one pixel wide is its eight rows."""
    assert score("bold", line(1)) < score("bold", line(2)) < score("bold", line(3))
    assert score("thin", line(1)) == pytest.approx(8.0)
    assert score("thin", line(1)) > score("thin", line(2)) > score("thin", line(3))
    assert score("thin", line(1)) > score("thin", -torch.ones(1, 1, 8, 8, dtype=torch.float64)) == 0.0


def test_bold_charges_for_specks_on_paper() -> None:
    paper = -torch.ones(1, 1, 8, 8, dtype=torch.float64)
    speck = paper.clone()
    speck[0, 0, 4, 4] = 1.0
    assert score("bold", speck) < score("bold", paper) == 0.0


def test_ink_is_the_sum() -> None:
    assert score("ink", line(2)) == pytest.approx(16.0)


def test_symmetric_is_zero_for_a_mirrored_image_and_counts_pixels_otherwise() -> None:
    assert score("symmetric", line(2)) == 0.0
    assert score("symmetric", line(1)) == -16.0  # column 3 against column 4, eight rows, both ways


@pytest.mark.parametrize("lean", [-2, 0, 2])
def test_slanted_is_the_shift_of_the_rows(lean: int) -> None:
    """16 times the slope of the least-squares line through the inked pixels; 1e-3 ink a pixel moves it by under 1 %."""
    x = line(1, lean)
    rows, columns = (x[0, 0] > 0).nonzero(as_tuple=True)
    v, u = rows.double(), columns.double()
    slope = -float(((u - u.mean()) * (v - v.mean())).sum() / ((v - v.mean()) ** 2).sum())
    assert score("slanted", x) == pytest.approx(16 * slope, rel=0.01, abs=0.02)
    assert (score("slanted", x) > 0.1) == (lean > 0)


def test_blur_of_a_line_is_a_third() -> None:
    torch.testing.assert_close(blur((line(1) + 1) / 2)[0, 0, 1:-1, 3], torch.full((6,), 1 / 3, dtype=torch.float64))


def test_strokes_refuse_what_is_no_image() -> None:
    with pytest.raises(GirsanovError, match=r"a stroke reward reads images \[B, C, H, W\], got shape \[3, 64\]"):
        Bold()(torch.zeros(3, 64), prompts(3))


# ------------------------------------------------------------------------------------------------ the user's own


def mine(images: Tensor, prompts: list[int]) -> Tensor:
    return images.flatten(1).sum(1) * torch.tensor(prompts)


def test_a_function_gets_images_and_prompts_and_keeps_its_graph() -> None:
    reward = FunctionReward(mine)
    x = torch.ones(3, 1, 2, 2, requires_grad=True)
    scores = reward(x, prompts(3))
    assert scores.tolist() == [0, 4, 8] and reward.name == "mine" and reward.differentiable
    (gradient,) = torch.autograd.grad(scores.sum(), x)
    assert gradient[:, 0, 0, 0].tolist() == [0, 1, 2]


def test_a_function_may_declare_that_it_has_no_gradient() -> None:
    reward = FunctionReward(lambda images, _: images.sum((1, 2, 3)).numpy(), "counted", differentiable=False)
    scores = reward(torch.ones(2, 1, 2, 2, requires_grad=True), prompts(2))
    assert scores.tolist() == [4, 4] and not scores.requires_grad and not reward.differentiable


@pytest.mark.parametrize("fn", [lambda x, _: x.detach().sum((1, 2, 3)), lambda x, _: x.numpy().sum((1, 2, 3))])
def test_a_missing_gradient_is_an_error_where_one_is_asked_for(fn) -> None:
    reward = FunctionReward(fn, "mine")
    assert reward(torch.ones(2, 1, 2, 2), prompts(2)).tolist() == [4, 4]
    with pytest.raises(GirsanovError) as error:
        reward(torch.ones(2, 1, 2, 2, requires_grad=True), prompts(2))
    assert str(error.value) == (
        "the reward 'mine' gives no gradient: write it in differentiable torch operations, or declare it with "
        "mine.differentiable = False and use a method that needs none (clipped-pg, nft)"
    )


@pytest.mark.parametrize(
    ("result", "says"),
    [
        (torch.zeros(3), "returned 3 scores for 2 samples"),
        (torch.zeros(2, 1), "returned scores of shape \\[2, 1\\] for 2 samples"),
        (torch.tensor([1.0, torch.nan]), "returned NaN or infinity for 1 of 2 samples"),
        ("good", "returned text"),
        (None, "returned a NoneType"),
    ],
)
def test_results_that_are_no_scores_are_refused_by_name(result, says: str) -> None:
    with pytest.raises(GirsanovError, match=f"the reward 'mine' {says}"):
        FunctionReward(lambda images, _: result, "mine")(torch.ones(2, 1, 2, 2), prompts(2))


def test_rewards_are_found_by_name_or_in_a_file(tmp_path: Path) -> None:
    (tmp_path / "helper.py").write_text("FACTOR = 3.0\n")
    (tmp_path / "mine.py").write_text(
        "from helper import FACTOR\n"
        "from girsanov.rewards import Bold\n"
        "def tripled(images, prompts):\n    return FACTOR * images.flatten(1).sum(1)\n"
        "def counted(images, prompts):\n    return images.flatten(1).sum(1)\n"
        "counted.differentiable = False\n"
        "class Twice(Bold):\n    name = 'twice'\n"
    )
    assert isinstance(load_reward("bold"), Bold)
    own = load_reward(f"{tmp_path}/mine.py:tripled")
    assert own.name == "tripled" and own(torch.ones(1, 1, 1, 2), prompts(1)).tolist() == [6]
    assert not load_reward(f"{tmp_path}/mine.py:counted").differentiable
    twice = load_reward(f"{tmp_path}/mine.py:Twice")
    assert isinstance(twice, Reward) and twice.name == "twice" and twice.differentiable


@pytest.mark.parametrize(
    ("spec", "sentence"),
    [
        (
            "bould",
            "unknown reward 'bould': did you mean 'bold'? choose bold, thin, ink, symmetric, slanted, "
            "compressible, incompressible, aesthetic, clip-score, pick-score, hpsv2, hpsv3, "
            "image-reward, laion-aesthetic, vlm-judge, ocr, "
            "objects, trained, sum, pooled, remote, or your own as my_file.py:fn",
        ),
        ("{}/mine.py", "'{}/mine.py' does not name an object in a file: write it as my_file.py:name"),
        ("{}/none.py:fn", "there is no file {}/none.py: give its path from the current folder, as my_file.py:name"),
        ("{}/mine.py:gn", "{}/mine.py has no 'gn': it has fn"),
        ("{}/mine.py:number", "a reward is a function fn(images, prompts) -> scores, not a int"),
        (
            "{}/bad.py:fn",
            "{}/bad.py could not be imported, mend it first: ZeroDivisionError: division by zero (line 2)",
        ),
        ("{}/text.txt:fn", "{}/text.txt is not a Python file: give one that ends in .py, as my_file.py:name"),
    ],
)
def test_what_is_no_reward_is_refused_with_the_fix(tmp_path: Path, spec: str, sentence: str) -> None:
    (tmp_path / "mine.py").write_text("import math\nnumber = 3\ndef fn(images, prompts):\n    return images\n")
    (tmp_path / "bad.py").write_text("\nx = 1 / 0\n")
    (tmp_path / "text.txt").write_text("hello")
    with pytest.raises(GirsanovError) as error:
        load_reward(spec.format(tmp_path))
    assert str(error.value) == sentence.format(tmp_path)
