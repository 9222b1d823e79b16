"""Story: what a wait tells of its session while it lasts, and when it ends without one."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from airflow_mediation_provider.protocol.times import from_json, humanize, in_words, to_json
from airflow_mediation_provider.protocol.transition import Source

if TYPE_CHECKING:
    from collections.abc import Mapping
    from datetime import datetime


class Story:
    """The last status known of the session and of its meter, and what stands in the way of knowing more.

    :param status: the session's status at the begin, where it is known
    :param since: since when
    """

    __slots__ = ("note", "read", "read_since", "status", "status_since")

    def __init__(self, status: str | None, since: datetime | None) -> None:
        self.status = status
        self.status_since = since
        # What the meter shows, be it the session's own status or not.
        self.read: str | None = None
        self.read_since: datetime | None = None
        self.note = ""

    def saw(self, status: str, at: datetime) -> None:
        """Note what the meter shows."""
        if self.read_since is None or (status != self.read and at > self.read_since):
            self.read, self.read_since = status, at

    def change(self, status: str, since: datetime, subject: str, source: Source) -> str:
        """Take a new status of the session and return the line that says so.

        :param status: the status
        :param since: since when the session is known to have it
        :param subject: the session in words
        :param source: how that was learned
        """
        if self.status is None or self.status_since is None:
            line = f"{subject} is {status}"
        else:
            line = f"{self.status} -> {status} after {humanize(since - self.status_since)}"
        self.status, self.status_since, self.note = status, since, ""
        return f"{line}, by {source}"

    def take(self, status: str, at: datetime, note: str, subject: str, *, speaks: bool) -> list[str]:
        """Take a reading, and return what to log.

        :param speaks: whether it is the session's own status
        :param status: the status that was read
        :param at: when it was
        :param note: why more is not known, in words
        :param subject: the session in words
        """
        lines = []
        if speaks and status != self.status and self.read_since is not None:
            # The meter may show since long ago what the session, by a callout, left and came back to meanwhile.
            again = self.status_since is not None and self.read_since < self.status_since
            lines.append(self.change(status, at if again else self.read_since, subject, Source.POLL))
        elif speaks and self.note and not note:
            lines.append(f"the meter shows {status} again")
            self.note = ""
        return lines + self.hold_back(note)

    def hold_back(self, reason: str) -> list[str]:
        """Note why the session's status is not known just now, and return what to log: each reason once."""
        if not reason or reason == self.note:
            return []
        self.note = reason
        return [f"{reason}; waiting on"]

    def forget(self) -> None:
        """Forget the session's status: another session is told of from now on."""
        self.status = self.status_since = None
        self.note = ""

    def since(self, status: str, at: datetime) -> datetime:
        """Return since when the session has a status that became known at an instant."""
        return self.status_since if self.status == status and self.status_since else at

    def heartbeat(self, at: datetime, created_at: datetime) -> str:
        """Return how things stand."""
        if self.status is None or self.status_since is None:
            return f"{self.note or 'no status read yet'}, {humanize(at - created_at)} so far"
        note = f" ({self.note})" if self.note else ""
        return f"still {self.status}, {humanize(at - self.status_since)} so far{note}"

    def at_deadline(self, at: datetime) -> str:
        """Return how things stood when the deadline passed; follows the subject."""
        if self.status is None or self.status_since is None:
            return f"was not seen ({self.note or 'no status was read'})"
        note = f" ({self.note})" if self.note else ""
        since = self.status_since
        return f"was {self.status} since {in_words(since)}, for {humanize(at - since)}{note}"

    def last(self) -> tuple[str | None, datetime | None]:
        """Return the last status known, of the session, else of its meter, and since when."""
        return (self.read, self.read_since) if self.status is None else (self.status, self.status_since)

    def to_dict(self) -> dict[str, Any]:
        """Return the memory as plain JSON."""
        return {
            "status": self.status,
            "status_since": to_json(self.status_since),
            "read": self.read,
            "read_since": to_json(self.read_since),
            "note": self.note,
        }

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Story:
        """Make the memory from ``to_dict()``; what is missing is as at the wait's begin.

        :raises ValueError: a time is no instant
        """
        self = cls(data.get("status"), from_json(data.get("status_since")))
        self.read = data.get("read")
        self.read_since = from_json(data.get("read_since"))
        self.note = str(data.get("note", ""))
        return self
