"""The feed: what the journal knows of the sessions that Airflow's processes wait for, as soon as it knows it.

It tells states, not events: the same one may come twice, and a change that was missed is found by the next full look.
No database session is held while a request waits.
"""

from __future__ import annotations

import asyncio
import logging
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from functools import partial
from typing import TYPE_CHECKING, Any, Final, TypeVar

from fastapi import APIRouter, Request, Response
from starlette.exceptions import HTTPException

from airflow_mediation_provider.api_server.changes import Changes, Cursor
from airflow_mediation_provider.api_server.replies import UNAVAILABLE, error_docs
from airflow_mediation_provider.api_server.shutdown import on_shutdown
from airflow_mediation_provider.api_server.signed import read_signed
from airflow_mediation_provider.journal import queries
from airflow_mediation_provider.journal.transaction import JournalUnavailable, read
from airflow_mediation_provider.journal.waits import record_waits
from airflow_mediation_provider.protocol.errors import MisconfigurationError
from airflow_mediation_provider.protocol.feed import FEED_PATH, FeedReply, FeedRequest

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from sqlalchemy.orm import Session

    from airflow_mediation_provider.api_server.connections import MediationConnection
    from airflow_mediation_provider.protocol.feed import MeterQuestion
    from airflow_mediation_provider.protocol.lifecycle import SessionState

T = TypeVar("T")
log = logging.getLogger(__name__)
router = APIRouter()

MOST_WAITING: Final = 1000
"""So many requests wait for news at a time; one more is answered at once."""
LAST_CALLOUT: Final = timedelta(days=7)
"""Nobody looks further back for the last callout: the other reports since then may be many."""
_LOOKS: Final = 2
_LARGE_BYTES: Final = 32 * 1024
_MANY_SESSIONS: Final = 50
_MOST_REPORTS: Final = 50
"""Reports of waits that stand in line; what comes on top is left out, and is reported again in a minute."""


class Feed:
    """The feed of one process of the API server, on one event loop."""

    def __init__(self) -> None:
        self.changes = Changes()
        self._writing: set[asyncio.Task[None]] = set()
        # Threads of their own, and few: each one takes a connection of the pool that Airflow itself lives on.
        self._looking = ThreadPoolExecutor(_LOOKS, "mediation-feed")
        self._reporting = ThreadPoolExecutor(1, "mediation-waits")
        on_shutdown(self.changes.close)

    async def answer(self, connection: MediationConnection, question: FeedRequest) -> FeedReply:
        """Answer one request, at once or after as many seconds as it waits.

        :raises JournalUnavailable: the journal cannot be read
        """
        if (question.open or question.ended) and len(self._writing) < _MOST_REPORTS:
            # Nobody waits for this: it is for people who look, and it comes again.
            task = asyncio.create_task(self._keep_waits(connection.conn_id, question))
            self._writing.add(task)
            task.add_done_callback(self._writing.discard)
        callouts = _takes_callouts(connection)
        cursor = Cursor.parse(question.cursor) if question.cursor else None
        if cursor is not None and not question.full:
            seconds = question.wait if self.changes.waiting < MOST_WAITING else 0.0
            told = await self.changes.since(cursor, connection.conn_id, question.meters.keys(), seconds=seconds)
            if told is not None:
                states, after = told
                return FeedReply(cursor=str(after), callouts=callouts, sessions=tuple(states))
        after = await self.changes.cursor()
        look = partial(_look, connection.conn_id, question.meters, callouts=callouts)
        states, last = await asyncio.get_running_loop().run_in_executor(self._looking, look)
        return FeedReply(cursor=str(after), callouts=callouts, last_callout_at=last, sessions=tuple(states))

    async def _keep_waits(self, conn_id: str, question: FeedRequest) -> None:
        write = partial(record_waits, conn_id=conn_id, open=question.open, ended=question.ended)
        try:
            await asyncio.get_running_loop().run_in_executor(self._reporting, write)
        except JournalUnavailable as error:
            log.warning("The waits of tasks could not be kept: %s", error)


@router.post(FEED_PATH, responses=error_docs(400, 401, 405, 408, 413, 503))
async def ask_feed(request: Request) -> Response:
    """Tell what is known of the sessions asked for, or wait for a change."""
    connection, body = await read_signed(request, FEED_PATH)
    try:
        question = await _apart(FeedRequest.from_bytes, body, large=len(body) > _LARGE_BYTES)
    except ValueError as error:
        raise HTTPException(400, str(error)) from None
    answering = asyncio.ensure_future(feed_of(request.app).answer(connection, question))
    leaving = asyncio.ensure_future(_gone(request))
    try:
        await asyncio.wait([answering, leaving], return_when=asyncio.FIRST_COMPLETED)
        if not answering.done():
            return Response(status_code=204)  # nobody reads it
        reply = answering.result()
        # Not sooner: what is answered with an error is reported again.
        request.app.state.calls.keep(connection.conn_id, question.calls)
    except JournalUnavailable as error:
        request.app.state.complaints.say(logging.ERROR, "The feed was answered 503", connection.conn_id, str(error))
        raise HTTPException(503, UNAVAILABLE) from None
    finally:
        leaving.cancel()
        answering.cancel()
    data = await _apart(reply.to_bytes, large=len(reply.sessions) > _MANY_SESSIONS)
    return Response(data, media_type="application/json")


def feed_of(app: Any) -> Feed:
    """Return the application's feed, made at the first question: it belongs to the event loop."""
    feed: Feed | None = getattr(app.state, "feed", None)
    if feed is None:
        feed = app.state.feed = Feed()
        app.state.recorder.after.append(lambda recorded: feed.changes.nudge() if recorded.changed else None)
    return feed


async def _apart(call: Callable[..., T], *arguments: Any, large: bool) -> T:
    """Read or write a message; a large one in a thread: a thousand waits take tens of milliseconds."""
    return await asyncio.to_thread(call, *arguments) if large else call(*arguments)


async def _gone(request: Request) -> None:
    """Return when the client has gone away."""
    while (await request.receive())["type"] != "http.disconnect":
        pass


def _takes_callouts(connection: MediationConnection) -> bool:
    try:
        return connection.callouts.enabled
    except MisconfigurationError:
        return False


def _look(
    conn_id: str, meters: Mapping[str, MeterQuestion], *, callouts: bool
) -> tuple[list[SessionState], datetime | None]:
    def work(session: Session) -> tuple[list[SessionState], datetime | None]:
        last = queries.last_callout_at(session, conn_id, datetime.now(UTC) - LAST_CALLOUT) if callouts else None
        return queries.answer(session, conn_id, meters), last

    return read(work)
