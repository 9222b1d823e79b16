"""The numbers of the chart: bars as high as their number of sessions, the most severe status at the bottom."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from airflow_mediation_provider.api_server.pages.sessions import HEIGHT, bars
from airflow_mediation_provider.protocol.status import SessionStatus

BEGIN = datetime(2026, 6, 1, tzinfo=UTC)
END = BEGIN + timedelta(hours=3)


def test_the_highest_bar_has_the_height_of_the_chart_and_the_others_are_proportional() -> None:
    chart = bars([{"COMPLETED": 30, "FAILED": 10}, {}, {"COMPLETED": 20}], since=BEGIN, until=END)
    assert (chart.highest, chart.count, chart.height) == (40, 60, HEIGHT)
    assert [bar.count for bar in chart.bars] == [40, 0, 20]
    drawn = [[(part.status, part.count, part.y, part.height) for part in bar.parts] for bar in chart.bars]
    assert drawn == [
        [("FAILED", 10, HEIGHT * 3 / 4, HEIGHT / 4), ("COMPLETED", 30, 0, HEIGHT * 3 / 4)],
        [],
        [("COMPLETED", 20, HEIGHT / 2, HEIGHT / 2)],
    ]


def test_the_bars_divide_the_requested_time() -> None:
    chart = bars([{}, {}, {}], since=BEGIN, until=END)
    hour = timedelta(hours=1)
    edges = [BEGIN + n * hour for n in range(4)]
    assert [(bar.since, bar.until) for bar in chart.bars] == list(pairwise(edges))
    assert (chart.count, chart.highest, chart.totals) == (0, 0, ())


def test_one_session_among_thousands_is_visible() -> None:
    [bar] = bars([{"COMPLETED": 100_000, "FAILED": 1}], since=BEGIN, until=END).bars
    failed, completed = bar.parts
    assert (failed.status, failed.height, failed.y) == ("FAILED", 1, HEIGHT - 1)
    assert completed.y == 0


def test_the_sums_are_of_all_bars_the_most_severe_first_and_unknown_statuses_too() -> None:
    counts = [{"COMPLETED": 1, "MYSTERY": 2}, {"FAILED": 1, "RUNNING": 3}, {"FAILED": 4, "CANCELED": 1, "PAUSED": 1}]
    totals = bars(counts, since=BEGIN, until=END).totals
    assert totals == (("FAILED", 5), ("CANCELED", 1), ("PAUSED", 1), ("MYSTERY", 2), ("RUNNING", 3), ("COMPLETED", 1))


@pytest.mark.parametrize("status", [*SessionStatus, "", "UNHEARD_OF"])
def test_every_status_can_be_drawn(status: str) -> None:
    assert bars([{status: 1}], since=BEGIN, until=END).count == 1


_by_status = st.dictionaries(st.sampled_from([*SessionStatus, "X"]), st.integers(1, 10**6), max_size=5)
_counts = st.lists(_by_status, min_size=1, max_size=6)


@given(_counts)
def test_no_part_leaves_the_chart_and_each_stands_on_the_one_before(counts: list[dict[str, int]]) -> None:
    chart = bars(counts, since=BEGIN, until=END)
    assert sum(count for _, count in chart.totals) == chart.count == sum(sum(each.values()) for each in counts)
    for bar, by_status in zip(chart.bars, counts, strict=True):
        assert {part.status: part.count for part in bar.parts} == by_status
        assert all(0 <= part.y <= HEIGHT and 1 <= part.height <= HEIGHT for part in bar.parts)
        for lower, upper in pairwise(bar.parts):
            assert upper.y <= lower.y
            assert upper.y == 0 or upper.y + upper.height == pytest.approx(lower.y, abs=0.02)
