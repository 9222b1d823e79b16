"""Build the wait of a sensor from its arguments, and what depends on Airflow: the next run, an end in the triggerer.

Timetables are part of Airflow's core. Where a worker has only the Task SDK, the next run is not known.
"""

from __future__ import annotations

import logging
from datetime import datetime, timedelta
from typing import TYPE_CHECKING, Any, Final

from airflow.sdk import BaseOperator

from airflow_mediation_provider.protocol.sessions.window import bounds
from airflow_mediation_provider.protocol.waits.condition import OtherPrevious, SessionCondition
from airflow_mediation_provider.protocol.waits.wait import SessionWait
from airflow_mediation_provider.tasks.arguments import instant, latest_start

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from airflow_mediation_provider.protocol.waits.condition import Subject


log = logging.getLogger(__name__)

_OWN_XCOM_BACKEND: Final = "airflow.sdk.execution_time.xcom.BaseXCom"


def make_wait(
    *,
    subject: Subject,
    statuses: Any,
    previous_statuses: Any = None,
    on_other_previous: str = "wait",
    fail_on: Any,
    since: datetime | str | None,
    before: datetime | timedelta | str | None = None,
    until: datetime,
    created_at: datetime,
    poll_interval: float,
    exclusive: bool,
    require_certain: bool,
    max_unreachable: float,
    settle: float,
) -> SessionWait:
    """Make the wait of a sensor from its rendered arguments; the same on a worker and in the triggerer.

    :param subject: the session or meter
    :param on_other_previous: ``wait``, ``fail`` or ``skip``, see ``OtherPrevious``
    :param since: the earliest start of the session; used only without a given session
    :param before: its latest start (exclusive), or the distance of that from ``since``
    :param until: the deadline
    :param created_at: when the wait started
    :param poll_interval: seconds between two polls, at least
    :param max_unreachable: seconds
    :param settle: seconds
    :raises ValueError: an argument was rendered to an invalid value; the message names it
    """
    from airflow_mediation_provider.protocol.waits.poll_pace import longest_pause

    earliest, latest = instant("since", since), None
    if subject.session_id is not None:
        earliest = None
    elif subject.begun_at is not None:
        earliest, _ = bounds(subject.begun_at, None)
    elif earliest is not None:
        earliest, latest = bounds(earliest, latest_start(before))
    return SessionWait(
        SessionCondition(
            meter_id=subject.meter_id,
            version=subject.version,
            session_id=subject.session_id,
            run_types=subject.run_types,
            statuses=statuses,
            previous_statuses=() if previous_statuses is None else previous_statuses,
            on_other_previous=OtherPrevious.of(on_other_previous, previous_statuses),
            fail_on=fail_on,
            since=earliest,
            before=latest,
            until=until,
        ),
        created_at=created_at,
        exclusive=exclusive,
        require_certain=require_certain,
        max_unreachable=timedelta(seconds=max_unreachable),
        settle=timedelta(seconds=settle),
        longest_pause=timedelta(seconds=longest_pause(poll_interval)),
    )


def note_next_run(wait: SessionWait, context: Callable[[], Mapping[str, Any]]) -> None:
    """Note, in a wait without a latest start, from when on the next scheduled run takes a session.

    :param wait: the wait, which has just started
    :param context: returns the context of the running task
    """
    since = wait.condition.since
    if since is None or wait.condition.before is not None or wait.tracker.named or wait.tracker.begun:
        return
    try:
        of_task = context()
        wait.next_since = _next_since(of_task["dag"], of_task["dag_run"], since)
    except Exception:
        # Only a warning depends on it.
        log.debug("Airflow's timetable could not compute the next run.", exc_info=True)


def _next_since(dag: Any, dag_run: Any, since: datetime) -> datetime | None:
    """Return ``since`` shifted to the next run, ``None`` if Airflow schedules none."""
    from airflow.serialization.decoders import decode_timetable
    from airflow.serialization.encoders import encode_timetable
    from airflow.timetables.base import DataInterval, TimeRestriction
    from pendulum import instance

    start, end = dag_run.data_interval_start or dag_run.run_after, dag_run.data_interval_end or dag_run.run_after
    following = decode_timetable(encode_timetable(dag.timetable)).next_dagrun_info(
        last_automated_data_interval=DataInterval(instance(start), instance(end)),
        # The run after this one, regardless of the present time.
        restriction=TimeRestriction(earliest=None, latest=dag.end_date and instance(dag.end_date), catchup=True),
    )
    if following is None:
        return None
    theirs: datetime = following.run_after if following.data_interval is None else following.data_interval.start
    return since + timedelta(seconds=(theirs - start).total_seconds())


def may_end_without_worker(task: Any) -> bool:
    """Return whether Airflow would lose nothing if a trigger ended this task by itself, as a success.

    A task that ends in the triggerer emits no outlet events, runs no callback, hook or listener, records no length for
    tasks mapped over it, and writes its XCom past a custom backend.

    :param task: the operator, as parsed on a worker or as deserialized in the triggerer
    """
    from airflow.sdk.configuration import conf
    from airflow.sdk.listener import get_listener_manager

    return not (
        not task.do_xcom_push
        or task.multiple_outputs
        or task.outlets
        or task.has_on_success_callback
        or task.has_on_skipped_callback
        or task.map_index_template
        or has_hooks(task)
        or next(task.iter_mapped_dependants(), None) is not None
        or conf.get("core", "xcom_backend") != _OWN_XCOM_BACKEND
        or get_listener_manager().has_listeners
    )


def has_hooks(task: Any) -> bool:
    """Return whether code of the user runs before or after ``execute``; a triggerer cannot run it or report it."""
    if not isinstance(task, BaseOperator):
        return False
    hooks = (task._pre_execute_hook, task._post_execute_hook)
    cls = type(task)
    overridden = cls.pre_execute is not BaseOperator.pre_execute or cls.post_execute is not BaseOperator.post_execute
    return overridden or any(hook is not None for hook in hooks)
