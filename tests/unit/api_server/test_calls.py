"""API usage, from a signed report to the journal: written in the background, and not lost while the database fails."""

from __future__ import annotations

import asyncio
import threading
import time
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

import httpx
import pytest
from airflow import settings
from sqlalchemy.orm import Session

from airflow_mediation_provider.api_server import internal
from airflow_mediation_provider.api_server.app import create_app
from airflow_mediation_provider.api_server.connections import Connections, MediationConnection
from airflow_mediation_provider.api_server.feed import feed_of
from airflow_mediation_provider.api_server.internal import PAUSE_SECONDS, WRITE_SECONDS, ApiUsageBuffer
from airflow_mediation_provider.hooks.api_usage import count_request, forget_all, unreported
from airflow_mediation_provider.journal.task_reports import budget
from airflow_mediation_provider.journal.transaction import JournalUnavailable
from airflow_mediation_provider.protocol.wire import (
    FEED_PATH,
    OBSERVATIONS_PATH,
    FeedRequest,
    derive_key,
    observations_to_bytes,
    signed_headers,
)
from airflow_mediation_provider.protocol.zuora.api_usage import HourlyUsage, RemainingQuota
from tests.unit.api_server.signed import until

if TYPE_CHECKING:
    from collections.abc import Iterator

SECRET = "client-secret"
NOW = datetime.now(UTC)
SAID = RemainingQuota(limits="5000, 5000;w=3600", remaining=4321, reset_at=NOW, told_at=NOW)
REPORT = (HourlyUsage(hour=NOW, calls=3, limited=1, left=SAID),)


def calls(number: int) -> tuple[HourlyUsage, ...]:
    return (HourlyUsage(hour=NOW, calls=number),)


@pytest.fixture(autouse=True)
def none_yet() -> Iterator[None]:
    forget_all()
    yield
    forget_all()


class Journal:
    """Stands in for ``record_calls``: keeps its arguments, or fails."""

    def __init__(self) -> None:
        self.kept: list[tuple[str, int]] = []
        self.tries = 0
        self.away = False
        self.open = threading.Event()
        self.open.set()

    def record(self, *, conn_id: str, calls: tuple[HourlyUsage, ...]) -> None:
        self.tries += 1
        self.open.wait(10)
        if self.away:
            raise JournalUnavailable("the database is locked")
        self.kept.append((conn_id, sum(each.calls for each in calls)))


class Pauses:
    """Stands in for the time: the first write is made at once, and a later one once the pause is over."""

    def __init__(self) -> None:
        self.begun: list[float] = []
        self.over = asyncio.Event()

    async def sleep(self, seconds: float) -> None:
        self.begun.append(max(seconds, 0.0))
        if seconds > 0:
            await self.over.wait()


class TestTheKeeper:
    async def test_delays_no_request_and_adds_up_reports_while_it_writes(self) -> None:
        journal, pauses = Journal(), Pauses()
        journal.open.clear()
        pauses.over.set()
        keeper = ApiUsageBuffer(journal.record, pauses.sleep)
        keeper.keep("zuora", calls(1))
        await until(lambda: journal.tries == 1)
        for _ in range(100):
            keeper.keep("zuora", calls(2))
            keeper.keep("other", calls(1))
        assert (journal.tries, journal.kept) == (1, [])

        journal.open.set()

        await until(lambda: len(journal.kept) == 3)
        assert sorted(journal.kept) == [("other", 100), ("zuora", 1), ("zuora", 200)]

    async def test_counts_that_cannot_be_written_are_kept_and_retried_after_a_pause(
        self, caplog: pytest.LogCaptureFixture
    ) -> None:
        journal, pauses = Journal(), Pauses()
        journal.away = True
        keeper = ApiUsageBuffer(journal.record, pauses.sleep)
        keeper.keep("zuora", calls(1))
        await until(lambda: len(pauses.begun) == 2)
        for _ in range(10):
            keeper.keep("zuora", calls(2))
        assert (journal.tries, len(caplog.records)) == (1, 1)
        assert "could not be stored yet: the database is locked" in caplog.text

        journal.away = False
        pauses.over.set()

        await until(lambda: bool(journal.kept))
        assert journal.kept == [("zuora", 21)]
        assert [round(each) for each in pauses.begun] == [0, PAUSE_SECONDS]

    async def test_what_is_reported_within_seconds_is_written_together(self) -> None:
        journal, pauses = Journal(), Pauses()
        keeper = ApiUsageBuffer(journal.record, pauses.sleep)
        keeper.keep("zuora", calls(1))
        await until(lambda: bool(journal.kept))
        for _ in range(10):
            keeper.keep("zuora", calls(2))
            await asyncio.sleep(0)
        assert journal.kept == [("zuora", 1)]
        keeper.keep("other", calls(3))

        pauses.over.set()

        await until(lambda: len(journal.kept) == 3)
        assert journal.kept == [("zuora", 1), ("zuora", 20), ("other", 3)]
        assert [round(each) for each in pauses.begun] == [0, WRITE_SECONDS]

    async def test_includes_the_calls_of_this_process(self) -> None:
        journal = Journal()
        keeper = ApiUsageBuffer(journal.record)
        count_request("zuora", None)
        count_request("other", None)

        keeper.keep("zuora")

        await until(lambda: bool(journal.kept))
        assert journal.kept == [("zuora", 1)]
        assert (unreported("zuora"), len(unreported("other"))) == ((), 1)

    async def test_writes_nothing_without_counts(self) -> None:
        journal = Journal()
        keeper = ApiUsageBuffer(journal.record)

        keeper.keep("zuora")

        assert (keeper._writing, journal.tries) == (None, 0)


class TestARequest:
    @pytest.fixture
    def app(self, airflow_database: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
        monkeypatch.setattr(internal, "WRITE_SECONDS", 0.0)
        found = {"zuora": MediationConnection("zuora", None, SECRET, {})}
        made = create_app(Connections(found.get))
        yield made
        if feed := getattr(made.state, "feed", None):
            feed.changes._thread.shutdown()

    async def post(self, app: Any, path: str, body: bytes, *, secret: str = SECRET) -> int:
        proof = {"path": path, "conn_id": "zuora", "body": body, "timestamp": int(time.time())}
        headers = signed_headers(derive_key(secret), **proof)
        async with httpx.AsyncClient(transport=httpx.ASGITransport(app=app), base_url="http://airflow") as client:
            return (await client.post(path, content=body, headers=headers)).status_code

    async def settled(self, app: Any) -> None:
        if app.state.calls._writing is not None:
            await app.state.calls._writing

    def kept(self) -> Any:
        with Session(settings.get_engine()) as session:
            return budget(session, ["zuora"], datetime.now(UTC))[0]

    async def test_of_both_kinds_stores_its_calls(self, app: Any) -> None:
        assert await self.post(app, FEED_PATH, FeedRequest(calls=REPORT).to_bytes()) == 200
        assert await self.post(app, OBSERVATIONS_PATH, observations_to_bytes([], calls(4))) == 200
        await self.settled(app)

        found = self.kept()
        assert (found.last_day, found.limited_last_day) == (7, 1)
        assert (found.limits, found.remaining) == (SAID.limits, SAID.remaining)

    async def test_that_is_refused_or_fails_stores_no_calls_as_they_are_reported_again(
        self, app: Any, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        feed_of(app)
        body = FeedRequest(calls=REPORT).to_bytes()
        assert await self.post(app, FEED_PATH, body, secret="another") == 401

        def away(*_: Any, **__: Any) -> None:
            raise JournalUnavailable("away")

        with monkeypatch.context() as broken:
            broken.setattr("airflow_mediation_provider.api_server.feed._look", away)
            broken.setattr(app.state.recorder, "_write", away)
            assert await self.post(app, FEED_PATH, body) == 503
            assert await self.post(app, OBSERVATIONS_PATH, observations_to_bytes([], REPORT)) == 503
        assert app.state.calls._writing is None
        assert self.kept().last_day == 0

    async def test_is_answered_although_its_calls_cannot_be_written(
        self, app: Any, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
    ) -> None:
        def away(**_: Any) -> None:
            raise JournalUnavailable("away")

        monkeypatch.setattr(app.state.calls, "_write", away)

        assert await self.post(app, FEED_PATH, FeedRequest(calls=REPORT).to_bytes()) == 200
        await until(lambda: "could not be stored yet: away" in caplog.text)

    async def test_of_an_older_process_has_no_calls(self, app: Any) -> None:
        assert await self.post(app, FEED_PATH, b'{"protocol": 1, "meters": {}}') == 200
        assert await self.post(app, OBSERVATIONS_PATH, b'{"protocol": 1, "entries": []}') == 200
        assert app.state.calls._writing is None
