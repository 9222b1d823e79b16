"""Two tabs in Airflow: the session of a task instance, and the sessions of a DAG run; Airflow shows them on each."""

from __future__ import annotations

import re
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Final

from fastapi import APIRouter, Request, Response
from starlette.exceptions import HTTPException

from airflow_mediation_provider.api_server.auth import ReaderDep  # noqa: TC001  # FastAPI reads it
from airflow_mediation_provider.api_server.pages.rendering import page
from airflow_mediation_provider.api_server.pages.route import PageRoute, Text
from airflow_mediation_provider.api_server.pages.sessions import Row, bare_row
from airflow_mediation_provider.journal import consequences
from airflow_mediation_provider.journal.filters import Filters
from airflow_mediation_provider.journal.health import UNSEEN
from airflow_mediation_provider.journal.listing import Listed, SessionKey, find_session, find_sessions, list_sessions
from airflow_mediation_provider.journal.timeline import timeline
from airflow_mediation_provider.journal.transaction import read
from airflow_mediation_provider.protocol.times import from_json

if TYPE_CHECKING:
    from sqlalchemy.orm import Session

    from airflow_mediation_provider.journal.consequences import Wait
    from airflow_mediation_provider.journal.timeline import Told

router = APIRouter(route_class=PageRoute)

# What Airflow leaves in the address of a task that is not mapped.
_UNMAPPED: Final = ("", "{MAP_INDEX}")
_NUMBER: Final = re.compile(r"-1|[0-9]{1,9}")
_RECENT: Final = 5


@dataclass(frozen=True, slots=True, kw_only=True)
class WaitView:
    """A wait and its session.

    :param session: ``None`` as long as it is not known which one it is
    :param told: the timeline of the session, the last first
    :param recent: without a session: the last ones of the meter
    :param lost: whether it goes on in a triggerer, and that has not reported it for minutes
    :param since: of an unnamed session: when it starts at the earliest
    """

    wait: Wait
    session: Listed | None
    told: list[Told]
    recent: list[Row]
    lost: bool
    since: datetime | None


@router.get("/task")
def task(
    request: Request, reader: ReaderDep, dag_id: Text, run_id: Text, task_id: Text, map_index: Text = ""
) -> Response:
    """Show what a task instance waits for."""
    if dag_id not in reader.sees_tasks([dag_id]):
        raise HTTPException(403, f"You may not see the tasks of the DAG {dag_id}.")
    if map_index not in _UNMAPPED and not _NUMBER.fullmatch(map_index):
        raise HTTPException(400, f"map_index={map_index} is no number of a mapped task.")
    number = -1 if map_index in _UNMAPPED else int(map_index)
    now = datetime.now(UTC)

    def work(session: Session) -> WaitView | None:
        wait = consequences.wait_of_task(session, dag_id, run_id, task_id, number)
        return None if wait is None else _view(session, wait, now)

    return page(request, "task.html", view=read(work), task_id=task_id)


@router.get("/run")
def run(request: Request, reader: ReaderDep, dag_id: Text, run_id: Text) -> Response:
    """Show the sessions that started a DAG run, and those that its tasks wait for."""
    if dag_id not in reader.sees_runs([dag_id]):
        raise HTTPException(403, f"You may not see the runs of the DAG {dag_id}.")
    now = datetime.now(UTC)
    sees_tasks = dag_id in reader.sees_tasks([dag_id])

    def work(session: Session) -> tuple[list[Row], list[tuple[Wait, Row | None]]]:
        started_by = consequences.sessions_of_run(session, dag_id, run_id)
        waits = consequences.waits_of_run(session, dag_id, run_id) if sees_tasks else []
        awaited = (key for wait in waits if (key := _key(wait)) is not None)
        known = find_sessions(session, (*started_by, *awaited)).values()
        rows = {each.key: bare_row(each, now) for each in known}
        triggers = [rows[key] for key in started_by if key in rows]
        return triggers, [(wait, rows.get(key) if (key := _key(wait)) else None) for wait in waits]

    triggers, waits = read(work)
    return page(request, "run.html", triggers=triggers, waits=waits)


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
        told=timeline(session, listed)[0] if listed else [],
        recent=recent,
        lost=wait.goes_on and wait.mode == "triggerer" and now - wait.seen_at > UNSEEN,
        since=_since(wait),
    )


def _key(wait: Wait) -> SessionKey | None:
    return None if wait.session_id is None else SessionKey(wait.conn_id, wait.meter_id, wait.session_id)


def _since(wait: Wait) -> datetime | None:
    try:
        return from_json(wait.condition.get("since"))
    except (TypeError, ValueError):  # of another version of this package
        return None
