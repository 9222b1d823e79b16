"""Rendering of HTML: the frame of all pages, Jinja's templates, and the texts and bars that they show.

Templates escape every value. An error is a page too. Nothing is loaded from another origin, and no other origin may
frame the pages.
"""

from __future__ import annotations

import json
import logging
from collections import Counter
from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from functools import cache
from hashlib import blake2b
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Final, NamedTuple, Protocol, get_origin
from urllib.parse import parse_qsl, quote

from airflow.api_fastapi.core_api.security import GetUserDep  # noqa: TC002  # FastAPI reads it
from fastapi import Depends, Query, Request, Response
from fastapi.dependencies.utils import get_flat_dependant
from fastapi.exceptions import RequestValidationError
from fastapi.routing import APIRoute
from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup
from pydantic import StringConstraints
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect
from starlette.responses import HTMLResponse, JSONResponse

from airflow_mediation_provider import __version__
from airflow_mediation_provider.api_server.connections import LookupFailedError, UnknownConnectionError
from airflow_mediation_provider.api_server.http import BodyTooLargeError, BodyTooSlowError, read_body
from airflow_mediation_provider.journal.task_reports import LEFT, TASK
from airflow_mediation_provider.journal.transaction import JournalMissing, JournalUnavailable
from airflow_mediation_provider.protocol.status import SessionStatus
from airflow_mediation_provider.protocol.times import exactly, humanize, in_words
from airflow_mediation_provider.protocol.urls import MOUNT, address, session_page
from airflow_mediation_provider.protocol.waits.wait_result import WaitEnd
from airflow_mediation_provider.version_compat import framed

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine, Sequence

    from airflow_mediation_provider.api_server.connections import MediationConnection
    from airflow_mediation_provider.journal.session_list import SessionKey
    from airflow_mediation_provider.journal.triggered_runs import StartedRun, Wait
    from airflow_mediation_provider.protocol.sessions.lifecycle import Phase


_SECOND: Final = timedelta(seconds=1)
NOT_SHOWN: Final = "not shown"
"""The text of a phase that has no status: older reports were not read."""
WIDTH: Final = 1000.0
# So wide that a phase is visible beside the longest other phase.
_LEAST: Final = 6.0

TONES: Final = {
    SessionStatus.COMPLETED: "success",
    SessionStatus.TESTING_PASSED: "success",
    SessionStatus.FAILED: "failed",
    SessionStatus.TESTING_FAILED: "failed",
    SessionStatus.CANCELED: "canceled",
    SessionStatus.RUNNING: "running",
    SessionStatus.TESTING: "running",
    SessionStatus.INITIALIZING: "queued",
    SessionStatus.PAUSED: "paused",
    SessionStatus.STOPPING: "paused",
    SessionStatus.USAGE_PUSHING: "pushing",
    SessionStatus.PUSH_COMPLETED: "pushing",
    SessionStatus.CONSUME_COMPLETED: "pushing",
}
OUTLINED: Final = frozenset(
    {SessionStatus.TESTING, SessionStatus.TESTING_PASSED, SessionStatus.TESTING_FAILED, SessionStatus.STOPPING}
)
"""Those that have the colour of another status, and so an outline too."""
_DOCUMENTED: Final = frozenset(SessionStatus)
AIRFLOW_TONES: Final = {
    "success": "success",
    "failed": "failed",
    "upstream_failed": "failed",
    "running": "running",
    "restarting": "running",
    "deferred": "pushing",
    "queued": "queued",
    "scheduled": "queued",
    "up_for_retry": "canceled",
    "up_for_reschedule": "pushing",
}
"""The colours of Airflow's own states of a task or a run; any other state has a neutral one."""
SOURCES: Final = {
    "callout": "callout",
    "history": "callout history",
    "poll": "poll",
    "run": "reply to the run call",
}
OUTCOMES: Final[dict[str, str]] = {
    WaitEnd.MET: "condition met",
    WaitEnd.FAILED: "session failed",
    WaitEnd.TIMED_OUT: "timed out",
    WaitEnd.UNREACHABLE: "Zuora unreachable",
    WaitEnd.MISCONFIGURED: "misconfigured",
    WaitEnd.UNCERTAIN: "not certain",
    LEFT: "ended",
}
_HEADERS: Final = {
    "Cache-Control": "no-store",
    "Content-Security-Policy": (
        "default-src 'none'; style-src 'self'; script-src 'self'; img-src 'self' data:; font-src 'self'; "
        "connect-src 'self'; form-action 'self'; frame-ancestors 'self'; base-uri 'none'"
    ),
    "Referrer-Policy": "same-origin",
    "X-Content-Type-Options": "nosniff",
}
_TITLES: Final = {
    400: "Invalid address",
    401: "You are not logged in",
    403: "Access denied",
    404: "Not found",
    503: "The journal cannot be read",
}
Text = Annotated[str, StringConstraints(pattern="^[^\x00]*$")]
"""A part of an address: databases store no text with a NUL in it."""
Texts = Annotated[list[Text], Query(default_factory=list)]
"""A part of an address that may be there several times."""
RECENT_SECONDS: Final = 4.0
RECENT_PAGES: Final = 2_000
"""The tags of so many answers are kept so long."""
_LONGEST_NAME: Final = 80
_FORM_LIMIT: Final = 64 * 1024
_FORM_SECONDS: Final = 10.0


class PhaseSegment(NamedTuple):
    """One phase of a bar.

    :param classes: of its rectangle
    :param x: its position
    :param width: its length
    :param title: its text
    :param status: for the script; ``None``: older reports were not read, and the rectangle is only outlined
    :param begin: when it began, for the script
    """

    classes: str
    x: float
    width: float
    title: str
    status: str | None
    begin: str


class PhaseBar(NamedTuple):
    """The phases of a session as a bar.

    :param segments: in their order
    :param text: the phases and how long each of them lasted, for readers who cannot see the bar
    :param ended: the text of all phases but a last one that goes on, which the browser counts; ``None`` if none goes on
    """

    segments: list[PhaseSegment]
    text: str
    ended: str | None


def phase_bar(phases: Sequence[Phase]) -> PhaseBar:
    """Return the phases of a session as a bar; the browser draws how long an open last one lasts.

    :param phases: in their order
    """
    begin, until = phases[0].begin, _until(phases)
    whole = max((until - begin).total_seconds(), 1.0)
    segments, texts = [], []
    for phase, seconds in zip(phases, whole_seconds(phases), strict=True):
        x = WIDTH * (phase.begin - begin).total_seconds() / whole
        width = max(WIDTH * phase.lasts(until).total_seconds() / whole, _LEAST)
        name, lasts = _phase_name(phase), _lasts(phase, seconds)
        outlined = " is-outlined" if phase.status in OUTLINED else ""
        segments.append(
            PhaseSegment(
                f"f-{tone(phase.status) if phase.status else 'hidden'}{outlined}",
                round(min(x, WIDTH - _LEAST), 1),
                round(width, 1),
                f"{name}: {lasts}",
                phase.status,
                phase.begin.isoformat(),
            )
        )
        texts.append(f"{name} {lasts}")
    ended = None if phases[-1].end is not None else "".join(f"{each}, " for each in texts[:-1])
    return PhaseBar(segments, ", ".join(texts), ended)


def _phase_name(phase: Phase) -> str:
    names = (phase.status, f"{phase.later} at an unknown time" if phase.later else None)
    return ", then ".join(filter(None, names)) or NOT_SHOWN


def _lasts(phase: Phase, seconds: timedelta) -> str:
    return exactly(seconds) if phase.end is not None else f"since {in_words(phase.begin)}"


def _until(phases: Sequence[Phase]) -> datetime:
    """Return up to when the phases are known without a clock."""
    return phases[-1].end or phases[-1].begin


def whole_seconds(phases: Sequence[Phase]) -> list[timedelta]:
    """Return the lengths of phases in whole seconds; their sum is that of the session, cut to seconds once.

    An open last phase has none yet.
    """
    if not phases:
        return []
    begin, until = phases[0].begin, _until(phases)
    edges = [(each - begin) // _SECOND for each in (begin, *(max(phase.end or until, phase.begin) for phase in phases))]
    return [_SECOND * (end - start) for start, end in pairwise(edges)]


class OfMeter(Protocol):
    """What has a meter, and the last name of it that was received: a session, for example."""

    @property
    def conn_id(self) -> str:
        """Its connection."""

    @property
    def meter_id(self) -> str:
        """The meter's id."""

    @property
    def meter_name(self) -> str | None:
        """The name, ``None`` if none was received."""


def _given_names(request: Request, conn_id: str) -> Mapping[str, str]:
    try:
        connection: MediationConnection = request.app.state.connections.get_in_thread(conn_id)
    except (UnknownConnectionError, LookupFailedError):
        return {}
    return connection.settings.meter_names if connection.settings else {}


class Urls:
    """Addresses as a browser sees them, under the base path that Airflow has, and the names of meters.

    :param request: of the page
    """

    def __init__(self, request: Request) -> None:
        self.mount = str(request.scope.get("root_path") or "").rstrip("/")
        self.airflow = self.mount.removesuffix(MOUNT)
        self._request = request
        self._given: dict[str, Mapping[str, str]] = {}

    def page(self, path: str, **parameters: object) -> str:
        """Return the address of a page of ours; parameters that are ``None`` or empty are left out."""
        return address(self.airflow, path, **parameters)

    def session(self, key: SessionKey) -> str:
        """Return the address of a session's page."""
        return session_page(self.airflow, *key)

    def meter_name(self, of: OfMeter) -> str | None:
        """Return the name of a meter: the one that its connection gives it, else the last one that was received."""
        if of.conn_id not in self._given:
            self._given[of.conn_id] = _given_names(self._request, of.conn_id)
        return self._given[of.conn_id].get(of.meter_id) or of.meter_name

    def meter(self, conn_id: str, meter_id: str) -> str:
        """Return the address of a meter's page."""
        return self.page("/meter", conn=conn_id, meter=meter_id)

    def framed(self, page: str) -> str:
        """Return the address that shows one of our pages inside Airflow, if it can."""
        return framed(self.airflow, page)

    def dag(self, dag_id: str) -> str:
        """Return the address of a Dag."""
        return f"{self.airflow}/dags/{quote(dag_id, safe='')}"

    def run(self, run: StartedRun | Wait) -> str:
        """Return the address of a Dag run."""
        return f"{self.dag(run.dag_id)}/runs/{quote(run.run_id, safe='')}"

    def task(self, wait: Wait) -> str:
        """Return the address of a task instance."""
        mapped = f"/mapped/{wait.map_index}" if wait.map_index >= 0 else ""
        return f"{self.run(wait)}/tasks/{quote(wait.task_id, safe='')}{mapped}"


def page(request: Request, template: str, *, status: int = 200, **values: Any) -> Response:
    """Return a page.

    :param template: its file
    :param status: of the answer
    :param values: what the template shows
    """
    values = {"place": Urls(request), "now": datetime.now(UTC), "status": status, **values}
    return HTMLResponse(_templates().get_template(template).render(values), status_code=status)


@cache
def _templates() -> Environment:
    templates = Environment(
        loader=FileSystemLoader(Path(__file__).parent / "templates"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    templates.filters.update(
        time=_time,
        so_far=_so_far,
        ago=ago,
        lasting=lasting,
        left=_left,
        lasted=humanize,
        tone=tone,
        status_text=status_text,
        airflow_tone=lambda state: AIRFLOW_TONES.get(state, "none"),
        learned=_learned,
        ended_on=_ended_on,
        did=_did,
        pretty=_pretty,
        phase_bar=phase_bar,
        whole_seconds=whole_seconds,
        exactly=exactly,
    )
    templates.tests.update(outlined=lambda status: status in OUTLINED)
    templates.globals.update(version=__version__)
    return templates


def tone(status: str | None) -> str:
    """Return the colour of a status by name; an unknown status has one too."""
    return TONES.get(status, "none") if status else "none"  # type: ignore[call-overload]


def status_text(status: str | None) -> str:
    """Return a status as it is shown: one that Zuora does not document is marked."""
    if not status:
        return "UNKNOWN"
    return status if status in _DOCUMENTED else f"unknown status ({status})"


def _learned(source: str) -> str:
    return SOURCES.get(source, source)


def _ended_on(of: Wait | Mapping[str, Any]) -> str:
    """Return a status with its evidence and certainty: ``FAILED (poll, not certain)``; empty without a status.

    :param of: a task's row, or the note in it
    """
    status, evidence, certain = (
        of.get(name) if isinstance(of, Mapping) else getattr(of, name) for name in ("status", "evidence", "certain")
    )
    if not status:
        return ""
    evidence_text = [_learned(evidence)] if evidence else []
    evidence_text += ["not certain"] if certain is False else []
    return f"{status} ({', '.join(evidence_text)})" if evidence_text else str(status)


def _did(task: Wait) -> str:
    """Return what a task that does not wait (any more) did with its session."""
    parts, note = [], task.note or {}
    if task.mode != TASK:
        ended_on = _ended_on(task)
        parts.append(f"ended: {ended_on}" if ended_on else OUTCOMES.get(task.outcome or "", task.outcome) or "ended")
        if task.outcome == WaitEnd.UNCERTAIN:
            parts.append("certainty was required")
    if note.get("kind") == "branch":
        followed = ", ".join(note.get("followed") or ()) or "no branch"
        parts.append(f"followed {followed}")
    elif note:
        parts.append(str(note.get("message") or note.get("kind")))
    return "; ".join(parts)


def _pretty(value: Any) -> str:
    return json.dumps(value, indent=2, ensure_ascii=False, default=str)


def _time(instant: datetime | None) -> Markup:
    """Return an instant in UTC; the script shows it in the zone that the user chose in Airflow."""
    if instant is None:
        return Markup('<span class="muted">&ndash;</span>')
    iso = instant.astimezone(UTC).isoformat(timespec="seconds")
    # A line may break between the two parts, and not in one of them.
    day, hour = in_words(instant).split(" ", 1)
    return Markup(f'<time datetime="{iso}"><span>{day}</span> <span>{hour}</span></time>')  # noqa: S704  # digits alone


def _so_far(begin: datetime, *, exact: bool = False) -> Markup:
    """Return how long something lasts that goes on; the script counts it."""
    return _counted("since", begin, f"since {in_words(begin)}", after=" so far", exact=exact)


def lasting(begin: datetime) -> Markup:
    """Return for how long something has been so; the script counts it."""
    return _counted("since", begin, f"since {in_words(begin)}", before="for ")


def ago(instant: datetime) -> Markup:
    """Return how long ago an instant was; the script counts it."""
    return _counted("since", instant, in_words(instant), after=" ago")


def _left(end: datetime) -> Markup:
    """Return how long it is until an instant; the script counts it."""
    return _counted("until", end, "", after=" left")


def _counted(
    name: str, instant: datetime, text: str, *, before: str = "", after: str = "", exact: bool = False
) -> Markup:
    # The server's text has no clock in it, so a page stays the same while nothing changes.
    iso = instant.astimezone(UTC).isoformat(timespec="seconds")
    mark = Markup(" data-exact") if exact else ""
    span = Markup('<span data-{}="{}" data-before="{}" data-after="{}"{}>{}</span>')
    return span.format(name, iso, before, after, mark, text)


def form(*names: str, **optional: str) -> Any:
    """Return a page's dependency that reads the fields of its form, after the dependencies that check the user.

    FastAPI's own ``Form`` reads a body before any dependency is called, and writes the files in it to the disk.

    :param names: the fields; each must have a value
    :param optional: fields that may be missing, with the values that they have then
    """

    async def fields(request: Request) -> dict[str, str]:
        found = await _fields(request, _FORM_LIMIT)
        counts = Counter(name for name, _ in found)
        if doubled := [f"field {name} given {counts[name]} times" for name in (*names, *optional) if counts[name] > 1]:
            raise HTTPException(400, f"{', '.join(doubled).capitalize()}.")
        given = {**optional, **dict(found)}
        if wrong := [name for name in (*names, *optional) if name not in given or "\0" in given[name]]:
            raise RequestValidationError([{"loc": ("body", name)} for name in wrong])
        return {name: given[name] for name in (*names, *optional)}

    return Depends(fields)


async def _checked_parameters(request: Request) -> None:
    """Refuse an address with a parameter that the page does not know, or with two values for one.

    A parameter that is left out changes the answer, and nothing shows it.

    :raises HTTPException: 400
    """
    fields = get_flat_dependant(request.scope["route"].dependant).query_params
    several = {each.alias: get_origin(each.field_info.annotation) is list for each in fields}
    given = Counter(name for name, _ in request.query_params.multi_items())
    unknown = [name for name in given if name not in several]
    doubled = [name for name, times in given.items() if times > 1 and name not in unknown and not several[name]]
    wrong = [f"unknown parameter {name[:_LONGEST_NAME]}" for name in unknown]
    wrong += [f"parameter {name} given {given[name]} times" for name in doubled]
    if wrong:
        sentence = ", ".join(wrong)
        raise HTTPException(400, f"{sentence[0].upper()}{sentence[1:]}.")


checked_parameters: Final = Depends(_checked_parameters)
"""What every page needs after the permission: a parameter is used as it is written, or refused."""


def chosen(name: str, limit: int) -> Any:
    """Return a page's dependency that reads all values of one field of its form, such as those of check boxes.

    :param name: the field; at least one value is required
    :param limit: maximum number of bytes of the form
    """

    async def values(request: Request) -> list[str]:
        given = [value for field, value in await _fields(request, limit) if field == name]
        if not given:
            raise RequestValidationError([{"loc": ("body", name)}])
        return given

    return Depends(values)


async def _fields(request: Request, limit: int) -> list[tuple[str, str]]:
    body = b""
    if request.headers.get("content-type", "").startswith("application/x-www-form-urlencoded"):
        try:
            body = await read_body(request, limit=limit, seconds=_FORM_SECONDS)
        except BodyTooLargeError:
            raise HTTPException(413, f"The form has more than {limit} bytes.", {"Connection": "close"}) from None
        except (BodyTooSlowError, ClientDisconnect):
            raise HTTPException(408, "The form did not arrive in time.", {"Connection": "close"}) from None
    return parse_qsl(body.decode("latin-1"))


class _NotModifiedError(Exception):
    """The client has what it would get."""


async def _unmodified(request: Request, user: GetUserDep) -> None:
    """Spare an answer that the same user got moments ago, as several open tabs of one page ask for it in turn.

    :raises _NotModifiedError: the client has that answer
    """
    request.state.asked = (user.get_id(), str(request.url))
    recent = request.app.state.recent_pages.get(request.state.asked)
    if request.method == "GET" and recent is not None and recent in _tags(request):
        raise _NotModifiedError(recent)


unmodified: Final = Depends(_unmodified)
"""What follows the checks of each page."""


def _tags(request: Request) -> list[str]:
    return [each.strip() for each in request.headers.get("if-none-match", "").split(",")]


def _tagged(request: Request, response: Response) -> Response:
    """Return an answer with its tag, or that it is what the client has."""
    if request.method != "GET" or response.status_code != 200:
        return response
    tag = f'W/"{blake2b(response.body, digest_size=16).hexdigest()}"'
    request.app.state.recent_pages.add(request.state.asked, tag)
    if tag in _tags(request):
        return _not_modified(tag)
    response.headers["ETag"] = tag
    return response


def _not_modified(tag: str) -> Response:
    return Response(status_code=304, headers={"ETag": tag})


class PageRoute(APIRoute):
    """A route whose answer is always HTML, also for errors; JSON if its path ends so.

    Each answer has a tag, and what the client has is not sent again.
    """

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        """Return the handler, with errors turned into pages."""
        handle = super().get_route_handler()

        async def handle_page(request: Request) -> Response:
            try:
                response = _tagged(request, await handle(request))
            except _NotModifiedError as same:
                response = _not_modified(str(same))
            except HTTPException as error:
                # A token signed with an earlier key: as with an expired token, the user has to log in.
                status = 401 if error.detail == "Invalid JWT token" else error.status_code
                response = error_page(request, status, str(error.detail))
            except RequestValidationError as error:
                wrong = ", ".join(str(each["loc"][1]) for each in error.errors())
                response = error_page(request, 400, f"Missing or invalid parameters: {wrong}.")
            except JournalUnavailable as error:
                log = request.app.state.page_log
                log.log(logging.ERROR, "A page was answered 503", request.url.path, str(error))
                sentence = f"{str(error)[:1].upper()}{str(error)[1:]}."
                detail = sentence if isinstance(error, JournalMissing) else "The API server's log has the reason."
                response = error_page(request, 503, detail)
            response.headers.update(_HEADERS)
            return response

        return handle_page


def error_page(request: Request, status: int, detail: str) -> Response:
    """Return a page for an error.

    :param status: of the answer
    :param detail: the reason; Airflow's own messages do not help a user, so some have another text here
    """
    detail = {
        401: "Your login has expired, or there was none. Please log in.",
        403: "Your role in Airflow lacks the permission to read assets." if detail == "Forbidden" else detail,
    }.get(status, detail)
    if request.url.path.endswith(".json"):
        return JSONResponse({"error": detail}, status)
    title = _TITLES.get(status, "The request failed")
    response = page(request, "error.html", status=status, title=title, heading=title, detail=detail)
    response.headers.update(_HEADERS)
    return response
