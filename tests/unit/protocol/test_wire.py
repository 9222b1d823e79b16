"""The messages between Airflow's processes and the API server: round trips, signatures, and malformed messages."""

from __future__ import annotations

import hashlib
import hmac
import json
import re
from contextlib import suppress
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from airflow_mediation_provider.protocol.sessions.journal_entry import EntryKind, JournalEntry
from airflow_mediation_provider.protocol.sessions.lifecycle import fold
from airflow_mediation_provider.protocol.sessions.verdict import TaskNote, TaskVerdict
from airflow_mediation_provider.protocol.sessions.window import Window, WindowReport
from airflow_mediation_provider.protocol.transition import SessionTransition, Source
from airflow_mediation_provider.protocol.wire import (
    CLOCKS_SECONDS,
    FEED_PATH,
    LONGEST_WAIT_SECONDS,
    OBSERVATIONS_PATH,
    FeedReply,
    FeedRequest,
    MeterQuestion,
    NotAuthenticatedError,
    Observations,
    WaitEnded,
    WaitReport,
    Waits,
    derive_key,
    digest_of,
    from_plain,
    is_handshake,
    is_signed_reply,
    observations_from_bytes,
    observations_to_bytes,
    reply_signature,
    signed_connection,
    signed_digest,
    signed_headers,
    to_plain,
    verify,
)
from airflow_mediation_provider.protocol.zuora.api_usage import HourlyUsage, RemainingQuota

NOON = datetime(2026, 3, 31, 12, tzinfo=UTC)
TOLD = SessionTransition(meter_id="1", session_id="R-1", status="RUNNING", observed_at=NOON, source=Source.CALLOUT)
ENTRY = JournalEntry(kind=EntryKind.STATUS_CHANGE, observed_at=NOON, source=Source.CALLOUT, transition=TOLD)
REPORT = WaitReport(
    id="w",
    meter_id="1",
    version="0.0.1",
    session_id=None,
    condition={"statuses": ["COMPLETED"]},
    dag_id="d",
    run_id="r",
    task_id="t",
    map_index=-1,
    try_number=1,
    mode="triggerer",
    created_at=NOON,
)
SAID = RemainingQuota(limits="9, 9;w=60", remaining=4, reset_at=NOON, told_at=NOON)
CALLS = (HourlyUsage(hour=NOON, calls=3, limited=1, left=SAID), HourlyUsage(hour=NOON + timedelta(hours=1), calls=1))
WINDOW = Window(NOON, NOON + timedelta(hours=1))
QUESTION = FeedRequest(
    meters={
        "1": MeterQuestion(sessions=frozenset({"R-1", "R-2"}), since=frozenset({NOON}), windows=frozenset({WINDOW})),
        "2": MeterQuestion(),
    },
    wait=12.5,
    cursor="p.1.2",
    full=True,
    waits=Waits(
        open=(REPORT, replace(REPORT, id="v", until=NOON, owner="5f0c", begins=True)),
        ended=(
            WaitEnded(id="u", outcome="met", ended_at=NOON, session_id="R-1"),
            WaitEnded(
                id="x", outcome="met", ended_at=NOON, owner="5f0c", status="FAILED", evidence="poll", certain=False
            ),
        ),
    ),
    calls=CALLS,
    owners=("v", "w"),
)
REPORTED = WindowReport(meter_id="1", window=WINDOW, callouts_before=True, received="R-1")
REPLY = FeedReply(
    cursor="p.2.3",
    callouts=True,
    last_callout_at=NOON,
    sessions=(fold([TOLD]),),
    windows=(REPORTED, replace(REPORTED, callouts_before=False, received=None)),
    owners={"v": "5f0c", "w": None},
    kept=False,
)
TASK = {"dag_id": "usage", "run_id": "r", "task_id": "wait", "map_index": -1, "try_number": 2}
VERDICT = TaskVerdict(
    wait_id="w",
    meter_id="1",
    session_id="R-1",
    run_type="NORMAL",
    status="FAILED",
    at=NOON,
    certain=True,
    **TASK,
    ti_id="019d0000-0000-7000-8000-000000000001",
    mode="triggerer",
)
BARE_NOTE = TaskNote(
    id="w",
    meter_id="1",
    session_id=None,
    kind="run",
    status=None,
    evidence=None,
    certain=None,
    message="The meter does not exist.",
    followed=(),
    skipped=(),
    **TASK,
    at=NOON,
)
NOTE = replace(
    BARE_NOTE, session_id="R-1", kind="branch", status="FAILED", evidence="poll", certain=False, followed=("alert",)
)
KEY = derive_key("client-secret")
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
    max_leaves=8,
)


class TestMessages:
    def test_messages_survive_the_round_trip(self) -> None:
        assert FeedRequest.from_bytes(QUESTION.to_bytes()) == QUESTION
        assert FeedReply.from_bytes(REPLY.to_bytes()) == REPLY
        assert observations_from_bytes(observations_to_bytes([ENTRY], CALLS)) == Observations((ENTRY,), CALLS)
        assert observations_from_bytes(observations_to_bytes()) == Observations(())
        message = {"verdicts": (VERDICT, replace(VERDICT, session_id=None)), "tasks": (NOTE, BARE_NOTE)}
        assert observations_from_bytes(observations_to_bytes(**message)) == Observations((), **message)
        assert FeedRequest.from_bytes(FeedRequest().to_bytes()) == FeedRequest()

    def test_unknown_fields_of_a_later_version_are_left_out(self) -> None:
        values = json.loads(REPLY.to_bytes())
        values["more"] = values["sessions"][0]["more"] = {"x": 1}
        assert FeedReply.from_bytes(json.dumps(values).encode()) == REPLY

    def test_a_request_of_an_earlier_version_has_no_api_usage(self) -> None:
        asked, learned = json.loads(QUESTION.to_bytes()), json.loads(observations_to_bytes([ENTRY]))
        del asked["calls"], learned["calls"]
        assert FeedRequest.from_bytes(json.dumps(asked).encode()) == replace(QUESTION, calls=())
        assert observations_from_bytes(json.dumps(learned).encode()) == Observations((ENTRY,))

    def test_a_request_of_an_earlier_version_has_no_owners_and_no_verdicts(self) -> None:
        asked, message = json.loads(QUESTION.to_bytes()), json.loads(observations_to_bytes([ENTRY]))
        del asked["owners"], message["verdicts"], message["tasks"]
        for wait in asked["waits"]["open"]:
            del wait["owner"], wait["begins"]
        for wait in asked["waits"]["ended"]:
            del wait["owner"], wait["status"], wait["evidence"], wait["certain"]
        read = FeedRequest.from_bytes(json.dumps(asked).encode())
        assert read.owners == ()
        assert {(each.owner, each.begins) for each in read.waits.open} == {("", False)}
        assert {(each.owner, each.status, each.evidence, each.certain) for each in read.waits.ended} == {
            ("", *[None] * 3)
        }
        assert observations_from_bytes(json.dumps(message).encode()) == Observations((ENTRY,))

    def test_a_reply_of_an_earlier_version_has_no_owners(self) -> None:
        replied = json.loads(REPLY.to_bytes())
        del replied["owners"], replied["kept"]
        assert FeedReply.from_bytes(json.dumps(replied).encode()) == replace(REPLY, owners={}, kept=True)

    @pytest.mark.parametrize(
        "wrong",
        [
            {"status": "RUNNING"},
            {"mode": "task"},
            {"certain": "yes"},
            {"certain": None},
            {"at": "2026-03-31"},
            {"ti_id": ""},
            {"session_id": 5},
            {"map_index": 2**40},
            {"try_number": "1"},
        ],
    )
    def test_an_invalid_verdict_or_note_does_not_affect_the_others(self, wrong: dict[str, Any]) -> None:
        message = json.loads(observations_to_bytes(verdicts=[VERDICT, VERDICT], tasks=[NOTE, NOTE]))
        message["verdicts"][0] |= wrong
        message["tasks"][1] = None
        read = observations_from_bytes(json.dumps(message).encode())
        assert (read.verdicts, read.tasks) == ((VERDICT,), (NOTE,))
        of_verdict, of_note = read.unreadable
        assert re.match(f"a verdict cannot be read: .*{next(iter(wrong))}", of_verdict)
        assert of_note == "a task's note cannot be read: Expected `object`, got `null`"

    @given(value=JSON, name=st.sampled_from([*to_plain(VERDICT), *to_plain(NOTE)]))
    def test_an_invalid_verdict_or_note_raises_only_value_errors(self, value: Any, name: str) -> None:
        for message in (VERDICT, NOTE):
            with suppress(ValueError):
                from_plain(type(message), to_plain(message) | {name: value}, "it")

    def test_a_request_of_an_earlier_version_has_no_windows(self) -> None:
        asked, replied = json.loads(QUESTION.to_bytes()), json.loads(REPLY.to_bytes())
        del asked["meters"]["1"]["windows"], replied["windows"]
        assert FeedRequest.from_bytes(json.dumps(asked).encode()).meters["1"].windows == frozenset()
        assert FeedReply.from_bytes(json.dumps(replied).encode()) == replace(REPLY, windows=())

    @given(value=JSON)
    def test_an_invalid_window_or_report_raises_only_value_errors(self, value: Any) -> None:
        for message, where in ((QUESTION, ("meters", "1", "windows")), (REPLY, ("windows", 0, "window"))):
            values = inner = json.loads(message.to_bytes())
            for key in where[:-1]:
                inner = inner[key]
            inner[where[-1]] = value
            with suppress(ValueError):
                type(message).from_bytes(json.dumps(values).encode())

    @pytest.mark.parametrize(("asked", "granted"), [(-1, 0.0), (25, 20.0), (7, 7.0), (float("nan"), 20.0)])
    def test_a_longer_requested_wait_is_limited(self, asked: float, granted: float) -> None:
        body = json.dumps({**json.loads(QUESTION.to_bytes()), "wait": asked}).encode()
        assert FeedRequest.from_bytes(body).wait == replace(QUESTION, wait=asked).wait == granted

    @pytest.mark.parametrize("read", [FeedRequest.from_bytes, FeedReply.from_bytes, observations_from_bytes])
    @pytest.mark.parametrize(
        "body", [b"", b"[]", b"{}", b'"x"', b'{"protocol": 2}', b"\xff", b"[" * 100_000], ids=lambda body: body[:20]
    )
    def test_an_invalid_message_is_refused_in_one_sentence(self, read: Any, body: bytes) -> None:
        with pytest.raises(ValueError, match=r"^the (feed request|feed reply|observations request) "):
            read(body)

    @given(name=st.sampled_from(["wait", "cursor", "meters", "full", "waits", "calls"]), value=JSON)
    def test_an_invalid_field_of_a_request_raises_only_value_errors(self, name: str, value: Any) -> None:
        body = json.dumps({**json.loads(QUESTION.to_bytes()), name: value}).encode()
        try:
            question = FeedRequest.from_bytes(body)
        except ValueError:
            return
        assert 0 <= question.wait <= LONGEST_WAIT_SECONDS

    @given(name=st.sampled_from([*json.loads(QUESTION.to_bytes())["waits"]["open"][0]]), value=JSON)
    def test_an_invalid_field_of_a_wait_report_raises_only_value_errors(self, name: str, value: Any) -> None:
        values = json.loads(QUESTION.to_bytes())
        values["waits"]["open"][0][name] = value
        with suppress(ValueError):
            FeedRequest.from_bytes(json.dumps(values).encode())

    @given(name=st.sampled_from([*to_plain(CALLS[0])]), value=JSON)
    def test_an_invalid_field_of_api_usage_raises_only_value_errors(self, name: str, value: Any) -> None:
        values = json.loads(observations_to_bytes([], CALLS))
        values["calls"][0][name] = value
        with suppress(ValueError):
            observations_from_bytes(json.dumps(values).encode())


class TestProof:
    def headers(self, **changes: Any) -> dict[str, str]:
        made = {"path": FEED_PATH, "conn_id": "zuora", "body": b"{}", "timestamp": 1_000_000, **changes}
        return {name.lower(): value for name, value in signed_headers(changes.pop("key", KEY), **made).items()}

    def check(self, headers: dict[str, str], **changes: Any) -> None:
        made = {"key": KEY, "path": FEED_PATH, "conn_id": "zuora", "body": b"{}", "now": 1_000_000.0, **changes}
        verify(made.pop("key"), headers=headers, digest=digest_of(made.pop("body")), **made)

    def test_a_signed_request_is_accepted(self) -> None:
        self.check(self.headers())

    def test_the_signature_is_the_same_in_all_versions(self) -> None:
        """Triggerers and API servers are not upgraded at the same time."""
        key = hmac.new(b"client-secret", b"airflow-mediation-provider feed v1", hashlib.sha256).digest()
        message = "v1\n/feed\n1000000\nzuora\n" + hashlib.sha256(b"{}").hexdigest()
        expected = hmac.new(key, message.encode(), hashlib.sha256).hexdigest()
        assert self.headers() == {
            "mediation-connection": "zuora",
            "mediation-timestamp": "1000000",
            "mediation-content-sha256": hashlib.sha256(b"{}").hexdigest(),
            "mediation-signature": f"v1={expected}",
        }

    def test_a_reply_is_signed_for_its_request(self) -> None:
        message = "v1 reply\nv1=abc\n" + hashlib.sha256(b"{}").hexdigest()
        signed = reply_signature(KEY, "v1=abc", b"{}")
        assert signed == f"v1={hmac.new(KEY, message.encode(), hashlib.sha256).hexdigest()}"
        assert is_signed_reply(KEY, "v1=abc", b"{}", signed)
        for changed in ((derive_key("x"), "v1=abc", b"{}"), (KEY, "v1=abd", b"{}"), (KEY, "v1=abc", b"[]")):
            assert not is_signed_reply(*changed, signed)
        assert not is_signed_reply(KEY, "v1=abc", b"{}", "v1=\u0663")

    @pytest.mark.parametrize(
        "fields",
        [
            {"meters": {"1": {"since": ["0001-01-01T00:00:00+14:00"]}}},
            {"meters": {"1": {"windows": [["2026-01-01T00:00:00+00:00", "9999-12-31T23:59:59-14:00"]]}}},
        ],
    )
    def test_an_instant_that_has_no_utc_form_is_refused(self, fields: dict[str, Any]) -> None:
        body = json.dumps({"protocol": 1, **fields}).encode()
        with pytest.raises(ValueError, match="cannot be read"):
            FeedRequest.from_bytes(body)

    @pytest.mark.parametrize("changed", [{"path": OBSERVATIONS_PATH}, {"conn_id": "other"}, {"body": b"{ }"}])
    def test_a_request_changed_in_transit_is_refused(self, changed: dict[str, Any]) -> None:
        with pytest.raises(NotAuthenticatedError, match="signature is wrong"):
            self.check(self.headers(), **changed)

    def test_a_signature_with_another_secret_is_refused(self) -> None:
        with pytest.raises(NotAuthenticatedError, match="signature is wrong"):
            self.check(self.headers(), key=derive_key("x"))

    @pytest.mark.parametrize("late", [CLOCKS_SECONDS, -CLOCKS_SECONDS])
    def test_clocks_may_differ_by_some_minutes(self, late: int) -> None:
        self.check(self.headers(), now=1_000_000.0 + late)
        with pytest.raises(NotAuthenticatedError, match="clocks differ"):
            self.check(self.headers(), now=1_000_000.0 + late * 1.01)

    @pytest.mark.parametrize(
        "changed",
        [
            {"mediation-signature": ""},
            {"mediation-signature": "v1="},
            {"mediation-signature": "v2=00"},
            {"mediation-timestamp": ""},
            {"mediation-timestamp": "-1"},
            {"mediation-timestamp": "1e6"},
            {"mediation-timestamp": "٣"},
            {"mediation-timestamp": "9" * 400},
        ],
        ids=str,
    )
    def test_headers_of_another_kind_are_refused(self, changed: dict[str, str]) -> None:
        with pytest.raises(NotAuthenticatedError, match="missing or of another version"):
            self.check({**self.headers(), **changed})
        with pytest.raises(NotAuthenticatedError, match="missing or of another version"):
            self.check({})

    def test_a_signature_that_is_not_ascii_is_refused(self) -> None:
        with pytest.raises(NotAuthenticatedError, match="signature is wrong"):
            self.check({**self.headers(), "mediation-signature": "v1=ä"})

    def test_the_headers_alone_name_the_body(self) -> None:
        assert signed_digest(self.headers()) == hashlib.sha256(b"{}").hexdigest()
        assert signed_digest({}) is None

    @pytest.mark.parametrize("conn_id", ["zuora", "a/b\\c:d.e#f!(g)-h_i", "größe_名前"])
    def test_any_connection_id_can_be_signed(self, conn_id: str) -> None:
        headers = self.headers(conn_id=conn_id)
        assert headers["mediation-connection"].isascii()
        assert signed_connection(headers) == conn_id
        self.check(headers, conn_id=conn_id)
        assert signed_connection({}) == ""


def test_the_answers_of_other_pages_are_no_handshake() -> None:
    assert is_handshake({"service": "mediation", "protocol": 1, "version": "9"})
    assert not any(map(is_handshake, [None, [], "x", {}, {"service": "mediation", "protocol": 2}, {"protocol": 1}]))
