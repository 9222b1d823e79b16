"""The mutation run: which changes it makes, and that a mutant survives a weak test."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from tests.mutation import CORE, PACKAGE, ROOT, run, sample, table

if TYPE_CHECKING:
    from pathlib import Path

MODULE = f"{PACKAGE}/ages.py"
# What a mutation run needs of the tree that it is for.
CONFIGURATION = "[pytest]\npythonpath = .\nmarkers = services: starts something\n"
PROFILES = """
from hypothesis import settings

for name in ("quick", "full"):
    settings.register_profile(name)
"""


def tree_of(folder: Path, module: str, test: str = "") -> Path:
    (folder / PACKAGE).mkdir()
    (folder / PACKAGE / "__init__.py").touch()
    (folder / MODULE).write_text(module)
    (folder / "pytest.ini").write_text(CONFIGURATION)
    (folder / "conftest.py").write_text(PROFILES)
    (folder / "test_ages.py").write_text(f"from {PACKAGE}.ages import *\n\ndef test_adult():\n    {test}\n")
    return folder


def changes_of(folder: Path, module: str) -> set[str]:
    return {each.change for each in sample(tree_of(folder, module), [MODULE], seed=1, size=1000)}


def test_every_module_of_the_core_and_its_tests_exist() -> None:
    assert [each for each in (*CORE, *sum(map(tuple, CORE.values()), ())) if not (ROOT / each).is_file()] == []


@pytest.mark.parametrize(
    ("code", "made"),
    [
        ("x = a < b", {"a < b -> a <= b", "a < b -> a >= b"}),
        ("x = a in b", {"a in b -> a not in b"}),
        ("x = a and b", {"a and b -> a or b"}),
        ("x = not a", {"not a -> a"}),
        ("x = True", {"True -> False in x = True"}),
        ("x = f(7)", {"7 -> 8 in f(7)", "7 -> 6 in f(7)"}),
        ("x = a - b", {"a - b -> a + b"}),
        ("x = min(a)", {"min(a) -> max(a)"}),
        ("x = a if b else c", {"a if b else c -> c if b else a", "b -> not b"}),
        ("def f() -> bool:\n    return g()", {"return g() -> return not g()"}),
        ("def f() -> str:\n    return g()", {"return g() -> return None"}),
        ("if a:\n    b = c", {"a -> not a", "b = c -> pass"}),
        ("def f(a):\n    a.b = c", {"a.b = c -> pass"}),
        ("class E(StrEnum):\n    A = 'a'\n    B = 'b'\nx = E.A", {"E.A -> E.B"}),
    ],
)
def test_each_kind_of_code_has_its_changes(tmp_path: Path, code: str, made: set[str]) -> None:
    assert changes_of(tmp_path, code) == made


@pytest.mark.parametrize(
    "code",
    [
        '"""Text."""\nx = "a" + b',
        "x = f'{a and b}'",
        "x: Literal[1]\ndef f(a: Literal[1]) -> Literal[1]:\n    pass",
        "@decorator(True)\nclass C(a and b):\n    __slots__ = not_seen(1)",
        "if TYPE_CHECKING:\n    a = 1",
        "log.info(1)",
    ],
)
def test_texts_types_decorators_and_logs_are_not_changed(tmp_path: Path, code: str) -> None:
    assert changes_of(tmp_path, code) == set()


def test_a_seed_draws_the_same_mutants_and_another_seed_others(tmp_path: Path) -> None:
    tree = tree_of(tmp_path, "\n".join(f"a < {number}" for number in range(100)))
    drawn = [[str(each) for each in sample(tree, [MODULE], seed, 20)] for seed in (1, 1, 2)]
    assert drawn[0] == drawn[1] != drawn[2]


@pytest.mark.services
def test_a_mutant_survives_where_a_test_is_weak_and_nowhere_else(tmp_path: Path) -> None:
    module = "def adult(age):\n    return age >= 18\n\ndef retired(age):\n    return age >= 67\n"
    tree = tree_of(tmp_path, module, "assert adult(18) and retired(80)")
    mutants = [each for each in sample(tree, [MODULE], seed=1, size=50) if each.change.endswith(("> 18", "> 67"))]
    fates = run(tree, {MODULE: ["test_ages.py"]}, mutants, jobs=1)
    assert [(mutant.change, bool(fate)) for mutant, fate in fates] == [
        ("age >= 18 -> age > 18", True),
        ("age >= 67 -> age > 67", False),
    ]
    assert table(fates).splitlines()[1:] == [
        f"{MODULE:<72}       2       1        0",
        "  survived: 5: age >= 67 -> age > 67",
    ]
    assert (tree / MODULE).read_text() == module


@pytest.mark.services
def test_tests_that_fail_without_a_mutant_are_an_error(tmp_path: Path) -> None:
    tree = tree_of(tmp_path, "def adult(age):\n    return age >= 18", "assert adult(3)")
    with pytest.raises(RuntimeError, match="without a mutant, tests fail"):
        run(tree, {MODULE: ["test_ages.py"]}, sample(tree, [MODULE], seed=1, size=1), jobs=1)
