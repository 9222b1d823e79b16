"""Triggers as `dag.test()` and `airflow dags test` run them: without a task instance, in a loop that ends at once."""

from __future__ import annotations

import asyncio
import gc
import json
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any

import pytest

from airflow_mediation_provider.hooks import tokens
from airflow_mediation_provider.protocol.waits.condition import SessionCondition
from airflow_mediation_provider.protocol.waits.wait import SessionWait
from airflow_mediation_provider.simulator import running_simulator
from airflow_mediation_provider.triggers.meter_session import MeterSessionStartTrigger, MeterSessionTrigger

if TYPE_CHECKING:
    from collections.abc import Iterator

    from airflow_mediation_provider.simulator import Simulator

METER = "1001"
NOBODY = "http://127.0.0.1:1"


@pytest.fixture
def sim(services: None, monkeypatch: pytest.MonkeyPatch) -> Iterator[Simulator]:
    tokens.forget_all()
    with running_simulator() as simulator:
        connection = {
            "conn_type": "mediation",
            "host": simulator.url,
            "login": "simulator-client",
            "password": "simulator-secret",
        }
        monkeypatch.setenv("AIRFLOW_CONN_MEDIATION_DEFAULT", json.dumps(connection))
        for name in ("MEDIATION__FEED_URL", "CORE__EXECUTION_API_SERVER_URL", "API__BASE_URL"):
            monkeypatch.setenv(f"AIRFLOW__{name}", NOBODY)
        yield simulator


def deferred(session_id: str) -> MeterSessionTrigger:
    condition = SessionCondition(meter_id=METER, session_id=session_id)
    wait = SessionWait(condition, created_at=datetime.now(UTC), exclusive=True, settle=timedelta())
    return MeterSessionTrigger(
        mediation_conn_id="mediation_default", wait=wait.to_dict(), poll_interval=0.05, end_from_trigger=True
    )


def started(session_id: str) -> MeterSessionTrigger:
    return MeterSessionStartTrigger(
        mediation_conn_id="mediation_default",
        meter_id=METER,
        version="0.0.1",
        session_id=session_id,
        run_type="NORMAL",
        wait_options={"exclusive": True, "require_certain": False, "max_unreachable": 60, "settle": 0},
        timeout=60,
        backstop=120,
        poll_interval=0.05,
        end_from_trigger=True,
    )


@pytest.mark.parametrize("make", [deferred, started])
def test_a_trigger_run_inline_pushes_nothing_and_leaves_no_connection_open(
    sim: Simulator, make: Any, capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
):
    session = sim.start_session(METER, script=[["RUNNING", 0.3], ["COMPLETED", None]])["session_id"]

    async def first_event() -> Any:  # as InProcessTestSupervisor.run_trigger_in_process
        return await anext(make(session).run(), None)

    event = asyncio.run(first_event())
    gc.collect()
    assert event.payload["end"] == "MET"
    assert event.payload["session"]["status"] == "COMPLETED"
    said = capsys.readouterr().out + caplog.text
    assert "Unclosed" not in said
    assert not [record for record in caplog.records if record.levelname in ("WARNING", "ERROR")]
    assert "[warning" not in said
