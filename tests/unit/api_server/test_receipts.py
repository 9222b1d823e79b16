"""What API servers keep of callouts: written in the background, for all of them, and no answer depends on it."""

from __future__ import annotations

import asyncio
import threading
from contextlib import AsyncExitStack
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any

import httpx
import pytest
from airflow import settings
from sqlalchemy import text

from airflow_mediation_provider.api_server import LazyApp
from airflow_mediation_provider.api_server import journal as module
from airflow_mediation_provider.api_server.app import create_app
from airflow_mediation_provider.api_server.connections import Connections
from airflow_mediation_provider.api_server.journal import ReceiptBuffer
from airflow_mediation_provider.journal.callout_list import CalloutFilters, list_callouts
from airflow_mediation_provider.journal.receipts import Seen, refusals
from airflow_mediation_provider.journal.transaction import JournalUnavailable, read
from airflow_mediation_provider.protocol.callouts.receipt import NO_CONNECTION, Receipt
from tests.unit.api_server.signed import BODY, signature, until

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

PATH = "/callouts/zuora"
NOW = datetime(2026, 6, 1, tzinfo=UTC)
REFUSED = Receipt(conn_id="zuora", received_at=NOW, status=401)


class Table:
    """Stands in for the database: adds up what is written; `trouble` is raised, `gate` holds up every write."""

    def __init__(self) -> None:
        self.written: list[int] = []
        self.thinned = 0
        self.trouble: Exception | None = None
        self.gate = threading.Event()
        self.gate.set()
        self.asked = 0

    def write(self, seen: Seen) -> None:
        self.asked += 1
        assert self.gate.wait(30)
        if self.trouble:
            raise self.trouble
        self.written.append(sum(each.answers for each in seen.answers.values()))

    def thin(self, _: datetime) -> None:
        self.thinned += 1
        raise JournalUnavailable("locked")


@pytest.fixture
def table() -> Table:
    return Table()


@pytest.fixture
def seconds() -> list[float]:
    return [0.0]


@pytest.fixture
def buffer(table: Table, seconds: list[float], monkeypatch: pytest.MonkeyPatch) -> ReceiptBuffer:
    monkeypatch.setattr(module, "RECEIPT_SECONDS", 0.0)
    return ReceiptBuffer(table.write, table.thin, lambda: seconds[0])


async def test_what_is_kept_is_written_in_the_background(buffer: ReceiptBuffer, table: Table) -> None:
    for _ in range(3):
        buffer.keep(REFUSED)
    assert table.written == []
    await until(lambda: table.written == [3])


async def test_what_comes_during_a_write_is_written_after_it(buffer: ReceiptBuffer, table: Table) -> None:
    table.gate.clear()
    buffer.keep(REFUSED)
    await until(lambda: table.asked == 1)
    buffer.keep(REFUSED)
    buffer.keep(REFUSED)
    assert table.asked == 1
    table.gate.set()
    await until(lambda: table.written == [1, 2])


async def test_what_comes_during_a_write_waits_for_the_next_one(
    buffer: ReceiptBuffer, table: Table, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Otherwise each callout of a busy second would be a transaction of its own."""
    monkeypatch.setattr(module, "RECEIPT_SECONDS", 3600.0)
    table.gate.clear()
    buffer.keep(REFUSED)
    flushing = asyncio.create_task(buffer.flush())
    await until(lambda: table.asked == 1)
    buffer.keep(REFUSED)
    table.gate.set()
    await flushing
    assert table.written == [1]
    await buffer.flush()
    assert table.written == [1, 1]


async def test_two_flushes_at_once_write_once(buffer: ReceiptBuffer, table: Table) -> None:
    buffer.keep(REFUSED)
    await asyncio.gather(buffer.flush(), buffer.flush())
    assert table.written == [1]


async def test_while_the_database_is_away_all_are_counted_and_one_line_is_logged(
    buffer: ReceiptBuffer, table: Table, seconds: list[float], said: Any
) -> None:
    table.trouble = JournalUnavailable("the database is away")
    for _ in range(3):
        buffer.keep(REFUSED)
        await buffer.flush()
    assert len(said()) == 1
    assert "could not be stored yet: the database is away" in said()[0]

    table.trouble = None
    await buffer.flush()
    assert sum(table.written) == 3
    buffer.keep(REFUSED)
    table.trouble = JournalUnavailable("away again")
    await buffer.flush()
    assert len(said()) == 3  # the second is that of thin


async def test_what_raises_an_unexpected_error_holds_up_nothing(buffer: ReceiptBuffer, table: Table, said: Any) -> None:
    table.trouble = TypeError("a bug")
    buffer.keep(REFUSED)
    await buffer.flush()
    table.trouble = None
    buffer.keep(REFUSED)
    await buffer.flush()
    assert (table.written, said()[0]) == ([1], "What some callouts were answered is left out")


async def test_after_a_database_error_writing_pauses(
    buffer: ReceiptBuffer, table: Table, monkeypatch: pytest.MonkeyPatch
) -> None:
    slept: list[float] = []

    async def sleep(span: float) -> None:
        slept.append(span)
        table.trouble = None if len(slept) == 3 else JournalUnavailable("away")

    monkeypatch.setattr(module.asyncio, "sleep", sleep)
    buffer.keep(REFUSED)
    assert buffer._writing is not None
    await buffer._writing
    assert slept == [0.0, 30.0, 30.0]
    assert table.written == [1]


async def test_old_receipts_are_deleted_once_an_hour_and_an_error_in_it_repeats_nothing(
    buffer: ReceiptBuffer, table: Table, seconds: list[float]
) -> None:
    for second in (0, 3599, 3600, 3601):
        seconds[0] = second
        buffer.keep(REFUSED)
        await buffer.flush()
    assert (table.thinned, table.written) == (2, [1, 1, 1, 1])


# ---- two API servers, one database


Server = tuple[httpx.AsyncClient, ReceiptBuffer]


@pytest.fixture
async def servers(directory: Any, airflow_database: str) -> AsyncIterator[list[Server]]:
    """Two API servers, each with a client."""
    async with AsyncExitStack() as stack:
        made = []
        for _ in range(2):
            app = create_app(Connections(directory.find))
            transport = httpx.ASGITransport(app=LazyApp(lambda app=app: app))
            client = httpx.AsyncClient(transport=transport, base_url="http://airflow")
            made.append((await stack.enter_async_context(client), app.state.receipts))
        yield made
        for _, buffer in made:
            await buffer.flush()


async def send(server: Server, secret: str = "s3cret-of-zuora", path: str = PATH, number: int = 1) -> int:
    """Send a callout, and return its answer when it is stored."""
    client, buffer = server
    headers = {**signature(BODY, secret), "Zuora-Notification-Id": f"n-{number}"}
    status = (await client.post(path, content=BODY, headers=headers)).status_code
    await buffer.flush()
    return status


def refused() -> dict[tuple[str, int], int]:
    now = datetime.now(UTC) + timedelta(seconds=1)
    return {(each.conn_id, each.status): each.count for each in read(lambda session: refusals(session, now))}


async def test_the_refusals_of_both_are_added_up_until_one_accepts(servers: list[Server]) -> None:
    one, other = servers
    assert [await send(one, "wrong"), await send(other, "wrong"), await send(one, "wrong")] == [401, 401, 401]
    assert [await send(one, path="/callouts/invented"), await send(other, path="/callouts/made-up")] == [404, 404]
    assert refused() == {("zuora", 401): 3, (NO_CONNECTION, 404): 2}

    assert await send(other) == 200
    assert refused() == {(NO_CONNECTION, 404): 2}


async def test_a_receipt_leads_to_what_the_callout_added_and_holds_no_secret(servers: list[Server]) -> None:
    one, other = servers
    answered = [await send(one, "wrong"), await send(one), await send(other), await send(other, number=2)]
    assert answered == [401, 200, 200, 200]

    filters = CalloutFilters(conn_ids=["zuora"])
    found = read(lambda session: list_callouts(session, filters, limit=9)).callouts
    kept = [each.receipt for each in found if each.receipt]
    shown = [(each.receipt.status, each.attempt, each.receipt.notification_id) for each in kept]
    assert shown == [(200, 1, "n-2"), (200, 3, "n-1"), (200, 2, "n-1"), (401, 1, "n-1")]
    second, repeated, first, never = (each.report and each.report.id for each in found)
    assert never is None
    assert first == repeated != second
    with settings.engine.connect() as connection:  # type: ignore[union-attr]
        rows = connection.execute(text("SELECT * FROM mediation_receipt")).all()
        added = connection.scalar(text(f"SELECT notification_id FROM mediation_transition WHERE id = {first}"))
    assert added == "n-1"
    assert not any(
        proof in str(rows) for value in ("wrong", "s3cret-of-zuora") for proof in signature(BODY, value).values()
    )
    assert "s3cret" not in str(rows)


async def test_a_database_that_fails_changes_no_answer(servers: list[Server], said: Any) -> None:
    with settings.NonScopedSession() as session:
        session.execute(text("DROP TABLE mediation_answers"))
        session.commit()
    one, _ = servers
    assert [await send(one, "wrong"), await send(one, path="/callouts/invented"), await send(one)] == [401, 404, 200]
    assert sum("run `airflow db migrate`" in each for each in said()) == 1
