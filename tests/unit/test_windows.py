"""The window of a wait for a session without an id: its two bounds, and the timeout, which is independent of them."""

from __future__ import annotations

from datetime import timedelta
from functools import partial
from typing import TYPE_CHECKING, Any

import pytest
from airflow.sdk import DAG, BaseOperator

from airflow_mediation_provider.exceptions import MediationMisconfigured, MeterSessionTimeout
from airflow_mediation_provider.operators.branch import MeterSessionBranchOperator
from tests.unit import test_outcomes
from tests.unit.fast_lane import modes
from tests.unit.task_stage import Store
from tests.unit.test_outcomes import MODES
from tests.unit.virtual import EPOCH
from tests.unit.virtual_feed import Journal

if TYPE_CHECKING:
    from collections.abc import Callable

    from tests.unit.task_stage import Ending, Stage

# A window lasts for hours, and each poke makes the task anew.
sensor = partial(test_outcomes.sensor, poke_interval=60)


def branch(mode: str, **arguments: Any) -> Callable[[], MeterSessionBranchOperator]:
    def make() -> MeterSessionBranchOperator:
        defaults: dict[str, Any] = {"task_id": "wait", "meter_id": "m", "poke_interval": 60, "timeout": 7200}
        with DAG("dag", schedule=None):
            task = MeterSessionBranchOperator(
                **{**defaults, "deferrable": mode == "deferrable", "on_completed": "load", **arguments}
            )
            task >> BaseOperator(task_id="load")
        return task

    return make


TASKS: dict[str, Callable[..., Callable[[], Any]]] = {
    **{f"sensor, {mode}": lambda mode=mode, **arguments: sensor(mode, **arguments) for mode in MODES},
    **{f"branch, {mode}": lambda mode=mode, **arguments: branch(mode, **arguments) for mode in ("poke", "deferrable")},
}


@pytest.mark.parametrize("ahead", [timedelta(minutes=10), timedelta(days=1)])
@pytest.mark.parametrize("task", modes(TASKS))
def test_the_timeout_ends_a_wait_whose_window_starts_late_or_after_it(stage: Stage, task: str, ahead: timedelta):
    stage.zuora.script("m", (0, "COMPLETED"))
    ending = stage.play(TASKS[task](since=EPOCH + ahead, timeout=1800))
    assert ending.state == "failed"
    assert isinstance(ending.error, MeterSessionTimeout)
    assert stage.clock.seconds == pytest.approx(1800, abs=1)


HOUR = 3600
GRACE = 65 * 60
# One session, five minutes after the second run was due, and one of the day before, with its callouts.
SESSION = [(HOUR + 300, "INITIALIZING"), (HOUR + 330, "RUNNING"), (HOUR + 900, "COMPLETED")]
EARLIER = [(-7000, "RUNNING"), (-4000, "COMPLETED")]


@pytest.fixture
def hourly(stage: Stage) -> Stage:
    """Return a stage with the session; a Dag has a run for 09:00, and one for 10:00."""
    stage.zuora.script("m", (-7000, "COMPLETED"), *SESSION)
    with DAG("hourly", schedule="@hourly", start_date=EPOCH - timedelta(days=1)) as dag:
        stage.dag = dag
    return stage


def journal(stage: Stage, *, callouts: bool = True) -> Journal:
    stage.journal = Journal(stage.clock, callouts=callouts)
    if callouts:
        stage.journal.session("S-0", *EARLIER)
        stage.journal.session("S-1", *SESSION)
    return stage.journal


def play_run(stage: Stage, hour: int, make: Callable[[], Any]) -> Ending:
    """Run the task of the Dag's run that was due so many hours after the first one."""
    stage.clock.seconds, stage.run_after = hour * HOUR, EPOCH + timedelta(hours=hour)
    stage.store, stage.try_number = Store(), 0
    return stage.play(make)


def warnings(capsys: Any, caplog: Any) -> int:
    said = capsys.readouterr().out + caplog.text
    caplog.clear()
    return said.count("that run may take it too")


@pytest.mark.parametrize("mode", modes(MODES))
@pytest.mark.parametrize("callouts", [True, False], ids=["callouts", "polls"])
class TestHourlyRuns:
    def test_each_run_takes_only_a_session_of_its_own_window(
        self, hourly: Stage, mode: str, callouts: bool, capsys: Any, caplog: Any
    ):
        journal(hourly, callouts=callouts)
        make = sensor(mode, before=timedelta(hours=1), timeout=6 * HOUR, poke_interval=20)
        first = play_run(hourly, 0, make)
        assert first.state == "failed"
        assert isinstance(first.error, MeterSessionTimeout)
        if callouts:
            assert HOUR + GRACE <= hourly.clock.seconds <= HOUR + GRACE + 120
            assert "no session of meter m started from 2026-03-31 09:00:00 UTC until 2026-03-31 10:00:00 UTC" in str(
                first.error
            ).replace("No session", "no session")
        else:
            assert HOUR + 30 <= hourly.clock.seconds <= HOUR + 120
            assert "No session of meter m was seen to start before 2026-03-31 10:00:00 UTC" in str(first.error)
        second = play_run(hourly, 1, make)
        assert second.state == "success"
        assert second.xcom["session_id"] == ("S-1" if callouts else None)
        assert HOUR + 900 <= hourly.clock.seconds <= HOUR + 1000
        assert warnings(capsys, caplog) == 0

    def test_without_before_both_runs_take_the_session_and_the_first_warns(
        self, hourly: Stage, mode: str, callouts: bool, capsys: Any, caplog: Any
    ):
        journal(hourly, callouts=callouts)
        make = sensor(mode, timeout=6 * HOUR)
        assert play_run(hourly, 0, make).state == "success"
        assert HOUR + 900 <= hourly.clock.seconds <= HOUR + 1000
        assert 1 <= warnings(capsys, caplog) <= 2  # once, as each of two kinds of log may show it
        assert play_run(hourly, 1, make).state == "success"
        assert warnings(capsys, caplog) == 0

    def test_with_soft_fail_an_empty_window_skips_the_task(self, hourly: Stage, mode: str, callouts: bool):
        journal(hourly, callouts=callouts)
        ending = play_run(hourly, 0, sensor(mode, before=timedelta(hours=1), timeout=6 * HOUR, soft_fail=True))
        assert ending.state == "skipped"
        assert hourly.clock.seconds <= HOUR + GRACE + 120


@pytest.mark.parametrize("mode", modes(MODES))
class TestWithCallouts:
    def end(self, stage: Stage, mode: str) -> float:
        task = sensor(mode, before=timedelta(hours=1), timeout=3 * HOUR)
        ending = play_run(stage, 0, task)
        assert isinstance(ending.error, MeterSessionTimeout)
        return stage.clock.seconds - HOUR - GRACE

    def test_without_a_callout_before_the_window_the_deadline_ends_the_wait(self, hourly: Stage, mode: str):
        journal(hourly)
        assert hourly.journal is not None
        del hourly.journal.said[:2]
        assert self.end(hourly, mode) > 3000

    def test_a_session_first_received_in_the_window_may_belong_to_it(self, hourly: Stage, mode: str):
        journal(hourly).session("S-X", (600, "COMPLETED"))
        assert hourly.journal is not None
        second, told = hourly.journal.said.pop()
        # By the clock of another zone it started before the window.
        hourly.journal.say(second, "S-X", told.status, started=-5000)
        assert self.end(hourly, mode) > 3000

    def test_a_live_meter_may_run_a_session_of_the_window(self, hourly: Stage, mode: str):
        journal(hourly)
        hourly.zuora.script("m", (-7000, "COMPLETED"), (3500, "RUNNING"))
        hourly.journal.said = [each for each in hourly.journal.said if each[1].session_id == "S-0"]  # type: ignore[union-attr]
        assert self.end(hourly, mode) > 3000

    def test_a_session_that_started_later_may_be_live(self, hourly: Stage, mode: str):
        journal(hourly).said.pop()
        hourly.zuora.script("m", (-7000, "COMPLETED"), *SESSION[:2])
        assert 0 <= self.end(hourly, mode) <= 120

    def test_a_poll_may_show_a_later_session_before_its_callouts_do(self, hourly: Stage, mode: str):
        known = journal(hourly)
        known.said = known.said[:2]
        known.say(HOUR + 100, "S-1", "RUNNING", started=HOUR)
        known.say(HOUR + 500, "S-1", "COMPLETED", "RUNNING", started=HOUR)
        # A worker's poll coincides with the start of the session.
        hourly.zuora.script("m", (-7000, "COMPLETED"), (HOUR - 1, "RUNNING"), (HOUR + 500, "COMPLETED"))
        assert 0 <= self.end(hourly, mode) <= 120

    def test_after_an_outage_of_callouts_the_deadline_ends_the_wait(self, hourly: Stage, mode: str):
        journal(hourly).down = [(1000, 1200)]
        assert self.end(hourly, mode) > 3000

    def test_an_older_api_server_reports_no_windows(self, hourly: Stage, mode: str):
        journal(hourly).reports_windows = False
        assert self.end(hourly, mode) > 3000

    def test_a_late_run_ends_at_once_if_its_window_passed_long_ago(self, hourly: Stage, mode: str):
        journal(hourly)
        hourly.clock.seconds = 20 * HOUR
        ending = hourly.play(sensor(mode, since=EPOCH, before=timedelta(hours=1), timeout=3 * HOUR))
        assert isinstance(ending.error, MeterSessionTimeout)
        assert hourly.clock.seconds - 20 * HOUR <= 400  # once a poll has shown that the meter is idle

    def test_the_first_session_of_the_window_counts_in_any_order_of_callouts(self, hourly: Stage, mode: str):
        known = journal(hourly)
        known.say(7000, "S-A", "COMPLETED", "RUNNING", started=1800)
        ending = play_run(hourly, 0, sensor(mode, before=timedelta(hours=1), timeout=3 * HOUR))
        assert ending.state == "success"
        assert ending.xcom["session_id"] == "S-A"
        assert 7000 <= hourly.clock.seconds <= 7021


@pytest.mark.parametrize("mode", modes(MODES))
def test_without_callouts_a_wait_that_starts_after_its_window_fails_at_once(hourly: Stage, mode: str):
    journal(hourly, callouts=False)
    hourly.clock.seconds = 2 * HOUR
    ending = hourly.play(sensor(mode, since=EPOCH, before=timedelta(hours=1), timeout=6 * HOUR, soft_fail=True))
    assert ending.state == "failed"
    assert isinstance(ending.error, MediationMisconfigured)
    assert "The argument before needs Zuora's callouts here: it passed at 2026-03-31 10:00:00 UTC" in str(ending.error)
    assert hourly.clock.seconds <= 2 * HOUR + 70


@pytest.mark.parametrize("task", modes(TASKS))
def test_the_end_of_an_empty_data_interval_is_refused_with_a_correction(hourly: Stage, task: str):
    ending = play_run(hourly, 0, TASKS[task](before=EPOCH, timeout=HOUR))
    assert ending.state == "failed"
    assert isinstance(ending.error, MediationMisconfigured)
    assert "is not after since" in str(ending.error)
    assert "before=timedelta(hours=1)" in str(ending.error)


@pytest.mark.parametrize("task", modes(TASKS))
@pytest.mark.parametrize(
    "before", [timedelta(hours=1), EPOCH + timedelta(hours=1), "2026-03-31T10:00:00+00:00"], ids=str
)
def test_each_form_of_before_is_accepted(hourly: Stage, task: str, before: Any):
    journal(hourly)
    ending = play_run(hourly, 0, TASKS[task](before=before, timeout=6 * HOUR))
    assert isinstance(ending.error, MeterSessionTimeout)
    assert HOUR + GRACE <= hourly.clock.seconds <= HOUR + GRACE + 120


@pytest.mark.parametrize("make", [sensor, branch])
@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"before": timedelta(0)}, "timedelta of a second to ten years after since, not datetime.timedelta"),
        ({"before": -timedelta(hours=1)}, "timedelta of a second to ten years after since, not datetime.timedelta"),
        (
            {"before": 3600},
            "before must be a time with a zone, or a timedelta of a second to ten years after since, not 3600",
        ),
        (
            {"before": "soon"},
            "before must be a time with a zone, or a timedelta of a second to ten years after since, not 'soon'",
        ),
        ({"since": EPOCH, "before": EPOCH}, "is not after since"),
        ({"session_id": "S-1", "before": timedelta(hours=1)}, "session_id and before exclude each other"),
    ],
    ids=str,
)
def test_an_invalid_window_is_refused_when_the_dag_is_parsed(make: Any, arguments: dict[str, Any], words: str):
    with pytest.raises(ValueError, match=words):
        make("poke", **arguments)()
