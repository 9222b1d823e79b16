"""Databases for tests: one private PostgreSQL in a session, and for each test a fresh copy with Airflow's tables.

`database` runs a test twice, on SQLite and on PostgreSQL; `sqlite_database` and `postgres_database` once. Each is the
address of a database with the tables of Airflow and of the journal, made by `airflow db migrate` once in a session. The
`empty_` ones have no tables. `airflow_database` is like `database`, and Airflow's own sessions in this process use it.
"""

from __future__ import annotations

import itertools
import os
import shutil
import subprocess
import sys
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from demo.postgres import Postgres

BOTH = ["sqlite", "postgresql"]
_numbers = itertools.count(1)


@pytest.fixture(scope="session")
def postgres() -> Iterator[Postgres]:
    from demo.postgres import Postgres

    with Postgres() as cluster:
        yield cluster


@pytest.fixture(scope="session")
def postgres_template(postgres: Postgres, tmp_path_factory: pytest.TempPathFactory) -> str:
    migrate(postgres.create("migrated"), tmp_path_factory.mktemp("postgres-home"))
    return "migrated"


@pytest.fixture(scope="session")
def sqlite_template(tmp_path_factory: pytest.TempPathFactory) -> Path:
    home = tmp_path_factory.mktemp("sqlite-home")
    migrate(f"sqlite:///{home / 'migrated.db'}", home)
    return home / "migrated.db"


@pytest.fixture
def empty_postgres_database(postgres: Postgres) -> Iterator[str]:
    yield from _database(postgres)


@pytest.fixture
def postgres_database(postgres: Postgres, postgres_template: str) -> Iterator[str]:
    yield from _database(postgres, template=postgres_template)


@pytest.fixture
def empty_sqlite_database(tmp_path: Path) -> str:
    return f"sqlite:///{tmp_path / 'empty.db'}"


@pytest.fixture
def sqlite_database(tmp_path: Path, sqlite_template: Path) -> str:
    return f"sqlite:///{shutil.copy(sqlite_template, tmp_path / 'airflow.db')}"


@pytest.fixture(params=BOTH)
def database(request: pytest.FixtureRequest) -> str:
    return str(request.getfixturevalue({"sqlite": "sqlite_database", "postgresql": "postgres_database"}[request.param]))


@pytest.fixture(params=BOTH)
def empty_database(request: pytest.FixtureRequest) -> str:
    name = {"sqlite": "empty_sqlite_database", "postgresql": "empty_postgres_database"}[request.param]
    return str(request.getfixturevalue(name))


@pytest.fixture
def airflow_on() -> Iterator[Callable[[str], str]]:
    """`airflow_on(address)`: Airflow's own sessions in this process use that database until the test's end.

    Ask for the database first, so that it outlives the sessions.
    """
    from airflow import settings

    with pytest.MonkeyPatch.context() as environment:

        def use(address: str) -> str:
            environment.setenv("AIRFLOW__DATABASE__SQL_ALCHEMY_CONN", address)
            settings.configure_vars()
            settings.reconfigure_orm()
            return address

        yield use
        settings.dispose_orm()
    settings.configure_vars()
    settings.configure_orm()


@pytest.fixture
def airflow_database(database: str, airflow_on: Callable[[str], str]) -> str:
    return airflow_on(database)


def migrate(address: str, home: Path) -> None:
    """Make the tables as users do."""
    environment = {**os.environ, "AIRFLOW_HOME": str(home), "AIRFLOW__DATABASE__SQL_ALCHEMY_CONN": address}
    command = [sys.executable, "-m", "airflow", "db", "migrate"]
    result = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stdout + result.stderr


def _database(postgres: Postgres, **template: str) -> Iterator[str]:
    name = f"test_{next(_numbers)}"
    yield postgres.create(name, **template)
    postgres.drop(name)
