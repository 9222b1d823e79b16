"""Reads the simulator's log, and Airflow's database at the end of a drill."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from sqlalchemy import create_engine, text

from tests.drill.history import AssetEvent, Attempt, Change, History, Row, Run, State

if TYPE_CHECKING:
    from collections.abc import Iterable

    from tests.drill.history import Consumer, Wait

_ROWS = "SELECT kind, notification_id, meter_id, session_id, previous_status, status, source FROM mediation_transition"
_STATES = "SELECT meter_id, session_id, run_type, status, ambiguous, conflict, terminal FROM mediation_session"
_EVENTS = "SELECT asset.uri, asset_event.partition_key FROM asset_event JOIN asset ON asset.id = asset_event.asset_id"
_RUNS = "SELECT dag_id, partition_key, state FROM dag_run"


def read_log(entries: Iterable[dict[str, Any]]) -> tuple[list[Change], list[Attempt]]:
    """Return the changes and the attempts of the simulator's log."""
    changes, attempts = [], []
    for entry in entries:
        if entry["kind"] == "transition":
            changes.append(
                Change(
                    entry["seq"],
                    entry["meter_id"],
                    entry["session_id"],
                    entry["run_type"],
                    entry["previous_status"],
                    entry["status"],
                )
            )
        elif entry["kind"] == "callout" and entry["event"] == "status_change":
            attempts.append(
                Attempt(
                    entry["change"],
                    entry["callout_id"],
                    entry["notification_id"],
                    entry.get("code"),
                    entry.get("outcome"),
                    entry["at"],
                    entry.get("seconds", 0.0),
                )
            )
    return changes, attempts


class Database:
    """Airflow's database, read beside Airflow.

    :param address: in the form of ``[database] sql_alchemy_conn``
    """

    def __init__(self, address: str) -> None:
        self._engine = create_engine(address)

    def _read(self, statement: str) -> list[Any]:
        with self._engine.connect() as connection:
            return list(connection.execute(text(statement)))

    def runs(self) -> list[Run]:
        """Return all Dag runs."""
        return [Run(*row) for row in self._read(_RUNS)]

    def history(self, log: Iterable[dict[str, Any]], consumers: list[Consumer], waits: list[Wait]) -> History:
        """Return everything that was recorded; ``log`` is the simulator's."""
        changes, attempts = read_log(log)
        states = [
            State(*row[:4], *(bool(flag) for flag in row[4:]))  # SQLite has no booleans
            for row in self._read(_STATES)
        ]
        return History(
            changes=changes,
            attempts=attempts,
            rows=[Row(*row) for row in self._read(_ROWS)],
            states=states,
            events=[_event(uri, key) for uri, key in self._read(_EVENTS)],
            consumers=consumers,
            runs=self.runs(),
            waits=waits,
        )


def _event(uri: str, key: str | None) -> AssetEvent:
    """Read ``mediation://CONN/meters/METER/STATUS``."""
    _, meter, status = urlsplit(uri).path.strip("/").split("/")
    return AssetEvent(meter, status, key)
