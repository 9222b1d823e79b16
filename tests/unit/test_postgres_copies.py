"""Each test gets a PostgreSQL database as `airflow db migrate` leaves it, though few of them are made."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
from sqlalchemy import NullPool, create_engine, text
from sqlalchemy.exc import OperationalError

from tests.postgres_copies import SMALL

if TYPE_CHECKING:
    from sqlalchemy import Engine

    from testkit.postgres import Postgres
    from tests.postgres_copies import PostgresCopies

BUNDLE = "INSERT INTO dag_bundle (name) VALUES ('b')"  # other tables have foreign keys to it
JOB = "INSERT INTO job (state) VALUES ('running') RETURNING id"


def engine(address: str) -> Engine:
    return create_engine(address, isolation_level="AUTOCOMMIT", poolclass=NullPool)


def run(address: str, *statements: str) -> list[Any]:
    with engine(address).connect() as connection:
        results = [connection.execute(text(each)) for each in statements]
        return [result.scalar() if result.returns_rows else None for result in results]


def oid(address: str) -> object:
    return run(address, "SELECT oid FROM pg_database WHERE datname = current_database()")[0]


def test_rows_and_numbers_of_a_test_are_not_in_the_next_ones_database(postgres_copies: PostgresCopies) -> None:
    with postgres_copies.one() as first:
        used, number = oid(first), run(first, BUNDLE, JOB)[-1]
    with postgres_copies.one() as second:
        assert oid(second) == used
        assert run(second, "SELECT count(*) FROM dag_bundle", JOB) == [0, number]


def test_a_large_table_is_small_again(postgres_copies: PostgresCopies) -> None:
    size = "SELECT pg_relation_size('job')"
    with postgres_copies.one() as first:
        used = oid(first)
        run(first, "INSERT INTO job (state) SELECT 'running' FROM generate_series(1, 2000)")
        assert run(first, size)[0] > SMALL
    with postgres_copies.one() as second:
        assert (oid(second), run(second, size)) == (used, [0])


def test_numbers_start_again_even_if_no_row_is_left(postgres_copies: PostgresCopies) -> None:
    with postgres_copies.one() as first:
        used, number, _ = oid(first), *run(first, JOB, "DELETE FROM job")
    with postgres_copies.one() as second:
        assert (oid(second), run(second, JOB)) == (used, [number])


@pytest.mark.parametrize(
    "statement",
    [
        "ALTER TABLE job ADD COLUMN more int",
        "DROP TABLE mediation_wait",
        "CREATE INDEX more ON job (id, state)",
        "DELETE FROM slot_pool",
        "UPDATE slot_pool SET slots = 1",
        "INSERT INTO job (state) VALUES ('running'); ANALYZE job",
    ],
)
def test_what_cannot_be_deleted_is_in_no_other_tests_database(postgres_copies: PostgresCopies, statement: str) -> None:
    with postgres_copies.one() as first:
        used = oid(first)
        run(first, statement)
    with postgres_copies.one() as second:
        assert oid(second) != used


def test_what_a_test_left_running_does_not_write_into_the_next_ones_database(postgres_copies: PostgresCopies) -> None:
    with postgres_copies.one() as first:
        used, left = oid(first), engine(first).connect()
        left.execute(text(JOB))
    with postgres_copies.one() as second:
        assert oid(second) == used
        with pytest.raises(OperationalError):
            left.execute(text(JOB))
        with pytest.raises(OperationalError, match="does not exist"):
            run(first, JOB)
    left.invalidate()


def test_two_tests_never_use_one_database(postgres: Postgres, postgres_copies: PostgresCopies) -> None:
    with postgres_copies.one() as first, postgres_copies.one() as second:
        assert oid(first) != oid(second)
