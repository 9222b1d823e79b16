"""What came of sessions in Airflow: the DAG runs that they started, the DAGs that missed them, the tasks that waited.

Airflow's own tables tell the runs: an asset event names a session by its partition key, and a run names its events.
"""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass
from datetime import timedelta
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from airflow.models.asset import AssetEvent, AssetModel, DagScheduleAssetReference, association_table
from airflow.models.dag import DagModel
from airflow.models.dagrun import DagRun
from airflow.models.taskinstance import TaskInstance
from sqlalchemy import Integer, and_, bindparam, func, or_, select

from airflow_mediation_provider.journal.listing import SessionKey, of_rows
from airflow_mediation_provider.journal.tables import WaitRow
from airflow_mediation_provider.journal.waits import TASK_OF_WAIT, goes_on
from airflow_mediation_provider.protocol.asset_uri import asset_uri, read_asset_uri
from airflow_mediation_provider.protocol.status import SessionStatus, is_news_for_dags

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Mapping, Sequence
    from datetime import datetime

    from sqlalchemy import ColumnElement, Select
    from sqlalchemy.orm import Session

    from airflow_mediation_provider.journal.listing import Listed

# Of each session, and of each run: the first ones that it started, the last ones that waited.
_MOST: Final = 500
_CLOCKS: Final = timedelta(minutes=5)
# One question for the events of so long costs less than one for each session, and there cannot be very many.
_TOGETHER: Final = timedelta(hours=1)
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


_WAIT_COLUMNS: Final = tuple(getattr(WaitRow, name) for name in Wait.__slots__ if name != "goes_on")


def waits_of(session: Session, sessions: Sequence[Listed]) -> dict[SessionKey, list[Wait]]:
    """Return who waits or waited for some sessions, the last that began first."""
    waits: dict[SessionKey, list[Wait]] = defaultdict(list)
    for wait in _waits(session, _OF_SESSIONS, ids=[each.id for each in sessions]):
        waits[SessionKey(wait.conn_id, wait.meter_id, str(wait.session_id))].append(wait)
    return waits


def waits_of_run(session: Session, dag_id: str, run_id: str) -> list[Wait]:
    """Return the waits of a DAG run's tasks, the last that began first."""
    return _waits(session, _OF_RUN, dag_id=dag_id, run_id=run_id)


def wait_of_task(session: Session, dag_id: str, run_id: str, task_id: str, map_index: int) -> Wait | None:
    """Return the wait of one task instance, the last one of several connections."""
    task = {"dag_id": dag_id, "run_id": run_id, "task_id": task_id, "map_index": map_index}
    return next(iter(_waits(session, _OF_TASK, **task)), None)


def _waits(session: Session, query: Select[Any], **parameters: Any) -> list[Wait]:
    return [Wait(**row._mapping) for row in session.execute(query, {"most": _MOST, **parameters})]


def _asked(which: ColumnElement[bool], *, limited: bool = True) -> Select[Any]:
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
    most = bindparam("most", type_=Integer)
    query = select(*columns).where(waits.c.number <= most).order_by(waits.c.created_at.desc(), waits.c.id)
    return query.limit(most) if limited else query


def _of(*names: str) -> ColumnElement[bool]:
    return and_(*(getattr(WaitRow, name) == bindparam(name) for name in names))


# Put together once, as each page asks for them.
_OF_SESSIONS: Final = _asked(of_rows(WaitRow), limited=False)
_OF_RUN: Final = _asked(_of("dag_id", "run_id"))
_OF_TASK: Final = _asked(_of("dag_id", "run_id", "task_id", "map_index"))


_ASSETS: Final = select(AssetModel.id, AssetModel.uri).where(AssetModel.uri.in_(bindparam("uris", expanding=True)))


class Assets:
    """Airflow's assets of the statuses of some meters' sessions, as far as a DAG names them.

    :param meters: connection and meter
    """

    def __init__(self, session: Session, meters: Collection[tuple[str, str]]) -> None:
        uris = {asset_uri(*meter, status): (meter, str(status)) for meter in meters for status in SessionStatus}
        found = session.execute(_ASSETS, {"uris": list(uris)})
        self.places: Final = {asset_id: uris[uri] for asset_id, uri in found}
        """Asset -> the meter and the status."""
        self.of_meter: Final[dict[tuple[str, str], list[int]]] = defaultdict(list)
        for asset_id, (meter, _) in self.places.items():
            self.of_meter[meter].append(asset_id)


class Started(NamedTuple):
    """What Airflow's tables tell of a session.

    :param runs: the DAG runs that it started, the first first
    :param announced: the statuses of which Airflow has the events: of what ``airflow db clean`` has removed nobody can
        tell any more which DAG ran
    """

    runs: list[StartedRun]
    announced: set[str]


@dataclass(slots=True)
class _Span:
    begin: datetime
    end: datetime
    asset_ids: set[int]


def _spans(sessions: Iterable[Listed], assets: Assets) -> list[_Span]:
    """Return when events of some sessions were written, of which assets; those of about the same time together.

    An event is written with the session's row, by the clock of another process.
    """
    spans: list[_Span] = []
    for each in sorted(sessions, key=lambda each: each.first_observed_at):
        if not (of_meter := assets.of_meter.get(each.meter)):
            continue
        begin, end = each.first_observed_at - _CLOCKS, each.updated_at + _CLOCKS
        if spans and max(spans[-1].end, end) - spans[-1].begin <= _TOGETHER:
            spans[-1].end = max(spans[-1].end, end)
            spans[-1].asset_ids.update(of_meter)
        else:
            spans.append(_Span(begin, end, set(of_meter)))
    return spans


def started(session: Session, sessions: Sequence[Listed], assets: Assets) -> Mapping[SessionKey, Started]:
    """Return what some sessions started."""
    # The index goes by asset and time.
    around = [
        and_(AssetEvent.asset_id.in_(each.asset_ids), AssetEvent.timestamp.between(each.begin, each.end))
        for each in _spans(sessions, assets)
    ]
    found: dict[SessionKey, Started] = defaultdict(lambda: Started([], set()))
    if not around:
        return found
    number = func.row_number().over(
        partition_by=(AssetEvent.asset_id, AssetEvent.partition_key), order_by=association_table.c.dag_run_id
    )
    events = (
        select(AssetEvent.asset_id, AssetEvent.partition_key, association_table.c.dag_run_id, number.label("number"))
        .outerjoin(association_table, association_table.c.event_id == AssetEvent.id)
        .where(or_(*around), AssetEvent.partition_key.in_({each.session_id for each in sessions}))
        .subquery()
    )
    query = (
        select(
            events.c.asset_id,
            events.c.partition_key,
            DagRun.dag_id,
            DagRun.run_id,
            DagRun.state,
            DagRun.start_date,
            DagRun.end_date,
        )
        .outerjoin_from(events, DagRun, DagRun.id == events.c.dag_run_id)
        .where(events.c.number <= _MOST)
        .order_by(DagRun.id)
    )
    for asset_id, session_id, dag_id, run_id, state, start, end in session.execute(query):
        (conn_id, meter_id), status = assets.places[asset_id]
        of_session = found[SessionKey(conn_id, meter_id, session_id)]
        of_session.announced.add(status)
        if dag_id is not None:
            of_session.runs.append(StartedRun(dag_id, run_id, str(state), start, end, status))
    return found


def scheduled(session: Session, assets: Assets) -> Mapping[tuple[str, str], list[Scheduled]]:
    """Return the DAGs that are scheduled on the sessions of some meters, by connection and meter."""
    found: dict[tuple[str, str], list[Scheduled]] = defaultdict(list)
    if assets.places:
        reference = DagScheduleAssetReference
        query = (
            select(reference.asset_id, DagModel.dag_id, DagModel.is_paused, reference.created_at)
            .join(DagModel, DagModel.dag_id == reference.dag_id)
            .where(reference.asset_id.in_(assets.places), DagModel.is_stale.is_(False))
            .order_by(DagModel.dag_id, reference.asset_id)
        )
        for asset_id, dag_id, paused, since in session.execute(query):
            meter, status = assets.places[asset_id]
            found[meter].append(Scheduled(dag_id, status, bool(paused), since))
    return found


def consumers(listed: Listed, scheduled: Iterable[Scheduled], started: Started | None, now: datetime) -> list[Consumer]:
    """Return what became of a session at each DAG that is scheduled on its meter.

    :param scheduled: of the function of that name
    :param started: of the function of that name; ``None``: nothing
    :param now: the time now
    """
    has_run = {run.dag_id for run in started.runs} if started else set()
    due = (
        not listed.ambiguous
        and is_news_for_dags(listed.run_type, listed.status)
        and started is not None
        and listed.status in started.announced
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
