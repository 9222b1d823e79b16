"""Sensors in every mode, and mapped runs; see test_modes.py."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

from airflow.providers.standard.operators.empty import EmptyOperator
from airflow.sdk import DAG, dag, task_group

from airflow_mediation_provider.operators.branch import MeterSessionBranchOperator
from airflow_mediation_provider.operators.meter import RunMeterOperator
from airflow_mediation_provider.sensors.meter_session import MeterSessionSensor
from airflow_mediation_provider.version_compat import AIRFLOW_V_3_3_PLUS

MODES: dict[str, dict[str, Any]] = {
    "poke": {"mode": "poke", "poke_interval": 1},
    "deferrable": {"deferrable": True, "poke_interval": 1},
}
if AIRFLOW_V_3_3_PLUS:
    MODES["reschedule"] = {"mode": "reschedule", "poke_interval": 3}
    MODES["started_there"] = {"start_from_trigger": True, "poke_interval": 1}
# Long enough to be deferred, and for the scheduler to process that: Airflow takes a task that resumes before for one
# whose process was lost, and retries it.
TIMEOUT = 30
ENDS: dict[str, dict[str, Any]] = {
    "completed": {},
    "failed": {},
    "failed_softly": {"soft_fail": True},
    "timed_out": {"timeout": TIMEOUT},
    "timed_out_softly": {"timeout": TIMEOUT, "soft_fail": True},
}

with DAG("modes", schedule=None, params={"meters": {}, "sessions": {}}):
    for mode, how in MODES.items():
        for end, more in ENDS.items():
            name = f"{mode}_{end}"
            MeterSessionSensor(
                task_id=name,
                meter_id=f"{{{{ params.meters.{name} }}}}",
                session_id=f"{{{{ params.sessions.{name} }}}}",
                retries=3,
                retry_delay=timedelta(seconds=1),
                settle=1,
                exclusive=True,
                **{"timeout": 300, **how, **more},
            )


@dag(schedule=None, params={"meters": []}, render_template_as_native_obj=True)
def mapped() -> None:
    """Run each meter of the list and branch on its end."""

    @task_group
    def one_meter(meter_id: str) -> None:
        run_meter = RunMeterOperator(
            task_id="run_meter", meter_id=meter_id, deferrable=True, poke_interval=1, settle=1, fail_on=()
        )
        how_it_ended = MeterSessionBranchOperator(
            task_id="how_it_ended",
            session=run_meter.output,
            on_completed="one_meter.on_completed",
            on_failed="one_meter.on_failed",
            default="one_meter.otherwise",
        )
        run_meter >> how_it_ended
        how_it_ended >> [EmptyOperator(task_id=each) for each in ("on_completed", "on_failed", "otherwise")]

    one_meter.expand(meter_id=["50001", "50002", "50003", "50004", "50005"])


mapped()
