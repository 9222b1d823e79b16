"""Schedules for DAGs that start from sessions, and what the tasks of such a run ask: which session it was.

A DAG file imports this, so it imports nothing but the Task SDK.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, cast
from urllib.parse import urlsplit

from airflow.sdk import Asset, PartitionedAssetTimetable

from airflow_mediation_provider.operators.arguments import check_text, is_template, seconds
from airflow_mediation_provider.protocol.asset_uri import (
    SCHEME,
    asset_uri,
    is_poll_uri,
    known_status,
    poll_uri,
    read_asset_uri,
)

if TYPE_CHECKING:
    from collections.abc import Mapping
    from datetime import timedelta
    from urllib.parse import SplitResult

    from airflow.sdk import Context
    from airflow.timetables.base import Timetable

    from airflow_mediation_provider.protocol.status import SessionStatus

_SHORTEST_POLL = 5.0


class MeterSessionTimetable(PartitionedAssetTimetable):
    """One DAG run for each session that reaches a status, with the session's id as the run's partition key.

    Made by :func:`on_meter_session`. ``a | b`` starts a run for each session of either.
    """

    def __or__(self, other: object) -> MeterSessionTimetable:
        """Return the schedule that starts a run for each session of either."""
        if not isinstance(other, MeterSessionTimetable):
            return NotImplemented
        return MeterSessionTimetable(assets=self.asset_condition | other.asset_condition)

    @classmethod
    def deserialize(cls, data: dict[str, Any]) -> Timetable:
        """Return what Airflow's scheduler reads of it: Airflow's own timetable, for this one adds ``|`` alone."""
        from airflow.timetables.simple import PartitionedAssetTimetable as CoreTimetable

        return cast("Timetable", CoreTimetable.deserialize(data))


def on_meter_session(
    meter_id: str | int,
    status: SessionStatus | str,
    *,
    mediation_conn_id: str = "mediation_default",
    poll_interval: timedelta | float | None = None,
) -> MeterSessionTimetable:
    """Return a ``schedule`` that starts one DAG run for each session of a meter that reaches a status.

    Sessions are never merged into one run, however many end at once, and none is left behind. The run's partition key
    is the session's id; :func:`triggering_session` gives its tasks the session. A session that is re-opened and ends
    again starts another run with the same key.

    Runs start from callouts: Zuora must send the *Meter Session Status Change* event to Airflow. Where Zuora cannot
    reach Airflow, ``poll_interval`` has the triggerer look at the meter instead, once for all DAGs that ask for it. A
    poll names no session: it is known only if exactly one of the meter was live, and never certain. What begins and
    ends between two looks is not seen at all, nor a second session that ends as the first did before the next look.

    While a DAG is paused, Airflow starts nothing for it: ``airflow mediation replay`` does that afterwards.

    :param meter_id: the meter, as in the address of its page in Zuora
    :param status: the status, for example COMPLETED, FAILED or CANCELED; of DEBUG runs TESTING_PASSED, TESTING_FAILED,
        and whatever else they report starts nothing
    :param mediation_conn_id: Airflow connection of type ``mediation``; callouts go to the address with its name
    :param poll_interval: seconds between two looks at the meter, for an Airflow that gets no callouts; 5 at least
    :raises ValueError: an argument is wrong; names it and what is allowed

    https://docs.zuora.com/en/zuora-platform/extensibility/mediation/events/notifications-in-mediation
    """
    meter = str(meter_id) if type(meter_id) is int else cast("str", meter_id)
    for name, value in (("meter_id", meter), ("mediation_conn_id", mediation_conn_id)):
        check_text(name, value)
        if is_template(value):
            raise ValueError(f"{name} must be written out: Airflow reads a schedule before it renders any template")
    schedule = MeterSessionTimetable(assets=_asset(asset_uri(mediation_conn_id, meter, known_status(status))))
    if poll_interval is None:
        return schedule
    interval = seconds("poll_interval", poll_interval, least=_SHORTEST_POLL)
    return schedule | MeterSessionTimetable(assets=_polls(mediation_conn_id, meter, interval))


def triggering_session(context: Context | None = None) -> dict[str, Any]:
    """Return the session that started this DAG run: the JSON that operators and sensors of this provider return.

    A task that returns it hands it to ``MeterSummaryOperator(session=...)`` and the like.

    :param context: the running task's context; the current task's by default
    :return: the session's change of status, with ``evidence`` and ``certain``; ``session_id`` is ``None`` where polls
        drive the schedule and could not tell the session. Where several events went into the run (the same session on
        two assets), the newest.
    :raises MediationMisconfigured: no session started this run, for example because a user did
    """
    if context is None:
        from airflow.sdk import get_current_context

        context = get_current_context()
    found = cast("Mapping[Any, Any]", context.get("triggering_asset_events") or {})
    events = [event for asset in found if urlsplit(asset.uri).scheme == SCHEME for event in found[asset]]
    if not events:
        from airflow_mediation_provider.exceptions import MediationMisconfigured

        dag_run: Any = context["dag_run"]
        raise MediationMisconfigured(
            f"No session started the run {dag_run.run_id} of {dag_run.dag_id}. Only runs that a schedule of "
            f"on_meter_session() makes have one; to repeat one of those, clear its tasks."
        )
    return dict(max(events, key=lambda event: event.timestamp).extra)


def sanitize_uri(uri: SplitResult) -> SplitResult:
    """Check and normalize the address of an asset; Airflow calls it for every ``Asset("mediation://...")``.

    :raises ValueError: it is not of the form; one sentence says which part is wrong
    """
    if is_poll_uri(uri.geturl()):
        return uri
    return urlsplit(asset_uri(*read_asset_uri(uri.geturl())))


def create_asset(
    *,
    meter_id: str,
    status: str,
    mediation_conn_id: str = "mediation_default",
    extra: dict[str, Any] | None = None,
) -> Asset:
    """Return the asset that stands for sessions of a meter that reached a status, as Airflow's lineage asks for it.

    :raises ValueError: the status is unknown
    """
    return Asset(asset_uri(mediation_conn_id, meter_id, known_status(status)), extra=extra or {})


def _asset(uri: str) -> Asset:
    return Asset(uri)


def _polls(mediation_conn_id: str, meter_id: str, interval: float) -> Asset:
    """Return an asset that never changes, and has a meter watched as long as a DAG names it.

    Not the status's own: where one DAG asks for polls and another one, in another file, does not, Airflow would end the
    watch whenever it reads the other file.
    """
    from airflow.sdk import AssetWatcher

    from airflow_mediation_provider.triggers.meter_watch import MeterWatchTrigger

    trigger = MeterWatchTrigger(mediation_conn_id=mediation_conn_id, meter_id=meter_id, poll_interval=interval)
    return Asset(
        poll_uri(mediation_conn_id, meter_id, interval),
        watchers=[AssetWatcher(name="meter_watch", trigger=trigger)],
    )
