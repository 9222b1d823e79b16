"""Hold the callout history against the journal: what it lacks, and which of its sessions never seem to end."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from airflow_mediation_provider.journal.queries import silent_sessions, transitions
from airflow_mediation_provider.journal.transaction import read
from airflow_mediation_provider.protocol.reconcile import missing

if TYPE_CHECKING:
    from sqlalchemy.orm import Session

    from airflow_mediation_provider.protocol.entry import Entry
    from airflow_mediation_provider.protocol.lifecycle import SessionState
    from airflow_mediation_provider.protocol.reconcile import ReconcileRequest
    from airflow_mediation_provider.protocol.transition import SessionTransition

# Of the sessions that never end: those of which something came last. More of them tell nobody more.
MOST_OPEN: Final = 200


def compare(request: ReconcileRequest, *, conn_id: str) -> tuple[list[Entry], list[SessionState]]:
    """Return what of a request the journal does not know, and the open sessions that are asked for; writes nothing.

    A callout that comes in between is told once too often where a session goes in circles. That shows as ambiguous, and
    asks for no more than what a lost callout would: nothing is ended by it.

    :param request: with all that the history tells of each of its sessions
    :param conn_id: the connection
    :raises JournalUnavailable: the journal cannot be read
    """
    sessions = sorted({(str(entry.meter_id), str(entry.session_id)) for entry in request.entries})

    def work(session: Session) -> tuple[list[SessionTransition], list[SessionState]]:
        silent = [] if request.open_before is None else silent_sessions(session, conn_id, request.open_before)
        return transitions(session, conn_id, sessions), silent

    known, silent = read(work)
    return missing(request.entries, known), silent[-MOST_OPEN:]
