"""The sessions as the pages list them: the newest first, a page at a time, by filters; and counted over time.

A page is found by its place, not by its number, so the last one of a million sessions costs as much as the first.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from itertools import pairwise
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from sqlalchemy import and_, bindparam, func, literal, or_, select, union, union_all

from airflow_mediation_provider.journal.filters import Place, few, look, without_index
from airflow_mediation_provider.journal.tables import CallsRow, SessionRow, TransitionRow, WaitRow
from airflow_mediation_provider.protocol.entry import EntryKind
from airflow_mediation_provider.protocol.phases import Phase, phases

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence
    from datetime import datetime

    from sqlalchemy import ColumnElement, Row, Select
    from sqlalchemy.orm import InstrumentedAttribute, Session

    from airflow_mediation_provider.journal.filters import Filters

COUNTED: Final = 20_000
"""So many sessions a chart stands for, and no more, the newest ones: SQLite reads the row of each for its status."""
# SQLite goes no deeper into an expression than a thousand.
_BATCH: Final = 100
# Of a session that loops for ever the newest changes are drawn.
_CHANGES_DRAWN: Final = 40
_FIELDS: Final = (
    "id",
    "conn_id",
    "meter_id",
    "session_id",
    "meter_name",
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
)
# Without the transition and what was emitted: JSON that no list shows.
_COLUMNS: Final = tuple(getattr(SessionRow, name) for name in _FIELDS)


class SessionKey(NamedTuple):
    """What names a session."""

    conn_id: str
    meter_id: str
    session_id: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Listed:
    """One session of the list, by the columns of its row, and its phases."""

    id: int
    conn_id: str
    meter_id: str
    session_id: str
    meter_name: str | None
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
    phases: tuple[Phase, ...] = ()

    @property
    def key(self) -> SessionKey:
        """What names it."""
        return SessionKey(self.conn_id, self.meter_id, self.session_id)

    @property
    def meter(self) -> tuple[str, str]:
        """Its connection and meter."""
        return self.conn_id, self.meter_id

    @property
    def place(self) -> Place:
        """Where it stands in the list."""
        return Place(self.begun_at, self.id)

    @property
    def over_at(self) -> datetime | None:
        """When it ended, by Zuora's clock or else when that was learned; ``None`` while it goes on."""
        return (self.ended_at or self.last_observed_at) if self.terminal else None


@dataclass(frozen=True, slots=True)
class Listing:
    """One page of the list.

    :param sessions: the newest first
    :param newer: the place from which newer ones are found, ``None`` where there are none
    :param older: the place from which older ones are found, ``None`` where there are none
    :param cut: whether the search ended at that place, and not because the page is full: there may be none beyond
    """

    sessions: tuple[Listed, ...]
    newer: Place | None
    older: Place | None
    cut: bool = False


def list_sessions(
    session: Session, filters: Filters, *, limit: int, before: Place | None = None, after: Place | None = None
) -> Listing:
    """Return the newest sessions, or those next to a place.

    :param limit: how many at most
    :param before: those that come right after this place in the list: older ones
    :param after: those that come right before it: newer ones
    """
    back = after is None
    reach, where = look(session, filters, before or after, back=back)
    order = (SessionRow.begun_at, SessionRow.id)
    query = select(*_COLUMNS).where(where).order_by(*(each.desc() if back else each for each in order))
    rows = session.execute(query.limit(limit + 1)).all()
    more, rows = len(rows) > limit, rows[:limit]
    drawn = _phases(session, rows)
    listed = [_listed(row, drawn.get(_key(row), ())) for row in rows]
    cut = reach is not None and not more
    onward = listed[-1].place if more else reach
    if after is not None:
        return Listing(tuple(reversed(listed)), newer=onward, older=listed[0].place if listed else after, cut=cut)
    backward = before and (listed[0].place if listed else before)
    return Listing(tuple(listed), newer=backward, older=onward, cut=cut)


def find_session(session: Session, key: SessionKey) -> Listed | None:
    """Return one session as the list has it, ``None`` where the journal does not know it."""
    return find_sessions(session, [key]).get(key)


def find_sessions(session: Session, keys: Iterable[SessionKey]) -> dict[SessionKey, Listed]:
    """Return those of some sessions that the journal knows, in the order in which they are asked for."""
    found: dict[SessionKey, Listed] = {}
    wanted = list(dict.fromkeys(keys))
    for start in range(0, len(wanted), _BATCH):
        batch = wanted[start : start + _BATCH]
        rows = session.execute(select(*_COLUMNS).where(or_(*(and_(*_is(SessionRow, key)) for key in batch)))).all()
        by_key = {_key(row): row for row in rows}
        drawn = _phases(session, rows)
        found |= {key: _listed(by_key[key], drawn.get(key, ())) for key in batch if key in by_key}
    return found


class Counts(NamedTuple):
    """How many sessions began in each of some equal spans of time, by their present status.

    :param since: where the first span begins: later than was asked for, where there are more sessions than are counted
    :param spans: status -> number of sessions
    """

    since: datetime
    spans: list[dict[str, int]]


def count_by_status(session: Session, filters: Filters, *, since: datetime, until: datetime, bars: int) -> Counts:
    """Count sessions, the newest ``COUNTED`` of the rarest filter.

    :param filters: its own times are left aside
    :param since: where the first span begins
    :param until: where the last one ends
    :param bars: how many spans
    """
    times = replace(filters, since=since, until=until).times()
    end, which = few(session, filters, COUNTED, times)
    since = end or since
    step = (until - since) / bars
    begun, status = SessionRow.begun_at, SessionRow.status
    edges = [*(since + step * number for number in range(bars)), until]
    # Each span is a range of an index, which costs less than to find out of each session in which span it began.
    spans = (
        select(literal(number), status, func.count()).where(which, begun >= first, begun < last).group_by(status)
        for number, (first, last) in enumerate(pairwise(edges))
    )
    counts: list[dict[str, int]] = [{} for _ in range(bars)]
    for number, name, count in session.execute(union_all(*spans)):
        counts[number][name] = count
    return Counts(since, counts)


def known_connections(session: Session) -> list[str]:
    """Return the connections that the journal has heard of."""
    return sorted(session.scalars(_CONNECTIONS))


def _distinct(column: InstrumentedAttribute[str]) -> Select[Any]:
    """Step through the values of a column that an index begins with: a million rows have a handful of them."""
    steps = select(func.min(column).label("value")).cte(recursive=True)
    following = select(func.min(column)).where(column > steps.c.value).correlate(steps).scalar_subquery()
    steps = steps.union_all(select(following).where(steps.c.value.is_not(None)))
    return select(steps.c.value).where(steps.c.value.is_not(None))


# What each page asks for is put together once: that costs as much as the answer.
_CONNECTIONS: Final = union(
    *map(_distinct, (SessionRow.conn_id, TransitionRow.conn_id, WaitRow.conn_id, CallsRow.conn_id))
)


def _key(row: Row[Any]) -> SessionKey:
    return SessionKey(row.conn_id, row.meter_id, row.session_id)


def _listed(row: Row[Any], drawn: tuple[Phase, ...]) -> Listed:
    return Listed(**dict(zip(_FIELDS, row, strict=True)), phases=drawn)


class _Report(NamedTuple):
    status: str
    previous_status: str | None
    observed_at: datetime
    notification_id: str | None


def _phases(session: Session, rows: Sequence[Row[Any]]) -> dict[SessionKey, tuple[Phase, ...]]:
    """Return the phases of some sessions by one question."""
    if not rows:
        return {}
    told: dict[SessionKey, list[_Report]] = {}
    for conn_id, meter_id, session_id, *report, _ in session.execute(_CHANGES, {"ids": [row.id for row in rows]}):
        told.setdefault(SessionKey(conn_id, meter_id, session_id), []).append(_Report(*report))
    return {
        each.key: phases(told.get(each.key, ()), begun_at=each.begun_at, ended_at=each.over_at, present=each.status)
        for each in (_listed(row, ()) for row in rows)
    }


def of_rows(table: Any) -> ColumnElement[bool]:
    """Return the condition that a row of another table is of one of some sessions; their rows lead to it by an index.

    The statement's parameter ``ids`` is the ids of the sessions' rows.

    :param table: with the columns of a ``SessionKey``
    """
    same = (getattr(table, name) == getattr(SessionRow, name) for name in SessionKey._fields)
    return and_(SessionRow.id.in_(bindparam("ids", expanding=True)), *same)


def is_of_kind(kind: EntryKind) -> ColumnElement[bool]:
    """Return the condition that a transition is of a kind, where its meter or session leads to it.

    SQLite would rather take the index of kinds, and with it all rows of the connection.
    """
    return without_index(TransitionRow.kind) == kind


def _changes() -> Select[Any]:
    keys = [getattr(TransitionRow, name) for name in SessionKey._fields]
    newest = func.row_number().over(partition_by=keys, order_by=TransitionRow.id.desc()).label("newest")
    names = [getattr(TransitionRow, name) for name in _Report._fields]
    changes = select(*keys, *names, newest).where(of_rows(TransitionRow), is_of_kind(EntryKind.STATUS_CHANGE))
    numbered = changes.subquery()
    return select(numbered).where(numbered.c.newest <= _CHANGES_DRAWN)


_CHANGES: Final = _changes()


def _is(table: Any, key: SessionKey) -> list[ColumnElement[bool]]:
    return [getattr(table, name) == getattr(key, name) for name in key._fields]
