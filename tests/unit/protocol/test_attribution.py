"""Stories of single waits: what each sequence of polls proves, and what it does not."""

from __future__ import annotations

import json
from datetime import timedelta

import pytest

from airflow_mediation_provider.protocol.attribution import NEWER_RUN, NOT_EXCLUSIVE, Attribution
from airflow_mediation_provider.protocol.condition import Outcome, SessionCondition
from airflow_mediation_provider.protocol.reading import FOREIGN, IDLE, LIVE, PollReading, PollVerdict
from airflow_mediation_provider.protocol.status import RunType, SessionStatus
from tests.unit.protocol.tenant import SETTLE, at

KNOWN = SessionCondition(meter_id="2470", session_id="R-1")
SENSED = SessionCondition(meter_id="2470")
DEBUG = SessionCondition(meter_id="2470", session_id="R-1", run_type=RunType.DEBUG)


def known(
    condition: SessionCondition = KNOWN, *, baseline: str | None = "COMPLETED", exclusive: bool = True
) -> Attribution:
    """Polls of a session that is known to have begun at second 0."""
    settle = timedelta(seconds=SETTLE)
    return Attribution(condition, since=at(0), begun=True, baseline=baseline, exclusive=exclusive, settle=settle)


def sensed(
    condition: SessionCondition = SENSED, *, baseline: str | None = None, exclusive: bool = True, since: int = 0
) -> Attribution:
    """Polls for the first session that begins at or after second 0."""
    settle = timedelta(seconds=SETTLE)
    return Attribution(condition, since=at(since), begun=False, baseline=baseline, exclusive=exclusive, settle=settle)


def read(polls: Attribution, *readings: tuple[int, str]) -> PollVerdict:
    """Return the verdict on the last reading, all before it being none that ends the wait."""
    verdicts = [polls.observe(PollReading(status, at(second))) for second, status in readings]
    assert {verdict.outcome for verdict in verdicts[:-1]} <= {Outcome.WAITING}
    return verdicts[-1]


class TestKnownSession:
    def test_seen_alive_and_then_ended(self) -> None:
        assert read(known(), (5, "INITIALIZING"), (40, "RUNNING"), (90, "COMPLETED")) == PollVerdict(
            Outcome.MET, status="COMPLETED", certain=True
        )

    def test_failed(self) -> None:
        verdict = read(known(), (40, "RUNNING"), (90, "FAILED"))
        assert (verdict.outcome, verdict.status, verdict.certain) == (Outcome.FAILED, "FAILED", True)

    @pytest.mark.parametrize("stale", ["COMPLETED", "FAILED", "CANCELED"])
    def test_the_end_of_the_session_before_does_not_end_it(self, stale: str) -> None:
        polls = known(baseline=stale)
        assert read(polls, (1, stale), (29, stale)).speaks is False
        assert read(polls, (45, "RUNNING"), (80, "COMPLETED")).certain

    def test_a_stale_life_and_end_of_the_session_before_do_not_end_it(self) -> None:
        polls = known(baseline="COMPLETED")
        assert read(polls, (1, "RUNNING"), (2, "FAILED"), (29, "FAILED")).outcome is Outcome.WAITING
        assert read(polls, (30, "RUNNING"), (31, "COMPLETED")).status == "COMPLETED"

    def test_another_end_than_before_needs_two_polls_that_agree(self) -> None:
        polls = known(baseline="FAILED")
        assert read(polls, (40, "COMPLETED"), (69, "COMPLETED")).outcome is Outcome.WAITING
        assert read(polls, (70, "COMPLETED")) == PollVerdict(Outcome.MET, status="COMPLETED", certain=True)

    @pytest.mark.parametrize("other", ["CANCELED", "PAUSED", "99"])
    def test_polls_that_differ_do_not_agree(self, other: str) -> None:
        polls = known(baseline="FAILED")
        readings = (40, "COMPLETED"), (60, other), (75, "COMPLETED"), (89, "COMPLETED")
        assert read(polls, *readings).outcome is Outcome.WAITING

    def test_agreeing_takes_a_second_poll_even_with_nothing_to_settle(self) -> None:
        polls = Attribution(KNOWN, since=at(0), begun=True, baseline="FAILED", exclusive=True, settle=timedelta())
        assert read(polls, (1, "COMPLETED"), (1, "COMPLETED")).outcome is Outcome.WAITING
        assert read(polls, (2, "COMPLETED")).certain

    @pytest.mark.parametrize("baseline", ["COMPLETED", None])
    def test_the_same_end_as_before_ends_it_late_and_uncertain(self, baseline: str | None) -> None:
        polls = known(baseline=baseline)
        assert read(polls, (40, "COMPLETED"), (80, "COMPLETED"), (119, "COMPLETED")).outcome is Outcome.WAITING
        verdict = read(polls, (120, "COMPLETED"))
        assert (verdict.outcome, verdict.certain) == (Outcome.MET, False)
        assert "showed no status but COMPLETED" in verdict.reason

    def test_a_single_late_poll_is_not_enough(self) -> None:
        polls = known(baseline="COMPLETED")
        assert read(polls, (500, "COMPLETED"), (529, "COMPLETED")).outcome is Outcome.WAITING
        assert read(polls, (530, "COMPLETED")).outcome is Outcome.MET

    def test_without_the_promise_it_is_not_certain(self) -> None:
        verdict = read(known(exclusive=False), (40, "RUNNING"), (90, "COMPLETED"))
        assert (verdict.outcome, verdict.certain, verdict.reason) == (Outcome.MET, False, NOT_EXCLUSIVE)

    @pytest.mark.parametrize("baseline", ["RUNNING", "STOPPING", "TESTING", "99"])
    def test_a_meter_that_was_live_before_breaks_the_promise(self, baseline: str) -> None:
        verdict = read(known(baseline=baseline), (40, "RUNNING"), (90, "COMPLETED"))
        assert (verdict.outcome, verdict.certain) == (Outcome.MET, False)
        assert f"was {baseline} before" in verdict.reason

    @pytest.mark.parametrize("baseline", sorted(IDLE))
    def test_an_idle_meter_does_not(self, baseline: str) -> None:
        assert read(known(baseline=baseline), (40, "RUNNING"), (90, "COMPLETED")).certain

    def test_back_to_initializing_is_a_newer_run(self) -> None:
        verdict = read(known(), (40, "RUNNING"), (90, "INITIALIZING"), (120, "RUNNING"), (200, "COMPLETED"))
        assert (verdict.outcome, verdict.certain, verdict.reason) == (Outcome.MET, False, NEWER_RUN)

    def test_initializing_after_what_may_be_stale_is_not(self) -> None:
        readings = (5, "RUNNING"), (6, "FAILED"), (40, "INITIALIZING"), (50, "RUNNING"), (90, "COMPLETED")
        assert read(known(), *readings).certain

    def test_pausing_and_resuming_is_not(self) -> None:
        verdict = read(known(), (40, "RUNNING"), (90, "STOPPING"), (95, "PAUSED"), (120, "RUNNING"), (200, "COMPLETED"))
        assert verdict.certain

    def test_an_end_that_was_not_asked_for_is_never_met_by_a_newer_session(self) -> None:
        patient = SessionCondition(meter_id="2470", session_id="R-1", fail_on=())
        polls = known(patient)
        assert read(polls, (40, "RUNNING"), (90, "FAILED"), (200, "FAILED")).outcome is Outcome.WAITING
        verdict = read(polls, (220, "INITIALIZING"), (240, "RUNNING"), (300, "COMPLETED"), (900, "COMPLETED"))
        assert (verdict.outcome, verdict.speaks) == (Outcome.WAITING, False)
        assert "newer one hides it" in verdict.reason

    def test_a_session_that_recovers_by_itself_meets_it_but_not_certainly(self) -> None:
        patient = SessionCondition(meter_id="2470", session_id="R-1", fail_on=())
        verdict = read(known(patient), (40, "RUNNING"), (90, "FAILED"), (100, "RUNNING"), (300, "COMPLETED"))
        assert (verdict.outcome, verdict.certain) == (Outcome.MET, False)

    @pytest.mark.parametrize("unknown", ["99", "HIBERNATING", "NEVER_RUN"])
    def test_an_unknown_status_neither_ends_it_nor_proves_anything(self, unknown: str) -> None:
        polls = known(baseline="COMPLETED")
        assert read(polls, (40, unknown), (500, unknown), (900, unknown)).outcome is Outcome.WAITING
        assert read(polls, (901, "COMPLETED")).outcome is Outcome.WAITING

    def test_what_comes_late_or_twice_changes_nothing(self) -> None:
        polls = known(baseline="FAILED")
        readings = (40, "COMPLETED"), (69, "COMPLETED"), (69, "COMPLETED"), (10, "RUNNING"), (41, "FAILED")
        assert read(polls, *readings).outcome is Outcome.WAITING
        assert read(polls, (70, "COMPLETED")).certain

    def test_what_was_read_before_the_session_began_says_nothing(self) -> None:
        polls = known(baseline=None)
        assert read(polls, (-5, "RUNNING"), (40, "COMPLETED"), (70, "COMPLETED")).outcome is Outcome.WAITING

    def test_what_callouts_say_of_another_session_breaks_the_promise(self) -> None:
        polls = known()
        polls.contradict("session R-2 ran meanwhile")
        polls.contradict("and R-3")
        verdict = read(polls, (40, "RUNNING"), (90, "COMPLETED"))
        assert (verdict.certain, verdict.reason) == (False, "session R-2 ran meanwhile")


class TestStatusesThatPass:
    def test_paused_is_waited_for(self) -> None:
        stopped = SessionCondition(meter_id="2470", session_id="R-1", statuses=("PAUSED", "COMPLETED"))
        assert read(known(stopped), (40, "STOPPING"), (50, "PAUSED")).status == "PAUSED"

    def test_paused_is_not_waited_for_unless_asked(self) -> None:
        assert read(known(), (40, "RUNNING"), (50, "PAUSED"), (900, "PAUSED")).outcome is Outcome.WAITING

    def test_running_is_waited_for(self) -> None:
        running = SessionCondition(meter_id="2470", session_id="R-1", statuses=("RUNNING",))
        assert read(known(running), (5, "RUNNING"), (30, "RUNNING")).certain

    def test_a_glimpse_of_what_was_asked_for_is_no_failure(self) -> None:
        running = SessionCondition(meter_id="2470", session_id="R-1", statuses=("RUNNING",))
        verdict = read(known(running), (5, "RUNNING"), (35, "COMPLETED"))
        assert (verdict.outcome, verdict.status, verdict.certain) == (Outcome.MET, "RUNNING", False)

    def test_a_glimpse_of_what_was_there_before_is_none(self) -> None:
        paused = SessionCondition(meter_id="2470", session_id="R-1", statuses=("PAUSED",))
        verdict = read(known(paused, baseline="PAUSED"), (5, "PAUSED"), (40, "RUNNING"), (60, "FAILED"))
        assert verdict.outcome is Outcome.FAILED

    def test_any_end_meets_what_waits_for_any(self) -> None:
        ends = ("COMPLETED", "FAILED", "CANCELED")
        anyhow = SessionCondition(meter_id="2470", session_id="R-1", statuses=ends)
        assert [read(known(anyhow), (40, "RUNNING"), (50, end)).status for end in ends] == list(ends)


class TestMasked:
    @pytest.mark.parametrize("debug", ["TESTING", "TESTING_FAILED", "TESTING_PASSED"])
    def test_a_debug_run_is_waited_out(self, debug: str) -> None:
        polls = known()
        verdict = read(polls, (40, "RUNNING"), (60, debug))
        assert (verdict.outcome, verdict.speaks) == (Outcome.WAITING, False)
        assert f"DEBUG run of the meter ({debug}) hides" in verdict.reason
        verdict = read(polls, (80, "COMPLETED"))
        assert (verdict.outcome, verdict.certain) == (Outcome.MET, False)
        assert "DEBUG run" in verdict.reason

    def test_a_debug_run_just_before_is_no_contradiction(self) -> None:
        """A DEBUG run as the gate before the NORMAL one: its status is still shown for a while."""
        polls = known(baseline="TESTING_PASSED")
        readings = (1, "TESTING"), (5, "TESTING_PASSED"), (40, "TESTING_PASSED"), (50, "RUNNING"), (90, "COMPLETED")
        assert read(polls, *readings).certain

    def test_polls_on_both_sides_of_a_mask_do_not_agree(self) -> None:
        readings = (40, "COMPLETED"), (50, "TESTING"), (71, "COMPLETED"), (100, "COMPLETED")
        assert read(known(baseline="FAILED"), *readings).outcome is Outcome.WAITING

    def test_a_debug_wait(self) -> None:
        verdict = read(known(DEBUG), (5, "TESTING"), (60, "TESTING_PASSED"))
        assert (verdict.outcome, verdict.status, verdict.certain) == (Outcome.MET, "TESTING_PASSED", True)

    def test_a_normal_run_hides_a_debug_one(self) -> None:
        polls = known(DEBUG)
        verdict = read(polls, (40, "TESTING"), (60, "RUNNING"))
        assert (verdict.speaks, "NORMAL run" in verdict.reason) == (False, True)
        assert read(polls, (61, "TESTING"), (90, "TESTING_FAILED")).certain is False

    def test_a_debug_run_may_be_initializing(self) -> None:
        assert read(known(DEBUG), (40, "INITIALIZING"), (50, "TESTING"), (90, "TESTING_PASSED")).certain


class TestSensed:
    def test_nothing_that_was_before_meets_it(self) -> None:
        verdict = read(sensed(), (0, "COMPLETED"), (60, "COMPLETED"), (9000, "COMPLETED"))
        assert (verdict.outcome, verdict.speaks) == (Outcome.WAITING, False)
        assert "no session has begun yet" in verdict.reason

    def test_a_session_that_begins_is_bound_and_ends(self) -> None:
        polls = sensed()
        assert read(polls, (0, "COMPLETED"), (40, "COMPLETED"), (60, "INITIALIZING")).speaks
        assert read(polls, (80, "RUNNING"), (120, "COMPLETED")).certain

    def test_a_given_baseline_is_the_status_before(self) -> None:
        assert read(sensed(baseline="FAILED"), (31, "RUNNING"), (70, "COMPLETED")).certain

    def test_a_stale_end_right_after_the_begin_does_not_end_it(self) -> None:
        """Ours began at 45; the poll at 55 still shows the session before."""
        polls = sensed()
        readings = (0, "COMPLETED"), (40, "COMPLETED"), (50, "RUNNING"), (55, "COMPLETED"), (79, "COMPLETED")
        assert read(polls, *readings).outcome is Outcome.WAITING
        assert read(polls, (80, "RUNNING"), (99, "FAILED")).status == "FAILED"

    def test_a_stale_life_soon_after_the_begin_is_not_certain(self) -> None:
        readings = (1, "COMPLETED"), (3, "INITIALIZING"), (32, "COMPLETED"), (33, "COMPLETED")
        verdict = read(sensed(), *readings)
        assert (verdict.outcome, verdict.certain) == (Outcome.MET, False)
        assert "too soon after the wait began" in verdict.reason

    def test_a_life_that_goes_on_is_the_awaited_one_only_from_then_on(self) -> None:
        """The life read at 10 may be a stale one; that at 50 is not, so what is read soon after it may be stale."""
        polls = sensed()
        readings = (1, "COMPLETED"), (10, "RUNNING"), (50, "RUNNING"), (55, "COMPLETED"), (79, "COMPLETED")
        assert read(polls, *readings).outcome is Outcome.WAITING
        assert read(polls, (80, "COMPLETED")).certain

    def test_a_session_that_nobody_saw_alive(self) -> None:
        polls = sensed()
        readings = (0, "FAILED"), (40, "FAILED"), (50, "COMPLETED"), (79, "COMPLETED")
        assert read(polls, *readings).outcome is Outcome.WAITING
        assert read(polls, (80, "COMPLETED")).certain

    def test_a_session_that_nobody_saw_alive_soon_after_the_begin(self) -> None:
        verdict = read(sensed(), (0, "FAILED"), (20, "COMPLETED"), (60, "COMPLETED"))
        assert (verdict.outcome, verdict.certain) == (Outcome.MET, False)

    @pytest.mark.parametrize("given", ["RUNNING", None])
    def test_a_session_that_is_live_at_the_first_look_is_bound_uncertain(self, given: str | None) -> None:
        verdict = read(sensed(baseline=given), (0, "RUNNING"), (50, "RUNNING"), (90, "COMPLETED"))
        assert (verdict.outcome, verdict.certain) == (Outcome.MET, False)
        assert "was RUNNING before" in verdict.reason

    def test_readings_before_since_are_the_status_before(self) -> None:
        polls = sensed(since=100)
        assert read(polls, (0, "FAILED"), (50, "RUNNING"), (90, "COMPLETED"), (131, "COMPLETED")).speaks is False
        assert read(polls, (140, "RUNNING"), (200, "FAILED")).certain

    def test_a_debug_run_before_it_begins(self) -> None:
        polls = sensed(exclusive=True)
        readings = (0, "COMPLETED"), (40, "TESTING"), (50, "TESTING_PASSED"), (60, "RUNNING"), (120, "COMPLETED")
        verdict = read(polls, *readings)
        assert (verdict.outcome, verdict.certain) == (Outcome.MET, False)


class TestMemory:
    def test_it_survives_as_plain_json(self) -> None:
        polls = sensed()
        read(polls, (0, "COMPLETED"), (40, "COMPLETED"), (50, "RUNNING"), (55, "TESTING"), (60, "COMPLETED"))
        again = Attribution.from_dict(SENSED, json.loads(json.dumps(polls.to_dict())))
        assert again.to_dict() == polls.to_dict()
        assert read(again, (80, "COMPLETED")) == read(polls, (80, "COMPLETED"))

    def test_unknown_keys_are_left_out_and_missing_ones_are_as_at_the_begin(self) -> None:
        polls = Attribution.from_dict(KNOWN, {"since": at(0).isoformat(), "begun": True, "of_the_future": [1]})
        assert polls.to_dict() == Attribution(KNOWN, since=at(0), begun=True).to_dict()

    def test_without_its_begin_it_is_refused(self) -> None:
        with pytest.raises(ValueError, match="since"):
            Attribution.from_dict(KNOWN, {"begun": True})


def test_every_status_is_of_one_kind() -> None:
    for run_type in RunType:
        terminal = set(SessionStatus) - LIVE[run_type] - FOREIGN[run_type]
        assert terminal <= IDLE | {"INITIALIZING"}
        assert not LIVE[run_type] & FOREIGN[run_type]
    with pytest.raises(ValueError, match="read_at"):
        PollReading("RUNNING", at(0).replace(tzinfo=None))
