"""A reward that lives on a server (``girsanov serve-reward``, or anything that speaks ``wire.py``).

Calls block; in a pool, ``PooledReward(RemoteReward(url), workers=Threads(4), chunk=32)``, several are under way while
the next samples are rolled out. What is tried again, and what counts as a refusal, is in ``girsanov/endpoint.py``.
"""

import os

import torch
from torch import Tensor

from girsanov.endpoint import Endpoint
from girsanov.errors import GirsanovError
from girsanov.rewards.base import Reward
from girsanov.rewards.scores import as_scores
from girsanov.rewards.wire import TOKEN_VARIABLE, Encoding, floats, read_answer, request
from girsanov.types import Prompts


class RemoteReward(Reward):
    """A black-box reward behind HTTP.

    Args:
        url: ``http://`` or ``https://`` address of the server.
        batch: samples a request; None sends all at once.
        timeout: seconds a request may take.
        retries: further tries.
        pause: seconds before the first of them; doubles each time, up to 30.
        token: what the server asks for; ``GIRSANOV_REWARD_TOKEN`` of the environment by default.
        encode: ``floats`` (exact) or ``png`` (smaller).
        name: what messages call it.
    """

    def __init__(
        self,
        url: str,
        *,
        batch: int | None = None,
        timeout: float = 60.0,
        retries: int = 2,
        pause: float = 0.5,
        token: str | None = None,
        encode: Encoding = floats,
        name: str = "remote",
    ) -> None:
        if (batch is not None and batch < 1) or timeout <= 0 or retries < 0 or pause < 0:
            raise GirsanovError(
                "a remote reward needs a positive batch and timeout, and retries and pause of 0 or more"
            )
        self.endpoint = Endpoint(
            url,
            "reward server",
            timeout=timeout,
            retries=retries,
            pause=pause,
            secret=os.environ.get(TOKEN_VARIABLE) if token is None else token,
            if_absent="start it with girsanov serve-reward my_file.py:fn, or check the address",
            if_slow="raise its timeout, or send fewer samples at a time with batch=",
            if_refused=f"set {TOKEN_VARIABLE} to the token of the server",
        )
        self.url, self.batch, self.timeout, self.retries, self.pause = self.endpoint.url, batch, timeout, retries, pause
        self.token = None  # the secret stays out of what a run writes down about its parts
        self.encode, self.name = encode, name

    def prepare(self, device: torch.device | str = "cpu") -> None:
        """Asks whether the server is there. Raises GirsanovError if it is not, or refuses the token."""
        self.endpoint.reach("/")

    def __call__(self, x: Tensor, prompts: Prompts) -> Tensor:
        """The server's scores [B]; NaN where it has none. Raises GirsanovError if it cannot be asked."""
        found = list[float]()
        for rows in torch.arange(len(x)).split(self.batch or max(1, len(x))):
            body = request(x[rows.to(x.device)], prompts.take(rows), self.encode)
            found += as_scores(self._ask(body), len(rows), self.name).tolist()
        return torch.tensor(found, dtype=torch.float32, device=x.device)

    def _ask(self, body: bytes) -> list[float]:
        got = self.endpoint.post("/score", body)
        try:
            return read_answer(got)
        except (ValueError, TypeError) as error:
            raise GirsanovError(
                f"the reward server {self.url} answered with something that is not scores: is it a girsanov "
                "serve-reward?"
            ) from error
