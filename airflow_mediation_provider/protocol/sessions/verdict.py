"""What tasks report of sessions: verdicts and notes; and the best known status with and without verdicts.

A verdict is the end of a session as a task concluded it from polls. A poll names no session, so that is not Zuora's
report. It is stored beside the reports, and ``best_known`` combines both: an end that Zuora reported always counts;
without one, the verdicts of tasks count as long as no later report contradicts them. Only the times of reports and
verdicts matter, never the order in which they were stored.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from typing import TYPE_CHECKING, Annotated, Final

from msgspec import Meta

from airflow_mediation_provider.protocol.sessions.lifecycle import status_before
from airflow_mediation_provider.protocol.status import ANY_TERMINAL, SessionStatus
from airflow_mediation_provider.protocol.times import Instant, to_utc
from airflow_mediation_provider.protocol.transition import Source

if TYPE_CHECKING:
    from collections.abc import Collection, Sequence
    from datetime import datetime

    from airflow_mediation_provider.protocol.sessions.lifecycle import SessionState
    from airflow_mediation_provider.protocol.transition import SessionTransition

Text = Annotated[str, Meta(min_length=1)]
Number = Annotated[int, Meta(ge=-1, le=2**31 - 1)]
"""From -1 to the largest value of an integer column in every database."""

WORKER: Final = "worker"
TRIGGERER: Final = "triggerer"
KINDS: Final = ("branch", "summary", "export", "run")
"""Of notes."""

_GRAVITY: Final[dict[str, int]] = {
    SessionStatus.FAILED: 0,
    SessionStatus.TESTING_FAILED: 0,
    SessionStatus.CANCELED: 1,
    SessionStatus.COMPLETED: 2,
    SessionStatus.TESTING_PASSED: 2,
}


@dataclass(frozen=True, slots=True, kw_only=True)
class TaskVerdict:
    """What one try of a task concluded from polls.

    :param wait_id: the id of the task's wait, the same in each try
    :param meter_id: the meter
    :param session_id: the session; ``None`` where the task never had its id
    :param run_type: of the session
    :param status: the terminal status
    :param at: when the task concluded it
    :param certain: whether polls prove it
    :param ti_id: Airflow's id of the task instance, which is new in each try
    :param mode: the process that reports it: ``worker``, or ``triggerer`` where the try ends there
    :raises ValueError: the status is not terminal, or the mode is unknown
    """

    wait_id: Text
    meter_id: Text
    session_id: Text | None = None
    run_type: Text
    status: Text
    at: Instant
    certain: bool
    dag_id: Text
    run_id: Text
    task_id: Text
    map_index: Number
    try_number: Number
    ti_id: Text
    mode: Text

    def __post_init__(self) -> None:
        """Check status and mode, and bring the time into UTC."""
        object.__setattr__(self, "at", to_utc("at", self.at))
        if self.status not in ANY_TERMINAL:
            raise ValueError(f"the status of a verdict must be terminal, not {self.status!r:.80}")
        if self.mode not in (WORKER, TRIGGERER):
            raise ValueError(f"the mode of a verdict must be {WORKER} or {TRIGGERER}, not {self.mode!r:.80}")


@dataclass(frozen=True, slots=True, kw_only=True)
class TaskNote:
    """How a task used a session.

    :param id: the id of the task's wait, the same in each try
    :param meter_id: the meter
    :param session_id: the session, where it is known
    :param kind: ``branch`` (the task followed a branch), ``summary`` or ``export`` (it read the session's records),
        ``run`` (its run call was refused)
    :param status: the status that the task acted on, where there is one
    :param evidence: how that status was received: a ``Source``
    :param certain: whether that is certain
    :param message: one sentence for the user
    :param followed: the tasks that a branch follows
    :param skipped: the tasks that it skips
    :param at: when the task wrote it
    :raises ValueError: the kind is unknown
    """

    id: Text
    meter_id: Text
    session_id: Text | None = None
    kind: Text
    status: Text | None = None
    evidence: Text | None = None
    certain: bool | None = None
    message: str = ""
    followed: tuple[str, ...] = ()
    skipped: tuple[str, ...] = ()
    dag_id: Text
    run_id: Text
    task_id: Text
    map_index: Number
    try_number: Number
    at: Instant

    def __post_init__(self) -> None:
        """Check the kind, as the pages show no other, and bring the time into UTC."""
        object.__setattr__(self, "at", to_utc("at", self.at))
        if self.kind not in KINDS:
            raise ValueError(f"the kind of a task's note must be one of {', '.join(KINDS)}, not {self.kind!r:.80}")


class Mark(StrEnum):
    """What is marked where a session is listed, because its status may not be the right one."""

    AMBIGUOUS = "ambiguous"
    """The reports do not determine the status."""
    CONFLICT = "conflict"
    """Different ends were reported or concluded."""
    UNCERTAIN = "uncertain"
    """A task concluded it from polls that do not prove it."""
    UNKNOWN = "unknown"
    """Zuora does not document such a status."""


@dataclass(frozen=True, slots=True, kw_only=True)
class BestKnown:
    """The best known status of a session.

    :param status: the status
    :param evidence: how it was received: a ``Source``; ``poll`` where a task concluded it
    :param certain: whether it is certain
    :param ended: whether the session has ended
    :param ended_at: its end by Zuora's clock, else when the end was received or concluded; ``None`` while it goes on
    :param differing: the verdicts of another end, without those older than a report that re-opened the session
    """

    status: str
    evidence: str
    certain: bool
    ended: bool
    ended_at: datetime | None
    differing: tuple[TaskVerdict, ...] = ()


def best_known(
    zuora: SessionState | None, verdicts: Collection[TaskVerdict], reports: Sequence[SessionTransition] = ()
) -> BestKnown:
    """Return the best known status of a session.

    * An unambiguous end that Zuora reported outranks every verdict.
    * A report that a terminal status was left again voids all older verdicts.
    * A report of a status that is not terminal voids the older uncertain verdicts; a certain one stands.
    * Of several verdicts a certain one comes before an uncertain one, then the more severe status.

    :param zuora: the fold of Zuora's reports; ``None`` where there is none
    :param verdicts: the verdicts of tasks
    :param reports: the reports themselves
    :raises ValueError: there is neither a report nor a verdict
    """
    standing = [each for each in verdicts if not any(_reopens(report, each.at) for report in reports)]
    valid = [each for each in standing if each.certain or not any(_denies(report, each.at) for report in reports)]
    if zuora is None and not valid:
        raise ValueError("there is neither a report nor a verdict of the session")
    if zuora is not None and (zuora.terminal or not valid):
        return BestKnown(
            status=zuora.status,
            evidence=str(zuora.source),
            certain=not (zuora.ambiguous or zuora.conflict),
            ended=zuora.terminal,
            ended_at=(zuora.ended_at or zuora.last_observed_at) if zuora.terminal else None,
            differing=_differing(standing, zuora.status),
        )
    chosen = min(valid, key=_rank)
    return BestKnown(
        status=chosen.status,
        evidence=str(Source.POLL),
        certain=chosen.certain and all(each.status == chosen.status for each in valid if each.certain),
        ended=True,
        ended_at=chosen.at,
        differing=_differing(standing, chosen.status),
    )


def marks_of(zuora: SessionState | None, best: BestKnown) -> frozenset[Mark]:
    """Return the marks of a session.

    :param zuora: the fold of Zuora's reports; ``None`` where there is none
    :param best: its best known status
    """
    concluded = best.evidence == Source.POLL
    marks = {
        Mark.AMBIGUOUS: zuora is not None and zuora.ambiguous and not concluded,
        Mark.CONFLICT: bool(best.differing) or (zuora is not None and zuora.conflict),
        Mark.UNCERTAIN: concluded and not best.certain,
        Mark.UNKNOWN: best.status not in set(SessionStatus),
    }
    return frozenset(mark for mark, holds in marks.items() if holds)


def _rank(verdict: TaskVerdict) -> tuple[bool, int, datetime, str]:
    """Return the key by which verdicts are sorted. No two are equal, so the input order does not matter."""
    return not verdict.certain, _GRAVITY[verdict.status], verdict.at, verdict.ti_id


def _differing(verdicts: Collection[TaskVerdict], status: str) -> tuple[TaskVerdict, ...]:
    return tuple(sorted((each for each in verdicts if each.status != status), key=_rank))


def _reopens(report: SessionTransition, since: datetime) -> bool:
    return _denies(report, since) and status_before(report) in ANY_TERMINAL


def _denies(report: SessionTransition, since: datetime) -> bool:
    return report.observed_at > since and report.status not in ANY_TERMINAL
