"""JournalEntry: kind and transition fit each other, it survives plain JSON, and malformed input is refused."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta, timezone

import pytest
from hypothesis import given
from hypothesis import strategies as st

from airflow_mediation_provider.protocol.sessions.journal_entry import EntryKind, JournalEntry
from airflow_mediation_provider.protocol.transition import SessionTransition, Source
from airflow_mediation_provider.protocol.wire import from_plain, to_plain

NOON = datetime(2026, 3, 31, 12, tzinfo=UTC)


def transition(**changes: object) -> SessionTransition:
    given = {"meter_id": "2470", "session_id": "R-1", "status": "RUNNING", "observed_at": NOON, "source": "callout"}
    return SessionTransition.from_dict({**given, **changes})


def entry(**changes: object) -> JournalEntry:
    given = {"kind": EntryKind.STATUS_CHANGE, "observed_at": NOON, "source": Source.CALLOUT, "transition": transition()}
    return JournalEntry(**{**given, **changes})


@pytest.mark.parametrize(
    "made",
    [
        entry(notification_id="n-1", body={"x": [1, {"y": None}]}),
        entry(kind=EntryKind.POLL, source=Source.POLL, transition=transition(session_id=None), drives=True),
        entry(kind=EntryKind.PERIODIC, transition=None, meter_id="2470", session_id="R-1"),
        entry(kind=EntryKind.UNPARSED, transition=None, body={"text": "{", "error": "broken"}),
    ],
    ids=lambda made: str(made.kind),
)
def test_an_entry_survives_the_round_trip(made: JournalEntry) -> None:
    assert from_plain(JournalEntry, to_plain(made), "it") == made


def test_an_entry_has_the_ids_of_its_transition() -> None:
    made = entry(transition=transition(meter_name="LMS"), notification_id="n-1", meter_id="another", session_id=None)

    assert (made.meter_id, made.session_id, made.meter_name) == ("2470", "R-1", "LMS")
    assert made.transition is not None
    assert made.transition.notification_id == "n-1" == made.notification_id
    assert entry(transition=transition(notification_id="n-2")).notification_id == "n-2"


def test_times_are_utc() -> None:
    made = entry(observed_at=datetime(2026, 3, 31, 14, tzinfo=timezone(timedelta(hours=2))))

    assert (made.observed_at, made.observed_at.tzinfo) == (NOON, UTC)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"transition": None}, "status_change entry must be one that names its session"),
        ({"transition": transition(session_id=None)}, "must be one that names its session"),
        ({"kind": EntryKind.POLL}, "must be one that names no session"),
        ({"kind": EntryKind.PERIODIC}, "must be missing"),
        ({"drives": True}, "cannot drive assets"),
        ({"observed_at": NOON.replace(tzinfo=None)}, "time zone"),
    ],
)
def test_a_transition_that_does_not_fit_the_kind_is_refused(changes: dict[str, object], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        entry(**changes)


junk = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=5) | st.just("2026-03-31T09:00:00Z"),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=5,
)
fields = sorted(to_plain(entry()))


@given(
    where=st.sampled_from(["entry", "transition"]),
    field=st.sampled_from(fields + sorted(transition().to_dict())),
    value=junk,
    dropped=st.booleans(),
)
def test_a_malformed_entry_is_a_value_error(where: str, field: str, value: object, dropped: bool) -> None:
    data = to_plain(entry(notification_id="n-1"))
    target = data if where == "entry" else data["transition"]
    target[field] = value
    if dropped:
        del target[field]
    try:
        read = from_plain(JournalEntry, data, "it")
    except ValueError:
        return
    to_plain(read)
    assert {type(getattr(read, name)) for name in ("meter_id", "session_id", "notification_id")} <= {str, type(None)}


@pytest.mark.parametrize("value", [None, 3, "entry", [], {}])
def test_a_value_that_is_not_an_entry_is_a_value_error(value: object) -> None:
    with pytest.raises(ValueError, match=r"^it cannot be read: (Expected `object`|Object missing required field)"):
        from_plain(JournalEntry, value, "it")
