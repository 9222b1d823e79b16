"""The assets of the events: for each of the two paths one that schedules a Dag, and one that does not."""

from __future__ import annotations

from airflow.providers.standard.operators.empty import EmptyOperator
from airflow.sdk import DAG, Asset, PartitionedAssetTimetable

from airflow_mediation_provider.protocol.sessions.asset_uri import asset_uri

OURS = {kind: Asset(asset_uri("bench", kind, "COMPLETED")) for kind in ("scheduling", "idle")}
AIRFLOWS = {kind: Asset(f"bench://events/{kind}") for kind in OURS}

for name, assets in {"callouts": OURS, "events": AIRFLOWS}.items():
    with DAG(f"on_{name}", schedule=PartitionedAssetTimetable(assets=assets["scheduling"])):
        EmptyOperator(task_id="nothing")

with DAG("names_the_others", schedule=None):
    EmptyOperator(task_id="nothing", outlets=[OURS["idle"], AIRFLOWS["idle"]])
