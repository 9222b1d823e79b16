"""The page of one session: its story as far as the user may see it, and the two things that can be done there."""

from __future__ import annotations

import json
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any

import pytest
from airflow.sdk import Asset

from airflow_mediation_provider.assets import on_meter_session
from airflow_mediation_provider.hooks import tokens
from airflow_mediation_provider.journal import consequences
from airflow_mediation_provider.protocol.asset_uri import asset_uri
from airflow_mediation_provider.simulator import running_simulator
from airflow_mediation_provider.simulator.config import MeterConfig, RunPlan, SimulatorConfig
from tests.unit.api_server.pages.conftest import now
from tests.unit.api_server.pages.html import asked, parsed
from tests.unit.journal.old_rows import NOW, keep, session_of, told, wait_of
from tests.unit.journal.scheduling import CONN, change, tell

if TYPE_CHECKING:
    from collections.abc import Iterator

    from airflow_mediation_provider.simulator import Simulator
    from tests.unit.api_server.pages.conftest import Browser, Directory, Manager
    from tests.unit.api_server.pages.html import Element
    from tests.unit.journal.scheduling import Airflow

pytestmark = pytest.mark.usefixtures("journal")

NOTHING = "\N{EN DASH}"
KEY = {"conn": "zuora", "meter": "1001", "session": "R-1"}
ITS = {"conn": CONN, "meter": "1", "session": "R-1"}


def at(minutes: float) -> datetime:
    return NOW + timedelta(minutes=minutes)


def facts(page: Element) -> dict[str, str]:
    return {each.one("dt").text: each.one("dd").text for each in page.all("dl")[0].all("div")}


def table(page: Element, caption: str) -> Element:
    [found] = [each for each in page.all("table") if each.one("caption").text == caption]
    return found


def runs(page: Element) -> list[dict[str, str]]:
    return table(page, "DAG runs that it started").cells()


def notices(page: Element) -> list[str]:
    return [each.text for each in page.one("div", id="session").all("p", class_="notice")]


class TestStory:
    async def test_it_says_what_was_told(self, alice: Browser) -> None:
        keep(
            session_of("R-1", at(0), meter_name="Usage", started_at=at(0), last_observed_at=at(95), ended_at=at(90)),
            told("R-1", at(0), status="INITIALIZING", source="run", notification_id="run:R-1"),
            told(
                "R-1", at(30), previous_status="INITIALIZING", status="RUNNING", source="history", notification_id="h"
            ),
            told(
                None,
                at(40),
                kind="poll",
                source="poll",
                previous_status="PAUSED",
                status="RUNNING",
                notification_id="p",
            ),
            told("R-1", at(50), kind="periodic", status=None, notification_id="i"),
            told("R-1", at(95), previous_status="RUNNING", status="COMPLETED", notification_id="n-1"),
        )
        page = await alice.sees("/session", **KEY)
        assert page.one("head").one("title").text == "Session R-1 · Zuora Mediation"
        assert page.one("h1").text == "R-1 COMPLETED"
        assert facts(page) == {
            "Meter": "1001 Usage",
            "Run type": "NORMAL",
            "Started": "2026-06-01 00:00:00 UTC",
            "Ended": "2026-06-01 01:30:00 UTC",
            "Duration": "1h 30m",
            "Connection": "zuora",
        }
        timeline = table(page, "What was told of the session, the last first").cells()
        assert [
            (row["Learned"][11:16], row["From"], row["To"], row["By"], row["Notification"]) for row in timeline
        ] == [
            ("01:35", "RUNNING", "COMPLETED", "callout", "n-1"),
            ("00:50", NOTHING, "periodic", "callout", "i"),
            ("00:40", "PAUSED", "RUNNING", "poll of the meter: it names no session", "p"),
            ("00:30", "INITIALIZING", "RUNNING", "callout history", "h"),
            ("00:00", NOTHING, "INITIALIZING", "reply to the run call", "run:R-1"),
        ]
        drawn = [[cell.text for cell in row.all("td")] for row in table(page, "Phases").one("tbody").all("tr")]
        assert drawn == [
            ["INITIALIZING", "2026-06-01 00:00:00 UTC", "30m"],
            ["RUNNING", "2026-06-01 00:30:00 UTC", "1h"],
            ["COMPLETED", "2026-06-01 01:30:00 UTC", "0s"],
        ]
        assert notices(page) == []
        crumbs = page.one("p", class_="crumbs").links()
        assert crumbs == {
            "Meter sessions": "/mediation/sessions",
            "meter 1001": "/mediation/sessions?conn=zuora&meter=1001",
        }

    async def test_what_zuora_did_not_tell_is_said_to_be_learned(self, alice: Browser) -> None:
        keep(session_of("R-1", at(0), last_observed_at=at(60)))
        found = facts(await alice.sees("/session", **KEY))
        assert found["Started"] == "2026-06-01 00:00:00 UTC first heard of"
        assert found["Ended"] == "2026-06-01 01:00:00 UTC when that was learned"

    async def test_of_one_that_goes_on_the_last_phase_does_too(self, alice: Browser) -> None:
        keep(
            session_of("R-1", now() - timedelta(minutes=9), status="RUNNING", terminal=False),
            told("R-1", now() - timedelta(minutes=9), status="RUNNING"),
        )
        page = await alice.sees("/session", **KEY)
        assert facts(page)["Duration"].endswith(" so far")
        assert table(page, "Phases").one("tbody").text.endswith(" so far")
        assert page.one("rect").one("title").text.endswith(" so far")

    async def test_trouble_is_said_in_words(self, alice: Browser) -> None:
        keep(
            session_of("R-1", now() - timedelta(hours=7), status="RUNNING", terminal=False, ambiguous=True),
            session_of("R-2", at(0), status="FAILED", conflict=True),
        )
        silent, ambiguous = notices(await alice.sees("/session", **KEY))
        assert silent.startswith("It goes on, and nothing was told of it for 7h.")
        assert ambiguous.startswith("What was told does not say in which status the session is.")
        [conflict] = notices(await alice.sees("/session", **{**KEY, "session": "R-2"}))
        assert conflict.startswith("Two different ends were told of this session")

    async def test_a_timeline_that_is_cut_says_so(self, alice: Browser) -> None:
        keep(session_of("R-1", at(0)), *(told("R-1", at(n), notification_id=f"n{n}") for n in range(501)))
        assert "Only the last 500 are shown." in (await alice.sees("/session", **KEY)).text

    async def test_it_leads_to_zuora_where_the_connection_says_how(self, alice: Browser, directory: Directory) -> None:
        for template, link in [
            ("https://zuora.example/{meter_id}?s={session_id}", "https://zuora.example/1001?s=R-1"),
            ("{ui_base}/meters/{meter_id}", "https://apisandbox.zuora.com/meters/1001"),
            ("https://zuora.example/runs/{run_id}", None),
            ("javascript:alert('{session_id}')", None),
            ("data:text/html,{session_id}", None),
            ("//zuora.example/{session_id}", None),
            ("https://zuora.example/{", None),
            ("https://zuora.example/{0}", None),
            ("https://zuora.example/{session_id.x}", None),
            ("https://zuora.example/{session_id[0]}", None),
            ("https://zuora.example/{nothing}", None),
            ("", None),
        ]:
            # Each of its own: what is known of a connection is known for seconds.
            conn_id = f"zuora{len(directory)}"
            directory[conn_id] = {"ui_link_template": template}
            keep(session_of("R-1", at(0), conn_id=conn_id))
            page = await alice.sees("/session", **{**KEY, "conn": conn_id})
            found = page.one("div", class_="links").all("a")
            assert [each.attributes["href"] for each in found] == ([link] if link else []), template
        for other in ("unknown", "down"):
            keep(session_of("R-1", at(0), conn_id=other))
            directory.down = other == "down"
            assert (await alice.sees("/session", **{**KEY, "conn": other})).one("div", class_="links").all("a") == []


class TestConsequences:
    @pytest.fixture(autouse=True)
    def _story(self, airflow: Airflow, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(consequences, "_SCHEDULED_WITHIN", timedelta(0))
        airflow.know("load", on_meter_session("1", "COMPLETED"))
        airflow.know("on_failure", on_meter_session("1", "FAILED"))
        airflow.know("asleep", on_meter_session("1", "COMPLETED"), paused=True)
        airflow.know("secret", on_meter_session("1", "COMPLETED"), paused=True)
        tell(change("R-1", "COMPLETED", observed_at=now()))
        airflow.schedule()
        wait: dict[str, Any] = {"conn_id": CONN, "meter_id": "1", "session_id": "R-1", "run_id": "manual__2026+1"}
        keep(
            wait_of("w", **wait, dag_id="usage", task_id="first", ended_at=at(3), outcome="MET", created_at=at(1)),
            wait_of("v", **wait, dag_id="usage", task_id="mapped", map_index=4, until=at(60), created_at=at(2)),
            wait_of("u", **wait, dag_id="covert", task_id="third"),
        )

    async def test_runs_and_waits_are_listed_with_their_links(self, alice: Browser, airflow: Airflow) -> None:
        page = await alice.sees("/session", **ITS)
        [run] = runs(page)
        [run_id] = airflow.run_ids("load")
        assert run == {"DAG": "load", "Run": run_id, "State": "queued", "On": "COMPLETED", "Started": NOTHING}
        assert page.links()["load"] == "/dags/load"
        waits = table(page, "Tasks that wait or waited for it")
        assert [(row["Task"], row["Outcome"]) for row in waits.cells()] == [
            ("usage.mapped [4]", "waits"),
            ("covert.third", "waits"),
            ("usage.first", "condition met"),
        ]
        assert waits.links()["usage.mapped [4]"] == "/dags/usage/runs/manual__2026%2B1/tasks/mapped/mapped/4"
        assert all("data-top" in each.attributes for each in waits.all("a"))

    async def test_what_a_user_may_not_see_is_not_there(self, alice: Browser, manager: Manager) -> None:
        for dag_id in ("load", "secret"):
            manager.deny("dag", "GET", "RUN", dag_id)
        manager.deny("dag", "GET", "TASK_INSTANCE", "covert")
        reply = await alice.get("/session", **ITS)
        assert not any(word in reply.text for word in ("load", "secret", "covert", "third"))
        page = parsed(reply.text)
        assert "None that you may see." in page.text
        assert [row["Task"] for row in table(page, "Tasks that wait or waited for it").cells()] == [
            "usage.mapped [4]",
            "usage.first",
        ]
        assert self.missing(page) == {"asleep": False}

    def missing(self, page: Element) -> dict[str, bool]:
        """The DAGs that have no run, and whether the user has a button for that."""
        return {each.all("a")[0].text: bool(each.all("form")) for each in page.all("div", class_="missed-run")}

    async def test_only_who_may_start_runs_of_a_dag_has_a_button_for_that(
        self, alice: Browser, manager: Manager, airflow: Airflow
    ) -> None:
        manager.deny("dag", "POST", "RUN", "secret")
        for dag_id in ("asleep", "secret"):
            airflow.pause(dag_id, paused=False)
        assert self.missing(await alice.sees("/session", **ITS)) == {"asleep": True, "secret": False}
        reply = await alice.post("/session/replay", **ITS, dag_id="secret")
        assert reply.status_code == 403
        assert "You may not start runs of the DAG secret." in reply.text
        assert airflow.runs("secret") == []

    async def test_the_button_starts_the_missing_run_once(self, alice: Browser, airflow: Airflow) -> None:
        page = await alice.sees("/session", **ITS)
        assert self.missing(page) == {"asleep": False, "secret": False}
        assert all("it is paused" in each.text for each in page.all("div", class_="missed-run"))
        page = await alice.does("/session/replay", **ITS, dag_id="asleep")
        refused = page.one("p", role="alert")
        assert refused.classes == {"notice", "l-bad"}
        assert refused.text.startswith("Nothing was started for asleep: it is paused")
        assert airflow.runs("asleep") == []

        airflow.pause("asleep", paused=False)
        page = await alice.sees("/session", **ITS)
        assert self.missing(page) == {"asleep": True, "secret": False}
        form = page.one("form", action="/mediation/session/replay")
        assert form.attributes["method"] == "post"
        fields = {each.attributes["name"]: each.attributes["value"] for each in form.all("input")}
        assert fields == {**ITS, "dag_id": "asleep"}
        page = await alice.does("/session/replay", **fields)
        done = page.one("p", role="alert")
        assert (done.classes, done.text) == ({"notice", "l-good"}, "A run of asleep is queued for this session.")
        assert airflow.runs("asleep") == ["R-1"]
        page = await alice.does("/session/replay", **fields)
        assert page.one("p", role="alert").text == "asleep has a run of it already."
        assert airflow.runs("asleep") == airflow.runs("load") == ["R-1"]
        assert self.missing(page) == {"secret": False}

    async def test_what_cannot_be_started_says_why(self, alice: Browser, airflow: Airflow) -> None:
        airflow.know("plain", Asset(asset_uri(CONN, "1", "COMPLETED")))
        tell(change("R-2", "TESTING_PASSED", debug=True, observed_at=now()))
        tell(change("R-3", "RUNNING", None, debug=True, observed_at=now()))
        airflow.know("on_run", on_meter_session("1", "RUNNING"))
        for session, dag_id, sentence in [
            ("R-1", "nowhere", "Nothing was started: there is no DAG 'nowhere'."),
            ("R-1", "on_failure", f"Nothing was started: no DAG is scheduled on {asset_uri(CONN, '1', 'COMPLETED')}."),
            ("R-2", "load", f"Nothing was started: no DAG is scheduled on {asset_uri(CONN, '1', 'TESTING_PASSED')}."),
            ("R-1", "plain", "Nothing was started for plain: its schedule merges sessions into one run,"),
            ("R-3", "on_run", "Nothing was started for on_run: what was told of this session starts no DAG."),
        ]:
            page = await alice.does("/session/replay", **{**ITS, "session": session}, dag_id=dag_id)
            said = page.one("p", role="alert")
            assert said.text.startswith(sentence)
            assert said.classes == {"notice", "l-bad"}
        assert airflow.runs("load") == ["R-1"]
        reply = await alice.post("/session/replay", **{**ITS, "session": "R-9"}, dag_id="load")
        assert reply.status_code == 404


class TestSummary:
    @pytest.fixture
    def simulator(self, directory: Directory) -> Iterator[Simulator]:
        # The port may be that of an earlier simulator, which knew other tokens.
        tokens.forget_all()
        plan = RunPlan((("RUNNING", 60), ("COMPLETED", 0)), records=1234, errors=3)
        meters = (MeterConfig(id="1001", runs=(plan,)),)
        with running_simulator(SimulatorConfig(meters=meters, clock="manual")) as simulator:
            login = {"login": "simulator-client", "password": "simulator-secret"}
            directory.fields = {"host": simulator.url, **login}  # type: ignore[misc]
            yield simulator

    def ended(self, simulator: Simulator) -> dict[str, str]:
        """A session that Zuora knows, and the journal too."""
        simulator.start_session("1001")
        simulator.advance(100)
        changes = simulator.log("transition")
        session_id = changes[-1]["session_id"]
        begun, ended = (datetime.fromtimestamp(each["at"], UTC) for each in (changes[0], changes[-1]))
        keep(session_of(session_id, begun, last_observed_at=ended))
        return {**KEY, "session": session_id}

    async def test_who_may_not_read_the_connection_is_offered_and_told_nothing(
        self, alice: Browser, manager: Manager
    ) -> None:
        keep(session_of("R-1", at(0)))
        manager.deny("connection", "GET", "zuora")
        page = await alice.sees("/session", **KEY)
        summary = page.one("section", id="summary")
        assert summary.all("form") == []
        assert "only who may read the connection may ask for them" in summary.text
        reply = await alice.post("/session/summary", **KEY)
        assert reply.status_code == 403
        assert "Error records are customers" in reply.text

    async def test_the_counts_and_the_error_records_are_fetched_when_asked_for(
        self, alice: Browser, simulator: Simulator
    ) -> None:
        key = self.ended(simulator)
        page = await alice.sees("/session", **key)
        asking = len(simulator.log("request"))
        form = page.one("section", id="summary").one("form")
        assert (form.attributes["action"], form.one("button").text) == ("/mediation/session/summary", "Ask Zuora")
        assert {each.attributes["name"]: each.attributes["value"] for each in form.all("input")} == key

        summary = (await alice.does("/session/summary", **key)).one("section", id="summary")
        counts = {each.one("dt").text: each.one("dd").text for each in summary.one("dl").all("div")}
        assert counts == {"Records out": "1,234", "Errors": "3"}
        records = summary.all("details")
        assert [each.one("summary").text.partition(":")[0] for each in records] == [
            f"Error record {n}" for n in (1, 2, 3)
        ]
        assert all(isinstance(json.loads(each.one("pre").text), dict) for each in records)
        assert summary.one("button").text == "Ask again"
        asked_for = [each["path"] for each in simulator.log("request")[asking:] if "oauth" not in each["path"]]
        assert asked_for == ["/meters/1001/summary", "/meters/1001/auditTrail/entries"]

    async def test_what_goes_wrong_there_is_one_sentence_here(self, alice: Browser, simulator: Simulator) -> None:
        key = self.ended(simulator)
        simulator.fault("html", path="summary", count=1)
        page = await alice.does("/session/summary", **key)
        [said] = page.one("section", id="summary").all("p", role="alert")
        assert said.text.endswith(".")

    async def test_of_a_connection_that_is_gone_it_says_so(self, alice: Browser, directory: Directory) -> None:
        keep(session_of("R-1", at(0)))
        del directory["zuora"]
        page = await alice.does("/session/summary", **KEY)
        said = page.one("section", id="summary").one("p", role="alert").text
        assert said.startswith("Connection 'zuora' was not found")

    async def test_of_a_session_that_the_journal_does_not_know_nobody_is_asked(
        self, alice: Browser, simulator: Simulator
    ) -> None:
        before = len(simulator.log("request"))
        assert (await alice.post("/session/summary", **KEY)).status_code == 404
        assert len(simulator.log("request")) == before


async def test_the_page_leads_back_under_the_path_of_airflow(alice: Browser) -> None:
    keep(session_of("R-1", at(0)))
    page = await alice.sees("/session", **KEY)
    assert asked(page.one("p", class_="crumbs").links()["Meter sessions"]) == ("/mediation/sessions", {})
