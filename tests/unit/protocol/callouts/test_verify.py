"""Callouts are authenticated by all configured methods, with the current or the previous secret, and nothing else."""

from __future__ import annotations

import base64
import hmac
from datetime import UTC, datetime
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from airflow_mediation_provider.protocol.callouts import verify as callout_auth
from airflow_mediation_provider.protocol.callouts.settings import CalloutSettings, callout_settings
from airflow_mediation_provider.protocol.callouts.verify import CalloutRefused, authenticate, sign

BODY = b'{"meterId": "2470"}'
# printf '{"meterId": "2470"}' | openssl dgst -sha256 -hmac secret -binary | base64
SIGNATURE = "4lgXw38+FCeocfDq+98EzZRKQiN8bGlCK8u4giCXc+w="
HMAC = {"callout_hmac_secret": "secret"}
BASIC = {"callout_username": "zuora", "callout_password": "p:w"}
TOKEN = {"callout_token": "shared"}
ALL = {**HMAC, **BASIC, **TOKEN}


NOW = datetime(2026, 3, 31, 12, tzinfo=UTC)


def settings(extra: dict[str, Any]) -> CalloutSettings:
    return callout_settings("zuora", extra)


def basic(text: str) -> str:
    return "Basic " + base64.b64encode(text.encode()).decode()


SENT = {"X-Mediation-Signature": SIGNATURE, "Authorization": basic("zuora:p:w"), "X-Mediation-Token": "shared"}


def refusal(extra: dict[str, Any], headers: dict[str, str], body: bytes = BODY) -> CalloutRefused:
    with pytest.raises(CalloutRefused) as caught:
        authenticate(settings(extra), headers, body, now=NOW)
    refused = caught.value
    assert refused.status == 401
    assert refused.reason
    for secret in ("secret", "p:w", "shared", SIGNATURE, *headers.values()):
        assert secret not in refused.reason
    return refused


@pytest.mark.parametrize("extra", [HMAC, BASIC, TOKEN, ALL], ids=["hmac", "basic", "token", "all"])
def test_correct_credentials_pass_with_header_names_in_any_case(extra: dict[str, Any]) -> None:
    authenticate(settings(extra), SENT, BODY, now=NOW)
    authenticate(settings(extra), {name.upper(): value for name, value in SENT.items()}, BODY, now=NOW)


def test_a_connection_without_authentication_accepts_no_callout() -> None:
    assert not refusal({}, {}).challenge


@pytest.mark.parametrize("missing", SENT)
def test_every_configured_method_is_required(missing: str) -> None:
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


def test_a_wrong_signature_is_a_warning_even_where_basic_credentials_were_not_requested() -> None:
    assert not refusal({**HMAC, **BASIC}, {"X-Mediation-Signature": "nonsense"}).unasked


def test_without_basic_there_is_no_challenge() -> None:
    assert not refusal(HMAC, {}).challenge


@pytest.mark.parametrize(
    "field", ["callout_hmac_previous_secret", "callout_previous_password", "callout_previous_token"]
)
def test_the_previous_secret_is_accepted_while_it_is_set(field: str) -> None:
    current = field.replace("previous_", "")
    rotated = {**ALL, current: "new", field: ALL[current]}

    authenticate(settings(rotated), SENT, BODY, now=NOW)
    refusal({**rotated, field: ""}, SENT)


@pytest.mark.parametrize(
    ("extra", "headers", "message"),
    [
        ({"callout_hmac_algorithm": "SHA-512", "callout_hmac_encoding": "HEX"}, {}, BODY),
        ({"callout_hmac_prefix": "sha256=", "callout_hmac_encoding": "HEX"}, {}, BODY),
        ({"callout_hmac_prefix": "Signature "}, {}, BODY),
        ({"callout_hmac_suffix": "."}, {}, BODY),
        ({"callout_hmac_prefix": "v1=", "callout_hmac_suffix": ", v=1 ", "callout_hmac_encoding": "HEX"}, {}, BODY),
        ({"callout_hmac_message": "{{Request.Headers.Date}}.{{Request.Body}}"}, {"date": "today"}, b"today." + BODY),
    ],
)
def test_the_signature_follows_the_settings_in_zuora(
    extra: dict[str, Any], headers: dict[str, str], message: bytes
) -> None:
    made = settings({**HMAC, **extra})
    assert made.hmac
    digest = hmac.digest(b"secret", message, made.hmac.algorithm.replace("-", "").lower())
    text = digest.hex() if made.hmac.encoding == "HEX" else base64.b64encode(digest).decode()

    value = made.hmac.prefix + text + made.hmac.suffix
    sent = {**headers, made.hmac.header: value.strip()}
    authenticate(made, sent, BODY, now=NOW)
    if made.hmac.encoding == "HEX":
        authenticate(made, {**sent, made.hmac.header: value.upper()}, BODY, now=NOW)
    if made.hmac.prefix or made.hmac.suffix:
        refusal({**HMAC, **extra}, {**headers, made.hmac.header: text})
    if headers:
        refusal({**HMAC, **extra}, {made.hmac.header: sent[made.hmac.header]})
        refusal({**HMAC, **extra}, {**sent, "date": "tomorrow"})


def test_sign_gives_the_signature_of_openssl() -> None:
    made = settings(HMAC).hmac
    assert made
    assert sign(made, {}, BODY, "secret") == SIGNATURE


@given(st.text(max_size=60), st.text(max_size=60), st.text(max_size=60), st.binary(max_size=30))
def test_no_other_credentials_pass_or_raise_another_error(signature: str, user: str, token: str, body: bytes) -> None:
    headers = {"X-Mediation-Signature": signature, "Authorization": user, "X-Mediation-Token": token}
    with pytest.raises(CalloutRefused):
        authenticate(settings(ALL), headers, body, now=NOW)


@given(st.binary(max_size=40))
def test_a_single_changed_byte_is_detected(body: bytes) -> None:
    if body != BODY:
        refusal(HMAC, SENT, body)


def test_every_secret_is_compared_even_where_the_first_matches(monkeypatch: pytest.MonkeyPatch) -> None:
    compared = []
    compare = hmac.compare_digest
    monkeypatch.setattr(callout_auth.hmac, "compare_digest", lambda a, b: compared.append(b) or compare(a, b))
    previous = {
        "callout_hmac_previous_secret": "old", "callout_previous_password": "old", "callout_previous_token": "old"
    }  # fmt: skip

    authenticate(settings({**ALL, **previous}), SENT, BODY, now=NOW)
    assert len(compared) == 6

    compared.clear()
    refusal({**ALL, **previous}, dict.fromkeys(SENT, "nonsense") | {"Authorization": basic("x:y")})
    assert len(compared) == 6


@pytest.mark.parametrize(
    ("date", "refused"),
    [
        ("Tue, 31 Mar 2026 12:00:00 GMT", False),
        ("Mon, 30 Mar 2026 12:00:00 GMT", False),
        ("Mon, 30 Mar 2026 11:59:59 GMT", True),
        ("Mon, 30 Mar 2026 11:59:59 -0000", True),
        ("Wed, 01 Apr 2026 12:00:00 GMT", False),
        ("Wed, 01 Apr 2026 12:00:01 GMT", True),
        ("Wed, 01 Apr 2020 12:00:00 GMT", True),
        ("today", False),
        ("", False),
    ],
)
@pytest.mark.parametrize("signed", [True, False])
def test_a_signed_date_has_an_age_limit(date: str, refused: bool, signed: bool) -> None:
    message = "{{Request.Headers.Date}}\n{{Request.Body}}" if signed else "{{Request.Body}}"
    made = settings({**HMAC, "callout_hmac_message": message})
    assert made.hmac is not None
    sent = {"Date": date, made.hmac.header: sign(made.hmac, {"date": date}, BODY, "secret")}
    if refused and signed:
        with pytest.raises(CalloutRefused, match="the signed Date is more than 1 day off") as caught:
            authenticate(made, sent, BODY, now=NOW)
        assert caught.value.status == 401
    else:
        authenticate(made, sent, BODY, now=NOW)
