"""A wait on a worker and the feed: one look for each poke, and what the journal is told of the wait and its polls.

Best effort: without an answer the wait goes on with polls, and none of this costs a task more than a few seconds.
"""

from __future__ import annotations

from datetime import datetime, timedelta
from typing import TYPE_CHECKING, Any, Final, Protocol

from airflow_mediation_provider import metrics
from airflow_mediation_provider.protocol.entry import Entry, EntryKind
from airflow_mediation_provider.protocol.feed import FULL_LOOK_SECONDS, FeedRequest, MeterQuestion
from airflow_mediation_provider.protocol.grounds import Callouts, grounds_of
from airflow_mediation_provider.protocol.transition import SessionTransition, Source
from airflow_mediation_provider.protocol.wait import PollReading, SessionWait, WaitUpdate
from airflow_mediation_provider.watch.reports import WaitingTask, ended, report

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from airflow_mediation_provider.protocol.feed import FeedReply, WaitReport
    from airflow_mediation_provider.protocol.lifecycle import SessionState

UNFOUND_SECONDS: Final = 60.0
"""A wait that needs callouts looks for the feed for this long before it fails."""


class Caller(Protocol):
    """What this module needs of ``FeedCaller``."""

    @property
    def address(self) -> str | None:
        """Where the feed was found."""

    @property
    def trouble(self) -> str:
        """Why the last call got no answer."""

    def look(self, question: FeedRequest) -> FeedReply | None:
        """Return what the journal knows now, ``None`` without an answer."""

    def observe(self, entries: Sequence[Entry]) -> bool:
        """Report what was learned, and return whether the journal has it."""

    def report_calls(self) -> None:
        """Report the calls to Zuora that no other report has carried."""


class WaitFeed:
    """The feed as one wait on a worker uses it.

    :param caller: calls the API server
    :param conn_id: the Airflow connection
    :param ti: the running task instance
    :param cross_check: seconds between two polls, at least, while callouts are read
    :param now: the clock
    """

    def __init__(
        self, caller: Caller, conn_id: str, ti: Any, *, cross_check: float, now: Callable[[], datetime]
    ) -> None:
        self._caller = caller
        self._conn_id = conn_id
        self._task = WaitingTask.of(ti)
        self._cross_check = timedelta(seconds=cross_check)
        self._now = now
        self._callouts: Callouts | None = None
        self._sessions: Sequence[SessionState] = ()
        self._reported_at: datetime | None = None
        self._named: str | None = None
        self._spared_until: datetime | None = None

    @property
    def read(self) -> bool:
        """Whether callouts were read at the last look."""
        return self._callouts is Callouts.READ

    @property
    def others(self) -> Sequence[SessionState]:
        """What callouts told of the meter's sessions, for a poll to be held against."""
        return self._sessions if self.read else ()

    def look(self, wait: SessionWait) -> WaitUpdate:
        """Ask the feed, and tell the wait what it knows."""
        if wait.polls_only:
            return WaitUpdate()
        now, condition = self._now(), wait.condition
        named = condition.session_id
        question = MeterQuestion(
            sessions=frozenset() if named is None else frozenset({named}), since=frozenset({wait.known.earliest})
        )
        reports = self._open(wait, now)
        reply = self._caller.look(FeedRequest(meters={condition.meter_id: question}, full=True, open=reports))
        if reply is not None and reports:
            self._reported_at, self._named = now, wait.known.session_id
        relied = self._rely(wait, reply, now)
        if reply is None or relied.result is not None:
            return relied
        self._sessions = reply.sessions
        learned = wait.learn(reply.sessions, now)
        return WaitUpdate((*relied.lines, *learned.lines), learned.result)

    def poll_is_due(self, wait: SessionWait, poke_interval: float) -> bool:
        """Say whether the meter is to be asked about: while callouts are read, only to cross-check them.

        :param poke_interval: seconds between two looks of the task
        """
        if not self.read:
            return True
        now, polled_at = self._now(), wait.polled_at
        if self._spared_until is not None and now < self._spared_until:
            return False
        if polled_at is None:
            # Of a session that is known, or a meter of which callouts came, nothing needs to be proven: neither the
            # meter's id nor the connection.
            if not wait.known.told and all(state.source is Source.RUN for state in self._sessions):
                return True
            polled_at = wait.created_at
        return now - polled_at >= max(self._cross_check, timedelta(seconds=poke_interval))

    def spare(self, seconds: float) -> None:
        """Leave Zuora alone for so long, as it asked for."""
        if seconds > 0:
            self._spared_until = self._now() + timedelta(seconds=seconds)

    def report_poll(self, wait: SessionWait, reading: PollReading) -> None:
        """Tell the journal of a poll that shows something new."""
        if self._caller.address is None:
            return
        transition = SessionTransition(
            meter_id=wait.condition.meter_id, status=reading.status, observed_at=reading.read_at, source=Source.POLL
        )
        entry = Entry(kind=EntryKind.POLL, observed_at=reading.read_at, source=Source.POLL, transition=transition)
        self._caller.observe([entry])

    def report_end(self, wait: SessionWait) -> None:
        """Tell the journal how the wait ended."""
        if self._reported_at is not None and self._task is not None and wait.result is not None:
            self._caller.look(FeedRequest(ended=(ended(self._conn_id, wait, self._task, self._now()),)))
        self.report_calls()

    def report_calls(self) -> None:
        """Tell the journal of the calls to Zuora: what this process does not tell before it ends is not counted."""
        self._caller.report_calls()

    def _open(self, wait: SessionWait, now: datetime) -> tuple[WaitReport, ...]:
        fresh = self._reported_at is not None and now - self._reported_at < timedelta(seconds=FULL_LOOK_SECONDS)
        if self._task is None or (fresh and self._named == wait.known.session_id):
            return ()
        return (report(self._conn_id, wait, self._task, "worker"),)

    def _rely(self, wait: SessionWait, reply: FeedReply | None, now: datetime) -> WaitUpdate:
        """Tell the wait what it can rest on."""
        if reply is None and self._callouts not in (Callouts.LOST, Callouts.UNFOUND):
            metrics.FEED_LOST.add(conn_id=self._conn_id)
        if reply is not None:
            self._callouts = Callouts.READ if reply.callouts else Callouts.OFF
        elif wait.callouts in (Callouts.READ, Callouts.LOST):
            self._callouts = Callouts.LOST
        else:
            self._callouts = Callouts.UNFOUND
            if wait.condition.previous_statuses and (now - wait.created_at).total_seconds() < UNFOUND_SECONDS:
                return WaitUpdate()
        return wait.rely_on(
            grounds_of(
                self._callouts,
                self._conn_id,
                address=self._caller.address,
                cross_check=self._cross_check.total_seconds(),
                reason=self._caller.trouble,
            )
        )
