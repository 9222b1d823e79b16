"""Receive Zuora's callouts: an answer of exactly 200 once the event is durable, never before.

Zuora sends a callout again after 408, 429 and 5xx, and never after most other answers. So 4xx is only for requests that
do not prove that they come from Zuora, that are too large or carry no body by their method, or too slow (408); every
other failure is a 503. For the same reason a slash too many and a pasted blank do not hide the connection.

Source:
https://docs.zuora.com/en/zuora-platform/extensibility/events-and-notifications/notifications/callout-notification-overview
"""

from __future__ import annotations

import logging
import time
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, Final

from fastapi import APIRouter, Request
from fastapi.responses import JSONResponse
from starlette.background import BackgroundTask
from starlette.requests import ClientDisconnect

from airflow_mediation_provider import metrics
from airflow_mediation_provider.api_server.connections import (
    LookupFailedError,
    SeveralTeamsError,
    UnknownConnectionError,
)
from airflow_mediation_provider.api_server.http import (
    UNAVAILABLE,
    BodyTooLargeError,
    BodyTooSlowError,
    error_docs,
    read_body,
    refused,
)
from airflow_mediation_provider.journal.writer import JournalUnavailable
from airflow_mediation_provider.protocol.callouts.parse import read_callout
from airflow_mediation_provider.protocol.callouts.receipt import ACCEPTED, NO_CONNECTION, Proof, Receipt, receipt
from airflow_mediation_provider.protocol.callouts.verify import CalloutRefused, authenticate
from airflow_mediation_provider.protocol.urls import CALLOUTS, connection_of_callout
from airflow_mediation_provider.protocol.zuora.errors import MisconfigurationError

if TYPE_CHECKING:
    from collections.abc import Mapping

    from airflow_mediation_provider.api_server.connections import Connections, MediationConnection

router = APIRouter()

PATH: Final = CALLOUTS + "{conn_id:path}"
BODY_LIMIT: Final = 256 * 1024
# Zuora never takes longer than this to send 256 KiB.
BODY_SECONDS: Final = 5.0
# Zuora waits 15 s for an answer.
ANSWER_SECONDS: Final = 13.0
# One text for all cases, so that an unauthenticated client cannot find out which connections exist.
NOT_FOUND: Final = "nothing accepts callouts here"

# Zuora's form offers GET and DELETE too, which have no body.
_METHODS: Final = ("POST", "PUT", "PATCH")
_OTHER_METHODS: Final = ("GET", "HEAD", "DELETE", "OPTIONS")
# Its message quotes the settings, and a user may have put a secret into the wrong field.
_MISCONFIGURED: Final = "its callout settings are wrong"

_CHALLENGE: Final = {"WWW-Authenticate": 'Basic realm="mediation"'}
_CLOSE: Final = {"Connection": "close"}
_ACCEPTED_SCHEMA: Final = {"type": "object", "properties": {"success": {"const": True}}, "required": ["success"]}
_DOCS: Final[dict[int | str, dict[str, Any]]] = {
    200: {"description": "the event is durable", "content": {"application/json": {"schema": _ACCEPTED_SCHEMA}}},
    **error_docs(401, 404, 405, 408, 413, 503),
}
_FIELDS: Final = {
    "meterId": "2470",
    "meterName": "Rated usage",
    "sessionId": "R-00005468",
    "runType": "NORMAL",
    "status": "COMPLETED",
    "previousStatus": "RUNNING",
    "startTime": "2026-03-31T09:17:21Z",
    "endTime": "2026-03-31T09:42:05Z",
}
# Users write the template, so any body is possible: one that cannot be parsed is stored as it was received.
_BODY_DOCS: Final[dict[str, Any]] = {
    "requestBody": {
        "description": "What the callout template makes, commonly a JSON object with the event's eight fields.",
        "content": {
            "application/json": {
                "schema": {"anyOf": [{"type": "object", "properties": {name: {} for name in _FIELDS}}, {}]},
                "example": _FIELDS,
            },
            "*/*": {"schema": {"type": "string", "format": "binary"}},
        },
    }
}


@router.post(PATH, responses=_DOCS, openapi_extra=_BODY_DOCS)
@router.put(PATH, responses=_DOCS, openapi_extra=_BODY_DOCS)
@router.patch(PATH, responses=_DOCS, openapi_extra=_BODY_DOCS)
async def receive_callout(request: Request, conn_id: str) -> JSONResponse:
    """Receive one callout."""
    seen = _Seen(request, connection_of_callout(conn_id))
    try:
        await _take(seen)
    except Exception as error:
        refusal = _refusal(error)
        _count_refusal(error, 503 if refusal is None else refusal.status, seen.conn_id)
        if refusal is None:
            await seen.keep(503, error, "an unexpected error (see the API server's log)")
            raise
        what = f"A callout was answered {refusal.status}"
        request.app.state.throttled_log.log(refusal.level, what, seen.conn_id, refusal.reason)
        reply = refused(refusal.status, refusal.error, refusal.headers)
        reply.background = BackgroundTask(seen.keep, refusal.status, error, refusal.reason)
        return reply
    metrics.CALLOUTS_ACCEPTED.add(conn_id=seen.conn_id)
    metrics.CALLOUTS_DURATION.took(time.monotonic() - seen.began, conn_id=seen.conn_id)
    return JSONResponse({"success": True}, background=BackgroundTask(seen.keep, ACCEPTED))


@router.api_route(PATH, methods=list(_OTHER_METHODS), include_in_schema=False)
async def refuse_method(request: Request, conn_id: str) -> JSONResponse:
    """Count and log a callout by a method without a body: Zuora never sends it again."""
    seen = _Seen(request, connection_of_callout(conn_id))
    error: Exception = _MethodError()
    try:
        seen.connection = await seen.look_up()
    except (UnknownConnectionError, LookupFailedError) as unknown:
        error = unknown
    _count_refusal(error, 405, seen.conn_id)
    reason = f"its method is {request.method}: choose POST in the callout template"
    request.app.state.throttled_log.log(logging.WARNING, "A callout was answered 405", seen.conn_id, reason)
    reply = refused(405, "method not allowed", {"Allow": ", ".join(_METHODS)})
    reply.background = BackgroundTask(seen.keep, 405, error, reason)
    return reply


async def _take(seen: _Seen) -> None:
    """Return when the callout's event is durable."""
    request, state = seen.request, seen.request.app.state
    seen.body = body = await read_body(request, limit=BODY_LIMIT, seconds=BODY_SECONDS)
    observed_at = datetime.now(UTC)
    connection = seen.connection = await seen.look_up()
    settings = connection.callouts
    if not settings.enabled:
        raise _NoAuthenticationError
    # Of two headers with the same name, the first counts: with [core] simple_auth_manager_all_admins, Airflow appends
    # an Authorization header of its own to the ones that were sent.
    headers = dict(request.headers)
    seen.proof = Proof.REFUSED
    authenticate(settings, headers, body, now=observed_at)
    seen.proof = Proof.PROVEN
    entry = read_callout(settings, headers, body, observed_at, dict(request.query_params))
    left = seen.began + ANSWER_SECONDS - time.monotonic()
    recorded = await state.recorder.record([entry], conn_id=seen.conn_id, team=connection.team, seconds=left)
    seen.row_id = next(iter(recorded.row_ids), None)


class _Seen:
    """What is known of a callout until its answer.

    :param conn_id: from the request, so perhaps no connection has it
    """

    def __init__(self, request: Request, conn_id: str) -> None:
        self.request, self.conn_id = request, conn_id
        self.began, self.at = time.monotonic(), datetime.now(UTC)
        self.connection: MediationConnection | None = None
        self.body: bytes | None = None
        self.proof = Proof.UNCHECKED
        self.row_id: int | None = None

    async def look_up(self) -> MediationConnection:
        """Return the connection that the address names."""
        connections: Connections = self.request.app.state.connections
        return await connections.get(self.conn_id, self.request.query_params.get("team"))

    async def keep(self, status: int, error: Exception | None = None, reason: str = "") -> None:
        """Keep a receipt, after the answer; a 401 that only asks for Basic credentials has none.

        :param status: of the answer
        :param error: why it is not 200
        :param reason: the same for the log
        """
        if isinstance(error, CalloutRefused) and error.unasked:
            return
        state = self.request.app.state
        if isinstance(error, BodyTooLargeError | BodyTooSlowError | ClientDisconnect):
            # Not looked up before the answer, which is the same for connections that exist and that do not.
            with suppress(UnknownConnectionError, LookupFailedError):
                self.connection = await self.look_up()
        if self.connection is None:
            conn_id = self.conn_id if isinstance(error, SeveralTeamsError) else NO_CONNECTION
            state.receipts.keep(Receipt(conn_id=conn_id, received_at=self.at, status=status, reason=reason))
            return
        state.receipts.keep(
            receipt(
                self.connection.conn_id,
                self.at,
                status,
                extra=self.connection.extra,
                method=self.request.method,
                headers=self.request.headers.items(),
                query=self.request.query_params.multi_items(),
                body=self.body,
                milliseconds=round(1000 * (time.monotonic() - self.began)),
                proof=self.proof,
                reason=_MISCONFIGURED if isinstance(error, MisconfigurationError) else reason,
                transition_id=self.row_id,
            )
        )


class _MethodError(Exception):
    """The request is by a method that has no body."""


class _NoAuthenticationError(Exception):
    """No authentication is set up for callouts, so the connection accepts none."""


@dataclass(frozen=True)
class _Refusal:
    """An answer that is not 200.

    :param error: for Zuora's callout history
    :param reason: for our log
    """

    status: int
    error: str
    reason: str
    level: int = logging.WARNING
    headers: Mapping[str, str] = field(default_factory=dict)


def _refusal(error: Exception) -> _Refusal | None:
    """Return the answer for an exception; ``None`` if it is unexpected."""
    match error:
        case BodyTooLargeError():  # the rest of the body is not read
            return _Refusal(413, f"at most {BODY_LIMIT} bytes", "its body is too large", headers=_CLOSE)
        case BodyTooSlowError() | ClientDisconnect():
            return _Refusal(408, "the body did not arrive in time", "its body did not arrive in time", headers=_CLOSE)
        case UnknownConnectionError():
            return _Refusal(404, NOT_FOUND, str(error))
        case _NoAuthenticationError():
            return _Refusal(404, NOT_FOUND, "it has no callout authentication (callout_hmac_secret, ...) in its extra")
        case CalloutRefused():
            level = logging.DEBUG if error.unasked else logging.WARNING
            return _Refusal(401, "not authenticated", error.reason, level, _CHALLENGE if error.challenge else {})
        case MisconfigurationError():
            return _Refusal(503, "the receiver is misconfigured", str(error), logging.ERROR)
        case LookupFailedError():
            return _Refusal(503, UNAVAILABLE, f"it could not be looked up: {error}", logging.ERROR)
        case JournalUnavailable():
            return _Refusal(503, UNAVAILABLE, f"it could not be stored: {error}", logging.ERROR)
    return None


def _count_refusal(error: Exception, status: int, conn_id: str) -> None:
    """Count a callout that is not accepted; a 401 that only asks for Basic credentials does not count.

    :param status: of the answer
    :param conn_id: from the request, so perhaps no connection has it
    """
    if isinstance(error, CalloutRefused) and error.unasked:
        return
    set_up_wrongly = isinstance(error, MisconfigurationError | SeveralTeamsError)
    known = set_up_wrongly or isinstance(
        error, _NoAuthenticationError | _MethodError | CalloutRefused | JournalUnavailable
    )
    metrics.CALLOUTS_REFUSED.add(conn_id=conn_id if known else "unknown", status=status)
