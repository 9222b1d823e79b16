"""The provider reads the simulator's callouts with every template, date format and authentication."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any

import pytest

from airflow_mediation_provider.protocol.callouts.history import read_history
from airflow_mediation_provider.protocol.callouts.parse import read_callout
from airflow_mediation_provider.protocol.callouts.settings import callout_settings
from airflow_mediation_provider.protocol.callouts.setup import template_body
from airflow_mediation_provider.protocol.callouts.verify import CalloutRefused, authenticate
from airflow_mediation_provider.protocol.sessions.journal_entry import EntryKind
from airflow_mediation_provider.simulator import CalloutConfig
from airflow_mediation_provider.simulator.callout_config import SPELLINGS

if TYPE_CHECKING:
    from airflow_mediation_provider.protocol.sessions.journal_entry import JournalEntry
    from airflow_mediation_provider.simulator import Simulator
    from airflow_mediation_provider.simulator.callouts import Attempt

    from .conftest import Bench, Client

NOW = datetime(2026, 1, 1, tzinfo=UTC)


def attempts(bench: Bench, **settings: Any) -> list[Attempt]:
    """Return the three callouts of a session that failed, then those of its operators, then that of a query."""
    url = "http://127.0.0.1:9"
    events = ("status_change", "periodic", "event_store_query")
    body = settings.pop("body", "camelCase")
    bench.tenant.configure(
        {
            "callouts": [
                {"url": url, "event": event, "body": body if body in SPELLINGS or index == 0 else "labels", **settings}
                for index, event in enumerate(events)
            ]
        }
    )
    session = bench.tenant.start_session("1002", script=[["INITIALIZING", 1], ["RUNNING", 1], ["FAILED", None]])
    bench.tenant.advance(3600)
    bench.tenant.publish("periodic", session.session_id)
    bench.tenant.publish("event_store_query")
    found = []
    while (attempt := bench.tenant.callouts.begin()) is not None:
        found.append(attempt)
    return found


def read(extra: dict[str, Any], attempt: Attempt) -> JournalEntry:
    settings = callout_settings("mediation_default", extra)
    headers = {
        **attempt.headers,
        **({"Authorization": "Basic enVvcmE6cGFzcw=="} if "callout_username" in extra else {}),
    }
    authenticate(settings, headers, attempt.body, now=NOW)
    return read_callout(settings, attempt.headers, attempt.body, NOW)


@pytest.mark.parametrize("body", [*SPELLINGS, template_body()])
def test_every_spelling_of_the_keys_is_read(bench: Bench, body: str) -> None:
    entries = [read({"callout_hmac_secret": "top"}, each) for each in attempts(bench, body=body, hmac_secret="top")]
    changes = [entry.transition for entry in entries[:3]]
    assert [(each.previous_status, each.status) for each in changes if each] == [
        (None, "INITIALIZING"),
        ("INITIALIZING", "RUNNING"),
        ("RUNNING", "FAILED"),
    ]
    last = changes[2]
    assert last is not None
    assert (last.meter_id, last.session_id, str(last.run_type)) == ("1002", "R-00005468", "NORMAL")
    assert (str(last.started_at), str(last.ended_at)) == ("2026-01-01 00:00:00+00:00", "2026-01-01 00:00:02+00:00")
    assert [entry.kind for entry in entries[3:]] == [EntryKind.PERIODIC] * 3 + [EntryKind.EVENT_STORE_QUERY]
    assert len({entry.notification_id for entry in entries}) == 7


@pytest.mark.parametrize(
    ("form", "zone", "extra"),
    [
        ("iso", "America/New_York", {}),
        ("epoch_ms", "UTC", {}),
        ("en_US", "America/New_York", {"callout_date_format": "MM/DD/YYYY hh:mm:ss A"}),
        ("en_GB", "Europe/London", {"callout_date_format": "DD/MM/YYYY HH:mm:ss"}),
        ("de_DE", "Europe/Berlin", {"callout_date_format": "DD.MM.YYYY HH:mm:ss"}),
        ("ja_JP", "Asia/Tokyo", {}),
        ("%d-%b-%Y %I:%M:%S %p", "America/Los_Angeles", {}),
        ("%a %b %d %H:%M:%S %Z %Y", "America/Los_Angeles", {}),
        ("%Y%m%d%H%M%S", "Asia/Kolkata", {}),
    ],
)
def test_dates_of_every_locale_are_read(bench: Bench, form: str, zone: str, extra: dict[str, str]) -> None:
    sent = attempts(bench, hmac_secret="top", date_format=form, timezone=zone)
    transition = read({"callout_hmac_secret": "top", "callout_timezone": zone, **extra}, sent[2]).transition
    assert transition is not None
    assert (str(transition.started_at), str(transition.ended_at)) == (
        "2026-01-01 00:00:00+00:00",
        "2026-01-01 00:00:02+00:00",
    )


@pytest.mark.parametrize("null", ["", "null", "NULL", "NEVER_RUN"])
def test_every_form_of_a_missing_previous_status_is_read(bench: Bench, null: str) -> None:
    first = read({"callout_hmac_secret": "top"}, attempts(bench, hmac_secret="top", null_text=null)[0])
    assert first.transition is not None
    assert first.transition.previous_status in (None, "NEVER_RUN")
    assert first.transition.ended_at is None


@pytest.mark.parametrize("form", ["full", "tags", "dotted"])
@pytest.mark.parametrize("kind", ["callout", "attempt"])
@pytest.mark.parametrize("body", ["labels", "camelCase"])
def test_every_form_of_the_callout_history_is_read(
    sim: Simulator, client: Client, form: str, kind: str, body: str
) -> None:
    sim.delivery(history_context=form, history_of=kind)
    sim.callouts(CalloutConfig(url="http://127.0.0.1:9", body=body, loss=1.0))
    sim.start_session("1002", script=[["INITIALIZING", 1], ["RUNNING", 1], ["FAILED", None]])
    sim.advance(2)
    for count in (3, 6, 9):
        sim.wait_for("callout", count, code=-1)
        sim.advance(1800)
        client.token = None
    records = client.call("GET", "/v1/notification-history/callout").json["calloutHistories"]
    told = read_history(callout_settings("mediation_default", {}), records, NOW + timedelta(days=1))
    assert [(each.transition.previous_status, each.transition.status) for each in told.entries if each.transition] == [
        (None, "INITIALIZING"),
        ("INITIALIZING", "RUNNING"),
        ("RUNNING", "FAILED"),
    ]


DATED = "{{Request.Headers.Date}}\n{{Request.Body}}"


@pytest.mark.parametrize("algorithm", ["SHA-256", "SHA-384", "SHA-512"])
@pytest.mark.parametrize("encoding", ["BASE64", "HEX"])
def test_every_signature_is_accepted(bench: Bench, algorithm: str, encoding: str) -> None:
    sent = attempts(
        bench,
        hmac_secret="top",
        hmac_algorithm=algorithm,
        hmac_output_format=encoding,
        hmac_data=DATED,
        hmac_key="X-Hub-Signature",
        hmac_value="signed={{Request.HMAC.Signed}}",
        headers={"X-Mediation-Token": "tip"},
        username="zuora",
        password="pass",
    )[0]
    extra = {
        "callout_hmac_secret": "top",
        "callout_hmac_algorithm": algorithm,
        "callout_hmac_encoding": encoding,
        "callout_hmac_message": DATED,
        "callout_hmac_header": "X-Hub-Signature",
        "callout_hmac_prefix": "signed=",
        "callout_token": "tip",
        "callout_username": "zuora",
        "callout_password": "pass",
    }
    assert read(extra, sent).kind is EntryKind.STATUS_CHANGE
    for wrong in ("callout_hmac_secret", "callout_token", "callout_password"):
        with pytest.raises(CalloutRefused):
            read({**extra, wrong: "wrong"}, sent)
