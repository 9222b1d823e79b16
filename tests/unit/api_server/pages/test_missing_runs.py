"""The page of missing runs: a dry run first, then exactly the chosen runs, once, and in Airflow's audit log."""

from __future__ import annotations

import json
from datetime import timedelta
from typing import TYPE_CHECKING, Any

import pytest
from airflow import settings
from airflow.models.log import Log
from airflow.sdk import Asset
from sqlalchemy import select

from airflow_mediation_provider.api_server.pages import missing_runs
from airflow_mediation_provider.assets import on_meter_session
from airflow_mediation_provider.journal import triggered_runs
from airflow_mediation_provider.journal.session_list import SessionKey
from airflow_mediation_provider.protocol.sessions.asset_uri import asset_uri
from tests.unit.api_server.pages.conftest import now
from tests.unit.api_server.pages.html import asked, parsed
from tests.unit.journal.scheduling import CONN, change, tell

if TYPE_CHECKING:
    from tests.unit.api_server.pages.conftest import Browser, Manager
    from tests.unit.api_server.pages.html import Element
    from tests.unit.journal.scheduling import Airflow


@pytest.fixture(autouse=True)
def _at_once(airflow: Airflow, monkeypatch: pytest.MonkeyPatch) -> None:
    del airflow
    monkeypatch.setattr(triggered_runs, "_SCHEDULED_WITHIN", timedelta(0))


def ends(*numbers: int, meter: str = "1", status: str = "COMPLETED") -> None:
    tell(*(change(f"R-{number}", status, meter=meter, observed_at=now()) for number in numbers))


def run(session_id: str, dag_id: str = "load", *, meter: str = "1", status: str = "COMPLETED") -> str:
    return json.dumps([dag_id, CONN, meter, session_id, status])


def startable(page: Element) -> list[str]:
    return [each.attributes["value"] for each in page.all("input", name="run")]


def refused(page: Element) -> list[str]:
    """Each heading and reason of what cannot be started."""
    part = page.one("div", id="missing")
    headings = [each.text for each in part.all("h2") if "cannot" in each.text]
    return [f"{heading}. {why.text}" for heading, why in zip(headings, part.all("p", class_="notice"), strict=True)]


async def press(alice: Browser, *runs: str, headers: dict[str, str] | None = None, **where: str) -> Any:
    return await alice.client.post(
        f"{alice.base}/mediation/missing-runs/start",
        params=where,
        data={"run": list(runs)},
        headers={"Sec-Fetch-Site": "same-origin"} if headers is None else headers,
    )


async def results(alice: Browser, *runs: str) -> dict[str, str]:
    """What the page shows after the button, by Dag and session."""
    reply = await press(alice, *runs)
    assert reply.status_code == 200, reply.text
    return {f"{row['Dag']} {row['Session']}": row["Result"] for row in parsed(reply.text).cells()}


def logged() -> list[tuple[str | None, str, str | None, Any]]:
    with settings.NonScopedSession() as session:
        rows = session.scalars(select(Log).where(Log.event == "start_missing_runs").order_by(Log.id)).all()
        return [(row.dag_id, str(row.owner), row.owner_display_name, json.loads(str(row.extra))) for row in rows]


async def test_a_paused_dag_gets_all_its_missing_runs_after_it_is_unpaused(alice: Browser, airflow: Airflow) -> None:
    airflow.know("load", on_meter_session("1", "COMPLETED"), paused=True)
    airflow.know("other", on_meter_session("1", "COMPLETED"))
    ends(*range(10, 30))
    airflow.schedule()

    page = await alice.sees("/missing-runs")
    assert startable(page) == []
    assert refused(page) == [
        "load: 20 runs cannot be started. It is paused: run `airflow dags unpause load` first, or its runs would stay"
        " queued."
    ]
    assert set((await results(alice, run("R-10"))).values()) == {
        "refused it is paused: run `airflow dags unpause load` first, or its runs would stay queued"
    }
    assert airflow.runs("load") == []

    airflow.pause("load", paused=False)
    page = await alice.sees("/missing-runs", conn=CONN)
    chosen = startable(page)
    assert [json.loads(each) for each in chosen] == [["load", CONN, "1", f"R-{n}", "COMPLETED"] for n in range(10, 30)]
    assert airflow.runs("load") == []  # a dry run
    form = page.one("form", method="post")
    assert asked(form.attributes["action"]) == ("/mediation/missing-runs/start", {"conn": CONN})
    assert form.attributes["data-swap"] == "missing"

    done = await results(alice, *chosen)
    assert done == {f"load R-{number}": "started the run is queued" for number in range(10, 30)}
    page = await alice.sees("/missing-runs")
    assert "No run is missing." in page.text  # while the runs are queued
    assert airflow.runs("load") == [f"R-{number}" for number in range(10, 30)]
    again = await results(alice, *chosen)
    assert set(again.values()) == {"already there the Dag has a run for this session"}
    assert airflow.runs("load") == airflow.runs("other")


async def test_a_run_that_the_scheduler_may_still_make_is_announced_and_not_listed(
    alice: Browser, airflow: Airflow, manager: Manager, monkeypatch: pytest.MonkeyPatch
) -> None:
    for dag_id in ("load", "secret"):
        airflow.know(dag_id, on_meter_session("1", "COMPLETED"), paused=True)
    ends(1, 2)
    manager.deny("dag", "GET", "RUN", "secret")
    for dag_id in ("load", "secret"):
        airflow.pause(dag_id, paused=False)
    monkeypatch.setattr(triggered_runs, "_SCHEDULED_WITHIN", timedelta(minutes=1))
    page = await alice.sees("/missing-runs")
    assert startable(page) == []
    assert "2 more runs are not there yet: the sessions changed within the last minute" in page.text
    assert "No run is missing." not in page.text
    page = await alice.sees("/session", conn=CONN, meter="1", session="R-1")
    assert "No run of load is there yet" in page.text
    monkeypatch.setattr(triggered_runs, "_SCHEDULED_WITHIN", timedelta(0))
    page = await alice.sees("/missing-runs")
    assert startable(page) == [run("R-1"), run("R-2")]
    assert "not there yet" not in page.text


async def test_a_result_is_that_of_its_own_connection(alice: Browser, airflow: Airflow) -> None:
    """Two tenants may have the same ids."""
    schedule = on_meter_session("1", "COMPLETED") | on_meter_session("1", "COMPLETED", mediation_conn_id="other")
    airflow.know("load", schedule, paused=True)
    ends(1)
    tell(change("R-1", "RUNNING", meter="1", observed_at=now()), conn="other")
    airflow.pause("load", paused=False)
    reply = await press(alice, run("R-1"), json.dumps(["load", "other", "1", "R-1", "COMPLETED"]))
    done = [row["Result"] for row in parsed(reply.text).cells()]
    assert done == [
        "started the run is queued",
        "refused it is not scheduled on this session in the status COMPLETED",
    ]


async def test_only_the_chosen_runs_are_started(alice: Browser, airflow: Airflow) -> None:
    airflow.know("load", on_meter_session("1", "COMPLETED"), paused=True)
    airflow.know("twice", on_meter_session("1", "COMPLETED"), paused=True)
    ends(1, 2, 3)
    for dag_id in ("load", "twice"):
        airflow.pause(dag_id, paused=False)
    assert len(startable(await alice.sees("/missing-runs"))) == 6
    assert startable(await alice.sees("/missing-runs", dag_id="twice")) == [run(f"R-{n}", "twice") for n in (1, 2, 3)]

    done = await results(alice, run("R-2"), run("R-2"), run("R-3", "twice"), run("R-9"), run("R-1", status="FAILED"))

    assert done == {
        "load R-9": "refused the journal has no such session",
        "load R-2": "started the run is queued",
        "load R-1": "refused it is not scheduled on this session in the status FAILED",
        "twice R-3": "started the run is queued",
    }
    assert (airflow.runs("load"), airflow.runs("twice")) == (["R-2"], ["R-3"])


async def test_a_search_names_connection_meter_dag_and_time(alice: Browser, airflow: Airflow) -> None:
    airflow.know("load", on_meter_session(["1", "2"], "COMPLETED"), paused=True)
    ends(1)
    ends(2, meter="2")
    airflow.pause("load", paused=False)
    for search, found in [
        ({}, 2),
        ({"meter": "2"}, 1),
        ({"conn": "elsewhere"}, 0),
        ({"dag_id": "elsewhere"}, 0),
        ({"since": "1h"}, 2),
        ({"until": "2026-01-01"}, 0),
    ]:
        page = await alice.sees("/missing-runs", **search)
        assert len(startable(page)) == found, search
        assert ("No run is missing." in page.text) is (found == 0)
    for wrong in ({"since": "yesterday"}, {"before": "x"}):
        assert (await alice.get("/missing-runs", **wrong)).status_code == 400


async def test_a_search_examines_a_limited_number_of_sessions_and_goes_on_from_there(
    alice: Browser, airflow: Airflow, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(missing_runs, "EXAMINED", 2)
    monkeypatch.setattr(missing_runs, "MOST", 1)
    airflow.know("load", on_meter_session("1", "COMPLETED"), paused=True)
    ends(1, 2, 3)
    airflow.pause("load", paused=False)
    page = await alice.sees("/missing-runs", meter="1")
    assert startable(page) == [run("R-2")]
    assert "1 more are not listed: 1 runs are started at a time." in page.text
    assert "2 sessions were examined" in page.text
    path, query = asked(page.links()["Examine older sessions"])
    page = await alice.sees(path.removeprefix("/mediation"), **query)
    assert startable(page) == [run("R-1")]
    assert "1 session was examined" in page.text
    assert "Examine older sessions" not in page.links()
    reply = await press(alice, run("R-1"), run("R-2"))
    assert reply.status_code == 400
    assert "One form starts 1 runs at most, and this one has 2." in reply.text
    assert airflow.runs("load") == []


async def test_airflows_permissions_decide_for_each_dag(alice: Browser, airflow: Airflow, manager: Manager) -> None:
    for dag_id in ("mine", "seen", "secret"):
        airflow.know(dag_id, on_meter_session("1", "COMPLETED"), paused=True)
    ends(1)
    for dag_id in ("mine", "seen", "secret"):
        airflow.pause(dag_id, paused=False)
    manager.deny("dag", "GET", "RUN", "secret")
    for dag_id in ("seen", "secret"):
        manager.deny("dag", "POST", "RUN", dag_id)

    page = await alice.sees("/missing-runs")
    assert "secret" not in page.text
    assert startable(page) == [run("R-1", "mine")]
    assert refused(page) == ["seen: 1 run cannot be started. You may not start runs of this Dag."]

    reply = await press(alice, run("R-1", "seen"), run("R-1", "secret"))
    assert reply.status_code == 403
    assert "You may not start runs of the Dag secret, seen." in reply.text
    assert logged() == []
    done = await results(alice, run("R-1", "mine"), run("R-1", "seen"))
    assert done == {
        "mine R-1": "started the run is queued",
        "seen R-1": "refused you may not start runs of this Dag",
    }
    assert [airflow.runs(dag_id) for dag_id in ("mine", "seen", "secret")] == [["R-1"], [], []]


async def test_each_start_is_in_airflows_audit_log(alice: Browser, airflow: Airflow) -> None:
    for dag_id in ("load", "other"):
        airflow.know(dag_id, on_meter_session("1", "COMPLETED"), paused=True)
    ends(1, 2)
    airflow.pause("load", paused=False)
    await results(alice, run("R-1"), run("R-2"), run("R-1", "other"))
    await alice.does("/session/replay", conn=CONN, meter="1", session="R-1", dag_id="load")
    first, second = ([CONN, "1", f"R-{number}", "COMPLETED"] for number in (1, 2))
    assert logged() == [
        ("load", "alice", "alice", {"sessions": [first, second], "method": "POST"}),
        ("other", "alice", "alice", {"sessions": [first], "method": "POST"}),
        ("load", "alice", "alice", {"sessions": [first], "method": "POST"}),
    ]


async def test_a_dag_whose_missing_runs_cannot_be_started_is_refused_with_the_reason(
    alice: Browser, airflow: Airflow
) -> None:
    airflow.know("plain", Asset(asset_uri(CONN, "1", "COMPLETED")))
    airflow.know("load", on_meter_session("1", "COMPLETED"))
    ends(1)
    airflow.schedule()
    [reason] = refused(await alice.sees("/missing-runs"))
    assert reason.startswith("plain: 1 run cannot be started. Its schedule names session assets without on_meter_sess")
    done = await results(alice, run("R-1", "plain"), run("R-1", "nowhere"))
    assert done["plain R-1"].startswith("refused its schedule names session assets")
    assert done["nowhere R-1"] == "refused there is no Dag 'nowhere'"


WRONG = ["", "x", "[]", "{}", '["a"]', '["a","b","c","d",1]']
UNSTORABLE = ["\0", "\ud800", "d" * 251]


@pytest.mark.parametrize("wrong", WRONG + [json.dumps([each, "b", "c", "d", "e"]) for each in UNSTORABLE])
async def test_a_form_that_names_no_run_is_refused(alice: Browser, wrong: str) -> None:
    reply = await press(alice, wrong)
    assert reply.status_code == 400
    assert "Missing or invalid parameters: run." in reply.text


async def test_a_form_has_room_for_all_runs_of_a_page_with_the_longest_ids(alice: Browser, airflow: Airflow) -> None:
    airflow.know("load", on_meter_session("1", "COMPLETED"))
    longest = "\N{PARTY POPPER}" * 250
    runs = [str(missing_runs.MissingRun(longest, SessionKey(longest, longest, longest), f"S{n}")) for n in range(200)]
    reply = await press(alice, *runs)
    assert (reply.status_code, len(reply.request.content) > 2_000_000) == (200, True)
    done = [row["Result"] for row in parsed(reply.text).cells()]
    assert done == ["refused the journal has no such session"] * 200


async def test_a_field_that_a_form_has_twice_is_refused(alice: Browser, airflow: Airflow) -> None:
    """The last one would count, and nothing would show it."""
    airflow.know("load", on_meter_session("1", "COMPLETED"), paused=True)
    ends(1)
    airflow.pause("load", paused=False)
    fields = {"conn": CONN, "meter": "1", "session": "R-1", "dag_id": ["load", "load"]}
    address = f"{alice.base}/mediation/session/replay"
    reply = await alice.client.post(address, data=fields, headers={"Sec-Fetch-Site": "same-origin"})
    assert reply.status_code == 400
    assert "Field dag_id given 2 times." in reply.text
    assert airflow.runs("load") == []
