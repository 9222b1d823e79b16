"""Rows of a journal that has grown old, with what prune looks at."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any

from airflow import settings
from airflow.models.dagrun import DagRun
from airflow.models.taskinstance import TaskInstance
from sqlalchemy import insert
from sqlalchemy.orm import Session
from uuid6 import uuid7

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


def is_in(state: str | None, wait: WaitRow, *, try_number: int = 1) -> None:
    """Have Airflow know the task of a wait, in a state."""
    run = {"dag_id": wait.dag_id, "run_id": wait.run_id}
    task = {"task_id": wait.task_id, "map_index": wait.map_index, "pool": "default_pool", "pool_slots": 1}
    values = {**run, **task, "id": uuid7(), "try_number": try_number, "state": state}
    with Session(settings.get_engine()) as session:
        if session.query(DagRun).filter_by(**run).one_or_none() is None:
            session.execute(insert(DagRun).values(**run, run_type="manual", run_after=NOW))
        session.execute(insert(TaskInstance).values(**values))
        session.commit()


def keep(*rows: Any) -> None:
    with Session(settings.get_engine()) as session:
        session.add_all(rows)
        session.commit()
