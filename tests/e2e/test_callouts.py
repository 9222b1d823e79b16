"""From a failing meter to what Zuora sent, and to who has seen it: in a browser, on a real Airflow."""

from __future__ import annotations

import base64
import hashlib
import hmac
import json
from typing import TYPE_CHECKING, Any

import httpx
import pytest
from playwright.sync_api import expect

from airflow_mediation_provider.protocol.urls import MOUNT
from testkit.stage import connection

if TYPE_CHECKING:
    from collections.abc import Callable

    from testkit.stage import Stage
    from tests.e2e.screen import Screen

CONN_ID = "inspected"
SECRET = "a secret of sixteen or more"
METER = "60901"
SESSION = "R-60901001"


@pytest.fixture(scope="module")
def received(stage: Stage) -> None:
    """A connection that received the failure of a session, a callout that cannot be parsed, and one that is forged."""
    fields = json.loads(connection(stage.simulator.url, callout_secret=SECRET))
    fields["extra"] = json.dumps(fields["extra"])
    stage.airflow.api("POST", "/connections", json={"connection_id": CONN_ID, **fields})

    def post(body: bytes, secret: str = SECRET) -> int:
        signature = base64.b64encode(hmac.digest(secret.encode(), body, hashlib.sha256)).decode()
        reply = httpx.post(
            f"{stage.airflow.url}{MOUNT}/callouts/{CONN_ID}",
            content=body,
            headers={"Content-Type": "application/json", "X-Mediation-Signature": signature},
            trust_env=False,
            timeout=30,
        )
        return reply.status_code

    change: dict[str, Any] = {"meterId": METER, "sessionId": SESSION, "status": "FAILED", "previousStatus": "RUNNING"}
    assert post(json.dumps({**change, "endTime": "", "reason": "the file is not there"}).encode()) == 200
    assert post(b"<html>a gateway</html>") == 200
    assert post(json.dumps(change).encode(), "another secret") == 401


@pytest.mark.usefixtures("received")
def test_a_failing_meter_leads_to_its_raw_callout_and_what_is_seen_is_acknowledged(
    screen: Callable[..., Screen],
) -> None:
    tab = screen()
    tab.open_sessions(f"conn={CONN_ID}")
    tab.row(SESSION).get_by_role("link", name=SESSION).click()
    tab.inside.get_by_role("link", name="Callouts of this session").click()
    row = tab.inside.get_by_role("row").filter(has_text=f"{SESSION} of meter {METER}: RUNNING → FAILED")
    row.get_by_role("rowheader").get_by_role("link").click()
    expect(tab.inside.get_by_label("Body")).to_contain_text("the file is not there")

    tab.open_sessions()
    tab.inside.get_by_role("listitem").filter(has_text=CONN_ID).get_by_role("link", name="unreadable callout").click()
    row = tab.inside.get_by_role("row").filter(has_text="the body is not JSON")
    row.get_by_role("button", name="Acknowledge").click()
    expect(tab.inside.get_by_role("alert")).to_have_text("1 acknowledged.")
    tab.open(f"{MOUNT}/callouts?conn={CONN_ID}&kind=unreadable")
    expect(tab.page.get_by_role("row").filter(has_text="the body is not JSON")).to_contain_text("by admin")

    tab.open(f"{MOUNT}/health")
    line = tab.page.get_by_role("listitem").filter(has_text=CONN_ID)
    expect(line).to_contain_text("1 callout refused")
    expect(line).not_to_contain_text("unreadable callout")


@pytest.mark.usefixtures("received")
def test_without_the_permission_to_read_the_connection_only_counts_are_shown(screen: Callable[..., Screen]) -> None:
    tab = screen("viewer")
    tab.open(f"{MOUNT}/callouts?conn={CONN_ID}")
    expect(tab.page.get_by_text("so only its counts are shown")).to_be_visible()
    counts = tab.page.get_by_role("row").filter(has_text=CONN_ID)
    expect(counts).to_contain_text("1 (401)")
    assert "not JSON" not in tab.page.content()
    tab.open(f"{MOUNT}/callout?receipt=1")
    expect(tab.page.get_by_role("heading", name="Access denied")).to_be_visible()
    tab.excuse("status of 403")
