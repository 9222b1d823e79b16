"""`airflow mediation db ...`, as Airflow's own parser calls it."""

from __future__ import annotations

import io
from typing import TYPE_CHECKING

import pytest
from airflow import settings
from airflow.cli.cli_parser import get_parser
from sqlalchemy import inspect

from airflow_mediation_provider.journal.manager import MediationDBManager
from airflow_mediation_provider.journal.tables import VERSION_TABLE, Base

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

*_, HEAD = MediationDBManager.revision_heads_map.values()


def airflow(*arguments: str) -> None:
    args = get_parser().parse_args(["mediation", "db", *arguments])
    args.func(args)


def tables() -> set[str]:
    return {each for each in inspect(settings.get_engine()).get_table_names() if each.startswith("mediation_")}


@pytest.fixture(autouse=True)
def _empty(empty_database: str, airflow_on: Callable[[str], str]) -> None:
    airflow_on(empty_database)


def test_the_tables_are_migrated_and_removed_without_airflows(capsys: pytest.CaptureFixture[str]) -> None:
    """Airflow's own tables need not exist."""
    airflow("migrate")
    assert tables() == {VERSION_TABLE, *Base.metadata.tables}
    airflow("migrate")
    airflow("migrate", "--to-revision", HEAD)
    airflow("check")

    airflow("downgrade", "--to-revision", "base", "--yes")

    assert tables() == set()
    said = [line for line in capsys.readouterr().out.splitlines() if line.startswith("The journal's tables are")]
    assert said == [
        *[f"The journal's tables are at revision {HEAD}."] * 3,
        f"The journal's tables are at revision {HEAD}, as this version needs.",
        "The journal's tables are at revision base (no tables).",
    ]


def test_check_fails_and_names_the_command() -> None:
    with pytest.raises(SystemExit, match=rf"base \(no tables\).*needs {HEAD}: run `airflow db migrate`"):
        airflow("check")


@pytest.mark.parametrize("arguments", [("check",), ("migrate",), ("downgrade", "--to-revision", "base", "--yes")])
def test_an_unreachable_database_is_reported_in_one_sentence(
    arguments: tuple[str, ...], tmp_path: Path, airflow_on: Callable[[str], str]
) -> None:
    airflow_on(f"sqlite:///{tmp_path / 'nowhere' / 'airflow.db'}")

    with pytest.raises(SystemExit, match=r"^Airflow's database gave an error: unable to open database file\.$"):
        airflow(*arguments)


def test_a_downgrade_needs_a_confirmation(monkeypatch: pytest.MonkeyPatch) -> None:
    airflow("migrate")
    asked = []
    monkeypatch.setattr("builtins.input", lambda question: asked.append(question) or "n")

    with pytest.raises(SystemExit, match=r"Nothing was changed\."):
        airflow("downgrade", "--to-revision", "base")

    assert asked == ["Going back to revision base deletes the whole journal. Proceed? (y/n) "]
    assert tables() == {VERSION_TABLE, *Base.metadata.tables}


def test_a_downgrade_without_a_terminal_changes_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    airflow("migrate")
    monkeypatch.setattr("sys.stdin", io.StringIO())

    with pytest.raises(SystemExit, match=r"Nothing was changed: there is no terminal to confirm on\. Add --yes"):
        airflow("downgrade", "--to-revision", "base")

    assert tables() == {VERSION_TABLE, *Base.metadata.tables}


@pytest.mark.parametrize("arguments", [("migrate",), ("downgrade", "--yes")])
def test_an_unknown_revision_is_reported_in_one_sentence(arguments: tuple[str, ...]) -> None:
    with pytest.raises(SystemExit, match=r"Can't locate revision identified by '9999'\.$"):
        airflow(*arguments, "--to-revision", "9999")
