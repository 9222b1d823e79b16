"""What survives from one process to the next, and what does not."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

import pytest

from airflow_mediation_provider.protocol.condition import SessionCondition
from airflow_mediation_provider.protocol.errors import TransientError
from airflow_mediation_provider.protocol.wait import PollReading, SessionWait, WaitEnd
from airflow_mediation_provider.wait_memory import KEY, WaitMemory
from tests.unit.task_stage import Store
from tests.unit.virtual import EPOCH


def fresh(hours: float = 2, **condition: Any) -> SessionWait:
    until = EPOCH + timedelta(hours=hours)
    return SessionWait(SessionCondition(meter_id="m", until=until, **condition), created_at=EPOCH)


def seen(wait: SessionWait) -> SessionWait:
    for seconds, status in ((0, "COMPLETED"), (60, "RUNNING")):
        wait.observe(PollReading(status=status, read_at=EPOCH + timedelta(seconds=seconds)))
    return wait


def memory(store: Any, generation: int = 2, try_number: int = 1) -> WaitMemory:
    return WaitMemory(store, generation=generation, try_number=try_number)


def test_the_same_try_goes_on_with_its_deadline():
    store = Store()
    memory(store).keep(seen(fresh()), "execute_complete")
    recalled = memory(store).recall(fresh(hours=9))
    assert recalled.condition.until == EPOCH + timedelta(hours=2)
    assert recalled.known.begun


def test_the_next_try_keeps_what_is_known_and_gets_its_own_deadline_and_patience():
    store = Store()
    wait = seen(fresh())
    for minutes in (2, 40):
        wait.fault(TransientError("down"), EPOCH + timedelta(minutes=minutes))
    memory(store).keep(wait, "execute_complete")
    recalled = memory(store, try_number=2).recall(fresh(hours=9))
    assert recalled.condition.until == EPOCH + timedelta(hours=9)
    assert recalled.known.begun
    assert recalled.fault(TransientError("down"), EPOCH + timedelta(minutes=70)).result is None


def test_a_cleared_task_begins_anew():
    store = Store()
    memory(store, generation=2).keep(seen(fresh()), "execute_complete")
    assert not memory(store, generation=5, try_number=2).recall(fresh()).known.begun


@pytest.mark.parametrize("condition", [{"session_id": "S-9"}, {"statuses": ("PAUSED",)}, {"version": "2"}])
def test_another_question_is_not_answered_by_it(condition):
    store = Store()
    memory(store).keep(seen(fresh()), "execute_complete")
    question = fresh(**condition)
    assert memory(store).recall(question) is question


@pytest.mark.parametrize("wait", ["nothing", {}, 1, {"condition": {"meter_id": "m"}}], ids=str)
def test_a_record_that_cannot_be_read_counts_as_none(wait):
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


def test_what_the_trigger_knew_is_taken_over():
    store = Store()
    memory(store).keep(fresh(), "execute_complete")
    memory(store).adopt(seen(fresh()).to_dict())
    assert memory(store).recall(fresh()).known.begun


def test_without_a_store_only_a_rescheduled_wait_cannot_go_on():
    forgetful = memory(None)
    forgetful.keep(seen(fresh()), "execute_complete")
    assert forgetful.count_crash() == 1
    question = fresh()
    assert memory(None).recall(question) is question
    with pytest.raises(RuntimeError, match=r"Airflow 3\.3"):
        forgetful.keep(fresh(), "execute_complete", required=True)


def test_a_store_that_fails_ends_only_what_needs_it(caplog: pytest.LogCaptureFixture):
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
