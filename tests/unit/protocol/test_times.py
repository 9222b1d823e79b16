"""Durations as text and instants in UTC."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest

from airflow_mediation_provider.protocol.times import exactly, from_json, humanize, in_words, to_json, to_utc


@pytest.mark.parametrize(
    ("seconds", "words"),
    [
        (0, "0s"),
        (-5, "0s"),
        (0.9, "0s"),
        (45, "45s"),
        (59.99, "59s"),
        (60, "1m"),
        (724, "12m 4s"),
        (2100, "35m"),
        (3600, "1h"),
        (3659, "1h"),
        (3780, "1h 3m"),
        (86_399, "23h 59m"),
        (86_400, "1d"),
        (190_800, "2d 5h"),
    ],
)
def test_durations_have_their_two_largest_units(seconds: float, words: str) -> None:
    assert humanize(timedelta(seconds=seconds)) == words


@pytest.mark.parametrize(
    ("seconds", "words"),
    [(0, "0s"), (-5, "0s"), (0.9, "0s"), (45, "45s"), (60, "1m"), (3792, "1h 3m 12s"), (172_805, "2d 5s")],
)
def test_exact_durations_have_all_their_units(seconds: float, words: str) -> None:
    assert exactly(timedelta(seconds=seconds)) == words


def test_instants_are_plain_utc() -> None:
    instant = datetime(2026, 3, 31, 9, 17, 21, 192_927, tzinfo=UTC)
    assert to_utc("x", instant) is instant
    assert from_json(to_json(instant)) == instant
    assert (to_json(None), from_json(None)) == (None, None)
    assert in_words(instant) == "2026-03-31 09:17:21 UTC"
    for bad in (datetime(2026, 1, 1), "2026-01-01", None):
        with pytest.raises(ValueError, match="x must be a datetime with a time zone"):
            to_utc("x", bad)  # type: ignore[arg-type]
