"""The callout history: the pages that are requested, and the events in its records, with their attempts grouped."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from airflow_mediation_provider.protocol.callouts.history import attempts_of, callout_history, read_history
from airflow_mediation_provider.protocol.callouts.settings import callout_settings
from airflow_mediation_provider.protocol.sessions.journal_entry import JournalEntry
from airflow_mediation_provider.protocol.transition import Source
from airflow_mediation_provider.protocol.wire import from_plain, to_plain
from airflow_mediation_provider.protocol.zuora import replies
from airflow_mediation_provider.protocol.zuora.errors import PermanentError

SETTINGS = callout_settings("zuora", {})
NOW = datetime(2026, 3, 31, 12, tzinfo=UTC)
URL = "https://airflow.example.com/mediation/callouts/zuora"


def queries(pages: int, **arguments: Any) -> list[dict[str, str]]:
    """Return the queries that are sent where each time window has this number of pages."""
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
    def test_the_call_requests_all_records_not_only_the_failed_ones(self) -> None:
        assert queries(1) == [
            {
                "failedOnly": "false",
                "pageSize": "40",
                "startTime": "2026-03-31T11:00:00",
                "endTime": "2026-03-31T12:00:00",
                "page": "1",
            }
        ]

    def test_filters_and_the_tenants_zone_are_sent(self) -> None:
        [query] = queries(1, event_category="a:b", object_id="o", failed_only=True, timezone="America/New_York")

        assert (query["eventCategory"], query["objectId"], query["failedOnly"]) == ("a:b", "o", "true")
        assert query["endTime"] == "2026-03-31T08:00:00"

    @pytest.mark.parametrize("category", [1210, "1210", " 1210 "])
    def test_the_number_of_a_standard_event_is_sent(self, category: object) -> None:
        [query] = queries(1, event_category=category)

        assert query["eventCategory"] == "1210"

    def test_all_pages_of_each_day_are_requested_in_order(self) -> None:
        asked = queries(2, since=NOW - timedelta(days=2, hours=1))

        assert [(query["startTime"][5:13], query["endTime"][5:13], query["page"]) for query in asked] == [
            ("03-29T11", "03-30T11", "1"), ("03-29T11", "03-30T11", "2"),
            ("03-30T11", "03-31T11", "1"), ("03-30T11", "03-31T11", "2"),
            ("03-31T11", "03-31T12", "1"), ("03-31T11", "03-31T12", "2"),
        ]  # fmt: skip

    def test_pages_that_never_end_are_refused(self) -> None:
        calls = callout_history(NOW - timedelta(hours=1), NOW)
        call = next(calls)
        page = call.read({"calloutHistories": [{"n": 1}], "nextPage": "more"})
        calls.send(page)
        with pytest.raises(PermanentError, match="same page twice"):
            calls.send(page)

    def test_more_pages_than_a_read_may_have_are_refused(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(replies, "MOST_PAGES", 3)
        calls = callout_history(NOW - timedelta(hours=1), NOW)
        call = next(calls)
        for number in range(2):
            call = calls.send(call.read({"calloutHistories": [{"n": number}], "nextPage": "more"}))
        with pytest.raises(PermanentError, match="has more than 3 pages: ask for a shorter span"):
            calls.send(call.read({"calloutHistories": [{"n": 2}], "nextPage": "more"}))

    @pytest.mark.parametrize("reply", [{}, {"calloutHistories": None}, {"calloutHistories": [], "nextPage": "more"}])
    def test_an_empty_history_has_no_records(self, reply: dict[str, Any]) -> None:
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


def read(*records: dict[str, Any]) -> list[JournalEntry]:
    return read_history(SETTINGS, records, NOW).entries


def minutes(entries: list[JournalEntry]) -> list[list[int]]:
    return [[at.minute for at, _ in attempts_of(entry)] for entry in entries]


class TestReading:
    def test_a_record_becomes_a_status_change(self) -> None:
        [entry] = read(record(17, code=401))

        change = entry.transition
        assert change is not None
        assert (change.meter_id, change.session_id, change.status, change.previous_status) == (
            "2470", "R-1", "PAUSED", "RUNNING",
        )  # fmt: skip
        assert (entry.source, entry.observed_at) == (Source.HISTORY, datetime(2026, 3, 31, 9, 17, tzinfo=UTC))
        assert str(entry.notification_id).startswith("history:")
        assert attempts_of(entry) == [(entry.observed_at, 401)]
        assert from_plain(JournalEntry, to_plain(entry), "it") == entry

    @pytest.mark.parametrize(
        "name", [str, lambda name: name.strip("<>"), lambda name: name.strip("<>").replace(".", "")]
    )
    def test_merge_fields_are_read_in_any_spelling(self, name: Any) -> None:
        [entry] = read(record() | {"eventContext": {name(key): value for key, value in FIELDS.items()}})

        assert entry.session_id == "R-1"

    def test_the_body_that_was_sent_outranks_the_merge_fields(self) -> None:
        """A field that it lacks was not sent to the receiver either."""
        [entry] = read(record(context={"<sendXML>": '{"meterId": "2470", "sessionId": "R-1", "status": "PAUSED"}'}))

        assert entry.transition is not None
        assert entry.transition.previous_status is None

    def test_merge_fields_are_used_where_the_body_is_not_json(self) -> None:
        [entry] = read(record(code=-2000, context={"<sendXML>": '{"meterName": "a"b", '}))

        assert entry.session_id == "R-1"

    def test_times_are_read_in_the_tenants_zone(self) -> None:
        settings = callout_settings("zuora", {"callout_timezone": "America/New_York"})

        [entry] = read_history(settings, [record() | {"createTime": "2026-03-31T05:00:00"}], NOW).entries

        assert entry.observed_at == datetime(2026, 3, 31, 9, tzinfo=UTC)

    @pytest.mark.parametrize("time", ["2026-03-31T19:00:00", "soon", None])
    def test_no_event_is_later_than_now(self, time: str | None) -> None:
        assert read(record() | {"createTime": time})[0].observed_at == NOW

    def test_records_of_other_kinds_are_counted(self) -> None:
        operator = {"<MeterOperator.Id>": "7", "<MeterSession.Status>": ""}
        history = read_history(
            SETTINGS,
            [
                record(),
                record(),  # read twice, because its page moved on
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

    def test_all_records_count_where_none_has_our_path(self) -> None:
        assert len(read(record() | {"requestUrl": "https://proxy.example.com/zuora"})) == 1

    @pytest.mark.parametrize(
        ("conn_id", "end"),
        [
            ("zuora", "zuora"), ("zuora", "/zuora"), ("zuora", "zuora//"), ("zuora", "zuora%20?a=b"),
            ("zuora", "zuora \u200b"), ("zuora", "%7Auora#x"), ("team/zuora", "team%2Fzuora"),
            ("team/zuora", "team/zuora/"), ("a/callouts/b", "a/callouts/b"),
        ],
    )  # fmt: skip
    def test_each_address_that_the_endpoint_takes_is_ours(self, conn_id: str, end: str) -> None:
        ours = record() | {"requestUrl": f"https://a.example.com/mediation/callouts/{end}"}
        other = record(5) | {"requestUrl": "https://a.example.com/mediation/callouts/zuora2"}

        found = read_history(callout_settings(conn_id, {}), [ours, other], NOW)

        assert (minutes(found.entries), found.foreign) == ([[0]], 1)


class TestAttempts:
    def test_attempts_at_one_callout_are_one_event(self) -> None:
        records = [record(0, 1, 503), record(30, 2, -1), record(59, 3, 200)]

        for order in (records, records[::-1]):
            assert minutes(read(*order)) == [[0, 30, 59]]

    def test_a_single_record_of_several_attempts_is_one_event(self) -> None:
        assert minutes(read(record(0, 3, 503), record(30, 1, 200))) == [[0], [30]]

    @pytest.mark.parametrize("code", [200, 201, 401, 404, 405, -2000])
    def test_a_record_after_a_final_answer_is_another_event(self, code: int) -> None:
        assert minutes(read(record(0, 1, code), record(30, 2, 200))) == [[0], [30]]

    def test_the_attempts_of_two_concurrent_callouts_are_kept_apart(self) -> None:
        records = [record(0, 1, 503), record(1, 1, 503), record(30, 2, 200), record(31, 2, 200)]

        assert minutes(read(*records)) == [[0, 30], [1, 31]]

    def test_two_notifications_of_one_event_are_one_entry(self) -> None:
        other = {"notification": "to Airflow, too"}

        assert minutes(read(record(0), record(0) | other, record(5), record(5) | other)) == [[0], [5]]

    def test_the_events_own_timestamp_outranks_the_attempts_for_grouping(self) -> None:
        first, second = ({"<Event.Timestamp>": f"2026-03-31T09:00:0{second}.248+0000"} for second in "12")
        sent_again = record(40, 1, 200, context=first)
        records = [record(0, 1, 404, context=first), record(0, 1, 200, context=second), sent_again]

        assert minutes(read(*records)) == [[0, 40], [0]] or minutes(read(*records)) == [[0], [0, 40]]

    def test_the_events_own_timestamp_is_its_time(self) -> None:
        for timestamp, second in (("2026-03-31T09:00:00.248Z", 0.248), ("2026-03-29T09:00:00Z", 0), ("9:00 PDT", 0)):
            [entry] = read(record(0, context={"<Event.Timestamp>": timestamp}))
            assert entry.observed_at == datetime(2026, 3, 31, 9, tzinfo=UTC) + timedelta(seconds=second)

    def test_a_date_alone_does_not_distinguish_events(self) -> None:
        day = {"<Event.Timestamp>": "2026-03-31"}

        assert len(read(record(0, context=day), record(5, context=day))) == 2

    def test_attempts_without_their_first_one_are_not_of_the_next_round(self) -> None:
        """Rounds 400 s apart, attempts half an hour apart: the first of round 1 is before what was read."""
        records = [record(6, 1, 503), record(29, 2, 503), record(36, 2, 503), record(59, 3, 503)]

        assert minutes(read(*records)) == [[6, 36], [29, 59]]
        assert minutes(read(*records[:3])) == [[6, 36], [29]]

    def test_attempts_of_close_rounds_are_matched_by_the_usual_interval(self) -> None:
        records = [record(3, 1, 503), record(29, 2, 503), record(32, 2, 503), record(58, 3, 503)]

        assert minutes(read(*records)) == [[3, 32], [29, 58]]

    @pytest.mark.parametrize("other", ["2026-03-31 09:05:00", "2026-03-31T11:05:00+02:00", "1774947900", None])
    def test_two_notifications_of_one_event_are_one_entry_though_only_one_has_its_time_or_in_another_form(
        self, other: str | None
    ) -> None:
        def both(minute: int) -> list[dict[str, Any]]:
            fields = {"<Event.Timestamp>": f"2026-03-31T09:{minute:02}:00Z"}
            second = {} if other is None else {"<Event.Timestamp>": other.replace(":05:", f":{minute:02}:")}
            if other == "1774947900":
                second = {"<Event.Timestamp>": str(1774947900 + 60 * (minute - 5))}
            return [record(minute, context=fields), record(minute, context=second) | {"notification": "B"}]

        entries = read(*both(5), *both(7))

        assert minutes(entries) == [[5, 5], [7, 7]]
        assert [entry.observed_at.minute for entry in entries] == [5, 7]

    def test_an_event_that_only_the_notification_without_times_reports_counts(self) -> None:
        stamp = {"<Event.Timestamp>": "2026-03-31T09:05:00Z"}

        assert minutes(read(record(5, context=stamp), record(25) | {"notification": "B"})) == [[5], [25]]

    def test_ids_do_not_depend_on_other_records(self) -> None:
        events = [record(0, 1, 503), record(5, 1, 503)]

        ids = [entry.notification_id for entry in read(*events)]

        assert len(set(ids)) == 2
        assert [entry.notification_id for entry in read(events[1])] == ids[1:]
        assert [entry.notification_id for entry in read(*events, record(35, 2, 200))] == ids
