"""The same outcomes in every mode of the sensor; and mapped runs, each with its own wait and branch."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import TYPE_CHECKING

import pytest

from airflow_mediation_provider.version_compat import AIRFLOW_V_3_3_PLUS
from testkit.processes import wait_until
from tests.integration.scenario import Play

if TYPE_CHECKING:
    from collections.abc import Iterator
    from concurrent.futures import Future
    from pathlib import Path

    from testkit.stage import Stage
    from tests.integration.scenario import Act

# Until the scenario ends it.
ENDLESS = [["INITIALIZING", 0.5], ["RUNNING", None]]
MODES = ("poke", "deferrable", *(("reschedule", "started_there") if AIRFLOW_V_3_3_PLUS else ()))
# The session's status at its end (none: it goes on), the task's state, and a text in its log.
ENDS: dict[str, tuple[str | None, str, str]] = {
    "completed": ("COMPLETED", "success", "RUNNING -> COMPLETED after"),
    "failed": ("FAILED", "failed", "MeterSessionFailed: Session {session} of meter {meter} is FAILED since"),
    "failed_softly": ("FAILED", "skipped", "Session {session} of meter {meter} is FAILED since"),
    "timed_out": (None, "failed", "MeterSessionTimeout: The deadline passed"),
    "timed_out_softly": (None, "skipped", "The deadline passed"),
}


def play_to(end: str, act: Act) -> Iterator[None]:
    status, state, text = ENDS[end]
    act.meter(ENDLESS)
    session = act.session(ENDLESS)
    yield
    if status is not None:
        if act.task_id.startswith("deferrable"):
            act.wait_deferred()
        act.wait_polled(1)
        act.finish(session, status)
    ti = act.end()
    assert (ti["state"], ti["try_number"]) == (state, 1)
    assert text.format(session=session, meter=act.meter_id) in act.task_log()
    result = act.xcom()
    if state == "success":
        assert (result["session_id"], result["status"]) == (session, status)
        assert (result["evidence"], result["certain"]) == ("poll", True)
    else:
        assert result is None
    assert session in act.xcom("mediation_session_link")
    if act.task_id == "started_there_completed":
        assert ti["pid"] is None, "it was on a worker"
    if status is None:
        act.finish(session)


SCENARIOS = {f"{mode}_{end}": partial(play_to, end) for mode in MODES for end in ENDS}


@pytest.fixture(scope="module")
def both(stage: Stage) -> Iterator[tuple[Play, Future[None]]]:
    """Run the sensors of all modes, and the mapped runs, at the same time."""
    with ThreadPoolExecutor(1) as pool, Play(stage, "modes", SCENARIOS).playing(others=["mapped"]) as play:
        yield play, pool.submit(play_mapped, stage)


@pytest.mark.parametrize("scenario", SCENARIOS)
def test_the_outcome_is_the_same_in_every_mode(both: tuple[Play, Future[None]], scenario: str) -> None:
    both[0].outcome(scenario)


def test_mapped_runs_have_waits_of_their_own(both: tuple[Play, Future[None]]) -> None:
    both[1].result(timeout=300)


def known(scheduler: Path, left: str) -> bool:
    return any(left in line for line in scheduler.read_text().splitlines() if "Received executor event" in line)


def play_mapped(stage: Stage) -> None:
    """Run five meters that end differently, and assert that each task follows its own."""
    ends = {"50001": "COMPLETED", "50002": "FAILED", "50003": "CANCELED", "50004": "COMPLETED", "50005": "FAILED"}
    paths = {"COMPLETED": "on_completed", "FAILED": "on_failed", "CANCELED": "otherwise"}
    airflow, simulator = stage.airflow, stage.simulator
    for meter in ends:
        simulator.meter(meter, script=ENDLESS)
    run_id = airflow.trigger("mapped")

    def states(task_id: str) -> list[str | None]:
        every = airflow.task_states("mapped", run_id)
        return [every.get(f"one_meter.{task_id}[{index}]") for index in range(len(ends))]

    wait_until(lambda: states("run_meter") == ["deferred"] * 5, timeout=120, what="all five to wait")
    for index in range(len(ends)):
        left = f"'one_meter.run_meter', run_id='{run_id}', try_number=1, map_index={index})"
        scheduler = airflow.processes.log_file("scheduler")
        wait_until(partial(known, scheduler, left), timeout=60, what="the scheduler to process that all have left")
    # The last one first, and one alone: the others must not take its end for theirs.
    sessions = {each: simulator.sessions(each)[-1]["session_id"] for each in ends}
    for number, (meter, status) in enumerate(reversed(ends.items()), start=1):
        script = {"script": [[status, None]]}
        simulator.call("POST", f"/sessions/{sessions[meter]}", json=script)
        if number == 1:
            wait_until(lambda: states("run_meter")[4] == "success", timeout=120, what="the fifth to end")
            assert states("run_meter")[:4] == ["deferred"] * 4
    run = airflow.wait_run("mapped", run_id, timeout=150)
    assert run["state"] == "success"
    for index, (meter, status) in enumerate(ends.items()):
        result = airflow.xcom("mapped", run_id, "one_meter.run_meter", map_index=index)
        assert (result["meter_id"], result["session_id"], result["status"]) == (meter, sessions[meter], status)
        assert [each["session_id"] for each in simulator.log("start", meter_id=meter)] == [sessions[meter]]
    for path in paths.values():
        taken = ["success" if paths[status] == path else "skipped" for status in ends.values()]
        assert states(path) == taken, path
