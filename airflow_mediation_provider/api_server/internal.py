"""The routes for Airflow's own processes: observations, reconcile, callout history, prune; and their signature check.

A request is signed with a key derived from the connection's client secret. API usage is acknowledged before it is
written: it is added up here and written in the background. Usage not written when this process ends is lost.
"""

from __future__ import annotations

import asyncio
import json
import logging
import time
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import TYPE_CHECKING, Final

from fastapi import APIRouter, Request, Response
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect

from airflow_mediation_provider.api_server.connections import LookupFailedError, OtherIdError, UnknownConnectionError
from airflow_mediation_provider.api_server.http import (
    UNAVAILABLE,
    BodyTooLargeError,
    BodyTooSlowError,
    error_docs,
    read_body,
)
from airflow_mediation_provider.hooks.api_usage import reported
from airflow_mediation_provider.journal.history import take_turn
from airflow_mediation_provider.journal.prune import oldest_to_keep, prune
from airflow_mediation_provider.journal.queries import compare
from airflow_mediation_provider.journal.task_reports import record_calls
from airflow_mediation_provider.journal.transaction import JournalUnavailable
from airflow_mediation_provider.protocol.maintenance import (
    HISTORY_PATH,
    PRUNE_PATH,
    RECONCILE_PATH,
    HistoryRequest,
    Pruned,
    PruneReply,
    PruneRequest,
    ReconcileReply,
    ReconcileRequest,
)
from airflow_mediation_provider.protocol.transition import Source
from airflow_mediation_provider.protocol.wire import (
    OBSERVATIONS_PATH,
    SIGNATURE_HEADER,
    NotAuthenticatedError,
    derive_key,
    digest_of,
    observations_from_bytes,
    reply_signature,
    signed_connection,
    signed_digest,
    verify,
)
from airflow_mediation_provider.protocol.zuora.api_usage import merged

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterable

    from airflow_mediation_provider.api_server.connections import Connections, MediationConnection
    from airflow_mediation_provider.protocol.zuora.api_usage import HourlyUsage


# The waits of one triggerer, two thousand with their conditions, take one megabyte or two.
BODY_LIMIT: Final = 8 * 1024 * 1024
# Of a client whose headers alone prove nothing; a callout, which is read before its proof too, may be as large.
UNPROVEN_BODY_LIMIT: Final = 256 * 1024
BODY_SECONDS: Final = 10.0
# One text for all cases, so that an unauthenticated client cannot find out which connections exist.
NOT_AUTHENTICATED: Final = "not authenticated"

log = logging.getLogger(__name__)

WRITE_SECONDS: Final = 5.0
"""API usage is written together, once in so many seconds: on SQLite each write would delay a callout's."""
PAUSE_SECONDS: Final = 30.0
"""After a database error, so long passes until the next attempt to write."""
router = APIRouter()
_OBSERVED: Final = (Source.POLL, Source.RUN)
_RECORD_SECONDS: Final = 10.0
# Short requests, sent again and again: neither a proxy nor a server that is to stop waits for long.
_PRUNE_SECONDS: Final = 2.0
# One at a time: callouts have priority.
_prune_thread: Final = ThreadPoolExecutor(1, "mediation-prune")
_RECONCILE_SECONDS: Final = 20.0
# One comparison at a time: only a task waits for it.
_reconcile_thread: Final = ThreadPoolExecutor(1, "mediation-reconcile")


async def read_signed(request: Request, path: str) -> tuple[MediationConnection, bytes]:
    """Return the connection whose secret a request is signed with, and the request's body.

    The body is read after the headers have proven the sender. A client of an older version sends no digest of its body
    and is proven by the body itself, so only a small one is read.

    :param path: the path that is signed
    :raises HTTPException: 401 not authenticated, 404 authenticated by another spelling of the connection's id, 408 and
        413 by its body, 503 if the connection cannot be looked up
    """
    conn_id, digest = signed_connection(request.headers), signed_digest(request.headers)
    log_as = partial(request.app.state.throttled_log.log, conn_id=conn_id)
    try:
        if digest is None:
            # Before the look-up: the answer to a large body must not depend on whether there is a connection.
            body = await _read(request, UNPROVEN_BODY_LIMIT)
            connection = await _proven(request, path, conn_id, digest_of(body))
        else:
            connection = await _proven(request, path, conn_id, digest)
            body = await _read(request, BODY_LIMIT)
            if digest_of(body) != digest:
                raise NotAuthenticatedError("the body is not the one whose digest is signed")
    except (UnknownConnectionError, NotAuthenticatedError) as error:
        log_as(logging.WARNING, f"A request to {path} was answered 401", reason=str(error))
        raise HTTPException(401, NOT_AUTHENTICATED) from None
    except LookupFailedError as error:
        log_as(logging.ERROR, f"A request to {path} was answered 503", reason=str(error))
        raise HTTPException(503, UNAVAILABLE) from None
    if connection.conn_id != conn_id:
        reason = str(OtherIdError(connection.conn_id))
        log_as(logging.WARNING, f"A request to {path} was answered 404", reason=reason)
        raise HTTPException(404, reason)
    return connection, body


def signed_reply(request: Request, connection: MediationConnection, data: bytes) -> Response:
    """Return the good answer to a request of ``read_signed``, signed: the client accepts none of another service."""
    proof = reply_signature(derive_key(connection.client_secret or ""), request.headers[SIGNATURE_HEADER], data)
    return Response(data, media_type="application/json", headers={SIGNATURE_HEADER: proof})


async def _proven(request: Request, path: str, conn_id: str, digest: str) -> MediationConnection:
    """Return the connection whose secret the headers are signed with; its id may be another than the signed one.

    :raises UnknownConnectionError: there is none
    :raises NotAuthenticatedError: the headers are signed with another secret, or not at all
    :raises LookupFailedError: it cannot be looked up
    """
    connections: Connections = request.app.state.connections
    try:
        connection = await connections.get(conn_id)
    except OtherIdError as error:
        connection = await connections.get(error.conn_id)
    if not connection.client_secret:
        raise NotAuthenticatedError("the connection has no client secret")
    key = derive_key(connection.client_secret)
    verify(key, path=path, conn_id=conn_id, digest=digest, headers=request.headers, now=time.time())
    return connection


async def _read(request: Request, limit: int) -> bytes:
    try:
        return await read_body(request, limit=limit, seconds=BODY_SECONDS)
    except BodyTooLargeError:
        raise HTTPException(413, f"at most {limit} bytes", {"Connection": "close"}) from None
    except (BodyTooSlowError, ClientDisconnect):
        raise HTTPException(408, "the body did not arrive in time", {"Connection": "close"}) from None


class ApiUsageBuffer:
    """The calls to Zuora that were reported to one process of the API server.

    It keeps at most a day of counts for each connection, regardless of how long the database is away.

    :param write: the journal's ``record_calls`` by default
    :param sleep: waits some seconds
    """

    def __init__(
        self, write: Callable[..., None] | None = None, sleep: Callable[[float], Awaitable[None]] = asyncio.sleep
    ) -> None:
        self._write, self._sleep = write or record_calls, sleep
        # One thread of its own: it takes a connection from the pool that Airflow itself uses.
        self._thread = ThreadPoolExecutor(1, "mediation-calls")
        self._unwritten: dict[str, tuple[HourlyUsage, ...]] = {}
        self._writing: asyncio.Task[None] | None = None
        self._paused_until = 0.0

    def keep(self, conn_id: str, calls: Iterable[HourlyUsage] = ()) -> None:
        """Add reported calls, and those that this process made itself; on the event loop, without waiting.

        :param conn_id: the connection, which must be authenticated
        :param calls: as reported
        """
        with reported(conn_id) as own:
            self._add(conn_id, (*calls, *own))
        if self._unwritten and (self._writing is None or self._writing.done()):
            self._writing = asyncio.create_task(self._write_all())

    def _add(self, conn_id: str, calls: tuple[HourlyUsage, ...]) -> None:
        if calls:
            self._unwritten[conn_id] = merged((*self._unwritten.get(conn_id, ()), *calls))

    async def _write_all(self) -> None:
        """Write until nothing is left, each time what was reported since the last write."""
        loop = asyncio.get_running_loop()
        while self._unwritten:
            await self._sleep(self._paused_until - loop.time())
            self._paused_until = loop.time() + WRITE_SECONDS
            for conn_id in list(self._unwritten):
                calls = self._unwritten.pop(conn_id)
                try:
                    await loop.run_in_executor(self._thread, partial(self._write, conn_id=conn_id, calls=calls))
                except JournalUnavailable as error:
                    self._add(conn_id, calls)
                    self._paused_until = loop.time() + PAUSE_SECONDS
                    log.warning("The counts of calls to Zuora could not be stored yet: %s", error)


@router.post(OBSERVATIONS_PATH, responses=error_docs(400, 401, 404, 405, 408, 413, 503))
async def take_observations(request: Request) -> Response:
    """Store each valid entry, verdict and note; the same request again changes nothing.

    A task observes polls and replies to its own calls: what a callout proves comes from the receiver of callouts alone.
    """
    connection, body = await read_signed(request, OBSERVATIONS_PATH)
    try:
        observations = observations_from_bytes(body)
    except ValueError as error:
        raise HTTPException(400, str(error)) from None
    try:
        recorded = await request.app.state.recorder.record(
            [each for each in observations.entries if each.source in _OBSERVED],
            verdicts=observations.verdicts,
            tasks=observations.tasks,
            conn_id=connection.conn_id,
            team=connection.team,
            seconds=_RECORD_SECONDS,
        )
    except JournalUnavailable:
        raise HTTPException(503, UNAVAILABLE) from None
    request.app.state.calls.keep(connection.conn_id, observations.calls)
    others = [each for each in observations.entries if each.source not in _OBSERVED]
    refused = [*observations.unreadable, *recorded.refused]
    refused += [f"session {each.session_id!a:.80}: no task observes what comes by {each.source}" for each in others]
    for reason in refused:
        log.warning("Not stored for connection %s: %s", connection.conn_id, reason)
    stored = {"new": recorded.new, "duplicates": recorded.duplicates, "refused": refused}
    return signed_reply(request, connection, json.dumps(stored).encode())


@router.post(PRUNE_PATH, responses=error_docs(400, 401, 404, 405, 408, 413, 503))
async def prune_journal(request: Request) -> Response:
    """Delete for two seconds, and return what was deleted and whether that was all."""
    connection, body = await read_signed(request, PRUNE_PATH)
    try:
        days = PruneRequest.from_bytes(body).older_than_days
    except ValueError as error:
        raise HTTPException(400, str(error)) from None
    try:
        pruned, done = await asyncio.wrap_future(_prune_thread.submit(_prune, days, connection.conn_id))
    except JournalUnavailable as error:
        raise HTTPException(503, UNAVAILABLE) from error
    return signed_reply(request, connection, PruneReply(pruned, done).to_bytes())


def _prune(days: float, conn_id: str) -> tuple[Pruned, bool]:
    until = time.monotonic() + _PRUNE_SECONDS
    total = Pruned()
    for pruned in prune(oldest_to_keep(days), conn_id=conn_id):
        total += pruned
        # Not before something was deleted: reading only what stays could go on forever.
        if time.monotonic() >= until and total != Pruned(needed=total.needed):
            return total, False
    return total, True


@router.post(RECONCILE_PATH, responses=error_docs(400, 401, 404, 405, 408, 413, 503))
async def reconcile(request: Request) -> Response:
    """Store the entries that the journal does not have; the same request again changes nothing."""
    connection, body = await read_signed(request, RECONCILE_PATH)
    try:
        asked = ReconcileRequest.from_bytes(body)
        if any(each.source is not Source.HISTORY for each in asked.entries):
            raise ValueError(f"an entry of the callout history has another source than {Source.HISTORY}")
    except ValueError as error:
        raise HTTPException(400, str(error)) from None
    try:
        comparing = _reconcile_thread.submit(compare, asked, conn_id=connection.conn_id)
        lost, silent = await asyncio.wrap_future(comparing)
        if not asked.dry_run:
            recorded = await request.app.state.recorder.record(
                lost, conn_id=connection.conn_id, team=connection.team, seconds=_RECONCILE_SECONDS
            )
            for reason in recorded.refused:
                log.warning("Not stored for connection %s: %s", connection.conn_id, reason)
    except JournalUnavailable:
        raise HTTPException(503, UNAVAILABLE) from None
    reply = ReconcileReply(missing=tuple(str(entry.notification_id) for entry in lost), open=tuple(silent))
    return signed_reply(request, connection, reply.to_bytes())


@router.post(HISTORY_PATH, responses=error_docs(400, 401, 404, 405, 408, 413, 503))
async def read_history(request: Request) -> Response:
    """Give a reader of the callout history its turn, or move the cursor after its read."""
    connection, body = await read_signed(request, HISTORY_PATH)
    try:
        asked = HistoryRequest.from_bytes(body)
    except ValueError as error:
        raise HTTPException(400, str(error)) from None
    taking = _reconcile_thread.submit(take_turn, asked, conn_id=connection.conn_id)
    try:
        reply = await asyncio.wrap_future(taking)
    except JournalUnavailable:
        raise HTTPException(503, UNAVAILABLE) from None
    request.app.state.calls.keep(connection.conn_id, asked.calls)
    return signed_reply(request, connection, reply.to_bytes())
