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
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import cached_property, partial
from inspect import signature
from typing import TYPE_CHECKING, Any, Final, TypeAlias

from airflow_mediation_provider.api_server.http import TtlMap
from airflow_mediation_provider.hooks.settings import CONNECTION_TYPE, settings_of
from airflow_mediation_provider.protocol.callouts.settings import CalloutSettings, callout_settings
from airflow_mediation_provider.protocol.ids import is_connection_id

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from airflow.models.connection import Connection

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
# Unknown ids that are cached. While the cache is full, an id that was never found is not looked up at all.
UNKNOWN_LIMIT: Final = 10_000
# How long a request waits for a look-up, which then continues and serves the next request.
PATIENCE_SECONDS: Final = 4.0


class UnknownConnectionError(Exception):
    """No backend has a connection with that id and of our type."""


class LookupFailedError(Exception):
    """It could not be found out whether there is such a connection; the message is for the log."""


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


_Answer: TypeAlias = MediationConnection | LookupFailedError | None


class Connections:
    """The look-up in one process of the API server, with a cache of known connections and of unknown ids.

    :param find: looks up a connection; blocks, so it runs in threads. Raises only :class:`LookupFailedError`
    :param clock: seconds of a monotonic clock
    """

    def __init__(
        self,
        find: Callable[[str], MediationConnection | None] | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._find, self._clock = find or find_connection, clock
        self._known: dict[str, tuple[float, MediationConnection]] = {}
        self._unknown: TtlMap[bool] = TtlMap(UNKNOWN_SECONDS, UNKNOWN_LIMIT, clock)
        self._failed: TtlMap[LookupFailedError] = TtlMap(FAILED_SECONDS, UNKNOWN_LIMIT, clock)
        self._asking: dict[str, Future[_Answer]] = {}
        self._lock = threading.Lock()
        # Invented ids have their own threads: they must not delay a connection that is in use.
        self._first_lookups = ThreadPoolExecutor(2, "mediation-first-lookup")
        self._refreshes = ThreadPoolExecutor(2, "mediation-refresh")

    async def get(self, conn_id: str) -> MediationConnection:
        """Return a connection as it was at most five seconds ago, or ten minutes ago while the backends fail.

        Waits for a look-up, if one is needed, for four seconds; one look-up serves all requests meanwhile.

        :raises UnknownConnectionError: no backend has it
        :raises LookupFailedError: it could not be found out whether one has
        """
        if not is_connection_id(conn_id):
            raise UnknownConnectionError(conn_id)
        answer = self._cached_or_started(conn_id)
        if isinstance(answer, Future):
            # Neither the time limit nor a caller that disconnects may cancel what others wait for.
            done, _ = await asyncio.wait([asyncio.wrap_future(answer)], timeout=PATIENCE_SECONDS)
            answer = done.pop().result() if done else LookupFailedError("the secrets backends take too long to answer")
        if isinstance(answer, LookupFailedError):
            connection = self._stale(conn_id)
            if connection is None:
                raise answer
            log.debug("The connection %s is used as it was: %s", conn_id, answer)
            return connection
        if answer is None:
            raise UnknownConnectionError(conn_id)
        return answer

    def _cached_or_started(self, conn_id: str) -> _Answer | Future[_Answer]:
        with self._lock:
            known = self._known.get(conn_id)
            age = self._clock() - known[0] if known else math.inf
            if known and age < KNOWN_SECONDS:
                if age > AHEAD_SECONDS and not (conn_id in self._asking or self._failed.get(conn_id)):
                    self._asking[conn_id] = self._refreshes.submit(self._ask, conn_id)
                return known[1]
            if self._unknown.get(conn_id):
                return None
            if failure := self._failed.get(conn_id):
                return failure
            if conn_id in self._asking:
                return self._asking[conn_id]
            if not known and len(self._unknown) + len(self._failed) + len(self._asking) >= UNKNOWN_LIMIT:
                return LookupFailedError("too many unknown connection ids were requested")
            pool = self._refreshes if known else self._first_lookups
            self._asking[conn_id] = asked = pool.submit(self._ask, conn_id)
            return asked

    def _ask(self, conn_id: str) -> _Answer:
        answer: _Answer
        try:
            answer = self._find(conn_id)
        except LookupFailedError as error:
            answer = error
        except Exception as error:
            log.exception("The look-up of a connection failed")
            answer = LookupFailedError(f"the look-up failed ({type(error).__name__})")
        with self._lock:
            if isinstance(answer, LookupFailedError):
                self._failed.add(conn_id, answer)
            elif answer is None and conn_id in self._known:
                del self._known[conn_id]
                # It may have been deleted in order to be created again; after a 404 Zuora would not call again.
                answer = LookupFailedError("the connection existed a moment ago, and does not now")
                self._failed.add(conn_id, answer)
            elif answer is None:
                self._unknown.add(conn_id, True)
            else:
                self._known[conn_id] = (self._clock(), answer)
            del self._asking[conn_id]
        return answer

    def _stale(self, conn_id: str) -> MediationConnection | None:
        at, connection = self._known.get(conn_id, (0.0, None))
        return connection if connection and self._clock() - at < STALE_SECONDS else None


def find_connection(conn_id: str) -> MediationConnection | None:
    """Query Airflow's secrets backends in their order; blocks.

    With teams, a connection of all teams counts first, then the connection of the one team that has it.

    :raises LookupFailedError: a backend failed, the connection cannot be read, or several teams have one
    """
    if connection := _search(conn_id, None):
        return _reduced(connection, conn_id, None)
    found = {team: connection for team in _teams() if (connection := _search(conn_id, team))}
    if len(found) > 1:
        raise LookupFailedError(f"several teams have a connection of this id: {', '.join(found)}")
    return next((_reduced(connection, conn_id, team) for team, connection in found.items()), None)


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
