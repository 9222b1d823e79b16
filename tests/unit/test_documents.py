"""The README's examples work, links have targets, and the example Dags are complete."""

from __future__ import annotations

import re
from datetime import timedelta
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path

import pytest
import yaml
from airflow.sdk import DAG

from demo.scenes import SCENES

ROOT = Path(__file__).parents[2]
EXAMPLES = sorted((ROOT / "dags").glob("*.py"))
DOCUMENTS = [*sorted(ROOT.glob("*.md")), *sorted((ROOT / "docs").glob("*.md"))]


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
