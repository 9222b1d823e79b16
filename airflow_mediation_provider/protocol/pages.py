"""The addresses of the pages in Airflow's UI, as links, tabs and the pages themselves make them."""

from __future__ import annotations

from typing import Final
from urllib.parse import urlencode

MOUNT: Final = "/mediation"
"""Where the API server has all that is of this package."""
NAV_ROUTE: Final = "mediation-sessions"
"""The name under which Airflow's navigation shows the pages, in a frame."""


def address(base: str, path: str, **parameters: object) -> str:
    """Return the address of a page by itself.

    :param base: the address or the path of Airflow, without a slash at its end
    :param path: of the page
    :param parameters: of the page; those that are ``None`` or empty are left out
    """
    given = {name: value for name, value in parameters.items() if value not in (None, "")}
    return f"{base}{MOUNT}{path}{'?' if given else ''}{urlencode(given)}"


def session_page(base: str, conn_id: str, meter_id: str, session_id: str) -> str:
    """Return the address of a session's page."""
    return address(base, "/session", conn=conn_id, meter=meter_id, session=session_id)


def task_page(base: str, dag_id: str, run_id: str, task_id: str, map_index: int) -> str:
    """Return the address of the page that shows what a task instance waits for."""
    mapped = map_index if map_index >= 0 else None
    return address(base, "/task", dag_id=dag_id, run_id=run_id, task_id=task_id, map_index=mapped)


def framed(base: str, page: str) -> str:
    """Return the address at which Airflow shows a page with its navigation around it.

    :param base: the address or the path of Airflow
    :param page: the page's address, with the same base
    """
    # What follows the name of the frame is the path of what is shown there.
    path = page.partition("://")[2].partition("/")[2] if "://" in page else page.lstrip("/")
    return f"{base}/plugin/{NAV_ROUTE}/{path}"
