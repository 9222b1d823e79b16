"""Phases: in which statuses a session was, from when until when, as far as its reports tell.

A report says that a status changed, never when: the instants are those at which the changes were learned, held between
the start and the end that Zuora told. What came late is put where its previous status says that it belongs.

Source: https://docs.zuora.com/en/zuora-platform/extensibility/mediation/events/notifications-in-mediation
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from collections.abc import Iterable
    from datetime import datetime, timedelta


class Report(Protocol):
    """What is needed of a report; a ``SessionTransition`` has it."""

    @property
    def status(self) -> str:
        """The status after the change."""

    @property
    def previous_status(self) -> str | None:
        """The status before it, where it is known."""

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
        """Return how long it lasted, or has lasted until now."""
        return (self.end or now) - self.begin


def phases(
    reports: Iterable[Report], *, begun_at: datetime, ended_at: datetime | None, present: str | None = None
) -> tuple[Phase, ...]:
    """Return the phases of a session in their order; an end that is known closes the last one where it began.

    :param reports: all that was told of it, or the newest part of that; in any order, copies too
    :param begun_at: its start by Zuora's clock, else when it was first heard of
    :param ended_at: its end; ``None`` while it goes on
    :param present: the status that it is in; what was learned of others cannot come after that
    """
    walk = _walk(_first_copies(reports), present)
    found: list[Phase] = []
    at = begun_at
    for number, report in enumerate(walk):
        observed = report.observed_at if ended_at is None else min(report.observed_at, ended_at)
        # The first status that was told is the one that the session began with, unless another one is named before it.
        begin = begun_at if number == 0 and report.previous_status is None else max(at, observed)
        if number == 0 and report.previous_status is not None and begin > begun_at:
            found.append(Phase(report.previous_status, begun_at, begin))
        elif found:
            found[-1] = Phase(found[-1].status, found[-1].begin, begin)
        found.append(Phase(report.status, begin, None))
        at = begin
    if found and ended_at is not None:
        found[-1] = Phase(found[-1].status, found[-1].begin, max(ended_at, found[-1].begin))
    return tuple(found)


def _first_copies(reports: Iterable[Report]) -> list[Report]:
    """Return the reports in the order in which they were learned: of the copies of a change the first one alone."""
    first: dict[tuple[str | None, str, str | None], Report] = {}
    for report in sorted(reports, key=lambda each: each.observed_at):
        first.setdefault((report.previous_status, report.status, report.notification_id), report)
    changes: list[Report] = []
    for report in first.values():
        same_edge = [e for e in changes if (e.previous_status, e.status) == (report.previous_status, report.status)]
        # Without an id nobody can tell a copy from a second walk; one that says nothing else is a copy.
        if not same_edge or (report.notification_id is not None and same_edge[-1].notification_id is not None):
            changes.append(report)
    return changes


def _walk(reports: list[Report], present: str | None) -> list[Report]:
    """Return the reports in an order in which each one leads on from the one before, as far as there is one."""
    left = list(reports)
    walk: list[Report] = []
    at: str | None = None
    while left:
        named = {report.status for report in left}
        if walk:
            fitting = [report for report in left if report.previous_status == at]
        else:
            fitting = [report for report in left if report.previous_status not in named]
        # The end is kept for the end, unless nothing else is left.
        inner = [report for report in fitting if report.status != present] or fitting
        others = [report for report in left if report.status != present] or left
        report = (inner or others)[0]
        left.remove(report)
        if report.status != at:
            walk.append(report)
        at = report.status
    return walk
