"""Outage: for how long Zuora has given no good answer, and whether that is an end or a bad moment.

Only a failed attempt ends anything, never the mere passing of time: a process that was stopped for hours, or a wait
whose process died, asks again first.
"""

from __future__ import annotations

from datetime import timedelta
from typing import TYPE_CHECKING, Any, Final

from airflow_mediation_provider.protocol.errors import MediationError, PermanentError
from airflow_mediation_provider.protocol.times import from_json, humanize, in_words, to_json
from airflow_mediation_provider.protocol.wait_result import WaitEnd

if TYPE_CHECKING:
    from collections.abc import Mapping
    from datetime import datetime

# Refusals in a row that end a wait which was answered before: one alone may be a gateway's hiccup.
LASTING_REFUSALS: Final = 3


class Outage:
    """One wait's patience with Zuora.

    :param max_unreachable: how long, from the first failed attempt on, Zuora may go without a good answer
    :param answered: whether Zuora has ever given a good answer to what the wait asks
    """

    __slots__ = ("_answered", "_max_unreachable", "_refusals", "_since")

    def __init__(self, max_unreachable: timedelta, *, answered: bool) -> None:
        self._max_unreachable = max_unreachable
        self._answered = answered
        self._since: datetime | None = None
        self._refusals = 0

    @property
    def since(self) -> datetime | None:
        """The first failed attempt since the last good answer; ``None`` while Zuora answers."""
        return self._since

    def answer(self, at: datetime) -> tuple[str, ...]:
        """Note a good answer and return what to log, which is nothing unless an outage is over."""
        self._answered = True
        self._refusals = 0
        if self._since is None:
            return ()
        line = f"Zuora reached again after {humanize(at - self._since)}"
        self._since = None
        return (line,)

    def fault(self, error: MediationError, at: datetime) -> tuple[str, ...]:
        """Note a failed attempt and return what to log: one line for an outage."""
        self._refusals = self._refusals + 1 if isinstance(error, PermanentError) else 0
        if self._since is not None:
            return ()
        self._since = at
        often = f"for up to {humanize(self._max_unreachable)}"
        if self._refusals:
            often = f"{LASTING_REFUSALS - 1} more times, in case that does not last"
        return (f"the status cannot be read: {str(error).rstrip('.')}; asking again {often}",)

    def end(self, error: MediationError, at: datetime) -> tuple[WaitEnd, str] | None:
        """Return how the failed attempt just noted ends the wait, with a message, or ``None``.

        A refusal ends it at once where Zuora never gave a good answer, and else when it lasts.
        """
        if self._refusals and (not self._answered or self._refusals >= LASTING_REFUSALS):
            return WaitEnd.MISCONFIGURED, str(error)
        if self._since is not None and at - self._since >= self._max_unreachable:
            outage = f"{humanize(at - self._since)}, since {in_words(self._since)}"
            return WaitEnd.UNREACHABLE, f"Zuora gave no good answer for {outage}: {error}"
        return None

    def forgive(self) -> None:
        """Begin anew, with the whole of the patience."""
        self._since = None
        self._refusals = 0

    def to_dict(self) -> dict[str, Any]:
        """Return the memory as plain JSON."""
        return {
            "max_unreachable": self._max_unreachable.total_seconds(),
            "answered": self._answered,
            "since": to_json(self._since),
            "refusals": self._refusals,
        }

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Outage:
        """Make the memory from ``to_dict()``; unknown keys are left out, what is missing is as at the wait's begin.

        :raises ValueError: a value is not a number or a time
        """
        self = cls(
            timedelta(seconds=float(data.get("max_unreachable", 3600))), answered=bool(data.get("answered", False))
        )
        self._since = from_json(data.get("since"))
        self._refusals = int(data.get("refusals", 0))
        return self
