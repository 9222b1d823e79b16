"""The page of a meter, "is it OK today?", and the tab of a Dag with the meters that it is about."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Final, NamedTuple

from fastapi import APIRouter, Request, Response
from starlette.exceptions import HTTPException

from airflow_mediation_provider.api_server.auth import ReaderDep  # noqa: TC001  # FastAPI reads it
from airflow_mediation_provider.api_server.pages.health import BAD, GOOD, WARN
from airflow_mediation_provider.api_server.pages.rendering import PageRoute, Text, page
from airflow_mediation_provider.api_server.pages.sessions import around, rows_of
from airflow_mediation_provider.journal import triggered_runs
from airflow_mediation_provider.journal.meters import RunsOfMeter, meter_names, meters_of, tempos
from airflow_mediation_provider.journal.session_list import list_sessions
from airflow_mediation_provider.journal.session_search import Filters
from airflow_mediation_provider.journal.transaction import read
from airflow_mediation_provider.protocol.sessions.usual import NEWEST, Punctuality
from airflow_mediation_provider.protocol.status import RunType
from airflow_mediation_provider.protocol.times import humanize

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from sqlalchemy.orm import Session

    from airflow_mediation_provider.api_server.auth import Reader
    from airflow_mediation_provider.api_server.pages.sessions import Around, Row
    from airflow_mediation_provider.journal.meters import Tempos
    from airflow_mediation_provider.journal.triggered_runs import Scheduled, StartedRun, Wait
    from airflow_mediation_provider.protocol.sessions.usual import PastSession, Tempo, UsualDuration

router = APIRouter(route_class=PageRoute)

COUNTED: Final = 100
"""So many of a meter's newest sessions count for its failure rate and its last success."""
_LINES: Final = 12
_METERS: Final = 20
_WORDS: Final = {GOOD: "Yes", WARN: "Perhaps not", BAD: "No"}
_HEIGHT: Final = 100.0
_WIDTH: Final = 600.0


class Answer(NamedTuple):
    """Whether a meter is OK, in one sentence.

    :param level: good, warn or bad; empty: nothing is known yet
    """

    level: str
    text: str


def answer(tempo: Tempo, now: datetime) -> Answer:
    """Return whether a meter is OK: by the last end, the live sessions, and when the next one is due."""
    if not tempo.past:
        return Answer("", "No session of this meter has been received.")
    level, clauses = "", ["no session has ended yet"]
    if ended := tempo.ended:
        level, clauses = _last_end(ended[0], tempo.streak, now)
    for each in tempo.live[:1]:
        clause = f"{each.session_id} has been live for {humanize(now - each.begun_at)}"
        if tempo.takes_long(each.begun_at, now):
            level, clause = _worse(level), f"{clause}, longer than usual"
        clauses.append(clause)
    if tempo.rhythm and tempo.punctuality(now) is Punctuality.LATE:
        level = _worse(level)
        every, since = humanize(tempo.rhythm.about), humanize(now - tempo.rhythm.last)
        clauses.append(f"the next one is late: one starts about every {every}, the last one {since} ago")
    sentence = "; ".join(clauses)
    return Answer(level, f"{_WORDS[level]}: {sentence}." if level else f"{sentence[0].upper()}{sentence[1:]}.")


def _last_end(last: PastSession, streak: int, now: datetime) -> tuple[str, list[str]]:
    level = GOOD if last.succeeded else BAD if last.failed else WARN
    clause = f"{last.session_id} ended {last.status} {humanize(now - (last.ended_at or now))} ago"
    if streak > 1:
        clause += f", like the {streak - 1} before it" if streak > 2 else ", like the one before it"
    if not last.certain:
        clause += ", which is not certain"
    return level, [clause]


def _worse(level: str) -> str:
    return BAD if level == BAD else WARN


class Mark(NamedTuple):
    """One mark at the axis of the chart."""

    y: float
    text: str


class TrendBar(NamedTuple):
    """The duration of one session, as a bar of the chart."""

    session: PastSession
    x: float
    width: float
    y: float
    height: float
    lasted: timedelta


@dataclass(frozen=True, slots=True)
class Trend:
    """The durations of the newest sessions, the oldest first.

    :param bars: one of each session
    :param band: top and height of the usual range
    :param marks: at the axis
    """

    bars: tuple[TrendBar, ...]
    band: tuple[float, float] | None
    marks: tuple[Mark, ...]
    height: float = _HEIGHT
    width: float = _WIDTH


def trend(past: Sequence[PastSession], usual: UsualDuration | None, now: datetime) -> Trend | None:
    """Return the chart of durations; ``None`` without a session.

    :param past: the newest first
    :param usual: the usual range
    """
    shown = [*reversed(past[:NEWEST])]
    if not shown:
        return None
    lasted = [max((each.ended_at or now) - each.begun_at, timedelta()) for each in shown]
    highest = max(*lasted, usual.longest if usual else timedelta(), timedelta(seconds=1))
    step = _WIDTH / NEWEST

    def high(duration: timedelta) -> float:
        # At least so high that it is visible.
        return round(max(_HEIGHT * (duration / highest), 1.0), 2)

    bars = tuple(
        TrendBar(each, round(step * at + 2, 2), round(step - 4, 2), _HEIGHT - high(took), high(took), took)
        for at, (each, took) in enumerate(zip(shown, lasted, strict=True))
    )
    band = None
    if usual:
        top = high(usual.longest)
        band = (_HEIGHT - top, round(max(top - high(usual.shortest), 1.0), 2))
    marks = tuple(Mark(_HEIGHT * (1 - part), humanize(highest * part)) for part in (1, 0.5, 0))
    return Trend(bars, band, marks)


@dataclass(frozen=True, slots=True)
class Line:
    """A line of the matrix: what each session has of one task or one Dag.

    :param cells: of each session: a task, a run, whether a run is missing, or nothing
    """

    label: str
    cells: tuple[Wait | StartedRun | bool | None, ...]


def lines(rows: Sequence[Row]) -> list[Line]:
    """Return the lines below the sessions: tasks first, then triggered Dags, each by name."""
    found: dict[tuple[int, str], dict[int, Wait | StartedRun | bool]] = defaultdict(dict)
    for at, row in enumerate(rows):
        for task in row.tasks:
            found[0, f"{task.dag_id}.{task.task_id}"].setdefault(at, task)
        for run in row.runs:
            found[1, run.dag_id].setdefault(at, run)
        for dag_id in row.missed:
            found[1, dag_id].setdefault(at, True)
    return [Line(label, tuple(cells.get(at) for at in range(len(rows)))) for (_, label), cells in sorted(found.items())]


@dataclass(frozen=True, slots=True, kw_only=True)
class MeterSummary:
    """What is known of a meter, from its newest sessions of one run type.

    :param run_type: NORMAL, or DEBUG if there is no other
    :param tempo: of ``COUNTED`` sessions
    """

    conn_id: str
    meter_id: str
    meter_name: str | None
    run_type: str
    tempo: Tempo
    answer: Answer
    punctuality: Punctuality

    @property
    def last_success(self) -> PastSession | None:
        """The last session that succeeded."""
        return next((each for each in self.tempo.past if each.succeeded), None)

    @property
    def failed(self) -> int:
        """How many sessions failed."""
        return sum(each.failed for each in self.tempo.past)

    @property
    def since(self) -> datetime:
        """When the oldest of the sessions began."""
        return self.tempo.past[-1].begun_at

    @property
    def strip(self) -> list[PastSession]:
        """The newest sessions, the oldest first."""
        return [*reversed(self.tempo.past[:NEWEST])]


@dataclass(frozen=True, slots=True, kw_only=True)
class MeterView:
    """A meter as its page shows it, as far as the user may see it.

    :param rows: its newest sessions of either run type, the oldest first
    :param waiting: tasks that wait for it now
    :param hidden: of these, how many the user may not see
    :param scheduled: Dags that are scheduled on it
    :param counted: what tasks reported of the records of a session: its row, and their sentence
    """

    summary: MeterSummary
    trend: Trend | None
    rows: list[Row]
    lines: list[Line]
    more_lines: int
    waiting: list[Wait]
    hidden: int
    scheduled: list[Scheduled]
    hidden_dags: int
    counted: list[tuple[Row, str]]


class _Found(NamedTuple):
    surroundings: Around
    waiting: list[Wait]
    scheduled: list[Scheduled]


@router.get("/meter")
def meter(request: Request, reader: ReaderDep, conn: Text, meter: Text) -> Response:
    """Show a meter."""
    now = datetime.now(UTC)

    def work(session: Session) -> tuple[MeterSummary, _Found]:
        (summary,) = _summaries(session, [(conn, meter)], now)
        return summary, _found(session, conn, meter, request.app.state.tempos)

    summary, found = read(work)
    return page(request, "meter.html", view=_view(reader, summary, found, now), counted=COUNTED)


@router.get("/dag")
def dag(request: Request, reader: ReaderDep, dag_id: Text) -> Response:
    """Show the meters that a Dag runs, waits for or is scheduled on; of one meter all that its page shows."""
    if dag_id not in reader.sees_runs([dag_id]):
        raise HTTPException(403, f"You may not see the runs of the Dag {dag_id}.")
    # What its tasks do with meters is theirs.
    sees_tasks = dag_id in reader.sees_tasks([dag_id])
    now = datetime.now(UTC)

    def work(session: Session) -> tuple[list[MeterSummary], set[str], bool, _Found | None]:
        meters, any_of = triggered_runs.meters_of_dag(session, dag_id, tasks=sees_tasks)
        meters += [(conn_id, each) for conn_id in sorted(any_of) for each in meters_of(session, conn_id, _METERS + 1)]
        meters = list(dict.fromkeys(meters))
        summaries = _summaries(session, meters[:_METERS], now)
        only = _found(session, *meters[0], request.app.state.tempos) if len(meters) == 1 else None
        return summaries, any_of, len(meters) > _METERS, only

    summaries, any_of, more, found = read(work)
    view = _view(reader, summaries[0], found, now) if found else None
    return page(
        request,
        "dag.html",
        dag_id=dag_id,
        summaries=summaries,
        view=view,
        any_of=sorted(any_of),
        more=more,
        sees_tasks=sees_tasks,
        counted=COUNTED,
    )


def _summaries(session: Session, meters: Sequence[tuple[str, str]], now: datetime) -> list[MeterSummary]:
    names = meter_names(session, meters)
    live = tempos(session, [RunsOfMeter(*each, RunType.NORMAL) for each in meters], newest=COUNTED)
    tests = [RunsOfMeter(*of[:2], RunType.DEBUG) for of, tempo in live.items() if not tempo.past]
    found = live | {of: tempo for of, tempo in tempos(session, tests, newest=COUNTED).items() if tempo.past}

    def summary(each: tuple[str, str]) -> MeterSummary:
        test = RunsOfMeter(*each, RunType.DEBUG)
        of = test if test in found else RunsOfMeter(*each, RunType.NORMAL)
        return MeterSummary(
            conn_id=of.conn_id,
            meter_id=of.meter_id,
            meter_name=names.get(each),
            run_type=str(of.run_type),
            tempo=found[of],
            answer=answer(found[of], now),
            punctuality=found[of].punctuality(now),
        )

    return [summary(each) for each in meters]


def _found(session: Session, conn_id: str, meter_id: str, kept: Tempos) -> _Found:
    listing = list_sessions(session, Filters(conn_id=conn_id, meter_id=meter_id), limit=NEWEST)
    of = (conn_id, meter_id)
    surroundings = around(session, listing.sessions, kept)
    scheduled = surroundings.scheduled
    if not listing.sessions:
        scheduled = triggered_runs.scheduled(session, triggered_runs.Assets(session, {of}))
    return _Found(surroundings, triggered_runs.waiting_for(session, *of), list(scheduled.get(of, ())))


def _view(reader: Reader, summary: MeterSummary, found: _Found, now: datetime) -> MeterView:
    rows = [*reversed(rows_of(found.surroundings, reader, now))]
    seen_tasks = reader.sees_tasks({each.dag_id for each in found.waiting})
    seen_dags = reader.sees_runs({each.dag_id for each in found.scheduled})
    all_lines = lines(rows)
    return MeterView(
        summary=summary,
        trend=trend(summary.tempo.past, summary.tempo.usual, now),
        rows=rows,
        lines=all_lines[:_LINES],
        more_lines=len(all_lines[_LINES:]),
        waiting=[each for each in found.waiting if each.dag_id in seen_tasks],
        hidden=sum(each.dag_id not in seen_tasks for each in found.waiting),
        scheduled=[each for each in found.scheduled if each.dag_id in seen_dags],
        hidden_dags=len({each.dag_id for each in found.scheduled} - seen_dags),
        counted=list(_counted(reversed(rows))),
    )


def _counted(rows: Iterable[Row]) -> Iterable[tuple[Row, str]]:
    """Yield the sessions whose records a task counted."""
    for row in rows:
        note = next((each.note for each in row.tasks if each.note and each.note.get("kind") == "summary"), None)
        if note:
            yield row, str(note.get("message") or "")
