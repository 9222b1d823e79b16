"""The check of the drill of any meter: lost, doubled, mixed and invented runs are found."""

from __future__ import annotations

import random

import pytest

from tests.drill.any_meter import Arrival, Run, arrivals, one_run_each, walks

RUNNING, COMPLETED = (Arrival("any", "1", "R-1", status) for status in ("RUNNING", "COMPLETED"))
OTHER = Arrival("any", "2", "R-2", "RUNNING")


def run(*of: Arrival, key: str = "R-1") -> Run:
    return Run("any", key, frozenset(of))


@pytest.mark.parametrize(
    ("runs", "wrong"),
    [
        ([run(RUNNING), run(COMPLETED)], []),
        ([run(RUNNING, COMPLETED)], []),
        ([run(RUNNING)], ["any has 0 runs for COMPLETED, expected 1"]),
        ([run(RUNNING), run(COMPLETED), run(COMPLETED)], ["any has 2 runs for COMPLETED, expected 1"]),
        ([run(RUNNING), run(COMPLETED), run(OTHER, key="R-2")], ["any has 1 runs for RUNNING, expected 0"]),
    ],
)
def test_each_arrival_has_one_run(runs: list[Run], wrong: list[str]) -> None:
    assert [each.message for each in one_run_each({RUNNING, COMPLETED}, runs).violations] == wrong


def test_a_run_of_two_sessions_is_found() -> None:
    found = one_run_each({RUNNING, OTHER}, [run(RUNNING, OTHER)])

    assert [each.subject for each in found.violations] == ["R-1"]


def test_each_session_takes_its_changes_in_order_and_starts_what_is_scheduled() -> None:
    waves = walks(40, 12, random.Random(1))

    assert [{status for _, _, _, status in wave} for wave in waves] == [
        {"INITIALIZING"}, {"RUNNING"}, {"USAGE_PUSHING"}, {"COMPLETED"},
    ]  # fmt: skip
    assert [len(wave) for wave in waves] == [10, 10, 10, 10]
    assert len(arrivals(waves)) == 10 * 2 + 10
