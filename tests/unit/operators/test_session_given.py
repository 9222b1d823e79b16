"""A session given as an object to branch, summary and export; the sensor has its own tests."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import pytest
from airflow.sdk import DAG

from airflow_mediation_provider.exceptions import MediationMisconfigured
from airflow_mediation_provider.operators.audit import AuditTrailExportOperator, MeterSummaryOperator
from airflow_mediation_provider.operators.branch import MeterSessionBranchOperator

from .conftest import asked

if TYPE_CHECKING:
    from airflow_mediation_provider.simulator import Simulator

    from .conftest import TaskInstance

OPERATORS: dict[Any, dict[str, Any]] = {
    MeterSessionBranchOperator: {"default": []},
    MeterSummaryOperator: {},
    AuditTrailExportOperator: {"wait_for_completion": False},
}
SESSION: dict[str, Any] = {
    "meter_id": "1002",
    "session_id": "R-00000001",
    "run_type": "NORMAL",
    "status": "FAILED",
    "started_at": "2026-01-01T00:00:00+00:00",
    "observed_at": "2026-01-01T00:00:00+00:00",
    "source": "poll",
    "evidence": "poll",
    "certain": False,
}
FORMS = {"object": lambda it: it, "JSON": json.dumps, "repr": repr}


def make(operator: Any, **arguments: Any) -> Any:
    """Return the task with its arguments as a worker renders them; each was a template."""
    templates = dict.fromkeys(arguments, "{{ params.it }}")
    with DAG("dag", schedule=None):
        made = operator(task_id="task", **{**OPERATORS[operator], **templates})
    for name, value in arguments.items():
        setattr(made, name, value)
    return made


@pytest.mark.parametrize("operator", OPERATORS)
@pytest.mark.parametrize("name", ["session", "session_id"])
@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize(
    ("argument", "given", "own"),
    [
        ("meter_id", "1005", "1002"),
        ("run_type", "DEBUG", "NORMAL"),
        ("mediation_conn_id", "zuora_eu", "zuora_us"),
    ],
)
def test_an_argument_that_contradicts_the_session_fails_at_once(
    sim: Simulator, ti: TaskInstance, operator: Any, name: str, form: str, argument: str, given: str, own: str
) -> None:
    session = {**SESSION, "mediation_conn_id": "zuora_us" if argument == "mediation_conn_id" else None}
    task = make(operator, **{name: FORMS[form](session), argument: given})

    with pytest.raises(MediationMisconfigured) as caught:
        task.execute(ti.context)

    assert str(caught.value) == (
        f"{argument} is '{given}', but session R-00000001, which was given, has '{own}': leave {argument} out, or give "
        f"that session's"
    )
    assert asked(sim) == 0


def test_a_version_that_contradicts_the_session_fails_the_branch(ti: TaskInstance) -> None:
    task = make(MeterSessionBranchOperator, session={**SESSION, "version": "0.0.1"}, version="0.0.2")

    with pytest.raises(MediationMisconfigured, match=r"version is '0\.0\.2', but session R-00000001"):
        task.execute(ti.context)


@pytest.mark.parametrize("operator", OPERATORS)
def test_a_contradiction_without_templates_is_found_when_the_dag_is_parsed(operator: Any) -> None:
    with pytest.raises(ValueError, match="meter_id is '1005', but session R-00000001, which was given, has '1002'"):
        operator(task_id="task", session=SESSION, meter_id=1005, **OPERATORS[operator])


@pytest.mark.parametrize("name", ["session", "session_id"])
@pytest.mark.parametrize("form", FORMS)
def test_missing_arguments_are_taken_from_the_session(ti: TaskInstance, name: str, form: str) -> None:
    session = {**SESSION, "run_type": "DEBUG", "status": "TESTING_PASSED"}
    task = make(MeterSummaryOperator, **{name: FORMS[form](session)})

    report = task.execute(ti.context)

    assert {key: report[key] for key in ("meter_id", "session_id", "run_type")} == {
        "meter_id": "1002",
        "session_id": "R-00000001",
        "run_type": "DEBUG",
    }


def test_an_argument_equal_to_the_sessions_is_accepted(ti: TaskInstance) -> None:
    task = make(MeterSummaryOperator, session=SESSION, meter_id=1002, run_type="normal")

    assert task.execute(ti.context)["meter_id"] == "1002"


def test_the_connection_is_taken_from_the_session(ti: TaskInstance) -> None:
    task = make(MeterSummaryOperator, session={**SESSION, "mediation_conn_id": "zuora_eu"})

    with pytest.raises(MediationMisconfigured, match="Connection 'zuora_eu' was not found"):
        task.execute(ti.context)


@pytest.mark.parametrize("operator", OPERATORS)
@pytest.mark.parametrize("name", ["meter_id", "mediation_conn_id"])
@pytest.mark.parametrize("value", [None, "None", "", {"session_id": "R-1"}, "https://zuora.example/1", "9" * 251])
def test_an_argument_rendered_to_an_invalid_id_fails_at_once(
    sim: Simulator, ti: TaskInstance, operator: Any, name: str, value: Any
) -> None:
    task = make(operator, **{"meter_id": "1002", name: value})

    with pytest.raises(MediationMisconfigured, match=name):
        task.execute(ti.context)
    assert asked(sim) == 0
