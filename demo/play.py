"""Play scenes on a stage and compare the results with the expected ones."""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from datetime import datetime
from typing import TYPE_CHECKING, Any

from testkit.client import RUN_ENDS
from testkit.processes import NotInTimeError, wait_until

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from demo.scenes import Row, Scene
    from testkit.stage import Stage

DOWNSTREAM = "usage_batch"
RAN = frozenset({"success", "failed"})


@dataclass(kw_only=True)
class Played:
    """A scene that is being played, and its result at the end.

    :param run_id: the Dag run; empty until a callout has started it
    :param began: when it was triggered, or its session could start, by the monotonic clock
    :param tasks: the state of each of its tasks, a mapped one as ``task_id[map_index]``
    :param run: the run's state
    :param foreign: the session that was started outside of Airflow
    """

    scene: Scene
    run_id: str
    began: float
    tasks: dict[str, str | None] = field(default_factory=dict)
    run: str = "queued"
    foreign: str | None = None
    results: list[Result] = field(default_factory=list)
    seconds: float = 0.0

    @property
    def over(self) -> bool:
        """Return whether it has been played to its end and checked."""
        return bool(self.results)


@dataclass(kw_only=True)
class Result:
    """The result of one meter of a scene: a line of the table.

    :param downstream: the state of the run of ``usage_batch`` for its session; empty where there is none
    :param after_callout: seconds from the callout of the session's end to the start of the run that it started
    :param problems: the differences from the expected results; empty if there are none
    """

    row: Row
    session: str = "none"
    status: str = ""
    branch: str = ""
    downstream: str = ""
    after_callout: float | None = None
    problems: list[str] = field(default_factory=list)


def play(
    stage: Stage, scenes: Sequence[Scene], on_progress: Callable[[list[Played]], None], *, timeout: float = 180
) -> list[Played]:
    """Trigger all scenes at once, wait until all have ended, and check each.

    :param on_progress: called about twice a second with the state of all
    :param timeout: seconds that all of them may take together
    :raises NotInTimeError: they took longer, or a Dag has an import error
    """
    airflow, simulator = stage.airflow, stage.simulator
    airflow.wait_dags({scene.dag_id for scene in scenes} | {DOWNSTREAM})
    for scene in scenes:
        for meter, settings in scene.meters.items():
            simulator.meter(meter, **settings)
    playing = [Played(scene=scene, run_id=_trigger(stage, scene), began=time.monotonic()) for scene in scenes]

    def all_over() -> bool:
        for each in playing:
            if not each.over:
                _look(stage, each)
        on_progress(playing)
        return all(each.over for each in playing)

    try:
        wait_until(all_over, timeout=timeout, what="the Dag runs to end", every=0.5)
    except NotInTimeError as error:
        left = "\n".join(f"{each.scene.dag_id}: {each.run}, {each.tasks}" for each in playing if not each.over)
        raise NotInTimeError(f"{error}\n{left}") from None
    return playing


def _trigger(stage: Stage, scene: Scene) -> str:
    return "" if scene.scheduled_on else stage.airflow.trigger(scene.dag_id, scene.conf)


def _look(stage: Stage, played: Played) -> None:
    airflow, scene = stage.airflow, played.scene
    if scene.scheduled_on and not played.run_id:
        played.foreign = played.foreign or stage.simulator.start_session_if_room(scene.scheduled_on)
        runs = [run for run in airflow.runs(scene.dag_id) if run["partition_key"] == played.foreign]
        if not (played.foreign and runs):
            return
        played.run_id = runs[0]["dag_run_id"]
    played.tasks = airflow.task_states(scene.dag_id, played.run_id)
    played.run = airflow.run(scene.dag_id, played.run_id)["state"]
    played.seconds = time.monotonic() - played.began
    if scene.foreign and not played.foreign:
        task_id, meter = scene.foreign
        # Only now: no poll can show a session that is over before the first poll of the meter.
        if played.tasks.get(task_id) == "deferred":
            played.foreign = stage.simulator.start_session_if_room(meter)
    if played.run in RUN_ENDS:
        sessions = [_only_session(stage, row) for row in scene.rows]
        batches = {run["conf"].get("session_id"): run for run in airflow.runs(DOWNSTREAM)}
        due = [batches.get(each["session_id"]) for each in sessions if each]
        if all(run is None or run["state"] in RUN_ENDS for run in due):
            played.results = [
                _check(stage, played, row, session, batches) for row, session in zip(scene.rows, sessions, strict=True)
            ]


def _only_session(stage: Stage, row: Row) -> dict[str, Any] | None:
    normal = [each for each in stage.simulator.sessions(row.meter) if each["run_type"] == "NORMAL"]
    return normal[-1] if normal else None


def _check(
    stage: Stage, played: Played, row: Row, session: dict[str, Any] | None, batches: dict[str, dict[str, Any]]
) -> Result:
    result = Result(row=row)
    must = _Must(result.problems)
    dag_run = f"{played.scene.dag_id} ({played.scene.shows})"
    must(f"the run of {dag_run}", played.run, played.scene.run)
    suffix = "" if row.map_index < 0 else f"[{row.map_index}]"
    for task_id, state in {**row.taken, **dict.fromkeys(row.not_taken, "skipped")}.items():
        must(f"task {task_id}{suffix} of {dag_run}", played.tasks.get(f"{task_id}{suffix}"), state)
    ran = {task_id: played.tasks.get(f"{task_id}{suffix}") for task_id in (*row.taken, *row.not_taken)}
    names = [f"{each.rpartition('.')[2]}{' failed' * (ran[each] == 'failed')}" for each in ran if ran[each] in RAN]
    result.branch = " > ".join(names) or "skipped"
    started = [each for each in stage.simulator.sessions(row.meter) if each["run_type"] == "NORMAL"]
    must(f"sessions of meter {row.meter}", len(started), 0 if row.status is None else 1)
    if session is None:
        tests = stage.simulator.sessions(row.meter)
        result.session, result.status = (tests[-1]["session_id"], tests[-1]["status"]) if tests else ("none", "")
        return result
    result.session, result.status = session["session_id"], session["status"]
    must(f"the status of session {result.session}", result.status, row.status)
    result.after_callout = _after_callout(stage, played, row, result.session)
    batch = batches.get(result.session)
    result.downstream = batch["state"] if batch else ""
    must(
        f"the run of {DOWNSTREAM} for session {result.session}",
        batch and batch["state"],
        "success" if row.loaded else None,
    )
    must(
        f"the usage of session {result.session} in the database",
        loaded(stage, result.session),
        expected(session) if row.loaded else (),
    )
    return result


def _after_callout(stage: Stage, played: Played, row: Row, session_id: str) -> float | None:
    """Return the seconds from the callout of a session's end to the start of the Dag run that it started."""
    told = stage.simulator.log("callout", session_id=session_id, status=row.status, code=200)
    if not (played.scene.scheduled_on and told):
        return None
    run = stage.airflow.run(played.scene.dag_id, played.run_id)
    return (datetime.fromisoformat(run["start_date"]) - datetime.fromisoformat(told[0]["time"])).total_seconds()


class _Must:
    def __init__(self, problems: list[str]) -> None:
        self._problems = problems

    def __call__(self, what: str, seen: object, wanted: object) -> None:
        if seen != wanted:
            self._problems.append(f"{what}: {seen!r}, expected {wanted!r}")


def expected(session: dict[str, Any]) -> tuple[int, ...]:
    """Return the simulator's output of a session: records, errors, and so many rows of each kind."""
    return (session["records"], session["errors"], session["records"], session["errors"])


def loaded(stage: Stage, session_id: str) -> tuple[int, ...]:
    """Return what the database contains of a session: the counts, and the rows of each kind; empty for nothing."""
    counts = stage.rows("SELECT output_count, error_count FROM usage_session WHERE session_id = ?", session_id)
    kinds = dict(stage.rows("SELECT kind, COUNT(*) FROM usage_record WHERE session_id = ? GROUP BY kind", session_id))
    return (*counts[0], kinds.get("SAMPLE", 0), kinds.get("ERROR", 0)) if counts else ()
