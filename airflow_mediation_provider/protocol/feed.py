"""What Airflow's own processes and the API server say to each other: feed, observations, and how both are signed.

Workers and triggers have no database in Airflow 3. They ask what the journal knows, and tell it what they learned, over
two paths of the API server. A request is signed with a key that is derived from the connection's client secret, which
both sides have and which itself never travels.
"""

from __future__ import annotations

import hashlib
import hmac
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final, NamedTuple
from urllib.parse import quote, unquote

from airflow_mediation_provider.protocol.calls import HourlyCalls
from airflow_mediation_provider.protocol.entry import Entry
from airflow_mediation_provider.protocol.lifecycle import SessionState
from airflow_mediation_provider.protocol.times import from_json, to_json

if TYPE_CHECKING:
    from collections.abc import Sequence
    from datetime import datetime

PROTOCOL: Final = 1
SERVICE: Final = "mediation"
HANDSHAKE_PATH: Final = "/handshake"
FEED_PATH: Final = "/feed"
OBSERVATIONS_PATH: Final = "/observations"
CONNECTION_HEADER: Final = "Mediation-Connection"
TIMESTAMP_HEADER: Final = "Mediation-Timestamp"
SIGNATURE_HEADER: Final = "Mediation-Signature"
LONGEST_WAIT_SECONDS: Final = 20.0
"""A feed request is answered at the latest after this long."""
FULL_LOOK_SECONDS: Final = 60.0
"""So often the present state of everything asked for is read anew, whatever changes were seen in between."""
CLOCKS_SECONDS: Final = 300
"""How far the clocks of both sides may differ."""
_KEY_OF: Final = b"airflow-mediation-provider feed v1"
_VERSION: Final = "v1"
# What a connection's id may have, as Airflow has it, of what a header takes as it is; letters may be of any language.
_PLAIN: Final = "#!()-.:/\\"


class NotProvenError(Exception):
    """A request's signature is missing, wrong or too old."""


def derive_key(client_secret: str) -> bytes:
    """Return the key that both sides derive from the connection's client secret."""
    return hmac.digest(client_secret.encode(), _KEY_OF, "sha256")


def signed_headers(key: bytes, *, path: str, conn_id: str, body: bytes, timestamp: int) -> dict[str, str]:
    """Return the headers that prove a request.

    :param key: of ``derive_key``
    :param path: ``FEED_PATH`` or ``OBSERVATIONS_PATH``: without what a mount or a proxy puts before it
    :param conn_id: the Airflow connection
    :param body: the request's body
    :param timestamp: the time now, in whole seconds since 1970
    """
    return {
        CONNECTION_HEADER: quote(conn_id, safe=_PLAIN),
        TIMESTAMP_HEADER: str(timestamp),
        SIGNATURE_HEADER: f"{_VERSION}={_signature(key, path, conn_id, body, str(timestamp))}",
    }


def signed_connection(headers: Mapping[str, str]) -> str:
    """Return the connection that a request names, proven or not.

    :param headers: the request's headers, names in lower case
    """
    return unquote(headers.get(CONNECTION_HEADER.lower(), ""))


def verify(key: bytes, *, path: str, conn_id: str, body: bytes, headers: Mapping[str, str], now: float) -> None:
    """Return if a request is proven.

    :param headers: the request's headers, names in lower case
    :param now: the time now, in seconds since 1970
    :raises NotProvenError: says what is wrong, without any secret
    """
    timestamp = headers.get(TIMESTAMP_HEADER.lower(), "")
    version, _, given = headers.get(SIGNATURE_HEADER.lower(), "").partition("=")
    if version != _VERSION or not given or not (timestamp.isascii() and timestamp.isdigit() and len(timestamp) < 16):
        raise NotProvenError(f"the headers {TIMESTAMP_HEADER} and {SIGNATURE_HEADER} are missing or of another version")
    if not hmac.compare_digest(_signature(key, path, conn_id, body, timestamp).encode(), given.lower().encode()):
        raise NotProvenError("the signature is wrong: the client secret differs, or the request was changed on its way")
    if abs(now - int(timestamp)) > CLOCKS_SECONDS:
        raise NotProvenError(f"the clocks differ by more than {CLOCKS_SECONDS} s, or the request is an old one")


def _signature(key: bytes, path: str, conn_id: str, body: bytes, timestamp: str) -> str:
    message = f"{_VERSION}\n{path}\n{timestamp}\n{conn_id}\n{hashlib.sha256(body).hexdigest()}"
    return hmac.new(key, message.encode(), "sha256").hexdigest()


@dataclass(frozen=True, slots=True, kw_only=True)
class MeterQuestion:
    """What is to be known of one meter: the named sessions, the live ones, and the first that began after each instant.

    :param sessions: sessions by id
    :param since: of each wait for an unnamed session, its earliest start
    """

    sessions: frozenset[str] = frozenset()
    since: frozenset[datetime] = frozenset()


@dataclass(frozen=True, slots=True, kw_only=True)
class WaitReport:
    """One task that waits for a session.

    :param id: the same for each report of this wait
    :param condition: ``SessionCondition.to_dict()``
    :param mode: ``triggerer`` or ``worker``
    :param created_at: when the wait began
    :param until: its deadline
    """

    id: str
    meter_id: str
    version: str
    session_id: str | None
    condition: dict[str, Any]
    dag_id: str
    run_id: str
    task_id: str
    map_index: int
    try_number: int
    mode: str
    created_at: datetime
    until: datetime | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class WaitEnded:
    """The end of a wait that was reported.

    :param outcome: a ``WaitEnd``, or ``left``: its process does not wait any more and knows no end
    :param session_id: the session that it was about, where it is known at last
    """

    id: str
    outcome: str
    ended_at: datetime
    session_id: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class FeedRequest:
    """A question to the feed.

    :param meters: meter -> what is to be known of it
    :param wait: seconds to wait for a change, where there is none yet; 0 to 20
    :param cursor: of the last reply; with it, only what changed since is told
    :param full: tell the present state of all that is asked for, at once
    :param open: waits that began, or that go on
    :param ended: waits that ended
    :param calls: to Zuora, that were not reported before
    """

    meters: Mapping[str, MeterQuestion] = field(default_factory=dict)
    wait: float = 0.0
    cursor: str | None = None
    full: bool = False
    open: tuple[WaitReport, ...] = ()
    ended: tuple[WaitEnded, ...] = ()
    calls: tuple[HourlyCalls, ...] = ()

    def to_bytes(self) -> bytes:
        """Return the request as JSON."""
        meters = {
            meter_id: {
                "sessions": sorted(question.sessions),
                "since": [to_json(each) for each in sorted(question.since)],
            }
            for meter_id, question in self.meters.items()
        }
        waits = {
            "open": [_plain(report, ("created_at", "until")) for report in self.open],
            "ended": [_plain(end, ("ended_at",)) for end in self.ended],
        }
        asked = {"wait": self.wait, "cursor": self.cursor, "full": self.full, "meters": meters}
        return _dump({**asked, "waits": waits, "calls": [each.to_dict() for each in self.calls]})

    @classmethod
    def from_bytes(cls, data: bytes) -> FeedRequest:
        """Read a request; unknown keys are left out.

        :raises ValueError: it is none; one sentence says why
        """
        with _reading("feed request"):
            values = _load(data)
            waits = values.get("waits") or {}
            cursor = values.get("cursor")
            return cls(
                meters={
                    str(meter_id): MeterQuestion(
                        sessions=frozenset(map(str, question.get("sessions") or ())),
                        since=frozenset(_instant(each) for each in question.get("since") or ()),
                    )
                    for meter_id, question in (values.get("meters") or {}).items()
                },
                # In this order NaN, which JSON may hold, is a number afterwards.
                wait=max(0.0, min(LONGEST_WAIT_SECONDS, float(values.get("wait") or 0))),
                cursor=None if cursor is None else str(cursor),
                full=bool(values.get("full")),
                open=tuple(_wait_report(each) for each in waits.get("open") or ()),
                ended=tuple(_wait_ended(each) for each in waits.get("ended") or ()),
                calls=_calls(values),
            )


@dataclass(frozen=True, slots=True, kw_only=True)
class FeedReply:
    """What the feed knows.

    :param cursor: for the next request
    :param callouts: whether the connection takes callouts at all
    :param last_callout_at: when the last one came; told by full looks, ``None`` where none came for a week
    :param sessions: states, in any order; the same one may come again
    """

    cursor: str | None
    callouts: bool
    last_callout_at: datetime | None = None
    sessions: tuple[SessionState, ...] = ()

    def to_bytes(self) -> bytes:
        """Return the reply as JSON."""
        return _dump(
            {
                "cursor": self.cursor,
                "callouts": self.callouts,
                "last_callout_at": to_json(self.last_callout_at),
                "sessions": [state.to_dict() for state in self.sessions],
            }
        )

    @classmethod
    def from_bytes(cls, data: bytes) -> FeedReply:
        """Read a reply; unknown keys are left out.

        :raises ValueError: it is none; one sentence says why
        """
        with _reading("feed reply"):
            values = _load(data)
            return cls(
                cursor=values.get("cursor"),
                callouts=bool(values["callouts"]),
                last_callout_at=from_json(values.get("last_callout_at")),
                sessions=tuple(SessionState.from_dict(each) for each in values["sessions"]),
            )


class Observations(NamedTuple):
    """What an observations request tells: what was learned, and the calls to Zuora that were not reported before."""

    entries: tuple[Entry, ...]
    calls: tuple[HourlyCalls, ...]


def observations_to_bytes(entries: Sequence[Entry], calls: Sequence[HourlyCalls] = ()) -> bytes:
    """Return what was learned as the JSON of an observations request.

    :param calls: to Zuora, that were not reported before
    """
    return _dump({"entries": [each.to_dict() for each in entries], "calls": [each.to_dict() for each in calls]})


def observations_from_bytes(data: bytes) -> Observations:
    """Read an observations request.

    :raises ValueError: it is none; one sentence says why
    """
    with _reading("observations request"):
        values = _load(data)
        return Observations(tuple(Entry.from_dict(each) for each in values["entries"]), _calls(values))


def is_handshake(reply: Any) -> bool:
    """Say whether a JSON reply is this service's, of a version that understands us: other pages answer 200 as well."""
    return isinstance(reply, Mapping) and reply.get("service") == SERVICE and reply.get("protocol") == PROTOCOL


class _reading:  # noqa: N801  # reads as a statement
    """Turn whatever a malformed message raises into one sentence."""

    def __init__(self, what: str) -> None:
        self._what = what

    def __enter__(self) -> None:
        return None

    def __exit__(self, kind: object, error: BaseException | None, traceback: object) -> None:
        if isinstance(error, KeyError):
            raise ValueError(f"the {self._what} lacks {error}") from None
        if isinstance(error, (TypeError, ValueError, AttributeError, OverflowError, RecursionError)):
            raise ValueError(f"the {self._what} cannot be read: {error}") from None


def _dump(values: dict[str, Any]) -> bytes:
    return json.dumps({"protocol": PROTOCOL, **values}, separators=(",", ":")).encode()


def _load(data: bytes) -> dict[str, Any]:
    values = json.loads(data)
    if not isinstance(values, dict):
        raise TypeError("it is no object")
    if values.get("protocol") != PROTOCOL:
        raise ValueError(f"its protocol is {values.get('protocol')!r}, and only {PROTOCOL} is known")
    return values


def _instant(text: Any) -> datetime:
    instant = from_json(text)
    if instant is None:
        raise TypeError("an instant is null")
    return instant


def _calls(values: Mapping[str, Any]) -> tuple[HourlyCalls, ...]:
    return tuple(HourlyCalls.from_dict(each) for each in values.get("calls") or ())


def _plain(message: WaitReport | WaitEnded, times: tuple[str, ...]) -> dict[str, Any]:
    values = {name: getattr(message, name) for name in message.__slots__}
    return {**values, **{name: to_json(values[name]) for name in times}}


def _wait_report(data: Mapping[str, Any]) -> WaitReport:
    condition = data["condition"]
    if not isinstance(condition, dict):
        raise TypeError("a wait's condition is no object")
    session_id, created_at = data.get("session_id"), from_json(data["created_at"])
    if created_at is None:
        raise KeyError("created_at")
    return WaitReport(
        **{name: str(data[name]) for name in ("id", "meter_id", "version", "dag_id", "run_id", "task_id", "mode")},
        session_id=None if session_id is None else str(session_id),
        condition=condition,
        map_index=int(data["map_index"]),
        try_number=int(data["try_number"]),
        created_at=created_at,
        until=from_json(data.get("until")),
    )


def _wait_ended(data: Mapping[str, Any]) -> WaitEnded:
    ended_at, session_id = from_json(data["ended_at"]), data.get("session_id")
    if ended_at is None:
        raise KeyError("ended_at")
    return WaitEnded(
        id=str(data["id"]),
        outcome=str(data["outcome"]),
        ended_at=ended_at,
        session_id=None if session_id is None else str(session_id),
    )
