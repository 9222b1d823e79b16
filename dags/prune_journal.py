"""Keep the journal of callouts small: each week, delete the sessions that ended three months ago or earlier.

It deletes only sessions that have ended, with all their reports, and nothing that a wait still needs. On the command
line, ``airflow mediation prune --older-than 90`` does the same; with ``--dry-run`` it only counts.
"""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

from airflow.sdk import dag

from airflow_mediation_provider.operators.prune import PruneJournalOperator


@dag(
    schedule="@weekly",
    start_date=datetime(2026, 1, 1, tzinfo=UTC),
    catchup=False,
    # It deletes data, so it runs only after a user has unpaused it.
    is_paused_upon_creation=True,
    default_args={"retries": 3, "retry_delay": timedelta(minutes=5)},
    tags=["mediation", "example"],
    doc_md=__doc__,
)
def prune_journal() -> None:
    """Prune one connection with each task."""
    PruneJournalOperator(task_id="prune", older_than_days=90)


prune_journal()
