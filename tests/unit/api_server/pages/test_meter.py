"""The page of a meter, and the tab of a Dag with its meters."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any

import pytest

from airflow_mediation_provider.api_server.pages.meter import answer, trend
from airflow_mediation_provider.assets import ANY_METER, on_meter_session
from airflow_mediation_provider.protocol.sessions.usual import LEAST, PastSession, Tempo, usual_duration
from tests.unit.journal.old_rows import concluded, keep, meter_of, session_of, wait_of
from tests.unit.journal.scheduling import CONN, change, tell

if TYPE_CHECKING:
    from airflow_mediation_provider.journal.tables import SessionRow
    from tests.unit.api_server.pages.conftest import Browser, Directory, Manager
    from tests.unit.api_server.pages.html import Element
    from tests.unit.journal.scheduling import Airflow

pytestmark = pytest.mark.usefixtures("journal")

NOW = datetime(2026, 6, 1, 12, tzinfo=UTC)
HOUR = timedelta(hours=1)
KEY = {"conn": "zuora", "meter": "1001"}


def past(*statuses: str, minutes: float = 10, ago: timedelta = HOUR, every: timedelta = HOUR) -> list[PastSession]:
    """Sessions, the newest first; the newest began so long ago."""
    begun = [NOW - ago - every * number for number in range(len(statuses))]
    took = timedelta(minutes=minutes)
    return [
        PastSession(f"R-{at}", each, each + took, status)
        for at, (each, status) in enumerate(zip(begun, statuses, strict=True))
    ]


def says(*sessions: PastSession) -> tuple[str, str]:
    return tuple(answer(Tempo.of(sessions), NOW))


class TestAnswer:
    def test_without_a_session_nothing_is_known(self) -> None:
        assert says() == ("", "No session of this meter has been received.")

    def test_a_success(self) -> None:
        assert says(*past("COMPLETED")) == (
            "good", "Yes: R-0 ended COMPLETED 50m ago.",
        )  # fmt: skip
        assert says(*past("COMPLETED", "COMPLETED", "FAILED"))[1].startswith(
            "Yes: R-0 ended COMPLETED 50m ago, like the one before it"
        )

    def test_failures_in_a_row(self) -> None:
        assert says(*past("FAILED", "FAILED", "FAILED", "COMPLETED")) == (
            "bad", "No: R-0 ended FAILED 50m ago, like the 2 before it.",
        )  # fmt: skip

    @pytest.mark.parametrize("status", ["CANCELED", "SOMETHING NEW"])
    def test_another_end(self, status: str) -> None:
        level, text = says(*past(status))
        assert (level, text.partition(":")[0]) == ("warn", "Perhaps not")

    def test_a_test(self) -> None:
        assert [says(*past(each))[0] for each in ("TESTING_PASSED", "TESTING_FAILED")] == ["good", "bad"]

    def test_an_end_that_is_not_certain_is_called_so(self) -> None:
        [last] = past("COMPLETED")
        assert "ended COMPLETED 50m ago, which is not certain" in says(last._replace(certain=False))[1]

    def test_a_session_that_goes_on(self) -> None:
        live = PastSession("live", NOW - timedelta(minutes=3), None, "RUNNING")
        assert says(live) == ("", "No session has ended yet; live has been live for 3m.")
        assert says(live, *past("COMPLETED"))[0] == "good"

    def test_longer_than_usual_is_worse_than_ok_and_no_better_than_failed(self) -> None:
        live = PastSession("live", NOW - timedelta(minutes=30), None, "RUNNING")
        ended = past(*["COMPLETED"] * LEAST)
        level, text = says(live, *ended)
        assert (level, text) == (
            "warn",
            "Perhaps not: R-0 ended COMPLETED 50m ago, like the 4 before it; "
            "live has been live for 30m, longer than usual.",
        )
        assert says(live, *past("FAILED"), *ended)[0] == "bad"

    def test_late(self) -> None:
        level, text = says(*past(*["COMPLETED"] * 9, ago=3 * HOUR))
        assert level == "warn"
        assert text.endswith("; the next one is late: one starts about every 1h, the last one 3h ago.")


class TestTrend:
    def test_without_a_session_there_is_none(self) -> None:
        assert trend([], None, NOW) is None

    def test_the_highest_bar_is_the_longest_and_the_oldest_the_first(self) -> None:
        sessions = [*past("COMPLETED", minutes=5), *past("FAILED", minutes=20, ago=2 * HOUR)]
        made = trend(sessions, None, NOW)
        assert made is not None
        assert [(each.session.status, each.y, each.height) for each in made.bars] == [
            ("FAILED", 0, 100),
            ("COMPLETED", 75, 25),
        ]
        assert made.bars[0].x < made.bars[1].x
        assert [(each.y, each.text) for each in made.marks] == [(0, "20m"), (50, "10m"), (100, "0s")]
        assert made.band is None

    def test_the_band_is_the_usual_range(self) -> None:
        sessions = [PastSession(str(each), NOW, NOW + timedelta(minutes=each), "COMPLETED") for each in (1, 2, 3, 4)]
        sessions.append(PastSession("live", NOW - timedelta(minutes=8), None, "RUNNING"))
        sessions.append(PastSession("5", NOW, NOW + timedelta(minutes=4), "COMPLETED"))
        made = trend(sessions, usual_duration(sessions), NOW)
        assert made is not None
        assert made.band == (50, 37.5)

    def test_each_part_lies_within_the_chart(self) -> None:
        sessions = [PastSession(str(each), NOW, NOW + timedelta(minutes=each - 5), "COMPLETED") for each in range(60)]
        made = trend(sessions, usual_duration(sessions), NOW)
        assert made is not None
        assert all(bar.y >= 0 and bar.y + bar.height <= 100.01 for bar in made.bars)
        assert all(bar.x >= 0 and bar.x + bar.width <= made.width for bar in made.bars)


# ---- the page


def ago(**span: float) -> datetime:
    return datetime.now(UTC) - timedelta(**span)


def ended(number: int, status: str = "COMPLETED", *, hours: float, minutes: float = 10, **more: Any) -> SessionRow:
    """A session that began so many hours ago."""
    begun = ago(hours=hours)
    row = session_of(f"R-{number}", begun, status=status, ended_at=begun + timedelta(minutes=minutes), **more)
    row.last_observed_at = begun + timedelta(minutes=minutes)
    return row


def fact(page: Element, name: str) -> str:
    [found] = [each for each in page.one("dl").all("div") if each.one("dt").text == name]
    return found.one("dd").text


def sentence(page: Element) -> str:
    return page.all("p", class_="notice")[0].text


class TestPage:
    async def test_a_meter_that_fails_shows_it_at_once(self, alice: Browser) -> None:
        keep(meter_of("1001", "Storage"))
        keep(*(ended(number, hours=30 - number) for number in range(10)))
        keep(ended(10, "FAILED", hours=2), ended(11, "FAILED", hours=1), ended(12, "FAILED", hours=1, meter_id="other"))
        page = await alice.sees("/meter", **KEY)
        assert page.one("h1").text == "Meter 1001 Storage"
        assert sentence(page).startswith("No: R-11 ended FAILED 50m ago, like the one before it")
        assert fact(page, "Last success").endswith("UTC R-9")
        assert fact(page, "Streak") == "2 FAILED in a row"
        assert fact(page, "Failure rate").startswith("2 of 12 ended sessions failed (17 %), since ")
        assert fact(page, "Usual duration") == "10m to 10m of 10 successes"
        assert "The newest NORMAL sessions, 12 of them" in page.one("figcaption").text
        cells = page.one("table", class_="matrix").one("tbody").all("tr")[0].all("td")
        assert len(cells) == 12
        assert "R-11 FAILED" in cells[-1].text
        assert "session=R-11" in (cells[-1].one("a").attributes["href"] or "")

    async def test_an_unknown_meter(self, alice: Browser) -> None:
        page = await alice.sees("/meter", conn="zuora", meter="nothing")
        assert sentence(page) == "No session of this meter has been received."
        assert page.all("svg") == []

    async def test_too_few_sessions_say_so(self, alice: Browser) -> None:
        keep(ended(1, hours=1))
        page = await alice.sees("/meter", **KEY)
        assert fact(page, "Usual duration") == "too few of the newest sessions succeeded"
        assert fact(page, "Starts") == "no regular rhythm, so the next one is never late"
        assert "no usual range" in page.one("figcaption").text

    async def test_an_end_by_poll_is_called_uncertain(self, alice: Browser) -> None:
        keep(concluded("R-1", ago(hours=1), best="COMPLETED"))
        assert "which is not certain" in sentence(await alice.sees("/meter", **KEY))

    async def test_a_meter_with_tests_alone(self, alice: Browser) -> None:
        keep(ended(1, "TESTING_FAILED", hours=1, run_type="DEBUG"))
        page = await alice.sees("/meter", **KEY)
        assert fact(page, "Run type") == "DEBUG"
        assert sentence(page).startswith("No:")

    async def test_the_matrix_has_tasks_and_runs_of_each_session(self, alice: Browser, airflow: Airflow) -> None:
        airflow.know("load", on_meter_session("1", "COMPLETED"))
        airflow.know("asleep", on_meter_session("1", "COMPLETED"), paused=True)
        tell(change("R-1", "COMPLETED", observed_at=ago(hours=2)))
        airflow.schedule()
        tell(change("R-2", "FAILED", observed_at=ago(hours=1)))
        keep(wait_of("w", conn_id=CONN, meter_id="1", session_id="R-2", ended_at=ago(hours=1)))
        page = await alice.sees("/meter", conn=CONN, meter="1")
        found = {
            line.one("th").text: [each.text for each in line.all("td")]
            for line in page.one("table", class_="matrix").one("tbody").all("tr")
        }
        assert list(found) == ["Session", "usage.wait", "load"]
        assert [bool(each) for each in found["usage.wait"]] == [False, True]
        assert [each.partition("R-1: ")[2] for each in found["load"]] == ["queued", ""]
        dags = [each.text for each in page.all("section") if each.one("h2").text == "Dags scheduled on it"]
        assert dags == ["Dags scheduled on it asleep on COMPLETED, paused load on COMPLETED"]

    async def test_what_the_user_may_not_see_is_left_out(
        self, alice: Browser, airflow: Airflow, manager: Manager
    ) -> None:
        airflow.know("load", on_meter_session("1", "COMPLETED"))
        tell(change("R-1", "COMPLETED", observed_at=ago(hours=2)))
        airflow.schedule()
        of = {"conn_id": CONN, "meter_id": "1"}
        keep(wait_of("w", **of, session_id="R-1"), wait_of("v", **of, dag_id="open", run_id="o"))
        manager.deny("dag", "GET", "RUN", "load")
        manager.deny("dag", "GET", "TASK_INSTANCE", "usage")
        text = (await alice.sees("/meter", conn=CONN, meter="1")).text
        assert "load" not in text.replace("The page of a session loads", "")
        assert "usage.wait" not in text
        assert "open.wait" in text
        assert "None that you may see." in text

    async def test_tasks_that_wait_now_are_listed(self, alice: Browser) -> None:
        keep(wait_of("w"), wait_of("over", task_id="other", ended_at=ago(hours=1)))
        page = await alice.sees("/meter", **KEY)
        [waiting] = [each for each in page.all("section") if each.one("h2").text == "Waiting tasks"]
        assert waiting.text == "Waiting tasks usage.wait waits"

    async def test_what_a_task_counted_is_shown(self, alice: Browser) -> None:
        note = {"kind": "summary", "message": "7 records out, 3 errors."}
        keep(ended(1, hours=1), wait_of("w", session_id="R-1", mode="task", note=note, ended_at=ago(hours=1)))
        page = await alice.sees("/meter", **KEY)
        [counted] = [each for each in page.all("section") if each.one("h2").text == "Error counts"]
        assert counted.text == "Error counts R-1 7 records out, 3 errors."

    async def test_the_name_that_the_connection_gives_comes_first(self, alice: Browser, directory: Directory) -> None:
        keep(
            ended(1, hours=1),
            ended(2, hours=1, meter_id="1002"),
            meter_of("1001", "Received"),
            meter_of("1002", "Received"),
        )
        directory["zuora"] = {"meter_names": {"1001": "Given"}}
        names = {row["Session"]: row["Meter"] for row in (await alice.sees("/sessions")).cells()}
        assert names == {"R-1": "1001 Given", "R-2": "1002 Received"}
        assert (await alice.sees("/meter", **KEY)).one("h1").text == "Meter 1001 Given"

    async def test_a_connection_with_wrong_settings_gives_no_names(self, alice: Browser, directory: Directory) -> None:
        keep(ended(1, hours=1), meter_of("1001", "Received"))
        directory["zuora"] = {"meter_names": {"1001": "Given"}, "timeout": "long"}
        assert (await alice.sees("/meter", **KEY)).one("h1").text == "Meter 1001 Received"


class TestMarks:
    """What is not usual stands out in the list and on the page of a session."""

    async def test_a_session_that_takes_long(self, alice: Browser) -> None:
        keep(*(ended(number, hours=number) for number in range(1, 10)))
        keep(session_of("R-live", ago(minutes=40), status="RUNNING", terminal=False, last_observed_at=ago()))
        keep(session_of("R-short", ago(minutes=5), status="RUNNING", terminal=False, last_observed_at=ago()))
        marked = {row["Session"]: row["Status"] for row in (await alice.sees("/sessions")).cells()}
        assert marked["R-live"] == "RUNNING longer than usual"
        assert marked["R-short"] == "RUNNING"
        assert set(marked.values()) == {"RUNNING longer than usual", "RUNNING", "COMPLETED"}
        listed = (await alice.get("/sessions.json")).json()["sessions"]
        assert [each["session_id"] for each in listed if each["longer_than_usual"]] == ["R-live"]
        page = await alice.sees("/session", **KEY, session="R-live")
        assert page.one("h1").text == "R-live RUNNING longer than usual"

    async def test_the_newest_session_of_a_late_meter(self, alice: Browser) -> None:
        keep(*(ended(number, hours=3 + number) for number in range(9)))
        keep(ended(20, hours=0.5, meter_id="1002"), ended(21, hours=0.1, run_type="DEBUG", status="TESTING_PASSED"))
        marked = [row["Session"] for row in (await alice.sees("/sessions")).cells() if "next one late" in row["Status"]]
        assert marked == ["R-0"]
        listed = (await alice.get("/sessions.json")).json()["sessions"]
        assert [each["session_id"] for each in listed if each["next_late"]] == ["R-0"]
        assert sentence(await alice.sees("/meter", **KEY)).endswith("one starts about every 1h, the last one 3h ago.")

    async def test_no_mark_is_older_than_the_sessions_that_are_listed(self, alice: Browser) -> None:
        keep(*(ended(number, hours=3 + number) for number in range(9)))
        for _ in range(2):
            assert "next one late" in (await alice.get("/sessions")).text
        keep(session_of("R-new", ago(), status="RUNNING", terminal=False))
        assert "next one late" not in (await alice.get("/sessions")).text


class TestDag:
    async def test_a_dag_of_one_meter_shows_all_of_it(self, alice: Browser, airflow: Airflow) -> None:
        airflow.know("load", on_meter_session("1", "COMPLETED"))
        tell(change("R-1", "FAILED", observed_at=ago(hours=2)))
        page = await alice.sees("/dag", dag_id="load")
        assert page.one("h1").text == "Meter 1"
        assert sentence(page).startswith("No: R-1 ended FAILED 2h ago")
        assert len(page.all("svg")) == 1
        assert "data-top" in page.one("h1").one("a").attributes

    async def test_the_meters_of_its_tasks(self, alice: Browser) -> None:
        keep(ended(1, hours=1), ended(2, "FAILED", hours=1, meter_id="1002"), meter_of("1002", "Storage"))
        keep(wait_of("v", meter_id="1002", task_id="other"), wait_of("w"))
        page = await alice.sees("/dag", dag_id="usage")
        assert [each.one("header").text for each in page.all("section")] == ["Meter 1001", "Meter 1002 Storage"]
        assert [each.text.partition(":")[0] for each in page.all("p", class_="notice")] == ["Yes", "No"]
        assert page.all("svg") == []

    async def test_a_dag_on_any_meter(self, alice: Browser, airflow: Airflow) -> None:
        airflow.know("load", on_meter_session(ANY_METER, "FAILED"))
        tell(change("R-1", "FAILED", observed_at=ago(hours=2)))
        page = await alice.sees("/dag", dag_id="load")
        assert page.one("h1").text == "Meter 1"
        assert f"any meter of the connection {CONN}" in page.text

    async def test_a_dag_without_a_meter(self, alice: Browser) -> None:
        page = await alice.sees("/dag", dag_id="other")
        assert page.one("h1").text == "No meter"

    async def test_a_dag_that_the_user_may_not_see_is_refused(self, alice: Browser, manager: Manager) -> None:
        manager.deny("dag", "GET", "RUN", "usage")
        reply = await alice.get("/dag", dag_id="usage")
        assert reply.status_code == 403

    async def test_without_the_permission_to_see_tasks_what_they_did_is_left_out(
        self, alice: Browser, manager: Manager
    ) -> None:
        keep(ended(1, hours=1), wait_of("w"))
        manager.deny("dag", "GET", "TASK_INSTANCE", "usage")
        page = await alice.sees("/dag", dag_id="usage")
        assert page.one("h1").text == "No meter"
        assert "that you may see" in page.text
