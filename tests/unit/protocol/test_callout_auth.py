"""Callouts are proven by all that is configured, by the current or the previous secret, and by nothing else."""

from __future__ import annotations

import base64
import hmac
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from airflow_mediation_provider.protocol import callout_auth
from airflow_mediation_provider.protocol.callout_auth import Refused, authenticate, sign
from airflow_mediation_provider.protocol.callout_settings import CalloutSettings, callout_settings

BODY = b'{"meterId": "2470"}'
# printf '{"meterId": "2470"}' | openssl dgst -sha256 -hmac secret -binary | base64
SIGNATURE = "4lgXw38+FCeocfDq+98EzZRKQiN8bGlCK8u4giCXc+w="
HMAC = {"callout_hmac_secret": "secret"}
BASIC = {"callout_username": "zuora", "callout_password": "p:w"}
TOKEN = {"callout_token": "shared"}
ALL = {**HMAC, **BASIC, **TOKEN}


def settings(extra: dict[str, Any]) -> CalloutSettings:
    return callout_settings("zuora", extra)


def basic(text: str) -> str:
    return "Basic " + base64.b64encode(text.encode()).decode()


SENT = {"X-Mediation-Signature": SIGNATURE, "Authorization": basic("zuora:p:w"), "X-Mediation-Token": "shared"}


def refusal(extra: dict[str, Any], headers: dict[str, str], body: bytes = BODY) -> Refused:
    with pytest.raises(Refused) as caught:
        authenticate(settings(extra), headers, body)
    refused = caught.value
    assert refused.status == 401
    assert refused.reason
    for secret in ("secret", "p:w", "shared", SIGNATURE, *headers.values()):
        assert secret not in refused.reason
    return refused


@pytest.mark.parametrize("extra", [HMAC, BASIC, TOKEN, ALL], ids=["hmac", "basic", "token", "all"])
def test_the_right_ones_pass_with_headers_in_any_case(extra: dict[str, Any]) -> None:
    authenticate(settings(extra), SENT, BODY)
    authenticate(settings(extra), {name.upper(): value for name, value in SENT.items()}, BODY)


def test_nothing_configured_accepts_nothing() -> None:
    assert not refusal({}, {}).challenge


@pytest.mark.parametrize("missing", SENT)
def test_all_that_is_configured_is_required(missing: str) -> None:
    refused = refusal(ALL, {name: value for name, value in SENT.items() if name != missing})

    assert refused.challenge
    assert refused.unasked is (missing == "Authorization")


@pytest.mark.parametrize(
    ("headers", "unasked"),
    [({}, True), ({"Authorization": basic("zuora:wrong")}, False), ({"Authorization": "Bearer x"}, False)],
)
def test_basic_asks_for_credentials(headers: dict[str, str], unasked: bool) -> None:
    refused = refusal(BASIC, headers)

    assert refused.challenge
    assert refused.unasked is unasked


def test_a_wrong_signature_is_worth_a_warning_although_basic_was_not_asked_for() -> None:
    assert not refusal({**HMAC, **BASIC}, {"X-Mediation-Signature": "nonsense"}).unasked


def test_without_basic_there_is_no_challenge() -> None:
    assert not refusal(HMAC, {}).challenge


@pytest.mark.parametrize(
    "field", ["callout_hmac_previous_secret", "callout_previous_password", "callout_previous_token"]
)
def test_the_previous_secret_counts_while_it_is_set(field: str) -> None:
    current = field.replace("previous_", "")
    rotated = {**ALL, current: "new", field: ALL[current]}

    authenticate(settings(rotated), SENT, BODY)
    refusal({**rotated, field: ""}, SENT)


@pytest.mark.parametrize(
    ("extra", "headers", "message"),
    [
        ({"callout_hmac_algorithm": "SHA-512", "callout_hmac_encoding": "HEX"}, {}, BODY),
        ({"callout_hmac_prefix": "sha256=", "callout_hmac_encoding": "HEX"}, {}, BODY),
        ({"callout_hmac_prefix": "Signature "}, {}, BODY),
        ({"callout_hmac_message": "{{Request.Headers.Date}}.{{Request.Body}}"}, {"date": "today"}, b"today." + BODY),
    ],
)
def test_the_signature_as_zuora_is_told_to_make_it(
    extra: dict[str, Any], headers: dict[str, str], message: bytes
) -> None:
    made = settings({**HMAC, **extra})
    assert made.hmac
    digest = hmac.digest(b"secret", message, made.hmac.algorithm.replace("-", "").lower())
    text = digest.hex() if made.hmac.encoding == "HEX" else base64.b64encode(digest).decode()

    sent = {**headers, made.hmac.header: made.hmac.prefix + text}
    authenticate(made, sent, BODY)
    if made.hmac.encoding == "HEX":
        authenticate(made, {**sent, made.hmac.header: (made.hmac.prefix + text).upper()}, BODY)
    if made.hmac.prefix:
        refusal({**HMAC, **extra}, {**headers, made.hmac.header: text})
    if headers:
        refusal({**HMAC, **extra}, {made.hmac.header: sent[made.hmac.header]})
        refusal({**HMAC, **extra}, {**sent, "date": "tomorrow"})


def test_sign_makes_what_openssl_makes() -> None:
    made = settings(HMAC).hmac
    assert made
    assert sign(made, {}, BODY, "secret") == SIGNATURE


@given(st.text(max_size=60), st.text(max_size=60), st.text(max_size=60), st.binary(max_size=30))
def test_no_other_credentials_pass_and_none_breaks_it(signature: str, user: str, token: str, body: bytes) -> None:
    headers = {"X-Mediation-Signature": signature, "Authorization": user, "X-Mediation-Token": token}
    with pytest.raises(Refused):
        authenticate(settings(ALL), headers, body)


@given(st.binary(max_size=40))
def test_one_changed_byte_is_noticed(body: bytes) -> None:
    if body != BODY:
        refusal(HMAC, SENT, body)


def test_every_secret_is_compared_whatever_the_first_says(monkeypatch: pytest.MonkeyPatch) -> None:
    compared = []
    compare = hmac.compare_digest
    monkeypatch.setattr(callout_auth.hmac, "compare_digest", lambda a, b: compared.append(b) or compare(a, b))
    previous = {
        "callout_hmac_previous_secret": "old", "callout_previous_password": "old", "callout_previous_token": "old"
    }  # fmt: skip

    authenticate(settings({**ALL, **previous}), SENT, BODY)
    assert len(compared) == 6

    compared.clear()
    refusal({**ALL, **previous}, dict.fromkeys(SENT, "nonsense") | {"Authorization": basic("x:y")})
    assert len(compared) == 6
