"""The session that tasks pass on: one type, one constructor, one table in the documentation."""

from __future__ import annotations

import re
from dataclasses import fields
from datetime import UTC, datetime
from pathlib import Path

from airflow_mediation_provider.assets import SessionResult
from airflow_mediation_provider.protocol.sessions.session_result import session_result
from airflow_mediation_provider.protocol.transition import SessionTransition, Source

ROOT = Path(__file__).parents[4]


def test_a_session_result_is_the_transition_and_its_evidence():
    transition = SessionTransition(
        meter_id="1001",
        session_id="R-1",
        status="COMPLETED",
        observed_at=datetime(2026, 11, 30, 12, tzinfo=UTC),
        source=Source.CALLOUT,
    )
    result = session_result(transition, evidence=Source.CALLOUT, certain=True)
    assert list(result.items()) == [
        *transition.to_dict().items(),
        ("version", None),
        ("mediation_conn_id", None),
        ("evidence", "callout"),
        ("certain", True),
    ]
    assert type(result["evidence"]) is str


def test_the_type_has_each_key():
    made = {field.name for field in fields(SessionTransition)} | {"evidence", "certain", "version", "mediation_conn_id"}
    assert SessionResult.__required_keys__ == made


def test_the_documentation_marks_each_key_that_may_be_none():
    table = (ROOT / "docs" / "session.md").read_text().partition("## Where")[0]
    rows = dict(re.findall(r"^\| `(\w+)` \|.*\| (.*) \|$", table, re.MULTILINE))
    hints = SessionResult.__annotations__
    assert rows.keys() == hints.keys()
    assert {name for name, when in rows.items() if when == "never"} == {
        name for name, hint in hints.items() if "None" not in str(hint)
    }


# Two set columns of these names; the third marks a session whose run reply was lost as not certain; the last lists
# sessions by their best known status.
NAMES_THE_KEYS = {
    "journal/task_reports.py",
    "journal/migrations/versions/r0003_verdicts.py",
    "operators/meter.py",
    "api_server/pages/sessions.py",
}


def test_one_function_makes_every_session_result():
    package = ROOT / "airflow_mediation_provider"
    makers = {
        path.relative_to(package).as_posix()
        for path in package.rglob("*.py")
        if re.search(r'"(?:evidence|certain)": ', path.read_text()) and "simulator" not in path.parts
    }
    assert makers == {"protocol/sessions/session_result.py"} | NAMES_THE_KEYS
