"""A worker's requests to compare the callout history, on SQLite and PostgreSQL."""

from __future__ import annotations

import json
import time
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any

import httpx
import pytest
from airflow import settings
from sqlalchemy import select

from airflow_mediation_provider.api_server.app import create_app
from airflow_mediation_provider.api_server.connections import Connections, MediationConnection
from airflow_mediation_provider.journal.tables import SessionRow, TransitionRow
from airflow_mediation_provider.journal.writer import record
from airflow_mediation_provider.protocol.callouts.history import read_history
from airflow_mediation_provider.protocol.callouts.parse import read_callout
from airflow_mediation_provider.protocol.callouts.settings import callout_settings
from airflow_mediation_provider.protocol.maintenance import RECONCILE_PATH, ReconcileReply, ReconcileRequest
from airflow_mediation_provider.protocol.wire import derive_key, signed_headers

if TYPE_CHECKING:
    from airflow_mediation_provider.protocol.sessions.journal_entry import JournalEntry

SECRET = "client-secret"
SETTINGS = callout_settings("zuora", {"callout_token": "t"})
NOW = datetime.now(UTC).replace(microsecond=0)
WALK = ["INITIALIZING", "RUNNING", "PAUSED", "RUNNING", "PAUSED", "RUNNING", "COMPLETED"]


def fields(number: int, session: str) -> dict[str, str]:
    before = WALK[number - 1] if number else ""
    return {"meterId": "2470", "sessionId": session, "status": WALK[number], "previousStatus": before}


def at(number: int) -> datetime:
    return NOW - timedelta(hours=10) + timedelta(minutes=number * 10)


def history(session: str = "R-1") -> tuple[JournalEntry, ...]:
    """Return the history of a session whose statuses form a cycle."""
    records = [
        {
            "attemptedNum": 1,
            "createTime": f"{at(number):%Y-%m-%dT%H:%M:%S}",
            "eventContext": fields(number, session),
            "responseCode": 200,
        }
        for number in range(len(WALK))
    ]
    return tuple(read_history(SETTINGS, records, NOW).entries)


def came(*numbers: int, session: str = "R-1") -> None:
    """Store some of its callouts."""
    entries = [
        read_callout(
            SETTINGS,
            {"Zuora-Notification-Id": f"n-{session}-{number}"},
            json.dumps(fields(number, session)).encode(),
            at(number) + timedelta(seconds=1),
        )
        for number in numbers
    ]
    record(entries, conn_id="zuora")


@pytest.fixture
async def ask(airflow_database: str):
    app = create_app(Connections(lambda conn_id: MediationConnection(conn_id, None, SECRET, {})))
    async with httpx.AsyncClient(transport=httpx.ASGITransport(app=app), base_url="http://airflow") as client:

        async def post(body: Any, secret: str = SECRET) -> httpx.Response:
            data = body if isinstance(body, bytes) else body.to_bytes()
            proof = {"path": RECONCILE_PATH, "conn_id": "zuora", "body": data, "timestamp": int(time.time())}
            return await client.post(RECONCILE_PATH, content=data, headers=signed_headers(derive_key(secret), **proof))

        yield post


def session_row() -> tuple[str, bool, int]:
    with settings.NonScopedSession() as session:
        row = session.scalar(select(SessionRow))
        rows = session.scalars(select(TransitionRow)).all()
        return row.status, row.ambiguous, len(rows)


async def test_missing_changes_are_stored_once(ask: Any) -> None:
    came(0, 1, 2)

    for lost in (4, 0):
        reply = await ask(ReconcileRequest(entries=history()))
        assert reply.status_code == 200, reply.text
        assert len(ReconcileReply.from_bytes(reply.content).missing) == lost
        assert session_row() == ("COMPLETED", False, 7)


async def test_a_dry_run_stores_nothing(ask: Any) -> None:
    came(0, 1, 2)

    reply = ReconcileReply.from_bytes((await ask(ReconcileRequest(entries=history(), dry_run=True))).content)

    assert len(reply.missing) == 4
    assert session_row() == ("PAUSED", False, 3)


async def test_sessions_without_an_end_are_returned(ask: Any) -> None:
    came(0, 1, session="R-1")
    came(6, session="R-2")

    early = await ask(ReconcileRequest(open_before=at(0)))
    late = await ask(ReconcileRequest(open_before=at(5)))

    assert ReconcileReply.from_bytes(early.content).open == ()
    [state] = ReconcileReply.from_bytes(late.content).open
    assert (state.session_id, state.status) == ("R-1", "RUNNING")


async def test_unauthenticated_and_invalid_requests_are_refused(ask: Any) -> None:
    assert (await ask(ReconcileRequest(), secret="another")).status_code == 401
    for nonsense in (b"", b"[]", b"{}", b'{"protocol": 1, "entries": [{}]}', b"[" * 100_000):
        reply = await ask(nonsense)
        assert reply.status_code == 400, nonsense[:20]
        assert reply.json()["success"] is False


async def test_an_unavailable_journal_is_a_503(ask: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(settings, "NonScopedSession", None)

    reply = await ask(ReconcileRequest(entries=history()))

    assert (reply.status_code, reply.json()["error"]) == (503, "temporarily unavailable")
