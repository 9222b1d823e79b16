"""The count of calls in one process: of both hooks, from many threads, each reported once."""

from __future__ import annotations

import asyncio
import os
import threading
from datetime import UTC, datetime, timedelta

import pytest

from airflow_mediation_provider.hooks import api_usage as calls
from airflow_mediation_provider.hooks.api_usage import count_request, reported, unreported
from airflow_mediation_provider.hooks.mediation import MediationAsyncHook
from airflow_mediation_provider.hooks.transport import AsyncTransport
from airflow_mediation_provider.protocol.zuora.api_usage import KEPT_HOURS
from airflow_mediation_provider.protocol.zuora.errors import TransientError

from .conftest import Answer

STATUS = "/meters/5/0.0.1/runStatus"
LIMITS = {"RATELIMIT-LIMIT": "5000, 5000;w=3600", "RateLimit-Remaining": "4321", "ratelimit-reset": "60"}


@pytest.fixture(autouse=True)
def none_yet():
    calls.forget_all()
    yield
    calls.forget_all()


def numbers(conn_id="mediation_test"):
    found = unreported(conn_id)
    return sum(each.calls for each in found), sum(each.limited for each in found)


def test_calls_are_counted_by_connection_with_zuoras_rate_limit(ask, zuora):
    zuora.on(STATUS, Answer({"data": {"runStatus": 5}}, headers=LIMITS), Answer({"data": {"runStatus": 7}}))

    ask("run_status", 5)
    ask("run_status", 5)

    assert zuora.tokens["issued"] == 1  # which is not counted
    assert numbers() == (2, 0)
    assert numbers("mediation_default") == (0, 0)
    left = unreported("mediation_test")[-1].left
    assert (left.limits, left.remaining) == ("5000, 5000;w=3600", 4321)
    assert left.reset_at - left.told_at == timedelta(seconds=60)
    assert datetime.now(UTC) - left.told_at < timedelta(minutes=1)


@pytest.mark.usefixtures("slept")
def test_repeated_refused_and_unanswered_requests_count_each(ask, zuora):
    zuora.on(STATUS, Answer(status=429), Answer(status=503), Answer(how="reset"), Answer({"data": {"runStatus": 7}}))

    assert ask("run_status", 5) == "COMPLETED"

    assert numbers() == (4, 1)


@pytest.mark.usefixtures("connect")
async def test_a_request_that_was_cancelled_counts(monkeypatch):
    under_way, send = asyncio.Event(), AsyncTransport.send

    async def hang(self, request):
        if STATUS not in request.url:
            return await send(self, request)
        under_way.set()
        return await asyncio.Event().wait()

    monkeypatch.setattr(AsyncTransport, "send", hang)
    async with MediationAsyncHook("mediation_test", attempts=1) as hook:
        asking = asyncio.create_task(hook.run_status(5))
        await under_way.wait()
        asking.cancel()
        await asyncio.wait([asking])

    assert asking.cancelled()
    assert numbers() == (1, 0)


def test_a_call_that_was_not_sent_for_lack_of_a_token_is_not_counted(ask, zuora):
    zuora.token_answers = [Answer(status=503)]

    with pytest.raises(TransientError):
        ask("run_status", 5, hook={"attempts": 1})

    assert numbers() == (0, 0)


def test_threads_lose_no_count():
    def ask_often():
        for _ in range(500):
            count_request("zuora", None)

    threads = [threading.Thread(target=ask_often) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    assert numbers("zuora") == (4000, 0)


def test_reported_calls_are_not_repeated_and_new_ones_are_kept():
    count_request("zuora", None)
    with reported("zuora") as told:
        count_request("zuora", None)
        with reported("zuora") as told_by_another:
            pass

    assert [sum(each.calls for each in report) for report in (told, told_by_another)] == [1, 1]
    assert unreported("zuora") == ()


def test_a_failed_report_is_repeated_with_the_new_calls():
    def report():
        with reported("zuora"):
            count_request("zuora", None)
            raise OSError("gone")

    count_request("zuora", None)
    with pytest.raises(OSError, match="gone"):
        report()

    assert numbers("zuora") == (2, 0)


def test_a_process_that_never_reports_keeps_only_one_day(monkeypatch):
    class Later(datetime):
        @classmethod
        def now(cls, tz=None):
            cls.at += timedelta(hours=1)
            return cls.at

    Later.at = datetime(2026, 3, 1, tzinfo=UTC)
    monkeypatch.setattr(calls, "datetime", Later)
    for _ in range(100):
        count_request("zuora", None)

    assert len(unreported("zuora")) == KEPT_HOURS
    assert unreported("zuora")[-1].hour == Later.at


@pytest.mark.services
def test_a_forked_process_does_not_report_the_calls_of_its_parent():
    count_request("zuora", None)
    read, write = os.pipe()
    child = os.fork()
    if child == 0:
        os.write(write, str(len(unreported("zuora"))).encode())
        os._exit(0)
    os.close(write)
    os.waitpid(child, 0)

    with os.fdopen(read) as said:
        assert said.read() == "0"
    assert numbers("zuora") == (1, 0)
