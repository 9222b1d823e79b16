"""Take the documentation's pictures of the real Airflow UI: `python -m docs.screenshots`.

Starts the demo's stage, plays the scenes it needs, and looks at it with the browser of the tests.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from demo.browser import chromium
from demo.play import play
from demo.processes import wait_until
from demo.scenes import SCENES
from demo.stage import PROJECT, Stage

if TYPE_CHECKING:
    from playwright.sync_api import Page

IMAGES = Path(__file__).parent / "images"


def shoot(page: Page, name: str) -> None:
    """Write a picture of the page, once it stands still."""
    seen: list[bytes] = []

    def still() -> bool:
        seen.append(page.screenshot(animations="disabled", caret="hide"))
        return seen[-2:-1] == seen[-1:]

    wait_until(still, timeout=30, what="the page to stand still", every=0.5)
    (IMAGES / f"{name}.png").write_bytes(seen[-1])


def graph(page: Page, stage: Stage) -> None:
    """The demo's main DAG after a session that FAILED."""
    played = play(stage, [scene for scene in SCENES if scene.dag_id == "run_and_branch"], lambda _: None)
    failed = next(each for each in played if each.scene.shows == "FAILED")
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


def main() -> None:
    """Take all pictures."""
    with Stage(PROJECT / ".demo") as stage, chromium() as browser:
        page = browser.new_page()
        graph(page, stage)
        connection_form(page, stage, "mediation_typo", "simulator-secert")
        connection_form(page, stage, "mediation_sandbox", "simulator-secret")
        connection_test(page, stage, "mediation_sandbox", "connection-test-good")
        connection_test(page, stage, "mediation_typo", "connection-test-bad")


if __name__ == "__main__":
    main()
