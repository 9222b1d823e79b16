"""The missing runs of many sessions: which would be started and which not, and why; then exactly the chosen ones.

The list is a dry run: it starts nothing. A run that is started meanwhile is not started again.
"""

from __future__ import annotations

import json
from collections import defaultdict
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Annotated, Final, NamedTuple

from fastapi import APIRouter, Depends, Request, Response
from starlette.exceptions import HTTPException

from airflow_mediation_provider.api_server.auth import Reader, ReaderDep, same_origin
from airflow_mediation_provider.api_server.pages.rendering import PageRoute, Text, chosen, page
from airflow_mediation_provider.api_server.pages.sessions import SPANS, Search
from airflow_mediation_provider.journal import triggered_runs
from airflow_mediation_provider.journal.asset_events import UnknownAirflowError
from airflow_mediation_provider.journal.replay import refusals, replay
from airflow_mediation_provider.journal.session_list import (
    SessionKey,
    find_sessions,
    known_connections,
    list_sessions,
)
from airflow_mediation_provider.journal.session_search import Keyset
from airflow_mediation_provider.journal.transaction import read
from airflow_mediation_provider.protocol.sessions.asset_uri import connection_of_uri

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from sqlalchemy.orm import Session

    from airflow_mediation_provider.journal.replay import Reached
    from airflow_mediation_provider.journal.session_list import ListedSession, Listing
    from airflow_mediation_provider.journal.session_search import Filters

router = APIRouter(route_class=PageRoute)

EXAMINED: Final = 500
"""So many sessions of a search are examined at once, the newest first."""
MOST: Final = 200
"""So many runs are started by one form."""
_LONGEST_ID: Final = 250
FORM_LIMIT: Final = MOST * 5 * _LONGEST_ID * 12
"""A run is five texts, and a form has up to twelve bytes for a character."""
_MAY_NOT: Final = "you may not start runs of this Dag"
_ACTION: Final = "start_missing_runs"


class MissingRun(NamedTuple):
    """A run of a Dag for a session that reached a status."""

    dag_id: str
    key: SessionKey
    status: str

    @classmethod
    def parse(cls, text: str) -> MissingRun:
        """Parse a run as a form contains it.

        :raises ValueError: the text is no run
        """
        values = json.loads(text)
        if not isinstance(values, list) or [type(each) for each in values] != [str] * 5:
            raise ValueError(f"{text} is no run")
        # Half a character cannot be encoded, which is a ValueError too.
        if b"\0" in "".join(values).encode() or max(map(len, values)) > _LONGEST_ID:
            raise ValueError(f"{text} is no run")
        dag_id, conn_id, meter_id, session_id, status = values
        return cls(dag_id, SessionKey(conn_id, meter_id, session_id), status)

    def __str__(self) -> str:
        """Return the run as a form contains it."""
        return json.dumps([self.dag_id, *self.key, self.status], ensure_ascii=False)


@dataclass(frozen=True, slots=True, kw_only=True)
class Candidate:
    """A run that is missing.

    :param refused: why it would not be started; empty if it would be
    """

    run: MissingRun
    session: ListedSession
    refused: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Result:
    """What was done for a run.

    :param started: whether it is queued now
    :param refused: why it was not started; empty if it is queued now, or there was one before
    """

    run: MissingRun
    started: bool = False
    refused: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Dry:
    """A dry run.

    :param candidates: the missing runs, the oldest session first
    :param recent: how many more runs are not there yet, and count as missing when the session is a minute old
    :param examined: how many sessions were examined
    :param oldest: from when the last of them is
    :param older: where the next search continues; ``None`` if all sessions of this search were examined
    """

    candidates: tuple[Candidate, ...]
    recent: int
    examined: int
    oldest: datetime | None
    older: Keyset | None


def _search(
    conn: Text = "", meter: Text = "", dag_id: Text = "", since: Text = "", until: Text = "", tz: Text = ""
) -> tuple[Search, str]:
    return Search(conn=conn, meter=meter, since=since, until=until, tz=tz), dag_id.strip()


SearchDep = Annotated[tuple[Search, str], Depends(_search)]


@router.get("/missing-runs")
def missing_runs(request: Request, reader: ReaderDep, search: SearchDep, before: Text = "") -> Response:
    """Show the runs that would be started."""
    of, dag_id = search
    filters = of.filters(datetime.now(UTC))
    try:
        place = Keyset.parse(before) if before else None
    except ValueError as error:
        raise HTTPException(400, f"{error}: go back to the newest sessions.") from None
    dry = _dry_run(reader, filters, dag_id, place)
    return _shown(request, search, dry=dry, results=())


@router.post("/missing-runs/start", dependencies=[same_origin])
def missing_runs_start(
    request: Request, reader: ReaderDep, search: SearchDep, runs: Annotated[list[str], chosen("run", FORM_LIMIT)]
) -> Response:
    """Start the chosen runs, as far as they are still missing."""
    if len(runs) > MOST:
        raise HTTPException(400, f"One form starts {MOST} runs at most, and this one has {len(runs)}.")
    try:
        wanted = [MissingRun.parse(each) for each in runs]
    except ValueError:
        raise HTTPException(400, "Missing or invalid parameters: run.") from None
    results = start(reader, wanted)
    return _shown(request, search, dry=None, results=results)


def _shown(request: Request, search: tuple[Search, str], *, dry: Dry | None, results: Sequence[Result]) -> Response:
    of, dag_id = search
    parameters = {**of.parameters(), "dag_id": dag_id}
    startable = [each for each in dry.candidates if not each.refused] if dry else []
    refused: dict[tuple[str, str], list[Candidate]] = defaultdict(list)
    for each in dry.candidates if dry else ():
        if each.refused:
            refused[each.run.dag_id, each.refused].append(each)
    return page(
        request,
        "missing_runs.html",
        search=of,
        dag_id=dag_id,
        parameters={name: value for name, value in parameters.items() if value},
        connections=read(known_connections),
        spans=SPANS,
        dry=dry,
        startable=startable[:MOST],
        further=len(startable[MOST:]),
        refused=refused,
        results=results,
        most=MOST,
    )


def _dry_run(reader: Reader, filters: Filters, dag_id: str, before: Keyset | None) -> Dry:
    def work(session: Session) -> tuple[list[_Without], dict[str, str], Listing]:
        listing = list_sessions(session, filters, limit=EXAMINED, before=before, bare=True)
        found = [each for each in _without_run(session, listing.sessions) if dag_id in ("", each.run.dag_id)]
        return found, refusals(session, {each.run.dag_id for each in found}), listing

    found, reasons, listing = read(work)
    seen = reader.sees_runs(set(reasons))
    may = reader.starts_runs(seen)
    visible = [each for each in found if each.run.dag_id in seen]
    missed = sorted((each for each in visible if not each.recent), key=lambda each: (each.session.begun_at, each.run))
    return Dry(
        candidates=tuple(
            Candidate(
                run=each.run,
                session=each.session,
                refused=reasons[each.run.dag_id] if each.run.dag_id in may else _MAY_NOT,
            )
            for each in missed
        ),
        recent=len(visible) - len(missed),
        examined=len(listing.sessions),
        oldest=listing.sessions[-1].begun_at if listing.sessions else None,
        older=listing.older,
    )


class _Without(NamedTuple):
    """A run that is not there, and whether it is too early to call it missing."""

    run: MissingRun
    session: ListedSession
    recent: bool


def _without_run(session: Session, listed: tuple[ListedSession, ...]) -> Iterable[_Without]:
    assets = triggered_runs.Assets(session, {each.meter for each in listed})
    scheduled = triggered_runs.scheduled(session, assets)
    started = triggered_runs.started(session, listed, assets)
    now = datetime.now(UTC)
    for each in listed:
        for consumer in triggered_runs.consumers(each, scheduled.get(each.meter, ()), started.get(each.key), now):
            if consumer.missed or consumer.recent:
                yield _Without(MissingRun(consumer.dag_id, each.key, consumer.status), each, consumer.recent)


def start(reader: Reader, runs: Iterable[MissingRun]) -> list[Result]:
    """Start runs, as far as they are missing and the user may; each Dag gets an entry in Airflow's audit log.

    :raises HTTPException: the user may start runs of none of the Dags
    """
    by_dag: dict[str, list[MissingRun]] = defaultdict(list)
    for run in dict.fromkeys(runs):
        by_dag[run.dag_id].append(run)
    may = reader.starts_runs(set(by_dag))
    if by_dag and not may:
        raise HTTPException(403, f"You may not start runs of the Dag {', '.join(sorted(by_dag))}.")
    sessions = read(lambda session: find_sessions(session, {run.key for of_dag in by_dag.values() for run in of_dag}))
    results = []
    for dag_id, of_dag in sorted(by_dag.items()):
        if dag_id not in may:
            results += [Result(run=run, refused=_MAY_NOT) for run in of_dag]
            continue
        unknown = [run for run in of_dag if run.key not in sessions]
        results += [Result(run=run, refused="the journal has no such session") for run in unknown]
        if stored := [run for run in of_dag if run.key in sessions]:
            reader.log_action(_ACTION, dag_id=dag_id, sessions=[[*run.key, run.status] for run in stored])
            results += _started(dag_id, stored, sessions)
    return results


def _started(dag_id: str, runs: Sequence[MissingRun], sessions: Mapping[SessionKey, ListedSession]) -> list[Result]:
    since = min(sessions[run.key].first_observed_at for run in runs)
    try:
        done = list(replay(dag_id=dag_id, since=since, of={run.key: run.status for run in runs}))
    except (ValueError, UnknownAirflowError) as error:
        return [Result(run=run, refused=str(error)) for run in runs]
    refused = next((each.refused for each in done if each.refused), "")
    new = {_key(each) for of_dag in done for each in of_dag.missed}
    known = {_key(each) for of_dag in done for each in of_dag.known}

    def result(run: MissingRun) -> Result:
        which = run.key
        if refused or which in new or which in known:
            return Result(run=run, started=which in new, refused=refused)
        return Result(run=run, refused=f"it is not scheduled on this session in the status {run.status}")

    return [result(run) for run in runs]


def _key(reached: Reached) -> SessionKey:
    return SessionKey(connection_of_uri(reached.uri), reached.meter_id, reached.key)
