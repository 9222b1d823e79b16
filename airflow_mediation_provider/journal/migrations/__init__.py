"""Alembic's migrations of the journal's tables; tests check that they lead to the same tables as ``tables.py``.

The column types of all migrations. They never change: a migration must always create the same columns.
"""

from __future__ import annotations

import sqlalchemy as sa
from sqlalchemy.dialects import mysql

NUMBER = sa.BigInteger().with_variant(sa.Integer, "sqlite")
TIME = sa.TIMESTAMP(timezone=True).with_variant(mysql.TIMESTAMP(fsp=6), "mysql", "mariadb")


def name(length: int) -> sa.String:
    """Return the type of an identifier: MySQL would by default treat ``a`` and ``A`` as equal."""
    binary = mysql.VARCHAR(length, charset="utf8mb4", collation="utf8mb4_bin")
    return sa.String(length).with_variant(binary, "mysql", "mariadb")
