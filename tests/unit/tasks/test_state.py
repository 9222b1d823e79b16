"""A Clear is detected by Airflow's numbers alone, and tasks work when Airflow has no store or it fails."""

from __future__ import annotations

from typing import Any

import pytest

from airflow_mediation_provider.tasks.state import TaskState, Tries, was_cleared
from tests.unit.task_stage import Store

KEPT = Tries.kept({"max_tries": 3, "retries": 3})


def cleared(tries_made: int, retries: int) -> Tries:
    """Return the numbers of the first try after a Clear, as ``clear_task_instances`` makes them."""
    return Tries(max_tries=tries_made + retries, retries=retries, number=tries_made + 1)


@pytest.mark.parametrize("over", [True, False])
@pytest.mark.parametrize("number", [1, 2, 3, 4])
def test_a_plain_retry_is_no_clear(number: int, over: bool):
    assert not was_cleared(KEPT, Tries(3, 3, number), over=over)


@pytest.mark.parametrize("retries", [4, 5, 7])
@pytest.mark.parametrize("number", [2, 3])
def test_a_retry_after_raised_retries_is_no_clear(number: int, retries: int):
    assert not was_cleared(KEPT, Tries(3, retries, number), over=True)


@pytest.mark.parametrize("tries_made", [1, 2, 3, 4])
@pytest.mark.parametrize("retries", [0, 1, 2, 3, 4])
def test_a_clear_of_ended_work_is_detected_with_any_change_of_retries(tries_made: int, retries: int):
    assert was_cleared(KEPT, cleared(tries_made, retries), over=True)


def test_a_retry_after_lowered_retries_continues_work_that_is_not_over():
    assert cleared(1, 2) == Tries(3, 2, 2)
    assert not was_cleared(KEPT, Tries(3, 2, 2), over=False)


def test_lowering_the_retries_by_more_than_the_tries_made_hides_no_clear():
    assert not was_cleared(KEPT, Tries(3, 0, 2), over=True)


def test_a_record_without_retries_is_judged_by_max_tries():
    kept = Tries.kept({"generation": 3}, "generation")
    assert not was_cleared(kept, Tries(3, 2, 2), over=True)
    assert was_cleared(kept, Tries(4, 3, 2), over=False)


def test_a_record_from_before_an_earlier_clear_counts_from_it():
    kept = Tries.kept({"max_tries": 5, "retries": 3})  # cleared after two tries
    assert kept.before_clear == 2
    assert not was_cleared(kept, Tries(5, 3, 4), over=True)
    assert was_cleared(kept, cleared(3, 2), over=True)


def test_a_record_is_kept_for_longer_than_the_task_may_take():
    kept: list[Any] = []

    class Recorded(Store):
        def set(self, key: str, value: Any, **options: Any) -> None:
            kept.append((key, value, options["retention"].total_seconds()))

    TaskState(Recorded(), "key", longest=7 * 86400).set({"a": 1}, required=True)
    assert kept == [("key", {"a": 1}, 67 * 86400)]


@pytest.mark.parametrize("stored", [None, "text", 1, []])
def test_an_invalid_record_counts_as_none(stored: Any):
    store = Store()
    store.values["key"] = stored
    assert TaskState(store, "key").get() == {}


def test_without_a_store_nothing_is_kept():
    state = TaskState(None, "key")
    state.set({"a": 1}, required=True)
    assert not state.lasting
    assert state.get() == {}


def test_a_failed_store_ends_only_work_that_needs_it(caplog: pytest.LogCaptureFixture):
    class Broken(Store):
        def set(self, key: str, value: Any, **_: Any) -> None:
            raise ConnectionError("the API server restarts")

    state = TaskState(Broken(), "key")
    state.set({}, required=False)
    assert "key could not be kept" in caplog.text
    with pytest.raises(ConnectionError):
        state.set({}, required=True)
