"""The application under `/mediation` in this process, asked without HTTP: what its answers cost it.

`bounds` starts this file by its path, also beside the packages of an earlier commit: what differs between the
versions is looked up here. Commands are lines of JSON on the standard input, and each gets one line in return. Costs
are the processor time of this process, in seconds.
"""

from __future__ import annotations

import asyncio
import base64
import contextlib
import gc
import hashlib
import hmac
import importlib
import json
import os
import re
import sys
import time
from collections import Counter
from dataclasses import dataclass, fields, replace
from datetime import UTC, datetime, timedelta
from html import unescape
from itertools import cycle
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence

SECRET: Final = "s3cret-of-the-benchmark"
CONN_ID: Final = "bench"
OTHER: Final = "other"
"""A second connection."""
QUIET: Final = "quiet"
"""A connection without callouts: its meters are polled."""
READS_A_MINUTE: Final = 240
"""Of the database, for changes: one each quarter of a second while a request waits."""
_READ_SECONDS: Final = 0.26
_MOUNT: Final = "/mediation"
_LIST: Final = f"{_MOUNT}/sessions"
_TAB_SECONDS: Final = 5.0
"""A tab asks for its page so often, in each version."""
_PART: Final = re.compile(r'data-src="([^"]+)" data-every="(\d+)"')


def control() -> float:
    """Do a fixed piece of work, and return its processor time: it shows what else the machine does."""
    began = time.thread_time()
    sum(number * number for number in range(20_000))
    return time.thread_time() - began


def set_up(address: str, home: str) -> None:
    """Set Airflow up in this process, on an empty database, whose tables are made; before Airflow is imported."""
    connection = {"conn_type": "mediation", "password": SECRET}
    callouts = {**connection, "extra": {"callout_hmac_secret": SECRET}}
    os.environ.update(
        AIRFLOW_HOME=home,
        AIRFLOW__DATABASE__SQL_ALCHEMY_CONN=address,
        AIRFLOW__DATABASE__LOAD_DEFAULT_CONNECTIONS="False",
        AIRFLOW__CORE__LOAD_EXAMPLES="False",
        AIRFLOW__CORE__SIMPLE_AUTH_MANAGER_ALL_ADMINS="True",
        AIRFLOW__API_AUTH__JWT_SECRET=2 * SECRET,
        AIRFLOW__LOGGING__LOGGING_LEVEL="ERROR",
        AIRFLOW_CONN_BENCH=json.dumps(callouts),
        AIRFLOW_CONN_OTHER=json.dumps(callouts),
        AIRFLOW_CONN_QUIET=json.dumps(connection),
    )
    from airflow import settings
    from airflow.models import import_all_models
    from airflow.models.base import Base as AirflowBase

    from airflow_mediation_provider.journal.tables import Base

    import_all_models()
    assert settings.engine is not None
    for tables in (AirflowBase.metadata, Base.metadata):
        tables.create_all(settings.engine)


def wire() -> Any:
    """Return the module of the feed's messages."""
    try:
        return importlib.import_module("airflow_mediation_provider.protocol.wire")
    except ImportError:
        return importlib.import_module("airflow_mediation_provider.protocol.feed")


@dataclass
class Cost:
    """Processor time of this process, full garbage collections, their time, and that of the control beside it."""

    seconds: float = 0.0
    collections: int = 0
    collecting: float = 0.0
    control: float = 0.0

    def add(self, other: Cost) -> None:
        """Add another cost."""
        self.seconds += other.seconds
        self.collections += other.collections
        self.collecting += other.collecting
        self.control = max(self.control, other.control)

    def plain(self) -> list[float]:
        """Return it as JSON."""
        return [self.seconds, self.collections, self.collecting, self.control]


@contextlib.contextmanager
def measured() -> Iterator[Cost]:
    """Measure what happens within the context."""
    cost, began = Cost(control=control()), 0.0

    def collected(phase: str, info: Mapping[str, int]) -> None:
        nonlocal began
        if info["generation"] < 2:
            return
        if phase == "start":
            began = time.process_time()
        else:
            cost.collections += 1
            cost.collecting += time.process_time() - began

    gc.callbacks.append(collected)
    at = time.process_time()
    try:
        yield cost
    finally:
        cost.seconds = time.process_time() - at
        gc.callbacks.remove(collected)


class Server:
    """The application, beside Airflow's own: a full collection visits the objects of both."""

    def __init__(self, address: str) -> None:
        from airflow.api_fastapi.app import create_app as create_airflow

        from airflow_mediation_provider.api_server.app import create_app

        self._address = address
        self._airflow = create_airflow("core")
        self._app = create_app()
        self._wire = wire()
        self._key = self._wire.derive_key(SECRET)
        self._sessions = 0
        self._bytes = 0
        self._reported: Sequence[Any] = ()
        self._callouts = 0

    # ---- requests ----

    async def _feed(self, request: Any, conn_id: str = CONN_ID) -> bytes:
        """Send a message to the feed, and return its answer."""
        return await self._ask(request.to_bytes(), conn_id)

    async def _ask(self, body: bytes, conn_id: str = CONN_ID) -> bytes:
        path = self._wire.FEED_PATH
        now = int(time.time())
        headers = self._wire.signed_headers(self._key, path=path, conn_id=conn_id, body=body, timestamp=now)
        return await self._post(path, body, headers)

    async def _callout(self) -> float:
        """Send a callout about a new session, and return the seconds until its answer, which may refuse it."""
        self._callouts += 1
        event = {
            "meterId": "1",
            "sessionId": f"C-{self._callouts}",
            "runType": "NORMAL",
            "status": "COMPLETED",
            "previousStatus": "RUNNING",
        }
        body = json.dumps(event).encode()
        signature = base64.b64encode(hmac.digest(SECRET.encode(), body, hashlib.sha256)).decode()
        headers = {"X-Mediation-Signature": signature, "Zuora-Notification-Id": f"n-{self._callouts}"}
        began = time.perf_counter()
        await self._post(f"/callouts/{OTHER}", body, headers, accepted=(200, 503))
        return time.perf_counter() - began

    async def _post(
        self, path: str, body: bytes, headers: Mapping[str, str], *, accepted: tuple[int, ...] = (200,)
    ) -> bytes:
        answer, _ = await self._send("POST", path, body, headers, accepted=accepted)
        return answer

    async def _get(self, address: str, headers: Mapping[str, str]) -> tuple[str, dict[bytes, bytes]]:
        """Open the address of a page as a browser does, and return its text and the headers of the answer."""
        path, _, query = address.partition("?")
        answer, found = await self._send("GET", path, b"", headers, query=query, accepted=(200, 304))
        return answer.decode(), found

    async def _send(
        self,
        method: str,
        path: str,
        body: bytes,
        headers: Mapping[str, str],
        *,
        query: str = "",
        accepted: tuple[int, ...],
    ) -> tuple[bytes, dict[bytes, bytes]]:
        root = _MOUNT if path.startswith(_MOUNT) else ""
        encoded = [(name.lower().encode(), value.encode()) for name, value in headers.items()]
        scope: dict[str, Any] = {"type": "http", "asgi": {"version": "3.0"}, "http_version": "1.1", "method": method}
        scope |= {"path": path, "raw_path": path.encode(), "root_path": root, "query_string": query.encode()}
        scope |= {"headers": encoded, "client": ("127.0.0.1", 1), "server": ("127.0.0.1", 2), "scheme": "http"}
        gone = asyncio.get_running_loop().create_future()
        answer, status, sent = bytearray(), 0, False
        found: dict[bytes, bytes] = {}

        async def receive() -> dict[str, Any]:
            nonlocal sent
            if sent:
                await gone
            sent = True
            return {"type": "http.request", "body": body, "more_body": False}

        async def send(message: Any) -> None:
            nonlocal status
            status = message.get("status", status)
            found.update(message.get("headers", ()))
            answer.extend(message.get("body", b""))

        await self._app(scope, receive, send)
        assert status in accepted, (status, bytes(answer[:500]))
        return bytes(answer), found

    # ---- commands ----

    async def seed(self, rows: int) -> int:
        """Fill the journal, and return how many sessions it has."""
        journal_rows = importlib.import_module("benchmarks.journal_rows")
        self._sessions = journal_rows.seed(self._address, rows)
        return self._sessions

    async def heap(self) -> int:
        """Return how many objects a full collection visits."""
        gc.collect()
        return len(gc.get_objects())

    async def looks(self, times: int, known: bool, meters: int = 20) -> list[list[float]]:
        """Read the state of some meters: ten named sessions of each, and the first ones after two instants.

        :param known: the asker has all of it already, as a triggerer has each minute but the first
        """
        question = self._question(meters)
        body = self._wire.FeedRequest(meters=question, full=True).to_bytes()
        if known:
            reply = self._wire.FeedReply.from_bytes(await self._ask(body))
            body = self._wire.FeedRequest(meters=self._known(question, reply), full=True).to_bytes()
        costs = []
        for _ in range(times):
            with measured() as cost:
                await self._ask(body)
            costs.append(cost.plain())
        return costs

    async def sessions_of(self, meters: int = 20) -> int:
        """Return how many sessions `looks` is about."""
        reply = self._wire.FeedReply.from_bytes(
            await self._feed(self._wire.FeedRequest(meters=self._question(meters), full=True))
        )
        return len(reply.sessions)

    async def minutes(self, times: int, waits: int, meters: int) -> list[list[float]]:
        """Let a triggerer report its waits again, of which nothing changed, and ask for its sessions and changes."""
        question = self._question(meters, instants=False)
        reports = self._reports(waits, question)
        await self._report(reports, question, begins=True)
        reply = self._wire.FeedReply.from_bytes(await self._report(reports, question, begins=False))
        question = self._known(question, reply)
        costs = []
        for _ in range(times):
            with measured() as cost:
                answer = self._wire.FeedReply.from_bytes(await self._report(reports, question, begins=False))
                for _ in range(3):
                    await self._feed(self._wire.FeedRequest(meters=question, cursor=answer.cursor))
            await self._settled()
            costs.append(cost.plain())
        return costs

    async def callouts(self, waits: int, count: int, again: bool) -> dict[str, list[float]]:
        """Send callouts by themselves, and beside a report of waits; return the seconds until each was accepted.

        :param again: the waits are stored already; otherwise they begin
        """
        question = self._question(10, instants=False)
        if not again:
            self._reported = self._reports(waits, question)
        alone = [await self._callout() for _ in range(count)]
        beside: list[float] = []
        report = asyncio.create_task(self._report(self._reported, question, begins=not again))
        await asyncio.sleep(0)
        while not report.done() or len(beside) < 3 or self._busy():
            beside.append(await self._callout())
        await report
        return {"alone": alone, "beside": beside}

    async def fairness(self, meters: int, count: int) -> dict[str, list[float]]:
        """Ask for one session, alone and while another connection asks for many meters; return the seconds of each."""
        mine = self._question(1, instants=False)
        body = self._wire.FeedRequest(meters=mine, full=True).to_bytes()
        since = frozenset({datetime.now(UTC) - timedelta(days=1)})
        many = {f"M-{number}": self._wire.MeterQuestion(since=since) for number in range(meters)}
        most = getattr(self._wire, "MOST_METERS", meters)
        names = list(many)
        parts = [
            self._wire.FeedRequest(meters={name: many[name] for name in names[at : at + most]}, full=True).to_bytes()
            for at in range(0, meters, most)
        ]

        async def ask() -> float:
            began = time.perf_counter()
            await self._ask(body)
            return time.perf_counter() - began

        async def ask_all() -> None:
            for part in parts:
                await self._ask(part, OTHER)

        alone = [await ask() for _ in range(count)]
        asking = asyncio.create_task(ask_all())
        await asyncio.sleep(0.02)
        beside = []
        while not asking.done():
            beside.append(await ask())
        await asking
        return {"alone": alone, "beside": beside}

    async def fleet(self, triggerers: int, meters: int, sessions: int, changes: Sequence[int]) -> list[list[float]]:
        """Return what a minute costs for each number of changed sessions in it, and the full collections in it.

        Each triggerer waits for all sessions of all meters, which it has; it asks once for its state, and for changes
        every 20 s or, while there are some, every two. Its reporter is the only row that it writes.

        :param sessions: of each meter
        """
        record = importlib.import_module("airflow_mediation_provider.journal.writer").record
        self._make_running(meters, sessions)
        question = {
            f"F-{meter}": self._wire.MeterQuestion(
                sessions=frozenset(f"F-{meter}-{number}" for number in range(sessions))
            )
            for meter in range(meters)
        }
        reply = self._wire.FeedReply.from_bytes(
            await self._feed(self._wire.FeedRequest(meters=question, full=True), QUIET)
        )
        full = self._wire.FeedRequest(meters=self._known(question, reply), full=True)
        del reply
        bodies = [
            replace(full, waits=self._wire.Waits(reporter=f"reporter-{number}")).to_bytes()
            for number in range(triggerers)
        ]
        poll = json.loads(self._wire.FeedRequest(meters=dict.fromkeys(question, self._wire.MeterQuestion())).to_bytes())
        costs, done = [], 0
        for count in changes:
            if done:
                # What was written within the last minute is read again and again.
                await asyncio.sleep(61)
            cursors, looks, polls = [], Cost(), Cost()
            for body in bodies:
                with measured() as cost:
                    answer = await self._ask(body, QUIET)
                looks.add(cost)
                cursors.append(json.loads(answer)["cursor"])
            rounds = max(min(count, 30), 3)
            for turn in range(rounds):
                numbers = range(done + count * turn // rounds, done + count * (turn + 1) // rounds)
                batch = [self._change(number % meters, number // meters, "USAGE_PUSHING") for number in numbers]
                if batch:
                    entries = [self._entry(change) for change in batch]
                    await asyncio.to_thread(record, entries, conn_id=QUIET, team=None, deadline_seconds=60)
                await asyncio.sleep(_READ_SECONDS)
                for number, cursor in enumerate(cursors):
                    body = json.dumps({**poll, "cursor": cursor}).encode()
                    with measured() as cost:
                        answer = await self._ask(body, QUIET)
                    polls.add(cost)
                    cursors[number] = json.loads(answer)["cursor"]
            done += count
            waiting = json.dumps({**poll, "cursor": cursors[0], "wait": 10 * _READ_SECONDS}).encode()
            with measured() as reader:
                await self._ask(waiting, QUIET)
            reading = reader.seconds * READS_A_MINUTE / 10
            costs.append([looks.seconds, polls.seconds, reading, looks.control, looks.collections + polls.collections])
        return costs

    async def open_tabs(self, tabs: int, seconds: float, sessions: int, change_every: float) -> dict[str, Any]:
        """Keep tabs of the list open, which ask as the script of the page does, and return what that costs.

        :param sessions: of the journal, which is filled by the first call
        :param change_every: seconds between two changes of the newest session; 0: nothing changes
        """
        if not self._sessions:
            journal = importlib.import_module("benchmarks.busy_journal")
            os.environ |= {f"AIRFLOW_CONN_{each.upper()}": os.environ["AIRFLOW_CONN_BENCH"] for each in journal.METERS}
            await asyncio.to_thread(journal.seed, self._address, sessions, sessions // 20)
            self._sessions = sessions
        asked: Counter[str] = Counter()
        opened = [await self._open_tab(asked) for _ in range(tabs)]
        asked.clear()
        over = asyncio.Event()

        async def keep_open(number: int, load: Callable[[str], Awaitable[str]], parts: Mapping[str, float]) -> None:
            async def every(address: str, period: float) -> None:
                for _ in range(int(seconds / period)):
                    await asyncio.sleep(period)
                    await load(address)

            # As if they had been opened one after the other.
            await asyncio.sleep(number / tabs * _TAB_SECONDS)
            await asyncio.gather(*(every(*part) for part in parts.items()))

        changing = asyncio.create_task(self._change_now_and_then(change_every, over))
        with measured() as cost:
            await asyncio.gather(*(keep_open(number, *tab) for number, tab in enumerate(opened)))
        over.set()
        await changing
        return {"cost": cost.plain(), "requests": asked}

    async def _open_tab(self, asked: Counter[str]) -> tuple[Callable[[str], Awaitable[str]], dict[str, float]]:
        """Open the list, and return what loads an address again, and the addresses with the seconds between two loads.

        :param asked: counts the answers
        """
        known: dict[str, str] = {}
        token = self._token()

        async def load(address: str) -> str:
            headers = {"Accept": "text/html", "Cookie": f"_token={token}"}
            if address in known:
                headers["If-None-Match"] = known[address]
            text, found = await self._get(address, headers)
            asked["answered in full" if text else "not modified"] += 1
            if tag := found.get(b"etag"):
                known[address] = tag.decode()
            return text

        text = await load(_LIST)
        assert "data-live" in text
        parts = {unescape(address): float(period) for address, period in _PART.findall(text)}
        assert len(parts) == 2, parts
        for address in parts:
            await load(address)
        return load, {_LIST: _TAB_SECONDS, **parts}

    def _token(self) -> str:
        from airflow.api_fastapi.app import get_auth_manager
        from airflow.api_fastapi.auth.managers.simple.user import SimpleAuthManagerUser

        return str(get_auth_manager().generate_jwt(SimpleAuthManagerUser(username="bench", role="ADMIN")))

    async def _change_now_and_then(self, period: float, over: asyncio.Event) -> None:
        from airflow import settings
        from sqlalchemy import text

        assert settings.engine is not None
        newest = "SELECT id FROM mediation_session ORDER BY begun_at DESC LIMIT 1"
        change = text(f"UPDATE mediation_session SET best_status = :status WHERE id = ({newest})")
        for status in cycle(("RUNNING", "USAGE_PUSHING")):
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(over.wait(), period or None)
            if over.is_set():
                return
            with settings.engine.begin() as connection:
                connection.execute(change, {"status": status})

    async def serve(self) -> int:
        """Serve on a free port of 127.0.0.1, and return it."""
        import uvicorn
        from starlette.applications import Starlette
        from starlette.routing import Mount

        async def counted(scope: Any, receive: Any, send: Any) -> None:
            async def count(message: Any) -> None:
                self._bytes += len(message.get("body", b""))
                await send(message)

            await self._app(scope, receive, count)

        config = uvicorn.Config(
            Starlette(routes=[Mount("/mediation", counted)]), "127.0.0.1", 0, log_level="error", lifespan="off"
        )
        server = uvicorn.Server(config)
        self._serving = asyncio.create_task(server.serve())
        while not server.started:  # noqa: ASYNC110  # it has no event for this
            await asyncio.sleep(0.01)
        port: int = server.servers[0].sockets[0].getsockname()[1]
        return port

    async def spent(self) -> dict[str, float]:
        """Return the processor time of this process so far, and the bytes of its replies over HTTP."""
        return {"seconds": time.process_time(), "bytes": self._bytes, "control": control()}

    # ---- messages of both versions ----

    def _question(self, meters: int, *, instants: bool = True) -> dict[str, Any]:
        rows = importlib.import_module("benchmarks.journal_rows")
        now, found = datetime.now(UTC), {}

        def just_before(number: int) -> datetime:
            age = rows.AGE * (self._sessions - 1 - number) / self._sessions
            return now - timedelta(minutes=5) - age - timedelta(minutes=1)

        for meter in range(meters):
            numbers = range(meter, self._sessions, rows.METERS)
            since = frozenset({just_before(numbers[5]), just_before(numbers[15])}) if instants else frozenset()
            named = frozenset(rows.session_of(number) for number in numbers[-10:])
            found[rows.meter_of(meter)] = self._wire.MeterQuestion(sessions=named, since=since)
        return found

    def _known(self, question: Mapping[str, Any], reply: Any) -> dict[str, Any]:
        """Return a question of someone who has a reply; an earlier version has no such question."""
        revisions = getattr(reply, "revisions", ())
        if not revisions:
            return dict(question)
        known: dict[str, dict[str, int]] = {meter: {} for meter in question}
        for state, revision in zip(reply.sessions, revisions, strict=True):
            known.setdefault(state.meter_id, {})[state.session_id] = revision
        return {meter: replace(asked, known=known[meter]) for meter, asked in question.items()}

    def _reports(self, count: int, question: Mapping[str, Any]) -> list[Any]:
        names = {field.name for field in fields(self._wire.WaitReport)}
        now, meters = datetime.now(UTC), list(question)
        until = now + timedelta(days=1)
        batch = time.monotonic_ns()
        found = []
        for number in range(count):
            meter = meters[number % len(meters)]
            session = sorted(question[meter].sessions)[number // len(meters) % 10]
            values = {
                "id": hashlib.sha256(f"{batch} {number}".encode()).hexdigest(),
                "meter_id": meter,
                "version": "1",
                "session_id": session,
                "condition": {"meter_id": meter, "version": "1", "session_id": session, "until": until.isoformat()},
                "dag_id": "bench",
                "run_id": f"run-{number}",
                "task_id": "wait",
                "map_index": -1,
                "try_number": 1,
                "mode": "triggerer",
                "created_at": now,
                "until": until,
                "owner": f"{batch}-{number}",
            }
            found.append(self._wire.WaitReport(**{name: value for name, value in values.items() if name in names}))
        return found

    async def _report(self, reports: Sequence[Any], question: Mapping[str, Any], *, begins: bool) -> bytes:
        """Report waits as a triggerer does: with a reporter only those that begin; an earlier version reports all."""
        request = self._wire.FeedRequest(meters=question, full=True)
        if not hasattr(self._wire, "Waits"):
            return await self._feed(replace(request, open=tuple(reports)))
        begun = tuple(replace(report, begins=True) for report in reports) if begins else ()
        return await self._feed(replace(request, waits=self._wire.Waits(open=begun, reporter="reporter")))

    def _busy(self) -> bool:
        """Return whether reports are still written, after their answer."""
        return bool(self._app.state.feed._writing)

    async def _settled(self) -> None:
        while self._busy():  # noqa: ASYNC110  # an earlier version has no event for this
            await asyncio.sleep(0.001)

    def _make_running(self, meters: int, sessions: int) -> None:
        """Fill the journal with sessions that have been running for some minutes."""
        from airflow import settings

        from airflow_mediation_provider.journal.tables import SessionRow, TransitionRow

        journal_load = importlib.import_module("benchmarks.journal_load")
        names = [(meter, number) for meter in range(meters) for number in range(sessions)]
        changes = [self._change(*name, "RUNNING", minutes=5) for name in names]
        assert settings.engine is not None
        with settings.engine.begin() as connection:
            rows = [journal_load.change_row(change, QUIET) for change in changes]
            journal_load.load(connection, TransitionRow.__table__, rows)
            rows = [journal_load.session_row([change], QUIET) for change in changes]
            journal_load.load(connection, SessionRow.__table__, rows)

    def _change(self, meter: int, number: int, status: str, *, minutes: float = 0) -> Any:
        from airflow_mediation_provider.protocol.transition import SessionTransition, Source

        at = datetime.now(UTC) - timedelta(minutes=minutes)
        return SessionTransition(
            meter_id=f"F-{meter}",
            session_id=f"F-{meter}-{number}",
            status=status,
            observed_at=at,
            source=Source.CALLOUT,
            started_at=datetime.now(UTC) - timedelta(minutes=6),
            notification_id=f"{meter}-{number}-{status}",
        )

    def _entry(self, change: Any) -> Any:
        from airflow_mediation_provider.protocol.sessions.journal_entry import EntryKind, JournalEntry

        return JournalEntry(
            kind=EntryKind.STATUS_CHANGE,
            observed_at=change.observed_at,
            source=change.source,
            transition=change,
            body={},
        )


async def _obey(address: str, replies: Any) -> None:
    server = Server(address)
    while line := await asyncio.to_thread(sys.stdin.readline):
        command = json.loads(line)
        answer = await getattr(server, command.pop("do"))(**command)
        print(json.dumps(answer), file=replies, flush=True)


def main() -> None:
    """Carry out commands until the standard input ends."""
    address, home = sys.argv[1:]
    # What is logged goes elsewhere.
    replies = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    set_up(address, home)
    asyncio.run(_obey(address, replies))


if __name__ == "__main__":
    main()
