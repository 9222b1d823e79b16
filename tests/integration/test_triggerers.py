"""Triggerers that are killed, or stopped past their health threshold: no wait is lost, and nothing is stopped."""

from __future__ import annotations

import os
import signal
import sys
from typing import TYPE_CHECKING, Any

import pytest

from airflow_mediation_provider.version_compat import AIRFLOW_V_3_3_PLUS
from tests.integration.scenario import Play

if TYPE_CHECKING:
    from collections.abc import Iterator

    from testkit.stage import Stage
    from tests.integration.scenario import Act

# Until the scenario ends it.
ENDLESS = [["INITIALIZING", 0.5], ["RUNNING", None]]
SECOND = "second-triggerer"


def waits(act: Act) -> str:
    """Wait until the task waits in the triggerer, and return the session."""
    if act.task_id.startswith("started_there"):
        act.wait("deferred")
    else:
        act.wait_deferred()
    act.wait_polled(2)
    return act.session_id or act.starts()[0]


def ends_well(act: Act, session_id: str, *, tries: int = 1) -> dict[str, Any]:
    ti = act.end()
    assert (ti["state"], ti["try_number"]) == ("success", tries)
    result = act.xcom()
    assert (result["session_id"], result["status"]) == (session_id, "COMPLETED")
    # The readings of a trigger that started without a worker are lost with its triggerer; its successor reports so if
    # it received only the end.
    assert result["certain"] or act.task_id.startswith("started_there")
    assert len(act.log("start")) == 1
    assert act.stops() == []
    return ti


def goes_on(act: Act) -> Iterator[None]:
    """Kill the triggerer during the wait; the session ends when there is one again."""
    act.meter(ENDLESS)
    if act.task_id != "run_goes_on":
        act.session(ENDLESS)
    yield
    session = waits(act)
    act.play.cues[f"{act.task_id} waits"].set()
    act.await_cue("another triggerer")
    act.wait_polled(2)
    act.finish()
    ends_well(act, session)


def ends_meanwhile(act: Act) -> Iterator[None]:
    """Kill the triggerer during the wait; the session ends while there is none."""
    act.meter(ENDLESS)
    if act.task_id != "run_ends_meanwhile":
        act.session(ENDLESS)
    yield
    session = waits(act)
    act.play.cues[f"{act.task_id} waits"].set()
    act.await_cue("no triggerer")
    act.finish()
    act.await_cue("another triggerer")
    ends_well(act, session)


def worker_lost_too(act: Act) -> Iterator[None]:
    act.meter(ENDLESS)
    yield
    session = waits(act)
    act.play.cues[f"{act.task_id} waits"].set()
    act.await_cue("another triggerer")
    act.wait_polled(2)
    act.finish()
    act.kill()
    ends_well(act, session, tries=2)


def no_triggerer_for_long(act: Act) -> Iterator[None]:
    """The scheduler ends the deferral, without a result of the trigger: Zuora is polled once more."""
    act.meter(ENDLESS)
    yield
    session = waits(act)
    act.play.cues[f"{act.task_id} waits"].set()
    act.await_cue("no triggerer")
    act.finish()
    ends_well(act, session)
    act.play.cues[f"{act.task_id} is over"].set()


def too_late_without_triggerer(act: Act) -> Iterator[None]:
    act.meter(ENDLESS)
    yield
    waits(act)
    act.play.cues[f"{act.task_id} waits"].set()
    ti = act.end()
    act.play.cues[f"{act.task_id} is over"].set()
    assert (ti["state"], ti["try_number"]) == ("failed", 1)
    assert "MeterSessionTimeout: The deadline passed at" in act.task_log()
    assert "was RUNNING since" in act.task_log()
    assert len(act.starts()) == 1
    act.finish()


def moves(act: Act) -> Iterator[None]:
    """Move to another triggerer, while the first one is stopped, and back when that one is killed."""
    act.meter(ENDLESS)
    if act.task_id != "run_moves":
        act.session(ENDLESS)
    yield
    session = waits(act)
    act.play.cues[f"{act.task_id} waits"].set()
    act.await_cue("first triggerer stopped")
    act.wait_polled(2)
    act.play.cues[f"{act.task_id} moved"].set()
    act.await_cue("first triggerer resumed")
    if act.task_id == "run_moves":
        # Airflow took the trigger from the first one just as if a user had ended the task.
        act.wait_logged("Did not stop meter")
    assert act.stops() == []
    act.play.cues[f"{act.task_id} stays"].set()
    act.await_cue("second triggerer killed")
    act.wait_polled(2)
    act.finish()
    ends_well(act, session)


def export_goes_on(act: Act) -> Iterator[None]:
    """Kill the triggerer during the wait for an export: its successor polls the same job."""
    act.meter(ENDLESS)
    # Until it is lifted: the job is finished within seconds.
    not_listed = act.fault("status", status=200, method="GET", path="/auditTrail/export$", body={"data": {"jobs": []}})

    def wait_listed(times: int) -> None:
        act.logged("request", count=len(act.log("request", method="GET")) + times, method="GET")

    yield
    act.wait_deferred()
    wait_listed(2)
    act.play.cues[f"{act.task_id} waits"].set()
    act.await_cue("another triggerer")
    wait_listed(2)
    assert act.play.task(act.task_id)["state"] == "deferred"
    act.lift(not_listed)
    ti = act.end()
    assert (ti["state"], ti["try_number"]) == ("success", 1)
    (job,) = act.log("export")
    result = act.xcom()
    assert (result["request_id"], result["status"]) == (job["request_id"], "FINISHED")


SCENARIOS = {
    "run_goes_on": goes_on,
    "sensor_goes_on": goes_on,
    "run_ends_meanwhile": ends_meanwhile,
    "worker_lost_too": worker_lost_too,
    "no_triggerer_for_long": no_triggerer_for_long,
    "too_late_without_triggerer": too_late_without_triggerer,
    "run_moves": moves,
    "sensor_moves": moves,
    "export_goes_on": export_goes_on,
}
if AIRFLOW_V_3_3_PLUS:
    SCENARIOS |= {
        "started_there_goes_on": goes_on,
        "started_there_ends_meanwhile": ends_meanwhile,
        "started_there_moves": moves,
    }
MOVING = [name for name, scenario in SCENARIOS.items() if scenario is moves]


def conduct(play: Play) -> None:
    """Stop triggerers and start others, when the scenarios are ready."""
    airflow = play.stage.airflow

    def all_say(what: str, names: Any = SCENARIOS) -> None:
        for name in names:
            play.acts[name].await_cue(f"{name} {what}")

    all_say("waits")
    airflow.stop("triggerer", sig=signal.SIGKILL)
    play.cues["no triggerer"].set()
    all_say("is over", ["no_triggerer_for_long", "too_late_without_triggerer"])
    airflow.start("triggerer")
    for name in MOVING:
        play.acts[name].wait_polled(1)
    play.cues["another triggerer"].set()

    first = airflow.pids("triggerer")
    for pid in first:
        os.kill(pid, signal.SIGSTOP)
    command = [sys.executable, "-m", "airflow", "triggerer", "--skip-serve-logs"]
    try:
        airflow.processes.start(SECOND, command)
        play.cues["first triggerer stopped"].set()
        all_say("moved", MOVING)
    finally:
        for pid in first:
            os.kill(pid, signal.SIGCONT)
    play.cues["first triggerer resumed"].set()
    all_say("stays", MOVING)
    airflow.stop(SECOND, sig=signal.SIGKILL)
    play.cues["second triggerer killed"].set()


@pytest.fixture(scope="module")
def triggerers(stage: Stage) -> Iterator[Play]:
    airflow = stage.airflow
    try:
        with Play(stage, "triggerers", SCENARIOS).playing() as play:
            conduct(play)
            yield play
    finally:
        airflow.stop(SECOND, sig=signal.SIGKILL)
        if not airflow.processes.running("triggerer"):
            airflow.start("triggerer")


@pytest.mark.parametrize("scenario", SCENARIOS)
def test_a_wait_survives_its_triggerer(triggerers: Play, scenario: str) -> None:
    triggerers.outcome(scenario)
