"""Stored Dags where this package is missing: Airflow's scheduler, API server and UI read them."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import sysconfig
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from airflow.dag_processing.dagbag import BundleDagBag, sync_bag_to_db
from airflow.sdk import Asset

from airflow_mediation_provider.assets import ANY_METER, MeterSessionTimetable, on_meter_session
from testkit.stage import PROJECT
from tests.unit import airflow_alone
from tests.unit.journal.scheduling import Airflow, change, tell

if TYPE_CHECKING:
    from collections.abc import Callable

COMPLETED = "mediation://mediation_default/meters/1/COMPLETED"
SCHEDULES = {
    "one": on_meter_session("1", "COMPLETED"),
    "any": on_meter_session(ANY_METER, ["COMPLETED", "FAILED"], previous_statuses="RUNNING"),
    "history": on_meter_session("1", "COMPLETED", callout_history=60),
    "polls": on_meter_session("1", "COMPLETED", poll_interval=60),
    "either": on_meter_session("1", "COMPLETED") | on_meter_session("2", "FAILED", run_type="NORMAL"),
    "either_of_old": MeterSessionTimetable(assets=Asset(COMPLETED)) | MeterSessionTimetable(assets=Asset(COMPLETED)),
}
OLD = "stored_by_an_earlier_version"
EXAMPLES = PROJECT / "dags"


@pytest.fixture
def without_package(tmp_path: Path) -> Path:
    """A directory with everything that is installed but this package."""
    links = tmp_path / "site-packages"
    links.mkdir()
    for place in {sysconfig.get_path(name) for name in ("purelib", "platlib")}:
        for installed in Path(place).iterdir():
            if "airflow_mediation_provider" not in installed.name:
                (links / installed.name).symlink_to(installed)
    return links


def airflow_with(packages: Path) -> dict[str, Any]:
    """Return what a process finds that has these packages alone: no environment and no .pth file adds to them."""
    program = f"import runpy, sys; sys.path.append({str(packages)!r}); runpy.run_path(sys.argv[1], run_name='__main__')"
    done = subprocess.run(
        [sys.executable, "-I", "-S", "-c", program, airflow_alone.__file__],
        env={**os.environ, "AIRFLOW__CORE__SIMPLE_AUTH_MANAGER_ALL_ADMINS": "True"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return dict(json.loads(done.stdout.splitlines()[-1]))


@pytest.fixture
def examples(sqlite_database: str, airflow_on: Callable[[str], str], monkeypatch: pytest.MonkeyPatch) -> BundleDagBag:
    airflow_on(sqlite_database)
    monkeypatch.setattr(sys, "path", [*sys.path])
    return BundleDagBag(EXAMPLES, bundle_path=EXAMPLES, bundle_name="dags")


def test_stored_dags_are_read_and_scheduled_without_this_package(examples: BundleDagBag, without_package: Path) -> None:
    airflow = Airflow()
    for dag_id, schedule in SCHEDULES.items():
        airflow.know(dag_id, schedule)
    assert examples.import_errors == {}
    sync_bag_to_db(examples, "dags", None)
    for dag_id in examples.dags:
        airflow.pause(dag_id, paused=False)
    airflow.know(OLD, MeterSessionTimetable(assets=Asset(COMPLETED)), paused=True)
    tell(change("R-1", "COMPLETED"))
    airflow.schedule()
    tell(change("R-2", "COMPLETED"))

    found = airflow_with(without_package)

    replies = {path: reply for path, (status, reply) in found["replies"].items() if status == 200}
    # Only what an earlier version stored needs this package. The lists have it nevertheless.
    refused = found["replies"].keys() - replies.keys()
    assert {path for path in refused if OLD not in path} == set()
    assert f"/api/v2/dags/{OLD}/details" in refused
    assert {dag["dag_id"] for dag in json.loads(replies["/api/v2/dags"])["dags"]} == {*SCHEDULES, *examples.dags, OLD}
    assert "MeterSessionTimetable" not in replies["/api/v2/plugins"]
    for dag_id in SCHEDULES:
        runs = [(key, state) for dag, key, state in found["runs"] if dag == dag_id]
        assert [key for key, _ in runs] == ["R-1", "R-2"]
        assert {state for _, state in runs} <= {"running", "success"}
        assert [task for task in found["tasks"] if task[0] == dag_id] == [[dag_id, "success"]] * 2
        details = json.loads(replies[f"/api/v2/dags/{dag_id}/details"])
        assert (details["timetable_summary"], details["timetable_partitioned"]) == ("Partitioned Asset", True)
        assert "mediation://mediation_default/meters/" in json.dumps(details["asset_expression"])
    for dag_id, dag in examples.dags.items():
        nodes = json.loads(replies[f"/ui/structure/structure_data?dag_id={dag_id}"])["nodes"]
        assert {node["id"] for node in nodes} >= {task for task in dag.task_ids if "." not in task}
    assert {dag_id for dag_id, _ in found["tasks"]} > set(SCHEDULES)
