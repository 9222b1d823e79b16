"""The table of stops: the status of the meter, and the result of the task."""

from __future__ import annotations

from datetime import timedelta
from typing import TYPE_CHECKING, Any

import pytest
from airflow.sdk.exceptions import AirflowFailException, TaskDeferred

from airflow_mediation_provider.exceptions import MediationError, MediationMisconfigured, MeterSessionTimeout
from airflow_mediation_provider.operators.meter import StopMeterOperator
from airflow_mediation_provider.protocol.waits.wait import WaitEnd, WaitResult

from .conftest import asked

if TYPE_CHECKING:
    from airflow_mediation_provider.simulator import Simulator

    from .conftest import TaskInstance

STREAM = "1004"


def operator(**arguments: Any) -> StopMeterOperator:
    return StopMeterOperator(**{"task_id": "task", "meter_id": STREAM, "poke_interval": 5, **arguments})


def stops(sim: Simulator, meter_id: str = STREAM) -> list[Any]:
    """Return for each stop request whether it was forced."""
    return [
        entry["query"].get("forceStop") == "true"
        for entry in sim.log(kind="request", path=f"/meters/stop/{meter_id}/0.0.1")
    ]


@pytest.fixture
def running(sim: Simulator, ti: TaskInstance) -> str:
    session = sim.start_session(STREAM)["session_id"]
    ti.clock.sleep(10)
    return str(session)


def test_the_stop_of_a_meter_that_does_not_run_succeeds(sim: Simulator, ti: TaskInstance) -> None:
    assert operator().execute(ti.context) == {
        "meter_id": STREAM,
        "version": "0.0.1",
        "status": "NEVER_RUN",
        "was_running": False,
        "forced": False,
    }
    assert ti.clock.passed == 0


def test_the_stop_of_a_streaming_meter_waits_until_it_is_paused(sim: Simulator, ti: TaskInstance, running: str) -> None:
    report = operator().execute(ti.context)
    assert (report["status"], report["was_running"], report["forced"]) == ("PAUSED", True, False)
    assert stops(sim) == [False]


def test_a_batch_meter_is_canceled(sim: Simulator, ti: TaskInstance) -> None:
    sim.start_session("1001", script=[["RUNNING", None]])
    assert operator(meter_id="1001").execute(ti.context)["status"] == "CANCELED"


def test_a_stop_in_progress_is_waited_for(sim: Simulator, ti: TaskInstance, running: str) -> None:
    sim.set_meter(STREAM, stopping_for=30)
    operator(wait_for_stop=False).execute(ti.context)
    assert operator().execute(ti.context)["status"] == "PAUSED"
    assert stops(sim) == [False, False]


@pytest.mark.usefixtures("running")
def test_the_calls_of_a_stop_that_is_not_waited_for_are_reported(
    sim: Simulator, ti: TaskInstance, reports: list[int]
) -> None:
    operator(wait_for_stop=False).execute(ti.context)
    assert reports == [asked(sim)] == [2]


def test_without_wait_for_stop_the_task_ends_once_the_stop_is_accepted(
    sim: Simulator, ti: TaskInstance, running: str
) -> None:
    report = operator(wait_for_stop=False).execute(ti.context)
    assert report["status"] == "STOPPING"
    assert ti.clock.passed == 10


def test_a_meter_that_goes_back_to_running_fails_and_may_be_retried(
    sim: Simulator, ti: TaskInstance, running: str
) -> None:
    sim.set_meter(STREAM, stop_results=["RUNNING", "PAUSED"], stopping_for=12)
    with pytest.raises(MediationError, match=r"went back to RUNNING.*force_after") as failed:
        operator().execute(ti.context)
    assert not isinstance(failed.value, AirflowFailException)
    assert operator().execute(ti.retry().context)["status"] == "PAUSED"


def test_a_meter_that_goes_back_to_running_is_forced_with_force_after(
    sim: Simulator, ti: TaskInstance, running: str
) -> None:
    sim.set_meter(STREAM, stop_results=["RUNNING"], stopping_for=12)
    report = operator(force_after=timedelta(minutes=20)).execute(ti.context)
    assert (report["status"], report["forced"]) == ("CANCELED", True)
    assert stops(sim) == [False, True]
    assert ti.clock.passed < 60


def test_a_permission_withdrawn_before_the_force_fails_at_once(sim: Simulator, ti: TaskInstance, running: str) -> None:
    sim.set_meter(STREAM, stop_results=["RUNNING"], stopping_for=12)
    sim.fault("status", status=403, path="/meters/stop/", after=1)
    with pytest.raises(MediationMisconfigured, match="forbidden"):
        operator(force_after=600).execute(ti.context)
    assert stops(sim) == [False, True]


def test_a_graceful_stop_that_takes_too_long_is_forced_with_force_after(
    sim: Simulator, ti: TaskInstance, running: str
) -> None:
    # While it is STOPPING Zuora accepts no force; after it is back to RUNNING, it does.
    sim.set_meter(STREAM, stop_results=["RUNNING"], stopping_for=100)
    report = operator(force_after=60, timeout=600).execute(ti.context)
    assert (report["status"], report["forced"]) == ("CANCELED", True)
    assert stops(sim) == [False, True, True]


def test_force_is_sent_at_once(sim: Simulator, ti: TaskInstance, running: str) -> None:
    assert operator(force=True).execute(ti.context)["status"] == "CANCELED"
    assert stops(sim) == [True]


def test_a_stop_that_never_ends_times_out_without_a_retry(sim: Simulator, ti: TaskInstance, running: str) -> None:
    sim.set_meter(STREAM, stopping_for=10_000)
    with pytest.raises(MeterSessionTimeout, match="STOPPING"):
        operator(timeout=120).execute(ti.context)


def test_transient_errors_do_not_end_the_stop(sim: Simulator, ti: TaskInstance, running: str) -> None:
    sim.fault("status", path="runStatus", after=1, count=3)
    assert operator().execute(ti.context)["status"] == "PAUSED"


def test_an_unknown_meter_fails_at_once(sim: Simulator, ti: TaskInstance) -> None:
    with pytest.raises(MediationMisconfigured):
        operator(meter_id="99999").execute(ti.context)


def test_a_deferred_stop_waits_from_stopping_to_its_end(sim: Simulator, ti: TaskInstance, running: str) -> None:
    sim.set_meter(STREAM, stopping_for=60)
    with pytest.raises(TaskDeferred) as first:
        operator(deferrable=True).execute(ti.context)
    wait = first.value.trigger.serialize()[1]["wait"]
    assert wait["condition"]["fail_on"] == ["RUNNING"]
    assert first.value.method_name == "execute_complete"
    met = WaitResult(
        end=WaitEnd.MET, message="", session={"status": "PAUSED"}, last_status="PAUSED", last_status_since=None
    )
    assert operator(deferrable=True).execute_complete(ti.context, met.to_dict())["status"] == "PAUSED"


def test_a_failed_graceful_stop_is_forced_when_deferred(sim: Simulator, ti: TaskInstance, running: str) -> None:
    sim.set_meter(STREAM, force_result="STOPPING")
    back = WaitResult(
        end=WaitEnd.FAILED, message="It is RUNNING.", session=None, last_status="RUNNING", last_status_since=None
    )
    with pytest.raises(TaskDeferred) as forced:
        operator(deferrable=True, force_after=60).execute_complete(ti.context, back.to_dict())
    assert forced.value.method_name == "force_complete"
    assert stops(sim) == [True]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"meter_id": ""}, "meter_id must not be empty"),
        ({"force": True, "force_after": 5}, "force and force_after exclude each other"),
        ({"force_after": 5, "wait_for_stop": False}, "force_after needs wait_for_stop"),
        ({"force_after": 0}, "force_after"),
        ({"force_after": 7200}, "force_after must be shorter than timeout"),
        ({"timeout": 0}, "timeout"),
        ({"poke_interval": -1}, "poke_interval"),
    ],
)
def test_a_wrong_argument_is_refused_when_the_dag_is_parsed(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        operator(**arguments)
