"""MeterSessionSensor: wait until a meter's session has a status, on a worker, rescheduled, or in the triggerer."""

from __future__ import annotations

import re
from collections.abc import Mapping
from datetime import datetime, timedelta
from typing import TYPE_CHECKING, Any, Final, Literal, Unpack

from airflow.sdk import BaseSensorOperator, conf
from airflow.sdk.exceptions import AirflowSkipException

from airflow_mediation_provider.links import SESSION_LINKS, push_session_links
from airflow_mediation_provider.protocol.status import run_types_of, stored_run_type
from airflow_mediation_provider.protocol.waits.condition import (
    OtherPrevious,
    SessionCondition,
    refuse_tests,
    successes,
    validate_statuses,
)
from airflow_mediation_provider.protocol.waits.wait import WaitEnd, WaitResult
from airflow_mediation_provider.tasks.arguments import (
    SessionArguments,
    check_bounds,
    check_flags,
    has_template,
    instant,
    is_template,
    seconds,
    status_names,
)
from airflow_mediation_provider.tasks.build import has_hooks, make_wait
from airflow_mediation_provider.tasks.state import utcnow
from airflow_mediation_provider.version_compat import AIRFLOW_V_3_3_PLUS
from airflow_mediation_provider.worker.waiting import BACKSTOP, SessionWaitMixin

if TYPE_CHECKING:
    from collections.abc import Collection, Sequence

    from airflow.sdk import Context
    from airflow.sdk.definitions.mappedoperator import OperatorPartial

    from airflow_mediation_provider.protocol.sessions.session_result import SessionResult
    from airflow_mediation_provider.protocol.status import RunType
    from airflow_mediation_provider.protocol.waits.wait import SessionWait
    from airflow_mediation_provider.tasks.arguments import Id, Instant, SensorArguments, Session

__all__ = ["MeterSessionSensor"]

# Neither `ds` nor `data_interval_start`: they are undefined in a run without a logical date.
_SINCE_TEMPLATE: Final = "{{ dag_run.data_interval_start or dag_run.run_after }}"
# What a template may not use in the triggerer: it hangs there permanently (XComs of other tasks, earlier runs), is
# empty there (events), or does not exist there (most of the task instance).
_NOT_IN_TRIGGERER: Final = re.compile(
    r"xcom|prev_|triggering_asset_events|inlet_events|outlet_events|state_store|task_reschedule_count"
    r"|\b(?:ti|task_instance)\.(?!(?:dag_id|task_id|run_id|try_number|map_index)\b)\w+"
)


class MeterSessionSensor(SessionArguments, SessionWaitMixin, BaseSensorOperator):
    """Wait for a session of a meter to reach a status; the session is the XCom.

    With ``session`` or ``session_id`` the sensor waits for that session. Without, it waits for the first session that
    starts at or after ``since`` and before ``before``, and only for that one, even if it ended before the sensor
    started. That needs callouts, which contain their session id. A poll contains none: without callouts only a *change*
    of the meter's status shows a session, and a session that ended before the sensor's first poll is not found.

    Without ``before``, a run in whose interval no session starts takes a later session, and so does the run of that
    later interval. Give each run its own window, as long as the schedule's period::

        MeterSessionSensor(task_id="wait", meter_id="1012", before=timedelta(hours=1), deferrable=True)

    With callouts, such a sensor ends as at its deadline once it is certain that no session started in its window: 65
    minutes after the window at the earliest, because Zuora may repeat a callout for that long. Without callouts it ends
    as soon as no poll can show the session any more; a sensor that starts later than that fails at once.

    Where the connection takes callouts, they decide, at once in the triggerer and at the next poke on a worker, and the
    meter is polled only every ``[mediation] cross_check_interval`` seconds, in case one is lost.

    ===================================  ==========================================  =======================
    what happened                        the task                                    with ``soft_fail``
    ===================================  ==========================================  =======================
    a status of ``statuses``             succeeds                                    the same
    a status of ``fail_on``              fails, no retry: the session has ended      is skipped
    ``timeout`` passed                   fails, no retry                             is skipped
    no session started in the window     fails, no retry                             is skipped
    no good answer for a long time       fails, is retried, and then waits on        the same
    wrong connection, meter, permission  fails, no retry                             the same: never hidden
    trigger, triggerer or worker died    polls and waits on                          the same
    ===================================  ==========================================  =======================

    :param session: the session as an object, or as its JSON: ``run.output`` of a ``RunMeterOperator``, or the result of
        ``triggering_session()``. It contains its meter, version, run type and connection: if one of them is given as
        well and differs, the task fails at once. Templated
    :param meter_id: the meter, unless ``session`` contains it; its id is in the URL of its page in Zuora. Templated
    :param version: the meter's version; the session's, else ``0.0.1``, the only one that Zuora documents. Templated
    :param session_id: the session by its id alone, for example ``R-00005468``; if Zuora reported it for another meter,
        the task fails at once. Templated
    :param run_type: ``NORMAL``, ``DEBUG``, or a list of both for a session of either; the session's, else ``NORMAL``.
        Without callouts only polls show whether it is a test: see ``docs/schedules.md``. Templated
    :param statuses: status or statuses to wait for; COMPLETED (DEBUG: TESTING_PASSED) unless given. Templated
    :param previous_statuses: status or statuses, one of which must have come right before; that needs callouts or the
        callout history, and without them the task fails. A status that the session only passes through can be missed
        between two pokes. Templated
    :param on_other_previous: what happens if the session reaches a status of ``statuses`` from another one than those
        in ``previous_statuses``: ``wait`` waits on, until ``timeout`` if the session is over; ``fail`` fails without a
        retry; ``skip`` skips the task
    :param fail_on: statuses that fail the task; all other terminal ones unless given. Templated
    :param since: without a session id: the earliest start of the session, a time with a zone; the start of the data
        interval unless given, else the run's ``run_after``. Templated
    :param before: without a session id: the latest start (exclusive): a time with a zone, or a timedelta after
        ``since``; no limit unless given. Schedules given as cron texts, presets and timedeltas have empty data
        intervals, so the end of the interval is no latest start. Templated
    :param mediation_conn_id: connection of type ``mediation``; the session's, else ``mediation_default``. Templated
    :param poke_interval: seconds between two polls of the status, 60 by default. Triggers share their polls, and poll
        up to twice as slowly while nothing changes for long; where callouts are received, a worker reads them this
        often
    :param timeout: seconds from the first start of a try, across reschedules and deferrals; Airflow's default is seven
        days
    :param mode: ``poke`` or ``reschedule`` (Airflow 3.3); not used when deferrable. Two reschedules are at least ten
        seconds apart: a busy scheduler takes a task that returns sooner for a failed one
    :param deferrable: wait in the triggerer; ``[operators] default_deferrable`` unless given
    :param start_from_trigger: start in the triggerer as well, without a worker; the task also ends there if it succeeds
        and has no callbacks, outlets or the like, which Airflow handles on workers alone. Refused if an argument needs
        an XCom, and for mapped tasks
    :param max_unreachable: seconds without a good answer from Zuora after which the task fails, to be retried
    :param require_certain: fail if only a poll shows how the session ended, and another run may have masked it
    :param exclusive: your promise that nothing else starts this meter during the wait: a poll can then be certain
    :param settle: seconds for which a status that Zuora reports may be out of date: no poll ends the wait sooner
    :param soft_fail: skip instead of failing, as in the table above
    :raises ValueError: when the Dag is parsed: an argument is unknown, empty or impossible

    ``never_fail``, ``silent_fail``, ``exponential_backoff`` and ``max_wait`` are refused: the first two would hide a
    wrong set-up, and the last two do not fit the sensor's own intervals.

    https://developer.zuora.com/v1-api-reference/api/meters/getrunstatusofspecificmeterversion
    """

    template_fields: Sequence[str] = (
        "session",
        "meter_id",
        "version",
        "session_id",
        "run_type",
        "statuses",
        "previous_statuses",
        "fail_on",
        "since",
        "before",
        "mediation_conn_id",
    )
    operator_extra_links = SESSION_LINKS
    ui_color = "#d7efe4"

    def __init__(
        self,
        *,
        session: Session | None = None,
        meter_id: Id | None = None,
        version: str | None = None,
        session_id: Id | None = None,
        run_type: RunType | str | Collection[RunType | str] | None = None,
        statuses: Sequence[str] | str | None = None,
        previous_statuses: Sequence[str] | str | None = None,
        on_other_previous: Literal["wait", "fail", "skip"] = "wait",
        fail_on: Sequence[str] | str | None = None,
        since: Instant | None = None,
        before: Instant | timedelta | None = None,
        mediation_conn_id: str | None = None,
        deferrable: bool = conf.getboolean("operators", "default_deferrable", fallback=False),
        start_from_trigger: bool = False,
        max_unreachable: timedelta | float = timedelta(hours=1),
        require_certain: bool = False,
        exclusive: bool = False,
        settle: timedelta | float = 30,
        **kwargs: Unpack[SensorArguments],
    ) -> None:
        super().__init__(**kwargs)
        self.take_given(
            session=session,
            session_id=session_id,
            meter_id=meter_id,
            version=version,
            run_type=run_type,
            mediation_conn_id=mediation_conn_id,
        )
        self.statuses = statuses
        self.previous_statuses = previous_statuses
        self.on_other_previous: str = on_other_previous
        self.fail_on = fail_on
        self.since = since
        self.before: Any = before
        self.deferrable = deferrable or start_from_trigger
        self.max_unreachable = seconds("max_unreachable", max_unreachable)
        self.require_certain = require_certain
        self.exclusive = exclusive
        self.settle = seconds("settle", settle)
        check_flags(
            deferrable=deferrable,
            start_from_trigger=start_from_trigger,
            require_certain=require_certain,
            exclusive=exclusive,
        )
        self._check()
        # A mapped task's arguments are known only when it is expanded, on a worker: there it starts on the worker.
        if start_from_trigger and not getattr(self, "_BaseOperator__from_mapped", False):
            self._start_from_trigger()

    @classmethod
    def partial(cls, **kwargs: Any) -> OperatorPartial:
        """Map the sensor; ``start_from_trigger`` is refused: Airflow would start all tasks with the same arguments.

        :raises ValueError: ``start_from_trigger`` is set
        """
        if kwargs.get("start_from_trigger"):
            raise ValueError("start_from_trigger cannot be used with mapping: use deferrable=True")
        return super().partial(**kwargs)

    def _check(self) -> None:
        """Refuse arguments that can never work; templates and outputs of tasks are checked when they are rendered."""
        check_bounds(self.since, self.before, given=self.given)
        self._check_statuses()
        if self.poke_interval < 0.1:
            raise ValueError("poke_interval must be at least 0.1 seconds")
        for name in ("never_fail", "silent_fail", "exponential_backoff", "max_wait"):
            if getattr(self, name):
                raise ValueError(f"{name} is not supported: {_REFUSED[name]}")
        if self.mode == "reschedule" and not self.deferrable and not AIRFLOW_V_3_3_PLUS:
            raise ValueError(
                "mode='reschedule' needs Airflow 3.3, which keeps the state of a wait between two pokes: "
                "use deferrable=True or mode='poke'"
            )

    def _check_statuses(self) -> None:
        """Refuse statuses that no session of the possible run types has."""
        OtherPrevious.of(self.on_other_previous, self.previous_statuses)
        statuses: dict[str, Any] = {
            "statuses": self.statuses,
            "previous_statuses": self.previous_statuses,
            "fail_on": self.fail_on,
        }
        validate_statuses(**statuses)
        refused, possible = [], self.possible_run_types
        for run_types in possible:
            try:
                if not has_template(self.statuses):
                    refuse_tests("statuses", run_types, status_names("statuses", self.statuses) or ())
                if not any(map(has_template, statuses.values())):
                    named = {**statuses, "previous_statuses": self.previous_statuses or ()}
                    SessionCondition(meter_id="any", run_types=run_types, **named)
            except ValueError as error:
                refused.append(error)
        if len(refused) == len(possible):
            raise refused[0]

    def _start_from_trigger(self) -> None:
        """Have Airflow start this task in the triggerer; set on the instance, because the class is shared."""
        from airflow.triggers.base import StartTriggerArgs

        since = self.since.isoformat() if isinstance(self.since, datetime) else self.since
        if self.session is None and self.session_id is None and since is None:
            since = _SINCE_TEMPLATE
        arguments = {name: getattr(self, name) for name in self.template_fields} | {"since": since}
        if self.before is None:
            # A triggerer of an older version does not take this argument.
            del arguments["before"]
        elif isinstance(self.before, datetime):
            arguments["before"] = self.before.isoformat()
        elif isinstance(self.before, timedelta):
            arguments["before"] = self.before.total_seconds()
        if self.session is None:
            del arguments["session"]
        if self.may_be_object:
            # Otherwise the arguments alone are enough: omitted ones have their defaults.
            arguments["given"] = self.given
        if not has_template(self.run_type):
            arguments["run_type"] = stored_run_type(run_types_of(self.run_type))
        for name, value in arguments.items():
            _check_in_triggerer(name, value)
        backstop = self.timeout + BACKSTOP.total_seconds()
        if self.execution_timeout is not None:
            backstop = min(backstop, self.execution_timeout.total_seconds())
        self.start_trigger_args = StartTriggerArgs(
            trigger_cls="airflow_mediation_provider.triggers.meter_session.MeterSessionStartTrigger",
            trigger_kwargs={
                **{name: list(value) if isinstance(value, tuple) else value for name, value in arguments.items()},
                "wait_options": self._wait_options(),
                "timeout": self.timeout,
                "backstop": backstop,
                "poll_interval": self.poke_interval,
                "end_from_trigger": not (has_hooks(self) or self.has_on_execute_callback),
            },
            next_method="execute_complete",
            timeout=timedelta(seconds=self.timeout) + BACKSTOP,
        )
        self.start_from_trigger = True

    def _wait_options(self) -> dict[str, Any]:
        # A triggerer of an older version does not take this option.
        waits = self.on_other_previous == OtherPrevious.WAIT
        return {
            **({} if waits else {"on_other_previous": str(self.on_other_previous)}),
            "exclusive": self.exclusive,
            "require_certain": self.require_certain,
            "max_unreachable": self.max_unreachable,
            "settle": self.settle,
        }

    def execute(self, context: Context) -> SessionResult | None:
        """Poll once, then wait by the mode.

        :return: the session
        """
        try:
            wait = self.new_wait(context)
        except ValueError as error:
            return self._finish(context, WaitResult(end=WaitEnd.MISCONFIGURED, message=str(error)))
        push_session_links(context, self.hook, str(self.meter_id), wait.condition.session_id)
        return self._finish(context, self._await_session(context, wait, may_end_in_trigger=True))

    def new_wait(self, context: Context) -> SessionWait:
        """Return the wait by the task's arguments.

        :raises ValueError: one of them was rendered to an invalid value
        """
        return make_wait(
            subject=self.take_arguments(),
            statuses=self.statuses,
            previous_statuses=self.previous_statuses,
            fail_on=self.fail_on,
            since=instant("since", self.since) or self._default_since(context),
            before=self.before,
            until=self._wait_until(context),
            created_at=utcnow(),
            poll_interval=self.poke_interval,
            **self._wait_options(),
        )

    def execute_complete(self, context: Context, event: Any = None) -> SessionResult | None:
        """Continue with the result of the trigger."""
        result = self.read_event(event)
        if result is None:
            self.log.warning("The trigger's event contains no result: polling Zuora.")
            return self.execute(context)
        return self._finish(context, result)

    def _finish(self, context: Context, result: WaitResult) -> SessionResult | None:
        """Return the session or end the task, the same in every mode; ``soft_fail`` hides no wrong setup."""
        if result.warning:
            self.log.warning(result.warning)
        found = result.session["session_id"] if result.session else None
        # A trigger pushes only the links that it has; for missing ones Airflow would log an error here.
        named = self.named_session
        if (found and named is None) or self.start_from_trigger or result.end is WaitEnd.MISCONFIGURED:
            push_session_links(context, self.hook, str(self.meter_id), found or named)
        self._report_end(context, result.session)
        if self.soft_fail and result.end in (WaitEnd.FAILED, WaitEnd.TIMED_OUT):
            raise AirflowSkipException(result.message)
        if self.on_other_previous == OtherPrevious.SKIP and result.end is WaitEnd.FAILED and self._is_awaited(result):
            raise AirflowSkipException(result.message)
        self.raise_for(result)
        self.log.info(result.message)
        return result.session

    def _is_awaited(self, result: WaitResult) -> bool:
        """Return whether the status that failed the wait is an awaited one, which came after another than asked for."""
        awaited = status_names("statuses", self.statuses) or successes(run_types_of(self.run_type))
        return result.session is not None and result.session["status"] in awaited


_REFUSED: Final = {
    "never_fail": "it would hide a wrong setup and an unreachable Zuora; use soft_fail",
    "silent_fail": "temporary errors never end the wait, and permanent ones must be seen",
    "exponential_backoff": "poke_interval plans the polls",
    "max_wait": "poke_interval plans the polls",
}


def _check_in_triggerer(name: str, value: Any) -> None:
    """Refuse an argument that the triggerer cannot render.

    :raises ValueError: it needs an XCom or another value that only a worker has, or this Airflow renders nothing there
    """
    instead = "use deferrable=True without start_from_trigger"
    if isinstance(value, list | tuple):
        for item in value:
            _check_in_triggerer(name, item)
    elif isinstance(value, Mapping):
        _check_in_triggerer(name, list(value.values()))
    elif isinstance(value, str):
        if not is_template(value):
            return
        if not AIRFLOW_V_3_3_PLUS:
            raise ValueError(f"start_from_trigger needs Airflow 3.3 where {name} is a template ({value}): {instead}")
        if found := _NOT_IN_TRIGGERER.search(value):
            raise ValueError(f"start_from_trigger: {name} uses {found[0]!r}, which only a worker can render: {instead}")
    elif is_template(value):
        raise ValueError(f"start_from_trigger: {name} is the output of a task, which only a worker can read: {instead}")
