"""Who ended the task: a user, or Airflow itself? Only the first may reach as far as Zuora."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from airflow.sdk.types import RuntimeTaskInstanceProtocol

USERS_STATES: Final = frozenset({"success", "failed", "skipped", "restarting", "removed"})
"""States into which only someone outside puts a running task: marked, or cleared (``restarting``)."""


def stopped_by_user(ti: RuntimeTaskInstanceProtocol) -> bool:
    """Ask Airflow whether a user marked or cleared the running task.

    A worker's ``on_kill`` also runs when its pod is evicted or Celery shuts down: the task is then still *running*, or
    waits for its retry. Where Airflow gives no answer, it was no user.
    """
    map_index = -1 if ti.map_index is None else ti.map_index
    try:
        states = ti.get_task_states(dag_id=ti.dag_id, task_ids=[ti.task_id], run_ids=[ti.run_id], map_index=map_index)
    except Exception:
        return False
    name = ti.task_id if map_index < 0 else f"{ti.task_id}_{map_index}"
    found = states.get(ti.run_id, {})
    # A running task that was cleared and already scheduled anew has no state at all.
    return name in found and str(found[name] or "restarting") in USERS_STATES
