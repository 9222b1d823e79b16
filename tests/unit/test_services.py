"""The two lanes: a test that starts something has the marker, or fails."""

from __future__ import annotations

import contextlib
import os
import socket
import sqlite3
import subprocess
import sys
import threading
from typing import TYPE_CHECKING

import pytest

from tests.services import MARKER, StartedServiceError, no_services

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path


def serve() -> None:
    socket.create_server(("127.0.0.1", 0)).close()


STARTS: dict[str, Callable[[], object]] = {
    "a process": lambda: subprocess.run([sys.executable, "--version"], check=True),
    "a forked process": os.fork,
    "a server": serve,
    "a database": lambda: sqlite3.connect("nowhere/journal.db"),
}


@pytest.mark.parametrize("start", STARTS.values(), ids=STARTS)
def test_without_the_marker_no_service_is_started(start: Callable[[], object]) -> None:
    with pytest.raises(StartedServiceError, match=f"without the marker `{MARKER}`"), no_services():
        start()


@pytest.mark.parametrize("start", STARTS.values(), ids=STARTS)
def test_a_refusal_fails_the_test_even_if_it_is_caught(start: Callable[[], object]) -> None:
    def tolerant() -> None:
        with contextlib.suppress(StartedServiceError):
            start()

    def in_a_thread() -> None:
        thread = threading.Thread(target=tolerant)
        thread.start()
        thread.join()

    for run in (tolerant, in_a_thread):
        with pytest.raises(StartedServiceError), no_services():
            run()


def test_a_database_in_memory_needs_no_marker() -> None:
    with no_services():
        sqlite3.connect(":memory:").close()


def test_a_fixture_that_asks_for_services_gives_its_tests_the_marker(
    request: pytest.FixtureRequest, empty_sqlite_database: str, tmp_path: Path
) -> None:
    assert request.node.get_closest_marker(MARKER) is not None
    sqlite3.connect(empty_sqlite_database.removeprefix("sqlite:///")).close()
    assert (tmp_path / "empty.db").exists()
