"""One hub per connection and event loop: for any number of waiting tasks, a meter is polled once per interval.

The first waiter makes the hub, and it ends with the last. A waiter costs the hub no task, timer, connection or request:
it receives each reading of its meter and each callout of its session, and is woken only for a log line or a result. All
tasks of the hub run in an empty context: in the context of the waiter that happened to start one, they would write into
that waiter's task log.
"""

from __future__ import annotations

import asyncio
import logging
import socket
from functools import partial
from typing import TYPE_CHECKING, Any, Final

from airflow_mediation_provider import metrics
from airflow_mediation_provider.feed.flow import CROSS_CHECK_SECONDS
from airflow_mediation_provider.protocol.sessions.journal_entry import JournalEntry
from airflow_mediation_provider.protocol.waits.feed_status import FeedStatus, FeedStatusChange
from airflow_mediation_provider.protocol.waits.poll_pace import Pace
from airflow_mediation_provider.protocol.waits.stop_policy import PollWatchdog
from airflow_mediation_provider.protocol.waits.wait import SessionWait, WaitResult, WaitUpdate
from airflow_mediation_provider.tasks.state import utcnow
from airflow_mediation_provider.triggerer.feed_reader import FeedReader
from airflow_mediation_provider.triggerer.meter import ReadingSubscription, WaitSubscription, WatchedMeter
from airflow_mediation_provider.triggerer.poller import Poller, spawn
from airflow_mediation_provider.triggerer.timers import TimerQueue

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterable, Sequence
    from datetime import datetime

    from airflow_mediation_provider.feed.long_poll import SessionFeed
    from airflow_mediation_provider.feed.reports import WaitingTask
    from airflow_mediation_provider.protocol.sessions.journal_entry import PollReading
    from airflow_mediation_provider.protocol.sessions.lifecycle import SessionState
    from airflow_mediation_provider.protocol.sessions.verdict import TaskVerdict
    from airflow_mediation_provider.protocol.sessions.window import WindowReport
    from airflow_mediation_provider.protocol.zuora.errors import MediationError
    from airflow_mediation_provider.triggerer.poller import StatusHook

log = logging.getLogger(__name__)

HEARTBEAT_SECONDS: Final = 300.0
"""A wait without changes logs a heartbeat this often."""
TICK_SECONDS: Final = 30.0
"""How often the hub checks for waits without a recent log line, and for deadlines that the wall clock has passed."""
FEED_PAUSE_SECONDS: Final = 30.0
"""Between two attempts to restart a feed that failed."""
FEED_FIRST_SECONDS: Final = 10.0
"""How long the first polls wait for the feed, which may make them unnecessary."""
_UPDATES_PER_PASS: Final = 20


class Hub:
    """Watches the meters of one connection for all waits on one event loop.

    :param open_hook: makes the hook that polls Zuora, called once; the hook does not repeat a request by itself, reads
        the connection once, and again after it was refused
    :param on_empty: called when the last waiter left, with the task that closes the connections; the hub has then ended
    :param conn_id: the Airflow connection
    :param feed: a source of session states in addition to polls
    :param cross_check: seconds between two polls of a meter, at least, while callouts are received
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
        self._timers = TimerQueue(self._loop)
        self._polls = Poller(self._timers, open_hook, self, now)
        self._feed_reader = FeedReader(
            conn_id,
            self._meters.values,
            self._timers,
            notify=self.receive,
            receive_windows=self.receive_windows,
            settle=self._settle,
            address=lambda: None if feed is None else feed.address,
            cross_check=cross_check,
            now=now,
        )
        self._grounds: FeedStatusChange | None = None
        self._feed_task: asyncio.Task[None] | None = None
        self._background: set[asyncio.Task[None]] = set()

    # ---- subscriptions -----------------------------------------------------------------------------------------------

    def subscribe(
        self, wait: SessionWait, *, poll_interval: float, eager: bool = False, task: WaitingTask | None = None
    ) -> WaitSubscription:
        """Subscribe a wait to what is received about its meter, until ``WaitSubscription.close()``.

        :param wait: the wait; from now on only the hub updates it
        :param poll_interval: seconds between two polls, at least; the meter is polled as often as its waits need
        :param eager: the meter was not polled for this wait yet: poll it soon
        :param task: the task that waits, for the reports
        """
        meter = self._meter((wait.condition.meter_id, wait.condition.version), poll_interval)
        leave = partial(self._leave, meter)
        waiter = WaitSubscription(
            wait, poll_interval, subscribed_at=self._loop.time(), looks=meter.looks, leave=leave, task=task
        )
        meter.add(waiter)
        meter.eager = meter.eager or eager
        self._polls.poll_soon(meter)
        if self._feed is not None:
            self._feed_reader.came(meter, waiter)
            known = meter.known_to(wait)
            self._deliver(meter, waiter, lambda wait: wait.receive(known, self._now()))
        self._watch_deadline(waiter)
        return waiter

    def subscribe_to_readings(self, meter_id: str, version: str, *, poll_interval: float) -> ReadingSubscription:
        """Return a subscription to all readings of a meter, until it is closed; callouts do not slow these polls down.

        :param poll_interval: seconds between two polls, at least
        """
        meter = self._meter((meter_id, version), poll_interval)
        subscription = ReadingSubscription(poll_interval, leave=partial(self._unsubscribe, meter))
        meter.add_reader(subscription)
        meter.eager = True
        self._polls.poll_soon(meter)
        return subscription

    async def session_url(self, meter_id: str, session_id: str) -> str | None:
        """Return the address of a session's page, ``None`` where the connection has no template for it.

        :raises MediationError: the connection is missing or wrong
        """
        return await (await self._polls.hook()).session_url(meter_id, session_id)

    async def report(self, verdict: TaskVerdict) -> None:
        """Report what a task concluded from polls; best effort."""
        if self._feed is not None:
            await self._feed.observe(verdicts=[verdict])

    def _meter(self, key: tuple[str, str], poll_interval: float) -> WatchedMeter:
        if not self._meters:
            self._start()
        meter = self._meters.get(key)
        if meter is None:
            looks = PollWatchdog(monotonic=self._loop.time, now=self._now)
            meter = self._meters[key] = WatchedMeter(key, Pace(poll_interval, self._seen_meters), looks)
            self._seen_meters += 1
        return meter

    def _start(self) -> None:
        self._timers.add(self._loop.time() + TICK_SECONDS, self._tick)
        if self._feed is not None:
            self._polls.hold_off(FEED_FIRST_SECONDS)
            self._feed_task = spawn(self._follow(self._feed), "feed")

    def _leave(self, meter: WatchedMeter, waiter: WaitSubscription) -> None:
        meter.remove(waiter)
        if self._feed is not None:
            self._feed_reader.left(waiter)
        self._left(meter)

    def _unsubscribe(self, meter: WatchedMeter, subscription: ReadingSubscription) -> None:
        meter.remove_reader(subscription)
        self._left(meter)

    def _left(self, meter: WatchedMeter) -> None:
        """Stop polling a meter without subscriptions; the hub ends with its last meter."""
        if meter.watched:
            return
        del self._meters[meter.key]
        self._polls.drop(meter)
        if not self._meters:
            self._show_open_waits()
            self._timers.close()
            self._on_empty(spawn(self._close(), "close"))

    async def _close(self) -> None:
        tasks: list[asyncio.Task[Any]] = list(self._background)
        if self._feed_task is not None:
            self._feed_task.cancel()
            tasks.append(self._feed_task)
        try:
            await asyncio.gather(*tasks, return_exceptions=True)
        finally:  # a loop that ends cancels this task too
            await self._polls.close()

    # ---- what is received --------------------------------------------------------------------------------------------

    async def read(self, meter: WatchedMeter, reading: PollReading) -> None:
        """Pass a reading on to the meter's waits, and to the journal if the status is new."""
        metrics.polled(self._conn_id)
        if self._feed is not None and reading.status != meter.shown:
            meter.shown = reading.status
            task = spawn(self._feed.observe([JournalEntry.of_poll(meter.key[0], reading)]), "report")
            self._background.add(task)
            task.add_done_callback(self._background.discard)
        for subscription in meter.subscriptions:
            subscription.notify(reading)
        others = self._known_sessions(meter)
        await self._update(meter, meter.read(reading, others), lambda wait: wait.observe(reading, others))

    async def failed(self, meter: WatchedMeter, error: MediationError) -> None:
        """Pass a failed poll on to the meter's waits."""
        metrics.polled(self._conn_id, error)
        for subscription in meter.subscriptions:
            subscription.notify(error)
        await self._update(meter, meter.waiters, lambda wait: wait.fault(error, self._now()))

    async def receive(self, states: Sequence[SessionState], revisions: Sequence[int] = ()) -> None:
        """Pass exact states of sessions on: to each wait those that may concern it, and each state once.

        :param revisions: of each state; none from an older server
        """
        of_state = dict(zip(((state.meter_id, state.session_id) for state in states), revisions, strict=False))
        by_meter: dict[str, list[SessionState]] = {}
        by_session: dict[str, list[SessionState]] = {}
        for state in states:
            by_meter.setdefault(state.meter_id, []).append(state)
            by_session.setdefault(state.session_id, []).append(state)
        for meter in [meter for meter in self._meters.values() if meter.key[0] in by_meter]:
            new = meter.take(by_meter[meter.key[0]], of_state)
            if new:
                known = meter.sessions
                # A wait without a session id chooses among all known sessions.
                await self._update(
                    meter,
                    meter.concerned(new),
                    lambda wait: wait.receive(new if wait.tracker.named else known, self._now()),  # noqa: B023
                )
        for meter in list(self._meters.values()):
            elsewhere = meter.elsewhere(by_session)
            await self._update(meter, meter.named_by(elsewhere), lambda wait: wait.receive(elsewhere, self._now()))  # noqa: B023

    def _known_sessions(self, meter: WatchedMeter) -> Sequence[SessionState]:
        """Return a meter's sessions by callouts; none where run replies are the only source."""
        return meter.sessions if self._feed_reader.has_callouts else ()

    async def receive_windows(self, reports: Sequence[WindowReport]) -> None:
        """Pass the journal's reports of windows that have passed on to the waits."""
        for meter in list(self._meters.values()):
            windows = {report.window for report in reports if report.meter_id == meter.key[0]}
            waiters = [waiter for waiter in meter.waiters if waiter.wait.condition.window in windows]
            known = meter.sessions
            await self._update(meter, waiters, lambda wait: wait.receive_window(reports, known, self._now()))  # noqa: B023

    def _settle(self, grounds: FeedStatusChange | None) -> None:
        """Change to another feed status; ``None``: it is not known yet, so poll."""
        served = grounds is not None and grounds.callouts is FeedStatus.READ
        if grounds is not None:
            self._grounds = grounds
            task = spawn(self._update_all(), "grounds")
            self._background.add(task)
            task.add_done_callback(self._background.discard)
        self._polls.set_pace(self._meters.values(), self._cross_check if served else None)

    async def _follow(self, feed: SessionFeed) -> None:
        troubled = False
        while True:
            try:
                await feed.follow(self._feed_reader)
                troubled = False
            except Exception:
                if not troubled:
                    log.exception("The feed failed; it is tried again, and polls continue")
                troubled = True
                self._feed_reader.disconnected("it failed unexpectedly")
            await asyncio.sleep(FEED_PAUSE_SECONDS)

    # ---- updating the waits ------------------------------------------------------------------------------------------

    async def _update_all(self) -> None:
        for meter in list(self._meters.values()):
            await self._update(meter, meter.waiters, lambda _: _NOTHING)

    async def _update(
        self, meter: WatchedMeter, waiters: Iterable[WaitSubscription], notify: Callable[[SessionWait], WaitUpdate]
    ) -> None:
        for count, waiter in enumerate(list(waiters), start=1):
            if waiter in meter.waiters:
                self._deliver(meter, waiter, notify)
            if count % _UPDATES_PER_PASS == 0:
                await asyncio.sleep(0)

    def _deliver(
        self, meter: WatchedMeter, waiter: WaitSubscription, notify: Callable[[SessionWait], WaitUpdate]
    ) -> None:
        """Update one wait; first of all with the present feed status."""
        if waiter.ended:
            return
        try:
            if waiter.readings is not None:
                self._pass_on(waiter, waiter.catch_up())
            meter.unsettle(waiter)
            if self._grounds is not None and waiter.grounds is not self._grounds:
                waiter.grounds = self._grounds
                self._pass_on(waiter, waiter.wait.rely_on(self._grounds))
            update = notify(waiter.wait)
            self._pass_on(waiter, update)
        except Exception as error:  # a failed wait must not fail others: it fails in its own trigger
            waiter.fail(error)
            return
        if update.settled:
            meter.settle(waiter)
        meter.update_interest(waiter)
        self._feed_reader.note(waiter)
        self._watch_deadline(waiter)

    def _pass_on(self, waiter: WaitSubscription, update: WaitUpdate) -> None:
        if not waiter.ended and (update.lines or update.result is not None):
            waiter.notify(update, self._loop.time())
            if update.result is not None:
                self._measure(waiter, update.result)

    def _watch_deadline(self, waiter: WaitSubscription) -> None:
        """Keep the timer at the time at which a deadline could end the wait; the wait may move it."""
        deadline = None if waiter.ended else waiter.wait.deadline
        if deadline == waiter.deadline:
            return
        waiter.deadline = deadline
        if waiter.entry is not None:
            waiter.entry.cancel()
            waiter.entry = None
        if deadline is not None:
            # Not at once: a wait that is not ended by its own deadline would be called again and again.
            seconds = max((deadline - self._now()).total_seconds(), 0.1)
            waiter.entry = self._timers.add(self._loop.time() + seconds, partial(self._tick_one, waiter))

    def _tick_one(self, waiter: WaitSubscription) -> None:
        waiter.deadline = waiter.entry = None
        self._log_update(waiter, lambda wait: wait.tick(self._now()))

    def _tick(self) -> None:
        """Find waits without a recent log line, and deadlines that a step of the wall clock brought near."""
        at, now = self._loop.time(), self._now()
        self._timers.add(at + TICK_SECONDS, self._tick)
        self._show_open_waits()
        for meter in self._meters.values():
            for waiter in meter.waiters:
                if waiter.deadline is not None and waiter.deadline <= now:
                    if waiter.entry is not None:
                        waiter.entry.cancel()
                    self._timers.add(at, partial(self._tick_one, waiter))
                elif at - waiter.last_line_at >= HEARTBEAT_SECONDS:
                    waiter.last_line_at = at
                    self._timers.add(at, partial(self._log_update, waiter, self._heartbeat))

    def _measure(self, waiter: WaitSubscription, result: WaitResult) -> None:
        """Count the end of a wait, and its delay after the callout that caused it, if the wait existed by then."""
        metrics.wait_ended(self._conn_id, waiter.wait, result)
        learned_at = result.callout_at
        if learned_at is not None:
            # The clocks of two machines: the callout may appear to be in the future.
            lag = max((self._now() - learned_at).total_seconds(), 0.0)
            if lag <= self._loop.time() - waiter.subscribed_at:
                metrics.LAG.took(lag, conn_id=self._conn_id)

    def _show_open_waits(self) -> None:
        waits = sum(len(meter.waiters) for meter in self._meters.values())
        metrics.WAITS_OPEN.show(waits, conn_id=self._conn_id, hostname=socket.gethostname())

    def _heartbeat(self, wait: SessionWait) -> WaitUpdate:
        return WaitUpdate(lines=(wait.heartbeat(self._now()),))

    def _log_update(self, waiter: WaitSubscription, notify: Callable[[SessionWait], WaitUpdate]) -> None:
        condition = waiter.wait.condition
        meter = self._meters.get((condition.meter_id, condition.version))
        if meter is not None and waiter in meter.waiters:
            self._deliver(meter, waiter, notify)


_NOTHING: Final = WaitUpdate()
