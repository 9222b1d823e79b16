"""`airflow mediation prune`, as Airflow's own parser calls it."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest
from airflow import settings
from airflow.cli.cli_parser import get_parser
from sqlalchemy import func, select
from sqlalchemy.orm import Session

from airflow_mediation_provider.journal.tables import Base, SessionRow
from airflow_mediation_provider.tasks import maintenance as progress


def airflow(*arguments: str) -> None:
    args = get_parser().parse_args(["mediation", "prune", *arguments])
    args.func(args)


def sessions() -> int:
    with Session(settings.get_engine()) as session:
        return session.scalar(select(func.count()).select_from(SessionRow)) or 0


@pytest.fixture(autouse=True)
def _two_old_sessions(sqlite_database: str, airflow_on: object) -> None:
    assert callable(airflow_on)
    airflow_on(sqlite_database)
    old = datetime.now(UTC) - timedelta(days=31)
    times = dict.fromkeys(("begun_at", "first_observed_at", "last_observed_at", "updated_at"), old)
    values = {
        **times,
        "run_type": "NORMAL",
        "status": "COMPLETED",
        "source": "callout",
        "transition": {},
        "emitted": {},
    }
    flags = {"conflict": False, "ambiguous": False, "revision": 1}
    with Session(settings.get_engine()) as session:
        for conn_id, terminal in (("zuora", True), ("zuora", False), ("other", True)):
            name = {"conn_id": conn_id, "meter_id": "1001", "session_id": f"R-{terminal}"}
            session.add(SessionRow(**name, **values, **flags, terminal=terminal, best_ended=terminal))
        session.commit()


def test_a_dry_run_prints_what_a_prune_then_deletes(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(progress, "_SECONDS_BETWEEN_LINES", 0)

    airflow("--older-than", "30", "--dry-run")

    said = capsys.readouterr().out
    assert ": 2 ended sessions, and 1 without an end, which stay." in said
    assert "2 of 2 sessions ..." in said
    counts = "2 sessions with 0 changes of status, 0 other records, 0 waits."
    assert f"Would delete {counts}" in said
    assert sessions() == 3

    airflow("--older-than", "30")

    assert f"Deleted {counts}" in capsys.readouterr().out
    assert sessions() == 1


def test_one_connection_is_pruned(capsys: pytest.CaptureFixture[str]) -> None:
    airflow("--older-than", "30", "--conn-id", "other")

    assert "of connection other: 1 ended sessions, and 0" in capsys.readouterr().out
    assert sessions() == 2


def test_sessions_that_zuora_may_send_again_are_not_deleted() -> None:
    with pytest.raises(SystemExit, match=r"^7 days are too few.*last days\.$"):
        airflow("--older-than", "7")
    assert sessions() == 3


def test_without_tables_the_error_names_the_command() -> None:
    Base.metadata.drop_all(settings.get_engine())
    with pytest.raises(SystemExit, match="run `airflow db migrate`"):
        airflow("--older-than", "30")
