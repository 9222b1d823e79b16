"""One task's place in a hub: what it waits for, and what it has not been told yet."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

from airflow_mediation_provider.protocol.wait import SessionWait, WaitResult, WaitUpdate

if TYPE_CHECKING:
    from collections.abc import Callable
    from datetime import datetime

    from airflow_mediation_provider.protocol.grounds import Grounds
    from airflow_mediation_provider.watch.agenda import Entry
    from airflow_mediation_provider.watch.reports import WaitingTask


class Waiter:
    """A subscription to a hub; made by ``Hub.subscribe``.

    :param wait: the wait
    :param poll_interval: seconds between two looks that its task asked for
    :param came_at: loop time at which it came
    :param leave: takes it out of the hub
    :param task: the task, for the reports
    """

    __slots__ = (
        "_error",
        "_leave",
        "_lines",
        "_result",
        "_woken",
        "came_at",
        "closed",
        "deadline",
        "entry",
        "grounds",
        "named",
        "poll_interval",
        "said_at",
        "task",
        "wait",
    )

    def __init__(
        self,
        wait: SessionWait,
        poll_interval: float,
        *,
        came_at: float,
        leave: Callable[[Waiter], None],
        task: WaitingTask | None = None,
    ) -> None:
        self.wait = wait
        self.task = task
        # The session that it was last reported to wait for.
        self.named: str | None = None
        # What it was last told that it can rest on.
        self.grounds: Grounds | None = None
        self.poll_interval = poll_interval
        self.came_at = came_at
        # When its task last heard anything.
        self.said_at = came_at
        self.deadline: datetime | None = None
        self.entry: Entry | None = None
        self.closed = False
        self._leave = leave
        self._lines: list[str] = []
        self._result: WaitResult | None = None
        self._error: BaseException | None = None
        self._woken: asyncio.Future[None] | None = None

    @property
    def ended(self) -> bool:
        """Whether nothing more can come: closed, or with a result or an error that its task has yet to fetch."""
        return self.closed or self._result is not None or self._error is not None

    async def news(self) -> WaitUpdate:
        """Sleep until there is a line for the log or a result, and return all there is.

        :raises Exception: what the wait itself raised; a bug
        """
        while not self._lines and self._result is None and self._error is None:
            self._woken = asyncio.get_running_loop().create_future()
            try:
                await self._woken
            finally:
                self._woken = None
        if self._error is not None:
            raise self._error
        lines, self._lines = tuple(self._lines), []
        return WaitUpdate(lines=lines, result=self._result)

    def tell(self, update: WaitUpdate, at: float) -> None:
        """Keep an update for the task, and wake it."""
        self._lines.extend(update.lines)
        self._result = update.result
        self.said_at = at
        self._wake()

    def fail(self, error: BaseException) -> None:
        """Have ``news()`` raise the error."""
        self._error = error
        self._wake()

    def close(self) -> None:
        """Leave the hub, at once; a second call does nothing."""
        if self.closed:
            return
        self.closed = True
        if self.entry is not None:
            self.entry.cancel()
            self.entry = None
        self._leave(self)

    def _wake(self) -> None:
        if self._woken is not None and not self._woken.done():
            self._woken.set_result(None)
