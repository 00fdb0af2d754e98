"""A reward that lives on a server (``girsanov serve-reward``, or anything that speaks ``wire.py``).

Calls block; in a pool, ``PooledReward(RemoteReward(url), workers=Threads(4), chunk=32)``, several are under way while
the next samples are rolled out. A connection that fails, an answer that takes too long and a server that is busy are
tried again after a pause that doubles; a refusal is not.
"""

import http.client
import ipaddress
import json
import os
import time
import urllib.error
import urllib.parse
import urllib.request
from typing import Any

import torch
from torch import Tensor

from girsanov.errors import GirsanovError
from girsanov.rewards.base import Reward
from girsanov.rewards.scores import as_scores
from girsanov.rewards.wire import TOKEN_VARIABLE, Encoding, floats, read_answer, request
from girsanov.types import Prompts

MAX_ANSWER = 16 * 2**20
AGAIN = (408, 429, 500, 502, 503, 504)  # states of a server that may pass


def is_loopback(host: str) -> bool:
    """Whether a host name or address is this machine only."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


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
        parts = urllib.parse.urlsplit(url)
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise GirsanovError(f"{url!r} is not the address of a reward server: write it as http://host:port")
        if (batch is not None and batch < 1) or timeout <= 0 or retries < 0 or pause < 0:
            raise GirsanovError(
                "a remote reward needs a positive batch and timeout, and retries and pause of 0 or more"
            )
        self.url, self.local = url.rstrip("/"), is_loopback(parts.hostname)
        self.batch, self.timeout, self.retries, self.pause = batch, timeout, retries, pause
        # the secret stays out of what a run writes down about its parts
        self.token, self._secret = None, os.environ.get(TOKEN_VARIABLE) if token is None else token
        self.encode, self.name = encode, name

    def __call__(self, x: Tensor, prompts: Prompts) -> Tensor:
        """The server's scores [B]; NaN where it has none. Raises GirsanovError if it cannot be asked."""
        found = list[float]()
        for rows in torch.arange(len(x)).split(self.batch or max(1, len(x))):
            body = request(x[rows.to(x.device)], prompts.take(rows), self.encode)
            found += as_scores(self._ask(body), len(rows), self.name).tolist()
        return torch.tensor(found, dtype=torch.float32, device=x.device)

    def _ask(self, body: bytes) -> list[float]:
        tries = f"{self.retries + 1} tries" if self.retries else "1 try"
        for attempt in range(self.retries + 1):
            if attempt:
                time.sleep(min(30.0, self.pause * 2 ** (attempt - 1)))
            try:
                return self._once(body)
            except urllib.error.HTTPError as refusal:
                error = self._refusal(refusal)
                if refusal.code not in AGAIN:
                    break
            except TimeoutError:
                error = GirsanovError(
                    f"the reward server {self.url} gave no answer within {self.timeout:g} s ({tries}): raise its "
                    "timeout, or send fewer samples at a time with batch="
                )
            except (OSError, http.client.HTTPException) as failure:
                reason = getattr(failure, "reason", failure)
                if isinstance(reason, TimeoutError):
                    reason = f"no connection within {self.timeout:g} s"
                error = GirsanovError(
                    f"the reward server {self.url} cannot be reached ({reason}; {tries}): start it with girsanov "
                    "serve-reward my_file.py:fn, or check the address"
                )
        raise error

    def _once(self, body: bytes) -> list[float]:
        headers = {"Content-Type": "application/json"}
        if self._secret:
            headers["Authorization"] = f"Bearer {self._secret}"
        handlers: list[Any] = [_NoRedirect]
        if self.local:
            handlers.append(urllib.request.ProxyHandler({}))  # this machine is never behind a proxy
        call = urllib.request.Request(f"{self.url}/score", body, headers, method="POST")
        with urllib.request.build_opener(*handlers).open(call, timeout=self.timeout) as response:
            got = read_within(response, self.timeout)
        try:
            return read_answer(got)
        except (ValueError, TypeError) as error:
            raise GirsanovError(
                f"the reward server {self.url} answered with something that is not scores: is it a girsanov "
                "serve-reward?"
            ) from error

    def _refusal(self, refusal: urllib.error.HTTPError) -> GirsanovError:
        if refusal.code == 401:
            return GirsanovError(
                f"the reward server {self.url} refused the token: set {TOKEN_VARIABLE} to the token of the server"
            )
        try:
            sentence = json.loads(refusal.read(65536))["error"]
        except (ValueError, KeyError, TypeError, OSError):
            sentence = refusal.reason or "no reason given"
        return GirsanovError(f"the reward server {self.url} answered {refusal.code}: {sentence}")


class _NoRedirect(urllib.request.HTTPRedirectHandler):
    """A redirect would carry the token to another host: it counts as a refusal."""

    def redirect_request(self, *args: Any) -> None:
        return None


def read_within(response: Any, seconds: float) -> bytes:
    """A body of bounded size in bounded time, however slowly it comes. Raises TimeoutError or GirsanovError."""
    end, parts, size = time.monotonic() + seconds, list[bytes](), 0
    while part := response.read1(65536):
        parts.append(part)
        size += len(part)
        if size > MAX_ANSWER:
            raise GirsanovError(f"the reward server answered with more than {MAX_ANSWER} bytes: is it a reward server?")
        if time.monotonic() > end:
            raise TimeoutError
    return b"".join(parts)
