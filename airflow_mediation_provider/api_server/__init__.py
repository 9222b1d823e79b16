"""The part of the provider that runs in Airflow's API server, an ASGI callable that is cheap until it is needed.

Airflow creates its plugins' apps in every process; schedulers, workers and triggerers never need one. An API server
needs it from its start on, which only a middleware is notified of.
"""

from __future__ import annotations

import asyncio
import json
import logging
import threading
import time
from typing import TYPE_CHECKING, Any, Final

from airflow_mediation_provider.protocol.urls import MOUNT

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from starlette.types import ASGIApp, Receive, Scope, Send

log = logging.getLogger(__name__)

# Seconds between two log records of the same failure.
_QUIET_SECONDS: Final = 60.0
# A server whose database or secrets backend does not answer starts after so many seconds all the same.
_WARM_UP_SECONDS: Final = 10.0


def _create_app() -> ASGIApp:
    from airflow_mediation_provider.api_server.app import create_app

    return create_app()


async def _warm_up_app(app: Any) -> None:
    from airflow_mediation_provider.api_server.app import warm_up

    await warm_up(app)


class LazyApp:
    """An ASGI application that is imported and built in a thread, once: when it is warmed up, or at its first request.

    Every failure beneath it, also while building, is answered 503 and logged: Zuora then sends the callout again.

    :param build: creates the application
    :param warm_up: does what the application's first requests would wait for
    """

    def __init__(
        self,
        build: Callable[[], ASGIApp] = _create_app,
        warm_up: Callable[[Any], Awaitable[None]] = _warm_up_app,
    ) -> None:
        self._build = build
        self._warm_up = warm_up
        self._warming: asyncio.Task[None] | None = None
        self._app: ASGIApp | None = None
        self._building = threading.Lock()
        self._logged: dict[str, float] = {}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request; Airflow sends only HTTP to a mounted application that is not FastAPI's own."""
        if scope["type"] == "lifespan":
            await _live(receive, send)
            return
        if scope["type"] != "http":
            await send({"type": "websocket.close", "code": 1000})
            return
        started = False

        async def watched_send(message: Any) -> None:
            nonlocal started
            started = True
            await send(message)

        try:
            app = self._app
            if app is None:
                app = await asyncio.to_thread(self._built)
        except Exception:
            self._log("The Mediation paths of the API server could not be built")
            await _unavailable(send)
            return
        try:
            await app(scope, receive, watched_send)
        except Exception:
            self._log("A request to the Mediation paths of the API server failed")
            if not started:
                await _unavailable(send)

    async def warm_up(self, seconds: float = _WARM_UP_SECONDS) -> None:
        """Build the application and warm it up; what fails is left to the requests, and what takes longer goes on.

        :param seconds: how long to wait for it
        """
        self._warming = asyncio.create_task(self._prepare())
        await asyncio.wait([self._warming], timeout=seconds)

    async def _prepare(self) -> None:
        try:
            await self._warm_up(await asyncio.to_thread(self._built))
        except Exception as error:
            log.warning(
                "The Mediation paths of the API server could not be prepared at its start: first requests to "
                "them may take longer (%s: %s)",
                type(error).__name__,
                error,
            )

    def _built(self) -> ASGIApp:
        with self._building:
            if self._app is None:
                self._app = self._build()
            return self._app

    def _log(self, message: str) -> None:
        """Log the current exception, at most once a minute for each message: there may be many callers."""
        now = time.monotonic()
        if now - self._logged.get(message, -_QUIET_SECONDS) >= _QUIET_SECONDS:
            self._logged[message] = now
            log.exception(message)


class WarmStart:
    """A root middleware: it warms an application up while Airflow's API server starts, before the first request.

    The address of the mount without a slash, which Airflow itself answers with *not found*, leads to the application.

    Airflow itself notifies a mounted application of its start only if it is an instance of FastAPI's class, which no
    other process of Airflow should import. Source:
    https://github.com/apache/airflow/blob/3.3.2/airflow-core/src/airflow/api_fastapi/app.py

    :param app: Airflow's application
    :param mounted: the application to warm up
    """

    def __init__(self, app: ASGIApp, mounted: LazyApp) -> None:
        self._app, self._mounted = app, mounted

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass everything on to Airflow; its lifespan begins before any request."""
        if scope["type"] == "lifespan":
            await self._mounted.warm_up()
        elif scope["type"] == "http" and scope["path"].removeprefix(root := scope.get("root_path", "")) == MOUNT:
            location = f"{root}{MOUNT}/".encode()
            await send({"type": "http.response.start", "status": 307, "headers": [(b"location", location)]})
            await send({"type": "http.response.body", "body": b""})
            return
        await self._app(scope, receive, send)


async def _unavailable(send: Send) -> None:
    body = json.dumps({"success": False, "error": "temporarily unavailable"}).encode()
    headers = [(b"content-type", b"application/json"), (b"content-length", str(len(body)).encode())]
    await send({"type": "http.response.start", "status": 503, "headers": headers})
    await send({"type": "http.response.body", "body": body})


async def _live(receive: Receive, send: Send) -> None:
    """Acknowledge startup and shutdown, which a server sends that runs the application by itself."""
    while True:
        message = await receive()
        await send({"type": f"{message['type']}.complete"})
        if message["type"] == "lifespan.shutdown":
            return
