"""Data in users' databases, and between versions of this package, is written and read in the same form as before.

Each form is compared with a file in ``golden``. A change must be an addition: no key is removed or changes its meaning.
To write the files again after such a change:

    WRITE_GOLDEN=1 python -m pytest tests/unit/test_stored_forms.py

That refuses changes that are no additions, and keeps the form that this version of the package had first, which must
load as well. Document in docs/decisions.md what was added, and why. If two such changes conflict, rewrite the files.
"""

from __future__ import annotations

import json
import os
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import pytest
from airflow import settings
from airflow.models.asset import AssetEvent, AssetModel
from airflow.sdk import Asset
from sqlalchemy import select

from airflow_mediation_provider import __version__, links
from airflow_mediation_provider.assets import triggering_session
from airflow_mediation_provider.journal.writer import record
from airflow_mediation_provider.protocol import urls
from airflow_mediation_provider.protocol.sessions.asset_uri import asset_uri
from airflow_mediation_provider.protocol.sessions.journal_entry import EntryKind, JournalEntry
from airflow_mediation_provider.protocol.transition import SessionTransition, Source
from airflow_mediation_provider.protocol.waits.condition import subject_of
from airflow_mediation_provider.protocol.waits.wait import SessionWait
from airflow_mediation_provider.sensors import meter_session
from tests.unit.golden.forms import CONN, FORMS, METER, SESSION, at, change

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

GOLDEN = Path(__file__).parent / "golden"
EARLIER = sorted((GOLDEN / "earlier").glob("*/*.json"))
WRITE = os.environ.get("WRITE_GOLDEN") == "1"
# Texts for users may change: their wording is no contract.
WORDS = {"message", "reason"}


@pytest.fixture(autouse=True)
def airflow_33(monkeypatch: pytest.MonkeyPatch) -> None:
    """The files are those of Airflow 3.3; an earlier one has the same forms, but not all of them."""
    monkeypatch.setattr(links, "framed", urls.framed)
    monkeypatch.setattr(meter_session, "AIRFLOW_V_3_3_PLUS", True)


def lacking(old: Any, new: Any, place: str = "") -> Iterator[str]:
    """Yield the parts of a form that are missing or have another meaning in a later one."""
    if isinstance(old, dict) and isinstance(new, dict):
        for key, value in old.items():
            if key not in new:
                yield f"{place}.{key} is gone"
            elif key not in WORDS:
                yield from lacking(value, new[key], f"{place}.{key}")
    elif isinstance(old, list) and isinstance(new, list) and len(old) <= len(new):
        for number, value in enumerate(old):
            yield from lacking(value, new[number], f"{place}[{number}]")
    elif old != new:
        yield f"{place} is {new!r} instead of {old!r}"


def plain(form: Any) -> Any:
    return json.loads(json.dumps(form))


def golden(name: str) -> Any:
    return json.loads((GOLDEN / f"{name}.json").read_text())


def compare(name: str, made: Any) -> None:
    """Compare a form with its file; write the file if requested, and keep the earlier one."""
    file, made = GOLDEN / f"{name}.json", plain(made)
    if WRITE and (not file.exists() or golden(name) != made):
        if file.exists():
            assert not list(lacking(golden(name), made))
            first = GOLDEN / "earlier" / __version__ / file.name
            first.parent.mkdir(parents=True, exist_ok=True)
            if not first.exists():
                file.rename(first)
        file.write_text(json.dumps(made, indent=2, ensure_ascii=False) + "\n")
    assert made == golden(name)


@pytest.mark.parametrize("name", FORMS)
def test_a_form_is_written_as_in_its_golden_file(name: str):
    compare(name, FORMS[name].make())


@pytest.mark.parametrize("name", FORMS)
def test_a_golden_file_is_read_with_its_meaning(name: str):
    assert plain(FORMS[name].read(golden(name))) == golden(name)


@pytest.mark.parametrize("file", EARLIER, ids=lambda file: f"{file.parent.name}-{file.stem}")
def test_an_earlier_form_keeps_its_meaning(file: Path):
    earlier = json.loads(file.read_text())
    read = FORMS[file.stem].read if file.stem in FORMS else dict
    assert not list(lacking(earlier, plain(read(earlier))))


def test_every_golden_file_is_compared():
    names = {file.stem for file in GOLDEN.glob("*.json")}
    assert names == {*FORMS, "asset_event_callout", "asset_event_poll"}


class TestLacking:
    def test_an_addition_lacks_nothing(self):
        assert not list(lacking({"a": [{"b": 1}]}, {"a": [{"b": 1, "c": 2}], "d": 3}))

    def test_removed_and_changed_parts_are_listed(self):
        found = list(lacking({"a": 1, "b": {"c": [1, 2]}}, {"b": {"c": [1, 3]}}))
        assert found == [".a is gone", ".b.c[1] is 3 instead of 2"]

    def test_texts_may_change(self):
        assert not list(lacking({"message": "a"}, {"message": "b"}))


class TestAssetEvents:
    """The extra of an asset event: what ``triggering_session`` returns to the tasks of a run."""

    @pytest.fixture(autouse=True)
    def asset(self, sqlite_database: str, airflow_on: Callable[[str], str]) -> None:
        """An asset that a Dag uses."""
        airflow_on(sqlite_database)
        uri = asset_uri(CONN, METER, "COMPLETED")
        with settings.NonScopedSession() as session:
            session.add(AssetModel(name=uri, uri=uri, group="asset"))
            session.commit()

    def test_the_asset_event_of_a_callout(self):
        self.record(change("INITIALIZING", None, 10), change("COMPLETED", "RUNNING", 130))
        self.check("asset_event_callout")

    def test_the_asset_event_of_a_poll(self):
        self.record(change("INITIALIZING", None, 10), self.poll("RUNNING", 40), self.poll("COMPLETED", 90))
        self.check("asset_event_poll")

    @staticmethod
    def poll(status: str, seconds: float) -> SessionTransition:
        return SessionTransition(meter_id=METER, status=status, observed_at=at(seconds), source=Source.POLL)

    @staticmethod
    def record(*told: SessionTransition) -> None:
        for transition in told:
            kind = EntryKind.POLL if transition.source is Source.POLL else EntryKind.STATUS_CHANGE
            entry = JournalEntry(
                kind=kind,
                observed_at=transition.observed_at,
                source=transition.source,
                transition=transition,
                drives=kind is EntryKind.POLL,
            )
            record([entry], conn_id=CONN)

    @staticmethod
    def check(name: str) -> None:
        with settings.NonScopedSession() as session:
            (event,) = session.scalars(select(AssetEvent))
            compare(name, {"uri": event.uri, "partition_key": event.partition_key, "extra": event.extra})
        stored = golden(name)
        events = [SimpleNamespace(extra=stored["extra"], timestamp=at(200))]
        context: Any = {"triggering_asset_events": {Asset(stored["uri"]): events}}
        assert triggering_session(context) == stored["extra"]
        assert subject_of({"session": stored["extra"]}).session_id == SESSION
        assert not list(lacking(SessionTransition.from_dict(stored["extra"]).to_dict(), stored["extra"]))


def test_a_wait_of_the_first_version_continues():
    """Written by hand: version 1 had a flag under ``callouts``, and less data of the session."""
    wait = SessionWait.from_dict(json.loads((GOLDEN / "version_1" / "wait.json").read_text()))
    assert wait.callouts is None
    assert wait.tracker.session_id == SESSION
    assert wait.tracker.shown == "RUNNING"
    assert wait.deadline == at(7200)
    assert wait.to_dict()["version"] == 2
