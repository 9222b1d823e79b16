"""`airflow mediation reparse`: what could not be read counts once it can be, and once only."""

from __future__ import annotations

import json
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any

import pytest
from airflow import settings
from airflow.cli.cli_parser import get_parser
from sqlalchemy import select

from airflow_mediation_provider.commands import reparse as module
from airflow_mediation_provider.journal import reparse as journal
from airflow_mediation_provider.journal.record import JournalUnavailable, record
from airflow_mediation_provider.journal.tables import SessionRow, TransitionRow
from airflow_mediation_provider.protocol import callout
from airflow_mediation_provider.protocol.callout import read_callout
from airflow_mediation_provider.protocol.callout_settings import callout_settings

if TYPE_CHECKING:
    from collections.abc import Callable

SETTINGS = callout_settings("zuora", {})
CAME = datetime.now(UTC).replace(microsecond=0) - timedelta(hours=1)
# A spelling that nobody knew when these came.
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


@pytest.fixture(autouse=True)
def _journal(database: str, airflow_on: Callable[[str], str], monkeypatch: pytest.MonkeyPatch) -> None:
    airflow_on(database)
    monkeypatch.setenv("AIRFLOW_CONN_ZUORA", json.dumps({"conn_type": "mediation"}))
    take(BODY, "n-1")
    take(BINARY, "n-2")


@pytest.fixture
def learned(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(callout._ALIASES, "zustand", "status")


def test_nothing_new_is_known(capsys: pytest.CaptureFixture[str]) -> None:
    airflow()

    assert "still not readable: it holds no status" in capsys.readouterr().out
    assert rows() == [("unparsed", "n-1"), ("unparsed", "n-2")]


@pytest.mark.usefixtures("learned")
def test_what_can_be_read_counts_once(capsys: pytest.CaptureFixture[str]) -> None:
    airflow("--dry-run")
    assert "1 can be read now, 1 still cannot be." in capsys.readouterr().out
    assert session_row() is None

    airflow()
    said = capsys.readouterr().out
    assert "session R-1 is COMPLETED" in said
    assert "1 were read, 1 still cannot be." in said
    assert session_row() == ("COMPLETED", CAME)

    airflow()
    take(BODY, "n-1")
    assert rows() == [("reparsed", "n-1"), ("unparsed", "n-2"), ("status_change", "reparse:1")]


@pytest.mark.usefixtures("learned")
def test_a_crash_in_between_tells_nothing_twice(monkeypatch: pytest.MonkeyPatch) -> None:
    def crash(_: Any) -> None:
        raise JournalUnavailable("the database went away")

    with monkeypatch.context() as patch:
        patch.setattr(journal, "_mark", crash)
        with pytest.raises(SystemExit, match="the database went away"):
            airflow()
    assert rows() == [("unparsed", "n-1"), ("unparsed", "n-2"), ("status_change", "reparse:1")]

    airflow()
    assert rows() == [("reparsed", "n-1"), ("unparsed", "n-2"), ("status_change", "reparse:1")]


def test_many_that_cannot_be_read_are_not_all_listed(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(module, "_MOST_LINES", 1)
    monkeypatch.setattr(journal, "_BATCH", 1)

    airflow()

    assert capsys.readouterr().out.count("still not readable") == 1
