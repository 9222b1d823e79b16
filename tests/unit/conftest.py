"""Virtual time, the same jitter in each run, and a task on it. Imported late: most unit tests need no Airflow."""

from __future__ import annotations

import random
from typing import TYPE_CHECKING

import pytest

from tests.unit.virtual import Clock, Zuora

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.unit.statsd import StatsdServer
    from tests.unit.task_stage import Stage


@pytest.fixture(autouse=True)
def same_jitter() -> None:
    """Pauses have a random part: a test that fails must fail again."""
    random.seed(0)


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def zuora(clock: Clock) -> Zuora:
    return Zuora(clock)


@pytest.fixture
def stage(clock: Clock, zuora: Zuora, monkeypatch: pytest.MonkeyPatch) -> Stage:
    from tests.unit.task_stage import set_up

    return set_up(clock, zuora, monkeypatch)


@pytest.fixture
def statsd() -> Iterator[StatsdServer]:
    """What Airflow's metrics are sent to."""
    from tests.unit.statsd import statsd_server

    with statsd_server() as server:
        yield server
