"""What Airflow's processes say to the API server: there and back, proven, and nothing malformed gets through."""

from __future__ import annotations

import hashlib
import hmac
import json
from contextlib import suppress
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from airflow_mediation_provider.protocol.calls import HourlyCalls, Left
from airflow_mediation_provider.protocol.entry import Entry, EntryKind
from airflow_mediation_provider.protocol.feed import (
    CLOCKS_SECONDS,
    FEED_PATH,
    LONGEST_WAIT_SECONDS,
    OBSERVATIONS_PATH,
    FeedReply,
    FeedRequest,
    MeterQuestion,
    NotProvenError,
    WaitEnded,
    WaitReport,
    derive_key,
    is_handshake,
    observations_from_bytes,
    observations_to_bytes,
    signed_connection,
    signed_headers,
    verify,
)
from airflow_mediation_provider.protocol.lifecycle import fold
from airflow_mediation_provider.protocol.transition import SessionTransition, Source

NOON = datetime(2026, 3, 31, 12, tzinfo=UTC)
TOLD = SessionTransition(meter_id="1", session_id="R-1", status="RUNNING", observed_at=NOON, source=Source.CALLOUT)
ENTRY = Entry(kind=EntryKind.STATUS_CHANGE, observed_at=NOON, source=Source.CALLOUT, transition=TOLD)
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
SAID = Left(limits="9, 9;w=60", remaining=4, reset_at=NOON, told_at=NOON)
CALLS = (HourlyCalls(hour=NOON, calls=3, limited=1, left=SAID), HourlyCalls(hour=NOON + timedelta(hours=1), calls=1))
QUESTION = FeedRequest(
    meters={"1": MeterQuestion(sessions=frozenset({"R-1", "R-2"}), since=frozenset({NOON})), "2": MeterQuestion()},
    wait=12.5,
    cursor="p.1.2",
    full=True,
    open=(REPORT, replace(REPORT, id="v", until=NOON)),
    ended=(WaitEnded(id="u", outcome="met", ended_at=NOON, session_id="R-1"),),
    calls=CALLS,
)
REPLY = FeedReply(cursor="p.2.3", callouts=True, last_callout_at=NOON, sessions=(fold([TOLD]),))
KEY = derive_key("client-secret")
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
    max_leaves=8,
)


class TestMessages:
    def test_there_and_back(self) -> None:
        assert FeedRequest.from_bytes(QUESTION.to_bytes()) == QUESTION
        assert FeedReply.from_bytes(REPLY.to_bytes()) == REPLY
        assert observations_from_bytes(observations_to_bytes([ENTRY], CALLS)) == ((ENTRY,), CALLS)
        assert observations_from_bytes(observations_to_bytes([])) == ((), ())
        assert FeedRequest.from_bytes(FeedRequest().to_bytes()) == FeedRequest()

    def test_what_a_later_version_adds_is_left_out(self) -> None:
        values = json.loads(REPLY.to_bytes())
        values["more"] = values["sessions"][0]["more"] = {"x": 1}
        assert FeedReply.from_bytes(json.dumps(values).encode()) == REPLY

    def test_a_process_of_an_earlier_version_tells_of_no_calls(self) -> None:
        asked, learned = json.loads(QUESTION.to_bytes()), json.loads(observations_to_bytes([ENTRY]))
        del asked["calls"], learned["calls"]
        assert FeedRequest.from_bytes(json.dumps(asked).encode()) == replace(QUESTION, calls=())
        assert observations_from_bytes(json.dumps(learned).encode()) == ((ENTRY,), ())

    @pytest.mark.parametrize(("asked", "granted"), [(-1, 0.0), (25, 20.0), (7, 7.0), (float("nan"), 20.0)])
    def test_nobody_waits_longer_than_allowed(self, asked: float, granted: float) -> None:
        assert FeedRequest.from_bytes(replace(QUESTION, wait=asked).to_bytes()).wait == granted

    @pytest.mark.parametrize("read", [FeedRequest.from_bytes, FeedReply.from_bytes, observations_from_bytes])
    @pytest.mark.parametrize(
        "body", [b"", b"[]", b"{}", b'"x"', b'{"protocol": 2}', b"\xff", b"[" * 100_000], ids=lambda body: body[:20]
    )
    def test_what_is_no_message_is_refused_in_one_sentence(self, read: Any, body: bytes) -> None:
        with pytest.raises(ValueError, match=r"^the (feed request|feed reply|observations request) "):
            read(body)

    @given(name=st.sampled_from(["wait", "cursor", "meters", "full", "waits", "calls"]), value=JSON)
    def test_whatever_a_field_holds_nothing_but_a_value_error_comes_of_it(self, name: str, value: Any) -> None:
        body = json.dumps({**json.loads(QUESTION.to_bytes()), name: value}).encode()
        try:
            question = FeedRequest.from_bytes(body)
        except ValueError:
            return
        assert 0 <= question.wait <= LONGEST_WAIT_SECONDS

    @given(name=st.sampled_from([*json.loads(QUESTION.to_bytes())["waits"]["open"][0]]), value=JSON)
    def test_nor_of_a_report(self, name: str, value: Any) -> None:
        values = json.loads(QUESTION.to_bytes())
        values["waits"]["open"][0][name] = value
        with suppress(ValueError):
            FeedRequest.from_bytes(json.dumps(values).encode())

    @given(name=st.sampled_from([*CALLS[0].to_dict()]), value=JSON)
    def test_nor_of_a_count_of_calls(self, name: str, value: Any) -> None:
        values = json.loads(observations_to_bytes([], CALLS))
        values["calls"][0][name] = value
        with suppress(ValueError):
            observations_from_bytes(json.dumps(values).encode())


class TestProof:
    def headers(self, **changes: Any) -> dict[str, str]:
        made = {"path": FEED_PATH, "conn_id": "zuora", "body": b"{}", "timestamp": 1_000_000, **changes}
        return {name.lower(): value for name, value in signed_headers(changes.pop("key", KEY), **made).items()}

    def check(self, headers: dict[str, str], **changes: Any) -> None:
        now = {"path": FEED_PATH, "conn_id": "zuora", "body": b"{}", "now": 1_000_000.0, **changes}
        verify(changes.pop("key", KEY), headers=headers, **now)

    def test_what_was_signed_is_proven(self) -> None:
        self.check(self.headers())

    def test_the_signature_is_the_one_that_is_agreed_on(self) -> None:
        """Triggerers and API servers are not upgraded at the same moment."""
        key = hmac.new(b"client-secret", b"airflow-mediation-provider feed v1", hashlib.sha256).digest()
        message = "v1\n/feed\n1000000\nzuora\n" + hashlib.sha256(b"{}").hexdigest()
        expected = hmac.new(key, message.encode(), hashlib.sha256).hexdigest()
        assert self.headers() == {
            "mediation-connection": "zuora",
            "mediation-timestamp": "1000000",
            "mediation-signature": f"v1={expected}",
        }

    @pytest.mark.parametrize("changed", [{"path": OBSERVATIONS_PATH}, {"conn_id": "other"}, {"body": b"{ }"}])
    def test_what_was_changed_on_its_way_is_not(self, changed: dict[str, Any]) -> None:
        with pytest.raises(NotProvenError, match="signature is wrong"):
            self.check(self.headers(), **changed)

    def test_another_secret_proves_nothing(self) -> None:
        with pytest.raises(NotProvenError, match="signature is wrong"):
            verify(derive_key("x"), path=FEED_PATH, conn_id="zuora", body=b"{}", headers=self.headers(), now=1_000_000)

    @pytest.mark.parametrize("late", [CLOCKS_SECONDS, -CLOCKS_SECONDS])
    def test_clocks_may_differ_by_some_minutes(self, late: int) -> None:
        self.check(self.headers(), now=1_000_000.0 + late)
        with pytest.raises(NotProvenError, match="clocks differ"):
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
        with pytest.raises(NotProvenError, match="missing or of another version"):
            self.check({**self.headers(), **changed})
        with pytest.raises(NotProvenError, match="missing or of another version"):
            self.check({})

    def test_a_signature_that_is_no_ascii_is_just_wrong(self) -> None:
        with pytest.raises(NotProvenError, match="signature is wrong"):
            self.check({**self.headers(), "mediation-signature": "v1=ä"})

    @pytest.mark.parametrize("conn_id", ["zuora", "a/b\\c:d.e#f!(g)-h_i", "größe_名前"])
    def test_a_connection_of_any_name_can_be_named(self, conn_id: str) -> None:
        headers = self.headers(conn_id=conn_id)
        assert headers["mediation-connection"].isascii()
        assert signed_connection(headers) == conn_id
        self.check(headers, conn_id=conn_id)
        assert signed_connection({}) == ""


def test_other_pages_are_no_handshake() -> None:
    assert is_handshake({"service": "mediation", "protocol": 1, "version": "9"})
    assert not any(map(is_handshake, [None, [], "x", {}, {"service": "mediation", "protocol": 2}, {"protocol": 1}]))
