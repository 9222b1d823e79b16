"""Fill a journal with as many sessions as a large tenant has in years, quickly: rows are generated, not told.

  python -m benchmarks.journal_seed sqlite:////path/airflow.db --sessions 250000

A quarter as many sessions as rows: each has four changes of its status. They are spread over meters and over a year.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any

from sqlalchemy import Engine, create_engine, insert

from airflow_mediation_provider.journal.tables import SessionRow, TransitionRow
from airflow_mediation_provider.protocol.lifecycle import fold
from airflow_mediation_provider.protocol.transition import SessionTransition, Source

if TYPE_CHECKING:
    from collections.abc import Iterator

STATUSES = ("INITIALIZING", "RUNNING", "USAGE_PUSHING", "COMPLETED")
CHUNK = 5_000


def meter_of(number: int, meters: int) -> str:
    """Return the meter of a session."""
    return str(1000 + number % meters)


def session_of(number: int) -> str:
    """Return the id of a session."""
    return f"R-{number:08}"


def seed(engine: Engine, *, sessions: int, meters: int, conn_id: str) -> None:
    """Write the rows; every 1,000th session is still running.

    :param sessions: each has four changes, or two while it runs
    """
    now = datetime.now(UTC) - timedelta(hours=1)
    step = timedelta(days=365) / sessions
    template = _template()
    with engine.begin() as connection:
        for start in range(0, sessions, CHUNK):
            numbers = range(start, min(start + CHUNK, sessions))
            rows = [(number, now - step * (sessions - number)) for number in numbers]
            connection.execute(insert(SessionRow), [_session(*row, meters, conn_id, template) for row in rows])
            connection.execute(
                insert(TransitionRow), [each for row in rows for each in _changes(*row, meters, conn_id)]
            )
    with engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
        connection.exec_driver_sql("ANALYZE")


def _template() -> dict[str, Any]:
    transition = SessionTransition(
        meter_id="0", session_id="0", status="COMPLETED", observed_at=datetime.now(UTC), source=Source.CALLOUT
    )
    return fold([transition]).transition.to_dict()


def _statuses(number: int) -> tuple[str, ...]:
    return STATUSES[:2] if number % 1000 == 0 else STATUSES


def _session(number: int, at: datetime, meters: int, conn_id: str, template: dict[str, Any]) -> dict[str, Any]:
    status = _statuses(number)[-1]
    meter_id, session_id = meter_of(number, meters), session_of(number)
    ended = status == STATUSES[-1]
    ids = {"meter_id": meter_id, "session_id": session_id, "status": status, "observed_at": at.isoformat()}
    return {
        "conn_id": conn_id,
        "meter_id": meter_id,
        "session_id": session_id,
        "meter_name": None,
        "run_type": "NORMAL",
        "status": status,
        "previous_status": _statuses(number)[-2],
        "started_at": at,
        "ended_at": at + timedelta(minutes=30) if ended else None,
        "begun_at": at,
        "first_observed_at": at,
        "last_observed_at": at + timedelta(minutes=30),
        "conflict": False,
        "ambiguous": False,
        "terminal": ended,
        "source": "callout",
        "transition": {**template, **ids},
        "emitted": {},
        "revision": 4,
        "updated_at": at + timedelta(minutes=30),
    }


def _changes(number: int, at: datetime, meters: int, conn_id: str) -> Iterator[dict[str, Any]]:
    before = None
    for step, status in enumerate(_statuses(number)):
        yield {
            "conn_id": conn_id,
            "kind": "status_change",
            "notification_id": f"seed-{number}-{step}",
            "meter_id": meter_of(number, meters),
            "meter_name": None,
            "session_id": session_of(number),
            "run_type": "NORMAL",
            "status": status,
            "previous_status": before,
            "started_at": at,
            "ended_at": None,
            "observed_at": at + timedelta(minutes=10 * step),
            "source": "callout",
            "body": {},
            "created_at": at + timedelta(minutes=10 * step),
        }
        before = status


def main() -> int:
    """Fill the database that is named."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("database", help="its SQLAlchemy address; `airflow db migrate` has made the tables")
    parser.add_argument("--sessions", type=int, default=250_000, help="each is four rows (250000)")
    parser.add_argument("--meters", type=int, default=50, help="that they are of (50)")
    parser.add_argument("--conn-id", default="mediation_default", help="their connection (mediation_default)")
    arguments = parser.parse_args()
    began = time.monotonic()
    engine = create_engine(arguments.database, json_serializer=json.dumps)
    seed(engine, sessions=arguments.sessions, meters=arguments.meters, conn_id=arguments.conn_id)
    print(f"{arguments.sessions:,} sessions in {time.monotonic() - began:.0f} s")
    return 0


if __name__ == "__main__":
    sys.exit(main())
