"""The feed's clients against a server with scripted answers."""

from __future__ import annotations

import asyncio
import json
from collections import deque
from datetime import UTC, datetime
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import pytest
from aiohttp import web

from airflow_mediation_provider.feed import flow as feed_address
from airflow_mediation_provider.feed import long_poll as feed_client
from airflow_mediation_provider.feed import worker as feed_caller
from airflow_mediation_provider.feed.flow import Candidate, FeedUnavailableError, candidates
from airflow_mediation_provider.feed.long_poll import FeedClient
from airflow_mediation_provider.feed.worker import WorkerFeedClient
from airflow_mediation_provider.hooks.api_usage import count_request, forget_all, unreported
from airflow_mediation_provider.protocol.sessions.journal_entry import EntryKind, JournalEntry
from airflow_mediation_provider.protocol.sessions.lifecycle import SessionState, fold
from airflow_mediation_provider.protocol.transition import SessionTransition, Source
from airflow_mediation_provider.protocol.wire import (
    FEED_PATH,
    OBSERVATIONS_PATH,
    FeedReply,
    FeedRequest,
    HistoryStatus,
    MeterQuestion,
    NotAuthenticatedError,
    WaitEnded,
    WaitReport,
    derive_key,
    digest_of,
    observations_from_bytes,
    verify,
)

if TYPE_CHECKING:
    from airflow_mediation_provider.protocol.zuora.api_usage import HourlyUsage

SECRET = "client-secret"
NOW = datetime(2026, 3, 31, 12, tzinfo=UTC)
QUESTION = {"1": MeterQuestion(sessions=frozenset({"R-1"}))}


def state(status: str, session: str = "R-1") -> SessionState:
    transition = SessionTransition(
        meter_id="1", session_id=session, status=status, observed_at=NOW, source=Source.CALLOUT
    )
    return fold([transition])


def report(wait_id: str) -> WaitReport:
    return WaitReport(
        id=wait_id, meter_id="1", version="0.0.1", session_id="R-1", condition={}, dag_id="d", run_id="r", task_id="t",
        map_index=-1, try_number=1, mode="triggerer", created_at=NOW,
    )  # fmt: skip


class Server:
    """Answers the handshake; keeps feed requests, and answers them from `replies`, when there is one."""

    def __init__(self) -> None:
        self.requests: list[FeedRequest] = []
        self.entries: list[JournalEntry] = []
        self.calls: list[HourlyUsage] = []
        self.replies: deque[Any] = deque()
        self.more = asyncio.Event()
        self.came = asyncio.Event()
        self.handshake: Any = {"service": "mediation", "protocol": 1}

    async def start(self) -> str:
        app = web.Application()
        app.router.add_get("/mediation/handshake", self._greet)
        app.router.add_post("/mediation/feed", self._feed)
        app.router.add_post("/mediation/observations", self._observe)
        self._runner = web.AppRunner(app, shutdown_timeout=0.1, handler_cancellation=True)
        await self._runner.setup()
        await web.TCPSite(self._runner, "127.0.0.1", 0).start()
        return f"http://127.0.0.1:{self._runner.addresses[0][1]}/mediation"

    async def stop(self) -> None:
        await self._runner.cleanup()

    async def asked(self, times: int) -> None:
        async with asyncio.timeout(10):
            while len(self.requests) < times:
                self.came.clear()
                await self.came.wait()

    def say(self, *states: SessionState, status: int = 200, callouts: bool = True) -> None:
        self.replies.append((status, FeedReply(cursor="c", callouts=callouts, sessions=states).to_bytes()))
        self.more.set()

    async def _greet(self, _request: web.Request) -> web.Response:
        if self.handshake is None:
            return web.Response(text="<html>", content_type="text/html")
        return web.json_response(self.handshake)

    async def _proven(self, request: web.Request) -> bytes:
        body = await request.read()
        headers = {name.lower(): value for name, value in request.headers.items()}
        path = request.path.removeprefix("/mediation")
        try:
            verify(derive_key(SECRET), path=path, conn_id="zuora", digest=digest_of(body), headers=headers, now=_time())
        except NotAuthenticatedError as error:
            raise web.HTTPUnauthorized from error
        return body

    async def _feed(self, request: web.Request) -> web.Response:
        self.requests.append(FeedRequest.from_bytes(await self._proven(request)))
        self.came.set()
        while not self.replies:
            self.more.clear()
            await self.more.wait()
        status, body = self.replies.popleft()
        return web.Response(status=status, body=body)

    async def _observe(self, request: web.Request) -> web.Response:
        told = observations_from_bytes(await self._proven(request))
        self.entries += told.entries
        self.calls += told.calls
        return web.json_response({"new": 1, "duplicates": 0})


def _time() -> float:
    return datetime.now(UTC).timestamp()


class View:
    """The hub as the feed sees it."""

    def __init__(self) -> None:
        self.new_questions = asyncio.Event()
        self._new: dict[str, MeterQuestion] = {}
        self.asked: dict[str, MeterQuestion] = dict(QUESTION)
        self.log: list[str] = []
        self.gone: list[WaitEnded] = []
        self.reporter = "reporter"
        self.new: list[WaitReport] = []
        self.lost: list[WaitReport] = []
        self.heard: list[str] = []
        self.revisions: list[int] = []
        self.news = asyncio.Event()

    def came(self, meter_id: str, question: MeterQuestion) -> None:
        self.asked[meter_id] = question
        self._new[meter_id] = question
        self.new_questions.set()

    def take_new_questions(self) -> dict[str, MeterQuestion]:
        self.new_questions.clear()
        found, self._new = self._new, {}
        return found

    def questions(self) -> dict[str, MeterQuestion]:
        return dict(self.asked)

    def meters(self) -> list[str]:
        return list(self.asked)

    def reports(self, most: int, *, again: bool) -> list[WaitReport]:
        return [*self.new, *(self.lost if again else ())][:most]

    def reported(self, *, kept: bool) -> None:
        self.heard.append("kept" if kept else "not kept")

    def report_again(self) -> None:
        self.heard.append("again")

    def ended_waits(self) -> list[Any]:
        gone, self.gone = self.gone, []
        return gone

    async def receive(self, states: Any, revisions: Any) -> None:
        self.revisions += revisions
        self._say(" ".join(each.status for each in states))

    def connected(self, *, callouts: bool, history: HistoryStatus | None) -> None:
        self._say(f"connected {callouts}" + (f", history {history.read}" if history else ""))

    def disconnected(self, reason: str) -> None:
        self._say(f"lost: {reason}")

    def _say(self, what: str) -> None:
        self.log.append(what)
        self.news.set()

    async def said(self, *words: str) -> None:
        async with asyncio.timeout(10):
            while not (len(self.log) >= len(words) and all(map(str.startswith, self.log, words))):
                self.news.clear()
                await self.news.wait()


@pytest.fixture
async def server(services):
    made = Server()
    made.url = await made.start()  # type: ignore[attr-defined]
    yield made
    await made.stop()


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(feed_client, "BACKOFF_SECONDS", (0.01,))
    monkeypatch.setattr(feed_client, "GATHER_SECONDS", 0.0)
    monkeypatch.setattr(feed_client, "SHORTEST_SECONDS", 0.0)
    monkeypatch.setattr(feed_client, "NO_NEWS_SECONDS", 0.0)
    feed_caller.forget_address()
    forget_all()


@pytest.fixture
async def following(server: Any):
    secrets = [SECRET]

    async def secret() -> str:
        return secrets[0]

    client = FeedClient("zuora", secret, addresses=lambda: [Candidate(server.url, "a test")])
    view = View()
    task = asyncio.create_task(client.follow(view))
    yield SimpleNamespace(client=client, view=view, secrets=secrets)
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)


async def test_a_full_read_comes_first_and_changes_after_it(server: Any, following: Any):
    server.say(state("RUNNING"))
    server.say(state("COMPLETED"))
    await following.view.said("connected True", "RUNNING", "connected True", "COMPLETED")
    first, second = server.requests[:2]
    assert (first.full, first.cursor, first.meters) == (True, None, QUESTION)
    assert (second.full, second.cursor) == (False, "c")
    assert second.wait > 10


async def test_for_a_new_waiter_only_its_meter_is_read_at_once(server: Any, following: Any):
    server.say()
    await server.asked(2)
    following.view.came("2", MeterQuestion(since=frozenset({NOW})))
    await server.asked(3)
    server.say(state("FAILED"))
    await following.view.said("connected True", "connected True", "FAILED")
    assert server.requests[2].full
    assert server.requests[2].meters == {"2": MeterQuestion(since=frozenset({NOW}))}
    await server.asked(4)
    assert (server.requests[3].full, set(server.requests[3].meters)) == (False, {"1", "2"})


async def test_a_second_waiter_receives_a_state_that_the_first_one_had(server: Any, following: Any):
    """A task follows another one on the same session: nothing changes any more, and the first waiter has left."""
    server.say(state("COMPLETED"))
    await following.view.said("connected True", "COMPLETED")
    following.view.came("1", QUESTION["1"])
    server.say(state("COMPLETED"))
    await following.view.said("connected True", "COMPLETED", "connected True", "COMPLETED")


async def test_a_closed_waiter_causes_no_request(server: Any, following: Any):
    following.view.asked["2"] = MeterQuestion(sessions=frozenset({"R-8", "R-9"}))
    server.say()
    await following.view.said("connected True")
    following.view.asked["2"] = MeterQuestion(sessions=frozenset({"R-9"}))
    server.say(state("RUNNING"))
    server.say(state("COMPLETED"))
    await following.view.said("connected True", "connected True", "RUNNING", "connected True", "COMPLETED")
    assert [request.full for request in server.requests[:3]] == [True, False, False]


async def test_a_loop_that_ends_during_the_last_report_leaves_no_connection_open(server: Any):
    async def secret() -> str:
        return SECRET

    client, view = FeedClient("zuora", secret, addresses=lambda: [Candidate(server.url, "a test")]), View()
    follows = asyncio.create_task(client.follow(view))
    server.say()
    await view.said("connected True")
    view.gone.append(WaitEnded(id="w-1", outcome="left", ended_at=NOW, owner="o"))
    before = len(server.requests)
    follows.cancel()
    await server.asked(before + 1)
    follows.cancel()
    await asyncio.gather(follows, return_exceptions=True)
    assert client._http is None


async def test_immediate_answers_without_news_do_not_make_a_busy_loop(
    server: Any, following: Any, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(feed_client, "NO_NEWS_SECONDS", 60.0)
    server.say()
    server.say()
    server.say()
    await server.asked(2)
    following.view.came("2", MeterQuestion())  # a new waiter does not wait for the end of the pause
    await server.asked(3)
    assert [request.full for request in server.requests] == [True, False, True]


async def test_a_full_read_follows_an_outage(server: Any, following: Any, caplog: pytest.LogCaptureFixture):
    caplog.set_level("INFO")
    server.say()
    await following.view.said("connected True")
    server.say(status=503)
    server.say(status=503)
    server.say(state("COMPLETED"))
    await following.view.said("connected True", "lost: ", "lost: ", "connected True", "COMPLETED")
    assert server.requests[-2].full or server.requests[-1].full
    said = [record.getMessage() for record in caplog.records if record.name.endswith("feed.long_poll")]
    assert sum("did not answer" in line for line in said) == 1
    assert sum("answers again" in line for line in said) == 1


async def test_after_a_refusal_the_reason_is_logged_and_the_secret_is_read_again(server: Any, following: Any):
    server.say()
    await following.view.said("connected True")
    server.say(status=401)
    server.say(state("RUNNING"))
    await following.view.said("connected True", f"lost: {server.url} answered 401: the API server has another client")


async def test_another_service_is_not_taken_for_the_feed(server: Any):
    server.handshake = None

    async def secret() -> str:
        return SECRET

    client = FeedClient("zuora", secret, addresses=lambda: [Candidate(server.url, "a test")])
    view = View()
    task = asyncio.create_task(client.follow(view))
    await view.said(f"lost: no API server with this provider was found: {server.url} is another service, or")
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)


async def test_new_waits_are_in_each_request_and_lost_ones_in_full_reads_only(server: Any, following: Any):
    following.view.new, following.view.lost = [report("w1")], [report("w2")]
    server.say()
    await server.asked(2)
    following.view.new, following.view.lost = [report("w3")], []
    following.view.came("1", QUESTION["1"])
    await server.asked(3)
    following.view.new = []
    server.say()
    await server.asked(4)
    asked = [(each.full, [wait.id for wait in each.waits.open], each.waits.reporter) for each in server.requests]
    # The first long poll is interrupted by the new waiter.
    assert asked == [
        (True, ["w1", "w2"], "reporter"),
        (False, ["w1"], "reporter"),
        (True, ["w3"], "reporter"),
        (False, [], ""),
    ]


async def test_observations_are_reported_once_the_feed_is_found(server: Any, following: Any):
    server.say()
    await following.view.said("connected True")
    poll = SessionTransition(meter_id="1", status="RUNNING", observed_at=NOW, source=Source.POLL)
    entry = JournalEntry(kind=EntryKind.POLL, observed_at=NOW, source=Source.POLL, transition=poll)
    await following.client.observe([entry])
    assert server.entries == [entry]


async def test_the_ends_of_the_last_waits_are_reported_before_the_feed_ends(server: Any):
    async def secret() -> str:
        return SECRET

    client, view = FeedClient("zuora", secret, addresses=lambda: [Candidate(server.url, "a test")]), View()
    server.say()
    task = asyncio.create_task(client.follow(view))
    await server.asked(2)
    # The long poll in progress may take one of them.
    server.say()
    server.say()
    view.gone = [WaitEnded(id="1", outcome="MET", ended_at=NOW)]
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)
    assert [end.id for request in server.requests for end in request.waits.ended] == ["1"]
    assert client.address == server.url


async def test_a_long_poll_names_only_meters_where_the_server_allows_it(server: Any, following: Any):
    server.replies.append((200, FeedReply(cursor="c", callouts=True, conditional=True).to_bytes()))
    server.replies.append((200, FeedReply(cursor=None, callouts=True, conditional=True).to_bytes()))
    server.more.set()
    await server.asked(3)
    assert [(each.full, each.meters) for each in server.requests] == [
        (True, QUESTION),
        (False, {"1": MeterQuestion()}),
        (True, QUESTION),  # the cursor was too old
    ]


async def test_a_large_question_is_asked_in_parts(server: Any, following: Any, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(feed_client, "MOST_METERS", 2)
    for number in range(2, 6):
        following.view.asked[str(number)] = MeterQuestion()
    for cursor in ("first", "second", "third"):
        reply = FeedReply(cursor=cursor, callouts=True, sessions=(state("RUNNING"),), revisions=(1,))
        server.replies.append((200, reply.to_bytes()))
    server.more.set()
    await server.asked(4)
    assert [list(each.meters) for each in server.requests] == [["1", "2"], ["3", "4"], ["5"], ["1", "2", "3", "4", "5"]]
    assert server.requests[3].cursor == "first"
    assert following.view.revisions == [1, 1, 1]


async def test_no_request_has_more_reports_than_the_server_takes(
    server: Any, following: Any, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(feed_client, "MOST_REPORTS", 2)
    following.view.new = [report(f"w{number}") for number in range(5)]
    server.say()
    await server.asked(2)
    assert [[each.id for each in request.waits.open] for request in server.requests] == [["w0", "w1"]] * 2


@pytest.mark.parametrize("kept", [True, False])
@pytest.mark.parametrize("known", [True, False])
async def test_the_view_is_notified_of_what_the_server_has(server: Any, following: Any, kept: bool, known: bool):
    reply = FeedReply(cursor="c", callouts=True, kept=kept, reporter_known=known)
    server.replies.append((200, reply.to_bytes()))
    server.more.set()
    await following.view.said("connected True")
    assert following.view.heard == [*(() if known else ("again",)), "kept" if kept else "not kept"]


async def test_a_single_query_apart_from_the_followed_feed(server: Any):
    async def secret() -> str:
        return SECRET

    client = FeedClient("zuora", secret, addresses=lambda: [Candidate(server.url, "a test")])
    server.replies.append((200, FeedReply(cursor="c", callouts=False, owners={"w": "me"}).to_bytes()))
    server.more.set()
    reply = await client.ask(FeedRequest(meters=QUESTION, full=True, owners=("w",)))
    await client.close()
    assert (reply.callouts, reply.owners, server.requests[0].owners) == (False, {"w": "me"}, ("w",))


def reported_calls(server: Any) -> list[int]:
    """Return the calls in each feed request."""
    return [sum(each.calls for each in request.calls) for request in server.requests]


async def test_calls_are_reported_with_each_read_and_never_with_a_long_poll(server: Any, following: Any):
    """A long poll may end early, and then it is unknown whether it was received."""
    server.say()
    await server.asked(2)
    count_request("zuora", None)
    count_request("other", None)
    following.view.came("2", MeterQuestion())
    await server.asked(3)
    server.say()
    await server.asked(4)
    assert [request.full for request in server.requests] == [True, False, True, False]
    assert reported_calls(server) == [0, 0, 1, 0]
    assert (unreported("zuora"), len(unreported("other"))) == ((), 1)


async def test_calls_of_a_failed_read_are_reported_by_the_next(server: Any, following: Any):
    count_request("zuora", None)
    count_request("zuora", None)
    server.say(status=503)
    await following.view.said("lost: ")
    count_request("zuora", None)
    server.say()
    await server.asked(3)
    assert reported_calls(server) == [2, 3, 0]


async def test_the_last_calls_are_reported_before_the_feed_ends(server: Any):
    async def secret() -> str:
        return SECRET

    client = FeedClient("zuora", secret, addresses=lambda: [Candidate(server.url, "a test")])
    server.say()
    task = asyncio.create_task(client.follow(View()))
    await server.asked(2)
    count_request("zuora", None)
    # The long poll in progress may take one of them.
    server.say()
    server.say()
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)
    assert reported_calls(server)[-1] == 1
    assert unreported("zuora") == ()


class TestCaller:
    @pytest.fixture
    def caller(self, server: Any, monkeypatch: pytest.MonkeyPatch):
        monkeypatch.setattr(feed_address, "candidates", lambda: [Candidate(server.url, "a test")])
        hook = SimpleNamespace(
            mediation_conn_id="zuora", settings=SimpleNamespace(client_secret=SECRET, conn_id="zuora")
        )
        made = WorkerFeedClient(hook)  # type: ignore[arg-type]
        yield made
        made.close()

    async def test_a_query_returns_the_present_state(self, server: Any, caller: WorkerFeedClient):
        server.say(state("RUNNING"))
        reply = await asyncio.to_thread(caller.ask, FeedRequest(meters=QUESTION, full=True))
        assert reply is not None
        assert [each.status for each in reply.sessions] == ["RUNNING"]

    async def test_after_a_missing_answer_the_next_call_returns_at_once(
        self, server: Any, caller: WorkerFeedClient, caplog: pytest.LogCaptureFixture
    ):
        caplog.set_level("INFO")
        await server.stop()
        for _ in range(3):
            assert await asyncio.to_thread(caller.ask, FeedRequest(meters=QUESTION)) is None
        assert caplog.records == []  # good answers may follow a missing one
        assert caller.trouble.startswith(f"no API server with this provider was found: {server.url}/handshake gave no")
        assert await asyncio.to_thread(caller.observe, []) is False
        await server.start()

    async def test_a_lost_report_is_logged_once(
        self, server: Any, caller: WorkerFeedClient, caplog: pytest.LogCaptureFixture
    ):
        caplog.set_level("INFO")
        await server.stop()
        for _ in range(3):
            assert await asyncio.to_thread(caller.observe, []) is False
        ours = [record for record in caplog.records if record.name.startswith("airflow_mediation_provider")]
        assert [record.getMessage().partition(": ")[0] for record in ours] == [
            "This task's report was not stored in the journal, which only the pages show"
        ]
        await server.start()

    async def test_after_a_refusal_the_secret_is_read_again(self, server: Any, caller: WorkerFeedClient):
        hook: Any = caller._hook
        hook.settings.client_secret = "an old one"
        hook.close = lambda: setattr(hook.settings, "client_secret", SECRET)
        server.say()
        assert await asyncio.to_thread(caller.ask, FeedRequest(meters=QUESTION)) is None
        assert await asyncio.to_thread(caller.ask, FeedRequest(meters=QUESTION)) is not None

    async def test_a_refusal_raises_with_its_reason(self, server: Any, caller: WorkerFeedClient):
        server.say(status=401)
        with pytest.raises(FeedUnavailableError, match="another client secret in connection 'zuora'"):
            await asyncio.to_thread(caller.call, FEED_PATH, FeedRequest().to_bytes())

    async def test_observations_are_received(self, server: Any, caller: WorkerFeedClient):
        poll = SessionTransition(meter_id="1", status="RUNNING", observed_at=NOW, source=Source.POLL)
        entry = JournalEntry(kind=EntryKind.POLL, observed_at=NOW, source=Source.POLL, transition=poll)
        assert await asyncio.to_thread(caller.observe, [entry]) is True
        assert server.entries == [entry]
        assert json.loads(await asyncio.to_thread(caller.call, OBSERVATIONS_PATH, b'{"protocol":1,"entries":[]}'))

    async def test_calls_are_reported_with_the_first_report(self, server: Any, caller: WorkerFeedClient):
        count_request("zuora", None)
        server.say()
        await asyncio.to_thread(caller.ask, FeedRequest(meters=QUESTION))
        count_request("zuora", None)
        await asyncio.to_thread(caller.observe, [])
        await asyncio.to_thread(caller.observe, [])
        assert reported_calls(server) == [1]
        assert [each.calls for each in server.calls] == [1]

    async def test_calls_are_reported_alone_only_if_there_are_some(self, server: Any, caller: WorkerFeedClient):
        await asyncio.to_thread(caller.report_calls)
        assert caller.address is None
        count_request("zuora", None)
        await asyncio.to_thread(caller.report_calls)
        assert [each.calls for each in server.calls] == [1]
        assert unreported("zuora") == ()

    async def test_calls_that_could_not_be_reported_are_kept(self, server: Any, caller: WorkerFeedClient):
        count_request("zuora", None)
        server.say(status=503)
        assert await asyncio.to_thread(caller.ask, FeedRequest(meters=QUESTION)) is None
        assert [each.calls for each in unreported("zuora")] == [1]


def test_the_addresses_are_those_of_the_settings_in_order(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("AIRFLOW__MEDIATION__FEED_URL", "https://feed.example/air/mediation/")
    monkeypatch.setenv("AIRFLOW__CORE__EXECUTION_API_SERVER_URL", "http://exec:8080/air/execution/")
    monkeypatch.setenv("AIRFLOW__API__BASE_URL", "https://airflow.example/air")
    assert [(each.url, each.source) for each in candidates()] == [
        ("https://feed.example/air/mediation", "[mediation] feed_url"),
        ("http://exec:8080/air/mediation", "[core] execution_api_server_url"),
        ("https://airflow.example/air/mediation", "[api] base_url"),
    ]
    monkeypatch.setenv("AIRFLOW__CORE__EXECUTION_API_SERVER_URL", "https://airflow.example/air/execution/")
    assert len(candidates()) == 2
