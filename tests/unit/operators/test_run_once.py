"""One start per generation, after any crash of the worker: checked against the simulator's log."""

from __future__ import annotations

import json
import os
from typing import Any

import pytest
from airflow.sdk.exceptions import TaskDeferred

from airflow_mediation_provider.exceptions import (
    MediationUnreachable,
    MeterRunFailed,
    MeterSessionTimeout,
    MeterSessionUncertain,
)
from airflow_mediation_provider.operators.meter import RunMeterOperator
from airflow_mediation_provider.simulator import Simulator, ends

from .conftest import Killed, TaskInstance, starts


def run(ti: TaskInstance, **arguments: Any) -> Any:
    """Run one try as in a new process: with a new operator."""
    return RunMeterOperator(
        task_id=ti.task_id, meter_id="1001", retries=ti.retries, poke_interval=5, **arguments
    ).execute(ti.context)


def keys(sim: Simulator) -> list[str]:
    return [entry["unique_key"] for entry in sim.log(kind="start")]


def test_a_run_starts_one_session_and_returns_it(sim: Simulator, ti: TaskInstance) -> None:
    session = run(ti)
    [started] = sim.log(kind="start")
    assert session["session_id"] == started["session_id"]
    assert session["status"] == "COMPLETED"
    assert session["meter_id"] == "1001"
    assert session["evidence"] == "poll"
    assert session["certain"] is False
    assert ti.xcoms["mediation_session_link"] == f"https://zuora.example/1001/{started['session_id']}"
    assert ti.xcoms["mediation_session_page"].endswith(
        f"/mediation/session?conn=mediation_default&meter=1001&session={started['session_id']}"
    )


@pytest.mark.parametrize(
    ("where", "phase", "started_by_then"),
    [
        ("kill_before", "calling", 0),  # before the key is kept: no call was made
        ("kill_after", "calling", 0),  # the key is kept, the call is not made
        ("kill_before", "started", 1),  # the call was made, its answer is not kept
        ("kill_after", "started", 1),  # all is kept, the wait starts
        ("kill_before", "done", 1),  # the session is COMPLETED, the result is not kept
        ("kill_after", "done", 1),  # the result is kept, Airflow has not received the success
    ],
)
def test_a_killed_worker_never_starts_twice(
    sim: Simulator, ti: TaskInstance, where: str, phase: str, started_by_then: int
) -> None:
    assert ti.store is not None
    setattr(ti.store, where, phase)
    with pytest.raises(Killed):
        run(ti)
    assert starts(sim) == started_by_then
    ti.store.calm()
    session = run(ti.retry())
    assert starts(sim) == 1
    assert session["status"] == "COMPLETED"
    assert session["session_id"] == sim.log(kind="start")[0]["session_id"]


def test_the_link_template_may_contain_the_run_id(
    sim: Simulator, ti: TaskInstance, monkeypatch: pytest.MonkeyPatch
) -> None:
    connection = json.loads(os.environ["AIRFLOW_CONN_MEDIATION_DEFAULT"])
    connection["extra"]["ui_link_template"] = "https://zuora.example/runs/{run_id}"
    monkeypatch.setenv("AIRFLOW_CONN_MEDIATION_DEFAULT", json.dumps(connection))
    run(ti)
    assert ti.xcoms["mediation_session_link"] == "https://zuora.example/runs/5468"


def test_a_kept_result_is_returned_without_a_wait(sim: Simulator, ti: TaskInstance) -> None:
    session = run(ti)
    asked = len(sim.log(kind="request"))
    assert run(ti.retry()) == session
    assert len(sim.log(kind="request")) == asked
    assert ti.xcoms["mediation_session_link"].endswith(session["session_id"])


@pytest.mark.parametrize(("where", "phase"), [("kill_after", "calling"), ("kill_before", "started")])
def test_a_debug_call_is_not_repeated_by_a_retry(sim: Simulator, ti: TaskInstance, where: str, phase: str) -> None:
    assert ti.store is not None
    arguments: dict[str, Any] = {"run_type": "DEBUG", "source_options": [{"testDataId": 7}], "timeout": 300}
    setattr(ti.store, where, phase)
    with pytest.raises(Killed):
        run(ti, **arguments)
    called = len(sim.log(kind="request", path="/meters/debug/1001/0.0.1"))
    ti.store.calm()
    if called:
        assert run(ti.retry(), **arguments)["certain"] is False
    else:
        with pytest.raises(MeterSessionTimeout):
            run(ti.retry(), **arguments)
    assert len(sim.log(kind="request", path="/meters/debug/1001/0.0.1")) == called


def test_a_refusal_after_a_lost_reply_keeps_the_state(sim: Simulator, ti: TaskInstance) -> None:
    sim.fault("lost_reply", path="/meters/run/", count=1)
    sim.fault("status", status=429, path="/meters/run/", count=1)
    run(ti)
    assert [entry["status"] for entry in sim.log(kind="request", path="/meters/run/1001/0.0.1")][1:] == [429, 400]
    assert ti.store is not None
    kept = ti.store.get("mediation_run")
    assert kept["baseline"] == "NEVER_RUN"
    assert kept["called_at"] == "2026-01-01T00:00:00+00:00"
    assert starts(sim) == 1


def test_an_answer_that_was_not_kept_leaves_the_session_uncertain(sim: Simulator, ti: TaskInstance) -> None:
    assert ti.store is not None
    ti.store.kill_before = "started"
    with pytest.raises(Killed):
        run(ti)
    ti.store.calm()
    session = run(ti.retry())
    assert session["certain"] is False
    refused = sim.log(kind="refused")
    assert len(refused) == 1, "the identical request is repeated once and refused as a duplicate"


def test_killed_in_the_wait_the_retry_finds_the_session(
    sim: Simulator, ti: TaskInstance, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock_sleep, slept = ti.clock.sleep, []

    def sleep(seconds: float) -> None:
        slept.append(seconds)
        if len(slept) == 2:
            raise Killed
        clock_sleep(seconds)

    monkeypatch.setattr(ti.clock, "sleep", sleep)
    with pytest.raises(Killed):
        run(ti)
    session = run(ti.retry())
    assert starts(sim) == 1
    assert session["session_id"] == sim.log(kind="start")[0]["session_id"]


def test_a_lost_reply_repeats_the_identical_request(sim: Simulator, ti: TaskInstance) -> None:
    sim.fault("lost_reply", path="/meters/run/", count=1)
    session = run(ti, runtime_source_configs=[{"sourceType": "EVENT_STORE", "eventStore": {"storeId": "7"}}])
    posts = sim.log(kind="request", path="/meters/run/1001/0.0.1")
    assert len(posts) == 2
    assert posts[0]["body"] == posts[1]["body"]
    assert starts(sim) == 1
    assert session["certain"] is False
    assert session["status"] == "COMPLETED"


def test_a_lost_session_is_found_by_its_records_but_stays_uncertain(sim: Simulator, ti: TaskInstance) -> None:
    sim.fault("lost_reply", path="/meters/run/", count=1)
    session = run(ti)
    assert session["session_id"] == sim.log(kind="start")[0]["session_id"]
    assert session["certain"] is False


def test_a_lost_session_is_never_certain_even_with_exclusive(sim: Simulator, ti: TaskInstance) -> None:
    sim.fault("lost_reply", path="/meters/run/", count=1)
    assert run(ti, exclusive=True)["certain"] is False


def test_a_lost_session_fails_with_require_certain(sim: Simulator, ti: TaskInstance) -> None:
    sim.fault("lost_reply", path="/meters/run/", count=1)
    with pytest.raises(MeterSessionUncertain, match=r"reply .* was lost"):
        run(ti, exclusive=True, require_certain=True)


def test_a_lost_session_is_not_found_if_two_sessions_wrote_records(sim: Simulator, ti: TaskInstance) -> None:
    sim.fault("lost_reply", path="/meters/run/", count=1)
    sim.start_session("1001")
    session = run(ti)
    assert session["session_id"] is None
    assert session["certain"] is False


def test_unreachable_before_the_answer_is_retried_with_the_same_key(sim: Simulator, ti: TaskInstance) -> None:
    fault = sim.fault("lost_reply", path="/meters/run/")
    with pytest.raises(MediationUnreachable):
        run(ti, max_unreachable=60)
    sim.clear_faults(fault)
    run(ti.retry())
    assert starts(sim) == 1


def test_unreachable_in_the_wait_is_retried_and_finds_the_session(sim: Simulator, ti: TaskInstance) -> None:
    fault = sim.fault("status", path="runStatus", after=2)
    with pytest.raises(MediationUnreachable):
        run(ti, max_unreachable=60)
    sim.clear_faults(fault)
    session = run(ti.retry())
    assert starts(sim) == 1
    assert session["session_id"] == sim.log(kind="start")[0]["session_id"]


def test_a_retry_after_failed_starts_a_new_session_with_a_new_key(sim: Simulator, ti: TaskInstance) -> None:
    sim.set_meter("1001", runs=[ends("FAILED"), ends("COMPLETED")])
    with pytest.raises(MeterRunFailed, match="FAILED"):
        run(ti)
    session = run(ti.retry())
    assert session["status"] == "COMPLETED"
    assert len(set(keys(sim))) == 2


def test_after_a_kill_while_a_failure_is_kept_the_retry_starts_at_most_one_session(
    sim: Simulator, ti: TaskInstance
) -> None:
    sim.set_meter("1001", runs=[ends("FAILED"), ends("COMPLETED")])
    assert ti.store is not None
    ti.store.kill_before = "dead"
    with pytest.raises(Killed):
        run(ti)
    ti.store.calm()
    with pytest.raises(MeterRunFailed):
        run(ti.retry())
    assert starts(sim) == 1
    assert run(ti.retry())["status"] == "COMPLETED"
    assert starts(sim) == 2


def test_a_clear_after_lowered_retries_starts_a_new_session(sim: Simulator, ti: TaskInstance) -> None:
    run(ti)
    ti.retries -= 1
    before = ti.max_tries
    ti.clear()
    assert ti.max_tries == before
    run(ti)
    assert starts(sim) == 2


def test_clear_after_success_starts_a_new_session(sim: Simulator, ti: TaskInstance) -> None:
    first = run(ti)
    second = run(ti.clear())
    assert first["session_id"] != second["session_id"]
    assert len(set(keys(sim))) == 2


def test_clear_in_the_wait_starts_a_new_session_and_a_crash_after_it_does_not(sim: Simulator, ti: TaskInstance) -> None:
    assert ti.store is not None
    ti.store.kill_after = "started"
    with pytest.raises(Killed):
        run(ti)
    with pytest.raises(Killed):
        run(ti.clear())
    assert starts(sim) == 2
    ti.store.calm()
    run(ti.retry())
    assert starts(sim) == 2
    assert len(set(keys(sim))) == 2


def test_a_dag_run_that_was_deleted_and_made_again_starts_a_new_session(sim: Simulator, ti: TaskInstance) -> None:
    run(ti)
    again = TaskInstance(ti.clock)
    run(again)
    assert starts(sim) == 2


def test_a_failed_store_prevents_the_call(sim: Simulator, ti: TaskInstance, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: Any, **__: Any) -> None:
        raise RuntimeError("the store has failed")

    monkeypatch.setattr(ti.store, "set", refuse)
    with pytest.raises(RuntimeError, match="the store has failed"):
        run(ti)
    assert starts(sim) == 0


def test_without_callouts_a_clear_does_not_stop_the_previous_session(sim: Simulator, ti: TaskInstance) -> None:
    assert ti.store is not None
    sim.set_meter("1001", runs=[[["RUNNING", None]], ends("COMPLETED")])
    ti.store.kill_after = "started"
    with pytest.raises(Killed):
        run(ti, stop_meter_on_kill=True)
    ti.store.calm()
    assert run(ti.clear(), stop_meter_on_kill=True)["status"] == "COMPLETED"
    assert [session["status"] for session in sim.sessions("1001")] == ["RUNNING", "COMPLETED"]


def test_a_retry_after_a_crash_stops_no_meter(sim: Simulator, ti: TaskInstance) -> None:
    assert ti.store is not None
    ti.store.kill_after = "started"
    with pytest.raises(Killed):
        run(ti, stop_meter_on_kill=True)
    ti.store.calm()
    assert run(ti.retry(), stop_meter_on_kill=True)["status"] == "COMPLETED"
    assert sim.log(kind="stop") == []


def test_a_clear_stops_no_meter_if_another_session_was_live(sim: Simulator, ti: TaskInstance) -> None:
    assert ti.store is not None
    sim.start_session("1001", script=[["RUNNING", None]])
    ti.store.kill_after = "started"
    for task in (ti, ti.clear):
        with pytest.raises(Killed):
            run(task() if callable(task) else task, stop_meter_on_kill=True)
    assert sim.log(kind="stop") == []


def test_after_a_timeout_only_a_clear_starts_again(sim: Simulator, ti: TaskInstance) -> None:
    sim.set_meter("1001", script=[["INITIALIZING", 1], ["RUNNING", None]])
    with pytest.raises(MeterSessionTimeout, match="RUNNING"):
        run(ti, timeout=120)
    assert sim.log(kind="stop") == []
    with pytest.raises(MeterSessionTimeout):
        run(ti.clear(), timeout=120)
    assert starts(sim) == 2


def test_without_a_wait_the_reply_is_returned_and_the_generation_ends(sim: Simulator, ti: TaskInstance) -> None:
    session = run(ti, wait_for_completion=False)
    assert session["evidence"] == "run"
    assert session["certain"] is True
    assert session["status"] == "INITIALIZING"
    assert ti.clock.passed == 0
    assert run(ti.clear(), wait_for_completion=False)["session_id"] != session["session_id"]


def test_without_a_wait_a_lost_reply_is_reported_as_uncertain(sim: Simulator, ti: TaskInstance) -> None:
    sim.fault("lost_reply", path="/meters/run/", count=1)
    session = run(ti, wait_for_completion=False)
    assert session["certain"] is False
    assert session["evidence"] == "run"
    assert starts(sim) == 1


def test_without_a_wait_a_lost_reply_does_not_return_the_end_of_the_previous_session(
    sim: Simulator, ti: TaskInstance
) -> None:
    sim.set_meter("1001", stale_for=20)
    assert run(ti)["status"] == "COMPLETED"
    sim.fault("lost_reply", path="/meters/run/", count=1)
    session = run(ti.clear(), wait_for_completion=False)
    # The meter still shows the session before; a branch that gets this object must wait for its own.
    assert session["status"] == "INITIALIZING"
    assert starts(sim) == 2


def test_the_wait_is_deferred_after_the_start_is_kept(sim: Simulator, ti: TaskInstance) -> None:
    with pytest.raises(TaskDeferred) as deferred:
        run(ti, deferrable=True)
    assert starts(sim) == 1
    assert ti.store is not None
    assert ti.store.get("mediation_run")["phase"] == "started"
    assert {"mediation_session_link", "mediation_session_page"} <= set(ti.xcoms)
    assert deferred.value.method_name == "execute_complete"
    assert deferred.value.trigger.serialize()[1]["wait"]["condition"]["session_id"]


def test_after_a_crash_of_the_trigger_the_same_session_is_awaited(sim: Simulator, ti: TaskInstance) -> None:
    with pytest.raises(TaskDeferred):
        run(ti, deferrable=True)
    operator = RunMeterOperator(task_id="task", meter_id="1001", deferrable=True, poke_interval=5)
    with pytest.raises(TaskDeferred):
        operator.resume_execution("__fail__", {"error": "Trigger failure"}, ti.context)
    assert starts(sim) == 1


def test_changed_sources_do_not_change_the_repeated_request(sim: Simulator, ti: TaskInstance) -> None:
    assert ti.store is not None
    ti.store.kill_after = "calling"
    first = [{"sourceType": "S3", "s3": {"paths": ["a"], "fileFormat": "CSV"}}]
    with pytest.raises(Killed):
        run(ti, runtime_source_configs=first)
    ti.store.calm()
    run(ti.retry(), runtime_source_configs=[{"sourceType": "S3", "s3": {"paths": ["b"], "fileFormat": "CSV"}}])
    [post] = sim.log(kind="request", path="/meters/run/1001/0.0.1")
    assert post["body"]["runtimeSourceConfigs"] == first


def test_another_meter_in_the_retry_is_another_run(sim: Simulator, ti: TaskInstance) -> None:
    assert ti.store is not None
    ti.store.kill_after = "started"
    with pytest.raises(Killed):
        run(ti)
    ti.store.calm()
    operator = RunMeterOperator(task_id="task", meter_id="1005", poke_interval=5)
    assert operator.execute(ti.retry().context)["meter_id"] == "1005"


class TestWithoutTaskStateStore:
    """Airflow 3.2: the key is all that survives, at Zuora."""

    @pytest.fixture
    def ti(self, ti: TaskInstance) -> TaskInstance:
        ti.store = None
        return ti

    def test_a_retry_after_a_crash_finds_its_key_used(self, sim: Simulator, ti: TaskInstance) -> None:
        run(ti, wait_for_completion=False)
        session = run(ti.retry())
        assert starts(sim) == 1
        assert session["status"] == "COMPLETED"
        assert session["certain"] is False

    def test_a_retry_after_failed_starts_anew(self, sim: Simulator, ti: TaskInstance) -> None:
        sim.set_meter("1001", runs=[ends("FAILED"), ends("FAILED"), ends("COMPLETED")])
        for _ in range(2):
            with pytest.raises(MeterRunFailed):
                run(ti)
            ti.retry()
        assert run(ti)["status"] == "COMPLETED"
        assert starts(sim) == 3

    def test_a_retry_after_a_successful_end_starts_no_session(self, sim: Simulator, ti: TaskInstance) -> None:
        sim.set_meter("1001", runs=[ends("FAILED"), ends("COMPLETED")])
        assert run(ti, fail_on=())["status"] == "FAILED"
        assert run(ti.retry(), fail_on=())["status"] == "FAILED"
        assert starts(sim) == 1

    def test_clear_starts_anew(self, sim: Simulator, ti: TaskInstance) -> None:
        run(ti)
        run(ti.clear())
        assert starts(sim) == 2
