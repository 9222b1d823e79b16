"""Callouts on a real Airflow: posted by hand they start Dags, once for each session, in any order and number."""

from __future__ import annotations

import base64
import json
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

import pytest

from testkit.processes import wait_until

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence

    from testkit.stack import AirflowStack
    from testkit.stage import Stage

CONN_ID = "mediation_callouts"
STATUS_CHANGE = "com.zuora.notification:status_change"
SECRET = "a secret of sixteen or more"
DAG = """
from airflow.sdk import dag, task
from airflow_mediation_provider.assets import on_meter_session, triggering_session

@dag(schedule={schedule}, catchup=False, max_active_runs=40, max_active_tasks=40)
def {dag_id}():
    @task
    def session():
        return triggering_session()

    session()

{dag_id}()
"""


EMPTY = """
from airflow.providers.standard.operators.empty import EmptyOperator
from airflow.sdk import DAG
from airflow_mediation_provider.assets import on_meter_session

# The scheduler itself ends its only task.
with DAG({dag_id!r}, schedule={schedule}, catchup=False, max_active_runs=40):
    EmptyOperator(task_id="nothing")
"""


SENSOR = """
from airflow.sdk import dag
from airflow_mediation_provider.sensors.meter_session import MeterSessionSensor

# Airflow sometimes fails a task that resumes too soon (apache/airflow#72716), hence the retries.
@dag(schedule=None, default_args={{"retries": 3, "retry_delay": 1}})
def {dag_id}():
    # So seldom that only a callout can wake it.
    MeterSessionSensor(
        task_id="wait", meter_id={meter_id!r}, mediation_conn_id={conn_id!r}, deferrable=True, poke_interval=600
    )

{dag_id}()
"""


@pytest.fixture(scope="module")
def callouts(stage: Stage) -> Callouts:
    connect(stage, CONN_ID, {"callout_hmac_secret": SECRET})
    return Callouts(stage.airflow)


def connect(stage: Stage, conn_id: str, extra: dict[str, str]) -> None:
    stage.airflow.api(
        "POST",
        "/connections",
        json={
            "connection_id": conn_id,
            "conn_type": "mediation",
            "host": stage.simulator.url,
            "login": "simulator-client",
            "password": "simulator-secret",
            "extra": json.dumps(extra),
        },
    )


class Callouts:
    """Posts callouts with a shell's tools alone, and returns the runs that they started.

    :param options: of curl, besides those for the callout
    """

    def __init__(self, airflow: AirflowStack, conn_id: str = CONN_ID, *, options: Sequence[str] = ()) -> None:
        self.airflow = airflow
        self.url = f"{airflow.url}/mediation/callouts/{conn_id}"
        self._options = options

    def post(
        self, meter_id: str, session_id: str, status: str, previous: str = "RUNNING", run_type: str = "NORMAL"
    ) -> str:
        now = datetime.now(UTC).isoformat()
        body = json.dumps(
            {
                "meterId": meter_id,
                "meterName": "Posted by hand",
                "sessionId": session_id,
                "runType": run_type,
                "status": status,
                "previousStatus": previous,
                "startTime": now,
                "endTime": now if status == "COMPLETED" else "",
            }
        ).encode()
        sign = ["openssl", "dgst", "-sha256", "-hmac", SECRET, "-binary"]
        signature = base64.b64encode(subprocess.run(sign, input=body, capture_output=True, check=True).stdout).decode()
        headers = ["-H", "Content-Type: application/json", "-H", f"X-Mediation-Signature: {signature}"]
        send = [
            "curl",
            "-sS",
            "--noproxy",
            "*",
            "--max-time",
            "30",
            *self._options,
            *headers,
            "--data-binary",
            "@-",
            self.url,
        ]
        return subprocess.run(send, input=body, capture_output=True, check=True).stdout.decode()

    def runs(self, dag_id: str) -> dict[str, list[dict[str, Any]]]:
        """Return the runs of a Dag by their partition keys."""
        found: dict[str, list[dict[str, Any]]] = {}
        for run in self.airflow.runs(dag_id):
            found.setdefault(str(run["partition_key"]), []).append(run)
        return found

    def wait_runs(self, dag_id: str, sessions: set[str], *, timeout: float = 30) -> None:
        """Wait until there is a run for each session, and assert that there is one for each and no other."""
        wait_until(
            lambda: set(self.runs(dag_id)) >= sessions,
            timeout=timeout,
            what=f"the runs of {dag_id} for {len(sessions)} sessions",
            every=0.5,
        )
        assert {session: len(runs) for session, runs in self.runs(dag_id).items()} == dict.fromkeys(sessions, 1)

    def replay(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "airflow", "mediation", "replay", *arguments]
        environment = self.airflow.processes.env
        return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120, check=False)

    def pause(self, dag_id: str, *, paused: bool) -> None:
        self.airflow.api("PATCH", f"/dags/{dag_id}", json={"is_paused": paused})


def on(meter_id: str, status: str = "COMPLETED", *, conn_id: str = CONN_ID, **options: Any) -> str:
    more = "".join(f", {name}={value!r}" for name, value in options.items())
    return f"on_meter_session({meter_id!r}, {status!r}, mediation_conn_id={conn_id!r}{more})"


def test_a_callout_sent_with_curl_and_openssl_starts_the_dag(
    callouts: Callouts, meter: Callable[..., str], add_dags: Callable[[Mapping[str, str]], None]
) -> None:
    meter_id, session = meter(), "R-70000001"
    add_dags({"on_callout": DAG.format(dag_id="on_callout", schedule=on(meter_id))})

    assert json.loads(callouts.post(meter_id, session, "COMPLETED")) == {"success": True}
    began = time.monotonic()
    callouts.wait_runs("on_callout", {session})
    print(f"run after {time.monotonic() - began:.2f} s")
    # Zuora may send it again, and other events of the session too.
    callouts.post(meter_id, session, "COMPLETED")
    callouts.post(meter_id, session, "RUNNING", "INITIALIZING")
    [run] = callouts.airflow.runs("on_callout")
    callouts.airflow.wait_success("on_callout", run["dag_run_id"])

    result = callouts.airflow.xcom("on_callout", run["dag_run_id"], "session")
    assert (result["meter_id"], result["session_id"], result["status"]) == (meter_id, session, "COMPLETED")
    assert (result["evidence"], result["certain"]) == ("callout", True)
    callouts.wait_runs("on_callout", {session})


def test_a_callout_wakes_the_deferred_sensor(
    callouts: Callouts, meter: Callable[..., str], add_dags: Callable[[Mapping[str, str]], None]
) -> None:
    dag_id, meter_id, session = "on_callout_sensor", meter(), "R-70500001"
    add_dags({dag_id: SENSOR.format(dag_id=dag_id, meter_id=meter_id, conn_id=CONN_ID)})
    run_id = callouts.airflow.trigger(dag_id)
    callouts.airflow.wait_task(dag_id, run_id, "wait", {"deferred"})

    callouts.post(meter_id, session, "INITIALIZING", "")
    callouts.post(meter_id, session, "COMPLETED")
    began = time.monotonic()
    callouts.airflow.wait_success(dag_id, run_id)
    print(f"the sensor's run ended {time.monotonic() - began:.2f} s after the callout")

    result = callouts.airflow.xcom(dag_id, run_id, "wait")
    assert (result["session_id"], result["status"]) == (session, "COMPLETED")
    assert (result["evidence"], result["certain"]) == ("callout", True)


def test_every_callout_of_a_burst_starts_its_run(
    callouts: Callouts, meter: Callable[..., str], add_dags: Callable[[Mapping[str, str]], None]
) -> None:
    meter_id, sessions = meter(), {f"R-7100{number:04}" for number in range(20)}
    add_dags({"on_burst": EMPTY.format(dag_id="on_burst", schedule=on(meter_id))})

    began = time.monotonic()
    with ThreadPoolExecutor(8) as pool:
        answers = list(pool.map(lambda session: callouts.post(meter_id, session, "COMPLETED"), sorted(sessions)))
    sent = time.monotonic()
    callouts.wait_runs("on_burst", sessions, timeout=30)
    print(f"20 callouts in {sent - began:.2f} s; all runs {time.monotonic() - sent:.2f} s later")

    assert {json.loads(answer)["success"] for answer in answers} == {True}


def test_a_session_of_either_meter_starts_a_run(
    callouts: Callouts, meter: Callable[..., str], add_dags: Callable[[Mapping[str, str]], None]
) -> None:
    one, other = meter(), meter()
    schedule = f"{on(one)} | {on(other, 'FAILED')}"
    add_dags({"on_either_of_two": EMPTY.format(dag_id="on_either_of_two", schedule=schedule)})

    callouts.post(one, "R-72000001", "COMPLETED")
    callouts.post(other, "R-72000002", "FAILED")
    callouts.post(other, "R-72000003", "COMPLETED")

    callouts.wait_runs("on_either_of_two", {"R-72000001", "R-72000002"})


def test_a_session_of_any_meter_starts_a_run_if_it_fits(
    callouts: Callouts, meter: Callable[..., str], add_dags: Callable[[Mapping[str, str]], None]
) -> None:
    known, any_meter = meter(), f"on_meter_session(ANY_METER, {{!r}}, mediation_conn_id={CONN_ID!r}{{}})"
    source = DAG.replace("import on_meter_session", "import ANY_METER, on_meter_session")
    schedules = {
        "on_any": any_meter.format(["FAILED", "TESTING_FAILED"], ""),
        # A session that fits both conditions has one run.
        "on_running_failed": " | ".join(
            [any_meter.format("FAILED", ", previous_statuses='RUNNING'"), on(known, "FAILED")]
        ),
        "on_test_canceled": any_meter.format("CANCELED", ", run_type='DEBUG'"),
    }
    add_dags({dag_id: source.format(dag_id=dag_id, schedule=schedule) for dag_id, schedule in schedules.items()})

    callouts.post("made-tomorrow", "R-72100001", "FAILED", "RUNNING")
    callouts.post("made-tomorrow", "R-72100002", "FAILED", "PAUSED")
    callouts.post(known, "R-72100003", "TESTING_FAILED", "TESTING", "DEBUG")
    callouts.post(known, "R-72100004", "CANCELED", "TESTING", "DEBUG")
    callouts.post(known, "R-72100005", "CANCELED", "RUNNING")
    callouts.post(known, "R-72100006", "FAILED", "RUNNING")

    callouts.wait_runs("on_any", {"R-72100001", "R-72100002", "R-72100003", "R-72100006"})
    callouts.wait_runs("on_running_failed", {"R-72100001", "R-72100006"})
    callouts.wait_runs("on_test_canceled", {"R-72100004"})
    [run] = callouts.runs("on_test_canceled")["R-72100004"]
    callouts.airflow.wait_success("on_test_canceled", run["dag_run_id"])
    session = callouts.airflow.xcom("on_test_canceled", run["dag_run_id"], "session")
    assert (session["meter_id"], session["run_type"], session["status"]) == (known, "DEBUG", "CANCELED")


def test_a_dag_that_was_paused_gets_exactly_the_missing_runs(
    callouts: Callouts, meter: Callable[..., str], add_dags: Callable[[Mapping[str, str]], None]
) -> None:
    meter_id, sessions = meter(), {f"R-7300{number:04}" for number in range(20)}
    sources = {"on_paused": DAG, "on_beside": EMPTY}
    add_dags({dag_id: source.format(dag_id=dag_id, schedule=on(meter_id)) for dag_id, source in sources.items()})
    callouts.post(meter_id, "R-73000000", "COMPLETED")
    callouts.wait_runs("on_paused", {"R-73000000"})
    callouts.pause("on_paused", paused=True)
    for session in sorted(sessions - {"R-73000000"}):
        callouts.post(meter_id, session, "COMPLETED")
    callouts.wait_runs("on_beside", sessions)

    refused = callouts.replay("--dag", "on_paused", "--since", "1h")
    assert refused.returncode == 1
    assert "airflow dags unpause on_paused" in refused.stdout
    callouts.pause("on_paused", paused=False)
    first = callouts.replay("--dag", "on_paused", "--since", "1h")
    assert "1 have a run, 19 get one now:" in first.stdout
    callouts.wait_runs("on_paused", sessions)
    second = callouts.replay("--dag", "on_paused", "--since", "1h")
    assert "20 have a run, 0 get one now." in second.stdout

    callouts.wait_runs("on_paused", sessions)
    callouts.wait_runs("on_beside", sessions)
    run = callouts.runs("on_paused")["R-73000019"][0]["dag_run_id"]
    callouts.airflow.wait_success("on_paused", run)
    assert callouts.airflow.xcom("on_paused", run, "session")["session_id"] == "R-73000019"


def test_a_schedule_with_poll_interval_works_without_callouts(
    stage: Stage, callouts: Callouts, meter: Callable[..., str], add_dags: Callable[[Mapping[str, str]], None]
) -> None:
    """Zuora cannot reach this Airflow: the triggerer finds the ends by polls, and each starts one run."""
    connect(stage, "mediation_polled", {})
    meter_id = meter(script=[["RUNNING", 8], ["COMPLETED", 0]])
    schedule = on(meter_id, conn_id="mediation_polled", poll_interval=5)
    names = ("on_polled", "on_polled_too")
    add_dags({dag_id: DAG.format(dag_id=dag_id, schedule=schedule) for dag_id in names})

    for number in (1, 2):
        # The result of a first poll is not a change.
        stage.simulator.wait_log("request", meter_id=meter_id, status=200, count=2 * number)
        stage.simulator.start_session(meter_id)
        for dag_id in ("on_polled", "on_polled_too"):
            what = f"run {number} of {dag_id}"
            wait_until(lambda: len(stage.airflow.runs(dag_id)) >= number, timeout=60, what=what)  # noqa: B023

    for dag_id in ("on_polled", "on_polled_too"):
        runs = callouts.runs(dag_id)
        assert {key: len(found) for key, found in runs.items()} == dict.fromkeys(runs, 1)
        assert len(runs) == 2
        run_id = next(iter(runs.values()))[0]["dag_run_id"]
        stage.airflow.wait_success(dag_id, run_id)
        result = stage.airflow.xcom(dag_id, run_id, "session")
        assert (result["meter_id"], result["status"]) == (meter_id, "COMPLETED")
        assert (result["session_id"], result["evidence"], result["certain"]) == (None, "poll", False)
    asked = [each for each in stage.simulator.log("request", meter_id=meter_id) if "runStatus" in each["path"]]
    seconds = (datetime.now(UTC) - datetime.fromisoformat(asked[0]["time"])).total_seconds()
    assert len(asked) <= seconds / 5 + 2


@pytest.fixture
def cut_off(stage: Stage) -> Iterator[str]:
    """A connection to a tenant that cannot reach this Airflow, and writes its history in a zone that is not named."""
    connect(stage, "mediation_cut_off", {"callout_event_category": STATUS_CHANGE})
    nowhere = {"url": "http://127.0.0.1:9/nowhere", "retry": False}
    stage.simulator.call("POST", "/delivery", json={"history_timezone": "Asia/Kolkata"})
    stage.simulator.call("POST", "/config", json={"callouts": [nowhere]})
    yield "mediation_cut_off"
    stage.simulator.call("POST", "/delivery", json={"history_timezone": "UTC"})
    # As it was: the meters of the examples send callouts.
    stage.call_out()


def test_the_callout_history_starts_dags_and_wakes_sensors(
    stage: Stage,
    callouts: Callouts,
    cut_off: str,
    meter: Callable[..., str],
    add_dags: Callable[[Mapping[str, str]], None],
) -> None:
    """Zuora cannot reach this Airflow: the triggerer reads the history of the callouts that went nowhere."""
    meter_id = meter(script=[["INITIALIZING", 2], ["RUNNING", 4], ["COMPLETED", None]])
    schedule = on(meter_id, conn_id=cut_off, callout_history=5, previous_statuses="RUNNING")
    sensor = SENSOR.format(dag_id="on_history_sensor", meter_id=meter_id, conn_id=cut_off)
    add_dags({"on_history": DAG.format(dag_id="on_history", schedule=schedule), "on_history_sensor": sensor})

    def read() -> bool:
        """Whether the connection's history was read; an example reads that of another one, without a category."""
        asked = stage.simulator.log("request", path="/v1/notification-history/callout", status=200)
        return any(each["query"].get("eventCategory") == STATUS_CHANGE for each in asked)

    wait_until(read, timeout=60, what="the first read of the callout history")
    run_id = callouts.airflow.trigger("on_history_sensor")
    callouts.airflow.wait_task("on_history_sensor", run_id, "wait", {"deferred"})

    session = str(stage.simulator.start_session(meter_id)["session_id"])

    callouts.wait_runs("on_history", {session})
    (started,) = callouts.runs("on_history")[session]
    callouts.airflow.wait_success("on_history", started["dag_run_id"])
    callouts.airflow.wait_success("on_history_sensor", run_id)
    for dag_id, run, task in (("on_history", started["dag_run_id"], "session"), ("on_history_sensor", run_id, "wait")):
        result = callouts.airflow.xcom(dag_id, run, task)
        assert (result["session_id"], result["status"], result["previous_status"]) == (session, "COMPLETED", "RUNNING")
        assert (result["evidence"], result["certain"]) == ("history", True)
    callouts.wait_runs("on_history", {session})
