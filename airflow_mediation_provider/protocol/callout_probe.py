"""A callout of our own making, to prove the way through: signed like Zuora's, and a test by its own words.

The receiver stores it as a test: it is no change of any session, and starts nothing.
"""

from __future__ import annotations

import base64
import json
from email.utils import format_datetime
from typing import TYPE_CHECKING, Final

from airflow_mediation_provider.protocol.callout import NOTIFICATION_HEADER, TEST_FIELD
from airflow_mediation_provider.protocol.callout_auth import sign
from airflow_mediation_provider.protocol.callout_settings import SignedHeader
from airflow_mediation_provider.protocol.times import to_json

if TYPE_CHECKING:
    from collections.abc import Mapping
    from datetime import datetime

    from airflow_mediation_provider.protocol.callout_settings import CalloutSettings

SECONDS: Final = 25.0
"""Zuora waits so long for an answer in all, and not longer."""


def probe(
    settings: CalloutSettings, *, nonce: str, now: datetime, authorized: bool = True
) -> tuple[dict[str, str], bytes]:
    """Return headers and body of a test callout.

    :param settings: of the connection; its current secrets are used
    :param nonce: letters and digits that no other test has
    :param now: the time now
    :param authorized: with credentials; without, it is what a stranger sends, and the first thing that Zuora sends
        where Basic authentication is not preemptive
    """
    body = json.dumps(
        {
            TEST_FIELD: to_json(now),
            "meterId": "0",
            "sessionId": f"TEST-{nonce}",
            "runType": "DEBUG",
            "status": "TESTING",
            "previousStatus": "",
        }
    ).encode()
    headers = {
        "Content-Type": "application/json",
        "Date": format_datetime(now, usegmt=True),
        "Zuora-Request-Id": nonce,
        NOTIFICATION_HEADER: f"test-{nonce}",
    }
    hmac = settings.hmac
    if hmac is not None:
        known = {name.lower() for name in headers}
        headers |= {
            part.name: "test"
            for part in hmac.parts
            if isinstance(part, SignedHeader) and part.name.lower() not in known
        }
    return (headers | _credentials(settings, headers, body) if authorized else headers), body


def _credentials(settings: CalloutSettings, headers: Mapping[str, str], body: bytes) -> dict[str, str]:
    made = {}
    if settings.token is not None:
        made[settings.token.header] = settings.token.tokens[0]
    if settings.basic is not None:
        pair = f"{settings.basic.username}:{settings.basic.passwords[0]}"
        made["Authorization"] = f"Basic {base64.b64encode(pair.encode()).decode()}"
    if settings.hmac is not None:
        sent = {name.lower(): value for name, value in {**headers, **made}.items()}
        made[settings.hmac.header] = sign(settings.hmac, sent, body, settings.hmac.secrets[0])
    return made


def explain_refusal(status: int, headers: Mapping[str, str], body: str, settings: CalloutSettings) -> str | None:
    """Say what is wrong with the answer to a callout without credentials; ``None``: it is the right one.

    :param status: the answer's status
    :param headers: the answer's, names in lower case
    :param body: the answer's
    :param settings: of the connection
    """
    if status == 200:
        return (
            "a callout without credentials was answered 200: whoever answered is not this endpoint, and Zuora would "
            "take it for success"
        )
    if status != 401:
        return explain_answer(status, headers, body)
    if settings.basic is not None and "basic" not in headers.get("www-authenticate", "").lower():
        return (
            "the answer 401 does not ask for Basic credentials (WWW-Authenticate): something between Zuora and Airflow "
            "takes the header away or answers itself, and Zuora never sends its credentials unless they are preemptive"
        )
    return None


def explain_answer(status: int, headers: Mapping[str, str], body: str) -> str | None:
    """Say what is wrong with the answer to a callout with the right credentials; ``None``: it is the right one.

    :param status: the answer's status
    :param headers: the answer's, names in lower case
    :param body: the answer's
    """
    success = _success(body)
    if status == 200:
        return None if success else "the answer is 200, but another page's: Zuora would take it for success"
    if 300 <= status < 400:
        return f"the answer is {status}, to {headers.get('location', 'nowhere')}: Zuora follows no redirect"
    known = _OURS.get(status) if success is False else _OTHERS.get(status)
    return f"the answer is {status}: {known or 'it is not from this endpoint, but from something before Airflow'}"


# Answers of the endpoint itself, and answers of whatever else may stand there.
_OURS: Final = {
    401: "the credentials are refused. The API server has other secrets in this connection (after a change it needs "
    "five seconds), or a proxy takes headers away or changes the body",
    404: "the API server does not know a connection of this id and of type mediation (a new one may need two minutes), "
    "or finds no callout authentication in it",
    408: "the API server did not get the whole body in time",
    503: "the API server cannot store callouts, or the connection's callout fields are wrong there. Its log says which",
}
_OTHERS: Final = {
    401: "something before Airflow asks for credentials of its own",
    403: "something before Airflow forbids it: a proxy, a firewall, a gateway",
    404: "nothing is at this address. Its path must end with /mediation/callouts/ and the connection's id",
    405: "Airflow answers, but not this provider. Is it installed where the API server runs, and was that restarted? "
    "Zuora never tries again after 405",
    413: "a proxy allows no body of this size",
    502: "a proxy does not reach the API server",
    503: "a proxy does not reach the API server, or Airflow is starting",
    504: "a proxy waits for the API server in vain",
}


def _success(body: str) -> bool | None:
    """Return what the answer of this endpoint says; ``None``: it is not one."""
    try:
        reply = json.loads(body)
    except (ValueError, RecursionError):
        return None
    success = reply.get("success") if isinstance(reply, dict) else None
    return success if isinstance(success, bool) else None
