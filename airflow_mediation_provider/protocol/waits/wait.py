"""SessionWait: one task's wait for one session, from its start to its end, the same on a worker and in the triggerer.

It has no clock and does no I/O. Its caller (a sensor on a worker, the hub in the triggerer) passes each event in with
its time, logs the lines that come back, and stores the wait as plain JSON between processes.

Theory of operation. Callouts report the session itself, so a callout decides at once. A poll shows the status of the
meter and names no session, so it decides only what callouts leave open, by the rules in ``poll_evidence``. While
callouts are read, an end that a poll shows but does not prove is held back for ``settle``: its callout is likely to
follow. The callout history counts as callouts do; where it is read in place of them, an end is held back for longer. A
wait is in one of four states:

* *Not begun*: no session is known to have started.
* *Begun*: one is: it is named, its run call was made, callouts bound the wait to it, or a poll showed a live status.
* *Pending end*: an end that a poll showed is held back (``PendingEnd``).
* *Ended*: there is a result. It is final: every later event returns the same one.

==============  ==========================================================  ==================================
event           where                                                       next state
==============  ==========================================================  ==================================
reply to the    its status meets or fails the condition                     ended: MET or FAILED
run call        any other reply with the session's start or id              begun
callout         the first session in the window; the feed is READ or LOST   begun
reports         that session turns out not to count, and no other does      not begun
                its own status meets or fails the condition                 ended: MET or FAILED
                its own status is new and does neither, or is ambiguous     begun; a pending end is dropped
                another session explains the status of a pending end        as before the pending end
                a session named by its id alone is of another meter         ended: MISCONFIGURED
window report   no session is bound and no end pending, callouts were       ended: TIMED_OUT
                read all along, and none of a session in the window was
                received, and later polls of the meter agree
poll            a live status that no other session explains                begun; a pending end is dropped
                an end that is certain, or any end while not READ           ended: MET or FAILED
                an end that is not certain, while READ                      pending end
                no end, or one that only a callout may decide               a pending end is dropped
poll error      a refusal with no good answer before, or three in a row     ended: MISCONFIGURED
                no good answer for ``max_unreachable``, while not READ      ended: UNREACHABLE
clock, checked  a pending end is due, or the deadline passes                ended: MET or FAILED, not certain
at each poll    the deadline passes, and no end is pending                  ended: TIMED_OUT
and error too   not begun, feed OFF or UNFOUND, and too late to start       ended: TIMED_OUT
feed status     OFF or UNFOUND, and the condition needs callouts            ended: MISCONFIGURED
changes         any other                                                   unchanged
==============  ==========================================================  ==================================

A reply to the run call is certain. A callout is certain unless Zuora reported two different ends of the session. A poll
is certain only with the promise of ``exclusive``, and not even then where

* another session of the meter ran meanwhile, by callouts or by a status of the other run type, or a newer one was seen,
* the meter was neither idle nor paused before the session, or has shown a single status since the session began,
* the session showed too soon after the wait began to distinguish it from the previous one,
* the awaited status is not terminal, and was polled once before the session left it.

With ``require_certain`` an end by a status that is not certain is UNCERTAIN instead of MET or FAILED. A ``polls_only``
wait is for the meter's status: it ignores callouts and the feed status.
"""

from __future__ import annotations

from dataclasses import replace
from datetime import datetime, timedelta
from typing import TYPE_CHECKING, Any, Final

from airflow_mediation_provider.protocol.sessions.journal_entry import PollReading
from airflow_mediation_provider.protocol.sessions.session_result import session_result
from airflow_mediation_provider.protocol.sessions.window import SHORTEST, why_over
from airflow_mediation_provider.protocol.status import ANY_TERMINAL
from airflow_mediation_provider.protocol.times import from_json, humanize, in_words, to_json, to_utc
from airflow_mediation_provider.protocol.transition import SessionTransition, Source
from airflow_mediation_provider.protocol.waits.condition import Outcome, SessionCondition
from airflow_mediation_provider.protocol.waits.feed_status import FeedStatus, FeedStatusChange
from airflow_mediation_provider.protocol.waits.tracker import SessionTracker
from airflow_mediation_provider.protocol.waits.wait_result import (
    Caution,
    Outage,
    PendingEnd,
    WaitEnd,
    WaitResult,
    WaitUpdate,
)

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from airflow_mediation_provider.protocol.sessions.lifecycle import SessionState
    from airflow_mediation_provider.protocol.sessions.session_result import SessionResult
    from airflow_mediation_provider.protocol.sessions.window import WindowReport
    from airflow_mediation_provider.protocol.waits.poll_evidence import PollConclusion
    from airflow_mediation_provider.protocol.zuora.errors import MediationError

__all__ = ["PollReading", "SessionWait", "WaitEnd", "WaitResult", "WaitUpdate"]

_VERSION: Final = 2
_NOTHING_NEW: Final = WaitUpdate()
_SETTLED: Final = WaitUpdate(settled=True)
_TWO_ENDS: Final = "Zuora reported two different ends of the session"


class SessionWait:
    """One wait: each event returns the lines to log, and the result once the wait has ended. See the module's table.

    :param condition: what is waited for; its ``until`` is the deadline
    :param created_at: when the wait began: right after the run call, or at the sensor's first poll
    :param started_at: when the session started, by Zuora's clock, where the run reply has it; without a session id it
        shows that a run call was made
    :param run_status: the session's status in the run reply
    :param baseline: the status of the meter version just before the run call, or by the sensor's first poll
    :param called_at: when the run call was made; the baseline was polled just before
    :param exclusive: the user's promise: from the session's start (with no session known: from ``since``, or the wait's
        start where that is earlier) until the wait ends, no other session of the meter is live
    :param require_certain: end as UNCERTAIN where the status that ends the wait is not certain
    :param max_unreachable: how long Zuora may go without a good answer
    :param settle: how long a reading may be stale: no reading ends the wait sooner than this after the session's start
    :param longest_pause: the longest time between two successful polls
    :param polls_only: the wait is for the meter's status, regardless of the session
    :raises ValueError: a time is naive

    ``tracker`` holds the evidence about the session. ``callouts`` is the feed status, ``None`` before the first request
    to the feed; ``next_since`` is the earliest start of the session of the Dag's next scheduled run, where it is known;
    ``polled_at`` is when the meter was last polled, answered or not.
    """

    __slots__ = (
        "_condition",
        "_created_at",
        "_held_back",
        "_missed",
        "_outage",
        "_require_certain",
        "_result",
        "_started_at",
        "called_at",
        "callouts",
        "feed_silent_since",
        "late",
        "next_since",
        "polled_at",
        "polls_only",
        "tracker",
    )

    def __init__(
        self,
        condition: SessionCondition,
        *,
        created_at: datetime,
        started_at: datetime | None = None,
        run_status: str | None = None,
        baseline: str | None = None,
        called_at: datetime | None = None,
        exclusive: bool = False,
        require_certain: bool = False,
        max_unreachable: timedelta = timedelta(hours=1),
        settle: timedelta = timedelta(seconds=30),
        longest_pause: timedelta = timedelta(),
        polls_only: bool = False,
    ) -> None:
        self._condition = condition
        self._created_at = to_utc("created_at", created_at)
        self._started_at = None if started_at is None else to_utc("started_at", started_at)
        self.called_at = None if called_at is None else to_utc("called_at", called_at)
        self.tracker = SessionTracker(
            condition,
            created_at=self._created_at,
            started_at=self._started_at,
            run_status=run_status,
            baseline=baseline,
            exclusive=exclusive,
            settle=settle,
            longest_pause=longest_pause,
            polls_only=polls_only,
        )
        self._require_certain = require_certain
        self.polls_only = polls_only
        # Not known before the first request to the feed.
        self.callouts: FeedStatus | None = None
        # How much later than a callout the callout history reports a change, where it is read instead.
        self.late = timedelta()
        # Whether callouts could not be read at some time of the wait.
        self._missed = False
        self.next_since: datetime | None = None
        # Since when every answer of the feed was missing. A new process continues the same time of silence.
        self.feed_silent_since: datetime | None = None
        # A run reply and a baseline are good answers too, over the same connection for the same meter.
        answered = self._started_at is not None or run_status is not None or baseline is not None
        self._outage = Outage(max_unreachable, answered=answered)
        self._held_back: PendingEnd | None = None
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
    def wants_all_sessions(self) -> bool:
        """Whether it needs the reports of every session of the meter, not only of the awaited one."""
        return self._held_back is not None or not (self.tracker.named or self._result)

    @property
    def result(self) -> WaitResult | None:
        """The result, once the wait has ended; a run reply can end it before the first poll."""
        return self._result

    @property
    def deadline(self) -> datetime | None:
        """The earliest instant at which ``tick`` could end the wait; ``None`` where time alone never does."""
        if self._result is not None:
            return None
        ends = (
            self._condition.until,
            None if self._held_back is None else self._held_back.until,
            self.tracker.open_until if self._alone else None,
        )
        return min((end for end in ends if end is not None), default=None)

    @property
    def unreachable_at(self) -> datetime | None:
        """When the next failed poll ends the wait; ``None`` while Zuora answers, or callouts are read."""
        return None if self.callouts is FeedStatus.READ else self._outage.until

    @property
    def _alone(self) -> bool:
        """Whether polls are the only source for the session."""
        return self.callouts in (FeedStatus.OFF, FeedStatus.UNFOUND)

    @property
    def _meter_given(self) -> bool:
        """Whether the session's meter is known from the reply to the run call, or from a session object."""
        return self.called_at is not None or self._started_at is not None

    def rely_on(self, change: FeedStatusChange) -> WaitUpdate:
        """Take the feed status that applies from now on.

        :param change: the present status; the same again changes nothing
        """
        if self._result is not None or self.polls_only:
            return WaitUpdate(result=self._result)
        before, callouts = self.callouts, change.callouts
        if before and callouts is FeedStatus.UNFOUND:
            # An earlier process of this wait had found the feed.
            callouts = FeedStatus.LOST if before is FeedStatus.READ else before
        if callouts is FeedStatus.READ:
            self.late = change.late
        if callouts is before:
            return _NOTHING_NEW
        self.callouts = callouts
        self._missed = self._missed or callouts is not FeedStatus.READ
        if before is FeedStatus.READ:
            # Polls that failed while callouts were read do not count towards ``max_unreachable``.
            self._outage.reset()
        if self._alone and (need := self._need_of_callouts()):
            self._end(WaitEnd.MISCONFIGURED, f"{need}, but {change.words}: {change.remedy}, or leave the argument out")
            return WaitUpdate(result=self._result)
        line = change.words + ": polls are the only source" * self._alone
        return WaitUpdate((Caution(line) if change.silent else line,))

    def _need_of_callouts(self) -> str:
        """Return which argument needs callouts, and why; empty where polls suffice."""
        if self._condition.previous_statuses:
            return "the argument previous_statuses needs Zuora's callouts, because a poll shows only the present status"
        open_until, before = self.tracker.open_until, self._condition.before
        if before is None or open_until is None or self._created_at <= open_until:
            return ""
        passed = f"it passed at {in_words(before)}, and this wait began at {in_words(self._created_at)}"
        return f"the argument before needs Zuora's callouts here: {passed}, when no poll shows what started by then"

    def observe(self, reading: PollReading, others: Sequence[SessionState] = ()) -> WaitUpdate:
        """Take a reading of the meter version's status.

        :param reading: the status, and when the poll was sent
        :param others: the meter's sessions by callouts, the awaited one and others
        """
        if self._result is not None:
            return WaitUpdate(result=self._result)
        self.polled_at = at = reading.read_at
        lines = list(self._outage.answer(at))
        facts, settled = self.tracker.facts(), self.tracker.settled(() if self.polls_only else others)
        verdict = self.tracker.observe(reading, () if self.polls_only else others)
        open_question = self._open_question(verdict)
        note = open_question or verdict.reason if not verdict.counts or open_question else ""
        lines += self.tracker.log.take(reading.status, at, note, self.tracker.subject(), counts=verdict.counts)
        if verdict.outcome is Outcome.WAITING or open_question:
            self._held_back = None
        elif self.callouts is FeedStatus.READ and not verdict.certain:
            lines += self._hold_back(verdict, at)
        else:
            self._conclude(
                verdict.outcome, verdict.status, at, Source.POLL, certain=verdict.certain, reason=verdict.reason
            )
        self._check_clock(at)
        if lines or self._result:
            return WaitUpdate(tuple(lines), self._result)
        same = settled and verdict.outcome is Outcome.WAITING and facts == self.tracker.facts()
        return _SETTLED if same else _NOTHING_NEW

    def receive(self, states: Sequence[SessionState], at: datetime) -> WaitUpdate:
        """Take the states of sessions by exact reports: callouts, callout history or run replies.

        :param states: sessions, each as the fold of its transitions; those of other meters matter only where the named
            session is among them
        :param at: when they were received
        """
        if self._result is not None or self.polls_only:
            return WaitUpdate(result=self._result)
        of_meter = [state for state in states if state.meter_id == self._condition.meter_id]
        lines: list[str] = []
        if self.callouts in (FeedStatus.READ, FeedStatus.LOST):
            # Without callouts only the sessions started from here are known, and the first one may be another.
            lines += self.tracker.bind(of_meter)
        held_back = self._held_back
        if held_back is not None and (reason := self.tracker.explained(of_meter, held_back.status, held_back.at)):
            self._held_back = None
            lines += self.tracker.log.hold_back(reason)
        new_lines, evidence = self.tracker.receive(of_meter)
        lines += new_lines
        if evidence is not None:
            self._held_back = None
            outcome, state = evidence.verdict.outcome, evidence.state
            if outcome is not Outcome.WAITING:
                reason = _TWO_ENDS if state.conflict else evidence.verdict.reason
                self._conclude(
                    outcome,
                    state.status,
                    to_utc("at", at),
                    state.source,
                    certain=not state.conflict,
                    reason=reason,
                    transition=state.transition,
                )
        elif not self._meter_given and (meter_id := self.tracker.other_meter(states)):
            message = f"session {self._condition.session_id} is of meter {meter_id}"
            self._end(WaitEnd.MISCONFIGURED, f"{message}, not of meter {self._condition.meter_id}")
        return WaitUpdate(tuple(lines), self._result) if lines or self._result else _NOTHING_NEW

    def receive_window(
        self, reports: Iterable[WindowReport], sessions: Sequence[SessionState], at: datetime
    ) -> WaitUpdate:
        """Take reports of windows that have passed: end the wait where no session started in its own window.

        :param reports: of the windows of this wait and of others
        :param sessions: the meter's sessions by callouts
        :param at: the time of the reports
        """
        condition = self._condition
        undecided = self._result is None and self._held_back is None and self.tracker.session_id is None
        read_all_along = self.callouts is FeedStatus.READ and not self._missed
        for report in reports if undecided and read_all_along else ():
            if (report.meter_id, report.window) == (condition.meter_id, condition.window):
                reason = why_over(report, self.tracker.meter_shown, sessions, to_utc("at", at), late=self.late)
                if reason:
                    self._end(WaitEnd.TIMED_OUT, reason)
        return WaitUpdate(result=self._result) if self._result else _NOTHING_NEW

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
        self._check_clock(at)
        if end is not None and self.callouts is not FeedStatus.READ:
            # While callouts are read, the wait does not need Zuora's REST API.
            self._end(end[0], f"{end[1].rstrip('.')}; {self.tracker.subject()} {self.tracker.log.at_deadline(at)}")
        return WaitUpdate(() if self._result else lines, self._result)

    def tick(self, at: datetime) -> WaitUpdate:
        """Check the clock: end the wait where its deadline has passed, or a pending end is due.

        :param at: the time now
        """
        self._check_clock(to_utc("at", at))
        return WaitUpdate(result=self._result) if self._result else _NOTHING_NEW

    def heartbeat(self, at: datetime) -> str:
        """Return one line with the present state of the wait.

        :param at: the time now
        """
        at = to_utc("at", at)
        line = self.tracker.log.heartbeat(at, self._created_at)
        if self._outage.since is not None:
            line += f"; no answer from Zuora for {humanize(at - self._outage.since)}"
        return line

    def renewed(self, *, until: datetime | None) -> SessionWait:
        """Return the wait as the next try of its task continues it, with all evidence about the session.

        ``max_unreachable`` starts again, and only an end by a status of the session is kept.

        :param until: the new try's deadline
        :raises ValueError: the deadline is naive
        """
        wait = SessionWait.from_dict(self.to_dict())
        wait._condition = replace(self._condition, until=until)
        wait._outage.reset()
        wait.callouts = wait.feed_silent_since = None
        if wait._result is not None and wait._result.end not in (WaitEnd.MET, WaitEnd.FAILED):
            wait._result = None
        return wait

    def to_dict(self) -> dict[str, Any]:
        """Return the complete wait as plain JSON: a contract across versions of this package."""
        return {
            "version": _VERSION,
            "condition": self._condition.to_dict(),
            "created_at": to_json(self._created_at),
            "started_at": to_json(self._started_at),
            "called_at": to_json(self.called_at),
            "require_certain": self._require_certain,
            "polls_only": self.polls_only,
            "callouts": self.callouts,
            "callouts_missed": self._missed,
            "late": self.late.total_seconds(),
            "next_since": to_json(self.next_since),
            "feed_silent_since": to_json(self.feed_silent_since),
            "polled_at": to_json(self.polled_at),
            **self.tracker.to_dict(),
            "outage": self._outage.to_dict(),
            "held_back": None if self._held_back is None else self._held_back.to_dict(),
            "result": None if self._result is None else self._result.to_dict(),
        }

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> SessionWait:
        """Make a wait from ``to_dict()`` of this or another version of the package.

        Unknown keys are left out; missing ones get their value at the start of the wait.

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
            called_at=from_json(data.get("called_at")),
            require_certain=bool(data.get("require_certain", False)),
            polls_only=bool(data.get("polls_only", False)),
        )
        self.tracker.load(data)
        # Version 1 had a flag here that was never on.
        callouts = data.get("callouts")
        self.callouts = FeedStatus(callouts) if isinstance(callouts, str) else None
        self.feed_silent_since = from_json(data.get("feed_silent_since"))
        self._missed = bool(data.get("callouts_missed", False))
        self.late = timedelta(seconds=float(data.get("late") or 0.0))
        self.next_since = from_json(data.get("next_since"))
        self.polled_at = from_json(data.get("polled_at"))
        if data.get("outage"):
            self._outage = Outage.from_dict(data["outage"])
        self._held_back = PendingEnd.from_dict(data["held_back"]) if data.get("held_back") else None
        self._result = WaitResult.from_dict(data["result"]) if data.get("result") else None
        return self

    def _open_question(self, verdict: PollConclusion) -> str:
        """Return why a poll that would end the wait must not: previous statuses and certainty are left to callouts."""
        if verdict.outcome is Outcome.WAITING:
            return ""
        if self._condition.previous_statuses:
            # The session may have been in the awaited status, and left it again.
            passing = not ANY_TERMINAL.issuperset(self._condition.statuses or ())
            if verdict.outcome is Outcome.MET or passing:
                return f"the meter shows {verdict.status}, and only callouts report the status before it"
        if self._require_certain and not verdict.certain and self.callouts in (FeedStatus.READ, FeedStatus.LOST):
            return f"the meter shows {verdict.status}, and only a callout proves that it is this session's status"
        return ""

    def _hold_back(self, verdict: PollConclusion, at: datetime) -> list[str]:
        """Hold back an end that a poll shows until its callout has had time to arrive."""
        held_back = self._held_back
        if held_back is not None and (held_back.outcome, held_back.status) == (verdict.outcome, verdict.status):
            return []
        grace = self.tracker.settle + self.late
        self._held_back = PendingEnd(
            outcome=verdict.outcome, status=verdict.status, reason=verdict.reason, at=at, until=at + grace
        )
        return [f"the meter shows {verdict.status}; its callout may follow within {humanize(grace)}"]

    def _check_clock(self, at: datetime) -> None:
        """End the wait where a pending end is due, or a deadline has passed."""
        if self._result is not None:
            return
        until, held = self._condition.until, self._held_back
        late = until is not None and at >= until
        if held is not None and (late or at >= held.until):
            self._conclude(held.outcome, held.status, held.at, Source.POLL, certain=False, reason=held.reason)
        elif late:
            self._time_out(at)
        elif self._alone and (open_until := self.tracker.open_until) is not None and at > open_until:
            self._close(at)

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
        transition = transition or self.tracker.transition(status, at, source)
        since = in_words(self.tracker.log.since(status, at))
        message = f"{self.tracker.subject()} is {status} since {since}, by {source}"
        message += ", and that is certain" if certain else ", and that is not certain"
        message += f": {reason}" if reason else ""
        end = WaitEnd.MET if outcome is Outcome.MET else WaitEnd.FAILED
        if self._require_certain and not certain:
            end = WaitEnd.UNCERTAIN
        self._end(end, message, self._session_result(transition, source, certain=certain))

    def _session_result(self, transition: SessionTransition, source: Source, *, certain: bool) -> SessionResult:
        return session_result(transition, evidence=source, certain=certain, version=self._condition.version)

    def _time_out(self, at: datetime) -> None:
        message = f"the deadline passed at {in_words(self._condition.until or at)}: {self.tracker.subject()} "
        message += self.tracker.log.at_deadline(at)
        self._end(WaitEnd.TIMED_OUT, message + self._silence())

    def _close(self, at: datetime) -> None:
        """End a wait without callouts that no later poll can meet."""
        message = f"no session of meter {self._condition.meter_id} was seen to start before"
        message += f" {in_words(self._condition.before or at)}, and one that is seen from now on started too late"
        self._end(WaitEnd.TIMED_OUT, message + self._silence())

    def _silence(self) -> str:
        since = self._outage.since
        return "" if since is None else f"; Zuora gave no good answer since {in_words(since)}"

    def _next_run_too(self) -> str:
        """Return a warning where the session that ended the wait also lies in the window of the next scheduled run."""
        start, theirs, since = self.tracker.start, self.next_since, self._condition.since
        if start is None or theirs is None or since is None or start < theirs:
            return ""
        subject = self.tracker.subject()
        # Where both windows start at the same time, there is no length to suggest.
        window = f", here a timedelta of {humanize(theirs - since)}," if theirs - since >= SHORTEST else ""
        return (
            f"{subject[:1].upper()}{subject[1:]} started at {in_words(start)}, and the next scheduled run waits for one"
            f" from {in_words(theirs)} on: that run may take it too. Set before{window} so that each run has a window"
            " of its own."
        )

    def _end(self, end: WaitEnd, message: str, session: SessionResult | None = None) -> None:
        """Set the result; the first one counts."""
        if self._result is not None:
            return
        status, since = self.tracker.log.last()
        self._held_back = None
        self._result = WaitResult(
            end=end,
            message=message[:1].upper() + message[1:] + ("" if message.endswith(".") else "."),
            session=session,
            last_status=status,
            last_status_since=to_json(since),
            warning="" if session is None else self._next_run_too(),
        )
