from __future__ import annotations

import asyncio
import http.client
import socket
import threading
from typing import TYPE_CHECKING

import pytest

from airflow_mediation_provider.simulator import (
    Refusal,
    SessionChange,
    Simulator,
    SimulatorConfig,
    running_simulator,
)
from airflow_mediation_provider.simulator.clock import RealClock

from .conftest import Client

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path


pytestmark = pytest.mark.services


@pytest.fixture
def no_thread_is_left() -> Iterator[None]:
    before = set(threading.enumerate())
    yield
    assert set(threading.enumerate()) == before


@pytest.mark.usefixtures("no_thread_is_left")
def test_the_simulator_runs_during_the_block_and_its_log_stays() -> None:
    with running_simulator(SimulatorConfig(time_scale=0.001)) as sim:
        assert Client(sim.url).run("1002").status == 200
        sim.wait_for("transition", status="FAILED")  # transitions need no request
        url = sim.url
    with pytest.raises(ConnectionRefusedError):
        Client(url).login()
    assert [entry["status"] for entry in sim.log(kind="transition")] == ["INITIALIZING", "RUNNING", "FAILED"]
    sim.stop()


@pytest.mark.usefixtures("no_thread_is_left")
def test_time_stands_still_after_a_stop() -> None:
    with running_simulator() as sim:
        sim.start_session("1001")
    clock = sim._server.tenant.clock
    assert isinstance(clock, RealClock)
    clock._offset += 3600
    assert [entry["status"] for entry in sim.log(kind="transition")] == ["INITIALIZING"]
    assert [session["status"] for session in sim.sessions()] == ["INITIALIZING"]


@pytest.mark.usefixtures("no_thread_is_left")
def test_requests_that_hang_or_are_delayed_do_not_prevent_a_stop() -> None:
    with running_simulator(SimulatorConfig(clock="manual")) as sim:
        client = Client(sim.url)
        client.call("GET", "/meters/1001/0.0.1/runStatus")
        sim.fault("hang", count=1)
        sim.fault("delay_before", delay=600, count=1, after=1)
        errors: list[BaseException] = []

        def ask() -> None:
            try:
                client.call("GET", "/meters/1001/0.0.1/runStatus")
            except (OSError, http.client.HTTPException) as error:
                errors.append(error)

        askers = [threading.Thread(target=ask) for _ in range(2)]
        for asker in askers:
            asker.start()
        sim.wait_for("fault", 2)
    for asker in askers:
        asker.join(5)
    assert len(errors) == 2
    assert sorted(entry["outcome"] for entry in sim.log(kind="request", carried_out=False)) == ["aborted", "hung"]


@pytest.mark.usefixtures("no_thread_is_left")
def test_a_port_that_is_taken_is_an_error() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        simulator = Simulator(SimulatorConfig(port=taken.getsockname()[1]))
        with pytest.raises(OSError, match="address already in use"):
            simulator.start()


def test_a_wrong_setting_is_an_error() -> None:
    with pytest.raises(ValueError, match="both"), running_simulator(SimulatorConfig(), port=1):
        pass


async def test_the_simulator_can_be_used_within_another_event_loop(sim: Simulator) -> None:
    client = Client(sim.url)
    answer = await asyncio.to_thread(client.run, "1001")
    assert answer.status == 200
    assert len(sim.log(kind="start")) == 1
    sim.advance(60)
    assert sim.sessions("1001")[0]["status"] == "COMPLETED"


def test_errors_are_raised_in_the_callers_thread(sim: Simulator) -> None:
    with pytest.raises(ValueError, match="unknown field"):
        sim.fault("status", colour=1)
    with pytest.raises(Refusal, match="does not exist"):
        sim.start_session("9999")
    with pytest.raises(KeyError):
        sim.steer("R-1", [["FAILED", None]])
    with running_simulator() as real, pytest.raises(ValueError, match="the clock is the real one"):
        real.advance(1)


def test_observers_run_in_the_simulators_thread_and_may_call_it(sim: Simulator) -> None:
    told: list[tuple[str, int]] = []

    def observer(change: SessionChange) -> None:
        told.append((change.status, len(sim.sessions())))

    sim.observe(observer)
    session = sim.start_session("1002")
    sim.steer(session["session_id"], [["FAILED", None]])
    assert told == [("INITIALIZING", 1), ("FAILED", 1)]


def test_open_connections_are_counted(sim: Simulator) -> None:
    client = Client(sim.url)
    client.call("GET", "/meters/1001/0.0.1/runStatus")
    sim.reset()
    kept = [http.client.HTTPConnection(sim.url.removeprefix("http://")) for _ in range(3)]
    for connection in kept:
        for _ in range(2):
            connection.request("GET", "/meters/1001/0.0.1/runStatus")
            connection.getresponse().read()
    assert (sim.health()["open_connections"], sim.health()["max_open_connections"]) == (3, 3)
    assert len({entry["connection"] for entry in sim.log(kind="request")}) == 3
    assert [entry["open_connections"] for entry in sim.log(kind="request")] == [1, 1, 2, 2, 3, 3]
    for connection in kept:
        connection.close()


def test_the_log_file_contains_the_entries_of_the_log(tmp_path: Path) -> None:
    config = SimulatorConfig(clock="manual", log_file=tmp_path / "log.jsonl")
    with running_simulator(config) as sim:
        Client(sim.url).run("1002")
        sim.advance(60)
        entries = sim.log()
    text = (tmp_path / "log.jsonl").read_text()
    assert sorted(line.partition(",")[0] for line in text.splitlines()) == sorted(
        f'{{"seq": {entry["seq"]}' for entry in entries
    )
    assert "simulator-secret" not in text
