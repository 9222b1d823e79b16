"""Every hour: add to the journal what Zuora's callout history has and the journal lacks.

A callout is lost if Airflow cannot be reached for longer than Zuora retries it (an hour by default), or if it gets an
answer after which Zuora does not retry. Zuora's history still contains it. Each change that is added starts the Dags
that are scheduled on it. The second task fails if a session seems never to end, so that a user checks it.
"""

from __future__ import annotations

from datetime import timedelta
from typing import Any

import pendulum
from airflow.sdk import dag, task

from airflow_mediation_provider.operators.reconcile import ReconcileCalloutsOperator


@dag(
    schedule=timedelta(hours=1),
    start_date=pendulum.datetime(2026, 1, 1, tz="UTC"),
    catchup=False,
    max_active_runs=1,
    default_args={"retries": 2, "retry_delay": timedelta(minutes=1)},
    tags=["mediation", "example"],
    doc_md=__doc__,
)
def reconcile_callouts() -> None:
    """Repair, then report what remains."""
    repair = ReconcileCalloutsOperator(
        task_id="repair",
        # Longer than the time between two runs: Zuora may retry a callout after one, and a run may be missed.
        lookback=timedelta(hours=6),
    )

    @task(retries=0)
    def check_open_sessions(found: dict[str, Any]) -> None:
        """Fail if a session has not ended and its meter's run status shows that nothing runs."""
        idle = ("COMPLETED", "FAILED", "CANCELED", "NEVER_RUN")
        lost = [each["session_id"] for each in found["stuck"] if each["meter_status"] in idle]
        if lost:
            raise RuntimeError(f"Sessions without an end, of meters that do not run: {', '.join(lost)}")

    check_open_sessions(repair.output)


reconcile_callouts()
