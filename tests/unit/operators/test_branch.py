"""The branch of each status, where the session comes from, and what happens to a status without a branch."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
from airflow.sdk import DAG, BaseOperator, TaskGroup
from airflow.sdk.exceptions import DownstreamTasksSkipped, TaskDeferred

from airflow_mediation_provider.exceptions import (
    MediationMisconfigured,
    MediationUnreachable,
    MeterSessionTimeout,
    MeterSessionUncertain,
)
from airflow_mediation_provider.operators.branch import MeterSessionBranchOperator
from airflow_mediation_provider.operators.meter import RunMeterOperator
from airflow_mediation_provider.protocol.wait import WaitEnd, WaitResult
from airflow_mediation_provider.simulator import Simulator, ends
from airflow_mediation_provider.simulator.config import debug_ends

if TYPE_CHECKING:
    from .conftest import TaskInstance

TASKS = ("load", "alert", "clean", "other")


def session(status: str = "COMPLETED", **fields: Any) -> dict[str, Any]:
    return {
        "meter_id": "1001",
        "session_id": "R-00000001",
        "run_type": "NORMAL",
        "status": status,
        "started_at": "2026-01-01T00:00:00+00:00",
        "observed_at": "2026-01-01T00:00:00+00:00",
        "source": "poll",
        "evidence": "poll",
        "certain": False,
        **fields,
    }


def operator(**arguments: Any) -> MeterSessionBranchOperator:
    with DAG("dag", schedule=None):
        branch = MeterSessionBranchOperator(**{"task_id": "task", "poke_interval": 5, **arguments})
        for task_id in TASKS:
            branch >> BaseOperator(task_id=task_id)
        with TaskGroup("group"):
            first, second = BaseOperator(task_id="first"), BaseOperator(task_id="second")
            first >> second
        branch >> first
    return branch


def followed(ti: TaskInstance, task: MeterSessionBranchOperator, **event: Any) -> set[str]:
    """Run the branch and return the tasks that it does not skip."""
    ti.task = task  # type: ignore[attr-defined]
    everything = set(task.downstream_task_ids)
    try:
        if event:
            task.execute_complete(ti.context, **event)
        else:
            task.execute(ti.context)
    except DownstreamTasksSkipped as skipped:
        return everything - {name for name, _ in skipped.tasks}
    return everything


BRANCHES: dict[str, Any] = {"on_completed": "load", "on_failed": "alert", "on_canceled": "clean"}


@pytest.mark.parametrize(
    ("status", "arguments", "expected"),
    [
        ("COMPLETED", BRANCHES, {"load"}),
        ("FAILED", BRANCHES, {"alert"}),
        ("CANCELED", BRANCHES, {"clean"}),
        ("CANCELED", {"on_completed": "load", "default": "other"}, {"other"}),
        ("CANCELED", {"on_completed": "load", "default": []}, set()),
        ("CANCELED", {"on_completed": "load", "on_canceled": []}, set()),
        ("COMPLETED", {"on_completed": ["load", "other"]}, {"load", "other"}),
        ("COMPLETED", {"on_completed": "group"}, {"group.first"}),
        ("PAUSED", {"branches": {"paused": "other", "COMPLETED": "load"}}, {"other"}),
    ],
)
def test_the_status_of_a_given_session_decides(
    ti: TaskInstance, status: str, arguments: dict[str, Any], expected: set[str]
) -> None:
    task = operator(session=session(status), **arguments)
    assert followed(ti, task) == expected
    assert ti.xcoms["session"]["status"] == status
    assert ti.clock.passed == 0, "a session that is where it ends is not asked for again"


@pytest.mark.parametrize(
    ("status", "run_type", "expected"),
    [("TESTING_PASSED", "DEBUG", {"load"}), ("TESTING_FAILED", "DEBUG", {"alert"}), ("COMPLETED", "NORMAL", {"other"})],
)
def test_a_given_session_brings_its_run_type(ti: TaskInstance, status: str, run_type: str, expected: set[str]) -> None:
    branches = {"TESTING_PASSED": "load", "TESTING_FAILED": "alert", "COMPLETED": "other"}
    assert followed(ti, operator(session=session(status, run_type=run_type), branches=branches)) == expected


def test_a_status_without_a_branch_fails_with_the_branches_that_there_are(ti: TaskInstance) -> None:
    task = operator(session=session("CANCELED"), on_completed="load", on_failed="alert")
    with pytest.raises(MediationMisconfigured, match=r"CANCELED, which has no branch.*COMPLETED, FAILED"):
        followed(ti, task)


@pytest.mark.parametrize("name", ["on_failed", "default", "on_timeout"])
@pytest.mark.parametrize("branch", ["laod", ["other", "second"]])
def test_a_branch_that_the_dag_does_not_have_fails_before_the_wait(ti: TaskInstance, name: str, branch: Any) -> None:
    task = operator(meter_id="1001", **{"on_completed": "load", name: branch})
    with pytest.raises(MediationMisconfigured, match=r"'(laod|second)', but the DAG has no such task.*'group.task'"):
        followed(ti, task)
    assert ti.clock.passed == 0


def test_a_branch_that_does_not_come_after_the_task_is_pointed_out(
    ti: TaskInstance, capsys: pytest.CaptureFixture[str]
) -> None:
    task = operator(session=session(), on_completed="load", on_failed="elsewhere", default="group.second")
    assert task.dag is not None
    BaseOperator(task_id="elsewhere", dag=task.dag)
    assert followed(ti, task) == {"load"}
    (said,) = [line for line in capsys.readouterr().out.splitlines() if "does not come after" in line]
    assert "FAILED, elsewhere" in said


def test_a_session_whose_reply_was_lost_is_known_to_have_begun(sim: Simulator, ti: TaskInstance) -> None:
    sim.set_meter("1001", runs=[ends("COMPLETED")])
    ended = RunMeterOperator(task_id="task", meter_id="1001", poke_interval=5).execute(ti.context)
    # It has ended, as the one before, before anybody looked: there is no change to be seen any more.
    given = session("INITIALIZING", session_id=None, started_at=None, observed_at=ended["observed_at"])
    ti.clear()
    assert followed(ti, operator(session=given, on_completed="load", on_failed="alert", timeout=600)) == {"load"}
    assert ti.xcoms["session"]["certain"] is False
    with pytest.raises(MeterSessionTimeout):
        followed(ti, operator(session={**given, "run_type": "DEBUG"}, default="other", timeout=600))


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (None, "session is empty"),
        ("None", "session is empty"),
        ({}, "session is empty"),
        ({"status": "COMPLETED"}, "must be the output of"),
        ([1], "must be the output of"),
        ("R-1", "not JSON"),
    ],
)
def test_what_is_no_session_fails_at_once(ti: TaskInstance, value: Any, message: str) -> None:
    task = operator(session="{{ templated }}", default="other")
    task.session = value
    with pytest.raises(MediationMisconfigured, match=message):
        followed(ti, task)


def test_a_session_rendered_to_text_is_read_as_json(ti: TaskInstance) -> None:
    task = operator(session="{{ templated }}", **BRANCHES)
    task.session = '{"meter_id": "1001", "status": "FAILED", "session_id": "R-1"}'
    assert followed(ti, task) == {"alert"}


def test_a_given_session_that_goes_on_is_waited_for(sim: Simulator, ti: TaskInstance) -> None:
    started = RunMeterOperator(task_id="run", meter_id="1001", wait_for_completion=False).execute(ti.context)
    assert started["status"] == "INITIALIZING"
    assert followed(ti, operator(session=started, **BRANCHES)) == {"load"}
    assert ti.xcoms["session"]["session_id"] == started["session_id"]
    assert ti.xcoms["mediation_session_link"].endswith(started["session_id"])
    assert ti.xcoms["mediation_session_page"].endswith(f"meter=1001&session={started['session_id']}")


@pytest.mark.parametrize(
    ("status", "expected"), [("COMPLETED", {"load"}), ("FAILED", {"alert"}), ("CANCELED", {"clean"})]
)
def test_it_waits_for_a_session_of_a_meter(sim: Simulator, ti: TaskInstance, status: str, expected: set[str]) -> None:
    sim.set_meter("1001", runs=[ends(status, 40)])
    sim.start_session("1001")
    assert followed(ti, operator(meter_id="1001", **BRANCHES)) == expected


def test_it_waits_for_a_debug_session(sim: Simulator, ti: TaskInstance) -> None:
    sim.set_meter("1001", debug_runs=[debug_ends("TESTING_FAILED", 40)])
    sim.start_session("1001", run_type="DEBUG")
    branches = {"TESTING_PASSED": "load", "TESTING_FAILED": "alert"}
    assert followed(ti, operator(meter_id="1001", run_type="DEBUG", branches=branches)) == {"alert"}


def test_it_waits_for_a_status_that_is_not_an_end(sim: Simulator, ti: TaskInstance) -> None:
    sim.start_session("1001", script=[["RUNNING", 40], ["PAUSED", None]])
    assert followed(ti, operator(meter_id="1001", branches={"PAUSED": "other"}, default="load")) == {"other"}


def test_the_deadline_follows_on_timeout_or_fails(sim: Simulator, ti: TaskInstance) -> None:
    sim.start_session("1001", script=[["RUNNING", None]])
    assert followed(ti, operator(meter_id="1001", timeout=60, on_timeout="other", **BRANCHES)) == {"other"}
    with pytest.raises(MeterSessionTimeout):
        followed(ti.retry(), operator(meter_id="1001", timeout=60, **BRANCHES))


def test_unreachable_is_a_failure_to_be_retried_and_no_branch(sim: Simulator, ti: TaskInstance) -> None:
    sim.fault("status", path="runStatus")
    with pytest.raises(MediationUnreachable):
        followed(ti, operator(meter_id="1001", max_unreachable=60, on_timeout="other", default="load"))


def test_certainty_may_be_required(ti: TaskInstance) -> None:
    with pytest.raises(MeterSessionUncertain, match="evidence: poll"):
        followed(ti, operator(session=session(), require_certain=True, **BRANCHES))
    task = operator(session=session(certain=True, evidence="callout"), require_certain=True, **BRANCHES)
    assert followed(ti, task) == {"load"}


def test_deferred_it_branches_on_the_event(sim: Simulator, ti: TaskInstance) -> None:
    sim.start_session("1001")
    task = operator(meter_id="1001", deferrable=True, on_timeout="other", **BRANCHES)
    with pytest.raises(TaskDeferred) as deferred:
        followed(ti, task)
    assert sorted(deferred.value.trigger.serialize()[1]["wait"]["condition"]["statuses"]) == [
        "CANCELED",
        "COMPLETED",
        "FAILED",
    ]
    met = WaitResult(end=WaitEnd.MET, message="", session=session("FAILED"), last_status=None, last_status_since=None)
    assert followed(ti, task, event=met.to_dict()) == {"alert"}
    late = WaitResult(end=WaitEnd.TIMED_OUT, message="late", session=None, last_status=None, last_status_since=None)
    assert followed(ti, task, event=late.to_dict()) == {"other"}


def test_in_a_mapped_group_it_skips_the_instances_of_its_own_index(ti: TaskInstance) -> None:
    ti.map_index = 2
    task = operator(session=session("FAILED"), **BRANCHES)
    ti.task = task  # type: ignore[attr-defined]
    with pytest.raises(DownstreamTasksSkipped) as skipped:
        task.execute(ti.context)
    assert set(skipped.value.tasks) == {("load", 2), ("clean", 2), ("other", 2), ("group.first", 2)}


def test_it_is_a_branch_to_airflow() -> None:
    assert operator(session=session(), default="other").inherits_from_skipmixin


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"meter_id": "1"}, "no branch is given"),
        ({"default": "other"}, "give either session .* or meter_id"),
        ({"default": "other", "meter_id": "1", "session": {"a": 1}}, "give either session .* or meter_id"),
        ({"default": "other", "meter_id": " "}, "meter_id must not be empty"),
        ({"default": "other", "session": {"a": 1}, "session_id": "R-1"}, "go with meter_id"),
        (
            {"default": "other", "meter_id": "1", "session_id": "R-1", "since": "2026-01-01T00:00:00Z"},
            "exclude each other",
        ),
        ({"default": "other", "meter_id": "1", "since": "yesterday"}, "since must be an ISO 8601 time"),
        ({"default": "other", "meter_id": "1", "since": "2026-01-01T00:00:00"}, "since must be a time with a zone"),
        ({"meter_id": "1", "branches": {"DONE": "x"}}, "branches: a NORMAL session is never 'DONE'"),
        ({"session": {"a": 1}, "branches": {"DONE": "x"}}, "branches: 'DONE' is no status; allowed are"),
        ({"meter_id": "1", "run_type": "DEBUG", "on_completed": "x"}, "branches: a DEBUG session is never 'COMPLETED'"),
        (
            {"meter_id": "1", "branches": {"TESTING_PASSED": "x"}},
            "branches: a NORMAL session is never 'TESTING_PASSED'",
        ),
        ({"meter_id": "1", "on_failed": "x", "branches": {"FAILED": "y"}}, "FAILED has two branches"),
        ({"meter_id": "1", "on_failed": ["x", ""]}, "the branch of FAILED must be a task id"),
        ({"meter_id": "1", "on_completed": "x", "on_timeout": 5}, "the branch of on_timeout must be"),
        ({"meter_id": "1", "branches": ["x"]}, "branches must map"),
        ({"meter_id": "1", "default": "x", "run_type": "FAST"}, "run_type must be one of"),
        ({"meter_id": "1", "default": "x", "timeout": 0}, "timeout"),
    ],
)
def test_a_wrong_argument_is_refused_when_the_dag_is_parsed(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        MeterSessionBranchOperator(task_id="task", **arguments)
