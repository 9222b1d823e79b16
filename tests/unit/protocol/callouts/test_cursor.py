"""The cursor of the callout history, in virtual time: Zuora's zone by bounds, and what is read next."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime, timedelta, timezone
from typing import Any
from zoneinfo import ZoneInfo

import pytest

from airflow_mediation_provider.protocol.callouts.cursor import (
    LATE,
    OVERLAP,
    RETRY_SPAN,
    HistoryCursor,
    is_read,
)

NOON = datetime(2026, 3, 31, 12, tzinfo=UTC)
MINUTE = timedelta(minutes=1)
ZONES = [timedelta(hours=hours) for hours in (-12, -7, -3.5, 0, 1, 5.5, 5.75, 12.75, 14)]


def record(at: datetime, offset: timedelta, number: int = 1) -> dict[str, Any]:
    return {"createTime": f"{at + offset:%Y-%m-%dT%H:%M:%S}", "attemptedNum": number}


def read(cursor: HistoryCursor, at: datetime, *records: dict[str, Any], zone: str | None = None) -> HistoryCursor:
    """Read once, and pass over what was read if its zone is known."""
    span = cursor.span(cursor.zone(zone, at), at)
    after = cursor.learned(records, span, at)
    return after if after.zone(zone, at) is None else after.advanced(span, beside_callouts=False)


def new(at: datetime = NOON) -> HistoryCursor:
    return HistoryCursor(read_to=at)


@pytest.mark.parametrize("offset", ZONES, ids=str)
def test_the_first_record_that_appears_between_two_reads_shows_the_zone(offset: timedelta):
    old = record(NOON - timedelta(hours=5), offset)
    first = read(new(), NOON, old)
    second = read(first, NOON + MINUTE, old)
    third = read(second, NOON + 2 * MINUTE, old, record(NOON + 90 * timedelta(seconds=1), offset))

    assert first.zone(None, NOON) is second.zone(None, NOON) is None
    # Nothing is passed over while it is not known how old the records are.
    assert (first.read_to, second.read_to) == (NOON, NOON)
    zone = third.zone(None, NOON)
    assert zone is not None
    assert zone.utcoffset(None) == offset
    assert third.read_to == NOON + 2 * MINUTE


@pytest.mark.parametrize("offset", ZONES, ids=str)
def test_a_record_that_appears_late_shows_the_same_zone(offset: timedelta):
    cursor = read(new(), NOON, record(NOON - timedelta(hours=1), offset))
    late = record(NOON - timedelta(minutes=6), offset)

    cursor = read(cursor, NOON + MINUTE, late)

    assert cursor.zone(None, NOON) == timezone(offset)


@pytest.mark.parametrize("offset", ZONES, ids=str)
def test_the_time_of_an_event_with_a_zone_shows_it_in_one_read(offset: timedelta):
    at = NOON - timedelta(hours=5)
    stamp = (at - timedelta(seconds=3)).astimezone(timezone(timedelta(hours=8)))
    stamped = {**record(at, offset), "eventContext": {"<Event.Timestamp>": f"{stamp:%Y-%m-%dT%H:%M:%S.248%z}"}}

    cursor = read(new(), NOON, record(NOON - timedelta(days=1), offset), stamped)

    assert cursor.zone(None, NOON) == timezone(offset)


@pytest.mark.parametrize("stamp", ["2026-03-31T12:00:00", "2026-03-31", "soon", None, 17])
def test_the_time_of_an_event_without_a_zone_shows_none(stamp: object):
    cursor = read(new(), NOON, {**record(NOON, timedelta()), "eventContext": {"<Event.Timestamp>": stamp}})
    assert cursor.zone(None, NOON) is None


def test_a_retry_shows_no_zone_as_its_time_may_be_of_the_first_attempt():
    cursor = read(new(), NOON)
    cursor = read(cursor, NOON + MINUTE, record(NOON - timedelta(minutes=30), timedelta(hours=2), number=2))

    assert cursor.zone(None, NOON) is None


def test_long_intervals_leave_several_zones_until_records_rule_them_out():
    hour, offset = timedelta(hours=1), timedelta(hours=2)
    cursor = read(new(), NOON)
    cursor = read(cursor, NOON + hour, record(NOON + hour / 2, offset))
    assert cursor.zone(None, NOON) is None

    cursor = read(cursor, NOON + 2 * hour, record(NOON + hour + MINUTE, offset))
    cursor = read(cursor, NOON + 3 * hour, record(NOON + 3 * hour - MINUTE, offset))

    assert cursor.zone(None, NOON) == timezone(offset)


class TestTheConnectionsZone:
    def test_it_counts_before_any_record(self):
        zone = new().zone("America/New_York", NOON)
        assert zone == ZoneInfo("America/New_York")

    def test_a_record_from_the_future_contradicts_it(self):
        cursor = read(new(), NOON, record(NOON, timedelta(hours=1)))
        assert cursor.zone("Europe/London", NOON) is not None
        assert cursor.zone("America/New_York", NOON) is None

    @pytest.mark.parametrize("name", ["Europe/Berlin", "America/New_York"])
    def test_it_counts_through_the_night_in_which_clocks_are_set(self, name: str):
        zone = ZoneInfo(name)
        for day in (datetime(2026, 3, 28, tzinfo=UTC), datetime(2026, 10, 24, 12, tzinfo=UTC)):
            cursor = new(day)
            for minutes in range(0, 36 * 60, 10):
                at = day + timedelta(minutes=minutes)
                cursor = read(cursor, at, record(at - MINUTE, at.astimezone(zone).utcoffset()), zone=name)
                assert cursor.zone(name, at) == zone, at


class TestClocksThatAreSet:
    @pytest.mark.parametrize("change", [1, -1])
    def test_the_new_offset_is_found_and_no_change_is_passed_over(self, change: int):
        before, after = timedelta(hours=2), timedelta(hours=2 + change)
        at, cursor, passed = NOON, new(), []
        set_at = NOON + timedelta(hours=3)
        records: list[tuple[datetime, dict[str, Any]]] = []
        for _ in range(7 * 60):
            at += MINUTE
            happened = at - MINUTE / 2
            records.append((happened, record(happened, before if happened < set_at else after)))
            span = cursor.span(cursor.zone(None, at), at)
            seen = [(when, each) for when, each in records if datetime.fromisoformat(each["createTime"]) >= span.start]
            learned = cursor.learned([each for _, each in seen], span, at)
            if learned.zone(None, at) is not None:
                passed += [when for when, _ in seen]
                learned = learned.advanced(span, beside_callouts=False)
            cursor = learned
        assert cursor.zone(None, at) == timezone(after)
        assert set(passed) == {when for when, _ in records}


class TestTheSpan:
    def test_it_reaches_back_before_the_last_read(self):
        zone = timezone(timedelta(hours=2))
        span = new().span(zone, NOON + MINUTE)
        assert span.start == datetime(2026, 3, 31, 14) - OVERLAP
        assert (span.end, span.ends_at) == (None, NOON + MINUTE)

    def test_without_a_zone_it_covers_each_possible_one(self):
        assert new().span(None, NOON).start == datetime(2026, 3, 31, 0) - OVERLAP

    def test_after_a_pause_of_days_it_is_read_a_day_at_a_time(self):
        zone, now, cursor, ends = UTC, NOON + timedelta(days=3), new(), []
        while True:
            span = cursor.span(zone, now)
            cursor = cursor.learned([], span, now).advanced(span, beside_callouts=False)
            ends.append(span.end)
            if span.end is None:
                break
        assert ends[-1] is None
        assert len(ends) == 4
        assert cursor.read_to == now

    def test_a_part_of_a_pause_does_not_show_when_a_record_appeared(self):
        zone = UTC
        now, cursor = NOON + timedelta(days=3), new()
        for _ in range(2):
            span = cursor.span(zone, now)
            cursor = cursor.learned([record(span.ends_at - timedelta(hours=2), timedelta())], span, now)
            cursor = cursor.advanced(span, beside_callouts=False)
        assert (cursor.high, cursor.read_at) == (None, None)

    def test_beside_callouts_it_ends_where_callouts_may_still_arrive(self):
        span = new().span(UTC, NOON + MINUTE)
        cursor = new(NOON - timedelta(days=1)).advanced(span, beside_callouts=True)
        assert cursor.read_to == NOON + MINUTE - RETRY_SPAN
        assert new().advanced(span, beside_callouts=True).read_to == NOON  # it never moves back


@pytest.mark.parametrize("at", [None, "", "soon", "0001-01-01T00:00:00", "9999-12-31T23:59:59", 17])
def test_records_without_a_time_show_no_zone(at: object):
    cursor = read(read(new(), NOON), NOON + MINUTE, {"createTime": at})
    assert (cursor.low, cursor.high, cursor.zone(None, NOON)) == (None, None, None)


def test_the_history_is_read_until_two_reads_are_missing():
    assert is_read(NOON, 60, NOON + 3 * MINUTE)
    assert not is_read(NOON, 60, NOON + 5 * MINUTE)
    assert not is_read(None, 60, NOON)


def test_a_record_of_a_callout_that_is_tried_again_may_be_written_after_the_last_attempt():
    cursor = read(new(), NOON, record(NOON, timedelta()))
    assert cursor.late_by(60) == LATE + MINUTE
    cursor = read(cursor, NOON + MINUTE, record(NOON, timedelta()), record(NOON, timedelta(), number=2))
    assert cursor.late_by(60) == LATE + MINUTE + RETRY_SPAN


def test_a_tenant_that_is_on_utc_can_say_so() -> None:
    assert new().zone("UTC", NOON) == ZoneInfo("UTC")
    assert new().zone(None, NOON) is None
    assert replace(new(), low=-25300.0, high=-25100.0).zone("UTC", NOON) == timezone(timedelta(hours=-7))
