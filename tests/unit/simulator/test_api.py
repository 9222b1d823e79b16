from __future__ import annotations

import gzip
import json
import re
from typing import TYPE_CHECKING, Any

import pytest

from airflow_mediation_provider.protocol.status import STATUS_BY_CODE

if TYPE_CHECKING:
    from airflow_mediation_provider.simulator import Simulator

    from .conftest import Answer, Client

UUID = r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}"


def error(answer: Answer) -> tuple[int, str | None, str]:
    body = answer.json
    assert body["success"] is False
    return answer.status, body["error"].get("code"), body["error"]["message"]


# ---- OAuth


def test_valid_credentials_get_a_token(sim: Simulator, client: Client) -> None:
    body = client.login().json
    assert set(body) == {"access_token", "token_type", "expires_in", "scope", "jti"}
    assert (body["token_type"], body["expires_in"]) == ("bearer", 3599)
    (entry,) = sim.log(kind="token")
    assert (entry["granted"], entry["number"], entry["client_id"]) == (True, 1, "simulator-client")


@pytest.mark.parametrize(
    ("changes", "status"),
    [
        ({"client_secret": "wrong"}, 401),
        ({"client_secret": ""}, 401),
        ({"client_id": "somebody"}, 401),
        ({"grant_type": "password"}, 400),
    ],
)
def test_wrong_credentials_get_no_token(sim: Simulator, client: Client, changes: dict[str, str], status: int) -> None:
    assert client.login(**changes).status == status
    assert [entry["granted"] for entry in sim.log(kind="token")] == [False]


def test_a_token_request_that_is_no_form_is_refused(client: Client) -> None:
    body = {"grant_type": "client_credentials", "client_id": "simulator-client", "client_secret": "simulator-secret"}
    assert client.send("POST", "/oauth/token", body, {"Content-Type": "application/json"}).status == 400


def test_no_secret_and_no_token_is_in_the_log(sim: Simulator, client: Client) -> None:
    client.login()
    client.run()
    text = json.dumps(sim.log())
    assert "simulator-secret" not in text
    assert str(client.token) not in text


@pytest.mark.parametrize("authorization", [None, "Bearer ", "Bearer made-up", "Basic abc"])
def test_a_call_without_a_valid_token_is_401(sim: Simulator, client: Client, authorization: str | None) -> None:
    headers = {"Content-Type": "application/json"} | ({"Authorization": authorization} if authorization else {})
    answer = client.send("POST", "/meters/run/1001/0.0.1", None, headers)
    assert error(answer) == (401, None, "Authentication error")
    assert "Bearer realm=Zuora API" in answer.headers["WWW-Authenticate"]
    assert sim.log(kind="start") == []


def test_tokens_expire(sim: Simulator, client: Client) -> None:
    sim.configure(token_life=60)
    assert client.run().status == 200
    sim.advance(59.9)
    assert client.run().status == 200
    sim.advance(0.1)
    assert client.run().status == 401
    client.token = None
    assert client.run().status == 200
    assert [entry["token"] for entry in sim.log(kind="request", path="/meters/run/1001/0.0.1")] == [1, 1, None, 2]


# ---- run


def test_run_answers_as_documented(client: Client) -> None:
    body = client.run().json
    data = body.pop("data")
    assert body == {"success": True, "previousPage": "null", "nextPage": "null"}
    assert re.fullmatch(r"2026-01-01T00:00:00\.\d{9}Z", data.pop("startTime"))
    assert re.fullmatch(r"[0-9a-f]{32}", data.pop("jobId"))
    assert data == {
        "id": "5468",
        "sessionId": "R-00005468",
        "meterId": 1001,
        "version": "0.0.1",
        "revision": 1,
        "runType": 1,
        "runTypeDescription": "NORMAL",
        "endTime": None,
        "status": 10,
        "statusDescription": "INITIALIZING",
        "canExportSummary": False,
        "hasLineageEnabled": False,
    }


def test_a_start_in_the_log_names_its_request(sim: Simulator, client: Client) -> None:
    client.headers["Zuora-Track-Id"] = "dag.task.1"
    answer = client.run(uniqueKey="lms_meter2_2026-03-31T22:00:00Z")
    (start,) = sim.log(kind="start")
    (asked,) = sim.log(kind="request", seq=start["request"])
    assert (start["session_id"], start["meter_id"], start["unique_key"], start["foreign"]) == (
        answer.json["data"]["sessionId"],
        "1001",
        "lms_meter2_2026-03-31T22:00:00Z",
        False,
    )
    assert (asked["track_id"], asked["status"], asked["carried_out"]) == ("dag.task.1", 200, True)
    assert asked["body"] == {"uniqueKey": "lms_meter2_2026-03-31T22:00:00Z"}


def test_a_duplicate_key_is_400_and_names_no_session(sim: Simulator, client: Client) -> None:
    first = client.run(uniqueKey="k").json["data"]["sessionId"]
    answer = client.run(uniqueKey="k")
    status, code, message = error(answer)
    assert (status, code) == (400, None)
    assert "duplicate" in message
    assert first.encode() not in answer.content
    assert [entry["reason"] for entry in sim.log(kind="refused")] == ["duplicate_key"]
    assert len(sim.log(kind="start")) == 1


def test_a_sixth_running_meter_is_400(client: Client) -> None:
    for meter in range(1005, 1010):
        assert client.run(str(meter)).status == 200
    assert error(client.run("1001")) == (400, None, "maximum running meter count exceeded")


@pytest.mark.parametrize(
    "source",
    [
        {"sourceType": "LOCAL_FS", "localFs": {"fileId": 7}},
        {"sourceType": "S3", "s3": {"paths": ["s3://bucket/a"], "fileFormat": "CSV"}},
        {"sourceType": "SNOWFLAKE", "processorId": "1", "snowflake": {"query": "SELECT 1"}},
        {"sourceType": "EVENT_STORE", "eventStore": {"storeId": "4", "startDate": "2026-01-01"}},
        {"sourceType": "STREAMING_API"},
    ],
)
def test_sources_for_one_run_are_accepted(client: Client, source: dict[str, Any]) -> None:
    assert client.run(runtimeSourceConfigs=[source]).status == 200


@pytest.mark.parametrize(
    "body",
    [
        {"runtimeSourceConfigs": {"sourceType": "S3"}},
        {"runtimeSourceConfigs": [{"sourceType": "FTP"}]},
        {"runtimeSourceConfigs": [{"sourceType": "S3", "s3": {"paths": []}}]},
        {"runtimeSourceConfigs": [{"sourceType": "SNOWFLAKE"}]},
        {"eventStoreSourceOptions": [{"startDate": "2026-01-01"}]},
        {"uniqueKey": 5},
    ],
)
def test_wrong_sources_are_refused(sim: Simulator, client: Client, body: dict[str, Any]) -> None:
    assert error(client.run(**body))[:2] == (400, "70002023")
    assert sim.log(kind="start") == []


def test_a_streaming_source_makes_a_batch_meter_stop_gracefully(client: Client) -> None:
    s3 = {"paths": ["s3://bucket/a"], "fileFormat": "CSV", "incremental": True}
    client.run(runtimeSourceConfigs=[{"sourceType": "S3", "s3": s3}])
    client.call("POST", "/meters/stop/1001/0.0.1")
    assert client.status() == "STOPPING"


@pytest.mark.parametrize("body", ["{", "[]", '"text"'])
def test_a_body_that_is_no_json_object_is_refused(client: Client, body: str) -> None:
    assert error(client.call("POST", "/meters/run/1001/0.0.1", body))[:2] == (400, "70002023")


def test_a_compressed_request_is_decompressed(client: Client) -> None:
    client.headers["Content-Encoding"] = "gzip"
    content = gzip.compress(json.dumps({"uniqueKey": "k"}).encode())
    assert client.call("POST", "/meters/run/1001/0.0.1", content).status == 200
    assert "duplicate" in error(client.call("POST", "/meters/run/1001/0.0.1", content))[2]


# ---- debug


def test_debug_answers_flat_with_the_status_as_text(client: Client) -> None:
    data = client.call("POST", "/meters/debug/1010/0.0.1", {}).json
    assert "success" not in data
    assert "status" not in data
    assert (data["runStatus"], data["runStatusDescription"]) == ("TESTING", "TESTING")
    assert (data["runType"], data["runTypeDescription"], data["meterId"]) == (2, "DEBUG", 1010)
    assert data["sessionId"].startswith("R-")


def test_debug_can_answer_in_an_envelope(sim: Simulator, client: Client) -> None:
    sim.configure(debug_enveloped=True)
    body = client.call("POST", "/meters/debug/1010/0.0.1", {}).json
    assert body["success"] is True
    assert body["data"]["runStatus"] == "TESTING"


def test_debug_needs_a_body(client: Client) -> None:
    assert error(client.call("POST", "/meters/debug/1010/0.0.1"))[:2] == (400, "70002023")


@pytest.mark.parametrize(("meter", "end"), [("1010", "TESTING_PASSED"), ("1011", "TESTING_FAILED")])
def test_a_debug_run_ends(sim: Simulator, client: Client, meter: str, end: str) -> None:
    client.call("POST", f"/meters/debug/{meter}/0.0.1", {})
    sim.advance(60)
    assert client.status(meter) == end


# ---- runStatus


@pytest.mark.parametrize(("code", "name"), STATUS_BY_CODE.items())
def test_run_status_gives_code_and_name(sim: Simulator, client: Client, code: int, name: str) -> None:
    sim.set_meter("7", initial_status=name)
    body = client.call("GET", "/meters/7/0.0.1/runStatus").json
    assert body == {"success": True, "data": {"runStatus": code, "runStatusDescription": name}}


def test_stopping_has_an_undocumented_code(sim: Simulator, client: Client) -> None:
    sim.set_meter("7", initial_status="STOPPING")
    assert client.call("GET", "/meters/7/0.0.1/runStatus").json["data"]["runStatus"] == 14
    sim.configure(stopping_code=20)
    assert client.call("GET", "/meters/7/0.0.1/runStatus").json["data"]["runStatus"] == 20


def test_a_script_may_contain_an_undocumented_code(sim: Simulator, client: Client) -> None:
    sim.set_meter("7", script=[["RUNNING", 1], [77, 1], ["COMPLETED", None]])
    client.run("7")
    sim.advance(1)
    data = client.call("GET", "/meters/7/0.0.1/runStatus").json["data"]
    assert data == {"runStatus": 77, "runStatusDescription": "STATUS_77"}
    sim.advance(1)
    assert client.status("7") == "COMPLETED"


# ---- stop


def test_stop_answers_as_documented(sim: Simulator, client: Client) -> None:
    client.run("1004")
    assert client.call("POST", "/meters/stop/1004/0.0.1").json == {"success": True}
    assert client.status("1004") == "STOPPING"
    assert error(client.call("POST", "/meters/stop/1004/0.0.1", forceStop="true"))[:2] == (400, "70003043")
    sim.advance(2)
    assert client.status("1004") == "PAUSED"
    assert error(client.call("POST", "/meters/stop/1004/0.0.1"))[:2] == (400, "70002122")
    client.run("1004")
    assert client.call("POST", "/meters/stop/1004/0.0.1", forceStop="true").status == 200
    assert client.status("1004") == "CANCELED"
    assert [(entry["force"], entry["refused"]) for entry in sim.log(kind="stop")] == [
        (False, None),
        (True, "70003043"),
        (False, "70002122"),
        (True, None),
    ]


def test_force_stop_must_be_a_boolean(client: Client) -> None:
    assert error(client.call("POST", "/meters/stop/1004/0.0.1", forceStop="yes"))[:2] == (400, "70002023")


# ---- the checks of every call

CALLS = [
    ("POST", "/meters/run/{}", None),
    ("POST", "/meters/debug/{}", {}),
    ("POST", "/meters/stop/{}", None),
    ("GET", "/meters/{}/runStatus", None),
]


@pytest.mark.parametrize(("method", "path", "body"), CALLS)
def test_unknown_meters_and_versions_are_refused(client: Client, method: str, path: str, body: Any) -> None:
    answer = client.call(method, path.format("9999/0.0.1"), body)
    assert error(answer)[:2] == (404 if "runStatus" in path else 400, "70002103")
    assert (answer.json["previousPage"], answer.json["nextPage"]) == (None, None)
    assert error(client.call(method, path.format("1001/0.0.2"), body))[:2] == (400, "70002104")
    assert error(client.call(method, path.format("abc/0.0.1"), body))[:2] == (400, "70002023")


@pytest.mark.parametrize(("method", "path", "body"), CALLS)
def test_a_tenant_without_mediation_refuses_every_call(
    sim: Simulator, client: Client, method: str, path: str, body: Any
) -> None:
    sim.configure(mediation_enabled=False)
    assert error(client.call(method, path.format("1001/0.0.1"), body))[:2] == (400, "70002004")


@pytest.mark.parametrize(
    ("permissions", "allowed"),
    [
        ([], [False, False, False, False]),
        (["View Meters"], [False, False, False, True]),
        (["Run Meters"], [True, True, True, True]),
        (["Configure Meters and Events"], [False, False, True, True]),
    ],
)
def test_each_operation_needs_its_permission(
    sim: Simulator, client: Client, permissions: list[str], allowed: list[bool]
) -> None:
    sim.configure(permissions=permissions)
    answers = [client.call(method, path.format("1001/0.0.1"), body) for method, path, body in CALLS]
    assert [answer.json.get("error", {}).get("code") != "70002006" for answer in answers] == allowed
    assert {answer.status for answer, can in zip(answers, allowed, strict=True) if not can} <= {400}


def test_an_entity_id_can_be_required(sim: Simulator, client: Client) -> None:
    sim.configure(required_entity="11e643f4-a3f5-9b88-b061-0025904c57d6")
    assert error(client.run())[:2] == (400, "70002001")
    client.headers["Zuora-Entity-Ids"] = "11e643f4-a3f5-9b88-b061-0025904c57d6"
    assert client.run().status == 200


@pytest.mark.parametrize(("method", "path", "body"), CALLS)
def test_content_type_is_required_except_for_stop(
    sim: Simulator, client: Client, method: str, path: str, body: Any
) -> None:
    client.run("1004")
    client.headers = {}
    answer = client.call(method, path.format("1004/0.0.1"), body)
    assert (answer.status == 200) is ("stop" in path)
    sim.configure(require_content_type=False)
    assert client.call(method, path.format("1005/0.0.1"), body).status in ((400,) if "stop" in path else (200,))


def test_request_and_track_ids_are_returned(client: Client) -> None:
    client.headers["Zuora-Track-Id"] = "dag.task-1_try.2"
    first, second = client.run(), client.run("9999")
    for answer in (first, second):
        assert re.fullmatch(UUID, answer.headers["Zuora-Request-Id"])
        assert answer.headers["Zuora-Track-Id"] == "dag.task-1_try.2"
    assert first.headers["Zuora-Request-Id"] != second.headers["Zuora-Request-Id"]


@pytest.mark.parametrize("track", ["a:b", "a;b", 'a"b', "a'b", "x" * 65, "a\tb".replace("\t", "\x80")])
def test_an_illegal_track_id_is_refused(sim: Simulator, client: Client, track: str) -> None:
    client.call("GET", "/meters/1001/0.0.1/runStatus")
    client.headers["Zuora-Track-Id"] = track
    assert error(client.run())[:2] == (400, "70002023")
    sim.configure(strict_track_id=False)
    assert client.run().status == 200


def test_a_rate_limit_is_in_the_headers_and_enforced(sim: Simulator, client: Client) -> None:
    assert "RateLimit-Limit" not in client.run().headers
    sim.configure(rate_limit=2, rate_limit_window=30)
    answers = [client.call("GET", "/meters/1001/0.0.1/runStatus") for _ in range(3)]
    assert [answer.status for answer in answers] == [200, 200, 429]
    assert answers[0].headers["RateLimit-Limit"] == "2, 2;w=30"
    assert [answer.headers["RateLimit-Remaining"] for answer in answers] == ["1", "0", "0"]
    sim.advance(20)
    assert client.run().headers["RateLimit-Reset"] == "10"
    sim.advance(10)
    assert client.run().status == 200


@pytest.mark.parametrize(
    ("shape", "read"),
    [
        ("errors", lambda body: body["errors"][0]),
        ("reasons", lambda body: body["reasons"][0]),
        ("error", lambda body: body["error"]),
        ("message", lambda body: body | {"code": "70002103"}),
    ],
)
def test_errors_have_the_configured_documented_shape(sim: Simulator, client: Client, shape: str, read: Any) -> None:
    sim.configure(error_shape=shape)
    detail = read(client.run("9999").json)
    assert (detail["code"], detail["message"]) == ("70002103", "Meter 9999 does not exist.")


def test_errors_without_a_documented_code_can_get_one(sim: Simulator, client: Client) -> None:
    sim.configure(undocumented_code="70002120", null_page=None)
    assert client.run(uniqueKey="k").json["nextPage"] is None
    assert error(client.run(uniqueKey="k"))[1] == "70002120"


def test_no_page_is_written_as_documented_or_everywhere_alike(sim: Simulator, client: Client) -> None:
    def pages() -> tuple[Any, Any]:
        return client.run("1001").json["nextPage"], client.call("POST", "/meters/1001/summary").json["nextPage"]

    assert pages() == ("null", None)
    sim.configure(null_page="null")
    assert pages() == ("null", "null")
    sim.configure(null_page=None)
    assert pages() == (None, None)


def test_an_unknown_operation_is_404(client: Client) -> None:
    assert client.call("GET", "/meters/run/1001/0.0.1").status == 404
    assert client.call("GET", "/v1/meters/1001/0.0.1/runStatus").status == 404


def test_long_replies_are_compressed_for_clients_that_accept_gzip(client: Client) -> None:
    client.headers["Accept-Encoding"] = "gzip"
    client.run("1001")
    assert "Content-Encoding" not in client.run("1001").headers
    path, times = "/meters/1001/auditTrail/entries", ("2026-01-01T00:00:00+0000", "2026-01-02T00:00:00+0000")
    client.control("POST", "/advance", {"seconds": 100})
    query = {"exportType": "SAMPLE", "runType": "NORMAL", "queryFromTime": times[0], "queryToTime": times[1]}
    answer = client.call("GET", path, **query)
    assert answer.headers["Content-Encoding"] == "gzip"
    assert len(json.loads(gzip.decompress(answer.content))["data"]) == 30
