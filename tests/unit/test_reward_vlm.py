"""A model behind a server as reward: ratings, soft ratings, replies kept, and a real server that misbehaves."""

import base64
import io
import math
import threading

import numpy as np
import pytest
import torch
from PIL import Image

from girsanov.config import Part, make
from girsanov.errors import GirsanovError
from girsanov.rewards import PooledReward, Reward, VLMReward
from girsanov.rewards.jpeg import to_bytes
from girsanov.rewards.pool import Drop
from girsanov.rewards.vlm import rating, soft_rating
from girsanov.types import Cond, Prompts
from tests.completions import completions, said


@pytest.fixture
def served():
    with completions() as start:
        yield start


def ask(meta):
    n = len(meta)
    return Prompts(Cond({}, torch.arange(n)), torch.arange(n), torch.arange(n), meta)


def images(n):
    return torch.rand(n, 3, 6, 5, generator=torch.Generator().manual_seed(0)) * 2 - 1


PROMPTS = ask([{"text": "a fox"}, {"text": "a bee"}, {"text": "an owl"}])


def shown(body):
    """The text and the picture of a request."""
    parts = body["messages"][-1]["content"]
    (url,) = [p["image_url"]["url"] for p in parts if p["type"] == "image_url"]
    assert url.startswith("data:image/png;base64,")
    picture = np.array(Image.open(io.BytesIO(base64.b64decode(url.partition(",")[2]))))
    return "".join(p["text"] for p in parts if p["type"] == "text"), picture


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        ("It is a fox. [[7]]", 7.0),
        ("[[3]] no, [[ 8.5 ]]", 8.5),
        ('{"score": 6, "why": "2 legs"}', 6.0),
        ("Good light.\nScore: 7/10", 7.0),
        ("**Rating: 4**", 4.0),
        ("9", 9.0),
        ("There are 2 foxes in 1 image.", None),
        ("", None),
    ],
)
def test_ratings_are_read(words, expected) -> None:
    assert rating(words) == expected


def test_every_image_is_asked_about_with_its_prompt_and_order_is_kept(served, monkeypatch) -> None:
    """The server rates by the prompt and by the mean level of the picture that it was really sent."""
    monkeypatch.setenv("GIRSANOV_JUDGE_TOKEN", "open sesame")
    words = {"a fox": 3, "a bee": 5, "an owl": 1}

    def rate(body, count):
        text, picture = shown(body)
        prompt = text.partition("Prompt:\n")[2].partition("End with")[0].strip()
        return said(f"[[{words[prompt] + picture.mean() / 256}]]")

    server, x = served(rate), images(3)
    reward = make(Reward, Part("vlm-judge", {"url": server.url, "model": "small", "workers": 3}))
    levels = to_bytes(x).double().mean((1, 2, 3)) / 256
    expected = torch.tensor([3.0, 5.0, 1.0]) + levels
    torch.testing.assert_close(reward(x, PROMPTS).double(), expected, rtol=1e-6, atol=1e-6)
    _, headers, body = server.requests[0]
    assert headers["Authorization"] == "Bearer open sesame" and body["model"] == "small" and not reward.differentiable
    assert "from 1 to 10" in shown(body)[0]


def test_several_requests_are_under_way_at_once(served) -> None:
    """The server answers none before three have come: one after the other they would wait until the barrier breaks."""
    together = threading.Barrier(3, timeout=10)

    def rate(body, count):
        together.wait()
        return said("[[5]]")

    assert VLMReward(served(rate).url, "m", workers=3, retries=0)(images(6), ask(["a"] * 6)).tolist() == [5.0] * 6


def test_a_soft_rating_is_the_mean_digit(served) -> None:
    """P(7) = .5, P(" 8") = .25 and .25 on others: (7 * .5 + 8 * .25) / .75."""
    top = [(t, math.log(p)) for t, p in [("7", 0.5), (" 8", 0.25), ("0", 0.1), ("good", 0.1), ("77", 0.05)]]
    logprobs = {"content": [{"top_logprobs": [{"token": t, "logprob": p} for t, p in top]}]}
    server = served(lambda body, count: said("7", logprobs=logprobs))
    reward = VLMReward(server.url, "m", low=1, high=9, soft=True)
    assert reward(images(1), ask(["a fox"])).tolist() == pytest.approx([5.5 / 0.75])
    assert server.requests[0][2]["max_tokens"] == 1 and server.requests[0][2]["logprobs"] is True
    assert soft_rating({"message": {"content": "7"}}, 1, 9) is None


def test_replies_are_kept_by_image_prompt_and_model(served, tmp_path) -> None:
    server = served(lambda body, count: said(f"[[{count}]]"))
    cache = str(tmp_path / "replies")
    reward, x = VLMReward(server.url, "m", cache=cache, workers=1), images(2)
    first = reward(x, ask(["a", "a"]))
    assert torch.equal(reward(x, ask(["a", "a"])), first) and len(server.requests) == 2
    reward(x, ask(["b", "a"]))
    assert len(server.requests) == 3
    VLMReward(server.url, "n", cache=cache)(x, ask(["a", "a"]))
    assert len(server.requests) == 5


def test_a_reply_without_a_rating_is_asked_for_again_and_is_nan_at_last(served) -> None:
    server = served(lambda body, count: said("[[6]]" if body["seed"] == 2 else "[[600]]"))
    assert VLMReward(server.url, "m", workers=1)(images(1), ask(["a"])).tolist() == [6.0]
    assert [body["seed"] for _, _, body in server.requests] == [0, 1, 2]

    def only_bees(body, count):
        return said("[[4]]" if "a bee" in shown(body)[0] else "I cannot say")

    lazy = VLMReward(served(only_bees).url, "m", attempts=1)
    assert [math.isnan(r) for r in lazy(images(3), PROMPTS).tolist()] == [True, False, True]
    with PooledReward(lazy, on_failure=Drop()) as pooled:
        scores = pooled.submit(images(3), PROMPTS).result()
    assert scores[:, 0].isnan().tolist() == [True, False, True] and float(scores[1, 0]) == 4.0


def test_a_busy_server_is_waited_for(served) -> None:
    def busy(body, count):
        return (503, {}, {"Retry-After": "0.01"}) if count < 3 else said("[[2]]")

    server = served(busy)
    assert VLMReward(server.url, "m", pause=0.01)(images(1), ask(["a"])).tolist() == [2.0]


@pytest.mark.parametrize(
    ("answer", "sentence"),
    [
        (lambda b, c: (200, {"no": 1}, {}), "answered with something that is no chat completion"),
        (lambda b, c: (401, {}, {}), "refused the token: set GIRSANOV_JUDGE_TOKEN"),
        (lambda b, c: (404, {"error": {"message": "no model m"}}, {}), "answered 404: no model m"),
    ],
)
def test_what_a_server_says_wrong_is_one_sentence(served, answer, sentence) -> None:
    with pytest.raises(GirsanovError) as error:
        VLMReward(served(answer).url, "m")(images(3), PROMPTS)
    assert sentence in str(error.value) and "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("wrong", "sentence"),
    [
        (lambda: VLMReward("localhost", "m"), "'localhost' is not the address of a judge"),
        (lambda: VLMReward("http://127.0.0.1:1", ""), "a judge needs a model's name"),
        (lambda: VLMReward("http://127.0.0.1:1", "m", low=5, high=5), "low < high"),
        (lambda: VLMReward("http://127.0.0.1:1", "m", soft=True), "single digits"),
        (lambda: VLMReward("http://127.0.0.1:1", "m", retries=0)(images(1), ask(["a"])), "cannot be reached"),
        (lambda: VLMReward("http://127.0.0.1:1", "m")(images(1), ask([7])), "these prompts have none"),
    ],
)
def test_wrong_settings_and_absent_servers_give_one_sentence(wrong, sentence) -> None:
    with pytest.raises(GirsanovError) as error:
        wrong()
    assert sentence in str(error.value) and "\n" not in str(error.value)
