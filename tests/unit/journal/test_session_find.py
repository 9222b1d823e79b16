"""A search by text reads indexes alone, and on each database it finds what starts with the text."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from airflow_mediation_provider.journal import session_find as module
from airflow_mediation_provider.journal.session_find import Dags, Found, dags_of_sessions, find
from airflow_mediation_provider.journal.session_list import list_sessions
from airflow_mediation_provider.journal.session_search import Filters
from airflow_mediation_provider.journal.transaction import read
from tests.unit.journal.old_rows import NOW, keep, meter_of, session_of, told, wait_of
from tests.unit.journal.plans import explained, uses_an_index

if TYPE_CHECKING:
    from collections.abc import Callable


def found(text: str) -> Found:
    dags = read(dags_of_sessions)
    return read(lambda session: find(session, text, dags))


def listed(text: str) -> list[str]:
    filters = Filters(found=found(text).condition)
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
    for text, sessions in {
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
        assert sorted(listed(text), reverse=True) == sessions, text


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


def test_each_query_has_an_index(airflow_on: Callable[[str], str], sqlite_database: str) -> None:
    airflow_on(sqlite_database)
    some()
    with explained() as plans:
        for text in ("R-1", "10", "lo", "sched", "a-", "none"):
            listed(text)
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
