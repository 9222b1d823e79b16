"""How a call is carried out: token, request, backoff, retry. Written once for threads and event loops.

``exchange`` and ``obtain_token`` are generators without I/O and without a clock. They yield steps (:class:`Send`,
:class:`Sleep`, :class:`Join`) and receive their results; a driver of a few lines carries out the steps. The driver must
close the generators, otherwise other callers wait for a token fetch that never ends.

Sources: https://developer.zuora.com/docs/guides/authentication/ (token, 401 once),
https://developer.zuora.com/docs/guides/error-handling/ (what to repeat, backoff with jitter, ``Retry-After``).
"""

from __future__ import annotations

import copy
import hashlib
import json
import math
import random
import re
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final, Protocol, TypeVar
from urllib.parse import urlencode, urlsplit

from airflow_mediation_provider.protocol.zuora.errors import (
    MediationError,
    MisconfigurationError,
    TransientError,
    UnknownRefusalError,
    UnusableAddressError,
    details_of,
)
from airflow_mediation_provider.protocol.zuora.refusals import Reply, refusal, refused, token_refused
from airflow_mediation_provider.protocol.zuora.requests import Call, UnreadableReplyError

if TYPE_CHECKING:
    from collections.abc import Callable, Generator

T = TypeVar("T")

REQUEST_TIMEOUT: Final = 30.0
"""Seconds for one request in all, from the connection to the last byte."""
FIRST_BACKOFF: Final = 1.0
LONGEST_BACKOFF: Final = 30.0
LONGEST_WAIT: Final = 300.0
"""Seconds that the pauses of one call take together, at most: before a longer one the error is raised."""
DEFAULT_TOKEN_LIFE: Final = 3600.0
LONGEST_TOKEN_LIFE: Final = 24 * 3600.0
"""Seconds; a token is renewed after them also where Zuora names a longer life."""
_TOKEN: Final = re.compile(r"[!-~]{1,8000}")
FORBIDDEN: Final = 403
"""HTTP status that is repeated once for a read: a gateway answers it too, while it starts."""


@dataclass(frozen=True, slots=True)
class Request:
    """One HTTP request; headers and body hold secrets and stay out of its repr.

    :param secret: the body is a secret, which no redirect may lead to another host
    """

    method: str
    url: str
    headers: dict[str, str] = field(repr=False)
    body: bytes | None = field(default=None, repr=False)
    secret: bool = False


@dataclass(frozen=True, slots=True)
class Failure:
    """No reply was received: connection refused or reset, name unknown, timeout.

    :param reason: text for messages, without secrets
    :param unusable: the address cannot work as it is set up; the reason names the remedy
    :param not_sent: it is certain that the server did not receive the request
    """

    reason: str
    unusable: bool = False
    not_sent: bool = False


class Flight(Protocol):
    """One fetch of a token in progress; all waiting callers share its outcome."""

    @property
    def error(self) -> MediationError | None:
        """Why the fetch failed, once it is over; ``None`` also where it was abandoned."""

    def land(self, token: str, life: float) -> None:
        """Store the token, valid for ``life`` seconds from the start of the flight."""

    def fail(self, error: MediationError | None) -> None:
        """End without a token; ``None``: abandoned, another caller may fetch it."""


@dataclass(frozen=True, slots=True)
class Claim:
    """Result of ``Tokens.claim``: the token, or the flight to wait for, or the flight that the caller carries out."""

    token: str | None = field(default=None, repr=False)
    wait_for: Flight | None = None
    carry_out: Flight | None = None


class Tokens(Protocol):
    """The tokens of one tenant in this process."""

    def claim(self) -> Claim:
        """Return the token, or the flight that fetches it."""

    def discard(self, token: str) -> None:
        """Drop this token, but not a newer one."""


@dataclass(frozen=True, slots=True)
class Send:
    """Send the request; the result is a :class:`Reply` or a :class:`Failure`."""

    request: Request


@dataclass(frozen=True, slots=True)
class Sleep:
    """Wait this long; ``reason`` is a line for the log."""

    seconds: float
    reason: str


@dataclass(frozen=True, slots=True)
class Join:
    """Wait until another caller's fetch of the token is over."""

    flight: Flight


Step = Send | Sleep | Join
StepResult = Reply | Failure | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Peer:
    """The host that calls are sent to, and the client's credentials.

    :param base_url: REST base URL without a trailing slash
    :param headers: sent with every call (entity, organisations, track id)
    """

    base_url: str
    client_id: str
    client_secret: str = field(repr=False)
    headers: dict[str, str] = field(default_factory=dict)

    @property
    def host(self) -> str:
        """Host and port, for messages."""
        return urlsplit(self.base_url).netloc


def exchange(
    call: Call[T],
    peer: Peer,
    tokens: Tokens,
    *,
    attempts: int,
    note: Callable[[StepResult], None],
    jitter: Callable[[], float] = random.random,
    patience: float = math.inf,
) -> Generator[Step, StepResult, T]:
    """Carry out a call until it succeeds, is refused permanently, or was tried ``attempts`` times.

    :param call: the call
    :param peer: where to send it
    :param tokens: of the tenant
    :param attempts: the largest number of attempts
    :param note: called with the result of each request of the call that was sent; not with those for a token
    :param jitter: returns a random number from 0 to 1
    :param patience: seconds that the caller has for all pauses; at most ``LONGEST_WAIT`` are spent
    :return: the result of ``call.read``
    :raises MediationError: its class decides how the caller goes on
    """
    attempt, paused = 1, 0.0
    while True:
        started = False
        try:
            token = yield from obtain_token(peer, tokens)
            started = True
            outcome = yield from _send(_request(call, peer, token), note)
            if isinstance(outcome, Reply) and token_refused(outcome, repeatable=call.repeatable):
                # The token expired or was revoked. Zuora accepted nothing, so even a run call may be sent again, once.
                started = False
                tokens.discard(token)
                token = yield from obtain_token(peer, tokens)
                started = True
                outcome = yield from _send(_request(call, peer, token), note)
                if isinstance(outcome, Reply) and token_refused(outcome, repeatable=call.repeatable):
                    tokens.discard(token)
            return _result(call, peer, outcome, token)
        except UnusableAddressError:
            raise  # seconds do not change it
        except (TransientError, UnknownRefusalError, MisconfigurationError) as error:
            if isinstance(error, MisconfigurationError) and not (
                error.status_code == FORBIDDEN and started and attempt == 1 and not call.changes
            ):
                raise
            asked = None
            if isinstance(error, TransientError):
                if started and not call.repeatable and not error.nothing_done:
                    raise _unknown_fate(call, error) from error
                asked = error.retry_after
            wait = backoff(attempt, asked, jitter)
            if attempt >= attempts or paused + wait > min(patience, LONGEST_WAIT):
                raise
            attempt += 1
            paused += wait
            yield Sleep(wait, f"{error} Asking again in {wait:.1f} s (attempt {attempt} of {attempts}).")


def _send(request: Request, note: Callable[[StepResult], None]) -> Generator[Step, StepResult, StepResult]:
    outcome: StepResult = None
    try:
        outcome = yield Send(request)
    finally:
        # Also where the driver was cancelled meanwhile: Zuora counts each request that it received.
        note(outcome)
    return outcome


def obtain_token(peer: Peer, tokens: Tokens) -> Generator[Step, StepResult, str]:
    """Return the tenant's token; fetch it, or wait for the caller that is fetching it. One attempt.

    :param peer: where to fetch it
    :param tokens: of the tenant
    :raises MisconfigurationError: Zuora does not accept the client id or secret
    :raises TransientError: Zuora gave no usable answer; all waiting callers get the same error
    """
    while True:
        claim = tokens.claim()
        if claim.token is not None:
            return claim.token
        if claim.carry_out is not None:
            return (yield from _fetch_token(peer, claim.carry_out))
        if claim.wait_for is not None:
            yield Join(claim.wait_for)
            if claim.wait_for.error is not None:
                # A copy: raising one object in many threads would mix up its tracebacks.
                raise copy.copy(claim.wait_for.error)


def _fetch_token(peer: Peer, flight: Flight) -> Generator[Step, StepResult, str]:
    form = {"client_id": peer.client_id, "client_secret": peer.client_secret, "grant_type": "client_credentials"}
    request = Request(
        "POST",
        f"{peer.base_url}/oauth/token",
        {"Content-Type": "application/x-www-form-urlencoded", "Accept": "application/json"},
        urlencode(form).encode(),
        secret=True,
    )
    failure: MediationError | None = None
    try:
        token, life = _read_token(peer, (yield Send(request)))
        flight.land(token, life)
        return token
    except MediationError as error:
        failure = error
        raise
    finally:
        # Also where the driver was cancelled here; after ``land`` it has no effect.
        flight.fail(failure)


def _read_token(peer: Peer, outcome: StepResult) -> tuple[str, float]:
    what = "request for a token"
    reply = _reply(what, peer, outcome)
    body = reply.json
    if refused(reply, body):
        error = refusal(what, peer.host, reply, secrets=(peer.client_secret,))
        if reply.status in (400, 401, 403) and body is not None and not isinstance(error, TransientError):
            quoted = f", Zuora says: {error.zuora_message.rstrip('.')}" if error.zuora_message else ""
            raise MisconfigurationError(
                f"{peer.host} does not accept the client id and secret: check both, and the data center, for a client "
                f"id is known in its own tenant only (HTTP {reply.status}{quoted}).",
                **details_of(error),
            )
        raise error
    token = (body or {}).get("access_token")
    if not isinstance(token, str) or not token:
        raise _not_json(what, peer, reply)
    if not _TOKEN.fullmatch(token):
        raise TransientError(
            f"The {what} was answered by {peer.host} with a token that no header can contain (of {len(token)} "
            "characters): a proxy, or not the REST base URL.",
            status_code=reply.status,
        )
    try:
        life = float((body or {}).get("expires_in", DEFAULT_TOKEN_LIFE))
    except (TypeError, ValueError, OverflowError):
        life = DEFAULT_TOKEN_LIFE
    return token, min(life, LONGEST_TOKEN_LIFE) if life > 0 else DEFAULT_TOKEN_LIFE


def _request(call: Call[T], peer: Peer, token: str) -> Request:
    query = f"?{urlencode(call.query)}" if call.query else ""
    return Request(
        call.method,
        f"{peer.base_url}{call.path}{query}",
        # Zuora documents the content type as required on every call, even on those without a body.
        {
            "Content-Type": "application/json",
            "Accept": "application/json",
            "Authorization": f"Bearer {token}",
            **peer.headers,
        },
        None if call.body is None else json.dumps(call.body).encode(),
    )


def _result(call: Call[T], peer: Peer, outcome: StepResult, token: str) -> T:
    reply = _reply(call.what, peer, outcome)
    body = reply.json
    if refused(reply, body):
        raise refusal(
            call.what,
            peer.host,
            reply,
            changes=call.changes,
            unique_key=call.unique_key,
            permission=call.permission,
            secrets=(token, peer.client_secret),
        )
    if body is None:
        raise _not_json(call.what, peer, reply)
    try:
        return call.read(body)
    except UnreadableReplyError as error:
        raise TransientError(
            f"The {call.what} was answered by {peer.host}, but {error}.", status_code=reply.status
        ) from error


def _reply(what: str, peer: Peer, outcome: StepResult) -> Reply:
    if isinstance(outcome, Reply):
        location = outcome.headers.get("location", "")
        if 300 <= outcome.status < 400 and location.startswith("https:") and peer.base_url.startswith("http:"):
            raise UnusableAddressError(
                f"The {what} was redirected by {peer.host} to https: write https:// before the host.", nothing_done=True
            )
        return outcome
    reason = outcome.reason if isinstance(outcome, Failure) else "no reply"
    if isinstance(outcome, Failure) and outcome.unusable:
        raise UnusableAddressError(f"The {what} cannot reach {peer.host}: {reason}.", nothing_done=outcome.not_sent)
    raise TransientError(f"The {what} did not reach {peer.host}, or no answer came back: {reason}.")


def _not_json(what: str, peer: Peer, reply: Reply) -> TransientError:
    kind = reply.headers.get("content-type", "").split(";")[0][:80] or "a body without a type"
    return TransientError(
        f"The {what} was answered by {peer.host} with something else than the expected JSON ({kind}, "
        f"{len(reply.body)} bytes, HTTP {reply.status}): maintenance, a proxy, or not the REST base URL.",
        status_code=reply.status,
    )


def _unknown_fate(call: Call[T], error: TransientError) -> TransientError:
    return TransientError(
        f"{error} It was not sent again, because the {call.what} may have been started.",
        retry_after=error.retry_after,
        **details_of(error),
    )


def backoff(failures: int, asked: float | None, jitter: Callable[[], float]) -> float:
    """Return the seconds to wait before the next attempt.

    :param failures: number of failed attempts
    :param asked: seconds that Zuora asked for: the wait is a little longer, so that not all clients return at once
    :param jitter: returns a random number from 0 to 1
    """
    if asked is not None:
        return asked + jitter() * max(1.0, asked / 10)
    return float(min(LONGEST_BACKOFF, FIRST_BACKOFF * 2.0 ** (failures - 1)) * (0.5 + jitter() / 2))


def legal_track_id(dag_id: str, task_id: str, run_id: str, map_index: int = -1, try_number: int = 1) -> str:
    """Return a ``Zuora-Track-Id`` for a task instance: at most 64 characters of US-ASCII without ``: ; " '``.

    Where characters are cut or replaced, a short hash is added, so different task instances have different ids.
    """
    index = f".{map_index}" if map_index >= 0 else ""
    return legal_header(f"{dag_id}.{task_id}.{run_id}{index}.{try_number}")


def legal_header(text: str) -> str:
    """Return a text as a legal ``Zuora-Track-Id``; see :func:`legal_track_id`."""
    legal = re.sub(r"[^!#-&(-9<-~]", "-", text)
    if legal == text and len(text) <= 64:
        return text
    return f"{legal[:53]}-{hashlib.sha256(text.encode()).hexdigest()[:10]}"
