"""The simulator in a thread of its own, for tests and programs: ``with running_simulator(config) as sim: sim.url``."""

from __future__ import annotations

import asyncio
import threading
from concurrent.futures import Future
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, TypeVar

from airflow_mediation_provider.simulator.config import VERSION, SimulatorConfig
from airflow_mediation_provider.simulator.faults import Fault
from airflow_mediation_provider.simulator.server import SimulatorServer

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

    from airflow_mediation_provider.simulator.callout_config import CalloutConfig
    from airflow_mediation_provider.simulator.sessions import SessionChange

_Result = TypeVar("_Result")
PATIENCE = 10.0  # seconds in which the simulator's loop must answer its own process


class Simulator:
    """A simulator that runs in this process; safe to use from any thread, also from within an event loop.

    :param config: the tenant; the demo set on a free port by default
    """

    def __init__(self, config: SimulatorConfig | None = None) -> None:
        self.config = config or SimulatorConfig()
        self._server = SimulatorServer(self.config)
        self._loop: asyncio.AbstractEventLoop | None = None
        self._thread: threading.Thread | None = None
        self._stop: asyncio.Event | None = None

    # ---- life

    def start(self) -> Simulator:
        """Listen, in a thread of its own.

        :raises OSError: the address cannot be listened on
        """
        ready: Future[None] = Future()
        self._thread = threading.Thread(
            target=lambda: asyncio.run(self._serve(ready)), name="mediation-simulator", daemon=True
        )
        self._thread.start()
        try:
            ready.result(PATIENCE)
        except BaseException:
            self._thread.join(PATIENCE)
            raise
        return self

    def stop(self) -> None:
        """Close all connections and end the thread; the log can still be read. Does nothing the second time."""
        loop, thread = self._loop, self._thread
        if loop is None or thread is None:
            return
        if self._stop is not None:
            loop.call_soon_threadsafe(self._stop.set)
        thread.join(PATIENCE)
        if thread.is_alive():
            raise TimeoutError(f"the simulator's thread did not end within {PATIENCE:g} s")
        self._loop = self._thread = None

    async def _serve(self, ready: Future[None]) -> None:
        try:
            await self._server.start()
        except BaseException as error:
            ready.set_exception(error)
            return
        self._loop, self._stop = asyncio.get_running_loop(), asyncio.Event()
        ready.set_result(None)
        await self._stop.wait()
        await self._server.stop()

    def __enter__(self) -> Simulator:
        return self.start()

    def __exit__(self, *_: object) -> None:
        self.stop()

    def _call(self, function: Callable[[], _Result]) -> _Result:
        """Call a function where the tenant lives: on the simulator's loop, or here if that has ended."""
        loop, thread = self._loop, self._thread
        if loop is None or thread is None or thread is threading.current_thread():
            return function()
        future: Future[_Result] = Future()

        def run() -> None:
            try:
                future.set_result(function())
            except BaseException as error:  # every error is raised in the caller's thread
                future.set_exception(error)

        loop.call_soon_threadsafe(run)
        return future.result(PATIENCE)

    def _settle(self) -> None:
        """Make the transitions that are due; after it was stopped, nothing changes."""
        if self._loop is not None:
            self._call(self._server.tenant.engine.run_due)

    # ---- for tests

    @property
    def url(self) -> str:
        """Base URL, like Zuora's: ``http://127.0.0.1:PORT``."""
        return self._server.url

    def log(self, kind: str | Iterable[str] | None = None, since: int = 0, **fields: Any) -> list[dict[str, Any]]:
        """Return the log entries so far, in order.

        :param kind: request, token, start, transition, stop, refused, fault, export or control; several, or all
        :param since: only entries whose ``seq`` is greater
        :param fields: only entries with these fields, for example ``meter_id="1001"``
        """
        self._settle()
        return self._server.tenant.log.read(kind=kind, since=since, **fields)

    def wait_for(
        self, kind: str, count: int = 1, *, timeout: float = 10.0, since: int = 0, **fields: Any
    ) -> list[dict[str, Any]]:
        """Wait until the log holds so many entries, and return them; arguments as of ``log()``.

        :raises TimeoutError: there were fewer after ``timeout`` seconds
        """
        log = self._server.tenant.log
        return log.wait_for(lambda: log.read(kind=kind, since=since, **fields), count, timeout)

    def fault(self, kind: str, **fields: Any) -> int:
        """Activate a fault and return its id; fields as of ``Fault``.

        :raises ValueError: a field is unknown or wrong
        """
        fault = Fault.parse({"kind": kind, **fields})
        return self._call(lambda: self._server.tenant.fault(fault))

    def faults(self) -> list[dict[str, Any]]:
        """Return the active faults, with how often each was applied (``served``)."""
        return self._call(lambda: [fault.to_dict() for fault in self._server.tenant.faults.active()])

    def clear_faults(self, fault_id: int | None = None) -> int:
        """Remove one fault or all; connections that hang are closed. Returns how many faults were removed."""
        return self._call(lambda: self._server.tenant.clear_faults(fault_id))

    def start_session(self, meter_id: str, version: str = VERSION, **settings: Any) -> dict[str, Any]:
        """Start a foreign session and return it.

        :param settings: ``run_type``, ``script``, ``records``, ``errors``, ``unique_key``
        :raises Refusal: Zuora would refuse it too
        """
        return self._call(lambda: self._server.tenant.start_session(meter_id, version, **settings).to_dict())

    def steer(self, session_id: str, script: Iterable[Any]) -> dict[str, Any]:
        """Replace the rest of a session's script from now on; ``[["FAILED", None]]`` ends it at once.

        :raises KeyError: there is no such session
        """
        return self._call(lambda: self._server.tenant.steer(session_id, script).to_dict())

    def sessions(self, meter_id: str | None = None) -> list[dict[str, Any]]:
        """Return the sessions of a meter or of all, by start."""
        self._settle()
        return self._call(lambda: [s.to_dict() for s in self._server.tenant.engine.sessions(meter_id)])

    def set_meter(self, meter_id: str, **settings: Any) -> None:
        """Add a meter or change one; fields of ``MeterConfig``, or ``script``.

        :raises ValueError: a setting is unknown or wrong
        """
        self._call(lambda: self._server.tenant.set_meter(meter_id, settings))

    def configure(self, **settings: Any) -> None:
        """Change settings of the tenant while it runs, for example ``mediation_enabled=False``.

        :raises ValueError: a setting is unknown, wrong or fixed
        """
        self._call(lambda: self._server.tenant.configure(settings))

    def callouts(self, *callouts: CalloutConfig) -> None:
        """Replace the notifications: from now on each event causes these callouts; without arguments, none."""
        self.configure(callouts=callouts)

    def delivery(self, **settings: Any) -> None:
        """Change how callouts are delivered; fields of ``DeliverySettings``, the others stay.

        :raises ValueError: a setting is unknown or wrong
        """
        self._call(lambda: self._server.tenant.set_delivery(settings))

    def publish(self, kind: str, session_id: str | None = None, **values: Any) -> int:
        """Publish an event that no change of a session causes; returns how many callouts it has.

        :param kind: ``periodic`` (of each operator of the session) or ``event_store_query``
        :param values: merge fields of the query: ``**{"EventStoreQuery.Status": "FAILED"}``
        :raises KeyError: there is no such session
        :raises ValueError: there is no such event or field
        """
        return self._call(lambda: self._server.tenant.publish(kind, session_id, values))

    def callout_history(self) -> list[dict[str, Any]]:
        """Return the callout history, oldest first, with the ``id`` that Zuora's REST history does not contain."""
        return self._call(lambda: [record.to_dict() for record in self._server.tenant.callouts.history])

    def wait_delivered(self, timeout: float = 10.0) -> None:
        """Wait until no callout waits for an attempt or is in one.

        :raises TimeoutError: one still did after ``timeout`` seconds
        """
        tenant = self._server.tenant
        self._settle()
        tenant.log.wait_for(lambda: [] if tenant.callouts.pending else [{}], 1, timeout)

    def reset(self) -> None:
        """Delete everything: sessions, keys, tokens, faults, settings and log."""
        self._call(self._server.tenant.reset)

    def advance(self, seconds: float) -> None:
        """Move the clock forward (``clock="manual"``); transitions that fall due are made.

        :raises ValueError: the clock is the real one
        """
        self._call(lambda: self._server.tenant.advance(seconds))

    def health(self) -> dict[str, Any]:
        """Return meters, counts, and connections open now and at most."""
        return self._call(self._server.tenant.health)

    def observe(self, observer: Callable[[SessionChange], None]) -> None:
        """Call a function at each change of a session's status, in the simulator's thread; it must not block."""
        self._call(lambda: self._server.tenant.engine.observers.append(observer))


@contextmanager
def running_simulator(config: SimulatorConfig | None = None, **settings: Any) -> Iterator[Simulator]:
    """Run a simulator during the block.

    :param config: the tenant; or give its fields as ``settings``
    :raises OSError: the address cannot be listened on
    """
    if config is not None and settings:
        raise ValueError("give a SimulatorConfig or its fields, not both")
    with Simulator(config or SimulatorConfig(**settings)) as simulator:
        yield simulator
