"""The tabs of tasks and Dag runs in Airflow: what they wait for, and what triggered them."""

from __future__ import annotations

from typing import TYPE_CHECKING
from urllib.parse import quote

from playwright.sync_api import expect

from testkit.processes import wait_until
from tests.e2e.scene import METER, WAITS

if TYPE_CHECKING:
    from collections.abc import Callable

    from testkit.stage import Stage
    from tests.e2e.scene import Scene
    from tests.e2e.screen import Screen


def test_the_tab_of_a_deferred_sensor_shows_what_it_waits_for(
    screen: Callable[..., Screen], stage: Stage, become: Callable[[str, str], None]
) -> None:
    dag_id, task_id, meter_id = "wait_for_session", "wait", "1012"
    run_id = stage.airflow.trigger(dag_id)
    stage.airflow.wait_task(dag_id, run_id, task_id, {"deferred"})
    tab = screen()
    tab.open(f"/dags/{dag_id}/runs/{quote(run_id)}/tasks/{task_id}")
    tab.page.get_by_role("link", name="Meter session").click()
    heading = tab.inside.get_by_role("heading", level=1)
    expect(heading).to_have_text(f"Waits for a session of meter {meter_id}")
    expect(tab.inside.get_by_text("None has been received yet")).to_be_visible()
    tab.mark()

    session_id = stage.simulator.start_session(meter_id, script=[["INITIALIZING", None]])["session_id"]
    expect(heading).to_have_text(f"Waits for {session_id} of meter {meter_id}")
    session = tab.inside.get_by_role("heading", level=2, name=session_id)
    expect(session).to_contain_text("INITIALIZING")
    become(session_id, "RUNNING")
    expect(session).to_contain_text("RUNNING")
    become(session_id, "COMPLETED")
    expect(session).to_contain_text("COMPLETED")
    expect(heading).to_have_text(f"Waited for {session_id} of meter {meter_id}")
    assert tab.unreloaded

    session.get_by_role("link").click()
    expect(tab.inside.get_by_role("heading", level=1)).to_contain_text(f"{session_id} COMPLETED")
    tab.page.go_back()
    expect(heading).to_have_text(f"Waited for {session_id} of meter {meter_id}")


def test_the_tab_of_a_dag_run_shows_the_session_that_triggered_it(screen: Callable[..., Screen], stage: Stage) -> None:
    dag_id = "on_completed"
    session_id = stage.simulator.start_session("1013", script=[["COMPLETED", None]])["session_id"]

    def started() -> str | None:
        return next((r["dag_run_id"] for r in stage.airflow.runs(dag_id) if r["partition_key"] == session_id), None)

    run_id = wait_until(started, timeout=60, what=f"a run of {dag_id} for {session_id}")
    tab = screen()
    tab.open(f"/dags/{dag_id}/runs/{quote(run_id)}")
    tab.page.get_by_role("link", name="Meter sessions").click()
    expect(tab.inside.get_by_role("heading", name="Triggered by")).to_be_visible()
    expect(tab.row(session_id)).to_contain_text("COMPLETED")
    tab.row(session_id).get_by_role("link", name=session_id).click()
    expect(tab.inside.get_by_role("heading", level=1)).to_contain_text(f"{session_id} COMPLETED")
    expect(tab.inside.get_by_role("link", name=run_id)).to_be_visible()


def test_the_tab_of_a_branch_shows_the_branch_it_followed(screen: Callable[..., Screen], scene: Scene) -> None:
    dag_id, _ = WAITS
    tab = screen()
    tab.open(f"/dags/{dag_id}/runs/{quote(scene.waiting)}/tasks/how_it_ended/plugin/meter-session")
    expect(tab.inside.get_by_role("heading", level=1)).to_have_text(f"Branched on {scene.session_id} of meter {METER}")
    facts = tab.inside.locator("dl.facts")
    expect(facts).to_contain_text("COMPLETED (callout)")
    expect(facts).to_contain_text("load_usage skipped: summary")

    tab.open(f"/dags/{dag_id}/runs/{quote(scene.waiting)}/plugin/meter-sessions")
    row = tab.inside.get_by_role("row").filter(has=tab.inside.get_by_role("link", name="how_it_ended"))
    expect(row).to_contain_text("followed load_usage")
    expect(tab.inside.get_by_role("row").filter(has=tab.inside.get_by_role("link", name="run_meter"))).to_contain_text(
        "ended: COMPLETED (callout)"
    )


def test_the_tab_of_another_task_explains_that_it_has_no_session(screen: Callable[..., Screen], stage: Stage) -> None:
    run_id = stage.airflow.runs("wait_for_session")[0]["dag_run_id"]
    tab = screen()
    tab.open(f"/dags/wait_for_session/runs/{quote(run_id)}/tasks/each_session/plugin/meter-session")
    expect(tab.inside.get_by_role("heading", name="No meter session")).to_be_visible()
    expect(tab.inside.get_by_text("which reports no session")).to_be_visible()
