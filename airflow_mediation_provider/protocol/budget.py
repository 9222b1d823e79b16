"""How the budget of calls to Zuora stands: what was counted, held against what Zuora says or documents; no I/O.

Zuora limits the calls of a tenant. What is counted here are those of this provider over one connection; whatever else
calls the tenant is seen in what Zuora says is left, where it says so.

Source: https://developer.zuora.com/docs/guides/rate-limits/
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from datetime import datetime, timedelta
from enum import StrEnum
from typing import Final, NamedTuple

from airflow_mediation_provider.protocol.data_centers import DataCenter
from airflow_mediation_provider.protocol.times import humanize

TIGHT_FROM: Final = 0.7
SPENT_FROM: Final = 0.9
"""Of a limit: from here on the next surge of calls may be refused."""
_FRESH: Final = timedelta(hours=1)
_AGED: Final = timedelta(minutes=1)
_DAY: Final = 24 * 3600
_WINDOWS: Final = {1: " this second", 60: " this minute", 3600: " this hour", _DAY: " today"}


class DailyLimit(NamedTuple):
    """How many calls a day Zuora documents for a kind of tenant."""

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
class Budget:
    """What was asked of Zuora over one connection, and what Zuora said last of what is left.

    :param last_hour: calls of the last 60 minutes. Counted by the hour: of the hour in which they began, its share
    :param last_day: calls of the last 24 hours, counted likewise
    :param limited_last_day: of these, such as were answered that they are too many
    :param limits: the text of ``RateLimit-Limit``; ``None`` where Zuora did not say
    :param remaining: calls left of the first of these limits; ``None`` where Zuora did not say
    :param reset_at: when that limit counts anew; ``None`` where Zuora did not say
    :param told_at: when Zuora said so; ``None``: not within the day
    """

    conn_id: str
    last_hour: int = 0
    last_day: int = 0
    limited_last_day: int = 0
    limits: str | None = None
    remaining: int | None = None
    reset_at: datetime | None = None
    told_at: datetime | None = None


class Level(StrEnum):
    """How much of a budget is used."""

    GOOD = "good"
    TIGHT = "tight"
    SPENT = "spent"


@dataclass(frozen=True, slots=True, kw_only=True)
class Standing:
    """How a budget stands.

    :param share: how much of the limit that is nearest is used, 1 being all of it; ``None``: no limit is known
    :param level: ``spent`` from 90 % on; ``tight`` from 70 % on, or where calls were refused within a day
    :param words: one sentence, without a full stop, that says what this rests on
    """

    share: float | None
    level: Level
    words: str


def daily_limits(data_center: DataCenter | None) -> tuple[DailyLimit, ...]:
    """Return what Zuora documents for the tenants of a data center; several where it has tenants of several kinds.

    :param data_center: ``None``: it is not known
    """
    return _DAILY_LIMITS[data_center] if data_center is not None else ()


def standing(budget: Budget, data_center: DataCenter | None, now: datetime) -> Standing:
    """Return how a budget stands.

    :param budget: what was counted
    :param data_center: of the connection, ``None`` where it names none; see ``DataCenter.named``
    :param now: the time now
    """
    told, told_share = _told(budget, now)
    counted, counted_share = _counted(budget, data_center)
    share = max((each for each in (told_share, counted_share) if each is not None), default=None)
    refused = f"{budget.limited_last_day:,} refused as too many" if budget.limited_last_day else ""
    if share is not None and share >= SPENT_FROM:
        level = Level.SPENT
    elif refused or (share is not None and share >= TIGHT_FROM):
        level = Level.TIGHT
    else:
        level = Level.GOOD
    return Standing(share=share, level=level, words="; ".join(each for each in (told, counted, refused) if each))


def _told(budget: Budget, now: datetime) -> tuple[str, float | None]:
    """Return what Zuora says is left, as long as it holds: until the limit counts anew."""
    if budget.remaining is None or budget.told_at is None or now >= (budget.reset_at or budget.told_at + _FRESH):
        return "", None
    windows = _windows(budget.limits)
    age = now - budget.told_at
    ago = f", {humanize(age)} ago" if age >= _AGED else ""
    if not windows:
        return f"Zuora says: {budget.remaining:,} calls left{ago}", None
    limit = windows[0].calls
    # The first limit is repeated with its window; where two windows have that limit, it may be either.
    named = {each.seconds for each in windows if each.calls == limit and each.seconds is not None}
    window = _WINDOWS.get(named.pop(), "") if len(named) == 1 else ""
    share = min(max(1 - budget.remaining / limit, 0.0), 1.0) if limit else 1.0
    return f"Zuora says: {budget.remaining:,} of {limit:,} left{window}{ago}", share


def _counted(budget: Budget, data_center: DataCenter | None) -> tuple[str, float | None]:
    """Return what was counted, beside the limit of a day that Zuora names, else the one that it documents."""
    counted = f"{budget.last_day:,} call{'' if budget.last_day == 1 else 's'} in 24 h"
    named = next((each.calls for each in _windows(budget.limits) if each.seconds == _DAY and each.calls), None)
    if named is not None:
        return f"{counted} of the {named:,} that the tenant has a day", budget.last_day / named
    documented = daily_limits(data_center)
    if not documented:
        return f"{counted} (their limit is not known)", None
    first, *others = documented
    if others:
        more = "".join(f", {each.tenant} {each.calls:,}" for each in others)
        return f"{counted}; {first.tenant} has {first.calls:,} a day{more}", None
    return f"{counted} of the {first.calls:,} that {first.tenant} has a day", budget.last_day / first.calls


class _Window(NamedTuple):
    calls: int
    seconds: int | None


def _windows(limits: str | None) -> list[_Window]:
    """Read ``2250000, 50000;w=60, 2250000;w=3600``."""
    found = re.finditer(r"(?:^|,)\s*(\d{1,15})(?:\s*;\s*w\s*=\s*(\d{1,9}))?\s*(?=,|;|$)", limits or "", re.IGNORECASE)
    return [
        _Window(int(calls), int(seconds) if seconds else None) for calls, seconds in (each.groups() for each in found)
    ]
