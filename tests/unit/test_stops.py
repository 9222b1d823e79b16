"""When a meter is stopped: the same on a worker and in the triggerer, with callouts and polls, for each end of a task.

The outcome table contains the ends of the task.
"""

from __future__ import annotations

import asyncio
import uuid
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import datetime
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import pytest
from airflow.sdk import DAG
from airflow.sdk.exceptions import TaskDeferred

from airflow_mediation_provider import triggerer as watch
from airflow_mediation_provider.exceptions import MeterSessionTimeout
from airflow_mediation_provider.operators import meter
from airflow_mediation_provider.operators.meter import RunMeterOperator
from airflow_mediation_provider.protocol.transition import Source
from airflow_mediation_provider.triggers.meter_session import MeterSessionTrigger
from airflow_mediation_provider.worker import run_start
from airflow_mediation_provider.worker import run_stop as kill
from tests.unit.fast_lane import modes
from tests.unit.task_stage import Store, in_place
from tests.unit.virtual import run, through_json
from tests.unit.virtual_feed import Journal

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from tests.unit.task_stage import Stage

    Event = tuple[float, Callable[[], None]]

PROCESSES = ("worker", "triggerer")
EVIDENCE = ("callouts", "polls")
ENDS_AT = 605.0
NO_ANSWER = "no answer"


class Killed(BaseException):
    """The process was killed."""


@dataclass
class Scene:
    """A task that runs a meter, its Airflow, and what happens to both."""

    stage: Stage
    journal: Journal
    process: str
    state: str | None = "running"
    lines: list[str] = field(default_factory=list)
    max_tries: int = 2
    store: Store = field(default_factory=Store)
    id: uuid.UUID = field(default_factory=uuid.uuid4)

    @property
    def stops(self) -> int:
        return len(self.stage.zuora.stopped)

    def make(self, **arguments: Any) -> RunMeterOperator:
        with DAG("dag", schedule=None):
            return RunMeterOperator(
                **{
                    "task_id": "wait",
                    "meter_id": "m",
                    "poke_interval": 20,
                    "timeout": 7200,
                    "deferrable": self.process == "triggerer",
                    **arguments,
                }
            )

    def get_task_states(self, **query: Any) -> dict[str, Any]:
        assert query == {"dag_id": "dag", "task_ids": ["wait"], "run_ids": ["run"], "map_index": -1}
        if self.state == NO_ANSWER:
            raise RuntimeError("the supervisor has ended")
        return {"run": {"wait": self.state}}

    def context(self) -> Any:
        context = self.stage.context(self.stage.clock.now())
        context["ti"].max_tries = self.max_tries
        context["ti"].get_task_states = self.get_task_states
        return {**context, "task_state_store": self.store}

    def killed(self, state: str | None, *events: Event, **arguments: Any) -> int:
        """Run the task, end it from outside, and return how often the meter was stopped."""
        task = self.make(**{"stop_meter_on_kill": True, **arguments})
        if self.process == "worker":
            self._on_worker(task, state, events)
        else:
            self._in_triggerer(task, state, events)
        return self.stops

    def timed_out(self, *events: Event, **arguments: Any) -> int:
        """Run the task until its own deadline, and return how often the meter was stopped."""
        task = self.make(stop_meter_on_timeout=True, timeout=ENDS_AT, **arguments)
        # If the last poll shows the session's end, the task succeeds.
        with suppress(MeterSessionTimeout):
            if self.process == "worker":
                self._on_worker(task, None, events)
            else:
                event = self._in_triggerer(task, None, events)
                self.make(stop_meter_on_timeout=True, timeout=ENDS_AT, **arguments).resume_execution(
                    "execute_complete", {"event": event}, self.context()
                )
        return self.stops

    def cleared(self, *events: Event, **arguments: Any) -> int:
        """Run the task, clear it, let the next try start, and return how often the meter was stopped."""
        self.killed(None, *events, **arguments)
        assert self.stops == 0
        self.max_tries += 1
        self.id = uuid.uuid4()
        with pytest.raises((Killed, TaskDeferred)):
            self._on_worker(self.make(**{"stop_meter_on_kill": True, **arguments}), NO_ANSWER, (), lasts=0)
        return self.stops

    def _on_worker(
        self, task: RunMeterOperator, state: str | None, events: Sequence[Event], *, lasts: float | None = None
    ) -> None:
        clock, due = self.stage.clock, sorted(events, key=lambda event: event[0])

        def sleep(seconds: float) -> None:
            wake = clock.seconds + seconds
            while due and due[0][0] <= wake:
                at, happens = due.pop(0)
                clock.seconds = max(clock.seconds, at)
                happens()
            if lasts is not None:
                raise Killed
            if task.timeout > ENDS_AT and wake >= ENDS_AT:
                clock.seconds = max(clock.seconds, ENDS_AT)
                self.state = state
                task.on_kill()
                raise Killed
            clock.seconds = max(clock.seconds, wake)

        self.stage.sleep = sleep  # type: ignore[attr-defined]
        try:
            task.execute(self.context())
        except Killed:
            if lasts is not None:
                raise

    def _in_triggerer(self, task: RunMeterOperator, state: str | None, events: Sequence[Event]) -> Any:
        with pytest.raises(TaskDeferred) as deferred:
            task.execute(self.context())
        _, arguments = deferred.value.trigger.serialize()
        trigger = MeterSessionTrigger(**through_json(arguments))
        trigger.task_instance = SimpleNamespace(**self.stage.identity, try_number=self.stage.try_number)

        async def first_event() -> Any:
            try:
                async for event in trigger.run():
                    return event
            finally:
                await trigger.cleanup()

        async def main() -> Any:
            waiting = asyncio.create_task(first_event())
            clock = self.stage.clock
            for at, happens in sorted(events, key=lambda event: event[0]):
                await asyncio.sleep(at - clock.seconds)
                happens()
            if task.timeout <= ENDS_AT:
                return through_json((await waiting).payload)
            await asyncio.sleep(max(ENDS_AT - clock.seconds, 0))
            self.state = state
            waiting.cancel()
            await asyncio.gather(waiting, return_exceptions=True)
            await trigger.on_kill()
            await watch.settled()
            return None

        return run(main(), self.stage.clock)


@pytest.fixture(params=modes(PROCESSES))
def process(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(params=EVIDENCE)
def evidence(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def scene(stage: Stage, process: str, evidence: str, monkeypatch: pytest.MonkeyPatch) -> Scene:
    """A meter that was idle, runs only our session after the call, and answers all polls and callouts."""
    journal = stage.journal = Journal(stage.clock, callouts=evidence == "callouts")
    made = Scene(stage, journal, process)
    stage.zuora.script("m", (0, "COMPLETED"), (0.5, "INITIALIZING"), (10, "RUNNING"))
    if evidence == "callouts":
        journal.session("S-1", (0.5, "INITIALIZING"), (10, "RUNNING"))

    class Datetime(datetime):
        @classmethod
        def now(cls, tz: Any = None) -> datetime:
            return stage.clock.now()

    for module in (meter, run_start):
        monkeypatch.setattr(module, "datetime", Datetime)
    monkeypatch.setattr(
        "airflow_mediation_provider.worker.waiting.time",
        SimpleNamespace(
            sleep=lambda seconds: made.stage.sleep(seconds),  # type: ignore[attr-defined]
            monotonic=lambda: stage.clock.seconds,
        ),
    )
    monkeypatch.setattr(kill, "time", SimpleNamespace(sleep=stage.clock.sleep))
    for user in ("feed.flow", "triggerer"):
        monkeypatch.setattr(f"airflow_mediation_provider.{user}.cross_check_seconds", lambda: 20.0)
    from airflow.sdk.execution_time.task_runner import RuntimeTaskInstance

    monkeypatch.setattr(RuntimeTaskInstance, "get_task_states", staticmethod(made.get_task_states))
    monkeypatch.setattr("asgiref.sync.sync_to_async", in_place)
    monkeypatch.setattr(MeterSessionTrigger, "_asked_before", False)
    return made


@pytest.fixture
def alone(evidence: str) -> dict[str, Any]:
    """The user's promise, needed if polls are the only source."""
    return {"exclusive": True} if evidence == "polls" else {}


# ---- the causes ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("state", "stops"),
    [
        ("failed", 1),
        ("skipped", 1),
        ("removed", 1),
        ("success", 0),  # a wait that was moved and met its condition also ends like this
        ("restarting", 0),  # cleared: the next try stops what this one left
        (None, 0),  # cleared, or reset by a scheduler that took another one for failed
        ("running", 0),  # the pod is evicted, or execution_timeout has passed
        ("deferred", 0),  # the trigger was moved to another triggerer
        ("up_for_retry", 0),
        ("scheduled", 0),
        (NO_ANSWER, 0),
    ],
)
def test_a_kill_stops_the_meter_if_airflow_shows_that_the_task_was_ended(
    scene: Scene, alone: dict[str, Any], state: str | None, stops: int
) -> None:
    assert scene.killed(state, **alone) == stops


def test_the_deadline_of_the_wait_stops_the_meter(scene: Scene, alone: dict[str, Any]) -> None:
    assert scene.timed_out(**alone) == 1


def test_after_a_clear_the_next_try_stops_the_meter_if_callouts_report_the_session(
    scene: Scene, alone: dict[str, Any], evidence: str
) -> None:
    assert scene.cleared(**alone) == (evidence == "callouts")


def test_no_meter_is_stopped_without_the_arguments(scene: Scene, alone: dict[str, Any]) -> None:
    assert scene.killed("failed", stop_meter_on_timeout=True, **alone | {"stop_meter_on_kill": False}) == 0


# ---- what forbids it -------------------------------------------------------------------------------------------------


class Reasons:
    """Possible events of a scene by the end of its task; each is a method of this class."""

    @staticmethod
    def stalled(scene: Scene) -> list[Event]:
        def suspend() -> None:
            scene.stage.clock.seconds += 200

        return [(300, suspend)]

    @staticmethod
    def suspended_with_the_monotonic_clock(scene: Scene) -> list[Event]:
        def suspend() -> None:
            scene.stage.clock.ahead = 200

        return [(300, suspend)]

    @staticmethod
    def another_process_began_the_wait(scene: Scene) -> list[Event]:
        def begin() -> None:
            (wait_id,) = scene.journal.owners
            scene.journal.owners[wait_id] = "another"

        return [(300, begin)]

    @staticmethod
    def its_start_was_never_stored(scene: Scene) -> list[Event]:
        scene.journal.kept = False
        return []

    @staticmethod
    def no_answer_of_the_api_server(scene: Scene) -> list[Event]:
        scene.journal.down = [(ENDS_AT - 5, 1e9)]
        return []

    @staticmethod
    def no_api_server_at_all(scene: Scene) -> list[Event]:
        scene.journal.found = False
        return []

    @staticmethod
    def no_answer_of_zuora(scene: Scene) -> list[Event]:
        from airflow_mediation_provider.protocol.zuora.errors import TransientError

        scene.stage.zuora.scripts["m"] += [(ENDS_AT - 2, TransientError("connection refused"))]
        return []

    @staticmethod
    def another_session_lives(scene: Scene) -> list[Event]:
        scene.journal.say(400, "S-9", "RUNNING", source=Source.CALLOUT if scene.journal.callouts else Source.RUN)
        return []

    @staticmethod
    def the_meter_was_idle_meanwhile(scene: Scene) -> list[Event]:
        scene.stage.zuora.scripts["m"] += [(300, "PAUSED"), (345, "RUNNING")]
        return []

    @staticmethod
    def a_newer_session_was_read(scene: Scene) -> list[Event]:
        scene.stage.zuora.scripts["m"] += [(300, "INITIALIZING"), (345, "RUNNING")]
        return []

    @staticmethod
    def the_meter_has_ended(scene: Scene) -> list[Event]:
        scene.stage.zuora.scripts["m"] += [(ENDS_AT - 2, "COMPLETED")]
        return []

    @staticmethod
    def a_test_hides_the_session(scene: Scene) -> list[Event]:
        scene.stage.zuora.scripts["m"] += [(ENDS_AT - 2, "TESTING")]
        return []

    @staticmethod
    def the_meter_was_busy_before(scene: Scene) -> list[Event]:
        scene.stage.zuora.scripts["m"][0] = (0, "RUNNING")
        return []


REASONS = [name for name in vars(Reasons) if not name.startswith("_")]


@pytest.mark.parametrize("reason", REASONS)
def test_each_reason_forbids_a_stop_on_kill(scene: Scene, alone: dict[str, Any], reason: str) -> None:
    assert scene.killed("failed", *getattr(Reasons, reason)(scene), **alone) == 0


@pytest.mark.parametrize("reason", REASONS)
def test_each_reason_forbids_a_stop_on_timeout(scene: Scene, alone: dict[str, Any], reason: str) -> None:
    assert scene.timed_out(*getattr(Reasons, reason)(scene), **alone) == 0


@pytest.mark.parametrize("cause", ["killed", "timed_out", "cleared"])
def test_a_debug_run_is_never_stopped(scene: Scene, alone: dict[str, Any], cause: str) -> None:
    scene.stage.zuora.script("m", (0, "TESTING_PASSED"), (0.5, "TESTING"))
    arguments = ("failed",) if cause == "killed" else ()
    assert getattr(scene, cause)(*arguments, run_type="DEBUG", **alone) == 0


@pytest.mark.parametrize("evidence", ["polls"], indirect=True)
@pytest.mark.parametrize("cause", ["killed", "timed_out", "cleared"])
def test_without_exclusive_polls_stop_no_meter(scene: Scene, cause: str) -> None:
    arguments = ("failed",) if cause == "killed" else ()
    assert getattr(scene, cause)(*arguments) == 0


@pytest.mark.parametrize("evidence", ["callouts"], indirect=True)
@pytest.mark.parametrize("reason", ["no_answer_of_the_api_server", "another_session_lives", "the_meter_has_ended"])
def test_each_reason_forbids_a_stop_after_a_clear(scene: Scene, reason: str) -> None:
    assert scene.cleared(*getattr(Reasons, reason)(scene)) == 0


@pytest.mark.parametrize("evidence", ["callouts"], indirect=True)
def test_a_session_that_has_ended_is_not_stopped(scene: Scene) -> None:
    scene.journal.say(ENDS_AT - 2, "S-1", "COMPLETED", "RUNNING", started=0.5)
    scene.journal.next_event = lambda: 60.0  # type: ignore[method-assign]  # the process has not received it yet
    scene.stage.zuora.script("m", (0, "COMPLETED"), (0.5, "INITIALIZING"), (10, "RUNNING"))
    assert scene.killed("failed") == 0


# ---- log messages ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"run_type": "DEBUG"}, "will not be stopped on kill or clear or timeout: Zuora stops NORMAL runs only"),
        ({"found": False}, "will not be stopped on kill or clear or timeout: no API server"),
        ({"callouts": False}, "exclusive=True"),
        ({"callouts": False, "exclusive": True}, "will not be stopped on clear: "),
        ({"busy": True}, "was RUNNING before the run call"),
        ({}, ""),
    ],
    ids=str,
)
@pytest.mark.parametrize("evidence", ["callouts"], indirect=True)
def test_a_task_logs_at_its_start_if_it_can_never_stop_the_meter(
    scene: Scene,
    arguments: dict[str, Any],
    words: str,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    capsys: Any,
) -> None:
    monkeypatch.setattr(kill, "AIRFLOW_V_3_3_PLUS", True)
    given = dict(arguments)
    scene.journal.found, scene.journal.callouts = given.pop("found", True), given.pop("callouts", True)
    if given.pop("busy", False):
        Reasons.the_meter_was_busy_before(scene)
    scene.killed(NO_ANSWER, stop_meter_on_timeout=True, **given)
    said = [line for line in (capsys.readouterr().out + caplog.text).splitlines() if "will not be stopped" in line]
    if words:
        assert words in said[0]
    assert len([line for line in said if words in line]) == bool(words)


@pytest.mark.parametrize("evidence", ["callouts"], indirect=True)
@pytest.mark.parametrize("process", ["triggerer"], indirect=True)
def test_airflow_3_2_does_not_notify_a_deferred_task_that_is_ended(
    scene: Scene, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, capsys: Any
) -> None:
    monkeypatch.setattr(kill, "AIRFLOW_V_3_3_PLUS", False)
    scene.killed(NO_ANSWER)
    assert "will not be stopped on kill: Airflow 3.2" in capsys.readouterr().out + caplog.text
