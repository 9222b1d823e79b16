"""SessionWait: one task's wait for one session, from its first reading to its end, for every mode alike.

It has no clock and does no I/O: readings, callouts, faults and the time come from whoever drives it (a sensor on a
worker, the hub in the triggerer), and its whole memory goes into plain JSON and back. What it says is final: a wait
that has ended gives the same result whatever comes after.

What callouts tell of the session decides at once. A poll decides only what they leave open: where callouts are read, an
end that a poll shows and does not prove is held back for ``settle`` seconds, for its callout is likely on the way.
"""

from __future__ import annotations

from dataclasses import replace
from datetime import datetime, timedelta
from typing import TYPE_CHECKING, Any, Final

from airflow_mediation_provider.protocol.binding import CLOCK_SKEW
from airflow_mediation_provider.protocol.condition import Outcome, SessionCondition
from airflow_mediation_provider.protocol.grounds import Callouts, Grounds
from airflow_mediation_provider.protocol.knowledge import SessionKnowledge
from airflow_mediation_provider.protocol.outage import Outage
from airflow_mediation_provider.protocol.reading import PollReading, PollVerdict
from airflow_mediation_provider.protocol.status import ANY_TERMINAL
from airflow_mediation_provider.protocol.times import from_json, humanize, in_words, to_json, to_utc
from airflow_mediation_provider.protocol.transition import SessionTransition, Source
from airflow_mediation_provider.protocol.wait_result import HeldBack, WaitEnd, WaitResult, WaitUpdate

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from airflow_mediation_provider.protocol.errors import MediationError
    from airflow_mediation_provider.protocol.lifecycle import SessionState

__all__ = ["CLOCK_SKEW", "PollReading", "SessionWait", "WaitEnd", "WaitResult", "WaitUpdate"]

_VERSION: Final = 2
_NOTHING_NEW: Final = WaitUpdate()
_TWO_ENDS: Final = "Zuora reported two different ends of the session"


class SessionWait:
    """One wait: feed it readings, callouts, faults and ticks; it says what to log and when, and how, the wait is over.

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
    :param polls_only: it is the meter's status that is waited for, whichever session's it is
    :raises ValueError: a time is naive

    What it knows of the session is in ``known``. ``callouts`` says whether it hears of callouts, ``None`` while nobody
    has looked for them; ``polled_at``, when the meter's status was last asked for, with whatever answer.
    """

    __slots__ = (
        "_condition",
        "_created_at",
        "_held_back",
        "_outage",
        "_require_certain",
        "_result",
        "_started_at",
        "callouts",
        "known",
        "polled_at",
        "polls_only",
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
        polls_only: bool = False,
    ) -> None:
        self._condition = condition
        self._created_at = to_utc("created_at", created_at)
        self._started_at = None if started_at is None else to_utc("started_at", started_at)
        self.known = SessionKnowledge(
            condition,
            created_at=self._created_at,
            started_at=self._started_at,
            run_status=run_status,
            baseline=baseline,
            exclusive=exclusive,
            settle=settle,
            polls_only=polls_only,
        )
        self._require_certain = require_certain
        self.polls_only = polls_only
        # Not known before somebody has looked for them.
        self.callouts: Callouts | None = None
        # A run reply and a baseline are good answers too, got with the same connection for the same meter.
        answered = self._started_at is not None or run_status is not None or baseline is not None
        self._outage = Outage(max_unreachable, answered=answered)
        self._held_back: HeldBack | None = None
        self.polled_at: datetime | None = None
        self._result: WaitResult | None = None
        if run_status is not None and condition.outcome_of(run_status) is not Outcome.WAITING:
            at = self._created_at
            self._conclude(condition.outcome_of(run_status), run_status, at, Source.RUN, certain=True)

    @property
    def condition(self) -> SessionCondition:
        """What is waited for."""
        return self._condition

    @property
    def created_at(self) -> datetime:
        """When the wait began."""
        return self._created_at

    @property
    def curious(self) -> bool:
        """Whether it wants to learn of every session of the meter, and not of the awaited one alone."""
        return self._held_back is not None or not (self.known.named or self._result)

    @property
    def result(self) -> WaitResult | None:
        """The end of the wait, once it has come; a run reply can bring it before the first reading."""
        return self._result

    @property
    def deadline(self) -> datetime | None:
        """The earliest instant at which ``tick`` could end the wait; ``None`` where time alone never does."""
        if self._result is not None:
            return None
        until, held_back = self._condition.until, self._held_back
        if held_back is None:
            return until
        return held_back.until if until is None else min(until, held_back.until)

    def rely_on(self, grounds: Grounds) -> WaitUpdate:
        """Take what the wait can rest on from now on.

        :param grounds: as they were found just now; the same again changes nothing
        """
        if self._result is not None or self.polls_only:
            return WaitUpdate(result=self._result)
        before = self.callouts
        if before is grounds.callouts or (before and grounds.callouts is Callouts.UNFOUND):
            return _NOTHING_NEW
        self.callouts = grounds.callouts
        if before is Callouts.READ:
            # The polls that failed meanwhile tried nobody's patience.
            self._outage.forgive()
        if self._condition.previous_statuses and grounds.callouts in (Callouts.OFF, Callouts.UNFOUND):
            need = "previous_statuses needs Zuora's callouts, for a poll tells the present status only"
            self._end(WaitEnd.MISCONFIGURED, f"{need}, but {grounds.words}: {grounds.remedy}, or leave it out")
            return WaitUpdate(result=self._result)
        alone = grounds.callouts in (Callouts.OFF, Callouts.UNFOUND)
        return WaitUpdate((grounds.words + ": polls alone tell of the session" * alone,))

    def observe(self, reading: PollReading, others: Sequence[SessionState] = ()) -> WaitUpdate:
        """Take a reading of the meter version's status.

        :param reading: the status, and when it was asked for
        :param others: what callouts tell of the meter's sessions, the awaited one and others
        """
        if self._result is not None:
            return WaitUpdate(result=self._result)
        self.polled_at = at = reading.read_at
        lines = list(self._outage.answer(at))
        verdict = self.known.observe(reading, () if self.polls_only else others)
        open_question = self._open_question(verdict)
        note = open_question or verdict.reason if not verdict.speaks or open_question else ""
        lines += self.known.story.take(reading.status, at, note, self.known.subject(), speaks=verdict.speaks)
        if verdict.outcome is Outcome.WAITING or open_question:
            self._held_back = None
        elif self.callouts is Callouts.READ and not verdict.certain:
            lines += self._hold_back(verdict, at)
        else:
            self._conclude(
                verdict.outcome, verdict.status, at, Source.POLL, certain=verdict.certain, reason=verdict.reason
            )
        self._look_at_clock(at)
        return WaitUpdate(tuple(lines), self._result) if lines or self._result else _NOTHING_NEW

    def learn(self, states: Sequence[SessionState], at: datetime) -> WaitUpdate:
        """Take what is known exactly of sessions, by callouts, callout history or run replies.

        :param states: sessions of the meter, each as the fold of its transitions; those of other meters change nothing
        :param at: when it was learned
        """
        if self._result is not None or self.polls_only:
            return WaitUpdate(result=self._result)
        lines: list[str] = []
        if self.callouts in (Callouts.READ, Callouts.LOST):
            # Else only those that somebody ran from here are known, and the first one may be another.
            lines += self.known.bind(states)
        held_back = self._held_back
        if held_back is not None and (reason := self.known.explained(states, held_back.status, held_back.at)):
            self._held_back = None
            lines += self.known.story.hold_back(reason)
        said, told = self.known.hear(states)
        lines += said
        if told is not None:
            self._held_back = None
            outcome, state = told.verdict.outcome, told.state
            if outcome is not Outcome.WAITING:
                reason = _TWO_ENDS if state.conflict else ""
                self._conclude(
                    outcome,
                    state.status,
                    to_utc("at", at),
                    state.source,
                    certain=not state.conflict,
                    reason=reason,
                    transition=state.transition,
                )
        return WaitUpdate(tuple(lines), self._result) if lines or self._result else _NOTHING_NEW

    def fault(self, error: MediationError, at: datetime) -> WaitUpdate:
        """Take a failed attempt to read the status.

        :param error: what went wrong
        :param at: when it did
        """
        if self._result is not None:
            return WaitUpdate(result=self._result)
        self.polled_at = at = to_utc("at", at)
        lines = self._outage.fault(error, at)
        end = self._outage.end(error, at)
        if end is not None and end[0] is WaitEnd.MISCONFIGURED:
            self._end(*end)
        self._look_at_clock(at)
        if end is not None and self.callouts is not Callouts.READ:
            # Where callouts are read, they go on without Zuora's REST API.
            self._end(end[0], f"{end[1].rstrip('.')}; {self.known.subject()} {self.known.story.at_deadline(at)}")
        return WaitUpdate(() if self._result else lines, self._result)

    def tick(self, at: datetime) -> WaitUpdate:
        """Look at the clock: end the wait where its deadline has passed, or an end was held back for long enough.

        :param at: the time now
        """
        self._look_at_clock(to_utc("at", at))
        return WaitUpdate(result=self._result) if self._result else _NOTHING_NEW

    def heartbeat(self, at: datetime) -> str:
        """Return one line that says how things stand.

        :param at: the time now
        """
        at = to_utc("at", at)
        line = self.known.story.heartbeat(at, self._created_at)
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
        wait.callouts = None
        if wait._result is not None and wait._result.end not in (WaitEnd.MET, WaitEnd.FAILED):
            wait._result = None
        return wait

    def to_dict(self) -> dict[str, Any]:
        """Return the wait with its whole memory as plain JSON: a contract across versions of this package."""
        return {
            "version": _VERSION,
            "condition": self._condition.to_dict(),
            "created_at": to_json(self._created_at),
            "started_at": to_json(self._started_at),
            "require_certain": self._require_certain,
            "polls_only": self.polls_only,
            "callouts": self.callouts,
            "polled_at": to_json(self.polled_at),
            **self.known.to_dict(),
            "outage": self._outage.to_dict(),
            "held_back": None if self._held_back is None else self._held_back.to_dict(),
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
            polls_only=bool(data.get("polls_only", False)),
        )
        self.known.load(data)
        # Version 1 had a flag here that was never on.
        callouts = data.get("callouts")
        self.callouts = Callouts(callouts) if isinstance(callouts, str) else None
        self.polled_at = from_json(data.get("polled_at"))
        if data.get("outage"):
            self._outage = Outage.from_dict(data["outage"])
        self._held_back = HeldBack.from_dict(data["held_back"]) if data.get("held_back") else None
        self._result = WaitResult.from_dict(data["result"]) if data.get("result") else None
        return self

    def _open_question(self, verdict: PollVerdict) -> str:
        """Return why a poll that would end the wait must not: previous statuses and certainty are left to callouts."""
        if verdict.outcome is Outcome.WAITING:
            return ""
        if self._condition.previous_statuses:
            # It may have been in the status that is asked for, and left it again.
            passing = not ANY_TERMINAL.issuperset(self._condition.statuses or ())
            if verdict.outcome is Outcome.MET or passing:
                return f"the meter shows {verdict.status}, and callouts alone tell what came before"
        if self._require_certain and not verdict.certain and self.callouts in (Callouts.READ, Callouts.LOST):
            return f"the meter shows {verdict.status}, and a callout alone proves whose status that is"
        return ""

    def _hold_back(self, verdict: PollVerdict, at: datetime) -> list[str]:
        """Keep an end that a poll shows until its callout has had the time to come."""
        held_back = self._held_back
        if held_back is not None and (held_back.outcome, held_back.status) == (verdict.outcome, verdict.status):
            return []
        settle = self.known.settle
        self._held_back = HeldBack(
            outcome=verdict.outcome, status=verdict.status, reason=verdict.reason, at=at, until=at + settle
        )
        return [f"the meter shows {verdict.status}; the callout that proves it has {humanize(settle)} to come"]

    def _look_at_clock(self, at: datetime) -> None:
        """End the wait where it is time."""
        if self._result is not None:
            return
        until, held = self._condition.until, self._held_back
        late = until is not None and at >= until
        if held is not None and (late or at >= held.until):
            self._conclude(held.outcome, held.status, held.at, Source.POLL, certain=False, reason=held.reason)
        elif late:
            self._time_out(at)

    def _conclude(
        self,
        outcome: Outcome,
        status: str,
        at: datetime,
        source: Source,
        *,
        certain: bool,
        reason: str = "",
        transition: SessionTransition | None = None,
    ) -> None:
        """End the wait by a status of the session."""
        transition = transition or self.known.transition(status, at, source)
        since = in_words(self.known.story.since(status, at))
        message = f"{self.known.subject()} is {status} since {since}, by {source}"
        message += ", and that is certain" if certain else f", and that is not certain: {reason}"
        end = WaitEnd.MET if outcome is Outcome.MET else WaitEnd.FAILED
        if self._require_certain and not certain:
            end = WaitEnd.UNCERTAIN
        self._end(end, message, {**transition.to_dict(), "evidence": str(source), "certain": certain})

    def _time_out(self, at: datetime) -> None:
        message = f"the deadline passed at {in_words(self._condition.until or at)}: {self.known.subject()} "
        message += self.known.story.at_deadline(at)
        if self._outage.since is not None:
            message += f"; Zuora gave no good answer since {in_words(self._outage.since)}"
        self._end(WaitEnd.TIMED_OUT, message)

    def _end(self, end: WaitEnd, message: str, session: dict[str, Any] | None = None) -> None:
        """Set the result; the first one counts."""
        if self._result is not None:
            return
        status, since = self.known.story.last()
        self._held_back = None
        self._result = WaitResult(
            end=end,
            message=message[:1].upper() + message[1:] + ("" if message.endswith(".") else "."),
            session=session,
            last_status=status,
            last_status_since=to_json(since),
        )
