"""Counts, error records and exports, against the simulator."""

from __future__ import annotations

import asyncio
import json
from datetime import timedelta
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import pytest
from airflow.sdk.exceptions import TaskDeferred

from airflow_mediation_provider.exceptions import (
    AuditExportFailed,
    AuditExportTimeout,
    MediationError,
    MediationMisconfigured,
    MediationUnreachable,
)
from airflow_mediation_provider.hooks.mediation import MediationAsyncHook
from airflow_mediation_provider.operators.audit import AuditTrailExportOperator, MeterSummaryOperator
from airflow_mediation_provider.operators.meter import RunMeterOperator
from airflow_mediation_provider.simulator import Simulator, ends
from airflow_mediation_provider.triggers import audit as triggers

from .conftest import Killed, asked

if TYPE_CHECKING:
    from airflow_mediation_provider.protocol.sessions.verdict import TaskNote

    from .conftest import TaskInstance


@pytest.fixture
def ended(sim: Simulator, ti: TaskInstance) -> dict[str, Any]:
    """A session that FAILED with 80 records of output and 12 errors."""
    sim.set_meter("1002", runs=[ends("FAILED", 60, records=80, errors=12)])
    session = RunMeterOperator(task_id="run", meter_id="1002", fail_on=(), poke_interval=5).execute(ti.context)
    assert session["status"] == "FAILED"
    ti.clear()
    return dict(session)


def test_a_summary_counts_only_the_session(sim: Simulator, ti: TaskInstance, ended: dict[str, Any]) -> None:
    sim.start_session("1002")
    ti.clock.sleep(90)
    summary = MeterSummaryOperator(task_id="task", session=ended).execute(ti.context)
    assert (summary["output_count"], summary["error_count"]) == (80, 12)
    assert summary["session_id"] == ended["session_id"]
    assert [group["dimensions"] for group in summary["groups"]] == [{"sessionId": ended["session_id"]}]
    assert summary["errors"] == []


def test_a_summary_of_a_meter_counts_all_sessions_of_the_span(
    sim: Simulator, ti: TaskInstance, ended: dict[str, Any]
) -> None:
    ti.clock.sleep(10)
    begin = ti.clock.now()
    sim.start_session("1002")
    ti.clock.sleep(90)
    summary = MeterSummaryOperator(task_id="task", meter_id="1002", query_from=begin).execute(ti.context)
    assert summary["session_id"] is None
    assert summary["error_count"] == 12
    assert len(summary["groups"]) == 1
    assert ended["session_id"] not in str(summary["groups"])


def test_error_records_are_returned_without_their_payload(ti: TaskInstance, ended: dict[str, Any]) -> None:
    summary = MeterSummaryOperator(task_id="task", session=ended, error_records=5).execute(ti.context)
    assert len(summary["errors"]) == 5
    for record in summary["errors"]:
        assert record["errorCode"]
        assert "payload" not in record


def test_the_payload_is_returned_with_include_payload(ti: TaskInstance, ended: dict[str, Any]) -> None:
    task = MeterSummaryOperator(task_id="task", session=ended, error_records=1, include_payload=True)
    assert task.execute(ti.context)["errors"][0]["payload"]


def test_groups_follow_the_dimensions(ti: TaskInstance, ended: dict[str, Any]) -> None:
    summary = MeterSummaryOperator(task_id="task", session=ended, group_by=["errorCode"]).execute(ti.context)
    assert sum(group["errors"] for group in summary["groups"]) == 12
    assert all("errorCode" in group["dimensions"] for group in summary["groups"])


def test_the_calls_of_a_task_are_reported_at_any_end(
    sim: Simulator, ti: TaskInstance, ended: dict[str, Any], reports: list[int]
) -> None:
    before = asked(sim)
    MeterSummaryOperator(task_id="task", session=ended, error_records=5).execute(ti.context)
    AuditTrailExportOperator(task_id="task", session=ended, download_urls=True).execute(ti.context)
    assert sum(reports) == asked(sim) - before
    assert len(reports) == 2
    assert reports[1] > reports[0] == 2

    with pytest.raises(MediationMisconfigured):
        MeterSummaryOperator(task_id="task", meter_id="99999", query_from="2025-12-31T00:00:00Z").execute(ti.context)
    assert reports[2:] == [1]


def test_an_unknown_meter_fails_at_once(sim: Simulator, ti: TaskInstance) -> None:
    with pytest.raises(MediationMisconfigured):
        MeterSummaryOperator(task_id="task", meter_id="99999", query_from="2025-12-31T00:00:00Z").execute(ti.context)


def test_an_empty_session_fails_at_once(ti: TaskInstance) -> None:
    task = MeterSummaryOperator(task_id="task", session="{{ nothing }}")
    task.session = None
    with pytest.raises(MediationMisconfigured, match="session is None, which names no session"):
        task.execute(ti.context)


def test_an_export_is_created_waited_for_and_listed(sim: Simulator, ti: TaskInstance, ended: dict[str, Any]) -> None:
    report = AuditTrailExportOperator(task_id="task", session=ended, poke_interval=1).execute(ti.context)
    assert report["status"] == "FINISHED"
    assert report["count"] == 12
    assert report["files"]
    assert report["urls"] == []
    assert sim.log(kind="request", path="/meters/auditTrail/presignedUrl") == []


def test_download_addresses_are_returned_with_download_urls(ti: TaskInstance, ended: dict[str, Any]) -> None:
    task = AuditTrailExportOperator(task_id="task", session=ended, poke_interval=1, download_urls=True)
    report = task.execute(ti.context)
    assert len(report["urls"]) == len(report["files"])
    assert all(url.startswith("http") for url in report["urls"])


def test_a_retry_continues_the_export_and_a_clear_makes_a_new_one(
    sim: Simulator, ti: TaskInstance, ended: dict[str, Any]
) -> None:
    def created() -> int:
        return len(sim.log(kind="request", method="POST", path="/meters/1002/auditTrail/export"))

    def task(**arguments: Any) -> AuditTrailExportOperator:
        return AuditTrailExportOperator(task_id="task", session=ended, poke_interval=1, **arguments)

    sim.fault("status", path="auditTrail/export", method="GET")
    with pytest.raises(MediationUnreachable):
        task(max_unreachable=30).execute(ti.context)
    sim.clear_faults()
    first = task().execute(ti.retry().context)
    assert created() == 1
    second = task().execute(ti.clear().context)
    assert created() == 2
    assert first["request_id"] != second["request_id"]


def test_clear_after_the_retries_were_lowered_makes_a_new_export_and_a_crash_after_the_end_does_not(
    sim: Simulator, ti: TaskInstance, ended: dict[str, Any]
) -> None:
    first = export_of(ti, ended)
    # The worker died before Airflow received the success.
    assert export_of(ti.retry(), ended) == first
    ti.retries -= 2
    before = ti.max_tries
    ti.clear()
    assert ti.max_tries == before
    assert export_of(ti, ended) != first


def test_a_retry_after_the_export_failed_makes_a_new_one(
    ti: TaskInstance, ended: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    from airflow_mediation_provider.hooks.mediation import MediationHook

    with monkeypatch.context() as failing:
        jobs: list[str] = []

        def failed(self: Any, *_: Any, request_id: str, **__: Any) -> list[dict[str, Any]]:
            jobs.append(request_id)
            return [{"requestId": request_id, "status": "Failed"}]

        failing.setattr(MediationHook, "list_export_jobs", failed)
        with pytest.raises(MediationError, match="ended as FAILED"):
            export_of(ti, ended)
    assert export_of(ti.retry(), ended) not in jobs


def export_of(ti: TaskInstance, session: dict[str, Any]) -> str:
    """Export a session, and return the job's id."""
    task = AuditTrailExportOperator(task_id="task", session=session, poke_interval=1, retries=ti.retries)
    return str(task.execute(ti.context)["request_id"])


def test_an_export_that_takes_too_long_fails(sim: Simulator, ti: TaskInstance, ended: dict[str, Any]) -> None:
    sim.configure(export_seconds=10_000)
    with pytest.raises(AuditExportTimeout, match="RUNNING"):
        AuditTrailExportOperator(task_id="task", session=ended, poke_interval=10, timeout=60).execute(ti.context)


def test_a_permission_withdrawn_during_the_wait_fails_after_five_minutes(
    sim: Simulator, ti: TaskInstance, ended: dict[str, Any]
) -> None:
    sim.configure(export_seconds=10_000)
    sim.fault("status", status=403, method="GET", path="/auditTrail/export", after=1)
    with pytest.raises(MediationMisconfigured, match="forbidden"):
        AuditTrailExportOperator(task_id="task", session=ended, poke_interval=10).execute(ti.context)
    assert 300 <= ti.clock.passed < 600


def test_a_failed_export_fails_the_task(
    ti: TaskInstance, ended: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    from airflow_mediation_provider.hooks.mediation import MediationHook

    def failed(self: Any, *_: Any, request_id: str, **__: Any) -> list[dict[str, Any]]:
        return [{"requestId": request_id, "status": "Failed"}]

    monkeypatch.setattr(MediationHook, "list_export_jobs", failed)
    with pytest.raises(AuditExportFailed, match="ended as FAILED"):
        AuditTrailExportOperator(task_id="task", session=ended, poke_interval=1).execute(ti.context)


def test_without_wait_for_completion_the_request_id_is_returned(ti: TaskInstance, ended: dict[str, Any]) -> None:
    report = AuditTrailExportOperator(task_id="task", session=ended, wait_for_completion=False).execute(ti.context)
    assert report["request_id"]
    assert report["files"] == []


class TestDeferred:
    """A wait in the triggerer; the trigger runs on the same clock and against the same simulator."""

    @pytest.fixture(autouse=True)
    def triggerer(self, ti: TaskInstance, monkeypatch: pytest.MonkeyPatch) -> None:
        async def sleep(seconds: float) -> None:
            ti.clock.sleep(seconds)

        monkeypatch.setattr(triggers, "asyncio", SimpleNamespace(sleep=sleep))

    @pytest.fixture
    def session(self, sim: Simulator, ended: dict[str, Any]) -> dict[str, Any]:
        sim.configure(export_seconds=600)
        return ended

    @staticmethod
    def task(session: dict[str, Any], **arguments: Any) -> AuditTrailExportOperator:
        return AuditTrailExportOperator(task_id="task", session=session, deferrable=True, retries=3, **arguments)

    @staticmethod
    def deferral(task: AuditTrailExportOperator, ti: TaskInstance) -> TaskDeferred:
        with pytest.raises(TaskDeferred) as deferred:
            task.execute(ti.context)
        assert deferred.value.method_name == "execute_complete"
        return deferred.value

    @staticmethod
    def event(deferral: TaskDeferred) -> dict[str, Any]:
        """Run the trigger as a triggerer does, by its stored arguments, and return the event as a worker gets it."""
        path, arguments = deferral.trigger.serialize()
        assert path == "airflow_mediation_provider.triggers.audit.AuditTrailExportTrigger"

        async def fired() -> list[Any]:
            return [event async for event in triggers.AuditTrailExportTrigger(**arguments).run()]

        (event,) = asyncio.run(fired())
        return dict(json.loads(json.dumps(event.payload)))

    @staticmethod
    def created(sim: Simulator) -> int:
        return len(sim.log(kind="request", method="POST", path="/meters/1002/auditTrail/export"))

    @staticmethod
    def polls(sim: Simulator) -> int:
        return len(sim.log(kind="request", method="GET", path="/meters/1002/auditTrail/export"))

    def resume(self, task: AuditTrailExportOperator, ti: TaskInstance, event: dict[str, Any]) -> Any:
        return task.resume_execution("execute_complete", {"event": event}, ti.context)

    def test_the_worker_polls_once_and_the_triggerer_waits(
        self, sim: Simulator, ti: TaskInstance, session: dict[str, Any], notes: list[TaskNote]
    ) -> None:
        begun = ti.clock.passed
        deferral = self.deferral(self.task(session), ti)
        assert (self.created(sim), self.polls(sim), ti.clock.passed) == (1, 1, begun)
        assert deferral.timeout == timedelta(hours=2, minutes=1)
        (under_way,) = notes
        assert under_way.message.endswith(" is under way; the task waits for it until 2026-01-01 02:01:00 UTC.")
        event = self.event(deferral)
        assert ti.clock.passed == begun + 600
        report = self.resume(self.task(session), ti, event)
        assert (report["status"], report["count"], len(report["files"]), report["urls"]) == ("FINISHED", 12, 1, [])
        assert self.created(sim) == 1
        assert [note.message for note in notes[1:]] == [event["message"]]

    def test_the_result_is_that_of_a_wait_on_the_worker(
        self, sim: Simulator, ti: TaskInstance, session: dict[str, Any]
    ) -> None:
        deferred = self.resume(self.task(session), ti, self.event(self.deferral(self.task(session), ti)))
        here = AuditTrailExportOperator(task_id="task", session=session).execute(ti.clear().context)
        assert deferred.keys() == here.keys()
        for name in ("status", "count", "urls"):
            assert deferred[name] == here[name]

    def test_download_addresses_are_made_on_the_worker(
        self, sim: Simulator, ti: TaskInstance, session: dict[str, Any]
    ) -> None:
        task = self.task(session, download_urls=True)
        event = self.event(self.deferral(task, ti))
        assert sim.log(kind="request", path="/meters/auditTrail/presignedUrl") == []
        assert "http" not in json.dumps(event)
        assert self.resume(task, ti, event)["urls"][0].startswith("http")

    def test_another_triggerer_continues_with_the_same_job(
        self, sim: Simulator, ti: TaskInstance, session: dict[str, Any], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        deferral = self.deferral(self.task(session), ti)

        async def killed(*_: Any, **__: Any) -> Any:
            raise Killed("in a poll")

        with monkeypatch.context() as triggerer:
            triggerer.setattr(MediationAsyncHook, "list_export_jobs", killed)
            with pytest.raises(Killed):
                self.event(deferral)
        ti.clock.sleep(120)
        report = self.resume(self.task(session), ti, self.event(deferral))
        assert (report["count"], self.created(sim)) == (12, 1)

    def test_after_a_crashed_trigger_the_worker_waits_for_the_same_job(
        self, sim: Simulator, ti: TaskInstance, session: dict[str, Any]
    ) -> None:
        self.deferral(self.task(session), ti)
        report = self.task(session).resume_execution("__fail__", {"error": "Trigger failure"}, ti.context)
        assert (report["count"], self.created(sim)) == (12, 1)

    def test_an_event_without_a_result_is_a_crash(
        self, sim: Simulator, ti: TaskInstance, session: dict[str, Any]
    ) -> None:
        self.deferral(self.task(session), ti)
        assert self.resume(self.task(session), ti, {"other": 1})["count"] == 12
        assert self.created(sim) == 1

    def test_a_job_that_finished_while_no_triggerer_ran_is_found(
        self, sim: Simulator, ti: TaskInstance, session: dict[str, Any]
    ) -> None:
        self.deferral(self.task(session), ti)
        ti.clock.sleep(3 * 3600)
        report = self.task(session).resume_execution("__fail__", {"error": "Trigger timeout"}, ti.context)
        assert (report["count"], self.created(sim)) == (12, 1)

    def test_the_deadline_counts_from_the_start_of_the_try(
        self, sim: Simulator, ti: TaskInstance, session: dict[str, Any]
    ) -> None:
        begun = ti.clock.passed
        task = self.task(session, timeout=300)
        event = self.event(self.deferral(task, ti))
        assert ti.clock.passed == begun + 300
        with pytest.raises(AuditExportTimeout, match="give it a longer timeout"):
            self.resume(task, ti, event)

    def test_a_retry_continues_with_the_job(self, sim: Simulator, ti: TaskInstance, session: dict[str, Any]) -> None:
        task = self.task(session, max_unreachable=60)
        deferral = self.deferral(task, ti)
        sim.fault("status", path="auditTrail/export", method="GET")
        event = self.event(deferral)
        with pytest.raises(MediationUnreachable):
            self.resume(task, ti, event)
        sim.clear_faults()
        ti.retry()
        report = self.resume(task, ti, self.event(self.deferral(task, ti)))
        assert (report["request_id"], self.created(sim)) == (event["request_id"], 1)

    def test_a_retry_after_a_failed_job_makes_a_new_one(
        self, sim: Simulator, ti: TaskInstance, session: dict[str, Any], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        deferral = self.deferral(self.task(session), ti)

        async def failed(*_: Any, request_id: str, **__: Any) -> list[dict[str, Any]]:
            return [{"requestId": request_id, "status": "Failed"}]

        with monkeypatch.context() as failing:
            failing.setattr(MediationAsyncHook, "list_export_jobs", failed)
            event = self.event(deferral)
        with pytest.raises(AuditExportFailed, match="ended as FAILED"):
            self.resume(self.task(session), ti, event)
        self.deferral(self.task(session), ti.retry())
        assert self.created(sim) == 2

    def test_without_a_store_a_crashed_trigger_creates_no_second_job(
        self, sim: Simulator, ti: TaskInstance, session: dict[str, Any]
    ) -> None:
        ti.store = None
        deferral = self.deferral(self.task(session), ti)
        with pytest.raises(MediationError, match="has not kept the id of the export"):
            self.task(session).resume_execution("__fail__", {"error": "Trigger failure"}, ti.context)
        assert self.created(sim) == 1
        # A triggerer that dies, and a result, need no store.
        assert self.resume(self.task(session), ti, self.event(deferral))["count"] == 12
        assert self.created(sim) == 1


@pytest.mark.parametrize(
    ("operator", "arguments", "message"),
    [
        (MeterSummaryOperator, {}, "meter_id is missing: give it, or give session"),
        (MeterSummaryOperator, {"meter_id": "1", "session": {}}, "session is {}, which names no session"),
        (MeterSummaryOperator, {"session": {}, "session_id": "R-1"}, "session and session_id exclude each other"),
        (MeterSummaryOperator, {"meter_id": ""}, "meter_id must not be empty"),
        (MeterSummaryOperator, {"meter_id": "1", "group_by": "sessionId"}, "group_by must be a list"),
        (MeterSummaryOperator, {"meter_id": "1", "error_records": -1}, "from 0 to 1000"),
        (MeterSummaryOperator, {"meter_id": "1", "error_records": True}, "from 0 to 1000"),
        (MeterSummaryOperator, {"meter_id": "1", "query_from": "2026-01-01"}, "with a zone"),
        (MeterSummaryOperator, {"meter_id": "1", "query_to": "soon"}, "query_to must be an ISO 8601 time"),
        (MeterSummaryOperator, {"meter_id": "1", "run_type": "LIVE"}, "run_type must be one of"),
        (AuditTrailExportOperator, {"meter_id": "1", "export_type": "ALL"}, "export_type must be one of SAMPLE, ERROR"),
        (AuditTrailExportOperator, {"meter_id": "1", "file_format": "xlsx"}, "file_format must be one of csv"),
        (AuditTrailExportOperator, {"meter_id": "1", "compression": "zip"}, "compression must be one of none"),
        (AuditTrailExportOperator, {"meter_id": "1", "run_statuses": ["BROKEN"]}, "run_statuses must be one of"),
        (
            AuditTrailExportOperator,
            {"meter_id": "1", "download_urls": True, "wait_for_completion": False},
            "download_urls needs wait_for_completion",
        ),
    ],
)
def test_a_wrong_argument_is_refused_when_the_dag_is_parsed(
    operator: Any, arguments: dict[str, Any], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        operator(task_id="task", **arguments)


def test_a_span_that_ends_before_its_start_fails_at_once(ti: TaskInstance) -> None:
    task = MeterSummaryOperator(
        task_id="task", meter_id="1002", query_from="{{ params.from }}", query_to="2026-01-01T00:00:00Z"
    )
    task.query_from = "2026-01-02T00:00:00Z"
    with pytest.raises(MediationMisconfigured, match=r"query_to .* must be after query_from"):
        task.execute(ti.context)


def test_the_note_of_a_summary_has_its_counts_and_session(
    ti: TaskInstance, ended: dict[str, Any], notes: list[TaskNote]
) -> None:
    MeterSummaryOperator(task_id="task", session=ended).execute(ti.context)
    (note,) = notes
    assert (note.kind, note.meter_id, note.session_id) == ("summary", "1002", ended["session_id"])
    assert note.message == "80 records out, 12 errors."
    assert ti.xcoms["mediation_session_page"].endswith(f"session={ended['session_id']}")
    assert ti.xcoms["mediation_session_link"].endswith(ended["session_id"])


def test_the_note_of_an_export_has_its_end(
    ti: TaskInstance, sim: Simulator, ended: dict[str, Any], notes: list[TaskNote]
) -> None:
    exported = AuditTrailExportOperator(task_id="task", session=ended, poke_interval=5).execute(ti.context)
    AuditTrailExportOperator(task_id="task", session=ended, wait_for_completion=False).execute(ti.clear().context)
    with pytest.raises(MediationMisconfigured):
        AuditTrailExportOperator(task_id="task", session={**ended, "meter_id": "9999"}).execute(ti.clear().context)
    finished, started, failed = notes
    files = len(exported["files"])
    assert finished.kind == started.kind == failed.kind == "export"
    assert finished.message == (
        f"Export {exported['request_id']} is finished: {exported['count']} records in {files} file(s)."
    )
    assert started.message.endswith("was started.")
    assert (failed.meter_id, failed.session_id) == ("9999", ended["session_id"])
    assert "9999" in failed.message
