"""The examples in the documents work, links have targets, and what they quote and list is in the code."""

from __future__ import annotations

import ast
import configparser
import inspect
import re
import subprocess
import tomllib
from datetime import timedelta
from functools import cache
from importlib import import_module
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from textwrap import dedent
from typing import TYPE_CHECKING, Any

import pytest
import yaml
from airflow.cli.cli_config import GroupCommand
from airflow.sdk import DAG
from airflow.sdk.exceptions import AirflowFailException

from airflow_mediation_provider import exceptions, get_provider_info
from airflow_mediation_provider.assets import on_meter_session
from airflow_mediation_provider.cli import get_cli_commands
from airflow_mediation_provider.hooks.settings import KNOWN_EXTRA
from airflow_mediation_provider.journal.manager import MediationDBManager
from airflow_mediation_provider.operators.meter import RunMeterOperator
from airflow_mediation_provider.protocol.callouts.settings import CALLOUT_EXTRA
from airflow_mediation_provider.protocol.zuora.errors import is_final
from demo.scenes import SCENES

if TYPE_CHECKING:
    from collections.abc import Iterator

ROOT = Path(__file__).parents[2]
EXAMPLES = sorted((ROOT / "dags").glob("*.py"))
DOCUMENTS = [*sorted(ROOT.glob("*.md")), *sorted((ROOT / "docs").rglob("*.md"))]
PACKAGE = ROOT / "airflow_mediation_provider"
FROZEN = tomllib.loads((ROOT / "tests" / "unit" / "frozen_names.toml").read_text())
OPERATORS = [name for name in FROZEN["dags"] if re.match(r"(operators|sensors)\.", name)]
# Stands for what a text of the code, or of a document, leaves open.
OPEN = "\0"


def dags_of(path: Path) -> list[DAG]:
    spec = spec_from_file_location(path.stem, path)
    assert spec is not None
    assert spec.loader is not None
    module = module_from_spec(spec)
    seen: list[DAG] = []
    original = DAG.__init__

    def remember(self: DAG, *args: object, **kwargs: object) -> None:
        seen.append(self)
        original(self, *args, **kwargs)  # type: ignore[arg-type]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(DAG, "__init__", remember)
        spec.loader.exec_module(module)
    return seen


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.stem)
def test_each_example_is_one_documented_dag_named_as_its_file(path: Path) -> None:
    (dag,) = dags_of(path)
    assert dag.dag_id == path.stem
    assert dag.doc_md
    assert dag.doc_md.strip().splitlines()[0].endswith(".")
    assert dag.task_ids


def test_the_demo_runs_each_example() -> None:
    not_played = {"usage_batch", "reconcile_callouts", "read_callout_history", "prune_journal"}
    assert {scene.dag_id for scene in SCENES} | not_played == {path.stem for path in EXAMPLES}


def test_the_readme_has_two_dags_of_ten_lines(tmp_path: Path) -> None:
    sources = re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(), re.DOTALL)
    dags = []
    for number, source in enumerate(sources):
        assert len([line for line in source.splitlines() if line.strip()]) <= 11
        file = tmp_path / f"readme_{number}.py"
        file.write_text(source)
        dags += dags_of(file)
    hourly, each_session = dags
    assert hourly.task_dict["branch"].downstream_task_ids == {"load"}
    assert {asset.uri for asset in each_session.timetable.asset_condition.objects} == {
        f"mediation://mediation_default/meters/{meter}/COMPLETED" for meter in ("1001", "1002")
    }


def blocks(language: str) -> list[Any]:
    """Return the blocks of code in all documents, but those of a page whose tests run them as a project."""
    return [
        pytest.param(dedent(found[2]), id=f"{document.stem}-{number}")
        for document in DOCUMENTS
        if document.stem != "testing"
        for number, found in enumerate(
            re.finditer(rf"^( *)```{language}\n(.*?)^\1```", document.read_text(), re.DOTALL | re.MULTILINE)
        )
    ]


@pytest.mark.parametrize("source", blocks("python"))
def test_each_python_block_of_the_documents_is_run(source: str, tmp_path: Path) -> None:
    file = tmp_path / "block.py"
    file.write_text(source)
    assert len(dags_of(file)) == source.count("@dag(")


@pytest.mark.parametrize("source", blocks("yaml"))
def test_each_yaml_block_of_the_documents_is_read(source: str) -> None:
    assert isinstance(yaml.safe_load(source), dict)


@pytest.mark.parametrize("source", blocks("ini"))
def test_each_ini_block_of_the_documents_is_read(source: str) -> None:
    parser = configparser.ConfigParser()
    parser.read_string(source)
    assert parser.sections()


def test_the_dags_of_the_page_about_alerts_are_dags(tmp_path: Path) -> None:
    sources = re.findall(r"```python\n(.*?)```", (ROOT / "docs" / "alerts.md").read_text(), re.DOTALL)
    dags = []
    for number, source in enumerate(sources):
        file = tmp_path / f"alerts_{number}.py"
        file.write_text(source)
        dags += dags_of(file)
    hourly, nightly = dags
    assert hourly.get_task("run").on_failure_callback[0].__name__ == "mail"
    (deadline,) = nightly.deadline
    assert deadline.interval == timedelta(hours=6)
    assert deadline.callback.path.endswith(".SmtpNotifier")


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)
def test_each_link_of_a_document_has_a_target(document: Path) -> None:
    targets = re.findall(r"\]\((?!https?://|#)([^)\s]+)\)", document.read_text())
    assert [each for each in targets if not (document.parent / each.partition("#")[0]).exists()] == []


def anchors(document: Path) -> set[str]:
    """Return the anchors of a document: its headings, in small letters with hyphens."""
    text = re.sub(r"^```.*?^```", "", document.read_text(), flags=re.DOTALL | re.MULTILINE)
    headings = re.findall(r"^#+ (.+)$", text, re.MULTILINE)
    return {re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)
def test_each_anchor_of_a_link_is_a_heading(document: Path) -> None:
    targets = re.findall(r"\]\((?!https?://)([^)\s]*\.md)?#([^)\s]+)\)", document.read_text())
    assert [each for each in targets if each[1] not in anchors(document.parent / (each[0] or document.name))] == []


def test_each_decision_has_an_id_a_date_and_a_place_in_the_table() -> None:
    decisions: dict[str, list[str]] = {}
    listed: dict[str, list[str]] = {}
    for line in (ROOT / "docs" / "decisions.md").read_text().splitlines():
        if row := re.fullmatch(r"\| \[(.+)\]\(#.+\) \| (.+) \|", line):
            listed[row[1]] = row[2].split(", ")
        elif line.startswith("## "):
            subject = line.removeprefix("## ")
            decisions[subject] = []
        elif line.startswith("### "):
            heading = re.fullmatch(r"### (D\d+)\. .+ \(\d{4}-\d\d-\d\d\)", line)
            assert heading is not None, line
            decisions[subject].append(heading[1])
    assert decisions == listed
    numbers = [each for ids in decisions.values() for each in ids]
    assert len(numbers) == len(set(numbers))


def test_the_make_targets_in_the_readme_exist() -> None:
    named = set(re.findall(r"\bmake ([a-z]+)\b", (ROOT / "README.md").read_text()))
    there = set(re.findall(r"^([a-z]+):.*##", (ROOT / "Makefile").read_text(), re.MULTILINE))
    assert {"demo", "test"} <= named & there


def test_the_paths_in_contributing_exist() -> None:
    named = re.findall(r"`([a-z_]+/[\w./-]+|[\w.-]+\.(?:md|yaml|toml))`", (ROOT / "CONTRIBUTING.md").read_text())
    assert [path for path in named if not (ROOT / path).exists()] == []


def test_pre_commit_runs_what_make_lint_runs() -> None:
    recipe = re.search(r"^lint: .*\n((?:\t.*\n)+)", (ROOT / "Makefile").read_text(), re.MULTILINE)
    assert recipe is not None
    hooks = yaml.safe_load((ROOT / ".pre-commit-config.yaml").read_text())["repos"][0]["hooks"]
    lines = [line.strip().removeprefix("@$(MODESTLY) ") for line in recipe[1].splitlines()]
    commands = [line.replace("$(BIN)", ".venv/bin") for line in lines]
    assert [hook["entry"] for hook in hooks] == commands


@pytest.mark.parametrize("version", ["3.2", "3.2-lowest", "3.3"])
def test_constraints_contain_only_names_and_versions(version: str) -> None:
    lines = (ROOT / "constraints" / f"airflow-{version}.txt").read_text().splitlines()
    assert all(re.fullmatch(r"[a-z0-9._-]+==[^\s;]+( ; [a-z_]+ [^/]+)?", line) for line in lines)
    assert any(line.startswith(f"apache-airflow=={version.partition('-')[0]}.") for line in lines)


# -- the documentation as a site -----------------------------------------------------------------------------------


def test_each_page_is_in_the_table_of_contents_once() -> None:
    index = ROOT / "docs" / "index.md"
    toctrees = re.findall(r"```\{toctree\}\n(.*?)```", index.read_text(), re.DOTALL)
    entries = [
        line.rpartition("<")[2].rstrip(">")
        for toctree in toctrees
        for line in toctree.splitlines()
        if line and not line.startswith(":")
    ]
    pages = {*DOCUMENTS, *(ROOT / "docs" / "reference").glob("*.rst")} - {index}
    assert len(entries) == len(set(entries))
    assert {(index.parent / each).resolve() for each in entries} == {page.with_suffix("") for page in pages}
    # What users do not read comes last.
    assert "benchmarks" in toctrees[-1]
    assert "decisions" in toctrees[-1]


def test_each_included_text_exists() -> None:
    included = []
    for document in DOCUMENTS:
        for target, options in re.findall(
            r"```\{(?:literal)?include\} (\S+)\n(.*?)```", document.read_text(), re.DOTALL
        ):
            source = (document.parent / target).read_text()
            included.append(target)
            for marker in re.findall(r':(?:start|end)-(?:after|at|before): "(.+)"', options):
                assert source.count(marker) == 1, (document.name, marker)
    assert len(included) > 10


def operator_of(name: str) -> Any:
    module, _, operator = name.rpartition(".")
    return getattr(import_module(f"{PACKAGE.name}.{module}"), operator)


@pytest.mark.parametrize("name", OPERATORS)
def test_the_docstring_of_each_operator_has_an_example(name: str) -> None:
    operator = operator_of(name)
    examples = re.findall(
        rf"^    +(?:with DAG.*\n +)?{operator.__name__}\(.*\)$", inspect.getdoc(operator) or "", re.MULTILINE
    )
    assert examples
    for example in examples:
        with DAG("of_docstring", schedule=None):
            run = RunMeterOperator(task_id="before", meter_id="1001")
            names = {operator.__name__: operator, "run": run, "timedelta": timedelta, "DAG": DAG}
            exec(dedent(example), names)


@pytest.mark.parametrize("name", OPERATORS)
def test_the_reference_has_each_operator(name: str) -> None:
    operator = operator_of(name)
    reference = (ROOT / "docs" / "reference" / "operators.rst").read_text()
    assert f".. autoclass:: {operator.__module__}.{operator.__name__}\n" in reference


def test_the_signature_of_a_schedule_is_the_one_in_its_page() -> None:
    shown = re.search(
        r"```text\n(on_meter_session\(.*?\))\n```", (ROOT / "docs" / "schedules.md").read_text(), re.DOTALL
    )
    assert shown is not None
    parameters = [
        each.replace(annotation=inspect.Parameter.empty)
        for each in inspect.signature(on_meter_session).parameters.values()
    ]
    expected = str(inspect.Signature(parameters)).replace("'", '"')
    assert (
        re.sub(r",?\s+\)", ")", re.sub(r"\(\s+", "(", re.sub(r",\s+", ", ", shown[1]))) == f"on_meter_session{expected}"
    )


def cells(page: str) -> list[list[str]]:
    """Return the rows of all tables of a page."""
    rows = re.findall(r"^\| (.*) \|$", (ROOT / "docs" / page).read_text(), re.MULTILINE)
    return [[cell.strip() for cell in re.split(r" ?(?<!\\)\| ", row)] for row in rows]


def commands() -> Iterator[tuple[str, list[str]]]:
    """Return the commands of the package with their options, long ones alone."""

    def walk(prefix: str, each: Any) -> Iterator[tuple[str, list[str]]]:
        path = f"{prefix} {each.name}"
        if isinstance(each, GroupCommand):
            for below in each.subcommands:
                yield from walk(path, below)
        else:
            yield path, [flag for arg in each.args for flag in arg.flags if flag.startswith("--")]

    for each in get_cli_commands():
        yield from walk("airflow", each)


def test_the_page_of_the_commands_has_each_command_and_option() -> None:
    listed = {
        row[0].strip("`"): re.findall(r"`(--[a-z-]+)`", row[1])
        for row in cells("reference/commands.md")
        if row[0].startswith("`airflow ")
    }
    assert listed == dict(commands())


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)
def test_each_command_in_a_document_exists(document: Path) -> None:
    known = {tuple(path.split()[2:]): set(options) for path, options in commands()}
    text = re.sub(r"\\\n", " ", document.read_text())
    for words in re.findall(r"airflow mediation ([a-z][a-z-]+(?: [^\n`|;,()]*)?)", text):
        named, *rest = words.split()
        path = (named, rest[0]) if named == "db" and rest else (named,)
        if path != ("db",):
            assert path in known, words
            assert set(re.findall(r"(?<=\s)--[a-z-]+", words)) <= known[path], words


@pytest.mark.services
@pytest.mark.parametrize("source", [*blocks("bash"), *blocks("console")])
def test_each_block_of_a_shell_is_read_by_it(source: str) -> None:
    script = re.sub(r"^\$ ", "", source, flags=re.MULTILINE)
    read = subprocess.run(["bash", "-n"], input=script, capture_output=True, text=True, check=False)
    assert (read.returncode, read.stderr) == (0, "")


def test_the_page_of_the_connection_has_each_key() -> None:
    listed = {key for row in cells("connection.md") for key in re.findall(r"`([a-z_]+)`", row[0])}
    assert listed >= KNOWN_EXTRA - CALLOUT_EXTRA
    described = {key for row in cells("callouts.md") for key in re.findall(r"`(callout_[a-z_]+)`", row[0])}
    assert described == CALLOUT_EXTRA


def test_the_page_of_the_connection_has_each_option_with_its_default() -> None:
    listed = {row[0].strip("`"): row[1] for row in cells("connection.md")}
    for option, of_option in get_provider_info()["config"]["mediation"]["options"].items():
        assert listed[option] == (of_option["default"] or listed[option])


def test_the_page_about_upgrades_has_the_revision_of_each_version() -> None:
    rows = {row[0]: row[1].strip("`") for row in cells("upgrade.md")}
    assert {version: rows.get(version) for version in MediationDBManager.revision_heads_map} == (
        MediationDBManager.revision_heads_map
    )


# -- messages ----------------------------------------------------------------------------------------------------------


def texts(tree: ast.AST) -> Iterator[str]:
    """Return the texts of a module, with ``OPEN`` in place of what is filled in."""
    within = {id(part) for node in ast.walk(tree) if isinstance(node, ast.JoinedStr) for part in node.values}
    for node in ast.walk(tree):
        if isinstance(node, ast.JoinedStr):
            yield "".join(str(part.value) if isinstance(part, ast.Constant) else OPEN for part in node.values)
        elif isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in within:
            yield re.sub(r"%[.\d]*[srdfg]|\{\w+\}", OPEN, node.value)


@cache
def texts_of_the_code() -> str:
    """Return all texts of the package; a line break stands between two, and a docstring has no part in it."""
    modules = [ast.parse(file.read_text()) for file in sorted(PACKAGE.rglob("*.py"))]
    for node in (node for module in modules for node in ast.walk(module)):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef) and ast.get_docstring(
            node
        ):
            del node.body[0]
    return "\n".join(text.replace("\n", " ") for module in modules for text in texts(module)).lower()


def pieces(message: str) -> list[str]:
    """Return what a quoted message has between the parts that it leaves open."""
    return [piece for piece in (each.strip(" ':,.()").lower() for each in message.split("...")) if piece]


def quoted_messages() -> list[str]:
    """Return the messages that the page about troubleshooting quotes: each has a blank, unlike names and settings."""
    page = (ROOT / "docs" / "troubleshooting.md").read_text()
    columns = [row[0] for row in cells("troubleshooting.md")]
    columns += re.findall(r"^- (.*)$", page, re.MULTILINE) + re.findall(
        r"^(`Connection .*`) and one", page, re.MULTILINE
    )
    return [each for column in columns for each in re.findall(r"`([^`]+)`", column) if " " in each]


@pytest.mark.parametrize("message", quoted_messages())
def test_each_quoted_message_is_in_the_code(message: str) -> None:
    assert max(map(len, pieces(message))) >= 8
    assert [piece for piece in pieces(message) if piece not in texts_of_the_code()] == []


def test_a_message_that_the_code_does_not_have_is_found() -> None:
    assert len(quoted_messages()) > 50
    assert "the deadline was reached at" not in texts_of_the_code()
    assert "one sentence for the user" not in texts_of_the_code()  # of a docstring


def test_troubleshooting_names_each_class_of_error() -> None:
    page = (ROOT / "docs" / "troubleshooting.md").read_text()
    classes = [name for name in exceptions.__all__ if inspect.isclass(getattr(exceptions, name))]
    assert len(classes) > 15
    assert [name for name in classes if f"`{name}`" not in page] == []


def test_troubleshooting_has_which_errors_are_retried() -> None:
    checked = 0
    for row in cells("troubleshooting.md"):
        names = re.findall(r"`(\w+)`", row[1]) if len(row) == 4 else []
        if len(names) == 1 and (error := getattr(exceptions, names[0], None)) is not None:
            retried = not (issubclass(error, AirflowFailException) or is_final(error("")))
            assert row[3].startswith("yes" if retried else "no"), row
            checked += 1
    assert checked > 20


def red_statements() -> Iterator[str]:
    """Return the texts of the statements of the health line that can be red."""
    tree = ast.parse((PACKAGE / "api_server" / "pages" / "health.py").read_text())
    for function in (node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef)):
        assigned = [
            (node.targets[0].id, node.lineno, node.value)
            for node in ast.walk(function)
            if isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Name)
        ]
        for node in ast.walk(function):
            if isinstance(node, ast.Call) and ast.unparse(node.func) == "HealthItem":
                # An argument may be a variable, which was assigned before.
                level, text = (
                    max(
                        (
                            (line, value)
                            for name, line, value in assigned
                            if name == ast.unparse(each) and line < node.lineno
                        ),
                        default=(0, each),
                        key=lambda found: found[0],
                    )[1]
                    for each in node.args[:2]
                )
                if re.search(r"\bBAD\b", ast.unparse(level)):
                    yield max(OPEN.join(texts(text)).split(OPEN), key=len) or ast.unparse(text)


def test_each_red_statement_of_the_health_line_is_explained() -> None:
    found = list(red_statements())
    assert len(found) >= 10
    explained = [piece for message in quoted_messages() for piece in pieces(message)]
    # What the calls of a day amount to is written elsewhere.
    missing = [
        each
        for each in found
        if each != "stands.words"
        and not any(piece in each.lower() or each.lower().strip() in piece for piece in explained)
    ]
    assert missing == []
