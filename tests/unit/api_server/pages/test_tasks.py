"""The tabs of a task instance and of a DAG run: what it waits for, and which sessions started it."""

from __future__ import annotations

from datetime import timedelta
from typing import TYPE_CHECKING, Any

import pytest

from airflow_mediation_provider.assets import on_meter_session
from airflow_mediation_provider.protocol.wait_result import WaitEnd
from tests.unit.api_server.pages.conftest import now
from tests.unit.api_server.pages.html import asked
from tests.unit.journal.old_rows import keep, session_of, told, wait_of
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
        assert found["Deadline"].endswith("UTC 2d 3h left")
        assert found["Last reported"].endswith("ago, by a triggerer")
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

    async def test_what_its_condition_says_besides(self, alice: Browser) -> None:
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

    async def test_after_its_end(self, alice: Browser) -> None:
        outcomes: dict[str | None, str] = {
            WaitEnd.MET: "condition met",
            WaitEnd.FAILED: "session failed",
            WaitEnd.TIMED_OUT: "timed out",
            WaitEnd.UNREACHABLE: "Zuora unreachable",
            WaitEnd.MISCONFIGURED: "misconfigured",
            WaitEnd.UNCERTAIN: "not certain",
            "left": "left",
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

    async def test_one_that_nobody_reports_any_more_has_lost_its_process(self, alice: Browser) -> None:
        keep(waiting(session_id="R-1", seen_at=ago(minutes=2)))
        assert (await alice.sees("/task", **TASK)).all("p", class_="notice") == []
        keep(wait_of("v", task_id="lost", session_id="R-1", seen_at=ago(minutes=4), condition=CONDITION))
        notice = (await alice.sees("/task", **{**TASK, "task_id": "lost"})).one("p", class_="notice")
        assert "l-bad" in notice.classes
        assert notice.text.startswith("Its triggerer has not reported this wait for 4m")

    async def test_of_a_session_of_which_nothing_was_told(self, alice: Browser) -> None:
        keep(waiting(session_id="R-1"))
        page = await alice.sees("/task", **TASK)
        assert page.one("p", class_="empty").text == "Nothing was told of this session yet."

    async def test_while_no_session_is_known_it_says_which_one_it_takes(self, alice: Browser) -> None:
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

    async def test_mapped_tasks_are_told_apart(self, alice: Browser) -> None:
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

    async def test_of_a_task_that_waits_for_nothing_it_says_why_that_may_be(self, alice: Browser) -> None:
        page = await alice.sees("/task", **TASK)
        assert page.one("h1").text == "No meter session"
        assert "The journal knows of no wait of this task." in page.text

    async def test_who_may_not_see_the_tasks_of_the_dag_sees_nothing(self, alice: Browser, manager: Manager) -> None:
        keep(waiting(session_id="R-1"))
        manager.deny("dag", "GET", "TASK_INSTANCE", "usage")
        reply = await alice.get("/task", **TASK)
        assert reply.status_code == 403
        assert "You may not see the tasks of the DAG usage." in reply.text
        assert "R-1" not in reply.text

    async def test_beside_it_no_other_dag_is_named(self, alice: Browser) -> None:
        keep(
            waiting(),
            session_of("R-1", ago(hours=1)),
            wait_of("v", dag_id="covert", session_id="R-1"),
        )
        text = (await alice.get("/task", **TASK)).text
        assert "R-1" in text
        assert "covert" not in text


class TestRun:
    async def test_the_session_that_started_it_and_those_that_its_tasks_wait_for(
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
        assert [each.text for each in (page.one("h1"), page.one("h2"))] == ["Started by", "Its tasks wait for"]
        rows = page.cells()
        [started_by] = [row["Session"] for row in rows if "Task" not in row]
        assert started_by in ("R-1", "R-2")
        waits = [(row["Task"], row["Session"], row["Status"], row["Outcome"]) for row in rows if "Task" in row]
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

    async def test_a_run_whose_tasks_wait_and_that_no_session_started(self, alice: Browser) -> None:
        keep(waiting(session_id="R-1"))
        page = await alice.sees("/run", **RUN)
        assert page.one("h1").text == "Its tasks wait for"
        assert [row["Task"] for row in page.cells()] == ["wait"]

    async def test_a_run_that_has_nothing_to_do_with_sessions(self, alice: Browser) -> None:
        page = await alice.sees("/run", dag_id="daily", run_id="r")
        assert page.one("h1").text == "No meter session"

    async def test_who_may_not_see_the_runs_of_the_dag_sees_nothing(self, alice: Browser, manager: Manager) -> None:
        keep(waiting(session_id="R-1"))
        manager.deny("dag", "GET", "RUN", "usage")
        reply = await alice.get("/run", **RUN)
        assert reply.status_code == 403
        assert "You may not see the runs of the DAG usage." in reply.text
        assert "R-1" not in reply.text
