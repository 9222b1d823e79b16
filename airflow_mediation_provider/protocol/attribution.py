"""Attribution: what a sequence of polls, which name no session, proves about the session of one condition.

``runStatus`` is the status of a meter *version*: it carries no session id, no run type and no time. It can be a stale
read of the session before, or show a newer run or a DEBUG run instead of ours. So:

* A reading speaks for a session only once it is *settled*: sent at least ``settle`` after the session is known to have
  begun. Up to then it may be a stale read of the session before. Nothing ends a wait sooner.
* Besides, the session must have shown: a live status was read since it began, or the status is another one than before
  it began and two polls, ``settle`` apart, agree. Where neither is so (the meter was COMPLETED before, and is now), a
  session that is known to have begun is taken to have ended after four times ``settle``, and that is not certain.
* A poll can never exclude a newer run that nobody saw. A result is certain only if the user promised ``exclusive`` and
  nothing that was read contradicts the promise.

Source: https://developer.zuora.com/v1-api-reference/api/meters/getrunstatusofspecificmeterversion
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import TYPE_CHECKING, Any, Final

from airflow_mediation_provider.protocol.condition import Outcome
from airflow_mediation_provider.protocol.status import ANY_TERMINAL, DEBUG_ONLY, RunType, SessionStatus
from airflow_mediation_provider.protocol.times import from_json, to_json, to_utc

if TYPE_CHECKING:
    from collections.abc import Mapping

    from airflow_mediation_provider.protocol.condition import SessionCondition

# Read while a session of the run type goes on. An unknown status is evidence of nothing.
LIVE: Final[dict[RunType, frozenset[str]]] = {
    RunType.NORMAL: frozenset(
        {
            SessionStatus.INITIALIZING,
            SessionStatus.RUNNING,
            SessionStatus.STOPPING,
            SessionStatus.USAGE_PUSHING,
            SessionStatus.PUSH_COMPLETED,
            SessionStatus.CONSUME_COMPLETED,
        }
    ),
    RunType.DEBUG: frozenset({SessionStatus.TESTING}),
}
# Read only while, or after, a session of the other run type hides ours. INITIALIZING might be of either type.
FOREIGN: Final[dict[RunType, frozenset[str]]] = {
    RunType.NORMAL: DEBUG_ONLY,
    RunType.DEBUG: frozenset(SessionStatus) - DEBUG_ONLY - {SessionStatus.NEVER_RUN, SessionStatus.INITIALIZING},
}
# Read while no session goes on.
IDLE: Final[frozenset[str]] = ANY_TERMINAL | {SessionStatus.NEVER_RUN, SessionStatus.PAUSED}

NOT_EXCLUSIVE: Final = (
    "a poll names no session, and another one may have run meanwhile "
    "(with exclusive=True you promise that none of this meter does)"
)
NEWER_RUN: Final = "a newer session of the meter was seen, and the status may be that one's"


@dataclass(frozen=True, slots=True)
class PollReading:
    """One status read from ``runStatus``.

    :param status: Zuora's name of the status
    :param read_at: when the request was *sent*: what it says was true then at the earliest
    """

    status: str
    read_at: datetime

    def __post_init__(self) -> None:
        """Bring the time into plain UTC: a thousand waits compare it."""
        object.__setattr__(self, "read_at", to_utc("read_at", self.read_at))


@dataclass(frozen=True, slots=True)
class PollVerdict:
    """What the polls up to now say of the awaited session.

    :param outcome: whether the wait is over, and how
    :param status: the status that the outcome rests on, where the wait is over
    :param certain: whether the outcome is proven (given the promise of ``exclusive``)
    :param speaks: whether the reading is, as far as polls tell, the session's own status
    :param reason: in words: why the outcome is not certain, or why the reading does not speak for the session
    """

    outcome: Outcome
    status: str = ""
    certain: bool = False
    speaks: bool = True
    reason: str = ""


_WAITING: Final = PollVerdict(Outcome.WAITING)
_SILENT: Final = PollVerdict(Outcome.WAITING, speaks=False)


class Attribution:
    """The memory of one wait's polls; ``observe`` weighs each new reading against it.

    :param condition: what is waited for
    :param since: where the session is known to have begun: by when, by our clock, at the latest; else the instant from
        which on a session that begins is the awaited one
    :param begun: whether the session is known to have begun (its id is known, or its run call was made)
    :param baseline: the status read just before the run call, or at the sensor's first look; without one, and with the
        session still to begin, the first reading is taken
    :param exclusive: the user's promise: from the session's start (with no session known: from the condition's
        ``since``, or the wait's begin where that is earlier) until the wait ends, no other session of the meter is live
    :param settle: how long a reading may be stale
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
        "_last_read_at",
        "_live_seen",
        "_settle",
        "_shown_since",
        "_since",
        "_unbound",
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
    ) -> None:
        self._condition = condition
        self._since = to_utc("since", since)
        self._settle = settle
        self._exclusive = exclusive
        self._baseline: str | None = None
        # Whether the session was still to be found when the wait began: then its start is known by a reading alone.
        self._unbound = not begun
        self._begun_at = self._since if begun else None
        self._live_seen = False
        # No session known: whether something was read late enough to prove that the session began after ``since``.
        self._shown_since = begun
        self._furthest = 0  # 1: beyond INITIALIZING, 2: ended
        self._glimpsed = ""  # a passing status that was asked for, read too soon to end the wait
        self._hidden = False
        self._doubt = ""
        self._candidate: str | None = None
        self._candidate_since: datetime | None = None
        self._last_read_at: datetime | None = None
        if baseline is not None:
            self._take_baseline(baseline, self._since)

    @property
    def bound(self) -> bool:
        """Whether the awaited session is known to have begun."""
        return self._begun_at is not None

    @property
    def doubt(self) -> str:
        """What was seen of another session of the meter, in words; empty where nothing was."""
        return self._doubt

    def contradict(self, reason: str) -> None:
        """Note that the promise of ``exclusive`` is not kept: no result of these polls is certain from now on.

        :param reason: what contradicts it, in words
        """
        self._doubt = self._doubt or reason

    def observe(self, reading: PollReading) -> PollVerdict:
        """Weigh one reading; readings that come out of order or twice change nothing.

        :param reading: the status, and when it was asked for
        """
        status, at = reading.status, reading.read_at
        if self._last_read_at is not None and at <= self._last_read_at:
            return _SILENT
        self._last_read_at = at
        run_type = self._condition.run_type
        live = status in LIVE[run_type]
        if at < self._since:
            # Of the time before: all that it can be is the status before.
            if self._unbound:
                self._baseline = status
            return _SILENT
        if self._unbound and self._baseline is None:
            self._take_baseline(status, at)
        if status in FOREIGN[run_type]:
            return self._masked(status, at)
        if live:
            self._note_live(status, at)
        elif self._live_seen:
            if self._settled(at):
                self._furthest = 2 if status in ANY_TERMINAL else max(self._furthest, 1)
        elif status == self._baseline and at - self._since >= self._settle:
            # Still none: a session that shows from here on did not begin before ``since``.
            self._shown_since = True
        return self._conclude(status, at)

    def _conclude(self, status: str, at: datetime) -> PollVerdict:
        """Return what a reading that is not masked, and all before it, say of the condition."""
        changed = self._live_seen or (self._baseline is not None and status != self._baseline)
        if self._hidden:
            return PollVerdict(Outcome.WAITING, speaks=False, reason="the session has ended, and a newer one hides it")
        outcome = self._condition.outcome_of(status)
        if outcome is Outcome.WAITING:
            self._candidate = None
            return _WAITING if changed else self._unchanged(status)
        if status == self._candidate and self._candidate_since is not None:
            agreed = at - self._candidate_since >= self._settle
        else:
            self._candidate, self._candidate_since, agreed = status, at, False
        if outcome is Outcome.MET and changed and status not in ANY_TERMINAL:
            self._glimpsed = status
        if self._live_seen:
            enough = self._settled(at)
        elif changed:
            enough = agreed
        else:
            enough = agreed and self._begun_at is not None and at - self._begun_at >= 4 * self._settle
        if not enough:
            return _WAITING if changed else self._unchanged(status)
        if outcome is Outcome.FAILED and self._glimpsed:
            # It has been in the status that was asked for, only too soon to end the wait then: that is no failure.
            return PollVerdict(Outcome.MET, status=self._glimpsed, reason=f"{self._glimpsed} was read only once")
        doubt = self._reason_to_doubt(status, changed=changed)
        return PollVerdict(outcome, status=status, certain=not doubt, reason=doubt)

    def _take_baseline(self, status: str, at: datetime) -> None:
        """Keep the status from before; where it is live, a session still to be found is taken to be that one."""
        self._baseline = status
        if self._unbound and status in LIVE[self._condition.run_type]:
            self._note_live(status, at)

    def _note_live(self, status: str, at: datetime) -> None:
        """Keep that a session was seen alive, and what that says of newer sessions and of its start."""
        initializing = status == SessionStatus.INITIALIZING
        if self._furthest == 2 or (self._furthest == 1 and initializing):
            self.contradict(NEWER_RUN)
            # Ours is known to have ended in a status that was not asked for; what follows is another session's.
            self._hidden = self._hidden or (self._furthest == 2 and initializing)
        if not self._shown_since and at - self._since >= self._settle:
            # The first live reading that cannot be a stale one of a session before ``since``.
            self._shown_since = True
            self._begun_at = at
        elif self._begun_at is None:
            self._begun_at = at
        self._live_seen = True
        if not initializing and self._settled(at):
            self._furthest = max(self._furthest, 1)

    def _masked(self, status: str, at: datetime) -> PollVerdict:
        """Return the verdict on a status that only a session of the other run type has."""
        self._candidate = None
        if status == self._baseline and not self._live_seen:
            return self._unchanged(status)
        other = "DEBUG" if self._condition.run_type is RunType.NORMAL else "NORMAL"
        reason = f"a {other} run of the meter ({status}) hides the status of the session"
        if at - self._since >= self._settle:
            self.contradict(f"a {other} run of the meter was seen meanwhile")
        return PollVerdict(Outcome.WAITING, speaks=False, reason=reason)

    def _unchanged(self, status: str) -> PollVerdict:
        """Return the verdict on a status that may be, or is, the one from before the session."""
        if self._begun_at is None:
            return PollVerdict(Outcome.WAITING, speaks=False, reason=f"the meter is {status}, no session has begun yet")
        reason = f"the meter still shows {status}, which may be the session before"
        return PollVerdict(Outcome.WAITING, speaks=False, reason=reason)

    def _settled(self, at: datetime) -> bool:
        return self._begun_at is not None and at - self._begun_at >= self._settle

    def _reason_to_doubt(self, status: str, *, changed: bool) -> str:
        """Return why a status that ends the wait may not be the session's own; empty where nothing says so."""
        if self._doubt:
            return self._doubt
        if not self._exclusive:
            return NOT_EXCLUSIVE
        if self._baseline is not None and self._baseline not in IDLE:
            return f"the meter was {self._baseline} before, and that may be another session which goes on"
        if not changed:
            return f"the meter showed no status but {status} since the session began, and may have shown that before"
        if not self._shown_since:
            return "the session was seen too soon after the wait began to tell it from the one before"
        return ""

    def to_dict(self) -> dict[str, Any]:
        """Return the whole memory as plain JSON, without the condition."""
        return {
            "since": to_json(self._since),
            "begun": not self._unbound,
            "baseline": self._baseline,
            "exclusive": self._exclusive,
            "settle": self._settle.total_seconds(),
            "begun_at": to_json(self._begun_at),
            "live_seen": self._live_seen,
            "shown_since": self._shown_since,
            "furthest": self._furthest,
            "glimpsed": self._glimpsed,
            "hidden": self._hidden,
            "doubt": self._doubt,
            "candidate": self._candidate,
            "candidate_since": to_json(self._candidate_since),
            "last_read_at": to_json(self._last_read_at),
        }

    @classmethod
    def from_dict(cls, condition: SessionCondition, data: Mapping[str, Any]) -> Attribution:
        """Make the memory from ``to_dict()``: unknown keys are left out, what is missing is as at the wait's begin.

        :raises ValueError: ``since`` is missing, or a time is not ISO 8601
        """
        since = from_json(data.get("since"))
        if since is None:
            raise ValueError("the memory of a wait's polls lacks 'since'")
        self = cls(
            condition,
            since=since,
            begun=bool(data.get("begun", False)),
            exclusive=bool(data.get("exclusive", False)),
            settle=timedelta(seconds=float(data.get("settle", 30))),
        )
        self._baseline = data.get("baseline")
        self._begun_at = from_json(data.get("begun_at")) or self._begun_at
        self._live_seen = bool(data.get("live_seen", False))
        self._shown_since = bool(data.get("shown_since", self._shown_since))
        self._furthest = int(data.get("furthest", 0))
        self._glimpsed = str(data.get("glimpsed", ""))
        self._hidden = bool(data.get("hidden", False))
        self._doubt = str(data.get("doubt", ""))
        self._candidate = data.get("candidate")
        self._candidate_since = from_json(data.get("candidate_since"))
        self._last_read_at = from_json(data.get("last_read_at"))
        return self
