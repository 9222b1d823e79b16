"""The engine's data: sessions, the meters that they belong to, and Zuora's refusals."""

from __future__ import annotations

import hashlib
from collections import deque
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Final

from airflow_mediation_provider.protocol.status import ANY_TERMINAL, RunType, SessionStatus

if TYPE_CHECKING:
    from airflow_mediation_provider.simulator.config import MeterConfig, RunPlan, Step

METER_UNKNOWN: Final = "70002103"
VERSION_UNKNOWN: Final = "70002104"
NOT_RUNNING: Final = "70002122"
STOP_IN_PROGRESS: Final = "70003043"
NOT_ENABLED: Final = "70002004"
NO_PERMISSION: Final = "70002006"
INVALID_PARAMETER: Final = "70002023"
ENTITY_MISSING: Final = "70002001"

_IDLE: Final = ANY_TERMINAL | {SessionStatus.PAUSED, SessionStatus.NEVER_RUN}


class Refusal(Exception):  # noqa: N818 - an answer of Zuora's, not an error of ours
    """Zuora would refuse the call.

    :param message: its message
    :param code: its code, ``None`` if Zuora documents none
    :param status: HTTP status
    :param headers: further headers of the reply
    """

    def __init__(
        self, message: str, code: str | None = None, status: int = 400, headers: dict[str, str] | None = None
    ) -> None:
        super().__init__(message)
        self.message = message
        self.code = code
        self.status = status
        self.headers = headers or {}


@dataclass(slots=True, eq=False)
class Session:
    """One run of a meter version.

    :param run_id: Zuora's internal ``id``, digits
    :param pending: the steps after the present one
    :param due: when the next step starts, seconds since the epoch; ``None``: not by itself
    :param changed: a number that grows with each change of any session's status
    """

    run_id: str
    meter_id: str
    version: str
    revision: int
    run_type: RunType
    plan: RunPlan
    streaming: bool
    started_at: float
    unique_key: str | None = None
    foreign: bool = False
    status: str = SessionStatus.NEVER_RUN
    previous_status: str | None = None
    ended_at: float | None = None
    pending: deque[Step] = field(default_factory=deque)
    due: float | None = None
    changed: int = 0

    @property
    def session_id(self) -> str:
        """Return the id that Zuora shows to users: ``R-`` and the run's id, padded."""
        return f"R-{int(self.run_id):08d}"

    @property
    def job_id(self) -> str:
        """Return the id of the job in the engine behind it: 32 hex digits."""
        return hashlib.md5(self.session_id.encode(), usedforsecurity=False).hexdigest()

    @property
    def live(self) -> bool:
        """Return whether it runs: neither ended nor paused."""
        return self.status not in _IDLE

    def to_dict(self) -> dict[str, object]:
        """Return the session for the control API."""
        return {
            "session_id": self.session_id,
            "id": self.run_id,
            "meter_id": self.meter_id,
            "version": self.version,
            "run_type": str(self.run_type),
            "status": self.status,
            "previous_status": self.previous_status,
            "started_at": instant(self.started_at),
            "ended_at": None if self.ended_at is None else instant(self.ended_at),
            "live": self.live,
            "foreign": self.foreign,
            "unique_key": self.unique_key,
            "records": self.plan.records,
            "errors": self.plan.errors,
        }


@dataclass(frozen=True, slots=True)
class SessionChange:
    """One change of a session's status, as observers get it (callouts are one of them).

    :param session: the session, in its state after the change
    :param previous: the status before; ``None`` for the first
    :param status: the status after
    :param at: when it changed, seconds since the epoch
    :param entry: ``seq`` of its entry in the log
    """

    session: Session
    previous: str | None
    status: str
    at: float
    entry: int


@dataclass(slots=True)
class Meter:
    """A meter, its sessions, and its position in the sequences of its configuration."""

    config: MeterConfig
    sessions: dict[str, list[Session]] = field(default_factory=dict)
    keys: dict[str, Session] = field(default_factory=dict)
    started: dict[RunType, int] = field(default_factory=lambda: dict.fromkeys(RunType, 0))
    stops: int = 0
    stale: dict[str, tuple[str, float]] = field(default_factory=dict)

    def next_plan(self, run_type: RunType) -> RunPlan:
        """Return the plan of the next run and advance the sequence; the last one repeats."""
        plans = self.config.runs if run_type is RunType.NORMAL else self.config.debug_runs
        index = self.started[run_type]
        self.started[run_type] += 1
        return plans[min(index, len(plans) - 1)]

    def next_stop_result(self) -> str:
        """Return where the next graceful stop ends and advance the sequence; the last one repeats."""
        results = self.config.stop_results
        self.stops += 1
        return results[min(self.stops, len(results)) - 1]

    def of(self, version: str) -> list[Session]:
        """Return the sessions of a version, by start."""
        return self.sessions.setdefault(version, [])

    def actual_status(self, version: str) -> str:
        """Return the version's status by ``status_of``, without staleness."""
        config = self.config
        shown = [s for s in self.of(version) if config.debug_visible or s.run_type is RunType.NORMAL]
        if not shown:
            return config.initial_status
        if config.status_of == "latest_change":
            return max(shown, key=lambda session: session.changed).status
        if config.status_of == "oldest_live":
            return next((session.status for session in shown if session.live), shown[-1].status)
        return shown[-1].status


def instant(at: float, nanoseconds: int = 0) -> str:
    """Return an instant in Zuora's format: UTC with nine digits of a second.

    :param at: seconds since the epoch
    :param nanoseconds: the last three digits, for which a float is too small
    """
    when = datetime.fromtimestamp(at, UTC)
    return f"{when:%Y-%m-%dT%H:%M:%S}.{when.microsecond * 1000 + nanoseconds % 1000:09d}Z"
