"""Sessions in Airflow: the Dag runs that they triggered, the Dags that missed them, and the tasks that wait for them.

The runs are read from Airflow's own tables: an asset event names a session by its address, extra and partition key.
"""

from __future__ import annotations

from collections import defaultdict
from contextlib import suppress
from dataclasses import dataclass
from datetime import timedelta
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from airflow.models.asset import (
    AssetEvent,
    AssetModel,
    AssetPartitionDagRun,
    DagScheduleAssetReference,
    TaskOutletAssetReference,
    association_table,
)
from airflow.models.dag import DagModel
from airflow.models.dagrun import DagRun
from airflow.models.taskinstance import TaskInstance
from airflow.models.xcom import XComModel
from sqlalchemy import Integer, and_, bindparam, func, or_, select, union_all
from sqlalchemy.orm import aliased

from airflow_mediation_provider.journal.asset_events import Arrival
from airflow_mediation_provider.journal.queries import without_index
from airflow_mediation_provider.journal.session_list import SessionKey, newest_reported, of_rows
from airflow_mediation_provider.journal.tables import ReporterRow, WaitRow
from airflow_mediation_provider.journal.task_reports import REPORTER_OF_WAIT, SEEN_AT, TASK_OF_WAIT, goes_on
from airflow_mediation_provider.protocol.sessions.asset_uri import (
    ANY_METER,
    SCHEME,
    asset_uri,
    connection_prefix,
    read_asset_uri,
)
from airflow_mediation_provider.protocol.status import SessionStatus

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Mapping, Sequence
    from datetime import datetime

    from sqlalchemy import ColumnElement, Select
    from sqlalchemy.orm import Session

    from airflow_mediation_provider.journal.session_list import ListedSession
    from airflow_mediation_provider.protocol.sessions.asset_uri import SessionAsset

# For each session and each run: the first runs that it triggered, the last tasks that waited.
_MOST: Final = 500
_NEWEST_RUNS: Final = 50
"""What a Dag is about shows in so many of its newest runs."""
_CLOCKS: Final = timedelta(minutes=5)
# One query for the events of such a span costs less than one for each session, and a span has only so many events.
_TOGETHER: Final = timedelta(hours=1)
_FOLLOW: Final = "write schedule=PartitionedAssetTimetable(assets=...)"
# The scheduler makes a run some seconds after the event; until then no run counts as missing. A paused Dag gets none.
_SCHEDULED_WITHIN: Final = timedelta(minutes=1)
# Airflow keeps each queued run forever, without an index by its session: only so many of the newest are read.
_QUEUED: Final = 1_000
# What TriggerDagRunOperator leaves: the address of the run before it triggers it, and the run's id afterwards.
_LINK: Final = "_link_TriggerDagRunLink"
_RUN_ID: Final = "trigger_run_id"
# Of a session's tasks, the runs of so many are searched for tasks that trigger others.
_SEARCHED: Final = 50
# Each of a thousand mapped tasks leaves some: only so many values of one run are searched.
_LEFT: Final = 1_000


class StartedRun(NamedTuple):
    """A Dag run that a session triggered."""

    dag_id: str
    run_id: str
    state: str
    start_date: datetime | None
    end_date: datetime | None
    status: str


class TaskKey(NamedTuple):
    """The identifying columns of a task instance."""

    dag_id: str
    run_id: str
    task_id: str
    map_index: int


class TaskTriggered(NamedTuple):
    """A Dag run that a task triggered with a session in its configuration.

    :param by: the task, in a Dag run with a task that is about the session
    """

    dag_id: str
    run_id: str
    state: str
    start_date: datetime | None
    end_date: datetime | None
    by: TaskKey


class Scheduled(NamedTuple):
    """A Dag that is scheduled on a status of a meter's sessions.

    :param since: when Airflow stored the asset of that status; sessions before that could trigger nothing
    :param asset_id: the asset, which may be of any meter, or only for some of the sessions in the status
    """

    dag_id: str
    status: str
    paused: bool
    since: datetime
    asset_id: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Consumer:
    """A Dag that is scheduled on a status of a session.

    :param dag_id: the Dag
    :param status: the status
    :param paused: whether the Dag is paused now, so that nothing triggers it
    :param missed: whether the session reached the status after the Dag's asset was stored, and no run of the Dag has
        the event of it although the scheduler had the time to make one
    :param queued: whether such a run is queued, and the scheduler is about to make it
    :param recent: whether there is no such run, and the session changed so lately that it does not count as missed yet
    """

    dag_id: str
    status: str
    paused: bool
    missed: bool
    queued: bool
    recent: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Wait:
    """What a task does with a session, by the columns of its row and by Airflow's own state.

    :param status: the status on which the wait ended, or which the task concluded
    :param evidence: how that status was received
    :param certain: whether it is certain
    :param note: a ``TaskNote`` as JSON, if the task reported one: what it did with the session
    :param goes_on: whether the wait was not reported as ended, and the task still waits in Airflow
    :param task_state: Airflow's state of the task instance; ``None`` if it no longer exists
    :param run_state: Airflow's state of the Dag run that the task is part of; ``None`` if it no longer exists
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
    status: str | None
    evidence: str | None
    certain: bool | None
    note: dict[str, Any] | None
    goes_on: bool
    task_state: str | None
    run_state: str | None


_COMPUTED: Final[dict[str, Any]] = {
    "goes_on": goes_on(),
    "seen_at": SEEN_AT,
    "task_state": TaskInstance.state,
    "run_state": DagRun.state,
}
_WAIT_COLUMNS: Final = tuple(getattr(WaitRow, name) for name in Wait.__slots__ if name not in _COMPUTED)


def waits_of(session: Session, sessions: Sequence[ListedSession]) -> dict[SessionKey, list[Wait]]:
    """Return the tasks that wait or waited for some sessions, the latest first."""
    waits: dict[SessionKey, list[Wait]] = defaultdict(list)
    for wait in _waits(session, _OF_SESSIONS, ids=[each.id for each in sessions]):
        waits[SessionKey(wait.conn_id, wait.meter_id, str(wait.session_id))].append(wait)
    return waits


def waits_of_run(session: Session, dag_id: str, run_id: str) -> list[Wait]:
    """Return the waits of a Dag run's tasks, the latest first."""
    return _waits(session, _OF_RUN, dag_id=dag_id, run_id=run_id)


def wait_of_task(session: Session, dag_id: str, run_id: str, task_id: str, map_index: int) -> Wait | None:
    """Return the wait of one task instance, of several connections the latest."""
    task = {"dag_id": dag_id, "run_id": run_id, "task_id": task_id, "map_index": map_index}
    return next(iter(_waits(session, _OF_TASK, **task)), None)


def waiting_for(session: Session, conn_id: str, meter_id: str) -> list[Wait]:
    """Return the tasks that wait for a session of a meter now, the latest first."""
    return _waits(session, _WAITING, conn_id=conn_id, meter_id=meter_id)


def meters_of_dag(session: Session, dag_id: str, *, tasks: bool) -> tuple[list[tuple[str, str]], set[str]]:
    """Return the meters that a Dag is about, and the connections of which it is about any meter.

    Those that it is scheduled on come first, then those that tasks of its newest runs ran or waited for.

    :param tasks: whether to include what its tasks did
    """
    meters: dict[tuple[str, str], None] = {}
    any_of: set[str] = set()
    reference = DagScheduleAssetReference
    uris = (
        select(AssetModel.uri)
        .join(reference, reference.asset_id == AssetModel.id)
        .where(reference.dag_id == dag_id)
        .order_by(AssetModel.id)
        .limit(_MOST)
    )
    for uri in session.scalars(uris):
        with suppress(ValueError):  # an asset of another provider
            asset = read_asset_uri(uri)
            if asset.meter_id == ANY_METER:
                any_of.add(asset.conn_id)
            else:
                meters[asset.conn_id, asset.meter_id] = None
    if not tasks:
        return list(meters), any_of
    newest = select(DagRun.run_id).where(DagRun.dag_id == dag_id).order_by(DagRun.id.desc()).limit(_NEWEST_RUNS)
    of_runs = WaitRow.dag_id == dag_id, WaitRow.run_id.in_(session.scalars(newest).all())
    rows = session.execute(select(WaitRow.conn_id, WaitRow.meter_id).where(*of_runs).distinct())
    meters |= dict.fromkeys(sorted((conn_id, meter_id) for conn_id, meter_id in rows))
    return list(meters), any_of


def open_waits(session: Session, conn_id: str, limit: int) -> list[Wait]:
    """Return tasks that wait over a connection, the one first whose row was written the longest ago."""
    return [Wait(**row._mapping) for row in session.execute(_OPEN, {"conn_id": conn_id, "most": limit})]


class SilentTask(NamedTuple):
    """A task instance of which the journal has nothing.

    :param operator: the name of its operator's class
    :param may_be_pruned: whether the journal has no wait that ended earlier, so that this one may have been pruned
    """

    operator: str | None
    state: str | None
    start_date: datetime | None
    end_date: datetime | None
    may_be_pruned: bool


def silent_task(session: Session, dag_id: str, run_id: str, task_id: str, map_index: int) -> SilentTask | None:
    """Return Airflow's row of a task instance of which the journal has nothing; ``None`` if there is no row."""
    row = TaskInstance
    query = select(row.operator, row.state, row.start_date, row.end_date).where(
        row.dag_id == dag_id, row.run_id == run_id, row.task_id == task_id, row.map_index == map_index
    )
    found = session.execute(query).one_or_none()
    if found is None:
        return None
    oldest = session.scalar(select(func.min(WaitRow.ended_at)))
    return SilentTask(*found, may_be_pruned=found.end_date is not None and not (oldest and oldest < found.end_date))


def _waits(session: Session, query: Select[Any], **parameters: Any) -> list[Wait]:
    return [Wait(**row._mapping) for row in session.execute(query, {"most": _MOST, **parameters})]


def _asked(which: ColumnElement[bool], *, limited: bool = True) -> Select[Any]:
    order = (WaitRow.created_at.desc(), WaitRow.id)
    session_key = [getattr(WaitRow, name) for name in SessionKey._fields]
    number = func.row_number().over(partition_by=session_key, order_by=order).label("number")
    waits = (
        select(WaitRow.id, *_WAIT_COLUMNS, *(each.label(name) for name, each in _COMPUTED.items()), number)
        .outerjoin(TaskInstance, TASK_OF_WAIT)
        .outerjoin(ReporterRow, REPORTER_OF_WAIT)
        .outerjoin(DagRun, and_(DagRun.dag_id == WaitRow.dag_id, DagRun.run_id == WaitRow.run_id))
        .where(which)
        .subquery()
    )
    columns = [waits.c[name] for name in Wait.__slots__]
    most = bindparam("most", type_=Integer)
    query = select(*columns).where(waits.c.number <= most).order_by(waits.c.created_at.desc(), waits.c.id)
    return query.limit(most) if limited else query


def _of(*names: str) -> ColumnElement[bool]:
    return and_(*(getattr(WaitRow, name) == bindparam(name) for name in names))


def _of_open(*names: str) -> ColumnElement[bool]:
    """Return the condition on a wait that goes on, found by the index of waits without an end.

    A connection or a meter may have had very many that ended.
    """
    return and_(goes_on(), *(without_index(getattr(WaitRow, name)) == bindparam(name) for name in names))


# Built once, as each page runs them.
_OF_SESSIONS: Final = _asked(of_rows(WaitRow), limited=False)
_OF_RUN: Final = _asked(_of("dag_id", "run_id"))
_OF_TASK: Final = _asked(_of("dag_id", "run_id", "task_id", "map_index"))
_WAITING: Final = _asked(_of_open("conn_id", "meter_id"))
_OPEN: Final = (
    select(*_WAIT_COLUMNS, *(each.label(name) for name, each in _COMPUTED.items()))
    .join(TaskInstance, TASK_OF_WAIT)
    .outerjoin(ReporterRow, REPORTER_OF_WAIT)
    .outerjoin(DagRun, and_(DagRun.dag_id == WaitRow.dag_id, DagRun.run_id == WaitRow.run_id))
    .where(_of_open("conn_id"))
    .order_by(WaitRow.seen_at, WaitRow.id)
    .limit(bindparam("most", type_=Integer))
)


class Assets:
    """Airflow's assets of the statuses of some meters' sessions, as far as a Dag names them.

    :param meters: connection and meter
    """

    def __init__(self, session: Session, meters: Collection[tuple[str, str]]) -> None:
        self.places: Final[dict[int, SessionAsset]] = {}
        """What each asset stands for."""
        self.of_meter: Final[dict[tuple[str, str], list[int]]] = defaultdict(list)
        if not meters:
            return
        conn_ids = {conn_id for conn_id, _ in meters}
        uris = {
            asset_uri(conn_id, meter_id, status)
            for conn_id, meter_id in {*meters, *((conn_id, ANY_METER) for conn_id in conn_ids)}
            for status in SessionStatus
        }
        # Few assets have a filter, and the filters of a status are too many to name all.
        of_connection = (AssetModel.uri.startswith(connection_prefix(each), autoescape=True) for each in conn_ids)
        filtered = and_(AssetModel.uri.contains("?"), or_(*of_connection))
        query = select(AssetModel.id, AssetModel.uri).where(or_(AssetModel.uri.in_(uris), filtered))
        for asset_id, uri in session.execute(query):
            with suppress(ValueError):  # written by hand where this package was missing
                asset = read_asset_uri(uri)
                for meter in meters:
                    if meter[0] == asset.conn_id and asset.meter_id in (meter[1], ANY_METER):
                        self.places[asset_id] = asset
                        self.of_meter[meter].append(asset_id)


class Started(NamedTuple):
    """What Airflow's tables have about a session.

    :param runs: the Dag runs that it triggered, the first one first
    :param announced: the newest arrival of which Airflow has an event, by asset; for statuses whose events ``airflow db
        clean`` removed, it is unknown which Dags ran
    :param served: the arrivals of which a run has an event, each with the Dag
    :param queued: the Dags that have a queued run with the session's id, which the scheduler has not made yet
    """

    runs: list[StartedRun]
    announced: dict[int, Arrival]
    served: set[tuple[str, Arrival]]
    queued: set[str]


@dataclass(slots=True)
class _Span:
    begin: datetime
    end: datetime
    asset_ids: set[int]


def _spans(sessions: Iterable[ListedSession], assets: Assets) -> list[_Span]:
    """Return when events of some sessions were written, and of which assets; spans close to each other are merged.

    An event is written together with the session's row, but by the clock of another process.
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


def started(session: Session, sessions: Sequence[ListedSession], assets: Assets) -> Mapping[SessionKey, Started]:
    """Return what some sessions triggered."""
    # The index is by asset and time.
    around = [
        and_(AssetEvent.asset_id.in_(each.asset_ids), AssetEvent.timestamp.between(each.begin, each.end))
        for each in _spans(sessions, assets)
    ]
    found: dict[SessionKey, Started] = defaultdict(lambda: Started([], {}, set(), set()))
    if not around:
        return found
    number = func.row_number().over(
        partition_by=(AssetEvent.asset_id, AssetEvent.partition_key), order_by=association_table.c.dag_run_id
    )
    events = (
        select(
            AssetEvent.id,
            AssetEvent.asset_id,
            AssetEvent.partition_key,
            AssetEvent.extra,
            association_table.c.dag_run_id,
            number.label("number"),
        )
        .outerjoin(association_table, association_table.c.event_id == AssetEvent.id)
        .where(or_(*around), AssetEvent.partition_key.in_({each.session_id for each in sessions}))
        .subquery()
    )
    query = (
        select(
            events.c.id,
            events.c.asset_id,
            events.c.partition_key,
            events.c.extra,
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
    runs: dict[SessionKey, dict[StartedRun, None]] = defaultdict(dict)
    newest: dict[tuple[SessionKey, int], int] = {}
    for event_id, asset_id, session_id, extra, dag_id, run_id, state, start, end in session.execute(query):
        arrival = Arrival.read(assets.places[asset_id], session_id, extra)
        key = SessionKey(arrival.conn_id, arrival.meter_id, session_id)
        if event_id >= newest.get((key, asset_id), 0):
            newest[key, asset_id] = event_id
            found[key].announced[asset_id] = arrival
        if dag_id is not None:
            # A run may have the events of several assets for one arrival.
            runs[key][StartedRun(dag_id, run_id, str(state), start, end, arrival.status)] = None
            found[key].served.add((dag_id, arrival))
    for key, of_session in runs.items():
        found[key].runs.extend(of_session)
    by_id: dict[str, list[Started]] = defaultdict(list)
    for key, of_key in found.items():
        by_id[key.session_id].append(of_key)
    for dag_id, session_id in _queued(session, by_id):
        for of_key in by_id[session_id]:
            of_key.queued.add(dag_id)
    return found


def _queued(session: Session, session_ids: Collection[str]) -> list[tuple[str, str]]:
    """Return the Dags with a queued run, each with the session's id."""
    if not session_ids:
        return []
    row = AssetPartitionDagRun
    newest = select(func.max(row.id)).scalar_subquery()
    query = select(row.target_dag_id, row.partition_key).where(
        row.id > newest - _QUEUED, row.created_dag_run_id.is_(None), row.partition_key.in_(session_ids)
    )
    return [(dag_id, key) for dag_id, key in session.execute(query)]


def triggered_by_tasks(session: Session, key: SessionKey, tasks: Iterable[Wait]) -> list[TaskTriggered]:
    """Return the Dag runs that a ``TriggerDagRunOperator`` triggered with a session in their ``conf``, the first first.

    :param key: the session
    :param tasks: the tasks that are about it: only their Dag runs are searched, the latest of them
    """
    within = list(dict.fromkeys((each.dag_id, each.run_id) for each in tasks))[:_SEARCHED]
    runs_within = session.scalars(select(DagRun.id).where(_one_of(within))).all() if within else []
    if not runs_within:
        return []
    xcom = XComModel
    # The primary key begins with the run and ends with the key.
    places = (xcom.dag_run_id, xcom.task_id, xcom.map_index, xcom.key)
    of_each = (
        select(*places).where(xcom.dag_run_id == run).order_by(*places).limit(_LEFT).subquery() for run in runs_within
    )
    searched = union_all(*(select(*each.c) for each in of_each)).subquery()
    query = (
        select(xcom.dag_id, xcom.run_id, xcom.task_id, xcom.map_index, xcom.key, xcom.value)
        .join(searched, and_(*(place == searched.c[place.key] for place in places)))
        .where(searched.c.key.in_((_LINK, _RUN_ID)))
        .limit(2 * _MOST)
    )
    left: dict[TaskKey, dict[str, str]] = defaultdict(dict)
    for row in session.execute(query):
        left[TaskKey(*row[:4])][row.key] = str(XComModel.deserialize_value(row))
    by_run = {which: task for task, values in left.items() if (which := _triggered(values)) is not None}
    if not by_run:
        return []
    runs = session.scalars(select(DagRun).where(_one_of(by_run)).order_by(DagRun.id))
    return [
        TaskTriggered(
            each.dag_id, each.run_id, str(each.state), each.start_date, each.end_date, by_run[each.dag_id, each.run_id]
        )
        for each in runs
        if _has_session(each.conf, key)
    ]


def _one_of(runs: Iterable[tuple[str, str]]) -> ColumnElement[bool]:
    return or_(*(and_(DagRun.dag_id == dag_id, DagRun.run_id == run_id) for dag_id, run_id in runs))


def _triggered(left: Mapping[str, str]) -> tuple[str, str] | None:
    """Return Dag and id of the run that a task triggered, by what it left."""
    link, run_id = left.get(_LINK, ""), left.get(_RUN_ID)
    if run_id is None or not link.endswith(end := f"/runs/{run_id}"):
        return None
    return link.removesuffix(end).rpartition("/dags/")[2], run_id


def _has_session(conf: Any, key: SessionKey) -> bool:
    if not isinstance(conf, dict) or conf.get("session_id") != key.session_id:
        return False
    return (
        conf.get("mediation_conn_id") in (None, key.conn_id) and str(conf.get("meter_id", key.meter_id)) == key.meter_id
    )


def scheduled(session: Session, assets: Assets) -> Mapping[tuple[str, str], list[Scheduled]]:
    """Return the Dags that are scheduled on the sessions of some meters, by connection and meter."""
    found: dict[tuple[str, str], list[Scheduled]] = defaultdict(list)
    if assets.places:
        reference = DagScheduleAssetReference
        query = (
            select(reference.asset_id, DagModel.dag_id, DagModel.is_paused, reference.created_at)
            .join(DagModel, DagModel.dag_id == reference.dag_id)
            .where(reference.asset_id.in_(assets.places), DagModel.is_stale.is_(False))
            .order_by(DagModel.dag_id, reference.asset_id)
        )
        by_asset: dict[int, list[tuple[str, str]]] = defaultdict(list)
        for meter, asset_ids in assets.of_meter.items():
            for asset_id in asset_ids:
                by_asset[asset_id].append(meter)
        for asset_id, dag_id, paused, since in session.execute(query):
            for meter in by_asset[asset_id]:
                status = assets.places[asset_id].status
                found[meter].append(Scheduled(dag_id, status, bool(paused), since, asset_id))
    return found


def consumers(
    listed: ListedSession, scheduled: Iterable[Scheduled], started: Started | None, now: datetime
) -> list[Consumer]:
    """Return the result of a session for each Dag that is scheduled on its meter.

    :param scheduled: from the function of that name
    :param started: from the function of that name; ``None``: nothing
    :param now: the time now
    """
    late = now - listed.updated_at > _SCHEDULED_WITHIN

    def lacks_run(each: Scheduled) -> bool:
        if started is None or listed.ambiguous or listed.last_observed_at <= each.since:
            return False
        arrival = started.announced.get(each.asset_id)
        return arrival is not None and arrival.status == listed.status and (each.dag_id, arrival) not in started.served

    def consumer(each: Scheduled) -> Consumer:
        lacks = lacks_run(each)
        queued = lacks and started is not None and each.dag_id in started.queued
        without = lacks and not queued
        recent = without and not late and not each.paused
        return Consumer(
            dag_id=each.dag_id,
            status=each.status,
            paused=each.paused,
            missed=without and not recent,
            queued=queued,
            recent=recent,
        )

    return [consumer(each) for each in scheduled]


class Missed(NamedTuple):
    """A session that some Dag should have been triggered by, and was not."""

    key: SessionKey
    consumers: tuple[Consumer, ...]


def missed_since(session: Session, since: datetime, now: datetime, *, limit: int) -> tuple[list[Missed], bool]:
    """Return the sessions that some Dag missed, and whether there are more sessions than were compared.

    :param since: only sessions that began since then
    :param now: the time now
    :param limit: how many sessions are compared, the newest ones in a status that a Dag is scheduled on
    """
    due, more = newest_reported(session, _scheduled_on(session), since, limit)
    # Of few meters, as a name of an asset is made for each of their statuses.
    assets = Assets(session, {each.meter for each in due})
    of_meters = scheduled(session, assets)
    reached = started(session, due, assets)
    found = []
    for each in due:
        of_session = consumers(each, of_meters.get(each.meter, ()), reached.get(each.key), now)
        if missed := tuple(consumer for consumer in of_session if consumer.missed):
            found.append(Missed(each.key, missed))
    return found, more


def _scheduled_on(session: Session) -> set[tuple[str, str, str]]:
    """Return what Dags are scheduled on: connection, meter and status."""
    reference = DagScheduleAssetReference
    uris = (
        select(AssetModel.uri)
        .join(reference, reference.asset_id == AssetModel.id)
        .join(DagModel, DagModel.dag_id == reference.dag_id)
        .where(AssetModel.uri.startswith(f"{SCHEME}://", autoescape=True), DagModel.is_stale.is_(False))
        .distinct()
    )
    found = set()
    for uri in session.scalars(uris):
        with suppress(ValueError):  # written by hand where this package was missing
            asset = read_asset_uri(uri)
            found.add((asset.conn_id, asset.meter_id, asset.status))
    return found


class NeverStarted(NamedTuple):
    """A Dag that sessions do not start, although its schedule reads as if they did.

    :param conn_id: the connection whose sessions are meant
    :param because: the reason and the remedy, as the end of a sentence
    """

    dag_id: str
    conn_id: str
    because: str


def never_started(session: Session) -> list[NeverStarted]:
    """Return the Dags whose schedules Airflow never starts for sessions, by name.

    An event of a session has a partition key, and Airflow queues only partitioned schedules for such an event. A run
    with a partition key hands it on to the events of its outlets, so the same holds for what follows it.
    """
    reference, outlet = DagScheduleAssetReference, TaskOutletAssetReference
    follower, its_reference = aliased(DagModel), aliased(DagScheduleAssetReference)
    ours = AssetModel.uri.startswith(f"{SCHEME}://", autoescape=True)
    scheduled = (
        select(DagModel.dag_id, DagModel.timetable_partitioned, follower.dag_id, AssetModel.uri)
        .join(reference, reference.dag_id == DagModel.dag_id)
        .join(AssetModel, AssetModel.id == reference.asset_id)
        .outerjoin(outlet, and_(outlet.dag_id == DagModel.dag_id, DagModel.timetable_partitioned))
        .outerjoin(its_reference, its_reference.asset_id == outlet.asset_id)
        .outerjoin(
            follower,
            and_(
                follower.dag_id == its_reference.dag_id,
                follower.is_stale.is_(False),
                follower.timetable_partitioned.is_(False),
            ),
        )
        .where(ours, DagModel.is_stale.is_(False))
        .where(or_(DagModel.timetable_partitioned.is_(False), follower.dag_id.is_not(None)))
        .order_by(DagModel.dag_id, AssetModel.id, follower.dag_id)
    )
    found: dict[NeverStarted, None] = {}
    for dag_id, partitioned, following, uri in session.execute(scheduled):
        with suppress(ValueError):
            conn_id = read_asset_uri(uri).conn_id
            if partitioned:
                found[NeverStarted(following, conn_id, f"runs of {dag_id} have partition keys: {_FOLLOW}")] = None
            else:
                found[NeverStarted(dag_id, conn_id, "write schedule=on_meter_session(...) instead of an asset")] = None
    return sorted(found)


def sessions_of_run(session: Session, dag_id: str, run_id: str) -> list[SessionKey]:
    """Return the sessions that triggered a Dag run."""
    return sessions_of_runs(session, and_(DagRun.dag_id == dag_id, DagRun.run_id == run_id))


def sessions_of_runs(session: Session, which: ColumnElement[bool]) -> list[SessionKey]:
    """Return the sessions that triggered some Dag runs.

    :param which: condition on the Dag runs, which an index serves
    """
    query = (
        select(AssetModel.uri, AssetEvent.partition_key, AssetEvent.extra)
        .join(AssetEvent, AssetEvent.asset_id == AssetModel.id)
        .join(association_table, association_table.c.event_id == AssetEvent.id)
        .join(DagRun, DagRun.id == association_table.c.dag_run_id)
        .where(which, AssetEvent.partition_key.is_not(None))
        .order_by(AssetEvent.id)
        .limit(_MOST)
    )
    keys: dict[SessionKey, None] = {}
    for uri, partition_key, extra in session.execute(query):
        with suppress(ValueError):  # an asset of another provider
            arrival = Arrival.read(read_asset_uri(uri), str(partition_key), extra)
            keys[SessionKey(arrival.conn_id, arrival.meter_id, arrival.key)] = None
    return list(keys)
