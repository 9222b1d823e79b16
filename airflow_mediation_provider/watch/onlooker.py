"""Somebody who wants to see every reading of a meter, and waits for no session."""

from __future__ import annotations

import asyncio
from collections import deque
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Callable

    from airflow_mediation_provider.protocol.errors import MediationError
    from airflow_mediation_provider.protocol.reading import PollReading

_KEPT: Final = 1000


class Onlooker:
    """A subscription to a hub; made by ``Hub.look_on``.

    :param poll_interval: seconds between two looks that it asked for
    :param leave: takes it out of the hub
    """

    def __init__(self, poll_interval: float, *, leave: Callable[[Onlooker], None]) -> None:
        self.poll_interval = poll_interval
        self._leave = leave
        self._seen: deque[PollReading | MediationError] = deque(maxlen=_KEPT)
        self._woken = asyncio.Event()
        self._closed = False

    async def next(self) -> PollReading | MediationError:
        """Return the next reading, or why there was none; the oldest that was not returned yet."""
        while not self._seen:
            self._woken.clear()
            await self._woken.wait()
        return self._seen.popleft()

    def tell(self, what: PollReading | MediationError) -> None:
        """Keep a reading, or a fault, until it is asked for."""
        self._seen.append(what)
        self._woken.set()

    def close(self) -> None:
        """Leave the hub, at once; a second call does nothing."""
        if not self._closed:
            self._closed = True
            self._leave(self)
