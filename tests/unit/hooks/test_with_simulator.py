"""Both hooks against the simulator: they read the answers that it gives by Zuora's documentation."""

from __future__ import annotations

import json
from datetime import UTC, datetime, timedelta
from itertools import pairwise

import pytest

from airflow_mediation_provider.hooks.mediation import MediationHook
from airflow_mediation_provider.protocol.callouts.history import read_history
from airflow_mediation_provider.protocol.callouts.settings import callout_settings
from airflow_mediation_provider.protocol.maintenance import missing
from airflow_mediation_provider.protocol.sessions.lifecycle import fold
from airflow_mediation_provider.protocol.status import RunType
from airflow_mediation_provider.protocol.zuora.errors import (
    CapacityError,
    DuplicateKeyError,
    MisconfigurationError,
    NotRunningError,
    StopInProgressError,
    TransientError,
)
from airflow_mediation_provider.simulator import CalloutConfig, running_simulator
from airflow_mediation_provider.simulator.config import MeterConfig, RunPlan, SimulatorConfig

from .conftest import Asker

SHAPES = ["error", "errors", "reasons", "message"]


def meters():
    long = RunPlan((("INITIALIZING", 1), ("RUNNING", 3600), ("COMPLETED", 0)), records=70, errors=4)
    streaming = MeterConfig(id="900", streaming=True, runs=(long,), stopping_for=600)
    return (*(MeterConfig(id=str(number), runs=(long,)) for number in range(101, 108)), streaming)


@pytest.fixture
def simulator(services, monkeypatch):
    with running_simulator(SimulatorConfig(meters=meters(), clock="manual")) as running:
        define(monkeypatch, running.url)
        yield running


def define(monkeypatch, url, **fields):
    connection = {
        "conn_type": "mediation",
        "host": url,
        "login": "simulator-client",
        "password": "simulator-secret",
        **fields,
    }
    monkeypatch.setenv("AIRFLOW_CONN_MEDIATION_TEST", json.dumps(connection))


@pytest.fixture(params=["sync", "async"])
def ask(request, simulator):
    return Asker(request.param)


def test_a_run_its_status_summary_and_entries(ask, simulator):
    assert ask("run_status", 101) == "NEVER_RUN"
    run = ask(
        "run_meter",
        101,
        unique_key="k:1",
        runtime_source_configs=[{"sourceType": "LOCAL_FS", "localFs": {"fileId": 1}}],
    )
    assert (run.meter_id, run.status, run.run_type, run.revision) == ("101", "INITIALIZING", RunType.NORMAL, 1)
    assert run.session_id.startswith("R-")
    assert run.started_at.tzinfo is UTC

    simulator.advance(4000)
    assert ask("run_status", 101) == "COMPLETED"
    span = {
        "run_type": "NORMAL",
        "query_from": run.started_at - timedelta(days=1),
        "query_to": run.started_at + timedelta(days=1),
    }
    [row] = ask("meter_summary", 101, session_ids=[run.session_id], **span)["output"]
    assert row["dimensions"] == {"sessionId": run.session_id}
    assert row["totalErrorCount"] == 4
    errors = ask("audit_trail_entries", 101, export_type="ERROR", session_id=run.session_id, page_size=3, **span)
    assert len(errors) == 4  # over two pages


def test_a_debug_run(ask):
    run = ask("debug_meter", 101, source_options=[{"testData": [{}]}])

    assert (run.run_type, run.status) == (RunType.DEBUG, "TESTING")


@pytest.mark.parametrize("shape", SHAPES)
def test_a_lost_reply_is_repeated_with_a_key(ask, simulator, shape):
    simulator.configure(error_shape=shape)
    simulator.fault("lost_reply", path="^/meters/run/", count=1)

    with pytest.raises(DuplicateKeyError):
        ask("run_meter", 101, unique_key="k")

    assert len(simulator.sessions("101")) == 1


def test_a_lost_reply_without_a_key_is_uncertain(ask, simulator):
    simulator.fault("lost_reply", path="^/meters/run/", count=1)

    with pytest.raises(TransientError, match="may have been started"):
        ask("run_meter", 101)

    assert len(simulator.sessions("101")) == 1


@pytest.mark.parametrize("shape", SHAPES)
def test_refusals_are_read_in_every_shape(ask, simulator, shape):
    simulator.configure(error_shape=shape)
    for meter in range(101, 106):
        simulator.start_session(str(meter))

    with pytest.raises(CapacityError):
        ask("run_meter", 106, unique_key="k")
    with pytest.raises(NotRunningError):
        ask("stop_meter", 107)
    with pytest.raises(MisconfigurationError, match=r"does not exist|unknown"):
        ask("run_status", 4711)
    with pytest.raises(MisconfigurationError, match=r"no such version|does not exist"):
        ask("run_meter", 106, "0.0.2", unique_key="k")


def test_a_stop(ask, simulator):
    simulator.start_session("900")
    ask("stop_meter", 900)

    assert ask("run_status", 900) == "STOPPING"
    with pytest.raises(StopInProgressError):
        ask("stop_meter", 900, force=True)


@pytest.mark.parametrize("kind", ["reset", "html", "badjson", "expire_tokens"])
def test_a_temporary_fault_is_retried(ask, simulator, kind):
    simulator.start_session("101")
    ask("run_status", 101)
    simulator.fault(kind, path="runStatus", count=1)

    assert ask("run_status", 101) in ("INITIALIZING", "RUNNING")


def test_a_rate_limit_sets_the_pause(ask, simulator, slept):
    simulator.configure(rate_limit=1, rate_limit_window=60.0)
    ask("run_status", 101)

    with pytest.raises(TransientError) as caught:
        ask("run_status", 101, hook={"attempts": 2})

    assert caught.value.status_code == 429
    assert 50 <= caught.value.retry_after <= 60
    assert slept[0] >= 50


def test_an_export(ask, simulator):
    run = ask("run_meter", 101, unique_key="k")
    simulator.advance(4000)
    span = {"query_from": run.started_at - timedelta(days=1), "query_to": datetime.now(UTC) + timedelta(days=2)}

    request_id = ask(
        "create_export_job", 101, export_type="ERROR", run_type="NORMAL", session_ids=[run.session_id], **span
    )
    simulator.advance(60)
    [job] = ask("list_export_jobs", 101, request_id=request_id)

    assert (job["requestId"], job["status"]) == (request_id, "FINISHED")
    assert ask("export_download_url", job["fileList"][0]).startswith("http")


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize(
    ("setting", "fields", "works", "says"),
    [
        ({}, {}, True, "Not tested"),
        ({"mediation_enabled": False}, {}, False, "not enabled"),
        ({"permissions": ()}, {}, False, "permission"),
        ({"permissions": (), "permission_status": 403}, {}, False, "permission is missing"),
        ({}, {"password": "wrong"}, False, "does not accept the client id and secret"),
    ],
)
def test_the_connection_test_explains_its_result(simulator, monkeypatch, shape, setting, fields, works, says):
    simulator.configure(error_shape=shape, **setting)
    define(monkeypatch, simulator.url, **fields)

    ok, sentence = MediationHook("mediation_test").test_connection()

    assert (ok, says in sentence) == (works, True), sentence


@pytest.mark.parametrize("context", ["full", "tags", "dotted"])
@pytest.mark.parametrize("body", ["labels", '{"m": "{{Meter.Id}}", "when": "{{MeterSession.StartTime}}"}'])
def test_the_callout_history_contains_every_lost_change(ask, simulator, context, body):
    zone = "Asia/Tokyo"
    simulator.delivery(history_context=context, history_timezone=zone)
    simulator.callouts(
        CalloutConfig(url="http://127.0.0.1:9/mediation/callouts/test", loss=1.0, retry=False, body=body)
    )
    script = ["INITIALIZING", "RUNNING", "PAUSED", "RUNNING", "PAUSED", "RUNNING", "COMPLETED"]
    simulator.start_session("101", script=[[status, 600] for status in script[:-1]] + [["COMPLETED", None]])
    for _ in script:
        simulator.wait_delivered()
        simulator.advance(600)

    now = datetime.fromtimestamp(simulator.log("transition")[-1]["at"] + 1, UTC)
    records = ask("callout_history", now - timedelta(hours=4), now, timezone=zone, page_size=5)
    history = read_history(callout_settings("test", {"callout_timezone": zone}), records, now)

    assert history.unreadable == 0
    lost = [entry.transition for entry in missing(history.entries, [])]
    edges = [(change.previous_status, change.status) for change in lost]
    assert edges == [(None, script[0]), *pairwise(script)]
    assert {(change.meter_id, change.session_id[:2]) for change in lost} == {("101", "R-")}
    assert fold(lost).status == "COMPLETED"


def test_the_callout_history_needs_its_own_permission(ask, simulator):
    simulator.configure(permissions=["View Meters", "Run Meters"])
    now = datetime.now(UTC)

    with pytest.raises(MisconfigurationError, match="grant it 'Events & Notifications View Access'"):
        ask("callout_history", now - timedelta(hours=1), now)
