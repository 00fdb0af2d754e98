"""The server of a remote reward: ``girsanov serve-reward my_file.py:fn --port 8000``.

It listens on this machine only, unless told otherwise, and then it wants a token (``GIRSANOV_REWARD_TOKEN``). Requests
are JSON of bounded size (``wire.py``), scored one at a time; a few may wait, more are told to come again.
"""

import hmac
import json
import logging
import os
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, ClassVar
from urllib.parse import urlsplit

import torch

from girsanov.endpoint import is_loopback
from girsanov.errors import GirsanovError
from girsanov.rewards.base import Reward
from girsanov.rewards.calls import as_call
from girsanov.rewards.scores import told
from girsanov.rewards.wire import TOKEN_VARIABLE, answer, read_request

log = logging.getLogger("girsanov")
MAX_DRAINED = 2**30  # a larger request that is refused sees its connection closed instead of a sentence


class Refusal(Exception):
    """A request that is not answered with scores: HTTP status and sentence."""

    def __init__(self, status: int, sentence: str) -> None:
        super().__init__(sentence)
        self.status = status


class RewardServer:
    """Serves a reward in threads of this process.

    Args:
        reward: any reward; it is given samples on the host and is called from one thread at a time.
        host: address to listen on. Other machines can only reach it if this is not a loopback address.
        port: 0 takes a free one.
        token: what clients must send; ``GIRSANOV_REWARD_TOKEN`` of the environment by default.
        max_bytes: size limit of a request.
        waiting: requests that may be held at a time.
        timeout: seconds a client may take to send its request.

    Raises GirsanovError if the address is taken, or other machines could reach it without a token.
    """

    def __init__(
        self,
        reward: Reward,
        *,
        host: str = "127.0.0.1",
        port: int = 0,
        token: str | None = None,
        max_bytes: int = 256 * 2**20,
        waiting: int = 16,
        timeout: float = 60.0,
    ) -> None:
        self.reward, self.call = reward, as_call(reward)
        self.token = (os.environ.get(TOKEN_VARIABLE) if token is None else token) or None
        self.max_bytes = max_bytes
        self.room, self.turn = threading.BoundedSemaphore(waiting), threading.Lock()
        if self.token is None and not is_loopback(host):
            raise GirsanovError(
                f"other machines can reach {host}: set {TOKEN_VARIABLE} to a secret of yours, or listen on 127.0.0.1"
            )
        handler = type("BoundHandler", (Handler,), {"owner": self, "timeout": timeout})
        try:
            self.http = ThreadingHTTPServer((host, port), handler)
        except (OSError, OverflowError) as error:
            raise GirsanovError(f"cannot listen on {host}:{port} ({error}): choose another --port") from error
        self.http.daemon_threads = True
        self.thread: threading.Thread | None = None

    @property
    def url(self) -> str:
        """The address of the server."""
        host, port = self.http.server_address[:2]
        return f"http://{host!s}:{port}"

    def serve(self) -> None:
        """Answers until ``close`` is called or an interrupt comes."""
        try:
            self.http.serve_forever(poll_interval=0.1)
        finally:
            self.http.server_close()

    def __enter__(self) -> "RewardServer":
        """Serves in a thread."""
        self.thread = threading.Thread(target=self.serve, daemon=True)
        self.thread.start()
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def close(self) -> None:
        """Stops listening; requests under way are left to end."""
        if self.thread is None:
            self.http.server_close()
            return
        self.http.shutdown()
        self.thread.join(10)
        self.thread = None

    def score(self, body: bytes) -> bytes:
        """The answer to a request. Raises Refusal."""
        try:
            x, prompts = read_request(body, self.max_bytes)
        except GirsanovError as error:
            raise Refusal(400, str(error)) from error
        try:
            with self.turn, torch.no_grad():
                return answer(self.call(x, prompts))
        except GirsanovError as error:
            raise Refusal(422, str(error)) from error
        except Exception as error:
            log.exception("the reward %r raised", self.reward.name)
            raise Refusal(422, f"the reward {self.reward.name!r} raised {told(error)}") from error


class Handler(BaseHTTPRequestHandler):
    """One connection."""

    owner: ClassVar[RewardServer]
    unread = 0
    server_version, sys_version = "girsanov", ""

    def do_GET(self) -> None:
        """The name of the reward, to see whether the server is up."""
        self.reply(self.name)

    def do_POST(self) -> None:
        """Scores."""
        length = self.headers.get("Content-Length", "")
        self.unread = int(length) if length.isdigit() and int(length) <= MAX_DRAINED else 0
        self.reply(self.scores)

    def reply(self, respond: Any) -> None:
        """Sends what ``respond`` gives, or the sentence of its refusal."""
        try:
            self.admit()
            status, body = 200, respond()
        except Refusal as refusal:
            status, body = refusal.status, json.dumps({"error": str(refusal)}).encode()
            self.drain()
        try:
            self.send_response(status)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)
        except OSError:
            log.debug("the client was gone before it was answered")

    def drain(self) -> None:
        """Reads past the rest of a refused request: a client listens only after it has sent everything."""
        try:
            while self.unread > 0 and (part := self.rfile.read(min(self.unread, 2**16))):
                self.unread -= len(part)
        except OSError:
            log.debug("the client was gone before it had sent its request")

    def admit(self) -> None:
        """Raises Refusal unless the client has the token; without one, it must call this machine by its name."""
        if self.owner.token is not None:
            sent = self.headers.get("Authorization", "").encode()
            if not hmac.compare_digest(sent, f"Bearer {self.owner.token}".encode()):
                raise Refusal(401, "the token is missing or wrong")
        elif not is_loopback(urlsplit(f"//{self.headers.get('Host', '')}").hostname or ""):
            raise Refusal(403, "this server answers to the machine it runs on only")  # a web page's rebound name

    def name(self) -> bytes:
        """``{"reward": name}``."""
        return json.dumps({"reward": self.owner.reward.name}).encode()

    def scores(self) -> bytes:
        """The scores of the request's samples."""
        if self.path != "/score":
            raise Refusal(404, "samples are scored at /score")
        if self.headers.get_content_type() != "application/json":
            raise Refusal(415, "a request is application/json")
        length = self.headers.get("Content-Length", "")
        if not length.isdigit():
            raise Refusal(411, "a request says its Content-Length")
        if int(length) > self.owner.max_bytes:
            raise Refusal(
                413,
                f"a request of {length} bytes exceeds the limit of {self.owner.max_bytes}: send fewer samples at a "
                "time with batch=, or start the server with a larger --max-mb",
            )
        if not self.owner.room.acquire(blocking=False):
            raise Refusal(503, "the server is busy: come again")
        try:
            body, self.unread = self.rfile.read(int(length)), 0
            if len(body) < int(length):
                raise Refusal(400, "the request ended early")
            return self.owner.score(body)
        except TimeoutError:
            raise Refusal(408, "the request came too slowly") from None
        finally:
            self.owner.room.release()

    def log_message(self, format: str, *args: Any) -> None:
        """Into the log, at the level of details."""
        log.debug(format, *args)


def serve_reward(reward: Reward, host: str = "127.0.0.1", port: int = 8000, max_mb: int = 256) -> None:
    """Serves a reward, which is loaded first, until it is interrupted; prints the address.

    The token comes from the environment.
    """
    reward.prepare("cpu")
    server = RewardServer(reward, host=host, port=port, max_bytes=max_mb * 2**20)
    guarded = "with a token" if server.token else "without a token, to this machine only"
    print(f"serving the reward {reward.name!r} at {server.url} {guarded}; stop with Ctrl-C", flush=True)
    try:
        server.serve()
    except KeyboardInterrupt:
        print("stopped")
