"""Writes the drill's DAG file: DAGs that cost next to nothing, because the scheduler itself ends their only task."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

from tests.drill.tenant import CONN_ID, consumers

if TYPE_CHECKING:
    from pathlib import Path

_FILE = '''\
"""DAGs of a drill: each runs once for each session that comes to a status."""

import functools
import json
import operator

from airflow.providers.standard.operators.empty import EmptyOperator
from airflow.sdk import DAG

from airflow_mediation_provider.assets import on_meter_session

for dag_id, pairs in json.loads({consumers!r}):
    schedule = functools.reduce(
        operator.or_, (on_meter_session(meter, status, mediation_conn_id={conn_id!r}) for meter, status in pairs)
    )
    with DAG(dag_id, schedule=schedule, max_active_runs=1000, max_active_tasks=1000, catchup=False) as dag:
        EmptyOperator(task_id="done")
    globals()[dag_id] = dag
'''


def write_dags(directory: Path) -> None:
    """Write the file."""
    directory.mkdir(parents=True, exist_ok=True)
    text = _FILE.format(consumers=json.dumps(list(consumers())), conn_id=CONN_ID)
    (directory / "drill.py").write_text(text, encoding="utf-8")
