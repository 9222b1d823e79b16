"""The callout history and the repetition of its callouts, as Zuora documents them."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

import pytest

from airflow_mediation_provider.simulator import CalloutConfig, Simulator

from .receiver import Answer

if TYPE_CHECKING:
    from .conftest import Client, Receiver

HISTORY = "/v1/notification-history/callout"
RESEND = "/notifications/callout-histories/resend"


@pytest.fixture
def sent(sim: Simulator, receiver: Receiver) -> Simulator:
    """Three callouts of one session: the second one failed with 400."""
    receiver.answer = lambda received: Answer(400 if received.json["status"] == "RUNNING" else 200)
    sim.callouts(CalloutConfig(url=receiver.url, name="Sessions", hmac_secret="top"))
    sim.start_session("1002", script=[["INITIALIZING", 1], ["RUNNING", 1], ["FAILED", None]])
    for _ in range(2):
        sim.wait_delivered()
        sim.advance(1)
    sim.wait_delivered()
    return sim


def history(client: Client, **query: Any) -> list[dict[str, Any]]:
    answer = client.call("GET", HISTORY, **query)
    assert answer.status == 200
    assert answer.json["success"] is True
    return list(answer.json["calloutHistories"])


def test_only_failed_callouts_are_returned_by_default(sent: Simulator, client: Client, receiver: Receiver) -> None:
    (record,) = history(client)
    context = record.pop("eventContext")
    assert record == {
        "attemptedNum": 1,
        "createTime": "2026-01-01T00:00:01",
        "eventCategory": "com.zuora.notification:status_change",
        "notification": "Sessions",
        "requestMethod": "POST",
        "requestUrl": receiver.url,
        "responseCode": 400,
    }
    assert (context["<MeterSession.Status>"], context["<MeterSession.PreviousStatus>"]) == ("RUNNING", "INITIALIZING")
    assert json.loads(context["<sendXML>"])["status"] == "RUNNING"


def test_all_callouts_are_returned_page_by_page_the_newest_first(sent: Simulator, client: Client) -> None:
    statuses, path = [], f"{HISTORY}?failedOnly=false&pageSize=2"
    for count in (2, 1):
        body = client.call("GET", path).json
        assert len(body["calloutHistories"]) == count
        statuses += [record["eventContext"]["<MeterSession.Status>"] for record in body["calloutHistories"]]
        following = body.get("nextPage")
        assert (following is None) is (count == 1)
        if following:
            assert following.startswith(sent.url)
            path = f"{urlsplit(following).path}?{urlsplit(following).query}"
    assert statuses == ["FAILED", "RUNNING", "INITIALIZING"]


def test_the_default_span_of_time_is_a_day(sent: Simulator, client: Client) -> None:
    at = "2026-01-01T00:00:01"
    assert len(history(client, failedOnly="false", startTime=at, endTime=at)) == 1
    assert len(history(client, failedOnly="false", startTime=at)) == 2
    sent.advance(86_398)
    client.token = None
    assert len(history(client, failedOnly="false")) == 2
    sent.advance(2)
    assert history(client, failedOnly="false") == []
    assert len(history(client, failedOnly="false", startTime="2026-01-01T00:00:00Z")) == 3


def test_times_are_in_the_tenants_zone(sent: Simulator, client: Client) -> None:
    sent.delivery(history_timezone="America/New_York")
    assert history(client)[0]["createTime"] == "2025-12-31T19:00:01"
    assert len(history(client, startTime="2025-12-31T19:00:00", endTime="2025-12-31T19:00:02")) == 1


def test_callouts_are_filtered_and_have_their_contents(sent: Simulator, client: Client) -> None:
    assert history(client, eventCategory="com.zuora.notification:other") == []
    assert len(history(client, eventCategory="com.zuora.notification:status_change")) == 1
    assert len(history(client, objectId="R-00005468")) == 1
    assert history(client, objectId="R-1") == []
    assert history(client, includeResponseContent="true")[0]["responseContent"] == '{"success": true}'


@pytest.mark.parametrize(
    ("query", "expected"),
    [
        ({"page": 2}, "pageSize"),
        ({"pageSize": 41}, "pageSize"),
        ({"pageSize": 0}, "pageSize"),
        ({"page": "x", "pageSize": 1}, "page"),
        ({"startTime": "yesterday"}, "startTime"),
        ({"failedOnly": "perhaps"}, "failedOnly"),
    ],
)
def test_a_wrong_parameter_is_refused(client: Client, query: dict[str, Any], expected: str) -> None:
    answer = client.call("GET", HISTORY, **query)
    assert answer.status == 400
    assert expected in answer.json["error"]["message"]


def test_the_history_needs_a_token_and_a_permission_but_not_mediation(sim: Simulator, client: Client) -> None:
    assert client.send("GET", HISTORY).status == 401
    sim.configure(mediation_enabled=False)
    assert history(client) == []
    sim.configure(permissions=["View Meters"])
    assert client.call("GET", HISTORY).json["error"]["code"] == "70002006"
    sim.configure(permissions=["Events & Notifications View Access"])
    assert history(client) == []
    assert client.call("POST", RESEND, ["x"]).json["error"]["code"] == "70002006"


@pytest.mark.parametrize("same", [True, False])
def test_a_callout_is_sent_again(sent: Simulator, client: Client, receiver: Receiver, same: bool) -> None:
    sent.delivery(resend_same_id=same)
    sent.callouts(CalloutConfig(url="http://elsewhere", name="Sessions", body="labels", hmac_secret="new"))
    receiver.answers(200)
    (failed,) = [callout for callout in sent.callout_history() if callout["code"] == 400]
    answer = client.call("POST", RESEND, [failed["id"], failed["id"]])
    assert (answer.status, answer.content) == (202, b"")
    sent.wait_delivered()
    first, again = (each for each in (receiver.received[1], receiver.received[3]))
    assert first.body == again.body
    assert first.path == again.path
    name = "Zuora-Notification-Id"
    assert (first.headers[name] == again.headers[name]) is same
    assert first.headers["X-Mediation-Signature"] != again.headers["X-Mediation-Signature"]
    assert [record["responseCode"] for record in history(client, failedOnly="false")][:2] == [200, 200]


def test_callouts_that_cannot_be_sent_again_are_named(sent: Simulator, client: Client) -> None:
    known = sent.callout_history()[0]["id"]
    some = client.call("POST", RESEND, [known, "unknown"])
    assert (some.status, some.json["unknown"]["code"]) == (202, "ObjectNotFound")
    none = client.call("POST", RESEND, ["unknown"])
    assert (none.status, list(none.json)) == (400, ["unknown"])
    for body in ([], {"ids": []}, ["x"] * 1001, b"no json"):
        assert client.call("POST", RESEND, body).status == 400


@pytest.mark.parametrize(("kind", "attempts"), [("callout", [(3, 503)]), ("attempt", [(3, 503), (2, 503), (1, 503)])])
def test_a_setting_decides_if_each_attempt_has_a_record(
    sim: Simulator, client: Client, receiver: Receiver, kind: str, attempts: list[tuple[int, int]]
) -> None:
    receiver.answers(503)
    sim.delivery(history_of=kind)
    sim.callouts(CalloutConfig(url=receiver.url))
    sim.start_session("1002", script=[["RUNNING", None]])
    for count in (1, 2, 3):
        sim.wait_for("callout", count, code=503)
        sim.advance(600)
        sim.advance(1200)
        client.token = None
    assert [(record["attemptedNum"], record["responseCode"]) for record in history(client)] == attempts
    assert len({record["id"] for record in sim.callout_history()}) == len(attempts)
