"""What the API server counts: callouts by their answers, and their changes and events, by a real StatsD."""

from __future__ import annotations

import asyncio
import json
from typing import TYPE_CHECKING

import httpx
import pytest
from airflow import settings
from airflow.models.asset import AssetModel
from sqlalchemy.exc import OperationalError

from airflow_mediation_provider.api_server import LazyApp, callouts
from airflow_mediation_provider.api_server.app import create_app
from airflow_mediation_provider.api_server.connections import Connections
from airflow_mediation_provider.api_server.journal import ReceiptBuffer
from airflow_mediation_provider.journal import writer as journal
from airflow_mediation_provider.journal.writer import JournalUnavailable
from airflow_mediation_provider.protocol.sessions.asset_uri import asset_uri
from tests.unit.api_server.signed import BODY, CHANGE, signature

if TYPE_CHECKING:
    from tests.unit.statsd import StatsdServer

PATH = "/callouts/zuora"
RUNNING = json.dumps(CHANGE | {"status": "RUNNING", "previousStatus": "INITIALIZING"}).encode()
ACCEPTED = "mediation.callouts.accepted,conn_id=zuora"
COMPLETED = "mediation.transitions,conn_id=zuora,evidence=callout,run_type=NORMAL,status=COMPLETED"


@pytest.fixture
async def real(directory, sqlite_database, airflow_on):
    """A client of the application with the real journal."""
    airflow_on(sqlite_database)
    app = LazyApp(lambda: create_app(Connections(directory.find), receipts=ReceiptBuffer(*[lambda _: None] * 2)))
    async with httpx.AsyncClient(transport=httpx.ASGITransport(app=app), base_url="http://airflow") as made:
        yield made


async def post(client: httpx.AsyncClient, body: bytes = BODY, notification_id: str = "n-1", path: str = PATH) -> int:
    headers = {**signature(body), "Zuora-Notification-Id": notification_id}
    return (await client.post(path, content=body, headers=headers)).status_code


def name_in_a_dag(status: str) -> None:
    uri = asset_uri("zuora", CHANGE["meterId"], status)
    with settings.NonScopedSession() as session:
        session.add(AssetModel(name=uri, uri=uri, group="asset"))
        session.commit()


async def test_a_callout_and_its_change_and_event_are_counted(real: httpx.AsyncClient, statsd: StatsdServer):
    name_in_a_dag("COMPLETED")

    assert await post(real) == 200

    sent = statsd.ours()
    (duration,) = [each for each in sent if each.name == "mediation.callouts.duration"]
    assert (duration.tags, duration.kind) == ({"conn_id": "zuora"}, "ms")
    assert 0 < duration.value < 1000 * callouts.ANSWER_SECONDS
    assert {(each.name, *each.tags.values(), each.value, each.kind) for each in sent if each is not duration} == {
        ("mediation.callouts.accepted", "zuora", 1, "c"),
        ("mediation.transitions", "zuora", "callout", "NORMAL", "COMPLETED", 1, "c"),
        ("mediation.asset_events", "zuora", "COMPLETED", 1, "c"),
    }


async def test_a_callout_that_is_sent_twice_is_accepted_twice_and_changes_once(
    real: httpx.AsyncClient, statsd: StatsdServer
):
    name_in_a_dag("COMPLETED")

    assert [await post(real) for _ in range(3)] == [200, 200, 200]
    # Another notification of the same change triggers nothing either.
    await post(real, notification_id="n-2")

    assert statsd.counted() == {
        ACCEPTED: 4,
        COMPLETED: 2,
        "mediation.asset_events,conn_id=zuora,status=COMPLETED": 1,
    }


async def test_a_transaction_that_is_retried_counts_once(
    real: httpx.AsyncClient, statsd: StatsdServer, monkeypatch: pytest.MonkeyPatch
):
    emit, tries = journal.emit, []

    def locked_at_first(*events, **options):
        tries.append(events)
        if len(tries) < 3:
            raise OperationalError("COMMIT", {}, Exception("database is locked"))
        return emit(*events, **options)

    monkeypatch.setattr(journal, "emit", locked_at_first)

    assert await post(real) == 200

    assert len(tries) == 3
    assert statsd.counted() == {ACCEPTED: 1, COMPLETED: 1}


async def test_nothing_is_counted_that_is_not_durable(
    real: httpx.AsyncClient, statsd: StatsdServer, monkeypatch: pytest.MonkeyPatch
):
    def refuse(*_, **__):
        raise JournalUnavailable("Airflow is being upgraded")

    monkeypatch.setattr(journal, "emit", refuse)

    assert await post(real) == 503

    assert statsd.counted() == {"mediation.callouts.refused,conn_id=zuora,status=503": 1}


async def test_an_unparsed_callout_is_accepted_and_counted_as_unparsed(real: httpx.AsyncClient, statsd: StatsdServer):
    assert await post(real, b"{") == 200
    too_long = json.dumps(CHANGE | {"sessionId": "R" * 100}).encode()
    assert await post(real, too_long, "n-2") == 200

    assert statsd.counted() == {ACCEPTED: 2, "mediation.callouts.unparsed,conn_id=zuora": 2}


async def test_all_undocumented_statuses_have_one_tag_value(real: httpx.AsyncClient, statsd: StatsdServer):
    for number, status in enumerate(["PENDING", "RATED, again", "RUNNING"]):
        body = json.dumps(CHANGE | {"status": status}).encode()
        assert await post(real, body, f"n-{number}") == 200

    counted = statsd.counted()
    assert {key.rpartition("=")[2]: value for key, value in counted.items() if key.startswith("mediation.tr")} == {
        "OTHER": 2,
        "RUNNING": 1,
    }


async def test_refusals_are_counted_by_status_and_never_under_an_invented_id(
    client: httpx.AsyncClient, directory, journal, statsd: StatsdServer
):
    directory["open"] = {}
    directory["wrong"] = {"callout_hmac_secret": "s3cret-of-zuora", "callout_hmac_algorithm": "MD5"}
    await client.post(PATH, content=BODY)
    await post(client, path="/callouts/invented")
    await post(client, path="/callouts/open")
    await post(client, path="/callouts/wrong")
    await post(client, b" " * (callouts.BODY_LIMIT + 1))
    journal.trouble = JournalUnavailable("locked")
    await post(client)
    journal.trouble = RuntimeError("a bug")
    await post(client)

    assert statsd.counted() == {
        "mediation.callouts.refused,conn_id=zuora,status=401": 1,
        "mediation.callouts.refused,conn_id=unknown,status=404": 1,
        "mediation.callouts.refused,conn_id=open,status=404": 1,
        "mediation.callouts.refused,conn_id=wrong,status=503": 1,
        "mediation.callouts.refused,conn_id=unknown,status=413": 1,
        "mediation.callouts.refused,conn_id=zuora,status=503": 1,
        "mediation.callouts.refused,conn_id=unknown,status=503": 1,
    }


async def test_a_challenge_for_basic_credentials_is_no_refusal(
    client: httpx.AsyncClient, directory, statsd: StatsdServer
):
    directory["basic"] = {"callout_username": "zuora", "callout_password": "s3cret"}

    assert (await client.post("/callouts/basic", content=BODY)).status_code == 401
    assert (await client.post("/callouts/basic", content=BODY, auth=("zuora", "s3cret"))).status_code == 200
    assert (await client.post("/callouts/basic", content=BODY, auth=("zuora", "wrong"))).status_code == 401

    assert statsd.counted() == {
        "mediation.callouts.accepted,conn_id=basic": 1,
        "mediation.callouts.refused,conn_id=basic,status=401": 1,
    }


async def test_a_sender_that_disconnects_is_counted_once(client: httpx.AsyncClient, app, statsd: StatsdServer):
    async def gone():
        return {"type": "http.disconnect"}

    async def send(_):
        pass

    scope = {"type": "http", "method": "POST", "path": PATH, "raw_path": PATH.encode(), "query_string": b""}
    await asyncio.wait_for(app({**scope, "headers": [], "root_path": ""}, gone, send), 10)

    assert statsd.counted() == {"mediation.callouts.refused,conn_id=unknown,status=408": 1}
