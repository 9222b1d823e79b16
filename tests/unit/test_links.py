"""The link to a session: pushed early under the key that Airflow reads, and not lost when the task ends."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
from airflow.sdk.execution_time.xcom import XCom

from airflow_mediation_provider import get_provider_info
from airflow_mediation_provider.links import MeterSessionLink, push_session_link
from airflow_mediation_provider.operators.branch import MeterSessionBranchOperator
from airflow_mediation_provider.operators.meter import RunMeterOperator
from airflow_mediation_provider.protocol.errors import MediationError


class TaskInstance:
    def __init__(self) -> None:
        self.xcoms: dict[str, Any] = {}

    def xcom_push(self, key: str, value: Any) -> None:
        self.xcoms[key] = value


def pushed(session_id: str | None, answer: Any) -> dict[str, Any]:
    def session_url(*ids: str | None) -> str | None:
        if isinstance(answer, Exception):
            raise answer
        return answer and answer.format(*ids)

    ti = TaskInstance()
    hook = SimpleNamespace(session_url=session_url)
    push_session_link({"ti": ti}, hook, "1", session_id, "5468")  # type: ignore[arg-type,typeddict-item]
    return ti.xcoms


def test_the_address_is_pushed_under_the_key_of_the_link() -> None:
    assert pushed("R-1", "https://zuora.example/{}/{}/{}") == {
        MeterSessionLink().xcom_key: "https://zuora.example/1/R-1/5468"
    }


@pytest.mark.parametrize(
    ("session_id", "answer"), [(None, "https://x"), ("R-1", None), ("R-1", MediationError("no connection"))]
)
def test_without_an_address_airflow_finds_an_empty_one_and_no_error(session_id: str | None, answer: Any) -> None:
    assert pushed(session_id, answer) == {MeterSessionLink().xcom_key: ""}


@pytest.mark.parametrize(("kept", "link"), [("https://zuora.example/1", "https://zuora.example/1"), (None, "")])
def test_airflow_repeats_what_was_pushed_when_the_task_ends(
    monkeypatch: pytest.MonkeyPatch, kept: str | None, link: str
) -> None:
    asked: list[Any] = []

    def get_value(*, ti_key: Any, key: str) -> str | None:
        asked.append(key)
        return kept

    monkeypatch.setattr(XCom, "get_value", get_value)
    assert MeterSessionLink().get_link(SimpleNamespace(), ti_key=SimpleNamespace()) == link  # type: ignore[arg-type]
    assert asked == [MeterSessionLink().xcom_key]


@pytest.mark.parametrize("operator", [RunMeterOperator, MeterSessionBranchOperator])
def test_the_operators_that_know_a_session_have_the_link(operator: Any) -> None:
    assert [type(link) for link in operator.operator_extra_links] == [MeterSessionLink]


def test_airflow_knows_the_link_by_the_provider_info() -> None:
    path = f"{MeterSessionLink.__module__}.{MeterSessionLink.__qualname__}"
    assert path in get_provider_info()["extra-links"]
