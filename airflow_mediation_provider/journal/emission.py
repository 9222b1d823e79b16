"""Asset events for DAGs that are scheduled on sessions: the one module that touches Airflow's asset manager.

An event belongs to the caller's transaction: with it the journal's row and the queued DAG runs become durable together,
or none of them does.
"""

from __future__ import annotations

import inspect
from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING, Any

from airflow.assets.manager import asset_manager
from airflow.configuration import conf
from airflow.models.asset import AssetEvent, AssetModel
from sqlalchemy import select, update
from sqlalchemy.exc import DBAPIError

from airflow_mediation_provider.journal.transaction import JournalUnavailable
from airflow_mediation_provider.protocol.asset_uri import asset_uri

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Sequence

    from airflow.models.dag import DagModel
    from sqlalchemy.orm import Session


class EmissionError(JournalUnavailable):
    """Airflow's asset manager failed, so that nothing of the transaction may stay."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Event:
    """One asset event to be.

    :param meter_id: the meter
    :param status: the status that was reached
    :param partition_key: the session's id: one DAG run for each
    :param extra: the transition as JSON, with ``evidence`` and ``certain``
    """

    meter_id: str
    status: str
    partition_key: str
    extra: dict[str, Any]


def emit(
    events: Sequence[Event], *, conn_id: str, team: str | None, session: Session
) -> tuple[tuple[str, ...], list[Callable[[], None]]]:
    """Write the events of assets that some DAG names, in the order of the assets' ids, and queue their DAG runs.

    :param events: what was reached
    :param conn_id: the connection of them all
    :param team: the connection's team, where Airflow has teams
    :param session: the caller's, which commits
    :return: the assets' addresses, and what is to be called after the commit (Airflow's listeners)
    :raises EmissionError: Airflow does not take an event now: while its DAGs are parsed anew after an upgrade, say
    """
    by_uri: dict[str, list[Event]] = {}
    for event in events:
        by_uri.setdefault(asset_uri(conn_id, event.meter_id, event.status), []).append(event)
    if not by_uri:
        return (), []
    assets = session.scalars(select(AssetModel).where(AssetModel.uri.in_(by_uri)).order_by(AssetModel.id)).all()
    after: list[Callable[[], None]] = []
    emitted = []
    for asset in assets:
        for event in by_uri[asset.uri]:
            options: dict[str, Any] = {"callback_sink": after} if _has_callback_sink() else {}
            if conf.getboolean("core", "multi_team", fallback=False):
                # A connection of all teams is like a DAG of none: whom it may start is for each team's DAG to say.
                options |= {"source_is_api": team is not None, "api_user_teams": {team} if team else set()}
            try:
                asset_manager.register_asset_change(
                    asset=asset, extra=event.extra, partition_key=event.partition_key, session=session, **options
                )
            except DBAPIError:
                raise
            except Exception as error:
                raise EmissionError(f"Airflow could not take an event of the asset {asset.uri}: {error}") from error
            emitted.append(asset.uri)
    return tuple(emitted), after


class UnknownAirflowError(Exception):
    """Airflow is of a version that queues runs in another way."""


def lock_assets(asset_ids: Collection[int], *, session: Session) -> None:
    """Have nobody else queue DAG runs of these assets until the end of the transaction; Airflow locks them alike."""
    if session.get_bind().dialect.name == "sqlite":
        # Any write takes the only lock there is.
        session.execute(update(AssetModel).where(AssetModel.id.in_(asset_ids)).values(id=AssetModel.id))
        return
    rows = select(AssetModel.id).where(AssetModel.id.in_(asset_ids)).order_by(AssetModel.id)
    session.execute(rows.with_for_update(key_share=True)).all()


def queue_run(dag: DagModel, event: AssetEvent, *, session: Session) -> None:
    """Queue the run of one DAG for an event that is there already; all other DAGs of its asset are left alone.

    :param dag: scheduled on the event's asset, and on sessions one by one
    :param event: with a partition key
    :param session: the caller's, which has locked the asset, and commits
    :raises UnknownAirflowError: this version of Airflow has no way to do that
    """
    queue = getattr(asset_manager, "_queue_partitioned_dags", None)
    if queue is None:
        raise UnknownAirflowError("this version of Airflow has no known way to queue the run of one DAG alone")
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
