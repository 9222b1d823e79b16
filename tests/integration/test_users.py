"""A user's Clear and mark of a run task: nothing else stops a meter, and only if the task is set so."""

from __future__ import annotations

import os
import signal
from typing import TYPE_CHECKING

import psutil
import pytest

from testkit.processes import wait_until
from tests.integration.scenario import PATIENCE, Play

if TYPE_CHECKING:
    from collections.abc import Iterator

    from testkit.stage import Stage
    from tests.integration.scenario import Act

# Until the scenario ends it.
ENDLESS = [["INITIALIZING", 0.5], ["RUNNING", None]]
GONE = 20.0  # seconds in which Airflow ends the process of a task that was marked or cleared


def retried_after_failed(act: Act) -> Iterator[None]:
    act.meter(ENDLESS)
    yield
    act.wait_deferred()
    act.wait_polled()
    act.finish(status="FAILED")
    act.wait_deferred(try_number=2)
    act.wait_polled()
    act.finish()
    ti = act.end()
    assert (ti["state"], ti["try_number"]) == ("success", 2)
    first, second = act.log("start")
    assert first["unique_key"] != second["unique_key"]
    result = act.xcom()
    assert (result["session_id"], result["status"], result["certain"]) == (second["session_id"], "COMPLETED", True)


def cleared_when_done(act: Act) -> Iterator[None]:
    act.meter(ENDLESS)
    yield
    act.wait_deferred()
    act.wait_polled()
    act.finish()
    ti = act.end()
    assert (ti["state"], ti["try_number"]) == ("success", 1)
    session = act.started()[0]
    assert act.xcom()["session_id"] == session["session_id"]
    act.clear()
    act.wait_deferred(try_number=2)
    act.wait_polled()
    act.finish()
    act.wait("success", try_number=2)
    _, second = act.log("start")
    assert second["unique_key"] != session["unique_key"]
    result = act.xcom()
    # The meter was COMPLETED before and is COMPLETED now, but it was RUNNING in between.
    assert (result["session_id"], result["certain"]) == (second["session_id"], True)


def cleared(act: Act, *, stopped: bool) -> None:
    """Clear the task that waits, and assert that it runs the meter again, and how the first session ended."""
    first = act.started()[0]
    act.wait_polled()
    max_tries = act.play.task(act.task_id)["max_tries"]
    act.clear()
    ti = wait_until(
        lambda: (ti := act.play.task(act.task_id))["try_number"] > 1 and ti,
        timeout=PATIENCE,
        what=f"another try of {act.task_id}",
    )
    # A user's Clear changes it, but Airflow sometimes makes a plain retry of the Clear of a task that runs.
    retried = ti["max_tries"] == max_tries
    if retried:
        assert "deferred" not in act.task_id
        act.wait_logged("Going on with the session of an earlier try", 2)
        act.finish(first["session_id"])
        act.wait("success", try_number=2)
        assert act.starts() == [first["session_id"]]
        assert act.stops() == []
        return
    second = act.started(2)[1]
    assert second["unique_key"] != first["unique_key"]
    states = {each["session_id"]: each["status"] for each in act.stage.simulator.sessions(act.meter_id)}
    assert states[first["session_id"]] == ("CANCELED" if stopped else "RUNNING")
    # No stop reaches the second session, which the user wants.
    assert all(each["seq"] < second["seq"] for each in act.stops())
    assert bool(act.stops()) == stopped
    if "deferred" in act.task_id:
        act.wait_deferred(try_number=2)
    act.wait_polled()
    if not stopped:
        act.finish(first["session_id"])
    act.finish(second["session_id"])
    ti = act.wait("success")
    assert ti["try_number"] == 2
    assert len(act.starts()) == 2
    assert act.xcom()["session_id"] == second["session_id"]
    # If the first session goes on beside it, the meter's status may be of either.
    assert act.xcom()["certain"] is False
    act.wait_logged("as a new session (the task was cleared", ti["try_number"])


def cleared_while_running(act: Act) -> Iterator[None]:
    act.meter(ENDLESS)
    yield
    cleared(act, stopped=False)


def cleared_while_running_to_stop(act: Act) -> Iterator[None]:
    act.meter(ENDLESS)
    yield
    cleared(act, stopped=True)


def cleared_while_deferred(act: Act) -> Iterator[None]:
    act.meter(ENDLESS)
    yield
    act.wait_deferred()
    cleared(act, stopped=False)


def cleared_while_deferred_to_stop(act: Act) -> Iterator[None]:
    act.meter(ENDLESS)
    yield
    act.wait_deferred()
    cleared(act, stopped=True)


def failed_by_user_while_deferred(act: Act) -> Iterator[None]:
    act.meter(ENDLESS)
    yield
    act.wait_deferred()
    act.wait_polled()
    act.mark("failed")
    act.wait_logged("trigger completed")
    assert len(act.stops()) == 1
    assert act.stage.simulator.sessions(act.meter_id)[-1]["status"] == "CANCELED"
    assert len(act.starts()) == 1


def failed_by_user_while_deferred_not_to_stop(act: Act) -> Iterator[None]:
    act.meter(ENDLESS)
    yield
    act.wait_deferred()
    act.wait_polled()
    act.mark("failed")
    act.wait_logged("trigger completed")
    assert act.stops() == []
    act.finish()


def failed_by_user_while_running(act: Act) -> Iterator[None]:
    act.meter(ENDLESS)
    yield
    act.started()
    act.wait_polled()
    task = act.process()
    act.mark("failed")
    psutil.wait_procs([task], timeout=GONE)
    assert not task.is_running()
    assert len(act.stops()) == 1
    assert act.stage.simulator.sessions(act.meter_id)[-1]["status"] == "CANCELED"
    assert len(act.starts()) == 1


def failed_by_user_while_running_not_to_stop(act: Act) -> Iterator[None]:
    act.meter(ENDLESS)
    yield
    act.started()
    act.wait_polled()
    task = act.process()
    act.mark("failed")
    psutil.wait_procs([task], timeout=GONE)
    assert not task.is_running()
    assert act.stops() == []
    assert len(act.starts()) == 1
    act.finish()


def terminated_by_platform(act: Act) -> Iterator[None]:
    act.meter(ENDLESS)
    yield
    session = act.started()[0]["session_id"]
    act.wait_polled()
    task = act.process()
    supervisor = task.parent()
    assert supervisor is not None
    # Like an evicted pod: the worker gets SIGTERM, and is killed when its grace period is over.
    os.kill(supervisor.pid, signal.SIGTERM)
    act.wait_logged("the task is running in Airflow, so it was not killed")
    os.kill(task.pid, signal.SIGKILL)
    act.wait("running", try_number=2)
    act.wait_polled()
    assert act.stops() == []
    act.finish()
    assert act.end()["state"] == "success"
    assert act.starts() == [session]
    assert act.xcom()["session_id"] == session
    assert act.stops() == []


SCENARIOS = {
    each.__name__: each
    for each in (
        retried_after_failed,
        cleared_when_done,
        cleared_while_running,
        cleared_while_running_to_stop,
        cleared_while_deferred,
        cleared_while_deferred_to_stop,
        failed_by_user_while_deferred,
        failed_by_user_while_deferred_not_to_stop,
        failed_by_user_while_running,
        failed_by_user_while_running_not_to_stop,
        terminated_by_platform,
    )
}


@pytest.fixture(scope="module")
def users(stage: Stage) -> Iterator[Play]:
    with Play(stage, "users", SCENARIOS).playing() as play:
        yield play


@pytest.mark.parametrize("scenario", SCENARIOS)
def test_a_run_ends_and_starts_anew_as_the_user_wants(users: Play, scenario: str) -> None:
    users.outcome(scenario)
