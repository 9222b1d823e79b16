"""Learn early that the server is about to stop, so that nobody who waits for news holds it up.

A server that is told to stop first waits for the requests that are under way, and only then tells its applications.
So the signal itself is listened to, before whoever handled it up to now.
"""

from __future__ import annotations

import asyncio
import signal
import threading
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from collections.abc import Callable

_SIGNALS: Final = (signal.SIGTERM, signal.SIGINT)


def on_shutdown(call: Callable[[], None]) -> None:
    """Have something called on this event loop when the process is told to stop; in the main thread alone.

    The handlers that are there keep their work: they are called as well.
    """
    if threading.current_thread() is not threading.main_thread():
        return
    loop = asyncio.get_running_loop()
    for number in _SIGNALS:
        _listen(number, loop, call)


def _listen(number: signal.Signals, loop: asyncio.AbstractEventLoop, call: Callable[[], None]) -> None:
    before = signal.getsignal(number)
    if not callable(before):  # nobody stops gracefully here
        return

    def handle(received: int, frame: Any) -> None:
        if not loop.is_closed():
            loop.call_soon_threadsafe(call)
        before(received, frame)

    signal.signal(number, handle)
