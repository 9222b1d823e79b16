"""Callouts wake sensors in every mode on a real Airflow, as fast as the mode allows, and Zuora is hardly polled."""

from __future__ import annotations

import json
import re
import time
from datetime import datetime
from typing import TYPE_CHECKING, Any

import httpx
import pytest

from airflow_mediation_provider.version_compat import AIRFLOW_V_3_3_PLUS
from testkit.processes import wait_until
from tests.integration.test_callouts import SECRET, Callouts, connect

if TYPE_CHECKING:
    from testkit.stage import Stage
    from tests.unit.statsd import StatsdServer

CONN_ID, WITHOUT = "mediation_waits", "mediation_waits_without"
# So long that only a callout can wake a deferred task.
SELDOM = 600
SENSORS: dict[str, dict[str, Any]] = {
    "deferrable": {"deferrable": True, "poke_interval": SELDOM},
    "deferrable_named": {"deferrable": True, "poke_interval": SELDOM, "session_id": "R-80000002"},
    "poke": {"mode": "poke", "poke_interval": 1},
    "previous": {"deferrable": True, "poke_interval": SELDOM, "previous_statuses": ["PUSH_COMPLETED"]},
    "previous_poke": {"mode": "poke", "poke_interval": 1, "previous_statuses": ["PUSH_COMPLETED"]},
}
if AIRFLOW_V_3_3_PLUS:
    SENSORS["started_there"] = {"start_from_trigger": True, "poke_interval": SELDOM}
    SENSORS["reschedule"] = {"mode": "reschedule", "poke_interval": 3}
DAG = """
from airflow.sdk import dag
from airflow_mediation_provider.sensors.meter_session import MeterSessionSensor

# Airflow sometimes fails a task that resumes too soon (apache/airflow#72716), hence the retries.
@dag(schedule=None, default_args={{"retries": 3, "retry_delay": 1}})
def callout_waits():
    for name, meter_id, arguments in {sensors!r}:
        MeterSessionSensor(
            task_id=name,
            **{{"meter_id": meter_id, "mediation_conn_id": {conn_id!r}, "settle": 3, "timeout": 180, **arguments}},
        )

callout_waits()
"""


class Play:
    """One run of all sensors, each on a meter of its own, and the callouts that end their waits."""

    def __init__(self, stage: Stage, meters: dict[str, str]) -> None:
        self.airflow, self.simulator, self.meters = stage.airflow, stage.simulator, meters
        self.callouts = Callouts(stage.airflow, CONN_ID)
        self.sessions = {name: f"R-8000{number:04}" for number, name in enumerate(SENSORS, start=1)}
        self.answered: dict[str, float] = {}
        self.run_id = self.airflow.trigger("callout_waits")

    def wait_all(self) -> None:
        for name in SENSORS:
            kind = "running" if "poke" in name.split("_") else "deferred"
            states = {"up_for_reschedule"} if name == "reschedule" else {kind}
            self.airflow.wait_task("callout_waits", self.run_id, name, states)
            if kind == "deferred" and name != "reschedule":
                wait_until(lambda name=name: self.triggerer_waits(name), timeout=60, what=f"the trigger of {name}")

    def triggerer_waits(self, name: str) -> bool:
        """Return whether a task's trigger has reported to the API server that it waits: the task's tab shows it."""
        task = {"dag_id": "callout_waits", "run_id": self.run_id, "task_id": name}
        tab = httpx.get(f"{self.airflow.url}/mediation/task", params=task, trust_env=False)
        return "by a triggerer" in tab.raise_for_status().text

    def post(self, name: str, status: str, previous: str) -> None:
        answer = self.callouts.post(self.meters[name], self.sessions[name], status, previous)
        assert json.loads(answer) == {"success": True}
        self.answered[name] = time.time()

    def session_of(self, name: str) -> dict[str, Any]:
        self.airflow.wait_task("callout_waits", self.run_id, name, {"success"}, timeout=90)
        return dict(self.airflow.xcom("callout_waits", self.run_id, name))

    def seconds_to(self, name: str, text: re.Pattern[str]) -> float:
        """Return how long after the answer to the last callout the text was in the task's log."""
        path = f"/dags/callout_waits/dagRuns/{self.run_id}/taskInstances/{name}/logs/1"
        content = self.airflow.api("GET", path, params={"full_content": True})["content"]
        lines = [line for line in content if isinstance(line, dict) and text.search(str(line.get("event")))]
        return datetime.fromisoformat(lines[0]["timestamp"]).timestamp() - self.answered[name]

    def polls(self, name: str) -> int:
        log = self.simulator.call("GET", "/log", params={"kind": "request", "meter": self.meters[name]})["entries"]
        return sum("/runStatus" in entry["path"] for entry in log)


@pytest.fixture(scope="module")
def play(stage: Stage) -> Play:
    connect(stage, CONN_ID, {"callout_hmac_secret": SECRET})
    connect(stage, WITHOUT, {})
    meters = {name: str(number) for number, name in enumerate((*SENSORS, "without"), start=60_001)}
    for meter_id in meters.values():
        stage.simulator.meter(meter_id)
    sensors = [(name, meters[name], arguments) for name, arguments in SENSORS.items()]
    missing = {"mediation_conn_id": WITHOUT, "previous_statuses": ["RUNNING"], "retries": 0, "deferrable": True}
    sensors.append(("without", meters["without"], missing))
    (stage.dags / "callout_waits.py").write_text(DAG.format(sensors=sensors, conn_id=CONN_ID))
    stage.airflow.wait_dags({"callout_waits"})
    made = Play(stage, meters)
    made.wait_all()
    return made


@pytest.mark.parametrize("name", SENSORS)
def test_a_callout_ends_the_wait(play: Play, name: str) -> None:
    before = "PUSH_COMPLETED" if name.startswith("previous") else "RUNNING"
    asked = play.polls(name)
    play.post(name, "INITIALIZING", "")
    if name.startswith("previous"):
        # Any other kind of end does not count; it is reported first, as callouts may arrive out of order.
        play.post(name, "PUSH_COMPLETED", "RUNNING")
    play.post(name, "COMPLETED", before)
    result = play.session_of(name)

    assert (result["session_id"], result["status"]) == (play.sessions[name], "COMPLETED")
    assert (result["previous_status"], result["evidence"], result["certain"]) == (before, "callout", True)
    seconds = play.seconds_to(name, re.compile(r"(is|->) COMPLETED( after [\w ]+)?, by callout"))
    print(f"{name}: in its log {seconds:.2f} s after the callout was answered")
    assert seconds < {"reschedule": 30.0, "poke": 4.0, "previous_poke": 4.0}.get(name, 1.0)
    if SENSORS[name]["poke_interval"] == SELDOM:
        assert asked <= 1  # the worker's poll of a meter without any report, or the triggerer's
        assert play.polls(name) == asked


@pytest.mark.skipif(not AIRFLOW_V_3_3_PLUS, reason="a start in the triggerer needs Airflow 3.3")
def test_a_task_that_ended_in_the_triggerer_was_on_no_worker(play: Play) -> None:
    play.session_of("started_there")
    found = {ti["task_id"]: ti for ti in play.airflow.task_instances("callout_waits", play.run_id)}
    assert found["started_there"]["pid"] is None


def test_previous_statuses_without_callouts_fail_with_the_missing_setup(play: Play) -> None:
    ti = play.airflow.wait_task("callout_waits", play.run_id, "without", {"failed"})
    assert ti["try_number"] == 1
    log = play.airflow.logs("callout_waits", play.run_id, "without")
    assert f"connection '{WITHOUT}' takes no callouts" in log
    assert "airflow mediation callout-template" in log


def test_the_log_contains_the_source_of_the_wait(play: Play) -> None:
    # The tasks' API is a separate server here, which has nothing else: the user's was found instead.
    for name in SENSORS.keys() & {"deferrable", "started_there", "poke"}:
        log = play.airflow.logs("callout_waits", play.run_id, name)
        assert f"callouts of connection '{CONN_ID}' are read at {play.airflow.url}/mediation" in log, name


def test_each_process_sends_airflows_metrics(play: Play, statsd: StatsdServer) -> None:
    # Of the API server, of tasks on workers, and of triggers: Airflow sets up the metrics of each in another way.
    for name in SENSORS:
        play.session_of(name)
    sent = [each for each in statsd.ours() if each.tags["conn_id"] == CONN_ID]
    names = {each.name for each in sent}
    assert {"mediation.callouts.accepted", "mediation.callouts.duration", "mediation.waits.open"} <= names

    def tags(name: str, *which: str) -> list[tuple[str, ...]]:
        return [tuple(each.tags[tag] for tag in which) for each in sent if each.name == name]

    completed = tags("mediation.transitions", "evidence", "status").count(("callout", "COMPLETED"))
    assert completed == len(SENSORS)
    # A task that Airflow fails because it resumes too soon waits once more.
    assert tags("mediation.waits.ended", "outcome").count(("MET",)) >= len(SENSORS)
    lags = sorted(each.value for each in sent if each.name == "mediation.lag")
    print(f"from the callout to the verdict in the triggerer: {lags} ms")
    assert lags
