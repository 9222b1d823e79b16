"""The test callout passes like one of Zuora's, is marked as a test, and its answers are distinguished."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

import pytest

from airflow_mediation_provider.protocol.callouts.parse import read_callout
from airflow_mediation_provider.protocol.callouts.settings import callout_settings
from airflow_mediation_provider.protocol.callouts.setup import explain_answer, explain_refusal, probe
from airflow_mediation_provider.protocol.callouts.verify import CalloutRefused, authenticate
from airflow_mediation_provider.protocol.sessions.journal_entry import EntryKind

NOW = datetime(2026, 3, 31, 12, tzinfo=UTC)


@pytest.mark.parametrize(
    "extra",
    [
        {"callout_hmac_secret": "s"},
        {
            "callout_hmac_secret": "s",
            "callout_hmac_message": "{{Request.Headers.X}}{{Request.Headers.date}}{{Request.Body}}",
        },
        {"callout_username": "u", "callout_password": "p"},
        {"callout_token": "t", "callout_previous_token": "old"},
        {"callout_token": "t", "callout_hmac_secret": "s", "callout_username": "u", "callout_password": "p"},
    ],
    ids=str,
)
def test_the_test_callout_is_authentic_and_stored_as_a_test(extra: dict[str, Any]) -> None:
    settings = callout_settings("zuora", extra)
    headers, body = probe(settings, nonce="abc", now=NOW)

    authenticate(settings, headers, body, now=NOW)
    entry = read_callout(settings, headers, body, NOW)

    assert (entry.kind, entry.transition, entry.notification_id) == (EntryKind.TEST, None, "test-abc")
    unauthenticated, same_body = probe(settings, nonce="abc", now=NOW, authorized=False)
    assert same_body == body
    with pytest.raises(CalloutRefused):
        authenticate(settings, unauthenticated, body, now=NOW)


def test_the_right_answers_have_no_explanation() -> None:
    token = callout_settings("zuora", {"callout_token": "t"})
    basic = callout_settings("zuora", {"callout_username": "u", "callout_password": "p"})
    refused = '{"success": false, "error": "not authenticated"}'

    assert explain_answer(200, {}, '{"success": true}') is None
    assert explain_refusal(401, {}, refused, token) is None
    assert explain_refusal(401, {"www-authenticate": 'Basic realm="mediation"'}, refused, basic) is None


@pytest.mark.parametrize("body", ["", "<html>", "[]", '{"success": "true"}', "[" * 100_000])
def test_any_body_of_an_answer_can_be_explained(body: str) -> None:
    assert "not from this endpoint" in str(explain_answer(200, {}, body))
    assert "403" in str(explain_answer(403, {}, body))
