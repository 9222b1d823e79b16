"""Unparsed callouts: their bodies, why they could not be parsed, and a button to parse them again."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Final

from anyio import from_thread
from fastapi import APIRouter, Request, Response
from starlette.exceptions import HTTPException

from airflow_mediation_provider.api_server.auth import Reader, ReaderDep, same_origin
from airflow_mediation_provider.api_server.connections import LookupFailedError, UnknownConnectionError
from airflow_mediation_provider.api_server.pages.rendering import PageRoute, form, page
from airflow_mediation_provider.journal.session_list import known_connections, unparsed_callouts
from airflow_mediation_provider.journal.transaction import read
from airflow_mediation_provider.journal.writer import reparse
from airflow_mediation_provider.protocol.zuora.errors import MisconfigurationError

if TYPE_CHECKING:
    from datetime import datetime

    from airflow_mediation_provider.journal.session_list import UnparsedCallout

router = APIRouter(route_class=PageRoute)

_SHOWN_CHARACTERS: Final = 2000


@dataclass(frozen=True, slots=True, kw_only=True)
class CalloutView:
    """An unparsed callout.

    :param text: the body; ``None`` if the user may not see it
    """

    conn_id: str
    observed_at: datetime
    error: str
    text: str | None


@router.get("/unread")
def unread(request: Request, reader: ReaderDep) -> Response:
    """Show the callouts that could not be parsed."""
    return _shown(request, reader)


@router.post("/unread/reparse", dependencies=[same_origin])
def unread_reparse(request: Request, reader: ReaderDep, form: Annotated[dict[str, str], form("conn")]) -> Response:
    """Parse the unparsed callouts of a connection again; those that succeed trigger Dags as a new callout does."""
    conn = form["conn"]
    if not (reader.makes_events() and reader.reads_connection(conn)):
        raise HTTPException(403, "You may not create asset events or not read the connection, and this needs both.")
    try:
        connection = from_thread.run(request.app.state.connections.get, conn)
        outcomes = list(reparse(connection.callouts, team=connection.team))
    except UnknownConnectionError:
        return _shown(request, reader, notice=f"There is no connection {conn} of type mediation.", failed=True)
    except (LookupFailedError, MisconfigurationError) as error:
        return _shown(request, reader, notice=f"The connection {conn} cannot be used: {error}", failed=True)
    parsed = sum(each.entry is not None for each in outcomes)
    notice = f"{parsed} parsed and counted; {len(outcomes) - parsed} still unparsed."
    return _shown(request, reader, notice=notice, failed=parsed == 0)


def _shown(request: Request, reader: Reader, *, notice: str = "", failed: bool = False) -> Response:
    rows: list[UnparsedCallout] = read(lambda session: unparsed_callouts(session, known_connections(session)))
    callouts = [_callout(each, reader) for each in rows]
    allowed = reader.makes_events()
    connections = sorted({each.conn_id for each in rows if allowed and reader.reads_connection(each.conn_id)})
    return page(request, "unread.html", callouts=callouts, connections=connections, notice=notice, failed=failed)


def _callout(row: UnparsedCallout, reader: Reader) -> CalloutView:
    # The fields of its address are beside the text.
    text = row.body.get("text") if "query" not in row.body else None
    text = str(text or row.body)[:_SHOWN_CHARACTERS] if reader.reads_connection(row.conn_id) else None
    return CalloutView(
        conn_id=row.conn_id, observed_at=row.observed_at, error=str(row.body.get("error") or "unknown"), text=text
    )
