"""One meter version that is watched: who waits for it, when it is asked about, and what callouts told of it."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from airflow_mediation_provider.protocol.feed import MeterQuestion
from airflow_mediation_provider.protocol.times import to_utc

if TYPE_CHECKING:
    import asyncio
    from collections.abc import Iterable, Sequence
    from datetime import datetime

    from airflow_mediation_provider.protocol.lifecycle import SessionState
    from airflow_mediation_provider.watch.agenda import Entry
    from airflow_mediation_provider.watch.onlooker import Onlooker
    from airflow_mediation_provider.watch.pace import Pace
    from airflow_mediation_provider.watch.waiter import Waiter

_TIDY_FROM = 64


class WatchedMeter:
    """A meter version of a hub.

    :param key: meter id and version
    :param pace: when to ask next
    """

    __slots__ = (
        "_by_session",
        "_curious",
        "_question",
        "_sessions",
        "_since_named",
        "_tidy_at",
        "asked_at",
        "due",
        "eager",
        "key",
        "onlookers",
        "pace",
        "queued",
        "shown",
        "task",
        "waiters",
    )

    def __init__(self, key: tuple[str, str], pace: Pace) -> None:
        self.key = key
        self.pace = pace
        self.waiters: dict[Waiter, None] = {}
        self.onlookers: dict[Onlooker, None] = {}
        self.due: Entry | None = None
        self.asked_at = -math.inf
        self.eager = False
        self.queued = False
        self.task: asyncio.Task[float] | None = None
        # The status that was reported last.
        self.shown: str | None = None
        self._by_session: dict[str, dict[Waiter, None]] = {}
        # Those that want to learn of every session of the meter.
        self._curious: dict[Waiter, None] = {}
        self._sessions: dict[str, SessionState] = {}
        self._tidy_at = _TIDY_FROM
        self._question: MeterQuestion | None = None
        self._since_named: datetime | None = None

    def add(self, waiter: Waiter) -> None:
        """Let somebody wait."""
        self.waiters[waiter] = None
        session_id = waiter.wait.condition.session_id
        if session_id is not None:
            self._by_session.setdefault(session_id, {})[waiter] = None
            # Never later again: each new instant costs a look at everything that is asked of the meter.
            earliest = waiter.wait.known.earliest
            self._since_named = min(self._since_named or earliest, earliest)
        self.look_after(waiter)
        self._question = None

    def remove(self, waiter: Waiter) -> None:
        """Let somebody go; a second time does nothing."""
        self.waiters.pop(waiter, None)
        self._curious.pop(waiter, None)
        session_id = waiter.wait.condition.session_id
        if session_id is not None and (others := self._by_session.get(session_id)) is not None:
            others.pop(waiter, None)
            if not others:
                del self._by_session[session_id]
        self._question = None

    def look_after(self, waiter: Waiter) -> None:
        """Note whether a wait, which has just been told something, wants to learn of every session from now on."""
        if waiter.wait.curious:
            self._curious[waiter] = None
        else:
            self._curious.pop(waiter, None)

    @property
    def watched(self) -> bool:
        """Whether anybody is here for it."""
        return bool(self.waiters or self.onlookers)

    def interval(self, cross_check: float | None) -> float:
        """Return the shortest interval that anybody who is still here asks for.

        :param cross_check: seconds, the shortest for waits that callouts serve; ``None``: they serve none
        """
        least = cross_check or 0.0
        waits = (max(w.poll_interval, 0.0 if w.wait.polls_only else least) for w in self.waiters)
        return min((*waits, *(onlooker.poll_interval for onlooker in self.onlookers)))

    def question(self) -> MeterQuestion | None:
        """Return what is to be known of the meter's sessions, ``None`` where nobody waits for one.

        Of the others, what begins after an awaited one matters as well: a poll may show them instead.
        """
        if self._question is None:
            waits = [waiter.wait for waiter in self.waiters if not waiter.wait.polls_only]
            if not waits:
                return None
            since = {wait.known.earliest for wait in waits if wait.condition.session_id is None}
            if self._by_session and self._since_named is not None:
                since.add(self._since_named)
            self._question = MeterQuestion(sessions=frozenset(self._by_session), since=frozenset(since))
        return self._question

    @property
    def sessions(self) -> Sequence[SessionState]:
        """What callouts told of the meter's sessions."""
        return tuple(self._sessions.values())

    def named(self) -> set[str]:
        """Return the sessions that somebody waits for by name."""
        return set(self._by_session)

    def take(self, states: Iterable[SessionState]) -> list[SessionState]:
        """Keep what callouts tell of the meter's sessions, and return what is new of it."""
        new = [state for state in states if self._sessions.get(state.session_id) != state]
        self._sessions.update((state.session_id, state) for state in new)
        if len(self._sessions) > self._tidy_at:
            self._tidy()
        return new

    def concerned(self, states: Sequence[SessionState]) -> list[Waiter]:
        """Return the waiters whom new states may concern, each once."""
        found: dict[Waiter, None] = {}
        for state in states:
            found.update(self._by_session.get(state.session_id, {}))
        if self._curious:
            starts = [to_utc("begun_at", state.begun_at) for state in states]
            told, first, last = {state.session_id for state in states}, min(starts), max(starts)
            found.update((each, None) for each in self._curious if each.wait.known.may_bind(told, first, last))
        return list(found)

    def _tidy(self) -> None:
        """Forget sessions that had ended before anybody's began."""
        since = min((waiter.wait.known.earliest for waiter in self.waiters), default=None)
        self._sessions = {
            session_id: state
            for session_id, state in self._sessions.items()
            if session_id in self._by_session or not (state.terminal and since and state.last_observed_at < since)
        }
        self._tidy_at = max(_TIDY_FROM, 2 * len(self._sessions))
