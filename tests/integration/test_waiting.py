"""A wait for any session, in each mode on a real Airflow: what wakes it, and how certain its result is."""

from __future__ import annotations

from typing import TYPE_CHECKING

from airflow_mediation_provider.version_compat import AIRFLOW_V_3_3_PLUS

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from testkit.stage import Stage

MODES = {"deferrable": "deferrable=True", "poke": "mode='poke'"}
if AIRFLOW_V_3_3_PLUS:
    MODES["reschedule"] = "mode='reschedule'"
SENSORS = """
from airflow.sdk import dag
from airflow_mediation_provider.sensors.meter_session import MeterSessionSensor

# Airflow sometimes fails a task that resumes too soon (apache/airflow#72716), hence the retries.
@dag(schedule=None, params=dict.fromkeys({modes}, "none"), default_args={{"retries": 3, "retry_delay": 1}})
def sensors():
{tasks}

sensors()
"""
SENSOR = """
    MeterSessionSensor(
        task_id="{mode}", meter_id="{{{{ params.{mode} }}}}", poke_interval=3, settle=3, {arguments}
    )
"""


def test_the_sensor_wakes_for_a_session_started_elsewhere(
    stage: Stage, meter: Callable[..., str], add_dags: Callable[[Mapping[str, str]], None]
) -> None:
    tasks = "".join(SENSOR.format(mode=mode, arguments=arguments) for mode, arguments in MODES.items())
    add_dags({"sensors": SENSORS.format(modes=list(MODES), tasks=tasks)})
    meters = {mode: meter(script=[["INITIALIZING", 4], ["RUNNING", 8], ["COMPLETED", 0]]) for mode in MODES}
    run_id = stage.airflow.trigger("sensors", meters)
    sessions = {}
    for mode, meter_id in meters.items():
        # The first poll is the baseline: only what starts after it is found.
        stage.simulator.wait_log("request", meter_id=meter_id, status=200, count=2)
        sessions[mode] = stage.simulator.start_session(meter_id)["session_id"]
    stage.airflow.wait_success("sensors", run_id)

    for mode, meter_id in meters.items():
        result = stage.airflow.xcom("sensors", run_id, mode)
        assert (result["meter_id"], result["status"]) == (meter_id, "COMPLETED")
        # A poll names no session, and polls can never exclude a run that was not seen.
        assert (result["evidence"], result["certain"]) == ("poll", False)
        assert [each["session_id"] for each in stage.simulator.sessions(meter_id)] == [sessions[mode]]
