"""The drill's load balancer: it tries the next server if one refuses, and closes the connection if one dies."""

from __future__ import annotations

import http.client
import socket
from urllib.parse import urlsplit

import pytest

from tests.drill.balancer import Balancer
from tests.unit.simulator.receiver import Answer, running_receiver

pytestmark = pytest.mark.services


def port_of(url: str) -> int:
    return int(urlsplit(url).port or 0)


def dead_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as closed:
        return int(closed.getsockname()[1])


def post(url: str) -> int:
    connection = http.client.HTTPConnection(urlsplit(url).netloc, timeout=5)
    try:
        connection.request("POST", "/callouts", b"{}")
        return connection.getresponse().status
    finally:
        connection.close()


def test_connections_go_to_all_servers_in_turn() -> None:
    with running_receiver() as one, running_receiver() as two, Balancer([port_of(one.url), port_of(two.url)]) as front:
        assert [post(front.url) for _ in range(4)] == [200] * 4
        assert (len(one.received), len(two.received)) == (2, 2)


def test_a_server_that_is_down_is_skipped() -> None:
    with running_receiver() as alive, Balancer([dead_port(), port_of(alive.url)]) as front:
        assert [post(front.url) for _ in range(4)] == [200] * 4
        assert front.refused == 0


def test_without_any_server_the_connection_is_closed() -> None:
    with Balancer([dead_port(), dead_port()]) as front:
        with pytest.raises((ConnectionError, http.client.HTTPException)):
            post(front.url)
        assert front.refused == 1


def test_a_request_of_a_server_that_dies_is_not_sent_to_another() -> None:
    with running_receiver() as one, running_receiver() as two, Balancer([port_of(one.url), port_of(two.url)]) as front:
        one.answer = two.answer = lambda received: Answer(reset=True)
        with pytest.raises((ConnectionError, http.client.HTTPException)):
            post(front.url)
        assert len(one.received) + len(two.received) == 1
