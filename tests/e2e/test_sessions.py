"""The list and the page of a session, as users in operations use them."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING
from urllib.parse import parse_qs, urlsplit

import pytest
from playwright.sync_api import expect

from airflow_mediation_provider.protocol.urls import MOUNT
from testkit.stage import CONN_ID
from tests.e2e import people
from tests.e2e.scene import PAUSED, PAUSED_METER

if TYPE_CHECKING:
    from collections.abc import Callable

    from testkit.stage import Stage
    from tests.e2e.scene import Scene
    from tests.e2e.screen import Screen

STILL = [["INITIALIZING", None]]


def test_from_the_login_to_a_session_that_changes_on_the_open_page(
    screen: Callable[..., Screen], stage: Stage, meter: Callable[..., str], become: Callable[[str, str], None]
) -> None:
    tab = screen(None)
    tab.open("/")
    tab.page.get_by_label("Username").fill(people.ADMIN)
    tab.page.get_by_label("Password").fill(people.password(people.ADMIN))
    tab.page.get_by_role("button", name="Sign in").click()
    tab.page.get_by_role("button", name="Browse").click()
    tab.page.get_by_role("menuitem", name="Meter sessions").click()
    expect(tab.inside.get_by_role("heading", name="Meter sessions")).to_be_visible()
    tab.mark()

    meter_id = meter(script=STILL)
    run_id = stage.airflow.trigger("run_and_branch", {"meter_id": meter_id})
    row = tab.inside.get_by_role("row").filter(has=tab.inside.get_by_text(meter_id, exact=True))
    expect(row).to_contain_text("INITIALIZING")
    expect(row).to_contain_text("run_and_branch.run_meter waits")
    (session,) = stage.simulator.sessions(meter_id)
    become(session["session_id"], "RUNNING")
    expect(row.locator(".badge")).to_have_text("RUNNING")
    become(session["session_id"], "COMPLETED")
    expect(row.locator(".badge")).to_have_text("COMPLETED")
    expect(row).to_contain_text("run_and_branch.run_meter ended: COMPLETED (callout)")
    assert tab.unreloaded
    stage.airflow.wait_success("run_and_branch", run_id)
    # Of Airflow's own login page.
    tab.excuse("status of 401")


@pytest.fixture
def two(stage: Stage, meter: Callable[..., str]) -> tuple[str, str, str]:
    """A meter with two sessions, of which the first one FAILED and the second one is RUNNING."""
    meter_id = meter(runs=[[["FAILED", None]], [["RUNNING", None]]], overlap=True)
    failed, running = (stage.simulator.start_session(meter_id)["session_id"] for _ in range(2))
    return meter_id, failed, running


def test_a_filter_is_kept_in_the_address_and_survives_a_reload(
    screen: Callable[..., Screen], two: tuple[str, str, str]
) -> None:
    meter_id, failed, running = two
    tab = screen()
    tab.open_sessions()
    tab.inside.get_by_label("Meter", exact=True).fill(meter_id)
    expect(tab.sessions).to_have_count(2)
    expect(tab.row(failed)).to_have_class("is-failed")
    expect(tab.row(running)).to_contain_text("RUNNING")
    tab.inside.locator("#choice-status summary").click()
    tab.inside.get_by_role("checkbox", name="FAILED", exact=True).check()
    expect(tab.sessions).to_have_count(1)
    expect(tab.row(failed)).to_be_visible()

    expect(tab.page).to_have_url(re.compile("status=FAILED"))
    asked = parse_qs(urlsplit(tab.page.url).query)
    assert (asked["meter"], asked["status"]) == ([meter_id], ["FAILED"])
    tab.page.reload()
    expect(tab.sessions).to_have_count(1)
    expect(tab.row(failed)).to_be_visible()
    expect(tab.inside.get_by_label("Meter", exact=True)).to_have_value(meter_id)
    tab.inside.get_by_role("link", name="Clear").click()
    expect(tab.row(running)).to_be_visible()


def test_the_chart_counts_the_filtered_sessions(screen: Callable[..., Screen], two: tuple[str, str, str]) -> None:
    tab = screen()
    tab.open_sessions(f"meter={two[0]}")
    chart = tab.inside.get_by_role("group", name="Sessions started, by status")
    expect(chart).to_have_accessible_name("Sessions started, by status: 1 FAILED, 1 RUNNING")


def test_from_a_session_to_the_dag_run_and_back(
    screen: Callable[..., Screen], stage: Stage, meter: Callable[..., str], become: Callable[[str, str], None]
) -> None:
    meter_id = meter(script=STILL)
    run_id = stage.airflow.trigger("run_and_branch", {"meter_id": meter_id})
    stage.airflow.wait_task("run_and_branch", run_id, "run_meter", {"deferred"})
    (session,) = stage.simulator.sessions(meter_id)
    session_id = session["session_id"]
    tab = screen()
    tab.open_sessions(f"meter={meter_id}")
    tab.row(session_id).get_by_role("link", name=session_id).click()
    heading = tab.inside.get_by_role("heading", level=1)
    expect(heading).to_contain_text(f"{session_id} INITIALIZING")
    tab.mark()
    become(session_id, "COMPLETED")
    expect(heading).to_contain_text("COMPLETED")
    expect(tab.inside.get_by_role("region", name="Timeline")).to_contain_text("reply to the run call")
    completed = tab.inside.get_by_role("region", name="Timeline").get_by_role("row").filter(has_text="COMPLETED")
    expect(completed.filter(has_text="callout")).to_have_count(1)
    assert tab.unreloaded

    tab.inside.get_by_role("link", name=run_id).first.click()
    expect(tab.page.get_by_role("heading", name=run_id)).to_be_visible()
    assert urlsplit(tab.page.url).path.startswith("/dags/run_and_branch/runs/manual__")
    expect(tab.page.locator("iframe")).to_have_count(0)
    tab.page.go_back()
    expect(heading).to_contain_text(f"{session_id} COMPLETED")


def test_zuoras_record_counts_are_requested_by_a_button(
    screen: Callable[..., Screen], stage: Stage, meter: Callable[..., str]
) -> None:
    meter_id = meter(script=[["RUNNING", 0.2], ["FAILED", None]], records=41, errors=3)
    session_id = stage.simulator.start_session(meter_id)["session_id"]
    tab = screen()
    tab.open_sessions(f"meter={meter_id}&status=FAILED")
    tab.row(session_id).get_by_role("link", name=session_id).click()
    calls = len(stage.simulator.log("request"))
    tab.inside.get_by_role("button", name="Load from Zuora").click()
    summary = tab.inside.locator("#summary")
    expect(summary.locator("dd").first).to_have_text("41")
    expect(summary.locator("dd").nth(1)).to_have_text("3")
    expect(summary.locator("pre")).to_have_count(3)
    summary.locator("summary").first.click()
    expect(summary.locator("pre").first).to_contain_text("errorMessage")
    asked = [each for each in stage.simulator.log("request")[calls:] if f"/meters/{meter_id}/" in each["path"]]
    assert len(asked) == 2


def test_a_dag_that_was_paused_gets_its_missing_run_by_a_button(
    screen: Callable[..., Screen], stage: Stage, scene: Scene
) -> None:
    tab = screen()
    tab.open_session(CONN_ID, PAUSED_METER, scene.missed)
    missed = tab.inside.locator(".missed-run").filter(has_text=PAUSED)
    expect(missed).to_contain_text("it is paused")
    expect(missed.get_by_role("button")).to_have_count(0)
    stage.airflow.api("PATCH", f"/dags/{PAUSED}", json={"is_paused": False})
    missed.get_by_role("button", name="Start the missing run").click()
    expect(tab.inside.get_by_role("alert")).to_have_text(f"A run of {PAUSED} is queued for this session.")
    expect(tab.inside.get_by_role("link", name="asset_triggered__")).to_be_visible()
    # The page may have refreshed itself meanwhile; the notice stays.
    with tab.page.expect_response(lambda response: f"{MOUNT}/session?" in response.url):
        pass
    expect(tab.inside.locator("#session")).to_contain_text("asset_triggered__")
    expect(tab.inside.get_by_role("alert")).to_have_text(f"A run of {PAUSED} is queued for this session.")
    runs = [run for run in stage.airflow.runs(PAUSED) if run["partition_key"] == scene.missed]
    assert len(runs) == 1
    stage.airflow.wait_success(PAUSED, runs[0]["dag_run_id"])


def test_a_page_goes_on_refreshing_after_an_interrupted_answer(
    screen: Callable[..., Screen], two: tuple[str, str, str], become: Callable[[str, str], None]
) -> None:
    meter_id, _, running = two
    tab = screen()
    tab.open_sessions(f"meter={meter_id}")
    expect(tab.row(running)).to_contain_text("RUNNING")
    # As when the API server is restarted during an answer.
    tab.frame.evaluate("""() => {
        const whole = Response.prototype.text;
        Response.prototype.text = async function () {
          if (!this.url.includes("/sessions?")) return whole.call(this);
          Response.prototype.text = whole;
          throw new TypeError("network error");
        };
    }""")
    expect(tab.inside.locator("#trouble")).to_contain_text("Airflow does not answer")
    become(running, "COMPLETED")
    expect(tab.row(running)).to_contain_text("COMPLETED")
    expect(tab.inside.locator("#trouble")).to_be_empty()


def test_a_place_in_the_list_is_kept_while_it_refreshes(
    screen: Callable[..., Screen], two: tuple[str, str, str], become: Callable[[str, str], None]
) -> None:
    meter_id, _, running = two
    tab = screen(viewport={"width": 1010, "height": 400})
    tab.open_sessions(f"meter={meter_id}")
    # Both are loaded after the list, and above it.
    expect(tab.inside.locator("#chart svg")).to_be_visible()
    expect(tab.inside.locator("#health ul")).to_be_visible()
    link = tab.row(running).get_by_role("link", name=running)
    link.focus()
    tab.frame.evaluate("document.scrollingElement.scrollTop = 50")
    place = "element => element.getBoundingClientRect().top"
    before = link.evaluate(place)
    become(running, "COMPLETED")
    expect(tab.row(running)).to_contain_text("COMPLETED")
    expect(link).to_be_focused()
    assert link.evaluate(place) == pytest.approx(before, abs=2)


def test_from_the_id_in_a_mail_to_its_page_in_two_actions(
    screen: Callable[..., Screen], two: tuple[str, str, str]
) -> None:
    _, ended, running = two
    tab = screen()
    tab.open_sessions()
    tab.mark()
    tab.inside.get_by_label("Search").fill(ended)
    expect(tab.sessions).to_have_count(1)
    expect(tab.row(running)).to_have_count(0)
    assert tab.unreloaded
    tab.row(ended).get_by_role("link", name=ended).click()
    expect(tab.inside.get_by_role("heading", level=1)).to_contain_text(ended)
    tab.inside.locator(".crumbs").get_by_role("link", name="Meter sessions").click()
    expect(tab.inside.get_by_label("Search")).to_have_value(ended)
    expect(tab.sessions).to_have_count(1)


def test_a_list_is_filtered_by_the_keyboard_alone_and_opened_by_it(
    screen: Callable[..., Screen], two: tuple[str, str, str]
) -> None:
    meter_id, ended, running = two
    tab = screen()
    tab.open_sessions(f"meter={meter_id}")
    expect(tab.sessions).to_have_count(2)
    tab.inside.get_by_label("Search").focus()
    choice = tab.inside.locator("#choice-status summary")
    while not choice.evaluate("element => element === document.activeElement"):
        tab.page.keyboard.press("Tab")
    tab.page.keyboard.press("Enter")
    box = tab.inside.get_by_role("checkbox", name="Live")
    while not box.evaluate("element => element === document.activeElement"):
        tab.page.keyboard.press("Tab")
    tab.page.keyboard.press("Space")
    expect(tab.row(ended)).to_have_count(0)
    expect(tab.row(running)).to_have_count(1)
    expect(box).to_be_focused()
    assert "group=live" in tab.frame.evaluate("window.location.search")
    tab.page.keyboard.press("Escape")
    expect(choice).to_be_focused()
    expect(box).to_be_hidden()
    link = tab.row(running).get_by_role("link", name=running)
    link.focus()
    tab.page.keyboard.press("Enter")
    expect(tab.inside.get_by_role("heading", level=1)).to_contain_text(running)
    tab.page.go_back()
    expect(tab.inside.get_by_role("checkbox", name="Live", include_hidden=True)).to_be_checked()
    expect(tab.row(ended)).to_have_count(0)
