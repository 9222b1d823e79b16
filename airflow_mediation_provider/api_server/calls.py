"""Keep the calls to Zuora that processes report: added up here, and written to the journal beside the answers.

A report is acknowledged before it is written: nobody waits for the database, and what it cannot take now is written
with a later report. What is not written when this process ends is lost.
"""

from __future__ import annotations

import asyncio
import logging
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import TYPE_CHECKING, Final

from airflow_mediation_provider.hooks.calls import reported
from airflow_mediation_provider.journal.calls import record_calls
from airflow_mediation_provider.journal.transaction import JournalUnavailable
from airflow_mediation_provider.protocol.calls import merged

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from airflow_mediation_provider.protocol.calls import HourlyCalls

log = logging.getLogger(__name__)

PAUSE_SECONDS: Final = 30.0
"""A database that did not take a report is left alone for so long."""


class CallsKeeper:
    """The calls that one process of the API server was told of.

    It holds a day of counts for each connection at most, however long the database is away.

    :param write: the journal's ``record_calls`` by default
    """

    def __init__(self, write: Callable[..., None] | None = None) -> None:
        self._write = write or record_calls
        # A thread of its own, and one: it takes a connection of the pool that Airflow itself lives on.
        self._thread = ThreadPoolExecutor(1, "mediation-calls")
        self._unwritten: dict[str, tuple[HourlyCalls, ...]] = {}
        self._writing: asyncio.Task[None] | None = None
        self._paused_until = 0.0

    def keep(self, conn_id: str, calls: Iterable[HourlyCalls] = ()) -> None:
        """Take what was reported, and what this process asked Zuora itself; on the event loop, without waiting.

        :param conn_id: the connection, which must be proven
        :param calls: as reported
        """
        with reported(conn_id) as own:
            self._add(conn_id, (*calls, *own))
        idle = self._writing is None or self._writing.done()
        if self._unwritten and idle and asyncio.get_running_loop().time() >= self._paused_until:
            self._writing = asyncio.create_task(self._write_all())

    def _add(self, conn_id: str, calls: tuple[HourlyCalls, ...]) -> None:
        if calls:
            self._unwritten[conn_id] = merged((*self._unwritten.get(conn_id, ()), *calls))

    async def _write_all(self) -> None:
        """Write until nothing is left, or something could not be written."""
        loop = asyncio.get_running_loop()
        while self._unwritten:
            conn_id = next(iter(self._unwritten))
            calls = self._unwritten.pop(conn_id)
            try:
                await loop.run_in_executor(self._thread, partial(self._write, conn_id=conn_id, calls=calls))
            except JournalUnavailable as error:
                self._add(conn_id, calls)
                self._paused_until = loop.time() + PAUSE_SECONDS
                log.warning("The counts of calls to Zuora could not be kept yet: %s", error)
                return
