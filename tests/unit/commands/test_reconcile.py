"""`airflow mediation reconcile`, as Airflow's own parser calls it, against a simulated Zuora that loses callouts."""

from __future__ import annotations

import json
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING

import pytest
from airflow import settings
from airflow.cli.cli_parser import get_parser
from sqlalchemy import select

from airflow_mediation_provider.commands import time_of
from airflow_mediation_provider.hooks import tokens
from airflow_mediation_provider.hooks.api_usage import forget_all
from airflow_mediation_provider.journal.tables import SessionRow
from airflow_mediation_provider.journal.task_reports import budget
from airflow_mediation_provider.simulator import CalloutConfig, Simulator, running_simulator

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from tests.unit.statsd import StatsdServer

URL = "http://127.0.0.1:9/mediation/callouts/zuora"
NOW = datetime(2026, 3, 31, 12, tzinfo=UTC)


def airflow(*arguments: str) -> None:
    args = get_parser().parse_args(["mediation", "reconcile", "--conn-id", "zuora", *arguments])
    args.func(args)


def session() -> str | None:
    with settings.NonScopedSession() as database:
        row = database.scalar(select(SessionRow))
    return row and row.status


@pytest.fixture
def sim(sqlite_database: str, airflow_on: Callable[[str], str], monkeypatch: pytest.MonkeyPatch) -> Iterator[Simulator]:
    """A tenant whose callouts all got lost."""
    airflow_on(sqlite_database)
    tokens.forget_all()
    with running_simulator(time_scale=0.001) as simulator:
        connection = {
            "conn_type": "mediation",
            "host": simulator.url,
            "login": "simulator-client",
            "password": "simulator-secret",
        }
        monkeypatch.setenv("AIRFLOW_CONN_ZUORA", json.dumps(connection))
        simulator.callouts(CalloutConfig(url=URL, loss=1.0, retry=False))
        simulator.start_session("1001", script=[["INITIALIZING", 1], ["RUNNING", 1], ["COMPLETED", None]])
        simulator.wait_for("transition", 3)
        simulator.wait_delivered()
        yield simulator


@pytest.mark.usefixtures("sim")
def test_added_changes_are_counted_as_from_the_history(statsd: StatsdServer) -> None:
    airflow("--dry-run")
    assert statsd.counted() == {}
    airflow()
    transition = "mediation.transitions,conn_id=zuora,evidence=history,run_type=NORMAL,status="
    assert statsd.counted() == {f"{transition}{status}": 1 for status in ("INITIALIZING", "RUNNING", "COMPLETED")}
    airflow()
    assert statsd.counted() == {}


@pytest.mark.usefixtures("sim")
def test_missing_changes_are_listed_then_added_then_none_is_left(capsys: pytest.CaptureFixture[str]) -> None:
    airflow("--dry-run")
    said = capsys.readouterr().out
    assert "Missing: session R-00005468 of meter 1001: RUNNING -> COMPLETED at " in said
    assert "(3 records read): 3 are missing in the journal." in said
    assert session() is None

    airflow()
    assert "Added: session R-00005468" in capsys.readouterr().out
    assert session() == "COMPLETED"

    airflow("--since", "2h")
    assert "none is missing in the journal." in capsys.readouterr().out


@pytest.mark.usefixtures("sim")
def test_with_json_the_result_goes_to_stdout_and_progress_to_stderr(capsys: pytest.CaptureFixture[str]) -> None:
    airflow("--json", "--open-hours", "0")

    said = capsys.readouterr()
    assert {each["status"] for each in json.loads(said.out)["repaired"]} == {"INITIALIZING", "RUNNING", "COMPLETED"}
    assert "Reading the callout history" in said.err


def test_the_calls_of_a_pass_are_counted_also_if_it_fails(sim: Simulator) -> None:
    forget_all()
    airflow("--dry-run")
    sim.fault("status", status=403, path="notification-history")
    with pytest.raises(SystemExit):
        airflow()

    with settings.NonScopedSession() as database:
        (found,) = budget(database, ["zuora"], datetime.now(UTC))
    asked = [entry for entry in sim.log(kind="request") if not entry["path"].startswith("/oauth")]
    assert found.last_day == len(asked) >= 2


@pytest.mark.usefixtures("sim")
@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("--since", "yesterday"), "--since must be a time like"),
        (("--until", "2020-01-01"), "--until must be after --since"),
        (("--conn-id", "missing"), "There is no connection 'missing'"),
    ],
)
def test_an_invalid_argument_is_reported_in_one_sentence(arguments: tuple[str, ...], words: str) -> None:
    with pytest.raises(SystemExit, match=words):
        airflow(*arguments)


@pytest.mark.usefixtures("sim")
def test_without_tables_the_error_names_the_command(
    empty_sqlite_database: str, airflow_on: Callable[[str], str]
) -> None:
    airflow_on(empty_sqlite_database)

    with pytest.raises(SystemExit, match="run `airflow db migrate`"):
        airflow()


def test_a_refusal_of_zuora_is_reported(sim: Simulator) -> None:
    sim.fault("status", status=403, path="notification-history")

    with pytest.raises(SystemExit, match="callout history"):
        airflow()


@pytest.mark.parametrize(
    ("text", "ago"),
    [
        ("36h", timedelta(hours=36)),
        ("90m", timedelta(minutes=90)),
        ("1.5d", timedelta(hours=36)),
        ("2026-03-31T11:00Z", timedelta(hours=1)),
        ("2026-03-31 13:00+02:00", timedelta(hours=1)),
        ("2026-03-31T11:00", timedelta(hours=1)),
        ("2026-03-31", timedelta(hours=12)),
    ],
)
def test_a_time_is_read(text: str, ago: timedelta) -> None:
    assert time_of("--since", text, NOW) == NOW - ago


@pytest.mark.parametrize("text", ["", "h", "-1h", "1w", "soon", "2026-13-01"])
def test_an_invalid_time_is_refused(text: str) -> None:
    with pytest.raises(SystemExit, match="--since must be a time"):
        time_of("--since", text, NOW)


@pytest.mark.parametrize("text", ["999999d", "0001-01-01T00:00+14:00", "9999-12-31T23:59-14:00"])
def test_a_time_beyond_the_calendar_is_refused(text: str) -> None:
    with pytest.raises(SystemExit, match=r"--since .* is beyond the range of the calendar"):
        time_of("--since", text, NOW)


@pytest.mark.parametrize("hours", ["nan", "inf", "-1", "1e300", "six"])
def test_invalid_hours_are_refused(hours: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        airflow(f"--open-hours={hours}")
    assert f"--open-hours: it must be a number of hours from 0 to 100,000, not '{hours}'" in capsys.readouterr().err
