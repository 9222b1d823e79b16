"""When to poll a meter next: at the requested interval after a change, less often the longer nothing changes.

Never sooner than the interval, which limits the number of requests.
"""

from __future__ import annotations

import random
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Callable

SLOWEST: Final = 2.0
"""While nothing changes, the pause between polls grows to at most this multiple of the interval."""
PATIENCE: Final = 0.1
"""The longer pause delays an answer by at most this share of the time since the last change."""
JITTER: Final = 0.1
"""Every pause is longer by a random share up to this, and never shorter: the interval is a limit."""
BURST_SECONDS: Final = 30.0
"""After a pause of the whole tenant, the polls that are due are spread over this time."""
BACKOFF_LIMIT_SECONDS: Final = 120.0
"""Errors stretch the pause up to this, or up to the interval where that is longer."""
_GOLDEN_RATIO: Final = 0.6180339887498949


def longest_pause(interval: float) -> float:
    """Return the longest time in seconds between two successful polls.

    :param interval: seconds, the shortest pause that a waiter asked for
    """
    return SLOWEST * interval * (1.0 + JITTER)


class Pace:
    """The pace of one meter's polls.

    :param interval: seconds, the shortest pause that a waiter asked for
    :param position: index of the meter in its hub; it decides where in the interval the meter's polls lie
    :param rng: source of the jitter, from 0 to 1

    While ``steady``, the pause does not grow: the polls are rare already.
    """

    __slots__ = ("_changed_at", "_rng", "_status", "failures", "interval", "spread", "steady")

    def __init__(self, interval: float, position: int, rng: Callable[[], float] = random.random) -> None:
        self.interval = interval
        # Multiples of the golden ratio spread any number of meters evenly, in any order of arrival.
        self.spread = (position * _GOLDEN_RATIO) % 1.0
        self.failures = 0
        self.steady = False
        self._rng = rng
        self._status: str | None = None
        self._changed_at = 0.0

    def first(self, *, eager: bool) -> float:
        """Return the seconds to the first poll.

        :param eager: the meter has not been polled yet; else a worker just did, and a whole interval is left to spread
        """
        return self.spread * min(self.interval, 1.0) if eager else (1.0 - self.spread) * self.interval

    def after_reading(self, status: str, now: float) -> float:
        """Return the seconds to the next poll after a successful one."""
        self.failures = 0
        if status != self._status:
            self._status, self._changed_at = status, now
        quiet = 0.0 if self.steady else (now - self._changed_at) * PATIENCE
        return self._with_jitter(min(max(self.interval, quiet), SLOWEST * self.interval))

    def after_fault(self, retry_after: float | None = None) -> float:
        """Return the seconds to the next poll after a failed one.

        :param retry_after: seconds that Zuora asked to wait
        """
        self.failures += 1
        stretched = min(self.interval * 2.0 ** min(self.failures - 1, 16), max(self.interval, BACKOFF_LIMIT_SECONDS))
        return self._with_jitter(max(min(stretched, 4 * self.interval), retry_after or 0.0))

    def after_pause(self) -> float:
        """Return the seconds to add to a pause of the whole tenant, so that its meters are not polled in one burst."""
        return self.spread * min(self.interval, BURST_SECONDS)

    def _with_jitter(self, seconds: float) -> float:
        return seconds * (1.0 + JITTER * self._rng())
