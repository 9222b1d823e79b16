"""Type checkers check what users write: the README's and the example Dags pass, and a wrong argument does not."""

from __future__ import annotations

import inspect
import re
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, get_args

import pytest
from airflow.sdk import BaseOperator

from airflow_mediation_provider.protocol.status import RunType, RunTypeName, SessionStatus, StatusName
from airflow_mediation_provider.tasks.arguments import OperatorArguments

if TYPE_CHECKING:
    from collections.abc import Mapping

ROOT = Path(__file__).parents[2]

# Each line has an error of its own, of the kind in its comment; a line without a comment has none.
CALLS = """
from typing import Any, cast

from airflow.sdk import task

from airflow_mediation_provider.assets import ANY_METER, SessionResult, on_meter_session
from airflow_mediation_provider.operators.audit import AuditTrailExportOperator, MeterSummaryOperator
from airflow_mediation_provider.operators.branch import MeterSessionBranchOperator
from airflow_mediation_provider.operators.meter import RunMeterOperator
from airflow_mediation_provider.operators.prune import PruneJournalOperator
from airflow_mediation_provider.operators.reconcile import ReadCalloutHistoryOperator, ReconcileCalloutsOperator
from airflow_mediation_provider.operators.stop import StopMeterOperator
from airflow_mediation_provider.protocol.status import RunType, SessionStatus
from airflow_mediation_provider.sensors.meter_session import MeterSessionSensor


@task
def session() -> SessionResult:
    raise NotImplementedError


run = RunMeterOperator(task_id="a", meter_id=1001, run_type="DEBUG", fail_on=(), retries=3, pool="zuora")
RunMeterOperator(task_id="a", meter_id="1001", run_type=RunType.DEBUG, statuses=[SessionStatus.RUNNING, "PAUSED"])
RunMeterOperator(task_id="a", meter_id="1001", statuses=cast("Any", "NEW"), source_options=session())
MeterSessionSensor(task_id="a", session=session(), mode="reschedule", poke_interval=5, soft_fail=True)
MeterSessionSensor(task_id="a", meter_id="1001", session_id=run.output["session_id"], since="{{ ds }}")
MeterSessionBranchOperator(task_id="a", session=run.output, default=[], query=1)  # call-arg
MeterSummaryOperator(task_id="a", session=run.output, query_from=session())
on_meter_session(ANY_METER, ["FAILED", SessionStatus.CANCELED], run_type=["NORMAL", RunType.DEBUG])
RunMeterOperator(task_id="a", meter_id="1001", defferable=True)  # call-arg
RunMeterOperator(task_id="a", meter_id="1001", retry=3)  # call-arg
RunMeterOperator(meter_id="1001")  # call-arg
RunMeterOperator(task_id="a", meter_id="1001", run_type="TEST")  # arg-type
RunMeterOperator(task_id="a", meter_id="1001", statuses=["COMPLETE"])  # list-item
RunMeterOperator(task_id="a", meter_id="1001", retries="3")  # arg-type
MeterSessionSensor(task_id="a", session=session(), mod="poke")  # call-arg
MeterSessionSensor(task_id="a", session=session(), never_fail=True)  # call-arg
MeterSessionSensor(task_id="a", session=session(), on_other_previous="ignore")  # arg-type
MeterSummaryOperator(task_id="a", sesion=run.output)  # call-arg
AuditTrailExportOperator(task_id="a", session=run.output, export_type="ERRORS")  # arg-type
StopMeterOperator(task_id="a", meter_id="1001", forced=True)  # call-arg
PruneJournalOperator(task_id="a", older_than=90)  # call-arg
ReconcileCalloutsOperator(task_id="a", dryrun=True)  # call-arg
ReadCalloutHistoryOperator(task_id="a", intervall=60)  # call-arg
on_meter_session("1001", "COMPLETE")  # arg-type
on_meter_session("1001", status="COMPLETED")  # call-arg
"""


@pytest.mark.services
def test_what_users_write_is_checked(tmp_path: Path) -> None:
    sources = re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(), re.DOTALL)
    texts = {f"readme_{number}.py": source for number, source in enumerate(sources)} | {"calls.py": CALLS}
    for name, text in texts.items():
        (tmp_path / name).write_text(text)
    files = [*(str(tmp_path / name) for name in texts), *map(str, sorted((ROOT / "dags").glob("*.py")))]
    done = subprocess.run(
        [sys.executable, "-m", "mypy", "--strict", "--no-error-summary", *files],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=500,
    )
    found = set(re.findall(r"^(?:.*/)?(\w+\.py):(\d+): error: .*\[([\w-]+)\]$", done.stdout, re.MULTILINE))
    wanted = {
        ("calls.py", str(number), line.partition("  # ")[2])
        for number, line in enumerate(CALLS.splitlines(), 1)
        if "  # " in line
    }
    assert found == wanted, done.stdout + done.stderr


@pytest.mark.parametrize(("names", "enum"), [(StatusName, SessionStatus), (RunTypeName, RunType)])
def test_the_names_for_type_checkers_are_those_of_the_enum(names: object, enum: Mapping[str, str]) -> None:
    assert list(get_args(names)) == [str(each) for each in enum]


def test_each_argument_of_airflows_operators_has_a_type() -> None:
    """Airflow 3.2 has fewer."""
    parameters = inspect.signature(BaseOperator.__init__).parameters.values()
    assert {
        each.name for each in parameters if each.kind is each.KEYWORD_ONLY
    } <= OperatorArguments.__annotations__.keys()
