"""Sessions as the pages show them: the list, newest first, filtered, with keyset pagination; counts; and one timeline.

A page is found by its keyset, not by its number, so the last page of a million sessions costs as much as the first. One
filter is served by an index. There is no index for each combination of filters, as every callout would pay for them
all. With several filters, a limited number of rows of the rarest one is scanned, and the next search continues there.
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from itertools import pairwise
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from airflow.models.asset import AssetActive
from sqlalchemy import and_, bindparam, func, literal, or_, select, true, union, union_all

from airflow_mediation_provider.journal.meters import meter_names
from airflow_mediation_provider.journal.tables import CallsRow, HistoryRow, ListedRow, TransitionRow, WaitRow
from airflow_mediation_provider.protocol.sessions.asset_uri import SCHEME, connection_of_uri
from airflow_mediation_provider.protocol.sessions.journal_entry import EntryKind
from airflow_mediation_provider.protocol.sessions.lifecycle import Phase, phases
from airflow_mediation_provider.protocol.transition import Source

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from sqlalchemy import ColumnElement, Row, Select
    from sqlalchemy.orm import InstrumentedAttribute, Session


SCANNED: Final = 2_000
"""With several filters, so many sessions of the rarest one are scanned at once."""
_EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)
# Within the calendar, and within the numbers that databases have.
_PLACE: Final = re.compile(r"[0-9]{1,17}-[0-9]{1,18}")
_METER: Final = ("conn_id", "meter_id")
_NAMES: Final = (*_METER, "status", "run_type")

COUNTED: Final = 20_000
"""A chart counts so many sessions at most, the newest ones: SQLite reads the row of each for its status."""
# SQLite limits the depth of an expression to a thousand.
_BATCH: Final = 100
# Of a session in an endless loop, only the newest changes are drawn.
_CHANGES_DRAWN: Final = 40
_FIELDS: Final = (
    "id",
    "conn_id",
    "meter_id",
    "session_id",
    "run_type",
    "status",
    "started_at",
    "ended_at",
    "begun_at",
    "first_observed_at",
    "last_observed_at",
    "updated_at",
    "conflict",
    "ambiguous",
    "terminal",
    "reported",
    "best_status",
    "best_evidence",
    "best_certain",
    "best_ended",
    "best_ended_at",
    "best_differs",
)
# Without the transition and the emitted events: JSON that no list shows.
_COLUMNS: Final = tuple(getattr(ListedRow, name) for name in _FIELDS)

# Of a session in an endless loop, only the newest entries are shown.
_MOST: Final = 500
# A poll soon after the end may still be about this session.
_AFTER_END: Final = timedelta(minutes=10)
# A process that polls reports a poll later if the API server cannot be reached.
_KEPT_LATE: Final = timedelta(hours=1)


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


@dataclass(frozen=True, slots=True, kw_only=True)
class Filters:
    """Which sessions to list; ``None`` does not filter.

    :param since: those that began at or after this time
    :param until: and before this time
    """

    conn_id: str | None = None
    meter_id: str | None = None
    status: str | None = None
    run_type: str | None = None
    since: datetime | None = None
    until: datetime | None = None

    def where(self) -> ColumnElement[bool]:
        """Return the condition."""
        return and_(true(), *self.same(), *self.times())

    def values(self) -> dict[str, str]:
        """Return the values that columns must have."""
        return {name: value for name in _NAMES if (value := getattr(self, name)) is not None}

    def same(self) -> list[ColumnElement[bool]]:
        """Return the conditions on these columns."""
        return [_column(name) == value for name, value in self.values().items()]

    def times(self) -> list[ColumnElement[bool]]:
        """Return the conditions on when a session began."""
        bounds = ((self.since, ListedRow.begun_at.__ge__), (self.until, ListedRow.begun_at.__lt__))
        return [compare(bound) for bound, compare in bounds if bound is not None]

    def leads(self) -> list[tuple[str, ...]]:
        """Return the columns by which an index has sessions in the order of the list."""
        names = list(self.values())
        if names[:2] == list(_METER):
            return [_METER, *((name,) for name in names[2:])]
        return [(name,) for name in names]


def scan_range(
    session: Session, filters: Filters, place: Keyset | None, *, back: bool
) -> tuple[Keyset | None, ColumnElement[bool]]:
    """Return where a search ends, ``None`` if it covers all sessions, and the condition of the sessions that it finds.

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
    if len(filters.leads()) < 2:
        return None, and_(true(), *filters.same(), *times, *beyond)
    end, which = few(session, filters, SCANNED, times, back=back)
    if end is None:
        return None, and_(which, *times, *beyond)
    within = begun >= end if back else begun <= end
    # The next search starts after all sessions that began at the same instant.
    return Keyset(end if back else end + timedelta(microseconds=1), 0), and_(which, within, *times, *beyond)


def few(
    session: Session, filters: Filters, most: int, times: list[ColumnElement[bool]], *, back: bool = True
) -> tuple[datetime | None, ColumnElement[bool]]:
    """Return the instant up to which the rarest filter has so many sessions, and the condition of matches among them.

    The instant is ``None`` if there are no more of them. The rarest filter is the one whose sessions reach back
    furthest. The condition does not restrict when the sessions began.

    :param most: how many
    :param times: the conditions on when they began
    :param back: whether to take the newest of them, or the oldest
    """
    begun, values, ends = ListedRow.begun_at, filters.values(), {}
    for lead in filters.leads() or [()]:
        of_lead = select(begun).where(true(), *(_column(name) == values[name] for name in lead), *times)
        ordered = of_lead.order_by(begun.desc() if back else begun)
        ends[lead] = session.scalar(ordered.offset(most).limit(1))

    def distance(lead: tuple[str, ...]) -> float:
        end = ends[lead]
        return math.inf if end is None else (-1 if back else 1) * end.timestamp()

    rarest = max(ends, key=distance)
    same = (
        (_column(name) if name in rarest else without_index(_column(name))) == value for name, value in values.items()
    )
    return ends[rarest], and_(true(), *same)


def without_index(column: Any) -> ColumnElement[str]:
    """Return a column such that no index applies, where another condition leads to the rows.

    SQLite has no statistics about how often a value occurs, and uses any index that fits.
    """
    return func.coalesce(column, "")


def _column(name: str) -> Any:
    return ListedRow.best_status if name == "status" else getattr(ListedRow, name)


class SessionKey(NamedTuple):
    """The identifying columns of a session."""

    conn_id: str
    meter_id: str
    session_id: str


@dataclass(frozen=True, slots=True, kw_only=True)
class ListedSession:
    """One session of the list: the columns of its row, the last known name of its meter, and its phases.

    Pages show the session's status by the ``best_`` fields; ``status``, ``conflict``, ``ambiguous`` and ``terminal``
    are by Zuora's reports alone, and mean nothing without a report.
    """

    id: int
    conn_id: str
    meter_id: str
    session_id: str
    run_type: str
    status: str
    started_at: datetime | None
    ended_at: datetime | None
    begun_at: datetime
    first_observed_at: datetime
    last_observed_at: datetime
    updated_at: datetime
    conflict: bool
    ambiguous: bool
    terminal: bool
    reported: bool
    best_status: str
    best_evidence: str
    best_certain: bool
    best_ended: bool
    best_ended_at: datetime | None
    best_differs: bool
    meter_name: str | None = None
    phases: tuple[Phase, ...] = ()

    @property
    def key(self) -> SessionKey:
        """Its identifying columns."""
        return SessionKey(self.conn_id, self.meter_id, self.session_id)

    @property
    def meter(self) -> tuple[str, str]:
        """Its connection and meter."""
        return self.conn_id, self.meter_id

    @property
    def place(self) -> Keyset:
        """Its position in the list."""
        return Keyset(self.begun_at, self.id)

    @property
    def over_at(self) -> datetime | None:
        """When it ended, as far as that is stored; ``None`` while it goes on."""
        return self.best_ended_at if self.best_ended else None

    @property
    def ends_before_start(self) -> bool:
        """Whether its end is before its start, so that its duration is unknown."""
        return self.over_at is not None and self.over_at < self.begun_at

    @property
    def concluded(self) -> bool:
        """Whether its status is what a task concluded from polls, and not a report of Zuora."""
        return self.best_evidence == Source.POLL

    @property
    def disagreed(self) -> bool:
        """Whether its status is what a task concluded, and another task concluded a different one."""
        return self.concluded and self.best_differs


@dataclass(frozen=True, slots=True)
class Listing:
    """One page of the list.

    :param sessions: the newest first
    :param newer: the position from which newer ones are found, ``None`` if there are none
    :param older: the position from which older ones are found, ``None`` if there are none
    :param cut: whether the search ended at that position before the page was full: there may be none beyond
    """

    sessions: tuple[ListedSession, ...]
    newer: Keyset | None
    older: Keyset | None
    cut: bool = False


def list_sessions(
    session: Session, filters: Filters, *, limit: int, before: Keyset | None = None, after: Keyset | None = None
) -> Listing:
    """Return the newest sessions, or those next to a position.

    :param limit: how many at most
    :param before: those right after this position in the list: older ones
    :param after: those right before it: newer ones
    """
    back = after is None
    reach, where = scan_range(session, filters, before or after, back=back)
    order = (ListedRow.begun_at, ListedRow.id)
    query = select(*_COLUMNS).where(where).order_by(*(each.desc() if back else each for each in order))
    rows = session.execute(query.limit(limit + 1)).all()
    more, rows = len(rows) > limit, rows[:limit]
    listed = _all_listed(session, rows)
    cut = reach is not None and not more
    onward = listed[-1].place if more else reach
    if after is not None:
        return Listing(tuple(reversed(listed)), newer=onward, older=listed[0].place if listed else after, cut=cut)
    backward = before and (listed[0].place if listed else before)
    return Listing(tuple(listed), newer=backward, older=onward, cut=cut)


def find_session(session: Session, key: SessionKey) -> ListedSession | None:
    """Return one session as the list has it, ``None`` if the journal does not have it."""
    return find_sessions(session, [key]).get(key)


def find_sessions(session: Session, keys: Iterable[SessionKey]) -> dict[SessionKey, ListedSession]:
    """Return those of some sessions that the journal has, in the given order."""
    found: dict[SessionKey, ListedSession] = {}
    wanted = list(dict.fromkeys(keys))
    for start in range(0, len(wanted), _BATCH):
        batch = wanted[start : start + _BATCH]
        rows = session.execute(select(*_COLUMNS).where(or_(*(and_(*_is(ListedRow, key)) for key in batch)))).all()
        by_key = {each.key: each for each in _all_listed(session, rows)}
        found |= {key: by_key[key] for key in batch if key in by_key}
    return found


class Counts(NamedTuple):
    """How many sessions began in each of some equal spans of time, by their best known status.

    :param since: where the first span begins: later than requested if there are more sessions than are counted
    :param spans: status -> number of sessions, of each span
    """

    since: datetime
    spans: list[dict[str, int]]


def count_by_status(session: Session, filters: Filters, *, since: datetime, until: datetime, bars: int) -> Counts:
    """Count sessions, the newest ``COUNTED`` of the rarest filter.

    :param filters: its own times are ignored
    :param since: where the first span begins
    :param until: where the last one ends
    :param bars: how many spans
    """
    times = replace(filters, since=since, until=until).times()
    end, which = few(session, filters, COUNTED, times)
    since = end or since
    step = (until - since) / bars
    begun, status = ListedRow.begun_at, ListedRow.best_status
    edges = [*(since + step * number for number in range(bars)), until]
    # Each span is a range of an index, which costs less than computing the span of each session.
    spans = (
        select(literal(number), status, func.count()).where(which, begun >= first, begun < last).group_by(status)
        for number, (first, last) in enumerate(pairwise(edges))
    )
    counts: list[dict[str, int]] = [{} for _ in range(bars)]
    for number, name, count in session.execute(union_all(*spans)):
        counts[number][name] = count
    return Counts(since, counts)


def known_connections(session: Session) -> list[str]:
    """Return the connections that the journal has rows of."""
    return sorted(session.scalars(_CONNECTIONS))


def connections_of_dags(session: Session) -> set[str]:
    """Return the connections that Dags name: in a schedule, or for a task that waited or that reads the history."""
    return {*session.scalars(_OF_TASKS), *map(connection_of_uri, session.scalars(_OF_SCHEDULES))}


def distinct_values(column: InstrumentedAttribute[str]) -> Select[Any]:
    """Return the query for the values of an index's first column, in steps: a million rows have a handful of them."""
    steps = select(func.min(column).label("value")).cte(recursive=True)
    following = select(func.min(column)).where(column > steps.c.value).correlate(steps).scalar_subquery()
    steps = steps.union_all(select(following).where(steps.c.value.is_not(None)))
    return select(steps.c.value).where(steps.c.value.is_not(None))


# Built once, as each page runs it: building costs as much as running.
_CONNECTIONS: Final = union(
    *(distinct_values(each.conn_id) for each in (ListedRow, TransitionRow, WaitRow, CallsRow, HistoryRow))
)
_OF_TASKS: Final = union(*map(distinct_values, (WaitRow.conn_id, HistoryRow.conn_id)))
_OF_SCHEDULES: Final = select(AssetActive.uri).where(AssetActive.uri.startswith(f"{SCHEME}://", autoescape=True))


def _all_listed(session: Session, rows: Sequence[Row[Any]]) -> list[ListedSession]:
    """Return rows with what other tables have of their sessions."""
    bare = [ListedSession(**dict(zip(_FIELDS, row, strict=True))) for row in rows]
    drawn = _phases(session, bare)
    names = meter_names(session, {each.meter for each in bare})
    return [replace(each, meter_name=names.get(each.meter), phases=drawn[each.key]) for each in bare]


class _Report(NamedTuple):
    status: str
    previous_status: str | None
    observed_at: datetime
    notification_id: str | None
    ended_at: datetime | None


def _phases(session: Session, listed: Sequence[ListedSession]) -> dict[SessionKey, tuple[Phase, ...]]:
    """Return the phases of some sessions by one query."""
    if not listed:
        return {}
    reports: dict[SessionKey, list[_Report]] = {}
    cut: dict[SessionKey, datetime] = {}
    for row in session.execute(_CHANGES, {"ids": [each.id for each in listed]}):
        key, report = SessionKey(*row[:3]), _Report(*row[3:-1])
        if row.newest > _CHANGES_DRAWN:
            cut[key] = report.observed_at
        else:
            reports.setdefault(key, []).append(report)
    for key, at in cut.items():
        # A change that was received late belongs to the time of which the others are not read.
        reports[key] = [report for report in reports[key] if report.observed_at >= at]
    for each in listed:
        if each.concluded and each.best_ended_at is not None:
            end = _Report(each.best_status, None, each.best_ended_at, None, None)
            reports.setdefault(each.key, []).append(end)
    return {
        each.key: phases(
            reports.get(each.key, ()),
            begun_at=each.begun_at,
            ended_at=each.over_at,
            present=each.best_status,
            cut=each.key in cut,
        )
        for each in listed
    }


def of_rows(table: Any) -> ColumnElement[bool]:
    """Return the condition that a row of another table belongs to one of some sessions, found by an index from theirs.

    The statement's parameter ``ids`` has the ids of the sessions' rows.

    :param table: with the columns of a ``SessionKey``
    """
    same = (getattr(table, name) == getattr(ListedRow, name) for name in SessionKey._fields)
    return and_(ListedRow.id.in_(bindparam("ids", expanding=True)), *same)


def is_of_kind(kind: EntryKind) -> ColumnElement[bool]:
    """Return the condition that a transition has a kind, if its meter or session leads to it.

    SQLite would use the index of kinds, and with it all rows of the connection.
    """
    return without_index(TransitionRow.kind) == kind


def _changes() -> Select[Any]:
    keys = [getattr(TransitionRow, name) for name in SessionKey._fields]
    newest = func.row_number().over(partition_by=keys, order_by=TransitionRow.id.desc()).label("newest")
    names = [getattr(TransitionRow, name) for name in _Report._fields]
    changes = select(*keys, *names, newest).where(of_rows(TransitionRow), is_of_kind(EntryKind.STATUS_CHANGE))
    numbered = changes.subquery()
    return select(numbered).where(numbered.c.newest <= _CHANGES_DRAWN + 1)


_CHANGES: Final = _changes()


def _is(table: Any, key: SessionKey) -> list[ColumnElement[bool]]:
    return [getattr(table, name) == getattr(key, name) for name in key._fields]


class TimelineEntry(NamedTuple):
    """One row of the timeline.

    :param kind: ``status_change``, ``periodic`` or ``poll``; a poll names no session, so it is about the meter
    """

    id: int
    kind: str
    status: str | None
    previous_status: str | None
    observed_at: datetime
    source: str
    notification_id: str | None
    started_at: datetime | None
    ended_at: datetime | None


_TIMELINE_COLUMNS: Final = tuple(getattr(TransitionRow, name) for name in TimelineEntry._fields)


def timeline(session: Session, listed: ListedSession) -> tuple[list[TimelineEntry], bool]:
    """Return all reports about a session, the latest first, and whether that is not all of them."""
    row = TransitionRow
    of_meter = and_(row.conn_id == listed.conn_id, row.meter_id == listed.meter_id)
    own = select(*_TIMELINE_COLUMNS).where(of_meter, row.session_id == listed.session_id)
    # An index leads to them by the time at which they were stored; all polls of a meter would be many.
    polls = select(*_TIMELINE_COLUMNS).where(
        row.conn_id == listed.conn_id,
        row.kind == EntryKind.POLL,
        row.created_at >= listed.begun_at,
        row.observed_at >= listed.begun_at,
        without_index(row.meter_id) == listed.meter_id,
    )
    if listed.over_at is not None:
        last = listed.over_at + _AFTER_END
        polls = polls.where(row.observed_at <= last, row.created_at <= last + _KEPT_LATE)
    entries = [
        TimelineEntry(*each)
        for query in (own.order_by(row.observed_at.desc(), row.id.desc()), polls.order_by(row.created_at.desc()))
        for each in session.execute(query.limit(_MOST + 1))
    ]
    entries.sort(key=lambda each: (each.observed_at, each.id), reverse=True)
    return entries[:_MOST], len(entries) > _MOST
