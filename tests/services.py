"""Two lanes of tests: most start nothing outside of themselves, the others have the marker `services`.

A fixture that starts a database, a server or a process requests the fixture `services`, and so all of its tests have
the marker. A module whose tests start one by hand sets `pytestmark = pytest.mark.services`. A test without the marker
that starts one fails, so that `pytest -m "not services"` stays fast and needs nothing but Python.
"""

from __future__ import annotations

import sys
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from collections.abc import Generator, Iterator

MARKER = "services"
# Python's audit events. A test that connects to PostgreSQL has started it.
STARTS = {
    "subprocess.Popen": "a process",
    "os.posix_spawn": "a process",
    "os.fork": "a process",
    "os.system": "a process",
    "socket.bind": "a server",
    "sqlite3.connect": "a database",
}
# A database in memory; and what croniter queries of the interpreter when it is imported, which Airflow does late.
HARMLESS = {("sqlite3.connect", ":memory:"), ("subprocess.Popen", "file")}
_refused: list[list[StartedServiceError]] = []


class StartedServiceError(Exception):
    """A test without the marker started a process, a server or a database."""


@pytest.fixture(scope="session")
def services() -> None:
    """For fixtures that start a database, a server or a process: their tests get the marker."""


def mark(items: list[pytest.Item]) -> None:
    for item in items:
        if services.__name__ in getattr(item, "fixturenames", ()):
            item.add_marker(MARKER)


@contextmanager
def no_services() -> Iterator[None]:
    """Refuse to start a process, a server or a database, and raise even if the refusal was caught."""
    refused: list[StartedServiceError] = []
    _refused.append(refused)
    try:
        yield
    finally:
        _refused.pop()
    if refused:
        raise refused[0]


def guarded(item: pytest.Item) -> Generator[None, object, object]:
    """Run a phase of a test, for hooks of pytest."""
    if item.get_closest_marker(MARKER):
        return (yield)
    with no_services():
        return (yield)


def _audit(event: str, arguments: tuple[Any, ...]) -> None:
    if not _refused or (started := STARTS.get(event)) is None or (event, *arguments[:1]) in HARMLESS:
        return
    error = StartedServiceError(
        f"a test without the marker `{MARKER}` started {started}: {event}{arguments!r:.200}. Have its fixture ask for "
        f"the fixture `{MARKER}`, or set pytestmark = pytest.mark.{MARKER} in its module"
    )
    _refused[-1].append(error)
    raise error


sys.addaudithook(_audit)
