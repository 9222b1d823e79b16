"""The sessions to which a text leads: the start of an id or of a name, found by the indexes of these.

Each kind of id is read from its index: a limited number of entries that do not sort before the text, in the database's
own order. In every such order, those that start with the text come first.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final, NamedTuple

from airflow.models.asset import AssetModel, DagScheduleAssetReference
from airflow.models.dagrun import DagRun
from sqlalchemy import func, or_, select, true, union_all

from airflow_mediation_provider.journal.queries import distinct_values
from airflow_mediation_provider.journal.session_list import SessionKey, known_connections
from airflow_mediation_provider.journal.session_search import Alternative
from airflow_mediation_provider.journal.tables import ListedRow, MeterRow, TransitionRow, WaitRow
from airflow_mediation_provider.journal.triggered_runs import sessions_of_runs
from airflow_mediation_provider.protocol.sessions.asset_uri import SCHEME

if TYPE_CHECKING:
    from collections.abc import Collection, Iterator

    from sqlalchemy import ColumnElement, Select
    from sqlalchemy.orm import Session

    from airflow_mediation_provider.journal.session_search import Condition

MOST: Final = 200
"""So many sessions of one kind of id are found."""
_METERS: Final = 20
_CONNECTIONS: Final = 50
_DAGS: Final = 100
_KEY: Final = tuple(getattr(ListedRow, name) for name in SessionKey._fields)


class Found(NamedTuple):
    """The sessions to which a text leads.

    :param condition: which they are
    :param limited: whether there are more than are found
    """

    condition: Condition
    limited: bool


class Dags(NamedTuple):
    """Dags by which sessions can be found.

    :param waiting: those with a task about a session
    :param triggered: those that sessions trigger
    :param limited: whether there are more than these
    """

    waiting: frozenset[str]
    triggered: frozenset[str]
    limited: bool = False


def dags_of_sessions(session: Session) -> Dags:
    """Return the Dags by which sessions can be found."""
    reference = DagScheduleAssetReference
    scheduled = select(reference.dag_id).join(AssetModel, AssetModel.id == reference.asset_id)
    ours = scheduled.where(AssetModel.uri.startswith(f"{SCHEME}://", autoescape=True)).distinct()
    waiting = session.scalars(distinct_values(WaitRow.dag_id, most=_DAGS + 1)).all()
    triggered = session.scalars(ours.limit(_DAGS + 1)).all()
    limited = max(len(waiting), len(triggered)) > _DAGS
    return Dags(frozenset(waiting[:_DAGS]), frozenset(triggered[:_DAGS]), limited)


def find(session: Session, text: str, dags: Dags) -> Found:
    """Return the sessions of which an id starts with a text: their own, or of a meter, Dag, run or notification.

    The name of a meter, in upper or lower case, counts as its id.

    :param dags: those by which the user may find sessions
    """
    conn_ids = known_connections(session)[:_CONNECTIONS]
    alternatives, limited = _meters(session, text)
    spelled = {text, text.upper()}
    own = [
        _starting((ListedRow.id,), ListedRow.session_id, each, ListedRow.conn_id == conn_id)
        for conn_id in conn_ids
        for each in spelled
    ]
    ids = set(session.scalars(union_all(*own))) if own else set()
    if len(ids) > MOST:
        # With so many matches, some are among the newest sessions.
        starts = (ListedRow.session_id.startswith(each, autoescape=True) for each in spelled)
        alternatives.append(Alternative({}, (or_(*starts),)))
        ids.clear()
    parts = [*_of_waits(text, dags.waiting)]
    parts += [
        _starting(_columns(TransitionRow), TransitionRow.notification_id, text, TransitionRow.conn_id == conn_id)
        for conn_id in conn_ids
    ]
    keys = {SessionKey(*row) for row in session.execute(union_all(*parts))} if parts else set()
    runs = [*_of_runs(text, dags.triggered)]
    run_ids = set(session.scalars(union_all(*runs))) if runs else set()
    keys.update(sessions_of_runs(session, DagRun.id.in_(run_ids)) if run_ids else ())
    limited |= dags.limited or len(keys) > MOST or len(run_ids) > MOST
    ids.update(_numbers(session, sorted(keys, reverse=True)[:MOST]))
    if ids or not alternatives:
        alternatives.append(Alternative({"id": tuple(ids)}))
    return Found(tuple(alternatives), limited)


def _numbers(session: Session, keys: Collection[SessionKey]) -> Iterator[int]:
    # By one connection after the other: of three columns together, SQLite compares all sessions with the keys.
    for conn_id in {key.conn_id for key in keys}:
        of_ids = ListedRow.session_id.in_([key.session_id for key in keys if key.conn_id == conn_id])
        for number, *key in session.execute(select(ListedRow.id, *_KEY).where(ListedRow.conn_id == conn_id, of_ids)):
            if SessionKey(*key) in keys:
                yield number


def _meters(session: Session, text: str) -> tuple[list[Alternative], bool]:
    named = func.lower(MeterRow.name).startswith(text.lower(), autoescape=True)
    by_name = select(MeterRow.conn_id, MeterRow.meter_id).where(named).limit(_METERS + 1)
    by_id = distinct_values(ListedRow.meter_id, text, _METERS + 1)
    ids = [each for each in session.scalars(by_id) if each.startswith(text)]
    names = [row._mapping for row in session.execute(by_name) if row.meter_id not in ids]
    found = [*(Alternative({"meter_id": each}) for each in ids), *(Alternative(dict(each)) for each in names)]
    return found[:_METERS], len(found) > _METERS


def _of_waits(text: str, dag_ids: Collection[str]) -> Iterator[Select[Any]]:
    """Return the tasks of Dags that start with the text, and those of runs that do."""
    for dag_id in sorted(dag_ids):
        of_dag = WaitRow.dag_id == dag_id
        if dag_id.startswith(text):
            # The ids of runs have their time.
            newest = select(*_columns(WaitRow)).where(of_dag).order_by(WaitRow.run_id.desc()).limit(MOST + 1).subquery()
            yield select(*newest.c).where(newest.c.session_id.is_not(None))
        else:
            yield _starting(_columns(WaitRow), WaitRow.run_id, text, of_dag)


def _of_runs(text: str, dag_ids: Collection[str]) -> Iterator[Select[Any]]:
    for dag_id in sorted(dag_ids):
        of_dag = DagRun.dag_id == dag_id
        if dag_id.startswith(text):
            newest = select(DagRun.id).where(of_dag).order_by(DagRun.run_id.desc()).limit(MOST + 1).subquery()
            yield select(newest.c.id)
        else:
            yield _starting((DagRun.id,), DagRun.run_id, text, of_dag)


def _columns(table: Any) -> tuple[Any, ...]:
    return tuple(getattr(table, name) for name in SessionKey._fields)


def _starting(columns: tuple[Any, ...], name: Any, text: str, where: ColumnElement[bool]) -> Select[Any]:
    """Return the query for rows whose name starts with a text, of those that an index has from the text on."""
    entries = select(*columns, name.label("name")).where(where, name >= text).order_by(name).limit(MOST + 1).subquery()
    known = entries.c.session_id.is_not(None) if "session_id" in entries.c else true()
    own = [entries.c[column.key] for column in columns]
    return select(*own).where(entries.c.name.startswith(text, autoescape=True), known)
