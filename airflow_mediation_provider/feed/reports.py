"""Reports of tasks for the pages: waits and their ends, verdicts, and notes about their sessions.

Only the pages need them: a report takes a few seconds at most, and an error in it fails no try.

Kept light, because Dag files import this module through the operators: a message is imported when it is made.
"""

from __future__ import annotations

import hashlib
import json
import logging
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, Final, NamedTuple, Protocol

from airflow_mediation_provider.protocol.status import ANY_TERMINAL
from airflow_mediation_provider.protocol.times import from_json
from airflow_mediation_provider.protocol.transition import Source

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from airflow_mediation_provider.protocol.sessions.verdict import TaskNote, TaskVerdict
    from airflow_mediation_provider.protocol.waits.wait import SessionWait
    from airflow_mediation_provider.protocol.wire import WaitEnded, WaitReport


_LONGEST_MESSAGE: Final = 2000

log = logging.getLogger(__name__)

REPORT_SECONDS: Final = 3.0
"""Time limit of one report."""


class WaitingTask(NamedTuple):
    """The waiting task instance."""

    dag_id: str
    run_id: str
    task_id: str
    map_index: int
    try_number: int

    @classmethod
    def of(cls, ti: Any) -> WaitingTask | None:
        """Return the name of a task instance, ``None`` if it is not known."""
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


def report(conn_id: str, wait: SessionWait, task: WaitingTask, mode: str, *, owner: str, begins: bool) -> WaitReport:
    """Return the report of a wait.

    :param conn_id: the connection of the wait
    :param mode: ``triggerer`` or ``worker``
    :param owner: the id that this process made when it started the wait
    :param begins: whether no such report is stored yet, as far as is known
    """
    from airflow_mediation_provider.protocol.wire import WaitReport

    return WaitReport(
        id=wait_id(conn_id, task),
        meter_id=wait.condition.meter_id,
        version=wait.condition.version,
        session_id=wait.tracker.session_id,
        condition=wait.condition.to_dict(),
        **task._asdict(),
        mode=mode,
        created_at=wait.created_at,
        until=wait.condition.until,
        owner=owner,
        begins=begins,
    )


def ended(conn_id: str, wait: SessionWait, task: WaitingTask, at: datetime, *, owner: str, begins: bool) -> WaitEnded:
    """Return the report of a wait's end, or that its process stopped it.

    :param at: when it ended
    :param owner: the id that this process made when it started the wait
    :param begins: whether no report of this process is stored yet, as far as is known
    """
    from airflow_mediation_provider.protocol.wire import WaitEnded

    session: Mapping[str, Any] = (wait.result.session if wait.result else None) or {}
    return WaitEnded(
        id=wait_id(conn_id, task),
        outcome=wait.result.end if wait.result else "left",
        ended_at=at,
        session_id=wait.tracker.session_id,
        status=session.get("status"),
        evidence=session.get("evidence"),
        certain=session.get("certain"),
        owner=owner,
        begins=begins,
    )


def verdict(conn_id: str, ti: Any, session: Mapping[str, Any] | None, mode: str) -> TaskVerdict | None:
    """Return the end of a session that a try concluded from polls, ``None`` where it concluded none.

    :param conn_id: the connection of the wait
    :param ti: the task instance; its id is new in each try
    :param session: the ``SessionResult`` on which the wait ended; ``None`` where no status ended it
    :param mode: the process in which the try ends: ``worker`` or ``triggerer``
    """
    task, ti_id = WaitingTask.of(ti), getattr(ti, "id", None)
    if task is None or ti_id is None or session is None:
        return None
    at = from_json(session["observed_at"])
    if session["evidence"] != Source.POLL or session["status"] not in ANY_TERMINAL or at is None:
        return None
    from airflow_mediation_provider.protocol.sessions.verdict import TaskVerdict

    return TaskVerdict(
        wait_id=wait_id(conn_id, task),
        **{name: session[name] for name in ("meter_id", "session_id", "run_type", "status", "certain")},
        at=at,
        **task._asdict(),
        ti_id=str(ti_id),
        mode=mode,
    )


def note(
    conn_id: str,
    ti: Any,
    kind: str,
    session: Mapping[str, Any],
    message: str,
    *,
    followed: Sequence[str] = (),
    skipped: Sequence[str] = (),
) -> TaskNote | None:
    """Return a note about a task and its session, ``None`` without a task instance.

    :param conn_id: the connection
    :param kind: as in ``TaskNote``
    :param session: a ``SessionResult``, or the part of it that is known: ``meter_id`` at least
    :param message: one sentence for the user
    :param followed: the tasks that a branch follows
    :param skipped: the tasks that it skips
    """
    task = WaitingTask.of(ti)
    if task is None:
        return None
    known: dict[str, Any] = {name: session.get(name) for name in ("session_id", "status", "evidence", "certain")}
    from airflow_mediation_provider.protocol.sessions.verdict import TaskNote

    return TaskNote(
        id=wait_id(conn_id, task),
        meter_id=str(session["meter_id"]),
        **known,
        kind=kind,
        message=message[:_LONGEST_MESSAGE],
        followed=tuple(followed),
        skipped=tuple(skipped),
        **task._asdict(),
        at=datetime.now(UTC),
    )


def wait_id(conn_id: str, task: WaitingTask) -> str:
    """Return the same id for each try, worker and triggerer of a task instance."""
    identity = [conn_id, task.dag_id, task.run_id, task.task_id, task.map_index]
    return hashlib.sha256(json.dumps(identity).encode()).hexdigest()


class Reporter(Protocol):
    """The part of ``WorkerFeedClient`` that this module needs."""

    def observe(self, *, verdicts: Sequence[TaskVerdict] = (), tasks: Sequence[TaskNote] = ()) -> bool:
        """Report, and return whether the journal has stored it."""


def report_verdict(caller: Reporter, conn_id: str, ti: Any, session: Mapping[str, Any] | None) -> None:
    """Report the end of a session if this try concluded it from polls.

    :param caller: calls the API server, with a time limit of ``REPORT_SECONDS``
    :param conn_id: the Airflow connection
    :param ti: the running task instance
    :param session: the ``SessionResult`` on which the wait ended; ``None`` where no status ended it
    """
    try:
        from airflow_mediation_provider.protocol.sessions.verdict import WORKER

        found = verdict(conn_id, ti, session, WORKER)
        if found is not None:
            caller.observe(verdicts=[found])
    except Exception as error:
        log.warning(not_shown(error))


def report_note(
    caller: Reporter,
    conn_id: str,
    ti: Any,
    kind: str,
    session: Mapping[str, Any],
    message: str,
    *,
    followed: Sequence[str] = (),
    skipped: Sequence[str] = (),
) -> None:
    """Report a note about this task and a session.

    :param caller: calls the API server, with a time limit of ``REPORT_SECONDS``
    :param conn_id: the Airflow connection
    :param ti: the running task instance
    :param kind: as in ``TaskNote``
    :param session: a ``SessionResult``, or the part of it that is known: ``meter_id`` at least
    :param message: one sentence for the user
    :param followed: the tasks that a branch follows
    :param skipped: the tasks that it skips
    """
    try:
        found = note(conn_id, ti, kind, session, message, followed=followed, skipped=skipped)
        if found is not None:
            caller.observe(tasks=[found])
    except Exception as error:
        log.warning(not_shown(error))


def not_shown(error: Exception) -> str:
    """Return the log message for a failed report, which fails no try."""
    return f"The pages will not show what this task did ({type(error).__name__}: {error})."
