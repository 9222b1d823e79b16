"""Reads the simulator's log, and Airflow's database at the end of a drill."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final
from urllib.parse import urlsplit

from sqlalchemy import create_engine, text

from tests.drill.history import AssetEvent, Attempt, Change, History, Row, Run, State

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from tests.drill.history import Consumer, Wait

_ROWS = (
    "SELECT kind, notification_id, meter_id, session_id, previous_status, status, source FROM mediation_transition"
    " WHERE id > :mediation_transition"
)
_STATES = (
    "SELECT meter_id, session_id, run_type, status, ambiguous, conflict, terminal FROM mediation_session"
    " WHERE id > :mediation_session"
)
_EVENTS = (
    "SELECT asset.uri, asset_event.partition_key FROM asset_event JOIN asset ON asset.id = asset_event.asset_id"
    " WHERE asset_event.id > :asset_event"
)
_RUNS = "SELECT dag_id, partition_key, state FROM dag_run WHERE id > :dag_run"
BEGINNING: Final = dict.fromkeys(("mediation_transition", "mediation_session", "asset_event", "dag_run"), 0)
"""The last row of each table before a drill, or before one of its rounds."""


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
        self._engine = create_engine(address, pool_pre_ping=True)  # the server may have been restarted

    def read(self, statement: str, **values: Any) -> list[Any]:
        """Return the rows of a query."""
        with self._engine.connect() as connection:
            return list(connection.execute(text(statement), values))

    def last_rows(self) -> dict[str, int]:
        """Return the last row of each table, for ``after``."""
        return {table: self.read(f"SELECT coalesce(max(id), 0) FROM {table}")[0][0] for table in BEGINNING}

    def runs(self, after: Mapping[str, int] = BEGINNING) -> list[Run]:
        """Return all Dag runs."""
        return [Run(*row) for row in self.read(_RUNS, **after)]

    def history(
        self,
        log: Iterable[dict[str, Any]],
        consumers: list[Consumer],
        waits: list[Wait],
        after: Mapping[str, int] = BEGINNING,
    ) -> History:
        """Return everything that was recorded; ``log`` is the simulator's.

        :param after: of each table, only rows after this one
        """
        changes, attempts = read_log(log)
        states = [
            State(*row[:4], *(bool(flag) for flag in row[4:]))  # SQLite has no booleans
            for row in self.read(_STATES, **after)
        ]
        return History(
            changes=changes,
            attempts=attempts,
            rows=[Row(*row) for row in self.read(_ROWS, **after)],
            states=states,
            events=[_event(uri, key) for uri, key in self.read(_EVENTS, **after)],
            consumers=consumers,
            runs=self.runs(after),
            waits=waits,
        )


def _event(uri: str, key: str | None) -> AssetEvent:
    """Read ``mediation://CONN/meters/METER/STATUS``."""
    _, meter, status = urlsplit(uri).path.strip("/").split("/")
    return AssetEvent(meter, status, key)
