"""Authenticate a callout with the connection's secrets. Kept short, because reviewers of security read it.

Every configured check must pass. All are made, even where the first one fails, and secrets are compared in constant
time; the current and the previous secret are both accepted.

Source: https://docs.zuora.com/en/zuora-platform/extensibility/events-and-notifications/callout-templates/callout-template-overview
"""

from __future__ import annotations

import base64
import hmac
from datetime import UTC, timedelta
from email.utils import parsedate_to_datetime
from typing import TYPE_CHECKING, Final

from airflow_mediation_provider.protocol.callouts.settings import ALGORITHMS, SignedBody, SignedHeader

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping
    from datetime import datetime

    from airflow_mediation_provider.protocol.callouts.settings import Basic, CalloutSettings, Hmac, Token

Headers = dict[str, str]
LONGEST_AGE: Final = timedelta(days=1)
"""How far a signed ``Date`` may be off: Zuora tries for an hour, and its queue may be long."""


class CalloutRefused(Exception):  # noqa: N818
    """A callout is not accepted.

    :param reason: for the server's log; holds no secret, and nothing that the sender wrote
    :param challenge: whether to ask for Basic credentials: Zuora's first request, unless preemptive, has none
    :param unasked: whether only the Basic credentials are missing, and were not asked for yet: no reason for a warning
    """

    status: Final = 401

    def __init__(self, reason: str, *, challenge: bool, unasked: bool = False) -> None:
        super().__init__(reason)
        self.reason = reason
        self.challenge = challenge
        self.unasked = unasked


def authenticate(settings: CalloutSettings, headers: Mapping[str, str], body: bytes, *, now: datetime) -> None:
    """Return only if the callout is authentic.

    :param settings: of the connection
    :param headers: of the request, names in any case
    :param body: exactly as received
    :param now: when it was received
    :raises CalloutRefused: it is not, or the connection has no callout authentication
    """
    if not settings.enabled:
        raise CalloutRefused("the connection has no callout authentication", challenge=False)
    sent = {name.lower(): value for name, value in headers.items()}
    faults = []
    if settings.hmac is not None:
        faults.append(_check_hmac(settings.hmac, sent, body) or _check_age(settings.hmac, sent, now))
    if settings.token is not None:
        faults.append(_check_token(settings.token, sent))
    unasked = not any(faults)
    if settings.basic is not None:
        faults.append(_check_basic(settings.basic, sent))
    if any(faults):
        raise CalloutRefused(
            "; ".join(filter(None, faults)),
            challenge=settings.basic is not None,
            unasked=unasked and "authorization" not in sent,
        )


def sign(settings: Hmac, headers: Mapping[str, str], body: bytes, secret: str) -> str:
    """Return the value of the signature's header, with prefix and suffix.

    :param settings: how callouts are signed
    :param headers: of the request, names in lower case; the signed ones must be present
    :param body: of the request
    :param secret: the secret to sign with
    :raises KeyError: a signed header is missing
    """
    message = b"".join(
        body
        if isinstance(part, SignedBody)
        else headers[part.name.lower()].encode("latin-1", "replace")
        if isinstance(part, SignedHeader)
        else part.encode()
        for part in settings.parts
    )
    digest = hmac.digest(secret.encode(), message, ALGORITHMS[settings.algorithm])
    signature = digest.hex() if settings.encoding == "HEX" else base64.b64encode(digest).decode()
    return f"{settings.prefix}{signature}{settings.suffix}"


def _check_hmac(settings: Hmac, sent: Headers, body: bytes) -> str:
    given = sent.get(settings.header.lower())
    if given is None:
        return f"no signature in the header {settings.header}"
    try:
        expected = [sign(settings, sent, body, secret).strip() for secret in settings.secrets]
    except KeyError as missing:
        return f"the header {missing}, which is signed, is missing"
    given = given.strip()
    if settings.encoding == "HEX":  # Zuora documents no case
        given, expected = given.lower(), [text.lower() for text in expected]
    return "" if _is_one_of(given, expected) else f"the signature in the header {settings.header} is wrong"


def _check_age(settings: Hmac, sent: Headers, now: datetime) -> str:
    """Check a signed ``Date``: a callout that was recorded must not count for ever. Zuora documents no format of it."""
    if not any(isinstance(part, SignedHeader) and part.name.lower() == "date" for part in settings.parts):
        return ""
    try:
        at = parsedate_to_datetime(sent["date"])
        age = abs(now - (at if at.tzinfo else at.replace(tzinfo=UTC)))
    except (TypeError, ValueError, OverflowError):
        return ""
    return f"the signed Date is more than {LONGEST_AGE.days} day off: compare the clocks" if age > LONGEST_AGE else ""


def _check_token(settings: Token, sent: Headers) -> str:
    given = sent.get(settings.header.lower())
    if given is None:
        return f"no token in the header {settings.header}"
    return "" if _is_one_of(given.strip(), settings.tokens) else f"the token in the header {settings.header} is wrong"


def _check_basic(settings: Basic, sent: Headers) -> str:
    given = sent.get("authorization")
    if given is None:
        return "no Basic credentials"
    scheme, _, encoded = given.strip().partition(" ")
    if scheme.lower() != "basic":
        return "the Authorization is not Basic"
    expected = [base64.b64encode(f"{settings.username}:{each}".encode()).decode() for each in settings.passwords]
    return "" if _is_one_of(encoded.strip(), expected) else "the Basic credentials are wrong"


def _is_one_of(given: str, expected: Iterable[str]) -> bool:
    """Compare with all of them, each in constant time."""
    sent = given.encode("utf-8", "replace")
    return any([hmac.compare_digest(sent, one.encode()) for one in expected])  # noqa: C419
