"""Sessions without a callout of their end: XCom, list, chart, tabs and session page agree on the task's conclusion."""

from __future__ import annotations

import json
import subprocess
import sys
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

import pytest
from playwright.sync_api import expect

from testkit.stage import connection
from tests.e2e.conftest import LOST_CONN, POLLS_CONN

if TYPE_CHECKING:
    from collections.abc import Callable

    from testkit.stage import Stage
    from tests.e2e.screen import Screen

ENDS = ("COMPLETED", "FAILED", "CANCELED")
# The branch that is followed, and one that is skipped.
BRANCHES = {
    "COMPLETED": ("load_usage", "summary"),
    "FAILED": ("summary", "load_usage"),
    "CANCELED": ("none", "summary"),
}
SECRET = "a secret of sixteen or more"


class Ended:
    """A run of the example Dag over a connection, and the session of its first task."""

    def __init__(self, stage: Stage, conn_id: str, meter_id: str, end: str) -> None:
        self._stage = stage
        self.conn_id = conn_id
        self.meter_id = meter_id
        self.end = end
        stage.simulator.meter(meter_id, script=[["INITIALIZING", 1], ["RUNNING", 5], [end, None]], records=20, errors=2)
        self.run_id = stage.airflow.trigger(conn_id, {"meter_id": meter_id})

    def wait(self) -> None:
        self._stage.airflow.wait_run(self.conn_id, self.run_id)

    @property
    def session(self) -> dict[str, Any]:
        """The XCom of the first task."""
        value = self._stage.airflow.xcom(self.conn_id, self.run_id, "run_meter")
        return dict(json.loads(value) if isinstance(value, str) else value)

    @property
    def session_id(self) -> str:
        return str(self.session["session_id"])

    @property
    def run_path(self) -> str:
        return f"/dags/{self.conn_id}/runs/{quote(self.run_id)}"


@pytest.fixture(scope="module")
def runs(stage: Stage) -> dict[tuple[str, str], Ended]:
    """Runs that ended, by connection and end of the session."""
    meters = iter(range(61_001, 61_100))
    lost = {
        "name": "lost",
        "url": f"{stage.airflow.url}/mediation/callouts/{LOST_CONN}",
        "hmac_secret": SECRET,
        "meters": ["61004", "61005", "61006"],
        "loss": 1.0,
    }
    stage.call_out(lost)
    for conn_id, secret in ((POLLS_CONN, None), (LOST_CONN, SECRET)):
        value = json.loads(connection(stage.simulator.url, callout_secret=secret))
        value["extra"] = json.dumps(value["extra"])
        stage.airflow.api("POST", "/connections", json={"connection_id": conn_id, **value})
    stage.airflow.wait_dags({POLLS_CONN, LOST_CONN})
    found = {
        (conn_id, end): Ended(stage, conn_id, str(next(meters)), end)
        for conn_id in (POLLS_CONN, LOST_CONN)
        for end in ENDS
    }
    for each in found.values():
        each.wait()
    return found


@pytest.mark.parametrize("conn_id", [POLLS_CONN, LOST_CONN])
def test_list_chart_and_filter_show_the_end_that_a_task_concluded(
    screen: Callable[..., Screen], runs: dict[tuple[str, str], Ended], conn_id: str
) -> None:
    tab = screen()
    tab.open_sessions(f"conn={conn_id}")
    for end in ENDS:
        ended = runs[conn_id, end]
        assert (ended.session["status"], ended.session["evidence"], ended.session["certain"]) == (end, "poll", False)
        row = tab.row(ended.session_id)
        expect(row.locator(".badge").first).to_have_text(end)
        expect(row).to_contain_text("by poll, not certain")
        expect(row).not_to_contain_text("so far")
    chart = tab.inside.get_by_role("group", name="Sessions started, by status")
    expect(chart).to_have_accessible_name("Sessions started, by status: 1 FAILED, 1 CANCELED, 1 COMPLETED")
    tab.open_sessions(f"conn={conn_id}&status=FAILED")
    expect(tab.sessions).to_have_count(1)
    expect(tab.row(runs[conn_id, "FAILED"].session_id)).to_have_class("is-failed")


@pytest.mark.parametrize("end", ENDS)
def test_tabs_and_session_page_show_the_same_end(
    screen: Callable[..., Screen], runs: dict[tuple[str, str], Ended], end: str
) -> None:
    ended = runs[POLLS_CONN, end]
    followed, skipped = BRANCHES[end]
    tab = screen()
    tab.open(f"{ended.run_path}")
    tab.page.get_by_role("link", name="Meter sessions").click()
    for task_id in ("run_meter", "how_it_ended"):
        row = tab.inside.get_by_role("row").filter(has=tab.inside.get_by_role("link", name=task_id, exact=True))
        expect(row).to_contain_text(ended.session_id)
        expect(row).to_contain_text(f"{end} by poll, not certain")
    expect(row).to_contain_text(followed)
    expect(row).to_contain_text(f"skipped: {skipped}" if end != "CANCELED" else "skipped")

    for task_id in ("run_meter", "how_it_ended"):
        tab.open(f"{ended.run_path}/tasks/{task_id}")
        tab.page.get_by_role("link", name="Meter session").click()
        session = tab.inside.get_by_role("heading", level=2, name=ended.session_id)
        expect(session).to_contain_text(f"{end} by poll, not certain")

    tab.open_session(POLLS_CONN, ended.meter_id, ended.session_id)
    heading = tab.inside.get_by_role("heading", level=1)
    expect(heading).to_contain_text(f"{end} by poll, not certain")
    expect(tab.inside.get_by_text("so far")).to_have_count(0)
    expect(tab.inside.get_by_role("link", name=ended.run_id).first).to_be_visible()


def test_reconcile_replaces_the_tasks_verdict_by_zuoras_report(
    screen: Callable[..., Screen], stage: Stage, runs: dict[tuple[str, str], Ended]
) -> None:
    command = [sys.executable, "-m", "airflow", "mediation", "reconcile", "--conn-id", LOST_CONN]
    env = stage.airflow.processes.env
    done = subprocess.run(command, env=env, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    tab = screen()
    for end in ENDS:
        ended = runs[LOST_CONN, end]
        tab.open_session(LOST_CONN, ended.meter_id, ended.session_id)
        heading = tab.inside.get_by_role("heading", level=1)
        expect(heading).to_have_text(f"{ended.session_id} {end}")
        expect(tab.inside.get_by_role("region", name="Timeline")).to_contain_text("callout history")
