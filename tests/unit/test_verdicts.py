"""Reports of ends that tasks concluded from polls: by the process in which the try ends, once, and for no other end."""

from __future__ import annotations

from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import pytest

from airflow_mediation_provider.feed.reports import WaitingTask, verdict, wait_id
from tests.unit.fast_lane import modes
from tests.unit.test_outcomes import MODES, sensor
from tests.unit.virtual import EPOCH
from tests.unit.virtual_feed import AsyncFeed, Journal, SyncFeed

if TYPE_CHECKING:
    from tests.unit.task_stage import Stage

with_each_mode = pytest.mark.parametrize("mode", modes(MODES))
RUN = [(10, "INITIALIZING"), (40, "RUNNING")]
TASK = WaitingTask("dag", "run", "wait", -1, 1)


@pytest.fixture
def journal(stage: Stage) -> Journal:
    """A connection that takes no callouts."""
    stage.journal = Journal(stage.clock, callouts=False)
    return stage.journal


@with_each_mode
@pytest.mark.parametrize(("status", "state"), [("COMPLETED", "success"), ("FAILED", "failed"), ("CANCELED", "failed")])
def test_an_end_by_polls_is_reported_by_the_process_that_ends_the_try(
    stage: Stage, journal: Journal, mode: str, status: str, state: str
):
    stage.zuora.script("m", (0, "COMPLETED"), *RUN, (854, status))
    ending = stage.play(sensor(mode, session_id="S-1"))
    assert ending.state == state
    (found,) = journal.verdicts
    assert (found.session_id, found.meter_id, found.status, found.certain) == ("S-1", "m", status, False)
    assert found.mode == ("worker" if ending.on_worker else "triggerer")
    assert found.ti_id == str(stage.id)
    assert found.wait_id == wait_id("mediation_default", TASK)
    assert (found.dag_id, found.run_id, found.task_id, found.map_index) == TASK[:4]
    session = ending.xcom or ending.error.session  # type: ignore[union-attr]
    assert found.at.isoformat() == session["observed_at"]
    (end,) = journal.ended.values()
    assert (end.status, end.evidence, end.certain) == (status, "poll", False)


@with_each_mode
def test_an_end_that_polls_prove_is_reported_as_certain(stage: Stage, journal: Journal, mode: str):
    stage.zuora.script("m", (0, "COMPLETED"), *RUN, (854, "FAILED"))
    stage.play(sensor(mode, exclusive=True, fail_on=[], statuses=["FAILED", "COMPLETED", "CANCELED"]))
    (found,) = journal.verdicts
    assert (found.status, found.certain, found.session_id) == ("FAILED", True, None)


@with_each_mode
def test_an_end_that_is_too_uncertain_for_the_task_is_reported(stage: Stage, journal: Journal, mode: str):
    stage.zuora.script("m", (0, "COMPLETED"), *RUN, (854, "COMPLETED"))
    ending = stage.play(sensor(mode, session_id="S-1", require_certain=True))
    assert ending.state == "failed"
    assert [(each.status, each.certain, each.mode) for each in journal.verdicts] == [("COMPLETED", False, "worker")]


@with_each_mode
@pytest.mark.parametrize(
    ("callouts", "arguments"),
    [(True, {}), (False, {"statuses": ["RUNNING"]}), (False, {"timeout": 300})],
    ids=["by a callout", "not terminal", "timed out"],
)
def test_other_ends_of_a_wait_make_no_verdict(
    stage: Stage, journal: Journal, mode: str, callouts: bool, arguments: dict[str, Any]
):
    journal.callouts = callouts
    if callouts:
        journal.session("S-1", *RUN, (854, "COMPLETED"))
    stage.zuora.script("m", (0, "COMPLETED"), *RUN)
    ending = stage.play(sensor(mode, session_id="S-1", **arguments))
    assert ending.state == ("failed" if "timeout" in arguments else "success")
    assert journal.verdicts == []
    (end,) = journal.ended.values()
    assert (end.status, end.evidence, end.certain) == {
        True: ("COMPLETED", "callout", True),
        False: (None, None, None) if "timeout" in arguments else ("RUNNING", "poll", False),
    }[callouts]


@with_each_mode
@pytest.mark.parametrize("how", ["no answer", "an error"])
def test_a_failed_report_fails_no_try(stage: Stage, monkeypatch: pytest.MonkeyPatch, mode: str, how: str):
    if how == "an error":

        def refused(*_: Any, verdicts: Any = (), **__: Any) -> bool:
            if verdicts:
                raise ConnectionError("Connection refused")
            return True

        async def broken(*_: Any, **more: Any) -> None:
            refused(**more)

        monkeypatch.setattr(SyncFeed, "observe", refused)
        monkeypatch.setattr(AsyncFeed, "observe", broken)
        stage.journal = Journal(stage.clock, callouts=False)
    stage.zuora.script("m", (0, "COMPLETED"), *RUN, (854, "COMPLETED"))
    assert stage.play(sensor(mode, session_id="S-1")).state == "success"


@pytest.mark.parametrize(
    ("ti", "changes"),
    [
        (None, {}),
        (SimpleNamespace(id=None), {}),
        (SimpleNamespace(id=None, dag_id="dag", run_id="run", task_id="wait", map_index=-1, try_number=1), {}),
        ("whole", {"evidence": "callout"}),
        ("whole", {"evidence": "history"}),
        ("whole", {"evidence": "run"}),
        ("whole", {"status": "PAUSED"}),
    ],
)
def test_without_a_task_instance_or_an_end_by_polls_there_is_no_verdict(ti: Any, changes: dict[str, Any]):
    if ti == "whole":
        ti = SimpleNamespace(id="i", dag_id="dag", run_id="run", task_id="wait", map_index=-1, try_number=1)
    session = {
        "meter_id": "m", "session_id": "S-1", "run_type": "NORMAL", "status": "FAILED",
        "observed_at": EPOCH.isoformat(), "evidence": "poll", "certain": False, **changes,
    }  # fmt: skip
    assert verdict("zuora", ti, session, "worker") is None
    assert verdict("zuora", ti, None, "worker") is None
