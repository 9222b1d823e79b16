"""The HTTP server of the simulator: passes calls to the tenant, applies faults, and counts connections."""

from __future__ import annotations

import asyncio
import contextlib
import gzip
import socket
import struct
from typing import TYPE_CHECKING, Any
from urllib.parse import parse_qs

from aiohttp import web

from airflow_mediation_provider.simulator import control
from airflow_mediation_provider.simulator.api import meter_of
from airflow_mediation_provider.simulator.callout_sender import CalloutSender
from airflow_mediation_provider.simulator.control import Tenant
from airflow_mediation_provider.simulator.faults import DELAYS, Fault, FaultKind
from airflow_mediation_provider.simulator.messages import Call, Reply
from airflow_mediation_provider.simulator.sessions import Refusal

if TYPE_CHECKING:
    from airflow_mediation_provider.simulator.config import SimulatorConfig

COMPRESS_FROM = 1000  # bytes; Zuora compresses longer replies for clients that accept gzip
HTML = (
    "<!DOCTYPE html><html><head><title>Scheduled maintenance</title></head>"
    "<body><h1>We will be back soon</h1></body></html>"
)
RESET_ON_CLOSE = struct.pack("ii", 1, 0)  # SO_LINGER: on, 0 seconds


class _CountingServer(web.Server):
    """Counts the connections with calls of Zuora's API (not of the control API) and detects when one is lost."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.total = 0
        self.most_open = 0
        self._lost: dict[Any, asyncio.Event] = {}
        self._numbers: dict[Any, int] = {}

    @property
    def open(self) -> int:
        """Return how many are open now."""
        return len(self._numbers)

    def connection_made(self, handler: Any, transport: asyncio.Transport) -> None:
        super().connection_made(handler, transport)
        self._lost[handler] = asyncio.Event()

    def connection_lost(self, handler: Any, exc: BaseException | None = None) -> None:
        super().connection_lost(handler, exc)
        self._numbers.pop(handler, None)
        if event := self._lost.pop(handler, None):
            event.set()

    def count(self, handler: Any) -> tuple[int | None, asyncio.Event]:
        """Count the connection of a call, and return its number and an event that is set when it is lost."""
        if (lost := self._lost.get(handler)) is None:  # closed before its call was read
            lost = asyncio.Event()
            lost.set()
            return None, lost
        if handler not in self._numbers:
            self.total += 1
            self._numbers[handler] = self.total
            self.most_open = max(self.most_open, self.open)
        return self._numbers[handler], lost


class SimulatorServer:
    """Serves a tenant on one event loop.

    :param config: the tenant and where to listen
    """

    def __init__(self, config: SimulatorConfig) -> None:
        self.config = config
        self.tenant = Tenant(config)
        self.url = ""
        self._in_flight = 0
        self._most_in_flight = 0

    async def start(self) -> None:
        """Listen; ``url`` is set afterwards.

        :raises OSError: the address cannot be listened on
        """
        self._wake = asyncio.Event()
        self._released = asyncio.Event()
        self._server = _CountingServer(self._handle, access_log=None)
        self._runner = web.ServerRunner(self._server, shutdown_timeout=0.05)
        await self._runner.setup()
        try:
            await web.TCPSite(self._runner, self.config.host, self.config.port, backlog=1024).start()
        except OSError:
            await self._runner.cleanup()
            self.tenant.log.end()
            raise
        host, port = self._runner.addresses[0][:2]
        self.url = f"http://{f'[{host}]' if ':' in host else host}:{port}"
        self.tenant.api.audit.base_url = self.tenant.api.callout_history.base_url = self.url
        self.tenant.engine.on_schedule = self._wake.set
        self.tenant.carrier = self
        self._sender = CalloutSender(self.tenant.callouts, self.tenant.clock, ticking=self.config.clock == "real")
        await self._sender.start()
        self._ticker = asyncio.create_task(self._tick(), name="simulator-ticker")

    async def stop(self) -> None:
        """Close every connection, including those that hang, and stop."""
        self.release()
        self._ticker.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await self._ticker
        await self._sender.stop()
        await self._runner.cleanup()
        self.tenant.log.end()

    async def _tick(self) -> None:
        """Make transitions when they are due, so that observers and the log get them without any request."""
        engine, clock = self.tenant.engine, self.tenant.clock
        while True:
            self._wake.clear()
            engine.run_due()
            due = engine.next_due()
            seconds = None if due is None or self.config.clock == "manual" else max(0.0, due - clock.now())
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._wake.wait(), seconds)

    def release(self) -> None:
        """Close the connections of requests that hang."""
        self._released.set()
        self._released = asyncio.Event()

    def reset_statistics(self) -> None:
        """Restart the counts, with the connections that are open now."""
        self._server.most_open = self._server.open
        self._most_in_flight = self._in_flight

    def statistics(self) -> dict[str, int]:
        """Return counts of connections and requests, without those of the control API."""
        return {
            "open_connections": self._server.open,
            "max_open_connections": self._server.most_open,
            "total_connections": self._server.total,
            "requests_in_flight": self._in_flight,
            "max_requests_in_flight": self._most_in_flight,
        }

    async def _handle(self, request: web.BaseRequest) -> web.StreamResponse:
        call = Call(
            method=request.method,
            path=request.path,
            query=parse_qs(request.rel_url.raw_query_string, keep_blank_values=True),
            headers={name.lower(): value for name, value in request.headers.items()},
            body=await request.read(),
        )
        if call.path.startswith(f"{control.PREFIX}/"):
            response = _response(control.answer(self.tenant, call))
            self._wake.set()
            return response
        self._in_flight += 1
        self._most_in_flight = max(self._most_in_flight, self._in_flight)
        try:
            return await _Exchange(self.tenant, self._server, self._released, request, call).serve()
        finally:
            self._in_flight -= 1


class _Exchange:
    """One request of the product and its reply, with the faults that affect it."""

    def __init__(
        self, tenant: Tenant, server: _CountingServer, released: asyncio.Event, request: web.BaseRequest, call: Call
    ) -> None:
        self._tenant = tenant
        self._released = released
        self._request = request
        self._call = call
        connection, self._lost = server.count(request.protocol)
        self._began = tenant.clock.now()
        headers = call.headers
        self._entry = tenant.log.add(
            "request",
            pending=True,
            method=call.method,
            path=call.path,
            meter_id=meter_of(call.path),
            query={name: values if len(values) > 1 else values[0] for name, values in call.query.items()},
            track_id=headers.get("zuora-track-id"),
            entity_ids=headers.get("zuora-entity-ids"),
            org_ids=headers.get("zuora-org-ids"),
            body=_logged_body(call),
            token=tenant.tokens.number(call),
            connection=connection,
            open_connections=server.open,
            carried_out=False,
            faults=[],
            status=None,
            outcome=None,
            finished=False,
        )

    async def serve(self) -> web.StreamResponse:
        outcome, status = "aborted", None
        try:
            response, outcome, status = await self._exchange()
        finally:
            seconds = round(self._tenant.clock.now() - self._began, 6)
            self._tenant.log.close(self._entry, outcome=outcome, status=status, seconds=seconds, finished=True)
        return response

    async def _exchange(self) -> tuple[web.StreamResponse, str, int | None]:
        call, log = self._call, self._tenant.log
        self._tenant.engine.run_due()
        faults = self._tenant.faults.strike(call.method, call.path, meter_of(call.path))
        for fault in faults:
            log.add("fault", request=self._entry, fault=fault.id, fault_kind=str(fault.kind), path=call.path)
        log.update(self._entry, faults=[str(fault.kind) for fault in faults])
        delays = {fault.kind: fault.delay for fault in faults if fault.kind in DELAYS}
        final = next((fault for fault in faults if fault.kind not in DELAYS), None)
        if FaultKind.DELAY_BEFORE in delays:
            await asyncio.sleep(delays[FaultKind.DELAY_BEFORE])
        reply = Reply()
        if final is None or final.carried_out:
            with log.during(self._entry):
                reply = self._tenant.api.answer(call)
            log.update(self._entry, carried_out=True)
        if FaultKind.LATENCY in delays:
            await asyncio.sleep(delays[FaultKind.LATENCY])
        if final is not None:
            if final.kind is FaultKind.HANG:
                return await self._hang(), "hung", None
            if final.kind in (FaultKind.RESET, FaultKind.LOST_REPLY):
                self._reset()
                return web.Response(), str(final.kind), None
            if final.kind is FaultKind.TRUNCATED:
                return await self._truncate(reply), "truncated", reply.status
            reply = self._spoil(reply, final)
        if FaultKind.SLOW in delays:
            return await self._trickle(reply, delays[FaultKind.SLOW]), self._end(), reply.status
        return _response(reply, self._request), self._end(), reply.status

    def _end(self) -> str:
        return "client gone" if self._lost.is_set() else "answered"

    async def _hang(self) -> web.StreamResponse:
        waits = [asyncio.ensure_future(event.wait()) for event in (self._lost, self._released)]
        try:
            await asyncio.wait(waits, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for wait in waits:
                wait.cancel()
        self._reset()
        return web.Response()

    def _reset(self) -> None:
        if (transport := self._request.transport) is not None:
            if (sock := transport.get_extra_info("socket")) is not None:
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET_ON_CLOSE)
            transport.abort()

    async def _truncate(self, reply: Reply) -> web.StreamResponse:
        content = reply.content()
        response = web.StreamResponse(status=reply.status, headers=reply.headers)
        response.content_type, response.content_length = reply.content_type, len(content)
        response.force_close()
        await response.prepare(self._request)
        await response.write(content[: len(content) // 2])
        if self._request.transport is not None:
            self._request.transport.close()
        return response

    async def _trickle(self, reply: Reply, seconds: float) -> web.StreamResponse:
        content = reply.content()
        response = web.StreamResponse(status=reply.status, headers=reply.headers)
        response.content_type, response.content_length = reply.content_type, len(content)
        await response.prepare(self._request)
        pieces = 20
        size = max(1, -(-len(content) // pieces))
        for start in range(0, len(content), size):
            if self._lost.is_set():
                break
            await asyncio.sleep(seconds / pieces)
            await response.write(content[start : start + size])
        return response

    def _spoil(self, reply: Reply, fault: Fault) -> Reply:
        status = fault.status or 200
        if fault.kind is FaultKind.UNKNOWN_STATUS:
            if self._call.path.endswith("/runStatus") and reply.status == 200:
                reply.body["data"] = {"runStatus": fault.code, "runStatusDescription": f"STATUS_{fault.code}"}
            return reply
        if fault.kind is FaultKind.REJECT_AUTH:
            return self._tenant.api.error(Refusal("Authentication error", status=status, headers=fault.headers))
        if fault.kind is FaultKind.HTML:
            return Reply(status, HTML if fault.body is None else fault.body, fault.headers, "text/html")
        if fault.kind is FaultKind.BADJSON:
            return Reply(status, '{"success": true, "data": {' if fault.body is None else fault.body, fault.headers)
        if fault.body is None:
            return self._tenant.api.error(Refusal(f"Simulated HTTP {status}.", status=status, headers=fault.headers))
        kind = "text/plain" if isinstance(fault.body, str) else "application/json"
        return Reply(status, fault.body, fault.headers, kind)


def _logged_body(call: Call) -> Any:
    """Return the JSON of a /meters call; the token request's body contains a secret and is not logged."""
    if not call.path.startswith("/meters/") or not call.body:
        return None
    try:
        return call.json()
    except Refusal:
        return call.body.decode("utf-8", "replace")


def _response(reply: Reply, request: web.BaseRequest | None = None) -> web.Response:
    content, headers = reply.content(), dict(reply.headers)
    if request is not None and len(content) > COMPRESS_FROM and "gzip" in request.headers.get("Accept-Encoding", ""):
        content = gzip.compress(content, compresslevel=1)
        headers["Content-Encoding"] = "gzip"
    kind = headers.pop("Content-Type", reply.content_type)
    return web.Response(status=reply.status, body=content, headers={**headers, "Content-Type": kind})
