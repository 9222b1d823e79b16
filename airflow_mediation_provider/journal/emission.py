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
from airflow.models.asset import AssetModel
from sqlalchemy import select

from airflow_mediation_provider.protocol.asset_uri import asset_uri

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from sqlalchemy.orm import Session


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
                options |= {"source_is_api": True, "api_user_teams": {team} if team else set()}
            asset_manager.register_asset_change(
                asset=asset, extra=event.extra, partition_key=event.partition_key, session=session, **options
            )
            emitted.append(asset.uri)
    return tuple(emitted), after


@cache
def _has_callback_sink() -> bool:
    return "callback_sink" in inspect.signature(asset_manager.register_asset_change).parameters
