"""The changes of sessions as this process saw them: one reader of the database for all who wait for news.

A transaction may become visible long after it wrote its time. So the last minute is read again each time, and each
version of a session gets its number when it is *seen* for the first time: whoever waits from a number on misses none,
and is told none twice. A cursor of another process is taken by its time instead, with some seconds to spare.
"""

from __future__ import annotations

import asyncio
import logging
import secrets
import time
from collections import deque
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Final

from airflow_mediation_provider.journal import queries

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Mapping

    from airflow_mediation_provider.journal.queries import Change
    from airflow_mediation_provider.protocol.lifecycle import SessionState

log = logging.getLogger(__name__)

OVERLAP: Final = timedelta(seconds=60)
"""A transaction that takes longer from its write to its commit is found by the full looks alone."""
READ_SECONDS: Final = 0.25
PAUSE_SECONDS: Final = 5.0
"""Between two looks at a database that gives errors."""
KEPT_SECONDS: Final = 120.0
"""A cursor older than this gets the whole state."""
MARGIN_SECONDS: Final = 5.0
"""How far the clocks of API servers may differ."""


@dataclass(frozen=True, slots=True)
class Cursor:
    """Up to where somebody knows the changes.

    :param process: whose numbers these are
    :param number: the last change that was told
    :param at: when it was, by that process's wall clock
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
    number: int
    at: float
    change: Change


class Changes:
    """The changes, on one event loop; reads only while somebody waits.

    :param read: gives the changes written since a time, in versions that are not known yet; blocks, so it runs in a
        thread
    """

    def __init__(self, read: Callable[[datetime, Mapping[int, int]], list[Change]] | None = None) -> None:
        self._read = read or _read_database
        self._process = secrets.token_hex(4)
        self._number = 0
        self._seen: deque[_Seen] = deque()
        self._known: dict[int, tuple[int, float]] = {}
        self._waiting: set[asyncio.Future[None]] = set()
        self._reader: asyncio.Task[None] | None = None
        self._nudged = asyncio.Event()
        self._read_at = 0.0
        self._closing = False
        self._thread = ThreadPoolExecutor(1, "mediation-changes")

    def nudge(self) -> None:
        """Read at once: this process itself has just written."""
        self._nudged.set()

    def close(self) -> None:
        """Let nobody wait any more."""
        self._closing = True
        self._wake()

    async def cursor(self) -> Cursor:
        """Return up to where the changes are known now; take it before reading the state that it goes with."""
        if time.monotonic() - self._read_at > READ_SECONDS:
            await self._look()
        return Cursor(self._process, self._number, time.time())

    async def since(
        self, cursor: Cursor, conn_id: str, meters: Collection[str], *, seconds: float
    ) -> tuple[list[SessionState], Cursor] | None:
        """Return what changed since, and the cursor to go on from; wait for something, but not for longer than asked.

        :param cursor: up to where the changes are known
        :param conn_id: the connection
        :param meters: whose sessions matter
        :param seconds: to wait at most
        :return: ``None`` where the cursor is too old, so that only the whole state helps
        """
        deadline = time.monotonic() + seconds
        if time.monotonic() - self._read_at > READ_SECONDS:
            await self._look()
        while True:
            found = self._after(cursor)
            if found is None:
                return None
            states = {
                each.change.row_id: each.change.state
                for each in found
                if each.change.conn_id == conn_id and each.change.state.meter_id in meters
            }
            left = deadline - time.monotonic()
            if states or left <= 0 or self._closing:
                return list(states.values()), Cursor(self._process, self._number, time.time())
            # What did not matter need not be looked through again.
            cursor = Cursor(self._process, self._number, time.time())
            await self._wait(left)

    def _after(self, cursor: Cursor) -> list[_Seen] | None:
        if cursor.process == self._process:
            oldest = self._seen[0].number if self._seen else self._number + 1
            if cursor.number < oldest - 1 or cursor.number > self._number:
                return None
            return [each for each in self._seen if each.number > cursor.number]
        if time.time() - cursor.at > OVERLAP.total_seconds() - 2 * MARGIN_SECONDS:
            return None
        return [each for each in self._seen if each.at > cursor.at - MARGIN_SECONDS]

    async def _wait(self, seconds: float) -> None:
        if self._reader is None or self._reader.done():
            self._reader = asyncio.create_task(self._read_on(), name="mediation-changes")
        woken = asyncio.get_running_loop().create_future()
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
                await self._look()
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

    async def _look(self) -> None:
        """Number what is new, and wake those who wait."""
        known = {row_id: revision for row_id, (revision, _) in self._known.items()}
        reading = asyncio.get_running_loop().run_in_executor(
            self._thread, self._read, datetime.now(UTC) - OVERLAP, known
        )
        changes = await reading
        now = time.time()
        if time.monotonic() - self._read_at > OVERLAP.total_seconds() / 2:
            # Nobody read for so long that changes may have passed unseen: earlier cursors are of no use.
            self._process = secrets.token_hex(4)
            self._seen.clear()
        self._read_at = time.monotonic()
        for change in changes:
            revision, _ = self._known.get(change.row_id, (0, 0.0))
            if change.revision > revision:
                self._known[change.row_id] = (change.revision, now)
                self._number += 1
                self._seen.append(_Seen(self._number, now, change))
        while self._seen and now - self._seen[0].at > KEPT_SECONDS:
            old = self._seen.popleft()
            if self._known.get(old.change.row_id, (0, 0.0))[0] == old.change.revision:
                del self._known[old.change.row_id]
        if changes:
            self._wake()


def _read_database(since: datetime, known: Mapping[int, int]) -> list[Change]:
    from airflow import settings

    if settings.NonScopedSession is None:
        raise RuntimeError("Airflow's database is not set up in this process")
    with settings.NonScopedSession() as session:
        return queries.changed_since(session, since, known)
