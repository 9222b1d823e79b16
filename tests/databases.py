"""Databases for tests: one private PostgreSQL in a session, and for each test a copy with Airflow's tables.

`database` runs a test twice, on SQLite and on PostgreSQL; `sqlite_database` and `postgres_database` once. Each is the
address of a database with the tables of Airflow and of the journal, made by `airflow db migrate`. The `empty_` ones
have no tables. `airflow_database` is like `database`, and Airflow's own sessions in this process use it.
With `DATABASES=mariadb` in the environment, `database` is a private MariaDB of each test.

The result of `airflow db migrate` is kept in pytest's cache for later runs, until the migrations or Airflow change.
`pytest --cache-clear` and `make clean` remove it.
"""

from __future__ import annotations

import fcntl
import hashlib
import itertools
import os
import shutil
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from sqlalchemy.exc import IllegalStateChangeError
from tenacity import Retrying, retry_if_exception_type, stop_after_delay, wait_fixed

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from testkit.postgres import Postgres
    from tests.postgres_copies import PostgresCopies

KINDS = os.environ.get("DATABASES", "sqlite postgres").split()
JOURNAL = Path(__file__).parents[1] / "airflow_mediation_provider" / "journal"
# `airflow db migrate` reads these, and makes the tables of these packages.
MIGRATIONS = [JOURNAL / "manager.py", JOURNAL / "alembic.ini", *sorted((JOURNAL / "migrations").rglob("*.py"))]
MIGRATED_PACKAGES = ["apache-airflow-core", "apache-airflow-providers-fab"]
_numbers = itertools.count(1)


@pytest.fixture(scope="session")
def postgres(services: None) -> Iterator[Postgres]:
    from testkit.postgres import Postgres

    with Postgres() as cluster:
        yield cluster


@pytest.fixture(scope="session")
def postgres_template(
    request: pytest.FixtureRequest, postgres: Postgres, tmp_path_factory: pytest.TempPathFactory
) -> str:
    def make(kept: Path) -> None:
        address = postgres.create("migrating")
        migrate(address, tmp_path_factory.mktemp("postgres-home"))
        _postgres_program("pg_dump", "--format=custom", f"--file={kept}", _of_libpq(address))
        postgres.drop("migrating")

    kept = keep(_cache(request), "postgres", make, _postgres_program("pg_dump", "--version"))
    _postgres_program("pg_restore", f"--dbname={_of_libpq(postgres.create('migrated'))}", "--exit-on-error", str(kept))
    return "migrated"


@pytest.fixture(scope="session")
def sqlite_template(services: None, request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    def make(kept: Path) -> None:
        migrate(f"sqlite:///{kept}", tmp_path_factory.mktemp("sqlite-home"))

    return keep(_cache(request), "sqlite", make)


@pytest.fixture
def empty_postgres_database(postgres: Postgres) -> Iterator[str]:
    name = f"empty_{next(_numbers)}"
    yield postgres.create(name)
    postgres.drop(name)


@pytest.fixture(scope="session")
def postgres_copies(postgres: Postgres, postgres_template: str) -> PostgresCopies:
    from tests.postgres_copies import PostgresCopies

    return PostgresCopies(postgres, postgres_template)


@pytest.fixture
def postgres_database(postgres_copies: PostgresCopies) -> Iterator[str]:
    with postgres_copies.one() as address:
        yield address


@pytest.fixture
def empty_sqlite_database(services: None, tmp_path: Path) -> str:
    return f"sqlite:///{tmp_path / 'empty.db'}"


@pytest.fixture
def sqlite_database(tmp_path: Path, sqlite_template: Path) -> str:
    return f"sqlite:///{shutil.copy(sqlite_template, tmp_path / 'airflow.db')}"


@pytest.fixture(scope="session")
def mariadb_template(services: None, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The files of a server."""
    from tests.mariadb import airflow, mariadb

    root = tmp_path_factory.mktemp("mariadb")
    with mariadb(root, keep=True) as address:
        airflow(address, root, "db", "migrate")
    return root / "data"


@pytest.fixture
def mariadb_database(mariadb_template: Path, tmp_path: Path) -> Iterator[str]:
    from tests.mariadb import install_driver, mariadb

    install_driver()
    with mariadb(tmp_path / "mariadb", files=mariadb_template) as address:
        yield address


@pytest.fixture
def empty_mariadb_database(services: None, tmp_path: Path) -> Iterator[str]:
    from tests.mariadb import install_driver, mariadb

    install_driver()
    with mariadb(tmp_path / "mariadb") as address:
        yield address


@pytest.fixture(params=KINDS)
def database(services: None, request: pytest.FixtureRequest) -> str:
    return str(request.getfixturevalue(f"{request.param}_database"))


@pytest.fixture(params=KINDS)
def empty_database(services: None, request: pytest.FixtureRequest) -> str:
    return str(request.getfixturevalue(f"empty_{request.param}_database"))


@pytest.fixture
def airflow_on(services: None) -> Iterator[Callable[[str], str]]:
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
        # A server that has ended may still write in a thread of its own, and SQLAlchemy refuses to close a session in
        # the middle of its commit.
        for attempt in Retrying(
            retry=retry_if_exception_type(IllegalStateChangeError),
            wait=wait_fixed(0.05),
            stop=stop_after_delay(30),
            reraise=True,
        ):
            with attempt:
                settings.dispose_orm()
    settings.configure_vars()
    settings.configure_orm()


@pytest.fixture
def airflow_database(database: str, airflow_on: Callable[[str], str]) -> str:
    return airflow_on(database)


def migrate(address: str, home: Path) -> None:
    """Create the tables as users do."""
    environment = {**os.environ, "AIRFLOW_HOME": str(home), "AIRFLOW__DATABASE__SQL_ALCHEMY_CONN": address}
    command = [sys.executable, "-m", "airflow", "db", "migrate"]
    result = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stdout + result.stderr


def _cache(request: pytest.FixtureRequest) -> Path:
    return Path(request.config.cache.mkdir("migrated-databases"))


def keep(directory: Path, kind: str, make: Callable[[Path], None], *made_with: str) -> Path:
    """Return the file that `make` wrote into the directory, in this run or in an earlier one.

    :param made_with: what else the file depends on, besides the migrations and Airflow
    """
    digest = hashlib.sha256("\n".join([*map(version, MIGRATED_PACKAGES), *made_with]).encode())
    for file in MIGRATIONS:
        digest.update(file.read_bytes())
    kept = directory / f"{kind}-{digest.hexdigest()[:16]}"
    # Of several workers the first one makes the file. A run that was interrupted leaves no part of it under this name.
    with (directory / f"{kind}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not kept.exists():
            unfinished = directory / f"{kind}.unfinished"
            unfinished.unlink(missing_ok=True)
            make(unfinished)
            unfinished.rename(kept)
    return kept


def _postgres_program(name: str, *arguments: str) -> str:
    from testkit.postgres import binaries

    result = subprocess.run([binaries() / name, *arguments], capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
    return result.stdout


def _of_libpq(address: str) -> str:
    return address.replace("postgresql+psycopg2://", "postgresql://", 1)
