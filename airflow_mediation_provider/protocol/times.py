"""Instants as plain UTC datetimes, and durations in words: the one way that waits compare, store and print time.

Waits compare times a thousand times a second, so they keep the standard library's datetime: subtracting pendulum's
builds an Interval each time. What users get to see, a ``SessionTransition``, carries pendulum's.
"""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

_DAY = 24 * 3600


def to_utc(name: str, value: datetime) -> datetime:
    """Return an aware instant (of any zone, pendulum's too) as a plain datetime in UTC.

    :param name: what to call the value in the error
    :param value: the instant
    :raises ValueError: the value is naive, or no datetime
    """
    if type(value) is datetime and value.tzinfo is UTC:
        return value
    if not isinstance(value, datetime) or value.utcoffset() is None:
        raise ValueError(f"{name} must be a datetime with a time zone, not {value!r}")
    utc = value.astimezone(UTC)
    return datetime(utc.year, utc.month, utc.day, utc.hour, utc.minute, utc.second, utc.microsecond, tzinfo=UTC)


def to_json(value: datetime | None) -> str | None:
    """Return an instant as ISO 8601 text, as ``from_json`` reads it."""
    return None if value is None else value.isoformat()


def from_json(value: str | None) -> datetime | None:
    """Return the instant of an ISO 8601 text, ``None`` of ``None``.

    :raises ValueError: the text is no ISO 8601 instant with an offset
    """
    return None if value is None else to_utc("a stored time", datetime.fromisoformat(value))


def in_words(instant: datetime) -> str:
    """Return an instant for a sentence: ``2026-03-31 09:17:21 UTC``."""
    return f"{instant:%Y-%m-%d %H:%M:%S} UTC"


def humanize(duration: timedelta) -> str:
    """Return a duration in its two largest units: ``45s``, ``12m 4s``, ``1h 3m``, ``2d 5h``; below zero: ``0s``."""
    seconds = max(0, int(duration.total_seconds()))
    for size, name, next_size, next_name in ((_DAY, "d", 3600, "h"), (3600, "h", 60, "m"), (60, "m", 1, "s")):
        if seconds >= size:
            rest = seconds % size // next_size
            return f"{seconds // size}{name} {rest}{next_name}" if rest else f"{seconds // size}{name}"
    return f"{seconds}s"
