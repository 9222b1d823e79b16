"""The wait for an export: what it does next, by the clock and the answers alone."""

from __future__ import annotations

from datetime import datetime, timedelta
from typing import Any

import pytest

from airflow_mediation_provider.protocol.waits.export_wait import ExportResult, ExportWait
from airflow_mediation_provider.protocol.waits.wait_result import WaitEnd
from airflow_mediation_provider.protocol.zuora.errors import MisconfigurationError, TransientError
from tests.unit.virtual import EPOCH, through_json

DOWN = TransientError("Zuora is down.")


def at(seconds: float) -> datetime:
    return EPOCH + timedelta(seconds=seconds)


def new_wait(**more: Any) -> ExportWait:
    given = {"until": at(600), "poll_interval": 30, "max_unreachable": 300, "poll_at": at(0)}
    return ExportWait(meter_id="1001", export_type="ERROR", request_id="job-1", **(given | more))


def job(status: str | None, **more: Any) -> dict[str, Any]:
    return {"requestId": "job-1", "status": status, **more}


RUNNING = (job("RUNNING"),)


def ended(wait: ExportWait, seconds: float) -> ExportResult:
    result = wait.step(at(seconds))
    assert isinstance(result, ExportResult)
    return result


def test_the_job_is_polled_at_once_and_then_at_the_interval():
    wait = new_wait()
    assert wait.step(at(0)) == 0
    assert wait.answer(RUNNING, at(1)) == ("Export job-1: its status is RUNNING",)
    assert wait.step(at(1)) == 30
    assert wait.step(at(11)) == 20
    assert wait.step(at(31)) == 0
    assert wait.answer(RUNNING, at(31)) == ()


def test_a_finished_job_ends_the_wait_with_its_files():
    wait = new_wait()
    other = {"requestId": "job-0", "status": "FINISHED", "fileList": ["other.csv"]}
    wait.answer([other, job("Finished", count=12, fileList=["a.csv", "b.csv"])], at(1))
    result = ended(wait, 1)
    assert (result.end, result.status, result.count) == (WaitEnd.MET, "Finished", 12)
    assert result.files == ("a.csv", "b.csv")
    assert result.message == "Export job-1 is finished: 12 records in 2 file(s)."
    assert ExportResult.from_dict(through_json(result.to_dict())) == result


@pytest.mark.parametrize("status", ["FAILED", "Failed", "CANCELLED", "INTERNAL_ERROR"])
def test_a_failed_job_ends_the_wait(status: str):
    wait = new_wait()
    wait.answer([job(status)], at(1))
    assert (ended(wait, 1).end, ended(wait, 1).message) == (
        WaitEnd.FAILED,
        f"Export job-1 of meter 1001 ended as {status.upper()}.",
    )


@pytest.mark.parametrize("jobs", [(), ({"requestId": "job-0", "status": "FINISHED"},), (job(None),)])
def test_a_job_without_a_status_is_polled_again(jobs: tuple[dict[str, Any], ...]):
    wait = new_wait()
    wait.answer(jobs, at(1))
    assert wait.step(at(1)) == 30


def test_the_last_poll_is_at_the_deadline():
    wait = new_wait(until=at(40))
    wait.answer(RUNNING, at(0))
    wait.answer(RUNNING, at(30))
    assert wait.step(at(30)) == 10
    assert wait.step(at(40)) == 0
    wait.answer(RUNNING, at(40))
    result = ended(wait, 40)
    assert (result.end, result.status) == (WaitEnd.TIMED_OUT, "RUNNING")
    assert "did not finish by 2026-03-31 09:00:40 UTC (last status: RUNNING)" in result.message
    assert "give it a longer timeout" in result.message


def test_a_job_that_is_finished_at_the_last_poll_is_no_timeout():
    wait = new_wait(until=at(40))
    wait.answer([job("FINISHED")], at(55))
    assert ended(wait, 55).end is WaitEnd.MET


def test_a_wait_that_no_process_followed_until_its_deadline_polls_once():
    wait = ExportWait.from_dict(through_json(new_wait().to_dict()))
    assert wait.step(at(5000)) == 0
    wait.answer(RUNNING, at(5000))
    assert ended(wait, 5000).end is WaitEnd.TIMED_OUT


@pytest.mark.parametrize(("asked", "pause"), [(None, 30), (10, 30), (120, 120)])
def test_a_fault_is_followed_by_the_longer_of_the_interval_and_the_pause_that_zuora_asked_for(
    asked: float | None, pause: float
):
    wait = new_wait()
    wait.answer(RUNNING, at(0))
    wait.fault(TransientError("Too many requests.", retry_after=asked), at(30))
    assert wait.step(at(30)) == pause


def test_a_pause_beyond_the_deadline_ends_the_wait_there_without_another_poll():
    wait = new_wait(until=at(100))
    wait.answer(RUNNING, at(0))
    wait.fault(TransientError("Too many requests.", retry_after=3600), at(30))
    assert wait.step(at(30)) == 70
    assert ended(wait, 100).end is WaitEnd.TIMED_OUT


def test_an_unreachable_zuora_is_tolerated_for_max_unreachable_and_logged_once():
    wait = new_wait()
    wait.answer(RUNNING, at(0))
    (line,) = wait.fault(DOWN, at(30))
    assert line.startswith("Export job-1: ")
    assert "Zuora is down" in line
    assert wait.fault(DOWN, at(329)) == ()
    assert wait.step(at(329)) == 1
    wait.fault(DOWN, at(330))
    assert ended(wait, 330).end is WaitEnd.UNREACHABLE
    assert "Zuora is down." in ended(wait, 330).message


def test_a_good_answer_ends_an_outage():
    wait = new_wait()
    wait.fault(DOWN, at(0))
    assert "Export job-1: Zuora reached again after 4m 50s" in wait.answer(RUNNING, at(290))
    wait.fault(DOWN, at(320))
    assert wait.step(at(320)) == 30


def test_a_refusal_ends_the_wait_at_once_where_zuora_never_gave_a_good_answer():
    wait = new_wait()
    wait.fault(MisconfigurationError("Forbidden."), at(0))
    assert (ended(wait, 0).end, ended(wait, 0).message) == (WaitEnd.MISCONFIGURED, "Forbidden.")


def test_a_single_refusal_after_a_good_answer_may_be_temporary():
    first = new_wait()
    first.answer(RUNNING, at(0))
    wait = ExportWait.from_dict(through_json(first.to_dict()))
    wait.fault(MisconfigurationError("Forbidden."), at(30))
    assert wait.step(at(30)) == 30
    wait.answer(RUNNING, at(60))
    assert wait.step(at(60)) == 30


def test_a_stored_wait_is_the_same_and_its_times_have_a_zone():
    wait = new_wait()
    wait.answer(RUNNING, at(7))
    assert ExportWait.from_dict(through_json(wait.to_dict())).to_dict() == wait.to_dict()
    with pytest.raises(ValueError, match="time zone"):
        new_wait(until=datetime(2026, 1, 1))
    with pytest.raises(ValueError, match="deadline"):
        ExportWait.from_dict({**wait.to_dict(), "until": None})
