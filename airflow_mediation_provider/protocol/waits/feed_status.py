"""Feed status: whether a wait receives Zuora's callouts over the feed, or relies on polls alone.

The callout history is as good as callouts: it reports the same changes, only later. Where both are set up, callouts
come first, and the history repairs what they lost.

The status becomes LOST or UNFOUND only after some time of silence: a restarting API server must not cause polls of
every meter, and a single lost answer changes nothing. Worker and triggerer use the same times, from this module.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import timedelta
from enum import StrEnum
from typing import TYPE_CHECKING, Final

from airflow_mediation_provider.protocol.times import humanize

if TYPE_CHECKING:
    from airflow_mediation_provider.protocol.wire import HistoryStatus

LOST_SECONDS: Final = 10.0
"""After this long without an answer the feed is lost, and polls return to their own pace."""
UNFOUND_SECONDS: Final = 60.0
"""After this long a feed that has never answered counts as missing."""


class FeedStatus(StrEnum):
    """Whether a wait receives callouts."""

    READ = "read"
    """The feed answers, and the connection accepts callouts, or its callout history is being read."""
    LOST = "lost"
    """It was READ, and the feed does not answer at present; or the callout history is not being read at present."""
    OFF = "off"
    """The feed answers, and the connection accepts no callouts."""
    UNFOUND = "unfound"
    """No feed was found."""


@dataclass(frozen=True, slots=True)
class FeedStatusChange:
    """A new feed status.

    :param callouts: the status
    :param words: the same as text, for the task's log
    :param remedy: what to set up where callouts cannot be received
    :param late: where it is READ, how much later than a callout the history reports a change
    """

    callouts: FeedStatus
    words: str
    remedy: str = ""
    late: timedelta = timedelta()

    @property
    def silent(self) -> bool:
        """Whether neither callouts nor their history reach the wait."""
        return self.callouts in (FeedStatus.LOST, FeedStatus.UNFOUND)


class FeedMonitor:
    """The feed status by the feed's answers to the requests of one wait, or of all waits of a hub.

    An answer makes it READ or OFF, and LOST where the callout history is set up and not being read. Silence changes the
    status only after the time in the table. Each change is returned once.

    ==========  ===========================
    from        silent
    ==========  ===========================
    ``None``    UNFOUND after 60 s
    READ        LOST after 10 s
    OFF         OFF: nothing could be missed
    LOST        LOST
    UNFOUND     UNFOUND
    ==========  ===========================

    :param conn_id: the Airflow connection, for messages
    :param cross_check: seconds between two polls while callouts are read, for messages
    :param callouts: the status from an earlier process; ``None``: the feed has not been asked, or not answered yet
    :param silent_since: since when every answer was missing; seconds of the clock of ``at``
    :param late: of the status from an earlier process
    """

    def __init__(
        self,
        conn_id: str,
        *,
        cross_check: float,
        callouts: FeedStatus | None = None,
        silent_since: float | None = None,
        late: timedelta = timedelta(),
    ) -> None:
        self.callouts = callouts
        self._late = late
        self.silent_since = silent_since
        self._conn_id = conn_id
        self._cross_check = cross_check

    @property
    def has_callouts(self) -> bool:
        """Whether the known sessions include those of callouts, not only those of run replies."""
        return self.callouts in (FeedStatus.READ, FeedStatus.LOST)

    @property
    def due(self) -> float | None:
        """When silence changes the status; ``None``: the feed answers, or silence changes the status no further."""
        longest = {None: UNFOUND_SECONDS, FeedStatus.READ: LOST_SECONDS}.get(self.callouts)
        return None if self.silent_since is None or longest is None else self.silent_since + longest

    def answered(
        self, *, callouts: bool, address: str | None, history: HistoryStatus | None = None
    ) -> FeedStatusChange | None:
        """Process an answer, and return the status where it is new.

        :param callouts: whether the connection accepts callouts
        :param address: where the feed was found
        :param history: how the callout history of a connection without callouts is read, where it is
        """
        self.silent_since = None
        rare = humanize(timedelta(seconds=self._cross_check))
        if history is not None and not callouts:
            words = f"the callout history of connection {self._conn_id!r}"
            if not history.read:
                words = f"{words} is not being read just now, polling meanwhile"
                return self._become(FeedStatusChange(FeedStatus.LOST, words))
            late = timedelta(seconds=history.late)
            words = f"{words} is read and has each change within {humanize(late)} by {address}"
            return self._become(
                FeedStatusChange(FeedStatus.READ, f"{words}; polls cross-check it every {rare}", late=late)
            )
        if callouts:
            words = f"callouts of connection {self._conn_id!r} are read at {address}"
            return self._become(FeedStatusChange(FeedStatus.READ, f"{words}; polls cross-check them every {rare}"))
        return self._become(
            FeedStatusChange(
                FeedStatus.OFF,
                f"connection {self._conn_id!r} takes no callouts according to {address}",
                "give it callout authentication and let Zuora send them (see 'airflow mediation callout-template'), or "
                "have the callout history read",
            )
        )

    def silent(self, at: float, reason: str) -> FeedStatusChange | None:
        """Process a missing answer, and return the status where it is new.

        :param at: the time now, in seconds
        :param reason: why there is none
        """
        if self.silent_since is None:
            self.silent_since = at
        if self.due is None or at < self.due:
            return None
        if self.callouts is FeedStatus.READ:
            words = f"callouts cannot be read just now, polling meanwhile ({reason})"
            return self._become(FeedStatusChange(FeedStatus.LOST, words))
        return self._become(
            FeedStatusChange(
                FeedStatus.UNFOUND,
                f"callouts cannot be read ({reason})",
                "check the API server, or set [mediation] feed_url to its address with /mediation at the end",
            )
        )

    def _become(self, change: FeedStatusChange) -> FeedStatusChange | None:
        new = change.callouts is not self.callouts
        if change.callouts is FeedStatus.READ:
            new = new or change.late != self._late
            self._late = change.late
        self.callouts = change.callouts
        return change if new else None
