"""SessionTransition: one change of a session's status, as Zuora documents the event, plus where and when we learned it.

Source: the *Meter Session Status Change* event,
https://docs.zuora.com/en/zuora-platform/extensibility/mediation/events/notifications-in-mediation
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from datetime import UTC, datetime
from enum import StrEnum
from typing import Any

from airflow_mediation_provider.protocol.status import RunType


class Source(StrEnum):
    """How something about a session was learned."""

    CALLOUT = "callout"
    HISTORY = "history"
    POLL = "poll"
    RUN = "run"


@dataclass(frozen=True, slots=True, kw_only=True)
class SessionTransition:
    """One change of one session's status; plain JSON with stable keys in XCom, asset events, feed and pages.

    :param meter_id: the meter, as text
    :param session_id: the session, for example ``R-00005468``; ``None`` only where a poll, which names none, says it
    :param status: the status after the change, by Zuora's name
    :param previous_status: the status before it; ``None`` where it is not known
    :param run_type: NORMAL or DEBUG
    :param started_at: the session's start by Zuora's clock, UTC
    :param ended_at: the session's end by Zuora's clock, UTC
    :param observed_at: when we learned of the change, UTC
    :param source: how we learned of it
    :param notification_id: Zuora's id of the notification, the same for each of its attempts
    """

    meter_id: str
    status: str
    observed_at: datetime
    source: Source
    session_id: str | None = None
    meter_name: str | None = None
    run_type: RunType = RunType.NORMAL
    previous_status: str | None = None
    started_at: datetime | None = None
    ended_at: datetime | None = None
    notification_id: str | None = None

    def to_dict(self) -> dict[str, Any]:
        """Return the transition as plain JSON: every field by its name, times as ISO 8601 in UTC."""
        return {
            key: value.astimezone(UTC).isoformat() if isinstance(value, datetime) else value and str(value)
            for key, value in asdict(self).items()
        }

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> SessionTransition:
        """Make a transition from ``to_dict()``; keys that are not its fields (``evidence``, ``certain``) are left out.

        :raises KeyError: a required key is missing
        :raises ValueError: a time is not ISO 8601, or the source or run type is unknown
        """
        known = {field.name: data.get(field.name) for field in fields(cls)}
        for key in ("started_at", "ended_at", "observed_at"):
            if isinstance(known[key], str):
                known[key] = datetime.fromisoformat(known[key]).astimezone(UTC)
        for key in ("meter_id", "status", "observed_at", "source"):
            if known[key] is None:
                raise KeyError(key)
        known["source"] = Source(known["source"])
        known["run_type"] = RunType(known["run_type"] or RunType.NORMAL)
        return cls(**known)
