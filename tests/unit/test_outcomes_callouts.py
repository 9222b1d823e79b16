"""The outcome table where callouts come: the same verdict by the same evidence in every mode."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

from airflow_mediation_provider.exceptions import (
    MediationMisconfigured,
    MeterSessionFailed,
    MeterSessionTimeout,
    MeterSessionUncertain,
)
from airflow_mediation_provider.protocol.errors import TransientError
from tests.unit.test_outcomes import MODES, sensor
from tests.unit.virtual_feed import Journal

if TYPE_CHECKING:
    from tests.unit.task_stage import Stage

pytestmark = pytest.mark.parametrize("mode", MODES)
DOWN = TransientError("connection refused")
RUN = [(10, "INITIALIZING"), (40, "RUNNING")]
# How long after a callout a task knows of it: a trigger at once, a worker at its next poke.
PROMPT = {"deferrable": 1, "started in the triggerer": 1, "poke": 21, "reschedule": 21}


@pytest.fixture
def journal(stage: Stage) -> Journal:
    # The waits begin at second 0, and the runs were due an hour before.
    stage.journal = Journal(stage.clock)
    stage.zuora.script("m", (0, "COMPLETED"), (10, "INITIALIZING"), (40, "RUNNING"))
    return stage.journal


def after(stage: Stage, mode: str, second: float) -> bool:
    return second <= stage.clock.seconds <= second + PROMPT[mode]


@pytest.mark.parametrize("named", [True, False])
def test_condition_met(stage: Stage, journal: Journal, mode: str, named: bool):
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
    # Zuora is asked to cross-check only, and by the triggerer on behalf of all.
    assert len(stage.zuora.asked) <= 1 + 5000 / 300
    assert min(stage.zuora.gaps("m")) >= 150  # the worker's look, and the first of the triggerer


@pytest.mark.parametrize(("soft_fail", "state"), [(False, "failed"), (True, "skipped")])
@pytest.mark.parametrize("status", ["FAILED", "CANCELED"])
def test_a_status_of_fail_on(stage: Stage, journal: Journal, mode: str, soft_fail: bool, state: str, status: str):
    journal.session("S-1", *RUN, (854, status))
    ending = stage.play(sensor(mode, soft_fail=soft_fail))
    assert ending.state == state
    assert after(stage, mode, 854)
    if not soft_fail:
        assert isinstance(ending.error, MeterSessionFailed)
        assert ending.error.session["certain"] is True


def test_one_that_ended_before_the_sensor_began_needs_no_request_to_zuora(stage: Stage, journal: Journal, mode: str):
    journal.session("S-0", (-7000, "RUNNING"), (-6000, "FAILED"))
    journal.session("S-1", (-3000, "RUNNING"), (-1000, "COMPLETED"))
    journal.session("S-2", (-500, "RUNNING"), (-100, "FAILED"))
    ending = stage.play(sensor(mode))
    assert ending.state == "success"
    assert ending.xcom["session_id"] == "S-1"
    assert stage.clock.seconds <= 1
    assert stage.zuora.asked == []


def test_an_end_whose_callout_is_lost(stage: Stage, journal: Journal, mode: str):
    journal.session("S-1", *RUN, (854, "COMPLETED"), lost=("COMPLETED",))
    stage.zuora.scripts["m"].append((854, "COMPLETED"))
    ending = stage.play(sensor(mode))
    assert ending.state == "success"
    assert (ending.xcom["session_id"], ending.xcom["evidence"], ending.xcom["certain"]) == ("S-1", "poll", False)
    assert 854 + 30 <= stage.clock.seconds <= 854 + 330 + 30 + 21


def test_a_session_of_which_every_callout_is_lost(stage: Stage, journal: Journal, mode: str):
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


def test_a_session_that_was_live_before_is_not_taken_for_it(stage: Stage, journal: Journal, mode: str):
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
        assert PROMPT[mode] == 1  # it knew of the first end before the second was reported
        assert ending.state == "success"


class TestPreviousStatuses:
    @pytest.mark.parametrize(("before", "state"), [("PUSH_COMPLETED", "success"), ("RUNNING", "failed")])
    def test_the_right_one_came_before_or_never(
        self, stage: Stage, journal: Journal, mode: str, before: str, state: str
    ):
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
            assert "COMPLETED came after RUNNING, which was not asked for" in str(ending.error)

    def test_without_callouts_it_is_a_misconfiguration(self, stage: Stage, journal: Journal, mode: str):
        journal.callouts = False
        ending = stage.play(sensor(mode, previous_statuses=["PUSH_COMPLETED"], soft_fail=True))
        assert ending.state == "failed"
        assert isinstance(ending.error, MediationMisconfigured)
        assert "callout authentication" in str(ending.error)
        assert stage.clock.seconds <= 1

    def test_without_a_feed_too_once_it_was_looked_for_long_enough(self, stage: Stage, journal: Journal, mode: str):
        journal.found = False
        ending = stage.play(sensor(mode, previous_statuses=["PUSH_COMPLETED"]))
        assert ending.state == "failed"
        assert isinstance(ending.error, MediationMisconfigured)
        assert "[mediation] feed_url" in str(ending.error)
        assert 60 <= stage.clock.seconds <= 100

    def test_a_feed_that_is_down_for_a_while_is_waited_for(self, stage: Stage, journal: Journal, mode: str):
        journal.session("S-1", *RUN)
        journal.say(900, "S-1", "COMPLETED", "PUSH_COMPLETED", started=10)
        journal.down = [(-1, 30), (300, 2000)]
        ending = stage.play(sensor(mode, previous_statuses=["PUSH_COMPLETED"]))
        assert ending.state == "success"
        assert 2000 <= stage.clock.seconds <= 2045


@pytest.mark.parametrize("named", [True, False])
def test_required_certainty_waits_for_the_callout(stage: Stage, journal: Journal, mode: str, named: bool):
    journal.session("S-1", *RUN)
    journal.say(3000, "S-1", "COMPLETED", "RUNNING", started=10)  # Zuora's second attempt
    stage.zuora.scripts["m"].append((854, "COMPLETED"))
    ending = stage.play(sensor(mode, require_certain=True, **({"session_id": "S-1"} if named else {})))
    assert ending.state == "success"
    assert after(stage, mode, 3000)
    assert ending.xcom["certain"] is True


def test_a_feed_that_is_lost_leaves_the_wait_to_polls(stage: Stage, journal: Journal, mode: str):
    journal.session("S-1", *RUN)
    journal.down = [(500, 1e9)]
    stage.zuora.scripts["m"].append((854, "COMPLETED"))
    ending = stage.play(sensor(mode))
    assert ending.state == "success"
    assert (ending.xcom["session_id"], ending.xcom["certain"]) == ("S-1", False)
    assert 854 <= stage.clock.seconds <= 920


def test_zuora_out_of_reach_ends_no_wait_that_callouts_serve(stage: Stage, journal: Journal, mode: str):
    journal.session("S-1", *RUN, (6500, "COMPLETED"))
    stage.zuora.scripts["m"].append((200, DOWN))
    ending = stage.play(sensor(mode, session_id="S-1", max_unreachable=1800))
    assert ending.state == "success"
    assert after(stage, mode, 6500)


def test_a_triggerer_that_dies_takes_no_knowledge_along(stage: Stage, journal: Journal, mode: str):
    # Nobody keeps for a named wait that its session was seen alive. What the feed tells of it says so.
    journal.session("S-1", *RUN, (401, "COMPLETED"), lost=("COMPLETED",))
    stage.zuora.scripts["m"].append((401, "COMPLETED"))
    stage.triggerer_dies_at = 400
    ending = stage.play(sensor(mode, session_id="S-1", exclusive=True))
    assert ending.state == "success"
    assert ending.xcom["certain"] is True
    assert stage.clock.seconds <= 445 + 330 + 60


def test_a_triggerer_that_dies_misses_no_callout(stage: Stage, journal: Journal, mode: str):
    journal.session("S-1", *RUN, (420, "FAILED"))
    stage.triggerer_dies_at = 400
    ending = stage.play(sensor(mode))
    assert ending.state == "failed"
    assert ending.error.session["certain"] is True
    assert stage.clock.seconds <= 446


def test_a_crashed_trigger_is_no_answer(stage: Stage, journal: Journal, mode: str):
    journal.session("S-1", *RUN, (854, "COMPLETED"))
    stage.trigger_crashes = 2
    ending = stage.play(sensor(mode))
    assert ending.state == "success"
    assert ending.xcom["certain"] is True


def test_no_triggerer_at_all_ends_by_the_deadline_with_a_last_look(stage: Stage, journal: Journal, mode: str):
    journal.session("S-1", *RUN, (1790, "COMPLETED"))
    stage.triggerer_is_down = True
    ending = stage.play(sensor(mode, session_id="S-1", timeout=1800))
    # A trigger that was never run leaves it to Airflow's own timeout, a minute later.
    assert ending.state == "success"
    assert stage.clock.seconds <= 1861
    assert (journal.open, [end.outcome for end in journal.ended.values()]) == ({}, ["MET"])


def test_the_deadline_passed(stage: Stage, journal: Journal, mode: str):
    journal.session("S-1", *RUN)
    ending = stage.play(sensor(mode, timeout=1800))
    assert isinstance(ending.error, MeterSessionTimeout)
    assert "session S-1 of meter m was RUNNING since 2026-03-31 09:00:40" in str(ending.error)
    assert stage.clock.seconds == pytest.approx(1800, abs=1)


def test_the_log_says_once_what_the_wait_rests_on(stage: Stage, journal: Journal, mode: str, capsys: Any, caplog: Any):
    caplog.set_level("INFO")
    journal.session("S-1", *RUN, (854, "COMPLETED"))
    stage.play(sensor(mode))
    said = capsys.readouterr().out + caplog.text
    assert said.count("callouts of connection 'mediation_default' are read at http://api/mediation") >= 1
    if mode != "deferrable":
        assert said.count("are read at") <= 2  # once, as each of two kinds of log may show it


def test_the_journal_hears_of_the_wait_its_end_and_its_polls(stage: Stage, journal: Journal, mode: str):
    journal.session("S-1", *RUN, (854, "COMPLETED"))
    stage.play(sensor(mode))
    assert journal.open == {}
    assert [end.outcome for end in journal.ended.values()] == ["MET"]
    shown = [entry.transition.status for entry in journal.entries if entry.transition]
    assert shown[0] == "COMPLETED"
    assert "RUNNING" in shown
    assert len(shown) <= 4


def test_whoever_leaves_a_worker_has_reported_the_calls_to_zuora(stage: Stage, journal: Journal, mode: str):
    journal.session("S-1", *RUN, (100, "COMPLETED"))
    ending = stage.play(sensor(mode))
    assert ending.state == "success"
    # A trigger's process goes on, and reports with its looks at the feed.
    leaves = {"poke": 1, "reschedule": ending.workers, "deferrable": 1, "started in the triggerer": 0}
    assert len(journal.calls_reported) == leaves[mode]
