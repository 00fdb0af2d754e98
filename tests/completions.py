"""A real server of chat completions on this machine, for tests of what asks one."""

import json
import threading
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer


class Model(BaseHTTPRequestHandler):
    """Answers with what ``server.answer(body, count)`` says, and keeps what it was asked."""

    protocol_version = "HTTP/1.1"

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        server = self.server
        with server.lock:
            server.requests.append((self.path, dict(self.headers), body))
            count = len(server.requests)
        status, reply, head = server.answer(body, count)
        data = json.dumps(reply).encode()
        self.send_response(status)
        for name, value in {**head, "Content-Length": str(len(data))}.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, *args: object) -> None:
        pass


def said(text: str, **more: object) -> tuple[int, dict, dict]:
    return 200, {"choices": [{"message": {"role": "assistant", "content": text}, **more}]}, {}


@contextmanager
def completions():
    """Starts servers: ``start(answer)``, with ``answer(body, count) -> (status, reply, headers)``."""
    servers = []

    def start(answer):
        server = ThreadingHTTPServer(("127.0.0.1", 0), Model)
        server.answer, server.requests, server.lock, server.daemon_threads = answer, [], threading.Lock(), True
        thread = threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True)
        thread.start()
        servers.append((server, thread))
        server.url = f"http://127.0.0.1:{server.server_address[1]}/v1"
        return server

    try:
        yield start
    finally:
        for server, thread in servers:
            server.shutdown()
            server.server_close()
            thread.join(10)
