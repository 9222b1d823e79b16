"""Each sensor and branch of the table in docs/schedules.md ends well by the sessions that fit its row, and no other."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
from airflow.providers.standard.operators.empty import EmptyOperator
from airflow.sdk import DAG

from airflow_mediation_provider.operators.branch import MeterSessionBranchOperator
from airflow_mediation_provider.sensors.meter_session import MeterSessionSensor
from tests.unit.condition_table import ARRIVALS, ROWS, Row
from tests.unit.fast_lane import modes
from tests.unit.task_stage import Ending, set_up
from tests.unit.test_outcomes import MODES
from tests.unit.virtual import Clock, Zuora
from tests.unit.virtual_feed import Journal

if TYPE_CHECKING:
    from collections.abc import Callable

METER = "1001"
BRANCH_MODES: dict[str, dict[str, Any]] = {"poke": {"deferrable": False}, "deferrable": {"deferrable": True}}
# A poll reports neither a run type nor the status before, so these fit by a poll too, though not as certain.
ALSO_BY_POLLS = {
    "a NORMAL session of a meter ends well": {"unknown run type"},
    "a session of either run type ends well": {"unknown run type"},
    "a NORMAL session is canceled": {"test canceled"},
    "a DEBUG session is canceled": {"canceled"},
}
# And these do not: no poll shows FAILED as the end of a test.
NOT_BY_POLLS = {"test failed as a live one"}


def conditions(column: str) -> list[Any]:
    return [pytest.param(row, id=row.what) for row in ROWS if column in row.cells]


def sensor(code: str, mode: str) -> MeterSessionSensor:
    def made(**arguments: Any) -> MeterSessionSensor:
        return MeterSessionSensor(task_id="wait", poke_interval=20, timeout=400, **MODES[mode], **arguments)

    with DAG("dag", schedule=None):
        task: MeterSessionSensor = eval(code, {"Sensor": made})
    return task


def branch(code: str, mode: str) -> MeterSessionBranchOperator:
    def made(**arguments: Any) -> MeterSessionBranchOperator:
        task = MeterSessionBranchOperator(
            task_id="wait", poke_interval=20, timeout=400, **BRANCH_MODES[mode], **arguments
        )
        task >> [EmptyOperator(task_id="load"), EmptyOperator(task_id="alert")]
        return task

    with DAG("dag", schedule=None):
        task: MeterSessionBranchOperator = eval(code, {"Branch": made})
    return task


def ended_well(make: Callable[[], Any], monkeypatch: pytest.MonkeyPatch, *, callouts: bool) -> dict[str, Ending]:
    """Play a task once for each session of two meters, and return how it ended, by the session's name.

    Without the tries that failed or were skipped, and the branches that skip all tasks.
    """
    found = {}
    for name, arrival in ARRIVALS.items():
        meter = arrival.get("meter", METER)
        if meter not in (METER, "1002"):
            continue
        steps = [(10.0, arrival.get("before", "RUNNING")), (100.0, arrival["status"])]
        stage = set_up(clock := Clock(), Zuora(clock), monkeypatch)
        stage.zuora.script(METER, (0, "NEVER_RUN"), *(steps if meter == METER else ()))
        if callouts:
            stage.journal = Journal(clock)
            run_type = arrival.get("run_type", "DEBUG" if arrival.get("debug") else "NORMAL")
            stage.journal.session("R-1", *steps, meter=meter, run_type=run_type)
        ending = stage.play(make)
        if ending.state == "success" and ending.xcom:
            found[name] = ending
    return found


SOURCES = ("callouts", "polls")


def by_polls(row: Row) -> set[str]:
    if "previous_statuses" in row.cells["sensor"]:
        return set()
    return (row.fits | ALSO_BY_POLLS.get(row.what, set())) - NOT_BY_POLLS


@pytest.mark.parametrize("how", modes(f"{source}-{mode}" for source in SOURCES for mode in MODES))
@pytest.mark.parametrize("row", conditions("sensor"))
def test_a_sensor_ends_well_by_what_its_row_names(monkeypatch: pytest.MonkeyPatch, row: Row, how: str) -> None:
    callouts, mode = how.startswith("callouts"), how.partition("-")[2]
    found = ended_well(lambda: sensor(row.cells["sensor"], mode), monkeypatch, callouts=callouts)
    assert found.keys() == (row.fits if callouts else by_polls(row))
    for name, ending in found.items():
        session, arrival = ending.xcom, ARRIVALS[name]
        assert (session["status"], session["certain"]) == (arrival["status"], callouts)
        if name in row.fits:
            assert session["run_type"] == ("DEBUG" if arrival.get("debug") else "NORMAL")


@pytest.mark.parametrize("how", modes(f"{source}-{mode}" for source in SOURCES for mode in BRANCH_MODES))
@pytest.mark.parametrize("row", conditions("branch"))
def test_a_branch_follows_what_its_row_names(monkeypatch: pytest.MonkeyPatch, row: Row, how: str) -> None:
    callouts, mode = how.startswith("callouts"), how.partition("-")[2]
    # Airflow's handling of a branch needs a whole task instance.
    monkeypatch.setattr(MeterSessionBranchOperator, "do_branch", lambda _self, _context, followed: followed)
    found = ended_well(lambda: branch(row.cells["branch"], mode), monkeypatch, callouts=callouts)
    assert found.keys() == (row.fits if callouts else by_polls(row))
    assert {ending.xcom for ending in found.values()} <= {"load", "alert"}


def test_the_rows_with_a_sensor_have_a_branch() -> None:
    having = {column: {row.what for row in ROWS if column in row.cells} for column in ("sensor", "branch")}
    assert having["sensor"] == having["branch"]
    assert len(having["sensor"]) == 9
