"""Stops by stalled processes: suspended triggerers and schedulers, users' marks, no triggerer.

``python -m tests.drill.stops`` prints a table of the checks; the exit code is 1 if one failed. About a
quarter of an hour.
"""

from __future__ import annotations

import os
import shutil
import signal
import sys
import tempfile
import time
from contextlib import ExitStack, contextmanager
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING

import httpx
import psutil
from sqlalchemy import create_engine, text

from testkit.postgres import Postgres
from testkit.processes import wait_until
from testkit.stage import Stage
from tests.drill.checker import Result, Violation
from tests.drill.report import show
from tests.integration.scenario import Play

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from tests.integration.scenario import Act

DAG_ID = "stops"
MOVED = tuple(f"moved_{number}" for number in range(1, 5))
LEFT = ("left_1", "left_2")
ENDLESS = [["INITIALIZING", 0.5], ["RUNNING", None]]
LONGEST = 240.0
RED_SECONDS = 180.0
SETTINGS = {
    "AIRFLOW__CORE__PARALLELISM": "12",
    "AIRFLOW__TRIGGERER__TRIGGERER_HEALTH_CHECK_THRESHOLD": "12",
    "AIRFLOW__SCHEDULER__SCHEDULER_HEALTH_CHECK_THRESHOLD": "12",
    "AIRFLOW__SCHEDULER__ORPHANED_TASKS_CHECK_INTERVAL": "4",
    "AIRFLOW__WORKERS__MIN_HEARTBEAT_INTERVAL": "2",
    "AIRFLOW__MEDIATION__CROSS_CHECK_INTERVAL": "15",
}
DAG = """
from datetime import timedelta
from airflow.sdk import DAG
from airflow_mediation_provider.operators.meter import RunMeterOperator

for dag_id, names in {dags!r}.items():
    with DAG(dag_id, schedule=None, params={{"meters": {{}}}}):
        for name in names:
            RunMeterOperator(
                task_id=name,
                meter_id="{{{{ params.meters." + name + " }}}}",
                deferrable=not name.endswith("on_worker"),
                stop_meter_on_kill=True,
                poke_interval=15,
                settle=1,
                timeout=1800,
                retries=2,
                retry_delay=timedelta(seconds=1),
            )
"""
DAGS = {
    "stops_moved": MOVED,
    "stops_marked": ("marked_deferred", "marked_on_worker"),
    "stops_reset": ("reset_on_worker",),
    "stops_left": LEFT,
}


class Drill:
    """The stage, and the results on it."""

    def __init__(self, stage: Stage, database: str) -> None:
        self.stage = stage
        self.airflow = stage.airflow
        self.engine = create_engine(database)
        self.results: list[Result] = []
        self.notes: list[str] = []

    def play(self, dag_id: str) -> list[Act]:
        """Run a Dag, each task on a meter of its own, and return the tasks."""
        play = Play(self.stage, dag_id, dict.fromkeys(DAGS[dag_id], _nothing))
        for act in play.acts.values():
            act.meter(ENDLESS)
        conf = {"meters": {act.task_id: act.meter_id for act in play.acts.values()}}
        self.airflow.trigger(dag_id, conf, run_id=play.run_id)
        return list(play.acts.values())

    def found(self, claim: str, acts: Sequence[Act], wrong: Sequence[str], note: str = "") -> None:
        """Keep the result of one check."""
        self.results.append(Result(claim, len(acts), [Violation(claim, *each.split(": ", 1)) for each in wrong], note))

    def stopped(self, claim: str, acts: Sequence[Act], times: int) -> None:
        """Compare the stop calls that the simulator got with the expected number."""
        counts = {act.task_id: len(act.stops()) for act in acts}
        self.found(claim, acts, [f"{name}: {count} stop calls" for name, count in counts.items() if count != times])

    def red(self) -> bool:
        """Return whether the health line reports that no triggerer asks for waiting tasks."""
        headers = {"Authorization": f"Bearer {self.airflow.token(None)}"}
        page = httpx.get(f"{self.airflow.url}/mediation/health", headers=headers, trust_env=False, timeout=30)
        return "no triggerer has reported" in page.raise_for_status().text

    def outcomes(self, acts: Sequence[Act]) -> dict[str, str | None]:
        """Return how the waits of some tasks ended, from the journal."""
        query = text("SELECT task_id, outcome FROM mediation_wait WHERE dag_id = :dag_id AND run_id = :run_id")
        with self.engine.connect() as connection:
            where = {"dag_id": acts[0].play.dag_id, "run_id": acts[0].play.run_id}
            return {row.task_id: row.outcome for row in connection.execute(query, where)}


def marks(drill: Drill) -> None:
    """A user marks tasks as failed: one stop each."""
    deferred, on_worker = acts = drill.play("stops_marked")
    deferred.wait_deferred()
    deferred.wait_polled()
    on_worker.started()
    on_worker.wait_polled()
    process = on_worker.process()
    for act in acts:
        act.mark("failed")
    deferred.wait_logged("trigger completed")
    psutil.wait_procs([process], timeout=60)
    drill.stopped("a user's mark as failed: exactly one stop call", acts, 1)
    states = {act.task_id: drill.stage.simulator.sessions(act.meter_id)[-1]["status"] for act in acts}
    wrong = [f"{name}: the session is {status}" for name, status in states.items() if status != "CANCELED"]
    drill.found("... and the session is CANCELED", acts, wrong)


def suspended_triggerer(drill: Drill) -> None:
    """A triggerer is suspended until its waits have moved and ended, and the meters run their next sessions."""
    acts = drill.play("stops_moved")
    for act in acts:
        act.wait_deferred()
        act.wait_polled()
    with suspended(drill.airflow.pids("triggerer")):
        began = time.monotonic()
        drill.airflow.processes.start("triggerer-2", _command("triggerer"))
        for act in acts:
            act.wait_polled()
            act.finish()
        for act in acts:
            act.wait("success")
        for act in acts:
            drill.stage.simulator.start_session(act.meter_id, script=ENDLESS)
        drill.notes.append(f"a triggerer was suspended for {time.monotonic() - began:.0f} s")
    for act in acts:
        act.wait_logged("Did not stop meter")
    drill.stopped("a triggerer that resumes after its waits have ended: no stop call", acts, 0)
    nexts = {act.task_id: drill.stage.simulator.sessions(act.meter_id)[-1]["status"] for act in acts}
    wrong = [f"{name}: {status}" for name, status in nexts.items() if status != "RUNNING"]
    drill.found("... and the meters' next sessions go on", acts, wrong)
    # Its last reports arrive with its next request, at the latest a minute later; they must change nothing.
    until = time.monotonic() + 70
    wrong = []
    while time.monotonic() < until and not wrong:
        found = drill.outcomes(acts)
        wrong = [f"{act.task_id}: {found.get(act.task_id)}" for act in acts if found.get(act.task_id) != "MET"]
        time.sleep(5)
    drill.found("... and how its waits ended stays as it was", acts, wrong)
    for act in acts:
        act.finish()
    drill.airflow.stop("triggerer-2")


def suspended_scheduler(drill: Drill) -> None:
    """A scheduler is suspended until another one resets its running task."""
    (act,) = drill.play("stops_reset")
    session = act.started()[0]["session_id"]
    act.wait_polled()
    process = act.process()
    airflow = drill.airflow
    # Paused, so that the task stays without a state until its process has received that.
    airflow.api("PATCH", f"/dags/{act.play.dag_id}", json={"is_paused": True})
    airflow.processes.start("scheduler-2", _command("scheduler"))
    with suspended(airflow.pids("scheduler")[:1]):
        began = time.monotonic()
        wait_until(lambda: act.play.task(act.task_id)["state"] is None, timeout=LONGEST, what="the task to be reset")
        drill.notes.append(f"a running task was reset after {time.monotonic() - began:.0f} s")
        act.wait_logged("is not stopped")
        psutil.wait_procs([process], timeout=60)
    drill.stopped("a running task that another scheduler resets: no stop call", [act], 0)
    airflow.api("PATCH", f"/dags/{act.play.dag_id}", json={"is_paused": False})
    # The scheduler that resumes may start a try that the other one resets once more.
    wait_until(
        lambda: (task := act.play.task(act.task_id))["state"] == "running" and task["try_number"] > 1,
        timeout=LONGEST,
        what="a later try to be running",
    )
    act.wait_polled()
    act.finish()
    state = act.end()["state"]
    wrong = (
        []
        if (state, act.starts()) == ("success", [session])
        else [f"{act.task_id}: {state} after the starts {act.starts()}"]
    )
    drill.found("... and its next try waits for the same session", [act], wrong)
    airflow.stop("scheduler-2", sig=signal.SIGKILL)


def no_triggerer(drill: Drill) -> None:
    """The health line is red while no triggerer reports deferred tasks, for every way in which theirs ended."""
    acts = drill.play("stops_left")
    for act in acts:
        act.wait_deferred()
        act.wait_polled()
    for sig in (signal.SIGTERM, signal.SIGKILL):
        wait_until(lambda: not drill.red(), timeout=LONGEST, what="the health line to be good", every=2)
        drill.airflow.stop("triggerer", sig=sig)
        began, seconds = time.monotonic(), None
        while seconds is None and time.monotonic() - began < RED_SECONDS + 60:
            seconds = time.monotonic() - began if drill.red() else None
            time.sleep(2)
        wrong = [] if seconds is not None and seconds <= RED_SECONDS + 15 else [f"health: red after {seconds} s"]
        note = f"{seconds:.0f} s" if seconds is not None else "never"
        drill.found(f"no triggerer after {sig.name}: red within 3 minutes", acts, wrong, note)
        drill.airflow.start("triggerer")
    for act in acts:
        act.finish()
        act.wait("success")
    drill.stopped("... and no stop call", acts, 0)


SCENES = (marks, suspended_triggerer, suspended_scheduler, no_triggerer)


@contextmanager
def suspended(pids: Sequence[int]) -> Iterator[None]:
    """Suspend processes during the block."""
    for pid in pids:
        os.kill(pid, signal.SIGSTOP)
    try:
        yield
    finally:
        for pid in pids:
            os.kill(pid, signal.SIGCONT)


def _command(component: str) -> list[str]:
    return [sys.executable, "-m", "airflow", component, "--skip-serve-logs"]


def _nothing(act: Act) -> Iterator[None]:  # the drill itself is the scenario
    yield


def main() -> int:
    root = Path(tempfile.mkdtemp(prefix="mediation-drill-"))
    began = time.monotonic()
    try:
        with ExitStack() as open_:
            dags = root / "dags"
            dags.mkdir()
            (dags / "stops.py").write_text(DAG.format(dags=DAGS))
            database = open_.enter_context(Postgres()).create("drill")
            env = {**SETTINGS, "AIRFLOW__DATABASE__SQL_ALCHEMY_CONN": database}
            stage = open_.enter_context(Stage(root / "stage", dags, env=env))
            stage.simulator.call("POST", "/config", json={"max_running_meters": 60})
            stage.airflow.wait_dags(set(DAGS))
            drill = Drill(stage, database)
            for scene in SCENES:
                try:
                    scene(drill)
                except Exception as error:
                    drill.results.append(
                        Result(scene.__name__, 0, [Violation("could not be played", scene.__name__, repr(error))])
                    )
    finally:
        shutil.rmtree(root, ignore_errors=True)
    drill.notes.append(f"in {timedelta(seconds=round(time.monotonic() - began))}")
    return 0 if show("Drill: stops", drill.results, drill.notes) else 1


if __name__ == "__main__":
    sys.exit(main())
