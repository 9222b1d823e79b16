"""Sequences of polls of single waits: what each one proves, and what it does not."""

from __future__ import annotations

import json
from datetime import timedelta

import pytest

from airflow_mediation_provider.protocol.sessions.journal_entry import PollReading
from airflow_mediation_provider.protocol.status import (
    ANY_TERMINAL,
    ENDS_BY_POLL,
    IDLE,
    LIVE,
    RunType,
    SessionStatus,
    may_show,
)
from airflow_mediation_provider.protocol.waits.condition import Outcome, SessionCondition
from airflow_mediation_provider.protocol.waits.poll_evidence import (
    NEWER_RUN,
    NOT_EXCLUSIVE,
    PollConclusion,
    PollEvidence,
)
from tests.unit.protocol.tenant import SETTLE, at, state

KNOWN = SessionCondition(meter_id="2470", session_id="R-1")
SENSED = SessionCondition(meter_id="2470")
DEBUG = SessionCondition(meter_id="2470", session_id="R-1", run_types=(RunType.DEBUG,))
BOTH = SessionCondition(meter_id="2470", run_types=(RunType.NORMAL, RunType.DEBUG))


def known(
    condition: SessionCondition = KNOWN, *, baseline: str | None = "COMPLETED", exclusive: bool = True
) -> PollEvidence:
    """Polls of a session that is known to have begun at second 0."""
    settle = timedelta(seconds=SETTLE)
    return PollEvidence(condition, since=at(0), begun=True, baseline=baseline, exclusive=exclusive, settle=settle)


def sensed(
    condition: SessionCondition = SENSED, *, baseline: str | None = None, exclusive: bool = True, since: int = 0
) -> PollEvidence:
    """Polls for the first session that begins at or after second 0."""
    settle = timedelta(seconds=SETTLE)
    return PollEvidence(condition, since=at(since), begun=False, baseline=baseline, exclusive=exclusive, settle=settle)


def read(polls: PollEvidence, *readings: tuple[int, str]) -> PollConclusion:
    """Return the conclusion from the last reading; no earlier one may end the wait."""
    verdicts = [polls.observe(PollReading(status, at(second))) for second, status in readings]
    assert {verdict.outcome for verdict in verdicts[:-1]} <= {Outcome.WAITING}
    return verdicts[-1]


class TestKnownSession:
    def test_a_session_polled_live_and_then_completed_meets_the_wait(self) -> None:
        assert read(known(), (5, "INITIALIZING"), (40, "RUNNING"), (90, "COMPLETED")) == PollConclusion(
            Outcome.MET, status="COMPLETED", certain=True
        )

    def test_a_session_polled_live_and_then_failed_fails_the_wait(self) -> None:
        verdict = read(known(), (40, "RUNNING"), (90, "FAILED"))
        assert (verdict.outcome, verdict.status, verdict.certain) == (Outcome.FAILED, "FAILED", True)

    @pytest.mark.parametrize("stale", ["COMPLETED", "FAILED", "CANCELED"])
    def test_the_end_of_the_previous_session_does_not_end_the_wait(self, stale: str) -> None:
        polls = known(baseline=stale)
        assert read(polls, (1, stale), (29, stale)).counts is False
        assert read(polls, (45, "RUNNING"), (80, "COMPLETED")).certain

    def test_stale_readings_of_the_previous_session_do_not_end_the_wait(self) -> None:
        polls = known(baseline="COMPLETED")
        assert read(polls, (1, "RUNNING"), (2, "FAILED"), (29, "FAILED")).outcome is Outcome.WAITING
        assert read(polls, (30, "RUNNING"), (31, "COMPLETED")).status == "COMPLETED"

    def test_a_changed_end_needs_two_polls_that_agree(self) -> None:
        polls = known(baseline="FAILED")
        assert read(polls, (40, "COMPLETED"), (69, "COMPLETED")).outcome is Outcome.WAITING
        assert read(polls, (70, "COMPLETED")) == PollConclusion(Outcome.MET, status="COMPLETED", certain=True)

    @pytest.mark.parametrize("other", ["CANCELED", "PAUSED", "99"])
    def test_polls_that_differ_do_not_agree(self, other: str) -> None:
        polls = known(baseline="FAILED")
        readings = (40, "COMPLETED"), (60, other), (75, "COMPLETED"), (89, "COMPLETED")
        assert read(polls, *readings).outcome is Outcome.WAITING

    def test_a_second_poll_is_needed_even_with_a_settle_time_of_zero(self) -> None:
        polls = PollEvidence(KNOWN, since=at(0), begun=True, baseline="FAILED", exclusive=True, settle=timedelta())
        assert read(polls, (1, "COMPLETED"), (1, "COMPLETED")).outcome is Outcome.WAITING
        assert read(polls, (2, "COMPLETED")).certain

    @pytest.mark.parametrize("baseline", ["COMPLETED", None])
    def test_the_same_end_as_before_ends_the_wait_late_and_uncertain(self, baseline: str | None) -> None:
        polls = known(baseline=baseline)
        assert read(polls, (40, "COMPLETED"), (80, "COMPLETED"), (119, "COMPLETED")).outcome is Outcome.WAITING
        verdict = read(polls, (120, "COMPLETED"))
        assert (verdict.outcome, verdict.certain) == (Outcome.MET, False)
        assert "showed no status but COMPLETED" in verdict.reason

    def test_a_single_late_poll_is_not_enough(self) -> None:
        polls = known(baseline="COMPLETED")
        assert read(polls, (500, "COMPLETED"), (529, "COMPLETED")).outcome is Outcome.WAITING
        assert read(polls, (530, "COMPLETED")).outcome is Outcome.MET

    def test_without_the_promise_of_exclusive_the_end_is_not_certain(self) -> None:
        verdict = read(known(exclusive=False), (40, "RUNNING"), (90, "COMPLETED"))
        assert (verdict.outcome, verdict.certain, verdict.reason) == (Outcome.MET, False, NOT_EXCLUSIVE)

    @pytest.mark.parametrize("baseline", ["RUNNING", "STOPPING", "TESTING", "99"])
    def test_a_meter_that_was_live_before_breaks_the_promise(self, baseline: str) -> None:
        verdict = read(known(baseline=baseline), (40, "RUNNING"), (90, "COMPLETED"))
        assert (verdict.outcome, verdict.certain) == (Outcome.MET, False)
        assert f"was {baseline} before" in verdict.reason

    @pytest.mark.parametrize("baseline", sorted(IDLE))
    def test_a_meter_that_was_idle_before_keeps_the_promise(self, baseline: str) -> None:
        assert read(known(baseline=baseline), (40, "RUNNING"), (90, "COMPLETED")).certain

    def test_a_return_to_initializing_is_a_newer_run(self) -> None:
        verdict = read(known(), (40, "RUNNING"), (90, "INITIALIZING"), (120, "RUNNING"), (200, "COMPLETED"))
        assert (verdict.outcome, verdict.certain, verdict.reason) == (Outcome.MET, False, NEWER_RUN)

    def test_initializing_after_a_pause_is_a_newer_run(self) -> None:
        polls = known()
        read(polls, (5, "INITIALIZING"), (40, "PAUSED"), (90, "INITIALIZING"))
        assert polls.newer

    def test_initializing_after_a_reading_that_may_be_stale_is_not_a_newer_run(self) -> None:
        readings = (5, "RUNNING"), (6, "FAILED"), (40, "INITIALIZING"), (50, "RUNNING"), (90, "COMPLETED")
        assert read(known(), *readings).certain

    def test_pausing_and_resuming_is_not_a_newer_run(self) -> None:
        verdict = read(known(), (40, "RUNNING"), (90, "STOPPING"), (95, "PAUSED"), (120, "RUNNING"), (200, "COMPLETED"))
        assert verdict.certain

    def test_a_newer_session_does_not_meet_the_wait_after_an_unawaited_end(self) -> None:
        patient = SessionCondition(meter_id="2470", session_id="R-1", fail_on=())
        polls = known(patient)
        assert read(polls, (40, "RUNNING"), (90, "FAILED"), (200, "FAILED")).outcome is Outcome.WAITING
        verdict = read(polls, (220, "INITIALIZING"), (240, "RUNNING"), (300, "COMPLETED"), (900, "COMPLETED"))
        assert (verdict.outcome, verdict.counts) == (Outcome.WAITING, False)
        assert "newer one hides it" in verdict.reason

    def test_a_recovered_session_meets_the_wait_but_not_with_certainty(self) -> None:
        patient = SessionCondition(meter_id="2470", session_id="R-1", fail_on=())
        verdict = read(known(patient), (40, "RUNNING"), (90, "FAILED"), (100, "RUNNING"), (300, "COMPLETED"))
        assert (verdict.outcome, verdict.certain) == (Outcome.MET, False)

    @pytest.mark.parametrize("unknown", ["99", "HIBERNATING", "NEVER_RUN"])
    def test_an_unknown_status_ends_no_wait_and_proves_nothing(self, unknown: str) -> None:
        polls = known(baseline="COMPLETED")
        assert read(polls, (40, unknown), (500, unknown), (900, unknown)).outcome is Outcome.WAITING
        assert read(polls, (901, "COMPLETED")).outcome is Outcome.WAITING

    def test_late_and_repeated_readings_change_nothing(self) -> None:
        polls = known(baseline="FAILED")
        readings = (40, "COMPLETED"), (69, "COMPLETED"), (69, "COMPLETED"), (10, "RUNNING"), (41, "FAILED")
        assert read(polls, *readings).outcome is Outcome.WAITING
        assert read(polls, (70, "COMPLETED")).certain

    def test_a_reading_from_before_the_session_began_proves_nothing(self) -> None:
        polls = known(baseline=None)
        assert read(polls, (-5, "RUNNING"), (40, "COMPLETED"), (70, "COMPLETED")).outcome is Outcome.WAITING

    def test_another_session_by_callouts_breaks_the_promise(self) -> None:
        polls = known()
        polls.contradict("session R-2 ran meanwhile")
        polls.contradict("and R-3")
        verdict = read(polls, (40, "RUNNING"), (90, "COMPLETED"))
        assert (verdict.certain, verdict.reason) == (False, "session R-2 ran meanwhile")


class TestStatusesThatPass:
    def test_an_awaited_pause_meets_the_wait(self) -> None:
        stopped = SessionCondition(meter_id="2470", session_id="R-1", statuses=("PAUSED", "COMPLETED"))
        assert read(known(stopped), (40, "STOPPING"), (50, "PAUSED")).status == "PAUSED"

    def test_a_pause_that_is_not_awaited_does_not_end_the_wait(self) -> None:
        assert read(known(), (40, "RUNNING"), (50, "PAUSED"), (900, "PAUSED")).outcome is Outcome.WAITING

    def test_an_awaited_running_status_meets_the_wait(self) -> None:
        running = SessionCondition(meter_id="2470", session_id="R-1", statuses=("RUNNING",))
        assert read(known(running), (5, "RUNNING"), (30, "RUNNING")).certain

    def test_an_awaited_status_polled_only_once_is_no_failure(self) -> None:
        running = SessionCondition(meter_id="2470", session_id="R-1", statuses=("RUNNING",))
        verdict = read(known(running), (5, "RUNNING"), (35, "COMPLETED"))
        assert (verdict.outcome, verdict.status, verdict.certain) == (Outcome.MET, "RUNNING", False)

    def test_an_awaited_status_from_before_the_session_does_not_count(self) -> None:
        paused = SessionCondition(meter_id="2470", session_id="R-1", statuses=("PAUSED",))
        verdict = read(known(paused, baseline="PAUSED"), (5, "PAUSED"), (40, "RUNNING"), (60, "FAILED"))
        assert verdict.outcome is Outcome.FAILED

    def test_any_end_meets_a_wait_for_all_ends(self) -> None:
        ends = ("COMPLETED", "FAILED", "CANCELED")
        anyhow = SessionCondition(meter_id="2470", session_id="R-1", statuses=ends)
        assert [read(known(anyhow), (40, "RUNNING"), (50, end)).status for end in ends] == list(ends)


class TestMasked:
    @pytest.mark.parametrize("debug", ["TESTING", "TESTING_FAILED", "TESTING_PASSED"])
    def test_a_debug_run_that_hides_the_session_does_not_end_the_wait(self, debug: str) -> None:
        polls = known()
        verdict = read(polls, (40, "RUNNING"), (60, debug))
        assert (verdict.outcome, verdict.counts) == (Outcome.WAITING, False)
        assert f"DEBUG run of the meter ({debug}) hides" in verdict.reason
        verdict = read(polls, (80, "COMPLETED"))
        assert (verdict.outcome, verdict.certain) == (Outcome.MET, False)
        assert "DEBUG run" in verdict.reason

    def test_a_debug_run_just_before_the_session_does_not_break_the_promise(self) -> None:
        """A DEBUG run as the gate before the NORMAL one: its status is still shown for some time."""
        polls = known(baseline="TESTING_PASSED")
        readings = (1, "TESTING"), (5, "TESTING_PASSED"), (40, "TESTING_PASSED"), (50, "RUNNING"), (90, "COMPLETED")
        assert read(polls, *readings).certain

    def test_polls_on_both_sides_of_a_mask_do_not_agree(self) -> None:
        readings = (40, "COMPLETED"), (50, "TESTING"), (71, "COMPLETED"), (100, "COMPLETED")
        assert read(known(baseline="FAILED"), *readings).outcome is Outcome.WAITING

    def test_a_debug_session_meets_a_debug_wait(self) -> None:
        verdict = read(known(DEBUG), (5, "TESTING"), (60, "TESTING_PASSED"))
        assert (verdict.outcome, verdict.status, verdict.certain) == (Outcome.MET, "TESTING_PASSED", True)

    def test_a_normal_run_hides_a_debug_one(self) -> None:
        polls = known(DEBUG)
        verdict = read(polls, (40, "TESTING"), (60, "RUNNING"))
        assert (verdict.counts, "NORMAL run" in verdict.reason) == (False, True)
        assert read(polls, (61, "TESTING"), (90, "TESTING_FAILED")).certain is False

    def test_initializing_may_be_of_a_debug_session(self) -> None:
        assert read(known(DEBUG), (40, "INITIALIZING"), (50, "TESTING"), (90, "TESTING_PASSED")).certain


class TestBothRunTypes:
    @pytest.mark.parametrize(
        ("live", "end", "outcome", "run_type"),
        [
            ("RUNNING", "COMPLETED", Outcome.MET, "NORMAL"),
            ("USAGE_PUSHING", "FAILED", Outcome.FAILED, "NORMAL"),
            ("RUNNING", "CANCELED", Outcome.FAILED, "NORMAL"),
            ("TESTING", "TESTING_PASSED", Outcome.MET, "DEBUG"),
            ("TESTING", "TESTING_FAILED", Outcome.FAILED, "DEBUG"),
            ("TESTING", "CANCELED", Outcome.FAILED, "DEBUG"),
            # A session of either run type may be INITIALIZING; its end shows which one it was.
            ("INITIALIZING", "COMPLETED", Outcome.MET, "NORMAL"),
            ("INITIALIZING", "TESTING_FAILED", Outcome.FAILED, "DEBUG"),
        ],
    )
    def test_a_poll_ends_the_wait_by_each_end_of_either(
        self, live: str, end: str, outcome: Outcome, run_type: str
    ) -> None:
        polls = sensed(BOTH)
        verdict = read(polls, (0, "COMPLETED"), (40, "COMPLETED"), (60, live), (100, end))
        assert verdict == PollConclusion(outcome, status=end, certain=True)
        assert polls.may_be(end) == (run_type,)

    @pytest.mark.parametrize(("unseen", "run_type"), [("COMPLETED", "NORMAL"), ("TESTING_FAILED", "DEBUG")])
    def test_an_end_without_a_live_reading_shows_its_run_type(self, unseen: str, run_type: str) -> None:
        polls = sensed(BOTH)
        assert read(polls, (0, "FAILED"), (40, "FAILED"), (60, unseen), (95, unseen)).certain
        assert polls.may_be(unseen) == (run_type,)

    @pytest.mark.parametrize("readings", [[(60, "INITIALIZING")], [(60, "CANCELED")]])
    def test_a_canceled_session_of_unknown_run_type_is_not_certain(self, readings: list[tuple[int, str]]) -> None:
        polls = sensed(BOTH)
        verdict = read(polls, (0, "COMPLETED"), (40, "COMPLETED"), *readings, (100, "CANCELED"))
        assert (verdict.outcome, verdict.certain) == (Outcome.FAILED, False)
        assert verdict.reason == "a poll names no run type, and NORMAL and DEBUG sessions can both be CANCELED"
        assert polls.may_be("CANCELED") == ("NORMAL", "DEBUG")

    @pytest.mark.parametrize(
        ("own", "hiding", "end"),
        [
            ("RUNNING", ("TESTING", "TESTING_PASSED", "TESTING_FAILED"), "COMPLETED"),
            ("TESTING", ("RUNNING", "PAUSED", "COMPLETED", "FAILED"), "TESTING_PASSED"),
        ],
    )
    def test_a_session_of_the_other_run_type_hides_the_first(self, own: str, hiding: tuple[str, ...], end: str) -> None:
        polls = sensed(BOTH)
        read(polls, (0, "NEVER_RUN"), (40, own))
        for second, status in enumerate(hiding, 80):
            verdict = read(polls, (second, status))
            assert (verdict.outcome, verdict.counts) == (Outcome.WAITING, False)
            assert f"({status}) hides the status of the session" in verdict.reason
        # What both can show may be the first one's own, and after what was seen no result is certain.
        verdict = read(polls, (200, end))
        assert (verdict.outcome, verdict.status, verdict.certain) == (Outcome.MET, end, False)
        assert "run of the meter was seen meanwhile" in verdict.reason

    def test_a_reading_that_may_be_of_the_session_before_shows_no_run_type(self) -> None:
        for polls in (sensed(BOTH, baseline="COMPLETED"), known(BOTH)):
            verdict = read(polls, (20, "TESTING"), (40, "RUNNING"), (90, "COMPLETED"))
            assert (verdict.outcome, verdict.status) == (Outcome.MET, "COMPLETED")
            assert polls.run_types == (RunType.NORMAL,)

    def test_a_callout_shows_the_run_type_and_a_later_one_may_correct_it(self) -> None:
        polls = known(BOTH)
        polls.receive(state("INITIALIZING", None, 5))
        assert not read(polls, (60, "TESTING_PASSED")).counts
        polls.receive(state("TESTING", "INITIALIZING", 70))
        verdict = read(polls, (120, "TESTING_PASSED"))
        assert (verdict.outcome, polls.run_types) == (Outcome.MET, (RunType.DEBUG,))

    def test_the_run_type_that_was_shown_is_kept(self) -> None:
        polls = sensed(BOTH)
        read(polls, (0, "COMPLETED"))
        assert "run_type" not in polls.to_dict()
        read(polls, (40, "TESTING"))
        again = PollEvidence.from_dict(BOTH, json.loads(json.dumps(polls.to_dict())))
        assert again.to_dict() == polls.to_dict()
        assert again.facts() == polls.facts()
        assert not read(again, (90, "COMPLETED")).counts


class TestSensed:
    def test_a_status_from_before_does_not_meet_a_sensor(self) -> None:
        verdict = read(sensed(), (0, "COMPLETED"), (60, "COMPLETED"), (9000, "COMPLETED"))
        assert (verdict.outcome, verdict.counts) == (Outcome.WAITING, False)
        assert "no session was seen to begin" in verdict.reason

    def test_a_session_that_begins_and_ends_meets_a_sensor(self) -> None:
        polls = sensed()
        assert read(polls, (0, "COMPLETED"), (40, "COMPLETED"), (60, "INITIALIZING")).counts
        assert read(polls, (80, "RUNNING"), (120, "COMPLETED")).certain

    def test_a_given_baseline_replaces_the_first_poll(self) -> None:
        assert read(sensed(baseline="FAILED"), (31, "RUNNING"), (70, "COMPLETED")).certain

    def test_a_stale_end_right_after_the_start_does_not_end_the_wait(self) -> None:
        """The awaited session began at 45; the poll at 55 still shows the previous one."""
        polls = sensed()
        readings = (0, "COMPLETED"), (40, "COMPLETED"), (50, "RUNNING"), (55, "COMPLETED"), (79, "COMPLETED")
        assert read(polls, *readings).outcome is Outcome.WAITING
        assert read(polls, (80, "RUNNING"), (99, "FAILED")).status == "FAILED"

    def test_a_live_status_soon_after_the_start_of_the_wait_is_not_certain(self) -> None:
        readings = (1, "COMPLETED"), (3, "INITIALIZING"), (32, "COMPLETED"), (33, "COMPLETED")
        verdict = read(sensed(), *readings)
        assert (verdict.outcome, verdict.certain) == (Outcome.MET, False)
        assert "too soon after the wait began" in verdict.reason

    def test_a_session_that_is_live_for_longer_begins_at_its_first_settled_reading(self) -> None:
        """The live reading at 10 may be stale; that at 50 is not, so readings soon after it may be stale."""
        polls = sensed()
        readings = (1, "COMPLETED"), (10, "RUNNING"), (50, "RUNNING"), (55, "COMPLETED"), (79, "COMPLETED")
        assert read(polls, *readings).outcome is Outcome.WAITING
        assert read(polls, (80, "COMPLETED")).certain

    def test_a_session_that_no_poll_showed_live_ends_the_wait(self) -> None:
        polls = sensed()
        readings = (0, "FAILED"), (40, "FAILED"), (50, "COMPLETED"), (79, "COMPLETED")
        assert read(polls, *readings).outcome is Outcome.WAITING
        assert read(polls, (80, "COMPLETED")).certain

    def test_a_session_that_no_poll_showed_live_soon_after_the_start_is_not_certain(self) -> None:
        verdict = read(sensed(), (0, "FAILED"), (20, "COMPLETED"), (60, "COMPLETED"))
        assert (verdict.outcome, verdict.certain) == (Outcome.MET, False)

    @pytest.mark.parametrize("given", ["RUNNING", None])
    def test_a_session_that_is_live_at_the_first_poll_is_not_certain(self, given: str | None) -> None:
        verdict = read(sensed(baseline=given), (0, "RUNNING"), (50, "RUNNING"), (90, "COMPLETED"))
        assert (verdict.outcome, verdict.certain) == (Outcome.MET, False)
        assert "was RUNNING before" in verdict.reason

    def test_a_status_first_read_after_the_latest_start_does_not_count(self) -> None:
        polls = PollEvidence(SENSED, since=at(0), begun=False, baseline="COMPLETED", closes_at=at(100))
        assert polls.observe(PollReading("RUNNING", at(101))).counts is False

    def test_readings_before_since_are_the_baseline(self) -> None:
        polls = sensed(since=100)
        assert read(polls, (0, "FAILED"), (50, "RUNNING"), (90, "COMPLETED"), (131, "COMPLETED")).counts is False
        assert read(polls, (140, "RUNNING"), (200, "FAILED")).certain

    def test_a_debug_run_before_the_session_begins_is_ignored(self) -> None:
        polls = sensed(exclusive=True)
        readings = (0, "COMPLETED"), (40, "TESTING"), (50, "TESTING_PASSED"), (60, "RUNNING"), (120, "COMPLETED")
        verdict = read(polls, *readings)
        assert (verdict.outcome, verdict.certain) == (Outcome.MET, False)


class TestWithCallouts:
    def test_initializing_after_running_is_a_newer_run_though_the_first_callout_came_late(self) -> None:
        polls = known()
        read(polls, (40, "RUNNING"))
        polls.receive(state("INITIALIZING", None, 45))
        read(polls, (90, "INITIALIZING"))
        assert polls.newer

    def test_a_callout_that_the_session_goes_on_reveals_it_again(self) -> None:
        polls = known(SessionCondition(meter_id="2470", session_id="R-1", fail_on=()))
        assert "hides it" in read(polls, (40, "RUNNING"), (90, "FAILED"), (220, "INITIALIZING")).reason
        polls.receive(state("RUNNING", "FAILED", 250))
        verdict = read(polls, (300, "COMPLETED"))
        assert (verdict.outcome, verdict.certain) == (Outcome.MET, False)

    def test_the_first_callout_can_only_make_the_known_start_earlier(self) -> None:
        for second, begun in ((100, 0), (-5, -5)):
            polls = known()
            polls.receive(state("RUNNING", "INITIALIZING", second))
            assert polls.begun_at == at(begun)

    def test_what_is_read_after_a_callout_of_the_session_is_not_the_status_before_it(self) -> None:
        polls = sensed()
        polls.receive(state("RUNNING", "INITIALIZING", 20))
        assert read(polls, (60, "COMPLETED")).outcome is Outcome.MET
        assert polls.baseline is None

    def test_a_session_that_just_ended_explains_a_live_status_while_the_reading_may_be_stale(self) -> None:
        gone = state("COMPLETED", "RUNNING", 290, session_id="R-2")
        conclusions = [known().observe(PollReading("RUNNING", at(second)), [gone]) for second in (319, 320)]
        assert [conclusion.counts for conclusion in conclusions] == [False, True]

    @pytest.mark.parametrize(
        ("polls", "status", "baseline"),
        [
            (sensed(), "COMPLETED", "COMPLETED"),
            (sensed(), "RUNNING", None),
            (sensed(baseline="FAILED"), "COMPLETED", "FAILED"),
            (known(baseline=None), "COMPLETED", None),
        ],
    )
    def test_the_end_of_another_session_is_the_status_before_where_none_was_read(
        self, polls: PollEvidence, status: str, baseline: str | None
    ) -> None:
        other = state("RUNNING", "INITIALIZING", 20, session_id="R-2")
        assert polls.observe(PollReading(status, at(40)), [other]).counts is False
        assert polls.baseline == baseline


class TestMemory:
    def test_the_evidence_survives_as_plain_json(self) -> None:
        polls = sensed()
        read(polls, (0, "COMPLETED"), (40, "COMPLETED"), (50, "RUNNING"), (55, "TESTING"), (60, "COMPLETED"))
        again = PollEvidence.from_dict(SENSED, json.loads(json.dumps(polls.to_dict())))
        assert again.to_dict() == polls.to_dict()
        assert read(again, (80, "COMPLETED")) == read(polls, (80, "COMPLETED"))

    def test_unknown_keys_are_left_out_and_missing_ones_have_their_initial_value(self) -> None:
        polls = PollEvidence.from_dict(KNOWN, {"since": at(0).isoformat(), "begun": True, "of_the_future": [1]})
        assert polls.to_dict() == PollEvidence(KNOWN, since=at(0), begun=True).to_dict()

    def test_stored_evidence_without_since_is_refused(self) -> None:
        with pytest.raises(ValueError, match="since"):
            PollEvidence.from_dict(KNOWN, {"begun": True})


def test_every_status_is_either_live_or_idle_or_of_tests() -> None:
    for run_type in RunType:
        shown = {status for status in SessionStatus if may_show(run_type, status)}
        assert shown - LIVE[run_type] <= IDLE | {"INITIALIZING"}
        assert LIVE[run_type] <= shown
        assert shown & ANY_TERMINAL == ENDS_BY_POLL[run_type]
    with pytest.raises(ValueError, match="read_at"):
        PollReading("RUNNING", at(0).replace(tzinfo=None))
