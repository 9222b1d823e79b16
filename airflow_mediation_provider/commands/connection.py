"""The connection that a command is about, looked up as the API server does it."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING
from urllib.parse import quote, urlsplit

from airflow.configuration import conf

if TYPE_CHECKING:
    from airflow_mediation_provider.api_server.connections import MediationConnection
    from airflow_mediation_provider.protocol.callout_settings import CalloutSettings


def connection_of(conn_id: str) -> MediationConnection:
    """Return a connection of type ``mediation``.

    :raises SystemExit: one sentence: there is none, or nobody could be asked
    """
    from airflow_mediation_provider.api_server.connections import LookupFailedError, find_connection

    # Without it Airflow takes a command for a task, which must not look into the database.
    os.environ["_AIRFLOW_PROCESS_CONTEXT"] = "server"
    try:
        connection = find_connection(conn_id)
    except LookupFailedError as error:
        # What a backend says may hold secrets, so it is for those alone who ask for it.
        more = "AIRFLOW__LOGGING__LOGGING_LEVEL=DEBUG shows the whole error"
        raise SystemExit(f"Connection {conn_id!r} could not be looked up: {error}. {more}.") from None
    if connection is None:
        raise SystemExit(f"There is no connection {conn_id!r} of type mediation.")
    return connection


def callouts_of(connection: MediationConnection) -> CalloutSettings:
    """Return how the connection's callouts are proven and read.

    :raises SystemExit: one sentence: a field is wrong
    """
    from airflow_mediation_provider.protocol.errors import MisconfigurationError

    try:
        return connection.callouts
    except MisconfigurationError as error:
        raise SystemExit(str(error)) from None


def callout_url(conn_id: str, given: str | None) -> str:
    """Return the address of the connection's callouts.

    :param given: as it was typed, in full or up to Airflow; ``[api] base_url`` unless given
    :raises SystemExit: one sentence: it is no address of the web
    """
    base = (given or conf.get("api", "base_url", fallback=None) or "http://localhost:8080").rstrip("/")
    if urlsplit(base).scheme not in ("http", "https") or not urlsplit(base).netloc:
        source = "--url" if given else "[api] base_url"
        raise SystemExit(f"{source} must be an address like https://airflow.example.com, not {base!r}.")
    if "/callouts/" in urlsplit(base).path + "/":
        return base
    return f"{base.removesuffix('/mediation')}/mediation/callouts/{quote(conn_id, safe='')}"
