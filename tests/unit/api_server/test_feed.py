"""The feed and the observations, from a signed request to the journal and back, on SQLite and PostgreSQL."""

from __future__ import annotations

import asyncio
import signal
import time
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

import httpx
import pytest
from airflow import settings
from sqlalchemy.exc import OperationalError

from airflow_mediation_provider.api_server.app import create_app
from airflow_mediation_provider.api_server.changes import Cursor
from airflow_mediation_provider.api_server.connections import Connections, MediationConnection
from airflow_mediation_provider.api_server.feed import feed_of
from airflow_mediation_provider.api_server.shutdown import _before
from airflow_mediation_provider.journal.record import record
from airflow_mediation_provider.journal.tables import WaitRow
from airflow_mediation_provider.protocol.entry import Entry, EntryKind
from airflow_mediation_provider.protocol.feed import (
    FEED_PATH,
    OBSERVATIONS_PATH,
    FeedReply,
    FeedRequest,
    MeterQuestion,
    WaitReport,
    derive_key,
    observations_to_bytes,
    signed_headers,
)
from airflow_mediation_provider.protocol.transition import SessionTransition, Source
from tests.unit.api_server.signed import until

if TYPE_CHECKING:
    from collections.abc import Iterator

SECRET = "client-secret"
ASKED = {"1": MeterQuestion(sessions=frozenset({"R-1"}))}


def change(status: str, *, before: str | None = None, session: str = "R-1", meter: str = "1") -> Entry:
    transition = SessionTransition(
        meter_id=meter,
        session_id=session,
        status=status,
        previous_status=before,
        observed_at=datetime.now(UTC),
        source=Source.RUN,
    )
    return Entry(
        kind=EntryKind.STATUS_CHANGE, observed_at=transition.observed_at, source=Source.RUN, transition=transition
    )


def find(conn_id: str) -> MediationConnection | None:
    extra = {"callout_token": "t"} if conn_id == "zuora" else {}
    return MediationConnection(conn_id, None, SECRET, extra) if conn_id in ("zuora", "quiet") else None


class Caller:
    """Signs and sends, as workers and triggers do."""

    def __init__(self, client: httpx.AsyncClient) -> None:
        self._client = client

    async def post(self, path: str, body: bytes, *, conn_id: str = "zuora", **changes: Any) -> httpx.Response:
        proof = {"path": path, "conn_id": conn_id, "body": body, "timestamp": int(time.time())}
        headers = signed_headers(derive_key(changes.pop("secret", SECRET)), **{**proof, **changes})
        return await self._client.post(path, content=body, headers=headers)

    async def ask(self, *, conn_id: str = "zuora", **question: Any) -> FeedReply:
        request = FeedRequest(**{"meters": ASKED, **question})
        reply = await self.post(FEED_PATH, request.to_bytes(), conn_id=conn_id)
        assert reply.status_code == 200, reply.text
        return FeedReply.from_bytes(reply.content)


@pytest.fixture
def app(airflow_database: str) -> Iterator[Any]:
    made = create_app(Connections(find))
    yield made
    if feed := getattr(made.state, "feed", None):
        # A last look that goes on must not meet the end of the database.
        feed.changes._thread.shutdown()


@pytest.fixture
async def caller(app: Any):
    async with httpx.AsyncClient(transport=httpx.ASGITransport(app=app), base_url="http://airflow") as client:
        yield Caller(client)


def statuses(reply: FeedReply) -> dict[str, str]:
    return {state.session_id: state.status for state in reply.sessions}


async def test_what_is_observed_is_told(caller: Caller):
    body = observations_to_bytes([change("RUNNING")])
    reply = await caller.post(OBSERVATIONS_PATH, body)
    assert (reply.status_code, reply.json()) == (200, {"new": 1, "duplicates": 0})
    first = await caller.ask()
    assert statuses(first) == {"R-1": "RUNNING"}
    assert first.callouts is True
    assert first.last_callout_at is None
    assert statuses(await caller.ask(cursor=first.cursor)) == {}


async def test_a_connection_without_callout_authentication_says_so(caller: Caller):
    assert (await caller.ask(conn_id="quiet")).callouts is False


async def test_who_waits_is_told_as_soon_as_this_process_learns_of_a_change(caller: Caller):
    first = await caller.ask()
    waiting = asyncio.create_task(caller.ask(cursor=first.cursor, wait=10))
    others = [
        asyncio.create_task(caller.ask(cursor=first.cursor, wait=2, meters={"2": MeterQuestion()})) for _ in range(3)
    ]
    began = time.monotonic()
    while not waiting.done() and time.monotonic() - began < 5:
        await caller.post(OBSERVATIONS_PATH, observations_to_bytes([change("RUNNING")]))
        await asyncio.wait([waiting], timeout=1)
    assert statuses(waiting.result()) == {"R-1": "RUNNING"}
    assert all(statuses(reply) == {} for reply in await asyncio.gather(*others))


async def test_a_wait_without_news_ends_in_its_time(caller: Caller):
    first = await caller.ask()
    began = time.monotonic()
    reply = await caller.ask(cursor=first.cursor, wait=0.5)
    assert statuses(reply) == {}
    assert 0.4 < time.monotonic() - began < 5


async def test_on_shutdown_nobody_waits_on(caller: Caller, app: Any, monkeypatch: pytest.MonkeyPatch):
    """What the server does with the signal is called first; the waiting requests end although nothing changed."""
    told: list[int] = []
    monkeypatch.setitem(_before, signal.SIGINT, lambda number, _frame: told.append(number))
    # A shell may have had it ignored.
    before = signal.signal(signal.SIGINT, _before[signal.SIGINT])
    try:
        first = await caller.ask()
        feed = feed_of(app)
        waiting = [asyncio.create_task(caller.ask(cursor=first.cursor, wait=20)) for _ in range(20)]
        await until(lambda: feed.changes.waiting == 20)
        began = time.monotonic()
        signal.raise_signal(signal.SIGINT)
        replies = await asyncio.gather(*waiting)
    finally:
        signal.signal(signal.SIGINT, before)
    assert told == [signal.SIGINT]
    assert [statuses(reply) for reply in replies] == [{}] * 20
    assert time.monotonic() - began < 2


async def test_whoever_goes_away_frees_the_place(caller: Caller, app: Any):
    first = await caller.ask()
    feed = feed_of(app)
    body = FeedRequest(meters=ASKED, cursor=first.cursor, wait=20).to_bytes()
    proof = {"path": FEED_PATH, "conn_id": "zuora", "body": body, "timestamp": int(time.time())}
    headers = [(k.lower().encode(), v.encode()) for k, v in signed_headers(derive_key(SECRET), **proof).items()]
    scope = {"type": "http", "method": "POST", "path": FEED_PATH, "query_string": b"", "headers": headers}
    messages: asyncio.Queue[dict[str, Any]] = asyncio.Queue()
    messages.put_nowait({"type": "http.request", "body": body})

    async def send(_message: Any) -> None:
        pass

    serving = asyncio.create_task(app(scope, messages.get, send))
    await until(lambda: feed.changes.waiting == 1)
    messages.put_nowait({"type": "http.disconnect"})
    async with asyncio.timeout(2):
        await serving
    assert feed.changes.waiting == 0


async def test_one_more_than_may_wait_is_answered_at_once(caller: Caller, app: Any, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("airflow_mediation_provider.api_server.feed.MOST_WAITING", 1)
    first = await caller.ask()
    waiting = asyncio.create_task(caller.ask(cursor=first.cursor, wait=20))
    await until(lambda: feed_of(app).changes.waiting == 1)
    began = time.monotonic()
    assert statuses(await caller.ask(cursor=first.cursor, wait=20)) == {}
    assert time.monotonic() - began < 2
    feed_of(app).changes.close()
    await waiting


async def test_a_journal_that_cannot_be_read_is_a_503(app: Any, caller: Caller, monkeypatch: pytest.MonkeyPatch):
    await caller.ask()

    def broken(*_: Any) -> None:
        raise OperationalError("select", {}, Exception("database is locked"))

    monkeypatch.setattr("airflow_mediation_provider.journal.queries.answer", broken)
    reply = await caller.post(FEED_PATH, FeedRequest(meters=ASKED).to_bytes())
    assert (reply.status_code, reply.json()) == (503, {"success": False, "error": "temporarily unavailable"})


async def test_a_cursor_of_another_process_is_told_what_is_recent_and_an_old_one_everything(caller: Caller):
    await caller.ask()
    await asyncio.to_thread(record, [change("RUNNING")], conn_id="zuora")
    other = str(Cursor("another", 999, time.time()))
    assert statuses(await caller.ask(cursor=other, wait=5)) == {"R-1": "RUNNING"}
    old = str(Cursor("another", 999, time.time() - 3600))
    assert statuses(await caller.ask(cursor=old)) == {"R-1": "RUNNING"}
    assert statuses(await caller.ask(cursor="what is this")) == {"R-1": "RUNNING"}


async def test_waits_are_kept(caller: Caller, app: Any):
    now = datetime.now(UTC)
    names = dict.fromkeys(("id", "meter_id", "version", "dag_id", "run_id", "task_id", "mode"), "x")
    report = WaitReport(**names, session_id=None, condition={}, map_index=-1, try_number=1, created_at=now)
    await caller.ask(open=(report,))
    await asyncio.gather(*feed_of(app)._writing)
    with settings.NonScopedSession() as session:
        row = session.get(WaitRow, "x")
        assert row is not None
        assert (row.conn_id, row.created_at, row.ended_at) == ("zuora", now, None)


@pytest.mark.parametrize(
    ("changes", "status"),
    [
        ({"secret": "another"}, 401),
        ({"path": OBSERVATIONS_PATH}, 401),
        ({"body": b"another"}, 401),
        ({"timestamp": int(time.time()) - 3600}, 401),
        ({"conn_id": "nobody"}, 401),
    ],
    ids=["another secret", "another path", "another body", "an old one", "an unknown connection"],
)
async def test_what_is_not_proven_is_refused_and_told_nothing(caller: Caller, changes: dict[str, Any], status: int):
    body, changes = FeedRequest(meters=ASKED).to_bytes(), dict(changes)
    if "conn_id" in changes:
        reply = await caller.post(FEED_PATH, body, **changes)
    else:
        proof = {"path": FEED_PATH, "conn_id": "zuora", "body": body, "timestamp": int(time.time())}
        headers = signed_headers(derive_key(changes.pop("secret", SECRET)), **{**proof, **changes})
        reply = await caller._client.post(FEED_PATH, content=body, headers=headers)
    assert (reply.status_code, reply.json()) == (status, {"success": False, "error": "not authenticated"})


@pytest.mark.parametrize("body", [b"", b"[]", b"{}", b'{"protocol": 2}', b'{"protocol": 1, "meters": [1]}', b"\xff"])
async def test_a_message_that_cannot_be_read_is_a_400_with_its_reason(caller: Caller, body: bytes):
    for path in (FEED_PATH, OBSERVATIONS_PATH):
        reply = await caller.post(path, body)
        assert reply.status_code == 400
        assert reply.json()["error"].startswith(f"the {path[1:]} request ")
