"""Wait for a session that something else started: Zuora's own schedule, a colleague, another system.

Each day the sensor waits for the first session of the meter that starts on that day; because of ``before``, a later one
is left to the next run. The sensor is deferred, so it occupies no worker. A poll of the meter's status names no
session, so the next task reads the sessions of the day from the meter's summary. The batch job is triggered for each.
"""

from __future__ import annotations

from datetime import timedelta
from typing import Any

import pendulum
from airflow.providers.standard.operators.trigger_dagrun import TriggerDagRunOperator
from airflow.sdk import dag, task

from airflow_mediation_provider.operators.audit import MeterSummaryOperator
from airflow_mediation_provider.sensors.meter_session import MeterSessionSensor

# Seconds, for the simulator. Leave both out for a real tenant, whose calls are limited and whose answers may be stale.
PACE: dict[str, Any] = {"poke_interval": 3, "settle": 3}
METER = "1012"


@dag(
    schedule="@daily",
    start_date=pendulum.datetime(2026, 1, 1, tz="UTC"),
    catchup=False,
    default_args={"retries": 2, "retry_delay": timedelta(seconds=10)},
    tags=["mediation", "example"],
    doc_md=__doc__,
)
def wait_for_session() -> None:
    """Wait, read the sessions, load them."""
    wait = MeterSessionSensor(
        task_id="wait",
        meter_id=METER,
        before=timedelta(days=1),
        deferrable=True,
        **PACE,
        timeout=26 * 60 * 60,
    )
    sessions = MeterSummaryOperator(task_id="sessions", meter_id=METER, query_from="{{ dag_run.run_after }}")

    @task
    def each_session(sessions: dict[str, Any]) -> list[dict[str, Any]]:
        ids = [group["dimensions"]["sessionId"] for group in sessions["groups"]]
        return [
            {
                "trigger_run_id": f"session-{session_id}",
                "conf": {"meter_id": METER, "session_id": session_id, "started_at": sessions["query_from"]},
            }
            for session_id in ids
        ]

    TriggerDagRunOperator.partial(task_id="load_usage", trigger_dag_id="usage_batch", reset_dag_run=True).expand_kwargs(
        each_session(sessions.output)
    )

    wait >> sessions


wait_for_session()
