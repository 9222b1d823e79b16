"""From a branch task to its session, and on to the run that it triggered."""

from __future__ import annotations

from typing import TYPE_CHECKING
from urllib.parse import quote

from playwright.sync_api import expect

from tests.e2e.scene import WAITS

if TYPE_CHECKING:
    from collections.abc import Callable

    from tests.e2e.scene import Scene
    from tests.e2e.screen import Screen


def test_from_the_branch_task_to_its_session_and_the_run_that_it_triggered(
    screen: Callable[..., Screen], scene: Scene
) -> None:
    dag_id, _ = WAITS
    tab = screen()
    tab.context.grant_permissions(["clipboard-read", "clipboard-write"])
    tab.open(f"/dags/{dag_id}/runs/{quote(scene.waiting)}/tasks/how_it_ended/plugin/meter-session")
    tab.inside.get_by_role("heading", level=2).get_by_role("link", name=scene.session_id).click()
    heading = tab.inside.get_by_role("heading", level=1)
    expect(heading).to_contain_text(f"{scene.session_id} COMPLETED")
    expect(tab.page).to_have_title(f"{scene.session_id} - Airflow")

    triggered = tab.inside.get_by_role("table", name="Dag Runs triggered by a task").get_by_role("row")
    expect(triggered.filter(has_text="usage_batch")).to_contain_text(f"session-{scene.session_id}")
    expect(triggered.filter(has_text="usage_batch")).to_contain_text(f"{dag_id}.load_usage")
    tasks = tab.inside.get_by_role("table", name="Tasks", exact=True).get_by_role("row")
    expect(tasks.filter(has_text=f"{dag_id}.how_it_ended")).to_contain_text(f"{scene.waiting}: success")

    heading.get_by_role("button", name=f"Copy {scene.session_id}").click()
    expect(heading.get_by_role("button", name="Copied")).to_be_visible()
    triggered.get_by_role("link", name=f"session-{scene.session_id}").first.click()
    expect(tab.page.get_by_role("heading", name=f"session-{scene.session_id}")).to_be_visible()
