from __future__ import annotations

import http.client
import json
import threading
import time
from typing import TYPE_CHECKING, Any

import pytest

from airflow_mediation_provider.simulator.clock import ManualClock
from airflow_mediation_provider.simulator.faults import Fault, FaultKind, Faults

if TYPE_CHECKING:
    from airflow_mediation_provider.simulator import Simulator

    from .conftest import Client

STATUS = "/meters/1001/0.0.1/runStatus"


# ---- which requests a fault affects


def struck(faults: Faults, method: str = "GET", path: str = STATUS, meter: str | None = "1001") -> list[str]:
    return [str(fault.kind) for fault in faults.strike(method, path, meter)]


def test_a_fault_affects_its_count_of_requests_after_the_first_ones() -> None:
    faults = Faults(ManualClock())
    faults.add(Fault(kind=FaultKind.STATUS, after=1, count=2))
    assert [len(struck(faults)) for _ in range(5)] == [0, 1, 1, 0, 0]
    assert faults.active() == []


def test_a_fault_ends_after_its_seconds() -> None:
    clock = ManualClock()
    faults = Faults(clock)
    faults.add(Fault(kind=FaultKind.STATUS, seconds=6))
    clock.advance(5.9)
    assert struck(faults) == ["status"]
    clock.advance(0.1)
    assert struck(faults) == []


@pytest.mark.parametrize(
    ("scope", "hits"),
    [
        ({}, [True, True, True, False]),
        ({"path": "runStatus$"}, [True, False, True, False]),
        ({"path": "/oauth/token"}, [False, False, False, True]),
        ({"method": "post"}, [False, True, False, False]),
        ({"meter": 1001}, [True, True, False, False]),
    ],
)
def test_a_fault_affects_only_matching_requests(scope: dict[str, Any], hits: list[bool]) -> None:
    faults = Faults(ManualClock())
    faults.add(Fault.parse({"kind": "status", **scope}))
    calls = [
        ("GET", STATUS, "1001"),
        ("POST", "/meters/run/1001/0.0.1", "1001"),
        ("GET", "/meters/1002/0.0.1/runStatus", "1002"),
        ("POST", "/oauth/token", None),
    ]
    assert [bool(struck(faults, *call)) for call in calls] == hits


def test_delays_combine_with_the_oldest_other_fault() -> None:
    faults = Faults(ManualClock())
    for kind in ("latency", "reset", "status", "slow"):
        faults.add(Fault.parse({"kind": kind, "count": 1}))
    assert struck(faults) == ["latency", "reset", "slow"]
    assert struck(faults) == ["status"]


@pytest.mark.parametrize(
    ("fault", "named"),
    [
        ({}, "kind is missing"),
        ({"kind": "explode"}, "one of status"),
        ({"kind": "status", "colour": 1}, "unknown field colour"),
        ({"kind": "status", "path": "("}, "regular expression"),
        ({"kind": "status", "count": -1}, "count"),
        ({"kind": "latency", "delay": "1"}, "delay"),
        ({"kind": "status", "headers": ["a"]}, "headers"),
        ({"kind": "status", "served": 5}, "unknown field served"),
    ],
)
def test_the_error_of_a_wrong_fault_names_the_cause(fault: dict[str, Any], named: str) -> None:
    with pytest.raises(ValueError, match=named):
        Fault.parse(fault)


# ---- the effect of each on a client


def outcome(sim: Simulator) -> tuple[int | None, str, bool]:
    """Return status, outcome and carried_out of the newest request once its end is in the log."""
    seq = sim.log(kind="request")[-1]["seq"]
    sim.wait_for("request", seq=seq, finished=True)
    entry = sim.log(kind="request", seq=seq)[0]
    return entry["status"], entry["outcome"], entry["carried_out"]


def test_status_sends_the_configured_answer(sim: Simulator, client: Client) -> None:
    client.run()
    fault = sim.fault("status", status=429, headers={"Retry-After": 7}, body={"reasons": [{"code": "70"}]}, count=1)
    answer = client.call("GET", STATUS)
    assert (answer.status, answer.headers["Retry-After"], answer.json) == (429, "7", {"reasons": [{"code": "70"}]})
    assert outcome(sim) == (429, "answered", False)
    (served,) = sim.log(kind="fault")
    assert (served["fault"], served["fault_kind"]) == (fault, "status")
    assert served["request"] == sim.log(kind="request")[-1]["seq"]
    assert client.call("GET", STATUS).status == 200


def test_status_without_a_body_is_an_error_in_zuoras_form(sim: Simulator, client: Client) -> None:
    sim.fault("status", count=1)
    answer = client.call("GET", STATUS)
    assert (answer.status, answer.json["success"]) == (503, False)
    sim.fault("status", status=502, body="<h1>Bad gateway</h1>", headers={"Content-Type": "text/html"}, count=1)
    answer = client.call("GET", STATUS)
    assert (answer.headers["Content-Type"], answer.content) == ("text/html", b"<h1>Bad gateway</h1>")


def test_a_gateway_timeout_may_follow_a_start(sim: Simulator, client: Client) -> None:
    sim.fault("status", status=504, carried_out=True, count=1)
    assert client.run(uniqueKey="k").status == 504
    assert [start["unique_key"] for start in sim.log(kind="start")] == ["k"]
    assert outcome(sim) == (504, "answered", True)


def test_html_and_badjson_have_status_200(sim: Simulator, client: Client) -> None:
    sim.fault("html", count=1)
    answer = client.run()
    assert (answer.status, answer.headers["Content-Type"]) == (200, "text/html")
    assert b"maintenance" in answer.content
    sim.fault("badjson", count=1)
    answer = client.run()
    assert (answer.status, answer.headers["Content-Type"]) == (200, "application/json")
    with pytest.raises(json.JSONDecodeError):
        json.loads(answer.content)
    assert sim.log(kind="start") == []


@pytest.mark.parametrize(("kind", "starts"), [("reset", 0), ("lost_reply", 1)])
def test_the_connection_is_reset_before_or_after(sim: Simulator, client: Client, kind: str, starts: int) -> None:
    client.call("GET", STATUS)
    sim.fault(kind, count=1)
    with pytest.raises(ConnectionResetError):
        client.run(uniqueKey="k")
    assert len(sim.log(kind="start")) == starts
    assert outcome(sim) == (None, kind, bool(starts))
    assert client.run(uniqueKey="k").status == (400 if starts else 200)


def test_truncated_announces_more_than_it_sends(sim: Simulator, client: Client) -> None:
    sim.fault("truncated", count=1)
    with pytest.raises(http.client.IncompleteRead):
        client.run()
    assert outcome(sim) == (200, "truncated", True)


def test_hang_never_answers(sim: Simulator, client: Client) -> None:
    client.call("GET", STATUS)
    sim.fault("hang", count=1)
    client.timeout = 0.5
    with pytest.raises(TimeoutError):
        client.run()
    assert outcome(sim) == (None, "hung", False)
    assert sim.log(kind="start") == []
    assert client.call("GET", STATUS).status == 200


def test_clearing_faults_closes_connections_that_hang(sim: Simulator, client: Client) -> None:
    client.call("GET", STATUS)
    sim.fault("hang")
    ends: list[BaseException] = []

    def ask() -> None:
        try:
            client.call("GET", STATUS)
        except OSError as error:
            ends.append(error)

    asker = threading.Thread(target=ask)
    asker.start()
    sim.wait_for("fault")
    assert sim.health()["requests_in_flight"] == 1
    assert sim.clear_faults() == 1
    asker.join(5)
    assert [type(error) for error in ends] == [ConnectionResetError]
    assert client.call("GET", STATUS).status == 200


@pytest.mark.parametrize("kind", ["latency", "slow"])
def test_delays_delay_the_reply(sim: Simulator, client: Client, kind: str) -> None:
    client.call("GET", STATUS)
    sim.fault(kind, delay=0.1, count=1)
    began = time.monotonic()
    assert client.run().status == 200
    assert time.monotonic() - began >= 0.1
    assert client.call("GET", STATUS).status == 200


def test_latency_delays_the_reply_and_delay_before_the_operation(sim: Simulator, client: Client) -> None:
    client.call("GET", STATUS)
    client.timeout = 0.3
    sim.fault("latency", delay=1, count=1)
    with pytest.raises(TimeoutError):
        client.run(uniqueKey="first")
    assert [start["unique_key"] for start in sim.wait_for("start")] == ["first"]
    sim.fault("delay_before", delay=2, count=1)
    with pytest.raises(TimeoutError):
        client.run(uniqueKey="second")
    assert len(sim.log(kind="start")) == 1
    sim.wait_for("start", 2)  # carried out, though the client has gone
    assert outcome(sim)[1] == "client gone"


def test_unknown_status_changes_the_code_alone(sim: Simulator, client: Client) -> None:
    sim.fault("unknown_status", code=14, count=1)
    assert client.run().json["data"]["status"] == 10
    answer = client.call("GET", STATUS).json
    assert answer == {"success": True, "data": {"runStatus": 14, "runStatusDescription": "STATUS_14"}}
    assert client.status() == "INITIALIZING"


def test_reject_auth_lasts_and_new_tokens_do_not_help(sim: Simulator, client: Client) -> None:
    client.run()
    sim.fault("reject_auth", meter="1001")
    for _ in range(3):
        answer = client.call("GET", STATUS)
        assert (answer.status, answer.json["error"]["message"]) == (401, "Authentication error")
        client.token = None
    assert client.call("GET", "/meters/1002/0.0.1/runStatus").status == 200
    sim.clear_faults()
    assert client.call("GET", STATUS).status == 200


def test_expire_tokens_happens_at_once_and_once(sim: Simulator, client: Client) -> None:
    client.run()
    sim.fault("expire_tokens")
    assert client.call("GET", STATUS).status == 401
    client.token = None
    assert client.call("GET", STATUS).status == 200
    assert sim.faults() == []


def test_faults_are_listed_with_their_counts_and_removed_one_by_one(sim: Simulator, client: Client) -> None:
    first, second = sim.fault("status", count=5), sim.fault("reset", path="nowhere")
    client.call("GET", STATUS)
    assert [(fault["id"], fault["served"]) for fault in sim.faults()] == [(first, 1), (second, 0)]
    assert sim.clear_faults(first) == 1
    assert [fault["id"] for fault in sim.faults()] == [second]
    assert client.call("GET", STATUS).status == 200


def test_faults_never_affect_the_control_api(sim: Simulator, client: Client) -> None:
    sim.fault("status", path=".*")
    assert client.send("POST", "/oauth/token").status == 503
    assert client.control("GET", "/health").status == 200
