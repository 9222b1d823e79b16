"""Every form that lies in users' databases or goes between processes of different versions, made by the product.

Each form is made from fixed inputs, so it differs only where the product changed.
"""

from __future__ import annotations

import asyncio
import json
from dataclasses import asdict, dataclass
from datetime import timedelta
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

from airflow_mediation_provider.assets import ANY_METER, create_asset, on_meter_session
from airflow_mediation_provider.feed.reports import WaitingTask, ended, report, wait_id
from airflow_mediation_provider.links import session_page_in_airflow
from airflow_mediation_provider.operators.audit import AuditTrailExportOperator
from airflow_mediation_provider.operators.meter import RunMeterOperator
from airflow_mediation_provider.protocol import maintenance as pruning
from airflow_mediation_provider.protocol import wire as feed
from airflow_mediation_provider.protocol.callouts.cursor import HistoryCursor
from airflow_mediation_provider.protocol.maintenance import (
    HistoryReply,
    HistoryRequest,
    ReconcileReply,
    ReconcileRequest,
    Reconciliation,
)
from airflow_mediation_provider.protocol.sessions.asset_uri import (
    asset_uri,
    history_uri,
    is_history_uri,
    is_poll_uri,
    poll_uri,
    read_asset_uri,
)
from airflow_mediation_provider.protocol.sessions.journal_entry import EntryKind, JournalEntry
from airflow_mediation_provider.protocol.sessions.lifecycle import SessionState, fold
from airflow_mediation_provider.protocol.sessions.verdict import TaskNote, TaskVerdict
from airflow_mediation_provider.protocol.sessions.window import Window, WindowReport
from airflow_mediation_provider.protocol.status import RunType
from airflow_mediation_provider.protocol.transition import SessionTransition, Source
from airflow_mediation_provider.protocol.waits.condition import SessionCondition
from airflow_mediation_provider.protocol.waits.export_wait import ExportResult, ExportWait
from airflow_mediation_provider.protocol.waits.feed_status import FeedStatus, FeedStatusChange
from airflow_mediation_provider.protocol.waits.wait import PollReading, SessionWait, WaitResult
from airflow_mediation_provider.protocol.zuora.api_usage import HourlyUsage, RemainingQuota
from airflow_mediation_provider.protocol.zuora.errors import TransientError
from airflow_mediation_provider.sensors.meter_session import MeterSessionSensor
from airflow_mediation_provider.tasks.memory import KEY as WAIT_KEY
from airflow_mediation_provider.tasks.memory import KeptWait, TriggerKeptWait
from airflow_mediation_provider.tasks.state import TaskState, Tries
from airflow_mediation_provider.triggers.audit import AuditTrailExportTrigger
from airflow_mediation_provider.triggers.meter_session import MeterSessionStartTrigger, MeterSessionTrigger
from airflow_mediation_provider.triggers.meter_watch import CalloutHistoryTrigger, MeterWatchTrigger
from airflow_mediation_provider.worker.run_state import (
    STATE_KEY,
    KeptRun,
    RunPhase,
    RunState,
    derived_generation,
    unique_key,
)
from airflow_mediation_provider.worker.waiting import SessionWaitMixin
from tests.unit.task_stage import Store
from tests.unit.virtual import EPOCH

if TYPE_CHECKING:
    from collections.abc import Callable
    from datetime import datetime

CONN = "mediation_default"
METER = "2470"
SESSION = "R-00005468"
TASK = WaitingTask(dag_id="usage", run_id="scheduled__2026-03-31", task_id="wait", map_index=-1, try_number=1)
OWNER = "0123456789abcdef0123456789abcdef"
TRIES = Tries(max_tries=2, retries=2, number=1)
# An id of a task instance as Airflow makes them.
TI_ID = "01987a2b-7e1c-7a3f-9d55-0c7b6f1f2a11"


@dataclass(frozen=True)
class Form:
    """One stored form.

    :param make: makes it, as plain JSON, by the product's own code
    :param read: reads it by the product's own reader and writes it again; the same where it means the same
    """

    make: Callable[[], Any]
    read: Callable[[Any], Any]


def at(seconds: float) -> datetime:
    return EPOCH + timedelta(seconds=seconds)


WINDOW = Window(at(0), at(3600))

# -- what the forms are made of ---------------------------------------------------------------------------------------


def change(
    status: str,
    previous: str | None,
    seconds: float,
    session_id: str = SESSION,
    source: Source = Source.CALLOUT,
    notification_id: str | None = None,
) -> SessionTransition:
    """Return a change of a session's status, as a callout reports it unless given otherwise."""
    return SessionTransition(
        meter_id=METER,
        meter_name="Rated usage",
        session_id=session_id,
        status=status,
        previous_status=previous,
        started_at=at(5),
        ended_at=at(seconds - 1) if status == "COMPLETED" else None,
        observed_at=at(seconds),
        source=source,
        notification_id=notification_id or f"n-{session_id}-{status}",
    )


def state(*statuses: str, session_id: str = SESSION) -> SessionState:
    """Return a session that went through some statuses, a minute each."""
    before = (None, *statuses)
    return fold(change(status, before[number], 10 + 60 * number, session_id) for number, status in enumerate(statuses))


def windowed_wait() -> SessionWait:
    """Return a sensor's wait for a session that starts within an hour; callouts were out of reach for a while."""
    wait = SessionWait(
        SessionCondition(meter_id=METER, since=WINDOW.since, before=WINDOW.before, until=at(7200)),
        created_at=at(2),
        longest_pause=timedelta(seconds=132),
    )
    wait.rely_on(FeedStatusChange(FeedStatus.READ, "callouts are read"))
    wait.rely_on(FeedStatusChange(FeedStatus.LOST, "they are not"))
    wait.observe(PollReading("COMPLETED", at(60)))
    return wait


def named_wait(**more: Any) -> SessionWait:
    """Return a run's wait: the session is named, polls are the only source, Zuora's last answers are missing."""
    wait = SessionWait(
        SessionCondition(meter_id=METER, session_id=SESSION, until=at(7200)),
        created_at=at(2),
        started_at=at(1),
        run_status="INITIALIZING",
        baseline="COMPLETED",
        exclusive=True,
        max_unreachable=timedelta(minutes=10),
        **more,
    )
    wait.rely_on(FeedStatusChange(FeedStatus.OFF, "no callouts"))
    wait.observe(PollReading("RUNNING", at(40)))
    wait.fault(TransientError("Zuora is down."), at(100))
    return wait


def wait_on_both_run_types() -> SessionWait:
    """Return a sensor's wait on both run types; a poll has shown that the session is a test."""
    condition = SessionCondition(meter_id=METER, run_types=(RunType.NORMAL, RunType.DEBUG), since=at(0), until=at(7200))
    wait = SessionWait(condition, created_at=at(2))
    wait.rely_on(FeedStatusChange(FeedStatus.OFF, "no callouts"))
    wait.observe(PollReading("COMPLETED", at(3)))
    wait.observe(PollReading("TESTING", at(63)))
    return wait


def unnamed_wait(*, beside: bool = False) -> SessionWait:
    """Return a sensor's wait: bound by callouts, with an end that a poll shows held back.

    :param beside: another session of the meter runs, so that the poll may show that one
    """
    wait = SessionWait(
        SessionCondition(
            meter_id=METER,
            statuses=("COMPLETED",),
            previous_statuses=(),
            fail_on=("FAILED", "CANCELED"),
            since=at(0),
            until=at(7200),
        ),
        created_at=at(2),
        baseline="COMPLETED",
        require_certain=False,
        settle=timedelta(seconds=45),
    )
    wait.rely_on(FeedStatusChange(FeedStatus.READ, "callouts are read"))
    wait.observe(PollReading("COMPLETED", at(3)))
    live = [state("INITIALIZING", "RUNNING")]
    live += [state("INITIALIZING", session_id="R-00005469")] if beside else []
    wait.receive(live, at(75))
    wait.observe(PollReading("RUNNING", at(80)), live)
    wait.observe(PollReading("COMPLETED", at(200)), live)
    return wait


def result_by_callout() -> WaitResult:
    """Return the end of a wait by a callout."""
    wait = unnamed_wait()
    return _result(wait.receive([state("INITIALIZING", "RUNNING", "COMPLETED")], at(205)).result)


def result_by_poll() -> WaitResult:
    """Return the end of a wait by a poll, which is not certain."""
    return _result(unnamed_wait().tick(at(300)).result)


def result_by_run() -> WaitResult:
    """Return the end of a wait by the run's own reply."""
    condition = SessionCondition(meter_id=METER, session_id=SESSION)
    return _result(SessionWait(condition, created_at=at(2), started_at=at(1), run_status="FAILED").result)


def result_by_time() -> WaitResult:
    """Return the end of a wait by its deadline, after no status ended it."""
    return _result(named_wait().tick(at(7200)).result)


def _result(result: WaitResult | None) -> WaitResult:
    assert result is not None
    return result


def run_reply() -> SessionTransition:
    """Return the session as Zuora's reply to the run call describes it."""
    return SessionTransition(
        meter_id=METER,
        session_id=SESSION,
        status="INITIALIZING",
        started_at=at(5),
        observed_at=at(1),
        source=Source.RUN,
    )


def run_operator() -> RunMeterOperator:
    return RunMeterOperator(task_id="run", meter_id=METER, wait_for_completion=False)


def run_state(phase: RunPhase = RunPhase.STARTED, **more: Any) -> RunState:
    request = run_operator()._request() | {"runtime_source_configs": [{"sourceId": "s1"}]}
    return RunState(
        generation=TI_ID,
        max_tries=2,
        retries=2,
        mediation_conn_id=CONN,
        request=request,
        unique_key=run_key(),
        phase=phase,
        called_at=at(0),
        baseline="COMPLETED",
        session=run_reply().to_dict(),
        run_id="8ad08e01",
        **more,
    )


def run_key() -> str:
    return unique_key(
        mediation_conn_id=CONN,
        request=run_operator()._request(),
        instance=("usage", "scheduled__2026-03-31", "run", -1),
        generation=TI_ID,
    )


def calls() -> HourlyUsage:
    left = RemainingQuota(limits="50000;w=86400", remaining=49_000, reset_at=at(3600), told_at=at(60))
    return HourlyUsage(hour=at(600), calls=12, limited=1, left=left)


def entries() -> tuple[JournalEntry, ...]:
    """Return what a run reply, a poll of a schedule, the callout history and an unreadable callout become."""
    poll = SessionTransition(
        meter_id=METER, status="RUNNING", previous_status="COMPLETED", observed_at=at(40), source=Source.POLL
    )
    return (
        JournalEntry(
            kind=EntryKind.STATUS_CHANGE,
            observed_at=at(1),
            source=Source.RUN,
            transition=run_reply(),
            notification_id=f"run:{SESSION}",
        ),
        JournalEntry(kind=EntryKind.POLL, observed_at=at(40), source=Source.POLL, transition=poll, drives=True),
        JournalEntry(
            kind=EntryKind.STATUS_CHANGE,
            observed_at=at(130),
            source=Source.HISTORY,
            transition=change("COMPLETED", "RUNNING", 130, source=Source.HISTORY),
            notification_id="history:0a1b2c",
            body={"attempts": [{"at": "2026-03-31T09:02:10+00:00", "code": 503}]},
        ),
        JournalEntry(
            kind=EntryKind.UNPARSED,
            observed_at=at(7),
            source=Source.CALLOUT,
            notification_id="n-1",
            body={"text": "{", "error": "no JSON"},
        ),
    )


# -- triggers ---------------------------------------------------------------------------------------------------------


def trigger_from(stored: dict[str, Any]) -> Any:
    """Make a trigger as Airflow does of what its database has."""
    from importlib import import_module

    module, _, name = stored["classpath"].rpartition(".")
    return getattr(import_module(module), name)(**stored["kwargs"])


def _serialized(trigger: Any) -> dict[str, Any]:
    classpath, kwargs = trigger.serialize()
    return {"classpath": classpath, "kwargs": kwargs}


def session_trigger() -> dict[str, Any]:
    return _serialized(
        MeterSessionTrigger(
            mediation_conn_id=CONN,
            wait=unnamed_wait().to_dict(),
            poll_interval=45.0,
            end_from_trigger=True,
            stop_on_kill=True,
        )
    )


def start_sensor(**which: Any) -> MeterSessionSensor:
    return MeterSessionSensor(
        task_id="wait",
        meter_id=METER,
        **(which or {"session_id": SESSION}),
        statuses=("COMPLETED", "PAUSED"),
        previous_statuses=["RUNNING"],
        fail_on=["FAILED"],
        start_from_trigger=True,
        poke_interval=45,
        timeout=7200,
    )


def start_from_trigger(**which: Any) -> dict[str, Any]:
    """Return what the serialized Dag has of a sensor that starts in the triggerer."""
    args = start_sensor(**which).start_trigger_args
    return {
        "trigger_cls": args.trigger_cls,
        "trigger_kwargs": args.trigger_kwargs,
        "next_method": args.next_method,
        "timeout": args.timeout.total_seconds(),
    }


def start_trigger() -> dict[str, Any]:
    return _serialized(MeterSessionStartTrigger(**start_sensor().start_trigger_args.trigger_kwargs))


def watch_trigger() -> dict[str, Any]:
    return _serialized(MeterWatchTrigger(mediation_conn_id=CONN, meter_id=METER, poll_interval=30.0))


def export_wait() -> ExportWait:
    """Return the wait for an export's job, which was polled once."""
    wait = ExportWait(
        meter_id=METER,
        export_type="ERROR",
        request_id="2c92c0f9-export",
        until=at(7200),
        poll_interval=30.0,
        max_unreachable=3600.0,
        poll_at=at(0),
    )
    wait.answer([{"requestId": "2c92c0f9-export", "status": "RUNNING"}], at(1))
    return wait


def export_trigger() -> dict[str, Any]:
    return _serialized(AuditTrailExportTrigger(mediation_conn_id=CONN, wait=export_wait().to_dict()))


def read_export_trigger(stored: dict[str, Any]) -> dict[str, Any]:
    trigger = trigger_from(stored)
    trigger.wait = ExportWait.from_dict(trigger.wait).to_dict()
    return _serialized(trigger)


def export_events() -> dict[str, Any]:
    """Return the events of that trigger: of a finished job, and of one that is not finished at the deadline."""
    finished, late = export_wait(), export_wait()
    job = {"requestId": "2c92c0f9-export", "status": "FINISHED", "count": 12, "fileList": ["audit/errors.csv"]}
    finished.answer([job], at(31))
    late.answer([{**job, "status": "RUNNING"}], at(7200))
    results = {"met": finished.step(at(31)), "timed out": late.step(at(7200))}
    return {name: result.to_dict() for name, result in results.items() if isinstance(result, ExportResult)}


def read_export_events(stored: dict[str, Any]) -> dict[str, Any]:
    return {name: ExportResult.from_dict(event).to_dict() for name, event in stored.items()}


def read_start(stored: dict[str, Any]) -> dict[str, Any]:
    made = _serialized(trigger_from({"classpath": stored["trigger_cls"], "kwargs": stored["trigger_kwargs"]}))
    kept = {name: made["kwargs"][name] for name in stored["trigger_kwargs"]}
    return {**stored, "trigger_cls": made["classpath"], "trigger_kwargs": kept}


def trigger_event(wait: SessionWait, result: WaitResult) -> dict[str, Any]:
    trigger = MeterSessionTrigger(mediation_conn_id=CONN, wait=wait.to_dict())
    trigger._waiter = SimpleNamespace(owner=OWNER, stalled=False)  # type: ignore[assignment]
    return asyncio.run(trigger._event(wait, result)).payload  # type: ignore[no-any-return]


def unreachable_event() -> dict[str, Any]:
    wait = named_wait()
    return trigger_event(wait, _result(wait.fault(TransientError("Zuora is down."), at(800)).result))


def timed_out_event() -> dict[str, Any]:
    wait = named_wait()
    return trigger_event(wait, _result(wait.tick(wait.condition.until or at(0)).result))


def read_event(stored: dict[str, Any]) -> dict[str, Any]:
    result = SessionWaitMixin.read_event(stored)
    assert result is not None
    wait = {"wait": SessionWait.from_dict(stored["wait"]).to_dict()} if "wait" in stored else {}
    return {**result.to_dict(), **wait, **{name: stored[name] for name in ("owner", "stalled") if name in stored}}


# -- what tasks keep --------------------------------------------------------------------------------------------------


def wait_record() -> dict[str, Any]:
    """Return what the task state store has of a wait after a crash of its trigger."""
    store = Store()
    memory = KeptWait(TaskState(store, WAIT_KEY), TRIES)
    memory.keep(unnamed_wait(), "execute_complete")
    memory.count_crash()
    return dict(store.values)


def read_wait_record(stored: dict[str, Any]) -> dict[str, Any]:
    store = Store()
    store.values = json.loads(json.dumps(stored))
    memory = KeptWait(TaskState(store, WAIT_KEY), TRIES)
    wait = memory.last()
    assert wait is not None
    assert memory.of_this_try
    memory.keep(wait, memory.method_name)
    return store.values


def run_record() -> dict[str, Any]:
    store = Store()
    KeptRun(TaskState(store, STATE_KEY)).save(run_state(RunPhase.DONE, result=_with_evidence(result_by_callout())))
    return dict(store.values)


def read_run_record(stored: dict[str, Any]) -> dict[str, Any]:
    store = Store()
    store.values = json.loads(json.dumps(stored))
    memory = KeptRun(TaskState(store, STATE_KEY))
    kept = memory.load()
    assert kept is not None
    memory.save(kept)
    return store.values


def _export(store: Store) -> tuple[AuditTrailExportOperator, Any]:
    hook = SimpleNamespace(create_export_job=lambda *_, **__: "2c92c0f9-export")
    task = AuditTrailExportOperator(task_id="export", meter_id=METER, retries=2)
    task._hook = lambda **_: hook  # type: ignore[method-assign,assignment]
    return task, {"task_state_store": store, "ti": SimpleNamespace(max_tries=2, try_number=1)}


def export_record() -> dict[str, Any]:
    """Return what the task state store has of an export's job."""
    store = Store()
    task, context = _export(store)
    subject = {"meter_id": METER, "session_id": SESSION, "run_type": "NORMAL", "query_from": at(0), "query_to": at(60)}
    task._create(context, subject)
    return dict(store.values)


def read_export_record(stored: dict[str, Any]) -> dict[str, Any]:
    store = Store()
    store.values = json.loads(json.dumps(stored))
    task, context = _export(store)
    assert task._job_of_earlier_try(context) == "2c92c0f9-export"
    return store.values


def trigger_record() -> Any:
    """Return the XCom in which a trigger keeps its wait."""
    kept: list[Any] = []
    memory = TriggerKeptWait(SimpleNamespace(id=TI_ID))
    memory._call = _writes_into(kept)  # type: ignore[method-assign]
    asyncio.run(memory.keep(unnamed_wait()))
    return kept[0]


def read_trigger_record(stored: Any) -> Any:
    memory = TriggerKeptWait(SimpleNamespace(id=TI_ID))
    memory._call = _writes_into([], stored)  # type: ignore[method-assign]
    # Another triggerer takes the wait up, as the trigger's arguments have it.
    fresh = SessionWait(unnamed_wait().condition, created_at=at(2))
    return {"ti_id": TI_ID, "wait": asyncio.run(memory.recall(fresh)).to_dict()}


def _writes_into(kept: list[Any], stored: Any = None) -> Any:
    async def call(name: str, **arguments: Any) -> Any:
        if name == "set":
            kept.append(arguments["value"])
        return stored

    return call


# -- XComs and asset events -------------------------------------------------------------------------------------------


def _with_evidence(result: WaitResult) -> dict[str, Any]:
    assert result.session is not None
    return result.session


def session_xcoms() -> dict[str, Any]:
    """Return the session as run and sensor hand it on, by every kind of evidence."""
    return {
        "by callout": _with_evidence(result_by_callout()),
        "by poll": _with_evidence(result_by_poll()),
        "by run, ended": _with_evidence(result_by_run()),
        "by run, not waited for": run_operator()._reply(run_state()),
    }


def read_session_xcoms(stored: dict[str, Any]) -> dict[str, Any]:
    names = ("version", "mediation_conn_id", "evidence", "certain")  # the first two were added later
    return {
        name: {**SessionTransition.from_dict(xcom).to_dict(), **{key: xcom[key] for key in names if key in xcom}}
        for name, xcom in stored.items()
    }


def addresses() -> dict[str, Any]:
    """Return the addresses that databases have: of assets, and of pages in links."""
    ti = SimpleNamespace(**TASK._asdict())
    odd = "a conn/1", "m/1 ä"
    schedule = on_meter_session(METER, "COMPLETED", mediation_conn_id=CONN, poll_interval=30)
    return {
        "status": asset_uri(CONN, METER, "COMPLETED"),
        "status, odd names": asset_uri(*odd, "FAILED"),
        "status, any meter": asset_uri(CONN, ANY_METER, "FAILED"),
        "status, filtered": asset_uri(CONN, ANY_METER, "CANCELED", "TESTING", "DEBUG"),
        "polls": poll_uri(CONN, METER, 30.0),
        "polls, odd names": poll_uri(*odd, 7.5),
        "history": history_uri(CONN, 60.0),
        "history, odd names": history_uri(odd[0], 7.5),
        "schedule": sorted(asset.uri for asset in schedule.asset_condition.objects),
        "created": create_asset(meter_id=METER, status="completed").uri,
        "page of a session": session_page_in_airflow(ti, CONN, METER, SESSION),
        "page of a task": session_page_in_airflow(ti, CONN, METER, None),
    }


def read_addresses(stored: dict[str, Any]) -> dict[str, Any]:
    for name in stored.keys() & {"status", "status, odd names", "status, any meter", "status, filtered", "created"}:
        assert asset_uri(*read_asset_uri(stored[name])) == stored[name]
    for name in ("polls", "polls, odd names"):
        assert is_poll_uri(stored[name])
    for name in stored.keys() & {"history", "history, odd names"}:
        assert is_history_uri(stored[name])
    return stored


def identities() -> dict[str, Any]:
    """Return the names by which something is found again: at Zuora, in the journal."""
    wait, task = unnamed_wait(), TASK
    return {
        "uniqueKey": run_key(),
        "generation without a store": derived_generation(Tries(4, 2, 3), advanced=1),
        "wait": report(CONN, wait, task, "worker", owner=OWNER, begins=True).id,
        "wait's end": ended(CONN, wait, task, at(300), owner=OWNER, begins=False).id,
        "wait of a mapped task": report(CONN, wait, task._replace(map_index=3), "worker", owner=OWNER, begins=True).id,
    }


# -- messages ---------------------------------------------------------------------------------------------------------


def feed_request() -> Any:
    wait = unnamed_wait()
    return json.loads(
        feed.FeedRequest(
            meters={
                METER: feed.MeterQuestion(
                    sessions=frozenset({SESSION}), since=frozenset({at(0)}), windows=frozenset({WINDOW})
                )
            },
            wait=20.0,
            cursor="12",
            full=True,
            waits=feed.Waits(
                open=(report(CONN, wait, TASK, "triggerer", owner=OWNER, begins=True),),
                ended=(ended(CONN, wait, TASK._replace(task_id="other"), at(300), owner=OWNER, begins=False),),
            ),
            calls=(calls(),),
            owners=(wait_id(CONN, TASK),),
            reports=True,
        ).to_bytes()
    )


def feed_reply() -> Any:
    sessions = (state("INITIALIZING", "RUNNING", "COMPLETED"), state("RUNNING", session_id="R-00005469"))
    windows = (WindowReport(meter_id=METER, window=WINDOW, callouts_before=True, received=None),)
    reply = feed.FeedReply(
        cursor="13",
        callouts=True,
        last_callout_at=at(130),
        sessions=sessions,
        windows=windows,
        owners={wait_id(CONN, TASK): "5f0c"},
        reports=(change("RUNNING", "INITIALIZING", 30),),
    )
    return json.loads(reply.to_bytes())


def verdict() -> TaskVerdict:
    return TaskVerdict(
        wait_id=wait_id(CONN, TASK),
        meter_id=METER,
        session_id=SESSION,
        run_type="NORMAL",
        status="FAILED",
        at=at(300),
        certain=False,
        **TASK._asdict(),
        ti_id="019d0000-0000-7000-8000-000000000001",
        mode="triggerer",
    )


def note() -> TaskNote:
    return TaskNote(
        id=wait_id(CONN, TASK),
        meter_id=METER,
        session_id=SESSION,
        kind="branch",
        status="FAILED",
        evidence="poll",
        certain=False,
        message="Following alert.",
        followed=("alert",),
        skipped=("load",),
        **TASK._asdict(),
        at=at(301),
    )


def observations() -> Any:
    return json.loads(feed.observations_to_bytes(entries(), [calls()], verdicts=[verdict()], tasks=[note()]))


def read_observations(stored: Any) -> Any:
    told = feed.observations_from_bytes(_bytes(stored))
    return json.loads(feed.observations_to_bytes(told.entries, told.calls, verdicts=told.verdicts, tasks=told.tasks))


def signature() -> dict[str, str]:
    key = feed.derive_key("client-secret")
    return feed.signed_headers(key, path=feed.FEED_PATH, conn_id="a conn/ä", body=b"{}", timestamp=1_774_947_600)


def read_signature(stored: dict[str, str]) -> dict[str, str]:
    headers = {name.lower(): value for name, value in stored.items()}
    key = feed.derive_key("client-secret")
    digest = feed.digest_of(b"{}")
    feed.verify(key, path=feed.FEED_PATH, conn_id="a conn/ä", digest=digest, headers=headers, now=1_774_947_601)
    assert feed.signed_connection(headers) == "a conn/ä"
    assert feed.signed_digest(headers) in (None, digest)
    return stored


def handshake() -> dict[str, Any]:
    # The version of the package changes, and no code reads it.
    return {"service": feed.SERVICE, "protocol": feed.PROTOCOL}


def read_handshake(stored: dict[str, Any]) -> dict[str, Any]:
    assert feed.is_handshake(stored)
    assert feed.is_handshake({**stored, "version": "99"})
    return stored


def reconcile_request() -> Any:
    changes = tuple(each for each in entries() if each.kind is EntryKind.STATUS_CHANGE)
    return json.loads(ReconcileRequest(entries=changes, dry_run=True, open_before=at(0)).to_bytes())


def reconcile_reply() -> Any:
    return json.loads(ReconcileReply(missing=("history:0a1b2c",), open=(state("INITIALIZING", "RUNNING"),)).to_bytes())


def history_messages() -> dict[str, Any]:
    cursor = HistoryCursor(read_to=at(0), read_at=at(60), newest="2026-03-31T02:00:30", low=-25275.0, high=-24690.0)
    request = HistoryRequest(
        seconds=60.0, revision=7, cursor=cursor, goes_on=True, trouble="No permission.", lasting=True, calls=(calls(),)
    )
    return {
        "request": json.loads(request.to_bytes()),
        "reply": json.loads(HistoryReply(cursor=cursor, revision=8, wait=12.5).to_bytes()),
        "xcom": {"read": True, "added": [entry.transition.to_dict() for entry in entries()[2:3] if entry.transition]},
    }


def read_history_messages(stored: dict[str, Any]) -> dict[str, Any]:
    return {
        "request": read_message(HistoryRequest, stored["request"]),
        "reply": read_message(HistoryReply, stored["reply"]),
        "xcom": stored["xcom"],
    }


def history_trigger() -> dict[str, Any]:
    return _serialized(CalloutHistoryTrigger(mediation_conn_id=CONN, read_interval=60.0))


def reconcile_xcom() -> dict[str, Any]:
    return Reconciliation(
        records=7,
        told=3,
        unreadable=1,
        categories={"com.zuora:MeterSessionStatusChange": 7},
        repaired=[entries()[2]],
        stuck=[(state("INITIALIZING", "RUNNING"), "RUNNING")],
    ).to_dict()


PRUNED = pruning.Pruned(sessions=3, changes=9, others=4, waits=2, needed=1)


def prune_messages() -> dict[str, Any]:
    return {
        "request": json.loads(pruning.PruneRequest(90).to_bytes()),
        "reply": json.loads(pruning.PruneReply(PRUNED, done=True).to_bytes()),
        "xcom": asdict(PRUNED),
    }


def read_prune_messages(stored: dict[str, Any]) -> dict[str, Any]:
    return {
        "request": read_message(pruning.PruneRequest, stored["request"]),
        "reply": read_message(pruning.PruneReply, stored["reply"]),
        "xcom": asdict(pruning.Pruned(**stored["xcom"])),
    }


def read_message(kind: type[feed.Message], stored: Any) -> Any:
    return json.loads(kind.from_bytes(_bytes(stored)).to_bytes())


def read_part(kind: type[Any], stored: Any) -> Any:
    """Read what is a part of messages."""
    return feed.to_plain(feed.from_plain(kind, stored, "it"))


def _bytes(stored: Any) -> bytes:
    return json.dumps(stored).encode()


def _same(stored: Any) -> Any:
    """Nothing of the product reads it: users do, or Zuora."""
    return stored


FORMS: dict[str, Form] = {
    "trigger_session": Form(session_trigger, lambda stored: _serialized(trigger_from(stored))),
    "trigger_start": Form(start_trigger, lambda stored: _serialized(trigger_from(stored))),
    "trigger_watch": Form(watch_trigger, lambda stored: _serialized(trigger_from(stored))),
    "trigger_history": Form(history_trigger, lambda stored: _serialized(trigger_from(stored))),
    "trigger_export": Form(export_trigger, read_export_trigger),
    "trigger_event_export": Form(export_events, read_export_events),
    "start_from_trigger": Form(start_from_trigger, read_start),
    "start_from_trigger_window": Form(lambda: start_from_trigger(before=timedelta(hours=1)), read_start),
    "start_from_trigger_both_run_types": Form(lambda: start_from_trigger(run_type=["DEBUG", "NORMAL"]), read_start),
    "trigger_event_met": Form(lambda: trigger_event(unnamed_wait(), result_by_poll()), read_event),
    "trigger_event_unreachable": Form(unreachable_event, read_event),
    "trigger_event_timed_out": Form(timed_out_event, read_event),
    "wait_named": Form(lambda: named_wait().to_dict(), lambda stored: SessionWait.from_dict(stored).to_dict()),
    "wait_held_back": Form(lambda: unnamed_wait().to_dict(), lambda stored: SessionWait.from_dict(stored).to_dict()),
    "wait_window": Form(lambda: windowed_wait().to_dict(), lambda stored: SessionWait.from_dict(stored).to_dict()),
    "wait_both_run_types": Form(
        lambda: wait_on_both_run_types().to_dict(), lambda stored: SessionWait.from_dict(stored).to_dict()
    ),
    "wait_in_doubt": Form(
        lambda: unnamed_wait(beside=True).to_dict(), lambda stored: SessionWait.from_dict(stored).to_dict()
    ),
    "wait_result_callout": Form(
        lambda: result_by_callout().to_dict(), lambda stored: WaitResult.from_dict(stored).to_dict()
    ),
    "wait_result_time": Form(lambda: result_by_time().to_dict(), lambda stored: WaitResult.from_dict(stored).to_dict()),
    "run_state_calling": Form(
        lambda: run_state(RunPhase.CALLING).to_dict(), lambda stored: RunState.from_dict(stored).to_dict()
    ),
    "run_state_dead": Form(
        lambda: run_state().dead("FAILED").to_dict(), lambda stored: RunState.from_dict(stored).to_dict()
    ),
    "task_state_run": Form(run_record, read_run_record),
    "task_state_wait": Form(wait_record, read_wait_record),
    "task_state_export": Form(export_record, read_export_record),
    "xcom_trigger_memory": Form(trigger_record, read_trigger_record),
    "xcom_session": Form(session_xcoms, read_session_xcoms),
    "xcom_reconcile": Form(reconcile_xcom, _same),
    "session_state": Form(
        lambda: feed.to_plain(state("INITIALIZING", "RUNNING")), lambda stored: read_part(SessionState, stored)
    ),
    "addresses": Form(addresses, read_addresses),
    "identities": Form(identities, _same),
    "feed_request": Form(feed_request, lambda stored: read_message(feed.FeedRequest, stored)),
    "feed_reply": Form(feed_reply, lambda stored: read_message(feed.FeedReply, stored)),
    "feed_observations": Form(observations, read_observations),
    "feed_handshake": Form(handshake, read_handshake),
    "feed_signature": Form(signature, read_signature),
    "hourly_calls": Form(lambda: feed.to_plain(calls()), lambda stored: read_part(HourlyUsage, stored)),
    "reconcile_request": Form(reconcile_request, lambda stored: read_message(ReconcileRequest, stored)),
    "reconcile_reply": Form(reconcile_reply, lambda stored: read_message(ReconcileReply, stored)),
    "history": Form(history_messages, read_history_messages),
    "prune": Form(prune_messages, read_prune_messages),
}
