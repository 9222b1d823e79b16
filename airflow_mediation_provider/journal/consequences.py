"""What came of sessions in Airflow: the DAG runs that they started, the DAGs that missed them, the tasks that waited.

Airflow's own tables tell the runs: an asset event names a session by its partition key, and a run names its events.
"""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass
from datetime import timedelta
from typing import TYPE_CHECKING, Any, Final, NamedTuple, TypeAlias

from airflow.models.asset import AssetEvent, AssetModel, DagScheduleAssetReference, association_table
from airflow.models.dag import DagModel
from airflow.models.dagrun import DagRun
from airflow.models.taskinstance import TaskInstance
from sqlalchemy import and_, false, func, or_, select

from airflow_mediation_provider.journal.listing import SessionKey, of_rows
from airflow_mediation_provider.journal.tables import WaitRow
from airflow_mediation_provider.journal.waits import TASK_OF_WAIT, goes_on
from airflow_mediation_provider.protocol.asset_uri import asset_uri, read_asset_uri
from airflow_mediation_provider.protocol.status import SessionStatus, is_news_for_dags

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Mapping, Sequence
    from datetime import datetime

    from sqlalchemy import ColumnElement
    from sqlalchemy.orm import Session

    from airflow_mediation_provider.journal.listing import Listed

# Of each session, and of each run: the first ones that it started, the last ones that waited.
_MOST: Final = 500
_CLOCKS: Final = timedelta(minutes=5)
# A run is made by the scheduler some seconds after the event; until then none is missing.
_SCHEDULED_WITHIN: Final = timedelta(minutes=1)


class StartedRun(NamedTuple):
    """A DAG run that a session started."""

    dag_id: str
    run_id: str
    state: str
    start_date: datetime | None
    end_date: datetime | None
    status: str


class Scheduled(NamedTuple):
    """A DAG that is scheduled on a status of a meter's sessions.

    :param since: when Airflow came to know the asset of that status; before, no session could start anything
    """

    dag_id: str
    status: str
    paused: bool
    since: datetime


@dataclass(frozen=True, slots=True, kw_only=True)
class Consumer:
    """A DAG that is scheduled on a status of a session.

    :param dag_id: the DAG
    :param status: the status
    :param paused: whether it is paused now; then it is started by nothing
    :param missed: whether the session came to the status after the DAG's asset was known, and the DAG has no run of it
        although the scheduler had the time to make one
    """

    dag_id: str
    status: str
    paused: bool
    missed: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Wait:
    """A task's wait, by the columns of its row.

    :param goes_on: whether it was not reported as ended, and Airflow knows that the task still waits
    """

    conn_id: str
    meter_id: str
    session_id: str | None
    condition: dict[str, Any]
    dag_id: str
    run_id: str
    task_id: str
    map_index: int
    try_number: int
    mode: str
    created_at: datetime
    until: datetime | None
    seen_at: datetime
    ended_at: datetime | None
    outcome: str | None
    goes_on: bool


_Assets: TypeAlias = "Mapping[tuple[str, str], dict[int, str]]"
_WAIT_COLUMNS: Final = tuple(getattr(WaitRow, name) for name in Wait.__slots__ if name != "goes_on")


def waits_of(session: Session, sessions: Sequence[Listed]) -> dict[SessionKey, list[Wait]]:
    """Return who waits or waited for some sessions, the last that began first."""
    waits: dict[SessionKey, list[Wait]] = defaultdict(list)
    for wait in _waits(session, of_rows(WaitRow, [each.id for each in sessions]), limit=None):
        waits[SessionKey(wait.conn_id, wait.meter_id, str(wait.session_id))].append(wait)
    return waits


def waits_of_run(session: Session, dag_id: str, run_id: str) -> list[Wait]:
    """Return the waits of a DAG run's tasks, the last that began first."""
    return _waits(session, and_(WaitRow.dag_id == dag_id, WaitRow.run_id == run_id))


def wait_of_task(session: Session, dag_id: str, run_id: str, task_id: str, map_index: int) -> Wait | None:
    """Return the wait of one task instance, the last one of several connections."""
    task = and_(WaitRow.dag_id == dag_id, WaitRow.run_id == run_id, WaitRow.task_id == task_id)
    return next(iter(_waits(session, and_(task, WaitRow.map_index == map_index))), None)


def _waits(session: Session, which: ColumnElement[bool], *, limit: int | None = _MOST) -> list[Wait]:
    order = (WaitRow.created_at.desc(), WaitRow.id)
    session_key = [getattr(WaitRow, name) for name in SessionKey._fields]
    number = func.row_number().over(partition_by=session_key, order_by=order).label("number")
    waits = (
        select(WaitRow.id, *_WAIT_COLUMNS, goes_on().label("goes_on"), number)
        .outerjoin(TaskInstance, TASK_OF_WAIT)
        .where(which)
        .subquery()
    )
    columns = [waits.c[name] for name in Wait.__slots__]
    query = select(*columns).where(waits.c.number <= _MOST).order_by(waits.c.created_at.desc(), waits.c.id)
    return [Wait(**row._mapping) for row in session.execute(query.limit(limit))]


def runs_started(session: Session, sessions: Sequence[Listed]) -> dict[SessionKey, list[StartedRun]]:
    """Return the DAG runs that some sessions started, the first first."""
    assets = _assets(session, {each.meter for each in sessions})
    numbered = (
        select(
            AssetEvent.asset_id,
            AssetEvent.partition_key,
            DagRun.id,
            DagRun.dag_id,
            DagRun.run_id,
            DagRun.state,
            DagRun.start_date,
            DagRun.end_date,
            func.row_number()
            .over(partition_by=(AssetEvent.asset_id, AssetEvent.partition_key), order_by=DagRun.id)
            .label("number"),
        )
        .join(association_table, association_table.c.event_id == AssetEvent.id)
        .join(DagRun, DagRun.id == association_table.c.dag_run_id)
        .where(_events(sessions, assets))
        .subquery()
    )
    runs: dict[SessionKey, list[StartedRun]] = defaultdict(list)
    places = _places(assets)
    query = select(numbered).where(numbered.c.number <= _MOST).order_by(numbered.c.id)
    for asset_id, session_id, _, dag_id, run_id, state, start, end, _ in session.execute(query):
        (conn_id, meter_id), status = places[asset_id]
        run = StartedRun(dag_id, run_id, str(state), start, end, status)
        runs[SessionKey(conn_id, meter_id, session_id)].append(run)
    return runs


def announced(session: Session, sessions: Sequence[Listed]) -> dict[SessionKey, set[str]]:
    """Return the statuses of which Airflow still has the events of some sessions.

    Of what ``airflow db clean`` has removed nobody can tell any more which DAG ran.
    """
    assets = _assets(session, {each.meter for each in sessions})
    query = select(AssetEvent.asset_id, AssetEvent.partition_key).where(_events(sessions, assets)).distinct()
    statuses: dict[SessionKey, set[str]] = defaultdict(set)
    places = _places(assets)
    for asset_id, session_id in session.execute(query):
        (conn_id, meter_id), status = places[asset_id]
        statuses[SessionKey(conn_id, meter_id, str(session_id))].add(status)
    return statuses


def _events(sessions: Sequence[Listed], assets: _Assets) -> ColumnElement[bool]:
    """Return the condition on Airflow's events of some sessions, those of one another among them.

    The index goes by asset and time. An event is written with the session's row, by the clock of another process.
    """
    around = (
        and_(
            AssetEvent.asset_id.in_(of_meter),
            AssetEvent.timestamp.between(each.first_observed_at - _CLOCKS, each.updated_at + _CLOCKS),
        )
        for each in sessions
        if (of_meter := assets.get(each.meter))
    )
    return and_(or_(false(), *around), AssetEvent.partition_key.in_({each.session_id for each in sessions}))


def scheduled(session: Session, meters: Collection[tuple[str, str]]) -> dict[tuple[str, str], list[Scheduled]]:
    """Return the DAGs that are scheduled on the sessions of some meters.

    :param meters: connection and meter
    """
    assets = _assets(session, meters)
    places = _places(assets)
    found: dict[tuple[str, str], list[Scheduled]] = defaultdict(list)
    if places:
        reference = DagScheduleAssetReference
        query = (
            select(reference.asset_id, DagModel.dag_id, DagModel.is_paused, reference.created_at)
            .join(DagModel, DagModel.dag_id == reference.dag_id)
            .where(reference.asset_id.in_(places), DagModel.is_stale.is_(False))
            .order_by(DagModel.dag_id, reference.asset_id)
        )
        for asset_id, dag_id, paused, since in session.execute(query):
            meter, status = places[asset_id]
            found[meter].append(Scheduled(dag_id, status, bool(paused), since))
    return found


def consumers(
    listed: Listed,
    scheduled: Iterable[Scheduled],
    runs: Iterable[StartedRun],
    announced: Collection[str],
    now: datetime,
) -> list[Consumer]:
    """Return what became of a session at each DAG that is scheduled on its meter.

    :param scheduled: of the function of that name
    :param runs: of ``runs_started``
    :param announced: of the function of that name
    :param now: the time now
    """
    has_run = {run.dag_id for run in runs}
    due = (
        not listed.ambiguous
        and is_news_for_dags(listed.run_type, listed.status)
        and listed.status in announced
        and now - listed.updated_at > _SCHEDULED_WITHIN
    )
    return [
        Consumer(
            dag_id=each.dag_id,
            status=each.status,
            paused=each.paused,
            missed=(
                due
                and each.status == listed.status
                and listed.last_observed_at > each.since
                and each.dag_id not in has_run
            ),
        )
        for each in scheduled
    ]


def sessions_of_run(session: Session, dag_id: str, run_id: str) -> list[SessionKey]:
    """Return the sessions that started a DAG run."""
    query = (
        select(AssetModel.uri, AssetEvent.partition_key)
        .join(AssetEvent, AssetEvent.asset_id == AssetModel.id)
        .join(association_table, association_table.c.event_id == AssetEvent.id)
        .join(DagRun, DagRun.id == association_table.c.dag_run_id)
        .where(DagRun.dag_id == dag_id, DagRun.run_id == run_id, AssetEvent.partition_key.is_not(None))
        .order_by(AssetEvent.id)
        .limit(_MOST)
    )
    keys: dict[SessionKey, None] = {}
    for uri, partition_key in session.execute(query):
        try:
            asset = read_asset_uri(uri)
        except ValueError:  # of somebody else
            continue
        keys[SessionKey(asset.conn_id, asset.meter_id, str(partition_key))] = None
    return list(keys)


def _places(assets: _Assets) -> dict[int, tuple[tuple[str, str], str]]:
    """Return what each asset is of: the meter and the status."""
    return {asset_id: (meter, status) for meter, of in assets.items() for asset_id, status in of.items()}


def _assets(session: Session, meters: Collection[tuple[str, str]]) -> _Assets:
    """Return the assets of some meters' statuses, as far as a DAG names them: asset id -> status."""
    places = {asset_uri(*meter, status): (meter, status) for meter in meters for status in SessionStatus}
    found: dict[tuple[str, str], dict[int, str]] = defaultdict(dict)
    for asset_id, uri in session.execute(select(AssetModel.id, AssetModel.uri).where(AssetModel.uri.in_(places))):
        meter, status = places[uri]
        found[meter][asset_id] = str(status)
    return found
