"""Prove that a callout comes from who knows the connection's secrets. Short, because it has to be read by many.

Every check that is configured must pass. All are made, whatever the first one says, and secrets are compared in
constant time; the current and the previous secret count alike.

Source: https://docs.zuora.com/en/zuora-platform/extensibility/events-and-notifications/callout-templates/callout-template-overview
"""

from __future__ import annotations

import base64
import hmac
from typing import TYPE_CHECKING, Final

from airflow_mediation_provider.protocol.callout_settings import ALGORITHMS, SignedBody, SignedHeader

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from airflow_mediation_provider.protocol.callout_settings import Basic, CalloutSettings, Hmac, Token

Headers = dict[str, str]


class Refused(Exception):  # noqa: N818
    """A callout is not accepted.

    :param reason: for the server's log; holds no secret, and nothing that the sender wrote
    :param challenge: whether to ask for Basic credentials: Zuora's first request, unless preemptive, has none
    :param unasked: whether all that is missing is Basic credentials that were not asked for yet: nothing to warn of
    """

    status: Final = 401

    def __init__(self, reason: str, *, challenge: bool, unasked: bool = False) -> None:
        super().__init__(reason)
        self.reason = reason
        self.challenge = challenge
        self.unasked = unasked


def authenticate(settings: CalloutSettings, headers: Mapping[str, str], body: bytes) -> None:
    """Return only if the callout is proven.

    :param headers: of the request, names in any case
    :param body: exactly as received
    :raises Refused: it is not, or the connection has nothing to prove it by
    """
    if not settings.enabled:
        raise Refused("the connection has no callout authentication", challenge=False)
    sent = {name.lower(): value for name, value in headers.items()}
    faults = []
    if settings.hmac is not None:
        faults.append(_check_hmac(settings.hmac, sent, body))
    if settings.token is not None:
        faults.append(_check_token(settings.token, sent))
    unasked = not any(faults)
    if settings.basic is not None:
        faults.append(_check_basic(settings.basic, sent))
    if any(faults):
        raise Refused(
            "; ".join(filter(None, faults)),
            challenge=settings.basic is not None,
            unasked=unasked and "authorization" not in sent,
        )


def sign(settings: Hmac, headers: Mapping[str, str], body: bytes, secret: str) -> str:
    """Return what the signature's header must hold, prefix included.

    :param headers: of the request, names in lower case; those that are signed must be there
    :raises KeyError: a header that is signed is missing
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
    return settings.prefix + (digest.hex() if settings.encoding == "HEX" else base64.b64encode(digest).decode())


def _check_hmac(settings: Hmac, sent: Headers, body: bytes) -> str:
    given = sent.get(settings.header.lower())
    if given is None:
        return f"no signature in the header {settings.header}"
    try:
        expected = [sign(settings, sent, body, secret) for secret in settings.secrets]
    except KeyError as missing:
        return f"the header {missing}, which is signed, is missing"
    given = given.strip()
    if settings.encoding == "HEX":  # Zuora documents no case
        given, expected = given.lower(), [text.lower() for text in expected]
    return "" if _is_one_of(given, expected) else f"the signature in the header {settings.header} is wrong"


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
    """Compare with every one, and each in constant time."""
    sent = given.encode("utf-8", "replace")
    return any([hmac.compare_digest(sent, one.encode()) for one in expected])  # noqa: C419
