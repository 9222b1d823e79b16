"""The feed's clients against a server that answers what a test has scripted."""

from __future__ import annotations

import asyncio
import json
from collections import deque
from datetime import UTC, datetime
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import pytest
from aiohttp import web

from airflow_mediation_provider.hooks.calls import forget_all, note, unreported
from airflow_mediation_provider.protocol.entry import Entry, EntryKind
from airflow_mediation_provider.protocol.feed import (
    FEED_PATH,
    OBSERVATIONS_PATH,
    FeedReply,
    FeedRequest,
    MeterQuestion,
    WaitEnded,
    WaitReport,
    derive_key,
    observations_from_bytes,
    verify,
)
from airflow_mediation_provider.protocol.lifecycle import SessionState, fold
from airflow_mediation_provider.protocol.transition import SessionTransition, Source
from airflow_mediation_provider.watch import feed_caller, feed_client
from airflow_mediation_provider.watch.feed_address import Candidate, candidates
from airflow_mediation_provider.watch.feed_caller import FeedCaller, FeedUnavailableError
from airflow_mediation_provider.watch.feed_client import FeedClient

if TYPE_CHECKING:
    from airflow_mediation_provider.protocol.calls import HourlyCalls

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
    """Answers the handshake; feed requests are kept, and answered from `replies`, or when there is one."""

    def __init__(self) -> None:
        self.requests: list[FeedRequest] = []
        self.entries: list[Entry] = []
        self.calls: list[HourlyCalls] = []
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
        verify(derive_key(SECRET), path=path, conn_id="zuora", body=body, headers=headers, now=_time())
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
    """A hub as the feed sees it."""

    def __init__(self) -> None:
        self.new_questions = asyncio.Event()
        self._new: set[str] = set()
        self.asked: dict[str, MeterQuestion] = dict(QUESTION)
        self.log: list[str] = []
        self.gone: list[WaitEnded] = []
        self.named: list[WaitReport] = []
        self.open: list[WaitReport] = []
        self.news = asyncio.Event()

    def came(self, meter_id: str, question: MeterQuestion) -> None:
        self.asked[meter_id] = question
        self._new.add(meter_id)
        self.new_questions.set()

    def new_meters(self) -> set[str]:
        self.new_questions.clear()
        found, self._new = self._new, set()
        return found

    def questions(self) -> dict[str, MeterQuestion]:
        return dict(self.asked)

    def open_waits(self) -> list[Any]:
        return list(self.open)

    def named_waits(self) -> list[Any]:
        named, self.named = self.named, []
        return named

    def ended_waits(self) -> list[Any]:
        gone, self.gone = self.gone, []
        return gone

    async def learn(self, states: Any) -> None:
        self._say(" ".join(each.status for each in states))

    def connected(self, *, callouts: bool) -> None:
        self._say(f"connected {callouts}")

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
async def server():
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


async def test_a_full_look_comes_first_and_changes_after_it(server: Any, following: Any):
    server.say(state("RUNNING"))
    server.say(state("COMPLETED"))
    await following.view.said("connected True", "RUNNING", "connected True", "COMPLETED")
    first, second = server.requests[:2]
    assert (first.full, first.cursor, first.meters) == (True, None, QUESTION)
    assert (second.full, second.cursor) == (False, "c")
    assert second.wait > 10


async def test_a_new_waiter_is_told_at_once_of_its_meter_alone(server: Any, following: Any):
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


async def test_a_waiter_for_what_another_one_was_told_before_is_told_too(server: Any, following: Any):
    """A task follows another one on the same session: nothing changes any more, and nobody was left to remember."""
    server.say(state("COMPLETED"))
    await following.view.said("connected True", "COMPLETED")
    following.view.came("1", QUESTION["1"])
    server.say(state("COMPLETED"))
    await following.view.said("connected True", "COMPLETED", "connected True", "COMPLETED")


async def test_who_left_asks_for_nothing_new(server: Any, following: Any):
    following.view.asked["2"] = MeterQuestion(sessions=frozenset({"R-8", "R-9"}))
    server.say()
    await following.view.said("connected True")
    following.view.asked["2"] = MeterQuestion(sessions=frozenset({"R-9"}))
    server.say(state("RUNNING"))
    server.say(state("COMPLETED"))
    await following.view.said("connected True", "connected True", "RUNNING", "connected True", "COMPLETED")
    assert [request.full for request in server.requests[:3]] == [True, False, False]


async def test_a_server_that_answers_at_once_without_news_is_not_asked_in_a_loop(
    server: Any, following: Any, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(feed_client, "NO_NEWS_SECONDS", 60.0)
    server.say()
    server.say()
    server.say()
    await server.asked(2)
    following.view.came("2", MeterQuestion())  # who comes meanwhile does not wait for the end of the pause
    await server.asked(3)
    assert [request.full for request in server.requests] == [True, False, True]


async def test_an_outage_is_healed_by_a_full_look(server: Any, following: Any, caplog: pytest.LogCaptureFixture):
    caplog.set_level("INFO")
    server.say()
    await following.view.said("connected True")
    server.say(status=503)
    server.say(status=503)
    server.say(state("COMPLETED"))
    await following.view.said("connected True", "lost: ", "lost: ", "connected True", "COMPLETED")
    assert server.requests[-2].full or server.requests[-1].full
    said = [record.getMessage() for record in caplog.records if record.name.endswith("feed_client")]
    assert sum("does not answer" in line for line in said) == 1
    assert sum("answers again" in line for line in said) == 1


async def test_a_refusal_says_why_and_the_secret_is_read_again(server: Any, following: Any):
    server.say()
    await following.view.said("connected True")
    server.say(status=401)
    server.say(state("RUNNING"))
    await following.view.said("connected True", f"lost: {server.url} answered 401: the API server finds another client")


async def test_another_service_is_not_taken_for_the_feed(server: Any):
    server.handshake = None

    async def secret() -> str:
        return SECRET

    client = FeedClient("zuora", secret, addresses=lambda: [Candidate(server.url, "a test")])
    view = View()
    task = asyncio.create_task(client.follow(view))
    await view.said(f"lost: no API server with this provider was found: {server.url} is another service")
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)


async def test_of_more_waits_than_a_request_takes_each_has_its_turn(
    server: Any, following: Any, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(feed_client, "MOST_REPORTS", 2)
    monkeypatch.setattr(feed_client, "FULL_LOOK_SECONDS", 0.0)
    following.view.open = [report(f"w{number}") for number in range(5)]
    for _ in range(4):
        server.say()
    await server.asked(4)
    reported = [[each.id for each in request.open] for request in server.requests[:4]]
    assert reported == [["w0", "w1"], ["w2", "w3"], ["w4", "w0"], ["w1", "w2"]]


async def test_what_was_observed_is_reported_once_the_feed_is_found(server: Any, following: Any):
    server.say()
    await following.view.said("connected True")
    poll = SessionTransition(meter_id="1", status="RUNNING", observed_at=NOW, source=Source.POLL)
    entry = Entry(kind=EntryKind.POLL, observed_at=NOW, source=Source.POLL, transition=poll)
    await following.client.observe([entry])
    assert server.entries == [entry]


async def test_the_ends_of_the_last_waits_are_reported_before_it_leaves(server: Any):
    async def secret() -> str:
        return SECRET

    client, view = FeedClient("zuora", secret, addresses=lambda: [Candidate(server.url, "a test")]), View()
    server.say()
    task = asyncio.create_task(client.follow(view))
    await server.asked(2)
    server.say()
    view.gone = [WaitEnded(id="1", outcome="MET", ended_at=NOW)]
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)
    assert [end.id for request in server.requests for end in request.ended] == ["1"]
    assert client.address == server.url


async def test_a_wait_that_learned_its_session_says_so_with_the_next_request(server: Any, following: Any):
    server.say()
    await server.asked(2)
    following.view.named = [report("1")]
    server.say()
    await server.asked(3)
    assert [request.open for request in server.requests] == [(), (), (report("1"),)]


def told_calls(server: Any) -> list[int]:
    """The calls of each feed request."""
    return [sum(each.calls for each in request.calls) for request in server.requests]


async def test_calls_are_reported_with_each_look_and_never_with_a_long_poll(server: Any, following: Any):
    """A long poll may end early, and then nobody knows whether it arrived."""
    server.say()
    await server.asked(2)
    note("zuora", None)
    note("other", None)
    following.view.came("2", MeterQuestion())
    await server.asked(3)
    server.say()
    await server.asked(4)
    assert [request.full for request in server.requests] == [True, False, True, False]
    assert told_calls(server) == [0, 0, 1, 0]
    assert (unreported("zuora"), len(unreported("other"))) == ((), 1)


async def test_calls_of_a_look_that_failed_are_reported_by_the_next(server: Any, following: Any):
    note("zuora", None)
    note("zuora", None)
    server.say(status=503)
    await following.view.said("lost: ")
    note("zuora", None)
    server.say()
    await server.asked(3)
    assert told_calls(server) == [2, 3, 0]


async def test_the_last_calls_are_reported_before_it_leaves(server: Any):
    async def secret() -> str:
        return SECRET

    client = FeedClient("zuora", secret, addresses=lambda: [Candidate(server.url, "a test")])
    server.say()
    task = asyncio.create_task(client.follow(View()))
    await server.asked(2)
    note("zuora", None)
    # The long poll that is under way may take one of them.
    server.say()
    server.say()
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)
    assert told_calls(server)[-1] == 1
    assert unreported("zuora") == ()


class TestCaller:
    @pytest.fixture
    def caller(self, server: Any, monkeypatch: pytest.MonkeyPatch):
        monkeypatch.setattr(feed_caller, "candidates", lambda: [Candidate(server.url, "a test")])
        hook = SimpleNamespace(
            mediation_conn_id="zuora", settings=SimpleNamespace(client_secret=SECRET, conn_id="zuora")
        )
        made = FeedCaller(hook)  # type: ignore[arg-type]
        yield made
        made.close()

    async def test_a_look_brings_the_present_state(self, server: Any, caller: FeedCaller):
        server.say(state("RUNNING"))
        reply = await asyncio.to_thread(caller.look, FeedRequest(meters=QUESTION, full=True))
        assert reply is not None
        assert [each.status for each in reply.sessions] == ["RUNNING"]

    async def test_without_an_answer_there_is_none_and_the_next_call_costs_nothing(
        self, server: Any, caller: FeedCaller, caplog: pytest.LogCaptureFixture
    ):
        caplog.set_level("INFO")
        await server.stop()
        for _ in range(3):
            assert await asyncio.to_thread(caller.look, FeedRequest(meters=QUESTION)) is None
            assert await asyncio.to_thread(caller.observe, []) is False
        said = [record.getMessage() for record in caplog.records if record.name.endswith("feed_caller")]
        assert len(said) == 1
        assert "going on with polls" in said[0]
        await server.start()

    async def test_a_refusal_says_why(self, server: Any, caller: FeedCaller):
        server.say(status=401)
        with pytest.raises(FeedUnavailableError, match="another client secret in connection 'zuora'"):
            await asyncio.to_thread(caller.call, FEED_PATH, FeedRequest().to_bytes())

    async def test_observations_arrive(self, server: Any, caller: FeedCaller):
        poll = SessionTransition(meter_id="1", status="RUNNING", observed_at=NOW, source=Source.POLL)
        entry = Entry(kind=EntryKind.POLL, observed_at=NOW, source=Source.POLL, transition=poll)
        assert await asyncio.to_thread(caller.observe, [entry]) is True
        assert server.entries == [entry]
        assert json.loads(await asyncio.to_thread(caller.call, OBSERVATIONS_PATH, b'{"protocol":1,"entries":[]}'))

    async def test_calls_go_with_whatever_is_told_first(self, server: Any, caller: FeedCaller):
        note("zuora", None)
        server.say()
        await asyncio.to_thread(caller.look, FeedRequest(meters=QUESTION))
        note("zuora", None)
        await asyncio.to_thread(caller.observe, [])
        await asyncio.to_thread(caller.observe, [])
        assert told_calls(server) == [1]
        assert [each.calls for each in server.calls] == [1]

    async def test_calls_can_be_reported_alone_and_are_only_where_there_are_some(self, server: Any, caller: FeedCaller):
        await asyncio.to_thread(caller.report_calls)
        assert caller.address is None
        note("zuora", None)
        await asyncio.to_thread(caller.report_calls)
        assert [each.calls for each in server.calls] == [1]
        assert unreported("zuora") == ()

    async def test_calls_that_could_not_be_reported_are_kept(self, server: Any, caller: FeedCaller):
        note("zuora", None)
        server.say(status=503)
        assert await asyncio.to_thread(caller.look, FeedRequest(meters=QUESTION)) is None
        assert [each.calls for each in unreported("zuora")] == [1]


def test_the_addresses_come_from_the_settings_in_their_order(monkeypatch: pytest.MonkeyPatch):
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
