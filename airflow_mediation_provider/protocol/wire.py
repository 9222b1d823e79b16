"""The messages between Airflow's own processes and the API server: feed, observations, and their signature.

Workers and triggers have no database in Airflow 3. They read from the journal and report to it over two paths of the
API server. A request is signed with a key that is derived from the connection's client secret, which both sides have
and which is never sent.
"""

from __future__ import annotations

import hashlib
import hmac
import json
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from datetime import datetime
from typing import TYPE_CHECKING, Any, ClassVar, Final, NamedTuple, Self, TypeVar
from urllib.parse import quote, unquote

import msgspec

from airflow_mediation_provider.protocol.sessions.journal_entry import JournalEntry
from airflow_mediation_provider.protocol.sessions.lifecycle import SessionState
from airflow_mediation_provider.protocol.sessions.verdict import TaskNote, TaskVerdict
from airflow_mediation_provider.protocol.sessions.window import Window, WindowReport
from airflow_mediation_provider.protocol.times import Instant, set_to_utc, to_utc
from airflow_mediation_provider.protocol.transition import SessionTransition
from airflow_mediation_provider.protocol.zuora.api_usage import HourlyUsage

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

PROTOCOL: Final = 1
SERVICE: Final = "mediation"
HANDSHAKE_PATH: Final = "/handshake"
FEED_PATH: Final = "/feed"
OBSERVATIONS_PATH: Final = "/observations"
MOST_METERS: Final = 1000
"""Meters in a full question to the feed; a client that has more asks several."""
MOST_INSTANTS: Final = 2000
"""Instants and windows of all meters in a full question; those of a single meter may be more."""
CONNECTION_HEADER: Final = "Mediation-Connection"
TIMESTAMP_HEADER: Final = "Mediation-Timestamp"
SIGNATURE_HEADER: Final = "Mediation-Signature"
DIGEST_HEADER: Final = "Mediation-Content-SHA256"
LONGEST_WAIT_SECONDS: Final = 20.0
"""The longest time until a feed request is answered."""
FULL_LOOK_SECONDS: Final = 60.0
"""The interval at which the complete present state is read, in addition to the changes in between."""
CLOCKS_SECONDS: Final = 300
"""How far the clocks of both sides may differ."""
_KEY_OF: Final = b"airflow-mediation-provider feed v1"
_VERSION: Final = "v1"
# Characters of Airflow's connection ids that a header may contain unquoted; letters may be of any language.
_PLAIN: Final = "#!()-.:/\\"
T = TypeVar("T")


class NotAuthenticatedError(Exception):
    """A request's signature is missing, wrong or too old."""


def derive_key(client_secret: str) -> bytes:
    """Return the key that both sides derive from the connection's client secret."""
    return hmac.digest(client_secret.encode(), _KEY_OF, "sha256")


def signed_headers(key: bytes, *, path: str, conn_id: str, body: bytes, timestamp: int) -> dict[str, str]:
    """Return the headers that authenticate a request.

    :param key: of ``derive_key``
    :param path: ``FEED_PATH`` or ``OBSERVATIONS_PATH``: without the prefix of a mount or a proxy
    :param conn_id: the Airflow connection
    :param body: the request's body
    :param timestamp: the time now, in whole seconds since 1970
    """
    digest = digest_of(body)
    return {
        CONNECTION_HEADER: quote(conn_id, safe=_PLAIN),
        TIMESTAMP_HEADER: str(timestamp),
        DIGEST_HEADER: digest,
        SIGNATURE_HEADER: f"{_VERSION}={_signature(key, path, conn_id, digest, str(timestamp))}",
    }


def digest_of(body: bytes) -> str:
    """Return the digest of a body that is signed in its place."""
    return hashlib.sha256(body).hexdigest()


def signed_digest(headers: Mapping[str, str]) -> str | None:
    """Return the digest of the body that a request names, authenticated or not; ``None`` from an older version.

    :param headers: the request's headers, names in lower case
    """
    return headers.get(DIGEST_HEADER.lower())


def signed_connection(headers: Mapping[str, str]) -> str:
    """Return the connection that a request names, authenticated or not.

    :param headers: the request's headers, names in lower case
    """
    return unquote(headers.get(CONNECTION_HEADER.lower(), ""))


def verify(key: bytes, *, path: str, conn_id: str, digest: str, headers: Mapping[str, str], now: float) -> None:
    """Check the signature of a request, which needs only the digest of its body.

    :param key: of ``derive_key``
    :param path: as in ``signed_headers``
    :param conn_id: the Airflow connection
    :param digest: ``digest_of`` the body that was received, or will be
    :param headers: the request's headers, names in lower case
    :param now: the time now, in seconds since 1970
    :raises NotAuthenticatedError: the message names the fault, and contains no secret
    """
    timestamp = headers.get(TIMESTAMP_HEADER.lower(), "")
    version, _, given = headers.get(SIGNATURE_HEADER.lower(), "").partition("=")
    if version != _VERSION or not given or not (timestamp.isascii() and timestamp.isdigit() and len(timestamp) < 16):
        raise NotAuthenticatedError(
            f"the headers {TIMESTAMP_HEADER} and {SIGNATURE_HEADER} are missing or of another version"
        )
    if not hmac.compare_digest(_signature(key, path, conn_id, digest, timestamp).encode(), given.lower().encode()):
        raise NotAuthenticatedError(
            "the signature is wrong: the client secret differs, or the request was changed in transit"
        )
    if abs(now - int(timestamp)) > CLOCKS_SECONDS:
        raise NotAuthenticatedError(f"the clocks differ by more than {CLOCKS_SECONDS} s, or the request is old")


def reply_signature(key: bytes, request_signature: str, body: bytes) -> str:
    """Return the value of ``SIGNATURE_HEADER`` in the good reply to one request.

    :param key: of ``derive_key``
    :param request_signature: the same header of the request, so that no reply fits another request
    :param body: the reply's body
    """
    message = f"{_VERSION} reply\n{request_signature}\n{digest_of(body)}"
    return f"{_VERSION}={hmac.new(key, message.encode(), 'sha256').hexdigest()}"


def is_signed_reply(key: bytes, request_signature: str, body: bytes, given: str) -> bool:
    """Return whether a reply has the signature of ``reply_signature``."""
    return hmac.compare_digest(reply_signature(key, request_signature, body).encode(), given.encode())


def _signature(key: bytes, path: str, conn_id: str, digest: str, timestamp: str) -> str:
    message = f"{_VERSION}\n{path}\n{timestamp}\n{conn_id}\n{digest}"
    return hmac.new(key, message.encode(), "sha256").hexdigest()


def to_plain(value: Any) -> Any:
    """Return a dataclass as plain JSON: every field by its name, times as ISO 8601 in UTC."""
    return json.loads(json.dumps(value, default=_fields_of))


def _fields_of(value: Any) -> Any:
    """Return the JSON form of a value that is not a JSON type."""
    if isinstance(value, datetime):
        return value.isoformat()
    if isinstance(value, frozenset):
        return sorted(value)
    return {each.name: getattr(value, each.name) for each in fields(value)}


def from_plain(kind: type[T], value: Any, what: str) -> T:
    """Make a dataclass from plain JSON: unknown keys are left out, and missing ones get their default.

    :param kind: the dataclass
    :param value: the plain JSON
    :param what: its name, for the error
    :raises ValueError: it is not valid; the message names the part
    """
    try:
        return msgspec.convert(value, kind)
    except (msgspec.ValidationError, ValueError, OverflowError, RecursionError) as error:
        raise ValueError(f"{what} cannot be read: {error}") from None


class Message:
    """One request or reply, as JSON: the fields of a dataclass, and the protocol."""

    __slots__ = ()
    what: ClassVar[str]
    """Its name, for errors."""

    def to_bytes(self) -> bytes:
        """Return the message as JSON."""
        message = {"protocol": PROTOCOL, **_fields_of(self)}
        return json.dumps(message, default=_fields_of, separators=(",", ":")).encode()

    @classmethod
    def from_bytes(cls, data: bytes) -> Self:
        """Read a message; unknown keys are left out, and missing ones get their default.

        :raises ValueError: it is not valid; the message names the reason
        """
        try:
            values = json.loads(data)
        except (ValueError, RecursionError) as error:
            raise ValueError(f"the {cls.what} cannot be read: {error}") from None
        protocol = values.get("protocol") if isinstance(values, dict) else None
        if protocol != PROTOCOL:
            raise ValueError(f"the {cls.what} cannot be read: its protocol is {protocol!r:.80}, not {PROTOCOL}")
        return from_plain(cls, values, f"the {cls.what}")


@dataclass(frozen=True, slots=True, kw_only=True)
class MeterQuestion:
    """What is asked of one meter: the named sessions, the live ones, and the first that began after each instant.

    In a long poll it is empty: all changes of the meter are asked for.

    :param sessions: sessions by id; of one that this meter does not have, the reply has its states of other meters
    :param since: the earliest start of each wait for an unnamed session
    :param windows: both bounds of each such wait that also has a latest start
    :param known: sessions of the meter that the asker has -> their revisions: the reply leaves these out
    """

    sessions: frozenset[str] = frozenset()
    since: frozenset[Instant] = frozenset()
    windows: frozenset[Window] = frozenset()
    known: Mapping[str, int] = field(default_factory=dict)

    @property
    def instants(self) -> int:
        """How many instants and windows it has: each costs the server a query of its own."""
        return len(self.since) + len(self.windows)

    def __post_init__(self) -> None:
        """Convert the instants to UTC."""
        windows = (Window(to_utc("since", since), to_utc("before", before)) for since, before in self.windows)
        object.__setattr__(self, "since", frozenset(to_utc("since", each) for each in self.since))
        object.__setattr__(self, "windows", frozenset(windows))


@dataclass(frozen=True, slots=True, kw_only=True)
class WaitReport:
    """One task that waits for a session.

    :param id: the id of the wait, the same in all its reports
    :param condition: ``SessionCondition.to_dict()``
    :param mode: ``triggerer`` or ``worker``
    :param created_at: when the wait began
    :param until: its deadline
    :param owner: a random id of the waiting process, made when it began the wait; empty from an older version
    :param begins: whether the wait begins; true in each report until a reply confirms that one is stored
    """

    id: str
    meter_id: str
    version: str
    session_id: str | None = None
    condition: dict[str, Any]
    dag_id: str
    run_id: str
    task_id: str
    map_index: int
    try_number: int
    mode: str
    created_at: Instant
    until: Instant | None = None
    owner: str = ""
    begins: bool = False

    def __post_init__(self) -> None:
        """Convert the instants to UTC."""
        set_to_utc(self, "created_at", "until")


@dataclass(frozen=True, slots=True, kw_only=True)
class WaitEnded:
    """The end of a wait that was reported.

    :param outcome: a ``WaitEnd``, or ``left``: its process no longer waits, and the task may wait in another one
    :param session_id: the awaited session, where it is known at the end
    :param owner: as in the wait's reports
    :param begins: whether no report of this owner is known to be stored
    :param status: the status on which the wait ended, where one ended it
    :param evidence: how that status was received: a ``Source``
    :param certain: whether that is certain
    """

    id: str
    outcome: str
    ended_at: Instant
    session_id: str | None = None
    owner: str = ""
    begins: bool = False
    status: str | None = None
    evidence: str | None = None
    certain: bool | None = None

    def __post_init__(self) -> None:
        """Convert the instant to UTC."""
        set_to_utc(self, "ended_at")


@dataclass(frozen=True, slots=True, kw_only=True)
class Waits:
    """The reports about waits in a feed request.

    :param open: waits that began, or that go on
    :param ended: waits that ended
    :param reporter: a random id of what reports them; with it, the waits that it reported before go on too, unless they
        ended. Empty: each wait is reported by itself, again and again
    """

    open: tuple[WaitReport, ...] = ()
    ended: tuple[WaitEnded, ...] = ()
    reporter: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class FeedRequest(Message):
    """A request to the feed.

    :param meters: meter -> what is asked of it
    :param wait: seconds to wait for a change, where there is none yet; 0 to 20
    :param cursor: of the last reply; with it, the reply has only the changes since
    :param full: return the complete present state at once
    :param waits: reports about waits
    :param calls: API usage that was not reported before
    :param owners: ids of waits whose owner is asked for
    :param reports: return also all reports of the named sessions; with ``full``
    """

    what = "feed request"
    meters: Mapping[str, MeterQuestion] = field(default_factory=dict)
    wait: float = 0.0
    cursor: str | None = None
    full: bool = False
    waits: Waits = field(default_factory=Waits)
    calls: tuple[HourlyUsage, ...] = ()
    owners: tuple[str, ...] = ()
    reports: bool = False

    def __post_init__(self) -> None:
        """Limit the time to wait."""
        # In this order NaN, which JSON may contain, becomes a number.
        object.__setattr__(self, "wait", max(0.0, min(LONGEST_WAIT_SECONDS, self.wait)))

    def too_large(self) -> str:
        """Return why a full question is refused, empty if it is not."""
        instants = sum(question.instants for question in self.meters.values())
        if len(self.meters) > MOST_METERS:
            return f"the feed request asks for {len(self.meters)} meters, at most {MOST_METERS}: ask for them in parts"
        if len(self.meters) > 1 and instants > MOST_INSTANTS:
            return f"the feed request has {instants} instants and windows, at most {MOST_INSTANTS}: ask in parts"
        return ""


@dataclass(frozen=True, slots=True, kw_only=True)
class HistoryStatus:
    """How the callout history of a connection reaches the journal.

    :param late: how long after a change the journal has it, in seconds
    :param read: whether it is being read
    """

    late: float
    read: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class FeedReply(Message):
    """A reply of the feed.

    :param cursor: for the next request; ``None`` to a long poll whose cursor is too old: ask for the present state
    :param callouts: whether the connection accepts callouts
    :param history: of a connection that accepts none, where its callout history was ever read
    :param last_callout_at: when the last callout was received; only in full replies, ``None``: none within a week
    :param sessions: states, in any order; the same one may be repeated
    :param revisions: of each of these states; none from an older server, which leaves no known state out
    :param conditional: whether a long poll may leave out what it asks of each meter; an older server needs it where the
        cursor is too old
    :param windows: the report of each requested window that has passed; only in full replies
    :param owners: the stored owner of each requested wait; ``None`` where there is none
    :param kept: whether the waits that this request reported are stored; true without the key, as an older server
        stores them all the same, only later
    :param reporter_known: whether the waits that this reporter reported before go on; false without the key, as an
        older server needs a report of each of them
    :param reports: of the named sessions, in any order, where they were asked for; none from an older server
    """

    what = "feed reply"
    cursor: str | None = None
    callouts: bool
    history: HistoryStatus | None = None
    last_callout_at: Instant | None = None
    sessions: tuple[SessionState, ...] = ()
    revisions: tuple[int, ...] = ()
    conditional: bool = False
    windows: tuple[WindowReport, ...] = ()
    owners: Mapping[str, str | None] = field(default_factory=dict)
    kept: bool = True
    reporter_known: bool = False
    reports: tuple[SessionTransition, ...] = ()

    def to_bytes(self, stored: Iterable[str] = ()) -> bytes:
        """Return the message as JSON.

        :param stored: more sessions, as JSON already; ``revisions`` has theirs behind those of ``sessions``
        """
        message = {"protocol": PROTOCOL, **_fields_of(self)}
        sessions = [json.dumps(each, default=_fields_of, separators=(",", ":")) for each in message.pop("sessions")]
        rest = json.dumps(message, default=_fields_of, separators=(",", ":"))
        return f'{rest[:-1]},"sessions":[{",".join((*sessions, *stored))}]}}'.encode()


@dataclass(frozen=True, slots=True)
class _Batch(Message):
    """An observations request; its items stay plain JSON, so that an invalid one does not affect the others.

    The parameters are those of ``Observations``.
    """

    what = "observations request"
    entries: tuple[Any, ...]
    calls: tuple[HourlyUsage, ...] = ()
    verdicts: tuple[Any, ...] = ()
    tasks: tuple[Any, ...] = ()


class Observations(NamedTuple):
    """The content of an observations request.

    :param entries: observations of sessions and meters
    :param calls: API usage that was not reported before
    :param verdicts: what tasks concluded from polls
    :param tasks: notes of other tasks about sessions
    :param unreadable: one sentence for each observation, verdict and note that is not valid; the others still count
    """

    entries: tuple[JournalEntry, ...]
    calls: tuple[HourlyUsage, ...] = ()
    verdicts: tuple[TaskVerdict, ...] = ()
    tasks: tuple[TaskNote, ...] = ()
    unreadable: tuple[str, ...] = ()


def observations_to_bytes(
    entries: Sequence[JournalEntry] = (),
    calls: Sequence[HourlyUsage] = (),
    *,
    verdicts: Sequence[TaskVerdict] = (),
    tasks: Sequence[TaskNote] = (),
) -> bytes:
    """Return an observations request as JSON.

    :param entries: observations of sessions and meters
    :param calls: API usage that was not reported before
    :param verdicts: what tasks concluded from polls
    :param tasks: notes of other tasks about sessions
    """
    return _Batch(tuple(entries), tuple(calls), tuple(verdicts), tuple(tasks)).to_bytes()


def observations_from_bytes(data: bytes) -> Observations:
    """Read an observations request; unknown keys are left out.

    :raises ValueError: it is not valid; the message names the reason
    """
    batch = _Batch.from_bytes(data)
    unreadable: list[str] = []
    return Observations(
        entries=_readable(JournalEntry, "an observation", batch.entries, unreadable),
        calls=batch.calls,
        verdicts=_readable(TaskVerdict, "a verdict", batch.verdicts, unreadable),
        tasks=_readable(TaskNote, "a task's note", batch.tasks, unreadable),
        unreadable=tuple(unreadable),
    )


def _readable(kind: type[T], what: str, items: Iterable[Any], unreadable: list[str]) -> tuple[T, ...]:
    """Return the valid items, and add a sentence to ``unreadable`` for each other one."""
    found = []
    for item in items:
        try:
            found.append(from_plain(kind, item, what))
        except ValueError as error:
            unreadable.append(str(error))
    return tuple(found)


def is_handshake(reply: Any) -> bool:
    """Return whether a JSON reply is from this service, in a compatible version: other pages answer 200 as well."""
    return isinstance(reply, Mapping) and reply.get("service") == SERVICE and reply.get("protocol") == PROTOCOL
