"""The triggers: their arguments as a contract, their events, and when they may stop a meter."""

from __future__ import annotations

import asyncio
import json
from datetime import timedelta
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import pytest
from airflow.triggers.base import TaskSuccessEvent, TriggerEvent

from airflow_mediation_provider import watch
from airflow_mediation_provider.protocol.condition import SessionCondition
from airflow_mediation_provider.protocol.errors import MisconfigurationError, NotRunningError
from airflow_mediation_provider.protocol.wait import SessionWait, WaitEnd, WaitResult
from airflow_mediation_provider.triggers.meter_session import MeterSessionStartTrigger, MeterSessionTrigger
from tests.unit.task_stage import in_place
from tests.unit.virtual import EPOCH, run, through_json

if TYPE_CHECKING:
    from tests.unit.task_stage import Stage

PATH = "airflow_mediation_provider.triggers.meter_session."

# Written out, not made by today's code: triggers with these arguments lie in databases while the package is upgraded.
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
        run_type=options.pop("run_type", "NORMAL"),
    )
    return through_json(SessionWait(condition, created_at=EPOCH, started_at=EPOCH, **options).to_dict())


def trigger(**arguments: Any) -> MeterSessionTrigger:
    return MeterSessionTrigger(**{"mediation_conn_id": "mediation_default", "wait": wait(), **arguments})


def of_a_task(stage: Stage, trigger: Any) -> Any:
    """Give the trigger its task, as the triggerer does."""
    trigger._task_instance = SimpleNamespace(**stage.identity)
    return trigger


async def events_of(trigger: MeterSessionTrigger) -> list[TriggerEvent]:
    events = [event async for event in trigger.run()]
    await trigger.cleanup()
    return events


@pytest.mark.parametrize("name", FROZEN)
def test_arguments_of_every_version_still_load_and_lead_to_the_end(stage: Stage, name: str):
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


def test_arguments_say_nothing_secret():
    assert "secret" not in json.dumps(trigger().serialize()[1])


def test_the_result_is_the_event(stage: Stage):
    stage.zuora.script("m", (0, "RUNNING"), (700, "COMPLETED"))
    (event,) = run(events_of(trigger()), stage.clock)
    assert type(event) is TriggerEvent
    assert event.payload["end"] == "MET"
    assert event.payload["session"]["status"] == "COMPLETED"
    json.dumps(event.payload)


def test_a_met_condition_ends_the_task_where_that_is_allowed(stage: Stage):
    stage.zuora.script("m", (0, "RUNNING"), (700, "COMPLETED"))
    (event,) = run(events_of(of_a_task(stage, trigger(end_from_trigger=True))), stage.clock)
    assert isinstance(event, TaskSuccessEvent)
    assert event.xcoms is None  # Airflow would store a text of JSON, and not the object that a worker stores
    assert stage.xcoms["return_value"]["status"] == "COMPLETED"


def test_without_the_xcom_the_end_goes_on_on_a_worker(stage: Stage, monkeypatch: pytest.MonkeyPatch):
    def refused(**_: Any) -> None:
        raise RuntimeError("API_SERVER_ERROR")

    monkeypatch.setattr("airflow.sdk.bases.xcom.BaseXCom.set", refused)
    stage.zuora.script("m", (0, "RUNNING"), (700, "COMPLETED"))
    (event,) = run(events_of(of_a_task(stage, trigger(end_from_trigger=True))), stage.clock)
    assert type(event) is TriggerEvent
    assert event.payload["session"]["status"] == "COMPLETED"


@pytest.mark.parametrize("status", ["FAILED", "CANCELED"])
def test_every_other_end_goes_on_on_a_worker(stage: Stage, status: str):
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


def test_connections_have_a_hub_each_and_the_same_one_is_shared(stage: Stage):
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


def test_nonsense_in_a_rendered_argument_is_a_misconfiguration(stage: Stage):
    cases = {"meter_id": {"meter_id": ""}, "session_id": {"session_id": "None"}, "since": {"session_id": None}}
    for name, arguments in cases.items():
        (event,) = run(events_of(started(**{"since": "soon" if name == "since" else None, **arguments})), stage.clock)
        assert event.payload["end"] == "MISCONFIGURED"
        assert name in event.payload["message"]


def test_it_resumes_on_a_worker_where_airflow_would_lose_something(stage: Stage, monkeypatch: pytest.MonkeyPatch):
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


@pytest.fixture
def task_state(monkeypatch: pytest.MonkeyPatch):
    """Set what Airflow answers when it is asked for the task's state."""
    from airflow.sdk.execution_time.task_runner import RuntimeTaskInstance

    answers: dict[str, Any] = {"states": {"run": {"wait": "failed"}}}

    def get_task_states(**query: Any) -> Any:
        answers["query"] = query
        if isinstance(answers["states"], Exception):
            raise answers["states"]
        return answers["states"]

    monkeypatch.setattr(RuntimeTaskInstance, "get_task_states", staticmethod(get_task_states))
    monkeypatch.setattr("asgiref.sync.sync_to_async", in_place)
    return answers


def killed(stage: Stage, made: MeterSessionTrigger, map_index: int = -1) -> list[str]:
    """Run on_kill and return the meters that were stopped."""
    made.task_instance = SimpleNamespace(dag_id="dag", task_id="wait", run_id="run", map_index=map_index)
    run(made.on_kill(), stage.clock)
    return [meter for _, meter in stage.zuora.stopped]


@pytest.mark.parametrize("state", ["failed", "success", "skipped", None])
def test_a_user_who_ends_the_task_stops_the_meter(stage: Stage, task_state, state):
    task_state["states"] = {"run": {"wait": state}}
    assert killed(stage, trigger(stop_on_kill=True)) == ["m"]
    assert task_state["query"] == {"dag_id": "dag", "task_ids": ["wait"], "run_ids": ["run"], "map_index": -1}


@pytest.mark.parametrize(
    "states",
    [
        {"run": {"wait": "deferred"}},
        {"run": {"wait": "running"}},
        {"run": {"wait": "queued"}},
        {"run": {"wait": "scheduled"}},
        {"run": {"wait": "up_for_retry"}},
        {"run": {}},
        {},
        ConnectionError("no answer"),
    ],
    ids=str,
)
def test_a_handover_a_new_start_or_no_answer_stops_nothing(stage: Stage, task_state, states):
    task_state["states"] = states
    assert killed(stage, trigger(stop_on_kill=True)) == []


def test_nothing_is_stopped_unless_asked_for(stage: Stage, task_state):
    assert killed(stage, trigger(stop_on_kill=False)) == []
    assert "query" not in task_state


def test_a_mapped_task_is_asked_for_by_its_index(stage: Stage, task_state):
    task_state["states"] = {"run": {"wait_3": "failed", "wait": "deferred"}}
    assert killed(stage, trigger(stop_on_kill=True), map_index=3) == ["m"]
    assert task_state["query"]["map_index"] == 3


def test_another_live_session_of_the_meter_forbids_it(stage: Stage, task_state):
    async def main():
        neighbour = asyncio.create_task(events_of(trigger(wait=wait(session_id="S-2"))))
        await asyncio.sleep(1)
        made = trigger(stop_on_kill=True)
        made.task_instance = SimpleNamespace(dag_id="dag", task_id="wait", run_id="run", map_index=-1)
        await made.on_kill()
        assert stage.zuora.stopped == []
        neighbour.cancel()
        await asyncio.gather(neighbour, return_exceptions=True)
        await made.on_kill()
        assert [meter for _, meter in stage.zuora.stopped] == ["m"]

    run(main(), stage.clock)


def test_other_waits_for_the_same_session_do_not(stage: Stage, task_state):
    async def main():
        neighbour = asyncio.create_task(events_of(trigger()))
        await asyncio.sleep(1)
        made = trigger(stop_on_kill=True)
        made.task_instance = SimpleNamespace(dag_id="dag", task_id="wait", run_id="run", map_index=-1)
        await made.on_kill()
        assert [meter for _, meter in stage.zuora.stopped] == ["m"]
        neighbour.cancel()
        await asyncio.gather(neighbour, return_exceptions=True)

    run(main(), stage.clock)


def test_a_meter_that_has_ended_is_left_alone(stage: Stage, task_state):
    stage.zuora.script("m", (0, "COMPLETED"))
    assert killed(stage, trigger(stop_on_kill=True)) == []
    assert "query" not in task_state


def test_a_newer_run_that_the_wait_has_seen_forbids_it(stage: Stage, task_state):
    # RUNNING and then INITIALIZING again: somebody started the meter anew.
    stage.zuora.script("m", (0, "RUNNING"), (200, "INITIALIZING"), (260, "RUNNING"))

    async def main():
        made = trigger(stop_on_kill=True, poll_interval=20)
        made.task_instance = SimpleNamespace(dag_id="dag", task_id="wait", run_id="run", map_index=-1)
        following = asyncio.create_task(events_of(made))
        await asyncio.sleep(400)
        following.cancel()
        await asyncio.gather(following, return_exceptions=True)
        await made.on_kill()
        assert stage.zuora.stopped == []

    run(main(), stage.clock)


def test_a_debug_run_cannot_be_stopped(stage: Stage, task_state):
    assert killed(stage, trigger(stop_on_kill=True, wait=wait(run_type="DEBUG"))) == []
    assert stage.zuora.asked == []


@pytest.mark.parametrize("error", [MisconfigurationError("403"), NotRunningError("70002122")])
def test_an_error_of_the_stop_is_told_and_raises_nothing(stage: Stage, task_state, error, monkeypatch):
    async def refused(self, *args, **kwargs):
        raise error

    monkeypatch.setattr("tests.unit.virtual.AsyncHook.stop_meter", refused)
    assert killed(stage, trigger(stop_on_kill=True)) == []


def test_it_gives_up_before_airflow_does(stage: Stage, task_state):
    stage.zuora.hanging["m"] = 120
    assert killed(stage, trigger(stop_on_kill=True)) == []
    assert stage.clock.seconds <= 29
