"""The poller of one connection: polls the meters that are due, over few connections and at an even pace."""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from contextvars import Context
from functools import partial
from typing import TYPE_CHECKING, Any, Final, Protocol, TypeVar

from airflow_mediation_provider.feed.long_poll import FEED_LOOK_SECONDS
from airflow_mediation_provider.protocol.sessions.journal_entry import PollReading
from airflow_mediation_provider.protocol.zuora.errors import MediationError, TransientError

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Coroutine, Iterable
    from datetime import datetime

    from airflow_mediation_provider.triggerer.meter import WatchedMeter
    from airflow_mediation_provider.triggerer.timers import TimerQueue


log = logging.getLogger(__name__)

_T = TypeVar("_T")
MAX_CONNECTIONS: Final = 4
"""Requests that one hub has in progress at a time."""
MAX_IN_TROUBLE: Final = 2
"""Of these, requests for meters whose last request failed: meters that hang never take every connection."""


def spawn(coroutine: Coroutine[Any, Any, _T], name: str) -> asyncio.Task[_T]:
    """Start a task in an empty context: in its caller's context it would write into that caller's task log."""
    loop = asyncio.get_running_loop()
    return loop.create_task(coroutine, name=f"mediation-watch-{name}", context=Context())


class StatusHook(Protocol):
    """The part of ``MediationAsyncHook`` that the poller needs."""

    async def run_status(self, meter_id: str, version: str = ...) -> str:
        """Return the status of a meter version, by Zuora's name."""

    async def session_url(self, meter_id: str, session_id: str | None) -> str | None:
        """Return the address of a session's page by the connection's template, where it has one."""

    async def close(self) -> None:
        """Close the connections."""


class PollListener(Protocol):
    """Receives the results of polls."""

    async def read(self, meter: WatchedMeter, reading: PollReading) -> None:
        """Take a reading of a meter."""

    async def failed(self, meter: WatchedMeter, error: MediationError) -> None:
        """Take the failure of a poll."""


class Poller:
    """Polls the status of meters, each at its own pace, on the running event loop.

    :param timers: the hub's
    :param open_hook: makes the hook, called once; the hook does not repeat a request by itself
    :param listener: receives readings and failures
    :param now: the wall clock
    """

    def __init__(
        self,
        timers: TimerQueue,
        open_hook: Callable[[], Awaitable[StatusHook]],
        listener: PollListener,
        now: Callable[[], datetime],
    ) -> None:
        self._loop = asyncio.get_running_loop()
        self._timers = timers
        self._open_hook = open_hook
        self._listener = listener
        self._now = now
        self._cross_check: float | None = None
        self._hook: StatusHook | None = None
        self._opening = asyncio.Lock()
        self._running: set[WatchedMeter] = set()
        self._ready: deque[WatchedMeter] = deque()
        self._paused_until = 0.0
        self._held_off = False

    async def hook(self) -> StatusHook:
        """Return the hook, made at the first call."""
        if self._hook is None:
            async with self._opening:
                if self._hook is None:
                    self._hook = await self._open_hook()
        return self._hook

    async def close(self) -> None:
        """Wait for polls in progress, which were cancelled when their meters were dropped, and close the hook."""
        tasks = [meter.task for meter in self._running if meter.task is not None]
        # A poll that has just delivered the last result may be ending by itself.
        try:
            await asyncio.gather(*tasks, return_exceptions=True)
        finally:
            if self._hook is not None:
                await self._hook.close()

    # ---- when to poll ------------------------------------------------------------------------------------------------

    def hold_off(self, seconds: float) -> None:
        """Poll nothing for so long, unless the pace is set before."""
        self._held_off, self._paused_until = True, self._loop.time() + seconds

    def set_pace(self, meters: Iterable[WatchedMeter], cross_check: float | None) -> None:
        """Change to another pace, at once.

        :param meters: all of the hub
        :param cross_check: seconds, the shortest interval for waits that callouts serve; ``None``: they serve none
        """
        self._paused_until = min(self._paused_until, self._loop.time()) if self._held_off else self._paused_until
        self._held_off = False
        self._cross_check = cross_check
        for meter in meters:
            self._follow_waiters(meter)
            if meter.task is not None or meter.queued:
                continue
            if meter.due is not None:
                meter.due.cancel()
            self.hasten(meter, meter.pace.after_pause() if meter.asked_at >= 0 else meter.pace.first(eager=meter.eager))

    def poll_soon(self, meter: WatchedMeter) -> None:
        """Plan a poll for a new subscription."""
        self._follow_waiters(meter)
        self.hasten(meter, meter.pace.first(eager=meter.eager))

    def hasten(self, meter: WatchedMeter, delay: float) -> None:
        """Poll the meter after ``delay`` seconds, unless a poll is in progress or planned earlier.

        A meter is polled once in an interval, also if many waits subscribe at different times.
        """
        if meter.task is not None or meter.queued:
            return
        when = max(self._loop.time() + delay, meter.asked_at + meter.pace.interval, self._paused_until)
        if meter.due is None or not meter.due.pending or when < meter.due.when:
            self._plan(meter, when)

    def drop(self, meter: WatchedMeter) -> None:
        """Stop polling a meter."""
        if meter.due is not None:
            meter.due.cancel()
        if meter.task is not None:
            meter.task.cancel()

    def _follow_waiters(self, meter: WatchedMeter) -> None:
        meter.pace.interval = meter.interval(self._cross_check)
        meter.pace.steady = self._cross_check is not None

    def _plan(self, meter: WatchedMeter, when: float) -> None:
        if meter.due is not None:
            meter.due.cancel()
        meter.due = self._timers.add(when, partial(self._come_due, meter))

    def _come_due(self, meter: WatchedMeter) -> None:
        if self._loop.time() < self._paused_until:
            self._plan(meter, self._paused_until + meter.pace.after_pause())
            return
        meter.queued = True
        self._ready.append(meter)
        self._dispatch()

    def _dispatch(self) -> None:
        """Start the polls that have a connection, in the order in which they came due."""
        in_trouble = sum(1 for meter in self._running if meter.pace.failures)
        waiting: deque[WatchedMeter] = deque()
        while self._ready and len(self._running) < MAX_CONNECTIONS:
            meter = self._ready.popleft()
            if not meter.watched:
                continue
            if meter.pace.failures and in_trouble >= MAX_IN_TROUBLE:
                waiting.append(meter)
                continue
            in_trouble += bool(meter.pace.failures)
            meter.queued = False
            self._running.add(meter)
            meter.task = spawn(self._poll(meter), "poll")
            meter.task.add_done_callback(partial(self._polled, meter), context=Context())
        self._ready.extendleft(reversed(waiting))

    # ---- polling -----------------------------------------------------------------------------------------------------

    def _polled(self, meter: WatchedMeter, task: asyncio.Task[float]) -> None:
        """Give the connection to the next meter, and plan the next poll of this one.

        Not in the task itself: a task that is cancelled before its first step runs no code at all, no ``finally``.
        """
        self._running.discard(meter)
        meter.task = None
        pause = meter.pace.interval
        if not task.cancelled():
            error = task.exception()
            if error is None:
                pause = task.result()
            else:
                log.error("The poll of meter %s version %s failed unexpectedly", *meter.key, exc_info=error)
        if meter.watched:
            self._plan(meter, self._loop.time() + pause)
        self._dispatch()

    async def _poll(self, meter: WatchedMeter) -> float:
        """Poll once, pass the result on, and return the seconds to the next poll."""
        self._follow_waiters(meter)
        meter.asked_at = self._loop.time()
        asked_at = self._now()
        fault: MediationError
        try:
            status = await (await self.hook()).run_status(*meter.key)
        except MediationError as error:
            fault, pause = error, meter.pace.after_fault(self._retry_after(error))
        except Exception as error:  # a bug of ours must not end a wait while the session is healthy
            if not meter.pace.failures:
                log.exception("The poll of meter %s version %s failed unexpectedly", *meter.key)
            fault = TransientError(f"The poll of the meter's status failed unexpectedly: {error!r}")
            pause = meter.pace.after_fault()
        else:
            await self._listener.read(meter, PollReading(status=status, read_at=asked_at))
            pause = meter.pace.after_reading(status, self._loop.time())
            # While callouts are received, the feed's next answer comes before the next poll.
            meter.looks.polled(pause if self._cross_check is None else min(pause, FEED_LOOK_SECONDS))
            return pause
        await self._listener.failed(meter, fault)
        return pause

    def _retry_after(self, error: MediationError) -> float | None:
        """Return the seconds that Zuora asked to wait; after a rate limit, the whole tenant waits, not one meter."""
        asked = error.retry_after if isinstance(error, TransientError) else None
        if asked is None:
            return None
        if error.status_code == 429:
            self._paused_until = max(self._paused_until, self._loop.time() + asked)
        return asked
