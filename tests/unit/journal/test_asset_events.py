"""How Airflow's asset manager is called, when its listeners are called, and what its errors do."""

from __future__ import annotations

import inspect
from typing import Any

import pytest
from airflow import settings
from airflow.assets.manager import AssetManager
from airflow.models.asset import AssetEvent
from sqlalchemy import func, select

from airflow_mediation_provider.journal.tables import TransitionRow
from airflow_mediation_provider.journal.writer import JournalUnavailable, record
from tests.unit.journal.test_writer import CONN, add_asset, all_of, change, events

TELLS_LATER = "callback_sink" in inspect.signature(AssetManager.register_asset_change).parameters


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Any]]:
    """The options of each event that is passed to Airflow."""
    calls: list[dict[str, Any]] = []

    def register(**options: Any) -> None:
        calls.append(options)

    register.__signature__ = inspect.signature(AssetManager.register_asset_change)  # type: ignore[attr-defined]
    monkeypatch.setattr(AssetManager, "register_asset_change", staticmethod(register))
    return calls


@pytest.mark.usefixtures("airflow_database")
class TestEmission:
    def test_only_assets_that_a_dag_names_get_events_in_the_order_of_their_ids(self, asked: list[dict[str, Any]]):
        add_asset("RUNNING")
        add_asset("COMPLETED")
        told = [change(None, "FAILED", "n-1", session="R-1"), change(None, "COMPLETED", "n-2", session="R-2")]
        recorded = record([*told, change(None, "RUNNING", "n-3", session="R-3")], conn_id=CONN)
        assert [uri.rsplit("/", 1)[1] for uri in recorded.emitted] == ["RUNNING", "COMPLETED"]
        assert [(each["asset"].uri, each["partition_key"]) for each in asked] == list(
            zip(recorded.emitted, ["R-3", "R-2"], strict=True)
        )

    def test_an_event_has_the_reported_session_with_its_evidence_and_certainty(self, asked: list[dict[str, Any]]):
        add_asset("FAILED")
        record([change("RUNNING", "COMPLETED", "n-1"), change("RUNNING", "FAILED", "n-2", at=1)], conn_id=CONN)
        (options,) = asked
        told = {name: options["extra"][name] for name in ("meter_id", "session_id", "status", "previous_status")}
        assert told == {"meter_id": "1", "session_id": "R-1", "status": "FAILED", "previous_status": "RUNNING"}
        assert (options["extra"]["evidence"], options["extra"]["certain"]) == ("callout", False)

    @pytest.mark.parametrize(
        ("team", "expected"),
        [("billing", {"source_is_api": True, "api_user_teams": {"billing"}}), (None, {"source_is_api": False})],
    )
    def test_with_teams_a_connection_starts_the_dags_of_its_team_and_one_without_a_team_those_that_allow_it(
        self, asked: list[dict[str, Any]], monkeypatch: pytest.MonkeyPatch, team: str | None, expected: dict[str, Any]
    ):
        add_asset("COMPLETED")
        record([change("RUNNING", "COMPLETED", "n-1")], conn_id=CONN, team=team)
        assert "api_user_teams" not in asked.pop()
        monkeypatch.setenv("AIRFLOW__CORE__MULTI_TEAM", "True")
        record([change("RUNNING", "COMPLETED", "n-2", session="R-2")], conn_id=CONN, team=team)
        (options,) = asked
        assert {name: options[name] for name in expected} == expected

    @pytest.mark.skipif(not TELLS_LATER, reason="this Airflow calls listeners before the commit")
    def test_listeners_are_called_after_the_commit_and_their_errors_do_not_fail_the_call(
        self, monkeypatch: pytest.MonkeyPatch
    ):
        add_asset("COMPLETED")
        heard = []

        def listen(**_: Any) -> None:
            with settings.NonScopedSession() as session:
                heard.append(session.scalar(select(func.count()).select_from(AssetEvent)))
            raise RuntimeError("a listener's own")

        monkeypatch.setattr(AssetManager, "notify_asset_changed", staticmethod(listen))
        assert record([change("RUNNING", "COMPLETED", "n-1")], conn_id=CONN).new == 1
        assert heard == [1]

    def test_an_event_that_airflow_does_not_accept_now_is_retried_later(self, monkeypatch: pytest.MonkeyPatch):
        """For example after an upgrade, until its Dags are parsed again: Zuora sends the callout once more."""
        add_asset("COMPLETED")
        told = [change("RUNNING", "COMPLETED", "n-1")]

        def refuse(*_: Any, **__: Any) -> None:
            raise RuntimeError("Could not find serialized dag for dag_id=load")

        with monkeypatch.context() as upgrading:
            upgrading.setattr(AssetManager, "_queue_dagruns", refuse)
            with pytest.raises(JournalUnavailable, match="meters/1/COMPLETED: Could not find serialized dag"):
                record(told, conn_id=CONN)
        assert (all_of(TransitionRow), events()) == ([], [])
        assert record(told, conn_id=CONN).new == 1
        assert len(events()) == 1
