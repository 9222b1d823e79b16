"""What a wait hands over: the lines to log, and its end, which as plain JSON is the payload of the trigger's event."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime
from enum import StrEnum
from typing import TYPE_CHECKING, Any

from airflow_mediation_provider.protocol.condition import Outcome
from airflow_mediation_provider.protocol.times import from_json, to_json
from airflow_mediation_provider.protocol.transition import Source

if TYPE_CHECKING:
    from collections.abc import Mapping


class WaitEnd(StrEnum):
    """How a wait ended."""

    MET = "MET"
    FAILED = "FAILED"
    TIMED_OUT = "TIMED_OUT"
    UNREACHABLE = "UNREACHABLE"
    MISCONFIGURED = "MISCONFIGURED"
    UNCERTAIN = "UNCERTAIN"


@dataclass(frozen=True, slots=True, kw_only=True)
class WaitResult:
    """The end of a wait; as plain JSON it is the payload of the trigger's event.

    :param end: how it ended
    :param message: one sentence for the user
    :param session: ``SessionTransition.to_dict()`` with ``evidence`` and ``certain``, where a status ended the wait
    :param last_status: the last status known, of the session, else of its meter
    :param last_status_since: since when it was seen, ISO 8601
    """

    end: WaitEnd
    message: str
    session: dict[str, Any] | None = None
    last_status: str | None = None
    last_status_since: str | None = None

    @property
    def callout_at(self) -> datetime | None:
        """When the callout came that it rests on; ``None`` where it rests on none."""
        session = self.session or {}
        return from_json(session["observed_at"]) if session.get("evidence") == Source.CALLOUT else None

    def to_dict(self) -> dict[str, Any]:
        """Return the result as plain JSON."""
        return {
            "end": str(self.end),
            "message": self.message,
            "session": self.session,
            "last_status": self.last_status,
            "last_status_since": self.last_status_since,
        }

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> WaitResult:
        """Make a result from ``to_dict()``; unknown keys are left out.

        :raises ValueError: ``end`` is missing or unknown
        """
        return cls(
            end=WaitEnd(data.get("end", "")),
            message=str(data.get("message", "")),
            session=data.get("session"),
            last_status=data.get("last_status"),
            last_status_since=data.get("last_status_since"),
        )


@dataclass(frozen=True, slots=True)
class WaitUpdate:
    """What one reading, fault or tick brought.

    :param lines: what to log, once each
    :param result: the end of the wait, where it has come
    """

    lines: tuple[str, ...] = ()
    result: WaitResult | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class HeldBack:
    """An end that a poll showed, kept for a moment because the callout of it is likely on its way.

    :param outcome: of the condition
    :param status: the status that was read
    :param reason: why it is not certain
    :param at: when it was read
    :param until: when it counts
    """

    outcome: Outcome
    status: str
    reason: str
    at: datetime
    until: datetime

    def to_dict(self) -> dict[str, Any]:
        """Return it as plain JSON."""
        return {
            "outcome": str(self.outcome),
            "status": self.status,
            "reason": self.reason,
            "at": to_json(self.at),
            "until": to_json(self.until),
        }

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> HeldBack:
        """Make one from ``to_dict()``.

        :raises ValueError: the outcome is unknown, or a time is no instant
        """
        at = from_json(data.get("at")) or datetime.min.replace(tzinfo=UTC)
        return cls(
            outcome=Outcome(data.get("outcome", "")),
            status=str(data.get("status", "")),
            reason=str(data.get("reason", "")),
            at=at,
            until=from_json(data.get("until")) or at,
        )
