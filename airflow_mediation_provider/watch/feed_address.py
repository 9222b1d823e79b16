"""Where the API server's paths under ``/mediation`` are, as seen from workers and triggerers."""

from __future__ import annotations

from dataclasses import dataclass
from urllib.parse import urlsplit, urlunsplit

from airflow_mediation_provider.protocol.pages import MOUNT


@dataclass(frozen=True, slots=True)
class Candidate:
    """One address to try.

    :param url: up to and with ``/mediation``, without a slash at its end
    :param source: the setting that it comes from
    """

    url: str
    source: str


def candidates() -> list[Candidate]:
    """Return the addresses to try, in their order: the one that was set, then what Airflow's own settings imply.

    The server of the task execution API is nearest to workers and triggerers; where it is one of its own, it may serve
    nothing else.
    """
    from airflow.sdk import conf

    found: list[Candidate] = []
    if url := conf.get("mediation", "feed_url", fallback=None):
        found.append(Candidate(_plain(url), "[mediation] feed_url"))
    if url := conf.get("core", "execution_api_server_url", fallback=None):
        base = _plain(url).removesuffix("/execution")
        found.append(Candidate(base + MOUNT, "[core] execution_api_server_url"))
    url = conf.get("api", "base_url", fallback=None) or "http://localhost:8080"
    found.append(Candidate(_plain(url) + MOUNT, "[api] base_url"))
    return [each for number, each in enumerate(found) if each.url not in {other.url for other in found[:number]}]


def _plain(url: str) -> str:
    parts = urlsplit(url.strip())
    return urlunsplit((parts.scheme, parts.netloc, parts.path.rstrip("/"), "", ""))
