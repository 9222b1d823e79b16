"""What a reply says that is not a success: Zuora's codes, its words in all their shapes, and what to do next.

Sources: the error pages below
https://docs.zuora.com/en/zuora-platform/extensibility/mediation/error-message-reference-for-mediation (codes),
https://developer.zuora.com/docs/guides/error-handling/ and https://developer.zuora.com/docs/guides/rate-limits/ (HTTP).
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass, field
from email.utils import parsedate_to_datetime
from typing import TYPE_CHECKING, Any, Final

from airflow_mediation_provider.protocol.errors import (
    CapacityError,
    DuplicateKeyError,
    MediationError,
    MisconfigurationError,
    NotRunningError,
    PermanentError,
    StopInProgressError,
    TransientError,
)

if TYPE_CHECKING:
    from collections.abc import Mapping

METER_UNKNOWN: Final = frozenset({"70002103", "70002104"})
NOT_ENABLED: Final = "70002004"
NO_PERMISSION: Final = "70002006"
RATE_LIMITED: Final = "70002005"

METER_PERMISSIONS: Final = "'View Meters' and 'Run Meters'"
# Zuora's code -> the class of the error and one sentence with what to do.
MEANING: Final[dict[str, tuple[type[MediationError], str]]] = {
    "70002001": (MisconfigurationError, "Zuora misses the entity: set the entity ID in the connection"),
    "70002002": (MisconfigurationError, "Zuora misses the user: the OAuth client belongs to no user, make a new one"),
    "70002003": (MisconfigurationError, "several entities match: set one entity ID in the connection"),
    NOT_ENABLED: (MisconfigurationError, "Mediation is not enabled in this tenant: ask Zuora to enable it"),
    RATE_LIMITED: (TransientError, "Mediation limits the rate: ask less often"),
    NO_PERMISSION: (
        MisconfigurationError,
        "the user of the OAuth client lacks the permission: grant it {permission}",
    ),
    "70002103": (MisconfigurationError, "the meter does not exist in this tenant: check the meter id and data center"),
    "70002104": (MisconfigurationError, "the meter has no such version: Zuora has only 0.0.1 today"),
    "70002122": (NotRunningError, "no run of the meter version is active"),
    "70003043": (StopInProgressError, "a stop of the meter version is under way already: wait until it is over"),
}
CAPACITY: Final = (
    CapacityError,
    "as many meters run as the tenant may run at a time (5): wait until one ends or stop one",
)
DUPLICATE: Final = (DuplicateKeyError, "the uniqueKey was used before: that run was started, and no second one is")

_CAPACITY_WORDS = re.compile(r"maximum\s+running\s+meter", re.IGNORECASE)
# For refusals that come without a code: words -> the code that says the same.
_CODE_BY_WORDS: Final = (
    (re.compile(r"mediation\b.*\bnot (been )?enabled", re.IGNORECASE), NOT_ENABLED),
    (re.compile(r"\bstop\b.*\b(already )?in progress", re.IGNORECASE), "70003043"),
    (re.compile(r"\bmeter\b.*\bnot running", re.IGNORECASE), "70002122"),
    (re.compile(r"\bmeter\b.*\bversion\b.*\b(not exist|not found|unknown)", re.IGNORECASE), "70002104"),
    (re.compile(r"\bmeter\b.*\b(not exist|not found|unknown)", re.IGNORECASE), "70002103"),
)
_KEY_WORDS = re.compile(r"(unique|idempoten\w*)[\s_-]*key", re.IGNORECASE)
_DUPLICATE_WORDS = re.compile(r"duplicat|already|\bexist(s|ing)\b|in use|been used|must be unique", re.IGNORECASE)
_MAX_WORDS = 500


@dataclass(frozen=True, slots=True)
class Reply:
    """An HTTP reply.

    :param headers: by lower-case name; values of a repeated header joined by commas
    """

    status: int
    headers: Mapping[str, str] = field(default_factory=dict, repr=False)
    body: bytes = field(default=b"", repr=False)

    @property
    def json(self) -> dict[str, Any] | None:
        """The body as a JSON object, or ``None`` where it is something else: an HTML page, say."""
        try:
            value = json.loads(self.body)
        except ValueError:
            return None
        return value if isinstance(value, dict) else None


def refused(reply: Reply, body: dict[str, Any] | None) -> bool:
    """Say whether a reply is anything but a success; a 200 with ``success: false`` is not one."""
    return not 200 <= reply.status < 300 or (body is not None and body.get("success") is False)


def refusal(
    what: str, host: str, reply: Reply, *, unique_key: str | None = None, permission: str = METER_PERMISSIONS
) -> MediationError:
    """Make the error out of a reply that is not a success.

    :param what: the call in words
    :param host: where it was sent
    :param unique_key: the ``uniqueKey`` that was sent, where one was: only then a duplicate is one
    :param permission: what the user must be allowed to do for this call
    """
    body = reply.json
    code, words = read_words(body or {})
    kind, sentence = _meaning(reply, code, words, shaped=body is not None, unique_key=unique_key)
    sentence = sentence.replace("{permission}", permission)
    details: dict[str, Any] = {
        "code": code,
        "zuora_message": words,
        "status_code": reply.status,
        "request_id": reply.headers.get("zuora-request-id") or _text((body or {}).get("requestId")),
    }
    if issubclass(kind, TransientError):
        details["retry_after"] = retry_after(reply.headers)
    quoted = [f"Zuora says: {words.rstrip('.')}"] if words else []
    quoted += [f"code {code}"] if code else []
    quoted += [f"HTTP {reply.status}"]
    quoted += [f"request id {details['request_id']}"] if details["request_id"] else []
    return kind(f"The {what} was refused by {host}: {sentence} ({', '.join(quoted)}).", **details)


def _meaning(
    reply: Reply, code: str | None, words: str | None, *, shaped: bool, unique_key: str | None
) -> tuple[type[MediationError], str]:
    """Classify a refusal. Zuora's own code or words outweigh the HTTP status, which is not documented for all."""
    status = reply.status
    if code in MEANING:
        return MEANING[code]
    if words and _CAPACITY_WORDS.search(words):
        return CAPACITY
    if unique_key is not None and status != 429 and status < 500 and _speaks_of_duplicate(words, unique_key):
        return DUPLICATE
    if code is None and (implied := code_by_words(words)):
        return MEANING[implied]
    if status == 429:
        return TransientError, "too many requests"
    if status in (408, 425) or status >= 500:
        return TransientError, "Zuora has a fault or is overloaded"
    if 300 <= status < 400:
        to = reply.headers.get("location", "").split("?")[0] or "another address"
        return (
            TransientError,
            f"it redirects to {to}, which is no REST API: check the base URL, or wait for maintenance",
        )
    if status == 401:
        return (
            MisconfigurationError,
            "the token is not accepted: check the client id and secret, and that they belong to this data center",
        )
    if status == 403:
        sentence = (
            "access is forbidden: the user of the OAuth client lacks the permission ({permission})"
            if shaped
            else "access is forbidden by something in front of Zuora's API (no JSON came back): check proxy, allow-list"
        )
        return MisconfigurationError, sentence
    if status == 404 or (status == 405 and not code):
        sentence = (
            "it is unknown in this tenant: check the id"
            if code
            else "nothing is there: check the REST base URL of the connection, and the id"
        )
        return MisconfigurationError, sentence
    if status == 407:
        return MisconfigurationError, "the proxy asks for credentials: check the proxy in the connection's extra"
    return PermanentError, "the same request will be refused again"


def code_by_words(words: str | None) -> str | None:
    """Return the code that Zuora's words speak of, for the shapes of a refusal that have none."""
    return next((code for pattern, code in _CODE_BY_WORDS if words and pattern.search(words)), None)


def _speaks_of_duplicate(words: str | None, unique_key: str) -> bool:
    """Match the refusal of a used key by its words: Zuora documents neither its code nor its text.

    The key itself is taken out first, for it may hold the very words.
    """
    text = (words or "").replace(unique_key, "")
    if _KEY_WORDS.search(text):
        return _DUPLICATE_WORDS.search(text) is not None
    return re.search(r"duplicate\w*\s+(\w+\s+)?key", text, re.IGNORECASE) is not None


def read_words(body: dict[str, Any]) -> tuple[str | None, str | None]:
    """Return Zuora's code and message, in whichever of its shapes they come.

    ``error {code, message, detail}``, ``errors [...]``, ``reasons [...]``, ``message``, and OAuth's ``error`` with
    ``error_description``.
    """
    found: list[tuple[str | None, str | None]] = []
    for name in ("error", "errors", "reasons", "Errors"):
        value = body.get(name)
        for item in value if isinstance(value, list) else [value]:
            if isinstance(item, dict):
                message, detail = _text(item.get("message") or item.get("Message")), _text(item.get("detail"))
                words = f"{message}: {detail}" if message and detail and detail not in message else message or detail
                found.append((_text(item.get("code") or item.get("Code")), words))
            elif item:
                found.append((None, _text(item)))
    found.append((_text(body.get("code")), _text(body.get("message"))))
    found.append((None, _text(body.get("error_description"))))
    code = next((code for code, _ in found if code), None)
    words = "; ".join(dict.fromkeys(words for _, words in found if words))
    return code, words[:_MAX_WORDS] or None


def _text(value: object) -> str | None:
    text = "" if value is None or isinstance(value, (dict, list, bool)) else " ".join(str(value).split())
    return None if text in ("", "null") else text


def retry_after(headers: Mapping[str, str]) -> float | None:
    """Return how many seconds Zuora asked to wait: ``Retry-After``, else ``RateLimit-Reset``.

    Values can be lists (``12, 40;w=60``): the first number counts. A date in ``Retry-After`` is read against the
    reply's own ``Date``, so no clock is needed.
    """
    for name in ("retry-after", "ratelimit-reset"):
        value = headers.get(name, "")
        number = first_number(value)
        if number is not None:
            return number
        if value:
            try:
                wait = parsedate_to_datetime(value) - parsedate_to_datetime(headers.get("date", ""))
                return max(0.0, wait.total_seconds())
            except (TypeError, ValueError):
                continue
    return None


def first_number(value: str) -> float | None:
    """Return the number that a header is, or begins with where it is a list (``12, 40;w=60``); ``None``: neither."""
    number = re.match(r"\s*(\d+(\.\d+)?)\s*(?=[,;]|$)", value)
    return float(number.group(1)) if number else None
