"""What is told of the waits themselves: which task waits for which session, for people who look at the journal."""

from __future__ import annotations

import hashlib
import json
from typing import TYPE_CHECKING, Any, NamedTuple

from airflow_mediation_provider.protocol.feed import WaitEnded, WaitReport

if TYPE_CHECKING:
    from datetime import datetime

    from airflow_mediation_provider.protocol.wait import SessionWait


class WaitingTask(NamedTuple):
    """The task instance that waits."""

    dag_id: str
    run_id: str
    task_id: str
    map_index: int
    try_number: int

    @classmethod
    def of(cls, ti: Any) -> WaitingTask | None:
        """Return what names a task instance, ``None`` where it is not known."""
        if getattr(ti, "dag_id", None) is None:
            return None
        map_index = getattr(ti, "map_index", None)
        return cls(
            dag_id=str(ti.dag_id),
            run_id=str(ti.run_id),
            task_id=str(ti.task_id),
            map_index=-1 if map_index is None else int(map_index),
            try_number=int(getattr(ti, "try_number", None) or 0),
        )


def report(conn_id: str, wait: SessionWait, task: WaitingTask, mode: str) -> WaitReport:
    """Return the report of a wait.

    :param conn_id: the connection that it waits over
    :param mode: ``triggerer`` or ``worker``
    """
    return WaitReport(
        id=_wait_id(conn_id, task),
        meter_id=wait.condition.meter_id,
        version=wait.condition.version,
        session_id=wait.known.session_id,
        condition=wait.condition.to_dict(),
        **task._asdict(),
        mode=mode,
        created_at=wait.created_at,
        until=wait.condition.until,
    )


def ended(conn_id: str, wait: SessionWait, task: WaitingTask, at: datetime) -> WaitEnded:
    """Return the report of a wait's end, or that its process left it.

    :param at: when it ended
    """
    outcome = wait.result.end if wait.result else "left"
    return WaitEnded(id=_wait_id(conn_id, task), outcome=outcome, ended_at=at, session_id=wait.known.session_id)


def _wait_id(conn_id: str, task: WaitingTask) -> str:
    """Return the same id for each try, worker and triggerer of a task instance."""
    identity = [conn_id, task.dag_id, task.run_id, task.task_id, task.map_index]
    return hashlib.sha256(json.dumps(identity).encode()).hexdigest()
