"""Refusals: Zuora's error codes and messages in all their forms, and what to do next.

Sources: the error pages below
https://docs.zuora.com/en/zuora-platform/extensibility/mediation/error-message-reference-for-mediation (codes),
https://developer.zuora.com/docs/guides/error-handling/ and https://developer.zuora.com/docs/guides/rate-limits/ (HTTP).
"""

from __future__ import annotations

import json
import math
import re
from dataclasses import dataclass, field
from datetime import UTC
from email.utils import parsedate_to_datetime
from functools import cached_property
from typing import TYPE_CHECKING, Any, Final
from urllib.parse import quote_plus

from airflow_mediation_provider.protocol.zuora.errors import (
    CapacityError,
    DuplicateKeyError,
    MediationError,
    MisconfigurationError,
    NotRunningError,
    PermanentError,
    StopInProgressError,
    TransientError,
    UnknownRefusalError,
    is_final,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping

METER_UNKNOWN: Final = frozenset({"70002103", "70002104"})
NOT_ENABLED: Final = "70002004"
NO_PERMISSION: Final = "70002006"
RATE_LIMITED: Final = "70002005"

METER_PERMISSIONS: Final = "'View Meters' and 'Run Meters'"


@dataclass(frozen=True, slots=True)
class Meaning:
    """What a refusal means.

    :param kind: the class of its error
    :param advice: why it was refused, and what to do; ``{permission}`` is filled with the permission that a call needs
    :param nothing_done: of a transient one: the call was not carried out
    """

    kind: type[MediationError]
    advice: str
    nothing_done: bool = False


_TOKEN_REFUSED = Meaning(
    MisconfigurationError,
    "the token is not accepted: check the client id and secret, and that they belong to this data center",
)
_STOP_IN_PROGRESS = "70003043"
_INVALID_METER = Meaning(MisconfigurationError, "the definition of the meter is invalid: correct the meter in Zuora")
_STORE_IN_USE = "the event store is in use: wait until that is over"
# Mediation numbers its codes one after the other, so only the exact code has a meaning.
MEANING: Final[dict[str, Meaning]] = {
    "70002001": Meaning(MisconfigurationError, "the request names no entity: set the entity ID in the connection"),
    "70002002": Meaning(MisconfigurationError, "the OAuth client has no user: make a new client"),
    "70002003": Meaning(MisconfigurationError, "several entities match: set one entity ID in the connection"),
    NOT_ENABLED: Meaning(MisconfigurationError, "Mediation is not enabled in this tenant: ask Zuora to enable it"),
    RATE_LIMITED: Meaning(TransientError, "Mediation limits the rate: ask less often", nothing_done=True),
    NO_PERMISSION: Meaning(
        MisconfigurationError, "the user of the OAuth client lacks the permission: grant it {permission}"
    ),
    "70002023": Meaning(PermanentError, "a parameter is invalid: correct the one that Zuora names"),
    "70002103": Meaning(
        MisconfigurationError, "the meter does not exist in this tenant: check the meter id and data center"
    ),
    "70002104": Meaning(MisconfigurationError, "the meter has no such version: Zuora has only 0.0.1 today"),
    "70002105": Meaning(PermanentError, "the meter is active already: nothing is left to activate"),
    **dict.fromkeys(("70002106", "70002107", "70002108", "70002109"), _INVALID_METER),
    "70002122": Meaning(NotRunningError, "no run of the meter version is active"),
    _STOP_IN_PROGRESS: Meaning(
        StopInProgressError, "a stop of the meter version is under way already: wait until it is over"
    ),
    "70002647": Meaning(TransientError, _STORE_IN_USE, nothing_done=True),
    "70002648": Meaning(TransientError, _STORE_IN_USE, nothing_done=True),
    "70002651": Meaning(MisconfigurationError, "the event store does not exist: correct the meter in Zuora"),
    "70002653": Meaning(TransientError, _STORE_IN_USE, nothing_done=True),
    **dict.fromkeys(
        ("1000002", "1000003", "70000000"), Meaning(PermanentError, "a record is invalid: correct the record")
    ),
}
CAPACITY: Final = Meaning(
    CapacityError, "the tenant's limit of 5 running meters is reached: wait until one ends, or stop one"
)
DUPLICATE: Final = Meaning(
    DuplicateKeyError, "the uniqueKey was used before: that run was started, and no second one is"
)
# The codes of Zuora's platform say in their last two digits what happened:
# https://developer.zuora.com/docs/guides/error-handling/
_PLATFORM_CODE = re.compile(r"[569]\d{5}(\d\d)")
_CATEGORY: Final[dict[str, Meaning]] = {
    "10": Meaning(
        MisconfigurationError, "access is denied: the user of the OAuth client lacks the permission ({permission})"
    ),
    "11": _TOKEN_REFUSED,
    "20": Meaning(PermanentError, "a value is invalid, so it is not retried: correct the one that Zuora names"),
    "21": Meaning(PermanentError, "a field is unknown, so it is not retried: remove the one that Zuora names"),
    "22": Meaning(PermanentError, "a field is missing, so it is not retried: add the one that Zuora names"),
    "23": Meaning(PermanentError, "a field is not allowed here, so it is not retried: remove the one that Zuora names"),
    "30": Meaning(PermanentError, "a rule of Zuora forbids it, so it is not retried: follow the rule that Zuora names"),
    "40": Meaning(MisconfigurationError, "it does not exist in this tenant: check the id and the data center"),
    "45": Meaning(PermanentError, "Zuora does not support this request, so it is not retried: ask Zuora's support"),
    "50": Meaning(TransientError, "another request changes the same data: wait until that is over", nothing_done=True),
    "60": Meaning(TransientError, "Zuora has an internal fault"),
    "61": Meaning(TransientError, "Zuora has a temporary fault"),
    "70": Meaning(TransientError, "a limit of requests is reached: ask less often", nothing_done=True),
    "90": Meaning(PermanentError, "the request is malformed, so it is not retried: correct its arguments"),
}
_TOO_MANY_REQUESTS = Meaning(TransientError, "too many requests: ask less often", nothing_done=True)
_FAULT = Meaning(TransientError, "Zuora has a fault or is overloaded")


def _starting(pattern: str) -> re.Pattern[str]:
    """Compile a pattern for the start of a message: what follows may be about something else."""
    return re.compile(rf"(?:^|; )\W*(?:the )?{pattern}", re.IGNORECASE)


_METER = r"meter(?: id)?(?: [^\s:;,]+)?"
_MISSING = r"(?:does not exist|doesn't exist|(?:was |is |could |can)?not (?:be )?found)"
# Patterns of Zuora's messages, for codes that are missing or not documented.
_MESSAGES: Final = (
    (re.compile(r"maximum\s+running\s+meter", re.IGNORECASE), CAPACITY),
    (re.compile(r"\bstop\b[^.;:]*\bin progress", re.IGNORECASE), MEANING[_STOP_IN_PROGRESS]),
    (re.compile(r"mediation (?:is |has )?not (?:been )?enabled", re.IGNORECASE), MEANING[NOT_ENABLED]),
    (_starting(rf"(?:meter )?version(?: \S+)?(?: of {_METER})? {_MISSING}"), MEANING["70002104"]),
    (_starting(rf"(?:version \S+ of )?{_METER}(?: version)?(?: \S+)? is not running"), MEANING["70002122"]),
    (_starting(rf"(?:{_METER} {_MISSING}|unknown meter\b)"), MEANING["70002103"]),
)
# A meter has sessions too, and its source has tokens: so nothing but this message refuses the token of a call.
_TOKEN_MESSAGE = re.compile(
    r"\W*((your|the|api|this) )*("
    r"(session|access token|token)( id)?( is| has)?( been)? (expired|invalid|not valid)"
    r"|(invalid|expired) (session|access token|token)( id)?"
    r"|invalid_session(_id)?)\W*((please )?(log|sign) ?in( again)?\W*)?",
    re.IGNORECASE,
)
_TEMPORARY_MESSAGES: Final = (
    (re.compile(r"\brate limit(ed| exceeded| reached)|\btoo many requests\b", re.IGNORECASE), MEANING[RATE_LIMITED]),
    (
        re.compile(
            r"\btemporarily (unavailable|overloaded|busy)|\btemporary (error|failure|fault|problem|outage)"
            r"|\btry again (later|in \d)|\bretry later",
            re.IGNORECASE,
        ),
        _CATEGORY["61"],
    ),
)
_TLS_MESSAGE = re.compile(
    rb"plain HTTP request was sent to HTTPS|HTTP request to an HTTPS server|plain HTTP to an SSL-enabled", re.IGNORECASE
)
_KEY = r"\b(?:unique|idempoten\w*|run|this|same)[\s_-]*key\b"
_USED = r"(?:duplicat|already|\bexists\b|in use|been used|must be unique)"
_DUPLICATE = re.compile(rf"{_KEY}[^.:;,]{{0,80}}{_USED}|\bduplicate\w*[^.:;,]{{0,40}}\bkey", re.IGNORECASE)
_LONG_KEY: Final = 12
_MAX_WORDS = 500
_MAX_ID = 100
_SECRET: Final = 6
"""Characters of a secret that is hidden, at least; Airflow's own masker has the same limit."""
LONGEST_PAUSE: Final = 900.0
"""Seconds; a longer pause that Zuora asks for is cut to it, because it may be a mistake."""
# A larger number is no duration, but an instant: a gateway counts in seconds since 1970, or in milliseconds.
_FIRST_INSTANT: Final = 1e9
_FIRST_MILLISECONDS: Final = 1e11


@dataclass(frozen=True)
class Reply:
    """An HTTP reply.

    :param headers: by lower-case name; values of a repeated header joined by commas
    """

    status: int
    headers: Mapping[str, str] = field(default_factory=dict, repr=False)
    body: bytes = field(default=b"", repr=False)

    @cached_property
    def json(self) -> dict[str, Any] | None:
        """The body as a JSON object, parsed once; ``None`` where it is not one (an HTML page, for example).

        Numbers without a finite value are ``None``: no XCom and no database can store them.
        """
        try:
            value = json.loads(self.body, parse_float=_finite, parse_constant=_finite)
        except (ValueError, RecursionError):
            return None
        return value if isinstance(value, dict) else None


def _finite(number: str) -> float | None:
    value = float(number)
    return value if math.isfinite(value) else None


def refused(reply: Reply, body: dict[str, Any] | None) -> bool:
    """Return whether a reply is not a success; a 200 with ``success: false``, or with an error alone, is a refusal."""
    if not 200 <= reply.status < 300:
        return True
    if body is None:
        return False
    success = body.get("success", body.get("Success"))
    if success is None:
        return any(code for code, _ in _errors(body))
    return success is False or str(success).strip().lower() == "false"


def refusal(
    what: str,
    host: str,
    reply: Reply,
    *,
    changes: bool = False,
    unique_key: str | None = None,
    permission: str = METER_PERMISSIONS,
    secrets: Iterable[str] = (),
) -> MediationError:
    """Make the error for a reply that is not a success.

    :param what: the call, for the message
    :param host: where it was sent
    :param reply: the reply
    :param changes: the call changes something, so a refusal that is not known is final at once
    :param unique_key: the ``uniqueKey`` that was sent, where one was: without it no refusal is taken for a duplicate
    :param permission: Zuora's name of the permission that the call needs
    :param secrets: what was sent and must not be quoted: Zuora, or a gateway, may repeat it
    """
    body = reply.json
    hidden = _Hidden(secrets)
    code, words = read_words(body or {}, hidden)
    meaning = _meaning(reply, body or {}, words, shaped=body is not None, unique_key=unique_key)
    if meaning is None:
        meaning = _unknown(changes=changes, shaped=body is not None)
    request_id = reply.headers.get("zuora-request-id") or _text((body or {}).get("requestId"))
    details: dict[str, Any] = {
        "code": code,
        "zuora_message": words,
        "status_code": reply.status,
        "request_id": hidden(request_id)[:_MAX_ID] if request_id else None,
    }
    if issubclass(meaning.kind, TransientError):
        details["retry_after"] = retry_after(reply.headers)
        details["nothing_done"] = meaning.nothing_done
    quoted = [f"Zuora says: {words.rstrip('.')}"] if words else []
    quoted += [f"code {code}"] if code else []
    quoted += [f"HTTP {reply.status}"]
    quoted += [f"request id {details['request_id']}"] if details["request_id"] else []
    advice = hidden(meaning.advice.replace("{permission}", permission))
    return meaning.kind(f"The {what} was refused by {host}: {advice} ({', '.join(quoted)}).", **details)


def token_refused(reply: Reply, *, repeatable: bool) -> bool:
    """Return whether a reply refuses the token: it expired or was revoked, and nothing was carried out.

    :param repeatable: the call may be sent twice; of any other one a message proves too little
    """
    if reply.status == 401:
        return True
    body = reply.json
    if body is None or not refused(reply, body):
        return False
    code, message = read_words(body)
    if platform := _PLATFORM_CODE.fullmatch(code or ""):
        return platform[1] == "11"
    return repeatable and reply.status < 500 and code not in MEANING and _is_token_message(code, message)


def _is_token_message(code: str | None, message: str | None) -> bool:
    return any(_TOKEN_MESSAGE.fullmatch(text) for text in (code or "", *(message or "").split("; ")) if text)


def _meaning(
    reply: Reply, body: dict[str, Any], message: str | None, *, shaped: bool, unique_key: str | None
) -> Meaning | None:
    """Classify a refusal: by Mediation's code, the message, the platform's code, the HTTP status; ``None``: unknown.

    A fault of the server (5xx) is not final by its message: that may be about something within.
    """
    codes = [code for code, _ in [*_errors(body), (_text(body.get("code")), None)] if code]
    if by_code := _decisive([MEANING[code] for code in codes if code in MEANING]):
        return by_code
    by_message = meaning_of_message(message)
    if (
        by_message is None
        and unique_key is not None
        and reply.status != 429
        and _reports_duplicate(message, unique_key)
    ):
        by_message = DUPLICATE
    if by_message is None and any(_is_token_message(code, message) for code in codes or [""]):
        by_message = _TOKEN_REFUSED
    if by_message is not None and (reply.status < 500 or not _is_final(by_message)):
        return by_message
    categories = [found[1] for code in codes if (found := _PLATFORM_CODE.fullmatch(code))]
    if by_category := _decisive([_CATEGORY[each] for each in categories if each in _CATEGORY]):
        return by_category
    for pattern, meaning in _TEMPORARY_MESSAGES:
        if message and pattern.search(message):
            return meaning
    return _meaning_of_status(reply, codes[0] if codes else None, shaped=shaped)


def _decisive(meanings: list[Meaning]) -> Meaning | None:
    """Return the first final one, else the first: with one permanent reason the call is refused again."""
    return next(filter(_is_final, meanings), meanings[0] if meanings else None)


def _is_final(meaning: Meaning) -> bool:
    return is_final(meaning.kind(""))


def _meaning_of_status(reply: Reply, code: str | None, *, shaped: bool) -> Meaning | None:
    status = reply.status
    if status == 429:
        return _TOO_MANY_REQUESTS
    if status in (408, 425) or status >= 500:
        return _FAULT
    if 300 <= status < 400:
        to = reply.headers.get("location", "").split("?")[0][:_MAX_WORDS] or "another address"
        return Meaning(
            TransientError,
            f"it redirects to {to}, which is no REST API: check the base URL, or wait for maintenance",
        )
    if status == 401:
        return _TOKEN_REFUSED
    if status == 403 and shaped:
        return Meaning(
            MisconfigurationError,
            "access is forbidden: the user of the OAuth client lacks the permission ({permission})",
        )
    if status == 403:
        return Meaning(
            MisconfigurationError,
            "access is forbidden by something in front of Zuora's API (no JSON came back): check proxy, allow-list",
        )
    if status == 404 or (status == 405 and not code):
        advice = (
            "it is unknown in this tenant: check the id"
            if code
            else "nothing is there: check the REST base URL of the connection, and the id"
        )
        return Meaning(MisconfigurationError, advice)
    if status == 407:
        return Meaning(
            MisconfigurationError, "the proxy asks for credentials: check the proxy in the connection's extra"
        )
    if status == 400 and not shaped and _TLS_MESSAGE.search(reply.body):
        return Meaning(
            MisconfigurationError,
            "the port expects TLS, and http was used: write https:// before the host in the connection",
        )
    return None


def _unknown(*, changes: bool, shaped: bool) -> Meaning:
    reason = (
        "Zuora does not document this reason: act on Zuora's message"
        if shaped
        else "the answer is not JSON, so perhaps not Zuora's: check the REST base URL and the proxy"
    )
    return Meaning(PermanentError, f"{reason}; it is not retried") if changes else Meaning(UnknownRefusalError, reason)


def meaning_of_message(message: str | None) -> Meaning | None:
    """Return what Zuora's message means, for refusals whose code is missing or not documented."""
    return next((meaning for pattern, meaning in _MESSAGES if message and pattern.search(message)), None)


def _reports_duplicate(message: str | None, unique_key: str) -> bool:
    """Match the refusal of a used key by its message: Zuora documents neither its code nor its text.

    The key itself is replaced first, because it may match the patterns; only as a whole, because a short key is a part
    of other terms. A long one cannot be in the message by chance.
    """
    text = re.sub(_KEY, "unique key", message or "", flags=re.IGNORECASE)
    # A short key may be one of these two.
    text = text.replace("unique key", "\0")
    name = "this key" if len(unique_key) >= _LONG_KEY else " "
    text = re.sub(rf"(?<![\w-]){re.escape(unique_key)}(?![\w-])", name, text).replace("\0", "unique key")
    return _DUPLICATE.search(text) is not None


class _Hidden:
    """Replaces secrets in a text; a short one is a part of ordinary text, of which nothing would be left."""

    def __init__(self, secrets: Iterable[str] = ()) -> None:
        self._secrets = [form for secret in secrets if len(secret) >= _SECRET for form in (secret, quote_plus(secret))]

    def __call__(self, text: str) -> str:
        for secret in self._secrets:
            text = text.replace(secret, "***")
        return text


_NOTHING_HIDDEN: Final = _Hidden()


def read_words(body: dict[str, Any], hidden: Callable[[str], str] = _NOTHING_HIDDEN) -> tuple[str | None, str | None]:
    """Return Zuora's code and message from any of its forms of an error.

    They are ``error {code, message, detail}``, ``errors [...]``, ``reasons [...]``, ``message``, and OAuth's ``error``
    with ``error_description``.

    :param hidden: replaces what must not be quoted
    """
    found = list(_errors(body))
    found.append((_text(body.get("code")), _text(body.get("message"))))
    found.append((None, _text(body.get("error_description"))))
    code = next((hidden(code)[:_MAX_ID] for code, _ in found if code), None)
    words = hidden("; ".join(dict.fromkeys(words for _, words in found if words)))
    return code, words[:_MAX_WORDS] or None


def _errors(body: dict[str, Any]) -> Iterator[tuple[str | None, str | None]]:
    """Yield code and message of each error in a body."""
    for name in ("error", "errors", "reasons", "Errors"):
        value = body.get(name)
        for item in value if isinstance(value, list) else [value]:
            if isinstance(item, dict):
                message, detail = _text(item.get("message") or item.get("Message")), _text(item.get("detail"))
                words = f"{message}: {detail}" if message and detail and detail not in message else message or detail
                yield _text(item.get("code") or item.get("Code")), words
            elif item:
                yield None, _text(item)


def _text(value: object) -> str | None:
    text = "" if value is None or isinstance(value, (dict, list, bool)) else " ".join(str(value).split())
    return None if text in ("", "null") else text


def retry_after(headers: Mapping[str, str]) -> float | None:
    """Return the seconds that Zuora asked to wait, at most ``LONGEST_PAUSE``: by its headers."""
    asked = (seconds_in(headers, name) for name in ("retry-after", "ratelimit-reset"))
    return next((min(seconds, LONGEST_PAUSE) for seconds in asked if seconds is not None), None)


def seconds_in(headers: Mapping[str, str], name: str) -> float | None:
    """Return the seconds from a reply on that one of its headers gives, at least 0; ``None``: it gives none.

    A value can be a list (``12, 40;w=60``): the first number counts. An instant, which is a date or a number of seconds
    or milliseconds since 1970, is compared with the reply's own ``Date``, so no clock is needed.

    :param headers: of the reply, by lower-case name
    :param name: of the header, in lower case
    """
    value = headers.get(name, "")
    number = first_number(value)
    if number is not None and number < _FIRST_INSTANT:
        return number
    try:
        unit = 1 if number is None or number < _FIRST_MILLISECONDS else 1000
        instant = _timestamp(value) if number is None else number / unit
        return max(0.0, instant - _timestamp(headers.get("date", "")))
    except (TypeError, ValueError, OverflowError):
        return None


def _timestamp(date: str) -> float:
    at = parsedate_to_datetime(date)
    return (at if at.tzinfo else at.replace(tzinfo=UTC)).timestamp()


def first_number(value: str) -> float | None:
    """Return the number in a header, or the first one of a list (``12, 40;w=60``); ``None``: there is none."""
    number = re.match(r"\s*(\d+(\.\d+)?)\s*(?=[,;]|$)", value)
    return float(number.group(1)) if number else None
