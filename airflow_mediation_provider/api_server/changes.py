"""The changes of sessions as this process saw them: one reader of the database for all who wait for news.

A transaction may become visible long after it wrote its time. So the last minute is read again each time, and each
version of a session gets its number when it is *seen* for the first time: whoever waits from a number on misses none,
and is told none twice. A cursor of another process is taken by its time instead, with some seconds to spare.
"""

from __future__ import annotations

import asyncio
import logging
import math
import secrets
import time
from collections import deque
from concurrent.futures import ThreadPoolExecutor
from contextvars import Context
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from itertools import islice, takewhile
from typing import TYPE_CHECKING, Final

from airflow_mediation_provider.journal import queries
from airflow_mediation_provider.journal.transaction import JournalUnavailable, read

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterator, Mapping

    from airflow_mediation_provider.journal.queries import Change
    from airflow_mediation_provider.protocol.lifecycle import SessionState

log = logging.getLogger(__name__)

OVERLAP: Final = timedelta(seconds=60)
"""A transaction that takes longer from its write to its commit is found by the full looks alone."""
READ_SECONDS: Final = 0.25
CURSOR_SECONDS: Final = 5.0
"""A full look gets a cursor that is at most so old."""
PAUSE_SECONDS: Final = 5.0
"""Between two looks of the reader at a database that gives errors."""
REFUSE_SECONDS: Final = 1.0
"""For so long after an error nobody else tries: a crowd would stand in line for the same error, each in turn."""
KEPT_SECONDS: Final = 120.0
MOST_KEPT: Final = 20_000
"""A cursor from before the changes that are kept gets the whole state."""
MARGIN_SECONDS: Final = 5.0
"""How far the clocks of API servers may differ."""


@dataclass(frozen=True, slots=True)
class Cursor:
    """Up to where somebody knows the changes.

    :param process: whose numbers these are
    :param number: the last change that was told
    :param at: when the changes were last read, by that process's wall clock
    """

    process: str
    number: int
    at: float

    def __str__(self) -> str:
        return f"{self.process}.{self.number}.{self.at:.3f}"

    @classmethod
    def parse(cls, text: str) -> Cursor | None:
        """Read a cursor; ``None`` of what is none."""
        try:
            process, number, at = text.split(".", 2)
            return cls(process, int(number), float(at))
        except ValueError:
            return None


@dataclass(frozen=True, slots=True)
class _Seen:
    at: float
    change: Change


class Changes:
    """The changes, on one event loop; reads only while somebody waits.

    :param read: gives the changes written since a time, in versions that are not known yet; blocks, so it runs in a
        thread
    :param clock: seconds since 1970
    """

    def __init__(
        self,
        read: Callable[[datetime, Mapping[int, int]], list[Change]] | None = None,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._read, self._clock = read or _read_database, clock
        self._loop = asyncio.get_running_loop()
        self._process = secrets.token_hex(4)
        # The last change's number; those that are kept are numbered without a gap.
        self._number = 0
        self._seen: deque[_Seen] = deque()
        # Row id -> the revision that was seen, and when: the oldest first.
        self._known: dict[int, tuple[int, float]] = {}
        self._waiting: set[asyncio.Future[None]] = set()
        self._reader: asyncio.Task[None] | None = None
        self._nudged = asyncio.Event()
        self._turn = asyncio.Lock()
        self._read_at = self._failed_at = -math.inf
        # The same by the wall clock, and since when by that clock no change is missing among those that are kept.
        self._read_at_clock = self._complete_from = 0.0
        self._closing = False
        self._thread = ThreadPoolExecutor(1, "mediation-changes")

    def nudge(self) -> None:
        """Read at once: this process itself has just written."""
        self._nudged.set()

    def close(self) -> None:
        """Let nobody wait any more."""
        self._closing = True
        self._wake()

    @property
    def waiting(self) -> int:
        """How many wait for news now."""
        return len(self._waiting)

    async def cursor(self) -> Cursor:
        """Return up to where the changes are known; take it before reading the state that it goes with.

        One of some seconds ago will do: what that state has already is told again.

        :raises Exception: the database's error
        """
        await self._refresh(within=CURSOR_SECONDS)
        return self._cursor()

    async def since(
        self, cursor: Cursor, conn_id: str, meters: Collection[str], *, seconds: float
    ) -> tuple[list[SessionState], Cursor] | None:
        """Return what changed since, and the cursor to go on from; wait for something, but not for longer than asked.

        :param cursor: up to where the changes are known
        :param conn_id: the connection
        :param meters: whose sessions matter
        :param seconds: to wait at most
        :return: ``None`` where the cursor is too old, so that only the whole state helps
        :raises Exception: the database's error
        """
        deadline = self._loop.time() + seconds
        await self._refresh()
        while True:
            found = self._newest_first(cursor)
            if found is None:
                return None
            states: dict[int, SessionState] = {}
            for change in found:
                if change.conn_id == conn_id and change.state.meter_id in meters:
                    states.setdefault(change.row_id, change.state)
            # What did not matter need not be looked through again.
            cursor = self._cursor()
            left = deadline - self._loop.time()
            if states or left <= 0 or self._closing:
                return list(states.values())[::-1], cursor
            await self._wait(left)

    def _cursor(self) -> Cursor:
        return Cursor(self._process, self._number, self._read_at_clock)

    def _newest_first(self, cursor: Cursor) -> Iterator[Change] | None:
        newest = reversed(self._seen)
        if cursor.process == self._process:
            count = self._number - cursor.number
            return (each.change for each in islice(newest, count)) if 0 <= count <= len(self._seen) else None
        since = cursor.at - MARGIN_SECONDS
        if since < self._complete_from:
            return None
        return (each.change for each in takewhile(lambda each: each.at >= since, newest))

    async def _wait(self, seconds: float) -> None:
        if self._reader is None or self._reader.done():
            # In an empty context: the reader outlives the request that happens to start it.
            self._reader = self._loop.create_task(self._read_on(), name="mediation-changes", context=Context())
        woken = self._loop.create_future()
        self._waiting.add(woken)
        try:
            async with asyncio.timeout(seconds):
                await woken
        except TimeoutError:
            pass
        finally:
            self._waiting.discard(woken)

    def _wake(self) -> None:
        for woken in self._waiting:
            if not woken.done():
                woken.set_result(None)

    async def _read_on(self) -> None:
        """Read as long as somebody waits."""
        troubled = False
        while self._waiting and not self._closing:
            self._nudged.clear()
            pause = READ_SECONDS
            try:
                async with self._turn:
                    await self._look()
                if troubled:
                    log.info("The changes of meter sessions are read again")
                troubled = False
            except Exception:
                if not troubled:
                    log.exception("The changes of meter sessions cannot be read; trying again")
                troubled, pause = True, PAUSE_SECONDS
            try:
                async with asyncio.timeout(pause):
                    await self._nudged.wait()
            except TimeoutError:
                pass

    async def _refresh(self, within: float = READ_SECONDS) -> None:
        """Look, unless somebody did within so many seconds; one look serves all who come meanwhile."""
        async with self._turn:
            if self._loop.time() - self._read_at <= within:
                return
            if self._loop.time() - self._failed_at <= REFUSE_SECONDS:
                raise JournalUnavailable("the changes of sessions could not be read a moment ago")
            await self._look()

    async def _look(self) -> None:
        """Number what is new, and wake those who wait."""
        began, clock = self._loop.time(), self._clock()
        if began - self._read_at > OVERLAP.total_seconds() / 2:
            # Nobody read for so long that changes may have passed unseen: earlier numbers are of no use.
            self._process, self._number = secrets.token_hex(4), 0
            self._seen.clear()
            self._known.clear()
            self._complete_from = clock - OVERLAP.total_seconds() + 2 * MARGIN_SECONDS
        known = {row_id: revision for row_id, (revision, _) in self._known.items()}
        since = datetime.fromtimestamp(clock, UTC) - OVERLAP
        try:
            changes = await self._loop.run_in_executor(self._thread, self._read, since, known)
        except Exception:
            self._failed_at = self._loop.time()
            raise
        self._read_at, self._read_at_clock = began, clock
        now = self._clock()
        for change in changes:
            if self._known.pop(change.row_id, (None, 0.0))[0] != change.revision:
                self._number += 1
                self._seen.append(_Seen(now, change))
            self._known[change.row_id] = (change.revision, now)
        while self._seen and (now - self._seen[0].at > KEPT_SECONDS or len(self._seen) > MOST_KEPT):
            self._complete_from = max(self._complete_from, self._seen.popleft().at)
        while self._known and now - self._known[oldest := next(iter(self._known))][1] > KEPT_SECONDS:
            del self._known[oldest]
        if changes:
            self._wake()


def _read_database(since: datetime, known: Mapping[int, int]) -> list[Change]:
    return read(lambda session: queries.changed_since(session, since, known))
