"""The column types of all migrations; they never change, for what a migration made has to stay what it was."""

from __future__ import annotations

import sqlalchemy as sa
from sqlalchemy.dialects import mysql

NUMBER = sa.BigInteger().with_variant(sa.Integer, "sqlite")
TIME = sa.TIMESTAMP(timezone=True).with_variant(mysql.TIMESTAMP(fsp=6), "mysql", "mariadb")


def name(length: int) -> sa.String:
    """Return the type of what names something: MySQL would take ``a`` for ``A``."""
    binary = mysql.VARCHAR(length, charset="utf8mb4", collation="utf8mb4_bin")
    return sa.String(length).with_variant(binary, "mysql", "mariadb")
