"""The links to a session: pushed early under the keys that Airflow reads, and not lost when the task ends."""

from __future__ import annotations

from types import SimpleNamespace
from typing import TYPE_CHECKING, Any
from urllib.parse import parse_qs, urlsplit

import pytest
from airflow.sdk.execution_time.xcom import XCom

from airflow_mediation_provider import get_provider_info, links
from airflow_mediation_provider.links import (
    SESSION_LINKS,
    MeterSessionLink,
    MeterSessionPageLink,
    push_session_links,
    session_page_in_airflow,
)
from airflow_mediation_provider.operators.audit import AuditTrailExportOperator, MeterSummaryOperator
from airflow_mediation_provider.operators.branch import MeterSessionBranchOperator
from airflow_mediation_provider.operators.meter import RunMeterOperator
from airflow_mediation_provider.protocol import urls
from airflow_mediation_provider.protocol.zuora.errors import MediationError
from airflow_mediation_provider.sensors.meter_session import MeterSessionSensor

if TYPE_CHECKING:
    from collections.abc import Callable

RUN_ID = "manual__2026-03-31T09:00:00+00:00"
ZUORA, PAGE = "mediation_session_link", "mediation_session_page"


class TaskInstance:
    dag_id, run_id, task_id = "load", RUN_ID, "wait"

    def __init__(self, map_index: int | None = -1) -> None:
        self.xcoms: dict[str, Any] = {}
        self.map_index = map_index

    def xcom_push(self, key: str, value: Any) -> None:
        self.xcoms[key] = value


@pytest.fixture(autouse=True)
def airflow_33(monkeypatch: pytest.MonkeyPatch) -> None:
    """Airflow shows the page within its navigation, with any installed version."""
    monkeypatch.setattr(links, "framed", urls.framed)


@pytest.fixture
def base_url(monkeypatch: pytest.MonkeyPatch) -> Callable[[str | None], None]:
    def say(address: str | None) -> None:
        if address is None:
            monkeypatch.delenv("AIRFLOW__API__BASE_URL", raising=False)
        else:
            monkeypatch.setenv("AIRFLOW__API__BASE_URL", address)

    say("https://airflow.example/airflow/")
    return say


def pushed(session_id: str | None, answer: Any, meter_id: str = "1") -> dict[str, Any]:
    def session_url(*ids: str | None) -> str | None:
        if isinstance(answer, Exception):
            raise answer
        return answer and answer.format(*ids)

    ti = TaskInstance()
    hook = SimpleNamespace(session_url=session_url, mediation_conn_id="zuora")
    push_session_links({"ti": ti}, hook, meter_id, session_id, "5468")  # type: ignore[arg-type,typeddict-item]
    return ti.xcoms


@pytest.mark.usefixtures("base_url")
def test_the_addresses_are_pushed_under_the_keys_of_the_links() -> None:
    assert pushed("R-1", "https://zuora.example/{}/{}/{}") == {
        MeterSessionLink().xcom_key: "https://zuora.example/1/R-1/5468",
        MeterSessionPageLink().xcom_key: "https://airflow.example/airflow/plugin/mediation-sessions"
        "/airflow/mediation/session?conn=zuora&meter=1&session=R-1",
    }
    assert (MeterSessionLink().xcom_key, MeterSessionPageLink().xcom_key) == (ZUORA, PAGE)


@pytest.mark.parametrize(
    ("session_id", "answer"), [(None, "https://x"), ("R-1", None), ("R-1", MediationError("no connection"))]
)
def test_without_an_address_in_zuora_an_empty_link_is_pushed(session_id: str | None, answer: Any) -> None:
    xcoms = pushed(session_id, answer)
    assert xcoms[ZUORA] == ""
    assert "/plugin/mediation-sessions/" in xcoms[PAGE]


@pytest.mark.parametrize("fails", ["xcom_push", "session_url"])
def test_a_link_that_cannot_be_pushed_fails_no_try_and_is_logged_in_one_line(
    caplog: pytest.LogCaptureFixture, fails: str
) -> None:
    def refused(*_: Any, **__: Any) -> None:
        raise ConnectionError("Connection refused")

    ti = TaskInstance()
    hook = SimpleNamespace(session_url=refused, mediation_conn_id="zuora")
    if fails == "xcom_push":
        ti.xcom_push = refused  # type: ignore[assignment]
        hook.session_url = lambda *_: "https://zuora.example"
    push_session_links({"ti": ti}, hook, "1", "R-1")  # type: ignore[arg-type,typeddict-item]
    (said,) = caplog.records
    assert said.getMessage() == ("The links to the session could not be pushed (ConnectionError: Connection refused).")
    assert said.exc_info is None


@pytest.mark.usefixtures("base_url")
def test_without_a_session_the_page_link_shows_what_the_task_waits_for() -> None:
    page = urlsplit(pushed(None, None)[PAGE])
    assert page.path == "/airflow/plugin/mediation-sessions/airflow/mediation/task"
    assert parse_qs(page.query) == {"dag_id": ["load"], "run_id": [RUN_ID], "task_id": ["wait"]}


@pytest.mark.parametrize(("map_index", "number"), [(-1, None), (None, None), (0, ["0"]), (7, ["7"])])
def test_each_mapped_task_has_its_own_page_link(map_index: int | None, number: list[str] | None) -> None:
    page = session_page_in_airflow(TaskInstance(map_index), "zuora", "1", None)
    assert parse_qs(urlsplit(page).query).get("map_index") == number


@pytest.mark.parametrize(
    ("address", "begins"),
    [
        (None, "/plugin/"),
        ("", "/plugin/"),
        ("/", "/plugin/"),
        ("http://localhost:8080", "http://localhost:8080/plugin/"),
        ("https://airflow.example/a/b/", "https://airflow.example/a/b/plugin/"),
    ],
)
def test_the_page_link_starts_with_airflows_base_url(
    base_url: Callable[[str | None], None], address: str | None, begins: str
) -> None:
    base_url(address)
    path = urlsplit(address or "").path.strip("/")
    page = session_page_in_airflow(TaskInstance(), "zuora", "1", "R-1")
    assert (
        page
        == f"{begins}mediation-sessions/{path}{'/' if path else ''}mediation/session?conn=zuora&meter=1&session=R-1"
    )


@pytest.mark.parametrize(
    "odd", ['"><script>alert(1)</script>', "R 1&session=R-2#x", "R/../../x?y", "R-\u202e1", "a+b%20"]
)
def test_special_characters_in_ids_are_quoted(odd: str) -> None:
    page = urlsplit(pushed(odd, None, meter_id=odd)[PAGE])
    assert parse_qs(page.query) == {"conn": ["zuora"], "meter": [odd], "session": [odd]}
    assert page.fragment == ""


@pytest.mark.parametrize("link", SESSION_LINKS, ids=lambda link: str(link.key))
@pytest.mark.parametrize(("kept", "shown"), [("https://zuora.example/1", "https://zuora.example/1"), (None, "")])
def test_airflow_repeats_the_pushed_links_when_the_task_ends(
    monkeypatch: pytest.MonkeyPatch, link: Any, kept: str | None, shown: str
) -> None:
    asked: list[Any] = []

    def get_value(*, ti_key: Any, key: str) -> str | None:
        asked.append(key)
        return kept

    monkeypatch.setattr(XCom, "get_value", get_value)
    assert link.get_link(SimpleNamespace(), ti_key=SimpleNamespace()) == shown
    assert asked == [link.xcom_key]


@pytest.mark.parametrize(
    "operator",
    [
        RunMeterOperator,
        MeterSessionBranchOperator,
        MeterSessionSensor,
        MeterSummaryOperator,
        AuditTrailExportOperator,
    ],
)
def test_the_operators_with_a_session_have_the_links(operator: Any) -> None:
    assert operator.operator_extra_links == SESSION_LINKS


def test_the_buttons_have_different_names() -> None:
    assert [link.name for link in SESSION_LINKS] == ["Meter session", "Zuora session"]


@pytest.mark.parametrize("link", [MeterSessionLink, MeterSessionPageLink])
def test_the_provider_info_lists_the_links(link: Any) -> None:
    assert f"{link.__module__}.{link.__qualname__}" in get_provider_info()["extra-links"]
