"""Poll evidence: what a sequence of polls, which name no session, proves about the session of one condition.

``runStatus`` is the status of a meter *version*: it has no session id, no run type and no time. It can be a stale
reading of the previous session, or show a newer run or a DEBUG run instead of the awaited one. So:

* A reading counts for a session only once it is *settled*: sent at least ``settle`` after the session is known to have
  begun. Before that it may be a stale reading of the previous session. No reading ends a wait sooner.
* In addition, the session must have shown: a live status was polled since it began, or the status differs from the one
  before it began and two polls, ``settle`` apart, agree. Where neither holds (the meter was COMPLETED before, and is
  now), a session that is known to have begun counts as ended after four times ``settle``, and that is not certain.
* Where sessions of both run types are awaited, the first reading that only one of them can show, live or changed, shows
  the session's run type. From then on the other one's statuses hide the session, as they do for a single run type.
* A poll can never exclude a newer run that was not seen. A result is certain only if the user promised ``exclusive``
  and no reading contradicts the promise.
* Where the session must start before an instant, and a change is first polled so late after it that an earlier poll
  would have shown the session, the change belongs to another session, which began later.

Where callouts report the session, or others of its meter, a reading counts only as far as it agrees with them. A
reading that another session of the meter may explain proves nothing about the awaited one:

* A live session explains every status; but one that began before the awaited one, and of which only the callout of its
  end may be lost, does not explain an end.
* A session that has ended since the awaited one began explains the status that it ended in, unless a poll has shown a
  live status after that; and, as long as a reading may be stale, also its previous status.
* A session that was live when last reported counts as ended, in any status, once the meter was polled idle after that.

None of this applies to a session that is known only from the reply to its run call: no callout of it has been received
yet, and perhaps none ever will.

Source: https://developer.zuora.com/v1-api-reference/api/meters/getrunstatusofspecificmeterversion
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime, timedelta
from operator import attrgetter
from typing import TYPE_CHECKING, Any, Final

from airflow_mediation_provider.protocol.status import (
    ANY_TERMINAL,
    IDLE,
    IDLE_FOR_GOOD,
    LIVE,
    RunType,
    SessionStatus,
    may_show,
    run_types_of,
)
from airflow_mediation_provider.protocol.times import from_json, to_json, to_utc
from airflow_mediation_provider.protocol.transition import Source
from airflow_mediation_provider.protocol.waits.condition import Outcome

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from airflow_mediation_provider.protocol.sessions.journal_entry import PollReading
    from airflow_mediation_provider.protocol.sessions.lifecycle import SessionState
    from airflow_mediation_provider.protocol.waits.condition import SessionCondition

NOT_EXCLUSIVE: Final = (
    "a poll names no session, and another one may have run meanwhile "
    "(with exclusive=True you promise that none of this meter does)"
)
NEWER_RUN: Final = "a newer session of the meter was seen, and the status may be that one's"


@dataclass(frozen=True, slots=True)
class PollConclusion:
    """What the polls so far prove of the awaited session.

    :param outcome: whether the wait is over, and how
    :param status: the status that the outcome rests on, where the wait is over
    :param certain: whether the outcome is proven (given the promise of ``exclusive``)
    :param counts: whether the reading is, as far as polls can show, the session's own status
    :param reason: why the outcome is not certain, or why the reading does not count for the session
    """

    outcome: Outcome
    status: str = ""
    certain: bool = False
    counts: bool = True
    reason: str = ""


@dataclass(frozen=True, slots=True)
class Awaited:
    """The facts about the awaited session, and its meter, with which other sessions are compared.

    :param session_id: its id, where it is known
    :param begun_at: its start, where it is known; else the latest possible, or its earliest start
    :param live_at: when a poll last showed a live status that no other session explains
    :param idle_at: when a poll last showed the meter idle
    :param idle_before: whether the meter was idle just before the session began
    :param settle: how long a reading may be stale
    """

    session_id: str | None
    begun_at: datetime
    live_at: datetime | None
    idle_at: datetime | None
    idle_before: bool
    settle: timedelta


def who_explains(own: Awaited, others: Iterable[SessionState], status: str, at: datetime) -> str | None:
    """Return another session whose status a reading may be, ``None`` where there is none.

    :param own: the awaited session
    :param others: the meter's known sessions; the awaited one may be among them
    :param status: the status that was polled
    :param at: when the poll was sent
    """
    return next((other.session_id for other in others if _may_be(own, other, status, at)), None)


def who_ran(own: Awaited, others: Iterable[SessionState]) -> str | None:
    """Return a session that was live at some time since the awaited one began, ``None`` where none is known.

    :param own: the awaited session
    :param others: the meter's known sessions; the awaited one may be among them
    """
    return next((other.session_id for other in others if _ran_meanwhile(own, other)), None)


def _ran_meanwhile(own: Awaited, other: SessionState) -> bool:
    if other.session_id == own.session_id or _was_over(own, other):
        return False
    return not (_is_older(own, other) and (own.idle_before or other.source is Source.RUN))


def _was_over(own: Awaited, other: SessionState) -> bool:
    """Return whether a session had ended before the awaited one began."""
    return other.terminal and to_utc("ended_at", other.ended_at or other.observed_at) <= own.begun_at


def _is_older(own: Awaited, other: SessionState) -> bool:
    return to_utc("begun_at", other.begun_at) < own.begun_at


def _may_be(own: Awaited, other: SessionState, status: str, at: datetime) -> bool:
    if other.session_id == own.session_id or other.source is Source.RUN:
        return False
    if not may_show(other.run_type, status):
        return False
    over = status in IDLE_FOR_GOOD
    reported_at = to_utc("observed_at", other.observed_at)
    if other.terminal:
        if not over and at < reported_at + own.settle:
            return True
        unseen_since = own.live_at is None or own.live_at < reported_at + own.settle
        return status == other.status and unseen_since and not _was_over(own, other)
    if over and _is_older(own, other):
        return False
    if own.idle_at is not None and own.idle_at >= reported_at + own.settle:
        # The session has ended; the callout of its end is late, or lost.
        return over and (own.live_at is None or own.live_at <= own.idle_at)
    paused = other.status == SessionStatus.PAUSED and not other.ambiguous
    return not (paused and over)


_FACTS: Final = attrgetter(
    "_session_id",
    "_since",
    "started_at",
    "_baseline",
    "_unbound",
    "_begun_at",
    "_live_seen",
    "_shown_since",
    "_furthest",
    "_glimpsed",
    "_hidden",
    "_doubt",
    "_newer",
    "_candidate",
    "_candidate_since",
    "_told_at",
    "_over",
    "run_types",
)
_WAITING: Final = PollConclusion(Outcome.WAITING)
_SILENT: Final = PollConclusion(Outcome.WAITING, counts=False)


class PollEvidence:
    """The state of one wait's polls; ``observe`` evaluates each new reading with it.

    :param condition: what is waited for
    :param since: where the session is known to have begun, the latest possible start by our clock; else the instant
        from which on the first session to begin is the awaited one
    :param begun: whether the session is known to have begun (its id is known, or its run call was made)
    :param baseline: the status polled just before the run call, or by the sensor's first poll; without one, and with
        the session still to begin, the first reading becomes the baseline
    :param exclusive: the user's promise: from the session's start (with no session known: from the condition's
        ``since``, or the wait's start where that is earlier) until the wait ends, no other session of the meter is live
    :param settle: how long a reading may be stale
    :param started_at: the session's start by Zuora's clock, where it is known
    :param closes_at: by our clock: a status first polled after this is of a session that began too late
    """

    __slots__ = (
        "_baseline",
        "_begun_at",
        "_candidate",
        "_candidate_since",
        "_condition",
        "_doubt",
        "_exclusive",
        "_furthest",
        "_glimpsed",
        "_hidden",
        "_idle_at",
        "_last_read_at",
        "_live_at",
        "_live_seen",
        "_newer",
        "_over",
        "_session_id",
        "_shown_since",
        "_since",
        "_told_at",
        "_unbound",
        "closes_at",
        "run_types",
        "settle",
        "started_at",
    )

    def __init__(
        self,
        condition: SessionCondition,
        *,
        since: datetime,
        begun: bool,
        baseline: str | None = None,
        exclusive: bool = False,
        settle: timedelta = timedelta(seconds=30),
        started_at: datetime | None = None,
        closes_at: datetime | None = None,
    ) -> None:
        self._condition = condition
        # The possible run types of the session.
        self.run_types = condition.run_types
        self._session_id = condition.session_id
        self.closes_at = closes_at
        self._since = to_utc("since", since)
        self.started_at = started_at
        self.settle = settle
        self._exclusive = exclusive
        self._baseline: str | None = None
        # Whether the session was still to be found when the wait began: then only a reading shows its start.
        self._unbound = not begun
        self._begun_at = self._since if begun else None
        self._live_seen = False
        # With no session known: whether a poll was late enough to prove that the session began after ``since``.
        self._shown_since = begun
        self._furthest = 0  # 1: beyond INITIALIZING, 2: ended
        self._glimpsed = ""  # an awaited status that is not terminal, polled too early to end the wait
        self._hidden = False
        self._doubt = ""
        self._newer = False
        self._candidate: str | None = None
        self._candidate_since: datetime | None = None
        self._last_read_at: datetime | None = None
        # By callouts of the session itself: when the last one was received, and whether the session has ended.
        self._told_at: datetime | None = None
        self._over = False
        # When a poll last showed a live status that no other session explains, and when it showed the meter idle.
        self._live_at: datetime | None = None
        self._idle_at: datetime | None = None
        if baseline is not None:
            self._take_baseline(baseline, self._since)

    @property
    def bound(self) -> bool:
        """Whether the awaited session is known to have begun."""
        return self._begun_at is not None

    @property
    def begun_at(self) -> datetime | None:
        """The latest time, by our clock, at which the awaited session began; ``None`` while no start is known."""
        return self._begun_at

    @property
    def read_at(self) -> datetime | None:
        """When the meter was read last."""
        return self._last_read_at

    def facts(self) -> tuple[Any, ...]:
        """Return what the readings so far prove, without the times of the last ones: to compare."""
        return _FACTS(self)

    def settled_at(self, at: datetime, others: Iterable[SessionState]) -> bool:
        """Return whether each reading since an instant is late enough for every rule that depends on its time.

        Then two readings of the same status prove the same, unless the first one changed the ``facts``.

        :param others: the meter's sessions by callouts
        """
        if self._begun_at is not None:
            if at < self._begun_at + (1 if self._live_seen else 4) * self.settle:
                return False
        elif self.closes_at is not None and at <= self.closes_at:
            return False
        instants = (self._since, self._told_at, self._candidate_since)
        if any(each is not None and at < each + self.settle for each in instants):
            return False
        return all(at >= to_utc("observed_at", other.observed_at) + self.settle for other in others)

    @property
    def open_until(self) -> datetime | None:
        """The latest time for a poll to show the awaited session; ``None`` where one has, or there is no limit."""
        seen = self._begun_at is not None or self._candidate not in (None, self._baseline)
        return None if seen else self.closes_at

    def _comes_late(self, status: str, at: datetime) -> bool:
        """Return whether a reading is of a session that began too late to be the awaited one."""
        if self.closes_at is None or at <= self.closes_at or self._begun_at is not None:
            return False
        return self._candidate in (None, self._baseline) or self._candidate != status

    @property
    def doubt(self) -> str:
        """Evidence of another session of the meter, as text; empty where there is none."""
        return self._doubt

    @property
    def newer(self) -> bool:
        """Whether readings showed a session that began after the awaited one."""
        return self._newer

    @property
    def baseline(self) -> str | None:
        """The status from before the session, where it was read."""
        return self._baseline

    @property
    def exclusive(self) -> bool:
        """Whether the user promised that nothing else runs the meter."""
        return self._exclusive

    def of_session(self, session_id: str | None, reported_at: datetime) -> PollEvidence:
        """Return new evidence for the session that callouts showed to be the awaited one, or for none again.

        :param session_id: the session
        :param reported_at: by our clock: when its first report was received
        """
        new = PollEvidence(
            self._condition,
            since=reported_at,
            begun=session_id is not None,
            baseline=self._baseline,
            exclusive=self._exclusive,
            settle=self.settle,
            closes_at=self.closes_at,
        )
        new._session_id, new._doubt, new._newer = session_id, self._doubt, self._newer
        return new

    def contradict(self, reason: str) -> None:
        """Record that the promise of ``exclusive`` was broken: no result of these polls is certain from now on.

        :param reason: what contradicts it, as text
        """
        self._doubt = self._doubt or reason

    def receive(self, state: SessionState) -> None:
        """Take the session's state by callouts; earlier readings count only as far as they agree with it.

        :param state: the awaited session
        """
        first, last = to_utc("observed_at", state.first_observed_at), to_utc("observed_at", state.last_observed_at)
        self._begun_at = first if self._begun_at is None else min(self._begun_at, first)
        self.started_at = to_utc("begun_at", state.begun_at)
        self.run_types = tuple(each for each in self._condition.run_types if each == state.run_type) or self.run_types
        self._session_id, self._unbound, self._shown_since = state.session_id, False, True
        self._told_at, self._over = last, state.terminal
        if not state.terminal:
            begun = state.status != SessionStatus.INITIALIZING
            self._furthest = max(int(begun), min(self._furthest, 1))
            self._live_seen = True
            self._hidden, self._candidate = False, None

    def observe(self, reading: PollReading, others: Sequence[SessionState] = ()) -> PollConclusion:
        """Evaluate one reading; readings out of order or received twice change nothing.

        :param reading: the status, and when the poll was sent
        :param others: the meter's sessions by callouts; the awaited one may be among them
        """
        status, at = reading.status, reading.read_at
        if self._last_read_at is not None and at <= self._last_read_at:
            return _SILENT
        self._last_read_at = at
        if self._over or (self._told_at is not None and at - self._told_at < self.settle):
            # By callouts the session has ended, or changed its status so recently that the reading may be stale.
            return _SILENT
        if at < self._since:
            # A reading from before ``since`` can only be the baseline.
            if self._unbound:
                self._baseline = status
            return _SILENT
        other = self.other(others, status, at) if others else None
        if status in IDLE_FOR_GOOD:
            self._idle_at = at
        if other is not None:
            self._candidate = None
            if self._unbound and self._baseline is None and status in IDLE_FOR_GOOD:
                self._take_baseline(status, at)
            return PollConclusion(Outcome.WAITING, counts=False, reason=of_another(other))
        if self._comes_late(status, at):
            self._candidate = None
            reason = f"the meter is {status}, and no poll showed a session that started before the latest start"
            return PollConclusion(Outcome.WAITING, counts=False, reason=reason)
        return self._weigh(status, at)

    def other(self, others: Sequence[SessionState], status: str, at: datetime) -> str | None:
        """Return another session that a reading may be of, and record one that breaks the promise of ``exclusive``."""
        own = self._awaited()
        if not self._doubt and (ran := who_ran(own, others)):
            self.contradict(f"session {ran} of the same meter ran meanwhile")
        return who_explains(own, others, status, at)

    def _awaited(self) -> Awaited:
        return Awaited(
            session_id=self._session_id,
            begun_at=self.started_at or self._since,
            live_at=self._live_at,
            idle_at=self._idle_at,
            idle_before=self._baseline in IDLE_FOR_GOOD,
            settle=self.settle,
        )

    def _weigh(self, status: str, at: datetime) -> PollConclusion:
        """Return the conclusion from a reading that no other known session explains."""
        if self._unbound and self._baseline is None:
            self._take_baseline(status, at)
        shown_by = self.may_be(status)
        if not shown_by:
            return self._masked(status, at)
        if self._is_live(status):
            self._note_live(status, at)
        elif self._live_seen:
            if self._settled(at):
                self._furthest = 2 if status in ANY_TERMINAL else max(self._furthest, 1)
        elif status == self._baseline and at - self._since >= self.settle:
            # No session yet: one that shows from here on did not begin before ``since``.
            self._shown_since = True
        if self._changed(status) and at - self._since >= self.settle:
            self.run_types = shown_by
        return self._conclude(status, at)

    def may_be(self, status: str) -> tuple[RunType, ...]:
        """Return the possible run types of the session, given that a poll shows this status of it."""
        return tuple(each for each in self.run_types if may_show(each, status))

    def _is_live(self, status: str) -> bool:
        return any(status in LIVE[each] for each in self.run_types)

    def _changed(self, status: str) -> bool:
        """Return whether the meter has shown something else than the status from before the session."""
        return self._live_seen or (self._baseline is not None and status != self._baseline)

    def _conclude(self, status: str, at: datetime) -> PollConclusion:
        """Return the conclusion from a reading that is not masked, and all readings before it."""
        changed = self._changed(status)
        if self._hidden:
            return PollConclusion(
                Outcome.WAITING, counts=False, reason="the session has ended, and a newer one hides it"
            )
        outcome = self._condition.outcome_of(status)
        if outcome is Outcome.WAITING:
            self._candidate = None
            return _WAITING if changed else self._unchanged(status)
        if status == self._candidate and self._candidate_since is not None:
            agreed = at - self._candidate_since >= self.settle
        else:
            self._candidate, self._candidate_since, agreed = status, at, False
        if outcome is Outcome.MET and changed and status not in ANY_TERMINAL:
            self._glimpsed = status
        if self._live_seen:
            enough = self._settled(at)
        elif changed:
            enough = agreed
        else:
            enough = agreed and self._begun_at is not None and at - self._begun_at >= 4 * self.settle
        if not enough:
            return _WAITING if changed else self._unchanged(status)
        if outcome is Outcome.FAILED and self._glimpsed:
            # The session was in the awaited status before, but too early to end the wait then: that is no failure.
            return PollConclusion(Outcome.MET, status=self._glimpsed, reason=f"{self._glimpsed} was read only once")
        doubt = self._reason_to_doubt(status, changed=changed)
        return PollConclusion(outcome, status=status, certain=not doubt, reason=doubt)

    def _take_baseline(self, status: str, at: datetime) -> None:
        """Store the baseline; where it is live, it is taken for the awaited session if that is still to be found."""
        self._baseline = status
        if status in IDLE_FOR_GOOD:
            self._idle_at = at
        if self._unbound and self._is_live(status):
            self._note_live(status, at)

    def _note_live(self, status: str, at: datetime) -> None:
        """Record a live status, and what it shows about newer sessions and the session's start."""
        initializing = status == SessionStatus.INITIALIZING
        if self._furthest == 2 or (self._furthest == 1 and initializing):
            self._newer = True
            self.contradict(NEWER_RUN)
            # The awaited session is known to have ended in a status that did not end the wait; the rest is another's.
            self._hidden = self._hidden or (self._furthest == 2 and initializing)
        if not self._shown_since and at - self._since >= self.settle:
            # The first live reading that cannot be a stale reading of a session before ``since``.
            self._shown_since = True
            self._begun_at = at
        elif self._begun_at is None:
            self._begun_at = at
        self._live_seen, self._live_at = True, at
        if not initializing and self._settled(at):
            self._furthest = max(self._furthest, 1)

    def _masked(self, status: str, at: datetime) -> PollConclusion:
        """Return the conclusion from a status that only sessions of the other run type have."""
        self._candidate = None
        if status == self._baseline and not self._live_seen:
            return self._unchanged(status)
        (other,) = set(RunType).difference(self.run_types)
        reason = f"a {other} run of the meter ({status}) hides the status of the session"
        if at - self._since >= self.settle:
            self.contradict(f"a {other} run of the meter was seen meanwhile")
        return PollConclusion(Outcome.WAITING, counts=False, reason=reason)

    def _unchanged(self, status: str) -> PollConclusion:
        """Return the conclusion from a status that may be, or is, the baseline."""
        if self._begun_at is None:
            return PollConclusion(
                Outcome.WAITING, counts=False, reason=f"the meter is {status}, no session was seen to begin"
            )
        reason = f"the meter still shows {status}, which may be the previous session's"
        return PollConclusion(Outcome.WAITING, counts=False, reason=reason)

    def _settled(self, at: datetime) -> bool:
        return self._begun_at is not None and at - self._begun_at >= self.settle

    def _reason_to_doubt(self, status: str, *, changed: bool) -> str:
        """Return why a status that ends the wait may not be the session's own; empty where it certainly is."""
        if self._doubt:
            return self._doubt
        if not self._exclusive:
            return NOT_EXCLUSIVE
        if self._baseline is not None and self._baseline not in IDLE:
            return f"the meter was {self._baseline} before, and that may be another session that goes on"
        if not changed:
            return f"the meter showed no status but {status} since the session began, and may have shown it before"
        if not self._shown_since:
            return "the session was seen too soon after the wait began to distinguish it from the previous one"
        if len(self.may_be(status)) > 1:
            return f"a poll names no run type, and NORMAL and DEBUG sessions can both be {status}"
        return ""

    def to_dict(self) -> dict[str, Any]:
        """Return the evidence as plain JSON, without the condition."""
        return {
            "since": to_json(self._since),
            "begun": not self._unbound,
            "baseline": self._baseline,
            "exclusive": self._exclusive,
            "settle": self.settle.total_seconds(),
            "begun_at": to_json(self._begun_at),
            "live_seen": self._live_seen,
            "shown_since": self._shown_since,
            "furthest": self._furthest,
            "glimpsed": self._glimpsed,
            "hidden": self._hidden,
            "doubt": self._doubt,
            "newer": self._newer,
            "candidate": self._candidate,
            "candidate_since": to_json(self._candidate_since),
            "last_read_at": to_json(self._last_read_at),
            "started_at": to_json(self.started_at),
            "session_id": self._session_id,
            "told_at": to_json(self._told_at),
            "over": self._over,
            "live_at": to_json(self._live_at),
            "idle_at": to_json(self._idle_at),
            "closes_at": to_json(self.closes_at),
            # Where a reading or callout has shown which of both it is.
            **({"run_type": str(self.run_types[0])} if self.run_types != self._condition.run_types else {}),
        }

    @classmethod
    def from_dict(cls, condition: SessionCondition, data: Mapping[str, Any]) -> PollEvidence:
        """Make it from ``to_dict()``: unknown keys are left out, missing ones get their value at the start of the wait.

        :raises ValueError: ``since`` is missing, or a time is not ISO 8601
        """
        since = from_json(data.get("since"))
        if since is None:
            raise ValueError("the stored evidence of a wait's polls lacks 'since'")
        self = cls(
            condition,
            since=since,
            begun=bool(data.get("begun", False)),
            exclusive=bool(data.get("exclusive", False)),
            settle=timedelta(seconds=float(data.get("settle", 30))),
            closes_at=from_json(data.get("closes_at")),
        )
        self._baseline = data.get("baseline")
        self._begun_at = from_json(data.get("begun_at")) or self._begun_at
        self._live_seen = bool(data.get("live_seen", False))
        self._shown_since = bool(data.get("shown_since", self._shown_since))
        self._furthest = int(data.get("furthest", 0))
        self._glimpsed = str(data.get("glimpsed", ""))
        self._hidden = bool(data.get("hidden", False))
        self._doubt = str(data.get("doubt", ""))
        # A wait that was stored before this key existed has it in its doubt.
        self._newer = bool(data.get("newer", self._doubt == NEWER_RUN))
        if data.get("run_type"):
            self.run_types = run_types_of(data["run_type"])
        self._candidate = data.get("candidate")
        self._candidate_since = from_json(data.get("candidate_since"))
        self._last_read_at = from_json(data.get("last_read_at"))
        self.started_at = from_json(data.get("started_at"))
        self._session_id = data.get("session_id") or self._session_id
        self._told_at = from_json(data.get("told_at"))
        self._over = bool(data.get("over", False))
        self._live_at = from_json(data.get("live_at"))
        self._idle_at = from_json(data.get("idle_at"))
        return self


def of_another(session_id: str) -> str:
    """Return why a reading does not count for the awaited session."""
    return f"the status may be that of session {session_id} of the same meter"
