"""The batch job downstream: load the output of a session into a database.

The run's configuration is the session object of this provider's operators: ``meter_id``, ``session_id``,
``started_at``. The counts come from the meter's summary, the records from its audit trail. The Airflow connection
``usage_db`` names the database (SQLite here). One transaction deletes the rows of an earlier load of the session and
writes the new ones, so a second load leaves the same rows.
"""

from __future__ import annotations

import json
from contextlib import closing
from datetime import UTC, datetime, timedelta
from typing import Any

from airflow.sdk import BaseHook, Param, dag, task

from airflow_mediation_provider.operators.audit import MeterSummaryOperator

TABLES = (
    """CREATE TABLE IF NOT EXISTS usage_session (
        session_id VARCHAR(64) PRIMARY KEY, meter_id VARCHAR(64) NOT NULL,
        output_count BIGINT NOT NULL, error_count BIGINT NOT NULL, loaded_at VARCHAR(40) NOT NULL)""",
    """CREATE TABLE IF NOT EXISTS usage_record (
        session_id VARCHAR(64) NOT NULL, kind VARCHAR(8) NOT NULL, event_id VARCHAR(200),
        error_code VARCHAR(40), error_message VARCHAR(1000), payload TEXT NOT NULL)""",
)
COLUMNS = ("eventId", "errorCode", "errorMessage")


@dag(
    schedule=None,
    params={
        "meter_id": Param("1001", type="string"),
        "session_id": Param("R-00000000", type="string"),
        "started_at": Param(None, type=["null", "string"], format="date-time"),
    },
    default_args={"retries": 2, "retry_delay": timedelta(seconds=10)},
    tags=["mediation", "example"],
    doc_md=__doc__,
)
def usage_batch() -> None:
    """Count, then load."""
    counts = MeterSummaryOperator(
        task_id="counts",
        meter_id="{{ params.meter_id }}",
        session_id="{{ params.session_id }}",
        query_from="{{ params.started_at or '' }}",
    )

    @task
    def load(counts: dict[str, Any]) -> int:
        """Replace the session's rows; return the number of records now."""
        from airflow_mediation_provider.hooks.mediation import MediationHook

        meter_id, session_id, now = counts["meter_id"], counts["session_id"], datetime.now(UTC).isoformat()
        session = (session_id, meter_id, counts["output_count"], counts["error_count"], now)
        mediation = MediationHook("mediation_default")
        records = [
            (session_id, kind, *(each[name] for name in COLUMNS), json.dumps(each["payload"]))
            for kind in ("SAMPLE", "ERROR")
            for each in mediation.audit_trail_entries(
                meter_id,
                export_type=kind,
                run_type="NORMAL",
                session_id=session_id,
                query_from=counts["query_from"],
                query_to=counts["query_to"],
                page_size=500,
            )
        ]
        # Any connection whose hook implements Python's database API: SQLite, PostgreSQL, Snowflake ...
        database = BaseHook.get_hook("usage_db")
        one = database.placeholder
        with closing(database.get_conn()) as connection, closing(connection.cursor()) as cursor:
            for table in TABLES:
                cursor.execute(table)
            cursor.execute(f"DELETE FROM usage_record WHERE session_id = {one}", (session_id,))  # noqa: S608
            cursor.execute(f"DELETE FROM usage_session WHERE session_id = {one}", (session_id,))  # noqa: S608
            cursor.execute(f"INSERT INTO usage_session VALUES ({', '.join([one] * 5)})", session)  # noqa: S608
            cursor.executemany(f"INSERT INTO usage_record VALUES ({', '.join([one] * 6)})", records)  # noqa: S608
            connection.commit()
        return len(records)

    load(counts.output)


usage_batch()
