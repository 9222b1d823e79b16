"""Each figure on a page equals the simulator's log, or the page marks it as uncertain.

A tenant runs sessions of every kind in virtual time, and its callouts are delivered to the application. What the pages
show is then compared with what the tenant did.
"""

from __future__ import annotations

import itertools
import re
import sys
from collections import Counter
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

import pytest

from airflow_mediation_provider.journal.writer import record
from airflow_mediation_provider.protocol.sessions.verdict import TaskVerdict
from airflow_mediation_provider.protocol.times import exactly, humanize, in_words
from airflow_mediation_provider.protocol.transition import Source
from airflow_mediation_provider.simulator.callout_sender import LOST
from airflow_mediation_provider.simulator.callouts import Answer
from airflow_mediation_provider.simulator.clock import ManualClock
from airflow_mediation_provider.simulator.config import SimulatorConfig, completes, ends
from airflow_mediation_provider.simulator.control import Tenant
from tests.unit.api_server.pages.html import asked
from tests.unit.journal.old_rows import is_in, wait_of
from tests.unit.journal.scheduling import change

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from airflow_mediation_provider.simulator.callouts import Attempt
    from airflow_mediation_provider.simulator.sessions import Session
    from tests.unit.api_server.pages.conftest import Browser
    from tests.unit.api_server.pages.html import Element

NOTHING = "\N{EN DASH}"
SECRET = "s3cret-of-zuora"
CALLOUTS, POLLS = "zuora", "polls"
REGULAR = "2001"
"""The meter that starts often enough to have a rhythm, and has not started for hours."""
LOOP = [["INITIALIZING", 2], *[["RUNNING", 7], ["PAUSED", 3]] * 25, ["RUNNING", None]]


@dataclass(frozen=True, kw_only=True)
class Kind:
    """Sessions that run and are reported in one way.

    :param script: what they do
    :param callout: settings of their callouts; ``None``: there are none
    :param verdict: the end that a task concludes from polls, and whether it is certain
    :param reply: whether the reply to the run call is stored, where there are no callouts
    :param count: how many of them there are
    :param marks: what the list marks them with; empty: all of it must be true
    """

    script: Sequence[Any]
    run_type: str = "NORMAL"
    callout: dict[str, Any] | None = None
    verdict: tuple[str, bool] | None = None
    reply: bool = True
    count: int = 3
    marks: tuple[str, ...] = ()

    @property
    def conn_id(self) -> str:
        return POLLS if self.callout is None else CALLOUTS


TOLD: dict[str, Any] = {}
KINDS = {
    REGULAR: Kind(script=completes(600).script, callout=TOLD, count=7),
    "2002": Kind(script=ends("FAILED", 360).script, callout=TOLD),
    "2003": Kind(script=ends("CANCELED", 125).script, callout=TOLD),
    "2004": Kind(script=[["TESTING", 30], ["TESTING_PASSED", None]], run_type="DEBUG", callout=TOLD),
    "2005": Kind(script=[["TESTING", 30], ["TESTING_FAILED", None]], run_type="DEBUG", callout=TOLD),
    "2006": Kind(script=[["RUNNING", 30], ["99", 60], ["COMPLETED", None]], callout=TOLD),
    "2007": Kind(script=[["INITIALIZING", 1.9], ["RUNNING", 4.6], ["COMPLETED", None]], callout=TOLD),
    "2008": Kind(script=completes(900).script, callout={"copies": (1, 3), "copy_ids": ("same", "other", "none")}),
    "2009": Kind(script=completes(900).script, callout={"disorder": 150.0}),
    "2010": Kind(script=completes(600).script, callout={"statuses": ("INITIALIZING", "PUSH_COMPLETED", "COMPLETED")}),
    "2011": Kind(script=completes(600).script, callout={"statuses": ("COMPLETED",)}),
    "2012": Kind(script=LOOP, callout=TOLD, count=1, marks=("silent",)),
    "2013": Kind(script=[["RUNNING", 60], ["PAUSED", None]], callout=TOLD, marks=("silent",)),
    "2014": Kind(script=[["RUNNING", 60], ["99", None]], callout=TOLD, marks=("silent", "unknown status (99)")),
    "2015": Kind(script=ends("FAILED", 360).script, callout={"statuses": ("RUNNING",)}, marks=("silent",)),
    "2016": Kind(script=[["COMPLETED", 30], ["FAILED", None]], callout=TOLD),
    "2017": Kind(
        script=[["RUNNING", 5], ["PAUSED", 5], ["RUNNING", 5], ["PAUSED", None]],
        callout={"copy_ids": ("none",)},
        marks=("ambiguous",),
    ),
    "3001": Kind(script=ends("FAILED", 360).script, verdict=("FAILED", False), marks=("by poll, not certain",)),
    "3002": Kind(script=ends("COMPLETED", 360).script, verdict=("COMPLETED", True), marks=("by poll",)),
    "3003": Kind(script=ends("COMPLETED", 360).script, marks=("silent",)),
    "3004": Kind(
        script=ends("FAILED", 360).script,
        verdict=("FAILED", False),
        reply=False,
        marks=("by poll, not certain", "known from a task only"),
    ),
}
MARKS = {"?", *(mark for kind in KINDS.values() for mark in kind.marks)} - {"unknown status (99)"}
_BEYOND = 1e-6
# Hours after the first start: so long after its last report, a session without an end counts as silent.
HOURS = 8


@dataclass(frozen=True)
class Truth:
    """What the tenant did with one session."""

    session: Session
    changes: list[tuple[str, datetime]]
    delivered: list[dict[str, Any]]

    @property
    def kind(self) -> Kind:
        return KINDS[self.session.meter_id]

    @property
    def began(self) -> datetime:
        return self.changes[0][1]

    @property
    def ended(self) -> datetime | None:
        return None if self.session.ended_at is None else self.changes[-1][1]

    @property
    def key(self) -> dict[str, str]:
        return {"conn": self.kind.conn_id, "meter": self.session.meter_id, "session": self.session.session_id}


class World:
    """The tenant, whose clock is that of the application."""

    def __init__(self, alice: Browser) -> None:
        self.alice = alice
        self.concluded: set[str] = set()
        url = f"http://airflow.example:8080/mediation/callouts/{CALLOUTS}"
        callouts = [
            {"url": url, "hmac_secret": SECRET, "meters": (meter_id,), **kind.callout}
            for meter_id, kind in KINDS.items()
            if kind.callout is not None
        ]
        meters = [
            {"id": meter_id, "runs": [kind.script], "debug_runs": [kind.script]} for meter_id, kind in KINDS.items()
        ]
        self.tenant = Tenant(
            SimulatorConfig.parse({"clock": "manual", "max_running_meters": 99, "meters": meters, "callouts": callouts})
        )

    def now(self) -> datetime:
        return datetime.fromtimestamp(self.tenant.clock.now(), UTC)

    async def play(self) -> None:
        """Start all sessions, some minutes apart, and let the hours pass."""
        for number in range(max(kind.count for kind in KINDS.values())):
            for meter_id, kind in KINDS.items():
                if number >= kind.count:
                    continue
                session = self.tenant.start_session(meter_id, run_type=kind.run_type)
                if kind.conn_id == POLLS and kind.reply:
                    reply = {"source": Source.RUN, "notification_id": f"run:{session.session_id}", "at": 0}
                    began = self.now()
                    told = {"observed_at": began, "started_at": began, **reply}
                    record([change(session.session_id, "INITIALIZING", None, meter=meter_id, **told)], conn_id=POLLS)
                await self.passes(7.3)
            await self.passes(1800)
        await self.passes(HOURS * 3600)

    async def passes(self, seconds: float) -> None:
        """Let time pass: each change, each callout and each verdict happens when it is due."""
        until = self.tenant.clock.now() + seconds
        while (due := self.next_due()) is not None and due <= until:
            self.advance_to(due)
            self.tenant.engine.run_due()
            while (attempt := self.tenant.callouts.begin()) is not None:
                self.tenant.callouts.end(attempt, LOST if attempt.callout.lost else await self.delivered(attempt))
            self.conclude()
        self.advance_to(until)

    def advance_to(self, instant: float) -> None:
        """Move the clock just beyond an instant: a sum of floats may be below it."""
        clock = self.tenant.clock
        assert isinstance(clock, ManualClock)
        clock.advance(max(0.0, instant - clock.now() + _BEYOND))

    def next_due(self) -> float | None:
        found = (self.tenant.engine.next_due(), self.tenant.callouts.next_due())
        return min((each for each in found if each is not None), default=None)

    async def delivered(self, attempt: Attempt) -> Answer:
        path = urlsplit(attempt.callout.url).path
        reply = await self.alice.client.post(path, content=attempt.body, headers=attempt.headers)
        assert reply.status_code == 200, reply.text
        return Answer(reply.status_code, reply.text)

    def conclude(self) -> None:
        """Store what a task concludes at the end of a session that polls alone show."""
        for session in self.tenant.engine.sessions():
            kind = KINDS[session.meter_id]
            if kind.verdict is None or session.ended_at is None or session.session_id in self.concluded:
                continue
            self.concluded.add(session.session_id)
            status, certain = kind.verdict
            task: dict[str, Any] = {"dag_id": "usage", "run_id": session.session_id, "task_id": "wait", "map_index": -1}
            ti_id = is_in("running", wait_of("", **task))
            of_session = {"meter_id": session.meter_id, "session_id": session.session_id, "run_type": kind.run_type}
            verdict = {"wait_id": session.session_id, "try_number": 1, "ti_id": ti_id, "mode": "worker"}
            concluded = {"status": status, "certain": certain, "at": self.now()}
            record((), conn_id=POLLS, verdicts=[TaskVerdict(**of_session, **task, **verdict, **concluded)])

    def truths(self) -> dict[str, Truth]:
        log = self.tenant.log
        return {
            each.session_id: Truth(
                each,
                [
                    (entry["status"], datetime.fromtimestamp(entry["at"], UTC))
                    for entry in log.read(kind="transition", session_id=each.session_id)
                ],
                log.read(kind="callout", session_id=each.session_id, outcome="delivered"),
            )
            for each in self.tenant.engine.sessions()
        }


@pytest.fixture
async def world(alice: Browser, journal: str, monkeypatch: pytest.MonkeyPatch) -> World:
    """All sessions, hours later."""
    del journal
    made = World(alice)

    class Kind(type):
        def __instancecheck__(cls, instance: object) -> bool:
            return isinstance(instance, datetime)

    class Virtual(datetime, metaclass=Kind):
        @classmethod
        def now(cls, tz: Any = None) -> datetime:  # type: ignore[override]
            return made.now().astimezone(tz)

    rooms = ("airflow_mediation_provider.api_server", "airflow_mediation_provider.journal")
    for name, module in list(sys.modules.items()):
        if name.startswith(rooms) and getattr(module, "datetime", None) is datetime:
            monkeypatch.setattr(module, "datetime", Virtual)
    await made.play()
    return made


async def rows(alice: Browser) -> list[dict[str, str]]:
    """The lines of all pages of the list."""
    found: list[dict[str, str]] = []
    path, query = "/sessions", {}
    while True:
        page = await alice.sees(path, **query)
        found += page.cells()
        if "Older" not in page.links():
            return found
        address, query = asked(page.links()["Older"])
        path = address.removeprefix("/mediation")


def marks(text: str) -> set[str]:
    return {mark for mark in MARKS if mark in text}


def facts(page: Element) -> dict[str, str]:
    return {each.one("dt").text: each.one("dd").text for each in page.all("dl")[0].all("div")}


def phase_rows(page: Element) -> list[dict[str, str]]:
    [table] = [each for each in page.all("table") if each.one("caption").text == "Phases"]
    return table.cells()


def seconds(text: str) -> int:
    """The seconds of a duration as pages show it exactly."""
    units = {"d": 86_400, "h": 3600, "m": 60, "s": 1}
    return sum(int(number) * units[unit] for number, unit in re.findall(r"(\d+)([dhms])", text))


def lengths(edges: Sequence[datetime]) -> list[str]:
    """The lengths between instants, counted in whole seconds from the first one."""
    whole = [int((each - edges[0]).total_seconds()) for each in edges]
    return [exactly(timedelta(seconds=later - earlier)) for earlier, later in itertools.pairwise(whole)]


def expected_phases(truth: Truth, now: datetime) -> Iterator[tuple[str, str, str]]:
    """Status, start and length of each phase, as the tenant's changes have them."""
    edges = [at for _, at in truth.changes] + [truth.ended or now]
    for (status, at), length in zip(truth.changes, lengths(edges), strict=True):
        shown = "unknown status (99)" if status == "99" else status
        yield shown, in_words(at), length if truth.ended or at != truth.changes[-1][1] else f"since {in_words(at)}"


def received(truth: Truth) -> list[tuple[str, datetime]]:
    """Each change with the time at which its first callout arrived: never later than that of the change after it."""
    first: dict[str, datetime] = {}
    for each in truth.delivered:
        at = datetime.fromtimestamp(each["at"], UTC)
        first[each["status"]] = min(at, first.get(each["status"], at))
    found: list[tuple[str, datetime]] = []
    latest = truth.ended or datetime.max.replace(tzinfo=UTC)
    for status, _ in reversed(truth.changes):
        latest = min(latest, first[status])
        found.insert(0, (status, max(latest, truth.began)))
    return [(found[0][0], truth.began), *found[1:]]


async def check_figures(alice: Browser, world: World) -> None:
    truths, now = world.truths(), world.now()
    assert len(truths) >= 50
    listed = {row["Session"]: row for row in await rows(alice)}
    assert listed.keys() == truths.keys()
    regular = max((each for each in truths.values() if each.session.meter_id == REGULAR), key=lambda each: each.began)
    assert "next one late" in listed[regular.session.session_id]["Status"]

    for session_id, truth in truths.items():
        row, kind = listed[session_id], truth.kind
        about = (truth.session.meter_id, session_id, row)
        status = truth.session.status
        if truth is regular:
            row["Status"] = row["Status"].removesuffix(f" next one late: none started since {in_words(truth.began)}")
        # Each mark is there for a reason, and without one the line is true.
        assert marks(row["Status"]) >= set(kind.marks) - {"unknown status (99)"}, about
        assert bool(marks(row["Status"])) is bool(kind.marks), about
        over = truth.ended or now
        true = {
            "Status": "unknown status (99)" if status == "99" else status,
            "Start Date": in_words(truth.began),
            "End Date": in_words(truth.ended) if truth.ended else NOTHING,
            "Duration": humanize(over - truth.began) if truth.ended else f"since {in_words(truth.began)}",
        }
        if not kind.marks:
            assert {name: row[name] for name in true} == true, about

        page = await alice.sees("/session", **truth.key)
        heading, fact = page.one("h1").text, facts(page)
        assert heading.startswith(f"{session_id} {row['Status'].partition(' ')[0]}"), about
        for name in ("Start Date", "End Date"):
            assert fact[name].startswith(row[name]), about
        if "since" not in fact["Duration"]:
            assert sum(seconds(each["Duration"]) for each in phase_rows(page)) == seconds(fact["Duration"]), about
        if not kind.marks:
            lasted = exactly(over - truth.began) if truth.ended else f"since {in_words(truth.began)}"
            assert fact["Duration"] == lasted, about


async def check_phases(alice: Browser, world: World) -> None:
    truths, now = world.truths(), world.now()
    for truth in truths.values():
        page = await alice.sees("/session", **truth.key)
        shown = [(each["Phase"], each["From"], each["Duration"]) for each in phase_rows(page)]
        meter_id, about = truth.session.meter_id, (truth.session.meter_id, shown)
        expected = list(expected_phases(truth, now))
        if meter_id == "2012":
            # More changes than are read: the time before the newest forty is not shown.
            assert shown[0][0].startswith("not shown"), about
            assert shown[1:] == expected[-40:], about
        elif meter_id in ("2010", "2011"):
            # Changes without a callout: a status that only the next change names has no time of its own.
            reported = {each["status"] for each in truth.delivered}
            unknown = [phase for phase, _, _ in shown if "at an unknown time" in phase]
            assert len(unknown) == 1, about
            assert {phase for phase, _, _ in shown} - set(unknown) <= reported, about
            assert shown[-1] == expected[-1], about
        elif meter_id == "2009":
            # Late callouts: a phase begins when its change was received, as the page explains.
            assert "a phase starts when the change was received" in page.text
            assert [(phase, begin) for phase, begin, _ in shown] == [
                (status, in_words(at)) for status, at in received(truth)
            ], about
        elif not truth.kind.marks or meter_id in ("2013", "2014"):
            assert shown == expected, about
        else:
            assert page.all("p", class_="notice") or marks(page.one("h1").text), about


async def check_counts(alice: Browser, world: World) -> None:
    shown: Counter[str] = Counter()
    for truth in world.truths().values():
        page = await alice.sees("/session", **truth.key)
        timeline = next(each for each in page.all("table") if "Reports of" in each.one("caption").text).cells()
        ids = [each["notification_id"] for each in truth.delivered]
        different = len({each for each in ids if each}) + ids.count(None)
        reports = [each for each in timeline if each.get("Source", "").startswith("callout")]
        if truth.kind.callout is not None and "none" not in truth.kind.callout.get("copy_ids", ()):
            assert len(reports) == different, truth.session.meter_id
        status = page.one("h1").all("span", class_="badge")[0].text
        shown[status.removesuffix("?").removeprefix("unknown status (").removesuffix(")")] += 1
    chart = await alice.sees("/sessions/chart", since="30d")
    keys = [each.text.split(" ", 1) for each in chart.all("a", class_="key")]
    assert {status: int(count) for count, status in keys} == dict(shown)


def instant(text: str | None) -> datetime | None:
    return text and datetime.fromisoformat(text)  # type: ignore[return-value]


def by_meter(world: World) -> dict[str, list[Truth]]:
    """What the tenant did, by meter, the newest session first."""
    found: dict[str, list[Truth]] = {}
    for truth in sorted(world.truths().values(), key=lambda each: each.began, reverse=True):
        found.setdefault(truth.session.meter_id, []).append(truth)
    return found


def expected_facts(truths: list[Truth], now: datetime) -> dict[str, str]:
    """The figures of a meter without uncertain sessions, the newest first."""
    ended = [(each, each.session.status, each.ended) for each in truths if each.ended]
    good = [(each, at) for each, status, at in ended if status in ("COMPLETED", "TESTING_PASSED")]
    bad = sum(status in ("FAILED", "TESTING_FAILED") for _, status, _ in ended)
    streak = len([*itertools.takewhile(lambda each: each[1] == ended[0][1], ended)])
    spans = [later.began - earlier.began for later, earlier in itertools.pairwise(truths)]
    usual, starts = "too few of the newest sessions succeeded", "no regular rhythm, so the next one is never late"
    if len(spans) > 4:
        took = sorted(at - each.began for each, at in good)
        usual = f"{humanize(took[0])} to {humanize(took[-1])} of {len(took)} successes"
        every = timedelta(minutes=round(sorted(spans)[len(spans) // 2].total_seconds() / 60))
        starts = f"about every {humanize(every)}, the last one {humanize(now - truths[0].began)} ago late"
    return {
        "Last success": f"{in_words(good[0][1])} {good[0][0].session.session_id}"
        if good
        else f"none of the newest {len(truths)} sessions",
        "Streak": f"{streak} {ended[0][1]} in a row",
        "Failure rate": f"{bad} of {len(ended)} ended sessions failed ({round(100 * bad / len(ended))} %), since"
        f" {in_words(truths[-1].began)}",
        "Usual duration": usual,
        "Starts": starts,
        "Run type": truths[0].kind.run_type,
        "Connection": truths[0].kind.conn_id,
    }


async def check_meters(alice: Browser, world: World) -> None:
    now, exact = world.now(), 0
    for meter_id, truths in by_meter(world).items():
        page = await alice.sees("/meter", conn=truths[0].kind.conn_id, meter=meter_id)
        [line] = [each for each in page.one("table", class_="matrix").all("tr") if each.one("th").text == "Session"]
        cells = [each.text for each in line.all("bdi", class_="hidden")]
        bars = [each.text for each in page.one("figure", class_="trend").all("title")]
        answer = page.one("div", id="meter").all("p", class_="notice")[0].text
        assert [each.split()[0] for each in cells] == [each.session.session_id for each in reversed(truths)], meter_id
        assert [each.split()[3] for each in bars] == [each.session.session_id for each in reversed(truths)], meter_id
        if truths[0].kind.marks:
            # The answer, the mark of the last session, or a session that goes on for hours shows what is not certain.
            last = (await alice.sees("/session", **truths[0].key)).one("h1").text
            assert "not certain" in answer or "has been live for" in answer or marks(last), (meter_id, answer)
            continue
        exact += 1
        debug = ", DEBUG" if truths[0].kind.run_type == "DEBUG" else ""
        for truth, cell, bar in zip(reversed(truths), cells, bars, strict=True):
            session_id, status, ended = truth.session.session_id, truth.session.status, truth.ended
            assert ended is not None
            assert cell == f"{session_id} {status}{debug}, from {in_words(truth.began)}"
            assert bar == f"{in_words(truth.began)}: {session_id} {status}, {humanize(ended - truth.began)}"
        assert facts(page) == expected_facts(truths, now), meter_id
        of_last = truths[0].session
        assert f"{of_last.session_id} ended {of_last.status} " in answer, answer
    assert exact >= 10


async def check_json(alice: Browser, world: World) -> None:
    truths, now = world.truths(), world.now()
    listed: list[dict[str, Any]] = []
    where: dict[str, str] = {}
    while True:
        reply = (await alice.get("/sessions.json", **where)).json()
        listed += reply["sessions"]
        assert reply["complete"]
        if reply["older"] is None:
            break
        where = {"before": reply["older"]}
    assert [each["session_id"] for each in listed] == sorted(truths, key=lambda each: truths[each].began, reverse=True)
    newest = {meter_id: of_meter[0].session.session_id for meter_id, of_meter in by_meter(world).items()}
    for each in listed:
        truth = truths[each["session_id"]]
        kind, status = truth.kind, truth.session.status
        assert (each["conn_id"], each["meter_id"]) == (kind.conn_id, truth.session.meter_id)
        assert each["next_late"] is (each["session_id"] == newest[REGULAR]), each
        assert each["longer_than_usual"] is False
        if kind.marks:
            assert each["marks"] or each["silent"] or each["evidence"] == "poll", each
            assert each["silent"] is not each["ended"], each
            continue
        assert (each["status"], each["certain"], each["marks"]) == (status, True, []), each
        assert (each["ended"], each["silent"], each["evidence"]) == (truth.ended is not None, False, "callout"), each
        for name, at in {"begun_at": truth.began, "started_at": truth.began, "ended_at": truth.ended}.items():
            shown = instant(each[name])
            assert shown is not None
            assert at is not None
            assert abs(shown - at) < timedelta(seconds=1), (name, each)
    assert now > truths[newest[REGULAR]].began


async def test_each_figure_equals_the_simulators_log_or_is_marked_as_uncertain(alice: Browser, world: World) -> None:
    await check_figures(alice, world)
    await check_phases(alice, world)
    await check_counts(alice, world)
    await check_meters(alice, world)
    await check_json(alice, world)
