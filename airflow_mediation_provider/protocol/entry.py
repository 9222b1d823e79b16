"""Entry: one thing that was learned and is to be kept in the journal, whichever way it came.

A callout, an entry of the callout history, a poll or the reply to a run call each become one ``Entry``; the journal
writes one row for it. Source of the kinds:
https://docs.zuora.com/en/zuora-platform/extensibility/mediation/events/notifications-in-mediation
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from enum import StrEnum
from typing import TYPE_CHECKING, Any, Final

from airflow_mediation_provider.protocol.times import from_json, to_json, to_utc
from airflow_mediation_provider.protocol.transition import SessionTransition, Source

if TYPE_CHECKING:
    from datetime import datetime

# What the journal's column holds; a longer id is hashed.
NOTIFICATION_ID_LENGTH: Final = 190
_TEXTS: Final = ("notification_id", "meter_id", "meter_name", "session_id")


class EntryKind(StrEnum):
    """What an entry says: the three Mediation events, a poll, a test callout, or something that nobody could read."""

    STATUS_CHANGE = "status_change"
    POLL = "poll"
    PERIODIC = "periodic"
    EVENT_STORE_QUERY = "event_store_query"
    TEST = "test"
    UNPARSED = "unparsed"


@dataclass(frozen=True, slots=True, kw_only=True)
class Entry:
    """One row of the journal's transition table.

    :param kind: what it says
    :param observed_at: when it was learned; kept as a plain datetime in UTC
    :param source: how it was learned
    :param transition: a STATUS_CHANGE's, which names its session, or a POLL's, which names none; no other kind has one
    :param notification_id: what makes it the same thing told again: Zuora's id of the notification, ``run:<session>``
        or ``history:<hash>``
    :param meter_id: the meter, where it is named; taken from the transition where there is one, as the next two
    :param meter_name: the meter's name, where it is told
    :param session_id: the session, where it is named
    :param body: the fields as received, unknown ones too; of an UNPARSED one the raw text, the error and some headers
    :param drives: a POLL's alone: it stands in for callouts that the tenant cannot send, and drives assets
    :raises ValueError: kind and transition do not fit, or a time has no zone
    """

    kind: EntryKind
    observed_at: datetime
    source: Source
    transition: SessionTransition | None = None
    notification_id: str | None = None
    meter_id: str | None = None
    meter_name: str | None = None
    session_id: str | None = None
    body: dict[str, Any] = field(default_factory=dict)
    drives: bool = False

    def __post_init__(self) -> None:
        """Bring the time into UTC and let entry and transition say the same."""
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

    def to_dict(self) -> dict[str, Any]:
        """Return the entry as plain JSON, times as ISO 8601 in UTC."""
        return {
            "kind": str(self.kind),
            "observed_at": to_json(self.observed_at),
            "source": str(self.source),
            "transition": self.transition.to_dict() if self.transition else None,
            **{name: getattr(self, name) for name in _TEXTS},
            "body": self.body,
            "drives": self.drives,
        }

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Entry:
        """Make an entry from ``to_dict()``; unknown keys are left out.

        :raises ValueError: it is none; one sentence says which part
        """
        if not isinstance(data, Mapping):
            raise ValueError("an entry must be an object")
        body, transition = data.get("body") or {}, data.get("transition")
        if not isinstance(body, dict):
            raise ValueError("an entry's body must be an object")
        try:
            observed_at = from_json(data["observed_at"])
            if observed_at is None:
                raise KeyError("observed_at")
            return cls(
                kind=EntryKind(str(data["kind"])),
                observed_at=observed_at,
                source=Source(str(data["source"])),
                transition=None if transition is None else _transition(transition),
                body=body,
                drives=data.get("drives") is True,
                **{name: _text(name, data.get(name)) for name in _TEXTS},
            )
        except KeyError as error:
            raise ValueError(f"an entry lacks {error}") from None
        except (TypeError, AttributeError, OverflowError) as error:
            raise ValueError(f"an entry cannot be read: {error}") from None


def _transition(data: Any) -> SessionTransition:
    if not isinstance(data, Mapping):
        raise ValueError("an entry's transition must be an object")
    for name in ("meter_id", "status", "previous_status", *_TEXTS):
        _text(name, data.get(name))
    return SessionTransition.from_dict(data)


def _text(name: str, value: Any) -> str | None:
    if value is not None and not isinstance(value, str):
        raise ValueError(f"an entry's {name} must be text, not {type(value).__name__}")
    return value
