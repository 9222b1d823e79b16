"""Sessions as the pages show them: the list, filtered and sorted, with keyset pagination; counts; and one timeline.

A page is found by its keyset, not by its number, so the last page of a million sessions costs as much as the first.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from datetime import timedelta
from itertools import pairwise
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from airflow.models.asset import AssetActive
from sqlalchemy import and_, bindparam, func, literal, or_, select, union, union_all

from airflow_mediation_provider.journal.meters import meter_names
from airflow_mediation_provider.journal.queries import distinct_values, without_index
from airflow_mediation_provider.journal.session_search import (
    COUNTED,
    SORTED,
    Filters,
    GoneError,
    Keyset,
    Sort,
    few,
    newest,
    search,
)
from airflow_mediation_provider.journal.tables import CallsRow, HistoryRow, ListedRow, TransitionRow, WaitRow
from airflow_mediation_provider.protocol.sessions.asset_uri import ANY_METER, SCHEME, connection_of_uri
from airflow_mediation_provider.protocol.sessions.journal_entry import EntryKind
from airflow_mediation_provider.protocol.sessions.lifecycle import Phase, phases
from airflow_mediation_provider.protocol.transition import Source

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Sequence
    from datetime import datetime

    from sqlalchemy import ColumnElement, Row, Select
    from sqlalchemy.orm import Session


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
    "best_marks",
)
# Without the transition and the emitted events: JSON that no list shows.
_COLUMNS: Final = tuple(getattr(ListedRow, name) for name in _FIELDS)

# Of a session in an endless loop, only the newest entries are shown.
_MOST: Final = 500
# A poll soon after the end may still be about this session.
_AFTER_END: Final = timedelta(minutes=10)
# A process that polls reports a poll later if the API server cannot be reached.
_KEPT_LATE: Final = timedelta(hours=1)


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
    best_marks: str
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

    :param sessions: in its order
    :param newer: the position from which those before them are found, ``None`` if there are none
    :param older: the position from which those after them are found, ``None`` if there are none
    :param cut: whether the search ended at that position before the page was full: there may be none beyond
    :param sorted_since: since when sessions began of which these are the first by their end or duration; ``None``: all
    """

    sessions: tuple[ListedSession, ...]
    newer: Keyset | None
    older: Keyset | None
    cut: bool = False
    sorted_since: datetime | None = None


def list_sessions(
    session: Session,
    filters: Filters,
    *,
    limit: int,
    before: Keyset | None = None,
    after: Keyset | None = None,
    bare: bool = False,
) -> Listing:
    """Return the first sessions, or those next to a position; by end or duration of the newest ``SORTED`` ones.

    :param limit: how many at most
    :param before: those right after this position in the list: older ones
    :param after: those right before it: newer ones
    :param bare: without their phases and the names of their meters, to search many of them
    :raises GoneError: the list is sorted by end or duration, and the session at the position was deleted
    """
    back, place = after is None, before or after
    reach, since = None, None
    if filters.sort == Sort.START:
        reach, where = search(session, filters, place, back=back)
        rows = _first(session, where, limit + 1, back=back)
    else:
        since, which = few(session, filters, SORTED, filters.times())
        times = filters.times() if since is None else [*filters.times(), ListedRow.begun_at >= since]
        within = or_(*(and_(each, *times) for each in which))
        rows = _first_sorted(session, within, limit + 1, place, filters.sort_value(), back=back)
    more, rows = len(rows) > limit, rows[:limit]
    listed = _bare(rows) if bare else with_phases(session, _bare(rows))
    cut = reach is not None and not more
    onward = listed[-1].place if more else reach
    if after is not None:
        newer = listed[0].place if listed else after
        return Listing(tuple(reversed(listed)), newer=onward, older=newer, cut=cut, sorted_since=since)
    backward = before and (listed[0].place if listed else before)
    return Listing(tuple(listed), newer=backward, older=onward, cut=cut, sorted_since=since)


def _first(session: Session, where: list[ColumnElement[bool]], most: int, *, back: bool) -> list[Row[Any]]:
    """Return the first sessions of those that fit one of some conditions, each of which an index serves."""
    if len(where) == 1:
        order = (ListedRow.begun_at, ListedRow.id)
        query = select(*_COLUMNS).where(where[0]).order_by(*(each.desc() if back else each for each in order))
        return [*session.execute(query.limit(most))]
    keys = union(*(newest(select(ListedRow.begun_at, ListedRow.id).where(each), most, back=back) for each in where))
    found = keys.subquery().c
    in_order = (each.desc() if back else each for each in (found.begun_at, found.id))
    ids = select(found.id).order_by(*in_order).limit(most)
    return _rows(session, session.scalars(ids).all())


def _first_sorted(
    session: Session,
    where: ColumnElement[bool],
    most: int,
    place: Keyset | None,
    value: ColumnElement[Any],
    *,
    back: bool,
) -> list[Row[Any]]:
    """Return the first sessions by a value, the highest first, after a session of the list."""
    order = (value, ListedRow.id)
    query = select(ListedRow.id).where(where).order_by(*(each.desc() if back else each for each in order)).limit(most)
    if place is not None:
        # Only the session itself has the value from which the list continues.
        if session.scalar(select(ListedRow.id).where(ListedRow.id == place.id)) is None:
            raise GoneError(f"the session at the place {place} was deleted")
        its = select(value).where(ListedRow.id == place.id).correlate(None).scalar_subquery()
        beyond = (value < its, ListedRow.id < place.id) if back else (value > its, ListedRow.id > place.id)
        query = query.where(or_(beyond[0], and_(value == its, beyond[1])))
    return _rows(session, session.scalars(query).all())


def _rows(session: Session, ids: Sequence[int]) -> list[Row[Any]]:
    by_id = {row.id: row for row in session.execute(select(*_COLUMNS).where(ListedRow.id.in_(ids)))}
    return [by_id[each] for each in ids if each in by_id]


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
        by_key = {each.key: each for each in with_phases(session, _bare(rows))}
        found |= {key: by_key[key] for key in batch if key in by_key}
    return found


def newest_reported(
    session: Session, reached: Collection[tuple[str, str, str]], since: datetime, limit: int
) -> tuple[list[ListedSession], bool]:
    """Return those of the newest sessions that are in one of some statuses, without their phases, the newest first.

    Returns also whether there are more than were searched.

    :param reached: connection, meter or ``ANY_METER``, and status
    :param since: only sessions that began since then
    :param limit: how many sessions in one of the statuses are searched
    """
    row = ListedRow
    narrow = select(row.begun_at, row.id, row.conn_id, row.meter_id, row.status)
    found = [
        each
        for status in sorted({status for *_, status in reached})
        for each in session.execute(
            narrow.where(row.best_status == status, row.begun_at >= since, row.reported)
            .order_by(row.begun_at.desc(), row.id.desc())
            .limit(limit)
        )
    ]
    newest = sorted(found, key=lambda each: (each.begun_at, each.id), reverse=True)[:limit]
    ids = [
        each.id
        for each in newest
        if not {(each.conn_id, meter_id, each.status) for meter_id in (each.meter_id, ANY_METER)}.isdisjoint(reached)
    ]
    rows = session.execute(select(*_COLUMNS).where(row.id.in_(ids))).all() if ids else []
    return sorted(_bare(rows), key=lambda each: each.place, reverse=True), len(newest) == limit


class Counts(NamedTuple):
    """How many sessions began in each of some equal spans of time, by their best known status.

    :param since: where the first span begins: later than requested if there are more sessions than are counted
    :param spans: status -> number of sessions, of each span
    """

    since: datetime
    spans: list[dict[str, int]]


def count_by_status(session: Session, filters: Filters, *, since: datetime, until: datetime, bars: int) -> Counts:
    """Count sessions, the newest ``COUNTED`` of the rarest condition.

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
        select(literal(number), status, func.count())
        .where(or_(*(and_(each, begun >= first, begun < last) for each in which)))
        .group_by(status)
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


# Built once, as each page runs it: building costs as much as running.
_CONNECTIONS: Final = union(
    *(distinct_values(each.conn_id) for each in (ListedRow, TransitionRow, WaitRow, CallsRow, HistoryRow))
)
_OF_TASKS: Final = union(*map(distinct_values, (WaitRow.conn_id, HistoryRow.conn_id)))
_OF_SCHEDULES: Final = select(AssetActive.uri).where(AssetActive.uri.startswith(f"{SCHEME}://", autoescape=True))


def _bare(rows: Iterable[Row[Any]]) -> list[ListedSession]:
    return [ListedSession(**dict(zip(_FIELDS, row, strict=True))) for row in rows]


def with_phases(session: Session, listed: Sequence[ListedSession]) -> list[ListedSession]:
    """Return sessions with their phases and the names of their meters."""
    drawn = _phases(session, listed)
    names = meter_names(session, {each.meter for each in listed})
    return [replace(each, meter_name=names.get(each.meter), phases=drawn[each.key]) for each in listed]


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
