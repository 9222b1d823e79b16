"""Waits during faults of Zuora, and tasks with a wrong setup; see test_faults.py."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

from airflow.sdk import DAG

from airflow_mediation_provider.operators.meter import RunMeterOperator
from airflow_mediation_provider.sensors.meter_session import MeterSessionSensor
from airflow_mediation_provider.version_compat import AIRFLOW_V_3_3_PLUS

RETRIES: dict[str, Any] = {"retries": 3, "retry_delay": timedelta(seconds=1)}
QUICK: dict[str, Any] = {"poke_interval": 1, "settle": 1, "timeout": 300}
FAULTS = ("unavailable", "hanging", "html", "no_json", "reset", "truncated", "unknown_status", "tokens_expired")

with DAG("faults", schedule=None, params={"meters": {}, "sessions": {}}):
    for fault in FAULTS:
        for where in ("poke", "deferrable"):
            name = f"{fault}_{where}"
            MeterSessionSensor(
                task_id=name,
                meter_id=f"{{{{ params.meters.{name} }}}}",
                session_id=f"{{{{ params.sessions.{name} }}}}",
                deferrable=where == "deferrable",
                exclusive=True,
                **QUICK,
                **RETRIES,
            )
    RunMeterOperator(
        task_id="unavailable_when_called",
        meter_id="{{ params.meters.unavailable_when_called }}",
        deferrable=True,
        exclusive=True,
        **QUICK,
        **RETRIES,
    )

MISTAKES = {
    "missing_connection": "there_is_none",
    "wrong_secret": "wrong_secret",
    "wrong_host": "wrong_host",
    "misspelt_host": "misspelt_host",
    "missing_scheme": "missing_scheme",
    "not_enabled": "not_enabled",
    "unknown_meter": "mediation_default",
}
UNKNOWN_METER = "99999999"

with DAG("mistakes", schedule=None):
    for mistake, connection in MISTAKES.items():
        common: dict[str, Any] = {
            "meter_id": UNKNOWN_METER if mistake == "unknown_meter" else "1001",
            "mediation_conn_id": connection,
            **QUICK,
            **RETRIES,
        }
        MeterSessionSensor(task_id=f"{mistake}_sensor", **common)
        if AIRFLOW_V_3_3_PLUS:
            MeterSessionSensor(task_id=f"{mistake}_started_there", start_from_trigger=True, **common)
        RunMeterOperator(task_id=f"{mistake}_run", deferrable=True, **common)
