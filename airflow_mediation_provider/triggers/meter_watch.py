"""Watch a meter for DAGs that are scheduled on its sessions, where Zuora cannot reach Airflow with callouts.

It fires no event of its own. What an ``AssetWatcher`` fires has no partition key, and Airflow merges such events and
strands some of them; so the API server is told of each change, and emits what a callout would have made it emit.
"""

from __future__ import annotations

import asyncio
from contextlib import suppress
from typing import TYPE_CHECKING, Any, Final

from airflow.triggers.base import BaseEventTrigger, TriggerEvent

from airflow_mediation_provider.protocol.api import DEFAULT_VERSION
from airflow_mediation_provider.protocol.entry import Entry, EntryKind
from airflow_mediation_provider.protocol.errors import MediationError
from airflow_mediation_provider.protocol.transition import SessionTransition, Source

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from airflow_mediation_provider.protocol.reading import PollReading
    from airflow_mediation_provider.watch.feed_client import FeedClient
    from airflow_mediation_provider.watch.onlooker import Onlooker

ARGUMENTS_VERSION: Final = 1
RETRY_SECONDS: Final = 5.0
"""Until the API server is told again what it could not be told."""
_MOST_UNTOLD: Final = 500


class MeterWatchTrigger(BaseEventTrigger):
    """Tells the API server of each change of a meter's status that a poll shows, as long as a DAG asks for it.

    All triggers and sensors of a triggerer share one poll of a meter. What could not be told is told later, in its
    order; what happened while no triggerer ran is seen as far as the meter's status still shows it.

    :param mediation_conn_id: Airflow connection of type ``mediation``
    :param meter_id: the meter
    :param version: version of the meter
    :param poll_interval: seconds between two looks at the meter, at least
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
        self._untold: list[Entry] = []
        self._untold_because = ""

    def serialize(self) -> tuple[str, dict[str, Any]]:
        """Return the class's path and the arguments to make this trigger anew elsewhere."""
        names = ("mediation_conn_id", "meter_id", "version", "poll_interval", "arguments_version")
        return (
            f"{type(self).__module__}.{type(self).__qualname__}",
            {name: getattr(self, name) for name in names},
        )

    async def run(self) -> AsyncIterator[TriggerEvent]:
        """Watch until the triggerer ends this; yields nothing."""
        from airflow_mediation_provider import watch

        feed = watch.open_feed(self.mediation_conn_id)
        onlooker = watch.look_on(self.mediation_conn_id, self.meter_id, self.version, poll_interval=self.poll_interval)
        try:
            while True:
                try:
                    await self._step(onlooker, feed)
                except Exception:  # there is no task whose failure anybody would see
                    self.log.exception("Watching meter %s failed unexpectedly, and goes on", self.meter_id)
                    await asyncio.sleep(RETRY_SECONDS)
        finally:
            onlooker.close()
            await feed.close()
        yield TriggerEvent(None)  # never reached: it makes a generator of this

    async def cleanup(self) -> None:
        """Let the hub close its connections if this was its last onlooker."""
        from airflow_mediation_provider import watch

        await watch.settled()

    async def _step(self, onlooker: Onlooker, feed: FeedClient) -> None:
        """Take the next reading, or tell again what could not be told."""
        with suppress(TimeoutError):
            async with asyncio.timeout(RETRY_SECONDS if self._untold else None):
                self._note(await onlooker.next())
        if self._untold:
            await self._tell(feed)

    def _note(self, seen: PollReading | MediationError) -> None:
        """Keep what is to be told: each change, and what was seen first, which the API server compares."""
        if isinstance(seen, MediationError):
            if str(seen) != self._trouble:
                self._trouble = str(seen)
                self.log.warning("Meter %s is not seen at the moment: %s", self.meter_id, seen)
            return
        if self._trouble:
            self._trouble = ""
            self.log.info("Meter %s is seen again.", self.meter_id)
        if seen.status == self._status:
            return
        transition = SessionTransition(
            meter_id=self.meter_id,
            status=seen.status,
            previous_status=self._status,
            observed_at=seen.read_at,
            source=Source.POLL,
        )
        self._status = seen.status
        self._untold.append(
            Entry(kind=EntryKind.POLL, observed_at=seen.read_at, source=Source.POLL, transition=transition, drives=True)
        )
        del self._untold[:-_MOST_UNTOLD]

    async def _tell(self, feed: FeedClient) -> None:
        """Tell the API server all that it does not know yet, or keep it."""
        from airflow_mediation_provider.watch.feed_client import FeedLostError

        telling = list(self._untold)
        try:
            await feed.report(telling)
        except FeedLostError as error:
            if str(error) != self._untold_because:
                self._untold_because = str(error)
                self.log.warning("Changes of meter %s start no DAG yet, and are told again: %s", self.meter_id, error)
            return
        if self._untold_because:
            self._untold_because = ""
            self.log.info("What was seen of meter %s is told.", self.meter_id)
        self._untold = [each for each in self._untold if each not in telling]
