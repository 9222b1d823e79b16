"""Sending one request: on the HTTP provider's session in threads, on aiohttp in event loops. No tokens, no retries.

Both return a :class:`Reply` or a :class:`Failure` and never raise for errors of the network. Both apply the time limit
to the whole request, from the DNS query to the last byte of the body.

requests and aiohttp read different variables of the environment, and requests lets some of them outrank a session's
settings. So neither reads the environment here: :class:`Trust` and :func:`proxy_for` decide for both, and for the feed.
"""

from __future__ import annotations

import asyncio
import json
import os
import re
import socket
import ssl
import sys
import warnings
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final, NamedTuple
from urllib.parse import urlsplit

import aiohttp
import requests
from airflow.providers.http.hooks.http import HttpHook
from airflow.sdk import Connection
from requests_toolbelt.adapters.socket_options import TCPKeepAliveAdapter
from yarl import URL

from airflow_mediation_provider.hooks.fetching import CHUNK, ENCODINGS, POOLS, UnusableBodyError, fetch, read_async
from airflow_mediation_provider.protocol.zuora.errors import MediationError, MisconfigurationError
from airflow_mediation_provider.protocol.zuora.flow import Failure

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from airflow_mediation_provider.hooks.settings import HttpOptions, Settings
    from airflow_mediation_provider.protocol.zuora.flow import Request
    from airflow_mediation_provider.protocol.zuora.refusals import Reply

MAX_CONNECTIONS: Final = 4
"""Open connections of one asynchronous hook, at most."""
_NO_SUCH_NAME: Final = (socket.EAI_NONAME, getattr(socket, "EAI_NODATA", socket.EAI_NONAME))
# What OpenSSL calls an answer that is no TLS: the bytes of an HTTP reply, read as the head of a TLS record.
_NOT_TLS: Final = ("WRONG_VERSION_NUMBER", "HTTP_REQUEST", "RECORD_LAYER_FAILURE", "PACKET_LENGTH_TOO_LONG")
# How a TLS alert starts, as it is and as Python quotes it.
_TLS_ALERT: Final = ("\x15\x03", "\\x15\\x03")
# OpenSSL's codes: the certificate is for another host name or IP address; it is not valid yet, or has expired.
_OTHER_NAME: Final = (62, 64)
_WRONG_TIME: Final = (9, 10)
_BUNDLES: Final = (("REQUESTS_CA_BUNDLE",), ("CURL_CA_BUNDLE",), ("SSL_CERT_FILE", "SSL_CERT_DIR"))
"""The environment's variables for authorities: the first group with a value counts."""


_SYSTEM: Final = "the system's store"
_PUBLIC: Final = "certifi"
_DEFAULTS: Final = (_SYSTEM, _PUBLIC)


class Certificates(NamedTuple):
    """A file, or a directory of authorities as OpenSSL's ``rehash`` makes it.

    :param path: where it is on this machine
    :param setting: what names it, for the error: ``the environment variable SSL_CERT_FILE``
    """

    path: str
    setting: str

    @property
    def is_given(self) -> bool:
        """Whether a user set it, not a default."""
        return self.setting not in _DEFAULTS


@dataclass(frozen=True, slots=True)
class Trust:
    """Which servers are trusted, and which certificate is shown to them; the same for requests and aiohttp.

    :param authorities: all of them count; ``None``: every server is trusted
    :param client: certificate and key, or one file with both; empty: none is shown
    """

    authorities: tuple[Certificates, ...] | None
    client: tuple[Certificates, ...] = ()

    def context(self) -> ssl.SSLContext:
        """Read the files, which takes about 20 ms for an ordinary bundle.

        :raises MisconfigurationError: one is missing, may not be read, or is no certificate; names its setting
        """
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        if sys.version_info >= (3, 13):
            # As ssl.create_default_context, which also loads the environment's and the system's authorities.
            context.verify_flags |= ssl.VERIFY_X509_STRICT | ssl.VERIFY_X509_PARTIAL_CHAIN
        if self.authorities is None:
            context.check_hostname = False
            context.verify_mode = ssl.CERT_NONE
        for each in self.authorities or ():
            _load((each,), lambda path: _add_authorities(context, path))
        if self.client:
            # Without a password OpenSSL would ask for one at the terminal.
            _load(self.client, lambda *paths: context.load_cert_chain(paths[0], paths[-1], password=""))
        return context

    def files(self) -> tuple[object, ...]:
        """Return a value for each file, another one once it was replaced; ``None`` for one that is not there."""
        return tuple(_version_of(each.path) for each in (*(self.authorities or ()), *self.client))


class KeptContext:
    """The TLS context of the API server, which is made again once one of its files was replaced."""

    def __init__(self) -> None:
        self._made: tuple[Trust, tuple[object, ...], ssl.SSLContext] | None = None

    def of(self, trust: Trust) -> ssl.SSLContext:
        """Return the context, with the certificates that are on this machine now.

        :param trust: as it is configured now
        :raises MisconfigurationError: a certificate file cannot be used
        """
        files = trust.files()
        if self._made is None or self._made[0] != trust or _replaced(self._made[1], files):
            self._made = (trust, files, trust.context())
        return self._made[2]


def _replaced(read: tuple[object, ...], now: tuple[object, ...]) -> bool:
    """Return whether a file was replaced since it was read.

    What was read still serves while a file is not there: tools that replace a file may delete it first.
    """
    return now != read and None not in now


def _version_of(path: str) -> object:
    try:
        found = os.stat(path)
    except OSError:
        return None
    return found.st_mtime_ns, found.st_size, found.st_ino


def _load(files: tuple[Certificates, ...], load: Callable[..., None]) -> None:
    try:
        load(*(each.path for each in files))
    except OSError as error:
        paths = " and ".join(each.path for each in files)
        raise MisconfigurationError(
            f"The certificates of {files[0].setting} ({paths}) cannot be used: {error}."
            " Check the path on this machine, and that the file is PEM."
        ) from error


def _add_authorities(context: ssl.SSLContext, path: str) -> None:
    if os.path.isdir(path):
        context.load_verify_locations(capath=path)
    else:
        context.load_verify_locations(cafile=path)


_NO_TLS: Final = Trust(())


def trust_of(settings: Settings) -> Trust:
    """Return the trust of a connection: its ``verify``, else the environment if it may count, else the default.

    The default is what either stack had by itself: the system's store (aiohttp) and certifi (requests).

    :param settings: of the connection
    """
    http = settings.http
    if not (
        settings.base_url.startswith("https:") or http.allow_redirects or (_proxy(settings) or "").startswith("https:")
    ):
        return _NO_TLS
    cert = () if http.cert is None else (http.cert,) if isinstance(http.cert, str) else http.cert
    client = tuple(Certificates(path, "the connection's cert") for path in cert)
    if http.verify is False:
        return Trust(None, client)
    if isinstance(http.verify, str):
        return Trust((Certificates(http.verify, "the connection's verify"),), client)
    environment = environment_authorities() if http.trust_env else ()
    return Trust(environment or (*system_authorities(), *public_authorities()), client)


def environment_authorities() -> tuple[Certificates, ...]:
    """Return the authorities of the environment: of ``REQUESTS_CA_BUNDLE``, else ``CURL_CA_BUNDLE``, else OpenSSL's."""
    for names in _BUNDLES:
        given = {name: os.environ.get(name, "") for name in names}
        found = tuple(
            Certificates(path, f"the environment variable {name}")
            for name, value in given.items()
            for path in (value.split(os.pathsep) if name == "SSL_CERT_DIR" else [value])
            # As OpenSSL, beside a file a directory may be missing.
            if path.strip() and (name != "SSL_CERT_DIR" or os.path.isdir(path) or not given["SSL_CERT_FILE"].strip())
        )
        if found:
            return found
    return ()


def system_authorities() -> tuple[Certificates, ...]:
    """Return the system's store, where OpenSSL expects it; without the environment, which outranks it in OpenSSL."""
    paths = ssl.get_default_verify_paths()
    store = (paths.openssl_cafile, paths.openssl_capath)
    return tuple(Certificates(path, _SYSTEM) for path in store if os.path.exists(path))


def public_authorities() -> tuple[Certificates, ...]:
    """Return the public authorities that come with requests."""
    return (Certificates(requests.utils.DEFAULT_CA_BUNDLE_PATH, _PUBLIC),)


def proxy_for(url: str, proxies: Mapping[str, str], *, trust_env: bool) -> str | None:
    """Return the proxy for an address: the given one, else that of the environment by its ``no_proxy``.

    :param url: the address
    :param proxies: scheme -> proxy; outrank the environment
    :param trust_env: whether the environment counts
    :raises MisconfigurationError: it is a SOCKS proxy, which neither stack can use
    """
    proxy = requests.utils.select_proxy(url, proxies)
    if proxy is None and trust_env:
        proxy = requests.utils.select_proxy(url, requests.utils.get_environ_proxies(url))
    if proxy and proxy.lower().startswith("socks"):
        raise MisconfigurationError(f"The proxy for {url} is a SOCKS proxy: set an HTTP proxy")
    # As requests does: a proxy is often named without a scheme, which aiohttp would refuse.
    return f"http://{proxy}" if proxy and "://" not in proxy else proxy


class TrustAdapter(TCPKeepAliveAdapter):  # type: ignore[misc]
    """Lets a session of requests use a TLS context as it is; requests would add authorities of its own.

    :param context: returns the context, for each request to an address with https
    """

    def __init__(self, context: Callable[[], ssl.SSLContext]) -> None:
        super().__init__()
        self._tls = context

    def build_connection_pool_key_attributes(
        self, request: requests.PreparedRequest, verify: object, cert: object = None
    ) -> tuple[dict[str, Any], dict[str, Any]]:
        """Return the host, and the context instead of the session's own settings."""
        host, _ = super().build_connection_pool_key_attributes(request, verify, cert)
        return host, {"ssl_context": self._tls()} if host["scheme"] == "https" else {}

    def proxy_manager_for(self, proxy: str, **kwargs: Any) -> Any:
        """Return the manager of a proxy, which itself may have an address with https."""
        if proxy.lower().startswith("https:"):
            kwargs["proxy_ssl_context"] = self._tls()
        manager = super().proxy_manager_for(proxy, **kwargs)
        manager.pool_classes_by_scheme = POOLS
        return manager

    def init_poolmanager(self, *args: Any, **kwargs: Any) -> None:
        """Make the manager, with connections that end where their request is given up."""
        super().init_poolmanager(*args, **kwargs)
        self.poolmanager.pool_classes_by_scheme = POOLS

    def cert_verify(self, *args: object) -> None:
        """Do not change the connection: the context has everything."""


def trusting(session: requests.Session, context: Callable[[], ssl.SSLContext]) -> requests.Session:
    """Return the session with a TLS context, and without anything that requests would read from the environment."""
    session.trust_env = False
    for scheme in ("https://", "http://"):
        session.mount(scheme, TrustAdapter(context))
    return session


class _HttpSession(HttpHook):
    """The HTTP provider's hook, on a connection that contains only what it may use.

    With the real connection it would send the client secret as Basic authentication and every field that it does not
    recognise (data center, entity, link template) as a header.
    """

    def __init__(self, settings: Settings) -> None:
        super().__init__()
        http = settings.http
        self._connection = Connection(
            conn_id=settings.conn_id,
            conn_type="http",
            host=settings.base_url,
            extra=json.dumps(
                {
                    "proxies": {"all": proxy} if (proxy := _proxy(settings)) else {},
                    **({"max_redirects": http.max_redirects} if http.max_redirects is not None else {}),
                }
            ),
        )

    def get_connection(self, conn_id: str) -> Connection:  # type: ignore[override]  # noqa: ARG002
        return self._connection


class SyncTransport:
    """Sends requests from threads.

    :raises MisconfigurationError: a certificate file cannot be used
    """

    def __init__(self, settings: Settings) -> None:
        self._options = settings.http
        self._way = _Way.of(settings)
        context = self._way.trust.context()
        if self._way.trust.authorities is None:
            # One warning for each request, to this host alone.
            host = re.escape(urlsplit(settings.base_url).hostname or "")
            warnings.filterwarnings("ignore", rf"Unverified HTTPS request is being made to host '{host}'")
        self._session = trusting(_HttpSession(settings).get_conn(), lambda: context)

    def serves(self, settings: Settings) -> bool:
        """Return whether it suits a connection, with the certificates that are on this machine now."""
        return self._way.serves(settings)

    def send(self, request: Request) -> Reply | Failure:
        """Send one request."""
        follow = self._options.allow_redirects and not request.secret
        try:
            return fetch(self._session, request, seconds=self._options.timeout, allow_redirects=follow)
        # Where a body stalls, the socket's own limit may end first.
        except (requests.Timeout, TimeoutError):
            return _too_slow(self._options.timeout)
        # requests does not wrap all errors of urllib3 and of codecs; after any error there is no reply.
        except Exception as error:
            return self._way.failure(error)

    def close(self) -> None:
        """Close the connections."""
        self._session.close()


class AsyncTransport:
    """Sends requests from one event loop, over at most ``MAX_CONNECTIONS`` connections. Make it in that loop."""

    def __init__(self, settings: Settings, way: _Way, context: ssl.SSLContext) -> None:
        self._options = settings.http
        self._way = way
        self._kwargs: dict[str, Any] = {"proxy": _proxy(settings)}
        if self._options.max_redirects is not None:
            self._kwargs["max_redirects"] = self._options.max_redirects
        # Not trust_env: aiohttp would read ~/.netrc in a thread before every request.
        self._session = aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(limit=MAX_CONNECTIONS, ssl=context),
            timeout=aiohttp.ClientTimeout(total=self._options.timeout),
            auto_decompress=False,
        )
        # One request is one request: aiohttp itself would repeat a GET at once when its connection is reset.
        self._session._retry_connection = False

    @classmethod
    async def open(cls, settings: Settings) -> AsyncTransport:
        """Make a transport for the running loop; certificates are read in a thread.

        :raises MisconfigurationError: a certificate file cannot be used
        """
        way = _Way.of(settings)
        context = way.trust.context() if way.trust is _NO_TLS else await asyncio.to_thread(way.trust.context)
        return cls(settings, way, context)

    def serves(self, settings: Settings) -> bool:
        """Return whether it suits a connection, with the certificates that are on this machine now."""
        return self._way.serves(settings)

    async def send(self, request: Request) -> Reply | Failure:
        """Send one request."""
        try:
            async with self._session.request(
                request.method,
                URL(request.url, encoded=True),  # already quoted, and not to be quoted again
                headers={**ENCODINGS, **request.headers},
                data=request.body,
                allow_redirects=self._options.allow_redirects and not request.secret,
                **self._kwargs,
            ) as response:
                chunks = response.content.iter_chunked(CHUNK)
                return await read_async(response.status, response.headers.items(), chunks)
        except TimeoutError:
            return _too_slow(self._options.timeout)
        # RuntimeError: another call has closed the session, because its connection was read again.
        except (aiohttp.ClientError, OSError, ValueError, RuntimeError, UnusableBodyError) as error:
            return self._way.failure(error)

    async def close(self) -> None:
        """Close the connections."""
        await self._session.close()

    def abandon(self) -> None:
        """Drop the connections of a loop that has ended."""
        self._session.detach()


def _too_slow(seconds: float) -> Failure:
    return Failure(f"no complete answer within {seconds:g} s")


def causes(error: BaseException) -> list[BaseException]:
    """Return an error and its causes, the innermost last; urllib3 gives some of them as an argument alone."""
    chain = [error]
    while True:
        last = chain[-1]
        # An error of ours was being handled when this request began: it belongs to another one.
        context = None if isinstance(last.__context__, MediationError) else last.__context__
        inner = last.__cause__ or context or next(iter(last.args), None)
        if not isinstance(inner, BaseException) or inner in chain:
            return chain
        chain.append(inner)


@dataclass(frozen=True, slots=True)
class _Way:
    """How requests of a connection reach Zuora: whether that still holds, and why one did not.

    :param base_url: of the connection
    :param options: of the connection
    :param trust: which servers are trusted
    :param files: of the trust, before they are read
    :param proxy: address of the proxy; empty: without one
    """

    base_url: str
    options: HttpOptions
    trust: Trust
    files: tuple[object, ...]
    proxy: str

    @classmethod
    def of(cls, settings: Settings) -> _Way:
        """Return the way of a connection."""
        trust = trust_of(settings)
        return cls(settings.base_url, settings.http, trust, trust.files(), _proxy(settings) or "")

    @property
    def secure(self) -> bool:
        """Whether it is by https."""
        return self.base_url.startswith("https:")

    def serves(self, settings: Settings) -> bool:
        """Return whether it is the way of a connection, and no file of certificates was replaced."""
        same = (self.base_url, self.options) == (settings.base_url, settings.http)
        return same and not _replaced(self.files, self.trust.files())

    def failure(self, error: BaseException) -> Failure:
        """Name the cause of a missing reply, and say whether the address can work at all as it is set up."""
        if isinstance(error, UnusableBodyError):
            return Failure(str(error))
        chain = causes(error)
        # The innermost one is the most exact. None quotes a header or a body, but some quote the proxy's address, which
        # may contain a password.
        cause = re.sub(r"[^\s/'\"]*@", "***@", f"{type(chain[-1]).__name__}: {chain[-1]}")[:300]
        if self.proxy:
            cause += f", through the proxy {self.proxy.rpartition('@')[2].rpartition('/')[2]}"
        # The innermost first: aiohttp's own errors are instances of those of TLS, without their details.
        remedy = next((found for each in reversed(chain) if (found := self._remedy(each))), None)
        if remedy is None:
            return Failure(cause + self._hint(chain[-1]))
        # A name and a certificate are checked before the request is sent.
        not_sent = any(isinstance(each, socket.gaierror | ssl.SSLCertVerificationError) for each in chain)
        return Failure(f"{remedy} ({cause})", unusable=True, not_sent=not_sent)

    def _remedy(self, error: BaseException) -> str | None:
        """Return what is wrong with the address and what to do; ``None`` for what can pass by itself."""
        if isinstance(error, socket.gaierror) and error.errno in _NO_SUCH_NAME:
            return "there is no such host name: check the host of the connection" + (self.proxy and ", and its proxy")
        if isinstance(error, ssl.SSLCertVerificationError):
            return self._untrusted(getattr(error, "verify_code", None))
        if isinstance(error, ssl.SSLError) and getattr(error, "reason", None) in _NOT_TLS:
            return "https was used or assumed, but this port has no TLS: write http:// before the host"
        if any(start in str(error) for start in _TLS_ALERT):
            return "http was used, but this port expects TLS: write https:// before the host"
        return None

    def _untrusted(self, code: int | None) -> str:
        if code in _OTHER_NAME:
            return "its certificate is for another host name: check the host of the connection"
        if code in _WRONG_TIME:
            return "its certificate is not valid now: renew it on the server, and check this machine's clock"
        given = [f"{each.setting} ({each.path})" for each in self.trust.authorities or () if each.is_given]
        by = f" by {' and '.join(given)}" if given else ""
        return (
            f"its certificate is not trusted{by}: set verify in the connection's extra to the file of the CA that"
            " signed it"
        )

    def _hint(self, cause: BaseException) -> str:
        """Return what else may be wrong; servers with TLS end a connection without it in many ways."""
        ended = isinstance(cause, ConnectionError | aiohttp.ServerDisconnectedError)
        refused = isinstance(cause, ConnectionRefusedError)
        return (
            "; if this port expects TLS, write https:// before the host"
            if ended and not (self.secure or refused)
            else ""
        )


def _proxy(settings: Settings) -> str | None:
    return proxy_for(settings.base_url, settings.http.proxies, trust_env=settings.http.trust_env)
