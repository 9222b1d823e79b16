"""A stand-in for Zuora with scripted answers, and both hooks behind one interface."""

from __future__ import annotations

import asyncio
import http.server
import json
import socket
import struct
import threading
import time
from collections import Counter
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any

import pytest

from airflow_mediation_provider.hooks import mediation, tokens
from airflow_mediation_provider.protocol.zuora import flow as exchange

CLIENT_SECRET = "client-secret-that-must-stay-one"
TOKEN = "access-token-that-must-stay-one"


@dataclass
class Answer:
    """An answer; ``how`` is plain, reset, hang (no byte), stall (half a body) or drip (a header, byte by byte)."""

    body: Any = None
    status: int = 200
    headers: dict[str, str] = field(default_factory=dict)
    how: str = "plain"
    after: float = 0.0
    until: threading.Event | None = None


@dataclass
class Seen:
    method: str
    path: str
    query: str
    headers: dict[str, str]
    body: bytes


class FakeZuora:
    """Answers by path; a list is used in turn, its last entry forever."""

    def __init__(self) -> None:
        self.seen: list[Seen] = []
        self.connections = 0
        self.tokens = Counter()
        self.expires_in: Any = 3599
        self.token_seconds = 0.0  # how long Zuora takes to issue a token
        self.answers: dict[str, list[Answer]] = {}
        self.token_answers: list[Answer] = []
        self.valid = True
        self.over = threading.Event()
        self.hung = threading.Event()
        self._lock = threading.Lock()
        outer = self

        class Handler(http.server.BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def setup(self) -> None:
                super().setup()
                outer.connections += 1

            def log_message(self, *args: Any) -> None:
                pass

            def handle_any(self) -> None:
                body = self.rfile.read(int(self.headers.get("content-length") or 0))
                path, _, query = self.path.partition("?")
                seen = Seen(
                    self.command, path, query, {name.lower(): value for name, value in self.headers.items()}, body
                )
                outer.send(self, outer.answer(seen))

            do_GET = do_POST = handle_any  # noqa: N815

        class Server(http.server.ThreadingHTTPServer):
            request_queue_size = 128
            daemon_threads = True
            block_on_close = False

            def handle_error(self, *args: Any) -> None:
                pass

        self._server = Server(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self._server.server_port}"
        threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()

    def on(self, path: str, *answers: Answer) -> None:
        self.answers[path] = list(answers)

    def paths(self) -> list[str]:
        return [seen.path for seen in self.seen]

    def answer(self, seen: Seen) -> Answer:
        with self._lock:
            self.seen.append(seen)
            if seen.path == "/oauth/token":
                if self.token_answers:
                    return self.token_answers.pop(0)
                self.tokens["issued"] += 1
                issued = {"access_token": f"{TOKEN}-{self.tokens['issued']}", "expires_in": self.expires_in}
                return Answer(issued, after=self.token_seconds)
            if not self.valid or seen.headers.get("authorization") != f"Bearer {TOKEN}-{self.tokens['issued']}":
                return Answer({"message": "Authentication error"}, 401)
            answers = self.answers.get(seen.path, [Answer({"success": True, "data": {"runStatus": 5}})])
            return answers.pop(0) if len(answers) > 1 else answers[0]

    def send(self, handler: http.server.BaseHTTPRequestHandler, answer: Answer) -> None:
        if answer.after:
            time.sleep(answer.after)
        if answer.until:
            answer.until.wait(30)
        if answer.how == "reset":
            # Without lingering, a close sends a reset instead of a proper end.
            handler.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            handler.connection.close()
            handler.close_connection = True
            return
        if answer.how == "hang":
            self.hung.set()
            self.over.wait(10)
            handler.close_connection = True
            return
        if answer.how == "drip":
            handler.wfile.write(b"HTTP/1.1 200 OK\r\nX-Drip: ")
            while not self.over.wait(0.05):
                handler.wfile.write(b"x")
            handler.close_connection = True
            return
        body = answer.body if isinstance(answer.body, bytes) else json.dumps(answer.body).encode()
        handler.send_response(answer.status)
        for name, value in answer.headers.items():
            handler.send_header(name, value)
        handler.send_header("Content-Length", str(len(body) + (10 if answer.how == "stall" else 0)))
        handler.end_headers()
        handler.wfile.write(body)
        if answer.how == "stall":
            self.over.wait(10)
            handler.close_connection = True

    def close(self) -> None:
        self.over.set()
        self._server.shutdown()
        self._server.server_close()


@pytest.fixture
def zuora(services):
    server = FakeZuora()
    yield server
    server.close()


@pytest.fixture(autouse=True)
def fresh(monkeypatch):
    """No token of another test; no waits between attempts; no proxy of this machine."""
    tokens.forget_all()
    monkeypatch.setattr(exchange, "FIRST_BACKOFF", 0.0)
    for name in ("http_proxy", "https_proxy", "all_proxy", "HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY"):
        monkeypatch.delenv(name, raising=False)
    yield
    tokens.forget_all()


@pytest.fixture
def connect(monkeypatch, zuora):
    """Define the connection ``mediation_test``; arguments replace its fields, ``extra`` adds to them."""

    def define(extra: Any = None, **fields: Any) -> None:
        connection = {
            "conn_type": "mediation",
            "host": zuora.url,
            "login": "client-id",
            "password": CLIENT_SECRET,
            "extra": extra if isinstance(extra, str) else {"timeout": 5, **(extra or {})},
            **fields,
        }
        monkeypatch.setenv("AIRFLOW_CONN_MEDIATION_TEST", json.dumps(connection))

    define()
    return define


# They yield entries, over as many pages as are read.
PAGED = ("audit_trail_entries", "callout_history")


class Asker:
    """Calls a method of the synchronous or of the asynchronous hook, a new one each time."""

    def __init__(self, kind: str) -> None:
        self.kind = kind

    def __call__(self, method: str, *args: Any, hook: Any = None, **kwargs: Any) -> Any:
        options = hook or {}
        if self.kind == "sync":
            with mediation.MediationHook("mediation_test", **options) as sync_hook:
                result = getattr(sync_hook, method)(*args, **kwargs)
                return list(result) if method in PAGED else result

        async def ask() -> Any:
            async with mediation.MediationAsyncHook("mediation_test", **options) as async_hook:
                result = getattr(async_hook, method)(*args, **kwargs)
                if method in PAGED:
                    return [entry async for entry in result]
                return await result

        return asyncio.run(ask())


@pytest.fixture(params=["sync", "async"])
def ask(request, connect):
    return Asker(request.param)


@pytest.fixture
def slept(monkeypatch):
    """Collect the seconds that either hook would sleep, without sleeping."""
    seconds: list[float] = []
    really = asyncio.sleep

    async def sleep(delay: float) -> None:
        seconds.append(delay)
        await really(0)

    monkeypatch.setattr(mediation, "time", SimpleNamespace(sleep=seconds.append))
    monkeypatch.setattr(mediation, "asyncio", SimpleNamespace(**{**vars(asyncio), "sleep": sleep}))
    return seconds
