"""The calls: what is sent, what is refused before sending, and the content of the replies."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta, timezone

import pytest
from hypothesis import given
from hypothesis import strategies as st

from airflow_mediation_provider.protocol.status import CODE_BY_STATUS, RunType
from airflow_mediation_provider.protocol.zuora import audit, replies
from airflow_mediation_provider.protocol.zuora import requests as api
from airflow_mediation_provider.protocol.zuora.errors import PermanentError
from airflow_mediation_provider.protocol.zuora.replies import MeterRun, Page, UnreadableReplyError, parse_time
from airflow_mediation_provider.protocol.zuora.requests import format_time

DOCUMENTED_RUN = {
    "success": True,
    "data": {
        "id": "5468",
        "sessionId": "R-00005468",
        "jobId": "da0b4346",
        "meterId": 2470,
        "version": "0.0.1",
        "revision": 1,
        "runType": 1,
        "runTypeDescription": "NORMAL",
        "startTime": "2025-03-31T09:17:21.192927441Z",
        "status": 10,
        "statusDescription": "INITIALIZING",
    },
    "previousPage": "null",
    "nextPage": "null",
}
SPAN = {"query_from": "2026-01-01T00:00:00Z", "query_to": datetime(2026, 1, 2, tzinfo=UTC)}


class TestRun:
    def test_the_documented_run_reply_is_parsed(self):
        run = api.run_meter(2470).read(DOCUMENTED_RUN)

        assert run == MeterRun(
            meter_id="2470",
            version="0.0.1",
            run_type=RunType.NORMAL,
            session_id="R-00005468",
            run_id="5468",
            job_id="da0b4346",
            revision=1,
            status="INITIALIZING",
            started_at=datetime(2025, 3, 31, 9, 17, 21, 192927, tzinfo=UTC),
        )

    def test_a_flat_debug_reply_with_a_named_status_is_parsed(self):
        flat = {"id": 7, "sessionId": "R-7", "meterId": "2470", "runType": 2, "runStatus": "TESTING", "endTime": "null"}

        run = api.debug_meter("2470").read(flat)

        assert (run.run_type, run.status, run.run_id, run.started_at) == (RunType.DEBUG, "TESTING", "7", None)

    def test_an_enveloped_debug_reply_is_parsed(self):
        assert api.debug_meter("1").read({"data": {"sessionId": "T-1", "runStatus": "2"}}).status == "TESTING"

    @pytest.mark.parametrize(
        "reply", [{}, {"data": {}}, {"data": None}, {"data": {"sessionId": "null", "status": None}}]
    )
    def test_a_run_reply_with_missing_fields_is_parsed(self, reply):
        run = api.run_meter("9").read(reply)

        assert (run.meter_id, run.session_id, run.status, run.run_type) == ("9", None, None, RunType.NORMAL)

    def test_to_dict_is_plain_json(self):
        plain = api.run_meter(2470).read(DOCUMENTED_RUN).to_dict()

        assert plain["started_at"] == "2025-03-31T09:17:21.192927+00:00"
        assert type(plain["run_type"]) is str

    def test_a_run_call_has_the_documented_request(self):
        call = api.run_meter(
            " m:1 ", unique_key="k", runtime_source_configs=[{"sourceType": "S3"}], event_store_source_options=[]
        )

        assert (call.method, call.path) == ("POST", "/meters/run/m%3A1/0.0.1")
        assert call.body == {"uniqueKey": "k", "runtimeSourceConfigs": [{"sourceType": "S3"}]}

    def test_only_a_run_with_a_key_may_be_repeated(self):
        assert api.run_meter("1", unique_key="k").repeatable
        assert not api.run_meter("1").repeatable
        assert not api.debug_meter("1").repeatable
        assert api.stop_meter("1").repeatable

    @pytest.mark.parametrize(
        ("make", "names"),
        [
            (lambda: api.run_meter(" "), "meter_id"),
            (lambda: api.run_meter("1", " "), "version"),
            (lambda: api.run_meter("1", unique_key=""), "unique_key"),
            (lambda: api.run_status(""), "meter_id"),
            (lambda: api.run_status("a/b"), "meter_id must be one id"),
            (lambda: api.run_status("1", "../2"), "version must be one id"),
        ],
    )
    def test_impossible_arguments_of_run_calls_are_refused(self, make, names):
        with pytest.raises(ValueError, match=names):
            make()


class TestStatusAndStop:
    @pytest.mark.parametrize(("name", "code"), [(str(status), code) for status, code in CODE_BY_STATUS.items()])
    def test_documented_codes_are_parsed(self, name, code):
        read = api.run_status(1).read

        assert read({"success": True, "data": {"runStatus": code, "runStatusDescription": "?"}}) == name
        assert read({"runStatus": str(code)}) == name
        assert read({"data": {"status": name.lower()}}) == name

    def test_undocumented_statuses_are_kept(self):
        read = api.run_status(1).read

        assert read({"data": {"runStatus": 14, "runStatusDescription": "Stopping"}}) == "STOPPING"
        assert read({"data": {"runStatus": 99}}) == "99"
        assert read({"data": {"runStatus": "HIBERNATING"}}) == "HIBERNATING"

    @pytest.mark.parametrize(
        "reply", [{}, {"data": []}, {"data": {"runStatus": "null"}}, {"data": {"runStatus": True}}]
    )
    def test_a_reply_without_a_status_is_refused(self, reply):
        with pytest.raises(UnreadableReplyError, match="runStatus"):
            api.run_status(1).read(reply)

    def test_a_stop_has_the_documented_request(self):
        assert api.stop_meter(5).query == ()
        forced = api.stop_meter(5, force=True)
        assert (forced.path, forced.query, forced.body) == ("/meters/stop/5/0.0.1", (("forceStop", "true"),), None)
        assert forced.read({"success": True}) is None


class TestAudit:
    def test_a_summary_has_the_documented_request(self):
        call = audit.meter_summary(5, run_type="NORMAL", session_ids=["R-1"], **SPAN)

        assert call.repeatable  # a read, although it is a POST
        assert (call.method, call.path) == ("POST", "/meters/5/summary")
        assert call.body == {
            "runType": "NORMAL",
            "sessionIds": ["R-1"],
            "groupBy": ["sessionId"],
            "queryFromTime": "2026-01-01T00:00:00+0000",
            "queryToTime": "2026-01-02T00:00:00+0000",
        }
        assert call.read({"data": {"output": [1]}}) == {"output": [1]}

    def test_entries_are_read_page_by_page(self):
        pages = audit.audit_trail_entries(5, export_type="ERROR", run_type=RunType.DEBUG, session_id="R-1", **SPAN)

        first = next(pages)
        assert dict(first.query) == {
            "exportType": "ERROR",
            "runType": "DEBUG",
            "queryFromTime": "2026-01-01T00:00:00+0000",
            "queryToTime": "2026-01-02T00:00:00+0000",
            "sessionId": "R-1",
            "pageSize": "30",
        }
        second = pages.send(first.read({"data": [{"eventId": "1"}], "nextPage": "c1"}))
        assert second.query == (*first.query, ("cursor", "c1"))
        with pytest.raises(StopIteration):
            pages.send(second.read({"data": [], "nextPage": "null"}))

    def test_a_repeated_cursor_ends_the_paging(self):
        pages = audit.audit_trail_entries(5, export_type="ERROR", run_type="NORMAL", **SPAN)
        next(pages)
        pages.send(Page([], "a"))
        pages.send(Page([], "b"))

        with pytest.raises(PermanentError, match="same next page twice"):
            pages.send(Page([], "a"))

    def test_more_pages_than_a_read_may_have_are_refused(self, monkeypatch):
        monkeypatch.setattr(replies, "MOST_PAGES", 3)
        pages = audit.audit_trail_entries(5, export_type="ERROR", run_type="NORMAL", **SPAN)
        next(pages)
        pages.send(Page([], "a"))
        pages.send(Page([], "b"))

        with pytest.raises(PermanentError, match="has more than 3 pages: ask for a shorter span"):
            pages.send(Page([], "c"))

    def test_an_export_has_the_documented_request(self):
        call = audit.create_export_job(
            5,
            export_type="SAMPLE",
            run_type="NORMAL",
            session_ids=["a", "b"],
            run_statuses=["FAILED"],
            file_format="parquet",
            **SPAN,
        )

        assert not call.repeatable
        assert [pair for pair in call.query if pair[0] in ("sessionIds", "runStatuses", "format", "compression")] == [
            ("sessionIds", "a"),
            ("sessionIds", "b"),
            ("runStatuses", "FAILED"),
            ("format", "parquet"),
        ]
        assert call.read({"data": {"requestId": 12}}) == "12"
        with pytest.raises(UnreadableReplyError):
            call.read({"data": {}})

    def test_export_jobs_and_address_have_the_documented_requests(self):
        call = audit.list_export_jobs(5, request_id="r", session_ids=["a"], page=2)

        assert call.query == (("sessionIds", "a"), ("requestId", "r"), ("page", "2"), ("pageSize", "30"))
        assert call.read({"data": {"jobs": [{"requestId": "r"}, None]}}) == [{"requestId": "r"}]
        assert audit.export_download_url("f/1").query == (("fileKey", "f/1"),)
        assert audit.export_download_url("f").read({"data": "https://x"}) == "https://x"
        with pytest.raises(UnreadableReplyError):
            audit.export_download_url("f").read({"data": {}})

    @pytest.mark.parametrize(
        ("change", "names"),
        [
            ({"export_type": "error"}, "export_type must be one of SAMPLE, ERROR"),
            ({"run_type": "TEST"}, "run_type must be one of NORMAL, DEBUG"),
            ({"query_from": datetime(2026, 1, 1)}, "query_from must be a time with a zone"),
            ({"query_to": "yesterday"}, "query_to must be an ISO 8601 time"),
            ({"page_size": 501}, "page_size must be from 1 to 500"),
        ],
    )
    def test_impossible_arguments_of_entries_are_refused(self, change, names):
        with pytest.raises(ValueError, match=names):
            audit.audit_trail_entries(5, **{"export_type": "ERROR", "run_type": "NORMAL", **SPAN, **change})

    @pytest.mark.parametrize(
        ("make", "names"),
        [
            (
                lambda: audit.meter_summary(5, run_type="NORMAL", session_ids="R-1", **SPAN),
                "session_ids must be a list",
            ),
            (
                lambda: audit.create_export_job(5, export_type="ERROR", run_type="NORMAL", file_format="xls", **SPAN),
                "file_format",
            ),
            (lambda: audit.list_export_jobs(5, page=0), "page must be"),
            (lambda: audit.list_export_jobs(5, page_size=101), "page_size must be"),
            (lambda: audit.export_download_url(""), "file_key"),
        ],
    )
    def test_impossible_arguments_of_other_calls_are_refused(self, make, names):
        with pytest.raises(ValueError, match=names):
            make()


class TestTimes:
    @pytest.mark.parametrize(
        ("text", "micros"),
        [
            ("2025-03-31T09:17:21.192927441Z", 192927),
            ("2025-03-31T09:17:21.1Z", 100000),
            ("2025-03-31T11:17:21+0200", 0),
            ("2025-03-31T09:17:21", 0),
            ("1743412641000", 0),
            (1743412641000, 0),
        ],
    )
    def test_times_are_parsed(self, text, micros):
        assert parse_time(text) == datetime(2025, 3, 31, 9, 17, 21, micros, tzinfo=UTC)

    @pytest.mark.parametrize(
        "text", [None, "", "null", "soon", {}, True, "99999999999999", "0001-01-01T00:00:00+14:00"]
    )
    def test_invalid_times_are_not_parsed(self, text):
        assert parse_time(text) is None

    @given(st.datetimes(min_value=datetime(1971, 1, 1), max_value=datetime(2100, 1, 1)), st.integers(-14, 14))
    def test_a_time_survives_the_round_trip(self, naive, hours):
        time = naive.replace(microsecond=0, tzinfo=timezone(timedelta(hours=hours)))

        assert parse_time(format_time("t", time)) == time
        assert format_time("t", time).endswith("+0000")
