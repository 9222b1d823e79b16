"""Airflow below a private certificate authority: by Airflow's own settings alone, callouts reach every kind of wait."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import pytest

from testkit.authority import Authority
from testkit.stack import AirflowStack
from testkit.stage import connection
from tests.integration.test_callouts import SECRET, Callouts

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from testkit.stage import Stage

METERS = {"deferrable": "71001", "poke": "71002"}
DAG = """
from airflow.sdk import dag
from airflow_mediation_provider.sensors.meter_session import MeterSessionSensor

# Airflow sometimes fails a task that resumes too soon (apache/airflow#72716), hence the retries.
@dag(schedule=None, default_args={{"retries": 3, "retry_delay": 1}})
def tls():
    for name, meter_id in {meters!r}.items():
        MeterSessionSensor(
            task_id=name,
            meter_id=meter_id,
            deferrable=name == "deferrable",
            poke_interval=600 if name == "deferrable" else 1,
            require_certain=True,
            timeout=120,
        )

tls()
"""


@pytest.fixture(scope="module")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    return Authority(tmp_path_factory.mktemp("authority"), "authority")


@pytest.fixture(scope="module")
def airflow(
    stage: Stage, authority: Authority, tmp_path_factory: pytest.TempPathFactory, sqlite_template: Path
) -> Iterator[AirflowStack]:
    dags = tmp_path_factory.mktemp("tls-dags")
    (dags / "tls.py").write_text(DAG.format(meters=METERS))
    for meter_id in METERS.values():
        stage.simulator.meter(meter_id)
    env = {"AIRFLOW_CONN_MEDIATION_DEFAULT": connection(stage.simulator.url, callout_secret=SECRET)}
    # Of the machine, which would be trusted as well.
    bundles = dict.fromkeys(("REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE", "SSL_CERT_FILE", "SSL_CERT_DIR"), "")
    root, env = tmp_path_factory.mktemp("tls"), env | bundles
    with AirflowStack(root, dags, env, migrated=sqlite_template, authority=authority) as stack:
        stack.wait_dags({"tls"})
        yield stack


def test_callouts_end_waits_in_worker_and_triggerer(airflow: AirflowStack, authority: Authority) -> None:
    callouts = Callouts(airflow, "mediation_default", options=["--cacert", authority.file])
    run_id = airflow.trigger("tls")
    airflow.wait_task("tls", run_id, "deferrable", {"deferred"})
    airflow.wait_task("tls", run_id, "poke", {"running"})
    for name, meter_id in METERS.items():
        for status, previous in (("RUNNING", "INITIALIZING"), ("COMPLETED", "RUNNING")):
            answer = callouts.post(meter_id, f"R-{name}", status, previous)
            assert json.loads(answer) == {"success": True}

    for name in METERS:
        airflow.wait_task("tls", run_id, name, {"success"}, timeout=60)
        result: dict[str, Any] = airflow.xcom("tls", run_id, name)
        assert (result["session_id"], result["evidence"], result["certain"]) == (f"R-{name}", "callout", True)
    for name in METERS:
        assert f"found by [api] base_url: {airflow.url}" in airflow.logs("tls", run_id, name)
