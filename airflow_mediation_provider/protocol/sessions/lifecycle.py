"""Lifecycle: fold all reports of one session, in any order and with any duplicates, into its present state.

Callouts are at-least-once, unordered and can be lost, and they carry no sequence number. What orders them is the pair
(previous status -> status): the transitions are the edges of a graph, and the session's history is a walk through it.

* A walk never returns to a status that lies on no cycle. So it can only have ended in a status from which no edge leads
  on; how often an edge was reported, and with which ids, does not matter.
* On a cycle (PAUSED and RUNNING, FAILED and RUNNING) it matters how often each edge was walked: it counts once for each
  notification id, and the walk ended where arrivals exceed departures by one. Without ids it is undecided.
* An id is easily invented, and a resend may have a new one. So what is reported of one end, by its time, counts once
  whatever the ids, and an end is left only as often as it was reached before the report of it was received.
* Where the edges leave several possible ends, a terminal status wins over any other: the others are late reports. Of
  two terminals the more severe wins, flagged ``conflict``. An edge that leads on from a terminal re-opens the session.
* Where all this decides nothing, the last status observed counts, flagged ``ambiguous``: it never ends a wait.

The result depends on the set of transitions alone, never on the order in which they are given.

Source: https://docs.zuora.com/en/zuora-platform/extensibility/mediation/events/notifications-in-mediation

``phases`` returns the statuses that the session was in, each with its start and end, as far as the reports show them.
"""

from __future__ import annotations

import math
from bisect import bisect_right
from collections import Counter, defaultdict
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from typing import TYPE_CHECKING, Any, Final, Protocol, TypeVar

from airflow_mediation_provider.protocol.status import (
    ANY_TERMINAL,
    RunType,
    SessionStatus,
    run_type_of_reports,
)
from airflow_mediation_provider.protocol.times import CLOCK_SKEW, Instant
from airflow_mediation_provider.protocol.transition import SessionTransition, Source

if TYPE_CHECKING:
    from collections.abc import Iterable


# The more severe first: work that depends on a session must not start on a COMPLETED that another report contradicts.
PRECEDENCE: Final[tuple[str, ...]] = (
    SessionStatus.FAILED,
    SessionStatus.CANCELED,
    SessionStatus.COMPLETED,
    SessionStatus.TESTING_FAILED,
    SessionStatus.TESTING_PASSED,
)
# The forms that templates render where there is no status before the first one.
_NO_STATUS: Final = frozenset({None, "", "NULL", str(SessionStatus.NEVER_RUN)})

_SKEW: Final = CLOCK_SKEW.total_seconds()

Edge = tuple[str | None, str]


class StatusChange(Protocol):
    """The edge that a report gives; a ``SessionTransition`` has it."""

    @property
    def status(self) -> str:
        """The status after the change."""

    @property
    def previous_status(self) -> str | None:
        """The status before it, where it is known."""


class Report(StatusChange, Protocol):
    """The parts of a report that phases need; a ``SessionTransition`` has them."""

    @property
    def observed_at(self) -> datetime:
        """When the change was received."""

    @property
    def notification_id(self) -> str | None:
        """The id that all copies of one notification share."""

    @property
    def ended_at(self) -> datetime | None:
        """The session's end by Zuora's clock, where it was reported."""


_Any = TypeVar("_Any", bound=Report)
Walked = dict[Edge, dict[datetime | str | None, _Any]]


@dataclass(frozen=True, slots=True, kw_only=True)
class SessionState:
    """The state of one session by exact reports: callouts, callout history and run replies.

    :param session_id: the session
    :param meter_id: its meter
    :param status: its present status
    :param previous_status: the status right before; ``None`` where it is not known
    :param run_type: NORMAL, DEBUG, or another run type that Zuora reported
    :param started_at: start by Zuora's clock, where it was reported
    :param ended_at: end by Zuora's clock, where it was reported and the session is terminal
    :param first_observed_at: when the first of all reports was received
    :param last_observed_at: when the last of all reports was received
    :param conflict: whether two different terminal statuses were reported, neither of which was left again
    :param ambiguous: whether the reports leave the present status open; then it is the last one observed
    :param transition: the report of the present status, with the run type that follows from all reports
    """

    session_id: str
    meter_id: str
    status: str
    previous_status: str | None
    run_type: str
    started_at: Instant | None
    ended_at: Instant | None
    first_observed_at: Instant
    last_observed_at: Instant
    conflict: bool
    ambiguous: bool
    transition: SessionTransition

    @property
    def terminal(self) -> bool:
        """Whether the session is known to have ended."""
        return self.status in ANY_TERMINAL and not self.ambiguous

    @property
    def starts_dags(self) -> bool:
        """Whether Dags can be scheduled on its status: it is certain, and Zuora documents the run type."""
        return not self.ambiguous and self.run_type in set(RunType)

    @property
    def begun_at(self) -> datetime:
        """When the session started: by Zuora's clock, else when its first report was received.

        No session starts after its first report: such a time was written in another zone than it was read in.
        """
        started = self.started_at
        if started is None or started > self.first_observed_at + CLOCK_SKEW:
            return self.first_observed_at
        return started

    @property
    def observed_at(self) -> datetime:
        """When the present status was received."""
        return self.transition.observed_at

    @property
    def source(self) -> Source:
        """How the present status was received."""
        return self.transition.source


def departures(transitions: Iterable[SessionTransition]) -> Counter[str]:
    """Return how often each status of a session was left, as far as the reports show.

    A status that was never left was reached once, regardless of the order and the number of the reports of it.
    """
    left: Counter[str] = Counter()
    for (before, _), times in _count(_walked(transitions)).items():
        if before is not None:
            left[before] += times or 1
    return left


def passed(transitions: Iterable[SessionTransition], present: str) -> list[tuple[int, SessionTransition]]:
    """Return the reports of the statuses that a session has reached and left, the oldest first, each with its number.

    The number is how often the session had reached that status by then. Of a status, as many reports count as changes
    that left it: a report beyond these, as of an end that another report contradicts, is none.

    :param transitions: all reports of the session
    :param present: its present status, whose last report is left out
    """
    reports = list(transitions)
    left = departures(reports)
    reached: dict[str, list[SessionTransition]] = defaultdict(list)
    for change in _changes(reports):
        reached[change.status].append(change)
    if reached[present]:
        del reached[present][-1]
    numbered = [each for status, changes in reached.items() for each in enumerate(changes[: left[status]], 1)]
    return sorted(numbered, key=lambda each: _report_order(each[1]))


def fold(transitions: Iterable[SessionTransition]) -> SessionState:
    """Fold all reports of one session into its present state.

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
    walked = _walked(reports)
    status, conflict, ambiguous = _present(reports, _count(walked))
    run_type = run_type_of_reports((each.run_type, each.status, each.source is Source.RUN) for each in reports)
    chosen = _most_informative(walked, status)
    if chosen.run_type != run_type:
        chosen = replace(chosen, run_type=run_type)
    started = [report.started_at for report in reports if report.started_at is not None]
    ended = [report.ended_at for report in reports if report.ended_at is not None and report.status == status]
    return SessionState(
        session_id=session_id,
        meter_id=meter_id,
        status=status,
        previous_status=status_before(chosen),
        run_type=run_type,
        started_at=min(started, default=None),
        ended_at=max(ended, default=None) if status in ANY_TERMINAL else None,
        first_observed_at=reports[0].observed_at,
        last_observed_at=reports[-1].observed_at,
        conflict=conflict,
        ambiguous=ambiguous,
        transition=chosen,
    )


def _order(report: SessionTransition) -> tuple[datetime, str, str, str, str]:
    """Return the key of a total order: by time, and by content where two came at the same instant."""
    edge = (report.previous_status or "", report.status)
    return (report.observed_at, *edge, report.notification_id or "", str(report.source))


def status_before(report: StatusChange) -> str | None:
    """Return the status that a report names as the previous one; ``None`` for a change of a status to itself."""
    before = report.previous_status
    return None if before in _NO_STATUS or before == report.status else before


def _present(reports: list[SessionTransition], walked: dict[Edge, int | None]) -> tuple[str, bool, bool]:
    """Return the present status, and whether there is a conflict, and whether it is ambiguous."""
    onward: dict[str | None, set[str]] = defaultdict(set)
    for before, status in walked:
        onward[before].add(status)
    # A status that is only named as the previous one was left, and is no end.
    reach = {status: reachable(status, onward) for _, status in walked}
    # An end is a status, or the set of statuses of a cycle, from which no edge leads on.
    ends = {
        frozenset({status} | {other for other in reach[status] if status in reach[other]})
        for status in reach
        if all(status in reach[other] for other in reach[status])
    }
    candidates: dict[str, bool] = {}
    for end in ends:
        balanced = _balanced(end, walked)
        candidates[balanced or _last(reports, end)] = balanced is None
    terminals = [s for s in candidates if s in ANY_TERMINAL and not candidates[s]]
    if terminals:
        return min(terminals, key=PRECEDENCE.index), len(terminals) > 1, False
    if len(candidates) == 1:
        ((status, ambiguous),) = candidates.items()
        return status, False, ambiguous
    return _last(reports, frozenset(candidates)), False, True


def _count(walked: Walked[Any]) -> dict[Edge, int | None]:
    """Return how often each edge was walked, as far as the reports show; ``None`` where nothing distinguishes them."""
    return {edge: None if None in times else len(times) for edge, times in walked.items()}


def _walked(reports: Iterable[_Any]) -> Walked[_Any]:
    """Return each edge with the first report of each time that it was walked, by what all reports of it share.

    That is the time of the end that was reached or left, else the notification's id, and ``None`` without either.
    """
    walked: Walked[_Any] = {}
    ends: dict[tuple[Edge, str], datetime | None] = {}
    for report in sorted(reports, key=_report_order):
        edge = (status_before(report), report.status)
        end = None if ANY_TERMINAL.isdisjoint(edge) else report.ended_at
        if report.notification_id is not None:
            end = ends.setdefault((edge, report.notification_id), end)
        walked.setdefault(edge, {}).setdefault(end or report.notification_id, report)
    for status in sorted({before for before, _ in walked if before is not None} & ANY_TERMINAL):
        _keep_departures(walked, status)
    return walked


def _keep_departures(walked: Walked[_Any], end: str | None) -> None:
    """Keep as many reports that an end was left as it was reached before they were received; the others are copies."""
    reached = [each for (_, status), times in walked.items() if status == end for each in times.items()]
    left = [(edge, key) for edge, times in walked.items() if edge[0] == end for key in times]
    if not reached or None in (key for key, _ in reached) or None in (key for _, key in left):
        return
    ends = sorted(_end_of(report) for _, report in reached)
    kept = 0
    for edge, key in sorted(left, key=lambda each: _report_order(walked[each[0]][each[1]])):
        if bisect_right(ends, walked[edge][key].observed_at.timestamp() + _SKEW) > kept:
            kept += 1
        elif walked[edge].pop(key) and not walked[edge]:
            del walked[edge]


def _end_of(report: Report) -> float:
    """Return the time of an end in seconds, as pendulum's own arithmetic is slow; -inf where it is not known.

    One that is later than its report was written in another zone than it was read in.
    """
    end = -math.inf if report.ended_at is None else report.ended_at.timestamp()
    return end if end <= report.observed_at.timestamp() + _SKEW else -math.inf


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


def _balanced(end: frozenset[str], walked: dict[Edge, int | None]) -> str | None:
    """Return the status of an end where one more edge arrives than leaves; ``None`` where there is no single one."""
    balance: Counter[str] = Counter()
    entries = set()
    for (before, status), times in walked.items():
        if status not in end:
            continue
        if before in end:
            if times is None:
                return None
            balance[status] += times
            balance[str(before)] -= times
        else:
            entries.add(status)
    # A walk enters an end once, regardless of how many edges into its first status there were reported. Two entry
    # statuses give two arrivals too many, and so no single end.
    balance.update(entries)
    surplus = [status for status, count in balance.items() if count > 0]
    return surplus[0] if len(surplus) == 1 and balance[surplus[0]] == 1 else None


def _last(reports: list[SessionTransition], statuses: frozenset[str]) -> str:
    """Return which of some statuses was observed last; each is an end, so each was reported itself."""
    return next(report.status for report in reversed(reports) if report.status in statuses)


def _most_informative(walked: Walked[SessionTransition], status: str) -> SessionTransition:
    """Return the report of a status: of the copies of one change the first, of several changes the last."""
    changes = [report for (_, after), times in walked.items() if after == status for report in times.values()]
    known = [report for report in changes if status_before(report) is not None]
    return max(known or changes, key=_order)


@dataclass(frozen=True, slots=True)
class Phase:
    """A session in one status.

    :param status: the status; ``None`` for the time before the newest reports, of which nothing was read
    :param begin: when the session entered it
    :param end: when the session left it; ``None`` while it is in it
    :param later: the status at the end of the phase, if the change to it was not received: the session left ``status``
        at an unknown time before
    """

    status: str | None
    begin: datetime
    end: datetime | None
    later: str | None = None

    def lasts(self, now: datetime) -> timedelta:
        """Return its length, up to now while it goes on; never negative, though Zuora's clock may be ahead of ours."""
        return max((self.end or now) - self.begin, timedelta(0))


def phases(
    reports: Iterable[Report],
    *,
    begun_at: datetime,
    ended_at: datetime | None,
    present: str | None = None,
    cut: bool = False,
) -> tuple[Phase, ...]:
    """Return the phases of a session in their order; the last one of an ended session starts and ends at its end.

    :param reports: all reports of it, or the newest of them; in any order, copies too
    :param begun_at: its start by Zuora's clock, else when its first report was received
    :param ended_at: its end; ``None`` while it goes on
    :param present: the status that it is in; no reported change can come after that
    :param cut: whether there are older reports than these, so that nothing is known of the time before the first one
    """
    walk = _walk(_changes(reports), present)
    if not walk:
        return ()
    begins: list[datetime] = []
    for report in reversed(walk):
        begins.append(min(report.observed_at, begins[-1]) if begins else report.observed_at)
    begins = [max(begun_at, at if ended_at is None else min(at, ended_at)) for at in reversed(begins)]
    statuses: list[str | None] = [report.status for report in walk]
    before_next = [status_before(report) for report in walk[1:]]
    later = [None if before == at else before for at, before in zip(statuses, before_next, strict=False)] + [None]
    if ended_at is not None and present in (None, statuses[-1]):
        begins[-1] = max(begun_at, ended_at)
    # The first reported status is the one that the session began with, unless the report names another one before it.
    before = None if cut else status_before(walk[0])
    if before is None and not cut:
        begins[0] = begun_at
    elif begins[0] > begun_at:
        # Sessions begin with these; any other status was entered by a change that was not received.
        first = before in (SessionStatus.INITIALIZING, SessionStatus.TESTING)
        begins, statuses = [begun_at, *begins], [before if first else None, *statuses]
        later = [None if first else before, *later]
    ends = [*begins[1:], None if ended_at is None else max(ended_at, begins[-1])]
    return tuple(map(Phase, statuses, begins, ends, later))


def _changes(reports: Iterable[_Any]) -> list[_Any]:
    """Return the reports in the order in which they were received, one for each change."""
    times = _walked(reports)
    onward: dict[str | None, set[str]] = defaultdict(set)
    for before, status in times:
        onward[before].add(status)
    led_to = {status for before, status in times if before is not None}
    changes: list[_Any] = []
    for (before, status), each in times.items():
        if before is None and status in led_to:
            # A report without a previous status may be of the middle of the session: the reply to a run call, say.
            continue
        named = [report for id_, report in each.items() if id_ is not None]
        # Only on a cycle a walk returns to a status, and how often is not known without ids. Where no report names a
        # previous status, any status may have been left and reached again.
        again = (before in reachable(status, onward)) if before is not None else not led_to
        changes += named if again and named else [next(iter(each.values()))]
    return sorted(changes, key=_report_order)


def _report_order(report: Report) -> tuple[datetime, str, str, str]:
    """Return the key of a total order: by time, and by content where two came at the same instant."""
    return report.observed_at, status_before(report) or "", report.status, report.notification_id or ""


def _walk(changes: list[Report], present: str | None) -> list[Report]:
    """Return the changes ordered so that each one leads on from the one before, as far as that is possible."""
    left = list(changes)
    walk: list[Report] = []
    while left:
        at = walk[-1].status if walk else None
        ends = [report for report in left if report.status == present]
        # The change to the present status comes last.
        open_ = [report for report in left if report not in ends] if len(ends) == 1 and len(left) > 1 else left
        led_to = {report.status for report in left}
        # First the changes without a previous status; after a gap those to whose previous status no other change leads.
        fitting = [report for report in open_ if status_before(report) == at]
        fitting = fitting or [report for report in open_ if status_before(report) not in led_to] or open_
        report = next((each for each in fitting if len(fitting) > 1 and _leads_to_all(each, left)), fitting[0])
        left.remove(report)
        if report.status != at:
            walk.append(report)
    return walk


def _leads_to_all(report: Report, left: list[Report]) -> bool:
    """Return whether all other changes can still be walked after this one."""
    rest = [each for each in left if each is not report]
    onward: dict[str | None, set[str]] = defaultdict(set)
    for each in rest:
        onward[status_before(each)].add(each.status)
    within = {report.status, *reachable(report.status, onward)}
    return all(status_before(each) in within for each in rest)
