"""A journal in virtual time that receives callouts of a scripted Zuora, with its feed for triggerer and worker."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from airflow_mediation_provider.feed.flow import FeedUnavailableError
from airflow_mediation_provider.protocol.sessions.lifecycle import fold
from airflow_mediation_provider.protocol.sessions.window import WindowReport
from airflow_mediation_provider.protocol.status import RunType
from airflow_mediation_provider.protocol.transition import SessionTransition, Source
from airflow_mediation_provider.protocol.wire import (
    LONGEST_WAIT_SECONDS,
    FeedReply,
    FeedRequest,
    observations_from_bytes,
    observations_to_bytes,
)
from tests.unit.virtual import Clock

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from datetime import datetime

    from airflow_mediation_provider.feed.long_poll import FeedListener
    from airflow_mediation_provider.protocol.sessions.journal_entry import JournalEntry
    from airflow_mediation_provider.protocol.sessions.lifecycle import SessionState
    from airflow_mediation_provider.protocol.sessions.verdict import TaskNote, TaskVerdict
    from airflow_mediation_provider.protocol.wire import HistoryStatus, MeterQuestion, WaitEnded, WaitReport

LATENCY = 0.2


@dataclass
class Journal:
    """Callouts by time, and all that was reported to the journal.

    :param callouts: whether the connection takes callouts
    :param history: how the callout history of one without callouts is read
    """

    clock: Clock
    callouts: bool = True
    history: HistoryStatus | None = None
    found: bool = True
    reports_windows: bool = True
    down: list[tuple[float, float]] = field(default_factory=list)
    said: list[tuple[float, SessionTransition]] = field(default_factory=list)
    open: dict[str, WaitReport] = field(default_factory=dict)
    ended: dict[str, WaitEnded] = field(default_factory=dict)
    owners: dict[str, str | None] = field(default_factory=dict)
    kept: bool = True
    entries: list[JournalEntry] = field(default_factory=list)
    verdicts: list[TaskVerdict] = field(default_factory=list)
    tasks: list[TaskNote] = field(default_factory=list)
    looks: list[float] = field(default_factory=list)
    calls_reported: list[float] = field(default_factory=list)

    def session(
        self,
        session_id: str,
        *steps: tuple[float, str],
        meter: str = "m",
        lost: Sequence[str] = (),
        run_type: str = RunType.NORMAL,
    ) -> None:
        """Let a session go through statuses, each with an immediate callout unless it is lost."""
        started, before = steps[0][0], None
        for second, status in steps:
            if status not in lost:
                self.say(second, session_id, status, before, started=started, meter=meter, run_type=run_type)
            before = status

    def say(
        self,
        second: float,
        session_id: str,
        status: str,
        before: str | None = None,
        *,
        started: float | None = None,
        meter: str = "m",
        source: Source = Source.CALLOUT,
        run_type: str = RunType.NORMAL,
    ) -> None:
        at = Clock(second).now()
        transition = SessionTransition(
            meter_id=meter,
            session_id=session_id,
            run_type=run_type,
            status=status,
            previous_status=before,
            started_at=None if started is None else Clock(started).now(),
            ended_at=at if status in ("COMPLETED", "FAILED", "CANCELED") else None,
            observed_at=at,
            source=source,
            notification_id=f"{session_id}-{status}-{second}",
        )
        self.said.append((second, transition))

    def answers(self) -> bool:
        return self.found and not any(begin <= self.clock.seconds < end for begin, end in self.down)

    def known(self, meters: Mapping[str, MeterQuestion]) -> list[SessionState]:
        """Return the answer to a full read."""
        sessions: dict[tuple[str, str | None], list[SessionTransition]] = {}
        for second, transition in self.said:
            if second <= self.clock.seconds:
                sessions.setdefault((transition.meter_id, transition.session_id), []).append(transition)
        states = [fold(transitions) for transitions in sessions.values()]
        # For a session id that is not known under its meter: its states under other meters.
        missing = {
            session_id
            for meter_id, question in meters.items()
            for session_id in question.sessions
            if (meter_id, session_id) not in sessions
        }
        return [
            state
            for state in states
            if state.session_id in missing or (state.meter_id in meters and self._asked(state, meters[state.meter_id]))
        ]

    def _asked(self, state: SessionState, question: MeterQuestion) -> bool:
        since: datetime | None = min(question.since, default=None)
        return (
            state.session_id in question.sessions
            or not state.terminal
            or (since is not None and state.begun_at >= since)
        )

    def windows(self, meters: Mapping[str, MeterQuestion]) -> list[WindowReport]:
        """Return the reports of passed windows for a full read; an older version has none."""
        first: dict[tuple[str, str | None], datetime] = {}
        for second, transition in sorted(self.said, key=lambda each: each[0]):
            if second <= self.clock.seconds:
                first.setdefault((transition.meter_id, transition.session_id), Clock(second).now())
        return [
            WindowReport(
                meter_id=meter_id,
                window=window,
                callouts_before=any(at < window.since for at in first.values()),
                received=next(
                    (
                        session_id
                        for (meter, session_id), at in first.items()
                        if meter == meter_id and window.since <= at < window.before
                    ),
                    None,
                ),
            )
            for meter_id, question in meters.items()
            for window in question.windows
            if self.callouts and self.reports_windows and window.before <= self.clock.now()
        ]

    def changes(self, since: float) -> bool:
        return any(since < second <= self.clock.seconds for second, _ in self.said)

    def next_event(self) -> float:
        """Return the seconds to the next event of the journal."""
        now = self.clock.seconds
        moments = [second for second, _ in self.said] + [edge for outage in self.down for edge in outage]
        return min((moment - now for moment in moments if moment > now), default=60.0)

    def take(self, entries: Sequence[JournalEntry], verdicts: Sequence[TaskVerdict], tasks: Sequence[TaskNote]) -> None:
        """Take a request with observations, after its round trip through JSON."""
        told = observations_from_bytes(observations_to_bytes(entries, verdicts=verdicts, tasks=tasks))
        assert not told.unreadable
        self.entries += told.entries
        self.verdicts += told.verdicts
        self.tasks += told.tasks

    def keep(self, open_: Sequence[WaitReport], ended: Sequence[WaitEnded]) -> None:
        for report in open_:
            if self.kept and (report.begins or self.owners.get(report.id) in (None, report.owner)):
                self.owners[report.id] = report.owner
                self.open[report.id] = report
                self.ended.pop(report.id, None)
        for end in ended:
            if self.owners.get(end.id) in (None, end.owner):
                self.ended[end.id] = end
                self.open.pop(end.id, None)

    def reply(self, question: FeedRequest) -> FeedReply:
        """Answer a request at once, after its round trip through JSON."""
        self.keep(question.waits.open, question.waits.ended)
        reply = FeedReply(
            cursor="c",
            callouts=self.callouts,
            history=self.history,
            sessions=tuple(self.known(question.meters)),
            windows=tuple(self.windows(question.meters)),
            owners={wait_id: self.owners.get(wait_id) for wait_id in question.owners},
            kept=self.kept,
        )
        return FeedReply.from_bytes(reply.to_bytes())


class AsyncFeed:
    """The part of ``FeedClient`` that the hub uses."""

    address = "http://api/mediation"

    def __init__(self, journal: Journal) -> None:
        self.journal = journal

    async def follow(self, view: FeedListener) -> None:
        journal, pause = self.journal, 1.0
        try:
            while True:
                await asyncio.sleep(LATENCY)
                if not journal.answers():
                    view.disconnected("connection refused")
                    await asyncio.sleep(pause)
                    pause = min(2 * pause, 20.0)
                    continue
                pause = 1.0
                view.connected(callouts=journal.callouts, history=journal.history)
                view.take_new_questions()
                journal.keep(view.reports(2000, again=True), view.ended_waits())
                view.reported(kept=journal.kept)
                states = journal.known(view.questions())
                if states:
                    await view.receive(states)
                if reports := journal.windows(view.questions()):
                    await view.receive_windows(reports)
                try:
                    async with asyncio.timeout(min(journal.next_event(), LONGEST_WAIT_SECONDS)):
                        await view.new_questions.wait()
                except TimeoutError:
                    pass
        finally:
            journal.keep((), view.ended_waits())

    async def ask(self, question: FeedRequest) -> FeedReply:
        await asyncio.sleep(LATENCY)
        if not self.journal.answers():
            raise FeedUnavailableError("connection refused")
        return self.journal.reply(FeedRequest.from_bytes(question.to_bytes()))

    async def close(self) -> None:
        pass

    async def observe(
        self,
        entries: Sequence[JournalEntry] = (),
        *,
        verdicts: Sequence[TaskVerdict] = (),
        tasks: Sequence[TaskNote] = (),
    ) -> None:
        if self.journal.answers():
            self.journal.take(entries, verdicts, tasks)


class SyncFeed:
    """The part of ``WorkerFeedClient`` that a worker uses; without a journal there is no answer."""

    trouble = "connection refused"

    def __init__(self, journal: Journal | None = None) -> None:
        self.journal = journal

    @property
    def address(self) -> str | None:
        return "http://api/mediation" if self.journal and self.journal.answers() else None

    def ask(self, question: FeedRequest) -> FeedReply | None:
        journal = self.journal
        question = FeedRequest.from_bytes(question.to_bytes())
        if journal is None:
            return None
        journal.looks.append(journal.clock.seconds)
        if not journal.answers():
            return None
        return journal.reply(question)

    def observe(
        self,
        entries: Sequence[JournalEntry] = (),
        *,
        verdicts: Sequence[TaskVerdict] = (),
        tasks: Sequence[TaskNote] = (),
    ) -> bool:
        if self.journal is None or not self.journal.answers():
            return False
        self.journal.take(entries, verdicts, tasks)
        return True

    def report_calls(self) -> None:
        if self.journal is not None and self.journal.answers():
            self.journal.calls_reported.append(self.journal.clock.seconds)

    def close(self) -> None:
        pass
