"""The appearance of the pages: light and dark, in any time zone, on a phone, for screen readers, by the keyboard."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any
from urllib.parse import parse_qs, quote, urlsplit

import pytest
from axe_playwright_python.sync_playwright import Axe
from playwright.sync_api import expect

from airflow_mediation_provider.protocol.urls import MOUNT, framed
from tests.e2e import people
from tests.e2e.scene import METER, WAITS

if TYPE_CHECKING:
    from collections.abc import Callable

    from playwright.sync_api import Frame, Page

    from tests.e2e.scene import Scene
    from tests.e2e.screen import Screen

GRAVE = {"serious", "critical"}
TIME = "table.sessions tbody tr time"


def addresses(tab: Screen, scene: Scene) -> dict[str, str]:
    """Each page in its place in Airflow: in the navigation, or as a tab."""
    places = {path: framed(tab.url, f"{tab.url}{MOUNT}{address}") for path, address in scene.pages.items()}
    run = f"{tab.url}/dags/{{}}/runs/{{}}"
    return {
        **places,
        "/task": f"{run.format(WAITS[0], quote(scene.waiting))}/tasks/{WAITS[1]}/plugin/meter-session",
        "/run": f"{run.format(people.ONE_DAG, quote(scene.started))}/plugin/meter-sessions",
        "/dag": f"{tab.url}/dags/{people.ONE_DAG}/plugin/meters",
    }


def show(tab: Screen, address: str) -> Frame:
    """Open a page in Airflow's frame, and return the frame once all of it is there."""
    tab.page.goto(address)
    expect(tab.inside.locator("main")).to_be_visible()
    for part in tab.inside.locator("[data-src]").all():
        expect(part.locator("[data-part]")).to_be_attached()
    return tab.frame


def violations(frame: Frame, **options: Any) -> list[str]:
    """Return what axe finds serious.

    :param options: of axe
    """
    return [
        f"{each['id']}: {node['target']} {node['failureSummary']}"
        for each in Axe().run(frame, options={"resultTypes": ["violations"], **options}).response["violations"]
        if each["impact"] in GRAVE
        for node in each["nodes"]
    ]


def test_axe_finds_no_serious_violation_on_any_page_light_or_dark(screen: Callable[..., Screen], scene: Scene) -> None:
    tab = screen("admin", viewport={"width": 1400, "height": 1000})
    tab.context.add_init_script("window.localStorage.setItem('theme', 'light')")
    found = {}
    for path, address in addresses(tab, scene).items():
        frame = show(tab, address)
        assert frame.evaluate("document.documentElement.dataset.theme") == "light"
        found[f"{path}, light"] = violations(frame)
        # As Airflow does it; a theme changes nothing but colours.
        tab.page.evaluate("document.documentElement.classList.replace('light', 'dark')")
        expect(tab.inside.locator("html[data-theme=dark]")).to_be_attached()
        found[f"{path}, dark"] = violations(frame, runOnly=["color-contrast"])
    assert {path: wrong for path, wrong in found.items() if wrong} == {}


def test_the_pages_follow_airflow_from_light_to_dark(screen: Callable[..., Screen]) -> None:
    tab = screen("viewer", color_scheme="light")
    tab.open_sessions()

    def background(inside: Frame | Page) -> str:
        colours = "[document.body, document.documentElement].map(each => getComputedStyle(each).backgroundColor)"
        return inside.evaluate(f"{colours}.find(each => each !== 'rgba(0, 0, 0, 0)')")

    light = background(tab.frame)
    assert light == background(tab.page)
    tab.mark()
    tab.page.get_by_role("button", name="User").click()
    tab.page.get_by_role("menuitem", name="Appearance").click()
    tab.page.get_by_role("menuitemradio", name="Dark").click()
    expect(tab.inside.locator("html[data-theme=dark]")).to_be_attached()
    assert tab.unreloaded
    assert background(tab.frame) == background(tab.page) != light


def test_times_are_shown_in_the_zone_that_the_user_chose(screen: Callable[..., Screen], scene: Scene) -> None:
    tab = screen("viewer", timezone_id="America/New_York")
    tab.context.add_init_script("""window.localStorage.setItem('timezone', '"Asia/Kathmandu"')""")
    tab.open_sessions(f"meter={METER}")
    shown = tab.inside.locator(TIME).first
    instant = shown.get_attribute("datetime")
    zoned = f"new Date('{instant}').toLocaleString('sv-SE', {{timeZone: '%s'}})"
    expect(shown).to_have_text(tab.page.evaluate(zoned % "Asia/Kathmandu"))
    tab.mark()
    # Another tab of the user's browser changes it.
    other = tab.context.new_page()
    other.goto(f"{tab.url}{MOUNT}/static/icon.svg")
    other.evaluate("""window.localStorage.setItem('timezone', '"Asia/Tokyo"')""")
    expect(shown).to_have_text(tab.page.evaluate(zoned % "Asia/Tokyo"))
    assert tab.unreloaded


def test_exact_times_of_another_users_address_are_shown_in_the_users_zone(screen: Callable[..., Screen]) -> None:
    tab = screen("viewer", timezone_id="Asia/Tokyo")
    tab.open_sessions("since=2026-03-31T09:00:21&until=2026-03-31T10:00&tz=Europe/Berlin")
    expect(tab.inside.get_by_role("textbox", name="From")).to_have_value("2026-03-31T16:00:21")
    expect(tab.inside.get_by_role("textbox", name="Until")).to_have_value("2026-03-31T17:00")
    tab.inside.get_by_label("Search").press("Enter")
    expect(tab.page).to_have_url(re.compile("tz=Asia"))
    expect(tab.inside.get_by_role("textbox", name="From")).to_have_value("2026-03-31T16:00:21")
    asked = parse_qs(urlsplit(tab.page.url).query)
    assert asked["tz"] == ["Asia/Tokyo"]
    assert (asked["since"][0], asked["until"][0][:16]) == ("2026-03-31T16:00:21", "2026-03-31T17:00")


def test_no_page_scrolls_sideways_on_a_phone(screen: Callable[..., Screen], scene: Scene) -> None:
    tab = screen("admin", viewport={"width": 390, "height": 844}, has_touch=True)
    # Airflow's own page of a task is wider than a phone, so these are opened by themselves.
    alone = {path: f"{tab.url}{MOUNT}{scene.pages[path]}" for path in ("/task", "/run")}
    wide = {}
    for path, address in {**addresses(tab, scene), **alone}.items():
        if path in alone:
            tab.page.goto(address)
        inside = tab.page.main_frame if path in alone else show(tab, address)
        expect(inside.locator("main")).to_be_visible()
        if inside.evaluate("document.documentElement.scrollWidth > document.documentElement.clientWidth"):
            wide[path] = inside.evaluate(
                "[...document.querySelectorAll('main *')]"
                ".filter(each => each.getBoundingClientRect().right > document.documentElement.clientWidth)"
                ".map(each => each.outerHTML.slice(0, 120))"
            )
    assert wide == {}
    # A row is a card there, and the name of a column is beside its value, not above it.
    inside = show(tab, addresses(tab, scene)["/sessions"])
    narrow = inside.locator(".sessions tbody td, .sessions tbody th").evaluate_all(
        "cells => cells.filter(cell => parseFloat(getComputedStyle(cell).paddingLeft) < 90).map(cell => cell.outerHTML)"
    )
    assert narrow == []


def test_a_session_is_reached_by_the_keyboard_alone(screen: Callable[..., Screen], scene: Scene) -> None:
    tab = screen("viewer")
    tab.open_sessions(f"meter={METER}")
    expect(tab.row(scene.session_id)).to_be_visible()
    tab.inside.locator("select[name=conn]").focus()
    for _ in range(40):
        tab.page.keyboard.press("Tab")
        if tab.frame.evaluate("document.activeElement.textContent") == scene.session_id:
            break
    tab.page.keyboard.press("Enter")
    expect(tab.inside.get_by_role("heading", level=1)).to_contain_text(f"{scene.session_id} COMPLETED")


BROKEN = """() => {
  const wrong = [];
  for (const table of document.querySelectorAll("main table")) {
    let box = table.parentElement;
    while (box !== document.body && getComputedStyle(box).overflowX === "visible") box = box.parentElement;
    if (table.scrollWidth > box.clientWidth + 1) wrong.push(`clipped: ${table.caption?.textContent}`);
    for (const cell of table.querySelectorAll("td, th")) {
      const texts = document.createTreeWalker(cell, NodeFilter.SHOW_TEXT);
      while (texts.nextNode()) for (const piece of texts.currentNode.textContent.matchAll(/\\S+/g)) {
        const range = document.createRange();
        range.setStart(texts.currentNode, piece.index);
        range.setEnd(texts.currentNode, piece.index + piece[0].length);
        const boxes = [...range.getClientRects()].filter((each) => each.width);
        if (new Set(boxes.map((each) => Math.round(each.top))).size > 1) wrong.push(`broken: ${piece[0]}`);
      }
    }
  }
  return [...new Set(wrong)];
}"""


@pytest.mark.parametrize(("width", "least"), [(1300, 9), (768, 5), (650, 5)], ids=["laptop", "half", "zoomed"])
def test_no_table_is_clipped_and_no_name_broken(
    screen: Callable[..., Screen], scene: Scene, width: int, least: int
) -> None:
    """650 pixels are those of a window of 1300 that is zoomed to 200 %."""
    tab = screen("admin", viewport={"width": width, "height": 900})
    wrong = {}
    # The tables of a session's page scroll sideways on half a screen.
    for path in ("/sessions", "/missing-runs", *(["/session"] if width > 1000 else [])):
        frame = show(tab, addresses(tab, scene)[path])
        found = frame.evaluate(BROKEN)
        if found:
            wrong[path] = found
        if path == "/sessions":
            columns = frame.locator("table.sessions thead th").evaluate_all(
                "cells => cells.filter((each) => each.offsetWidth).map((each) => each.textContent)"
            )
            assert len(columns) >= least, columns
            assert {"Status", "Session", "Meter", "Start Date", "Duration"} <= set(columns)
    assert wrong == {}
