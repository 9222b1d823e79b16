"""Two tabs in Airflow: the session of a task instance, and the sessions of a Dag run; Airflow shows both everywhere."""

from __future__ import annotations

import re
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Final

from airflow.utils.state import TaskInstanceState
from fastapi import APIRouter, Request, Response
from starlette.exceptions import HTTPException

from airflow_mediation_provider.api_server.auth import ReaderDep  # noqa: TC001  # FastAPI reads it
from airflow_mediation_provider.api_server.pages.rendering import PageRoute, Text, page
from airflow_mediation_provider.api_server.pages.sessions import Row, bare_row
from airflow_mediation_provider.journal import triggered_runs
from airflow_mediation_provider.journal.health import UNSEEN
from airflow_mediation_provider.journal.session_list import (
    ListedSession,
    SessionKey,
    find_session,
    find_sessions,
    list_sessions,
    timeline,
)
from airflow_mediation_provider.journal.session_search import Filters
from airflow_mediation_provider.journal.task_reports import LEFT
from airflow_mediation_provider.journal.transaction import read
from airflow_mediation_provider.protocol.maintenance import SHORTEST_DAYS
from airflow_mediation_provider.protocol.times import from_json, humanize

if TYPE_CHECKING:
    from sqlalchemy.orm import Session

    from airflow_mediation_provider.journal.session_list import TimelineEntry
    from airflow_mediation_provider.journal.triggered_runs import SilentTask, Wait

router = APIRouter(route_class=PageRoute)

# Airflow leaves these in the address of a task that is not mapped.
_UNMAPPED: Final = ("", "{MAP_INDEX}")
_NUMBER: Final = re.compile(r"-1|[0-9]{1,9}")
_RECENT: Final = 5
_HEADINGS: Final = {"branch": "Branched on", "summary": "Summary of", "export": "Export of", "run": "Run of"}
"""How the heading of a task's tab starts if the task does not wait, by the kind of its note."""
_ABOUT_SESSIONS: Final = frozenset(
    {
        "RunMeterOperator",
        "MeterSessionSensor",
        "MeterSessionBranchOperator",
        "MeterSummaryOperator",
        "AuditTrailExportOperator",
    }
)
_NOT_BEGUN: Final = frozenset({"", "scheduled", "queued"})


@dataclass(frozen=True, slots=True, kw_only=True)
class WaitView:
    """A wait and its session.

    :param session: ``None`` as long as it is not known which session it is
    :param entries: the timeline of the session, the latest first
    :param recent: without a session: the latest sessions of the meter
    :param left: whether it goes on, and the triggerer that reported it last was shut down
    :param lost: whether it goes on in a triggerer, and none has reported it for minutes
    :param since: without a session: its earliest start
    :param before: and the start before which it must be; ``None``: no such bound
    """

    wait: Wait
    session: ListedSession | None
    entries: list[TimelineEntry]
    recent: list[Row]
    left: bool
    lost: bool
    since: datetime | None
    before: datetime | None


@router.get("/task")
def task(
    request: Request, reader: ReaderDep, dag_id: Text, run_id: Text, task_id: Text, map_index: Text = ""
) -> Response:
    """Show the wait of a task instance, or what the task did with a session."""
    if dag_id not in reader.sees_tasks([dag_id]):
        raise HTTPException(403, f"You may not see the tasks of the Dag {dag_id}.")
    if map_index not in _UNMAPPED and not _NUMBER.fullmatch(map_index):
        raise HTTPException(400, f"map_index={map_index} is not the index of a mapped task.")
    number = -1 if map_index in _UNMAPPED else int(map_index)
    now = datetime.now(UTC)

    def work(session: Session) -> tuple[WaitView | None, str]:
        wait = triggered_runs.wait_of_task(session, dag_id, run_id, task_id, number)
        if wait is not None:
            return _view(session, wait, now), ""
        return None, _why_nothing(triggered_runs.silent_task(session, dag_id, run_id, task_id, number), now)

    view, nothing = read(work)
    return page(request, "task.html", view=view, nothing=nothing, headings=_HEADINGS, task_id=task_id)


@router.get("/run")
def run(request: Request, reader: ReaderDep, dag_id: Text, run_id: Text) -> Response:
    """Show the sessions that triggered a Dag run, and those that its tasks are about."""
    if dag_id not in reader.sees_runs([dag_id]):
        raise HTTPException(403, f"You may not see the runs of the Dag {dag_id}.")
    now = datetime.now(UTC)
    sees_tasks = dag_id in reader.sees_tasks([dag_id])

    def work(session: Session) -> tuple[list[Row], list[tuple[Wait, Row | None]]]:
        started_by = triggered_runs.sessions_of_run(session, dag_id, run_id)
        waits = triggered_runs.waits_of_run(session, dag_id, run_id) if sees_tasks else []
        awaited = (key for wait in waits if (key := _key(wait)) is not None)
        known = find_sessions(session, (*started_by, *awaited)).values()
        rows = {each.key: bare_row(each, now) for each in known}
        triggers = [rows[key] for key in started_by if key in rows]
        return triggers, [(wait, rows.get(key) if (key := _key(wait)) else None) for wait in waits]

    triggers, tasks = read(work)
    return page(request, "run.html", triggers=triggers, tasks=tasks)


def _why_nothing(task: SilentTask | None, now: datetime) -> str:
    """Return the only reason why there is nothing to show for a task."""
    if task is None:
        return "Airflow has no such task instance."
    if task.operator not in _ABOUT_SESSIONS:
        return f"This task runs {task.operator or 'an unknown operator'}, which reports no session."
    state = task.state or ""
    if state in ("skipped", "upstream_failed", "removed"):
        return f"The task is {state}, so it did nothing."
    if state in _NOT_BEGUN or task.start_date is None:
        return "The task has not started yet."
    if task.end_date is None and state != "up_for_retry":
        return "The task has reported nothing yet: its log shows whether it reaches the API server."
    if task.end_date and task.may_be_pruned and now - task.end_date > timedelta(days=SHORTEST_DAYS):
        return f"The task ended {humanize(now - task.end_date)} ago, and what it reported was pruned."
    if state in ("failed", "up_for_retry"):
        return "The task failed before it reported anything: its log has the reason."
    return "The task reported nothing, as it could not reach the API server: its log has the reason."


def _view(session: Session, wait: Wait, now: datetime) -> WaitView:
    key = _key(wait)
    listed = None if key is None else find_session(session, key)
    recent: list[Row] = []
    if listed is None:
        of_meter = Filters(conn_id=wait.conn_id, meter_id=wait.meter_id)
        recent = [bare_row(each, now) for each in list_sessions(session, of_meter, limit=_RECENT).sessions]
    return WaitView(
        wait=wait,
        session=listed,
        entries=timeline(session, listed)[0] if listed else [],
        recent=recent,
        left=wait.goes_on and wait.outcome == LEFT,
        lost=wait.goes_on and wait.task_state == TaskInstanceState.DEFERRED and now - wait.seen_at > UNSEEN,
        since=_start(wait, "since"),
        before=_start(wait, "before"),
    )


def _key(wait: Wait) -> SessionKey | None:
    return None if wait.session_id is None else SessionKey(wait.conn_id, wait.meter_id, wait.session_id)


def _start(wait: Wait, bound: str) -> datetime | None:
    try:
        return from_json(wait.condition.get(bound))
    except (TypeError, ValueError):  # written by another version of this package
        return None
