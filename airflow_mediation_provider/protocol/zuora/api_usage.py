"""API usage: the requests sent to Zuora, counted by the hour and compared with the tenant's limits; no clock, no I/O.

Zuora limits the requests of a tenant. This module counts those that this provider sends over one connection. Requests
of the tenant's other clients show only in the remaining quota, where Zuora's reply headers contain it.

Sources: https://developer.zuora.com/docs/guides/rate-limits/ (the headers, and 429; a refused request counts as well),
and the error message reference of Mediation (its own limit, code 70002005).
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from datetime import datetime, timedelta
from enum import StrEnum
from typing import TYPE_CHECKING, Final, NamedTuple

from airflow_mediation_provider.protocol.times import Instant, in_words, set_to_utc, to_utc
from airflow_mediation_provider.protocol.zuora.refusals import (
    RATE_LIMITED,
    Reply,
    first_number,
    read_words,
    refused,
    seconds_in,
)
from airflow_mediation_provider.protocol.zuora.requests import DataCenter

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping


KEPT_HOURS: Final = 25
"""Number of hours that are kept until they are reported: a day, and the hour in which it began."""
LIMITS_LENGTH: Final = 250
"""Characters of ``RateLimit-Limit`` that the journal's column holds."""
_MOST_CALLS: Final = 100_000_000
_MOST_LEFT: Final = 10**15
_LONGEST_WINDOW: Final = 24 * 3600.0

TIGHT_FROM: Final = 0.7
SPENT_FROM: Final = 0.9
"""Share of a limit from which on the next burst of calls may be refused."""
_FRESH: Final = timedelta(hours=1)
_AGED: Final = timedelta(minutes=1)
_DAY: Final = 24 * 3600
_WINDOWS: Final = {1: " this second", 60: " this minute", 3600: " this hour", _DAY: " today"}


@dataclass(frozen=True, slots=True, kw_only=True)
class RemainingQuota:
    """The calls that the tenant has left, from the headers of one reply.

    :param limits: the text of ``RateLimit-Limit``: a list of limits and their windows
    :param remaining: calls left of the first of these limits
    :param reset_at: when that limit is reset
    :param told_at: when the reply was received
    """

    limits: str | None = None
    remaining: int | None = None
    reset_at: Instant | None = None
    told_at: Instant

    def __post_init__(self) -> None:
        """Convert the instants to UTC, check the remaining calls, and cut the limits to the journal's column."""
        set_to_utc(self, "reset_at", "told_at")
        if self.remaining is not None and not 0 <= self.remaining < _MOST_LEFT:
            raise ValueError(f"{self.remaining} calls cannot be left")
        object.__setattr__(self, "limits", _limits(self.limits or ""))


@dataclass(frozen=True, slots=True, kw_only=True)
class HourlyUsage:
    """The requests sent over one connection within an hour, by one process or by many.

    :param hour: when the hour began
    :param calls: REST requests that were sent, answered or not
    :param limited: of these, those that were refused as too many
    :param left: the latest remaining quota that Zuora reported
    :raises ValueError: a number is not a count
    """

    hour: Instant
    calls: int
    limited: int = 0
    left: RemainingQuota | None = None

    def __post_init__(self) -> None:
        """Round the time down to its hour."""
        if not 0 <= self.limited <= self.calls <= _MOST_CALLS:
            raise ValueError(f"{self.calls} calls, {self.limited} of them limited, are not valid counts")
        object.__setattr__(self, "hour", beginning_of_hour(self.hour))

    def __add__(self, other: HourlyUsage) -> HourlyUsage:
        """Return the sums, with the later remaining quota."""
        quotas = [each for each in (self.left, other.left) if each is not None]
        return HourlyUsage(
            hour=self.hour,
            calls=self.calls + other.calls,
            limited=self.limited + other.limited,
            left=max(quotas, key=lambda left: left.told_at, default=None),
        )


def beginning_of_hour(at: datetime) -> datetime:
    """Return the start of the hour of an instant, in UTC."""
    return to_utc("hour", at).replace(minute=0, second=0, microsecond=0)


def counted(reply: object, at: datetime) -> HourlyUsage:
    """Return the usage of one call.

    :param reply: a :class:`Reply`; anything else: no reply was received
    :param at: when it was received
    """
    if not isinstance(reply, Reply):
        return HourlyUsage(hour=at, calls=1)
    return HourlyUsage(hour=at, calls=1, limited=int(is_limited(reply)), left=left_of(reply.headers, at))


def merged(calls: Iterable[HourlyUsage]) -> tuple[HourlyUsage, ...]:
    """Return the sums by hour, the oldest hour first; only the last ``KEPT_HOURS`` are kept."""
    by_hour: dict[datetime, HourlyUsage] = {}
    for each in calls:
        known = by_hour.get(each.hour)
        by_hour[each.hour] = each if known is None else known + each
    return tuple(by_hour[hour] for hour in sorted(by_hour)[-KEPT_HOURS:])


def is_limited(reply: Reply) -> bool:
    """Return whether a reply refuses a call as one too many: by Zuora's limit for the tenant, or by Mediation's."""
    if reply.status == 429:
        return True
    if RATE_LIMITED.encode() not in reply.body:
        return False
    body = reply.json
    return refused(reply, body) and read_words(body or {})[0] == RATE_LIMITED


def left_of(headers: Mapping[str, str], at: datetime) -> RemainingQuota | None:
    """Return the remaining quota in a reply; ``None`` where it has none: Mediation's replies are documented without.

    :param headers: by lower-case name
    :param at: when the reply was received
    """
    limits = _limits(headers.get("ratelimit-limit", ""))
    number = first_number(headers.get("ratelimit-remaining", ""))
    remaining = int(number) if number is not None and number < _MOST_LEFT else None
    if limits is None and remaining is None:
        return None
    seconds = seconds_in(headers, "ratelimit-reset")
    # A longer time than Zuora's longest window is a mistake.
    known = seconds is not None and seconds <= _LONGEST_WINDOW
    reset_at = at + timedelta(seconds=seconds) if seconds is not None and known else None
    return RemainingQuota(limits=limits, remaining=remaining, reset_at=reset_at, told_at=at)


def _limits(text: str) -> str | None:
    """Return the text in one line, cut to the size of the journal's column; ``None`` where it is not a valid header."""
    line = " ".join(text.split())[:LIMITS_LENGTH]
    return line if line and line.isascii() and line.isprintable() else None


class DailyLimit(NamedTuple):
    """The calls per day that Zuora documents for a kind of tenant."""

    tenant: str
    calls: int


_DEVELOPER: Final = DailyLimit("a Developer Sandbox", 50_000)
_CENTRAL: Final = DailyLimit("a Central Sandbox", 27_000_000)
_API: Final = DailyLimit("an API Sandbox", 10_000)
_PRODUCTION: Final = DailyLimit("a production tenant", 27_000_000)
_DAILY_LIMITS: Final = {
    DataCenter.CSBX: (_DEVELOPER, _CENTRAL),
    DataCenter.CSBX_EU: (_DEVELOPER, _CENTRAL),
    DataCenter.CSBX_AP: (_DEVELOPER, _CENTRAL),
    DataCenter.SBX: (_API,),
    DataCenter.SBX_NA: (_API,),
    DataCenter.SBX_EU: (_API,),
    DataCenter.PROD: (_PRODUCTION,),
    DataCenter.PROD_NA: (_PRODUCTION,),
    DataCenter.PROD_EU: (_PRODUCTION,),
    DataCenter.PROD_AP: (_PRODUCTION,),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class ApiUsage:
    """The requests sent over one connection, and the latest remaining quota that Zuora reported.

    :param last_hour: calls of the last 60 minutes. They are counted by hour, so the oldest hour counts in proportion
    :param last_day: calls of the last 24 hours, counted likewise
    :param limited_last_day: of these, those that were refused as too many
    :param limits: the text of ``RateLimit-Limit``; ``None`` where Zuora did not report it
    :param remaining: calls left of the first of these limits; ``None`` where Zuora did not report it
    :param reset_at: when that limit is reset; ``None`` where Zuora did not report it
    :param told_at: when Zuora reported the quota; ``None``: not within the day
    """

    conn_id: str
    last_hour: int = 0
    last_day: int = 0
    limited_last_day: int = 0
    limits: str | None = None
    remaining: int | None = None
    reset_at: datetime | None = None
    told_at: datetime | None = None


class UsageLevel(StrEnum):
    """How much of a limit is used."""

    GOOD = "good"
    TIGHT = "tight"
    SPENT = "spent"


@dataclass(frozen=True, slots=True, kw_only=True)
class UsageStatus:
    """The API usage of one connection, rated.

    :param share: used share of the limit that is closest to being reached, 1 is all of it; ``None``: no limit is known
    :param level: ``spent`` from 90 % on; ``tight`` from 70 % on, or where calls were refused within a day
    :param words: the numbers behind it, as text without a full stop
    """

    share: float | None
    level: UsageLevel
    words: str


def daily_limits(data_center: DataCenter | None) -> tuple[DailyLimit, ...]:
    """Return the limits that Zuora documents for a data center; several where it has several kinds of tenants.

    :param data_center: ``None``: not known
    """
    return _DAILY_LIMITS[data_center] if data_center is not None else ()


def standing(budget: ApiUsage, data_center: DataCenter | None, now: datetime) -> UsageStatus:
    """Return the rated API usage.

    :param budget: the counted calls and the reported quota
    :param data_center: of the connection, ``None`` where it names none; see ``DataCenter.named``
    :param now: the time now
    """
    reported, reported_share = _reported_usage(budget, now)
    counted, counted_share = _counted(budget, data_center)
    share = max((each for each in (reported_share, counted_share) if each is not None), default=None)
    refused = f"{budget.limited_last_day:,} refused by the limit" if budget.limited_last_day else ""
    if share is not None and share >= SPENT_FROM:
        level = UsageLevel.SPENT
    elif refused or (share is not None and share >= TIGHT_FROM):
        level = UsageLevel.TIGHT
    else:
        level = UsageLevel.GOOD
    return UsageStatus(share=share, level=level, words="; ".join(each for each in (reported, counted, refused) if each))


def _reported_usage(budget: ApiUsage, now: datetime) -> tuple[str, float | None]:
    """Return the quota that Zuora reported, as long as it is valid: until the limit is reset."""
    if budget.remaining is None or budget.told_at is None or now >= (budget.reset_at or budget.told_at + _FRESH):
        return "", None
    windows = _windows(budget.limits)
    ago = f", at {in_words(budget.told_at)}" if now - budget.told_at >= _AGED else ""
    if not windows:
        return f"Zuora says: {budget.remaining:,} calls left{ago}", None
    limit = windows[0].calls
    # The first limit is repeated with its window; where two windows have the same limit, the window is unknown.
    named = {each.seconds for each in windows if each.calls == limit and each.seconds is not None}
    window = _WINDOWS.get(named.pop(), "") if len(named) == 1 else ""
    share = min(max(1 - budget.remaining / limit, 0.0), 1.0) if limit else 1.0
    return f"Zuora says: {budget.remaining:,} of {limit:,} left{window}{ago}", share


def _counted(budget: ApiUsage, data_center: DataCenter | None) -> tuple[str, float | None]:
    """Return the counted calls, with the daily limit that Zuora reported, else the one that it documents."""
    counted = f"{budget.last_day:,} call{'' if budget.last_day == 1 else 's'} in 24 h"
    named = next((each.calls for each in _windows(budget.limits) if each.seconds == _DAY and each.calls), None)
    if named is not None:
        return f"{counted} of the {named:,} that the tenant has a day", budget.last_day / named
    documented = daily_limits(data_center)
    if not documented:
        return f"{counted} (limit unknown)", None
    first, *others = documented
    if others:
        more = "".join(f", {each.tenant} {each.calls:,}" for each in others)
        return f"{counted}; {first.tenant} has {first.calls:,} a day{more}", None
    return f"{counted} of the {first.calls:,} that {first.tenant} has a day", budget.last_day / first.calls


class _Window(NamedTuple):
    calls: int
    seconds: int | None


def _windows(limits: str | None) -> list[_Window]:
    """Parse ``2250000, 50000;w=60, 2250000;w=3600``."""
    found = re.finditer(r"(?:^|,)\s*(\d{1,15})(?:\s*;\s*w\s*=\s*(\d{1,9}))?\s*(?=,|;|$)", limits or "", re.IGNORECASE)
    return [
        _Window(int(calls), int(seconds) if seconds else None) for calls, seconds in (each.groups() for each in found)
    ]
