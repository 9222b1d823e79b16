"""The outcome table with callouts: the same result by the same evidence in every mode."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

from airflow_mediation_provider.exceptions import (
    MediationMisconfigured,
    MeterSessionFailed,
    MeterSessionTimeout,
    MeterSessionUncertain,
)
from airflow_mediation_provider.protocol.transition import Source
from airflow_mediation_provider.protocol.wire import HistoryStatus
from airflow_mediation_provider.protocol.zuora.errors import TransientError
from tests.unit.fast_lane import modes
from tests.unit.test_outcomes import MODES, sensor
from tests.unit.virtual_feed import Journal

if TYPE_CHECKING:
    from tests.unit.task_stage import Stage

pytestmark = pytest.mark.parametrize("mode", modes(MODES))
DOWN = TransientError("connection refused")
RUN = [(10, "INITIALIZING"), (40, "RUNNING")]
# Seconds from a callout until a task has received it: at once by a trigger, at the next poke on a worker.
PROMPT = {"deferrable": 1, "started in the triggerer": 1, "poke": 21, "reschedule": 21}


@pytest.fixture
def journal(stage: Stage) -> Journal:
    # The waits start at second 0, and the runs were due an hour before.
    stage.journal = Journal(stage.clock)
    stage.zuora.script("m", (0, "COMPLETED"), (10, "INITIALIZING"), (40, "RUNNING"))
    return stage.journal


def after(stage: Stage, mode: str, second: float) -> bool:
    return second <= stage.clock.seconds <= second + PROMPT[mode]


@pytest.mark.parametrize("named", [True, False])
def test_a_callout_meets_the_condition(stage: Stage, journal: Journal, mode: str, named: bool):
    journal.session("S-1", *RUN, (5000, "COMPLETED"))
    ending = stage.play(sensor(mode, **({"session_id": "S-1"} if named else {})))
    assert ending.state == "success"
    assert after(stage, mode, 5000)
    shown = {key: ending.xcom[key] for key in ("session_id", "status", "previous_status", "evidence", "certain")}
    assert shown == {
        "session_id": "S-1",
        "status": "COMPLETED",
        "previous_status": "RUNNING",
        "evidence": "callout",
        "certain": True,
    }
    # Zuora is polled only as a cross-check, and by the triggerer once for all waits.
    assert len(stage.zuora.asked) <= 1 + 5000 / 300
    assert min(stage.zuora.gaps("m")) >= 150  # the worker's poll, and the first of the triggerer


@pytest.mark.parametrize(("choice", "state"), [("fail", "failed"), ("skip", "skipped")])
def test_a_status_that_came_after_another_one_fails_or_skips(
    stage: Stage, journal: Journal, mode: str, choice: str, state: str
):
    journal.session("S-1", *RUN, (854, "COMPLETED"))
    ending = stage.play(sensor(mode, previous_statuses=["PUSH_COMPLETED"], on_other_previous=choice))
    assert ending.state == state
    assert after(stage, mode, 854)
    assert "COMPLETED came after RUNNING, not after PUSH_COMPLETED" in str(ending.error)


def test_a_failed_session_fails_though_another_previous_status_would_skip(stage: Stage, journal: Journal, mode: str):
    journal.session("S-1", *RUN, (854, "FAILED"))
    ending = stage.play(sensor(mode, previous_statuses=["PUSH_COMPLETED"], on_other_previous="skip"))
    assert ending.state == "failed"


@pytest.mark.parametrize(("soft_fail", "state"), [(False, "failed"), (True, "skipped")])
@pytest.mark.parametrize("status", ["FAILED", "CANCELED"])
def test_a_callout_with_a_status_of_fail_on_fails_without_a_retry(
    stage: Stage, journal: Journal, mode: str, soft_fail: bool, state: str, status: str
):
    journal.session("S-1", *RUN, (854, status))
    ending = stage.play(sensor(mode, soft_fail=soft_fail))
    assert ending.state == state
    assert after(stage, mode, 854)
    if not soft_fail:
        assert isinstance(ending.error, MeterSessionFailed)
        assert ending.error.session["certain"] is True


@pytest.mark.parametrize("named", [True, False])
@pytest.mark.parametrize("status", ["TESTING_FAILED", "CANCELED", "FAILED"])
def test_another_final_status_of_a_debug_run_fails(stage: Stage, journal: Journal, mode: str, named: bool, status: str):
    journal.session("S-1", (10, "INITIALIZING"), (40, "TESTING"), (854, status))
    stage.zuora.script("m", (0, "COMPLETED"), (10, "INITIALIZING"), (40, "TESTING"), (854, status))
    ending = stage.play(sensor(mode, run_type="DEBUG", **({"session_id": "S-1"} if named else {})))
    assert ending.state == "failed"
    assert after(stage, mode, 854)
    assert isinstance(ending.error, MeterSessionFailed)
    session = ending.error.session
    assert (session["status"], session["run_type"], session["certain"]) == (status, "DEBUG", True)


@pytest.mark.parametrize("named", [True, False])
@pytest.mark.parametrize(
    ("own", "end", "state"),
    [("RUNNING", "COMPLETED", "success"), ("TESTING", "TESTING_PASSED", "success"), ("TESTING", "CANCELED", "failed")],
)
def test_the_first_session_of_either_run_type_ends_a_wait_on_both(
    stage: Stage, journal: Journal, mode: str, named: bool, own: str, end: str, state: str
):
    journal.session("S-1", (10, "INITIALIZING"), (40, own), (854, end))
    other = [("RUNNING", "FAILED"), ("TESTING", "TESTING_FAILED")][own == "RUNNING"]
    journal.session("S-2", (200, other[0]), (500, other[1]))
    stage.zuora.script("m", (0, "COMPLETED"), (40, own), (200, other[0]), (500, other[1]), (854, end))
    both = {"run_type": ["NORMAL", "DEBUG"]}
    ending = stage.play(sensor(mode, **both, **({"session_id": "S-1"} if named else {})))
    assert ending.state == state
    assert after(stage, mode, 854)
    session = ending.xcom if state == "success" else ending.error.session
    run_type = "NORMAL" if own == "RUNNING" else "DEBUG"
    assert [session[key] for key in ("session_id", "status", "run_type", "certain")] == ["S-1", end, run_type, True]


def test_a_session_that_ended_before_the_sensor_started_needs_no_poll(stage: Stage, journal: Journal, mode: str):
    journal.session("S-0", (-7000, "RUNNING"), (-6000, "FAILED"))
    journal.session("S-1", (-3000, "RUNNING"), (-1000, "COMPLETED"))
    journal.session("S-2", (-500, "RUNNING"), (-100, "FAILED"))
    ending = stage.play(sensor(mode))
    assert ending.state == "success"
    assert ending.xcom["session_id"] == "S-1"
    assert stage.clock.seconds <= 1
    assert stage.zuora.asked == []


def test_a_poll_shows_an_end_whose_callout_was_lost(stage: Stage, journal: Journal, mode: str):
    journal.session("S-1", *RUN, (854, "COMPLETED"), lost=("COMPLETED",))
    stage.zuora.scripts["m"].append((854, "COMPLETED"))
    ending = stage.play(sensor(mode))
    assert ending.state == "success"
    assert (ending.xcom["session_id"], ending.xcom["evidence"], ending.xcom["certain"]) == ("S-1", "poll", False)
    assert 854 + 30 <= stage.clock.seconds <= 854 + 330 + 30 + 21


def test_polls_show_a_session_whose_callouts_were_all_lost(stage: Stage, journal: Journal, mode: str):
    journal.session("S-0", (-7000, "RUNNING"), (-6000, "COMPLETED"))
    stage.zuora.script("m", (0, "COMPLETED"), (100, "RUNNING"), (2000, "FAILED"))
    ending = stage.play(sensor(mode))
    assert ending.state == "failed"
    assert (ending.error.session["evidence"], ending.error.session["certain"]) == ("poll", False)
    assert stage.clock.seconds <= 2000 + 330 + 60


def test_a_newer_session_is_not_taken_for_the_awaited_one(stage: Stage, journal: Journal, mode: str):
    journal.session("S-1", *RUN, (4000, "FAILED"))
    journal.session("S-2", (200, "INITIALIZING"), (230, "RUNNING"), (800, "COMPLETED"))
    stage.zuora.scripts["m"] += [(200, "INITIALIZING"), (230, "RUNNING"), (800, "COMPLETED")]
    ending = stage.play(sensor(mode, session_id="S-1"))
    assert ending.state == "failed"
    assert after(stage, mode, 4000)
    assert ending.error.session["certain"] is True


def test_a_session_that_was_live_before_is_not_taken_for_the_awaited_one(stage: Stage, journal: Journal, mode: str):
    journal.session("S-0", (-7000, "RUNNING"), (600, "COMPLETED"))
    journal.session("S-1", (3000, "RUNNING"), (4000, "FAILED"))
    stage.zuora.script("m", (0, "RUNNING"), (600, "COMPLETED"), (3000, "RUNNING"), (4000, "FAILED"))
    ending = stage.play(sensor(mode))
    assert ending.state == "failed"
    assert ending.error.session["session_id"] == "S-1"
    assert after(stage, mode, 4000)


def test_a_conflict_is_not_certain(stage: Stage, journal: Journal, mode: str):
    journal.session("S-1", *RUN, (854, "COMPLETED"))
    journal.say(854.1, "S-1", "FAILED", "RUNNING", started=10)
    ending = stage.play(sensor(mode, require_certain=True))
    if isinstance(ending.error, MeterSessionUncertain):
        assert "two different ends" in str(ending.error)
    else:
        assert PROMPT[mode] == 1  # it received the first end before the second was reported
        assert ending.state == "success"


class TestASessionOfAnotherMeter:
    @pytest.mark.parametrize("soft_fail", [False, True])
    def test_a_session_of_another_meter_is_a_misconfiguration_at_once(
        self, stage: Stage, journal: Journal, mode: str, soft_fail: bool
    ):
        journal.session("S-1", *((second - 600, status) for second, status in RUN), meter="n")
        ending = stage.play(sensor(mode, session_id="S-1", soft_fail=soft_fail))
        assert ending.state == "failed"
        assert isinstance(ending.error, MediationMisconfigured)
        assert "Session S-1 is of meter n, not of meter m." in str(ending.error)
        assert stage.clock.seconds <= 1
        assert stage.zuora.asked == []

    def test_the_other_meter_is_detected_at_the_first_callout(self, stage: Stage, journal: Journal, mode: str):
        journal.session("S-1", *RUN, meter="n")
        ending = stage.play(sensor(mode, session_id="S-1"))
        assert isinstance(ending.error, MediationMisconfigured)
        assert stage.clock.seconds <= 10 + 60 + 1

    def test_a_session_reported_for_both_meters_is_accepted(self, stage: Stage, journal: Journal, mode: str):
        journal.session("S-1", *RUN, (854, "COMPLETED"))
        journal.session("S-1", *RUN, (400, "FAILED"), meter="n")
        ending = stage.play(sensor(mode, session_id="S-1"))
        assert ending.state == "success"
        assert (ending.xcom["meter_id"], ending.xcom["evidence"], ending.xcom["certain"]) == ("m", "callout", True)
        assert after(stage, mode, 854)


class TestPreviousStatuses:
    @pytest.mark.parametrize(("before", "state"), [("PUSH_COMPLETED", "success"), ("RUNNING", "failed")])
    def test_the_previous_status_decides(self, stage: Stage, journal: Journal, mode: str, before: str, state: str):
        journal.session("S-1", *RUN)
        journal.say(854, "S-1", "COMPLETED", before, started=10)
        stage.zuora.scripts["m"].append((854, "COMPLETED"))
        ending = stage.play(sensor(mode, previous_statuses=["PUSH_COMPLETED"]))
        assert ending.state == state
        if state == "success":
            assert after(stage, mode, 854)
            assert ending.xcom["previous_status"] == "PUSH_COMPLETED"
        else:
            assert isinstance(ending.error, MeterSessionTimeout)
            assert "COMPLETED came after RUNNING, not after PUSH_COMPLETED" in str(ending.error)

    def test_previous_statuses_without_callouts_are_a_misconfiguration(self, stage: Stage, journal: Journal, mode: str):
        journal.callouts = False
        ending = stage.play(sensor(mode, previous_statuses=["PUSH_COMPLETED"], soft_fail=True))
        assert ending.state == "failed"
        assert isinstance(ending.error, MediationMisconfigured)
        assert "callout authentication" in str(ending.error)
        assert stage.clock.seconds <= 1

    def test_previous_statuses_without_a_feed_are_a_misconfiguration_after_a_while(
        self, stage: Stage, journal: Journal, mode: str
    ):
        journal.found = False
        ending = stage.play(sensor(mode, previous_statuses=["PUSH_COMPLETED"]))
        assert ending.state == "failed"
        assert isinstance(ending.error, MediationMisconfigured)
        assert "[mediation] feed_url" in str(ending.error)
        assert 60 <= stage.clock.seconds <= 100

    def test_previous_statuses_wait_for_a_feed_after_an_outage(self, stage: Stage, journal: Journal, mode: str):
        journal.session("S-1", *RUN)
        journal.say(900, "S-1", "COMPLETED", "PUSH_COMPLETED", started=10)
        journal.down = [(-1, 30), (300, 2000)]
        ending = stage.play(sensor(mode, previous_statuses=["PUSH_COMPLETED"]))
        assert ending.state == "success"
        assert 2000 <= stage.clock.seconds <= 2045


@pytest.mark.parametrize("named", [True, False])
def test_require_certain_waits_for_the_callout(stage: Stage, journal: Journal, mode: str, named: bool):
    journal.session("S-1", *RUN)
    journal.say(3000, "S-1", "COMPLETED", "RUNNING", started=10)  # Zuora's second attempt
    stage.zuora.scripts["m"].append((854, "COMPLETED"))
    ending = stage.play(sensor(mode, require_certain=True, **({"session_id": "S-1"} if named else {})))
    assert ending.state == "success"
    assert after(stage, mode, 3000)
    assert ending.xcom["certain"] is True


def test_a_wait_continues_with_polls_when_the_feed_is_lost(stage: Stage, journal: Journal, mode: str):
    journal.session("S-1", *RUN)
    journal.down = [(500, 1e9)]
    stage.zuora.scripts["m"].append((854, "COMPLETED"))
    ending = stage.play(sensor(mode))
    assert ending.state == "success"
    assert (ending.xcom["session_id"], ending.xcom["certain"]) == ("S-1", False)
    assert 854 <= stage.clock.seconds <= 920


def test_a_single_missing_answer_of_the_feed_changes_nothing(
    stage: Stage, journal: Journal, mode: str, capsys: Any, caplog: Any
):
    caplog.set_level("INFO")
    journal.session("S-1", *RUN, (854, "COMPLETED"))
    journal.down = [(second - 1, second + 1) for second in range(100, 800, 100)]
    assert stage.play(sensor(mode)).state == "success"
    missed = [at for at in journal.looks if any(begin <= at < end for begin, end in journal.down)]
    assert bool(missed) is (mode in ("poke", "reschedule"))
    said = capsys.readouterr().out + caplog.text
    assert "cannot be read" not in said
    assert min(stage.zuora.gaps("m")) >= 150


@pytest.mark.parametrize(("began", "ended", "said"), [(5, 25, False), (60, 200, True)])
def test_a_missing_feed_is_logged_after_a_minute_of_polls(
    stage: Stage, journal: Journal, mode: str, capsys: Any, caplog: Any, began: int, ended: int, said: bool
):
    caplog.set_level("INFO")
    journal.found = False
    stage.zuora.script("m", (0, "COMPLETED"), (began, "RUNNING"), (ended, "COMPLETED"))
    assert stage.play(sensor(mode, exclusive=True, settle=0)).state == "success"
    assert ended <= stage.clock.seconds <= ended + 25  # by polls at their own pace
    assert ("callouts cannot be read" in capsys.readouterr().out + caplog.text) is said


def test_an_outage_of_zuora_ends_no_wait_with_callouts(stage: Stage, journal: Journal, mode: str):
    journal.session("S-1", *RUN, (6500, "COMPLETED"))
    stage.zuora.scripts["m"].append((200, DOWN))
    ending = stage.play(sensor(mode, session_id="S-1", max_unreachable=1800))
    assert ending.state == "success"
    assert after(stage, mode, 6500)


def test_the_state_of_a_wait_survives_a_crash_of_the_triggerer(stage: Stage, journal: Journal, mode: str):
    # A wait with a session id keeps no record that its session was live: the feed reports it again.
    journal.session("S-1", *RUN, (401, "COMPLETED"), lost=("COMPLETED",))
    stage.zuora.scripts["m"].append((401, "COMPLETED"))
    stage.triggerer_dies_at = 400
    ending = stage.play(sensor(mode, session_id="S-1", exclusive=True))
    assert ending.state == "success"
    assert ending.xcom["certain"] is True
    assert stage.clock.seconds <= 445 + 330 + 60


def test_no_callout_is_missed_when_the_triggerer_crashes(stage: Stage, journal: Journal, mode: str):
    journal.session("S-1", *RUN, (420, "FAILED"))
    stage.triggerer_dies_at = 400
    ending = stage.play(sensor(mode))
    assert ending.state == "failed"
    assert ending.error.session["certain"] is True
    assert stage.clock.seconds <= 446


def test_a_wait_continues_after_a_crash_of_the_trigger(stage: Stage, journal: Journal, mode: str):
    journal.session("S-1", *RUN, (854, "COMPLETED"))
    stage.trigger_crashes = 2
    ending = stage.play(sensor(mode))
    assert ending.state == "success"
    assert ending.xcom["certain"] is True


def test_without_any_triggerer_the_deadline_ends_the_wait_with_a_last_poll(stage: Stage, journal: Journal, mode: str):
    journal.session("S-1", *RUN, (1790, "COMPLETED"))
    stage.triggerer_is_down = True
    ending = stage.play(sensor(mode, session_id="S-1", timeout=1800))
    # A trigger that never ran ends by Airflow's own timeout, a minute later.
    assert ending.state == "success"
    assert stage.clock.seconds <= 1861
    assert (journal.open, [end.outcome for end in journal.ended.values()]) == ({}, ["MET"])


def test_a_passed_deadline_fails_with_the_last_status(stage: Stage, journal: Journal, mode: str):
    journal.session("S-1", *RUN)
    ending = stage.play(sensor(mode, timeout=1800))
    assert isinstance(ending.error, MeterSessionTimeout)
    assert "session S-1 of meter m was RUNNING since 2026-03-31 09:00:40" in str(ending.error)
    assert stage.clock.seconds == pytest.approx(1800, abs=1)


def test_the_feed_status_is_logged_once(stage: Stage, journal: Journal, mode: str, capsys: Any, caplog: Any):
    caplog.set_level("INFO")
    journal.session("S-1", *RUN, (854, "COMPLETED"))
    stage.play(sensor(mode))
    said = capsys.readouterr().out + caplog.text
    assert said.count("callouts of connection 'mediation_default' are read at http://api/mediation") >= 1
    if mode != "deferrable":
        assert said.count("are read at") <= 2  # once, as each of two kinds of log may show it


def test_the_wait_its_end_and_its_polls_are_reported_to_the_journal(stage: Stage, journal: Journal, mode: str):
    journal.session("S-1", *RUN, (854, "COMPLETED"))
    stage.play(sensor(mode))
    assert journal.open == {}
    assert [end.outcome for end in journal.ended.values()] == ["MET"]
    shown = [entry.transition.status for entry in journal.entries if entry.transition]
    assert shown[0] == "COMPLETED"
    assert "RUNNING" in shown
    assert len(shown) <= 4


def test_a_process_on_a_worker_reports_its_calls_to_zuora_before_it_ends(stage: Stage, journal: Journal, mode: str):
    journal.session("S-1", *RUN, (100, "COMPLETED"))
    ending = stage.play(sensor(mode))
    assert ending.state == "success"
    # A trigger's process continues, and reports with its requests to the feed.
    leaves = {"poke": 1, "reschedule": ending.workers, "deferrable": 1, "started in the triggerer": 0}
    assert len(journal.calls_reported) == leaves[mode]


class TestTheHistoryInPlaceOfCallouts:
    """The connection takes no callouts, and its callout history is read: a change is reported some minutes later."""

    LATE = 400.0

    @pytest.fixture
    def history(self, journal: Journal) -> Journal:
        journal.callouts, journal.history = False, HistoryStatus(late=480, read=True)
        return journal

    def walk(self, history: Journal, *steps: tuple[float, str]) -> None:
        before = None
        for second, status in steps:
            history.say(second + self.LATE, "S-1", status, before, started=10, source=Source.HISTORY)
            before = status

    @pytest.mark.parametrize("options", [{}, {"session_id": "S-1"}, {"previous_statuses": ["RUNNING"]}])
    def test_it_ends_the_wait_with_certainty_though_a_poll_shows_the_end_before(
        self, stage: Stage, history: Journal, mode: str, options: dict[str, Any]
    ):
        stage.zuora.script("m", (0, "COMPLETED"), *RUN, (5000, "COMPLETED"))
        self.walk(history, *RUN, (5000, "COMPLETED"))
        ending = stage.play(sensor(mode, **options))
        assert ending.state == "success"
        assert after(stage, mode, 5000 + self.LATE)
        assert (ending.xcom["session_id"], ending.xcom["previous_status"]) == ("S-1", "RUNNING")
        assert (ending.xcom["evidence"], ending.xcom["certain"]) == ("history", True)
        assert len(stage.zuora.asked) <= 2 + 5400 / 300

    def test_an_end_that_it_never_has_is_uncertain(self, stage: Stage, history: Journal, mode: str):
        stage.zuora.script("m", (0, "COMPLETED"), *RUN, (5000, "COMPLETED"))
        self.walk(history, *RUN)
        ending = stage.play(sensor(mode, session_id="S-1"))
        assert ending.state == "success"
        assert (ending.xcom["evidence"], ending.xcom["certain"]) == ("poll", False)
        assert stage.clock.seconds >= 5000 + 480

    def test_while_nothing_reads_it_polls_decide(self, stage: Stage, history: Journal, mode: str):
        history.history = HistoryStatus(late=480, read=False)
        stage.zuora.script("m", (0, "COMPLETED"), *RUN, (5000, "COMPLETED"))
        ending = stage.play(sensor(mode, session_id="S-1"))
        assert ending.state == "success"
        assert ending.xcom["evidence"] == "poll"
        assert stage.clock.seconds < 5000 + 480
