"""A process that has everything but this package: what Airflow's scheduler and API server make of stored Dags.

Run by `test_package_missing.py`; prints its findings as JSON.
"""

from __future__ import annotations

import json
import time
from importlib.metadata import entry_points
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

from airflow import settings
from airflow.api_fastapi.app import create_app
from airflow.jobs.job import Job
from airflow.jobs.scheduler_job_runner import SchedulerJobRunner
from airflow.models.dag import DagModel
from airflow.models.dagrun import DagRun
from airflow.models.taskinstance import TaskInstance
from fastapi.testclient import TestClient
from sqlalchemy import select

if TYPE_CHECKING:
    from collections.abc import Iterator

    from sqlalchemy.orm import Session

# Not the events of assets: Airflow answers 500 there while a run that one started is queued, with this package too.
OF_ALL = ["/api/v2/dags", "/ui/dags", "/api/v2/assets", "/ui/dependencies", "/api/v2/plugins"]
OF_A_DAG = [
    "/api/v2/dags/{}",
    "/api/v2/dags/{}/details",
    "/api/v2/dags/{}/tasks",
    "/api/v2/dags/{}/dagRuns",
    "/ui/grid/structure/{}",
    "/ui/grid/runs/{}",
    "/ui/structure/structure_data?dag_id={}",
    "/ui/next_run_assets/{}",
]
OF_A_TASK = [
    "/api/v2/dags/{}/dagRuns/{}/taskInstances/{}",
    "/api/v2/dags/{}/dagRuns/{}/taskInstances/{}/links",
]


def schedule(session: Session) -> None:
    """Turns of the scheduler: it makes Dag runs, and queues their tasks in an executor that has not started.

    On SQLite, Airflow compares times by the second: a run that was just made is started in the next one.
    """
    scheduler = SchedulerJobRunner(Job(), executors=[])
    session.add(scheduler.job)
    session.commit()
    queued = select(DagRun.id).where(DagRun.state == "queued", DagRun.partition_key.is_not(None))
    deadline = time.monotonic() + 30
    scheduler._do_scheduling(session)
    while session.scalars(queued).first() and time.monotonic() < deadline:
        time.sleep(0.1)
        scheduler._do_scheduling(session)


def paths(session: Session) -> Iterator[str]:
    yield from OF_ALL
    for dag_id in session.scalars(select(DagModel.dag_id)):
        yield from (path.format(dag_id) for path in OF_A_DAG)
    for task in session.execute(select(TaskInstance.dag_id, TaskInstance.run_id, TaskInstance.task_id)):
        yield from (path.format(*map(quote, task)) for path in OF_A_TASK)


def findings() -> dict[str, Any]:
    with settings.NonScopedSession() as session:
        schedule(session)
        runs = session.execute(select(DagRun.dag_id, DagRun.partition_key, DagRun.state)).all()
        tasks = session.execute(select(TaskInstance.dag_id, TaskInstance.state)).all()
        asked = list(paths(session))
    with TestClient(create_app("core"), raise_server_exceptions=False) as client:
        replies = {path: client.get(path) for path in asked}
    return {
        "runs": [list(run) for run in runs],
        "tasks": [list(task) for task in tasks],
        "replies": {path: [reply.status_code, reply.text] for path, reply in replies.items()},
    }


if __name__ == "__main__":
    assert find_spec("airflow_mediation_provider") is None
    assert "mediation" not in {each.name for each in entry_points(group="airflow.plugins")}
    print(json.dumps(findings()))
