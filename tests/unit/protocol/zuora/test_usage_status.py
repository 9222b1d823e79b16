"""The rated API usage, as text and as a share: by the quota that Zuora reports, else by the documented limit."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from airflow_mediation_provider.protocol.zuora.api_usage import (
    ApiUsage,
    UsageLevel,
    UsageStatus,
    daily_limits,
    standing,
)
from airflow_mediation_provider.protocol.zuora.requests import DataCenter

NOW = datetime(2026, 3, 31, 12, 30, tzinfo=UTC)
IN_AN_HOUR = NOW + timedelta(hours=1)
API_SANDBOX = DataCenter.SBX_NA


def stands(center: DataCenter | None = API_SANDBOX, now: datetime = NOW, **values: Any) -> UsageStatus:
    return standing(ApiUsage(conn_id="zuora", **values), center, now)


def reported(remaining: int, limits: str | None, **values: Any) -> dict[str, Any]:
    return {"remaining": remaining, "limits": limits, "reset_at": IN_AN_HOUR, "told_at": NOW, **values}


@pytest.mark.parametrize("center", DataCenter)
def test_every_data_center_has_its_documented_limits(center: DataCenter) -> None:
    documented = [limit.calls for limit in daily_limits(center)]
    if "API Sandbox" in center.label:
        assert documented == [10_000]
    elif "Developer & Central Sandbox" in center.label:
        assert documented == [50_000, 27_000_000]
    else:
        assert documented == [27_000_000]


class TestWithoutAWordOfZuora:
    def test_an_api_sandbox_is_compared_with_its_own_limit(self) -> None:
        assert stands(last_day=312) == UsageStatus(
            share=0.0312, level=UsageLevel.GOOD, words="312 calls in 24 h of the 10,000 that an API Sandbox has a day"
        )

    def test_developer_and_central_sandbox_share_a_host_so_there_is_no_share(self) -> None:
        found = stands(DataCenter.CSBX_EU, last_day=49_000)

        assert (found.share, found.level) == (None, UsageLevel.GOOD)
        assert found.words == (
            "49,000 calls in 24 h; a Developer Sandbox has 50,000 a day, a Central Sandbox 27,000,000"
        )

    def test_without_a_data_center_the_limit_is_unknown(self) -> None:
        found = stands(None, last_day=1)

        assert (found.share, found.level) == (None, UsageLevel.GOOD)
        assert found.words.startswith("1 call in 24 h (limit unknown)")

    @pytest.mark.parametrize(
        ("calls", "level"),
        [
            (0, UsageLevel.GOOD),
            (6_999, UsageLevel.GOOD),
            (7_000, UsageLevel.TIGHT),
            (9_000, UsageLevel.SPENT),
            (20_000, UsageLevel.SPENT),
        ],
    )
    def test_the_level_follows_the_used_share(self, calls: int, level: UsageLevel) -> None:
        assert stands(last_day=calls).level is level

    def test_refused_calls_are_shown_and_make_the_level_tight(self) -> None:
        found = stands(last_day=1200, limited_last_day=3)

        assert found.level is UsageLevel.TIGHT
        assert found.words.endswith("; 3 refused by the limit")


class TestWithZuorasWord:
    def test_the_remaining_calls_are_shown_with_their_window(self) -> None:
        found = stands(last_day=10, **reported(4_321, "5000, 2500;w=60, 5000;w=3600"))

        assert found.share == pytest.approx(1 - 4_321 / 5_000)
        assert found.words == (
            "Zuora says: 4,321 of 5,000 left this hour; 10 calls in 24 h of the 10,000 that an API Sandbox has a day"
        )

    @pytest.mark.parametrize(
        ("limits", "words"),
        [
            ("9;w=1", "4 of 9 left this second"),
            ("9;W = 60", "4 of 9 left this minute"),
            ("9, 9;w=60", "4 of 9 left this minute"),
            ("9, 9;w=86400", "4 of 9 left today"),
            ("9, 9;w=60, 9;w=3600", "4 of 9 left"),
            ("9, 9;w=7", "4 of 9 left"),
            ("9", "4 of 9 left"),
            ("a lot", "4 calls left"),
            (None, "4 calls left"),
        ],
    )
    def test_a_window_is_named_only_where_it_is_certain(self, limits: str | None, words: str) -> None:
        assert stands(**reported(4, limits)).words.startswith(f"Zuora says: {words}; ")

    def test_the_limit_closest_to_being_reached_counts(self) -> None:
        assert stands(last_day=8_000, **reported(4_500, "5000, 5000;w=3600")).share == pytest.approx(0.8)
        assert stands(last_day=10, **reported(250, "5000, 5000;w=3600")).level is UsageLevel.SPENT

    def test_a_daily_limit_by_zuora_outranks_the_documented_one(self) -> None:
        found = stands(DataCenter.CSBX, last_day=40_000, **reported(10_000, "25000, 25000;w=3600, 50000;w=86400"))

        assert found.share == pytest.approx(0.8)
        assert found.words.endswith("40,000 calls in 24 h of the 50,000 that the tenant has a day")

    def test_calls_of_other_clients_count_in_the_reported_quota(self) -> None:
        found = stands(last_day=1, **reported(0, "5000, 5000;w=3600"))

        assert (found.share, found.level) == (1.0, UsageLevel.SPENT)

    def test_more_calls_left_than_the_limit_counts_as_unused(self) -> None:
        assert stands(None, **reported(9, "5")).share == 0.0
        assert stands(None, **reported(0, "0")).share == 1.0

    def test_a_reported_quota_is_ignored_after_its_reset(self) -> None:
        quota = reported(1, "5000, 5000;w=3600")

        assert stands(now=IN_AN_HOUR - timedelta(seconds=1), **quota).level is UsageLevel.SPENT
        assert stands(now=IN_AN_HOUR, **quota) == stands()

    def test_a_reported_quota_without_a_reset_is_valid_for_an_hour(self) -> None:
        quota = reported(1, "5000", reset_at=None)

        assert "Zuora says:" in stands(now=IN_AN_HOUR - timedelta(seconds=1), **quota).words
        assert "Zuora says:" not in stands(now=IN_AN_HOUR, **quota).words

    def test_an_older_quota_is_shown_with_its_age(self) -> None:
        found = stands(now=NOW + timedelta(minutes=12, seconds=4), **reported(4, "9, 9;w=3600"))

        assert found.words.startswith("Zuora says: 4 of 9 left this hour, at ")
