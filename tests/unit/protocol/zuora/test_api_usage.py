"""API usage: what counts as refused, which headers are read, and sums in any order."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from itertools import permutations
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from airflow_mediation_provider.protocol.wire import from_plain, to_plain
from airflow_mediation_provider.protocol.zuora.api_usage import (
    KEPT_HOURS,
    LIMITS_LENGTH,
    HourlyUsage,
    RemainingQuota,
    counted,
    is_limited,
    left_of,
    merged,
)
from airflow_mediation_provider.protocol.zuora.flow import Failure
from airflow_mediation_provider.protocol.zuora.refusals import Reply

AT = datetime(2026, 3, 31, 12, 34, 56, tzinfo=UTC)
NOON = AT.replace(minute=0, second=0)
DOCUMENTED = "2250000, 50000;w=60, 2250000;w=3600, 27000000;w=86400"
HEADERS = {"ratelimit-limit": DOCUMENTED, "ratelimit-remaining": "2249999", "ratelimit-reset": "12"}
MEDIATIONS_OWN = b'{"success": false, "error": {"code": "70002005", "message": "RATE_LIMITED"}}'


def left(minute: int, remaining: int = 5) -> RemainingQuota:
    return RemainingQuota(limits="9", remaining=remaining, reset_at=None, told_at=NOON + timedelta(minutes=minute))


class TestOneCall:
    def test_a_reply_counts_in_its_hour_with_its_remaining_quota(self) -> None:
        quota = RemainingQuota(limits=DOCUMENTED, remaining=2_249_999, reset_at=AT + timedelta(seconds=12), told_at=AT)

        assert counted(Reply(200, HEADERS), AT) == HourlyUsage(hour=NOON, calls=1, left=quota)

    @pytest.mark.parametrize("outcome", [None, Failure("connection reset")])
    def test_a_request_without_an_answer_counts_as_well(self, outcome: object) -> None:
        assert counted(outcome, AT) == HourlyUsage(hour=NOON, calls=1)

    @pytest.mark.parametrize(
        ("reply", "limited"),
        [
            (Reply(429), True),
            (Reply(400, {}, MEDIATIONS_OWN), True),
            (Reply(200, {}, MEDIATIONS_OWN), True),
            (Reply(503), False),
            (Reply(200, {}, b'{"success": true, "data": [{"errorCode": "70002005"}]}'), False),
            (Reply(400, {}, b'{"error": {"code": "70002103", "message": "70002005 is no meter"}}'), False),
            (Reply(502, {}, b"<html>70002005</html>"), False),
        ],
    )
    def test_refusals_as_too_many_by_zuora_and_by_mediation_are_counted(self, reply: Reply, limited: bool) -> None:
        assert is_limited(reply) is limited
        assert counted(reply, AT).limited == int(limited)


class TestHeaders:
    def test_without_headers_the_quota_is_unknown(self) -> None:
        assert left_of({}, AT) is None
        assert left_of({"ratelimit-reset": "12"}, AT) is None

    @pytest.mark.parametrize(
        ("remaining", "read"),
        [("17", 17), ("17, 3;w=60", 17), (" 0 ", 0), ("-1", None), ("many", None), ("9" * 30, None), ("", None)],
    )
    def test_the_remaining_calls_are_the_first_number(self, remaining: str, read: int | None) -> None:
        found = left_of({**HEADERS, "ratelimit-remaining": remaining}, AT)

        assert found is not None
        assert found.remaining == read

    @pytest.mark.parametrize(
        ("reset", "seconds"), [("0", 0), ("86400", 86400), ("7, 40;w=60", 7), ("1767225600", None), ("soon", None)]
    )
    def test_a_reset_is_a_number_of_seconds(self, reset: str, seconds: int | None) -> None:
        found = left_of({**HEADERS, "ratelimit-reset": reset}, AT)

        assert found is not None
        assert found.reset_at == (None if seconds is None else AT + timedelta(seconds=seconds))

    def test_limits_are_cut_to_the_size_of_the_journals_column(self) -> None:
        long = left_of({"ratelimit-limit": "5;w=60, " * 100}, AT)
        odd = left_of({"ratelimit-limit": "5\x00", "ratelimit-remaining": "4"}, AT)

        assert long is not None
        assert len(long.limits or "") == LIMITS_LENGTH
        assert odd == RemainingQuota(limits=None, remaining=4, reset_at=None, told_at=AT)


class TestSums:
    def test_sums_have_the_latest_quota_of_the_hour_in_any_order(self) -> None:
        usages = [
            HourlyUsage(hour=AT, calls=3, limited=1, left=left(10)),
            HourlyUsage(hour=NOON, calls=2, left=left(50)),
            HourlyUsage(hour=NOON, calls=1, limited=1),
            HourlyUsage(hour=NOON - timedelta(hours=1), calls=7),
        ]
        for order in permutations(usages):
            assert merged(order) == (
                HourlyUsage(hour=NOON - timedelta(hours=1), calls=7),
                HourlyUsage(hour=NOON, calls=6, limited=2, left=left(50)),
            )

    def test_only_the_last_hours_are_kept(self) -> None:
        hours = [HourlyUsage(hour=NOON - timedelta(hours=number), calls=1) for number in range(100)]

        assert [each.hour for each in merged(hours)] == [each.hour for each in reversed(hours[:KEPT_HOURS])]

    @pytest.mark.parametrize(("calls", "limited"), [(-1, 0), (1, 2), (1, -1), (10**9, 0)])
    def test_an_invalid_count_is_refused(self, calls: int, limited: int) -> None:
        with pytest.raises(ValueError, match="not valid counts"):
            HourlyUsage(hour=NOON, calls=calls, limited=limited)


class TestAsJson:
    @pytest.mark.parametrize(
        "quota", [None, left(10), RemainingQuota(limits=None, remaining=None, reset_at=AT, told_at=AT)]
    )
    def test_usage_survives_the_round_trip(self, quota: RemainingQuota | None) -> None:
        calls = HourlyUsage(hour=NOON, calls=5, limited=1, left=quota)

        assert from_plain(HourlyUsage, {**to_plain(calls), "more": 1}, "it") == calls

    @given(
        name=st.sampled_from(["hour", "calls", "limited", "left"]),
        value=st.none()
        | st.booleans()
        | st.integers()
        | st.floats()
        | st.text()
        | st.dictionaries(st.text(), st.text()),
    )
    def test_an_invalid_field_raises_only_expected_errors(self, name: str, value: Any) -> None:
        data = {**to_plain(HourlyUsage(hour=NOON, calls=5, left=left(1))), name: value}
        try:
            calls = from_plain(HourlyUsage, data, "it")
        except ValueError:
            return
        assert calls.calls >= calls.limited >= 0

    def test_a_text_that_no_database_accepts_is_left_out(self) -> None:
        data = to_plain(HourlyUsage(hour=NOON, calls=5, left=left(1)))
        for text in ("5\x00", "\ud800", "п"):
            found = from_plain(HourlyUsage, {**data, "left": {**data["left"], "limits": text}}, "it")
            assert found.left is not None
            assert found.left.limits is None
