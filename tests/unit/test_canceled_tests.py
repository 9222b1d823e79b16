"""A DEBUG run that is canceled half-way ends its task at once: run and branch, with each kind of wait.

By callouts and by polls. The outcome tables contain the sensor.
"""

from __future__ import annotations

from datetime import datetime
from typing import TYPE_CHECKING, Any

import pytest
from airflow.providers.standard.operators.empty import EmptyOperator
from airflow.sdk import DAG

from airflow_mediation_provider.exceptions import MeterRunFailed
from airflow_mediation_provider.operators import branch, meter
from airflow_mediation_provider.operators.branch import MeterSessionBranchOperator
from airflow_mediation_provider.operators.meter import RunMeterOperator
from airflow_mediation_provider.worker import run_start
from tests.unit.virtual_feed import Journal

if TYPE_CHECKING:
    from tests.unit.task_stage import Stage

CANCELED_AT = 854
COMMON: dict[str, Any] = {
    "task_id": "wait",
    "meter_id": "m",
    "run_type": "DEBUG",
    "poke_interval": 20,
    "timeout": 86400,
}
pytestmark = [
    pytest.mark.parametrize("deferrable", [False, True], ids=["poke", "deferrable"]),
    pytest.mark.parametrize("callouts", [False, True], ids=["polls", "callouts"]),
]


@pytest.fixture(autouse=True)
def virtual_time(stage: Stage, monkeypatch: pytest.MonkeyPatch) -> None:
    class Datetime(datetime):
        @classmethod
        def now(cls, tz: Any = None) -> datetime:
            return stage.clock.now()

    for module in (branch, meter, run_start):
        monkeypatch.setattr(module, "datetime", Datetime)


def play_out(stage: Stage, *, callouts: bool, begins: int) -> None:
    """Let Zuora cancel the test, and send callouts if they are accepted."""
    stage.journal = Journal(stage.clock, callouts=callouts)
    stage.zuora.script("m", (0, "COMPLETED"), (begins, "TESTING"), (CANCELED_AT, "CANCELED"))
    if callouts:
        stage.journal.session("S-1", (begins, "TESTING"), (CANCELED_AT, "CANCELED"))


def is_at_once(stage: Stage) -> bool:
    """Return whether at most a few polls and the time in which a poll may be out of date have passed."""
    return CANCELED_AT <= stage.clock.seconds < CANCELED_AT + 100


def test_a_canceled_test_fails_its_run(stage: Stage, callouts: bool, deferrable: bool):
    play_out(stage, callouts=callouts, begins=1)

    def make() -> RunMeterOperator:
        with DAG("dag", schedule=None):
            return RunMeterOperator(**COMMON, source_options=[{"testDataId": 7}], deferrable=deferrable)

    ending = stage.play(make)
    assert isinstance(ending.error, MeterRunFailed)
    session = ending.error.session
    assert (session["status"], session["session_id"], session["certain"]) == ("CANCELED", "S-1", callouts)
    assert is_at_once(stage)


def test_a_canceled_test_follows_on_canceled(
    stage: Stage, monkeypatch: pytest.MonkeyPatch, callouts: bool, deferrable: bool
):
    play_out(stage, callouts=callouts, begins=10)
    # Airflow's handling of a branch needs a whole task instance, and is not tested here.
    monkeypatch.setattr(MeterSessionBranchOperator, "do_branch", lambda _self, _context, followed: followed)

    def make() -> MeterSessionBranchOperator:
        with DAG("dag", schedule=None):
            wait = MeterSessionBranchOperator(
                **COMMON, session_id="S-1", deferrable=deferrable, branches={"TESTING_PASSED": "go"}, on_canceled="stop"
            )
            wait >> [EmptyOperator(task_id="go"), EmptyOperator(task_id="stop")]
        return wait

    assert stage.play(make).xcom == "stop"
    (note,) = stage.journal.tasks
    assert (note.status, note.certain, note.followed) == ("CANCELED", callouts, ("stop",))
    assert is_at_once(stage)
