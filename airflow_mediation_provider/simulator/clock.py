"""The simulator's clocks: the real one, and one that stands still until a test moves it."""

from __future__ import annotations

import time
from typing import Protocol


class Clock(Protocol):
    """Seconds since the epoch, never going backwards."""

    def now(self) -> float:
        """Return the present instant in seconds since the epoch, UTC."""


class RealClock:
    """The wall clock at the start, continued by the monotonic one: a jump of the wall clock moves no session."""

    def __init__(self) -> None:
        self._offset = time.time() - time.monotonic()

    def now(self) -> float:
        """Return the present instant in seconds since the epoch, UTC."""
        return self._offset + time.monotonic()


class ManualClock:
    """A clock that only ``advance()`` moves.

    :param now: its initial time, seconds since the epoch; 2026-01-01T00:00:00Z by default
    """

    def __init__(self, now: float = 1_767_225_600.0) -> None:
        self._now = now

    def now(self) -> float:
        """Return the instant at which the clock stands."""
        return self._now

    def advance(self, seconds: float) -> None:
        """Move the clock forward.

        :raises ValueError: ``seconds`` is negative
        """
        if seconds < 0:
            raise ValueError(f"seconds: the clock cannot go back (got {seconds})")
        self._now += seconds
