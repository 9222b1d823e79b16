"""All routes of the application, as they are registered: what each requires before it returns data."""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from fastapi.dependencies.utils import get_flat_dependant
from fastapi.routing import APIRoute
from starlette.routing import Mount

from airflow_mediation_provider.api_server import LazyApp
from airflow_mediation_provider.api_server import pages as package
from airflow_mediation_provider.api_server.app import create_app
from airflow_mediation_provider.api_server.connections import Connections
from airflow_mediation_provider.api_server.pages import missing_runs
from airflow_mediation_provider.api_server.pages.rendering import PageRoute
from tests.unit.api_server.conftest import Directory
from tests.unit.api_server.pages.conftest import SAME_ORIGIN
from tests.unit.api_server.pages.html import parsed
from tests.unit.api_server.routes import each_route
from tests.unit.api_server.signed import Sent

if TYPE_CHECKING:
    from tests.unit.api_server.pages.conftest import Browser, Manager

# They authenticate by signatures, and one of them returns no data.
MACHINES = {
    *((method, "/callouts/{conn_id:path}") for method in ("POST", "PUT", "PATCH", "GET", "HEAD", "DELETE", "OPTIONS")),
    ("POST", "/feed"),
    ("POST", "/history"),
    ("POST", "/observations"),
    ("POST", "/prune"),
    ("POST", "/reconcile"),
    ("GET", "/handshake"),
}
APP = create_app(Connections(Directory(zuora={"callout_hmac_secret": "s3cret-of-zuora"}).find, lambda: 0.0))
ALL = list(each_route(APP.routes))
ROUTES = {(method, route.path): route for route in ALL if isinstance(route, APIRoute) for method in route.methods}
PAGES = [which for which in ROUTES if which not in MACHINES]
WRITING = [which for which in PAGES if which[0] != "GET"]
# Parameters that may have several values.
SEVERAL = ["group", "only", "status"]
each_page = pytest.mark.parametrize(("method", "path"), PAGES)


@pytest.fixture
def pages() -> LazyApp:
    """Return one application for all tests: refused requests change nothing in it, and creating one is slow."""
    return LazyApp(lambda: APP)


def test_all_routes_are_pages_machine_routes_or_files() -> None:
    assert set(ROUTES) >= MACHINES
    others = [route for route in ALL if not isinstance(route, APIRoute)]
    assert [(type(route), getattr(route, "path", "")) for route in others] == [(Mount, "/static")]
    assert {path for _, path in PAGES} == {
        "/", "/sessions", "/sessions.json", "/sessions/chart", "/session", "/session/summary", "/session/replay",
        "/missing-runs", "/missing-runs/start",
        "/task", "/run", "/unread", "/unread/reparse", "/health",
        "/callouts", "/connection", "/callout", "/callout/reparse", "/callout/acknowledge",
        "/meter", "/dag",
    }  # fmt: skip


@each_page
def test_a_page_is_always_html_and_reads_or_writes(method: str, path: str) -> None:
    assert isinstance(ROUTES[method, path], PageRoute)
    assert method in ("GET", "POST")
    assert ROUTES[method, path].methods == {method}


def test_fastapi_reads_no_body_before_the_checks_of_a_route() -> None:
    assert [which for which, route in ROUTES.items() if route.body_field is not None] == []


@pytest.mark.parametrize("path", [path for _, path in WRITING])
@pytest.mark.parametrize("kind", ["multipart/form-data; boundary=x", "application/x-www-form-urlencoded", "text/plain"])
async def test_without_a_login_nothing_of_a_body_is_read(
    pages: LazyApp, manager: Manager, path: str, kind: str
) -> None:
    sent = Sent(pages, path, {"Content-Type": kind, "Content-Length": "300000000", **SAME_ORIGIN}, size=300_000_000)

    status, _, _ = await sent.answer()

    assert (status, sent.read, manager.asked) == (401, 0, [])


CHUNK = 64 * 1024
LIMITS = {"/missing-runs/start": missing_runs.FORM_LIMIT}


@pytest.mark.parametrize("path", [path for _, path in WRITING])
@pytest.mark.parametrize(
    ("kind", "announced", "status"),
    [
        ("multipart/form-data; boundary=x", True, 400),
        ("application/x-www-form-urlencoded", True, 413),
        ("application/x-www-form-urlencoded", False, 413),
    ],
)
async def test_with_a_login_a_form_has_a_limit_and_no_files(
    pages: LazyApp, manager: Manager, path: str, kind: str, announced: bool, status: int
) -> None:
    headers = {"Content-Type": kind, "Cookie": "_token=good", **SAME_ORIGIN}
    sent = Sent(pages, path, headers | ({"Content-Length": "300000000"} if announced else {}), size=300_000_000)

    answer = await sent.answer()

    # Up to the first part of the body that is beyond the limit.
    read = 0 if announced else (LIMITS.get(path, CHUNK) // CHUNK + 1) * CHUNK
    assert (answer[0], sent.read) == (status, read)


@each_page
@pytest.mark.parametrize("token", [None, "expired", "forged"])
async def test_without_a_login_a_page_shows_only_that(
    stranger: Browser, manager: Manager, method: str, path: str, token: str | None
) -> None:
    if token:
        stranger.client.cookies.set("_token", token)
    reply = await stranger.client.request(method, f"/mediation{path}", headers=SAME_ORIGIN)
    assert reply.status_code == 401
    if path.endswith(".json"):
        assert reply.json() == {"error": "Your login has expired, or there was none. Please log in."}
        return
    page = parsed(reply.text)
    assert page.one("h1").text == "You are not logged in"
    assert page.one("a", data_login="").attributes["href"] == "/api/v2/auth/login"
    assert manager.asked == []


@each_page
async def test_a_user_who_may_not_read_assets_sees_nothing(
    alice: Browser, manager: Manager, method: str, path: str
) -> None:
    manager.deny("asset", "GET")
    reply = await alice.client.request(method, f"/mediation{path}", headers=SAME_ORIGIN)
    assert reply.status_code == 403
    if path.endswith(".json"):
        assert reply.json() == {"error": "Your role in Airflow lacks the permission to read assets."}
    else:
        assert parsed(reply.text).one("h1").text == "Access denied"
    assert manager.asked == [("asset", "GET")]


@each_page
async def test_an_unknown_or_doubled_parameter_is_refused_in_a_sentence(alice: Browser, method: str, path: str) -> None:
    names = sorted({each.alias for each in get_flat_dependant(ROUTES[method, path].dependant).query_params})
    twice = [(name, "1") for name in names for _ in range(2)]
    reply = await alice.client.request(
        method, f"/mediation{path}", params=[("colour", "<red>"), *twice], headers=SAME_ORIGIN
    )
    assert reply.status_code == 400
    json = path.endswith(".json")
    text = reply.json()["error"] if json else parsed(reply.text).one("section", data_error="400").all("p")[0].text
    once = [name for name in names if f"parameter {name} given 2 times" not in text]
    assert text.startswith("Unknown parameter colour")
    assert once == [name for name in SEVERAL if path.startswith("/sessions")]


async def test_a_token_in_a_header_is_a_login_too(stranger: Browser, manager: Manager) -> None:
    """As scripts send it; a good cookie does not replace a bad token."""
    manager.deny("asset", "GET")
    for token, status in [("good", 403), ("expired", 401), ("forged", 401)]:
        stranger.client.cookies.set("_token", "good")
        reply = await stranger.client.get("/mediation/sessions", headers={"Authorization": f"Bearer {token}"})
        assert reply.status_code == status


@pytest.mark.parametrize(("method", "path"), WRITING)
async def test_a_form_of_another_site_is_refused(alice: Browser, method: str, path: str) -> None:
    for headers in ({}, {"Sec-Fetch-Site": "cross-site"}, {"Origin": "https://evil.example"}):
        reply = await alice.client.request(method, f"/mediation{path}", headers=headers)
        assert reply.status_code == 403
        section = parsed(reply.text).one("section", data_error="403")
        assert [each.text for each in section.all("p")] == ["This request comes from another site."]


@pytest.mark.parametrize(("method", "path"), sorted(MACHINES))
async def test_machine_routes_do_not_accept_a_users_login(alice: Browser, method: str, path: str) -> None:
    reply = await alice.client.request(
        method, f"/mediation{path.replace('{conn_id:path}', 'zuora')}", headers=SAME_ORIGIN
    )
    if path == "/handshake":
        assert set(reply.json()) == {"service", "protocol", "version"}
    else:
        assert reply.status_code == (401 if method in ("POST", "PUT", "PATCH") else 405)
        assert method == "HEAD" or reply.json()["success"] is False


@each_page
async def test_another_method_is_refused(alice: Browser, method: str, path: str) -> None:
    others = {"GET", "POST", "PUT", "DELETE", "PATCH"} - {each for each, of in PAGES if of == path}
    for other in sorted(others):
        assert (await alice.client.request(other, f"/mediation{path}", headers=SAME_ORIGIN)).status_code == 405


async def test_static_files_need_no_login_and_no_others_are_served(stranger: Browser) -> None:
    folder = Path(package.__file__).parent / "static"
    kinds = {".css": "text/css", ".js": "text/javascript", ".svg": "image/svg+xml"}
    files = list(folder.iterdir())
    assert {file.suffix for file in files} == set(kinds)
    for file in files:
        reply = await stranger.get(f"/static/{file.name}")
        assert (reply.status_code, reply.content) == (200, file.read_bytes())
        assert reply.headers["content-type"].partition(";")[0] == kinds[file.suffix]
    for other in ("", "nothing.js", "../templates/base.html", "%2e%2e/templates/base.html", "..%2fsession.py"):
        assert (await stranger.get(f"/static/{other}")).status_code == 404


def test_static_files_refer_to_no_other_origin() -> None:
    for file in (Path(package.__file__).parent / "static").iterdir():
        named = re.findall(r"//[\w.-]+\.\w[^\s\"']*", file.read_text())
        assert set(named) <= {"//www.w3.org/2000/svg"}, file
