"""The trigger of exports: its arguments as a contract, and its one event, in virtual time."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field
from datetime import timedelta
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any, Self

import pytest

from airflow_mediation_provider import triggerer
from airflow_mediation_provider.protocol.zuora.errors import MediationError, MisconfigurationError, TransientError
from airflow_mediation_provider.triggers import audit
from airflow_mediation_provider.triggers.audit import AuditTrailExportTrigger
from tests.unit.virtual import EPOCH, Clock, run, through_json

if TYPE_CHECKING:
    from airflow.triggers.base import TriggerEvent

# Literals, not made by the present code: triggers with these arguments are in databases while the package is upgraded.
FROZEN: dict[str, Any] = {
    "mediation_conn_id": "mediation_default",
    "wait": {
        "meter_id": "1001",
        "export_type": "ERROR",
        "request_id": "job-1",
        "until": "2026-03-31T10:00:00+00:00",
        "poll_interval": 30.0,
        "max_unreachable": 300.0,
        "poll_at": "2026-03-31T09:00:30+00:00",
        "status": "RUNNING",
    },
    "arguments_version": 1,
}
FINISHED = {"requestId": "job-1", "status": "FINISHED", "count": 12, "fileList": ["a.csv"]}
RUNNING = {"requestId": "job-1", "status": "RUNNING"}


@dataclass
class Exports:
    """A Zuora with one export job, and the hook that lists it.

    A script is a list of (from second, answer); an answer is the job, or an error to raise.
    """

    clock: Clock
    script: list[tuple[float, dict[str, Any] | MediationError]] = field(default_factory=list)
    polls: list[float] = field(default_factory=list)
    open: int = 0

    async def list_export_jobs(self, meter_id: str, *, export_type: str, request_id: str) -> list[dict[str, Any]]:
        assert (meter_id, export_type, request_id) == ("1001", "ERROR", "job-1")
        self.polls.append(self.clock.seconds)
        answer = [answer for begins, answer in self.script if begins <= self.clock.seconds][-1]
        if isinstance(answer, MediationError):
            raise answer
        return [answer]

    async def __aenter__(self) -> Self:
        self.open += 1
        return self

    async def __aexit__(self, *_: object) -> None:
        self.open -= 1


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def exports(clock: Clock, monkeypatch: pytest.MonkeyPatch) -> Exports:
    exports = Exports(clock, [(0, RUNNING)])

    async def open_hook(conn_id: str, *, attempts: int) -> Exports:
        assert (conn_id, attempts) == ("mediation_default", 1)
        return exports

    monkeypatch.setattr(triggerer, "open_hook", open_hook)
    monkeypatch.setattr(audit, "utcnow", clock.now)
    return exports


async def events(arguments: dict[str, Any] = FROZEN) -> list[dict[str, Any]]:
    found: list[TriggerEvent] = [event async for event in AuditTrailExportTrigger(**arguments).run()]
    return [through_json(event.payload) for event in found]


def the_event(exports: Exports) -> dict[str, Any]:
    (event,) = run(events(), exports.clock)
    assert exports.open == 0
    return event


def test_the_stored_arguments_are_read_and_stored_again():
    path, arguments = AuditTrailExportTrigger(**FROZEN).serialize()
    assert path == "airflow_mediation_provider.triggers.audit.AuditTrailExportTrigger"
    assert through_json(arguments) == FROZEN


def test_the_job_is_polled_at_the_interval_until_one_event(exports: Exports):
    exports.script += [(100, FINISHED)]
    assert the_event(exports) == {
        "end": "MET",
        "message": "Export job-1 is finished: 12 records in 1 file(s).",
        "request_id": "job-1",
        "status": "FINISHED",
        "count": 12,
        "files": ["a.csv"],
    }
    assert exports.polls == [30, 60, 90, 120]


def test_another_triggerer_continues_with_the_same_job_and_deadline(exports: Exports):
    exports.script += [(1000, FINISHED)]

    async def killed_and_started_elsewhere() -> list[dict[str, Any]]:
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(events(), 200)
        await asyncio.sleep(300)
        return await events()

    (event,) = run(killed_and_started_elsewhere(), exports.clock)
    assert event["end"] == "MET"
    # The second one polls at once: the next poll has been due for long.
    assert [at for at in exports.polls if at > 200][:2] == [500, 530]
    assert exports.open == 0


def test_temporary_errors_are_tolerated_and_a_longer_pause_is_kept(exports: Exports):
    exports.script += [(60, TransientError("Too many requests.", retry_after=120)), (90, FINISHED)]
    assert the_event(exports)["end"] == "MET"
    assert exports.polls == [30, 60, 180]


def test_a_pause_beyond_the_deadline_ends_at_the_deadline(exports: Exports):
    exports.script += [(3400, TransientError("Too many requests.", retry_after=900))]
    assert the_event(exports)["end"] == "TIMED_OUT"
    assert exports.clock.seconds == 3600
    assert exports.polls[-1] == 3420


def test_the_deadline_ends_the_wait(exports: Exports):
    event = the_event(exports)
    assert (event["end"], event["status"], event["request_id"]) == ("TIMED_OUT", "RUNNING", "job-1")
    assert exports.clock.now() == EPOCH + timedelta(hours=1)


def test_a_zuora_that_stays_unreachable_ends_the_wait(exports: Exports):
    exports.script += [(50, TransientError("Zuora is down."))]
    event = the_event(exports)
    assert (event["end"], exports.clock.seconds) == ("UNREACHABLE", 360)


def test_lasting_refusals_end_the_wait(exports: Exports):
    exports.script += [(50, MisconfigurationError("Forbidden."))]
    event = the_event(exports)
    assert (event["end"], event["message"]) == ("MISCONFIGURED", "Forbidden.")
    assert len(exports.polls) > 2


def test_each_change_is_logged_once(exports: Exports, monkeypatch: pytest.MonkeyPatch):
    exports.script += [(50, {**RUNNING, "status": "PENDING"}), (100, FINISHED)]
    lines: list[str] = []
    monkeypatch.setattr(AuditTrailExportTrigger, "log", SimpleNamespace(info=lines.append))
    the_event(exports)
    assert lines == ["Export job-1: its status is PENDING"]


def test_the_calls_are_reported_when_the_trigger_leaves(monkeypatch: pytest.MonkeyPatch):
    reported: list[str] = []

    async def report_calls(conn_id: str) -> None:
        reported.append(conn_id)

    monkeypatch.setattr(triggerer, "report_calls", report_calls)
    asyncio.run(AuditTrailExportTrigger(**FROZEN).cleanup())
    assert reported == ["mediation_default"]
