"""Test a meter before it runs live: a DEBUG run as the gate in front of the NORMAL one.

A DEBUG run processes test data and writes nothing downstream. When it ends TESTING_FAILED, or is canceled, the task
fails, and the live run is never started.
"""

from __future__ import annotations

from datetime import timedelta
from typing import Any

from airflow.providers.standard.operators.trigger_dagrun import TriggerDagRunOperator
from airflow.sdk import Param, dag

from airflow_mediation_provider.operators.meter import RunMeterOperator

# Seconds, for the simulator. Leave both out for a real tenant, whose calls are limited and whose answers may be stale.
PACE: dict[str, Any] = {"poke_interval": 3, "settle": 3}


@dag(
    schedule=None,
    params={"meter_id": Param("1010", type="string", description="The meter to test, then to run")},
    default_args={"retries": 2, "retry_delay": timedelta(seconds=10)},
    tags=["mediation", "example"],
    doc_md=__doc__,
)
def debug_gate() -> None:
    """Test, run, load."""
    test_run = RunMeterOperator(
        task_id="test_run",
        meter_id="{{ params.meter_id }}",
        run_type="DEBUG",
        retries=0,  # a retry would be another test
        source_options=[{"testData": [{"AccountNumber": "A-00010001", "Quantity": 1}]}],
        # On the worker: Airflow may fail a task that resumes within seconds of deferring, and this task has no retry.
        deferrable=False,
        **PACE,
    )
    live_run = RunMeterOperator(task_id="live_run", meter_id="{{ params.meter_id }}", deferrable=True, **PACE)
    load_usage = TriggerDagRunOperator(
        task_id="load_usage",
        trigger_dag_id="usage_batch",
        trigger_run_id="session-{{ ti.xcom_pull('live_run')['session_id'] }}",
        reset_dag_run=True,
        conf=live_run.output,
    )

    test_run >> live_run >> load_usage


debug_gate()
