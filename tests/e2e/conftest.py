"""Real logins on one real Airflow, an API server beside it with the FAB auth manager, and a browser for both.

`screen("op")` is a tab of the browser in which that user is logged in. A test fails if its tabs recorded an error or a
request that leaves Airflow. All tests share the tenant, so each takes a meter of its own: the `meter` fixture.
"""

from __future__ import annotations

import itertools
import json
import shutil
import sys
from typing import TYPE_CHECKING, Any

import pytest

from demo.scenes import SCENES
from testkit.browser import chromium
from testkit.stack import AirflowStack
from testkit.stage import PROJECT, Stage
from tests.e2e import people
from tests.e2e.scene import Scene, play
from tests.e2e.screen import Screen

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from playwright.sync_api import Browser, BrowserContext

_meters = itertools.count(60_001)
# Connections whose sessions end without a callout: it takes none (the README's), or all of them are lost.
POLLS_CONN = "mediation_polls"
LOST_CONN = "mediation_lost"
# A Dag that only one test pauses and unpauses, scheduled on a meter of its own. Its task needs no worker.
NIGHTLY, NIGHTLY_METER = "nightly_load", "60801"
NIGHTLY_DAG = f"""
from airflow.providers.standard.operators.empty import EmptyOperator
from airflow.sdk import DAG

from airflow_mediation_provider.assets import on_meter_session

with DAG("{NIGHTLY}", schedule=on_meter_session("{NIGHTLY_METER}", "COMPLETED")):
    EmptyOperator(task_id="load")
"""
FAB_MANAGER = "airflow.providers.fab.auth_manager.fab_auth_manager.FabAuthManager"


@pytest.fixture(scope="package")
def stage(tmp_path_factory: pytest.TempPathFactory, sqlite_template: Path) -> Iterator[Stage]:
    """Simulator and Airflow with the example Dags, with passwords."""
    passwords = tmp_path_factory.mktemp("users") / "passwords.json"
    passwords.write_text(json.dumps({user: people.password(user) for user in people.SIMPLE}))
    env = {
        "AIRFLOW__CORE__SIMPLE_AUTH_MANAGER_USERS": ",".join(":".join(each) for each in people.SIMPLE.items()),
        "AIRFLOW__CORE__SIMPLE_AUTH_MANAGER_PASSWORDS_FILE": str(passwords),
        # If all callouts are lost, polls find the end soon.
        "AIRFLOW__MEDIATION__CROSS_CHECK_INTERVAL": "3",
    }
    dags = tmp_path_factory.mktemp("dags")
    for file in (PROJECT / "dags").glob("*.py"):
        # Its runs request the errors of each session that fails, beside the requests that a test counts.
        if file.stem != "alert_any_meter":
            shutil.copy(file, dags)
    for conn_id in (POLLS_CONN, LOST_CONN):
        (dags / f"{conn_id}.py").write_text(_over(conn_id, (dags / "run_and_branch.py").read_text()))
    (dags / f"{NIGHTLY}.py").write_text(NIGHTLY_DAG)
    root, login = tmp_path_factory.mktemp("stage"), people.login(people.ADMIN)
    with Stage(root, dags, env=env, login=login, migrated=sqlite_template) as stage:
        stage.simulator.call("POST", "/config", json={"max_running_meters": 60})
        for scene in SCENES:
            for meter_id, settings in scene.meters.items():
                stage.simulator.meter(meter_id, **settings)
        yield stage


@pytest.fixture(scope="package")
def fab(stage: Stage, tmp_path_factory: pytest.TempPathFactory) -> Iterator[AirflowStack]:
    """An API server on the same database with the FAB auth manager, and below a base path, as behind many proxies."""
    env = {name: value for name, value in stage.airflow.processes.env.items() if name.startswith("AIRFLOW_CONN_")}
    with AirflowStack(
        tmp_path_factory.mktemp("fab"),
        PROJECT / "dags",
        {**env, "AIRFLOW__CORE__AUTH_MANAGER": FAB_MANAGER, "AIRFLOW__FAB__AUTH_RATE_LIMITED": "False"},
        database=stage.airflow.processes.env["AIRFLOW__DATABASE__SQL_ALCHEMY_CONN"],
        components=("api-server",),
        base_path="/airflow",
        login=people.login(people.ADMIN),
    ) as stack:
        stack.processes.run("users", [sys.executable, people.__file__], timeout=90)
        yield stack


@pytest.fixture(scope="package")
def scene(stage: Stage) -> Scene:
    """A session that triggered a run of one Dag, and that a task of another one waited for."""
    return play(stage)


@pytest.fixture(scope="package")
def browser() -> Iterator[Browser]:
    """The browser; each user has a context of its own in it, as in a separate window."""
    with chromium() as browser:
        yield browser


@pytest.fixture(scope="package")
def _contexts() -> dict[tuple[str, str], BrowserContext]:
    return {}


@pytest.fixture
def screen(
    request: pytest.FixtureRequest, browser: Browser, stage: Stage, _contexts: dict[tuple[str, str], BrowserContext]
) -> Iterator[Callable[..., Screen]]:
    """Open a tab for a user: `screen("viewer")`; for one of FAB `screen("narrow", fab=True)`; `None` is logged out.

    With settings of the browser (`viewport`, `color_scheme` ...) it is in a window of its own.
    """
    screens: list[Screen] = []
    own: list[BrowserContext] = []

    def make(user: str | None = people.ADMIN, *, fab: bool = False, **settings: Any) -> Screen:
        airflow: AirflowStack = request.getfixturevalue("fab") if fab else stage.airflow
        key = (airflow.url, user or "")
        if settings or user is None or key not in _contexts:
            context = browser.new_context(**{"viewport": {"width": 1400, "height": 1000}, **settings})
            if user is not None:
                context.add_cookies([people.cookie(airflow, user)])
            if settings or user is None:
                own.append(context)
            else:
                _contexts[key] = context
        else:
            context = _contexts[key]
        screens.append(Screen(context, airflow.url))
        return screens[-1]

    yield make
    wrong = [each for screen in screens for each in screen.wrong]
    for screen in screens:
        screen.page.close()
    for context in own:
        context.close()
    assert wrong == []


@pytest.fixture
def meter(stage: Stage) -> Callable[..., str]:
    """Make a meter that no other test uses: `meter(script=[["RUNNING", 5], ["COMPLETED", 0]])` returns its id."""

    def make(**settings: Any) -> str:
        meter_id = str(next(_meters))
        stage.simulator.meter(meter_id, **settings)
        return meter_id

    return make


@pytest.fixture
def become(stage: Stage) -> Callable[[str, str], None]:
    """Let a session change to a status, of which the simulator sends a callout: `become(session_id, "COMPLETED")`."""

    def to(session_id: str, status: str) -> None:
        stage.simulator.call("POST", f"/sessions/{session_id}", json={"script": [[status, None]]})

    return to


def _over(conn_id: str, source: str) -> str:
    """Return the example Dag ``run_and_branch`` under the name of a connection, and over it."""
    renamed = source.replace("run_and_branch", conn_id)
    over = renamed.replace("default_args={", f'default_args={{"mediation_conn_id": "{conn_id}", ')
    assert over != renamed != source
    return over
