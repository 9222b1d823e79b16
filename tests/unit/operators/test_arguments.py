"""Arguments of every operator: impossible ones are refused when the Dag is parsed, with the allowed values."""

from __future__ import annotations

import inspect
import math
from typing import TYPE_CHECKING, Any

import pytest
from airflow.sdk import DAG, task

from airflow_mediation_provider.exceptions import MediationMisconfigured
from airflow_mediation_provider.operators.audit import AuditTrailExportOperator, MeterSummaryOperator
from airflow_mediation_provider.operators.branch import MeterSessionBranchOperator
from airflow_mediation_provider.operators.meter import RunMeterOperator, StopMeterOperator
from airflow_mediation_provider.sensors.meter_session import MeterSessionSensor

if TYPE_CHECKING:
    from collections.abc import Iterator

    from .conftest import TaskInstance

NEEDED: dict[Any, dict[str, Any]] = {
    MeterSessionSensor: {},
    RunMeterOperator: {},
    StopMeterOperator: {},
    MeterSessionBranchOperator: {"default": "next"},
    MeterSummaryOperator: {},
    AuditTrailExportOperator: {},
}


def make(operator: Any, **arguments: Any) -> Any:
    with DAG("dag", schedule=None):
        return operator(**{"task_id": "task", "meter_id": "1001", **NEEDED[operator], **arguments})


def arguments_of(operator: Any) -> Iterator[tuple[str, inspect.Parameter]]:
    for each in operator.__mro__:
        if each.__module__.startswith("airflow_mediation_provider") and "__init__" in vars(each):
            for name, parameter in inspect.signature(each.__init__).parameters.items():
                if parameter.kind is parameter.KEYWORD_ONLY:
                    yield name, parameter


FLAGS = [
    (operator, name)
    for operator in NEEDED
    for name, parameter in arguments_of(operator)
    if str(parameter.annotation) == "bool"
]
DURATIONS = [
    (operator, name)
    for operator in NEEDED
    for name, parameter in arguments_of(operator)
    if "timedelta | float" in str(parameter.annotation)
]


def test_flags_and_durations_are_found() -> None:
    assert (RunMeterOperator, "stop_meter_on_kill") in FLAGS
    assert (StopMeterOperator, "force") in FLAGS
    assert (MeterSessionBranchOperator, "settle") in DURATIONS
    assert len(FLAGS) > 15
    assert len(DURATIONS) > 15


@pytest.mark.parametrize(("operator", "name"), FLAGS)
@pytest.mark.parametrize("value", ["{{ params.sure }}", "False", 0, None])
def test_a_flag_must_be_a_bool(operator: Any, name: str, value: Any) -> None:
    with pytest.raises(ValueError, match=f"{name} must be True or False"):
        make(operator, **{name: value})


@pytest.mark.parametrize(("operator", "name"), DURATIONS)
@pytest.mark.parametrize("value", [-1, math.inf, math.nan, 1e15, True, "60"])
def test_a_duration_must_be_within_the_range_of_the_clock(operator: Any, name: str, value: Any) -> None:
    with pytest.raises(ValueError, match=f"{name} must be a timedelta or a number of seconds"):
        make(operator, **{name: value})


@pytest.mark.parametrize("operator", NEEDED)
@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"mediation_conn_id": ""}, "mediation_conn_id must not be empty"),
        ({"mediation_conn_id": 5}, "mediation_conn_id must be a text, not 5"),
        ({"meter_id": ("1",)}, r"meter_id must be one meter here, not .*: only a schedule takes several or ANY_METER"),
        ({"meter_id": "*"}, "meter_id must be one meter here, not '[*]': only a schedule takes several or ANY_METER"),
        ({"meter_id": 1.5}, "meter_id must be a text, not 1.5"),
        ({"meter_id": True}, "meter_id must be a text, not True"),
        ({"version": 1}, "version must be a text, not 1"),
        ({"session_id": " "}, "session_id is ' ', which names no session"),
        ({"session_id": 5.5}, "session_id must be a text, not 5.5"),
        ({"since": ""}, "since must be a time with a zone, not ''"),
        ({"query_from": ""}, "query_from must be a time with a zone, not ''"),
        ({"query_from": "2026-11-30T00:00Z", "query_to": "2026-11-29T00:00Z"}, r"query_to .* must be after query_from"),
        ({"query_from": "{{ ds }}", "query_to": "2026-11-29T00:00Z"}, None),
        ({"previous_statuses": []}, "previous_statuses must name at least one status; leave it out for any"),
        (
            {"meter_id": None, "session": "R-00000001"},
            "not 'R-00000001'; an id goes into session_id",
        ),
        ({"meter_id": None, "session": 5}, "session must be the output of a RunMeterOperator or MeterSessionSensor"),
        ({"meter_id": None, "session": ""}, "session is '', which names no session"),
        ({"statuses": {"COMPLETED": 1}}, "statuses must be a status or a list of statuses"),
        ({"fail_on": {}}, "fail_on must be a status or a list of statuses"),
        ({"fail_on": 5}, "fail_on must be a status or a list of statuses"),
        ({"fail_on": "NEVER_RUN"}, "fail_on: no session is ever NEVER_RUN"),
        ({"run_statuses": None}, None),
        ({"run_statuses": 5}, "run_statuses must be a status or a list of statuses"),
        ({"run_statuses": "DONE"}, "run_statuses must be one of"),
        ({"meter_id": "1,010"}, "meter_id must be one id, .*, not '1,010'"),
        ({"meter_id": "https://zuora.example/meters/1"}, "meter_id must be one id"),
        ({"version": "0.0.1/2"}, "version must be one id"),
        ({"mediation_conn_id": "None"}, "mediation_conn_id is 'None', which names nothing"),
        ({"group_by": None}, "group_by must be a list of sessionId"),
        ({"group_by": ["session"]}, "group_by must be a list of sessionId, processorId, errorCode, not"),
    ],
)
def test_an_impossible_argument_is_refused(operator: Any, arguments: dict[str, Any], message: str | None) -> None:
    known = {name for name, _ in arguments_of(operator)}
    if not known.issuperset(arguments):
        with pytest.raises(TypeError):
            make(operator, **arguments)
    elif message is None:
        make(operator, **arguments)
    else:
        with pytest.raises(ValueError, match=message):
            make(operator, **arguments)


def test_branches_that_only_a_test_reaches_are_refused_for_a_normal_session() -> None:
    tests = {"TESTING_PASSED": "next", "RUNNING -> TESTING_FAILED": "next"}
    with pytest.raises(ValueError, match=r"branches: only DEBUG sessions reach .* or TESTING_FAILED: add"):
        make(MeterSessionBranchOperator, default=None, branches=tests)
    make(MeterSessionBranchOperator, default=None, branches=tests, run_type="DEBUG")
    make(MeterSessionBranchOperator, default=None, branches=tests, run_type="{{ params.run_type }}")
    make(MeterSessionBranchOperator, default=None, branches=tests, session_id="R-1")
    make(MeterSessionBranchOperator, default=None, branches={**tests, "COMPLETED": "next"})
    make(MeterSessionBranchOperator, default="next", branches=tests)


@pytest.mark.parametrize("arguments", [{}, {"session": "{{ params.session }}", "meter_id": None}])
def test_an_unknown_status_warns_once(arguments: dict[str, Any]) -> None:
    with pytest.warns(UserWarning, match="statuses: unknown status 'COMPLETE_ALL'") as warned:
        make(MeterSessionSensor, **arguments, statuses=["COMPLETED", "COMPLETE_ALL"])
    assert len(warned) == 1


@pytest.mark.parametrize("operator", [RunMeterOperator, MeterSummaryOperator, AuditTrailExportOperator])
def test_both_run_types_are_for_waits_alone(operator: Any) -> None:
    with pytest.raises(ValueError, match=r"run_type must be one of NORMAL, DEBUG, not \['NORMAL', 'DEBUG'\]"):
        make(operator, run_type=["NORMAL", "DEBUG"])


def test_both_run_types_may_be_rendered_only_for_waits(ti: TaskInstance) -> None:
    for operator in (MeterSessionBranchOperator, MeterSummaryOperator):
        made = make(operator, run_type=["NORMAL", "{{ params.also }}"])
        made.run_type = ["NORMAL", "DEBUG"]
        if operator is MeterSessionBranchOperator:
            assert made._question(ti.context)[1].run_types == ("NORMAL", "DEBUG")
        else:
            made.query_from = "2025-12-31T00:00:00Z"
            with pytest.raises(MediationMisconfigured, match="run_type must be one of NORMAL, DEBUG, not"):
                made.execute(ti.context)


@pytest.mark.parametrize("operator", NEEDED)
def test_a_templated_argument_may_be_the_output_of_a_task(operator: Any) -> None:
    @task
    def before() -> str:
        return "1"

    names = set(operator.template_fields) & {"meter_id", "version", "mediation_conn_id", "session_id"}
    with DAG("dag", schedule=None):
        made = operator(task_id="task", **{"meter_id": "1", **dict.fromkeys(names, before()), **NEEDED[operator]})
    assert made.upstream_task_ids == {"before"}


@pytest.mark.parametrize(
    ("arguments", "statuses", "fail_on"),
    [
        ({"fail_on": "failed"}, ("CANCELED", "COMPLETED"), ("FAILED",)),
        ({"fail_on": [" canceled"]}, ("COMPLETED", "FAILED"), ("CANCELED",)),
        ({"fail_on": {"CANCELED", "FAILED"}}, ("COMPLETED",), ("CANCELED", "FAILED")),
        ({"statuses": "completed"}, ("COMPLETED",), None),
    ],
)
def test_statuses_of_a_run_may_be_one_name_and_in_any_case(
    arguments: dict[str, Any], statuses: tuple[str, ...], fail_on: tuple[str, ...] | None
) -> None:
    run = make(RunMeterOperator, **arguments)
    assert (run.statuses, run.fail_on) == (statuses, fail_on)


@pytest.mark.parametrize("operator", [MeterSessionSensor, MeterSessionBranchOperator, MeterSummaryOperator])
@pytest.mark.parametrize("rendered", ["", "None", None, {"session_id": None, "meter_id": "1001"}])
def test_a_session_id_rendered_to_none_fails(ti: TaskInstance, operator: Any, rendered: Any) -> None:
    made = make(operator, session_id="{{ ti.xcom_pull('run')['session_id'] }}")
    made.session_id = rendered
    with pytest.raises(MediationMisconfigured, match=r"session_id is .*, which names no session"):
        made.execute(ti.context)


@pytest.mark.parametrize("operator", [MeterSessionBranchOperator, MeterSummaryOperator])
def test_a_session_id_may_be_the_output_of_its_run(ti: TaskInstance, operator: Any) -> None:
    ti.task_id = "run"
    run = make(RunMeterOperator, task_id="run", wait_for_completion=False).execute(ti.context)
    ti.task_id = "task"
    made = make(operator, session_id=run, **({"timeout": 1} if operator is MeterSessionBranchOperator else {}))
    if operator is MeterSummaryOperator:
        assert made.execute(ti.context)["session_id"] == run["session_id"]
    else:
        _, condition = made._question(ti.context)
        assert condition is not None
        assert condition.session_id == run["session_id"]
