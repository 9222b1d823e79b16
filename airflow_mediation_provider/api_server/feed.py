"""The feed: the journal's states of the sessions that Airflow's processes wait for, sent as soon as they change.

It sends states, not events: the same state may be sent twice, and a missed change comes with the next full reply.
No database session is held while a request waits.
"""

from __future__ import annotations

import asyncio
import logging
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from functools import partial
from typing import TYPE_CHECKING, Any, Final, NamedTuple, TypeVar
from weakref import WeakValueDictionary

from fastapi import APIRouter, Request, Response
from starlette.exceptions import HTTPException

from airflow_mediation_provider.api_server.http import UNAVAILABLE, error_docs, on_shutdown
from airflow_mediation_provider.api_server.internal import read_signed, signed_reply
from airflow_mediation_provider.api_server.journal import Changes, Cursor
from airflow_mediation_provider.journal import queries
from airflow_mediation_provider.journal.history import history_status
from airflow_mediation_provider.journal.rows import may_be_stored
from airflow_mediation_provider.journal.tables import SessionRow, WaitRow
from airflow_mediation_provider.journal.task_reports import Kept, record_waits, wait_owners
from airflow_mediation_provider.journal.transaction import JournalUnavailable, read
from airflow_mediation_provider.protocol.transition import Source
from airflow_mediation_provider.protocol.wire import FEED_PATH, FeedReply, FeedRequest
from airflow_mediation_provider.protocol.zuora.errors import MisconfigurationError

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from sqlalchemy.orm import Session

    from airflow_mediation_provider.api_server.connections import MediationConnection
    from airflow_mediation_provider.journal.queries import StoredState
    from airflow_mediation_provider.protocol.sessions.window import WindowReport
    from airflow_mediation_provider.protocol.transition import SessionTransition
    from airflow_mediation_provider.protocol.wire import HistoryStatus, Waits

T = TypeVar("T")
log = logging.getLogger(__name__)
router = APIRouter()

MOST_WAITING: Final = 1000
"""So many requests wait for changes at a time; further ones are answered at once."""
LAST_CALLOUT: Final = timedelta(days=7)
"""The last callout is searched no further back: there may be many other reports since then."""
_READERS: Final = 2
_LARGE_BYTES: Final = 32 * 1024
_MANY_SESSIONS: Final = 50
_HISTORY_SECONDS: Final = 5.0
_LOOK_SECONDS: Final = 8.0
"""How long it may take to read the present state; clients wait for ten seconds."""
_KEEP_SECONDS: Final = 3.0
"""How long a request waits until the waits that begin are stored; a worker's request may take five seconds in all."""
_MOST_REPORTS: Final = 50
"""Reports of waits that may be queued; further ones are dropped, and are reported again within a minute."""


class Answer(NamedTuple):
    """A reply, and the sessions in it that are JSON already."""

    reply: FeedReply
    stored: tuple[str, ...] = ()

    def to_bytes(self) -> bytes:
        """Return the reply as JSON."""
        return self.reply.to_bytes(self.stored)

    @property
    def large(self) -> bool:
        """Whether it takes a while to build the JSON."""
        return len(self.reply.sessions) + len(self.stored) > _MANY_SESSIONS


class Feed:
    """The feed of one process of the API server, on one event loop."""

    def __init__(self) -> None:
        self.changes = Changes()
        self._writing: set[asyncio.Task[Kept]] = set()
        # Connection -> how its callout history is read, and until when that is known.
        self._histories: dict[str, tuple[HistoryStatus | None, float]] = {}
        # Connection -> held while its present state is read: the others get their turn in between.
        self._turns: WeakValueDictionary[str, asyncio.Lock] = WeakValueDictionary()
        # Few threads, and its own: each one takes a connection from the pool that Airflow itself uses.
        self._reading = ThreadPoolExecutor(_READERS, "mediation-feed")
        self._reporting = ThreadPoolExecutor(1, "mediation-waits")
        on_shutdown(self.changes.close)

    async def answer(self, connection: MediationConnection, question: FeedRequest) -> Answer:
        """Answer one request, at once or when something changes, at the latest after the requested seconds.

        :raises JournalUnavailable: the journal cannot be read
        """
        kept = await self._keep(connection.conn_id, question)
        known = await self._known(connection, question)
        owners = await self._owners(connection.conn_id, question.owners)
        return known._replace(
            reply=replace(known.reply, owners=owners, kept=kept.open, reporter_known=kept.reporter_known)
        )

    async def _keep(self, conn_id: str, question: FeedRequest) -> Kept:
        """Store the reported waits, and return what is stored."""
        waits = question.waits
        # Without a reporter, waits that go on are reported again within a minute, and only the pages need them.
        needed = bool(waits.reporter) or any(each.begins for each in waits.open)
        not_kept = Kept(open=not needed, reporter_known=True)
        if not (needed or waits.open or waits.ended) or len(self._writing) >= _MOST_REPORTS:
            return not_kept
        task = asyncio.create_task(self._keep_waits(conn_id, waits, not_kept))
        self._writing.add(task)
        task.add_done_callback(self._writing.discard)
        if not needed:
            return not_kept
        done, _ = await asyncio.wait([task], timeout=_KEEP_SECONDS)
        return task.result() if done else not_kept

    async def _owners(self, conn_id: str, wait_ids: Sequence[str]) -> dict[str, str | None]:
        if not wait_ids:
            return {}
        ask = partial(read, lambda session: wait_owners(session, conn_id, wait_ids))
        return await asyncio.get_running_loop().run_in_executor(self._reading, ask)

    async def _known(self, connection: MediationConnection, question: FeedRequest) -> Answer:
        callouts = _takes_callouts(connection)
        history = None if callouts else await self._history(connection.conn_id)
        reply = FeedReply(callouts=callouts, history=history, conditional=True)
        cursor = Cursor.parse(question.cursor) if question.cursor else None
        if cursor is not None and not question.full:
            seconds = question.wait if self.changes.waiting < MOST_WAITING else 0.0
            changed = await self.changes.since(cursor, connection.conn_id, question.meters.keys(), seconds=seconds)
            if changed is None:
                # The client asks for the present state, with all that it needs of each meter.
                return Answer(reply)
            changes, after = changed
            if not callouts:
                # It may be read since the request began to wait.
                reply = replace(reply, history=await self._history(connection.conn_id))
            states, revisions = tuple(each.state for each in changes), tuple(each.revision for each in changes)
            return Answer(replace(reply, cursor=str(after), sessions=states, revisions=revisions))
        after = await self.changes.cursor()
        source = Source.CALLOUT if callouts else None if history is None else Source.HISTORY
        return await self._look(connection.conn_id, question, replace(reply, cursor=str(after)), source)

    async def _look(self, conn_id: str, question: FeedRequest, reply: FeedReply, source: Source | None) -> Answer:
        """Add the present state to a reply; for each connection in one thread, so that none waits for another's."""
        loop, deadline = asyncio.get_running_loop(), time.monotonic() + _LOOK_SECONDS
        turn = self._turns.setdefault(conn_id, asyncio.Lock())
        try:
            async with asyncio.timeout(_LOOK_SECONDS):
                await turn.acquire()
                work = self._reading.submit(_look, conn_id, question, source, deadline)
                # The thread goes on when this request is given up.
                work.add_done_callback(lambda _: loop.call_soon_threadsafe(turn.release))
                found = await asyncio.wrap_future(work)
        except TimeoutError:
            raise JournalUnavailable(f"the sessions could not be read within {_LOOK_SECONDS:g} s") from None
        revisions = tuple(each.revision for each in found.states)
        reply = replace(
            reply,
            last_callout_at=found.last_callout_at,
            windows=tuple(found.windows),
            reports=tuple(found.reports),
            revisions=revisions,
        )
        return Answer(reply, tuple(each.json for each in found.states))

    async def _history(self, conn_id: str) -> HistoryStatus | None:
        """Return how the callout history is read, as of a few seconds ago: each answer has it."""
        loop = asyncio.get_running_loop()
        status, until = self._histories.get(conn_id, (None, 0.0))
        if loop.time() >= until:
            status = await loop.run_in_executor(self._reading, history_status, conn_id)
            self._histories[conn_id] = status, loop.time() + _HISTORY_SECONDS
        return status

    async def _keep_waits(self, conn_id: str, waits: Waits, not_kept: Kept) -> Kept:
        write = partial(record_waits, conn_id=conn_id, open=waits.open, ended=waits.ended, reporter=waits.reporter)
        try:
            return await asyncio.get_running_loop().run_in_executor(self._reporting, write)
        except JournalUnavailable as error:
            log.warning("The waits of tasks could not be stored: %s", error)
            return not_kept


@router.post(FEED_PATH, responses=error_docs(400, 401, 404, 405, 408, 413, 503))
async def ask_feed(request: Request) -> Response:
    """Return the states of the requested sessions, or wait for a change."""
    connection, body = await read_signed(request, FEED_PATH)
    try:
        question = await _apart(FeedRequest.from_bytes, body, large=len(body) > _LARGE_BYTES)
    except ValueError as error:
        raise HTTPException(400, str(error)) from None
    if question.full and (reason := question.too_large()):
        raise HTTPException(400, reason)
    question = _searchable(connection.conn_id, question)
    answering = asyncio.ensure_future(feed_of(request.app).answer(connection, question))
    leaving = asyncio.ensure_future(_gone(request))
    try:
        await asyncio.wait([answering, leaving], return_when=asyncio.FIRST_COMPLETED)
        if not answering.done():
            return Response(status_code=204)  # the client has disconnected
        answer = answering.result()
        # Not before: usage in a request that is answered with an error is reported again.
        request.app.state.calls.keep(connection.conn_id, question.calls)
    except JournalUnavailable as error:
        request.app.state.throttled_log.log(logging.ERROR, "The feed was answered 503", connection.conn_id, str(error))
        raise HTTPException(503, UNAVAILABLE) from None
    finally:
        leaving.cancel()
        answering.cancel()
    return await _apart(lambda: signed_reply(request, connection, answer.to_bytes()), large=answer.large)


def feed_of(app: Any) -> Feed:
    """Return the application's feed, created at the first request, as it belongs to the event loop."""
    feed: Feed | None = getattr(app.state, "feed", None)
    if feed is None:
        feed = app.state.feed = Feed()
        app.state.recorder.after.append(lambda recorded: feed.changes.nudge() if recorded.changed else None)
    return feed


async def _apart(call: Callable[..., T], *arguments: Any, large: bool) -> T:
    """Parse or build a message; a large one in a thread: a thousand waits take tens of milliseconds."""
    return await asyncio.to_thread(call, *arguments) if large else call(*arguments)


async def _gone(request: Request) -> None:
    """Return when the client has disconnected."""
    while (await request.receive())["type"] != "http.disconnect":
        pass


def _searchable(conn_id: str, question: FeedRequest) -> FeedRequest:
    """Return the question without ids that no row can have: no database takes them, and the others are answered."""
    meters = may_be_stored(SessionRow, "meter_id", question.meters)
    sessions = {each for asked in question.meters.values() for each in asked.sessions}
    known = may_be_stored(SessionRow, "session_id", sessions)
    owners = may_be_stored(WaitRow, "id", question.owners)
    left_out = (question.meters.keys() - meters) | (sessions - known) | (set(question.owners) - owners)
    if not left_out:
        return question
    log.warning("The feed of connection %s leaves out ids that no session has: %.500a", conn_id, sorted(left_out))
    return replace(
        question,
        meters={
            meter_id: replace(asked, sessions=asked.sessions & known)
            for meter_id, asked in question.meters.items()
            if meter_id in meters
        },
        owners=tuple(each for each in question.owners if each in owners),
    )


def _takes_callouts(connection: MediationConnection) -> bool:
    try:
        return connection.callouts.enabled
    except MisconfigurationError:
        return False


class _Found(NamedTuple):
    """The present state; each field is as in ``FeedReply``."""

    states: list[StoredState]
    reports: list[SessionTransition]
    last_callout_at: datetime | None = None
    windows: Sequence[WindowReport] = ()


def _look(conn_id: str, question: FeedRequest, source: Source | None, deadline: float) -> _Found:
    """Read what a request asks for.

    :param source: how changes are received; ``None``: not at all
    :param deadline: by when all must be read, in ``time.monotonic()``
    """

    def work(session: Session) -> _Found:
        meters, now = question.meters, datetime.now(UTC)
        states = queries.known_sessions(session, conn_id, meters, deadline=deadline)
        named = [(meter, each) for meter, asked in meters.items() for each in asked.sessions]
        reports = queries.transitions(session, conn_id, named) if question.reports else []
        if source is None:
            return _Found(states, reports)
        last = queries.last_callout_at(session, conn_id, now - LAST_CALLOUT, source=source)
        return _Found(states, reports, last, queries.passed_windows(session, conn_id, meters, now, source))

    return read(work)
