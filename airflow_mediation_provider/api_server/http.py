"""HTTP for requests that need no login: body limits, JSON errors, throttled logs, bounded TTL map, early shutdown.

A server that is stopped first waits for the requests in progress, and only then notifies its applications; mounted
applications are never notified. So the signal itself is handled here, before the handler that was set previously.
"""

from __future__ import annotations

import asyncio
import logging
import signal
import threading
import time
from typing import TYPE_CHECKING, Any, Final, Generic, TypeVar

from starlette.responses import JSONResponse

if TYPE_CHECKING:
    from collections.abc import Callable, Hashable, Mapping

    from starlette.requests import Request


V = TypeVar("V")

log = logging.getLogger(__name__)

QUIET_SECONDS: Final = 60.0
# Different messages within a minute about known connections, and as many about other ids: a client that invents more
# than these cannot fill the log.
LIMIT: Final = 200
UNAVAILABLE: Final = "temporarily unavailable"
ERROR_SCHEMA: Final[dict[str, Any]] = {
    "type": "object",
    "properties": {"success": {"const": False}, "error": {"type": "string"}},
    "required": ["success", "error"],
}
_MEANINGS: Final = {
    400: "the message cannot be parsed",
    401: "the request is not authenticated",
    404: "no connection of type `mediation` has exactly this id, or it accepts no callouts",
    405: "another method is needed",
    408: "the body did not arrive in time",
    413: "the body is too large",
    503: "temporarily not possible, or the server is misconfigured; the server's log has the reason",
}
_SIGNALS: Final = (signal.SIGTERM, signal.SIGINT, signal.SIGQUIT)
_calls: Final[list[tuple[asyncio.AbstractEventLoop, Callable[[], None]]]] = []
_before: Final[dict[int, Callable[[int, Any], Any]]] = {}


class TtlMap(Generic[V]):
    """A map that drops each value after the same time; safe between threads.

    :param seconds: how long a value is kept
    :param limit: how many are kept at most; a full map accepts no more, rather than drop a value before its time
    :param clock: seconds of a monotonic clock
    :param drops_oldest: a full map drops the oldest value for a new one instead
    """

    def __init__(
        self, seconds: float, limit: int, clock: Callable[[], float] = time.monotonic, *, drops_oldest: bool = False
    ) -> None:
        self._seconds, self._limit, self._clock, self._drops_oldest = seconds, limit, clock, drops_oldest
        self._values: dict[Hashable, tuple[float, V]] = {}
        self._lock = threading.Lock()

    def add(self, key: Hashable, value: V) -> bool:
        """Store a value under a key that has none; return whether it was new and there was room for it."""
        with self._lock:
            self._expire()
            if key in self._values:
                return False
            if len(self._values) >= self._limit:
                if not self._drops_oldest:
                    return False
                del self._values[next(iter(self._values))]
            self._values[key] = (self._clock() + self._seconds, value)
            return True

    def get(self, key: Hashable) -> V | None:
        """Return the value of a key, ``None`` if it has none or it has expired."""
        with self._lock:
            self._expire()
            kept = self._values.get(key)
            return kept[1] if kept else None

    def __len__(self) -> int:
        """Return how many values are kept."""
        with self._lock:
            self._expire()
            return len(self._values)

    def _expire(self) -> None:
        # All values are kept equally long, and a dict keeps its order: the oldest come first.
        now = self._clock()
        while self._values and self._values[oldest := next(iter(self._values))][0] <= now:
            del self._values[oldest]


class ThrottledLog:
    """Logs each message only once a minute. Invented ids of connections take no place from those of others.

    :param knows: whether an id is that of a connection, or in use
    :param of: what the messages are about, unless it is a connection
    """

    def __init__(self, knows: Callable[[str], bool] = lambda _: True, *, of: str = "connection") -> None:
        self._knows = knows
        self._of = of
        # By whether the id is known: the messages of the last minute.
        self._recent: dict[bool, TtlMap[bool]] = {known: TtlMap(QUIET_SECONDS, LIMIT) for known in (True, False)}

    def log(self, level: int, what: str, conn_id: str, reason: str) -> None:
        """Log one sentence, at most once a minute for each connection and reason.

        :param what: what happened, for example ``A callout was refused``
        :param conn_id: from the request, so perhaps no connection has it
        :param reason: without secrets and without other content of the request
        """
        if self._recent[self._knows(conn_id)].add((what, conn_id, reason), True):
            log.log(level, "%s, %s %.250r: %s", what, self._of, conn_id, reason)


def refused(status: int, error: str, headers: Mapping[str, str] | None = None) -> JSONResponse:
    """Return a refusal; Zuora's "confirm success by parsing response content" reads ``success``.

    :param error: one sentence for readers of Zuora's callout history
    """
    return JSONResponse({"success": False, "error": error}, status, headers=dict(headers or {}))


def error_docs(*statuses: int) -> dict[int | str, dict[str, Any]]:
    """Return the ``responses`` of a route for OpenAPI: the meaning of each status."""
    content = {"application/json": {"schema": ERROR_SCHEMA}}
    return {status: {"description": _MEANINGS[status], "content": content} for status in statuses}


class BodyTooLargeError(Exception):
    """The body is longer than allowed, or its announced length is."""


class BodyTooSlowError(Exception):
    """The body did not arrive in time."""


async def read_body(request: Request, *, limit: int, seconds: float) -> bytes:
    """Return the body as it was sent, without decoding or decompression.

    :param limit: maximum number of bytes
    :param seconds: within which it must arrive
    :raises BodyTooLargeError: by its ``Content-Length``, before anything is read, or by the bytes received so far
    :raises BodyTooSlowError: the time is over
    :raises starlette.requests.ClientDisconnect: the sender disconnected
    """
    # A length that is not a number is refused by the server; the received bytes are counted anyway.
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


def on_shutdown(call: Callable[[], None]) -> None:
    """Have a function called on this event loop when the process is asked to stop.

    Works only in the main thread, where every kind of API server has its event loop. Existing handlers keep working:
    they are called as well.
    """
    if threading.current_thread() is not threading.main_thread():
        return
    _calls[:] = [each for each in _calls if not each[0].is_closed()] + [(asyncio.get_running_loop(), call)]
    for number in _SIGNALS:
        handler = signal.getsignal(number)
        # Without a handler there is no graceful stop.
        if callable(handler) and handler is not _handle:
            _before[number] = handler
            signal.signal(number, _handle)


def _handle(number: int, frame: Any) -> None:
    for loop, call in _calls:
        if not loop.is_closed():
            loop.call_soon_threadsafe(call)
    _before[number](number, frame)
