"""SessionCondition: what a task waits for. ``judge`` decides it from a session whose state is known exactly.

A condition is plain data, checked when it is made: an impossible one is a ``ValueError`` when the Dag is parsed, not a
task that waits for ever.

A ``Subject`` is the session or meter that a task's arguments name. A session object contains its meter, version, run
type and connection; an argument that contradicts it is an error, because a value copied by hand is more often wrong.
"""

from __future__ import annotations

import ast
import json
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field, fields
from enum import StrEnum
from typing import TYPE_CHECKING, Any, Final

from airflow_mediation_provider.protocol.ids import connection_id_of, id_of
from airflow_mediation_provider.protocol.sessions.window import Window, check_window
from airflow_mediation_provider.protocol.status import (
    ANY_TERMINAL,
    DEBUG_ONLY,
    SUCCESS,
    RunType,
    run_types_of,
    status_before,
    status_name,
    stored_run_type,
    warn_of_unknown,
)
from airflow_mediation_provider.protocol.times import from_json, to_json, to_utc
from airflow_mediation_provider.protocol.zuora.requests import DEFAULT_VERSION

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from datetime import datetime

    from airflow_mediation_provider.protocol.sessions.lifecycle import SessionState

DEFAULT_CONNECTION: Final = "mediation_default"
SUBJECT_ARGUMENTS: Final = ("session", "session_id", "meter_id", "version", "run_type", "mediation_conn_id")
# Far more than a session's text needs; Python's parser is not meant for long texts.
_LONGEST_TEXT: Final = 20_000
_EXPECTED: Final = (
    "session must be the output of a RunMeterOperator or MeterSessionSensor (run.output), or triggering_session()"
)


class Outcome(StrEnum):
    """The state of a condition."""

    WAITING = "WAITING"
    MET = "MET"
    FAILED = "FAILED"


class OtherPrevious(StrEnum):
    """What happens where the status was reached from another one than those in ``previous_statuses``."""

    WAIT = "wait"
    FAIL = "fail"
    SKIP = "skip"

    @classmethod
    def of(cls, value: object, previous_statuses: object) -> OtherPrevious:
        """Return the member of a value.

        :param previous_statuses: the argument that it belongs to
        :raises ValueError: there is none, or it belongs to nothing; names the argument and what is allowed
        """
        if value not in list(cls):
            raise ValueError(f"on_other_previous must be one of {', '.join(cls)}, not {value!r}")
        if value != cls.WAIT and not previous_statuses:
            raise ValueError("on_other_previous needs previous_statuses: without it, any status may come before")
        return cls(str(value))


@dataclass(frozen=True, slots=True)
class Judgement:
    """The outcome of a condition by exact reports.

    :param outcome: whether the wait is over, and how
    :param reason: why it is not, where the session's status alone does not show it
    """

    outcome: Outcome
    reason: str = ""


def validate_statuses(
    *,
    run_type: object = None,
    statuses: object = None,
    fail_on: object = None,
    previous_statuses: object = None,
) -> None:
    """Check status arguments when the Dag is parsed; templates and XComs are checked later, when they are rendered.

    :param run_type: NORMAL, DEBUG or a list of both; ``None``: not known
    :param statuses: the statuses that meet the condition: a name or several; ``None`` for the default
    :param fail_on: the statuses that fail it; ``None`` for the default
    :param previous_statuses: the statuses that must have come right before
    :raises ValueError: the message names the argument and its fault

    Warns of a status that Zuora does not document.
    """
    given = {"statuses": statuses, "fail_on": fail_on, "previous_statuses": previous_statuses}
    names = {name: _names(name, value) for name, value in given.items() if value is not None and _is_final(value)}
    if names.get("previous_statuses") == ():
        raise ValueError("previous_statuses must name at least one status; leave it out for any")
    for name, each in names.items():
        warn_of_unknown(name, each, stacklevel=4)
    _refuse_overlap(names.get("statuses", ()), names.get("fail_on", ()))
    if run_type is not None and _is_final(run_type):
        refuse_tests("statuses", run_types_of(run_type), names.get("statuses", ()))


@dataclass(frozen=True, slots=True, kw_only=True)
class SessionCondition:
    """What to wait for: a session of a meter in one of some statuses.

    Without ``session_id`` it is only the first session of the meter that starts at or after ``since`` and before
    ``before``.

    :param meter_id: the meter, as the Mediation UI's URL shows it
    :param version: version of the meter; Zuora documents ``0.0.1`` only
    :param session_id: the session, for example ``R-00005468``
    :param run_types: NORMAL (live), DEBUG (test) or both: a session of any of them
    :param statuses: the statuses that meet the condition; default: the success of each run type
    :param previous_statuses: the statuses that must have come right before; only callouts and the callout
        history report them
    :param on_other_previous: what happens where another status came before: the wait goes on (``wait``), or fails
        (``fail``; ``skip``: the sensor skips then)
    :param fail_on: the statuses that fail the wait; default: each terminal status that is not in ``statuses``
    :param since: without a session id: the earliest start of the session
    :param before: with ``since``: the latest start (exclusive); ``None``: no latest start
    :param until: the deadline, an absolute instant; it applies even where ``since`` is after it
    :raises ValueError: an argument is empty, unknown or impossible; the message names it and what is allowed

    Source of the statuses: https://developer.zuora.com/v1-api-reference/api/meters/getrunstatusofspecificmeterversion
    """

    meter_id: str
    version: str = DEFAULT_VERSION
    session_id: str | None = None
    run_types: tuple[RunType, ...] = (RunType.NORMAL,)
    statuses: tuple[str, ...] | None = None
    previous_statuses: tuple[str, ...] = ()
    on_other_previous: OtherPrevious = OtherPrevious.WAIT
    fail_on: tuple[str, ...] | None = None
    since: datetime | None = None
    before: datetime | None = None
    until: datetime | None = None

    def __post_init__(self) -> None:
        """Normalize every field, or refuse it."""
        run_types = run_types_of(self.run_types)
        statuses = successes(run_types) if self.statuses is None else _names("statuses", self.statuses)
        fail_on = _other_ends(statuses) if self.fail_on is None else _names("fail_on", self.fail_on)
        _refuse_overlap(statuses, fail_on)
        refuse_tests("statuses", run_types, statuses)
        values: dict[str, object] = {
            "meter_id": _text("meter_id", self.meter_id),
            "version": _text("version", self.version),
            "session_id": None if self.session_id is None else _text("session_id", self.session_id),
            "run_types": run_types,
            "statuses": statuses,
            "previous_statuses": _names("previous_statuses", self.previous_statuses),
            "on_other_previous": OtherPrevious.of(self.on_other_previous, self.previous_statuses),
            "fail_on": fail_on,
            "since": None if self.since is None else to_utc("since", self.since),
            "before": None if self.before is None else to_utc("before", self.before),
            "until": None if self.until is None else to_utc("until", self.until),
        }
        for name, value in values.items():
            object.__setattr__(self, name, value)
        if self.session_id is not None and self.since is not None:
            raise ValueError("session_id and since exclude each other: a session is either named or found by its start")
        if self.before is not None:
            if self.since is None:
                raise ValueError(
                    "before goes with since: it is the latest start of a session that is found by its start"
                )
            check_window(self.since, self.before)

    @property
    def window(self) -> Window | None:
        """The window in which the session starts, where both bounds are given."""
        return None if self.since is None or self.before is None else Window(self.since, self.before)

    def in_words(self) -> str:
        """Return the statuses that end the wait, as part of a sentence."""
        text = " or ".join(self.statuses or ())
        if self.previous_statuses:
            text += f" right after {' or '.join(self.previous_statuses)}"
        if not self.fail_on:
            return text
        return f"{text} ({'any other end' if self._any_other_end_fails else ' or '.join(self.fail_on)} fails it)"

    @property
    def _any_other_end_fails(self) -> bool:
        """Whether ``fail_on`` is the default, and not empty."""
        return bool(self.fail_on) and self.fail_on == _other_ends(self.statuses or ())

    def outcome_of(self, status: str) -> Outcome:
        """Return what a status of the awaited session means for the condition; ``previous_statuses`` is ignored."""
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
            "run_type": stored_run_type(self.run_types),
            "statuses": list(self.statuses or ()),
            "previous_statuses": list(self.previous_statuses),
            "on_other_previous": str(self.on_other_previous),
            # The default is stored as null: an older version of the package has its own, and would refuse this one.
            "fail_on": None if self._any_other_end_fails else list(self.fail_on or ()),
            "since": to_json(self.since),
            "before": to_json(self.before),
            "until": to_json(self.until),
        }

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> SessionCondition:
        """Make a condition from ``to_dict()``; unknown keys are left out, missing optional ones get their default.

        :raises ValueError: a value is not allowed, or there is no meter id
        """
        given = {**data, "run_types": data.get("run_type")}
        known = {field.name: given[field.name] for field in fields(cls) if given.get(field.name) is not None}
        known.setdefault("meter_id", "")
        for key in ("since", "before", "until"):
            if key in known:
                known[key] = from_json(known[key])
        return cls(**known)


def judge(condition: SessionCondition, session: SessionState) -> Judgement:
    """Decide a condition from its session's state by callouts, callout history or a run reply.

    :param condition: what is waited for
    :param session: the named session; without a name, the one that the condition is bound to: see ``Binding``
    :return: MET or FAILED only by the session's own, unambiguous status
    """
    if session.ambiguous:
        return Judgement(Outcome.WAITING, "the callouts received so far do not show its present status")
    outcome = condition.outcome_of(session.status)
    if session.run_type not in condition.run_types and not _counts_nevertheless(condition, session, outcome):
        awaited = " or ".join(condition.run_types)
        return Judgement(Outcome.WAITING, f"it is a {session.run_type} session, and a {awaited} one is awaited")
    if outcome is Outcome.MET and condition.previous_statuses:
        before = status_before(session.status, session.previous_status)
        if before is None:
            return Judgement(Outcome.WAITING, f"the status before {session.status} is not known")
        if before not in condition.previous_statuses:
            reason = f"{session.status} came after {before}, not after"
            reason += f" {' or '.join(condition.previous_statuses)}"
            waits = condition.on_other_previous is OtherPrevious.WAIT
            return Judgement(Outcome.WAITING if waits else Outcome.FAILED, reason)
    return Judgement(outcome)


def _counts_nevertheless(condition: SessionCondition, session: SessionState, outcome: Outcome) -> bool:
    """Return whether a named session ends the wait despite its other run type.

    It does where it failed, or where the awaited status is one that only tests report.
    """
    if condition.session_id is None or session.run_type not in set(RunType):
        return False
    return outcome is Outcome.FAILED or (outcome is Outcome.MET and session.status in DEBUG_ONLY)


def _is_final(value: object) -> bool:
    """Return whether an argument has its value when the Dag is parsed: it is neither a template nor a task's output."""
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


def _names(name: str, value: object) -> tuple[str, ...]:
    """Return status names, once each and in the order given."""
    items = [value] if isinstance(value, str) else value
    if not isinstance(items, list | tuple | set | frozenset):
        raise ValueError(f"{name} must be a status or a list of statuses, not {value!r}")
    if name == "statuses" and not items:
        raise ValueError("statuses must name at least one status, for example COMPLETED")
    ordered = sorted(items, key=str) if isinstance(items, set | frozenset) else items
    never_run = name == "previous_statuses"
    return tuple(dict.fromkeys(status_name(name, item, never_run=never_run) for item in ordered))


def _other_ends(statuses: Sequence[str]) -> tuple[str, ...]:
    return tuple(sorted(ANY_TERMINAL.difference(statuses)))


def successes(run_types: Sequence[RunType]) -> tuple[str, ...]:
    """Return the statuses that are awaited unless others are named: the success of each run type."""
    return tuple(str(SUCCESS[each]) for each in run_types)


def refuse_tests(name: str, run_types: Sequence[RunType], statuses: Sequence[str]) -> None:
    """Refuse statuses that only tests report where only NORMAL sessions are awaited: the wait could never end well.

    :param name: of the argument, for the error
    :raises ValueError: there are no others
    """
    if RunType.DEBUG not in run_types and statuses and DEBUG_ONLY.issuperset(statuses):
        raise ValueError(f"{name}: only DEBUG sessions reach {' or '.join(statuses)}: add run_type='DEBUG'")


def _refuse_overlap(statuses: tuple[str, ...], fail_on: tuple[str, ...]) -> None:
    both = [status for status in statuses if status in fail_on]
    if both:
        raise ValueError(f"{', '.join(both)} cannot be in both statuses and fail_on")


@dataclass(frozen=True, slots=True, kw_only=True)
class Subject:
    """The session or meter that a task's arguments name.

    :param session_id: the session; ``None`` where none is named
    :param run_types: its run type, or both where it may be of either
    :param session: the session object that was given; empty where none was
    """

    meter_id: str
    version: str = DEFAULT_VERSION
    session_id: str | None = None
    run_types: tuple[RunType, ...] = (RunType.NORMAL,)
    mediation_conn_id: str = DEFAULT_CONNECTION
    session: Mapping[str, Any] = field(default_factory=dict)

    @property
    def begun_at(self) -> datetime | None:
        """When the given session began, else when it was received; ``None`` where no object was given.

        :raises ValueError: the object's time is not valid
        """
        return from_json(self.session.get("started_at") or self.session.get("observed_at"))


def subject_of(given: Mapping[str, Any], unknown: Collection[str] = ()) -> Subject:
    """Return the subject that the arguments name together.

    :param given: the given ones of ``SUBJECT_ARGUMENTS``, rendered, by name
    :param unknown: names of further given ones whose values exist only when the task runs; the subject then lacks them
    :raises ValueError: an argument is invalid, the meter is missing, or two arguments differ; one sentence
    """
    named = {"session", "session_id"}.intersection((*given, *unknown))
    if len(named) == 2:
        raise ValueError("session and session_id exclude each other: session takes the object, session_id an id alone")
    name = "".join(named)
    session, session_id = _session_in(name, given[name]) if name in given else ({}, None)
    accepted: dict[str, tuple[Any, ...]] = {}
    for argument, check in _CHECKS.items():
        own = () if session.get(argument) is None else check(f"{name}[{argument!r}]", session[argument])
        wanted = check(argument, given[argument]) if argument in given else ()
        if own and wanted and not set(own) <= set(wanted):
            raise ValueError(
                f"{argument} is {' or '.join(wanted)!r}, but session {session_id or '(unknown)'}, which was given, has "
                f"{' or '.join(own)!r}: leave {argument} out, or give that session's"
            )
        accepted[argument] = own or wanted
    run_types = accepted.pop("run_type") or (RunType.NORMAL,)
    values = {argument: each[0] for argument, each in accepted.items() if each}
    if "meter_id" not in values and "meter_id" not in unknown and not named.intersection(unknown):
        raise ValueError("meter_id is missing: give it, or give session, the output of a task, which contains it")
    return Subject(**{"meter_id": "", **values}, run_types=run_types, session_id=session_id, session=session)


def _session_in(name: str, value: object) -> tuple[Mapping[str, Any], str | None]:
    """Return the object and the id from an argument that names a session."""
    found = _read(name, value) if isinstance(value, str) else value
    if found is None or found == {}:
        raise ValueError(
            f"{name} is {value!r:.80}, which names no session: did the task that should give it run later (a "
            f"template sets no order), fail, get skipped, or lose the reply to its run call?"
        )
    if not isinstance(found, Mapping):
        if name == "session_id":
            return {}, id_of(name, found)
        raise ValueError(f"{_EXPECTED}, not {value!r:.80}; an id goes into session_id")
    if "session_id" not in found:
        raise ValueError(f"{_EXPECTED.replace('session', name, 1)}, not {value!r:.80}")
    session_id = found["session_id"]
    if session_id is None and name == "session_id":
        return _session_in(name, None)
    return found, None if session_id is None else id_of(f"{name}['session_id']", session_id)


def _read(name: str, text: str) -> object:
    """Parse a text: an object from its JSON or ``repr``, ``None`` from an empty value, else the text itself.

    Jinja renders an object that a template pulls from another task as its ``repr``.
    """
    text = text.strip()
    if text in ("", "None", "null"):
        return None
    if text[0] not in "{[":
        return text
    try:
        if len(text) > _LONGEST_TEXT:
            raise ValueError
        try:
            return json.loads(text)
        except ValueError:
            return ast.literal_eval(text)
    except (ValueError, SyntaxError, MemoryError, RecursionError):
        raise ValueError(f"{name} looks like an object, but is neither JSON nor a Python literal: {text:.60}") from None


def _run_types(name: str, value: object) -> tuple[RunType, ...]:
    try:
        return run_types_of(value)
    except ValueError as error:
        raise ValueError(str(error).replace("run_type", name, 1)) from None


# The accepted values of each argument: one, except of the run type.
_CHECKS: Final[dict[str, Callable[[str, Any], tuple[str, ...]]]] = {
    "meter_id": lambda name, value: (id_of(name, value),),
    "version": lambda name, value: (id_of(name, value),),
    "run_type": _run_types,
    "mediation_conn_id": lambda name, value: (connection_id_of(name, value),),
}
