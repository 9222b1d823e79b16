"""What the health line of one connection counts: the waiting tasks, sessions without callouts, API calls by hour."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import TYPE_CHECKING, Final

from fastapi import APIRouter, Request, Response

from airflow_mediation_provider.api_server.auth import ReaderDep  # noqa: TC001  # FastAPI reads it
from airflow_mediation_provider.api_server.pages.rendering import PageRoute, Text, page
from airflow_mediation_provider.journal.health import UNSEEN, history_health, sessions_without_callouts
from airflow_mediation_provider.journal.task_reports import calls_by_hour
from airflow_mediation_provider.journal.transaction import read
from airflow_mediation_provider.journal.triggered_runs import open_waits

if TYPE_CHECKING:
    from collections.abc import Sequence

    from sqlalchemy.orm import Session

    from airflow_mediation_provider.journal.health import HistoryHealth, Uncalled
    from airflow_mediation_provider.journal.tables import CallsRow
    from airflow_mediation_provider.journal.triggered_runs import Wait

    _OfConnection = tuple[list[Wait], list[Uncalled], Sequence[CallsRow], HistoryHealth | None]

router = APIRouter(route_class=PageRoute)

MOST: Final = 100


@router.get("/connection")
def connection(request: Request, reader: ReaderDep, conn: Text) -> Response:
    """Show a connection."""
    now = datetime.now(UTC)

    def work(session: Session) -> _OfConnection:
        return (
            open_waits(session, conn, MOST),
            sessions_without_callouts(session, conn, now),
            calls_by_hour(session, conn, now),
            history_health(session, conn, now),
        )

    waits, uncalled, calls, history = read(work)
    seen = reader.sees_tasks({each.dag_id for each in waits})
    return page(
        request,
        "connection.html",
        conn=conn,
        waits=[each for each in waits if each.dag_id in seen],
        hidden=sum(each.dag_id not in seen for each in waits),
        most=MOST,
        unseen_since=now - UNSEEN,
        uncalled=uncalled,
        calls=calls,
        history=history,
    )
