"""How calls to Zuora are counted: by the hour, with what a reply's headers say is left; no clock, no I/O.

Sources: https://developer.zuora.com/docs/guides/rate-limits/ (the headers, and 429; a refused call counts as well), and
the error message reference of Mediation (its own limit, code 70002005).
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from typing import TYPE_CHECKING, Any, Final

from airflow_mediation_provider.protocol.refusals import RATE_LIMITED, Reply, first_number, read_words, refused
from airflow_mediation_provider.protocol.times import from_json, to_json, to_utc

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

KEPT_HOURS: Final = 25
"""So many hours are kept until they are reported: a day, and the hour that it began in."""
LIMITS_LENGTH: Final = 250
"""What the journal's column holds of ``RateLimit-Limit``."""
_MOST_CALLS: Final = 100_000_000
_MOST_LEFT: Final = 10**15
_LONGEST_WINDOW: Final = 24 * 3600.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Left:
    """What Zuora said in a reply of the calls that the tenant has left.

    :param limits: the text of ``RateLimit-Limit``: a list of limits and their windows
    :param remaining: of the first of these limits
    :param reset_at: when that limit counts anew
    :param told_at: when the reply came
    """

    limits: str | None
    remaining: int | None
    reset_at: datetime | None
    told_at: datetime


@dataclass(frozen=True, slots=True, kw_only=True)
class HourlyCalls:
    """What was asked of Zuora over one connection within an hour, by one process or by many.

    :param hour: when the hour began
    :param calls: REST requests that were sent, whether or not an answer came
    :param limited: of these, such as were answered that they are too many
    :param left: what Zuora said last
    :raises ValueError: a number is no count
    """

    hour: datetime
    calls: int
    limited: int = 0
    left: Left | None = None

    def __post_init__(self) -> None:
        """Bring the time to the beginning of its hour."""
        if not 0 <= self.limited <= self.calls <= _MOST_CALLS:
            raise ValueError(f"{self.calls} calls, {self.limited} of them limited, are no counts")
        object.__setattr__(self, "hour", beginning_of_hour(self.hour))

    def __add__(self, other: HourlyCalls) -> HourlyCalls:
        """Return the sums, with what was said last."""
        said = [each for each in (self.left, other.left) if each is not None]
        return replace(
            self,
            calls=self.calls + other.calls,
            limited=self.limited + other.limited,
            left=max(said, key=lambda left: left.told_at, default=None),
        )

    def to_dict(self) -> dict[str, Any]:
        """Return it as plain JSON, times as ISO 8601 in UTC."""
        left = self.left and {
            "limits": self.left.limits,
            "remaining": self.left.remaining,
            "reset_at": to_json(self.left.reset_at),
            "told_at": to_json(self.left.told_at),
        }
        return {"hour": to_json(self.hour), "calls": self.calls, "limited": self.limited, "left": left}

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> HourlyCalls:
        """Read what ``to_dict`` gave; unknown keys are left out.

        :raises KeyError, TypeError, ValueError: it is none
        """
        left = data.get("left")
        return cls(
            hour=_instant(data["hour"]),
            calls=int(data["calls"]),
            limited=int(data.get("limited") or 0),
            left=None if left is None else _left(left),
        )


def beginning_of_hour(at: datetime) -> datetime:
    """Return when the hour of an instant began, in UTC."""
    return to_utc("hour", at).replace(minute=0, second=0, microsecond=0)


def counted(reply: object, at: datetime) -> HourlyCalls:
    """Return one call as it counts.

    :param reply: a :class:`Reply`; anything else: none came
    :param at: when it came
    """
    if not isinstance(reply, Reply):
        return HourlyCalls(hour=at, calls=1)
    return HourlyCalls(hour=at, calls=1, limited=int(is_limited(reply)), left=left_of(reply.headers, at))


def merged(calls: Iterable[HourlyCalls]) -> tuple[HourlyCalls, ...]:
    """Add up what is of the same hour, the oldest hour first; of many hours the last ``KEPT_HOURS`` are kept."""
    by_hour: dict[datetime, HourlyCalls] = {}
    for each in calls:
        known = by_hour.get(each.hour)
        by_hour[each.hour] = each if known is None else known + each
    return tuple(by_hour[hour] for hour in sorted(by_hour)[-KEPT_HOURS:])


def is_limited(reply: Reply) -> bool:
    """Say whether a reply says that there were too many calls: by Zuora's limit for the tenant, or by Mediation's."""
    if reply.status == 429:
        return True
    if RATE_LIMITED.encode() not in reply.body:
        return False
    body = reply.json
    return refused(reply, body) and read_words(body or {})[0] == RATE_LIMITED


def left_of(headers: Mapping[str, str], at: datetime) -> Left | None:
    """Return what a reply says is left; ``None`` where it says nothing, as Mediation's replies are documented.

    :param headers: by lower-case name
    :param at: when the reply came
    """
    limits = _limits(headers.get("ratelimit-limit", ""))
    number = first_number(headers.get("ratelimit-remaining", ""))
    remaining = int(number) if number is not None and number < _MOST_LEFT else None
    if limits is None and remaining is None:
        return None
    seconds = first_number(headers.get("ratelimit-reset", ""))
    # More than the longest window that Zuora has is no number of seconds: an instant, say.
    known = seconds is not None and seconds <= _LONGEST_WINDOW
    reset_at = at + timedelta(seconds=seconds) if seconds is not None and known else None
    return Left(limits=limits, remaining=remaining, reset_at=reset_at, told_at=at)


def _left(data: Mapping[str, Any]) -> Left:
    remaining = data.get("remaining")
    if remaining is not None and not 0 <= int(remaining) < _MOST_LEFT:
        raise ValueError(f"{remaining} calls cannot be left")
    return Left(
        limits=_limits(str(data.get("limits") or "")),
        remaining=None if remaining is None else int(remaining),
        reset_at=from_json(data.get("reset_at")),
        told_at=_instant(data["told_at"]),
    )


def _limits(text: str) -> str | None:
    """Return the text in one line, as far as the journal holds it; ``None`` of what no header of this kind has."""
    line = " ".join(text.split())[:LIMITS_LENGTH]
    return line if line and line.isascii() and line.isprintable() else None


def _instant(text: Any) -> datetime:
    instant = from_json(text)
    if instant is None:
        raise TypeError("an instant is null")
    return instant
