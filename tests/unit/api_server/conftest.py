"""The application with connections and a journal in memory."""

from __future__ import annotations

import logging
import threading
from typing import Any

import httpx
import pytest

from airflow_mediation_provider.api_server import LazyApp
from airflow_mediation_provider.api_server.app import create_app
from airflow_mediation_provider.api_server.connections import Connections, LookupFailedError, MediationConnection
from airflow_mediation_provider.api_server.journal import ReceiptBuffer, Recorder
from airflow_mediation_provider.journal.receipts import Seen
from airflow_mediation_provider.journal.writer import Recorded


class Directory(dict[str, dict[str, Any]]):
    """Connections by id, each given by its extra; `down` while the backends fail."""

    down = False

    def find(self, conn_id: str) -> MediationConnection | None:
        if self.down:
            raise LookupFailedError("VaultBackend raised ConnectionError")
        extra = self.get(conn_id)
        return None if extra is None else MediationConnection(conn_id, "blue", "client-secret", extra)


class Journal:
    """Stands in for `record`: keeps its arguments; `trouble` is raised, `gate` holds up every write."""

    def __init__(self) -> None:
        self.entries: list[Any] = []
        self.calls: list[dict[str, Any]] = []
        self.trouble: Exception | type[Exception] | None = None
        self.gate = threading.Event()
        self.gate.set()
        self.writing = self.written = 0

    def record(self, entries: Any, **arguments: Any) -> Recorded:
        self.writing += 1
        assert self.gate.wait(10)
        self.written += 1
        if self.trouble:
            raise self.trouble
        self.entries += entries
        self.calls.append(arguments)
        return Recorded(new=len(entries), duplicates=0, changed=(), emitted=(), row_ids=(7,))


@pytest.fixture
def directory() -> Directory:
    return Directory(zuora={"callout_hmac_secret": "s3cret-of-zuora"})


@pytest.fixture
def journal():
    made = Journal()
    yield made
    made.gate.set()


@pytest.fixture
def seconds() -> list[float]:
    """The time of the connections' clock; tests change its only number."""
    return [0.0]


@pytest.fixture
def seen() -> Seen:
    """What the application saw of callouts."""
    return Seen()


class KeptReceipts(ReceiptBuffer):
    """Adds to what was seen, and writes nothing."""

    def __init__(self, seen: Seen) -> None:
        super().__init__()
        self.keep = seen.add  # type: ignore[method-assign]


def since_accepted(seen: Seen) -> dict[tuple[str, int], int]:
    """The callouts that were refused since the last accepted one, by connection and answer."""
    counted = {(key.conn_id, key.status): each.since_accepted for key, each in seen.answers.items()}
    return {key: count for key, count in counted.items() if count}


@pytest.fixture
def app(directory: Directory, journal: Journal, seconds: list[float], seen: Seen) -> LazyApp:
    made = create_app(Connections(directory.find, lambda: seconds[0]), Recorder(journal.record), KeptReceipts(seen))
    return LazyApp(lambda: made)


@pytest.fixture
async def client(app: LazyApp):
    async with httpx.AsyncClient(transport=httpx.ASGITransport(app=app), base_url="http://airflow") as made:
        yield made


@pytest.fixture
def said(caplog: pytest.LogCaptureFixture):
    """Return what this package logged, from a level on."""

    def since(level: int = logging.WARNING) -> list[str]:
        return [
            record.getMessage()
            for record in caplog.records
            if record.name.startswith("airflow_mediation_provider") and record.levelno >= level
        ]

    return since
