"""What each user sees: pages ask Airflow's auth manager, any of the two, and show nothing that it denies."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

import jwt
import pytest
from playwright.sync_api import expect

from airflow_mediation_provider.protocol.urls import MOUNT
from testkit.stage import CONN_ID
from tests.e2e import people
from tests.e2e.scene import METER, WAITS

if TYPE_CHECKING:
    from collections.abc import Callable

    from testkit.stage import Stage
    from tests.e2e.scene import Scene
    from tests.e2e.screen import Screen

MAY_NOT = "Your role in Airflow lacks the permission to read assets."


@pytest.mark.parametrize(
    ("user", "reads_connection"), [("admin", True), ("op", True), ("user", False), ("viewer", False)]
)
def test_each_role_of_the_simple_auth_manager_sees_the_sessions(
    screen: Callable[..., Screen], scene: Scene, user: str, reads_connection: bool
) -> None:
    tab = screen(user)
    tab.open_session(CONN_ID, METER, scene.session_id)
    expect(tab.inside.get_by_role("link", name=scene.started)).to_be_visible()
    expect(tab.inside.get_by_role("link", name="run_and_branch.run_meter")).to_be_visible()
    expect(tab.inside.get_by_role("button", name="Load from Zuora")).to_have_count(int(reads_connection))
    expect(tab.inside.get_by_text("you may not read this connection")).to_have_count(int(not reads_connection))


@pytest.mark.parametrize("manager", ["simple", "fab"])
def test_a_user_without_permission_sees_nothing(screen: Callable[..., Screen], scene: Scene, manager: str) -> None:
    tab = screen(people.NOBODY, fab=manager == "fab")
    for path in scene.pages.values():
        tab.open(MOUNT + path)
        expect(tab.page.get_by_role("heading", name="Access denied")).to_be_visible()
        expect(tab.page.get_by_text(MAY_NOT)).to_be_visible()
        assert scene.session_id not in tab.page.content()
        tab.excuse("status of 403")


def test_below_a_base_path_all_links_and_frames_keep_it(screen: Callable[..., Screen], scene: Scene) -> None:
    tab = screen("admin", fab=True)
    tab.open_sessions(f"meter={METER}")
    tab.row(scene.session_id).get_by_role("link", name=scene.session_id).click()
    expect(tab.inside.get_by_role("heading", level=1)).to_contain_text(f"{scene.session_id} COMPLETED")
    tab.inside.get_by_role("link", name=scene.started).click()
    tab.page.get_by_role("link", name="Meter sessions").click()
    expect(tab.row(scene.session_id)).to_contain_text("COMPLETED")
    assert urlsplit(tab.page.url).path.startswith(f"/airflow/dags/{people.ONE_DAG}/runs/")


def test_each_role_of_fab_sees_the_sessions_and_what_its_permissions_allow(
    screen: Callable[..., Screen], scene: Scene
) -> None:
    for user, sees_tasks, asks in (("admin", True, True), ("viewer", True, False), ("narrow", False, False)):
        tab = screen(user, fab=True)
        tab.open(f"{MOUNT}/sessions?meter={METER}")
        row = tab.page.get_by_role("row").filter(has_text=scene.session_id)
        expect(row.get_by_role("link", name=people.ONE_DAG)).to_be_visible()
        assert (WAITS[0] in tab.page.content()) == sees_tasks
        row.get_by_role("link", name=scene.session_id).click()
        expect(tab.page.get_by_role("link", name=scene.started)).to_be_visible()
        expect(tab.page.get_by_role("button", name="Load from Zuora")).to_have_count(int(asks))
        assert (WAITS[0] in tab.page.content()) == sees_tasks


def test_the_tabs_of_a_dag_that_a_user_may_not_read_show_nothing(screen: Callable[..., Screen], scene: Scene) -> None:
    tab = screen("narrow", fab=True)
    of_run = f"dag_id={WAITS[0]}&run_id={scene.waiting}"
    for path, what in ((f"/run?{of_run}", "runs"), (f"/task?{of_run}&task_id={WAITS[1]}", "tasks")):
        tab.open(f"{MOUNT}{path}")
        expect(tab.page.get_by_text(f"You may not see the {what} of the Dag {WAITS[0]}.")).to_be_visible()
        assert scene.session_id not in tab.page.content()
    tab.excuse("status of 403")


def test_an_expired_login_inside_the_frame_is_shown(screen: Callable[..., Screen], stage: Stage) -> None:
    tab = screen("viewer", locale="en-US")
    tab.open_sessions()
    secret = stage.airflow.processes.env["AIRFLOW__API_AUTH__JWT_SECRET"]
    token = stage.airflow.token(people.login("viewer"))
    claims = jwt.decode(token, options={"verify_signature": False})
    claims["exp"] = int((datetime.now(UTC) - timedelta(hours=1)).timestamp())
    expired = jwt.encode(claims, secret, "HS512", headers=jwt.get_unverified_header(token))
    tab.context.add_cookies([{"name": "_token", "value": expired, "url": stage.airflow.url}])
    trouble = tab.inside.locator("#trouble")
    expect(trouble).to_contain_text("Your login has expired")
    trouble.get_by_role("link", name="Log in").click()
    tab.page.get_by_label("Username").fill("viewer")
    tab.page.get_by_label("Password").fill(people.password("viewer"))
    tab.page.get_by_role("button", name="Sign in").click()
    expect(tab.inside.get_by_role("heading", name="Meter sessions")).to_be_visible()
    tab.excuse("status of 401")


def test_a_user_who_is_logged_out_is_asked_to_log_in(screen: Callable[..., Screen], scene: Scene) -> None:
    tab = screen(None)
    tab.open(f"{MOUNT}/sessions?meter={METER}")
    expect(tab.page.get_by_role("heading", name="You are not logged in")).to_be_visible()
    assert scene.session_id not in tab.page.content()
    tab.page.get_by_role("link", name="Log in").click()
    tab.page.get_by_label("Username").fill("viewer")
    tab.page.get_by_label("Password").fill(people.password("viewer"))
    tab.page.get_by_role("button", name="Sign in").click()
    expect(tab.page.get_by_role("link", name=scene.session_id)).to_be_visible()
    tab.excuse("status of 401")


def test_another_sites_form_changes_nothing(screen: Callable[..., Screen], stage: Stage, scene: Scene) -> None:
    tab = screen("admin", locale="en-US")
    fields = "".join(f'<input name="{name}" value="{value}">' for name, value in scene.key.items())
    form = f'<form method="post" action="{tab.url}{MOUNT}/session/summary">{fields}<button>Win</button></form>'
    # Another port is another site to the origin check, and the browser sends the cookie nevertheless.
    tab.page.goto(f"{stage.simulator.url}/_simulator/health")
    tab.page.set_content(form)
    with tab.page.expect_response(f"{tab.url}{MOUNT}/session/summary") as sent:
        tab.page.get_by_role("button", name="Win").click()
    headers = sent.value.request.all_headers()
    assert "_token=" in headers["cookie"]
    assert (headers["origin"], sent.value.status) == (stage.simulator.url, 403)
    expect(tab.page.get_by_text("this request comes from another site")).to_be_visible()
    tab.excuse(f"request to {stage.simulator.url}", "status of 403")
