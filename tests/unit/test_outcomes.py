"""The outcome table: what happened to the session and to Airflow, and what becomes of the task, alike in every mode."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
from airflow.sdk import DAG
from airflow.sdk.exceptions import AirflowFailException

from airflow_mediation_provider.exceptions import (
    MediationMisconfigured,
    MediationUnreachable,
    MeterSessionFailed,
    MeterSessionTimeout,
    MeterSessionUncertain,
)
from airflow_mediation_provider.protocol.errors import MisconfigurationError, PermanentError, TransientError
from airflow_mediation_provider.protocol.wait import SessionWait
from airflow_mediation_provider.sensors.meter_session import MeterSessionSensor
from airflow_mediation_provider.version_compat import AIRFLOW_V_3_3_PLUS

if TYPE_CHECKING:
    from tests.unit.task_stage import Stage

MODES: dict[str, dict[str, Any]] = {
    "poke": {"mode": "poke", "deferrable": False},
    "reschedule": {"mode": "reschedule", "deferrable": False},
    "deferrable": {"deferrable": True},
    "started in the triggerer": {"start_from_trigger": True},
}
if not AIRFLOW_V_3_3_PLUS:
    del MODES["started in the triggerer"]  # it renders no templates there, so the sensor refuses it
pytestmark = pytest.mark.parametrize("mode", MODES)
HEALTHY = [(0, "COMPLETED"), (100, "INITIALIZING"), (130, "RUNNING")]
DOWN = TransientError("connection refused")


def sensor(mode: str, **arguments: Any):
    def make() -> MeterSessionSensor:
        defaults: dict[str, Any] = {"task_id": "wait", "meter_id": "m", "poke_interval": 20, "timeout": 7200}
        with DAG("dag", schedule=None):
            return MeterSessionSensor(**{**defaults, **MODES[mode], **arguments})

    return make


@pytest.mark.parametrize("soft_fail", [False, True])
def test_condition_met(stage: Stage, mode: str, soft_fail: bool):
    stage.zuora.script("m", *HEALTHY, (854, "COMPLETED"))
    ending = stage.play(sensor(mode, soft_fail=soft_fail))
    assert ending.state == "success"
    assert ending.xcom["status"] == "COMPLETED"
    assert ending.xcom["meter_id"] == "m"
    assert ending.xcom["evidence"] == "poll"
    assert ending.xcom["certain"] is False
    assert 854 <= stage.clock.seconds < 1000
    # A wait that was started in the triggerer and is met never sees a worker; a deferred one sees one, to begin.
    assert ending.workers == {"poke": 1, "deferrable": 1, "started in the triggerer": 0}.get(mode, ending.workers)


@pytest.mark.parametrize(("soft_fail", "state"), [(False, "failed"), (True, "skipped")])
@pytest.mark.parametrize("status", ["FAILED", "CANCELED"])
def test_a_status_of_fail_on(stage: Stage, mode: str, soft_fail: bool, state: str, status: str):
    stage.zuora.script("m", *HEALTHY, (854, status))
    ending = stage.play(sensor(mode, soft_fail=soft_fail))
    assert ending.state == state
    assert status in str(ending.error)
    if not soft_fail:
        assert isinstance(ending.error, MeterSessionFailed)
        assert isinstance(ending.error, AirflowFailException)
        assert ending.error.session["status"] == status


@pytest.mark.parametrize(("soft_fail", "state"), [(False, "failed"), (True, "skipped")])
def test_the_deadline_passed(stage: Stage, mode: str, soft_fail: bool, state: str):
    stage.zuora.script("m", *HEALTHY)
    ending = stage.play(sensor(mode, soft_fail=soft_fail, timeout=1800))
    assert ending.state == state
    assert "RUNNING since 2026-03-31 09:0" in str(ending.error)
    assert stage.clock.seconds == pytest.approx(1800, abs=1)
    if not soft_fail:
        assert isinstance(ending.error, MeterSessionTimeout)


@pytest.mark.parametrize("soft_fail", [False, True])
def test_zuora_unreachable_for_long_fails_and_the_retry_waits_on(stage: Stage, mode: str, soft_fail: bool):
    # The session ends while Zuora is out of reach, in the status that the meter had before it began.
    stage.zuora.script("m", *HEALTHY, (300, DOWN), (5000, "COMPLETED"))
    if mode == "started in the triggerer":  # no worker ever kept anything; the retry sees the session go on
        stage.zuora.script("m", *HEALTHY, (300, DOWN), (5000, "RUNNING"), (5300, "COMPLETED"))
    make = sensor(mode, soft_fail=soft_fail, max_unreachable=1800)
    ending = stage.play(make)
    assert ending.state == "up_for_retry"
    assert isinstance(ending.error, MediationUnreachable)
    assert 300 + 1800 <= stage.clock.seconds < 300 + 1800 + 200
    stage.clock.seconds = 4000
    ending = stage.play(make)
    assert ending.state == "success"
    assert stage.clock.seconds < 5500


@pytest.mark.parametrize("soft_fail", [False, True])
@pytest.mark.parametrize(
    "error",
    [
        MisconfigurationError("Connection 'mediation_default' was not found."),
        MisconfigurationError("The client secret is wrong.", status_code=401),
        PermanentError("Meter m does not exist.", status_code=404),
    ],
    ids=["no connection", "401", "404"],
)
def test_misconfiguration_fails_at_once_and_is_never_hidden(stage: Stage, mode: str, soft_fail: bool, error: Any):
    stage.zuora.script("m", (0, error))
    ending = stage.play(sensor(mode, soft_fail=soft_fail))
    assert ending.state == "failed"
    assert isinstance(ending.error, MediationMisconfigured)
    assert str(error) in str(ending.error)
    assert stage.clock.seconds < 2
    assert len(stage.zuora.asked) == 1


@pytest.mark.parametrize("soft_fail", [False, True])
def test_an_argument_that_renders_to_nonsense_is_a_misconfiguration(stage: Stage, mode: str, soft_fail: bool):
    ending = stage.play(sensor(mode, soft_fail=soft_fail, statuses=["{{ 'COMPLETD' }}"]))
    assert ending.state == "failed"
    assert isinstance(ending.error, MediationMisconfigured)
    assert "statuses" in str(ending.error)
    assert stage.zuora.asked == []


@pytest.mark.parametrize("soft_fail", [False, True])
def test_required_certainty_is_not_given_by_a_poll(stage: Stage, mode: str, soft_fail: bool):
    stage.zuora.script("m", *HEALTHY, (854, "COMPLETED"))
    ending = stage.play(sensor(mode, soft_fail=soft_fail, require_certain=True))
    assert ending.state == "failed"
    assert isinstance(ending.error, MeterSessionUncertain)


def test_certain_where_nobody_else_runs_the_meter(stage: Stage, mode: str):
    stage.zuora.script("m", *HEALTHY, (854, "COMPLETED"))
    ending = stage.play(sensor(mode, require_certain=True, exclusive=True))
    assert ending.state == "success"
    assert ending.xcom["certain"] is True


def test_a_passing_outage_ends_no_wait(stage: Stage, mode: str):
    stage.zuora.script("m", *HEALTHY, (200, DOWN), (230, TransientError("429", status_code=429, retry_after=30)))
    stage.zuora.scripts["m"] += [(600, RuntimeError("a bug of ours")) if "er" in mode[:3] else (600, DOWN)]
    stage.zuora.scripts["m"] += [(900, "RUNNING"), (1000, "COMPLETED")]
    ending = stage.play(sensor(mode))
    assert ending.state == "success"
    assert min(stage.zuora.gaps("m")) >= 15


def test_a_crashed_trigger_is_no_answer(stage: Stage, mode: str):
    stage.zuora.script("m", *HEALTHY, (854, "COMPLETED"))
    stage.trigger_crashes = 2
    ending = stage.play(sensor(mode, soft_fail=True))
    assert ending.state == "success"
    assert ending.xcom["status"] == "COMPLETED"


def test_a_trigger_that_always_crashes_leaves_the_wait_on_a_worker(stage: Stage, mode: str):
    stage.zuora.script("m", *HEALTHY, (854, "COMPLETED"))
    stage.trigger_crashes = 400
    ending = stage.play(sensor(mode))
    assert ending.state == "success"
    assert ending.workers <= 4 or mode == "reschedule"


def test_a_triggerer_that_dies_is_replaced_by_another(stage: Stage, mode: str):
    stage.zuora.script("m", (0, "COMPLETED"), (100, "RUNNING"), (854, "COMPLETED"))
    stage.triggerer_dies_at = 400
    ending = stage.play(sensor(mode, session_id="S-1"))
    assert ending.state == "success"
    assert stage.clock.seconds < 1100


def test_a_triggerer_that_dies_takes_no_knowledge_along(stage: Stage, mode: str):
    # The session began and was seen, and ends while no triggerer looks: as before, the meter is COMPLETED.
    stage.zuora.script("m", (0, "COMPLETED"), (100, "RUNNING"), (401, "COMPLETED"))
    stage.triggerer_dies_at = 400
    ending = stage.play(sensor(mode))
    assert ending.state == "success"
    assert stage.clock.seconds < 600
    assert "mediation_session_wait" not in stage.xcoms


def test_a_trigger_that_crashes_takes_no_knowledge_along(stage: Stage, mode: str, monkeypatch: pytest.MonkeyPatch):
    stage.zuora.script("m", (0, "COMPLETED"), (100, "RUNNING"), (401, "COMPLETED"))

    def crash_late(wait: Any, reading: Any, others: Any = ()) -> Any:
        if stage.clock.seconds > 380 and not crashed and "deferrable" in MODES[mode]:
            crashed.append(1)
            raise ZeroDivisionError
        return observe(wait, reading, others)

    observe, crashed = SessionWait.observe, []
    if mode == "deferrable":
        monkeypatch.setattr(SessionWait, "observe", crash_late)
    ending = stage.play(sensor(mode))
    assert ending.state == "success"
    assert stage.clock.seconds < 600
    assert len(crashed) == (mode == "deferrable")


def test_a_deadline_is_kept_when_the_trigger_moves(stage: Stage, mode: str):
    stage.zuora.script("m", *HEALTHY)
    stage.triggerer_dies_at = 1000
    ending = stage.play(sensor(mode, timeout=1800))
    assert ending.state == "failed"
    assert isinstance(ending.error, MeterSessionTimeout)
    assert stage.clock.seconds == pytest.approx(1800, abs=1)


def test_no_triggerer_at_all_ends_by_the_deadline_with_a_last_look(stage: Stage, mode: str):
    stage.zuora.script("m", *HEALTHY)
    stage.triggerer_is_down = True
    ending = stage.play(sensor(mode, timeout=1800))
    assert ending.state == "failed"
    assert isinstance(ending.error, MeterSessionTimeout)
    assert 1800 <= stage.clock.seconds <= 1861


def test_an_event_without_a_result_is_no_answer(stage: Stage, mode: str):
    stage.zuora.script("m", (0, "RUNNING"), (700, "COMPLETED"))
    task = sensor(mode, session_id="S-1")()
    for event in (None, {}, "done", {"end": "WHAT"}):
        assert task.read_event(event) is None
    stage.try_number = 1
    if mode == "poke":
        session = task.resume_execution("execute_complete", {"event": None}, stage.context(stage.clock.now()))
        assert session["status"] == "COMPLETED"


def test_the_links_are_there_before_the_wait(stage: Stage, mode: str):
    stage.zuora.script("m", (0, "RUNNING"), (700, "COMPLETED"))
    stage.play(sensor(mode, session_id="S-1"))
    page = "/plugin/mediation-sessions/mediation/session?conn=mediation_default&meter=m&session=S-1"
    assert stage.xcoms == {"mediation_session_link": "https://zuora.example/m/S-1", "mediation_session_page": page}


def test_where_no_session_is_named_the_link_leads_to_what_the_task_waits_for(stage: Stage, mode: str):
    stage.zuora.script("m", *HEALTHY, (854, "COMPLETED"))
    stage.play(sensor(mode))
    page = "/plugin/mediation-sessions/mediation/task?dag_id=dag&run_id=run&task_id=wait"
    # In the triggerer each push takes a message to and fro; there the task's tab alone shows it.
    pushed = (
        {} if mode == "started in the triggerer" else {"mediation_session_link": "", "mediation_session_page": page}
    )
    assert stage.xcoms == pushed
