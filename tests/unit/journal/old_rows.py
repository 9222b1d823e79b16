"""Rows of a journal that has grown old, with what prune looks at."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any

from airflow import settings
from sqlalchemy.orm import Session

from airflow_mediation_provider.journal.tables import SessionRow, TransitionRow, WaitRow

NOW = datetime(2026, 6, 1, tzinfo=UTC)
BEFORE = NOW - timedelta(days=90)
OLD = BEFORE - timedelta(days=1)
NEW = BEFORE + timedelta(days=1)


def told(session_id: str | None, at: datetime = OLD, **values: Any) -> TransitionRow:
    filled = {"conn_id": "zuora", "meter_id": "1001", "kind": "status_change", "status": "RUNNING", "source": "callout"}
    return TransitionRow(
        **{**filled, "session_id": session_id, "observed_at": at, "created_at": at, "body": {}, **values}
    )


def session_of(session_id: str, at: datetime = OLD, **values: Any) -> SessionRow:
    times = dict.fromkeys(("begun_at", "first_observed_at", "last_observed_at", "updated_at"), at)
    filled = {"conn_id": "zuora", "meter_id": "1001", "run_type": "NORMAL", "status": "COMPLETED", "source": "callout"}
    flags = {"conflict": False, "ambiguous": False, "terminal": True, "transition": {}, "emitted": {}, "revision": 1}
    return SessionRow(**{**filled, **flags, **times, "session_id": session_id, **values})


def wait_of(wait_id: str, **values: Any) -> WaitRow:
    filled = {"conn_id": "zuora", "meter_id": "1001", "version": "0.0.1", "condition": {}, "mode": "triggerer"}
    task = {"dag_id": "usage", "run_id": "r", "task_id": "wait", "map_index": -1, "try_number": 1}
    return WaitRow(**{**filled, **task, "id": wait_id, "created_at": OLD, "seen_at": NOW, **values})


def keep(*rows: Any) -> None:
    with Session(settings.get_engine()) as session:
        session.add_all(rows)
        session.commit()
