"""The page of one session: its reports as far as the user may see them, and the two actions on it."""

from __future__ import annotations

import json
import re
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any

import pytest
from airflow import settings
from airflow.models.dagrun import DagRun
from airflow.models.xcom import XComModel
from airflow.sdk import Asset
from sqlalchemy import select

from airflow_mediation_provider.assets import on_meter_session
from airflow_mediation_provider.hooks import tokens
from airflow_mediation_provider.journal import triggered_runs as consequences
from airflow_mediation_provider.protocol.sessions.asset_uri import asset_uri
from airflow_mediation_provider.protocol.zuora.audit import errors_by_code
from airflow_mediation_provider.simulator import running_simulator
from airflow_mediation_provider.simulator.config import MeterConfig, RunPlan, SimulatorConfig
from tests.unit.api_server.pages.conftest import now
from tests.unit.api_server.pages.html import asked, parsed
from tests.unit.journal.old_rows import NOW, concluded, is_in, keep, meter_of, session_of, told, verdict_of, wait_of
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
    return table(page, "Dag Runs triggered by asset event").cells()


def notices(page: Element) -> list[str]:
    return [each.text for each in page.one("div", id="session").all("p", class_="notice")]


class TestReports:
    async def test_the_page_shows_all_reports(self, alice: Browser) -> None:
        keep(
            meter_of("1001", "Usage"),
            session_of("R-1", at(0), started_at=at(0), last_observed_at=at(95), ended_at=at(90)),
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
            "Start Date": "2026-06-01 00:00:00 UTC",
            "End Date": "2026-06-01 01:30:00 UTC",
            "Duration": "1h 30m",
            "Connection": "zuora",
        }
        timeline = table(page, "Reports of the session, the latest first").cells()
        assert [
            (row["Received"][11:16], row["From"], row["To"], row["Source"], row["Notification"]) for row in timeline
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
            "meter 1001": "/mediation/meter?conn=zuora&meter=1001",
        }

    async def test_times_that_zuora_did_not_report_are_marked(self, alice: Browser) -> None:
        keep(session_of("R-1", at(0), last_observed_at=at(60)))
        found = facts(await alice.sees("/session", **KEY))
        assert found["Start Date"] == "2026-06-01 00:00:00 UTC first report"
        assert found["End Date"] == "2026-06-01 01:00:00 UTC when its report was received"

    async def test_the_last_phase_of_a_running_session_is_open(self, alice: Browser) -> None:
        keep(
            session_of("R-1", now() - timedelta(minutes=9), status="RUNNING", terminal=False),
            told("R-1", now() - timedelta(minutes=9), status="RUNNING"),
        )
        page = await alice.sees("/session", **KEY)
        assert facts(page)["Duration"].startswith("since ")
        assert "since 2" in table(page, "Phases").one("tbody").text
        assert ": since 2" in page.one("rect").one("title").text

    async def test_problems_are_explained(self, alice: Browser) -> None:
        keep(
            session_of("R-1", now() - timedelta(hours=7), status="RUNNING", terminal=False, ambiguous=True),
            session_of("R-2", at(0), status="FAILED", conflict=True),
        )
        silent, ambiguous = notices(await alice.sees("/session", **KEY))
        assert re.match(r"No report was received since \S+ \S+ UTC, and the session has no end\.", silent)
        assert ambiguous.startswith("The received reports do not determine the status of this session.")
        [conflict] = notices(await alice.sees("/session", **{**KEY, "session": "R-2"}))
        assert conflict.startswith("Two different end statuses were reported")

    async def test_an_end_before_the_start_is_marked_and_has_no_duration(self, alice: Browser) -> None:
        keep(
            session_of("R-1", at(10), started_at=at(10), ended_at=at(0)),
            session_of("R-2", at(10), ended_at=at(9)),
            told("R-1", at(10), status="RUNNING"),
            told("R-1", at(11), previous_status="RUNNING", status="COMPLETED"),
        )
        page = await alice.sees("/session", **KEY)
        assert facts(page)["Duration"] == "unknown"
        assert notices(page)[0].startswith("The end is before the start: Zuora reported both")
        assert {row["Duration"] for row in table(page, "Phases").cells()} == {NOTHING}
        page = await alice.sees("/session", **{**KEY, "session": "R-2"})
        assert notices(page)[0].startswith("The end is before the start: only one of them is Zuora's time")
        assert {row["Duration"] for row in (await alice.sees("/sessions")).cells()} == {"unknown"}

    async def test_the_lengths_of_the_phases_add_up_to_the_duration(self, alice: Browser) -> None:
        """Each cut to seconds by itself, they would be a second short."""
        start = at(0) + timedelta(milliseconds=600)
        keep(
            session_of("R-1", start, started_at=start, ended_at=start + timedelta(seconds=6.2)),
            told("R-1", start, status="INITIALIZING"),
            told("R-1", start + timedelta(seconds=1.9), previous_status="INITIALIZING", status="RUNNING"),
            told("R-1", start + timedelta(seconds=6.5), previous_status="RUNNING", status="COMPLETED"),
        )
        page = await alice.sees("/session", **KEY)
        assert facts(page)["Duration"] == "6s"
        assert [row["Duration"] for row in table(page, "Phases").cells()] == ["1s", "5s", "0s"]
        assert page.one("svg").attributes["aria-label"] == "INITIALIZING 1s, RUNNING 5s, COMPLETED 0s"

    async def test_the_time_before_the_newest_changes_is_not_shown(self, alice: Browser) -> None:
        loop = [("RUNNING", "PAUSED"), ("PAUSED", "RUNNING")] * 25
        keep(
            session_of("R-1", at(0), status="RUNNING", terminal=False),
            *(
                told("R-1", at(n), previous_status=before, status=status, notification_id=f"n{n}")
                for n, (before, status) in enumerate(loop)
            ),
        )
        page = await alice.sees("/session", **KEY)
        first = table(page, "Phases").cells()[0]
        assert (first["Phase"], first["Duration"]) == ("not shown: only the newest changes are read", "10m")
        assert page.one("svg").classes >= {"phases", "is-cut"}
        assert page.all("rect")[0].one("title").text == "not shown: 10m"

    async def test_a_paused_session_that_a_task_waits_for_needs_a_user(self, alice: Browser) -> None:
        keep(session_of("R-1", now(), status="PAUSED", terminal=False))
        assert notices(await alice.sees("/session", **KEY)) == []
        keep(wait_of("w", session_id="R-1"))
        [needs] = notices(await alice.sees("/session", **KEY))
        assert needs.startswith(
            "The session is PAUSED and a task waits for it: it goes on only after a user has resumed"
        )
        task = {"dag_id": "usage", "run_id": "r", "task_id": "wait"}
        assert needs in (await alice.sees("/task", **task)).text

    async def test_each_id_has_a_button_that_copies_it(self, alice: Browser) -> None:
        keep(session_of("R-1", at(0)), told("R-1", at(0), notification_id="n-1"), wait_of("w", session_id="R-1"))
        page = await alice.sees("/session", **KEY)
        copied = {each.attributes["data-copy"]: each.attributes["aria-label"] for each in page.all(class_="copy")}
        assert copied == {each: f"Copy {each}" for each in ("R-1", "1001", "n-1", "r")}

    async def test_a_cut_timeline_is_marked(self, alice: Browser) -> None:
        keep(session_of("R-1", at(0)), *(told("R-1", at(n), notification_id=f"n{n}") for n in range(501)))
        assert "Only the latest 500 are shown." in (await alice.sees("/session", **KEY)).text

    async def test_the_page_links_to_zuora_if_the_connection_has_a_template(
        self, alice: Browser, directory: Directory
    ) -> None:
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
            # Each with an id of its own: a connection is cached for seconds.
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


class TestWhatTasksConcluded:
    async def test_an_end_by_polls_is_the_sessions_status_with_its_mark(self, alice: Browser) -> None:
        keep(concluded("R-1", at(0)), told("R-1", at(0), status="INITIALIZING", source="run"))
        page = await alice.sees("/session", **KEY)
        assert page.one("h1").text == "R-1 FAILED by poll, not certain"
        assert facts(page)["End Date"] == "2026-06-01 00:11:00 UTC when a task concluded it"
        assert facts(page)["Duration"] == "11m"
        drawn = [[cell.text for cell in row.all("td")] for row in table(page, "Phases").one("tbody").all("tr")]
        assert drawn == [
            ["INITIALIZING", "2026-06-01 00:00:00 UTC", "11m"],
            ["FAILED", "2026-06-01 00:11:00 UTC", "0s"],
        ]
        assert "so far" not in page.text
        assert notices(page) == [
            "A task concluded the end from polls, which name no session, so it is not certain. A callout of the end"
            " takes precedence."
        ]

    async def test_a_certain_verdict_has_no_warning(self, alice: Browser) -> None:
        keep(concluded("R-1", at(0), certain=True))
        page = await alice.sees("/session", **KEY)
        assert page.one("h1").text == "R-1 FAILED by poll"
        assert notices(page) == []

    async def test_a_session_that_zuora_did_not_report_is_marked(self, alice: Browser) -> None:
        keep(concluded("R-1", at(0), reported=False))
        page = await alice.sees("/session", **KEY)
        assert page.one("h1").text == "R-1 FAILED by poll, not certain; known from a task only"
        assert notices(page)[0] == ("Zuora has not reported this session: it is known from a task only.")

    async def test_a_verdict_that_differs_from_zuoras_report_is_no_conflict(
        self, alice: Browser, manager: Manager
    ) -> None:
        differs = session_of("R-1", at(0), last_observed_at=at(20))
        differs.best_differs = True
        keep(differs, verdict_of("R-1", "FAILED", at(11), task_id="wait"), verdict_of("R-1", "COMPLETED", at(12)))
        page = await alice.sees("/session", **KEY)
        assert page.one("h1").text == "R-1 COMPLETED a task concluded otherwise"
        assert notices(page) == [
            "Zuora reported COMPLETED. Task usage.wait concluded FAILED by poll, not certain, at"
            " 2026-06-01 00:11:00 UTC ."
        ]
        manager.deny("dag", "GET", "TASK_INSTANCE", "usage")
        reply = await alice.get("/session", **KEY)
        assert "usage" not in reply.text
        assert notices(parsed(reply.text)) == [
            "Zuora reported COMPLETED. A task that you may not see concluded another end by poll."
        ]

    async def test_tasks_that_disagree_are_named(self, alice: Browser) -> None:
        keep(
            concluded("R-1", at(0), certain=True, differs=True),
            verdict_of("R-1", "FAILED", at(11), certain=True),
            verdict_of("R-1", "COMPLETED", at(12), task_id="other", map_index=3),
        )
        page = await alice.sees("/session", **KEY)
        assert page.one("h1").text == "R-1 FAILED by poll tasks disagree"
        assert notices(page) == [
            "Tasks disagree about the end. Task usage.other [3] concluded COMPLETED by poll, not certain, at"
            " 2026-06-01 00:12:00 UTC ."
        ]

    async def test_tasks_are_shown_with_the_status_on_which_they_ended(self, alice: Browser) -> None:
        wait: dict[str, Any] = {"session_id": "R-1", "ended_at": at(11)}
        branch = {"kind": "branch", "followed": ["alert"], "skipped": ["load", "clean"], "message": "m"}
        keep(
            session_of("R-1", at(0)),
            wait_of("a", **wait, task_id="a", outcome="MET", status="FAILED", evidence="callout", certain=True),
            wait_of("b", **wait, task_id="b", outcome="FAILED", status="FAILED", evidence="poll", certain=False),
            wait_of("c", **wait, task_id="c", outcome="UNCERTAIN", status="FAILED", evidence="poll", certain=False),
            wait_of("d", **wait, task_id="d", mode="task", note=branch),
            wait_of(
                "e", **wait, task_id="e", outcome="MET", status="FAILED", evidence="poll", certain=True, note=branch
            ),
            wait_of("f", **wait, task_id="f", mode="task", note={"kind": "summary", "message": "80 records out."}),
            wait_of("g", **wait, task_id="g", outcome="TIMED_OUT"),
        )
        said = {row["Task"]: row["What it did"] for row in table(await alice.sees("/session", **KEY), "Tasks").cells()}
        assert said == {
            "usage.a": "ended: FAILED (callout)",
            "usage.b": "ended: FAILED (poll, not certain)",
            "usage.c": "ended: FAILED (poll, not certain); certainty was required",
            "usage.d": "followed alert",
            "usage.e": "ended: FAILED (poll); followed alert",
            "usage.f": "80 records out.",
            "usage.g": "timed out",
        }


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
        assert run == {"Dag": "load", "Dag Run": run_id, "State": "queued", "On": "COMPLETED", "Start Date": NOTHING}
        assert page.links()["load"] == "/dags/load"
        waits = table(page, "Tasks")
        assert [(row["Task"], row["What it did"]) for row in waits.cells()] == [
            ("usage.mapped [4]", "waits"),
            ("covert.third", "waits"),
            ("usage.first", "condition met"),
        ]
        assert waits.links()["usage.mapped [4]"] == "/dags/usage/runs/manual__2026%2B1/tasks/mapped/mapped/4"
        assert all("data-top" in each.attributes for each in waits.all("a"))

    async def test_each_task_has_airflows_own_state_and_that_of_its_run(self, alice: Browser, manager: Manager) -> None:
        for task_id, state in {"first": "failed", "mapped": "deferred"}.items():
            map_index = 4 if task_id == "mapped" else -1
            is_in(state, wait_of("", dag_id="usage", task_id=task_id, map_index=map_index, run_id="manual__2026+1"))
        gone: dict[str, Any] = {"conn_id": CONN, "meter_id": "1", "session_id": "R-1", "run_id": "deleted"}
        keep(wait_of("x", **gone, dag_id="usage", task_id="gone", created_at=at(0), until=at(60)), tasks=False)
        said = {row["Task"]: row for row in table(await alice.sees("/session", **ITS), "Tasks").cells()}
        assert said["usage.mapped [4]"]["Until"] != NOTHING
        assert said["usage.gone"]["Until"] == NOTHING  # it does not wait any more, so its deadline does not matter
        assert {task: (row["State"], row["Dag Run"]) for task, row in said.items()} == {
            "usage.mapped [4]": ("deferred", "manual__2026+1: queued"),
            "covert.third": ("deferred", "manual__2026+1: queued"),
            "usage.first": ("failed", "manual__2026+1: queued"),
            "usage.gone": (NOTHING, "deleted"),
        }
        manager.deny("dag", "GET", "RUN", "usage")
        said = {row["Task"]: row for row in table(await alice.sees("/session", **ITS), "Tasks").cells()}
        assert (said["usage.first"]["State"], said["usage.first"]["Dag Run"]) == ("failed", "manual__2026+1")

    async def test_a_run_that_a_task_triggered_with_the_session_is_listed(
        self, alice: Browser, manager: Manager, airflow: Airflow
    ) -> None:
        nothing = "None: no TriggerDagRunOperator in the Dag Runs below passed this session on as conf."
        assert nothing in (await alice.sees("/session", **ITS)).text
        conf = {"session_id": "R-1", "meter_id": "1", "mediation_conn_id": CONN}
        is_in("success", wait_of("", dag_id="usage", run_id="manual__2026+1", task_id="load_usage"))
        of_task = {"dag_id": "usage", "run_id": "manual__2026+1", "task_id": "load_usage", "map_index": -1}
        left = {"_link_TriggerDagRunLink": "/dags/batch/runs/session-R-1", "trigger_run_id": "session-R-1"}
        with settings.NonScopedSession() as session:
            run = DagRun(
                dag_id="batch", run_id="session-R-1", run_type="manual", run_after=NOW, conf=conf, state="failed"
            )
            session.add(run)
            of_run = session.scalar(select(DagRun.id).filter_by(dag_id="usage"))
            session.add_all(
                XComModel(dag_run_id=of_run, key=name, value=value, **of_task) for name, value in left.items()
            )
            session.commit()
        page = await alice.sees("/session", **ITS)
        found = table(page, "Dag Runs triggered by a task")
        assert found.cells() == [
            {
                "Dag": "batch",
                "Dag Run": "session-R-1",
                "State": "failed",
                "Task": "usage.load_usage",
                "Start Date": NOTHING,
            }
        ]
        assert found.links()["session-R-1"] == "/dags/batch/runs/session-R-1"
        for denied in (("dag", "GET", "RUN", "batch"), ("dag", "GET", "TASK_INSTANCE", "usage")):
            manager.denied = {denied}
            page = await alice.sees("/session", **ITS)
            assert "batch" not in page.text
            assert "None that you may see." in page.text

    async def test_without_an_asset_event_the_triggered_runs_are_unknown(self, alice: Browser) -> None:
        keep(session_of("R-2", at(0)))
        page = await alice.sees("/session", **{**KEY, "session": "R-2"})
        assert "Airflow has no asset event of this session." in page.text
        tell(change("R-3", "FAILED", observed_at=now()))
        assert "Airflow has no asset event" not in (await alice.sees("/session", **{**ITS, "session": "R-3"})).text

    async def test_rows_that_a_user_may_not_see_are_left_out(self, alice: Browser, manager: Manager) -> None:
        for dag_id in ("load", "secret"):
            manager.deny("dag", "GET", "RUN", dag_id)
        manager.deny("dag", "GET", "TASK_INSTANCE", "covert")
        reply = await alice.get("/session", **ITS)
        assert not any(word in reply.text for word in ("load", "secret", "covert", "third"))
        page = parsed(reply.text)
        assert "None that you may see." in page.text
        assert [row["Task"] for row in table(page, "Tasks").cells()] == [
            "usage.mapped [4]",
            "usage.first",
        ]
        assert self.missing(page) == {"asleep": False}

    def missing(self, page: Element) -> dict[str, bool]:
        """The Dags that have no run, and whether the user has a button to start it."""
        return {each.all("a")[0].text: bool(each.all("form")) for each in page.all("div", class_="missed-run")}

    async def test_only_users_who_may_start_runs_of_a_dag_have_the_button(
        self, alice: Browser, manager: Manager, airflow: Airflow
    ) -> None:
        manager.deny("dag", "POST", "RUN", "secret")
        for dag_id in ("asleep", "secret"):
            airflow.pause(dag_id, paused=False)
        assert self.missing(await alice.sees("/session", **ITS)) == {"asleep": True, "secret": False}
        reply = await alice.post("/session/replay", **ITS, dag_id="secret")
        assert reply.status_code == 403
        assert "You may not start runs of the Dag secret." in reply.text
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
        assert page.one("p", role="alert").text == "asleep already has a run for this session."
        assert airflow.runs("asleep") == airflow.runs("load") == ["R-1"]
        assert self.missing(page) == {"secret": False}

    async def test_a_run_that_cannot_be_started_is_explained(self, alice: Browser, airflow: Airflow) -> None:
        airflow.know("plain", Asset(asset_uri(CONN, "1", "COMPLETED")))
        tell(change("R-2", "TESTING_PASSED", debug=True, observed_at=now()))
        tell(change("R-3", "RUNNING", None, debug=True, observed_at=now()))
        airflow.know("on_run", on_meter_session("1", "RUNNING"))

        def not_in(dag_id: str, status: str) -> str:
            return f"Nothing was started for {dag_id}: it is not scheduled on this session in the status {status}."

        for session, dag_id, sentence in [
            ("R-1", "nowhere", "Nothing was started for nowhere: there is no Dag 'nowhere'."),
            ("R-1", "on_failure", not_in("on_failure", "COMPLETED")),
            ("R-2", "load", not_in("load", "TESTING_PASSED")),
            (
                "R-1",
                "plain",
                "Nothing was started for plain: its schedule names session assets without on_meter_session(), which",
            ),
            ("R-3", "on_run", not_in("on_run", "RUNNING")),
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
    def simulator(self, services: None, directory: Directory) -> Iterator[Simulator]:
        # The port may be that of an earlier simulator, which had other tokens.
        tokens.forget_all()
        plan = RunPlan((("RUNNING", 60), ("COMPLETED", 0)), records=1234, errors=3)
        meters = (MeterConfig(id="1001", runs=(plan,)),)
        with running_simulator(SimulatorConfig(meters=meters, clock="manual")) as simulator:
            login = {"login": "simulator-client", "password": "simulator-secret"}
            directory.fields = {"host": simulator.url, **login}  # type: ignore[misc]
            yield simulator

    def ended(self, simulator: Simulator) -> dict[str, str]:
        """A session that both Zuora and the journal have."""
        simulator.start_session("1001")
        simulator.advance(100)
        changes = simulator.log("transition")
        session_id = changes[-1]["session_id"]
        begun, ended = (datetime.fromtimestamp(each["at"], UTC) for each in (changes[0], changes[-1]))
        keep(session_of(session_id, begun, last_observed_at=ended))
        return {**KEY, "session": session_id}

    async def test_a_user_who_may_not_read_the_connection_gets_no_counts(
        self, alice: Browser, manager: Manager
    ) -> None:
        keep(session_of("R-1", at(0)))
        manager.deny("connection", "GET", "zuora")
        page = await alice.sees("/session", **KEY)
        summary = page.one("section", id="summary")
        assert summary.all("form") == []
        assert "you may not read this connection" in summary.text
        reply = await alice.post("/session/summary", **KEY)
        assert reply.status_code == 403
        assert "Error records are customers" in reply.text

    async def test_the_counts_and_the_error_records_are_fetched_on_request(
        self, alice: Browser, simulator: Simulator
    ) -> None:
        key = self.ended(simulator)
        page = await alice.sees("/session", **key)
        asking = len(simulator.log("request"))
        form = page.one("section", id="summary").one("form")
        assert (form.attributes["action"], form.one("button").text) == ("/mediation/session/summary", "Load from Zuora")
        assert {each.attributes["name"]: each.attributes["value"] for each in form.all("input")} == key

        summary = (await alice.does("/session/summary", **key)).one("section", id="summary")
        counts = {each.one("dt").text: each.one("dd").text for each in summary.one("dl").all("div")}
        assert counts == {"Records out": "1,234", "Errors": "3"}
        records = summary.all("details")
        shown = [json.loads(pre.text) for each in records for pre in each.all("pre")]
        assert len(shown) == 3
        assert [each.one("summary").text for each in records] == [
            f"{len(group.records)} \N{MULTIPLICATION SIGN} {group.code}: {group.messages[0]}"
            for group in errors_by_code(shown)
        ]
        assert summary.one("button").text == "Load again"
        asked_for = [each["path"] for each in simulator.log("request")[asking:] if "oauth" not in each["path"]]
        assert asked_for == ["/meters/1001/summary", "/meters/1001/auditTrail/entries"]

    async def test_an_error_of_zuora_is_shown_as_one_sentence(self, alice: Browser, simulator: Simulator) -> None:
        key = self.ended(simulator)
        simulator.fault("html", path="summary", count=1)
        page = await alice.does("/session/summary", **key)
        [said] = page.one("section", id="summary").all("p", role="alert")
        assert said.text.endswith(".")

    async def test_a_deleted_connection_is_an_error(self, alice: Browser, directory: Directory) -> None:
        keep(session_of("R-1", at(0)))
        del directory["zuora"]
        page = await alice.does("/session/summary", **KEY)
        said = page.one("section", id="summary").one("p", role="alert").text
        assert said.startswith("Connection 'zuora' was not found")

    async def test_zuora_is_not_called_for_an_unknown_session(self, alice: Browser, simulator: Simulator) -> None:
        before = len(simulator.log("request"))
        assert (await alice.post("/session/summary", **KEY)).status_code == 404
        assert len(simulator.log("request")) == before


async def test_the_page_leads_back_under_the_path_of_airflow(alice: Browser) -> None:
    keep(session_of("R-1", at(0)))
    page = await alice.sees("/session", **KEY)
    assert asked(page.one("p", class_="crumbs").links()["Meter sessions"]) == ("/mediation/sessions", {})
