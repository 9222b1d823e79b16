"""Take what workers and triggers learned: run replies, polls and the callout history go the way that callouts go."""

from __future__ import annotations

from typing import Final

from fastapi import APIRouter, Request
from starlette.exceptions import HTTPException

from airflow_mediation_provider.api_server.replies import UNAVAILABLE, error_docs
from airflow_mediation_provider.api_server.signed import read_signed
from airflow_mediation_provider.journal.record import JournalUnavailable
from airflow_mediation_provider.protocol.feed import OBSERVATIONS_PATH, observations_from_bytes

router = APIRouter()

_ANSWER_SECONDS: Final = 10.0


@router.post(OBSERVATIONS_PATH, responses=error_docs(400, 401, 405, 408, 413, 503))
async def take_observations(request: Request) -> dict[str, int]:
    """Keep entries, all or none; telling the same again does no harm."""
    connection, body = await read_signed(request, OBSERVATIONS_PATH)
    try:
        told = observations_from_bytes(body)
    except ValueError as error:
        raise HTTPException(400, str(error)) from None
    try:
        recorded = await request.app.state.recorder.record(
            told.entries, conn_id=connection.conn_id, team=connection.team, seconds=_ANSWER_SECONDS
        )
    except JournalUnavailable:
        raise HTTPException(503, UNAVAILABLE) from None
    request.app.state.calls.keep(connection.conn_id, told.calls)
    return {"new": recorded.new, "duplicates": recorded.duplicates}
