"""One request of limited cost: its reply has a largest size, and a request that is given up ends with its socket.

requests and aiohttp decompress a body of any size, and requests limits only the time between two bytes. So both return
the body as it was sent, and :class:`Body` decompresses it.
"""

from __future__ import annotations

import os
import socket
import threading
import zlib
from concurrent.futures import Future, wait
from contextlib import suppress
from functools import partial
from typing import TYPE_CHECKING, Any, Final

import requests
from urllib3.connection import HTTPConnection, HTTPSConnection
from urllib3.connectionpool import HTTPConnectionPool, HTTPSConnectionPool

from airflow_mediation_provider.protocol.zuora.refusals import Reply

if TYPE_CHECKING:
    from collections.abc import AsyncIterable, Iterable, Mapping

    from airflow_mediation_provider.protocol.zuora.flow import Request

LARGEST_REPLY: Final = 16 * 2**20
"""Bytes of a reply of Zuora, also after decompression."""
CHUNK: Final = 64 * 1024
ENCODINGS: Final = {"Accept-Encoding": "gzip, deflate"}
"""Header of each request."""
_WINDOW: Final = {"gzip": 31, "x-gzip": 31, "deflate": 15}
_RAW_DEFLATE: Final = -15
_STEP: Final = 2**20
"""Bytes that are decompressed at a time: a chunk can become a thousand times its size."""


class UnusableBodyError(Exception):
    """A reply's body is too large, or contradicts its encoding; the message is a clause."""


class Body:
    """The body of one reply: takes its chunks as they were sent, and decompresses them.

    :param encoding: of the header ``Content-Encoding``; empty: the body is not compressed
    :param largest: bytes that it may have, as sent and after decompression
    :raises UnusableBodyError: the encoding was not asked for
    """

    def __init__(self, encoding: str, largest: int) -> None:
        encoding = encoding.strip().lower()
        if encoding not in ("", "identity", *_WINDOW):
            raise UnusableBodyError(f"its body has the encoding {encoding!r:.40}, which was not asked for")
        self._largest = largest
        self._window = _WINDOW.get(encoding)
        self._inflate = None if self._window is None else zlib.decompressobj(self._window)
        self._received = 0
        self._content = bytearray()

    def add(self, chunk: bytes) -> None:
        """Take the next bytes.

        :raises UnusableBodyError: there are too many, or they contradict the encoding
        """
        if not chunk:
            return
        self._received += len(chunk)
        if self._inflate is None:
            self._content += chunk
        else:
            self._decompress(self._inflate, chunk)
        if max(self._received, len(self._content)) > self._largest:
            raise UnusableBodyError(f"its body has more than {self._largest // 2**20} MiB, which is the limit")

    def _decompress(self, inflate: Any, chunk: bytes) -> None:
        first = self._received == len(chunk)
        if first and self._window == _WINDOW["deflate"] and chunk[0] & 0x0F != zlib.DEFLATED:
            inflate = zlib.decompressobj(_RAW_DEFLATE)  # "deflate" is sent without its header too
        more = True
        while more and len(self._content) <= self._largest:
            if inflate.eof:
                if self._window == _WINDOW["deflate"] or not chunk.startswith(b"\x1f"):
                    break  # padding
                inflate = zlib.decompressobj(self._window or 0)  # the next member of the file
            try:
                part = inflate.decompress(chunk, _STEP)
            except zlib.error as error:
                raise UnusableBodyError(f"its body cannot be decompressed: {error}") from error
            self._content += part
            chunk = inflate.unconsumed_tail or inflate.unused_data
            more = bool(chunk) or len(part) == _STEP
        self._inflate = inflate

    def content(self) -> bytes:
        """Return the whole body.

        :raises UnusableBodyError: it ends too early
        """
        if self._inflate is not None and self._received and not self._inflate.eof:
            raise UnusableBodyError("its compressed body ends too early")
        return bytes(self._content)


def headers_of(items: Iterable[tuple[str, str]]) -> dict[str, str]:
    """Return headers by lower-case name, the values of a repeated one joined by commas."""
    headers: dict[str, str] = {}
    for name, value in items:
        key = name.lower()
        headers[key] = f"{headers[key]}, {value}" if key in headers else value
    return headers


async def read_async(
    status: int, items: Iterable[tuple[str, str]], chunks: AsyncIterable[bytes], largest: int = LARGEST_REPLY
) -> Reply:
    """Return a reply of aiohttp, whose session must not decompress.

    :param items: its headers
    :param chunks: its body
    :raises UnusableBodyError: the body is too large, or contradicts its encoding
    """
    headers = headers_of(items)
    body = Body(headers.get("content-encoding", ""), largest)
    async for chunk in chunks:
        body.add(chunk)
    return Reply(status, headers, body.content())


# ---- threads ---------------------------------------------------------------------------------------------------------


class _Line:
    """The socket of one request, so that another thread can end it; it keeps a descriptor of its own.

    TLS takes the socket over, and a connection is used by many requests: the descriptor stays valid all the same.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._descriptor: int | None = None
        self._over = False

    def use(self, connected: socket.socket) -> None:
        """Take the socket that the request uses from now on, and end it at once if the request was given up."""
        with self._lock:
            self._release()
            self._descriptor = os.dup(connected.fileno())
            if self._over:
                self._end()

    def end(self) -> None:
        """Give the request up: shut its socket down, so that its thread ends."""
        with self._lock:
            self._over = True
            self._end()

    def release(self) -> None:
        """Close the descriptor, after the request."""
        with self._lock:
            self._release()

    def _end(self) -> None:
        if self._descriptor is not None:
            with socket.socket(fileno=os.dup(self._descriptor)) as line, suppress(OSError):
                line.shutdown(socket.SHUT_RDWR)

    def _release(self) -> None:
        if self._descriptor is not None:
            os.close(self._descriptor)
            self._descriptor = None


_here = threading.local()
"""The line of the request that this thread carries out, as ``line``."""


class _Tracked(HTTPConnection):
    """A connection that passes its socket to the request that uses it."""

    def _new_conn(self) -> socket.socket:
        return self._used(super()._new_conn())

    def request(self, *args: Any, **kwargs: Any) -> None:
        if self.sock is not None:
            self._used(self.sock)
        super().request(*args, **kwargs)

    @staticmethod
    def _used(connected: socket.socket) -> socket.socket:
        line: _Line | None = getattr(_here, "line", None)
        if line is not None:
            line.use(connected)
        return connected


class _TrackedTls(_Tracked, HTTPSConnection):
    """The same with TLS."""


class _Pool(HTTPConnectionPool):
    ConnectionCls = _Tracked


class _TlsPool(HTTPSConnectionPool):
    ConnectionCls = _TrackedTls


POOLS: Final = {"http": _Pool, "https": _TlsPool}
"""By scheme: the pools that a session needs for ``fetch``."""


def fetch(
    session: requests.Session,
    request: Request,
    *,
    seconds: float,
    connect: float | None = None,
    largest: int = LARGEST_REPLY,
    **options: Any,
) -> Reply:
    """Send one request in a thread of its own: a server that sends a byte now and then would block the caller.

    :param session: with the pools of this module
    :param seconds: time limit of the whole request; then its socket and its thread end
    :param connect: time limit for the connection alone
    :param largest: bytes of the reply's body
    :param options: further arguments of requests
    :raises requests.Timeout: there was no complete reply within ``seconds``
    :raises UnusableBodyError: the body is too large, or contradicts its encoding
    :raises Exception: of requests, urllib3 and codecs: there is no reply
    """
    line, outcome = _Line(), Future[Reply]()

    def run() -> None:
        _here.line = line
        try:
            outcome.set_result(_send(session, request, (connect or seconds, seconds), largest, options))
        except Exception as error:
            outcome.set_exception(error)
        finally:
            line.release()

    threading.Thread(target=run, name="mediation-request", daemon=True).start()
    if not wait([outcome], seconds).done:
        line.end()
        raise requests.Timeout(f"no complete answer within {seconds:g} s")
    return outcome.result()


def _send(
    session: requests.Session,
    request: Request,
    timeout: tuple[float, float],
    largest: int,
    options: Mapping[str, Any],
) -> Reply:
    response = session.request(
        request.method,
        request.url,
        headers={**ENCODINGS, **request.headers},
        data=request.body,
        timeout=timeout,
        stream=True,
        # Called before a redirect is followed, for which requests would read the whole body.
        hooks={"response": partial(_take_body, largest=largest)},
        **options,
    )
    return Reply(response.status_code, headers_of(response.headers.items()), response.content)


def _take_body(response: requests.Response, *_: Any, largest: int, **__: Any) -> None:
    """Read the body, so that requests has it already."""
    try:
        body = Body(response.headers.get("Content-Encoding", ""), largest)
        for chunk in response.raw.stream(CHUNK, decode_content=False):
            body.add(chunk)
        response._content, response._content_consumed = body.content(), True  # type: ignore[attr-defined]
    except BaseException:
        response.close()
        raise
    response.raw.release_conn()
