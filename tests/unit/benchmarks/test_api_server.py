from __future__ import annotations

import json
import math
import time

import pytest

from benchmarks.api_server import HTML_PAGE, Api, Fault, HttpProtocol

DBT = "/api/v2/accounts/1/runs/7/"
METER = "/meters/7/0.0.1/runStatus"


class Transport:
    def __init__(self) -> None:
        self.written = b""
        self.aborted = False

    def write(self, data: bytes) -> None:
        self.written += data

    def abort(self) -> None:
        self.aborted = True


@pytest.fixture
def connection():
    protocol = HttpProtocol(Api())
    protocol.connection_made(Transport())
    return protocol


def ended(api: Api) -> Api:
    api.flip_start = time.monotonic() - 1
    return api


def test_every_service_returns_running_until_the_flip():
    api = Api()
    assert api.flip_start == math.inf

    assert json.loads(api.answer(DBT, b"")[1])["data"]["status"] == 3
    assert (
        json.loads(api.answer("/api/2.2/jobs/runs/get", b'{"run_id": 7}')[1])["state"]["life_cycle_state"] == "RUNNING"
    )
    assert api.answer("/jobs/7", b"")[0] == 404
    assert json.loads(api.answer(METER, b"")[1])["data"] == {"runStatus": 5, "runStatusDescription": "RUNNING"}


def test_every_service_returns_success_after_the_flip():
    api = ended(Api())

    assert json.loads(api.answer(DBT, b"")[1])["data"]["status"] == 10
    assert json.loads(api.answer("/api/2.2/jobs/runs/get", b'{"run_id": 7}')[1])["state"]["result_state"] == "SUCCESS"
    assert api.answer("/jobs/7", b"")[0] == 200
    assert json.loads(api.answer(METER, b"")[1])["data"] == {"runStatus": 7, "runStatusDescription": "COMPLETED"}


def test_requests_cut_anywhere_are_answered_once_each(connection):
    request = b'GET /api/2.2/jobs/runs/get HTTP/1.1\r\nContent-Length: 13\r\n\r\n{"run_id": 7}' * 2
    for start in range(0, len(request), 5):
        connection.data_received(request[start : start + 5])

    assert connection.transport.written.count(b"HTTP/1.1 200") == 2
    assert connection.api.counters.requests == 2


@pytest.mark.parametrize(
    ("fault", "expected"),
    [
        (
            Fault("status", 429, retry_after=3),
            b"HTTP/1.1 429 -\r\nContent-Type: application/json\r\nRetry-After: 3\r\n",
        ),
        (Fault("html"), HTML_PAGE),
        (Fault("badjson"), b'{"runSta'),
    ],
)
def test_a_fault_takes_the_place_of_the_answer_and_is_counted(connection, fault, expected):
    connection.api.fault = fault
    connection.data_received(b"GET " + METER.encode() + b" HTTP/1.1\r\n\r\n")

    assert expected in connection.transport.written
    assert connection.api.counters.faulty == 1


@pytest.mark.parametrize(("kind", "aborted"), [("hang", False), ("reset", True)])
def test_hang_and_reset_send_no_answer(connection, kind, aborted):
    connection.api.fault = Fault(kind)
    connection.data_received(b"GET " + METER.encode() + b" HTTP/1.1\r\n\r\n")

    assert connection.transport.written == b""
    assert connection.transport.aborted is aborted


def test_a_refusal_does_not_affect_the_token_endpoint(connection):
    connection.api.fault = Fault("status", 401, spares_token=True)
    connection.data_received(b"POST /oauth/token HTTP/1.1\r\nContent-Length: 0\r\n\r\n")

    assert b'"access_token"' in connection.transport.written
    assert connection.api.counters.faulty == 0


def test_connections_are_counted_while_they_are_open(connection):
    second = HttpProtocol(connection.api)
    second.connection_made(Transport())
    second.connection_lost(None)

    counters = connection.api.counters
    assert (counters.opened, counters.open_now, counters.open_max) == (2, 1, 2)


def test_the_busiest_span_is_found_at_any_position():
    api = Api()
    assert api.busiest(2.0) == 0

    api.request_times = [0.0, 1.9, 2.0, 3.5, 3.9, 9.0]
    assert api.busiest(2.0) == 3
    assert api.busiest(0.1) == 1
