"""Take the documentation's pictures of the real Airflow UI: `python -m docs.screenshots`.

Starts the demo's stage, plays the scenes it needs, and takes the pictures with the browser of the tests.
"""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import quote

import httpx

from airflow_mediation_provider.protocol.urls import CALLOUTS, NAV_ROUTE, address, framed, session_page
from demo.play import play
from demo.scenes import SCENES
from testkit.browser import chromium
from testkit.processes import wait_until
from testkit.stage import CONN_ID, PROJECT, Stage

if TYPE_CHECKING:
    from playwright.sync_api import Page

    from demo.play import Played

IMAGES = Path(__file__).parent / "images"
# The demo's meter that runs until it is stopped.
STREAMING = "1004"
# A Dag and its two meters.
EITHER, HEALED, MISSED = "on_either", "1015", "1016"


def shoot(page: Page, name: str) -> None:
    """Write a picture of the page once it no longer changes."""
    seen: list[bytes] = []

    def still() -> bool:
        seen.append(page.screenshot(animations="disabled", caret="hide"))
        return seen[-2:-1] == seen[-1:]

    wait_until(still, timeout=30, what="the page to stop changing", every=0.5)
    (IMAGES / f"{name}.png").write_bytes(seen[-1])


def graph(page: Page, stage: Stage, failed: Played) -> None:
    """Take the graph of the demo's main Dag after a session that FAILED."""
    page.set_viewport_size({"width": 1500, "height": 560})
    page.goto(f"{stage.airflow.url}/dags/run_and_branch/runs/{failed.run_id}")
    page.locator("button[value=graph]").click()
    page.get_by_text("how_it_ended").first.wait_for()
    page.locator(".react-flow__controls-fitview").click()
    shoot(page, "graph")


def connection_form(page: Page, stage: Stage, connection_id: str, secret: str) -> None:
    """Add a connection by the form, as a user does."""
    page.set_viewport_size({"width": 1000, "height": 1080})
    page.goto(f"{stage.airflow.url}/connections")
    page.get_by_role("button", name="Add Connection").click()
    form = page.get_by_role("dialog")
    form.locator("input[name=connection_id]").fill(connection_id)
    form.get_by_role("combobox").fill("mediation")
    page.get_by_role("option", name="mediation").click()
    form.locator("input[name=host]").fill(stage.simulator.url)
    form.locator("input[name=login]").fill("simulator-client")
    form.locator("input[name=password]").fill(secret)
    shoot(page, "connection-form")
    form.get_by_role("button", name="Extra Fields", exact=True).click()
    shoot(page, "connection-form-extra")
    form.get_by_role("button", name="Save").click()
    form.wait_for(state="hidden")


def connection_test(page: Page, stage: Stage, connection_id: str, name: str) -> None:
    """Click a connection's test button."""
    # Airflow 3.3.2 tests no stored connection that has no port (https://github.com/apache/airflow/pull/73298).
    stage.airflow.api(
        "PATCH",
        f"/connections/{connection_id}",
        params={"update_mask": "port"},
        json={"connection_id": connection_id, "conn_type": "mediation", "port": 0},
    )
    page.set_viewport_size({"width": 1000, "height": 560})
    page.goto(f"{stage.airflow.url}/connections")
    page.get_by_role("row").filter(has_text=connection_id).get_by_label("Test Connection").click()
    page.locator("[data-scope=toast][data-part=title]").wait_for()
    shoot(page, name)


def framed_page(page: Page, address: str, size: tuple[int, int]) -> None:
    """Open one of our pages within Airflow's frame, wait until all of it is loaded, and stop counting running times."""
    page.set_viewport_size({"width": size[0], "height": size[1]})
    page.goto(address)
    inside = page.frame_locator("iframe")
    inside.locator("h1").first.wait_for()
    for part in inside.locator("[data-src]").all():
        part.locator("[data-part]").wait_for()
    page.clock.set_fixed_time(datetime.now(UTC))


def sessions(page: Page, stage: Stage, failed: Played) -> None:
    """Take the list, light and dark and on a phone, and the page of a session."""
    url = stage.airflow.url
    for theme, name in (("dark", "sessions-dark"), ("light", "sessions")):
        page.add_init_script(f"window.localStorage.setItem('theme', '{theme}')")
        framed_page(page, f"{url}/plugin/{NAV_ROUTE}", (1500, 760))
        shoot(page, name)
    framed_page(page, f"{url}/plugin/{NAV_ROUTE}", (390, 844))
    shoot(page, "sessions-phone")
    (row,) = failed.scene.rows
    framed_page(page, framed(url, session_page(url, CONN_ID, row.meter, failed.results[0].session)), (1500, 1000))
    inside = page.frame_locator("iframe")
    inside.get_by_role("button", name="Load from Zuora").click()
    inside.locator("#summary dl").wait_for()
    inside.locator("h1").scroll_into_view_if_needed()  # the click scrolled down
    shoot(page, "session")


def tabs(page: Page, stage: Stage, scheduled: Played) -> None:
    """Take the tab of a task that waits, and that of a Dag run that a session triggered."""
    dag_id, task_id = "run_and_branch", "run_meter"
    run_id = stage.airflow.trigger(dag_id, {"meter_id": STREAMING})
    stage.airflow.wait_task(dag_id, run_id, task_id, {"deferred"})
    session_id = stage.simulator.sessions(STREAMING)[-1]["session_id"]
    stage.simulator.wait_log("callout", session_id=session_id, status="RUNNING", code=200)
    dags = f"{stage.airflow.url}/dags"
    framed_page(page, f"{dags}/{dag_id}/runs/{quote(run_id)}/tasks/{task_id}/plugin/meter-session", (1500, 860))
    shoot(page, "task-tab")
    run = f"{dags}/{scheduled.scene.dag_id}/runs/{quote(scheduled.run_id)}"
    framed_page(page, f"{run}/plugin/meter-sessions", (1500, 480))
    shoot(page, "run-tab")


def ended(stage: Stage, meter: str, seconds: float, status: str) -> None:
    """Let a session of a meter end, and wait until its callout was accepted."""
    session_id = stage.simulator.start_session(meter, script=[["RUNNING", seconds], [status, None]])["session_id"]
    stage.simulator.wait_log("callout", session_id=session_id, status=status, code=200)


def operations(page: Page, stage: Stage) -> None:
    """Take the page of a meter that failed, the callouts with a refused one, and the runs that a paused Dag missed."""
    url = stage.airflow.url
    stage.airflow.api("PATCH", f"/dags/{EITHER}", json={"is_paused": True})
    for _ in range(5):
        ended(stage, MISSED, 1, "COMPLETED")
    stage.airflow.api("PATCH", f"/dags/{EITHER}", json={"is_paused": False})
    stage.simulator.meter(HEALED, name="Storage")
    for number in range(16):
        ended(stage, HEALED, 2 + number % 3 / 2, "FAILED" if number in (6, 7) else "COMPLETED")
    # Without a signature.
    httpx.post(address(url, CALLOUTS + CONN_ID), json={"meterId": HEALED}, trust_env=False)

    def loaded() -> bool:
        runs = [run for run in stage.airflow.runs(EITHER) if run["state"] == "success"]
        return len(runs) >= 14

    wait_until(loaded, timeout=180, what=f"the runs of {EITHER}", every=2)
    framed_page(page, framed(url, address(url, "/meter", conn=CONN_ID, meter=HEALED)), (1500, 960))
    shoot(page, "meter")
    framed_page(page, framed(url, address(url, "/callouts")), (1500, 760))
    shoot(page, "callouts")

    def listed() -> bool:
        framed_page(page, framed(url, address(url, "/missing-runs", meter=MISSED)), (1500, 560))
        return page.frame_locator("iframe").get_by_role("checkbox").count() > 0

    wait_until(listed, timeout=120, what="the missing runs", every=5)
    shoot(page, "missing-runs")


def main() -> None:
    """Take all pictures."""
    with Stage(PROJECT / ".demo") as stage, chromium() as browser:
        # The clock of the first one stands still, and Airflow's dialogs need one that goes on.
        ours, theirs = browser.new_page(), browser.new_page()
        played = play(stage, SCENES, lambda _: None)
        failed, scheduled = (
            next(each for each in played if (each.scene.dag_id, each.scene.rows[0].status) == wanted)
            for wanted in (("run_and_branch", "FAILED"), ("on_completed", "COMPLETED"))
        )
        sessions(ours, stage, failed)
        tabs(ours, stage, scheduled)
        operations(ours, stage)
        graph(theirs, stage, failed)
        connection_form(theirs, stage, "mediation_typo", "simulator-secert")
        connection_form(theirs, stage, "mediation_sandbox", "simulator-secret")
        connection_test(theirs, stage, "mediation_sandbox", "connection-test-good")
        connection_test(theirs, stage, "mediation_typo", "connection-test-bad")


if __name__ == "__main__":
    main()
