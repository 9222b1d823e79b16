"""Callouts that nobody could read: what came, why not, and a button that has them read again."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Final

from anyio import from_thread
from fastapi import APIRouter, Form, Request, Response
from starlette.exceptions import HTTPException

from airflow_mediation_provider.api_server.auth import Reader, ReaderDep, same_origin
from airflow_mediation_provider.api_server.connections import LookupFailedError, UnknownConnectionError
from airflow_mediation_provider.api_server.pages.rendering import page
from airflow_mediation_provider.api_server.pages.route import PageRoute, Text
from airflow_mediation_provider.journal.listing import known_connections
from airflow_mediation_provider.journal.reparse import reparse
from airflow_mediation_provider.journal.timeline import unread_callouts
from airflow_mediation_provider.journal.transaction import read
from airflow_mediation_provider.protocol.errors import MisconfigurationError

if TYPE_CHECKING:
    from datetime import datetime

    from airflow_mediation_provider.journal.timeline import Unread

router = APIRouter(route_class=PageRoute)

_SHOWN_CHARACTERS: Final = 2000


@dataclass(frozen=True, slots=True, kw_only=True)
class Callout:
    """An unreadable callout.

    :param text: what came; ``None`` where the user may not see that
    """

    conn_id: str
    observed_at: datetime
    error: str
    text: str | None


@router.get("/unread")
def unread(request: Request, reader: ReaderDep) -> Response:
    """Show the callouts that could not be read."""
    return _shown(request, reader)


@router.post("/unread/reparse", dependencies=[same_origin])
def unread_reparse(request: Request, reader: ReaderDep, conn: Annotated[Text, Form()]) -> Response:
    """Read the unreadable callouts of a connection again; what can be read starts DAGs as a callout does."""
    if not (reader.makes_events() and reader.reads_connection(conn)):
        raise HTTPException(403, "Only who may make asset events and read the connection may do that.")
    try:
        connection = from_thread.run(request.app.state.connections.get, conn)
        outcomes = list(reparse(connection.callouts, team=connection.team))
    except UnknownConnectionError:
        return _shown(request, reader, notice=f"There is no connection {conn} of type mediation.", failed=True)
    except (LookupFailedError, MisconfigurationError) as error:
        return _shown(request, reader, notice=f"The connection {conn} cannot be used: {error}", failed=True)
    readable = sum(each.entry is not None for each in outcomes)
    still = len(outcomes) - readable
    notice = f"{readable} could be read and count now; {still} still cannot."
    return _shown(request, reader, notice=notice, failed=readable == 0)


def _shown(request: Request, reader: Reader, *, notice: str = "", failed: bool = False) -> Response:
    rows: list[Unread] = read(lambda session: unread_callouts(session, known_connections(session)))
    callouts = [_callout(each, reader) for each in rows]
    allowed = reader.makes_events()
    connections = sorted({each.conn_id for each in rows if allowed and reader.reads_connection(each.conn_id)})
    return page(request, "unread.html", callouts=callouts, connections=connections, notice=notice, failed=failed)


def _callout(row: Unread, reader: Reader) -> Callout:
    text = str(row.body.get("text") or row.body)[:_SHOWN_CHARACTERS] if reader.reads_connection(row.conn_id) else None
    return Callout(
        conn_id=row.conn_id, observed_at=row.observed_at, error=str(row.body.get("error") or "unknown"), text=text
    )
