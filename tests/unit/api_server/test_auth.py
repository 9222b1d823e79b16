"""Which user and which site makes a request, and what the user may see: as Airflow's auth manager answers."""

from __future__ import annotations

from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import httpx
import pytest
from fastapi import FastAPI
from starlette.applications import Starlette
from starlette.routing import Mount

from airflow_mediation_provider.api_server import auth
from airflow_mediation_provider.api_server.auth import Reader, same_origin

if TYPE_CHECKING:
    from collections.abc import Collection

HERE = "http://airflow.internal:8080"
OUTSIDE = "https://airflow.example"


async def answered(headers: dict[str, str], root_path: str = "") -> int:
    """The status that a POST with these headers gets, where Airflow stands behind a proxy."""
    app = FastAPI()

    @app.post("/change", dependencies=[same_origin])
    def change() -> None: ...

    mounted = Starlette(routes=[Mount("/mediation", app)])
    transport = httpx.ASGITransport(app=mounted, root_path=root_path)
    async with httpx.AsyncClient(transport=transport, base_url=HERE) as client:
        return (await client.post(f"{root_path}/mediation/change", headers=headers)).status_code


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        # The header of a current browser decides, regardless of the others.
        ({"Sec-Fetch-Site": "same-origin"}, 200),
        ({"Sec-Fetch-Site": "same-origin", "Origin": OUTSIDE}, 200),
        ({"Sec-Fetch-Site": "same-origin", "Origin": "null"}, 200),
        ({"Sec-Fetch-Site": "cross-site"}, 403),
        ({"Sec-Fetch-Site": "cross-site", "Origin": OUTSIDE}, 403),
        ({"Sec-Fetch-Site": "same-site", "Origin": OUTSIDE}, 403),
        ({"Sec-Fetch-Site": "none"}, 403),
        ({"Sec-Fetch-Site": ""}, 403),
        ({"Sec-Fetch-Site": "Same-Origin"}, 403),
        # An old browser sends the origin of the page that makes the request.
        ({"Origin": HERE}, 200),
        ({"Origin": OUTSIDE}, 200),
        ({"Origin": "https://airflow.example:443"}, 403),
        ({"Origin": "http://airflow.example"}, 403),
        ({"Origin": "https://airflow.example.evil.example"}, 403),
        ({"Origin": "https://evil.example"}, 403),
        ({"Origin": "http://airflow.internal"}, 403),
        ({"Origin": "null"}, 403),
        ({"Origin": ""}, 403),
        ({"Origin": "airflow.example"}, 403),
        ({"Origin": "https://"}, 403),
        # A program sends none of them, and has no browser's cookie.
        ({}, 403),
        ({"Referer": f"{OUTSIDE}/airflow/mediation/sessions"}, 403),
    ],
)
async def test_only_pages_of_the_same_origin_may_change_anything(
    monkeypatch: pytest.MonkeyPatch, headers: dict[str, str], status: int
) -> None:
    monkeypatch.setenv("AIRFLOW__API__BASE_URL", f"{OUTSIDE}/airflow")
    assert await answered(headers, "/airflow") == status


@pytest.mark.parametrize("base_url", [None, "", "/airflow"])
async def test_without_a_configured_address_the_requests_own_address_counts(
    monkeypatch: pytest.MonkeyPatch, base_url: str | None
) -> None:
    if base_url is None:
        monkeypatch.delenv("AIRFLOW__API__BASE_URL", raising=False)
    else:
        monkeypatch.setenv("AIRFLOW__API__BASE_URL", base_url)
    assert await answered({"Origin": HERE}) == 200
    for origin in (OUTSIDE, "null", "", "://"):
        assert await answered({"Origin": origin}) == 403


class Asked:
    """An auth manager that keeps its calls, and allows what is named."""

    def __init__(self, *allowed: str) -> None:
        self.allowed = set(allowed)
        self.questions: list[tuple[Any, ...]] = []

    def is_authorized_asset(self, *, method: str, user: object) -> bool:
        self.questions.append(("asset", method, user))
        return method in self.allowed

    def is_authorized_connection(self, *, method: str, details: Any, user: object) -> bool:
        self.questions.append(("connection", method, details.conn_id, details.team_name, user))
        return details.conn_id in self.allowed

    def is_authorized_dag(self, *, method: str, access_entity: Any, details: Any, user: object) -> bool:
        self.questions.append(("dag", method, access_entity.value, details.id, details.team_name, user))
        return details.id in self.allowed


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> Asked:
    made = Asked("load", "zuora", "POST")
    monkeypatch.setattr(auth, "get_auth_manager", lambda: made)
    return made


ALICE: Any = SimpleNamespace(name="alice")


def test_a_reader_sees_the_dags_that_airflow_allows(asked: Asked) -> None:
    reader = Reader(ALICE)
    assert reader.sees_runs({"load", "secret"}) == {"load"}
    assert reader.sees_tasks(["load", "secret"]) == {"load"}
    assert reader.starts_runs(["load", "secret"]) == {"load"}
    assert sorted(asked.questions[:2]) == [
        ("dag", "GET", "RUN", "load", None, ALICE),
        ("dag", "GET", "RUN", "secret", None, ALICE),
    ]
    assert [question[1:4] for question in asked.questions[2:]] == [
        ("GET", "TASK_INSTANCE", "load"),
        ("GET", "TASK_INSTANCE", "secret"),
        ("POST", "RUN", "load"),
        ("POST", "RUN", "secret"),
    ]


def test_without_dags_the_auth_manager_is_not_called(asked: Asked) -> None:
    assert Reader(ALICE).sees_runs([]) == set()
    assert asked.questions == []


def test_the_auth_manager_is_called_once_for_each_connection(asked: Asked) -> None:
    reader = Reader(ALICE)
    assert [reader.reads_connection(each) for each in ("zuora", "other", "zuora", "other")] == [
        True,
        False,
        True,
        False,
    ]
    assert asked.questions == [
        ("connection", "GET", "zuora", None, ALICE),
        ("connection", "GET", "other", None, ALICE),
    ]


def test_only_users_with_the_permission_create_events(asked: Asked) -> None:
    assert Reader(ALICE).makes_events()
    asked.allowed.clear()
    assert not Reader(ALICE).makes_events()
    assert asked.questions == [("asset", "POST", ALICE)] * 2


def test_with_teams_each_call_names_the_team(asked: Asked, monkeypatch: pytest.MonkeyPatch) -> None:
    def teams(dag_ids: Collection[str]) -> dict[str, str | None]:
        return {dag_id: "blue" for dag_id in dag_ids if dag_id == "load"}

    monkeypatch.setenv("AIRFLOW__CORE__MULTI_TEAM", "True")
    monkeypatch.setattr(auth.DagModel, "get_dag_id_to_team_name_mapping", teams)
    monkeypatch.setattr(auth.Connection, "get_team_name", lambda conn_id: f"team of {conn_id}")
    reader = Reader(ALICE)
    assert reader.sees_runs(["load", "shared"]) == {"load"}
    assert reader.reads_connection("zuora")
    assert asked.questions == [
        ("dag", "GET", "RUN", "load", "blue", ALICE),
        ("dag", "GET", "RUN", "shared", None, ALICE),
        ("connection", "GET", "zuora", "team of zuora", ALICE),
    ]
