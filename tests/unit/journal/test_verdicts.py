"""What tasks conclude from polls: stored once for each try that Airflow has, shown, and ignored by all decisions."""

from __future__ import annotations

import itertools
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from functools import partial
from typing import TYPE_CHECKING, Any

import pytest
from airflow import settings
from airflow.models.asset import AssetEvent
from sqlalchemy import select
from uuid6 import uuid7

from airflow_mediation_provider.assets import on_meter_session
from airflow_mediation_provider.journal import queries
from airflow_mediation_provider.journal import triggered_runs as consequences
from airflow_mediation_provider.journal.health import connection_health
from airflow_mediation_provider.journal.prune import old_sessions, prune
from airflow_mediation_provider.journal.replay import replay
from airflow_mediation_provider.journal.rows import state_of
from airflow_mediation_provider.journal.session_list import (
    ListedSession,
    SessionKey,
    count_by_status,
    find_session,
    list_sessions,
)
from airflow_mediation_provider.journal.session_search import Filters
from airflow_mediation_provider.journal.tables import ListedRow, SessionRow, VerdictRow, WaitRow
from airflow_mediation_provider.journal.transaction import read
from airflow_mediation_provider.journal.writer import Recorded, record
from airflow_mediation_provider.protocol.maintenance import Pruned
from airflow_mediation_provider.protocol.sessions.asset_uri import asset_uri
from airflow_mediation_provider.protocol.sessions.verdict import TaskNote, TaskVerdict
from airflow_mediation_provider.protocol.transition import Source
from airflow_mediation_provider.protocol.wire import MeterQuestion, to_plain
from tests.unit.journal.old_rows import BEFORE, NEW, OLD, is_in, keep, session_of, wait_of
from tests.unit.journal.plans import explained, uses_an_index
from tests.unit.journal.scheduling import CONN, NOW, Airflow, change, poll, tell

if TYPE_CHECKING:
    from collections.abc import Callable

KEY = SessionKey(CONN, "1", "R-1")
TASK: dict[str, Any] = {"dag_id": "usage", "run_id": "r", "task_id": "wait", "map_index": -1, "try_number": 1}
STARTED = partial(change, "R-1", "INITIALIZING", None, source=Source.RUN, notification_id="run:R-1")
_tasks = itertools.count()


@pytest.fixture(autouse=True)
def _journal(services: None, request: pytest.FixtureRequest) -> None:
    """On SQLite; also on PostgreSQL where the database matters."""
    if "airflow_database" not in request.fixturenames:
        airflow_on: Callable[[str], str] = request.getfixturevalue("airflow_on")
        airflow_on(request.getfixturevalue("sqlite_database"))


def verdict(status: str = "FAILED", *, at: float = 60, state: str | None = "running", **values: Any) -> TaskVerdict:
    """A verdict of a task that Airflow has in a state."""
    task = {**TASK, "task_id": f"wait{next(_tasks)}"}
    ti_id = is_in(state, wait_of("", **task))
    told = {"meter_id": "1", "session_id": "R-1", "run_type": "NORMAL", "status": status, "certain": False}
    place = {"wait_id": task["task_id"], "at": NOW + timedelta(seconds=at), "ti_id": ti_id, "mode": "worker"}
    return TaskVerdict(**{**told, **task, **place, **values})


def note(**values: Any) -> TaskNote:
    told = {"meter_id": "1", "session_id": "R-1", "kind": "branch", "status": "FAILED", "evidence": "poll"}
    words = {"certain": False, "message": "Following alert.", "followed": ("alert",), "skipped": ("load",)}
    return TaskNote(**{"id": "w", "at": NOW, **TASK, **told, **words, **values})


def conclude(*verdicts: TaskVerdict, tasks: tuple[TaskNote, ...] = ()) -> Recorded:
    return record((), conn_id=CONN, verdicts=verdicts, tasks=tasks)


def listed(key: SessionKey = KEY) -> ListedSession:
    found = read(lambda session: find_session(session, key))
    assert found is not None
    return found


def best() -> tuple[str, str, bool, bool]:
    found = listed()
    return found.best_status, found.best_evidence, found.best_certain, found.best_ended


def row() -> Any:
    with settings.NonScopedSession() as session:
        return session.scalars(select(SessionRow)).one()


def zuora_side() -> dict[str, Any]:
    """All that readers of Zuora's reports see of the session."""
    names = [column.key for column in ListedRow.__table__.columns if not column.key.startswith("best_")]
    found = row()
    return {name: getattr(found, name) for name in names}


@pytest.mark.usefixtures("airflow_database")
class TestStoring:
    def test_an_end_that_only_a_task_concluded_is_the_best_known_status(self) -> None:
        tell(STARTED())
        before = zuora_side()
        concluded = verdict()
        assert conclude(concluded) == Recorded()
        assert best() == ("FAILED", "poll", False, True)
        assert (listed().over_at, listed().concluded) == (concluded.at, True)
        assert [(each.status, each.end) for each in listed().phases] == [
            ("INITIALIZING", concluded.at),
            ("FAILED", concluded.at),
        ]
        # No time and no revision changes: neither the feed nor a search for events around the row is affected.
        assert zuora_side() == before

    def test_the_first_verdict_of_a_try_stays(self) -> None:
        tell(STARTED())
        first = verdict()
        conclude(first)
        assert conclude(replace(first, status="COMPLETED", certain=True)) == Recorded()
        assert best()[0] == "FAILED"

    @pytest.mark.parametrize(
        ("state", "mode", "taken"),
        [
            ("running", "worker", True),
            (None, "worker", True),
            ("deferred", "triggerer", True),
            ("success", "triggerer", False),
            ("scheduled", "triggerer", False),
        ],
    )
    def test_a_verdict_of_a_triggerer_needs_a_deferred_task(self, state: str | None, mode: str, taken: bool) -> None:
        tell(STARTED())
        refused = conclude(verdict(state=state, mode=mode)).refused
        assert best()[3] is taken
        assert [each.split(": ")[1] for each in refused] == (
            [] if taken else [f"the task is not deferred any more, but {state}"]
        )

    def test_a_wrong_verdict_is_refused_alone(self) -> None:
        tell(STARTED())
        good = verdict()
        wrong = [
            verdict(ti_id=str(uuid7())),
            verdict(task_id="another"),
            verdict(ti_id="no id"),
            verdict(session_id="R" * 65),
            verdict(session_id="R\x00"),
            verdict(meter_id="\ud800"),
        ]
        notes = (note(), note(id="n" * 65), note(id="x", message="m" * 100_001), note(id="y", run_id="\x00"))
        refused = conclude(*wrong, good, tasks=notes).refused
        assert best() == ("FAILED", "poll", False, True)
        assert len(refused) == len(wrong) + 3
        assert sum("Airflow does not have this try of the task any more" in each for each in refused) == 2
        assert sum("cannot be stored" in each for each in refused) == 5
        with settings.NonScopedSession() as session:
            assert list(session.scalars(select(VerdictRow.ti_id))) == [good.ti_id]

    @pytest.mark.parametrize("place", [0, 1, 2])
    @pytest.mark.parametrize(
        "wrong",
        [
            {"ti_id": "no id"},
            {"task_id": "another"},
            {"session_id": "R" * 65},
            {"session_id": "R\x00"},
            {"meter_id": "\ud800"},
            {"at": datetime(9999, 12, 31, tzinfo=UTC)},
        ],
        ids=str,
    )
    def test_a_wrong_verdict_leaves_its_neighbours_wherever_it_is(self, wrong: dict[str, Any], place: int) -> None:
        tell(STARTED())
        good = [verdict(), verdict("COMPLETED")]
        refused = conclude(*good[:place], replace(verdict(), **wrong), *good[place:]).refused
        assert len(refused) == 1
        with settings.NonScopedSession() as session:
            assert {*session.scalars(select(VerdictRow.ti_id))} == {each.ti_id for each in good}

    @pytest.mark.parametrize("place", [0, 1, 2])
    @pytest.mark.parametrize(
        "wrong", [{"id": "n" * 65}, {"message": "m" * 100_001}, {"run_id": "\x00"}, {"session_id": "\ud800"}], ids=str
    )
    def test_a_wrong_note_leaves_its_neighbours_wherever_it_is(self, wrong: dict[str, Any], place: int) -> None:
        tell(STARTED())
        good = [note(id="n-1"), note(id="n-2", task_id="other")]
        bad = note(**{"id": "bad", **wrong})
        refused = conclude(tasks=(*good[:place], bad, *good[place:])).refused
        assert len(refused) == 1
        with settings.NonScopedSession() as session:
            assert {*session.scalars(select(WaitRow.id))} == {"n-1", "n-2"}

    def test_a_verdict_is_stored_with_the_wait_of_its_task(self) -> None:
        tell(STARTED())
        named = verdict()
        keep(wait_of(named.wait_id, conn_id=CONN, meter_id="1", **{**TASK, "task_id": named.task_id}))
        unnamed = verdict("COMPLETED", session_id=None)
        conclude(named, unnamed)
        of_run = read(partial(consequences.waits_of_run, dag_id="usage", run_id="r"))
        assert {(each.session_id, each.status, each.evidence, each.certain) for each in of_run} == {
            ("R-1", "FAILED", "poll", False),
            (None, "COMPLETED", "poll", False),
        }
        assert best()[0] == "FAILED"  # a verdict without a session does not count for one


@pytest.mark.usefixtures("airflow_database")
class TestAnUnknownSession:
    def test_it_is_listed_and_no_reader_of_zuoras_facts_sees_it(self) -> None:
        concluded = verdict(at=0)
        conclude(concluded)
        assert (listed().reported, best()) == (False, ("FAILED", "poll", False, True))
        [shown] = read(lambda session: list_sessions(session, Filters(statuses=("FAILED",)), limit=9)).sessions
        assert (shown.key, shown.run_type, shown.begun_at) == (KEY, "NORMAL", concluded.at)

        def seen(session: Any) -> list[Any]:
            question = MeterQuestion(sessions=frozenset({"R-1"}), since=frozenset({NOW - timedelta(days=1)}))
            sign = connection_health(session, CONN, NOW + timedelta(days=1))
            return [
                *queries.known_sessions(session, CONN, {"1": question}),
                *queries.changed_since(session, NOW - timedelta(days=1), {}),
                *queries.silent_sessions(session, CONN, NOW + timedelta(days=1)),
                *session.scalars(select(SessionRow)),
                *([sign] if sign.silent or sign.without_callouts or sign.ends_without_callouts else []),
            ]

        assert read(seen) == []

    def test_an_older_api_server_finds_a_session_that_ends_nothing_and_is_not_live(self) -> None:
        """During an upgrade it reads all rows: one that it cannot read would cost each wait its feed."""
        conclude(verdict())
        with settings.NonScopedSession() as session:
            found = session.scalars(select(ListedRow)).one()
            state = state_of(found)  # type: ignore[arg-type]  # as the older version reads it
        assert (state.session_id, state.ambiguous, state.terminal, state.starts_dags) == ("R-1", True, False, False)
        assert found.terminal

    def test_the_first_report_makes_it_an_ordinary_one(self) -> None:
        conclude(verdict(at=0))
        tell(STARTED(at=-5))
        assert (row().revision, row().status, listed().reported) == (1, "INITIALIZING", True)
        assert (listed().begun_at, best()) == (NOW - timedelta(seconds=5), ("FAILED", "poll", False, True))
        tell(change("R-1", "COMPLETED", at=5))
        assert best() == ("COMPLETED", "callout", True, True)
        assert listed().best_differs


@pytest.mark.parametrize("first", ["verdict", "report"])
@pytest.mark.parametrize(
    ("report", "expected", "differs"),
    [
        (change("R-1", "FAILED", at=90), ("FAILED", "callout", True, True), False),
        (change("R-1", "COMPLETED", at=90), ("COMPLETED", "callout", True, True), True),
        (change("R-1", "RUNNING", "INITIALIZING", at=90), ("RUNNING", "callout", True, False), True),
        (change("R-1", "RUNNING", "INITIALIZING", at=30), ("FAILED", "poll", False, True), False),
        (change("R-1", "RUNNING", "FAILED", at=90), ("RUNNING", "callout", False, False), False),
    ],
    ids=["alike", "different", "late", "before it", "re-opened"],
)
def test_the_order_of_storing_never_matters(
    airflow_database: str, first: str, report: Any, expected: tuple[Any, ...], differs: bool
) -> None:
    del airflow_database
    tell(STARTED())
    steps: list[Callable[[], Any]] = [lambda: conclude(verdict()), lambda: tell(report)]
    for step in steps if first == "verdict" else reversed(steps):
        step()
    assert (best(), listed().best_differs) == (expected, differs)


@pytest.mark.parametrize("order", list(itertools.permutations(range(3))))
def test_tasks_that_disagree_are_marked_in_either_order(order: tuple[int, ...]) -> None:
    tell(STARTED())
    verdicts = [verdict("COMPLETED"), verdict("FAILED"), verdict("CANCELED")]
    for number in order:
        conclude(verdicts[number])
    assert (best()[0], listed().disagreed) == ("FAILED", True)
    conclude(verdict("COMPLETED", certain=True))
    assert (best(), listed().disagreed) == (("COMPLETED", "poll", True, True), True)


def test_lists_filters_and_counts_go_by_the_best_known_status() -> None:
    tell(STARTED(), change("R-2", "RUNNING", "INITIALIZING"))
    conclude(verdict())

    def found(session: Any) -> list[str]:
        return [each.session_id for each in list_sessions(session, Filters(statuses=("FAILED",)), limit=9).sessions]

    assert read(found) == ["R-1"]
    hour = timedelta(hours=1)
    counts = read(lambda session: count_by_status(session, Filters(), since=NOW - hour, until=NOW + hour, bars=1))
    assert counts.spans == [{"FAILED": 1, "RUNNING": 1}]


def test_the_queries_of_verdicts_and_of_prune_use_indexes() -> None:
    keep(*(session_of(f"R-{number}") for number in range(5)))
    with explained() as plans:
        # No verdict is looked up of a session without a row: it would have stored the row too.
        tell(STARTED())
        tell(change("R-1", "COMPLETED", at=90))
        conclude(verdict())
        list(prune(BEFORE))
    assert sum("mediation_verdict" in statement for statement, _ in plans) == 3
    of_sessions = [
        (statement, plan)
        for statement, plan in plans
        if "mediation_verdict" in statement or "mediation_session" in statement
    ]
    assert [each for each in of_sessions if not uses_an_index(each[1])] == []
    # Not by the kind, which leads to all changes of a connection.
    [changes] = {tuple(plan) for statement, plan in plans if "coalesce(mediation_transition.kind" in statement}
    assert "(conn_id=? AND meter_id=? AND session_id=?)" in changes[0]


class TestRunsOfDags:
    """Each is started exactly once, and only by Zuora's reports."""

    @pytest.fixture
    def airflow(self) -> Airflow:
        made = Airflow()
        for status in ("FAILED", "COMPLETED"):
            made.know(status.lower(), on_meter_session("1", status))
        return made

    def replayed(self, status: str) -> int:
        uri = asset_uri(CONN, "1", status)
        done = replay(uri=uri, since=datetime.min.replace(tzinfo=NOW.tzinfo) + timedelta(days=9))
        return sum(len(each.missed) for each in done)

    def test_a_verdict_starts_none_and_is_not_replayed(self, airflow: Airflow) -> None:
        tell(STARTED())
        conclude(verdict("COMPLETED", certain=True), verdict(session_id="R-2"))
        assert (self.replayed("COMPLETED"), self.replayed("FAILED")) == (0, 0)
        assert (airflow.runs("completed"), airflow.runs("failed")) == ([], [])
        with settings.NonScopedSession() as session:
            assert session.scalars(select(AssetEvent)).all() == []

    @pytest.mark.parametrize("status", ["FAILED", "COMPLETED"])
    def test_a_callout_starts_one_regardless_of_what_a_task_concluded(self, airflow: Airflow, status: str) -> None:
        tell(STARTED())
        conclude(verdict("COMPLETED", certain=True))
        callout = change("R-1", status, at=90)
        tell(callout)
        conclude(verdict("COMPLETED", at=95))
        tell(callout, change("R-1", "RUNNING", "INITIALIZING", at=99))
        assert self.replayed(status) == 0
        assert airflow.runs(status.lower()) == ["R-1"]

    def test_a_poll_that_drives_starts_one_and_the_callout_after_it_none(self, airflow: Airflow) -> None:
        now = timedelta(seconds=(datetime.now(NOW.tzinfo) - NOW).total_seconds())
        tell(change("R-1", "RUNNING", "INITIALIZING", at=now.total_seconds() - 60))
        tell(poll("RUNNING", -40))
        conclude(verdict("COMPLETED", at=now.total_seconds() - 30))
        tell(poll("COMPLETED", -20))
        tell(change("R-1", "COMPLETED", at=now.total_seconds()))
        assert self.replayed("COMPLETED") == 0
        assert airflow.runs("completed") == ["R-1"]
        assert best() == ("COMPLETED", "callout", True, True)


@pytest.mark.usefixtures("airflow_database")
class TestPruning:
    def old(self, session_id: str | None, at: datetime = OLD) -> TaskVerdict:
        """A verdict that was stored when it was made."""
        concluded = replace(verdict(session_id=session_id, meter_id="1001"), at=at)
        record((), conn_id="zuora", verdicts=(concluded,))
        with settings.NonScopedSession() as session:
            session.get_one(VerdictRow, concluded.ti_id).created_at = at
            session.commit()
        return concluded

    def left(self) -> list[str | None]:
        with settings.NonScopedSession() as session:
            return sorted(session.scalars(select(VerdictRow.session_id)), key=str)

    def test_sessions_that_ended_by_a_verdict_are_deleted_with_it(self) -> None:
        for session_id in ("R-1", "R-2", "R-3"):
            keep(session_of(session_id, status="RUNNING", terminal=False))
        self.old("R-1")
        self.old("R-2", NEW)  # concluded lately
        self.old("R-4")  # without any report
        assert old_sessions(BEFORE) == (3, 1)
        would = sum(prune(BEFORE, dry_run=True), Pruned())
        done = sum(prune(BEFORE), Pruned())
        assert (done.sessions, done.others, done.waits) == (2, 2, 2)
        assert would == done
        assert self.left() == ["R-2"]
        assert old_sessions(BEFORE) == (1, 1)

    def test_a_verdict_without_a_session_is_deleted_with_its_wait(self) -> None:
        self.old(None)
        self.old(None, NEW)
        done = sum(prune(BEFORE), Pruned())
        assert (done.sessions, done.others, done.waits) == (0, 1, 1)
        assert self.left() == [None]


@pytest.mark.usefixtures("airflow_database")
class TestNotes:
    def of_run(self) -> list[consequences.Wait]:
        return read(partial(consequences.waits_of_run, dag_id="usage", run_id="r"))

    def test_a_task_that_does_not_wait_is_listed_with_the_session(self) -> None:
        tell(STARTED())
        conclude(tasks=(note(message="old"),))
        conclude(tasks=(note(),))
        [found] = self.of_run()
        assert (found.mode, found.session_id, found.ended_at, found.goes_on) == ("task", "R-1", NOW, False)
        assert found.note == to_plain(note())
        of_session = read(lambda session: consequences.waits_of(session, [listed()]))
        assert [each.task_id for each in of_session[KEY]] == ["wait"]

    def test_the_note_of_a_task_that_waited_keeps_its_wait(self) -> None:
        keep(wait_of("w", conn_id=CONN, meter_id="1", session_id="R-1", ended_at=NOW, outcome="MET", **TASK))
        conclude(tasks=(note(session_id=None),))
        [found] = self.of_run()
        assert (found.mode, found.outcome, found.session_id) == ("triggerer", "MET", "R-1")
        assert found.note is not None
        assert found.note["followed"] == ["alert"]
