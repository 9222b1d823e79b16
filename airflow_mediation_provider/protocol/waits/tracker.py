"""The session tracker of one wait: which session it is, what callouts reported of it, and what polls prove.

This module never ends a wait; ``wait`` decides that from the tracker's results.

A wait without a session id is *bound* to the first session of its meter that starts in a window. Callouts arrive late
and in any order, and the first one of a session may lack its start, or that it is a test. So the binding is computed
again from all received reports: it does not depend on the order of arrival, and each process with the same facts gets
the same result. Reports after the end of a wait change nothing.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import TYPE_CHECKING, Any, Final

from airflow_mediation_provider.protocol.sessions.window import MeterShown
from airflow_mediation_provider.protocol.status import IDLE, RunType
from airflow_mediation_provider.protocol.times import (
    CLOCK_SKEW,
    from_json,
    humanize,
    in_words,
    quarters_off,
    to_json,
    to_utc,
)
from airflow_mediation_provider.protocol.transition import SessionTransition, Source
from airflow_mediation_provider.protocol.waits.condition import Judgement, Outcome, judge
from airflow_mediation_provider.protocol.waits.poll_evidence import PollConclusion, PollEvidence, of_another

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence, Set

    from airflow_mediation_provider.protocol.sessions.journal_entry import PollReading
    from airflow_mediation_provider.protocol.sessions.lifecycle import SessionState
    from airflow_mediation_provider.protocol.waits.condition import SessionCondition

_OUR_SKEW: Final = timedelta(seconds=5)
"""How far the clocks of two machines on our side may differ."""
_KEPT: Final = 8
"""Number of sessions that are kept: the first, and the next ones in case the first turns out not to count."""


class WaitLog:
    """The last known status of the session and of its meter, and why no newer one is known.

    :param status: the session's status at the start of the wait, where it is known
    :param since: since when
    """

    __slots__ = ("note", "passed_over", "read", "read_since", "status", "status_since")

    def __init__(self, status: str | None, since: datetime | None) -> None:
        self.status = status
        self.status_since = since
        # The status that the meter shows, whether it is the session's own or not.
        self.read: str | None = None
        self.read_since: datetime | None = None
        self.note = ""
        # Of a session that is not the awaited one by its time alone. Apart from the note, which each poll replaces.
        self.passed_over = ""

    def saw(self, status: str, at: datetime) -> None:
        """Record the status that the meter shows."""
        if self.read_since is None or (status != self.read and at > self.read_since):
            self.read, self.read_since = status, at

    def change(self, status: str, since: datetime, subject: str, source: Source) -> str:
        """Record a new status of the session, and return the line to log.

        :param status: the status
        :param since: since when the session is known to have it
        :param subject: the session, as ``SessionTracker.subject`` names it
        :param source: how the status was received
        """
        if self.status is None or self.status_since is None:
            line = f"{subject} is {status}"
        else:
            line = f"{self.status} -> {status} after {humanize(since - self.status_since)}"
        self.status, self.status_since, self.note = status, since, ""
        return f"{line}, by {source}"

    def take(self, status: str, at: datetime, note: str, subject: str, *, counts: bool) -> list[str]:
        """Record a reading, and return what to log.

        :param status: the status that was polled
        :param at: when the poll was sent
        :param note: why the reading decides nothing, as text
        :param subject: the session, as ``SessionTracker.subject`` names it
        :param counts: whether it is the session's own status
        """
        lines = []
        if counts and status != self.status and self.read_since is not None:
            # The meter may have shown this status for long, while the session, by a callout, left it and came back.
            again = self.status_since is not None and self.read_since < self.status_since
            lines.append(self.change(status, at if again else self.read_since, subject, Source.POLL))
        elif counts and self.note and not note:
            lines.append(f"the meter shows {status} again")
            self.note = ""
        return lines + self.hold_back(note)

    def hold_back(self, reason: str) -> list[str]:
        """Record why the session's status is not known at present, and return what to log: each reason once."""
        if not reason or reason == self.note:
            return []
        self.note = reason
        return [f"{reason}; still waiting"]

    def pass_over(self, reason: str) -> list[str]:
        """Record why a session does not count though it may be the awaited one, and return what to log: once."""
        if reason == self.passed_over:
            return []
        self.passed_over = reason
        return [f"{reason}; still waiting"]

    def clear(self) -> None:
        """Clear the session's status: the log is about another session from now on."""
        self.status = self.status_since = None
        self.note = self.passed_over = ""

    def since(self, status: str, at: datetime) -> datetime:
        """Return since when the session has a status that was received at an instant."""
        return self.status_since if self.status == status and self.status_since else at

    def heartbeat(self, at: datetime, created_at: datetime) -> str:
        """Return the present state, for the task's log."""
        if self.status is None or self.status_since is None:
            return f"{self._why or 'no status read yet'}, {humanize(at - created_at)} so far"
        note = f" ({self.note})" if self.note else ""
        return f"still {self.status}, {humanize(at - self.status_since)} so far{note}"

    def at_deadline(self, at: datetime) -> str:
        """Return the state at the deadline; the text follows the subject."""
        if self.status is None or self.status_since is None:
            return f"was not seen ({self._why or 'no status was read'})"
        note = f" ({self.note})" if self.note else ""
        since = self.status_since
        return f"was {self.status} since {in_words(since)}, for {humanize(at - since)}{note}"

    @property
    def _why(self) -> str:
        """Why no status of the session is known."""
        return "; ".join(filter(None, (self.passed_over, self.note)))

    def last(self) -> tuple[str | None, datetime | None]:
        """Return the last known status of the session, else of its meter, and since when."""
        return (self.read, self.read_since) if self.status is None else (self.status, self.status_since)

    def to_dict(self) -> dict[str, Any]:
        """Return the log's state as plain JSON."""
        return {
            "status": self.status,
            "status_since": to_json(self.status_since),
            "read": self.read,
            "read_since": to_json(self.read_since),
            "note": self.note,
            "passed_over": self.passed_over,
        }

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> WaitLog:
        """Make a log from ``to_dict()``; missing keys get their value at the start of the wait.

        :raises ValueError: a time is not valid
        """
        self = cls(data.get("status"), from_json(data.get("status_since")))
        self.read = data.get("read")
        self.read_since = from_json(data.get("read_since"))
        self.note = str(data.get("note", ""))
        self.passed_over = str(data.get("passed_over", ""))
        return self


class Binding:
    """The sessions to which a condition without a session id may apply.

    :param condition: what is waited for
    :param earliest: the earliest start by Zuora's clock; ``None``: any
    :param called_at: by our clock: the instant of the run call that started the session, and whose reply was lost.
        Zuora's clock may be behind it, but no report of the session can have been received before
    """

    __slots__ = ("_condition", "_earliest", "_first_report", "_starts")

    def __init__(
        self, condition: SessionCondition, *, earliest: datetime | None, called_at: datetime | None = None
    ) -> None:
        self._condition = condition
        self._earliest = earliest if called_at is None else called_at - CLOCK_SKEW
        self._first_report = None if called_at is None else called_at - _OUR_SKEW
        self._starts: dict[str, datetime] = {}

    @property
    def session_id(self) -> str | None:
        """The session that the condition is bound to, ``None`` while no known one counts."""
        return min(self._starts, key=lambda session_id: (self._starts[session_id], session_id), default=None)

    @property
    def start(self) -> datetime | None:
        """When the session started that the condition is bound to."""
        return min(self._starts.values(), default=None)

    @property
    def earliest(self) -> datetime | None:
        """The earliest start of a session that counts, by Zuora's clock."""
        return self._earliest

    def passes_over(self, state: SessionState) -> bool:
        """Return whether only the zone of a session's start may be why the session does not count.

        Its first report was received in time, and its start is by quarters of an hour before that.
        """
        earliest, first = self._earliest, to_utc("first_observed_at", state.first_observed_at)
        start = to_utc("begun_at", state.begun_at)
        return (
            earliest is not None
            and start < earliest <= first
            and bool(quarters_off(start, first))
            and state.meter_id == self._condition.meter_id
            and state.run_type in self._condition.run_types
        )

    def take(self, states: Iterable[SessionState]) -> None:
        """Take the states of sessions, of the meter and of others, in any order and any number of times."""
        for state in states:
            if self._counts(state):
                self._starts[state.session_id] = to_utc("begun_at", state.begun_at)
            else:
                self._starts.pop(state.session_id, None)
        if len(self._starts) > _KEPT:
            order = sorted((start, session_id) for session_id, start in self._starts.items())
            self._starts = {session_id: start for start, session_id in order[:_KEPT]}

    def _counts(self, state: SessionState) -> bool:
        condition = self._condition
        return (
            state.meter_id == condition.meter_id
            and state.run_type in condition.run_types
            and (self._earliest is None or state.begun_at >= self._earliest)
            and (condition.before is None or state.begun_at < condition.before)
            and (self._first_report is None or state.first_observed_at >= self._first_report)
        )

    def to_list(self) -> list[list[str | None]]:
        """Return the kept sessions as plain JSON, the first session first."""
        return [[session_id, to_json(start)] for session_id, start in sorted(self._starts.items(), key=_by_start)]

    def load(self, data: Sequence[Any]) -> None:
        """Restore the sessions from ``to_list()``.

        :raises ValueError: a start is not a valid time
        """
        for session_id, text in data:
            start = from_json(text)
            if start is not None:
                self._starts[str(session_id)] = start


def _by_start(item: tuple[str, datetime]) -> tuple[datetime, str]:
    return item[1], item[0]


@dataclass(frozen=True, slots=True)
class CalloutEvidence:
    """The newest state of the awaited session by callouts.

    :param state: the session
    :param verdict: its meaning for the condition
    """

    state: SessionState
    verdict: Judgement


class SessionTracker:
    """All evidence of one wait about its session.

    :param condition: what is waited for
    :param created_at: when the wait began
    :param started_at: when the session started, by Zuora's clock; without a session id, it shows that a run call was
        made
    :param run_status: the session's status in the run reply
    :param baseline: the status of the meter version just before the run call, or by the sensor's first poll
    :param exclusive: the user's promise that nothing else runs the meter meanwhile
    :param settle: how long a reading may be stale
    :param longest_pause: between two polls, as long as none fails
    :param polls_only: no session is waited for, but the meter's status
    """

    __slots__ = (
        "_binding",
        "_condition",
        "_created_at",
        "_evidence",
        "_reported",
        "_started_at",
        "idle_read_at",
        "log",
    )

    def __init__(
        self,
        condition: SessionCondition,
        *,
        created_at: datetime,
        started_at: datetime | None,
        run_status: str | None = None,
        baseline: str | None = None,
        exclusive: bool,
        settle: timedelta,
        longest_pause: timedelta,
        polls_only: bool,
    ) -> None:
        self._condition = condition
        self._created_at = created_at
        self._started_at = started_at
        self._evidence = PollEvidence(
            condition,
            since=self._anchor(),
            begun=condition.session_id is not None or started_at is not None,
            baseline=baseline,
            exclusive=exclusive,
            settle=settle,
            started_at=started_at,
            closes_at=None if condition.before is None else condition.before + settle + longest_pause,
        )
        self._binding: Binding | None = None
        if condition.session_id is None and not polls_only:
            since = condition.since or started_at or created_at
            self._binding = Binding(condition, earliest=since, called_at=None if started_at is None else since)
        # The last state of the session by callouts: a feed repeats the same state many times.
        self._reported: list[Any] | None = None
        # When a poll last showed the meter idle, even where that proves nothing of the session: for the stop policy.
        self.idle_read_at: datetime | None = None
        self.log = WaitLog(run_status, None if run_status is None else min(started_at or created_at, created_at))

    @property
    def session_id(self) -> str | None:
        """The named session, or the one to which callouts bound the wait."""
        return self._condition.session_id or (self._binding.session_id if self._binding else None)

    @property
    def named(self) -> bool:
        """Whether the awaited session, if any, is known from the start of the wait."""
        return self._binding is None

    @property
    def earliest(self) -> datetime:
        """The earliest start of the meter's sessions that matter."""
        if self._binding is not None and self._binding.earliest is not None:
            return self._binding.earliest
        return min(self._created_at, self._evidence.started_at or self._created_at)

    @property
    def reported(self) -> bool:
        """Whether an exact report of the session was received."""
        return self._reported is not None

    @property
    def begun(self) -> bool:
        """Whether the session is known to have begun."""
        return self._evidence.bound

    @property
    def start(self) -> datetime | None:
        """When the session started: by callouts, else by the poll that first showed it; ``None`` while unknown."""
        return (self._binding.start if self._binding else None) or self._evidence.begun_at

    @property
    def open_until(self) -> datetime | None:
        """The latest time for a poll to show the session; ``None`` where one has, or there is no limit."""
        return self._evidence.open_until

    @property
    def meter_shown(self) -> MeterShown:
        """What polls show of the meter."""
        return MeterShown(
            status=self.log.read,
            read_at=self._evidence.read_at,
            idle_at=self.idle_read_at,
            settle=self.settle,
        )

    @property
    def doubt(self) -> str:
        """Evidence of another session of the meter, as text; empty where there is none."""
        return self._evidence.doubt

    @property
    def newer(self) -> bool:
        """Whether readings showed a session that began after the awaited one."""
        return self._evidence.newer

    @property
    def baseline(self) -> str | None:
        """The meter's status from before the session, where it was polled."""
        return self._evidence.baseline

    @property
    def exclusive(self) -> bool:
        """Whether the user promised that nothing else runs the meter."""
        return self._evidence.exclusive

    @property
    def shown(self) -> str | None:
        """The status that the last poll of the meter showed."""
        return self.log.read

    @property
    def settle(self) -> timedelta:
        """How long a reading may be stale."""
        return self._evidence.settle

    def facts(self) -> tuple[Any, ...]:
        """Return what the polls so far prove, without the times of the last ones: to compare."""
        return self.log.read, *self._evidence.facts()

    def settled(self, others: Iterable[SessionState]) -> bool:
        """Return whether the time of a poll no longer matters for what it proves, and did not at the last poll.

        :param others: the meter's sessions by callouts
        """
        read_at = self._evidence.read_at
        return read_at is not None and self._evidence.settled_at(read_at, others)

    def observe(self, reading: PollReading, others: Sequence[SessionState]) -> PollConclusion:
        """Evaluate a reading with all other evidence.

        :param reading: the status, and when the poll was sent
        :param others: the meter's sessions by callouts
        """
        self.log.saw(reading.status, reading.read_at)
        if reading.status in IDLE:
            self.idle_read_at = max(self.idle_read_at or reading.read_at, reading.read_at)
        return self._evidence.observe(reading, others)

    def explained(self, states: Sequence[SessionState], status: str, at: datetime) -> str:
        """Return why a reading that was taken for the session's own may be of another one; empty where it may not.

        :param states: the meter's sessions by callouts received since
        :param status: the status that was polled
        :param at: when the poll was sent
        """
        other = self._evidence.other(states, status, at)
        return of_another(other) if other else ""

    def may_bind(self, reported: Set[str], first: datetime, last: datetime) -> bool:
        """Return whether ``bind`` or ``receive`` may find anything new in some states: a fast check before them.

        :param reported: the ids of the states' sessions
        :param first: the earliest of their starts
        :param last: the latest of their starts and first reports
        """
        if self._binding is None:
            return True
        bound, start = self._binding.session_id, self._binding.start
        return last >= self.earliest if start is None else bound in reported or first <= start

    def bind(self, states: Sequence[SessionState]) -> list[str]:
        """Find the awaited session where none is named, and return what to log."""
        if self._binding is None:
            return []
        before = self._binding.session_id
        self._binding.take(states)
        session_id = self._binding.session_id
        if session_id == before:
            return self._passed_over(states) if session_id is None else []
        state = next((s for s in states if s.session_id == session_id), None)
        reported_at = self._anchor() if state is None else to_utc("observed_at", state.first_observed_at)
        self._evidence = self._evidence.of_session(session_id, reported_at)
        self._reported = None
        self.log.clear()
        if session_id is None:
            return [f"session {before} is not the awaited one"]
        if before is not None:
            return [f"session {session_id} comes before {before}: waiting for {session_id}"]
        return [f"waiting for session {session_id}, the first that is known"]

    def _passed_over(self, states: Sequence[SessionState]) -> list[str]:
        """Return what to log of a session that began too early by the time in its callout alone."""
        for state in states:
            if self._binding is not None and self._binding.passes_over(state):
                first = to_utc("first_observed_at", state.first_observed_at)
                return self.log.pass_over(
                    f"session {state.session_id} began at {in_words(to_utc('begun_at', state.begun_at))} by its "
                    f"callouts, before {in_words(self.earliest)}, but the first of them was received at "
                    f"{in_words(first)}: if it began then, the connection's callout_timezone is wrong"
                )
        return []

    def receive(self, states: Sequence[SessionState]) -> tuple[list[str], CalloutEvidence | None]:
        """Take the state of the awaited session by callouts, and return what to log, and the state where it is new.

        :param states: sessions of any meter, each as the fold of its transitions
        """
        session_id, meter_id = self.session_id, self._condition.meter_id
        state = next((s for s in states if s.session_id == session_id and s.meter_id == meter_id), None)
        if state is None:
            return [], None
        reported = [
            to_json(state.last_observed_at),
            state.status,
            state.previous_status,
            state.conflict,
            state.ambiguous,
        ]
        if reported == self._reported:
            return [], None
        self._reported = reported
        self._evidence.receive(state)
        verdict = judge(self._condition, state)
        lines: list[str] = []
        if not state.ambiguous and state.status != self.log.status:
            since = to_utc("observed_at", state.observed_at)
            lines.append(self.log.change(state.status, since, self.subject(), state.source))
        if verdict.outcome is Outcome.WAITING:
            lines += self.log.hold_back(verdict.reason)
        return lines, CalloutEvidence(state, verdict)

    def other_meter(self, states: Sequence[SessionState]) -> str | None:
        """Return the meter of the named session where it is certain that this is another meter; else ``None``.

        It is certain where Zuora reported the id of one meter only. A session of another run type may be a different
        one with the same number: Zuora does not document the form of the ids of tests.

        :param states: sessions of any meter
        """
        condition = self._condition
        if condition.session_id is None or self.reported:
            return None
        found = {(state.meter_id, state.run_type) for state in states if state.session_id == condition.session_id}
        if len(found) != 1:
            return None
        ((meter_id, run_type),) = found
        return meter_id if meter_id != condition.meter_id and run_type in condition.run_types else None

    def opening(self, conn_id: str) -> str:
        """Return one line for the start of the log: what is waited for, and its present status.

        :param conn_id: the Airflow connection
        """
        condition, log = self._condition, self.log
        who = self.subject()
        if self.session_id is None:
            meter = f"meter {condition.meter_id}"
            who = meter if self.named else f"the first session of {meter} from {in_words(self.earliest)} on"
            who += f" and before {in_words(condition.before)}" if condition.before else ""
        line = f"waiting for {who}, over connection {conn_id!r}, to be {condition.in_words()}"
        if condition.until is not None:
            line += f", until {in_words(condition.until)}"
        if log.status is not None and log.status_since is not None:
            line += f"; it is {log.status} since {in_words(log.status_since)}"
        return line

    def subject(self) -> str:
        """Return the name of the session, for messages."""
        session_id = self.session_id
        kind = "session" if RunType.NORMAL in self._evidence.run_types else "DEBUG session"
        meter = f"of meter {self._condition.meter_id}"
        return f"{kind} {session_id} {meter}" if session_id else f"the {kind} {meter}"

    def transition(self, status: str, at: datetime, source: Source) -> SessionTransition:
        """Return the session's transition where no callout reported its status.

        :param status: its status
        :param at: when the status was received
        :param source: how it was received
        """
        return SessionTransition(
            meter_id=self._condition.meter_id,
            session_id=self.session_id,
            # NORMAL comes first: where polls leave both open, the result is not certain.
            run_type=(self._evidence.may_be(status) or self._evidence.run_types)[0],
            status=status,
            started_at=self._evidence.started_at,
            observed_at=at,
            source=source,
        )

    def _anchor(self) -> datetime:
        """Return the latest possible start of the session; where none has begun, the earliest start of the awaited one.

        A run reply's start is by Zuora's clock. Right after the run call our own clock is more exact, and much later
        the difference of the clocks no longer matters.
        """
        if self._started_at is not None:
            return min(self._created_at, self._started_at + CLOCK_SKEW)
        return max(self._created_at, self._condition.since or self._created_at)

    def to_dict(self) -> dict[str, Any]:
        """Return the evidence as plain JSON, without the condition and the times of the start."""
        return {
            "attribution": self._evidence.to_dict(),
            **self.log.to_dict(),
            "sessions": self._binding.to_list() if self._binding else [],
            "told": self._reported,
            "idle_read_at": to_json(self.idle_read_at),
        }

    def load(self, data: Mapping[str, Any]) -> None:
        """Restore the evidence from ``to_dict()``; missing keys get their value at the start of the wait.

        :raises ValueError: a time is not valid
        """
        if data.get("attribution"):
            self._evidence = PollEvidence.from_dict(self._condition, data["attribution"])
        self.log = WaitLog.from_dict(data)
        if self._binding is not None:
            self._binding.load(data.get("sessions") or ())
        reported = data.get("told")
        self._reported = list(reported) if reported else None
        self.idle_read_at = from_json(data.get("idle_read_at"))
