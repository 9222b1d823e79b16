"""SessionTransition: plain JSON with stable keys, and times in one type and zone."""

from __future__ import annotations

import json
from dataclasses import FrozenInstanceError
from datetime import UTC, datetime, timedelta, timezone

import pendulum
import pytest
from hypothesis import given
from hypothesis import strategies as st

from airflow_mediation_provider.protocol.status import RunType
from airflow_mediation_provider.protocol.transition import SessionTransition, Source

NOON = datetime(2026, 3, 31, 12, 0, 0, 250_000, tzinfo=timezone(timedelta(hours=3)))
LEAST = {"meter_id": "2470", "status": "RUNNING", "observed_at": "2026-03-31T09:00:00+00:00", "source": "callout"}

times = st.datetimes(
    min_value=datetime(2000, 1, 1), max_value=datetime(2100, 1, 1), timezones=st.sampled_from([UTC, NOON.tzinfo])
)
texts = st.one_of(st.none(), st.text(min_size=1, max_size=20))
transitions = st.builds(
    SessionTransition,
    meter_id=st.text(min_size=1),
    status=st.text(min_size=1),
    observed_at=times,
    source=st.sampled_from(Source),
    session_id=texts,
    meter_name=texts,
    run_type=st.sampled_from(RunType),
    previous_status=texts,
    started_at=st.one_of(st.none(), times),
    ended_at=st.one_of(st.none(), times),
    notification_id=texts,
)


@given(transitions)
def test_a_transition_survives_the_round_trip(transition: SessionTransition) -> None:
    data = transition.to_dict()
    assert SessionTransition.from_dict(json.loads(json.dumps(data))) == transition
    assert {type(value) for value in data.values()} <= {str, type(None)}


def test_the_keys_are_stable() -> None:
    transition = SessionTransition(
        meter_id="2470", session_id="R-00005468", status="COMPLETED", previous_status="RUNNING", observed_at=NOON,
        started_at=NOON, source=Source.CALLOUT, notification_id="n-1", meter_name="LMS", run_type=RunType.DEBUG,
    )  # fmt: skip
    assert transition.to_dict() == {
        "meter_id": "2470",
        "session_id": "R-00005468",
        "meter_name": "LMS",
        "run_type": "DEBUG",
        "status": "COMPLETED",
        "previous_status": "RUNNING",
        "started_at": "2026-03-31T09:00:00.250000+00:00",
        "ended_at": None,
        "observed_at": "2026-03-31T09:00:00.250000+00:00",
        "source": "callout",
        "notification_id": "n-1",
    }


def test_times_are_pendulums_in_utc() -> None:
    transition = SessionTransition(meter_id="1", status="RUNNING", observed_at=NOON, source=Source.RUN)
    assert isinstance(transition.observed_at, pendulum.DateTime)
    assert (transition.observed_at, transition.observed_at.timezone_name) == (NOON, "UTC")
    with pytest.raises(FrozenInstanceError):
        transition.status = "FAILED"  # type: ignore[misc]


def test_a_time_without_a_zone_is_refused() -> None:
    with pytest.raises(ValueError, match="started_at must have a time zone"):
        SessionTransition(
            meter_id="1", status="RUNNING", observed_at=NOON, started_at=datetime(2026, 1, 1), source=Source.RUN
        )


def test_a_transition_is_made_from_a_session_result() -> None:
    transition = SessionTransition.from_dict({**LEAST, "evidence": "callout", "certain": True})
    assert (transition.run_type, transition.session_id, transition.source) == (RunType.NORMAL, None, Source.CALLOUT)


@pytest.mark.parametrize("key", LEAST)
def test_a_missing_required_key_is_refused(key: str) -> None:
    with pytest.raises(KeyError, match=key):
        SessionTransition.from_dict({**LEAST, key: None})


@pytest.mark.parametrize(("run_type", "read"), [("CANARY", "CANARY"), ("canary ", "CANARY"), ("TESTING", "DEBUG")])
def test_a_run_type_that_a_newer_version_wrote_is_kept(run_type: str, read: str) -> None:
    assert SessionTransition.from_dict({**LEAST, "run_type": run_type}).to_dict()["run_type"] == read


@pytest.mark.parametrize("bad", [{"source": "rumour"}, {"observed_at": "yesterday"}])
def test_an_invalid_value_is_refused(bad: dict[str, str]) -> None:
    with pytest.raises(ValueError, match=r"rumour|yesterday"):
        SessionTransition.from_dict({**LEAST, **bad})
