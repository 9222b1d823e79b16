"""SessionCondition: what a task waits for; ``judge`` decides it from a session that is known exactly.

A condition is plain data, checked when it is made: an impossible one is a ``ValueError`` when the DAG is parsed, not a
task that waits for ever.
"""

from __future__ import annotations

from dataclasses import dataclass, fields
from enum import StrEnum
from typing import TYPE_CHECKING, Any, Final

from airflow_mediation_provider.protocol.status import DEBUG_ONLY, SUCCESS, TERMINAL, RunType, SessionStatus
from airflow_mediation_provider.protocol.times import from_json, to_json, to_utc

if TYPE_CHECKING:
    from collections.abc import Mapping
    from datetime import datetime

    from airflow_mediation_provider.protocol.lifecycle import SessionState

DEFAULT_VERSION: Final = "0.0.1"

# A session that exists has run, so none is ever NEVER_RUN; as the status before the first one it makes sense.
ALLOWED: Final[dict[RunType, tuple[str, ...]]] = {
    RunType.NORMAL: tuple(str(s) for s in SessionStatus if s not in DEBUG_ONLY and s is not SessionStatus.NEVER_RUN),
    RunType.DEBUG: tuple(str(s) for s in SessionStatus if s in DEBUG_ONLY),
}


class Outcome(StrEnum):
    """What is known of a condition."""

    WAITING = "WAITING"
    MET = "MET"
    FAILED = "FAILED"


@dataclass(frozen=True, slots=True)
class Verdict:
    """What exact knowledge says of a condition.

    :param outcome: whether the wait is over, and how
    :param reason: why it is not, in words, where the session's status alone does not say it
    """

    outcome: Outcome
    reason: str = ""


def validate_statuses(
    *,
    run_type: object = RunType.NORMAL,
    statuses: object = None,
    fail_on: object = None,
    previous_statuses: object = None,
) -> None:
    """Check status arguments when the DAG is parsed; what is a template or an XCom then is left for later.

    :param run_type: NORMAL or DEBUG
    :param statuses: the statuses that meet the condition: a name or several; ``None`` for the default
    :param fail_on: the statuses that fail it; ``None`` for the default
    :param previous_statuses: the statuses that must have come right before
    :raises ValueError: names the argument and the values that are allowed
    """
    if not _is_final(run_type):
        return
    kind = _run_type(run_type)
    wanted = _names("statuses", statuses, kind) if statuses is not None and _is_final(statuses) else ()
    failing = _names("fail_on", fail_on, kind) if fail_on is not None and _is_final(fail_on) else ()
    if previous_statuses is not None and _is_final(previous_statuses):
        _names("previous_statuses", previous_statuses, kind)
    _refuse_overlap(wanted, failing)


@dataclass(frozen=True, slots=True, kw_only=True)
class SessionCondition:
    """What to wait for: a session of a meter in one of some statuses.

    Without ``session_id`` it is the first session of the meter that starts at or after ``since``, and that one alone.

    :param meter_id: the meter, as the Mediation UI's URL shows it
    :param version: version of the meter; Zuora documents ``0.0.1`` only
    :param session_id: the session, for example ``R-00005468``
    :param run_type: NORMAL (live) or DEBUG (test)
    :param statuses: the statuses that meet the condition; default: the success of the run type
    :param previous_statuses: the statuses that must have come right before; only callouts tell
    :param fail_on: the statuses that fail the wait; default: the other terminal statuses of the run type
    :param since: with no session id: the earliest start of the session
    :param until: the deadline, an absolute instant
    :raises ValueError: an argument is empty, unknown or impossible; the message names it and what is allowed

    Source of the statuses: https://developer.zuora.com/v1-api-reference/api/meters/getrunstatusofspecificmeterversion
    """

    meter_id: str
    version: str = DEFAULT_VERSION
    session_id: str | None = None
    run_type: RunType = RunType.NORMAL
    statuses: tuple[str, ...] | None = None
    previous_statuses: tuple[str, ...] = ()
    fail_on: tuple[str, ...] | None = None
    since: datetime | None = None
    until: datetime | None = None

    def __post_init__(self) -> None:
        """Bring every field into its one form, or refuse it."""
        run_type = _run_type(self.run_type)
        statuses = (str(SUCCESS[run_type]),) if self.statuses is None else _names("statuses", self.statuses, run_type)
        if self.fail_on is None:
            fail_on = tuple(sorted(TERMINAL[run_type].difference(statuses)))
        else:
            fail_on = _names("fail_on", self.fail_on, run_type)
        _refuse_overlap(statuses, fail_on)
        values: dict[str, object] = {
            "meter_id": _text("meter_id", self.meter_id),
            "version": _text("version", self.version),
            "session_id": None if self.session_id is None else _text("session_id", self.session_id),
            "run_type": run_type,
            "statuses": statuses,
            "previous_statuses": _names("previous_statuses", self.previous_statuses, run_type),
            "fail_on": fail_on,
            "since": None if self.since is None else to_utc("since", self.since),
            "until": None if self.until is None else to_utc("until", self.until),
        }
        for name, value in values.items():
            object.__setattr__(self, name, value)
        if self.session_id is not None and self.since is not None:
            raise ValueError("session_id and since exclude each other: a session is either named or found by its start")
        if self.since is not None and self.until is not None and self.until < self.since:
            raise ValueError(f"until ({self.until.isoformat()}) is before since ({self.since.isoformat()})")

    def in_words(self) -> str:
        """Return the statuses that end the wait, in words."""
        words = " or ".join(self.statuses or ())
        if self.previous_statuses:
            words += f" right after {' or '.join(self.previous_statuses)}"
        return words + (f" ({' or '.join(self.fail_on)} fails it)" if self.fail_on else "")

    def outcome_of(self, status: str) -> Outcome:
        """Return what the status of the awaited session means for the condition, its previous status left aside."""
        if self.statuses and status in self.statuses:
            return Outcome.MET
        if self.fail_on and status in self.fail_on:
            return Outcome.FAILED
        return Outcome.WAITING

    def to_dict(self) -> dict[str, Any]:
        """Return the condition as plain JSON."""
        return {
            "meter_id": self.meter_id,
            "version": self.version,
            "session_id": self.session_id,
            "run_type": str(self.run_type),
            "statuses": list(self.statuses or ()),
            "previous_statuses": list(self.previous_statuses),
            "fail_on": list(self.fail_on or ()),
            "since": to_json(self.since),
            "until": to_json(self.until),
        }

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> SessionCondition:
        """Make a condition from ``to_dict()``; unknown keys are left out, missing optional ones get their default.

        :raises ValueError: a value is not allowed, or there is no meter id
        """
        known = {field.name: data[field.name] for field in fields(cls) if data.get(field.name) is not None}
        known.setdefault("meter_id", "")
        for key in ("since", "until"):
            if key in known:
                known[key] = from_json(known[key])
        return cls(**known)


def judge(condition: SessionCondition, session: SessionState) -> Verdict:
    """Decide a condition from the session that it speaks of, as callouts, callout history or a run reply tell it.

    :param condition: what is waited for
    :param session: the named session; without one, that which the condition is bound to: see ``binding``
    :return: MET or FAILED only where the session's own, unambiguous status says so
    """
    if session.run_type is not condition.run_type:
        return Verdict(
            Outcome.WAITING, f"it is a {session.run_type} session, and a {condition.run_type} one is awaited"
        )
    if session.ambiguous:
        return Verdict(Outcome.WAITING, "the callouts up to now do not tell its present status")
    outcome = condition.outcome_of(session.status)
    if outcome is Outcome.MET and condition.previous_statuses:
        if session.previous_status is None:
            return Verdict(Outcome.WAITING, f"the status before {session.status} is not known")
        if session.previous_status not in condition.previous_statuses:
            reason = f"{session.status} came after {session.previous_status}, which was not asked for"
            return Verdict(Outcome.WAITING, reason)
    return Verdict(outcome)


def _is_final(value: object) -> bool:
    """Say whether an argument is known when the DAG is parsed: neither a template nor something that a task returns."""
    if isinstance(value, str):
        return "{{" not in value and "{%" not in value
    if isinstance(value, list | tuple | set | frozenset):
        return all(_is_final(item) for item in value)
    return value is None


def _text(name: str, value: object) -> str:
    text = str(value).strip() if isinstance(value, str | int) and not isinstance(value, bool) else ""
    if not text:
        raise ValueError(f"{name} must be a non-empty text, not {value!r}")
    return text


def _run_type(value: object) -> RunType:
    try:
        return RunType(str(value).upper())
    except ValueError:
        raise ValueError(f"run_type must be one of {', '.join(RunType)}, not {value!r}") from None


def _names(name: str, value: object, run_type: RunType) -> tuple[str, ...]:
    """Return status names, once each and in the order given, or say what is allowed."""
    items = [value] if isinstance(value, str) else value
    if not isinstance(items, list | tuple | set | frozenset):
        raise ValueError(f"{name} must be a status or a list of statuses, not {value!r}")
    if name == "statuses" and not items:
        raise ValueError(f"statuses must name at least one of {', '.join(ALLOWED[run_type])}")
    allowed = ALLOWED[run_type] + ((str(SessionStatus.NEVER_RUN),) if name == "previous_statuses" else ())
    ordered = sorted(items, key=str) if isinstance(items, set | frozenset) else items
    names = tuple(dict.fromkeys(str(item).strip().upper() for item in ordered))
    for item in names:
        if item not in allowed:
            raise ValueError(f"{name}: a {run_type} session is never {item!r}; allowed are {', '.join(allowed)}")
    return names


def _refuse_overlap(statuses: tuple[str, ...], fail_on: tuple[str, ...]) -> None:
    both = [status for status in statuses if status in fail_on]
    if both:
        raise ValueError(f"{', '.join(both)} cannot be in both statuses and fail_on")
