"""A callout, and its signature as Zuora makes it; a request of any size; and how tests wait for threads."""

from __future__ import annotations

import asyncio
import base64
import hashlib
import hmac
import json
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable

    from starlette.types import ASGIApp

CHANGE = {
    "meterId": "2470",
    "sessionId": "R-00005468",
    "runType": "NORMAL",
    "status": "COMPLETED",
    "previousStatus": "RUNNING",
}
BODY = json.dumps(CHANGE).encode()


def signature(body: bytes, secret: str = "s3cret-of-zuora") -> dict[str, str]:
    digest = hmac.new(secret.encode(), body, hashlib.sha256).digest()
    return {"X-Mediation-Signature": base64.b64encode(digest).decode()}


async def until(true: Callable[[], object]) -> None:
    async with asyncio.timeout(10):
        while not true():  # noqa: ASYNC110  # another thread's doing
            await asyncio.sleep(0.001)


class Sent:
    """A request whose body is sent in parts of 64 KiB, as far as it is read.

    :param size: bytes of the body
    """

    def __init__(self, app: ASGIApp, path: str, headers: dict[str, str], body: bytes = b"", size: int = 0) -> None:
        self.read = 0
        self._app = app
        self._body = body or bytes(min(size, 64 * 1024))
        self._size = size or len(body)
        fields = [(name.lower().encode(), value.encode("latin-1")) for name, value in headers.items()]
        self._scope = {"type": "http", "method": "POST", "path": path, "query_string": b"", "headers": fields}
        self._messages: list[dict[str, Any]] = []

    async def _receive(self) -> dict[str, Any]:
        self.read += len(self._body)
        return {"type": "http.request", "body": self._body, "more_body": self.read < self._size}

    async def _send(self, message: dict[str, Any]) -> None:
        self._messages.append(message)

    async def answer(self) -> tuple[int, bytes, Any]:
        """Return status, body and headers."""
        await self._app(self._scope, self._receive, self._send)
        start, body = self._messages
        return start["status"], body["body"], start["headers"]
