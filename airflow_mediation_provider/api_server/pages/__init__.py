"""The pages in Airflow's UI: the journal's sessions as HTML, in a frame or by themselves.

Each needs a login and the permission to read assets; a page shows only Dags and connections that the user may see.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Final

from starlette.staticfiles import StaticFiles

from airflow_mediation_provider.api_server.auth import may_read_assets
from airflow_mediation_provider.api_server.pages import (
    callouts,
    connection,
    health,
    meter,
    missing_runs,
    session,
    sessions,
    tasks,
)
from airflow_mediation_provider.api_server.pages.rendering import checked_parameters, unmodified

if TYPE_CHECKING:
    from fastapi import APIRouter

PARTS: Final = (sessions, session, meter, missing_runs, tasks, callouts, connection, health)
CHECKS: Final = (may_read_assets, checked_parameters, unmodified)
"""What comes before each page."""


def add_pages(router: APIRouter) -> None:
    """Add the pages to the application's routes, with their style and script, which alone need no login."""
    for part in PARTS:
        router.include_router(part.router, dependencies=CHECKS, include_in_schema=False)
    router.mount("/static", StaticFiles(directory=Path(__file__).parent / "static"))
