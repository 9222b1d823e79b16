"""Writes the drill's Dag file: cheap Dags, because the scheduler itself ends their only task."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

from tests.drill.tenant import CONN_ID

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence
    from pathlib import Path

    from tests.drill.history import Consumer

_FILE = '''\
"""Dags of a drill: each runs once for each session that reaches a status."""

import functools
import json
import operator

from airflow.providers.standard.operators.empty import EmptyOperator
from airflow.sdk import DAG

from airflow_mediation_provider.assets import on_meter_session

for dag_id, pairs in json.loads({schedules!r}).items():
    schedule = functools.reduce(
        operator.or_,
        (
            on_meter_session(meter, status, mediation_conn_id={conn_id!r}, callout_history=each)
            for meter, status in pairs
            for each in {history!r}
        ),
    )
    with DAG(dag_id, schedule=schedule, max_active_runs=1000, max_active_tasks=1000, catchup=False) as dag:
        EmptyOperator(task_id="done")
    globals()[dag_id] = dag
'''


def write_dags(directory: Path, consumers: Iterable[Consumer], history: Sequence[float | None] = (None,)) -> None:
    """Write the file: a Dag for each name, scheduled on all its pairs of meter and status.

    :param history: for each reader of the callout history, the seconds between two reads; ``None``: there is none
    """
    directory.mkdir(parents=True, exist_ok=True)
    schedules: dict[str, list[tuple[str, str]]] = {}
    for each in consumers:
        schedules.setdefault(each.dag_id, []).append((each.meter_id, each.status))
    text = _FILE.format(schedules=json.dumps(schedules), conn_id=CONN_ID, history=tuple(history))
    (directory / "drill.py").write_text(text, encoding="utf-8")
