"""The connection: what its fields mean, and one clear sentence for whatever is wrong with them."""

from __future__ import annotations

import json

import pytest
from airflow.sdk import Connection

from airflow_mediation_provider.hooks.settings import settings_of
from airflow_mediation_provider.protocol.data_centers import DataCenter
from airflow_mediation_provider.protocol.errors import MisconfigurationError


def settings(extra=None, **fields):
    fields = {"login": "id", "password": "hush-hush", **fields}
    text = extra if isinstance(extra, str | None) else json.dumps(extra)
    return settings_of("zuora", Connection(conn_id="zuora", conn_type="mediation", extra=text, **fields))


@pytest.mark.parametrize("center", DataCenter)
def test_data_centers(center):
    found = settings({"data_center": center.name})

    assert found.base_url == center.rest_url
    assert found.base_url.startswith("https://rest.")


def test_an_unknown_name_in_the_extra_is_pointed_out_without_its_value(caplog):
    settings({"data_center": "PROD", "entity": "e-secret"})

    [record] = caplog.records
    assert "ignoring entity in the extra" in record.getMessage()
    assert "entity_id" in record.getMessage()
    assert "e-secret" not in record.getMessage()


def test_documented_addresses():
    assert DataCenter.PROD.rest_url == "https://rest.zuora.com"
    assert DataCenter.SBX_NA.rest_url == "https://rest.sandbox.na.zuora.com"
    assert DataCenter.CSBX_EU.ui_url == "https://test.eu.zuora.com"
    assert DataCenter.PROD_AP.ui_url is None
    assert DataCenter.SBX.label == "US API Sandbox Cloud 2 (rest.apisandbox.zuora.com)"
    assert len(DataCenter) == 10


@pytest.mark.parametrize(
    ("fields", "url"),
    [
        ({"host": "http://127.0.0.1:8080"}, "http://127.0.0.1:8080"),
        ({"host": "http://127.0.0.1:8080/"}, "http://127.0.0.1:8080"),
        ({"host": "127.0.0.1", "port": 8080, "schema": "http"}, "http://127.0.0.1:8080"),
        ({"host": "rest.zuora.com"}, "https://rest.zuora.com"),
        ({"host": "https://gateway.example.com/zuora/"}, "https://gateway.example.com/zuora"),
        ({"host": "http://[::1]:80"}, "http://[::1]:80"),
    ],
)
def test_the_host_overrides_the_data_center(fields, url):
    assert settings({"data_center": "PROD"}, **fields).base_url == url


def test_names_of_data_centers_in_any_case():
    assert settings({"data_center": " sbx-na "}).base_url == DataCenter.SBX_NA.rest_url


@pytest.mark.parametrize(
    ("extra", "fields", "says"),
    [
        ({}, {}, "neither a data center nor a host; set data_center to one of CSBX, SBX_NA"),
        ({"data_center": "MOON"}, {}, "data_center must be one of CSBX, .*not 'MOON'"),
        ({"data_center": "PROD"}, {"login": None}, "client ID .login. is missing"),
        ({"data_center": "PROD"}, {"password": ""}, "client secret .password. is missing"),
        ("not json", {}, "extra is not a JSON object"),
        ("[1]", {}, "extra is not a JSON object"),
        ({}, {"host": "ftp://x"}, "host must be a REST base URL like https://rest.zuora.com, not 'ftp://x'"),
        ({}, {"host": "https://"}, "host must be a REST base URL"),
        ({}, {"host": "https://a:hush@x"}, "host must be a REST base URL"),
        ({}, {"host": "https://x:port"}, "host must be a REST base URL"),
        ({}, {"host": "https://x?y=1"}, "host must be a REST base URL"),
        ({}, {"host": "https://rest.zuora.com/v1"}, "without /v1"),
        ({"data_center": "PROD", "entity_id": "a\nb"}, {}, "entity_id must be one line"),
        ({"data_center": "PROD", "org_ids": "ü"}, {}, "org_ids must be one line of plain ASCII"),
        ({"data_center": "PROD", "timeout": "long"}, {}, "must be numbers"),
        ({"data_center": "PROD", "timeout": -1}, {}, "timeout above 0"),
        ({"data_center": "PROD", "proxies": [1]}, {}, "proxies must be an object"),
        (
            {"data_center": "PROD", "proxies": {"https": "http://me:hush@proxy:31z8"}},
            {},
            "proxies.'https'. is no address",
        ),
        ({"data_center": "PROD", "proxy": "me:hush@"}, {}, "proxies.'http'. is no address"),
        (
            {"data_center": "SBX", "ui_link_template": "https://x/{meter}"},
            {},
            "unknown field {meter}; known are {meter_id}",
        ),
        ({"data_center": "SBX", "ui_link_template": "https://x/{meter_id.real}"}, {}, "unknown field"),
        ({"data_center": "SBX", "ui_link_template": "https://x/{}"}, {}, "unknown field"),
        ({"data_center": "SBX", "ui_link_template": "https://x/{meter_id"}, {}, "is no template"),
        ({"data_center": "SBX", "ui_link_template": "https://x/{meter_id:{x}}"}, {}, "is no template"),
        ({"data_center": "PROD", "ui_link_template": "{ui_base}/x"}, {}, "documents no UI address"),
    ],
)
def test_one_sentence_for_what_is_wrong(extra, fields, says):
    with pytest.raises(MisconfigurationError, match=says) as caught:
        settings(extra, **fields)

    sentence = str(caught.value)
    assert sentence.startswith("Connection 'zuora': ")
    assert sentence.endswith(".")
    assert "\n" not in sentence
    assert "hush" not in sentence


def test_session_url():
    made = settings({"data_center": "SBX", "ui_link_template": "{ui_base}/m/{meter_id}#{session_id}-{run_id}"})

    assert made.session_url("1", "R-1", "7") == "https://apisandbox.zuora.com/m/1#R-1-7"
    assert made.session_url("1", "R-1", None) is None  # a link to a place that is not known is none
    assert settings({"data_center": "SBX"}).session_url("1", "R-1", "7") is None
    own = settings({"data_center": "PROD", "ui_link_template": "https://ours/{session_id}"})
    assert own.session_url("1", "R/1", None) == "https://ours/R%2F1"


def test_http_options():
    http = settings(
        {
            "data_center": "PROD",
            "proxy": "http://proxy:3128",
            "verify": "/etc/ca.pem",
            "cert": ["c", "k"],
            "timeout": "7",
            "max_redirects": "2",
            "allow_redirects": "true",
            "trust_env": "false",
        }
    ).http

    assert http.proxies == {"http": "http://proxy:3128", "https": "http://proxy:3128"}
    assert (http.verify, http.cert, http.timeout) == ("/etc/ca.pem", ("c", "k"), 7)
    assert (http.max_redirects, http.allow_redirects, http.trust_env) == (2, True, False)


@pytest.mark.parametrize(
    ("value", "verify"), [(None, True), (False, False), ("false", False), ("True", True), ("/ca", "/ca")]
)
def test_verify(value, verify):
    assert settings({"data_center": "PROD", "verify": value}).http.verify is verify or verify == "/ca"


def test_a_request_takes_30_seconds_at_most():
    assert settings({"data_center": "PROD"}).http.timeout == 30
    assert settings({"data_center": "PROD", "timeout": 300}).http.timeout == 30


def test_no_repr_shows_a_secret():
    found = settings({"data_center": "PROD", "proxy": "http://u:hush@proxy"})

    assert "hush" not in repr([found, found.peer()])
