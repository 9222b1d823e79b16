from __future__ import annotations

import pytest

from benchmarks.callout_lag import Lag


def lag(*seconds: float, waits: int | None = None, polls: int = 10, during: float = 299.0) -> Lag:
    waits = len(seconds) if waits is None else waits
    return Lag("sqlite", waits, 5.0, to_event=list(seconds), polls=polls, seconds=during)


def test_waits_that_end_in_time_keep_all_claims():
    assert lag(*[0.9] * 99, 5.0).broken_claims() == []
    assert lag(0.1, polls=20, during=301).broken_claims() == []


@pytest.mark.parametrize(
    ("found", "broken"),
    [
        (lag(*[0.5] * 90, waits=100), "10 waits did not end by their callout"),
        (lag(*[0.5] * 98, 1.5, 1.5), "99 of 100 verdicts within 1.50 s, 1 s claimed"),
        (lag(waits=0), "99 of 100 verdicts within inf s"),
        (lag(0.1, polls=11), "Zuora got 11 requests, 10 at most claimed"),
    ],
    ids=["unseen", "late", "none", "polls"],
)
def test_each_broken_claim_is_named(found: Lag, broken: str):
    (sentence,) = found.broken_claims()
    assert broken in sentence


def test_the_table_has_a_row_for_each_step():
    rows = lag(0.1, 0.2, 0.3).rows()
    assert rows[0][3:] == ["its trigger's verdict", "3", "0.20", "0.30", "0.30"]
    assert rows[2][3:] == ["the start of the task after", "0", "never", "never", "never"]
