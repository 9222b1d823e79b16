"""Who waits for which session, as the processes that wait report it."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, Final

from airflow.models.taskinstance import TaskInstance
from airflow.utils.state import TaskInstanceState
from sqlalchemy import and_, insert, or_, update

from airflow_mediation_provider.journal.tables import WaitRow
from airflow_mediation_provider.journal.transaction import write

if TYPE_CHECKING:
    from collections.abc import Sequence

    from sqlalchemy import ColumnElement
    from sqlalchemy.orm import Session

    from airflow_mediation_provider.protocol.feed import WaitEnded, WaitReport


TASK_OF_WAIT: Final = and_(
    TaskInstance.dag_id == WaitRow.dag_id,
    TaskInstance.run_id == WaitRow.run_id,
    TaskInstance.task_id == WaitRow.task_id,
    TaskInstance.map_index == WaitRow.map_index,
)
"""Leads to the task instance of a wait, by Airflow's own index."""
# In which a task waits, or is on its way between a triggerer and a worker.
_WAITING: Final = tuple(
    TaskInstanceState(each) for each in ("running", "deferred", "up_for_reschedule", "scheduled", "queued")
)


def goes_on() -> ColumnElement[bool]:
    """Return the condition that a task's wait goes on, as far as Airflow knows; beside ``TASK_OF_WAIT``, outer.

    A process that is killed reports no end. So a wait is over too when its task has ended, or is in another try.
    """
    same_try = and_(TaskInstance.state.in_(_WAITING), TaskInstance.try_number == WaitRow.try_number)
    return and_(WaitRow.ended_at.is_(None), or_(TaskInstance.id.is_(None), same_try))


def record_waits(
    *,
    conn_id: str,
    open: Sequence[WaitReport] = (),  # noqa: A002  # as in the request
    ended: Sequence[WaitEnded] = (),
    deadline_seconds: float = 3.0,
) -> None:
    """Keep what processes report of their waits; telling the same again does no harm.

    A wait that is not reported any more goes out of date by its ``seen_at``: its process may have died.

    :param conn_id: the connection that they wait over
    :param open: waits that began, or that go on
    :param ended: waits that ended
    :param deadline_seconds: how long to wait for one's turn to write
    :raises JournalUnavailable: nothing was written
    """
    if not open and not ended:
        return
    now = datetime.now(UTC)

    def work(session: Session) -> None:
        # In one order over all writers, so that two of them never wait for each other.
        for report in sorted(open, key=lambda each: each.id):
            values = _values(report, conn_id) | {"seen_at": now, "ended_at": None, "outcome": None}
            known: Any = session.execute(update(WaitRow).where(WaitRow.id == report.id).values(**values))
            if not known.rowcount:
                session.execute(insert(WaitRow).values(**values))
        for end in sorted(ended, key=lambda each: each.id):
            values = {"ended_at": end.ended_at, "outcome": end.outcome[:16]}
            if end.session_id is not None:
                values["session_id"] = end.session_id
            session.execute(update(WaitRow).where(WaitRow.id == end.id, WaitRow.conn_id == conn_id).values(**values))

    write(work, deadline_seconds=deadline_seconds)


def _values(report: WaitReport, conn_id: str) -> dict[str, Any]:
    return {"conn_id": conn_id, **{name: getattr(report, name) for name in report.__slots__}}
