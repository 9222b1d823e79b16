"""Callouts decide a wait; what a poll may still do beside them, and what it must not."""

from __future__ import annotations

from datetime import timedelta

import pytest

from airflow_mediation_provider.protocol.condition import SessionCondition
from airflow_mediation_provider.protocol.errors import MisconfigurationError, TransientError
from airflow_mediation_provider.protocol.grounds import Callouts, Grounds
from airflow_mediation_provider.protocol.lifecycle import SessionState, fold
from airflow_mediation_provider.protocol.transition import Source
from airflow_mediation_provider.protocol.wait import PollReading, SessionWait, WaitEnd, WaitResult, WaitUpdate
from tests.unit.protocol.tenant import at, condition, state, stored, transition

READ = Grounds(Callouts.READ, "callouts are read")
LOST = Grounds(Callouts.LOST, "the feed does not answer")
OFF = Grounds(Callouts.OFF, "connection 'c' takes no callouts", "set them up")
DOWN = TransientError("HTTP 503")


def waiting(grounds: Grounds | None = READ, **options: object) -> SessionWait:
    """Return the wait of RunMeterOperator for R-1, which started at second 0."""
    asked = {key: options.pop(key) for key in ("until", "statuses", "previous_statuses", "fail_on") if key in options}
    arguments = {"created_at": at(0), "started_at": at(0), "run_status": "INITIALIZING", "baseline": "COMPLETED"}
    wait = SessionWait(condition(**asked), **{**arguments, **options})  # type: ignore[arg-type]
    if grounds is not None:
        wait.rely_on(grounds)
    return wait


def sensing(grounds: Grounds = READ, since: float = 0, **options: object) -> SessionWait:
    """Return the wait of a sensor without a session id that began at second 500."""
    wait = SessionWait(condition(None, since=at(since)), **{"created_at": at(500), **options})  # type: ignore[arg-type]
    wait.rely_on(grounds)
    return wait


def read(wait: SessionWait, second: float, status: str, *others: SessionState) -> WaitUpdate:
    return wait.observe(PollReading(status, at(second)), others)


def learn(wait: SessionWait, second: float, *states: SessionState) -> WaitUpdate:
    return wait.learn(states, at(second))


def other(status: str = "RUNNING", second: float = 50, begun: float = 40, **fields: object) -> SessionState:
    before = {"INITIALIZING": None, "RUNNING": "INITIALIZING"}.get(status, "RUNNING")
    return state(status, before, second, **{"session_id": "R-2", "started_at": at(begun), **fields})


def ended(update: WaitUpdate) -> tuple[WaitEnd, str, bool]:
    assert update.result is not None
    assert update.result.session is not None
    return update.result.end, update.result.session["evidence"], update.result.session["certain"]


class TestTheyDecide:
    def test_they_are_exact(self) -> None:
        update = learn(waiting(require_certain=True), 101, state("COMPLETED", second=100))
        assert update.lines == ("INITIALIZING -> COMPLETED after 1m 40s, by callout",)
        assert ended(update) == (WaitEnd.MET, "callout", True)
        assert update.result is not None
        assert update.result.session is not None
        shown = {key: update.result.session[key] for key in ("previous_status", "observed_at")}
        assert shown == {"previous_status": "RUNNING", "observed_at": "2026-03-31T09:01:40+00:00"}

    def test_what_is_said_again_is_not_news(self) -> None:
        wait = waiting()
        running = state("RUNNING", "INITIALIZING", 20)
        assert learn(wait, 21, running).lines == ("INITIALIZING -> RUNNING after 20s, by callout",)
        assert learn(wait, 60, running) == WaitUpdate()
        # A poll is ahead of a callout that is late: the old one does not take it back.
        assert read(wait, 60, "USAGE_PUSHING").lines == ("RUNNING -> USAGE_PUSHING after 40s, by poll",)
        assert learn(stored(wait), 120, running) == WaitUpdate()

    def test_a_status_that_a_poll_finds_again_lasts_since_then(self) -> None:
        wait = waiting()
        read(wait, 40, "RUNNING")
        assert learn(wait, 100, state("PAUSED", "RUNNING", 100)).lines == ("RUNNING -> PAUSED after 1m, by callout",)
        assert read(wait, 300, "RUNNING").lines == ("PAUSED -> RUNNING after 3m 20s, by poll",)
        assert wait.heartbeat(at(360)) == "still RUNNING, 1m so far"

    def test_other_meters_say_nothing(self) -> None:
        assert learn(waiting(), 101, state("COMPLETED", meter_id="7")) == WaitUpdate()

    def test_what_is_ambiguous_ends_nothing_and_is_said_once(self) -> None:
        wait = waiting()
        unclear = fold([transition("PAUSED", None, 100), transition("RUNNING", None, 101)])
        assert unclear.ambiguous
        line = "the callouts up to now do not tell its present status; waiting on"
        assert [learn(wait, second, unclear) for second in (102, 103)] == [WaitUpdate((line,)), WaitUpdate()]

    def test_two_ends_are_not_certain(self) -> None:
        both = fold([transition("COMPLETED"), transition("FAILED", second=101)])
        assert ended(learn(waiting(), 102, both)) == (WaitEnd.FAILED, "callout", False)

    def test_a_named_session_of_the_other_run_type_says_so(self) -> None:
        update = learn(waiting(), 20, state("TESTING_PASSED", "TESTING", 19))
        assert update.result is None
        assert "it is a DEBUG session, and a NORMAL one is awaited; waiting on" in update.lines

    def test_the_run_reply_of_somebody_else_is_known_too(self) -> None:
        wait = SessionWait(condition(), created_at=at(500))
        assert learn(wait, 501, state("INITIALIZING", None, 2, source=Source.RUN)).result is None
        # It was alive: an end is its own, and needs no second look.
        assert ended(read(wait, 600, "COMPLETED")) == (WaitEnd.MET, "poll", False)


class TestWhatAWaitRestsOn:
    def test_it_is_said_once_and_each_change_of_it(self) -> None:
        wait = waiting(None)
        said = [wait.rely_on(grounds).lines for grounds in (READ, READ, LOST, LOST, READ)]
        assert said == [(READ.words,), (), (LOST.words,), (), (READ.words,)]
        assert stored(wait).rely_on(READ).lines == ()
        assert wait.renewed(until=None).rely_on(READ).lines == (READ.words,)

    def test_without_callouts_everything_is_as_before(self) -> None:
        wait = waiting(OFF)
        read(wait, 40, "RUNNING")
        assert ended(read(wait, 90, "COMPLETED")) == (WaitEnd.MET, "poll", False)

    @pytest.mark.parametrize("callouts", [Callouts.OFF, Callouts.UNFOUND])
    def test_previous_statuses_need_them(self, callouts: Callouts) -> None:
        result = waiting(None, previous_statuses=("PUSH_COMPLETED",)).rely_on(Grounds(callouts, "none", "do so")).result
        assert result is not None
        assert result.end is WaitEnd.MISCONFIGURED
        assert result.message == (
            "Previous_statuses needs Zuora's callouts, for a poll tells the present status only, but none: do so, or "
            "leave it out."
        )

    def test_a_feed_that_is_lost_for_a_while_is_no_misconfiguration(self) -> None:
        wait = waiting(previous_statuses=("PUSH_COMPLETED",))
        assert wait.rely_on(LOST).result is None
        assert wait.rely_on(READ).result is None

    def test_zuora_out_of_reach_ends_no_wait_that_callouts_serve(self) -> None:
        wait = waiting(max_unreachable=timedelta(minutes=10))
        for second in range(0, 5000, 300):
            assert wait.fault(DOWN, at(second)).result is None
        assert learn(wait, 5001, state("COMPLETED", second=5000)).result is not None

    def test_patience_begins_anew_where_they_are_lost(self) -> None:
        wait = waiting(max_unreachable=timedelta(minutes=10))
        wait.fault(DOWN, at(0))
        wait.fault(DOWN, at(3000))
        wait.rely_on(LOST)
        assert wait.fault(DOWN, at(3001)).result is None
        result = wait.fault(DOWN, at(3601)).result
        assert result is not None
        assert result.end is WaitEnd.UNREACHABLE

    def test_a_refusal_ends_it_nevertheless(self) -> None:
        wait = SessionWait(condition(), created_at=at(0))
        wait.rely_on(READ)
        result = wait.fault(MisconfigurationError("there is no such meter"), at(1)).result
        assert result is not None
        assert result.end is WaitEnd.MISCONFIGURED


class TestAPollBesideThem:
    def test_it_is_held_back_for_the_callout_to_come(self) -> None:
        wait = waiting(until=at(5000))
        learn(wait, 20, state("RUNNING", "INITIALIZING", 19))
        update = read(wait, 300, "COMPLETED")
        assert update.result is None
        assert update.lines[-1] == "the meter shows COMPLETED; the callout that proves it has 30s to come"
        assert wait.deadline == at(330)
        assert ended(learn(wait, 302, state("COMPLETED", second=301))) == (WaitEnd.MET, "callout", True)

    def test_without_the_callout_it_counts_and_is_not_certain(self) -> None:
        wait = waiting(until=at(5000))
        learn(wait, 20, state("RUNNING", "INITIALIZING", 19))
        read(wait, 300, "FAILED")
        wait = stored(wait)
        assert wait.tick(at(329)) == WaitUpdate()
        update = wait.tick(at(330))
        assert ended(update) == (WaitEnd.FAILED, "poll", False)
        assert update.result is not None
        assert update.result.session is not None
        assert update.result.session["observed_at"] == at(300).isoformat()

    def test_what_is_certain_is_not_held_back(self) -> None:
        wait = waiting(exclusive=True)
        learn(wait, 20, state("RUNNING", "INITIALIZING", 19))
        assert ended(read(wait, 300, "COMPLETED")) == (WaitEnd.MET, "poll", True)

    def test_a_second_reading_does_not_hold_it_back_for_longer(self) -> None:
        wait = waiting()
        learn(wait, 20, state("RUNNING", "INITIALIZING", 19))
        assert [read(wait, second, "COMPLETED").result for second in (100, 129)] == [None, None]
        assert read(wait, 131, "COMPLETED").result is not None

    def test_the_deadline_finds_it(self) -> None:
        wait = waiting(until=at(310))
        learn(wait, 20, state("RUNNING", "INITIALIZING", 19))
        read(wait, 300, "COMPLETED")
        assert ended(wait.tick(at(310))) == (WaitEnd.MET, "poll", False)

    def test_a_session_that_goes_on_was_not_meant(self) -> None:
        wait = waiting()
        learn(wait, 20, state("RUNNING", "INITIALIZING", 19))
        read(wait, 300, "COMPLETED")
        assert read(wait, 310, "RUNNING").result is None
        assert wait.tick(at(400)).result is None

    def test_a_callout_that_came_late_is_newer_than_a_reading_just_before(self) -> None:
        wait = waiting()
        read(wait, 300, "COMPLETED")
        learn(wait, 310, state("RUNNING", "INITIALIZING", 309))
        # What is read now may have been true before the callout.
        assert read(wait, 320, "COMPLETED").result is None
        assert wait.tick(at(900)).result is None
        read(wait, 901, "COMPLETED")
        assert wait.tick(at(931)).result is not None

    def test_a_reopened_session_is_not_ended_by_its_old_end(self) -> None:
        wait = waiting(fail_on=())
        path = [transition("FAILED", "RUNNING", 60, notification_id="1")]
        learn(wait, 61, fold(path))
        assert read(wait, 100, "FAILED").result is None
        learn(wait, 200, fold([*path, transition("RUNNING", "FAILED", 199, notification_id="2")]))
        assert read(wait, 210, "FAILED").result is None
        read(wait, 300, "COMPLETED")
        assert ended(wait.tick(at(330))) == (WaitEnd.MET, "poll", False)

    def test_a_session_that_is_known_to_have_ended_is_not_what_polls_show(self) -> None:
        wait = waiting(statuses=("COMPLETED",), fail_on=())
        learn(wait, 61, state("FAILED", second=60))
        for second, status in ((300, "RUNNING"), (400, "COMPLETED"), (900, "COMPLETED")):
            assert read(wait, second, status).result is None
        assert wait.tick(at(2000)).result is None

    @pytest.mark.parametrize("grounds", [READ, LOST])
    def test_required_certainty_is_left_to_them(self, grounds: Grounds) -> None:
        wait = waiting(require_certain=True)
        wait.rely_on(grounds)
        read(wait, 40, "RUNNING")
        update = read(wait, 90, "COMPLETED")
        assert update.lines[-1] == (
            "the meter shows COMPLETED, and a callout alone proves whose status that is; waiting on"
        )
        assert read(wait, 150, "COMPLETED") == WaitUpdate()
        assert ended(learn(wait, 200, state("COMPLETED", second=199))) == (WaitEnd.MET, "callout", True)

    def test_previous_statuses_are_left_to_them(self) -> None:
        wait = waiting(previous_statuses=("PUSH_COMPLETED",))
        read(wait, 40, "RUNNING")
        assert read(wait, 90, "COMPLETED").result is None
        assert wait.tick(at(900)).result is None
        assert learn(wait, 91, state("COMPLETED", "RUNNING")).lines[-1] == (
            "COMPLETED came after RUNNING, which was not asked for; waiting on"
        )
        assert ended(learn(wait, 92, state("COMPLETED", "PUSH_COMPLETED", 91))) == (WaitEnd.MET, "callout", True)

    def test_with_previous_statuses_a_poll_may_say_that_it_is_too_late(self) -> None:
        wait = waiting(previous_statuses=("PUSH_COMPLETED",))
        read(wait, 40, "RUNNING")
        read(wait, 90, "FAILED")
        assert ended(wait.tick(at(120))) == (WaitEnd.FAILED, "poll", False)

    def test_but_not_where_it_may_have_met_the_condition_in_passing(self) -> None:
        wait = waiting(statuses=("PAUSED",), previous_statuses=("RUNNING",))
        read(wait, 40, "RUNNING")
        read(wait, 90, "COMPLETED")
        assert wait.tick(at(900)).result is None


class TestOtherSessions:
    def test_another_session_of_the_meter_breaks_the_promise(self) -> None:
        wait = waiting(exclusive=True)
        learn(wait, 20, state("RUNNING", "INITIALIZING", 19))
        read(wait, 60, "RUNNING", other())
        read(wait, 300, "FAILED", other("COMPLETED", 200))
        update = wait.tick(at(330))
        assert ended(update) == (WaitEnd.FAILED, "poll", False)
        assert update.result is not None
        assert "session R-2 of the same meter ran meanwhile" in update.result.message
        assert wait.known.doubt

    def test_a_session_that_had_ended_before_does_not(self) -> None:
        wait = waiting(exclusive=True)
        before = other("COMPLETED", -30, begun=-900, session_id="R-0")
        read(wait, 60, "RUNNING", before)
        assert ended(read(wait, 90, "COMPLETED", before)) == (WaitEnd.MET, "poll", True)

    def test_one_whose_end_was_lost_does_not_where_the_meter_was_idle_before(self) -> None:
        wait = waiting(exclusive=True, baseline="COMPLETED")
        zombie = other("RUNNING", -800, begun=-900, session_id="R-0")
        read(wait, 60, "RUNNING", zombie)
        assert ended(read(wait, 90, "COMPLETED", zombie)) == (WaitEnd.MET, "poll", True)

    @pytest.mark.parametrize("status", ["RUNNING", "COMPLETED", "FAILED"])
    def test_a_newer_live_session_explains_whatever_is_read(self, status: str) -> None:
        wait = waiting()
        learn(wait, 20, state("RUNNING", "INITIALIZING", 19))
        update = read(wait, 300, status, other())
        assert update.lines == ("the status may be that of session R-2 of the same meter; waiting on",)
        assert wait.tick(at(900)).result is None

    def test_a_newer_session_explains_the_status_that_it_ended_in(self) -> None:
        wait = waiting()
        learn(wait, 20, state("RUNNING", "INITIALIZING", 19))
        gone = other("COMPLETED", 100)
        for second in (300, 600, 900):
            assert read(wait, second, "COMPLETED", gone).result is None
        assert wait.tick(at(2000)).result is None
        assert ended(learn(wait, 2001, state("FAILED", second=2000))) == (WaitEnd.FAILED, "callout", True)

    def test_but_not_after_ours_was_seen_alive_again(self) -> None:
        wait = waiting()
        learn(wait, 20, state("RUNNING", "INITIALIZING", 19))
        gone = other("COMPLETED", 100)
        read(wait, 300, "RUNNING", gone)
        read(wait, 600, "COMPLETED", gone)
        assert ended(wait.tick(at(630))) == (WaitEnd.MET, "poll", False)

    def test_and_not_another_end_than_its_own(self) -> None:
        wait = waiting()
        learn(wait, 20, state("RUNNING", "INITIALIZING", 19))
        read(wait, 300, "FAILED", other("COMPLETED", 100))
        assert ended(wait.tick(at(330))) == (WaitEnd.FAILED, "poll", False)

    def test_an_older_session_that_seems_live_makes_it_uncertain_only(self) -> None:
        wait = waiting(baseline=None, exclusive=True)
        learn(wait, 20, state("RUNNING", "INITIALIZING", 19))
        zombie = other("RUNNING", -800, begun=-900, session_id="R-0")
        read(wait, 300, "COMPLETED", zombie)
        assert ended(wait.tick(at(330))) == (WaitEnd.MET, "poll", False)

    def test_one_that_becomes_known_in_the_meantime_explains_what_is_held_back(self) -> None:
        wait = waiting()
        learn(wait, 20, state("RUNNING", "INITIALIZING", 19))
        read(wait, 300, "COMPLETED")
        assert wait.curious
        assert learn(wait, 301, other("RUNNING", 300, begun=290)).lines == (
            "the status may be that of session R-2 of the same meter; waiting on",
        )
        assert wait.tick(at(900)).result is None

    def test_a_test_run_explains_no_live_status(self) -> None:
        wait = waiting()
        learn(wait, 20, state("RUNNING", "INITIALIZING", 19))
        read(wait, 300, "COMPLETED", other("TESTING", 200))
        assert ended(wait.tick(at(330))) == (WaitEnd.MET, "poll", False)

    def test_one_that_was_only_called_for_explains_nothing(self) -> None:
        """Its callouts may never come: Zuora may not be told to send them for this meter."""
        wait = waiting(exclusive=True)
        learn(wait, 20, state("RUNNING", "INITIALIZING", 19))
        read(wait, 300, "COMPLETED", other("INITIALIZING", 200, begun=200, source=Source.RUN))
        assert ended(wait.tick(at(330))) == (WaitEnd.MET, "poll", False)


class TestWithoutASessionId:
    def test_one_that_ended_before_the_sensor_began_is_found(self) -> None:
        update = learn(sensing(), 501, state("COMPLETED", second=100))
        assert ended(update) == (WaitEnd.MET, "callout", True)
        assert update.lines == (
            "waiting for session R-1, the first that is known",
            "session R-1 of meter 2470 is COMPLETED, by callout",
        )

    def test_the_first_of_several_counts_in_whatever_order_they_are_told(self) -> None:
        later, first = other("COMPLETED", 300, begun=200), state("FAILED", second=100)
        before = other("COMPLETED", 300, begun=-1, session_id="R-0")
        for states in ((later, first, before), (before, first, later)):
            update = learn(sensing(), 501, *states)
            assert update.result is not None
            assert update.result.message.startswith("Session R-1 of meter 2470 is FAILED")

    def test_it_keeps_to_it(self) -> None:
        wait = sensing()
        learn(wait, 501, state("RUNNING", "INITIALIZING", 100))
        assert learn(stored(wait), 900, other("FAILED", 800, begun=600)).result is None

    def test_an_earlier_one_that_becomes_known_later_is_waited_for_and_that_is_said(self) -> None:
        wait = sensing()
        later = other("RUNNING", 300, begun=200)
        learn(wait, 501, later)
        update = learn(stored(wait), 900, state("RUNNING", "INITIALIZING", 899), later)
        assert update.lines == (
            "session R-1 comes first, and not R-2: waiting for that one",
            "session R-1 of meter 2470 is RUNNING, by callout",
        )

    def test_one_that_turns_out_to_have_begun_too_early_is_given_up(self) -> None:
        wait = sensing()
        learn(wait, 501, state("RUNNING", "INITIALIZING", 100, started_at=None))
        early = fold(
            [
                transition("RUNNING", "INITIALIZING", 100, started_at=None),
                transition("COMPLETED", "RUNNING", 600, started_at=at(-60)),
            ]
        )
        update = learn(wait, 601, early)
        assert update.lines == ("session R-1 is not the one that is waited for",)
        assert update.result is None
        assert ended(learn(wait, 900, other("COMPLETED", 899, begun=700))) == (WaitEnd.MET, "callout", True)

    def test_polls_speak_for_the_session_that_callouts_found(self) -> None:
        wait = sensing()
        read(wait, 510, "RUNNING")
        learn(wait, 511, state("RUNNING", "INITIALIZING", 505, started_at=at(500)))
        read(wait, 900, "COMPLETED")
        update = wait.tick(at(930))
        assert ended(update) == (WaitEnd.MET, "poll", False)
        assert update.result is not None
        assert update.result.session is not None
        assert update.result.session["session_id"] == "R-1"

    def test_the_end_of_a_session_before_is_none(self) -> None:
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

    def test_without_callouts_a_session_that_was_called_for_need_not_be_the_first(self) -> None:
        wait = sensing(OFF)
        learn(wait, 501, state("INITIALIZING", None, 100, source=Source.RUN))
        assert wait.known.session_id is None

    def test_of_a_lost_run_reply_callouts_tell_the_session(self) -> None:
        asked = condition(None, since=at(100))
        wait = SessionWait(asked, created_at=at(101), started_at=at(100), baseline="COMPLETED")
        wait.rely_on(READ)
        # Zuora's clock is two seconds behind ours.
        update = learn(wait, 130, state("COMPLETED", second=129, started_at=at(98)))
        assert ended(update) == (WaitEnd.MET, "callout", True)
        assert wait.known.session_id == "R-1"


def test_a_wait_for_the_meters_status_learns_of_no_session() -> None:
    asked = SessionCondition(meter_id="2470", statuses=("PAUSED", "COMPLETED"), fail_on=(), since=at(0))
    wait = stored(SessionWait(asked, created_at=at(0), baseline="RUNNING", settle=timedelta(), polls_only=True))
    assert wait.rely_on(READ) == WaitUpdate()
    assert learn(wait, 20, state("COMPLETED", second=19)) == WaitUpdate()
    assert not wait.curious
    read(wait, 30, "PAUSED")
    assert isinstance(read(wait, 31, "PAUSED").result, WaitResult)
