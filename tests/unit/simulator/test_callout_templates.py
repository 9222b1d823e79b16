"""The requests that a template makes from an event, byte by byte: field names, dates, signatures."""

from __future__ import annotations

import base64
import hashlib
import hmac
import json
from typing import TYPE_CHECKING, Any

import pytest

from airflow_mediation_provider.simulator import CalloutConfig
from airflow_mediation_provider.simulator.callout_events import Event, event_store_query
from airflow_mediation_provider.simulator.callout_templates import (
    address,
    context,
    date_text,
    headers,
    render,
    signature,
    text,
)

if TYPE_CHECKING:
    from airflow_mediation_provider.simulator.control import Tenant

    from .conftest import Bench


@pytest.fixture
def event(bench: Bench) -> Event:
    """The last change of a session that failed."""
    return last_event(bench.tenant, bench)


def last_event(tenant: Tenant, bench: Bench) -> Event:
    events: list[Event] = []
    publish = tenant.callouts.publish
    tenant.callouts.publish = lambda event: events.append(event) or publish(event)  # type: ignore[method-assign,func-returns-value]
    tenant.configure({"callouts": [{"url": "http://127.0.0.1:9"}]})
    tenant.start_session("1002", script=[["RUNNING", 65.5], ["FAILED", None]])
    tenant.advance(100)
    return events[-1]


def config(**settings: Any) -> CalloutConfig:
    return CalloutConfig(url="http://127.0.0.1:9", **settings)


@pytest.mark.parametrize(
    ("spelling", "keys"),
    [
        ("camelCase", "meterId meterName sessionId runType status previousStatus startTime endTime"),
        ("snake_case", "meter_id meter_name session_id run_type status previous_status start_time end_time"),
        (
            "concatenated",
            "MeterId MeterName MeterSessionId MeterSessionRunType MeterSessionStatus MeterSessionPreviousStatus "
            "MeterSessionStartTime MeterSessionEndTime",
        ),
        (
            "dotted",
            "Meter.Id Meter.Name MeterSession.Id MeterSession.RunType MeterSession.Status "
            "MeterSession.PreviousStatus MeterSession.StartTime MeterSession.EndTime",
        ),
    ],
)
def test_keys_have_the_configured_spelling(event: Event, spelling: str, keys: str) -> None:
    body = json.loads(render(config(body=spelling), event))
    assert list(body) == keys.split()
    assert list(body.values()) == [
        "1002",
        "Storage",
        "R-00005468",
        "NORMAL",
        "FAILED",
        "RUNNING",
        "2026-01-01T00:00:00.000Z",
        "2026-01-01T00:01:05.500Z",
    ]


def test_labels_are_those_of_zuoras_page(event: Event) -> None:
    assert list(json.loads(render(config(body="labels"), event))) == [
        "Meter Id",
        "Meter Name",
        "Session Id",
        "Session Run Type",
        "Session Status",
        "Session Previous Status",
        "Session start time",
        "Session end time",
    ]


def test_advanced_merge_fields_may_begin_with_the_base_object(event: Event) -> None:
    assert json.loads(render(config(body="base_object"), event))["MeterSessionMeterId"] == "1002"
    template = {"MeterSession": {"Meter": {"Id": "{{MeterSession.Meter.Id}}"}}}
    assert json.loads(render(config(body=template), event)) == {"MeterSession": {"Meter": {"Id": "1002"}}}


def test_a_users_own_template_is_filled_in(event: Event) -> None:
    template = {
        "now": "{{MeterSession.Status}}",
        "before": "{{ DataSource.MeterSession.PreviousStatus }}",
        "old syntax": "<Meter.Id>",
        "label": "{{Session Id}}",
        "none": "{{Account.Id}}",
        "at": "{{Event.Timestamp}}",
        "plain": "a < b",
    }
    assert json.loads(render(config(body=template, timezone="Asia/Tokyo"), event)) == {
        "now": "FAILED",
        "before": "RUNNING",
        "old syntax": "1002",
        "label": "R-00005468",
        "none": "",
        "at": "2026-01-01T09:01:05.500+09:00",
        "plain": "a < b",
    }
    assert address(CalloutConfig(url="https://x/{{Meter.Id}}/callouts"), event) == "https://x/1002/callouts"


@pytest.mark.parametrize(
    ("form", "zone", "expected"),
    [
        ("iso", "UTC", "2026-01-01T00:01:05.500Z"),
        ("iso", "America/New_York", "2025-12-31T19:01:05.500-05:00"),
        ("epoch_ms", "America/New_York", "1767225665500"),
        ("en_US", "America/New_York", "12/31/2025 07:01:05 PM"),
        ("en_GB", "Europe/London", "01/01/2026 00:01:05"),
        ("de_DE", "Europe/Berlin", "01.01.2026 01:01:05"),
        ("ja_JP", "Asia/Tokyo", "2026/01/01 09:01:05"),
        ("%d-%b-%Y", "UTC", "01-Jan-2026"),
    ],
)
def test_dates_have_the_format_of_the_locale(event: Event, form: str, zone: str, expected: str) -> None:
    assert text(event, "MeterSession.EndTime", config(date_format=form, timezone=zone)) == expected
    ended = event.values["MeterSession.EndTime"]
    assert date_text(ended, form, zone) == expected  # type: ignore[arg-type]


@pytest.mark.parametrize("null", ["", "null", "NEVER_RUN"])
def test_a_field_without_a_value_becomes_the_configured_text(bench: Bench, null: str) -> None:
    bench.tenant.configure({"callouts": [{"url": "http://127.0.0.1:9", "null_text": null}]})
    bench.tenant.start_session("1002")
    entry = bench.tenant.callouts.begin()
    assert entry is not None
    assert json.loads(entry.body)["previousStatus"] == null


@pytest.mark.parametrize(
    "name",
    [
        ("MD5", "md5"),
        ("SHA-1", "sha1"),
        ("SHA-224", "sha224"),
        ("SHA-256", "sha256"),
        ("SHA-384", "sha384"),
        ("SHA-512", "sha512"),
    ],
)
def test_each_algorithm_and_format_signs_correctly(name: tuple[str, str]) -> None:
    digest = hmac.new(b"geheim", "größer".encode(), getattr(hashlib, name[1])).digest()
    assert signature("geheim", "größer", name[0], "HEX") == digest.hex()
    assert base64.b64decode(signature("geheim", "größer", name[0], "BASE64")) == digest


def test_the_signed_message_and_the_headers_value_are_templates(event: Event) -> None:
    settings = config(
        hmac_secret="top",
        hmac_output_format="HEX",
        hmac_data="{{Request.Headers.Date}}\n{{Request.Headers.X-Tenant}}\n{{Meter.Id}}\n{{Request.Body}}",
        hmac_key="X-Hub-Signature-256",
        hmac_value="sha256={{Request.HMAC.Signed}}",
        headers={"X-Tenant": "t-{{Meter.Id}}"},
    )
    sent = headers(settings, event, "{}", {"Date": "Thu, 01 Jan 2026 00:00:00 GMT"})
    expected = signature("top", "Thu, 01 Jan 2026 00:00:00 GMT\nt-1002\n1002\n{}", "SHA-256", "HEX")
    assert sent == {
        "Content-Type": "application/json",
        "Date": "Thu, 01 Jan 2026 00:00:00 GMT",
        "X-Tenant": "t-1002",
        "X-Hub-Signature-256": f"sha256={expected}",
    }


def test_the_history_contains_the_context_of_an_event(event: Event) -> None:
    full = context(config(), event, "{}", "full")
    assert (full["<MeterSession.Status>"], full["<sendXML>"]) == ("FAILED", "{}")
    assert full["<Event.Category>"] == "com.zuora.notification:status_change"
    assert "<sendXML>" not in context(config(), event, "{}", "tags")
    assert context(config(), event, "{}", "dotted")["MeterSession.PreviousStatus"] == "RUNNING"


def test_an_event_store_query_has_the_documented_field_names() -> None:
    body = json.loads(render(config(event="event_store_query", body="dotted"), event_store_query({}, 0.0)))
    assert list(body) == [
        "EventStoreQuery.Id",
        "EventStoreQuery.Query",
        "EventStoreQuery.Status",
        "EventStoreQuery.ModifiedRowCount",
        "EventStore.Id",
        "EventStore.Name",
    ]
