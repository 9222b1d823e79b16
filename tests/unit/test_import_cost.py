"""The imports of a Dag file from this package are light: Dag processors import them again and again."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

PROBE = """
import json, sys
import airflow.sdk
from airflow.sdk import BaseOperator, BaseSensorOperator, BaseOperatorLink, dag, conf
before = set(sys.modules)
import airflow_mediation_provider.sensors.meter_session
import airflow_mediation_provider.operators.meter
import airflow_mediation_provider.operators.branch
import airflow_mediation_provider.operators.audit
import airflow_mediation_provider.operators.prune
import airflow_mediation_provider.operators.reconcile
from airflow_mediation_provider.alerts import MediationAlert
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


@pytest.mark.services
def test_sensors_and_operators_import_nothing_heavy():
    done = subprocess.run([sys.executable, "-c", PROBE], capture_output=True, text=True, check=True, timeout=120)
    added = json.loads(done.stdout.splitlines()[-1])
    heavy = [name for name in added if name.startswith(HEAVY)]
    assert heavy == []
    layers = [name for name in added if name.startswith((f"{OURS}.hooks.", f"{OURS}.triggerer", f"{OURS}.simulator."))]
    assert layers == []
    assert f"{OURS}.sensors.meter_session" in added


@pytest.mark.services
def test_the_sensor_and_the_branch_pull_in_no_messages():
    probe = """
import json, sys
import airflow_mediation_provider.sensors.meter_session
import airflow_mediation_provider.operators.branch
print(json.dumps(sorted(sys.modules)))
"""
    done = subprocess.run([sys.executable, "-c", probe], capture_output=True, text=True, check=True, timeout=120)
    loaded = json.loads(done.stdout.splitlines()[-1])
    assert f"{OURS}.feed.reports" in loaded
    assert [name for name in loaded if name in (f"{OURS}.protocol.wire", f"{OURS}.protocol.sessions.verdict")] == []
