"""Times on the command line."""

from __future__ import annotations

import re
from datetime import UTC, datetime, timedelta


def time_of(option: str, text: str, now: datetime) -> datetime:
    """Return a time that was given as ISO 8601, or as how long ago: ``90m``, ``36h``, ``2d``.

    :param option: for the error
    :param text: a time without a zone is UTC
    :param now: the time now
    :raises SystemExit: it is neither; one sentence
    """
    try:
        if ago := re.fullmatch(r"(\d{1,6}(?:\.\d{1,3})?)([mhd])", text.strip()):
            unit = {"m": "minutes", "h": "hours", "d": "days"}[ago[2]]
            return now - timedelta(**{unit: float(ago[1])})
        time = datetime.fromisoformat(text.strip())
        return (time if time.tzinfo else time.replace(tzinfo=UTC)).astimezone(UTC)
    except OverflowError:
        raise SystemExit(f"{option} {text.strip()} is further away than the calendar goes.") from None
    except ValueError:
        raise SystemExit(f"{option} must be a time like 2026-03-31T12:00Z, or how long ago, like 36h.") from None
