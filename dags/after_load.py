"""Start after each session that another Dag has loaded: such a schedule must be partitioned.

The runs of ``load_session`` have the sessions' ids as their partition keys, and pass them on to the events of their
outlets. Airflow starts only Dags with a partitioned schedule for such events: with ``schedule=[USAGE]`` this Dag would
never start, and Airflow would not warn.
"""

from __future__ import annotations

from datetime import timedelta
from typing import Any

from airflow.sdk import Asset, PartitionedAssetTimetable, dag, task

USAGE = Asset("usage_of_sessions")


@dag(
    schedule=PartitionedAssetTimetable(assets=USAGE),
    default_args={"retries": 2, "retry_delay": timedelta(seconds=10)},
    tags=["mediation", "example"],
    doc_md=__doc__,
)
def after_load() -> None:
    """One run for each session that was loaded."""

    @task
    def report(*, dag_run: Any = None, triggering_asset_events: Any = None) -> str:
        [event] = triggering_asset_events[USAGE]
        return f"session {dag_run.partition_key} of meter {event.extra['meter_id']} is loaded"

    report()


after_load()
