"""Every route of the application: without a login, with a login without permission, and from another site."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import httpx
import pytest
from fastapi.routing import APIRoute
from starlette.routing import Mount

from airflow_mediation_provider.api_server.app import create_app
from airflow_mediation_provider.api_server.pages.rendering import PageRoute
from airflow_mediation_provider.protocol.urls import MOUNT
from testkit.stage import CONN_ID
from tests.e2e import people
from tests.e2e.scene import METER

if TYPE_CHECKING:
    from testkit.client import AirflowClient
    from testkit.stage import Stage
    from tests.e2e.scene import Scene

# The routes of machines, and their answers without authentication; the handshake only identifies the server.
CALLOUTS = "/callouts/{conn_id:path}"
MACHINES = {
    **{(method, CALLOUTS): 401 for method in ("POST", "PUT", "PATCH")},
    # Counted, and refused.
    **{(method, CALLOUTS): 405 for method in ("GET", "HEAD", "DELETE", "OPTIONS")},
    ("POST", "/history"): 401,
    ("POST", "/feed"): 401,
    ("POST", "/observations"): 401,
    ("POST", "/prune"): 401,
    ("POST", "/reconcile"): 401,
    ("GET", "/handshake"): 200,
}
MISSING = json.dumps([people.ONE_DAG, CONN_ID, METER, "R-1", "COMPLETED"])
FORMS = {
    "/missing-runs/start": {"run": MISSING},
    "/session/summary": {"conn": CONN_ID},
    "/session/replay": {"conn": CONN_ID, "dag_id": people.ONE_DAG},
    "/unread/reparse": {"conn": CONN_ID},
    "/callout/reparse": {"conn": CONN_ID},
    "/callout/acknowledge": {"conn": CONN_ID, "kind": "refused"},
}


@pytest.fixture(params=["simple", "fab"])
def airflow(request: pytest.FixtureRequest, stage: Stage) -> AirflowClient:
    """Airflow with each of the auth managers."""
    return request.getfixturevalue("fab") if request.param == "fab" else stage.airflow


@pytest.fixture(scope="module")
def routes() -> dict[tuple[str, str], APIRoute]:
    """All routes but the mounted files, by method and path."""
    found = [route for route in create_app().routes if isinstance(route, APIRoute)]
    return {(method, route.path): route for route in found for method in route.methods}


def ask(
    airflow: AirflowClient, scene: Scene, method: str, path: str, user: str | None = None, site: str = "same-origin"
) -> httpx.Response:
    """Request as a user's browser does on a page of a site."""
    address = scene.pages.get(path, path.replace("{conn_id:path}", CONN_ID))
    return httpx.request(
        method,
        f"{airflow.url}{MOUNT}{address}",
        headers={"Sec-Fetch-Site": site},
        cookies={"_token": airflow.token(people.login(user))} if user else {},
        data={**scene.key, **FORMS[path]} if path in FORMS else None,
        trust_env=False,
        timeout=30,
    )


def test_each_route_is_a_page_a_machine_route_or_a_file(routes: dict[tuple[str, str], APIRoute], scene: Scene) -> None:
    pages = {key for key, route in routes.items() if isinstance(route, PageRoute)}
    shown = {("GET", path) for path in (*scene.pages, "/sessions.json")}
    assert pages == shown | {("POST", path) for path in FORMS}
    assert set(routes) - pages == set(MACHINES)
    others = [route for route in create_app().routes if not isinstance(route, APIRoute)]
    assert [(type(route), getattr(route, "path", None)) for route in others] == [(Mount, "/static")]


def test_without_a_login_no_route_returns_data(
    airflow: AirflowClient, routes: dict[tuple[str, str], APIRoute], scene: Scene
) -> None:
    answers = {key: ask(airflow, scene, *key) for key in routes}
    assert {key: answer.status_code for key, answer in answers.items()} == {
        key: MACHINES.get(key, 401) for key in routes
    }
    assert [key for key, answer in answers.items() if scene.session_id in answer.text] == []


def test_without_a_permission_no_page_returns_data(
    airflow: AirflowClient, routes: dict[tuple[str, str], APIRoute], scene: Scene
) -> None:
    pages = [key for key in routes if key not in MACHINES]
    answers = {key: ask(airflow, scene, *key, user=people.NOBODY) for key in pages}
    assert {key: answer.status_code for key, answer in answers.items()} == dict.fromkeys(pages, 403)
    assert [key for key, answer in answers.items() if scene.session_id in answer.text] == []


def test_a_user_who_may_only_read_changes_nothing(airflow: AirflowClient, scene: Scene) -> None:
    answers = {path: ask(airflow, scene, "POST", path, user="viewer").status_code for path in FORMS}
    assert answers == dict.fromkeys(FORMS, 403)


@pytest.mark.parametrize("site", ["cross-site", "same-site", "none"])
def test_from_another_site_nothing_is_changed(stage: Stage, scene: Scene, site: str) -> None:
    answers = {path: ask(stage.airflow, scene, "POST", path, people.ADMIN, site) for path in FORMS}
    assert {path: answer.status_code for path, answer in answers.items()} == dict.fromkeys(FORMS, 403)
    assert all("another site" in answer.text for answer in answers.values())


def test_a_user_with_permission_succeeds_from_airflow_itself(stage: Stage, scene: Scene) -> None:
    """This shows that the requests above were refused for their origin."""
    answers = {path: ask(stage.airflow, scene, "POST", path, people.ADMIN).status_code for path in FORMS}
    assert answers == dict.fromkeys(FORMS, 200)


def test_pages_may_be_framed_by_airflow_alone_and_load_nothing_from_elsewhere(stage: Stage, scene: Scene) -> None:
    for path in scene.pages:
        headers = ask(stage.airflow, scene, "GET", path, people.ADMIN).headers
        policy = headers["content-security-policy"].split("; ")
        assert {"default-src 'none'", "frame-ancestors 'self'", "script-src 'self'"} <= set(policy)
        assert headers["cache-control"] == "no-store"
