"""The triggerer's side of waiting: one hub per connection and event loop, shared by every trigger there."""

from __future__ import annotations

import asyncio
from functools import partial
from importlib import import_module
from typing import TYPE_CHECKING, Final
from weakref import WeakKeyDictionary

from airflow_mediation_provider.watch.hub import CROSS_CHECK_SECONDS, Hub

if TYPE_CHECKING:
    from airflow_mediation_provider.hooks.mediation import MediationAsyncHook
    from airflow_mediation_provider.protocol.wait import SessionWait
    from airflow_mediation_provider.watch.feed_client import FeedClient
    from airflow_mediation_provider.watch.onlooker import Onlooker
    from airflow_mediation_provider.watch.polls import StatusHook
    from airflow_mediation_provider.watch.reports import WaitingTask
    from airflow_mediation_provider.watch.waiter import Waiter

# Keyed by the loop: a session of one loop is of no use in another, and a loop that is gone takes its hubs along.
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
) -> Waiter:
    """Have a wait told of what is learned about its meter; the hub is made for the first waiter of a connection.

    :param mediation_conn_id: Airflow connection of type ``mediation``
    :param wait: the wait
    :param poll_interval: seconds between two looks, at least
    :param eager: nobody has looked for this wait yet: look soon
    :param task: the task that waits, for the reports
    :return: to be closed when the task no longer waits
    """
    return _hub(mediation_conn_id).subscribe(wait, poll_interval=poll_interval, eager=eager, task=task)


def look_on(mediation_conn_id: str, meter_id: str, version: str, *, poll_interval: float) -> Onlooker:
    """Have somebody told of each reading of a meter, from the one poll that all share.

    :param mediation_conn_id: Airflow connection of type ``mediation``
    :param poll_interval: seconds between two looks, at least
    :return: to be closed by who looks on no more
    """
    return _hub(mediation_conn_id).look_on(meter_id, version, poll_interval=poll_interval)


def other_sessions(mediation_conn_id: str, wait: SessionWait) -> set[str]:
    """Return the sessions of a wait's meter, other than its own, that this loop's tasks wait for or that seem live."""
    hub = _hubs.get(asyncio.get_running_loop(), {}).get(mediation_conn_id)
    return hub.other_sessions(wait) if hub is not None else set()


async def session_url(mediation_conn_id: str, meter_id: str, session_id: str) -> str | None:
    """Return the address of a session's page in Zuora; to be asked by who has subscribed, over the hub's hook.

    :raises MediationError: the connection is missing or wrong
    """
    return await _hubs[asyncio.get_running_loop()][mediation_conn_id].session_url(meter_id, session_id)


async def settled() -> None:
    """Wait a moment until the connections of hubs that were left are closed, so that a loop which ends leaks none."""
    loop = asyncio.get_running_loop()
    tasks = [task for task in _closing if task.get_loop() is loop]
    if tasks:
        await asyncio.wait(tasks, timeout=_SETTLE_SECONDS)


async def open_hook(mediation_conn_id: str, *, attempts: int) -> MediationAsyncHook:
    """Make a hook without holding up the event loop: to import the HTTP libraries takes a few hundred milliseconds."""
    hooks = await asyncio.to_thread(import_module, "airflow_mediation_provider.hooks.mediation")
    hook: MediationAsyncHook = hooks.MediationAsyncHook(mediation_conn_id, attempts=attempts)
    return hook


def open_feed(mediation_conn_id: str) -> FeedClient:
    """Make a client of the API server's feed and observations, which looks the connection up when it needs it."""
    from airflow_mediation_provider.watch.feed_client import FeedClient

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
    # One attempt: the hub paces itself, and a hook that sleeps and repeats would hold a connection meanwhile.
    return await open_hook(mediation_conn_id, attempts=1)


def cross_check_seconds() -> float:
    """Return the seconds between two polls of a meter, at least, while callouts arrive."""
    from airflow.sdk import conf

    return max(conf.getfloat("mediation", "cross_check_interval", fallback=CROSS_CHECK_SECONDS), 0.0)
