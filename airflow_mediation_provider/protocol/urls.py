"""The addresses of the pages in Airflow's UI and of callouts, and the connection that a callout's address names."""

from __future__ import annotations

import re
from typing import Final
from urllib.parse import parse_qs, quote, unquote, urlencode, urlsplit

from airflow_mediation_provider.protocol.ids import LONGEST_CONNECTION_ID

MOUNT: Final = "/mediation"
"""The path under which the API server mounts this package."""
NAV_ROUTE: Final = "mediation-sessions"
"""The name under which Airflow's navigation shows the pages in a frame."""

CALLOUTS: Final = "/callouts/"
"""The path before a connection's id in the address of its callouts, within ``MOUNT``."""
# Slashes, and all that is blank or has no width.
_AROUND: Final = "/\u200b\ufeff" + "".join(filter(str.isspace, map(chr, range(0x3001))))


def address(base: str, path: str, **parameters: object) -> str:
    """Return the address of a page without Airflow's navigation.

    :param base: the address or the path of Airflow, without a trailing slash
    :param path: path of the page
    :param parameters: query parameters; those that are ``None`` or empty are left out, and a list is one for each item
    """
    given = [
        (name, each)
        for name, value in parameters.items()
        for each in (value if isinstance(value, list) else [value])
        if each not in (None, "")
    ]
    return f"{base}{MOUNT}{path}{'?' if given else ''}{urlencode(given)}"


def session_page(base: str, conn_id: str, meter_id: str, session_id: str) -> str:
    """Return the address of a session's page."""
    return address(base, "/session", conn=conn_id, meter=meter_id, session=session_id)


def session_of_page(page: str) -> dict[str, str] | None:
    """Return connection, meter and session that the address of a session's page names, by the keys of a session.

    :param page: of ``session_page``, also framed; of another page: ``None``
    """
    parameters = {name: values[0] for name, values in parse_qs(urlsplit(page).query).items()}
    names = {"mediation_conn_id": "conn", "meter_id": "meter", "session_id": "session"}
    found = {key: parameters[name] for key, name in names.items() if name in parameters}
    return found if len(found) == len(names) else None


def task_page(base: str, dag_id: str, run_id: str, task_id: str, map_index: int) -> str:
    """Return the address of the page that shows what a task instance waits for."""
    mapped = map_index if map_index >= 0 else None
    return address(base, "/task", dag_id=dag_id, run_id=run_id, task_id=task_id, map_index=mapped)


def framed(base: str, page: str) -> str:
    """Return the address at which Airflow shows a page with its navigation around it.

    :param base: the address or the path of Airflow
    :param page: the page's address, with the same base
    """
    # The path after the name of the frame is that of the page shown in it.
    path = page.partition("://")[2].partition("/")[2] if "://" in page else page.lstrip("/")
    return f"{base}/plugin/{NAV_ROUTE}/{path}"


def callout_address(base: str, conn_id: str) -> str:
    """Return the address to which Zuora sends the callouts of a connection.

    :param base: Airflow's address, also with ``MOUNT`` or slashes after it; an address of callouts is returned as it is
    """
    # It is what Zuora has: with a slash or a blank too many, that is what must be proven.
    if CALLOUTS in urlsplit(base).path + "/":
        return base
    return address(base.strip().rstrip("/").removesuffix(MOUNT), CALLOUTS + quote(conn_id, safe=""))


def connection_of_callout(text: str) -> str:
    """Return the connection's id in an address, which may have been pasted with blanks or slashes around it.

    Runs before authentication, so its cost is linear in the text. A text that is too long for an id stays too long, but
    is not kept whole.

    :param text: the address after ``/callouts/``, unquoted
    """
    return text.strip(_AROUND)[: LONGEST_CONNECTION_ID + 1]


def takes_callouts_of(url: str, conn_id: str) -> bool:
    """Return whether callouts to an address, as Zuora records it, reach the endpoint of a connection.

    :param url: with any host, and any path before ``/callouts/``
    """
    path = unquote(re.split("[?#]", url, maxsplit=1)[0])
    while CALLOUTS in path:
        path = path.partition(CALLOUTS)[2]
        if connection_of_callout(path) == conn_id:
            return True
    return False
