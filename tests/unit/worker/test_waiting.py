"""SessionWaitMixin in a test operator: behaviour that the outcome table of the sensor does not show."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import pytest
from airflow.sdk import DAG, BaseOperator
from airflow.sdk.exceptions import AirflowFailException, AirflowSkipException, TaskDeferred

from airflow_mediation_provider import exceptions
from airflow_mediation_provider.protocol.waits.condition import SessionCondition, Subject
from airflow_mediation_provider.protocol.waits.wait import PollReading, SessionWait, WaitEnd, WaitResult
from airflow_mediation_provider.protocol.zuora.errors import MediationError, TransientError
from airflow_mediation_provider.tasks.build import make_wait
from airflow_mediation_provider.tasks.memory import KEY
from airflow_mediation_provider.worker.waiting import SessionWaitMixin
from tests.unit.virtual import EPOCH

if TYPE_CHECKING:
    from tests.unit.task_stage import Stage


class Waits(SessionWaitMixin, BaseOperator):
    """The minimum of an operator that waits."""

    def __init__(self, *, run_status: str | None = None, **kwargs: Any) -> None:
        settings = {key: kwargs.pop(key) for key in ("deferrable", "poke_interval", "timeout") if key in kwargs}
        super().__init__(task_id="wait", **kwargs)
        self.run_status = run_status
        for key, value in settings.items():
            setattr(self, key, value)

    def execute(self, context: Any) -> Any:
        condition = SessionCondition(meter_id="m", session_id="S-1", until=self._wait_until(context))
        started_at = context["ti"].start_date
        wait = SessionWait(condition, created_at=started_at, started_at=started_at, run_status=self.run_status)
        return self.execute_complete(context, self._await_session(context, wait, stop_on_kill=True).to_dict())

    def execute_complete(self, context: Any, event: Any = None) -> Any:
        result = self.read_event(event)
        assert result is not None
        self.raise_for(result)
        return result.session


def waits(**arguments: Any):
    def make() -> Waits:
        with DAG("dag", schedule=None):
            return Waits(**{"poke_interval": 20.0, "timeout": 7200.0, **arguments})

    return make


@pytest.mark.parametrize("deferrable", [False, True])
def test_a_wait_ends_with_the_session(stage: Stage, deferrable: bool):
    stage.zuora.script("m", (0, "RUNNING"), (700, "COMPLETED"))
    ending = stage.play(waits(deferrable=deferrable))
    assert ending.state == "success"
    assert ending.xcom["session_id"] == "S-1"


@pytest.mark.parametrize("deferrable", [False, True])
@pytest.mark.parametrize(("status", "over"), [("COMPLETED", True), ("FAILED", True), ("down", False)])
def test_the_kept_state_shows_whether_the_wait_is_over(stage: Stage, deferrable: bool, status: str, over: bool):
    """It shows a Clear after the retries were lowered; after "unreachable" the next try continues the wait."""
    end: Any = TransientError("down") if status == "down" else status
    stage.zuora.script("m", (0, "RUNNING"), (700, end))
    stage.play(waits(deferrable=deferrable))
    assert stage.store is not None
    assert stage.store.values[KEY]["over"] is over


def test_a_run_reply_can_end_the_wait(stage: Stage):
    ending = stage.play(waits(run_status="COMPLETED", deferrable=True))
    assert ending.state == "success"
    assert ending.xcom["evidence"] == "run"
    assert ending.xcom["certain"] is True
    assert stage.zuora.asked == []


def test_airflows_timeout_is_a_minute_after_the_deadline(stage: Stage):
    with pytest.raises(TaskDeferred) as deferred:
        waits(deferrable=True)().execute(stage.context(stage.clock.now()))
    assert deferred.value.timeout == timedelta(seconds=7200 + 60)
    arguments = deferred.value.trigger.serialize()[1]
    assert arguments["wait"]["condition"]["until"] == (EPOCH + timedelta(seconds=7200)).isoformat()
    assert arguments["stop_on_kill"] is True
    assert arguments["end_from_trigger"] is False


def test_after_airflows_timeout_the_meter_is_polled_once_more(stage: Stage):
    stage.zuora.script("m", (0, "RUNNING"), (700, "COMPLETED"))
    stage.triggerer_is_down = True
    ending = stage.play(waits(deferrable=True))
    assert ending.state == "success"
    assert ending.xcom["status"] == "COMPLETED"


def test_without_a_kept_wait_a_silent_triggerer_is_a_timeout(stage: Stage):
    stage.store = None
    stage.triggerer_is_down = True
    ending = stage.play(waits(deferrable=True))
    assert ending.state == "failed"
    assert isinstance(ending.error, exceptions.MeterSessionTimeout)


def test_without_a_store_the_state_of_the_trigger_is_used(stage: Stage):
    stage.store = None
    stage.zuora.script("m", (0, "COMPLETED"))
    condition = SessionCondition(meter_id="m", until=EPOCH + timedelta(hours=1))
    known = SessionWait(condition, created_at=EPOCH)
    for seconds, status in ((0, "COMPLETED"), (30, "RUNNING")):
        known.observe(PollReading(status=status, read_at=EPOCH + timedelta(seconds=seconds)))
    stage.try_number, stage.clock.seconds = 1, 300
    stage.xcoms["mediation_session_wait"] = {"ti_id": str(stage.id), "wait": known.to_dict()}
    task = waits(deferrable=True)()
    task.execute = lambda context: task._await_session(context, SessionWait(condition, created_at=stage.clock.now()))
    result = task.resume_execution("__fail__", {"error": "Trigger failure"}, stage.context(stage.clock.now()))
    assert result.end is WaitEnd.MET


def test_the_deferred_method_gets_the_result_of_the_last_poll(stage: Stage):
    task = waits(deferrable=True)()
    context = stage.context(stage.clock.now())
    called = []
    task.other_complete = lambda context, event: called.append(event)
    with pytest.raises(TaskDeferred):
        task._await_session(
            context,
            SessionWait(SessionCondition(meter_id="m", until=EPOCH + timedelta(hours=1)), created_at=EPOCH),
            "other_complete",
        )
    stage.clock.seconds = 3700
    task.resume_execution("__fail__", {"error": "Trigger timeout"}, context)
    assert [event["end"] for event in called] == ["TIMED_OUT"]


def test_changes_and_heartbeats_are_logged_and_polls_are_not(stage: Stage, monkeypatch: pytest.MonkeyPatch):
    stage.zuora.script("m", (0, "INITIALIZING"), (100, "RUNNING"), (2000, "COMPLETED"))
    lines: list[str] = []
    monkeypatch.setattr(Waits, "log", SimpleNamespace(info=lines.append, warning=lines.append))
    waits(run_status="INITIALIZING")().execute(stage.context(stage.clock.now()))
    assert len([line for line in lines if "->" in line]) == 2
    assert 5 <= len([line for line in lines if line.startswith("still RUNNING")]) <= 7
    assert lines[0].startswith("waiting for session ")
    assert len(lines) <= 10
    assert len(stage.zuora.asked) > 90


def test_retry_after_sets_the_pause_on_a_worker(stage: Stage):
    limited = TransientError("429", status_code=429, retry_after=150)
    stage.zuora.script("m", (0, "RUNNING"), (60, limited), (61, "RUNNING"), (700, "COMPLETED"))
    stage.play(waits())
    assert max(stage.zuora.gaps("m")) == pytest.approx(150)


def test_no_pause_exceeds_the_deadline(stage: Stage):
    stage.zuora.script("m", (0, "RUNNING"))
    ending = stage.play(waits(poke_interval=600.0, timeout=1000.0))
    assert isinstance(ending.error, exceptions.MeterSessionTimeout)
    assert stage.clock.seconds == pytest.approx(1000, abs=0.2)


@pytest.mark.parametrize(
    ("end", "error", "retried"),
    [
        (WaitEnd.FAILED, exceptions.MeterSessionFailed, False),
        (WaitEnd.TIMED_OUT, exceptions.MeterSessionTimeout, False),
        (WaitEnd.UNCERTAIN, exceptions.MeterSessionUncertain, False),
        (WaitEnd.MISCONFIGURED, exceptions.MediationMisconfigured, False),
        (WaitEnd.UNREACHABLE, exceptions.MediationUnreachable, True),
    ],
)
def test_every_end_has_its_exception(end, error, retried):
    with pytest.raises(error, match="why") as raised:
        SessionWaitMixin.raise_for(WaitResult(end=end, message="why"))
    assert isinstance(raised.value, MediationError)
    assert isinstance(raised.value, AirflowFailException) is not retried
    assert not isinstance(raised.value, AirflowSkipException)


def test_a_met_condition_raises_nothing():
    SessionWaitMixin.raise_for(WaitResult(end=WaitEnd.MET, message=""))


@pytest.mark.parametrize(
    ("arguments", "names"),
    [
        ({"since": "soon"}, "since"),
        ({"since": "2026-01-01 00:00:00"}, "since"),
        ({"statuses": ["NEVER_RUN"]}, "statuses"),
        (
            {"before": "noon"},
            "before must be a time with a zone, or a timedelta of a second to ten years after since, not 'noon'",
        ),
        (
            {"before": 3600},
            "before must be a time with a zone, or a timedelta of a second to ten years after since, not 3600",
        ),
        ({"before": "2026-03-31 07:59:00+00:00"}, r"before \(.*07:59.* is not after since \(.*08:00"),
        ({"before": timedelta()}, "timedelta of a second to ten years after since, not datetime.timedelta"),
    ],
    ids=str,
)
def test_an_invalid_rendered_argument_is_named(arguments, names):
    good: dict[str, Any] = {
        "subject": Subject(meter_id="m"),
        "statuses": None,
        "fail_on": None,
        "since": "2026-03-31 08:00:00+00:00",
        "until": EPOCH + timedelta(hours=1),
        "created_at": EPOCH,
        "exclusive": False,
        "require_certain": False,
        "max_unreachable": 3600,
        "settle": 30,
        "poll_interval": 60,
    }
    assert make_wait(**good).condition.since is not None
    # Zuora cuts a start to its second, so a start in the run's own second would be before it.
    precise = make_wait(**{**good, "since": "2026-03-31T08:00:00.999+00:00"}).condition.since
    assert precise == datetime(2026, 3, 31, 8, tzinfo=UTC)
    with pytest.raises(ValueError, match=names):
        make_wait(**{**good, **arguments})
