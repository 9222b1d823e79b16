"""Old rows of a journal, for the tests of prune."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any

from airflow import settings
from airflow.models.dagrun import DagRun
from airflow.models.taskinstance import TaskInstance
from sqlalchemy import insert
from sqlalchemy.orm import Session
from uuid6 import uuid7

from airflow_mediation_provider.journal.tables import (
    ListedRow,
    MeterRow,
    SessionRow,
    TransitionRow,
    VerdictRow,
    WaitRow,
)
from airflow_mediation_provider.protocol.status import SessionStatus

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
    row = SessionRow(**{**filled, **flags, **times, "session_id": session_id, **values})
    row.best_status, row.best_evidence, row.best_ended = row.status, row.source, row.terminal
    row.best_certain = not (row.conflict or row.ambiguous)
    row.best_ended_at = (row.ended_at or row.last_observed_at) if row.terminal else None
    row.best_marks = _marks(
        ambiguous=row.ambiguous, conflict=row.conflict, unknown=row.status not in set(SessionStatus)
    )
    return row


def meter_of(meter_id: str, name: str, at: datetime = OLD, *, conn_id: str = "zuora") -> MeterRow:
    return MeterRow(conn_id=conn_id, meter_id=meter_id, name=name, received_at=at)


def _marks(**marks: bool) -> str:
    return " ".join(name for name, holds in marks.items() if holds)


def concluded(
    session_id: str,
    at: datetime = OLD,
    *,
    best: str = "FAILED",
    certain: bool = False,
    differs: bool = False,
    reported: bool = True,
    **values: Any,
) -> ListedRow:
    """A session without a reported end, which ended after eleven minutes as a task concluded from polls.

    :param reported: whether Zuora reported it
    """
    row: ListedRow = session_of(session_id, at, **{"status": "INITIALIZING", "terminal": False, **values})
    if not reported:
        names = (column.key for column in ListedRow.__mapper__.column_attrs if column.key not in ("id", "reported"))
        row = ListedRow(**{name: getattr(row, name) for name in names})
    row.best_status, row.best_evidence, row.best_certain, row.best_ended = best, "poll", certain, True
    row.best_ended_at, row.best_differs = at + timedelta(minutes=11), differs
    row.best_marks = _marks(conflict=differs or row.conflict, uncertain=not certain)
    return row


def verdict_of(session_id: str, status: str, at: datetime = OLD, **values: Any) -> VerdictRow:
    filled = {"conn_id": "zuora", "meter_id": "1001", "run_type": "NORMAL", "certain": False, "mode": "worker"}
    task = {"dag_id": "usage", "run_id": "r", "task_id": "wait", "map_index": -1, "try_number": 1}
    ids = {"session_id": session_id, "ti_id": str(uuid7()), "wait_id": "w"}
    return VerdictRow(**{**filled, **task, **ids, "status": status, "at": at, "created_at": at, **values})


def wait_of(wait_id: str, **values: Any) -> WaitRow:
    filled = {"conn_id": "zuora", "meter_id": "1001", "version": "0.0.1", "condition": {}, "mode": "triggerer"}
    task = {"dag_id": "usage", "run_id": "r", "task_id": "wait", "map_index": -1, "try_number": 1}
    return WaitRow(**{**filled, **task, "id": wait_id, "created_at": OLD, "seen_at": NOW, **values})


def is_in(state: str | None, wait: WaitRow, *, try_number: int = 1, **more: Any) -> str:
    """Create Airflow's task instance of a wait, in a state; return the id of the try.

    :param more: columns of its task instance
    """
    run = {"dag_id": wait.dag_id, "run_id": wait.run_id}
    task = {"task_id": wait.task_id, "map_index": wait.map_index, "pool": "default_pool", "pool_slots": 1}
    values = {**run, **task, "id": uuid7(), "try_number": try_number, "state": state, **more}
    with Session(settings.get_engine()) as session:
        if session.query(DagRun).filter_by(**run).one_or_none() is None:
            session.execute(insert(DagRun).values(**run, run_type="manual", run_after=NOW))
        session.query(TaskInstance).filter_by(**run, task_id=wait.task_id, map_index=wait.map_index).delete()
        session.execute(insert(TaskInstance).values(**values))
        session.commit()
    return str(values["id"])


def keep(*rows: Any, tasks: bool = True) -> None:
    """Insert rows into the journal.

    :param tasks: whether Airflow has the task of each open wait, as it has while a task waits
    """
    for wait in (row for row in rows if tasks and isinstance(row, WaitRow)):
        if wait.ended_at is None and not is_known(wait):
            is_in("deferred" if wait.mode == "triggerer" else "running", wait, try_number=wait.try_number)
    with Session(settings.get_engine()) as session:
        session.add_all(rows)
        session.commit()


def is_known(wait: WaitRow) -> bool:
    """Whether Airflow has the task of a wait."""
    names = {name: getattr(wait, name) for name in ("dag_id", "run_id", "task_id", "map_index")}
    with Session(settings.get_engine()) as session:
        return session.query(TaskInstance.id).filter_by(**names).first() is not None
