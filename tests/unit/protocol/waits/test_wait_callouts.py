"""Callouts decide a wait; what a poll may still decide while they are read, and what it must not."""

from __future__ import annotations

from datetime import timedelta
from unittest.mock import Mock, call

import pytest

from airflow_mediation_provider.protocol.sessions.lifecycle import SessionState, fold
from airflow_mediation_provider.protocol.transition import Source
from airflow_mediation_provider.protocol.waits.condition import SessionCondition
from airflow_mediation_provider.protocol.waits.feed_status import FeedStatus, FeedStatusChange
from airflow_mediation_provider.protocol.waits.wait import PollReading, SessionWait, WaitEnd, WaitResult, WaitUpdate
from airflow_mediation_provider.protocol.zuora.errors import MisconfigurationError, TransientError
from tests.unit.protocol.tenant import at, condition, state, stored, transition

READ = FeedStatusChange(FeedStatus.READ, "callouts are read")
LOST = FeedStatusChange(FeedStatus.LOST, "the feed does not answer")
OFF = FeedStatusChange(FeedStatus.OFF, "connection 'c' takes no callouts", "set them up")
DOWN = TransientError("HTTP 503")


def waiting(grounds: FeedStatusChange | None = READ, **options: object) -> SessionWait:
    """Return the wait of RunMeterOperator for R-1, which started at second 0."""
    asked = {key: options.pop(key) for key in ("until", "statuses", "previous_statuses", "fail_on") if key in options}
    arguments = {"created_at": at(0), "started_at": at(0), "run_status": "INITIALIZING", "baseline": "COMPLETED"}
    wait = SessionWait(condition(**asked), **{**arguments, **options})  # type: ignore[arg-type]
    if grounds is not None:
        wait.rely_on(grounds)
    return wait


def sensing(grounds: FeedStatusChange = READ, since: float = 0, **options: object) -> SessionWait:
    """Return the wait of a sensor without a session id that began at second 500."""
    wait = SessionWait(condition(None, since=at(since)), **{"created_at": at(500), **options})  # type: ignore[arg-type]
    wait.rely_on(grounds)
    return wait


def read(wait: SessionWait, second: float, status: str, *others: SessionState) -> WaitUpdate:
    return wait.observe(PollReading(status, at(second)), others)


def receive(wait: SessionWait, second: float, *states: SessionState) -> WaitUpdate:
    return wait.receive(states, at(second))


def other(status: str = "RUNNING", second: float = 50, begun: float = 40, **fields: object) -> SessionState:
    before = {"INITIALIZING": None, "RUNNING": "INITIALIZING"}.get(status, "RUNNING")
    return state(status, before, second, **{"session_id": "R-2", "started_at": at(begun), **fields})


def ended(update: WaitUpdate) -> tuple[WaitEnd, str, bool]:
    assert update.result is not None
    assert update.result.session is not None
    return update.result.end, update.result.session["evidence"], update.result.session["certain"]


class TestTheyDecide:
    def test_a_callout_of_the_end_is_certain(self) -> None:
        update = receive(waiting(require_certain=True), 101, state("COMPLETED", second=100))
        assert update.lines == ("INITIALIZING -> COMPLETED after 1m 40s, by callout",)
        assert ended(update) == (WaitEnd.MET, "callout", True)
        assert update.result is not None
        assert update.result.session is not None
        shown = {key: update.result.session[key] for key in ("previous_status", "observed_at")}
        assert shown == {"previous_status": "RUNNING", "observed_at": "2026-03-31T09:01:40+00:00"}

    def test_a_repeated_state_changes_nothing(self) -> None:
        wait = waiting()
        running = state("RUNNING", "INITIALIZING", 20)
        assert receive(wait, 21, running).lines == ("INITIALIZING -> RUNNING after 20s, by callout",)
        assert receive(wait, 60, running) == WaitUpdate()
        # A late callout of an older status does not change the status of a newer poll.
        assert read(wait, 60, "USAGE_PUSHING").lines == ("RUNNING -> USAGE_PUSHING after 40s, by poll",)
        assert receive(stored(wait), 120, running) == WaitUpdate()

    def test_a_status_polled_again_lasts_since_that_poll(self) -> None:
        wait = waiting()
        read(wait, 40, "RUNNING")
        assert receive(wait, 100, state("PAUSED", "RUNNING", 100)).lines == ("RUNNING -> PAUSED after 1m, by callout",)
        assert read(wait, 300, "RUNNING").lines == ("PAUSED -> RUNNING after 3m 20s, by poll",)
        assert wait.heartbeat(at(360)) == "still RUNNING, 1m so far"

    def test_sessions_of_other_meters_change_nothing(self) -> None:
        assert receive(waiting(), 101, state("COMPLETED", meter_id="7")) == WaitUpdate()

    def test_an_ambiguous_state_ends_nothing_and_is_logged_once(self) -> None:
        wait = waiting()
        unclear = fold([transition("PAUSED", None, 100), transition("RUNNING", None, 101)])
        assert unclear.ambiguous
        line = "the callouts received so far do not show its present status; still waiting"
        assert [receive(wait, second, unclear) for second in (102, 103)] == [WaitUpdate((line,)), WaitUpdate()]

    def test_two_different_ends_are_not_certain(self) -> None:
        both = fold([transition("COMPLETED"), transition("FAILED", second=101)])
        assert ended(receive(waiting(), 102, both)) == (WaitEnd.FAILED, "callout", False)

    def test_a_named_session_of_the_other_run_type_is_logged(self) -> None:
        wait = waiting()
        update = receive(wait, 20, state("TESTING", "INITIALIZING", 19))
        assert update.result is None
        assert "it is a DEBUG session, and a NORMAL one is awaited; still waiting" in update.lines
        assert ended(receive(wait, 30, state("TESTING_PASSED", "TESTING", 29))) == (WaitEnd.FAILED, "callout", True)

    def test_a_run_reply_of_another_task_counts_as_a_report(self) -> None:
        wait = SessionWait(condition(), created_at=at(500))
        assert receive(wait, 501, state("INITIALIZING", None, 2, source=Source.RUN)).result is None
        # The session was live before, so the end is its own and needs no second poll.
        assert ended(read(wait, 600, "COMPLETED")) == (WaitEnd.MET, "poll", False)


class TestASessionOfAnotherMeter:
    """A wait for the id of another meter's session would otherwise last until its deadline, or end by a poll."""

    ELSEWHERE = state("RUNNING", "INITIALIZING", 20, meter_id="1002")
    TEST = state("TESTING", None, 20, meter_id="1002")

    def named(self, grounds: FeedStatusChange | None = READ, **options: object) -> SessionWait:
        wait = SessionWait(condition(), **{"created_at": at(500), **options})  # type: ignore[arg-type]
        if grounds is not None:
            wait.rely_on(grounds)
        return wait

    @pytest.mark.parametrize("grounds", [None, READ, LOST, OFF])
    def test_it_is_a_misconfiguration(self, grounds: FeedStatusChange | None) -> None:
        wait = self.named(grounds)
        update = receive(wait, 501, self.ELSEWHERE)
        assert update.result is not None
        assert (update.result.end, update.result.message, update.result.session) == (
            WaitEnd.MISCONFIGURED,
            "Session R-1 is of meter 1002, not of meter 2470.",
            None,
        )
        # The wait stays ended, regardless of later reports; the next try checks again.
        own = state("COMPLETED", second=510)
        assert receive(stored(wait), 511, own, self.ELSEWHERE).result == update.result
        assert ended(receive(wait.renewed(until=None), 512, own, self.ELSEWHERE)) == (WaitEnd.MET, "callout", True)

    @pytest.mark.parametrize(
        "states",
        [
            [ELSEWHERE, state("RUNNING", "INITIALIZING", 20)],
            [ELSEWHERE, state("RUNNING", "INITIALIZING", 20, meter_id="1003")],
            [TEST],
            [state("RUNNING", "INITIALIZING", 20, meter_id="1002", session_id="R-2")],
        ],
        ids=["of this one too", "of two others", "a test", "another session"],
    )
    def test_it_ends_nothing_where_it_is_not_certain(self, states: list[SessionState]) -> None:
        wait = self.named()
        assert receive(wait, 501, *states).result is None
        assert ended(receive(wait, 600, state("COMPLETED", second=599))) == (WaitEnd.MET, "callout", True)

    def test_it_ends_no_wait_whose_session_its_own_meter_has(self) -> None:
        wait = self.named()
        receive(wait, 501, state("RUNNING", "INITIALIZING", 20))
        assert receive(stored(wait), 502, self.ELSEWHERE) == WaitUpdate()

    @pytest.mark.parametrize("reply", [{"called_at": at(499)}, {"started_at": at(0)}], ids=str)
    def test_it_ends_no_wait_whose_task_made_the_run_call(self, reply: dict[str, object]) -> None:
        assert receive(stored(self.named(**reply)), 501, self.ELSEWHERE) == WaitUpdate()

    def test_it_ends_no_wait_for_an_unnamed_session(self) -> None:
        assert receive(sensing(), 501, self.ELSEWHERE) == WaitUpdate()

    @pytest.mark.parametrize(("meter_id", "explained"), [("2470", True), ("1002", False)])
    def test_it_explains_no_poll(self, meter_id: str, explained: bool) -> None:
        wait = waiting()
        read(wait, 200, "RUNNING")
        assert "its callout may follow within 30s" in read(wait, 520, "COMPLETED").lines[-1]
        receive(wait, 521, other("COMPLETED", 519, meter_id=meter_id))
        assert (wait.tick(at(560)).result is None) is explained


class TestWhatAWaitRestsOn:
    def test_each_change_of_the_feed_status_is_logged_once(self) -> None:
        wait = waiting(None)
        lines = [wait.rely_on(grounds).lines for grounds in (READ, READ, LOST, LOST, READ)]
        assert lines == [(READ.words,), (), (LOST.words,), (), (READ.words,)]
        assert stored(wait).rely_on(READ).lines == ()
        assert wait.renewed(until=None).rely_on(READ).lines == (READ.words,)

    def test_without_callouts_polls_end_the_wait_at_once(self) -> None:
        wait = waiting(OFF)
        read(wait, 40, "RUNNING")
        assert ended(read(wait, 90, "COMPLETED")) == (WaitEnd.MET, "poll", False)

    @pytest.mark.parametrize("callouts", [FeedStatus.OFF, FeedStatus.UNFOUND])
    def test_previous_statuses_need_callouts(self, callouts: FeedStatus) -> None:
        result = (
            waiting(None, previous_statuses=("PUSH_COMPLETED",))
            .rely_on(FeedStatusChange(callouts, "none", "do so"))
            .result
        )
        assert result is not None
        assert result.end is WaitEnd.MISCONFIGURED
        assert result.message == (
            "The argument previous_statuses needs Zuora's callouts, because a poll shows only the present status, "
            "but none: do so, or leave the argument out."
        )

    def test_a_feed_that_is_lost_for_a_while_is_no_misconfiguration(self) -> None:
        wait = waiting(previous_statuses=("PUSH_COMPLETED",))
        assert wait.rely_on(LOST).result is None
        again, log = wait.rely_on(READ), Mock()
        assert again.result is None
        again.log_lines(log)
        assert log.mock_calls == [call.info(READ.words)]

    def test_a_feed_found_by_an_earlier_process_is_lost_and_not_unfound(self) -> None:
        wait = waiting(READ)
        missing = FeedStatusChange(FeedStatus.UNFOUND, "no API server was found")
        log = Mock()
        wait.rely_on(missing).log_lines(log)
        assert log.mock_calls == [call.warning(missing.words)]
        assert wait.callouts is FeedStatus.LOST
        assert wait.rely_on(missing).lines == ()
        read(wait, 40, "RUNNING")
        assert ended(read(wait, 90, "COMPLETED")) == (WaitEnd.MET, "poll", False)  # not held back for a callout

    def test_an_unreachable_zuora_ends_no_wait_while_callouts_are_read(self) -> None:
        wait = waiting(max_unreachable=timedelta(minutes=10))
        for second in range(0, 5000, 300):
            assert wait.fault(DOWN, at(second)).result is None
        assert receive(wait, 5001, state("COMPLETED", second=5000)).result is not None

    def test_max_unreachable_restarts_when_the_feed_is_lost(self) -> None:
        wait = waiting(max_unreachable=timedelta(minutes=10))
        wait.fault(DOWN, at(0))
        wait.fault(DOWN, at(3000))
        wait.rely_on(LOST)
        assert wait.fault(DOWN, at(3001)).result is None
        result = wait.fault(DOWN, at(3601)).result
        assert result is not None
        assert result.end is WaitEnd.UNREACHABLE

    def test_a_refusal_ends_a_wait_even_while_callouts_are_read(self) -> None:
        wait = SessionWait(condition(), created_at=at(0))
        wait.rely_on(READ)
        result = wait.fault(MisconfigurationError("there is no such meter"), at(1)).result
        assert result is not None
        assert result.end is WaitEnd.MISCONFIGURED


class TestAPollBesideThem:
    def test_an_end_by_a_poll_is_held_back_for_its_callout(self) -> None:
        wait = waiting(until=at(5000))
        receive(wait, 20, state("RUNNING", "INITIALIZING", 19))
        update = read(wait, 300, "COMPLETED")
        assert update.result is None
        assert update.lines[-1] == "the meter shows COMPLETED; its callout may follow within 30s"
        assert wait.deadline == at(330)
        assert ended(receive(wait, 302, state("COMPLETED", second=301))) == (WaitEnd.MET, "callout", True)

    def test_a_pending_end_counts_without_its_callout_and_is_not_certain(self) -> None:
        wait = waiting(until=at(5000))
        receive(wait, 20, state("RUNNING", "INITIALIZING", 19))
        read(wait, 300, "FAILED")
        wait = stored(wait)
        assert wait.tick(at(329)) == WaitUpdate()
        update = wait.tick(at(330))
        assert ended(update) == (WaitEnd.FAILED, "poll", False)
        assert update.result is not None
        assert update.result.session is not None
        assert update.result.session["observed_at"] == at(300).isoformat()

    def test_a_certain_end_is_not_held_back(self) -> None:
        wait = waiting(exclusive=True)
        receive(wait, 20, state("RUNNING", "INITIALIZING", 19))
        assert ended(read(wait, 300, "COMPLETED")) == (WaitEnd.MET, "poll", True)

    def test_a_second_reading_does_not_extend_a_pending_end(self) -> None:
        wait = waiting()
        receive(wait, 20, state("RUNNING", "INITIALIZING", 19))
        assert [read(wait, second, "COMPLETED").result for second in (100, 129)] == [None, None]
        assert read(wait, 131, "COMPLETED").result is not None

    def test_the_deadline_ends_the_wait_by_a_pending_end(self) -> None:
        wait = waiting(until=at(310))
        receive(wait, 20, state("RUNNING", "INITIALIZING", 19))
        read(wait, 300, "COMPLETED")
        assert ended(wait.tick(at(310))) == (WaitEnd.MET, "poll", False)

    def test_a_callout_of_a_running_session_drops_a_pending_end(self) -> None:
        wait = waiting()
        receive(wait, 20, state("RUNNING", "INITIALIZING", 19))
        read(wait, 300, "COMPLETED")
        assert read(wait, 310, "RUNNING").result is None
        assert wait.tick(at(400)).result is None

    def test_a_reading_soon_after_a_callout_may_be_stale(self) -> None:
        wait = waiting()
        read(wait, 300, "COMPLETED")
        receive(wait, 310, state("RUNNING", "INITIALIZING", 309))
        # The reading may be of the time before the callout.
        assert read(wait, 320, "COMPLETED").result is None
        assert wait.tick(at(900)).result is None
        read(wait, 901, "COMPLETED")
        assert wait.tick(at(931)).result is not None

    def test_a_reopened_session_is_not_ended_by_its_old_end(self) -> None:
        wait = waiting(fail_on=())
        path = [transition("FAILED", "RUNNING", 60, notification_id="1")]
        receive(wait, 61, fold(path))
        assert read(wait, 100, "FAILED").result is None
        receive(wait, 200, fold([*path, transition("RUNNING", "FAILED", 199, notification_id="2")]))
        assert read(wait, 210, "FAILED").result is None
        read(wait, 300, "COMPLETED")
        assert ended(wait.tick(at(330))) == (WaitEnd.MET, "poll", False)

    def test_readings_after_the_end_by_callouts_do_not_count(self) -> None:
        wait = waiting(statuses=("COMPLETED",), fail_on=())
        receive(wait, 61, state("FAILED", second=60))
        for second, status in ((300, "RUNNING"), (400, "COMPLETED"), (900, "COMPLETED")):
            assert read(wait, second, status).result is None
        assert wait.tick(at(2000)).result is None

    @pytest.mark.parametrize("grounds", [READ, LOST])
    def test_required_certainty_is_left_to_callouts(self, grounds: FeedStatusChange) -> None:
        wait = waiting(require_certain=True)
        wait.rely_on(grounds)
        read(wait, 40, "RUNNING")
        update = read(wait, 90, "COMPLETED")
        assert update.lines[-1] == (
            "the meter shows COMPLETED, and only a callout proves that it is this session's status; still waiting"
        )
        assert read(wait, 150, "COMPLETED") == WaitUpdate()
        assert ended(receive(wait, 200, state("COMPLETED", second=199))) == (WaitEnd.MET, "callout", True)

    def test_previous_statuses_are_left_to_callouts(self) -> None:
        wait = waiting(previous_statuses=("PUSH_COMPLETED",))
        read(wait, 40, "RUNNING")
        assert read(wait, 90, "COMPLETED").result is None
        assert wait.tick(at(900)).result is None
        assert receive(wait, 91, state("COMPLETED", "RUNNING")).lines[-1] == (
            "COMPLETED came after RUNNING, not after PUSH_COMPLETED; still waiting"
        )
        assert ended(receive(wait, 92, state("COMPLETED", "PUSH_COMPLETED", 91))) == (WaitEnd.MET, "callout", True)

    def test_with_previous_statuses_a_poll_may_fail_the_wait(self) -> None:
        wait = waiting(previous_statuses=("PUSH_COMPLETED",))
        read(wait, 40, "RUNNING")
        read(wait, 90, "FAILED")
        assert ended(wait.tick(at(120))) == (WaitEnd.FAILED, "poll", False)

    def test_a_poll_does_not_fail_a_wait_that_may_have_been_met_before(self) -> None:
        wait = waiting(statuses=("PAUSED",), previous_statuses=("RUNNING",))
        read(wait, 40, "RUNNING")
        read(wait, 90, "COMPLETED")
        assert wait.tick(at(900)).result is None


class TestOtherSessions:
    def test_another_session_of_the_meter_breaks_the_promise(self) -> None:
        wait = waiting(exclusive=True)
        receive(wait, 20, state("RUNNING", "INITIALIZING", 19))
        read(wait, 60, "RUNNING", other())
        read(wait, 300, "FAILED", other("COMPLETED", 200))
        update = wait.tick(at(330))
        assert ended(update) == (WaitEnd.FAILED, "poll", False)
        assert update.result is not None
        assert "session R-2 of the same meter ran meanwhile" in update.result.message
        assert wait.tracker.doubt

    def test_a_session_that_had_ended_before_keeps_the_promise(self) -> None:
        wait = waiting(exclusive=True)
        before = other("COMPLETED", -30, begun=-900, session_id="R-0")
        read(wait, 60, "RUNNING", before)
        assert ended(read(wait, 90, "COMPLETED", before)) == (WaitEnd.MET, "poll", True)

    def test_an_older_session_whose_end_was_lost_keeps_the_promise_after_an_idle_baseline(self) -> None:
        wait = waiting(exclusive=True, baseline="COMPLETED")
        zombie = other("RUNNING", -800, begun=-900, session_id="R-0")
        read(wait, 60, "RUNNING", zombie)
        assert ended(read(wait, 90, "COMPLETED", zombie)) == (WaitEnd.MET, "poll", True)

    @pytest.mark.parametrize("status", ["RUNNING", "COMPLETED", "FAILED"])
    def test_a_newer_live_session_explains_every_reading(self, status: str) -> None:
        wait = waiting()
        receive(wait, 20, state("RUNNING", "INITIALIZING", 19))
        update = read(wait, 300, status, other())
        assert update.lines == ("the status may be that of session R-2 of the same meter; still waiting",)
        assert wait.tick(at(900)).result is None

    def test_a_newer_session_explains_the_status_that_it_ended_in(self) -> None:
        wait = waiting()
        receive(wait, 20, state("RUNNING", "INITIALIZING", 19))
        gone = other("COMPLETED", 100)
        for second in (300, 600, 900):
            assert read(wait, second, "COMPLETED", gone).result is None
        assert wait.tick(at(2000)).result is None
        assert ended(receive(wait, 2001, state("FAILED", second=2000))) == (WaitEnd.FAILED, "callout", True)

    def test_an_ended_session_explains_nothing_after_a_later_live_reading(self) -> None:
        wait = waiting()
        receive(wait, 20, state("RUNNING", "INITIALIZING", 19))
        gone = other("COMPLETED", 100)
        read(wait, 300, "RUNNING", gone)
        read(wait, 600, "COMPLETED", gone)
        assert ended(wait.tick(at(630))) == (WaitEnd.MET, "poll", False)

    def test_an_ended_session_explains_only_its_own_end(self) -> None:
        wait = waiting()
        receive(wait, 20, state("RUNNING", "INITIALIZING", 19))
        read(wait, 300, "FAILED", other("COMPLETED", 100))
        assert ended(wait.tick(at(330))) == (WaitEnd.FAILED, "poll", False)

    def test_an_older_session_that_seems_live_only_makes_the_end_uncertain(self) -> None:
        wait = waiting(baseline=None, exclusive=True)
        receive(wait, 20, state("RUNNING", "INITIALIZING", 19))
        zombie = other("RUNNING", -800, begun=-900, session_id="R-0")
        read(wait, 300, "COMPLETED", zombie)
        assert ended(wait.tick(at(330))) == (WaitEnd.MET, "poll", False)

    def test_a_session_received_later_may_explain_a_pending_end(self) -> None:
        wait = waiting()
        receive(wait, 20, state("RUNNING", "INITIALIZING", 19))
        read(wait, 300, "COMPLETED")
        assert wait.wants_all_sessions
        assert receive(wait, 301, other("RUNNING", 300, begun=290)).lines == (
            "the status may be that of session R-2 of the same meter; still waiting",
        )
        assert wait.tick(at(900)).result is None

    def test_a_test_run_explains_no_live_status(self) -> None:
        wait = waiting()
        receive(wait, 20, state("RUNNING", "INITIALIZING", 19))
        read(wait, 300, "COMPLETED", other("TESTING", 200))
        assert ended(wait.tick(at(330))) == (WaitEnd.MET, "poll", False)

    def test_a_session_known_only_from_its_run_reply_explains_nothing(self) -> None:
        """Its callouts may never be sent: Zuora may not be configured for this meter."""
        wait = waiting(exclusive=True)
        receive(wait, 20, state("RUNNING", "INITIALIZING", 19))
        read(wait, 300, "COMPLETED", other("INITIALIZING", 200, begun=200, source=Source.RUN))
        assert ended(wait.tick(at(330))) == (WaitEnd.MET, "poll", False)


class TestWithoutASessionId:
    def test_a_session_that_ended_before_the_sensor_began_is_found(self) -> None:
        update = receive(sensing(), 501, state("COMPLETED", second=100))
        assert ended(update) == (WaitEnd.MET, "callout", True)
        assert update.lines == (
            "waiting for session R-1, the first that is known",
            "session R-1 of meter 2470 is COMPLETED, by callout",
        )

    def test_the_first_of_several_sessions_counts_in_any_order_of_reports(self) -> None:
        later, first = other("COMPLETED", 300, begun=200), state("FAILED", second=100)
        before = other("COMPLETED", 300, begun=-1, session_id="R-0")
        for states in ((later, first, before), (before, first, later)):
            update = receive(sensing(), 501, *states)
            assert update.result is not None
            assert update.result.message.startswith("Session R-1 of meter 2470 is FAILED")

    def test_a_later_session_does_not_replace_the_bound_one(self) -> None:
        wait = sensing()
        receive(wait, 501, state("RUNNING", "INITIALIZING", 100))
        assert receive(stored(wait), 900, other("FAILED", 800, begun=600)).result is None

    def test_an_earlier_session_received_later_replaces_the_bound_one_and_is_logged(self) -> None:
        wait = sensing()
        later = other("RUNNING", 300, begun=200)
        receive(wait, 501, later)
        update = receive(stored(wait), 900, state("RUNNING", "INITIALIZING", 899), later)
        assert update.lines == (
            "session R-1 comes before R-2: waiting for R-1",
            "session R-1 of meter 2470 is RUNNING, by callout",
        )

    def test_a_bound_session_that_began_too_early_is_released(self) -> None:
        wait = sensing()
        receive(wait, 501, state("RUNNING", "INITIALIZING", 100, started_at=None))
        assert wait.tracker.begun
        early = fold(
            [
                transition("RUNNING", "INITIALIZING", 100, started_at=None),
                transition("COMPLETED", "RUNNING", 600, started_at=at(-60)),
            ]
        )
        update = receive(wait, 601, early)
        assert update.lines == ("session R-1 is not the awaited one",)
        assert update.result is None
        assert not wait.tracker.begun
        assert ended(receive(wait, 900, other("COMPLETED", 899, begun=700))) == (WaitEnd.MET, "callout", True)

    def test_polls_count_for_the_session_that_callouts_found(self) -> None:
        wait = sensing()
        read(wait, 510, "RUNNING")
        receive(wait, 511, state("RUNNING", "INITIALIZING", 505, started_at=at(500)))
        read(wait, 900, "COMPLETED")
        update = wait.tick(at(930))
        assert ended(update) == (WaitEnd.MET, "poll", False)
        assert update.result is not None
        assert update.result.session is not None
        assert update.result.session["session_id"] == "R-1"

    def test_a_sensor_wants_all_sessions_of_the_meter_until_it_ends(self) -> None:
        assert not waiting().wants_all_sessions
        wait = sensing()
        assert wait.wants_all_sessions
        receive(wait, 501, state("COMPLETED", second=100))
        assert not wait.wants_all_sessions

    def test_nothing_is_held_back_once_the_wait_has_ended(self) -> None:
        wait = waiting()
        receive(wait, 20, state("RUNNING", "INITIALIZING", 19))
        read(wait, 300, "COMPLETED")
        wait.tick(at(330))
        assert not wait.wants_all_sessions
        assert wait.to_dict()["held_back"] is None

    def test_only_sessions_that_may_come_first_can_change_the_bound_one(self) -> None:
        tracker = sensing().tracker
        assert not tracker.may_bind({"R-9"}, at(-9), at(-1))
        assert tracker.may_bind({"R-9"}, at(-9), at(0))
        tracker.bind([state("RUNNING", "INITIALIZING", 100, started_at=at(50))])
        assert tracker.may_bind({"R-1"}, at(60), at(70))
        assert tracker.may_bind({"R-9"}, at(50), at(70))
        assert not tracker.may_bind({"R-9"}, at(51), at(70))
        assert waiting().tracker.may_bind({"R-9"}, at(-9), at(-9))

    def test_a_session_that_only_its_zone_puts_before_since_is_named_at_the_deadline(self) -> None:
        hours = 7 * 3600
        wait = sensing(since=450)
        zone = state("COMPLETED", "RUNNING", 500, session_id="R-5", started_at=at(497 - hours))
        lines = receive(wait, 501, zone).lines
        assert [line for line in lines if "session R-5 began at" in line and "callout_timezone is wrong" in line]
        # Once; and neither for one that began before, nor for one of which the first callouts were lost.
        read(wait, 510, "COMPLETED")
        wait = stored(wait)
        assert receive(wait, 520, zone).lines == ()
        earlier = sensing(since=450)
        for observed, started in ((440, 437 - hours), (500, 200)):
            receive(earlier, 501, state("COMPLETED", "RUNNING", observed, session_id="R-5", started_at=at(started)))
        assert "callout_timezone" not in earlier.tracker.log.at_deadline(at(900))
        assert "callout_timezone is wrong" in wait.tracker.log.at_deadline(at(900))

    def test_the_end_of_an_earlier_session_does_not_end_the_wait(self) -> None:
        wait = sensing(since=450)
        before = other("RUNNING", 300, begun=200)
        read(wait, 510, "RUNNING", before)
        read(wait, 900, "COMPLETED", before)
        assert wait.tick(at(2000)).result is None

    def test_a_session_of_which_every_callout_is_lost_ends_by_polls(self) -> None:
        wait = sensing()
        before = other("COMPLETED", -100, begun=-300)
        zombie = other("RUNNING", -500, begun=-900, session_id="R-0")
        for second, status in ((510, "COMPLETED"), (900, "RUNNING"), (1200, "RUNNING"), (1500, "FAILED")):
            assert read(wait, second, status, before, zombie).result is None
        assert ended(wait.tick(at(1530))) == (WaitEnd.FAILED, "poll", False)

    def test_without_callouts_a_run_reply_does_not_bind_the_wait(self) -> None:
        wait = sensing(OFF)
        receive(wait, 501, state("INITIALIZING", None, 100, source=Source.RUN))
        assert wait.tracker.session_id is None

    def test_callouts_find_the_session_after_a_lost_run_reply(self) -> None:
        asked = condition(None, since=at(100))
        wait = SessionWait(asked, created_at=at(101), started_at=at(100), baseline="COMPLETED")
        wait.rely_on(READ)
        # Zuora's clock is two seconds behind ours.
        update = receive(wait, 130, state("COMPLETED", second=129, started_at=at(98)))
        assert ended(update) == (WaitEnd.MET, "callout", True)
        assert wait.tracker.session_id == "R-1"


def test_a_wait_for_the_meters_status_ignores_callouts() -> None:
    asked = SessionCondition(meter_id="2470", statuses=("PAUSED", "COMPLETED"), fail_on=(), since=at(0))
    wait = stored(SessionWait(asked, created_at=at(0), baseline="RUNNING", settle=timedelta(), polls_only=True))
    assert wait.rely_on(READ) == WaitUpdate()
    assert receive(wait, 20, state("COMPLETED", second=19)) == WaitUpdate()
    assert not wait.wants_all_sessions
    read(wait, 30, "PAUSED")
    assert isinstance(read(wait, 31, "PAUSED").result, WaitResult)


class TestTheHistoryInPlaceOfCallouts:
    """What Zuora's callout history has ends a wait as a callout does, some minutes later."""

    HISTORY = FeedStatusChange(FeedStatus.READ, "the history is read", late=timedelta(seconds=480))

    def test_it_ends_the_wait_and_that_is_certain(self) -> None:
        update = receive(waiting(self.HISTORY, require_certain=True), 400, state("COMPLETED", source=Source.HISTORY))
        assert ended(update) == (WaitEnd.MET, "history", True)

    def test_a_previous_status_may_be_asked_for(self) -> None:
        wait = waiting(self.HISTORY, previous_statuses=("RUNNING",))
        assert ended(receive(wait, 400, state("COMPLETED", source=Source.HISTORY))) == (WaitEnd.MET, "history", True)

    def test_an_end_that_a_poll_shows_is_held_back_until_the_history_must_have_it(self) -> None:
        wait = waiting(self.HISTORY)
        read(wait, 100, "RUNNING")
        update = read(wait, 200, "COMPLETED")
        assert update.lines[-1] == "the meter shows COMPLETED; its callout may follow within 8m 30s"
        wait = SessionWait.from_dict(wait.to_dict())
        assert wait.tick(at(709)).result is None
        assert ended(receive(wait, 709, state("COMPLETED", second=195, source=Source.HISTORY)))[1:] == ("history", True)

    def test_a_change_that_the_history_never_has_is_an_uncertain_end(self) -> None:
        wait = waiting(self.HISTORY)
        read(wait, 100, "RUNNING")
        read(wait, 200, "COMPLETED")
        assert ended(wait.tick(at(710))) == (WaitEnd.MET, "poll", False)

    def test_while_nothing_reads_it_polls_decide_and_no_wait_fails_for_it(self) -> None:
        wait = waiting(self.HISTORY, previous_statuses=("RUNNING",))
        assert wait.rely_on(LOST).result is None
        read(wait, 100, "RUNNING")
        assert read(wait, 200, "FAILED").result is not None

    def test_how_late_it_is_may_change(self) -> None:
        wait = waiting(self.HISTORY)
        wait.rely_on(FeedStatusChange(FeedStatus.READ, "the history is read", late=timedelta(seconds=60)))
        read(wait, 100, "RUNNING")
        read(wait, 200, "COMPLETED")
        assert ended(wait.tick(at(290))) == (WaitEnd.MET, "poll", False)
