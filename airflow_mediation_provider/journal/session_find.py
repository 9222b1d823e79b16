"""The sessions to which a text leads: the start of an id or of a name, found by the indexes of these.

Each kind of id is read from its index: a limited number of entries that do not sort before the text, in the database's
own order. Those that start with the text come first, in PostgreSQL's linguistic orders in turns with those that differ
from it in case alone: these count towards the limit, so none is left out without notice.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final, NamedTuple

from airflow.models.asset import AssetModel, DagScheduleAssetReference
from airflow.models.dagrun import DagRun
from sqlalchemy import Integer, bindparam, func, or_, select, true

from airflow_mediation_provider.journal.queries import collect, distinct_values, of_session_ids
from airflow_mediation_provider.journal.session_list import SessionKey, known_connections
from airflow_mediation_provider.journal.session_search import Alternative
from airflow_mediation_provider.journal.tables import ListedRow, MeterRow, TransitionRow, WaitRow
from airflow_mediation_provider.journal.triggered_runs import sessions_of_runs
from airflow_mediation_provider.protocol.sessions.asset_uri import SCHEME

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence

    from sqlalchemy import ColumnElement, Executable, Result, Select
    from sqlalchemy.orm import Session

    from airflow_mediation_provider.journal.session_search import Condition

    _Part = Callable[[int], Iterator[Select[Any]]]

MOST: Final = 200
"""So many sessions of one kind of id are found."""
_METERS: Final = 20
_CONNECTIONS: Final = 50
_DAGS: Final = 100


def _columns(table: Any) -> tuple[Any, ...]:
    return tuple(getattr(table, name) for name in SessionKey._fields)


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
    own, many = _exact(_starting(session, _SESSIONS, [(conn_id, each) for conn_id in conn_ids for each in spelled]))
    ids = {row.id for row in own}
    if many:
        # With so many matches, some are among the newest sessions.
        starts = (ListedRow.session_id.startswith(each, autoescape=True) for each in spelled)
        alternatives.append(Alternative({}, (or_(*starts),)))
        ids.clear()
    notified, more_notified = _exact(_starting(session, _NOTIFICATIONS, [(conn_id, text) for conn_id in conn_ids]))
    waits, more_waits = _exact(_of_dags(session, _WAITS, _NEWEST_WAITS, text, dags.waiting))
    runs, more_runs = _exact(_of_dags(session, _RUNS, _NEWEST_RUNS, text, dags.triggered))
    keys = {SessionKey(row.conn_id, row.meter_id, row.session_id) for row in (*notified, *waits)}
    keys.update(sessions_of_runs(session, DagRun.id.in_({row.id for row in runs})) if runs else ())
    limited |= dags.limited or len(keys) > MOST or more_notified or more_waits or more_runs
    ids.update(_numbers(session, sorted(keys, reverse=True)[:MOST]))
    if ids or not alternatives:
        alternatives.append(Alternative({"id": tuple(ids)}))
    return Found(tuple(alternatives), limited)


def _exact(rows: Iterable[Any]) -> tuple[list[Any], bool]:
    """Return the rows that have the text as it is written, and whether there may be more than were read."""
    near = {row.id: row for row in sorted(rows, key=lambda row: bool(row.exact))}
    return [row for row in near.values() if row.exact], len(near) > MOST


def _numbers(session: Session, keys: Collection[SessionKey]) -> Iterator[int]:
    # By one connection after the other: of three columns together, SQLite compares all sessions with the keys.
    for conn_id in {key.conn_id for key in keys}:
        of_ids = of_session_ids(conn_id, [key.session_id for key in keys if key.conn_id == conn_id])
        for number, *key in session.execute(select(ListedRow.id, *_columns(ListedRow)).where(of_ids)):
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


def _of_dags(session: Session, starting: _Part, newest: _Part, text: str, dag_ids: Collection[str]) -> Iterator[Any]:
    """Yield the rows of Dags that start with a text, and those of runs that do."""
    yield from _collected(session, newest, [{"within": each} for each in sorted(dag_ids) if each.startswith(text)])
    yield from _starting(session, starting, [(each, text) for each in sorted(dag_ids) if not each.startswith(text)])


def _starting(session: Session, part: _Part, asked: Iterable[tuple[str, str]]) -> Iterable[Any]:
    """Return the rows whose name starts with a text.

    :param asked: within what, and the text
    """

    def start(text: str) -> str:
        return text.replace("/", "//").replace("%", "/%").replace("_", "/_")

    return _collected(session, part, [{"within": each, "text": text, "start": start(text)} for each, text in asked])


def _collected(session: Session, part: _Part, asked: Sequence[Mapping[str, str]]) -> Iterable[Any]:
    def execute(statement: Executable, **parameters: Any) -> Result[Any]:
        return session.execute(statement, parameters)

    return collect(execute, part, asked, most=MOST + 1)


def _by_name(name: Any, within: Any, *columns: Any, newest: bool = False) -> _Part:
    """Return what makes a query for rows by an index of their names within a connection or a Dag.

    :param name: the indexed name; its index has it after ``within``
    :param within: the connection or the Dag
    :param columns: what the rows have besides their id
    :param newest: take those with the last names, instead of those whose name starts with a text
    """

    def part(number: int) -> Iterator[Select[Any]]:
        entries = select(name.class_.id, *columns, name.label("name")).where(within == bindparam(f"within{number}"))
        entries = entries.order_by(name.desc() if newest else name).limit(bindparam("most", type_=Integer))
        if not newest:
            entries = entries.where(name >= bindparam(f"text{number}"))
        of = entries.subquery().c
        start: ColumnElement[str] = bindparam(f"start{number}")
        exact = true() if newest else of.name.startswith(start, escape="/")
        near = true() if newest else func.lower(of.name).startswith(func.lower(start), escape="/")
        known = of.session_id.is_not(None) if "session_id" in of else true()
        yield select(*(each for each in of if each.key != "name"), exact.label("exact")).where(near, known)

    return part


_SESSIONS: Final = _by_name(ListedRow.session_id, ListedRow.conn_id)
_NOTIFICATIONS: Final = _by_name(TransitionRow.notification_id, TransitionRow.conn_id, *_columns(TransitionRow))
# The ids of runs have their time.
_WAITS: Final = _by_name(WaitRow.run_id, WaitRow.dag_id, *_columns(WaitRow))
_NEWEST_WAITS: Final = _by_name(WaitRow.run_id, WaitRow.dag_id, *_columns(WaitRow), newest=True)
_RUNS: Final = _by_name(DagRun.run_id, DagRun.dag_id)
_NEWEST_RUNS: Final = _by_name(DagRun.run_id, DagRun.dag_id, newest=True)
