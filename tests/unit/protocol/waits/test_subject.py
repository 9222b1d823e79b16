"""Subject: which session or meter the arguments of a task name, and which of them contradict each other."""

from __future__ import annotations

import json
from typing import Any

import pytest

from airflow_mediation_provider.protocol.status import RunType
from airflow_mediation_provider.protocol.waits.condition import subject_of
from tests.unit.protocol.tenant import at

SESSION: dict[str, Any] = {"session_id": "R-1", "meter_id": "7", "version": "0.0.3", "run_type": "DEBUG"}


def test_a_session_object_brings_what_is_not_given() -> None:
    subject = subject_of({"session": {**SESSION, "mediation_conn_id": "eu"}})
    assert (subject.session_id, subject.meter_id, subject.version) == ("R-1", "7", "0.0.3")
    assert (subject.run_types, subject.mediation_conn_id) == ((RunType.DEBUG,), "eu")


def test_what_neither_names_is_the_default() -> None:
    subject = subject_of({"meter_id": "7"})
    assert (subject.session_id, subject.version, subject.run_types) == (None, "0.0.1", (RunType.NORMAL,))
    assert (subject.mediation_conn_id, subject.begun_at) == ("mediation_default", None)


def test_an_argument_counts_where_the_object_has_none() -> None:
    subject = subject_of({"session": {"session_id": "R-1", "run_type": None}, "meter_id": 7, "run_type": "debug"})
    assert (subject.meter_id, subject.run_types) == ("7", (RunType.DEBUG,))


@pytest.mark.parametrize(
    ("argument", "value"),
    [("meter_id", "8"), ("version", "0.0.1"), ("run_type", "NORMAL"), ("mediation_conn_id", "us")],
)
def test_an_argument_that_contradicts_the_object_is_refused(argument: str, value: str) -> None:
    session = {**SESSION, "mediation_conn_id": "eu"}
    with pytest.raises(ValueError, match=f"{argument} is '{value}', but session R-1, which was given, has"):
        subject_of({"session": session, argument: value})
    assert subject_of({"session": session, argument: session[argument]}) == subject_of({"session": session})


def test_a_wait_on_both_run_types_takes_a_session_of_either() -> None:
    both = {"run_type": ["DEBUG", "NORMAL"]}
    assert subject_of({"meter_id": "7", **both}).run_types == (RunType.NORMAL, RunType.DEBUG)
    assert subject_of({"session": SESSION, **both}) == subject_of({"session": SESSION})
    with pytest.raises(ValueError, match="run_type must be one of NORMAL, DEBUG, not 'LIVE'"):
        subject_of({"meter_id": "7", "run_type": ["LIVE", "DEBUG"]})


def test_a_session_id_alone_takes_an_object_too() -> None:
    assert subject_of({"session_id": "R-1", "meter_id": "7"}).session == {}
    assert subject_of({"session_id": SESSION}).meter_id == "7"
    with pytest.raises(ValueError, match=r"session must be the output of .*an id goes into session_id"):
        subject_of({"session": "R-1", "meter_id": "7"})


def test_an_invalid_run_type_is_quoted_as_it_was_given() -> None:
    with pytest.raises(ValueError, match=r"^session\['run_type'\] must be .* not 'run_type'"):
        subject_of({"session": {**SESSION, "run_type": "run_type"}})


@pytest.mark.parametrize("name", ["session", "session_id"])
@pytest.mark.parametrize("nothing", [None, {}, "", " ", "None", "null", "{}"])
def test_what_names_no_session_is_refused(name: str, nothing: object) -> None:
    with pytest.raises(ValueError, match=f"^{name} is .*which names no session"):
        subject_of({name: nothing, "meter_id": "7"})


def test_an_object_may_lack_the_id_of_its_session_but_not_stand_for_one() -> None:
    unnamed = {**SESSION, "session_id": None}
    assert subject_of({"session": unnamed}).session_id is None
    with pytest.raises(ValueError, match="session_id is None, which names no session"):
        subject_of({"session_id": unnamed})
    with pytest.raises(ValueError, match=r"^session must be the output of"):
        subject_of({"session": {"meter_id": "7"}})


@pytest.mark.parametrize("form", [json.dumps, repr])
def test_the_text_of_an_object_is_read(form: Any) -> None:
    assert subject_of({"session": f" {form(SESSION)} "}).meter_id == "7"


def test_a_text_of_an_object_has_at_most_20_000_characters() -> None:
    text = json.dumps(SESSION)
    assert subject_of({"session": text[:-1] + " " * (20_000 - len(text)) + "}"}).session_id == "R-1"
    for broken in (text[:-1] + " " * (20_001 - len(text)) + "}", text[:-1]):
        with pytest.raises(ValueError, match=r"^session .*neither JSON nor"):
            subject_of({"session": broken})


def test_without_a_meter_it_is_refused_unless_it_may_still_be_rendered() -> None:
    with pytest.raises(ValueError, match="meter_id is missing"):
        subject_of({"session_id": "R-1"})
    with pytest.raises(ValueError, match="meter_id is missing"):
        subject_of({}, unknown=["version"])
    for unknown in ("meter_id", "session", "session_id"):
        assert subject_of({}, unknown=[unknown]).meter_id == ""


def test_a_session_and_a_session_id_exclude_each_other() -> None:
    for given, unknown in (({"session": SESSION, "session_id": "R-1"}, ()), ({"session": SESSION}, ("session_id",))):
        with pytest.raises(ValueError, match="session and session_id exclude each other"):
            subject_of(given, unknown)


def test_a_session_began_when_it_started_else_when_it_became_known() -> None:
    observed = {**SESSION, "observed_at": at(9).isoformat()}
    assert subject_of({"session": observed}).begun_at == at(9)
    assert subject_of({"session": {**observed, "started_at": at(5).isoformat()}}).begun_at == at(5)
