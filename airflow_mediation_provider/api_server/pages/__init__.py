"""The pages in Airflow's UI: what the journal knows of sessions, as HTML, in a frame or by themselves.

Each needs a login and the permission to read assets; what a page shows of DAGs and connections, the user may see too.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Final

from starlette.staticfiles import StaticFiles

from airflow_mediation_provider.api_server.auth import may_read_assets
from airflow_mediation_provider.api_server.pages import health, session, sessions, tasks, unread

if TYPE_CHECKING:
    from fastapi import FastAPI

PARTS: Final = (sessions, session, tasks, unread, health)


def add_pages(app: FastAPI) -> None:
    """Add the pages to the application, and the style and script that they load; nothing else is open to strangers."""
    for part in PARTS:
        app.include_router(part.router, dependencies=[may_read_assets], include_in_schema=False)
    app.mount("/static", StaticFiles(directory=Path(__file__).parent / "static"))
