"""Poll a meter, or read the callout history, for Dags on sessions where Zuora cannot reach Airflow with callouts.

The triggers here fire no event themselves: the events of an ``AssetWatcher`` have no partition key, and Airflow merges
such events and strands some of them. So what they see goes to the API server, which emits the same asset events as for
a callout.
"""

from __future__ import annotations

import asyncio
from contextlib import suppress
from typing import TYPE_CHECKING, Any, Final

from airflow.triggers.base import BaseEventTrigger, TriggerEvent

from airflow_mediation_provider.protocol.sessions.journal_entry import JournalEntry
from airflow_mediation_provider.protocol.zuora.errors import MediationError, TransientError
from airflow_mediation_provider.protocol.zuora.requests import DEFAULT_VERSION

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from airflow_mediation_provider.feed.long_poll import FeedClient
    from airflow_mediation_provider.protocol.sessions.journal_entry import PollReading
    from airflow_mediation_provider.tasks.maintenance import HistoryReader
    from airflow_mediation_provider.triggerer.meter import ReadingSubscription

__all__ = ["CalloutHistoryTrigger", "MeterWatchTrigger"]

ARGUMENTS_VERSION: Final = 1
RETRY_SECONDS: Final = 5.0
"""Seconds until a failed report is repeated."""
_MOST_UNREPORTED: Final = 500
_SILENCE_SECONDS: Final = 15.0
"""Seconds until the API server is asked again for a turn to read the history, after it gave no answer."""


class MeterWatchTrigger(BaseEventTrigger):
    """Reports each change of a meter's status that a poll shows to the API server, as long as a Dag needs it.

    All triggers and sensors of a triggerer share one poll of a meter. Failed reports are repeated later, in order;
    changes while no triggerer ran are found as far as the meter's status still shows them.

    :param mediation_conn_id: Airflow connection of type ``mediation``
    :param meter_id: the meter
    :param version: version of the meter
    :param poll_interval: seconds between two polls of the meter, at least
    :param arguments_version: version of these arguments

    https://developer.zuora.com/v1-api-reference/api/meters/getrunstatusofspecificmeterversion
    """

    def __init__(
        self,
        *,
        mediation_conn_id: str,
        meter_id: str,
        version: str = DEFAULT_VERSION,
        poll_interval: float = 60.0,
        arguments_version: int = ARGUMENTS_VERSION,
    ) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.mediation_conn_id = mediation_conn_id
        self.meter_id = meter_id
        self.version = version
        self.poll_interval = poll_interval
        self.arguments_version = arguments_version
        self._status: str | None = None
        self._trouble = ""
        self._unreported: list[JournalEntry] = []
        self._failure = ""

    def serialize(self) -> tuple[str, dict[str, Any]]:
        """Return the class's path and the arguments to make this trigger again elsewhere."""
        names = ("mediation_conn_id", "meter_id", "version", "poll_interval", "arguments_version")
        return (
            f"{type(self).__module__}.{type(self).__qualname__}",
            {name: getattr(self, name) for name in names},
        )

    async def run(self) -> AsyncIterator[TriggerEvent]:
        """Watch until the triggerer ends this trigger; yields nothing."""
        from airflow_mediation_provider import triggerer

        feed = triggerer.open_feed(self.mediation_conn_id)
        subscription = triggerer.subscribe_to_readings(
            self.mediation_conn_id, self.meter_id, self.version, poll_interval=self.poll_interval
        )
        try:
            while True:
                try:
                    await self._step(subscription, feed)
                except Exception:  # no task would show the failure
                    self.log.exception("Watching meter %s failed unexpectedly, and continues", self.meter_id)
                    await asyncio.sleep(RETRY_SECONDS)
        finally:
            subscription.close()
            await feed.close()
        yield TriggerEvent(None)  # never reached: makes this a generator

    async def cleanup(self) -> None:
        """Let the hub close its connections if this was its last subscription."""
        from airflow_mediation_provider import triggerer

        await triggerer.settled()

    async def _step(self, subscription: ReadingSubscription, feed: FeedClient) -> None:
        """Take the next reading, or repeat a failed report."""
        with suppress(TimeoutError):
            async with asyncio.timeout(RETRY_SECONDS if self._unreported else None):
                self._note(await subscription.next())
        if self._unreported:
            await self._report(feed)

    def _note(self, seen: PollReading | MediationError) -> None:
        """Keep a reading to report: each change, and the first one, which the API server compares."""
        if isinstance(seen, MediationError):
            if str(seen) != self._trouble:
                self._trouble = str(seen)
                self.log.warning("Meter %s cannot be polled at the moment: %s", self.meter_id, seen)
            return
        if self._trouble:
            self._trouble = ""
            self.log.info("Meter %s can be polled again.", self.meter_id)
        if seen.status == self._status:
            return
        self._unreported.append(JournalEntry.of_poll(self.meter_id, seen, previous_status=self._status, drives=True))
        self._status = seen.status
        del self._unreported[:-_MOST_UNREPORTED]

    async def _report(self, feed: FeedClient) -> None:
        """Report the changes that the API server does not have yet, and keep those that it did not accept."""
        from airflow_mediation_provider.feed.flow import FeedUnavailableError

        batch = list(self._unreported)
        try:
            await feed.report(batch)
        except FeedUnavailableError as error:
            if str(error) != self._failure:
                self._failure = str(error)
                self.log.warning(
                    "Changes of meter %s start no Dag yet, and are reported again: %s", self.meter_id, error
                )
            return
        if self._failure:
            self._failure = ""
            self.log.info("The changes of meter %s were reported.", self.meter_id)
        self._unreported = [each for each in self._unreported if each not in batch]


class CalloutHistoryTrigger(BaseEventTrigger):
    """Reads the callout history of a connection into the journal, as long as a Dag needs it.

    All triggers of a connection share the journal's cursor: one reads at a time, and the shortest interval counts.
    Airflow may run it anywhere, twice, or again after a pause.

    :param mediation_conn_id: Airflow connection of type ``mediation``
    :param read_interval: seconds between two reads
    :param arguments_version: version of these arguments

    https://developer.zuora.com/v1-api-reference/api/operation/GET_CalloutHistory/
    """

    def __init__(
        self, *, mediation_conn_id: str, read_interval: float = 60.0, arguments_version: int = ARGUMENTS_VERSION
    ) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.mediation_conn_id = mediation_conn_id
        self.read_interval = read_interval
        self.arguments_version = arguments_version
        self._trouble = ""

    def serialize(self) -> tuple[str, dict[str, Any]]:
        """Return the class's path and the arguments to make this trigger again elsewhere."""
        names = ("mediation_conn_id", "read_interval", "arguments_version")
        return (
            f"{type(self).__module__}.{type(self).__qualname__}",
            {name: getattr(self, name) for name in names},
        )

    async def run(self) -> AsyncIterator[TriggerEvent]:
        """Read until the triggerer ends this trigger; yields nothing."""
        from airflow_mediation_provider import triggerer
        from airflow_mediation_provider.tasks.maintenance import HistoryReader
        from airflow_mediation_provider.tasks.state import utcnow

        feed = triggerer.open_feed(self.mediation_conn_id)
        reader = HistoryReader(self.read_interval, now=utcnow, tell=self.log.info)
        try:
            while True:
                pause = await self._step(reader, feed)
                await asyncio.sleep(pause)
        finally:
            await feed.close()
        yield TriggerEvent(None)  # never reached: makes this a generator

    async def _step(self, reader: HistoryReader, feed: FeedClient) -> float:
        """Take one turn, and return the seconds until the next one."""
        from airflow_mediation_provider import triggerer
        from airflow_mediation_provider.feed.flow import FeedUnavailableError

        try:
            pause = await triggerer.take_turn(self.mediation_conn_id, reader, feed)
        except FeedUnavailableError as error:
            self._warn(f"The callout history is not read, because the API server gave no answer: {error}")
            return _SILENCE_SECONDS
        except MediationError as error:
            self._warn(f"The callout history cannot be read at the moment: {error}")
            asked = error.retry_after if isinstance(error, TransientError) else None
            return max(self.read_interval, asked or 0.0)
        except Exception:  # no task would show the failure
            self.log.exception("Reading the callout history failed unexpectedly, and continues")
            return max(self.read_interval, _SILENCE_SECONDS)
        if self._trouble:
            self._trouble = ""
            self.log.info("The callout history can be read again.")
        return pause

    def _warn(self, line: str) -> None:
        """Log a failure once, until it changes."""
        if line != self._trouble:
            self._trouble = line
            self.log.warning(line)
