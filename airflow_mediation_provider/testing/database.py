"""Airflow's database, which the fixtures need and do not make."""

from __future__ import annotations

from airflow import settings
from airflow.models.dagrun import DagRun
from sqlalchemy import column, inspect, select, table

from airflow_mediation_provider.journal.manager import MediationDBManager
from airflow_mediation_provider.journal.tables import VERSION_TABLE

_HEAD = [*MediationDBManager.revision_heads_map.values()][-1]


def why_not_ready() -> str:
    """Return why Airflow's database cannot be used, with the remedy; empty if it can.

    The tables of the journal are created if they are missing: Airflow's may be older than this package.
    """
    if settings.engine is None or settings.Session is None:
        return "Airflow has set up no database in this process: unset _AIRFLOW__AS_LIBRARY"
    there = inspect(settings.engine)
    if not there.has_table(DagRun.__tablename__):
        address = settings.engine.url.render_as_string(hide_password=True)
        return f"Airflow's database {address} has no tables: run `airflow db migrate` before the tests"
    with settings.Session() as session:
        manager = MediationDBManager(session)
        if not there.has_table(VERSION_TABLE):
            manager.initdb()
        # By hand: the manager's own check imports Alembic, which takes longer than the rest of this.
        elif session.scalar(select(column("version_num")).select_from(table(VERSION_TABLE))) != _HEAD:
            return "the journal's tables are of another version: run `airflow db migrate` before the tests"
    return ""
