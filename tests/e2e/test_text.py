"""Any content from Zuora or from an attacker in between is text on every page: never HTML, never a script."""

from __future__ import annotations

import base64
import hashlib
import hmac
import json
from typing import TYPE_CHECKING, Any
from urllib.parse import urlencode

import httpx
import pytest
from playwright.sync_api import expect

from airflow_mediation_provider.protocol.status import SessionStatus
from testkit.stage import connection

if TYPE_CHECKING:
    from collections.abc import Callable

    from testkit.stage import Stage
    from tests.e2e.screen import Screen

CONN_ID = "hostile"
SECRET = "a secret of sixteen or more"
SCRIPT = "<script>window.harmed = 1</script>"
IMAGE = "\"'><img src=x onerror='window.harmed = 1'>"
# A right-to-left override reverses the text after it, unless it is kept inside.
TURNED = "\u202egnp.מטר & {{ 77777 * 77777 }} &lt;b&gt;"
NASTY = {
    "script": {"meterId": f"1 {SCRIPT}", "meterName": IMAGE, "sessionId": TURNED, "status": f"RUNNING{SCRIPT}"},
    "quotes": {"meterId": f"2 {IMAGE}", "meterName": TURNED, "sessionId": SCRIPT, "status": "FAILED"},
    "turned": {"meterId": f"3 {TURNED}", "meterName": SCRIPT, "sessionId": IMAGE, "status": f"\u202e{IMAGE}"},
}


@pytest.fixture(scope="module")
def callout(stage: Stage) -> Callable[[bytes], None]:
    """Post a correctly signed callout with any content."""
    fields = json.loads(connection(stage.simulator.url, callout_secret=SECRET))
    fields["extra"] = json.dumps(fields["extra"])
    stage.airflow.api("POST", "/connections", json={"connection_id": CONN_ID, **fields})

    def post(body: bytes) -> None:
        signature = base64.b64encode(hmac.digest(SECRET.encode(), body, hashlib.sha256)).decode()
        reply = httpx.post(
            f"{stage.airflow.url}/mediation/callouts/{CONN_ID}",
            content=body,
            headers={"Content-Type": "application/json", "X-Mediation-Signature": signature},
            trust_env=False,
            timeout=30,
        )
        assert (reply.status_code, reply.json()) == (200, {"success": True})

    return post


def unharmed(tab: Screen) -> None:
    """Check that no shown content ran or became an element."""
    frame = tab.frame
    assert frame.evaluate("window.harmed") is None
    assert frame.locator("main script, main img, main b").count() == 0
    assert str(77777**2) not in frame.locator("main").inner_text()


@pytest.mark.parametrize("case", NASTY)
def test_content_of_a_callout_is_text_on_the_list_and_on_the_sessions_page(
    screen: Callable[..., Screen], callout: Callable[[bytes], None], case: str
) -> None:
    said: dict[str, Any] = {**NASTY[case], "runType": "NORMAL", "previousStatus": f"WAS {IMAGE}"}
    names = (said[name].upper().replace(" ", "_") for name in ("status", "previousStatus"))
    status, previous = (name if name in set(SessionStatus) else f"unknown status ({name})" for name in names)
    callout(json.dumps(said).encode())
    tab = screen()
    tab.open_sessions(f"conn={CONN_ID}")
    row = tab.inside.get_by_role("row").filter(has=tab.inside.get_by_text(said["meterId"], exact=True))
    link = row.get_by_role("link", name=said["sessionId"].strip(), exact=True)
    expect(link).to_be_visible()
    texts = row.locator("bdi").all_text_contents()
    assert {said["meterId"], said["meterName"], said["sessionId"]} <= set(texts)
    assert row.locator(".badge").first.text_content() == status
    unharmed(tab)

    link.click()
    heading = tab.inside.get_by_role("heading", level=1)
    expect(heading.locator("bdi")).to_have_text(said["sessionId"])
    assert said["meterName"] in tab.inside.locator(".facts bdi").all_text_contents()
    timeline = tab.inside.get_by_role("region", name="Timeline")
    expect(timeline.locator(".badge")).to_have_text([previous, status])
    unharmed(tab)
    assert tab.page.evaluate("window.harmed") is None


def test_an_unparsed_callout_is_shown_as_it_was_received(
    screen: Callable[..., Screen], callout: Callable[[bytes], None]
) -> None:
    body = f"{{not JSON {SCRIPT} {IMAGE} {TURNED}"
    callout(body.encode())
    tab = screen()
    tab.open_sessions(f"conn={CONN_ID}")
    tab.inside.get_by_role("listitem").filter(has_text=CONN_ID).get_by_role("link", name="unreadable callout").click()
    expect(tab.inside.get_by_role("heading", name="Callouts")).to_be_visible()
    row = tab.inside.get_by_role("row").filter(has_text="the body is not JSON")
    unharmed(tab)
    row.get_by_role("rowheader").get_by_role("link").click()
    expect(tab.inside.get_by_label("Body")).to_have_text(body)
    unharmed(tab)
    tab.inside.get_by_role("button", name="Read again").click()
    expect(tab.inside.get_by_role("alert")).to_have_text("0 read; 1 still unreadable.")
    expect(tab.inside.get_by_label("Body")).to_have_text(body)
    unharmed(tab)


def test_content_of_an_address_is_text(screen: Callable[..., Screen]) -> None:
    tab = screen()
    hostile = urlencode({"meter": IMAGE, "status": SCRIPT, "conn": TURNED, "since": SCRIPT})
    tab.page.goto(f"{tab.url}/mediation/sessions?{hostile}")
    expect(tab.page.get_by_role("heading", name="Invalid address")).to_be_visible()
    expect(tab.page.get_by_text(f"since={SCRIPT} is not a valid time")).to_be_visible()
    tab.excuse("status of 400")
    tab.open_sessions(urlencode({"meter": IMAGE, "status": SCRIPT}))
    expect(tab.inside.get_by_label("Meter", exact=True)).to_have_value(IMAGE)
    unharmed(tab)
