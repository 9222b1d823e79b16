"""Addresses and texts of the pages: under any path of Airflow, with any name."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta, timezone
from typing import TYPE_CHECKING, Any
from urllib.parse import unquote

import pytest
from starlette.requests import Request

from airflow_mediation_provider import version_compat
from airflow_mediation_provider.api_server.pages import rendering
from airflow_mediation_provider.api_server.pages.rendering import SOURCES, TONES, Urls, tone
from airflow_mediation_provider.assets import on_meter_session
from airflow_mediation_provider.journal.session_list import SessionKey
from airflow_mediation_provider.journal.triggered_runs import StartedRun
from airflow_mediation_provider.protocol.status import SessionStatus
from airflow_mediation_provider.protocol.transition import Source
from tests.unit.api_server.pages.conftest import now
from tests.unit.api_server.pages.html import Element, parsed
from tests.unit.journal.old_rows import keep, session_of, told, wait_of
from tests.unit.journal.scheduling import CONN, change, tell

if TYPE_CHECKING:
    from tests.unit.api_server.pages.conftest import Browser
    from tests.unit.journal.scheduling import Airflow


def place(root_path: str) -> Urls:
    return Urls(Request({"type": "http", "root_path": root_path}))


@pytest.mark.parametrize(
    ("root_path", "airflow"), [("/mediation", ""), ("/a/b/mediation", "/a/b"), ("/mediation/", "")]
)
def test_addresses_are_under_the_path_that_the_mount_has(root_path: str, airflow: str) -> None:
    here = place(root_path)
    assert (here.airflow, here.mount) == (airflow, f"{airflow}/mediation")
    assert here.page("/sessions", conn="a", meter=None, status="") == f"{airflow}/mediation/sessions?conn=a"
    assert here.session(SessionKey("c", "1", "R-1")) == f"{airflow}/mediation/session?conn=c&meter=1&session=R-1"
    assert here.framed(here.page("/sessions")) == f"{airflow}/plugin/mediation-sessions{airflow}/mediation/sessions"
    assert here.dag("load") == f"{airflow}/dags/load"


def test_a_page_that_airflow_cannot_frame_is_opened_by_itself(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(version_compat, "AIRFLOW_V_3_3_PLUS", False)
    here = place("/a/mediation")
    assert here.framed(here.page("/session", conn="c")) == "/a/mediation/session?conn=c"


@pytest.mark.parametrize("odd", ["a/b", "a?b#c", "a b", "100%", "ä\u202e", "..", '"><x>', "manual__2026+00:00"])
def test_an_id_with_special_characters_is_one_part_of_the_path(odd: str) -> None:
    run = StartedRun(odd, odd, "success", None, None, "COMPLETED")
    wait: Any = wait_of("w", dag_id=odd, run_id=odd, task_id=odd, map_index=3)
    here = place("/mediation")
    for address, parts in [(here.dag(odd), 3), (here.run(run), 5), (here.run(wait), 5), (here.task(wait), 9)]:
        found = address.split("/")
        assert len(found) == parts
        assert unquote(found[2]) == odd
        assert not set(address) & set("\"'<> ?#+")


def test_every_documented_status_has_a_tone_and_any_other_one_too() -> None:
    assert {status for status in SessionStatus if status not in TONES} == {SessionStatus.NEVER_RUN}
    assert [tone(status) for status in ("COMPLETED", "WHATEVER", "", None)] == ["success", "none", "none", "none"]


def test_a_status_that_zuora_does_not_document_is_marked() -> None:
    assert [rendering.status_text(status) for status in ("COMPLETED", "99", "", None)] == [
        "COMPLETED",
        "unknown status (99)",
        "UNKNOWN",
        "UNKNOWN",
    ]


def test_every_source_has_a_text() -> None:
    assert set(SOURCES) == set(Source)


def test_a_time_is_shown_in_utc_and_names_its_instant() -> None:
    tokyo = datetime(2026, 4, 1, 1, 30, 5, 999_999, tzinfo=timezone(timedelta(hours=9)))
    for instant in (tokyo, tokyo.astimezone(UTC)):
        time = parsed(str(rendering._time(instant))).one("time")
        assert time.attributes["datetime"] == "2026-03-31T16:30:05+00:00"
        assert time.text.endswith("UTC")


class TestUnderAPath:
    @pytest.fixture
    def base_path(self) -> str:
        return "/team/airflow"

    async def test_every_address_of_every_page_begins_with_it(self, alice: Browser, airflow: Airflow) -> None:
        airflow.know("load", on_meter_session("1", "COMPLETED"))
        tell(change("R-1", "COMPLETED", observed_at=now()))
        airflow.schedule()
        [run_id] = airflow.run_ids("load")
        run = {"dag_id": "load", "run_id": run_id}
        wait: dict[str, Any] = {"conn_id": CONN, "meter_id": "1", **run}
        keep(
            *(session_of(f"R-{number}", now()) for number in range(60)),
            told(None, now(), kind="unparsed", conn_id="zuora", body={"text": "x"}),
            wait_of("w", **wait, task_id="named", session_id="R-1"),
            wait_of("v", **wait, task_id="unnamed"),
        )
        seen: set[str] = set()
        for path, asked in [
            ("/sessions", {}),
            ("/sessions/chart", {}),
            ("/session", {"conn": CONN, "meter": "1", "session": "R-1"}),
            ("/task", {**run, "task_id": "named"}),
            ("/task", {**run, "task_id": "unnamed"}),
            ("/run", run),
            ("/callouts", {"kind": "unreadable"}),
            ("/health", {}),
        ]:
            page = await alice.sees(path, **asked)
            seen |= self.addresses(page)
            assert page.one("body").attributes["data-airflow"] == "/team/airflow"
        missing = parsed((await alice.get("/session", conn="x", meter="x", session="x")).text)
        alice.client.cookies.clear()
        stranger = parsed((await alice.get("/sessions")).text)
        seen |= self.addresses(missing) | self.addresses(stranger)
        assert {each for each in seen if not each.startswith("/team/airflow/")} == {"data:,"}
        assert {each.removeprefix("/team/airflow").split("/")[1] for each in seen - {"data:,"}} == {
            "", "dags", "mediation", "plugin", "api", "connections",
        }  # fmt: skip
        framed = [each for each in seen if "/plugin/" in each]
        frame = "/team/airflow/plugin/mediation-sessions/team/airflow/mediation/"
        assert all(each.startswith(frame) for each in framed)

    def addresses(self, page: Element) -> set[str]:
        names = ("href", "src", "action", "data-src")
        return {each.attributes[name] for each in page.all() for name in names if name in each.attributes}

    async def test_every_page_loads_its_files_and_they_are_there(self, alice: Browser, journal: str) -> None:
        del journal
        page = await alice.sees("/sessions")
        files = [page.one("script").attributes["src"], page.one("link", rel="stylesheet").attributes["href"]]
        for file in files:
            assert (await alice.client.get(file)).status_code == 200
