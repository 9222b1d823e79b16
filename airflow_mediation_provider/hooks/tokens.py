"""The tokens of this process: one per tenant, fetched once however many threads and event loops ask for it.

Nothing here belongs to an event loop: whoever waits does so on a ``concurrent.futures.Future``, which threads wait for
directly and loops through ``asyncio.wrap_future``. A fetch whose loop or thread died is taken over.
"""

from __future__ import annotations

import hashlib
import os
import threading
import time
from concurrent.futures import Future, InvalidStateError
from concurrent.futures import TimeoutError as FutureTimeoutError
from contextlib import suppress
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final

from airflow_mediation_provider.protocol.exchange import REQUEST_TIMEOUT, Claim

if TYPE_CHECKING:
    from collections.abc import Callable

    from airflow_mediation_provider.protocol.errors import MediationError

LONGEST_FLIGHT: Final = REQUEST_TIMEOUT + 5
"""Seconds after which a fetch of a token counts as lost, because its thread or event loop is gone."""
MARGIN: Final = 120.0
"""Seconds before its end at which a token is renewed; at most a tenth of its life."""


@dataclass(frozen=True, slots=True)
class _Token:
    text: str = field(repr=False)
    renew_at: float


class TokenFlight:
    """One fetch of a token that is under way."""

    def __init__(self, tokens: TenantTokens, started: float) -> None:
        self.started = started
        self.error: MediationError | None = None
        self._tokens = tokens
        self._over: Future[None] = Future()
        # A running future cannot be cancelled: a waiter that is cancelled takes nobody else's wait with it.
        self._over.set_running_or_notify_cancel()

    def land(self, token: str, life: float) -> None:
        """Hand over the token, good for ``life`` seconds from the start of the flight."""
        self._tokens.store(self, _Token(token, self.started + life - min(MARGIN, life / 10)))
        self._end()

    def fail(self, error: MediationError | None) -> None:
        """End without a token; does nothing after a landing."""
        if not self._over.done():
            self.error = error
        self._tokens.store(self, None)
        self._end()

    def _end(self) -> None:
        with suppress(InvalidStateError):
            self._over.set_result(None)

    def wait(self) -> None:
        """Wait in a thread until the flight is over or counts as lost."""
        with suppress(FutureTimeoutError):
            self._over.result(self._tokens.time_left(self))

    async def wait_async(self) -> None:
        """Wait in an event loop until the flight is over or counts as lost."""
        import asyncio

        with suppress(asyncio.TimeoutError):
            await asyncio.wait_for(asyncio.wrap_future(self._over), self._tokens.time_left(self))


class TenantTokens:
    """The token of one tenant.

    :param clock: seconds that only ever go forward
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._lock = threading.Lock()
        self._token: _Token | None = None
        self._flight: TokenFlight | None = None

    def claim(self) -> Claim:
        """Look for the token: it is there, or somebody fetches it, or the caller must."""
        with self._lock:
            now = self._clock()
            if self._token is not None and now < self._token.renew_at:
                return Claim(token=self._token.text)
            if self._flight is not None and now - self._flight.started < LONGEST_FLIGHT:
                return Claim(wait_for=self._flight)
            self._flight = TokenFlight(self, now)
            return Claim(carry_out=self._flight)

    def discard(self, token: str | None = None) -> None:
        """Forget this token, and no newer one; without an argument, whichever there is."""
        with self._lock:
            if self._token is not None and token in (None, self._token.text):
                self._token = None

    def store(self, flight: TokenFlight, token: _Token | None) -> None:
        """Take what a flight brought, if anything, and forget the flight."""
        with self._lock:
            if token is not None:
                self._token = token
            if self._flight is flight:
                self._flight = None

    def time_left(self, flight: TokenFlight) -> float:
        """Return the seconds until a flight counts as lost."""
        return max(0.0, flight.started + LONGEST_FLIGHT - self._clock())


_tenants: dict[tuple[str, str, str], TenantTokens] = {}
_tenants_lock = threading.Lock()


def tokens_of(base_url: str, client_id: str, client_secret: str) -> TenantTokens:
    """Return the tokens of a tenant in this process; another secret is another tenant: it has to prove itself."""
    key = (base_url, client_id, hashlib.sha256(client_secret.encode()).hexdigest())
    with _tenants_lock:
        return _tenants.setdefault(key, TenantTokens())


def forget_all() -> None:
    """Forget every token. A forked process does it first: locks and flights of its parent mean nothing in it."""
    global _tenants, _tenants_lock
    _tenants, _tenants_lock = {}, threading.Lock()


os.register_at_fork(after_in_child=forget_all)
