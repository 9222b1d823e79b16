"""Asset events for Dags that are scheduled on sessions: the only module that uses Airflow's asset manager.

An event is written in the caller's transaction: the journal's row and the queued Dag runs become durable together, or
not at all.
"""

from __future__ import annotations

import inspect
import json
from dataclasses import dataclass
from functools import cache, partial
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from airflow.assets.manager import asset_manager
from airflow.configuration import conf
from airflow.models.asset import AssetEvent, AssetModel, AssetPartitionDagRun
from sqlalchemy import bindparam, select, update
from sqlalchemy.exc import DBAPIError

from airflow_mediation_provider.journal.transaction import JournalUnavailable
from airflow_mediation_provider.protocol.sessions.asset_uri import arrival_uris
from airflow_mediation_provider.protocol.sessions.lifecycle import status_before

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Mapping, Sequence

    from airflow.models.dag import DagModel
    from sqlalchemy.orm import Session

    from airflow_mediation_provider.protocol.sessions.asset_uri import SessionAsset
    from airflow_mediation_provider.protocol.sessions.session_result import SessionResult
    from airflow_mediation_provider.protocol.transition import SessionTransition


# Built once: building takes longer than running.
_NAMED: Final = select(AssetModel).where(AssetModel.uri.in_(bindparam("uris", expanding=True))).order_by(AssetModel.id)
_RUN: Final = AssetPartitionDagRun.metadata.tables[AssetPartitionDagRun.__tablename__].c
_PENDING: Final = select(_RUN.id).where(
    _RUN.partition_key.in_(bindparam("keys", expanding=True)), _RUN.created_dag_run_id.is_(None)
)


class EmissionError(JournalUnavailable):
    """Airflow's asset manager failed, so the transaction must be rolled back."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Event:
    """One arrival of a session at a status, for all assets that stand for it.

    :param meter_id: the meter
    :param status: the status that was reached
    :param previous_status: the status right before, where it is known
    :param run_type: the session's
    :param partition_key: the session's id, so that each session gets its own Dag run
    :param extra: the event's extra: the session
    :param announced: only the assets that name the previous status are left: the others had the arrival's event before
    """

    meter_id: str
    status: str
    previous_status: str | None = None
    run_type: str
    partition_key: str
    extra: SessionResult
    announced: bool = False

    @classmethod
    def of(cls, change: SessionTransition, extra: SessionResult, *, announced: bool = False) -> Event:
        """Return the event of a change of a session's status, with the run type that follows from all its reports."""
        return cls(
            meter_id=change.meter_id,
            status=change.status,
            previous_status=status_before(change),
            run_type=change.run_type,
            partition_key=str(change.session_id),
            extra=extra,
            announced=announced,
        )

    def uris(self, conn_id: str) -> tuple[str, ...]:
        """Return the addresses of the assets."""
        of_arrival = partial(arrival_uris, conn_id, self.meter_id, self.status, run_type=self.run_type)
        uris = of_arrival(previous_status=self.previous_status)
        if not self.announced:
            return uris
        had = of_arrival(previous_status=None)
        return tuple(uri for uri in uris if uri not in had)


class Arrival(NamedTuple):
    """One arrival of a session at a status, read from an asset event: equal for all events of it.

    :param key: the session's id, or the key of a poll, which names no session
    :param report: all that the event has of it
    """

    conn_id: str
    meter_id: str
    key: str
    status: str
    report: str

    @classmethod
    def read(cls, asset: SessionAsset, key: str, extra: Mapping[str, Any]) -> Arrival:
        """Return what an event stands for.

        :param asset: its asset; an event that a user made may have no session in its extra
        :param key: its partition key
        :param extra: its extra
        """
        meter, status = extra.get("meter_id") or asset.meter_id, extra.get("status") or asset.status
        return cls(asset.conn_id, str(meter), key, str(status), json.dumps(extra, sort_keys=True))


def emit(
    events: Sequence[Event], *, conn_id: str, team: str | None, session: Session
) -> tuple[tuple[str, ...], list[Callable[[], None]]]:
    """Write the events of assets that some Dag names, in the order of the assets' ids, and queue their Dag runs.

    Airflow adds an event to the run of its Dag and key that is still pending. So a session that fits two assets of one
    Dag starts one run: their events become visible to the scheduler together.

    :param events: the statuses that were reached
    :param conn_id: the connection of all of them
    :param team: the connection's team, where Airflow has teams
    :param session: the caller's, who commits it
    :return: the assets' addresses, and functions to call after the commit (Airflow's listeners)
    :raises EmissionError: Airflow does not accept an event now, for example while it parses its Dags after an upgrade
    """
    by_uri: dict[str, list[Event]] = {}
    for event in events:
        for uri in event.uris(conn_id):
            by_uri.setdefault(uri, []).append(event)
    if not by_uri:
        return (), []
    assets = session.scalars(_NAMED, {"uris": list(by_uri)}).all()
    lock_pending_runs({event.partition_key for asset in assets for event in by_uri[asset.uri]}, session=session)
    after: list[Callable[[], None]] = []
    emitted = []
    for asset in assets:
        for event in by_uri[asset.uri]:
            options: dict[str, Any] = {"callback_sink": after} if _has_callback_sink() else {}
            if conf.getboolean("core", "multi_team", fallback=False):
                # A connection without a team is like a Dag without one: the Dag of each team decides whom it may be
                # started by.
                options |= {"source_is_api": team is not None, "api_user_teams": {team} if team else set()}
            try:
                asset_manager.register_asset_change(
                    asset=asset, extra=dict(event.extra), partition_key=event.partition_key, session=session, **options
                )
            except DBAPIError:
                raise
            except Exception as error:
                raise EmissionError(f"Airflow could not take an event of the asset {asset.uri}: {error}") from error
            emitted.append(asset.uri)
    return tuple(emitted), after


def lock_pending_runs(keys: Collection[str], *, session: Session) -> None:
    """Lock the runs of some sessions that the scheduler has not made yet, until the end of the transaction.

    Otherwise Airflow could add an event to a run that the scheduler is just making, which then never gets it. The
    scheduler passes over locked runs, and makes them in its next turn. Taken before assets are locked.
    """
    if not keys:
        return
    # By their ids: Airflow has no index by the key, and MySQL locks each row that it reads.
    if found := session.scalars(_PENDING, {"keys": list(keys)}).all():
        rows = select(AssetPartitionDagRun.id).where(AssetPartitionDagRun.id.in_(found))
        session.execute(rows.order_by(AssetPartitionDagRun.id).with_for_update()).all()


class UnknownAirflowError(Exception):
    """Airflow is of a version that queues runs in another way."""


def lock_assets(asset_ids: Collection[int], *, session: Session) -> None:
    """Lock assets as Airflow does, so that nothing else queues Dag runs of them until the end of the transaction."""
    if session.get_bind().dialect.name == "sqlite":
        # On SQLite any write takes the only lock that exists.
        session.execute(update(AssetModel).where(AssetModel.id.in_(asset_ids)).values(id=AssetModel.id))
        return
    rows = select(AssetModel.id).where(AssetModel.id.in_(asset_ids)).order_by(AssetModel.id)
    session.execute(rows.with_for_update(key_share=True)).all()


def queue_run(dag: DagModel, event: AssetEvent, *, session: Session) -> None:
    """Queue the run of one Dag for an existing event; the other Dags of its asset are not affected.

    :param dag: scheduled on the event's asset, and with one run for each session
    :param event: with a partition key
    :param session: the caller's, who has locked the asset and commits
    :raises UnknownAirflowError: this version of Airflow has no known function for that
    """
    queue = getattr(asset_manager, "_queue_partitioned_dags", None)
    if queue is None:
        raise UnknownAirflowError("this version of Airflow has no known way to queue the run of one Dag alone")
    options = {"partition_date": None} if "partition_date" in inspect.signature(queue).parameters else {}
    queue(
        asset_id=event.asset_id,
        partition_dags=[dag],
        event=event,
        partition_key=event.partition_key,
        task_instance=None,
        session=session,
        **options,
    )


@cache
def _has_callback_sink() -> bool:
    return "callback_sink" in inspect.signature(asset_manager.register_asset_change).parameters
