"""The address of the asset that stands for "a session of this meter reached this status"."""

from __future__ import annotations

from typing import Final
from urllib.parse import quote

SCHEME: Final = "mediation"


def asset_uri(conn_id: str, meter_id: str, status: str) -> str:
    """Return ``mediation://CONN/meters/METER/STATUS``; both ends, DAG and journal, get it here.

    :param conn_id: Airflow connection
    :param meter_id: the meter
    :param status: the status by Zuora's name
    """
    conn, meter, name = (quote(part, safe="") for part in (conn_id, meter_id, status))
    return f"{SCHEME}://{conn}/meters/{meter}/{name}"
