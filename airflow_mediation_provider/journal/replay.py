"""Start missing Dag runs: Airflow starts none for sessions received while a Dag was paused or did not exist yet.

A Dag misses an arrival of a session at a status that the Dag is scheduled on, if no run of the Dag, made or pending,
has an event of it: a run with the session's id as its key may be of another arrival, or of another tenant's session.
This is checked again under the lock under which Airflow queues runs, so neither two concurrent replays nor a callout in
between start two runs. Of a status that ends a session, only the newest arrival counts.
"""

from __future__ import annotations

from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import partial
from itertools import groupby
from operator import itemgetter
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from airflow.models.asset import (
    AssetEvent,
    AssetModel,
    AssetPartitionDagRun,
    DagScheduleAssetReference,
    PartitionedAssetKeyLog,
    association_table,
)
from airflow.models.dag import DagModel
from airflow.models.dagrun import DagRun
from airflow.models.serialized_dag import SerializedDagModel
from airflow.partition_mappers.identity import IdentityMapper
from airflow.utils.types import DagRunType
from sqlalchemy import and_, select, true, update

from airflow_mediation_provider.journal.asset_events import Arrival, Event, lock_assets, lock_pending_runs, queue_run
from airflow_mediation_provider.journal.rows import state_of
from airflow_mediation_provider.journal.session_list import SessionKey
from airflow_mediation_provider.journal.tables import SessionRow
from airflow_mediation_provider.journal.transaction import read, write
from airflow_mediation_provider.protocol.sessions.asset_uri import ANY_METER, SCHEME, asset_uri, read_asset_uri
from airflow_mediation_provider.protocol.sessions.session_result import session_result
from airflow_mediation_provider.protocol.status import ANY_TERMINAL
from airflow_mediation_provider.protocol.transition import Source

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence

    from sqlalchemy.orm import Session

    from airflow_mediation_provider.protocol.sessions.asset_uri import SessionAsset

# Callouts on the same assets wait while one transaction queues this many runs.
_BATCH: Final = 50
# Airflow's index of events is by asset and time, so each query for some keys reads all events of an asset.
_KEYS: Final = 500
_DEADLINE_SECONDS: Final = 30.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Reached:
    """An arrival of a session at a status that a Dag is scheduled on.

    :param meter_id: the session's meter
    :param key: the partition key of the run: the session's id, or the key of a poll, which names no session
    :param uri: the asset that the Dag is scheduled on
    :param at: when the session's status was received
    """

    meter_id: str
    key: str
    uri: str
    at: datetime


@dataclass(frozen=True, slots=True, kw_only=True)
class Replayed:
    """The result for one Dag.

    :param dag_id: the Dag
    :param refused: why nothing was done for it; empty if nothing was refused
    :param missed: the sessions without a run; each has one now, except after a dry run
    :param known: the sessions that already had a run or a pending one
    """

    dag_id: str
    refused: str = ""
    missed: tuple[Reached, ...] = ()
    known: tuple[Reached, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class _Candidate:
    """An arrival that a Dag may have missed.

    :param event_id: its event; ``None`` if the asset did not exist yet
    """

    arrival: Arrival
    asset_id: int
    uri: str
    at: datetime
    event_id: int | None
    extra: Mapping[str, Any]

    @property
    def key(self) -> str:
        return self.arrival.key


def replay(
    *,
    dag_id: str | None = None,
    uri: str | None = None,
    since: datetime,
    until: datetime | None = None,
    of: Mapping[SessionKey, str] | None = None,
    dry_run: bool = False,
) -> Iterator[Replayed]:
    """Start the missing runs of one Dag, or of all Dags on one asset; yields the result for each Dag.

    No run is started twice, also not by repeated or concurrent calls.

    :param dag_id: the Dag
    :param uri: or the asset: ``mediation://CONNECTION/meters/METER/STATUS``, as its Dag names it
    :param since: only sessions whose status was received at or after this time
    :param until: and before this time
    :param of: only these sessions, each only at this status
    :param dry_run: start nothing
    :raises ValueError: there is no such Dag or asset, or it is not about sessions
    :raises JournalMissing: the journal's tables are not there
    :raises JournalUnavailable: the database is still locked, unreachable or broken at the deadline
    :raises UnknownAirflowError: this version of Airflow queues runs in another way
    """
    until = until or datetime.now(UTC)
    if since >= until:
        raise ValueError(f"since ({since.isoformat()}) must be before until ({until.isoformat()})")
    if uri is not None:
        read_asset_uri(uri)
    if dag_id is not None and read(lambda session: session.get(DagModel, dag_id)) is None:
        raise ValueError(f"there is no Dag {dag_id!r}")
    consumers = read(lambda session: _consumers(session, None if dag_id is None else [dag_id], uri))
    if not consumers:
        raise ValueError(
            f"no Dag is scheduled on {uri}" if uri is not None else f"Dag {dag_id!r} is not scheduled on sessions"
        )
    for consumer in consumers:
        yield _of_one_dag(consumer, _Asked(since, until, of), dry_run=dry_run)


class _Asked(NamedTuple):
    """Which arrivals are meant."""

    since: datetime
    until: datetime
    of: Mapping[SessionKey, str] | None

    @property
    def keys(self) -> list[str] | None:
        """The ids of the sessions, ``None`` for any."""
        return None if self.of is None else sorted({each.session_id for each in self.of})

    def includes(self, each: _Candidate) -> bool:
        if not self.since <= each.at < self.until:
            return False
        return self.of is None or self.of.get(SessionKey(*each.arrival[:3])) == each.arrival.status


@dataclass(frozen=True, slots=True, kw_only=True)
class _Consumer:
    """A Dag and the assets of sessions on which it is scheduled, with their addresses."""

    dag_id: str
    refused: str
    assets: dict[int, tuple[str, SessionAsset]]


def refusals(session: Session, dag_ids: Collection[str]) -> dict[str, str]:
    """Return why no missing run of some Dags would be started, by Dag; empty where they would be."""
    found = {each.dag_id: each.refused for each in _consumers(session, dag_ids, None)}
    return {dag_id: found.get(dag_id, "it is not scheduled on sessions") for dag_id in dag_ids}


def _consumers(session: Session, dag_ids: Collection[str] | None, uri: str | None) -> list[_Consumer]:
    query = (
        select(DagModel, AssetModel)
        .join(DagScheduleAssetReference, DagScheduleAssetReference.dag_id == DagModel.dag_id)
        .join(AssetModel, AssetModel.id == DagScheduleAssetReference.asset_id)
        .where(AssetModel.uri.startswith(f"{SCHEME}://", autoescape=True))
        .order_by(DagModel.dag_id, AssetModel.id)
    )
    if uri is not None:
        query = query.where(AssetModel.uri == uri)
    if dag_ids is not None:
        query = query.where(DagModel.dag_id.in_(dag_ids))
    assets: dict[DagModel, dict[int, tuple[str, SessionAsset]]] = {}
    for dag, asset in session.execute(query):
        # An asset that is used only to watch a meter stands for no status.
        with suppress(ValueError):
            assets.setdefault(dag, {})[asset.id] = asset.uri, read_asset_uri(asset.uri)
    return [
        _Consumer(dag_id=dag.dag_id, refused=_why_not(session, dag, of_dag), assets=of_dag)
        for dag, of_dag in assets.items()
        if of_dag
    ]


def _why_not(session: Session, dag: DagModel, assets: Mapping[int, tuple[str, SessionAsset]]) -> str:
    if dag.is_stale:
        return "its file has been removed"
    if dag.is_paused:
        return f"it is paused: run `airflow dags unpause {dag.dag_id}` first, or its runs would stay queued"
    if not dag.timetable_partitioned:
        return (
            "its schedule names session assets without on_meter_session(), which start no run: write"
            " schedule=on_meter_session(...)"
        )
    stored = SerializedDagModel.get(dag.dag_id, session=session)
    timetable: Any = stored.dag.timetable if stored else None
    mappers = [timetable and timetable.get_partition_mapper(uri=uri) for uri, _ in assets.values()]
    if not all(isinstance(mapper, IdentityMapper) for mapper in mappers):
        return "its schedule maps session ids to other partition keys, so missing sessions cannot be found"
    return ""


def _of_one_dag(consumer: _Consumer, asked: _Asked, *, dry_run: bool) -> Replayed:
    if consumer.refused:
        return Replayed(dag_id=consumer.dag_id, refused=consumer.refused)
    found = read(lambda session: _candidates(session, consumer.assets, asked))
    missed: list[_Candidate] = []
    for at in range(0, len(found), _BATCH):
        batch = found[at : at + _BATCH]
        if dry_run:
            missed += read(partial(_without_run, consumer=consumer, batch=batch))
        else:
            missed += write(partial(_start, consumer=consumer, batch=batch), deadline_seconds=_DEADLINE_SECONDS)
    started = {id(each) for each in missed}
    known = (each for each in found if id(each) not in started)
    return Replayed(dag_id=consumer.dag_id, missed=_reached(missed), known=_reached(known))


def _reached(candidates: Iterable[_Candidate]) -> tuple[Reached, ...]:
    return tuple(Reached(meter_id=each.arrival.meter_id, key=each.key, uri=each.uri, at=each.at) for each in candidates)


def _candidates(session: Session, assets: Mapping[int, tuple[str, SessionAsset]], asked: _Asked) -> list[_Candidate]:
    """Return the arrivals that are meant, the oldest first, each once."""
    found: dict[Arrival, _Candidate] = {}
    for asset_id, (uri, asset) in assets.items():
        candidates = [
            *_in_status(session, asset_id, uri, asset, asked),
            *_announced(session, asset_id, uri, asset, asked),
        ]
        for each in filter(asked.includes, candidates):
            found.setdefault(each.arrival, each)
    # The same arrival at an asset that is newer than it has no event.
    with_event = {each.arrival[:-1] for each in found.values() if each.event_id is not None}
    arrivals = [each for each in found.values() if each.event_id is not None or each.arrival[:-1] not in with_event]
    return sorted(arrivals, key=lambda each: (each.at, each.key))


def _in_status(session: Session, asset_id: int, uri: str, asset: SessionAsset, asked: _Asked) -> Iterator[_Candidate]:
    """Return the arrivals of sessions that are in the asset's status now."""
    rows = session.scalars(
        select(SessionRow).where(
            SessionRow.conn_id == asset.conn_id,
            true() if asset.meter_id == ANY_METER else SessionRow.meter_id == asset.meter_id,
            SessionRow.status == asset.status,
            SessionRow.last_observed_at >= asked.since,
            true() if asked.keys is None else SessionRow.session_id.in_(asked.keys),
        )
    )
    states = []
    for state in map(state_of, rows):
        extra = session_result(
            state.transition,
            evidence=state.source,
            certain=not state.conflict,
            mediation_conn_id=asset.conn_id,
        )
        event = Event.of(state.transition, extra)
        if state.starts_dags and asset_uri(*asset) in event.uris(asset.conn_id):
            states.append((state, event))
    newest = {
        (arrival.meter_id, arrival.key): (each, arrival)
        for keys in _batches([state.session_id for state, _ in states])
        for each in session.scalars(
            select(AssetEvent)
            .where(AssetEvent.asset_id == asset_id, AssetEvent.partition_key.in_(keys))
            .order_by(AssetEvent.id)
        )
        for arrival in [Arrival.read(asset, str(each.partition_key), each.extra)]
    }
    for state, event in states:
        stored, arrival = newest.get((state.meter_id, state.session_id), (None, None))
        yield _Candidate(
            arrival=arrival or Arrival.read(asset, state.session_id, event.extra),
            asset_id=asset_id,
            uri=uri,
            at=state.observed_at,
            event_id=stored.id if stored else None,
            extra=event.extra,
        )


def _announced(session: Session, asset_id: int, uri: str, asset: SessionAsset, asked: _Asked) -> Iterator[_Candidate]:
    """Return what a session's state does not contain: statuses that it has left, and what only polls showed."""
    events = session.scalars(
        select(AssetEvent)
        .where(
            AssetEvent.asset_id == asset_id,
            AssetEvent.timestamp >= asked.since,
            AssetEvent.partition_key.is_not(None) if asked.keys is None else AssetEvent.partition_key.in_(asked.keys),
        )
        .order_by(AssetEvent.id)
    ).all()
    ended = {
        (row.meter_id, row.session_id): row.status
        for keys in _batches([str(event.partition_key) for event in events])
        for row in session.scalars(
            select(SessionRow).where(
                SessionRow.conn_id == asset.conn_id,
                SessionRow.session_id.in_(keys),
                SessionRow.terminal.is_(True),
            )
        )
    }
    for event in events:
        arrival = Arrival.read(asset, str(event.partition_key), event.extra)
        if asset.status in ANY_TERMINAL:
            # A session that was re-opened, or whose reported end differs, is not in that status any more.
            from_poll = event.extra.get("evidence") == Source.POLL
            if not from_poll or ended.get((arrival.meter_id, arrival.key), asset.status) != asset.status:
                continue
        yield _Candidate(
            arrival=arrival, asset_id=asset_id, uri=uri, at=event.timestamp, event_id=event.id, extra=event.extra
        )


def _without_run(session: Session, consumer: _Consumer, batch: Sequence[_Candidate]) -> list[_Candidate]:
    keys = {each.key for each in batch}
    event = select(AssetModel.uri, AssetEvent.partition_key, AssetEvent.extra)
    event = event.join_from(AssetEvent, AssetModel, AssetModel.id == AssetEvent.asset_id)
    # Pending ones first: the scheduler turns them into runs, and this order never misses one in between.
    pending = (
        event.join(PartitionedAssetKeyLog, PartitionedAssetKeyLog.asset_event_id == AssetEvent.id)
        .join(AssetPartitionDagRun, AssetPartitionDagRun.id == PartitionedAssetKeyLog.asset_partition_dag_run_id)
        .where(
            AssetPartitionDagRun.target_dag_id == consumer.dag_id,
            AssetPartitionDagRun.created_dag_run_id.is_(None),
            AssetPartitionDagRun.partition_key.in_(keys),
        )
    )
    runs = and_(DagRun.dag_id == consumer.dag_id, DagRun.partition_key.in_(keys))
    consumed = (
        event.join(association_table, association_table.c.event_id == AssetEvent.id)
        .join(DagRun, DagRun.id == association_table.c.dag_run_id)
        .where(runs)
    )
    # The events of an old run may have been deleted: then it counts for each session with that id.
    bare = select(DagRun.partition_key).where(
        runs, DagRun.run_type == DagRunType.ASSET_TRIGGERED, ~DagRun.consumed_asset_events.any()
    )
    served: set[Arrival] = set()
    for uri, key, extra in (*session.execute(pending), *session.execute(consumed)):
        with suppress(ValueError):  # an asset of another provider
            served.add(Arrival.read(read_asset_uri(uri), str(key), extra))
    any_time = {each[:-1] for each in served}
    unknown = set(session.scalars(bare))

    def has_run(each: _Candidate) -> bool:
        if each.event_id is None:
            return each.arrival[:-1] in any_time or each.key in unknown
        return each.arrival in served

    return [each for each in batch if not has_run(each)]


def _start(session: Session, consumer: _Consumer, batch: Sequence[_Candidate]) -> list[_Candidate]:
    # The same order of locks as when a callout is stored: the sessions in their order, then runs, then the assets.
    sessions = sorted({(each.arrival.conn_id, each.arrival.meter_id, each.key) for each in batch})
    for meter, of_meter in groupby(sessions, key=itemgetter(0, 1)):
        conn_id, meter_id = meter
        session.execute(
            select(SessionRow.id)
            .where(
                SessionRow.conn_id == conn_id,
                SessionRow.meter_id == meter_id,
                SessionRow.session_id.in_([key for _, _, key in of_meter]),
            )
            .order_by(SessionRow.session_id)
            .with_for_update()
        )
    lock_pending_runs({each.key for each in batch}, session=session)
    lock_assets(consumer.assets, session=session)
    missing = _without_run(session, consumer, batch)
    dag = session.get_one(DagModel, consumer.dag_id)
    for each in missing:
        # The run uses the event of that time; if the asset did not exist yet, there is none.
        event = session.get(AssetEvent, each.event_id) if each.event_id is not None else None
        if event is None:
            event = AssetEvent(asset_id=each.asset_id, extra=dict(each.extra), partition_key=each.key)
            session.add(event)
            session.flush()
            # A session's event is searched around the time of the session's row.
            arrival = each.arrival
            of_session = {"conn_id": arrival.conn_id, "meter_id": arrival.meter_id, "session_id": each.key}
            session.execute(update(SessionRow).filter_by(**of_session).values(updated_at=datetime.now(UTC)))
        queue_run(dag, event, session=session)
    return missing


def _batches(keys: Iterable[str]) -> Iterator[list[str]]:
    listed = sorted(set(keys))
    return (listed[at : at + _KEYS] for at in range(0, len(listed), _KEYS))
