"""Sending one request: on the HTTP provider's session in threads, on aiohttp in event loops. No token, no repeating.

Both give a :class:`Reply` or a :class:`Failure` and never raise for what the network does. Both end a request after the
time it may take in all, from looking up the name to the last byte of the body.
"""

from __future__ import annotations

import asyncio
import json
import re
import threading
from concurrent.futures import Future
from concurrent.futures import TimeoutError as FutureTimeoutError
from typing import TYPE_CHECKING, Any, Final

import aiohttp
import requests
from airflow.providers.http.hooks.http import HttpHook
from airflow.sdk import Connection
from yarl import URL

from airflow_mediation_provider.protocol.errors import MisconfigurationError
from airflow_mediation_provider.protocol.exchange import Failure, Request
from airflow_mediation_provider.protocol.refusals import Reply

if TYPE_CHECKING:
    import ssl
    from collections.abc import Iterable

    from airflow_mediation_provider.hooks.settings import Settings

MAX_CONNECTIONS: Final = 4
"""Connections that one asynchronous hook holds open at most."""


class _HttpSession(HttpHook):
    """The HTTP provider's hook, made to read a connection that holds nothing but what it may use.

    Given the real connection it would send the client secret as Basic authentication and every field that it does not
    know (data center, entity, link template) as a header.
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
                    "proxies": http.proxies,
                    "verify": http.verify,
                    "trust_env": http.trust_env,
                    **({"cert": http.cert} if http.cert else {}),
                    **({"max_redirects": http.max_redirects} if http.max_redirects is not None else {}),
                }
            ),
        )

    def get_connection(self, conn_id: str) -> Connection:  # type: ignore[override]  # noqa: ARG002
        return self._connection


class _BearerOnly(requests.auth.AuthBase):
    """Leaves the headers alone: without any ``auth``, requests would put an entry of ``~/.netrc`` over the token."""

    def __call__(self, request: requests.PreparedRequest) -> requests.PreparedRequest:
        return request


class SyncTransport:
    """Sends requests from threads."""

    def __init__(self, settings: Settings) -> None:
        self._options = settings.http
        self._session = _HttpSession(settings).get_conn()
        self._session.auth = _BearerOnly()
        if isinstance(self._options.cert, tuple):
            self._session.cert = self._options.cert

    def send(self, request: Request) -> Reply | Failure:
        """Send one request.

        It runs in a thread of its own, because requests limits the time between two bytes only: a server that lets a
        byte drip now and then would hold the caller for ever. The thread ends with its connection.
        """
        outcome: Future[Reply | Failure] = Future()
        threading.Thread(
            target=lambda: outcome.set_result(self._send(request)), name="mediation-request", daemon=True
        ).start()
        try:
            return outcome.result(self._options.timeout)
        except FutureTimeoutError:
            return _too_slow(self._options.timeout)

    def _send(self, request: Request) -> Reply | Failure:
        try:
            response = self._session.request(
                request.method,
                request.url,
                headers=request.headers,
                data=request.body,
                timeout=self._options.timeout,
                allow_redirects=self._options.allow_redirects,
                stream=False,
            )
        except requests.Timeout:
            return _too_slow(self._options.timeout)
        # requests lets errors of urllib3 and of codecs through; whatever it was, there is no reply.
        except Exception as error:
            return Failure(_cause(error))
        return Reply(response.status_code, _headers(response.headers.items()), response.content)

    def close(self) -> None:
        """Close the connections."""
        self._session.close()


class AsyncTransport:
    """Sends requests from one event loop, over at most ``MAX_CONNECTIONS`` connections. Make it in that loop."""

    def __init__(self, settings: Settings, ssl_context: ssl.SSLContext | bool) -> None:
        self._options = settings.http
        self._base_url = settings.base_url
        self._kwargs: dict[str, Any] = {
            "allow_redirects": self._options.allow_redirects,
            "proxy": _proxy(settings),
        }
        if self._options.max_redirects is not None:
            self._kwargs["max_redirects"] = self._options.max_redirects
        # Not trust_env: aiohttp would look into ~/.netrc in a thread before every request.
        self._session = aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(limit=MAX_CONNECTIONS, ssl=ssl_context),
            timeout=aiohttp.ClientTimeout(total=self._options.timeout),
        )
        # One request is one request: by itself aiohttp sends a GET again at once when its connection is reset.
        self._session._retry_connection = False

    @classmethod
    async def open(cls, settings: Settings) -> AsyncTransport:
        """Make one for the running loop; certificates are read in a thread."""
        http = settings.http
        if http.verify is True and http.cert is None:
            return cls(settings, True)
        return cls(settings, await asyncio.to_thread(_ssl_context, http.verify, http.cert))

    def serves(self, settings: Settings) -> bool:
        """Say whether it suits a connection that was read again."""
        return (self._base_url, self._options) == (settings.base_url, settings.http)

    async def send(self, request: Request) -> Reply | Failure:
        """Send one request."""
        try:
            async with self._session.request(
                request.method,
                URL(request.url, encoded=True),  # quoted already, and not to be quoted otherwise
                headers=request.headers,
                data=request.body,
                **self._kwargs,
            ) as response:
                return Reply(response.status, _headers(response.headers.items()), await response.read())
        except TimeoutError:
            return _too_slow(self._options.timeout)
        except (aiohttp.ClientError, OSError, ValueError) as error:
            return Failure(_cause(error))

    async def close(self) -> None:
        """Close the connections."""
        await self._session.close()

    def abandon(self) -> None:
        """Let go of the connections of a loop that is over."""
        self._session.detach()


def _headers(items: Iterable[tuple[str, str]]) -> dict[str, str]:
    headers: dict[str, str] = {}
    for name, value in items:
        key = name.lower()
        headers[key] = f"{headers[key]}, {value}" if key in headers else value
    return headers


def _too_slow(seconds: float) -> Failure:
    return Failure(f"no complete answer within {seconds:g} s")


def _cause(error: BaseException) -> str:
    """Name the cause of a failure; the innermost one says it best, and none of them quotes a header or a body.

    Some quote the proxy's address, which may hold a password.
    """
    while (inner := error.__cause__ or error.__context__) is not None:
        error = inner
    return re.sub(r"[^\s/'\"]*@", "***@", f"{type(error).__name__}: {error}")[:300]


def _proxy(settings: Settings) -> str | None:
    proxies = dict(settings.http.proxies)
    if not proxies and settings.http.trust_env:
        proxies = requests.utils.get_environ_proxies(settings.base_url)
    proxy = requests.utils.select_proxy(settings.base_url, proxies)
    # As requests does it: a proxy is often named without a scheme, which aiohttp would refuse.
    return f"http://{proxy}" if proxy and "://" not in proxy else proxy


def check_certificates(settings: Settings) -> None:
    """Read the connection's certificate files once: ``requests`` would only say at each request that it cannot.

    :raises MisconfigurationError: one is missing, may not be read, or is no certificate
    """
    http = settings.http
    if isinstance(http.verify, str) or http.cert is not None:
        _ssl_context(http.verify, http.cert)


def _ssl_context(verify: bool | str, cert: str | tuple[str, str] | None) -> ssl.SSLContext:
    import ssl
    from pathlib import Path

    bundle = verify if isinstance(verify, str) else None
    directory = bundle is not None and Path(bundle).is_dir()
    try:
        context = ssl.create_default_context(cafile=None if directory else bundle, capath=bundle if directory else None)
        if verify is False:
            context.check_hostname = False
            context.verify_mode = ssl.CERT_NONE
        if cert:
            context.load_cert_chain(*((cert,) if isinstance(cert, str) else cert))
    except OSError as error:
        raise MisconfigurationError(
            f"A certificate file of the connection's extra cannot be used (verify: {bundle}, cert: {cert}): {error}."
            " Check that the path is right on this machine"
        ) from error
    return context
