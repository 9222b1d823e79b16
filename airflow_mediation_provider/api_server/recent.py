"""What happened in the last seconds, by key, in bounded memory, however many keys strangers invent."""

from __future__ import annotations

import threading
import time
from typing import TYPE_CHECKING, Generic, TypeVar

if TYPE_CHECKING:
    from collections.abc import Callable, Hashable

V = TypeVar("V")


class Recent(Generic[V]):
    """A memory of values that forgets each after the same time; safe between threads.

    :param seconds: how long a value is kept
    :param limit: how many are kept at most; a full memory takes no more, rather than forget what it promised to keep
    :param clock: seconds of a monotonic clock
    """

    def __init__(self, seconds: float, limit: int, clock: Callable[[], float] = time.monotonic) -> None:
        self._seconds, self._limit, self._clock = seconds, limit, clock
        self._values: dict[Hashable, tuple[float, V]] = {}
        self._lock = threading.Lock()

    def add(self, key: Hashable, value: V) -> bool:
        """Keep a value under a key that has none; return whether it is new and there was room for it."""
        with self._lock:
            self._forget()
            if key in self._values or len(self._values) >= self._limit:
                return False
            self._values[key] = (self._clock() + self._seconds, value)
            return True

    def get(self, key: Hashable) -> V | None:
        """Return the value of a key, ``None`` where there is none any more."""
        with self._lock:
            self._forget()
            kept = self._values.get(key)
            return kept[1] if kept else None

    def __len__(self) -> int:
        """Return how many values are kept."""
        with self._lock:
            self._forget()
            return len(self._values)

    def _forget(self) -> None:
        # All are kept equally long, and a dict keeps its order: the oldest are in front.
        now = self._clock()
        while self._values and self._values[oldest := next(iter(self._values))][0] <= now:
            del self._values[oldest]
