"""The callout fields of a connection: every error is one sentence with the connection and the field, and no secret."""

from __future__ import annotations

from typing import Any

import pendulum
import pytest

from airflow_mediation_provider.protocol.callouts.settings import (
    CALLOUT_EXTRA,
    SECRET_FIELDS,
    Basic,
    Hmac,
    SignedBody,
    SignedHeader,
    Token,
    callout_settings,
)
from airflow_mediation_provider.protocol.zuora.errors import MisconfigurationError


def test_a_connection_without_callout_fields_accepts_no_callout() -> None:
    assert not callout_settings("zuora", {}).enabled
    assert not callout_settings("zuora", {"data_center": "PROD", "callout_timezone": "Europe/Berlin"}).enabled
    assert not callout_settings("zuora", dict.fromkeys(CALLOUT_EXTRA, "")).enabled
    assert not callout_settings("zuora", dict.fromkeys(CALLOUT_EXTRA)).enabled


def test_defaults() -> None:
    settings = callout_settings("zuora", {"callout_hmac_secret": "s", "callout_token": "t"})

    assert settings.hmac == Hmac(secrets=("s",), header="X-Mediation-Signature", algorithm="SHA-256", encoding="BASE64")
    assert settings.token == Token(header="X-Mediation-Token", tokens=("t",))
    assert (settings.basic, settings.date_format, settings.timezone) == (None, None, "UTC")


def test_all_fields_are_read() -> None:
    settings = callout_settings(
        "zuora",
        {
            "callout_hmac_secret": "s",
            "callout_hmac_previous_secret": "old s",
            "callout_hmac_header": "X-Sig",
            "callout_hmac_algorithm": "HmacSHA512",
            "callout_hmac_encoding": "hex",
            "callout_hmac_prefix": "v1 ",
            "callout_hmac_message": "a {{Request.Headers.Date}}\n{{ Request.Body }}",
            "callout_username": "zuora",
            "callout_password": "p:w",
            "callout_previous_password": "old",
            "callout_token": 12345,
            "callout_previous_token": "old",
            "callout_token_header": "X-Token",
            "callout_date_format": "MMM D, YYYY h:mm:ss A",
            "callout_timezone": "Europe/Berlin",
        },
    )

    assert settings.hmac == Hmac(
        secrets=("s", "old s"),
        header="X-Sig",
        algorithm="SHA-512",
        encoding="HEX",
        prefix="v1 ",
        message="a {{Request.Headers.Date}}\n{{ Request.Body }}",
        parts=("a ", SignedHeader("Date"), "\n", SignedBody()),
    )
    assert settings.basic == Basic(username="zuora", passwords=("p:w", "old"))
    assert settings.token == Token(header="X-Token", tokens=("12345", "old"))
    assert (settings.date_format, settings.timezone) == ("MMM D, YYYY h:mm:ss A", "Europe/Berlin")


HMAC = {"callout_hmac_secret": "topsecret"}


@pytest.mark.parametrize(
    ("extra", "words"),
    [
        ({**HMAC, "callout_hmac_algorithm": "MD5"}, "callout_hmac_algorithm MD5 is too weak"),
        ({**HMAC, "callout_hmac_algorithm": "sha1"}, "too weak"),
        ({**HMAC, "callout_hmac_algorithm": "SHA-224"}, "too weak"),
        ({**HMAC, "callout_hmac_algorithm": "CRC32"}, "is not known: choose one of SHA-256, SHA-384, SHA-512"),
        ({**HMAC, "callout_hmac_encoding": "BASE32"}, "callout_hmac_encoding must be one of BASE64, HEX"),
        ({**HMAC, "callout_hmac_message": "{{Request.Headers.Date}}"}, "must hold {{Request.Body}}"),
        ({**HMAC, "callout_hmac_message": "{{Request.Body}}{{Meter.Id}}"}, "{{Meter.Id}}, whose value only Zuora has"),
        ({**HMAC, "callout_hmac_message": "{{Request.Body}}{{Request.Headers.a b}}"}, "'a b', which HTTP does not"),
        ({**HMAC, "callout_hmac_header": "X-Sig:"}, "'X-Sig:', which HTTP does not allow"),
        ({"callout_hmac_secret": "geheimnisß"}, "callout_hmac_secret must be one line of plain ASCII"),
        ({"callout_hmac_secret": "topsecret\n"}, "callout_hmac_secret must be one line of plain ASCII"),
        ({"callout_hmac_secret": {"a": 1}}, "callout_hmac_secret must be text"),
        ({"callout_token": "***"}, "callout_token is '\\*\\*\\*', which Airflow shows in place of a secret"),
        ({"callout_token": "t", "callout_token_header": "***"}, "callout_token_header is"),
        ({"callout_username": "zuora"}, "callout_username is set, but callout_password is not"),
        ({"callout_password": "p"}, "callout_password is set, but callout_username is not"),
        ({"callout_username": "a:b", "callout_password": "p"}, "without a colon"),
        ({"callout_hmac_previous_secret": "old"}, "callout_hmac_previous_secret is set, but callout_hmac_secret"),
        ({"callout_token": "t", "callout_hmac_header": "X-Sig"}, "callout_hmac_header is set, but callout_hmac_secret"),
        ({"callout_token": "t", "callout_token_header": "Host"}, "which HTTP itself uses"),
        ({"callout_hmac_secret": "s", "callout_hmac_header": "content-length"}, "which HTTP itself uses"),
        ({"callout_timezone": "Mars/Olympus"}, "callout_timezone must be a zone"),
        ({"callout_date_format": "dd.MM.yyyy HH:mm"}, "callout_date_format 'dd.MM.yyyy HH:mm' writes"),
        ({"callout_date_format": "MM/DD/YYYY hh:mm"}, "reads that as 2001-03-31 09:17"),
        ({"callout_date_format": "nonsense"}, "callout_date_format 'nonsense'"),
    ],
)
def test_every_error_is_one_sentence(extra: dict[str, Any], words: str) -> None:
    with pytest.raises(MisconfigurationError, match=words.replace("{", r"\{")) as caught:
        callout_settings("zuora", extra)

    assert str(caught.value).startswith("Connection 'zuora': ")
    assert "topsecret" not in str(caught.value)


def test_a_format_without_a_day_is_refused_on_every_day(monkeypatch: pytest.MonkeyPatch) -> None:
    for day in range(365):
        today = pendulum.datetime(2026, 1, 1, 12).add(days=day)
        monkeypatch.setattr(pendulum, "now", lambda tz=None, today=today: today)
        for text in ("dd.MM.yyyy HH:mm", "dd.MM.YYYY HH:mm"):
            with pytest.raises(MisconfigurationError, match=f"callout_date_format '{text}' writes"):
                callout_settings("zuora", {"callout_date_format": text})


def test_a_format_without_a_time_is_accepted() -> None:
    assert callout_settings("zuora", {"callout_date_format": "DD.MM.YYYY"}).date_format == "DD.MM.YYYY"


def test_no_repr_contains_a_secret() -> None:
    extra: dict[str, Any] = {name: f"hidden-{number}" for number, name in enumerate(SECRET_FIELDS)}
    settings = callout_settings("zuora", {**extra, "callout_username": "zuora"})

    assert settings.hmac
    assert settings.basic
    assert settings.token
    assert "hidden" not in repr(settings)
