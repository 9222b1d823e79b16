"""What is usual of a meter, and what is longer or later than that."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from airflow_mediation_provider.protocol.sessions.usual import (
    LEAST,
    NEWEST,
    PastSession,
    Punctuality,
    Tempo,
    rhythm,
    usual_duration,
)

NOW = datetime(2026, 6, 1, 12, tzinfo=UTC)
HOUR = timedelta(hours=1)
MINUTE = timedelta(minutes=1)


def took(*minutes: float, status: str = "COMPLETED", every: timedelta = HOUR) -> list[PastSession]:
    """Sessions that took so long, the newest first: one each hour, the newest began an hour ago."""
    return [
        PastSession(f"R-{number}", begun := NOW - every * (number + 1), begun + timedelta(minutes=each), status)
        for number, each in enumerate(minutes)
    ]


def started(*hours_before: float, now: datetime = NOW) -> list[PastSession]:
    begun = [now - timedelta(hours=each) for each in hours_before]
    return [PastSession(str(each), each, each + MINUTE, "COMPLETED") for each in begun]


def span_of(past: list[PastSession]) -> tuple[float, float, int] | None:
    usual = usual_duration(past)
    return usual and (usual.shortest / MINUTE, usual.longest / MINUTE, usual.sessions)


class TestUsualDuration:
    def test_too_few_sessions_show_nothing(self) -> None:
        assert span_of(took(*[5.0] * (LEAST - 1))) is None
        assert span_of(took(*[5.0] * LEAST)) == (5, 5, LEAST)

    def test_only_sessions_that_ended_well_count(self) -> None:
        past = took(1, 1, 1, 1, 1, status="FAILED") + took(1, 1, 1, status="CANCELED") + took(8, 9, 10, 11, 12)
        assert span_of(past) == (8, 12, 5)
        assert span_of(took(8, 9, 10, 11, 12, status="TESTING_PASSED")) == (8, 12, 5)

    def test_a_session_that_goes_on_and_one_that_ended_before_it_began_do_not_count(self) -> None:
        live = PastSession("live", NOW, None, "COMPLETED")
        assert span_of([live, *took(-3, 8, 9, 10, 11, 12)]) == (8, 12, 5)

    def test_a_tenth_at_each_end_is_left_out(self) -> None:
        assert span_of(took(0, *range(10, 28), 500)) == (11, 26, 20)

    def test_only_the_newest_count(self) -> None:
        assert span_of([*took(*[5.0] * NEWEST), *took(*[90.0] * NEWEST)]) == (5, 5, NEWEST)

    @pytest.mark.parametrize(
        ("usual", "lasted", "exceeded"),
        [(60, 90, False), (60, 90.1, True), (0.1, 1.1, False), (0.1, 1.2, True), (60, 10, False)],
    )
    def test_longer_is_by_half_and_by_a_minute(self, usual: float, lasted: float, exceeded: bool) -> None:
        tempo = Tempo.of(took(*[usual] * LEAST))
        assert tempo.takes_long(NOW - timedelta(minutes=lasted), NOW) is exceeded

    def test_nothing_takes_long_where_too_few_sessions_show_what_is_usual(self) -> None:
        assert not Tempo.of(took(1, 1)).takes_long(NOW - timedelta(days=9), NOW)


class TestRhythm:
    def test_each_hour(self) -> None:
        beats = rhythm(started(*range(1, 12)))
        assert beats == (HOUR, HOUR, NOW - HOUR)

    @pytest.mark.parametrize(
        ("hours", "punctuality"),
        [(1, Punctuality.ON_TIME), (1.24, Punctuality.ON_TIME), (1.3, Punctuality.LATE), (100, Punctuality.LATE),
         (24 * 7, Punctuality.LATE), (24 * 7 + 1, Punctuality.UNKNOWN)],
    )  # fmt: skip
    def test_a_session_each_hour_is_late_after_a_quarter_more(self, hours: float, punctuality: Punctuality) -> None:
        past = started(*range(11))
        assert Tempo.of(past).punctuality(NOW + timedelta(hours=hours)) is punctuality

    def test_a_meter_of_working_days_is_not_late_at_a_weekend(self) -> None:
        friday = datetime(2026, 5, 29, 6, tzinfo=UTC)
        days = [friday - timedelta(days=each) for each in range(28)]
        past = [PastSession(str(each), each, each + HOUR, "COMPLETED") for each in days if each.weekday() < 5]
        tempo = Tempo.of(past)
        assert tempo.punctuality(friday + timedelta(days=1)) is Punctuality.ON_TIME
        assert tempo.punctuality(friday + timedelta(days=2)) is Punctuality.UNCERTAIN
        assert tempo.punctuality(friday + timedelta(days=3, hours=5)) is Punctuality.UNCERTAIN
        assert tempo.punctuality(friday + timedelta(days=3, hours=7)) is Punctuality.LATE

    @pytest.mark.parametrize(
        "past",
        [
            [],
            started(*range(LEAST)),
            started(0, 1, 5, 6, 20, 21, 22, 40, 41, 80),
            started(*[each / 100 for each in range(20)]),
            started(*[0] * 20),
        ],
        ids=["none", "few", "irregular", "every few seconds", "all at once"],
    )
    def test_without_a_regular_rhythm_nothing_is_late(self, past: list[PastSession]) -> None:
        assert Tempo.of(past).punctuality(NOW + timedelta(days=1)) is Punctuality.UNKNOWN

    def test_nothing_is_due_while_a_session_goes_on(self) -> None:
        past = started(*range(11))
        tempo = Tempo.of([past[0]._replace(ended_at=None), *past[1:]])
        assert tempo.punctuality(NOW + timedelta(hours=9)) is Punctuality.UNKNOWN

    @given(st.lists(st.integers(0, 10**6), max_size=40))
    def test_before_the_longest_span_has_passed_again_nothing_is_late(self, seconds: list[int]) -> None:
        begun = sorted((NOW - timedelta(seconds=each) for each in seconds), reverse=True)
        tempo = Tempo.of([PastSession("R", each, each, "COMPLETED") for each in begun])
        if tempo.rhythm is not None:
            last = tempo.rhythm.last + tempo.rhythm.longest
            assert tempo.punctuality(last) in (Punctuality.ON_TIME, Punctuality.UNCERTAIN)


def test_the_streak_is_of_the_newest_status() -> None:
    live = PastSession("live", NOW, None, "RUNNING")
    tempo = Tempo.of([live, *took(1, 1, status="FAILED"), *took(1, 1, 1), *took(1, status="FAILED")])
    assert (tempo.streak, tempo.live, len(tempo.ended)) == (2, [live], 6)
    assert Tempo.of([live]).streak == 0
