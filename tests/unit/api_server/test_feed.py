"""The feed and the observations, from a signed request to the journal and back, on SQLite and PostgreSQL."""

from __future__ import annotations

import asyncio
import json
import signal
import threading
import time
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any

import httpx
import pytest
from airflow import settings
from sqlalchemy.exc import OperationalError

from airflow_mediation_provider.api_server.app import create_app
from airflow_mediation_provider.api_server.connections import Connections, MediationConnection
from airflow_mediation_provider.api_server.feed import feed_of
from airflow_mediation_provider.api_server.http import _before
from airflow_mediation_provider.api_server.journal import Cursor
from airflow_mediation_provider.journal.history import take_turn
from airflow_mediation_provider.journal.session_list import SessionKey, find_session
from airflow_mediation_provider.journal.tables import WaitRow
from airflow_mediation_provider.journal.transaction import JournalUnavailable, read
from airflow_mediation_provider.journal.writer import record
from airflow_mediation_provider.protocol.maintenance import HistoryRequest
from airflow_mediation_provider.protocol.sessions.journal_entry import EntryKind, JournalEntry
from airflow_mediation_provider.protocol.sessions.verdict import TaskVerdict
from airflow_mediation_provider.protocol.sessions.window import Window
from airflow_mediation_provider.protocol.transition import SessionTransition, Source
from airflow_mediation_provider.protocol.wire import (
    FEED_PATH,
    MOST_INSTANTS,
    MOST_METERS,
    OBSERVATIONS_PATH,
    SIGNATURE_HEADER,
    FeedReply,
    FeedRequest,
    HistoryStatus,
    MeterQuestion,
    WaitReport,
    Waits,
    derive_key,
    is_signed_reply,
    observations_to_bytes,
    signed_headers,
)
from tests.unit.api_server.signed import until
from tests.unit.journal.old_rows import is_in, wait_of

if TYPE_CHECKING:
    from collections.abc import Iterator

SECRET = "client-secret"
ASKED = {"1": MeterQuestion(sessions=frozenset({"R-1"}))}


def change(status: str, *, before: str | None = None, session: str = "R-1", meter: str = "1") -> JournalEntry:
    transition = SessionTransition(
        meter_id=meter,
        session_id=session,
        status=status,
        previous_status=before,
        observed_at=datetime.now(UTC),
        source=Source.RUN,
    )
    return JournalEntry(
        kind=EntryKind.STATUS_CHANGE, observed_at=transition.observed_at, source=Source.RUN, transition=transition
    )


def find(conn_id: str) -> MediationConnection | None:
    extra = {"callout_token": "t"} if conn_id == "zuora" else {}
    return MediationConnection(conn_id, None, SECRET, extra) if conn_id in ("zuora", "quiet") else None


class Caller:
    """Signs and sends, as workers and triggers do."""

    def __init__(self, client: httpx.AsyncClient) -> None:
        self._client = client

    async def post(self, path: str, body: bytes, *, conn_id: str = "zuora", **changes: Any) -> httpx.Response:
        proof = {"path": path, "conn_id": conn_id, "body": body, "timestamp": int(time.time())}
        headers = signed_headers(derive_key(changes.pop("secret", SECRET)), **{**proof, **changes})
        return await self._client.post(path, content=body, headers=headers)

    async def ask(self, *, conn_id: str = "zuora", **question: Any) -> FeedReply:
        request = FeedRequest(**{"meters": ASKED, **question})
        reply = await self.post(FEED_PATH, request.to_bytes(), conn_id=conn_id)
        assert reply.status_code == 200, reply.text
        asked, given = (message.headers[SIGNATURE_HEADER] for message in (reply.request, reply))
        assert is_signed_reply(derive_key(SECRET), asked, reply.content, given)
        return FeedReply.from_bytes(reply.content)


@pytest.fixture
def app(airflow_database: str) -> Iterator[Any]:
    made = create_app(Connections(find))
    yield made
    if feed := getattr(made.state, "feed", None):
        # A read that is still running must not outlive the database.
        feed.changes._thread.shutdown()


@pytest.fixture
async def caller(app: Any):
    async with httpx.AsyncClient(transport=httpx.ASGITransport(app=app), base_url="http://airflow") as client:
        yield Caller(client)


def statuses(reply: FeedReply) -> dict[str, str]:
    return {state.session_id: state.status for state in reply.sessions}


async def test_an_observation_is_sent_by_the_feed(caller: Caller):
    body = observations_to_bytes([change("RUNNING")])
    reply = await caller.post(OBSERVATIONS_PATH, body)
    assert (reply.status_code, reply.json()) == (200, {"new": 1, "duplicates": 0, "refused": []})
    first = await caller.ask()
    assert statuses(first) == {"R-1": "RUNNING"}
    assert first.callouts is True
    assert first.last_callout_at is None
    assert statuses(await caller.ask(cursor=first.cursor)) == {}


async def test_a_verdict_that_cannot_be_stored_is_named_and_its_neighbours_are_stored(
    caller: Caller, caplog: pytest.LogCaptureFixture
):
    task = {"dag_id": "usage", "run_id": "r", "task_id": "wait", "map_index": -1, "try_number": 1}
    ti_id = is_in("deferred", wait_of("", **task))
    told = {"wait_id": "w", "meter_id": "1", "session_id": "R-1", "run_type": "NORMAL", "mode": "triggerer"}
    at = datetime.now(UTC) + timedelta(minutes=1)
    good = TaskVerdict(**told, **task, status="FAILED", at=at, certain=False, ti_id=ti_id)
    gone = replace(good, ti_id="019d0000-0000-7000-8000-000000000001")
    values = json.loads(observations_to_bytes([change("RUNNING")], verdicts=[gone, good]))
    values["verdicts"].append({"status": "FAILED"})
    reply = await caller.post(OBSERVATIONS_PATH, json.dumps(values).encode())
    assert reply.status_code == 200
    unreadable, refused = reply.json().pop("refused")
    assert unreadable == "a verdict cannot be read: Object missing required field `wait_id`"
    assert refused == "the verdict of task wait in run r: Airflow does not have this try of the task any more"
    assert f"Not stored for connection zuora: {refused}" in caplog.text
    listed = read(lambda session: find_session(session, SessionKey("zuora", "1", "R-1")))
    assert listed is not None
    assert (listed.status, listed.best_status) == ("RUNNING", "FAILED")
    assert statuses(await caller.ask()) == {"R-1": "RUNNING"}


async def test_an_observation_that_is_not_valid_or_not_the_tasks_own_is_named_and_the_others_are_stored(caller: Caller):
    claimed = replace(change("COMPLETED", session="R-2"), source=Source.CALLOUT)
    values = json.loads(observations_to_bytes([change("RUNNING"), claimed]))
    values["entries"].append({**values["entries"][0], "observed_at": "soon"})
    reply = await caller.post(OBSERVATIONS_PATH, json.dumps(values).encode())
    assert (reply.status_code, reply.json()["new"]) == (200, 1)
    unreadable, refused = reply.json()["refused"]
    assert unreadable.startswith("an observation cannot be read: Invalid RFC3339 encoded datetime")
    assert refused == "session 'R-2': no task observes what comes by callout"
    asked = {"1": MeterQuestion(sessions=frozenset({"R-1", "R-2"}))}
    assert statuses(await caller.ask(meters=asked)) == {"R-1": "RUNNING"}


@pytest.mark.parametrize("bad", ["a\0b", "a\ud800b", "x" * 65, "x" * 4000])
async def test_an_id_that_no_session_has_leaves_the_rest_of_the_question(
    caller: Caller, caplog: pytest.LogCaptureFixture, bad: str
):
    await caller.post(OBSERVATIONS_PATH, observations_to_bytes([change("RUNNING")]))
    asked = {"1": MeterQuestion(sessions=frozenset({"R-1", bad})), bad: MeterQuestion(sessions=frozenset({"R-1"}))}
    assert statuses(await caller.ask(meters=asked, full=True, owners=(bad, "w"))) == {"R-1": "RUNNING"}
    assert "leaves out ids that no session has" in caplog.text


async def test_a_wait_that_begins_is_stored_before_the_answer_and_its_owner_is_returned(
    caller: Caller, monkeypatch: pytest.MonkeyPatch
):
    report = WaitReport(
        id="w",
        meter_id="1",
        version="0.0.1",
        session_id=None,
        condition={},
        dag_id="usage",
        run_id="r",
        task_id="wait",
        map_index=-1,
        try_number=1,
        mode="worker",
        created_at=datetime.now(UTC),
        owner="5f0c",
        begins=True,
    )
    reply = await caller.ask(waits=Waits(open=(report,)), owners=("w", "v"))
    assert (reply.kept, reply.owners) == (True, {"w": "5f0c", "v": None})
    reply = await caller.ask(cursor=reply.cursor, waits=Waits(open=(replace(report, owner="later"),)), owners=("w",))
    assert (reply.kept, reply.owners) == (True, {"w": "later"})
    assert not (await caller.ask(waits=Waits(open=(replace(report, id="w" * 65),)))).kept

    def locked(**_: Any) -> bool:
        raise JournalUnavailable("the database is locked")

    monkeypatch.setattr("airflow_mediation_provider.api_server.feed.record_waits", locked)
    assert not (await caller.ask(waits=Waits(open=(report,)))).kept
    assert (await caller.ask(waits=Waits(open=(replace(report, begins=False),)))).kept


async def test_the_feed_reports_a_connection_without_callout_authentication(caller: Caller):
    assert (await caller.ask(conn_id="quiet")).callouts is False


async def test_the_feed_reports_how_the_callout_history_is_read(caller: Caller, app: Any):
    now = datetime.now(UTC)
    turn = take_turn(HistoryRequest(seconds=60.0), conn_id="quiet")
    assert (await caller.ask(conn_id="quiet", full=True)).history == HistoryStatus(late=480.0, read=False)
    cursor = replace(turn.cursor, read_at=now)
    take_turn(HistoryRequest(seconds=60.0, revision=turn.revision, cursor=cursor), conn_id="quiet")
    # It is known for some seconds, so that a long poll costs no query.
    reply = await caller.ask(conn_id="quiet", full=True)
    assert reply.history == HistoryStatus(late=480.0, read=False)

    feed_of(app)._histories.clear()
    reply = await caller.ask(conn_id="quiet", full=True)
    assert (reply.callouts, reply.history) == (False, HistoryStatus(late=480.0, read=True))
    reply = await caller.ask(conn_id="quiet", cursor=reply.cursor, wait=0.0)
    assert reply.history == HistoryStatus(late=480.0, read=True)
    # Where callouts come, they come first.
    assert (await caller.ask(full=True)).history is None


async def test_a_history_that_nothing_reads_for_a_week_is_not_set_up(caller: Caller):
    take_turn(HistoryRequest(seconds=60.0), conn_id="quiet", now=datetime.now(UTC) - timedelta(days=8))
    assert (await caller.ask(conn_id="quiet", full=True)).history is None


async def test_windows_are_reported_where_the_history_is_read(caller: Caller):
    entry = change("RUNNING")
    assert entry.transition is not None
    told = replace(entry, source=Source.HISTORY, transition=replace(entry.transition, source=Source.HISTORY))
    record([told], conn_id="quiet")
    passed = Window(datetime.now(UTC), datetime.now(UTC))
    meters = {"1": MeterQuestion(windows=frozenset({passed}))}

    take_turn(HistoryRequest(seconds=60.0), conn_id="quiet")

    (report,) = (await caller.ask(meters=meters, conn_id="quiet")).windows
    assert (report.window, report.callouts_before, report.received) == (passed, True, None)


async def test_the_reports_of_a_named_session_are_returned_where_they_are_asked_for(caller: Caller):
    entries = [change("RUNNING"), change("FAILED", before="RUNNING"), change("RUNNING", session="R-2")]
    await caller.post(OBSERVATIONS_PATH, observations_to_bytes(entries))
    reports = (await caller.ask(full=True, reports=True)).reports
    assert sorted((each.session_id, each.status, each.source) for each in reports) == [
        ("R-1", "FAILED", Source.RUN),
        ("R-1", "RUNNING", Source.RUN),
    ]
    assert (await caller.ask(full=True)).reports == ()
    assert (await caller.ask(conn_id="quiet", full=True, reports=True)).reports == ()


async def test_a_full_reply_has_the_windows_that_have_passed(caller: Caller):
    await caller.post(OBSERVATIONS_PATH, observations_to_bytes([change("RUNNING")]))
    now = datetime.now(UTC)
    passed, coming = (Window(now - timedelta(hours=1), now + timedelta(hours=hours)) for hours in (0, 1))
    meters = {"1": MeterQuestion(windows=frozenset({passed, coming}))}
    (report,) = (await caller.ask(meters=meters)).windows
    assert (report.meter_id, report.window) == ("1", passed)
    assert (report.callouts_before, report.received) == (False, "R-1")
    assert (await caller.ask(meters=meters, conn_id="quiet")).windows == ()


async def test_a_waiting_request_is_answered_as_soon_as_this_process_stores_a_change(caller: Caller):
    first = await caller.ask()
    waiting = asyncio.create_task(caller.ask(cursor=first.cursor, wait=10))
    others = [
        asyncio.create_task(caller.ask(cursor=first.cursor, wait=2, meters={"2": MeterQuestion()})) for _ in range(3)
    ]
    began = time.monotonic()
    while not waiting.done() and time.monotonic() - began < 5:
        await caller.post(OBSERVATIONS_PATH, observations_to_bytes([change("RUNNING")]))
        await asyncio.wait([waiting], timeout=1)
    assert statuses(waiting.result()) == {"R-1": "RUNNING"}
    assert all(statuses(reply) == {} for reply in await asyncio.gather(*others))


async def test_a_request_without_changes_ends_in_its_time(caller: Caller):
    first = await caller.ask()
    began = time.monotonic()
    reply = await caller.ask(cursor=first.cursor, wait=0.5)
    assert statuses(reply) == {}
    assert 0.4 < time.monotonic() - began < 5


async def test_on_shutdown_all_waiting_requests_end(caller: Caller, app: Any, monkeypatch: pytest.MonkeyPatch):
    """The server's own handler is called as well; the waiting requests end although nothing changed."""
    told: list[int] = []
    monkeypatch.setitem(_before, signal.SIGINT, lambda number, _frame: told.append(number))
    # A shell may have set it to be ignored.
    before = signal.signal(signal.SIGINT, _before[signal.SIGINT])
    try:
        first = await caller.ask()
        feed = feed_of(app)
        waiting = [asyncio.create_task(caller.ask(cursor=first.cursor, wait=20)) for _ in range(20)]
        await until(lambda: feed.changes.waiting == 20)
        began = time.monotonic()
        signal.raise_signal(signal.SIGINT)
        replies = await asyncio.gather(*waiting)
    finally:
        signal.signal(signal.SIGINT, before)
    assert told == [signal.SIGINT]
    assert [statuses(reply) for reply in replies] == [{}] * 20
    assert time.monotonic() - began < 15


async def test_a_client_that_disconnects_frees_its_slot(caller: Caller, app: Any):
    first = await caller.ask()
    feed = feed_of(app)
    body = FeedRequest(meters=ASKED, cursor=first.cursor, wait=20).to_bytes()
    proof = {"path": FEED_PATH, "conn_id": "zuora", "body": body, "timestamp": int(time.time())}
    headers = [(k.lower().encode(), v.encode()) for k, v in signed_headers(derive_key(SECRET), **proof).items()]
    scope = {"type": "http", "method": "POST", "path": FEED_PATH, "query_string": b"", "headers": headers}
    messages: asyncio.Queue[dict[str, Any]] = asyncio.Queue()
    messages.put_nowait({"type": "http.request", "body": body})

    async def send(_message: Any) -> None:
        pass

    serving = asyncio.create_task(app(scope, messages.get, send))
    await until(lambda: feed.changes.waiting == 1)
    messages.put_nowait({"type": "http.disconnect"})
    async with asyncio.timeout(15):
        await serving
    assert feed.changes.waiting == 0


async def test_a_request_above_the_limit_is_answered_at_once(caller: Caller, app: Any, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("airflow_mediation_provider.api_server.feed.MOST_WAITING", 1)
    first = await caller.ask()
    waiting = asyncio.create_task(caller.ask(cursor=first.cursor, wait=20))
    await until(lambda: feed_of(app).changes.waiting == 1)
    began = time.monotonic()
    assert statuses(await caller.ask(cursor=first.cursor, wait=20)) == {}
    assert time.monotonic() - began < 15
    feed_of(app).changes.close()
    await waiting


async def test_a_journal_that_cannot_be_read_is_a_503(app: Any, caller: Caller, monkeypatch: pytest.MonkeyPatch):
    await caller.ask()

    def broken(*_: Any, **_more: Any) -> None:
        raise OperationalError("select", {}, Exception("database is locked"))

    monkeypatch.setattr("airflow_mediation_provider.journal.queries.known_sessions", broken)
    reply = await caller.post(FEED_PATH, FeedRequest(meters=ASKED).to_bytes())
    assert (reply.status_code, reply.json()) == (503, {"success": False, "error": "temporarily unavailable"})


async def test_a_cursor_of_another_process_gets_recent_changes_and_an_old_one_none(caller: Caller):
    await caller.ask()
    await asyncio.to_thread(record, [change("RUNNING")], conn_id="zuora")
    other = str(Cursor("another", 999, time.time()))
    assert statuses(await caller.ask(cursor=other, wait=5)) == {"R-1": "RUNNING"}
    old = str(Cursor("another", 999, time.time() - 3600))
    too_old = await caller.ask(cursor=old)
    assert (too_old.cursor, too_old.sessions) == (None, ())  # the client asks for everything
    assert statuses(await caller.ask(cursor="what is this")) == {"R-1": "RUNNING"}


async def test_a_state_that_the_asker_has_is_left_out(caller: Caller):
    await asyncio.to_thread(record, [change("RUNNING")], conn_id="zuora")
    first = await caller.ask(full=True)
    assert (statuses(first), first.revisions, first.conditional) == ({"R-1": "RUNNING"}, (1,), True)
    known = {"1": replace(ASKED["1"], known={"R-1": 1})}
    assert (await caller.ask(meters=known, full=True)).sessions == ()
    await asyncio.to_thread(record, [change("COMPLETED")], conn_id="zuora")
    later = await caller.ask(meters=known, full=True)
    changed = await caller.ask(meters={"1": MeterQuestion()}, cursor=first.cursor, wait=5)
    assert statuses(later) == statuses(changed) == {"R-1": "COMPLETED"}
    assert later.revisions == changed.revisions == (2,)
    assert later.sessions == changed.sessions  # as stored, and as made anew


async def test_a_question_about_too_much_is_a_400_that_names_the_limit(caller: Caller, monkeypatch: pytest.MonkeyPatch):
    # A busy machine may take longer than the server allows.
    monkeypatch.setattr("airflow_mediation_provider.api_server.feed._LOOK_SECONDS", 60.0)
    meters = {str(number): MeterQuestion() for number in range(MOST_METERS + 1)}
    reply = await caller.post(FEED_PATH, FeedRequest(meters=meters, full=True).to_bytes())
    assert reply.status_code == 400
    assert f"asks for {MOST_METERS + 1} meters, at most {MOST_METERS}" in reply.json()["error"]
    assert (await caller.ask(meters=meters)).sessions == ()  # a long poll costs nothing for each
    since = frozenset(datetime.now(UTC) - timedelta(minutes=minute) for minute in range(MOST_INSTANTS))
    assert (await caller.ask(meters={"1": MeterQuestion(since=since)}, full=True)).sessions == ()
    two = dict.fromkeys("12", MeterQuestion(since=since))
    reply = await caller.post(FEED_PATH, FeedRequest(meters=two, full=True).to_bytes())
    assert (reply.status_code, f"at most {MOST_INSTANTS}" in reply.text) == (400, True)


async def test_each_connection_is_read_in_one_thread_at_a_time(
    caller: Caller, app: Any, monkeypatch: pytest.MonkeyPatch
):
    await caller.ask(full=True)
    running: list[str] = []
    began, go_on = threading.Event(), threading.Event()

    def slow(_session: Any, conn_id: str, *_: Any, **_more: Any) -> list[Any]:
        running.append(conn_id)
        began.set()
        if conn_id == "zuora":
            assert go_on.wait(5)
        return []

    monkeypatch.setattr("airflow_mediation_provider.journal.queries.known_sessions", slow)
    feed = feed_of(app)
    looks = [asyncio.ensure_future(caller.ask(full=True)) for _ in range(3)]
    assert await asyncio.to_thread(began.wait, 5)
    async with asyncio.timeout(5):
        reply = FeedReply(callouts=True)
        await feed._look("other", FeedRequest(full=True), reply, None)
    assert running == ["zuora", "other"]
    go_on.set()
    await asyncio.gather(*looks)
    assert running == ["zuora", "other", "zuora", "zuora"]


async def test_reported_waits_are_stored(caller: Caller, app: Any):
    now = datetime.now(UTC)
    names = dict.fromkeys(("id", "meter_id", "version", "dag_id", "run_id", "task_id", "mode"), "x")
    report = WaitReport(**names, session_id=None, condition={}, map_index=-1, try_number=1, created_at=now)
    await caller.ask(waits=Waits(open=(report,)))
    await asyncio.gather(*feed_of(app)._writing)
    with settings.NonScopedSession() as session:
        row = session.get(WaitRow, "x")
        assert row is not None
        assert (row.conn_id, row.created_at, row.ended_at) == ("zuora", now, None)


@pytest.mark.parametrize(
    ("changes", "status"),
    [
        ({"secret": "another"}, 401),
        ({"path": OBSERVATIONS_PATH}, 401),
        ({"body": b"another"}, 401),
        ({"timestamp": int(time.time()) - 3600}, 401),
        ({"conn_id": "nobody"}, 401),
    ],
    ids=["another secret", "another path", "another body", "an old one", "an unknown connection"],
)
async def test_an_unauthenticated_request_is_refused_without_data(caller: Caller, changes: dict[str, Any], status: int):
    body, changes = FeedRequest(meters=ASKED).to_bytes(), dict(changes)
    if "conn_id" in changes:
        reply = await caller.post(FEED_PATH, body, **changes)
    else:
        proof = {"path": FEED_PATH, "conn_id": "zuora", "body": body, "timestamp": int(time.time())}
        headers = signed_headers(derive_key(changes.pop("secret", SECRET)), **{**proof, **changes})
        reply = await caller._client.post(FEED_PATH, content=body, headers=headers)
    assert (reply.status_code, reply.json()) == (status, {"success": False, "error": "not authenticated"})


@pytest.mark.parametrize("body", [b"", b"[]", b"{}", b'{"protocol": 2}', b'{"protocol": 1, "meters": [1]}', b"\xff"])
async def test_an_invalid_message_is_a_400_with_its_reason(caller: Caller, body: bytes):
    for path in (FEED_PATH, OBSERVATIONS_PATH):
        reply = await caller.post(path, body)
        assert reply.status_code == 400
        assert reply.json()["error"].startswith(f"the {path[1:]} request ")
