"""MediationAlert: the content of a message about a failed session, for each notifier of Airflow.

Nothing here fails a callback: a part that cannot be read within a few seconds is left out. A Dag file imports this
module, so it imports nothing heavy.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import replace
from datetime import UTC, datetime
from html import escape
from itertools import islice
from typing import TYPE_CHECKING, Any, Final, NamedTuple, TypeVar
from urllib.parse import urlsplit

from airflow_mediation_provider.protocol.times import from_json, in_words
from airflow_mediation_provider.protocol.urls import session_of_page

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

    from airflow.sdk import Context

    from airflow_mediation_provider.hooks.mediation import MediationHook
    from airflow_mediation_provider.protocol.sessions.session_result import SessionResult
    from airflow_mediation_provider.protocol.transition import SessionTransition

__all__ = ["MediationAlert"]

log = logging.getLogger(__name__)
T = TypeVar("T")

_SECONDS: Final = 3.0
"""Time limit of a call to the API server, and of each request to Zuora."""
_RECORDS: Final = 100
"""The most error records that are read, to be counted by their codes."""
_MOST_CHANGES: Final = 20
_LONGEST: Final = 300
"""Characters of one value; an error message may contain a whole record."""
_LONGEST_REASON: Final = 1000
_LONGEST_SUBJECT: Final = 150
_LONGEST_BLOCK: Final = 2900
"""Slack refuses a block of more than 3,000 characters."""
_TEMPLATE_MARKS: Final = ("{{", "{%", "{#")


class _Part(NamedTuple):
    """One part of the message.

    :param title: its heading; empty for the first one
    :param rows: pairs of a name, which may be empty, and a value
    :param links: whether the values are addresses
    """

    title: str
    rows: Sequence[tuple[str, str]]
    links: bool = False


class MediationAlert:
    """A message about a session, in the forms that notifiers take.

    .. code-block:: python

        def alert(context):
            found = MediationAlert.of(context)
            SmtpNotifier(to="ops@example.com", subject=found.subject, html_content=found.html)(context)


        RunMeterOperator(task_id="run", meter_id="1001", on_failure_callback=alert)

    In a Dag that failed sessions start, give it the session: ``MediationAlert(triggering_session())``.

    It reads the session's changes from the API server, and up to 100 error records of the session from Zuora (one
    call), with a time limit of a few seconds each; without an answer these parts are left out. Texts from Zuora are
    escaped in ``html`` and ``blocks``, and none of them is a template for a notifier that renders its fields.

    :param session: the session, as operators, sensors and ``triggering_session()`` return it; ``None``: not known
    :param reason: why the alert is sent, in one sentence; the session's status unless given
    :param context: the context of the task or callback: adds the task, its run, and the link to its log
    :param errors: how many error codes to show, the most frequent ones first; 0: error records are not read
    :raises TypeError: ``session`` is no session

    https://docs.zuora.com/en/zuora-platform/extensibility/mediation/events/notifications-in-mediation
    """

    subject: str
    """One line."""
    text: str
    """The whole message as plain text."""
    html: str
    """The same as HTML: a fragment that each mail program shows."""
    blocks: list[dict[str, Any]]
    """The same as blocks of Slack's Block Kit, as Airflow's Slack notifiers take them."""

    def __init__(
        self,
        session: SessionResult | Mapping[str, Any] | None,
        *,
        reason: str = "",
        context: Context | Mapping[str, Any] | None = None,
        errors: int = 5,
    ) -> None:
        about: Mapping[str, Any] = context or {}
        known = _checked(session)
        changes: Sequence[SessionTransition] = ()
        counted: Sequence[tuple[str, str]] = ()
        pages: list[tuple[str, str]] = []
        if all(known.get(key) for key in ("mediation_conn_id", "meter_id", "session_id")):
            asked = _optional("what Zuora and the journal have about the session", lambda: _ask(known, errors))
            changes, counted, url = asked or ((), (), None)
            pages = [("Session in Airflow", _page_in_airflow(known)), ("Session at Zuora", url or "")]
        known = _filled(known, changes)
        work = _work(about)
        subject = _subject(known, work)
        self.subject = _short(subject, _LONGEST_SUBJECT)
        pages.append(("Task log", getattr(about.get("ti"), "log_url", None) or ""))
        parts = [
            _Part("", [("", _short(reason or f"{subject}.", _LONGEST_REASON))]),
            _Part("Session", _facts(known, work)),
            _Part("Timeline", _timeline(known, changes)),
            _Part("First errors", [(_short(code), _short(message)) for code, message in counted]),
            _Part("Links", [(name, _inert_url(url)) for name, url in pages], links=True),
        ]
        parts = [part._replace(rows=[row for row in part.rows if row[1]]) for part in parts]
        parts = [part for part in parts if part.rows]
        self.text = "\n\n".join(_as_text(part) for part in parts)
        self.html = "\n".join(_as_html(part) for part in parts)
        self.blocks = [
            {"type": "header", "text": {"type": "plain_text", "text": self.subject}},
            *({"type": "section", "text": {"type": "mrkdwn", "text": _as_slack(part)}} for part in parts),
        ]

    @classmethod
    def of(cls, context: Context | Mapping[str, Any], *, errors: int = 5) -> MediationAlert:
        """Return the alert for the context of an ``on_failure_callback``, of a task or a Dag, or of a running task.

        The session is the one in the error, else the one that the task's buttons lead to, else the one that started the
        run. A task without any gets an alert with its error alone.

        :param context: the callback's context
        :param errors: as for the class
        """
        about: Mapping[str, Any] = context
        error = about.get("exception")
        reason = f"{type(error).__name__}: {error}" if isinstance(error, BaseException) else str(error or "")
        return cls(_session_of(about), reason=_redacted(reason), context=context, errors=errors)

    def __str__(self) -> str:
        """Return the text."""
        return self.text


def _checked(session: object) -> dict[str, Any]:
    """Return a session as given.

    :raises TypeError: it is none
    """
    if session is None:
        return {}
    if not isinstance(session, Mapping):
        raise TypeError(
            "MediationAlert takes a session as run.output or triggering_session() return it, or None, "
            f"not {session!r:.80}"
        )
    if "meter_id" not in session and {"ti", "dag_run", "exception"} & set(session):
        raise TypeError("MediationAlert takes a session, and this is a context: use MediationAlert.of(context)")
    return dict(session)


def _optional(what: str, find: Callable[[], T]) -> T | None:
    """Return what ``find`` returns; ``None`` and a line in the log if it fails."""
    try:
        return find()
    except Exception as error:
        log.warning("An alert is made without %s (%s: %s).", what, type(error).__name__, _redacted(str(error)))
        return None


def _redacted(text: str) -> str:
    """Return a text without the secrets that Airflow masks in this process."""
    from airflow.sdk.log import redact  # type: ignore[attr-defined]  # imported there from a private package

    return str(redact(text))


def _session_of(context: Mapping[str, Any]) -> Mapping[str, Any] | None:
    """Return the session that a context is about."""
    failed_with = getattr(context.get("exception"), "session", None)
    if isinstance(failed_with, dict) and "meter_id" in failed_with:  # errors of others have such an attribute, too
        return failed_with
    if (ti := context.get("ti")) is not None:
        linked = _optional("the session of the task", lambda: _session_of_task(ti))
        if linked:
            return linked
    if context.get("triggering_asset_events"):
        from airflow_mediation_provider.assets import triggering_session

        return _optional("the session of the run", lambda: triggering_session(context))  # type: ignore[arg-type]
    return None


def _session_of_task(ti: Any) -> Mapping[str, Any] | None:
    """Return the session in the XComs of a task: a branch's own, else the one that the button leads to."""
    from airflow_mediation_provider.links import MeterSessionPageLink

    mine = {"task_ids": ti.task_id, "map_indexes": ti.map_index}
    branched = ti.xcom_pull(key="session", **mine)
    if isinstance(branched, dict) and "meter_id" in branched:
        return branched
    page = ti.xcom_pull(key=MeterSessionPageLink.key, **mine)
    return session_of_page(page) if isinstance(page, str) else None


def _ask(
    session: Mapping[str, Any], errors: int
) -> tuple[Sequence[SessionTransition], Sequence[tuple[str, str]], str | None]:
    """Return the changes of a session, its error records by code, and the address of its page at Zuora."""
    from airflow_mediation_provider.feed.worker import WorkerFeedClient
    from airflow_mediation_provider.hooks.mediation import MediationHook

    conn_id, meter_id, session_id = (str(session[key]) for key in ("mediation_conn_id", "meter_id", "session_id"))
    settings = MediationHook(conn_id).settings
    http = replace(settings.http, timeout=min(settings.http.timeout, _SECONDS))
    hook = MediationHook(conn_id, attempts=1, patience=_SECONDS, settings=replace(settings, http=http))
    caller = WorkerFeedClient(hook, seconds=_SECONDS)
    try:
        changes = _optional("its timeline", lambda: _changes(caller, meter_id, session_id)) or ()
        counted: Sequence[tuple[str, str]] = ()
        known = _filled(session, changes)
        if errors > 0 and known.get("run_type"):
            counted = _first_errors(hook, known, errors)
        url = _optional("the link to Zuora", lambda: hook.session_url(meter_id, session_id))
        caller.report_calls()
        return changes, counted, url
    finally:
        caller.close()
        hook.close()


def _changes(caller: Any, meter_id: str, session_id: str) -> Sequence[SessionTransition]:
    """Return the changes of a session in the journal, the oldest first; a repeated report counts once."""
    from airflow_mediation_provider.protocol.wire import FeedRequest, MeterQuestion

    question = {meter_id: MeterQuestion(sessions=frozenset({session_id}))}
    reply = caller.ask(FeedRequest(meters=question, full=True, reports=True))
    found: list[SessionTransition] = []
    for each in sorted(reply.reports if reply else (), key=lambda each: each.observed_at):
        if not found or (found[-1].status, found[-1].run_type) != (each.status, each.run_type):
            found.append(each)
    return found


def _first_errors(hook: MediationHook, session: Mapping[str, Any], most: int) -> Sequence[tuple[str, str]]:
    """Return the codes of the first error records, the most frequent first, each with its count and a message."""
    from airflow_mediation_provider.protocol.zuora.audit import span_of_session

    begun = from_json(session.get("started_at") or session.get("observed_at"))
    query_from, query_to = span_of_session(begun, from_json(session.get("ended_at")), now=datetime.now(UTC))
    try:
        entries = list(
            islice(
                hook.audit_trail_entries(
                    session["meter_id"],
                    export_type="ERROR",
                    run_type=session["run_type"],
                    session_id=session["session_id"],
                    query_from=query_from,
                    query_to=query_to,
                    page_size=_RECORDS,
                ),
                _RECORDS,
            )
        )
    except Exception as error:
        return [("not read", _redacted(str(error)))]
    return _by_code(entries, most)


def _by_code(entries: Sequence[Mapping[str, Any]], most: int) -> Sequence[tuple[str, str]]:
    from airflow_mediation_provider.protocol.zuora.audit import errors_by_code

    ranked = errors_by_code(entries)
    rows = [
        (f"{len(each.records)} x {each.code or 'without a code'}", next(iter(each.messages), "without a message"))
        for each in ranked[:most]
    ]
    if len(ranked) > most:
        rows.append(("", f"and {len(ranked) - most} further codes"))
    if len(entries) == _RECORDS:
        rows.append(("", f"counted in the first {_RECORDS} error records"))
    return rows


def _filled(session: Mapping[str, Any], changes: Sequence[SessionTransition]) -> dict[str, Any]:
    """Return a session, with its missing facts taken from its changes."""
    if not changes:
        return dict(session)
    filled = dict(session)
    if not filled.get("status"):
        filled.update(changes[-1].to_dict())
    for key in ("meter_name", "started_at", "ended_at"):
        if filled.get(key) is None:
            filled[key] = next((value for each in reversed(changes) if (value := each.to_dict()[key])), None)
    return filled


class _Work(NamedTuple):
    """What the alert is sent from.

    :param kind: ``Task``, or ``Dag`` in the callback of a Dag
    :param failed: whether it failed itself; ``False`` for a task in a Dag that failed sessions start
    """

    kind: str
    name: str
    run_id: str
    try_number: int | None
    failed: bool


def _work(context: Mapping[str, Any]) -> _Work | None:
    """Return the task or the Dag of a context."""
    ti, dag = context.get("ti"), context.get("dag")
    # Airflow passes a reason to the callbacks of a Dag, beside the task that ended last.
    if ti is not None and "reason" not in context:
        at = getattr(ti, "map_index", -1)
        mapped = f"[{at}]" if at is not None and at >= 0 else ""
        name, failed = f"{ti.dag_id}.{ti.task_id}{mapped}", context.get("exception") is not None
        return _Work("Task", name, str(ti.run_id), getattr(ti, "try_number", None), failed)
    if dag is None:
        return None
    return _Work("Dag", str(dag.dag_id), str(context.get("run_id") or ""), None, failed="reason" in context)


def _subject(session: Mapping[str, Any], work: _Work | None) -> str:
    failed = f"{work.kind} {work.name} failed" if work and work.failed else ""
    if not session.get("meter_id"):
        return failed or "A session of Zuora Mediation needs attention"
    kind = "DEBUG session" if session.get("run_type") == "DEBUG" else "session"
    which = f"{kind} {session.get('session_id') or '(id not known)'}"
    subject = f"Meter {_meter(session)} {session.get('status') or 'in an unknown status'}: {which}"
    return f"{subject}; {failed}" if failed else subject


def _meter(session: Mapping[str, Any]) -> str:
    name = session.get("meter_name")
    return f"{session['meter_id']} ({name})" if name else str(session["meter_id"])


def _facts(session: Mapping[str, Any], work: _Work | None) -> list[tuple[str, str]]:
    """Return the facts of the session and the work, in order; those that are not known are empty."""
    evidence, certain = session.get("evidence"), session.get("certain")
    previous = f", before: {session['previous_status']}" if session.get("previous_status") else ""
    facts = [
        ("Meter", _meter(session) if session.get("meter_id") else ""),
        ("Session ID", session.get("session_id") or ""),
        ("Run type", session.get("run_type") or ""),
        ("Status", f"{session['status']}{previous}" if session.get("status") else ""),
        ("Known by", f"{evidence}, {'certain' if certain else 'not certain'}" if evidence else ""),
        ("Started", _time(session.get("started_at"))),
        ("Ended", _time(session.get("ended_at"))),
        ("Connection", session.get("mediation_conn_id") or ""),
        (work.kind if work else "", work.name if work else ""),
        ("Run", work.run_id if work else ""),
        ("Try", str(work.try_number) if work and work.try_number else ""),
    ]
    return [(name, _short(value)) for name, value in facts]


def _timeline(session: Mapping[str, Any], changes: Sequence[SessionTransition]) -> list[tuple[str, str]]:
    """Return when each status was received; the session's own status comes last if the journal lacks it."""
    shown = changes[-_MOST_CHANGES:]
    rows = [(in_words(each.observed_at), _short(f"{each.status} ({each.source})")) for each in shown]
    status = session.get("status")
    if status and status not in {each.status for each in changes}:
        rows.append((_time(session.get("observed_at")), _short(f"{status} ({session.get('source')})")))
    return rows


def _time(value: Any) -> str:
    """Return a time of a session for the message; one that cannot be read, as it is."""
    try:
        at = from_json(value)
    except (TypeError, ValueError):
        return _short(value)
    return "" if at is None else in_words(at)


def _page_in_airflow(session: Mapping[str, Any]) -> str:
    from airflow_mediation_provider.links import session_page_in_airflow

    conn_id, meter_id, session_id = (session[key] for key in ("mediation_conn_id", "meter_id", "session_id"))
    return session_page_in_airflow(None, conn_id, str(meter_id), session_id)


def _short(value: Any, longest: int = _LONGEST) -> str:
    """Return a value as one line, limited, in which a notifier finds no template."""
    text = " ".join("".join(each if each.isprintable() else " " for each in str(value)).split())
    text = text if len(text) <= longest else f"{text[: longest - 3]}..."
    for mark in _TEMPLATE_MARKS:
        # Repeated, because three braces in a row leave two together after one replacement.
        while mark in text:
            text = text.replace(mark, f"{mark[0]} {mark[1]}")
    return text


def _inert_url(url: str) -> str:
    """Return the address of a web page, in which a notifier finds no template; empty for any other."""
    if urlsplit(url).scheme not in ("http", "https"):
        return ""
    return url.replace("{", "%7B").replace("}", "%7D")


def _as_text(part: _Part) -> str:
    width = max(len(name) for name, _ in part.rows)
    lines = (f"{name:<{width}}  {value}" if name else value for name, value in part.rows)
    return "\n".join((part.title, *lines) if part.title else lines)


def _as_html(part: _Part) -> str:
    if not part.title:
        return "".join(f"<p>{escape(value)}</p>" for _, value in part.rows)
    cells: Iterable[str]
    if part.links:
        cells = (f'<li><a href="{escape(url)}">{escape(name)}</a></li>' for name, url in part.rows)
        return f"<h3>{part.title}</h3><ul>{''.join(cells)}</ul>"
    cells = (f"<tr><td>{escape(name)}</td><td>{escape(value)}</td></tr>" for name, value in part.rows)
    return f"<h3>{part.title}</h3><table>{''.join(cells)}</table>"


def _as_slack(part: _Part) -> str:
    def plain(text: str) -> str:
        return escape(text, quote=False)

    if part.links:
        lines = [f"<{plain(url).replace('|', '%7C')}|{plain(name)}>" for name, url in part.rows]
    else:
        lines = [f"{plain(name)}: {plain(value)}" if name else plain(value) for name, value in part.rows]
    text = f"*{part.title}*\n" if part.title else ""
    for line in lines:
        if len(text) + len(line) > _LONGEST_BLOCK:
            break
        text += f"{line}\n"
    return text.rstrip()
