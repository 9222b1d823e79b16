"""A session in Airflow: its own runs and no other's, the Dags that missed it, the tasks that waited."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from functools import partial
from typing import TYPE_CHECKING, Any, ClassVar

import pytest
from airflow import settings
from airflow.models.asset import AssetEvent, AssetPartitionDagRun
from airflow.models.dagrun import DagRun
from airflow.models.xcom import XComModel
from airflow.sdk import Asset, PartitionedAssetTimetable, StartOfDayMapper
from sqlalchemy import delete, select, update

from airflow_mediation_provider.assets import on_meter_session
from airflow_mediation_provider.journal import triggered_runs as consequences
from airflow_mediation_provider.journal.replay import replay
from airflow_mediation_provider.journal.session_list import (
    ListedSession,
    SessionKey,
    find_session,
    list_sessions,
)
from airflow_mediation_provider.journal.session_search import Filters
from airflow_mediation_provider.journal.tables import SessionRow
from airflow_mediation_provider.journal.transaction import read
from airflow_mediation_provider.journal.triggered_runs import Assets, Consumer, Scheduled, Started, StartedRun, Wait
from airflow_mediation_provider.protocol.sessions.asset_uri import asset_uri
from airflow_mediation_provider.protocol.transition import Source
from tests.unit.journal.old_rows import is_in, keep, session_of, wait_of
from tests.unit.journal.plans import explained, uses_an_index
from tests.unit.journal.scheduling import CONN, NOW, SINCE, Airflow, change, poll, tell

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from sqlalchemy.orm import Session

COMPLETED = asset_uri(CONN, "1", "COMPLETED")


@pytest.fixture
def airflow(sqlite_database: str, airflow_on: Callable[[str], str]) -> Airflow:
    airflow_on(sqlite_database)
    return Airflow()


@pytest.fixture
def each_airflow(airflow_database: str) -> Airflow:
    """On SQLite and on PostgreSQL."""
    del airflow_database
    return Airflow()


def key(session_id: str = "R-1", *, meter: str = "1", conn: str = CONN) -> SessionKey:
    return SessionKey(conn, meter, session_id)


def known(which: SessionKey) -> ListedSession:
    found = read(partial(find_session, key=which))
    assert found is not None
    return found


def everything() -> tuple[ListedSession, ...]:
    return read(lambda session: list_sessions(session, Filters(), limit=99)).sessions


def runs() -> dict[SessionKey, list[StartedRun]]:
    return {which: of.runs for which, of in started_by(*everything()).items() if of.runs}


def started_by(*sessions: ListedSession) -> Mapping[SessionKey, Started]:
    def work(session: Session) -> Mapping[SessionKey, Started]:
        return consequences.started(session, sessions, Assets(session, {each.meter for each in sessions}))

    return read(work)


def started() -> dict[SessionKey, list[tuple[str, str]]]:
    """Which session triggered a run of which Dag, on which status."""
    return {which: sorted((run.dag_id, run.status) for run in of) for which, of in runs().items()}


def scheduled(*meters: tuple[str, str]) -> dict[tuple[str, str], list[Scheduled]]:
    return read(lambda session: dict(consequences.scheduled(session, Assets(session, meters or [(CONN, "1")]))))


def became(which: SessionKey | None = None, *, later: timedelta = timedelta(minutes=2)) -> dict[str, Consumer]:
    """The result of a session for each Dag, some time after it was written."""
    listed = known(which or key())
    of_meter = scheduled(listed.meter).get(listed.meter, [])
    started = started_by(listed).get(listed.key)
    found = consequences.consumers(listed, of_meter, started, listed.updated_at + later)
    return {each.dag_id: each for each in found}


def missed(which: SessionKey | None = None, **options: Any) -> list[str]:
    return [dag_id for dag_id, consumer in became(which, **options).items() if consumer.missed]


class TestRuns:
    def test_a_session_has_the_runs_that_it_triggered_and_a_run_its_session(self, each_airflow: Airflow) -> None:
        each_airflow.know("load", on_meter_session("1", "COMPLETED"))
        each_airflow.know("report", on_meter_session("1", "COMPLETED") | on_meter_session("1", "FAILED"))
        each_airflow.know("elsewhere", on_meter_session("2", "COMPLETED"))
        each_airflow.know("another", on_meter_session("1", "COMPLETED", mediation_conn_id="other"))
        assert runs() == {}
        tell(change("R-1", "COMPLETED"), change("R-2", "FAILED"), change("R-3", "RUNNING"))
        assert runs() == {}  # the scheduler makes the runs
        each_airflow.schedule()
        assert started() == {
            key("R-1"): [("load", "COMPLETED"), ("report", "COMPLETED")],
            key("R-2"): [("report", "FAILED")],
        }
        [load, report] = sorted(runs()[key("R-1")])
        assert (load.state, load.start_date) == ("queued", None)
        for run in (load, report):
            assert read(partial(consequences.sessions_of_run, dag_id=run.dag_id, run_id=run.run_id)) == [key("R-1")]
        assert read(partial(consequences.sessions_of_run, dag_id="load", run_id=report.run_id)) == []

    def test_the_same_id_at_another_meter_or_over_another_connection_is_another_session(
        self, each_airflow: Airflow
    ) -> None:
        meters = [("1", CONN, "one"), ("2", CONN, "two"), ("1", "other", "three"), ("11", CONN, "four")]
        for meter, conn, dag_id in meters:
            each_airflow.know(dag_id, on_meter_session(meter, "COMPLETED", mediation_conn_id=conn))
            tell(change("R-1", "COMPLETED", meter=meter), conn=conn)
        each_airflow.schedule()
        assert started() == {
            key(meter="1"): [("one", "COMPLETED")],
            key(meter="2"): [("two", "COMPLETED")],
            key(conn="other"): [("three", "COMPLETED")],
            key(meter="11"): [("four", "COMPLETED")],
        }

    @pytest.mark.parametrize(
        ("conn", "meter", "twin_conn", "twin_meter"),
        [
            ("zuora", "1", "Zuora", "1"),  # SQLite compares patterns without case
            ("a_b", "1", "axb", "1"),
            ("c", "1_", "c", "1x"),
            ("eu/1", "a:b", "eu", "1"),
        ],
    )
    def test_similar_names_are_kept_apart(
        self, airflow: Airflow, conn: str, meter: str, twin_conn: str, twin_meter: str
    ) -> None:
        airflow.know("own", on_meter_session(meter, "COMPLETED", mediation_conn_id=conn))
        airflow.know("twin", on_meter_session(twin_meter, "COMPLETED", mediation_conn_id=twin_conn))
        tell(change("R-1", "COMPLETED", meter=meter), conn=conn)
        tell(change("R-1", "COMPLETED", meter=twin_meter), conn=twin_conn)
        airflow.schedule()
        assert started() == {
            key(conn=conn, meter=meter): [("own", "COMPLETED")],
            key(conn=twin_conn, meter=twin_meter): [("twin", "COMPLETED")],
        }
        assert [each.dag_id for each in scheduled((conn, meter))[conn, meter]] == ["own"]

    def test_a_run_of_each_status_that_was_reached(self, airflow: Airflow) -> None:
        airflow.know("load", on_meter_session("1", "COMPLETED"))
        airflow.know("announce", on_meter_session("1", "RUNNING"))
        tell(change("R-1", "RUNNING", "INITIALIZING"))
        airflow.schedule()
        tell(change("R-1", "COMPLETED", at=1))
        airflow.schedule()
        assert started() == {key(): [("announce", "RUNNING"), ("load", "COMPLETED")]}
        assert [run.dag_id for run in runs()[key()]] == ["announce", "load"]  # the first one first

    def test_a_missed_run_that_was_started_later_is_shown(self, airflow: Airflow) -> None:
        tell(change("R-1", "COMPLETED"))
        airflow.know("load", on_meter_session("1", "COMPLETED"))
        list(replay(dag_id="load", since=SINCE))
        airflow.schedule()
        assert started() == {key(): [("load", "COMPLETED")]}

    def test_runs_of_several_sessions_that_merge_them_and_of_none(self, airflow: Airflow) -> None:
        daily = PartitionedAssetTimetable(assets=Asset(COMPLETED), default_partition_mapper=StartOfDayMapper())
        airflow.know("load", on_meter_session("1", "COMPLETED"))
        airflow.know("daily", daily)
        tell(change("R-1", "COMPLETED"))
        airflow.schedule()
        assert started() == {key(): [("load", "COMPLETED")]}
        assert read(partial(consequences.sessions_of_run, dag_id="nowhere", run_id="manual__1")) == []

    def test_a_run_triggered_by_a_poll_names_no_session(self, airflow: Airflow) -> None:
        airflow.know("load", on_meter_session("1", "COMPLETED"))
        for at, status in enumerate(["RUNNING", "COMPLETED"]):
            tell(poll(status, at - 10))
        [partition] = airflow.runs("load")
        [run_id] = airflow.run_ids("load")
        [found] = read(partial(consequences.sessions_of_run, dag_id="load", run_id=run_id))
        assert found == key(partition)
        assert read(partial(find_session, key=found)) is None

    def test_a_poll_is_announced_for_the_only_live_session_also_after_a_long_silence(self, airflow: Airflow) -> None:
        airflow.know("load", on_meter_session("1", "COMPLETED"))
        tell(change("R-1", "RUNNING", None, observed_at=datetime.now(UTC), source=Source.RUN))
        with settings.get_engine().begin() as connection:
            hours_ago = datetime.now(UTC) - timedelta(hours=9)
            connection.execute(update(SessionRow).values(first_observed_at=hours_ago, updated_at=hours_ago))
        for at, status in enumerate(["RUNNING", "COMPLETED"]):
            tell(poll(status, at))
        airflow.schedule()
        assert started() == {key(): [("load", "COMPLETED")]}

    def test_without_sessions_or_dags_there_is_no_query(self, airflow: Airflow) -> None:
        assert started_by() == {}
        tell(change("R-1", "COMPLETED"))
        assert runs() == {}
        assert scheduled() == {}


class TestTriggeredByTasks:
    """A task leaves the address of the run that it triggers, and the run's id once it has."""

    CONF: ClassVar[dict[str, Any]] = {"session_id": "R-1", "meter_id": "1", "mediation_conn_id": CONN}

    @pytest.fixture(autouse=True)
    def _runs(self, airflow_database: str) -> None:
        keep(wait_of("w", conn_id=CONN, meter_id="1", session_id="R-1", dag_id="usage", run_id="r-1"))

    def run(self, dag_id: str, run_id: str, conf: Any = None) -> int:
        with settings.NonScopedSession() as session:
            run = DagRun(dag_id=dag_id, run_id=run_id, run_type="manual", run_after=NOW, conf=conf, state="success")
            session.add(run)
            session.commit()
            return run.id

    def leaves(self, task_id: str, *, link: str | None, triggered: str | None, run_id: str = "r-1") -> None:
        """A task of the Dag that waited for the session."""
        task = wait_of("", dag_id="usage", run_id=run_id, task_id=task_id)
        is_in("success", task)
        of_task = {"dag_id": "usage", "run_id": run_id, "task_id": task_id, "map_index": -1}
        with settings.NonScopedSession() as session:
            of_run = session.scalar(select(DagRun.id).filter_by(dag_id="usage", run_id=run_id))
            for name, value in {"_link_TriggerDagRunLink": link, "trigger_run_id": triggered}.items():
                if value is not None:
                    session.add(XComModel(dag_run_id=of_run, key=name, value=value, **of_task))
            session.commit()

    def found(self) -> list[tuple[str, str, str, str]]:
        def work(session: Session) -> list[consequences.TaskTriggered]:
            waits = consequences.waits_of_run(session, "usage", "r-1")
            return consequences.triggered_by_tasks(session, key(), waits)

        return [(each.dag_id, each.run_id, each.state, each.by.task_id) for each in read(work)]

    def test_a_run_with_the_session_in_its_configuration_is_found(self) -> None:
        for base, run_id in [
            ("http://airflow:8080/base", "a"),
            ("", "session-R-1"),
            ("", "manual__2026-01-01T00:00:00+00:00"),
        ]:
            self.run("load", run_id, self.CONF)
            self.leaves(f"load_{run_id[:2]}", link=f"{base}/dags/load/runs/{run_id}", triggered=run_id)
        self.run("other", "a", {"session_id": "R-1"})
        self.leaves("other", link="/dags/other/runs/a", triggered="a")
        assert self.found() == [
            ("load", "a", "success", "load_a"),
            ("load", "session-R-1", "success", "load_se"),
            ("load", "manual__2026-01-01T00:00:00+00:00", "success", "load_ma"),
            ("other", "a", "success", "other"),
        ]

    @pytest.mark.parametrize(
        "conf",
        [
            None,
            [],
            {},
            {"session_id": "R-2"},
            {**CONF, "meter_id": "2"},
            {**CONF, "mediation_conn_id": "elsewhere"},
        ],
    )
    def test_a_run_for_another_session_is_not(self, conf: Any) -> None:
        self.run("load", "a", conf)
        self.leaves("load", link="/dags/load/runs/a", triggered="a")
        assert self.found() == []

    @pytest.mark.parametrize(
        ("link", "triggered"),
        [("/dags/load/runs/a", None), (None, "a"), ("/dags/load/runs/b", "a"), ("/dags/gone/runs/a", "a")],
    )
    def test_a_run_that_the_task_did_not_trigger_is_not(self, link: str | None, triggered: str | None) -> None:
        """Such as one that was there before: the task failed."""
        self.run("load", "a", self.CONF)
        self.leaves("load", link=link, triggered=triggered)
        assert self.found() == []

    def test_of_each_run_only_so_many_values_are_searched(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """Thousands of mapped tasks may have left some."""
        self.run("load", "a", self.CONF)
        for task_id in ("load", "mapped", "then_load"):
            self.leaves(task_id, link="/dags/load/runs/a", triggered="a" if task_id == "load" else None)
        assert [by for *_, by in self.found()] == ["load"]
        self.run("load", "b", self.CONF)
        self.leaves("zulu", link="/dags/load/runs/b", triggered="b")
        assert [by for *_, by in self.found()] == ["load", "zulu"]
        monkeypatch.setattr(consequences, "_LEFT", 4)
        assert [by for *_, by in self.found()] == ["load"]

    def test_a_task_of_another_run_is_not_searched(self) -> None:
        self.run("load", "a", self.CONF)
        self.run("usage", "r-2")
        self.leaves("load", link="/dags/load/runs/a", triggered="a", run_id="r-2")
        assert self.found() == []


class TestScheduled:
    def test_each_dag_with_each_status_of_the_meter(self, each_airflow: Airflow) -> None:
        before = datetime.now(UTC)
        each_airflow.know("load", on_meter_session("1", "COMPLETED"))
        each_airflow.know("both", on_meter_session("1", "COMPLETED") | on_meter_session("1", "FAILED"), paused=True)
        each_airflow.know("polled", on_meter_session("1", "PAUSED", poll_interval=60))
        each_airflow.know("gone", on_meter_session("1", "COMPLETED"))
        each_airflow.alter("gone", is_stale=True)
        each_airflow.know("elsewhere", on_meter_session("2", "COMPLETED"))
        each_airflow.know("daily", "@daily")
        found = scheduled((CONN, "1"), (CONN, "3"))
        assert set(found) == {(CONN, "1")}
        assert [(each.dag_id, each.status, each.paused) for each in found[CONN, "1"]] == [
            ("both", "COMPLETED", True),
            ("both", "FAILED", True),
            ("load", "COMPLETED", False),
            ("polled", "PAUSED", False),
        ]
        assert all(before <= each.since <= datetime.now(UTC) for each in found[CONN, "1"])


class TestMissed:
    def late(self, session_id: str, status: str, before: str | None = "RUNNING", **told: Any) -> Any:
        """A change that was received after the Dags were stored."""
        return change(session_id, status, before, **{"observed_at": datetime.now(UTC), **told})

    def test_a_paused_dag_misses_a_session(self, each_airflow: Airflow) -> None:
        each_airflow.know("load", on_meter_session("1", "COMPLETED"))
        each_airflow.know("asleep", on_meter_session("1", "COMPLETED"), paused=True)
        each_airflow.know("on_failure", on_meter_session("1", "FAILED"))
        tell(self.late("R-1", "COMPLETED"))
        each_airflow.schedule()
        found = became(later=timedelta(0))  # a paused Dag gets no run later
        assert {dag_id: (each.status, each.paused, each.missed) for dag_id, each in found.items()} == {
            "asleep": ("COMPLETED", True, True),
            "load": ("COMPLETED", False, False),
            "on_failure": ("FAILED", False, False),
        }
        each_airflow.pause("asleep", paused=False)
        list(replay(dag_id="asleep", since=SINCE))
        assert [dag_id for dag_id, each in became().items() if each.queued] == ["asleep"]
        assert missed() == []
        each_airflow.schedule()
        assert missed() == []
        assert not any(each.queued for each in became().values())

    def test_no_run_counts_as_missed_after_airflow_db_clean(self, airflow: Airflow) -> None:
        """It deletes the events of old sessions with their runs, and so which Dags ran is unknown."""
        airflow.know("load", on_meter_session("1", "COMPLETED"), paused=True)
        tell(self.late("R-1", "COMPLETED"))
        assert missed() == ["load"]
        with settings.get_engine().begin() as connection:
            connection.execute(delete(AssetEvent))
        assert missed() == []

    def test_no_run_counts_as_missed_while_it_is_queued(self, airflow: Airflow) -> None:
        """However long that takes: the scheduler may be down."""
        airflow.know("load", on_meter_session("1", "COMPLETED"))
        tell(self.late("R-1", "COMPLETED"), self.late("R-2", "COMPLETED"))
        assert [(each.missed, each.queued) for each in became(later=timedelta(hours=1)).values()] == [(False, True)]

    def test_no_run_counts_as_missed_while_the_scheduler_may_still_make_it(self, airflow: Airflow) -> None:
        airflow.know("load", on_meter_session("1", "COMPLETED"))
        tell(self.late("R-1", "COMPLETED"))
        # As between the scheduler's transactions.
        with settings.get_engine().begin() as connection:
            connection.execute(delete(AssetPartitionDagRun))
        assert missed(later=timedelta(seconds=59)) == []
        assert missed(later=timedelta(seconds=61)) == ["load"]

    def test_a_session_before_the_dag_existed_is_not_missed(self, airflow: Airflow) -> None:
        tell(change("R-1", "COMPLETED"))
        airflow.know("load", on_meter_session("1", "COMPLETED"))
        assert missed() == []

    def test_a_dag_with_a_run_of_an_earlier_arrival_has_missed_the_later_one(self, airflow: Airflow) -> None:
        """A Dag gets one run for each session and arrival."""
        airflow.know("either", on_meter_session("1", "COMPLETED") | on_meter_session("1", "FAILED"))
        tell(self.late("R-1", "COMPLETED"))
        airflow.schedule()
        airflow.pause("either")
        tell(self.late("R-1", "FAILED"))
        airflow.schedule()
        assert (known(key()).status, known(key()).conflict) == ("FAILED", True)
        assert missed() == ["either"]

    def test_a_session_that_triggers_no_dag_is_not_missed(self, airflow: Airflow) -> None:
        airflow.know("on_run", on_meter_session("1", "RUNNING"), paused=True)
        airflow.know("on_test", on_meter_session("1", "TESTING_PASSED"), paused=True)
        tell(self.late("R-1", "RUNNING", "INITIALIZING", run_type="DEBUG"))
        assert missed() == []  # a test run triggers no Dag that is scheduled on live runs
        tell(self.late("R-1", "TESTING_PASSED", run_type="DEBUG"))
        assert missed() == ["on_test"]
        tell(self.late("R-2", "RUNNING", "INITIALIZING"))
        assert missed(key("R-2")) == ["on_run"]
        loop = [("RUNNING", "PAUSED"), ("PAUSED", "RUNNING")]
        tell(*(self.late("R-2", status, before, notification_id=None) for before, status in loop))
        assert known(key("R-2")).ambiguous
        assert missed(key("R-2")) == []


def test_many_runs_of_one_session_hide_none_of_another(airflow: Airflow, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(consequences, "_MOST", 2)
    for number in range(3):
        airflow.know(f"load_{number}", on_meter_session("1", "COMPLETED"))
    tell(change("R-1", "COMPLETED"), change("R-2", "COMPLETED"))
    airflow.schedule()
    keep(*(wait_of(f"w{number}", conn_id=CONN, meter_id="1", session_id="R-1") for number in range(3)))
    keep(wait_of("v", conn_id=CONN, meter_id="1", session_id="R-2"))
    assert {which.session_id: len(of) for which, of in runs().items()} == {"R-1": 2, "R-2": 2}
    waits = read(lambda session: consequences.waits_of(session, everything()))
    assert {which.session_id: len(of) for which, of in waits.items()} == {"R-1": 2, "R-2": 1}


class TestWaits:
    @pytest.fixture(autouse=True)
    def _rows(self, airflow_database: str) -> None:
        del airflow_database

    def at(self, minute: int) -> datetime:
        return NOW + timedelta(minutes=minute)

    def tasks(self, waits: list[Wait]) -> list[str]:
        return [f"{each.task_id}[{each.map_index}]" for each in waits]

    def test_waits_are_found_by_session_by_run_and_by_task(self) -> None:
        waits: list[dict[str, Any]] = [
            {"session_id": "R-1", "task_id": "a", "created_at": self.at(1)},
            {"session_id": "R-1", "task_id": "b", "created_at": self.at(2), "run_id": "s"},
            {"session_id": "R-1", "task_id": "c", "created_at": self.at(3), "conn_id": "other"},
            {"session_id": "R-2", "task_id": "a", "created_at": self.at(4), "map_index": 3},
            {"session_id": None, "task_id": "d", "created_at": self.at(5)},
            {"session_id": "R-2", "task_id": "a", "created_at": self.at(6), "dag_id": "elsewhere"},
            {"session_id": "R-3", "task_id": "a", "created_at": self.at(7), "conn_id": "other"},
        ]
        keep(*(wait_of(f"w{number}", **values) for number, values in enumerate(waits)))
        keep(*(session_of(session_id) for session_id in ("R-1", "R-2", "R-9")))
        of = read(lambda session: consequences.waits_of(session, everything()))
        assert {each.session_id: self.tasks(found) for each, found in of.items()} == {
            "R-1": ["b[-1]", "a[-1]"],
            "R-2": ["a[-1]", "a[3]"],
        }
        assert read(lambda session: consequences.waits_of(session, [])) == {}
        of_run = read(partial(consequences.waits_of_run, dag_id="usage", run_id="r"))
        assert self.tasks(of_run) == ["a[-1]", "d[-1]", "a[3]", "c[-1]", "a[-1]"]

        def of_task(task_id: str, map_index: int = -1) -> Wait | None:
            return read(
                partial(consequences.wait_of_task, dag_id="usage", run_id="r", task_id=task_id, map_index=map_index)
            )

        last, mapped, unnamed = of_task("a"), of_task("a", 3), of_task("d")
        assert last is not None
        assert mapped is not None
        assert unnamed is not None
        assert (last.session_id, mapped.session_id, unnamed.session_id) == ("R-3", "R-2", None)
        assert (of_task("b"), of_task("a", 0), of_task("nowhere")) == (None, None, None)

    @pytest.mark.parametrize(
        ("state", "goes_on"),
        [("deferred", True), ("running", True), ("up_for_reschedule", True), ("queued", True), ("success", False)],
    )
    def test_a_wait_without_a_reported_end_ends_with_its_task(self, state: str, goes_on: bool) -> None:
        wait = wait_of("w")
        is_in(state, wait)
        keep(wait, wait_of("left", task_id="left", outcome="left"))
        keep(wait_of("other", task_id="gone"), tasks=False)  # `airflow tasks test` and `airflow db clean` delete it
        found = read(partial(consequences.waits_of_run, dag_id="usage", run_id="r"))
        assert {each.task_id: each.goes_on for each in found} == {"wait": goes_on, "left": True, "gone": False}

    def test_a_wait_has_all_reported_fields(self) -> None:
        keep(
            wait_of(
                "w",
                session_id="R-1",
                condition={"statuses": ["COMPLETED"]},
                until=self.at(60),
                seen_at=self.at(2),
                ended_at=self.at(3),
                outcome="met",
                status="COMPLETED",
                evidence="poll",
                certain=False,
                note={"kind": "branch"},
                created_at=self.at(1),
            )
        )
        [wait] = read(partial(consequences.waits_of_run, dag_id="usage", run_id="r"))
        assert wait == Wait(
            conn_id="zuora",
            meter_id="1001",
            session_id="R-1",
            condition={"statuses": ["COMPLETED"]},
            dag_id="usage",
            run_id="r",
            task_id="wait",
            map_index=-1,
            try_number=1,
            mode="triggerer",
            created_at=self.at(1),
            until=self.at(60),
            seen_at=self.at(2),
            ended_at=self.at(3),
            outcome="met",
            status="COMPLETED",
            evidence="poll",
            certain=False,
            note={"kind": "branch"},
            goes_on=False,
            task_state=None,
            run_state=None,
        )


def test_the_queries_of_waits_use_indexes(airflow_on: Callable[[str], str], sqlite_database: str) -> None:
    airflow_on(sqlite_database)
    keep(session_of("R-1"), session_of("R-2"), wait_of("w", session_id="R-1"))
    listed = everything()
    with explained() as plans:
        read(lambda session: consequences.waits_of(session, listed))
        read(partial(consequences.waits_of_run, dag_id="usage", run_id="r"))
        read(partial(consequences.wait_of_task, dag_id="usage", run_id="r", task_id="wait", map_index=-1))
        read(partial(consequences.open_waits, conn_id="zuora", limit=9))
        read(partial(consequences.waiting_for, conn_id="zuora", meter_id="1001"))
    assert len(plans) == 5
    assert [each for each in plans if not uses_an_index(each[1])] == []
    # Of what goes on: a connection or a meter may have had very many waits that ended.
    assert all("ix_mediation_wait_ended_at (ended_at=?)" in str(plan) for _, plan in plans[3:])
