"""A worker's request to prune, from its signature to the journal."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

import httpx
import pytest

from airflow_mediation_provider.api_server import internal as module
from airflow_mediation_provider.api_server.app import create_app
from airflow_mediation_provider.api_server.connections import Connections, MediationConnection
from airflow_mediation_provider.journal import prune as journal
from airflow_mediation_provider.journal.tables import Base
from airflow_mediation_provider.protocol.maintenance import PRUNE_PATH, Pruned, PruneReply, PruneRequest
from airflow_mediation_provider.protocol.wire import derive_key, signed_headers
from tests.unit.journal.old_rows import keep, session_of, told

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

SECRETS = {"zuora": "secret of zuora", "other": "secret of other"}


def find(conn_id: str) -> MediationConnection | None:
    return MediationConnection(conn_id, None, SECRETS[conn_id]) if conn_id in SECRETS else None


@pytest.fixture
async def client(airflow_database: str) -> AsyncIterator[httpx.AsyncClient]:
    app = create_app(Connections(find))
    async with httpx.AsyncClient(transport=httpx.ASGITransport(app=app), base_url="http://airflow") as made:
        yield made


async def ask(
    client: httpx.AsyncClient, body: bytes | None = None, *, conn_id: str = "zuora", secret: str | None = None
) -> httpx.Response:
    body = PruneRequest(90).to_bytes() if body is None else body
    key = derive_key(secret or SECRETS[conn_id])
    headers = signed_headers(key, path=PRUNE_PATH, conn_id=conn_id, body=body, timestamp=int(time.time()))
    return await client.post(PRUNE_PATH, content=body, headers=headers)


@pytest.fixture(autouse=True)
def unhurried(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let a request take its time: on a busy machine two seconds are over soon, and it returns before it is done."""
    monkeypatch.setattr(module, "_PRUNE_SECONDS", 60.0)


async def test_old_rows_of_the_signed_connection_alone_are_deleted(client: httpx.AsyncClient) -> None:
    keep(session_of("R-1"), told("R-1"), session_of("R-2", conn_id="other"))

    assert PruneReply.from_bytes((await ask(client)).content) == PruneReply(Pruned(sessions=1, changes=1), done=True)
    assert PruneReply.from_bytes((await ask(client)).content) == PruneReply(Pruned(), done=True)
    assert PruneReply.from_bytes((await ask(client, conn_id="other")).content) == PruneReply(
        Pruned(sessions=1), done=True
    )


async def test_long_work_is_many_short_requests(client: httpx.AsyncClient, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(journal, "BATCH", 2)
    monkeypatch.setattr(module, "_PRUNE_SECONDS", 0.0)
    keep(*(session_of(f"R-{number}") for number in range(5)))

    total, done, requests = Pruned(), False, 0
    while not done:
        reply = PruneReply.from_bytes((await ask(client)).content)
        total, done, requests = total + reply.pruned, reply.done, requests + 1
        assert requests < 20
    assert total == Pruned(sessions=5)
    assert requests > 2


@pytest.mark.parametrize(
    ("asked", "status"),
    [
        ({"secret": "another"}, 401),
        ({"conn_id": "other", "secret": SECRETS["zuora"]}, 401),
        ({"body": b'{"protocol": 1, "older_than_days": 13}'}, 400),
        ({"body": b"<html>"}, 400),
    ],
)
async def test_an_unauthenticated_or_too_short_request_deletes_nothing(
    client: httpx.AsyncClient, asked: dict[str, Any], status: int
) -> None:
    keep(session_of("R-1"))

    reply = await ask(client, **asked)

    assert reply.status_code == status
    assert PruneReply.from_bytes((await ask(client)).content) == PruneReply(Pruned(sessions=1), done=True)


async def test_missing_tables_are_a_503(client: httpx.AsyncClient) -> None:
    from airflow import settings

    Base.metadata.drop_all(settings.get_engine())

    assert (await ask(client)).status_code == 503
