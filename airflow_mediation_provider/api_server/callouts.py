"""Receive Zuora's callouts: an answer of exactly 200 once the event is durable, never before.

Zuora sends a callout again after 408, 429 and 5xx, and never after most other answers. So 4xx is for those alone who do
not prove that they are Zuora, and for what is too large; whatever else stands in the way is a 503.

Source: https://docs.zuora.com/en/zuora-platform/extensibility/events-and-notifications/notifications/callout-notification-overview
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
from airflow_mediation_provider.api_server.body import BodyTooLargeError, BodyTooSlowError, read_body
from airflow_mediation_provider.api_server.connections import LookupFailedError, UnknownConnectionError
from airflow_mediation_provider.api_server.replies import UNAVAILABLE, error_docs, refused
from airflow_mediation_provider.journal.record import JournalUnavailable
from airflow_mediation_provider.protocol.callout import read_callout
from airflow_mediation_provider.protocol.callout_auth import Refused, authenticate
from airflow_mediation_provider.protocol.errors import MisconfigurationError

if TYPE_CHECKING:
    from collections.abc import Mapping

router = APIRouter()

BODY_LIMIT: Final = 256 * 1024
# Whoever sends 256 KiB more slowly than this is not Zuora.
BODY_SECONDS: Final = 5.0
# Zuora waits 15 s for an answer.
ANSWER_SECONDS: Final = 13.0
# One text for all of them: a stranger learns nothing about which connections there are.
NOT_FOUND: Final = "nothing accepts callouts here"

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
# Users write the template, so anything goes: what cannot be read is kept as it came.
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


@router.post(
    "/callouts/{conn_id:path}",
    responses=_DOCS,
    openapi_extra=_BODY_DOCS,
)
async def receive_callout(request: Request, conn_id: str) -> JSONResponse:
    """Take one callout."""
    began = time.monotonic()
    try:
        await _take(request, conn_id, began + ANSWER_SECONDS)
    except Exception as error:
        refusal = _refusal(error)
        _count_refusal(error, 503 if refusal is None else refusal.status, conn_id)
        if isinstance(error, Refused) and not error.unasked:
            request.app.state.refused[conn_id] += 1
        if refusal is None:
            raise
        what = f"A callout was answered {refusal.status}"
        request.app.state.complaints.say(refusal.level, what, conn_id, refusal.reason)
        return refused(refusal.status, refusal.error, refusal.headers)
    request.app.state.refused.pop(conn_id, None)
    metrics.CALLOUTS_ACCEPTED.add(conn_id=conn_id)
    metrics.CALLOUTS_DURATION.took(time.monotonic() - began, conn_id=conn_id)
    return JSONResponse({"success": True})


async def _take(request: Request, conn_id: str, deadline: float) -> None:
    """Return when the callout's event is durable."""
    state = request.app.state
    body = await read_body(request, limit=BODY_LIMIT, seconds=BODY_SECONDS)
    observed_at = datetime.now(UTC)
    connection = await state.connections.get(conn_id)
    settings = connection.callouts
    if not settings.enabled:
        raise _NoAuthenticationError
    # Of two headers of a name the first: Airflow puts an Authorization of its own behind what was sent where everybody
    # is an admin ([core] simple_auth_manager_all_admins).
    headers = dict(request.headers)
    authenticate(settings, headers, body)
    entry = read_callout(settings, headers, body, observed_at)
    left = deadline - time.monotonic()
    await state.recorder.record([entry], conn_id=conn_id, team=connection.team, seconds=left)


class _NoAuthenticationError(Exception):
    """Nothing proves that a callout comes from Zuora, so the connection accepts none."""


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
    """Return the answer to what went wrong; ``None`` where nobody foresaw it."""
    match error:
        case BodyTooLargeError():  # the rest of the body is not waited for
            return _Refusal(413, f"at most {BODY_LIMIT} bytes", "its body is too large", headers=_CLOSE)
        case BodyTooSlowError() | ClientDisconnect():
            return _Refusal(408, "the body did not come in time", "its body did not come in time", headers=_CLOSE)
        case UnknownConnectionError():
            return _Refusal(404, NOT_FOUND, "there is no connection of this id and of type mediation")
        case _NoAuthenticationError():
            return _Refusal(404, NOT_FOUND, "it has no callout authentication (callout_hmac_secret, ...) in its extra")
        case Refused():
            level = logging.DEBUG if error.unasked else logging.WARNING
            return _Refusal(401, "not authenticated", error.reason, level, _CHALLENGE if error.challenge else {})
        case MisconfigurationError():
            return _Refusal(503, "the receiver is set up wrongly", str(error), logging.ERROR)
        case LookupFailedError():
            return _Refusal(503, UNAVAILABLE, f"it could not be looked up: {error}", logging.ERROR)
        case JournalUnavailable():
            return _Refusal(503, UNAVAILABLE, f"it could not be stored: {error}", logging.ERROR)
    return None


def _count_refusal(error: Exception, status: int, conn_id: str) -> None:
    """Count a callout that is not accepted; the 401 that asks for Basic credentials refuses none.

    :param status: of the answer
    :param conn_id: as it came with the request, so perhaps invented
    """
    known = isinstance(error, _NoAuthenticationError | Refused | MisconfigurationError | JournalUnavailable)
    if not (isinstance(error, Refused) and error.unasked):
        metrics.CALLOUTS_REFUSED.add(conn_id=conn_id if known else "unknown", status=status)
