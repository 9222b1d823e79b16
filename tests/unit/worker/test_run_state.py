"""The stored state of a run: it survives JSON and other versions, and its keys differ where they must."""

from __future__ import annotations

import json
from dataclasses import replace
from datetime import UTC, datetime
from typing import Any

import pytest

from airflow_mediation_provider.tasks.state import TaskState, Tries
from airflow_mediation_provider.worker.run_state import (
    CLEARED,
    STATE_KEY,
    KeptRun,
    RunPhase,
    RunState,
    derived_generation,
    unique_key,
    why_new_generation,
)

REQUEST = {"meter_id": "1001", "version": "0.0.1", "run_type": "NORMAL"}
STATE = RunState(
    generation="g",
    max_tries=2,
    retries=2,
    mediation_conn_id="c",
    request=REQUEST,
    unique_key="k",
    phase=RunPhase.STARTED,
    called_at=datetime(2026, 1, 1, tzinfo=UTC),
    baseline="COMPLETED",
    session={"session_id": "R-1"},
)


def test_a_state_survives_json() -> None:
    assert RunState.from_dict(json.loads(json.dumps(STATE.to_dict()))) == STATE


def test_a_state_of_another_version_loads() -> None:
    data = {**STATE.to_dict(), "from_the_future": 1, "version": 7}
    del data["baseline"]
    assert RunState.from_dict(data) == replace(STATE, baseline=None, version=7)


def test_a_state_of_an_old_version_still_loads() -> None:
    kept = {
        "generation": "0199",
        "max_tries": 2,
        "mediation_conn_id": "mediation_default",
        "request": {"meter_id": "1001", "version": "0.0.1", "run_type": "NORMAL"},
        "unique_key": "airflow-0",
        "phase": "done",
        "called_at": "2026-01-01T00:00:00+00:00",
        "baseline": "NEVER_RUN",
        "session": None,
        "ended_as": None,
        "result": {"session_id": "R-1"},
        "retries": 2,
        "version": 1,
    }
    assert RunState.from_dict(kept).phase is RunPhase.DONE


def test_without_a_store_no_state_is_kept() -> None:
    memory = KeptRun(TaskState(None, STATE_KEY))
    memory.save(STATE)
    assert memory.load() is None
    assert not memory.lasting


def why(kept: RunState | None, **changes: Any) -> str | None:
    tries = Tries(changes.pop("max_tries", 2), changes.pop("retries", 2), 2)
    arguments: dict[str, Any] = {"mediation_conn_id": "c", "request": REQUEST, **changes}
    return why_new_generation(kept, tries, **arguments)


@pytest.mark.parametrize(
    ("kept", "changes", "reason"),
    [
        (None, {}, "first run"),
        (STATE, {}, None),
        (replace(STATE, phase=RunPhase.CALLING), {}, None),
        (replace(STATE, phase=RunPhase.UNNAMED), {}, None),
        (STATE.dead("FAILED"), {}, "the last one ended as FAILED"),
        (STATE.done({}), {}, None),
        (STATE.done({}), {"max_tries": 3}, CLEARED),
        (STATE.done({}), {"retries": 1}, CLEARED),
        (STATE, {"retries": 1}, None),
        (STATE, {"max_tries": 3}, CLEARED),
        (STATE, {"mediation_conn_id": "other"}, "the last try ran another meter"),
        (STATE, {"request": {**REQUEST, "meter_id": "2"}}, "the last try ran another meter"),
        (STATE, {"request": {**REQUEST, "run_type": "DEBUG"}}, "the last try ran another meter"),
        (STATE, {"request": {**REQUEST, "source_options": [1]}}, None),
    ],
)
def test_when_a_new_generation_starts(kept: RunState | None, changes: dict[str, Any], reason: str | None) -> None:
    assert why(kept, **changes) == reason


def key(**changes: Any) -> str:
    arguments: dict[str, Any] = {
        "mediation_conn_id": "c",
        "request": REQUEST,
        "instance": ("dag", "run", "task", -1),
        "generation": "g",
        **changes,
    }
    return unique_key(**arguments)


def test_a_key_is_stable_short_and_plain() -> None:
    assert key() == key(request={**REQUEST, "source_options": [1]})
    assert len(key()) <= 40
    assert set(key()) <= set("abcdefghijklmnopqrstuvwxyz0123456789-")


@pytest.mark.parametrize(
    "changes",
    [
        {"mediation_conn_id": "d"},
        {"request": {**REQUEST, "meter_id": "2"}},
        {"instance": ("dag", "run", "task", 0)},
        {"instance": ("dag", "run2", "task", -1)},
        {"generation": "h"},
    ],
)
def test_a_key_differs_for_each_other_input(changes: dict[str, Any]) -> None:
    assert key() != key(**changes)


def test_a_derived_generation_survives_retries_and_changes_with_a_clear() -> None:
    first = derived_generation(Tries(2, 2, 1), advanced=0)
    assert derived_generation(Tries(2, 2, 2), advanced=0) == first
    assert derived_generation(Tries(2 + 1, 2, 2), advanced=0) != first
    assert derived_generation(Tries(2, 2, 1), advanced=1) != first
