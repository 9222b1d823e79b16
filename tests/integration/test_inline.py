"""`airflow dags test`: a deferrable wait runs inline, as an author tries a Dag, without errors in its log."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from testkit.stage import Stage

SOURCE = """
from airflow.sdk import DAG
from airflow_mediation_provider.operators.meter import RunMeterOperator
from airflow_mediation_provider.sensors.meter_session import MeterSessionSensor

# Paused, so that the scheduler, which shares the database with the command, runs none of its tasks a second time.
with DAG("inline", schedule=None, is_paused_upon_creation=True):
    how = dict(meter_id="{meter}", deferrable=True, poke_interval=1, settle=0, exclusive=True)
    run = RunMeterOperator(task_id="run", **how)
    MeterSessionSensor(task_id="wait", session_id=run.output, **how)
"""


def test_dags_test_waits_inline_and_logs_no_errors(
    stage: Stage, add_dags: Callable[[Mapping[str, str]], None], meter: Callable[..., str]
):
    add_dags({"inline": SOURCE.format(meter=meter(script=[["RUNNING", 15], ["COMPLETED", None]]))})
    processes: Any = stage.airflow.processes
    processes.run("dags-test", [sys.executable, "-m", "airflow", "dags", "test", "inline"], timeout=180)
    log = processes.log_file("dags-test").read_text()
    assert "state=success" in log
    assert "running trigger in line" in log
    for error in ("Traceback", "Unclosed", "could not be pushed", "AttributeError"):
        assert error not in log
