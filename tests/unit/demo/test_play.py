"""What the demo takes for right and for wrong, without any Airflow."""

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
SESSION = {"session_id": "R-1", "status": "COMPLETED", "run_type": "NORMAL", "records": 3, "errors": 1}
BATCH = {"dag_run_id": "b", "state": "success", "conf": {"session_id": "R-1"}}


def stage(**changes: Any) -> Any:
    """A stage on which all went as it must, but for the changes."""
    seen: dict[str, Any] = {
        "tasks": {"load": "success", "alert": "skipped"},
        "run": "success",
        "sessions": [SESSION],
        "batches": [BATCH],
        "counts": [(3, 1)],
        "kinds": [("SAMPLE", 3), ("ERROR", 1)],
        **changes,
    }
    return SimpleNamespace(
        airflow=SimpleNamespace(
            url="http://airflow",
            wait_dags=lambda _: None,
            trigger=lambda *_: "run",
            task_states=lambda *_: seen["tasks"],
            run=lambda *_: {"state": seen["run"]},
            runs=lambda _: seen["batches"],
        ),
        simulator=SimpleNamespace(url="http://simulator", sessions=lambda _: seen["sessions"]),
        rows=lambda query, *_: seen["counts"] if "usage_session" in query else seen["kinds"],
        start=lambda: None,
        close=lambda: None,
    )


def problems(**changes: Any) -> list[str]:
    (played,) = play(stage(**changes), [SCENE], lambda _: None)
    return played.results[0].problems


def test_all_as_it_must_be() -> None:
    assert problems() == []


@pytest.mark.parametrize(
    ("changes", "told"),
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
def test_whatever_is_wrong_is_told(changes: dict[str, Any], told: str) -> None:
    assert any(problem.startswith(told) for problem in problems(**changes))


@pytest.mark.parametrize(("changes", "code"), [({}, 0), ({"run": "failed"}, 1)])
def test_the_exit_code_says_whether_all_is_as_it_must_be(
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
