"""The tabs of a task instance and of a Dag run: what it waits for, and which sessions triggered it."""

from __future__ import annotations

import re
from datetime import timedelta
from typing import TYPE_CHECKING, Any

import pytest

from airflow_mediation_provider.assets import on_meter_session
from airflow_mediation_provider.protocol.waits.wait_result import WaitEnd
from tests.unit.api_server.pages.conftest import now
from tests.unit.api_server.pages.html import asked
from tests.unit.journal.old_rows import concluded, is_in, keep, session_of, told, wait_of
from tests.unit.journal.scheduling import CONN, change, tell

if TYPE_CHECKING:
    from datetime import datetime

    from tests.unit.api_server.pages.conftest import Browser, Manager
    from tests.unit.api_server.pages.html import Element
    from tests.unit.journal.scheduling import Airflow

pytestmark = pytest.mark.usefixtures("journal")

NOTHING = "\N{EN DASH}"
RUN = {"dag_id": "usage", "run_id": "r"}
TASK = {**RUN, "task_id": "wait"}
CONDITION = {"statuses": ["COMPLETED"], "fail_on": ["FAILED", "CANCELED"], "run_type": "NORMAL"}


def ago(**span: float) -> datetime:
    return now() - timedelta(**span)


def waiting(**values: Any) -> Any:
    """A wait that its process has just reported."""
    begun: dict[str, Any] = {"created_at": ago(minutes=30), "seen_at": now(), "condition": CONDITION}
    return wait_of("w", **{**begun, **values})


def facts(page: Element) -> dict[str, str]:
    return {each.one("dt").text: each.one("dd").text for each in page.one("dl").all("div")}


class TestTask:
    async def test_while_it_waits_for_a_session(self, alice: Browser) -> None:
        keep(
            waiting(session_id="R-1", until=now() + timedelta(days=2, hours=3, minutes=30)),
            session_of("R-1", ago(minutes=40), status="RUNNING", terminal=False, last_observed_at=ago(minutes=20)),
            told("R-1", ago(minutes=40), status="INITIALIZING", notification_id="a"),
            told("R-1", ago(minutes=20), previous_status="INITIALIZING", status="RUNNING", notification_id="b"),
        )
        page = await alice.sees("/task", **TASK)
        assert page.one("h1").text == "Waits for R-1 of meter 1001"
        found = facts(page)
        assert (found["Until it is"], found["Fails on"], found["Run type"]) == (
            "COMPLETED",
            "FAILED CANCELED",
            "NORMAL",
        )
        assert found["Deadline"].endswith("UTC")
        assert found["Last reported"].endswith("UTC, by a triggerer")
        assert found["Connection"] == "zuora"
        assert "Ended" not in found
        assert page.all("h2")[0].text == "R-1 RUNNING"
        path, shown = asked(page.all("h2")[0].one("a").attributes["href"])
        assert path == "/plugin/mediation-sessions/mediation/session"
        assert shown == {"conn": "zuora", "meter": "1001", "session": "R-1"}
        rows = [row.text.split()[0] for row in page.one("table", class_="narrow").one("tbody").all("tr")]
        assert rows == ["INITIALIZING", "RUNNING"]
        assert [row["To"] for row in page.cells() if "To" in row] == ["RUNNING", "INITIALIZING"]
        assert page.all("p", class_="notice") == []

    async def test_all_parts_of_the_condition_are_shown(self, alice: Browser) -> None:
        keep(
            waiting(session_id="R-1", condition={"statuses": ["RUNNING"], "previous_statuses": ["PAUSED", "STOPPING"]})
        )
        found = facts(await alice.sees("/task", **TASK))
        assert (found["Until it is"], found["Fails on"], found["Run type"], found["Deadline"]) == (
            "RUNNING after PAUSED STOPPING",
            "nothing",
            "NORMAL",
            NOTHING,
        )

    async def test_both_run_types_are_shown(self, alice: Browser) -> None:
        keep(waiting(condition={"statuses": ["CANCELED"], "run_type": ["NORMAL", "DEBUG"]}))
        assert facts(await alice.sees("/task", **TASK))["Run type"] == "NORMAL or DEBUG"

    async def test_after_its_end(self, alice: Browser) -> None:
        outcomes: dict[str | None, str] = {
            WaitEnd.MET: "condition met",
            WaitEnd.FAILED: "session failed",
            WaitEnd.TIMED_OUT: "timed out",
            WaitEnd.UNREACHABLE: "Zuora unreachable",
            WaitEnd.MISCONFIGURED: "misconfigured",
            WaitEnd.UNCERTAIN: "not certain; certainty was required",
            "left": "ended",
            "of a version": "of a version",
            None: "ended",
        }
        assert set(WaitEnd) <= set(outcomes)
        for outcome, words in outcomes.items():
            run_id = str(outcome)
            ended = {"ended_at": ago(minutes=1), "outcome": outcome and str(outcome), "seen_at": ago(hours=1)}
            keep(wait_of(f"w-{outcome}", run_id=run_id, session_id="R-1", condition=CONDITION, **ended))
            page = await alice.sees("/task", **{**TASK, "run_id": run_id})
            assert page.one("h1").text == "Waited for R-1 of meter 1001"
            assert facts(page)["Ended"].endswith(f"UTC {words}")
            assert page.all("p", class_="notice") == []

    async def test_an_end_that_only_its_worker_reported_is_shown(self, alice: Browser) -> None:
        found = {"status": "FAILED", "evidence": "poll", "certain": False}
        keep(wait_of("w", session_id="R-1", condition=CONDITION, mode="worker", **found))
        is_in("success", wait_of("w"))
        page = await alice.sees("/task", **TASK)
        assert page.one("h1").text == "Waited for R-1 of meter 1001"
        assert facts(page)["Ended"] == "ended: FAILED (poll, not certain)"

    async def test_a_wait_without_reports_has_lost_its_process(self, alice: Browser) -> None:
        keep(waiting(session_id="R-1", seen_at=ago(minutes=2)))
        assert (await alice.sees("/task", **TASK)).all("p", class_="notice") == []
        keep(wait_of("v", task_id="lost", session_id="R-1", seen_at=ago(minutes=4), condition=CONDITION))
        notice = (await alice.sees("/task", **{**TASK, "task_id": "lost"})).one("p", class_="notice")
        assert "l-bad" in notice.classes
        assert notice.text.startswith("No triggerer has reported this wait since 20")

    @pytest.mark.parametrize(
        ("state", "mode", "lost"),
        [
            ("deferred", "worker", True),  # no triggerer has ever taken it over
            ("scheduled", "triggerer", False),  # its trigger has fired
            ("running", "worker", False),
        ],
    )
    async def test_a_triggerer_is_missed_where_the_task_is_deferred(
        self, alice: Browser, state: str, mode: str, lost: bool
    ) -> None:
        wait = waiting(session_id="R-1", seen_at=ago(minutes=9), mode=mode)
        is_in(state, wait)
        keep(wait)
        assert bool((await alice.sees("/task", **TASK)).all("p", class_="notice")) is lost

    async def test_a_wait_that_a_stopped_triggerer_left_goes_on_while_its_task_waits(self, alice: Browser) -> None:
        left = waiting(session_id="R-1", outcome="left", seen_at=ago(minutes=1), conn_id="other")
        is_in("deferred", left)
        keep(left, session_of("R-1", ago(hours=1), conn_id="other"))
        page = await alice.sees("/task", **TASK)
        assert page.one("h1").text == "Waits for R-1 of meter 1001"
        notice = page.one("p", class_="notice")
        assert "l-warn" in notice.classes
        assert re.fullmatch(
            r"No triggerer has reported this wait since [-0-9]+ [0-9:]+ UTC \(the one that did was stopped\)\."
            r" The wait goes on once a triggerer runs that can reach the API server\.",
            notice.text,
        )
        assert facts(page)["State of the task"] == "deferred"
        [row] = [row for row in (await alice.sees("/sessions")).cells() if "usage.wait" in row["Tasks"]]
        assert row["Tasks"].startswith("usage.wait waits; no triggerer has reported it since 20")

    async def test_a_session_without_reports_has_a_message(self, alice: Browser) -> None:
        keep(waiting(session_id="R-1"))
        page = await alice.sees("/task", **TASK)
        assert page.one("p", class_="empty").text == "No report of this session has been received yet."

    async def test_a_window_is_shown_with_both_its_bounds(self, alice: Browser) -> None:
        keep(waiting(condition={**CONDITION, "since": "2026-03-31T09:00:00Z", "before": "2026-03-31T10:00:00Z"}))
        text = (await alice.sees("/task", **TASK)).text
        assert "starts at 2026-03-31 09:00:00 UTC or later, and before 2026-03-31 10:00:00 UTC" in text

    async def test_without_a_session_the_tab_shows_which_one_the_task_takes(self, alice: Browser) -> None:
        keep(waiting(condition={**CONDITION, "since": "2026-03-31T09:00:00+00:00"}))
        page = await alice.sees("/task", **TASK)
        assert page.one("h1").text == "Waits for a session of meter 1001"
        assert "the first session that starts at 2026-03-31 09:00:00 UTC or later" in page.text
        assert page.all("table") == []
        keep(*(session_of(f"R-{number}", ago(days=number + 1)) for number in range(7)))
        keep(session_of("R-8", now(), meter_id="7"), session_of("R-9", now(), conn_id="other"))
        page = await alice.sees("/task", **TASK)
        assert [row["Session"] for row in page.cells()] == ["R-0", "R-1", "R-2", "R-3", "R-4"]
        assert asked(page.links()["R-0"])[0] == "/plugin/mediation-sessions/mediation/session"

    async def test_a_condition_of_another_version_is_shown_as_far_as_it_goes(self, alice: Browser) -> None:
        for number, condition in enumerate(
            [{}, {"since": 5}, {"since": "then"}, {"since": "2026-03-31"}, {"statuses": None}]
        ):
            keep(wait_of(f"w{number}", run_id=str(number), condition=condition))
            page = await alice.sees("/task", **{**TASK, "run_id": str(number)})
            assert "the first session that starts from now on" in page.text

    async def test_mapped_tasks_are_distinguished(self, alice: Browser) -> None:
        keep(
            wait_of("a", session_id="R-0", map_index=0, condition=CONDITION),
            wait_of("b", session_id="R-1", map_index=1, condition=CONDITION),
            wait_of("c", session_id="R-2", condition=CONDITION),
        )
        for map_index, session_id in {"0": "R-0", "1": "R-1", "": "R-2", "-1": "R-2", "{MAP_INDEX}": "R-2"}.items():
            assert session_id in (await alice.sees("/task", **TASK, map_index=map_index)).one("h1").text
        assert (await alice.sees("/task", **TASK)).one("h1").text.startswith("Waited") is False
        assert (await alice.sees("/task", **TASK, map_index="7")).one("h1").text == "No meter session"

    async def test_a_run_id_with_a_plus_is_found(self, alice: Browser) -> None:
        run_id = "manual__2026-03-31T09:00:00+00:00"
        keep(waiting(run_id=run_id, session_id="R-1"))
        assert "R-1" in (await alice.sees("/task", **{**TASK, "run_id": run_id})).one("h1").text

    @pytest.mark.parametrize(
        ("task", "reason"),
        [
            (None, "Airflow has no such task instance."),
            (
                {"operator": "PythonOperator", "state": "success"},
                "This task runs PythonOperator, which reports no session.",
            ),
            (
                {"operator": "StopMeterOperator", "state": "success"},
                "This task runs StopMeterOperator, which reports no session.",
            ),
            ({"state": "queued"}, "The task has not started yet."),
            ({"state": None}, "The task has not started yet."),
            ({"state": "upstream_failed"}, "The task is upstream_failed, so it did nothing."),
            (
                {"state": "running", "start_date": 0.1},
                "The task has reported nothing yet: its log shows whether it reaches the API server.",
            ),
            (
                {"state": "success", "start_date": 3, "end_date": 2},
                "The task reported nothing, as it could not reach the API server: its log has the reason.",
            ),
            (
                {"state": "failed", "start_date": 3, "end_date": 2},
                "The task failed before it reported anything: its log has the reason.",
            ),
            (
                {"state": "up_for_retry", "start_date": 3},
                "The task failed before it reported anything: its log has the reason.",
            ),
            (
                {"state": "success", "start_date": 100, "end_date": 99},
                "The task ended 99d ago, and what it reported was pruned.",
            ),
        ],
    )
    async def test_the_tab_of_a_task_without_a_session_gives_one_reason(
        self, alice: Browser, task: dict[str, Any] | None, reason: str
    ) -> None:
        if task is not None:
            dates = {name: ago(days=task[name]) for name in ("start_date", "end_date") if name in task}
            known = {"operator": "MeterSessionSensor", **task, **dates}
            is_in(known.pop("state"), wait_of("w"), **known)
        page = await alice.sees("/task", **TASK)
        assert page.one("h1").text == "No meter session"
        assert page.one("section").one("p").text == reason

    async def test_a_task_that_ended_after_a_stored_wait_is_not_called_pruned(self, alice: Browser) -> None:
        dates = {"start_date": ago(days=100), "end_date": ago(days=99)}
        is_in("success", wait_of("w"), operator="MeterSessionSensor", **dates)
        keep(wait_of("v", task_id="earlier", ended_at=ago(days=120), outcome="MET"))
        page = await alice.sees("/task", **TASK)
        assert page.one("section").one("p").text.startswith("The task reported nothing, as it could not reach")

    async def test_the_tab_of_a_branch_shows_its_session_and_its_branch(self, alice: Browser) -> None:
        note = {
            "kind": "branch", "status": "FAILED", "evidence": "poll", "certain": False, "message": "Following alert.",
            "followed": ["alert"], "skipped": ["load", "clean"],
        }  # fmt: skip
        branch = wait_of("w", session_id="R-1", mode="task", note=note, ended_at=now(), seen_at=now())
        is_in("success", branch)
        keep(branch, concluded("R-1", ago(hours=1)))
        page = await alice.sees("/task", **TASK)
        assert page.one("h1").text == "Branched on R-1 of meter 1001"
        found = facts(page)
        assert (found["Branched on"], found["Branch"], found["State of the task"]) == (
            "FAILED (poll, not certain)",
            "alert skipped: load, clean",
            "success",
        )
        assert not {"Until it is", "Deadline", "Last reported", "Waits since"} & set(found)
        assert page.all("h2")[0].text == "R-1 FAILED by poll, not certain"
        assert "Following alert." in page.text

    async def test_the_tab_of_a_branch_that_waited_shows_wait_and_branch(self, alice: Browser) -> None:
        note = {"kind": "branch", "status": "COMPLETED", "evidence": "callout", "certain": True, "followed": []}
        ended: dict[str, Any] = {"ended_at": now(), "outcome": "MET", "status": "COMPLETED", "evidence": "callout"}
        keep(waiting(session_id="R-1", certain=True, note=note, **ended), session_of("R-1", ago(hours=1)))
        page = await alice.sees("/task", **TASK)
        assert page.one("h1").text == "Waited for R-1 of meter 1001"
        found = facts(page)
        assert (found["Branched on"], found["Branch"]) == ("COMPLETED (callout)", "none")
        assert found["Ended"].endswith("UTC ended: COMPLETED (callout); followed no branch")

    @pytest.mark.parametrize(
        ("kind", "session_id", "heading"),
        [
            ("summary", "R-1", "Summary of R-1 of meter 1001"),
            ("summary", None, "Summary of meter 1001"),
            ("export", "R-1", "Export of R-1 of meter 1001"),
            ("run", "R-1", "Run of R-1 of meter 1001"),
            ("run", None, "Run of meter 1001"),
            ("of a version", None, "About meter 1001"),
        ],
    )
    async def test_the_tab_of_any_other_task_shows_its_note(
        self, alice: Browser, kind: str, session_id: str | None, heading: str
    ) -> None:
        note = {"kind": kind, "message": "The meter was not started: the meter does not exist."}
        keep(wait_of("w", session_id=session_id, mode="task", note=note, ended_at=now(), seen_at=now()))
        page = await alice.sees("/task", **TASK)
        assert page.one("h1").text == heading
        assert note["message"] in page.text
        refused = kind == "run" and session_id is None
        assert [each.text for each in page.all("p", class_="l-bad")] == [note["message"]] * refused
        assert "It was for the first session" not in page.text

    async def test_a_user_who_may_not_see_the_tasks_of_the_dag_sees_nothing(
        self, alice: Browser, manager: Manager
    ) -> None:
        keep(waiting(session_id="R-1"))
        manager.deny("dag", "GET", "TASK_INSTANCE", "usage")
        reply = await alice.get("/task", **TASK)
        assert reply.status_code == 403
        assert "You may not see the tasks of the Dag usage." in reply.text
        assert "R-1" not in reply.text

    async def test_the_tab_names_no_other_dag(self, alice: Browser) -> None:
        keep(
            waiting(),
            session_of("R-1", ago(hours=1)),
            wait_of("v", dag_id="covert", session_id="R-1"),
        )
        text = (await alice.get("/task", **TASK)).text
        assert "R-1" in text
        assert "covert" not in text


class TestRun:
    async def test_the_tab_shows_the_triggering_session_and_those_that_tasks_wait_for(
        self, alice: Browser, airflow: Airflow, manager: Manager
    ) -> None:
        airflow.know("load", on_meter_session("1", "COMPLETED"))
        airflow.know("secret", on_meter_session("1", "COMPLETED"))
        tell(change("R-1", "COMPLETED"), change("R-2", "COMPLETED"))
        airflow.schedule()
        [first, _] = airflow.run_ids("load")
        of_run: dict[str, Any] = {"dag_id": "load", "run_id": first, "conn_id": CONN, "meter_id": "1"}
        keep(
            wait_of(
                "a", **of_run, task_id="known", session_id="R-2", ended_at=now(), outcome="MET", created_at=ago(hours=3)
            ),
            wait_of("b", **of_run, task_id="untold", session_id="R-9", created_at=ago(hours=2)),
            wait_of("c", **of_run, task_id="open", map_index=2, created_at=ago(hours=1)),
        )
        page = await alice.sees("/run", dag_id="load", run_id=first)
        assert [each.text for each in (page.one("h1"), page.one("h2"))] == ["Triggered by", "Tasks"]
        rows = page.cells()
        [started_by] = [row["Session"] for row in rows if "Task" not in row]
        assert started_by in ("R-1", "R-2")
        waits = [(row["Task"], row["Session"], row["Status"], row["What it did"]) for row in rows if "Task" in row]
        assert waits == [
            ("open [2]", "not known yet", NOTHING, "waits"),
            ("untold", "R-9", NOTHING, "waits"),
            ("known", "R-2", "COMPLETED", "condition met"),
        ]
        assert all("data-top" in each.attributes for each in page.one("main").all("a"))
        assert "secret" not in page.text
        manager.deny("dag", "GET", "TASK_INSTANCE", "load")
        page = await alice.sees("/run", dag_id="load", run_id=first)
        assert [row["Session"] for row in page.cells()] == [started_by]
        assert page.all("h2") == []

    async def test_a_run_with_waiting_tasks_that_no_session_triggered(self, alice: Browser) -> None:
        keep(waiting(session_id="R-1"))
        page = await alice.sees("/run", **RUN)
        assert page.one("h1").text == "Tasks"
        assert [row["Task"] for row in page.cells()] == ["wait"]

    async def test_each_task_about_a_session_is_listed_with_its_branch(self, alice: Browser) -> None:
        note: dict[str, Any] = {"kind": "branch", "followed": ["alert"], "skipped": ["load"]}
        ended: dict[str, Any] = {"ended_at": now(), "session_id": "R-1", "mode": "task"}
        keep(
            concluded("R-1", ago(hours=1)),
            wait_of("a", task_id="summary", note={"kind": "summary", "message": "No errors."}, **ended),
            wait_of("b", task_id="branch", note=note, **ended),
        )
        rows = (await alice.sees("/run", **RUN)).cells()
        assert {row["Task"]: (row["Status"], row["What it did"], row["Branch"]) for row in rows} == {
            "summary": ("FAILED by poll, not certain", "No errors.", NOTHING),
            "branch": ("FAILED by poll, not certain", "followed alert", "alert skipped: load"),
        }

    async def test_a_run_without_sessions_has_a_message(self, alice: Browser) -> None:
        page = await alice.sees("/run", dag_id="daily", run_id="r")
        assert page.one("h1").text == "No meter session"

    async def test_a_user_who_may_not_see_the_runs_of_the_dag_sees_nothing(
        self, alice: Browser, manager: Manager
    ) -> None:
        keep(waiting(session_id="R-1"))
        manager.deny("dag", "GET", "RUN", "usage")
        reply = await alice.get("/run", **RUN)
        assert reply.status_code == 403
        assert "You may not see the runs of the Dag usage." in reply.text
        assert "R-1" not in reply.text
