"""Scenarios that run side by side in one Dag run: each has a task and a meter of its own, and so disturbs no other.

A scenario is a generator function. Before its ``yield`` it prepares its meter and faults; then one Dag run
starts all tasks; after it the scenario acts on the processes and asserts. All of them run at the same time, each in a
thread, and a test waits for the end of one of them.
"""

from __future__ import annotations

import itertools
import os
import signal
import threading
import time
from collections import defaultdict
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

import psutil

from testkit.client import TASK_ENDS
from testkit.processes import NotInTimeError, wait_until

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterator, Mapping
    from concurrent.futures import Future

    from testkit.stage import Stage

    Scenario = Callable[["Act"], Iterator[None]]

# Each Dag run requests the states of all its tasks at most this often, for all its scenarios together.
FRESH_SECONDS = 0.4
PATIENCE = 150.0
_meters = itertools.count(40_001)
# Two calls that write block each other in one API server on SQLite: the second one's audit entry blocks its event loop,
# for which the first one's commit waits.
_one_write = threading.Lock()


class Act:
    """One scenario: its task, its meter, and their state in the simulator and Airflow.

    :param play: the Dag run that it belongs to
    :param task_id: the task, named like the scenario
    """

    def __init__(self, play: Play, task_id: str) -> None:
        self.play = play
        self.stage = play.stage
        self.task_id = task_id
        self.meter_id = str(next(_meters))
        self.session_id: str | None = None  # of a session that the scenario starts, for sensors

    # -- the simulated tenant

    def meter(self, *runs: Any, **settings: Any) -> None:
        """Create the meter: scripts of its runs, the last of which repeats."""
        self.stage.simulator.meter(self.meter_id, runs=list(runs), **settings)

    def session(self, script: Any) -> str:
        """Start the session that a sensor waits for, outside of Airflow, and return its id."""
        self.session_id = str(self.stage.simulator.start_session(self.meter_id, script=script)["session_id"])
        return self.session_id

    def fault(self, kind: str, **settings: Any) -> int:
        """Add a fault to the calls of this meter; returns the fault's id."""
        return int(self.stage.simulator.fault(kind, meter=self.meter_id, **settings)["id"])

    def lift(self, fault: int) -> None:
        """Remove a fault."""
        self.stage.simulator.call("DELETE", "/faults", params={"id": fault})

    def log(self, kind: str, **fields: Any) -> list[dict[str, Any]]:
        """Return the simulator's log entries of the meter, in order."""
        params = {"kind": kind, "meter": self.meter_id}
        entries = self.stage.simulator.call("GET", "/log", params=params)["entries"]
        return [entry for entry in entries if all(entry.get(name) == value for name, value in fields.items())]

    def logged(self, kind: str, *, count: int = 1, **fields: Any) -> list[dict[str, Any]]:
        """Wait until the simulator's log has so many entries of the meter, and return them."""
        found: list[dict[str, Any]] = []

        def enough() -> bool:
            found[:] = self.log(kind, **fields)
            return len(found) >= count

        wait_until(enough, timeout=PATIENCE, what=f"{count} {kind} of meter {self.meter_id}, {fields}", every=0.2)
        return found

    def wait_request(self, ending: str, **fields: Any) -> dict[str, Any]:
        """Wait for a request with this end of its path, and return it."""
        found: list[dict[str, Any]] = []

        def there() -> bool:
            found[:] = [each for each in self.log("request", **fields) if ending in each["path"]]
            return bool(found)

        wait_until(there, timeout=PATIENCE, what=f"a request {ending} of meter {self.meter_id}, {fields}", every=0.1)
        return found[0]

    def polls(self) -> int:
        """Return how often the meter's status was read."""
        return sum(each["path"].endswith("/runStatus") for each in self.log("request", outcome="answered"))

    def wait_polled(self, times: int = 2) -> None:
        """Wait until the status was read so many times from now on."""
        before = self.polls()
        what = f"{times} more polls of meter {self.meter_id}"
        wait_until(lambda: self.polls() >= before + times, timeout=PATIENCE, what=what, every=0.2)

    def started(self, count: int = 1) -> list[dict[str, Any]]:
        """Wait for so many sessions that the task started, and return them."""
        return self.logged("start", count=count, foreign=False)

    def starts(self) -> list[str]:
        """Return the sessions that the task started up to now."""
        return [each["session_id"] for each in self.log("start", foreign=False)]

    def stops(self) -> list[dict[str, Any]]:
        """Return the calls to stop the meter."""
        return self.log("stop")

    def finish(self, session_id: str | None = None, status: str = "COMPLETED") -> None:
        """End a session now; the newest of the meter unless one is named."""
        session_id = session_id or self.stage.simulator.sessions(self.meter_id)[-1]["session_id"]
        self.stage.simulator.call("POST", f"/sessions/{session_id}", json={"script": [[status, None]]})

    # -- Airflow

    def wait(self, *states: str, try_number: int | None = None) -> dict[str, Any]:
        """Wait until the task is in one of the states, in that try if one is given; returns the task instance."""

        def there() -> dict[str, Any] | None:
            ti = self.play.task(self.task_id)
            return ti if ti["state"] in states and try_number in (None, ti["try_number"]) else None

        what = f"{self.task_id} to be {' or '.join(states)}" + (f" in try {try_number}" if try_number else "")
        return wait_until(there, timeout=PATIENCE, what=what, every=0.2)

    def wait_deferred(self, try_number: int = 1) -> None:
        """Wait until the task is deferred and the scheduler has processed that its process has ended.

        If its trigger resumes it before that, Airflow takes the task's process for lost, and retries it.
        """
        self.wait("deferred", try_number=try_number)
        ended = f"'{self.task_id}', run_id='{self.play.run_id}', try_number={try_number}, map_index=-1)"
        what = f"the scheduler to process that {self.task_id} has left its worker"
        wait_until(lambda: ended in self.play.executor_events(), timeout=PATIENCE, what=what)

    def end(self) -> dict[str, Any]:
        """Wait until the task has ended, and return the task instance."""
        return self.wait(*TASK_ENDS)

    def xcom(self, key: str = "return_value") -> Any:
        """Return the task's XCom."""
        return self.stage.airflow.xcom(self.play.dag_id, self.play.run_id, self.task_id, key=key)

    def task_log(self, try_number: int = 1) -> str:
        """Return the log of a try."""
        return self.stage.airflow.logs(self.play.dag_id, self.play.run_id, self.task_id, try_number=try_number)

    def wait_logged(self, text: str, try_number: int = 1) -> None:
        """Wait until the text is in the log of a try."""
        what = f"{self.task_id} to log {text!r}"
        wait_until(lambda: text in self.task_log(try_number), timeout=PATIENCE, what=what, every=0.5)

    def process(self, try_number: int = 1) -> psutil.Process:
        """Return the task's process on the worker; its parent is the supervisor."""
        ti = wait_until(
            lambda: (ti := self.wait("running", try_number=try_number)) and ti["pid"] and ti,
            timeout=PATIENCE,
            what=f"the process of {self.task_id}",
        )
        return psutil.Process(ti["pid"])

    def kill(self, try_number: int = 1) -> None:
        """Kill the task's process, as the kernel does when memory runs out."""
        os.kill(self.process(try_number).pid, signal.SIGKILL)

    def mark(self, state: str) -> None:
        """Mark the task as a user does."""
        with _one_write:
            self.stage.airflow.mark(self.play.dag_id, self.play.run_id, self.task_id, state)

    def clear(self) -> None:
        """Clear the task as a user does."""
        with _one_write:
            cleared = self.stage.airflow.clear(self.play.dag_id, self.play.run_id, [self.task_id])
        assert cleared == [self.task_id]

    def await_cue(self, name: str) -> None:
        """Wait until the other scenarios have given the cue."""
        if not self.play.cues[name].wait(PATIENCE):
            raise NotInTimeError(f"no cue {name!r} within {PATIENCE:g} s")

    def report(self) -> str:
        """Return the logs and states for the message of a failure."""
        lines = [f"simulator's log of meter {self.meter_id}:"]
        wanted = ("path", "carried_out", "outcome", "faults", "session_id", "previous_status", "status", "reason")
        for entry in self.log("request,start,transition,stop,refused")[-40:]:
            facts = ", ".join(f"{name}={entry[name]}" for name in wanted if entry.get(name))
            lines.append(f"  {entry['time'][11:23]} {entry['seq']} {entry['kind']}: {facts}")
        ti = self.play.task(self.task_id)
        lines.append(f"task {self.task_id}: {ti['state']} in try {ti['try_number']}")
        for number in range(1, ti["try_number"] + 1):
            lines.append(f"log of try {number}:")
            lines += [f"  {line}" for line in self.task_log(number).splitlines()[-30:]]
        return "\n".join(lines)


class Play:
    """One run of a Dag with a task for each scenario.

    :param scenarios: by the ids of their tasks
    :param conf: further configuration of the run
    """

    def __init__(
        self, stage: Stage, dag_id: str, scenarios: Mapping[str, Scenario], conf: Mapping[str, Any] | None = None
    ) -> None:
        self.stage = stage
        self.dag_id = dag_id
        self.run_id = f"play__{datetime.now(UTC).isoformat()}"
        self.acts = {name: Act(self, name) for name in scenarios}
        self.cues: defaultdict[str, threading.Event] = defaultdict(threading.Event)
        self.seconds: dict[str, float] = {}
        self._scenarios = scenarios
        self._conf = dict(conf or {})
        self._lock = threading.Lock()
        self._tasks: dict[str, dict[str, Any]] = {}
        self._asked_at = 0.0
        self._futures: dict[str, Future[None]] = {}

    def task(self, task_id: str) -> dict[str, Any]:
        """Return a task instance in its present state, or that of a moment ago."""
        with self._lock:
            if time.monotonic() - self._asked_at > FRESH_SECONDS:
                found = self.stage.airflow.task_instances(self.dag_id, self.run_id)
                self._tasks = {ti["task_id"]: ti for ti in found}
                self._asked_at = time.monotonic()
            return self._tasks[task_id]

    def executor_events(self) -> str:
        """Return the scheduler's log lines about processes that ended."""
        lines = self.stage.airflow.processes.log_file("scheduler").read_text(errors="replace").splitlines()
        return "\n".join(line for line in lines if "Received executor event with state success" in line)

    def outcome(self, name: str) -> None:
        """Wait for the end of a scenario; its exception is raised here."""
        self._futures[name].result(timeout=2 * PATIENCE)

    def _continue(self, name: str, rest: Iterator[None]) -> None:
        began = time.monotonic()
        act = self.acts[name]
        try:
            for _ in rest:
                raise AssertionError(f"scenario {name} yields more than once")
        except BaseException as error:
            try:
                report = act.report()
            except Exception as trouble:
                report = f"no report: {trouble!r}"
            error.add_note(report)
            # No scenario is to wait for a cue that this one does not give any more.
            for cue in [*self.cues.values()]:
                cue.set()
            raise
        finally:
            self.seconds[name] = time.monotonic() - began

    @contextmanager
    def playing(self, *, others: Collection[str] = ()) -> Iterator[Play]:
        """Prepare all scenarios, start the Dag run, and run them; waits for their ends.

        :param others: further Dags that must be parsed first
        """
        airflow = self.stage.airflow
        airflow.wait_dags({self.dag_id, *others})
        rests = {name: scenario(self.acts[name]) for name, scenario in self._scenarios.items()}
        for rest in rests.values():
            next(rest)
        acts = self.acts.values()
        conf = {
            "meters": {act.task_id: act.meter_id for act in acts},
            "sessions": {act.task_id: act.session_id for act in acts if act.session_id},
            **self._conf,
        }
        airflow.trigger(self.dag_id, conf, run_id=self.run_id)
        with ThreadPoolExecutor(len(rests), thread_name_prefix="scenario") as pool:
            self._futures = {name: pool.submit(self._continue, name, rest) for name, rest in rests.items()}
            yield self
