"""Alembic's migrations of the journal's tables; the tests prove that they end where ``tables.py`` is."""
