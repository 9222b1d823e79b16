"""The address of the asset that stands for "a session of this meter reached this status"."""

from __future__ import annotations

from functools import lru_cache
from typing import Final, NamedTuple
from urllib.parse import quote, unquote, urlsplit

from airflow_mediation_provider.protocol.status import SessionStatus

SCHEME: Final = "mediation"
_FORM: Final = f"{SCHEME}://CONNECTION/meters/METER/STATUS"
_EXAMPLE: Final = f"{SCHEME}://mediation_default/meters/1001/COMPLETED"


class SessionAsset(NamedTuple):
    """What the address of an asset says.

    :param conn_id: Airflow connection
    :param meter_id: the meter
    :param status: the status by Zuora's name
    """

    conn_id: str
    meter_id: str
    status: str


@lru_cache(maxsize=4096)  # a page asks for all statuses of each of its meters
def asset_uri(conn_id: str, meter_id: str, status: str) -> str:
    """Return ``mediation://CONN/meters/METER/STATUS``; both ends, DAG and journal, get it here.

    :param conn_id: Airflow connection
    :param meter_id: the meter
    :param status: the status by Zuora's name
    """
    conn, meter, name = (quote(part, safe="") for part in (conn_id, meter_id, status))
    return f"{SCHEME}://{conn}/meters/{meter}/{name}"


def poll_uri(conn_id: str, meter_id: str, seconds: float) -> str:
    """Return ``mediation://CONN/meters/METER/polls/SECONDS``: no status, but that somebody looks at the meter.

    :param conn_id: Airflow connection
    :param meter_id: the meter
    :param seconds: between two looks
    """
    conn, meter = (quote(part, safe="") for part in (conn_id, meter_id))
    return f"{SCHEME}://{conn}/meters/{meter}/polls/{seconds:g}"


def is_poll_uri(uri: str) -> bool:
    """Whether an address is one of ``poll_uri``."""
    parts = urlsplit(uri).path.split("/")
    return len(parts) == 5 and parts[1] == "meters" and parts[3] == "polls"


def read_asset_uri(uri: str) -> SessionAsset:
    """Return what the address of a status says.

    :param uri: as ``asset_uri`` gives it, or written by hand
    :raises ValueError: it is none; one sentence says which part is wrong
    """
    parsed = urlsplit(uri)
    if parsed.scheme != SCHEME:
        raise ValueError(f"{uri!r} is no asset of Zuora Mediation: its address is {_FORM}, as in {_EXAMPLE}")
    conn_id, parts = unquote(parsed.netloc), [unquote(part) for part in parsed.path.split("/")[1:]]
    if not conn_id:
        raise ValueError(f"{uri!r} names no connection: its form is {_FORM}, as in {_EXAMPLE}")
    if parsed.query or len(parts) != 3 or parts[0] != "meters" or not parts[1].strip():
        raise ValueError(f"{uri!r} is not of the form {_FORM}, as in {_EXAMPLE}")
    return SessionAsset(conn_id, parts[1], known_status(parts[2]))


def known_status(value: object) -> str:
    """Return a documented status by Zuora's name.

    :param value: the name, in any case
    :raises ValueError: it is none; names those that are
    """
    name = value.strip().upper() if isinstance(value, str) else value
    if name not in set(SessionStatus):
        raise ValueError(f"status must be one of {', '.join(SessionStatus)}, not {value!r}")
    return str(name)
