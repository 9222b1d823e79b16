"""What is kept of a callout: no secret, no more than so many characters, and nothing that a database refuses."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from airflow_mediation_provider.protocol.callouts.receipt import LONGEST_BODY, Receipt, receipt

NOW = datetime(2026, 3, 1, 12, 30, tzinfo=UTC)
SECRETS = {
    "callout_hmac_secret": "signing-secret",
    "callout_hmac_previous_secret": "signing-secret-of-last-year",
    "callout_username": "zuora",
    "callout_password": "pass-phrase",
    "callout_token": "shared-token",
}


def made(
    status: int = 401, *, headers: dict[str, str] | None = None, extra: dict[str, Any] | None = None, **more: Any
) -> Receipt:
    given_: dict[str, Any] = {"method": "POST", "query": [], "body": b"{}", **more}
    sent = list((headers or {}).items())
    return receipt("zuora", NOW, status, extra=SECRETS if extra is None else extra, headers=sent, **given_)


def test_only_harmless_headers_have_their_values() -> None:
    kept = made(
        headers={
            "Content-Type": "application/json",
            "User-Agent": "Zuora",
            "Zuora-Notification-Id": "n-1",
            "Authorization": "Basic enVvcmE6cGFzcy1waHJhc2U=",
            "Cookie": "session=1",
            "X-Mediation-Signature": "0" * 44,
            "X-Mediation-Token": "shared-token",
            "X-Api-Key": "of a gateway",
            "Proxy-Authorization": "Basic x",
        }
    )
    assert kept.headers == {
        "content-type": "application/json",
        "user-agent": "Zuora",
        "zuora-notification-id": "n-1",
        "authorization": "Basic ***",
        "cookie": "***",
        "x-mediation-signature": "*** (44 characters)",
        "x-mediation-token": "***",
        "x-api-key": "***",
        "proxy-authorization": "***",
    }
    assert kept.notification_id == "n-1"


@pytest.mark.parametrize("field", ["callout_token_header", "callout_hmac_header"])
def test_a_header_that_the_settings_make_a_secret_is_masked(field: str) -> None:
    extra = {field: " X-Request-Id "}
    assert "hush" not in str(made(headers={"x-request-id": "hush"}, extra=extra))
    assert made(headers={"x-request-id": "known"}).headers == {"x-request-id": "known"}


def test_a_token_in_place_of_a_scheme_is_masked() -> None:
    assert made(headers={"Authorization": "hush"}).headers == {"authorization": "***"}
    assert made(headers={"Authorization": "hush hush"}).headers == {"authorization": "***"}


def test_secrets_of_the_connection_are_masked_wherever_they_are() -> None:
    secrets = [value for name, value in SECRETS.items() if name != "callout_username"]
    everywhere = " ".join(secrets) + " end"
    kept = made(
        headers={"User-Agent": everywhere},
        query=[("meterName", everywhere), ("key", everywhere)],
        body=everywhere.encode(),
    )
    assert (kept.headers, kept.query, kept.body) == (
        {"user-agent": "*** *** *** *** end"},
        {"meterName": "*** *** *** *** end", "key": "***"},
        "*** *** *** *** end",
    )


def test_a_secret_at_the_cut_leaves_no_beginning() -> None:
    for before in range(LONGEST_BODY - 20, LONGEST_BODY + 5):
        kept = made(body=b"x" * before + b"shared-token" + b"y" * 3000).body
        assert kept is not None
        assert "sh" not in kept
        assert len(kept) == LONGEST_BODY


def test_wrong_settings_mask_as_well() -> None:
    extra = {"callout_hmac_secret": "signing-secret", "callout_hmac_algorithm": "MD5", "callout_token": 12345678}
    assert made(503, body=b"signing-secret 12345678", extra=extra).body == "*** ***"


def test_of_an_accepted_callout_neither_body_nor_address_is_repeated() -> None:
    kept = made(200, query=[("meterId", "7")], body=b"{}", transition_id=5)
    assert (kept.body, kept.query, kept.body_size, kept.transition_id) == (None, {}, 2, 5)
    assert kept.accepted


def test_a_body_that_was_not_received_has_its_announced_size() -> None:
    kept = made(413, body=None, headers={"Content-Length": "300000"})
    assert (kept.body, kept.body_size) == (None, 300_000)
    assert made(408, body=None, headers={"Content-Length": "9" * 30}).body_size is None


def test_the_first_of_two_headers_with_the_same_name_is_kept() -> None:
    kept = receipt(
        "zuora",
        NOW,
        401,
        extra={},
        method="POST",
        headers=[("Host", "a"), ("Authorization", "Basic x"), ("authorization", "Bearer airflow")],
        query=[],
        body=b"",
    )
    assert kept.headers == {"host": "a", "authorization": "Basic ***"}


def test_many_headers_are_cut_and_the_rest_is_counted() -> None:
    kept = made(headers={f"x-{number}": "v" for number in range(100)})
    assert len(kept.headers) == 41
    assert kept.headers["..."] == "60 more"
    long = made(headers={"host": "h" * 5000, **{f"x-{'n' * 300}{number}": "" for number in range(60)}})
    assert len(json.dumps(dict(long.headers))) < 3000


_TEXTS = st.text(max_size=3000)


@given(headers=st.dictionaries(_TEXTS, _TEXTS, max_size=60), body=st.binary(max_size=9000), reason=_TEXTS, name=_TEXTS)
def test_any_request_fits(headers: dict[str, str], body: bytes, reason: str, name: str) -> None:
    kept = made(headers=headers, body=body, reason=reason, query=[(name, reason), ("meterName", name)], method=name)
    text = json.dumps([kept.reason, dict(kept.headers), dict(kept.query), kept.body, kept.method], ensure_ascii=False)
    assert "\0" not in "".join([*kept.headers, *kept.headers.values(), *kept.query, kept.body or "", kept.reason])
    text.encode()
    assert max(map(len, kept.headers.values()), default=0) <= 200
    assert sum(len(each) + len(value) for each, value in kept.headers.items()) <= 2020
    assert len(kept.body or "") <= LONGEST_BODY
    assert len(kept.method) <= 16
    assert len(kept.notification_id or "") <= 190
