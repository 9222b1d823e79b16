"""SessionTransition: one change of a session's status, as Zuora documents the event, plus when and how we received it.

Source: the *Meter Session Status Change* event,
https://docs.zuora.com/en/zuora-platform/extensibility/mediation/events/notifications-in-mediation
"""

from __future__ import annotations

from dataclasses import dataclass, fields
from datetime import UTC, datetime
from enum import StrEnum
from typing import TYPE_CHECKING, Any

import pendulum

from airflow_mediation_provider.protocol.status import RunType, run_type_of_report

if TYPE_CHECKING:
    from collections.abc import Mapping

__all__ = ["SessionTransition", "Source"]

_TIMES = ("started_at", "ended_at", "observed_at")


class Source(StrEnum):
    """How a fact about a session was received."""

    CALLOUT = "callout"
    HISTORY = "history"
    POLL = "poll"
    RUN = "run"


@dataclass(frozen=True, slots=True, kw_only=True)
class SessionTransition:
    """One change of one session's status; plain JSON with stable keys in XCom, asset events, feed and pages.

    :param meter_id: the meter, as text
    :param session_id: the session, for example ``R-00005468``; ``None`` only for a poll, which names no session
    :param status: the status after the change, by Zuora's name
    :param previous_status: the status before it; ``None`` where it is not known
    :param run_type: NORMAL, DEBUG, or another run type that Zuora reported; see ``run_type_of_report``
    :param started_at: the session's start by Zuora's clock; kept as pendulum's ``DateTime`` in UTC, as all three times
    :param ended_at: the session's end by Zuora's clock
    :param observed_at: when we received the change
    :param source: how we received it
    :param notification_id: Zuora's id of the notification, the same for each of its attempts
    :raises ValueError: a time has no time zone
    """

    meter_id: str
    status: str
    observed_at: datetime
    source: Source
    session_id: str | None = None
    meter_name: str | None = None
    run_type: str = RunType.NORMAL
    previous_status: str | None = None
    started_at: datetime | None = None
    ended_at: datetime | None = None
    notification_id: str | None = None

    def __post_init__(self) -> None:
        """Convert every time to pendulum's type in UTC, and normalize the run type."""
        object.__setattr__(self, "run_type", run_type_of_report(self.run_type))
        for name in _TIMES:
            value = getattr(self, name)
            if value is None:
                continue
            if value.utcoffset() is None:
                raise ValueError(f"{name} must have a time zone, not {value!r}")
            object.__setattr__(self, name, _in_utc(value))

    def to_dict(self) -> dict[str, Any]:
        """Return the transition as plain JSON: every field by its name, times as ISO 8601 in UTC."""
        values = ((field.name, getattr(self, field.name)) for field in fields(self))
        return {
            name: value if value is None else value.isoformat() if isinstance(value, datetime) else str(value)
            for name, value in values
        }

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> SessionTransition:
        """Make a transition from ``to_dict()``; keys that are not its fields (``evidence``, ``certain``) are left out.

        :raises KeyError: a required key is missing
        :raises ValueError: a time is not ISO 8601 with an offset, or the source is unknown
        """
        known = {field.name: data.get(field.name) for field in fields(cls)}
        for key in _TIMES:
            if isinstance(known[key], str):
                known[key] = datetime.fromisoformat(str(known[key]))
        for key in ("meter_id", "status", "observed_at", "source"):
            if known[key] is None:
                raise KeyError(key)
        known["source"] = Source(str(known["source"]))
        return cls(**known)  # type: ignore[arg-type]


def _in_utc(value: datetime) -> pendulum.DateTime:
    """Return an aware datetime as pendulum's. Built by hand: ``pendulum.instance`` takes ten times as long."""
    if value.tzinfo is not pendulum.UTC:
        value = value.astimezone(UTC)
    elif type(value) is pendulum.DateTime:
        return value
    time = (value.hour, value.minute, value.second, value.microsecond)
    return pendulum.DateTime(value.year, value.month, value.day, *time, tzinfo=pendulum.UTC)
