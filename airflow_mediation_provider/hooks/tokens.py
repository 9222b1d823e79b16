"""The tokens of this process: one per tenant, fetched once for any number of threads and event loops.

Nothing here belongs to an event loop: waiters use a ``concurrent.futures.Future``, which threads wait for directly and
loops through ``asyncio.wrap_future``. A fetch whose loop or thread died is taken over.
"""

from __future__ import annotations

import asyncio
import hashlib
import os
import threading
import time
from concurrent.futures import Future, InvalidStateError
from concurrent.futures import TimeoutError as FutureTimeoutError
from contextlib import suppress
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final

from airflow_mediation_provider.protocol.zuora.flow import REQUEST_TIMEOUT, Claim

if TYPE_CHECKING:
    from collections.abc import Callable

    from airflow_mediation_provider.protocol.zuora.errors import MediationError

LONGEST_FLIGHT: Final = REQUEST_TIMEOUT + 5
"""Seconds after which a fetch of a token counts as lost, because its thread or event loop is gone."""
MARGIN: Final = 120.0
"""Seconds before its end at which a token is renewed; at most a tenth of its life."""


@dataclass(frozen=True, slots=True)
class _Token:
    text: str = field(repr=False)
    renew_at: float


def _mask(token: str) -> None:
    """Register a token with Airflow's masker, as Airflow itself does with a connection's password and secret extras."""
    from airflow.sdk.log import mask_secret

    from airflow_mediation_provider import version_compat

    try:
        loop = asyncio.get_running_loop()
    except RuntimeError:
        loop = None
    if loop is not None and version_compat.AIRFLOW_V_3_3_PLUS:
        # It waits for the supervisor, for which an event loop must not stop.
        loop.run_in_executor(None, mask_secret, token)
    else:
        # A triggerer of Airflow 3.2 dies if another thread sends to its supervisor; its event loop sends nothing here,
        # and the token is masked in this process alone, which masks each line before the supervisor has it.
        mask_secret(token)


class TokenFlight:
    """One fetch of a token in progress."""

    def __init__(self, tokens: TenantTokens, started: float) -> None:
        self.started = started
        self.error: MediationError | None = None
        self._tokens = tokens
        self._over: Future[None] = Future()
        # A running future cannot be cancelled: a cancelled waiter does not cancel the wait of others.
        self._over.set_running_or_notify_cancel()

    def land(self, token: str, life: float) -> None:
        """Publish the token, valid for ``life`` seconds from the start of the fetch; Airflow's logs never show it."""
        _mask(token)
        self._tokens.store(self, _Token(token, self.started + life - min(MARGIN, life / 10)))
        self._end()

    def fail(self, error: MediationError | None) -> None:
        """End without a token; does nothing after ``land()``."""
        if not self._over.done():
            self.error = error
        self._tokens.store(self, None)
        self._end()

    def _end(self) -> None:
        with suppress(InvalidStateError):
            self._over.set_result(None)

    def wait(self) -> None:
        """Wait in a thread until the fetch has ended or counts as lost."""
        with suppress(FutureTimeoutError):
            self._over.result(self._tokens.time_left(self))

    async def wait_async(self) -> None:
        """Wait in an event loop until the fetch has ended or counts as lost."""
        with suppress(asyncio.TimeoutError):
            await asyncio.wait_for(asyncio.wrap_future(self._over), self._tokens.time_left(self))


class TenantTokens:
    """The token of one tenant.

    :param clock: monotonic, in seconds
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._lock = threading.Lock()
        self._token: _Token | None = None
        self._flight: TokenFlight | None = None

    def claim(self) -> Claim:
        """Return the token, the fetch in progress, or a new fetch that the caller must carry out."""
        with self._lock:
            now = self._clock()
            if self._token is not None and now < self._token.renew_at:
                return Claim(token=self._token.text)
            if self._flight is not None and now - self._flight.started < LONGEST_FLIGHT:
                return Claim(wait_for=self._flight)
            self._flight = TokenFlight(self, now)
            return Claim(carry_out=self._flight)

    def discard(self, token: str | None = None) -> None:
        """Drop this token, but no newer one; without an argument, any token."""
        with self._lock:
            if self._token is not None and token in (None, self._token.text):
                self._token = None

    def store(self, flight: TokenFlight, token: _Token | None) -> None:
        """Store the token of a fetch, if there is one, and drop the fetch."""
        with self._lock:
            if token is not None:
                self._token = token
            if self._flight is flight:
                self._flight = None

    def time_left(self, flight: TokenFlight) -> float:
        """Return the seconds until a fetch counts as lost."""
        return max(0.0, flight.started + LONGEST_FLIGHT - self._clock())


_tenants: dict[tuple[str, str, str], TenantTokens] = {}
_tenants_lock = threading.Lock()


def tokens_of(base_url: str, client_id: str, client_secret: str) -> TenantTokens:
    """Return the tokens of a tenant in this process; another secret is another tenant: it must be verified itself."""
    key = (base_url, client_id, hashlib.sha256(client_secret.encode()).hexdigest())
    with _tenants_lock:
        return _tenants.setdefault(key, TenantTokens())


def forget_all() -> None:
    """Drop all tokens. A forked process does it first: locks and fetches of its parent are invalid in it."""
    global _tenants, _tenants_lock
    _tenants, _tenants_lock = {}, threading.Lock()


os.register_at_fork(after_in_child=forget_all)
