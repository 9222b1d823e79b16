"""Virtual time, the same jitter in each run, and a task in virtual time; imported late: most tests need no Airflow.

Also the lanes of `tests/services.py` and `tests/unit/fast_lane.py`.
"""

from __future__ import annotations

import gc
import random
from typing import TYPE_CHECKING

import pytest
from hypothesis import settings

from tests import services
from tests.unit import fast_lane
from tests.unit.virtual import Clock, Zuora

if TYPE_CHECKING:
    from collections.abc import Generator, Iterator

    from tests.unit.statsd import StatsdServer
    from tests.unit.task_stage import Stage

# No failures by a busy machine: no example has a deadline. By itself a test runs Hypothesis' own number of examples, or
# a multiple of it, as do those that kill mutants. `make test` runs a third of them, and `make unit` a tenth.
settings.register_profile("full", deadline=None)
settings.register_profile("third", settings.get_profile("full"), max_examples=settings.default.max_examples // 3)
settings.register_profile("quick", settings.get_profile("full"), max_examples=settings.default.max_examples // 10)
settings.load_profile("full")


@pytest.hookimpl(wrapper=True)
def pytest_collection() -> Generator[None, object, object]:
    """What is imported stays until the tests end: garbage collections that searched it took a fifth of the time."""
    gc.disable()
    try:
        return (yield)
    finally:
        gc.freeze()
        gc.enable()


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    services.mark(items)
    fast_lane.mark(items)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_setup(item: pytest.Item) -> Generator[None, object, object]:
    return (yield from services.guarded(item))


@pytest.hookimpl(wrapper=True)
def pytest_runtest_call(item: pytest.Item) -> Generator[None, object, object]:
    return (yield from services.guarded(item))


@pytest.fixture(autouse=True)
def same_jitter() -> None:
    """Pauses have a random part: with the same jitter, a test that fails must fail again."""
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
def statsd(services: None) -> Iterator[StatsdServer]:
    """The server to which Airflow's metrics are sent."""
    from tests.unit.statsd import statsd_server

    with statsd_server() as server:
        yield server
