"""Many long polls on the feed of a real API server, from a process of their own; and single queries, timed."""

from __future__ import annotations

import asyncio
import multiprocessing
import time
from collections import Counter
from typing import TYPE_CHECKING, Any, Final, Self

import aiohttp
import httpx

from airflow_mediation_provider.protocol.wire import (
    FEED_PATH,
    LONGEST_WAIT_SECONDS,
    OBSERVATIONS_PATH,
    FeedReply,
    FeedRequest,
    MeterQuestion,
    derive_key,
    observations_to_bytes,
    signed_headers,
)
from benchmarks.journal_rows import CONN_ID

if TYPE_CHECKING:
    from collections.abc import Sequence
    from multiprocessing.connection import Connection

    from airflow_mediation_provider.protocol.sessions.journal_entry import JournalEntry

SECRET: Final = "s3cret-of-the-benchmark"
_KEY: Final = derive_key(SECRET)


def proof(path: str, body: bytes) -> dict[str, str]:
    """Return the headers of a request."""
    return signed_headers(_KEY, path=path, conn_id=CONN_ID, body=body, timestamp=int(time.time()))


class Asker:
    """Sends one query after the other to the feed over one connection.

    :param url: of the API server
    """

    def __init__(self, url: str) -> None:
        self._client = httpx.Client(base_url=f"{url}/mediation", trust_env=False, timeout=30)

    def ask(self, question: FeedRequest) -> tuple[FeedReply, float]:
        """Return the answer, and the seconds that it took."""
        body = question.to_bytes()
        reply, seconds = self._post(FEED_PATH, body)
        return FeedReply.from_bytes(reply.content), seconds

    def observe(self, entries: Sequence[JournalEntry]) -> float:
        """Report some changes, and return the seconds that it took."""
        return self._post(OBSERVATIONS_PATH, observations_to_bytes(entries))[1]

    def _post(self, path: str, body: bytes) -> tuple[httpx.Response, float]:
        headers = proof(path, body)
        began = time.perf_counter()
        reply = self._client.post(path, content=body, headers=headers)
        return reply.raise_for_status(), time.perf_counter() - began


class IdlePolls:
    """Long polls that wait, each for a meter of its own without any change; a context manager.

    :param url: of the API server
    :param count: of the polls
    """

    def __init__(self, url: str, count: int) -> None:
        context = multiprocessing.get_context("spawn")
        self._ours, theirs = context.Pipe()
        self._process = context.Process(target=_hold, args=(theirs, url, count), daemon=True)

    def __enter__(self) -> Self:
        self._process.start()
        assert self._ours.recv() == "waiting"
        return self

    def __exit__(self, *exc_info: object) -> None:
        self._process.terminate()
        self._process.join()

    def end(self) -> Counter[str]:
        """Return how the requests ended that were waiting when the server ended."""
        assert self._ours.poll(60), "the polls go on"
        ended: Counter[str] = self._ours.recv()
        return ended


def _hold(control: Connection, url: str, count: int) -> None:
    asyncio.run(_poll_all(control, url, count))


async def _poll_all(control: Connection, url: str, count: int) -> None:
    ended: Counter[str] = Counter()
    waiting = 0
    all_wait = asyncio.Event()
    http = aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0), timeout=aiohttp.ClientTimeout(total=40))

    async def ask(**question: Any) -> FeedReply:
        body = FeedRequest(**question).to_bytes()
        async with http.post(f"{url}/mediation{FEED_PATH}", data=body, headers=proof(FEED_PATH, body)) as reply:
            reply.raise_for_status()
            return FeedReply.from_bytes(await reply.read())

    async def poll(number: int) -> None:
        nonlocal waiting
        meters = {f"idle-{number}": MeterQuestion()}
        cursor = (await ask(meters=meters, full=True)).cursor
        waiting += 1
        if waiting == count:
            all_wait.set()
        while True:
            began = time.perf_counter()
            try:
                cursor = (await ask(meters=meters, cursor=cursor, wait=LONGEST_WAIT_SECONDS)).cursor
            except (aiohttp.ClientError, TimeoutError) as error:
                ended[type(error).__name__] += 1
                return
            if time.perf_counter() - began < LONGEST_WAIT_SECONDS - 1:
                ended["answered"] += 1  # without a change: the server is about to end
                return

    async with http:
        polls = asyncio.gather(*(poll(number) for number in range(count)))
        if count:
            await all_wait.wait()
        await asyncio.sleep(1)  # until the last ones wait
        control.send("waiting")
        await polls
        control.send(ended)
