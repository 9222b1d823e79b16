"""Load each COMPLETED session of two meters, and pass it on to the Dags that follow.

A run that a session started has the session's id as its partition key, and so has the event of its outlet. A Dag that
follows needs a partitioned schedule too: see ``after_load``.
"""

from __future__ import annotations

from datetime import timedelta
from typing import Any

from airflow.sdk import Asset, dag, task

from airflow_mediation_provider.assets import on_meter_session, triggering_session

USAGE = Asset("usage_of_sessions")


@dag(
    schedule=on_meter_session(["1017", "1018"], "COMPLETED"),
    default_args={"retries": 2, "retry_delay": timedelta(seconds=10)},
    tags=["mediation", "example"],
    doc_md=__doc__,
)
def load_session() -> None:
    """Load a session, and put it into the event of the outlet."""

    @task(outlets=[USAGE])
    def load(*, outlet_events: Any = None) -> None:
        """Stands for the real work."""
        outlet_events[USAGE].extra = dict(triggering_session())

    load()


load_session()
