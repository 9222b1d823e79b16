"""What one poll says: a status of a meter version, which kind of status that is, and what it proved when weighed.

Source: https://developer.zuora.com/v1-api-reference/api/meters/getrunstatusofspecificmeterversion
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from airflow_mediation_provider.protocol.status import ANY_TERMINAL, DEBUG_ONLY, RunType, SessionStatus
from airflow_mediation_provider.protocol.times import to_utc

if TYPE_CHECKING:
    from datetime import datetime

    from airflow_mediation_provider.protocol.condition import Outcome

# Read while a session of the run type goes on. An unknown status is evidence of nothing.
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
# Read only while, or after, a session of the other run type hides ours. INITIALIZING might be of either type.
FOREIGN: Final[dict[RunType, frozenset[str]]] = {
    RunType.NORMAL: DEBUG_ONLY,
    RunType.DEBUG: frozenset(SessionStatus) - DEBUG_ONLY - {SessionStatus.NEVER_RUN, SessionStatus.INITIALIZING},
}
# Read while no session goes on.
IDLE: Final[frozenset[str]] = ANY_TERMINAL | {SessionStatus.NEVER_RUN, SessionStatus.PAUSED}


@dataclass(frozen=True, slots=True)
class PollReading:
    """One status read from ``runStatus``.

    :param status: Zuora's name of the status
    :param read_at: when the request was *sent*: what it says was true then at the earliest
    """

    status: str
    read_at: datetime

    def __post_init__(self) -> None:
        """Bring the time into plain UTC: a thousand waits compare it."""
        object.__setattr__(self, "read_at", to_utc("read_at", self.read_at))


@dataclass(frozen=True, slots=True)
class PollVerdict:
    """What the polls up to now say of the awaited session.

    :param outcome: whether the wait is over, and how
    :param status: the status that the outcome rests on, where the wait is over
    :param certain: whether the outcome is proven (given the promise of ``exclusive``)
    :param speaks: whether the reading is, as far as polls tell, the session's own status
    :param reason: in words: why the outcome is not certain, or why the reading does not speak for the session
    """

    outcome: Outcome
    status: str = ""
    certain: bool = False
    speaks: bool = True
    reason: str = ""
