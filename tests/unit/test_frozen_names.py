"""Names in users' databases, Dags, settings and monitoring stay: the list is ``frozen_names.toml``.

The list is complete: additions to the package are added to it, and stay from then on.
"""

from __future__ import annotations

import ast
import importlib
import inspect
import re
import tomllib
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from airflow.sdk import BaseOperator
from airflow.triggers.base import BaseTrigger

from tests.unit.api_server.routes import each_route

if TYPE_CHECKING:
    from collections.abc import Iterator

PACKAGE = "airflow_mediation_provider"
ROOT = Path(__file__).parents[2]
NAMES: dict[str, Any] = tomllib.loads((Path(__file__).parent / "frozen_names.toml").read_text())
CALLED = {
    path: arguments
    for part in ("dags", "triggers", "next_methods", "functions")
    for path, arguments in NAMES[part].items()
}

# The hook takes settings that a test has already checked; no Dag passes them.
PRIVATE = {"settings"}


def found(path: str) -> Any:
    """Return the object at a path within the package: the longest module, and attributes of it."""
    parts = path.split(".")
    for end in range(len(parts), -1, -1):
        try:
            value = importlib.import_module(".".join([PACKAGE, *parts[:end]]))
        except ModuleNotFoundError:
            continue
        for name in parts[end:]:
            value = getattr(value, name)
        return value
    raise AssertionError(path)


def arguments_of(called: Any, *, ours: bool = False) -> set[str]:
    """Return the names of all arguments that a call may have; for a class, also those that it passes to its bases.

    :param ours: leave out arguments that Airflow declares
    """
    if not inspect.isclass(called):
        return named(called)
    names: set[str] = set()
    for each in called.__mro__:
        if "__init__" not in vars(each) or (ours and not each.__module__.startswith(PACKAGE)):
            continue
        names |= named(vars(each)["__init__"])
        if not any(p.kind is p.VAR_KEYWORD for p in inspect.signature(vars(each)["__init__"]).parameters.values()):
            break
    return names


def named(function: Any) -> set[str]:
    parameters = inspect.signature(function).parameters.values()
    return {p.name for p in parameters if p.name != "self" and p.kind in (p.KEYWORD_ONLY, p.POSITIONAL_OR_KEYWORD)}


@pytest.mark.parametrize("path", CALLED)
def test_a_frozen_function_takes_the_same_arguments(path: str):
    assert {*CALLED[path]} <= arguments_of(found(path))


@pytest.mark.parametrize("path", [*NAMES["dags"], *NAMES["triggers"]])
def test_each_argument_of_a_frozen_function_is_in_the_list(path: str):
    assert arguments_of(found(path), ours=True) - {*CALLED[path]} - PRIVATE == set()


def test_every_operator_and_sensor_is_in_the_list():
    from airflow_mediation_provider import get_provider_info

    info = get_provider_info()
    parts = [part for kind in ("operators", "sensors", "triggers") for part in info[kind]]
    modules = [importlib.import_module(name) for part in parts for name in part["python-modules"]]
    made = {
        f"{each.__module__}.{each.__qualname__}".removeprefix(f"{PACKAGE}.")
        for module in modules
        for each in vars(module).values()
        if inspect.isclass(each) and each.__module__ == module.__name__ and issubclass(each, BaseOperator | BaseTrigger)
    }
    assert {path for path in made if not path.rpartition(".")[2].startswith("_")} <= CALLED.keys()


@pytest.mark.parametrize("path", NAMES["next_methods"])
def test_a_deferred_task_finds_its_method(path: str):
    """Airflow passes ``event`` by name, and the arguments that the deferral stored."""
    assert list(inspect.signature(found(path)).parameters)[1] == "context"


@pytest.mark.parametrize("hook", ["MediationHook", "MediationAsyncHook"])
@pytest.mark.parametrize("method", NAMES["hook_methods"])
def test_the_hooks_have_the_same_methods(hook: str, method: str):
    assert {*NAMES["hook_methods"][method]} == named(getattr(found(f"hooks.mediation.{hook}"), method))


@pytest.mark.parametrize("path", NAMES["importable"]["paths"])
def test_a_frozen_name_is_imported_by_the_same_path(path: str):
    assert inspect.isclass(found(path))


def test_public_modules_export_exactly_the_frozen_names():
    paths = [path for part in ("dags", "triggers", "functions") for path in NAMES[part]] + NAMES["importable"]["paths"]
    frozen = {path.rpartition(".")[::2] for path in paths}
    # Airflow reads these, and no user imports from them.
    not_imported = {"", "cli", "journal.manager", "plugin"}
    public = {module for module, _ in frozen if module not in not_imported and inspect.ismodule(found(module))}
    exported = {(module, name) for module in public for name in found(module).__all__}
    constants = {path.rpartition(".")[::2] for path in NAMES["values"]} & exported
    assert exported == {(module, name) for module, name in frozen if module in public} | constants


@pytest.mark.parametrize("path", NAMES["values"])
def test_a_frozen_constant_has_the_same_value(path: str):
    assert found(path) == NAMES["values"][path]


@pytest.mark.parametrize("path", NAMES["fixtures"])
def test_a_frozen_plugin_has_the_same_fixtures(path: str):
    assert [name for name in vars(found(path)) if name.startswith("mediation_")] == NAMES["fixtures"][path]


@pytest.mark.parametrize("path", NAMES["enums"])
def test_a_frozen_enum_has_the_same_members(path: str):
    assert NAMES["enums"][path] == [str(each) for each in found(path)]


def test_airflow_still_finds_and_migrates_the_journal():
    from alembic.script import ScriptDirectory

    from airflow_mediation_provider.journal.manager import MediationDBManager

    scripts = ScriptDirectory(MediationDBManager.migration_dir)
    assert MediationDBManager.version_table_name == NAMES["journal"]["version_table"]
    assert {*NAMES["journal"]["revisions"]} == {script.revision for script in scripts.walk_revisions()}


def test_the_tables_have_the_same_columns():
    from airflow_mediation_provider.journal.tables import Base

    tables = {name: {column.name for column in table.columns} for name, table in Base.metadata.tables.items()}
    assert {name: {*columns} for name, columns in NAMES["tables"].items()} == tables


def test_a_connection_takes_the_same_settings():
    from airflow_mediation_provider import get_provider_info
    from airflow_mediation_provider.hooks.settings import KNOWN_EXTRA, LINK_FIELDS
    from airflow_mediation_provider.protocol.zuora.requests import DataCenter

    (connection,) = get_provider_info()["connection-types"]
    frozen = NAMES["connection"]
    assert connection["connection-type"] == frozen["type"]
    assert {*frozen["form"]} == connection["conn-fields"].keys()
    assert {*frozen["extra"]} == KNOWN_EXTRA
    assert {*frozen["link_template_fields"]} == {*LINK_FIELDS}
    assert {*frozen["data_centers"]} == DataCenter.__members__.keys()


def test_the_provider_info_is_the_same():
    from airflow_mediation_provider import get_provider_info

    info = get_provider_info()
    assert {name: info[name] for name in NAMES["provider_info"]} == NAMES["provider_info"]
    options = {section: {*each["options"]} for section, each in info["config"].items()}
    assert {section: {*names} for section, names in NAMES["options"].items()} == options
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert project["entry-points"] == NAMES["entry_points"]


@cache
def routes() -> dict[str, set[str]]:
    from airflow_mediation_provider.api_server.app import create_app

    return {
        f"{method} {route.path}": {each.alias for each in route.dependant.query_params}
        for route in each_route(create_app().routes)
        for method in getattr(route, "methods", None) or ()
    }


def test_the_api_server_has_the_same_paths():
    assert {route: {*names} for route, names in NAMES["http"].items()} == routes()


def test_the_metrics_have_the_same_tags():
    from airflow_mediation_provider import metrics

    emitted = {each.name: list(each.tags) for each in vars(metrics).values() if isinstance(each, metrics.Metric)}
    assert emitted == NAMES["metrics"]


def commands() -> dict[str, set[str]]:
    from airflow_mediation_provider.cli import get_cli_commands

    def walk(parts: Any, before: str) -> Iterator[tuple[str, set[str]]]:
        for each in parts:
            name = f"{before} {each.name}".strip()
            if hasattr(each, "subcommands"):
                yield from walk(each.subcommands, name)
            else:
                yield name, {flag for arg in each.args for flag in arg.flags}

    return dict(walk(get_cli_commands(), ""))


def test_the_commands_take_the_same_options():
    assert {command: {*flags} for command, flags in NAMES["commands"].items()} == commands()


def imported(text: str) -> set[str]:
    """Return the imports from the package in a program, as paths within it."""
    return {
        f"{node.module}.{name.name}".removeprefix(f"{PACKAGE}.")
        for node in ast.walk(ast.parse(text))
        if isinstance(node, ast.ImportFrom) and str(node.module).startswith(PACKAGE)
        for name in node.names
    }


def examples() -> list[tuple[str, str]]:
    """Return the programs that users copy: the example Dags, and those in the README and the docs."""
    files = [(file.name, file.read_text()) for file in sorted((ROOT / "dags").glob("*.py"))]
    for file in (ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))):
        lines = re.findall(rf"^from {PACKAGE}[\w.]* import [\w, ]+$", file.read_text(), re.MULTILINE)
        files += [(file.name, "\n".join(lines))] * bool(lines)
    return files


@pytest.mark.parametrize(("name", "text"), examples(), ids=[name for name, _ in examples()])
def test_each_import_of_an_example_is_in_the_list(name: str, text: str):
    listed = {*CALLED, *NAMES["importable"]["paths"], *NAMES["values"]}
    assert imported(text) <= listed
    for path in imported(text):
        assert found(path)
