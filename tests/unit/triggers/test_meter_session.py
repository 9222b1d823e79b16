"""The triggers: their arguments as a contract, their events, and when they may stop a meter."""

from __future__ import annotations

import asyncio
import json
from datetime import timedelta
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import pytest
from airflow.triggers.base import TaskSuccessEvent, TriggerEvent

from airflow_mediation_provider import triggerer as watch
from airflow_mediation_provider.protocol.waits.condition import SessionCondition
from airflow_mediation_provider.protocol.waits.wait import SessionWait, WaitEnd, WaitResult
from airflow_mediation_provider.protocol.zuora.errors import MisconfigurationError, NotRunningError
from airflow_mediation_provider.triggers.meter_session import MeterSessionStartTrigger, MeterSessionTrigger
from tests.unit.virtual import EPOCH, run, through_json
from tests.unit.virtual_feed import Journal

if TYPE_CHECKING:
    from tests.unit.task_stage import Stage

PATH = "airflow_mediation_provider.triggers.meter_session."

# Literals, not made by the present code: triggers with these arguments are in databases while the package is upgraded.
# Add new ones below, and never change an old one.
FROZEN_WAIT_1: dict[str, Any] = {
    "version": 1,
    "condition": {
        "meter_id": "m",
        "version": "0.0.1",
        "session_id": "S-1",
        "run_type": "NORMAL",
        "statuses": ["COMPLETED"],
        "previous_statuses": [],
        "fail_on": ["CANCELED", "FAILED"],
        "since": None,
        "until": "2026-03-31T11:00:00+00:00",
    },
    "created_at": "2026-03-31T09:00:00+00:00",
    "started_at": "2026-03-31T09:00:00+00:00",
    "require_certain": False,
    "max_unreachable": 3600.0,
    "status": "INITIALIZING",
    "status_since": "2026-03-31T09:00:00+00:00",
}
FROZEN_WAIT_2: dict[str, Any] = {
    "version": 2,
    "condition": FROZEN_WAIT_1["condition"],
    "created_at": "2026-03-31T09:00:00+00:00",
    "started_at": "2026-03-31T09:00:00+00:00",
    "require_certain": False,
    "polls_only": False,
    "callouts": "off",
    "polled_at": "2026-03-31T09:00:00+00:00",
    "attribution": {
        "since": "2026-03-31T09:00:00+00:00",
        "begun": True,
        "baseline": None,
        "exclusive": False,
        "settle": 30.0,
        "begun_at": "2026-03-31T09:00:00+00:00",
        "live_seen": True,
        "shown_since": True,
        "furthest": 0,
        "glimpsed": "",
        "hidden": False,
        "doubt": "",
        "candidate": None,
        "candidate_since": None,
        "last_read_at": "2026-03-31T09:00:00+00:00",
        "started_at": "2026-03-31T09:00:00+00:00",
        "session_id": "S-1",
        "told_at": "2026-03-31T09:00:00+00:00",
        "over": False,
        "live_at": None,
        "idle_at": None,
    },
    "status": "INITIALIZING",
    "status_since": "2026-03-31T09:00:00+00:00",
    "read": None,
    "read_since": None,
    "note": "",
    "sessions": [],
    "told": ["2026-03-31T09:00:00+00:00", "INITIALIZING", None, False, False],
    "outage": {"max_unreachable": 3600.0, "answered": True, "since": None, "refusals": 0},
    "held_back": None,
    "result": None,
}
FROZEN: dict[str, tuple[str, dict[str, Any]]] = {
    "1": (
        "MeterSessionTrigger",
        {
            "mediation_conn_id": "mediation_default",
            "wait": FROZEN_WAIT_1,
            "poll_interval": 60.0,
            "end_from_trigger": False,
            "stop_on_kill": False,
            "arguments_version": 1,
        },
    ),
    "1, the fewest": ("MeterSessionTrigger", {"mediation_conn_id": "mediation_default", "wait": FROZEN_WAIT_1}),
    "1, started": (
        "MeterSessionStartTrigger",
        {
            "mediation_conn_id": "mediation_default",
            "meter_id": "m",
            "version": "0.0.1",
            "session_id": "S-1",
            "run_type": "NORMAL",
            "statuses": None,
            "fail_on": None,
            "since": None,
            "wait_options": {"exclusive": False, "require_certain": False, "max_unreachable": 3600.0, "settle": 30.0},
            "timeout": 7200.0,
            "backstop": 7260.0,
            "poll_interval": 60.0,
            "end_from_trigger": True,
            "arguments_version": 1,
        },
    ),
    "2": (
        "MeterSessionTrigger",
        {
            "mediation_conn_id": "mediation_default",
            "wait": FROZEN_WAIT_2,
            "poll_interval": 60.0,
            "end_from_trigger": False,
            "stop_on_kill": False,
            "arguments_version": 2,
        },
    ),
    "2, started": (
        "MeterSessionStartTrigger",
        {
            "mediation_conn_id": "mediation_default",
            "meter_id": "m",
            "version": "0.0.1",
            "session_id": "S-1",
            "run_type": "NORMAL",
            "statuses": None,
            "previous_statuses": None,
            "fail_on": None,
            "since": None,
            "wait_options": {"exclusive": False, "require_certain": False, "max_unreachable": 3600.0, "settle": 30.0},
            "timeout": 7200.0,
            "backstop": 7260.0,
            "poll_interval": 60.0,
            "end_from_trigger": True,
            "arguments_version": 2,
        },
    ),
}


def wait(**options: Any) -> dict[str, Any]:
    condition = SessionCondition(
        meter_id="m",
        session_id=options.pop("session_id", "S-1"),
        until=EPOCH + timedelta(hours=2),
        run_types=options.pop("run_types", "NORMAL"),
    )
    return through_json(SessionWait(condition, created_at=EPOCH, started_at=EPOCH, **options).to_dict())


def trigger(**arguments: Any) -> MeterSessionTrigger:
    return MeterSessionTrigger(**{"mediation_conn_id": "mediation_default", "wait": wait(), **arguments})


def of_a_task(stage: Stage, trigger: Any) -> Any:
    """Give the trigger its task, as the triggerer does."""
    # A property of Airflow 3.3, which would also render the arguments; before, a plain attribute.
    attribute = "_task_instance" if hasattr(type(trigger), "task_instance") else "task_instance"
    setattr(trigger, attribute, SimpleNamespace(**stage.identity))
    return trigger


async def events_of(trigger: MeterSessionTrigger) -> list[TriggerEvent]:
    events = [event async for event in trigger.run()]
    await trigger.cleanup()
    return events


@pytest.mark.parametrize("name", FROZEN)
def test_arguments_of_every_version_load_and_wait_to_the_end(stage: Stage, name: str):
    cls, arguments = FROZEN[name]
    stage.zuora.script("m", (0, "RUNNING"), (700, "COMPLETED"))
    old = {"MeterSessionTrigger": MeterSessionTrigger, "MeterSessionStartTrigger": MeterSessionStartTrigger}[cls](
        **through_json(arguments)
    )
    if isinstance(old, MeterSessionStartTrigger):
        old.timeout_after = EPOCH + timedelta(seconds=old.backstop)
    (event,) = run(events_of(old), stage.clock)
    result = WaitResult.from_dict(event.payload)
    assert result.end is WaitEnd.MET
    assert result.session is not None
    assert result.session["session_id"] == "S-1"


@pytest.mark.parametrize("name", ["2", "2, started"])
def test_arguments_are_plain_json_and_make_the_same_trigger(name: str):
    cls, arguments = FROZEN[name]
    made = {"MeterSessionTrigger": MeterSessionTrigger, "MeterSessionStartTrigger": MeterSessionStartTrigger}[cls]
    path, again = made(**arguments).serialize()
    assert path == PATH + cls
    assert json.loads(json.dumps(again)) == arguments


def test_arguments_contain_no_secret():
    assert "secret" not in json.dumps(trigger().serialize()[1])


def test_the_event_is_the_result(stage: Stage):
    stage.zuora.script("m", (0, "RUNNING"), (700, "COMPLETED"))
    (event,) = run(events_of(trigger()), stage.clock)
    assert type(event) is TriggerEvent
    assert event.payload["end"] == "MET"
    assert event.payload["session"]["status"] == "COMPLETED"
    json.dumps(event.payload)


def test_a_met_condition_ends_the_task_with_end_from_trigger(stage: Stage):
    stage.zuora.script("m", (0, "RUNNING"), (700, "COMPLETED"))
    (event,) = run(events_of(of_a_task(stage, trigger(end_from_trigger=True))), stage.clock)
    assert isinstance(event, TaskSuccessEvent)
    assert event.xcoms is None  # Airflow would store JSON text instead of the object that a worker stores
    assert stage.xcoms["return_value"]["status"] == "COMPLETED"


def test_if_the_xcom_cannot_be_pushed_a_worker_ends_the_task(stage: Stage, monkeypatch: pytest.MonkeyPatch):
    def refused(**_: Any) -> None:
        raise RuntimeError("API_SERVER_ERROR")

    monkeypatch.setattr("airflow.sdk.bases.xcom.BaseXCom.set", refused)
    stage.zuora.script("m", (0, "RUNNING"), (700, "COMPLETED"))
    (event,) = run(events_of(of_a_task(stage, trigger(end_from_trigger=True))), stage.clock)
    assert type(event) is TriggerEvent
    assert event.payload["session"]["status"] == "COMPLETED"


@pytest.mark.parametrize("status", ["FAILED", "CANCELED"])
def test_after_every_other_end_a_worker_ends_the_task(stage: Stage, status: str):
    stage.zuora.script("m", (0, "RUNNING"), (700, status))
    (event,) = run(events_of(trigger(end_from_trigger=True)), stage.clock)
    assert type(event) is TriggerEvent
    assert event.payload["end"] == "FAILED"


def test_changes_are_logged_once_and_polls_never(stage: Stage, monkeypatch: pytest.MonkeyPatch):
    stage.zuora.script("m", (0, "INITIALIZING"), (100, "RUNNING"), (2000, "COMPLETED"))
    lines = []
    started = trigger(wait=wait(run_status="INITIALIZING"), poll_interval=10)
    monkeypatch.setattr(type(started), "log", SimpleNamespace(info=lambda line, *args: lines.append(line % args)))
    run(events_of(started), stage.clock)
    changes = [line for line in lines if "->" in line]
    assert [line.split(" after ")[0] for line in changes] == ["INITIALIZING -> RUNNING", "RUNNING -> COMPLETED"]
    heartbeats = [line for line in lines if line.startswith("still RUNNING, ")]
    assert 5 <= len(heartbeats) <= 7
    assert len(lines) == len(changes) + len(heartbeats)
    assert len(stage.zuora.asked) > 100


def test_a_cancelled_trigger_leaves_nothing_behind(stage: Stage):
    async def main():
        task = asyncio.create_task(events_of(trigger()))
        await asyncio.sleep(200)
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        await watch.settled()
        assert asyncio.all_tasks() == {asyncio.current_task()}
        assert stage.zuora.opened == stage.zuora.closed == 1

    run(main(), stage.clock)


def test_each_connection_has_one_shared_hub(stage: Stage):
    async def main():
        tasks = [
            asyncio.create_task(events_of(trigger(mediation_conn_id=conn_id)))
            for conn_id in ("tenant_a", "tenant_a", "tenant_b")
        ]
        await asyncio.sleep(130)
        assert stage.zuora.opened == 2
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        await watch.settled()
        assert stage.zuora.closed == 2
        stage.zuora.script("m", (0, "RUNNING"), (170, "COMPLETED"))
        assert (await events_of(trigger(mediation_conn_id="tenant_a")))[0].payload["end"] == "MET"
        assert stage.zuora.opened == stage.zuora.closed == 3

    run(main(), stage.clock)


# ---- started without a worker --------------------------------------------------------------------------------------


def started(**arguments: Any) -> MeterSessionStartTrigger:
    made = MeterSessionStartTrigger(**{**FROZEN["2, started"][1], **arguments})
    made.timeout_after = EPOCH + timedelta(seconds=made.backstop)
    return made


def test_an_invalid_rendered_argument_is_a_misconfiguration(stage: Stage):
    cases = {"meter_id": {"meter_id": ""}, "session_id": {"session_id": "None"}, "since": {"session_id": None}}
    for name, arguments in cases.items():
        (event,) = run(events_of(started(**{"since": "soon" if name == "since" else None, **arguments})), stage.clock)
        assert event.payload["end"] == "MISCONFIGURED"
        assert name in event.payload["message"]


def test_a_worker_ends_the_task_if_airflow_would_lose_something(stage: Stage, monkeypatch: pytest.MonkeyPatch):
    stage.zuora.script("m", (0, "RUNNING"), (700, "COMPLETED"))
    plain = {
        "do_xcom_push": True,
        "multiple_outputs": False,
        "outlets": [],
        "has_on_success_callback": False,
        "has_on_skipped_callback": False,
        "map_index_template": None,
        "iter_mapped_dependants": lambda: iter(()),
    }
    costs = [
        {"do_xcom_push": False},
        {"multiple_outputs": True},
        {"outlets": ["asset"]},
        {"has_on_success_callback": True},
        {"has_on_skipped_callback": True},
        {"iter_mapped_dependants": lambda: iter(["mapped"])},
    ]
    for cost in [{}, *costs]:
        stage.clock.seconds = 0
        made = of_a_task(stage, started())
        monkeypatch.setattr(MeterSessionStartTrigger, "task", SimpleNamespace(**{**plain, **cost}), raising=False)
        (event,) = run(events_of(made), stage.clock)
        assert isinstance(event, TaskSuccessEvent) == (not cost), cost


# ---- on_kill ---------------------------------------------------------------------------------------------------------
# test_stops.py tests when it stops the meter.


@pytest.fixture
def task_state(stage: Stage, monkeypatch: pytest.MonkeyPatch):
    """Set Airflow's answer about the task's state; by callouts the session is live."""
    from airflow.sdk.execution_time.task_runner import RuntimeTaskInstance

    answers: dict[str, Any] = {"states": {"run": {"wait": "failed"}}}

    def get_task_states(**query: Any) -> Any:
        answers["query"] = query
        return answers["states"]

    monkeypatch.setattr(RuntimeTaskInstance, "get_task_states", staticmethod(get_task_states))
    stage.journal = Journal(stage.clock)
    stage.journal.session("S-1", (0, "RUNNING"))
    return answers


def killed(stage: Stage, made: MeterSessionTrigger, map_index: int = -1) -> list[str]:
    """Let the trigger wait for a while, cancel it as Airflow does, and return the meters that were stopped."""
    made.task_instance = SimpleNamespace(**{**stage.identity, "map_index": map_index}, try_number=1)

    async def main():
        following = asyncio.create_task(events_of(made))
        await asyncio.sleep(100)
        following.cancel()
        await asyncio.gather(following, return_exceptions=True)
        await made.on_kill()

    run(main(), stage.clock)
    return [meter for _, meter in stage.zuora.stopped]


def test_a_task_that_was_ended_stops_the_meter(stage: Stage, task_state):
    assert killed(stage, trigger(stop_on_kill=True)) == ["m"]
    assert task_state["query"] == {"dag_id": "dag", "task_ids": ["wait"], "run_ids": ["run"], "map_index": -1}


def test_no_meter_is_stopped_without_stop_on_kill(stage: Stage, task_state):
    assert killed(stage, trigger(stop_on_kill=False)) == []
    assert "query" not in task_state


def test_a_trigger_that_never_started_to_wait_stops_no_meter(stage: Stage, task_state):
    made = trigger(stop_on_kill=True)
    made.task_instance = SimpleNamespace(**stage.identity, try_number=1)
    run(made.on_kill(), stage.clock)
    assert stage.zuora.stopped == []


def test_the_state_of_a_mapped_task_is_read_by_its_index(stage: Stage, task_state):
    task_state["states"] = {"run": {"wait_3": "failed", "wait": "deferred"}}
    assert killed(stage, trigger(stop_on_kill=True), map_index=3) == ["m"]
    assert task_state["query"]["map_index"] == 3


def test_the_meter_of_an_older_wait_is_stopped_if_callouts_report_its_session(stage: Stage, task_state):
    old = {**FROZEN["1"][1], "stop_on_kill": True}
    assert killed(stage, MeterSessionTrigger(**through_json(old))) == ["m"]


@pytest.mark.parametrize("error", [MisconfigurationError("403"), NotRunningError("70002122")])
def test_an_error_of_the_stop_is_logged_and_not_raised(stage: Stage, task_state, error, monkeypatch):
    async def refused(self, *args, **kwargs):
        raise error

    monkeypatch.setattr("tests.unit.virtual.AsyncHook.stop_meter", refused)
    assert killed(stage, trigger(stop_on_kill=True)) == []


def test_a_stop_gives_up_before_airflows_time_limit(stage: Stage, task_state):
    made, stage.zuora.hanging["m"] = trigger(stop_on_kill=True), 120
    assert killed(stage, made) == []
    assert stage.clock.seconds <= 100 + 29


def test_a_stop_that_airflow_cancels_again_each_second_is_made(stage: Stage, task_state):
    made, stage.zuora.hanging["m"] = trigger(stop_on_kill=True), 5
    made.task_instance = SimpleNamespace(**stage.identity, try_number=1)

    async def main():
        following = asyncio.create_task(events_of(made))
        await asyncio.sleep(100)
        following.cancel()
        await asyncio.gather(following, return_exceptions=True)
        killing = asyncio.create_task(asyncio.wait_for(made.on_kill(), 30))
        while not killing.done():
            await asyncio.sleep(1)
            killing.cancel("user-action")
        # The call of Python 3.11 does not wait for what it cancels.
        await asyncio.wait(asyncio.all_tasks() - {asyncio.current_task()}, timeout=30)

    run(main(), stage.clock)
    assert [meter for _, meter in stage.zuora.stopped] == ["m"]


def test_the_event_of_a_timeout_contains_the_facts_of_the_triggerer(stage: Stage):
    stage.zuora.script("m", (0, "RUNNING"))
    (event,) = run(events_of(of_a_task(stage, trigger())), stage.clock)
    assert (event.payload["end"], event.payload["stalled"], len(event.payload["owner"])) == ("TIMED_OUT", False, 32)
    assert SessionWait.from_dict(event.payload["wait"]).result == WaitResult.from_dict(event.payload)


async def test_what_is_loaded_is_left_out_of_garbage_collections_once(monkeypatch):
    from airflow_mediation_provider import triggerer

    frozen = []
    monkeypatch.setattr(triggerer.gc, "freeze", lambda: frozen.append("once"))
    triggerer._spare_what_is_loaded.cache_clear()
    for _ in range(2):
        hook = await triggerer._open_hook("mediation_default")
        await hook.close()
    assert frozen == ["once"]
