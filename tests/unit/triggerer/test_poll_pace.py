from __future__ import annotations

import pytest

from airflow_mediation_provider.protocol.waits.poll_pace import Pace


def pace(interval: float = 60.0, position: int = 0, jitter: float = 0.0) -> Pace:
    return Pace(interval, position, rng=lambda: jitter)


def test_a_change_resets_the_pace_to_the_interval():
    p = pace(60)
    assert p.after_reading("RUNNING", 0) == 60
    assert p.after_reading("RUNNING", 10_000) == 120
    assert p.after_reading("COMPLETED", 10_120) == 60


def test_polls_of_a_long_run_slow_down_to_a_limit():
    p = pace(60)
    p.after_reading("RUNNING", 0)
    assert p.after_reading("RUNNING", 600) == 60
    assert p.after_reading("RUNNING", 900) == pytest.approx(90)
    assert p.after_reading("RUNNING", 100_000) == 120


def test_errors_lengthen_the_pause_until_a_good_answer():
    p = pace(10)
    assert [p.after_fault() for _ in range(5)] == [10, 20, 40, 40, 40]
    p.after_reading("RUNNING", 0)
    assert p.after_fault() == 10


def test_long_intervals_are_not_lengthened():
    p = pace(600)
    assert [p.after_fault() for _ in range(3)] == [600, 600, 600]


def test_retry_after_sets_the_pause():
    assert pace(10).after_fault(45) == 45
    assert pace(10).after_fault(1) == 10


@pytest.mark.parametrize("jitter", [0.0, 0.5, 1.0])
def test_jitter_only_lengthens(jitter):
    p = pace(60, jitter=jitter)
    p.after_reading("RUNNING", 0)
    assert 60 <= p.after_reading("RUNNING", 10) <= 66


def test_ten_meters_are_spread_over_the_interval():
    firsts = sorted(pace(60, position).first(eager=False) for position in range(10))
    gaps = [b - a for a, b in zip(firsts, [*firsts[1:], 60 + firsts[0]], strict=True)]
    assert firsts[0] >= 0
    assert firsts[-1] <= 60
    assert min(gaps) > 2
    assert max(gaps) < 12


def test_the_first_poll_comes_within_a_second():
    assert all(pace(60, position).first(eager=True) < 1 for position in range(10))
