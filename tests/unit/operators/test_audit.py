"""Counts, error records and exports, against the simulator."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

from airflow_mediation_provider.exceptions import (
    MediationError,
    MediationMisconfigured,
    MediationUnreachable,
    MeterSessionTimeout,
)
from airflow_mediation_provider.operators.audit import AuditTrailExportOperator, MeterSummaryOperator
from airflow_mediation_provider.operators.meter import RunMeterOperator
from airflow_mediation_provider.simulator import Simulator, ends

from .conftest import asked

if TYPE_CHECKING:
    from .conftest import TaskInstance


@pytest.fixture
def ended(sim: Simulator, ti: TaskInstance) -> dict[str, Any]:
    """A session that FAILED with 80 records put out and 12 not."""
    sim.set_meter("1002", runs=[ends("FAILED", 60, records=80, errors=12)])
    session = RunMeterOperator(task_id="run", meter_id="1002", fail_on=(), poke_interval=5).execute(ti.context)
    assert session["status"] == "FAILED"
    ti.clear()
    return dict(session)


def test_a_summary_counts_the_session_alone(sim: Simulator, ti: TaskInstance, ended: dict[str, Any]) -> None:
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


def test_the_first_error_records_come_without_their_payload(ti: TaskInstance, ended: dict[str, Any]) -> None:
    summary = MeterSummaryOperator(task_id="task", session=ended, error_records=5).execute(ti.context)
    assert len(summary["errors"]) == 5
    for record in summary["errors"]:
        assert record["errorCode"]
        assert "payload" not in record


def test_the_payload_comes_where_asked_for(ti: TaskInstance, ended: dict[str, Any]) -> None:
    task = MeterSummaryOperator(task_id="task", session=ended, error_records=1, include_payload=True)
    assert task.execute(ti.context)["errors"][0]["payload"]


def test_groups_follow_the_dimensions(ti: TaskInstance, ended: dict[str, Any]) -> None:
    summary = MeterSummaryOperator(task_id="task", session=ended, group_by=["errorCode"]).execute(ti.context)
    assert sum(group["errors"] for group in summary["groups"]) == 12
    assert all("errorCode" in group["dimensions"] for group in summary["groups"])


def test_the_calls_that_a_task_took_are_reported_at_its_end_however_it_ends(
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
    with pytest.raises(MediationMisconfigured, match="session is empty"):
        task.execute(ti.context)


def test_an_export_is_created_waited_for_and_listed(sim: Simulator, ti: TaskInstance, ended: dict[str, Any]) -> None:
    report = AuditTrailExportOperator(task_id="task", session=ended, poke_interval=1).execute(ti.context)
    assert report["status"] == "FINISHED"
    assert report["count"] == 12
    assert report["files"]
    assert report["urls"] == []
    assert sim.log(kind="request", path="/meters/auditTrail/presignedUrl") == []


def test_download_addresses_come_where_asked_for(ti: TaskInstance, ended: dict[str, Any]) -> None:
    task = AuditTrailExportOperator(task_id="task", session=ended, poke_interval=1, download_urls=True)
    report = task.execute(ti.context)
    assert len(report["urls"]) == len(report["files"])
    assert all(url.startswith("http") for url in report["urls"])


def test_a_retry_goes_on_with_the_job_and_clear_makes_a_new_one(
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


def test_an_export_that_takes_too_long_fails(sim: Simulator, ti: TaskInstance, ended: dict[str, Any]) -> None:
    sim.configure(export_seconds=10_000)
    with pytest.raises(MeterSessionTimeout, match="RUNNING"):
        AuditTrailExportOperator(task_id="task", session=ended, poke_interval=10, timeout=60).execute(ti.context)


def test_a_permission_withdrawn_meanwhile_fails_at_once(
    sim: Simulator, ti: TaskInstance, ended: dict[str, Any]
) -> None:
    sim.configure(export_seconds=10_000)
    sim.fault("status", status=403, method="GET", path="/auditTrail/export", after=1)
    with pytest.raises(MediationMisconfigured, match="forbidden"):
        AuditTrailExportOperator(task_id="task", session=ended, poke_interval=10).execute(ti.context)


def test_an_export_that_failed_fails(ti: TaskInstance, ended: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    from airflow_mediation_provider.hooks.mediation import MediationHook

    def failed(self: Any, *_: Any, request_id: str, **__: Any) -> list[dict[str, Any]]:
        return [{"requestId": request_id, "status": "Failed"}]

    monkeypatch.setattr(MediationHook, "list_export_jobs", failed)
    with pytest.raises(MediationError, match="ended as FAILED"):
        AuditTrailExportOperator(task_id="task", session=ended, poke_interval=1).execute(ti.context)


def test_without_waiting_the_request_id_is_returned(ti: TaskInstance, ended: dict[str, Any]) -> None:
    report = AuditTrailExportOperator(task_id="task", session=ended, wait_for_completion=False).execute(ti.context)
    assert report["request_id"]
    assert report["files"] == []


@pytest.mark.parametrize(
    ("operator", "arguments", "message"),
    [
        (MeterSummaryOperator, {}, "give either session"),
        (MeterSummaryOperator, {"meter_id": "1", "session": {}}, "give either session"),
        (MeterSummaryOperator, {"session": {}, "session_id": "R-1"}, "session_id goes with meter_id"),
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


def test_a_span_that_ends_before_it_begins_fails_at_once(ti: TaskInstance) -> None:
    task = MeterSummaryOperator(
        task_id="task", meter_id="1002", query_from="2026-01-02T00:00:00Z", query_to="2026-01-01T00:00:00Z"
    )
    with pytest.raises(MediationMisconfigured, match=r"query_to .* must be after query_from"):
        task.execute(ti.context)
