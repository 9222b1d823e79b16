"""The documents of the architecture name what the code has: modules, classes, functions and the table of rooms."""

from __future__ import annotations

import ast
import re
import tomllib
from functools import cache
from pathlib import Path

import pytest

from tests.unit.test_import_directions import BELOW, PACKAGE, modules, room_of

ROOT = Path(__file__).parents[2]
DOCUMENTS = ["architecture", "glossary", "api"]
# `module:name`, a name within a class with dots.
NAME = re.compile(r"`([a-z_.]*[a-z_]):([A-Za-z_][\w.]*)`")
PATH = re.compile(r"`((?:airflow_mediation_provider|dags|docs|tests)/[\w./-]+|(?:\w+/)+\w+\.(?:md|py|toml))`")


def text(document: str) -> str:
    return (ROOT / "docs" / f"{document}.md").read_text()


@cache
def defined_in(module: str) -> set[str]:
    """Return the names that a module defines, those within its classes with dots."""
    return set(names(ast.parse(modules()[module].read_text()).body)) if module in modules() else set()


def names(body: list[ast.stmt], within: str = "") -> list[str]:
    found = []
    for node in body:
        if isinstance(node, ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            found.append(within + node.name)
            if isinstance(node, ast.ClassDef):
                found += names(node.body, f"{within}{node.name}.")
        elif isinstance(node, ast.Assign | ast.AnnAssign):
            targets = node.targets if isinstance(node, ast.Assign) else [node.target]
            found += [within + target.id for target in targets if isinstance(target, ast.Name)]
    return found


def cells(document: str, part: str) -> list[list[str]]:
    """Return the rows of the first table below a heading, without its head."""
    below = text(document).partition(f"\n## {part}\n")[2].partition("\n## ")[0]
    rows = [line.strip("|").split(" | ") for line in re.findall(r"^\|.*\|$", below, re.MULTILINE)]
    return [[cell.strip() for cell in row] for row in rows[2:]]


@pytest.mark.parametrize("document", DOCUMENTS)
def test_each_name_of_a_document_is_defined(document: str):
    named = NAME.findall(text(document))
    assert [f"{module}:{name}" for module, name in named if name not in defined_in(module)] == []


@pytest.mark.parametrize("document", DOCUMENTS)
def test_each_path_of_a_document_is_there(document: str):
    places = (ROOT, ROOT / PACKAGE)
    assert [path for path in PATH.findall(text(document)) if not any((place / path).exists() for place in places)] == []


def test_the_table_of_rooms_is_the_one_that_is_enforced():
    table = {row[0].strip("`"): set(re.findall(r"`([\w.]+)`", row[2])) for row in cells("architecture", "Rooms")}
    assert table == BELOW
    assert list(table) == list(BELOW)


@pytest.mark.parametrize("letter", ["A", "B", "C"])
def test_a_journey_enters_each_room_once_in_a_process_or_names_the_return(letter: str):
    """An item of a journey begins with its room, and names functions of that room and of ``protocol`` alone."""
    found = re.search(rf"^### {letter}\. .*?(?=^##|\Z)", text("architecture"), re.DOTALL | re.MULTILINE)
    assert found is not None
    journey, _, returns = found[0].partition("\nReturns:")
    for process in re.split(r"^\*.+\*$", journey, flags=re.MULTILINE)[1:]:
        items = re.split(r"^\d+\. ", process, flags=re.MULTILINE)[1:]
        rooms = [item.partition(":")[0].strip("*") for item in items]
        again = {room for room in rooms if rooms.count(room) > 1}
        assert again <= set(re.findall(r"\*\*(\w+)\*\*", returns))
        for room, item in zip(rooms, items, strict=True):
            named = NAME.findall(item)
            assert named
            assert {room_of(module).split(".")[0] for module, _ in named} <= {room, "protocol"}


def test_each_term_is_explained_once_and_has_a_place():
    table = cells("glossary", "Terms")
    terms = [row[0].lower() for row in table]
    assert sorted(set(terms)) == terms
    assert [row[0] for row in table if len(row) != 3 or not NAME.search(row[2])] == []


def test_the_public_api_lists_the_operators_and_sensors_that_are_frozen():
    frozen = tomllib.loads((ROOT / "tests" / "unit" / "frozen_names.toml").read_text())
    classes = {path.rpartition(".")[2] for path in frozen["dags"]}
    assert {name for name in classes if name not in text("api")} == set()
