"""Sending one request: with the options of the HTTP provider's connections, and without any additions."""

from __future__ import annotations

import asyncio
import gzip
import json
import socket
import ssl
import threading
import tracemalloc
import zlib
from contextlib import ExitStack
from datetime import UTC, datetime, timedelta
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from socketserver import StreamRequestHandler, ThreadingTCPServer

import pytest
import requests
from airflow.sdk import Connection
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from cryptography.x509.oid import NameOID

from airflow_mediation_provider.hooks import transport
from airflow_mediation_provider.hooks.settings import settings_of
from airflow_mediation_provider.hooks.transport import AsyncTransport, SyncTransport, Trust, _Way, causes, trust_of
from airflow_mediation_provider.protocol.zuora.errors import MisconfigurationError, TransientError
from airflow_mediation_provider.protocol.zuora.flow import Failure, Request
from airflow_mediation_provider.protocol.zuora.refusals import Reply

from .conftest import Answer


def settings(url, **extra):
    fields = {"host": url, "login": "id", "password": "secret-x", "extra": json.dumps(extra)}
    return settings_of("c", Connection(conn_id="c", conn_type="mediation", **fields))


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


@pytest.fixture
def tls(tmp_path):
    """The address of a server with TLS whose certificate no CA signed."""
    key, certificate = tmp_path / "key.pem", tmp_path / "certificate.pem"
    self_signed(key, certificate)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate, key)
    with ThreadingHTTPServer(("127.0.0.1", 0), BaseHTTPRequestHandler) as server:
        server.socket = context.wrap_socket(server.socket, server_side=True)
        threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
        yield f"https://127.0.0.1:{server.server_port}"
        server.shutdown()


@pytest.fixture
def alerting():
    """Start a server that answers each request with these bytes, and return its address."""
    with ExitStack() as servers:

        def start(answer):
            class Handler(StreamRequestHandler):
                def handle(self):
                    self.rfile.readline()
                    self.wfile.write(answer)

            server = servers.enter_context(ThreadingTCPServer(("127.0.0.1", 0), Handler))
            servers.callback(server.shutdown)
            threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
            return f"http://127.0.0.1:{server.server_address[1]}"

        yield start


def self_signed(key, certificate):
    """Write a new key, and a certificate for it that is signed by the same key."""
    private = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "127.0.0.1")])
    now = datetime.now(UTC)
    signed = (
        x509.CertificateBuilder(name, name, private.public_key(), x509.random_serial_number())
        .not_valid_before(now - timedelta(days=1))
        .not_valid_after(now + timedelta(days=1))
        .sign(private, hashes.SHA256())
    )
    key.write_bytes(private.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()))
    certificate.write_bytes(signed.public_bytes(Encoding.PEM))


def get(url, path="/oauth/token"):
    return Request("GET", url + path, {"Authorization": "Bearer t", "X": "y"})


def test_a_reply_has_status_headers_and_body(send, zuora):
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
def test_a_request_goes_through_the_proxy(send, zuora, extra):
    extra = {
        name: dict.fromkeys(value, zuora.url) if isinstance(value, dict) else zuora.url for name, value in extra.items()
    }

    send(settings("http://rest.zuora.invalid", **extra), get("http://rest.zuora.invalid"))

    assert zuora.seen[0].path == "http://rest.zuora.invalid/oauth/token"


def test_a_proxy_without_a_scheme_is_accepted(send, zuora):
    send(
        settings("http://rest.zuora.invalid", proxy=zuora.url.removeprefix("http://")), get("http://rest.zuora.invalid")
    )

    assert zuora.seen[0].path == "http://rest.zuora.invalid/oauth/token"


@pytest.mark.parametrize("proxy", ["http://who:pass-word@127.0.0.1:{port}", "who:pass-word@127.0.0.1:1x"])
def test_a_failure_does_not_contain_the_password_of_the_proxy(send, zuora, proxy, monkeypatch):
    monkeypatch.setenv("https_proxy", proxy.format(port=zuora.url.rpartition(":")[2]))
    monkeypatch.setenv("no_proxy", "")

    [outcome] = send(settings("https://rest.zuora.invalid"), get("https://rest.zuora.invalid"))

    assert isinstance(outcome, Failure)
    assert "pass-word" not in outcome.reason


@pytest.mark.parametrize(("trust", "reached"), [(True, 1), (False, 0)])
@pytest.mark.parametrize("scheme", ["http://", ""])
def test_proxies_of_the_environment_are_used_if_allowed(send, zuora, monkeypatch, trust, reached, scheme):
    monkeypatch.setenv("http_proxy", zuora.url.replace("http://", scheme))
    monkeypatch.setenv("no_proxy", "")

    send(settings("http://rest.zuora.invalid", trust_env=trust), get("http://rest.zuora.invalid"))

    assert len(zuora.seen) == reached


@pytest.mark.parametrize(("follow", "paths"), [(False, ["/oauth/token"]), (True, ["/oauth/token", "/x"])])
def test_redirects_are_followed_only_when_allowed(send, zuora, follow, paths):
    zuora.token_answers = [Answer(status=302, headers={"Location": "/x"})]

    send(settings(zuora.url, allow_redirects=follow), get(zuora.url))

    assert zuora.paths() == paths


def test_network_errors_are_returned_not_raised(send, zuora):
    zuora.token_answers = [Answer(how="reset"), Answer(how="hang")]
    found = settings(zuora.url, timeout=0.3)

    reset, hang = send(found, get(zuora.url), get(zuora.url))
    [unknown] = send(found, get("http://rest.zuora.invalid"))
    [broken] = send(found, get("http://127.0.0.1:1"))

    assert all(isinstance(outcome, Failure) for outcome in (reset, hang, unknown, broken))
    assert hang.reason == "no complete answer within 0.3 s"
    assert "Bearer" not in "".join(outcome.reason for outcome in (reset, hang, unknown, broken))


def test_an_address_that_cannot_work_is_distinguished_from_an_outage(send, zuora, tls):
    plain = zuora.url.replace("http://", "https://")
    [unknown] = send(settings(zuora.url), get("https://rest.zuora.invalid"))
    [no_tls] = send(settings(plain), get(plain))
    [untrusted] = send(settings(tls), get(tls))
    [refused] = send(settings(zuora.url), get("http://127.0.0.1:1"))

    assert "no such host name" in unknown.reason
    assert "write http:// before the host" in no_tls.reason
    assert "set verify in the connection's extra" in untrusted.reason
    assert [outcome.unusable for outcome in (unknown, no_tls, untrusted, refused)] == [True, True, True, False]


@pytest.mark.parametrize("answer", [b"\x15\x03\x01\x00\x02\x02\x46", b"\x15\x03\x03\x00\x02\x02\x0a"])
def test_http_to_a_port_with_tls_is_recognised_by_its_alert(send, zuora, alerting, answer):
    url = alerting(answer)

    [outcome] = send(settings(url), get(url))

    assert outcome.unusable
    assert "write https:// before the host" in outcome.reason


def test_a_body_that_contradicts_its_encoding_is_a_failure(send, zuora):
    zuora.token_answers = [Answer(b"no gzip", headers={"Content-Encoding": "gzip"})]

    [outcome] = send(settings(zuora.url), get(zuora.url))

    assert isinstance(outcome, Failure)


BUNDLES = ("REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE", "SSL_CERT_FILE", "SSL_CERT_DIR")


@pytest.fixture
def no_bundles(monkeypatch):
    for name in BUNDLES:
        monkeypatch.delenv(name, raising=False)


def authorities(**extra):
    return [each.path for each in trust_of(settings("https://zuora.example", **extra)).authorities or ()]


@pytest.mark.usefixtures("no_bundles")
def test_the_first_bundle_of_the_environment_counts_and_the_connection_outranks_it(monkeypatch, tmp_path):
    default = authorities()
    assert requests.utils.DEFAULT_CA_BUNDLE_PATH in default

    monkeypatch.setenv("SSL_CERT_DIR", "/dir-a:/dir-b")
    assert authorities() == ["/dir-a", "/dir-b"]
    monkeypatch.setenv("SSL_CERT_DIR", f"/dir-a:{tmp_path}")
    monkeypatch.setenv("SSL_CERT_FILE", "/file.pem")
    assert authorities() == ["/file.pem", str(tmp_path)]
    monkeypatch.setenv("CURL_CA_BUNDLE", "/curl.pem")
    assert authorities() == ["/curl.pem"]
    monkeypatch.setenv("REQUESTS_CA_BUNDLE", "/requests.pem")
    assert authorities() == ["/requests.pem"]

    assert authorities(verify="/own.pem") == ["/own.pem"]
    assert trust_of(settings("https://zuora.example", verify=False)).authorities is None
    assert authorities(trust_env=False) == default


@pytest.mark.usefixtures("no_bundles")
@pytest.mark.parametrize("variable", BUNDLES)
def test_a_blank_variable_names_no_bundle(monkeypatch, variable):
    default = authorities()
    monkeypatch.setenv(variable, " ")

    assert authorities() == default


def test_a_socks_proxy_is_refused(send, zuora):
    with pytest.raises(MisconfigurationError, match="SOCKS proxy: set an HTTP proxy"):
        send(settings(zuora.url, proxies={"all": "socks5://127.0.0.1:1080"}), get(zuora.url))


def test_an_error_that_was_handled_when_the_request_began_is_no_cause():
    error = ConnectionResetError("of this one")
    error.__context__ = TransientError("of another request")

    assert causes(error) == [error]


@pytest.mark.usefixtures("no_bundles")
@pytest.mark.parametrize(
    ("error", "remedy"),
    [
        (62, "for another host name: check the host"),
        (10, "not valid now: renew it on the server"),
        (19, "not trusted: set verify"),
    ],
)
def test_the_remedy_of_a_certificate_follows_the_innermost_cause(error, remedy):
    inner, outer = ssl.SSLCertVerificationError(1, "inner"), ssl.SSLCertVerificationError(1, "aiohttp's own")
    inner.verify_code = error
    outer.__cause__ = inner

    failure = _Way.of(settings("https://zuora.example", verify=True)).failure(outer)

    assert remedy in failure.reason
    assert failure.unusable


@pytest.mark.usefixtures("no_bundles")
def test_an_untrusted_certificate_names_the_bundle_of_the_environment(monkeypatch):
    monkeypatch.setenv("SSL_CERT_FILE", "/own.pem")

    failure = _Way.of(settings("https://zuora.example")).failure(ssl.SSLCertVerificationError(1, "x"))

    assert "not trusted by the environment variable SSL_CERT_FILE (/own.pem): set verify" in failure.reason


@pytest.mark.parametrize(("url", "hinted"), [("http://zuora.example", True), ("https://zuora.example", False)])
def test_a_connection_that_http_loses_may_expect_tls(url, hinted):
    failure = _Way.of(settings(url)).failure(ConnectionResetError("by peer"))

    assert failure.reason.endswith("write https:// before the host") is hinted
    assert not failure.unusable


def test_a_failure_behind_a_proxy_names_the_proxy():
    way = _Way.of(settings("https://zuora.example", proxies={"https": "http://who:word@proxy.example:3128"}))

    reason = way.failure(socket.gaierror(socket.EAI_NONAME, "Name or service not known")).reason

    assert "and its proxy" in reason
    assert "through the proxy proxy.example:3128" in reason
    assert "word" not in reason


def test_the_causes_of_an_error_include_those_that_are_arguments_alone():
    cause = ssl.SSLCertVerificationError("self-signed")
    error = requests.exceptions.SSLError(Exception(cause))  # as urllib3 does behind a proxy

    assert causes(error)[-1] is cause
    cause.__context__ = error
    assert len(causes(error)) == 3


def test_a_connection_without_tls_reads_no_certificates():
    assert trust_of(settings("http://zuora.example", verify="/missing.pem")).authorities == ()
    assert trust_of(settings("http://zuora.example", verify="/a.pem", allow_redirects=True)).authorities != ()
    assert trust_of(settings("http://zuora.example", verify="/a.pem", proxy="https://proxy")).authorities != ()


@pytest.mark.parametrize("stack", ["sync", "async"])
@pytest.mark.parametrize(
    ("variable", "extra", "says"),
    [
        ("REQUESTS_CA_BUNDLE", {}, "The certificates of the environment variable REQUESTS_CA_BUNDLE ({0}) cannot be"),
        ("CURL_CA_BUNDLE", {}, "The certificates of the environment variable CURL_CA_BUNDLE ({0}) cannot be used: "),
        ("SSL_CERT_FILE", {}, "The certificates of the environment variable SSL_CERT_FILE ({0}) cannot be used: "),
        ("SSL_CERT_DIR", {}, "The certificates of the environment variable SSL_CERT_DIR ({0}) cannot be used: "),
        ("", {"verify": "{0}"}, "The certificates of the connection's verify ({0}) cannot be used: "),
        ("", {"verify": False, "cert": ["{0}", "k"]}, "The certificates of the connection's cert ({0} and k) cannot"),
        ("", {"verify": False, "cert": "{0}"}, "The certificates of the connection's cert ({0}) cannot be used: "),
    ],
)
@pytest.mark.parametrize("content", [None, "no certificate"])
@pytest.mark.usefixtures("no_bundles")
def test_a_file_without_certificates_is_named_with_its_setting(
    stack, variable, extra, says, content, tmp_path, monkeypatch
):
    file = tmp_path / "ca.pem"
    if content:
        file.write_text(content)
    if variable:
        monkeypatch.setenv(variable, str(file))
    text = json.dumps(extra).replace("{0}", str(file))
    found = settings("https://zuora.example", **json.loads(text))

    with pytest.raises(MisconfigurationError) as caught:
        SyncTransport(found) if stack == "sync" else asyncio.run(AsyncTransport.open(found))

    assert str(caught.value).startswith(says.replace("{0}", str(file)))


def test_an_unchecked_server_needs_no_name():
    context = Trust(None).context()

    assert (context.verify_mode, context.check_hostname) == (ssl.CERT_NONE, False)
    assert Trust(()).context().verify_mode is ssl.CERT_REQUIRED


def test_the_proxy_of_the_connection_outranks_the_environment(send, zuora, monkeypatch):
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:1")
    monkeypatch.setenv("no_proxy", "rest.zuora.invalid")

    send(settings("http://rest.zuora.invalid", proxy=zuora.url), get("http://rest.zuora.invalid"))

    assert zuora.paths() == ["http://rest.zuora.invalid/oauth/token"]


@pytest.mark.parametrize(
    ("no_proxy", "passed"), [("", False), ("other.invalid", False), ("127.0.0.0/8", True), (".0.0.1,x", True)]
)
def test_no_proxy_has_one_meaning(send, zuora, monkeypatch, no_proxy, passed):
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:1")
    monkeypatch.setenv("no_proxy", no_proxy)

    [outcome] = send(settings(zuora.url), get(zuora.url))

    assert isinstance(outcome, Reply) is passed


def test_the_number_of_redirects_is_limited():
    assert SyncTransport(settings("http://x", max_redirects=3))._session.max_redirects == 3


async def test_a_transport_serves_only_the_same_address_and_options(zuora):
    sender = await AsyncTransport.open(settings(zuora.url))

    assert sender.serves(settings(zuora.url))
    assert not sender.serves(settings(zuora.url, verify=False))
    assert not sender.serves(settings("http://other"))
    await sender.close()


MEMBER = gzip.compress(bytes(16 * 2**20))
"""16 MiB in 16 KiB; a body of gzip may have any number of them."""


@pytest.mark.parametrize(
    ("body", "encoding", "reason"),
    [
        (MEMBER * 96, "gzip", "its body has more than 16 MiB, which is the limit"),
        (zlib.compress(bytes(17 * 2**20)), "deflate", "its body has more than 16 MiB, which is the limit"),
        (bytes(16 * 2**20 + 1), "", "its body has more than 16 MiB, which is the limit"),
        (gzip.compress(b"")[:-1], "gzip", "its compressed body ends too early"),
        (b"{}", "gzip", "its body cannot be decompressed: "),
        (gzip.compress(MEMBER), "gzip, gzip", "its body has the encoding 'gzip, gzip', which was not asked for"),
        (b"{}", "br", "its body has the encoding 'br', which was not asked for"),
    ],
    ids=["gzip", "deflate", "plain", "cut", "no gzip", "twice", "br"],
)
def test_a_body_that_is_too_large_or_not_as_announced_is_a_failure(send, zuora, body, encoding, reason):
    zuora.token_answers = [Answer(body, headers={"Content-Encoding": encoding} if encoding else {})]
    tracemalloc.start()
    try:
        [failure] = send(settings(zuora.url), get(zuora.url))
        assert tracemalloc.get_traced_memory()[1] < 48 * 2**20
    finally:
        tracemalloc.stop()
    assert failure.reason.startswith(reason)


RAW = zlib.compressobj(wbits=-15)


@pytest.mark.parametrize(
    ("body", "encoding"),
    [
        (b'{"a": 1}', "identity"),
        (gzip.compress(b'{"a": 1}'), "GZIP"),
        (gzip.compress(b'{"a"') + gzip.compress(b": 1}"), "x-gzip"),
        (gzip.compress(b'{"a": 1}') + bytes(100), "gzip"),
        (zlib.compress(b'{"a": 1}'), "deflate"),
        (RAW.compress(b'{"a": 1}') + RAW.flush(), "deflate"),
    ],
    ids=["identity", "gzip", "members", "padded", "zlib", "deflate"],
)
def test_a_body_is_decompressed(send, zuora, body, encoding):
    zuora.token_answers = [Answer(body, headers={"Content-Encoding": encoding})]
    [reply] = send(settings(zuora.url), get(zuora.url))
    assert reply.json == {"a": 1}
    assert zuora.seen[0].headers["accept-encoding"] == "gzip, deflate"


def test_a_body_that_ends_by_the_limit_of_its_socket_is_too_slow(zuora, monkeypatch):
    def stalled(*args, **kwargs):
        raise TimeoutError("timed out")

    monkeypatch.setattr(transport, "fetch", stalled)
    sender = SyncTransport(settings(zuora.url, timeout=1.5))
    assert sender.send(get(zuora.url)) == Failure("no complete answer within 1.5 s")
    sender.close()


def test_an_empty_body_needs_no_encoding(send, zuora):
    zuora.token_answers = [Answer(b"", headers={"Content-Encoding": "gzip"})]
    [reply] = send(settings(zuora.url), get(zuora.url))
    assert (reply.status, reply.body) == (200, b"")


@pytest.mark.parametrize("before", [0, 1], ids=["a new connection", "a connection that was used"])
@pytest.mark.parametrize("how", ["drip", "stall", "hang"])
def test_a_request_that_is_given_up_ends_with_its_thread_and_socket(zuora, how, before):
    zuora.token_answers = [*[Answer({})] * before, Answer({}, how=how)]
    sender = SyncTransport(settings(zuora.url, timeout=1.5))
    outcomes = [sender.send(get(zuora.url)) for _ in range(before + 1)]

    assert outcomes[-1] == Failure("no complete answer within 1.5 s")
    assert zuora.connections == 1
    for thread in [each for each in threading.enumerate() if each.name == "mediation-request"]:
        thread.join(5)
        assert not thread.is_alive()
    assert not zuora.over.is_set()
    sender.close()


@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
def test_the_request_for_a_token_follows_no_redirect(send, zuora, status):
    zuora.token_answers = [Answer({}, status, {"Location": f"{zuora.url}/elsewhere"})]
    token = Request("POST", f"{zuora.url}/oauth/token", {}, b"client_secret=hush", secret=True)
    [reply] = send(settings(zuora.url, allow_redirects=True), token)
    assert reply.status == status
    assert zuora.paths() == ["/oauth/token"]


def test_a_redirect_takes_no_token_to_another_host(send, zuora):
    elsewhere = zuora.url.replace("127.0.0.1", "localhost")
    zuora.token_answers = [Answer({}, 307, {"Location": f"{elsewhere}/other"})]
    call = Request("GET", f"{zuora.url}/oauth/token", {"Authorization": "Bearer hush"})
    send(settings(zuora.url, allow_redirects=True), call)
    assert zuora.paths() == ["/oauth/token", "/other"]
    assert zuora.seen[0].headers["authorization"] == "Bearer hush"
    assert "authorization" not in zuora.seen[1].headers


def test_a_redirect_with_an_endless_body_is_a_failure(send, zuora):
    zuora.token_answers = [
        Answer(MEMBER * 2, 302, {"Location": f"{zuora.url}/oauth/token", "Content-Encoding": "gzip"}),
        Answer({}),
    ]
    [outcome] = send(settings(zuora.url, allow_redirects=True), get(zuora.url))
    # aiohttp does not read it.
    assert isinstance(outcome, Reply) or outcome.reason.startswith("its body has more than 16 MiB")
