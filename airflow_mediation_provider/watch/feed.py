"""Where a second source of knowledge plugs in beside the poll: one that names the session, and is therefore exact."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from airflow_mediation_provider.protocol.lifecycle import SessionState


class SessionFeed(Protocol):
    """Something that learns of sessions by itself, for one connection."""

    async def follow(self, learn: Callable[[SessionState], Awaitable[None]]) -> None:
        """Hand over every state of a session that becomes known, until cancelled.

        It may say the same state again and again, and in any order: waits look at states, not at events. When it
        returns or raises, the hub calls it again after a pause.

        :param learn: tells the waits of that meter
        """
