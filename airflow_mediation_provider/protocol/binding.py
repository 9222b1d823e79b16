"""Binding: which session a wait without a session id is for, the first of its meter that starts at or after an instant.

Callouts come late and in any order, and the first of a session may tell neither its start nor that it is a test. So the
binding is computed anew from whatever is known: it does not depend on the order in which things became known, and it
is the same in each process that knows the same. What was learned too late for a wait that has ended changes nothing.
"""

from __future__ import annotations

from datetime import datetime, timedelta
from typing import TYPE_CHECKING, Any, Final

from airflow_mediation_provider.protocol.times import from_json, to_json, to_utc

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from airflow_mediation_provider.protocol.condition import SessionCondition
    from airflow_mediation_provider.protocol.lifecycle import SessionState

CLOCK_SKEW: Final = timedelta(minutes=5)
"""How far Zuora's clock and ours may differ, where only Zuora's start time tells when a session began."""
_OUR_SKEW: Final = timedelta(seconds=5)
"""The same of two machines of ours."""
_KEPT: Final = 8
"""Sessions that are remembered: the first, and those that come first once it turns out that it does not count."""


class Binding:
    """The sessions that a condition without a session id may be for.

    :param condition: what is waited for
    :param earliest: the earliest start by Zuora's clock; ``None``: any
    :param called_at: by our clock: the instant of the run call that started the session, and whose reply was lost.
        Zuora's clock may be behind it; but nobody heard of the session before
    """

    __slots__ = ("_condition", "_earliest", "_heard_from", "_starts")

    def __init__(
        self, condition: SessionCondition, *, earliest: datetime | None, called_at: datetime | None = None
    ) -> None:
        self._condition = condition
        self._earliest = earliest if called_at is None else called_at - CLOCK_SKEW
        self._heard_from = None if called_at is None else called_at - _OUR_SKEW
        self._starts: dict[str, datetime] = {}

    @property
    def session_id(self) -> str | None:
        """The session that the condition is bound to, ``None`` while none is known that counts."""
        return min(self._starts, key=lambda session_id: (self._starts[session_id], session_id), default=None)

    @property
    def start(self) -> datetime | None:
        """When the session started that the condition is bound to."""
        return min(self._starts.values(), default=None)

    @property
    def earliest(self) -> datetime | None:
        """From when on sessions are of interest, by Zuora's clock."""
        return self._earliest

    def take(self, states: Iterable[SessionState]) -> None:
        """Take what is known of sessions, of the meter and of others, in any order and any number of times."""
        for state in states:
            if self._counts(state):
                self._starts[state.session_id] = to_utc("begun_at", state.begun_at)
            else:
                self._starts.pop(state.session_id, None)
        if len(self._starts) > _KEPT:
            order = sorted((start, session_id) for session_id, start in self._starts.items())
            self._starts = {session_id: start for start, session_id in order[:_KEPT]}

    def _counts(self, state: SessionState) -> bool:
        condition = self._condition
        return (
            state.meter_id == condition.meter_id
            and state.run_type is condition.run_type
            and (self._earliest is None or state.begun_at >= self._earliest)
            and (self._heard_from is None or state.first_observed_at >= self._heard_from)
        )

    def to_list(self) -> list[list[str | None]]:
        """Return what is remembered as plain JSON, the first session first."""
        return [[session_id, to_json(start)] for session_id, start in sorted(self._starts.items(), key=_by_start)]

    def load(self, data: Sequence[Any]) -> None:
        """Take back what ``to_list`` gave.

        :raises ValueError: a start is no instant
        """
        for session_id, text in data:
            start = from_json(text)
            if start is not None:
                self._starts[str(session_id)] = start


def _by_start(item: tuple[str, datetime]) -> tuple[datetime, str]:
    return item[1], item[0]
