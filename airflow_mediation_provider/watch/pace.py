"""When to look at a meter next: at the interval asked for after a change, less often while nothing happens for long.

Never sooner than the interval, whatever happens: it is a promise about the number of requests.
"""

from __future__ import annotations

import random
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Callable

SLOWEST: Final = 2.0
"""While nothing changes, looks come at most this many times less often than asked for."""
PATIENCE: Final = 0.1
"""A look less often never delays an answer by more than this part of the time since the last change."""
JITTER: Final = 0.1
"""Every pause is longer by a random part up to this, and never shorter: the interval asked for is a limit."""
BURST_SECONDS: Final = 30.0
"""After a pause of the whole tenant, the looks that are due are spread over this long."""
BACKOFF_LIMIT_SECONDS: Final = 120.0
"""Errors stretch the pause up to this, or up to the interval where that is longer."""
_GOLDEN_RATIO: Final = 0.6180339887498949


class Pace:
    """The pace of one meter's polls.

    :param interval: seconds, the shortest pause that a waiter asked for
    :param position: the how manieth meter of its hub; it decides where in the interval the meter's polls lie
    :param rng: source of the jitter, from 0 to 1

    While ``steady``, looks do not come less often the longer nothing happens: they are few already.
    """

    __slots__ = ("_changed_at", "_rng", "_status", "failures", "interval", "spread", "steady")

    def __init__(self, interval: float, position: int, rng: Callable[[], float] = random.random) -> None:
        self.interval = interval
        # Multiples of the golden ratio spread any number of meters evenly, whenever they come.
        self.spread = (position * _GOLDEN_RATIO) % 1.0
        self.failures = 0
        self.steady = False
        self._rng = rng
        self._status: str | None = None
        self._changed_at = 0.0

    def first(self, *, eager: bool) -> float:
        """Return the seconds to the first look.

        :param eager: nobody has looked yet; else a worker just did, and there is a whole interval to spread over
        """
        return self.spread * min(self.interval, 1.0) if eager else (1.0 - self.spread) * self.interval

    def after_reading(self, status: str, now: float) -> float:
        """Return the seconds to the next look after a good one."""
        self.failures = 0
        if status != self._status:
            self._status, self._changed_at = status, now
        quiet = 0.0 if self.steady else (now - self._changed_at) * PATIENCE
        return self._with_jitter(min(max(self.interval, quiet), SLOWEST * self.interval))

    def after_fault(self, retry_after: float | None = None) -> float:
        """Return the seconds to the next look after one that failed.

        :param retry_after: seconds that Zuora asked us to keep away
        """
        self.failures += 1
        stretched = min(self.interval * 2.0 ** min(self.failures - 1, 16), max(self.interval, BACKOFF_LIMIT_SECONDS))
        return self._with_jitter(max(min(stretched, 4 * self.interval), retry_after or 0.0))

    def after_pause(self) -> float:
        """Return the seconds to wait on top of a pause of the whole tenant, so that its meters do not burst."""
        return self.spread * min(self.interval, BURST_SECONDS)

    def _with_jitter(self, seconds: float) -> float:
        return seconds * (1.0 + JITTER * self._rng())
