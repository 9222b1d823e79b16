from __future__ import annotations

import pytest

from benchmarks.harness import End, Job, Measurement, Outcome
from benchmarks.waiting_cost import cost_of


def measurement(**outcome) -> Measurement:
    job = Job("mediation", waits=4, objects=2, interval=2.0, settle=0, steady=20, finish=8, spread=4.0)
    return Measurement(
        job=job,
        outcome=Outcome(**({"cpu_seconds": 0.1, "seconds": 20.0} | outcome)),
        steady_from={"at": 50.0, "requests": 10, "opened": 4, "cpu_seconds": 1.0},
        steady_to={"at": 70.0, "requests": 110, "opened": 4, "cpu_seconds": 1.2},
        flipped_at=70.0,
        final={"open_max": 4},
        busiest_interval=10,
    )


ENDS = [End(index, at, succeeded=True, text="") for index, at in enumerate((70.5, 73.0, 71.0, 72.5))]


def test_rates_are_of_the_steady_state_and_memory_is_on_top_of_the_empty_trigger():
    cost = cost_of(
        measurement(ends=ENDS, rss_bytes=4 * 9 * 1024, lag_max=0.02),
        measurement(traced_bytes=4 * 8 * 1024),
        empty_rss=4.0,
        empty_traced=3.0,
    )

    assert (cost.requests_per_second, cost.requests_per_interval) == (5.0, 10.0)
    assert cost.cpu_ms_per_second == pytest.approx(5.0)
    assert (cost.rss_kib_per_wait, cost.traced_kib_per_wait) == (5.0, 5.0)
    assert cost.detection_seconds == [0.5, 0.5, 1.0, 1.0]  # objects end at 70 and 72, two waits each
    assert cost.broken_claims() == []


def test_each_broken_claim_is_named():
    cost = cost_of(
        measurement(ends=ENDS[:3], rss_bytes=4 * 9 * 1024, lag_max=0.06),
        measurement(traced_bytes=4 * 8 * 1024),
        empty_rss=0.0,
        empty_traced=0.0,
    )
    cost.busiest_interval, cost.connections_max = 11, 5

    assert cost.broken_claims() == [
        "11.0 requests in the busiest poll interval, at most 10 claimed",
        "5.0 open connections, at most 4 claimed",
        "9.0 KiB a wait (RSS), at most 8.0 claimed",
        "60.0 ms of event-loop lag, at most 50.0 claimed",
        "1.0 waits whose end was not detected, at most 0 claimed",
    ]
