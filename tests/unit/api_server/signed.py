"""A callout, and its signature as Zuora makes it; and how tests wait for the work of other threads."""

from __future__ import annotations

import asyncio
import base64
import hashlib
import hmac
import json
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable

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
