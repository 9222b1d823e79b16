"""One watched meter version: the subscriptions to it, its next poll, and its sessions by callouts."""

from __future__ import annotations

import asyncio
import math
import secrets
from collections import Counter, deque
from dataclasses import dataclass, replace
from itertools import islice
from typing import TYPE_CHECKING, Final, TypeVar

from airflow_mediation_provider.protocol.times import to_utc
from airflow_mediation_provider.protocol.waits.wait import SessionWait, WaitResult, WaitUpdate
from airflow_mediation_provider.protocol.wire import MeterQuestion

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping, Sequence
    from datetime import datetime

    from airflow_mediation_provider.feed.reports import WaitingTask
    from airflow_mediation_provider.protocol.sessions.journal_entry import PollReading
    from airflow_mediation_provider.protocol.sessions.lifecycle import SessionState
    from airflow_mediation_provider.protocol.sessions.window import Window
    from airflow_mediation_provider.protocol.waits.feed_status import FeedStatusChange
    from airflow_mediation_provider.protocol.waits.poll_pace import Pace
    from airflow_mediation_provider.protocol.waits.stop_policy import PollWatchdog
    from airflow_mediation_provider.protocol.wire import WaitReport
    from airflow_mediation_provider.protocol.zuora.errors import MediationError
    from airflow_mediation_provider.triggerer.timers import Timer

_TIDY_FROM: Final = 64
_MOST_LIVE: Final = 200
"""Sessions that go on, whose revisions a question for new waits names; a meter has more only if ends were lost."""
T = TypeVar("T")
_KEPT: Final = 1000


@dataclass(slots=True, eq=False)
class Readings:
    """Polls in a row that showed the same status, beside the same other sessions.

    :param last: the last one
    :param others: the meter's sessions by callouts
    """

    last: PollReading
    others: Sequence[SessionState]


class WaitSubscription:
    """A subscription to a hub; made by ``Hub.subscribe``.

    :param wait: the wait
    :param poll_interval: seconds between two polls, as its task set them
    :param subscribed_at: loop time of the subscription
    :param looks: the watchdog of its meter
    :param leave: removes it from the hub
    :param task: the task, for the reports
    """

    __slots__ = (
        "_error",
        "_leave",
        "_lines",
        "_looks",
        "_result",
        "_woken",
        "closed",
        "deadline",
        "entry",
        "grounds",
        "last_line_at",
        "owner",
        "poll_interval",
        "readings",
        "report",
        "subscribed_at",
        "task",
        "wait",
    )

    def __init__(
        self,
        wait: SessionWait,
        poll_interval: float,
        *,
        subscribed_at: float,
        looks: PollWatchdog,
        leave: Callable[[WaitSubscription], None],
        task: WaitingTask | None = None,
    ) -> None:
        self.wait = wait
        self.task = task
        # Its last report.
        self.report: WaitReport | None = None
        # Identifies this process as the one that started the wait.
        self.owner = secrets.token_hex(16)
        # The feed status that it received last.
        self.grounds: FeedStatusChange | None = None
        self.poll_interval = poll_interval
        # The readings that change nothing in the wait; the last of them is passed on before its next event.
        self.readings: Readings | None = None
        self.subscribed_at = subscribed_at
        # Time of the last line for its task.
        self.last_line_at = subscribed_at
        self.deadline: datetime | None = None
        self.entry: Timer | None = None
        self.closed = False
        self._looks = looks
        self._leave = leave
        self._lines: list[str] = []
        self._result: WaitResult | None = None
        self._error: BaseException | None = None
        self._woken: asyncio.Future[None] | None = None

    @property
    def ended(self) -> bool:
        """Whether it has ended: closed, or with a result or an error for its task to fetch."""
        return self.closed or self._result is not None or self._error is not None

    @property
    def stalled(self) -> bool:
        """Whether this process paused for too long between two polls of the meter, since the wait started here."""
        return self._looks.stalled(self.subscribed_at)

    def catch_up(self) -> WaitUpdate:
        """Pass on the last reading that changed nothing, so that the wait has its time."""
        if self.readings is None or self.ended:
            return WaitUpdate()
        return self.wait.observe(self.readings.last, self.readings.others)

    async def news(self) -> WaitUpdate:
        """Wait for log lines or a result, and return all there are.

        :raises Exception: what the wait itself raised; a bug
        """
        while not self._lines and self._result is None and self._error is None:
            self._woken = asyncio.get_running_loop().create_future()
            try:
                await self._woken
            finally:
                self._woken = None
        if self._error is not None:
            raise self._error
        lines, self._lines = tuple(self._lines), []
        return WaitUpdate(lines=lines, result=self._result)

    def notify(self, update: WaitUpdate, at: float) -> None:
        """Keep an update for the task, and wake it."""
        self._lines.extend(update.lines)
        self._result = update.result
        self.last_line_at = at
        self._wake()

    def fail(self, error: BaseException) -> None:
        """Have ``news()`` raise the error."""
        self._error = error
        self._wake()

    def close(self) -> None:
        """Leave the hub at once; a second call does nothing."""
        if self.closed:
            return
        self.catch_up()
        self.closed = True
        if self.entry is not None:
            self.entry.cancel()
            self.entry = None
        self._leave(self)

    def _wake(self) -> None:
        if self._woken is not None and not self._woken.done():
            self._woken.set_result(None)


class ReadingSubscription:
    """A subscription to a hub; made by ``Hub.subscribe_to_readings``.

    :param poll_interval: seconds between two polls
    :param leave: removes it from the hub
    """

    def __init__(self, poll_interval: float, *, leave: Callable[[ReadingSubscription], None]) -> None:
        self.poll_interval = poll_interval
        self._leave = leave
        self._seen: deque[PollReading | MediationError] = deque(maxlen=_KEPT)
        self._woken = asyncio.Event()
        self._closed = False

    async def next(self) -> PollReading | MediationError:
        """Return the oldest reading, or failure, that was not returned yet; wait for the next one if there is none."""
        while not self._seen:
            self._woken.clear()
            await self._woken.wait()
        return self._seen.popleft()

    def notify(self, what: PollReading | MediationError) -> None:
        """Keep a reading or a failure until it is fetched."""
        self._seen.append(what)
        self._woken.set()

    def close(self) -> None:
        """Leave the hub at once; a second call does nothing."""
        if not self._closed:
            self._closed = True
            self._leave(self)


class Intervals:
    """The shortest of some intervals, kept while they come and go: a thousand waits share a few values."""

    __slots__ = ("_counts", "shortest")

    def __init__(self) -> None:
        self._counts: Counter[float] = Counter()
        # Seconds; infinite without any interval.
        self.shortest = math.inf

    def add(self, seconds: float) -> None:
        """Add an interval."""
        self._counts[seconds] += 1
        self.shortest = min(self.shortest, seconds)

    def remove(self, seconds: float) -> None:
        """Remove an interval that was added."""
        _discard(self._counts, seconds)
        if seconds == self.shortest and seconds not in self._counts:
            self.shortest = min(self._counts, default=math.inf)


class WatchedMeter:
    """A meter version of a hub.

    :param key: meter id and version
    :param pace: of its polls
    :param looks: the watchdog of its polls and callouts
    """

    __slots__ = (
        "_alone",
        "_by_session",
        "_covered",
        "_live",
        "_question",
        "_readings",
        "_revisions",
        "_served",
        "_sessions",
        "_shown_sessions",
        "_since",
        "_since_named",
        "_tidy_at",
        "_unsettled",
        "_want_all",
        "_windows",
        "asked_at",
        "due",
        "eager",
        "key",
        "looks",
        "pace",
        "queued",
        "shown",
        "subscriptions",
        "task",
        "waiters",
    )

    def __init__(self, key: tuple[str, str], pace: Pace, looks: PollWatchdog) -> None:
        self.key = key
        self.pace = pace
        self.looks = looks
        self.waiters: dict[WaitSubscription, None] = {}
        self.subscriptions: dict[ReadingSubscription, None] = {}
        self.due: Timer | None = None
        self.asked_at = -math.inf
        self.eager = False
        self.queued = False
        self.task: asyncio.Task[float] | None = None
        # The last reported status.
        self.shown: str | None = None
        self._by_session: dict[str, dict[WaitSubscription, None]] = {}
        # The waits that need every session of the meter.
        self._want_all: dict[WaitSubscription, None] = {}
        # The waits in which another reading of the same status may change something.
        self._unsettled: dict[WaitSubscription, None] = {}
        self._readings: Readings | None = None
        self._sessions: dict[str, SessionState] = {}
        # Session -> the revision of its state, where the server sends one.
        self._revisions: dict[str, int] = {}
        # The sessions that go on.
        self._live: dict[str, None] = {}
        # The instants whose first sessions were asked for; what starts later is received as a change.
        self._covered: set[datetime] = set()
        self._shown_sessions: tuple[SessionState, ...] | None = ()
        self._tidy_at = _TIDY_FROM
        self._question: MeterQuestion | None = None
        self._since_named: datetime | None = None
        # What the waits without a session id ask for.
        self._since: Counter[datetime] = Counter()
        self._windows: Counter[Window] = Counter()
        # The intervals of the waits that callouts serve, where there are any, and those of all others.
        self._served, self._alone = Intervals(), Intervals()

    def add(self, waiter: WaitSubscription) -> None:
        """Add a wait."""
        self.waiters[waiter] = self._unsettled[waiter] = None
        self._intervals_of(waiter).add(waiter.poll_interval)
        condition, earliest = waiter.wait.condition, waiter.wait.tracker.earliest
        if condition.session_id is not None:
            self._by_session.setdefault(condition.session_id, {})[waiter] = None
            # Never later again: each new instant costs a query of all that is asked about the meter.
            self._since_named = min(self._since_named or earliest, earliest)
        elif not waiter.wait.polls_only:
            self._since[earliest] += 1
        if condition.window is not None:
            self._windows[condition.window] += 1
        self.update_interest(waiter)
        self._question = None

    def remove(self, waiter: WaitSubscription) -> None:
        """Remove a wait; a second call does nothing."""
        if waiter not in self.waiters:
            return
        for waiters in (self.waiters, self._want_all, self._unsettled):
            waiters.pop(waiter, None)
        self._intervals_of(waiter).remove(waiter.poll_interval)
        condition = waiter.wait.condition
        if condition.session_id is not None:
            others = self._by_session[condition.session_id]
            del others[waiter]
            if not others:
                del self._by_session[condition.session_id]
        elif not waiter.wait.polls_only:
            _discard(self._since, waiter.wait.tracker.earliest)
        if condition.window is not None:
            _discard(self._windows, condition.window)
        self._question = None

    def add_reader(self, reader: ReadingSubscription) -> None:
        """Add a subscription to all readings."""
        self.subscriptions[reader] = None
        self._alone.add(reader.poll_interval)

    def remove_reader(self, reader: ReadingSubscription) -> None:
        """Remove a subscription to all readings."""
        del self.subscriptions[reader]
        self._alone.remove(reader.poll_interval)

    def _intervals_of(self, waiter: WaitSubscription) -> Intervals:
        return self._alone if waiter.wait.polls_only else self._served

    def update_interest(self, waiter: WaitSubscription) -> None:
        """Note whether a wait, after an update, needs every session from now on."""
        if waiter.wait.wants_all_sessions:
            self._want_all[waiter] = None
        else:
            self._want_all.pop(waiter, None)

    @property
    def watched(self) -> bool:
        """Whether it has subscriptions."""
        return bool(self.waiters or self.subscriptions)

    def interval(self, cross_check: float | None) -> float:
        """Return the shortest interval of all subscriptions.

        :param cross_check: seconds, the shortest for waits that callouts serve; ``None``: they serve none
        """
        return min(max(self._served.shortest, cross_check or 0.0), self._alone.shortest)

    def read(self, reading: PollReading, others: Sequence[SessionState]) -> list[WaitSubscription]:
        """Store a reading, and return the waits in which it may change something.

        :param others: the meter's sessions by callouts
        """
        readings = self._readings
        if readings is not None and readings.last.status == reading.status and readings.others is others:
            readings.last = reading
        else:
            self._readings = Readings(reading, others)
            self._unsettled = dict.fromkeys(self.waiters)
        return list(self._unsettled)

    def settle(self, waiter: WaitSubscription) -> None:
        """Note that more of the present readings would change nothing in a wait."""
        waiter.readings = self._readings
        self._unsettled.pop(waiter, None)

    def unsettle(self, waiter: WaitSubscription) -> None:
        """Note that a wait was updated otherwise: the next reading may change something in it."""
        waiter.readings = None
        self._unsettled[waiter] = None

    @property
    def asks(self) -> bool:
        """Whether a wait is for its sessions."""
        return bool(self._by_session or self._since)

    def question(self) -> MeterQuestion | None:
        """Return what to request about the meter's sessions, ``None`` if no wait is for one.

        Sessions that start after an awaited one matter as well: a poll may show them instead.
        """
        if not self.asks:
            return None
        if self._question is None:
            since = set(self._since)
            if self._by_session and self._since_named is not None:
                since.add(self._since_named)
            self._question = MeterQuestion(
                sessions=frozenset(self._by_session), since=frozenset(since), windows=frozenset(self._windows)
            )
        self._covered = set(self._question.since)
        return replace(self._question, known=dict(self._revisions))

    def question_of(self, waiters: Iterable[WaitSubscription]) -> MeterQuestion | None:
        """Return what new waits need beyond what was requested for others, ``None`` if none is for a session."""
        waits = [waiter.wait for waiter in waiters if not waiter.closed and not waiter.wait.polls_only]
        if not waits:
            return None
        named = {wait.condition.session_id for wait in waits if wait.condition.session_id is not None}
        since = {wait.tracker.earliest for wait in waits if wait.condition.session_id is None}
        if named and self._since_named is not None:
            since.add(self._since_named)
        since -= self._covered
        self._covered |= since
        # Without an instant the reply has no others than the named and the live ones.
        needed = self._revisions if since else named.union(islice(reversed(self._live), _MOST_LIVE))
        return MeterQuestion(
            sessions=frozenset(named),
            since=frozenset(since),
            windows=frozenset(wait.condition.window for wait in waits if wait.condition.window is not None),
            known={each: self._revisions[each] for each in needed if each in self._revisions},
        )

    @property
    def sessions(self) -> Sequence[SessionState]:
        """The meter's sessions by callouts; the same object until they change."""
        if self._shown_sessions is None:
            self._shown_sessions = tuple(self._sessions.values())
        return self._shown_sessions

    def known_to(self, wait: SessionWait) -> Sequence[SessionState]:
        """Return those of the meter's sessions that a new wait needs."""
        if wait.wants_all_sessions:
            return self.sessions
        state = self._sessions.get(wait.tracker.session_id or "")
        return () if state is None else (state,)

    def take(self, states: Iterable[SessionState], revisions: Mapping[tuple[str, str], int]) -> list[SessionState]:
        """Store states of the meter's sessions from callouts, and return the new ones.

        :param revisions: meter and session -> the revision of its state; none from an older server
        """
        states = list(states)
        new = [state for state in states if self._sessions.get(state.session_id) != state]
        if new:
            self._shown_sessions = None
        self._sessions.update((state.session_id, state) for state in new)
        for state in states:
            self._live.pop(state.session_id, None)
            if not state.terminal:
                self._live[state.session_id] = None
            revision = revisions.get((state.meter_id, state.session_id))
            if revision is None:
                self._revisions.pop(state.session_id, None)
            else:
                self._revisions[state.session_id] = revision
        if len(self._sessions) > self._tidy_at:
            self._tidy()
        return new

    def elsewhere(self, states: Mapping[str, Sequence[SessionState]]) -> list[SessionState]:
        """Return states, under other meters, of sessions that are awaited by name and not known under this meter.

        :param states: by session
        """
        unknown = (self._by_session.keys() & states.keys()) - self._sessions.keys()
        return [state for session_id in unknown for state in states[session_id]]

    def named_by(self, states: Iterable[SessionState]) -> list[WaitSubscription]:
        """Return the waits whose session id is in some states, each once."""
        return list(dict.fromkeys(each for state in states for each in self._by_session.get(state.session_id, ())))

    def concerned(self, states: Sequence[SessionState]) -> list[WaitSubscription]:
        """Return the waits that new states may concern, each once."""
        found = dict.fromkeys(self.named_by(states))
        if self._want_all:
            starts = [to_utc("begun_at", state.begun_at) for state in states]
            reports = [to_utc("first_observed_at", state.first_observed_at) for state in states]
            ids, first, last = {state.session_id for state in states}, min(starts), max(*starts, *reports)
            found.update((each, None) for each in self._want_all if each.wait.tracker.may_bind(ids, first, last))
        return list(found)

    def _tidy(self) -> None:
        """Drop sessions that ended before any awaited one started."""
        self._shown_sessions = None
        since = min((waiter.wait.tracker.earliest for waiter in self.waiters), default=None)
        self._sessions = {
            session_id: state
            for session_id, state in self._sessions.items()
            if session_id in self._by_session or not (state.terminal and since and state.last_observed_at < since)
        }
        self._revisions = {key: value for key, value in self._revisions.items() if key in self._sessions}
        self._live = {key: None for key in self._live if key in self._sessions}
        self._covered.clear()
        self._tidy_at = max(_TIDY_FROM, 2 * len(self._sessions))


def _discard(counts: Counter[T], value: T) -> None:
    """Count a value once less, and drop it with its last count."""
    counts[value] -= 1
    if not counts[value]:
        del counts[value]
