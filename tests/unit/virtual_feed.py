"""A journal in virtual time, which a scripted Zuora calls out to, and the feed of it for triggerer and worker."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from airflow_mediation_provider.protocol.feed import FeedReply, FeedRequest
from airflow_mediation_provider.protocol.lifecycle import fold
from airflow_mediation_provider.protocol.transition import SessionTransition, Source
from tests.unit.virtual import Clock

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from datetime import datetime

    from airflow_mediation_provider.protocol.entry import Entry
    from airflow_mediation_provider.protocol.feed import MeterQuestion, WaitEnded, WaitReport
    from airflow_mediation_provider.protocol.lifecycle import SessionState
    from airflow_mediation_provider.watch.feed import FeedView

LATENCY = 0.2


@dataclass
class Journal:
    """What callouts said by when, and what was reported to it.

    :param callouts: whether the connection takes callouts
    """

    clock: Clock
    callouts: bool = True
    found: bool = True
    down: list[tuple[float, float]] = field(default_factory=list)
    said: list[tuple[float, SessionTransition]] = field(default_factory=list)
    open: dict[str, WaitReport] = field(default_factory=dict)
    ended: dict[str, WaitEnded] = field(default_factory=dict)
    entries: list[Entry] = field(default_factory=list)
    looks: list[float] = field(default_factory=list)
    calls_reported: list[float] = field(default_factory=list)

    def session(self, session_id: str, *steps: tuple[float, str], meter: str = "m", lost: Sequence[str] = ()) -> None:
        """Let a session go through statuses, each called out at once unless it is lost."""
        started, before = steps[0][0], None
        for second, status in steps:
            if status not in lost:
                self.say(second, session_id, status, before, started=started, meter=meter)
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
    ) -> None:
        at = Clock(second).now()
        transition = SessionTransition(
            meter_id=meter,
            session_id=session_id,
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
        """Return what a full look answers."""
        sessions: dict[tuple[str, str | None], list[SessionTransition]] = {}
        for second, transition in self.said:
            if second <= self.clock.seconds and transition.meter_id in meters:
                sessions.setdefault((transition.meter_id, transition.session_id), []).append(transition)
        states = [fold(transitions) for transitions in sessions.values()]
        return [state for state in states if self._asked(state, meters[state.meter_id])]

    def _asked(self, state: SessionState, question: MeterQuestion) -> bool:
        since: datetime | None = min(question.since, default=None)
        return (
            state.session_id in question.sessions
            or not state.terminal
            or (since is not None and state.begun_at >= since)
        )

    def changes(self, since: float) -> bool:
        return any(since < second <= self.clock.seconds for second, _ in self.said)

    def next_event(self) -> float:
        """Return the seconds to the next thing that happens to the journal."""
        now = self.clock.seconds
        moments = [second for second, _ in self.said] + [edge for outage in self.down for edge in outage]
        return min((moment - now for moment in moments if moment > now), default=60.0)

    def keep(self, open_: Sequence[WaitReport], ended: Sequence[WaitEnded]) -> None:
        for report in open_:
            self.open[report.id] = report
            self.ended.pop(report.id, None)
        for end in ended:
            self.ended[end.id] = end
            self.open.pop(end.id, None)


class AsyncFeed:
    """What the hub sees of ``FeedClient``."""

    address = "http://api/mediation"

    def __init__(self, journal: Journal) -> None:
        self.journal = journal

    async def follow(self, view: FeedView) -> None:
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
                view.connected(callouts=journal.callouts)
                view.new_questions.clear()
                journal.keep([*view.open_waits(), *view.named_waits()], view.ended_waits())
                states = journal.known(view.questions())
                if states:
                    await view.learn(states)
                try:
                    async with asyncio.timeout(min(journal.next_event(), 60.0)):
                        await view.new_questions.wait()
                except TimeoutError:
                    pass
        finally:
            journal.keep((), view.ended_waits())

    async def observe(self, entries: Sequence[Entry]) -> None:
        if self.journal.answers():
            self.journal.entries += entries


class SyncFeed:
    """What a worker sees of ``FeedCaller``; without a journal nobody answers."""

    trouble = "connection refused"

    def __init__(self, journal: Journal | None = None) -> None:
        self.journal = journal

    @property
    def address(self) -> str | None:
        return "http://api/mediation" if self.journal and self.journal.answers() else None

    def look(self, question: FeedRequest) -> FeedReply | None:
        journal = self.journal
        question = FeedRequest.from_bytes(question.to_bytes())
        if journal is None:
            return None
        journal.looks.append(journal.clock.seconds)
        if not journal.answers():
            return None
        journal.keep(question.open, question.ended)
        reply = FeedReply(cursor="c", callouts=journal.callouts, sessions=tuple(journal.known(question.meters)))
        return FeedReply.from_bytes(reply.to_bytes())

    def observe(self, entries: Sequence[Entry]) -> bool:
        if self.journal is None or not self.journal.answers():
            return False
        self.journal.entries += entries
        return True

    def report_calls(self) -> None:
        if self.journal is not None and self.journal.answers():
            self.journal.calls_reported.append(self.journal.clock.seconds)

    def close(self) -> None:
        pass
