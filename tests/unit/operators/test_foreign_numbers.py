"""A task keeps its own timeouts, with any number that Zuora asks it to wait for."""

from __future__ import annotations

from datetime import timedelta
from itertools import product
from typing import TYPE_CHECKING, Any

import pytest

from airflow_mediation_provider.exceptions import AuditExportTimeout, MediationUnreachable, MeterSessionTimeout
from airflow_mediation_provider.operators.audit import AuditTrailExportOperator, MeterSummaryOperator
from airflow_mediation_provider.operators.meter import RunMeterOperator
from airflow_mediation_provider.protocol.zuora.errors import TransientError
from airflow_mediation_provider.sensors.meter_session import MeterSessionSensor

from .conftest import starts

if TYPE_CHECKING:
    from airflow_mediation_provider.simulator import Simulator

    from .conftest import TaskInstance

NUMBERS = ["0", "-1", "1798761600", "1" + "0" * 12, "9" * 400, "inf", "soon"]


@pytest.fixture(params=product(["Retry-After", "RateLimit-Reset"], NUMBERS), ids=lambda sent: f"{': '.join(sent):.28}")
def header(request: pytest.FixtureRequest) -> dict[str, str]:
    return dict([request.param])


def limited(sim: Simulator, header: dict[str, str], path: str, **fields: Any) -> None:
    sim.fault("status", status=429, headers=header, path=path, **fields)


def test_a_run_that_cannot_start_ends_at_max_unreachable(
    sim: Simulator, ti: TaskInstance, header: dict[str, str]
) -> None:
    limited(sim, header, "/runStatus")
    with pytest.raises(MediationUnreachable):
        RunMeterOperator(task_id="task", meter_id="1001", max_unreachable=60, deferrable=False).execute(ti.context)
    assert 60 <= ti.clock.passed < 62
    assert starts(sim) == 0


def test_a_sensor_ends_at_its_timeout(sim: Simulator, ti: TaskInstance, header: dict[str, str]) -> None:
    limited(sim, header, "/runStatus", after=1)
    sensor = MeterSessionSensor(task_id="task", meter_id="1001", poke_interval=10, timeout=300, deferrable=False)
    with pytest.raises(MeterSessionTimeout):
        sensor.execute(ti.context)
    assert 300 <= ti.clock.passed < 302


def test_a_sensor_ends_at_max_unreachable(sim: Simulator, ti: TaskInstance, header: dict[str, str]) -> None:
    limited(sim, header, "/runStatus", after=1)
    sensor = MeterSessionSensor(
        task_id="task", meter_id="1001", poke_interval=10, timeout=3000, max_unreachable=100, deferrable=False
    )
    with pytest.raises(MediationUnreachable):
        sensor.execute(ti.context)
    assert 110 <= ti.clock.passed < 112


def test_the_wait_for_an_export_ends_at_its_timeout(sim: Simulator, ti: TaskInstance, header: dict[str, str]) -> None:
    session = sim.start_session("1001")
    limited(sim, header, "/auditTrail/export", method="GET")
    task = AuditTrailExportOperator(
        task_id="task", meter_id="1001", session_id=session["id"], poke_interval=10, timeout=60, deferrable=False
    )
    with pytest.raises(AuditExportTimeout):
        task.execute(ti.context)
    assert 60 <= ti.clock.passed < 62


def test_an_export_that_cannot_be_made_ends_at_its_timeout(
    sim: Simulator, ti: TaskInstance, header: dict[str, str]
) -> None:
    limited(sim, header, "/auditTrail/export", method="POST")
    begin = ti.clock.now() - timedelta(hours=1)
    task = AuditTrailExportOperator(task_id="task", meter_id="1001", query_from=begin, timeout=60, deferrable=False)
    with pytest.raises(TransientError):
        task.execute(ti.context)
    assert ti.clock.passed <= 60


def test_a_summary_pauses_no_longer_than_the_longest_wait_of_a_call(
    sim: Simulator, ti: TaskInstance, header: dict[str, str]
) -> None:
    limited(sim, header, "/summary")
    begin = ti.clock.now() - timedelta(hours=1)
    with pytest.raises(TransientError):
        MeterSummaryOperator(task_id="task", meter_id="1001", query_from=begin).execute(ti.context)
    assert ti.clock.passed <= 300
