"""The numbers of a summary, complete or not, and the time window of a session's records."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from airflow_mediation_provider.protocol.zuora.audit import counts_of, errors_by_code, span_of_session

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
def test_a_summary_without_groups_is_empty(summary: dict[str, Any]) -> None:
    assert counts_of(summary) == []


def test_a_group_without_numbers_counts_zero() -> None:
    assert (
        counts_of({"output": [{}, {"dimensions": None, "output": None}]})
        == [{"dimensions": {}, "output": 0, "errors": 0}] * 2
    )


def test_errors_have_the_messages_of_their_code_the_most_frequent_code_first() -> None:
    records = [
        {"errorCode": "A", "errorMessage": "a"},
        {"errorCode": "B", "errorMessage": "b"},
        {"errorCode": "B", "errorMessage": "c"},
        {"errorCode": "B", "errorMessage": "b"},
        {},
    ]
    assert [(each.code, each.messages, len(each.records)) for each in errors_by_code(records)] == [
        ("B", ["b", "c"], 3),
        ("A", ["a"], 1),
        ("", [], 1),
    ]


@pytest.mark.parametrize(
    ("begun", "ended", "span"),
    [
        (NOW - 5 * HOUR, NOW - 2 * HOUR, (NOW - 6 * HOUR, NOW - HOUR)),
        (NOW - 5 * HOUR, None, (NOW - 6 * HOUR, NOW + HOUR)),
        (None, NOW - 2 * HOUR, (NOW - 3 * HOUR, NOW - HOUR)),
        (NOW, NOW - 5 * HOUR, (NOW - 6 * HOUR, NOW - 4 * HOUR)),  # first received with a late callout of its end
        (None, None, (NOW - HOUR, NOW + HOUR)),
    ],
)
def test_the_time_window_of_a_session_has_a_margin_and_ends_now_while_it_runs(
    begun: datetime | None, ended: datetime | None, span: tuple[datetime, datetime]
) -> None:
    assert span_of_session(begun, ended, now=NOW) == span
