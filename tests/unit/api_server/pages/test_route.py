"""Errors are pages too: with the right status, a sentence that helps, and the headers of every page."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

import pytest
from airflow import settings
from sqlalchemy import text

from airflow_mediation_provider.api_server.pages import sessions
from airflow_mediation_provider.journal.tables import Base
from airflow_mediation_provider.journal.transaction import JournalUnavailable
from tests.unit.api_server.pages.html import parsed
from tests.unit.journal.old_rows import keep, session_of

if TYPE_CHECKING:
    from collections.abc import Callable

    import httpx

    from tests.unit.api_server.pages.conftest import Browser

A_SESSION = {"conn": "zuora", "meter": "1001", "session": "R-1"}
A_TASK = {"dag_id": "load", "run_id": "r", "task_id": "wait"}


def said(reply: httpx.Response, status: int) -> str:
    """The text of the error page below its heading."""
    assert reply.status_code == status
    section = parsed(reply.text).one("section", class_="message")
    assert section.attributes["data-error"] == str(status)
    return section.all("p")[0].text


def secured(reply: httpx.Response) -> bool:
    policy = dict(directive.split(maxsplit=1) for directive in reply.headers["content-security-policy"].split("; "))
    assert policy["default-src"] == "'none'"
    assert policy["script-src"] == policy["style-src"] == policy["connect-src"] == policy["form-action"] == "'self'"
    assert policy["frame-ancestors"] == "'self'"
    assert "unsafe" not in str(policy)
    assert reply.headers["content-type"] == "text/html; charset=utf-8"
    assert reply.headers["x-content-type-options"] == "nosniff"
    assert reply.headers["referrer-policy"] == "same-origin"
    return bool(reply.headers["cache-control"] == "no-store")


@pytest.mark.usefixtures("journal")
async def test_no_answer_is_cached_or_loads_anything_from_another_origin(alice: Browser) -> None:
    keep(session_of("R-1"))
    for path in ("/sessions", "/sessions/chart", "/callouts", "/health"):
        reply = await alice.get(path)
        assert reply.status_code == 200
        assert secured(reply)
    for reply, status in [
        (await alice.get("/session", **A_SESSION), 200),
        (await alice.get("/session", **{**A_SESSION, "session": "R-2"}), 404),
        (await alice.get("/session"), 400),
        (await alice.post("/unread/reparse", conn="zuora", headers={}), 403),
    ]:
        assert reply.status_code == status
        assert secured(reply)
    alice.client.cookies.clear()
    reply = await alice.get("/sessions")
    assert reply.status_code == 401
    assert secured(reply)


@pytest.mark.usefixtures("journal")
async def test_pages_have_no_inline_style_or_script_which_the_policy_would_block(alice: Browser) -> None:
    keep(session_of("R-1"))
    for page in (await alice.sees("/sessions"), await alice.sees("/session", **A_SESSION)):
        assert [each for each in page.all() if "style" in each.attributes] == []
        assert page.all("style") == []
        assert [each.inside for each in page.all("script")] == [[]]
        assert [name for each in page.all() for name in each.attributes if name.startswith("on")] == []


@pytest.mark.usefixtures("journal")
@pytest.mark.parametrize(
    ("path", "asked", "sentence"),
    [
        (
            "/sessions",
            {"since": "yesterday"},
            "since=yesterday is not a valid time: write 2026-03-31T09:00, or one of 1h, 24h, 7d, 30d.",
        ),
        ("/sessions", {"status": "9" * 5000}, "A status has at most 64 characters."),
        ("/sessions", {"until": "2026-13-01"}, "until=2026-13-01 is not a valid time"),
        ("/sessions", {"since": "0001-01-01T00:00"}, "since=0001-01-01T00:00 is not a valid time"),
        ("/sessions", {"since": "9999-12-31T23:59Z"}, "since=9999-12-31T23:59Z is not a valid time"),
        ("/sessions/chart", {"until": "0001-01-01T00:00Z"}, "until=0001-01-01T00:00Z is not a valid time"),
        ("/sessions", {"since": "2026-03-31T09:00", "tz": "Mars/Base"}, "since=2026-03-31T09:00 is not a valid time"),
        ("/sessions", {"since": "2026-03-31T09:00", "tz": "../../etc/passwd"}, "is not a valid time"),
        ("/sessions", {"since": "2026-03-31T09:00", "tz": "A" * 300}, "is not a valid time"),
        ("/sessions", {"since": "2026-03-31T09:00", "tz": "Europe"}, "is not a valid time"),
        ("/sessions", {"group": "broken"}, "group=broken is not one of failed, ended, live, attention."),
        ("/sessions/chart", {"only": "odd"}, "only=odd is not one of uncertain, conflict, ambiguous, unknown, silent"),
        ("/sessions", {"sort": "meter"}, "sort=meter is not one of start, end, duration."),
        ("/sessions", {"longer": "30"}, "longer=30 is not a duration: write 90s, 45m, 2h, 1h 30m or 1d."),
        ("/sessions", {"longer": "999999d 999999d"}, "is not a duration"),
        ("/sessions", {"before": "1-2-3"}, "'1-2-3' is not a place in the list: go back to the newest sessions."),
        ("/sessions", {"after": "x"}, "'x' is not a place in the list"),
        ("/sessions", {"before": "0-99999999999999999999"}, "is not a place in the list"),
        ("/task", {**A_TASK, "map_index": "first"}, "map_index=first is not the index of a mapped task."),
        ("/task", {**A_TASK, "map_index": "-2"}, "map_index=-2 is not the index of a mapped task."),
        ("/task", {**A_TASK, "map_index": "9" * 30}, "is not the index of a mapped task."),
        ("/task", {"dag_id": "load"}, "Missing or invalid parameters: run_id, task_id."),
        ("/session", {"conn": "zuora"}, "Missing or invalid parameters: meter, session."),
        ("/sessions", {"meter": "1\0"}, "Missing or invalid parameters: meter."),
        ("/sessions/chart", {"status": "\0"}, "Missing or invalid parameters: status."),
        ("/session", {**A_SESSION, "session": "R\0"}, "Missing or invalid parameters: session."),
        ("/run", {"dag_id": "a\0", "run_id": "\0"}, "Missing or invalid parameters: dag_id, run_id."),
        ("/task", {**A_TASK, "map_index": "\0"}, "Missing or invalid parameters: map_index."),
    ],
)
async def test_an_invalid_address_is_a_400_page(
    alice: Browser, path: str, asked: dict[str, str], sentence: str
) -> None:
    assert sentence in said(await alice.get(path, **asked), 400)


@pytest.mark.usefixtures("journal")
async def test_so_many_statuses_are_searched_for_at_once(alice: Browser) -> None:
    for path in ("/sessions", "/sessions/chart"):
        for number, status in ((50, 200), (51, 400)):
            asked = {"status": [f"A{each}" for each in range(number)]}
            reply = await alice.client.get(f"{alice.base}/mediation{path}", params=asked)
            assert reply.status_code == status, reply.text
    assert "status is given 51 times, and 50 is the limit." in reply.text


async def test_an_invalid_form_is_a_400_page(alice: Browser) -> None:
    missing = "Missing or invalid parameters: "
    assert said(await alice.post("/unread/reparse"), 400) == f"{missing}conn."
    assert said(await alice.post("/unread/reparse", conn="a\0"), 400) == f"{missing}conn."
    assert said(await alice.post("/session/summary", conn="zuora", meter="1"), 400) == f"{missing}session."
    assert said(await alice.post("/session/replay", **A_SESSION), 400) == f"{missing}dag_id."


async def test_the_start_of_the_pages_leads_to_the_list(alice: Browser) -> None:
    reply = await alice.get("/")
    assert (reply.status_code, reply.headers["location"]) == (307, "/mediation/sessions")


@pytest.mark.parametrize("path", ["/nothere", "/session/", "/static/nothere"])
async def test_an_unknown_page_is_html_for_a_browser_and_json_for_a_program(stranger: Browser, path: str) -> None:
    browser = await stranger.client.get(f"/mediation{path}", headers={"Accept": "text/html,*/*;q=0.8"})
    assert said(browser, 404) == "There is no such page."
    assert secured(browser)
    for accept in ("*/*", "application/json"):
        program = await stranger.client.get(f"/mediation{path}", headers={"Accept": accept})
        assert (program.status_code, program.json()["success"]) == (404, False)


@pytest.mark.usefixtures("journal")
async def test_an_unknown_session_is_a_404_page(alice: Browser) -> None:
    sentence = said(await alice.get("/session", conn="zuora", meter="1001", session="R-404"), 404)
    assert sentence.startswith("The journal has no session R-404 of meter 1001 over connection zuora.")


async def test_any_parameter_is_found_or_not_found_in_any_database(alice: Browser, airflow_database: str) -> None:
    """PostgreSQL refuses values that SQLite accepts."""
    del airflow_database
    odd = "\ud7ff\ufffd\u202e%_'\";--\\"
    for name in ("conn", "meter", "status", "run_type"):
        for path in ("/sessions", "/sessions/chart"):
            assert (await alice.get(path, **{name: odd})).status_code == 200
    assert (await alice.get("/session", conn=odd, meter=odd, session=odd)).status_code == 404
    assert (await alice.get("/task", dag_id=odd, run_id=odd, task_id=odd, map_index=999_999_999)).status_code == 200
    assert (await alice.get("/run", dag_id=odd, run_id=odd)).status_code == 200
    for place in ("0-0", f"{'9' * 17}-{'9' * 18}"):
        assert (await alice.get("/sessions", before=place)).status_code == 200
        assert (await alice.get("/sessions", after=place)).status_code == 200


@pytest.mark.usefixtures("journal")
async def test_without_the_tables_the_command_is_named(alice: Browser) -> None:
    Base.metadata.drop_all(settings.get_engine())
    for path, asked in [
        ("/sessions", {}),
        ("/sessions/chart", {}),
        ("/session", A_SESSION),
        ("/task", A_TASK),
        ("/run", {"dag_id": "load", "run_id": "r"}),
        ("/callouts", {}),
        ("/health", {}),
    ]:
        reply = await alice.get(path, **asked)
        assert "run `airflow db migrate`" in said(reply, 503)
        assert secured(reply)


@pytest.mark.usefixtures("journal")
async def test_with_the_tables_of_an_older_version_too(alice: Browser) -> None:
    with settings.get_engine().begin() as connection:
        connection.execute(text("DROP TABLE mediation_calls"))
    assert "run `airflow db migrate`" in said(await alice.get("/health"), 503)


async def test_an_unavailable_database_is_a_503_page_and_logged(
    alice: Browser, monkeypatch: pytest.MonkeyPatch, said_log: Callable[[], list[str]]
) -> None:
    def away(_: object) -> None:
        raise JournalUnavailable("could not connect to server db.internal")

    monkeypatch.setattr(sessions, "read", away)
    for _ in range(3):
        assert said(await alice.get("/sessions"), 503) == "The API server's log has the reason."
    [line] = said_log()
    assert "A page was answered 503, path '/mediation/sessions': " in line
    assert "db.internal" in line


@pytest.fixture
def said_log(caplog: pytest.LogCaptureFixture) -> Callable[[], list[str]]:
    def errors() -> list[str]:
        return [each.getMessage() for each in caplog.records if each.levelno >= logging.WARNING]

    return errors
