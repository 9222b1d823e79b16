"""The results of `airflow db migrate` are kept between runs of the tests."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from tests import databases

if TYPE_CHECKING:
    from pathlib import Path


def _make(path: Path) -> None:
    path.write_text("migrated")


def _make_none(path: Path) -> None:
    pytest.fail("made again")


def test_a_migrated_database_is_made_once(tmp_path: Path) -> None:
    first = databases.keep(tmp_path, "sqlite", _make)
    assert first.read_text() == "migrated"
    assert databases.keep(tmp_path, "sqlite", _make_none) == first


@pytest.mark.parametrize("change", ["migrations", "airflow", "server"])
def test_a_change_of_its_sources_makes_another_database(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, change: str
) -> None:
    first = databases.keep(tmp_path, "postgres", _make, "server 15")
    if change == "migrations":
        revision = tmp_path / "revision.py"
        revision.write_text("another")
        monkeypatch.setattr(databases, "MIGRATIONS", [*databases.MIGRATIONS, revision])
    elif change == "airflow":
        monkeypatch.setattr(databases, "version", lambda package: "0")
    second = databases.keep(tmp_path, "postgres", _make, "server 16" if change == "server" else "server 15")
    assert second != first
    assert first.exists()


def test_a_database_whose_migration_was_interrupted_is_not_used(tmp_path: Path) -> None:
    def interrupted(path: Path) -> None:
        path.write_text("half")
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        databases.keep(tmp_path, "sqlite", interrupted)

    def make(path: Path) -> None:
        assert not path.exists()
        _make(path)

    assert databases.keep(tmp_path, "sqlite", make).read_text() == "migrated"


def test_the_migrations_of_the_journal_are_among_its_sources() -> None:
    names = {path.name for path in databases.MIGRATIONS}
    assert {"manager.py", "env.py"} <= names
    assert any(path.parent.name == "versions" for path in databases.MIGRATIONS)
