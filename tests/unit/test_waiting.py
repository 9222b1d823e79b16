"""SessionWaitMixin in an operator of its own: what the outcome table of the sensor does not show."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import pytest
from airflow.sdk import DAG, BaseOperator
from airflow.sdk.exceptions import AirflowFailException, AirflowSkipException, TaskDeferred

from airflow_mediation_provider import exceptions
from airflow_mediation_provider.protocol.condition import SessionCondition
from airflow_mediation_provider.protocol.errors import MediationError, TransientError
from airflow_mediation_provider.protocol.wait import PollReading, SessionWait, WaitEnd, WaitResult
from airflow_mediation_provider.waiting import SessionWaitMixin, make_wait
from tests.unit.virtual import EPOCH

if TYPE_CHECKING:
    from tests.unit.task_stage import Stage


class Waits(SessionWaitMixin, BaseOperator):
    """The least that an operator which waits needs."""

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
def test_it_waits(stage: Stage, deferrable: bool):
    stage.zuora.script("m", (0, "RUNNING"), (700, "COMPLETED"))
    ending = stage.play(waits(deferrable=deferrable))
    assert ending.state == "success"
    assert ending.xcom["session_id"] == "S-1"


def test_a_run_reply_can_be_the_end(stage: Stage):
    ending = stage.play(waits(run_status="COMPLETED", deferrable=True))
    assert ending.state == "success"
    assert ending.xcom["evidence"] == "run"
    assert ending.xcom["certain"] is True
    assert stage.zuora.asked == []


def test_the_framework_comes_a_minute_after_the_deadline(stage: Stage):
    with pytest.raises(TaskDeferred) as deferred:
        waits(deferrable=True)().execute(stage.context(stage.clock.now()))
    assert deferred.value.timeout == timedelta(seconds=7200 + 60)
    arguments = deferred.value.trigger.serialize()[1]
    assert arguments["wait"]["condition"]["until"] == (EPOCH + timedelta(seconds=7200)).isoformat()
    assert arguments["stop_on_kill"] is True
    assert arguments["end_from_trigger"] is False


def test_an_end_that_nobody_reported_is_looked_for_once_more(stage: Stage):
    stage.zuora.script("m", (0, "RUNNING"), (700, "COMPLETED"))
    stage.triggerer_is_down = True
    ending = stage.play(waits(deferrable=True))
    assert ending.state == "success"
    assert ending.xcom["status"] == "COMPLETED"


def test_without_a_memory_a_silent_triggerer_is_a_timeout(stage: Stage):
    stage.store = None
    stage.triggerer_is_down = True
    ending = stage.play(waits(deferrable=True))
    assert ending.state == "failed"
    assert isinstance(ending.error, exceptions.MeterSessionTimeout)


def test_without_a_store_what_the_trigger_knew_still_counts(stage: Stage):
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


def test_the_method_that_was_deferred_to_gets_the_last_look(stage: Stage):
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


def test_one_line_for_a_change_none_for_a_look_and_a_sign_of_life(stage: Stage, monkeypatch: pytest.MonkeyPatch):
    stage.zuora.script("m", (0, "INITIALIZING"), (100, "RUNNING"), (2000, "COMPLETED"))
    lines: list[str] = []
    monkeypatch.setattr(Waits, "log", SimpleNamespace(info=lines.append))
    waits(run_status="INITIALIZING")().execute(stage.context(stage.clock.now()))
    assert len([line for line in lines if "->" in line]) == 2
    assert 5 <= len([line for line in lines if line.startswith("still RUNNING")]) <= 7
    assert lines[0].startswith("waiting for session ")
    assert len(lines) <= 10
    assert len(stage.zuora.asked) > 90


def test_retry_after_is_honoured_on_a_worker(stage: Stage):
    limited = TransientError("429", status_code=429, retry_after=150)
    stage.zuora.script("m", (0, "RUNNING"), (60, limited), (61, "RUNNING"), (700, "COMPLETED"))
    stage.play(waits())
    assert max(stage.zuora.gaps("m")) == pytest.approx(150)


def test_no_pause_reaches_beyond_the_deadline(stage: Stage):
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
        ({"meter_id": ""}, "meter_id"),
        ({"session_id": "None"}, "session_id"),
        ({"session_id": ""}, "session_id"),
        ({"since": "soon"}, "since"),
        ({"since": "2026-01-01 00:00:00"}, "since"),
        ({"statuses": ["COMPLETD"]}, "statuses"),
    ],
    ids=str,
)
def test_what_was_rendered_to_nonsense_is_named(arguments, names):
    good: dict[str, Any] = {
        "meter_id": "m",
        "version": "0.0.1",
        "session_id": None,
        "run_type": "NORMAL",
        "statuses": None,
        "fail_on": None,
        "since": "2026-03-31 08:00:00+00:00",
        "until": EPOCH + timedelta(hours=1),
        "created_at": EPOCH,
        "exclusive": False,
        "require_certain": False,
        "max_unreachable": 3600,
        "settle": 30,
    }
    assert make_wait(**good).condition.since is not None
    # A start that Zuora tells is cut to its second, so one of the run's own second would be before it.
    precise = make_wait(**{**good, "since": "2026-03-31T08:00:00.999+00:00"}).condition.since
    assert precise == datetime(2026, 3, 31, 8, tzinfo=UTC)
    with pytest.raises(ValueError, match=names):
        make_wait(**{**good, **arguments})
