"""Fixtures of all tests: Airflow's home is not the user's, and each worker of pytest-xdist has its own.

Also the databases of all tests, and the fixtures that tests with a service request.
"""

from __future__ import annotations

import os
from pathlib import Path

os.environ.setdefault("AIRFLOW_HOME", str(Path(__file__).parents[1] / ".pytest_cache" / "airflow"))
os.environ["AIRFLOW_HOME"] += os.environ.get("PYTEST_XDIST_WORKER", "")
# Airflow 3.2 would not store another version of a Dag within half a minute.
os.environ["AIRFLOW__CORE__MIN_SERIALIZED_DAG_UPDATE_INTERVAL"] = "0"

from tests.databases import (  # noqa: F401
    airflow_database,
    airflow_on,
    database,
    empty_database,
    empty_mariadb_database,
    empty_postgres_database,
    empty_sqlite_database,
    mariadb_database,
    mariadb_template,
    postgres,
    postgres_copies,
    postgres_database,
    postgres_template,
    sqlite_database,
    sqlite_template,
)
from tests.services import services  # noqa: F401
