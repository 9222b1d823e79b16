"""Times in a callout: merge fields write them as the tenant's locale has them, so not every one can be read.

What can be read in one way only is read without being told: ISO 8601, epoch milliseconds, and English month names.
Anything else needs the connection's format. A time that cannot be read is left out: the raw text stays in the body.

Source: https://docs.zuora.com/en/zuora-platform/extensibility/mediation/events/notifications-in-mediation
"""

from __future__ import annotations

import re
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Final

import pendulum

if TYPE_CHECKING:
    from airflow_mediation_provider.protocol.callout_settings import CalloutSettings

LONGEST: Final = 64
_MONTHS: Final = ("jan", "feb", "mar", "apr", "may", "jun", "jul", "aug", "sep", "oct", "nov", "dec")
_TIME: Final = r"(?P<hour>\d{1,2}):(?P<minute>\d\d)(?::(?P<second>\d\d)(?:\.\d+)?)?(?: ?(?P<half>[ap])\.?m\.?)?"
_ZONE: Final = r"(?: ?(?P<zone>[+-]\d\d:?\d\d|utc|gmt|z))?"
_DAY: Final = r"(?:(?P<month>[a-z]{3,9})\.? (?P<day>\d{1,2})|(?P<day_first>\d{1,2}) (?P<month_last>[a-z]{3,9})\.?)"
# "Mar 31, 2026 9:17:21 AM", "Tue, 31 Mar 2026 09:17:21 GMT", and Java's "Tue Mar 31 09:17:21 UTC 2026".
_NAMED: Final = re.compile(
    rf"(?:[a-z]{{3,9}} )?{_DAY}(?: (?P<year>\d{{4}})(?: at)?)? {_TIME}{_ZONE}(?: (?P<year_last>\d{{4}}))?", re.ASCII
)


def read_time(settings: CalloutSettings, text: str | None) -> datetime | None:
    """Read a time of a callout.

    :param settings: its date format comes first, its zone is that of times without one
    :return: UTC; ``None`` where there is none, or none that can be read
    """
    if not text or len(text) > LONGEST:
        return None
    for read in (_by_format, _by_number, _by_iso, _by_name):
        try:
            time = read(settings, text)
            if time is not None:
                return (time if time.tzinfo else time.replace(tzinfo=pendulum.timezone(settings.timezone))).astimezone(
                    UTC
                )
        except (ValueError, OverflowError):
            continue
    return None


def _by_format(settings: CalloutSettings, text: str) -> datetime | None:
    if settings.date_format is None:
        return None
    return pendulum.from_format(text, settings.date_format, tz=settings.timezone)


def _by_number(_settings: CalloutSettings, text: str) -> datetime | None:
    return datetime.fromtimestamp(int(text) / 1000, UTC) if re.fullmatch(r"[0-9]{12,13}", text) else None


def _by_iso(_settings: CalloutSettings, text: str) -> datetime:
    text = re.sub(r"\[[\w/+-]+\]$", "", text)  # the zone's name, which Java adds to the offset
    text = re.sub(r"^(\d{4})/(\d\d)/(\d\d)", r"\1-\2-\3", text)
    return datetime.fromisoformat(re.sub(r" ?(?:UTC|GMT|Z)$", "+00:00", text))


def _by_name(_settings: CalloutSettings, text: str) -> datetime | None:
    found = _NAMED.fullmatch(re.sub(r"[\s,]+", " ", text.strip().lower()))
    if found is None or (found["year"] is None) is (found["year_last"] is None):
        return None
    hour, month = int(found["hour"]), (found["month"] or found["month_last"])[:3]
    if found["half"]:
        if not 1 <= hour <= 12:
            return None
        hour = hour % 12 + (12 if found["half"] == "p" else 0)
    time = datetime(
        int(found["year"] or found["year_last"]),
        _MONTHS.index(month) + 1,
        int(found["day"] or found["day_first"]),
        hour,
        int(found["minute"]),
        int(found["second"] or 0),
    )
    # The zone is read only where its name is clear in every country.
    zone = found["zone"]
    if zone is None:
        return time
    return time.replace(tzinfo=UTC if zone.isalpha() else datetime.strptime(zone, "%z").tzinfo)
