"""The API server's access to the journal: entries are written from the event loop, and changes are read once for all.

Writes run in their own threads, within the caller's time. What callouts were answered is written in the background, and
no answer waits for it. One reader of the database serves all long polls.
A transaction may become visible long after the time that it wrote. So the last minute is read again each time, and each
version of a session gets its number when it is *seen* for the first time: a client that waits from a number on misses
none, and gets none twice. From a cursor of another process only its time is used, minus some seconds.
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
from typing import TYPE_CHECKING, Any, Final

from airflow_mediation_provider.journal import queries
from airflow_mediation_provider.journal.receipts import Seen, record_receipts, thin
from airflow_mediation_provider.journal.transaction import JournalUnavailable, read
from airflow_mediation_provider.journal.writer import Recorded, record

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterator, Mapping, Sequence

    from airflow_mediation_provider.journal.queries import SessionChange
    from airflow_mediation_provider.protocol.callouts.receipt import Receipt
    from airflow_mediation_provider.protocol.sessions.journal_entry import JournalEntry


# Each thread holds one connection of Airflow's pool, which has five, and ten in overflow.
THREADS: Final = 4
# The most of the caller's time that one write gets; with less, a busy database would never accept it.
LONGEST: Final = 8.0
SHORTEST: Final = 1.0

RECEIPT_SECONDS: Final = 1.0
"""Receipts are written together, once in so many seconds: on SQLite each write would delay a callout's."""
RECEIPT_PAUSE_SECONDS: Final = 30.0
"""After a database error, so long passes until the next attempt to write receipts."""
THIN_SECONDS: Final = 3600.0
log = logging.getLogger(__name__)

OVERLAP: Final = timedelta(seconds=60)
"""A transaction that takes longer from its write to its commit is found only by full replies."""
READ_SECONDS: Final = 0.25
CURSOR_SECONDS: Final = 5.0
"""A full reply gets a cursor that is at most so old."""
PAUSE_SECONDS: Final = 5.0
"""Between two attempts of the reader while the database gives errors."""
REFUSE_SECONDS: Final = 1.0
"""For so long after an error no other request tries: many would queue for the same error, each in turn."""
KEPT_SECONDS: Final = 120.0
MOST_KEPT: Final = 20_000
"""A cursor from before the kept changes gets a full reply."""
MARGIN_SECONDS: Final = 5.0
"""How far the clocks of API servers may differ."""


class Recorder:
    """Writes for one process of the API server.

    :param write: the journal's ``record``
    :param after: called on the event loop with the result of each call, before its caller continues
    """

    def __init__(self, write: Callable[..., Recorded] = record) -> None:
        self._write = write
        self._threads = ThreadPoolExecutor(THREADS, "mediation-record")
        self.after: list[Callable[[Recorded], None]] = []

    async def record(
        self, entries: Sequence[JournalEntry], *, conn_id: str, team: str | None, seconds: float, **more: Any
    ) -> Recorded:
        """Return when the entries are durable, and with them the verdicts and notes.

        A write that takes longer goes on in its thread. It may still succeed: reporting the same again changes nothing.

        :param seconds: how long the caller can wait
        :param more: ``verdicts`` and ``tasks``, as the journal's ``record`` takes them
        :raises JournalUnavailable: they are not durable, or not yet
        """
        deadline = time.monotonic() + seconds

        def write() -> Recorded:
            left = deadline - time.monotonic()
            if left < SHORTEST:
                raise JournalUnavailable("too many writes wait for their turn")
            return self._write(entries, conn_id=conn_id, team=team, **more, deadline_seconds=min(left, LONGEST))

        writing = asyncio.wrap_future(self._threads.submit(write))
        done, _ = await asyncio.wait([writing], timeout=seconds)
        if not done:
            writing.cancel()  # which stops it only if it has not started
            raise JournalUnavailable("the database takes too long")
        recorded = writing.result()
        for call in self.after:
            call(recorded)
        return recorded


class ReceiptBuffer:
    """What one process of the API server saw of callouts and has not written yet; lost if the process ends.

    Its size is limited, also while the database is away: it counts all of them, and keeps so many receipts of each
    connection.

    :param write: the journal's ``record_receipts`` by default
    :param thin: the journal's ``thin`` by default
    :param clock: seconds of a monotonic clock
    """

    def __init__(
        self,
        write: Callable[[Seen], None] = record_receipts,
        thin: Callable[[datetime], object] = thin,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._write, self._thin, self._clock = write, thin, clock
        # One thread of its own: it takes a connection from the pool that Airflow itself uses.
        self._thread = ThreadPoolExecutor(1, "mediation-receipts")
        # What is added to now, and what is being written, to which nothing is added.
        self._seen, self._unwritten = Seen(), Seen()
        self._turn = asyncio.Lock()
        self._writing: asyncio.Task[None] | None = None
        self._paused_until = self._thinned_at = -math.inf

    def keep(self, receipt: Receipt) -> None:
        """Keep a receipt, to be written a second later; on the event loop, without waiting."""
        self._seen.add(receipt)
        if self._writing is None or self._writing.done():
            self._writing = asyncio.create_task(self._write_all())

    async def _write_all(self) -> None:
        while self._seen or self._unwritten:
            await asyncio.sleep(max(RECEIPT_SECONDS, self._paused_until - self._clock()))
            await self.flush()

    async def flush(self) -> None:
        """Write what was kept until now; what the database does not take now is written later."""
        async with self._turn:
            newest = self._seen
            # What comes meanwhile waits for the next time, or each callout of a busy second would be a transaction.
            while self._unwritten or (newest and self._seen is newest):
                if not self._unwritten:
                    self._unwritten, self._seen = self._seen, Seen()
                try:
                    await asyncio.get_running_loop().run_in_executor(self._thread, self._store, self._unwritten)
                except JournalUnavailable as error:
                    if self._paused_until == -math.inf:
                        log.warning("What callouts were answered could not be stored yet: %s", error)
                    self._paused_until = self._clock() + RECEIPT_PAUSE_SECONDS
                    return
                except Exception:  # the same again would fail again, and hold up all that follows
                    log.exception("What some callouts were answered is left out")
                self._unwritten, self._paused_until = Seen(), -math.inf

    def _store(self, seen: Seen) -> None:
        self._write(seen)
        if self._clock() - self._thinned_at < THIN_SECONDS:
            return
        self._thinned_at = self._clock()
        try:
            self._thin(datetime.now(UTC))
        except JournalUnavailable as error:
            log.warning("Old receipts of callouts could not be deleted: %s", error)


@dataclass(frozen=True, slots=True)
class Cursor:
    """Up to where a client has the changes.

    :param process: the process whose numbers these are
    :param number: the last change that was sent
    :param at: when the changes were last read, by that process's wall clock
    """

    process: str
    number: int
    at: float

    def __str__(self) -> str:
        return f"{self.process}.{self.number}.{self.at:.3f}"

    @classmethod
    def parse(cls, text: str) -> Cursor | None:
        """Parse a cursor; ``None`` if the text is not one."""
        try:
            process, number, at = text.split(".", 2)
            return cls(process, int(number), float(at))
        except ValueError:
            return None


@dataclass(frozen=True, slots=True)
class _Seen:
    at: float
    change: SessionChange


class Changes:
    """The changes, on one event loop; reads only while a request waits.

    :param read: returns the changes written since a time, in versions that are not known yet; blocks, so it runs in a
        thread
    :param clock: seconds since 1970
    """

    def __init__(
        self,
        read: Callable[[datetime, Mapping[int, int]], list[SessionChange]] | None = None,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._read, self._clock = read or _read_database, clock
        self._loop = asyncio.get_running_loop()
        self._process = secrets.token_hex(4)
        # The number of the last change; the kept changes are numbered without gaps.
        self._number = 0
        self._seen: deque[_Seen] = deque()
        # Row id -> the revision that was seen, and when; the oldest first.
        self._known: dict[int, tuple[int, float]] = {}
        self._waiting: set[asyncio.Future[None]] = set()
        self._reader: asyncio.Task[None] | None = None
        self._nudged = asyncio.Event()
        self._turn = asyncio.Lock()
        self._read_at = self._failed_at = -math.inf
        # The same by the wall clock; and from which time on, by that clock, the kept changes are complete.
        self._read_at_clock = self._complete_from = 0.0
        self._closing = False
        self._thread = ThreadPoolExecutor(1, "mediation-changes")

    def nudge(self) -> None:
        """Read at once, because this process itself has just written."""
        self._nudged.set()

    def close(self) -> None:
        """Let all waiting requests return."""
        self._closing = True
        self._wake()

    @property
    def waiting(self) -> int:
        """How many requests wait for changes now."""
        return len(self._waiting)

    async def cursor(self) -> Cursor:
        """Return up to where the changes have been read; call it before reading the state that it goes with.

        A cursor of some seconds ago is good enough: changes that the state already contains are sent again.

        :raises Exception: the database's error
        """
        await self._refresh(within=CURSOR_SECONDS)
        return self._cursor()

    async def since(
        self, cursor: Cursor, conn_id: str, meters: Collection[str], *, seconds: float
    ) -> tuple[list[SessionChange], Cursor] | None:
        """Return the changes since a cursor, and the next cursor; wait for a change, but not longer than requested.

        :param cursor: up to where the client has the changes
        :param conn_id: the connection
        :param meters: the meters of the sessions
        :param seconds: how long to wait at most
        :return: ``None`` if the cursor is too old, so that a full reply is needed
        :raises Exception: the database's error
        """
        deadline = self._loop.time() + seconds
        await self._refresh()
        while True:
            found = self._newest_first(cursor)
            if found is None:
                return None
            changes: dict[int, SessionChange] = {}
            for change in found:
                if change.conn_id == conn_id and change.state.meter_id in meters:
                    changes.setdefault(change.row_id, change)
            # Changes of other sessions need not be searched again.
            cursor = self._cursor()
            left = deadline - self._loop.time()
            if changes or left <= 0 or self._closing:
                return list(changes.values())[::-1], cursor
            await self._wait(left)

    def _cursor(self) -> Cursor:
        return Cursor(self._process, self._number, self._read_at_clock)

    def _newest_first(self, cursor: Cursor) -> Iterator[SessionChange] | None:
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
            # In an empty context: the reader outlives the request that starts it.
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
        """Read as long as a request waits."""
        failing = False
        while self._waiting and not self._closing:
            self._nudged.clear()
            pause = READ_SECONDS
            try:
                async with self._turn:
                    await self._read_changes()
                if failing:
                    log.info("The changes of meter sessions can be read again")
                failing = False
            except Exception:
                if not failing:
                    log.exception("The changes of meter sessions cannot be read; trying again")
                failing, pause = True, PAUSE_SECONDS
            try:
                async with asyncio.timeout(pause):
                    await self._nudged.wait()
            except TimeoutError:
                pass

    async def _refresh(self, within: float = READ_SECONDS) -> None:
        """Read, unless a request did within so many seconds; one read serves all requests that arrive meanwhile."""
        async with self._turn:
            if self._loop.time() - self._read_at <= within:
                return
            if self._loop.time() - self._failed_at <= REFUSE_SECONDS:
                raise JournalUnavailable("the changes of sessions could not be read a moment ago")
            await self._read_changes()

    async def _read_changes(self) -> None:
        """Number the new changes, and wake the waiting requests."""
        began, clock = self._loop.time(), self._clock()
        if began - self._read_at > OVERLAP.total_seconds() / 2:
            # After so long without reading, changes may have been missed: earlier numbers cannot be used.
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


def _read_database(since: datetime, known: Mapping[int, int]) -> list[SessionChange]:
    return read(lambda session: queries.changed_since(session, since, known))
