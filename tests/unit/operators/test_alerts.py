"""The alert of a session: its content, what it is made from, and that nothing in it fails a callback."""

from __future__ import annotations

import json
import re
from datetime import UTC, datetime, timedelta
from pathlib import Path
from pkgutil import resolve_name
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import jinja2
import pytest
from airflow.providers.smtp.notifications.smtp import SmtpNotifier

from airflow_mediation_provider import alerts, links
from airflow_mediation_provider.alerts import MediationAlert
from airflow_mediation_provider.exceptions import MediationUnreachable, MeterRunFailed, MeterSessionTimeout
from airflow_mediation_provider.feed import worker
from airflow_mediation_provider.links import MeterSessionPageLink
from airflow_mediation_provider.operators.meter import RunMeterOperator
from airflow_mediation_provider.protocol import urls
from airflow_mediation_provider.protocol.sessions.session_result import session_result
from airflow_mediation_provider.protocol.transition import SessionTransition, Source
from airflow_mediation_provider.simulator import Simulator, ends
from airflow_mediation_provider.simulator.records import rejected
from testkit.mail import MailServer

if TYPE_CHECKING:
    from collections.abc import Iterator

    from airflow_mediation_provider.protocol.wire import FeedRequest

    from .conftest import TaskInstance

BEGIN = datetime(2026, 3, 31, 9, 0, tzinfo=UTC)
SESSION: dict[str, Any] = {
    "meter_id": "1002",
    "session_id": "R-00005468",
    "meter_name": "Usage EU",
    "run_type": "NORMAL",
    "status": "FAILED",
    "previous_status": "RUNNING",
    "started_at": BEGIN.isoformat(),
    "ended_at": (BEGIN + timedelta(minutes=5)).isoformat(),
    "observed_at": (BEGIN + timedelta(minutes=5, seconds=2)).isoformat(),
    "source": "callout",
    "notification_id": "n",
    "evidence": "callout",
    "version": None,
    "mediation_conn_id": None,
    "certain": True,
}


class Journal:
    """The API server, as an alert asks it."""

    def __init__(self, reports: list[SessionTransition]) -> None:
        self.reports = reports
        self.requests: list[FeedRequest] = []
        self.calls_reported = 0

    def __call__(self, hook: Any, *, seconds: float) -> Journal:
        assert seconds <= 5
        assert hook.settings.http.timeout <= 5
        return self

    def ask(self, question: FeedRequest) -> Any:
        self.requests.append(question)
        return SimpleNamespace(reports=self.reports)

    def report_calls(self) -> None:
        self.calls_reported += 1

    def close(self) -> None:
        pass


@pytest.fixture
def journal(monkeypatch: pytest.MonkeyPatch) -> Journal:
    journal = Journal([])
    monkeypatch.setattr(worker, "WorkerFeedClient", journal)
    return journal


@pytest.fixture
def mail(monkeypatch: pytest.MonkeyPatch, services: None) -> Iterator[MailServer]:
    with MailServer() as server:
        monkeypatch.setenv("AIRFLOW_CONN_SMTP_DEFAULT", json.dumps(server.connection))
        yield server


@pytest.fixture
def failed(sim: Simulator, ti: TaskInstance, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """The context of a task whose session FAILED with 12 errors."""
    monkeypatch.setenv("AIRFLOW__API__BASE_URL", "https://airflow.example")
    sim.set_meter("1002", runs=[ends("FAILED", 60, records=80, errors=12)])
    with pytest.raises(MeterRunFailed) as failure:
        RunMeterOperator(task_id="run", meter_id="1002", poke_interval=5).execute(ti.context)
    return {**ti.context, "exception": failure.value}


def change(status: str, minute: int, source: Source = Source.CALLOUT, **other: Any) -> SessionTransition:
    at = BEGIN + timedelta(minutes=minute)
    known = {"meter_id": "1002", "session_id": "R-00005468", **other}
    return SessionTransition(status=status, observed_at=at, source=source, **known)


def facts(text: str) -> dict[str, str]:
    """Return the lines of a text that have a name and a value."""
    return dict(re.findall(r"^(\S[^:\n]*?)  +(\S.*)$", text, re.MULTILINE))


def test_the_alert_of_a_failed_task_is_mailed_by_airflows_notifier(
    sim: Simulator, failed: dict[str, Any], journal: Journal, mail: MailServer
) -> None:
    (session,) = sim.sessions("1002")
    named = {"meter_id": "1002", "session_id": session["session_id"]}
    journal.reports = [change("FAILED", 1, **named), change("INITIALIZING", 0, **named)]
    alert = MediationAlert.of(failed)
    SmtpNotifier(to="ops@example.com", subject=alert.subject, html_content=alert.html)(failed)

    (sent,) = mail.messages
    assert sent["To"] == "ops@example.com"
    assert sent["Subject"] == f"Meter 1002 FAILED: session {session['session_id']}; Task dag.task failed"
    body = sent.get_body(("html",))
    assert body is not None
    assert body.get_content().strip() == alert.html
    shown = facts(alert.text)
    assert shown["Session ID"] == session["session_id"]
    assert shown["Run type"] == session["run_type"]
    assert shown["Status"].split(",")[0] == session["status"] == "FAILED"
    counted = {code: int(count) for count, code in re.findall(r"^(\d+) x (\S+)", alert.text, re.MULTILINE)}
    assert counted == {code: count for _, code, _, count in rejected(session["errors"])}
    assert sum(counted.values()) == 12
    lines = alert.text.splitlines()
    begin = lines.index("Timeline")
    assert [line.split("UTC")[1].split()[0] for line in lines[begin + 1 : begin + 3]] == ["INITIALIZING", "FAILED"]
    assert shown["Session at Zuora"] == f"https://zuora.example/1002/{session['session_id']}"
    assert f"session={session['session_id']}" in shown["Session in Airflow"]


def test_a_status_that_the_journal_does_not_have_ends_the_timeline(journal: Journal, sim: Simulator) -> None:
    journal.reports = [change("INITIALIZING", 0, Source.RUN)]
    text = MediationAlert({**SESSION, "mediation_conn_id": "mediation_default", "source": "poll"}, errors=0).text
    assert text[text.index("Timeline") :].splitlines()[1:3] == [
        "2026-03-31 09:00:00 UTC  INITIALIZING (run)",
        "2026-03-31 09:05:02 UTC  FAILED (poll)",
    ]


def test_the_text_in_the_documents_is_that_of_the_simulators_session(
    sim: Simulator, ti: TaskInstance, journal: Journal, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AIRFLOW__API__BASE_URL", "https://airflow.example")
    sim.set_meter("1019", name="Support", runs=[ends("FAILED", 60, records=80, errors=12)])
    session_id = sim.start_session("1019")["session_id"]
    known = {"meter_id": "1019", "session_id": session_id, "meter_name": "Support", "source": Source.CALLOUT}
    while not journal.reports or journal.reports[-1].status != "FAILED":
        (session,) = sim.sessions("1019")
        before = journal.reports[-1].status if journal.reports else None
        if session["status"] != before:
            ended = ti.clock.now() if session["status"] == "FAILED" else None
            times = {"started_at": datetime.fromisoformat(session["started_at"]), "ended_at": ended}
            journal.reports.append(
                SessionTransition(
                    status=session["status"], previous_status=before, observed_at=ti.clock.now(), **times, **known
                )
            )
        ti.clock.sleep(1)
    result = session_result(
        journal.reports[-1], evidence="callout", certain=True, mediation_conn_id="mediation_default"
    )
    # As on Airflow 3.3; before, the page is not within Airflow's navigation.
    monkeypatch.setattr(links, "framed", urls.framed)
    task = SimpleNamespace(dag_id="alert_any_meter", task_id="mail", run_id="asset_triggered__2026-01-01T00:01:00")
    task.map_index, task.try_number = -1, 1
    task.log_url = f"https://airflow.example/dags/{task.dag_id}/runs/{task.run_id}/tasks/{task.task_id}?try_number=1"
    alert = MediationAlert(result, context={"ti": task})
    document = (Path(__file__).parents[3] / "docs" / "alerts.md").read_text()
    assert f"Subject `{alert.subject}`" in document
    assert f"```text\n{alert.text}\n```" in document


async def test_the_deadline_in_the_documents_sends_its_mail(mail: MailServer) -> None:
    document = (Path(__file__).parents[3] / "docs" / "alerts.md").read_text()
    made: dict[str, Any] = {}
    exec(re.findall(r"```python\n(.*?)```", document, re.DOTALL)[1], made)
    callback = made["LATE"].callback
    # As the trigger of a missed deadline calls it.
    context = {"dag_run": {"dag_id": "nightly_usage", "dag_run_id": "r-1"}, "deadline": {"id": "d"}}
    await resolve_name(callback.path)(**callback.kwargs, context=context)
    (sent,) = mail.messages
    assert sent["Subject"] == "Meter 1001 is not COMPLETED by 06:00"
    body = sent.get_body(("html",))
    assert body is not None
    assert body.get_content().strip() == "The run r-1 of nightly_usage is still going on."


def test_the_calls_of_an_alert_are_counted(failed: dict[str, Any], journal: Journal) -> None:
    MediationAlert.of(failed)
    assert journal.calls_reported == 1
    (question,) = journal.requests
    assert question.reports
    assert question.full


def test_zuora_is_not_asked_without_errors(sim: Simulator, failed: dict[str, Any], journal: Journal) -> None:
    before = len(sim.log(kind="request"))
    assert "First errors" not in MediationAlert.of(failed, errors=0).text
    assert len(sim.log(kind="request")) == before


def test_records_that_cannot_be_read_are_named(sim: Simulator, failed: dict[str, Any], journal: Journal) -> None:
    sim.fault("status", path="auditTrail/entries", method="GET", status=500)
    alert = MediationAlert.of(failed)
    assert "not read" in facts(alert.text)
    assert "FAILED" in alert.subject


@pytest.mark.usefixtures("services")  # Airflow searches its database for the connection
def test_a_connection_that_is_gone_leaves_the_session(
    monkeypatch: pytest.MonkeyPatch, journal: Journal, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.delenv("AIRFLOW_CONN_MEDIATION_DEFAULT", raising=False)
    alert = MediationAlert({**SESSION, "mediation_conn_id": "mediation_default"})
    assert alert.subject == "Meter 1002 (Usage EU) FAILED: session R-00005468"
    assert facts(alert.text)["Session ID"] == "R-00005468"
    assert "is made without what Zuora and the journal have" in caplog.text


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ("R-00005468", "takes a session as run.output or .* return it, or None, not 'R-00005468'"),
        ({"ti": None, "dag_run": None}, r"this is a context: use MediationAlert.of\(context\)"),
    ],
)
def test_what_is_no_session_is_refused(given: Any, message: str) -> None:
    with pytest.raises(TypeError, match=message):
        MediationAlert(given)


def test_a_session_alone_has_its_facts() -> None:
    shown = facts(MediationAlert(SESSION).text)
    assert shown == {
        "Meter": "1002 (Usage EU)",
        "Session ID": "R-00005468",
        "Run type": "NORMAL",
        "Status": "FAILED, before: RUNNING",
        "Known by": "callout, certain",
        "Started": "2026-03-31 09:00:00 UTC",
        "Ended": "2026-03-31 09:05:00 UTC",
    }
    assert MediationAlert(SESSION).text.endswith("Timeline\n2026-03-31 09:05:02 UTC  FAILED (callout)")


def test_the_subject_names_a_debug_session_and_one_without_an_id() -> None:
    assert "DEBUG session R-00005468" in MediationAlert({**SESSION, "run_type": "DEBUG"}).subject
    assert "session (id not known)" in MediationAlert({**SESSION, "session_id": None}).subject


def test_a_timeout_names_the_session_as_it_is_and_the_reason() -> None:
    error = MeterSessionTimeout("The deadline passed.", session={**SESSION, "status": "RUNNING"})  # type: ignore[typeddict-item]
    ti = SimpleNamespace(dag_id="daily", task_id="wait", run_id="r", map_index=2, try_number=1, log_url="https://a/log")
    alert = MediationAlert.of({"ti": ti, "exception": error})
    assert alert.subject == "Meter 1002 (Usage EU) RUNNING: session R-00005468; Task daily.wait[2] failed"
    assert alert.text.startswith("MeterSessionTimeout: The deadline passed.")
    assert facts(alert.text)["Task log"] == "https://a/log"


class Pulled(SimpleNamespace):
    """A task instance with XComs."""

    def xcom_pull(self, *, key: str, task_ids: str, map_indexes: int) -> Any:
        assert (task_ids, map_indexes) == ("wait", -1)
        return self.xcoms.get(key)


PAGE = MeterSessionPageLink.key


@pytest.mark.parametrize(
    ("xcoms", "wanted"),
    [
        ({"session": SESSION}, "FAILED: session R-00005468"),
        ({PAGE: "https://a/plugin/mediation-sessions/mediation/session?conn=c&meter=7&session=R-7"}, "session R-7"),
        ({PAGE: "https://a/mediation/task?dag_id=daily"}, "Task daily.wait failed"),
    ],
)
@pytest.mark.usefixtures("journal", "services")
def test_an_error_without_a_session_takes_that_of_the_task(xcoms: dict[str, Any], wanted: str) -> None:
    ti = Pulled(dag_id="daily", task_id="wait", run_id="r", map_index=-1, try_number=1, log_url="", xcoms=xcoms)
    assert wanted in MediationAlert.of({"ti": ti, "exception": MediationUnreachable("no answer")}).subject


def test_a_task_of_a_failure_dag_takes_the_session_of_the_run() -> None:
    asset = SimpleNamespace(uri="mediation://c/meters/*/FAILED")
    alert = MediationAlert.of({"triggering_asset_events": _Events(asset, SESSION)})
    assert alert.subject == "Meter 1002 (Usage EU) FAILED: session R-00005468"


class _Events:
    """Events by asset, as a task has them."""

    def __init__(self, asset: Any, extra: dict[str, Any]) -> None:
        self._asset, self._extra = asset, extra

    def __iter__(self) -> Iterator[Any]:
        return iter([self._asset])

    def __getitem__(self, _: Any) -> list[Any]:
        return [SimpleNamespace(extra=self._extra, timestamp=BEGIN)]


def test_the_callback_of_a_dag_names_the_dag() -> None:
    alert = MediationAlert.of({"dag": SimpleNamespace(dag_id="daily"), "run_id": "r", "reason": "task_failure"})
    assert alert.subject == "Dag daily failed"
    assert facts(alert.text) == {"Dag": "daily", "Run": "r"}


def test_the_callback_of_a_dag_has_the_session_of_the_task_that_ended_last() -> None:
    ti = Pulled(dag_id="daily", task_id="wait", run_id="r", map_index=-1, try_number=1, xcoms={"session": SESSION})
    dag = SimpleNamespace(dag_id="daily")
    alert = MediationAlert.of({"dag": dag, "run_id": "r", "ti": ti, "reason": "task_failure"})
    assert alert.subject == "Meter 1002 (Usage EU) FAILED: session R-00005468; Dag daily failed"
    assert "Try" not in facts(alert.text)


@pytest.mark.parametrize("events", [_Events(SimpleNamespace(uri="s3://a/b"), {}), None])
def test_an_error_of_others_has_no_session(events: Any) -> None:
    error = ValueError("no")
    error.session = object()  # type: ignore[attr-defined]
    context = {"exception": error, "triggering_asset_events": events, "dag": SimpleNamespace(dag_id="daily")}
    assert MediationAlert.of(context).text.startswith("ValueError: no\n")


def test_an_empty_context_makes_an_alert_all_the_same() -> None:
    assert MediationAlert.of({}).text.startswith("A session of Zuora Mediation needs attention.")


NASTY = "<b>&\n{{ conn.mediation_default.password }} {{{ {% raw %} {# no #} <!channel>"


def test_texts_from_zuora_are_neither_markup_nor_templates() -> None:
    alert = MediationAlert({**SESSION, "meter_name": NASTY}, reason=NASTY)
    for rendered in (alert.subject, alert.text, alert.html, json.dumps(alert.blocks)):
        assert jinja2.Environment(autoescape=False).from_string(rendered).render(conn="secret") == rendered
    assert "\n" not in alert.subject
    assert "<b>" not in alert.html
    assert "&lt;b&gt;&amp;" in alert.html
    assert "<!channel>" not in json.dumps([block for block in alert.blocks if block["text"]["type"] == "mrkdwn"])


def test_a_secret_of_the_process_is_hidden() -> None:
    from airflow.sdk.log import mask_secret

    mask_secret("a-long-secret-of-a-connection")
    alert = MediationAlert.of({"exception": ValueError("refused: a-long-secret-of-a-connection")})
    assert "a-long-secret" not in alert.text
    assert "refused: ***" in alert.text


def test_long_values_are_cut() -> None:
    alert = MediationAlert({**SESSION, "meter_name": "x" * 5000}, reason="y" * 5000)
    assert len(alert.subject) <= 150
    assert max(len(block["text"]["text"]) for block in alert.blocks) <= 3000
    assert len(alert.text) < 2500


def test_a_status_that_is_reported_twice_is_shown_once() -> None:
    journal = Journal([change("RUNNING", 2), change("RUNNING", 1, Source.RUN), change("FAILED", 3)])
    assert [each.status for each in alerts._changes(journal, "1002", "R-00005468")] == ["RUNNING", "FAILED"]
    assert journal.requests[0].meters["1002"].sessions == {"R-00005468"}


def test_codes_are_ranked_and_counted() -> None:
    entries = [{"errorCode": "A", "errorMessage": "a"}] + [{"errorCode": "B", "errorMessage": "b"}] * 2 + [{}]
    assert alerts._by_code(entries, 2) == [("2 x B", "b"), ("1 x A", "a"), ("", "and 1 further codes")]
    assert ("", "counted in the first 100 error records") in alerts._by_code([{}] * 100, 2)
