from __future__ import annotations

import asyncio
import logging

import httpx
import pytest
from starlette.applications import Starlette
from starlette.responses import PlainTextResponse
from starlette.routing import Mount, Route

from airflow_mediation_provider.api_server import LazyApp


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


def test_nothing_is_logged_without_an_error(caplog):
    caplog.set_level(logging.DEBUG)
    LazyApp(hello_app)

    assert caplog.records == []
