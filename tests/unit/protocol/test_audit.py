"""What a summary says in numbers, however much of it is there, and the time in which a session's records lie."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from airflow_mediation_provider.protocol.audit import counts_of, span_of_session

NOW = datetime(2026, 3, 31, 12, tzinfo=UTC)
HOUR = timedelta(hours=1)


def test_each_group_has_its_numbers() -> None:
    first = {"dimensions": {"sessionId": "R-1"}, "output": 7, "totalErrorCount": 2}
    assert counts_of({"requestId": "r", "output": [first, {"dimensions": {"sessionId": "R-2"}, "output": "5"}]}) == [
        {"dimensions": {"sessionId": "R-1"}, "output": 7, "errors": 2},
        {"dimensions": {"sessionId": "R-2"}, "output": 5, "errors": 0},
    ]


@pytest.mark.parametrize(
    "summary", [{}, {"output": None}, {"output": []}, {"output": {"a": 1}}, {"output": "none"}, {"output": [None, 5]}]
)
def test_without_groups_there_are_none(summary: dict[str, Any]) -> None:
    assert counts_of(summary) == []


def test_a_group_without_anything_counts_nothing() -> None:
    assert (
        counts_of({"output": [{}, {"dimensions": None, "output": None}]})
        == [{"dimensions": {}, "output": 0, "errors": 0}] * 2
    )


@pytest.mark.parametrize(
    ("begun", "ended", "span"),
    [
        (NOW - 5 * HOUR, NOW - 2 * HOUR, (NOW - 6 * HOUR, NOW - HOUR)),
        (NOW - 5 * HOUR, None, (NOW - 6 * HOUR, NOW + HOUR)),
        (None, NOW - 2 * HOUR, (NOW - 3 * HOUR, NOW - HOUR)),
        (NOW, NOW - 5 * HOUR, (NOW - 6 * HOUR, NOW - 4 * HOUR)),  # heard of by a late callout of its end
        (None, None, (NOW - HOUR, NOW + HOUR)),
    ],
)
def test_the_time_of_a_session_has_a_margin_for_clocks_and_is_open_while_it_goes_on(
    begun: datetime | None, ended: datetime | None, span: tuple[datetime, datetime]
) -> None:
    assert span_of_session(begun, ended, now=NOW) == span
