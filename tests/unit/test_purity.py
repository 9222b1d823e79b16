"""``protocol`` does no I/O and reads no clock: its functions depend on their arguments alone."""

from __future__ import annotations

import ast
from typing import TYPE_CHECKING

import pytest

from tests.unit.test_import_directions import imports, modules

if TYPE_CHECKING:
    from collections.abc import Iterator

# What neither reads nor writes anything outside of the process; msgspec converts values in memory.
PURE = {
    "__future__",
    "ast",
    "base64",
    "bisect",
    "collections",
    "collections.abc",
    "copy",
    "dataclasses",
    "datetime",
    "decimal",
    "difflib",
    "email.utils",
    "enum",
    "functools",
    "hashlib",
    "hmac",
    "itertools",
    "json",
    "math",
    "msgspec",
    "operator",
    "re",
    "typing",
    "urllib.parse",
}
# Module and import -> why it may be there.
EXCEPTIONS = {
    ("protocol.callouts.cursor", "zoneinfo"): "reads the time zones of the machine, which are constants",
    ("protocol.callouts.history", "zoneinfo"): "reads the time zones of the machine, which are constants",
    ("protocol.callouts.tenant_times", "pendulum"): "reads the times and zones that a tenant's locale writes",
    ("protocol.callouts.settings", "pendulum"): "checks the format of times and the zone",
    ("protocol.callouts.setup", "pendulum"): "finds the zone in which times were written",
    ("protocol.status", "warnings"): "warns the author of a Dag of a status that Zuora does not document",
    ("protocol.transition", "pendulum"): "the times of a transition are pendulum's, as Airflow's are",
    ("protocol.waits.poll_pace", "random"): "jitter; the source of random numbers is an argument",
    ("protocol.zuora.flow", "random"): "jitter; the source of random numbers is an argument",
}
CLOCKS = {"localtime", "now", "today", "utcnow"}
FILES_AND_CONSOLE = {"breakpoint", "input", "open", "print"}
CODE = {"__import__", "compile", "eval", "exec"}

PROTOCOL = [module for module in modules() if module.partition(".")[0] == "protocol"]


def impure(tree: ast.AST) -> Iterator[str]:
    """Return what reads a clock, a file or the console, or could do anything, with its line."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute) and node.attr in CLOCKS:
            yield f"{node.lineno}: {ast.unparse(node)}"
        elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Load) and node.id in FILES_AND_CONSOLE | CODE:
            yield f"{node.lineno}: {node.id}"


def test_only_what_is_pure_is_imported_and_each_exception_is_needed():
    of_others = {
        (module, name)
        for module in PROTOCOL
        for name in imports(modules()[module])
        if not name.startswith("airflow_mediation_provider")
    }
    assert {(module, name) for module, name in of_others if name not in PURE} == EXCEPTIONS.keys()


@pytest.mark.parametrize("module", PROTOCOL)
def test_no_clock_is_read_and_nothing_is_opened(module: str):
    assert list(impure(ast.parse(modules()[module].read_text()))) == []


@pytest.mark.parametrize(
    "source", ["at = datetime.now(UTC)", "def f(clock=pendulum.now): ...", "with open(path) as file: ...", "exec(text)"]
)
def test_a_clock_or_a_file_would_be_found(source: str):
    assert list(impure(ast.parse(source))) != []
