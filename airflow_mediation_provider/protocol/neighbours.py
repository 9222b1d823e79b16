"""Neighbours: what callouts tell of a meter's other sessions, held against a poll, which names no session at all.

The status of a meter version may be that of any session of it, and Zuora does not document of which. So a reading that
another session may explain proves nothing of the awaited one:

* One that is live explains everything; but one that began before ours, and of which the callout of its end may merely
  be lost, does not explain an end.
* One that has ended since ours began explains the status that it ended in, unless a poll has shown something live after
  that; and, for as long as a reading may be stale, also what it was before.
* One that was live when last heard of, with the meter read idle after that, is taken to have ended, in any status.

None of it counts for a session that is known from the reply to its run call alone: no callout of it has come yet, and
perhaps none ever will.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from airflow_mediation_provider.protocol.status import ANY_TERMINAL, DEBUG_ONLY, RunType, SessionStatus
from airflow_mediation_provider.protocol.times import to_utc
from airflow_mediation_provider.protocol.transition import Source

if TYPE_CHECKING:
    from collections.abc import Iterable
    from datetime import datetime, timedelta

    from airflow_mediation_provider.protocol.lifecycle import SessionState

IDLE_FOR_GOOD: Final[frozenset[str]] = ANY_TERMINAL | {SessionStatus.NEVER_RUN}
"""Read while no session is live; a paused one may go on."""
_OF_ANY_TYPE: Final = frozenset({SessionStatus.NEVER_RUN, SessionStatus.INITIALIZING})


@dataclass(frozen=True, slots=True)
class Awaited:
    """What is known of the awaited session, and of its meter.

    :param session_id: its id, where it is known
    :param begun_at: its start, where it is known; else by when it began at the latest, or its earliest start
    :param live_at: when a poll last showed something live that is nobody else's
    :param idle_at: when a poll last showed the meter idle
    :param idle_before: whether the meter was idle just before the session began
    :param settle: for how long a reading may be stale
    """

    session_id: str | None
    begun_at: datetime
    live_at: datetime | None
    idle_at: datetime | None
    idle_before: bool
    settle: timedelta


def who_explains(own: Awaited, others: Iterable[SessionState], status: str, at: datetime) -> str | None:
    """Return another session whose status a reading may be, ``None`` where there is none.

    :param own: the awaited session
    :param others: what is known of the meter's sessions; the awaited one may be among them
    :param status: the status that was read
    :param at: when it was asked for
    """
    return next((other.session_id for other in others if _may_be(own, other, status, at)), None)


def who_ran(own: Awaited, others: Iterable[SessionState]) -> str | None:
    """Return a session that was live at some time since the awaited one began, ``None`` where none is known.

    :param own: the awaited session
    :param others: what is known of the meter's sessions; the awaited one may be among them
    """
    return next((other.session_id for other in others if _ran_meanwhile(own, other)), None)


def who_lives(own: Awaited, others: Iterable[SessionState]) -> list[str]:
    """Return the NORMAL sessions that seem to be live beside the awaited one: a stop of the meter would hit them too.

    :param own: the awaited session
    :param others: what is known of the meter's sessions; the awaited one may be among them
    """
    return [
        other.session_id
        for other in others
        if not other.terminal
        and other.run_type is RunType.NORMAL
        and other.source is not Source.RUN
        and _ran_meanwhile(own, other)
    ]


def _ran_meanwhile(own: Awaited, other: SessionState) -> bool:
    if other.session_id == own.session_id or _was_over(own, other):
        return False
    return not (_is_older(own, other) and (own.idle_before or other.source is Source.RUN))


def _was_over(own: Awaited, other: SessionState) -> bool:
    """Say whether a session had ended before the awaited one began."""
    return other.terminal and to_utc("ended_at", other.ended_at or other.observed_at) <= own.begun_at


def _is_older(own: Awaited, other: SessionState) -> bool:
    return to_utc("begun_at", other.begun_at) < own.begun_at


def _may_be(own: Awaited, other: SessionState, status: str, at: datetime) -> bool:
    if other.session_id == own.session_id or other.source is Source.RUN:
        return False
    if status not in _OF_ANY_TYPE and (status in DEBUG_ONLY) is not (other.run_type is RunType.DEBUG):
        return False
    over = status in IDLE_FOR_GOOD
    heard_at = to_utc("observed_at", other.observed_at)
    if other.terminal:
        if not over and at < heard_at + own.settle:
            return True
        may_show = own.live_at is None or own.live_at < heard_at + own.settle
        return status == other.status and may_show and not _was_over(own, other)
    if over and _is_older(own, other):
        return False
    if own.idle_at is not None and own.idle_at >= heard_at + own.settle:
        # The callout of its end is late, or lost.
        return over and (own.live_at is None or own.live_at <= own.idle_at)
    paused = other.status == SessionStatus.PAUSED and not other.ambiguous
    return not (paused and over)
