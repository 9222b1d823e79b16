"""A receiver of callouts: real HTTP on 127.0.0.1, with the answers of a test."""

from __future__ import annotations

import contextlib
import json
import threading
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator


@dataclass
class Received:
    path: str
    method: str
    headers: dict[str, str]
    body: bytes

    @property
    def json(self) -> Any:
        return json.loads(self.body)


@dataclass
class Answer:
    status: int = 200
    body: bytes = b'{"success": true}'
    headers: dict[str, str] = field(default_factory=dict)
    wait_for: threading.Event | None = None
    reset: bool = False


@dataclass
class Receiver:
    url: str = ""
    received: list[Received] = field(default_factory=list)
    answer: Callable[[Received], Answer] = lambda received: Answer()
    most_at_once: int = 0
    _open: int = 0

    def answers(self, *statuses: int) -> None:
        """Answer with these statuses, one after the other; the last one repeats."""
        left = list(statuses)
        self.answer = lambda received: Answer(left.pop(0) if len(left) > 1 else left[0])


@contextmanager
def running_receiver() -> Iterator[Receiver]:
    receiver, lock = Receiver(), threading.Lock()

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["Content-Length"]))
            received = Received(self.path, self.command, dict(self.headers), body)
            with lock:
                receiver._open += 1
                receiver.most_at_once = max(receiver.most_at_once, receiver._open)
                receiver.received.append(received)
                answer = receiver.answer(received)
            if answer.wait_for is not None:
                answer.wait_for.wait(10)
            with lock:
                receiver._open -= 1
            if answer.reset:
                self.close_connection = True
                return
            self.send_response(answer.status)
            for name, value in answer.headers.items():
                self.send_header(name, value)
            self.send_header("Content-Length", str(len(answer.body)))
            self.end_headers()
            self.wfile.write(answer.body)

        def log_message(self, *args: Any) -> None: ...

        def handle(self) -> None:
            with contextlib.suppress(ConnectionError):  # the simulator gave up: that is what some tests are about
                super().handle()

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True)
    thread.start()
    receiver.url = f"http://127.0.0.1:{server.server_port}/callouts"
    try:
        yield receiver
    finally:
        server.shutdown()
        thread.join()
        server.server_close()
