"""The requests of the pages' benchmark: each list, filter, page and tab with its address and a text it must show."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import timedelta
from typing import TYPE_CHECKING, Final

from airflow_mediation_provider.api_server.pages.sessions import MISSED_SCANNED, PAGE
from airflow_mediation_provider.journal.session_search import Keyset
from airflow_mediation_provider.protocol.urls import address, session_page, task_page
from benchmarks.busy_journal import BUSY, EU, POLLED, PROD, SANDBOX, SILENT, WAITED, session_of
from benchmarks.journal_starts import CONN_ID, dag_of, is_missed, run_of, triggers

if TYPE_CHECKING:
    from collections.abc import Iterator

    from benchmarks.busy_journal import Plan

LIST_SECONDS: Final = 0.100
COUNT_SECONDS: Final = 1.0
"""The health line beside very many sessions is fetched separately: no page waits for it."""
NOTHING: Final = "No matching sessions"
_DEEP: Final = 1000


@dataclass(frozen=True, slots=True)
class Question:
    """One page.

    :param what: a short description
    :param path: its address below Airflow's
    :param shows: text that the answer must contain, or it is the wrong page
    :param claimed: seconds that 95 of 100 answers may take
    """

    what: str
    path: str
    shows: str
    claimed: float = LIST_SECONDS


def questions(plan: Plan) -> list[Question]:
    """Return the requests to a seeded journal."""
    return [*_lists(plan), *_charts(plan), *_pages(plan), *_tabs(plan)]


def first_page(plan: Plan) -> Question:
    """Return the list as it is opened."""
    return Question("first page", address("", "/sessions"), _listed(plan.last))


def burst_questions(plan: Plan) -> list[Question]:
    """Return the requests to a journal with very many sessions of one day.

    :param plan: of these sessions
    """
    return [
        first_page(plan),
        _filtered("a meter, CANCELED (never)", NOTHING, meter=BUSY, status="CANCELED", since="24h"),
        _chart("the last day"),
        _chart("the last day of the busiest meter", meter=BUSY),
        Question("health", address("", "/health"), PROD, COUNT_SECONDS),
    ]


def _filtered(what: str, shows: str | int, **parameters: object) -> Question:
    text = shows if isinstance(shows, str) else _listed(shows)
    return Question(f"list: {what}", address("", "/sessions", **parameters), text)


def _listed(number: int) -> str:
    """Return what the table has of a session: the form repeats what is searched for."""
    return f"<bdi>{session_of(number)}</bdi></a></th>"


def _chart(what: str, **parameters: object) -> Question:
    return Question(f"chart: {what}", address("", "/sessions/chart", **parameters), "COMPLETED")


def _lists(plan: Plan) -> Iterator[Question]:
    newest = plan.newest
    canceled = newest(PROD, None, "CANCELED")
    some = plan.meter(canceled)[1]
    yield first_page(plan)
    yield _filtered("one connection", newest(EU), conn=EU)
    yield _filtered("a connection silent for a year", newest(SILENT), conn=SILENT)
    yield _filtered("one meter", newest(PROD, some), meter=some)
    yield _filtered("the busiest meter", newest(PROD, BUSY), meter=BUSY)
    yield _filtered("COMPLETED", newest(PROD, BUSY, "COMPLETED"), status="COMPLETED")
    yield _filtered("FAILED", newest(PROD, BUSY, "FAILED"), status="FAILED")
    yield _filtered("a status that never occurs", NOTHING, status="PAUSED")
    yield _filtered("NORMAL", plan.last, run_type="NORMAL")
    yield _filtered("DEBUG", ">DEBUG</td>", run_type="DEBUG")
    yield _filtered("the last day", plan.last, since="24h")
    middle = plan.sessions // 2
    old = {"since": plan.began(middle // 2).isoformat(), "until": plan.began(middle).isoformat()}
    yield _filtered("half a year, long ago", middle - 1, **old)

    yield _filtered("busiest meter, FAILED", newest(PROD, BUSY, "FAILED"), meter=BUSY, status="FAILED")
    yield _filtered("busiest meter, CANCELED (never)", NOTHING, meter=BUSY, status="CANCELED")
    yield _filtered("busiest meter, DEBUG (never)", NOTHING, meter=BUSY, run_type="DEBUG")
    yield _filtered("one meter, CANCELED", canceled, meter=some, status="CANCELED")
    yield _filtered("one meter, a status that never occurs", NOTHING, meter=some, status="PAUSED")
    yield _filtered("a connection, FAILED", newest(SANDBOX, None, "FAILED"), conn=SANDBOX, status="FAILED")
    yield _filtered("silent connection, COMPLETED", newest(SILENT, None, "COMPLETED"), conn=SILENT, status="COMPLETED")
    yield _filtered("silent connection, FAILED", newest(SILENT, None, "FAILED"), conn=SILENT, status="FAILED")
    yield _filtered("silent connection, NORMAL, a month", NOTHING, conn=SILENT, run_type="NORMAL", since="30d")
    tested = newest(SANDBOX, None, "TESTING_PASSED")
    yield _filtered("a connection, DEBUG", tested, conn=SANDBOX, run_type="DEBUG")
    yield _filtered("COMPLETED and DEBUG (never)", NOTHING, status="COMPLETED", run_type="DEBUG")
    yield _filtered("FAILED, half a year, long ago", 't-failed">FAILED', status="FAILED", **old)
    every = {"conn": PROD, "meter": some, "status": "COMPLETED", "run_type": "NORMAL", "since": "30d"}
    yield _filtered("all filters at once", newest(PROD, some, "COMPLETED"), **every)
    yield from _searches(plan)

    def place(number: int) -> Keyset:
        return Keyset(plan.began(number), number + 1)

    deep = max(plan.sessions - PAGE * (_DEEP - 1), 1)
    yield _filtered(f"page {_DEEP}", deep - 1, before=place(deep))
    yield _filtered("the last page", 0, before=place(PAGE))
    yield _filtered("back from the last page", PAGE, after=place(PAGE - 1))


def _searches(plan: Plan) -> Iterator[Question]:
    newest = plan.newest
    failed = newest(PROD, None, "FAILED")
    some = plan.meter(failed)[1]
    yield _filtered("search: a session's id", plan.sessions // 2, q=session_of(plan.sessions // 2))
    yield _filtered("search: the start of all sessions' ids", plan.last, q="r-0")
    yield _filtered("search: a meter's id", failed, q=some, status="FAILED")
    yield _filtered("search: the start of many meters' ids", "More sessions match", q="1")
    yield _filtered("search: a Dag", newest_awaited(plan), q=WAITED)
    yield _filtered("search: a run", newest_awaited(plan), q=f"run-{session_of(newest_awaited(plan))}")
    yield _filtered("search: a notification", failed, q=f"{session_of(failed)}-1")
    yield _filtered("search: nothing", NOTHING, q="none-such")
    yield _filtered("two statuses", failed, status=["FAILED", "CANCELED"])
    ended = newest(PROD, None, "COMPLETED")
    for group, shown in (("failed", failed), ("ended", ended), ("live", plan.last), ("attention", failed)):
        yield _filtered(f"group: {group}", shown, group=group)
    yield _filtered("group: failed, of the busiest meter", newest(PROD, BUSY, "FAILED"), group="failed", meter=BUSY)
    for only in ("uncertain", "conflict", "ambiguous", "unknown"):
        yield _filtered(f"only: {only} (never)", NOTHING, only=only)
    yield _filtered("only: silent", plan.lost[-1], only="silent")
    yield _filtered("only: no run started", _newest_missed(plan), only="no-run")
    yield _filtered("longer than an hour", " sessions so far: ", longer="1h")
    for sort in ("end", "duration"):
        yield _filtered(f"sorted by {sort}", "are sorted", sort=sort)
        yield _filtered(f"FAILED, sorted by {sort}", 't-failed">FAILED', sort=sort, status="FAILED")
    yield Question("list as JSON", address("", "/sessions.json"), session_of(plan.last))


def newest_awaited(plan: Plan) -> int:
    """Return the newest session for which a task waited."""
    return next(number for number in reversed(plan.numbers) if plan.is_awaited(number))


def _newest_missed(plan: Plan) -> int | str:
    """Return the newest session whose Dag was paused then; it may be older than what a search covers at once."""
    for number in reversed(plan.numbers[-MISSED_SCANNED:]):
        conn_id, meter_id = plan.meter(number)
        if conn_id == CONN_ID and triggers(meter_id, plan.walk(number)[1][-1]) and is_missed(session_of(number)):
            return number
    return NOTHING


def _charts(plan: Plan) -> Iterator[Question]:
    begin = plan.began(0).isoformat()
    yield _chart("the last day")
    yield _chart("30 days", since="30d")
    yield _chart("everything", since=begin)
    yield _chart("everything of one connection", since=begin, conn=EU)
    yield _chart("everything of the busiest meter", since=begin, meter=BUSY)
    yield _chart("everything NORMAL", since=begin, run_type="NORMAL")


def _pages(plan: Plan) -> Iterator[Question]:
    def session(what: str, number: int, shows: str) -> Question:
        return Question(f"session: {what}", session_page("", *plan.meter(number), session_of(number)), shows)

    yield session("one that started a run", _started(plan), dag_of(BUSY))
    yield _meter("the busiest", PROD, BUSY, dag_of(BUSY))
    yield _meter("any", PROD, plan.meter(plan.newest(PROD, None, "CANCELED"))[1], "Usual duration")
    yield _meter("silent for a year", SILENT, plan.meter(plan.newest(SILENT))[1], "Last success")
    yield _meter("unknown", PROD, "none", "No session of this meter")
    polled = plan.newest(PROD, POLLED, "COMPLETED")
    yield session("a meter with many polls", polled, session_of(polled))
    yield session("silent for years", plan.first, "airflow mediation reconcile")
    yield Question("health", address("", "/health"), PROD)
    yield Question("a connection", address("", "/connection", conn=PROD), "Calls by hour")
    yield from _callouts(plan)


def _callouts(plan: Plan) -> Iterator[Question]:
    def listed(what: str, shows: str, **parameters: object) -> Question:
        return Question(f"callouts: {what}", address("", "/callouts", **parameters), shows)

    newest = session_of(plan.newest(PROD, BUSY))
    yield listed("all", session_of(plan.last))
    yield listed("accepted, one connection", ">duplicate</span>", conn=PROD, kind="accepted")
    yield listed("refused", "the signature is wrong", kind="refused")
    never = {"kind": "refused", "answer": 404, "acknowledged": "no"}
    yield listed("refused, not acknowledged, 404 (never)", "No matching callouts", **never)
    yield listed("repeated", ">duplicate</span>", kind="duplicate")
    yield listed("unreadable", "it names no meter", kind="unreadable")
    yield listed("unreadable, of a connection that has none", "No matching callouts", kind="unreadable", conn=EU)
    yield listed("a session", newest, session=newest)
    yield listed("a day long ago", "No matching callouts", since="2020-01-01T00:00", until="2020-01-02T00:00")
    yield listed("a deep page", ">200</span>", before=Keyset(plan.now - timedelta(hours=6), 1), conn=PROD)
    yield Question("a callout", address("", "/callout", receipt=1), "Headers")


def _meter(what: str, conn_id: str, meter_id: str, shows: str) -> Question:
    return Question(f"meter: {what}", address("", "/meter", conn=conn_id, meter=meter_id), shows)


def _tabs(plan: Plan) -> Iterator[Question]:
    waited = session_of(newest_awaited(plan))
    yield Question("task tab", task_page("", WAITED, f"run-{waited}", "wait", -1), waited)
    unnamed = task_page("", WAITED, "run-unnamed-0", "wait", -1)
    yield Question("task tab: no session yet", unnamed, "It was for the first session that started")
    started = session_of(_started(plan))
    path = address("", "/run", dag_id=dag_of(BUSY), run_id=run_of(started))
    yield Question("run tab", path, started)
    yield Question("Dag tab: the busiest meter", address("", "/dag", dag_id=dag_of(BUSY)), "Usual duration")


def _started(plan: Plan) -> int:
    """Return the newest session that triggered a run."""
    return next(
        number
        for number in reversed(plan.numbers)
        if plan.meter(number)[1] == BUSY
        and plan.walk(number)[1][-1] == "COMPLETED"
        and not is_missed(session_of(number))
    )
