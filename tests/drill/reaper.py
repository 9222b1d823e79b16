"""Kills API servers without warning while callouts come, and starts them again."""

from __future__ import annotations

import itertools
import signal
import threading
from typing import TYPE_CHECKING, Self

import httpx

from testkit.processes import wait_until

if TYPE_CHECKING:
    from collections.abc import Sequence

    from testkit.stack import AirflowStack


class Reaper:
    """A context manager: during its block a server dies every so often and is started again.

    :param stack: has the servers
    :param servers: their names; one after the other, and each fourth time all at once
    :param every: seconds from when all are up to the next death
    """

    def __init__(self, stack: AirflowStack, servers: Sequence[str], every: float) -> None:
        self._stack = stack
        self._servers = servers
        self._every = every
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._reap, daemon=True)
        self.deaths = 0
        self.error: BaseException | None = None

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *exc_info: object) -> None:
        self._over.set()
        self._thread.join()
        if self.error is not None:
            raise self.error

    def _all_answer(self) -> bool:
        for url in self._stack.api_urls:
            try:
                httpx.get(f"{url}/mediation/handshake", trust_env=False, timeout=5).raise_for_status()
            except httpx.HTTPError:
                return False
        return True

    def _reap(self) -> None:
        try:
            for number in itertools.count(1):
                if self._over.wait(self._every):
                    return
                condemned = self._servers if number % 4 == 0 else [self._servers[number % len(self._servers)]]
                for server in condemned:
                    self._stack.stop(server, sig=signal.SIGKILL)
                for server in condemned:
                    self._stack.start(server)
                self.deaths += len(condemned)
                # Except each fourth time, one server is always up, even if a start takes long on this machine.
                wait_until(self._all_answer, timeout=180, what="the API servers to be back")
        except BaseException as error:  # raised again in the block's thread
            self.error = error
