"""A task instance as an operator sees it, a simulated Zuora, and one clock for both, moved by sleeping."""

from __future__ import annotations

import json
import threading
import time
import uuid
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import pytest

from airflow_mediation_provider.hooks import api_usage as calls
from airflow_mediation_provider.hooks import tokens
from airflow_mediation_provider.operators import audit, meter, stop
from airflow_mediation_provider.protocol.sessions.verdict import TaskNote
from airflow_mediation_provider.protocol.wire import from_plain, to_plain
from airflow_mediation_provider.simulator import Simulator, running_simulator
from airflow_mediation_provider.tasks import state
from airflow_mediation_provider.worker import run_start, waiting
from tests.unit.virtual_feed import SyncFeed

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

BEGIN = 1_767_225_600.0  # the start of the simulator's manual clock


class Killed(BaseException):
    """The worker process was killed: no code after this line runs."""


@dataclass
class Clock:
    """The operators' clock and the simulator's, moved by sleeping."""

    sim: Simulator
    passed: float = 0.0

    def now(self) -> datetime:
        return datetime.fromtimestamp(BEGIN + self.passed, UTC)

    def sleep(self, seconds: float) -> None:
        self.passed += seconds
        self.sim.advance(seconds)


class Store:
    """Airflow's task state store: survives tries, deferrals and Clear. ``kill_at`` ends the process at that write."""

    def __init__(self) -> None:
        self.kept: dict[str, str] = {}
        self.kill_before: str | None = None
        self.kill_after: str | None = None

    def get(self, key: str, default: Any = None) -> Any:
        return json.loads(self.kept[key]) if key in self.kept else default

    def set(self, key: str, value: Any, *, retention: Any = None) -> None:
        phase = value.get("phase") if key == "mediation_run" and value.get("called_at") else None
        if phase is not None and phase == self.kill_before:
            raise Killed(f"before {phase} was kept")
        self.kept[key] = json.dumps(value)
        if phase is not None and phase == self.kill_after:
            raise Killed(f"after {phase} was kept")

    def calm(self) -> None:
        self.kill_before = self.kill_after = None


@dataclass
class TaskInstance:
    """The operator's task instance, with Airflow's actions on it."""

    clock: Clock
    retries: int = 3
    store: Store | None = field(default_factory=Store)
    dag_id: str = "dag"
    run_id: str = "manual__1"
    task_id: str = "task"
    map_index: int = -1
    try_number: int = 1
    state: str | None = "running"
    xcoms: dict[str, Any] = field(default_factory=dict)
    is_mapped: bool = False
    hidden: bool = False  # whether Airflow gives no answer about its state

    def __post_init__(self) -> None:
        self.max_tries = self.retries
        self._begin()

    def _begin(self) -> None:
        self.id = uuid.uuid4()
        self.start_date = self.clock.now()
        self.xcoms.clear()

    def retry(self) -> TaskInstance:
        self.try_number += 1
        self._begin()
        return self

    def clear(self) -> TaskInstance:
        """Clear a finished task, as ``clear_task_instances`` does, and let the scheduler start it again."""
        self.max_tries = self.try_number + self.retries
        return self.retry()

    def xcom_push(self, key: str, value: Any) -> None:
        self.xcoms[key] = json.loads(json.dumps(value))

    def get_task_states(self, **query: Any) -> dict[str, Any]:
        if self.hidden:
            raise RuntimeError("the supervisor has ended")
        assert query == {
            "dag_id": self.dag_id,
            "task_ids": [self.task_id],
            "run_ids": [self.run_id],
            "map_index": self.map_index,
        }
        name = self.task_id if self.map_index < 0 else f"{self.task_id}_{self.map_index}"
        return {self.run_id: {name: self.state}}

    @property
    def context(self) -> dict[str, Any]:
        context = {"ti": self, "dag_run": SimpleNamespace(data_interval_start=None, run_after=self.clock.now())}
        return context if self.store is None else {**context, "task_state_store": self.store}


@pytest.fixture
def sim(services: None, monkeypatch: pytest.MonkeyPatch) -> Iterator[Simulator]:
    # The port may be that of an earlier simulator, which had other tokens.
    tokens.forget_all()
    with running_simulator(clock="manual") as simulator:
        connection = {
            "conn_type": "mediation",
            "host": simulator.url,
            "login": "simulator-client",
            "password": "simulator-secret",
            "extra": {"ui_link_template": "https://zuora.example/{meter_id}/{session_id}"},
        }
        monkeypatch.setenv("AIRFLOW_CONN_MEDIATION_DEFAULT", json.dumps(connection))
        yield simulator


@pytest.fixture
def clock(sim: Simulator, monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock(sim)

    class Datetime(datetime):
        @classmethod
        def now(cls, tz: Any = None) -> datetime:
            return clock.now()

    for module in (state, audit, meter, run_start, stop):
        monkeypatch.setattr(module, "datetime", Datetime)
    # No API server: one that happens to run on this machine must not answer.
    monkeypatch.setattr(waiting.SessionWaitMixin, "_feed_caller", lambda self, **_: SyncFeed())
    monkeypatch.setattr(audit._AuditOperator, "_feed_caller", lambda self: SyncFeed())
    real_sleep, main = time.sleep, threading.current_thread()
    monkeypatch.setattr(
        time, "sleep", lambda s: clock.sleep(s) if threading.current_thread() is main else real_sleep(s)
    )
    return clock


@pytest.fixture
def notes(clock: Clock, monkeypatch: pytest.MonkeyPatch) -> list[TaskNote]:
    """The notes that tasks report; an API server accepts them."""
    made: list[TaskNote] = []

    def observe(*_: Any, tasks: Sequence[TaskNote] = (), **__: Any) -> bool:
        made.extend(from_plain(TaskNote, to_plain(each), "it") for each in tasks)
        return True

    monkeypatch.setattr(SyncFeed, "observe", observe)
    return made


@pytest.fixture
def ti(clock: Clock) -> TaskInstance:
    return TaskInstance(clock)


@pytest.fixture
def reports(clock: Clock, monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The number of calls to Zuora in each report; an API server accepts them."""
    made: list[int] = []

    def report_calls(_: SyncFeed) -> None:
        with calls.reported("mediation_default") as found:
            made.append(sum(each.calls for each in found))

    monkeypatch.setattr(SyncFeed, "report_calls", report_calls)
    calls.forget_all()
    return made


def asked(sim: Simulator) -> int:
    """Return how many calls Zuora got, other than for a token."""
    return sum(1 for entry in sim.log(kind="request") if not entry["path"].startswith("/oauth"))


def starts(sim: Simulator, **fields: Any) -> int:
    return len(sim.log(kind="start", **fields))


__all__ = ["Clock", "Killed", "Store", "TaskInstance", "asked", "starts", "timedelta"]
