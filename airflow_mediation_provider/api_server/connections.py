"""Look up the connection that a request names, safely for a path that unauthenticated clients can call.

Airflow's own look-up treats a secrets backend that is down like one that does not have the connection. Here they
differ: no backend has it (404 for the caller), or a backend could not be queried (503, after which Zuora calls again).
"""

from __future__ import annotations

import asyncio
import json
import logging
import math
import threading
import time
from concurrent.futures import Future, ThreadPoolExecutor, wait
from contextlib import suppress
from dataclasses import dataclass, field, replace
from functools import cached_property, partial
from inspect import signature
from typing import TYPE_CHECKING, Any, Final, TypeAlias

from sqlalchemy import select

from airflow_mediation_provider.api_server.http import TtlMap
from airflow_mediation_provider.hooks.settings import CONNECTION_TYPE, settings_of
from airflow_mediation_provider.journal.session_list import connections_of_dags, known_connections
from airflow_mediation_provider.journal.transaction import JournalUnavailable, read
from airflow_mediation_provider.protocol.callouts.settings import CalloutSettings, callout_settings
from airflow_mediation_provider.protocol.ids import id_in_use, is_connection_id

if TYPE_CHECKING:
    from collections.abc import Callable, Generator, Iterable, Mapping

    from airflow.models.connection import Connection
    from sqlalchemy.orm import Session

    from airflow_mediation_provider.hooks.settings import Settings

log = logging.getLogger(__name__)

# A rotated secret is used after so many seconds, in each process of the API server.
KNOWN_SECONDS: Final = 5.0
# A connection in use is looked up again before that, so that no request waits for it.
AHEAD_SECONDS: Final = 3.0
# For so long a connection is used further while the secrets backends fail.
STALE_SECONDS: Final = 600.0
# For so long an id that no backend has is not looked up again, nor one with which the backends failed.
UNKNOWN_SECONDS: Final = 120.0
FAILED_SECONDS: Final = 10.0
# Unknown ids that are cached; beyond that, the oldest is dropped.
UNKNOWN_LIMIT: Final = 10_000
# Ids that are neither known nor in use and wait for a look-up; beyond that, such an id is not looked up (503).
WAITING_LIMIT: Final = 1000
# Connections that are cached; beyond that, the one that was looked up longest ago is dropped.
KNOWN_LIMIT: Final = 1000
# How long a request waits for a look-up, which then continues and serves the next request.
PATIENCE_SECONDS: Final = 4.0
# For so long the ids in use count as they were read.
IN_USE_SECONDS: Final = 60.0


class UnknownConnectionError(Exception):
    """No backend has a connection with that id and of our type; the message is for the log."""

    def __init__(self, reason: str = "there is no connection with this id and of type mediation") -> None:
        super().__init__(reason)


class OtherIdError(UnknownConnectionError):
    """The id is another spelling of a connection's id.

    :param conn_id: the connection's id
    """

    def __init__(self, conn_id: str) -> None:
        super().__init__(f"the connection is found under the id {conn_id!r}")
        self.conn_id = conn_id


class LookupFailedError(Exception):
    """It could not be found out whether there is such a connection; the message is for the log."""


class SeveralTeamsError(LookupFailedError):
    """Several teams have a connection of the same id, and the request does not name the team.

    :param teams: their names
    """

    def __init__(self, teams: Iterable[str]) -> None:
        super().__init__(
            f"several teams have a connection of this id ({', '.join(teams)}), and the address does not end with "
            "?team= and the name of one"
        )
        self.teams = tuple(teams)


@dataclass(frozen=True)
class MediationConnection:
    """A connection of type ``mediation``, as far as the API server needs it.

    :param conn_id: its id
    :param team: the team that it belongs to, in an Airflow with teams
    :param client_secret: of the OAuth client
    :param extra: further settings; secrets are among them
    :param read_settings: reads the settings of calls to Zuora, which callouts do not need
    """

    conn_id: str
    team: str | None = None
    client_secret: str | None = field(default=None, repr=False)
    extra: Mapping[str, Any] = field(default_factory=dict, repr=False)
    read_settings: Callable[[], Settings] | None = field(default=None, repr=False, compare=False)

    @cached_property
    def settings(self) -> Settings | None:
        """The settings of calls to Zuora; ``None`` if they are invalid."""
        try:
            return self.read_settings() if self.read_settings else None
        except Exception as error:  # an extra may contain anything
            log.info("Connection %r cannot be used to call Zuora: %s", self.conn_id, error)
            return None

    @cached_property
    def callouts(self) -> CalloutSettings:
        """How callouts are authenticated and parsed.

        :raises MisconfigurationError: the settings are wrong
        """
        return callout_settings(self.conn_id, self.extra)


@dataclass(frozen=True)
class ConnectionsOfTeams:
    """The connections of several teams, which have the same id.

    :param conn_id: their id
    :param of_team: team -> its connection
    """

    conn_id: str
    of_team: Mapping[str, MediationConnection]


@dataclass(frozen=True, slots=True)
class IdsInUse:
    """The ids of connections that are in use; the ones of which there is no connection any more may be among them.

    :param by_dags: in schedules, or by tasks that waited or read the callout history
    :param elsewhere: in the journal, or of connections that Airflow's database has
    """

    by_dags: frozenset[str] = frozenset()
    elsewhere: frozenset[str] = frozenset()

    def __contains__(self, conn_id: str) -> bool:
        """Return whether an id is in use, in exactly this spelling."""
        return conn_id in self.by_dags or conn_id in self.elsewhere


Found: TypeAlias = MediationConnection | ConnectionsOfTeams
# A text: the id under which the connection is found; empty: there is none.
_Answer: TypeAlias = Found | LookupFailedError | str


class Connections:
    """The look-up in one process of the API server, with a cache of known connections and of unknown ids.

    :param find: looks up a connection; blocks, so it runs in threads. Raises only :class:`LookupFailedError`
    :param clock: seconds of a monotonic clock
    :param in_use: reads which ids are in use; blocks, and raises only ``JournalUnavailable``
    """

    def __init__(
        self,
        find: Callable[[str], Found | None] | None = None,
        clock: Callable[[], float] = time.monotonic,
        in_use: Callable[[], IdsInUse] = IdsInUse,
    ) -> None:
        self._find, self._clock = find, clock
        self._in_use = _InUse(in_use, clock)
        # The one that was looked up longest ago is the first.
        self._known: dict[str, tuple[float, Found]] = {}
        self._unknown: TtlMap[str] = TtlMap(UNKNOWN_SECONDS, UNKNOWN_LIMIT, clock, drops_oldest=True)
        self._failed: TtlMap[LookupFailedError] = TtlMap(FAILED_SECONDS, UNKNOWN_LIMIT, clock, drops_oldest=True)
        self._asking: dict[str, Future[_Answer]] = {}
        self._lock = threading.Lock()
        # Invented ids have their own threads: they must not delay a connection that is in use.
        self._first_lookups = ThreadPoolExecutor(2, "mediation-first-lookup")
        self._refreshes = ThreadPoolExecutor(2, "mediation-refresh")

    async def get(self, conn_id: str, team: str | None = None) -> MediationConnection:
        """Return a connection as it was at most five seconds ago, or ten minutes ago while the backends fail.

        Waits for a look-up, if one is needed, for four seconds; one look-up serves all requests meanwhile.

        :param team: whose connection is meant, where several teams have one of this id
        :raises UnknownConnectionError: no backend has it, or it has another id
        :raises LookupFailedError: it could not be found out whether one has, or which one is meant
        """
        flow = self._flow(conn_id, team)
        try:
            while True:
                # Neither the time limit nor a caller that disconnects may cancel what others wait for.
                await asyncio.wait([asyncio.wrap_future(next(flow))], timeout=PATIENCE_SECONDS)
        except StopIteration as end:
            connection: MediationConnection = end.value
            return connection

    def get_in_thread(self, conn_id: str) -> MediationConnection:
        """Return the same in a thread that may block."""
        flow = self._flow(conn_id, None)
        try:
            while True:
                wait([next(flow)], timeout=PATIENCE_SECONDS)
        except StopIteration as end:
            connection: MediationConnection = end.value
            return connection

    def _flow(self, conn_id: str, team: str | None) -> Generator[Future[Any], None, MediationConnection]:
        """Yield what to wait for, and return the connection."""
        if not is_connection_id(conn_id):
            raise UnknownConnectionError
        if self._in_use.unread:
            # After a start: the connections in use must not queue behind invented ids.
            yield self._refreshes.submit(self._in_use.try_read)
        answer = self._cached_or_started(conn_id)
        if isinstance(answer, Future):
            yield answer
            too_long = LookupFailedError("the secrets backends take too long to answer")
            answer = answer.result() if answer.done() else too_long
        if isinstance(answer, LookupFailedError):
            stale = self._stale(conn_id)
            if stale is None:
                raise answer
            log.debug("The connection %s is used as it was: %s", conn_id, answer)
            answer = stale
        if isinstance(answer, str):
            raise OtherIdError(answer) if answer else UnknownConnectionError
        return of_team(answer, team)

    def knows(self, conn_id: str) -> bool:
        """Return whether an id is that of a connection, or is in use: no client without credentials can invent it."""
        return conn_id in self._known or conn_id in self._in_use

    def _cached_or_started(self, conn_id: str) -> _Answer | Future[_Answer]:
        with self._lock:
            known = self._known.get(conn_id)
            age = self._clock() - known[0] if known else math.inf
            if known and age < KNOWN_SECONDS:
                if age > AHEAD_SECONDS and not (conn_id in self._asking or self._failed.get(conn_id)):
                    self._asking[conn_id] = self._refreshes.submit(self._ask, conn_id)
                return known[1]
            if (other_id := self._unknown.get(conn_id)) is not None:
                return other_id
            if failure := self._failed.get(conn_id):
                return failure
            if conn_id in self._asking:
                return self._asking[conn_id]
            invented = not self.knows(conn_id)
            if invented and len(self._asking) >= WAITING_LIMIT:
                return LookupFailedError("too many unknown connection ids wait for a look-up")
            pool = self._first_lookups if invented else self._refreshes
            self._asking[conn_id] = asked = pool.submit(self._ask, conn_id)
            return asked

    def _ask(self, conn_id: str) -> _Answer:
        answer: _Answer
        try:
            found = found_connection(conn_id, self._find, in_use=self._in_use.read)
            answer = "" if found is None else found if found.conn_id == conn_id else found.conn_id
        except LookupFailedError as error:
            answer = error
        except Exception as error:
            log.exception("The look-up of a connection failed")
            answer = LookupFailedError(f"the look-up failed ({type(error).__name__})")
        with self._lock:
            if isinstance(answer, LookupFailedError):
                self._failed.add(conn_id, answer)
            else:
                before = self._known.pop(conn_id, None)
                if answer == "" and before:
                    # It may have been deleted in order to be created again; after a 404 Zuora would not call again.
                    answer = LookupFailedError("the connection existed a moment ago, and does not now")
                    self._failed.add(conn_id, answer)
                elif isinstance(answer, str):
                    self._unknown.add(conn_id, answer)
                else:
                    self._known[conn_id] = (self._clock(), answer)
                    if len(self._known) > KNOWN_LIMIT:
                        del self._known[next(iter(self._known))]
            del self._asking[conn_id]
        return answer

    def _stale(self, conn_id: str) -> Found | None:
        at, connection = self._known.get(conn_id, (0.0, None))
        return connection if connection and self._clock() - at < STALE_SECONDS else None


class _InUse:
    """The ids in use, read once a minute, by one thread at a time.

    :param read: reads them; raises only ``JournalUnavailable``
    :param clock: seconds of a monotonic clock
    """

    def __init__(self, read: Callable[[], IdsInUse], clock: Callable[[], float]) -> None:
        self._read, self._clock = read, clock
        self._lock = threading.Lock()
        self._ids: IdsInUse | None = None
        self._failure = ""
        self._until = -math.inf

    def __contains__(self, conn_id: str) -> bool:
        """Return whether an id was in use when they were read."""
        return self._ids is not None and conn_id in self._ids

    @property
    def unread(self) -> bool:
        """Whether they were never read, and the last attempt was not a moment ago."""
        return self._ids is None and self._clock() >= self._until

    def try_read(self) -> None:
        """Read them, if that is possible."""
        with suppress(LookupFailedError):
            self.read()

    def read(self) -> IdsInUse:
        """Return the ids in use as they were a minute ago at most, or longer ago while the database is away.

        :raises LookupFailedError: they could never be read
        """
        with self._lock:
            if self._clock() >= self._until:
                try:
                    self._ids, seconds = self._read(), IN_USE_SECONDS
                except JournalUnavailable as error:
                    self._failure, seconds = str(error), FAILED_SECONDS
                self._until = self._clock() + seconds
            if self._ids is None:
                raise LookupFailedError(f"which ids are in use cannot be read: {self._failure}")
            return self._ids


def ids_in_use() -> IdsInUse:
    """Read which ids of connections are in use; blocks.

    :raises JournalUnavailable: the database is away, or the tables are missing
    """
    from airflow.models.connection import Connection

    def work(session: Session) -> IdsInUse:
        stored = session.scalars(select(Connection.conn_id).where(Connection.conn_type == CONNECTION_TYPE))
        return IdsInUse(
            by_dags=frozenset(connections_of_dags(session)),
            elsewhere=frozenset((*known_connections(session), *map(str, stored))),
        )

    return read(work)


def found_connection(
    conn_id: str, find: Callable[[str], Found | None] | None = None, *, in_use: Callable[[], IdsInUse]
) -> Found | None:
    """Return the connection that is found by an id, with the id that it has.

    A backend that ignores the case finds it by other spellings of its id too. Such a spelling is another one than that
    in use, and leads to the same connection.

    :param find: looks up a connection; in Airflow's secrets backends by default
    :param in_use: returns the ids in use
    :raises LookupFailedError: it could not be found out whether there is one, or which id it has
    """
    find = find or find_connection
    found = find(conn_id)
    if found is None:
        return None
    ids = in_use()
    its_id = id_in_use(conn_id, ids.by_dags, ids.elsewhere)
    by_its_id = None if its_id == conn_id else find(its_id)
    return by_its_id if by_its_id is not None and _renamed(by_its_id, conn_id) == found else found


def _renamed(found: Found, conn_id: str) -> Found:
    if isinstance(found, ConnectionsOfTeams):
        of_team = {team: replace(each, conn_id=conn_id) for team, each in found.of_team.items()}
        return ConnectionsOfTeams(conn_id, of_team)
    return replace(found, conn_id=conn_id)


def of_team(found: Found, team: str | None = None) -> MediationConnection:
    """Return the connection that is meant.

    :param team: the team that the request names
    :raises UnknownConnectionError: that team has none
    :raises SeveralTeamsError: it names none, and several have one
    """
    if isinstance(found, ConnectionsOfTeams):
        if team is None:
            raise SeveralTeamsError(found.of_team)
        named = found.of_team.get(team)
    else:
        named = found if team is None or found.team in (None, team) else None
    if named is None:
        raise UnknownConnectionError("the team that the address names has no connection with this id")
    return named


def find_connection(conn_id: str) -> Found | None:
    """Query Airflow's secrets backends in their order; blocks.

    With teams, a connection of all teams counts first, then the connections of the teams that have one.

    :raises LookupFailedError: a backend failed, or a connection cannot be read
    """
    if connection := _search(conn_id, None):
        return _reduced(connection, conn_id, None)
    of_teams = {team: connection for team in _teams() if (connection := _search(conn_id, team))}
    found = {team: ours for team, each in of_teams.items() if (ours := _reduced(each, conn_id, team))}
    return next(iter(found.values()), None) if len(found) < 2 else ConnectionsOfTeams(conn_id, found)


def _search(conn_id: str, team: str | None) -> Connection | None:
    """Return the connection of the first backend that has the id.

    :raises LookupFailedError: no backend has it, but some failed
    """
    from airflow.configuration import ensure_secrets_loaded

    arguments = {"conn_id": conn_id} if team is None else {"conn_id": conn_id, "team_name": team}
    failures = []
    for backend in ensure_secrets_loaded():
        if team is not None and "team_name" not in signature(backend.get_connection).parameters:
            continue  # it was written before there were teams, and was queried already
        try:
            connection: Connection | None = backend.get_connection(**arguments)
        except Exception as error:
            log.debug("A secrets backend failed", exc_info=True)
            failures.append(f"{type(backend).__name__} raised {type(error).__name__}")
            if type(error).__name__ == "AirflowSecretsBackendAccessDenied":
                break  # Airflow's rule: a connection that one backend denies must not come from another
        else:
            if connection:
                return connection
    if failures:
        raise LookupFailedError("; ".join(failures))
    return None


def _reduced(connection: Connection, conn_id: str, team: str | None) -> MediationConnection | None:
    if connection.conn_type != CONNECTION_TYPE:
        return None
    try:
        extra = json.loads(connection.extra or "{}")
        secret = connection.password
    except Exception as error:
        raise LookupFailedError(f"its password or extra cannot be read ({type(error).__name__})") from None
    return MediationConnection(
        conn_id=conn_id,
        team=getattr(connection, "team_name", None) or team,
        client_secret=secret,
        extra=extra,
        read_settings=partial(settings_of, conn_id, connection),
    )


def _teams() -> list[str]:
    from airflow.configuration import conf

    if not conf.getboolean("core", "multi_team", fallback=False):
        return []
    from airflow.models.team import Team

    try:
        return sorted(Team.get_all_team_names())
    except Exception as error:
        raise LookupFailedError(f"the names of the teams cannot be read ({type(error).__name__})") from None
