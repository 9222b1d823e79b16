"""Requests of Airflow's own processes: proven by a signature with a key derived from the connection's client secret."""

from __future__ import annotations

import logging
import time
from typing import TYPE_CHECKING, Final

from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect

from airflow_mediation_provider.api_server.body import BodyTooLargeError, BodyTooSlowError, read_body
from airflow_mediation_provider.api_server.connections import LookupFailedError, UnknownConnectionError
from airflow_mediation_provider.api_server.replies import UNAVAILABLE
from airflow_mediation_provider.protocol.feed import NotProvenError, derive_key, signed_connection, verify

if TYPE_CHECKING:
    from starlette.requests import Request

    from airflow_mediation_provider.api_server.connections import MediationConnection

# Two thousand waits of one triggerer, with their conditions, take one megabyte or two.
BODY_LIMIT: Final = 8 * 1024 * 1024
BODY_SECONDS: Final = 10.0
# One text for whatever is not proven: a stranger learns nothing about which connections there are.
NOT_PROVEN: Final = "not authenticated"


async def read_signed(request: Request, path: str) -> tuple[MediationConnection, bytes]:
    """Return the connection that a request proves to know the secret of, and the request's body.

    :param path: the path that is signed
    :raises HTTPException: 401 not proven, 408 and 413 by its body, 503 where the connection cannot be looked up
    """
    conn_id = signed_connection(request.headers)
    try:
        # Before the body: nobody fills the memory who does not even know a connection's id.
        connection: MediationConnection = await request.app.state.connections.get(conn_id)
        body = await read_body(request, limit=BODY_LIMIT, seconds=BODY_SECONDS)
        if not connection.client_secret:
            raise NotProvenError("the connection has no client secret")
        key = derive_key(connection.client_secret)
        verify(key, path=path, conn_id=conn_id, body=body, headers=request.headers, now=time.time())
    except BodyTooLargeError:
        raise HTTPException(413, f"at most {BODY_LIMIT} bytes", {"Connection": "close"}) from None
    except (BodyTooSlowError, ClientDisconnect):
        raise HTTPException(408, "the body did not come in time", {"Connection": "close"}) from None
    except (UnknownConnectionError, NotProvenError) as error:
        reason = str(error) if isinstance(error, NotProvenError) else "no connection of type mediation has this id"
        what = f"A request to {path} was answered 401"
        request.app.state.complaints.say(logging.WARNING, what, conn_id, reason)
        raise HTTPException(401, NOT_PROVEN) from None
    except LookupFailedError as error:
        request.app.state.complaints.say(logging.ERROR, f"A request to {path} was answered 503", conn_id, str(error))
        raise HTTPException(503, UNAVAILABLE) from None
    return connection, body
