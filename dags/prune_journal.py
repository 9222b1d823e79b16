"""Keep the journal of callouts small: each week, delete the sessions that ended three months ago or earlier.

Only what has ended goes, with all that was told of it, and nothing that a wait still needs. Without a task:
``airflow mediation prune --older-than 90``, with ``--dry-run`` to see what would go.
"""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

from airflow.sdk import dag

from airflow_mediation_provider.operators.prune import PruneJournalOperator


@dag(
    schedule="@weekly",
    start_date=datetime(2026, 1, 1, tzinfo=UTC),
    catchup=False,
    # It deletes: somebody has to want it.
    is_paused_upon_creation=True,
    default_args={"retries": 3, "retry_delay": timedelta(minutes=5)},
    tags=["mediation", "example"],
    doc_md=__doc__,
)
def prune_journal() -> None:
    """One connection for each task."""
    PruneJournalOperator(task_id="prune", older_than_days=90)


prune_journal()
