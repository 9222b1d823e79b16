"""One watch per connection and event loop: however many tasks wait, a meter is asked about once.

The hub is made for the first waiter and gone after the last. A waiter costs it no task, timer, connection or request:
it is told of each reading of its meter and of each callout of its session, and woken only when there is something to
say. All tasks of the hub run in an empty context: in the context of the waiter that happened to start one, they would
write into that waiter's task log.
"""

from __future__ import annotations

import asyncio
import logging
import socket
from functools import partial
from typing import TYPE_CHECKING, Any, Final

from airflow_mediation_provider import metrics
from airflow_mediation_provider.protocol.entry import Entry as JournalEntry
from airflow_mediation_provider.protocol.entry import EntryKind
from airflow_mediation_provider.protocol.grounds import Callouts, Grounds
from airflow_mediation_provider.protocol.transition import SessionTransition, Source
from airflow_mediation_provider.protocol.wait import SessionWait, WaitResult, WaitUpdate
from airflow_mediation_provider.watch.agenda import Agenda
from airflow_mediation_provider.watch.hearing import Hearing
from airflow_mediation_provider.watch.meter import WatchedMeter
from airflow_mediation_provider.watch.onlooker import Onlooker
from airflow_mediation_provider.watch.pace import Pace
from airflow_mediation_provider.watch.polls import Polls, spawn, utcnow
from airflow_mediation_provider.watch.waiter import Waiter

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterable, Sequence
    from datetime import datetime

    from airflow_mediation_provider.protocol.errors import MediationError
    from airflow_mediation_provider.protocol.lifecycle import SessionState
    from airflow_mediation_provider.protocol.reading import PollReading
    from airflow_mediation_provider.watch.feed import SessionFeed
    from airflow_mediation_provider.watch.polls import StatusHook
    from airflow_mediation_provider.watch.reports import WaitingTask

log = logging.getLogger(__name__)

HEARTBEAT_SECONDS: Final = 300.0
"""A wait in which nothing changes says so this often."""
TICK_SECONDS: Final = 30.0
"""How often the hub looks for waits that were silent too long, or whose deadline the wall clock has overtaken."""
FEED_PAUSE_SECONDS: Final = 30.0
"""Between two attempts with a feed that broke down."""
FEED_FIRST_SECONDS: Final = 10.0
"""How long the first polls wait for the feed, which may make them needless."""
CROSS_CHECK_SECONDS: Final = 300.0
_TOLD_PER_PASS: Final = 20


class Hub:
    """Watches the meters of one connection for everybody on one event loop.

    :param open_hook: makes the hook that asks Zuora, called once; the hook does not repeat a request by itself, reads
        the connection once, and again after it was refused
    :param on_empty: called when the last waiter left, with the task that closes the connections; the hub is then over
    :param conn_id: the Airflow connection
    :param feed: a source of knowledge beside the poll
    :param cross_check: seconds between two polls of a meter, at least, while callouts are read
    :param now: the wall clock
    """

    def __init__(
        self,
        open_hook: Callable[[], Awaitable[StatusHook]],
        *,
        on_empty: Callable[[asyncio.Task[None]], None],
        conn_id: str = "",
        feed: SessionFeed | None = None,
        cross_check: float = CROSS_CHECK_SECONDS,
        now: Callable[[], datetime] = utcnow,
    ) -> None:
        self._loop = asyncio.get_running_loop()
        self._conn_id = conn_id
        self._on_empty = on_empty
        self._feed = feed
        self._cross_check = cross_check
        self._now = now
        self._meters: dict[tuple[str, str], WatchedMeter] = {}
        self._seen_meters = 0
        self._agenda = Agenda(self._loop)
        self._polls = Polls(self._agenda, open_hook, self, now)
        self._hearing = Hearing(
            conn_id,
            self._meters.values,
            self._agenda,
            tell=self.learn,
            settle=self._settle,
            address=lambda: None if feed is None else feed.address,
            cross_check=cross_check,
            now=now,
        )
        self._grounds: Grounds | None = None
        self._feed_task: asyncio.Task[None] | None = None
        self._errands: set[asyncio.Task[None]] = set()

    # ---- who waits ---------------------------------------------------------------------------------------------------

    def subscribe(
        self, wait: SessionWait, *, poll_interval: float, eager: bool = False, task: WaitingTask | None = None
    ) -> Waiter:
        """Have a wait told of what is learned about its meter, until ``Waiter.close()``.

        :param wait: the wait; from now on only the hub tells it things
        :param poll_interval: seconds between two looks, at least; the meter is polled at the shortest that is asked for
        :param eager: nobody has looked for this wait yet: look soon
        :param task: the task that waits, for the reports
        """
        meter = self._meter((wait.condition.meter_id, wait.condition.version), poll_interval)
        leave = partial(self._leave, meter)
        waiter = Waiter(wait, poll_interval, came_at=self._loop.time(), leave=leave, task=task)
        meter.add(waiter)
        meter.eager = meter.eager or eager
        self._polls.look_soon(meter)
        if self._feed is not None:
            self._hearing.came(waiter)
            known = meter.sessions
            self._deliver(meter, waiter, lambda wait: wait.learn(known, self._now()))
        self._watch_deadline(waiter)
        return waiter

    def look_on(self, meter_id: str, version: str, *, poll_interval: float) -> Onlooker:
        """Have somebody told of each reading of a meter, until ``Onlooker.close()``; callouts do not slow these down.

        :param poll_interval: seconds between two looks, at least
        """
        meter = self._meter((meter_id, version), poll_interval)
        onlooker = Onlooker(poll_interval, leave=partial(self._look_away, meter))
        meter.onlookers[onlooker] = None
        meter.eager = True
        self._polls.look_soon(meter)
        return onlooker

    def other_sessions(self, wait: SessionWait) -> set[str]:
        """Return the sessions of a wait's meter, other than its own, that are waited for here or seem to be live."""
        meter = self._meters.get((wait.condition.meter_id, wait.condition.version))
        if meter is None:
            return set()
        return (meter.named() | set(wait.known.beside(meter.sessions if self._read else ()))) - {wait.known.session_id}

    async def session_url(self, meter_id: str, session_id: str) -> str | None:
        """Return the address of a session's page, ``None`` where the connection has no template for it.

        :raises MediationError: the connection is missing or wrong
        """
        return await (await self._polls.hook()).session_url(meter_id, session_id)

    def _meter(self, key: tuple[str, str], poll_interval: float) -> WatchedMeter:
        if not self._meters:
            self._start()
        meter = self._meters.get(key)
        if meter is None:
            meter = self._meters[key] = WatchedMeter(key, Pace(poll_interval, self._seen_meters))
            self._seen_meters += 1
        return meter

    def _start(self) -> None:
        self._agenda.add(self._loop.time() + TICK_SECONDS, self._tick)
        if self._feed is not None:
            self._polls.hold_off(FEED_FIRST_SECONDS)
            self._feed_task = spawn(self._follow(self._feed), "feed")

    def _leave(self, meter: WatchedMeter, waiter: Waiter) -> None:
        meter.remove(waiter)
        if self._feed is not None:
            self._hearing.left(waiter)
        self._left(meter)

    def _look_away(self, meter: WatchedMeter, onlooker: Onlooker) -> None:
        del meter.onlookers[onlooker]
        self._left(meter)

    def _left(self, meter: WatchedMeter) -> None:
        """Ask about a meter no more once nobody is there for it; the hub ends with its last one."""
        if meter.watched:
            return
        del self._meters[meter.key]
        self._polls.drop(meter)
        if not self._meters:
            self._show_open_waits()
            self._agenda.close()
            self._on_empty(spawn(self._close(), "close"))

    async def _close(self) -> None:
        tasks: list[asyncio.Task[Any]] = list(self._errands)
        if self._feed_task is not None:
            self._feed_task.cancel()
            tasks.append(self._feed_task)
        await asyncio.gather(*tasks, return_exceptions=True)
        await self._polls.close()

    # ---- what is learned ---------------------------------------------------------------------------------------------

    async def read(self, meter: WatchedMeter, reading: PollReading) -> None:
        """Tell those who wait for a meter what it shows, and the journal where that is new."""
        metrics.polled(self._conn_id)
        if self._feed is not None and reading.status != meter.shown:
            meter.shown = reading.status
            errand = spawn(self._feed.observe([_observation(meter, reading)]), "report")
            self._errands.add(errand)
            errand.add_done_callback(self._errands.discard)
        for onlooker in meter.onlookers:
            onlooker.tell(reading)
        others = meter.sessions if self._read else ()
        await self._tell(meter, meter.waiters, lambda wait: wait.observe(reading, others))

    async def failed(self, meter: WatchedMeter, error: MediationError) -> None:
        """Tell those who wait for a meter that it could not be asked about."""
        metrics.polled(self._conn_id, error)
        for onlooker in meter.onlookers:
            onlooker.tell(error)
        await self._tell(meter, meter.waiters, lambda wait: wait.fault(error, self._now()))

    async def learn(self, states: Sequence[SessionState]) -> None:
        """Tell the waits what is known exactly of sessions: each wait what may concern it, and nothing twice."""
        by_meter: dict[str, list[SessionState]] = {}
        for state in states:
            by_meter.setdefault(state.meter_id, []).append(state)
        for meter in [meter for meter in self._meters.values() if meter.key[0] in by_meter]:
            new = meter.take(by_meter[meter.key[0]])
            if new:
                known = meter.sessions
                # Who waits for no session by name chooses among all that are known.
                await self._tell(
                    meter,
                    meter.concerned(new),
                    lambda wait: wait.learn(new if wait.known.named else known, self._now()),  # noqa: B023
                )

    @property
    def _read(self) -> bool:
        """Whether what is known of sessions comes from callouts, and not from run replies alone."""
        return self._grounds is not None and self._grounds.callouts in (Callouts.READ, Callouts.LOST)

    def _settle(self, grounds: Grounds | None) -> None:
        """Go over to other grounds, or to polls while it is not known whether there are any."""
        served = grounds is not None and grounds.callouts is Callouts.READ
        if grounds is not None:
            self._grounds = grounds
            errand = spawn(self._tell_all(), "grounds")
            self._errands.add(errand)
            errand.add_done_callback(self._errands.discard)
        self._polls.set_pace(self._meters.values(), self._cross_check if served else None)

    async def _follow(self, feed: SessionFeed) -> None:
        troubled = False
        while True:
            try:
                await feed.follow(self._hearing)
                troubled = False
            except Exception:
                if not troubled:
                    log.exception("The feed beside the poll failed; it is tried again, and polls go on meanwhile")
                troubled = True
                self._hearing.disconnected("it failed unexpectedly")
            await asyncio.sleep(FEED_PAUSE_SECONDS)

    # ---- telling -----------------------------------------------------------------------------------------------------

    async def _tell_all(self) -> None:
        for meter in list(self._meters.values()):
            await self._tell(meter, meter.waiters, lambda _: _NOTHING)

    async def _tell(
        self, meter: WatchedMeter, waiters: Iterable[Waiter], tell: Callable[[SessionWait], WaitUpdate]
    ) -> None:
        for count, waiter in enumerate(list(waiters), start=1):
            if waiter in meter.waiters:
                self._deliver(meter, waiter, tell)
            if count % _TOLD_PER_PASS == 0:
                await asyncio.sleep(0)

    def _deliver(self, meter: WatchedMeter, waiter: Waiter, tell: Callable[[SessionWait], WaitUpdate]) -> None:
        """Tell one wait something; before anything else, what it can rest on now."""
        if waiter.ended:
            return
        try:
            if self._grounds is not None and waiter.grounds is not self._grounds:
                waiter.grounds = self._grounds
                self._pass_on(waiter, waiter.wait.rely_on(self._grounds))
            self._pass_on(waiter, tell(waiter.wait))
        except Exception as error:  # one wait's trouble is not its neighbour's: it fails in its own trigger
            waiter.fail(error)
            return
        meter.look_after(waiter)
        self._watch_deadline(waiter)

    def _pass_on(self, waiter: Waiter, update: WaitUpdate) -> None:
        if not waiter.ended and (update.lines or update.result is not None):
            waiter.tell(update, self._loop.time())
            if update.result is not None:
                self._measure(waiter, update.result)

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
        waiter.deadline = waiter.entry = None
        self._say(waiter, lambda wait: wait.tick(self._now()))

    def _tick(self) -> None:
        """Find the waits that were silent too long, and deadlines that a step of the wall clock brought near."""
        at, now = self._loop.time(), self._now()
        self._agenda.add(at + TICK_SECONDS, self._tick)
        self._show_open_waits()
        for meter in self._meters.values():
            for waiter in meter.waiters:
                if waiter.deadline is not None and waiter.deadline <= now:
                    if waiter.entry is not None:
                        waiter.entry.cancel()
                    self._agenda.add(at, partial(self._tick_one, waiter))
                elif at - waiter.said_at >= HEARTBEAT_SECONDS:
                    waiter.said_at = at
                    self._agenda.add(at, partial(self._say, waiter, self._heartbeat))

    def _measure(self, waiter: Waiter, result: WaitResult) -> None:
        """Count the end of a wait, and how long after the callout that brought it, if it waited by then."""
        metrics.wait_ended(self._conn_id, waiter.wait, result)
        learned_at = result.callout_at
        if learned_at is not None:
            # By two machines' clocks, so it may seem to have come from the future.
            lag = max((self._now() - learned_at).total_seconds(), 0.0)
            if lag <= self._loop.time() - waiter.came_at:
                metrics.LAG.took(lag, conn_id=self._conn_id)

    def _show_open_waits(self) -> None:
        waits = sum(len(meter.waiters) for meter in self._meters.values())
        metrics.WAITS_OPEN.show(waits, conn_id=self._conn_id, hostname=socket.gethostname())

    def _heartbeat(self, wait: SessionWait) -> WaitUpdate:
        return WaitUpdate(lines=(wait.heartbeat(self._now()),))

    def _say(self, waiter: Waiter, tell: Callable[[SessionWait], WaitUpdate]) -> None:
        condition = waiter.wait.condition
        meter = self._meters.get((condition.meter_id, condition.version))
        if meter is not None and waiter in meter.waiters:
            self._deliver(meter, waiter, tell)


_NOTHING: Final = WaitUpdate()


def _observation(meter: WatchedMeter, reading: PollReading) -> JournalEntry:
    """Return a poll as the journal keeps it: of a meter, for it names no session."""
    transition = SessionTransition(
        meter_id=meter.key[0], status=reading.status, observed_at=reading.read_at, source=Source.POLL
    )
    return JournalEntry(kind=EntryKind.POLL, observed_at=reading.read_at, source=Source.POLL, transition=transition)
