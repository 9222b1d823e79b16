"""Where a second source of knowledge plugs in beside the poll: one that names the session, and is therefore exact."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    import asyncio
    from collections.abc import Collection, Mapping, Sequence

    from airflow_mediation_provider.protocol.entry import Entry
    from airflow_mediation_provider.protocol.feed import MeterQuestion, WaitEnded, WaitReport
    from airflow_mediation_provider.protocol.lifecycle import SessionState


class FeedView(Protocol):
    """What a feed needs of the hub that follows it; for one connection."""

    new_questions: asyncio.Event
    """Set by the hub when a waiter came that must be told the present state; cleared with ``new_meters()``."""

    def new_meters(self) -> Collection[str]:
        """Return the meters of the waiters that came since the last call, and clear ``new_questions``."""

    def questions(self) -> Mapping[str, MeterQuestion]:
        """Return, by meter, what is to be known now."""

    def open_waits(self) -> Sequence[WaitReport]:
        """Return all waits that go on."""

    def named_waits(self) -> Sequence[WaitReport]:
        """Return the waits that go on, and know their session by another name than when they were last returned."""

    def ended_waits(self) -> Sequence[WaitEnded]:
        """Return the waits that ended, each once."""

    async def learn(self, states: Sequence[SessionState]) -> None:
        """Tell the waits what is known of sessions; the same state may come again, and in any order."""

    def connected(self, *, callouts: bool) -> None:
        """Take note that the feed answers, and whether the connection takes callouts; called with each answer."""

    def disconnected(self, reason: str) -> None:
        """Take note that the feed does not answer; called with each failure."""


class SessionFeed(Protocol):
    """Something that learns of sessions by itself, for one connection."""

    @property
    def address(self) -> str | None:
        """Where it was found; ``None`` while it is not."""

    async def follow(self, view: FeedView) -> None:
        """Ask and tell, until cancelled, and then report the ends of the last waits; it heals itself.

        When it raises, the hub calls it again after a pause.
        """

    async def observe(self, entries: Sequence[Entry]) -> None:
        """Report what was learned otherwise (polls); best effort, never raises, never waits for long."""
