"""Delete what is old in the journal of callouts, from a task."""

from __future__ import annotations

from dataclasses import asdict, replace
from typing import TYPE_CHECKING, Any, Final

from airflow.sdk import BaseOperator

from airflow_mediation_provider.operators.arguments import check_text
from airflow_mediation_provider.protocol.errors import MisconfigurationError, TransientError
from airflow_mediation_provider.protocol.pruning import (
    PRUNE_PATH,
    Pruned,
    check_days,
    reply_from_bytes,
    request_to_bytes,
)

if TYPE_CHECKING:
    from collections.abc import Sequence

    from airflow.sdk import Context

# The API server answers after two seconds, but may have others to serve first.
_CALL_SECONDS: Final = 60.0


class PruneJournalOperator(BaseOperator):
    """Delete old sessions of a connection from the journal, with all that was told of them.

    Workers have no database: the API server deletes, as often as the task asks, two seconds each time. Sessions that
    did not end stay, and so does whatever a wait that goes on can ask for. ``airflow mediation prune --dry-run`` says
    beforehand what would go.

    :param older_than_days: how many days to keep; at least 14, as Zuora sends callouts again for days
    :param mediation_conn_id: connection of type ``mediation``. Templated
    :return: ``{"sessions", "changes", "others", "waits", "needed"}``: what was deleted, and how many old sessions stay
        for waits that go on
    :raises ValueError: when the DAG is parsed: an argument is empty, or keeps too few days
    """

    template_fields: Sequence[str] = ("mediation_conn_id",)
    ui_color = "#e8e8e8"

    def __init__(
        self, *, older_than_days: float = 90, mediation_conn_id: str = "mediation_default", **kwargs: Any
    ) -> None:
        super().__init__(**kwargs)
        check_text("mediation_conn_id", mediation_conn_id)
        self.older_than_days = check_days(older_than_days)
        self.mediation_conn_id = mediation_conn_id

    def execute(self, context: Context) -> dict[str, int]:  # noqa: ARG002  # Airflow passes it
        """Have the API server delete until nothing is left to delete."""
        from airflow_mediation_provider.exceptions import MediationMisconfigured
        from airflow_mediation_provider.hooks.mediation import MediationHook
        from airflow_mediation_provider.watch.feed_caller import FeedCaller, FeedUnavailableError

        caller = FeedCaller(MediationHook(self.mediation_conn_id), seconds=_CALL_SECONDS)
        total, done = Pruned(), False
        try:
            while not done:
                pruned, done = reply_from_bytes(caller.call(PRUNE_PATH, request_to_bytes(self.older_than_days)))
                # What stays is looked at each time, and at the last time all of it.
                total = replace(total + pruned, needed=pruned.needed)
                self.log.info("Deleted so far: %s.", total)
        except MisconfigurationError as error:
            raise MediationMisconfigured(str(error)) from error
        except (FeedUnavailableError, ValueError) as error:
            raise TransientError(f"The API server could not delete on, after {total}: {error}") from error
        finally:
            caller.close()
        return asdict(total)
