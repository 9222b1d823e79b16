"""The answers to any request, authenticated or not, are those of the OpenAPI description."""

from __future__ import annotations

import asyncio
import time

import pytest
import schemathesis
from hypothesis import settings
from schemathesis.checks import not_a_server_error
from schemathesis.specs.openapi.checks import positive_data_acceptance
from starlette.responses import JSONResponse

from airflow_mediation_provider.api_server.app import create_app
from airflow_mediation_provider.api_server.connections import Connections
from airflow_mediation_provider.api_server.journal import Recorder
from airflow_mediation_provider.api_server.pages import CHECKS, PARTS
from airflow_mediation_provider.journal.receipts import Seen
from airflow_mediation_provider.protocol.maintenance import HISTORY_PATH, PRUNE_PATH, RECONCILE_PATH
from airflow_mediation_provider.protocol.wire import FEED_PATH, OBSERVATIONS_PATH, derive_key, signed_headers
from tests.unit.api_server.conftest import Directory, Journal, KeptReceipts
from tests.unit.api_server.pages.conftest import manager  # noqa: F401  # the fixture
from tests.unit.api_server.signed import signature

# The same requests in each run, and few of them: the description has hardly anything to vary.
QUICK = settings(max_examples=2 * settings.default.max_examples // 5, derandomize=True, database=None)
# A page takes longer, and has few arguments.
FEW = settings(max_examples=QUICK.max_examples // 4, derandomize=True, database=None)
SECRET = {"callout_hmac_secret": "s3cret-of-zuora"}
SIGNED = (FEED_PATH, OBSERVATIONS_PATH, HISTORY_PATH, PRUNE_PATH, RECONCILE_PATH)


class Proving:
    """What every caller has to add: the id of an existing connection, and the body's signature."""

    def __init__(self, app) -> None:
        self.app = app

    async def __call__(self, scope, receive, send):
        path = scope.get("path", "")
        if scope["type"] == "http" and path.startswith(("/callouts/", *SIGNED)):
            body, more = b"", True
            while more:
                message = await receive()
                body, more = body + message.get("body", b""), message.get("more_body", False)
            if path.startswith("/callouts/"):
                path, proof = "/callouts/zuora", signature(body)
            else:
                key, now = derive_key("client-secret"), int(time.time())
                proof = signed_headers(key, path=path, conn_id="zuora", body=body, timestamp=now)
            signed = [(name.lower().encode(), value.encode()) for name, value in proof.items()]
            scope = {**scope, "path": path, "headers": [*scope["headers"], *signed]}
            pending = [{"type": "http.request", "body": body, "more_body": False}]

            async def receive():
                if pending:
                    return pending.pop()
                return await asyncio.get_running_loop().create_future()  # the caller stays

        await self.app(scope, receive, send)


def described(recorder, wrap=lambda app: app):
    app = create_app(Connections(Directory(zuora=SECRET).find), recorder, KeptReceipts(Seen()))
    description = app.openapi()
    app.add_route("/openapi.json", lambda _request: JSONResponse(description))
    return schemathesis.openapi.from_asgi("/openapi.json", wrap(app))


class LoggedIn:
    """What a browser adds: the user's cookie, and where the request comes from."""

    def __init__(self, app) -> None:
        self.app = app

    async def __call__(self, scope, receive, send):
        added = [(b"cookie", b"_token=good"), (b"sec-fetch-site", b"same-origin")]
        if scope["type"] == "http" and scope["path"] != "/openapi.json":
            scope = {**scope, "headers": [*scope["headers"], *added]}
        await self.app(scope, receive, send)


def pages_described(wrap=lambda app: app):
    """The pages too: the description leaves them out, as it is for machines."""
    app = create_app(Connections(Directory(zuora=SECRET).find), Recorder())
    app.router.routes = []
    for part in PARTS:
        app.include_router(part.router, dependencies=CHECKS)
    description = app.openapi()
    app.add_route("/openapi.json", lambda _request: JSONResponse(description))
    return schemathesis.openapi.from_asgi("/openapi.json", wrap(app))


strangers_of_pages = pages_described()
users = pages_described(LoggedIn)
strangers = described(Recorder(Journal().record))
zuora = described(Recorder(), Proving)


@pytest.fixture
def journal_on_postgres(airflow_on, postgres_database):
    """PostgreSQL is stricter in what it stores."""
    airflow_on(postgres_database)


@strangers.parametrize()
@QUICK
def test_unauthenticated_requests_get_documented_answers(case):
    case.call_and_validate()


@zuora.parametrize()
@QUICK
@pytest.mark.usefixtures("journal_on_postgres")
def test_authenticated_requests_get_documented_answers(case):
    if case.path.startswith("/callouts"):
        assert case.call_and_validate().status_code in (200, 405)
    else:
        # Both ends of these messages are ours, so the description leaves out their content.
        reply = case.call_and_validate(excluded_checks=[positive_data_acceptance])
        assert reply.status_code in (200, 400, 405)


@strangers_of_pages.parametrize()
@FEW
@pytest.mark.usefixtures("manager")
def test_no_page_is_shown_without_a_login(case):
    assert case.call().status_code in (401, 405)


@users.parametrize()
@FEW
@pytest.mark.usefixtures("manager", "journal_on_postgres")
def test_no_request_of_a_user_is_an_error_of_the_server(case):
    case.call_and_validate(checks=[not_a_server_error])


def test_no_path_is_left_out():
    paths = {"/handshake", "/callouts/{conn_id}", "/feed", "/observations", "/history", "/prune", "/reconcile"}
    assert set(create_app().openapi()["paths"]) == paths
