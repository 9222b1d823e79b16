"""The callout history: which pages are asked for, and which events its records tell of, attempts put together."""

from __future__ import annotations

import json
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from airflow_mediation_provider.protocol.callout_settings import callout_settings
from airflow_mediation_provider.protocol.entry import Entry
from airflow_mediation_provider.protocol.errors import PermanentError
from airflow_mediation_provider.protocol.history import attempts_of, callout_history, read_history
from airflow_mediation_provider.protocol.transition import Source

SETTINGS = callout_settings("zuora", {})
NOW = datetime(2026, 3, 31, 12, tzinfo=UTC)
URL = "https://airflow.example.com/mediation/callouts/zuora"


def queries(pages: int, **arguments: Any) -> list[dict[str, str]]:
    """Return the queries that are asked where each time window has so many pages."""
    asked = []
    calls = callout_history(**{"since": NOW - timedelta(hours=1), "until": NOW, **arguments})
    call = next(calls)
    try:
        while True:
            query = dict(call.query)
            asked.append(query)
            number = int(query["page"])
            reply = {"calloutHistories": [{"n": number}], "nextPage": "https://zuora/next" if number < pages else None}
            call = calls.send(call.read(reply))
    except StopIteration:
        return asked


class TestCall:
    def test_asks_for_all_records_not_only_for_the_failed_ones(self) -> None:
        assert queries(1) == [
            {
                "failedOnly": "false",
                "pageSize": "40",
                "startTime": "2026-03-31T11:00:00",
                "endTime": "2026-03-31T12:00:00",
                "page": "1",
            }
        ]

    def test_filters_and_the_tenants_zone(self) -> None:
        [query] = queries(1, event_category="a:b", object_id="o", failed_only=True, timezone="America/New_York")

        assert (query["eventCategory"], query["objectId"], query["failedOnly"]) == ("a:b", "o", "true")
        assert query["endTime"] == "2026-03-31T08:00:00"

    def test_page_after_page_day_after_day(self) -> None:
        asked = queries(2, since=NOW - timedelta(days=2, hours=1))

        assert [(query["startTime"][5:13], query["endTime"][5:13], query["page"]) for query in asked] == [
            ("03-29T11", "03-30T11", "1"), ("03-29T11", "03-30T11", "2"),
            ("03-30T11", "03-31T11", "1"), ("03-30T11", "03-31T11", "2"),
            ("03-31T11", "03-31T12", "1"), ("03-31T11", "03-31T12", "2"),
        ]  # fmt: skip

    def test_pages_that_never_end(self) -> None:
        calls = callout_history(NOW - timedelta(hours=1), NOW)
        call = next(calls)
        page = call.read({"calloutHistories": [{"n": 1}], "nextPage": "more"})
        calls.send(page)
        with pytest.raises(PermanentError, match="same page twice"):
            calls.send(page)

    @pytest.mark.parametrize("reply", [{}, {"calloutHistories": None}, {"calloutHistories": [], "nextPage": "more"}])
    def test_nothing_there(self, reply: dict[str, Any]) -> None:
        calls = callout_history(NOW - timedelta(hours=1), NOW)
        with pytest.raises(StopIteration):
            calls.send(next(calls).read(reply))

    @pytest.mark.parametrize(
        ("arguments", "words"),
        [({"page_size": 41}, "from 1 to 40"), ({"until": NOW - timedelta(hours=2)}, "before since")],
    )
    def test_arguments(self, arguments: dict[str, Any], words: str) -> None:
        with pytest.raises(ValueError, match=words):
            queries(1, **arguments)


FIELDS = {
    "<Meter.Id>": "2470", "<MeterSession.Id>": "R-1", "<MeterSession.RunType>": "NORMAL",
    "<MeterSession.Status>": "PAUSED", "<MeterSession.PreviousStatus>": "RUNNING",
}  # fmt: skip


def record(minute: int = 0, attempt: int = 1, code: int | None = 200, **changes: Any) -> dict[str, Any]:
    context = {**FIELDS, **changes.pop("context", {})}
    return {
        "attemptedNum": attempt,
        "createTime": f"2026-03-31T09:{minute:02}:00",
        "eventCategory": "com.zuora.notification:MeterSession",
        "eventContext": context,
        "notification": "to Airflow",
        "requestMethod": "POST",
        "requestUrl": URL,
        "responseCode": code,
        **changes,
    }


def read(*records: dict[str, Any]) -> list[Entry]:
    return read_history(SETTINGS, records, NOW).entries


def minutes(entries: list[Entry]) -> list[list[int]]:
    return [[at.minute for at, _ in attempts_of(entry)] for entry in entries]


class TestReading:
    def test_a_record_is_a_status_change(self) -> None:
        [entry] = read(record(17, code=401))

        change = entry.transition
        assert change is not None
        assert (change.meter_id, change.session_id, change.status, change.previous_status) == (
            "2470", "R-1", "PAUSED", "RUNNING",
        )  # fmt: skip
        assert (entry.source, entry.observed_at) == (Source.HISTORY, datetime(2026, 3, 31, 9, 17, tzinfo=UTC))
        assert str(entry.notification_id).startswith("history:")
        assert attempts_of(entry) == [(entry.observed_at, 401)]
        assert Entry.from_dict(json.loads(json.dumps(entry.to_dict()))) == entry

    @pytest.mark.parametrize(
        "name", [str, lambda name: name.strip("<>"), lambda name: name.strip("<>").replace(".", "")]
    )
    def test_merge_fields_in_any_spelling(self, name: Any) -> None:
        [entry] = read(record() | {"eventContext": {name(key): value for key, value in FIELDS.items()}})

        assert entry.session_id == "R-1"

    def test_the_body_that_was_sent_comes_first(self) -> None:
        """What it lacks, the receiver did not get either."""
        [entry] = read(record(context={"<sendXML>": '{"meterId": "2470", "sessionId": "R-1", "status": "PAUSED"}'}))

        assert entry.transition is not None
        assert entry.transition.previous_status is None

    def test_a_body_that_is_no_json_was_never_sent(self) -> None:
        [entry] = read(record(code=-2000, context={"<sendXML>": '{"meterName": "a"b", '}))

        assert entry.session_id == "R-1"

    def test_times_are_the_tenants(self) -> None:
        settings = callout_settings("zuora", {"callout_timezone": "America/New_York"})

        [entry] = read_history(settings, [record() | {"createTime": "2026-03-31T05:00:00"}], NOW).entries

        assert entry.observed_at == datetime(2026, 3, 31, 9, tzinfo=UTC)

    @pytest.mark.parametrize("time", ["2026-03-31T19:00:00", "soon", None])
    def test_nothing_happens_later_than_now(self, time: str | None) -> None:
        assert read(record() | {"createTime": time})[0].observed_at == NOW

    def test_what_is_no_status_change_is_counted(self) -> None:
        operator = {"<MeterOperator.Id>": "7", "<MeterSession.Status>": ""}
        history = read_history(
            SETTINGS,
            [
                record(),
                record(),  # read twice, as its page moved on
                record(1, context=operator),
                record(2, context={"<MeterSession.Status>": ""}),
                record(3) | {"eventContext": {"<Account.Id>": "1"}},
                record(4) | {"eventContext": None},
                record(5) | {"requestUrl": "https://chat.example.com/hook"},
                {},
            ],
            NOW,
        )

        assert len(history.entries) == 1
        assert (history.records, history.siblings, history.unreadable, history.foreign) == (7, 1, 1, 4)
        assert history.categories == {"com.zuora.notification:MeterSession": 1}

    def test_behind_a_proxy_our_address_is_not_known(self) -> None:
        assert len(read(record() | {"requestUrl": "https://proxy.example.com/zuora"})) == 1


class TestAttempts:
    def test_attempts_at_one_callout_are_one_event(self) -> None:
        records = [record(0, 1, 503), record(30, 2, -1), record(59, 3, 200)]

        for order in (records, records[::-1]):
            assert minutes(read(*order)) == [[0, 30, 59]]

    def test_one_record_for_all_attempts_too(self) -> None:
        assert minutes(read(record(0, 3, 503), record(30, 1, 200))) == [[0], [30]]

    @pytest.mark.parametrize("code", [200, 201, 401, 404, 405, -2000])
    def test_where_zuora_does_not_try_again_it_is_another_event(self, code: int) -> None:
        assert minutes(read(record(0, 1, code), record(30, 2, 200))) == [[0], [30]]

    def test_two_callouts_under_way_at_once(self) -> None:
        records = [record(0, 1, 503), record(1, 1, 503), record(30, 2, 200), record(31, 2, 200)]

        assert minutes(read(*records)) == [[0, 30], [1, 31]]

    def test_two_notifications_tell_of_one_event(self) -> None:
        other = {"notification": "to Airflow, too"}

        assert minutes(read(record(0), record(0) | other, record(5), record(5) | other)) == [[0], [5]]

    def test_the_events_own_time_tells_more_than_attempts_do(self) -> None:
        first, second = ({"<Event.Timestamp>": f"2026-03-31T09:00:0{second}.248+0000"} for second in "12")
        sent_again = record(40, 1, 200, context=first)
        records = [record(0, 1, 404, context=first), record(0, 1, 200, context=second), sent_again]

        assert minutes(read(*records)) == [[0, 40], [0]] or minutes(read(*records)) == [[0], [0, 40]]

    def test_the_events_own_time_is_when_it_happened(self) -> None:
        for timestamp, second in (("2026-03-31T09:00:00.248Z", 0.248), ("2026-03-29T09:00:00Z", 0), ("9:00 PDT", 0)):
            [entry] = read(record(0, context={"<Event.Timestamp>": timestamp}))
            assert entry.observed_at == datetime(2026, 3, 31, 9, tzinfo=UTC) + timedelta(seconds=second)

    def test_a_day_alone_does_not_tell_events_apart(self) -> None:
        day = {"<Event.Timestamp>": "2026-03-31"}

        assert len(read(record(0, context=day), record(5, context=day))) == 2

    def test_ids_do_not_depend_on_what_else_was_read(self) -> None:
        events = [record(0, 1, 503), record(5, 1, 503)]

        ids = [entry.notification_id for entry in read(*events)]

        assert len(set(ids)) == 2
        assert [entry.notification_id for entry in read(events[1])] == ids[1:]
        assert [entry.notification_id for entry in read(*events, record(35, 2, 200))] == ids
