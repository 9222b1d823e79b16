"""Bodies of every shape that a template or a gateway makes: one table with the result of each, and random ones."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from airflow_mediation_provider.protocol.callouts.parse import read_again, read_callout
from airflow_mediation_provider.protocol.callouts.settings import callout_settings
from airflow_mediation_provider.protocol.sessions.journal_entry import EntryKind, JournalEntry
from tests.timing import at_most

SIGNED = callout_settings("zuora", {"callout_hmac_secret": "s" * 32})
BY_TOKEN = callout_settings("zuora", {"callout_token": "t" * 32})
NOW = datetime(2026, 3, 31, 12, tzinfo=UTC)
FLAT = {"meterId": "7", "sessionId": "R-1", "runType": "NORMAL", "status": "COMPLETED", "previousStatus": "RUNNING"}
NESTED = {
    "meter": {"id": 7, "name": "calls"},
    "session": {"id": "R-1", "runType": "NORMAL", "status": "COMPLETED", "previousStatus": "RUNNING"},
}
BASE = {f"MeterSession.{name}": FLAT[name[0].lower() + name[1:]] for name in ("RunType", "Status", "PreviousStatus")}
# What each of the bodies below reports, unless its row has something else.
EVENT = {
    "meter_id": "7",
    "session_id": "R-1",
    "run_type": "NORMAL",
    "status": "COMPLETED",
    "previous_status": "RUNNING",
}
OTHER = {"meterId": "8", "sessionId": "R-0", "status": "FAILED", "previousStatus": "PAUSED"}


def without(*names: str) -> dict[str, str]:
    return {name: value for name, value in FLAT.items() if name not in names}


def read(body: object, settings: Any = SIGNED, query: dict[str, str] | None = None) -> JournalEntry:
    raw = body if isinstance(body, bytes) else json.dumps(body).encode()
    return read_callout(settings, {}, raw, NOW, query)


# Shape -> body, and what differs from EVENT; a text: it is unparsed, with this reason.
SHAPES: dict[str, tuple[object, dict[str, Any] | str]] = {
    "flat": (FLAT, {}),
    "nested": (NESTED, {}),
    **{
        f"all within {name!r}": ({name: body}, {})
        for name, body in (
            ("event", FLAT), ("data", FLAT), ("payload", NESTED), ("meterSessionStatusChange", NESTED), ("x", NESTED),
            ("metersession", FLAT), ("DataSource", NESTED), ("body", json.dumps(FLAT)),
        )
    },
    "wrapped three times": ({"a": {"b": {"c": NESTED}}}, {}),
    "a wrapper in the name": ({f"event.{name}": value for name, value in FLAT.items()}, {}),
    "a form with brackets": (b"event%5Bmeter%5D%5Bid%5D=7&event[session][id]=R-1&event[session][status]=COMPLETED"
                             b"&event[previousStatus]=RUNNING", {}),
    "a list of one": ([FLAT], {}),
    "a wrapped list of one": ({"events": [NESTED]}, {}),
    "a list of two": ([FLAT, OTHER], "a list of 2"),
    "a wrapped list of two": ({"events": [FLAT, OTHER]}, "no session id"),
    "JSON as a JSON text": (json.dumps(FLAT), {}),
    "the base object, joined": ({**BASE, "MeterSessionMeterId": "7", "MeterSessionId": "R-1"}, {}),
    "the base object twice": ({**BASE, "MeterSession.Meter.Id": "7", "MeterSession.MeterSession.Id": "R-1"}, {}),
    "the base object is the meter": ({"MeterId": 7, "MeterMeterSessionId": "R-1", "MeterMeterSessionStatus": 7,
                                      "Meter.MeterSession.PreviousStatus": 5}, {}),
    "the base object, nested": ({"MeterSession": {"Id": "R-1", "Status": "COMPLETED", "PreviousStatus": "RUNNING",
                                                  "Meter": {"Id": "7"}}}, {}),
    "the base object as a name": ({"{{MeterSession.Meter.Id}}": 7, "<MeterSession.Id>": "R-1", **BASE}, {}),
    "ids around the change": ({**without("status", "previousStatus"), "change": {"status": "COMPLETED",
                                                                                "previousStatus": "RUNNING"}}, {}),
    "ids beside the change": ({"ids": {"meterId": 7, "sessionId": "R-1"},
                               "change": {"status": "COMPLETED", "previousStatus": "RUNNING"}}, {}),
    "the session within the change": ({**without("sessionId", "meterId"), "of": {"meterId": "7", "sessionId": "R-1"}},
                                      {"previous_status": "RUNNING"}),
    "the meter elsewhere": ({"source": {"meterId": 7}, "event": without("meterId")}, {}),
    "the run type elsewhere": ({"source": {"meterId": 7, "runType": "DEBUG"}, "event": without("meterId", "runType")},
                               {"run_type": "DEBUG"}),
    "a foreign status": ({**FLAT, "invoice": {"status": "FAILED"}}, {}),
    "a foreign status first": ({"invoice": {"status": "FAILED", "previousStatus": "RUNNING"}, **FLAT}, {}),
    "an envelope with a status": ({"status": "FAILED", "data": NESTED}, {}),
    "an envelope of another session": ({"sessionId": "bus-9", "payload": FLAT}, {}),
    "an envelope with a session": ({"session": {"id": "web-1", "startTime": "2026-03-31T01:00:00Z"}, "data": NESTED},
                                   {"started_at": None}),
    "an envelope of the same session": ({"sessionId": "R-1", "payload": FLAT}, {}),
    "an envelope of another session with a status": ({"session": {"id": "web-1", "status": "on"}, "data": FLAT},
                                                     "several events"),
    "an envelope of another session with a meter": ({"sessionId": "bus-9", "meterId": 1, "payload": FLAT},
                                                    "several events"),
    "two sessions, and the change elsewhere": ({"sessionId": "bus-9", "payload": {"of": {"sessionId": "R-1"},
        "change": {"meterId": 7, "status": "COMPLETED", "previousStatus": "RUNNING"}}}, "several events"),
    "another session within": ({**FLAT, "parent": {"sessionId": "R-0"}}, {}),
    "another event within": ({**FLAT, "parent": OTHER}, "several events"),
    "two events": ({"first": FLAT, "second": {**OTHER}}, "several events"),
    "only a foreign status": ({**without("status"), "invoice": {"status": "COMPLETED"}}, "no status"),
    "an envelope's own status": ({"status": "ok", "data": without("status")}, "no status"),
    "the status of the meter": ({**without("status"), "meter": {"status": "COMPLETED"}}, "no status"),
    "the status came empty": ({**FLAT, "status": "", "was": {"status": "COMPLETED", "previousStatus": "RUNNING"}},
                              "no status"),
    "the status came unresolved": ({**FLAT, "status": "{{MeterSession.Stat}}", "x": {"status": "FAILED"}}, "no status"),
    "no meter in sight": ({"a": {"meterId": 7}, "b": {"meterId": 8}, "c": without("meterId")}, "no meter id"),
    **{f"{text!r} before": ({**FLAT, "previousStatus": text}, {"previous_status": None})
       for text in ("", "null", "None", "N/A", "n/a", "-", "—", " ", "{{MeterSession.PreviousStatus}}")},
    **{f"in {text}": ({**FLAT, "status": text}, {"status": status}) for text, status in (
        ("CANCELLED", "CANCELED"), ("Cancelled", "CANCELED"), ("USAGE-PUSHING", "USAGE_PUSHING"),
        ("usage pushing", "USAGE_PUSHING"), ("TestingPassed", "TESTING_PASSED"), ("Push.Completed", "PUSH_COMPLETED"),
        ("QUARANTINED", "QUARANTINED"))},
    "a session that is none": ({**FLAT, "sessionId": "N/A"}, "no session id"),
    "a meter with separators": ({**FLAT, "meterId": "1,010"}, "'1,010', a number with separators"),
    "a meter with points": ({**FLAT, "meterId": "1.010"}, "'1.010', a number with separators"),
    **{f"a {name} that is {number}": (json.dumps({**FLAT, name: 0}).replace(": 0", f": {number}").encode(), "no id")
       for name in ("meterId", "sessionId") for number in ("1e400", "-1e400", "NaN", '"Infinity"')},
    "a control character": (b'{"meterId":"7","meterName":"a\tb\nc","sessionId":"R-1","status":7,"previousStatus":5}',
                            {"meter_name": "a\tb\nc"}),
    "broken JSON": (b'{"meterId":"7","meterName":"a "quoted" name","sessionId":"R-1","status":7}', "not JSON"),
}  # fmt: skip
# Not of the status, and with a run type for tests.
SHAPES["in TestingPassed"][1]["run_type"] = "DEBUG"  # type: ignore[index]


@pytest.mark.parametrize("shape", SHAPES)
def test_each_shape_results_in_what_the_table_has(shape: str) -> None:
    body, wanted = SHAPES[shape]

    entry = read(body)

    if isinstance(wanted, str):
        assert entry.kind is EntryKind.UNPARSED
        assert wanted in entry.body["error"]
        return
    assert entry.kind is EntryKind.STATUS_CHANGE, entry.body
    expected = {**EVENT, **wanted}
    assert {name: getattr(entry.transition, name) for name in expected} == expected


LIMIT = 256 * 1024


def filled(head: str = "", tail: str = "") -> bytes:
    """A body of the largest size: an object with as many short fields as there is room for."""
    count = (LIMIT - len(head) - len(tail)) // len('"7fff":1,')
    fields = json.dumps({f"{number:x}": 1 for number in range(count)}, separators=(",", ":"))
    return (head + fields + tail).encode()


LONG = {
    "dots in one name": json.dumps({"a." * 120_000 + "status": 7}).encode(),
    "dots before each name": json.dumps({f"{'a.' * 28}{n}.status": 7 for n in range(3_000)}).encode(),
    "many fields": filled(),
    "many fields, nested": filled('{"a":' * 31, "}" * 31),
    "many fields beside the event": filled(json.dumps(FLAT)[:-1] + ',"x":', "}"),
    "fields in an object with a long name": filled('{"' + "a" * 120_000 + '":', "}"),
    "and the event": filled(json.dumps(FLAT)[:-1] + ',"' + "a" * 120_000 + '":', "}"),
    "names of blanks in it": json.dumps({"a" * 120_000: {" " * n: 7 for n in range(400)}}).encode(),
    "many objects with a status": json.dumps({f"{n:x}": {"status": 7} for n in range(11_000)}).encode(),
    "many sessions": json.dumps({f"{n:x}": {"sessionId": n} for n in range(9_000)}).encode(),
    "JSON as a text, nested": json.dumps(
        {"x": '{"":' * 900 + json.dumps({f"{n:x}": 1 for n in range(20_000)}) + "}" * 900}
    ).encode(),
    "a long value": json.dumps({**FLAT, "status": "{" * 250_000}).encode(),
    "a long form": b"a=1&" + b"%20" * 80_000 + b"=1",
}


@pytest.mark.full
@pytest.mark.parametrize("shape", LONG)
def test_no_body_takes_long(shape: str) -> None:
    body = LONG[shape]
    assert len(body) <= LIMIT
    with at_most(3):  # half a second on a busy machine
        read(body)


def test_the_table_has_at_least_forty_shapes() -> None:
    assert len({json.dumps(body, default=repr) for body, _ in SHAPES.values()}) >= 40


@pytest.mark.parametrize(
    "body",
    [
        {"event": {"Meter Id": 7, "Operator Id": 1, "Session Id": "R-1"}},
        {"data": {"MeterSession.MeterOperator.Id": 1, "sessionId": "R-1", "status": 5}},
    ],
)
def test_a_wrapped_periodic_update_is_one(body: dict[str, Any]) -> None:
    assert (read(body).kind, read(body).session_id) == (EntryKind.PERIODIC, "R-1")


def test_a_wrapped_query_is_one() -> None:
    assert read({"event": {"EventStoreQuery": {"Id": 1, "Status": "FAILED"}}}).kind is EntryKind.EVENT_STORE_QUERY


def test_merge_fields_in_the_address_are_read_where_the_sender_is_proven() -> None:
    for body, query in (
        (b"", {**FLAT, "key": "of a gateway"}),
        (without("meterId"), {"meterId": "7", "code": "secret"}),
    ):
        entry = read(body, BY_TOKEN, query)
        assert entry.kind is EntryKind.STATUS_CHANGE, entry.body
        assert {name: getattr(entry.transition, name) for name in EVENT} == EVENT
        assert not {"key", "code"} & set(entry.body)


@pytest.mark.parametrize("name", ["status", "session.status", "MeterSession.Status", "meter_session_current_status"])
@pytest.mark.parametrize("body", [FLAT, NESTED, {"event": FLAT}])
def test_the_body_outranks_the_address_by_any_name(name: str, body: dict[str, Any]) -> None:
    entry = read(body, BY_TOKEN, {name: "FAILED", "session_start_time": "2026-03-31T09:17:21Z"})

    assert entry.kind is EntryKind.STATUS_CHANGE, entry.body
    assert {name: getattr(entry.transition, name) for name in EVENT} == EVENT


def test_a_field_that_is_empty_in_the_body_is_not_read_from_the_address() -> None:
    entry = read({**FLAT, "status": ""}, BY_TOKEN, {"session.status": "FAILED"})

    assert (entry.kind, entry.body["query"]) == (EntryKind.UNPARSED, {"session.status": "FAILED"})


def test_a_signature_does_not_prove_the_address() -> None:
    entry = read(b"", SIGNED, FLAT)

    assert entry.kind is EntryKind.UNPARSED
    assert "the signature does not cover them" in entry.body["error"]
    # And the body outranks it for who signs and has a password too.
    assert read(FLAT, BY_TOKEN, {"status": "FAILED"}).transition.status == "COMPLETED"  # type: ignore[union-attr]


def test_an_unparsed_callout_is_read_again_with_the_fields_of_its_address() -> None:
    entry = read(b"{}", BY_TOKEN, {"sessionId": "R-1", "status": "7", "code": "secret"})
    assert (entry.kind, entry.body["query"]) == (EntryKind.UNPARSED, {"sessionId": "R-1", "status": "7"})

    again = read_again(BY_TOKEN, {**entry.body, "text": '{"meterId": 7}'}, NOW)

    assert again is not None
    assert again.kind is EntryKind.STATUS_CHANGE


wrapper = st.sampled_from(["event", "data", "a.b", "MeterSession", "Notification", "body", "x-1", "event[0]"])
foreign = st.recursive(
    st.dictionaries(
        st.sampled_from(["status", "startTime", "name", "state", "previousStatus"]),
        st.sampled_from(["FAILED", "RUNNING", "2026-01-01T00:00:00Z", 7, None, ["FAILED"]]),
        max_size=3,
    ),
    lambda inner: st.dictionaries(st.sampled_from(["invoice", "note", "job", "list"]), inner, max_size=2),
    max_leaves=4,
)


@given(
    wrappers=st.lists(wrapper, max_size=4),
    in_list=st.booleans(),
    event=st.sampled_from([FLAT, NESTED]),
    around=foreign,
    inside=foreign,
)
def test_wrappers_and_foreign_objects_change_nothing(
    wrappers: list[str], in_list: bool, event: dict[str, Any], around: dict[str, Any], inside: dict[str, Any]
) -> None:
    body: Any = {"invoice": inside, **event, "note": inside}
    for name in wrappers:
        body = {"other": around, name: [body] if in_list else body, "zz": around}

    entry = read(body)

    assert entry.kind is EntryKind.STATUS_CHANGE, entry.body
    assert {name: getattr(entry.transition, name) for name in EVENT} == EVENT
    assert entry.transition is not None
    assert entry.transition.started_at is None


@given(st.lists(wrapper, max_size=3))
def test_a_missing_status_is_not_taken_from_a_foreign_object(wrappers: list[str]) -> None:
    job = {"job": {"status": "FAILED"}, "startTime": "2026-01-01T00:00:00Z"}
    body: Any = {**without("status"), "invoice": job}
    for name in wrappers:
        body = {name: body, "other": {"note": job}}

    assert read(body).kind is EntryKind.UNPARSED
