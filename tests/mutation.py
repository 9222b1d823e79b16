"""Mutation run: change one place of the core at a time, and count the changes that no unit test detects.

``python -m tests.mutation --seed 1 --mutants 150``, or ``make mutants``. Exits with 1 where fewer than ``--least``
percent of the mutants are killed.

Each mutant is tested in a copy of the tree, with the test files of its module: first with a tenth of the random
examples, and where it survives with all of them. Tests that do not end in time kill a mutant, too. What Hypothesis
generates is fixed, and that the tests pass without a mutant is checked first.

Not changed: texts, type hints, decorators, ``__slots__``, log calls, and what type checkers alone read.
"""

from __future__ import annotations

import argparse
import ast
import hashlib
import multiprocessing
import os
import queue
import resource
import shutil
import signal
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import count, islice, repeat
from pathlib import Path
from time import monotonic
from typing import TYPE_CHECKING, Final, NamedTuple, NoReturn

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping, Sequence

ROOT: Final = Path(__file__).parents[1]
PACKAGE: Final = "airflow_mediation_provider"
_CORE: Final = f"{PACKAGE}/protocol"
_TESTS: Final = "tests/unit/protocol"
_WAITS: Final = (
    f"{_TESTS}/waits/test_wait.py",
    f"{_TESTS}/waits/test_wait_callouts.py",
    f"{_TESTS}/sessions/test_window.py",
    f"{_TESTS}/waits/test_wait_truth.py",
    f"{_TESTS}/callouts/test_callout_truth.py",
)
CORE: Final[Mapping[str, Sequence[str]]] = {
    f"{_CORE}/sessions/lifecycle.py": (
        f"{_TESTS}/sessions/test_phases.py",
        f"{_TESTS}/sessions/test_lifecycle.py",
        f"{_TESTS}/sessions/test_best_known.py",
    ),
    f"{_CORE}/sessions/verdict.py": (
        f"{_TESTS}/sessions/test_best_known.py",
        f"{_TESTS}/test_wire.py",
    ),
    f"{_CORE}/sessions/window.py": (
        f"{_TESTS}/sessions/test_window.py",
        f"{_TESTS}/waits/test_wait.py",
        f"{_TESTS}/test_wire.py",
    ),
    f"{_CORE}/waits/condition.py": (
        f"{_TESTS}/waits/test_condition.py",
        f"{_TESTS}/waits/test_subject.py",
        *_WAITS,
    ),
    f"{_CORE}/waits/poll_evidence.py": (f"{_TESTS}/waits/test_poll_evidence.py", *_WAITS),
    f"{_CORE}/waits/tracker.py": (f"{_TESTS}/waits/test_binding.py", *_WAITS),
    f"{_CORE}/waits/wait.py": _WAITS,
    f"{_CORE}/waits/export_wait.py": (f"{_TESTS}/waits/test_export_wait.py",),
    f"{_CORE}/waits/stop_policy.py": (f"{_TESTS}/waits/test_poll_watchdog.py", f"{_TESTS}/waits/test_stop_policy.py"),
    f"{_CORE}/callouts/verify.py": (f"{_TESTS}/callouts/test_verify.py", f"{_TESTS}/callouts/test_probe.py"),
    f"{_CORE}/zuora/refusals.py": (
        f"{_TESTS}/zuora/test_refusals.py",
        f"{_TESTS}/zuora/test_flow.py",
        f"{_TESTS}/zuora/test_requests.py",
    ),
}
"""The modules that are changed, and the test files that bind each: no databases or processes, the fastest first."""

QUICK: Final = "quick"
FULL: Final = "full"
"""Profiles of Hypothesis."""
TIME: Final = "time"

_COMPARED: Final[Mapping[type[ast.cmpop], tuple[type[ast.cmpop], ...]]] = {
    ast.Lt: (ast.LtE, ast.GtE),
    ast.LtE: (ast.Lt, ast.Gt),
    ast.Gt: (ast.GtE, ast.LtE),
    ast.GtE: (ast.Gt, ast.Lt),
    ast.Eq: (ast.NotEq,),
    ast.NotEq: (ast.Eq,),
    ast.Is: (ast.IsNot,),
    ast.IsNot: (ast.Is,),
    ast.In: (ast.NotIn,),
    ast.NotIn: (ast.In,),
}
_CALLED: Final = {"min": "max", "max": "min", "any": "all", "all": "any"}
_UNCHANGED_FIELDS: Final = {"annotation", "returns", "decorator_list", "bases", "keywords", "type_params"}
_UNCHANGED_NAMES: Final = {"__slots__", "__all__"}
_PLUGINS: Final = ("pytest_asyncio.plugin", "_hypothesis_pytestplugin")
# Processes that have imported what all tests import: half of the time of most tests.
_FORKS: Final = multiprocessing.get_context("forkserver")
_FORKS.set_forkserver_preload(["pytest", "hypothesis.strategies", "hypothesis.internal.conjecture.engine", *_PLUGINS])
_LOGS: Final = {"log", "_log", "logger", "logging", "warnings"}


class Change(NamedTuple):
    """One change of a syntax tree: what stands in a field of a node, or at a place of its list, is replaced."""

    parent: ast.AST
    field: str
    place: int | None
    old: ast.AST
    new: ast.AST

    def make(self) -> None:
        if self.place is None:
            setattr(self.parent, self.field, self.new)
        else:
            getattr(self.parent, self.field)[self.place] = self.new


def changes(node: ast.AST, enums: Mapping[str, Sequence[str]], function: ast.AST | None = None) -> Iterator[Change]:
    """Return all changes of a tree, always in the same order.

    :param enums: the members of the enums, by class
    :param function: the function that the node is in
    """
    if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
        function = node
    for name, value in ast.iter_fields(node):
        if name in _UNCHANGED_FIELDS and not isinstance(node, ast.Call):
            continue
        for place, child in enumerate(value) if isinstance(value, list) else ((None, value),):
            if not isinstance(child, ast.AST) or _is_unchanged(child):
                continue
            new: Iterable[ast.AST] = _expressions(child, enums) if isinstance(child, ast.expr) else ()
            if isinstance(child, ast.stmt):
                new = _statements(child, function, conditional=isinstance(node, ast.If))
            elif name == "test" and not isinstance(child, ast.Compare | ast.BoolOp | ast.UnaryOp):
                new = (*new, _negated(child))
            yield from (Change(node, name, place, child, each) for each in new)
            yield from changes(child, enums, function)


def _is_unchanged(node: ast.AST) -> bool:
    if isinstance(node, ast.JoinedStr):
        return True
    if isinstance(node, ast.If):
        return ast.unparse(node.test).endswith("TYPE_CHECKING")
    if isinstance(node, ast.Assign):
        return any(isinstance(each, ast.Name) and each.id in _UNCHANGED_NAMES for each in node.targets)
    return isinstance(node, ast.Call) and not _LOGS.isdisjoint(ast.unparse(node.func).split("."))


def _negated(node: ast.expr) -> ast.expr:
    return ast.UnaryOp(ast.Not(), node)


def _expressions(node: ast.expr, enums: Mapping[str, Sequence[str]]) -> Iterator[ast.expr]:
    match node:
        case ast.Compare(left=left, ops=ops, comparators=comparators):
            for place, op in enumerate(ops):
                for other in _COMPARED[type(op)]:
                    yield ast.Compare(left, [*ops[:place], other(), *ops[place + 1 :]], comparators)
        case ast.BoolOp(op=op, values=values):
            yield ast.BoolOp(ast.Or() if isinstance(op, ast.And) else ast.And(), values)
        case ast.UnaryOp(op=ast.Not(), operand=operand):
            yield operand
        case ast.IfExp(test=test, body=body, orelse=orelse):
            yield ast.IfExp(test, orelse, body)
        case ast.BinOp(left=left, op=ast.Add() | ast.Sub() as op, right=right):
            if not (_is_sequence(left) or _is_sequence(right)):
                yield ast.BinOp(left, ast.Sub() if isinstance(op, ast.Add) else ast.Add(), right)
        case ast.Constant(value=bool() as value):
            yield ast.Constant(not value)
        case ast.Constant(value=int() | float() as value):
            yield from (ast.Constant(value + 1), ast.Constant(value - 1))
        case ast.Call(func=ast.Name(id=name), args=args, keywords=keywords) if name in _CALLED:
            yield ast.Call(ast.Name(_CALLED[name]), args, keywords)
        case ast.Attribute(value=ast.Name(id=name), attr=member) if member in enums.get(name, ()):
            members = enums[name]
            yield ast.Attribute(node.value, members[(members.index(member) + 1) % len(members)])


def _is_sequence(node: ast.expr) -> bool:
    """Return whether it is a text or a list, from which nothing can be subtracted."""
    if isinstance(node, ast.Constant):
        return isinstance(node.value, str | bytes)
    return isinstance(node, ast.List | ast.Tuple | ast.JoinedStr)


def _statements(node: ast.stmt, function: ast.AST | None, *, conditional: bool) -> Iterator[ast.stmt]:
    """Return what may stand instead of a statement.

    :param conditional: whether it is in the body of an ``if``
    """
    match node:
        case ast.Return(value=ast.expr() as value):
            if isinstance(function, ast.FunctionDef) and function.returns and ast.unparse(function.returns) == "bool":
                yield ast.Return(_negated(value))
            elif not isinstance(value, ast.Constant) or value.value:
                yield ast.Return(ast.Constant(None))
        case ast.Continue():
            yield ast.Break()
    simple = ast.Return | ast.Raise | ast.Continue | ast.Assign | ast.AugAssign | ast.AnnAssign
    called = isinstance(node, ast.Expr) and isinstance(node.value, ast.Call) and not _is_unchanged(node.value)
    # Without an attribute that __init__ sets every test fails.
    stored = isinstance(node, ast.Assign) and any(
        isinstance(part, ast.Attribute) for target in node.targets for part in ast.walk(target)
    )
    stored = stored and isinstance(function, ast.FunctionDef) and function.name != "__init__"
    if called or stored or isinstance(node, ast.AugAssign) or (conditional and isinstance(node, simple)):
        yield ast.Pass()


def enums_in(folder: Path) -> dict[str, list[str]]:
    """Return the members of all enums that the modules in a folder define, by class."""
    return {
        each.name: [target.id for part in each.body if isinstance(part, ast.Assign) for target in part.targets]
        for path in sorted(folder.rglob("*.py"))
        for each in ast.walk(ast.parse(path.read_text()))
        if isinstance(each, ast.ClassDef) and any(ast.unparse(base).endswith("Enum") for base in each.bases)
    }


@dataclass(frozen=True, slots=True)
class Mutant:
    """A module with one change.

    :param module: its path
    :param line: where the change is
    :param change: what was there, and what is there now
    :param source: the whole module
    """

    module: str
    line: int
    change: str
    source: str

    def __str__(self) -> str:
        return f"{self.module}:{self.line}: {self.change}"


def mutant(module: str, text: str, enums: Mapping[str, Sequence[str]], number: int) -> Mutant:
    """Return a module with one of its changes."""
    tree = ast.parse(text)
    change = next(islice(changes(tree, enums), number, None))
    made = f"{_shown(change.old)} -> {_shown(change.new)}"
    if isinstance(change.old, ast.Constant):
        made += f" in {_shown(change.parent)}"
    line = next(node.lineno for node in (change.old, change.parent) if hasattr(node, "lineno"))
    change.make()
    return Mutant(module, line, made, ast.unparse(ast.fix_missing_locations(tree)))


def _shown(node: ast.AST) -> str:
    text = " ".join(ast.unparse(node).split())
    return text if len(text) <= 90 else f"{text[:87]}..."


def sample(tree: Path, modules: Iterable[str], seed: int, size: int) -> list[Mutant]:
    """Draw mutants from those of all modules; a change of one module does not replace the mutants of another."""
    enums = enums_in(tree / PACKAGE)
    texts = {module: (tree / module).read_text() for module in modules}
    places = [
        (module, number) for module, text in texts.items() for number, _ in enumerate(changes(ast.parse(text), enums))
    ]
    drawn = sorted(places, key=lambda place: hashlib.sha256(f"{seed} {place}".encode()).digest())[:size]
    print(f"{len(drawn)} of {len(places)} mutants, seed {seed}", flush=True)
    return [mutant(module, texts[module], enums, number) for module, number in sorted(drawn)]


class Copy:
    """A copy of the tree, in which one mutant at a time is tested."""

    def __init__(self, tree: Path, folder: Path, seconds: int) -> None:
        self._folder = folder
        self._root = folder / "tree"
        self._seconds = seconds
        self._times = count(1)
        shutil.copytree(tree, self._root, ignore=shutil.ignore_patterns(".*", "__pycache__", "build", "dist"))

    def fate(self, mutant: Mutant, tests: Sequence[str], profile: str) -> str:
        """Return what killed a mutant; empty where nothing did."""
        path = self._root / mutant.module
        original = path.read_text()
        path.write_text(mutant.source)
        # Python takes the bytecode of the mutant before where a file has its size and time.
        os.utime(path, (at := next(self._times), at))
        try:
            return self.failure(tests, profile)
        finally:
            path.write_text(original)

    def failure(self, tests: Sequence[str], profile: str) -> str:
        """Run tests, and return how they failed; empty where they passed."""
        # Examples that failed before would make the result depend on the order of the mutants.
        shutil.rmtree(self._root / ".hypothesis" / "examples", ignore_errors=True)
        options = ["-x", "-q", "--tb=line", "-pno:cacheprovider", *(f"-p{plugin}" for plugin in _PLUGINS)]
        options += ["-m", "not services" + " and hypothesis" * (profile == FULL)]
        options += [f"--hypothesis-profile={profile}", "--hypothesis-seed=0"]
        seconds = self._seconds if profile == QUICK else 3 * self._seconds
        process = _FORKS.Process(target=_run_pytest, args=(self._folder, seconds, [*options, *tests]))
        process.start()
        process.join()
        if process.exitcode == -signal.SIGXCPU:
            return TIME
        if process.exitcode in (0, 5):
            return ""
        output = (self._folder / "output").read_text()
        if process.exitcode in (1, 2):
            return next((line for line in output.splitlines() if line.startswith(("FAILED ", "ERROR "))), output)
        raise RuntimeError(f"pytest ended with {process.exitcode}:\n{output}")


def _run_pytest(folder: Path, seconds: int, arguments: list[str]) -> NoReturn:
    """Run pytest in a copy of the tree, in this process, which must import nothing from the tree itself."""
    # Processor time: on a busy machine a test takes longer, and is no loop for that.
    resource.setrlimit(resource.RLIMIT_CPU, (seconds, resource.RLIM_INFINITY))
    with (folder / "output").open("w") as output:
        os.dup2(output.fileno(), 1)
        os.dup2(output.fileno(), 2)
    root = folder / "tree"
    os.chdir(root)
    os.environ |= {
        "PYTHONPATH": str(root),
        "TMPDIR": str(folder),
        "AIRFLOW_HOME": str(folder / "airflow"),
        "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1",
    }
    sys.path[:] = [str(root), *(path for path in sys.path if Path(path).resolve() != ROOT)]
    for name in [name for name in sys.modules if name.partition(".")[0] == "tests"]:
        del sys.modules[name]
    import pytest

    code = pytest.main(arguments)
    sys.stdout.flush()
    os._exit(code)


def run(
    tree: Path, core: Mapping[str, Sequence[str]], mutants: Sequence[Mutant], *, jobs: int = 2, seconds: int = 120
) -> list[tuple[Mutant, str]]:
    """Test mutants, and return what killed each; empty where nothing did.

    :param tree: the folder with modules and tests
    :param core: the modules, and the test files of each
    :param jobs: how many are tested at a time
    :param seconds: of processor time, in which tests must end; thrice as many for all random examples
    :raises RuntimeError: tests fail without a mutant
    """
    fates = dict.fromkeys(mutants, "")
    with tempfile.TemporaryDirectory(prefix="mutants-") as scratch, ThreadPoolExecutor(jobs) as pool:
        copies: queue.SimpleQueue[Copy] = queue.SimpleQueue()
        for job in range(jobs):
            copies.put(copy := Copy(tree, Path(scratch, str(job)), seconds))

        def test(profile: str, mutant: Mutant) -> str:
            copy = copies.get()
            try:
                return copy.fate(mutant, core[mutant.module], profile)
            finally:
                copies.put(copy)

        for profile in (QUICK, FULL):
            left = [mutant for mutant, fate in fates.items() if not fate]
            print(f"{profile}: {len(left)} mutants", flush=True)
            tests = dict.fromkeys(each for mutant in left for each in core[mutant.module])
            if tests and (failure := copy.failure([*tests], profile)):
                raise RuntimeError(f"without a mutant, tests fail: {failure}")
            for mutant, fate in zip(left, pool.map(test, repeat(profile), left), strict=False):
                fates[mutant] = fate
                print(f"killed: {mutant}\n  by {fate}" if fate else f"survived: {mutant}", flush=True)
    return list(fates.items())


def table(fates: Iterable[tuple[Mutant, str]]) -> str:
    """Return how many mutants of each module were killed, and those that were not, as text."""
    by_module: dict[str, list[tuple[Mutant, str]]] = {}
    for mutant, fate in fates:
        by_module.setdefault(mutant.module, []).append((mutant, fate))
    lines = [f"{'module':<72} mutants  killed  by time"]
    for module, each in by_module.items():
        killed = [fate for _, fate in each if fate]
        lines.append(f"{module:<72} {len(each):>7} {len(killed):>7} {killed.count(TIME):>8}")
        lines += [f"  survived: {mutant.line}: {mutant.change}" for mutant, fate in each if not fate]
    return "\n".join(lines)


def main(argv: list[str] | None = None) -> int:
    options = argparse.ArgumentParser(prog="python -m tests.mutation", description=__doc__)
    options.add_argument("--seed", type=int, default=1)
    options.add_argument("--mutants", type=int, default=150, help="how many are drawn")
    options.add_argument("--only", default="", help="test only those of the drawn ones whose line here has this text")
    options.add_argument("--jobs", type=int, default=2, help="how many are tested at a time")
    options.add_argument(
        "--seconds", type=int, default=120, help="of processor time, in which a mutant's tests must end"
    )
    options.add_argument("--least", type=float, default=90, help="percent of the mutants that must be killed")
    options.add_argument("--list", action="store_true", help="list the mutants, and test none")
    given = options.parse_args(argv)
    mutants = [each for each in sample(ROOT, CORE, given.seed, given.mutants) if given.only in str(each)]
    if given.list or not mutants:
        print(*mutants, sep="\n")
        return 0
    os.nice(5)
    begin = monotonic()
    fates = run(ROOT, CORE, mutants, jobs=given.jobs, seconds=given.seconds)
    killed = sum(1 for _, fate in fates if fate)
    percent = 100 * killed / len(fates)
    print(f"\n{table(fates)}\n")
    print(f"{killed} of {len(fates)} killed ({percent:.1f} %) in {(monotonic() - begin) / 60:.1f} minutes")
    return 0 if percent >= given.least else 1


if __name__ == "__main__":
    sys.exit(main())
