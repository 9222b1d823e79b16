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
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, Final

from fastapi import APIRouter, Request
from fastapi.responses import JSONResponse
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
from airflow_mediation_provider.protocol.callouts.verify import CalloutRefused, authenticate
from airflow_mediation_provider.protocol.urls import CALLOUTS, connection_of_callout
from airflow_mediation_provider.protocol.zuora.errors import MisconfigurationError

if TYPE_CHECKING:
    from collections import Counter
    from collections.abc import Mapping

router = APIRouter()

PATH: Final = CALLOUTS + "{conn_id:path}"
BODY_LIMIT: Final = 256 * 1024
# Zuora never takes longer than this to send 256 KiB.
BODY_SECONDS: Final = 5.0
# Zuora waits 15 s for an answer.
ANSWER_SECONDS: Final = 13.0
# How long, and how many of them, the health line counts callouts to connections that do not exist.
MISADDRESSED_SECONDS: Final = 24 * 3600.0
MISADDRESSED_LIMIT: Final = 1000
# One text for all cases, so that an unauthenticated client cannot find out which connections exist.
NOT_FOUND: Final = "nothing accepts callouts here"

# Zuora's form offers GET and DELETE too, which have no body.
_METHODS: Final = ("POST", "PUT", "PATCH")
_OTHER_METHODS: Final = ("GET", "HEAD", "DELETE", "OPTIONS")
_COUNTED: Final = frozenset({401, 404, 405})

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
    began = time.monotonic()
    conn_id = connection_of_callout(conn_id)
    try:
        await _take(request, conn_id, began + ANSWER_SECONDS)
    except Exception as error:
        refusal = _refusal(error)
        _count_refusal(request, error, 503 if refusal is None else refusal.status, conn_id)
        if refusal is None:
            raise
        what = f"A callout was answered {refusal.status}"
        request.app.state.throttled_log.log(refusal.level, what, conn_id, refusal.reason)
        return refused(refusal.status, refusal.error, refusal.headers)
    counted: Counter[tuple[str, int]] = request.app.state.refused
    for status in (*_COUNTED, 503):
        counted.pop((conn_id, status), None)
    metrics.CALLOUTS_ACCEPTED.add(conn_id=conn_id)
    metrics.CALLOUTS_DURATION.took(time.monotonic() - began, conn_id=conn_id)
    return JSONResponse({"success": True})


@router.api_route(PATH, methods=list(_OTHER_METHODS), include_in_schema=False)
async def refuse_method(request: Request, conn_id: str) -> JSONResponse:
    """Count and log a callout by a method without a body: Zuora never sends it again."""
    conn_id = connection_of_callout(conn_id)
    error: Exception = _MethodError()
    try:
        await request.app.state.connections.get(conn_id)
    except (UnknownConnectionError, LookupFailedError) as unknown:
        error = unknown
    _count_refusal(request, error, 405, conn_id)
    reason = f"its method is {request.method}: choose POST in the callout template"
    request.app.state.throttled_log.log(logging.WARNING, "A callout was answered 405", conn_id, reason)
    return refused(405, "method not allowed", {"Allow": ", ".join(_METHODS)})


async def _take(request: Request, conn_id: str, deadline: float) -> None:
    """Return when the callout's event is durable."""
    state = request.app.state
    body = await read_body(request, limit=BODY_LIMIT, seconds=BODY_SECONDS)
    observed_at = datetime.now(UTC)
    connection = await state.connections.get(conn_id, request.query_params.get("team"))
    settings = connection.callouts
    if not settings.enabled:
        raise _NoAuthenticationError
    # Of two headers with the same name, the first counts: with [core] simple_auth_manager_all_admins, Airflow appends
    # an Authorization header of its own to the ones that were sent.
    headers = dict(request.headers)
    authenticate(settings, headers, body, now=observed_at)
    entry = read_callout(settings, headers, body, observed_at, dict(request.query_params))
    left = deadline - time.monotonic()
    await state.recorder.record([entry], conn_id=conn_id, team=connection.team, seconds=left)


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


def _count_refusal(request: Request, error: Exception, status: int, conn_id: str) -> None:
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
    if status in _COUNTED or set_up_wrongly:
        if known:
            request.app.state.refused[conn_id, status] += 1
        else:
            request.app.state.misaddressed.add(object(), True)
