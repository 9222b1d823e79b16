"""``airflow mediation callout-template`` and ``send-test-callout``: set callouts up, and check that they arrive."""

from __future__ import annotations

import secrets
import time
from datetime import UTC, datetime
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from airflow_mediation_provider.commands import callout_url, callouts_of, command, connection_of
from airflow_mediation_provider.protocol.callouts.setup import (
    SECONDS,
    explain_answer,
    explain_refusal,
    probe,
    template_text,
)

if TYPE_CHECKING:
    from argparse import Namespace

    from airflow_mediation_provider.protocol.callouts.settings import CalloutSettings


@command
def print_template(args: Namespace) -> None:
    """Print what to paste into Zuora."""
    settings = callouts_of(connection_of(args.conn_id))
    url = callout_url(args.conn_id, args.url)
    print(template_text(settings, url))
    for doubt in _doubts(url):
        print(doubt)


@command
def send_test(args: Namespace) -> None:
    """Send a callout without credentials, which must be refused, and a valid one, which must then be in the journal."""
    settings = callouts_of(connection_of(args.conn_id))
    if not settings.enabled:
        raise SystemExit(
            f"Connection {args.conn_id!r} accepts no callouts: set callout_hmac_secret, or callout_username and "
            "callout_password, or callout_token in its extra."
        )
    url = callout_url(args.conn_id, args.url)
    for doubt in _doubts(url):
        print(doubt)
    nonce, now = secrets.token_hex(8), datetime.now(UTC)
    print(f"Sending to {url} a callout without credentials ...")
    status, headers, body = _post(url, *probe(settings, nonce=nonce, now=now, authorized=False))
    if fault := explain_refusal(status, headers, body, settings):
        raise SystemExit(f"Failed: {fault}.")
    print("401, as it must be: Airflow accepts no callouts without credentials.")
    print("Sending the same with the connection's credentials ...")
    begun = time.monotonic()
    status, headers, body = _post(url, *probe(settings, nonce=nonce, now=now))
    if fault := explain_answer(status, headers, body):
        raise SystemExit(f"Failed: {fault}.")
    print(f"200 after {time.monotonic() - begun:.2f} s: the API server has stored it.")
    print(_found(settings, f"test-{nonce}"))
    if _doubts(url):
        print("So Airflow takes callouts. This does not check the way from Zuora, which would not accept this address.")
    else:
        print("Zuora's callouts arrive, unless something between Zuora and this machine's network stops them.")


def _post(url: str, headers: dict[str, str], body: bytes) -> tuple[int, dict[str, str], str]:
    """Send as Zuora does: no redirects, 25 seconds as the time limit."""
    import requests

    try:
        with requests.post(
            url, data=body, headers=headers, timeout=(10.0, SECONDS - 10.0), allow_redirects=False
        ) as reply:
            return reply.status_code, {name.lower(): value for name, value in reply.headers.items()}, reply.text
    except requests.exceptions.SSLError as error:
        what = "the TLS connection failed"
        if "certificate" in str(error).lower():
            what = "its certificate is not trusted; Zuora would refuse it too (or needs it in the callout template)"
        raise SystemExit(f"Failed: {what}: {_reason(error)}.") from None
    except requests.exceptions.Timeout:
        raise SystemExit(f"Failed: no answer in time; Zuora waits {SECONDS:g} s and retries later.") from None
    except requests.exceptions.RequestException as error:
        raise SystemExit(f"Failed: no answer: {_reason(error)}.") from None


def _reason(error: Exception) -> str:
    """Return the cause of an error of requests, without the names of the classes around it."""
    text = str(getattr(error.args[0] if error.args else None, "reason", None) or error)
    return text.rpartition("): ")[2].rstrip(".")


def _doubts(url: str) -> list[str]:
    """Return reasons why Zuora would not accept an address."""
    parts = urlsplit(url)
    doubts = []
    if parts.scheme != "https" or parts.port not in (None, 443):
        doubts.append("Note: Zuora calls only https addresses on port 443; give the public one with --url.")
    if len(url) > 1000:
        doubts.append("Note: Zuora accepts addresses of at most 1,000 characters.")
    return doubts


def _found(settings: CalloutSettings, notification_id: str) -> str:
    """Find the test callout in the journal, and return the result as a sentence."""
    from sqlalchemy import select

    from airflow_mediation_provider.journal.tables import TransitionRow
    from airflow_mediation_provider.journal.transaction import JournalUnavailable, read

    query = select(TransitionRow.kind).where(
        TransitionRow.conn_id == settings.conn_id, TransitionRow.notification_id == notification_id
    )
    try:
        kind: str | None = read(lambda session: session.scalar(query))
    except JournalUnavailable as error:
        return f"Whether it is in the journal cannot be checked from here: {error}."
    if kind is None:
        raise SystemExit("Failed: it is not in the journal of this Airflow: the address is that of another Airflow.")
    return f"It is in the journal, as a {kind}: it belongs to no session and starts no Dag."
