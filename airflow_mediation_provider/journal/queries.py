"""What is asked of the journal; each question has an index, and none of them holds a transaction open."""

from __future__ import annotations

from bisect import bisect_left
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, Final

from sqlalchemy import Integer, and_, bindparam, select, union_all

from airflow_mediation_provider.journal.rows import TOLD, state_of, transition_of
from airflow_mediation_provider.journal.tables import SessionRow, TransitionRow
from airflow_mediation_provider.protocol.entry import EntryKind
from airflow_mediation_provider.protocol.status import RunType
from airflow_mediation_provider.protocol.transition import Source

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from sqlalchemy import Executable
    from sqlalchemy.orm import Session

    from airflow_mediation_provider.protocol.feed import MeterQuestion
    from airflow_mediation_provider.protocol.lifecycle import SessionState
    from airflow_mediation_provider.protocol.transition import SessionTransition

# SQLite takes 32,766 values in a statement, and PostgreSQL plans long lists slowly.
_CHUNK: Final = 500
# No row is of after this, and every database takes it.
_EVER: Final = datetime(9000, 1, 1, tzinfo=UTC)
# A wait without a session id is about the first session of its run type after ``since``: these, not all of years. Of
# each run type, for of tests there may be any number before the first live run.
_FIRST_SESSIONS: Final = 20
# Zuora runs at most five meters at once; what is live for longer than this was lost sight of.
_LIVE_AT_MOST: Final = 50

# What the feed asks for again and again is put together once: that takes longer than the answer.
_OF_METER: Final = and_(SessionRow.conn_id == bindparam("conn_id"), SessionRow.meter_id == bindparam("meter_id"))
_NAMED: Final = select(SessionRow).where(_OF_METER, SessionRow.session_id.in_(bindparam("session_ids", expanding=True)))
_LIVE: Final = (
    select(SessionRow)
    .where(_OF_METER, SessionRow.terminal.is_(False))
    .order_by(SessionRow.begun_at.desc())
    .limit(_LIVE_AT_MOST)
)
_FIRST: Final = select(SessionRow).from_statement(
    union_all(
        *(
            select(
                select(SessionRow)
                .where(_OF_METER, SessionRow.run_type == str(run_type), SessionRow.begun_at >= bindparam("since"))
                .order_by(SessionRow.begun_at, SessionRow.session_id)
                .limit(bindparam("page", type_=Integer))
                .subquery()
            )
            for run_type in RunType
        )
    )
)
_VERSIONS: Final = select(SessionRow.id, SessionRow.revision).where(SessionRow.updated_at >= bindparam("since"))
_CALLOUTS: Final = (
    select(TransitionRow.created_at)
    .where(
        TransitionRow.conn_id == bindparam("conn_id"),
        TransitionRow.kind == EntryKind.STATUS_CHANGE,
        TransitionRow.created_at >= bindparam("after"),
        TransitionRow.created_at < bindparam("before"),
        TransitionRow.source == Source.CALLOUT,
    )
    .order_by(TransitionRow.created_at.desc())
    .limit(1)
)


@dataclass(frozen=True, slots=True)
class Change:
    """A session's state, with what tells one version of it from the next."""

    row_id: int
    revision: int
    conn_id: str
    state: SessionState


def answer(session: Session, conn_id: str, meters: Mapping[str, MeterQuestion]) -> list[SessionState]:
    """Return the present state of what a feed asks for: named sessions, live ones, the first after each instant."""
    rows: dict[int, SessionRow] = {}
    for meter_id, question in meters.items():
        of_meter = {"conn_id": conn_id, "meter_id": meter_id}
        for chunk in _chunks(sorted(question.sessions)):
            _collect(rows, session, _NAMED, {**of_meter, "session_ids": chunk})
        _collect(rows, session, _LIVE, of_meter)
        _collect_first(rows, session, of_meter, question.since)
    return [state_of(row) for row in rows.values()]


def changed_since(session: Session, since: datetime, known: Mapping[int, int]) -> list[Change]:
    """Return the sessions, of any connection, that were written since then in a version that is not known yet.

    :param since: the overlap reaches back so far: a transaction may commit later than it wrote
    :param known: row id -> revision, of what was handed out already
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
    return [Change(row.id, row.revision, row.conn_id, state_of(row)) for row in rows]


def last_callout_at(session: Session, conn_id: str, after: datetime, before: datetime | None = None) -> datetime | None:
    """Return when the last callout that could be read came over a connection, ``None`` where none came in that time."""
    return session.scalar(_CALLOUTS, {"conn_id": conn_id, "after": after, "before": before or _EVER})


def transitions(session: Session, conn_id: str, sessions: Iterable[tuple[str, str]]) -> list[SessionTransition]:
    """Return all that was told of some sessions.

    :param sessions: meter and session ids
    """
    found = []
    for meter_id, session_id in sessions:
        of_session = {"conn_id": conn_id, "meter_id": meter_id, "session_id": session_id}
        rows = session.execute(select(*TOLD).filter_by(**of_session, kind=str(EntryKind.STATUS_CHANGE)))
        found += [transition_of(row) for row in rows]
    return found


def silent_sessions(session: Session, conn_id: str, before: datetime) -> list[SessionState]:
    """Return the sessions that are not known to have ended, and of which nothing was told since then."""
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


def _collect_first(
    rows: dict[int, SessionRow], session: Session, of_meter: Mapping[str, str], instants: Iterable[datetime]
) -> None:
    """Collect the first sessions after each instant; of a thousand instants, most are served by another one's page."""
    ordered = sorted(instants)
    page = _FIRST_SESSIONS if len(ordered) == 1 else 2 * _FIRST_SESSIONS
    begun: list[list[datetime]] = []
    for since in ordered:
        if begun and all(len(of) < page or len(of) - bisect_left(of, since) >= _FIRST_SESSIONS for of in begun):
            continue
        found = _collect(rows, session, _FIRST, {**of_meter, "since": since, "page": page})
        begun = [[row.begun_at for row in found if row.run_type == run_type] for run_type in RunType]


def _collect(
    rows: dict[int, SessionRow], session: Session, query: Executable, parameters: Mapping[str, Any]
) -> Sequence[SessionRow]:
    found = session.scalars(query, parameters).all()
    rows.update((row.id, row) for row in found)
    return found


def _chunks(items: Sequence[Any]) -> Iterable[Sequence[Any]]:
    return (items[start : start + _CHUNK] for start in range(0, len(items), _CHUNK))
