"""The branch of each status, the source of the session, and a status without a branch."""

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
from airflow_mediation_provider.protocol.waits.wait import WaitEnd, WaitResult
from airflow_mediation_provider.simulator import Simulator, ends
from airflow_mediation_provider.simulator.config import debug_ends

if TYPE_CHECKING:
    from airflow_mediation_provider.protocol.sessions.verdict import TaskNote

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
        ("COMPLETED", {"branches": {"paused->completed": "other", "COMPLETED": "load"}}, {"load"}),
        ("COMPLETED", {"branches": {"RUNNING -> COMPLETED": "other"}, "default": "load"}, {"load"}),
    ],
)
def test_the_status_of_a_given_session_decides(
    ti: TaskInstance, status: str, arguments: dict[str, Any], expected: set[str]
) -> None:
    task = operator(session=session(status), **arguments)
    assert followed(ti, task) == expected
    assert ti.xcoms["session"]["status"] == status
    assert ti.clock.passed == 0, "a session in its final status is not polled"


@pytest.mark.parametrize(
    ("status", "run_type", "expected"),
    [("TESTING_PASSED", "DEBUG", {"load"}), ("TESTING_FAILED", "DEBUG", {"alert"}), ("COMPLETED", "NORMAL", {"other"})],
)
def test_a_given_session_contains_its_run_type(
    ti: TaskInstance, status: str, run_type: str, expected: set[str]
) -> None:
    branches = {"TESTING_PASSED": "load", "TESTING_FAILED": "alert", "COMPLETED": "other"}
    assert followed(ti, operator(session=session(status, run_type=run_type), branches=branches)) == expected


@pytest.mark.parametrize(("previous", "expected"), [("PAUSED", {"alert"}), ("RUNNING", {"load"}), (None, {"load"})])
def test_the_branch_of_the_status_before_outranks_that_of_the_status(
    ti: TaskInstance, previous: str | None, expected: set[str]
) -> None:
    branches = {"PAUSED -> COMPLETED": "alert", "COMPLETED": "load"}
    given = session("COMPLETED", previous_status=previous)
    assert followed(ti, operator(session=given, branches=branches)) == expected


def test_before_its_first_status_a_session_was_never_run(ti: TaskInstance) -> None:
    branches = {"NEVER_RUN -> INITIALIZING": "alert", "INITIALIZING": "load"}
    assert followed(ti, operator(session=session("INITIALIZING"), branches=branches)) == {"alert"}


def test_a_missing_branch_names_the_status_before(ti: TaskInstance) -> None:
    task = operator(session=session("COMPLETED"), branches={"PAUSED -> COMPLETED": "load"})
    with pytest.raises(MediationMisconfigured, match="COMPLETED after an unknown status, which has no branch"):
        followed(ti, task)


def test_a_status_without_a_branch_fails_and_lists_the_branches(ti: TaskInstance) -> None:
    task = operator(session=session("CANCELED"), on_completed="load", on_failed="alert")
    with pytest.raises(MediationMisconfigured, match=r"CANCELED, which has no branch.*COMPLETED, FAILED"):
        followed(ti, task)


@pytest.mark.parametrize("name", ["on_failed", "default", "on_timeout"])
@pytest.mark.parametrize("branch", ["laod", ["other", "second"]])
def test_a_branch_that_is_missing_in_the_dag_fails_before_the_wait(ti: TaskInstance, name: str, branch: Any) -> None:
    task = operator(meter_id="1001", **{"on_completed": "load", name: branch})
    with pytest.raises(MediationMisconfigured, match=r"'(laod|second)', but the Dag has no such task.*'group.task'"):
        followed(ti, task)
    assert ti.clock.passed == 0


def test_a_branch_that_is_not_downstream_is_logged(ti: TaskInstance, capsys: pytest.CaptureFixture[str]) -> None:
    task = operator(session=session(), on_completed="load", on_failed="elsewhere", default="group.second")
    assert task.dag is not None
    BaseOperator(task_id="elsewhere", dag=task.dag)
    assert followed(ti, task) == {"load"}
    (said,) = [line for line in capsys.readouterr().out.splitlines() if "is not downstream" in line]
    assert "FAILED, elsewhere" in said


def test_a_session_whose_reply_was_lost_counts_as_started(sim: Simulator, ti: TaskInstance) -> None:
    sim.set_meter("1001", runs=[ends("COMPLETED")])
    ended = RunMeterOperator(task_id="task", meter_id="1001", poke_interval=5).execute(ti.context)
    # It ended, in the same status as the one before, before the first poll: no poll can show a change.
    given = session("INITIALIZING", session_id=None, started_at=None, observed_at=ended["observed_at"])
    ti.clear()
    assert followed(ti, operator(session=given, on_completed="load", on_failed="alert", timeout=600)) == {"load"}
    assert ti.xcoms["session"]["certain"] is False
    with pytest.raises(MeterSessionTimeout):
        followed(ti, operator(session={**given, "run_type": "DEBUG"}, default="other", timeout=600))


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (None, "session is None, which names no session"),
        ("None", "session is 'None', which names no session"),
        ({}, "session is {}, which names no session"),
        ({"status": "COMPLETED"}, "must be the output of"),
        ([1], "must be the output of"),
        ("[{'session_id': 'R-1'}]", "must be the output of"),
        ("{'session_id': 'R-1'", "session looks like an object, but is neither JSON nor a Python literal"),
        ("R-1", "not 'R-1'; an id goes into session_id"),
    ],
)
def test_an_invalid_session_fails_at_once(ti: TaskInstance, value: Any, message: str) -> None:
    task = operator(session="{{ templated }}", default="other")
    task.session = value
    with pytest.raises(MediationMisconfigured, match=message):
        followed(ti, task)


def test_a_session_rendered_to_text_is_read_as_json(ti: TaskInstance) -> None:
    task = operator(session="{{ templated }}", **BRANCHES)
    task.session = '{"meter_id": "1001", "status": "FAILED", "session_id": "R-1"}'
    assert followed(ti, task) == {"alert"}


def test_a_given_session_that_has_not_ended_is_waited_for(sim: Simulator, ti: TaskInstance) -> None:
    started = RunMeterOperator(task_id="run", meter_id="1001", wait_for_completion=False).execute(ti.context)
    assert started["status"] == "INITIALIZING"
    assert followed(ti, operator(session=started, **BRANCHES)) == {"load"}
    assert ti.xcoms["session"]["session_id"] == started["session_id"]
    assert ti.xcoms["mediation_session_link"].endswith(started["session_id"])
    assert ti.xcoms["mediation_session_page"].endswith(f"meter=1001&session={started['session_id']}")


@pytest.mark.parametrize(
    ("status", "expected"), [("COMPLETED", {"load"}), ("FAILED", {"alert"}), ("CANCELED", {"clean"})]
)
def test_the_branch_waits_for_a_session_of_a_meter(
    sim: Simulator, ti: TaskInstance, status: str, expected: set[str]
) -> None:
    sim.set_meter("1001", runs=[ends(status, 40)])
    sim.start_session("1001")
    assert followed(ti, operator(meter_id="1001", **BRANCHES)) == expected


def test_the_branch_waits_for_a_debug_session(sim: Simulator, ti: TaskInstance) -> None:
    sim.set_meter("1001", debug_runs=[debug_ends("TESTING_FAILED", 40)])
    sim.start_session("1001", run_type="DEBUG")
    branches = {"TESTING_PASSED": "load", "TESTING_FAILED": "alert"}
    assert followed(ti, operator(meter_id="1001", run_type="DEBUG", branches=branches)) == {"alert"}


@pytest.mark.parametrize("spelt", ["CANCELED", "Cancelled"])
def test_the_branch_of_a_canceled_debug_run_is_followed(sim: Simulator, ti: TaskInstance, spelt: str) -> None:
    sim.set_meter("1001", debug_runs=[debug_ends("CANCELED", 40)])
    sim.start_session("1001", run_type="DEBUG")
    branches = {"TESTING_PASSED": "load", spelt: "alert"}
    assert followed(ti, operator(meter_id="1001", run_type="DEBUG", branches=branches)) == {"alert"}


def test_the_branch_waits_for_a_status_that_is_not_terminal(sim: Simulator, ti: TaskInstance) -> None:
    sim.start_session("1001", script=[["RUNNING", 40], ["PAUSED", None]])
    assert followed(ti, operator(meter_id="1001", branches={"PAUSED": "other"}, default="load")) == {"other"}


def test_the_deadline_follows_on_timeout_or_fails(sim: Simulator, ti: TaskInstance) -> None:
    sim.start_session("1001", script=[["RUNNING", None]])
    assert followed(ti, operator(meter_id="1001", timeout=60, on_timeout="other", **BRANCHES)) == {"other"}
    with pytest.raises(MeterSessionTimeout):
        followed(ti.retry(), operator(meter_id="1001", timeout=60, **BRANCHES))


def test_an_unreachable_zuora_fails_the_try_and_follows_no_branch(sim: Simulator, ti: TaskInstance) -> None:
    sim.fault("status", path="runStatus")
    with pytest.raises(MediationUnreachable):
        followed(ti, operator(meter_id="1001", max_unreachable=60, on_timeout="other", default="load"))


def test_an_uncertain_status_fails_with_require_certain(ti: TaskInstance) -> None:
    with pytest.raises(MeterSessionUncertain, match="evidence: poll"):
        followed(ti, operator(session=session(), require_certain=True, **BRANCHES))
    task = operator(session=session(certain=True, evidence="callout"), require_certain=True, **BRANCHES)
    assert followed(ti, task) == {"load"}


def test_a_deferred_branch_follows_the_event(sim: Simulator, ti: TaskInstance) -> None:
    sim.start_session("1001")
    task = operator(meter_id="1001", deferrable=True, on_timeout="other", **BRANCHES)
    with pytest.raises(TaskDeferred) as deferred:
        followed(ti, task)
    assert sorted(deferred.value.trigger.serialize()[1]["wait"]["condition"]["statuses"]) == [
        "CANCELED",
        "COMPLETED",
        "FAILED",
        "TESTING_FAILED",
        "TESTING_PASSED",
    ]
    met = WaitResult(end=WaitEnd.MET, message="", session=session("FAILED"), last_status=None, last_status_since=None)
    assert followed(ti, task, event=met.to_dict()) == {"alert"}
    late = WaitResult(end=WaitEnd.TIMED_OUT, message="late", session=None, last_status=None, last_status_since=None)
    assert followed(ti, task, event=late.to_dict()) == {"other"}


def test_in_a_mapped_group_the_instances_of_the_same_index_are_skipped(ti: TaskInstance) -> None:
    ti.map_index = 2
    task = operator(session=session("FAILED"), **BRANCHES)
    ti.task = task  # type: ignore[attr-defined]
    with pytest.raises(DownstreamTasksSkipped) as skipped:
        task.execute(ti.context)
    assert set(skipped.value.tasks) == {("load", 2), ("clean", 2), ("other", 2), ("group.first", 2)}


def test_airflow_recognises_the_operator_as_a_branch() -> None:
    assert operator(session=session(), default="other").inherits_from_skipmixin


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"meter_id": "1"}, "no branch is given"),
        ({"default": "other"}, "meter_id is missing: give it, or give session"),
        ({"default": "other", "session_id": "R-1"}, "meter_id is missing"),
        ({"default": "other", "meter_id": "1", "session": {"a": 1}}, "session must be the output of"),
        ({"default": "other", "meter_id": " "}, "meter_id must not be empty"),
        ({"default": "other", "session": {"a": 1}, "session_id": "R-1"}, "session and session_id exclude each other"),
        (
            {"default": "other", "meter_id": "1", "session_id": "R-1", "since": "2026-01-01T00:00:00Z"},
            "exclude each other",
        ),
        ({"default": "other", "meter_id": "1", "since": "yesterday"}, "since must be an ISO 8601 time"),
        ({"default": "other", "meter_id": "1", "since": "2026-01-01T00:00:00"}, "since must be a time with a zone"),
        ({"meter_id": "1", "branches": {"NEVER_RUN": "x"}}, "branches: no session is ever NEVER_RUN"),
        ({"meter_id": "1", "branches": {"? -> COMPLETED": "x"}}, "branches: '[?]' is no status; Zuora documents"),
        ({"meter_id": "1", "branches": {"RUNNING -> ": "x"}}, "branches"),
        ({"meter_id": "1", "branches": {"?": "x"}}, "branches: '[?]' is no status; Zuora documents"),
        ({"meter_id": "1", "branches": {"CANCELED": "x", "cancelled": "y"}}, "branches has a status twice"),
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


def test_the_note_lists_the_followed_and_the_skipped_branches(ti: TaskInstance, notes: list[TaskNote]) -> None:
    task = operator(session=session("FAILED", evidence="callout", certain=True), on_failed="group", on_completed="load")
    assert followed(ti, task) == {"group.first"}
    (note,) = notes
    assert (note.kind, note.meter_id, note.session_id) == ("branch", "1001", "R-00000001")
    assert (note.status, note.evidence, note.certain) == ("FAILED", "callout", True)
    assert note.message == "Session R-00000001 of meter 1001 is FAILED, by callout: following group."
    assert note.followed == ("group",)
    assert set(note.skipped) == set(TASKS)
    assert (note.dag_id, note.run_id, note.task_id) == ("dag", ti.run_id, "task")
    assert (note.map_index, note.try_number) == (-1, 1)


def test_the_note_has_the_reason_of_a_failed_branch(ti: TaskInstance, notes: list[TaskNote]) -> None:
    with pytest.raises(MediationMisconfigured):
        followed(ti, operator(session=session("CANCELED"), on_completed="load"))
    (note,) = notes
    assert note.message.startswith("Session R-00000001 is CANCELED, which has no branch")
    assert (note.status, note.followed, note.skipped) == ("CANCELED", (), ())


def test_the_note_of_a_branch_that_timed_out(ti: TaskInstance, notes: list[TaskNote]) -> None:
    task = operator(meter_id="1001", session_id="R-7", on_completed="load", on_timeout=["alert", "other"])
    late = WaitResult(end=WaitEnd.TIMED_OUT, message="The deadline passed.").to_dict()
    assert followed(ti, task, event=late) == {"alert", "other"}
    (note,) = notes
    assert (note.meter_id, note.session_id, note.status) == ("1001", "R-7", None)
    assert (note.message, note.followed) == ("The deadline passed.", ("alert", "other"))
