"""Alerts of sessions that really fail, mailed by Airflow's own notifier: from a callback, and from the example Dag."""

from __future__ import annotations

import re
from html import unescape
from typing import TYPE_CHECKING, Any

from airflow_mediation_provider.simulator.records import rejected
from testkit.processes import wait_until
from tests.integration.conftest import METER_WITH_CALLOUTS

if TYPE_CHECKING:
    from collections.abc import Callable
    from email.message import EmailMessage

    from testkit.stage import Stage

SCRIPT = [["INITIALIZING", 1], ["RUNNING", 2], ["FAILED", 0]]


def mailed(stage: Stage, to: str, session_id: str) -> EmailMessage:
    """Wait for the mail about a session, and return it."""

    def there() -> EmailMessage | None:
        found = (each for each in stage.mail.messages if each["To"] == to and session_id in each["Subject"])
        return next(found, None)

    return wait_until(there, timeout=120, what=f"a mail to {to} about session {session_id}")


def content(mail: EmailMessage) -> str:
    body = mail.get_body(("html",))
    assert body is not None
    return unescape(re.sub(r"<[^>]+>", "\n", body.get_content()))


def value_of(text: str, name: str) -> str:
    """Return the value that follows a name."""
    lines = [line for line in text.splitlines() if line.strip()]
    return lines[lines.index(name) + 1]


def compare(text: str, session: dict[str, Any]) -> None:
    """Assert that a text has the facts of the simulator's session."""
    print(text)
    assert value_of(text, "Session ID") == session["session_id"]
    assert value_of(text, "Run type") == session["run_type"] == "NORMAL"
    assert value_of(text, "Status").split(",")[0] == session["status"] == "FAILED"
    counted = {code: int(count) for count, code in re.findall(r"^(\d+) x (\S+)", text, re.MULTILINE)}
    assert counted == {code: count for _, code, _, count in rejected(session["errors"])}


def test_the_callback_of_a_failed_task_mails_its_session(stage: Stage, meter: Callable[..., str]) -> None:
    meter_id = meter(script=SCRIPT, records=8, errors=7)
    run_id = stage.airflow.trigger("alerts", {"meter": meter_id})
    stage.airflow.wait_run("alerts", run_id)
    (session,) = stage.simulator.sessions(meter_id)
    mail = mailed(stage, "callback@example.com", session["session_id"])
    text = content(mail)
    compare(text, session)
    assert mail["Subject"].endswith("; Task alerts.run failed")
    # The journal has the first from the reply to the run call; the task polled the second.
    timeline = text[text.index("Timeline") : text.index("First errors")]
    assert re.findall(r"(\w+ \(\w+\))", timeline) == ["INITIALIZING (run)", "FAILED (poll)"]


def test_the_example_mails_the_session_of_any_meter(stage: Stage) -> None:
    stage.simulator.meter(METER_WITH_CALLOUTS, name="Support", script=SCRIPT, records=8, errors=4)
    started = stage.simulator.start_session(METER_WITH_CALLOUTS)
    text = content(mailed(stage, "operations@example.com", started["session_id"]))
    (session,) = stage.simulator.sessions(METER_WITH_CALLOUTS)
    compare(text, session)
    timeline = text[text.index("Timeline") : text.index("First errors")]
    assert re.findall(r"(\w+) \(callout\)", timeline) == ["INITIALIZING", "RUNNING", "FAILED"]
