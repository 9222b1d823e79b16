"""The FastAPI application under ``/mediation``: its routes, and JSON for every answer, errors too.

Airflow mounts it as it is and adds no authentication: each route authenticates by itself, or tells nothing.
"""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING, Any

from fastapi import FastAPI, Request
from starlette.exceptions import HTTPException

from airflow_mediation_provider import __version__, metrics
from airflow_mediation_provider.api_server import callouts, feed, observations, prune, reconcile
from airflow_mediation_provider.api_server.calls import CallsKeeper
from airflow_mediation_provider.api_server.complaints import Complaints
from airflow_mediation_provider.api_server.connections import Connections
from airflow_mediation_provider.api_server.pages import add_pages
from airflow_mediation_provider.api_server.recorder import Recorder
from airflow_mediation_provider.api_server.replies import UNAVAILABLE, error_docs, refused
from airflow_mediation_provider.protocol.feed import HANDSHAKE_PATH, PROTOCOL, SERVICE

if TYPE_CHECKING:
    from fastapi.responses import JSONResponse


def create_app(connections: Connections | None = None, recorder: Recorder | None = None) -> FastAPI:
    """Return the application.

    :param connections: looks up connections; Airflow's by default
    :param recorder: writes into the journal; Airflow's database by default
    """
    # No pages of documentation and no schema to fetch: nothing tells strangers more than they need.
    app = FastAPI(
        title="Zuora Mediation for Airflow",
        version=__version__,
        docs_url=None,
        redoc_url=None,
        openapi_url=None,
        redirect_slashes=False,
    )
    metrics.in_api_server()
    app.state.connections = connections or Connections()
    app.state.recorder = recorder or Recorder()
    app.state.complaints = Complaints()
    # Connection -> how many callouts this process has refused since it took the last one.
    app.state.refused = Counter()
    app.state.calls = CallsKeeper()
    for part in (callouts, observations, feed, reconcile, prune):
        app.include_router(part.router)
    add_pages(app)
    app.add_exception_handler(HTTPException, _http_error)
    app.add_exception_handler(Exception, _server_error)

    @app.get(HANDSHAKE_PATH, responses=error_docs(405))
    async def handshake() -> dict[str, Any]:
        """Say who is here: how the feed's clients find this server, and how a reverse proxy is checked."""
        return {"service": SERVICE, "protocol": PROTOCOL, "version": __version__}

    return app


async def _http_error(_request: Request, error: Exception) -> JSONResponse:
    """Answer what the router refuses: no such path, another method."""
    assert isinstance(error, HTTPException)  # noqa: S101  # registered for nothing else
    return refused(error.status_code, str(error.detail).lower(), error.headers)


async def _server_error(_request: Request, _error: Exception) -> JSONResponse:
    """Answer what nobody foresaw; it is logged by ``LazyApp``, and Zuora sends a callout again after a 5xx."""
    return refused(503, UNAVAILABLE)
