"""Hearing: what the hub's waits ask the feed, and whether they can rest on it.

The feed is lost, and found to be missing, only after a while: an API server that restarts is no reason to ask Zuora
about every meter.
"""

from __future__ import annotations

import asyncio
from collections import deque
from functools import partial
from typing import TYPE_CHECKING, Final

from airflow_mediation_provider import metrics
from airflow_mediation_provider.protocol.grounds import Callouts, grounds_of
from airflow_mediation_provider.watch.reports import ended, report

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Collection, Iterable, Mapping, Sequence
    from datetime import datetime

    from airflow_mediation_provider.protocol.feed import MeterQuestion, WaitEnded, WaitReport
    from airflow_mediation_provider.protocol.grounds import Grounds
    from airflow_mediation_provider.protocol.lifecycle import SessionState
    from airflow_mediation_provider.watch.agenda import Agenda, Entry
    from airflow_mediation_provider.watch.meter import WatchedMeter
    from airflow_mediation_provider.watch.waiter import Waiter

LOST_SECONDS: Final = 10.0
"""A feed that does not answer for this long is lost: polls come back to their own pace."""
UNFOUND_SECONDS: Final = 60.0
"""One that never answered is taken to be missing after this long."""


class Hearing:
    """A hub as its feed sees it; on the running event loop.

    :param conn_id: the Airflow connection
    :param meters: the meters of the hub
    :param agenda: the hub's
    :param tell: takes what is known of sessions
    :param settle: takes what waits can rest on, each time that changes; before the first time, ``None`` says that the
        feed does not answer yet
    :param address: tells where the feed was found
    :param cross_check: seconds between two polls while callouts are read
    :param now: the wall clock
    """

    def __init__(
        self,
        conn_id: str,
        meters: Callable[[], Iterable[WatchedMeter]],
        agenda: Agenda,
        *,
        tell: Callable[[Sequence[SessionState]], Awaitable[None]],
        settle: Callable[[Grounds | None], None],
        address: Callable[[], str | None],
        cross_check: float,
        now: Callable[[], datetime],
    ) -> None:
        self.new_questions = asyncio.Event()
        self._new_meters: set[str] = set()
        self._loop = asyncio.get_running_loop()
        self._conn_id = conn_id
        self._meters = meters
        self._agenda = agenda
        self._tell = tell
        self._settle = settle
        self._address = address
        self._cross_check = cross_check
        self._now = now
        self._callouts: Callouts | None = None
        self._silent: Entry | None = None
        # A few that are never told are no loss, and a feed may be out of reach for days.
        self._ended: deque[WaitEnded] = deque(maxlen=5000)

    # ---- what the feed asks ------------------------------------------------------------------------------------------

    def new_meters(self) -> Collection[str]:
        """Return the meters of the waiters that came since the last call."""
        self.new_questions.clear()
        found, self._new_meters = self._new_meters, set()
        return found

    def questions(self) -> Mapping[str, MeterQuestion]:
        """Return, by meter, what is to be known now."""
        found: dict[str, MeterQuestion] = {}
        for meter in self._meters():
            question, other = meter.question(), found.get(meter.key[0])
            if question is not None:
                found[meter.key[0]] = question if other is None else merged(question, other)
        return found

    def open_waits(self) -> Sequence[WaitReport]:
        """Return all waits that go on."""
        return self._reports(self._going())

    def named_waits(self) -> Sequence[WaitReport]:
        """Return the waits that go on, and know their session by another name than when they were last returned."""
        return self._reports(each for each in self._going() if each.wait.known.session_id != each.named)

    def _going(self) -> Iterable[Waiter]:
        return (waiter for meter in self._meters() for waiter in meter.waiters if not waiter.ended)

    def _reports(self, waiters: Iterable[Waiter]) -> list[WaitReport]:
        reports = []
        for waiter in waiters:
            if waiter.task is not None:
                waiter.named = waiter.wait.known.session_id
                reports.append(report(self._conn_id, waiter.wait, waiter.task, "triggerer"))
        return reports

    def ended_waits(self) -> Sequence[WaitEnded]:
        """Return the waits that ended, each once."""
        gone = list(self._ended)
        self._ended.clear()
        return gone

    # ---- what the feed tells -----------------------------------------------------------------------------------------

    async def learn(self, states: Sequence[SessionState]) -> None:
        """Tell the waits what is known of sessions."""
        await self._tell(states)

    def connected(self, *, callouts: bool) -> None:
        """Take note that the feed answers, and whether the connection takes callouts."""
        if self._silent is not None:
            self._silent.cancel()
            self._silent = None
        self._become(Callouts.READ if callouts else Callouts.OFF)

    def disconnected(self, reason: str) -> None:
        """Take note that the feed does not answer."""
        if self._silent is not None or self._callouts not in (None, Callouts.READ):
            return
        after, become = LOST_SECONDS, Callouts.LOST
        if self._callouts is None:
            self._settle(None)
            after, become = UNFOUND_SECONDS, Callouts.UNFOUND
        self._silent = self._agenda.add(self._loop.time() + after, partial(self._give_up, become, reason))

    def _give_up(self, callouts: Callouts, reason: str) -> None:
        self._silent = None
        self._become(callouts, reason)

    def _become(self, callouts: Callouts, reason: str = "") -> None:
        if callouts is not self._callouts:
            self._callouts = callouts
            if callouts in (Callouts.LOST, Callouts.UNFOUND):
                metrics.FEED_LOST.add(conn_id=self._conn_id)
            self._settle(
                grounds_of(
                    callouts,
                    self._conn_id,
                    address=self._address(),
                    cross_check=self._cross_check,
                    reason=reason,
                )
            )

    # ---- what the hub tells ------------------------------------------------------------------------------------------

    def came(self, waiter: Waiter) -> None:
        """Note that a waiter came, who must be told what the journal knows now."""
        self._new_meters.add(waiter.wait.condition.meter_id)
        self.new_questions.set()

    def left(self, waiter: Waiter) -> None:
        """Note the end of a wait."""
        if waiter.task is not None:
            self._ended.append(ended(self._conn_id, waiter.wait, waiter.task, self._now()))


def merged(one: MeterQuestion, other: MeterQuestion) -> MeterQuestion:
    """Return a question that asks what either does: callouts do not tell a meter's versions apart."""
    return type(one)(sessions=one.sessions | other.sessions, since=one.since | other.since)
