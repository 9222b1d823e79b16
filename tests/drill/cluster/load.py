"""The load of a round: sessions, tasks of each kind that wait for them, and Dags that they start.

One run of the Dag ``load_keeps`` or ``load_stops`` is a group: twelve tasks wait for eight sessions. Beside it a run of
``control`` waits for an instant with Airflow's own sensors: what a fault costs such a task, Airflow itself needs.
"""

from __future__ import annotations

import random
import time
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any, Final, TypeVar

import httpx

from airflow_mediation_provider.protocol.status import ENDS_BY_POLL, SUCCESS, RunType
from testkit.processes import NotInTimeError, wait_until
from tests.drill.history import ANY_METER, Consumer, History, Start, Stop, Task, Wait
from tests.drill.tenant import CONN_ID

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from airflow_mediation_provider.simulator import Simulator
    from tests.drill.cluster.stack import Cluster

T = TypeVar("T")
NAMED, UNNAMED, OWN = ("a", "b", "c"), ("d", "e", "f"), ("g", "h")
# Task -> the meter that it waits for, by the letter of its session.
SENSORS: Final = {
    "named_1": "a",
    "named_2": "b",
    "named_3": "c",
    "unnamed_1": "d",
    "unnamed_2": "e",
    "unnamed_3": "f",
    "in_triggerer_named": "a",
    "in_triggerer_unnamed_1": "d",
    "in_triggerer_unnamed_2": "e",
    "on_worker": "b",
}
RUNS: Final = {"run_deferred": "g", "run_on_worker": "h"}
KEEPS, STOPS, CONTROL = "load_keeps", "load_stops", "control"
SCHEDULED: Final = ("101", "102", "103")
CONSUMERS: Final = [
    Consumer("one", "101", "COMPLETED"),
    *(Consumer("several", meter, status) for meter in ("102", "103") for status in ("COMPLETED", "FAILED")),
    Consumer("any", ANY_METER, "COMPLETED"),
]
ASKING: Final = frozenset({"one", "several"})
PER_GROUP = len({*SENSORS.values(), *RUNS.values()}) + 1
ENDS = ("COMPLETED", "COMPLETED", "COMPLETED", "FAILED", "CANCELED")
# Seconds that the shortest and the longest session last.
SHORTEST, LONGEST = 40.0, 100.0
PATIENCE = 600.0

_DAGS = '''\
"""Dags of a drill."""

from datetime import timedelta

from airflow.providers.standard.operators.empty import EmptyOperator
from airflow.providers.standard.sensors.date_time import DateTimeSensor, DateTimeSensorAsync
from airflow.sdk import DAG, task

from airflow_mediation_provider.assets import ANY_METER, on_meter_session, triggering_session
from airflow_mediation_provider.operators.meter import RunMeterOperator
from airflow_mediation_provider.sensors.meter_session import MeterSessionSensor

CONN_ID = {conn_id!r}
retried = {{"retries": 8, "retry_delay": timedelta(seconds=5)}}
waiting = {{"mediation_conn_id": CONN_ID, "poke_interval": 20, "timeout": 1800, **retried}}

for dag_id, stops in {{{keeps!r}: False, {stops!r}: True}}.items():
    with DAG(dag_id, schedule=None, params={{"meters": {{}}, "sessions": {{}}}}):
        for task_id, letter in {sensors!r}.items():
            named = {{"session_id": "{{{{ params.sessions." + letter + " }}}}"}} if letter in {named!r} else {{}}
            MeterSessionSensor(
                task_id=task_id,
                meter_id="{{{{ params.meters." + letter + " }}}}",
                deferrable=task_id != "on_worker",
                start_from_trigger=task_id.startswith("in_triggerer"),
                **named,
                **waiting,
            )
        for task_id, letter in {runs!r}.items():
            RunMeterOperator(
                task_id=task_id,
                meter_id="{{{{ params.meters." + letter + " }}}}",
                deferrable=task_id == "run_deferred",
                stop_meter_on_kill=stops,
                **waiting,
            )

with DAG({control!r}, schedule=None, params={{"until": ""}}):
    DateTimeSensorAsync(task_id="deferred", target_time="{{{{ params.until }}}}", **retried)
    DateTimeSensor(task_id="on_worker", target_time="{{{{ params.until }}}}", poke_interval=1, **retried)

SCHEDULES = {{
    "one": on_meter_session("101", "COMPLETED", mediation_conn_id=CONN_ID),
    "several": on_meter_session(["102", "103"], ["COMPLETED", "FAILED"], mediation_conn_id=CONN_ID),
}}
for dag_id, schedule in SCHEDULES.items():
    with DAG(dag_id, schedule=schedule, catchup=False):

        @task(**retried)
        def ask():
            return triggering_session()["session_id"]

        ask()

with DAG("any", schedule=on_meter_session(ANY_METER, "COMPLETED", mediation_conn_id=CONN_ID), catchup=False):
    EmptyOperator(task_id="done")
'''


def write_dags(directory: Path) -> set[str]:
    """Write the Dag file, and return the Dags in it."""
    directory.mkdir(parents=True, exist_ok=True)
    names = {"keeps": KEEPS, "stops": STOPS, "control": CONTROL, "conn_id": CONN_ID, "named": NAMED}
    (directory / "drill.py").write_text(_DAGS.format(sensors=SENSORS, runs=RUNS, **names), encoding="utf-8")
    return {KEEPS, STOPS, CONTROL, *(consumer.dag_id for consumer in CONSUMERS)}


def persist(call: Callable[[], T], what: str) -> T:
    """Call Airflow's API until it answers: in a drill it is away at times."""
    answers: list[T] = []

    def answered() -> bool:
        try:
            answers.append(call())
        except httpx.HTTPError:
            return False
        return True

    wait_until(answered, timeout=PATIENCE, what=what, every=2)
    return answers[0]


@dataclass
class Group:
    """A run of a load Dag, its sessions by their letters, and the instant for which the run of ``control`` waits."""

    dag_id: str
    run_id: str
    meters: dict[str, str]
    sessions: dict[str, str] = field(default_factory=dict)
    until: datetime = datetime.min


@dataclass(frozen=True)
class Lateness:
    """How many seconds after they could end tasks ended, from the fault on: the median, and the last one."""

    tasks: int
    median: float
    longest: float

    @classmethod
    def of(cls, seconds: list[float]) -> Lateness:
        """Return it for some tasks."""
        ordered = sorted(seconds)
        return cls(len(ordered), ordered[len(ordered) // 2], ordered[-1]) if ordered else cls(0, 0.0, 0.0)


class Load:
    """The load of one round.

    :param cluster: where the tasks run
    :param sim: the tenant
    :param number: of the round; its meters and runs have it in their names
    :param groups: how many
    :param pace: seconds from one group to the next
    :param seed: of the sessions' ways
    """

    def __init__(self, cluster: Cluster, sim: Simulator, number: int, groups: int, pace: float, seed: int) -> None:
        self._cluster = cluster
        self._sim = sim
        self._pace = pace
        self._chance = random.Random(seed)
        self._since = max((entry["seq"] for entry in sim.log()), default=0)
        self._rows = cluster.database.last_rows()
        self._killed: Group | None = None
        self.groups = [
            Group(
                STOPS if index % 2 == 0 else KEEPS,
                f"round-{number}-{index}",
                {letter: f"{number}{index:03}{at}" for at, letter in enumerate((*NAMED, *UNNAMED, *OWN), start=1)},
            )
            for index in range(groups)
        ]

    # ---- to play

    def begin(self, part: slice) -> None:
        """Start some groups, one after the other."""
        for group in self.groups[part]:
            self._begin(group)
            time.sleep(self._pace)

    def _begin(self, group: Group) -> None:
        for letter in (*NAMED, *UNNAMED):
            self._sim.set_meter(group.meters[letter])
        for letter in OWN:
            self._sim.set_meter(group.meters[letter], script=self._script("COMPLETED"))
        for letter in NAMED:
            group.sessions[letter] = self._session(group.meters[letter])
        conf = {"meters": group.meters, "sessions": group.sessions}
        persist(lambda: self._cluster.trigger(group.dag_id, conf, run_id=group.run_id), "the API to start a run")
        for letter in UNNAMED:
            group.sessions[letter] = self._session(group.meters[letter])
        self._session(self._chance.choice(SCHEDULED))
        group.until = datetime.now(UTC) + timedelta(seconds=self._chance.uniform(SHORTEST, LONGEST))
        until = {"until": group.until.isoformat()}
        persist(lambda: self._cluster.trigger(CONTROL, until, run_id=group.run_id), "the API to start a run")

    def _session(self, meter_id: str) -> str:
        session = self._sim.start_session(meter_id, script=self._script(self._chance.choice(ENDS)))
        return str(session["session_id"])

    def _script(self, end: str) -> list[tuple[str, float | None]]:
        seconds = self._chance.uniform(SHORTEST, LONGEST)
        pause = [("PAUSED", seconds * 0.2), ("RUNNING", seconds * 0.2)] if self._chance.random() < 0.3 else []
        left = 0.95 - 0.4 * bool(pause)
        return [("INITIALIZING", seconds * 0.05), ("RUNNING", seconds * left), *pause, (end, None)]

    def wait_waiting(self, share: float) -> None:
        """Wait until a share of the sessions' tasks has begun to wait."""
        statement = (
            "SELECT count(*) FROM task_instance WHERE state IN ('deferred', 'running', 'success', 'failed')"
            " AND run_id LIKE :runs AND dag_id LIKE 'load_%'"
        )
        begun = [group for group in self.groups if group.sessions]
        wanted = share * len(begun) * len({**SENSORS, **RUNS})
        pattern = f"{self.groups[0].run_id.rpartition('-')[0]}-%"

        def enough() -> bool:
            return bool(self._cluster.database.read(statement, runs=pattern)[0][0] >= wanted)

        wait_until(enough, timeout=PATIENCE, what="the tasks to wait", every=1)

    def kill_a_task(self) -> None:
        """Mark the deferred task of the first group as failed, as a user does; it stops its session."""
        group, task_id = self.groups[0], "run_deferred"
        (session,) = self._sim.wait_for("start", meter_id=group.meters[RUNS[task_id]], timeout=PATIENCE)
        self._sim.steer(session["session_id"], [("RUNNING", None)])
        states = frozenset({"deferred"})
        self._cluster.wait_task(group.dag_id, group.run_id, task_id, states=states, timeout=PATIENCE)
        waits = (
            "SELECT count(*) FROM mediation_wait WHERE dag_id = :dag AND run_id = :run AND task_id = :task"
            " AND mode = 'triggerer'"
        )
        where = {"dag": group.dag_id, "run": group.run_id, "task": task_id}
        # A task that is killed before a triggerer waits for it stops nothing (docs/stops.md).
        wait_until(
            lambda: self._cluster.database.read(waits, **where)[0][0], timeout=PATIENCE, what="a report of the wait"
        )
        self._cluster.mark(group.dag_id, group.run_id, task_id, "failed")
        self._killed = group
        self._sim.wait_for("stop", meter_id=group.meters[RUNS[task_id]], timeout=PATIENCE)

    def wait_over(self) -> str:
        """Wait until all sessions, callouts and runs are over; return what is not, after half an hour."""
        try:
            wait_until(self._over, timeout=1800, what="all sessions, callouts and runs", every=2)
            self._wait_quiet()
        except NotInTimeError as error:
            return str(error)
        return ""

    def _over(self) -> bool:
        ends = {*ENDS}
        if any(session["status"] not in ends for session in self._sim.sessions()):
            return False
        if self._sim.health()["callouts_pending"]:
            return False
        open_ = "SELECT count(*) FROM dag_run WHERE id > :dag_run AND state NOT IN ('success', 'failed')"
        return not self._cluster.database.read(open_, **self._rows)[0][0]

    def _wait_quiet(self) -> None:
        seen: list[tuple[float, int]] = []

        def quiet() -> bool:
            count = len(self._cluster.database.runs(self._rows))
            if not seen or seen[-1][1] != count:
                seen.append((time.monotonic(), count))
            return self._over() and time.monotonic() - seen[-1][0] > 15

        wait_until(quiet, timeout=1800, what="the scheduler to be done", every=2)

    # ---- what was recorded

    def history(self) -> History:
        """Return everything that was recorded since the round began."""
        log = self._sim.log(("transition", "callout", "start", "stop"), since=self._since)
        database = self._cluster.database
        made = database.history(log, CONSUMERS, [], self._rows)
        last = {change.session_id: change.status for change in made.changes}
        scheduled = {consumer.dag_id for consumer in CONSUMERS}
        return replace(
            made,
            runs=[run for run in made.runs if run.dag_id in scheduled],
            waits=[wait for group in self.groups for wait in self._waits(group, last)],
            starts=[
                Start(e["meter_id"], e["session_id"], e["unique_key"])
                for e in log
                if e["kind"] == "start" and not e["foreign"]
            ],
            stops=[Stop(e["meter_id"], tuple(e["sessions"])) for e in log if e["kind"] == "stop"],
            tasks=self._tasks(),
        )

    def _waits(self, group: Group, last: dict[str, str]) -> list[Wait]:
        where = {"dag": group.dag_id, "run": group.run_id}
        database = self._cluster.database
        tasks = "SELECT task_id, state, end_date FROM task_instance WHERE dag_id = :dag AND run_id = :run"
        states = {task_id: (state, at) for task_id, state, at in database.read(tasks, **where)}
        xcoms = "SELECT task_id, value FROM xcom WHERE dag_id = :dag AND run_id = :run AND key = 'return_value'"
        results: dict[str, Any] = dict(database.read(xcoms, **where))
        reports = (
            "SELECT task_id, status, certain FROM mediation_wait WHERE dag_id = :dag AND run_id = :run"
            " AND ended_at IS NOT NULL ORDER BY ended_at"
        )
        reported = {task_id: (status, certain) for task_id, status, certain in database.read(reports, **where)}
        started = {s["meter_id"]: str(s["session_id"]) for s in self._sim.sessions()}
        success = SUCCESS[RunType.NORMAL]
        failures = tuple(sorted(ENDS_BY_POLL[RunType.NORMAL] - {success}))
        waits = []
        for task_id, letter in {**SENSORS, **RUNS}.items():
            meter = group.meters[letter]
            session = group.sessions.get(letter) or started.get(meter, "none")
            state, at = states.get(task_id, (None, None))
            result, (status, certain) = results.get(task_id) or {}, reported.get(task_id, (None, None))
            if killed := group is self._killed and task_id == "run_deferred":
                status, certain = last.get(session), None
            waits.append(
                Wait(
                    f"{group.dag_id}.{task_id} {group.run_id}",
                    meter,
                    session,
                    (success,),
                    failures,
                    {"success": "met", "failed": "failed"}.get(str(state), f"state {state}"),
                    # Without a report, a failed task stands for any failure of its session.
                    result.get("status") or status or last.get(session),
                    result.get("certain", certain),
                    named=(result.get("session_id") or session) if letter in UNNAMED else None,
                    ended_at=at.timestamp() if at else 0.0,
                    own=letter in OWN,
                    killed=killed,
                )
            )
        return waits

    def _tasks(self) -> list[Task]:
        statement = (
            "SELECT t.dag_id, t.run_id, t.task_id, t.state, r.partition_key, x.value FROM task_instance t"
            " JOIN dag_run r ON r.dag_id = t.dag_id AND r.run_id = t.run_id"
            " LEFT JOIN xcom x ON x.dag_id = t.dag_id AND x.run_id = t.run_id AND x.task_id = t.task_id"
            " AND x.key = 'return_value' WHERE r.id > :dag_run AND t.dag_id NOT LIKE 'load_%'"
        )
        return [
            Task(dag_id, run_id, task_id, state, key, str(given or "") if dag_id in ASKING else None)
            for dag_id, run_id, task_id, state, key, given in self._cluster.database.read(statement, **self._rows)
        ]

    def lateness(self, history: History, fault_at: float) -> tuple[Lateness, Lateness]:
        """Return how late the tasks that end by sessions were after the fault, and those of ``control``."""
        ended = {entry["session_id"]: entry["at"] for entry in self._sim.log("transition", since=self._since)}
        ours = [
            wait.ended_at - ended[wait.session_id]
            for wait in history.waits
            if wait.ended_at > fault_at and not wait.killed and wait.session_id in ended
        ]
        due = {group.run_id: group.until.timestamp() for group in self.groups}
        statement = "SELECT run_id, end_date FROM task_instance WHERE dag_id = :dag AND run_id = ANY(:runs)"
        rows = self._cluster.database.read(statement, dag=CONTROL, runs=list(due))
        airflows = [at.timestamp() - due[run_id] for run_id, at in rows if at and at.timestamp() > fault_at]
        return Lateness.of(ours), Lateness.of(airflows)
