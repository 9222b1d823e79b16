"""The flow of a call to the API server: its address, its signature, and its answers.

Written once, for threads and event loops alike: ``SignedCalls.call`` is a generator without I/O. It yields steps
(:class:`SendSigned`, :class:`NeedSecret`) and receives their outcomes. A driver of a few lines carries them out:
``WorkerFeedClient`` on a worker, ``FeedClient`` in the triggerer.
"""

from __future__ import annotations

import logging
import ssl
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final
from urllib.parse import urlsplit, urlunsplit

from airflow_mediation_provider.protocol.urls import MOUNT
from airflow_mediation_provider.protocol.waits.feed_status import UNFOUND_SECONDS
from airflow_mediation_provider.protocol.wire import (
    HANDSHAKE_PATH,
    SIGNATURE_HEADER,
    derive_key,
    is_handshake,
    is_signed_reply,
    signed_headers,
)
from airflow_mediation_provider.protocol.zuora.errors import MediationError, MisconfigurationError
from airflow_mediation_provider.protocol.zuora.flow import Failure, Request
from airflow_mediation_provider.protocol.zuora.refusals import Reply

if TYPE_CHECKING:
    from collections.abc import Callable, Generator, Sequence

    from airflow_mediation_provider.hooks.transport import Trust

log = logging.getLogger(__name__)

CROSS_CHECK_SECONDS: Final = 300.0
HANDSHAKE_SECONDS: Final = 3.0
"""Time limit of the handshake that shows whether an address is the API server."""
SHORT_REST_SECONDS: Final = 5.0
"""No calls for so long after a missing answer: one poke of a task makes several calls."""
LONG_REST_SECONDS: Final = 60.0
"""No calls for so long after a minute without answers: a task that polls often must not wait for each call."""
LARGEST_REPLY: Final = 64 * 2**20
"""Bytes of a reply of the API server, which may describe thousands of sessions."""
TOO_SLOW: Final = Failure("it took too long")
# What Airflow alone answers to a POST of a path that it does not have.
_NO_SUCH_PAGE: Final = 405
_NOT_INSTALLED: Final = "an API server lacks this package: install it on each of them"
# OpenSSL's codes: self-signed, self-signed in the chain, issuer not found, first certificate not verified.
_UNKNOWN_AUTHORITY: Final = frozenset({18, 19, 20, 21})
Outcome = Reply | Failure | str | None


@dataclass(frozen=True, slots=True)
class Candidate:
    """One address to try.

    :param url: up to and with ``/mediation``, without a slash at its end
    :param source: the setting that it comes from
    :param guessed: Airflow's default, which no setting names: any program of the machine may listen there
    """

    url: str
    source: str
    guessed: bool = False


def cross_check_seconds() -> float:
    """Return the seconds between two polls of a meter, at least, while callouts arrive."""
    from airflow.sdk import conf

    return max(conf.getfloat("mediation", "cross_check_interval", fallback=CROSS_CHECK_SECONDS), 0.0)


def candidates() -> list[Candidate]:
    """Return the addresses to try, in order: the configured one, then those by Airflow's own settings.

    The server of the task execution API is nearest to workers and triggerers; if it is a separate server, it may serve
    nothing else.
    """
    from airflow.sdk import conf

    found: list[Candidate] = []
    if url := conf.get("mediation", "feed_url", fallback=None):
        found.append(Candidate(_plain(url), "[mediation] feed_url"))
    if url := conf.get("core", "execution_api_server_url", fallback=None):
        base = _plain(url).removesuffix("/execution")
        found.append(Candidate(base + MOUNT, "[core] execution_api_server_url"))
    url = conf.get("api", "base_url", fallback=None)
    found.append(Candidate(_plain(url or "http://localhost:8080") + MOUNT, "[api] base_url", guessed=not url))
    return [each for number, each in enumerate(found) if each.url not in {other.url for other in found[:number]}]


def _plain(url: str) -> str:
    parts = urlsplit(url.strip())
    return urlunsplit((parts.scheme, parts.netloc, parts.path.rstrip("/"), "", ""))


def server_trust() -> Trust:
    """Return the trust for the API server: what Airflow's own client trusts, and the CA bundles of the environment.

    Airflow's client trusts ``[api] ssl_ca_file`` in place of the system's store, certifi unless ``[api]
    client_use_public_certs`` is off, and ``[api] ssl_cert``, the server's own certificate. Source:
    https://github.com/apache/airflow/blob/3.3.2/task-sdk/src/airflow/sdk/api/client.py

    :raises MisconfigurationError: a client certificate without its key, or a key without its certificate
    """
    from airflow.sdk import conf

    from airflow_mediation_provider.hooks import transport

    def named(*names: str) -> tuple[transport.Certificates, ...]:
        paths = {name: conf.get("api", name, fallback=None) for name in names}
        return tuple(transport.Certificates(path, f"[api] {name}") for name, path in paths.items() if path)

    public = conf.getboolean("api", "client_use_public_certs", fallback=True)
    client = named("client_ssl_cert", "client_ssl_key")
    if len(client) == 1:
        raise MisconfigurationError("[api] client_ssl_cert and client_ssl_key must be set together")
    return transport.Trust(
        (
            *transport.environment_authorities(),
            *(named("ssl_ca_file") or transport.system_authorities()),
            *(transport.public_authorities() if public else ()),
            *named("ssl_cert"),
        ),
        client,
    )


def failure_of(error: Exception) -> Failure:
    """Return why a request got no answer; where TLS failed, with the setting that decides it.

    :param error: of requests or aiohttp
    """
    from airflow_mediation_provider.hooks.fetching import UnusableBodyError
    from airflow_mediation_provider.hooks.transport import causes

    # The innermost first: aiohttp's own errors are instances of those of TLS, without their details.
    for cause in reversed(causes(error)):
        if isinstance(cause, MediationError):
            return Failure(str(cause))
        if isinstance(cause, ssl.SSLCertVerificationError):
            unknown = cause.verify_code in _UNKNOWN_AUTHORITY
            remedy = "; set [api] ssl_ca_file to the certificates of its authority" if unknown else ""
            return Failure(f"its certificate is not trusted: {cause.verify_message.rstrip('.')}{remedy}")
        if isinstance(cause, ssl.SSLError):
            wanted = "CERTIFICATE_REQUIRED" in (cause.reason or "")
            remedy = "; it requires a client certificate, see [api] client_ssl_cert" if wanted else ""
            return Failure(f"TLS failed with {cause.reason or cause}{remedy}")
    return Failure(str(error) if isinstance(error, UnusableBodyError) else type(error).__name__)


class FeedUnavailableError(Exception):
    """The API server's paths under ``/mediation`` gave no good answer; the message is one sentence with the reason."""


@dataclass(frozen=True, slots=True)
class SendSigned:
    """Send the request within ``seconds``; answer with a :class:`Reply` or a :class:`Failure`."""

    request: Request
    seconds: float


@dataclass(frozen=True, slots=True)
class NeedSecret:
    """Read the connection's client secret; answer with it, or with a :class:`Failure`.

    :param anew: the secret that was read before was refused
    """

    anew: bool


Step = SendSigned | NeedSecret


class ServerAddress:
    """The address of the API server, and since when it does not answer; shared by all calls to it.

    :param rests: pause calls after a missing answer; false if the caller has its own pace
    """

    def __init__(self, *, rests: bool) -> None:
        self.found: Candidate | None = None
        self._rests = rests
        self._said: Candidate | None = None
        # Why the last call got no answer; empty after an answer.
        self._reason = ""
        self._silent_since = self._rest_until = 0.0

    def check(self, now: float) -> None:
        """Return if a call may be made.

        :raises FeedUnavailableError: the last call, a moment ago, got no answer; with its reason
        """
        if self._reason and now < self._rest_until:
            raise FeedUnavailableError(self._reason)

    def answered(self, candidate: Candidate) -> None:
        """Store the address that answered."""
        if candidate != self._said:
            self._said = candidate
            log.info("The journal of sessions was found by %s: %s", candidate.source, candidate.url)
        self.found = candidate

    def missed(self, now: float, reason: str) -> None:
        """Note a missing answer: the address is searched again."""
        self._silent_since = self._silent_since if self._reason else now
        self.found, self._reason = None, reason
        if self._rests:
            over = now - self._silent_since >= UNFOUND_SECONDS
            self._rest_until = now + (LONG_REST_SECONDS if over else SHORT_REST_SECONDS)

    def forget(self) -> None:
        """Search the address again at the next call, without a pause."""
        self.found, self._reason = None, ""

    def reached(self) -> None:
        """Note an answer, good or not."""
        self._reason = ""


class SignedCalls:
    """Makes the calls of one connection.

    :param conn_id: the Airflow connection
    :param server: the address of the API server
    :param candidates: the addresses to try, in order
    :param monotonic: a clock that is never set, in seconds
    :param now: the wall clock, in seconds since 1970
    """

    def __init__(
        self,
        conn_id: str,
        server: ServerAddress,
        *,
        candidates: Callable[[], Sequence[Candidate]],
        monotonic: Callable[[], float] = time.monotonic,
        now: Callable[[], float] = time.time,
    ) -> None:
        self._conn_id = conn_id
        self._server = server
        self._candidates = candidates
        self._monotonic = monotonic
        self._now = now
        self._key: bytes | None = None
        self._refused = self._warned = False

    def call(self, path: str, body: bytes, *, seconds: float) -> Generator[Step, Outcome, bytes]:
        """Make one signed call, and return the body of its good answer.

        :param path: a path under ``/mediation``
        :param seconds: its time limit
        :raises FeedUnavailableError: there was no good answer, or none a moment ago, or the connection is wrong
        """
        deadline = self._monotonic() + seconds
        address = yield from self.find(seconds=seconds)
        key = self._key or (yield from self._read_key())
        timestamp = int(self._now())
        headers = signed_headers(key, path=path, conn_id=self._conn_id, body=body, timestamp=timestamp)
        headers["Content-Type"] = "application/json"
        try:
            reply = yield from self._send(Request("POST", address.url + path, headers, body), deadline)
        except FeedUnavailableError as error:
            self._server.missed(self._monotonic(), str(error))
            raise
        self._server.reached()
        if reply.status == 401:
            self._key, self._refused = None, True
            raise FeedUnavailableError(
                f"{address.url} answered 401: the API server has another client secret in connection "
                f"{self._conn_id!r}, or its clock differs"
            )
        if reply.status != 200:
            reason = (reply.json or {}).get("error")
            said = f": {reason:.200}" if isinstance(reason, str) else ""
            if reply.status == _NO_SUCH_PAGE and not said:
                said = f": {_NOT_INSTALLED}"
            raise FeedUnavailableError(f"{address.url} answered {reply.status}{said}")
        self._check(reply, address, key, headers[SIGNATURE_HEADER])
        return reply.body

    def _check(self, reply: Reply, address: Candidate, key: bytes, asked: str) -> None:
        """Check who answered; API servers of an older version do not sign, so that is only logged."""
        given = reply.headers.get(SIGNATURE_HEADER.lower())
        if given is not None and is_signed_reply(key, asked, reply.body, given):
            return
        reason = f"the answer of {address.url} is not signed"
        if given is not None or address.guessed:
            reason += " with the client secret" if given else "; set [api] base_url to the API server's address"
            self._server.missed(self._monotonic(), reason)
            raise FeedUnavailableError(reason)
        if not self._warned:
            self._warned = True
            log.warning("%s: upgrade this provider on the API server", reason)

    def find(self, *, seconds: float) -> Generator[Step, Outcome, Candidate]:
        """Return the address that was found before, or the first with this provider's handshake.

        Other pages answer 200 as well.

        :param seconds: its time limit
        :raises FeedUnavailableError: there is none, or there was none a moment ago
        """
        if self._server.found is not None:
            return self._server.found
        self._server.check(self._monotonic())
        deadline, failures = self._monotonic() + seconds, []
        for candidate in self._candidates():
            request = Request("GET", candidate.url + HANDSHAKE_PATH, {})
            try:
                reply = yield from self._send(request, min(deadline, self._monotonic() + HANDSHAKE_SECONDS))
            except FeedUnavailableError as error:
                failures.append(str(error))
                continue
            if reply.status == 200 and is_handshake(reply.json):
                self._server.answered(candidate)
                return candidate
            failures.append(f"{candidate.url} is another service, or {_NOT_INSTALLED}")
        reason = f"no API server with this provider was found: {'; '.join(failures)}"
        self._server.missed(self._monotonic(), reason)
        raise FeedUnavailableError(reason)

    def _read_key(self) -> Generator[Step, Outcome, bytes]:
        secret = yield NeedSecret(anew=self._refused)
        if not isinstance(secret, str):
            raise FeedUnavailableError(_reason(secret))
        self._key, self._refused = derive_key(secret), False
        return self._key

    def _send(self, request: Request, deadline: float) -> Generator[Step, Outcome, Reply]:
        left = deadline - self._monotonic()
        outcome = (yield SendSigned(request, left)) if left > 0 else TOO_SLOW
        if isinstance(outcome, Reply):
            return outcome
        raise FeedUnavailableError(f"{request.url} gave no answer ({_reason(outcome)})")


def _reason(outcome: Outcome) -> str:
    return outcome.reason if isinstance(outcome, Failure) else "none received"
