"""What tasks concluded from polls, the best known status of each session, and the owner of each wait.

The end of past waits is filled in if it is unambiguous: the wait ended by a status, its session is named and has no
reported end, and the condition names only one status that can have ended it. That status becomes an uncertain verdict.
A wait that its process left is open again: Airflow's state of the task decides whether it goes on.
"""

from __future__ import annotations

from collections import defaultdict
from typing import Any

import sqlalchemy as sa
from alembic import context, op

from airflow_mediation_provider.journal.migrations import TIME, name

revision = "0003"
down_revision = "0002"
branch_labels = None
depends_on = None

_SESSION = "mediation_session"
_VERDICT = "mediation_verdict"
_WAIT = "mediation_wait"
_ENDED_BY = {"MET": "statuses", "FAILED": "fail_on"}
_GRAVITY = {"FAILED": 0, "TESTING_FAILED": 0, "CANCELED": 1, "COMPLETED": 2, "TESTING_PASSED": 2}
_BATCH = 1000


def upgrade() -> None:
    """Create the table and the columns, and fill them."""
    op.create_table(
        _VERDICT,
        sa.Column("ti_id", name(64), nullable=False),
        sa.Column("conn_id", name(250), nullable=False),
        sa.Column("meter_id", name(64), nullable=False),
        sa.Column("session_id", name(64), nullable=True),
        sa.Column("wait_id", name(64), nullable=False),
        sa.Column("run_type", sa.String(16), nullable=False),
        sa.Column("status", sa.String(64), nullable=False),
        sa.Column("at", TIME, nullable=False),
        sa.Column("certain", sa.Boolean, nullable=False),
        sa.Column("dag_id", name(250), nullable=False),
        sa.Column("run_id", name(250), nullable=False),
        sa.Column("task_id", name(250), nullable=False),
        sa.Column("map_index", sa.Integer, nullable=False),
        sa.Column("try_number", sa.Integer, nullable=False),
        sa.Column("mode", sa.String(16), nullable=False),
        sa.Column("created_at", TIME, nullable=False),
        sa.PrimaryKeyConstraint("ti_id", name="pk_mediation_verdict"),
        sa.Index("ix_mediation_verdict_session", "conn_id", "meter_id", "session_id"),
        sa.Index("ix_mediation_verdict_wait", "wait_id"),
    )
    for column in (
        sa.Column("owner", name(64), nullable=True),
        sa.Column("status", sa.String(64), nullable=True),
        sa.Column("evidence", sa.String(16), nullable=True),
        sa.Column("certain", sa.Boolean, nullable=True),
        sa.Column("note", sa.JSON, nullable=True),
    ):
        op.add_column(_WAIT, column)
    for column in (
        sa.Column("reported", sa.Boolean, nullable=False, server_default=sa.true()),
        sa.Column("best_status", sa.String(64), nullable=False, server_default="UNKNOWN"),
        sa.Column("best_evidence", sa.String(16), nullable=False, server_default="unknown"),
        sa.Column("best_certain", sa.Boolean, nullable=False, server_default=sa.false()),
        sa.Column("best_ended", sa.Boolean, nullable=False, server_default=sa.false()),
        sa.Column("best_ended_at", TIME, nullable=True),
        sa.Column("best_differs", sa.Boolean, nullable=False, server_default=sa.false()),
    ):
        op.add_column(_SESSION, column)
    _rate_by_reports()
    op.execute(sa.text("UPDATE mediation_wait SET ended_at = NULL WHERE outcome = 'left'"))
    if not context.is_offline_mode():
        _conclude_ended_waits(op.get_bind())
    op.drop_index("ix_mediation_session_status_begun_at", _SESSION)
    op.drop_index("ix_mediation_session_terminal", _SESSION)
    op.create_index("ix_mediation_session_best_status_begun_at", _SESSION, ["best_status", "begun_at"])
    op.create_index("ix_mediation_session_silent", _SESSION, ["conn_id", "terminal", "last_observed_at"])
    op.create_index("ix_mediation_session_ended", _SESSION, ["best_ended", "last_observed_at"])
    op.create_index("ix_mediation_session_received", _SESSION, ["conn_id", "meter_id", "first_observed_at"])
    op.create_index("ix_mediation_session_named", _SESSION, ["conn_id", "session_id"])


def downgrade() -> None:
    """Remove them, with sessions that only tasks reported; waits that their process left end when last seen."""
    op.execute(sa.text("UPDATE mediation_wait SET ended_at = seen_at WHERE outcome = 'left'"))
    op.execute(sa.text("DELETE FROM mediation_wait WHERE mode = 'task'"))
    sessions = _sessions()
    op.execute(sessions.delete().where(sessions.c.reported == sa.false()))
    for index in ("named", "received", "ended", "silent", "best_status_begun_at"):
        op.drop_index(f"ix_mediation_session_{index}", _SESSION)
    op.create_index("ix_mediation_session_terminal", _SESSION, ["terminal", "last_observed_at"])
    op.create_index("ix_mediation_session_status_begun_at", _SESSION, ["status", "begun_at"])
    for column in ("differs", "ended_at", "ended", "certain", "evidence", "status"):
        op.drop_column(_SESSION, f"best_{column}")
    op.drop_column(_SESSION, "reported")
    for column in ("note", "certain", "evidence", "status", "owner"):
        op.drop_column(_WAIT, column)
    op.drop_table(_VERDICT)


def _sessions() -> sa.TableClause:
    names = ("conn_id", "meter_id", "session_id", "run_type", "status", "source")
    return sa.table(
        _SESSION,
        sa.column("id", sa.Integer),
        *(sa.column(each, sa.String) for each in (*names, "best_status", "best_evidence")),
        *(sa.column(each, TIME) for each in ("ended_at", "last_observed_at", "best_ended_at")),
        *(sa.column(each, sa.Boolean) for each in ("conflict", "ambiguous", "terminal", "reported")),
        *(sa.column(f"best_{each}", sa.Boolean) for each in ("certain", "ended", "differs")),
    )


def _rate_by_reports() -> None:
    """Take the status that Zuora reported as each session's best known status."""
    row = _sessions()
    ended_at = sa.case((row.c.terminal == sa.true(), sa.func.coalesce(row.c.ended_at, row.c.last_observed_at)))
    doubtful = sa.or_(row.c.conflict == sa.true(), row.c.ambiguous == sa.true())
    op.execute(
        row.update().values(
            best_status=row.c.status,
            best_evidence=row.c.source,
            best_certain=sa.case((doubtful, sa.false()), else_=sa.true()),
            best_ended=row.c.terminal,
            best_ended_at=ended_at,
        )
    )


def _conclude_ended_waits(connection: sa.Connection) -> None:
    """Make verdicts of the waits that only one status can have ended, if nothing was reported since."""
    row, key = _sessions(), ("conn_id", "meter_id", "session_id")
    task = ("dag_id", "run_id", "task_id")
    numbers = ("map_index", "try_number")
    wait = sa.table(
        _WAIT,
        *(sa.column(each, sa.String) for each in ("id", *key, *task, "mode", "outcome")),
        *(sa.column(each, sa.Integer) for each in numbers),
        sa.column("condition", sa.JSON),
        sa.column("ended_at", TIME),
    )
    columns = [wait.c[each] for each in ("id", *key, *task, *numbers, "mode", "outcome", "condition", "ended_at")]
    waits = (
        sa.select(*columns, row.c.id.label("row_id"), row.c.run_type)
        .join(row, sa.and_(*(row.c[each] == wait.c[each] for each in key)))
        .where(wait.c.outcome.in_(_ENDED_BY), row.c.terminal == sa.false())
        .where(wait.c.ended_at >= row.c.last_observed_at)
    )
    found: dict[int, list[dict[str, Any]]] = defaultdict(list)
    for each in connection.execute(waits).mappings():
        if (status := _only_end(each["condition"], each["outcome"])) is not None:
            found[each["row_id"]].append(
                {name: each[name] for name in (*key, *task, *numbers, "mode", "run_type")}
                | {"ti_id": each["id"], "wait_id": each["id"], "status": status, "certain": False}
                | {"at": each["ended_at"], "created_at": each["ended_at"]}
            )
    verdicts = [each for of_session in found.values() for each in of_session]
    rated = [_rated(row_id, of_session) for row_id, of_session in found.items()]
    by_id = row.update().where(row.c.id == sa.bindparam("row_id"))
    by_id = by_id.values(best_evidence="poll", best_certain=sa.false(), best_ended=sa.true())
    by_id = by_id.values({name: sa.bindparam(name) for name in ("best_status", "best_ended_at", "best_differs")})
    for start in range(0, len(verdicts), _BATCH):
        connection.execute(_verdicts().insert(), verdicts[start : start + _BATCH])
    for start in range(0, len(rated), _BATCH):
        connection.execute(by_id, rated[start : start + _BATCH])


def _only_end(condition: Any, outcome: str) -> str | None:
    """Return the terminal status that ended a wait; ``None`` if it may have been another one."""
    statuses = condition.get(_ENDED_BY[outcome]) if isinstance(condition, dict) else None
    if isinstance(statuses, list) and len(statuses) == 1 and statuses[0] in _GRAVITY:
        return str(statuses[0])
    return None


def _rated(row_id: int, verdicts: list[dict[str, Any]]) -> dict[str, Any]:
    """Return the columns of a session by its verdicts: the gravest one counts."""
    gravest = min(verdicts, key=lambda each: (_GRAVITY[each["status"]], each["at"]))
    differs = any(each["status"] != gravest["status"] for each in verdicts)
    return {
        "row_id": row_id,
        "best_status": gravest["status"],
        "best_ended_at": gravest["at"],
        "best_differs": differs,
    }


def _verdicts() -> sa.TableClause:
    texts = ("ti_id", "conn_id", "meter_id", "session_id", "wait_id", "run_type", "status")
    return sa.table(
        _VERDICT,
        *(sa.column(each, sa.String) for each in (*texts, "dag_id", "run_id", "task_id", "mode")),
        *(sa.column(each, TIME) for each in ("at", "created_at")),
        *(sa.column(each, sa.Integer) for each in ("map_index", "try_number")),
        sa.column("certain", sa.Boolean),
    )
