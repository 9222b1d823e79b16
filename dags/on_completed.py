"""Load each session of a meter as soon as it is COMPLETED, whether Airflow started it or not: one run per session.

Zuora's callout starts the run; nothing polls, and no task waits. The run of the batch job is named after the session,
so a retry, a Clear or a repeated callout loads the same session into the same place.
"""

from __future__ import annotations

from datetime import timedelta
from typing import Any, cast

from airflow.providers.standard.operators.trigger_dagrun import TriggerDagRunOperator
from airflow.sdk import dag, task

from airflow_mediation_provider.assets import SessionResult, on_meter_session, triggering_session


@dag(
    # If Zuora cannot reach Airflow: on_meter_session("1013", "COMPLETED", callout_history=60)
    schedule=on_meter_session("1013", "COMPLETED"),
    default_args={"retries": 2, "retry_delay": timedelta(seconds=10)},
    tags=["mediation", "example"],
    doc_md=__doc__,
)
def on_completed() -> None:
    """Get the session that triggered the run, and load it."""

    @task
    def session() -> SessionResult:
        return triggering_session()

    TriggerDagRunOperator(
        task_id="load_usage",
        trigger_dag_id="usage_batch",
        trigger_run_id="session-{{ dag_run.partition_key }}",
        reset_dag_run=True,
        conf=cast("dict[str, Any]", session()),  # Airflow types it for the value alone
    )


on_completed()
