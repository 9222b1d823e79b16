"""What operations do at night: start what was missed, and find the session of a branch and the run it triggered."""

from __future__ import annotations

from typing import TYPE_CHECKING
from urllib.parse import quote

from playwright.sync_api import expect

from airflow_mediation_provider.protocol.urls import MOUNT
from testkit.processes import wait_until
from tests.e2e.conftest import NIGHTLY, NIGHTLY_METER
from tests.e2e.scene import WAITS
from tests.e2e.screen import SOON

if TYPE_CHECKING:
    from collections.abc import Callable

    from testkit.stage import Stage
    from tests.e2e.scene import Scene
    from tests.e2e.screen import Screen


def test_twenty_missing_runs_of_a_paused_dag_are_started_at_once(screen: Callable[..., Screen], stage: Stage) -> None:
    stage.airflow.wait_dags({NIGHTLY})
    stage.airflow.api("PATCH", f"/dags/{NIGHTLY}", json={"is_paused": True})
    stage.simulator.meter(NIGHTLY_METER, script=[["COMPLETED", None]])
    missed = {str(stage.simulator.start_session(NIGHTLY_METER)["session_id"]) for _ in range(20)}
    tab = screen()
    tab.open_sessions(f"meter={NIGHTLY_METER}")
    expect(tab.sessions.filter(has_text=f"no run: {NIGHTLY}")).to_have_count(20)

    tab.inside.get_by_role("link", name="Start missing Dag Runs").click()
    part = tab.inside.locator("#missing")
    expect(part.get_by_role("heading", name=NIGHTLY)).to_have_text(f"{NIGHTLY}: 20 runs cannot be started")
    expect(part).to_contain_text("It is paused")
    expect(part.get_by_role("button")).to_have_count(0)

    stage.airflow.api("PATCH", f"/dags/{NIGHTLY}", json={"is_paused": False})
    boxes = part.get_by_role("checkbox")

    # For a minute after the last callout the scheduler might still make the runs, so a user searches again.
    def listed() -> bool:
        with tab.page.expect_response(lambda response: f"{MOUNT}/missing-runs?" in response.url):
            tab.inside.get_by_role("button", name="Search").click()
        expect(boxes.or_(part.get_by_text("not there yet")).first).to_be_visible()
        return boxes.count() == len(missed)

    wait_until(listed, timeout=2 * SOON / 1000, what="twenty runs to start", every=2)
    assert stage.airflow.runs(NIGHTLY) == []
    part.get_by_role("button", name="Start the selected runs").click()
    expect(part.get_by_role("heading", name="20 started, 0 already there, 0 refused")).to_be_visible()

    def made() -> set[str] | None:
        found = {run["partition_key"] for run in stage.airflow.runs(NIGHTLY)}
        return found if len(found) >= len(missed) else None

    assert wait_until(made, timeout=60, what="the twenty runs") == missed
    assert len(stage.airflow.runs(NIGHTLY)) == 20
    part.get_by_role("link", name="Search again for missing runs").click()
    expect(part).to_contain_text("No run is missing.")
    entries = stage.airflow.api("GET", f"/eventLogs?dag_id={NIGHTLY}&event=start_missing_runs")["event_logs"]
    assert [each["owner"] for each in entries] == ["admin"]


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
