"""Delete old data from the journal of callouts, in a task."""

from __future__ import annotations

from dataclasses import asdict, replace
from typing import TYPE_CHECKING, Final, Unpack

from airflow.sdk import BaseOperator

from airflow_mediation_provider.protocol.maintenance import (
    PRUNE_PATH,
    Pruned,
    PruneReply,
    PruneRequest,
    check_days,
)
from airflow_mediation_provider.protocol.zuora.errors import TransientError
from airflow_mediation_provider.tasks.arguments import StandsForValue, check_connection

if TYPE_CHECKING:
    from collections.abc import Sequence

    from airflow.sdk import Context

    from airflow_mediation_provider.tasks.arguments import OperatorArguments

__all__ = ["PruneJournalOperator"]

# The API server answers after two seconds, but may have others to serve first.
_CALL_SECONDS: Final = 60.0


class PruneJournalOperator(StandsForValue, BaseOperator):
    """Delete old sessions of a connection from the journal, with all that was stored of them.

    Workers have no database: the API server deletes, in several requests of two seconds each. Sessions without an end
    stay, and so does all data that a running wait can request. ``airflow mediation prune --dry-run`` shows in advance
    what would be deleted. ::

        PruneJournalOperator(task_id="prune", older_than_days=90)

    :param older_than_days: how many days to keep; at least 14, as Zuora sends callouts again for days
    :param mediation_conn_id: connection of type ``mediation``. Templated
    :return: ``{"sessions", "changes", "others", "waits", "needed"}``: what was deleted, and how many old sessions stay
        because running waits need them
    :raises ValueError: when the Dag is parsed: an argument is empty, or keeps too few days
    """

    template_fields: Sequence[str] = ("mediation_conn_id",)
    ui_color = "#e8e8e8"

    def __init__(
        self,
        *,
        older_than_days: float = 90,
        mediation_conn_id: str = "mediation_default",
        **kwargs: Unpack[OperatorArguments],
    ) -> None:
        super().__init__(**kwargs)
        check_connection(mediation_conn_id)
        self.older_than_days = check_days(older_than_days)
        self.mediation_conn_id = mediation_conn_id

    def execute(self, context: Context) -> dict[str, int]:  # noqa: ARG002  # Airflow passes it
        """Send delete requests to the API server until nothing is left to delete."""
        from airflow_mediation_provider.exceptions import fail_permanently
        from airflow_mediation_provider.feed.flow import FeedUnavailableError
        from airflow_mediation_provider.feed.worker import WorkerFeedClient
        from airflow_mediation_provider.hooks.mediation import MediationHook

        caller = WorkerFeedClient(MediationHook(self.mediation_conn_id), seconds=_CALL_SECONDS)
        total, done = Pruned(), False
        try:
            while not done:
                with fail_permanently():
                    body = caller.call(PRUNE_PATH, PruneRequest(self.older_than_days).to_bytes())
                reply = PruneReply.from_bytes(body)
                # What stays is counted each time, and completely only the last time.
                total, done = replace(total + reply.pruned, needed=reply.pruned.needed), reply.done
                self.log.info("Deleted so far: %s.", total)
        except (FeedUnavailableError, ValueError) as error:
            raise TransientError(f"The API server stopped deleting after {total}: {error}") from error
        finally:
            caller.close()
        return asdict(total)
