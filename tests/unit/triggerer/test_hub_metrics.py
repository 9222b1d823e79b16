"""Metrics of the triggerer, through a real StatsD: polls, open and ended waits, and the lag after a callout."""

from __future__ import annotations

import socket
from typing import TYPE_CHECKING

import pytest

from airflow_mediation_provider.protocol.zuora.errors import TransientError
from tests.unit.triggerer.test_hub import stage, until, wait_for
from tests.unit.triggerer.test_hub_feed import RUN, play, sensing
from tests.unit.virtual_feed import LATENCY, Journal

if TYPE_CHECKING:
    from tests.unit.statsd import StatsdServer

MET = "mediation.waits.ended,conn_id=zuora,outcome=MET"
POLLS = "mediation.polls,conn_id=zuora"
FAILED = "mediation.polls.failed,conn_id=zuora,status="


@pytest.fixture
def journal(clock) -> Journal:
    return Journal(clock)


def lags(statsd: StatsdServer) -> list[float]:
    """Return the lags that were sent since the last call, in seconds."""
    sent = [each for each in statsd.ours() if each.name == "mediation.lag"]
    assert all((each.kind, each.tags) == ("ms", {"conn_id": "zuora"}) for each in sent)
    return [each.value / 1000 for each in sent]


def test_the_lag_is_from_the_callout_to_the_result_of_each_wait(clock, zuora, journal, statsd):
    journal.session("S-1", *RUN, (5000, "COMPLETED"))
    journal.session("S-2", *RUN, (6000, "FAILED"))

    async def main(hub, watch):
        for session_id in ("S-1", "S-1", "S-2"):
            watch(wait_for(clock, "m", session_id), 20)
        await until(clock, 5500)
        assert lags(statsd) == pytest.approx([LATENCY, LATENCY], abs=0.05)
        await until(clock, 6500)
        assert lags(statsd) == pytest.approx([LATENCY], abs=0.05)

    play(clock, zuora, journal, main)


def test_an_outage_of_the_feed_counts_as_lag(clock, zuora, journal, statsd):
    journal.session("S-1", *RUN, (5000, "COMPLETED"))
    journal.down = [(4900, 5300)]

    async def main(hub, watch):
        _, task = watch(wait_for(clock, "m", "S-1"), 20)
        await task
        [lag] = lags(statsd)
        assert 300 <= lag == pytest.approx(clock.seconds - 5000, abs=0.1)

    play(clock, zuora, journal, main)


def test_a_callout_before_the_wait_causes_no_lag(clock, zuora, journal, statsd):
    journal.session("S-1", *RUN, (100, "COMPLETED"))

    async def main(hub, watch):
        # Another wait on the same meter is open all the time.
        watch(wait_for(clock, "m", "S-9", timeout=1e6), 20)
        await until(clock, 1000)
        named, _ = watch(wait_for(clock, "m", "S-1", run_status=None), 20)
        found, _ = watch(sensing(clock), 20)
        await until(clock, 1001)
        assert named.result.session["evidence"] == found.result.session["evidence"] == "callout"
        assert lags(statsd) == []

    play(clock, zuora, journal, main)


def test_an_end_that_a_poll_shows_has_no_lag(clock, zuora, journal, statsd):
    journal.session("S-1", *RUN, (854, "COMPLETED"), lost=("COMPLETED",))
    zuora.script("m", (0, "INITIALIZING"), (30, "RUNNING"), (854, "COMPLETED"))

    async def main(hub, watch):
        watcher, task = watch(wait_for(clock, "m", "S-1"), 20)
        await task
        assert watcher.result.session["evidence"] == "poll"
        assert lags(statsd) == []

    play(clock, zuora, journal, main)


def test_each_poll_counts_once_and_failed_ones_by_their_error(clock, zuora, statsd):
    zuora.script(
        "m",
        (0, "INITIALIZING"),
        (100, TransientError("overloaded", status_code=503)),
        (200, TransientError("connection refused")),
        (300, ZeroDivisionError("a bug")),
        (400, "RUNNING"),
        (824, "COMPLETED"),
    )

    async def main(hub, watch):
        # Several waits share one poll.
        waits = [watch(wait_for(clock, "m", "S-1"), 20) for _ in range(5)]
        await waits[0][1]

    stage(clock, zuora, main, conn_id="zuora")
    counted = statsd.counted()
    assert counted[POLLS] == len(zuora.asked)
    asked = [sum(begins <= at < begins + 100 for at, _ in zuora.asked) for begins in (100, 200, 300)]
    assert min(asked) >= 1
    assert counted[f"{FAILED}503"] == asked[0]
    assert counted[f"{FAILED}no_answer"] == asked[1] + asked[2]
    assert counted[MET] == 5


def test_the_number_of_open_waits_goes_down_to_zero(clock, zuora, statsd):
    zuora.script("m", (0, "INITIALIZING"), (95, "COMPLETED"))

    async def main(hub, watch):
        watches = [watch(wait_for(clock, meter), 20) for meter in ("m", "n", "n")]
        await watches[0][1]
        await until(clock, 300)

    stage(clock, zuora, main, conn_id="zuora")
    shown = [each for each in statsd.ours() if each.name == "mediation.waits.open"]
    assert {(each.kind, *each.tags.items()) for each in shown} == {
        ("g", ("conn_id", "zuora"), ("hostname", socket.gethostname()))
    }
    values = [int(each.value) for each in shown]
    assert values == sorted(values, reverse=True)
    assert sorted(set(values)) == [0, 2, 3]
    assert len(values) == 300 // 30 + 1


def test_the_wait_of_a_stop_is_not_counted(clock, zuora, journal, statsd):
    zuora.script("m", (0, "STOPPING"), (100, "CANCELED"))

    async def main(hub, watch):
        _, task = watch(wait_for(clock, "m", None, baseline="STOPPING", polls_only=True), 20)
        await task

    play(clock, zuora, journal, main)
    assert not any(name.startswith("mediation.waits.ended") for name in statsd.counted())


@pytest.mark.parametrize("ever", [True, False])
def test_a_silent_feed_counts_once_it_is_given_up(clock, zuora, journal, statsd, ever: bool):
    journal.down = [(1000, 1005), (2000, 3000), (4000, 5000)] if ever else [(0, 100_000)]

    async def main(hub, watch):
        for meter in ("m", "n"):
            watch(wait_for(clock, meter), 20)
        await until(clock, 6000)

    play(clock, zuora, journal, main)
    assert statsd.counted()["mediation.feed.lost,conn_id=zuora"] == (2 if ever else 1)
