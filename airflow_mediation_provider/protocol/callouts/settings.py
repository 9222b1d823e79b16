"""How the callouts of a connection are authenticated and parsed: the ``callout_*`` fields of its extra, checked.

All configured methods are required: Zuora can combine HMAC, Basic authentication and a custom header. Takes the extra
alone, because the API server and the workers have connections of different types.

Source: https://docs.zuora.com/en/zuora-platform/extensibility/events-and-notifications/callout-templates/callout-template-overview
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final

import pendulum

from airflow_mediation_provider.protocol.zuora.errors import MisconfigurationError

if TYPE_CHECKING:
    from collections.abc import Mapping
    from datetime import datetime

ALGORITHMS: Final = {"SHA-256": "sha256", "SHA-384": "sha384", "SHA-512": "sha512"}
ENCODINGS: Final = ("BASE64", "HEX")
DEFAULT_HMAC_HEADER: Final = "X-Mediation-Signature"
DEFAULT_TOKEN_HEADER: Final = "X-Mediation-Token"  # noqa: S105
BODY: Final = "{{Request.Body}}"
# Each field on the left needs the one on the right: the details of a method need its secret.
_NEEDS: Final = {
    "callout_hmac_previous_secret": "callout_hmac_secret",
    "callout_hmac_header": "callout_hmac_secret",
    "callout_hmac_algorithm": "callout_hmac_secret",
    "callout_hmac_encoding": "callout_hmac_secret",
    "callout_hmac_prefix": "callout_hmac_secret",
    "callout_hmac_suffix": "callout_hmac_secret",
    "callout_hmac_message": "callout_hmac_secret",
    "callout_username": "callout_password",
    "callout_password": "callout_username",
    "callout_previous_password": "callout_password",
    "callout_previous_token": "callout_token",
    "callout_token_header": "callout_token",
}
SECRET_FIELDS: Final = frozenset(
    {
        "callout_hmac_secret",
        "callout_hmac_previous_secret",
        "callout_password",
        "callout_previous_password",
        "callout_token",
        "callout_previous_token",
    }
)
CALLOUT_EXTRA: Final = (
    frozenset(_NEEDS)
    | SECRET_FIELDS
    | {
        "callout_date_format",
        "callout_event_category",
        "callout_timezone",
    }
)

SHORTEST_SECRET: Final = 16
"""Characters of a secret, at least, that cannot be found by trying."""
# They have a meaning of their own, which no token or signature can have.
_HEADERS_OF_HTTP: Final = frozenset(
    {
        "accept",
        "accept-encoding",
        "connection",
        "content-length",
        "content-type",
        "date",
        "host",
        "transfer-encoding",
        "user-agent",
    }
)
# Leading and trailing spaces are part of the text that is signed and sent.
_VERBATIM: Final = frozenset({"callout_hmac_prefix", "callout_hmac_suffix", "callout_hmac_message"})
_HEADER_NAME: Final = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]+")
_MERGE_FIELD: Final = re.compile(r"(\{\{.*?\}\})", re.DOTALL)
_REQUEST_FIELD: Final = re.compile(r"\{\{\s*Request\.(?:(Body)|Headers\.(.+?))\s*\}\}")
# Pendulum takes the parts that a format lacks from today's date. These years are past, and no day of the year is near
# both dates, so such a part is detected. Both months have 31 days, so that today's day is valid in them.
_SAMPLES: Final = (pendulum.datetime(2001, 3, 31, 21, 17, 59), pendulum.datetime(2001, 12, 8, 21, 17, 59))


@dataclass(frozen=True, slots=True)
class SignedHeader:
    """A header of the request as a part of the signed message."""

    name: str


@dataclass(frozen=True, slots=True)
class SignedBody:
    """The body of the request as a part of the signed message."""


MessagePart = str | SignedHeader | SignedBody


@dataclass(frozen=True, slots=True, kw_only=True)
class Hmac:
    """How callouts are signed.

    :param secrets: the current one, and the previous one during a rotation
    :param header: the header that holds the signature
    :param algorithm: Zuora's name of the hash: SHA-256, SHA-384, SHA-512
    :param encoding: BASE64 or HEX
    :param prefix: text before the signature in its header
    :param suffix: text after it
    :param message: the signed message, in Zuora's notation
    :param parts: the same, parsed
    """

    secrets: tuple[str, ...] = field(repr=False)
    header: str = DEFAULT_HMAC_HEADER
    algorithm: str = "SHA-256"
    encoding: str = "BASE64"
    prefix: str = ""
    suffix: str = ""
    message: str = BODY
    parts: tuple[MessagePart, ...] = (SignedBody(),)


@dataclass(frozen=True, slots=True, kw_only=True)
class Basic:
    """Basic authentication of callouts; the passwords are the current one, and the previous one during a rotation."""

    username: str
    passwords: tuple[str, ...] = field(repr=False)


@dataclass(frozen=True, slots=True, kw_only=True)
class Token:
    """A header with a shared token; the tokens are the current one, and the previous one during a rotation."""

    header: str
    tokens: tuple[str, ...] = field(repr=False)


@dataclass(frozen=True, slots=True, kw_only=True)
class CalloutSettings:
    """How one connection's callouts are authenticated and parsed.

    :param conn_id: the connection
    :param hmac: the required signature; ``None``: none is required
    :param basic: the required user and password; ``None``: none are required
    :param token: the required header with a shared token; ``None``: none is required
    :param date_format: how the tenant writes times, in pendulum's tokens; ``None``: only unambiguous formats
    :param timezone: the zone of times that have none
    :param timezone_set: whether the user chose it: UTC is also its default
    :param event_category: the event category of the notification, to read only its records of the callout history
    """

    conn_id: str
    hmac: Hmac | None = None
    basic: Basic | None = None
    token: Token | None = None
    date_format: str | None = None
    timezone: str = "UTC"
    timezone_set: bool = False
    event_category: str | None = None

    @property
    def enabled(self) -> bool:
        """Whether callouts can be authenticated; if not, none is accepted."""
        return bool(self.hmac or self.basic or self.token)

    @property
    def chosen_timezone(self) -> str | None:
        """The zone that the user chose for times that have none."""
        return self.timezone if self.timezone_set else None


def callout_settings(conn_id: str, extra: Mapping[str, Any]) -> CalloutSettings:
    """Check the ``callout_*`` fields of a connection's extra.

    :param conn_id: the connection
    :param extra: the whole extra; fields that are empty count as missing
    :raises MisconfigurationError: the message names the connection, the field and its allowed values
    """
    given = {name: _text(conn_id, name, extra.get(name)) for name in CALLOUT_EXTRA}
    for name, needed in _NEEDS.items():
        if given[name] is not None and given[needed] is None:
            raise _wrong(conn_id, f"{name} is set, but {needed} is not: the one needs the other")
    return CalloutSettings(
        conn_id=conn_id,
        hmac=_hmac(conn_id, given),
        basic=_basic(conn_id, given),
        token=_token(conn_id, given),
        date_format=_date_format(conn_id, given["callout_date_format"]),
        timezone=_timezone(conn_id, given["callout_timezone"]),
        timezone_set=given["callout_timezone"] is not None,
        event_category=given["callout_event_category"],
    )


def secret_cautions(extra: Mapping[str, Any]) -> tuple[str, ...]:
    """Return what is not wrong about the secrets, but weak: a clause for each field, without its value.

    :param extra: the connection's whole extra
    """
    given = {name: "" if extra.get(name) is None else str(extra[name]) for name in sorted(SECRET_FIELDS)}
    short = [
        f"{name} has fewer than {SHORTEST_SECRET} characters: choose a longer one here and in Zuora"
        for name, secret in given.items()
        if 0 < len(secret) < SHORTEST_SECRET
    ]
    previous = [
        f"{name} is still accepted: remove it once Zuora signs with the new one"
        for name, secret in given.items()
        if "previous" in name and secret
    ]
    message = str(extra.get("callout_hmac_message") or "")
    joined = ["callout_hmac_message signs two parts without a text between them: write a line break between"]
    return (*short, *previous, *(joined if "}}{{" in message else ()))


def _wrong(conn_id: str, what: str) -> MisconfigurationError:
    return MisconfigurationError(f"Connection {conn_id!r}: {what}.")


def _text(conn_id: str, name: str, value: object) -> str | None:
    if isinstance(value, (dict, list, bool)):
        raise _wrong(conn_id, f"{name} must be text")
    text = "" if value is None else str(value)
    if text.strip() == "***":
        raise _wrong(conn_id, f"{name} is '***', which Airflow shows in place of a secret, not the value itself")
    if name in SECRET_FIELDS:
        if not (text.isascii() and text.isprintable()) or text != text.strip():
            raise _wrong(
                conn_id,
                f"{name} must be one line of plain ASCII (how Zuora encodes other characters is not documented), "
                "without spaces around it",
            )
    elif name not in _VERBATIM:
        text = text.strip()
    return text if text.strip() else None


def _hmac(conn_id: str, given: Mapping[str, str | None]) -> Hmac | None:
    secret = given["callout_hmac_secret"]
    if secret is None:
        return None
    name = given["callout_hmac_algorithm"] or "SHA-256"
    algorithm = re.sub(r"^(HMAC)?[-_]?SHA[-_]?", "SHA-", name.upper())
    if algorithm not in ALGORITHMS:
        known = algorithm in ("MD5", "SHA-1", "SHA-224")
        verdict = "is too weak to prove a callout by" if known else "is not known"
        raise _wrong(conn_id, f"callout_hmac_algorithm {name} {verdict}: choose one of {', '.join(ALGORITHMS)}")
    encoding = (given["callout_hmac_encoding"] or "BASE64").upper()
    if encoding not in ENCODINGS:
        raise _wrong(conn_id, f"callout_hmac_encoding must be one of {', '.join(ENCODINGS)}, not {encoding}")
    message = given["callout_hmac_message"] or BODY
    return Hmac(
        secrets=_pair(secret, given["callout_hmac_previous_secret"]),
        header=_own_header(conn_id, "callout_hmac_header", given["callout_hmac_header"] or DEFAULT_HMAC_HEADER),
        algorithm=algorithm,
        encoding=encoding,
        prefix=given["callout_hmac_prefix"] or "",
        suffix=given["callout_hmac_suffix"] or "",
        message=message,
        parts=_message_parts(conn_id, message),
    )


def _message_parts(conn_id: str, message: str) -> tuple[MessagePart, ...]:
    """Parse Zuora's ``hmacData``.

    https://docs.zuora.com/en/zuora-platform/extensibility/events-and-notifications/callout-templates/callout-template-overview
    """
    parts: list[MessagePart] = []
    for piece in filter(None, _MERGE_FIELD.split(message)):
        if not piece.startswith("{{"):
            parts.append(piece)
        elif not (found := _REQUEST_FIELD.fullmatch(piece)):
            allowed = f"{BODY} and {{{{Request.Headers.<name>}}}}"
            message = f"callout_hmac_message holds {piece}, whose value only Zuora has; allowed are {allowed}"
            raise _wrong(conn_id, message)
        elif found[1]:
            parts.append(SignedBody())
        else:
            parts.append(SignedHeader(_header_name(conn_id, "callout_hmac_message", found[2])))
    if SignedBody() not in parts:
        raise _wrong(conn_id, f"callout_hmac_message must hold {BODY}: otherwise the body is not protected")
    return tuple(parts)


def _basic(conn_id: str, given: Mapping[str, str | None]) -> Basic | None:
    username, password = given["callout_username"], given["callout_password"]
    if username is None or password is None:
        return None
    if ":" in username or not (username.isascii() and username.isprintable()):
        raise _wrong(conn_id, "callout_username must be plain ASCII without a colon")
    return Basic(username=username, passwords=_pair(password, given["callout_previous_password"]))


def _token(conn_id: str, given: Mapping[str, str | None]) -> Token | None:
    token = given["callout_token"]
    if token is None:
        return None
    header = _own_header(conn_id, "callout_token_header", given["callout_token_header"] or DEFAULT_TOKEN_HEADER)
    return Token(header=header, tokens=_pair(token, given["callout_previous_token"]))


def _pair(current: str, previous: str | None) -> tuple[str, ...]:
    return (current,) if previous is None else (current, previous)


def _header_name(conn_id: str, field_name: str, name: str) -> str:
    if not _HEADER_NAME.fullmatch(name):
        raise _wrong(conn_id, f"{field_name} names the header {name!r}, which HTTP does not allow")
    return name


def _own_header(conn_id: str, field_name: str, name: str) -> str:
    if name.lower() in _HEADERS_OF_HTTP:
        raise _wrong(conn_id, f"{field_name} names the header {name!r}, which HTTP itself uses: choose another one")
    return _header_name(conn_id, field_name, name)


def _timezone(conn_id: str, name: str | None) -> str:
    try:
        return pendulum.timezone(name or "UTC").name
    except (ValueError, OSError):
        raise _wrong(conn_id, f"callout_timezone must be a zone like Europe/Berlin or UTC, not {name!r}") from None


def _date_format(conn_id: str, text: str | None) -> str | None:
    """Check a format by parsing a time that it wrote: Java's ``dd.MM.yyyy``, for example, would never parse one."""
    if text is None:
        return None
    example = "MM/DD/YYYY hh:mm:ss A"
    for sample in _SAMPLES:
        try:
            written = sample.format(text)
            read: datetime = pendulum.from_format(written, text, tz="UTC")
        except Exception as error:
            # Pendulum raises many kinds of errors for a format it cannot use.
            raise _wrong(conn_id, f"callout_date_format {text!r} is no format like {example!r}: {error}") from None
        if read.date() != sample.date() or (re.search("[Hh]", text) and read.hour != sample.hour):
            raise _wrong(
                conn_id,
                f"callout_date_format {text!r} writes {sample:%Y-%m-%d %H:%M} as {written!r} and reads that as "
                f"{read:%Y-%m-%d %H:%M}; pendulum's tokens are like {example!r}",
            )
    return text
