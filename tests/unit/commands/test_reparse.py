"""`airflow mediation reparse`: an unparsed callout counts once it can be parsed, and only once."""

from __future__ import annotations

import json
import threading
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any

import pytest
from airflow import settings
from airflow.cli.cli_parser import get_parser
from airflow.models.asset import AssetEvent, AssetModel
from sqlalchemy import select, text

from airflow_mediation_provider.commands import maintenance as module
from airflow_mediation_provider.journal import writer
from airflow_mediation_provider.journal import writer as journal
from airflow_mediation_provider.journal.asset_events import EmissionError
from airflow_mediation_provider.journal.tables import SessionRow, TransitionRow
from airflow_mediation_provider.journal.writer import record, rewrite
from airflow_mediation_provider.protocol.callouts import fields as callout
from airflow_mediation_provider.protocol.callouts.parse import read_callout
from airflow_mediation_provider.protocol.callouts.settings import callout_settings
from airflow_mediation_provider.protocol.sessions.asset_uri import asset_uri
from airflow_mediation_provider.tasks import maintenance as progress

if TYPE_CHECKING:
    from collections.abc import Callable

SETTINGS = callout_settings("zuora", {})
CAME = datetime.now(UTC).replace(microsecond=0) - timedelta(hours=1)
# A spelling that no version could parse when these callouts were received.
BODY = json.dumps({"meterId": "2470", "sessionId": "R-1", "Zustand": "COMPLETED"}).encode()
BINARY = b"\xff\x00"


def airflow(*arguments: str) -> None:
    args = get_parser().parse_args(["mediation", "reparse", "--conn-id", "zuora", *arguments])
    args.func(args)


def take(body: bytes, notification_id: str) -> None:
    record([read_callout(SETTINGS, {"Zuora-Notification-Id": notification_id}, body, CAME)], conn_id="zuora")


def rows() -> list[tuple[str, str | None]]:
    with settings.NonScopedSession() as session:
        return [
            (row.kind, row.notification_id) for row in session.scalars(select(TransitionRow).order_by(TransitionRow.id))
        ]


def session_row() -> tuple[str, datetime] | None:
    with settings.NonScopedSession() as session:
        row = session.scalar(select(SessionRow))
        return row and (row.status, row.last_observed_at)


def created() -> datetime | None:
    with settings.NonScopedSession() as session:
        return session.scalar(select(TransitionRow.created_at).where(TransitionRow.notification_id == "n-1"))


def announced() -> list[tuple[str | None, str]]:
    with settings.NonScopedSession() as session:
        return [(each.partition_key, each.extra["notification_id"]) for each in session.scalars(select(AssetEvent))]


@pytest.fixture(autouse=True)
def _journal(database: str, airflow_on: Callable[[str], str], monkeypatch: pytest.MonkeyPatch) -> None:
    airflow_on(database)
    monkeypatch.setenv("AIRFLOW_CONN_ZUORA", json.dumps({"conn_type": "mediation"}))
    uri = asset_uri("zuora", "2470", "COMPLETED")
    with settings.NonScopedSession.begin() as session:
        session.add(AssetModel(name=uri, uri=uri, group="asset"))
    take(BODY, "n-1")
    take(BINARY, "n-2")


@pytest.fixture
def learned(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(callout._ALIASES, "zustand", "status")
    monkeypatch.setattr(callout, "_ENDS", callout._ENDS | {"zustand"})


def test_a_callout_that_still_cannot_be_parsed_is_listed(capsys: pytest.CaptureFixture[str]) -> None:
    airflow()

    assert "still cannot be parsed: it holds no status" in capsys.readouterr().out
    assert rows() == [("unparsed", "n-1"), ("unparsed", "n-2")]


@pytest.mark.usefixtures("learned")
def test_a_callout_that_can_be_parsed_counts_once(capsys: pytest.CaptureFixture[str]) -> None:
    came = created()

    airflow("--dry-run")
    assert "Can parse 1 of 2." in capsys.readouterr().out
    assert session_row() is None
    assert announced() == []

    airflow()
    said = capsys.readouterr().out
    assert "session R-1 is COMPLETED" in said
    assert "Parsed 1 of 2." in said
    assert session_row() == ("COMPLETED", CAME)

    airflow()
    assert "Parsed 0 of 1." in capsys.readouterr().out
    take(BODY, "n-1")
    assert rows() == [("status_change", "n-1"), ("unparsed", "n-2")]
    assert created() == came
    assert announced() == [("R-1", "n-1")]


@pytest.mark.usefixtures("learned")
def test_an_error_leaves_the_journal_unchanged(monkeypatch: pytest.MonkeyPatch) -> None:

    def fail(*_: Any, **__: Any) -> None:
        raise EmissionError("the asset manager gave up")

    with monkeypatch.context() as patch:
        patch.setattr(writer, "emit", fail)
        with pytest.raises(SystemExit, match="The asset manager gave up"):
            airflow()
    assert rows() == [("unparsed", "n-1"), ("unparsed", "n-2")]
    assert session_row() is None

    airflow()
    assert rows() == [("status_change", "n-1"), ("unparsed", "n-2")]
    assert announced() == [("R-1", "n-1")]


@pytest.mark.usefixtures("learned")
def test_two_concurrent_commands_count_a_callout_once() -> None:
    together = threading.Barrier(2)

    def both(rows: Any, **options: Any) -> Any:
        together.wait(30)
        return rewrite(rows, **options)

    with pytest.MonkeyPatch.context() as patch, ThreadPoolExecutor(2) as pool:
        patch.setattr(journal, "rewrite", both)
        done = list(pool.map(lambda _: list(journal.reparse(SETTINGS)), range(2)))

    assert [sum(each.entry is not None for each in one) for one in done] == [1, 1]
    assert rows() == [("status_change", "n-1"), ("unparsed", "n-2")]
    assert announced() == [("R-1", "n-1")]


@pytest.mark.usefixtures("learned")
def test_a_change_that_was_received_since_is_not_counted_again() -> None:
    body = json.dumps({"meterId": "2470", "sessionId": "R-1", "status": "COMPLETED", "previousStatus": "RUNNING"})
    take(body.encode(), "n-3")

    airflow()

    assert rows() == [("status_change", "n-1"), ("unparsed", "n-2"), ("status_change", "n-3")]
    assert announced() == [("R-1", "n-3")]


def test_a_long_list_of_unparsed_callouts_is_cut(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(module, "_MOST_LINES", 1)
    monkeypatch.setattr(progress, "_SECONDS_BETWEEN_LINES", 0)
    monkeypatch.setattr(journal, "_BATCH", 1)

    airflow()

    said = capsys.readouterr().out
    assert said.count("still cannot be parsed") == 1
    assert "2 cannot be parsed ..." in said


def test_a_connection_without_unparsed_callouts(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AIRFLOW_CONN_OTHER", json.dumps({"conn_type": "mediation"}))

    airflow("--conn-id", "other")

    assert "has no unparsed callouts of connection other" in capsys.readouterr().out


def test_without_tables_the_error_names_the_command() -> None:
    with settings.engine.begin() as connection:
        connection.execute(text("DROP TABLE mediation_transition"))

    with pytest.raises(SystemExit, match="run `airflow db migrate`"):
        airflow()
