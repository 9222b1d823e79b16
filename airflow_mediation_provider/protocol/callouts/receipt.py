"""What the receiver keeps of each callout: its answer, and the request without secrets and cut to a fixed size.

Anything may stand in a request: a gateway's key, yesterday's secret, a password in the wrong header. So only headers
that are known to be harmless are kept with their values, and of all others the names. A receipt has at most 6,000
characters of a request.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import StrEnum
from typing import TYPE_CHECKING, Any, Final

from airflow_mediation_provider.protocol.callouts.fields import documented_field
from airflow_mediation_provider.protocol.callouts.parse import NOTIFICATION_HEADER, bounded_id, storable
from airflow_mediation_provider.protocol.callouts.settings import (
    DEFAULT_HMAC_HEADER,
    DEFAULT_TOKEN_HEADER,
    SECRET_FIELDS,
)

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping, Sequence
    from datetime import datetime

NO_CONNECTION: Final = ""
"""In place of the id of a connection that does not exist, or may not: invented ids are not kept."""
ACCEPTED: Final = 200
MASK: Final = "***"
LONGEST_BODY: Final = 2000
"""Characters of the body of a refused callout."""
_LONGEST_VALUE: Final = 200
_LONGEST_REASON: Final = 500
_MOST_FIELDS: Final = 40
_MOST_CHARACTERS: Final = 2000
_LEFT_OUT: Final = "..."
# Of HTTP, of proxies, and Zuora's own. A connection's settings may still make a secret of one.
_HARMLESS: Final = frozenset(
    {
        "accept",
        "accept-encoding",
        "accept-language",
        "cache-control",
        "connection",
        "content-encoding",
        "content-length",
        "content-type",
        "date",
        "forwarded",
        "host",
        "transfer-encoding",
        "user-agent",
        "via",
        "x-forwarded-for",
        "x-forwarded-host",
        "x-forwarded-port",
        "x-forwarded-proto",
        "x-real-ip",
        "x-request-id",
        NOTIFICATION_HEADER.lower(),
        "zuora-request-id",
        "zuora-track-id",
    }
)
_SCHEMES: Final = frozenset({"basic", "bearer", "digest"})


class Proof(StrEnum):
    """The verdict on a callout's signature, credentials and token: all that are configured, or not checked at all."""

    PROVEN = "proven"
    REFUSED = "refused"
    UNCHECKED = "unchecked"


@dataclass(frozen=True, slots=True, kw_only=True)
class Receipt:
    """One callout as it was received, and its answer; without secrets.

    :param conn_id: the connection, by its own id; ``NO_CONNECTION``: it is only counted
    :param received_at: when its head was received
    :param status: of the answer
    :param milliseconds: from its arrival to the answer
    :param method: of the request
    :param proof: the verdict on its proof
    :param reason: why it was refused, as in the server's log; empty if it was not
    :param notification_id: Zuora's id of the notification, the same in each attempt
    :param transition_id: the journal's row that it added; ``None``: it was refused, or is a repeated one
    :param headers: of the request, by their names in lower case; secrets are masked
    :param query: of its address if it was refused; all but the documented fields of an event are masked
    :param body_size: its bytes, as received or as announced; ``None``: neither is known
    :param body: how the body begins if the callout was refused: it may hold customers' data
    """

    conn_id: str
    received_at: datetime
    status: int
    milliseconds: int = 0
    method: str = "POST"
    proof: Proof = Proof.UNCHECKED
    reason: str = ""
    notification_id: str | None = None
    transition_id: int | None = None
    headers: Mapping[str, str] = field(default_factory=dict)
    query: Mapping[str, str] = field(default_factory=dict)
    body_size: int | None = None
    body: str | None = None

    @property
    def accepted(self) -> bool:
        """Whether it was answered 200."""
        return self.status == ACCEPTED


def receipt(
    conn_id: str,
    received_at: datetime,
    status: int,
    *,
    extra: Mapping[str, Any],
    method: str,
    headers: Iterable[tuple[str, str]],
    query: Iterable[tuple[str, str]],
    body: bytes | None,
    milliseconds: int = 0,
    proof: Proof = Proof.UNCHECKED,
    reason: str = "",
    transition_id: int | None = None,
) -> Receipt:
    """Return the receipt of a callout to a connection that exists: masked, cut, and such that every database stores it.

    :param extra: of the connection, with its secrets and the headers that carry them; its settings may be wrong
    :param headers: of the request; of two with the same name the first one counts, as for the proof
    :param query: the parameters of its address
    :param body: as received; ``None``: it was not received
    """
    sent = {name.lower(): value for name, value in reversed(list(headers))}
    # The longest first: one may be the beginning of another.
    secrets = sorted((str(extra[name]).strip() for name in SECRET_FIELDS if extra.get(name)), key=len, reverse=True)
    accepted = status == ACCEPTED
    announced = sent.get("content-length", "")
    text = "" if body is None else body.decode("utf-8", "replace")
    return Receipt(
        conn_id=conn_id,
        received_at=received_at,
        status=status,
        milliseconds=milliseconds,
        method=_cut(method, 16),
        proof=proof,
        reason=_cut(reason, _LONGEST_REASON),
        notification_id=bounded_id(sent.get(NOTIFICATION_HEADER.lower())),
        transition_id=transition_id,
        headers=_bounded(_masked_headers(sent, extra, secrets)),
        query={} if accepted else _bounded(_masked_query(query, secrets)),
        body_size=len(body) if body is not None else int(announced) if _is_size(announced) else None,
        body=None if accepted or body is None else _cut(_without(secrets, text), LONGEST_BODY),
    )


def _masked_headers(
    sent: dict[str, str], extra: Mapping[str, Any], secrets: Sequence[str]
) -> Iterator[tuple[str, str]]:
    signature = _name(extra.get("callout_hmac_header") or DEFAULT_HMAC_HEADER)
    token = _name(extra.get("callout_token_header") or DEFAULT_TOKEN_HEADER)
    # In the order of the request: ``sent`` was made from its end.
    for name in reversed(sent):
        value = sent[name]
        if name == signature:
            # The length distinguishes BASE64 from HEX, and is no secret.
            yield name, f"{MASK} ({len(value)} characters)"
        elif name == "authorization":
            scheme = value.strip().partition(" ")[0]
            yield name, f"{scheme} {MASK}" if scheme.lower() in _SCHEMES else MASK
        else:
            shown = name in _HARMLESS and name != token
            yield name, _without(secrets, value) if shown else MASK


def _masked_query(query: Iterable[tuple[str, str]], secrets: Sequence[str]) -> Iterator[tuple[str, str]]:
    for name, value in query:
        yield name, _without(secrets, value) if documented_field(name) else MASK


def _bounded(fields: Iterable[tuple[str, str]]) -> dict[str, str]:
    """Return the first of some fields, each cut, and how many were left out."""
    kept: dict[str, str] = {}
    left_out = characters = 0
    for name, value in fields:
        short, text = _cut(name, _LONGEST_VALUE), _cut(value, _LONGEST_VALUE)
        characters += len(short) + len(text)
        if len(kept) < _MOST_FIELDS and characters <= _MOST_CHARACTERS:
            kept[short] = text
        else:
            left_out += 1
    return {**kept, _LEFT_OUT: f"{left_out} more"} if left_out else kept


def _without(secrets: Sequence[str], text: str) -> str:
    for secret in secrets:
        text = text.replace(secret, MASK)
    return text


def _cut(text: str, length: int) -> str:
    stored: str = storable(text)
    return stored if len(stored) <= length else stored[: length - len(_LEFT_OUT)] + _LEFT_OUT


def _name(header: object) -> str:
    return str(header).strip().lower()


def _is_size(text: str) -> bool:
    return text.isascii() and text.isdecimal() and len(text) <= 9
