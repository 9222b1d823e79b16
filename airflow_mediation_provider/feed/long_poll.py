"""The feed for the triggerer: one request in progress for each connection, for any number of waiting tasks.

It is a long poll with a cursor. Full reads in between repair what was missed: once a minute, and at once for the
meters of new waiters. The protocols are the interface between the hub and its feed.
"""

from __future__ import annotations

import asyncio
import importlib
import logging
import random
import ssl
import time
from contextlib import closing, suppress
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Final, Protocol, TypeVar

from airflow_mediation_provider.feed import flow
from airflow_mediation_provider.feed.flow import (
    TOO_SLOW,
    FeedUnavailableError,
    Outcome,
    SendSigned,
    ServerAddress,
    SignedCalls,
    Step,
)
from airflow_mediation_provider.hooks.api_usage import reported
from airflow_mediation_provider.protocol.wire import (
    FEED_PATH,
    FULL_LOOK_SECONDS,
    LONGEST_WAIT_SECONDS,
    MOST_INSTANTS,
    MOST_METERS,
    OBSERVATIONS_PATH,
    FeedReply,
    FeedRequest,
    MeterQuestion,
    Waits,
    observations_to_bytes,
)
from airflow_mediation_provider.protocol.zuora.errors import MediationError
from airflow_mediation_provider.protocol.zuora.flow import Failure

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Collection, Generator, Mapping, Sequence

    import aiohttp

    from airflow_mediation_provider.feed.flow import Candidate
    from airflow_mediation_provider.hooks.transport import KeptContext
    from airflow_mediation_provider.protocol.sessions.journal_entry import JournalEntry
    from airflow_mediation_provider.protocol.sessions.lifecycle import SessionState
    from airflow_mediation_provider.protocol.sessions.verdict import TaskNote, TaskVerdict
    from airflow_mediation_provider.protocol.sessions.window import WindowReport
    from airflow_mediation_provider.protocol.wire import HistoryStatus, WaitEnded, WaitReport
    from airflow_mediation_provider.protocol.zuora.refusals import Reply


FEED_LOOK_SECONDS: Final = LONGEST_WAIT_SECONDS + 10.0
"""A followed feed answers within this time: its wait for a change, plus the time for the answer."""

log = logging.getLogger(__name__)

T = TypeVar("T")
GATHER_SECONDS: Final = 0.1
"""New waiters come in groups: one full read serves all that subscribe within this time."""
SHORTEST_SECONDS: Final = 0.1
"""Between two requests, after any answer."""
CALM_SECONDS: Final = 0.5
"""Between two requests that were answered at once, after several of them in a row."""
NO_NEWS_SECONDS: Final = 2.0
"""After an immediate answer without news: the server is about to stop, or is at its limit of waiting requests."""
BACKOFF_SECONDS: Final = (1.0, 2.0, 5.0, 10.0, 20.0)
"""Pauses after failures in a row; the last one repeats. Up to a fifth is added at random."""
ANSWER_SECONDS: Final = 10.0
"""Time limit of a request beyond the seconds that it waits."""
MAINTENANCE_SECONDS: Final = 60.0
"""Time limit of a request to compare the callout history with the journal."""
MOST_REPORTS: Final = 2000
"""Waits in the report of one request; more would approach the server's size limit, and only the pages show them."""
LEAVE_SECONDS: Final = 2.0
"""Time limit of the last report."""


class FeedListener(Protocol):
    """The part of the hub that its feed needs; for one connection."""

    new_questions: asyncio.Event
    """Set by the hub for a new waiter that needs the present state; cleared with ``take_new_questions()``."""

    def take_new_questions(self) -> Mapping[str, MeterQuestion]:
        """Return what the waiters that subscribed since the last call need, by meter, and clear ``new_questions``."""

    def questions(self) -> Mapping[str, MeterQuestion]:
        """Return what all waiters need, by meter."""

    def meters(self) -> Collection[str]:
        """Return the meters of all waiters."""

    reporter: str
    """Stands for all of its waits where they are reported."""

    def reports(self, most: int, *, again: bool) -> Sequence[WaitReport]:
        """Return the waits that are new, or whose session is, since the last report that was stored.

        :param most: the greatest number of reports
        :param again: also those that the API server does not have any more
        """

    def reported(self, *, kept: bool) -> None:
        """Note whether what ``reports`` returned last is stored."""

    def report_again(self) -> None:
        """Note that the API server has only what ``reports`` returned last."""

    def ended_waits(self) -> Sequence[WaitEnded]:
        """Return the waits that ended, each once."""

    async def receive(self, states: Sequence[SessionState], revisions: Sequence[int] = ()) -> None:
        """Pass states of sessions on to the waits; a state may be repeated, and in any order.

        :param revisions: of each state; none from an older server
        """

    async def receive_windows(self, reports: Sequence[WindowReport]) -> None:
        """Pass the journal's reports of windows that have passed on to the waits."""

    def connected(self, *, callouts: bool, history: HistoryStatus | None) -> None:
        """Note that the feed answers, and where sessions are reported from; called with each answer."""

    def disconnected(self, reason: str) -> None:
        """Note that the feed does not answer; called with each failure."""


class SessionFeed(Protocol):
    """A source of session states for one connection."""

    @property
    def address(self) -> str | None:
        """Its address; ``None`` while none was found."""

    async def follow(self, view: FeedListener) -> None:
        """Send requests and pass the answers on, until cancelled; then report the ends of the last waits.

        It recovers by itself; if it raises nevertheless, the hub calls it again after a pause.
        """

    async def observe(
        self,
        entries: Sequence[JournalEntry] = (),
        *,
        verdicts: Sequence[TaskVerdict] = (),
        tasks: Sequence[TaskNote] = (),
    ) -> None:
        """Report observations from other sources (polls); best effort, never raises, never waits for long."""


def parts(questions: Mapping[str, MeterQuestion]) -> Sequence[Mapping[str, MeterQuestion]]:
    """Return full questions that together ask the same, each within the server's limits; at least one."""
    found: list[dict[str, MeterQuestion]] = [{}]
    instants = 0
    for meter_id, question in questions.items():
        instants += question.instants
        if found[-1] and (len(found[-1]) >= MOST_METERS or instants > MOST_INSTANTS):
            found.append({})
            instants = question.instants
        found[-1][meter_id] = question
    return found


class FeedClient:
    """Follows the feed for one connection, on one event loop.

    :param conn_id: the Airflow connection
    :param client_secret: reads the secret that signs the requests; called again after the server refused it
    :param addresses: the possible addresses of the API server
    """

    def __init__(
        self,
        conn_id: str,
        client_secret: Callable[[], Awaitable[str]],
        *,
        addresses: Callable[[], Sequence[Candidate]] = flow.candidates,
    ) -> None:
        self._conn_id = conn_id
        self._client_secret = client_secret
        # Its calls have their own pace, so none is refused.
        self._server = ServerAddress(rests=False)
        self._calls = SignedCalls(conn_id, self._server, candidates=addresses)
        self._http: aiohttp.ClientSession | None = None
        self._tls: KeptContext | None = None
        self._cursor: str | None = None
        self._full_at = 0.0
        # Whether the server needs no more than their names of the meters in a long poll.
        self._conditional = False
        self._ended: list[WaitEnded] = []
        self._quick = 0

    @property
    def address(self) -> str | None:
        """The address of the API server; ``None`` while none was found."""
        found = self._server.found
        return None if found is None else found.url

    async def follow(self, view: FeedListener) -> None:
        """Send requests and pass the answers on until cancelled; outage and recovery are logged once each."""
        failures = 0
        self._forget()
        try:
            while True:
                began = time.monotonic()
                try:
                    await self._step(view)
                except FeedUnavailableError as error:
                    if failures == 0:
                        level = logging.WARNING if self._cursor else logging.INFO
                        log.log(level, "The API server's callout journal did not answer (%s); trying again.", error)
                    self._forget()
                    view.disconnected(str(error))
                    pause = BACKOFF_SECONDS[min(failures, len(BACKOFF_SECONDS) - 1)]
                    failures += 1
                    await asyncio.sleep(pause * (1 + 0.2 * random.random()))  # noqa: S311  # jitter
                    continue
                if failures:
                    log.info("The journal of callouts answers again.")
                failures = 0
                await asyncio.sleep(max(SHORTEST_SECONDS - (time.monotonic() - began), 0))
        finally:
            try:
                await self._report_last(view)
            finally:  # a loop that ends cancels this task again
                await self.close()

    async def observe(
        self,
        entries: Sequence[JournalEntry] = (),
        *,
        verdicts: Sequence[TaskVerdict] = (),
        tasks: Sequence[TaskNote] = (),
    ) -> None:
        """Report observations if the feed answers; without a long wait, and without an error."""
        if self.address is None:
            return
        try:
            await self._call(
                OBSERVATIONS_PATH,
                observations_to_bytes(entries, verdicts=verdicts, tasks=tasks),
                seconds=ANSWER_SECONDS / 2,
            )
        except FeedUnavailableError as error:
            log.debug("Observations could not be reported: %s", error)

    async def report(
        self,
        entries: Sequence[JournalEntry] = (),
        *,
        verdicts: Sequence[TaskVerdict] = (),
        tasks: Sequence[TaskNote] = (),
    ) -> None:
        """Report observations, and return once the journal has stored them; otherwise the caller repeats them.

        :raises FeedUnavailableError: the journal may not have stored them
        """
        await self._call(
            OBSERVATIONS_PATH,
            observations_to_bytes(entries, verdicts=verdicts, tasks=tasks),
            seconds=ANSWER_SECONDS,
        )

    async def call(self, path: str, body: bytes) -> bytes:
        """Make one signed call of maintenance, and return the body of its good answer.

        :param path: a path under ``/mediation``
        :raises FeedUnavailableError: there was no good answer
        """
        return await self._call(path, body, seconds=MAINTENANCE_SECONDS)

    async def ask(self, question: FeedRequest) -> FeedReply:
        """Return the present state in the journal.

        :raises FeedUnavailableError: the journal does not answer
        """
        return await self._ask(question)

    async def close(self) -> None:
        """Close the connections."""
        http, self._http = self._http, None
        if http is not None:
            await http.close()

    async def _report_last(self, view: FeedListener) -> None:
        """Report the ends of the last waits, and calls, if the feed answers; the cancelling task waits for it."""
        self._ended += view.ended_waits()
        if self.address is None:
            return
        with suppress(FeedUnavailableError), reported(self._conn_id) as calls:
            if self._ended or calls:
                question = FeedRequest(waits=Waits(ended=tuple(self._ended)), calls=calls)
                await self._call(FEED_PATH, question.to_bytes(), seconds=LEAVE_SECONDS)

    async def _step(self, view: FeedListener) -> None:
        """Make one request, and pass its answer on to the view."""
        # First, because it may take a while, and the question must be up to date.
        await self._drive(self._calls.find(seconds=ANSWER_SECONDS))
        if view.new_questions.is_set():
            await asyncio.sleep(GATHER_SECONDS)
        new = view.take_new_questions()
        self._ended += view.ended_waits()
        if self._cursor is None or time.monotonic() - self._full_at >= FULL_LOOK_SECONDS:
            await self._ask_feed(view, view.questions(), whole=True)
        elif new:
            await self._ask_feed(view, new, whole=False)
        else:
            await self._wait(view)

    async def _ask_feed(self, view: FeedListener, questions: Mapping[str, MeterQuestion], *, whole: bool) -> None:
        """Read the present state.

        :param whole: read everything, and report all waits; otherwise read some meters and report new waits only: then
            the cursor does not move
        """
        waits = self._waits(view, whole=whole)
        first, *others = parts(questions)
        question = FeedRequest(meters=first, full=True, waits=waits)
        # Only here: a long poll that ends early, because of a new waiter, has been received all the same.
        with reported(self._conn_id) as calls:
            reply = await self._ask(replace(question, calls=calls))
        self._ended.clear()
        self._conditional = reply.conditional
        cursor = reply.cursor
        await self._hand_over(view, reply, whole=whole)
        for part in others:
            await self._pass_on(view, await self._ask(FeedRequest(meters=part, full=True)))
        if whole:
            # That of the first part: what changed since is received again.
            self._cursor, self._full_at = cursor, time.monotonic()

    def _waits(self, view: FeedListener, *, whole: bool) -> Waits:
        """Return the reports of waits for the next request.

        :param whole: report all waits: new ones by themselves, the others by their reporter
        """
        reports = tuple(view.reports(MOST_REPORTS, again=whole))
        return Waits(open=reports, ended=tuple(self._ended), reporter=view.reporter if whole or reports else "")

    async def _wait(self, view: FeedListener) -> None:
        """Wait for a change, but no longer than until a new waiter subscribes."""
        questions = dict.fromkeys(view.meters(), MeterQuestion()) if self._conditional else view.questions()
        left = FULL_LOOK_SECONDS - (time.monotonic() - self._full_at)
        question = FeedRequest(
            meters=questions,
            cursor=self._cursor,
            wait=max(min(LONGEST_WAIT_SECONDS, left), 0.0),
            waits=self._waits(view, whole=False),
        )
        began = time.monotonic()
        asking = asyncio.ensure_future(self._ask(question))
        coming = asyncio.ensure_future(view.new_questions.wait())
        try:
            await asyncio.wait([asking, coming], return_when=asyncio.FIRST_COMPLETED)
            if not asking.done():
                return
            reply = asking.result()
        finally:
            for task in (asking, coming):
                task.cancel()
            await asyncio.gather(asking, coming, return_exceptions=True)
        self._ended.clear()
        self._cursor = reply.cursor
        await self._hand_over(view, reply, whole=False)
        if reply.cursor is not None:
            await self._rest(view, question, reply, time.monotonic() - began)

    async def _rest(self, view: FeedListener, question: FeedRequest, reply: FeedReply, seconds: float) -> None:
        """Pause after an early answer, unless a new waiter subscribes.

        :param seconds: the time until the answer
        """
        self._quick = self._quick + 1 if seconds < min(question.wait, 1.0) else 0
        if not self._quick:
            return
        pause = min(SHORTEST_SECONDS * 2.0**self._quick, CALM_SECONDS) if reply.sessions else NO_NEWS_SECONDS
        with suppress(TimeoutError):
            async with asyncio.timeout(pause):
                await view.new_questions.wait()

    async def _hand_over(self, view: FeedListener, reply: FeedReply, *, whole: bool) -> None:
        if whole and not reply.reporter_known:
            view.report_again()
        view.reported(kept=reply.kept)
        view.connected(callouts=reply.callouts, history=reply.history)
        await self._pass_on(view, reply)

    async def _pass_on(self, view: FeedListener, reply: FeedReply) -> None:
        if reply.sessions:
            await view.receive(reply.sessions, reply.revisions)
        if reply.windows:
            await view.receive_windows(reply.windows)

    async def _ask(self, question: FeedRequest) -> FeedReply:
        # A thousand waits, or sessions, take tens of milliseconds to encode or decode.
        data = await asyncio.to_thread(question.to_bytes) if question.full else question.to_bytes()
        body = await self._call(FEED_PATH, data, seconds=question.wait + ANSWER_SECONDS)
        try:
            return await asyncio.to_thread(FeedReply.from_bytes, body)
        except ValueError as error:
            raise FeedUnavailableError(str(error)) from None

    async def _call(self, path: str, body: bytes, *, seconds: float) -> bytes:
        return await self._drive(self._calls.call(path, body, seconds=seconds))

    async def _drive(self, flow: Generator[Step, Outcome, T]) -> T:
        outcome: Outcome = None
        with closing(flow):
            try:
                while True:
                    step = flow.send(outcome)
                    outcome = await (self._send(step) if isinstance(step, SendSigned) else self._look_up_secret())
            except StopIteration as done:
                result: T = done.value
                return result

    async def _look_up_secret(self) -> str | Failure:
        try:
            return await self._client_secret()
        except MediationError as error:
            return Failure(str(error))

    async def _send(self, step: SendSigned) -> Reply | Failure:
        request = step.request
        try:
            http, way = await self._session(), await self._way(request.url)
            from airflow_mediation_provider.hooks.fetching import CHUNK, ENCODINGS, read_async

            headers = {**ENCODINGS, **request.headers}
            sending = http.request(
                request.method, request.url, headers=headers, data=request.body, allow_redirects=False, **way
            )
            async with asyncio.timeout(step.seconds), sending as reply:
                chunks = reply.content.iter_chunked(CHUNK)
                return await read_async(reply.status, reply.headers.items(), chunks, flow.LARGEST_REPLY)
        except TimeoutError:
            return TOO_SLOW
        except Exception as error:  # aiohttp has many errors, and none of them may end a wait
            if isinstance(error, ssl.SSLError):
                self._tls = None  # the certificates are read again, also those in a directory
            return flow.failure_of(error)

    async def _session(self) -> aiohttp.ClientSession:
        if self._http is None:
            # The first import takes a few hundred milliseconds, which must not block the event loop.
            await asyncio.to_thread(importlib.import_module, "airflow_mediation_provider.hooks.transport")
            import aiohttp

            if self._http is None:
                self._http = aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=4), auto_decompress=False)
        return self._http

    async def _way(self, url: str) -> dict[str, Any]:
        """Return the proxy and the TLS context for an address, as arguments of aiohttp."""
        from airflow_mediation_provider.hooks.transport import KeptContext, proxy_for

        proxy = proxy_for(url, {}, trust_env=True)
        if not any(each and each.startswith("https:") for each in (url, proxy)):
            return {"proxy": proxy}
        self._tls = self._tls or KeptContext()
        return {"proxy": proxy, "ssl": await asyncio.to_thread(self._tls.of, flow.server_trust())}

    def _forget(self) -> None:
        """Start again: search the address, and read the whole state."""
        self._server.forget()
        self._cursor = None
