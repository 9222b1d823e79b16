"""Windows: invalid ones, when it is certain that no session started in one, and late changes that polls ignore."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from airflow_mediation_provider.protocol.sessions.lifecycle import SessionState, fold
from airflow_mediation_provider.protocol.sessions.window import (
    WINDOW_GRACE,
    MeterShown,
    Window,
    WindowReport,
    bounds,
    check_window,
    why_over,
)
from airflow_mediation_provider.protocol.transition import SessionTransition, Source
from airflow_mediation_provider.protocol.waits.condition import SessionCondition
from airflow_mediation_provider.protocol.waits.feed_status import FeedStatus, FeedStatusChange
from airflow_mediation_provider.protocol.waits.tracker import Binding
from airflow_mediation_provider.protocol.waits.wait import PollReading, SessionWait, WaitEnd, WaitUpdate

SINCE = datetime(2026, 3, 31, 8, tzinfo=UTC)
BEFORE = SINCE + timedelta(hours=1)
OVER = BEFORE + WINDOW_GRACE
SETTLE = timedelta(seconds=30)
REPORT = WindowReport(meter_id="m", window=Window(SINCE, BEFORE), callouts_before=True, received=None)
IDLE = MeterShown(status="COMPLETED", read_at=BEFORE + SETTLE, idle_at=BEFORE + SETTLE, settle=SETTLE)
LIVE = MeterShown(status="RUNNING", read_at=OVER, idle_at=None, settle=SETTLE)
READ = FeedStatusChange(FeedStatus.READ, "callouts are read")
LOST = FeedStatusChange(FeedStatus.LOST, "the feed does not answer")
OFF = FeedStatusChange(FeedStatus.OFF, "no callouts come", "let them come")


def state(
    started: datetime | None, status: str = "RUNNING", *, observed: datetime = OVER, meter: str = "m"
) -> SessionState:
    return fold(
        [
            SessionTransition(
                meter_id=meter,
                session_id="R-1",
                status=status,
                started_at=started,
                observed_at=observed,
                source=Source.CALLOUT,
            )
        ]
    )


class TestBounds:
    def test_a_latest_start_is_an_instant_or_a_distance_from_the_earliest(self) -> None:
        assert bounds(SINCE, timedelta(hours=1)) == bounds(SINCE, BEFORE) == (SINCE, BEFORE)
        assert bounds(SINCE, None) == (SINCE, None)

    def test_both_bounds_are_whole_seconds_like_zuoras_starts(self) -> None:
        assert bounds(SINCE + timedelta(microseconds=900_000), timedelta(hours=1)) == (SINCE, BEFORE)

    @pytest.mark.parametrize("before", [timedelta(microseconds=3), timedelta(0), -timedelta(days=1)])
    def test_an_interval_shorter_than_a_second_is_refused(self, before: timedelta) -> None:
        # Two of these are in different seconds.
        since = SINCE - timedelta(microseconds=1)
        with pytest.raises(ValueError, match=r"before=timedelta\(hours=1\)"):
            bounds(since, since + before)

    def test_a_condition_refuses_an_invalid_window(self) -> None:
        made = SessionCondition(meter_id="m", since=SINCE, before=BEFORE)
        assert made.window == (SINCE, BEFORE)
        assert SessionCondition.from_dict(made.to_dict()) == made
        assert SessionCondition(meter_id="m", since=SINCE).window is None
        check_window(SINCE, SINCE + timedelta(seconds=1))
        for wrong in ({"since": BEFORE, "before": SINCE}, {"before": BEFORE}, {"since": SINCE, "before": SINCE}):
            with pytest.raises(ValueError, match="before"):
                SessionCondition(meter_id="m", **wrong)  # type: ignore[arg-type]


class TestOver:
    @pytest.mark.parametrize(
        ("shown", "sessions"),
        [
            (IDLE, []),
            (IDLE, [state(SINCE, "FAILED")]),
            (IDLE, [state(SINCE, observed=BEFORE)]),  # its last callout was lost, and polls showed the meter idle since
            (IDLE, [state(BEFORE)]),
            (LIVE, [state(BEFORE)]),
            (LIVE, [state(BEFORE), state(SINCE, meter="other")]),
        ],
    )
    def test_no_session_started_and_none_can_follow(self, shown: MeterShown, sessions: list[SessionState]) -> None:
        reason = why_over(REPORT, shown, sessions, OVER)
        assert "no session of meter m started from 2026-03-31 08:00:00 UTC until 2026-03-31 09:00:00 UTC" in reason
        assert str(shown.status) in reason

    @pytest.mark.parametrize(
        ("changes", "shown", "sessions"),
        [
            ({"callouts_before": False}, IDLE, []),
            ({"received": "R-9"}, IDLE, []),
            ({}, replace(IDLE, status=None, read_at=None), []),
            ({}, replace(IDLE, read_at=BEFORE + SETTLE - timedelta(seconds=1)), []),
            ({}, LIVE, []),
            ({}, replace(IDLE, status="PAUSED"), []),
            ({}, LIVE, [state(SINCE)]),
            ({}, LIVE, [state(BEFORE), replace(state(SINCE), session_id="R-2")]),
            ({}, LIVE, [state(BEFORE, "COMPLETED")]),
            ({}, IDLE, [state(SINCE)]),  # received after a poll showed the meter idle
            ({}, LIVE, [state(None)]),  # first received later, start unknown
        ],
    )
    def test_a_session_may_have_started_without_proof_of_the_opposite(
        self, changes: dict[str, Any], shown: MeterShown, sessions: list[SessionState]
    ) -> None:
        assert why_over(replace(REPORT, **changes), shown, sessions, OVER) == ""

    def test_a_window_is_not_over_before_its_callouts_had_time_to_arrive(self) -> None:
        assert why_over(REPORT, IDLE, [], OVER - timedelta(seconds=1)) == ""


class TestAWaitWhoseWindowPassed:
    def wait(self, *grounds: FeedStatusChange, **asked: Any) -> SessionWait:
        window = {"since": SINCE, "before": BEFORE, **asked}
        wait = SessionWait(SessionCondition(meter_id="m", **window), created_at=SINCE)
        for each in grounds or (READ,):
            wait.rely_on(each)
        wait.observe(PollReading("COMPLETED", OVER))
        return wait

    def test_a_window_in_which_no_session_started_ends_the_wait(self) -> None:
        wait = self.wait()
        assert wait.receive_window([REPORT], [], OVER - timedelta(seconds=1)) == WaitUpdate()
        update = wait.receive_window([replace(REPORT, received="R-9"), REPORT], [], OVER)
        assert update.result is not None
        assert update.result.end is WaitEnd.TIMED_OUT
        assert update.result.message.startswith("No session of meter m started from 2026-03-31 08:00:00 UTC")

    @pytest.mark.parametrize(
        "report",
        [replace(REPORT, meter_id="other"), replace(REPORT, window=Window(SINCE, BEFORE - timedelta(minutes=1)))],
    )
    def test_a_report_of_another_meter_or_window_does_not_end_the_wait(self, report: WindowReport) -> None:
        assert self.wait().receive_window([report], [], OVER) == WaitUpdate()

    @pytest.mark.parametrize("grounds", [(READ, LOST), (READ, LOST, READ)])
    def test_a_wait_that_missed_callouts_does_not_end(self, grounds: tuple[FeedStatusChange, ...]) -> None:
        wait = SessionWait.from_dict(self.wait(*grounds).to_dict())
        assert wait.receive_window([REPORT], [], OVER) == WaitUpdate()

    def test_a_wait_whose_session_is_known_does_not_end(self) -> None:
        wait = self.wait()
        wait.receive([state(SINCE)], OVER)
        assert wait.receive_window([REPORT], [], OVER) == WaitUpdate()

    def test_a_wait_without_a_window_does_not_end(self) -> None:
        assert self.wait(before=None).receive_window([REPORT], [], OVER) == WaitUpdate()


class TestASessionThatTheNextRunMayTakeToo:
    def warning(self, next_since: datetime | None, started: datetime = BEFORE) -> str:
        wait = SessionWait(SessionCondition(meter_id="m", since=SINCE), created_at=SINCE)
        wait.next_since = next_since
        wait.rely_on(READ)
        result = SessionWait.from_dict(wait.to_dict()).receive([state(started, "COMPLETED")], OVER).result
        assert result is not None
        assert result.session is not None
        return result.warning

    def test_the_warning_names_both_and_the_length_of_a_window(self) -> None:
        assert self.warning(BEFORE) == (
            "Session R-1 of meter m started at 2026-03-31 09:00:00 UTC, and the next scheduled run waits for one from"
            " 2026-03-31 09:00:00 UTC on: that run may take it too. Set before, here a timedelta of 1h, so that each"
            " run has a window of its own."
        )

    def test_windows_that_start_together_have_no_length_to_suggest(self) -> None:
        assert "Set before so that" in self.warning(SINCE)
        assert "a timedelta of 1s," in self.warning(SINCE + timedelta(seconds=1))

    @pytest.mark.parametrize("next_since", [None, BEFORE + timedelta(seconds=1)])
    def test_no_warning_where_the_next_run_waits_for_a_later_session(self, next_since: datetime | None) -> None:
        assert self.warning(next_since) == ""


class TestBinding:
    def bound(self, *starts: datetime | None) -> str | None:
        states = [replace(state(start), session_id=f"R-{number}") for number, start in enumerate(starts)]
        found = set()
        for each in (states, states[::-1]):
            binding = Binding(SessionCondition(meter_id="m", since=SINCE, before=BEFORE), earliest=SINCE)
            for one in each:
                binding.take([one])
            found.add(binding.session_id)
        assert len(found) == 1
        return found.pop()

    def test_a_session_that_starts_at_the_latest_start_or_after_it_does_not_count(self) -> None:
        assert self.bound(BEFORE, BEFORE + timedelta(hours=1)) is None
        assert self.bound(BEFORE, BEFORE - timedelta(seconds=1), SINCE - timedelta(seconds=1)) == "R-1"
        assert self.bound(None) is None  # first observed after it

    def test_a_bound_session_that_started_too_late_is_released(self) -> None:
        binding = Binding(SessionCondition(meter_id="m", since=SINCE, before=BEFORE), earliest=SINCE)
        observed = BEFORE - timedelta(minutes=1)
        binding.take([state(None, observed=observed)])
        assert binding.session_id == "R-1"
        binding.take([state(BEFORE, observed=observed)])
        assert binding.session_id is None


class TestPolls:
    """A change counts until ``settle`` and the longest pause after the window: 30 and 120 seconds here."""

    def wait(self, *, created_at: datetime = SINCE) -> SessionWait:
        condition = SessionCondition(meter_id="m", since=SINCE, before=BEFORE, until=SINCE + timedelta(days=1))
        wait = SessionWait(condition, created_at=created_at, longest_pause=timedelta(minutes=2))
        wait.rely_on(OFF)
        return wait

    def read(self, wait: SessionWait, after: float, status: str) -> SessionWait:
        """Poll the status this many seconds after the window, in the next process."""
        wait.observe(PollReading(status, BEFORE + timedelta(seconds=after)))
        return SessionWait.from_dict(wait.to_dict())

    def test_a_change_first_polled_in_time_is_of_the_awaited_session(self) -> None:
        wait = self.read(self.wait(), -60, "COMPLETED")
        for after, status in ((150, "RUNNING"), (210, "RUNNING"), (270, "COMPLETED")):
            wait = self.read(wait, after, status)
        assert wait.result is not None
        assert wait.result.end is WaitEnd.MET

    def test_an_end_first_polled_in_time_is_of_the_awaited_session(self) -> None:
        wait = self.read(self.wait(), -60, "FAILED")
        for after in (149, 210):
            wait = self.read(wait, after, "COMPLETED")
        assert wait.result is not None
        assert wait.result.end is WaitEnd.MET

    @pytest.mark.parametrize("status", ["RUNNING", "FAILED", "INITIALIZING"])
    def test_a_change_first_polled_later_is_another_sessions(self, status: str) -> None:
        wait = self.read(self.wait(), -60, "COMPLETED")
        wait = self.read(wait, 151, status)
        assert not wait.tracker.begun
        assert wait.result is not None
        assert wait.result.end is WaitEnd.TIMED_OUT
        assert "No session of meter m was seen to start before 2026-03-31 09:00:00 UTC" in wait.result.message

    def test_a_change_after_an_end_in_time_is_another_sessions(self) -> None:
        wait = self.read(self.wait(), -60, "COMPLETED")
        wait = self.read(self.read(wait, 149, "FAILED"), 151, "RUNNING")
        assert not wait.tracker.begun
        assert wait.result is not None
        assert wait.result.end is WaitEnd.TIMED_OUT

    def test_a_wait_ends_when_no_poll_can_meet_it_any_more(self) -> None:
        wait = self.read(self.wait(), -60, "COMPLETED")
        assert wait.deadline == BEFORE + timedelta(seconds=150)
        assert wait.tick(wait.deadline).result is None
        result = wait.tick(wait.deadline + timedelta(seconds=1)).result
        assert result is not None
        assert result.end is WaitEnd.TIMED_OUT

    def test_a_wait_that_begins_after_its_last_useful_poll_is_refused(self) -> None:
        assert self.wait(created_at=BEFORE + timedelta(seconds=150)).result is None
        result = self.wait(created_at=BEFORE + timedelta(seconds=151)).result
        assert result is not None
        assert result.end is WaitEnd.MISCONFIGURED
        assert "no callouts come: let them come, or leave the argument out" in result.message

    def test_a_wait_stored_by_an_earlier_version_has_no_window(self) -> None:
        data = self.wait().to_dict()
        del data["condition"]["before"], data["attribution"]["closes_at"], data["callouts_missed"], data["next_since"]
        wait = SessionWait.from_dict(data)
        assert wait.condition.window is None
        assert wait.deadline == wait.condition.until
