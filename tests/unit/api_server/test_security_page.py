"""The table of routes in docs/security.md is that of the application, with the answers that it names."""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING

import httpx
import pytest
from airflow.api_fastapi.core_api import security
from starlette.routing import Mount, Route

from airflow_mediation_provider.api_server import auth
from airflow_mediation_provider.api_server.app import create_app
from airflow_mediation_provider.api_server.connections import Connections, MediationConnection
from airflow_mediation_provider.journal.tables import Base
from tests.unit.api_server.pages.conftest import Manager
from tests.unit.api_server.routes import each_route

if TYPE_CHECKING:
    from starlette.routing import BaseRoute

PAGE = Path(__file__).parents[3] / "docs" / "security.md"
_ROUTE = re.compile(r"`(?:([A-Z]+) )?(/[^`]*)`")


def documented() -> dict[tuple[str, str], int]:
    """Each method and path with the answer to a request without proof."""
    table = PAGE.read_text().partition("## Who may call what")[2].partition("\n\n- ")[0]
    found: dict[tuple[str, str], int] = {}
    for row in table.splitlines():
        if not row.startswith("| `"):
            continue
        first, *_, last = (cell.strip() for cell in row.strip("|").split("|"))
        answer = re.match(r"\d{3}", last)
        assert answer is not None, row
        for method, path in _ROUTE.findall(first):
            assert (method, path) not in found, row
            found[method, path] = int(answer[0])
    return found


def routes(of: list[BaseRoute]) -> set[tuple[str, str]]:
    found: set[tuple[str, str]] = set()
    for each in each_route(of):
        if isinstance(each, Mount):
            found.add(("", each.path))
        else:
            assert isinstance(each, Route)
            found |= {(method, each.path.replace(":path", "")) for method in each.methods or ()}
    return found


def test_each_route_is_in_the_table() -> None:
    assert set(documented()) == routes(create_app().routes)


def test_each_table_is_among_what_is_stored() -> None:
    stored = PAGE.read_text().partition("## What is stored")[2].partition("\n## ")[0]
    assert set(re.findall(r"`(mediation_\w+)`", stored)) == set(Base.metadata.tables)


@pytest.mark.parametrize(("method", "path"), sorted(documented()))
async def test_a_request_without_proof_gets_the_answer_of_the_table(
    method: str, path: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for module in (security, auth):
        monkeypatch.setattr(module, "get_auth_manager", Manager)
    zuora = MediationConnection("zuora", None, "client-secret", {"callout_token": "a-token-of-zuora"})
    app = create_app(Connections({"zuora": zuora}.get))
    answer = documented()[method, path]
    address = path.format(conn_id="zuora") if method else f"{path}/mediation.css"
    async with httpx.AsyncClient(transport=httpx.ASGITransport(app=app), base_url="http://airflow") as client:
        reply = await client.request(method or "GET", address, content=b"{}")
        assert reply.status_code == answer
        if answer == 401 and path.startswith("/callouts/"):
            assert (await client.request(method, "/callouts/unknown", content=b"{}")).status_code == 404
