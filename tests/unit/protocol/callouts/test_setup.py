"""The text to paste into Zuora: every setting of the connection, none of its secrets, and inferred fields marked."""

from __future__ import annotations

import json

from airflow_mediation_provider.protocol.callouts.settings import SECRET_FIELDS, callout_settings
from airflow_mediation_provider.protocol.callouts.setup import FIELDS, settings_to_paste, template_body, template_text

URL = "https://airflow.example.com/mediation/callouts/zuora"


def test_the_body_is_json_of_merge_fields() -> None:
    body = json.loads(template_body())

    assert body["sessionId"] == "{{MeterSession.Id}}"
    assert list(body) == [field.key for field in FIELDS]
    # A quote in a meter's name would break the JSON, and Zuora would neither send nor retry the callout.
    assert "Name" not in template_body()


def test_the_text_has_every_setting_and_no_secret() -> None:
    secrets = {name: f"hidden-{number}" for number, name in enumerate(sorted(SECRET_FIELDS))}
    settings = callout_settings(
        "zuora",
        {
            **secrets,
            "callout_username": "zuora-user",
            "callout_hmac_header": "X-Sig",
            "callout_hmac_algorithm": "SHA-384",
            "callout_hmac_encoding": "HEX",
            "callout_hmac_prefix": "v1=",
            "callout_hmac_suffix": ".",
            "callout_hmac_message": "{{Request.Headers.Date}}{{Request.Body}}",
            "callout_token_header": "X-Token",
        },
    )

    text = template_text(settings, URL)

    assert "hidden" not in text
    pasted = dict(settings_to_paste(settings, URL))
    assert pasted["Request URL"] == URL
    assert pasted["HMAC header value"] == "v1={{Request.HMAC.Signed}}."
    assert pasted["HMAC data"] == "{{Request.Headers.Date}}{{Request.Body}}"
    assert (pasted["HMAC algorithm"], pasted["HMAC output format"]) == ("SHA-384", "HEX")
    assert pasted["HMAC header name"] == "X-Sig"
    assert pasted["Username"] == "zuora-user"
    assert pasted["Custom header"].startswith("X-Token: ")
    assert all(value in text for value in pasted.values())


def test_the_text_marks_inferred_fields_and_missing_settings() -> None:
    text = template_text(callout_settings("zuora", {}), URL)

    assert "{{MeterSession.PreviousStatus}}  is meant to be  'Session Previous Status'" in text
    assert "{{MeterSession.Status}}  is meant" not in text
    assert "accepts no callouts yet" in text
    assert "HMAC header value" not in text
