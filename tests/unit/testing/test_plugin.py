"""The pytest plugin, in a project outside of the repository: the one that `docs/testing.md` prints.

The project has the Dags that the pages in `docs/howto` print, too, and runs them.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path
from xml.etree import ElementTree

import pytest

ROOT = Path(__file__).parents[3]
PAGE = (ROOT / "docs" / "testing.md").read_text()
HOW_TO = "\n".join(page.read_text() for page in sorted((ROOT / "docs" / "howto").glob("*.md")))
OURS = "airflow_mediation_provider"
FILE = re.compile(r"^`([\w./]+)`[^\n]*:\n\n```\w+\n(.*?)```", re.DOTALL | re.MULTILINE)

MORE = """
import pytest
from airflow import settings
from sqlalchemy import create_engine, inspect, text

from airflow_mediation_provider.journal.manager import MediationDBManager
from airflow_mediation_provider.testing.database import _HEAD as HEAD
from each_session import each_session
from usage import usage


def test_the_tables_of_the_journal_are_made_if_they_are_missing(request):
    with settings.engine.begin() as connection, settings.Session() as session:
        MediationDBManager(session).drop_tables(connection)
    assert not inspect(settings.engine).has_table("mediation_session")
    request.getfixturevalue("mediation_journal")
    assert inspect(settings.engine).has_table("mediation_session")


def test_tables_of_another_version_are_named(request):
    with settings.engine.begin() as connection:
        connection.execute(text("UPDATE mediation_alembic_version SET version_num = '0001'"))
    try:
        with pytest.raises(pytest.fail.Exception, match="^the journal's tables are of another version: run"):
            request.getfixturevalue("mediation_run")
    finally:
        with settings.engine.begin() as connection:
            connection.execute(text(f"UPDATE mediation_alembic_version SET version_num = '{HEAD}'"))


@pytest.mark.parametrize("fixture", ["mediation_journal", "mediation_run"])
def test_without_the_tables_of_airflow_a_sentence_names_the_command(fixture, request, monkeypatch):
    monkeypatch.setattr(settings, "engine", create_engine("sqlite://"))
    with pytest.raises(pytest.fail.Exception, match="^Airflow's database sqlite:// has no tables: run"):
        request.getfixturevalue(fixture)


def test_a_dag_of_another_folder_is_named(mediation_run):
    dag = each_session()
    dag.dag_id = "elsewhere"
    with pytest.raises(ValueError, match="^Dag 'elsewhere' is not in the Dags folder"):
        mediation_run(dag, {"meter_id": "1001", "session_id": "R-1", "status": "FAILED"})


def test_a_run_has_all_sessions_that_started_it(mediation_run):
    again = [{"meter_id": "1001", "session_id": "R-1", "status": status} for status in ("FAILED", "COMPLETED")]
    run = mediation_run(each_session(), *again)
    assert run.partition_key == "R-1"
    assert run.logical_date is None
    assert run.get_task_instance("note").xcom_pull(task_ids="note") == "R-1 is COMPLETED"


def test_an_unknown_meter_fails_the_task(mediation_connection):
    dag = usage()
    dag.get_task("run").meter_id = "4711"
    run = dag.test()
    assert run.state == "failed"


def test_an_unknown_session_is_refused(mediation_journal):
    with pytest.raises(ValueError, match="started no session 'R-1'"):
        mediation_journal.session("R-1", "COMPLETED")


def test_a_callout_that_is_lost_is_named(mediation_journal, mediation_simulator):
    mediation_simulator.callouts()
    started = mediation_simulator.start_session("1001", script=[["COMPLETED", None]])
    with pytest.raises(TimeoutError, match=f"no callout of {started['session_id']} in COMPLETED"):
        mediation_journal.session(started["session_id"], "COMPLETED")
"""

OF_HOW_TO = """
from evening_stop import evening_stop
from export_errors import export_errors
from meter_status import meter_status


def run_fast(dag):
    for task in dag.tasks:
        task.poke_interval = 0.1
        task.settle = 0
    return dag.test()


def test_errors_are_exported(mediation_simulator, mediation_connection):
    run = run_fast(export_errors())
    assert run.state == "success"
    exported = run.get_task_instance("export").xcom_pull(task_ids="export")
    assert exported["count"] == 12
    assert exported["files"]


def test_a_meter_is_stopped(mediation_simulator, mediation_connection):
    mediation_simulator.start_session("1004")
    run = run_fast(evening_stop())
    assert run.state == "success"
    stopped = run.get_task_instance("stop").xcom_pull(task_ids="stop")
    assert (stopped["status"], stopped["was_running"], stopped["forced"]) == ("PAUSED", True, False)


def test_a_task_calls_zuora_by_itself(mediation_simulator, mediation_connection):
    run = meter_status().test()
    assert run.state == "success"
    assert run.get_task_instance("status").xcom_pull(task_ids="status") == "NEVER_RUN"
"""

OVERRIDDEN = """

def test_the_overridden_fixtures_are_used(mediation_connection, mediation_simulator):
    assert mediation_connection == "zuora_sandbox"
    assert [meter["id"] for meter in mediation_simulator.health()["meters"]] == ["2001"]
"""


def blocks(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", PAGE, re.DOTALL)


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory, sqlite_template: Path) -> Path:
    """The files of the page, in a directory of their own, with a database; the package is installed as the plugin."""
    project = tmp_path_factory.mktemp("project")
    files = dict(FILE.findall(PAGE))
    assert len(files) == 6
    of_how_to = dict(FILE.findall(HOW_TO))
    assert len(of_how_to) == HOW_TO.count("```python")
    files |= of_how_to
    files["tests/test_how_to.py"] = OF_HOW_TO
    files["tests/test_more.py"] = MORE
    files["tests/overridden/test_overridden.py"] = blocks("python")[-1] + OVERRIDDEN
    plugins = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["entry-points"]["pytest11"]
    # The environment of these tests may have been made before the package had the plugin.
    files["installed/plugin_of_this_test-1.dist-info/METADATA"] = "Name: plugin-of-this-test\nVersion: 1\n"
    files["installed/plugin_of_this_test-1.dist-info/entry_points.txt"] = "\n".join(
        ["[pytest11]", *(f"{name} = {module}" for name, module in plugins.items())]
    )
    for name, text in files.items():
        file = project / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text)
    (project / ".airflow").mkdir()
    shutil.copy(sqlite_template, project / ".airflow" / "airflow.db")
    return project


def test_each_test_of_the_page_passes(project: Path) -> None:
    (commands,) = blocks("console")
    exports = "\n".join(re.findall(r"^\$ (export .*)$", commands, re.MULTILINE))
    done = subprocess.run(
        ["bash", "-c", f"{exports}\nexec {sys.executable} -m pytest -p no:cacheprovider --junitxml=result.xml"],
        cwd=project,
        env={"PATH": os.defpath, "HOME": str(project), "PYTHONPATH": os.pathsep.join(["installed", str(ROOT)])},
        capture_output=True,
        text=True,
        timeout=240,
    )
    assert done.returncode == 0, done.stdout[-20_000:] + done.stderr[-5_000:]
    cases = ElementTree.parse(project / "result.xml").iter("testcase")
    tests = re.findall("^def test_", PAGE + MORE + OF_HOW_TO + OVERRIDDEN, re.MULTILINE)
    assert sum(1 for _ in cases) == len(tests) + 1


@pytest.mark.services
def test_the_plugin_imports_nothing_that_pytest_has_not_imported() -> None:
    """Pytest imports it in each run of each project of the environment."""
    probe = f"""
import json, sys
import pytest
before = set(sys.modules)
import {OURS}.testing.plugin
print(json.dumps(sorted(set(sys.modules) - before)))
"""
    done = subprocess.run([sys.executable, "-c", probe], capture_output=True, text=True, check=True, timeout=60)
    added = [name for name in json.loads(done.stdout) if name not in sys.stdlib_module_names]
    assert added == [OURS, f"{OURS}.testing", f"{OURS}.testing.plugin"]


def test_the_page_names_each_fixture() -> None:
    from airflow_mediation_provider.testing import plugin

    fixtures = {name for name in vars(plugin) if name.startswith("mediation_")}
    assert set(re.findall(r"^\| `(\w+)`", PAGE, re.MULTILINE)) == fixtures
