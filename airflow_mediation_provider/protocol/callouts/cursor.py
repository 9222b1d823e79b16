"""The cursor of the reader of Zuora's callout history: what to read next, and by which zone its times are read.

Records name no zone, so the offset of Zuora's clock from UTC is found by bounds. No record is from the future: a
record's time less the time of the request is a lower bound. And a record that the read before did not have was written
since, or appeared late: its time less the time of that read is an upper bound. Where a record has the time of its event
with a zone, that is both. Offsets are whole quarters of an hour, so that a record or two decide, and until one is left
nothing that was read counts. Where clocks are set forward or back, the bounds contradict those of before, and start
again.

Each read begins before the end of the one before: for records that appear late, and for clocks that are set back.

Source: https://developer.zuora.com/v1-api-reference/api/operation/GET_CalloutHistory/
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta, timezone
from typing import TYPE_CHECKING, Any, Final
from zoneinfo import ZoneInfo

from airflow_mediation_provider.protocol.callouts.history import WINDOW, attempt_number, created_at, event_time
from airflow_mediation_provider.protocol.sessions.window import WINDOW_GRACE
from airflow_mediation_provider.protocol.times import Instant, set_to_utc

if TYPE_CHECKING:
    from collections.abc import Iterable
    from datetime import tzinfo

LATE: Final = timedelta(minutes=7)
"""How long after its callout a record may appear in the history."""
CLOCKS: Final = timedelta(minutes=1)
"""How far Zuora's clock and this one may differ."""
OVERLAP: Final = timedelta(minutes=75)
"""How far a read reaches back before the end of the one before: an hour that is set back, and late records."""
RETRY_SPAN: Final = WINDOW_GRACE
"""How long after a change its callout may still arrive, by Zuora's three attempts."""
LEASE: Final = timedelta(seconds=60)
"""A reader that has not finished after this long has ended: another one reads."""
_QUARTER: Final = timedelta(minutes=15)
_WESTERNMOST: Final = timedelta(hours=-12)


@dataclass(frozen=True, slots=True)
class HistorySpan:
    """What one read asks for, by Zuora's clock.

    :param start: its start, without a zone
    :param end: its end; ``None``: up to now
    :param ends_at: its end as an instant
    """

    start: datetime
    end: datetime | None
    ends_at: datetime


@dataclass(frozen=True, slots=True, kw_only=True)
class HistoryCursor:
    """Up to where the history of a connection is in the journal, and what is known of Zuora's clock; plain JSON.

    :param read_to: the changes before it are in the journal
    :param read_at: when the history was last read up to its end
    :param newest: the time of the newest record of that read, by Zuora's clock
    :param low: lower bound of the offset of Zuora's clock from UTC, in seconds
    :param high: upper bound of it
    :param retried: whether the last read had callouts that were tried again: a record may be written only after that
    """

    read_to: Instant
    read_at: Instant | None = None
    newest: str | None = None
    low: float | None = None
    high: float | None = None
    retried: bool = False

    def __post_init__(self) -> None:
        """Convert the instants to UTC."""
        set_to_utc(self, "read_to", "read_at")

    def zone(self, name: str | None, at: datetime) -> tzinfo | None:
        """Return the zone of the history's times; ``None`` while it is not known.

        :param name: the connection's ``callout_timezone``, where the user set it: counts as long as no record
            contradicts it
        :param at: the time now
        """
        if name is not None:
            zone = ZoneInfo(name)
            # Within a day after clocks are set, the bounds are of either offset.
            if any(self._fits(when.astimezone(zone).utcoffset()) for when in (at, at - WINDOW)):
                return zone
        if self.low is None or self.high is None:
            return None
        quarters = range(math.ceil(self.low / _QUARTER.seconds), math.floor(self.high / _QUARTER.seconds) + 1)
        if len(quarters) > 1:
            return None
        quarter = quarters[0] if quarters else round(self.low / _QUARTER.seconds)
        return timezone(quarter * _QUARTER)

    def _fits(self, offset: timedelta | None) -> bool:
        seconds = 0.0 if offset is None else offset.total_seconds()
        return (self.low is None or self.low <= seconds) and (self.high is None or seconds <= self.high)

    def span(self, zone: tzinfo | None, now: datetime) -> HistorySpan:
        """Return what to read next: up to now, or a day where more is left than that.

        :param zone: of the history's times, where it is known
        :param now: the time now
        """
        begin = self.read_to - OVERLAP
        if zone is None:
            offset = _WESTERNMOST if self.low is None else timedelta(seconds=self.low)
            return HistorySpan(_plain(begin) + offset, None, now)
        if now - begin <= WINDOW:
            return HistorySpan(_plain(begin, zone), None, now)
        return HistorySpan(_plain(begin, zone), _plain(begin + WINDOW, zone), begin + WINDOW)

    def learned(self, records: Iterable[dict[str, Any]], span: HistorySpan, asked_at: datetime) -> HistoryCursor:
        """Return the cursor with what the records of a read show of Zuora's clock.

        :param records: of the span
        :param span: what was asked for
        :param asked_at: when
        """
        records = list(records)
        created = [(at, attempt_number(each)) for each in records if (at := created_at(each)) is not None]
        newest = max((at for at, _ in created), default=None)
        lows = [] if newest is None else [(newest - _plain(asked_at) - CLOCKS).total_seconds()]
        high = _by_event(records)
        if high is not None:
            lows.append(high - (LATE + CLOCKS).total_seconds())
        low = max(lows, default=None)
        if span.end is not None:
            # Not up to now, so that the next read has records that are no newer than this one.
            return self._bounded(low, high)
        before = None if self.newest is None else datetime.fromisoformat(self.newest)
        new = [at for at, number in created if number == 1 and (before is None or at > before)]
        if new and self.read_at is not None:
            since = (min(new) - _plain(self.read_at) + LATE + CLOCKS).total_seconds()
            high = since if high is None else min(high, since)
        last = max((at for at in (before, newest) if at is not None), default=None)
        return replace(
            self._bounded(low, high),
            read_at=asked_at,
            newest=None if last is None else last.isoformat(),
            retried=any(number > 1 for _, number in created),
        )

    def late_by(self, seconds: float) -> timedelta:
        """Return how long after a change the journal has it from the history.

        :param seconds: between two reads
        """
        return timedelta(seconds=seconds) + LATE + (RETRY_SPAN if self.retried else timedelta())

    def _bounded(self, low: float | None, high: float | None) -> HistoryCursor:
        lows = [each for each in (self.low, low) if each is not None]
        highs = [each for each in (self.high, high) if each is not None]
        if lows and highs and max(lows) > min(highs):
            return replace(self, low=low, high=high)
        return replace(self, low=max(lows, default=None), high=min(highs, default=None))

    def advanced(self, span: HistorySpan, *, beside_callouts: bool) -> HistoryCursor:
        """Return the cursor after the changes of a span were stored.

        :param beside_callouts: whether the connection takes callouts: then younger changes are left to these
        """
        end = span.ends_at - RETRY_SPAN if beside_callouts else span.ends_at
        return replace(self, read_to=max(self.read_to, end))


def _by_event(records: Iterable[dict[str, Any]]) -> float | None:
    """Return an upper bound of the offset by the newest record of a first attempt that has the time of its event."""
    found = [
        (at, at - _plain(happened) + CLOCKS)
        for each in records
        if attempt_number(each) == 1
        and (at := created_at(each)) is not None
        and (happened := event_time(each)) is not None
    ]
    return max(found)[1].total_seconds() if found else None


def is_read(read_at: datetime | None, seconds: float, now: datetime) -> bool:
    """Return whether the history is being read.

    :param read_at: when it was last read
    :param seconds: between two reads
    :param now: the time now
    """
    return read_at is not None and now - read_at <= 2 * timedelta(seconds=seconds) + 2 * LEASE


def _plain(at: datetime, zone: tzinfo = UTC) -> datetime:
    return at.astimezone(zone).replace(tzinfo=None)
