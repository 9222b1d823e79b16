"""`airflow mediation replay`, as Airflow's own parser calls it: its query, and its output."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

import pytest
from airflow.cli.cli_parser import get_parser

from airflow_mediation_provider.journal import replay as module
from airflow_mediation_provider.journal.replay import Reached, Replayed
from airflow_mediation_provider.journal.writer import JournalMissing

URI = "mediation://mediation_default/meters/1001/COMPLETED"
AT = datetime(2026, 3, 31, 9, 17, 21, tzinfo=UTC)
SESSION = Reached(meter_id="1001", key="R-1", uri=URI, at=AT)
DAY = ["--since", "2026-03-31", "--until", "2026-04-01T00:00:00Z"]
# Airflow logs each command in its database.
pytestmark = pytest.mark.services


class Journal:
    """Stands for the journal's part, which has its own tests."""

    def __init__(self) -> None:
        self.asked: list[dict[str, Any]] = []
        self.answer: list[Replayed | Exception] = []

    def __call__(self, **asked: Any):
        self.asked.append(asked)
        for each in self.answer:
            if isinstance(each, Exception):
                raise each
            yield each


@pytest.fixture
def journal(monkeypatch: pytest.MonkeyPatch) -> Journal:
    journal = Journal()
    monkeypatch.setattr(module, "replay", journal)
    return journal


def airflow(*arguments: str) -> None:
    args = get_parser().parse_args(["mediation", "replay", *arguments])
    args.func(args)


def test_the_started_runs_are_printed(journal: Journal, capsys: pytest.CaptureFixture[str]) -> None:
    journal.answer = [Replayed(dag_id="load", missed=(SESSION,), known=(SESSION, SESSION))]

    airflow("--dag", "load", *DAY)

    assert journal.asked == [
        {
            "dag_id": "load",
            "uri": None,
            "since": datetime(2026, 3, 31, tzinfo=UTC),
            "until": datetime(2026, 4, 1, tzinfo=UTC),
            "dry_run": False,
        }
    ]
    assert capsys.readouterr().out.splitlines()[-2:] == [
        "load: 3 sessions from 2026-03-31 00:00:00 UTC until 2026-04-01 00:00:00 UTC; 2 have a run, 1 get one now:",
        f"  2026-03-31 09:17:21 UTC  R-1  {URI}",
    ]


def test_a_dry_run_prints_the_missing_runs(journal: Journal, capsys: pytest.CaptureFixture[str]) -> None:
    journal.answer = [Replayed(dag_id="load", known=(SESSION,))]

    airflow("--asset", URI, *DAY, "--dry-run")

    assert (journal.asked[0]["uri"], journal.asked[0]["dry_run"]) == (URI, True)
    assert capsys.readouterr().out.splitlines()[-1].endswith("; 1 have a run, 0 would get one.")


def test_a_paused_dag_among_others_is_listed(journal: Journal, capsys: pytest.CaptureFixture[str]) -> None:
    journal.answer = [Replayed(dag_id="asleep", refused="it is paused"), Replayed(dag_id="load")]

    airflow("--asset", URI, *DAY)

    assert "asleep: nothing is started, because it is paused." in capsys.readouterr().out


def test_a_paused_dag_alone_is_an_error(journal: Journal) -> None:
    journal.answer = [Replayed(dag_id="asleep", refused="it is paused")]

    with pytest.raises(SystemExit) as ended:
        airflow("--dag", "asleep", *DAY)
    assert ended.value.code == 1


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (ValueError("there is no Dag 'load'"), r"^There is no Dag 'load'\.$"),
        (JournalMissing("run `airflow db migrate`"), r"^Run `airflow db migrate`\.$"),
    ],
)
def test_an_error_is_reported_in_one_sentence(journal: Journal, error: Exception, said: str) -> None:
    journal.answer = [error]

    with pytest.raises(SystemExit, match=said):
        airflow("--dag", "load", *DAY)


@pytest.mark.parametrize("which", [[], ["--dag", "load", "--asset", URI]])
def test_exactly_one_of_dag_and_asset_is_required(journal: Journal, which: list[str]) -> None:
    with pytest.raises(SystemExit, match="Give either --dag or --asset"):
        airflow(*which, *DAY)
    assert journal.asked == []
