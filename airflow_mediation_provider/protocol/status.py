"""Session statuses, run types and the integer codes that the REST API uses for them.

Source: https://developer.zuora.com/v1-api-reference/api/meters/getrunstatusofspecificmeterversion (codes 1 to 13) and
https://docs.zuora.com/en/zuora-platform/extensibility/mediation/meters/stop-a-meter (STOPPING, which has no documented
code).
"""

from __future__ import annotations

from enum import StrEnum
from typing import Final


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


# The numbers are not an order of progress: 3 is TESTING_FAILED, and 10 precedes 5 in time.
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

TERMINAL: Final[dict[RunType, frozenset[str]]] = {
    RunType.NORMAL: frozenset({SessionStatus.COMPLETED, SessionStatus.FAILED, SessionStatus.CANCELED}),
    RunType.DEBUG: frozenset({SessionStatus.TESTING_PASSED, SessionStatus.TESTING_FAILED}),
}
ANY_TERMINAL: Final[frozenset[str]] = TERMINAL[RunType.NORMAL] | TERMINAL[RunType.DEBUG]
SUCCESS: Final[dict[RunType, SessionStatus]] = {
    RunType.NORMAL: SessionStatus.COMPLETED,
    RunType.DEBUG: SessionStatus.TESTING_PASSED,
}
# Only a DEBUG run reports these; in the status of a meter version they hide a NORMAL run that goes on.
DEBUG_ONLY: Final[frozenset[str]] = frozenset(
    {SessionStatus.TESTING, SessionStatus.TESTING_FAILED, SessionStatus.TESTING_PASSED}
)


def is_news_for_dags(run_type: str, status: str) -> bool:
    """Say whether DAGs are started on a status: on a DEBUG run's only where no live run has it, whatever it reports."""
    return run_type == RunType.NORMAL or status in DEBUG_ONLY


def parse_status(value: object, description: object = None) -> str:
    """Return Zuora's name for a status given as code, digits or name.

    :param value: integer code, a string of digits, or a name in any case
    :param description: the name that came beside the code; used where ``value`` says nothing known
    :return: a documented name, or the given text in upper case when Zuora does not document it: an unknown status is
        kept as it is and never ends a wait
    :raises ValueError: neither ``value`` nor ``description`` holds anything
    """
    text, named = _word(value), _word(description)
    if text.isdecimal():
        return str(STATUS_BY_CODE.get(int(text)) or named or text)
    if not (text or named):
        raise ValueError("a status is neither a code nor a name: it is empty")
    return text or named


def _word(value: object) -> str:
    """Return a code or name in upper case; empty for nothing, which Zuora also writes as the string ``null``."""
    text = "" if value is None or isinstance(value, bool) else str(value).strip().upper().replace(" ", "_")
    return "" if text == "NULL" else text
