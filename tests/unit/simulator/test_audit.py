from __future__ import annotations

import csv
import gzip
import io
import json
import re
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from airflow_mediation_provider.simulator import Simulator

    from .conftest import Client

DAY = {"queryFromTime": "2026-01-01T00:00:00+0000", "queryToTime": "2026-01-02T00:00:00+0000"}
NORMAL_ERRORS = {"exportType": "ERROR", "runType": "NORMAL", **DAY}
NORMAL_SAMPLES = {"exportType": "SAMPLE", "runType": "NORMAL", **DAY}


@pytest.fixture
def failed(sim: Simulator, client: Client) -> str:
    """A FAILED session of meter 1002, with its 80 records and 12 errors."""
    session_id = client.run("1002").json["data"]["sessionId"]
    sim.advance(60)
    return str(session_id)


# ---- summary


def test_summary_counts_per_session(sim: Simulator, client: Client, failed: str) -> None:
    later = client.run("1002").json["data"]["sessionId"]
    body = {"runType": "NORMAL", "groupBy": ["sessionId"], **DAY}
    answer = client.call("POST", "/meters/1002/summary", body).json
    data = answer["data"]
    assert answer["success"] is True
    assert data["query"] == {**body, "sessionIds": None, "operatorIds": None}
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{9}Z", data["requestTime"])
    assert (answer["previousPage"], answer["nextPage"]) == (None, None)
    assert data["output"] == [{"dimensions": {"sessionId": failed}, "output": 80, "totalErrorCount": 12}]
    sim.advance(3)  # RUNNING: half of the records are visible
    of_later = client.call("POST", "/meters/1002/summary", {**body, "sessionIds": [later]}).json["data"]["output"]
    assert of_later == [{"dimensions": {"sessionId": later}, "output": 40, "totalErrorCount": 6}]


def test_summary_groups_by_error_code_and_processor(client: Client, failed: str) -> None:
    groups = ["errorCode", "processorId"]
    output = client.call("POST", "/meters/1002/summary", {"groupBy": groups}).json["data"]["output"]
    assert [row["dimensions"]["errorCode"] for row in output] == ["", "1000002", "1000003", "70000000"]
    assert sum(row["totalErrorCount"] for row in output) == 12
    assert sum(row["output"] for row in output) == 80
    total = client.call("POST", "/meters/1002/summary").json["data"]["output"]
    assert total == [{"dimensions": {}, "output": 80, "totalErrorCount": 12}]


@pytest.mark.parametrize(
    "body",
    [
        {"groupBy": ["colour"]},
        {"groupBy": "sessionId"},
        {"runType": "LIVE"},
        {"queryFromTime": "2026-01-01T00:00:00Z"},
        {"queryFromTime": "2026-01-01"},
    ],
)
def test_wrong_summary_fields_are_refused(client: Client, body: dict[str, Any]) -> None:
    answer = client.call("POST", "/meters/1002/summary", body)
    assert (answer.status, answer.json["error"]["code"]) == (400, "70002023")


def test_counts_of_entries_and_summary_agree(client: Client, failed: str) -> None:
    output = client.call("POST", "/meters/1002/summary", {"groupBy": ["errorCode"]}).json["data"]["output"]
    counted = {row["dimensions"]["errorCode"]: row["totalErrorCount"] for row in output if row["totalErrorCount"]}
    entries = client.call("GET", "/meters/1002/auditTrail/entries", **NORMAL_ERRORS, pageSize=500).json["data"]
    codes = [entry["errorCode"] for entry in entries]
    assert {code: codes.count(code) for code in set(codes)} == counted


# ---- entries


def test_entries_have_the_documented_form(client: Client, failed: str) -> None:
    body = client.call("GET", "/meters/1002/auditTrail/entries", **NORMAL_ERRORS, sessionId=failed).json
    assert (body["success"], len(body["data"]), body["nextPage"]) == (True, 12, None)
    entry = body["data"][0]
    assert set(entry) == {
        "errorTime",
        "timestamp",
        "errorCode",
        "errorMessage",
        "payload",
        "eventId",
        "traceId",
        "operatorType",
        "operatorName",
        "operatorId",
    }
    assert entry["errorTime"].isdigit()
    assert {"AccountNumber", "SubscriptionNumber", "UnitOfMeasure", "Quantity", "UniqueKey"} <= set(entry["payload"])
    again = client.call("GET", "/meters/1002/auditTrail/entries", **NORMAL_ERRORS, sessionId=failed).json
    assert again["data"] == body["data"]
    [sample, *_] = client.call("GET", "/meters/1002/auditTrail/entries", **NORMAL_SAMPLES).json["data"]
    assert (sample["errorCode"], sample["errorTime"].isdigit()) == ("", True)


def test_entries_are_returned_page_by_page(client: Client, failed: str) -> None:
    seen: list[str] = []
    pages: list[int] = []
    query: dict[str, Any] = {**NORMAL_SAMPLES}
    while True:
        body = client.call("GET", "/meters/1002/auditTrail/entries", **query).json
        pages.append(len(body["data"]))
        seen += [entry["eventId"] for entry in body["data"]]
        if body["nextPage"] is None:
            break
        query["cursor"] = body["nextPage"]
    assert pages == [30, 30, 20]
    assert len(set(seen)) == 80


def test_entries_are_filtered_by_session_operator_type_and_time(sim: Simulator, client: Client, failed: str) -> None:
    other = client.run("1002").json["data"]["sessionId"]
    client.call("POST", "/meters/debug/1002/0.0.1", {})
    sim.advance(60)

    def count(**query: Any) -> int:
        answer = client.call("GET", "/meters/1002/auditTrail/entries", pageSize=500, **{**NORMAL_ERRORS, **query})
        return len(answer.json["data"])

    assert count() == 24
    assert count(sessionId=other) == 12
    assert count(sessionId="R-00000001") == 0
    assert count(operatorId="102") == 8
    assert count(exportType="SAMPLE", runType="DEBUG") == 20
    assert count(queryFromTime="2026-01-01T00:00:30+0000") == 12
    assert count(queryToTime="2025-12-31T00:00:00+0000") == 0
    assert count(queryFromTime="2026-01-01T02:00:30+0200") == 12


@pytest.mark.parametrize(
    "change",
    [
        {"exportType": "ALL"},
        {"exportType": ""},
        {"runType": "LIVE"},
        {"queryFromTime": ""},
        {"queryToTime": "2026-01-01T00:00:00Z"},
        {"queryToTime": "2026-01-01T00:00:00+00:00"},
        {"pageSize": "501"},
        {"pageSize": "0"},
        {"cursor": "made-up"},
    ],
)
def test_wrong_entry_parameters_are_refused(client: Client, change: dict[str, str]) -> None:
    answer = client.call("GET", "/meters/1002/auditTrail/entries", **{**NORMAL_ERRORS, **change})
    assert (answer.status, answer.json["error"]["code"]) == (400, "70002023")


def test_a_plus_that_was_not_encoded_is_a_space(client: Client) -> None:
    text = "&".join(f"{name}={value}" for name, value in NORMAL_ERRORS.items())
    assert client.call("GET", f"/meters/1002/auditTrail/entries?{text}").status == 400


def test_samples_of_a_session_are_limited(sim: Simulator, client: Client) -> None:
    sim.configure(sample_limit=50)
    sim.set_meter("7", script=[["COMPLETED", None]], records=10_000_000, errors=0)
    client.run("7")
    entries = client.call("GET", "/meters/7/auditTrail/entries", **NORMAL_SAMPLES, pageSize=500).json["data"]
    assert len(entries) == 50
    output = client.call("POST", "/meters/7/summary").json["data"]["output"]
    assert output == [{"dimensions": {}, "output": 10_000_000, "totalErrorCount": 0}]


# ---- export


def export(client: Client, **query: Any) -> str:
    return str(
        client.call("POST", "/meters/1002/auditTrail/export", **{**NORMAL_ERRORS, **query}).json["data"]["requestId"]
    )


def jobs(client: Client, **query: Any) -> list[dict[str, Any]]:
    return list(client.call("GET", "/meters/1002/auditTrail/export", **query).json["data"]["jobs"])


def test_an_export_job_runs_ends_and_is_downloaded(sim: Simulator, client: Client, failed: str) -> None:
    request_id = export(client, sessionIds=[failed], runStatuses=["FAILED", "CANCELED"])
    (job,) = jobs(client, requestId=request_id)
    assert (job["status"], job["fileList"], job["completionTime"]) == ("RUNNING", [], None)
    assert job["query"]["statuses"] == ["FAILED", "CANCELED"]
    assert job["creationTime"].endswith("Z")
    sim.advance(2)
    (job,) = jobs(client)
    assert (job["status"], job["count"], len(job["fileList"])) == ("FINISHED", 12, 1)
    assert (job["requestId"], job["meterId"]) == (request_id, 1002)
    assert (job["fileList"], job["completionTime"][-1]) == ([f"{request_id}/audit_trail.csv"], "Z")
    reply = client.call("GET", "/meters/auditTrail/presignedUrl", fileKey=job["fileList"][0]).json
    assert reply.keys() == {"success", "data"}
    url = reply["data"]
    assert "X-Amz-Expires=3600" in url
    file = client.send("GET", url.removeprefix(sim.url))
    rows = list(csv.DictReader(io.StringIO(file.content.decode())))
    assert len(rows) == 12
    assert {row["sessionId"] for row in rows} == {failed}
    assert json.loads(rows[0]["payload"])["AccountNumber"]
    sim.advance(3600)
    assert client.send("GET", url.removeprefix(sim.url)).status == 403
    assert client.send("GET", url.removeprefix(sim.url).partition("?")[0]).status == 403


def test_exports_of_a_tenant_run_one_after_the_other(sim: Simulator, client: Client, failed: str) -> None:
    first, second = export(client), export(client, exportType="SAMPLE")
    sim.advance(2)
    assert [(job["requestId"], job["status"]) for job in jobs(client)] == [(second, "RUNNING"), (first, "FINISHED")]
    assert [job["requestId"] for job in jobs(client, exportType="SAMPLE")] == [second]
    assert [job["requestId"] for job in jobs(client, page=2, pageSize=1)] == [first]
    sim.advance(2)
    assert [job["count"] for job in jobs(client)] == [80, 12]


def test_an_export_by_final_status_contains_only_such_sessions(sim: Simulator, client: Client, failed: str) -> None:
    export(client, runStatuses="COMPLETED,CANCELED")
    sim.advance(2)
    assert [job["count"] for job in jobs(client)] == [0]


def test_an_export_can_be_compressed(sim: Simulator, client: Client, failed: str) -> None:
    export(client, compression="gzip")
    sim.advance(2)
    (job,) = jobs(client)
    assert job["fileList"][0].endswith(".csv.gz")
    url = client.call("GET", "/meters/auditTrail/presignedUrl", fileKey=job["fileList"][0]).json["data"]
    content = gzip.decompress(client.send("GET", url.removeprefix(sim.url)).content)
    assert len(content.splitlines()) == 13


@pytest.mark.parametrize(
    "change", [{"runStatuses": "failed"}, {"runStatuses": "STOPPING"}, {"format": "parquet"}, {"runType": ""}]
)
def test_wrong_export_parameters_are_refused(client: Client, change: dict[str, str]) -> None:
    answer = client.call("POST", "/meters/1002/auditTrail/export", **{**NORMAL_ERRORS, **change})
    assert (answer.status, answer.json["error"]["code"]) == (400, "70002023")


def test_a_file_that_does_not_exist_has_no_url(client: Client) -> None:
    assert client.call("GET", "/meters/auditTrail/presignedUrl", fileKey="nothing").status == 400
    assert client.call("GET", "/meters/auditTrail/presignedUrl").status == 400


@pytest.mark.parametrize(
    ("method", "path"), [("POST", "summary"), ("GET", "auditTrail/entries"), ("GET", "auditTrail/export")]
)
def test_unknown_meters_are_refused(client: Client, method: str, path: str) -> None:
    query = NORMAL_ERRORS if path.endswith("entries") else {}
    assert client.call(method, f"/meters/9999/{path}", **query).json["error"]["code"] == "70002103"
