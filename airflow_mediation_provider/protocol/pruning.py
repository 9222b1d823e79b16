"""What may be deleted of an old journal, and how a worker, which has no database, has the API server do it; no I/O."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, fields
from typing import Any, Final

from airflow_mediation_provider.protocol.feed import PROTOCOL

PRUNE_PATH: Final = "/prune"
# Zuora sends a callout at most 5 times, at most 1,440 minutes apart: what it sends again within those days must be
# known as the same, or it would start DAGs again. A wait looks further back: a DAG that runs weekly asks for sessions
# of the last seven days, and waits for one as long as Airflow lets a sensor wait by default: seven days too.
# https://docs.zuora.com/en/zuora-platform/extensibility/events-and-notifications/configure-callout-settings
SHORTEST_DAYS: Final = 14


def check_days(days: object) -> float:
    """Return how many days of the journal are to be kept.

    :raises ValueError: they are too few; says why
    """
    if isinstance(days, bool) or not isinstance(days, int | float):
        raise ValueError(f"how many days to keep must be a number, not {days!r}")  # an argument's value
    if not days >= SHORTEST_DAYS:
        raise ValueError(
            f"{days:g} days are too few, the journal keeps at least {SHORTEST_DAYS}: a callout that Zuora sends again "
            "must be known as the same, or it would start DAGs again, and waits look for sessions of the last days"
        )
    return days


@dataclass(frozen=True, slots=True, kw_only=True)
class Pruned:
    """What was deleted, or would be.

    :param sessions: sessions that ended
    :param changes: what was told of them
    :param others: everything else: polls, periodic updates, unreadable callouts, the calls of an hour
    :param waits: waits that ended, or were heard of no more
    :param needed: old sessions that stay, because a wait still goes on
    """

    sessions: int = 0
    changes: int = 0
    others: int = 0
    waits: int = 0
    needed: int = 0

    def __str__(self) -> str:
        """Return it as part of a sentence."""
        words = (
            f"{self.sessions:,} sessions with {self.changes:,} changes of status, "
            f"{self.others:,} other records, {self.waits:,} waits"
        )
        return f"{words}; {self.needed:,} sessions stay for waits that go on" if self.needed else words

    def __add__(self, other: Pruned) -> Pruned:
        """Return the sums."""
        return Pruned(**{each.name: getattr(self, each.name) + getattr(other, each.name) for each in fields(self)})


def request_to_bytes(older_than_days: float) -> bytes:
    """Return the request to delete what is older, of the connection that signs it, as JSON."""
    return json.dumps({"protocol": PROTOCOL, "older_than_days": older_than_days}).encode()


def request_from_bytes(data: bytes) -> float:
    """Return how many days a request wants to keep.

    :raises ValueError: it is no request, or wants too few
    """
    return check_days(_load(data, "request").get("older_than_days"))


def reply_to_bytes(pruned: Pruned, *, done: bool) -> bytes:
    """Return the reply as JSON.

    :param pruned: what this request deleted
    :param done: nothing is left to delete; otherwise the same is to be asked again
    """
    return json.dumps({"protocol": PROTOCOL, "pruned": asdict(pruned), "done": done}).encode()


def reply_from_bytes(data: bytes) -> tuple[Pruned, bool]:
    """Return what a request deleted, and whether nothing is left to delete.

    :raises ValueError: it is no reply
    """
    values = _load(data, "reply")
    try:
        counts = values["pruned"]
        return Pruned(**{each.name: int(counts[each.name]) for each in fields(Pruned)}), values["done"] is True
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError(f"the prune reply cannot be read: {error!r}") from None


def _load(data: bytes, what: str) -> dict[str, Any]:
    try:
        values = json.loads(data)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"the prune {what} cannot be read: {error}") from None
    if not isinstance(values, dict) or values.get("protocol") != PROTOCOL:
        raise ValueError(f"this is no prune {what} of protocol {PROTOCOL}")
    return values
