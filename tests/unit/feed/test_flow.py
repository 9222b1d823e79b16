"""One call to the API server, step by step, without a server: its address, its errors, and pauses without calls."""

from __future__ import annotations

import json
import ssl
from dataclasses import replace
from typing import Any

import pytest
import requests

from airflow_mediation_provider.feed.flow import (
    Candidate,
    FeedUnavailableError,
    NeedSecret,
    SendSigned,
    ServerAddress,
    SignedCalls,
    candidates,
    failure_of,
    server_trust,
)
from airflow_mediation_provider.protocol.wire import (
    FEED_PATH,
    PROTOCOL,
    SIGNATURE_HEADER,
    derive_key,
    digest_of,
    reply_signature,
    verify,
)
from airflow_mediation_provider.protocol.zuora.errors import MisconfigurationError
from airflow_mediation_provider.protocol.zuora.flow import Failure
from airflow_mediation_provider.protocol.zuora.refusals import Reply

GUESS = Candidate("http://localhost:8080/mediation", "[api] base_url", guessed=True)
FIRST, SECOND = Candidate("http://first/mediation", "a"), Candidate("http://second/mediation", "b")
GREETING = Reply(200, body=json.dumps({"service": "mediation", "protocol": PROTOCOL}).encode())
REFUSED = Failure("ConnectionError")


class Line:
    """Drives calls: each address has a given answer and a given delay."""

    def __init__(self, *, rests: bool = True) -> None:
        self.seconds = 0.0
        self.takes = 0.0
        self.answers: dict[str, Any] = {}
        self.secret: Any = "secret"
        self.addresses = [FIRST, SECOND]
        self.signs_with = ""
        self.secrets_looked_up: list[bool] = []
        self.asked: list[str] = []
        self.whereabouts = ServerAddress(rests=rests)
        self.calls = SignedCalls(
            "zuora",
            self.whereabouts,
            candidates=lambda: self.addresses,
            monotonic=lambda: self.seconds,
            now=lambda: 1_800_000_000 + self.seconds,
        )

    def call(self, seconds: float = 5) -> bytes:
        flow, outcome = self.calls.call(FEED_PATH, b"question", seconds=seconds), None
        try:
            while True:
                outcome = self._answer(flow.send(outcome))
        except StopIteration as done:
            return done.value

    def _answer(self, step: Any) -> Any:
        if isinstance(step, NeedSecret):
            self.secrets_looked_up.append(step.anew)
            return self.secret
        assert isinstance(step, SendSigned)
        self.asked.append(step.request.url)
        self.seconds += min(self.takes, step.seconds)
        answer = self.answers.get(step.request.url, REFUSED)
        if isinstance(answer, Reply) and step.request.method == "POST":
            headers = {name.lower(): value for name, value in step.request.headers.items()}
            signed = {"path": FEED_PATH, "conn_id": "zuora", "digest": digest_of(b"question")}
            verify(derive_key("secret"), **signed, headers=headers, now=1_800_000_000 + self.seconds)
            if self.signs_with:
                proof = reply_signature(derive_key(self.signs_with), headers[SIGNATURE_HEADER.lower()], answer.body)
                return replace(answer, headers={SIGNATURE_HEADER.lower(): proof})
        return answer

    def trouble(self, seconds: float = 5) -> str:
        with pytest.raises(FeedUnavailableError) as error:
            self.call(seconds)
        return str(error.value)


@pytest.fixture
def line() -> Line:
    made = Line()
    made.answers = {f"{SECOND.url}/handshake": GREETING, f"{SECOND.url}/feed": Reply(200, body=b"answer")}
    return made


def test_the_first_address_with_a_handshake_is_called_and_kept(line: Line):
    line.answers[f"{FIRST.url}/handshake"] = Reply(200, body=b"<html>")
    assert line.call() == line.call() == b"answer"
    assert line.asked == [f"{FIRST.url}/handshake", f"{SECOND.url}/handshake", *[f"{SECOND.url}/feed"] * 2]
    assert line.secrets_looked_up == [False]


def test_without_a_handshake_the_error_names_each_address(line: Line):
    line.answers = {f"{FIRST.url}/handshake": Reply(302), f"{SECOND.url}/handshake": REFUSED}
    assert line.trouble() == (
        "no API server with this provider was found: http://first/mediation is another service, or an API "
        "server lacks this package: install it on each of them; "
        "http://second/mediation/handshake gave no answer (ConnectionError)"
    )


def test_a_call_ends_at_its_time_limit(line: Line):
    line.takes = 100
    assert "it took too long" in line.trouble(seconds=5)
    assert line.seconds == 5


def test_a_bad_answer_is_reported_with_its_reason(line: Line):
    reason = "the connection is found under the id 'Zuora'"
    line.answers[f"{SECOND.url}/feed"] = Reply(404, body=json.dumps({"success": False, "error": reason}).encode())
    assert line.trouble() == f"{SECOND.url} answered 404: {reason}"


@pytest.mark.parametrize("status", [404, 500, 503])
def test_a_bad_answer_is_reported_with_its_status(line: Line, status: int):
    line.answers[f"{SECOND.url}/feed"] = Reply(status)
    assert line.trouble() == f"{SECOND.url} answered {status}"
    line.asked.clear()
    line.trouble()
    assert line.asked == [f"{SECOND.url}/feed"]  # it answered, so calls are not paused


def test_an_api_server_without_this_package_is_named(line: Line):
    line.answers[f"{SECOND.url}/feed"] = Reply(405, body=b'{"detail": "Method Not Allowed"}')
    expected = "answered 405: an API server lacks this package: install it on each of them"
    assert line.trouble() == f"{SECOND.url} {expected}"


def test_after_a_refusal_the_secret_is_read_again(line: Line):
    line.answers[f"{SECOND.url}/feed"] = Reply(401)
    assert "another client secret in connection 'zuora', or its clock differs" in line.trouble()
    line.trouble()
    assert line.secrets_looked_up == [False, True]


def test_a_missing_connection_is_reported(line: Line):
    line.secret = Failure("Connection 'zuora' was not found.")
    assert line.trouble() == "Connection 'zuora' was not found."


class TestReplySignature:
    def test_a_signed_reply_is_accepted_also_from_the_default_address(self, line: Line, caplog):
        line.signs_with, line.addresses = "secret", [GUESS]
        line.answers = {f"{GUESS.url}/handshake": GREETING, f"{GUESS.url}/feed": Reply(200, body=b"answer")}
        assert line.call() == b"answer"
        assert caplog.messages == [
            "The journal of sessions was found by [api] base_url: http://localhost:8080/mediation"
        ]

    def test_a_reply_signed_with_another_secret_is_none(self, line: Line):
        line.signs_with = "another"
        assert line.trouble() == "the answer of http://second/mediation is not signed with the client secret"

    def test_the_reply_to_another_request_is_none(self, line: Line):
        recorded = reply_signature(derive_key("secret"), "v1=another", b"answer")
        line.answers[f"{SECOND.url}/feed"] = Reply(200, {SIGNATURE_HEADER.lower(): recorded}, b"answer")
        assert "is not signed with the client secret" in line.trouble()

    def test_an_api_server_of_an_older_version_is_accepted_with_a_warning(self, line: Line, caplog):
        assert line.call() == line.call() == b"answer"
        warnings = [each.message for each in caplog.records if each.levelname == "WARNING"]
        assert warnings == [
            "the answer of http://second/mediation is not signed: upgrade this provider on the API server"
        ]

    def test_what_listens_at_the_default_address_must_sign(self, line: Line):
        line.addresses = [GUESS]
        line.answers = {f"{GUESS.url}/handshake": GREETING, f"{GUESS.url}/feed": Reply(200, body=b"answer")}
        assert line.trouble() == (
            f"the answer of {GUESS.url} is not signed; set [api] base_url to the API server's address"
        )

    def test_only_an_address_that_no_setting_names_is_a_guess(self, monkeypatch):
        for name in ("API__BASE_URL", "CORE__EXECUTION_API_SERVER_URL", "MEDIATION__FEED_URL"):
            monkeypatch.delenv(f"AIRFLOW__{name}", raising=False)
        assert candidates() == [GUESS]
        monkeypatch.setenv("AIRFLOW__API__BASE_URL", "http://localhost:8080")
        assert [each.guessed for each in candidates()] == [False]


class TestRest:
    def test_after_a_missing_answer_no_call_is_made_for_a_while(self, line: Line):
        line.call()
        line.answers = {}
        asked = []
        for second in range(300):
            line.seconds = 100.0 + second
            line.asked.clear()
            line.trouble()
            if line.asked:
                asked.append(second)
        # The reasons after ten seconds, and after a minute, are from a recent call.
        assert asked == [*range(0, 61, 5), 120, 180, 240]

    def test_an_answer_ends_the_pause(self, line: Line):
        line.call()
        feed = line.answers.pop(f"{SECOND.url}/feed")
        line.trouble()
        line.answers[f"{SECOND.url}/feed"] = feed
        line.seconds = 30
        assert line.call() == b"answer"
        line.answers = {}
        line.seconds = 60
        line.trouble()
        line.seconds = 65
        assert "gave no answer" in line.trouble()
        assert line.asked[-2:] == [f"{FIRST.url}/handshake", f"{SECOND.url}/handshake"]

    def test_calls_pause_even_if_only_the_handshake_is_answered(self, line: Line):
        line.answers[f"{SECOND.url}/feed"] = REFUSED
        for second in (0, 20, 40, 60, 80):
            line.seconds = float(second)
            line.asked.clear()
            line.trouble()
        assert line.asked == []

    def test_a_caller_with_its_own_pace_is_never_paused(self):
        line = Line(rests=False)
        line.trouble()
        line.trouble()
        assert len(line.asked) == 4


@pytest.fixture
def api(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Set options of ``[api]``, without a CA bundle in the environment."""
    for name in ("REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE", "SSL_CERT_FILE", "SSL_CERT_DIR"):
        monkeypatch.delenv(name, raising=False)

    def define(**options: str) -> None:
        for name, value in options.items():
            monkeypatch.setenv(f"AIRFLOW__API__{name.upper()}", value)

    return define


def authorities() -> list[str]:
    return [each.path for each in server_trust().authorities or ()]


def test_the_api_server_is_trusted_as_airflows_own_client_trusts_it(api, monkeypatch):
    default = authorities()
    certifi = requests.utils.DEFAULT_CA_BUNDLE_PATH
    assert default[-1] == certifi

    api(ssl_cert="/server.pem")
    assert authorities() == [*default, "/server.pem"]
    api(ssl_ca_file="/ca.pem")
    assert authorities() == ["/ca.pem", certifi, "/server.pem"]
    api(client_use_public_certs="False")
    assert authorities() == ["/ca.pem", "/server.pem"]
    monkeypatch.setenv("CURL_CA_BUNDLE", "/bundle.pem")
    assert authorities() == ["/bundle.pem", "/ca.pem", "/server.pem"]


def test_a_client_certificate_needs_its_key(api):
    api(client_ssl_cert="/client.pem")
    with pytest.raises(MisconfigurationError, match="client_ssl_cert and client_ssl_key must be set together"):
        server_trust()

    api(client_ssl_key="/client.key")
    assert [each.path for each in server_trust().client] == ["/client.pem", "/client.key"]


@pytest.mark.parametrize(
    ("code", "words", "reason"),
    [
        (20, "unable to get local issuer certificate", "; set [api] ssl_ca_file to the certificates of its authority"),
        (18, "self-signed certificate", "; set [api] ssl_ca_file to the certificates of its authority"),
        (10, "certificate has expired", ""),
        (62, "Hostname mismatch, certificate is not valid for 'airflow'.", ""),
    ],
)
def test_a_certificate_that_is_not_trusted_is_named_with_its_remedy(code, words, reason):
    cause = ssl.SSLCertVerificationError()
    cause.verify_code, cause.verify_message = code, words
    error = requests.exceptions.SSLError(ssl.SSLError("outer"))
    error.__context__ = ValueError(cause)  # as urllib3 does, in an argument alone

    assert failure_of(error).reason == f"its certificate is not trusted: {words.rstrip('.')}{reason}"


def test_other_failures_have_no_remedy_but_their_kind():
    wanted = ssl.SSLError(1, "alert")
    wanted.reason = "TLSV13_ALERT_CERTIFICATE_REQUIRED"

    assert failure_of(OSError(wanted)).reason == (
        "TLS failed with TLSV13_ALERT_CERTIFICATE_REQUIRED; it requires a client certificate, see [api] client_ssl_cert"
    )
    assert failure_of(ConnectionResetError("peer")).reason == "ConnectionResetError"
    assert failure_of(RuntimeError(MisconfigurationError("The file is missing"))).reason == "The file is missing"
