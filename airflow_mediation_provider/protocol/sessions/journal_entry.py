"""JournalEntry: one fact that the journal stores, regardless of how it was received.

A callout, a record of the callout history, a poll and the reply to a run call each become one ``JournalEntry``; the
journal writes one row for it. Source of the kinds:
https://docs.zuora.com/en/zuora-platform/extensibility/mediation/events/notifications-in-mediation
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from enum import StrEnum
from typing import TYPE_CHECKING, Any, Final

from airflow_mediation_provider.protocol.times import Instant, to_utc
from airflow_mediation_provider.protocol.transition import SessionTransition, Source

if TYPE_CHECKING:
    from datetime import datetime


# The size of the journal's column; a longer id is hashed.
NOTIFICATION_ID_LENGTH: Final = 190
_TEXTS: Final = ("notification_id", "meter_id", "meter_name", "session_id")


class EntryKind(StrEnum):
    """What an entry is: one of the three Mediation events, a poll, a test callout, or an unparsed callout."""

    STATUS_CHANGE = "status_change"
    POLL = "poll"
    PERIODIC = "periodic"
    EVENT_STORE_QUERY = "event_store_query"
    TEST = "test"
    UNPARSED = "unparsed"


@dataclass(frozen=True, slots=True)
class PollReading:
    """One status read from ``runStatus``.

    :param status: Zuora's name of the status
    :param read_at: when the request was *sent*: the status was read then at the earliest
    """

    status: str
    read_at: datetime

    def __post_init__(self) -> None:
        """Convert the time to plain UTC: a thousand waits compare it."""
        object.__setattr__(self, "read_at", to_utc("read_at", self.read_at))


@dataclass(frozen=True, slots=True, kw_only=True)
class JournalEntry:
    """One row of the journal's transition table.

    :param kind: what it is
    :param observed_at: when it was received; kept as a plain datetime in UTC
    :param source: how it was received
    :param transition: of a STATUS_CHANGE, which names its session, or a POLL, which names none; no other kind has one
    :param notification_id: equal for repeated reports of the same fact: Zuora's id of the notification,
        ``run:<session>`` or ``history:<hash>``
    :param meter_id: the meter, where it is named; taken from the transition where there is one, like the next two
    :param meter_name: the meter's name, where it was reported
    :param session_id: the session, where it is named
    :param body: the fields as received, unknown ones too; of an UNPARSED one the raw text, the error and some headers
    :param drives: only of a POLL: it replaces callouts that the tenant cannot send, and drives assets
    :raises ValueError: kind and transition do not fit, or a time has no zone
    """

    kind: EntryKind
    observed_at: Instant
    source: Source
    transition: SessionTransition | None = None
    notification_id: str | None = None
    meter_id: str | None = None
    meter_name: str | None = None
    session_id: str | None = None
    body: dict[str, Any] = field(default_factory=dict)
    drives: bool = False

    def __post_init__(self) -> None:
        """Convert the time to UTC, and copy the transition's ids into the entry."""
        object.__setattr__(self, "observed_at", to_utc("observed_at", self.observed_at))
        wanted = {EntryKind.STATUS_CHANGE: "one that names its session", EntryKind.POLL: "one that names no session"}
        transition = self.transition
        fits = (
            transition is None
            if self.kind not in wanted
            else transition is not None and (transition.session_id is None) is (self.kind is EntryKind.POLL)
        )
        if not fits:
            raise ValueError(f"the transition of a {self.kind} entry must be {wanted.get(self.kind, 'missing')}")
        if self.drives and self.kind is not EntryKind.POLL:
            raise ValueError(f"a {self.kind} entry cannot drive assets as a poll does")
        if transition is None:
            return
        notification_id = self.notification_id or transition.notification_id
        if transition.notification_id != notification_id:
            transition = replace(transition, notification_id=notification_id)
        object.__setattr__(self, "transition", transition)
        for name in _TEXTS:
            object.__setattr__(self, name, getattr(transition, name))

    @classmethod
    def of_poll(
        cls, meter_id: str, reading: PollReading, *, previous_status: str | None = None, drives: bool = False
    ) -> JournalEntry:
        """Return the entry of a poll: it names the meter, because a poll names no session.

        :param reading: the status polled, and when the poll was sent
        :param previous_status: the status of the poll before, where that was another one
        :param drives: whether it drives assets
        """
        transition = SessionTransition(
            meter_id=meter_id,
            status=reading.status,
            previous_status=previous_status,
            observed_at=reading.read_at,
            source=Source.POLL,
        )
        return cls(
            kind=EntryKind.POLL,
            observed_at=reading.read_at,
            source=Source.POLL,
            transition=transition,
            drives=drives,
        )
