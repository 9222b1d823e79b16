"""Zuora's rules of callouts: what is sent, what is repeated and when, and the faults on request."""

from __future__ import annotations

import base64
import threading
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import pytest

from airflow_mediation_provider.simulator import CalloutConfig, Simulator, SimulatorConfig, running_simulator

from .receiver import Answer, Received

if TYPE_CHECKING:
    from .conftest import Client, Receiver

ENDS = [["INITIALIZING", 1], ["RUNNING", 1], ["FAILED", None]]


def play(sim: Simulator, meter: str = "1002") -> str:
    """Run a session to its end; three changes of its status."""
    session = sim.start_session(meter, script=ENDS)["session_id"]
    sim.advance(60)
    return str(session)


def attempts(sim: Simulator, **fields: Any) -> list[dict[str, Any]]:
    return sim.log("callout", **fields)


def fail(sim: Simulator) -> str:
    """Start one session, whose only callout a test checks."""
    return str(sim.start_session("1002", script=[["RUNNING", None]])["session_id"])


def test_each_change_of_a_status_is_sent(sim: Simulator, receiver: Receiver) -> None:
    sim.callouts(CalloutConfig(url=receiver.url))
    session = play(sim)
    sim.wait_delivered()
    bodies = sorted((each.json for each in receiver.received), key=lambda body: body["previousStatus"])
    assert [(body["previousStatus"], body["status"]) for body in bodies] == [
        ("", "INITIALIZING"),
        ("INITIALIZING", "RUNNING"),
        ("RUNNING", "FAILED"),
    ]
    assert bodies[2] == {
        "meterId": "1002",
        "meterName": "Storage",
        "sessionId": session,
        "runType": "NORMAL",
        "status": "FAILED",
        "previousStatus": "RUNNING",
        "startTime": "2026-01-01T00:00:00.000Z",
        "endTime": "2026-01-01T00:00:02.000Z",
    }
    changes = {entry["seq"]: entry["status"] for entry in sim.log("transition")}
    assert {entry["change"]: entry["status"] for entry in attempts(sim)} == changes
    assert all(entry["outcome"] == "delivered" and entry["code"] == 200 for entry in attempts(sim))


def test_nothing_is_sent_without_an_active_notification(sim: Simulator, receiver: Receiver) -> None:
    play(sim)
    sim.callouts(CalloutConfig(url=receiver.url, active=False))
    play(sim)
    assert attempts(sim) == []


@pytest.mark.parametrize(
    ("filters", "sent"),
    [
        ({"meters": [1002]}, 3),
        ({"meters": ["1001"]}, 0),
        ({"statuses": ["failed", "CANCELED"]}, 1),
        ({"run_types": ["DEBUG"]}, 2),
    ],
)
def test_filters_select_events(sim: Simulator, receiver: Receiver, filters: dict[str, Any], sent: int) -> None:
    sim.callouts(CalloutConfig(url=receiver.url, **filters))
    play(sim)
    sim.start_session("1001" if "meters" not in filters else "1003", run_type="DEBUG")
    sim.advance(60)
    sim.wait_delivered()
    assert len(receiver.received) == sent


def test_every_attempt_has_zuoras_headers_and_the_notification_keeps_its_id(sim: Simulator, receiver: Receiver) -> None:
    receiver.answers(503, 503, 200)
    sim.callouts(CalloutConfig(url=receiver.url))
    fail(sim)
    for count in (1, 2, 3):
        sim.wait_for("callout", count, code=503) if count < 3 else sim.wait_for("callout", outcome="delivered")
        sim.advance(1800)
    headers = [each.headers for each in receiver.received]
    assert len({each["Zuora-Request-Id"] for each in headers}) == 3
    assert len({each["Zuora-Notification-Id"] for each in headers}) == 1
    assert all(len(each["Zuora-Request-Id"]) == 32 for each in headers)
    assert all(each["X-Amzn-Trace-Id"].startswith("Root=1-") for each in headers)
    assert all(each["Content-Type"] == "application/json" for each in headers)


@pytest.mark.parametrize("status", [201, 202, 204, 301, 307, 400, 401, 404, 405, 409, 410, 413, 422])
def test_a_final_answer_is_not_retried(sim: Simulator, receiver: Receiver, status: int) -> None:
    receiver.answer = lambda received: Answer(status, b"", {"Location": "/elsewhere"})
    sim.callouts(CalloutConfig(url=receiver.url))
    fail(sim)
    (entry,) = sim.wait_for("callout", code=status)
    assert (entry["outcome"], entry["final"], entry["retry_at"]) == ("failed", True, None)
    sim.advance(86_400)
    sim.wait_delivered()
    assert [each.path for each in receiver.received] == ["/callouts"]


@pytest.mark.parametrize("status", [403, 408, 429, 500, 502, 503, 504, 599])
def test_a_retriable_answer_leads_to_three_attempts_in_all(sim: Simulator, receiver: Receiver, status: int) -> None:
    receiver.answers(status)
    sim.callouts(CalloutConfig(url=receiver.url))
    fail(sim)
    for count in (1, 2):
        entries = sim.wait_for("callout", count, code=status)
        assert entries[-1]["retry_at"] == entries[-1]["at"] + 1800
        sim.advance(1799)
        assert len(attempts(sim)) == count
        sim.advance(1)
    third = sim.wait_for("callout", 3, code=status)[-1]
    assert (third["attempt"], third["outcome"], third["final"]) == (3, "failed", True)
    sim.advance(86_400)
    assert len(attempts(sim)) == 3


def test_the_interval_follows_the_clock_and_the_attempts_are_a_setting(receiver: Receiver) -> None:
    receiver.answers(500)
    with running_simulator(time_scale=0.0001, delivery={"attempts": 5}) as sim:
        sim.callouts(CalloutConfig(url=receiver.url))
        fail(sim)
        entries = sim.wait_for("callout", 5, code=500)
        sim.wait_delivered()
        gaps = [later["at"] - earlier["at"] for earlier, later in pairwise(entries)]
    assert len(receiver.received) == 5
    assert all(0.18 <= gap < 5 for gap in gaps)


def test_a_callout_that_is_not_retriable_is_sent_once(sim: Simulator, receiver: Receiver) -> None:
    receiver.answers(503)
    sim.callouts(CalloutConfig(url=receiver.url, retry=False))
    fail(sim)
    assert sim.wait_for("callout", code=503)[0]["final"]


def test_no_answer_is_retried(sim: Simulator, receiver: Receiver) -> None:
    answers = [Answer(reset=True), Answer()]
    receiver.answer = lambda received: answers.pop(0)
    sim.callouts(CalloutConfig(url=receiver.url))
    fail(sim)
    (entry,) = sim.wait_for("callout", outcome="retried")
    assert (entry["code"], bool(entry["error"])) == (-1, True)
    sim.advance(1800)
    assert sim.wait_for("callout", outcome="delivered")[0]["attempt"] == 2


def test_a_receiver_that_does_not_listen_is_no_answer(sim: Simulator) -> None:
    sim.callouts(CalloutConfig(url="http://127.0.0.1:9/callouts"))
    fail(sim)
    assert sim.wait_for("callout", code=-1)[0]["outcome"] == "retried"


def test_an_answer_after_the_timeout_does_not_count(sim: Simulator, receiver: Receiver) -> None:
    gate = threading.Event()
    receiver.answer = lambda received: Answer(wait_for=gate)
    sim.callouts(CalloutConfig(url=receiver.url))
    sim.delivery(data_timeout=0.05, connect_timeout=0.05)
    fail(sim)
    (entry,) = sim.wait_for("callout", outcome="retried")
    gate.set()
    assert entry["code"] == -1
    assert "Timeout" in entry["error"]


@pytest.mark.parametrize(("confirm", "outcome"), [(False, "delivered"), (True, "retried")])
def test_success_may_have_to_be_confirmed(sim: Simulator, receiver: Receiver, confirm: bool, outcome: str) -> None:
    receiver.answer = lambda received: Answer(body=b'{"success": false}')
    sim.callouts(CalloutConfig(url=receiver.url))
    sim.delivery(confirm=confirm)
    fail(sim)
    assert len(sim.wait_for("callout", outcome=outcome, code=200)) == 1


def asks_for_basic(received: Received) -> Answer:
    right = "Basic " + base64.b64encode("zuora:pä ss".encode()).decode()
    if received.headers.get("Authorization") == right:
        return Answer()
    return Answer(401, b"", {"WWW-Authenticate": 'Basic realm="mediation"'})


def test_basic_authentication_waits_for_the_challenge(sim: Simulator, receiver: Receiver) -> None:
    receiver.answer = asks_for_basic
    sim.callouts(CalloutConfig(url=receiver.url, username="zuora", password="pä ss"))
    fail(sim)
    sim.wait_for("callout", outcome="delivered")
    first, second = receiver.received
    assert "Authorization" not in first.headers
    assert first.headers["Zuora-Request-Id"] == second.headers["Zuora-Request-Id"]
    assert "Basic" not in str(sim.log("callout"))


def test_basic_authentication_may_be_preemptive(sim: Simulator, receiver: Receiver) -> None:
    receiver.answer = asks_for_basic
    sim.callouts(CalloutConfig(url=receiver.url, username="zuora", password="pä ss", preemptive=True))
    fail(sim)
    sim.wait_for("callout", outcome="delivered")
    assert len(receiver.received) == 1


@pytest.mark.parametrize(("retry", "outcome"), [(False, "failed"), (True, "retried")])
def test_wrong_credentials_are_retried_only_if_configured(
    sim: Simulator, receiver: Receiver, retry: bool, outcome: str
) -> None:
    receiver.answer = asks_for_basic
    sim.callouts(CalloutConfig(url=receiver.url, username="zuora", password="wrong"))
    sim.delivery(retry_unauthorized=retry)
    fail(sim)
    assert len(sim.wait_for("callout", code=401, outcome=outcome)) == 1
    assert len(receiver.received) == 2


def test_a_body_that_is_no_json_is_neither_sent_nor_retried(sim: Simulator, receiver: Receiver) -> None:
    sim.set_meter("1002", name='the "best" one')
    sim.callouts(CalloutConfig(url=receiver.url))
    fail(sim)
    sim.wait_delivered()
    assert [(entry["code"], entry["outcome"]) for entry in attempts(sim)] == [(-2000, "failed")]
    assert [entry["code"] for entry in sim.callout_history()] == [-2000]
    assert receiver.received == []


def test_several_notifications_on_one_event_have_different_ids(sim: Simulator, receiver: Receiver) -> None:
    sim.callouts(CalloutConfig(url=receiver.url, name="a"), CalloutConfig(url=receiver.url, name="b"))
    fail(sim)
    sim.wait_delivered()
    assert len({each.headers["Zuora-Notification-Id"] for each in receiver.received}) == 2
    assert len({entry["event_id"] for entry in attempts(sim)}) == 1


def test_copies_have_the_same_another_or_no_id(sim: Simulator, receiver: Receiver) -> None:
    sim.callouts(CalloutConfig(url=receiver.url, copies=(1, 3), copy_ids=("same", "other", "none")))
    for _ in range(30):
        play(sim)
    sim.wait_delivered()
    by_change: dict[int, list[str | None]] = {}
    for entry in attempts(sim):
        by_change.setdefault(entry["change"], []).append(entry["notification_id"])
    assert {len(ids) for ids in by_change.values()} == {1, 2, 3}
    kinds = {("none" if None in ids else "other" if len(set(ids)) > 1 else "same") for ids in by_change.values()}
    assert kinds == {"none", "other", "same"}
    sent = sorted(str(each.headers.get("Zuora-Notification-Id")) for each in receiver.received)
    assert sent == sorted(str(entry["notification_id"]) for entry in attempts(sim))


def test_disorder_delays_callouts_and_the_same_seed_repeats_the_order(receiver: Receiver) -> None:
    def order(seed: int) -> list[str]:
        with running_simulator(SimulatorConfig(clock="manual", delivery={"seed": seed})) as sim:
            sim.callouts(CalloutConfig(url=receiver.url, disorder=100))
            play(sim)
            sim.advance(100)
            sim.wait_delivered()
            return [entry["status"] for entry in sim.log("callout")]

    orders = {seed: order(seed) for seed in range(4)}
    assert len({tuple(each) for each in orders.values()}) > 1
    assert order(0) == orders[0]


def test_a_lost_callout_fails_in_the_history_and_a_vanished_one_is_not_in_it(
    sim: Simulator, receiver: Receiver
) -> None:
    sim.callouts(CalloutConfig(url=receiver.url, loss=1.0))
    fail(sim)
    for count in (1, 2, 3):
        sim.wait_for("callout", count, code=-1)
        sim.advance(1800)
    sim.callouts(CalloutConfig(url=receiver.url, vanish=1.0))
    fail(sim)
    assert [entry["outcome"] for entry in attempts(sim)] == ["retried", "retried", "failed", "vanished"]
    assert [(entry["code"], entry["attempts"]) for entry in sim.callout_history()] == [(-1, 3)]
    assert receiver.received == []


def test_about_the_configured_share_of_callouts_is_lost(sim: Simulator, receiver: Receiver) -> None:
    sim.callouts(CalloutConfig(url=receiver.url, loss=0.5, retry=False))
    for _ in range(40):
        play(sim)
    sim.wait_delivered()
    assert 40 < len(attempts(sim, outcome="failed")) < 80
    assert len(attempts(sim)) == 120


def test_a_lost_answer_makes_zuora_send_again_what_arrived(sim: Simulator, receiver: Receiver) -> None:
    sim.callouts(CalloutConfig(url=receiver.url, lost_answers=1.0))
    fail(sim)
    for count in (1, 2, 3):
        sim.wait_for("callout", count, code=-1)
        sim.advance(1800)
    assert len(receiver.received) == 3
    assert len({each.headers["Zuora-Notification-Id"] for each in receiver.received}) == 1


def test_as_many_callouts_are_sent_at_once_as_allowed(sim: Simulator, receiver: Receiver) -> None:
    gate, third = threading.Event(), threading.Event()

    def answer(received: Received) -> Answer:
        if len(receiver.received) == 3:
            third.set()
        return Answer(wait_for=gate)

    receiver.answer = answer
    sim.delivery(concurrency=3)
    sim.callouts(CalloutConfig(url=receiver.url, copies=10))
    fail(sim)
    assert third.wait(5)
    assert sim.health()["callouts_pending"] == 10
    gate.set()
    sim.wait_delivered()
    assert (len(receiver.received), receiver.most_at_once) == (10, 3)


def test_the_simulator_stops_while_callouts_are_being_sent(receiver: Receiver) -> None:
    gate = threading.Event()
    receiver.answer = lambda received: Answer(wait_for=gate)
    with running_simulator(SimulatorConfig(clock="manual", callouts=({"url": receiver.url},))) as sim:
        fail(sim)
        sim.wait_for("callout")
    gate.set()
    assert [entry["outcome"] for entry in sim.log("callout")] == [None]


def test_reset_deletes_callouts(sim: Simulator, receiver: Receiver) -> None:
    gate = threading.Event()
    receiver.answer = lambda received: Answer(503, wait_for=gate)
    sim.callouts(CalloutConfig(url=receiver.url))
    fail(sim)
    sim.wait_for("callout")
    sim.reset()
    gate.set()
    sim.wait_delivered()
    assert (sim.callout_history(), sim.log("callout")) == ([], [])
    fail(sim)
    assert sim.log("callout") == []  # the notification was not of the start


def test_other_events_are_sent_on_demand(sim: Simulator, receiver: Receiver) -> None:
    sim.callouts(
        CalloutConfig(url=receiver.url + "/periodic", event="periodic"),
        CalloutConfig(url=receiver.url + "/query", event="event_store_query"),
    )
    session = play(sim)
    assert sim.publish("periodic", session) == 3
    assert sim.publish("event_store_query", **{"EventStoreQuery.Status": "FAILED"}) == 1
    sim.wait_delivered()
    by_path = {each.path: each.json for each in receiver.received}
    periodic, query = by_path["/callouts/periodic"], by_path["/callouts/query"]
    assert (periodic["sessionId"], periodic["meterId"], "status" in periodic) == (session, "1002", False)
    assert query["status"] == "FAILED"
    with pytest.raises(ValueError, match="unknown field"):
        sim.publish("event_store_query", Colour=1)
    with pytest.raises(ValueError, match="event must be"):
        sim.publish("status_change")
    with pytest.raises(KeyError):
        sim.publish("periodic", "R-1")


def test_the_control_api_has_all_callout_operations(sim: Simulator, client: Client, receiver: Receiver) -> None:
    callout = {
        "url": receiver.url,
        "hmac_secret": "top",
        "headers": {"X-Token": "tip"},
        "username": "u",
        "password": "p",
    }
    assert client.control("POST", "/config", {"callouts": [callout]}).status == 200
    assert client.control("POST", "/delivery", {"attempts": 4}).status == 200
    session = fail(sim)
    event = {"event": "periodic", "session_id": session}
    assert client.control("POST", "/events", event).json == {"callouts": 0}
    sim.wait_delivered()
    state = client.control("GET", "/callouts")
    assert state.json["delivery"]["attempts"] == 4
    assert state.json["delivery"]["interval"] == 1800
    assert (state.json["pending"], state.json["callouts"][0]["signed"]) == (0, True)
    assert [entry["session_id"] for entry in state.json["history"]] == [session]
    assert not {b"top", b"tip"} & set(state.content.split(b'"'))
    assert client.control("POST", "/config", {"callouts": [{"url": "ftp://x"}]}).status == 400
    assert client.control("POST", "/events", {"event": "sunrise"}).status == 400
    assert client.control("POST", "/delivery", {"attempts": 6}).status == 400


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({"url": "mediation.example"}, "url"),
        ({"colour": 1}, "unknown setting colour"),
        ({"hmac_algorithm": "SHA-3"}, "SHA-512"),
        ({"hmac_output_format": "OCTAL"}, "BASE64"),
        ({"event": "sunrise"}, "status_change"),
        ({"copies": 0}, "copies"),
        ({"copies": (2, 1)}, "copies"),
        ({"copy_ids": ()}, "copy_ids"),
        ({"copy_ids": "third"}, "copy_ids"),
        ({"loss": -1}, "loss"),
        ({"timezone": "Mars/Olympus"}, "Mars"),
    ],
)
def test_a_wrong_setting_is_named(settings: dict[str, Any], expected: str) -> None:
    with pytest.raises(ValueError, match=expected):
        CalloutConfig.parse({"url": "https://airflow.example", **settings})
