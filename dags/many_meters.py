"""Many meters at once, each with its own wait and branch: a mapped task group.

The list of meters may also be the output of another task. Zuora runs five meters of a tenant at a time; the task of a
sixth waits until one has ended.
"""

from __future__ import annotations

from datetime import timedelta
from typing import Any

from airflow.providers.standard.operators.trigger_dagrun import TriggerDagRunOperator
from airflow.sdk import dag, task, task_group

from airflow_mediation_provider.operators.branch import MeterSessionBranchOperator
from airflow_mediation_provider.operators.meter import RunMeterOperator

# Seconds, for the simulator. Leave both out for a real tenant, whose calls are limited and whose answers may be stale.
PACE: dict[str, Any] = {"poke_interval": 3, "settle": 3}
METERS = ["1005", "1006", "1007", "1008", "1009"]


@dag(
    schedule=None,
    default_args={"retries": 2, "retry_delay": timedelta(seconds=10)},
    tags=["mediation", "example"],
    doc_md=__doc__,
)
def many_meters() -> None:
    """Run and branch, for each meter."""

    @task_group
    def one_meter(meter_id: str) -> None:
        run_meter = RunMeterOperator(task_id="run_meter", meter_id=meter_id, deferrable=True, **PACE, fail_on=())
        how_it_ended = MeterSessionBranchOperator(
            task_id="how_it_ended",
            session=run_meter.output,
            on_completed="one_meter.load_usage",
            on_failed="one_meter.note_failure",
        )
        load_usage = TriggerDagRunOperator(
            task_id="load_usage",
            trigger_dag_id="usage_batch",
            trigger_run_id="session-{{ ti.xcom_pull('one_meter.run_meter', map_indexes=ti.map_index)['session_id'] }}",
            reset_dag_run=True,
            conf=run_meter.output,
        )

        @task
        def note_failure(session: dict[str, Any]) -> str:
            return f"session {session['session_id']} of meter {session['meter_id']} is {session['status']}"

        run_meter >> how_it_ended >> [load_usage, note_failure(run_meter.output)]

    one_meter.expand(meter_id=METERS)


many_meters()
