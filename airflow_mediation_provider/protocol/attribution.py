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
* Where callouts tell of the session, or of others of its meter, a reading counts only as far as it fits them: see
  ``neighbours``. A reading that another session explains is none.

Source: https://developer.zuora.com/v1-api-reference/api/meters/getrunstatusofspecificmeterversion
"""

from __future__ import annotations

from datetime import datetime, timedelta
from typing import TYPE_CHECKING, Any, Final

from airflow_mediation_provider.protocol.condition import Outcome
from airflow_mediation_provider.protocol.neighbours import IDLE_FOR_GOOD, Awaited, who_explains, who_lives, who_ran
from airflow_mediation_provider.protocol.reading import FOREIGN, IDLE, LIVE, PollReading, PollVerdict
from airflow_mediation_provider.protocol.status import ANY_TERMINAL, RunType, SessionStatus
from airflow_mediation_provider.protocol.times import from_json, to_json, to_utc

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from airflow_mediation_provider.protocol.condition import SessionCondition
    from airflow_mediation_provider.protocol.lifecycle import SessionState

NOT_EXCLUSIVE: Final = (
    "a poll names no session, and another one may have run meanwhile "
    "(with exclusive=True you promise that none of this meter does)"
)
NEWER_RUN: Final = "a newer session of the meter was seen, and the status may be that one's"
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
    :param started_at: the session's start by Zuora's clock, where it is known
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
        "_over",
        "_session_id",
        "_shown_since",
        "_since",
        "_told_at",
        "_unbound",
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
    ) -> None:
        self._condition = condition
        self._session_id = condition.session_id
        self._since = to_utc("since", since)
        self.started_at = started_at
        self.settle = settle
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
        # What callouts told of the session itself: when, and whether it has ended.
        self._told_at: datetime | None = None
        self._over = False
        # When a poll last showed something live that is nobody else's, and when the meter idle.
        self._live_at: datetime | None = None
        self._idle_at: datetime | None = None
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

    def of_session(self, session_id: str | None, heard_at: datetime) -> Attribution:
        """Return a memory for the session that callouts showed to be the awaited one, or for none again.

        :param session_id: the session
        :param heard_at: by our clock: when it was first heard of
        """
        new = Attribution(
            self._condition,
            since=heard_at,
            begun=session_id is not None,
            baseline=self._baseline,
            exclusive=self._exclusive,
            settle=self.settle,
        )
        new._session_id, new._doubt = session_id, self._doubt
        return new

    def contradict(self, reason: str) -> None:
        """Note that the promise of ``exclusive`` is not kept: no result of these polls is certain from now on.

        :param reason: what contradicts it, in words
        """
        self._doubt = self._doubt or reason

    def learn(self, state: SessionState) -> None:
        """Take what callouts tell of the session itself: what was read before counts only as far as it fits.

        :param state: the awaited session
        """
        first, told = to_utc("observed_at", state.first_observed_at), to_utc("observed_at", state.last_observed_at)
        self._begun_at = first if self._begun_at is None else min(self._begun_at, first)
        self.started_at = to_utc("begun_at", state.begun_at)
        self._session_id, self._unbound, self._shown_since = state.session_id, False, True
        self._told_at, self._over = told, state.terminal
        if not state.terminal:
            begun = state.status != SessionStatus.INITIALIZING
            self._furthest = max(int(begun), min(self._furthest, 1))
            self._live_seen = True
            self._hidden, self._candidate = False, None

    def observe(self, reading: PollReading, others: Sequence[SessionState] = ()) -> PollVerdict:
        """Weigh one reading; readings that come out of order or twice change nothing.

        :param reading: the status, and when it was asked for
        :param others: what callouts tell of the meter's sessions; the awaited one may be among them
        """
        status, at = reading.status, reading.read_at
        if self._last_read_at is not None and at <= self._last_read_at:
            return _SILENT
        self._last_read_at = at
        if self._over or (self._told_at is not None and at - self._told_at < self.settle):
            # The session has ended by its own word, or has moved so lately that the reading may be of before.
            return _SILENT
        if at < self._since:
            # Of the time before: all that it can be is the status before.
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
            return PollVerdict(Outcome.WAITING, speaks=False, reason=of_another(other))
        return self._weigh(status, at)

    def other(self, others: Sequence[SessionState], status: str, at: datetime) -> str | None:
        """Return another session that a reading may be of, and note whoever breaks the promise of ``exclusive``."""
        own = self._awaited()
        if not self._doubt and (ran := who_ran(own, others)):
            self.contradict(f"session {ran} of the same meter ran meanwhile")
        return who_explains(own, others, status, at)

    def beside(self, others: Sequence[SessionState]) -> list[str]:
        """Return the sessions that seem to be live beside the awaited one."""
        return who_lives(self._awaited(), others)

    def _awaited(self) -> Awaited:
        return Awaited(
            session_id=self._session_id,
            begun_at=self.started_at or self._since,
            live_at=self._live_at,
            idle_at=self._idle_at,
            idle_before=self._baseline in IDLE_FOR_GOOD,
            settle=self.settle,
        )

    def _weigh(self, status: str, at: datetime) -> PollVerdict:
        """Return the verdict on a reading that no other session is known to explain."""
        run_type = self._condition.run_type
        live = status in LIVE[run_type]
        if self._unbound and self._baseline is None:
            self._take_baseline(status, at)
        if status in FOREIGN[run_type]:
            return self._masked(status, at)
        if live:
            self._note_live(status, at)
        elif self._live_seen:
            if self._settled(at):
                self._furthest = 2 if status in ANY_TERMINAL else max(self._furthest, 1)
        elif status == self._baseline and at - self._since >= self.settle:
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
            # It has been in the status that was asked for, only too soon to end the wait then: that is no failure.
            return PollVerdict(Outcome.MET, status=self._glimpsed, reason=f"{self._glimpsed} was read only once")
        doubt = self._reason_to_doubt(status, changed=changed)
        return PollVerdict(outcome, status=status, certain=not doubt, reason=doubt)

    def _take_baseline(self, status: str, at: datetime) -> None:
        """Keep the status from before; where it is live, a session still to be found is taken to be that one."""
        self._baseline = status
        if status in IDLE_FOR_GOOD:
            self._idle_at = at
        if self._unbound and status in LIVE[self._condition.run_type]:
            self._note_live(status, at)

    def _note_live(self, status: str, at: datetime) -> None:
        """Keep that a session was seen alive, and what that says of newer sessions and of its start."""
        initializing = status == SessionStatus.INITIALIZING
        if self._furthest == 2 or (self._furthest == 1 and initializing):
            self.contradict(NEWER_RUN)
            # Ours is known to have ended in a status that was not asked for; what follows is another session's.
            self._hidden = self._hidden or (self._furthest == 2 and initializing)
        if not self._shown_since and at - self._since >= self.settle:
            # The first live reading that cannot be a stale one of a session before ``since``.
            self._shown_since = True
            self._begun_at = at
        elif self._begun_at is None:
            self._begun_at = at
        self._live_seen, self._live_at = True, at
        if not initializing and self._settled(at):
            self._furthest = max(self._furthest, 1)

    def _masked(self, status: str, at: datetime) -> PollVerdict:
        """Return the verdict on a status that only a session of the other run type has."""
        self._candidate = None
        if status == self._baseline and not self._live_seen:
            return self._unchanged(status)
        other = "DEBUG" if self._condition.run_type is RunType.NORMAL else "NORMAL"
        reason = f"a {other} run of the meter ({status}) hides the status of the session"
        if at - self._since >= self.settle:
            self.contradict(f"a {other} run of the meter was seen meanwhile")
        return PollVerdict(Outcome.WAITING, speaks=False, reason=reason)

    def _unchanged(self, status: str) -> PollVerdict:
        """Return the verdict on a status that may be, or is, the one from before the session."""
        if self._begun_at is None:
            return PollVerdict(Outcome.WAITING, speaks=False, reason=f"the meter is {status}, no session has begun yet")
        reason = f"the meter still shows {status}, which may be the session before"
        return PollVerdict(Outcome.WAITING, speaks=False, reason=reason)

    def _settled(self, at: datetime) -> bool:
        return self._begun_at is not None and at - self._begun_at >= self.settle

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
            "settle": self.settle.total_seconds(),
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
            "started_at": to_json(self.started_at),
            "session_id": self._session_id,
            "told_at": to_json(self._told_at),
            "over": self._over,
            "live_at": to_json(self._live_at),
            "idle_at": to_json(self._idle_at),
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
        self.started_at = from_json(data.get("started_at"))
        self._session_id = data.get("session_id") or self._session_id
        self._told_at = from_json(data.get("told_at"))
        self._over = bool(data.get("over", False))
        self._live_at = from_json(data.get("live_at"))
        self._idle_at = from_json(data.get("idle_at"))
        return self


def of_another(session_id: str) -> str:
    """Return why a reading does not speak for the awaited session, in words."""
    return f"the status may be that of session {session_id} of the same meter"
