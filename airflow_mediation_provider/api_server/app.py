"""The FastAPI application under ``/mediation``: its routes, and JSON for every answer, errors too.

Airflow mounts it as it is and adds no authentication: each route authenticates by itself, or returns no data.
"""

from __future__ import annotations

import asyncio
import re
from http import HTTPStatus
from typing import TYPE_CHECKING, Any, Final

from fastapi import APIRouter, FastAPI, Request
from starlette.exceptions import HTTPException

from airflow_mediation_provider import __version__, metrics
from airflow_mediation_provider.api_server import callouts, feed, internal
from airflow_mediation_provider.api_server.connections import Connections, ids_in_use
from airflow_mediation_provider.api_server.http import UNAVAILABLE, ThrottledLog, TtlMap, error_docs, refused
from airflow_mediation_provider.api_server.internal import ApiUsageBuffer
from airflow_mediation_provider.api_server.journal import ReceiptBuffer, Recorder
from airflow_mediation_provider.api_server.pages import add_pages
from airflow_mediation_provider.api_server.pages.rendering import RECENT_PAGES, RECENT_SECONDS, error_page
from airflow_mediation_provider.journal.meters import Tempos
from airflow_mediation_provider.journal.session_list import known_connections
from airflow_mediation_provider.journal.transaction import read
from airflow_mediation_provider.protocol.urls import CALLOUTS
from airflow_mediation_provider.protocol.wire import HANDSHAKE_PATH, PROTOCOL, SERVICE

if TYPE_CHECKING:
    from fastapi import Response
    from fastapi.responses import JSONResponse
    from starlette.types import ASGIApp, Receive, Scope, Send

# Connections that are looked up at the start; further ones at their first request.
_MOST_WARM: Final = 100

# Once, and not for each application: FastAPI analyses every route again when it is included.
_routes: Final = APIRouter()
for _part in (callouts, feed, internal):
    _routes.include_router(_part.router)
add_pages(_routes)


@_routes.get(HANDSHAKE_PATH, responses=error_docs(405))
async def handshake() -> dict[str, Any]:
    """Identify this server: the feed's clients find it by this, and users check a reverse proxy with it."""
    return {"service": SERVICE, "protocol": PROTOCOL, "version": __version__}


def create_app(
    connections: Connections | None = None,
    recorder: Recorder | None = None,
    receipts: ReceiptBuffer | None = None,
) -> FastAPI:
    """Return the application.

    :param connections: looks up connections; Airflow's by default
    :param recorder: writes into the journal; Airflow's database by default
    :param receipts: stores what callouts were answered; in Airflow's database by default
    """
    # No documentation pages and no schema: unauthenticated clients get no more than they need.
    app = FastAPI(
        title="Zuora Mediation for Airflow",
        version=__version__,
        docs_url=None,
        redoc_url=None,
        openapi_url=None,
        redirect_slashes=False,
        routes=_routes.routes,
    )
    metrics.in_api_server()
    app.state.connections = connections or Connections(in_use=ids_in_use)
    app.state.recorder = recorder or Recorder()
    app.state.throttled_log = ThrottledLog(app.state.connections.knows)
    app.state.page_log = ThrottledLog(of="path")
    app.state.recent_pages = TtlMap(RECENT_SECONDS, RECENT_PAGES)
    app.state.receipts = receipts or ReceiptBuffer()
    app.state.calls = ApiUsageBuffer()
    app.state.tempos = Tempos()
    app.add_middleware(_SingleSlashes)
    app.add_exception_handler(HTTPException, _http_error)
    app.add_exception_handler(Exception, _server_error)
    return app


async def warm_up(app: FastAPI) -> None:
    """Connect to the database and look up the connections of the journal, for which the first callout would wait.

    A look-up that fails is made again by the request that needs it.

    :raises JournalUnavailable: the database does not answer
    """
    conn_ids = await asyncio.to_thread(read, known_connections)
    await asyncio.gather(*map(app.state.connections.get, conn_ids[:_MOST_WARM]), return_exceptions=True)


class _SingleSlashes:
    """Reads several slashes in the address of a callout as one: Zuora never sends a callout again after a 404."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request."""
        path = re.sub("/{2,}", "/", scope.get("path", ""))
        await self._app({**scope, "path": path} if CALLOUTS in path else scope, receive, send)


async def _http_error(request: Request, error: Exception) -> Response:
    """Answer what the router refuses: an unknown path, a wrong method. A browser gets a page, any other client JSON."""
    assert isinstance(error, HTTPException)  # noqa: S101  # registered for nothing else
    if error.status_code == HTTPStatus.NOT_FOUND and "text/html" in request.headers.get("accept", ""):
        return error_page(request, error.status_code, "There is no such page.")
    standard = error.detail == HTTPStatus(error.status_code).phrase
    return refused(error.status_code, error.detail.lower() if standard else error.detail, error.headers)


async def _server_error(_request: Request, _error: Exception) -> JSONResponse:
    """Answer an unexpected error; ``LazyApp`` logs it, and Zuora sends a callout again after a 5xx."""
    return refused(503, UNAVAILABLE)
