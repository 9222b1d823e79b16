"""A deferred wait on a real triggerer: who is asked, how often, and what wakes it."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from collections.abc import Callable

    from demo.stage import Stage

SENSOR = """
from airflow.sdk import dag
from airflow_mediation_provider.sensors.meter_session import MeterSessionSensor

# Airflow sometimes fails a task that resumes too soon (apache/airflow#72716), hence the retries.
@dag(schedule=None, params={{"meter_id": "none"}}, default_args={{"retries": 3, "retry_delay": 1}})
def {dag_id}():
    MeterSessionSensor(
        task_id="wait", meter_id="{{{{ params.meter_id }}}}", poke_interval=3, settle=3, {arguments}
    )

{dag_id}()
"""


@pytest.mark.parametrize("arguments", ["deferrable=True", "mode='reschedule'", "mode='poke'"])
def test_the_sensor_wakes_for_a_session_started_elsewhere(
    stage: Stage, meter: Callable[..., str], add_dag: Callable[[str, str], None], arguments: str
) -> None:
    dag_id = "sensor_" + "".join(filter(str.isalpha, arguments))
    add_dag(dag_id, SENSOR.format(dag_id=dag_id, arguments=arguments))
    meter_id = meter(script=[["INITIALIZING", 4], ["RUNNING", 8], ["COMPLETED", 0]])
    run_id = stage.airflow.trigger(dag_id, {"meter_id": meter_id})
    # The first look is the baseline: only what starts after it is seen.
    stage.simulator.wait_log("request", meter_id=meter_id, status=200, count=2)
    session = stage.simulator.start_session(meter_id)
    stage.airflow.wait_success(dag_id, run_id)

    result = stage.airflow.xcom(dag_id, run_id, "wait")
    assert result["meter_id"] == meter_id
    assert result["status"] == "COMPLETED"
    # A poll names no session, and a run that nobody saw can never be excluded.
    assert result["evidence"] == "poll"
    assert result["certain"] is False
    assert stage.simulator.sessions(meter_id)[-1]["session_id"] == session["session_id"]
