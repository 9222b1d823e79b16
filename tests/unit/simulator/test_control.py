from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from airflow_mediation_provider.simulator import Simulator

    from .conftest import Client


def test_health_returns_meters_and_connections(sim: Simulator, client: Client) -> None:
    client.run("1002")
    body = client.control("GET", "/health").json
    assert body["ok"] is True
    shown = {meter["id"]: (meter["status"], meter["live_sessions"]) for meter in body["meters"]}
    assert shown["1002"] == ("INITIALIZING", 1)
    assert shown["1001"] == ("NEVER_RUN", 0)
    # the token's and the run's connection, one after the other; that of this call does not count
    assert (body["total_connections"], body["max_open_connections"], body["requests_in_flight"]) == (2, 1, 0)


def test_a_foreign_session_is_started_and_listed(sim: Simulator, client: Client) -> None:
    script = [["INITIALIZING", 1], ["FAILED", None]]
    answer = client.control("POST", "/sessions", {"meter": 1001, "script": script, "errors": 4, "unique_key": "k"})
    assert answer.status == 201
    session = answer.json
    assert (session["meter_id"], session["status"], session["foreign"], session["errors"]) == (
        "1001",
        "INITIALIZING",
        True,
        4,
    )
    sim.advance(1)
    (listed,) = client.control("GET", "/sessions?meter=1001").json["sessions"]
    assert (listed["session_id"], listed["status"], listed["live"]) == (session["session_id"], "FAILED", False)
    assert [entry["foreign"] for entry in sim.log(kind="start")] == [True]
    assert client.run(uniqueKey="k").status == 400


def test_the_script_of_a_running_session_is_replaced(sim: Simulator, client: Client) -> None:
    session_id = client.run().json["data"]["sessionId"]
    answer = client.control("POST", f"/sessions/{session_id}", {"script": [["CANCELED", None]]})
    assert answer.json["status"] == "CANCELED"
    assert client.status() == "CANCELED"


def test_a_meter_is_added_and_changed(sim: Simulator, client: Client) -> None:
    settings: dict[str, Any] = {"script": [["RUNNING", 5], ["FAILED", None]], "records": 7, "stale_for": 3}
    assert client.control("POST", "/meters/7001", settings).json["id"] == "7001"
    client.run("7001")
    assert client.status("7001") == "NEVER_RUN"
    sim.advance(3)
    assert client.status("7001") == "RUNNING"
    assert sim.sessions("7001")[0]["records"] == 7
    assert client.control("POST", "/meters/7001", {"stale_for": 0}).status == 200
    client.run("7001")
    assert client.status("7001") == "RUNNING"


def test_faults_are_activated_listed_and_removed(sim: Simulator, client: Client) -> None:
    first = client.control("POST", "/faults", {"kind": "status", "status": 500, "count": 3})
    client.control("POST", "/faults", {"kind": "hang", "path": "nowhere"})
    assert first.status == 201
    assert client.call("GET", "/meters/1001/0.0.1/runStatus").status == 500
    listed = client.control("GET", "/faults").json["faults"]
    assert [(fault["kind"], fault["served"]) for fault in listed] == [("status", 1), ("hang", 0)]
    assert client.control("DELETE", f"/faults?id={first.json['id']}").json == {"removed": 1}
    assert client.control("DELETE", "/faults").json == {"removed": 1}
    assert client.call("GET", "/meters/1001/0.0.1/runStatus").status == 200


def test_the_log_is_read_by_kind_since_and_meter(sim: Simulator, client: Client) -> None:
    client.run("1001")
    client.run("1002")
    sim.advance(60)
    body = client.control("GET", "/log?kind=start,transition&meter=1002").json
    assert [entry.get("status", "start") for entry in body["entries"]] == ["start", "INITIALIZING", "RUNNING", "FAILED"]
    assert {"open_connections", "max_open_connections", "counts"} <= set(body)
    assert client.control("GET", f"/log?since={body['last']}").json["entries"] == []
    everything = client.control("GET", "/log").json
    assert [entry["seq"] for entry in everything["entries"]] == list(range(1, everything["last"] + 1))
    assert everything["counts"]["request"] == 3


def test_settings_are_changed_while_it_runs(sim: Simulator, client: Client) -> None:
    assert client.control("POST", "/config", {"client_secret": "new", "max_running_meters": 0}).status == 200
    assert client.login().status == 401
    client.token = client.login("new").json["access_token"]
    assert client.run().json["error"]["message"] == "maximum running meter count exceeded"


def test_reset_restores_the_state_of_the_start(sim: Simulator, client: Client) -> None:
    client.run(uniqueKey="k")
    sim.fault("status")
    sim.configure(mediation_enabled=False)
    assert client.control("POST", "/reset").json == {"ok": True}
    assert sim.log() == []
    assert client.run(uniqueKey="k").status == 401  # tokens are gone as well
    client.token = None
    assert client.run(uniqueKey="k").status == 200


def test_time_can_be_moved_only_with_a_manual_clock(sim: Simulator, client: Client) -> None:
    client.run("1002")
    assert client.control("POST", "/advance", {"seconds": 60}).status == 200
    assert client.status("1002") == "FAILED"
    with pytest.raises(ValueError, match="cannot go back"):
        sim.advance(-1)


@pytest.mark.parametrize(
    ("method", "path", "body", "status", "named"),
    [
        ("GET", "/nothing", None, 404, "--help"),
        ("POST", "/faults", {"kind": "explode"}, 400, "kind must be one of"),
        ("POST", "/faults", "{", 400, "not JSON"),
        ("POST", "/sessions", {}, 400, "meter is missing"),
        ("POST", "/sessions", {"meter": "9999"}, 400, "does not exist"),
        ("POST", "/sessions", {"meter": "1001", "run_type": "LIVE"}, 400, "LIVE"),
        ("POST", "/sessions", {"meter": "1001", "colour": 1}, 400, "colour"),
        ("POST", "/sessions/R-1", {"script": [["FAILED", None]]}, 404, "R-1"),
        ("POST", "/sessions/R-1", {"script": []}, 400, "at least one step"),
        ("POST", "/meters/7001", {"script": [["BROKEN", 1]]}, 400, "unknown status"),
        ("POST", "/meters/7001", {"colour": 1}, 400, "unknown setting"),
        ("POST", "/config", {"port": 1}, 400, "cannot be changed"),
        ("POST", "/config", {"error_shape": "xml"}, 400, "error_shape"),
        ("DELETE", "/faults?id=x", None, 400, "invalid literal"),
        ("POST", "/advance", {"seconds": -1}, 400, "cannot go back"),
    ],
)
def test_the_error_of_a_wrong_call_names_the_cause(
    client: Client, method: str, path: str, body: Any, status: int, named: str
) -> None:
    answer = client.control(method, path, body)
    assert answer.status == status
    assert named in answer.json["error"]
