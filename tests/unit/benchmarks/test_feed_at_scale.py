from __future__ import annotations

from benchmarks.feed_at_scale import Timing, slowed


def timing(*seconds: float, claimed: float | None = None) -> Timing:
    return Timing("sqlite", 1, "full query", "1,000 rows", list(seconds), claimed)


def test_a_row_shows_milliseconds():
    times = [number / 1000 for number in range(1, 201)]
    assert timing(*reversed(times)).row() == ["sqlite", "1", "full query", "1,000 rows", "101.0", "199.0", "200.0"]


def test_a_claim_is_about_99_of_100():
    quick = [0.001] * 199
    assert timing(*quick, 0.5, claimed=0.02).broken_claims() == []
    assert timing(0.5, 0.5, *quick[2:], 0.5, claimed=0.02).broken_claims() == [
        "sqlite, 1 workers, full query beside 1,000 rows: 500.0 ms, at most 20 claimed"
    ]
    assert timing(0.5).broken_claims() == []


def test_waiting_requests_that_slow_others_down_break_the_claim():
    assert slowed(timing(0.010), timing(0.014)) == []
    assert slowed(timing(0.010), timing(0.020)) == ["sqlite: full query took 10.0 ms more beside 1,000 rows"]
