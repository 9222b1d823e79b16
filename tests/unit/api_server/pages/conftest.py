"""The pages under ``/mediation`` of an Airflow whose auth manager allows what the test sets."""

from __future__ import annotations

import json
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, ClassVar

import httpx
import pytest
from airflow.api_fastapi.core_api import security
from airflow.models.connection import Connection
from jwt import ExpiredSignatureError, InvalidSignatureError
from starlette.applications import Starlette
from starlette.routing import Mount

from airflow_mediation_provider import version_compat
from airflow_mediation_provider.api_server import LazyApp, auth, internal
from airflow_mediation_provider.api_server.app import create_app
from airflow_mediation_provider.api_server.connections import (
    Connections,
    LookupFailedError,
    MediationConnection,
    _reduced,
)
from tests.unit.api_server.pages.html import Element, parsed
from tests.unit.journal.scheduling import Airflow

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable

HOST = "http://airflow.example:8080"
SAME_ORIGIN = {"Sec-Fetch-Site": "same-origin"}
Permission = tuple[str, ...]


@dataclass
class User:
    name: str

    def get_id(self) -> str:
        return self.name

    def get_name(self) -> str:
        return self.name


class Manager:
    """Airflow's auth manager: a user with a good token may do everything that is not denied."""

    def __init__(self) -> None:
        self.denied: set[Permission] = set()
        self.asked: list[Permission] = []

    def deny(self, *permission: str) -> None:
        """`asset`, `connection` or `dag`; the method; the entity of a Dag; the id."""
        self.denied.add(permission)

    def _allows(self, user: User, *permission: str) -> bool:
        assert user.name == "alice"
        self.asked.append(permission)
        return permission not in self.denied

    async def get_user_from_token(self, token: str) -> User:
        if token == "expired":
            raise ExpiredSignatureError
        if token != "good":
            raise InvalidSignatureError
        return User("alice")

    def is_authorized_asset(self, *, method: str, user: User, details: Any = None) -> bool:
        return self._allows(user, "asset", method)

    def is_authorized_connection(self, *, method: str, user: User, details: Any = None) -> bool:
        return self._allows(user, "connection", method, details.id if hasattr(details, "id") else details.conn_id)

    def is_authorized_dag(self, *, method: str, user: User, access_entity: Any = None, details: Any = None) -> bool:
        return self._allows(user, "dag", method, access_entity.value, details.id)


class Directory(dict[str, dict[str, Any]]):
    """Connections by id, each given by its extra; `down` while the backends fail, `fields` has the other fields."""

    down = False
    fields: ClassVar[dict[str, str]] = {"login": "client", "password": "secret"}

    def find(self, conn_id: str) -> MediationConnection | None:
        if self.down:
            raise LookupFailedError("VaultBackend raised ConnectionError")
        extra = self.get(conn_id)
        if extra is None:
            return None
        connection = Connection(conn_id=conn_id, conn_type="mediation", **self.fields)
        connection.set_extra(json.dumps({"data_center": "SBX", **extra}))
        return _reduced(connection, conn_id, None)


class Browser:
    """A user's browser."""

    def __init__(self, client: httpx.AsyncClient, base: str) -> None:
        self.client, self.base = client, base

    async def get(self, path: str, **asked: object) -> httpx.Response:
        return await self.client.get(f"{self.base}/mediation{path}", params={n: str(v) for n, v in asked.items()})

    async def post(self, path: str, *, headers: dict[str, str] | None = None, **form: str) -> httpx.Response:
        headers = SAME_ORIGIN if headers is None else headers
        return await self.client.post(f"{self.base}/mediation{path}", data=form, headers=headers)

    async def sees(self, path: str, **asked: object) -> Element:
        """The parsed page, which must be one."""
        reply = await self.get(path, **asked)
        assert reply.status_code == 200, reply.text
        return parsed(reply.text)

    async def does(self, path: str, **form: str) -> Element:
        """The parsed page after a button was pressed."""
        reply = await self.post(path, **form)
        assert reply.status_code == 200, reply.text
        return parsed(reply.text)


@pytest.fixture(autouse=True)
def frames(monkeypatch: pytest.MonkeyPatch) -> None:
    """Airflow frames each page, as only Airflow 3.3 does."""
    monkeypatch.setattr(version_compat, "AIRFLOW_V_3_3_PLUS", True)


@pytest.fixture
def manager(monkeypatch: pytest.MonkeyPatch) -> Manager:
    made = Manager()
    for module in (security, auth):
        monkeypatch.setattr(module, "get_auth_manager", lambda: made)
    return made


@pytest.fixture
def directory() -> Directory:
    return Directory(zuora={"callout_hmac_secret": "s3cret-of-zuora"})


@pytest.fixture
def base_path() -> str:
    """The path under which a reverse proxy shows Airflow."""
    return ""


@pytest.fixture
async def pages(directory: Directory, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[LazyApp]:
    monkeypatch.setattr(internal, "WRITE_SECONDS", 0.0)
    made = create_app(Connections(directory.find, lambda: 0.0))
    yield LazyApp(lambda: made)
    # A thread that still writes would outlive its database.
    if made.state.calls._writing is not None:
        await made.state.calls._writing
    await made.state.receipts.flush()


@pytest.fixture
async def stranger(pages: LazyApp, manager: Manager, base_path: str) -> AsyncIterator[Browser]:
    """Without a login."""
    del manager
    transport = httpx.ASGITransport(app=Starlette(routes=[Mount("/mediation", pages)]), root_path=base_path)
    async with httpx.AsyncClient(transport=transport, base_url=HOST) as client:
        yield Browser(client, base_path)


@pytest.fixture
async def alice(stranger: Browser) -> Browser:
    stranger.client.cookies.set("_token", "good")
    return stranger


@pytest.fixture
def journal(sqlite_database: str, airflow_on: Callable[[str], str]) -> str:
    """An empty journal."""
    return airflow_on(sqlite_database)


@pytest.fixture
def airflow(journal: str) -> Airflow:
    """Airflow with Dags and runs, and an empty journal."""
    del journal
    return Airflow()


def now() -> datetime:
    return datetime.now(UTC)
