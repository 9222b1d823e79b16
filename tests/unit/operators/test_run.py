"""RunMeterOperator apart from starting only once: statuses, capacity, DEBUG, stopping, arguments."""

from __future__ import annotations

import json
import threading
from datetime import timedelta
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import pytest
from airflow.sdk import DAG
from airflow.sdk.exceptions import AirflowFailException, TaskDeferred

from airflow_mediation_provider.exceptions import (
    CapacityError,
    MediationMisconfigured,
    MeterRunFailed,
    MeterSessionTimeout,
    MeterSessionUncertain,
)
from airflow_mediation_provider.operators.audit import MeterSummaryOperator
from airflow_mediation_provider.operators.branch import MeterSessionBranchOperator
from airflow_mediation_provider.operators.meter import RunMeterOperator
from airflow_mediation_provider.sensors.meter_session import MeterSessionSensor
from airflow_mediation_provider.simulator import Simulator, ends
from airflow_mediation_provider.simulator.config import debug_ends
from airflow_mediation_provider.worker import run_stop as kill
from airflow_mediation_provider.worker import waiting
from tests.unit.virtual_feed import Journal, SyncFeed

from .conftest import TaskInstance, asked, starts

if TYPE_CHECKING:
    from airflow_mediation_provider.protocol.sessions.verdict import TaskNote


def operator(**arguments: Any) -> RunMeterOperator:
    return RunMeterOperator(**{"task_id": "task", "meter_id": "1001", "poke_interval": 5, **arguments})


# -- statuses ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("status", ["FAILED", "CANCELED"])
def test_another_final_status_than_completed_fails_and_may_be_retried(
    sim: Simulator, ti: TaskInstance, status: str
) -> None:
    sim.set_meter("1001", runs=[ends(status)])
    with pytest.raises(MeterRunFailed, match=status) as failed:
        operator().execute(ti.context)
    assert not isinstance(failed.value, AirflowFailException)
    assert failed.value.session is not None
    assert failed.value.session["status"] == status


@pytest.mark.parametrize("status", ["COMPLETED", "FAILED", "CANCELED"])
def test_without_fail_on_every_final_status_is_a_success(sim: Simulator, ti: TaskInstance, status: str) -> None:
    sim.set_meter("1001", runs=[ends(status)])
    assert operator(fail_on=()).execute(ti.context)["status"] == status


def test_an_undocumented_end_of_a_debug_run_is_no_success_with_fail_on() -> None:
    task = operator(run_type="DEBUG", source_options=[{"testDataId": 7}], fail_on=["TESTING_FAILED"])
    assert task.statuses == ("CANCELED", "TESTING_PASSED")
    assert set(task._failing() or ()) == {"TESTING_FAILED", "COMPLETED", "FAILED"}


def test_a_final_status_outside_fail_on_is_a_success(sim: Simulator, ti: TaskInstance) -> None:
    sim.set_meter("1001", runs=[ends("CANCELED"), ends("FAILED")])
    assert operator(fail_on=["FAILED"]).execute(ti.context)["status"] == "CANCELED"
    with pytest.raises(MeterRunFailed):
        operator(fail_on=["FAILED"]).execute(ti.clear().context)


@pytest.mark.parametrize("branched", [True, False])
def test_a_failure_before_a_branch_names_the_argument(sim: Simulator, ti: TaskInstance, branched: bool) -> None:
    sim.set_meter("1001", runs=[ends("FAILED")])
    with DAG("dag", schedule=None):
        run = operator()
        if branched:
            run >> MeterSessionBranchOperator(task_id="branch", session=run.output, on_completed=[], default=[])
    with pytest.raises(MeterRunFailed) as failed:
        run.execute(ti.context)
    advice = " Set fail_on=() on this task, so that the branch after it decides."
    assert str(failed.value).endswith(advice) is branched


def test_require_certain_fails_with_polls_alone_unless_exclusive(sim: Simulator, ti: TaskInstance) -> None:
    with pytest.raises(MeterSessionUncertain):
        operator(require_certain=True).execute(ti.context)
    session = operator(require_certain=True, exclusive=True).execute(ti.clear().context)
    assert session["certain"] is True


def test_a_stale_status_of_the_session_before_does_not_end_the_wait(sim: Simulator, ti: TaskInstance) -> None:
    sim.set_meter("1001", runs=[ends("FAILED"), ends("COMPLETED")], stale_for=20)
    with pytest.raises(MeterRunFailed):
        operator().execute(ti.context)
    assert operator().execute(ti.retry().context)["status"] == "COMPLETED"


def test_a_stale_status_is_detected_when_zuoras_clock_is_behind(sim: Simulator, ti: TaskInstance) -> None:
    sim.set_meter("1001", runs=[ends("FAILED"), ends("COMPLETED")], stale_for=100)
    sim.start_session("1001")
    sim.advance(200)
    ti.clock.passed = 3600
    assert operator().execute(ti.context)["status"] == "COMPLETED"


def test_a_debug_run_of_the_same_meter_does_not_end_the_wait(
    sim: Simulator, ti: TaskInstance, monkeypatch: Any
) -> None:
    sim.set_meter("1001", script=[["INITIALIZING", 2], ["RUNNING", 90], ["COMPLETED", None]], status_of="latest_change")
    sleep, slept = ti.clock.sleep, []

    def debug_once(seconds: float) -> None:
        slept.append(seconds)
        if len(slept) == 3:
            sim.start_session("1001", run_type="DEBUG", script=[["TESTING", 5], ["TESTING_FAILED", None]])
        sleep(seconds)

    monkeypatch.setattr(ti.clock, "sleep", debug_once)
    assert operator().execute(ti.context)["status"] == "COMPLETED"


# -- DEBUG ---------------------------------------------------------------------------------------------------------


def test_a_debug_run_waits_for_its_own_statuses(sim: Simulator, ti: TaskInstance) -> None:
    session = operator(run_type="debug", source_options=[{"testData": [{"a": 1}]}]).execute(ti.context)
    assert session["status"] == "TESTING_PASSED"
    assert session["run_type"] == "DEBUG"


def test_a_failed_test_fails_and_a_retry_tests_again(sim: Simulator, ti: TaskInstance) -> None:
    sim.set_meter("1001", debug_runs=[debug_ends("TESTING_FAILED"), debug_ends("TESTING_PASSED")])
    arguments: dict[str, Any] = {"run_type": "DEBUG", "source_options": [{"testDataId": 7}]}
    with pytest.raises(MeterRunFailed, match="TESTING_FAILED"):
        operator(**arguments).execute(ti.context)
    assert operator(**arguments).execute(ti.retry().context)["status"] == "TESTING_PASSED"


def test_a_canceled_test_fails_at_once(sim: Simulator, ti: TaskInstance) -> None:
    sim.set_meter("1001", debug_runs=[debug_ends("CANCELED")])
    task = operator(run_type="DEBUG", source_options=[{"testDataId": 7}], timeout=86400)
    with pytest.raises(MeterRunFailed, match="CANCELED"):
        task.execute(ti.context)
    assert ti.clock.passed < 600


def test_without_fail_on_a_canceled_debug_run_is_a_success(sim: Simulator, ti: TaskInstance) -> None:
    sim.set_meter("1001", debug_runs=[debug_ends("CANCELED")])
    task = operator(run_type="DEBUG", source_options=[{"testDataId": 7}], fail_on=())
    session = task.execute(ti.context)
    assert (session["status"], session["run_type"]) == ("CANCELED", "DEBUG")


@pytest.mark.parametrize("kind", ["lost_reply", "status"])
def test_a_debug_call_is_never_repeated(sim: Simulator, ti: TaskInstance, kind: str) -> None:
    sim.fault(kind, path="/meters/debug/", count=1)
    arguments: dict[str, Any] = {"run_type": "DEBUG", "source_options": [{"testDataId": 7}], "timeout": 300}
    if kind == "lost_reply":
        session = operator(**arguments).execute(ti.context)
        assert session["certain"] is False
        assert session["status"] == "TESTING_PASSED"
    else:
        # Refused or not, that is unknown: wait for it, never send it again, also not in the retry.
        with pytest.raises(MeterSessionTimeout):
            operator(**arguments).execute(ti.context)
    assert len(sim.log(kind="request", path="/meters/debug/1001/0.0.1")) == 1


MEDIATIONS_OWN_LIMIT = {"success": False, "error": {"code": "70002005", "message": "RATE_LIMITED"}}


@pytest.mark.parametrize(
    "answer",
    [{"status": 429}, {"status": 400, "body": MEDIATIONS_OWN_LIMIT}, {"status": 200, "body": MEDIATIONS_OWN_LIMIT}],
)
def test_a_debug_call_that_was_not_carried_out_is_repeated(sim: Simulator, ti: TaskInstance, answer: Any) -> None:
    sim.fault("status", path="/meters/debug/", count=1, **answer)
    session = operator(run_type="DEBUG", source_options=[{"testDataId": 7}]).execute(ti.context)
    assert session["status"] == "TESTING_PASSED"
    assert session["session_id"]
    assert starts(sim) == 1


# -- capacity ------------------------------------------------------------------------------------------------------


@pytest.fixture
def full(sim: Simulator) -> list[str]:
    """Five meters that run until they are stopped."""
    return [
        sim.start_session(meter_id, script=[["RUNNING", None]])["session_id"]
        for meter_id in ("1005", "1006", "1007", "1008", "1009")
    ]


def test_a_run_waits_for_capacity(sim: Simulator, ti: TaskInstance, full: list[str], monkeypatch: Any) -> None:
    sleep, slept = ti.clock.sleep, []

    def free_one(seconds: float) -> None:
        slept.append(seconds)
        if len(slept) == 4:
            sim.steer(full[0], [["COMPLETED", None]])
        sleep(seconds)

    monkeypatch.setattr(ti.clock, "sleep", free_one)
    assert operator().execute(ti.context)["status"] == "COMPLETED"
    assert len(set(slept[:4])) == 4, "tasks that wait for the same capacity must not call in step"
    assert starts(sim, meter_id="1001") == 1


def test_a_deferred_run_waits_for_capacity_without_a_worker(
    sim: Simulator, ti: TaskInstance, full: list[str], reports: list[int]
) -> None:
    before = asked(sim)
    with pytest.raises(TaskDeferred) as deferred:
        operator(deferrable=True).execute(ti.context)
    assert type(deferred.value.trigger).__name__ == "DateTimeTrigger"
    assert reports == [asked(sim) - before]
    ti.clock.sleep(10)
    with pytest.raises(TaskDeferred) as again:
        operator(deferrable=True).resume_execution(deferred.value.method_name, deferred.value.kwargs, ti.context)
    assert again.value.kwargs["since"] == deferred.value.kwargs["since"]
    sim.steer(full[0], [["COMPLETED", None]])
    with pytest.raises(TaskDeferred) as waiting:
        operator(deferrable=True).resume_execution(again.value.method_name, again.value.kwargs, ti.context)
    assert type(waiting.value.trigger).__name__ == "MeterSessionTrigger"
    assert starts(sim, meter_id="1001") == 1


def test_a_pause_in_the_triggerer_is_never_so_short_that_airflow_takes_its_task_for_a_failed_one(
    ti: TaskInstance, full: list[str]
) -> None:
    with pytest.raises(TaskDeferred) as deferred:
        operator(deferrable=True, poke_interval=0.1).execute(ti.context)
    assert deferred.value.trigger.moment >= ti.clock.now() + timedelta(seconds=10)


def test_without_a_store_the_key_survives_the_pause_for_capacity(
    sim: Simulator, ti: TaskInstance, full: list[str]
) -> None:
    ti.store = None
    with pytest.raises(TaskDeferred) as deferred:
        operator(deferrable=True).execute(ti.context)
    sim.steer(full[0], [["COMPLETED", None]])
    with pytest.raises(TaskDeferred):
        operator(deferrable=True).resume_execution(deferred.value.method_name, deferred.value.kwargs, ti.context)
    assert {entry["unique_key"] for entry in sim.log(kind="start", meter_id="1001")} == {
        deferred.value.kwargs["state"]["unique_key"]
    }


def test_missing_capacity_fails_the_try_and_the_retry_continues(
    sim: Simulator, ti: TaskInstance, full: list[str]
) -> None:
    with pytest.raises(CapacityError):
        operator(capacity_timeout=60).execute(ti.context)
    assert 60 <= ti.clock.passed < 90
    sim.steer(full[0], [["COMPLETED", None]])
    assert operator().execute(ti.retry().context)["status"] == "COMPLETED"


def test_a_refusal_for_capacity_ends_an_outage(
    sim: Simulator, ti: TaskInstance, full: list[str], monkeypatch: Any
) -> None:
    sim.fault("status", path="/meters/run/", count=1)
    sleep = ti.clock.sleep

    def outage_again(seconds: float) -> None:
        if len(sim.log(kind="fault")) == 2:
            sim.steer(full[0], [["COMPLETED", None]])
        elif ti.clock.passed > 60 and sim.log(kind="refused") and not sim.faults():
            sim.fault("status", path="/meters/run/", count=1)
        sleep(seconds)

    monkeypatch.setattr(ti.clock, "sleep", outage_again)
    assert operator(max_unreachable=60).execute(ti.context)["status"] == "COMPLETED"
    assert len(sim.log(kind="fault")) == 2


def test_missing_capacity_fails_at_once_if_set(sim: Simulator, ti: TaskInstance, full: list[str]) -> None:
    with pytest.raises(CapacityError):
        operator(wait_for_capacity=False).execute(ti.context)
    assert ti.clock.passed == 0


def test_the_status_before_the_call_is_read_again_after_a_refusal(
    sim: Simulator, ti: TaskInstance, full: list[str], monkeypatch: Any
) -> None:
    sleep, slept = ti.clock.sleep, []

    def run_another(seconds: float) -> None:
        slept.append(seconds)
        if len(slept) == 1:
            sim.steer(full[0], [["COMPLETED", None]])
            sim.start_session("1001", script=[["FAILED", None]])
        sleep(seconds)

    monkeypatch.setattr(ti.clock, "sleep", run_another)
    operator().execute(ti.context)
    assert ti.store is not None
    assert ti.store.get("mediation_run")["baseline"] == "FAILED"


# -- refusals ------------------------------------------------------------------------------------------------------


def test_an_unknown_meter_fails_at_once_without_a_retry(sim: Simulator, ti: TaskInstance) -> None:
    with pytest.raises(MediationMisconfigured, match="99999"):
        operator(meter_id="99999").execute(ti.context)
    assert ti.clock.passed == 0


def test_a_missing_connection_fails_at_once_without_a_retry(sim: Simulator, ti: TaskInstance) -> None:
    with pytest.raises(MediationMisconfigured, match="nowhere"):
        operator(mediation_conn_id="nowhere").execute(ti.context)


def test_a_rendered_argument_that_is_wrong_fails_at_once_without_a_retry(sim: Simulator, ti: TaskInstance) -> None:
    task = operator(runtime_source_configs="{{ var.json.sources }}")
    task.runtime_source_configs = '[{"sourceType": "FTP"}]'
    with pytest.raises(MediationMisconfigured, match=r"runtime_source_configs\[0\].*FTP"):
        task.execute(ti.context)
    assert starts(sim) == 0


def test_sources_rendered_to_json_are_sent(sim: Simulator, ti: TaskInstance) -> None:
    task = operator(runtime_source_configs="{{ var.json.sources }}", wait_for_completion=False)
    task.runtime_source_configs = '[{"sourceType": "EVENT_STORE", "eventStore": {"storeId": "7"}}]'
    task.execute(ti.context)
    [post] = sim.log(kind="request", path="/meters/run/1001/0.0.1")
    assert post["body"]["runtimeSourceConfigs"] == [{"sourceType": "EVENT_STORE", "eventStore": {"storeId": "7"}}]


def test_a_permanent_refusal_is_not_retried(sim: Simulator, ti: TaskInstance) -> None:
    refusal = {"success": False, "error": {"code": "70009999", "message": "No such source."}}
    sim.fault("status", path="/meters/run/", status=400, body=refusal)
    with pytest.raises(MediationMisconfigured, match="No such source"):
        operator().execute(ti.context)
    assert starts(sim) == 0


def test_a_403_before_the_call_is_repeated_once(sim: Simulator, ti: TaskInstance) -> None:
    sim.fault("status", path="/runStatus", status=403, count=1)
    assert operator(wait_for_completion=False).execute(ti.context)["meter_id"] == "1001"
    assert starts(sim) == 1
    sim.fault("status", path="/runStatus", status=403, count=2)
    with pytest.raises(MediationMisconfigured, match="access is forbidden"):
        operator(meter_id="1002").execute(ti.context)
    assert starts(sim) == 1


def test_a_read_before_the_call_that_succeeds_ends_the_outage_of_reads(sim: Simulator, ti: TaskInstance) -> None:
    arguments = {"deferrable": False, "wait_for_completion": False, "max_unreachable": 40, "poke_interval": 10}
    sim.fault("status", path="/runStatus", status=503, count=2)
    sim.fault("status", path="/meters/run/", status=503, count=1)
    assert operator(**arguments).execute(ti.context)["meter_id"] == "1001"
    assert ti.clock.passed >= 40
    assert starts(sim) == 1


def test_a_refused_read_between_two_calls_is_no_first_poll(sim: Simulator, ti: TaskInstance) -> None:
    sim.fault("status", path="/meters/run/", status=429, count=1)
    sim.fault("status", path="/runStatus", status=404, after=1, count=1)
    assert operator(wait_for_completion=False).execute(ti.context)["meter_id"] == "1001"
    assert starts(sim) == 1


def test_an_undocumented_refusal_after_a_lost_reply_warns_of_a_session_that_may_run(
    sim: Simulator, ti: TaskInstance
) -> None:
    odd = {"success": False, "error": {"code": "70009999", "message": "A run of this request exists."}}
    sim.fault("lost_reply", path="/meters/run/", count=1)
    sim.fault("status", path="/meters/run/", status=400, body=odd)
    with pytest.raises(MediationMisconfigured, match="its session may have been started"):
        operator(wait_for_completion=False).execute(ti.context)
    assert starts(sim) == 1


def test_an_undocumented_refusal_before_the_call_is_repeated_for_five_minutes(sim: Simulator, ti: TaskInstance) -> None:
    odd = {"success": False, "error": {"code": "70009999", "message": "Odd."}}
    sim.fault("status", path="/runStatus", status=400, body=odd)
    with pytest.raises(MediationMisconfigured, match="Odd"):
        operator(deferrable=False).execute(ti.context)
    assert 300 <= ti.clock.passed < 900
    assert len(sim.log(kind="request", path="/meters/1001/0.0.1/runStatus")) >= 3
    assert starts(sim) == 0


@pytest.mark.parametrize(
    ("host", "remedy"),
    [("no.such.host.invalid", "there is no such host name"), ("{plain}", "write http:// before the host")],
)
def test_an_address_that_cannot_work_fails_at_once_without_a_retry(
    sim: Simulator, ti: TaskInstance, monkeypatch: pytest.MonkeyPatch, host: str, remedy: str
) -> None:
    address = host.replace("{plain}", sim.url.removeprefix("http://"))
    extra = {"conn_type": "mediation", "host": address, "login": "client", "password": "secret"}
    monkeypatch.setenv("AIRFLOW_CONN_MEDIATION_WRONG", json.dumps(extra))
    with pytest.raises(MediationMisconfigured, match=remedy):
        operator(mediation_conn_id="mediation_wrong").execute(ti.context)
    assert ti.clock.passed == 0


# -- stopping ------------------------------------------------------------------------------------------------------
# test_stops.py tests when a stop is made.


@pytest.fixture
def api(ti: TaskInstance, monkeypatch: pytest.MonkeyPatch) -> Journal:
    """An API server of a connection that takes no callouts."""
    journal = Journal(SimpleNamespace(seconds=0.0), callouts=False)  # type: ignore[arg-type]
    monkeypatch.setattr(waiting.SessionWaitMixin, "_feed_caller", lambda self, **_: SyncFeed(journal))
    return journal


def killed(ti: TaskInstance, state: str | None, **arguments: Any) -> RunMeterOperator:
    """Return an operator that was killed in its wait, with the task in ``state`` by then."""
    task = operator(exclusive=True, **arguments)
    polls = []

    def sleep(seconds: float) -> None:
        polls.append(seconds)
        if len(polls) == 2:
            ti.state = state
            task.on_kill()
            raise KeyboardInterrupt
        type(ti.clock).sleep(ti.clock, seconds)

    ti.clock.sleep = sleep  # type: ignore[method-assign]
    with pytest.raises(KeyboardInterrupt):
        task.execute(ti.context)
    return task


def stops(sim: Simulator) -> int:
    return len(sim.log(kind="request", path="/meters/stop/1001/0.0.1"))


def test_a_kill_stops_the_meter_with_stop_on_kill(sim: Simulator, ti: TaskInstance, api: Journal) -> None:
    killed(ti, "failed", stop_meter_on_kill=True)
    assert stops(sim) == 1


@pytest.mark.parametrize("state", ["success", "restarting", None])
def test_a_task_that_was_reset_stops_no_meter(
    sim: Simulator, ti: TaskInstance, api: Journal, state: str | None
) -> None:
    """A scheduler that resets the tasks of a silent one leaves no state, and no user has done anything."""
    killed(ti, state, stop_meter_on_kill=True)
    assert stops(sim) == 0


def test_by_default_no_meter_is_stopped(sim: Simulator, ti: TaskInstance, api: Journal) -> None:
    killed(ti, "failed")
    assert stops(sim) == 0


def test_the_state_of_a_mapped_task_is_read_by_its_index(sim: Simulator, ti: TaskInstance, api: Journal) -> None:
    ti.map_index = 3
    killed(ti, "failed", stop_meter_on_kill=True)
    assert stops(sim) == 1


def test_a_kill_during_a_request_to_airflow_stops_the_meter(
    sim: Simulator, ti: TaskInstance, api: Journal, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(kill, "_ON_KILL_SECONDS", 0.05)
    talking, answer = threading.Lock(), ti.get_task_states

    def get_task_states(**query: Any) -> dict[str, Any]:
        with talking:
            return answer(**query)

    ti.get_task_states = get_task_states  # type: ignore[method-assign]
    with talking:  # until the handler of the signal returns
        killed(ti, "failed", stop_meter_on_kill=True)
    assert len(sim.wait_for("stop", meter_id="1001")) == 1


@pytest.mark.parametrize(
    ("state", "goes_on"),
    [
        *((state, False) for state in ("failed", "skipped", "removed", "success", "restarting", None)),
        *((state, True) for state in ("running", "up_for_retry", "queued", "deferred")),
    ],
)
def test_a_process_that_lost_its_task_does_nothing_more(
    ti: TaskInstance, state: str | None, goes_on: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    slept: list[float] = []
    monkeypatch.setattr("time.sleep", slept.append)
    task = operator()
    task._context, ti.state = ti.context, state  # type: ignore[assignment]
    task.on_kill()
    assert slept == ([] if goes_on else [kill._UNTIL_KILLED])


def test_without_an_answer_about_the_task_the_run_continues(ti: TaskInstance, monkeypatch: pytest.MonkeyPatch) -> None:
    slept: list[float] = []
    monkeypatch.setattr("time.sleep", slept.append)
    task = operator(stop_meter_on_kill=True)
    task._context, ti.hidden = ti.context, True  # type: ignore[assignment]
    task.on_kill()
    assert slept == []


def test_on_kill_before_execute_does_nothing() -> None:
    operator(stop_meter_on_kill=True).on_kill()


def test_a_stop_that_zuora_refuses_is_only_logged(sim: Simulator, ti: TaskInstance, api: Journal) -> None:
    sim.fault("status", path="/meters/stop/")
    killed(ti, "failed", stop_meter_on_kill=True)
    assert stops(sim) == 1


@pytest.mark.parametrize(("asked", "stopped"), [(True, 1), (False, 0)])
def test_the_timeout_stops_the_meter_with_stop_on_timeout(
    sim: Simulator, ti: TaskInstance, api: Journal, asked: bool, stopped: int
) -> None:
    sim.set_meter("1001", script=[["RUNNING", None]])
    with pytest.raises(MeterSessionTimeout):
        operator(timeout=60, stop_meter_on_timeout=asked, exclusive=True).execute(ti.context)
    assert stops(sim) == stopped


@pytest.mark.parametrize("asked", [True, False])
def test_the_trigger_gets_stop_on_kill(sim: Simulator, ti: TaskInstance, asked: bool) -> None:
    with pytest.raises(TaskDeferred) as deferred:
        operator(deferrable=True, stop_meter_on_kill=asked).execute(ti.context)
    assert deferred.value.trigger.serialize()[1]["stop_on_kill"] is asked


# -- arguments -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"meter_id": ""}, "meter_id must not be empty"),
        ({"meter_id": None}, "meter_id must not be empty"),
        ({"version": " "}, "version must not be empty"),
        ({"run_type": "LIVE"}, "run_type must be one of NORMAL, DEBUG"),
        ({"run_type": "{{ params.kind }}"}, "^run_type takes no template, and '{{ params.kind }}' is one"),
        ({"statuses": ["{{ params.status }}"]}, "^statuses takes no template"),
        ({"fail_on": "{{ params.status }}"}, "^fail_on takes no template"),
        ({"statuses": ["no status!"]}, "statuses.*'no status!'.*COMPLETED"),
        ({"fail_on": ["NEVER_RUN"]}, "fail_on: no session is ever NEVER_RUN"),
        ({"statuses": []}, "statuses must name at least one"),
        ({"statuses": ["TESTING_PASSED"]}, "only DEBUG sessions reach TESTING_PASSED"),
        (
            {"run_type": "DEBUG", "statuses": ["TESTING_PASSED"], "fail_on": ["TESTING_FAILED"]},
            "CANCELED: a session may end so",
        ),
        ({"statuses": ["FAILED"], "fail_on": ["FAILED"]}, "both statuses and fail_on"),
        ({"statuses": ["COMPLETED"], "fail_on": []}, "CANCELED, FAILED.*neither in statuses nor in fail_on"),
        ({"poke_interval": 0}, "poke_interval"),
        ({"timeout": -1}, "timeout"),
        ({"max_unreachable": "1h"}, "max_unreachable"),
        ({"capacity_timeout": None}, "capacity_timeout"),
        ({"runtime_source_configs": []}, "runtime_source_configs is empty"),
        ({"runtime_source_configs": {"sourceType": "S3"}}, "runtime_source_configs must be a list"),
        ({"runtime_source_configs": [{"sourceType": "FTP"}]}, r"\['sourceType'\] must be one of LOCAL_FS, S3"),
        ({"runtime_source_configs": [{}]}, r"\[0\]\['sourceType'\] must be one of"),
        ({"runtime_source_configs": [{"sourceType": "S3"}]}, "needs 'paths' and 'fileFormat'"),
        (
            {"runtime_source_configs": [{"sourceType": "S3", "s3": {"paths": "a", "fileFormat": "CSV"}}]},
            "must be a list of texts",
        ),
        (
            {"runtime_source_configs": [{"sourceType": "S3", "s3": {"paths": ["a"], "fileFormat": "TSV"}}]},
            "'TSV': allowed are CSV",
        ),
        ({"runtime_source_configs": [{"sourceType": "LOCAL_FS", "s3": {}}]}, "does not belong to sourceType LOCAL_FS"),
        ({"runtime_source_configs": [{"sourceType": "EVENT_STORE", "eventStore": {}}]}, "needs 'storeId'"),
        (
            {
                "runtime_source_configs": [
                    {"sourceType": "EVENT_STORE", "eventStore": {"storeId": "1", "startDate": "31.1.2026"}}
                ]
            },
            "'startDate'.*YYYY-MM-DD",
        ),
        (
            {
                "runtime_source_configs": [
                    {
                        "sourceType": "EVENT_STORE",
                        "eventStore": {"storeId": "1", "startDate": "2026-01-31", "query": "select 1"},
                    }
                ]
            },
            "both 'query' and a date range",
        ),
        ({"source_options": [{"processorId": "p"}]}, r"source_options\[0\] needs 'localFileId'"),
        ({"run_type": "DEBUG", "source_options": [{}]}, "exactly one of sampleFileId"),
        ({"event_store_source_options": [{}]}, "needs 'processorId'"),
        ({"wait_for_completion": False, "fail_on": ()}, "statuses and fail_on need wait_for_completion=True"),
        ({"wait_for_completion": False, "statuses": "COMPLETED"}, "statuses and fail_on need wait_for_completion=True"),
    ],
)
def test_a_wrong_argument_is_refused_when_the_dag_is_parsed(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        operator(**arguments)


@pytest.mark.parametrize(
    "arguments",
    [
        {"meter_id": "{{ params.meter }}"},
        {"runtime_source_configs": "{{ var.json.sources }}"},
        {"runtime_source_configs": [{"sourceType": "{{ params.type }}"}]},
        {"runtime_source_configs": [{"sourceType": "S3", "s3": {"paths": "{{ p }}", "fileFormat": "{{ f }}"}}]},
        {"runtime_source_configs": [{"sourceType": "SNOWFLAKE", "snowflake": {"query": "select 1"}}]},
        {"runtime_source_configs": [{"sourceType": "STREAMING_API"}]},
        {"source_options": [{"localFileId": "4"}]},
        {"run_type": "DEBUG", "fail_on": ()},
        {"statuses": ["RUNNING"], "fail_on": ["FAILED", "CANCELED", "COMPLETED"]},
    ],
)
def test_templates_and_allowed_arguments_pass(arguments: dict[str, Any]) -> None:
    assert operator(**arguments).task_id == "task"


def test_positional_arguments_are_refused() -> None:
    with pytest.raises(TypeError):
        RunMeterOperator("1001")  # type: ignore[misc]


def test_a_mapped_instance_is_checked_when_it_is_made() -> None:
    with DAG("dag", schedule=None):
        mapped = RunMeterOperator.partial(task_id="mapped", poke_interval=5).expand(meter_id=["1001", ""])
    assert mapped.unmap({"meter_id": "1001"}).meter_id == "1001"
    with pytest.raises(ValueError, match="meter_id must not be empty"):
        mapped.unmap({"meter_id": ""})


# -- what the pages show ---------------------------------------------------------------------------------------------


def test_the_note_of_a_refused_run_call_has_its_error(ti: TaskInstance, notes: list[TaskNote]) -> None:
    with pytest.raises(MediationMisconfigured) as refused:
        operator(meter_id="99999").execute(ti.context)
    (note,) = notes
    assert (note.kind, note.meter_id, note.session_id) == ("run", "99999", None)
    assert note.message == f"The meter was not started: {refused.value}"
    assert "/mediation/task?" in ti.xcoms["mediation_session_page"]
    assert ti.xcoms["mediation_session_link"] == ""


@pytest.mark.parametrize(
    "task",
    [
        operator(),
        MeterSummaryOperator(task_id="task", meter_id="1001"),
        MeterSessionSensor(task_id="task", meter_id="1"),
    ],
    ids=lambda task: task.task_type,
)
def test_a_task_whose_arguments_are_refused_has_links(ti: TaskInstance, task: Any) -> None:
    """Airflow reads the links of each task when it ends, and logs an error for one that is missing."""
    task.meter_id = "None"
    with pytest.raises(MediationMisconfigured, match="meter_id"):
        task.execute(ti.context)
    assert "/mediation/task?" in ti.xcoms["mediation_session_page"]
    assert ti.xcoms["mediation_session_link"] == ""


def test_a_run_without_a_wait_has_a_note(ti: TaskInstance, notes: list[TaskNote]) -> None:
    started = operator(wait_for_completion=False).execute(ti.context)
    (note,) = notes
    assert (note.kind, note.session_id, note.status) == ("run", started["session_id"], "INITIALIZING")
    assert (note.evidence, note.certain) == ("run", True)


def test_a_run_with_a_wait_has_no_note(ti: TaskInstance, notes: list[TaskNote]) -> None:
    operator().execute(ti.context)
    assert notes == []
