"""The outcome table: events of the session and of Airflow, and the end of the task, the same in every mode."""

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
from airflow_mediation_provider.protocol.waits.wait import SessionWait
from airflow_mediation_provider.protocol.zuora.errors import MisconfigurationError, PermanentError, TransientError
from airflow_mediation_provider.sensors.meter_session import MeterSessionSensor
from airflow_mediation_provider.version_compat import AIRFLOW_V_3_3_PLUS
from tests.unit.fast_lane import modes

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
pytestmark = pytest.mark.parametrize("mode", modes(MODES))
HEALTHY = [(0, "COMPLETED"), (100, "INITIALIZING"), (130, "RUNNING")]
DOWN = TransientError("connection refused")


def sensor(mode: str, **arguments: Any):
    def make() -> MeterSessionSensor:
        defaults: dict[str, Any] = {"task_id": "wait", "meter_id": "m", "poke_interval": 20, "timeout": 7200}
        with DAG("dag", schedule=None):
            return MeterSessionSensor(**{**defaults, **MODES[mode], **arguments})

    return make


@pytest.mark.parametrize("soft_fail", [False, True])
def test_a_met_condition_succeeds(stage: Stage, mode: str, soft_fail: bool):
    stage.zuora.script("m", *HEALTHY, (854, "COMPLETED"))
    ending = stage.play(sensor(mode, soft_fail=soft_fail))
    assert ending.state == "success"
    assert ending.xcom["status"] == "COMPLETED"
    assert ending.xcom["meter_id"] == "m"
    assert ending.xcom["evidence"] == "poll"
    assert ending.xcom["certain"] is False
    assert 854 <= stage.clock.seconds < 1000
    # A wait that was started in the triggerer and is met never runs on a worker; a deferred one starts on one.
    assert ending.workers == {"poke": 1, "deferrable": 1, "started in the triggerer": 0}.get(mode, ending.workers)


@pytest.mark.parametrize(("soft_fail", "state"), [(False, "failed"), (True, "skipped")])
@pytest.mark.parametrize("status", ["FAILED", "CANCELED"])
def test_a_status_of_fail_on_fails_without_a_retry(stage: Stage, mode: str, soft_fail: bool, state: str, status: str):
    stage.zuora.script("m", *HEALTHY, (854, status))
    ending = stage.play(sensor(mode, soft_fail=soft_fail))
    assert ending.state == state
    assert status in str(ending.error)
    if not soft_fail:
        assert isinstance(ending.error, MeterSessionFailed)
        assert isinstance(ending.error, AirflowFailException)
        assert ending.error.session["status"] == status


@pytest.mark.parametrize("status", ["TESTING_FAILED", "CANCELED"])
def test_another_final_status_of_a_debug_run_fails(stage: Stage, mode: str, status: str):
    stage.zuora.script("m", (0, "COMPLETED"), (100, "TESTING"), (854, status))
    ending = stage.play(sensor(mode, run_type="DEBUG", timeout=86400))
    assert ending.state == "failed"
    assert isinstance(ending.error, MeterSessionFailed)
    assert ending.error.session["status"] == status
    assert 854 <= stage.clock.seconds < 1000


def test_a_canceled_debug_run_can_meet_the_condition(stage: Stage, mode: str):
    stage.zuora.script("m", (0, "CANCELED"), (100, "TESTING"), (854, "CANCELED"))
    ending = stage.play(sensor(mode, run_type="DEBUG", statuses=["TESTING_PASSED", "cancelled"]))
    assert ending.state == "success"
    assert (ending.xcom["status"], ending.xcom["run_type"]) == ("CANCELED", "DEBUG")
    assert 854 <= stage.clock.seconds < 1000


@pytest.mark.parametrize("status", ["COMPLETED", "FAILED"])
def test_the_end_of_a_normal_run_hides_a_debug_run_that_continues(stage: Stage, mode: str, status: str):
    stage.zuora.script("m", (0, "NEVER_RUN"), (100, "TESTING"), (400, status), (854, "TESTING_PASSED"))
    ending = stage.play(sensor(mode, run_type="DEBUG"))
    assert ending.state == "success"
    assert ending.xcom["status"] == "TESTING_PASSED"


BOTH = ["NORMAL", "DEBUG"]


@pytest.mark.parametrize(
    ("own", "hiding", "end", "state"),
    [
        ("RUNNING", ["TESTING", "TESTING_PASSED"], "COMPLETED", "success"),
        ("RUNNING", ["TESTING", "TESTING_PASSED"], "FAILED", "failed"),
        ("TESTING", ["RUNNING", "COMPLETED"], "TESTING_PASSED", "success"),
        ("TESTING", ["RUNNING", "COMPLETED"], "TESTING_FAILED", "failed"),
    ],
)
def test_of_both_run_types_the_session_that_is_polled_first_decides(
    stage: Stage, mode: str, own: str, hiding: list[str], end: str, state: str
):
    others = [(second, status) for second, status in zip((300, 500), hiding, strict=True)]
    stage.zuora.script("m", (0, "NEVER_RUN"), (100, own), *others, (854, end))
    stage.trigger_crashes = 1  # the run type that was shown is not lost with the process
    ending = stage.play(sensor(mode, run_type=BOTH))
    assert ending.state == state
    session = ending.xcom if state == "success" else ending.error.session
    run_type = "NORMAL" if own == "RUNNING" else "DEBUG"
    assert (session["status"], session["run_type"], session["certain"]) == (end, run_type, False)
    assert 854 <= stage.clock.seconds < 1000


@pytest.mark.parametrize(("live", "certain"), [("RUNNING", True), ("TESTING", True), ("INITIALIZING", False)])
def test_a_canceled_session_is_certain_only_if_its_run_type_was_polled(
    stage: Stage, mode: str, live: str, certain: bool
):
    stage.zuora.script("m", (0, "COMPLETED"), (100, live), (854, "CANCELED"))
    ending = stage.play(sensor(mode, run_type=BOTH, statuses=["CANCELED"], exclusive=True))
    assert ending.state == "success"
    assert ending.xcom["run_type"] == ("DEBUG" if live == "TESTING" else "NORMAL")
    assert ending.xcom["certain"] is certain


@pytest.mark.parametrize(("soft_fail", "state"), [(False, "failed"), (True, "skipped")])
def test_a_passed_deadline_fails_with_the_last_status(stage: Stage, mode: str, soft_fail: bool, state: str):
    stage.zuora.script("m", *HEALTHY)
    ending = stage.play(sensor(mode, soft_fail=soft_fail, timeout=1800))
    assert ending.state == state
    assert "RUNNING since 2026-03-31 09:0" in str(ending.error)
    assert stage.clock.seconds == pytest.approx(1800, abs=1)
    if not soft_fail:
        assert isinstance(ending.error, MeterSessionTimeout)


@pytest.mark.parametrize("soft_fail", [False, True])
def test_a_long_outage_of_zuora_fails_and_the_retry_continues_the_wait(stage: Stage, mode: str, soft_fail: bool):
    # The session ends during Zuora's outage, in the status that the meter had before the session started.
    stage.zuora.script("m", *HEALTHY, (300, DOWN), (5000, "COMPLETED"))
    if mode == "started in the triggerer":  # no worker stored anything; the retry sees the session continue
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
def test_an_argument_rendered_to_an_invalid_value_is_a_misconfiguration(stage: Stage, mode: str, soft_fail: bool):
    ending = stage.play(sensor(mode, soft_fail=soft_fail, statuses=["{{ 'NEVER_RUN' }}"]))
    assert ending.state == "failed"
    assert isinstance(ending.error, MediationMisconfigured)
    assert "statuses" in str(ending.error)
    assert stage.zuora.asked == []


@pytest.mark.parametrize("soft_fail", [False, True])
def test_a_poll_does_not_satisfy_require_certain(stage: Stage, mode: str, soft_fail: bool):
    stage.zuora.script("m", *HEALTHY, (854, "COMPLETED"))
    ending = stage.play(sensor(mode, soft_fail=soft_fail, require_certain=True))
    assert ending.state == "failed"
    assert isinstance(ending.error, MeterSessionUncertain)


def test_a_poll_is_certain_with_exclusive(stage: Stage, mode: str):
    stage.zuora.script("m", *HEALTHY, (854, "COMPLETED"))
    ending = stage.play(sensor(mode, require_certain=True, exclusive=True))
    assert ending.state == "success"
    assert ending.xcom["certain"] is True


def test_a_short_outage_ends_no_wait(stage: Stage, mode: str):
    stage.zuora.script("m", *HEALTHY, (200, DOWN), (230, TransientError("429", status_code=429, retry_after=30)))
    stage.zuora.scripts["m"] += [(600, RuntimeError("a bug of ours")) if "er" in mode[:3] else (600, DOWN)]
    stage.zuora.scripts["m"] += [(900, "RUNNING"), (1000, "COMPLETED")]
    ending = stage.play(sensor(mode))
    assert ending.state == "success"
    assert min(stage.zuora.gaps("m")) >= 15


def test_a_wait_continues_after_a_crash_of_the_trigger(stage: Stage, mode: str):
    stage.zuora.script("m", *HEALTHY, (854, "COMPLETED"))
    stage.trigger_crashes = 2
    ending = stage.play(sensor(mode, soft_fail=True))
    assert ending.state == "success"
    assert ending.xcom["status"] == "COMPLETED"


def test_after_repeated_crashes_the_wait_stays_on_a_worker(stage: Stage, mode: str):
    stage.zuora.script("m", *HEALTHY, (854, "COMPLETED"))
    stage.trigger_crashes = 400
    ending = stage.play(sensor(mode))
    assert ending.state == "success"
    assert ending.workers <= 4 or mode == "reschedule"


def test_another_triggerer_takes_over_after_a_crash(stage: Stage, mode: str):
    stage.zuora.script("m", (0, "COMPLETED"), (100, "RUNNING"), (854, "COMPLETED"))
    stage.triggerer_dies_at = 400
    ending = stage.play(sensor(mode, session_id="S-1"))
    assert ending.state == "success"
    assert stage.clock.seconds < 1100


def test_the_state_of_a_wait_survives_a_crash_of_the_triggerer(stage: Stage, mode: str):
    # The session started and was seen, and ends while no triggerer polls: the meter is COMPLETED, as before.
    stage.zuora.script("m", (0, "COMPLETED"), (100, "RUNNING"), (401, "COMPLETED"))
    stage.triggerer_dies_at = 400
    ending = stage.play(sensor(mode))
    assert ending.state == "success"
    assert stage.clock.seconds < 600
    assert "mediation_session_wait" not in stage.xcoms


def test_the_state_of_a_wait_survives_a_crash_of_the_trigger(stage: Stage, mode: str, monkeypatch: pytest.MonkeyPatch):
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


def test_the_deadline_stays_when_the_trigger_moves(stage: Stage, mode: str):
    stage.zuora.script("m", *HEALTHY)
    stage.triggerer_dies_at = 1000
    ending = stage.play(sensor(mode, timeout=1800))
    assert ending.state == "failed"
    assert isinstance(ending.error, MeterSessionTimeout)
    assert stage.clock.seconds == pytest.approx(1800, abs=1)


def test_without_any_triggerer_the_deadline_ends_the_wait_with_a_last_poll(stage: Stage, mode: str):
    stage.zuora.script("m", *HEALTHY)
    stage.triggerer_is_down = True
    ending = stage.play(sensor(mode, timeout=1800))
    assert ending.state == "failed"
    assert isinstance(ending.error, MeterSessionTimeout)
    assert 1800 <= stage.clock.seconds <= 1861


def test_a_wait_continues_after_an_event_without_a_result(stage: Stage, mode: str):
    stage.zuora.script("m", (0, "RUNNING"), (700, "COMPLETED"))
    task = sensor(mode, session_id="S-1")()
    for event in (None, {}, "done", {"end": "WHAT"}):
        assert task.read_event(event) is None
    stage.try_number = 1
    if mode == "poke":
        session = task.resume_execution("execute_complete", {"event": None}, stage.context(stage.clock.now()))
        assert session["status"] == "COMPLETED"


def test_the_links_are_pushed_before_the_wait(stage: Stage, mode: str):
    stage.zuora.script("m", (0, "RUNNING"), (700, "COMPLETED"))
    stage.play(sensor(mode, session_id="S-1"))
    page = "/plugin/mediation-sessions/mediation/session?conn=mediation_default&meter=m&session=S-1"
    assert stage.xcoms == {"mediation_session_link": "https://zuora.example/m/S-1", "mediation_session_page": page}


def test_without_a_session_id_the_link_shows_what_the_task_waits_for(stage: Stage, mode: str):
    stage.zuora.script("m", *HEALTHY, (854, "COMPLETED"))
    stage.play(sensor(mode))
    page = "/plugin/mediation-sessions/mediation/task?dag_id=dag&run_id=run&task_id=wait"
    # In the triggerer each push is a round trip of messages; there only the task's tab shows it.
    pushed = (
        {} if mode == "started in the triggerer" else {"mediation_session_link": "", "mediation_session_page": page}
    )
    assert stage.xcoms == pushed


@pytest.mark.parametrize("template", [True, False], ids=["with a template", "without one"])
@pytest.mark.parametrize("session_id", ["S-1", None], ids=["named", "unnamed"])
def test_both_links_are_pushed_when_a_task_ends_on_a_worker(
    stage: Stage, mode: str, monkeypatch: pytest.MonkeyPatch, session_id: str | None, template: bool
):
    async def no_url(*_: Any) -> None:
        return None

    if not template:
        monkeypatch.setattr("tests.unit.virtual.SyncHook.session_url", lambda *_: None)
        monkeypatch.setattr("airflow_mediation_provider.triggerer.session_url", no_url)
    stage.zuora.script("m", (0, "RUNNING"))
    ending = stage.play(sensor(mode, session_id=session_id, timeout=600))
    assert ending.on_worker
    named, unnamed = "session?conn=mediation_default&meter=m&session=S-1", "task?dag_id=dag&run_id=run&task_id=wait"
    assert stage.xcoms["mediation_session_page"].endswith(named if session_id else unnamed)
    at_zuora = "https://zuora.example/m/S-1" if session_id and template else ""
    assert stage.xcoms["mediation_session_link"] == at_zuora


def test_a_task_with_invalid_arguments_has_its_links(stage: Stage, mode: str):
    ending = stage.play(sensor(mode, since="{{ 'no time' }}"))
    assert ending.state == "failed"
    assert isinstance(ending.error, MediationMisconfigured)
    assert set(stage.xcoms) == {"mediation_session_link", "mediation_session_page"}
