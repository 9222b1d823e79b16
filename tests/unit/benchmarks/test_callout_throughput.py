from __future__ import annotations

import json
from datetime import UTC, datetime

import pytest

from airflow_mediation_provider.protocol.callouts.settings import callout_settings
from airflow_mediation_provider.protocol.callouts.verify import authenticate
from benchmarks.callout_throughput import Cell, Result, broken_claims
from benchmarks.load import SECRET, Load, Sent, requests_of

CELL = Cell("sqlite", 1, 8, "scheduling")


def result(path: str, seconds: list[float], **failed: int) -> Result:
    made = Result(CELL, path)
    made.add(Sent(2.0, seconds, dict(failed)), 1.0)
    return made


def test_the_results_of_all_turns_are_added_up():
    made = result("callouts", [0.2, 0.1])
    made.add(Sent(2.0, [0.4], {"503": 1}), 3.0)

    assert made.per_second == 0.75
    assert made.row()[4:] == ["callouts", "0.8", "400", "never", "never", "1000.0", "3", "1 x 503"]


def test_a_single_slow_moment_of_the_machine_does_not_change_the_p99():
    made = result("callouts", [0.1] * 100)
    made.add(Sent(2.0, [0.1] * 92 + [0.9] * 8, {}), 1.0)
    made.add(Sent(2.0, [0.1] * 98 + [0.2] * 2, {}), 1.0)

    assert made.row()[6:9] == ["100", "200", "900"]


def test_no_claim_is_broken_if_ours_is_as_fast_as_airflows():
    assert broken_claims(result("callouts", [0.1] * 100), result("events", [0.1] * 102)) == []
    assert broken_claims(result("callouts", [0.1] * 100), result("events", [])) == []


@pytest.mark.parametrize(
    ("ours", "broken"),
    [
        (result("callouts", [0.1] * 90), "45.0 requests/s, Airflow's path 50.0"),
        (result("callouts", [0.1] * 98 + [0.2] * 2), "p99 200 ms, Airflow's path 100 ms"),
        (result("callouts", [0.1] * 1000, timeout=1), "errors {'timeout': 1}"),
    ],
)
def test_each_broken_claim_is_named(ours, broken):
    [sentence] = broken_claims(ours, result("events", [0.1] * 100))

    assert sentence == f"sqlite, 8 senders, API workers 1, asset schedules a Dag: {broken}"


def load(path: str, asset: str) -> Load:
    return Load(port=1, path=path, asset=asset, token="jwt", senders=1, seconds=1.0, first=7)


def parts(request: bytes) -> tuple[str, dict[str, str], bytes]:
    head, _, body = request.partition(b"\r\n\r\n")
    first, *lines = head.decode().split("\r\n")
    headers = dict(line.split(": ", 1) for line in lines)
    assert int(headers["Content-Length"]) == len(body)
    return first, headers, body


def test_callouts_are_signed_and_each_is_about_another_session():
    requests = requests_of(load("callouts", "2470"))
    (first, headers, body), (_, _, second) = parts(next(requests)), parts(next(requests))

    assert first == "POST /mediation/callouts/bench HTTP/1.1"
    authenticate(callout_settings("bench", {"callout_hmac_secret": SECRET}), headers, body, now=datetime.now(UTC))
    assert [json.loads(each)["sessionId"] for each in (body, second)] == ["R-00000007", "R-00000008"]


def test_airflows_path_gets_the_same_sessions():
    first, headers, body = parts(next(requests_of(load("events", "3"))))
    _, _, callout = parts(next(requests_of(load("callouts", "3"))))

    assert (first, headers["Authorization"]) == ("POST /api/v2/assets/events HTTP/1.1", "Bearer jwt")
    assert json.loads(body) == {"asset_id": 3, "partition_key": "R-00000007", "extra": json.loads(callout)}
