"""One small, fast HTTPS server that answers like each of the measured services, and counts its requests.

It runs in a process of its own, so that no measured process pays for its work, and has N remote objects (runs, jobs,
meters). All are running until `flip`; from then on object `i` of `n` succeeds at `flip_time(start, spread, i, n)`.
Faults can be put in front of every answer. It is controlled through a pipe, never over HTTP: every request and every
connection it counts was made by the trigger under test.
"""

from __future__ import annotations

import asyncio
import datetime
import ipaddress
import json
import math
import re
import resource
import ssl
import time
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable
    from multiprocessing.connection import Connection
    from pathlib import Path

HTML_PAGE = b"<html><body><h1>Scheduled maintenance</h1></body></html>"


@dataclass(frozen=True)
class Fault:
    """The fault that replaces every answer while it is on.

    :param kind: `status`, `html` (a page with status 200), `badjson` (a body cut short), `reset` (the connection is
        torn down in place of an answer) or `hang` (this request is never answered, not even after the fault)
    :param status: HTTP status of the kind `status`
    :param retry_after: seconds sent as Retry-After
    :param spares_token: the token endpoint goes on working: the service refuses the caller, it is not broken
    """

    kind: str
    status: int = 0
    retry_after: int | None = None
    spares_token: bool = False


@dataclass
class Counters:
    """The server's counts since the last `reset`."""

    requests: int = 0
    faulty: int = 0
    opened: int = 0
    open_now: int = 0
    open_max: int = 0
    cpu_seconds: float = 0.0


def flip_time(start: float, spread: float, index: int, total: int) -> float:
    """Return when object `index` of `total` succeeds, on the machine's monotonic clock."""
    return start + spread * index / max(1, total)


class Api:
    """The answers: paths and bodies of each service, running or done."""

    def __init__(self) -> None:
        self.counters = Counters()
        self.request_times: list[float] = []
        self.fault: Fault | None = None
        self.flip_start, self.spread, self.objects = math.inf, 0.0, 1

    def answer(self, target: str, body: bytes) -> tuple[int, bytes, str]:
        """Return status, body and extra header lines for one request."""
        path = target.partition("?")[0]
        if match := re.fullmatch(r"/api/v2/accounts/\d+/runs/(\d+)/", path):
            return self._json({"data": {"id": int(match[1]), "status": 10 if self._done(match[1]) else 3}})
        if path == "/api/2.2/jobs/runs/get":
            done = self._done(str(json.loads(body)["run_id"]))
            state = {"life_cycle_state": "TERMINATED" if done else "RUNNING", "state_message": ""}
            return self._json({"state": state | ({"result_state": "SUCCESS"} if done else {})})
        if match := re.fullmatch(r"/jobs/(\d+)", path):
            return self._json({"id": match[1]}) if self._done(match[1]) else self._json({}, status=404)
        if match := re.fullmatch(r"/meters/(\d+)/[^/]+/runStatus", path):
            code, name = (7, "COMPLETED") if self._done(match[1]) else (5, "RUNNING")
            return self._json({"success": True, "data": {"runStatus": code, "runStatusDescription": name}})
        if path == "/oauth/token":
            return self._json({"access_token": "token", "token_type": "bearer", "expires_in": 3599})
        return self._json({"message": f"no such path: {path}"}, status=404)

    def _done(self, number: str) -> bool:
        return time.monotonic() >= flip_time(self.flip_start, self.spread, int(number), self.objects)

    @staticmethod
    def _json(value: object, status: int = 200) -> tuple[int, bytes, str]:
        return status, json.dumps(value).encode(), "Content-Type: application/json\r\n"

    def busiest(self, seconds: float) -> int:
        """Return the largest number of requests within any span of so many seconds."""
        times, first, most = self.request_times, 0, 0
        for last, at in enumerate(times):
            while times[first] <= at - seconds:
                first += 1
            most = max(most, last - first + 1)
        return most

    def fault_for(self, target: str) -> Fault | None:
        """Return the fault that applies to this request, if any."""
        spared = self.fault is not None and self.fault.spares_token and target.startswith("/oauth/token")
        return None if spared else self.fault


class HttpProtocol(asyncio.Protocol):
    """Enough of HTTP/1.1 for the clients measured here: keep-alive, Content-Length bodies, no chunked requests."""

    def __init__(self, api: Api) -> None:
        self.api = api
        self.buffer = b""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Count the connection."""
        self.transport: Any = transport
        counters = self.api.counters
        counters.opened += 1
        counters.open_now += 1
        counters.open_max = max(counters.open_max, counters.open_now)

    def connection_lost(self, exc: Exception | None) -> None:  # noqa: ARG002
        """Subtract it from the open ones."""
        self.api.counters.open_now -= 1

    def data_received(self, data: bytes) -> None:
        """Answer every request that is complete."""
        self.buffer += data
        while (end := self.buffer.find(b"\r\n\r\n")) >= 0:
            head = self.buffer[:end].decode("latin-1")
            length = re.search(r"\r\ncontent-length: *(\d+)", head, re.IGNORECASE)
            total = end + 4 + (int(length[1]) if length else 0)
            if len(self.buffer) < total:
                return
            body, self.buffer = self.buffer[end + 4 : total], self.buffer[total:]
            self.respond(head.split(" ", 2)[1], body)

    def respond(self, target: str, body: bytes) -> None:
        """Write one answer, or the present fault in its place."""
        self.api.counters.requests += 1
        self.api.request_times.append(time.monotonic())
        status, content, headers = self.api.answer(target, body)
        if fault := self.api.fault_for(target):
            self.api.counters.faulty += 1
            if fault.kind == "hang":
                return
            if fault.kind == "reset":
                self.transport.abort()
                return
            if fault.kind == "html":
                status, content, headers = 200, HTML_PAGE, "Content-Type: text/html\r\n"
            elif fault.kind == "badjson":
                status, content = 200, b'{"success": true, "data": {"runSta'
            else:
                status, content = fault.status, b'{"message": "injected fault"}'
            if fault.retry_after is not None:
                headers += f"Retry-After: {fault.retry_after}\r\n"
        self.transport.write(
            f"HTTP/1.1 {status} -\r\n{headers}Content-Length: {len(content)}\r\n\r\n".encode() + content
        )


def write_certificate(folder: Path) -> Path:
    """Write a key and a certificate for 127.0.0.1 into one PEM file, and return it.

    Every measured client verifies TLS against the trust store that `SSL_CERT_FILE` names: no client is patched.
    """
    from cryptography import x509
    from cryptography.hazmat.primitives import hashes, serialization
    from cryptography.hazmat.primitives.asymmetric import ec

    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "127.0.0.1")])
    now = datetime.datetime.now(datetime.UTC)
    certificate = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - datetime.timedelta(hours=1))
        .not_valid_after(now + datetime.timedelta(days=1))
        .add_extension(x509.SubjectAlternativeName([x509.IPAddress(ipaddress.ip_address("127.0.0.1"))]), critical=False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .sign(key, hashes.SHA256())
    )
    pem = folder / "server.pem"
    private = key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    pem.write_bytes(private + certificate.public_bytes(serialization.Encoding.PEM))
    return pem


def serve(control: Connection, pem: str) -> None:
    """Serve on a free port of 127.0.0.1 until the controlling end of the pipe is closed.

    The first message sent is the port. After that each message received is a command, (name, arguments), and gets one
    answer.
    """
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, min(hard, 20_000)), hard))
    import uvloop

    uvloop.run(_serve(control, pem))


async def _serve(control: Connection, pem: str) -> None:
    loop = asyncio.get_running_loop()
    api, stopped = Api(), asyncio.Event()

    def reset() -> None:
        api.counters = Counters(open_now=api.counters.open_now, open_max=api.counters.open_now)
        api.flip_start, api.fault = math.inf, None
        api.request_times.clear()

    def flip(start: float, spread: float, objects: int) -> None:
        api.flip_start, api.spread, api.objects = start, spread, objects

    def fault(value: Fault | None) -> None:
        api.fault = value

    def stats() -> dict[str, Any]:
        return asdict(api.counters) | {"cpu_seconds": time.process_time(), "at": time.monotonic()}

    commands: dict[str, Callable[..., Any]] = {
        "reset": reset,
        "flip": flip,
        "fault": fault,
        "stats": stats,
        "busiest": api.busiest,
    }

    def on_command() -> None:
        try:
            name, arguments = control.recv()
        except EOFError:
            loop.remove_reader(control.fileno())
            stopped.set()
            return
        control.send(commands[name](*arguments))

    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.load_cert_chain(pem)
    server = await loop.create_server(lambda: HttpProtocol(api), "127.0.0.1", 0, ssl=context, backlog=4096)
    control.send(server.sockets[0].getsockname()[1])
    loop.add_reader(control.fileno(), on_command)
    await stopped.wait()
    server.close()
