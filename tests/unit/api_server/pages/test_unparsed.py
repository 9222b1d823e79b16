"""The page of unparsed callouts: who sees their bodies, and the button that parses them again."""

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
    """The connection of each button, by its text."""
    return {
        form.one("button").text: form.one("input", name="conn").attributes["value"]
        for form in page.all("form", action="/mediation/unread/reparse", method="post")
    }


async def test_without_unparsed_callouts_the_page_has_a_message(alice: Browser) -> None:
    keep(told("R-1"))
    page = await alice.sees("/unread")
    assert page.one("p", class_="empty").text == "There are none."
    assert buttons(page) == {}


async def test_each_callout_is_shown_with_its_body_and_its_error(alice: Browser) -> None:
    keep(unread(), unread("x" * 3000, None, conn_id="other"), unread(body={"entry": {"a": 1}}))
    page = await alice.sees("/unread")
    assert sorted(tuple(row.values()) for row in page.cells()) == [
        ("2026-06-01 00:00:00 UTC", "other", "unknown", "x" * 2000),
        ("2026-06-01 00:00:00 UTC", "zuora", "no JSON", "<html>"),
        ("2026-06-01 00:00:00 UTC", "zuora", "unknown", "{'entry': {'a': 1}}"),
    ]
    assert buttons(page) == {"Parse those of other again": "other", "Parse those of zuora again": "zuora"}


async def test_the_body_is_only_for_users_who_may_read_the_connection(alice: Browser, manager: Manager) -> None:
    keep(unread("the customer's name"), unread("the other's", conn_id="other"))
    manager.deny("connection", "GET", "zuora")
    reply = await alice.get("/unread")
    assert "the customer" not in reply.text
    page = parsed(reply.text)
    assert {row["Connection"]: row["Body"] for row in page.cells()} == {
        "other": "the other's",
        "zuora": "only for users who may read the connection",
    }
    assert buttons(page) == {"Parse those of other again": "other"}


async def test_the_button_needs_permission_to_create_events_and_to_read_the_connection(
    alice: Browser, manager: Manager
) -> None:
    keep(unread(json.dumps(CHANGE)))
    for permission in [("asset", "POST"), ("connection", "GET", "zuora")]:
        manager.denied = {permission}
        assert buttons(await alice.sees("/unread")) == {}
        reply = await alice.post("/unread/reparse", conn="zuora")
        assert reply.status_code == 403
        assert "You may not create asset events or not read the connection, and this needs both." in reply.text
    assert sessions() == []


async def test_the_button_parses_callouts_again_and_their_changes_trigger_dags(
    alice: Browser, airflow: Airflow
) -> None:
    airflow.know("load", on_meter_session("2470", "COMPLETED", mediation_conn_id="zuora"))
    keep(unread(json.dumps(CHANGE)), unread("<html>"), unread(json.dumps(CHANGE), conn_id="other"))
    page = await alice.does("/unread/reparse", conn="zuora")
    notice = page.one("p", role="alert")
    assert (notice.classes, notice.text) == ({"notice", "l-good"}, "1 parsed and counted; 1 still unparsed.")
    assert sessions() == ["R-00005468"]
    assert airflow.runs("load") == ["R-00005468"]
    assert sorted(row["Connection"] for row in page.cells()) == ["other", "zuora"]
    page = await alice.does("/unread/reparse", conn="zuora")
    assert page.one("p", role="alert").text == "0 parsed and counted; 1 still unparsed."
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
