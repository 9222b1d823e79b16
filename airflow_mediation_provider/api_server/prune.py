"""Delete what is old in the journal for a worker; of the connection alone whose secret it knows."""

from __future__ import annotations

import asyncio
import time
from concurrent.futures import ThreadPoolExecutor
from typing import Final

from fastapi import APIRouter, Request, Response
from starlette.exceptions import HTTPException

from airflow_mediation_provider.api_server.replies import UNAVAILABLE, error_docs
from airflow_mediation_provider.api_server.signed import read_signed
from airflow_mediation_provider.journal.prune import oldest_to_keep, prune
from airflow_mediation_provider.journal.record import JournalUnavailable
from airflow_mediation_provider.protocol.pruning import PRUNE_PATH, Pruned, reply_to_bytes, request_from_bytes

router = APIRouter()

# Short requests, asked again and again: neither a proxy nor a server that is to stop waits for long.
_SECONDS: Final = 2.0
# One at a time: callouts come first.
_thread: Final = ThreadPoolExecutor(1, "mediation-prune")


@router.post(PRUNE_PATH, responses=error_docs(400, 401, 405, 408, 413, 503))
async def prune_journal(request: Request) -> Response:
    """Delete for two seconds, and say what was deleted and whether that was all."""
    connection, body = await read_signed(request, PRUNE_PATH)
    try:
        days = request_from_bytes(body)
    except ValueError as error:
        raise HTTPException(400, str(error)) from None
    try:
        pruned, done = await asyncio.wrap_future(_thread.submit(_prune, days, connection.conn_id))
    except JournalUnavailable as error:
        raise HTTPException(503, UNAVAILABLE) from error
    return Response(reply_to_bytes(pruned, done=done), media_type="application/json")


def _prune(days: float, conn_id: str) -> tuple[Pruned, bool]:
    until = time.monotonic() + _SECONDS
    total = Pruned()
    for pruned in prune(oldest_to_keep(days), conn_id=conn_id):
        total += pruned
        # Not before something was deleted, or looking at what stays could go on for ever.
        if time.monotonic() >= until and total != Pruned(needed=total.needed):
            return total, False
    return total, True
