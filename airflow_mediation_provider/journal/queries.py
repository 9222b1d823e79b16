"""The journal's queries for waits and reconciliation; each has an index, and none holds a transaction open."""

from __future__ import annotations

import json
import math
import time
from collections import defaultdict
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from functools import cache
from itertools import chain, count
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from sqlalchemy import (
    TIMESTAMP,
    Integer,
    Text,
    and_,
    bindparam,
    cast,
    func,
    literal,
    select,
    type_coerce,
    union_all,
)

from airflow_mediation_provider.journal.rows import (
    CHANGE_COLUMNS,
    STATE_COLUMNS,
    of_session,
    state_of,
    state_values,
    transition_of,
    why_unfit,
)
from airflow_mediation_provider.journal.tables import Base, ListedRow, SessionRow, TransitionRow
from airflow_mediation_provider.journal.transaction import JournalUnavailable, read
from airflow_mediation_provider.protocol.maintenance import missing
from airflow_mediation_provider.protocol.sessions.journal_entry import EntryKind
from airflow_mediation_provider.protocol.sessions.window import WindowReport
from airflow_mediation_provider.protocol.status import RunType
from airflow_mediation_provider.protocol.transition import Source

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterable, Mapping, Sequence

    from sqlalchemy import ColumnElement, Executable, Result, Row, Select
    from sqlalchemy.orm import InstrumentedAttribute, Session

    from airflow_mediation_provider.protocol.maintenance import ReconcileRequest
    from airflow_mediation_provider.protocol.sessions.journal_entry import JournalEntry
    from airflow_mediation_provider.protocol.sessions.lifecycle import SessionState
    from airflow_mediation_provider.protocol.transition import SessionTransition
    from airflow_mediation_provider.protocol.wire import MeterQuestion


# SQLite takes 32,766 values in a statement, and PostgreSQL plans long lists slowly.
_CHUNK: Final = 500
# Later than any row, and accepted by every database.
_EVER: Final = datetime(9000, 1, 1, tzinfo=UTC)
# A wait without a session id is for the first session of its run type after ``since``; this many are returned, not all
# of years. For each run type, since any number of tests may come before the first live run.
_FIRST_SESSIONS: Final = 20
# Zuora runs at most five meters at once; a session that is live for longer than these has lost its end.
_LIVE_AT_MOST: Final = 50
# Longer than a month, for meters that run monthly; an older callout proves little of how callouts arrive now.
_CALLOUTS_BEFORE: Final = timedelta(days=35)
# Before any callout, and late enough that subtracting from it does not overflow.
_BEFORE_ALL: Final = datetime(2000, 1, 1, tzinfo=UTC)

# The statements that the feed runs again and again are built once: building takes longer than running.
_OF_METER: Final = and_(SessionRow.conn_id == bindparam("conn_id"), SessionRow.meter_id == bindparam("meter_id"))
# Without the ORM: of most rows only the revision is read, and their number decides what a reply costs.
_ROW: Final = Base.metadata.tables[SessionRow.__tablename__].c
_OF_CONNECTION: Final = and_(_ROW.conn_id == bindparam("conn_id"), _ROW.reported.is_(True))
_VERSION_OF_ROW: Final = (_ROW.id, _ROW.meter_id, _ROW.session_id, _ROW.revision)
# Few of the starts are needed, by ``_utc``.
_BEGUN_AT: Final = type_coerce(_ROW.begun_at, TIMESTAMP(timezone=True)).label("begun_at")
_NAMED: Final = select(*_VERSION_OF_ROW).where(
    _OF_CONNECTION, _ROW.session_id.in_(bindparam("session_ids", expanding=True))
)
_STATES: Final = select(*(_ROW[name] for name in STATE_COLUMNS), cast(_ROW.transition, Text).label("transition")).where(
    _ROW.id.in_(bindparam("ids", expanding=True))
)
# So many meters or names share a statement, which is built once for each number: building takes longer than running.
_OF_STATEMENT: Final = (1, 5, 20)
# A question for many meters lets the process's other threads work between its statements: to take turns by themselves,
# they wait for 5 ms each time.
_UNINTERRUPTED: Final = 8
_BREATH_SECONDS: Final = 0.0005
# No zone is farther from UTC, and a callout that is sent again arrives within these as well.
_WRONG_ZONE: Final = timedelta(hours=16)
_VERSIONS: Final = select(SessionRow.id, SessionRow.revision).where(SessionRow.updated_at >= bindparam("since"))
_CALLOUTS: Final = (
    select(TransitionRow.created_at)
    .where(
        TransitionRow.conn_id == bindparam("conn_id"),
        TransitionRow.kind == EntryKind.STATUS_CHANGE,
        TransitionRow.created_at >= bindparam("after"),
        TransitionRow.created_at < bindparam("before"),
        TransitionRow.source == bindparam("source"),
    )
    .order_by(TransitionRow.created_at.desc())
    .limit(1)
)
_RECEIVED: Final = (
    select(SessionRow.session_id)
    .where(
        _OF_METER,
        SessionRow.first_observed_at >= bindparam("since"),
        SessionRow.first_observed_at < bindparam("before"),
    )
    .limit(1)
)

# MySQL ends a recursive query with an error after a thousand steps.
_STEPS: Final = 900
_IDS: Final = ("meter_id", "session_id")
# Of the open sessions, those with the latest reports; more would not help the user.
MOST_OPEN: Final = 200


@dataclass(frozen=True, slots=True)
class SessionChange:
    """A session's state and its revision."""

    row_id: int
    revision: int
    conn_id: str
    state: SessionState


class StoredState(NamedTuple):
    """A session's state as it is stored, for a reply.

    :param revision: counts the versions of the state
    :param json: a ``SessionState`` as JSON
    """

    meter_id: str
    session_id: str
    revision: int
    json: str


def known_sessions(
    session: Session, conn_id: str, meters: Mapping[str, MeterQuestion], *, deadline: float = math.inf
) -> list[StoredState]:
    """Return the present state of what a feed request is for: named sessions, live ones, the first after each instant.

    Only what differs from what the asker has. A named session that Zuora did not report for its meter is returned for
    each meter for which Zuora reported it.

    :param deadline: by when all must be read, in ``time.monotonic()``
    :raises JournalUnavailable: it takes longer
    """
    statements = count(1)

    def read_on(query: Executable, **parameters: Any) -> Result[Any]:
        if time.monotonic() > deadline:
            raise JournalUnavailable("the question takes too long: ask for fewer meters and instants")
        if next(statements) > _UNINTERRUPTED:
            time.sleep(_BREATH_SECONDS)
        return session.execute(query, {"conn_id": conn_id, **parameters})

    # Row id -> whether the asker has this version.
    found: dict[int, bool] = {}
    revisions = {meter_id: question.known for meter_id, question in meters.items()}

    def add(version: Sequence[Any], *, known: bool = True) -> None:
        row_id, meter_id, session_id, revision = version
        known = known and meter_id in revisions and revisions[meter_id].get(session_id) == revision
        found[row_id] = known and found.get(row_id, True)

    named: dict[str, list[Row[Any]]] = defaultdict(list)
    for chunk in _chunks(sorted({session_id for question in meters.values() for session_id in question.sessions})):
        for row in read_on(_NAMED, session_ids=chunk):
            named[row.session_id].append(row)
    for meter_id, question in meters.items():
        for session_id in question.sessions:
            of_meter = [version for version in named[session_id] if version.meter_id == meter_id]
            for version in of_meter or named[session_id]:
                # States of other meters are for the waits of this one, whatever the asker has of those meters.
                add(version, known=bool(of_meter))
    live = collect(read_on, _live, [{"meter": meter_id} for meter_id in meters])
    for row in chain(live, _collect_first(read_on, meters), _collect_passed_over(read_on, meters)):
        add(row[:4])
    wanted = [row_id for row_id, known in found.items() if not known]
    return [_stored(row) for chunk in _chunks(wanted) for row in read_on(_STATES, ids=chunk)]


def _stored(row: Row[Any]) -> StoredState:
    values = json.dumps(state_values(row), separators=(",", ":"))
    return StoredState(row.meter_id, row.session_id, row.revision, f'{values[:-1]},"transition":{row.transition}}}')


def changed_since(session: Session, since: datetime, known: Mapping[int, int]) -> list[SessionChange]:
    """Return the sessions of all connections that were written since then in a revision that is not known yet.

    :param since: with an overlap: a transaction may commit later than it wrote
    :param known: row id -> revision, of the changes that were returned already
    """
    versions = session.execute(_VERSIONS, {"since": since})
    new = [row_id for row_id, revision in versions if known.get(row_id) != revision]
    rows = [
        row
        for chunk in _chunks(new)
        for row in session.scalars(
            select(SessionRow).where(SessionRow.id.in_(chunk)).execution_options(populate_existing=True)
        )
    ]
    return [SessionChange(row.id, row.revision, row.conn_id, state_of(row)) for row in rows]


def last_callout_at(
    session: Session,
    conn_id: str,
    after: datetime,
    before: datetime | None = None,
    source: Source = Source.CALLOUT,
) -> datetime | None:
    """Return when the last parsed callout of a connection was received, ``None`` if none was in that time.

    :param source: how it was received: itself, or by the callout history
    """
    span = {"after": after, "before": before or _EVER}
    return session.scalar(_CALLOUTS, {"conn_id": conn_id, **span, "source": source})


def passed_windows(
    session: Session, conn_id: str, meters: Mapping[str, MeterQuestion], now: datetime, source: Source = Source.CALLOUT
) -> list[WindowReport]:
    """Return what was received within each requested window that has passed.

    :param now: the time now
    :param source: how changes are received: as callouts, or by the callout history
    """
    return [
        WindowReport(
            meter_id=meter_id,
            window=window,
            callouts_before=_last_before(session, conn_id, window.since, source) is not None,
            received=session.scalar(_RECEIVED, {"conn_id": conn_id, "meter_id": meter_id, **window._asdict()}),
        )
        for meter_id, question in meters.items()
        for window in sorted(question.windows)
        if window.before <= now
    ]


def distinct_values(
    column: InstrumentedAttribute[str], first: str = "", most: int = _STEPS, where: ColumnElement[bool] | None = None
) -> Select[Any]:
    """Return the query for the values of an index's first column, or of the next one, in steps.

    A million rows have a handful of them.

    :param first: leave out the values before this one
    :param most: how many values, at most; each is a step
    :param where: the values of the columns before it in the index
    """
    start = select(func.min(column).label("value"), literal(1).label("step"))
    following = select(func.min(column))
    if where is not None:
        start, following = start.where(where), following.where(where)
    steps = (start.where(column >= first) if first else start).cte(recursive=True)
    value = following.where(column > steps.c.value).correlate(steps).scalar_subquery()
    onward = (steps.c.value.is_not(None), steps.c.step < most)
    steps = steps.union_all(select(value, steps.c.step + 1).where(*onward))
    return select(steps.c.value).where(steps.c.value.is_not(None))


def without_index(column: Any) -> ColumnElement[Any]:
    """Return a column such that no index applies, where another condition leads to the rows.

    SQLite has no statistics about how often a value occurs, and uses any index that fits.
    """
    return func.coalesce(column, column)


def of_session_ids(conn_id: str, session_ids: Collection[str]) -> ColumnElement[bool]:
    """Return the condition that a session has one of some ids, of whichever meter, found by the index of these ids.

    An index that has all columns of a query would seem better to SQLite, even if it leads to all sessions of the
    connection: so one column that is in no index is compared too.
    """
    row = ListedRow
    return and_(row.conn_id == conn_id, row.session_id.in_(session_ids), row.revision >= 0)


def _last_before(session: Session, conn_id: str, since: datetime, source: Source) -> datetime | None:
    return last_callout_at(session, conn_id, max(since, _BEFORE_ALL) - _CALLOUTS_BEFORE, since, source)


_CHANGE: Final = Base.metadata.tables[TransitionRow.__tablename__]
_CHANGES: Final = select(*CHANGE_COLUMNS).where(
    *of_session(_CHANGE),
    # SQLite would use the index of kinds, and with it all rows of the connection.
    without_index(_CHANGE.c.kind) == EntryKind.STATUS_CHANGE,
)


def transitions(session: Session, conn_id: str, sessions: Iterable[tuple[str, str]]) -> list[SessionTransition]:
    """Return all status changes that were reported for some sessions.

    :param sessions: meter and session ids
    """
    found = []
    for meter_id, session_id in sessions:
        rows = session.execute(_CHANGES, {"conn_id": conn_id, "meter_id": meter_id, "session_id": session_id})
        found += [transition_of(row) for row in rows]
    return found


def silent_sessions(session: Session, conn_id: str, before: datetime) -> list[SessionState]:
    """Return the sessions without a reported end of which no report was received since then."""
    return [
        state_of(row)
        for row in session.scalars(
            select(SessionRow)
            .where(
                SessionRow.terminal.is_(False),
                SessionRow.last_observed_at < before,
                SessionRow.conn_id == conn_id,
            )
            .order_by(SessionRow.last_observed_at)
        )
    ]


def _collect_first(read_on: Callable[..., Result[Any]], meters: Mapping[str, MeterQuestion]) -> Iterable[Any]:
    """Yield the first sessions after each instant; of a thousand instants, most are covered by another one's page."""
    left = {meter_id: sorted(question.since, reverse=True) for meter_id, question in meters.items() if question.since}
    page = _FIRST_SESSIONS if all(len(instants) == 1 for instants in left.values()) else 2 * _FIRST_SESSIONS
    while left:
        asked = [{"meter": meter_id, "since": instants.pop()} for meter_id, instants in left.items()]
        begun: dict[tuple[str, str], list[datetime]] = defaultdict(list)
        for row in collect(read_on, _first, asked, page=page):
            begun[row.meter_id, row.run_type].append(row.begun_at)
            yield row
        for meter_id, instants in list(left.items()):
            pages = [begun[meter_id, run_type] for run_type in RunType]
            while instants and all(len(of) < page or _utc(of[-_FIRST_SESSIONS]) >= instants[-1] for of in pages):
                instants.pop()
            if not instants:
                del left[meter_id]


def _collect_passed_over(read_on: Callable[..., Result[Any]], meters: Mapping[str, MeterQuestion]) -> Iterable[Any]:
    """Yield sessions that began before an instant and were first received after it.

    A start that was written in another zone than it was read in does this, and a wait logs it. Of many instants the
    latest is enough for that.
    """
    latest = {meter_id: max(question.since) for meter_id, question in meters.items() if question.since}
    asked = [
        {"meter": meter_id, "since": since, "until": min(since, _EVER) + _WRONG_ZONE}
        for meter_id, since in latest.items()
    ]
    for row in collect(read_on, _received_after, asked):
        if _utc(row.begun_at) < latest[row.meter_id]:
            yield row


def _utc(begun_at: datetime) -> datetime:
    """Return a start as an instant: SQLite and MySQL store it without its zone."""
    return begun_at.astimezone(UTC) if begun_at.tzinfo else begun_at.replace(tzinfo=UTC)


def collect(
    read_on: Callable[..., Result[Any]],
    part: Callable[[int], Iterable[Select[Any]]],
    asked: Sequence[Mapping[str, Any]],
    **parameters: Any,
) -> Iterable[Any]:
    """Yield the rows of the same queries with different parameters, many in a statement.

    :param read_on: executes a statement with parameters; the rows have an ``id``
    :param part: makes the queries, whose parameters end with a number; always the same function, as statements are kept
    :param asked: the parameters of each, a meter for example
    :param parameters: those that all have
    """
    most = _OF_STATEMENT[-1]
    for start in range(0, len(asked), most):
        chunk = asked[start : start + most]
        size = next(size for size in _OF_STATEMENT if size >= len(chunk))
        # The last one fills the statement up: its rows are the same again.
        each = [*chunk, *[chunk[-1]] * (size - len(chunk))]
        numbered = {f"{name}{number}": value for number, of in enumerate(each) for name, value in of.items()}
        rows = read_on(_in_one(part, size), **numbered, **parameters).all()
        yield from {row.id: row for row in rows}.values() if size > len(chunk) else rows


@cache
def _in_one(part: Callable[[int], Iterable[Select[Any]]], size: int) -> Executable:
    """Return one statement for so many, a meter each for example."""
    return union_all(*(select(query.subquery()) for number in range(size) for query in part(number)))


def _of(number: int, *which: ColumnElement[bool]) -> Select[Any]:
    columns = (*_VERSION_OF_ROW, _ROW.run_type, _BEGUN_AT)
    return select(*columns).where(_OF_CONNECTION, _ROW.meter_id == bindparam(f"meter{number}"), *which)


def _live(number: int) -> Iterable[Select[Any]]:
    yield _of(number, _ROW.terminal.is_(False)).order_by(_ROW.begun_at.desc()).limit(_LIVE_AT_MOST)


def _first(number: int) -> Iterable[Select[Any]]:
    for run_type in RunType:
        first = _of(number, _ROW.run_type == str(run_type), _ROW.begun_at >= bindparam(f"since{number}"))
        yield first.order_by(_ROW.begun_at, _ROW.session_id).limit(bindparam("page", type_=Integer))


def _received_after(number: int) -> Iterable[Select[Any]]:
    # Without the start: there is an index for each of the two times, and before ``since`` are all sessions of years.
    after = _of(
        number,
        _ROW.first_observed_at >= bindparam(f"since{number}"),
        _ROW.first_observed_at < bindparam(f"until{number}"),
    )
    yield after.order_by(_ROW.first_observed_at.desc()).limit(_FIRST_SESSIONS)


def _chunks(items: Sequence[Any]) -> Iterable[Sequence[Any]]:
    return (items[start : start + _CHUNK] for start in range(0, len(items), _CHUNK))


def compare(request: ReconcileRequest, *, conn_id: str) -> tuple[list[JournalEntry], list[SessionState]]:
    """Return the entries of a request that the journal does not have, and the requested open sessions; writes nothing.

    A callout that arrives meanwhile is reported twice if the session's statuses form a cycle. The session then counts
    as ambiguous, which has no worse effect than a lost callout: it ends no wait.

    :param request: with all entries that Zuora's history has for each of its sessions
    :param conn_id: the connection
    :raises JournalUnavailable: the journal cannot be read
    """
    named = {(str(entry.meter_id), str(entry.session_id)) for entry in request.entries}
    sessions = sorted(each for each in named if not why_unfit(TransitionRow, dict(zip(_IDS, each, strict=True))))

    def work(session: Session) -> tuple[list[SessionTransition], list[SessionState]]:
        silent = [] if request.open_before is None else silent_sessions(session, conn_id, request.open_before)
        return transitions(session, conn_id, sessions), silent

    known, silent = read(work)
    lost = missing(request.entries, known, continuous=request.continuous)
    return [each for each in lost if request.before is None or each.observed_at < request.before], silent[-MOST_OPEN:]
