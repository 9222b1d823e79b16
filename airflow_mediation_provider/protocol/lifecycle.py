"""Lifecycle: fold what was learned of one session, in any order and any number of times, into its present state.

Callouts are at-least-once, unordered and can be lost, and they carry no sequence number. What orders them is the pair
(previous status -> status): the transitions are the edges of a graph, and the session's history is a walk through it.

* A walk never comes back to a status that lies on no cycle. So the statuses from which no edge leads on are where it
  can have ended, and how often an edge was reported, and with which ids, does not matter.
* On a cycle (PAUSED and RUNNING, FAILED and RUNNING) it matters how often each edge was walked: it counts once for each
  notification id, and the walk ended where one more arrived than left. Without ids that cannot be known.
* Where the edges leave several ends, a terminal status wins over any other: what is not terminal is late. Of two
  terminals the graver wins, flagged ``conflict``. An edge that leads on from a terminal re-opens the session.
* What all this leaves open is the last status observed, flagged ``ambiguous``: it never ends a wait.

The result depends on the set of transitions alone, never on the order in which they are given.

Source: https://docs.zuora.com/en/zuora-platform/extensibility/mediation/events/notifications-in-mediation
"""

from __future__ import annotations

from collections import Counter, defaultdict
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final, Protocol

from airflow_mediation_provider.protocol.status import (
    ANY_TERMINAL,
    DEBUG_ONLY,
    RunType,
    SessionStatus,
    is_news_for_dags,
)
from airflow_mediation_provider.protocol.times import from_json, to_json
from airflow_mediation_provider.protocol.transition import SessionTransition

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping
    from datetime import datetime

    from airflow_mediation_provider.protocol.transition import Source

# The graver first: work that depends on a session must not start on a COMPLETED that another report denies.
PRECEDENCE: Final[tuple[str, ...]] = (
    SessionStatus.FAILED,
    SessionStatus.CANCELED,
    SessionStatus.COMPLETED,
    SessionStatus.TESTING_FAILED,
    SessionStatus.TESTING_PASSED,
)
# Before the first status there is none, whatever a template renders for it.
_NO_STATUS: Final = frozenset({None, "", "NULL", str(SessionStatus.NEVER_RUN)})

_PLAIN: Final = ("session_id", "meter_id", "status", "previous_status", "conflict", "ambiguous")
_TIMES: Final = ("started_at", "ended_at", "first_observed_at", "last_observed_at")

Edge = tuple[str | None, str]


class Change(Protocol):
    """What makes the edge of a report; a ``SessionTransition`` has it."""

    @property
    def status(self) -> str:
        """The status after the change."""

    @property
    def previous_status(self) -> str | None:
        """The status before it, where it is known."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SessionState:
    """What is known exactly of one session.

    :param session_id: the session
    :param meter_id: its meter
    :param status: its present status
    :param previous_status: the status right before; ``None`` where it is not known
    :param run_type: NORMAL or DEBUG
    :param started_at: start by Zuora's clock, where it was told
    :param ended_at: end by Zuora's clock, where it was told and the session is terminal
    :param first_observed_at: when the first of all reports came
    :param last_observed_at: when the last of all reports came
    :param conflict: whether two different terminal statuses were reported, neither of which was left again
    :param ambiguous: whether the reports do not tell the present status; then it is the last one observed
    :param transition: the report that tells the present status
    """

    session_id: str
    meter_id: str
    status: str
    previous_status: str | None
    run_type: RunType
    started_at: datetime | None
    ended_at: datetime | None
    first_observed_at: datetime
    last_observed_at: datetime
    conflict: bool
    ambiguous: bool
    transition: SessionTransition

    @property
    def terminal(self) -> bool:
        """Whether the session is known to have ended."""
        return self.status in ANY_TERMINAL and not self.ambiguous

    @property
    def starts_dags(self) -> bool:
        """Whether its status is news for DAGs."""
        return not self.ambiguous and is_news_for_dags(self.run_type, self.status)

    @property
    def begun_at(self) -> datetime:
        """When the session started: by Zuora's clock, else when it was first heard of."""
        return self.started_at or self.first_observed_at

    @property
    def observed_at(self) -> datetime:
        """When the present status was learned."""
        return self.transition.observed_at

    @property
    def source(self) -> Source:
        """How the present status was learned."""
        return self.transition.source

    def to_dict(self) -> dict[str, Any]:
        """Return the state as plain JSON: the same in feed and pages."""
        return {
            **{name: getattr(self, name) for name in _PLAIN},
            **{name: to_json(getattr(self, name)) for name in _TIMES},
            "run_type": str(self.run_type),
            "transition": self.transition.to_dict(),
        }

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> SessionState:
        """Make a state from ``to_dict()``; unknown keys are left out.

        :raises KeyError: one is missing
        :raises ValueError: a time or the run type cannot be read
        """
        times: dict[str, Any] = {name: from_json(data[name]) for name in _TIMES}
        return cls(
            **{name: data[name] for name in _PLAIN},
            **times,
            run_type=RunType(data["run_type"]),
            transition=SessionTransition.from_dict(data["transition"]),
        )


def departures(transitions: Iterable[SessionTransition]) -> Counter[str]:
    """Return how often each status of a session was left, as far as the reports tell.

    A status that was never left was reached once, in whatever order and however often that was reported.
    """
    left: Counter[str] = Counter()
    for (before, _), times in _count(list(transitions)).items():
        if before is not None:
            left[before] += times or 1
    return left


def fold(transitions: Iterable[SessionTransition]) -> SessionState:
    """Fold all that was learned of one session into its present state.

    :param transitions: in any order, with any duplicates; polls that name no session do not belong here
    :return: the same state for the same set of transitions
    :raises ValueError: there is none, or they are of several sessions or meters
    """
    reports = sorted(transitions, key=_order)
    sessions = {(report.meter_id, report.session_id) for report in reports}
    if len(sessions) != 1:
        raise ValueError(f"a session is folded from transitions of one session, not of {len(sessions)}")
    meter_id, session_id = sessions.pop()
    if session_id is None:
        raise ValueError("a transition that names no session cannot be folded")
    status, conflict, ambiguous = _present(reports)
    told = _telling(reports, status)
    started = [report.started_at for report in reports if report.started_at is not None]
    ended = [report.ended_at for report in reports if report.ended_at is not None and report.status == status]
    debug = any(report.run_type is RunType.DEBUG or report.status in DEBUG_ONLY for report in reports)
    return SessionState(
        session_id=session_id,
        meter_id=meter_id,
        status=status,
        previous_status=status_before(told),
        run_type=RunType.DEBUG if debug else RunType.NORMAL,
        started_at=min(started, default=None),
        ended_at=max(ended, default=None) if status in ANY_TERMINAL else None,
        first_observed_at=reports[0].observed_at,
        last_observed_at=reports[-1].observed_at,
        conflict=conflict,
        ambiguous=ambiguous,
        transition=told,
    )


def _order(report: SessionTransition) -> tuple[datetime, str, str, str, str]:
    """Return a total order: by time, and by what it says where two came at the same instant."""
    edge = (report.previous_status or "", report.status)
    return (report.observed_at, *edge, report.notification_id or "", str(report.source))


def status_before(report: Change) -> str | None:
    """Return the status that a report names as the one before; a change of a status to itself names none."""
    before = report.previous_status
    return None if before in _NO_STATUS or before == report.status else before


def _present(reports: list[SessionTransition]) -> tuple[str, bool, bool]:
    """Return the present status, and whether there is a conflict, and whether it is ambiguous."""
    walked = _count(reports)
    onward: dict[str | None, set[str]] = defaultdict(set)
    for before, status in walked:
        onward[before].add(status)
    statuses = {status for _, status in walked} | {before for before, _ in walked if before is not None}
    reach = {status: reachable(status, onward) for status in statuses}
    # An end is a status, or the statuses of a cycle, from which nothing leads on.
    ends = {
        frozenset({status} | {other for other in reach[status] if status in reach[other]})
        for status in statuses
        if all(status in reach[other] for other in reach[status])
    }
    candidates: dict[str, bool] = {}
    for end in ends:
        if len(end) == 1:
            candidates[next(iter(end))] = False
            continue
        balanced = _end_of_cycle(end, walked)
        candidates[balanced or _last(reports, end)] = balanced is None
    terminals = [s for s in candidates if s in ANY_TERMINAL and not candidates[s]]
    if terminals:
        return min(terminals, key=PRECEDENCE.index), len(terminals) > 1, False
    if len(candidates) == 1:
        ((status, ambiguous),) = candidates.items()
        return status, False, ambiguous
    return _last(reports, frozenset(candidates)), False, True


def _count(reports: list[SessionTransition]) -> dict[Edge, int | None]:
    """Return each edge with the number of notifications that report it; ``None`` where one of them bears no id."""
    ids: dict[Edge, set[str | None]] = defaultdict(set)
    for report in reports:
        ids[(status_before(report), report.status)].add(report.notification_id)
    return {edge: None if None in known else len(known) for edge, known in ids.items()}


def reachable(status: str, onward: dict[str | None, set[str]]) -> set[str]:
    """Return the statuses to which edges lead on from one, itself only where it lies on a cycle."""
    found: set[str] = set()
    queue = list(onward.get(status, ()))
    while queue:
        current = queue.pop()
        if current not in found:
            found.add(current)
            queue.extend(onward.get(current, ()))
    return found


def _end_of_cycle(cycle: frozenset[str], walked: dict[Edge, int | None]) -> str | None:
    """Return the status of a cycle where one more edge arrives than leaves; ``None`` where there is no single one."""
    balance: Counter[str] = Counter()
    entries = set()
    for (before, status), times in walked.items():
        if status not in cycle:
            continue
        if before in cycle:
            if times is None:
                return None
            balance[status] += times
            balance[str(before)] -= times
        else:
            entries.add(status)
    # A walk enters a cycle once, however many edges were reported that lead to its first status there. Two such
    # statuses leave two arrivals too many, and so no single end.
    balance.update(entries)
    surplus = [status for status, count in balance.items() if count > 0]
    return surplus[0] if len(surplus) == 1 and balance[surplus[0]] == 1 else None


def _last(reports: list[SessionTransition], statuses: frozenset[str]) -> str:
    """Return which of some statuses, each of them an end and so reported itself, was observed last."""
    return next(report.status for report in reversed(reports) if report.status in statuses)


def _telling(reports: list[SessionTransition], status: str) -> SessionTransition:
    """Return the report that tells a status: of the copies of one notification the first, of several the last."""
    copies: dict[tuple[Edge, str | None], SessionTransition] = {}
    for report in reports:
        if report.status == status:
            copies.setdefault(((status_before(report), report.status), report.notification_id), report)
    known = [report for report in copies.values() if status_before(report) is not None]
    return (known or list(copies.values()))[-1]
