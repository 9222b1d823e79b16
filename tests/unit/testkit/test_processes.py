from __future__ import annotations

import os
import signal
import sys
import time
from typing import TYPE_CHECKING

import pytest

from testkit.processes import NotInTimeError, Processes, free_ports, kill_processes_in, processes_in, wait_until

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

# A process with a child that has a process group and a title of its own, as Airflow's workers have.
FAMILY = """
import os, sys, time
if os.fork() == 0:
    os.setpgid(0, 0)
    time.sleep(600)
print("ready", flush=True)
time.sleep(600)
"""
STUBBORN = (
    "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); print('ready', flush=True); time.sleep(600)"
)


@pytest.fixture
def processes(services: None, tmp_path: Path) -> Iterator[Processes]:
    made = Processes(tmp_path, {"PATH": os.environ["PATH"]})
    yield made
    made.close()


def start(processes: Processes, name: str, code: str) -> list[int]:
    processes.start(name, [sys.executable, "-c", code])
    wait_until(lambda: "ready" in processes.tail(name), timeout=10, what="the process", every=0.01)
    return processes.pids(name)


def alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


@pytest.mark.parametrize("sig", [signal.SIGTERM, signal.SIGKILL])
def test_stop_ends_the_whole_family(processes: Processes, sig: int) -> None:
    pids = start(processes, "family", FAMILY)
    assert len(pids) == 2
    processes.stop("family", sig=sig)
    wait_until(lambda: not any(map(alive, pids)), timeout=5, what="both to be gone", every=0.01)
    assert processes.pids("family") == []


def test_close_ends_orphans_and_processes_that_ignore_sigterm(processes: Processes) -> None:
    family = start(processes, "family", FAMILY)
    stubborn = start(processes, "stubborn", STUBBORN)
    os.kill(family[0], signal.SIGKILL)
    processes.close(grace=0.1)
    wait_until(lambda: not any(map(alive, [*family, *stubborn])), timeout=5, what="all to be gone", every=0.01)


def test_processes_of_an_earlier_owner_are_found_by_their_directory(processes: Processes, tmp_path: Path) -> None:
    pids = start(processes, "family", FAMILY)
    assert sorted(processes_in(tmp_path)) == sorted(pids)
    assert processes_in(tmp_path.parent) == []
    kill_processes_in(tmp_path)
    assert processes_in(tmp_path) == []


def test_the_error_contains_the_output_of_a_failed_command(processes: Processes) -> None:
    with pytest.raises(NotInTimeError, match="no such thing"):
        processes.run("broken", [sys.executable, "-c", "raise SystemExit('no such thing')"], timeout=10)


def test_a_name_cannot_be_started_twice(processes: Processes) -> None:
    start(processes, "family", FAMILY)
    with pytest.raises(ValueError, match="runs already"):
        processes.start("family", [sys.executable, "-c", FAMILY])


def test_the_error_of_wait_until_names_what_was_awaited() -> None:
    began = time.monotonic()
    with pytest.raises(NotInTimeError, match="in vain for godot"):
        wait_until(lambda: None, timeout=0.02, what="godot", every=0.01)
    assert time.monotonic() - began < 10


@pytest.mark.services
def test_free_ports_differ() -> None:
    assert len(set(free_ports(20))) == 20
