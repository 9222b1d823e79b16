"""One Dag for two meters: a run for each session of either that completes.

A schedule takes several meters and statuses at once. Different conditions, also of other connections, combine with
``|``.
"""

from __future__ import annotations

from datetime import timedelta

from airflow.sdk import dag, task

from airflow_mediation_provider.assets import on_meter_session, triggering_session


@dag(
    schedule=on_meter_session(["1015", "1016"], "COMPLETED"),
    default_args={"retries": 2, "retry_delay": timedelta(seconds=10)},
    tags=["mediation", "example"],
    doc_md=__doc__,
)
def on_either() -> None:
    """Return which session of which meter triggered the run."""

    @task
    def note() -> str:
        session = triggering_session()
        return f"session {session['session_id']} of meter {session['meter_id']} is {session['status']}"

    note()


on_either()
