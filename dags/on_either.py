"""Load the sessions of two meters, whichever completes: one run of this DAG for each session of either.

Schedules on sessions combine with ``|``, whatever their meters, statuses and connections.
"""

from __future__ import annotations

from datetime import timedelta
from typing import Any

from airflow.providers.standard.operators.trigger_dagrun import TriggerDagRunOperator
from airflow.sdk import dag, task

from airflow_mediation_provider.assets import on_meter_session, triggering_session


@dag(
    schedule=on_meter_session("1015", "COMPLETED") | on_meter_session("1016", "COMPLETED"),
    default_args={"retries": 2, "retry_delay": timedelta(seconds=10)},
    tags=["mediation", "example"],
    doc_md=__doc__,
)
def on_either() -> None:
    """Ask which session it is, and load it."""

    @task
    def session() -> dict[str, Any]:
        return triggering_session()

    TriggerDagRunOperator(
        task_id="load_usage",
        trigger_dag_id="usage_batch",
        trigger_run_id="session-{{ dag_run.partition_key }}",
        reset_dag_run=True,
        conf=session(),
    )


on_either()
