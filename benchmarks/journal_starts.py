"""What sessions triggered in Airflow, as rows of Airflow's own tables: assets, Dags, asset events and Dag runs."""

from __future__ import annotations

from datetime import timedelta
from typing import TYPE_CHECKING, Any, Final

from airflow.models.asset import AssetEvent, AssetModel, DagScheduleAssetReference, association_table
from airflow.models.dag import DagModel
from airflow.models.dagbundle import DagBundleModel
from airflow.models.dagrun import DagRun
from sqlalchemy import func, insert, select

from airflow_mediation_provider.protocol.sessions.asset_uri import asset_uri
from benchmarks.journal_load import load

if TYPE_CHECKING:
    from collections.abc import Iterable
    from datetime import datetime

    from sqlalchemy import Connection

    from airflow_mediation_provider.protocol.transition import SessionTransition

CONN_ID: Final = "zuora_prod"
METERS: Final = [str(number) for number in range(1000, 1100)]
"""Meters whose sessions Dags are scheduled on."""
STATUSES: Final = ("COMPLETED", "FAILED")
TABLES: Final = (AssetModel.__table__, AssetEvent.__table__, DagRun.__table__, association_table)
_DAGS: Final = {meter_id: f"load_usage_{meter_id}" for meter_id in METERS[:60]}
_OTHER_ASSETS: Final = 2_000
_BUNDLE: Final = "bench"


def dag_of(meter_id: str) -> str:
    """Return the Dag that the sessions of a meter trigger.

    :raises KeyError: there is none
    """
    return _DAGS[meter_id]


def triggers(meter_id: str, status: str) -> bool:
    """Return whether a Dag is scheduled on a status of a meter's sessions."""
    return meter_id in _DAGS and status == "COMPLETED"


def run_of(session_id: str) -> str:
    """Return the id of the Dag run that a session triggered."""
    return f"asset__{session_id}"


def is_missed(session_id: str) -> bool:
    """Return whether a session triggered no run because its Dag was paused then."""
    return session_id.endswith("77")


def make_assets(connection: Connection, now: datetime) -> None:
    """Create assets, and Dags that are scheduled on some of them.

    :param connection: to a database of Airflow's, in a transaction
    :param now: the time now
    """
    stamps = {"created_at": now - timedelta(days=730), "updated_at": now}
    names = [*_uris().values(), *(f"s3://elsewhere/{number:05d}/table" for number in range(_OTHER_ASSETS))]
    assets = [{"name": name, "uri": name, "group": "asset", "extra": {}, **stamps} for name in names]
    connection.execute(insert(AssetModel), assets)
    connection.execute(insert(DagBundleModel), [{"name": _BUNDLE}])
    dag = {
        "is_paused": False,
        "is_stale": False,
        "bundle_name": _BUNDLE,
        "timetable_partitioned": True,
        "timetable_periodic": False,
        "max_active_tasks": 16,
        "max_consecutive_failed_dag_runs": 0,
        "has_task_concurrency_limits": False,
    }
    connection.execute(insert(DagModel), [{"dag_id": dag_id, **dag} for dag_id in _DAGS.values()])
    ids = _asset_ids(connection)
    scheduled = [
        {"asset_id": ids[meter_id, "COMPLETED"], "dag_id": dag_id, **stamps} for meter_id, dag_id in _DAGS.items()
    ]
    connection.execute(insert(DagScheduleAssetReference), scheduled)


class Starts:
    """Writes the asset events of sessions, and the Dag runs that they triggered.

    :param connection: to a database with the assets, in a transaction
    """

    def __init__(self, connection: Connection) -> None:
        self._connection = connection
        self._assets = _asset_ids(connection)
        self._events = connection.scalar(select(func.max(AssetEvent.id))) or 0
        self._runs = connection.scalar(select(func.max(DagRun.id))) or 0

    def load(self, sessions: Iterable[tuple[str, SessionTransition]]) -> None:
        """Write the events and runs of some sessions.

        :param sessions: connection and last report of each
        """
        events, runs, pairs = [], [], []
        for conn_id, last in sessions:
            asset_id = self._assets.get((last.meter_id, last.status)) if conn_id == CONN_ID else None
            if asset_id is None:
                continue
            self._events += 1
            at, session_id = last.observed_at, str(last.session_id)
            event = {"id": self._events, "asset_id": asset_id, "extra": last.to_dict(), "timestamp": at}
            events.append({**event, "source_map_index": -1, "partition_key": session_id})
            if not triggers(last.meter_id, last.status) or is_missed(session_id):
                continue
            self._runs += 1
            runs.append(_run(self._runs, dag_of(last.meter_id), session_id, at))
            pairs.append({"dag_run_id": self._runs, "event_id": self._events})
        load(self._connection, AssetEvent.__table__, events)
        load(self._connection, DagRun.__table__, runs)
        load(self._connection, association_table, pairs)


def _run(number: int, dag_id: str, session_id: str, at: datetime) -> dict[str, Any]:
    return {
        "id": number,
        "dag_id": dag_id,
        "run_id": run_of(session_id),
        "state": "success",
        "run_type": "asset_triggered",
        "queued_at": at,
        "run_after": at,
        "start_date": at,
        "end_date": at,
        "clear_number": 0,
        "span_status": "not_started",
        "partition_key": session_id,
    }


def _uris() -> dict[tuple[str, str], str]:
    return {(meter_id, status): asset_uri(CONN_ID, meter_id, status) for meter_id in METERS for status in STATUSES}


def _asset_ids(connection: Connection) -> dict[tuple[str, str], int]:
    ids = {uri: asset_id for asset_id, uri in connection.execute(select(AssetModel.id, AssetModel.uri))}
    return {place: ids[uri] for place, uri in _uris().items()}
