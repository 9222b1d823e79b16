"""The pages of callouts: which are listed, who sees what of them, and the buttons that read and acknowledge them."""

from __future__ import annotations

import json
from datetime import timedelta
from typing import TYPE_CHECKING, Any

import pytest
from airflow import settings
from airflow.models.log import Log
from sqlalchemy import select
from sqlalchemy.orm import Session

from airflow_mediation_provider.assets import on_meter_session
from airflow_mediation_provider.journal.receipts import Seen, record_receipts
from airflow_mediation_provider.journal.tables import SessionRow, TransitionRow
from airflow_mediation_provider.protocol.callouts.receipt import NO_CONNECTION, Receipt
from tests.unit.api_server.pages.conftest import now
from tests.unit.api_server.pages.html import asked, parsed
from tests.unit.api_server.signed import BODY, CHANGE, signature
from tests.unit.journal.old_rows import NOW, keep, session_of, told

if TYPE_CHECKING:
    from datetime import datetime

    from airflow_mediation_provider.api_server import LazyApp
    from tests.unit.api_server.pages.conftest import Browser, Directory, Manager
    from tests.unit.api_server.pages.html import Element
    from tests.unit.journal.scheduling import Airflow

pytestmark = pytest.mark.usefixtures("journal")


def unreadable(text: Any = "<html>", error: str | None = "no JSON", **values: Any) -> Any:
    body = {"text": text} if error is None else {"text": text, "error": error}
    return told(None, NOW, **{"kind": "unparsed", "status": None, "meter_id": None, "body": body, **values})


def ago(**span: float) -> datetime:
    return now() - timedelta(**span)


def saw(status: int, at: datetime | None = None, conn_id: str = "zuora", **more: Any) -> None:
    seen = Seen()
    seen.add(Receipt(conn_id=conn_id, received_at=at or now(), status=status, **more))
    record_receipts(seen)


def rows(*columns: Any) -> list[Any]:
    with Session(settings.get_engine()) as session:
        return [tuple(row) for row in session.execute(select(*columns))]


def sessions() -> list[str]:
    return [session_id for (session_id,) in rows(SessionRow.session_id)]


def logged() -> list[tuple[str, str, Any]]:
    """Airflow's audit log: event, user and details."""
    return [(event, owner, json.loads(extra)) for event, owner, extra in rows(Log.event, Log.owner, Log.extra)]


def buttons(page: Element) -> dict[str, dict[str, str]]:
    """The fields of each button's form, by its text."""
    return {
        form.one("button").text: {
            "action": form.attributes["action"],
            **{each.attributes["name"]: each.attributes["value"] for each in form.all("input")},
        }
        for form in page.all("form", method="post")
    }


async def press(alice: Browser, page: Element, button: str) -> Element:
    """The page after a button of a page was pressed."""
    form = buttons(page)[button]
    return await alice.does(form.pop("action").removeprefix("/mediation"), **form)


async def listed(alice: Browser, **parameters: object) -> list[dict[str, str]]:
    return [row for row in (await alice.sees("/callouts", **parameters)).cells() if "Received" in row]


async def send(alice: Browser, pages: LazyApp, secret: str = "s3cret-of-zuora", number: int = 1) -> int:
    """Send a callout, and wait until its receipt is stored."""
    headers = {**signature(BODY, secret), "Zuora-Notification-Id": f"n-{number}", "Content-Type": "application/json"}
    reply = await alice.client.post(f"{alice.base}/mediation/callouts/zuora", content=BODY, headers=headers)
    await pages._built().state.receipts.flush()
    return reply.status_code


async def test_without_callouts_the_page_has_a_message(alice: Browser) -> None:
    page = await alice.sees("/callouts")
    assert page.one("p", class_="empty").text == "No callout has been received yet."
    assert buttons(page) == {}


async def test_each_kind_is_listed_with_its_answer_and_what_was_read(alice: Browser, pages: LazyApp) -> None:
    assert [await send(alice, pages, "yesterdays"), await send(alice, pages), await send(alice, pages)] == [
        401,
        200,
        200,
    ]
    keep(unreadable(created_at=ago(seconds=1)))

    newest, accepted, refused = await listed(alice)
    assert accepted["Content"] == "R-00005468 of meter 2470: RUNNING → COMPLETED"
    assert (accepted["Answer"], accepted["Authentication"], accepted["Attempt"]) == ("200", "proven", "2")
    assert accepted["Size"] == f"{len(BODY)} B"
    assert newest["Content"].startswith("duplicate of 20")
    assert newest["Content"].endswith(": R-00005468 of meter 2470: RUNNING → COMPLETED")
    assert refused["Content"] == "not read"
    assert (refused["Answer"][:4], refused["Authentication"]) == ("401 ", "refused")

    kinds = {kind: len(await listed(alice, kind=kind)) for kind in ("accepted", "refused", "duplicate", "unreadable")}
    assert kinds == {"accepted": 2, "refused": 1, "duplicate": 1, "unreadable": 1}
    [row] = await listed(alice, session="R-00005468")
    assert row["Content"] == accepted["Content"]
    assert await listed(alice, session="R-00005468", meter="2471") == []
    assert await listed(alice, session="R-1", conn="zuora") == []
    assert await listed(alice, since="2026-01-01T00:00", until="2026-01-02T00:00") == []
    assert len(await listed(alice, since="24h")) == 3


async def test_the_page_of_a_callout_has_all_that_is_kept(alice: Browser, pages: LazyApp) -> None:
    for secret in ("yesterdays", "s3cret-of-zuora", "s3cret-of-zuora"):
        await send(alice, pages, secret)
    links = [
        each.attributes["href"]
        for each in (await alice.sees("/callouts")).all("a")
        if each.attributes["href"].startswith("/mediation/callout?receipt=")
    ]
    assert len(links) == 3
    duplicate, accepted, refused = [await alice.sees("/callout", **asked(link)[1]) for link in links]
    for page, content in ((accepted, "R-00005468 of meter"), (duplicate, "duplicate of"), (refused, "not read")):
        facts = {each.one("dt").text: each.one("dd").text for each in page.all("dl")[0].all("div")}
        assert facts["Content"].startswith(content)
        assert facts["Notification"] == "n-1"
        [attempts] = [table for table in page.all("table") if "notification id" in table.one("caption").text]
        assert [row.all("td")[2].text for row in attempts.one("tbody").all("tr")] == ["401", "200", "200"]
        headers = page.one("pre", aria_label="Headers").text
        assert "content-type: application/json" in headers
        assert "s3cret" not in headers
    assert "COMPLETED" in refused.one("pre", aria_label="Body").text
    assert json.loads(accepted.one("pre", aria_label="Body").text) == CHANGE
    read = {each.one("dt").text: each.one("dd").text for each in accepted.all("dl")[1].all("div")}
    assert (read["Session"], read["Meter"], read["From"], read["To"]) == ("R-00005468", "2470", "RUNNING", "COMPLETED")
    assert accepted.links()["R-00005468"] == "/mediation/session?conn=zuora&meter=2470&session=R-00005468"


async def test_a_callout_whose_row_was_pruned_and_one_without_a_receipt_are_shown(alice: Browser) -> None:
    saw(200, notification_id="n-9", transition_id=99)
    keep(told("R-1", NOW, notification_id="n-1"), session_of("R-1", NOW))
    [row] = await listed(alice)
    assert row["Content"] == "its row was deleted"
    [row] = await listed(alice, session="R-1")
    assert (row["Answer"], row["Content"]) == ("no receipt", "R-1 of meter 1001: RUNNING")
    page = await alice.sees("/callout", row=1)
    assert "Its answer and headers are not kept." in page.text


async def test_older_callouts_are_on_further_pages(alice: Browser) -> None:
    for number in range(55):
        saw(401, ago(minutes=number), body_size=number)
    page = await alice.sees("/callouts")
    first = [row["Size"] for row in page.cells() if "Size" in row]
    path, parameters = asked(page.one("a", id="older").attributes["href"])
    assert path == "/mediation/callouts"
    following = await alice.sees("/callouts", **parameters)
    second = [row["Size"] for row in following.cells() if "Size" in row]
    assert first + second == [f"{number} B" for number in range(55)]
    assert not following.all("a", id="older")
    assert following.links()["Newest"] == "/mediation/callouts"


@pytest.mark.parametrize(
    ("parameters", "sentence"),
    [
        ({"kind": "lost"}, "kind=lost is not one of accepted, refused, unreadable, duplicate."),
        ({"answer": "401"}, "answer needs kind=refused."),
        ({"answer": "4O1", "kind": "refused"}, "answer=4O1 is not an HTTP status."),
        ({"acknowledged": "no"}, "acknowledged needs kind=refused or kind=unreadable."),
        ({"acknowledged": "yes", "kind": "refused"}, "acknowledged=yes is not no."),
        ({"session": "R-1", "kind": "accepted"}, "session and kind cannot be combined"),
        ({"meter": "1"}, "meter needs a session."),
        ({"since": "yesterday"}, "since=yesterday is not a valid time"),
        ({"before": "x"}, "'x' is not a place in the list: go back to the newest callouts."),
    ],
)
async def test_an_invalid_filter_is_refused_in_a_sentence(
    alice: Browser, parameters: dict[str, str], sentence: str
) -> None:
    reply = await alice.get("/callouts", **parameters)
    assert reply.status_code == 400
    assert parsed(reply.text).one("section", data_error="400").all("p")[0].text.startswith(sentence)


async def test_a_callout_is_named_by_one_number(alice: Browser) -> None:
    for parameters, status in [
        ({}, 400), ({"receipt": "1", "row": "1"}, 400), ({"receipt": "one"}, 400), ({"receipt": "9" * 40}, 400),
        ({"receipt": "7"}, 404), ({"row": "7"}, 404),
    ]:  # fmt: skip
        assert (await alice.get("/callout", **parameters)).status_code == status


async def test_without_the_permission_to_read_a_connection_only_counts_are_shown(
    alice: Browser, manager: Manager
) -> None:
    saw(401, reason="the customer's secret", body="the customer's name", notification_id="n-1")
    saw(401, conn_id="other", body_size=7)
    saw(404, conn_id=NO_CONNECTION)
    keep(unreadable("the customer's name"))
    manager.deny("connection", "GET", "zuora")

    reply = await alice.get("/callouts")
    assert "customer" not in reply.text
    page = parsed(reply.text)
    assert [row["Connection"] for row in page.cells() if "Received" in row] == ["other"]
    counts = page.one("section", id="counts").cells()
    assert [tuple(row.values()) for row in counts] == [
        ("an address that names none", "0", "1 (404) Acknowledge all refused", "1"),
        ("other", "0", "1 (401)", "0"),
        ("zuora", "0", "1 (401)", "0"),
    ]
    page = await alice.sees("/callouts", conn="zuora", kind="unreadable")
    assert page.one("p", class_="empty").text.startswith(
        "Callouts are customers' data: you may not read the connection"
    )
    assert not any("zuora" in button for button in buttons(page))
    for parameters in ({"receipt": "1"}, {"row": "1"}):
        reply = await alice.get("/callout", **parameters)
        assert reply.status_code == 403
        assert "customer's" not in reply.text


async def test_the_address_of_an_earlier_version_leads_to_the_unreadable_callouts(alice: Browser) -> None:
    reply = await alice.get("/unread")
    assert (reply.status_code, reply.headers["location"]) == (301, "/mediation/callouts?kind=unreadable")


class TestReadAgain:
    @pytest.mark.parametrize("path", ["/callout/reparse", "/unread/reparse"])
    async def test_it_needs_permission_to_create_events_and_to_read_the_connection(
        self, alice: Browser, manager: Manager, path: str
    ) -> None:
        keep(unreadable(json.dumps(CHANGE)))
        for permission in [("asset", "POST"), ("connection", "GET", "zuora")]:
            manager.denied = {permission}
            assert buttons(await alice.sees("/callouts", kind="unreadable", conn="zuora")) == {}
            reply = await alice.post(path, conn="zuora")
            assert reply.status_code == 403
            assert "This needs the permissions to create asset events and to read the connection." in reply.text
        assert sessions() == []
        assert logged() == []

    async def test_those_of_a_connection_are_parsed_and_their_changes_trigger_dags(
        self, alice: Browser, airflow: Airflow
    ) -> None:
        airflow.know("load", on_meter_session("2470", "COMPLETED", mediation_conn_id="zuora"))
        keep(unreadable(json.dumps(CHANGE)), unreadable("<html>"), unreadable(json.dumps(CHANGE), conn_id="other"))
        page = await alice.sees("/callouts", kind="unreadable", conn="zuora")
        page = await press(alice, page, "Read all of zuora again")
        notice = page.one("p", role="alert")
        assert (notice.classes, notice.text) == ({"notice", "l-good"}, "1 read; 1 still unreadable.")
        assert sessions() == ["R-00005468"]
        assert airflow.runs("load") == ["R-00005468"]
        assert [row["Content"] for row in page.cells() if "Content" in row] == ["unreadable no JSON"]
        page = await press(alice, page, "Read all of zuora again")
        assert page.one("p", role="alert").text == "0 read; 1 still unreadable."
        assert airflow.runs("load") == ["R-00005468"]
        details = {"conn_id": "zuora", "number": "all", "method": "POST"}
        assert logged() == [("reparse_callouts", "alice", details)] * 2

    async def test_one_is_parsed_alone_and_its_page_shows_the_session(self, alice: Browser) -> None:
        keep(unreadable(json.dumps(CHANGE)), unreadable(json.dumps({**CHANGE, "sessionId": "R-2"})))
        page = await press(alice, await alice.sees("/callout", row=1), "Read again")
        assert page.one("p", role="alert").text == "1 read; 0 still unreadable."
        assert "R-00005468 of meter 2470" in page.text
        assert sessions() == ["R-00005468"]
        assert buttons(page) == {}

    async def test_a_connection_that_cannot_be_used_is_named(self, alice: Browser, directory: Directory) -> None:
        directory["wrong"] = {"callout_hmac_secret": "s3cret", "callout_timezone": "Mars/Base"}
        for conn_id, sentence in {
            "gone": "There is no connection gone of type mediation.",
            "a b": "There is no connection a b of type mediation.",
            "wrong": "The connection wrong cannot be used: ",
        }.items():
            notice = (await alice.does("/callout/reparse", conn=conn_id)).one("p", role="alert")
            assert notice.classes == {"notice", "l-bad"}
            assert notice.text.startswith(sentence)
        directory.down = True
        notice = (await alice.does("/callout/reparse", conn="zuora")).one("p", role="alert")
        assert notice.text.startswith("The connection zuora cannot be used: ")


class TestAcknowledge:
    async def test_it_needs_permission_to_create_events_and_to_read_the_connection(
        self, alice: Browser, manager: Manager
    ) -> None:
        keep(unreadable())
        saw(401)
        saw(404, conn_id=NO_CONNECTION)
        for permission, conn_id, kind in [
            (("asset", "POST"), "zuora", "unreadable"),
            (("asset", "POST"), "", "refused"),
            (("connection", "GET", "zuora"), "zuora", "refused"),
        ]:
            manager.denied = {permission}
            assert (await alice.post("/callout/acknowledge", conn=conn_id, kind=kind)).status_code == 403
        assert rows(TransitionRow.acknowledged_at) == [(None,)]
        assert logged() == []

    async def test_one_is_acknowledged_with_user_and_time(self, alice: Browser) -> None:
        keep(unreadable("<1>"), unreadable("<2>"))
        page = await press(alice, await alice.sees("/callout", row=1), "Acknowledge")
        assert page.one("p", role="alert").text == "1 acknowledged."
        facts = {each.one("dt").text: each.one("dd").text for each in page.all("dl")[0].all("div")}
        assert facts["Acknowledged"].endswith(" by alice")
        assert list(buttons(page)) == ["Read again"]
        page = await alice.sees("/callouts", kind="unreadable")
        assert [row["Acknowledged"].split()[-1] for row in page.cells() if "Acknowledged" in row] == [
            "Acknowledge",
            "alice",
        ]
        assert len(await listed(alice, kind="unreadable", acknowledged="no")) == 1
        details = {"conn_id": "zuora", "kind": "unreadable", "number": "1", "method": "POST"}
        assert logged() == [("acknowledge_callouts", "alice", details)]

    async def test_all_of_a_connection_are_acknowledged_and_the_list_stays(self, alice: Browser) -> None:
        for number in range(3):
            saw(401, ago(minutes=number))
        saw(401, conn_id="other")
        page = await alice.sees("/callouts", kind="refused", conn="zuora", acknowledged="no")
        page = await press(alice, page, "Acknowledge all refused of zuora")
        assert page.one("p", role="alert").text == "3 acknowledged."
        assert [row for row in page.cells() if "Received" in row] == []
        assert page.one("select", name="kind").one("option", selected="").text == "refused"
        assert len(await listed(alice, kind="refused", acknowledged="no")) == 1

    @pytest.mark.parametrize("kind", ["refused", "unreadable"])
    async def test_what_arrives_after_the_page_stays_open(self, alice: Browser, kind: str) -> None:
        def arrive(minutes: float) -> None:
            if kind == "refused":
                saw(401, ago(minutes=minutes))
            else:
                keep(unreadable(created_at=ago(minutes=minutes)))

        if kind == "unreadable":
            saw(401)
        arrive(3)
        arrive(2)
        page = await alice.sees("/callouts", kind=kind, conn="zuora")
        arrive(1)
        page = await press(alice, page, f"Acknowledge all {kind} of zuora")
        assert page.one("p", role="alert").text == "2 acknowledged."
        assert len(await listed(alice, kind=kind, acknowledged="no")) == 1
        page = await press(alice, page, f"Acknowledge all {kind} of zuora")
        assert page.one("p", role="alert").text == "1 acknowledged."

    async def test_addresses_without_a_connection_are_acknowledged_as_the_page_counted_them(
        self, alice: Browser
    ) -> None:
        saw(404, ago(hours=2), conn_id=NO_CONNECTION)
        page = await alice.sees("/callouts")
        saw(404, conn_id=NO_CONNECTION)
        await press(alice, page, "Acknowledge all refused")
        assert "Acknowledge all refused" in buttons(await alice.sees("/callouts"))

    @pytest.mark.parametrize("back", ["kind=lost", "session=%00", "since=yesterday"])
    async def test_an_invalid_list_is_refused_before_anything_is_done(self, alice: Browser, back: str) -> None:
        saw(401)
        for path in ("/callout/acknowledge", "/callout/reparse"):
            reply = await alice.post(path, conn="zuora", kind="refused", back=back)
            assert reply.status_code == 400
        assert logged() == []
        assert len(await listed(alice, kind="refused", acknowledged="no")) == 1

    async def test_a_single_row_of_the_list_is_acknowledged_there(self, alice: Browser) -> None:
        saw(401)
        page = await press(alice, await alice.sees("/callouts", kind="refused"), "Acknowledge")
        [row] = [row for row in page.cells() if "Received" in row]
        assert row["Acknowledged"].endswith(" by alice")

    async def test_another_kind_is_refused(self, alice: Browser) -> None:
        for form in ({"kind": "accepted"}, {"kind": "refused", "number": "x"}, {}):
            assert (await alice.post("/callout/acknowledge", conn="zuora", **form)).status_code == 400
