"""Read a request's body from a stranger: within a limit of bytes and of seconds."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from starlette.requests import Request


class BodyTooLargeError(Exception):
    """The body is longer than allowed, or says so."""


class BodyTooSlowError(Exception):
    """The body did not come in time."""


async def read_body(request: Request, *, limit: int, seconds: float) -> bytes:
    """Return the body as it was sent; nothing is decoded or decompressed.

    :param limit: bytes that it may have
    :param seconds: within which it must have come
    :raises BodyTooLargeError: by its ``Content-Length``, before anything is read, or by what has come so far
    :raises BodyTooSlowError: the time is over
    :raises starlette.requests.ClientDisconnect: the sender went away
    """
    # A length that is no number is the server's to refuse; what really comes is counted anyway.
    announced = request.headers.get("content-length", "")
    if announced.isdecimal() and (len(announced) > 9 or int(announced) > limit):
        raise BodyTooLargeError
    body = bytearray()
    try:
        async with asyncio.timeout(seconds):
            async for chunk in request.stream():
                body += chunk
                if len(body) > limit:
                    raise BodyTooLargeError
    except TimeoutError:
        raise BodyTooSlowError from None
    return bytes(body)
