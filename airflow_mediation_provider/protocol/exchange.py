"""How a call is carried out: token, sending, waiting, repeating. Written once, for threads and event loops alike.

``exchange`` and ``obtain_token`` are generators without I/O and without a clock. They yield what is to be done
(:class:`Send`, :class:`Sleep`, :class:`Join`) and are sent what came of it; a driver of a few lines does it. They must
be closed by whoever drives them, or a token that others wait for is not given up.

Sources: https://developer.zuora.com/docs/guides/authentication/ (token, 401 once),
https://developer.zuora.com/docs/guides/error-handling/ (what to repeat, backoff with jitter, ``Retry-After``).
"""

from __future__ import annotations

import copy
import hashlib
import json
import random
import re
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final, Protocol, TypeVar
from urllib.parse import urlencode, urlsplit

from airflow_mediation_provider.protocol.api import Call, UnreadableReplyError
from airflow_mediation_provider.protocol.errors import MediationError, MisconfigurationError, TransientError
from airflow_mediation_provider.protocol.refusals import Reply, refusal, refused

if TYPE_CHECKING:
    from collections.abc import Callable, Generator

T = TypeVar("T")

REQUEST_TIMEOUT: Final = 30.0
"""Seconds that one request may take in all, from the connection to the last byte."""
FIRST_BACKOFF: Final = 1.0
LONGEST_BACKOFF: Final = 30.0
LONGEST_WAIT: Final = 300.0
"""Seconds: where Zuora asks for a longer wait, the error goes to the caller instead of blocking it."""
DEFAULT_TOKEN_LIFE: Final = 3600.0


@dataclass(frozen=True, slots=True)
class Request:
    """One HTTP request; headers and body hold secrets and stay out of its repr."""

    method: str
    url: str
    headers: dict[str, str] = field(repr=False)
    body: bytes | None = field(default=None, repr=False)


@dataclass(frozen=True, slots=True)
class Failure:
    """No reply came: connection refused or reset, name unknown, timeout.

    :param reason: in words, without secrets
    """

    reason: str


class Flight(Protocol):
    """One fetch of a token that is under way; the outcome is there for all who wait."""

    @property
    def error(self) -> MediationError | None:
        """Why the fetch failed, once it is over; ``None`` also where it was given up."""

    def land(self, token: str, life: float) -> None:
        """Hand over the token, good for ``life`` seconds from the start of the flight."""

    def fail(self, error: MediationError | None) -> None:
        """End without a token; ``None``: given up, somebody else may try."""


@dataclass(frozen=True, slots=True)
class Claim:
    """What a look for the token finds: the token, or the flight to wait for, or the flight to carry out oneself."""

    token: str | None = field(default=None, repr=False)
    wait_for: Flight | None = None
    carry_out: Flight | None = None


class Tokens(Protocol):
    """The tokens of one tenant in this process."""

    def claim(self) -> Claim:
        """Look for the token."""

    def discard(self, token: str) -> None:
        """Forget this token, and no newer one."""


@dataclass(frozen=True, slots=True)
class Send:
    """Send the request; answer with a :class:`Reply` or a :class:`Failure`."""

    request: Request


@dataclass(frozen=True, slots=True)
class Sleep:
    """Wait so long; ``reason`` is a line for the log."""

    seconds: float
    reason: str


@dataclass(frozen=True, slots=True)
class Join:
    """Wait until another's fetch of the token is over."""

    flight: Flight


Step = Send | Sleep | Join
Outcome = Reply | Failure | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Peer:
    """Who is asked, and as whom.

    :param base_url: REST base URL without a slash at its end
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
    note: Callable[[Outcome], None],
    jitter: Callable[[], float] = random.random,
) -> Generator[Step, Outcome, T]:
    """Carry out a call until it succeeds, is refused for good, or was tried ``attempts`` times.

    :param note: told of each request of the call that was sent, with what came of it; not of those for a token
    :param jitter: a number from 0 to 1, anew at each call
    :return: what ``call.read`` makes of the reply
    :raises MediationError: of the class that says what to do
    """
    attempt = 1
    while True:
        started = False
        try:
            token = yield from obtain_token(peer, tokens)
            started = True
            outcome = yield from _send(_request(call, peer, token), note)
            if isinstance(outcome, Reply) and outcome.status == 401:
                # Expired or withdrawn; nothing was accepted, so even a start may be sent again, once.
                started = False
                tokens.discard(token)
                token = yield from obtain_token(peer, tokens)
                started = True
                outcome = yield from _send(_request(call, peer, token), note)
                if isinstance(outcome, Reply) and outcome.status == 401:
                    tokens.discard(token)
            return _result(call, peer, outcome)
        except TransientError as error:
            if started and not call.repeatable:
                raise _unknown_fate(call, error) from error
            if attempt >= attempts or (error.retry_after or 0) > LONGEST_WAIT:
                raise
            attempt += 1
            wait = backoff(attempt - 1, error.retry_after, jitter)
            yield Sleep(wait, f"{error} Asking again in {wait:.1f} s (attempt {attempt} of {attempts}).")


def _send(request: Request, note: Callable[[Outcome], None]) -> Generator[Step, Outcome, Outcome]:
    outcome: Outcome = None
    try:
        outcome = yield Send(request)
    finally:
        # Also when the driver was cancelled meanwhile: Zuora counts what it got.
        note(outcome)
    return outcome


def obtain_token(peer: Peer, tokens: Tokens) -> Generator[Step, Outcome, str]:
    """Return the tenant's token; fetch it, or wait for whoever fetches it already. Tries once.

    :raises MisconfigurationError: Zuora does not know the client id or secret
    :raises TransientError: Zuora could not be asked; all who waited get the same
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


def _fetch_token(peer: Peer, flight: Flight) -> Generator[Step, Outcome, str]:
    form = {"client_id": peer.client_id, "client_secret": peer.client_secret, "grant_type": "client_credentials"}
    request = Request(
        "POST",
        f"{peer.base_url}/oauth/token",
        {"Content-Type": "application/x-www-form-urlencoded", "Accept": "application/json"},
        urlencode(form).encode(),
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
        # Also when the driver was cancelled here; after a landing it changes nothing.
        flight.fail(failure)


def _read_token(peer: Peer, outcome: Outcome) -> tuple[str, float]:
    what = "request for a token"
    reply = _reply(what, peer, outcome)
    body = reply.json
    if refused(reply, body):
        error = refusal(what, peer.host, reply)
        if reply.status in (400, 401, 403) and body is not None and not isinstance(error, TransientError):
            said = f", Zuora says: {error.zuora_message.rstrip('.')}" if error.zuora_message else ""
            raise MisconfigurationError(
                f"{peer.host} does not accept the client id and secret: check both, and the data center, for a client "
                f"id is known in its own tenant only (HTTP {reply.status}{said}).",
                code=error.code,
                zuora_message=error.zuora_message,
                status_code=reply.status,
                request_id=error.request_id,
            )
        raise error
    token = (body or {}).get("access_token")
    if not isinstance(token, str) or not token:
        raise _not_json(what, peer, reply)
    try:
        life = float((body or {}).get("expires_in", DEFAULT_TOKEN_LIFE))
    except (TypeError, ValueError):
        life = DEFAULT_TOKEN_LIFE
    return token, life


def _request(call: Call[T], peer: Peer, token: str) -> Request:
    query = f"?{urlencode(call.query)}" if call.query else ""
    return Request(
        call.method,
        f"{peer.base_url}{call.path}{query}",
        # Zuora declares the content type as required on every call, those without a body included.
        {
            "Content-Type": "application/json",
            "Accept": "application/json",
            "Authorization": f"Bearer {token}",
            **peer.headers,
        },
        None if call.body is None else json.dumps(call.body).encode(),
    )


def _result(call: Call[T], peer: Peer, outcome: Outcome) -> T:
    reply = _reply(call.what, peer, outcome)
    body = reply.json
    if refused(reply, body):
        raise refusal(call.what, peer.host, reply, unique_key=call.unique_key, permission=call.permission)
    if body is None:
        raise _not_json(call.what, peer, reply)
    try:
        return call.read(body)
    except UnreadableReplyError as error:
        raise TransientError(
            f"The {call.what} was answered by {peer.host}, but {error}.", status_code=reply.status
        ) from error


def _reply(what: str, peer: Peer, outcome: Outcome) -> Reply:
    if isinstance(outcome, Reply):
        return outcome
    reason = outcome.reason if isinstance(outcome, Failure) else "no reply"
    raise TransientError(f"The {what} did not reach {peer.host}, or no answer came back: {reason}.")


def _not_json(what: str, peer: Peer, reply: Reply) -> TransientError:
    kind = reply.headers.get("content-type", "").split(";")[0] or "a body without a type"
    return TransientError(
        f"The {what} was answered by {peer.host} with something else than the expected JSON ({kind}, "
        f"{len(reply.body)} bytes, HTTP {reply.status}): maintenance, a proxy, or not the REST base URL.",
        status_code=reply.status,
    )


def _unknown_fate(call: Call[T], error: TransientError) -> TransientError:
    return TransientError(
        f"{error} It was not sent again, because the {call.what} may have been started.",
        retry_after=error.retry_after,
        code=error.code,
        zuora_message=error.zuora_message,
        status_code=error.status_code,
        request_id=error.request_id,
    )


def backoff(failures: int, asked: float | None, jitter: Callable[[], float]) -> float:
    """Return the seconds to wait after so many failures.

    :param asked: seconds that Zuora asked for: never less than that, and a little more, so that not all come at once
    :param jitter: a number from 0 to 1, anew at each call
    """
    if asked is not None:
        return asked + jitter() * max(1.0, asked / 10)
    return float(min(LONGEST_BACKOFF, FIRST_BACKOFF * 2.0 ** (failures - 1)) * (0.5 + jitter() / 2))


def legal_track_id(dag_id: str, task_id: str, run_id: str, map_index: int = -1, try_number: int = 1) -> str:
    """Return a ``Zuora-Track-Id`` for a task instance: at most 64 characters of US-ASCII without ``: ; " '``.

    What is cut or replaced is made up for by a short hash, so different task instances have different ids.
    """
    index = f".{map_index}" if map_index >= 0 else ""
    return legal_header(f"{dag_id}.{task_id}.{run_id}{index}.{try_number}")


def legal_header(text: str) -> str:
    """Return a text as a legal ``Zuora-Track-Id``; see :func:`legal_track_id`."""
    legal = re.sub(r"[^!#-&(-9<-~]", "-", text)
    if legal == text and len(text) <= 64:
        return text
    return f"{legal[:53]}-{hashlib.sha256(text.encode()).hexdigest()[:10]}"
