"""What users do to a run task: clear and mark it. Only they reach as far as Zuora, and only where asked for."""

from __future__ import annotations

import os
import signal
from typing import TYPE_CHECKING

import psutil
import pytest

from demo.processes import wait_until
from tests.integration.scenario import PATIENCE, Play

if TYPE_CHECKING:
    from collections.abc import Iterator

    from demo.stage import Stage
    from tests.integration.scenario import Act

# Until the scenario ends it.
ENDLESS = [["INITIALIZING", 0.5], ["RUNNING", None]]
GONE = 20.0  # seconds in which Airflow ends the process of a task that was marked or cleared


def retried_after_failed(act: Act) -> Iterator[None]:
    act.meter(ENDLESS)
    yield
    act.wait_deferred()
    act.looked_again()
    act.finish(status="FAILED")
    act.wait_deferred(try_number=2)
    act.looked_again()
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
    act.looked_again()
    act.finish()
    ti = act.end()
    assert (ti["state"], ti["try_number"]) == ("success", 1)
    session = act.started()[0]
    assert act.xcom()["session_id"] == session["session_id"]
    act.clear()
    act.wait_deferred(try_number=2)
    act.looked_again()
    act.finish()
    act.wait("success", try_number=2)
    _, second = act.log("start")
    assert second["unique_key"] != session["unique_key"]
    result = act.xcom()
    # The meter was COMPLETED before and is COMPLETED now, but it was seen to run in between.
    assert (result["session_id"], result["certain"]) == (second["session_id"], True)


def cleared(act: Act, *, stopped: bool) -> None:
    """Clear the task that waits, and assert that it runs the meter again, and what became of the first session."""
    first = act.started()[0]
    act.looked_again()
    max_tries = act.play.task(act.task_id)["max_tries"]
    act.clear()
    ti = wait_until(
        lambda: (ti := act.play.task(act.task_id))["try_number"] > 1 and ti,
        timeout=PATIENCE,
        what=f"another try of {act.task_id}",
    )
    # Airflow changes it when a user clears, and of a task that runs it now and then makes a plain retry instead.
    retried = ti["max_tries"] == max_tries
    if retried:
        assert "deferred" not in act.task_id
        act.said("Going on with the session of an earlier try", 2)
        if not stopped:
            act.finish(first["session_id"])
            act.wait("success", try_number=2)
            assert act.starts() == [first["session_id"]]
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
    act.looked_again()
    if not stopped:
        act.finish(first["session_id"])
    act.finish(second["session_id"])
    ti = act.wait("success")
    assert ti["try_number"] == (3 if retried else 2)
    assert len(act.starts()) == 2
    assert act.xcom()["session_id"] == second["session_id"]
    # Where the first session goes on beside it, the meter's status speaks for either.
    assert act.xcom()["certain"] is False
    why = "the last one ended as CANCELED" if retried else "the task was cleared"
    act.said(f"as a new session: {why}", ti["try_number"])


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
    act.looked_again()
    act.mark("failed")
    act.said("trigger completed")
    assert len(act.stops()) == 1
    assert act.stage.simulator.sessions(act.meter_id)[-1]["status"] == "CANCELED"
    assert len(act.starts()) == 1


def failed_by_user_while_deferred_not_to_stop(act: Act) -> Iterator[None]:
    act.meter(ENDLESS)
    yield
    act.wait_deferred()
    act.looked_again()
    act.mark("failed")
    act.said("trigger completed")
    assert act.stops() == []
    act.finish()


def failed_by_user_while_running(act: Act) -> Iterator[None]:
    act.meter(ENDLESS)
    yield
    act.started()
    act.looked_again()
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
    act.looked_again()
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
    act.looked_again()
    task = act.process()
    supervisor = task.parent()
    assert supervisor is not None
    # As a pod that is evicted: the worker is asked to end, and killed when its grace is over.
    os.kill(supervisor.pid, signal.SIGTERM)
    act.said("Airflow, not a user, ends this process")
    os.kill(task.pid, signal.SIGKILL)
    act.wait("running", try_number=2)
    act.looked_again()
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
def test_a_run_ends_and_begins_anew_as_the_user_wants(users: Play, scenario: str) -> None:
    users.outcome(scenario)
