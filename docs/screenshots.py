"""Take the documentation's pictures of the real Airflow UI: `python -m docs.screenshots`.

Starts the demo's stage, plays the scenes it needs, and takes the pictures with the browser of the tests.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import quote

from airflow_mediation_provider.protocol.urls import NAV_ROUTE, framed, session_page
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
    """Open one of our pages within Airflow's frame, and wait until all of it is loaded."""
    page.set_viewport_size({"width": size[0], "height": size[1]})
    page.goto(address)
    inside = page.frame_locator("iframe")
    inside.locator("h1").first.wait_for()
    for part in inside.locator("[data-src]").all():
        part.locator("[data-part]").wait_for()


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


def main() -> None:
    """Take all pictures."""
    with Stage(PROJECT / ".demo") as stage, chromium() as browser:
        page = browser.new_page()
        played = play(stage, SCENES, lambda _: None)
        failed, scheduled = (
            next(each for each in played if (each.scene.dag_id, each.scene.rows[0].status) == wanted)
            for wanted in (("run_and_branch", "FAILED"), ("on_completed", "COMPLETED"))
        )
        sessions(page, stage, failed)
        tabs(page, stage, scheduled)
        graph(page, stage, failed)
        connection_form(page, stage, "mediation_typo", "simulator-secert")
        connection_form(page, stage, "mediation_sandbox", "simulator-secret")
        connection_test(page, stage, "mediation_sandbox", "connection-test-good")
        connection_test(page, stage, "mediation_typo", "connection-test-bad")


if __name__ == "__main__":
    main()
