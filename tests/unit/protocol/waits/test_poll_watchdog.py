"""A pause between two polls of more than twice the planned time is detected by either clock, and stays stored."""

from __future__ import annotations

from datetime import timedelta

import pytest

from airflow_mediation_provider.protocol.waits.stop_policy import PollWatchdog
from tests.unit.virtual import EPOCH


class Clocks:
    monotonic = 1000.0
    wall = EPOCH

    def pass_(self, monotonic: float, wall: float | None = None) -> None:
        self.monotonic += monotonic
        self.wall += timedelta(seconds=monotonic if wall is None else wall)


@pytest.fixture
def clocks() -> Clocks:
    return Clocks()


@pytest.fixture
def watchdog(clocks: Clocks) -> PollWatchdog:
    return PollWatchdog(monotonic=lambda: clocks.monotonic, now=lambda: clocks.wall)


@pytest.mark.parametrize(
    ("monotonic", "wall", "stalled"),
    [(20, 20, False), (40, 40, False), (41, 41, True), (1, 41, True), (41, 1, True), (1, -3600, False)],
)
def test_either_clock_shows_a_pause(
    clocks: Clocks, watchdog: PollWatchdog, monotonic: float, wall: float, stalled: bool
):
    watchdog.polled(20)
    clocks.pass_(monotonic, wall)
    assert watchdog.stalled(0) == stalled  # already before the poll that ends it
    watchdog.polled(20)
    assert watchdog.stalled(0) == stalled


def test_a_pause_counts_from_the_first_poll_on(clocks: Clocks, watchdog: PollWatchdog):
    clocks.pass_(500)
    watchdog.polled(20)
    assert not watchdog.stalled(0)


def test_a_pause_that_was_too_long_is_kept(clocks: Clocks, watchdog: PollWatchdog):
    watchdog.polled(20)
    clocks.pass_(50)
    for _ in range(100):
        watchdog.polled(20)
        clocks.pass_(20)
    assert watchdog.stalled(1000)


def test_a_wait_that_began_after_the_pause_is_not_stalled(clocks: Clocks, watchdog: PollWatchdog):
    watchdog.polled(20)
    clocks.pass_(50)
    watchdog.polled(20)
    clocks.pass_(1)
    began = clocks.monotonic
    watchdog.polled(20)
    assert not watchdog.stalled(began)


def test_the_planned_pause_of_the_last_poll_counts(clocks: Clocks, watchdog: PollWatchdog):
    watchdog.polled(300)
    clocks.pass_(500)
    assert not watchdog.stalled(0)
    watchdog.polled(20)
    clocks.pass_(41)
    assert watchdog.stalled(0)


def test_a_pause_of_some_seconds_is_allowed_even_where_a_second_was_planned(clocks: Clocks, watchdog: PollWatchdog):
    watchdog.polled(1)
    clocks.pass_(19)
    assert not watchdog.stalled(0)
    clocks.pass_(2)
    assert watchdog.stalled(0)
