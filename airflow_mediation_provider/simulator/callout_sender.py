"""Sends callouts over HTTP: as many at once as allowed, with Zuora's timeouts, redirects not followed."""

from __future__ import annotations

import asyncio
import base64
import contextlib
from typing import TYPE_CHECKING, Final

import aiohttp

from airflow_mediation_provider.simulator.callouts import NO_ANSWER, Answer

if TYPE_CHECKING:
    from airflow_mediation_provider.simulator.callouts import Attempt, Callouts
    from airflow_mediation_provider.simulator.clock import Clock

LOST: Final = Answer(NO_ANSWER, error="lost on the way")


class CalloutSender:
    """Sends callouts when they are due, while it runs; lives on one event loop.

    :param callouts: the queue
    :param clock: the clock of the queue's times
    :param ticking: whether that clock moves by itself
    """

    def __init__(self, callouts: Callouts, clock: Clock, *, ticking: bool) -> None:
        self._callouts = callouts
        self._clock = clock
        self._ticking = ticking
        self._wake = asyncio.Event()
        self._sending: set[asyncio.Task[None]] = set()

    async def start(self) -> None:
        """Start to send."""
        # A connection is used once: what a restarting receiver leaves behind is no error of the next callout.
        self._session = aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0, force_close=True))
        self._callouts.on_schedule = self._wake.set
        self._loop = asyncio.create_task(self._run(), name="simulator-callouts")

    async def stop(self) -> None:
        """Stop at once, and abort the requests that are being sent."""
        tasks = [self._loop, *self._sending]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        await self._session.close()

    def wake(self) -> None:
        """Check again what is due: the clock was moved, or settings were changed."""
        self._wake.set()

    async def _run(self) -> None:
        while True:
            self._wake.clear()
            while len(self._sending) < self._callouts.concurrency and (attempt := self._callouts.begin()) is not None:
                task = asyncio.create_task(self._send(attempt))
                self._sending.add(task)
                task.add_done_callback(self._sent)
            full = len(self._sending) >= self._callouts.concurrency
            due = self._callouts.next_due()
            seconds = None if due is None or full or not self._ticking else max(0.0, due - self._clock.now())
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._wake.wait(), seconds)

    def _sent(self, task: asyncio.Task[None]) -> None:
        self._sending.discard(task)
        self._wake.set()

    async def _send(self, attempt: Attempt) -> None:
        self._callouts.end(attempt, LOST if attempt.callout.lost else await self._exchange(attempt))

    async def _exchange(self, attempt: Attempt) -> Answer:
        config = attempt.callout.config
        if config.username is None:
            return (await self._request(attempt, attempt.headers))[0]
        credentials = base64.b64encode(f"{config.username}:{config.password}".encode()).decode()
        with_credentials = {**attempt.headers, "Authorization": f"Basic {credentials}"}
        answer, challenge = await self._request(attempt, with_credentials if config.preemptive else attempt.headers)
        if answer.code == 401 and not config.preemptive and challenge.lower().startswith("basic"):
            answer, _ = await self._request(attempt, with_credentials)
        return answer

    async def _request(self, attempt: Attempt, headers: dict[str, str]) -> tuple[Answer, str]:
        """Send one request; returns the answer and the receiver's authentication challenge."""
        delivery = attempt.delivery
        bounds = aiohttp.ClientTimeout(
            total=delivery.connect_timeout + delivery.data_timeout,
            sock_connect=delivery.connect_timeout,
            sock_read=delivery.data_timeout,
        )
        config = attempt.callout.config
        try:
            async with self._session.request(
                config.method,
                attempt.callout.url,
                data=attempt.body,
                headers=headers,
                timeout=bounds,
                allow_redirects=False,
            ) as response:
                content = (await response.read()).decode("utf-8", "replace")
                return Answer(response.status, content), response.headers.get("WWW-Authenticate", "")
        except (aiohttp.ClientError, TimeoutError, OSError, ValueError) as error:
            return Answer(NO_ANSWER, error=f"{type(error).__name__}: {error}".rstrip(": ")), ""
