"""Each statement of the health line: its cause, the list to which it leads, and that it ends when its cause ends."""

from __future__ import annotations

import json
from dataclasses import dataclass, replace
from datetime import timedelta
from typing import TYPE_CHECKING, Any

import pytest
from airflow import settings
from airflow.sdk import Asset
from sqlalchemy import update

from airflow_mediation_provider.api_server.connections import Connections
from airflow_mediation_provider.assets import on_meter_session
from airflow_mediation_provider.journal import triggered_runs
from airflow_mediation_provider.journal.receipts import Seen, record_receipts
from airflow_mediation_provider.journal.replay import replay
from airflow_mediation_provider.journal.tables import AnswersRow, CallsRow, HistoryRow, WaitRow
from airflow_mediation_provider.journal.writer import record
from airflow_mediation_provider.protocol.callouts.receipt import NO_CONNECTION, Receipt
from airflow_mediation_provider.protocol.sessions.verdict import TaskVerdict
from airflow_mediation_provider.protocol.transition import Source
from tests.unit.api_server.pages.conftest import now
from tests.unit.api_server.pages.html import asked
from tests.unit.api_server.signed import CHANGE
from tests.unit.journal.old_rows import is_in, keep, told, wait_of
from tests.unit.journal.scheduling import change, tell

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from datetime import datetime

    from airflow_mediation_provider.api_server import LazyApp
    from tests.unit.api_server.pages.conftest import Browser, Directory, Manager
    from tests.unit.api_server.pages.html import Element
    from tests.unit.journal.scheduling import Airflow

CONN = "zuora"
SECRET = {"callout_hmac_secret": "s3cret-of-zuora"}


def ago(**span: float) -> datetime:
    return now() - timedelta(**span)


@dataclass
class World:
    alice: Browser
    airflow: Airflow
    directory: Directory
    pages: LazyApp

    def set(self, extra: dict[str, Any] | None, *, down: bool = False) -> None:
        """Change the connection, for a server that read it long ago."""
        self.directory.clear()
        self.directory.update({} if extra is None else {CONN: extra})
        self.directory.down = down
        self.pages._built().state.connections = Connections(self.directory.find, lambda: 0.0)

    async def items(self) -> dict[str, str]:
        """The address behind each statement, without those that are good."""
        page = await self.alice.sees("/health")
        return {each.text: each.attributes["href"] for each in page.all("a") if each.classes & {"w-bad", "w-warn"}}

    async def button(self, path: str, **form: str) -> None:
        await self.alice.does(path, **form)


def saw(status: int, at: datetime, conn_id: str = CONN) -> None:
    seen = Seen()
    seen.add(Receipt(conn_id=conn_id, received_at=at, status=status))
    record_receipts(seen)


def report(session: str, status: str, at: datetime, before: str | None = "RUNNING", **more: Any) -> None:
    """What Zuora reported, by a callout unless `source` is another."""
    entry = change(session, status, before, meter="1001", observed_at=at, **more)
    body = {"meterId": "1001", "sessionId": session, "status": status, "endTime": "2026-06-01T00:00:00Z"}
    tell(replace(entry, body=body), conn=CONN)


def polled(status: str, at: datetime, before: str | None) -> None:
    keep(told(None, at, kind="poll", source="poll", status=status, previous_status=before))


CASES: dict[str, Any] = {}


def case(function: Any) -> Any:
    CASES[function.__name__] = function
    return function


def unparsed(body: str) -> Any:
    return told(None, ago(hours=1), kind="unparsed", status=None, meter_id=None, body={"text": body, "error": "x"})


@case
async def unparsed_until_it_is_read(world: World) -> AsyncIterator[tuple[str, str]]:
    keep(unparsed(json.dumps({**CHANGE, "endTime": "2026-06-01T00:00:00Z"})))
    yield "1 unreadable callout in the last 24 h", "/mediation/callouts"
    await world.button("/callout/reparse", conn=CONN)


@case
async def unparsed_until_it_is_acknowledged(world: World) -> AsyncIterator[tuple[str, str]]:
    keep(unparsed("<html>"), unparsed("<p>"))
    yield "2 unreadable callouts in the last 24 h", "/mediation/callouts"
    await world.button("/callout/acknowledge", conn=CONN, kind="unreadable")


@case
async def refused_until_one_is_accepted(world: World) -> AsyncIterator[tuple[str, str]]:
    saw(401, ago(minutes=9))
    saw(200, ago(minutes=8))
    saw(401, ago(minutes=7))
    yield "1 callout refused since the last accepted one: perhaps the secrets differ", "/mediation/callouts"
    saw(200, now())


@case
async def refused_until_it_is_acknowledged(world: World) -> AsyncIterator[tuple[str, str]]:
    saw(405, ago(minutes=7))
    yield "1 callout refused since the last accepted one: choose the method POST", "/mediation/callouts"
    await world.button("/callout/acknowledge", conn=CONN, kind="refused", number="1")


@case
async def misaddressed_until_it_is_acknowledged(world: World) -> AsyncIterator[tuple[str, str]]:
    saw(404, ago(minutes=7), NO_CONNECTION)
    yield "1 callout in the last 24 h to an address that names no connection", "/mediation/callouts"
    await world.button("/callout/acknowledge", kind="refused")


@case
async def misaddressed_until_a_day_later(world: World) -> AsyncIterator[tuple[str, str]]:
    saw(404, ago(minutes=7), NO_CONNECTION)
    yield "1 callout in the last 24 h to an address that names no connection", "/mediation/callouts"
    with settings.NonScopedSession() as session:
        session.execute(update(AnswersRow).values(last_at=ago(hours=25)))
        session.commit()


@case
async def silent_until_a_report(world: World) -> AsyncIterator[tuple[str, str]]:
    report("R-1", "RUNNING", ago(hours=7))
    yield "1 session without an update for more than 6h", "/mediation/sessions"
    report("R-1", "PAUSED", now())


@case
async def silent_until_a_task_concludes_the_end(world: World) -> AsyncIterator[tuple[str, str]]:
    report("R-1", "RUNNING", ago(hours=7))
    yield "1 session without an update for more than 6h", "/mediation/sessions"
    task = {"dag_id": "usage", "run_id": "r", "task_id": "wait", "map_index": -1, "try_number": 1, "mode": "worker"}
    ti_id = is_in("success", wait_of("w"))
    verdict = TaskVerdict(
        **task, ti_id=ti_id, wait_id="w", meter_id="1001", session_id="R-1", run_type="NORMAL", status="FAILED",
        at=now(), certain=False,
    )  # type: ignore[arg-type]  # fmt: skip
    assert record([], conn_id=CONN, verdicts=[verdict]).refused == ()


@case
async def no_run_until_it_is_started(world: World) -> AsyncIterator[tuple[str, str]]:
    world.airflow.know("load", on_meter_session("1001", "COMPLETED", mediation_conn_id=CONN), paused=True)
    report("R-1", "COMPLETED", now())
    world.airflow.schedule()
    yield "1 session in the last 24 h started no run", "/mediation/missing-runs"
    world.airflow.pause("load", paused=False)
    assert (await world.items())["1 session in the last 24 h started no run"]
    assert [len(each.missed) for each in replay(dag_id="load", since=ago(hours=1))] == [1]
    assert world.airflow.runs("load") == ["R-1"]


@case
async def no_callout_until_one_of_a_later_session(world: World) -> AsyncIterator[tuple[str, str]]:
    report("R-1", "INITIALIZING", ago(hours=1), None, source=Source.RUN)
    yield "1 session started by Airflow has had no callout", "/mediation/connection"
    report("R-2", "RUNNING", now(), "INITIALIZING")


@case
async def no_callout_until_its_own(world: World) -> AsyncIterator[tuple[str, str]]:
    report("R-1", "INITIALIZING", ago(hours=1), None, source=Source.RUN)
    yield "1 session started by Airflow has had no callout", "/mediation/connection"
    report("R-1", "COMPLETED", now())


@case
async def a_lost_end_until_it_is_reported(world: World) -> AsyncIterator[tuple[str, str]]:
    report("R-1", "RUNNING", ago(hours=3), "INITIALIZING")
    polled("RUNNING", ago(hours=3), None)
    polled("COMPLETED", ago(hours=1), "RUNNING")
    yield "polls showed an end without a callout: meter 1001", "/mediation/meter"
    report("R-1", "COMPLETED", now())


@case
async def a_lost_end_until_a_callout_of_a_later_session(world: World) -> AsyncIterator[tuple[str, str]]:
    report("R-1", "RUNNING", ago(hours=3), "INITIALIZING")
    polled("RUNNING", ago(hours=3), None)
    polled("COMPLETED", ago(hours=1), "RUNNING")
    yield "polls showed an end without a callout: meter 1001", "/mediation/meter"
    report("R-2", "FAILED", now())


@case
async def a_task_without_a_triggerer_until_it_is_reported(world: World) -> AsyncIterator[tuple[str, str]]:
    keep(wait_of("w", seen_at=ago(minutes=4)))
    yield "no triggerer has reported 1 waiting task for 3m", "/mediation/connection"
    with settings.NonScopedSession() as session:
        session.execute(update(WaitRow).values(seen_at=now()))
        session.commit()


@case
async def a_schedule_that_never_starts_until_it_is_corrected(world: World) -> AsyncIterator[tuple[str, str]]:
    world.airflow.know("plain", [Asset(f"mediation://{CONN}/meters/1001/COMPLETED")])
    yield "sessions never start the Dag plain", "/dags/plain"
    world.airflow.know("plain", on_meter_session("1001", "COMPLETED", mediation_conn_id=CONN))


@case
async def many_calls_until_a_day_later(world: World) -> AsyncIterator[tuple[str, str]]:
    hour = now().replace(minute=0, second=0, microsecond=0)
    keep(CallsRow(conn_id=CONN, hour=hour, calls=10, limited=3))
    yield "10 calls in 24 h", "/mediation/connection"
    with settings.NonScopedSession() as session:
        session.execute(update(CallsRow).values(hour=hour - timedelta(hours=26)))
        session.commit()


@case
async def a_deleted_connection_until_it_is_there(world: World) -> AsyncIterator[tuple[str, str]]:
    world.set(None)
    yield "the connection was deleted", "/connections"
    world.set(SECRET)


@case
async def backends_that_fail_until_they_answer(world: World) -> AsyncIterator[tuple[str, str]]:
    world.set(SECRET, down=True)
    yield "the connection cannot be looked up now", "/connections"
    world.set(SECRET)


@case
async def no_settings_until_they_are_set(world: World) -> AsyncIterator[tuple[str, str]]:
    world.set({})
    yield "callouts are not set up", "/connections"
    world.set(SECRET)


@case
async def wrong_settings_until_they_are_corrected(world: World) -> AsyncIterator[tuple[str, str]]:
    world.set({**SECRET, "callout_timezone": "Mars/Base"})
    yield "callouts cannot be received", "/connections"
    world.set(SECRET)


@case
async def a_template_without_the_end_time_until_it_has_it(world: World) -> AsyncIterator[tuple[str, str]]:
    body = {"meterId": "1001", "sessionId": "R-1", "status": "COMPLETED"}
    keep(told("R-1", ago(hours=1), status="COMPLETED", body=body))
    yield "the callout template has no end time", "/mediation/callouts"
    report("R-2", "RUNNING", now())


def history(**values: Any) -> HistoryRow:
    cursor = {"read_to": now().isoformat(), "newest": "2026-03-31T02:00:00", "low": -25_300.0, "high": -24_900.0}
    row = {"conn_id": CONN, "revision": 1, "seconds": 60.0, "claimed_at": now(), "open": False, "cursor": cursor}
    return HistoryRow(**{**row, "read_at": now(), "lasting": False, **values})


def reads() -> None:
    with settings.NonScopedSession() as session:
        session.execute(update(HistoryRow).values(claimed_at=now(), read_at=now(), trouble=None))
        session.commit()


@case
async def a_history_that_is_not_read_until_it_is(world: World) -> AsyncIterator[tuple[str, str]]:
    keep(history(claimed_at=ago(hours=3), read_at=ago(hours=3)))
    yield "the callout history has not been read since ", "/mediation/connection"
    reads()


@case
async def trouble_with_the_history_until_the_next_read(world: World) -> AsyncIterator[tuple[str, str]]:
    keep(history(trouble="The user lacks a permission.", lasting=True))
    yield "callout history: The user lacks a permission.", "/mediation/connection"
    reads()


@pytest.mark.parametrize("name", CASES)
async def test_a_statement_is_shown_leads_to_its_list_and_ends_with_its_cause(
    alice: Browser,
    airflow: Airflow,
    directory: Directory,
    pages: LazyApp,
    monkeypatch: pytest.MonkeyPatch,
    name: str,
) -> None:
    monkeypatch.setattr(triggered_runs, "_SCHEDULED_WITHIN", timedelta(0))
    world = World(alice, airflow, directory, pages)
    keep(told("R-0", ago(days=2), meter_id="7"))
    assert await world.items() == {}

    steps = CASES[name](world)
    text, path = await anext(steps)
    shown = await world.items()
    assert [each.startswith(text) for each in shown] == [True], shown
    (link,) = shown.values()
    assert asked(link)[0] == path
    if path.startswith("/mediation/"):
        listed = await alice.get(path.removeprefix("/mediation"), **asked(link)[1])
        assert listed.status_code == 200, listed.text

    assert [each async for each in steps] == []
    assert await world.items() == {}


async def test_the_list_behind_a_number_has_so_many_rows(alice: Browser, airflow: Airflow) -> None:
    del airflow
    keep(*(unparsed("<html>") for _ in range(3)), told(None, ago(days=2), kind="unparsed"))
    for status in (401, 401, 405):
        saw(status, ago(minutes=20))
    saw(200, ago(minutes=10))
    for status in (401, 401, 405):
        saw(status, ago(minutes=5))
    await alice.does("/callout/acknowledge", conn=CONN, kind="unreadable", number="1")
    await alice.does("/callout/acknowledge", conn=CONN, kind="refused", number="5")

    async def rows(link: str) -> int:
        page = await alice.sees("/callouts", **asked(link)[1])
        return len([row for row in page.cells() if "Received" in row])

    page = await alice.sees("/health")
    found = {each.text.split(":")[0]: await rows(each.attributes["href"]) for each in page.all("a", class_="w-bad")}
    assert found == {"2 unreadable callouts in the last 24 h": 2}
    refused = [(each.text, await rows(each.attributes["href"])) for each in page.all("a", class_="w-warn")]
    assert sorted((text.split(" ")[0], count) for text, count in refused) == [("1", 1), ("1", 1)]


async def test_sessions_without_a_run_of_a_dag_that_the_user_may_not_see_are_left_out(
    alice: Browser, airflow: Airflow, manager: Manager, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(triggered_runs, "_SCHEDULED_WITHIN", timedelta(0))
    for dag_id in ("asleep", "secret"):
        airflow.know(dag_id, on_meter_session("1001", "COMPLETED", mediation_conn_id=CONN), paused=True)
    for session in ("R-1", "R-2"):
        report(session, "COMPLETED", now())
    airflow.pause("secret", paused=False)

    async def levels() -> list[tuple[str, str]]:
        page = await alice.sees("/health")
        return [(level, each.text) for level in ("bad", "warn") for each in page.all("a", class_=f"w-{level}")]

    assert await levels() == [("bad", "2 sessions in the last 24 h started no run")]
    manager.deny("dag", "GET", "RUN", "secret")
    assert await levels() == [("warn", "2 sessions in the last 24 h started no run")]
    manager.deny("dag", "GET", "RUN", "asleep")
    assert await levels() == []


async def test_the_page_of_a_connection_lists_what_the_line_counts(
    alice: Browser, airflow: Airflow, manager: Manager
) -> None:
    del airflow
    report("R-1", "INITIALIZING", ago(hours=1), None, source=Source.RUN)
    keep(wait_of("w", seen_at=ago(minutes=4)), wait_of("v", task_id="other", seen_at=now(), dag_id="secret"))
    keep(CallsRow(conn_id=CONN, hour=now().replace(minute=0, second=0, microsecond=0), calls=1200, limited=0))
    keep(history())

    def table(page: Element, caption: str) -> list[str]:
        return [
            row.text
            for each in page.all("table") if each.one("caption").text == caption
            for row in each.one("tbody").all("tr")
        ]  # fmt: skip

    page = await alice.sees("/connection", conn=CONN)
    assert len(table(page, "Waiting tasks")) == 2
    assert "usage.wait" in table(page, "Waiting tasks")[0]
    assert table(page, "Waiting tasks")[0].endswith("not reported")
    assert table(page, "Sessions without a callout")[0].startswith("R-1 1001")
    assert " 1,200 0" in table(page, "Calls by hour")[0]
    assert "2026-03-31T02:00:00" in page.text
    manager.deny("dag", "GET", "TASK_INSTANCE", "secret")
    assert len(table(await alice.sees("/connection", conn=CONN), "Waiting tasks")) == 1
    page = await alice.sees("/connection", conn="other")
    assert [each.text for each in page.all("p", class_="muted") if each.text.startswith("None")] == [
        "None.", "None in the last 24 h.", "None.",
    ]  # fmt: skip
