"""Raise an alert for each session of a meter that FAILED, with its counts and its first error records.

Zuora's callout starts the run. The alert is a task that fails, so that the run is red and the notifications of your
Airflow go out.
"""

from __future__ import annotations

from datetime import timedelta
from typing import Any

from airflow.sdk import dag, task
from airflow.sdk.exceptions import AirflowFailException

from airflow_mediation_provider.assets import SessionResult, on_meter_session, triggering_session
from airflow_mediation_provider.operators.audit import MeterSummaryOperator


@dag(
    schedule=on_meter_session("1014", "FAILED"),
    default_args={"retries": 2, "retry_delay": timedelta(seconds=10)},
    tags=["mediation", "example"],
    doc_md=__doc__,
)
def on_failed() -> None:
    """Get the session that triggered the run, count its errors, and fail with them."""

    @task
    def session() -> SessionResult:
        return triggering_session()

    summary = MeterSummaryOperator(task_id="summary", session=session(), error_records=5)

    @task
    def alert(summary: dict[str, Any]) -> None:
        """Fail with a message that contains the errors: a real Dag would call a pager or open a ticket here."""
        reasons = sorted({f"{each['errorCode']} {each['errorMessage']}" for each in summary["errors"]})
        raise AirflowFailException(
            f"Session {summary['session_id']} of meter {summary['meter_id']} FAILED with {summary['error_count']} error"
            f" records, the first of them: {'; '.join(reasons)}"
        )

    alert(summary.output)


on_failed()
