"""The hub's side of the feed: what the waits ask it, and the feed status that they can rely on."""

from __future__ import annotations

import asyncio
import secrets
from collections import deque
from dataclasses import replace
from functools import partial
from itertools import chain, islice
from typing import TYPE_CHECKING

from airflow_mediation_provider import metrics
from airflow_mediation_provider.feed.long_poll import FEED_LOOK_SECONDS
from airflow_mediation_provider.feed.reports import ended, report
from airflow_mediation_provider.protocol.sessions.verdict import TRIGGERER
from airflow_mediation_provider.protocol.waits.feed_status import FeedMonitor

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Collection, Iterable, Mapping, Sequence
    from datetime import datetime

    from airflow_mediation_provider.feed.reports import WaitingTask
    from airflow_mediation_provider.protocol.sessions.lifecycle import SessionState
    from airflow_mediation_provider.protocol.sessions.window import WindowReport
    from airflow_mediation_provider.protocol.waits.feed_status import FeedStatusChange
    from airflow_mediation_provider.protocol.wire import HistoryStatus, MeterQuestion, WaitEnded, WaitReport
    from airflow_mediation_provider.triggerer.meter import WaitSubscription, WatchedMeter
    from airflow_mediation_provider.triggerer.timers import Timer, TimerQueue


class FeedReader:
    """The hub as its feed sees it; on the running event loop.

    :param conn_id: the Airflow connection
    :param meters: the meters of the hub
    :param timers: the hub's
    :param notify: receives the states of sessions
    :param receive_windows: receives what the journal has around windows that have passed
    :param settle: receives the feed status at each change; at first, ``None`` means that the feed has not answered yet
    :param address: returns the address of the feed
    :param cross_check: seconds between two polls while callouts are read
    :param now: the wall clock
    """

    def __init__(
        self,
        conn_id: str,
        meters: Callable[[], Iterable[WatchedMeter]],
        timers: TimerQueue,
        *,
        notify: Callable[[Sequence[SessionState], Sequence[int]], Awaitable[None]],
        receive_windows: Callable[[Sequence[WindowReport]], Awaitable[None]],
        settle: Callable[[FeedStatusChange | None], None],
        address: Callable[[], str | None],
        cross_check: float,
        now: Callable[[], datetime],
    ) -> None:
        self.new_questions = asyncio.Event()
        # Meter -> the waits that are new.
        self._new: dict[WatchedMeter, dict[WaitSubscription, None]] = {}
        self._loop = asyncio.get_running_loop()
        self._conn_id = conn_id
        self._meters = meters
        self._timers = timers
        self._notify = notify
        self._receive_windows = receive_windows
        self._settle = settle
        self._address = address
        self._now = now
        self._status = FeedMonitor(conn_id, cross_check=cross_check)
        self._silence_timer: Timer | None = None
        self.reporter = secrets.token_hex(16)
        # The owners of the waits whose start is not yet confirmed as stored.
        self._beginning: set[str] = set()
        # The waits to report: because they or their sessions are new, and because the API server does not have them.
        self._changed: dict[WaitSubscription, None] = {}
        self._again: dict[WaitSubscription, None] = {}
        # Those whose reports are under way.
        self._sent: list[WaitSubscription] = []
        # Bounded: a few unreported ends are no loss, and a feed may be out of reach for days.
        self._ended: deque[WaitEnded] = deque(maxlen=5000)

    @property
    def has_callouts(self) -> bool:
        """Whether the states of sessions come from callouts, and not from run replies alone."""
        return self._status.has_callouts

    # ---- what the feed requests --------------------------------------------------------------------------------------

    def take_new_questions(self) -> Mapping[str, MeterQuestion]:
        """Return what the waiters that subscribed since the last call need, by meter."""
        self.new_questions.clear()
        new, self._new = self._new, {}
        return _by_meter((meter, meter.question_of(waiters)) for meter, waiters in new.items())

    def questions(self) -> Mapping[str, MeterQuestion]:
        """Return what all waiters need, by meter."""
        return _by_meter((meter, meter.question()) for meter in self._meters())

    def meters(self) -> Collection[str]:
        """Return the meters of all waiters."""
        return {meter.key[0] for meter in self._meters() if meter.asks}

    def reports(self, most: int, *, again: bool) -> Sequence[WaitReport]:
        """Return the waits that are new, or whose session is, since the last report that was stored.

        :param most: the greatest number of reports
        :param again: also those that the API server does not have any more
        """
        self._sent = list(islice(chain(self._changed, self._again if again else ()), most))
        return [self._report(waiter, waiter.task) for waiter in self._sent if waiter.task is not None]

    def reported(self, *, kept: bool) -> None:
        """Note whether what ``reports`` returned last is stored; what is not is reported again after a while."""
        for waiter in self._sent:
            self._again.pop(waiter, None)
            if kept:
                self._beginning.discard(waiter.owner)
            if not kept or not self._is_renamed(waiter):
                self._changed.pop(waiter, None)
            if not kept and not waiter.closed:
                self._again[waiter] = None
        self._sent = []

    def report_again(self) -> None:
        """Note that the API server has only what ``reports`` returned last."""
        known = {*self._sent, *self._changed}
        waiters = (waiter for meter in self._meters() for waiter in meter.waiters)
        self._again |= dict.fromkeys(each for each in waiters if each.task is not None and each not in known)

    def note(self, waiter: WaitSubscription) -> None:
        """Note that a wait was updated: it is reported where its session has a new name."""
        if self._is_renamed(waiter):
            self._changed[waiter] = None

    def _is_renamed(self, waiter: WaitSubscription) -> bool:
        return waiter.report is not None and waiter.report.session_id != waiter.wait.tracker.session_id

    def _report(self, waiter: WaitSubscription, task: WaitingTask) -> WaitReport:
        """Return the report of a wait, which is made once: only its session and whether it begins may change."""
        begins = waiter.owner in self._beginning
        if waiter.report is None:
            waiter.report = report(self._conn_id, waiter.wait, task, TRIGGERER, owner=waiter.owner, begins=begins)
        elif self._is_renamed(waiter) or waiter.report.begins != begins:
            waiter.report = replace(waiter.report, session_id=waiter.wait.tracker.session_id, begins=begins)
        return waiter.report

    def ended_waits(self) -> Sequence[WaitEnded]:
        """Return the waits that ended, each once."""
        gone = list(self._ended)
        self._ended.clear()
        return gone

    # ---- what the feed reports ---------------------------------------------------------------------------------------

    async def receive(self, states: Sequence[SessionState], revisions: Sequence[int] = ()) -> None:
        """Pass states of sessions on to the waits."""
        await self._notify(states, revisions)

    async def receive_windows(self, reports: Sequence[WindowReport]) -> None:
        """Pass the journal's reports of windows that have passed on to the waits."""
        await self._receive_windows(reports)

    def connected(self, *, callouts: bool, history: HistoryStatus | None) -> None:
        """Note that the feed answers, and where sessions are reported from."""
        if self._silence_timer is not None:
            self._silence_timer.cancel()
            self._silence_timer = None
        if callouts:
            for meter in self._meters():
                meter.looks.polled(FEED_LOOK_SECONDS)
        self._become(self._status.answered(callouts=callouts, address=self._address(), history=history))

    def disconnected(self, reason: str) -> None:
        """Note that the feed does not answer."""
        if self._status.callouts is None and self._status.silent_since is None:
            self._settle(None)
        self._silent(reason)

    def _silent(self, reason: str) -> None:
        if self._silence_timer is not None:
            self._silence_timer.cancel()
        self._become(self._status.silent(self._loop.time(), reason))
        due = self._status.due
        self._silence_timer = None if due is None else self._timers.add(due, partial(self._silent, reason))

    def _become(self, grounds: FeedStatusChange | None) -> None:
        if grounds is not None:
            if grounds.silent:
                metrics.FEED_LOST.add(conn_id=self._conn_id)
            self._settle(grounds)

    # ---- what the hub reports ----------------------------------------------------------------------------------------

    def came(self, meter: WatchedMeter, waiter: WaitSubscription) -> None:
        """Note a new waiter, which needs the journal's present state."""
        if waiter.task is not None:
            self._beginning.add(waiter.owner)
            self._changed[waiter] = None
        self._new.setdefault(meter, {})[waiter] = None
        self.new_questions.set()

    def left(self, waiter: WaitSubscription) -> None:
        """Note the end of a wait."""
        begins = waiter.owner in self._beginning
        self._beginning.discard(waiter.owner)
        for waiters in (self._changed, self._again):
            waiters.pop(waiter, None)
        if waiter.task is not None:
            self._ended.append(
                ended(self._conn_id, waiter.wait, waiter.task, self._now(), owner=waiter.owner, begins=begins)
            )


def _by_meter(questions: Iterable[tuple[WatchedMeter, MeterQuestion | None]]) -> Mapping[str, MeterQuestion]:
    """Return the questions by meter: callouts do not distinguish a meter's versions."""
    found: dict[str, MeterQuestion] = {}
    for meter, question in questions:
        if question is not None:
            other = found.get(meter.key[0])
            found[meter.key[0]] = question if other is None else merged(question, other)
    return found


def merged(one: MeterQuestion, other: MeterQuestion) -> MeterQuestion:
    """Return a question that covers both."""
    return type(one)(
        sessions=one.sessions | other.sessions,
        since=one.since | other.since,
        windows=one.windows | other.windows,
        known=dict(one.known.items() & other.known.items()),
    )
