"""Copies of a migrated PostgreSQL database, each for many tests: making one takes longer than most tests.

After a test its rows are deleted. A copy that then still differs from a fresh one is dropped: the test changed tables.
"""

from __future__ import annotations

import itertools
from contextlib import contextmanager
from typing import TYPE_CHECKING

from sqlalchemy import NullPool, create_engine, text
from sqlalchemy.exc import ProgrammingError

if TYPE_CHECKING:
    from collections.abc import Iterator

    from sqlalchemy import Connection

    from testkit.postgres import Postgres

# What a change of the tables changes, and the statistics from which queries are planned.
STRUCTURE = """
    SELECT concat(oid, relname) AS line FROM pg_class WHERE relnamespace = 'public'::regnamespace
    UNION ALL SELECT a::text FROM pg_attribute a JOIN pg_class c ON c.oid = attrelid
        WHERE relnamespace = 'public'::regnamespace
    UNION ALL SELECT i::text FROM pg_index i JOIN pg_class c ON c.oid = indrelid
        WHERE relnamespace = 'public'::regnamespace
    UNION ALL SELECT k::text FROM pg_constraint k WHERE connamespace = 'public'::regnamespace
    UNION ALL SELECT concat(starelid, ':', staattnum) FROM pg_statistic JOIN pg_class c ON c.oid = starelid
        WHERE relnamespace = 'public'::regnamespace
    UNION ALL SELECT concat(sequencename, last_value) FROM pg_sequences WHERE schemaname = 'public'
"""
RESTART = """
    SELECT setval(format('%I', sequencename)::regclass, start_value, false) FROM pg_sequences
    WHERE schemaname = 'public' AND last_value IS NOT NULL AND sequencename <> ALL(:kept)
"""
SIZE = text("SELECT pg_relation_size(quote_ident(:name)::regclass)")
# Bytes. PostgreSQL plans for a table of this size as for an empty one, and deletes rows faster than it replaces files.
SMALL = 10 * 8192


class PostgresCopies:
    """Copies of a template, which has tables, and in some of them rows.

    :param template: a database of the cluster; it must have no connections
    """

    def __init__(self, postgres: Postgres, template: str) -> None:
        self._postgres, self._template = postgres, template
        self._numbers = itertools.count(1)
        self._idle: list[str] = []
        with _connected(postgres.dsn(template)) as connection:
            tables = connection.scalars(text("SELECT tablename FROM pg_tables WHERE schemaname = 'public'")).all()
            self._with_rows = text(" UNION ALL ".join(f"(SELECT '{each}' FROM \"{each}\" LIMIT 1)" for each in tables))
            self._filled = set(connection.scalars(self._with_rows))
            used = "SELECT sequencename FROM pg_sequences WHERE schemaname = 'public' AND last_value IS NOT NULL"
            self._used = connection.scalars(text(used)).all()
            rows = "".join(f' UNION ALL SELECT t::text FROM "{each}" t' for each in sorted(self._filled))
            self._state = text(f"SELECT md5(string_agg(line, ' ' ORDER BY line)) FROM ({STRUCTURE} {rows}) AS lines")
            self._fresh = connection.scalar(self._state)

    @contextmanager
    def one(self) -> Iterator[str]:
        """Yield the address of a copy that no other test uses."""
        name = self._idle.pop() if self._idle else self._made()
        yield self._postgres.dsn(name)
        # Under another name, so that what the test left running does not write into the next one's database.
        new = self._name()
        if self._cleaned(self._postgres.rename(name, new)):
            self._idle.append(new)
        else:
            self._postgres.drop(new)

    def _made(self) -> str:
        name = self._name()
        self._postgres.create(name, template=self._template)
        return name

    def _name(self) -> str:
        return f"copy_{next(self._numbers)}"

    def _cleaned(self, address: str) -> bool:
        """Delete what the template does not have, and return whether the copy is as a fresh one."""
        with _connected(address) as connection:
            try:
                written = set(connection.scalars(self._with_rows)) - self._filled
            except ProgrammingError:  # a table is missing
                return False
            large = {each for each in written if connection.scalar(SIZE, {"name": each}) > SMALL}
            if large:
                names = ", ".join(f'"{each}"' for each in sorted(large))
                connection.execute(text(f"TRUNCATE {names} CASCADE"))
            connection.execute(text("SET session_replication_role = replica"))  # checks no foreign key
            for each in written - large:
                connection.execute(text(f'DELETE FROM "{each}"'))
            connection.execute(text(RESTART), {"kept": self._used})
            return bool(connection.scalar(self._state) == self._fresh)


@contextmanager
def _connected(address: str) -> Iterator[Connection]:
    engine = create_engine(address, isolation_level="AUTOCOMMIT", poolclass=NullPool)
    with engine.connect() as connection:
        yield connection
