"""The feed of real API servers: a change reaches the clients of other servers, and waiting clients delay no stop."""

from __future__ import annotations

import json
import os
import signal
import time
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from typing import TYPE_CHECKING

import pytest

from airflow_mediation_provider.protocol.sessions.journal_entry import EntryKind, JournalEntry
from airflow_mediation_provider.protocol.transition import SessionTransition, Source
from airflow_mediation_provider.protocol.wire import FeedRequest, MeterQuestion
from benchmarks.feed_polls import SECRET, Asker, IdlePolls
from testkit.stack import AirflowStack

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

QUESTION = {"1": MeterQuestion(sessions=frozenset({"R-1"}))}


@pytest.fixture(scope="module")
def servers(tmp_path_factory: pytest.TempPathFactory, sqlite_template: Path) -> Iterator[AirflowStack]:
    root: Path = tmp_path_factory.mktemp("feed")
    connection = json.dumps({"conn_type": "mediation", "password": SECRET, "extra": {"callout_token": SECRET}})
    env, options = {"AIRFLOW_CONN_BENCH": connection}, {"components": ["api-server"], "api_servers": 2}
    with AirflowStack(root, root / "no-dags", env, migrated=sqlite_template, **options) as stack:
        yield stack


def change(status: str) -> JournalEntry:
    now = datetime.now(UTC)
    transition = SessionTransition(meter_id="1", session_id="R-1", status=status, observed_at=now, source=Source.RUN)
    return JournalEntry(kind=EntryKind.STATUS_CHANGE, observed_at=now, source=transition.source, transition=transition)


def test_a_change_reaches_a_client_that_waits_at_another_server(servers: AirflowStack):
    here, there = (Asker(url) for url in servers.api_urls)
    cursor = there.ask(FeedRequest(meters=QUESTION, full=True))[0].cursor
    with ThreadPoolExecutor(1) as pool:
        for status in ("RUNNING", "COMPLETED"):
            waiting = pool.submit(there.ask, FeedRequest(meters=QUESTION, cursor=cursor, wait=20))
            time.sleep(0.5)  # until the request has arrived; otherwise it would be answered all the same
            here.observe([change(status)])
            reply, _ = waiting.result(timeout=5)
            assert {state.status for state in reply.sessions} == {status}
            cursor = reply.cursor
    assert reply.callouts


def test_waiting_clients_do_not_delay_a_stop(servers: AirflowStack):
    with IdlePolls(servers.api_urls[1], 100) as polls:
        [leader, *_] = servers.pids("api-server-2")
        began = time.monotonic()
        os.kill(leader, signal.SIGTERM)
        ended = polls.end()
        seconds = time.monotonic() - began
    assert ended == {"answered": 100}
    assert seconds < 5  # without other load it takes a tenth of that
