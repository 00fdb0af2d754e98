"""A remote reward and its server, over a real connection: same scores, one sentence for each failure."""

import errno
import http.client
import json
import signal
import socket
import subprocess
import sys
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
import torch

from girsanov.errors import GirsanovError
from girsanov.rewards import load_reward
from girsanov.rewards.base import Reward
from girsanov.rewards.function import FunctionReward
from girsanov.rewards.pool import Drop, PooledReward
from girsanov.rewards.remote import RemoteReward
from girsanov.rewards.server import RewardServer
from girsanov.rewards.wire import floats, png, read_request, request
from girsanov.rewards.workers import Threads
from girsanov.types import Cond, Prompts


def ask(n, meta=None):
    cond = Cond({"label": 2 * torch.arange(n), "embedding": torch.randn(n, 3)}, torch.arange(n).flip(0))
    return Prompts(cond, torch.arange(n), torch.arange(n), tuple(range(n)) if meta is None else meta)


def images(n):
    return torch.rand(n, 3, 5, 4, generator=torch.Generator().manual_seed(0)) * 2 - 1


def sums(x, meta):
    return x.flatten(1).sum(1) + torch.tensor(meta)


SUMS = FunctionReward(sums, differentiable=False)


@pytest.fixture(autouse=True)
def no_token(monkeypatch):
    monkeypatch.delenv("GIRSANOV_REWARD_TOKEN", raising=False)


def test_the_server_gives_the_scores_of_the_reward():
    with RewardServer(SUMS) as server:
        for batch in (None, 1, 3):
            assert torch.equal(RemoteReward(server.url, batch=batch)(images(7), ask(7)), SUMS(images(7), ask(7)))
        assert torch.equal(load_reward(server.url)(images(3), ask(3)), SUMS(images(3), ask(3)))
        assert RemoteReward(server.url)(images(0), ask(0)).shape == (0,)
        connection = http.client.HTTPConnection(server.url.removeprefix("http://"), timeout=10)
        connection.request("GET", "/")
        assert json.loads(connection.getresponse().read()) == {"reward": "sums"}
        connection.close()


def test_labels_travel_and_embeddings_stay():
    class Labels(Reward):
        def __call__(self, x, prompts):
            assert list(prompts.cond.tables) == ["label"]
            return prompts.cond["label"]

    with RewardServer(Labels()) as server:
        assert RemoteReward(server.url)(images(4), ask(4)).tolist() == [6.0, 4.0, 2.0, 0.0]


def test_samples_survive_the_wire():
    x = torch.randn(3, 2, 2, dtype=torch.float64)
    got, prompts = read_request(request(x, ask(3, ({"text": "a"}, {"text": "b"}, None)), floats), 1000)
    assert torch.equal(got, x.float()) and prompts.meta == ({"text": "a"}, {"text": "b"}, None)
    for channels in (1, 3):
        x = images(3)[:, :channels]
        got, _ = read_request(request(x, ask(3), png), 1000)
        assert got.shape == x.shape and (got - x).abs().max() <= 1 / 255 + 1e-6


def test_several_requests_in_the_background():
    with (
        RewardServer(SUMS) as server,
        PooledReward(RemoteReward(server.url), workers=Threads(3), chunk=2) as pooled,
    ):
        torch.testing.assert_close(pooled(images(9), ask(9)), SUMS(images(9), ask(9)))


def test_two_clients_at_once_get_the_scores_of_their_own_samples():
    """Twenty requests each, of another number of samples every time."""
    wrong = []

    def ask_often(sign, url):
        for n in range(1, 21):
            x = sign * images(n)
            if not torch.equal(RemoteReward(url)(x, ask(n)), SUMS(x, ask(n))):
                wrong.append((sign, n))

    with RewardServer(SUMS) as server:
        clients = [threading.Thread(target=ask_often, args=(sign, server.url)) for sign in (1, -1)]
        for client in clients:
            client.start()
        for client in clients:
            client.join(60)
    assert wrong == []


def test_a_score_that_is_not_finite_comes_as_nan():
    bad = FunctionReward(lambda x, meta: [float("inf"), 1.0], "bad", differentiable=False)
    with RewardServer(bad) as server:
        assert RemoteReward(server.url)(images(2), ask(2)).isnan().tolist() == [True, False]
        with PooledReward(RemoteReward(server.url), on_failure=Drop()) as pooled:
            assert pooled(images(2), ask(2)).isnan().tolist() == [True, False]


def sentence(reward, n=2, meta=None):
    with pytest.raises(GirsanovError) as error:
        reward(images(n), ask(n, meta))
    return str(error.value)


def test_what_the_reward_does_wrong_is_said_here_and_not_asked_again():
    calls = []

    def breaks(x, meta):
        calls.append(len(x))
        raise KeyError("font")

    with RewardServer(FunctionReward(breaks, differentiable=False)) as server:
        said = f"the reward server {server.url} answered 422: the reward 'breaks' raised KeyError: 'font' "
        said += f"(test_reward_remote.py, line {breaks.__code__.co_firstlineno + 2})"
        assert sentence(RemoteReward(server.url)) == said
        assert calls == [2]
    with RewardServer(FunctionReward(lambda x, m: [1.0], "short", differentiable=False)) as server:
        assert sentence(RemoteReward(server.url)) == (
            f"the reward server {server.url} answered 422: the reward 'short' returned 1 scores for 2 samples: return "
            "one number a sample"
        )


def test_the_token(monkeypatch):
    with RewardServer(SUMS, token="open sesame") as server:
        refused = (
            f"the reward server {server.url} refused the token: set GIRSANOV_REWARD_TOKEN to the token of the server"
        )
        assert sentence(RemoteReward(server.url)) == refused
        assert sentence(RemoteReward(server.url, token="open barley")) == refused
        assert RemoteReward(server.url, token="open sesame")(images(2), ask(2)).shape == (2,)
        monkeypatch.setenv("GIRSANOV_REWARD_TOKEN", "open sesame")
        assert RemoteReward(server.url)(images(2), ask(2)).shape == (2,)


def test_other_machines_need_a_token():
    with pytest.raises(GirsanovError) as error:
        RewardServer(SUMS, host="0.0.0.0")
    assert str(error.value) == (
        "other machines can reach 0.0.0.0: set GIRSANOV_REWARD_TOKEN to a secret of yours, or listen on 127.0.0.1"
    )


def post(server, body, path="/score", **headers):
    connection = http.client.HTTPConnection(server.url.removeprefix("http://"), timeout=10)
    connection.request("POST", path, body, {"Content-Type": "application/json", **headers})
    response = connection.getresponse()
    found = response.status, json.loads(response.read())["error"]
    connection.close()
    return found


def test_requests_that_are_refused():
    with RewardServer(SUMS, max_bytes=4000) as server:
        small = request(images(1), ask(1), floats)
        assert post(server, small, "/other") == (404, "samples are scored at /score")
        assert post(server, small, **{"Content-Type": "text/plain"}) == (415, "a request is application/json")
        rebound = post(server, small, Host="evil.example:80")
        assert rebound == (403, "this server answers to the machine it runs on only")
        assert post(server, b"x" * 5000) == (
            413,
            "a request of 5000 bytes exceeds the limit of 4000: send fewer samples at a time with batch=, or start the "
            "server with a larger --max-mb",
        )
        wrong = {
            b"nonsense": "the request cannot be read: JSONDecodeError: Expecting value: line 1 column 1 (char 0)",
            b"[]": "the request cannot be read: TypeError: list indices must be integers or slices, not str",
            b"{}": "the request cannot be read: KeyError: 'shape'",
            b'{"shape": [100000, 100000], "data": ""}': "the request's samples of shape [100000, 100000] exceed 4000 "
            "bytes: ask for fewer at a time",
            b'{"shape": [2], "data": "AAAA"}': "the request cannot be read: ValueError: buffer size must be a multiple "
            "of element size",
            b'{"png": ["AAAA"]}': None,
            b'{"shape": [1], "data": "AAAAAA==", "meta": [1, 2]}': "the request has 1 samples and another number of "
            "prompts",
        }
        for body, expected in wrong.items():
            status, said = post(server, body)
            assert status == 400 and (said == expected or expected is None and "UnidentifiedImageError" in said)
        big = request(torch.zeros(1, 1, 40, 40), ask(1), png)
        assert len(big) < 4000  # 6400 bytes of pixels in a small file
        assert post(server, big)[1].startswith("the request's images exceed 4000 bytes")


def test_a_request_that_is_too_large_is_said_to_the_client():
    with RewardServer(SUMS, max_bytes=2**20) as server:
        x = torch.zeros(40, 3, 64, 64)
        with pytest.raises(GirsanovError, match="answered 413: a request of .* bytes exceeds the limit of 1048576"):
            RemoteReward(server.url)(x, ask(40))
        assert len(RemoteReward(server.url, batch=10)(x, ask(40))) == 40


def test_metadata_that_is_not_json():
    assert sentence(RemoteReward("http://127.0.0.1:1"), meta=(1, {2j})) == (
        "the prompts' metadata cannot travel to a reward server (Object of type set is not JSON serializable): keep it "
        "to numbers, text, lists and mappings"
    )


def free_port():
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return s.getsockname()[1]


def test_no_server():
    url = f"http://127.0.0.1:{free_port()}"
    start = time.perf_counter()
    said = sentence(RemoteReward(url, retries=2, pause=0.05))
    assert time.perf_counter() - start >= 0.15  # 0.05 and 0.1
    assert said == (
        f"the reward server {url} cannot be reached ([Errno {errno.ECONNREFUSED}] Connection refused; 3 tries): "
        "start it with girsanov serve-reward my_file.py:fn, or check the address"
    )


def test_a_server_that_takes_too_long():
    gate = threading.Event()
    slow = FunctionReward(lambda x, m: [float(gate.wait(20))] * len(x), "slow", differentiable=False)
    with RewardServer(slow) as server:
        assert sentence(RemoteReward(server.url, timeout=0.2, retries=0)) == (
            f"the reward server {server.url} gave no answer within 0.2 s (1 try): raise its timeout, or send fewer "
            "samples at a time with batch="
        )
        gate.set()


def test_a_busy_server_is_asked_again():
    gate = threading.Event()
    slow = FunctionReward(lambda x, m: [float(gate.wait(20))] * len(x), "slow", differentiable=False)
    with RewardServer(slow, waiting=1) as server, PooledReward(RemoteReward(server.url)) as first:
        pending = first.submit(images(1), ask(1))
        while server.room.acquire(blocking=False):  # until the first request is held
            server.room.release()
            time.sleep(0.01)
        assert sentence(RemoteReward(server.url, retries=0), 1) == (
            f"the reward server {server.url} answered 503: the server is busy: come again"
        )
        threading.Timer(0.2, gate.set).start()
        assert RemoteReward(server.url, retries=8, pause=0.1)(images(1), ask(1)).tolist() == [1.0]
        assert pending.result().tolist() == [[1.0]]


class Strange(BaseHTTPRequestHandler):
    """Not a reward server: greets, redirects, trickles, or answers for ever."""

    def do_POST(self):
        self.rfile.read(int(self.headers["Content-Length"]))
        kind = self.server.kind
        self.send_response(302 if kind == "redirect" else 200)
        self.send_header("Location", "http://127.0.0.1:1/elsewhere")
        self.end_headers()
        try:
            if kind == "greet":
                self.wfile.write(b"<html>hello</html>")
            while kind == "trickle":
                self.wfile.write(b" ")
                time.sleep(0.02)
            while kind == "flood":
                self.wfile.write(b" " * 2**20)
        except OSError:
            pass

    def log_message(self, *args):
        pass


@pytest.mark.parametrize(
    "kind, said",
    [
        ("greet", "the reward server URL answered with something that is not scores: is it a girsanov serve-reward?"),
        ("redirect", "the reward server URL answered 302: Found"),
        (
            "trickle",
            "the reward server URL gave no answer within 0.3 s (1 try): raise its timeout, or send fewer samples at a "
            "time with batch=",
        ),
        ("flood", "the reward server answered with more than 16777216 bytes: is it a reward server?"),
    ],
)
def test_something_else_answers(kind, said):
    server = ThreadingHTTPServer(("127.0.0.1", 0), Strange)
    server.kind, server.daemon_threads = kind, True
    thread = threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True)
    thread.start()
    try:
        url = f"http://127.0.0.1:{server.server_address[1]}"
        timeout = 0.3 if kind == "trickle" else 10
        assert sentence(RemoteReward(url, timeout=timeout, retries=0)) == said.replace("URL", url)
    finally:
        server.shutdown()
        server.server_close()
        thread.join(10)


@pytest.mark.parametrize(
    "wrong, said",
    [
        (
            lambda: RemoteReward("file:///etc/passwd"),
            "'file:///etc/passwd' is not the address of a reward server: write it as http://host:port",
        ),
        (
            lambda: RemoteReward("http://127.0.0.1:1", batch=0),
            "a remote reward needs a positive batch and timeout, and retries and pause of 0 or more",
        ),
    ],
)
def test_wrong_settings(wrong, said):
    with pytest.raises(GirsanovError) as error:
        wrong()
    assert str(error.value) == said


def test_the_command_serves_a_function_until_it_is_interrupted(tmp_path, interrupts):
    """Ctrl-C is a normal end: exit code 0."""
    (tmp_path / "mine.py").write_text("def fn(images, labels):\n    return images.flatten(1).sum(1)\n")
    command = [sys.executable, "-m", "girsanov.cli", "serve-reward", str(tmp_path / "mine.py") + ":fn", "--port", "0"]
    server = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    try:
        said = server.stdout.readline()
        assert said.startswith("serving the reward 'fn' at http://127.0.0.1:")
        assert said.endswith(" without a token, to this machine only; stop with Ctrl-C\n")
        url = said.split(" at ")[1].split()[0]
        torch.testing.assert_close(RemoteReward(url)(images(3), ask(3)), images(3).flatten(1).sum(1))
        server.send_signal(signal.SIGINT)
        assert server.wait(20) == 0 and server.stdout.read() == "stopped\n"
    finally:
        server.kill()
        server.wait(10)
        server.stdout.close()


def test_a_taken_port():
    with RewardServer(SUMS) as server:
        port = server.http.server_address[1]
        with pytest.raises(GirsanovError, match=f"cannot listen on 127.0.0.1:{port} .*: choose another --port"):
            RewardServer(SUMS, port=port)
