"""Tell a worker what of the callout history the journal does not know, and put it in."""

from __future__ import annotations

import asyncio
import json
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Final

from fastapi import APIRouter, Request
from starlette.exceptions import HTTPException

from airflow_mediation_provider.api_server.replies import UNAVAILABLE, error_docs
from airflow_mediation_provider.api_server.signed import read_signed
from airflow_mediation_provider.journal.reconcile import compare
from airflow_mediation_provider.journal.record import JournalUnavailable
from airflow_mediation_provider.protocol.reconcile import RECONCILE_PATH, ReconcileReply, ReconcileRequest

router = APIRouter()

_ANSWER_SECONDS: Final = 20.0
# One look at a time: nobody waits for it but a task.
_thread: Final = ThreadPoolExecutor(1, "mediation-reconcile")


@router.post(RECONCILE_PATH, responses=error_docs(400, 401, 405, 408, 413, 503))
async def reconcile(request: Request) -> dict[str, Any]:
    """Compare, and keep what is missing; asking the same again does no harm."""
    connection, body = await read_signed(request, RECONCILE_PATH)
    try:
        asked = ReconcileRequest.from_dict(json.loads(body))
    except (ValueError, AttributeError, RecursionError) as error:
        raise HTTPException(400, f"the request cannot be read: {error}") from None
    try:
        looking = _thread.submit(compare, asked, conn_id=connection.conn_id)
        lost, silent = await asyncio.wrap_future(looking)
        if not asked.dry_run:
            await request.app.state.recorder.record(
                lost, conn_id=connection.conn_id, team=connection.team, seconds=_ANSWER_SECONDS
            )
    except JournalUnavailable:
        raise HTTPException(503, UNAVAILABLE) from None
    return ReconcileReply(missing=tuple(str(entry.notification_id) for entry in lost), open=tuple(silent)).to_dict()
