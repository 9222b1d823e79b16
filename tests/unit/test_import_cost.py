"""What a DAG file imports of this package is light: DAG processors import it again and again."""

from __future__ import annotations

import json
import subprocess
import sys

PROBE = """
import json, sys
import airflow.sdk
from airflow.sdk import BaseOperator, BaseSensorOperator, BaseOperatorLink, DAG, conf
before = set(sys.modules)
import airflow_mediation_provider.sensors.meter_session
import airflow_mediation_provider.operators.meter
import airflow_mediation_provider.operators.branch
import airflow_mediation_provider.operators.audit
import airflow_mediation_provider.operators.prune
import airflow_mediation_provider.operators.reconcile
from airflow_mediation_provider.assets import on_meter_session
on_meter_session("1001", "COMPLETED", poll_interval=60)
print(json.dumps(sorted(set(sys.modules) - before)))
"""
HEAVY = (
    "requests",
    "aiohttp",
    "httpx",
    "sqlalchemy",
    "fastapi",
    "starlette",
    "alembic",
    "airflow.models",
    "airflow.jobs",
)
OURS = "airflow_mediation_provider"


def test_sensors_and_operators_pull_in_nothing_heavy():
    done = subprocess.run([sys.executable, "-c", PROBE], capture_output=True, text=True, check=True, timeout=120)
    added = json.loads(done.stdout.splitlines()[-1])
    heavy = [name for name in added if name.startswith(HEAVY)]
    assert heavy == []
    layers = [name for name in added if name.startswith((f"{OURS}.hooks.", f"{OURS}.watch", f"{OURS}.simulator."))]
    assert layers == []
    assert f"{OURS}.sensors.meter_session" in added
