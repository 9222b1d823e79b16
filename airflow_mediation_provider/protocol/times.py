"""Instants as plain UTC datetimes, and times as text: the one way in which waits compare, store and print time.

Waits compare times a thousand times a second, so they keep the standard library's datetime: subtracting pendulum's
builds an Interval each time. What users receive, a ``SessionTransition``, has pendulum's.
"""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Annotated

from msgspec import Meta

Instant = Annotated[datetime, Meta(tz=True)]
"""An instant of a message."""
CLOCK_SKEW = timedelta(minutes=5)
"""How far Zuora's clock and ours may differ."""
_DAY = 24 * 3600
_QUARTER = timedelta(minutes=15)
# The time that a callout takes to arrive, and the difference of the clocks; more of it hides which quarter is meant.
_NEAR = timedelta(minutes=3)
# Between the first and the last zone of the world.
_FARTHEST = timedelta(hours=26)


def to_utc(name: str, value: datetime) -> datetime:
    """Return an aware datetime (in any zone, pendulum's too) as a plain datetime in UTC.

    :param name: name of the value, for the error
    :param value: the instant
    :raises ValueError: the value is naive, or not a datetime
    """
    if type(value) is datetime and value.tzinfo is UTC:
        return value
    if not isinstance(value, datetime) or value.utcoffset() is None:
        raise ValueError(f"{name} must be a datetime with a time zone, not {value!r}")
    utc = value.astimezone(UTC)
    return datetime(utc.year, utc.month, utc.day, utc.hour, utc.minute, utc.second, utc.microsecond, tzinfo=UTC)


def set_to_utc(message: object, *names: str) -> None:
    """Convert instants of a frozen dataclass to plain UTC; for its ``__post_init__``.

    :param names: of the fields; ``None`` stays
    :raises ValueError: an instant has no time zone
    :raises OverflowError: an instant lies outside the years 1 to 9999 in UTC
    """
    for name in names:
        value = getattr(message, name)
        if value is not None:
            object.__setattr__(message, name, to_utc(name, value))


def quarters_off(reported: datetime, received: datetime) -> timedelta | None:
    """Return by how many quarters of an hour a time is before its arrival, as one of a wrong zone is.

    :param reported: an instant that should be seconds before its arrival
    :param received: when it arrived
    :return: zero where the zone is right, negative where the time is after its arrival; ``None`` where it is not near
        any quarter, or too far for a zone

    Example: 08:04:05 that was received at 15:04:10 is 7 hours off.
    """
    apart = received - reported
    off = round(apart / _QUARTER) * _QUARTER
    return off if abs(apart - off) <= _NEAR and abs(off) <= _FARTHEST else None


def to_json(value: datetime | None) -> str | None:
    """Return an instant as ISO 8601 text, as ``from_json`` reads it."""
    return None if value is None else value.isoformat()


def from_json(value: str | None) -> datetime | None:
    """Return the instant of an ISO 8601 text, ``None`` for ``None``.

    :raises ValueError: the text is not an ISO 8601 instant with an offset
    """
    return None if value is None else to_utc("a stored time", datetime.fromisoformat(value))


def in_words(at: datetime) -> str:
    """Return an instant for use in a sentence: ``2026-03-31 09:17:21 UTC``."""
    return f"{at:%Y-%m-%d %H:%M:%S} UTC"


def exactly(duration: timedelta) -> str:
    """Return a duration to the second, in all its units: ``45s``, ``1h 3m 12s``, ``2d 5s``; ``0s`` if negative."""
    seconds = max(0, int(duration.total_seconds()))
    units = ((seconds // _DAY, "d"), (seconds % _DAY // 3600, "h"), (seconds % 3600 // 60, "m"), (seconds % 60, "s"))
    return " ".join(f"{count}{name}" for count, name in units if count) or "0s"


def humanize(duration: timedelta) -> str:
    """Return a duration in its two largest units: ``45s``, ``12m 4s``, ``1h 3m``, ``2d 5h``; ``0s`` if negative."""
    seconds = max(0, int(duration.total_seconds()))
    for size, name, next_size, next_name in ((_DAY, "d", 3600, "h"), (3600, "h", 60, "m"), (60, "m", 1, "s")):
        if seconds >= size:
            rest = seconds % size // next_size
            return f"{seconds // size}{name} {rest}{next_name}" if rest else f"{seconds // size}{name}"
    return f"{seconds}s"
