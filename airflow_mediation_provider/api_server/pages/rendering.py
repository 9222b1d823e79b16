"""From values to HTML: Jinja's templates, which escape whatever they show, and the words that pages use."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final
from urllib.parse import quote

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup
from starlette.responses import HTMLResponse

from airflow_mediation_provider import __version__
from airflow_mediation_provider.api_server.pages import phase_bar
from airflow_mediation_provider.protocol.pages import MOUNT, address, session_page
from airflow_mediation_provider.protocol.status import SessionStatus
from airflow_mediation_provider.protocol.times import humanize, in_words
from airflow_mediation_provider.protocol.wait_result import WaitEnd
from airflow_mediation_provider.version_compat import framed

if TYPE_CHECKING:
    from fastapi import Request, Response

    from airflow_mediation_provider.journal.consequences import StartedRun, Wait
    from airflow_mediation_provider.journal.listing import SessionKey

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
SOURCES: Final = {
    "callout": "callout",
    "history": "callout history",
    "poll": "poll",
    "run": "reply to the run call",
}

OUTCOMES: Final = {
    WaitEnd.MET: "condition met",
    WaitEnd.FAILED: "session failed",
    WaitEnd.TIMED_OUT: "timed out",
    WaitEnd.UNREACHABLE: "Zuora unreachable",
    WaitEnd.MISCONFIGURED: "misconfigured",
    WaitEnd.UNCERTAIN: "not certain",
    "left": "left",
}


class Place:
    """Addresses as a browser sees them: under the base path that Airflow has.

    :param request: of the page
    """

    def __init__(self, request: Request) -> None:
        self.mount = str(request.scope.get("root_path") or "").rstrip("/")
        self.airflow = self.mount.removesuffix(MOUNT)

    def page(self, path: str, **parameters: object) -> str:
        """Return the address of a page of ours; parameters that are ``None`` or empty are left out."""
        return address(self.airflow, path, **parameters)

    def session(self, key: SessionKey) -> str:
        """Return the address of a session's page."""
        return session_page(self.airflow, *key)

    def framed(self, page: str) -> str:
        """Return the address that shows one of our pages inside Airflow, if it can."""
        return framed(self.airflow, page)

    def dag(self, dag_id: str) -> str:
        """Return the address of a DAG."""
        return f"{self.airflow}/dags/{quote(dag_id, safe='')}"

    def run(self, run: StartedRun | Wait) -> str:
        """Return the address of a DAG run."""
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
    values = {"place": Place(request), "now": datetime.now(UTC), "status": status, **values}
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
        lasted=humanize,
        tone=tone,
        learned=_learned,
        outcome=_outcome,
        pretty=_pretty,
        phase_parts=phase_bar.parts,
        phases_in_words=phase_bar.in_words,
    )
    templates.globals.update(version=__version__)
    return templates


def tone(status: str | None) -> str:
    """Return the colour of a status by name; an unknown status has one too."""
    return TONES.get(status, "none") if status else "none"  # type: ignore[call-overload]


def _learned(source: str) -> str:
    return SOURCES.get(source, source)


def _outcome(end: str | None) -> str:
    return OUTCOMES.get(end, end) if end else "ended"


def _pretty(value: Any) -> str:
    return json.dumps(value, indent=2, ensure_ascii=False, default=str)


def _time(instant: datetime | None) -> Markup:
    """Return an instant in UTC, for the script to show in the zone that the user chose in Airflow."""
    if instant is None:
        return Markup('<span class="muted">&ndash;</span>')
    iso = instant.astimezone(UTC).isoformat(timespec="seconds")
    return Markup(f'<time datetime="{iso}">{in_words(instant)}</time>')  # noqa: S704  # digits alone
