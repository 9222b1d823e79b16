"""What the README shows works, and what it links to is there; the example DAGs are whole."""

from __future__ import annotations

import re
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path

import pytest
from airflow.sdk import DAG

from demo.scenes import SCENES

ROOT = Path(__file__).parents[2]
EXAMPLES = sorted((ROOT / "dags").glob("*.py"))
DOCUMENTS = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]


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
def test_each_example_is_one_dag_named_as_its_file_that_says_what_it_shows(path: Path) -> None:
    (dag,) = dags_of(path)
    assert dag.dag_id == path.stem
    assert dag.doc_md
    assert dag.doc_md.strip().splitlines()[0].endswith(".")
    assert dag.task_ids


def test_the_demo_plays_each_example() -> None:
    not_played = {"usage_batch", "reconcile_callouts", "prune_journal"}
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


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)
def test_each_link_of_a_document_leads_somewhere(document: Path) -> None:
    targets = re.findall(r"\]\((?!https?://|#)([^)\s]+)\)", document.read_text())
    assert [each for each in targets if not (document.parent / each.partition("#")[0]).exists()] == []


def test_the_readme_names_the_make_targets_that_there_are() -> None:
    named = set(re.findall(r"\bmake ([a-z]+)\b", (ROOT / "README.md").read_text()))
    there = set(re.findall(r"^([a-z]+):.*##", (ROOT / "Makefile").read_text(), re.MULTILINE))
    assert {"demo", "test"} <= named & there


@pytest.mark.parametrize("version", ["3.2", "3.3"])
def test_constraints_are_names_and_versions_alone(version: str) -> None:
    lines = (ROOT / "constraints" / f"airflow-{version}.txt").read_text().splitlines()
    assert all(re.fullmatch(r"[a-z0-9._-]+==[^\s;]+( ; [a-z_]+ [^/]+)?", line) for line in lines)
    assert any(line.startswith(f"apache-airflow=={version}.") for line in lines)
