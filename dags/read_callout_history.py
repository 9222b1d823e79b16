"""Every five minutes: continue to read Zuora's callout history, for sensors where Zuora cannot reach Airflow.

If a Dag has ``on_meter_session(..., callout_history=60)``, the triggerer reads the history, and this Dag is not needed.
Otherwise it reads the history, which ends waits and starts Dags as callouts do. It is paused at first: an Airflow that
receives callouts does not need it.
"""

from __future__ import annotations

from datetime import timedelta

import pendulum
from airflow.sdk import dag

from airflow_mediation_provider.operators.reconcile import ReadCalloutHistoryOperator

INTERVAL = timedelta(minutes=5)


@dag(
    schedule=INTERVAL,
    start_date=pendulum.datetime(2026, 1, 1, tz="UTC"),
    catchup=False,
    is_paused_upon_creation=True,
    max_active_runs=1,
    tags=["mediation", "example"],
    doc_md=__doc__,
)
def read_callout_history() -> None:
    """Read once, from where the last run ended."""
    ReadCalloutHistoryOperator(task_id="read", interval=INTERVAL)


read_callout_history()
