"""Phases: in which statuses a session was, from when until when, as far as its reports tell.

A report says that a status changed, never when: a phase begins when the change to it was learned, or a later one, which
cannot have come before. All lies between the start and the end that Zuora told. What came late is put where its
previous status says that it belongs.

Source: https://docs.zuora.com/en/zuora-platform/extensibility/mediation/events/notifications-in-mediation
"""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass
from datetime import timedelta
from typing import TYPE_CHECKING, Protocol

from airflow_mediation_provider.protocol.lifecycle import Change, reachable, status_before

if TYPE_CHECKING:
    from collections.abc import Iterable
    from datetime import datetime


class Report(Change, Protocol):
    """What is needed of a report; a ``SessionTransition`` has it."""

    @property
    def observed_at(self) -> datetime:
        """When the change was learned."""

    @property
    def notification_id(self) -> str | None:
        """What copies of one notification share."""


@dataclass(frozen=True, slots=True)
class Phase:
    """A session in one status.

    :param status: the status
    :param begin: when the session came to it
    :param end: when it left it; ``None`` while it is in it
    """

    status: str
    begin: datetime
    end: datetime | None

    def lasts(self, now: datetime) -> timedelta:
        """Return how long it lasted, or has lasted until now; Zuora's clock may be ahead of ours."""
        return max((self.end or now) - self.begin, timedelta(0))


def phases(
    reports: Iterable[Report], *, begun_at: datetime, ended_at: datetime | None, present: str | None = None
) -> tuple[Phase, ...]:
    """Return the phases of a session in their order; an end that is known closes the last one where it began.

    :param reports: all that was told of it, or the newest part of that; in any order, copies too
    :param begun_at: its start by Zuora's clock, else when it was first heard of
    :param ended_at: its end; ``None`` while it goes on
    :param present: the status that it is in; what was learned of others cannot come after that
    """
    walk = _walk(_changes(reports), present)
    if not walk:
        return ()
    begins: list[datetime] = []
    for report in reversed(walk):
        begins.append(min(report.observed_at, begins[-1]) if begins else report.observed_at)
    begins = [max(begun_at, at if ended_at is None else min(at, ended_at)) for at in reversed(begins)]
    statuses = [report.status for report in walk]
    if ended_at is not None and present in (None, statuses[-1]):
        begins[-1] = max(begun_at, ended_at)
    # The first status that was told is the one that the session began with, unless another one is named before it.
    before = status_before(walk[0])
    if before is None:
        begins[0] = begun_at
    elif begins[0] > begun_at:
        begins, statuses = [begun_at, *begins], [before, *statuses]
    ends = [*begins[1:], None if ended_at is None else max(ended_at, begins[-1])]
    return tuple(map(Phase, statuses, begins, ends))


def _changes(reports: Iterable[Report]) -> list[Report]:
    """Return the reports in the order in which they were learned: of those that tell of one change, one alone."""
    told = sorted(reports, key=_order)
    onward: dict[str | None, set[str]] = defaultdict(set)
    times: dict[tuple[str | None, str], dict[str | None, Report]] = {}
    for report in told:
        onward[status_before(report)].add(report.status)
        times.setdefault((status_before(report), report.status), {}).setdefault(report.notification_id, report)
    led_to = {status for before, status in times if before is not None}
    changes: list[Report] = []
    for (before, status), each in times.items():
        if before is None and status in led_to:
            continue  # who names no status before may have come in the middle: the reply to a run call, say
        named = [report for id_, report in each.items() if id_ is not None]
        # A walk comes back on a cycle alone, and without ids nobody can tell how often. Where no report names the
        # status before, any status may have been left and reached again.
        again = (before in reachable(status, onward)) if before is not None else not led_to
        changes += named if again and named else [next(iter(each.values()))]
    return sorted(changes, key=_order)


def _order(report: Report) -> tuple[datetime, str, str, str]:
    """Return a total order: by time, and by what it says where two came at the same instant."""
    return report.observed_at, status_before(report) or "", report.status, report.notification_id or ""


def _walk(changes: list[Report], present: str | None) -> list[Report]:
    """Return the changes in an order in which each one leads on from the one before, as far as there is one."""
    left = list(changes)
    walk: list[Report] = []
    while left:
        at = walk[-1].status if walk else None
        ends = [report for report in left if report.status == present]
        # The end is kept for the end.
        open_ = [report for report in left if report not in ends] if len(ends) == 1 and len(left) > 1 else left
        led_to = {report.status for report in left}
        # At the beginning what names no status before; after a gap what no other change leads to.
        fitting = [report for report in open_ if status_before(report) == at]
        fitting = fitting or [report for report in open_ if status_before(report) not in led_to] or open_
        report = next((each for each in fitting if len(fitting) > 1 and _leads_to_all(each, left)), fitting[0])
        left.remove(report)
        if report.status != at:
            walk.append(report)
    return walk


def _leads_to_all(report: Report, left: list[Report]) -> bool:
    """Say whether all other changes can still be walked after this one."""
    rest = [each for each in left if each is not report]
    onward: dict[str | None, set[str]] = defaultdict(set)
    for each in rest:
        onward[status_before(each)].add(each.status)
    within = {report.status, *reachable(report.status, onward)}
    return all(status_before(each) in within for each in rest)
