"""A run of a session in a test: what cannot be is refused in a sentence, before anything runs."""

from __future__ import annotations

from typing import Any

import pytest
from airflow.sdk import DAG

from airflow_mediation_provider.assets import ANY_METER, on_meter_session
from airflow_mediation_provider.testing.runs import RunOfSession

SESSION = {"meter_id": "1001", "session_id": "R-00005468", "status": "COMPLETED"}
SCHEDULE = on_meter_session("1001", "COMPLETED") | on_meter_session(ANY_METER, "CANCELED", run_type="DEBUG")


@pytest.mark.parametrize("lacking", SESSION)
def test_a_session_lacks_what_it_needs(lacking: str) -> None:
    given = {name: value for name, value in SESSION.items() if name != lacking}
    with pytest.raises(ValueError, match=f"^the session has no {lacking}: it needs meter_id, session_id, status$"):
        RunOfSession("zuora")(DAG("a", schedule=SCHEDULE), given)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"meter_id": "1002"}, "starts no run of the NORMAL session R-00005468 of meter 1002 in COMPLETED"),
        ({"status": "FAILED"}, "starts no run"),
        ({"run_type": "DEBUG"}, "starts no run of the DEBUG session"),
        ({"status": "CANCELED"}, "starts no run"),
        ({"mediation_conn_id": "other"}, "over connection other: it is on mediation://mediation_default/meters/1001/"),
        ({"stauts": "FAILED"}, "^a session has no stauts; its keys are meter_id, status,"),
        ({"status": "NEVER_RUN"}, "^status: no session is ever NEVER_RUN"),
        ({"meter_id": "1001,1002"}, "^meter_id must be one id"),
        ({"observed_at": "2026-11-30T12:00:00"}, "^observed_at must have a time zone"),
    ],
)
def test_a_session_that_starts_no_run_is_refused(change: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        RunOfSession("mediation_default")(DAG("a", schedule=SCHEDULE), {**SESSION, **change})


def test_two_sessions_share_no_run() -> None:
    with pytest.raises(ValueError, match=r"only these can share a run$"):
        RunOfSession("mediation_default")(DAG("a", schedule=SCHEDULE), SESSION, {**SESSION, "session_id": "R-2"})


def test_a_dag_on_no_session_is_refused() -> None:
    with pytest.raises(ValueError, match=r"^Dag 'a' is not scheduled by on_meter_session\(\): run it"):
        RunOfSession("mediation_default")(DAG("a", schedule="@hourly"), SESSION)
