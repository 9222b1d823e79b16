from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import pytest

from airflow_mediation_provider.simulator import MeterConfig, SimulatorConfig, demo_meters
from airflow_mediation_provider.simulator.config import Step, parse_script

if TYPE_CHECKING:
    from pathlib import Path


def test_a_script_accepts_names_codes_and_undocumented_codes() -> None:
    steps = parse_script([["running", 1], [10, 0], ["14", 2.5], ("COMPLETED", None)])
    assert steps == (Step("RUNNING", 1), Step("INITIALIZING", 0), Step("14", 2.5), Step("COMPLETED", None))


@pytest.mark.parametrize(
    ("script", "named"),
    [
        ([], "at least one step"),
        (["RUNNING"], "each step is"),
        ([["RUNNING"]], "each step is"),
        ([["CANCELT", 1]], "CANCELED"),
        ([["RUNNING", -1]], "seconds of RUNNING"),
        ([["RUNNING", "1"]], "seconds of RUNNING"),
        ([["RUNNING", True]], "seconds of RUNNING"),
        ([["", 1]], "empty"),
    ],
)
def test_the_error_of_a_wrong_script_names_the_cause(script: list[Any], named: str) -> None:
    with pytest.raises(ValueError, match=named):
        parse_script(script)


@pytest.mark.parametrize(
    ("settings", "named"),
    [
        ({"id": "abc"}, "digits"),
        ({"id": "1", "runs": []}, "at least one run"),
        ({"id": "1", "colour": "red"}, "unknown setting colour"),
        ({"id": "1", "status_of": "oldest"}, "oldest_live"),
        ({"id": "1", "resume": "maybe"}, "resume"),
        ({"id": "1", "stale_for": -1}, "stale_for"),
        ({"id": "1", "stop_results": ["STOPPED"]}, "unknown status"),
        ({"id": "1", "runs": [{"script": [["COMPLETED", None]], "records": -1}]}, "records"),
        ({"id": "1", "runs": [{"records": 1}]}, "script"),
        ({}, "id"),
    ],
)
def test_the_error_of_a_wrong_meter_names_the_cause(settings: dict[str, Any], named: str) -> None:
    with pytest.raises(ValueError, match=named):
        MeterConfig.parse(settings)


@pytest.mark.parametrize(
    ("settings", "named"),
    [
        ({"speed": 2}, "unknown setting speed"),
        ({"meters": [{"id": "1"}, {"id": 1}]}, "same id"),
        ({"permissions": ["Fly"]}, "Fly"),
        ({"error_shape": "xml"}, "error_shape"),
        ({"clock": "sundial"}, "clock"),
        ({"time_scale": -1}, "time_scale"),
    ],
)
def test_the_error_of_a_wrong_tenant_names_the_cause(settings: dict[str, Any], named: str) -> None:
    with pytest.raises(ValueError, match=named):
        SimulatorConfig.parse(settings)


MINE = {
    "time_scale": 0.5,
    "meters": [
        {"id": 7001, "script": [["RUNNING", 3], ["COMPLETED", None]], "records": 50, "errors": 2},
        {
            "id": "7002",
            "runs": [[["FAILED", None]], {"script": [["COMPLETED", None]], "records": 9}],
            "streaming": True,
        },
    ],
}
YAML = """
time_scale: 0.5
meters:
  - {id: 7001, script: [[RUNNING, 3], [COMPLETED, null]], records: 50, errors: 2}
  - id: "7002"
    runs:
      - [[FAILED, null]]
      - {script: [[COMPLETED, null]], records: 9}
    streaming: true
"""


@pytest.mark.parametrize(("name", "text"), [("a.json", json.dumps(MINE)), ("a.yaml", YAML)])
def test_a_file_is_yaml_or_json(tmp_path: Path, name: str, text: str) -> None:
    (tmp_path / name).write_text(text)
    config = SimulatorConfig.load(tmp_path / name)
    first, second = config.meters
    assert config.time_scale == 0.5
    assert (first.id, first.runs[0].records, first.runs[0].errors) == ("7001", 50, 2)
    assert first.runs[0].script == (Step("RUNNING", 3), Step("COMPLETED", None))
    assert [plan.script[-1].status for plan in second.runs] == ["FAILED", "COMPLETED"]
    assert (second.runs[1].records, second.streaming) == (9, True)


@pytest.mark.parametrize("text", ["[1, 2]", "{unclosed", "a: b: c"])
def test_a_file_without_settings_is_a_value_error(tmp_path: Path, text: str) -> None:
    (tmp_path / "a.yaml").write_text(text)
    with pytest.raises(ValueError, match=r"a\.yaml"):
        SimulatorConfig.load(tmp_path / "a.yaml")


def test_the_demo_meters_end_as_the_manual_describes() -> None:
    ends = {meter.id: meter.runs[0].script[-1].status for meter in demo_meters()}
    assert ends == {
        "1001": "COMPLETED",
        "1002": "FAILED",
        "1003": "CANCELED",
        "1004": "RUNNING",
        **{str(meter): "COMPLETED" for meter in range(1005, 1012)},
    }
    tests = {meter.id: meter.debug_runs[0].script[-1].status for meter in demo_meters()}
    assert {meter for meter, end in tests.items() if end != "TESTING_PASSED"} == {"1011"}
    assert [meter.streaming for meter in demo_meters() if meter.id == "1004"] == [True]
    lengths = [sum(step.seconds or 0 for step in meter.runs[0].script) for meter in demo_meters()[4:9]]
    assert lengths == pytest.approx([4, 6, 8, 10, 12])
