"""SessionWait: one task's wait for one session, from its first reading to its end, for every mode alike.

It has no clock and does no I/O: readings, faults and the time come from whoever drives it (a sensor on a worker, the
hub in the triggerer), and its whole memory goes into plain JSON and back. What it says is final: a wait that has ended
gives the same result whatever comes after.
"""

from __future__ import annotations

from dataclasses import replace
from datetime import datetime, timedelta
from typing import TYPE_CHECKING, Any, Final

from airflow_mediation_provider.protocol.attribution import Attribution, PollReading
from airflow_mediation_provider.protocol.condition import Outcome, SessionCondition, judge
from airflow_mediation_provider.protocol.outage import Outage
from airflow_mediation_provider.protocol.status import RunType
from airflow_mediation_provider.protocol.times import from_json, humanize, in_words, to_json, to_utc
from airflow_mediation_provider.protocol.transition import SessionTransition, Source
from airflow_mediation_provider.protocol.wait_result import WaitEnd, WaitResult, WaitUpdate

if TYPE_CHECKING:
    from collections.abc import Mapping

    from airflow_mediation_provider.protocol.errors import MediationError
    from airflow_mediation_provider.protocol.lifecycle import SessionState

__all__ = ["PollReading", "SessionWait", "WaitEnd", "WaitResult", "WaitUpdate"]

# How far Zuora's clock and ours may differ, where only Zuora's start time tells when a session began.
CLOCK_SKEW: Final = timedelta(minutes=5)
_VERSION: Final = 1
_NOTHING_NEW: Final = WaitUpdate()


class SessionWait:
    """One wait: feed it readings, faults and ticks; it says what to log and when, and how, the wait is over.

    :param condition: what is waited for; its ``until`` is the deadline
    :param created_at: when the wait began: right after the run call, or at the sensor's first look
    :param started_at: when the session started, by Zuora's clock, where the run reply told; with the session id unknown
        it says that the run call was made nevertheless
    :param run_status: the session's status in the run reply
    :param baseline: the status of the meter version just before the run call, or at the sensor's first look
    :param exclusive: the user's promise: from the session's start (with no session known: from ``since``, or the wait's
        begin where that is earlier) until the wait ends, no other session of the meter is live
    :param require_certain: end as UNCERTAIN where polls alone cannot prove the outcome
    :param max_unreachable: how long Zuora may go without a good answer
    :param settle: how long a reading may be stale: no reading ends the wait sooner than this after the session's start
    :param callouts: whether ``learn`` will be given what callouts say
    :raises ValueError: a time is naive, or ``previous_statuses`` are asked for without callouts
    """

    __slots__ = (
        "_attribution",
        "_bound",
        "_callouts",
        "_condition",
        "_created_at",
        "_note",
        "_outage",
        "_read",
        "_read_since",
        "_require_certain",
        "_result",
        "_started_at",
        "_status",
        "_status_since",
    )

    def __init__(
        self,
        condition: SessionCondition,
        *,
        created_at: datetime,
        started_at: datetime | None = None,
        run_status: str | None = None,
        baseline: str | None = None,
        exclusive: bool = False,
        require_certain: bool = False,
        max_unreachable: timedelta = timedelta(hours=1),
        settle: timedelta = timedelta(seconds=30),
        callouts: bool = False,
    ) -> None:
        if condition.previous_statuses and not callouts:
            raise ValueError(
                "previous_statuses needs Zuora's callouts: a poll tells the present status only. "
                "Connect callouts, or leave previous_statuses out"
            )
        self._condition = condition
        self._created_at = to_utc("created_at", created_at)
        self._started_at = None if started_at is None else to_utc("started_at", started_at)
        begun = condition.session_id is not None or self._started_at is not None
        self._attribution = Attribution(
            condition,
            since=self._anchor(),
            begun=begun,
            baseline=baseline,
            exclusive=exclusive,
            settle=settle,
        )
        self._require_certain = require_certain
        self._callouts = callouts
        self._status = run_status
        self._status_since = None if run_status is None else min(self._started_at or self._created_at, self._created_at)
        # What the meter shows, be it the session's own status or not.
        self._read: str | None = None
        self._read_since: datetime | None = None
        self._note = ""
        # A run reply and a baseline are good answers too, got with the same connection for the same meter.
        answered = self._started_at is not None or run_status is not None or baseline is not None
        self._outage = Outage(max_unreachable, answered=answered)
        # The session that callouts named, with its start, where the condition names none.
        self._bound: tuple[str, datetime] | None = None
        self._result: WaitResult | None = None
        if run_status is not None and condition.outcome_of(run_status) is not Outcome.WAITING:
            at = self._created_at
            self._conclude(condition.outcome_of(run_status), run_status, at, Source.RUN, certain=True, reason="")

    @property
    def condition(self) -> SessionCondition:
        """What is waited for."""
        return self._condition

    @property
    def created_at(self) -> datetime:
        """When the wait began."""
        return self._created_at

    @property
    def bound(self) -> bool:
        """Whether the awaited session is known to have begun."""
        return self._attribution.bound

    @property
    def doubt(self) -> str:
        """What was seen of another session of the meter, in words; empty where nothing was."""
        return self._attribution.doubt

    @property
    def result(self) -> WaitResult | None:
        """The end of the wait, once it has come; a run reply can bring it before the first reading."""
        return self._result

    @property
    def deadline(self) -> datetime | None:
        """The earliest instant at which ``tick`` could end the wait; ``None`` where time alone never does."""
        return None if self._result else self._condition.until

    def observe(self, reading: PollReading) -> WaitUpdate:
        """Take a reading of the meter version's status.

        :param reading: the status, and when it was asked for
        """
        if self._result is not None:
            return WaitUpdate(result=self._result)
        at = reading.read_at
        lines = list(self._outage.answer(at))
        if self._read_since is None or (reading.status != self._read and at > self._read_since):
            self._read, self._read_since = reading.status, at
        verdict = self._attribution.observe(reading)
        over = verdict.outcome is not Outcome.WAITING
        if verdict.speaks:
            if reading.status != self._status:
                lines.append(self._change(reading.status, self._read_since))
            elif self._note:
                lines.append(f"the meter shows {reading.status} again")
            self._note = ""
        elif verdict.reason and verdict.reason != self._note:
            self._note = verdict.reason
            lines.append(f"{verdict.reason}; waiting on")
        if over and not self._left_to_callouts(verdict.outcome, certain=verdict.certain):
            self._conclude(
                verdict.outcome, verdict.status, at, Source.POLL, certain=verdict.certain, reason=verdict.reason
            )
        elif self._is_late(at):
            self._time_out(at)
        return WaitUpdate(tuple(lines), self._result) if lines or self._result else _NOTHING_NEW

    def fault(self, error: MediationError, at: datetime) -> WaitUpdate:
        """Take a failed attempt to read the status.

        :param error: what went wrong
        :param at: when it did
        """
        if self._result is not None:
            return WaitUpdate(result=self._result)
        at = to_utc("at", at)
        lines = self._outage.fault(error, at)
        end = self._outage.end(error, at)
        if end is not None and end[0] is WaitEnd.MISCONFIGURED:
            self._end(*end)
        elif self._is_late(at):
            self._time_out(at)
        elif end is not None:
            self._end(*end)
        return WaitUpdate(() if self._result else lines, self._result)

    def tick(self, at: datetime) -> WaitUpdate:
        """Look at the clock: end the wait where its deadline has passed.

        :param at: the time now
        """
        at = to_utc("at", at)
        if self._result is None and self._is_late(at):
            self._time_out(at)
        return WaitUpdate(result=self._result) if self._result else _NOTHING_NEW

    def learn(self, state: SessionState, at: datetime) -> WaitUpdate:
        """Take what is known exactly of a session (callouts, callout history); other meters' sessions change nothing.

        :param state: the session as the fold of its transitions
        :param at: when it was learned
        """
        if self._result is not None:
            return WaitUpdate(result=self._result)
        if state.meter_id != self._condition.meter_id:
            return _NOTHING_NEW
        if not self._is_awaited(state):
            if not state.terminal or state.begun_at >= self._anchor():
                self._attribution.contradict(f"session {state.session_id} of the same meter ran meanwhile")
            return _NOTHING_NEW
        verdict = judge(self._condition, (state,))
        lines: list[str] = []
        if not state.ambiguous and state.status != self._status:
            lines.append(self._change(state.status, to_utc("observed_at", state.observed_at)))
            self._note = ""
        if verdict.outcome is not Outcome.WAITING:
            reason = "Zuora reported two different ends of the session" if state.conflict else ""
            self._conclude(
                verdict.outcome,
                state.status,
                to_utc("at", at),
                state.source,
                certain=not state.conflict,
                reason=reason,
                transition=state.transition,
            )
        return WaitUpdate(tuple(lines), self._result)

    def heartbeat(self, at: datetime) -> str:
        """Return one line that says how things stand.

        :param at: the time now
        """
        at = to_utc("at", at)
        if self._status is None or self._status_since is None:
            line = f"{self._note or 'no status read yet'}, {humanize(at - self._created_at)} so far"
        else:
            line = f"still {self._status}, {humanize(at - self._status_since)} so far"
            if self._note:
                line += f" ({self._note})"
        if self._outage.since is not None:
            line += f"; no answer from Zuora for {humanize(at - self._outage.since)}"
        return line

    def renewed(self, *, until: datetime | None) -> SessionWait:
        """Return the wait as the next try of its task takes it up: what is known of the session is kept.

        Patience with Zuora begins anew, and an end that was not the session's own is none any more.

        :param until: the new try's deadline
        :raises ValueError: the deadline is naive, or before the condition's ``since``
        """
        wait = SessionWait.from_dict(self.to_dict())
        wait._condition = replace(self._condition, until=until)
        wait._outage.forgive()
        if wait._result is not None and wait._result.end not in (WaitEnd.MET, WaitEnd.FAILED):
            wait._result = None
        return wait

    def to_dict(self) -> dict[str, Any]:
        """Return the wait with its whole memory as plain JSON: a contract across versions of this package."""
        bound = self._bound
        return {
            "version": _VERSION,
            "condition": self._condition.to_dict(),
            "attribution": self._attribution.to_dict(),
            "created_at": to_json(self._created_at),
            "started_at": to_json(self._started_at),
            "require_certain": self._require_certain,
            "callouts": self._callouts,
            "status": self._status,
            "status_since": to_json(self._status_since),
            "read": self._read,
            "read_since": to_json(self._read_since),
            "note": self._note,
            "outage": self._outage.to_dict(),
            "bound": None if bound is None else [bound[0], to_json(bound[1])],
            "result": None if self._result is None else self._result.to_dict(),
        }

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> SessionWait:
        """Make a wait from ``to_dict()`` of this or another version of the package.

        Unknown keys are left out; what is missing is as at the wait's begin.

        :raises ValueError: the condition or ``created_at`` is missing or not valid
        """
        condition = SessionCondition.from_dict(data.get("condition") or {})
        created_at = from_json(data.get("created_at"))
        if created_at is None:
            raise ValueError("the stored wait lacks 'created_at'")
        self = cls(
            condition,
            created_at=created_at,
            started_at=from_json(data.get("started_at")),
            require_certain=bool(data.get("require_certain", False)),
            callouts=bool(data.get("callouts", False)),
        )
        if data.get("attribution"):
            self._attribution = Attribution.from_dict(condition, data["attribution"])
        self._status = data.get("status")
        self._status_since = from_json(data.get("status_since"))
        self._read = data.get("read")
        self._read_since = from_json(data.get("read_since"))
        self._note = str(data.get("note", ""))
        if data.get("outage"):
            self._outage = Outage.from_dict(data["outage"])
        bound = data.get("bound")
        start = from_json(bound[1]) if bound else None
        self._bound = (str(bound[0]), start) if bound and start else None
        self._result = WaitResult.from_dict(data["result"]) if data.get("result") else None
        return self

    def _anchor(self) -> datetime:
        """Return by when the session began at the latest; where none has begun, the earliest start of the one awaited.

        A run reply's start is by Zuora's clock. Right after the run call our own clock knows better, and much later the
        difference of the clocks does not matter any more.
        """
        if self._started_at is not None:
            return min(self._created_at, self._started_at + CLOCK_SKEW)
        return max(self._created_at, self._condition.since or self._created_at)

    def _is_awaited(self, state: SessionState) -> bool:
        """Say whether a session is the awaited one; without a session id, bind the one that started first."""
        if self._condition.session_id is not None or state.run_type != self._condition.run_type:
            return state.session_id == self._condition.session_id
        earliest = self._condition.since or self._started_at or self._created_at
        begun_at = to_utc("begun_at", state.begun_at)
        if begun_at < earliest:
            return False
        if self._bound is None or (begun_at, state.session_id) < (self._bound[1], self._bound[0]):
            self._bound = (state.session_id, begun_at)
        return state.session_id == self._bound[0]

    def _left_to_callouts(self, outcome: Outcome, *, certain: bool) -> bool:
        """Say whether callouts must decide what a poll cannot: previous statuses, and required certainty."""
        if outcome is Outcome.MET and self._condition.previous_statuses:
            return True
        return self._callouts and self._require_certain and not certain

    def _change(self, status: str, since: datetime) -> str:
        """Take a new status of the session and return the line that says so."""
        if self._status is None or self._status_since is None:
            line = f"{self._subject()} is {status}"
        else:
            line = f"{self._status} -> {status} after {humanize(since - self._status_since)}"
        self._status, self._status_since = status, since
        return line

    def _conclude(
        self,
        outcome: Outcome,
        status: str,
        at: datetime,
        source: Source,
        *,
        certain: bool,
        reason: str,
        transition: SessionTransition | None = None,
    ) -> None:
        """End the wait by a status of the session."""
        if transition is None:
            transition = SessionTransition(
                meter_id=self._condition.meter_id,
                session_id=self._session_id(),
                run_type=self._condition.run_type,
                status=status,
                started_at=self._started_at,
                observed_at=at,
                source=source,
            )
        since = self._status_since if self._status == status and self._status_since else at
        message = f"{self._subject()} is {status} since {in_words(since)}, by {source}"
        message += ", and that is certain" if certain else f", and that is not certain: {reason}"
        end = WaitEnd.MET if outcome is Outcome.MET else WaitEnd.FAILED
        if self._require_certain and not certain:
            end = WaitEnd.UNCERTAIN
        self._end(end, message, {**transition.to_dict(), "evidence": str(source), "certain": certain})

    def _is_late(self, at: datetime) -> bool:
        return self._condition.until is not None and at >= self._condition.until

    def _time_out(self, at: datetime) -> None:
        message = f"the deadline passed at {in_words(self._condition.until or at)}: {self._subject()} "
        if self._status is not None and self._status_since is not None:
            since = self._status_since
            message += f"was {self._status} since {in_words(since)}, for {humanize(at - since)}"
            message += f" ({self._note})" if self._note else ""
        else:
            message += f"was not seen ({self._note or 'no status was read'})"
        if self._outage.since is not None:
            message += f"; Zuora gave no good answer since {in_words(self._outage.since)}"
        self._end(WaitEnd.TIMED_OUT, message)

    def _end(self, end: WaitEnd, message: str, session: dict[str, Any] | None = None) -> None:
        known = self._status is not None
        self._result = WaitResult(
            end=end,
            message=message[:1].upper() + message[1:] + ("" if message.endswith(".") else "."),
            session=session,
            last_status=self._status if known else self._read,
            last_status_since=to_json(self._status_since if known else self._read_since),
        )

    def _session_id(self) -> str | None:
        return self._condition.session_id or (self._bound[0] if self._bound else None)

    def _subject(self) -> str:
        session_id = self._session_id()
        kind = "DEBUG session" if self._condition.run_type is RunType.DEBUG else "session"
        meter = f"of meter {self._condition.meter_id}"
        return f"{kind} {session_id} {meter}" if session_id else f"the {kind} {meter}"
