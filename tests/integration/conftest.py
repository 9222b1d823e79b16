"""One real Airflow, one simulator and one database for all integration tests of a session.

`stage.airflow` starts, stops and queries Airflow (`trigger`, `wait_run`, `task_instances`, `logs`, `clear`, `pids`,
`stop`, `start` ...), `stage.simulator` controls the simulated tenant and has the log of its requests. Tests share the
tenant, so each uses a meter of its own: the `meter` fixture. Dags of tests are in `dags/` beside this file, or created
by `add_dags`.
"""

from __future__ import annotations

import itertools
import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from demo.scenes import SCENES
from testkit.stage import PROJECT, Stage
from tests.unit.statsd import StatsdServer

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

_meters = itertools.count(20_001)
# Its sessions send callouts, as those of the examples' meters do.
METER_WITH_CALLOUTS = "1901"
# A lost process is missed soon, and a task that was marked or cleared soon receives it.
ENV = {
    "AIRFLOW__CORE__PARALLELISM": "14",
    "AIRFLOW__TRIGGERER__TRIGGERER_HEALTH_CHECK_THRESHOLD": "8",
    "AIRFLOW__SCHEDULER__TASK_INSTANCE_HEARTBEAT_TIMEOUT": "20",
    "AIRFLOW__SCHEDULER__TASK_INSTANCE_HEARTBEAT_TIMEOUT_DETECTION_INTERVAL": "4",
    "AIRFLOW__WORKERS__MIN_HEARTBEAT_INTERVAL": "2",
    # Only these meters send callouts; all other tests are about polls, at their own intervals.
    "AIRFLOW__MEDIATION__CROSS_CHECK_INTERVAL": "1",
}


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark the tests on the Airflow that all share: `make test` runs the others beside them."""
    for item in items:
        if item.path.is_relative_to(Path(__file__).parent) and stage.__name__ in getattr(item, "fixturenames", ()):
            item.add_marker("shared_airflow")


@pytest.fixture(scope="session")
def statsd() -> Iterator[StatsdServer]:
    """Run the server to which Airflow's metrics are sent."""
    server = StatsdServer()
    yield server
    server.close()


@pytest.fixture(scope="session")
def stage(tmp_path_factory: pytest.TempPathFactory, statsd: StatsdServer, sqlite_template: Path) -> Iterator[Stage]:
    """Run simulator and Airflow with the example Dags and those of the tests; removed at the end."""
    root = tmp_path_factory.mktemp("stage")
    dags = tmp_path_factory.mktemp("dags")
    for source in (PROJECT / "dags", Path(__file__).parent / "dags"):
        for file in source.glob("*.py"):
            shutil.copy(file, dags)
    (dags / "wrong_branch.py").write_text(_with_branches_swapped((PROJECT / "dags" / "run_and_branch.py").read_text()))
    # One meter for each test may run at the same time as those of the examples.
    calling_out = {row.meter for scene in SCENES for row in scene.rows} | {METER_WITH_CALLOUTS}
    with Stage(root, dags, calling_out=calling_out, env={**ENV, **statsd.settings}, migrated=sqlite_template) as stage:
        stage.simulator.call("POST", "/config", json={"max_running_meters": 60})
        yield stage


@pytest.fixture
def add_dags(stage: Stage) -> Callable[[Mapping[str, str]], None]:
    """Add Dags to Airflow: `add_dags({dag_id: source})` returns when Airflow has parsed them."""

    def add(sources: Mapping[str, str]) -> None:
        for dag_id, source in sources.items():
            (stage.dags / f"{dag_id}.py").write_text(source)
        stage.airflow.wait_dags(sources.keys())

    return add


@pytest.fixture
def meter(stage: Stage) -> Callable[..., str]:
    """Create a meter that no other test uses: `meter(script=[["RUNNING", 5], ["COMPLETED", 0]])` returns its id."""

    def make(**settings: Any) -> str:
        meter_id = str(next(_meters))
        stage.simulator.meter(meter_id, **settings)
        return meter_id

    return make


def _with_branches_swapped(source: str) -> str:
    wrong = source.replace("run_and_branch", "wrong_branch")
    wrong = wrong.replace('on_completed="load_usage"', 'on_completed="summary"')
    wrong = wrong.replace('on_failed="summary"', 'on_failed="load_usage"')
    assert wrong.count('"summary"') == source.count('"summary"')
    assert wrong != source.replace("run_and_branch", "wrong_branch")
    return wrong
