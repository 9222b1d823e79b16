"""The commands of ``airflow mediation``, and what they share: audit log, settings, reading the connection, times.

Each module is loaded when one of its commands is run.
"""

from __future__ import annotations

import os
import re
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from airflow.configuration import conf
from airflow.utils.cli import action_cli
from airflow.utils.providers_configuration_loader import providers_configuration_loaded

from airflow_mediation_provider.protocol.urls import callout_address

if TYPE_CHECKING:
    from argparse import Namespace
    from collections.abc import Callable

    from airflow_mediation_provider.api_server.connections import MediationConnection
    from airflow_mediation_provider.protocol.callouts.settings import CalloutSettings

    Command = Callable[[Namespace], None]


def command(function: Command) -> Command:
    """Make a function a command that works without Airflow's tables; commands that need ours check for them."""
    made: Command = action_cli(check_db=False)(providers_configuration_loaded(function))
    return made


def connection_of(conn_id: str) -> MediationConnection:
    """Return a connection of type ``mediation``.

    :raises SystemExit: there is none of exactly this id, or it could not be read; one sentence
    """
    from airflow_mediation_provider.api_server.connections import (
        IdsInUse,
        LookupFailedError,
        found_connection,
        ids_in_use,
        of_team,
    )
    from airflow_mediation_provider.journal.transaction import JournalUnavailable

    def in_use() -> IdsInUse:
        try:
            return ids_in_use()
        except JournalUnavailable:  # what needs no database works without, with the id as it was given
            return IdsInUse(frozenset({conn_id}))

    # Without it Airflow takes a command for a task, which must not read the database.
    os.environ["_AIRFLOW_PROCESS_CONTEXT"] = "server"
    try:
        found = found_connection(conn_id, in_use=in_use)
        if found is None:
            raise SystemExit(f"There is no connection {conn_id!r} of type mediation.")
        if found.conn_id != conn_id:
            raise SystemExit(
                f"Connection {conn_id!r} is found under the id {found.conn_id!r}: use that one here, in Dags and in "
                "Zuora's callout template. (Environment variables have no case, so what Dags use counts, then what the "
                "journal has, then lower case.)"
            )
        return of_team(found)
    except LookupFailedError as error:
        # The error of a backend may contain secrets, so it is shown only on request.
        more = "AIRFLOW__LOGGING__LOGGING_LEVEL=DEBUG shows the whole error"
        raise SystemExit(f"Connection {conn_id!r} could not be read: {error}. {more}.") from None


def callouts_of(connection: MediationConnection) -> CalloutSettings:
    """Return how the connection's callouts are verified and parsed.

    :raises SystemExit: a field is wrong; one sentence
    """
    from airflow_mediation_provider.protocol.zuora.errors import MisconfigurationError

    try:
        return connection.callouts
    except MisconfigurationError as error:
        raise SystemExit(str(error)) from None


def callout_url(conn_id: str, given: str | None) -> str:
    """Return the address of the connection's callouts.

    :param given: the address that was typed, in full or only Airflow's; ``[api] base_url`` unless given
    :raises SystemExit: it is no web address; one sentence
    """
    base = given or conf.get("api", "base_url", fallback=None) or "http://localhost:8080"
    if urlsplit(base).scheme not in ("http", "https") or not urlsplit(base).netloc:
        source = "--url" if given else "[api] base_url"
        raise SystemExit(f"{source} must be an address like https://airflow.example.com, not {base!r}.")
    return callout_address(base, conn_id)


def sentence(error: Exception) -> str:
    """Return an error's message as a sentence."""
    text = str(error)
    return f"{text[:1].upper()}{text[1:]}."


def time_of(option: str, text: str, now: datetime) -> datetime:
    """Return a time that was given as ISO 8601, or as an age: ``90m``, ``36h``, ``2d``.

    :param option: for the error
    :param text: a time without a zone is UTC
    :param now: the time now
    :raises SystemExit: it is neither; one sentence
    """
    try:
        if ago := re.fullmatch(r"(\d{1,6}(?:\.\d{1,3})?)([mhd])", text.strip()):
            unit = {"m": "minutes", "h": "hours", "d": "days"}[ago[2]]
            return now - timedelta(**{unit: float(ago[1])})
        time = datetime.fromisoformat(text.strip())
        return (time if time.tzinfo else time.replace(tzinfo=UTC)).astimezone(UTC)
    except OverflowError:
        raise SystemExit(f"{option} {text.strip()} is beyond the range of the calendar.") from None
    except ValueError:
        raise SystemExit(f"{option} must be a time like 2026-03-31T12:00Z, or an age like 36h.") from None
