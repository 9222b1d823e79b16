"""Learn early that the server is about to stop, so that nobody who waits for news holds it up.

A server that is told to stop first waits for the requests that are under way, and only then tells its applications;
those that are mounted, never. So the signal itself is listened to, in front of whoever handled it up to now.
"""

from __future__ import annotations

import asyncio
import signal
import threading
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from collections.abc import Callable

_SIGNALS: Final = (signal.SIGTERM, signal.SIGINT, signal.SIGQUIT)
_calls: Final[list[tuple[asyncio.AbstractEventLoop, Callable[[], None]]]] = []
_before: Final[dict[int, Callable[[int, Any], Any]]] = {}


def on_shutdown(call: Callable[[], None]) -> None:
    """Have something called on this event loop when the process is told to stop.

    Works in the main thread alone, where every kind of API server has its event loop. The handlers that are there keep
    their work: they are called as well.
    """
    if threading.current_thread() is not threading.main_thread():
        return
    _calls[:] = [each for each in _calls if not each[0].is_closed()] + [(asyncio.get_running_loop(), call)]
    for number in _SIGNALS:
        handler = signal.getsignal(number)
        # Where there is none, nobody stops gracefully.
        if callable(handler) and handler is not _handle:
            _before[number] = handler
            signal.signal(number, _handle)


def _handle(number: int, frame: Any) -> None:
    for loop, call in _calls:
        if not loop.is_closed():
            loop.call_soon_threadsafe(call)
    _before[number](number, frame)
