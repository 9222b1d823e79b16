"""The search in the list of sessions: what it restricts, and which index leads to the sessions.

Each condition is one of some alternatives, and an index has the sessions of each alternative in the order of the list.
There is no index for each combination of conditions, as every callout would pay for them all. With several conditions,
a limited number of sessions of the rarest one is scanned, and the next search continues there.
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from enum import StrEnum
from itertools import chain, combinations
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from sqlalchemy import Float, and_, case, func, literal, or_, select, true, union_all
from sqlalchemy.ext.compiler import compiles
from sqlalchemy.sql.functions import FunctionElement

from airflow_mediation_provider.journal.health import SILENT
from airflow_mediation_provider.journal.queries import without_index
from airflow_mediation_provider.journal.tables import ListedRow
from airflow_mediation_provider.protocol.sessions.verdict import Mark
from airflow_mediation_provider.protocol.status import SessionStatus

if TYPE_CHECKING:
    from collections.abc import Iterator

    from sqlalchemy import ColumnElement, Select
    from sqlalchemy.orm import Session

SCANNED: Final = 2_000
"""With several conditions, so many sessions of the rarest one are scanned at once."""
COUNTED: Final = 20_000
"""A chart counts so many sessions at most, the newest ones."""
SORTED: Final = 10_000
"""So many sessions are sorted by end or duration, the newest ones."""
_EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)
# Within the calendar, and within the numbers that databases have.
_PLACE: Final = re.compile(r"[0-9]{1,17}-[0-9]{1,18}")


class Keyset(NamedTuple):
    """The position of a session in the list; the sessions after it began earlier."""

    begun_at: datetime
    id: int

    def __str__(self) -> str:
        """Return the position as it is written in an address."""
        return f"{(self.begun_at - _EPOCH) // timedelta(microseconds=1)}-{self.id}"

    @classmethod
    def parse(cls, text: str) -> Keyset:
        """Parse a position.

        :raises ValueError: the text is not a position
        """
        if not _PLACE.fullmatch(text):
            raise ValueError(f"{text!r} is not a place in the list")
        at, _, number = text.partition("-")
        return cls(_EPOCH + timedelta(microseconds=int(at)), int(number))


class GoneError(LookupError):
    """The position of a sorted list is that of a session that is not there any more."""


class Group(StrEnum):
    """Statuses that belong together, and what the list marks."""

    FAILED = "failed"
    ENDED = "ended"
    LIVE = "live"
    ATTENTION = "attention"


class Only(StrEnum):
    """What a list may be restricted to."""

    UNCERTAIN = "uncertain"
    CONFLICT = "conflict"
    AMBIGUOUS = "ambiguous"
    UNKNOWN = "unknown"
    SILENT = "silent"
    NO_RUN = "no-run"
    """Dags that should have been triggered and were not: by Airflow's tables, so not a condition on sessions."""


class Sort(StrEnum):
    """The order of the list."""

    START = "start"
    END = "end"
    DURATION = "duration"


_FAILED: Final = (SessionStatus.FAILED, SessionStatus.TESTING_FAILED)
_MARKED: Final = tuple(
    " ".join(marks) for marks in chain(*(combinations(sorted(Mark), size) for size in range(1, len(Mark) + 1)))
)
"""All values of the column that has an entry at least."""


class Alternative(NamedTuple):
    """Sessions that an index has in the order of the list, and of them those with further properties.

    :param values: columns and the value of each
    :param where: further conditions, which no index serves
    """

    values: dict[str, Any]
    where: tuple[ColumnElement[bool], ...] = ()

    def indexed(self) -> list[ColumnElement[bool]]:
        """Return the conditions by which an index leads to the sessions.

        Of a connection and a meter it is the index of the meter's id: SQLite would read all sessions of the connection
        in their order, until there are enough of a meter that may have few.
        """
        both = {"conn_id", "meter_id"} <= self.values.keys()
        columns = {name: getattr(ListedRow, name) for name in self.values}
        if both:
            columns["conn_id"] = without_index(ListedRow.conn_id)
        return [_is(columns[name], value) for name, value in self.values.items()]

    def checked(self) -> ColumnElement[bool]:
        """Return the condition where another index leads to the sessions."""
        same = (_is(without_index(getattr(ListedRow, name)), value) for name, value in self.values.items())
        return and_(true(), *same, *self.where)


Condition = tuple[Alternative, ...]
_ALL: Final = (Alternative({}),)


def _is(column: Any, value: Any) -> ColumnElement[bool]:
    condition: ColumnElement[bool] = column.in_(value) if isinstance(value, tuple) else column == value
    return condition


@dataclass(frozen=True, slots=True, kw_only=True)
class Filters:
    """Which sessions to list; what is ``None`` or empty does not filter.

    :param statuses: those in one of these,
    :param groups: or in one of these
    :param only: those with all of these properties
    :param longer: those that take or took longer than this
    :param since: those that began at or after this time
    :param until: and before this time
    :param found: those to which a text leads
    :param sort: their order
    :param now: the time now
    """

    conn_id: str | None = None
    meter_id: str | None = None
    statuses: tuple[str, ...] = ()
    groups: tuple[Group, ...] = ()
    only: tuple[Only, ...] = ()
    run_type: str | None = None
    longer: timedelta | None = None
    since: datetime | None = None
    until: datetime | None = None
    found: Condition | None = None
    sort: Sort = Sort.START
    now: datetime = field(default_factory=lambda: datetime.now(UTC))

    def times(self) -> list[ColumnElement[bool]]:
        """Return the conditions on when a session began."""
        bounds = ((self.since, ListedRow.begun_at.__ge__), (self.until, ListedRow.begun_at.__lt__))
        return [compare(bound) for bound, compare in bounds if bound is not None]

    def conditions(self) -> list[Condition]:
        """Return the conditions that indexes serve."""
        meter = {"conn_id": self.conn_id, "meter_id": self.meter_id}
        of_meter = {name: value for name, value in meter.items() if value is not None}
        run_type = {"run_type": self.run_type} if self.run_type is not None else {}
        found: list[Condition] = [(Alternative(values),) for values in (of_meter, run_type) if values]
        if self.statuses or self.groups:
            found.append(tuple(self._of_statuses()))
        names = {each.value for each in self.only}
        marks = {mark for mark in Mark if mark.value in names}
        if marks:
            found.append(_marked(marks))
        if Only.SILENT in self.only:
            found.append((self._silent(),))
        if self.found is not None:
            found.append(self.found)
        return found

    def checks(self) -> list[ColumnElement[bool]]:
        """Return the conditions that no index serves."""
        return [] if self.longer is None else [_lasts(self.now) > self.longer.total_seconds()]

    def sort_value(self) -> ColumnElement[Any]:
        """Return what the list is sorted by, the highest first; a session without an end is the last by its end."""
        return _lasts(self.now) if self.sort == Sort.DURATION else _over(_EPOCH)

    def is_exact(self) -> bool:
        """Whether an index has the sessions alone and in order, so that a page of them costs no more than its rows."""
        conditions = self.conditions()
        return len(conditions) <= 1 and not any(each.where for each in chain(*conditions)) and not self.checks()

    def _of_statuses(self) -> Iterator[Alternative]:
        groups = {*self.groups}
        failed = _FAILED if groups & {Group.FAILED, Group.ATTENTION} else ()
        paused = (SessionStatus.PAUSED,) if Group.ATTENTION in groups else ()
        for status in dict.fromkeys((*self.statuses, *failed, *paused)):
            yield Alternative({"best_status": status})
        for group, ended in ((Group.ENDED, True), (Group.LIVE, False)):
            if group in groups:
                yield Alternative({"best_ended": ended})
        if Group.ATTENTION in groups:
            yield from _marked({Mark.CONFLICT}, {Mark.AMBIGUOUS}, {Mark.UNKNOWN})
            yield self._silent()

    def _silent(self) -> Alternative:
        return Alternative({"best_ended": False}, (without_index(ListedRow.last_observed_at) < self.now - SILENT,))


def _marked(*sets: set[Mark]) -> Condition:
    """Return the sessions with all marks of one of some sets."""
    return tuple(
        Alternative({"best_marks": value}) for value in _MARKED if any(marks <= {*value.split()} for marks in sets)
    )


def search(
    session: Session, filters: Filters, place: Keyset | None, *, back: bool
) -> tuple[Keyset | None, list[ColumnElement[bool]]]:
    """Return where a search ends, ``None`` if it covers all sessions, and the conditions of those that it finds.

    The sessions of each condition have an index in the order of the list; a session may fit several.

    :param place: where it starts; ``None``: at the first session
    :param back: whether it goes to older sessions
    """
    begun = ListedRow.begun_at
    times, beyond = filters.times(), []
    if place is not None:
        # SQLite reads an index between the first bound of each side, so the nearest bounds come first.
        times.insert(0, begun <= place.begun_at if back else begun >= place.begun_at)
        later = begun < place.begun_at if back else begun > place.begun_at
        beyond.append(or_(later, ListedRow.id < place.id if back else ListedRow.id > place.id))
    if filters.is_exact():
        (condition,) = filters.conditions() or [_ALL]
        return None, [and_(true(), *each.indexed(), *times, *beyond) for each in condition]
    end, found = few(session, filters, SCANNED, times, back=back)
    if end is None:
        return None, [and_(each, *times, *beyond) for each in found]
    within = begun >= end if back else begun <= end
    # The next search starts after all sessions that began at the same instant.
    reach = Keyset(end if back else end + timedelta(microseconds=1), 0)
    return reach, [and_(each, within, *times, *beyond) for each in found]


def few(
    session: Session, filters: Filters, most: int, times: list[ColumnElement[bool]], *, back: bool = True
) -> tuple[datetime | None, list[ColumnElement[bool]]]:
    """Return up to when the rarest condition has so many sessions, and the conditions of matches among them.

    The instant is ``None`` if there are no more of them. The rarest condition is the one whose sessions reach back
    furthest. What is returned does not restrict when the sessions began.

    :param most: how many
    :param times: the conditions on when they began
    :param back: whether to take the newest of them, or the oldest
    """
    conditions = filters.conditions() or [_ALL]
    ends = [session.scalar(_end(each, most, times, back=back)) for each in conditions]

    def distance(number: int) -> float:
        end = ends[number]
        return math.inf if end is None else (-1 if back else 1) * end.timestamp()

    rarest = max(range(len(conditions)), key=distance)
    others = [each for number, each in enumerate(conditions) if number != rarest]
    checked = [or_(*(each.checked() for each in other)) for other in others] + filters.checks()
    found = [and_(true(), *each.indexed(), *each.where, *checked) for each in conditions[rarest]]
    return ends[rarest], found


def _end(condition: Condition, most: int, times: list[ColumnElement[bool]], *, back: bool) -> Select[Any]:
    begun = ListedRow.begun_at
    starts = [select(begun).where(true(), *each.indexed(), *times) for each in condition]
    if len(starts) == 1:
        return starts[0].order_by(begun.desc() if back else begun).offset(most).limit(1)
    merged = union_all(*(newest(each, most + 1, back=back) for each in starts)).subquery()
    order = merged.c.begun_at.desc() if back else merged.c.begun_at
    return select(merged.c.begun_at).order_by(order).offset(most).limit(1)


def newest(query: Any, most: int, *, back: bool = True) -> Select[Any]:
    """Return a query for its first rows in the order of the list, as SQLite takes it within a union."""
    order = (ListedRow.begun_at, ListedRow.id)
    limited = query.order_by(*(each.desc() if back else each for each in order)).limit(most).subquery()
    return select(*limited.c)


class _Seconds(FunctionElement[float]):
    """The seconds between two instants, the earlier one first."""

    type = Float()
    inherit_cache = True


@compiles(_Seconds)
def _seconds(element: Any, compiler: Any, **options: Any) -> str:
    since, until = (compiler.process(each, **options) for each in element.clauses)
    return {
        "sqlite": f"((julianday({until}) - julianday({since})) * 86400.0)",
        "postgresql": f"EXTRACT(EPOCH FROM {until} - {since})::float",
    }.get(compiler.dialect.name, f"(TIMESTAMPDIFF(MICROSECOND, {since}, {until}) / 1000000.0)")


def _over(default: datetime) -> ColumnElement[datetime]:
    """Return when a session ended, else another instant."""
    other = literal(default, ListedRow.begun_at.type)
    return func.coalesce(case((ListedRow.best_ended, ListedRow.best_ended_at)), other, type_=ListedRow.begun_at.type)


def _lasts(now: datetime) -> ColumnElement[float]:
    return _Seconds(ListedRow.begun_at, _over(now))
