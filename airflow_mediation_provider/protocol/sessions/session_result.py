"""SessionResult: a session as tasks pass it on, with its evidence; the same in XCom, asset events and trigger events.

Source of the fields: the *Meter Session Status Change* event,
https://docs.zuora.com/en/zuora-platform/extensibility/mediation/events/notifications-in-mediation
"""

from __future__ import annotations

from typing import TYPE_CHECKING, TypedDict, cast

if TYPE_CHECKING:
    from airflow_mediation_provider.protocol.transition import SessionTransition


class SessionResult(TypedDict):
    """One session in one status, as plain JSON: what operators and sensors return and ``triggering_session()`` gives.

    Every key is always there. All times are ISO 8601 in UTC.
    """

    meter_id: str
    """The meter, as text."""
    status: str
    """The status by Zuora's name, for example ``COMPLETED``."""
    observed_at: str
    """When the status was received: the callout arrived, the poll was sent, the run call was answered."""
    source: str
    """How the fields were received: ``callout``, ``history``, ``poll`` or ``run`` (the reply to the run call)."""
    session_id: str | None
    """For example ``R-00005468``. ``None`` where polls are the only source and the id is not known: a
    sensor without a session id and without callouts, a schedule with ``poll_interval``, a lost reply to a run call."""
    meter_name: str | None
    """``None`` unless a callout or the callout history names it: polls and run replies do not."""
    run_type: str
    """``NORMAL`` or ``DEBUG``; any other run type as Zuora reported it, in upper case."""
    previous_status: str | None
    """The status right before. ``None`` unless the callout or the callout history that reports the status names it."""
    started_at: str | None
    """Start by Zuora's clock. ``None`` where no callout, history or run reply has it, or it cannot be parsed."""
    ended_at: str | None
    """End by Zuora's clock. ``None`` before the end, in polls and run replies, and where it cannot be parsed."""
    notification_id: str | None
    """Zuora's id of the notification. ``None`` unless a callout or the callout history reports the status."""
    evidence: str
    """What the status rests on: ``callout``, ``history``, ``poll`` or ``run``."""
    version: str | None
    """The meter's version that the task asked for. ``None`` in an asset event, where no task asked for one."""
    mediation_conn_id: str | None
    """The Airflow connection over which it was received. ``None`` only for a wait that an earlier version of this
    package began."""
    certain: bool
    """Whether the evidence proves the status. ``False`` for a poll that another session may explain, for a session
    whose run reply was lost, and where Zuora reported two different ends."""


def session_result(
    transition: SessionTransition,
    *,
    evidence: str,
    certain: bool,
    version: str | None = None,
    mediation_conn_id: str | None = None,
) -> SessionResult:
    """Return a session as tasks pass it on; the only place where such an object is made.

    :param transition: the session and its status
    :param evidence: the ``Source`` that the status rests on
    :param certain: whether the evidence proves the status
    :param version: the meter's version, where it is known
    :param mediation_conn_id: the Airflow connection; a wait has none, so its caller adds it
    """
    about = {"version": version, "mediation_conn_id": mediation_conn_id}
    return cast("SessionResult", {**transition.to_dict(), **about, "evidence": str(evidence), "certain": certain})
