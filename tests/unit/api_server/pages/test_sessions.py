"""The list of all sessions: the content of a row, filters, pages, and permissions."""

from __future__ import annotations

from datetime import datetime, timedelta
from typing import TYPE_CHECKING, Any

import pytest
from airflow import settings
from sqlalchemy import delete

from airflow_mediation_provider.api_server.http import TtlMap
from airflow_mediation_provider.api_server.pages import health, rendering, session
from airflow_mediation_provider.api_server.pages import sessions as module
from airflow_mediation_provider.assets import on_meter_session
from airflow_mediation_provider.journal import session_list as journal_listing
from airflow_mediation_provider.journal import session_search as journal_search
from airflow_mediation_provider.journal.tables import SessionRow
from airflow_mediation_provider.protocol.times import in_words
from tests.unit.api_server.pages.conftest import now
from tests.unit.api_server.pages.html import asked, parsed
from tests.unit.journal.old_rows import NOW, concluded, keep, meter_of, session_of, told, wait_of
from tests.unit.journal.scheduling import CONN, change, tell

if TYPE_CHECKING:
    from tests.unit.api_server.pages.conftest import Browser, Manager
    from tests.unit.api_server.pages.html import Element
    from tests.unit.journal.scheduling import Airflow


class Later(datetime):
    """The clock, some seconds later."""

    @classmethod
    def now(cls, tz: Any = None) -> datetime:
        return datetime.now(tz) + timedelta(seconds=3)


NOTHING = "\N{EN DASH}"

pytestmark = pytest.mark.usefixtures("journal")


def at(minutes: float) -> datetime:
    return NOW + timedelta(minutes=minutes)


def ago(**span: float) -> datetime:
    return now() - timedelta(**span)


def began(session_id: str, minutes: float, **values: Any) -> Any:
    return session_of(session_id, at(minutes), **values)


def names(page: Element) -> list[str]:
    return [row["Session"] for row in page.cells()]


async def listed(browser: Browser, **filters: object) -> list[str]:
    return names(await browser.sees("/sessions", **filters))


class TestRow:
    async def test_a_row_shows_the_session(self, alice: Browser) -> None:
        keep(
            meter_of("1001", "Usage of April"),
            began("R-1", 0, last_observed_at=at(95), ended_at=at(90)),
            told("R-1", at(0), status="INITIALIZING", notification_id="a"),
            told("R-1", at(30), previous_status="INITIALIZING", status="RUNNING", notification_id="b"),
            told("R-1", at(95), previous_status="RUNNING", status="COMPLETED", notification_id="c"),
        )
        page = await alice.sees("/sessions")
        assert page.cells() == [
            {
                "Status": "COMPLETED",
                "Session": "R-1",
                "Meter": "1001 Usage of April",
                "Run type": "NORMAL",
                "Phases": "INITIALIZING: 30m RUNNING: 1h COMPLETED: 0s",
                "Start Date": "2026-06-01 00:00:00 UTC",
                "End Date": "2026-06-01 01:30:00 UTC",
                "Duration": "1h 30m",
                "Tasks": NOTHING,
                "Triggered by asset event": NOTHING,
            }
        ]
        assert page.one("span", class_="badge").classes == {"badge", "t-success"}
        picture = page.one("svg", class_="phases")
        assert picture.attributes["aria-label"] == "INITIALIZING 30m, RUNNING 1h, COMPLETED 0s"
        assert [each.classes for each in picture.all("rect")] == [{"f-queued"}, {"f-running"}, {"f-success"}]
        drawn = [(float(each.attributes["x"]), float(each.attributes["width"])) for each in picture.all("rect")]
        assert drawn[:2] == [(0, 333.3), (333.3, 666.7)]
        assert drawn[2] == (994, 6)  # at least so wide that it is visible
        times = {each.text: each.attributes["datetime"] for each in page.all("time")}
        assert times["2026-06-01 01:30:00 UTC"] == "2026-06-01T01:30:00+00:00"
        path, which = asked(page.links()["R-1"])
        assert (path, which) == ("/mediation/session", {"conn": "zuora", "meter": "1001", "session": "R-1"})

    async def test_each_status_has_a_colour_and_failed_sessions_are_marked(self, alice: Browser) -> None:
        colours = {
            "COMPLETED": "success",
            "FAILED": "failed",
            "CANCELED": "canceled",
            "RUNNING": "running",
            "INITIALIZING": "queued",
            "PAUSED": "paused",
            "STOPPING": "paused",
            "USAGE_PUSHING": "pushing",
            "TESTING_FAILED": "failed",
            "MYSTERY": "none",
        }
        keep(*(session_of(f"R-{status}", ago(minutes=1), status=status) for status in colours))
        rows = (await alice.sees("/sessions")).one("tbody").all("tr")
        badges = {row.one("span", class_="badge").text: row.one("span", class_="badge").classes for row in rows}
        assert badges.pop("unknown status (MYSTERY)") == {"badge", "t-none"}
        outlined = {status: {"is-outlined"} for status in ("TESTING_FAILED", "STOPPING")}
        assert badges == {
            status: {"badge", f"t-{colour}"} | outlined.get(status, set())
            for status, colour in colours.items()
            if status != "MYSTERY"
        }
        failed = [row.one("span", class_="badge").text for row in rows if "is-failed" in row.classes]
        assert sorted(failed) == ["FAILED", "TESTING_FAILED"]

    async def test_a_running_session_without_reports_for_hours_is_marked_as_silent(self, alice: Browser) -> None:
        live: dict[str, Any] = {"status": "RUNNING", "terminal": False}
        begun = ago(hours=8), ago(hours=9)
        keep(
            session_of("R-1", begun[0], **live),
            session_of("R-2", begun[1], **live, last_observed_at=ago(hours=5)),
            session_of("R-3", ago(hours=10)),
        )
        rows = (await alice.sees("/sessions")).one("tbody").all("tr")
        assert [("is-silent" in row.classes) for row in rows] == [True, False, False]
        cells = (await alice.sees("/sessions")).cells()
        silent = f"RUNNING silent since {in_words(begun[0])}"
        assert [row["Status"] for row in cells] == [silent, "RUNNING", "COMPLETED"]
        assert [row["End Date"] for row in cells][:2] == [NOTHING, NOTHING]
        assert [row["Duration"] for row in cells][:2] == [f"since {in_words(each)}" for each in begun]

    async def test_what_a_task_concluded_from_polls_is_the_status_with_a_mark(self, alice: Browser) -> None:
        keep(
            concluded("R-1", ago(hours=7)),
            concluded("R-2", ago(hours=8), best="COMPLETED", certain=True, differs=True),
            concluded("R-3", ago(hours=9), reported=False),
        )
        page = await alice.sees("/sessions")
        assert [(row["Status"], row["Duration"]) for row in page.cells()] == [
            ("FAILED by poll, not certain", "11m"),
            ("COMPLETED by poll tasks disagree", "11m"),
            ("FAILED by poll, not certain; known from a task only", "11m"),
        ]
        rows = page.one("tbody").all("tr")
        assert [each.classes for each in rows] == [{"is-failed"}, set(), {"is-failed"}]
        assert await listed(alice, status="FAILED") == ["R-1", "R-3"]
        assert await listed(alice, status="INITIALIZING") == []
        label = (await alice.sees("/sessions/chart")).one("svg").attributes["aria-label"]
        assert label == "Sessions started, by status: 2 FAILED, 1 COMPLETED"

    async def test_an_uncertain_status_is_marked(self, alice: Browser) -> None:
        keep(
            session_of("R-1", ago(minutes=1), ambiguous=True, terminal=False),
            session_of("R-2", ago(minutes=2), conflict=True, status="FAILED"),
        )
        said = [row["Status"] for row in (await alice.sees("/sessions")).cells()]
        assert said == ["COMPLETED? ambiguous", "FAILED conflict"]

    async def test_the_connection_is_named_where_there_are_several(self, alice: Browser) -> None:
        keep(began("R-1", 0))
        assert "Connection" not in (await alice.sees("/sessions")).cells()[0]
        keep(began("R-2", 1, conn_id="other"))
        assert [row["Connection"] for row in (await alice.sees("/sessions")).cells()] == ["other", "zuora"]


class TestFilters:
    async def test_each_filter_restricts_the_list(self, alice: Browser) -> None:
        keep(
            began("R-1", 1, conn_id="other"),
            began("R-2", 2, run_type="DEBUG", status="TESTING_PASSED"),
            began("R-3", 3, meter_id="7", run_type="CANARY"),
            began("R-4", 4, status="FAILED"),
            session_of("R-5", ago(minutes=30)),
        )
        for filters, found in [
            ({}, "R-5 R-4 R-3 R-2 R-1"),
            ({"conn": "other"}, "R-1"),
            ({"meter": " 7 "}, "R-3"),
            ({"since": " ", "until": " "}, "R-5 R-4 R-3 R-2 R-1"),
            ({"status": "failed"}, "R-4"),
            ({"run_type": "debug"}, "R-2"),
            ({"run_type": "canary"}, "R-3"),
            ({"since": "1h"}, "R-5"),
            ({"since": "24h"}, "R-5"),
            ({"since": "2026-06-01T00:04", "until": "2026-06-01T00:05"}, "R-4"),
            ({"since": "2026-06-01T02:04", "until": "2026-06-01T02:05", "tz": "Europe/Berlin"}, "R-4"),
            ({"since": "2026-06-01T02:04+02:00", "until": "2026-06-01T00:05Z", "tz": "Asia/Tokyo"}, "R-4"),
            ({"until": "2026-06-01T00:02"}, "R-1"),
            ({"conn": "zuora", "meter": "1001", "status": "COMPLETED", "run_type": "NORMAL", "since": "1h"}, "R-5"),
            ({"meter": "8"}, ""),
            ({"since": "7d", "until": "2026-06-01"}, ""),
        ]:
            assert await listed(alice, **filters) == found.split(), filters  # type: ignore[arg-type]

    async def test_an_answer_is_the_same_later_and_is_not_sent_again(
        self, alice: Browser, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """What only time changes is counted in the browser."""
        live: dict[str, Any] = {"status": "RUNNING", "terminal": False}
        keep(session_of("R-1", ago(hours=8), **live), told("R-1", ago(hours=8), notification_id="a"))
        a_session = {"conn": "zuora", "meter": "1001", "session": "R-1"}
        # Each answer is made anew.
        monkeypatch.setattr(TtlMap, "get", lambda *_: None)
        for path, of in (
            ("/sessions", {"since": "24h"}),
            ("/sessions.json", {}),
            ("/sessions/chart", {"since": "30d"}),
            ("/health", {}),
            ("/session", a_session),
        ):
            first = await alice.get(path, **of)
            with monkeypatch.context() as later:
                for each in (rendering, module, health, session):
                    later.setattr(each, "datetime", Later)
                again = await alice.client.get(first.url, headers={"If-None-Match": f'W/"x", {first.headers["etag"]}'})
            assert (again.status_code, again.content) == (304, b""), path
            assert again.headers["etag"] == first.headers["etag"]
            assert again.headers["cache-control"] == "no-store"
        keep(session_of("R-2", ago(hours=7), **live))
        first = await alice.get("/sessions")
        changed = await alice.client.get(first.url, headers={"If-None-Match": 'W/"x"'})
        assert (changed.status_code, changed.headers["etag"]) == (200, first.headers["etag"])

    async def test_an_answer_of_moments_ago_is_not_made_again_for_another_tab(
        self, alice: Browser, manager: Manager, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        keep(began("R-1", 0))
        first = await alice.get("/sessions")
        made: list[object] = []
        monkeypatch.setattr(module, "read", made.append)
        same = {"If-None-Match": first.headers["etag"]}
        assert (await alice.client.get(first.url, headers=same)).status_code == 304
        assert made == []
        manager.deny("asset", "GET")
        assert (await alice.client.get(first.url, headers=same)).status_code == 403

    async def test_the_list_as_json_has_the_same_sessions_and_errors(self, alice: Browser) -> None:
        keep(began("R-1", 0, status="FAILED", conflict=True), began("R-2", 1))
        found = (await alice.get("/sessions.json", status="FAILED")).json()
        (listed_session,) = found.pop("sessions")
        assert found == {"newer": None, "older": None, "complete": True, "limited": False, "sorted_since": None}
        assert {name: listed_session[name] for name in ("session_id", "status", "marks", "ended_at")} == {
            "session_id": "R-1", "status": "FAILED", "marks": ["conflict"], "ended_at": at(0).isoformat(),
        }  # fmt: skip
        reply = await alice.get("/sessions.json", colour="red")
        assert (reply.status_code, reply.json()) == (400, {"error": "Unknown parameter colour."})

    async def test_a_text_finds_sessions_by_each_id_that_starts_with_it(self, alice: Browser) -> None:
        keep(
            began("R-0001", 1, meter_id="1001"),
            began("R-0002", 2, meter_id="77"),
            told("R-0002", at(2), meter_id="77", notification_id="n-4711"),
            meter_of("77", "Storage of April"),
            wait_of("w", session_id="R-0001", dag_id="usage", run_id="manual__1"),
        )
        for text, found in [
            ("R-0001", "R-0001"),
            ("r-000", "R-0002 R-0001"),
            ("R-0003", ""),
            ("7", "R-0002"),
            ("stor", "R-0002"),
            ("usa", "R-0001"),
            ("manual__", "R-0001"),
            ("n-47", "R-0002"),
            ("%", ""),
            ("001", ""),
        ]:
            assert await listed(alice, q=text) == found.split(), text
        assert await listed(alice, q="R-000", meter="77") == ["R-0002"]

    async def test_a_text_finds_nothing_by_a_dag_that_the_user_may_not_see(
        self, alice: Browser, manager: Manager
    ) -> None:
        keep(began("R-1", 1), wait_of("w", session_id="R-1", dag_id="covert", run_id="night"))
        assert await listed(alice, q="covert") == ["R-1"]
        manager.deny("dag", "GET", "TASK_INSTANCE", "covert")
        assert await listed(alice, q="covert") == await listed(alice, q="night") == []

    async def test_several_statuses_and_groups_are_any_of_them_and_properties_are_all_of_them(
        self, alice: Browser
    ) -> None:
        live: dict[str, Any] = {"terminal": False, "ended_at": None}
        keep(
            began("R-1", 1, status="FAILED", conflict=True),
            began("R-2", 2, status="CANCELED"),
            began("R-3", 3, status="PAUSED", **live),
            began("R-4", 4, status="99", **live, last_observed_at=now()),
            began("R-5", 5, ambiguous=True, **live, last_observed_at=now()),
            concluded("R-6", at(6), best="COMPLETED"),
            concluded("R-7", at(7), best="TESTING_FAILED", certain=True, differs=True),
            began("R-8", 8, ended_at=at(100)),
        )
        for filters, found in [
            ({"status": ["FAILED", "CANCELED"]}, "R-2 R-1"),
            ({"status": ["FAILED", ""], "group": ["live"]}, "R-5 R-4 R-3 R-1"),
            ({"group": ["failed"]}, "R-7 R-1"),
            ({"group": ["ended", "failed"]}, "R-8 R-7 R-6 R-2 R-1"),
            ({"group": ["attention"]}, "R-7 R-5 R-4 R-3 R-1"),
            ({"group": ["attention", "ended"], "status": ["CANCELED"]}, "R-8 R-7 R-6 R-5 R-4 R-3 R-2 R-1"),
            ({"only": ["uncertain"]}, "R-6"),
            ({"only": ["conflict"]}, "R-7 R-1"),
            ({"only": ["ambiguous"]}, "R-5"),
            ({"only": ["unknown"]}, "R-4"),
            ({"only": ["silent"]}, "R-3"),
            ({"only": ["conflict"], "status": ["FAILED", "PAUSED"]}, "R-1"),
            ({"only": ["conflict", "uncertain"]}, ""),
            ({"only": ["silent", "unknown"]}, ""),
            ({"longer": ["1h 30m"]}, "R-8 R-5 R-4 R-3"),
            ({"longer": ["92m"]}, "R-5 R-4 R-3"),
            ({"longer": ["92M"], "status": ["PAUSED", "FAILED"]}, "R-3"),
            ({"sort": ["end"], "group": ["ended"]}, "R-8 R-7 R-6 R-2 R-1"),
            ({"sort": ["duration"], "group": ["ended"]}, "R-8 R-7 R-6 R-2 R-1"),
            ({"sort": ["duration"], "group": ["live"]}, "R-3 R-4 R-5"),
            ({"sort": ["end"], "group": ["live", "failed"]}, "R-7 R-1 R-5 R-4 R-3"),
        ]:
            reply = await alice.client.get("/mediation/sessions", params=filters)
            assert names(parsed(reply.text)) == found.split(), filters

    async def test_of_too_many_sessions_the_newest_are_sorted_with_a_notice(
        self, alice: Browser, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        keep(*(began(f"R-{number}", number, ended_at=at(10 * (number % 3))) for number in range(6)))
        monkeypatch.setattr(module, "PAGE", 2)
        page = await alice.sees("/sessions", sort="end")
        assert (names(page), page.all("p", class_="notice")) == (["R-5", "R-2"], [])
        path, where = asked(page.one("a", id="older").attributes["href"])
        page = await alice.sees(path.removeprefix("/mediation"), **where)
        assert names(page) == ["R-4", "R-1"]
        back, where = asked(page.one("a", id="newer").attributes["href"])
        assert names(await alice.sees(back.removeprefix("/mediation"), **where)) == ["R-5", "R-2"]
        for each in (module, journal_listing):
            monkeypatch.setattr(each, "SORTED", 2)
        page = await alice.sees("/sessions", sort="end")
        assert names(page) == ["R-5", "R-4"]
        assert page.one("p", class_="notice").text.startswith("Only the newest 2 sessions that match a filter are")

    async def test_a_sorted_list_that_continues_at_a_deleted_session_is_refused(
        self, alice: Browser, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """No session would follow, as if the list ended there."""
        monkeypatch.setattr(module, "PAGE", 2)
        keep(*(began(f"R-{number}", number) for number in range(6)))
        for sort in ("end", "duration"):
            page = await alice.sees("/sessions", sort=sort)
            _, where = asked(page.one("a", id="older").attributes["href"])
            last = page.cells()[-1]["Session"]
            with settings.NonScopedSession() as database:
                database.execute(delete(SessionRow).where(SessionRow.session_id == last))
                database.commit()
            for path in ("/sessions", "/sessions.json"):
                gone = await alice.get(path, **where)
                assert gone.status_code == 410
                assert "The session at which this part of the list begins was deleted: search again." in gone.text

    async def test_filters_are_shown_in_the_form(self, alice: Browser) -> None:
        keep(began("R-1", 0), began("R-2", 0, conn_id="other"))
        filters = {
            "q": "R-1", "conn": "other", "meter": "7", "run_type": "CANARY",
            "status": "FAILED", "group": "live", "only": "silent",
            "longer": "45m", "since": "2026-06-01T02:04", "until": "2026-06-01T02:05", "tz": "Europe/Berlin",
            "sort": "end",
        }  # fmt: skip
        page = await alice.sees("/sessions", **filters)
        form = page.one("form", role="search")
        assert (form.attributes["method"], form.attributes["action"]) == ("get", "/mediation/sessions")
        chosen = {
            each.attributes["name"]: [o.attributes.get("value", o.text) for o in each.all("option", selected="")]
            for each in form.all("select")
        }
        written = {
            each.attributes["name"]: [each.attributes["value"]]
            for each in form.all("input")
            if "name" in each.attributes and (each.attributes.get("type") != "checkbox" or "checked" in each.attributes)
        }
        assert {**chosen, **written} == {name: [value] for name, value in filters.items()}
        assert form.links() == {"Clear": "/mediation/sessions"}

    async def test_a_value_outside_the_choices_is_selected_too(self, alice: Browser) -> None:
        page = await alice.sees("/sessions", conn="gone", status="mystery")
        assert [each.text for each in page.all("option", selected="")] == ["gone"]
        assert [each.attributes["value"] for each in page.all("input", checked="")] == ["MYSTERY"]

    async def test_without_filters_there_is_no_clear_link(self, alice: Browser) -> None:
        page = await alice.sees("/sessions", tz="Europe/Berlin")
        assert "Clear" not in page.links()
        assert page.all("option", selected="") == []

    async def test_the_chart_has_the_same_filters(self, alice: Browser) -> None:
        page = await alice.sees("/sessions", meter="7", since="7d", tz="Europe/Berlin")
        path, of = asked(page.one("div", id="chart").attributes["data-src"])
        assert (path, of) == ("/mediation/sessions/chart", {"meter": "7", "since": "7d", "tz": "Europe/Berlin"})


class TestPaging:
    @pytest.fixture(autouse=True)
    def _short_pages(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(module, "PAGE", 2)

    async def test_paging_forth_and_back_keeps_the_filters(self, alice: Browser) -> None:
        keep(*(began(f"R-{number}", 0 if number < 3 else number, meter_id="7") for number in range(5)), began("R-9", 9))
        seen = []
        page = await alice.sees("/sessions", meter="7", tz="UTC")
        while True:
            seen.append(names(page))
            links = {each.attributes["id"]: each.attributes["href"] for each in page.one("nav").all("a")}
            if "older" not in links:
                break
            path, where = asked(links["older"])
            assert {name: where[name] for name in ("meter", "tz")} == {"meter": "7", "tz": "UTC"}
            page = await alice.sees(path.removeprefix("/mediation"), **where)
        assert seen == [["R-4", "R-3"], ["R-2", "R-1"], ["R-0"]]
        assert asked(links["newest"]) == ("/mediation/sessions", {"meter": "7", "tz": "UTC"})
        back = []
        while "newer" in links:
            path, where = asked(links["newer"])
            page = await alice.sees(path.removeprefix("/mediation"), **where)
            back.append(names(page))
            links = {each.attributes["id"]: each.attributes["href"] for each in page.one("nav").all("a")}
        assert back == [["R-2", "R-1"], ["R-4", "R-3"]]
        assert set(links) == {"older"}

    async def test_a_search_for_a_rare_value_stops_with_a_notice_and_continues(
        self, alice: Browser, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        for each in (module, journal_search):
            monkeypatch.setattr(each, "SCANNED", 3)
        keep(*(began(f"R-{number}", number, status="FAILED" if number == 1 else "COMPLETED") for number in range(7)))
        keep(*(began(f"R-F{number}", -number, meter_id="7", status="FAILED") for number in range(1, 5)))
        page = await alice.sees("/sessions", meter="1001", status="FAILED", tz="UTC")
        assert names(page) == ["R-1"]
        notice = page.one("p", class_="notice")
        assert notice.text.startswith(
            "Few matching sessions so far: 3 sessions that match one of the filters were searched, back to "
        )
        assert notice.one("time").attributes["datetime"] == at(-3).isoformat(timespec="seconds")
        path, where = asked(notice.links()["Search further"])
        assert {name: where[name] for name in ("meter", "status", "tz")} == {
            "meter": "1001",
            "status": "FAILED",
            "tz": "UTC",
        }
        page = await alice.sees(path.removeprefix("/mediation"), **where)
        assert page.one("p", class_="empty").text == "No matching sessions. Show all."
        assert page.all("p", class_="notice") == []
        back, where = asked(page.one("a", id="newer").attributes["href"])
        assert names(await alice.sees(back.removeprefix("/mediation"), **where)) == ["R-1"]

    async def test_one_page_needs_no_links(self, alice: Browser) -> None:
        keep(began("R-1", 1), began("R-2", 2))
        assert (await alice.sees("/sessions")).one("nav").all("a") == []


async def test_an_empty_journal_explains_where_sessions_come_from(alice: Browser) -> None:
    page = await alice.sees("/sessions")
    assert "No session has been received yet" in page.one("p", class_="empty").text


async def test_filters_without_matches_link_to_all_sessions(alice: Browser) -> None:
    keep(began("R-1", 0))
    for filters in ({"meter": "8"}, {"before": "0-1"}):
        empty = (await alice.sees("/sessions", **filters)).one("p", class_="empty")
        assert empty.text == "No matching sessions. Show all."
        assert empty.links() == {"Show all": "/mediation/sessions"}


class TestPermissions:
    """Tasks of a session and runs that it triggered are of Dags that not every user may see."""

    @pytest.fixture(autouse=True)
    def _story(self, airflow: Airflow) -> None:
        for dag_id in ("load", "secret"):
            airflow.know(dag_id, on_meter_session("1", "COMPLETED"))
        for dag_id in ("asleep", "unlisted"):
            airflow.know(dag_id, on_meter_session("1", "COMPLETED"), paused=True)
        tell(change("R-1", "COMPLETED", observed_at=now()))
        airflow.schedule()
        wait: dict[str, Any] = {"conn_id": CONN, "meter_id": "1", "session_id": "R-1"}
        keep(
            wait_of("w", **wait, dag_id="usage", task_id="first", ended_at=now(), outcome="MET", created_at=at(1)),
            wait_of("v", **wait, dag_id="usage", task_id="mapped", map_index=4, created_at=at(0)),
            wait_of("u", **wait, dag_id="covert", task_id="third", created_at=at(2)),
        )

    async def page(self, alice: Browser, monkeypatch: pytest.MonkeyPatch) -> Element:
        """The list once the scheduler had its time."""
        monkeypatch.setattr("airflow_mediation_provider.journal.triggered_runs._SCHEDULED_WITHIN", timedelta(0))
        return await alice.sees("/sessions")

    async def test_a_user_with_all_permissions_sees_all(self, alice: Browser, monkeypatch: pytest.MonkeyPatch) -> None:
        page = await self.page(alice, monkeypatch)
        [cells] = page.cells()
        assert cells["Tasks"] == "covert.third waits usage.mapped [4] waits usage.first condition met"
        started, _, missed = cells["Triggered by asset event"].partition(" no run: ")
        assert started in ("load queued secret queued", "secret queued load queued")
        assert missed == "asleep and 1 more"
        links = page.links()
        assert links["usage.mapped [4]"] == "/dags/usage/runs/r/tasks/mapped/mapped/4"
        assert links["covert.third"] == "/dags/covert/runs/r/tasks/third"
        assert links["load"].startswith("/dags/load/runs/asset_triggered__")
        assert "+" not in links["load"]
        assert page.one("div", class_="missed").attributes["title"].endswith("not triggered: asleep, unlisted")

    async def test_rows_that_a_user_may_not_see_are_left_out(
        self, alice: Browser, manager: Manager, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        for dag_id in ("secret", "unlisted"):
            manager.deny("dag", "GET", "RUN", dag_id)
        manager.deny("dag", "GET", "TASK_INSTANCE", "covert")
        monkeypatch.setattr("airflow_mediation_provider.journal.triggered_runs._SCHEDULED_WITHIN", timedelta(0))
        reply = await alice.get("/sessions")
        assert not any(word in reply.text for word in ("secret", "unlisted", "covert", "third"))
        [cells] = parsed(reply.text).cells()
        assert cells["Tasks"] == "usage.mapped [4] waits usage.first condition met"
        assert cells["Triggered by asset event"] == "load queued no run: asleep"

    async def test_a_run_is_missing_only_once_the_scheduler_had_its_time(
        self, alice: Browser, airflow: Airflow
    ) -> None:
        for dag_id in ("asleep", "unlisted"):
            airflow.pause(dag_id, paused=False)
        [cells] = (await alice.sees("/sessions")).cells()
        assert cells["Triggered by asset event"] in ("load queued secret queued", "secret queued load queued")


class TestChart:
    async def test_the_chart_shows_the_last_day_by_default(self, alice: Browser) -> None:
        keep(
            session_of("R-1", ago(hours=23.5)),
            session_of("R-2", ago(hours=1.5), status="FAILED"),
            session_of("R-3", ago(hours=1.4)),
            session_of("R-4", ago(hours=25)),
        )
        page = await alice.sees("/sessions/chart")
        part = page.one("div", data_part="")
        picture = part.one("svg")
        assert picture.attributes["aria-label"] == "Sessions started, by status: 1 FAILED, 2 COMPLETED"
        # Full hours, of which the first and the last are only in part of the day.
        spans = [asked(each.all("a")[0].attributes["href"])[1] for each in picture.all("g")]
        edges = [tuple(map(datetime.fromisoformat, (each["since"], each["until"]))) for each in spans]
        assert all(until - since == timedelta(hours=1) for since, until in edges)
        assert edges[0][0] <= ago(hours=24) < edges[0][1]
        assert edges[-1][0] <= now() <= edges[-1][1]
        counted = [len(each.all("rect")) - 1 for each in picture.all("g")]
        times = (ago(hours=23.5), ago(hours=1.5), ago(hours=1.4))
        assert counted == [sum(since <= at < until for at in times) for since, until in edges]
        assert [each.text for each in part.all("a", class_="key")] == ["1 FAILED", "2 COMPLETED"]
        assert "highest bar: " in part.one("figcaption").text
        titles = [each.one("title").text for each in picture.all("a", tabindex="-1")]
        assert sorted(title.partition("UTC: ")[2] for title in titles) == sorted(["1 FAILED", *["1 COMPLETED"] * 2])

    async def test_a_part_of_a_bar_and_a_status_below_lead_to_their_sessions(self, alice: Browser) -> None:
        keep(began("R-1", 1, status="FAILED", meter_id="7"), began("R-2", 1), began("R-3", 60 * 24 + 1))
        of = {"since": "2026-06-01", "until": "2026-06-03", "group": "ended", "tz": "UTC"}
        picture = (await alice.sees("/sessions/chart", **of)).one("svg")
        bar, *parts = picture.all("g")[0].all("a")
        assert "tabindex" not in bar.attributes
        for link, found in ((bar, ["R-2", "R-1"]), (parts[0], ["R-1"])):
            where = asked(link.attributes["href"])[1]
            assert await listed(alice, **where) == found
        key = (await alice.sees("/sessions/chart", **of)).all("a", class_="key")[0]
        of.pop("group")
        assert asked(key.attributes["href"])[1] == {**of, "status": "FAILED"}

    async def test_the_chart_shows_the_requested_time_and_sessions(self, alice: Browser) -> None:
        keep(began("R-1", 1), began("R-2", 2, meter_id="7"), began("R-3", 60 * 24))
        for filters, label in [
            ({"since": "2026-06-01", "until": "2026-06-02", "tz": "UTC"}, "2 COMPLETED"),
            ({"since": "2026-06-01", "until": "2026-06-03", "tz": "UTC"}, "3 COMPLETED"),
            ({"since": "2026-06-01", "until": "2026-06-02", "meter": "7"}, "1 COMPLETED"),
            ({"until": "2026-06-02"}, "2 COMPLETED"),
        ]:
            page = await alice.sees("/sessions/chart", **filters)
            assert page.one("svg").attributes["aria-label"] == f"Sessions started, by status: {label}", filters

    async def test_of_too_many_sessions_the_chart_counts_the_newest_with_a_notice(
        self, alice: Browser, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        keep(*(session_of(f"R-{hours}", ago(hours=hours)) for hours in (1, 2, 3, 4)))
        caption = (await alice.sees("/sessions/chart")).one("figcaption")
        assert "are counted" not in caption.text
        for each in (module, journal_listing):
            monkeypatch.setattr(each, "COUNTED", 2)
        caption = (await alice.sees("/sessions/chart")).one("figcaption")
        assert "; only the newest 2 sessions are counted" in caption.text
        assert "3 COMPLETED" in caption.text
        began_at = datetime.fromisoformat(caption.all("time")[0].attributes["datetime"])
        assert abs(began_at - ago(hours=3)) < timedelta(minutes=1)

    async def test_an_empty_chart_has_a_message(self, alice: Browser) -> None:
        for filters in ({}, {"since": "2026-06-02", "until": "2026-06-01"}, {"since": "1h", "until": "2026-06-01"}):
            page = await alice.sees("/sessions/chart", **filters)
            assert page.one("div", data_part="").text == "No session started in this time."
