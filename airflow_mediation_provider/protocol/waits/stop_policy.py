"""The stop policy: whether a meter may be stopped because of one task's session. One function decides, for every cause.

Zuora stops every NORMAL run of a meter version, not one session, so a stop that comes too late, or from a process that
has not polled for a while, cancels another session. Worker and triggerer gather the facts just before the stop
(``worker.run_stop``, ``triggers.meter_session``) and call ``why_not_stop``. A fact that could not be obtained forbids
the stop.
``PollWatchdog`` supplies one of them: whether the process polled as often as planned.

What remains: where the callouts of the session's end and of the next session's start are both late, and the meter was
not polled in between, the next session cannot be distinguished from the awaited one.

https://docs.zuora.com/en/zuora-platform/extensibility/mediation/meters/stop-a-meter
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from enum import StrEnum
from typing import TYPE_CHECKING, Any, Final

from airflow_mediation_provider.protocol.status import ENDS_BY_POLL, IDLE, LIVE, RunType, SessionStatus
from airflow_mediation_provider.protocol.times import to_utc
from airflow_mediation_provider.protocol.wire import FeedRequest, MeterQuestion

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from datetime import datetime, timedelta

    from airflow_mediation_provider.protocol.sessions.lifecycle import SessionState
    from airflow_mediation_provider.protocol.waits.wait import SessionWait
    from airflow_mediation_provider.protocol.wire import FeedReply


LEAST_SECONDS: Final = 10.0
"""A shorter planned pause counts as this long: the calls themselves take time."""

KILLED: Final = frozenset({"failed", "skipped", "removed"})
"""Airflow's states of a task that was ended from outside. Not ``success``: a wait that moved to
another process ends in it too. Not ``restarting`` or none: the next try stops the run that a Clear left running."""
QUIET: Final[frozenset[str]] = ENDS_BY_POLL[RunType.NORMAL] | {SessionStatus.NEVER_RUN}
"""Polled while no NORMAL session of the meter is live; unlike the end of a test, which may hide one."""


class PollWatchdog:
    """Polls of one meter by this process, and the last pause between two of them that took over twice the planned time.

    It counts from the first poll on. Two clocks measure it: a suspended machine may stop the monotonic one, and the
    wall clock may be set.

    :param monotonic: a clock that is never set, in seconds
    :param now: the wall clock
    """

    __slots__ = ("_looked_at", "_monotonic", "_now", "_planned", "_seen_at", "_stalled_at")

    def __init__(self, *, monotonic: Callable[[], float], now: Callable[[], datetime]) -> None:
        self._monotonic = monotonic
        self._now = now
        self._planned = 0.0
        self._looked_at: float | None = None
        self._seen_at = now()
        self._stalled_at: float | None = None

    def polled(self, planned: float) -> None:
        """Record a successful poll.

        :param planned: seconds to the next one
        """
        at = self._monotonic()
        if self._late(at):
            self._stalled_at = at
        self._looked_at, self._seen_at, self._planned = at, self._now(), planned

    def stalled(self, since: float) -> bool:
        """Return whether a pause that reached an instant or came after it was too long, or the present one is.

        :param since: seconds of the monotonic clock
        """
        return (self._stalled_at is not None and self._stalled_at >= since) or self._late(self._monotonic())

    def _late(self, at: float) -> bool:
        if self._looked_at is None:
            return False
        longest = 2 * max(self._planned, LEAST_SECONDS)
        return max(at - self._looked_at, (self._now() - self._seen_at).total_seconds()) > longest


class StopCause(StrEnum):
    """Why a meter is to be stopped."""

    KILL = "kill"
    """The task failed, was skipped or was removed in Airflow while it waited."""
    TIMEOUT = "timeout"
    """The wait's own deadline passed, in this try."""
    CLEAR = "clear"
    """The task was cleared: the new try stops what the last one started."""


@dataclass(frozen=True, slots=True, kw_only=True)
class StopFacts:
    """The facts when a meter is to be stopped; each default stands for an unknown fact, which forbids the stop.

    :param cause: why it is to be stopped
    :param meter_id: the meter
    :param version: its version
    :param run_type: of the awaited session
    :param session_id: the awaited session, where Zuora's reply to the run call named it
    :param baseline: the meter version's status just before the run call
    :param called_at: when the run call was made; the baseline was polled just before
    :param exclusive: the user's promise that nothing else runs the meter meanwhile
    :param settle: how long a reading may be stale
    :param idle_read_at: when a poll last showed the meter idle or ended, since the wait began
    :param newer: whether polls showed a session that began after the awaited one
    :param doubt: evidence of another session, as text
    :param task_state: the task's state in Airflow, read just now; ``None``: it has none
    :param deadline_passed: whether the wait of this try ended by its own deadline
    :param wait_id: the id of the wait in its reports
    :param owner: the id that this process made when it began the wait
    :param owner_stored: the id of the process that began the wait last, read from the API server just now
    :param stalled: whether this process ever paused between two polls for more than twice the planned time
    :param callouts: whether the connection accepts callouts, read from the API server just now; ``None``: no answer
    :param sessions: the meter's sessions, read from the API server just now
    :param status: the meter version's status, polled just now; ``None``: no answer
    """

    cause: StopCause
    meter_id: str
    version: str
    run_type: str
    session_id: str | None
    baseline: str | None
    called_at: datetime | None
    exclusive: bool
    settle: timedelta
    idle_read_at: datetime | None = None
    newer: bool = False
    doubt: str = ""
    task_state: str | None = None
    deadline_passed: bool = False
    wait_id: str | None = None
    owner: str | None = None
    owner_stored: str | None = None
    stalled: bool = True
    callouts: bool | None = None
    sessions: Sequence[SessionState] = ()
    status: str | None = None

    @classmethod
    def of_wait(cls, cause: StopCause, wait: SessionWait, **facts: Any) -> StopFacts:
        """Return the facts of a wait, together with others.

        :param wait: the wait of a run, in its present state
        :param facts: the other facts, by name
        """
        known = wait.tracker
        return cls(
            cause=cause,
            meter_id=wait.condition.meter_id,
            version=wait.condition.version,
            run_type=" or ".join(wait.condition.run_types),
            session_id=wait.condition.session_id,
            baseline=known.baseline,
            called_at=wait.called_at,
            exclusive=known.exclusive,
            settle=known.settle,
            idle_read_at=known.idle_read_at,
            newer=known.newer,
            doubt=known.doubt,
            **facts,
        )

    def question(self) -> FeedRequest:
        """Return the request to send to the API server just before the stop."""
        named = frozenset() if self.session_id is None else frozenset({self.session_id})
        owners = () if self.wait_id is None else (self.wait_id,)
        return FeedRequest(meters={self.meter_id: MeterQuestion(sessions=named)}, full=True, owners=owners)

    def answered(self, reply: FeedReply | None) -> StopFacts:
        """Return the facts with the API server's reply.

        :param reply: to ``question()``; ``None``: there was none
        """
        if reply is None:
            return replace(self, callouts=None, sessions=(), owner_stored=None)
        sessions = tuple(state for state in reply.sessions if state.meter_id == self.meter_id)
        stored = None if self.wait_id is None else reply.owners.get(self.wait_id)
        return replace(self, callouts=reply.callouts, sessions=sessions, owner_stored=stored)


def why_not_stop(facts: StopFacts) -> str | None:
    """Return why the meter must not be stopped, ``None`` where it may be.

    :param facts: gathered just now
    """
    return _no_cause(facts) or why_never(facts) or _why_not_by_process(facts) or _why_not_by_status(facts)


def why_never(facts: StopFacts) -> str | None:
    """Return why this wait's meter can never be stopped, ``None`` where it can. It is decided when the wait begins.

    :param facts: the cause, those of the run, and ``callouts``; where that is ``None``, the wait's owner is unknown
    """
    if facts.run_type != RunType.NORMAL:
        return f"Zuora stops NORMAL runs only, and this is a {facts.run_type} run"
    if facts.baseline is not None and facts.baseline not in IDLE:
        return f"the meter was {facts.baseline} before the run call, and a stop would end that session too"
    if facts.callouts is None:
        return "no API server with this provider answers, and a stop needs its stored owner of the wait"
    if facts.callouts:
        if facts.session_id is None:
            return "Zuora's reply that named the session was lost, and a stop needs proof that this session is live"
        return None
    if facts.cause is StopCause.CLEAR:
        return "the connection takes no callouts, and without them it is unknown what ran since the task was cleared"
    if not facts.exclusive:
        return (
            "the connection takes no callouts, and a stop would end every session of the meter"
            " (with exclusive=True you promise that there is no other)"
        )
    if facts.baseline not in QUIET:
        return f"the meter was {facts.baseline or 'not read'} before the run call, and not certainly idle"
    return None


def _no_cause(facts: StopFacts) -> str | None:
    """Return why the cause does not hold: decided before any other fact is requested."""
    if facts.cause is StopCause.KILL and facts.task_state not in KILLED:
        return f"the task is {facts.task_state or 'in no state'} in Airflow, so it was not killed"
    if facts.cause is StopCause.TIMEOUT and not facts.deadline_passed:
        return "the deadline of this try has not passed"
    return None


def _why_not_by_process(facts: StopFacts) -> str | None:
    """Return why this process is not the one that may stop the meter."""
    if facts.cause is StopCause.CLEAR:
        return None
    if not facts.owner:
        return "this process did not begin the wait"
    if facts.owner_stored is None:
        return "the API server has no owner of the wait"
    if facts.owner_stored != facts.owner:
        return "another process has begun the wait since"
    if facts.stalled:
        return "this process paused between two polls for more than twice the planned time"
    return None


def _why_not_by_status(facts: StopFacts) -> str | None:
    """Return why the meter's status or its sessions forbid a stop."""
    if facts.status not in LIVE[RunType.NORMAL]:
        return f"the meter's status is {facts.status or 'unknown'}, so no session is known to run"
    if facts.newer:
        return "a newer session of the meter was seen"
    others = [state.session_id for state in facts.sessions if _lives_beside(facts, state)]
    if others:
        return f"it would stop {', '.join(sorted(others))} as well"
    if not facts.callouts:
        if facts.idle_read_at is not None:
            return "the meter was idle after this run had begun, and what runs now may be another session"
        return facts.doubt or None
    own = next((state for state in facts.sessions if state.session_id == facts.session_id), None)
    if own is None:
        return f"the journal has no session {facts.session_id}"
    if own.terminal or own.run_type != RunType.NORMAL or own.status not in LIVE[RunType.NORMAL]:
        return f"session {own.session_id} is {own.status}, and not known to be running"
    if facts.idle_read_at is not None and facts.idle_read_at >= to_utc("last_observed_at", own.last_observed_at):
        return f"the meter was idle after session {own.session_id} was last reported, so it may have ended"
    return None


def _lives_beside(facts: StopFacts, state: SessionState) -> bool:
    """Return whether another session may be live besides the awaited one; one that had ended before the run is not."""
    if state.terminal or state.session_id == facts.session_id:
        return False
    if facts.baseline not in QUIET or facts.called_at is None:
        return True
    return to_utc("last_observed_at", state.last_observed_at) + facts.settle > facts.called_at
