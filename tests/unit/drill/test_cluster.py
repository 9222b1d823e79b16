"""The results of the drill of a cluster are kept, so that it goes on with the others; its Dag file can be imported."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

import airflow.sdk
from airflow.sdk import DAG

from airflow_mediation_provider.sensors import meter_session
from tests.drill.cluster.__main__ import NAMES, Played, Results
from tests.drill.cluster.load import KEEPS, RUNS, SENSORS, STOPS, Lateness, write_dags
from tests.drill.history import History

if TYPE_CHECKING:
    from pathlib import Path

    import pytest

PLAYED = Played(
    name="worker",
    at="2026-12-01 04:00",
    sessions=18,
    waits=24,
    changes=70,
    violations=[],
    uncertain=1,
    ours={"tasks": 24, "median": 4.4, "longest": 61.6},
    airflows={"tasks": 4, "median": 5.0, "longest": 70.0},
    over=130.2,
    restarted={},
)


def test_a_round_with_a_result_is_due_only_again(tmp_path: Path) -> None:
    kept = Results(tmp_path / "results")
    assert [each.name for each in kept.due(NAMES, again=False)] == NAMES
    kept.keep(PLAYED, History())
    later = Results(tmp_path / "results")
    assert [each.name for each in later.due(["worker", "redis"], again=False)] == ["redis"]
    assert [each.name for each in later.due(["redis", "worker"], again=True)] == ["redis", "worker"]


def test_the_table_has_each_round_and_names_those_that_did_not_run(tmp_path: Path) -> None:
    kept = Results(tmp_path)
    kept.keep(PLAYED, History())
    kept.keep(replace(PLAYED, over=99.9, violations=["run: one: did not run for R-1"]), History())
    lines = kept.table().splitlines()
    assert len(lines) == 2 + len(NAMES)
    (worker,) = (line for line in lines if "of a worker" in line)
    assert worker.endswith("| 2 | 36 | 48 | 140 | 1 | 2 | 62 (4), 62 (4) | 70 (5), 70 (5) | 130, 100 |")
    assert sum("| not run |" in line for line in lines) == len(NAMES) - 1
    assert {line.count("|") for line in lines} == {lines[0].count("|")}


def test_lateness_is_that_of_the_middle_task_and_of_the_last() -> None:
    assert Lateness.of([3.0, 60.0, 1.0]) == Lateness(3, 3.0, 60.0)
    assert Lateness.of([]) == Lateness(0, 0.0, 0.0)


def test_the_dag_file_makes_the_dags_that_the_drill_waits_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[DAG] = []

    def recorded(*args: Any, **kwargs: Any) -> DAG:
        made.append(DAG(*args, schedule=kwargs.pop("schedule"), **kwargs))
        return made[-1]

    monkeypatch.setattr(airflow.sdk, "DAG", recorded)
    monkeypatch.setattr(meter_session, "AIRFLOW_V_3_3_PLUS", True)  # the drill installs it
    expected = write_dags(tmp_path)
    exec(compile((tmp_path / "drill.py").read_text(), "drill.py", "exec"), {})
    assert {dag.dag_id for dag in made} == expected
    assert {dag.dag_id: set(dag.task_ids) for dag in made if dag.dag_id in (KEEPS, STOPS)} == {
        KEEPS: {*SENSORS, *RUNS},
        STOPS: {*SENSORS, *RUNS},
    }
    assert [task.stop_meter_on_kill for dag in made for task in dag.tasks if task.task_id in RUNS] == [
        False,
        False,
        True,
        True,
    ]
