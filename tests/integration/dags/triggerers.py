"""Deferred tasks that lose their triggerer, each with a meter of its own; see test_triggerers.py."""

from __future__ import annotations

import time
from datetime import timedelta
from typing import Any

from airflow.sdk import DAG

from airflow_mediation_provider.operators.audit import AuditTrailExportOperator
from airflow_mediation_provider.operators.meter import RunMeterOperator
from airflow_mediation_provider.sensors.meter_session import MeterSessionSensor
from airflow_mediation_provider.version_compat import AIRFLOW_V_3_3_PLUS
from airflow_mediation_provider.worker import waiting

# The tests are not to wait for a minute here. It counts for the tasks of this file alone.
waiting.BACKSTOP = timedelta(seconds=3)


class SlowToResume(RunMeterOperator):
    """Gives time to kill the worker on which a deferred task resumed."""

    def execute_complete(self, context: Any, event: Any = None) -> Any:
        if context["ti"].try_number == 1:
            time.sleep(120)
        return super().execute_complete(context, event)


def arguments(task_id: str) -> dict[str, Any]:
    return {
        "task_id": task_id,
        "meter_id": f"{{{{ params.meters.{task_id} }}}}",
        "deferrable": True,
        "poke_interval": 1,
        "settle": 1,
        "retries": 3,
        "retry_delay": timedelta(seconds=1),
        "exclusive": True,
    }


def sensor(task_id: str, **more: Any) -> None:
    MeterSessionSensor(**arguments(task_id), session_id=f"{{{{ params.sessions.{task_id} }}}}", timeout=300, **more)


with DAG("triggerers", schedule=None, params={"meters": {}, "sessions": {}}):
    RunMeterOperator(**arguments("run_goes_on"), timeout=300)
    RunMeterOperator(**arguments("run_ends_meanwhile"), timeout=300)
    sensor("sensor_goes_on")
    SlowToResume(**arguments("worker_lost_too"), timeout=300)
    RunMeterOperator(**arguments("no_triggerer_for_long"), timeout=20)
    RunMeterOperator(**arguments("too_late_without_triggerer"), timeout=20)
    RunMeterOperator(**arguments("run_moves"), timeout=300, stop_meter_on_kill=True)
    sensor("sensor_moves")
    AuditTrailExportOperator(
        task_id="export_goes_on",
        meter_id="{{ params.meters.export_goes_on }}",
        deferrable=True,
        poke_interval=1,
        retries=3,
        retry_delay=timedelta(seconds=1),
    )
    if AIRFLOW_V_3_3_PLUS:
        for what in ("goes_on", "ends_meanwhile", "moves"):
            sensor(f"started_there_{what}", start_from_trigger=True)
