"""The checked settings of an Airflow connection of type ``mediation``: each error is one sentence with the field."""

from __future__ import annotations

import ipaddress
import json
import logging
import re
from dataclasses import dataclass, field
from functools import lru_cache
from string import Formatter
from typing import TYPE_CHECKING, Any, Final
from urllib.parse import quote, urlsplit

from airflow_mediation_provider.protocol.callouts.settings import (
    CALLOUT_EXTRA,
    SHORTEST_SECRET,
    CalloutSettings,
    callout_settings,
    secret_cautions,
)
from airflow_mediation_provider.protocol.zuora.errors import MisconfigurationError
from airflow_mediation_provider.protocol.zuora.flow import REQUEST_TIMEOUT, Peer, legal_header
from airflow_mediation_provider.protocol.zuora.requests import DataCenter

if TYPE_CHECKING:
    from collections.abc import Mapping

    from airflow.sdk import Connection

log = logging.getLogger(__name__)

KNOWN_EXTRA: Final = frozenset(
    {
        "data_center",
        "entity_id",
        "org_ids",
        "ui_link_template",
        "meter_names",
        "proxies",
        "proxy",
        "verify",
        "verify_ssl",
        "cert",
        "timeout",
        "allow_redirects",
        "max_redirects",
        "trust_env",
        *CALLOUT_EXTRA,
    }
)
CONNECTION_TYPE: Final = "mediation"
_LONGEST_NAME: Final = 250
LINK_FIELDS: Final = ("meter_id", "session_id", "run_id", "ui_base")


@dataclass(frozen=True, slots=True, kw_only=True)
class HttpOptions:
    """Options of the HTTP provider's connections that this one takes too, under the same names.

    :param proxies: scheme -> proxy
    :param verify: check certificates, or the path of a CA bundle to check them with
    :param cert: client certificate: one file, or certificate and key
    :param timeout: time limit of one request in seconds
    :param trust_env: take proxies and CA bundles from the environment, where the connection has none
    """

    proxies: dict[str, str] = field(default_factory=dict, repr=False)
    verify: bool | str = True
    cert: str | tuple[str, str] | None = None
    timeout: float = REQUEST_TIMEOUT
    allow_redirects: bool = False
    max_redirects: int | None = None
    trust_env: bool = True


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """A checked connection.

    :param meter_names: meter id -> the name that pages show
    :param extra: its extra as it is; the callouts' fields in it are not checked here
    """

    conn_id: str
    base_url: str
    client_id: str
    client_secret: str = field(repr=False)
    entity_id: str | None = None
    org_ids: str | None = None
    ui_base: str | None = None
    ui_link_template: str | None = None
    meter_names: Mapping[str, str] = field(default_factory=dict)
    http: HttpOptions = field(default_factory=HttpOptions)
    extra: Mapping[str, Any] = field(default_factory=dict, repr=False)

    @property
    def callouts(self) -> CalloutSettings:
        """How callouts are verified and parsed.

        :raises MisconfigurationError: one sentence that names the connection, the field and its valid values
        """
        return callout_settings(self.conn_id, self.extra)

    @property
    def cautions(self) -> tuple[str, ...]:
        """What works and is not safe: a clause for each, without a secret."""
        url = urlsplit(self.base_url)
        found = []
        if url.scheme == "http" and _is_public(url.hostname or ""):
            found.append(f"client secret and tokens are sent to {url.hostname} without TLS: use https")
        if url.scheme == "https" and self.http.verify is False:
            found.append("verify is false, so any server is trusted: set it to the file of the CA that signed it")
        if len(self.client_secret) < SHORTEST_SECRET:
            found.append(f"the client secret has fewer than {SHORTEST_SECRET} characters: make a new one in Zuora")
        return (*found, *secret_cautions(self.extra))

    def peer(self, track_id: str | None = None) -> Peer:
        """Return the server's address and the headers of every call."""
        headers = {
            "Zuora-Entity-Ids": self.entity_id,
            "Zuora-Org-Ids": self.org_ids,
            "Zuora-Track-Id": legal_header(track_id) if track_id else None,
        }
        return Peer(
            base_url=self.base_url,
            client_id=self.client_id,
            client_secret=self.client_secret,
            headers={name: value for name, value in headers.items() if value},
        )

    def session_url(self, meter_id: str, session_id: str | None, run_id: str | None) -> str | None:
        """Fill the link template; ``None`` without one, or if it needs an id that is not known.

        Zuora documents no address of a session's page, so there is no default template.
        """
        if not self.ui_link_template:
            return None
        ids = {"meter_id": meter_id, "session_id": session_id, "run_id": run_id}
        values = {name: quote(str(value), safe="") for name, value in ids.items() if value is not None}
        try:
            return self.ui_link_template.format(**values, ui_base=self.ui_base)
        except KeyError:
            return None


def settings_of(conn_id: str, connection: Connection) -> Settings:
    """Check a connection.

    :raises MisconfigurationError: one sentence that names the connection, the field and its valid values
    """
    if connection.conn_type != CONNECTION_TYPE:
        raise _wrong(conn_id, f"it is of type {connection.conn_type!r}; make a connection of type {CONNECTION_TYPE!r}")
    extra = _extra(conn_id, connection.extra)
    center = _data_center(conn_id, extra.get("data_center"))
    if not connection.host and center is None:
        raise _wrong(
            conn_id,
            "it has neither a data center nor a host; set data_center to one of"
            f" {', '.join(DataCenter.__members__)} (in the extra), or the host to a REST base URL",
        )
    for name, value in (("client ID (login)", connection.login), ("client secret (password)", connection.password)):
        if not value:
            raise _wrong(conn_id, f"the {name} is missing")
        if value != value.strip():
            raise _wrong(conn_id, f"the {name} begins or ends with a blank or a newline; remove it")
    base_url = _base_url(conn_id, connection) if connection.host else center.rest_url  # type: ignore[union-attr]
    return Settings(
        conn_id=conn_id,
        base_url=base_url,
        client_id=str(connection.login),
        client_secret=str(connection.password),
        entity_id=_header(conn_id, "entity_id", extra.get("entity_id")),
        org_ids=_header(conn_id, "org_ids", extra.get("org_ids")),
        ui_base=center.ui_url if center else None,
        ui_link_template=_link_template(conn_id, extra.get("ui_link_template"), center),
        meter_names=_meter_names(conn_id, extra.get("meter_names")),
        http=_http_options(conn_id, extra, urlsplit(base_url).scheme),
        extra=extra,
    )


def _is_public(host: str) -> bool:
    """Return whether a host may be reached over a network that others use."""
    try:
        return not ipaddress.ip_address(host).is_private
    except ValueError:
        return "." in host and not host.endswith(".localhost")


@lru_cache(1000)
def log_cautions(conn_id: str, cautions: tuple[str, ...]) -> None:
    """Log once in a process what is not safe about a connection."""
    for each in cautions:
        log.warning("Connection %r: %s.", conn_id, each)


def _wrong(conn_id: str, what: str) -> MisconfigurationError:
    return MisconfigurationError(f"Connection {conn_id!r}: {what}.")


def _extra(conn_id: str, extra: str | None) -> dict[str, Any]:
    try:
        value = json.loads(extra) if extra and extra.strip() else {}
    except ValueError:
        value = None
    if not isinstance(value, dict):
        raise _wrong(conn_id, "the extra is not a JSON object")
    if unknown := sorted(set(value) - KNOWN_EXTRA):
        # A typing error in entity_id would act on another entity. Only names: a value may be a secret.
        known = ", ".join(sorted(KNOWN_EXTRA))
        log.warning("Connection %r: ignoring %s in the extra; known are %s.", conn_id, ", ".join(unknown), known)
    return value


def _data_center(conn_id: str, value: object) -> DataCenter | None:
    if value is None or value == "":
        return None
    center = DataCenter.named(value)
    if center is None:
        raise _wrong(conn_id, f"data_center must be one of {', '.join(DataCenter.__members__)}, not {value!r}")
    return center


def _base_url(conn_id: str, connection: Connection) -> str:
    host, schema = str(connection.host).strip(), connection.schema or "https"
    url = host if "://" in host else f"{schema}://{host}"
    try:
        parts = urlsplit(url)
        port = parts.port or connection.port
    except ValueError:
        parts, port = urlsplit(""), None
    if (
        parts.scheme not in ("http", "https")
        or parts.hostname in (None, "http", "https")  # of "http:/rest.zuora.com"
        or parts.query
        or parts.fragment
        or parts.username
    ):
        shown = re.sub(r"[^/]*@", "***@", host)  # it may contain credentials
        raise _wrong(conn_id, f"the host {shown!r} is not a REST base URL like {DataCenter.PROD.rest_url}")
    path = parts.path.rstrip("/")
    if path == "/v1":
        raise _wrong(
            conn_id, "the host must be the REST base URL without /v1, which the calls of Mediation do not have"
        )
    name = f"[{parts.hostname}]" if ":" in parts.hostname else parts.hostname
    return f"{parts.scheme}://{name}{f':{port}' if port else ''}{path}"


def _header(conn_id: str, name: str, value: object) -> str | None:
    if isinstance(value, (list, tuple)):
        value = ",".join(str(item).strip() for item in value)
    text = "" if value is None else str(value).strip()
    if not (text.isascii() and (text.isprintable())):
        raise _wrong(conn_id, f"{name} must be one line of plain ASCII")
    return text or None


def _link_template(conn_id: str, value: object, center: DataCenter | None) -> str | None:
    """Check the template before anything is started: a run must not fail because of its link."""
    template = _header(conn_id, "ui_link_template", value)
    if template is None:
        return None
    known = ", ".join(f"{{{name}}}" for name in LINK_FIELDS)
    try:
        names = {name for _, name, _, _ in Formatter().parse(template) if name is not None}
        if unknown := sorted(names - set(LINK_FIELDS)):
            raise _wrong(conn_id, f"ui_link_template has the unknown field {{{unknown[0]}}}; known are {known}")
        sample = template.format(**{**dict.fromkeys(LINK_FIELDS, "1"), "ui_base": center and center.ui_url})
    except (LookupError, ValueError) as error:
        raise _wrong(conn_id, f"ui_link_template is not a valid template with the fields {known}: {error}") from None
    if "ui_base" in names and (center is None or center.ui_url is None):
        raise _wrong(
            conn_id,
            "ui_link_template uses {ui_base}, but Zuora documents no UI address of this data center: write the address "
            "into the template",
        )
    if not re.match(r"https?://[^/?#\s]", sample):
        raise _wrong(conn_id, f"ui_link_template {template!r} is no address: begin it with https:// or {{ui_base}}")
    return template


def _meter_names(conn_id: str, value: object) -> dict[str, str]:
    """Return the names by the ids of the meters; a connection that is given as a URI has them as text."""
    names = value
    if isinstance(value, str):
        try:
            names = json.loads(value) if value.strip() else None
        except ValueError:
            names = value
    if names is None:
        return {}
    if not isinstance(names, dict) or not all(key.strip() and _is_name(name) for key, name in names.items()):
        raise _wrong(
            conn_id,
            'meter_names must be an object like {"1001": "Storage"}, with names of one line and at most '
            f"{_LONGEST_NAME} characters",
        )
    return {meter_id.strip(): name.strip() for meter_id, name in names.items()}


def _is_name(name: object) -> bool:
    return isinstance(name, str) and bool(name.strip()) and len(name) <= _LONGEST_NAME and name.isprintable()


def _http_options(conn_id: str, extra: Mapping[str, Any], scheme: str) -> HttpOptions:
    proxies = extra.get("proxies", extra.get("proxy")) or {}
    if isinstance(proxies, str):
        proxies = {"http": proxies, "https": proxies}
    verify = extra.get("verify", extra.get("verify_ssl"))
    cert = extra.get("cert")
    try:
        timeout = float(extra.get("timeout") or REQUEST_TIMEOUT)
        max_redirects = int(extra["max_redirects"]) if extra.get("max_redirects") is not None else None
    except (TypeError, ValueError):
        raise _wrong(conn_id, "timeout and max_redirects must be numbers") from None
    if not isinstance(proxies, dict) or timeout <= 0:
        raise _wrong(conn_id, f"proxies must be an object like {{{scheme!r}: 'http://proxy:3128'}}, timeout above 0")
    for name, proxy in proxies.items():
        if not _is_proxy(str(proxy)):
            raise _wrong(conn_id, f"proxies[{name!r}] is not an address like http://proxy:3128")
    return HttpOptions(
        proxies={str(name): str(proxy) for name, proxy in proxies.items()},
        verify=_flag(verify, default=True, or_text=True),
        cert=(str(cert[0]), str(cert[1])) if isinstance(cert, list) and len(cert) == 2 else cert,
        timeout=min(timeout, REQUEST_TIMEOUT),
        allow_redirects=bool(_flag(extra.get("allow_redirects"), default=False)),
        max_redirects=max_redirects,
        trust_env=bool(_flag(extra.get("trust_env"), default=True)),
    )


def _is_proxy(address: str) -> bool:
    """Return whether this is the address of a proxy; a scheme is optional."""
    try:
        parts = urlsplit(address if "://" in address else f"http://{address}")
        return bool(parts.hostname) and parts.port != 0
    except ValueError:
        return False


def _flag(value: object, *, default: bool, or_text: bool = False) -> bool | str:
    """Return a flag that may be text, as are all extras of a connection given as a URI."""
    if value is None or value == "":
        return default
    if isinstance(value, str):
        known = {"true": True, "1": True, "yes": True, "false": False, "0": False, "no": False}
        return known.get(value.strip().lower(), value if or_text else default)
    return bool(value)
