from __future__ import annotations

import asyncio
import logging

import httpx
import pytest
from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.responses import PlainTextResponse
from starlette.routing import Mount, Route

from airflow_mediation_provider.api_server import LazyApp, WarmStart, app
from airflow_mediation_provider.api_server.connections import Connections
from airflow_mediation_provider.journal.transaction import JournalUnavailable


def client_of(app) -> httpx.AsyncClient:
    return httpx.AsyncClient(transport=httpx.ASGITransport(app=app), base_url="http://airflow")


async def hello(_request):
    return PlainTextResponse("hello")


async def broken(_request):
    raise RuntimeError("the secret is 42")


def hello_app() -> Starlette:
    return Starlette(routes=[Route("/hello", hello), Route("/broken", broken)])


async def test_built_once_for_concurrent_requests():
    built = []

    def build():
        built.append(1)
        return hello_app()

    async with client_of(LazyApp(build)) as client:
        replies = await asyncio.gather(*(client.get("/hello") for _ in range(20)))

    assert {reply.text for reply in replies} == {"hello"}
    assert built == [1]


async def test_building_does_not_block_the_event_loop():
    loop_went_on = asyncio.Event()
    loop = asyncio.get_running_loop()

    def build():
        asyncio.run_coroutine_threadsafe(asyncio.wait_for(loop_went_on.wait(), 5), loop).result(5)
        return hello_app()

    async with client_of(LazyApp(build)) as client:
        asking = asyncio.create_task(client.get("/hello"))
        loop.call_soon(loop_went_on.set)
        assert (await asking).status_code == 200


async def test_a_build_that_fails_is_answered_503_logged_once_and_tried_again(caplog):
    attempts = []

    def build():
        attempts.append(1)
        if len(attempts) < 3:
            raise ImportError("no module named nothing")
        return hello_app()

    async with client_of(LazyApp(build)) as client:
        replies = [await client.get("/hello") for _ in range(3)]

    assert [reply.status_code for reply in replies] == [503, 503, 200]
    assert replies[0].json() == {"success": False, "error": "temporarily unavailable"}
    assert [record.levelname for record in caplog.records if record.name.startswith("airflow_mediation")] == ["ERROR"]
    assert "no module named nothing" in caplog.text


async def test_an_exception_of_a_request_does_not_leave_the_app(caplog):
    async with client_of(LazyApp(lambda: Starlette(routes=[Route("/broken", broken)]))) as client:
        reply = await client.get("/broken")

    assert reply.status_code >= 500
    assert "42" not in reply.text
    assert "the secret is 42" in caplog.text


async def test_a_request_that_fails_before_its_answer_is_answered_503():
    async def app(scope, receive, send):
        raise RuntimeError

    async with client_of(LazyApp(lambda: app)) as client:
        reply = await client.get("/")

    assert (reply.status_code, reply.json()["success"]) == (503, False)


@pytest.mark.parametrize("root_path", ["", "/airflow"])
async def test_mounted_as_airflow_mounts_it(root_path):
    airflow = Starlette(routes=[Mount("/mediation", LazyApp(hello_app))])
    transport = httpx.ASGITransport(app=airflow, root_path=root_path)
    async with httpx.AsyncClient(transport=transport, base_url="http://airflow") as client:
        assert (await client.get(f"{root_path}/mediation/hello")).text == "hello"


async def test_lifespan_and_websockets_are_answered_without_building():
    app = LazyApp(lambda: pytest.fail("built"))
    sent = []

    async def send(message):
        sent.append(message["type"])

    messages = iter(["lifespan.startup", "lifespan.shutdown"])

    async def receive():
        return {"type": next(messages)}

    await app({"type": "lifespan"}, receive, send)
    await app({"type": "websocket"}, receive, send)

    assert sent == ["lifespan.startup.complete", "lifespan.shutdown.complete", "websocket.close"]


class Start:
    """The start of a server, with an application mounted as Airflow does it."""

    def __init__(self, mounted: LazyApp) -> None:
        middleware = [Middleware(WarmStart, mounted=mounted)]
        self.airflow = Starlette(routes=[Mount("/mediation", mounted)], middleware=middleware)
        self.complete = asyncio.Event()
        self.stop = asyncio.Event()

    async def run(self):
        messages = iter(["lifespan.startup"])

        async def receive():
            if (first := next(messages, None)) is not None:
                return {"type": first}
            await self.stop.wait()
            return {"type": "lifespan.shutdown"}

        async def send(message):
            assert message["type"] in ("lifespan.startup.complete", "lifespan.shutdown.complete"), message
            self.complete.set()

        await self.airflow({"type": "lifespan"}, receive, send)

    async def __aenter__(self) -> httpx.AsyncClient:
        self.running = asyncio.create_task(self.run())
        async with asyncio.timeout(30):
            await self.complete.wait()
        return client_of(self.airflow)

    async def __aexit__(self, *exc_info: object) -> None:
        self.stop.set()
        await self.running


async def test_the_application_is_built_and_warm_before_the_server_has_started():
    done = []

    async def warm_up(built):
        done.append(("warm", type(built)))

    def build():
        done.append("built")
        return hello_app()

    async with Start(LazyApp(build, warm_up)) as client:
        assert done == ["built", ("warm", Starlette)]
        assert (await client.get("/mediation/hello")).text == "hello"

    assert len(done) == 2


@pytest.mark.parametrize("down", ["build", "warm_up"])
async def test_a_server_starts_though_nothing_can_be_prepared(down, caplog):
    attempts = []

    def build():
        attempts.append(1)
        if down == "build" and len(attempts) == 1:
            raise ImportError("no module named nothing")
        return hello_app()

    async def warm_up(_app):
        raise JournalUnavailable("the journal's database gave an error: connection refused")

    async with Start(LazyApp(build, warm_up)) as client:
        assert (await client.get("/mediation/hello")).text == "hello"

    [record] = [record for record in caplog.records if record.name.startswith("airflow_mediation")]
    assert record.levelname == "WARNING"
    assert ("no module named nothing" if down == "build" else "connection refused") in record.getMessage()


async def test_a_server_does_not_wait_for_a_database_that_does_not_answer():
    answered = asyncio.Event()
    warm = asyncio.Event()

    async def warm_up(_app):
        await answered.wait()
        warm.set()

    lazy = LazyApp(hello_app, warm_up)
    await lazy.warm_up(seconds=0.01)

    assert not warm.is_set()
    answered.set()
    async with asyncio.timeout(30):
        await warm.wait()


@pytest.mark.parametrize("root", ["", "/airflow"])
async def test_the_mount_without_a_slash_leads_to_the_application(root):
    lazy = LazyApp(hello_app)
    airflow = Starlette(routes=[Mount("/mediation", lazy)])
    transport = httpx.ASGITransport(app=WarmStart(airflow, lazy), root_path=root)
    async with httpx.AsyncClient(transport=transport, base_url="http://airflow") as client:
        reply = await client.get(f"{root}/mediation")
        assert (reply.status_code, reply.headers["location"]) == (307, f"{root}/mediation/")
        assert (await client.get(f"{root}/mediation/hello")).text == "hello"
        assert (await client.get(f"{root}/elsewhere/mediation")).status_code == 404


async def test_warming_up_looks_up_the_connections_of_the_journal(directory, monkeypatch):
    directory["away"] = {}
    looked_up = []

    def find(conn_id):
        looked_up.append(conn_id)
        if conn_id == "away":
            raise RuntimeError("the vault is sealed")
        return directory.find(conn_id)

    monkeypatch.setattr(app, "read", lambda _work: ["away", "gone", "zuora"])
    made = app.create_app(Connections(find))

    await app.warm_up(made)

    assert sorted(looked_up) == ["away", "gone", "zuora"]
    assert (await made.state.connections.get("zuora")).conn_id == "zuora"
    assert len(looked_up) == 3


def test_nothing_is_logged_without_an_error(caplog):
    caplog.set_level(logging.DEBUG)
    LazyApp(hello_app)

    assert caplog.records == []
