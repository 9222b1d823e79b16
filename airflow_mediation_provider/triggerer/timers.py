"""Timer queue: many deadlines, one asyncio timer."""

from __future__ import annotations

import heapq
import itertools
import logging
import time
from contextvars import Context
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    import asyncio
    from collections.abc import Callable

log = logging.getLogger(__name__)

# One pass of the loop makes no more calls than this, then lets others run: a thousand waits may share one deadline.
_CALLS_PER_PASS: Final = 20
_SECONDS_PER_PASS: Final = 0.005


class Timer:
    """One entry of the queue; ``cancel()`` is idempotent and releases the function."""

    __slots__ = ("_call", "_seq", "_timers", "when")

    def __init__(self, timers: TimerQueue, when: float, seq: int, call: Callable[[], None]) -> None:
        self._timers = timers
        self._seq = seq
        self._call: Callable[[], None] | None = call
        self.when = when

    def __lt__(self, other: Timer) -> bool:
        return (self.when, self._seq) < (other.when, other._seq)

    @property
    def pending(self) -> bool:
        """Whether the function is still to be called."""
        return self._call is not None

    def cancel(self) -> None:
        """Remove the entry from the queue."""
        if self._call is not None:
            self._call = None
            self._timers._count_cancelled()

    def _take(self) -> Callable[[], None] | None:
        call, self._call = self._call, None
        return call


class TimerQueue:
    """Calls functions at given times of the loop's clock, with one timer.

    :param loop: the running loop
    """

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self._heap: list[Timer] = []
        self._seq = itertools.count()
        self._cancelled = 0
        self._timer: asyncio.TimerHandle | None = None
        # The timer must not carry the log context of the trigger that happened to add the first entry.
        self._context = Context()

    def add(self, when: float, call: Callable[[], None]) -> Timer:
        """Call ``call`` at ``when`` of ``loop.time()``; it must not block, and an error that it raises is logged."""
        entry = Timer(self, when, next(self._seq), call)
        heapq.heappush(self._heap, entry)
        if self._heap[0] is entry:
            self._arm()
        return entry

    def close(self) -> None:
        """Stop calling functions."""
        self._heap.clear()
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _count_cancelled(self) -> None:
        """Drop cancelled entries once they are the larger part: a deadline may lie days ahead."""
        self._cancelled += 1
        if self._cancelled > 64 and self._cancelled * 2 > len(self._heap):
            self._heap = [entry for entry in self._heap if entry.pending]
            heapq.heapify(self._heap)
            self._cancelled = 0

    def _arm(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if self._heap:
            self._timer = self._loop.call_at(self._heap[0].when, self._fire, context=self._context)

    def _fire(self) -> None:
        self._timer = None
        began = time.perf_counter()
        calls = 0
        while self._heap and self._heap[0].when <= self._loop.time():
            if calls >= _CALLS_PER_PASS or time.perf_counter() - began > _SECONDS_PER_PASS:
                break
            call = heapq.heappop(self._heap)._take()
            if call is None:
                self._cancelled = max(0, self._cancelled - 1)
                continue
            calls += 1
            try:
                call()
            except Exception:
                log.exception("A timed call of the hub failed")
        self._arm()
