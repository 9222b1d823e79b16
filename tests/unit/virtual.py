"""Virtual time for asyncio: a loop that jumps to its next timer instead of sleeping, and a Zuora on the same clock."""

from __future__ import annotations

import asyncio
import itertools
import json
import selectors
from collections import Counter
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any, TypeVar

from airflow_mediation_provider.protocol.status import RunType
from airflow_mediation_provider.protocol.zuora.errors import MediationError
from airflow_mediation_provider.protocol.zuora.replies import MeterRun

if TYPE_CHECKING:
    from collections.abc import Coroutine

T = TypeVar("T")
EPOCH = datetime(2026, 3, 31, 9, 0, tzinfo=UTC)


@dataclass
class Clock:
    """Seconds since EPOCH, shared by loops and workers; a real sleep does not change them.

    :param ahead: by how many seconds the wall clock is ahead of the one that is never set
    """

    seconds: float = 0.0
    ahead: float = 0.0

    def now(self) -> datetime:
        return EPOCH + timedelta(seconds=self.seconds + self.ahead)

    def sleep(self, seconds: float) -> None:
        assert seconds >= 0
        self.seconds += seconds


class _JumpingSelector(selectors.SelectSelector):
    def __init__(self, clock: Clock) -> None:
        super().__init__()
        self.clock = clock

    def select(self, timeout: float | None = None) -> Any:
        if timeout is None:
            raise RuntimeError("all tasks wait, and no timer is set")
        self.clock.seconds += max(timeout, 0.0)
        return super().select(0)


class VirtualLoop(asyncio.SelectorEventLoop):
    """Runs a test of days in milliseconds, and the same way each time."""

    def __init__(self, clock: Clock) -> None:
        self.clock = clock
        super().__init__(_JumpingSelector(clock))

    def time(self) -> float:
        return self.clock.seconds


def run(main: Coroutine[Any, Any, T], clock: Clock | None = None) -> T:
    """Run a coroutine in virtual time, and check that it leaves no task behind."""
    with asyncio.Runner(loop_factory=lambda: VirtualLoop(clock or Clock())) as runner:

        async def checked() -> T:
            try:
                return await main
            finally:
                left = asyncio.all_tasks() - {asyncio.current_task()}
                if left:
                    await asyncio.wait(left, timeout=1)
                assert not asyncio.all_tasks() - {asyncio.current_task()}

        return runner.run(checked())


Answer = str | MediationError | Exception


@dataclass
class Zuora:
    """Returns the status of meters by scripts in virtual time; keeps a log of the requests.

    A script is a list of (from second, answer); an answer is a status, or an exception to raise.
    """

    clock: Clock
    scripts: dict[str, list[tuple[float, Answer]]] = field(default_factory=dict)
    hanging: dict[str, float] = field(default_factory=dict)
    latency: float = 0.0
    asked: list[tuple[float, str]] = field(default_factory=list)
    stopped: list[tuple[float, str]] = field(default_factory=list)
    starts: int = 0
    under_way: int = 0
    most_under_way: int = 0
    opened: int = 0
    closed: int = 0

    def script(self, meter_id: str, *steps: tuple[float, Answer]) -> None:
        self.scripts[meter_id] = list(steps)

    def answer(self, meter_id: str) -> str:
        self.asked.append((self.clock.seconds, meter_id))
        steps = self.scripts.get(meter_id, [(0.0, "RUNNING")])
        current = [answer for begins, answer in steps if begins <= self.clock.seconds][-1]
        if isinstance(current, Exception):
            raise current
        return current

    def times(self, meter_id: str) -> list[float]:
        return [at for at, asked in self.asked if asked == meter_id]

    def gaps(self, meter_id: str) -> list[float]:
        times = self.times(meter_id)
        return [later - earlier for earlier, later in itertools.pairwise(times)]

    def counts(self, since: float, until: float) -> Counter[str]:
        return Counter(asked for at, asked in self.asked if since <= at < until)

    async def open(self, *_: Any) -> AsyncHook:
        self.opened += 1
        return AsyncHook(self)


class AsyncHook:
    """The part of ``MediationAsyncHook`` that the hub uses."""

    def __init__(self, zuora: Zuora) -> None:
        self.zuora = zuora

    async def run_status(self, meter_id: str, version: str = "0.0.1") -> str:
        zuora = self.zuora
        zuora.under_way += 1
        zuora.most_under_way = max(zuora.most_under_way, zuora.under_way)
        try:
            await asyncio.sleep(zuora.hanging.get(meter_id, zuora.latency))
            return zuora.answer(meter_id)
        finally:
            zuora.under_way -= 1

    async def stop_meter(self, meter_id: str, version: str = "0.0.1", *, force: bool = False) -> None:
        self.zuora.stopped.append((self.zuora.clock.seconds, meter_id))

    async def session_url(self, meter_id: str, session_id: str | None, run_id: str | None = None) -> str | None:
        return f"https://zuora.example/{meter_id}/{session_id}"

    async def close(self) -> None:
        self.zuora.closed += 1

    async def __aenter__(self) -> AsyncHook:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()


class SyncHook:
    """The part of ``MediationHook`` that a worker uses."""

    mediation_conn_id = "mediation_default"

    def __init__(self, zuora: Zuora) -> None:
        self.zuora = zuora

    def run_status(self, meter_id: str, version: str = "0.0.1") -> str:
        return self.zuora.answer(meter_id)

    def run_meter(self, meter_id: str, version: str, *, unique_key: str | None = None, **_: Any) -> MeterRun:
        return self._started(meter_id, version, RunType.NORMAL)

    def debug_meter(self, meter_id: str, version: str, **_: Any) -> MeterRun:
        return self._started(meter_id, version, RunType.DEBUG)

    def _started(self, meter_id: str, version: str, run_type: RunType) -> MeterRun:
        zuora = self.zuora
        zuora.starts += 1
        zuora.clock.sleep(1)  # between the status before the call and the first poll after it
        session_id = f"S-{zuora.starts}"
        return MeterRun(
            meter_id=meter_id, version=version, run_type=run_type, session_id=session_id, started_at=zuora.clock.now()
        )

    def stop_meter(self, meter_id: str, version: str = "0.0.1", *, force: bool = False) -> None:
        self.zuora.stopped.append((self.zuora.clock.seconds, meter_id))

    def session_url(self, meter_id: str, session_id: str | None, run_id: str | None = None) -> str | None:
        return f"https://zuora.example/{meter_id}/{session_id}"


def through_json(value: T) -> T:
    """Return the value as another process would get it."""
    copy: T = json.loads(json.dumps(value))
    return copy
