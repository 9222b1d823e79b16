"""A search by text reads indexes alone, and on each database it finds what starts with the text."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from airflow import settings
from sqlalchemy import text

from airflow_mediation_provider.journal import session_find as module
from airflow_mediation_provider.journal.session_find import Dags, Found, dags_of_sessions, find
from airflow_mediation_provider.journal.session_list import list_sessions
from airflow_mediation_provider.journal.session_search import Filters
from airflow_mediation_provider.journal.transaction import read
from tests.unit.journal.old_rows import NOW, keep, meter_of, session_of, told, wait_of
from tests.unit.journal.plans import explained, uses_an_index

if TYPE_CHECKING:
    from collections.abc import Callable


def found(start: str) -> Found:
    dags = read(dags_of_sessions)
    return read(lambda session: find(session, start, dags))


def listed(start: str) -> list[str]:
    filters = Filters(found=found(start).condition)
    return [each.session_id for each in read(lambda session: list_sessions(session, filters, limit=50)).sessions]


def some() -> None:
    keep(
        session_of("R-1", NOW, meter_id="10-01"),
        session_of("R-2", NOW, meter_id="1001"),
        session_of("r-3", NOW, conn_id="other", meter_id="2"),
        told("R-1", meter_id="10-01", notification_id="a-1"),
        told("R-2", notification_id="A-2"),
        meter_of("10-01", "Storage"),
        wait_of("w", session_id="R-2", dag_id="load", run_id="scheduled__2026"),
        wait_of("v", session_id=None, dag_id="load", run_id="scheduled__2027"),
    )


@pytest.mark.usefixtures("airflow_database")
def test_what_starts_with_the_text_is_found_in_any_order_of_characters() -> None:
    some()
    for start, sessions in {
        "10": ["R-2", "R-1"],
        "10-": ["R-1"],
        "a-": ["R-1"],
        "R-2": ["R-2"],
        "STOR": ["R-1"],
        "lo": ["R-2"],
        "scheduled__": ["R-2"],
        "oad": [],
        "_": [],
    }.items():
        assert sorted(listed(start), reverse=True) == sessions, start


@pytest.mark.usefixtures("airflow_database")
def test_more_sessions_than_are_found_is_reported(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "MOST", 2)
    keep(*(session_of(f"R-{number}", NOW) for number in range(4)))
    keep(*(wait_of(f"w{number}", session_id=f"R-{number}", run_id=f"r{number}") for number in range(4)))
    assert found("usage").limited
    assert listed("usage") == ["R-3", "R-2"]
    # The newest sessions are searched for it, so nothing is left out.
    assert not found("R-").limited
    assert listed("R-") == ["R-3", "R-2", "R-1", "R-0"]


def test_in_a_linguistic_order_other_cases_hide_no_match(
    postgres_database: str, airflow_on: Callable[[str], str], monkeypatch: pytest.MonkeyPatch
) -> None:
    airflow_on(postgres_database)
    monkeypatch.setattr(module, "MOST", 4)
    assert settings.engine is not None
    with settings.engine.begin() as connection:
        for table, column in (("session", "session_id"), ("wait", "run_id")):
            kind = f'ALTER COLUMN {column} TYPE varchar(250) COLLATE "und-x-icu"'
            connection.execute(text(f"ALTER TABLE mediation_{table} {kind}"))
    for name in ("R-1", "r-1"):
        keep(*(session_of(f"{name}{number}", NOW) for number in range(4)))
        keep(
            *(wait_of(f"{name}{number}", session_id=f"{name}{number}", run_id=f"{name}{number}") for number in range(4))
        )
    # By the sessions' own ids all are found; by the runs, as many as are read.
    assert listed("R-1") == ["R-13", "R-12", "R-11", "R-10"]
    assert found("R-1").limited
    assert not found("R-2").limited


def test_each_query_has_an_index(airflow_on: Callable[[str], str], sqlite_database: str) -> None:
    airflow_on(sqlite_database)
    some()
    with explained() as plans:
        for start in ("R-1", "10", "lo", "sched", "a-", "none"):
            listed(start)
    small = [step for _, plan in plans for step in plan if step.startswith("SCAN mediation_meter")]
    others = [(statement, plan) for statement, plan in plans if "FROM mediation_meter" not in statement]
    assert [each for each in others if not uses_an_index(each[1])] == []
    # The names of all meters are few.
    assert small


def test_sessions_are_found_by_the_index_of_their_ids(airflow_on: Callable[[str], str], sqlite_database: str) -> None:
    airflow_on(sqlite_database)
    some()
    with explained() as plans:
        assert listed("load") == ["R-2"]
    (step,) = [plan[0] for statement, plan in plans if "mediation_session.session_id IN" in statement]
    # The index of meters has all columns of this query, and would lead to all sessions of the connection.
    assert "INDEX ix_mediation_session_named (conn_id=? AND session_id=?)" in step


def test_without_a_permission_dags_find_nothing(airflow_on: Callable[[str], str], sqlite_database: str) -> None:
    airflow_on(sqlite_database)
    some()
    none = read(lambda session: find(session, "load", Dags(frozenset(), frozenset())))
    assert [each.values for each in none.condition] == [{"id": ()}]


@pytest.mark.usefixtures("airflow_database")
def test_more_dags_than_are_searched_is_reported(monkeypatch: pytest.MonkeyPatch) -> None:
    keep(session_of("R-1", NOW))
    keep(*(wait_of(f"w{number}", session_id="R-1", dag_id=f"dag{number}") for number in range(3)))
    monkeypatch.setattr(module, "_DAGS", 3)
    assert not found("dag2").limited
    assert listed("dag2") == ["R-1"]
    monkeypatch.setattr(module, "_DAGS", 2)
    assert found("dag2").limited


def test_no_search_reads_all_sessions(sqlite_database: str, airflow_on: Callable[[str], str]) -> None:
    airflow_on(sqlite_database)
    some()
    with explained() as plans:
        assert listed("load") == ["R-2"]
    # An index that has all columns of a query may be read as a whole too.
    assert [step for _, plan in plans for step in plan if step.startswith("SCAN mediation_session")] == []
