"""Start the runs that a DAG missed: Airflow starts nothing for what came while a DAG was paused, or not there yet.

A DAG misses a session if the session came to the status that the DAG is scheduled on, and the DAG has no run with the
session's id as its partition key, and none is pending. What was looked up is looked up again under the lock under which
Airflow queues runs, so neither two replays at once nor a callout in between make two runs.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime
from functools import partial
from typing import TYPE_CHECKING, Any, Final

from airflow.models.asset import AssetEvent, AssetModel, AssetPartitionDagRun, DagScheduleAssetReference
from airflow.models.dag import DagModel
from airflow.models.dagrun import DagRun
from airflow.models.serialized_dag import SerializedDagModel
from airflow.partition_mappers.identity import IdentityMapper
from sqlalchemy import select, true, update

from airflow_mediation_provider.journal.emission import lock_assets, queue_run
from airflow_mediation_provider.journal.rows import state_of
from airflow_mediation_provider.journal.tables import SessionRow
from airflow_mediation_provider.journal.transaction import read, write
from airflow_mediation_provider.protocol.asset_uri import SCHEME, SessionAsset, read_asset_uri
from airflow_mediation_provider.protocol.status import ANY_TERMINAL
from airflow_mediation_provider.protocol.transition import Source

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

    from sqlalchemy.orm import Session

# Callouts on the same assets wait for as many as are queued in one transaction.
_BATCH: Final = 50
_PATIENCE_SECONDS: Final = 30.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Missed:
    """A session for which a DAG has no run.

    :param key: the partition key of the run: the session's id, or what a poll that names no session has instead
    :param uri: the asset that the DAG is scheduled on
    :param at: when the session's status was learned
    """

    key: str
    uri: str
    at: datetime


@dataclass(frozen=True, slots=True, kw_only=True)
class Replayed:
    """What became of one DAG.

    :param dag_id: the DAG
    :param refused: why nothing was done for it; empty where nothing stands in the way
    :param missed: the sessions without a run; now there is one for each, unless it was only to be said
    :param known: how many sessions had a run already, or one that is pending
    """

    dag_id: str
    refused: str = ""
    missed: tuple[Missed, ...] = ()
    known: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class _Candidate:
    key: str
    asset_id: int
    uri: str
    at: datetime
    extra: dict[str, Any]


def replay(
    *,
    dag_id: str | None = None,
    uri: str | None = None,
    since: datetime,
    until: datetime | None = None,
    key: str | None = None,
    dry_run: bool = False,
) -> Iterator[Replayed]:
    """Start the missing runs of one DAG, or of all DAGs on one asset; yields what became of each.

    Nothing is started twice, however often and by however many this is called.

    :param dag_id: the DAG
    :param uri: or the asset: ``mediation://CONNECTION/meters/METER/STATUS``
    :param since: sessions whose status was learned then or later
    :param until: and before then
    :param key: of one session alone: its id
    :param dry_run: start nothing
    :raises ValueError: there is no such DAG or asset, or it has nothing to do with sessions
    :raises JournalMissing: the journal's tables are not there
    :raises JournalUnavailable: the database is locked, away or broken, and stays so
    :raises UnknownAirflowError: this version of Airflow queues runs in another way
    """
    until = until or datetime.now(UTC)
    if since >= until:
        raise ValueError(f"since ({since.isoformat()}) must be before until ({until.isoformat()})")
    for consumer in read(lambda session: _consumers(session, dag_id, uri)):
        yield _of_one_dag(consumer, since, until, key, dry_run=dry_run)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Consumer:
    """A DAG and the assets of sessions on which it is scheduled."""

    dag_id: str
    refused: str
    assets: dict[int, str]


def _consumers(session: Session, dag_id: str | None, uri: str | None) -> list[_Consumer]:
    query = (
        select(DagModel, AssetModel)
        .join(DagScheduleAssetReference, DagScheduleAssetReference.dag_id == DagModel.dag_id)
        .join(AssetModel, AssetModel.id == DagScheduleAssetReference.asset_id)
        .where(AssetModel.uri.startswith(f"{SCHEME}://", autoescape=True))
        .order_by(DagModel.dag_id, AssetModel.id)
    )
    if uri is not None:
        read_asset_uri(uri)
        query = query.where(AssetModel.uri == uri)
    if dag_id is not None:
        if session.get(DagModel, dag_id) is None:
            raise ValueError(f"there is no DAG {dag_id!r}")
        query = query.where(DagModel.dag_id == dag_id)
    assets: dict[DagModel, list[AssetModel]] = {}
    for dag, asset in session.execute(query):
        try:
            read_asset_uri(asset.uri)
        except ValueError:  # the one that has a meter watched stands for no status
            continue
        assets.setdefault(dag, []).append(asset)
    if not assets:
        raise ValueError(
            f"no DAG is scheduled on {uri}" if uri is not None else f"DAG {dag_id!r} is not scheduled on sessions"
        )
    return [
        _Consumer(
            dag_id=dag.dag_id, refused=_why_not(session, dag, of_dag), assets={each.id: each.uri for each in of_dag}
        )
        for dag, of_dag in assets.items()
    ]


def _why_not(session: Session, dag: DagModel, assets: Sequence[AssetModel]) -> str:
    if dag.is_stale:
        return "its file is gone"
    if dag.is_paused:
        return f"it is paused: `airflow dags unpause {dag.dag_id}` first, or its runs would wait for that"
    if not dag.timetable_partitioned:
        return "its schedule merges sessions into one run, so nobody can tell which it missed: use on_meter_session()"
    stored = SerializedDagModel.get(dag.dag_id, session=session)
    timetable: Any = stored.dag.timetable if stored else None
    mappers = [timetable and timetable.get_partition_mapper(name=each.name, uri=each.uri) for each in assets]
    if not all(isinstance(mapper, IdentityMapper) for mapper in mappers):
        return "its schedule makes other partition keys of the sessions' ids, so nobody can tell which it missed"
    return ""


def _of_one_dag(consumer: _Consumer, since: datetime, until: datetime, key: str | None, *, dry_run: bool) -> Replayed:
    if consumer.refused:
        return Replayed(dag_id=consumer.dag_id, refused=consumer.refused)
    found = read(lambda session: _candidates(session, consumer.assets, since, until, key))
    missed: list[_Candidate] = []
    for at in range(0, len(found), _BATCH):
        batch = found[at : at + _BATCH]
        if dry_run:
            missed += read(partial(_without_run, consumer=consumer, batch=batch))
        else:
            missed += write(partial(_start, consumer=consumer, batch=batch), deadline_seconds=_PATIENCE_SECONDS)
    return Replayed(
        dag_id=consumer.dag_id,
        missed=tuple(Missed(key=each.key, uri=each.uri, at=each.at) for each in missed),
        known=len(found) - len(missed),
    )


def _candidates(
    session: Session, assets: dict[int, str], since: datetime, until: datetime, key: str | None
) -> list[_Candidate]:
    """Return the sessions that came to one of the statuses in that time, the first first; each once."""
    found: dict[str, _Candidate] = {}
    for asset_id, uri in assets.items():
        asset = read_asset_uri(uri)
        candidates = [
            *_in_status(session, asset_id, uri, asset, since, key),
            *_announced(session, asset_id, uri, asset, since, key),
        ]
        for each in candidates:
            if since <= each.at < until:
                found.setdefault(each.key, each)
    return sorted(found.values(), key=lambda each: (each.at, each.key))


def _in_status(
    session: Session, asset_id: int, uri: str, asset: SessionAsset, since: datetime, key: str | None
) -> Iterator[_Candidate]:
    """Return the sessions that are in the asset's status now."""
    rows = session.scalars(
        select(SessionRow).where(
            SessionRow.conn_id == asset.conn_id,
            SessionRow.meter_id == asset.meter_id,
            SessionRow.status == asset.status,
            SessionRow.last_observed_at >= since,
            true() if key is None else SessionRow.session_id == key,
        )
    )
    for state in map(state_of, rows):
        if not state.starts_dags:
            continue
        extra = {**state.transition.to_dict(), "evidence": str(state.source), "certain": not state.conflict}
        yield _Candidate(key=state.session_id, asset_id=asset_id, uri=uri, at=state.observed_at, extra=extra)


def _announced(
    session: Session, asset_id: int, uri: str, asset: SessionAsset, since: datetime, key: str | None
) -> Iterator[_Candidate]:
    """Return what the journal does not keep as a session's state: statuses that were passed, and what polls told."""
    events = session.scalars(
        select(AssetEvent)
        .where(
            AssetEvent.asset_id == asset_id,
            AssetEvent.timestamp >= since,
            AssetEvent.partition_key.is_not(None) if key is None else AssetEvent.partition_key == key,
        )
        .order_by(AssetEvent.id)
    ).all()
    ended = {
        row.session_id: row.status
        for keys in _batches([str(event.partition_key) for event in events])
        for row in session.scalars(
            select(SessionRow).where(
                SessionRow.conn_id == asset.conn_id,
                SessionRow.meter_id == asset.meter_id,
                SessionRow.session_id.in_(keys),
                SessionRow.terminal.is_(True),
            )
        )
    }
    for event in events:
        key = str(event.partition_key)
        if asset.status in ANY_TERMINAL:
            # A session that was re-opened, or ended otherwise in truth, is not in that status any more.
            told_by_poll = event.extra.get("evidence") == Source.POLL
            if not told_by_poll or ended.get(key, asset.status) != asset.status:
                continue
        yield _Candidate(key=key, asset_id=asset_id, uri=uri, at=event.timestamp, extra=event.extra)


def _without_run(session: Session, consumer: _Consumer, batch: Sequence[_Candidate]) -> list[_Candidate]:
    keys = [each.key for each in batch]
    # Pending ones first: the scheduler makes a run of one, and so it is seen as the one or as the other.
    pending = select(AssetPartitionDagRun.partition_key).where(
        AssetPartitionDagRun.target_dag_id == consumer.dag_id,
        AssetPartitionDagRun.created_dag_run_id.is_(None),
        AssetPartitionDagRun.partition_key.in_(keys),
    )
    runs = select(DagRun.partition_key).where(DagRun.dag_id == consumer.dag_id, DagRun.partition_key.in_(keys))
    known = {*session.scalars(pending), *session.scalars(runs)}
    return [each for each in batch if each.key not in known]


def _start(session: Session, consumer: _Consumer, batch: Sequence[_Candidate]) -> list[_Candidate]:
    # As whoever keeps a callout does: first the sessions in their order, then the assets.
    for uri in sorted(set(consumer.assets.values())):
        asset = read_asset_uri(uri)
        session.execute(
            select(SessionRow.id)
            .where(
                SessionRow.conn_id == asset.conn_id,
                SessionRow.meter_id == asset.meter_id,
                SessionRow.session_id.in_([each.key for each in batch if each.uri == uri]),
            )
            .order_by(SessionRow.session_id)
            .with_for_update()
        )
    lock_assets(consumer.assets, session=session)
    missing = _without_run(session, consumer, batch)
    dag = session.get_one(DagModel, consumer.dag_id)
    for each in missing:
        # The run takes the event of that time; where the asset was not known yet, there is none.
        event = session.scalar(
            select(AssetEvent)
            .where(AssetEvent.asset_id == each.asset_id, AssetEvent.partition_key == each.key)
            .order_by(AssetEvent.id.desc())
            .limit(1)
        )
        if event is None:
            event = AssetEvent(asset_id=each.asset_id, extra=each.extra, partition_key=each.key)
            session.add(event)
            session.flush()
            # Whoever looks for the event of a session looks around the time of its row.
            asset = read_asset_uri(each.uri)
            of_session = {"conn_id": asset.conn_id, "meter_id": asset.meter_id, "session_id": each.key}
            session.execute(update(SessionRow).filter_by(**of_session).values(updated_at=datetime.now(UTC)))
        queue_run(dag, event, session=session)
    return missing


def _batches(keys: Iterable[str]) -> Iterator[list[str]]:
    listed = sorted(set(keys))
    return (listed[at : at + _BATCH] for at in range(0, len(listed), _BATCH))
