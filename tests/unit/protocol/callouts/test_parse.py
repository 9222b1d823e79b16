"""Callouts: one event in every documented spelling is one transition; any other body is stored and never raises."""

from __future__ import annotations

import base64
import json
from datetime import UTC, datetime
from typing import Any
from urllib.parse import urlencode

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from airflow_mediation_provider.protocol.callouts.parse import bounded_id, read_callout, storable
from airflow_mediation_provider.protocol.callouts.settings import callout_settings
from airflow_mediation_provider.protocol.callouts.setup import template_body
from airflow_mediation_provider.protocol.sessions.journal_entry import EntryKind, JournalEntry
from airflow_mediation_provider.protocol.status import RunType
from airflow_mediation_provider.protocol.transition import SessionTransition, Source
from airflow_mediation_provider.protocol.wire import from_plain, to_plain

SETTINGS = callout_settings("zuora", {})
NOW = datetime(2026, 3, 31, 12, tzinfo=UTC)
START = datetime(2026, 3, 31, 9, 17, 21, tzinfo=UTC)
END = datetime(2026, 3, 31, 9, 18, tzinfo=UTC)
EVENT = {
    "meter_id": "2470",
    "meter_name": "LMS",
    "session_id": "R-00005468",
    "run_type": "NORMAL",
    "status": "COMPLETED",
    "previous_status": "RUNNING",
    "started_at": "2026-03-31T09:17:21Z",
    "ended_at": "2026-03-31T09:18:00Z",
}
# Each field by every spelling that Zuora documents or its template editor makes.
SPELLINGS = {
    "meter_id": ["Meter Id", "Meter.Id", "MeterId", "meterId", "meter_id"],
    "meter_name": ["Meter Name", "Meter.Name", "MeterName", "meterName", "meter_name"],
    "session_id": ["Session Id", "MeterSession.Id", "MeterSessionId", "sessionId", "session_id"],
    "run_type": ["Session Run Type", "MeterSession.RunType", "MeterSessionRunType", "runType", "run_type"],
    "status": ["Session Status", "MeterSession.Status", "MeterSessionStatus", "status", "session_status"],
    "previous_status": [
        "Session Previous Status", "MeterSession.PreviousStatus", "MeterSessionPreviousStatus", "previousStatus",
        "previous_status",
    ],
    "started_at": ["Session start time", "MeterSession.StartTime", "MeterSessionStartTime", "startTime", "start_time"],
    "ended_at": [
        "Session end time", "Session end time (if completed)", "MeterSession.EndTime", "MeterSessionEndTime", "endTime",
        "ended_at",
    ],
}  # fmt: skip


def read(fields: object, headers: dict[str, str] | None = None, settings: Any = SETTINGS) -> JournalEntry:
    body = fields if isinstance(fields, bytes) else json.dumps(fields).encode()
    return read_callout(settings, headers or {}, body, NOW)


def change(fields: object, **others: Any) -> SessionTransition:
    entry = read(fields, **others)
    assert entry.kind is EntryKind.STATUS_CHANGE, entry.body
    assert entry.transition is not None
    return entry.transition


def nested(flat: dict[str, Any]) -> dict[str, Any]:
    made: dict[str, Any] = {}
    for name, value in flat.items():
        *path, last = name.split(".")
        target = made
        for part in path:
            target = target.setdefault(part, {})
        target[last] = value
    return made


@st.composite
def spelled(draw: st.DrawFn) -> dict[str, Any]:
    """The one event, each field in one of its spellings, in any case and order, some of them as nested objects."""
    fields = []
    for field, spellings in SPELLINGS.items():
        name = draw(st.sampled_from(spellings))
        name = draw(st.sampled_from(["", "DataSource."])) + name if "." in name else name
        fields.append((draw(st.sampled_from([str, str.upper, str.lower]))(name), EVENT[field]))
    flat = dict(draw(st.permutations(fields)))
    return nested(flat) if draw(st.booleans()) else flat


@given(spelled())
def test_one_event_is_the_same_transition_in_every_spelling(fields: dict[str, Any]) -> None:
    assert change(fields, headers={"ZUORA-notification-ID": "n-1"}) == SessionTransition(
        meter_id="2470", meter_name="LMS", session_id="R-00005468", run_type=RunType.NORMAL, status="COMPLETED",
        previous_status="RUNNING", started_at=START, ended_at=END, observed_at=NOW, source=Source.CALLOUT,
        notification_id="n-1",
    )  # fmt: skip


def test_the_recommended_template_is_parsed_completely() -> None:
    rendered = template_body()
    for tag, value in {
        "Meter.Id": "2470", "MeterSession.Id": "R-1", "MeterSession.RunType": "DEBUG", "MeterSession.Status": "TESTING",
        "MeterSession.PreviousStatus": "INITIALIZING", "MeterSession.StartTime": "2026-03-31T09:17:21Z",
        "MeterSession.EndTime": "",
    }.items():  # fmt: skip
        rendered = rendered.replace(f"{{{{{tag}}}}}", value)

    parsed = change(rendered.encode())

    assert (parsed.meter_id, parsed.session_id, parsed.run_type) == ("2470", "R-1", RunType.DEBUG)
    assert (parsed.status, parsed.previous_status, parsed.started_at, parsed.ended_at) == (
        "TESTING",
        "INITIALIZING",
        START,
        None,
    )


def test_a_template_with_unresolved_merge_fields_is_unparsed() -> None:
    assert read(template_body().encode()).kind is EntryKind.UNPARSED


LEAST = {"meterId": "2470", "sessionId": "R-1", "status": "RUNNING"}


@pytest.mark.parametrize(
    ("fields", "parsed"),
    [
        ({"meterId": 2470}, {"meter_id": "2470"}),
        ({"meterId": 2470.0}, {"meter_id": "2470"}),
        ({"sessionId": 5468}, {"session_id": "5468"}),
        ({"status": 7}, {"status": "COMPLETED"}),
        ({"status": "7"}, {"status": "COMPLETED"}),
        ({"status": " completed "}, {"status": "COMPLETED"}),
        ({"status": "Usage Pushing"}, {"status": "USAGE_PUSHING"}),
        ({"status": "Something New"}, {"status": "SOMETHING_NEW"}),
        ({"previousStatus": ""}, {"previous_status": None}),
        ({"previousStatus": None}, {"previous_status": None}),
        ({"previousStatus": "null"}, {"previous_status": None}),
        ({"previousStatus": "{{MeterSession.PreviousStatus}}"}, {"previous_status": None}),
        ({"previousStatus": "<DataSource.MeterSession.PreviousStatus>"}, {"previous_status": None}),
        ({"endTime": "{{MeterSession.EndTime}}"}, {"ended_at": None}),
        ({"startTime": "the day before"}, {"started_at": None}),
        ({"startTime": 1774948641000}, {"started_at": START}),
        ({"runType": "debug"}, {"run_type": RunType.DEBUG}),
        ({"runType": 2}, {"run_type": RunType.DEBUG}),
        ({"runType": "LIVE"}, {"run_type": RunType.NORMAL}),
        *(
            ({"runType": each}, {"run_type": RunType.DEBUG})
            for each in ("TESTING", "Test", "DEBUG/TESTING", "Debug Run")
        ),
        *(
            ({"runType": each}, {"run_type": RunType.NORMAL})
            for each in (1, "1", "normal", "", None, "{{MeterSession.RunType}}")
        ),
        ({"runType": "canary"}, {"run_type": "CANARY"}),
        ({"runType": 3}, {"run_type": "3"}),
        ({"runType": "A run type without end"}, {"run_type": "A_RUN_TYPE_WITHO"}),
        ({"status": "TESTING_PASSED"}, {"run_type": RunType.DEBUG}),
        ({"status": "ok", "MeterSession.Status": "FAILED"}, {"status": "FAILED"}),
        ({"MeterSession.Status": "FAILED", "status": "ok"}, {"status": "FAILED"}),
        ({"operatorId": "", "EventStoreQuery.Id": "{{EventStoreQuery.Id}}"}, {"status": "RUNNING"}),
        ({"eventStoreId": "12"}, {"status": "RUNNING"}),
        ({"errorCount": 0, "team": {"name": "x"}}, {"status": "RUNNING"}),
    ],
    ids=str,
)
def test_values_are_parsed_as_templates_and_tenants_write_them(fields: dict[str, Any], parsed: dict[str, Any]) -> None:
    transition = change({**LEAST, **fields})

    assert {name: getattr(transition, name) for name in parsed} == parsed


def test_the_body_keeps_all_fields_unknown_ones_too() -> None:
    fields = {**LEAST, "startTime": "vorgestern", "tenant": {"id": 7}, "list": [1, None]}

    assert read(fields).body == fields


def test_times_are_parsed_with_the_connections_format_and_zone() -> None:
    settings = callout_settings(
        "zuora", {"callout_date_format": "MM/DD/YYYY hh:mm:ss A", "callout_timezone": "America/New_York"}
    )

    parsed = change(
        {**LEAST, "startTime": "03/31/2026 05:17:21 AM", "endTime": "2026-03-31T09:18:00Z"}, settings=settings
    )

    assert (parsed.started_at, parsed.ended_at) == (START, END)


@pytest.mark.parametrize(
    "body",
    [
        urlencode(EVENT).encode(),
        ("﻿" + json.dumps(EVENT)).encode(),
        json.dumps(EVENT).encode("utf-16"),
        json.dumps({**EVENT, "meter_name": "Zähler"}, ensure_ascii=False).encode("latin-1"),
    ],
    ids=["form", "byte order mark", "utf-16", "latin-1"],
)
def test_other_encodings_of_the_body_are_parsed(body: bytes) -> None:
    parsed = change(body)

    assert (parsed.session_id, parsed.status, parsed.meter_name) in [
        ("R-00005468", "COMPLETED", name) for name in ("LMS", "Zähler")
    ]


PERIODIC = [
    {"Meter Id": "2470", "Meter Name": "LMS", "Operator Id": "7", "Session Id": "R-1", "Session Run Type": "NORMAL"},
    {"Meter.Id": "2470", "MeterSession.Id": "R-1", "MeterOperator.ErrorPercentage": 5},
    {"meterId": "2470", "sessionId": "R-1", "Error Percentage": "5"},
    {"meterId": "2470", "sessionId": "R-1", "totalCount": 0, "errorCount": 0},
    {**LEAST, "operatorId": "7"},
    {"Meter": {"Id": "2470"}, "MeterSession": {"Id": "R-1", "Status": "RUNNING"}, "MeterOperator": {"Id": "7"}},
]


@pytest.mark.parametrize("fields", PERIODIC, ids=str)
def test_the_periodic_update_is_not_a_status_change(fields: dict[str, Any]) -> None:
    entry = read(fields, headers={"Zuora-Notification-Id": "n-1"})

    assert (entry.kind, entry.transition) == (EntryKind.PERIODIC, None)
    assert (entry.meter_id, entry.session_id, entry.notification_id) == ("2470", "R-1", "n-1")
    assert entry.body == fields


@pytest.mark.parametrize(
    "fields",
    [
        {"EventStoreQuery.Id": "q", "EventStoreQuery.Status": "COMPLETED", "EventStore.Name": "calls"},
        {"EventStoreQuery": {"Id": "q", "Status": "COMPLETED"}},
        {"queryId": "q", "status": "COMPLETED", "meterId": "2470"},
        {"ModifiedRowCount": 3, "status": "FAILED"},
    ],
    ids=str,
)
def test_the_event_store_query_is_not_a_status_change(fields: dict[str, Any]) -> None:
    entry = read(fields)

    assert (entry.kind, entry.transition, entry.session_id) == (EntryKind.EVENT_STORE_QUERY, None, None)


def test_a_test_callout_is_not_a_status_change() -> None:
    entry = read({**LEAST, "status": "COMPLETED", "mediationTest": "2026-03-31"})

    assert (entry.kind, entry.transition) == (EntryKind.TEST, None)


@pytest.mark.parametrize(
    ("body", "words"),
    [
        (b"", "not JSON"),
        (b"{", "not JSON"),
        (b'{"meterId": "2470",}', "not JSON"),
        (b"\x00\xff\xfe\x00", "not JSON"),
        (b"[1, 2]", "a list of 2"),
        (b"null", "no object"),
        (b"{}", "no object"),
        (b"1" * 5000, "not JSON"),
        (b"[" * 100_000, "not JSON"),
        (b'{"a":' * 500 + b"1" + b"}" * 500, "nested more than 32 deep"),
        (json.dumps({**LEAST, "sessionId": ""}).encode(), "no session id"),
        (json.dumps({**LEAST, "meterId": None}).encode(), "no meter id"),
        (json.dumps({**LEAST, "status": "{{MeterSession.Status}}"}).encode(), "no status"),
        (json.dumps({**LEAST, "sessionId": ["R-1"]}).encode(), "no session id"),
        (json.dumps({**LEAST, "sessionId": "R" * 65}).encode(), "session id has 65 characters"),
        (json.dumps({**LEAST, "status": "S" * 65}).encode(), "status has 65 characters"),
        (json.dumps({**LEAST, "previousStatus": "ß" * 33}).encode(), "previous status has 66 characters"),
    ],
    ids=lambda value: value[:40] if isinstance(value, bytes) else None,
)
def test_an_unparsed_callout_is_stored_completely(body: bytes, words: str) -> None:
    headers = {
        "Zuora-Notification-Id": "n-1", "content-type": "application/json", "Authorization": "Basic eA==",
        "X-Mediation-Signature": "s",
    }  # fmt: skip
    entry = read(body, headers=headers)

    assert (entry.kind, entry.source, entry.notification_id) == (EntryKind.UNPARSED, Source.CALLOUT, "n-1")
    assert words in entry.body["error"]
    assert entry.body["headers"] == {"Zuora-Notification-Id": "n-1", "Content-Type": "application/json"}
    kept = entry.body["text"].encode() if "text" in entry.body else base64.b64decode(entry.body["base64"])
    assert kept == body


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.dictionaries(
            st.text(max_size=10) | st.sampled_from(["session", "meter", "a.b", "status"]), inner, max_size=4
        )
        | inner.map(json.dumps)
    ),
    max_leaves=8,
)
names = st.sampled_from([name for spellings in SPELLINGS.values() for name in spellings]) | st.text(max_size=8)
bodies = (
    st.binary(max_size=60)
    | st.text(max_size=60).map(lambda text: text.encode("utf-8", "replace"))
    | st.dictionaries(names, json_values, max_size=8).map(lambda fields: json.dumps(fields).encode())
)


@given(bodies, st.dictionaries(st.sampled_from(["Zuora-Notification-Id", "Content-Type", "X"]), st.text()))
@example(b'{"meterId":1,"sessionId":"R\\u0000","status":"\\ud800x","y":NaN,"z":1e999}', {})
@example(b"a=%00&b=%ff", {"Content-Type": "form"})
def test_every_body_becomes_an_entry_that_every_database_accepts(body: bytes, headers: dict[str, str]) -> None:
    entry = read_callout(SETTINGS, headers, body, NOW)

    text = json.dumps(to_plain(entry), allow_nan=False, ensure_ascii=False)
    text.encode()
    assert "\0" not in text
    assert "\\u0000" not in text.replace("\\\\", "")
    assert from_plain(JournalEntry, json.loads(text), "it") == entry
    for held, longest in (
        (entry.notification_id, 190), (entry.meter_id, 64), (entry.session_id, 64),
        (entry.transition and entry.transition.status, 64), (entry.transition and entry.transition.previous_status, 64),
    ):  # fmt: skip
        assert len(held or "") <= longest


def test_unusual_notification_ids_are_hashed() -> None:
    assert bounded_id(None) is bounded_id("  ") is None
    assert bounded_id(" 2c92c0f9-7a3b ") == "2c92c0f9-7a3b"
    # Ids that only this package makes are not accepted from outside.
    for text in ("x" * 191, "run:R-1", "history:abc", "ümlaut", "\ud800"):
        assert str(bounded_id(text)).startswith("sha256:")
    assert bounded_id("x" * 191) != bounded_id("x" * 192)


def test_storable_leaves_valid_json_unchanged() -> None:
    fine = {"a": [1, 2.5, None, True, "ü\n"]}

    assert storable(fine) == fine
    assert storable({"a\0": "\ud800", "b": float("nan")}) == {"a�": "�", "b": "nan"}
