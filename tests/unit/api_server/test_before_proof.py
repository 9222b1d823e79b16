"""Before a client is proven, nothing is read but what the proof needs, and the answers reveal no connection."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

import pytest

from airflow_mediation_provider.api_server.app import create_app
from airflow_mediation_provider.api_server.connections import Connections, IdsInUse, MediationConnection
from airflow_mediation_provider.api_server.internal import BODY_LIMIT, UNPROVEN_BODY_LIMIT
from airflow_mediation_provider.api_server.journal import Recorder
from airflow_mediation_provider.protocol.maintenance import HISTORY_PATH, PRUNE_PATH, RECONCILE_PATH
from airflow_mediation_provider.protocol.wire import (
    DIGEST_HEADER,
    FEED_PATH,
    OBSERVATIONS_PATH,
    derive_key,
    observations_to_bytes,
    signed_headers,
)
from tests.unit.api_server.signed import Sent

if TYPE_CHECKING:
    from airflow_mediation_provider.api_server.app import FastAPI
    from tests.unit.api_server.conftest import Journal

SIGNED = (FEED_PATH, OBSERVATIONS_PATH, HISTORY_PATH, PRUNE_PATH, RECONCILE_PATH)
OBSERVED = observations_to_bytes([], [])


def find(conn_id: str) -> MediationConnection | None:
    """Return `zuora` by any spelling, as the environment does, and `quiet`, which accepts no callouts."""
    extra = {"zuora": {"callout_token": "t"}, "quiet": {}}.get(conn_id.lower())
    return None if extra is None else MediationConnection(conn_id, None, "secret", extra)


@pytest.fixture
def app(journal: Journal) -> FastAPI:
    return create_app(Connections(find, in_use=lambda: IdsInUse(frozenset({"zuora"}))), Recorder(journal.record))


def signed(body: bytes, *, secret: str = "secret", path: str = OBSERVATIONS_PATH, **changes: Any) -> dict[str, str]:
    proof = {"path": path, "conn_id": "zuora", "body": body, "timestamp": int(time.time()), **changes}
    return signed_headers(derive_key(secret), **proof)


def older(headers: dict[str, str]) -> dict[str, str]:
    """The headers as a version makes them that does not send the digest."""
    return {name: value for name, value in headers.items() if name != DIGEST_HEADER}


@pytest.mark.parametrize("path", SIGNED)
@pytest.mark.parametrize("conn_id", ["zuora", "quiet", "ZUORA", "nobody", "a/../b"])
async def test_of_a_body_that_is_not_proven_by_the_headers_nothing_is_read(
    app: FastAPI, path: str, conn_id: str
) -> None:
    answers = set()
    for headers in (
        signed(b"", secret="another", path=path, conn_id=conn_id),
        signed(b"", path="/another", conn_id=conn_id),
        signed(b"", path=path, conn_id=conn_id, timestamp=1_000_000),
        {**signed(b"", path=path, conn_id=conn_id), DIGEST_HEADER: "0" * 64},
        {DIGEST_HEADER: "", "Mediation-Connection": conn_id},
    ):
        sent = Sent(app, path, {**headers, "Content-Length": str(10**9)}, size=10**9)
        answers.add(str(await sent.answer()))
        assert sent.read == 0
    [answer] = answers
    assert answer.startswith('(401, b\'{"success":false,"error":"not authenticated"}\'')


@pytest.mark.parametrize("announced", [True, False])
@pytest.mark.parametrize(("size", "status"), [(UNPROVEN_BODY_LIMIT, 401), (UNPROVEN_BODY_LIMIT + 1, 413), (10**9, 413)])
async def test_without_the_digest_a_small_body_is_read_and_the_answer_reveals_no_connection(
    app: FastAPI, size: int, status: int, announced: bool
) -> None:
    answers = set()
    for conn_id in ("zuora", "quiet", "ZUORA", "nobody", ""):
        headers = older(signed(b"", secret="another", conn_id=conn_id))
        sent = Sent(app, FEED_PATH, {**headers, **({"Content-Length": str(size)} if announced else {})}, size=size)
        answers.add(str(await sent.answer()))
        assert sent.read <= UNPROVEN_BODY_LIMIT + 64 * 1024
    [answer] = answers
    assert answer.startswith(f"({status}, ")


async def test_a_client_of_an_older_version_is_served(app: FastAPI, journal: Journal) -> None:
    status, _, _ = await Sent(app, OBSERVATIONS_PATH, older(signed(OBSERVED)), OBSERVED).answer()

    assert (status, journal.calls[0]["conn_id"]) == (200, "zuora")


async def test_a_body_larger_than_an_unproven_one_is_read_after_the_proof(app: FastAPI) -> None:
    body = OBSERVED + b" " * UNPROVEN_BODY_LIMIT
    assert (await Sent(app, OBSERVATIONS_PATH, signed(body), body).answer())[0] == 200

    sent = Sent(app, OBSERVATIONS_PATH, {**signed(b""), "Content-Length": str(BODY_LIMIT + 1)}, size=BODY_LIMIT + 1)
    assert (await sent.answer())[0] == 413
    assert sent.read == 0


async def test_a_body_that_is_not_the_signed_one_is_refused(app: FastAPI, journal: Journal, said) -> None:
    status, body, _ = await Sent(app, OBSERVATIONS_PATH, signed(OBSERVED), OBSERVED + b" ").answer()

    assert (status, body) == (401, b'{"success":false,"error":"not authenticated"}')
    assert journal.calls == []
    assert said() == [
        "A request to /observations was answered 401, connection 'zuora': "
        "the body is not the one whose digest is signed"
    ]


@pytest.mark.parametrize("form", [dict, older])
async def test_a_proven_request_by_another_spelling_is_answered_with_the_id(
    app: FastAPI, journal: Journal, form: Any
) -> None:
    status, body, _ = await Sent(app, OBSERVATIONS_PATH, form(signed(OBSERVED, conn_id="ZUORA")), OBSERVED).answer()

    assert status == 404
    assert body == b'{"success":false,"error":"the connection is found under the id \'zuora\'"}'
    assert journal.calls == []
