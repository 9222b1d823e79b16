"""The reconciliation from a worker: Zuora's history and the API server with its journal, both real."""

from __future__ import annotations

import json
import threading
from datetime import UTC, datetime, timedelta
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import pytest
from airflow import settings
from sqlalchemy import select

from airflow_mediation_provider.api_server import callouts
from airflow_mediation_provider.api_server.app import create_app
from airflow_mediation_provider.api_server.connections import Connections, MediationConnection
from airflow_mediation_provider.exceptions import MediationMisconfigured, TransientError
from airflow_mediation_provider.feed.worker import forget_address
from airflow_mediation_provider.hooks.api_usage import forget_all
from airflow_mediation_provider.journal import history as readers
from airflow_mediation_provider.journal.tables import HistoryRow, SessionRow, TransitionRow
from airflow_mediation_provider.journal.task_reports import budget, record_calls
from airflow_mediation_provider.operators import reconcile as module
from airflow_mediation_provider.operators.reconcile import ReadCalloutHistoryOperator, ReconcileCalloutsOperator
from airflow_mediation_provider.simulator import CalloutConfig, Simulator
from airflow_mediation_provider.tasks import maintenance as reconciliation
from airflow_mediation_provider.tasks import state
from airflow_mediation_provider.testing.journal import serve

from .conftest import BEGIN, asked

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

SECRET = "simulator-secret"
SCRIPT = ["INITIALIZING", "RUNNING", "PAUSED", "RUNNING", "COMPLETED"]
CALLOUTS = {"callout_token": "token"}


@pytest.fixture
def counted(monkeypatch: pytest.MonkeyPatch) -> threading.Event:
    """Set once the API server has stored a count of calls; request it before the API server."""
    written = threading.Event()

    def record(**report: Any) -> None:
        record_calls(**report)
        written.set()

    monkeypatch.setattr("airflow_mediation_provider.api_server.internal.record_calls", record)
    return written


@pytest.fixture
def mediation(sqlite_database: str, airflow_on: Callable[[str], str], monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """The API server; workers find it by its setting."""
    airflow_on(sqlite_database)
    forget_address()
    monkeypatch.setattr(module, "_PAUSES", (0.0, 0.0))
    connection = MediationConnection("mediation_default", None, SECRET, CALLOUTS)
    with serve(create_app(Connections({"mediation_default": connection}.get))) as url:
        monkeypatch.setenv("AIRFLOW__MEDIATION__FEED_URL", url)
        yield url
    forget_address()


@pytest.fixture
def lossy(sim: Simulator, mediation: str, monkeypatch: pytest.MonkeyPatch) -> Simulator:
    """A tenant that loses half of its callouts, by its seed; it and the API server have one clock."""
    monkeypatch.setattr(callouts, "datetime", SimpleNamespace(now=lambda _zone: now(sim)))
    sim.callouts(
        CalloutConfig(
            url=f"{mediation}/callouts/mediation_default", headers={"X-Mediation-Token": "token"}, loss=0.5, retry=False
        )
    )
    for meter in ("1001", "1002"):
        session = sim.start_session(meter, script=[[status, 600] for status in SCRIPT[:-1]] + [["COMPLETED", None]])
        assert session
    for _ in SCRIPT:
        sim.wait_delivered()
        sim.advance(600)
    return sim


@pytest.fixture(autouse=True)
def long_ago(monkeypatch: pytest.MonkeyPatch) -> None:
    """The simulator's clock is months back, where a prune of today would have deleted."""
    monkeypatch.setattr(reconciliation, "FURTHEST", timedelta(days=99_999))


def now(sim: Simulator) -> datetime:
    return datetime.fromtimestamp(sim.log("transition")[-1]["at"], UTC)


def run(sim: Simulator, **arguments: Any) -> dict[str, Any]:
    operator = ReconcileCalloutsOperator(task_id="repair", **{"until": now(sim), "lookback": 7200, **arguments})
    return json.loads(json.dumps(operator.execute({})))  # type: ignore[no-any-return]


def journal() -> tuple[int, dict[str, tuple[str, bool]]]:
    with settings.NonScopedSession() as session:
        rows = session.scalars(select(SessionRow)).all()
        changes = len(session.scalars(select(TransitionRow)).all())
    return changes, {row.meter_id: (row.status, row.ambiguous) for row in rows}


def test_lost_changes_are_added_once(lossy: Simulator) -> None:
    came, _ = journal()
    lost = sum(1 for each in lossy.callout_history() if each["code"] != 200)
    assert 0 < came < 10
    assert came + lost == 10

    only_told = run(lossy, dry_run=True)
    assert (len(only_told["repaired"]), journal()[0]) == (lost, came)

    found = run(lossy)
    assert (found["told"], len(found["repaired"]), found["unreadable"]) == (10, lost, 0)
    assert {each["source"] for each in found["repaired"]} == {"history"}
    assert journal() == (10, {"1001": ("COMPLETED", False), "1002": ("COMPLETED", False)})

    assert run(lossy)["repaired"] == []
    assert run(lossy, lookback=1800)["repaired"] == []
    assert journal()[0] == 10


def test_the_calls_of_a_pass_are_counted_in_the_journal(counted: threading.Event, lossy: Simulator) -> None:
    before = asked(lossy)
    forget_all()

    run(lossy)

    assert counted.wait(10)
    with settings.NonScopedSession() as session:
        (found,) = budget(session, ["mediation_default"], datetime.now(UTC))
    assert found.last_day == asked(lossy) - before > 0


def test_a_span_or_a_category_without_callouts(lossy: Simulator) -> None:
    assert run(lossy, until=now(lossy) - timedelta(days=30))["records"] == 0
    assert run(lossy, event_category="com.zuora.notification:other")["records"] == 0


def test_sessions_that_never_end_are_listed_with_their_meters_status(
    sim: Simulator, mediation: str, capsys: pytest.CaptureFixture[str]
) -> None:
    url = f"{mediation}/callouts/mediation_default"
    sim.callouts(CalloutConfig(url=url, headers={"X-Mediation-Token": "token"}, statuses=("RUNNING",)))
    for meter in ("1001", "1002"):
        sim.start_session(meter, script=[["RUNNING", 60], ["COMPLETED", None]])
    sim.wait_delivered()
    sim.advance(60)
    sim.callouts()
    sim.start_session("1002", script=[["RUNNING", None]])

    with settings.NonScopedSession.begin() as session:
        for row in session.scalars(select(SessionRow)):
            row.last_observed_at = datetime.now(UTC) - timedelta(hours=7)
    stuck = {each["meter_id"]: each["meter_status"] for each in run(sim)["stuck"]}

    assert stuck == {"1001": "COMPLETED", "1002": "RUNNING"}
    assert journal()[1] == {"1001": ("RUNNING", False), "1002": ("RUNNING", False)}
    assert "without a report for 7h" in capsys.readouterr().out
    assert run(sim, open_for=8 * 3600)["stuck"] == []
    assert run(sim, open_for=None)["stuck"] == []


@pytest.mark.usefixtures("sim")
def test_without_an_api_server_the_task_fails_and_may_be_retried(
    lossy: Simulator, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AIRFLOW__MEDIATION__FEED_URL", "http://127.0.0.1:9/mediation")
    monkeypatch.setenv("AIRFLOW__CORE__EXECUTION_API_SERVER_URL", "http://127.0.0.1:9/execution/")
    monkeypatch.setenv("AIRFLOW__API__BASE_URL", "http://127.0.0.1:9")
    forget_address()

    with pytest.raises(TransientError, match="The journal could not be queried: no API server"):
        run(lossy)


@pytest.mark.usefixtures("mediation")
def test_a_wrong_connection_is_reported_in_one_sentence(sim: Simulator, monkeypatch: pytest.MonkeyPatch) -> None:
    connection = {"conn_type": "mediation", "host": sim.url, "login": "simulator-client", "password": SECRET}
    wrong = {**connection, "extra": {"callout_timezone": "Mars"}}
    monkeypatch.setenv("AIRFLOW_CONN_MEDIATION_DEFAULT", json.dumps(wrong))

    with pytest.raises(MediationMisconfigured, match="callout_timezone must be a zone"):
        ReconcileCalloutsOperator(task_id="repair").execute({})


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"since": "2026-01-01T00:00:00"}, "since .*zone"),
        ({"lookback": 0}, "lookback must be"),
        ({"lookback": timedelta(days=14)}, "lookback must be .* to 13 days"),
        ({"since": "2026-01-02T00:00Z", "until": "2026-01-01T00:00Z"}, "until .* must be after since"),
        ({"open_for": "6h"}, "open_for must be"),
        ({"dry_run": "yes"}, "dry_run must be True or False"),
        ({"mediation_conn_id": ""}, "mediation_conn_id must not be empty"),
        ({"event_category": " "}, "event_category must be a number or a text"),
        ({"event_category": True}, "event_category must be a number or a text"),
    ],
)
def test_arguments_are_checked_when_the_dag_is_parsed(arguments: dict[str, Any], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        ReconcileCalloutsOperator(task_id="repair", **arguments)


def test_a_rendered_span_that_ends_before_its_start_fails() -> None:
    operator = ReconcileCalloutsOperator(task_id="repair", since="{{ ds }}", until="2026-01-01T00:00:00Z")
    operator.since = "2026-01-02T00:00:00Z"
    with pytest.raises(MediationMisconfigured, match="must be after since"):
        operator.execute({})


def test_a_dry_run_may_go_back_further() -> None:
    assert ReconcileCalloutsOperator(task_id="repair", lookback=timedelta(days=30), dry_run=True).lookback == 30 * 86400


class TestReadOn:
    """Zuora cannot reach Airflow: each callout goes nowhere, and a task reads the history every five minutes."""

    @pytest.fixture
    def clock(self, sim: Simulator, mediation: str, monkeypatch: pytest.MonkeyPatch) -> Callable[[float], None]:
        passed = [0.0]

        def wait(seconds: float) -> None:
            sim.wait_delivered()
            passed[0] += seconds
            sim.advance(seconds)

        def utcnow(_zone: object = None) -> datetime:
            return datetime.fromtimestamp(BEGIN + passed[0], UTC)

        assert mediation
        monkeypatch.setattr(state, "utcnow", utcnow)
        monkeypatch.setattr(readers, "datetime", SimpleNamespace(now=utcnow))
        sim.callouts(CalloutConfig(url="http://127.0.0.1:9/nowhere", retry=False))
        return wait

    @staticmethod
    def read() -> dict[str, Any]:
        operator = ReadCalloutHistoryOperator(task_id="read", interval=timedelta(minutes=5))
        return json.loads(json.dumps(operator.execute({})))  # type: ignore[no-any-return]

    def test_each_run_reads_what_is_new(self, sim: Simulator, clock: Callable[[float], None]) -> None:
        assert self.read() == {"read": True, "added": []}
        for meter in ("1001", "1002"):
            sim.start_session(meter, script=[[status, 400] for status in SCRIPT[:-1]] + [["COMPLETED", None]])
        found = []
        for _ in range(8):
            clock(300)
            found.append([each["status"] for each in self.read()["added"] if each["meter_id"] == "1001"])

        assert [status for each in found for status in each] == SCRIPT
        assert sum(map(bool, found)) == len(SCRIPT)
        assert journal() == (10, {"1001": ("COMPLETED", False), "1002": ("COMPLETED", False)})

    def test_a_run_right_after_another_one_reads_nothing(self, sim: Simulator, clock: Callable[[float], None]) -> None:
        self.read()
        clock(60)
        before = asked(sim)
        assert self.read() == {"read": False, "added": []}
        assert asked(sim) == before

    def test_a_missing_permission_fails_the_task_and_is_in_the_journal(
        self, sim: Simulator, clock: Callable[[float], None]
    ) -> None:
        clock(1)
        sim.fault("status", path="/v1/notification-history/callout", status=403)
        with pytest.raises(MediationMisconfigured, match="Events & Notifications View Access"):
            self.read()
        with settings.NonScopedSession() as session:
            row = session.scalars(select(HistoryRow)).one()
        assert row.lasting
        assert "Events & Notifications View Access" in str(row.trouble)

    @pytest.mark.parametrize(
        ("arguments", "words"),
        [({"interval": 0}, "interval must be"), ({"mediation_conn_id": ""}, "mediation_conn_id must not be empty")],
    )
    def test_arguments_are_checked_when_the_dag_is_parsed(self, arguments: dict[str, Any], words: str) -> None:
        with pytest.raises(ValueError, match=words):
            ReadCalloutHistoryOperator(task_id="read", **arguments)
