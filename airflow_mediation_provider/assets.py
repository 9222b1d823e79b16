"""Schedules for Dags that sessions trigger, and the session of a triggered run for its tasks.

A Dag file imports this module, so it imports nothing but the Task SDK.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, cast
from urllib.parse import urlsplit

from airflow.sdk import Asset, AssetAny, PartitionedAssetTimetable

from airflow_mediation_provider.protocol.ids import connection_id_of, id_of
from airflow_mediation_provider.protocol.sessions.asset_uri import (
    ANY_METER,
    SCHEME,
    asset_uri,
    history_uri,
    is_history_uri,
    is_poll_uri,
    poll_uri,
    read_asset_uri,
    run_types_of_assets,
    status_of_schedule,
)
from airflow_mediation_provider.protocol.sessions.session_result import SessionResult
from airflow_mediation_provider.protocol.status import warn_of_unknown
from airflow_mediation_provider.tasks.arguments import is_template, seconds, status_names

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Mapping, Sequence
    from datetime import timedelta
    from urllib.parse import SplitResult

    from airflow.sdk import Context
    from airflow.timetables.base import Timetable

    from airflow_mediation_provider.tasks.arguments import OneRunType, Statuses

__all__ = [
    "ANY_METER",
    "MeterSessionTimetable",
    "SessionResult",
    "create_asset",
    "on_meter_session",
    "sanitize_uri",
    "triggering_session",
    "triggering_sessions",
]

_SHORTEST_POLL = 5.0


class MeterSessionTimetable(PartitionedAssetTimetable):
    """One Dag run for each session that reaches a status, with the session's id as the run's partition key.

    Made by :func:`on_meter_session`. ``a | b`` starts a run for each session of either.
    """

    def __or__(self, other: object) -> MeterSessionTimetable:
        """Return the schedule that starts a run for each session of either.

        :raises TypeError: the other one is no such schedule
        """
        if not isinstance(other, MeterSessionTimetable):
            raise TypeError(
                "A schedule of on_meter_session() combines by | only with another one, not with "
                f"{type(other).__name__}: the events of other assets contain no session, so the run would never start."
                " Write a Dag of its own for them."
            )
        return _StoredAsAirflows(assets=self.asset_condition | other.asset_condition)

    __ror__ = __or__

    def __and__(self, other: object) -> MeterSessionTimetable:
        """Refuse to combine: most sessions would meet one half only, and their runs would stay pending.

        :raises TypeError: always
        """
        raise TypeError(
            "Schedules of on_meter_session() do not combine by &: a session that meets one condition and never the "
            "other would stay pending, and delay all such Dags. Use | for a run for each session of either; for work "
            "after several meters, wait for the others in the run with a MeterSessionSensor."
        )

    __rand__ = __and__

    @classmethod
    def deserialize(cls, data: dict[str, Any]) -> Timetable:
        """Return Airflow's own timetable for the scheduler: this class adds only operators to it."""
        from airflow.timetables.simple import PartitionedAssetTimetable as CoreTimetable

        return cast("Timetable", CoreTimetable.deserialize(data))


class _StoredAsAirflows(MeterSessionTimetable):
    """What :func:`on_meter_session` returns: its stored form is Airflow's own timetable.

    Airflow stores a timetable by the path of its class. This one has the path of Airflow's own timetable, whose data it
    has, so that Airflow reads the Dag also in a process in which this package is missing.
    """


_StoredAsAirflows.__module__ = "airflow.timetables.simple"
_StoredAsAirflows.__name__ = _StoredAsAirflows.__qualname__ = PartitionedAssetTimetable.__name__


def on_meter_session(
    meter_id: str | int | Collection[str | int],
    statuses: Statuses,
    *,
    previous_statuses: Statuses | None = None,
    run_type: OneRunType | Collection[OneRunType] | None = None,
    mediation_conn_id: str = "mediation_default",
    poll_interval: timedelta | float | None = None,
    callout_history: timedelta | float | None = None,
) -> MeterSessionTimetable:
    """Return a ``schedule`` that starts one Dag run for each session of a meter that reaches a status.

    .. code-block:: python

        on_meter_session("1001", "COMPLETED")
        on_meter_session(ANY_METER, ["FAILED", "TESTING_FAILED"])
        on_meter_session(["1001", "1002"], "COMPLETED", previous_statuses="RUNNING")
        on_meter_session(ANY_METER, "CANCELED", run_type="DEBUG") | on_meter_session("1001", "FAILED")
        on_meter_session("1001", ["FAILED", "TESTING_FAILED"], run_type=["NORMAL", "DEBUG"])

    Each session has a run of its own, even if many end at once, and none is skipped. The run's partition key is
    the session's id; :func:`triggering_session` returns the session to the run's tasks. A session that is re-opened and
    ends again starts another run with the same key, unless the scheduler has not made the first one yet: that run has
    both then (:func:`triggering_sessions`).

    Runs start from callouts: Zuora must send the *Meter Session Status Change* event to Airflow. Where Zuora cannot
    reach Airflow, set ``callout_history``: the triggerer then reads Zuora's history of the callouts that went nowhere,
    once for all Dags of the connection. It has each change with its session, whatever the meter. It is read as long as
    one such Dag is not paused, by a triggerer without ``--queues``; what happened meanwhile is read later, up to 13
    days back. Beside callouts it repairs what they lost, about an hour later.

    Where there are no callouts at all, set ``poll_interval``: the triggerer polls the meter, once for all Dags that ask
    for it. A poll returns no session id: the session is known only if exactly one session of the meter was live, and is
    never certain. Polls miss a session that starts and ends between two polls, and a second session that reaches the
    same final status before the next poll.

    While a Dag is paused, Airflow starts no runs for it; afterwards ``airflow mediation replay`` starts them. What is
    scheduled on an outlet of such a run needs a partitioned schedule too: ``docs/schedules.md`` has an example.

    :param meter_id: the meter, as in the address of its page in Zuora; several; or ``ANY_METER``, which includes those
        that are made later
    :param statuses: the status, or several: for example COMPLETED, FAILED or CANCELED; for tests TESTING_PASSED or
        TESTING_FAILED
    :param previous_statuses: only sessions that were in this status, or one of these, right before; default: all. Only
        callouts and the callout history report it
    :param run_type: only NORMAL or only DEBUG sessions, or a list of both; default: DEBUG for the statuses that exist
        for tests only, and NORMAL for all others
    :param mediation_conn_id: Airflow connection of type ``mediation``; callouts go to the address with its name
    :param poll_interval: seconds between two polls of the meter, for an Airflow that receives no callouts; at least 5
    :param callout_history: seconds between two reads of the connection's callout history, for an Airflow that Zuora
        cannot reach; at least 5. Each read takes one call, and one more for each 40 further callouts
    :raises ValueError: an argument is wrong; names it and what is allowed

    https://docs.zuora.com/en/zuora-platform/extensibility/mediation/events/notifications-in-mediation
    """
    conn_id = _written_out("mediation_conn_id", mediation_conn_id, connection_id_of)
    meters = _meters(meter_id)
    reached = _statuses("statuses", statuses)
    before: Sequence[str | None] = [None]
    if previous_statuses is not None:
        before = _statuses("previous_statuses", previous_statuses)
    assets = [
        Asset(asset_uri(conn_id, meter, status, previous, kind))
        for meter in meters
        for status in reached
        for previous in before
        for kind in ([None] if run_type is None else run_types_of_assets(status, run_type))
    ]
    if poll_interval is not None:
        unknown = {"meter_id=ANY_METER": meters == [ANY_METER], "previous_statuses": previous_statuses is not None}
        if refused := [name for name, given in unknown.items() if given]:
            raise ValueError(
                f"poll_interval does not go with {' and '.join(refused)}: a poll asks for the status of one meter, and "
                "shows no previous status. Leave poll_interval out: callouts are needed here, or callout_history where "
                "Zuora cannot reach Airflow."
            )
        interval = seconds("poll_interval", poll_interval, least=_SHORTEST_POLL)
        assets += [_polls(conn_id, meter, interval) for meter in meters]
    if callout_history is not None:
        if poll_interval is not None:
            raise ValueError(
                "poll_interval does not go with callout_history: a session that both see could start two runs. Leave "
                "poll_interval out: the history has each change, and its session."
            )
        assets.append(_history(conn_id, seconds("callout_history", callout_history, least=_SHORTEST_POLL)))
    return _StoredAsAirflows(assets=assets[0] if len(assets) == 1 else AssetAny(*assets))


def _written_out(name: str, value: object, check: Callable[[str, object], str]) -> str:
    if is_template(value):
        raise ValueError(f"{name} must be written out: Airflow reads a schedule before it renders any template")
    return check(name, value)


def _meters(value: object) -> list[str]:
    """Return the ids of the meters, once each.

    :raises ValueError: one is invalid, there is none, or ``ANY_METER`` is not alone
    """
    given = sorted(value, key=str) if isinstance(value, set | frozenset) else value
    items = given if isinstance(given, list | tuple) else [given]
    meters = list(dict.fromkeys(each if each == ANY_METER else _written_out("meter_id", each, id_of) for each in items))
    if not meters:
        raise ValueError("meter_id must name at least one meter, or be ANY_METER")
    if ANY_METER in meters and len(meters) > 1:
        raise ValueError("meter_id: ANY_METER includes each meter of the connection: give it alone")
    return meters


def _statuses(name: str, value: object) -> list[str]:
    """Return statuses by Zuora's names, once each; warn of one that Zuora does not document.

    :raises ValueError: one is no status that sessions reach, or there is none
    """
    names = status_names(name, value)
    if not names:
        raise ValueError(f"{name} must name at least one status, for example COMPLETED")
    warn_of_unknown(name, names, stacklevel=4)
    return list(dict.fromkeys(names))


def triggering_session(context: Context | None = None) -> SessionResult:
    """Return the session that started this Dag run: the JSON that operators and sensors of this provider return.

    A task that returns it passes it on to ``MeterSummaryOperator(session=...)`` and the like.

    :param context: the running task's context; the current task's by default
    :return: the session; its ``session_id`` is ``None`` where polls drive the schedule and the session is not known.
        If the run has several (:func:`triggering_sessions`), the newest.
    :raises MediationMisconfigured: no session started this run, for example because a user started it
    """
    return triggering_sessions(context)[-1]


def triggering_sessions(context: Context | None = None) -> list[SessionResult]:
    """Return all sessions that started this Dag run, the oldest first: as a rule one session in one status.

    There are more if the session reached another status of the schedule, or the same one again, before Airflow's
    scheduler made the run; or if the Dag is scheduled on several connections whose sessions have the same id.

    :param context: the running task's context; the current task's by default
    :raises MediationMisconfigured: no session started this run, for example because a user started it
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
    sessions: list[SessionResult] = []
    for event in sorted(events, key=lambda event: event.timestamp):
        session = cast("SessionResult", dict(event.extra))
        # A session that fits two assets of the schedule has an event of each.
        if session not in sessions:
            sessions.append(session)
    return sessions


def sanitize_uri(uri: SplitResult) -> SplitResult:
    """Check and normalize the URI of an asset; Airflow calls it for every ``Asset("mediation://...")``.

    :raises ValueError: the URI has another form; one sentence names the wrong part
    """
    if is_poll_uri(uri.geturl()) or is_history_uri(uri.geturl()):
        return uri
    asset = read_asset_uri(uri.geturl())
    status = status_of_schedule("status", asset.status)
    previous = asset.previous_status and status_of_schedule("previous_status", asset.previous_status)
    return urlsplit(asset_uri(asset.conn_id, asset.meter_id, status, previous, asset.run_type))


def create_asset(
    *,
    meter_id: str | int,
    status: str,
    mediation_conn_id: str = "mediation_default",
    extra: dict[str, Any] | None = None,
) -> Asset:
    """Return the asset that stands for sessions of a meter that reached a status, as Airflow's lineage asks for it.

    :raises ValueError: an id is invalid, or the status is unknown
    """
    meter, conn_id = id_of("meter_id", meter_id), connection_id_of("mediation_conn_id", mediation_conn_id)
    return Asset(asset_uri(conn_id, meter, status_of_schedule("status", status)), extra=extra or {})


def _polls(mediation_conn_id: str, meter_id: str, interval: float) -> Asset:
    """Return an asset without events whose watcher polls a meter as long as a Dag names the asset.

    The watcher is not on the status's own asset: where one Dag asks for polls and another one, in another file, does
    not, Airflow would end the watcher whenever it parses the other file.
    """
    from airflow.sdk import AssetWatcher

    from airflow_mediation_provider.triggers.meter_watch import MeterWatchTrigger

    trigger = MeterWatchTrigger(mediation_conn_id=mediation_conn_id, meter_id=meter_id, poll_interval=interval)
    return Asset(
        poll_uri(mediation_conn_id, meter_id, interval),
        watchers=[AssetWatcher(name="meter_watch", trigger=trigger)],
    )


def _history(mediation_conn_id: str, interval: float) -> Asset:
    """Return an asset without events whose watcher reads the callout history as long as a Dag names the asset."""
    from airflow.sdk import AssetWatcher

    from airflow_mediation_provider.triggers.meter_watch import CalloutHistoryTrigger

    trigger = CalloutHistoryTrigger(mediation_conn_id=mediation_conn_id, read_interval=interval)
    return Asset(
        history_uri(mediation_conn_id, interval), watchers=[AssetWatcher(name="history_watch", trigger=trigger)]
    )
