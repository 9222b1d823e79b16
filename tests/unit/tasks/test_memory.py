"""State that a wait keeps from one process to the next, and state that it does not."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

import pytest

from airflow_mediation_provider.protocol.status import ANY_TERMINAL
from airflow_mediation_provider.protocol.waits.condition import SessionCondition
from airflow_mediation_provider.protocol.waits.wait import PollReading, SessionWait, WaitEnd
from airflow_mediation_provider.protocol.zuora.errors import TransientError
from airflow_mediation_provider.tasks.memory import KEY, KeptWait
from airflow_mediation_provider.tasks.state import TaskState, Tries
from tests.unit.task_stage import Store
from tests.unit.virtual import EPOCH


def fresh(hours: float = 2, **condition: Any) -> SessionWait:
    until = EPOCH + timedelta(hours=hours)
    return SessionWait(SessionCondition(meter_id="m", until=until, **condition), created_at=EPOCH)


def seen(wait: SessionWait) -> SessionWait:
    for seconds, status in ((0, "COMPLETED"), (60, "RUNNING")):
        wait.observe(PollReading(status=status, read_at=EPOCH + timedelta(seconds=seconds)))
    return wait


def memory(store: Any, max_tries: int = 2, try_number: int = 1, retries: int = 2) -> KeptWait:
    return KeptWait(TaskState(store, KEY), Tries(max_tries, retries, try_number))


def test_the_same_try_keeps_its_deadline():
    store = Store()
    memory(store).keep(seen(fresh()), "execute_complete")
    recalled = memory(store).recall(fresh(hours=9))
    assert recalled.condition.until == EPOCH + timedelta(hours=2)
    assert recalled.tracker.begun


def test_the_next_try_keeps_the_state_and_gets_its_own_deadline_and_outage():
    store = Store()
    wait = seen(fresh())
    for minutes in (2, 40):
        wait.fault(TransientError("down"), EPOCH + timedelta(minutes=minutes))
    memory(store).keep(wait, "execute_complete")
    recalled = memory(store, try_number=2).recall(fresh(hours=9))
    assert recalled.condition.until == EPOCH + timedelta(hours=9)
    assert recalled.tracker.begun
    assert recalled.fault(TransientError("down"), EPOCH + timedelta(minutes=70)).result is None


@pytest.mark.parametrize(
    ("run_type", "statuses", "fail_on"),
    [
        ("NORMAL", ["COMPLETED"], ["CANCELED", "FAILED"]),
        ("DEBUG", ["TESTING_PASSED"], ["TESTING_FAILED"]),
        ("NORMAL", ["CANCELED", "COMPLETED", "FAILED"], []),
    ],
)
def test_a_wait_kept_by_an_earlier_version_is_continued(run_type: str, statuses: list[str], fail_on: list[str]):
    """It stored its own defaults, and the earliest start in fractions of a second: no baseline may be lost."""
    store = Store()
    since = EPOCH - timedelta(hours=1)
    asked: dict[str, Any] = {"run_types": run_type, "since": since}
    if not fail_on:
        asked |= {"statuses": tuple(ANY_TERMINAL), "fail_on": ()}
    wait = fresh(**asked).to_dict()
    wait["condition"] |= {"statuses": statuses, "fail_on": fail_on, "since": "2026-03-31T08:00:00.250000+00:00"}
    memory(store).keep(SessionWait.from_dict(wait), "execute_complete")
    later = fresh(**asked)
    recalled = memory(store).recall(later)
    assert recalled is not later
    assert recalled.condition.fail_on == tuple(fail_on)


def test_a_wait_on_both_run_types_is_not_one_on_a_single_one():
    store, both = Store(), ("NORMAL", "DEBUG")
    memory(store).keep(fresh(run_types=both), "execute_complete")
    assert memory(store).recall(fresh(run_types=both)).condition.run_types == both
    later = fresh(statuses=("COMPLETED", "TESTING_PASSED"))
    assert memory(store).recall(later) is later


@pytest.mark.parametrize("other", [{"fail_on": ("FAILED",)}, {"statuses": ("PAUSED",)}, {"since": EPOCH}])
def test_a_kept_wait_for_another_condition_is_not_used(other: dict[str, Any]):
    store, asked = Store(), {"since": EPOCH - timedelta(hours=1)}
    memory(store).keep(fresh(**asked), "execute_complete")
    later = fresh(**{**asked, **other})
    assert memory(store).recall(later) is later


def test_a_cleared_task_starts_anew():
    store = Store()
    memory(store).keep(seen(fresh()), "execute_complete")
    assert not memory(store, max_tries=5, try_number=2).recall(fresh()).tracker.begun


def test_a_cleared_task_with_lowered_retries_starts_anew_if_the_wait_was_over():
    store = Store()
    first = memory(store)
    first.keep(seen(fresh()), "execute_complete")
    # A plain retry after the retries were lowered has the same numbers.
    assert memory(store, try_number=2, retries=1).recall(fresh()).tracker.begun
    first.end()
    assert not memory(store, try_number=2, retries=1).recall(fresh()).tracker.begun
    # The worker may have died before Airflow received the end.
    assert memory(store, try_number=2).recall(fresh()).tracker.begun


def test_a_wait_that_starts_after_one_that_is_over_is_not_over():
    store = Store()
    first = memory(store)
    first.keep(seen(fresh()), "execute_complete")
    first.end()
    first.keep(seen(fresh()), "force_complete")
    assert memory(store, try_number=2, retries=1).recall(fresh()).tracker.begun


@pytest.mark.parametrize("condition", [{"session_id": "S-9"}, {"statuses": ("PAUSED",)}, {"version": "2"}])
def test_a_wait_with_another_condition_starts_anew(condition):
    store = Store()
    memory(store).keep(seen(fresh()), "execute_complete")
    question = fresh(**condition)
    assert memory(store).recall(question) is question


@pytest.mark.parametrize("wait", ["nothing", {}, 1, {"condition": {"meter_id": "m"}}], ids=str)
def test_an_unreadable_record_counts_as_none(wait):
    store = Store()
    store.set(KEY, {"generation": 2, "wait": wait} if wait != "nothing" else "text")
    question = fresh()
    assert memory(store).recall(question) is question


def test_crashes_are_counted_within_a_try_and_do_not_touch_the_wait():
    store = Store()
    memory(store).keep(seen(fresh()), "force_complete")
    assert memory(store, try_number=2).count_crash() == 1
    assert memory(store, try_number=2).count_crash() == 2
    assert memory(store, try_number=3).crashes == 0
    last = memory(store, try_number=2)
    assert last.method_name == "force_complete"
    assert last.recall(fresh(hours=9)).condition.until == EPOCH + timedelta(hours=9)


def test_the_state_of_the_trigger_is_taken_over():
    store = Store()
    memory(store).keep(fresh(), "execute_complete")
    memory(store).adopt(seen(fresh()).to_dict())
    assert memory(store).recall(fresh()).tracker.begun


def test_without_a_store_only_a_rescheduled_wait_cannot_continue():
    forgetful = memory(None)
    forgetful.keep(seen(fresh()), "execute_complete")
    assert forgetful.count_crash() == 1
    question = fresh()
    assert memory(None).recall(question) is question
    with pytest.raises(RuntimeError, match=r"Airflow 3\.3"):
        forgetful.keep(fresh(), "execute_complete", required=True)


def test_a_failed_store_ends_only_waits_that_need_it(caplog: pytest.LogCaptureFixture):
    class Broken(Store):
        def set(self, key: str, value: Any, **_: Any) -> None:
            raise ConnectionError("the API server restarts")

    broken = memory(Broken())
    broken.keep(fresh(), "execute_complete")
    assert "could not be kept" in caplog.text
    with pytest.raises(ConnectionError):
        broken.keep(fresh(), "execute_complete", required=True)


def test_a_wait_that_ended_by_itself_is_not_kept_as_ended():
    store = Store()
    wait = seen(fresh())
    wait.tick(EPOCH + timedelta(hours=3))
    assert wait.result is not None
    assert wait.result.end is WaitEnd.TIMED_OUT
    memory(store).keep(wait, "execute_complete")
    assert memory(store, try_number=2).recall(fresh(hours=9)).result is None
