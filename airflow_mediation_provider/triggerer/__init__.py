"""Waiting in the triggerer: one hub per connection and event loop, shared by all its triggers."""

from __future__ import annotations

import asyncio
import gc
import logging
from contextlib import suppress
from dataclasses import replace
from functools import cache, partial
from importlib import import_module
from typing import TYPE_CHECKING, Final
from weakref import WeakKeyDictionary

from airflow_mediation_provider.feed.flow import cross_check_seconds
from airflow_mediation_provider.triggerer.hub import Hub

if TYPE_CHECKING:
    from airflow_mediation_provider.feed.long_poll import FeedClient
    from airflow_mediation_provider.feed.reports import WaitingTask
    from airflow_mediation_provider.hooks.mediation import MediationAsyncHook
    from airflow_mediation_provider.protocol.sessions.verdict import TaskVerdict
    from airflow_mediation_provider.protocol.waits.wait import SessionWait
    from airflow_mediation_provider.protocol.wire import FeedReply, FeedRequest
    from airflow_mediation_provider.tasks.maintenance import HistoryReader
    from airflow_mediation_provider.triggerer.meter import ReadingSubscription, WaitSubscription
    from airflow_mediation_provider.triggerer.poller import StatusHook

log = logging.getLogger(__name__)

# Keyed by the loop: a session of one loop is of no use in another, and the hubs of a loop end with it.
_hubs: Final[WeakKeyDictionary[asyncio.AbstractEventLoop, dict[str, Hub]]] = WeakKeyDictionary()
_closing: Final[set[asyncio.Task[None]]] = set()
_SETTLE_SECONDS: Final = 5.0


def subscribe(
    mediation_conn_id: str,
    wait: SessionWait,
    *,
    poll_interval: float,
    eager: bool = False,
    task: WaitingTask | None = None,
) -> WaitSubscription:
    """Subscribe a wait to what is received about its meter; the first subscription of a connection makes the hub.

    :param mediation_conn_id: Airflow connection of type ``mediation``
    :param wait: the wait
    :param poll_interval: seconds between two polls, at least
    :param eager: the meter was not polled for this wait yet: poll it soon
    :param task: the task that waits, for the reports
    :return: to be closed when the task no longer waits
    """
    return _hub(mediation_conn_id).subscribe(wait, poll_interval=poll_interval, eager=eager, task=task)


def subscribe_to_readings(
    mediation_conn_id: str, meter_id: str, version: str, *, poll_interval: float
) -> ReadingSubscription:
    """Subscribe to each reading of a meter, from the one poll that all share.

    :param mediation_conn_id: Airflow connection of type ``mediation``
    :param poll_interval: seconds between two polls, at least
    :return: to be closed when readings are no longer needed
    """
    return _hub(mediation_conn_id).subscribe_to_readings(meter_id, version, poll_interval=poll_interval)


async def session_url(mediation_conn_id: str, meter_id: str, session_id: str) -> str | None:
    """Return the address of a session's page in Zuora, over the hub's hook; call it only while subscribed.

    :raises MediationError: the connection is missing or wrong
    """
    return await _hubs[asyncio.get_running_loop()][mediation_conn_id].session_url(meter_id, session_id)


async def report(mediation_conn_id: str, verdict: TaskVerdict) -> None:
    """Report what a task concluded from polls, over the feed of the hub, which must have a waiter; best effort."""
    await _hubs[asyncio.get_running_loop()][mediation_conn_id].report(verdict)


async def settled() -> None:
    """Wait a moment until the connections of ended hubs are closed, so that a loop which ends leaks none."""
    loop = asyncio.get_running_loop()
    tasks = [task for task in _closing if task.get_loop() is loop]
    if tasks:
        await asyncio.wait(tasks, timeout=_SETTLE_SECONDS)


async def open_hook(mediation_conn_id: str, *, attempts: int) -> MediationAsyncHook:
    """Make a hook without blocking the event loop: importing the HTTP libraries takes a few hundred milliseconds."""
    hooks = await asyncio.to_thread(import_module, "airflow_mediation_provider.hooks.mediation")
    hook: MediationAsyncHook = hooks.MediationAsyncHook(mediation_conn_id, attempts=attempts)
    return hook


async def ask(mediation_conn_id: str, question: FeedRequest) -> FeedReply | None:
    """Query the API server once, apart from the hub's feed; ``None`` without an answer.

    :param mediation_conn_id: Airflow connection of type ``mediation``
    """
    from airflow_mediation_provider.feed.flow import FeedUnavailableError

    feed = open_feed(mediation_conn_id)
    try:
        return await feed.ask(question)
    except FeedUnavailableError as error:
        log.info("The journal of callouts was not reached: %s", error)
        return None
    finally:
        await feed.close()


async def report_calls(mediation_conn_id: str) -> None:
    """Report the calls to Zuora that no report of this process contained; best effort.

    :param mediation_conn_id: Airflow connection of type ``mediation``
    """
    from airflow_mediation_provider.feed.flow import FeedUnavailableError
    from airflow_mediation_provider.hooks.api_usage import reported, unreported
    from airflow_mediation_provider.protocol.wire import FeedRequest

    if not unreported(mediation_conn_id):
        return
    feed = open_feed(mediation_conn_id)
    try:
        with suppress(FeedUnavailableError), reported(mediation_conn_id) as calls:
            await feed.ask(FeedRequest(calls=calls))
    finally:
        await feed.close()


async def take_turn(mediation_conn_id: str, reader: HistoryReader, feed: FeedClient) -> float:
    """Carry out one turn of a reader of the callout history, and return the seconds until its next one.

    :param mediation_conn_id: Airflow connection of type ``mediation``
    :param feed: reaches the API server
    :raises MediationError: Zuora gave no good answer, or the connection is missing or wrong
    :raises FeedUnavailableError: the API server gave none
    :raises ValueError: a reply of the API server is not valid
    """
    from airflow_mediation_provider.hooks.api_usage import reported
    from airflow_mediation_provider.protocol.maintenance import HistoryRequest
    from airflow_mediation_provider.protocol.zuora.errors import MediationError
    from airflow_mediation_provider.tasks.maintenance import AskJournal

    # One attempt: a failed read is repeated in the next turn.
    async with await open_hook(mediation_conn_id, attempts=1) as hook:
        steps = reader.read((await hook.settings()).callouts)
        try:
            step = next(steps)
            while True:
                if not isinstance(step, AskJournal):
                    try:
                        page = await hook.carry_out(step)
                    except MediationError as error:
                        step = steps.throw(error)
                    else:
                        step = steps.send(page)
                elif isinstance(step.message, HistoryRequest):
                    with reported(mediation_conn_id) as calls:
                        body = await feed.call(step.path, replace(step.message, calls=calls).to_bytes())
                    step = steps.send(body)
                else:
                    step = steps.send(await feed.call(step.path, step.message.to_bytes()))
        except StopIteration as done:
            return float(done.value)


def open_feed(mediation_conn_id: str) -> FeedClient:
    """Make a client of the API server's feed and observations; it reads the connection when it needs it."""
    from airflow_mediation_provider.feed.long_poll import FeedClient

    async def client_secret() -> str:
        async with await open_hook(mediation_conn_id, attempts=1) as hook:
            return (await hook.settings()).client_secret

    return FeedClient(mediation_conn_id, client_secret)


def _hub(mediation_conn_id: str) -> Hub:
    hubs = _hubs.setdefault(asyncio.get_running_loop(), {})
    hub = hubs.get(mediation_conn_id)
    if hub is None:
        hub = hubs[mediation_conn_id] = Hub(
            partial(_open_hook, mediation_conn_id),
            on_empty=partial(_drop, hubs, mediation_conn_id),
            conn_id=mediation_conn_id,
            feed=open_feed(mediation_conn_id),
            cross_check=cross_check_seconds(),
        )
    return hub


def _drop(hubs: dict[str, Hub], mediation_conn_id: str, closing: asyncio.Task[None]) -> None:
    del hubs[mediation_conn_id]
    _closing.add(closing)
    closing.add_done_callback(_closing.discard)


async def _open_hook(mediation_conn_id: str) -> StatusHook:
    # One attempt: the hub has its own pace, and a hook that sleeps and retries would hold a connection all the time.
    hook = await open_hook(mediation_conn_id, attempts=1)
    _spare_what_is_loaded()
    return hook


@cache
def _spare_what_is_loaded() -> None:
    """Leave the modules that the process has loaded by now out of later garbage collections, once.

    A thousand new waits are objects enough for a full collection, which stops the event loop while it visits every
    object of the process: most of a second, nearly all of it for what is never freed.
    """
    gc.freeze()
