r"""A vision-language model as reward, behind any OpenAI-compatible server (vLLM, SGLang, ...).

Every image goes as a data URL with its prompt and a question; the reward is the rating in the reply, in the question's
own unit (1 to 10 unless another range is given). The last of these counts: ``[[7]]``, ``{"score": 7}``, ``7/10`` or a
line that is a number. A reply without a rating in the range is asked for again with another seed; what has none after
``attempts`` replies is NaN, which ``PooledReward(..., on_failure=drop)`` lets pass for its sample alone.

*Soft ratings.* With ``soft`` the reply is one digit d, and the reward is its mean over the first token's probabilities,

.. math:: r = \sum_d d\, P(d) \Big/ \sum_d P(d),

which tells images apart that get the same likeliest digit. The range must then be of single digits.

Requests, retries, and replies kept on disk are those of the judge of pairs (``girsanov/judging/server.py``).

Reference: Zheng et al. 2023, arXiv:2306.05685, section 3.1 (grading single answers); Liu et al. 2023, arXiv:2303.16634
(weights of ratings by their probabilities).
"""

import os
import re
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import torch
from torch import Tensor

from girsanov.endpoint import Endpoint
from girsanov.errors import GirsanovError
from girsanov.judging.cache import AnswerCache
from girsanov.judging.parsing import objects
from girsanov.judging.server import KEY_VARIABLE, completion, first_chances, image_part, said, text_part
from girsanov.rewards.base import Reward
from girsanov.rewards.jpeg import to_bytes
from girsanov.rewards.pixels import texts
from girsanov.rewards.wire import png_file
from girsanov.types import Prompts

QUESTION = (
    "Rate from {low} to {high} how well this image shows what the prompt asks for, and how good it looks: {low} is "
    "the worst, {high} the best."
)
NUMBER = r"(-?\d+(?:\.\d+)?)"
BRACKETS = re.compile(rf"\[\[\s*{NUMBER}\s*\]\]")
LINE = re.compile(rf"^\W*(?:(?:score|rating)\W+)?{NUMBER}(?:\s*/\s*\d+)?\W*$", re.IGNORECASE | re.MULTILINE)


def rating(words: str) -> float | None:
    """The last rating in a reply, or None."""
    if found := BRACKETS.findall(words):
        return float(found[-1])
    named = [o["score"] for o in objects(words) if isinstance(o.get("score"), int | float)]
    if named:
        return float(named[-1])
    lines = LINE.findall(words)
    return float(lines[-1]) if lines else None


def soft_rating(choice: dict[str, Any], low: float, high: float) -> float | None:
    """The mean digit of a reply by the first token's probabilities, or None if they hold no digit of the range."""
    chances = [(int(t), p) for t, p in first_chances(choice) if re.fullmatch(r"[0-9]", t) and low <= int(t) <= high]
    total = sum(p for _, p in chances)
    return sum(d * p for d, p in chances) / total if total > 0 else None


class VLMReward(Reward):
    """Ratings by a model behind a server.

    Args:
        url: of the API, with its version: ``http://127.0.0.1:8000/v1``.
        model: what the server calls the model.
        question: what to rate; ``{low}`` and ``{high}`` are filled in.
        low, high: the range of ratings.
        soft: the mean over the first token's probabilities.
        temperature, max_tokens: of the reply.
        attempts: how often a reply without a rating is asked for.
        workers: requests at once.
        timeout, retries, pause: see ``Endpoint``.
        cache: a folder for replies, or None.

    The server's token is ``GIRSANOV_JUDGE_TOKEN`` of the environment. Raises GirsanovError on settings out of range.
    """

    name = "vlm-judge"

    def __init__(
        self,
        url: str,
        model: str,
        question: str = QUESTION,
        low: float = 1.0,
        high: float = 10.0,
        soft: bool = False,
        temperature: float = 0.0,
        max_tokens: int = 256,
        attempts: int = 3,
        workers: int = 8,
        timeout: float = 120.0,
        retries: int = 4,
        pause: float = 1.0,
        cache: str | None = None,
    ) -> None:
        if min(attempts, workers, max_tokens) < 1 or not model or not low < high:
            raise GirsanovError("a judge needs a model's name, low < high, and attempts, workers, max_tokens >= 1")
        if soft and not (0 <= low and high <= 9):
            raise GirsanovError("soft ratings are single digits: set low and high between 0 and 9")
        self.url, self.model, self.question, self.low, self.high, self.soft = url, model, question, low, high, soft
        self.temperature, self.max_tokens, self.attempts, self.workers = temperature, max_tokens, attempts, workers
        self.timeout, self.retries, self.pause, self.cache = timeout, retries, pause, cache
        self.endpoint  # noqa: B018 (a wrong address is told before anything is asked)

    @property
    def endpoint(self) -> Endpoint:
        """The server."""
        secret = os.environ.get(KEY_VARIABLE)
        return Endpoint(
            self.url, "judge", self.timeout, self.retries, self.pause, secret, if_refused=f"set {KEY_VARIABLE}"
        )

    def prepare(self, device: torch.device | str = "cpu") -> None:
        """Asks whether the server is there. Raises GirsanovError if it is not, or refuses the token."""
        self.endpoint.reach("/models")

    def __call__(self, x: Tensor, prompts: Prompts) -> Tensor:
        """Ratings [B]; NaN where a reply held none. Raises GirsanovError if the server cannot be asked."""
        words = texts(prompts.meta, len(x), self.name)
        files = [png_file(image) for image in to_bytes(x).numpy()]
        with ThreadPoolExecutor(self.workers) as pool:
            waiting = [pool.submit(self.rated, text, file) for text, file in zip(words, files, strict=True)]
            try:
                ratings = [w.result() for w in waiting]
            except BaseException:
                for w in waiting:  # one server, one reason: do not ask on
                    w.cancel()
                raise
        return torch.tensor([float("nan") if r is None else r for r in ratings], device=x.device)

    def rated(self, text: str, file: bytes) -> float | None:
        """The rating of one image, or None."""
        for attempt in range(self.attempts):
            choice = completion(self.endpoint, self.request(text, file, attempt), AnswerCache(self.cache))
            found = soft_rating(choice, self.low, self.high) if self.soft else rating(said(choice))
            if found is not None and self.low <= found <= self.high:
                return found
        return None

    def request(self, text: str, file: bytes, attempt: int) -> dict[str, Any]:
        """The body of a request."""
        ends = "Reply with one digit and nothing else." if self.soft else "End with your rating, as in: [[7]]"
        question = self.question.replace("{low}", f"{self.low:g}").replace("{high}", f"{self.high:g}")
        parts = [text_part(f"{question}\n\nPrompt:\n{text}"), image_part(file), text_part(ends)]
        body = {
            "model": self.model,
            "messages": [{"role": "user", "content": parts}],
            "temperature": self.temperature,
            "seed": attempt,
        }
        if self.soft:
            return {**body, "max_tokens": 1, "logprobs": True, "top_logprobs": 20}
        return {**body, "max_tokens": self.max_tokens}
