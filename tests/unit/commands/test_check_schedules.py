"""`airflow mediation check-schedules`, as Airflow's own parser calls it."""

from __future__ import annotations

import pytest
from airflow.cli.cli_parser import get_parser
from airflow.sdk import Asset

from airflow_mediation_provider.assets import on_meter_session
from tests.unit.journal.scheduling import Airflow

# Airflow logs each command in its database.
pytestmark = [pytest.mark.services, pytest.mark.usefixtures("airflow_database")]


def check() -> None:
    args = get_parser().parse_args(["mediation", "check-schedules"])
    args.func(args)


def test_a_dag_that_never_starts_is_named_with_the_remedy(capsys: pytest.CaptureFixture[str]) -> None:
    airflow = Airflow()
    airflow.know("load", on_meter_session("1", "COMPLETED"))
    check()
    assert "Sessions start each Dag whose schedule names them." in capsys.readouterr().out
    airflow.know("plain", [Asset("mediation://eu/meters/1/COMPLETED")])

    with pytest.raises(SystemExit) as ended:
        check()

    assert ended.value.code == 1
    line = (
        "Sessions of connection eu never start the Dag plain: write schedule=on_meter_session(...) instead of an asset."
    )
    assert line in capsys.readouterr().out.splitlines()
