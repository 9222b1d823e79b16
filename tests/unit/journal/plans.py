"""How SQLite runs the journal's queries: by which index, and whether it has to sort."""

from __future__ import annotations

import itertools
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from airflow import settings
from sqlalchemy import event

if TYPE_CHECKING:
    from collections.abc import Iterator


@contextmanager
def explained() -> Iterator[list[tuple[str, list[str]]]]:
    """The plan of each query that SQLite runs meanwhile."""
    asked: list[tuple[str, Any]] = []
    plans: list[tuple[str, list[str]]] = []

    def keep(conn: Any, cursor: Any, statement: str, parameters: Any, context: Any, executemany: bool) -> None:
        if statement.startswith(("SELECT", "UPDATE", "WITH")) and "mediation_" in statement:
            asked.append((statement, parameters))

    assert settings.engine is not None
    event.listen(settings.engine, "before_cursor_execute", keep)
    yield plans
    event.remove(settings.engine, "before_cursor_execute", keep)
    with settings.engine.connect() as connection:
        for statement, parameters in asked:
            plan = connection.exec_driver_sql(f"EXPLAIN QUERY PLAN {statement}", parameters)
            plans.append((statement, [row[-1] for row in plan]))


@contextmanager
def worked() -> Iterator[list[int]]:
    """How many instructions SQLite runs meanwhile: one number, available at the end."""
    steps = itertools.count()
    total: list[int] = []

    def watch(connection: Any, *_: Any) -> None:
        connection.set_progress_handler(lambda: next(steps) < 0, 1)

    assert settings.engine is not None
    event.listen(settings.engine, "checkout", watch)
    yield total
    event.remove(settings.engine, "checkout", watch)
    total.append(next(steps))


def uses_an_index(plan: list[str]) -> bool:
    """Whether every table is searched by an index; the rows of a subquery are no table."""
    of_tables = [step for step in plan if step.startswith(("SCAN ", "SEARCH ")) and "mediation_" in step]
    return bool(of_tables) and all(("USING" in step and "INDEX" in step) or "PRIMARY KEY" in step for step in of_tables)
