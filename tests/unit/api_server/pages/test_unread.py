"""The callouts that nobody could read: who sees what came, and the button that has them read again."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import pytest
from airflow import settings
from sqlalchemy import select
from sqlalchemy.orm import Session

from airflow_mediation_provider.assets import on_meter_session
from airflow_mediation_provider.journal.tables import SessionRow
from tests.unit.api_server.pages.html import parsed
from tests.unit.api_server.signed import CHANGE
from tests.unit.journal.old_rows import NOW, keep, told

if TYPE_CHECKING:
    from tests.unit.api_server.pages.conftest import Browser, Directory, Manager
    from tests.unit.api_server.pages.html import Element
    from tests.unit.journal.scheduling import Airflow

pytestmark = pytest.mark.usefixtures("journal")


def unread(text: Any = "<html>", error: str | None = "no JSON", **values: Any) -> Any:
    body = {"text": text} if error is None else {"text": text, "error": error}
    return told(None, NOW, **{"kind": "unparsed", "status": None, "meter_id": None, "body": body, **values})


def sessions() -> list[str]:
    with Session(settings.get_engine()) as session:
        return list(session.scalars(select(SessionRow.session_id)))


def buttons(page: Element) -> dict[str, str]:
    """Whose callouts are read again, by what the button says."""
    return {
        form.one("button").text: form.one("input", name="conn").attributes["value"]
        for form in page.all("form", action="/mediation/unread/reparse", method="post")
    }


async def test_there_is_none(alice: Browser) -> None:
    keep(told("R-1"))
    page = await alice.sees("/unread")
    assert page.one("p", class_="empty").text == "There is none."
    assert buttons(page) == {}


async def test_each_with_what_came_and_why_it_could_not_be_read(alice: Browser) -> None:
    keep(unread(), unread("x" * 3000, None, conn_id="other"), unread(body={"entry": {"a": 1}}))
    page = await alice.sees("/unread")
    assert sorted(tuple(row.values()) for row in page.cells()) == [
        ("2026-06-01 00:00:00 UTC", "other", "unknown", "x" * 2000),
        ("2026-06-01 00:00:00 UTC", "zuora", "no JSON", "<html>"),
        ("2026-06-01 00:00:00 UTC", "zuora", "unknown", "{'entry': {'a': 1}}"),
    ]
    assert buttons(page) == {"Read those of other again": "other", "Read those of zuora again": "zuora"}


async def test_what_came_is_for_who_may_read_the_connection(alice: Browser, manager: Manager) -> None:
    keep(unread("the customer's name"), unread("the other's", conn_id="other"))
    manager.deny("connection", "GET", "zuora")
    reply = await alice.get("/unread")
    assert "the customer" not in reply.text
    page = parsed(reply.text)
    assert {row["Connection"]: row["What came"] for row in page.cells()} == {
        "other": "the other's",
        "zuora": "only for who may read the connection",
    }
    assert buttons(page) == {"Read those of other again": "other"}


async def test_only_who_may_make_events_and_read_the_connection_has_the_button(
    alice: Browser, manager: Manager
) -> None:
    keep(unread(json.dumps(CHANGE)))
    for permission in [("asset", "POST"), ("connection", "GET", "zuora")]:
        manager.denied = {permission}
        assert buttons(await alice.sees("/unread")) == {}
        reply = await alice.post("/unread/reparse", conn="zuora")
        assert reply.status_code == 403
        assert "Only who may make asset events and read the connection may do that." in reply.text
    assert sessions() == []


async def test_the_button_has_them_read_and_what_they_say_starts_dags(alice: Browser, airflow: Airflow) -> None:
    airflow.know("load", on_meter_session("2470", "COMPLETED", mediation_conn_id="zuora"))
    keep(unread(json.dumps(CHANGE)), unread("<html>"), unread(json.dumps(CHANGE), conn_id="other"))
    page = await alice.does("/unread/reparse", conn="zuora")
    notice = page.one("p", role="alert")
    assert (notice.classes, notice.text) == ({"notice", "l-good"}, "1 could be read and count now; 1 still cannot.")
    assert sessions() == ["R-00005468"]
    assert airflow.runs("load") == ["R-00005468"]
    assert sorted(row["Connection"] for row in page.cells()) == ["other", "zuora"]
    page = await alice.does("/unread/reparse", conn="zuora")
    assert page.one("p", role="alert").text == "0 could be read and count now; 1 still cannot."
    assert airflow.runs("load") == ["R-00005468"]


async def test_a_connection_that_cannot_be_used_is_named(alice: Browser, directory: Directory) -> None:
    directory["wrong"] = {"callout_hmac_secret": "s3cret", "callout_timezone": "Mars/Base"}
    for conn_id, sentence in {
        "gone": "There is no connection gone of type mediation.",
        "a b": "There is no connection a b of type mediation.",
        "wrong": "The connection wrong cannot be used: ",
    }.items():
        notice = (await alice.does("/unread/reparse", conn=conn_id)).one("p", role="alert")
        assert notice.classes == {"notice", "l-bad"}
        assert notice.text.startswith(sentence)
    directory.down = True
    notice = (await alice.does("/unread/reparse", conn="zuora")).one("p", role="alert")
    assert notice.text.startswith("The connection zuora cannot be used: ")
