"""One watch per connection and event loop: however many tasks wait, a meter is asked about once.

The hub is made for the first waiter and gone after the last. A waiter costs it no task, timer, connection or request:
it is told of each reading of its meter, and woken only when there is something to say. All tasks of the hub run in an
empty context: in the context of the waiter that happened to start one, they would write into that waiter's task log.
"""

from __future__ import annotations

import asyncio
import logging
import math
from collections import deque
from contextvars import Context
from datetime import UTC, datetime
from functools import partial
from typing import TYPE_CHECKING, Any, Final, Protocol, TypeVar

from airflow_mediation_provider.protocol.errors import MediationError, TransientError
from airflow_mediation_provider.protocol.wait import PollReading, SessionWait, WaitUpdate
from airflow_mediation_provider.watch.agenda import Agenda, Entry
from airflow_mediation_provider.watch.pace import Pace
from airflow_mediation_provider.watch.waiter import Waiter

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Coroutine, Sequence

    from airflow_mediation_provider.protocol.lifecycle import SessionState
    from airflow_mediation_provider.watch.feed import SessionFeed

log = logging.getLogger(__name__)
_T = TypeVar("_T")

MAX_CONNECTIONS: Final = 4
"""Requests that one hub has under way at a time."""
MAX_IN_TROUBLE: Final = 2
"""Of these, the ones for meters whose last request failed: meters that hang never take every connection."""
HEARTBEAT_SECONDS: Final = 300.0
"""A wait in which nothing changes says so this often."""
TICK_SECONDS: Final = 30.0
"""How often the hub looks for waits that were silent too long, or whose deadline the wall clock has overtaken."""
MAX_PAUSE_SECONDS: Final = 900.0
"""No ``Retry-After`` keeps the whole tenant from being asked for longer."""
FEED_PAUSE_SECONDS: Final = 30.0
_TOLD_PER_PASS: Final = 20


class StatusHook(Protocol):
    """What the watch needs of ``MediationAsyncHook``."""

    async def run_status(self, meter_id: str, version: str = ...) -> str:
        """Return the status of a meter version, by Zuora's name."""

    async def session_url(self, meter_id: str, session_id: str | None) -> str | None:
        """Return the address of a session's page by the connection's template, where it has one."""

    async def close(self) -> None:
        """Close the connections."""


def utcnow() -> datetime:
    """Return the wall clock's time."""
    return datetime.now(UTC)


class _Meter:
    """One meter version that is waited for."""

    __slots__ = ("asked_at", "due", "key", "pace", "queued", "task", "waiters")

    def __init__(self, key: tuple[str, str], pace: Pace) -> None:
        self.key = key
        self.pace = pace
        self.waiters: dict[Waiter, None] = {}
        self.due: Entry | None = None
        self.asked_at = -math.inf
        self.queued = False
        self.task: asyncio.Task[float] | None = None

    def follow_waiters(self) -> None:
        """Poll at the shortest interval that anybody who is still here asked for."""
        self.pace.interval = min(waiter.poll_interval for waiter in self.waiters)


class Hub:
    """Watches the meters of one connection for everybody on one event loop.

    :param open_hook: makes the hook that asks Zuora, called once; the hook does not repeat a request by itself, reads
        the connection once, and again after it was refused
    :param on_empty: called when the last waiter left, with the task that closes the connections; the hub is then over
    :param feed: a source of knowledge beside the poll
    :param now: the wall clock
    """

    def __init__(
        self,
        open_hook: Callable[[], Awaitable[StatusHook]],
        *,
        on_empty: Callable[[asyncio.Task[None]], None],
        feed: SessionFeed | None = None,
        now: Callable[[], datetime] = utcnow,
    ) -> None:
        self._loop = asyncio.get_running_loop()
        self._agenda = Agenda(self._loop)
        self._open_hook = open_hook
        self._on_empty = on_empty
        self._feed = feed
        self._now = now
        self._meters: dict[tuple[str, str], _Meter] = {}
        self._seen_meters = 0
        self._hook: StatusHook | None = None
        self._opening = asyncio.Lock()
        self._running: set[_Meter] = set()
        self._ready: deque[_Meter] = deque()
        self._paused_until = 0.0
        self._feed_task: asyncio.Task[None] | None = None

    # ---- who waits -------------------------------------------------------------------------------------------------

    def subscribe(self, wait: SessionWait, *, poll_interval: float, eager: bool = False) -> Waiter:
        """Have a wait told of what is learned about its meter, until ``Waiter.close()``.

        :param wait: the wait; from now on only the hub tells it things
        :param poll_interval: seconds between two looks, at least; the meter is polled at the shortest that is asked for
        :param eager: nobody has looked for this wait yet: look soon
        """
        if not self._meters:
            self._start()
        key = (wait.condition.meter_id, wait.condition.version)
        meter = self._meters.get(key)
        if meter is None:
            meter = self._meters[key] = _Meter(key, Pace(poll_interval, self._seen_meters))
            self._seen_meters += 1
        waiter = Waiter(wait, poll_interval, said_at=self._loop.time(), leave=partial(self._leave, meter))
        meter.waiters[waiter] = None
        meter.pace.interval = min(meter.pace.interval, poll_interval)
        self._hasten(meter, meter.pace.first(eager=eager))
        self._watch_deadline(waiter)
        return waiter

    def other_sessions(self, meter_id: str, version: str, session_id: str | None) -> set[str]:
        """Return the sessions of a meter version, other than the given one, that tasks here are waiting for."""
        meter = self._meters.get((meter_id, version))
        named = {waiter.wait.condition.session_id for waiter in meter.waiters} if meter else set()
        return {other for other in named if other is not None and other != session_id}

    async def session_url(self, meter_id: str, session_id: str) -> str | None:
        """Return the address of a session's page, ``None`` where the connection has no template for it.

        :raises MediationError: the connection is missing or wrong
        """
        return await (await self._the_hook()).session_url(meter_id, session_id)

    def _start(self) -> None:
        self._agenda.add(self._loop.time() + TICK_SECONDS, self._tick)
        if self._feed is not None:
            self._feed_task = self._spawn(self._follow(self._feed), "feed")

    def _leave(self, meter: _Meter, waiter: Waiter) -> None:
        del meter.waiters[waiter]
        if meter.waiters:
            return
        del self._meters[meter.key]
        if meter.due is not None:
            meter.due.cancel()
        if meter.task is not None:
            meter.task.cancel()
        if not self._meters:
            self._agenda.close()
            self._on_empty(self._spawn(self._close(), "close"))

    async def _close(self) -> None:
        tasks: list[asyncio.Task[Any]] = [meter.task for meter in self._running if meter.task is not None]
        if self._feed_task is not None:
            self._feed_task.cancel()
            tasks.append(self._feed_task)
        # A poll that has just found the last result may be on its way out of its own accord.
        await asyncio.gather(*tasks, return_exceptions=True)
        if self._hook is not None:
            await self._hook.close()

    def _spawn(self, coroutine: Coroutine[Any, Any, _T], name: str) -> asyncio.Task[_T]:
        return self._loop.create_task(coroutine, name=f"mediation-watch-{name}", context=Context())

    # ---- when to look ----------------------------------------------------------------------------------------------

    def _hasten(self, meter: _Meter, delay: float) -> None:
        """Look at the meter after ``delay`` seconds, unless a look is under way or planned for earlier.

        However many waiters come, and whenever: the meter is asked about once in an interval.
        """
        if meter.task is not None or meter.queued:
            return
        when = max(self._loop.time() + delay, meter.asked_at + meter.pace.interval, self._paused_until)
        if meter.due is None or not meter.due.pending or when < meter.due.when:
            self._plan(meter, when)

    def _plan(self, meter: _Meter, when: float) -> None:
        if meter.due is not None:
            meter.due.cancel()
        meter.due = self._agenda.add(when, partial(self._come_due, meter))

    def _come_due(self, meter: _Meter) -> None:
        if self._loop.time() < self._paused_until:
            self._plan(meter, self._paused_until + meter.pace.after_pause())
            return
        meter.queued = True
        self._ready.append(meter)
        self._dispatch()

    def _dispatch(self) -> None:
        """Start the polls that have a connection, in the order in which they came due."""
        in_trouble = sum(1 for meter in self._running if meter.pace.failures)
        waiting: deque[_Meter] = deque()
        while self._ready and len(self._running) < MAX_CONNECTIONS:
            meter = self._ready.popleft()
            if not meter.waiters:
                continue
            if meter.pace.failures and in_trouble >= MAX_IN_TROUBLE:
                waiting.append(meter)
                continue
            in_trouble += bool(meter.pace.failures)
            meter.queued = False
            self._running.add(meter)
            meter.task = self._spawn(self._look(meter), "poll")
            meter.task.add_done_callback(partial(self._looked, meter), context=Context())
        self._ready.extendleft(reversed(waiting))

    # ---- looking ---------------------------------------------------------------------------------------------------

    def _looked(self, meter: _Meter, task: asyncio.Task[float]) -> None:
        """Give the connection to the next meter, and plan the next look at this one.

        Not in the task itself: one that is cancelled before its first step runs nothing of its own, no ``finally``.
        """
        self._running.discard(meter)
        meter.task = None
        pause = meter.pace.interval
        if not task.cancelled():
            error = task.exception()
            if error is None:
                pause = task.result()
            else:
                log.error("The look at meter %s version %s failed unexpectedly", *meter.key, exc_info=error)
        if self._meters.get(meter.key) is meter:
            self._plan(meter, self._loop.time() + pause)
        if self._meters:
            self._dispatch()

    async def _look(self, meter: _Meter) -> float:
        """Ask once, tell the meter's waiters, and return the seconds to the next look."""
        meter.follow_waiters()
        meter.asked_at = self._loop.time()
        asked_at = self._now()
        fault: MediationError
        try:
            status = await self._ask(*meter.key)
        except MediationError as error:
            fault, pause = error, meter.pace.after_fault(self._retry_after(error))
        except Exception as error:  # a bug of ours must not end a wait while the session is healthy
            if not meter.pace.failures:
                log.exception("Asking for the status of meter %s version %s failed unexpectedly", *meter.key)
            fault = TransientError(f"Asking for the meter's status failed unexpectedly: {error!r}")
            pause = meter.pace.after_fault()
        else:
            reading = PollReading(status=status, read_at=asked_at)
            await self._tell(meter, lambda wait: wait.observe(reading))
            return meter.pace.after_reading(status, self._loop.time())
        await self._tell(meter, lambda wait: wait.fault(fault, self._now()))
        return pause

    async def _ask(self, meter_id: str, version: str) -> str:
        return await (await self._the_hook()).run_status(meter_id, version)

    async def _the_hook(self) -> StatusHook:
        if self._hook is None:
            async with self._opening:
                if self._hook is None:
                    self._hook = await self._open_hook()
        return self._hook

    def _retry_after(self, error: MediationError) -> float | None:
        """Return how long Zuora asked us to keep away; a rate limit counts for the whole tenant, not for one meter."""
        asked = error.retry_after if isinstance(error, TransientError) else None
        if asked is None:
            return None
        asked = min(asked, MAX_PAUSE_SECONDS)
        if error.status_code == 429:
            self._paused_until = max(self._paused_until, self._loop.time() + asked)
        return asked

    # ---- telling ---------------------------------------------------------------------------------------------------

    async def learn(self, states: Sequence[SessionState]) -> None:
        """Tell the waits what is known exactly of sessions; a feed calls this."""
        for meter_id in {state.meter_id for state in states}:
            for meter in [meter for key, meter in self._meters.items() if key[0] == meter_id]:
                await self._tell(meter, lambda wait: wait.learn(states, self._now()))

    async def _tell(self, meter: _Meter, tell: Callable[[SessionWait], WaitUpdate]) -> None:
        for count, waiter in enumerate(list(meter.waiters), start=1):
            if waiter in meter.waiters:
                self._deliver(waiter, tell)
            if count % _TOLD_PER_PASS == 0:
                await asyncio.sleep(0)

    def _deliver(self, waiter: Waiter, tell: Callable[[SessionWait], WaitUpdate]) -> None:
        if waiter.ended:
            return
        try:
            update = tell(waiter.wait)
        except Exception as error:  # one wait's trouble is not its neighbour's: it fails in its own trigger
            waiter.fail(error)
            return
        if update.lines or update.result is not None:
            waiter.tell(update, self._loop.time())
        self._watch_deadline(waiter)

    def _watch_deadline(self, waiter: Waiter) -> None:
        """Keep the agenda's entry at the instant at which time itself could end the wait; the wait may move it."""
        deadline = None if waiter.ended else waiter.wait.deadline
        if deadline == waiter.deadline:
            return
        waiter.deadline = deadline
        if waiter.entry is not None:
            waiter.entry.cancel()
            waiter.entry = None
        if deadline is not None:
            # Not at once: a wait that is not ended by its own deadline would be asked again and again.
            seconds = max((deadline - self._now()).total_seconds(), 0.1)
            waiter.entry = self._agenda.add(self._loop.time() + seconds, partial(self._tick_one, waiter))

    def _tick_one(self, waiter: Waiter) -> None:
        if waiter.closed:
            return
        waiter.deadline = waiter.entry = None
        self._deliver(waiter, lambda wait: wait.tick(self._now()))

    def _tick(self) -> None:
        """Find the waits that were silent too long, and deadlines that a step of the wall clock brought near."""
        at, now = self._loop.time(), self._now()
        self._agenda.add(at + TICK_SECONDS, self._tick)
        for meter in self._meters.values():
            for waiter in meter.waiters:
                if waiter.deadline is not None and waiter.deadline <= now:
                    if waiter.entry is not None:
                        waiter.entry.cancel()
                    self._agenda.add(at, partial(self._tick_one, waiter))
                elif at - waiter.said_at >= HEARTBEAT_SECONDS:
                    waiter.said_at = at
                    self._agenda.add(at, partial(self._beat, waiter))

    def _beat(self, waiter: Waiter) -> None:
        if not waiter.closed:
            self._deliver(waiter, lambda wait: WaitUpdate(lines=(wait.heartbeat(self._now()),), result=None))

    async def _follow(self, feed: SessionFeed) -> None:
        troubled = False
        while True:
            try:
                await feed.follow(self)
                troubled = False
            except Exception:
                if not troubled:
                    log.exception("The feed beside the poll failed; it is tried again, and polls go on meanwhile")
                troubled = True
            await asyncio.sleep(FEED_PAUSE_SECONDS)
