"""Times as a tenant's locale writes them: all that can be read in one way only, and nothing else.

A merge field writes a time in the locale of the tenant or of a user, which Zuora does not document further. So a form
of which the order of day and month is open (``04/05/2026``) is read only by the connection's format, and a date alone
is no instant: its midnight would be before every session of the day.

Source: https://docs.zuora.com/en/zuora-platform/extensibility/events-and-notifications/callout-templates/callout-template-overview
"""

from __future__ import annotations

import re
from dataclasses import replace
from datetime import UTC, datetime, timedelta, timezone
from typing import TYPE_CHECKING, Final

import pendulum

if TYPE_CHECKING:
    from datetime import tzinfo

    from airflow_mediation_provider.protocol.callouts.settings import CalloutSettings

_LONGEST: Final = 100
_MONTHS: Final = (
    "january", "february", "march", "april", "may", "june", "july", "august", "september", "october", "november",
    "december",
)  # fmt: skip
# Other languages have names with the same beginnings: a Finnish "marrask." is a November.
_MONTH_BY_NAME: Final = {
    name: number
    for number, month in enumerate(_MONTHS, 1)
    for name in (month, month[:3], *(("sept",) if month == "september" else ()))
}
# An epoch has as many digits as its unit needs between 2001 and 2033; after that, seconds look like a date.
_EPOCH: Final = re.compile(r"(1[0-9]{9})(?:\.([0-9]{1,9}))?|(1[0-9]{12})|(1[0-9]{15})|(1[0-9]{18})")
_TIME: Final = (
    r"(?P<hour>\d{1,2}):(?P<minute>\d\d)(?::(?P<second>\d\d)(?:[.,](?P<fraction>\d{1,9}))?)?"
    r"(?: ?(?P<half>[ap])\.?m\b\.?)?(?: ?(?P<zone>[a-z+(\[-].*?))?"
)
_BETWEEN: Final = r"(?:t|,? at |[ ,:_]+)"
_NAME: Final = r"(?P<name>[a-z]{3,9})\.?"
_FORMS: Final = tuple(
    re.compile(form, re.ASCII | re.IGNORECASE)
    for form in (
        # 2026-04-25T15:04:05Z, 2026/4/25 3:04 PM, 20260425T150405Z, 20260425150405
        rf"(?P<year>\d{{4}})([-/.])(?P<month>\d{{1,2}})\2(?P<day>\d{{1,2}}){_BETWEEN}{_TIME}",
        r"(?P<year>(?:19|20)\d\d)(?P<month>\d\d)(?P<day>\d\d)[t ]?(?P<hour>\d\d):?(?P<minute>\d\d)"
        r"(?::?(?P<second>\d\d)(?:[.,]?(?P<fraction>\d{3,9}))?)?(?: ?(?P<zone>[a-z+(\[-].*))?",
        # 25.04.2026 15:04:05, 04/25/2026, 3:04:05 PM
        rf"(?P<one>\d{{1,2}})([-/.])(?P<two>\d{{1,2}})\2(?P<year>\d{{4}}){_BETWEEN}{_TIME}",
        # Apr 25, 2026 3:04:05 PM; Saturday, April 25, 2026 at 15:04; Java's Sat Apr 25 15:04:05 PDT 2026
        rf"(?:[a-z]{{3,9}}\.?,? )?{_NAME}[ -](?P<day>\d{{1,2}})(?:[ ,-]+(?P<year>\d{{4}}))?{_BETWEEN}{_TIME}"
        r"(?: (?P<year_last>\d{4}))?",
        # 25-Apr-2026 15:04:05; Sat, 25 Apr 2026 15:04:05 GMT; 25/Apr/2026:15:04:05 +0200
        rf"(?:[a-z]{{3,9}}\.?,? )?(?P<day>\d{{1,2}})\.?[ /-]{_NAME}[ ,/-]+(?P<year>\d{{4}}){_BETWEEN}{_TIME}",
        rf"(?P<year>\d{{4}})[ /-]{_NAME}[ /-](?P<day>\d{{1,2}}){_BETWEEN}{_TIME}",
    )
)
_OFFSET: Final = re.compile(r"(?:utc|gmt|ut)? ?([+-])(\d{1,2})(?::?(\d\d))?", re.ASCII | re.IGNORECASE)
_AREA: Final = re.compile(r"[A-Za-z]+(?:/[A-Za-z0-9_+-]+){1,2}")
_PARENTHESIS: Final = re.compile(r" ?[(\[]([^()\[\]]*)[)\]]$")
# Names of zones that mean the same offset everywhere; CST, IST and BST do not.
_ABBREVIATIONS: Final = {
    **dict.fromkeys(("UTC", "GMT", "UT", "Z", "WET"), 0.0),
    "AKDT": -8,
    "AKST": -9,
    "EDT": -4,
    "EST": -5,
    "HST": -10,
    "MDT": -6,
    "MST": -7,
    "PDT": -7,
    "PST": -8,
    "CEST": 2,
    "CET": 1,
    "EEST": 3,
    "EET": 2,
    "MSK": 3,
    "WEST": 1,
    "ACDT": 10.5,
    "ACST": 9.5,
    "AEDT": 11,
    "AEST": 10,
    "AWST": 8,
    "HKT": 8,
    "JST": 9,
    "KST": 9,
    "NZDT": 13,
    "NZST": 12,
}
_HAS_TIME: Final = re.compile(r"[HhXx]|LT|LL")
_IS_EPOCH: Final = re.compile(r"[Xx]")
# What a format of pendulum has in brackets is text.
_LITERAL: Final = re.compile(r"\[[^\[]*\]|\\.")


def read_time(settings: CalloutSettings, text: str | None) -> datetime | None:
    """Parse a time of a callout.

    :param settings: its date format is tried first; its zone applies to times without one
    :param text: as received
    :return: UTC; ``None`` where there is no time, or it can be read in several ways, or is a date alone

    Example: with the zone ``Europe/Berlin``, ``25-Apr-2026 17:04:05`` and ``1777129445`` are 2026-04-25 15:04:05 UTC.
    """
    if not text or len(text) > _LONGEST:
        return None
    text = re.sub(r"\s+", " ", text.strip())
    for read in (_by_format, _by_epoch, _by_form):
        try:
            time = read(settings, text)
            if time is not None:
                return (time if time.tzinfo else time.replace(tzinfo=pendulum.timezone(settings.timezone))).astimezone(
                    UTC
                )
        except (ValueError, OverflowError, OSError):  # OSError: "America/Argentina" is a directory of zones
            continue
    return None


def names_its_zone(settings: CalloutSettings, text: str | None) -> bool:
    """Return whether a time contains its zone, so that the connection's does not apply."""
    there, elsewhere = (read_time(replace(settings, timezone=zone), text) for zone in ("Etc/GMT+12", "Etc/GMT-14"))
    return there is not None and there == elsewhere


def _by_format(settings: CalloutSettings, text: str) -> datetime | None:
    tokens = _LITERAL.sub("", settings.date_format or "")
    if settings.date_format is None or not _HAS_TIME.search(tokens):
        return None
    # An epoch is UTC, and pendulum would read it as a time of the zone.
    zone = "UTC" if _IS_EPOCH.search(tokens) else settings.timezone
    return pendulum.from_format(text, settings.date_format, tz=zone)


def _by_epoch(_settings: CalloutSettings, text: str) -> datetime | None:
    found = _EPOCH.fullmatch(text)
    if found is None:
        return None
    seconds, part, *others = found.groups()
    if seconds:
        return datetime.fromtimestamp(int(seconds), UTC) + _fraction(part)
    value, unit = next((int(each), 1000 ** (at + 1)) for at, each in enumerate(others) if each)
    return datetime.fromtimestamp(value // unit, UTC) + timedelta(microseconds=value % unit * 1_000_000 // unit)


def _by_form(settings: CalloutSettings, text: str) -> datetime | None:
    for form in _FORMS:
        found = form.fullmatch(text)
        if found is not None:
            return _from_parts(settings, found.groupdict())
    return None


def _from_parts(settings: CalloutSettings, parts: dict[str, str | None]) -> datetime | None:
    year, last = parts.get("year"), parts.get("year_last")
    if (year is None) is (last is None):
        return None
    hour = int(parts["hour"] or 0)
    if half := parts.get("half"):
        if not 1 <= hour <= 12:
            return None
        hour = hour % 12 + (12 if half in "pP" else 0)
    month, day = _day(parts)
    second = int(parts["second"] or 0)
    # A leap second, which a datetime does not have.
    second = 59 if second == 60 else second
    time = datetime(int(year or last or 0), month, day, hour, int(parts["minute"] or 0), second)
    time += _fraction(parts.get("fraction"))
    zone = parts.get("zone")
    return time.replace(tzinfo=_zone(settings, zone, time)) if zone else time


def _day(parts: dict[str, str | None]) -> tuple[int, int]:
    """Return month and day.

    :return: 0 where no month has the name
    :raises ValueError: either number may be the month
    """
    if name := parts.get("name"):
        # Month 0 is none.
        return _MONTH_BY_NAME.get(name.lower(), 0), int(parts["day"] or 0)
    if parts.get("one") is None:
        return int(parts["month"] or 0), int(parts["day"] or 0)
    one, two = int(parts["one"] or 0), int(parts["two"] or 0)
    if one > 12:
        return two, one
    if two > 12 or one == two:
        return one, two
    raise ValueError("either number may be the month")


def _fraction(digits: str | None) -> timedelta:
    return timedelta(microseconds=int((digits or "0").ljust(6, "0")[:6]))


def _zone(settings: CalloutSettings, text: str, time: datetime) -> tzinfo:
    """Return the zone of a time.

    :raises ValueError: it is unknown, or its name has several meanings
    """
    if inner := _PARENTHESIS.search(text):
        # Java and JavaScript add a zone's name to its offset.
        text = text[: inner.start()].strip() or inner[1]
    if found := _OFFSET.fullmatch(text):
        offset = timedelta(hours=int(found[2]), minutes=int(found[3] or 0))
        return timezone(-offset if found[1] == "-" else offset)
    if _AREA.fullmatch(text):
        return pendulum.timezone(text)
    name = text.upper()
    # The connection's zone comes first: the meaning of its own names is known.
    local = pendulum.timezone(settings.timezone)
    for fold in (0, 1):
        here = time.replace(tzinfo=local, fold=fold)
        offset = here.utcoffset() or timedelta(0)
        if here.tzname() == name:
            return timezone(offset)
    if name not in _ABBREVIATIONS:
        raise ValueError(f"the zone {text!r:.40} has several meanings, or none")
    return timezone(timedelta(hours=_ABBREVIATIONS[name]))
