"""The log of a task, as a user reads it after a failure: the same lines in every mode, and few of them."""

from __future__ import annotations

from types import SimpleNamespace
from typing import TYPE_CHECKING

import pytest

from airflow_mediation_provider.protocol.zuora.errors import TransientError
from airflow_mediation_provider.sensors.meter_session import MeterSessionSensor
from airflow_mediation_provider.triggers.meter_session import MeterSessionTrigger
from tests.unit.fast_lane import modes
from tests.unit.test_outcomes import MODES, sensor
from tests.unit.virtual_feed import Journal

if TYPE_CHECKING:
    from tests.unit.task_stage import Stage

pytestmark = pytest.mark.parametrize("mode", modes(MODES))
OPENING = "waiting for session S-1 of meter m, over connection 'mediation_default', to be COMPLETED (any other end"


@pytest.fixture
def said(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The lines that worker and triggerer log for the task, without heartbeats."""
    lines: list[str] = []

    def say(line: str, *arguments: object) -> None:
        text = line % arguments
        if not text.startswith("still "):
            lines.append(text)

    log = SimpleNamespace(info=say, warning=say)
    for owner in (MeterSessionSensor, MeterSessionTrigger):
        monkeypatch.setattr(owner, "log", log)
    return lines


def test_the_log_of_a_session_that_failed(stage: Stage, said: list[str], mode: str):
    stage.journal = Journal(stage.clock)
    steps = [(10, "INITIALIZING"), (40, "RUNNING"), (1200, "PAUSED"), (1500, "RUNNING"), (5000, "FAILED")]
    stage.journal.session("S-1", *steps)
    stage.zuora.script("m", (0, "COMPLETED"), *steps)

    ending = stage.play(sensor(mode, session_id="S-1"))

    assert said[:2] == [
        f"{OPENING} fails it), until 2026-03-31 11:00:00 UTC",
        "callouts of connection 'mediation_default' are read at http://api/mediation; polls cross-check them every 5m",
    ]
    assert said[-5:] == [
        "session S-1 of meter m is INITIALIZING, by callout",
        "INITIALIZING -> RUNNING after 30s, by callout",
        "RUNNING -> PAUSED after 19m 20s, by callout",
        "PAUSED -> RUNNING after 5m, by callout",
        "RUNNING -> FAILED after 58m 20s, by callout",
    ]
    # In between at most one line: the meter still shows the session before.
    assert len(said) <= 8
    assert str(ending.error) == (
        "Session S-1 of meter m is FAILED since 2026-03-31 10:23:20 UTC, by callout, and that is certain."
    )


def test_the_log_of_an_outage_of_zuora_and_of_the_next_try(stage: Stage, said: list[str], mode: str):
    stage.zuora.script("m", (0, "RUNNING"), (100, TransientError("Zuora answered 503.", status_code=503)))

    ending = stage.play(sensor(mode, session_id="S-1"))

    assert [line.startswith(OPENING) for line in said] == [True, *[False] * (len(said) - 1)]
    # There is no API server; a worker logs that after a minute.
    assert [line for line in said if not line.startswith("callouts cannot be read")][-2:] == [
        "session S-1 of meter m is RUNNING, by poll",
        "the status cannot be read: Zuora answered 503; asking again for up to 1h",
    ]
    message = str(ending.error)
    assert message.startswith("Zuora gave no good answer for 1h")
    assert "; session S-1 of meter m was RUNNING since 2026-03-31 09:00:0" in message

    said.clear()
    stage.zuora.script("m", (0, "COMPLETED"))
    stage.play(sensor(mode, session_id="S-1"))
    # A task that starts in the triggerer stored nothing about a session with an id.
    known = "" if mode == "started in the triggerer" else "; it is RUNNING since 2026-03-31 09:00:0"
    (opening,) = [line for line in said if line.startswith(OPENING)]
    assert opening == said[0]
    assert known in opening


def test_after_a_crash_of_the_trigger_no_line_is_repeated(stage: Stage, said: list[str], mode: str):
    stage.zuora.script("m", (0, "RUNNING"), (854, "COMPLETED"))
    stage.trigger_crashes = 2
    assert stage.play(sensor(mode, session_id="S-1")).state == "success"
    assert len([line for line in said if line.startswith(OPENING)]) == 1
    assert len([line for line in said if "-> COMPLETED after" in line]) == 1
