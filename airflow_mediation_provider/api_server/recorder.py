"""Bring entries into the journal from the event loop: in threads of their own, and within the caller's time."""

from __future__ import annotations

import asyncio
import time
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Final

from airflow_mediation_provider.journal.record import JournalUnavailable, Recorded, record

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from airflow_mediation_provider.protocol.entry import Entry

# Each thread holds one connection of Airflow's pool, which has five and ten to spare.
THREADS: Final = 4
# What the journal has of the caller's time at most; shorter, and a busy database would never let it through.
LONGEST: Final = 8.0
SHORTEST: Final = 1.0


class Recorder:
    """Writes for one process of the API server.

    :param write: the journal's ``record``
    :param after: called on the event loop with what each call changed, before its caller goes on
    """

    def __init__(self, write: Callable[..., Recorded] = record) -> None:
        self._write = write
        self._threads = ThreadPoolExecutor(THREADS, "mediation-record")
        self.after: list[Callable[[Recorded], None]] = []

    async def record(self, entries: Sequence[Entry], *, conn_id: str, team: str | None, seconds: float) -> Recorded:
        """Return when the entries are durable.

        A write that takes longer goes on in its thread. It may still succeed: telling the same again does no harm.

        :param seconds: that the caller can wait
        :raises JournalUnavailable: they are not, or not yet
        """
        deadline = time.monotonic() + seconds

        def write() -> Recorded:
            left = deadline - time.monotonic()
            if left < SHORTEST:
                raise JournalUnavailable("too many writes wait for their turn")
            return self._write(entries, conn_id=conn_id, team=team, deadline_seconds=min(left, LONGEST))

        writing = asyncio.wrap_future(self._threads.submit(write))
        done, _ = await asyncio.wait([writing], timeout=seconds)
        if not done:
            writing.cancel()  # which stops it only if it has not begun
            raise JournalUnavailable("the database takes too long")
        recorded = writing.result()
        for call in self.after:
            call(recorded)
        return recorded
