"""Callouts wake sensors in every mode on a real Airflow, in the time that the mode takes, and Zuora is hardly asked."""

from __future__ import annotations

import json
import re
import time
from datetime import datetime
from typing import TYPE_CHECKING, Any

import httpx
import pytest

from demo.processes import wait_until
from tests.integration.test_callouts import SECRET, Callouts, connect

if TYPE_CHECKING:
    from demo.stage import Stage
    from tests.unit.statsd import StatsdServer

CONN_ID, WITHOUT = "mediation_waits", "mediation_waits_without"
# So seldom that only a callout can wake what is deferred.
SELDOM = 600
SENSORS: dict[str, dict[str, Any]] = {
    "deferrable": {"deferrable": True, "poke_interval": SELDOM},
    "deferrable_named": {"deferrable": True, "poke_interval": SELDOM, "session_id": "R-80000002"},
    "started_there": {"start_from_trigger": True, "poke_interval": SELDOM},
    "poke": {"mode": "poke", "poke_interval": 1},
    "reschedule": {"mode": "reschedule", "poke_interval": 3},
    "previous": {"deferrable": True, "poke_interval": SELDOM, "previous_statuses": ["PUSH_COMPLETED"]},
    "previous_poke": {"mode": "poke", "poke_interval": 1, "previous_statuses": ["PUSH_COMPLETED"]},
}
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
        self.callouts = Callouts(stage, CONN_ID)
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
        """Say whether the trigger of a task has told the API server that it waits: the task's tab shows it."""
        task = {"dag_id": "callout_waits", "run_id": self.run_id, "task_id": name}
        tab = httpx.get(f"{self.airflow.url}/mediation/task", params=task, trust_env=False)
        return "by a triggerer" in tab.raise_for_status().text

    def post(self, name: str, status: str, previous: str) -> None:
        answer = self.callouts.post(self.meters[name], self.sessions[name], status, previous)
        assert json.loads(answer) == {"success": True}
        self.answered[name] = time.time()

    def told(self, name: str) -> dict[str, Any]:
        self.airflow.wait_task("callout_waits", self.run_id, name, {"success"}, timeout=90)
        return dict(self.airflow.xcom("callout_waits", self.run_id, name))

    def seconds_to(self, name: str, words: re.Pattern[str]) -> float:
        """Return how long after the answer to the last callout the task's log said something."""
        path = f"/dags/callout_waits/dagRuns/{self.run_id}/taskInstances/{name}/logs/1"
        content = self.airflow.api("GET", path, params={"full_content": True})["content"]
        lines = [line for line in content if isinstance(line, dict) and words.search(str(line.get("event")))]
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
        # An end that came otherwise is none; it is reported first, as callouts may be disordered.
        play.post(name, "PUSH_COMPLETED", "RUNNING")
    play.post(name, "COMPLETED", before)
    told = play.told(name)

    assert (told["session_id"], told["status"]) == (play.sessions[name], "COMPLETED")
    assert (told["previous_status"], told["evidence"], told["certain"]) == (before, "callout", True)
    seconds = play.seconds_to(name, re.compile(r"(is|->) COMPLETED( after [\w ]+)?, by callout"))
    print(f"{name}: its log knew {seconds:.2f} s after the callout was answered")
    assert seconds < {"reschedule": 30.0, "poke": 4.0, "previous_poke": 4.0}.get(name, 1.0)
    if SENSORS[name]["poke_interval"] == SELDOM:
        assert asked <= 1  # the worker's look at a meter of which nothing is known, or the triggerer's
        assert play.polls(name) == asked


def test_a_task_that_ended_in_the_triggerer_never_saw_a_worker(play: Play) -> None:
    play.told("started_there")
    found = {ti["task_id"]: ti for ti in play.airflow.task_instances("callout_waits", play.run_id)}
    assert found["started_there"]["pid"] is None


def test_previous_statuses_without_callouts_fail_with_what_to_set_up(play: Play) -> None:
    ti = play.airflow.wait_task("callout_waits", play.run_id, "without", {"failed"})
    assert ti["try_number"] == 1
    words = play.airflow.logs("callout_waits", play.run_id, "without")
    assert f"connection '{WITHOUT}' takes no callouts" in words
    assert "airflow mediation callout-template" in words


def test_the_log_says_what_the_wait_rests_on(play: Play) -> None:
    # The API of tasks is a server of its own here, which serves nothing else: the user's was found instead.
    for name in ("deferrable", "started_there", "poke"):
        words = play.airflow.logs("callout_waits", play.run_id, name)
        assert f"callouts of connection '{CONN_ID}' are read at {play.airflow.url}/mediation" in words, name


def test_each_process_tells_airflows_metrics_what_it_did(play: Play, statsd: StatsdServer) -> None:
    # Of the API server, of tasks on workers, and of triggers: Airflow sets up the metrics of each in another way.
    for name in SENSORS:
        play.told(name)
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
