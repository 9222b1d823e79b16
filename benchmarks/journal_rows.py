"""Fill the journal with as many rows as years of callouts: the feed's speed must not depend on their number.

The rows are those that the journal's writer makes, without its locks, its checks and a transaction each. A million of
them take a minute or two.

  python -m benchmarks.journal_rows postgresql+psycopg2://...      a million rows into a migrated database of Airflow's
"""

from __future__ import annotations

import argparse
import time
from datetime import UTC, datetime, timedelta
from typing import Final

from sqlalchemy import create_engine, func, select

from airflow_mediation_provider.journal.tables import SessionRow, TransitionRow
from airflow_mediation_provider.protocol.transition import SessionTransition, Source
from benchmarks.journal_load import change_row, chunks, load, session_row, vacuum

CONN_ID: Final = "bench"
METERS: Final = 200
WALK: Final = ("INITIALIZING", "RUNNING", "USAGE_PUSHING", "PUSH_COMPLETED", "COMPLETED")
LIVE: Final = 5
"""The newest sessions are still in their second status: as many as Zuora runs at a time."""
AGE: Final = timedelta(days=730)
"""How long ago the oldest session started."""
ROWS: Final = 1_000_000
_CHUNK: Final = 10_000


def meter_of(number: int) -> str:
    """Return the meter of a session by the session's number."""
    return str(1000 + number % METERS)


def session_of(number: int) -> str:
    """Return the id of a session by its number; the highest numbers are the newest sessions."""
    return f"R-{number:08d}"


def seed(address: str, rows: int = ROWS) -> int:
    """Fill the empty journal of a migrated database, and return how many sessions it contains then.

    :param address: of the database
    :param rows: approximate number of rows in the table of transitions
    """
    engine, now, sessions = create_engine(address), datetime.now(UTC), rows // len(WALK)
    with engine.begin() as connection:
        assert not connection.scalar(select(func.count()).select_from(SessionRow)), "the journal is not empty"
        for numbers in chunks(range(sessions), _CHUNK // len(WALK)):
            reported = [_reports(number, sessions, now) for number in numbers]
            changes = [change_row(each, CONN_ID) for transitions in reported for each in transitions]
            load(connection, TransitionRow.__table__, changes)
            load(connection, SessionRow.__table__, [session_row(each, CONN_ID) for each in reported])
    engine.dispose()
    vacuum(address, [TransitionRow.__table__, SessionRow.__table__])
    return sessions


def _reports(number: int, sessions: int, now: datetime) -> list[SessionTransition]:
    """Return the reports of a session; all are older than the span that the feed reads repeatedly."""
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


def main() -> None:
    """Fill the database that the command line names."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("address", help="of a database with Airflow's tables and an empty journal")
    parser.add_argument("--rows", type=int, default=ROWS)
    arguments = parser.parse_args()
    began = time.perf_counter()
    sessions = seed(arguments.address, arguments.rows)
    print(f"{sessions * len(WALK)} rows of {sessions} sessions in {time.perf_counter() - began:.0f} s")


if __name__ == "__main__":
    main()
