"""How a budget stands, in words and as a share: by what Zuora says, else by what it documents."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from airflow_mediation_provider.protocol.budget import Budget, Level, Standing, daily_limits, standing
from airflow_mediation_provider.protocol.data_centers import DataCenter

NOW = datetime(2026, 3, 31, 12, 30, tzinfo=UTC)
IN_AN_HOUR = NOW + timedelta(hours=1)
API_SANDBOX = DataCenter.SBX_NA


def stands(center: DataCenter | None = API_SANDBOX, now: datetime = NOW, **values: Any) -> Standing:
    return standing(Budget(conn_id="zuora", **values), center, now)


def told(remaining: int, limits: str | None, **values: Any) -> dict[str, Any]:
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
    def test_an_api_sandbox_has_its_own_limit(self) -> None:
        assert stands(last_day=312) == Standing(
            share=0.0312, level=Level.GOOD, words="312 calls in 24 h of the 10,000 that an API Sandbox has a day"
        )

    def test_developer_and_central_sandbox_cannot_be_told_apart_so_there_is_no_share(self) -> None:
        found = stands(DataCenter.CSBX_EU, last_day=49_000)

        assert (found.share, found.level) == (None, Level.GOOD)
        assert found.words == (
            "49,000 calls in 24 h; a Developer Sandbox has 50,000 a day, a Central Sandbox 27,000,000"
        )

    def test_a_connection_without_a_data_center_says_so(self) -> None:
        found = stands(None, last_day=1)

        assert (found.share, found.level) == (None, Level.GOOD)
        assert found.words.startswith("1 call in 24 h (their limit is not known)")

    @pytest.mark.parametrize(
        ("calls", "level"),
        [(0, Level.GOOD), (6_999, Level.GOOD), (7_000, Level.TIGHT), (9_000, Level.SPENT), (20_000, Level.SPENT)],
    )
    def test_it_is_tight_before_it_is_spent(self, calls: int, level: Level) -> None:
        assert stands(last_day=calls).level is level

    def test_refused_calls_are_told_and_make_it_tight(self) -> None:
        found = stands(last_day=1200, limited_last_day=3)

        assert found.level is Level.TIGHT
        assert found.words.endswith("; 3 refused as too many")


class TestWithZuorasWord:
    def test_what_is_left_of_the_first_limit_is_told_by_its_window(self) -> None:
        found = stands(last_day=10, **told(4_321, "5000, 2500;w=60, 5000;w=3600"))

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
        assert stands(**told(4, limits)).words.startswith(f"Zuora says: {words}; ")

    def test_the_limit_that_is_nearest_counts(self) -> None:
        assert stands(last_day=8_000, **told(4_500, "5000, 5000;w=3600")).share == pytest.approx(0.8)
        assert stands(last_day=10, **told(250, "5000, 5000;w=3600")).level is Level.SPENT

    def test_a_limit_of_a_day_that_zuora_names_outweighs_the_documented_one(self) -> None:
        found = stands(DataCenter.CSBX, last_day=40_000, **told(10_000, "25000, 25000;w=3600, 50000;w=86400"))

        assert found.share == pytest.approx(0.8)
        assert found.words.endswith("40,000 calls in 24 h of the 50,000 that the tenant has a day")

    def test_others_may_have_used_what_was_not_counted_here(self) -> None:
        found = stands(last_day=1, **told(0, "5000, 5000;w=3600"))

        assert (found.share, found.level) == (1.0, Level.SPENT)

    def test_more_left_than_there_is_counts_as_nothing_used(self) -> None:
        assert stands(None, **told(9, "5")).share == 0.0
        assert stands(None, **told(0, "0")).share == 1.0

    def test_once_the_limit_counts_anew_what_was_said_before_says_nothing(self) -> None:
        said = told(1, "5000, 5000;w=3600")

        assert stands(now=IN_AN_HOUR - timedelta(seconds=1), **said).level is Level.SPENT
        assert stands(now=IN_AN_HOUR, **said) == stands()

    def test_without_a_time_of_the_reset_it_holds_for_an_hour(self) -> None:
        said = told(1, "5000", reset_at=None)

        assert "Zuora says" in stands(now=IN_AN_HOUR - timedelta(seconds=1), **said).words
        assert "Zuora says" not in stands(now=IN_AN_HOUR, **said).words

    def test_what_is_not_quite_new_says_how_old_it_is(self) -> None:
        found = stands(now=NOW + timedelta(minutes=12, seconds=4), **told(4, "9, 9;w=3600"))

        assert found.words.startswith("Zuora says: 4 of 9 left this hour, 12m 4s ago; ")
