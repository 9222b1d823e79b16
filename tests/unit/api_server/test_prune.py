"""A worker's request to prune, from its signature to the journal."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

import httpx
import pytest

from airflow_mediation_provider.api_server import prune as module
from airflow_mediation_provider.api_server.app import create_app
from airflow_mediation_provider.api_server.connections import Connections, MediationConnection
from airflow_mediation_provider.journal import prune as journal
from airflow_mediation_provider.journal.tables import Base
from airflow_mediation_provider.protocol.feed import derive_key, signed_headers
from airflow_mediation_provider.protocol.pruning import PRUNE_PATH, Pruned, reply_from_bytes, request_to_bytes
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
    body = request_to_bytes(90) if body is None else body
    key = derive_key(secret or SECRETS[conn_id])
    headers = signed_headers(key, path=PRUNE_PATH, conn_id=conn_id, body=body, timestamp=int(time.time()))
    return await client.post(PRUNE_PATH, content=body, headers=headers)


async def test_it_deletes_what_is_old_of_the_one_connection(client: httpx.AsyncClient) -> None:
    keep(session_of("R-1"), told("R-1"), session_of("R-2", conn_id="other"))

    assert reply_from_bytes((await ask(client)).content) == (Pruned(sessions=1, changes=1), True)
    assert reply_from_bytes((await ask(client)).content) == (Pruned(), True)
    assert reply_from_bytes((await ask(client, conn_id="other")).content) == (Pruned(sessions=1), True)


async def test_long_work_is_many_short_requests(client: httpx.AsyncClient, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(journal, "BATCH", 2)
    monkeypatch.setattr(module, "_SECONDS", 0.0)
    keep(*(session_of(f"R-{number}") for number in range(5)))

    total, done, requests = Pruned(), False, 0
    while not done:
        pruned, done = reply_from_bytes((await ask(client)).content)
        total, requests = total + pruned, requests + 1
        assert requests < 20
    assert total == Pruned(sessions=5)
    assert requests > 2


@pytest.mark.parametrize(
    ("asked", "status"),
    [
        ({"secret": "another"}, 401),
        ({"conn_id": "other", "secret": SECRETS["zuora"]}, 401),
        ({"body": request_to_bytes(13)}, 400),
        ({"body": b"<html>"}, 400),
    ],
)
async def test_what_is_not_proven_or_keeps_too_little_deletes_nothing(
    client: httpx.AsyncClient, asked: dict[str, Any], status: int
) -> None:
    keep(session_of("R-1"))

    reply = await ask(client, **asked)

    assert reply.status_code == status
    assert reply_from_bytes((await ask(client)).content) == (Pruned(sessions=1), True)


async def test_without_tables_it_is_a_503(client: httpx.AsyncClient) -> None:
    from airflow import settings

    Base.metadata.drop_all(settings.get_engine())

    assert (await ask(client)).status_code == 503
