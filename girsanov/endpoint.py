"""A server that is asked over HTTP: bounded answers, time limits, tries again where that can help.

A connection that fails, an answer that takes too long and a server that is busy are tried again after a pause that
doubles (or that the server names); a refusal is not. A redirect counts as a refusal: it would carry the secret to
another host. This machine is never behind a proxy.
"""

import http.client
import ipaddress
import json
import time
import urllib.error
import urllib.parse
import urllib.request
from dataclasses import dataclass, field
from typing import Any

from girsanov.errors import GirsanovError

MAX_ANSWER = 16 * 2**20
LONGEST_PAUSE = 30.0
AGAIN = (408, 429, 500, 502, 503, 504)  # states of a server that may pass


def is_loopback(host: str) -> bool:
    """Whether a host name or address is this machine only."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


class Refused(GirsanovError):
    """An answer that is an error of HTTP.

    Attributes:
        code: its number.
    """

    def __init__(self, code: int, sentence: str) -> None:
        super().__init__(sentence)
        self.code = code


@dataclass(frozen=True)
class Endpoint:
    """The address of a server and how to ask it.

    Attributes:
        url: ``http://`` or ``https://`` address, without a slash at its end.
        what: what messages call it, "reward server".
        timeout: seconds a request may take.
        retries: further tries.
        pause: seconds before the first of them; doubles each time, up to 30.
        secret: bearer token, or None.
        if_absent, if_slow, if_refused: the ends of the sentences for a server that cannot be reached, takes too long or
            refuses the secret: what to do about it.
    """

    url: str
    what: str
    timeout: float = 60.0
    retries: int = 2
    pause: float = 0.5
    secret: str | None = field(default=None, repr=False)
    if_absent: str = "check the address"
    if_slow: str = "raise its timeout"
    if_refused: str = "check the token"

    def __post_init__(self) -> None:
        parts = urllib.parse.urlsplit(self.url)
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise GirsanovError(f"{self.url!r} is not the address of a {self.what}: write it as http://host:port")
        if self.timeout <= 0 or self.retries < 0 or self.pause < 0:
            raise GirsanovError(f"a {self.what} needs a positive timeout, and retries and pause of 0 or more")
        object.__setattr__(self, "url", self.url.rstrip("/"))

    @property
    def local(self) -> bool:
        """Whether it is on this machine."""
        return is_loopback(urllib.parse.urlsplit(self.url).hostname or "")

    def post(self, path: str, body: bytes) -> bytes:
        """The answer to a JSON body. Raises GirsanovError in one sentence when there is none."""
        return self._ask(path, body)

    def reach(self, path: str) -> None:
        """Raises GirsanovError if nothing answers, or the secret is refused; any other answer will do."""
        try:
            self._ask(path, None)
        except Refused as refusal:
            if refusal.code in (401, 403, *AGAIN):
                raise

    def _ask(self, path: str, body: bytes | None) -> bytes:
        """The answer to a POST, or to a GET where there is no body."""
        tries = f"{self.retries + 1} tries" if self.retries else "1 try"
        error: GirsanovError
        wait = 0.0
        for attempt in range(self.retries + 1):
            if attempt:
                time.sleep(min(LONGEST_PAUSE, max(wait, self.pause * 2 ** (attempt - 1))))
            wait = 0.0
            try:
                return self._once(path, body)
            except urllib.error.HTTPError as refusal:
                error, wait = self._refusal(refusal), asked_wait(refusal)
                if refusal.code not in AGAIN:
                    break
            except TimeoutError:
                error = GirsanovError(
                    f"the {self.what} {self.url} gave no answer within {self.timeout:g} s ({tries}): {self.if_slow}"
                )
            except (OSError, http.client.HTTPException) as failure:
                reason = getattr(failure, "reason", failure)
                if isinstance(reason, TimeoutError):
                    reason = f"no connection within {self.timeout:g} s"
                error = GirsanovError(
                    f"the {self.what} {self.url} cannot be reached ({reason}; {tries}): {self.if_absent}"
                )
        raise error

    def _once(self, path: str, body: bytes | None) -> bytes:
        headers = {"Content-Type": "application/json"}
        if self.secret:
            headers["Authorization"] = f"Bearer {self.secret}"
        handlers: list[Any] = [_NoRedirect]
        if self.local:
            handlers.append(urllib.request.ProxyHandler({}))
        call = urllib.request.Request(f"{self.url}{path}", body, headers, method="GET" if body is None else "POST")
        with urllib.request.build_opener(*handlers).open(call, timeout=self.timeout) as response:
            return read_within(response, self.timeout, self.what)

    def _refusal(self, refusal: urllib.error.HTTPError) -> "Refused":
        if refusal.code == 401:
            return Refused(401, f"the {self.what} {self.url} refused the token: {self.if_refused}")
        try:
            said = json.loads(refusal.read(65536))["error"]
            sentence = said["message"] if isinstance(said, dict) else said
        except (ValueError, KeyError, TypeError, OSError):
            sentence = refusal.reason or "no reason given"
        return Refused(refusal.code, f"the {self.what} {self.url} answered {refusal.code}: {sentence}")


def asked_wait(refusal: urllib.error.HTTPError) -> float:
    """The seconds that a busy server asks to wait, or 0."""
    try:
        return max(0.0, float(refusal.headers.get("Retry-After", 0)))
    except (TypeError, ValueError):
        return 0.0


class _NoRedirect(urllib.request.HTTPRedirectHandler):
    """A redirect counts as a refusal."""

    def redirect_request(self, *args: Any) -> None:
        return None


def read_within(response: Any, seconds: float, what: str) -> bytes:
    """A body of bounded size in bounded time, however slowly it comes. Raises TimeoutError or GirsanovError."""
    end, parts, size = time.monotonic() + seconds, list[bytes](), 0
    while part := response.read1(65536):
        parts.append(part)
        size += len(part)
        if size > MAX_ANSWER:
            raise GirsanovError(f"the {what} answered with more than {MAX_ANSWER} bytes: is it a {what}?")
        if time.monotonic() > end:
            raise TimeoutError
    return b"".join(parts)
