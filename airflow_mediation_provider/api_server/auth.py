"""Which user requests a page, and what they may see: Airflow's own auth manager decides.

Airflow mounts a plugin's application as it is and requires no login, so each route checks it.
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Annotated, Final
from urllib.parse import urlsplit

from airflow.api_fastapi.app import get_auth_manager
from airflow.api_fastapi.auth.managers.models.resource_details import (
    ConnectionDetails,
    DagAccessEntity,
    DagDetails,
)
from airflow.api_fastapi.core_api.security import GetUserDep, requires_access_asset
from airflow.configuration import conf
from airflow.models.connection import Connection
from airflow.models.dag import DagModel
from airflow.models.log import Log
from fastapi import Depends, Request
from starlette.exceptions import HTTPException

from airflow_mediation_provider.journal.transaction import write

if TYPE_CHECKING:
    from collections.abc import Collection

    from airflow.api_fastapi.auth.managers.base_auth_manager import ResourceMethod
    from airflow.api_fastapi.auth.managers.models.base_user import BaseUser
    from sqlalchemy.orm import Session

may_read_assets: Final = Depends(requires_access_asset("GET"))
"""What every page needs: sessions are behind assets."""
_LOG_SECONDS: Final = 5.0


class Reader:
    """The user of a request. Blocks: some auth managers query a database.

    :param user: the user as Airflow's auth manager returns it
    """

    def __init__(self, user: BaseUser) -> None:
        self._user = user
        self._connections: dict[tuple[str, str], bool] = {}

    @property
    def name(self) -> str:
        """The user's name, as Airflow's audit log has it."""
        return self._user.get_name()

    def log_action(self, event: str, *, dag_id: str | None = None, **details: object) -> None:
        """Write an action of the user into Airflow's audit log, before it is carried out, as Airflow's own routes do.

        :param event: its name
        :param dag_id: the Dag that it is about, if it is about one
        :param details: what it is about
        :raises JournalUnavailable: the database is not available
        """
        extra = json.dumps({**details, "method": "POST"}, default=str)

        def work(session: Session) -> None:
            session.add(Log(event, owner=self.name, owner_display_name=self.name, extra=extra, dag_id=dag_id))

        write(work, deadline_seconds=_LOG_SECONDS)

    def sees_runs(self, dag_ids: Collection[str]) -> set[str]:
        """Return the Dags whose runs the user may see."""
        return self._dags(dag_ids, "GET", DagAccessEntity.RUN)

    def sees_tasks(self, dag_ids: Collection[str]) -> set[str]:
        """Return the Dags whose task instances the user may see."""
        return self._dags(dag_ids, "GET", DagAccessEntity.TASK_INSTANCE)

    def starts_runs(self, dag_ids: Collection[str]) -> set[str]:
        """Return the Dags of which the user may start runs."""
        return self._dags(dag_ids, "POST", DagAccessEntity.RUN)

    def reads_connection(self, conn_id: str) -> bool:
        """Whether the user may read a connection: what Zuora sends over it is customers' data."""
        return self._connection(conn_id, "GET")

    def makes_events(self) -> bool:
        """Whether the user may create asset events, as a parsed callout does."""
        return get_auth_manager().is_authorized_asset(method="POST", user=self._user)

    def _connection(self, conn_id: str, method: ResourceMethod) -> bool:
        key = (conn_id, method)
        if key not in self._connections:
            details = ConnectionDetails(conn_id=conn_id, team_name=_team_of_connection(conn_id))
            self._connections[key] = get_auth_manager().is_authorized_connection(
                method=method, details=details, user=self._user
            )
        return self._connections[key]

    def _dags(self, dag_ids: Collection[str], method: ResourceMethod, entity: DagAccessEntity) -> set[str]:
        if not dag_ids:
            return set()
        teams = DagModel.get_dag_id_to_team_name_mapping(list(dag_ids)) if _has_teams() else {}
        manager = get_auth_manager()
        return {
            dag_id
            for dag_id in dag_ids
            if manager.is_authorized_dag(
                method=method,
                access_entity=entity,
                details=DagDetails(id=dag_id, team_name=teams.get(dag_id)),
                user=self._user,
            )
        }


def _reader(user: GetUserDep) -> Reader:
    return Reader(user)


ReaderDep = Annotated[Reader, Depends(_reader)]


def _same_origin(request: Request) -> None:
    """Refuse a request made by another site's page, which a browser would send with the user's cookie.

    Browsers send where a request comes from, and pages cannot change that. Behind a proxy this server may not have its
    own address, so the browser's own header for "same origin" comes first.

    :raises HTTPException: 403
    """
    site, origin = request.headers.get("sec-fetch-site"), request.headers.get("origin")
    if site is None and origin is not None:
        ours = {_origin(str(request.base_url)), _origin(conf.get("api", "base_url", fallback=None) or "")}
        # A page without an origin sends "null".
        site = "same-origin" if all(_origin(origin)) and _origin(origin) in ours else None
    if site != "same-origin":
        raise HTTPException(403, "This request comes from another site.")


def _origin(url: str) -> tuple[str, str]:
    parts = urlsplit(url)
    return parts.scheme, parts.netloc


same_origin: Final = Depends(_same_origin)
"""What every route that changes something needs in addition to its permission."""


def _has_teams() -> bool:
    return conf.getboolean("core", "multi_team", fallback=False)


def _team_of_connection(conn_id: str) -> str | None:
    return Connection.get_team_name(conn_id) if _has_teams() else None
