"""The feed for the triggerer: one request under way for each connection, however many tasks wait.

It is a long poll with a cursor. In between come full looks, which heal whatever was missed: once a minute, and at once
for the meters of waiters that just came.
"""

from __future__ import annotations

import asyncio
import logging
import random
import time
from contextlib import suppress
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Final

from airflow_mediation_provider.hooks.calls import reported
from airflow_mediation_provider.protocol.errors import MediationError
from airflow_mediation_provider.protocol.feed import (
    FEED_PATH,
    FULL_LOOK_SECONDS,
    HANDSHAKE_PATH,
    LONGEST_WAIT_SECONDS,
    OBSERVATIONS_PATH,
    FeedReply,
    FeedRequest,
    derive_key,
    is_handshake,
    observations_to_bytes,
    signed_headers,
)
from airflow_mediation_provider.watch.feed_address import Candidate, candidates

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Mapping, Sequence

    import aiohttp

    from airflow_mediation_provider.protocol.entry import Entry
    from airflow_mediation_provider.protocol.feed import MeterQuestion, WaitEnded, WaitReport
    from airflow_mediation_provider.watch.feed import FeedView

log = logging.getLogger(__name__)

GATHER_SECONDS: Final = 0.1
"""New waiters come in crowds: one full look serves all that come within this long."""
SHORTEST_SECONDS: Final = 0.1
"""Between two requests, whatever the server answers."""
CALM_SECONDS: Final = 0.5
"""Between two that were answered at once, after several of the kind in a row."""
NO_NEWS_SECONDS: Final = 2.0
"""After an answer that came at once and told nothing: the server is about to stop, or bears no more who wait."""
BACKOFF_SECONDS: Final = (1.0, 2.0, 5.0, 10.0, 20.0)
"""Pauses after failures in a row; the last one repeats. Up to a fifth is added at random."""
ANSWER_SECONDS: Final = 10.0
"""What a request may take beyond the seconds that it waits."""
HANDSHAKE_SECONDS: Final = 3.0
MOST_REPORTS: Final = 2000
"""Waits that one request reports; more would come near what the server takes, and they are for people to look at."""
LEAVE_SECONDS: Final = 2.0
"""What the last report may take."""


class FeedLostError(Exception):
    """The feed gave no good answer; one sentence says why."""


class FeedClient:
    """Follows the feed for one connection, on one event loop.

    :param conn_id: the Airflow connection
    :param client_secret: looks up what signs the requests; asked again after the server refused it
    :param addresses: where the API server may be
    """

    def __init__(
        self,
        conn_id: str,
        client_secret: Callable[[], Awaitable[str]],
        *,
        addresses: Callable[[], Sequence[Candidate]] = candidates,
    ) -> None:
        self._conn_id = conn_id
        self._client_secret = client_secret
        self._addresses = addresses
        self._http: aiohttp.ClientSession | None = None
        self._address: Candidate | None = None
        self._key: bytes | None = None
        self._cursor: str | None = None
        self._full_at = 0.0
        # In the order in which they were reported last.
        self._reported: dict[str, None] = {}
        self._ended: list[WaitEnded] = []
        self._quick = 0
        self._said: Candidate | None = None

    @property
    def address(self) -> str | None:
        """Where the API server was found; ``None`` while it is not."""
        return None if self._address is None else self._address.url

    async def follow(self, view: FeedView) -> None:
        """Ask and tell until cancelled; outage and recovery are logged once each."""
        failures = 0
        self._forget()
        try:
            while True:
                began = time.monotonic()
                try:
                    await self._step(view)
                except FeedLostError as error:
                    if failures == 0:
                        level = logging.WARNING if self._cursor else logging.INFO
                        log.log(level, "The journal of callouts does not answer (%s): polling meanwhile.", error)
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
            await self._take_leave(view)
            await self.close()

    async def observe(self, entries: Sequence[Entry]) -> None:
        """Report what was learned, if the feed is there; without waiting for long, and without an error."""
        if self._address is None:
            return
        try:
            await self._call(OBSERVATIONS_PATH, observations_to_bytes(entries), seconds=ANSWER_SECONDS / 2)
        except FeedLostError as error:
            log.debug("What was learned could not be reported: %s", error)

    async def report(self, entries: Sequence[Entry]) -> None:
        """Report what was learned, and return once the journal has it; for one who reports again what it has not.

        :raises FeedLostError: the journal may not have it
        """
        if self._address is None:
            self._address = await self._find()
        try:
            await self._call(OBSERVATIONS_PATH, observations_to_bytes(entries), seconds=ANSWER_SECONDS)
        except FeedLostError:
            self._address = None
            raise

    async def close(self) -> None:
        """Close the connections."""
        http, self._http = self._http, None
        if http is not None:
            await http.close()

    async def _take_leave(self, view: FeedView) -> None:
        """Report the ends of the last waits, and calls, if the feed is there; whoever cancelled us waits for it."""
        self._ended += view.ended_waits()
        if self._address is None or self._key is None:
            return
        with suppress(FeedLostError), reported(self._conn_id) as calls:
            if self._ended or calls:
                question = FeedRequest(ended=tuple(self._ended), calls=calls)
                await self._call(FEED_PATH, question.to_bytes(), seconds=LEAVE_SECONDS)

    async def _step(self, view: FeedView) -> None:
        """Make one request, and tell the view what it brought."""
        if self._address is None:
            self._address = await self._find()
        if view.new_questions.is_set():
            await asyncio.sleep(GATHER_SECONDS)
        new_meters, questions = view.new_meters(), view.questions()
        self._ended += view.ended_waits()
        if self._cursor is None or time.monotonic() - self._full_at >= FULL_LOOK_SECONDS:
            await self._look(view, questions, whole=True)
        elif new := {meter_id: questions[meter_id] for meter_id in new_meters if meter_id in questions}:
            await self._look(view, new, whole=False)
        else:
            await self._wait(view, questions)

    async def _look(self, view: FeedView, questions: Mapping[str, MeterQuestion], *, whole: bool) -> None:
        """Read the present state.

        :param whole: of everything asked for, with all waits reported; else of some meters and with new waits alone,
            which leaves the cursor as it is
        """
        open_waits = view.open_waits()
        waits = self._turns([report for report in open_waits if whole or report.id not in self._reported])
        told = FeedRequest(meters=questions, full=True, open=tuple(waits), ended=tuple(self._ended))
        # Here alone: a long poll that ends early, because a new waiter came, has arrived all the same.
        with reported(self._conn_id) as calls:
            reply = await self._ask(replace(told, calls=calls))
        self._ended.clear()
        if whole:
            self._cursor, self._full_at = reply.cursor, time.monotonic()
            for ended in self._reported.keys() - {report.id for report in open_waits}:
                del self._reported[ended]
        for report in waits:
            self._reported.pop(report.id, None)
            self._reported[report.id] = None
        await self._tell(view, reply)

    def _turns(self, waits: list[WaitReport]) -> list[WaitReport]:
        """Return as many as one request takes: those first that were never reported, or longest ago."""
        if len(waits) <= MOST_REPORTS:
            return waits
        turns = {report_id: turn for turn, report_id in enumerate(self._reported)}
        return sorted(waits, key=lambda report: turns.get(report.id, -1))[:MOST_REPORTS]

    async def _wait(self, view: FeedView, questions: Mapping[str, MeterQuestion]) -> None:
        """Wait for a change, but not any longer once a new waiter is here."""
        left = FULL_LOOK_SECONDS - (time.monotonic() - self._full_at)
        question = FeedRequest(
            meters=questions,
            cursor=self._cursor,
            wait=max(min(LONGEST_WAIT_SECONDS, left), 0.0),
            open=tuple(view.named_waits()[:MOST_REPORTS]),
            ended=tuple(self._ended),
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
        await self._tell(view, reply)
        await self._rest(view, question, reply, time.monotonic() - began)

    async def _rest(self, view: FeedView, question: FeedRequest, reply: FeedReply, seconds: float) -> None:
        """Pause after an answer that came sooner than it had to, unless a new waiter comes.

        :param seconds: that the answer took
        """
        self._quick = self._quick + 1 if seconds < min(question.wait, 1.0) else 0
        if not self._quick:
            return
        pause = min(SHORTEST_SECONDS * 2.0**self._quick, CALM_SECONDS) if reply.sessions else NO_NEWS_SECONDS
        with suppress(TimeoutError):
            async with asyncio.timeout(pause):
                await view.new_questions.wait()

    async def _tell(self, view: FeedView, reply: FeedReply) -> None:
        view.connected(callouts=reply.callouts)
        if reply.sessions:
            await view.learn(reply.sessions)

    async def _ask(self, question: FeedRequest) -> FeedReply:
        # A thousand waits, or sessions, take tens of milliseconds to be written or read.
        data = await asyncio.to_thread(question.to_bytes) if question.full else question.to_bytes()
        body = await self._call(FEED_PATH, data, seconds=question.wait + ANSWER_SECONDS)
        try:
            return await asyncio.to_thread(FeedReply.from_bytes, body)
        except ValueError as error:
            raise FeedLostError(str(error)) from None

    async def _call(self, path: str, body: bytes, *, seconds: float) -> bytes:
        address = self._address
        if address is None:
            raise FeedLostError("its address is not known")
        headers = signed_headers(
            await self._signing_key(), path=path, conn_id=self._conn_id, body=body, timestamp=int(time.time())
        )
        status, content = await self._send("POST", address.url + path, seconds=seconds, data=body, headers=headers)
        if status == 401:
            self._key = None
            raise FeedLostError(
                f"{address.url} answered 401: the API server finds another client secret in connection "
                f"{self._conn_id!r}, or its clock differs"
            )
        if status != 200:
            raise FeedLostError(f"{address.url} answered {status}")
        return content

    async def _signing_key(self) -> bytes:
        if self._key is None:
            try:
                self._key = derive_key(await self._client_secret())
            except MediationError as error:
                raise FeedLostError(str(error)) from error
        return self._key

    async def _find(self) -> Candidate:
        """Return the first address whose handshake is this provider's: other pages answer 200 as well."""
        import json

        failures = []
        for candidate in self._addresses():
            try:
                status, body = await self._send("GET", candidate.url + HANDSHAKE_PATH, seconds=HANDSHAKE_SECONDS)
                if status == 200 and is_handshake(json.loads(body)):
                    if candidate != self._said:
                        log.info("Callouts are read at %s, from %s.", candidate.url, candidate.source)
                        self._said = candidate
                    return candidate
                failures.append(f"{candidate.url} is another service")
            except FeedLostError as error:
                failures.append(str(error))
            except ValueError:
                failures.append(f"{candidate.url} is another service")
        raise FeedLostError(f"no API server with this provider was found: {'; '.join(failures)}")

    async def _send(self, method: str, url: str, *, seconds: float, **options: Any) -> tuple[int, bytes]:
        http = await self._session()
        try:
            async with asyncio.timeout(seconds), http.request(method, url, allow_redirects=False, **options) as reply:
                return reply.status, await reply.read()
        except TimeoutError:
            raise FeedLostError(f"{url} gave no answer within {seconds:g} s") from None
        except Exception as error:  # aiohttp's errors are many, and none of them may end a wait
            raise FeedLostError(f"{url} gave no answer ({type(error).__name__})") from error

    async def _session(self) -> aiohttp.ClientSession:
        if self._http is None:
            import importlib

            # A few hundred milliseconds at the first time, which the event loop must not stand still for.
            aiohttp = await asyncio.to_thread(importlib.import_module, "aiohttp")
            if self._http is None:
                self._http = aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=4), trust_env=True)
        return self._http

    def _forget(self) -> None:
        """Begin anew: with the address, and with the whole state."""
        self._address = self._cursor = None
        self._reported.clear()
