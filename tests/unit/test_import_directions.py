"""Imports point down: which room of the package may import which, and which third-party packages each room needs.

A room is a folder of the package, a subject of ``protocol``, or a module beside them. Every import counts, also one
inside a function and one only for the type checker.
"""

from __future__ import annotations

import ast
import sys
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from collections.abc import Iterator

PACKAGE = "airflow_mediation_provider"
ROOT = Path(__file__).parents[2] / PACKAGE
MOST_MODULES = 150

# Room -> the rooms below it that it may import, the lowest room first. "protocol" means all of its rooms.
BELOW: dict[str, set[str]] = {
    "protocol": set(),
    "protocol.zuora": {"protocol"},
    "protocol.sessions": {"protocol"},
    "protocol.callouts": {"protocol", "protocol.zuora", "protocol.sessions"},
    "protocol.wire": {"protocol", "protocol.zuora", "protocol.sessions"},
    "protocol.waits": {"protocol", "protocol.zuora", "protocol.sessions", "protocol.wire"},
    "protocol.maintenance": {
        "protocol",
        "protocol.zuora",
        "protocol.sessions",
        "protocol.callouts",
        "protocol.wire",
    },
    "simulator": {"protocol"},
    "version_compat": {"protocol"},
    "metrics": {"protocol", "version_compat"},
    "exceptions": {"protocol", "version_compat"},
    "hooks": {"protocol", "version_compat"},
    "__init__": {"protocol"},
    "links": {"protocol", "version_compat", "hooks"},
    "feed": {"protocol", "metrics", "hooks"},
    "journal": {"protocol", "metrics"},
    "api_server": {"protocol", "version_compat", "metrics", "hooks", "__init__", "journal"},
    "tasks": {"protocol", "hooks"},
    "commands": {"protocol", "metrics", "hooks", "journal", "api_server", "tasks"},
    "triggerer": {"protocol", "metrics", "hooks", "feed", "tasks"},
    "triggers": {"protocol", "links", "feed", "tasks", "triggerer"},
    "assets": {"protocol", "exceptions", "tasks", "triggers"},
    "alerts": {"protocol", "hooks", "links", "feed", "assets"},
    "plugin": {"protocol", "api_server", "assets"},
    "worker": {"protocol", "version_compat", "metrics", "exceptions", "hooks", "feed", "tasks", "triggers"},
    "operators": {"protocol", "exceptions", "hooks", "links", "feed", "tasks", "triggers", "worker"},
    "sensors": {"protocol", "version_compat", "links", "tasks", "worker"},
    "cli": set(),
    "testing": {"protocol", "simulator", "feed", "journal", "api_server"},
}

# Room -> third-party packages. ``airflow.sdk`` is available to tasks; ``airflow`` is the rest of it.
OTHERS: dict[str, set[str]] = {
    "protocol": {"msgspec", "pendulum"},
    "protocol.sessions": {"msgspec"},
    "protocol.callouts": {"pendulum"},
    "protocol.wire": {"msgspec"},
    "simulator": {"aiohttp", "yaml"},
    "version_compat": {"airflow"},
    "exceptions": {"airflow.sdk"},
    "hooks": {"aiohttp", "airflow", "airflow.sdk", "requests", "requests_toolbelt", "urllib3", "yarl"},
    "links": {"airflow.sdk"},
    "feed": {"aiohttp", "airflow.sdk", "requests"},
    "journal": {"airflow", "alembic", "sqlalchemy", "tenacity"},
    "api_server": {"airflow", "anyio", "fastapi", "jinja2", "markupsafe", "pydantic", "sqlalchemy", "starlette"},
    "tasks": {"airflow", "airflow.sdk", "asgiref", "pendulum"},
    "commands": {"airflow", "alembic", "requests", "sqlalchemy"},
    "triggers": {"airflow", "airflow.sdk", "asgiref"},
    "assets": {"airflow", "airflow.sdk"},
    "alerts": {"airflow.sdk"},
    "plugin": {"airflow"},
    "worker": {"airflow", "airflow.sdk"},
    "operators": {"airflow.sdk"},
    "sensors": {"airflow", "airflow.sdk"},
    "cli": {"airflow"},
    "testing": {"airflow", "airflow.sdk", "pytest", "sqlalchemy", "starlette", "uvicorn"},
}


def name_of(file: Path) -> str:
    """Return a module's name within the package."""
    return ".".join(file.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")


def room_of(module: str) -> str:
    """Return the longest room of the table that contains a module."""
    parts = module.split(".")
    names = [".".join(parts[:length]) for length in range(len(parts), 0, -1)]
    return next((name for name in names if name in BELOW), parts[0])


def seen_from(module: str, name: str) -> str:
    """Return the room of an imported module, as the table of the importing module's room names it."""
    return room_of(name) if module.startswith("protocol") else room_of(name).split(".")[0]


@cache
def modules() -> dict[str, Path]:
    return {name_of(file): file for file in sorted(ROOT.rglob("*.py"))}


@cache
def nodes(file: Path) -> tuple[ast.AST, ...]:
    """Return all nodes of a file's source, the module first."""
    return tuple(ast.walk(ast.parse(file.read_text())))


def imports(file: Path) -> Iterator[str]:
    """Return the names of all modules that a file imports, at any depth."""
    for node in nodes(file):
        if isinstance(node, ast.Import):
            yield from (name.name for name in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{file} imports relatively"
            assert node.module is not None
            for name in node.names:
                inner = f"{node.module}.{name.name}"
                yield inner if inner.removeprefix(f"{PACKAGE}.") in modules() else node.module


@cache
def own(module: str) -> set[str]:
    """Return the modules of the package that a module imports."""
    found = {name for name in imports(modules()[module]) if name.split(".")[0] == PACKAGE}
    return {name.removeprefix(f"{PACKAGE}.").replace(PACKAGE, "__init__") for name in found}


@cache
def upwards() -> set[tuple[str, str]]:
    """Return the imports against the table."""
    return {
        (module, name)
        for module in modules()
        for name in own(module)
        if room_of(name) != room_of(module) and seen_from(module, name) not in BELOW[room_of(module)]
    }


def test_every_room_is_in_the_table():
    assert {room_of(module) for module in modules()} == BELOW.keys()


def test_the_table_points_down():
    """Each room is after those that it may import, so no two of them import each other."""
    rooms = list(BELOW)
    assert [(room, below) for room in rooms for below in BELOW[room] if rooms.index(below) >= rooms.index(room)] == []


def test_no_import_points_up():
    assert upwards() == set()


def test_no_module_of_the_product_imports_the_simulator():
    assert {room for room, below in BELOW.items() if "simulator" in below} == {"testing"}
    assert {room for room, below in BELOW.items() if "testing" in below} == set()


def test_no_two_modules_import_each_other_in_a_circle():
    left = {module: own(module) - {module} for module in modules()}
    while free := {module for module, names in left.items() if not names & left.keys()}:
        left = {module: names for module, names in left.items() if module not in free}
    assert left == {}


def test_the_package_has_at_most_150_modules_without_the_simulator():
    count = sum(room_of(module) not in ("simulator", "testing") for module in modules())
    print(f"{count} modules")
    assert count <= MOST_MODULES


def test_each_direction_is_still_used():
    used = {(room_of(module), seen_from(module, name)) for module in modules() for name in own(module)}
    assert {(room, below) for room in BELOW for below in BELOW[room]} - used == set()


@pytest.mark.parametrize("room", BELOW)
def test_a_room_imports_only_its_listed_third_party_packages(room: str):
    inside = [file for module, file in modules().items() if room_of(module) == room]
    names = {name for file in inside for name in imports(file)}
    tops = {"airflow.sdk" if f"{name}.".startswith("airflow.sdk.") else name.split(".")[0] for name in names}
    assert tops - set(sys.stdlib_module_names) - {PACKAGE, "__future__"} == OTHERS.get(room, set())
