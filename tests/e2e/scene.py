"""One session with all that belongs to it: a task that waited for it, a Dag run that it triggered, and its pages."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any
from urllib.parse import urlencode

import httpx

from airflow_mediation_provider.protocol.urls import MOUNT
from testkit.processes import wait_until
from testkit.stage import CONN_ID
from tests.e2e import people

if TYPE_CHECKING:
    from testkit.stage import Stage

METER = "1013"
PAUSED = "on_either"
PAUSED_METER = "1016"
WAITS = ("run_and_branch", "run_meter")


@dataclass(frozen=True, kw_only=True)
class Scene:
    """A session of ``METER`` that is COMPLETED, reported by callouts.

    :param waiting: the run of the Dag whose task waited for it
    :param started: the run of ``people.ONE_DAG`` that it triggered
    :param callout: one of its callouts: the parameter of its page
    :param missed: another session, of ``PAUSED_METER``, which triggered nothing because the Dag ``PAUSED`` is paused
    """

    session_id: str
    waiting: str
    started: str
    missed: str
    callout: tuple[str, ...]

    @property
    def key(self) -> dict[str, str]:
        """The session's key in addresses and forms."""
        return {"conn": CONN_ID, "meter": METER, "session": self.session_id}

    @property
    def pages(self) -> dict[str, str]:
        """The address of each page that the application has, by the path of its route."""
        task = {"dag_id": WAITS[0], "run_id": self.waiting, "task_id": WAITS[1]}
        run = {"dag_id": people.ONE_DAG, "run_id": self.started}
        queries: dict[str, Any] = {"/session": self.key, "/task": task, "/run": run, "/callout": [self.callout]}
        queries |= {"/meter": {"conn": CONN_ID, "meter": METER}, "/dag": {"dag_id": people.ONE_DAG}}
        paths = ("/", "/sessions", "/sessions/chart", "/session", "/task", "/run", "/unread", "/health")
        queries["/connection"] = {"conn": CONN_ID}
        paths += ("/callouts", "/callout", "/missing-runs", "/meter", "/dag", "/connection")
        return {path: f"{path}?{urlencode(queries[path])}" if path in queries else path for path in paths}


def play(stage: Stage) -> Scene:
    """Create the scene."""
    stage.airflow.wait_dags({WAITS[0], people.ONE_DAG, PAUSED})
    stage.airflow.api("PATCH", f"/dags/{PAUSED}", json={"is_paused": True})
    missed = str(stage.simulator.start_session(PAUSED_METER, script=[["COMPLETED", None]])["session_id"])
    stage.simulator.meter(METER, script=[["INITIALIZING", None]], records=30, errors=1)
    waiting = stage.airflow.trigger(WAITS[0], {"meter_id": METER})
    stage.airflow.wait_task(WAITS[0], waiting, WAITS[1], {"deferred"})
    session_id = str(stage.simulator.sessions(METER)[-1]["session_id"])
    stage.simulator.call("POST", f"/sessions/{session_id}", json={"script": [["COMPLETED", None]]})

    def started() -> str | None:
        runs = stage.airflow.runs(people.ONE_DAG)
        return next((run["dag_run_id"] for run in runs if run["partition_key"] == session_id), None)

    run_id = wait_until(started, timeout=90, what=f"a run of {people.ONE_DAG} for {session_id}")
    stage.airflow.wait_success(WAITS[0], waiting)
    listed = httpx.get(
        f"{stage.airflow.url}{MOUNT}/callouts",
        params={"session": session_id},
        cookies={"_token": stage.airflow.token(people.login(people.ADMIN))},
        trust_env=False,
    )
    callout = re.search(r"/callout\?(\w+)=(\d+)", listed.text)
    assert callout, listed.text
    return Scene(session_id=session_id, waiting=waiting, started=run_id, missed=missed, callout=callout.groups())
