"""Run a meter, wait for its session, and branch on how it ended.

COMPLETED triggers the downstream batch job for this very session. FAILED collects the counts and the first error
records, and raises an alert: a task that fails, so that the run is red and the notifications of your Airflow go out.
CANCELED skips all that follows.

The task that waits is deferred: it occupies no worker, and the triggerer polls the meter's status.
"""

from __future__ import annotations

from datetime import timedelta
from typing import Any

from airflow.providers.standard.operators.trigger_dagrun import TriggerDagRunOperator
from airflow.sdk import Param, dag, task
from airflow.sdk.exceptions import AirflowFailException

from airflow_mediation_provider.operators.audit import MeterSummaryOperator
from airflow_mediation_provider.operators.branch import MeterSessionBranchOperator
from airflow_mediation_provider.operators.meter import RunMeterOperator

# Seconds, for the simulator. Leave both out for a real tenant, whose calls are limited and whose answers may be stale.
PACE: dict[str, Any] = {"poke_interval": 3, "settle": 3}


@dag(
    schedule=None,
    params={"meter_id": Param("1001", type="string", description="The meter to run: the number in its page's URL")},
    default_args={"retries": 2, "retry_delay": timedelta(seconds=10)},
    tags=["mediation", "example"],
    doc_md=__doc__,
)
def run_and_branch() -> None:
    """Run, wait, branch."""
    run_meter = RunMeterOperator(
        task_id="run_meter",
        meter_id="{{ params.meter_id }}",
        deferrable=True,
        **PACE,
        fail_on=(),  # no end fails the task: the branch decides what follows
    )
    how_it_ended = MeterSessionBranchOperator(
        task_id="how_it_ended",
        session=run_meter.output,
        on_completed="load_usage",
        on_failed="summary",
        on_canceled=[],  # follows none: all tasks downstream are skipped
    )

    load_usage = TriggerDagRunOperator(
        task_id="load_usage",
        trigger_dag_id="usage_batch",
        # One run for each session: clearing this task runs the same one again.
        trigger_run_id="session-{{ ti.xcom_pull('run_meter')['session_id'] }}",
        reset_dag_run=True,
        conf=run_meter.output,
    )

    summary = MeterSummaryOperator(task_id="summary", session=run_meter.output, error_records=5)

    @task
    def alert(summary: dict[str, Any]) -> None:
        """Fail with a message that contains the errors: a real Dag would call a pager or open a ticket here."""
        reasons = sorted({f"{each['errorCode']} {each['errorMessage']}" for each in summary["errors"]})
        raise AirflowFailException(
            f"Session {summary['session_id']} of meter {summary['meter_id']} FAILED with {summary['error_count']} error"
            f" records, the first of them: {'; '.join(reasons)}"
        )

    run_meter >> how_it_ended >> [load_usage, summary]
    alert(summary.output)


run_and_branch()
