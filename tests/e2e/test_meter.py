"""A meter that fails is seen at once: on its own page, and on the tab of the Dag that is scheduled on it."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from playwright.sync_api import expect

from tests.e2e.scene import PAUSED

if TYPE_CHECKING:
    from collections.abc import Callable

    from testkit.stage import Stage
    from tests.e2e.screen import Screen

# One of the two meters that the Dag is scheduled on.
METER = "1015"


def test_a_failing_meter_is_seen_on_its_page_and_on_the_tab_of_its_dag(
    screen: Callable[..., Screen], stage: Stage, become: Callable[[str, str], None]
) -> None:
    stage.airflow.wait_dags({PAUSED})
    stage.simulator.meter(METER, script=[["RUNNING", None]])
    session_id = stage.simulator.start_session(METER)["session_id"]
    tab = screen()
    tab.open_sessions(f"meter={METER}")
    tab.row(session_id).get_by_role("link", name=METER).click()
    expect(tab.inside.get_by_role("heading", level=1)).to_contain_text(f"Meter {METER}")
    verdict = tab.inside.locator("p.notice").first
    expect(verdict).to_contain_text(f"{session_id} has been live for")
    tab.mark()

    become(session_id, "FAILED")
    expect(verdict).to_have_text(re.compile(f"No: {session_id} ended FAILED"))
    assert tab.unreloaded
    cell = tab.inside.get_by_role("link", name=f"{session_id} FAILED")
    expect(cell).to_be_visible()

    tab.open(f"/dags/{PAUSED}")
    tab.page.get_by_role("link", name="Meters").click()
    of_meter = tab.inside.locator("section").filter(has=tab.inside.get_by_role("link", name=METER, exact=True))
    expect(of_meter.locator("p.notice")).to_have_text(re.compile(f"No: {session_id} ended FAILED"))
    of_meter.get_by_role("link", name=f"{session_id} FAILED").click()
    expect(tab.inside.get_by_role("heading", level=1)).to_contain_text(f"{session_id} FAILED")
