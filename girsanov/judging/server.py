r"""A language or vision-language model as judge, behind an OpenAI-compatible server (``POST URL/chat/completions``).

The request holds the question, both answers (pictures as data URLs) and how to end the reply. Several are under way at
once; busy servers are asked again (``girsanov/endpoint.py``). A reply without a verdict is asked for again with another
seed, ``attempts`` times in all; what is unusable then has no value and leaves the statistics. Every reply is cached on
disk by its request.

*Soft verdicts.* With ``soft`` the verdict is one word, A or B, and its value is ``P(A) / (P(A) + P(B))`` from the
log-probs of the first token, which most servers give: a probability instead of a coin, and no tie is needed.

Reference: Zheng et al. 2023, arXiv:2306.05685 (judging by language models).
"""

import base64
import json
import math
import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any, ClassVar

from girsanov.endpoint import Endpoint
from girsanov.errors import GirsanovError
from girsanov.judging.base import Answer, Comparison, PairJudge, Verdict
from girsanov.judging.cache import AnswerCache
from girsanov.judging.parsing import Brackets, Reader

KEY_VARIABLE = "GIRSANOV_JUDGE_TOKEN"
SYSTEM = (
    "You compare two answers to the same prompt. Judge what was asked for: correctness, helpfulness and quality. The "
    "order in which the answers are shown means nothing, and a longer answer is not a better one."
)
SOFT = "Reply with one letter and nothing else: A if answer A is better, B if answer B is better."


@dataclass(frozen=True)
class ServerJudge(PairJudge):
    """A model behind a server.

    Attributes:
        url: of the API, with its version: ``http://127.0.0.1:8000/v1``.
        model: what the server calls the model.
        system: how to judge.
        reader: how verdicts are read.
        soft: read a probability from the log-probs instead.
        temperature, max_tokens: of the judge's reply.
        attempts: how often a reply without verdict is asked for.
        workers: requests at once.
        timeout, retries, pause: see ``Endpoint``.
        cache: a folder for replies, or None.
        token: what the server asks for; ``GIRSANOV_JUDGE_TOKEN`` of the environment by default.
    """

    url: str
    model: str
    system: str = SYSTEM
    reader: Reader = Brackets()
    soft: bool = False
    temperature: float = 0.0
    max_tokens: int = 512
    attempts: int = 3
    workers: int = 4
    timeout: float = 120.0
    retries: int = 4
    pause: float = 1.0
    cache: str | None = None
    token: str | None = field(default=None, repr=False)

    name: ClassVar[str] = "server"

    def __post_init__(self) -> None:
        if min(self.attempts, self.workers, self.max_tokens) < 1 or not self.model:
            raise GirsanovError("a judge needs a model's name, and attempts, workers and max_tokens of 1 or more")
        self.endpoint  # noqa: B018 (a wrong address is told before anything is asked)

    @property
    def endpoint(self) -> Endpoint:
        """The server."""
        secret = os.environ.get(KEY_VARIABLE) if self.token is None else self.token
        return Endpoint(
            self.url, "judge", self.timeout, self.retries, self.pause, secret, if_refused=f"set {KEY_VARIABLE}"
        )

    def __call__(self, comparisons: Sequence[Comparison]) -> list[Verdict]:
        """One verdict a comparison. Raises GirsanovError if the server cannot be asked."""
        with ThreadPoolExecutor(self.workers) as pool:
            waiting = [pool.submit(self._judged, c) for c in comparisons]
            try:
                return [w.result() for w in waiting]
            except BaseException:
                for w in waiting:  # one server, one reason: do not ask on
                    w.cancel()
                raise

    def _judged(self, comparison: Comparison) -> Verdict:
        words = ""
        for attempt in range(self.attempts):
            choice = self.ask(comparison, attempt)
            words = said(choice)
            value = soft_value(choice) if self.soft else self.reader(words)
            if value is not None:
                return Verdict(value, reason=words)
        return Verdict(None, reason=words or "the judge said nothing")

    def ask(self, comparison: Comparison, attempt: int = 0) -> dict[str, Any]:
        """The server's choice for one request, from the cache if it is there."""
        return completion(self.endpoint, self.request(comparison, attempt), AnswerCache(self.cache))

    def request(self, comparison: Comparison, attempt: int = 0) -> dict[str, Any]:
        """The body of a request."""
        messages = [{"role": "system", "content": self.system}, {"role": "user", "content": self._question(comparison)}]
        body: dict[str, Any] = {"model": self.model, "messages": messages, "temperature": self.temperature}
        if self.soft:
            return {**body, "max_tokens": 1, "logprobs": True, "top_logprobs": 20, "seed": attempt}
        return {**body, "max_tokens": self.max_tokens, "seed": attempt}

    def _question(self, comparison: Comparison) -> str | list[dict[str, Any]]:
        asks = SOFT if self.soft else self.reader.asks
        parts: list[dict[str, Any]] = [text_part(f"Prompt:\n{comparison.prompt}")]
        for letter, answer in (("A", comparison.a), ("B", comparison.b)):
            parts += shown(letter, answer)
        parts.append(text_part(asks))
        if all(p["type"] == "text" for p in parts):  # servers of text models take a string
            return "\n\n".join(p["text"] for p in parts)
        return parts


def completion(endpoint: Endpoint, body: dict[str, Any], cache: AnswerCache) -> dict[str, Any]:
    """The server's first choice for a request, from the cache if it is there.

    Raises GirsanovError if the server cannot be asked, or speaks no chat completions.
    """
    asked = json.dumps(body, sort_keys=True).encode()
    kept = f"{endpoint.url} ".encode() + asked
    choice = cache.get(kept)
    if choice is None:
        answer = endpoint.post("/chat/completions", asked)
        try:
            choice = json.loads(answer)["choices"][0]
            choice["message"]["content"]  # noqa: B018
        except (ValueError, KeyError, TypeError, IndexError) as error:
            raise GirsanovError(
                f"the {endpoint.what} {endpoint.url} answered with something that is no chat completion: give the "
                "address of an OpenAI-compatible API, as in http://127.0.0.1:8000/v1"
            ) from error
        cache.put(kept, choice)
    return choice


def said(choice: dict[str, Any]) -> str:
    """The words of a choice."""
    return str((choice.get("message") or {}).get("content") or "")


def text_part(text: str) -> dict[str, Any]:
    """A part of a message that is text."""
    return {"type": "text", "text": text}


def image_part(file: bytes) -> dict[str, Any]:
    """A part of a message that is a picture, the bytes of a PNG or JPEG file, as a data URL."""
    kind = "jpeg" if file.startswith(b"\xff\xd8") else "png"
    data = base64.b64encode(file).decode()
    return {"type": "image_url", "image_url": {"url": f"data:image/{kind};base64,{data}"}}


def shown(letter: str, answer: Answer) -> list[dict[str, Any]]:
    """An answer as parts of a message, fenced so that its text is not taken for instructions."""
    parts = [text_part(f"[Answer {letter}]\n{answer.text}".rstrip())]
    if answer.image is not None:
        parts.append(image_part(answer.image))
    return [*parts, text_part(f"[End of answer {letter}]")]


def first_chances(choice: dict[str, Any]) -> list[tuple[str, float]]:
    """The likeliest first tokens of a reply, stripped, and their probabilities; none where the server tells none."""
    try:
        tokens = choice["logprobs"]["content"][0]["top_logprobs"]
        return [(str(t["token"]).strip(), math.exp(float(t["logprob"]))) for t in tokens]
    except (KeyError, TypeError, IndexError, ValueError):
        return []


def soft_value(choice: dict[str, Any]) -> float | None:
    """``P(A) / (P(A) + P(B))`` from the first token's log-probs, or None if they hold neither letter."""
    chances = [(token.upper(), p) for token, p in first_chances(choice)]
    a, b = (sum(p for token, p in chances if token == letter) for letter in "AB")
    return a / (a + b) if a + b > 0 else None
