"""Session statuses, run types and the integer codes that the REST API uses for them.

Source: https://developer.zuora.com/v1-api-reference/api/meters/getrunstatusofspecificmeterversion (codes 1 to 13) and
https://docs.zuora.com/en/zuora-platform/extensibility/mediation/meters/stop-a-meter (STOPPING, which has no documented
code).
"""

from __future__ import annotations

import difflib
import re
import warnings
from enum import StrEnum
from typing import TYPE_CHECKING, Final, Literal, TypeAlias

if TYPE_CHECKING:
    from collections.abc import Iterable

__all__ = ["RunType", "SessionStatus"]


class SessionStatus(StrEnum):
    """The documented statuses of a meter session, by Zuora's own names."""

    NEVER_RUN = "NEVER_RUN"
    TESTING = "TESTING"
    TESTING_FAILED = "TESTING_FAILED"
    TESTING_PASSED = "TESTING_PASSED"
    RUNNING = "RUNNING"
    PAUSED = "PAUSED"
    COMPLETED = "COMPLETED"
    FAILED = "FAILED"
    CANCELED = "CANCELED"
    INITIALIZING = "INITIALIZING"
    USAGE_PUSHING = "USAGE_PUSHING"
    PUSH_COMPLETED = "PUSH_COMPLETED"
    CONSUME_COMPLETED = "CONSUME_COMPLETED"
    STOPPING = "STOPPING"


class RunType(StrEnum):
    """How a meter runs: live, or as a test that writes nothing downstream."""

    NORMAL = "NORMAL"
    DEBUG = "DEBUG"


StatusName: TypeAlias = Literal[
    "NEVER_RUN",
    "TESTING",
    "TESTING_FAILED",
    "TESTING_PASSED",
    "RUNNING",
    "PAUSED",
    "COMPLETED",
    "FAILED",
    "CANCELED",
    "INITIALIZING",
    "USAGE_PUSHING",
    "PUSH_COMPLETED",
    "CONSUME_COMPLETED",
    "STOPPING",
]
"""For type checkers. A status that Zuora does not document is accepted too, as ``cast("Any", ...)``."""
RunTypeName: TypeAlias = Literal["NORMAL", "DEBUG"]

# The codes are not in the order of progress: 3 is TESTING_FAILED, and 10 comes before 5 in time.
STATUS_BY_CODE: Final[dict[int, SessionStatus]] = {
    1: SessionStatus.NEVER_RUN,
    2: SessionStatus.TESTING,
    3: SessionStatus.TESTING_FAILED,
    4: SessionStatus.TESTING_PASSED,
    5: SessionStatus.RUNNING,
    6: SessionStatus.PAUSED,
    7: SessionStatus.COMPLETED,
    8: SessionStatus.FAILED,
    9: SessionStatus.CANCELED,
    10: SessionStatus.INITIALIZING,
    11: SessionStatus.USAGE_PUSHING,
    12: SessionStatus.PUSH_COMPLETED,
    13: SessionStatus.CONSUME_COMPLETED,
}
CODE_BY_STATUS: Final[dict[SessionStatus, int]] = {status: code for code, status in STATUS_BY_CODE.items()}

# Each of these ends a session, whatever its run type: Zuora cancels tests too.
ANY_TERMINAL: Final[frozenset[str]] = frozenset(
    {
        SessionStatus.COMPLETED,
        SessionStatus.FAILED,
        SessionStatus.CANCELED,
        SessionStatus.TESTING_PASSED,
        SessionStatus.TESTING_FAILED,
    }
)
# A poll names no session: its status ends one only where a session of that run type is documented to end in it.
ENDS_BY_POLL: Final[dict[RunType, frozenset[str]]] = {
    RunType.NORMAL: frozenset({SessionStatus.COMPLETED, SessionStatus.FAILED, SessionStatus.CANCELED}),
    RunType.DEBUG: frozenset({SessionStatus.TESTING_PASSED, SessionStatus.TESTING_FAILED, SessionStatus.CANCELED}),
}
SUCCESS: Final[dict[RunType, SessionStatus]] = {
    RunType.NORMAL: SessionStatus.COMPLETED,
    RunType.DEBUG: SessionStatus.TESTING_PASSED,
}
# Polled while a session of the run type goes on. An unknown status proves nothing.
LIVE: Final[dict[RunType, frozenset[str]]] = {
    RunType.NORMAL: frozenset(
        {
            SessionStatus.INITIALIZING,
            SessionStatus.RUNNING,
            SessionStatus.STOPPING,
            SessionStatus.USAGE_PUSHING,
            SessionStatus.PUSH_COMPLETED,
            SessionStatus.CONSUME_COMPLETED,
        }
    ),
    RunType.DEBUG: frozenset({SessionStatus.TESTING}),
}
# Polled while no session is live or paused.
IDLE_FOR_GOOD: Final[frozenset[str]] = ANY_TERMINAL | {SessionStatus.NEVER_RUN}
# Polled while no session is live; a paused one may be resumed.
IDLE: Final[frozenset[str]] = IDLE_FOR_GOOD | {SessionStatus.PAUSED}
# Only a DEBUG run reports these; as the status of a meter version they hide a NORMAL run that goes on.
DEBUG_ONLY: Final[frozenset[str]] = frozenset(
    {SessionStatus.TESTING, SessionStatus.TESTING_FAILED, SessionStatus.TESTING_PASSED}
)
# While a test is awaited, a poll that shows one of these shows a NORMAL session that hides the test.
_NEVER_A_TEST: Final = (
    frozenset(SessionStatus)
    - DEBUG_ONLY
    - {SessionStatus.NEVER_RUN, SessionStatus.INITIALIZING}
    - ENDS_BY_POLL[RunType.DEBUG]
)


FIRST_STATUS: Final = {RunType.NORMAL: SessionStatus.INITIALIZING, RunType.DEBUG: SessionStatus.TESTING}
"""The status of a session that was just started."""


def status_before(status: str, previous_status: str | None) -> str | None:
    """Return the status before a session's: before its first one its meter was NEVER_RUN; ``None``: not known."""
    started = status in FIRST_STATUS.values() and previous_status is None
    return str(SessionStatus.NEVER_RUN) if started else previous_status


_OF_SESSIONS: Final = tuple(str(status) for status in SessionStatus if status is not SessionStatus.NEVER_RUN)
_BY_LETTERS: Final[dict[str, str]] = {
    **{status.replace("_", ""): str(status) for status in SessionStatus},
    "CANCELLED": str(SessionStatus.CANCELED),
}
_DOCUMENTED: Final = frozenset(map(str, SessionStatus))
_NOTHING: Final = re.compile(r"(?:null|none|nil|undefined|n/?a|[\W_]*)", re.IGNORECASE)
# As many characters as the journal's column holds.
_LONGEST_RUN_TYPE: Final = 16
# A code, or Zuora's names for a run that writes downstream; empty because a template may lack the field.
_NORMAL: Final = frozenset({"", "1", "NORMAL", "LIVE"})


def run_type_of_report(value: object, status: str = "") -> str:
    """Return the run type that a callout, a reply or a stored form names.

    :param value: a name, an integer code or nothing
    :param status: the status in the same report; some statuses exist for tests only
    :return: NORMAL for its name, its code and nothing; DEBUG for every name of a test; anything else as received, in
        upper case and without blanks, like a status: it starts no Dag and ends no wait, because it may be a test
    """
    if status in DEBUG_ONLY:
        return RunType.DEBUG
    if isinstance(value, RunType):
        return value
    text = "".join(each for each in _upper(value) if each.isprintable())
    if text in _NORMAL:
        return RunType.NORMAL
    if text == "2" or "DEBUG" in text or "TEST" in text:
        return RunType.DEBUG
    return text[:_LONGEST_RUN_TYPE]


def run_type_of_reports(reports: Iterable[tuple[str, str, bool]]) -> str:
    """Return the run type of a session from all reports of it, regardless of their order.

    One report of a test makes it DEBUG. Else the reply to a run call for NORMAL decides. Else an unknown run type
    outranks NORMAL, because a callout whose template lacks the field counts as NORMAL.

    :param reports: for each its run type, its status, and whether it is the reply to the run call
    """
    named = set(reports)
    if any(run_type == RunType.DEBUG or status in DEBUG_ONLY for run_type, status, _ in named):
        return RunType.DEBUG
    if any(called and run_type == RunType.NORMAL for run_type, _, called in named):
        return RunType.NORMAL
    return min((run_type for run_type, _, _ in named if run_type != RunType.NORMAL), default=RunType.NORMAL)


def run_type_of(value: object) -> RunType:
    """Return the run type that an argument names, in upper or lower case.

    :raises ValueError: neither NORMAL nor DEBUG
    """
    try:
        return RunType(str(value).strip().upper())
    except ValueError:
        raise ValueError(f"run_type must be one of {', '.join(RunType)}, not {value!r:.80}") from None


def run_types_of(value: object) -> tuple[RunType, ...]:
    """Return the run types that an argument names: one, or both in a list, in any order.

    :return: each once, NORMAL first
    :raises ValueError: one is neither NORMAL nor DEBUG, or the list is empty
    """
    items = value if isinstance(value, list | tuple | set | frozenset) else [value]
    named = set(map(run_type_of, items))
    if not named:
        raise ValueError(f"run_type must be one of {', '.join(RunType)}, or a list of both, not {value!r}")
    return tuple(each for each in RunType if each in named)


def stored_run_type(run_types: tuple[RunType, ...]) -> str | list[str]:
    """Return run types in the form in which they are stored: the name of one, the list of both."""
    names = [str(each) for each in run_types]
    return names[0] if len(names) == 1 else names


def may_show(run_type: str, status: str) -> bool:
    """Return whether a poll that shows this status, and names no session, may be of a session of this run type."""
    if run_type == RunType.NORMAL:
        return status not in DEBUG_ONLY
    return run_type != RunType.DEBUG or status not in _NEVER_A_TEST


def run_type_shown(status: str, before: str | None) -> RunType:
    """Return the run type of the session that a poll shows without naming it.

    :param status: the status that it shows
    :param before: the status of the poll before it: a test that is canceled was TESTING
    """
    of_test = status in DEBUG_ONLY or (before in LIVE[RunType.DEBUG] and status in ENDS_BY_POLL[RunType.DEBUG])
    return RunType.DEBUG if of_test else RunType.NORMAL


def usual_run_type(status: str) -> RunType:
    """Return the run type that a schedule on a status means unless it names one: some statuses exist for tests only."""
    return RunType.DEBUG if status in DEBUG_ONLY else RunType.NORMAL


def parse_status(value: object, description: object = None) -> str:
    """Return Zuora's name for a status given as code, digits or name.

    :param value: integer code, a string of digits, or a name in any case
    :param description: the name that came with the code; used where ``value`` is empty or an unknown code
    :return: a documented name, compared by its letters only, or the given text in upper case where Zuora does not
        document it: an unknown status is kept as it is and ends no wait that does not name it
    :raises ValueError: both ``value`` and ``description`` are empty
    """
    if isinstance(value, str) and value in _DOCUMENTED:
        return str(value)  # the usual case, and the only one in which nothing has to be searched
    text, named = _known(_upper(value)), _known(_upper(description))
    if text.isdecimal():
        return str(STATUS_BY_CODE.get(int(text)) or named or text)
    if not (text or named):
        raise ValueError("a status is neither a code nor a name: it is empty")
    return text or named


def status_name(name: str, value: object, *, never_run: bool = False) -> str:
    """Return the status that an argument of a Dag names; one that Zuora does not document is accepted as it is.

    Zuora adds statuses, so an undocumented one is no error: see ``warn_of_unknown``.

    :param name: name of the argument, for the error
    :param value: a name in any spelling, or a code
    :param never_run: whether NEVER_RUN is allowed: it can be a previous status, the meter's before its first session
    :raises ValueError: it is not a name, or it is NEVER_RUN and that is not allowed
    """
    given = isinstance(value, str | int) and not isinstance(value, bool) and not names_nothing(str(value))
    text = parse_status(value) if given else ""
    if not re.fullmatch(r"[A-Z0-9_]{1,64}", text):
        raise ValueError(f"{name}: {value!r:.80} is no status; Zuora documents {', '.join(_OF_SESSIONS)}")
    if text == SessionStatus.NEVER_RUN and not never_run:
        raise ValueError(f"{name}: no session is ever NEVER_RUN, the status of a meter that has had no session")
    return text


def warn_of_unknown(name: str, statuses: Iterable[str], *, stacklevel: int = 3) -> None:
    """Warn of statuses that Zuora does not document, and suggest the documented one with a similar name.

    :param name: name of the argument
    :param statuses: as ``status_name`` returns them
    :param stacklevel: stack level of the warning: 1 is this function's caller
    """
    for status in statuses:
        if status in _BY_LETTERS.values():
            continue
        alike = difflib.get_close_matches(status, _OF_SESSIONS, n=1)
        meant = f" Did you mean {alike[0]}?" if alike else ""
        text = f"{name}: unknown status {status!r}, never met unless Zuora reports exactly this status.{meant}"
        warnings.warn(f"{text} Zuora documents {', '.join(_OF_SESSIONS)}.", UserWarning, stacklevel=stacklevel)


def _known(name: str) -> str:
    """Return the documented name with the same letters, else the name as it is."""
    return _BY_LETTERS.get(re.sub(r"[^A-Z0-9]", "", name), name)


def names_nothing(text: str) -> bool:
    """Return whether a text stands for no value: empty, Zuora's own ``null``, or what templates write instead."""
    return _NOTHING.fullmatch(text.strip()) is not None


def _upper(value: object) -> str:
    """Return a code or name in upper case; empty for nothing."""
    text = "" if value is None or isinstance(value, bool) else str(value).strip()
    return "" if names_nothing(text) else text.upper().replace(" ", "_")
