"""Sending one request: options of the HTTP provider's connections, and nothing added to what was asked for."""

from __future__ import annotations

import asyncio
import json
import ssl

import pytest
from airflow.sdk import Connection

from airflow_mediation_provider.hooks import transport
from airflow_mediation_provider.hooks.settings import settings_of
from airflow_mediation_provider.hooks.transport import AsyncTransport, SyncTransport
from airflow_mediation_provider.protocol.errors import MisconfigurationError
from airflow_mediation_provider.protocol.exchange import Failure, Request
from airflow_mediation_provider.protocol.refusals import Reply

from .conftest import Answer


def settings(url, **extra):
    return settings_of("c", Connection(conn_id="c", host=url, login="id", password="secret-x", extra=json.dumps(extra)))


@pytest.fixture(params=["sync", "async"])
def send(request):
    def sync(found, *requests):
        sender = SyncTransport(found)
        try:
            return [sender.send(one) for one in requests]
        finally:
            sender.close()

    async def in_loop(found, *requests):
        sender = await AsyncTransport.open(found)
        try:
            return [await sender.send(one) for one in requests]
        finally:
            await sender.close()

    return sync if request.param == "sync" else lambda *args: asyncio.run(in_loop(*args))


def get(url, path="/oauth/token"):
    return Request("GET", url + path, {"Authorization": "Bearer t", "X": "y"})


def test_a_reply(send, zuora):
    zuora.token_answers = [Answer({"a": 1}, 418, {"RateLimit-Reset": "3", "X-Two": "a"})]

    [reply] = send(settings(zuora.url), get(zuora.url))

    assert isinstance(reply, Reply)
    assert (reply.status, reply.json) == (418, {"a": 1})
    assert reply.headers["ratelimit-reset"] == "3"


def test_the_token_is_not_replaced_by_a_netrc_entry(send, zuora, tmp_path, monkeypatch):
    netrc = tmp_path / "netrc"
    netrc.write_text("machine 127.0.0.1 login who password ever\n")
    monkeypatch.setenv("NETRC", str(netrc))

    send(settings(zuora.url), get(zuora.url))

    assert zuora.seen[0].headers["authorization"] == "Bearer t"


def test_neither_credentials_nor_unknown_extras_become_headers(send, zuora):
    send(settings(zuora.url, data_center="PROD", entity_id="e", anything={"a": 1}), get(zuora.url))

    sent = zuora.seen[0].headers
    assert "secret-x" not in str(sent)
    assert set(sent) <= {"host", "user-agent", "accept-encoding", "accept", "connection", "authorization", "x"}


@pytest.mark.parametrize("extra", [{"proxies": {"http": "{}"}}, {"proxy": "{}"}])
def test_proxies(send, zuora, extra):
    extra = {
        name: dict.fromkeys(value, zuora.url) if isinstance(value, dict) else zuora.url for name, value in extra.items()
    }

    send(settings("http://rest.zuora.invalid", **extra), get("http://rest.zuora.invalid"))

    assert zuora.seen[0].path == "http://rest.zuora.invalid/oauth/token"


def test_a_proxy_without_a_scheme(send, zuora):
    send(
        settings("http://rest.zuora.invalid", proxy=zuora.url.removeprefix("http://")), get("http://rest.zuora.invalid")
    )

    assert zuora.seen[0].path == "http://rest.zuora.invalid/oauth/token"


@pytest.mark.parametrize("proxy", ["http://who:pass-word@127.0.0.1:{port}", "who:pass-word@127.0.0.1:1x"])
def test_a_failure_does_not_tell_the_password_of_the_proxy(send, zuora, proxy, monkeypatch):
    monkeypatch.setenv("https_proxy", proxy.format(port=zuora.url.rpartition(":")[2]))
    monkeypatch.setenv("no_proxy", "")

    [outcome] = send(settings("https://rest.zuora.invalid"), get("https://rest.zuora.invalid"))

    assert isinstance(outcome, Failure)
    assert "pass-word" not in outcome.reason


@pytest.mark.parametrize(("trust", "reached"), [(True, 1), (False, 0)])
@pytest.mark.parametrize("scheme", ["http://", ""])
def test_proxies_of_the_environment(send, zuora, monkeypatch, trust, reached, scheme):
    monkeypatch.setenv("http_proxy", zuora.url.replace("http://", scheme))
    monkeypatch.setenv("no_proxy", "")

    send(settings("http://rest.zuora.invalid", trust_env=trust), get("http://rest.zuora.invalid"))

    assert len(zuora.seen) == reached


@pytest.mark.parametrize(("follow", "paths"), [(False, ["/oauth/token"]), (True, ["/oauth/token", "/x"])])
def test_redirects_are_followed_only_when_asked_for(send, zuora, follow, paths):
    zuora.token_answers = [Answer(status=302, headers={"Location": "/x"})]

    send(settings(zuora.url, allow_redirects=follow), get(zuora.url))

    assert zuora.paths() == paths


def test_the_network_raises_nothing(send, zuora):
    zuora.token_answers = [Answer(how="reset"), Answer(how="hang")]
    found = settings(zuora.url, timeout=0.3)

    reset, hang = send(found, get(zuora.url), get(zuora.url))
    [unknown] = send(found, get("http://rest.zuora.invalid"))
    [broken] = send(found, get("http://127.0.0.1:1"))

    assert all(isinstance(outcome, Failure) for outcome in (reset, hang, unknown, broken))
    assert hang.reason == "no complete answer within 0.3 s"
    assert "Bearer" not in "".join(outcome.reason for outcome in (reset, hang, unknown, broken))


def test_a_body_that_is_not_what_its_header_says(send, zuora):
    zuora.token_answers = [Answer(b"no gzip", headers={"Content-Encoding": "gzip"})]

    [outcome] = send(settings(zuora.url), get(zuora.url))

    assert isinstance(outcome, Failure)


def test_certificates(zuora, tmp_path, monkeypatch):
    made = transport._ssl_context(False, None)
    assert made.verify_mode is ssl.CERT_NONE
    assert transport._ssl_context(str(tmp_path), None).verify_mode is ssl.CERT_REQUIRED
    with pytest.raises(MisconfigurationError, match="No such file"):
        transport._ssl_context(str(tmp_path / "missing.pem"), None)

    session = SyncTransport(settings("https://x", verify=str(tmp_path), cert=["c", "k"]))._session
    assert (session.verify, session.cert) == (str(tmp_path), ("c", "k"))
    assert SyncTransport(settings("https://x", verify=False, max_redirects=3))._session.max_redirects == 3


async def test_serves(zuora):
    sender = await AsyncTransport.open(settings(zuora.url))

    assert sender.serves(settings(zuora.url))
    assert not sender.serves(settings(zuora.url, verify=False))
    assert not sender.serves(settings("http://other"))
    await sender.close()
