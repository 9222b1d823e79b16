"""What clients without credentials can make of ids: no second id of a connection, no series, no memory, no silence."""

from __future__ import annotations

import asyncio
import json
import logging
from datetime import UTC, datetime
from itertools import islice, product
from typing import TYPE_CHECKING

import httpx
import pytest
from airflow import settings
from airflow.models.asset import AssetActive, AssetModel
from airflow.models.connection import Connection
from sqlalchemy import select

from airflow_mediation_provider.api_server import LazyApp
from airflow_mediation_provider.api_server.app import create_app
from airflow_mediation_provider.api_server.connections import (
    UNKNOWN_SECONDS,
    Connections,
    ConnectionsOfTeams,
    IdsInUse,
    MediationConnection,
    ids_in_use,
)
from airflow_mediation_provider.api_server.journal import Recorder
from airflow_mediation_provider.journal.receipts import Seen, refusals
from airflow_mediation_provider.journal.tables import TransitionRow
from airflow_mediation_provider.journal.transaction import read
from airflow_mediation_provider.protocol.callouts.receipt import NO_CONNECTION
from airflow_mediation_provider.protocol.sessions.asset_uri import asset_uri, history_uri
from tests.unit.api_server.conftest import KeptReceipts, since_accepted
from tests.unit.api_server.signed import BODY, CHANGE, signature
from tests.unit.journal.old_rows import session_of, wait_of

if TYPE_CHECKING:
    from collections.abc import Iterator

    from airflow_mediation_provider.api_server.app import FastAPI
    from tests.unit.api_server.conftest import Directory, Journal
    from tests.unit.statsd import StatsdServer

SECRET = "s3cret-of-zuora"
INVENTED = [f"invented-{number}" for number in range(10_000)]


def spellings(conn_id: str) -> Iterator[str]:
    return map("".join, product(*(sorted({letter, letter.upper()}, reverse=True) for letter in conn_id)))


def client_of(app: FastAPI) -> httpx.AsyncClient:
    return httpx.AsyncClient(transport=httpx.ASGITransport(app=LazyApp(lambda: app)), base_url="http://airflow")


async def post(client: httpx.AsyncClient, conn_id: str, secret: str = SECRET) -> int:
    return (await client.post(f"/callouts/{conn_id}", content=BODY, headers=signature(BODY, secret))).status_code


def schedule_on(uri: str) -> None:
    with settings.NonScopedSession() as session:
        session.add(AssetModel(name=uri, uri=uri, group="asset"))
        session.flush()
        session.add(AssetActive(name=uri, uri=uri))
        session.commit()


@pytest.fixture
def in_environment(monkeypatch: pytest.MonkeyPatch, sqlite_database: str, airflow_on) -> None:
    airflow_on(sqlite_database)
    value = {"conn_type": "mediation", "password": "p", "extra": {"callout_hmac_secret": SECRET}}
    monkeypatch.setenv("AIRFLOW_CONN_MEDIATION_DEFAULT", json.dumps(value))


@pytest.mark.usefixtures("in_environment")
async def test_of_the_spellings_of_a_connection_in_the_environment_one_is_its_id(statsd: StatsdServer, said) -> None:
    schedule_on(asset_uri("mediation_default", CHANGE["meterId"], "COMPLETED"))
    ids = list(islice(spellings("mediation_default"), 300))
    app = create_app()

    async with client_of(app) as client:
        answers = {conn_id: await post(client, conn_id) for conn_id in ids}
        assert [await post(client, conn_id, "wrong") for conn_id in ids[1:4]] == [404] * 3

    assert [conn_id for conn_id, answer in answers.items() if answer != 404] == ["mediation_default"]
    assert answers["mediation_default"] == 200
    with settings.NonScopedSession() as session:
        assert set(session.scalars(select(TransitionRow.conn_id))) == {"mediation_default"}
    assert {sent.tags["conn_id"] for sent in statsd.ours()} == {"mediation_default", "unknown"}
    assert list(app.state.connections._known) == ["mediation_default"]
    await app.state.receipts.flush()
    assert read(lambda session: {each.conn_id for each in refusals(session, datetime.now(UTC))}) == {NO_CONNECTION}
    assert said()[0] == (
        f"A callout was answered 404, connection {ids[1]!r}: the connection is found under the id 'mediation_default'"
    )


@pytest.mark.usefixtures("in_environment")
async def test_dags_with_capitals_in_the_id_get_their_callouts() -> None:
    schedule_on(history_uri("Mediation_Default", 60))

    async with client_of(create_app()) as client:
        assert await post(client, "Mediation_Default") == 200
        assert await post(client, "mediation_default") == 404


@pytest.mark.usefixtures("in_environment")
def test_the_ids_in_use_are_those_of_schedules_waits_the_journal_and_airflows_database() -> None:
    schedule_on(asset_uri("a b/ü", "*", "COMPLETED"))
    schedule_on("s3://another/asset")
    with settings.NonScopedSession() as session:
        for conn_id, conn_type in (("Stored", "mediation"), ("another", "http")):
            session.add(Connection(conn_id=conn_id, conn_type=conn_type))
        session.add(wait_of("w", conn_id="Waited"))
        session.add(session_of("R-1", conn_id="Received"))
        session.commit()

    assert ids_in_use() == IdsInUse(
        by_dags=frozenset({"a b/ü", "Waited"}), elsewhere=frozenset({"Stored", "Waited", "Received"})
    )


async def test_thousands_of_invented_ids_leave_nothing_behind_and_a_connection_keeps_its_callouts_and_its_log(
    directory: Directory, journal: Journal, seconds: list[float], statsd: StatsdServer, said, seen: Seen
) -> None:
    in_use = IdsInUse(elsewhere=frozenset({"zuora"}))
    connections = Connections(directory.find, lambda: seconds[0], lambda: in_use)
    app = create_app(connections, Recorder(journal.record), KeptReceipts(seen))

    async with client_of(app) as client:
        assert {await post(client, conn_id) for conn_id in INVENTED[:210]} == {404}
        await asyncio.gather(*map(connections.get, INVENTED[210:]), return_exceptions=True)
        assert len(connections._unknown) == len(INVENTED)

        assert await post(client, "zuora", "wrong") == 401
        assert await post(client, "zuora") == 200

    about_others = [line for line in said() if "'zuora'" not in line]
    assert len(about_others) == 200
    assert [line for line in said() if "'zuora'" in line] == [
        "A callout was answered 401, connection 'zuora': the signature in the header X-Mediation-Signature is wrong"
    ]
    assert {sent.tags["conn_id"] for sent in statsd.ours()} == {"unknown", "zuora"}
    seconds[0] += UNKNOWN_SECONDS
    assert (len(connections._unknown), connections._asking, list(connections._known)) == (0, {}, ["zuora"])
    assert {(key.conn_id, key.status) for key in seen.answers} == {(NO_CONNECTION, 404), ("zuora", 401), ("zuora", 200)}


async def test_a_failed_look_up_of_a_known_connection_is_logged_beside_invented_ids(
    directory: Directory, seconds: list[float], said
) -> None:
    in_use = IdsInUse(elsewhere=frozenset({"zuora"}))
    connections = Connections(directory.find, lambda: seconds[0], lambda: in_use)
    app = create_app(connections, receipts=KeptReceipts(Seen()))
    directory.down = True

    async with client_of(app) as client:
        assert {await post(client, conn_id) for conn_id in INVENTED[:201]} == {503}
        assert await post(client, "zuora") == 503

    assert said(logging.ERROR)[-1].startswith("A callout was answered 503, connection 'zuora': it could not be ")
    assert len(said(logging.ERROR)) == 201


async def test_an_address_may_name_the_team_where_several_have_the_id(journal: Journal, said, seen: Seen) -> None:
    of_team = {team: MediationConnection("zuora", team, "p", {"callout_hmac_secret": team}) for team in ("blue", "red")}
    app = create_app(
        Connections(lambda conn_id: ConnectionsOfTeams(conn_id, of_team)), Recorder(journal.record), KeptReceipts(seen)
    )

    async with client_of(app) as client:
        assert await post(client, "zuora", "red") == 503
        assert since_accepted(seen) == {("zuora", 503): 1}
        assert await post(client, "zuora?team=red", "red") == 200
        assert since_accepted(seen) == {}
        assert await post(client, "zuora?team=red", "blue") == 401
        assert await post(client, "zuora?team=green", "red") == 404

    assert (journal.calls[0]["conn_id"], journal.calls[0]["team"]) == ("zuora", "red")
    assert "several teams have a connection of this id (blue, red)" in said(logging.ERROR)[0]
