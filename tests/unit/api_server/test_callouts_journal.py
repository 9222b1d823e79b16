"""Callouts and the real journal, on SQLite and PostgreSQL: a callout answered 200 is stored."""

from __future__ import annotations

import asyncio
import sqlite3

import httpx
import pytest
from sqlalchemy import select

from airflow_mediation_provider.api_server import LazyApp, callouts
from airflow_mediation_provider.api_server import journal as recorder
from airflow_mediation_provider.api_server.app import create_app
from airflow_mediation_provider.api_server.connections import Connections
from airflow_mediation_provider.api_server.journal import ReceiptBuffer
from airflow_mediation_provider.journal.tables import SessionRow, TransitionRow
from tests.unit.api_server.signed import BODY, signature

PATH = "/callouts/zuora"


@pytest.fixture
async def client(directory):
    app = LazyApp(lambda: create_app(Connections(directory.find), receipts=ReceiptBuffer(*[lambda _: None] * 2)))
    async with httpx.AsyncClient(transport=httpx.ASGITransport(app=app), base_url="http://airflow") as made:
        yield made


def rows(table):
    from airflow.utils.session import create_session

    with create_session() as session:
        found = session.scalars(select(table)).all()
        session.expunge_all()
        return found


async def post(client, notification_id="n-1"):
    headers = {**signature(BODY), "Zuora-Notification-Id": notification_id}
    return await client.post(PATH, content=BODY, headers=headers)


async def test_a_callout_answered_200_is_stored(client, airflow_database):
    assert (await post(client)).status_code == 200

    [row] = rows(TransitionRow)
    assert (row.conn_id, row.notification_id, row.session_id, row.status) == (
        "zuora",
        "n-1",
        "R-00005468",
        "COMPLETED",
    )
    [session] = rows(SessionRow)
    assert (session.status, session.terminal, session.revision) == ("COMPLETED", True, 1)


async def test_a_callout_that_is_sent_again_is_a_duplicate(client, airflow_database):
    assert [(await post(client)).status_code for _ in range(3)] == [200, 200, 200]

    assert len(rows(TransitionRow)) == 1


async def test_an_old_callout_replayed_under_a_new_id_changes_nothing(client, airflow_database):
    await post(client)
    [before] = rows(SessionRow)

    assert (await post(client, "replayed")).status_code == 200

    assert len(rows(TransitionRow)) == 2
    [after] = rows(SessionRow)
    assert (after.status, after.previous_status, after.emitted) == (
        before.status,
        before.previous_status,
        before.emitted,
    )


async def test_all_of_many_concurrent_callouts_are_stored(client, airflow_database):
    replies = await asyncio.gather(*(post(client, f"n-{number}") for number in range(40)))

    assert {reply.status_code for reply in replies} == {200}
    assert len(rows(TransitionRow)) == 40


async def test_missing_tables_are_answered_503_and_the_log_names_the_command(client, airflow_on, empty_database, said):
    airflow_on(empty_database)

    reply = await post(client)

    assert (reply.status_code, reply.json()["error"]) == (503, "temporarily unavailable")
    assert "run `airflow db migrate`" in said()[0]


async def test_a_database_that_stays_locked_is_answered_503_in_time(
    client, airflow_on, sqlite_database, monkeypatch, said
):
    airflow_on(f"{sqlite_database}?timeout=0.1")
    other = sqlite3.connect(sqlite_database.removeprefix("sqlite:///"), isolation_level=None)
    other.execute("BEGIN IMMEDIATE")

    with monkeypatch.context() as hasty:
        hasty.setattr(callouts, "ANSWER_SECONDS", 0.4)
        hasty.setattr(recorder, "SHORTEST", 0.0)
        assert (await post(client)).status_code == 503
    other.execute("ROLLBACK")
    other.close()

    assert "it could not be stored" in said()[0]
    assert (await post(client)).status_code == 200
