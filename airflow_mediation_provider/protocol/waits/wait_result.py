"""The end of a wait: its result, the lines to log, and how long an unreachable Zuora is tolerated.

The result as plain JSON is the payload of the trigger's event.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from enum import StrEnum
from typing import TYPE_CHECKING, Any, Final

from airflow_mediation_provider.protocol.times import from_json, humanize, in_words, to_json
from airflow_mediation_provider.protocol.transition import Source
from airflow_mediation_provider.protocol.waits.condition import Outcome
from airflow_mediation_provider.protocol.zuora.errors import (
    MediationError,
    PermanentError,
    UnknownRefusalError,
    UnusableAddressError,
)
from airflow_mediation_provider.protocol.zuora.flow import FORBIDDEN

if TYPE_CHECKING:
    from collections.abc import Mapping

    from airflow_mediation_provider.protocol.sessions.session_result import SessionResult

# How many refusals in a row, and for how long, end a wait: fewer can be the temporary fault of a gateway.
LASTING_REFUSALS: Final = 3
LASTING: Final = timedelta(minutes=5)


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
    :param session: the session, where a status ended the wait
    :param last_status: the last known status of the session, else of its meter
    :param last_status_since: since when it was seen, ISO 8601
    :param warning: one sentence for the user where the session may belong to another run; else empty
    """

    end: WaitEnd
    message: str
    session: SessionResult | None = None
    last_status: str | None = None
    last_status_since: str | None = None
    warning: str = ""

    @property
    def callout_at(self) -> datetime | None:
        """When the callout that ended the wait was received; ``None`` where no callout did."""
        session = self.session
        return from_json(session["observed_at"]) if session and session["evidence"] == Source.CALLOUT else None

    def over(self, conn_id: str) -> WaitResult:
        """Return the result with the Airflow connection of the wait, which the wait itself does not have."""
        if self.session is None:
            return self
        return replace(self, session={**self.session, "mediation_conn_id": conn_id})

    def to_dict(self) -> dict[str, Any]:
        """Return the result as plain JSON."""
        return {
            "end": str(self.end),
            "message": self.message,
            "session": self.session,
            "last_status": self.last_status,
            "last_status_since": self.last_status_since,
            "warning": self.warning,
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
            warning=str(data.get("warning") or ""),
        )


class Caution(str):
    """A line to log as a warning: what is set up does not work at present."""

    __slots__ = ()


@dataclass(frozen=True, slots=True)
class WaitUpdate:
    """The effect of one event on a wait.

    :param lines: what to log, once each
    :param result: the end of the wait, where it has ended
    :param settled: another poll that shows the same, beside the same sessions, would change nothing but the time of the
        last poll
    """

    lines: tuple[str, ...] = ()
    result: WaitResult | None = None
    settled: bool = False

    def log_lines(self, log: Any) -> None:
        """Log the lines.

        :param log: the task's logger
        """
        for line in self.lines:
            (log.warning if isinstance(line, Caution) else log.info)(line)


@dataclass(frozen=True, slots=True, kw_only=True)
class PendingEnd:
    """An end that a poll showed, held back for a short time because its callout is likely to follow.

    :param outcome: of the condition
    :param status: the status that was polled
    :param reason: why it is not certain
    :param at: when it was polled
    :param until: when it ends the wait unless a callout decides first
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
    def from_dict(cls, data: Mapping[str, Any]) -> PendingEnd:
        """Make one from ``to_dict()``.

        :raises ValueError: the outcome is unknown, or a time is not valid
        """
        at = from_json(data.get("at")) or datetime.min.replace(tzinfo=UTC)
        return cls(
            outcome=Outcome(data.get("outcome", "")),
            status=str(data.get("status", "")),
            reason=str(data.get("reason", "")),
            at=at,
            until=from_json(data.get("until")) or at,
        )


class Outage:
    """The failed attempts to read from Zuora, and how long they are tolerated.

    :param max_unreachable: the longest time without a good answer, counted from the first failed attempt
    :param answered: whether Zuora has ever given a good answer to what is read
    """

    __slots__ = ("_answered", "_max_unreachable", "_refusals", "_refused_since", "_since")

    def __init__(self, max_unreachable: timedelta, *, answered: bool) -> None:
        self._max_unreachable = max_unreachable
        self._answered = answered
        self._since: datetime | None = None
        self._refusals = 0
        self._refused_since: datetime | None = None

    @property
    def since(self) -> datetime | None:
        """The first failed attempt since the last good answer; ``None`` while Zuora answers."""
        return self._since

    @property
    def until(self) -> datetime | None:
        """When it ends a wait, unless Zuora answers before; ``None`` while Zuora answers."""
        return None if self._since is None else self._since + self._max_unreachable

    def answer(self, at: datetime) -> tuple[str, ...]:
        """Record a good answer, and return a line to log where it ends an outage."""
        since = self._since
        self._answered = True
        self.reset()
        return () if since is None else (f"Zuora reached again after {humanize(at - since)}",)

    def fault(self, error: MediationError, at: datetime) -> tuple[str, ...]:
        """Record a failed attempt, and return what to log: one line for each outage."""
        if isinstance(error, PermanentError):
            self._refusals += 1
            self._refused_since = self._refused_since or at
        else:
            self._refusals, self._refused_since = 0, None
        if self._since is not None:
            return ()
        self._since = at
        often = f"for up to {humanize(self._max_unreachable)}"
        if self._refusals:
            often = f"for {humanize(self._lasting)}, in case it is temporary"
        return (f"the status cannot be read: {str(error).rstrip('.')}; asking again {often}",)

    def end(self, error: MediationError, at: datetime) -> tuple[WaitEnd, str] | None:
        """Return how the last failed attempt ends the wait, with a message; ``None`` where it does not.

        What can never work ends it at once where Zuora never gave a good answer. Any other refusal ends it after
        ``LASTING_REFUSALS`` in a row over ``LASTING``, or at ``max_unreachable`` if that is earlier.
        """
        if not self._answered and self._can_never_work(error):
            return WaitEnd.MISCONFIGURED, str(error)
        if (
            self._refused_since is not None
            and self._refusals >= LASTING_REFUSALS
            and at - self._refused_since >= self._lasting
        ):
            return WaitEnd.MISCONFIGURED, str(error)
        if self._since is not None and at - self._since >= self._max_unreachable:
            if self._refusals > 1 and self._refused_since == self._since:
                return WaitEnd.MISCONFIGURED, str(error)
            outage = f"{humanize(at - self._since)}, since {in_words(self._since)}"
            return WaitEnd.UNREACHABLE, f"Zuora gave no good answer for {outage}: {error}"
        return None

    @property
    def _lasting(self) -> timedelta:
        return min(LASTING, self._max_unreachable)

    def _can_never_work(self, error: MediationError) -> bool:
        """Return whether no later attempt can succeed, as far as is known without any good answer.

        A first 403 is not final: a gateway answers with it too, while it starts.
        """
        if isinstance(error, UnusableAddressError):
            return True
        if not isinstance(error, PermanentError) or isinstance(error, UnknownRefusalError):
            return False
        return error.status_code != FORBIDDEN or self._refusals > 1

    def reset(self) -> None:
        """Restart the tolerance at its full length."""
        self._since = self._refused_since = None
        self._refusals = 0

    def to_dict(self) -> dict[str, Any]:
        """Return the outage as plain JSON."""
        return {
            "max_unreachable": self._max_unreachable.total_seconds(),
            "answered": self._answered,
            "since": to_json(self._since),
            "refusals": self._refusals,
            "refused_since": to_json(self._refused_since),
        }

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Outage:
        """Make an outage from ``to_dict()``; unknown keys are left out, missing ones get their initial value.

        :raises ValueError: a value is not a number or a time
        """
        self = cls(
            timedelta(seconds=float(data.get("max_unreachable", 3600))), answered=bool(data.get("answered", False))
        )
        self._since = from_json(data.get("since"))
        self._refusals = int(data.get("refusals", 0))
        if self._refusals:
            # Earlier forms have no time of the first refusal.
            self._refused_since = from_json(data.get("refused_since")) or self._since
        return self
