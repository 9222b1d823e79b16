"""The feed for tasks on a worker: one look, or one report, that costs a task five seconds at the very most.

Nothing here fails a task. Whoever cannot reach the API server polls Zuora as without it.
"""

from __future__ import annotations

import logging
import threading
import time
from contextlib import suppress
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Final

from airflow_mediation_provider.hooks.calls import reported, unreported
from airflow_mediation_provider.protocol.errors import MediationError
from airflow_mediation_provider.protocol.feed import (
    FEED_PATH,
    HANDSHAKE_PATH,
    OBSERVATIONS_PATH,
    FeedReply,
    FeedRequest,
    derive_key,
    is_handshake,
    observations_to_bytes,
    signed_headers,
)
from airflow_mediation_provider.watch.feed_address import Candidate, candidates

if TYPE_CHECKING:
    from collections.abc import Sequence

    import requests

    from airflow_mediation_provider.hooks.mediation import MediationHook
    from airflow_mediation_provider.protocol.entry import Entry

log = logging.getLogger(__name__)

PATIENCE_SECONDS: Final = 5.0
"""All attempts of one call together."""
CONNECT_SECONDS: Final = 2.0
FORGIVEN_SECONDS: Final = 60.0
"""A feed that did not answer is left alone for so long: a task pokes often, and should not pay each time."""


class FeedUnavailableError(Exception):
    """The API server's paths under ``/mediation`` gave no good answer; one sentence says why."""


class _Process:
    """What the tasks of this process know of the feed's address, whatever their connection."""

    lock: Final = threading.Lock()
    found: Candidate | None = None
    failed_at: float | None = None
    reason: str = ""


class FeedCaller:
    """Calls the API server for one connection.

    :param hook: knows the connection, whose client secret signs the calls
    :param seconds: what one call may cost in all
    """

    def __init__(self, hook: MediationHook, *, seconds: float = PATIENCE_SECONDS) -> None:
        self._hook = hook
        self._seconds = seconds
        self._session: requests.Session | None = None
        self._noted = ""

    @property
    def address(self) -> str | None:
        """Where the API server was found; ``None`` while it is not."""
        found = _Process.found
        return None if found is None else found.url

    @property
    def trouble(self) -> str:
        """Why the last call got no answer; empty where each got one."""
        return self._noted

    def look(self, question: FeedRequest) -> FeedReply | None:
        """Return what the journal knows now, ``None`` without an answer."""
        try:
            with reported(self._hook.mediation_conn_id) as calls:
                body = self.call(FEED_PATH, replace(question, calls=calls).to_bytes())
            return FeedReply.from_bytes(body)
        except (FeedUnavailableError, ValueError) as error:
            self._note(error)
            return None

    def observe(self, entries: Sequence[Entry]) -> bool:
        """Report what was learned, and return whether the journal has it."""
        try:
            with reported(self._hook.mediation_conn_id) as calls:
                self.call(OBSERVATIONS_PATH, observations_to_bytes(entries, calls))
        except (FeedUnavailableError, ValueError) as error:
            self._note(error)
            return False
        return True

    def report_calls(self) -> None:
        """Report the calls to Zuora that no other report has carried, if there are any, before the process ends.

        Best effort, and silent: where nobody takes them, they are not counted.
        """
        if unreported(self._hook.mediation_conn_id):
            with suppress(FeedUnavailableError), reported(self._hook.mediation_conn_id) as calls:
                self.call(OBSERVATIONS_PATH, observations_to_bytes((), calls))

    def call(self, path: str, body: bytes) -> bytes:
        """Make one signed call, and return the body of its good answer.

        :param path: a path under ``/mediation``
        :raises FeedUnavailableError: there was none, the address failed within the last minute, or the connection is
            missing or wrong
        """
        deadline = time.monotonic() + self._seconds
        address = self._address(deadline)
        try:
            settings = self._hook.settings
        except MediationError as error:
            raise FeedUnavailableError(str(error)) from error
        headers = signed_headers(
            derive_key(settings.client_secret),
            path=path,
            conn_id=settings.conn_id,
            body=body,
            timestamp=int(time.time()),
        )
        headers["Content-Type"] = "application/json"
        try:
            reply = self._send("POST", address.url + path, deadline, data=body, headers=headers)
        except FeedUnavailableError as error:
            self._lost(str(error))
            raise
        if reply.status_code == 401:
            raise FeedUnavailableError(
                f"{address.url} answered 401: the API server finds another client secret in connection "
                f"{settings.conn_id!r}, or its clock differs"
            )
        if reply.status_code != 200:
            raise FeedUnavailableError(f"{address.url} answered {reply.status_code}")
        content: bytes = reply.content
        return content

    def close(self) -> None:
        """Close the connections."""
        if self._session is not None:
            self._session.close()
            self._session = None

    def _address(self, deadline: float) -> Candidate:
        with _Process.lock:
            if _Process.found is not None:
                return _Process.found
            if _Process.failed_at is not None and time.monotonic() - _Process.failed_at < FORGIVEN_SECONDS:
                raise FeedUnavailableError(_Process.reason)
            failures = []
            for candidate in candidates():
                try:
                    reply = self._send("GET", candidate.url + HANDSHAKE_PATH, deadline)
                    if reply.status_code == 200 and is_handshake(reply.json()):
                        _Process.found, _Process.failed_at = candidate, None
                        log.info("Callouts are read at %s, from %s.", candidate.url, candidate.source)
                        return candidate
                    failures.append(f"{candidate.url} is another service")
                except (FeedUnavailableError, ValueError) as error:
                    failures.append(str(error) if isinstance(error, FeedUnavailableError) else f"{candidate.url}: HTML")
            _Process.failed_at = time.monotonic()
            _Process.reason = f"no API server with this provider was found: {'; '.join(failures)}"
            raise FeedUnavailableError(_Process.reason)

    def _lost(self, reason: str) -> None:
        with _Process.lock:
            _Process.found, _Process.failed_at, _Process.reason = None, time.monotonic(), reason

    def _send(self, method: str, url: str, deadline: float, **options: Any) -> requests.Response:
        import requests

        left = deadline - time.monotonic()
        if left <= 0:
            raise FeedUnavailableError(f"{url} was not reached in {self._seconds:g} s")
        if self._session is None:
            self._session = requests.Session()
        try:
            return self._session.request(
                method, url, timeout=(min(CONNECT_SECONDS, left), left), allow_redirects=False, **options
            )
        except requests.RequestException as error:
            raise FeedUnavailableError(f"{url} gave no answer ({type(error).__name__})") from error

    def _note(self, error: Exception) -> None:
        if str(error) != self._noted:
            self._noted = str(error)
            log.info("The journal of callouts was not reached (%s): going on with polls.", error)


def forget_address() -> None:
    """Find the feed's address anew at the next call."""
    with _Process.lock:
        _Process.found = _Process.failed_at = None
