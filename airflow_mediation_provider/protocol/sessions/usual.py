"""What is usual of a meter: how long its sessions take and how often one starts, and what differs from that now.

Both are computed from the meter's newest sessions of one run type, and only if there are enough of them. In
doubt nothing is late: a meter without a regular rhythm has no time at which a session is due.
"""

from __future__ import annotations

from datetime import datetime, timedelta
from enum import StrEnum
from itertools import pairwise, takewhile
from typing import TYPE_CHECKING, Final, NamedTuple

from airflow_mediation_provider.protocol.status import SUCCESS, SessionStatus

if TYPE_CHECKING:
    from collections.abc import Sequence

NEWEST: Final = 30
"""So many of the newest sessions of one run type show what is usual."""
LEAST: Final = 5
"""Fewer durations, or fewer spans between two starts, show nothing."""
_SUCCESSES: Final = frozenset(SUCCESS.values())
_FAILURES: Final = frozenset({SessionStatus.FAILED, SessionStatus.TESTING_FAILED})
_LEFT_OUT: Final = 10
# Beyond the usual range by half of its upper end, but never by less than a minute.
_LEAST_EXCESS: Final = timedelta(minutes=1)
# A rhythm is regular if so many of the spans between two starts differ from their median by a quarter at most.
_REGULAR: Final = 0.7
_NEAR: Final = 4
_LEAST_GRACE: Final = timedelta(minutes=10)
_SHORTEST_RHYTHM: Final = timedelta(minutes=1)
# A meter that has not started for ten times its longest span, and for a week, has another rhythm now, or none.
_GIVEN_UP: Final = 10
_LEAST_GIVEN_UP: Final = timedelta(days=7)


class PastSession(NamedTuple):
    """One session of a meter, by its best known status.

    :param ended_at: ``None`` while it goes on
    :param certain: whether the status is certain
    """

    session_id: str
    begun_at: datetime
    ended_at: datetime | None
    status: str
    certain: bool = True

    @property
    def succeeded(self) -> bool:
        """Whether it succeeded."""
        return self.ended_at is not None and self.status in _SUCCESSES

    @property
    def failed(self) -> bool:
        """Whether it failed."""
        return self.ended_at is not None and self.status in _FAILURES


class UsualDuration(NamedTuple):
    """How long sessions of a meter usually take.

    :param shortest: without the tenth that took shortest
    :param longest: without the tenth that took longest
    :param sessions: how many sessions this was computed from
    """

    shortest: timedelta
    longest: timedelta
    sessions: int

    def is_exceeded(self, lasted: timedelta) -> bool:
        """Return whether a duration is longer than usual: by half of the upper end, and by a minute."""
        return lasted > self.longest + max(self.longest / 2, _LEAST_EXCESS)


def usual_duration(past: Sequence[PastSession]) -> UsualDuration | None:
    """Return the usual duration: of those of the newest sessions that succeeded; ``None`` if these are too few.

    :param past: sessions of one meter and run type, the newest first
    """
    ended = ((each.begun_at, each.ended_at) for each in past[:NEWEST] if each.succeeded)
    durations = sorted(end - begin for begin, end in ended if end is not None and end >= begin)
    if len(durations) < LEAST:
        return None
    left_out = len(durations) // _LEFT_OUT
    return UsualDuration(durations[left_out], durations[-1 - left_out], len(durations))


class Punctuality(StrEnum):
    """Whether the next session of a meter should have started.

    UNKNOWN: its starts are not regular, or have ended. UNCERTAIN: the last start is longer ago than the median of the
    intervals, but not than the longest of them.
    """

    ON_TIME = "on time"
    UNCERTAIN = "uncertain"
    LATE = "late"
    UNKNOWN = "unknown"


class Rhythm(NamedTuple):
    """How often a session of a meter starts.

    :param every: the median of the spans between two starts
    :param longest: the longest of them
    :param last: the last start
    """

    every: timedelta
    longest: timedelta
    last: datetime

    @property
    def about(self) -> timedelta:
        """The median in whole minutes, as texts name it: a schedule by the hour starts some seconds off."""
        return timedelta(minutes=round(self.every / _SHORTEST_RHYTHM))

    def punctuality(self, now: datetime) -> Punctuality:
        """Return whether the next session is late."""
        grace = max(self.every / _NEAR, _LEAST_GRACE)
        since = now - self.last
        if since <= self.every + grace:
            return Punctuality.ON_TIME
        if since <= self.longest + grace:
            return Punctuality.UNCERTAIN
        if since > max(self.longest * _GIVEN_UP, _LEAST_GIVEN_UP):
            return Punctuality.UNKNOWN
        return Punctuality.LATE


def rhythm(past: Sequence[PastSession]) -> Rhythm | None:
    """Return the rhythm of a meter's starts; ``None`` if it has no regular one.

    :param past: sessions of one meter and run type, the newest first
    """
    spans = [newer.begun_at - older.begun_at for newer, older in pairwise(past[:NEWEST])]
    if len(spans) < LEAST:
        return None
    every = sorted(spans)[len(spans) // 2]
    near = sum(abs(span - every) <= every / _NEAR for span in spans)
    if every < _SHORTEST_RHYTHM or near < _REGULAR * len(spans):
        return None
    return Rhythm(every, max(spans), past[0].begun_at)


class Tempo(NamedTuple):
    """What is usual of a meter's sessions of one run type.

    :param past: its newest sessions, the newest first
    :param usual: how long they take, ``None`` if too few succeeded
    :param rhythm: how often one starts, ``None`` if that is not regular
    """

    past: Sequence[PastSession]
    usual: UsualDuration | None
    rhythm: Rhythm | None

    @classmethod
    def of(cls, past: Sequence[PastSession]) -> Tempo:
        """Return what is usual.

        :param past: the newest first
        """
        return cls(past, usual_duration(past), rhythm(past))

    @property
    def live(self) -> list[PastSession]:
        """The sessions that go on."""
        return [each for each in self.past if each.ended_at is None]

    @property
    def ended(self) -> list[PastSession]:
        """The sessions that have ended."""
        return [each for each in self.past if each.ended_at is not None]

    @property
    def streak(self) -> int:
        """How many of the newest sessions that ended have the same status as the newest of them."""
        ended = self.ended
        return sum(1 for _ in takewhile(lambda each: each.status == ended[0].status, ended))

    def takes_long(self, begun_at: datetime, now: datetime) -> bool:
        """Return whether a session that goes on takes longer than usual."""
        return self.usual is not None and self.usual.is_exceeded(now - begun_at)

    def punctuality(self, now: datetime) -> Punctuality:
        """Return whether the next session is late; none is due while one goes on."""
        if self.rhythm is None or (self.past and self.past[0].ended_at is None):
            return Punctuality.UNKNOWN
        return self.rhythm.punctuality(now)
