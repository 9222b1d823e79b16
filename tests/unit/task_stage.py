"""Runs a task as Airflow does: runs it, reschedules it, runs its trigger elsewhere, resumes it, retries it.

In virtual time, without Airflow's processes. Data for another process goes through JSON.
"""

from __future__ import annotations

import asyncio
import uuid
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from functools import partial
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

from airflow.sdk.bases.xcom import BaseXCom
from airflow.sdk.exceptions import (
    AirflowFailException,
    AirflowRescheduleException,
    AirflowSensorTimeout,
    AirflowSkipException,
    TaskDeferred,
)
from airflow.triggers.base import BaseTaskEndEvent, TriggerEvent

from airflow_mediation_provider import links
from airflow_mediation_provider import triggerer as watch
from airflow_mediation_provider.protocol import urls
from airflow_mediation_provider.triggerer.hub import Hub
from airflow_mediation_provider.worker import waiting
from tests.unit.virtual import EPOCH, Clock, SyncHook, Zuora, run, through_json
from tests.unit.virtual_feed import AsyncFeed, Journal, SyncFeed

if TYPE_CHECKING:
    from collections.abc import Callable

    import pytest


class Store:
    """Airflow's task state store."""

    def __init__(self) -> None:
        self.values: dict[str, Any] = {}

    def get(self, key: str, default: Any = None) -> Any:
        return self.values.get(key, default)

    def set(self, key: str, value: Any, **_: Any) -> None:
        self.values[key] = through_json(value)


@dataclass
class Ending:
    """How a try of a task ended."""

    state: str  # success, skipped, failed, up_for_retry
    xcom: Any = None
    error: BaseException | None = None
    on_worker: bool = True
    events: list[TriggerEvent] = field(default_factory=list)
    workers: int = 0


@dataclass
class Stage:
    """One task instance, its Zuora and its clock."""

    clock: Clock
    zuora: Zuora
    store: Store | None = field(default_factory=Store)
    journal: Journal | None = None
    try_number: int = 0
    retries: int = 2
    triggerer_dies_at: float | None = None
    trigger_crashes: int = 0
    triggerer_is_down: bool = False
    run_after: datetime = EPOCH - timedelta(hours=1)
    dag: Any = None
    xcoms: dict[str, Any] = field(default_factory=dict)
    id: uuid.UUID = field(default_factory=uuid.uuid4)

    @property
    def identity(self) -> dict[str, Any]:
        return {"id": self.id, "dag_id": "dag", "task_id": "wait", "run_id": "run", "map_index": -1}

    def context(self, start_date: datetime) -> Any:
        ti = SimpleNamespace(
            **self.identity,
            try_number=self.try_number,
            max_tries=self.retries,
            start_date=start_date,
            xcom_push=lambda key, value: self.xcoms.__setitem__(key, value),
        )
        # As in every run of a trigger timetable, the data interval is empty.
        due = self.run_after
        dag_run = SimpleNamespace(data_interval_start=due, data_interval_end=due, run_after=due)
        context = {"ti": ti, "dag_run": dag_run, "dag": self.dag}
        return context if self.store is None else {**context, "task_state_store": self.store}

    def play(self, make: Callable[[], Any]) -> Ending:
        """Run one try of the task to its end; ``make`` parses the Dag again, as each worker does."""
        self.try_number += 1
        self.id = uuid.uuid4()
        if not make().start_from_trigger:
            self.xcoms = {}  # a worker that starts a try deletes the XComs of the last one
        start_date, workers, events, resume = self.clock.now(), 0, [], "execute_complete"
        task = make()
        if task.start_from_trigger:
            args = task.start_trigger_args
            timeout = start_date + args.timeout
            trigger = (args.trigger_cls, self._render(task, args.trigger_kwargs), timeout)
            following: tuple[str, dict[str, Any]] | None = None
        else:
            trigger, following = None, ("execute", {})
        while True:
            if trigger is not None:
                event = self._run_trigger(task, *trigger)
                if isinstance(event, BaseTaskEndEvent):
                    assert event.xcoms is None  # Airflow would turn them into text
                    xcom = self.xcoms.pop("return_value")
                    return Ending(str(event.task_instance_state), xcom, None, False, [*events, event], workers)
                if isinstance(event, TriggerEvent):
                    events.append(event)
                    following = (resume, {"event": through_json(event.payload)})
                else:
                    following = ("__fail__", {"error": event})
            assert following is not None
            workers += 1
            assert workers < 500
            task, method, kwargs, trigger = make(), *following, None
            try:
                if method == "execute":
                    xcom = task.execute(context=self.context(start_date))
                else:
                    xcom = task.resume_execution(method, kwargs, self.context(start_date))
                return Ending("success", xcom, None, True, events, workers)
            except TaskDeferred as deferred:
                path, arguments = deferred.trigger.serialize()
                timeout = None if deferred.timeout is None else self.clock.now() + deferred.timeout
                trigger = (path, through_json(arguments), timeout)
                resume = deferred.method_name
            except AirflowRescheduleException as again:
                self.clock.sleep((again.reschedule_date - self.clock.now()).total_seconds())
                start_date, self.xcoms = self.clock.now(), {}
                following = ("execute", {})
            except AirflowSkipException as error:
                return Ending("skipped", None, error, True, events, workers)
            except (AirflowFailException, AirflowSensorTimeout) as error:
                return Ending("failed", None, error, True, events, workers)
            except Exception as error:
                return Ending("up_for_retry", None, error, True, events, workers)

    def xcom_get_one(self, *, key: str, **task: Any) -> Any:
        assert task == {"dag_id": "dag", "task_id": "wait", "run_id": "run", "map_index": -1}
        return self.xcoms.get(key)

    def xcom_set(self, *, key: str, value: Any, **_: Any) -> None:
        self.xcoms[key] = through_json(value)

    def xcom_delete(self, *, key: str, **_: Any) -> None:
        del self.xcoms[key]

    def _render(self, task: Any, kwargs: dict[str, Any]) -> dict[str, Any]:
        """Render what Airflow renders in the triggerer: arguments that are template fields of the operator."""
        default = "{{ dag_run.data_interval_start or dag_run.run_after }}"
        run_after = str(self.context(self.clock.now())["dag_run"].run_after)
        assert set(kwargs) >= {"meter_id", "since"}
        assert "{{" not in str({k: v for k, v in kwargs.items() if k not in task.template_fields})
        return {key: run_after if value == default else value for key, value in through_json(kwargs).items()}

    def _run_trigger(self, task: Any, path: str, kwargs: dict[str, Any], timeout: datetime | None) -> Any:
        """Return the trigger's event, or the reason why Airflow resumes the task without one."""
        limit = None if timeout is None else (timeout - self.clock.now()).total_seconds()
        if self.triggerer_is_down:
            assert limit is not None
            self.clock.sleep(limit)
            return "Trigger timeout"
        if self.trigger_crashes:
            self.trigger_crashes -= 1
            return "Trigger failure"

        async def first_event() -> Any:
            from importlib import import_module

            module, _, name = path.rpartition(".")
            trigger = getattr(import_module(module), name)(**through_json(kwargs))
            trigger.timeout_after = timeout
            of_task = {"task": task, "get_template_context": lambda: self.context(self.clock.now())}
            more = of_task if task.start_from_trigger else {}
            trigger.task_instance = SimpleNamespace(**self.identity, **more)
            try:
                async with asyncio.timeout(limit):
                    async for event in trigger.run():
                        return event
            except TimeoutError:
                return "Trigger timeout"
            except ZeroDivisionError:
                return "Trigger failure"
            finally:
                await trigger.cleanup()

        async def on_triggerers() -> Any:
            if self.triggerer_dies_at is not None and self.clock.seconds < self.triggerer_dies_at:
                life, self.triggerer_dies_at = self.triggerer_dies_at - self.clock.seconds, None
                with suppress(TimeoutError):
                    return await asyncio.wait_for(first_event(), life)
                await asyncio.sleep(45)  # until another triggerer takes over
            return await first_event()

        return run(on_triggerers(), self.clock)


def set_up(clock: Clock, zuora: Zuora, monkeypatch: pytest.MonkeyPatch) -> Stage:
    """Put all parts of the product on the virtual clock and in front of the scripted Zuora."""
    from airflow.sdk.bases.operator import ExecutorSafeguard

    from airflow_mediation_provider.operators import branch
    from airflow_mediation_provider.sensors import meter_session as sensors
    from airflow_mediation_provider.tasks import memory

    monkeypatch.setattr(ExecutorSafeguard, "test_mode", True)
    # As on Airflow 3.3, with any installed version; what it stores is kept in memory.
    monkeypatch.setattr(sensors, "AIRFLOW_V_3_3_PLUS", True)
    monkeypatch.setattr(links, "framed", urls.framed)
    for module in (waiting, sensors, branch, memory):
        monkeypatch.setattr(module, "utcnow", clock.now)
    monkeypatch.setattr(waiting, "time", SimpleNamespace(sleep=clock.sleep, monotonic=lambda: clock.seconds))
    monkeypatch.setattr(waiting.SessionWaitMixin, "_make_hook", lambda self, **_: SyncHook(zuora))
    stage = Stage(clock, zuora)
    monkeypatch.setattr(waiting.SessionWaitMixin, "_feed_caller", lambda self, **_: SyncFeed(stage.journal))
    # Airflow's examples, if they are loaded, bring a store.
    monkeypatch.setattr("airflow.sdk.listener.get_listener_manager", lambda: SimpleNamespace(has_listeners=False))
    monkeypatch.setattr(watch, "Hub", partial(Hub, now=clock.now))
    monkeypatch.setattr(watch, "_open_hook", zuora.open)
    monkeypatch.setattr(watch, "open_feed", lambda _: AsyncFeed(stage.journal) if stage.journal else None)
    monkeypatch.setattr(watch, "open_hook", lambda *_, **__: zuora.open())
    for name in ("get_one", "set", "delete"):
        monkeypatch.setattr(BaseXCom, name, getattr(stage, f"xcom_{name}"))
    monkeypatch.setattr("asgiref.sync.sync_to_async", in_place)
    return stage


def in_place(function: Callable[..., Any]) -> Callable[..., Any]:
    """Call in the loop what Airflow's triggerer would call in a thread: virtual time has no threads."""

    async def call(**arguments: Any) -> Any:
        return function(**arguments)

    return call
