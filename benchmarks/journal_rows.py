"""Fill the journal with as many rows as years of callouts leave: the feed's speed must not depend on them.

The rows are those that the journal's writer makes, without its locks, its checks and a transaction each. A million of
them take a minute or two.

  python -m benchmarks.journal_rows postgresql+psycopg2://...      a million rows into a migrated database of Airflow's
"""

from __future__ import annotations

import argparse
import csv
import io
import itertools
import json
import time
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any, Final

from sqlalchemy import create_engine, func, insert, select, text

from airflow_mediation_provider.journal.rows import session_values, transition_values
from airflow_mediation_provider.journal.tables import SessionRow, TransitionRow
from airflow_mediation_provider.protocol.entry import Entry, EntryKind
from airflow_mediation_provider.protocol.lifecycle import fold
from airflow_mediation_provider.protocol.transition import SessionTransition, Source

if TYPE_CHECKING:
    from collections.abc import Iterable

    from sqlalchemy import Connection

CONN_ID: Final = "bench"
METERS: Final = 200
WALK: Final = ("INITIALIZING", "RUNNING", "USAGE_PUSHING", "PUSH_COMPLETED", "COMPLETED")
LIVE: Final = 5
"""The newest sessions are still at their second status: as many as Zuora runs at a time."""
AGE: Final = timedelta(days=730)
"""How long ago the oldest session began."""
ROWS: Final = 1_000_000
_CHUNK: Final = 10_000


def meter_of(number: int) -> str:
    """Return the meter of a session by the session's number."""
    return str(1000 + number % METERS)


def session_of(number: int) -> str:
    """Return the id of a session by its number; the highest numbers are the newest sessions."""
    return f"R-{number:08d}"


def seed(address: str, rows: int = ROWS) -> int:
    """Fill the empty journal of a migrated database, and return how many sessions it knows then.

    :param address: of the database
    :param rows: of the table of transitions, about
    """
    engine, now, sessions = create_engine(address), datetime.now(UTC), rows // len(WALK)
    with engine.begin() as connection:
        assert not connection.scalar(select(func.count()).select_from(SessionRow)), "the journal is not empty"
        for numbers in _chunks(range(sessions), _CHUNK // len(WALK)):
            told = [_told(number, sessions, now) for number in numbers]
            _load(connection, TransitionRow.__table__, [_change(each) for transitions in told for each in transitions])
            _load(connection, SessionRow.__table__, [_session(each) for each in told])
    if engine.dialect.name == "postgresql":  # what its autovacuum does sooner or later
        with engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
            for table in (TransitionRow, SessionRow):
                connection.execute(text(f"VACUUM ANALYZE {table.__tablename__}"))
    engine.dispose()
    return sessions


def _load(connection: Connection, table: Any, rows: list[dict[str, Any]]) -> None:
    """Insert rows that all have the same columns; PostgreSQL has a way that is several times faster."""
    if connection.dialect.name != "postgresql":
        connection.execute(insert(table), rows)
        return
    lines = io.StringIO()
    csv.writer(lines).writerows(
        [json.dumps(value) if isinstance(value, dict) else value for value in row.values()] for row in rows
    )
    lines.seek(0)
    copy = f"COPY {table.name} ({', '.join(rows[0])}) FROM STDIN WITH CSV"
    connection.connection.cursor().copy_expert(copy, lines)  # type: ignore[attr-defined]


def _told(number: int, sessions: int, now: datetime) -> list[SessionTransition]:
    """Return what was told of a session; all of it is older than what the feed reads again and again."""
    began = now - timedelta(minutes=5) - AGE * (sessions - 1 - number) / sessions
    steps = WALK[:2] if number >= sessions - LIVE else WALK
    return [
        SessionTransition(
            meter_id=meter_of(number),
            meter_name=f"Rated usage of {meter_of(number)}",
            session_id=session_of(number),
            status=status,
            previous_status=steps[step - 1] if step else None,
            started_at=began,
            ended_at=began + timedelta(seconds=40) if status == "COMPLETED" else None,
            observed_at=began + timedelta(seconds=10 * step),
            source=Source.CALLOUT,
            notification_id=f"{number:032x}-{step}",
        )
        for step, status in enumerate(steps)
    ]


def _change(told: SessionTransition) -> dict[str, Any]:
    body = {"meterId": told.meter_id, "sessionId": told.session_id, "status": told.status, "runType": "NORMAL"}
    entry = Entry(
        kind=EntryKind.STATUS_CHANGE, observed_at=told.observed_at, source=told.source, transition=told, body=body
    )
    return transition_values(entry, conn_id=CONN_ID, at=entry.observed_at)


def _session(told: list[SessionTransition]) -> dict[str, Any]:
    state = fold(told)
    return {
        **session_values(state),
        "conn_id": CONN_ID,
        "meter_id": state.meter_id,
        "session_id": state.session_id,
        "emitted": {each.status: 1 for each in told},
        "revision": len(told),
        "updated_at": told[-1].observed_at,
    }


def _chunks(numbers: Iterable[int], size: int) -> Iterable[tuple[int, ...]]:
    numbers = iter(numbers)
    while chunk := tuple(itertools.islice(numbers, size)):
        yield chunk


def main() -> None:
    """Seed the database that is named."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("address", help="of a database with Airflow's tables and an empty journal")
    parser.add_argument("--rows", type=int, default=ROWS)
    arguments = parser.parse_args()
    began = time.perf_counter()
    sessions = seed(arguments.address, arguments.rows)
    print(f"{sessions * len(WALK)} rows of {sessions} sessions in {time.perf_counter() - began:.0f} s")


if __name__ == "__main__":
    main()
