"""The connection: the meaning of its fields, and one clear sentence for each error in them."""

from __future__ import annotations

import json

import pytest
from airflow.sdk import Connection

from airflow_mediation_provider.hooks.settings import log_cautions, settings_of
from airflow_mediation_provider.protocol.zuora.errors import MisconfigurationError
from airflow_mediation_provider.protocol.zuora.requests import DataCenter


def settings(extra=None, **fields):
    fields = {"login": "id", "password": "hush-hush", **fields}
    text = extra if isinstance(extra, str | None) else json.dumps(extra)
    return settings_of("zuora", Connection(conn_id="zuora", conn_type="mediation", extra=text, **fields))


@pytest.mark.parametrize("center", DataCenter)
def test_a_data_center_has_a_rest_url_and_a_label(center):
    found = settings({"data_center": center.name})

    assert found.base_url == center.rest_url
    assert found.base_url.startswith("https://rest.")


def test_an_unknown_name_in_the_extra_is_logged_without_its_value(caplog):
    settings({"data_center": "PROD", "entity": "e-secret"})

    [record] = caplog.records
    assert "ignoring entity in the extra" in record.getMessage()
    assert "entity_id" in record.getMessage()
    assert "e-secret" not in record.getMessage()


@pytest.mark.parametrize(
    ("given", "names"),
    [
        (None, {}),
        ("", {}),
        ({}, {}),
        ({" 1001 ": " Storage ", "1002": "Ü"}, {"1001": "Storage", "1002": "Ü"}),
        ('{"1001": "Storage"}', {"1001": "Storage"}),
    ],
)
def test_meters_may_have_names(given, names):
    assert settings({"data_center": "SBX", "meter_names": given}).meter_names == names


def test_the_addresses_are_those_that_zuora_documents():
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


def test_the_name_of_a_data_center_may_be_in_any_case():
    assert settings({"data_center": " sbx-na "}).base_url == DataCenter.SBX_NA.rest_url


@pytest.mark.parametrize(
    ("extra", "fields", "says"),
    [
        ({}, {}, "neither a data center nor a host; set data_center to one of CSBX, SBX_NA"),
        ({"data_center": "MOON"}, {}, "data_center must be one of CSBX, .*not 'MOON'"),
        ({"data_center": "PROD"}, {"login": None}, "client ID .login. is missing"),
        ({"data_center": "PROD"}, {"password": ""}, "client secret .password. is missing"),
        ({"data_center": "PROD"}, {"login": " id"}, "client ID .login. begins or ends with a blank or a newline"),
        ({"data_center": "PROD"}, {"password": "hush\n"}, "client secret .password. begins or ends with a blank"),
        ("not json", {}, "extra is not a JSON object"),
        ("[1]", {}, "extra is not a JSON object"),
        ({}, {"host": "ftp://x"}, "host 'ftp://x' is not a REST base URL like https://rest.zuora.com"),
        ({}, {"host": "https://"}, "is not a REST base URL"),
        ({}, {"host": "https://a:hush@x"}, "is not a REST base URL"),
        ({}, {"host": "https://x:port"}, "is not a REST base URL"),
        ({}, {"host": "https://x?y=1"}, "is not a REST base URL"),
        ({}, {"host": "https://rest.zuora.com/v1"}, "without /v1"),
        ({"data_center": "PROD", "entity_id": "a\nb"}, {}, "entity_id must be one line"),
        ({"data_center": "PROD", "org_ids": "ü"}, {}, "org_ids must be one line of plain ASCII"),
        ({"data_center": "PROD", "timeout": "long"}, {}, "must be numbers"),
        ({"data_center": "PROD", "timeout": -1}, {}, "timeout above 0"),
        ({"data_center": "PROD", "proxies": [1]}, {}, "proxies must be an object"),
        (
            {"data_center": "PROD", "proxies": {"https": "http://me:hush@proxy:31z8"}},
            {},
            "proxies.'https'. is not an address",
        ),
        ({"data_center": "PROD", "proxy": "me:hush@"}, {}, "proxies.'http'. is not an address"),
        (
            {"data_center": "SBX", "ui_link_template": "https://x/{meter}"},
            {},
            "unknown field {meter}; known are {meter_id}",
        ),
        ({"data_center": "SBX", "ui_link_template": "https://x/{meter_id.real}"}, {}, "unknown field"),
        ({"data_center": "SBX", "ui_link_template": "https://x/{}"}, {}, "unknown field"),
        ({"data_center": "SBX", "ui_link_template": "https://x/{meter_id"}, {}, "is not a valid template"),
        ({"data_center": "SBX", "ui_link_template": "https://x/{meter_id:{x}}"}, {}, "is not a valid template"),
        ({"data_center": "PROD", "ui_link_template": "{ui_base}/x"}, {}, "documents no UI address"),
        ({"data_center": "SBX", "ui_link_template": "zuora.example/{meter_id}"}, {}, "no address: begin it with https"),
        ({"data_center": "SBX", "ui_link_template": "javascript:{meter_id}"}, {}, "is no address"),
        ({"data_center": "SBX", "ui_link_template": "https:///{meter_id}"}, {}, "is no address"),
        ({"data_center": "SBX", "meter_names": ["Storage"]}, {}, 'meter_names must be an object like {"1001"'),
        ({"data_center": "SBX", "meter_names": "Storage"}, {}, "meter_names must be an object"),
        ({"data_center": "SBX", "meter_names": '["Storage"]'}, {}, "meter_names must be an object"),
        ({"data_center": "SBX", "meter_names": {"1001": 7}}, {}, "meter_names must be an object"),
        ({"data_center": "SBX", "meter_names": {"1001": " "}}, {}, "meter_names must be an object"),
        ({"data_center": "SBX", "meter_names": {" ": "Storage"}}, {}, "meter_names must be an object"),
        ({"data_center": "SBX", "meter_names": {"1001": "two\nlines"}}, {}, "meter_names must be an object"),
        ({"data_center": "SBX", "meter_names": {"1001": "x" * 251}}, {}, "at most 250 characters"),
    ],
)
def test_an_error_in_the_connection_is_one_sentence(extra, fields, says):
    with pytest.raises(MisconfigurationError, match=says) as caught:
        settings(extra, **fields)

    sentence = str(caught.value)
    assert sentence.startswith("Connection 'zuora': ")
    assert sentence.endswith(".")
    assert "\n" not in sentence
    assert "hush" not in sentence


@pytest.mark.parametrize("conn_type", ["http", "", None])
def test_a_connection_of_another_type_is_refused(conn_type):
    other = Connection(conn_id="zuora", conn_type=conn_type, host="rest.zuora.com", login="id", password="secret")

    with pytest.raises(MisconfigurationError, match="make a connection of type 'mediation'"):
        settings_of("zuora", other)


def test_the_session_url_fills_the_template():
    made = settings({"data_center": "SBX", "ui_link_template": "{ui_base}/m/{meter_id}#{session_id}-{run_id}"})

    assert made.session_url("1", "R-1", "7") == "https://apisandbox.zuora.com/m/1#R-1-7"
    assert made.session_url("1", "R-1", None) is None  # no link without the run id that it needs
    assert settings({"data_center": "SBX"}).session_url("1", "R-1", "7") is None
    own = settings({"data_center": "PROD", "ui_link_template": "https://ours/{session_id}"})
    assert own.session_url("1", "R/1", None) == "https://ours/R%2F1"


def test_the_options_of_http_connections_are_read():
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
def test_verify_is_a_flag_or_a_path(value, verify):
    assert settings({"data_center": "PROD", "verify": value}).http.verify is verify or verify == "/ca"


def test_the_time_limit_of_a_request_is_at_most_30_seconds():
    assert settings({"data_center": "PROD"}).http.timeout == 30
    assert settings({"data_center": "PROD", "timeout": 300}).http.timeout == 30


def test_no_repr_shows_a_secret():
    found = settings({"data_center": "PROD", "proxy": "http://u:hush@proxy"})

    assert "hush" not in repr([found, found.peer()])


SAFE = {"password": "hush-hush-hush-hush"}


@pytest.mark.parametrize(
    ("fields", "extra", "caution"),
    [
        ({"host": "http://zuora.example", **SAFE}, {}, "are sent to zuora.example without TLS: use https"),
        ({"host": "http://203.0.113.7", **SAFE}, {"verify": False}, None),
        ({"host": "http://8.8.8.8", **SAFE}, {}, "are sent to 8.8.8.8 without TLS"),
        ({"host": "http://127.0.0.1:8080", **SAFE}, {}, None),
        ({"host": "http://[::1]:8080", **SAFE}, {}, None),
        ({"host": "http://localhost:8080", **SAFE}, {}, None),
        ({"host": "http://10.0.0.7", **SAFE}, {}, None),
        ({"host": "http://simulator:8080", **SAFE}, {}, None),
        ({"host": "https://zuora.example", **SAFE}, {}, None),
        ({"host": "https://zuora.example", **SAFE}, {"verify": "false"}, "verify is false, so any server is trusted"),
        ({"host": "https://zuora.example", "password": "x" * 15}, {}, "the client secret has fewer than 16 characters"),
        ({"host": "https://zuora.example", **SAFE}, {"callout_token": "x" * 16}, None),
        ({"host": "https://zuora.example", **SAFE}, {"callout_token": "x" * 15}, "callout_token has fewer than 16"),
        ({"host": "https://zuora.example", **SAFE}, {"callout_token": 0}, "callout_token has fewer than 16"),
        (
            {"host": "https://zuora.example", **SAFE},
            {"callout_hmac_secret": 7},
            "callout_hmac_secret has fewer than 16",
        ),
        (
            {"host": "https://zuora.example", **SAFE},
            {"callout_token": "x" * 16, "callout_previous_token": "y" * 16},
            "callout_previous_token is still accepted",
        ),
        (
            {"host": "https://zuora.example", **SAFE},
            {"callout_hmac_message": "{{Request.Headers.Date}}{{Request.Body}}"},
            "callout_hmac_message signs two parts without a text between them",
        ),
        (
            {"host": "https://zuora.example", **SAFE},
            {"callout_hmac_message": "{{Request.Headers.Date}}\n{{Request.Body}}"},
            None,
        ),
    ],
)
def test_what_is_not_safe_is_named_without_its_value(fields, extra, caution):
    cautions = settings(extra, **fields).cautions

    assert len(cautions) == (caution is not None)
    assert caution is None or caution in cautions[0]
    assert not any(each in str(cautions) for each in ("xxx", "yyy", "hush"))


def test_what_is_not_safe_is_logged_once(caplog):
    log_cautions.cache_clear()
    for _ in range(3):
        log_cautions("zuora", settings({"data_center": "PROD"}).cautions)

    [record] = caplog.records
    assert record.getMessage() == (
        "Connection 'zuora': the client secret has fewer than 16 characters: make a new one in Zuora."
    )
