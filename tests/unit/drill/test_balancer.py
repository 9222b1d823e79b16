"""The drill's load balancer: it goes on to the next server where one refuses, and cuts off where one dies."""

from __future__ import annotations

import http.client
import socket
from urllib.parse import urlsplit

import pytest

from tests.drill.balancer import Balancer
from tests.unit.simulator.receiver import Answer, running_receiver


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


def test_a_server_that_is_down_is_passed_over() -> None:
    with running_receiver() as alive, Balancer([dead_port(), port_of(alive.url)]) as front:
        assert [post(front.url) for _ in range(4)] == [200] * 4
        assert front.refused == 0


def test_where_no_server_is_there_the_client_is_cut_off() -> None:
    with Balancer([dead_port(), dead_port()]) as front:
        with pytest.raises((ConnectionError, http.client.HTTPException)):
            post(front.url)
        assert front.refused == 1


def test_a_server_that_dies_with_the_request_in_its_hands_is_no_other_servers_request() -> None:
    with running_receiver() as one, running_receiver() as two, Balancer([port_of(one.url), port_of(two.url)]) as front:
        one.answer = two.answer = lambda received: Answer(reset=True)
        with pytest.raises((ConnectionError, http.client.HTTPException)):
            post(front.url)
        assert len(one.received) + len(two.received) == 1
