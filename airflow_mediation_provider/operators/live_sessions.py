"""Which sessions of a meter seem to be live, as callouts tell: a stop hits every one of them."""

from __future__ import annotations

from typing import TYPE_CHECKING

from airflow_mediation_provider.protocol.status import RunType
from airflow_mediation_provider.protocol.transition import Source

if TYPE_CHECKING:
    from datetime import datetime

    from airflow_mediation_provider.wait_feed import Caller


def live_sessions(caller: Caller, meter_id: str, *, since: datetime | None = None) -> list[str]:
    """Return the NORMAL sessions of a meter that seem to be live; none where no callouts come, or nobody answers.

    One that is known by the reply to its run call alone does not count: nobody would say that it has ended.

    :param caller: calls the API server
    :param since: leave out those that began before
    """
    from airflow_mediation_provider.protocol.feed import FeedRequest, MeterQuestion

    reply = caller.look(FeedRequest(meters={meter_id: MeterQuestion()}, full=True))
    if reply is None or not reply.callouts:
        return []
    return [
        state.session_id
        for state in reply.sessions
        if not state.terminal
        and state.run_type is RunType.NORMAL
        and state.source is not Source.RUN
        and (since is None or state.begun_at >= since)
    ]
