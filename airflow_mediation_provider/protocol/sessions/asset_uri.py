"""The addresses of assets: each stands for one kind of arrival of a session at a status.

An address names one status, one meter or any, and at most one previous status; a schedule on several is a schedule on
several assets. So the addresses that an arrival can have are few and known, and no asset has to be searched for.
"""

from __future__ import annotations

import re
from decimal import Decimal
from functools import lru_cache
from typing import Final, NamedTuple
from urllib.parse import parse_qsl, quote, unquote, urlencode, urlsplit

from airflow_mediation_provider.protocol.status import (
    RunType,
    parse_status,
    run_types_of,
    status_name,
    usual_run_type,
    warn_of_unknown,
)

SCHEME: Final = "mediation"
ANY_METER: Final = "*"
"""In place of a meter's id: every meter of the connection. No meter has this id."""
_FORM: Final = f"{SCHEME}://CONNECTION/meters/METER/STATUS"
_EXAMPLE: Final = f"{SCHEME}://mediation_default/meters/1001/COMPLETED"
_FILTERS: Final = ("previous_status", "run_type")
_NUMBER: Final = r"(?:0|[1-9][0-9]*)(?:\.[0-9]*[1-9])?"
_POLLS: Final = re.compile(rf"{SCHEME}://[^/?#]+/meters/[^/?#]+/polls/{_NUMBER}")
_HISTORY: Final = re.compile(rf"{SCHEME}://[^/?#]+/history/{_NUMBER}")


class SessionAsset(NamedTuple):
    """The parts of an asset's address.

    :param conn_id: Airflow connection
    :param meter_id: the meter, or ``ANY_METER``
    :param status: the status by Zuora's name
    :param previous_status: the status right before; ``None``: any, also an unknown one
    :param run_type: the run type; ``None``: the one that is usual for the status
    """

    conn_id: str
    meter_id: str
    status: str
    previous_status: str | None = None
    run_type: str | None = None


@lru_cache(maxsize=4096)  # a page asks for all statuses of each of its meters
def asset_uri(
    conn_id: str, meter_id: str, status: str, previous_status: str | None = None, run_type: str | None = None
) -> str:
    """Return ``mediation://CONN/meters/METER/STATUS``, with filters in the query: one spelling for each asset.

    :param conn_id: Airflow connection
    :param meter_id: the meter, or ``ANY_METER``
    :param status: the status by Zuora's name
    :param previous_status: the status right before; ``None``: any, also an unknown one
    :param run_type: the run type; ``None``: the one that is usual for the status
    """
    meter = ANY_METER if meter_id == ANY_METER else quote(meter_id, safe="")
    return _uri(conn_id, meter, status, previous_status, None if run_type == usual_run_type(status) else run_type)


@lru_cache(maxsize=4096)
def arrival_uris(
    conn_id: str, meter_id: str, status: str, *, previous_status: str | None, run_type: str
) -> tuple[str, ...]:
    """Return the addresses of all assets that stand for an arrival: the only place that decides what fits a schedule.

    :param conn_id: the connection over which it was reported
    :param meter_id: the meter
    :param status: the status that the session reached
    :param previous_status: the status right before; ``None`` where it is not known
    :param run_type: the session's; with one that Zuora does not document, nothing is scheduled
    """
    if run_type not in set(RunType):
        return ()
    if run_type == usual_run_type(status):
        filtered = None
    elif run_type == RunType.DEBUG:
        filtered = run_type
    else:  # a live session is in none of the statuses of tests
        return ()
    previous = [None] if previous_status is None else [None, previous_status]
    meters = (quote(meter_id, safe=""), ANY_METER)
    return tuple(_uri(conn_id, meter, status, before, filtered) for meter in meters for before in previous)


def _uri(conn_id: str, meter: str, status: str, previous_status: str | None, run_type: str | None) -> str:
    """Return the address, the filters in the order in which Airflow sorts a query."""
    path = f"{SCHEME}://{quote(conn_id, safe='')}/meters/{meter}/{quote(status, safe='')}"
    filters = [(name, value) for name, value in zip(_FILTERS, (previous_status, run_type), strict=True) if value]
    return f"{path}?{urlencode(filters)}" if filters else path


def connection_prefix(conn_id: str) -> str:
    """Return what all addresses of a connection begin with."""
    return f"{SCHEME}://{quote(conn_id, safe='')}/"


def connection_of_uri(uri: str) -> str:
    """Return the id of the connection that the address of any asset of ours names."""
    return unquote(uri.removeprefix(f"{SCHEME}://").partition("/")[0])


def poll_uri(conn_id: str, meter_id: str, seconds: float) -> str:
    """Return ``mediation://CONN/meters/METER/polls/SECONDS``: the asset that asks for polls of the meter.

    :param conn_id: Airflow connection
    :param meter_id: the meter
    :param seconds: between two polls
    """
    conn, meter = (quote(part, safe="") for part in (conn_id, meter_id))
    return f"{SCHEME}://{conn}/meters/{meter}/polls/{_number(seconds)}"


def is_poll_uri(uri: str) -> bool:
    """Return whether a URI is one of ``poll_uri``."""
    return _POLLS.fullmatch(uri) is not None


def history_uri(conn_id: str, seconds: float) -> str:
    """Return ``mediation://CONN/history/SECONDS``: the asset that asks for the callout history of the connection.

    :param conn_id: Airflow connection
    :param seconds: between two reads
    """
    return f"{SCHEME}://{quote(conn_id, safe='')}/history/{_number(seconds)}"


def is_history_uri(uri: str) -> bool:
    """Return whether a URI is one of ``history_uri``."""
    return _HISTORY.fullmatch(uri) is not None


def _number(seconds: float) -> str:
    """Return seconds without an exponent: one text for each number, and another for each other."""
    return f"{Decimal(str(seconds)).normalize():f}"


def read_asset_uri(uri: str) -> SessionAsset:
    """Return the parts of the URI of a status.

    :param uri: as ``asset_uri`` returns it, or written by hand
    :raises ValueError: it is no such URI; the message names the part that is wrong
    """
    parsed = urlsplit(uri)
    if parsed.scheme != SCHEME:
        raise ValueError(f"{uri!r} is no asset of Zuora Mediation: its URI is {_FORM}, as in {_EXAMPLE}")
    conn_id, parts = unquote(parsed.netloc), [unquote(part) for part in parsed.path.split("/")[1:]]
    if not conn_id:
        raise ValueError(f"{uri!r} names no connection: its form is {_FORM}, as in {_EXAMPLE}")
    if len(parts) != 3 or parts[0] != "meters" or not parts[1].strip():
        raise ValueError(f"{uri!r} is not of the form {_FORM}, as in {_EXAMPLE}")
    status = parse_status(parts[2])
    previous_status, run_type = _read_filters(uri, parsed.query)
    if run_type is not None:
        (run_type,) = run_types_of_assets(status, run_type)
    return SessionAsset(conn_id, parts[1], status, previous_status, run_type)


def _read_filters(uri: str, query: str) -> tuple[str | None, str | None]:
    pairs = parse_qsl(query, keep_blank_values=True)
    filters = dict(pairs)
    if len(filters) != len(pairs) or not filters.keys() <= set(_FILTERS):
        raise ValueError(
            f"{uri!r}: after the '?' may come previous_status and run_type, each once, "
            f"as in {_EXAMPLE}?previous_status=RUNNING"
        )
    previous = filters.get("previous_status")
    return None if previous is None else parse_status(previous), filters.get("run_type")


def run_types_of_assets(status: str, run_type: object) -> list[RunType | None]:
    """Return the run types as the assets of a status name them: ``None`` for the usual one.

    :param status: by Zuora's name
    :param run_type: NORMAL or DEBUG, for one asset; a list of both: an asset for each that can be in the status
    :raises ValueError: it is none of them, or no session of that run type is ever in the status
    """
    named, usual = run_types_of(run_type), usual_run_type(status)
    if usual not in named and RunType.DEBUG not in named:
        raise ValueError(f"run_type: only DEBUG sessions reach {status}: leave run_type out, or give run_type='DEBUG'")
    return [None if each is usual else each for each in named if each in (usual, RunType.DEBUG)]


def status_of_schedule(name: str, value: object) -> str:
    """Return a status that sessions can reach, by Zuora's name; warn of one that Zuora does not document.

    :param name: of the argument, for the error
    :param value: the status, in any spelling
    :raises ValueError: it is not a name, or no session is ever in it
    """
    status = status_name(name, value)
    warn_of_unknown(name, [status], stacklevel=4)
    return status
