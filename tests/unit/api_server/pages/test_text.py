"""Any name that comes from Zuora, a template or a Dag is shown as text: it changes no page's structure."""

from __future__ import annotations

import json
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any

import pytest
from airflow import settings
from airflow.models.asset import AssetEvent, association_table
from airflow.models.dagrun import DagRun
from airflow.sdk import Asset
from sqlalchemy import delete, select

from airflow_mediation_provider.api_server.pages import session as session_page
from airflow_mediation_provider.assets import MeterSessionTimetable
from airflow_mediation_provider.journal import triggered_runs as consequences
from airflow_mediation_provider.journal.receipts import Seen, acknowledge_refused, record_receipts
from airflow_mediation_provider.journal.tables import Base, ReceiptRow, TransitionRow
from airflow_mediation_provider.protocol.callouts.receipt import Receipt
from airflow_mediation_provider.protocol.sessions.asset_uri import asset_uri
from tests.unit.api_server.pages.html import Element, parsed
from tests.unit.journal.old_rows import keep, meter_of, session_of, told, verdict_of, wait_of
from tests.unit.journal.scheduling import change, tell

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.unit.api_server.pages.conftest import Browser, Directory
    from tests.unit.journal.scheduling import Airflow

HOSTILE = [
    "<script>alert(1)</script>${7*7}<%= 7*7 %>#{7*7}",
    """'"><img src=x onerror=alert(1)> ' onfocus='alert(1)""",
    "</title></textarea><svg onload=alert(1)> --> ]]> <!-- x",
    "javascript:alert(1)//&lt;b&gt;&amp;&#39;\u202e\u2066\u05d0\u05d1 x\u2069",
]
# Like the others, it cannot be the id of a connection.
HARMLESS = "harm less"


class Zuora:
    """Zuora's answers, with the same text everywhere."""

    def __init__(self, text: str) -> None:
        self.text = text

    def __enter__(self) -> Zuora:
        return self

    def __exit__(self, *_: object) -> None: ...

    def meter_summary(self, *_: object, **__: object) -> dict[str, Any]:
        return {"output": [{"output": 1, "totalErrorCount": 1}]}

    def audit_trail_entries(self, *_: object, **__: object) -> Iterator[dict[str, Any]]:
        yield {"errorCode": self.text, "fields": {self.text: [self.text]}}


def schedule(name: str) -> MeterSessionTimetable:
    """On sessions of a meter and a connection of that name, as a Dag of an older version may be scheduled."""
    return MeterSessionTimetable(assets=Asset(asset_uri(name, name, "COMPLETED")))


def tell_a_story(airflow: Airflow, directory: Directory, text: str, word: str) -> dict[str, dict[str, str]]:
    """Put the text into all values from outside, and return the addresses that show it.

    :param word: put into values that only processes of Airflow report
    """
    short = text[:60]  # as long as the columns of ids allow
    at = datetime.now(UTC) - timedelta(hours=7)
    directory["zuora"] = {
        "ui_link_template": "https://zuora.example/{meter_id}/{session_id}",
        "callout_timezone": text,
        "callout_hmac_secret": "s3cret",
    }
    # The id of a Dag, and of a run that a session triggers, is Airflow's.
    airflow.know("load", schedule(short))
    airflow.know("asleep", schedule(short), paused=True)
    tell(
        change(
            short, "COMPLETED", short, meter=short, meter_name=text, notification_id=text[:180],
            observed_at=datetime.now(UTC),
        ),
        conn=short,
    )  # fmt: skip
    airflow.schedule()
    key: dict[str, Any] = {"conn_id": short, "meter_id": short}
    condition = {"statuses": [text], "previous_statuses": [text], "fail_on": [text], "run_type": text}
    wait: dict[str, Any] = {**key, "dag_id": text, "run_id": text, "condition": condition}
    poll: dict[str, Any] = {"kind": "poll", "source": "poll", "status": "FAILED", "previous_status": short}
    note: dict[str, Any] = {
        "kind": "branch", "message": text, "status": text, "evidence": text, "certain": False,
        "followed": [text], "skipped": [text],
    }  # fmt: skip
    ended_on = {"status": short, "evidence": word, "certain": False, "ended_at": at}
    differs = session_of("differs", at, **key)
    differs.best_differs = True
    keep(
        differs,
        verdict_of("differs", "FAILED", at, **key, dag_id=text, run_id=text, task_id=text),
        wait_of("e", **wait, task_id=f"{text}5", session_id=short, mode="task", note=note, ended_at=at),
        wait_of("f", **wait, task_id=f"{text}6", session_id=short, outcome="MET", note=note, **ended_on),
        session_of("odd", at, **key, status=short, terminal=False, run_type=word),
        told("odd", at, **key, status=short, previous_status=short[::-1], source=word, notification_id=f"{text}2"),
        told(None, at, **key, **poll),
        session_of(short, at, conn_id="zuora", meter_id=short),
        told(None, at, conn_id=short, kind="unparsed", body={"text": text, "error": text}),
        told(None, at, conn_id=short, kind="unparsed", body={text: text}),
        wait_of("a", **wait, task_id=text, session_id=short, outcome=word, ended_at=at),
        wait_of("b", **wait, task_id=f"{text}2", session_id=short, mode=word),
        wait_of("c", **wait, task_id=f"{text}3", seen_at=at),
        wait_of("d", **wait, task_id=f"{text}4", session_id="odd"),
    )
    seen = Seen()
    seen.add(
        Receipt(
            conn_id=short, received_at=at, status=401, reason=text, notification_id=short, headers={text: text},
            query={text: text}, body=text, method=word,
        )
    )  # fmt: skip
    record_receipts(seen)
    acknowledge_refused(short, text, at)
    with settings.get_engine().connect() as connection:
        unparsed = connection.scalar(select(TransitionRow.id).filter_by(kind="unparsed"))
        receipt = connection.scalar(select(ReceiptRow.id))
    session = {"conn": short, "meter": short, "session": short}
    run = {"dag_id": text, "run_id": text}
    return {
        "/sessions": {},
        "/sessions ": {"conn": text, "meter": text, "status": text, "run_type": text, "tz": text},
        "/sessions/chart": {"meter": short, "since": "24h"},
        "/session": session,
        "/session ": {**session, "session": "odd"},
        "/session   ": {**session, "conn": "zuora"},
        "/session    ": {**session, "session": "differs"},
        "/task": {**run, "task_id": text},
        "/task ": {**run, "task_id": f"{text}2"},
        "/task  ": {**run, "task_id": f"{text}3"},
        "/task    ": {**run, "task_id": f"{text}5"},
        "/task     ": {**run, "task_id": f"{text}6"},
        "/run": run,
        "/run ": {"dag_id": "load", "run_id": airflow.run_ids("load")[0]},
        "/callouts": {"kind": "unreadable", "conn": short},
        "/callouts ": {"kind": "refused"},
        "/callouts  ": {"session": short},
        "/callout": {"row": unparsed},
        "/callout ": {"receipt": receipt},
        "/meter": {"conn": short, "meter": short},
        "/dag": {"dag_id": text},
        "/connection": {"conn": short},
        "/health": {},
        "/missing-runs": {},
        "/missing-runs ": {"conn": text, "meter": text, "dag_id": text, "tz": text},
        # and refused requests
        "/session  ": {**session, "session": text[::-1]},
        "/sessions  ": {"since": text},
        "/sessions   ": {"before": text},
        "/callouts   ": {"kind": text},
        "/task   ": {**run, "task_id": text, "map_index": text},
    }


def clear() -> None:
    """Clear the journal, for another text."""
    with settings.get_engine().begin() as connection:
        for table in (*Base.metadata.sorted_tables, association_table, DagRun.__table__, AssetEvent.__table__):
            connection.execute(delete(table))


def count(page: Element, text: str) -> int:
    """How often a page has the text unchanged."""
    return sum(text in each for element in page.all() for each in element.inside if isinstance(each, str))


async def shown(
    alice: Browser,
    airflow: Airflow,
    directory: Directory,
    monkeypatch: pytest.MonkeyPatch,
    text: str,
    word: str | None = None,
) -> dict[str, Element]:
    """All pages, also those behind buttons."""
    monkeypatch.setattr(session_page, "MediationHook", lambda *_, **__: Zuora(text))
    monkeypatch.setattr(consequences, "_SCHEDULED_WITHIN", timedelta(0))
    story = tell_a_story(airflow, directory, text, word or text[:16])
    pages = {path: parsed((await alice.get(path.strip(), **asked)).text) for path, asked in story.items()}
    session = story["/session"]
    for path, form in {
        "/session/summary": session,
        "/session/replay": {**session, "dag_id": "asleep"},
        "/session/replay ": {**session, "dag_id": text},
        "/callout/reparse": {"conn": session["conn"]},
        "/callout/reparse ": {"conn": text},
        "/callout/acknowledge": {"conn": text, "kind": "refused"},
        "/missing-runs/start": {"run": json.dumps(["load", *session.values(), text])},
        "/missing-runs/start ": {"run": json.dumps(["load", text, text, text, "COMPLETED"])},
    }.items():
        pages[path] = parsed((await alice.post(path.strip(), **form)).text)
    return pages


# One page in which each kind of place has the text, by a name of the place.
PLACES = {
    "/sessions": 8,
    "/session": 6,
    "/session ": 8,
    "/task": 6,
    "/task    ": 6,
    "/session    ": 1,
    "/run": 6,
    "/callouts": 2,
    "/callouts ": 2,
    "/callout": 2,
    "/callout ": 4,
    "/meter": 6,
    "/dag": 6,
    "/session/summary": 3,
}


async def test_a_text_from_outside_changes_no_structure_of_a_page(
    alice: Browser, airflow: Airflow, directory: Directory, monkeypatch: pytest.MonkeyPatch
) -> None:
    harmless = await shown(alice, airflow, directory, monkeypatch, HARMLESS)
    for text in HOSTILE:
        clear()
        pages = await shown(alice, airflow, directory, monkeypatch, text)
        for path, page in pages.items():
            assert page.skeleton() == harmless[path].skeleton(), (path, text)
            for element in page.all():
                for name, value in element.attributes.items():
                    assert not name.startswith("on"), (path, text)
                    if name in ("href", "src", "action"):
                        assert value.startswith(("/", "https://zuora.example/", "data:,")), (path, text, value)
        for path, least in PLACES.items():
            assert count(pages[path], text[:16]) >= least, (path, text)


async def test_a_right_to_left_text_reverses_nothing_around_it(
    alice: Browser, airflow: Airflow, directory: Directory, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is isolated: in an element that keeps the direction of its text inside, or on a line of its own."""
    turning = "\u202eabc"
    for path, page in (await shown(alice, airflow, directory, monkeypatch, turning, "word")).items():
        for element in page.one("body").walk():
            if any(isinstance(each, str) and "\u202e" in each for each in element.inside):
                alone = element.tag in ("bdi", "option", "title", "p", "pre") or "badge" in element.classes
                assert alone or element.tag in ("td", "dd"), (path, element.tag, element.text)


@pytest.mark.usefixtures("journal")
async def test_no_name_is_rendered_as_a_template(alice: Browser) -> None:
    name = "{{ 7 * 7 }}{% raw %}"
    keep(session_of(name, datetime.now(UTC), meter_id=name, status=name), meter_of(name, name))
    [row] = (await alice.sees("/sessions")).cells()
    unknown = f"unknown status ({name})"
    assert (row["Status"], row["Session"], row["Meter"]) == (unknown, name, f"{name} {name}")
    assert (await alice.sees("/session", conn="zuora", meter=name, session=name)).one("h1").text == f"{name} {unknown}"
