"""Which results the demo accepts, and which it reports as wrong, without any Airflow."""

from __future__ import annotations

from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import pytest

from demo import __main__ as demo
from demo.play import play
from demo.scenes import Row, Scene

if TYPE_CHECKING:
    from pathlib import Path

SCENE = Scene(
    dag_id="example",
    shows="COMPLETED",
    rows=(Row(meter="7", status="COMPLETED", taken={"load": "success"}, not_taken=("alert",), loaded=True),),
)
STARTED_BY_A_CALLOUT = Scene(
    dag_id="example",
    shows="a callout starts it",
    scheduled_on="7",
    rows=(Row(meter="7", status="COMPLETED", taken={"load": "success"}, loaded=True),),
)
SESSION = {"session_id": "R-1", "status": "COMPLETED", "run_type": "NORMAL", "records": 3, "errors": 1}
BATCH = {"dag_run_id": "b", "state": "success", "conf": {"session_id": "R-1"}}


def stage(**changes: Any) -> Any:
    """A stage with the expected results, except for the changes."""
    seen: dict[str, Any] = {
        "tasks": {"load": "success", "alert": "skipped"},
        "run": "success",
        "sessions": [SESSION],
        "batches": [BATCH],
        "counts": [(3, 1)],
        "kinds": [("SAMPLE", 3), ("ERROR", 1)],
        "callouts": [],
        "room": ["R-1"],
        "runs": [],
        **changes,
    }
    return SimpleNamespace(
        airflow=SimpleNamespace(
            url="http://airflow",
            wait_dags=lambda _: None,
            trigger=lambda *_: "run",
            task_states=lambda *_: seen["tasks"],
            run=lambda *_: {"state": seen["run"], "start_date": "2026-03-31T12:00:01.500000Z"},
            runs=lambda dag_id: seen["runs"].pop(0) if dag_id == "example" else seen["batches"],
        ),
        simulator=SimpleNamespace(
            url="http://simulator",
            sessions=lambda _: seen["sessions"],
            start_session_if_room=lambda _: seen["room"].pop(0),
            log=lambda *_, **__: seen["callouts"],
        ),
        rows=lambda query, *_: seen["counts"] if "usage_session" in query else seen["kinds"],
        start=lambda: None,
        close=lambda: None,
    )


def problems(**changes: Any) -> list[str]:
    (played,) = play(stage(**changes), [SCENE], lambda _: None)
    return played.results[0].problems


def test_expected_results_are_no_problems() -> None:
    assert problems() == []


@pytest.mark.parametrize(
    ("changes", "reported"),
    [
        ({"tasks": {"load": "skipped", "alert": "success"}}, "task load"),
        ({"tasks": {"load": "success", "alert": "success"}}, "task alert"),
        ({"tasks": {"load": "success"}}, "task alert"),
        ({"run": "failed"}, "the run of example"),
        ({"sessions": [SESSION, {**SESSION, "session_id": "R-2"}]}, "sessions of meter 7: 2"),
        ({"sessions": []}, "sessions of meter 7: 0"),
        ({"sessions": [{**SESSION, "status": "FAILED"}]}, "the status of session R-1"),
        ({"batches": []}, "the run of usage_batch"),
        ({"batches": [{**BATCH, "state": "failed"}]}, "the run of usage_batch"),
        ({"counts": []}, "the usage of session R-1"),
        ({"counts": [(2, 1)]}, "the usage of session R-1"),
        ({"kinds": [("SAMPLE", 3), ("ERROR", 2)]}, "the usage of session R-1"),
    ],
)
def test_each_unexpected_result_is_reported(changes: dict[str, Any], reported: str) -> None:
    assert any(problem.startswith(reported) for problem in problems(**changes))


def test_a_run_that_a_callout_starts_is_matched_with_its_session() -> None:
    runs = [{"dag_run_id": "old", "partition_key": "R-0"}, {"dag_run_id": "new", "partition_key": "R-1"}]
    # Five meters run at first, and the session has started before it ends.
    seen = stage(
        room=[None, "R-1"],
        runs=[runs[:1], runs[:1], runs],
        tasks={"load": "success"},
        callouts=[{"time": "2026-03-31T12:00:00+00:00"}],
    )

    (played,) = play(seen, [STARTED_BY_A_CALLOUT], lambda _: None)

    assert played.run_id == "new"
    assert played.results[0].problems == []
    assert played.results[0].after_callout == 1.5


@pytest.mark.parametrize(("changes", "code"), [({}, 0), ({"run": "failed"}, 1)])
def test_the_exit_code_is_1_if_a_result_is_unexpected(
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
    changes: dict[str, Any],
    code: int,
) -> None:
    monkeypatch.setattr(demo, "Stage", lambda _: stage(**changes))
    monkeypatch.setattr(demo, "SCENES", [SCENE])
    monkeypatch.setattr("signal.signal", lambda *_: None)
    assert demo.main(["--root", str(tmp_path)]) == code
    assert ("1 wrong" in capsys.readouterr().out) == bool(code)
