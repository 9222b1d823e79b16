"""The example Dags on a real Airflow: each run ends as the demo expects, and a wrong one is detected."""

from __future__ import annotations

import re
from dataclasses import replace
from typing import TYPE_CHECKING

import pytest

from demo.play import expected, loaded, play
from demo.scenes import SCENES
from testkit.stage import PROJECT

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from demo.play import Played
    from testkit.stage import Stage
    from tests.unit.statsd import StatsdServer


@pytest.fixture(scope="module")
def played(stage: Stage) -> dict[int, Played]:
    """Play all scenes of the demo at once."""
    return dict(enumerate(play(stage, SCENES, lambda _: None)))


@pytest.mark.parametrize("number", range(len(SCENES)), ids=[f"{scene.dag_id}-{scene.shows}" for scene in SCENES])
def test_each_scene_ends_as_expected(played: dict[int, Played], number: int) -> None:
    assert len(played[number].results) == len(SCENES[number].rows)
    assert [problem for result in played[number].results for problem in result.problems] == []


def test_a_wrong_branch_is_detected(stage: Stage, played: dict[int, Played]) -> None:
    del played  # not at the same time as the right ones: it uses their meters
    scene = next(each for each in SCENES if each.dag_id == "run_and_branch" and each.shows == "COMPLETED")
    meter = "20000"
    settings = {"script": [["RUNNING", 4], ["COMPLETED", 0]]}
    rows = tuple(replace(row, meter=meter) for row in scene.rows)
    wrong = replace(scene, dag_id="wrong_branch", conf={"meter_id": meter}, meters={meter: settings}, rows=rows)
    (result,) = play(stage, [wrong], lambda _: None)[0].results
    assert any("task load_usage" in problem and "'skipped'" in problem for problem in result.problems)
    assert any("in the database" in problem for problem in result.problems)


def test_loading_a_session_again_leaves_the_same_rows(stage: Stage, played: dict[int, Played]) -> None:
    result = played[0].results[0]
    session = next(each for each in stage.simulator.sessions("1001") if each["session_id"] == result.session)
    before = stage.rows("SELECT * FROM usage_record WHERE session_id = ? ORDER BY kind, event_id", result.session)
    assert len(before) == session["records"] + session["errors"] > 0

    airflow = stage.airflow
    cleared = airflow.clear("run_and_branch", played[0].run_id, ["load_usage"])
    assert cleared == ["load_usage"]
    airflow.wait_success("run_and_branch", played[0].run_id)
    runs = [run for run in airflow.runs("usage_batch") if run["conf"]["session_id"] == result.session]
    assert len(runs) == 1
    airflow.wait_success("usage_batch", runs[0]["dag_run_id"])
    airflow.wait_success("usage_batch", airflow.trigger("usage_batch", runs[0]["conf"]))

    after = stage.rows("SELECT * FROM usage_record WHERE session_id = ? ORDER BY kind, event_id", result.session)
    assert after == before
    assert loaded(stage, result.session) == expected(session)


def test_the_dag_of_the_readme_works(
    stage: Stage, meter: Callable[..., str], add_dags: Callable[[Mapping[str, str]], None]
) -> None:
    source, _ = re.findall(r"```python\n(.*?)```", (PROJECT / "README.md").read_text(), re.DOTALL)
    meter_id = meter(script=[["RUNNING", 4], ["COMPLETED", 0]], records=8)
    shown = '@dag(schedule="@hourly")\ndef hourly_usage() -> None:'
    assert shown in source
    # By hand instead of on the hour, at the simulator's pace, and on a meter that no other test uses.
    mine = source.replace(shown, "@dag(schedule=None)\ndef hourly_usage() -> None:").replace('"1001"', f'"{meter_id}"')
    mine = mine.replace("fail_on=()", "fail_on=(), poke_interval=3, settle=3, retries=2, retry_delay=1")
    add_dags({"hourly_usage": mine})
    run_id = stage.airflow.trigger("hourly_usage")
    stage.airflow.wait_success("hourly_usage", run_id)
    (session,) = stage.simulator.sessions(meter_id)
    (batch,) = [run for run in stage.airflow.runs("usage_batch") if run["conf"]["session_id"] == session["session_id"]]
    stage.airflow.wait_success("usage_batch", batch["dag_run_id"])
    assert loaded(stage, session["session_id"]) == expected(session) == (8, 0, 8, 0)


def test_nothing_that_was_left_has_a_secret(stage: Stage, statsd: StatsdServer, played: dict[int, Played]) -> None:
    """Neither logs of processes and tasks, nor the database (XComs, trigger arguments, audit log), nor a metric."""
    del played
    left = {str(file.relative_to(stage.root)): file for file in stage.root.rglob("*") if file.is_file()}
    logs = stage.airflow.home / "logs"
    for where in (stage.airflow.root, logs, stage.airflow.home / "airflow.db"):
        files = [where] if where.is_file() else [file for file in left.values() if where in file.parents]
        assert any(b"mediation_default" in file.read_bytes() for file in files), where
    metrics = "\n".join(statsd.lines()).encode()
    found = [
        f"{name}: {what}"
        for name, content in (*((name, file.read_bytes()) for name, file in left.items()), ("metrics", metrics))
        for what, secret in stage.secrets.items()
        if secret in content
    ]
    assert found == []
