"""What the pages cost beside a million sessions: the server's time for each of them, and the browser's for the list.

A real `airflow api-server` with default settings, on SQLite, then on a private PostgreSQL, and a user who is logged in.
Every page is requested over HTTP, one after the other, repeatedly, and must contain the text that identifies it. A row
has the time until the answer was there, and the processor time of the API server, which other work on the machine
lengthens less; a fixed piece of work, the control, shows by how much.
Then Chromium opens the list, by itself and in Airflow's own frame, until its table is there and its script has
run. Finally, far more sessions than any real tenant has in a day are added to the last day.

  python -m benchmarks.pages_at_scale                      everything, about three quarters of an hour
  python -m benchmarks.pages_at_scale --check              the same; exit code 1 unless all claims hold
  python -m benchmarks.pages_at_scale --only sqlite --sessions 50000 --times 10      a quick run
  python -m benchmarks.pages_at_scale --markdown docs/benchmarks.md     update the numbers in the documentation
  python -m benchmarks.pages_at_scale --tabs COMMIT        only ten open tabs, beside an earlier commit: ten minutes

Run it on a machine that does nothing else.
"""

from __future__ import annotations

import contextlib
import json
import os
import sys
import tempfile
import time
from collections import Counter
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Final, NamedTuple

import httpx

from airflow_mediation_provider.protocol.urls import address, framed
from benchmarks import bounds as bounds_of
from benchmarks.bounds import REFERENCE_SECONDS, Bound, Child
from benchmarks.busy_journal import LAST_DAY, METERS, SESSIONS, seed, seed_burst
from benchmarks.page_questions import Question, burst_questions, first_page, questions
from benchmarks.report import Table, common_arguments, publish, quantile
from benchmarks.server_in_process import control
from testkit.browser import chromium
from testkit.postgres import Postgres
from testkit.stack import AirflowStack

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from benchmarks.busy_journal import Plan

DATABASES: Final = ("sqlite", "postgresql")
COLUMNS: Final = ("database", "beside", "what", "p50 ms", "p95 ms", "max ms", "processor ms, p50", "p95")
BURST: Final = 100_000
USABLE_SECONDS: Final = 1.0
LOGIN: Final = ("bench", "s3cret-of-the-benchmark")
# The table is there, and the script has put times into the user's zone.
_LIST: Final = "table.sessions tbody tr time[title]"
_ALONE: Final = f"document.querySelector('{_LIST}')"
_FRAMED: Final = f"document.querySelector('iframe')?.contentDocument?.querySelector('{_LIST}')"
_ASSETS: Final = "[...document.querySelectorAll('h1, h2')].find((each) => each.textContent.includes('Assets'))"
# Airflow's own script must load before it makes the frame, so one of Airflow's own pages is measured for comparison.
_OPENED: Final = {
    "the list by itself": USABLE_SECONDS,
    "the list in Airflow's frame": None,
    "Airflow's own list of assets": None,
}
_WARM_UP: Final = 3
TABS: Final = 10
TAB_SESSIONS: Final = 5_000
CHANGES: Final = (0, 30)
"""Seconds between two changes of a session while the tabs are open; 0: nothing changes."""


class Answer(NamedTuple):
    """What one answer took.

    :param seconds: until it was there
    :param processor: of the API server's processor time
    """

    seconds: float
    processor: float


@dataclass
class Timing:
    """One row: how long a page took, each time.

    :param claimed: seconds that 95 of 100 may take; ``None``: nothing is claimed
    :param processor: seconds of the API server's processor; empty: not measured
    """

    database: str
    beside: str
    what: str
    seconds: list[float]
    claimed: float | None
    processor: list[float] = field(default_factory=list)

    def row(self) -> list[str]:
        """Return the cells of the table."""
        numbers = (f"{1000 * quantile(self.seconds, part):.0f}" for part in (0.5, 0.95, 1.0))
        processor = (f"{1000 * quantile(self.processor, part):.0f}" if self.processor else "" for part in (0.5, 0.95))
        return [self.database, self.beside, self.what, *numbers, *processor]

    def broken_claims(self) -> list[str]:
        """Return the claims that failed."""
        p95 = quantile(self.seconds, 0.95)
        if self.claimed is None or p95 <= self.claimed:
            return []
        what = f"{self.database}, {self.beside}: {self.what}"
        return [f"{what}: 95 of 100 within {1000 * p95:.0f} ms, {1000 * self.claimed:.0f} claimed"]


@contextlib.contextmanager
def empty_database(database: str, root: Path) -> Iterator[str]:
    """Yield the address of an empty database."""
    if database == "postgresql":
        with Postgres(durable=True) as cluster:
            yield cluster.create("airflow")
    else:
        yield f"sqlite:///{root / 'airflow.db'}"


@contextlib.contextmanager
def airflow(root: Path, database: str, login: tuple[str, str] | None) -> Iterator[AirflowStack]:
    """Run an API server.

    :param root: directory of its files
    :param database: its address
    :param login: name and password of the only user; ``None``: no login is needed
    """
    root.mkdir()
    env = {}
    if login is not None:
        user, password = login
        passwords = root / "passwords.json"
        passwords.write_text(json.dumps({user: password}))
        env["AIRFLOW__CORE__SIMPLE_AUTH_MANAGER_USERS"] = f"{user}:admin"
        env["AIRFLOW__CORE__SIMPLE_AUTH_MANAGER_PASSWORDS_FILE"] = str(passwords)
    for conn_id in METERS:
        connection = {"conn_type": "mediation", "extra": {"callout_token": LOGIN[1]}}
        env[f"AIRFLOW_CONN_{conn_id.upper()}"] = json.dumps(connection)
    options = {"database": database, "components": ["api-server"], "login": login}
    with AirflowStack(root, root / "no-dags", env, **options) as stack:
        yield stack


def time_pages(
    server: AirflowStack, token: str | None, asked: Sequence[Question], times: int, noise: list[float]
) -> Mapping[Question, list[Answer]]:
    """Request all pages, one after the other, repeatedly.

    :param token: of the user, as in a browser's cookie
    :param noise: gets the seconds of the control, before each page
    """
    cookies = {"_token": token} if token else {}
    answers: dict[Question, list[Answer]] = {question: [] for question in asked}
    processes = server.pids("api-server")
    with httpx.Client(base_url=server.url, cookies=cookies, trust_env=False, timeout=120) as client:
        for number in range(_WARM_UP + times):
            for question in asked:
                noise.append(control())
                used, began = _processor_time(processes), time.perf_counter()
                reply = client.get(question.path)
                answer = Answer(time.perf_counter() - began, _processor_time(processes) - used)
                assert reply.is_success, f"{question.what}: {reply.status_code} {reply.text[:500]}"
                assert question.shows in reply.text, f"{question.what}: {question.shows} is not shown"
                if number >= _WARM_UP:
                    answers[question].append(answer)
    return answers


def _processor_time(processes: Sequence[int]) -> float:
    """Return the processor time of some processes so far: on Linux each has a clock with the complement of its id."""
    return sum(time.clock_gettime(~pid << 3 | 2) for pid in processes)


def time_browser(url: str, token: str, path: str, times: int) -> tuple[list[float], list[float], list[float]]:
    """Open the list by itself, in Airflow's frame, and a page of Airflow's own.

    :return: the seconds from the start of the navigation until each of the three was usable, for each time
    """
    alone: list[float] = []
    inside: list[float] = []
    theirs: list[float] = []
    with chromium() as browser:
        # The pages allow no injected script, not even the one that waits for an element.
        context = browser.new_context(viewport={"width": 1400, "height": 1000}, bypass_csp=True)
        context.add_cookies([{"name": "_token", "value": token, "url": url}])
        page = context.new_page()
        for number in range(_WARM_UP + times):
            for seconds, where, usable in (
                (alone, f"{url}{path}", _ALONE),
                (inside, framed(url, f"{url}{path}"), _FRAMED),
                (theirs, f"{url}/assets", _ASSETS),
            ):
                page.goto("about:blank")
                page.goto(where, wait_until="commit")
                # The page itself checks at each paint, and returns the time since the navigation started.
                shown = page.wait_for_function(f"() => {usable} && performance.now()", polling="raf")
                if number >= _WARM_UP:
                    seconds.append(shown.json_value() / 1000)
    return alone, inside, theirs


def measure(database: str, sessions: int, burst: int, times: int, looks: int) -> tuple[list[Timing], list[str]]:
    """Measure one database; return the timings and notes."""
    timings: list[Timing] = []
    noise: list[float] = []

    def keep(beside: str, measured: Mapping[Question, list[Answer]], ending: str = "") -> None:
        for question, answers in measured.items():
            seconds, processor = [each.seconds for each in answers], [each.processor for each in answers]
            timings.append(Timing(database, beside, question.what + ending, seconds, question.claimed, processor))

    with contextlib.ExitStack() as stack:
        root = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="bench-")))
        location = stack.enter_context(empty_database(database, root))
        with airflow(root / "login", location, LOGIN) as server:
            plan, note = _seeded(database, location, sessions)
            beside = f"{sessions:,} sessions"
            token = server.token(LOGIN)
            _progress(f"{database}: pages ...")
            keep(beside, time_pages(server, token, questions(plan), times, noise))
            _progress(f"{database}: browser ...")
            opened = time_browser(server.url, token, address("", "/sessions"), looks)
            for (what, claimed), seconds in zip(_OPENED.items(), opened, strict=True):
                timings.append(Timing(database, beside, f"browser: {what}", seconds, claimed))
            _progress(f"{database}: {burst} more sessions in the last day ...")
            more = seed_burst(location, plan, burst)
            keep(f"{burst:,} more of the last day", time_pages(server, token, burst_questions(more), times, noise))
        _progress(f"{database}: without a login ...")
        with airflow(root / "open", location, None) as server:
            measured = time_pages(server, None, [first_page(more)], times, noise)
            keep(f"{burst:,} more of the last day", measured, ", without a login")
    middle, most = (1000 * quantile(noise, part) for part in (0.5, 0.95))
    return timings, [f"{note} The control took {middle:.1f} ms, 95 of 100 within {most:.1f} ms."]


def _seeded(database: str, location: str, sessions: int) -> tuple[Plan, str]:
    _progress(f"{database}: {sessions} sessions ...")
    began = time.perf_counter()
    plan = seed(location, sessions, min(LAST_DAY, sessions // 2))
    return plan, f"{database}: {sessions:,} sessions were seeded in {time.perf_counter() - began:.0f} s."


def main() -> int:
    """Measure, print, and return the exit code."""
    parser = common_arguments(__doc__ or "", list(DATABASES))
    parser.add_argument("--sessions", type=int, default=SESSIONS, help=f"of the journal, 50000 or more ({SESSIONS})")
    parser.add_argument("--burst", type=int, default=BURST, help=f"sessions added to the last day ({BURST})")
    parser.add_argument("--times", type=int, default=100, help="repetitions of each page (100)")
    parser.add_argument("--looks", type=int, default=20, help="repetitions with the browser (20)")
    parser.add_argument("--tabs", metavar="COMMIT", help="measure only open tabs, beside an earlier commit")
    arguments = parser.parse_args()
    if arguments.tabs:
        tabs, bounds = open_tabs(arguments.tabs)
        failed = [sentence for bound in bounds for sentence in bound.broken_claims()]
        return publish(arguments, tabs, [asdict(bound) for bound in bounds], failed)
    load = os.getloadavg()[0]

    timings: list[Timing] = []
    notes: list[str] = []
    for database in arguments.only or DATABASES:
        measured, known = measure(database, arguments.sessions, arguments.burst, arguments.times, arguments.looks)
        timings, notes = timings + measured, notes + known

    table = Table(
        name="pages_at_scale",
        title="The pages beside a million sessions",
        columns=COLUMNS,
        rows=[timing.row() for timing in timings],
        notes=[
            f"Over HTTP with a login, all pages in turn, {arguments.times} times; the browser {arguments.looks} times.",
            f"{LAST_DAY:,} of the sessions started within the last day. One API worker.",
            *notes,
            "The processor time is that of the API server, with SQLite in it, and without PostgreSQL's own processes.",
            f"The control is a fixed piece of work, which takes {1000 * REFERENCE_SECONDS:g} ms on a quiet machine.",
            f"The machine's load at the start: {load:.1f}.",
        ],
    )
    broken = [sentence for timing in timings for sentence in timing.broken_claims()]
    return publish(arguments, table, [asdict(timing) for timing in timings], broken)


def open_tabs(commit: str) -> tuple[Table, list[Bound]]:
    """Measure what open tabs of the list cost the API server, beside an earlier commit; the versions take turns."""
    bounds = []
    with bounds_of.tree_of(commit) as before, contextlib.ExitStack() as stack:
        trees = {"before": before or bounds_of.ROOT, "now": bounds_of.ROOT}
        children = {name: stack.enter_context(Child(tree)) for name, tree in trees.items()}
        for change_every in CHANGES:
            minute = {"tabs": TABS, "seconds": 60, "sessions": TAB_SESSIONS, "change_every": change_every}
            found = {name: child.do("open_tabs", **minute) for name, child in children.items()}
            requests = Counter(found["now"]["requests"])
            changes = f"a session changes every {change_every} s" if change_every else "nothing changes"
            answered = f"{requests['not modified']} of {requests.total()} requests are answered 304"
            cost = {name: 1000 * each["cost"][0] for name, each in found.items()}
            bounds.append(
                Bound(
                    f"SQLite: a minute of {TABS} tabs, {changes} ({answered})",
                    cost["now"],
                    "ms",
                    before=cost["before"],
                    gain=None if change_every else 2.0,
                    control=[each["cost"][3] for each in found.values()],
                )
            )
    notes = [
        "Processor time of the API server's process after the tabs were opened, one minute each; the versions take"
        " turns. The control is as in the bounds of the cost of waits.",
        f"A tab asks as the page's script does: for the list of {TAB_SESSIONS:,} sessions every 5 s, the health line"
        " every 15 s, the chart every 60 s.",
        f"Earlier commit: {commit}, before the search, the further filters and the pages of meters and callouts.",
    ]
    table = Table(
        name="open_tabs",
        title="Ten open tabs of the list",
        columns=bounds_of.COLUMNS,
        rows=[bound.row() for bound in bounds],
        notes=notes,
    )
    return table, bounds


def _progress(what: str) -> None:
    print(what, file=sys.stderr, flush=True)


if __name__ == "__main__":
    sys.exit(main())
