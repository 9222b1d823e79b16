"""MeterSessionSensor: wait until a meter's session has a status, on a worker, by reschedule, or in the triggerer."""

from __future__ import annotations

import re
from datetime import datetime, timedelta
from typing import TYPE_CHECKING, Any, Final

from airflow.sdk import BaseSensorOperator, conf
from airflow.sdk.exceptions import AirflowSkipException

from airflow_mediation_provider.end_in_triggerer import has_hooks
from airflow_mediation_provider.links import SESSION_LINKS, push_session_links
from airflow_mediation_provider.operators.arguments import (
    check_flags,
    check_instant,
    check_meter,
    check_session_id,
    check_text,
    instant,
    is_template,
    seconds,
    session_id_of,
)
from airflow_mediation_provider.protocol.condition import SessionCondition, validate_statuses
from airflow_mediation_provider.protocol.status import RunType
from airflow_mediation_provider.protocol.wait import WaitEnd, WaitResult
from airflow_mediation_provider.version_compat import AIRFLOW_V_3_3_PLUS
from airflow_mediation_provider.waiting import BACKSTOP, SessionWaitMixin, make_wait, utcnow

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from airflow.sdk import Context
    from airflow.sdk.definitions.mappedoperator import OperatorPartial

    from airflow_mediation_provider.protocol.wait import SessionWait

# Neither `ds` nor `data_interval_start`: they are undefined in a run without a logical date.
_SINCE_TEMPLATE: Final = "{{ dag_run.data_interval_start or dag_run.run_after }}"
# What a template may not use in the triggerer: it hangs there for ever (XComs of other tasks, earlier runs), is empty
# there (events), or does not exist there (most of the task instance).
_NOT_IN_TRIGGERER: Final = re.compile(
    r"xcom|prev_|triggering_asset_events|inlet_events|outlet_events|state_store|task_reschedule_count"
    r"|\b(?:ti|task_instance)\.(?!(?:dag_id|task_id|run_id|try_number|map_index)\b)\w+"
)


class MeterSessionSensor(SessionWaitMixin, BaseSensorOperator):
    """Wait for a session of a meter to reach a status; the XCom is the session as JSON with its evidence.

    With ``session_id`` it waits for that session. Without, for the first session that starts at or after ``since`` and
    for that one alone: also where it ended before the sensor began. That takes callouts, which name their session. A
    poll names none: without callouts only a *change* of the meter's status shows a session, and one that ended before
    the sensor's first look is not found.

    Where the connection takes callouts, they decide, at once in the triggerer and at the next poke on a worker, and the
    meter is polled only every ``[mediation] cross_check_interval`` seconds, in case one is lost.

    ===================================  ==========================================  =======================
    what happened                        the task                                    with ``soft_fail``
    ===================================  ==========================================  =======================
    a status of ``statuses``             succeeds                                    the same
    a status of ``fail_on``              fails, no retry: the session is dead        is skipped
    ``timeout`` passed                   fails, no retry                             is skipped
    no good answer for a long time       fails, is retried, and then waits on        the same
    wrong connection, meter, permission  fails, no retry                             the same: never hidden
    trigger, triggerer or worker died    asks again and waits on                     the same
    ===================================  ==========================================  =======================

    :param meter_id: the meter; its id is in the URL of its page in Zuora. Templated
    :param version: the meter's version; Zuora documents ``0.0.1`` alone. Templated
    :param session_id: the session, for example ``R-00005468``, or what a ``RunMeterOperator`` returned: ``run.output``.
        Templated
    :param run_type: ``NORMAL`` or ``DEBUG``. Templated
    :param statuses: status or statuses to wait for; COMPLETED (DEBUG: TESTING_PASSED) unless given. Templated
    :param previous_statuses: statuses of which one must have come right before; that takes callouts, and without them
        the task fails. A status that the session only passes through can be missed between two pokes. Templated
    :param fail_on: statuses that fail the task; each other terminal one unless given. Templated
    :param since: without a session id: the earliest start of the session, a time with a zone; the start of the data
        interval unless given, else the run's ``run_after``. Templated
    :param mediation_conn_id: connection of type ``mediation``. Templated
    :param poke_interval: seconds between two looks at the status. Triggers share their looks, and take up to twice as
        long between them while nothing changes for long; where callouts come, a worker looks at these this often
    :param timeout: seconds from the first start of a try, across reschedules and deferrals
    :param mode: ``poke`` or ``reschedule`` (Airflow 3.3); of no meaning when deferrable. Between two
        reschedules lie ten seconds at least: a busy scheduler takes a task that comes back sooner for a failed one
    :param deferrable: wait in the triggerer; ``[operators] default_deferrable`` unless given
    :param start_from_trigger: begin there as well, without a worker; the task also ends there if it succeeds and
        Airflow loses nothing by that. Refused where an argument needs an XCom, and for mapped tasks
    :param max_unreachable: seconds without a good answer from Zuora after which the try fails
    :param require_certain: fail where only a poll, which another run may have masked, says how the session ended
    :param exclusive: your promise that nothing else runs this meter meanwhile, which makes a poll's answer certain
    :param settle: seconds for which a status that Zuora reports may be out of date: no wait ends sooner
    :param soft_fail: skip instead of failing, as in the table above
    :raises ValueError: when the DAG is parsed: an argument is unknown, empty or impossible

    ``never_fail``, ``silent_fail``, ``exponential_backoff`` and ``max_wait`` are refused: the first two would hide a
    wrong setup, and the sensor paces itself.

    https://developer.zuora.com/v1-api-reference/api/meters/getrunstatusofspecificmeterversion
    """

    template_fields: Sequence[str] = (
        "meter_id",
        "version",
        "session_id",
        "run_type",
        "statuses",
        "previous_statuses",
        "fail_on",
        "since",
        "mediation_conn_id",
    )
    operator_extra_links = SESSION_LINKS
    ui_color = "#d7efe4"

    def __init__(
        self,
        *,
        meter_id: str,
        version: str = "0.0.1",
        session_id: str | Mapping[str, Any] | None = None,
        run_type: RunType | str = RunType.NORMAL,
        statuses: Sequence[str] | str | None = None,
        previous_statuses: Sequence[str] | str | None = None,
        fail_on: Sequence[str] | str | None = None,
        since: datetime | str | None = None,
        mediation_conn_id: str = "mediation_default",
        deferrable: bool = conf.getboolean("operators", "default_deferrable", fallback=False),
        start_from_trigger: bool = False,
        max_unreachable: timedelta | float = timedelta(hours=1),
        require_certain: bool = False,
        exclusive: bool = False,
        settle: timedelta | float = 30,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        self.meter_id = meter_id
        self.version = version
        self.session_id = session_id
        self.run_type = run_type
        self.statuses = statuses
        self.previous_statuses = previous_statuses
        self.fail_on = fail_on
        self.since = since
        self.mediation_conn_id = mediation_conn_id
        self.deferrable = deferrable or start_from_trigger
        self.max_unreachable = seconds("max_unreachable", max_unreachable)
        self.require_certain = require_certain
        self.exclusive = exclusive
        self.settle = seconds("settle", settle)
        self._named = session_id is not None
        check_flags(
            deferrable=deferrable,
            start_from_trigger=start_from_trigger,
            require_certain=require_certain,
            exclusive=exclusive,
        )
        self._check()
        # A mapped task's arguments are known only when it is expanded, on a worker: there it starts there.
        if start_from_trigger and not getattr(self, "_BaseOperator__from_mapped", False):
            self._start_from_trigger()

    @classmethod
    def partial(cls, **kwargs: Any) -> OperatorPartial:
        """Map the sensor; ``start_from_trigger`` is refused, for Airflow would start every one with the same arguments.

        :raises ValueError: ``start_from_trigger`` is set
        """
        if kwargs.get("start_from_trigger"):
            raise ValueError("start_from_trigger cannot be used with mapping: use deferrable=True")
        return super().partial(**kwargs)

    def _check(self) -> None:
        """Refuse what can never work; templates and outputs of tasks are checked when they are rendered."""
        check_meter(self.meter_id, self.version)
        check_text("mediation_conn_id", self.mediation_conn_id)
        check_session_id(self.session_id)
        if self.session_id is not None and self.since is not None:
            raise ValueError("session_id and since exclude each other: a session is either named or found by its start")
        statuses: dict[str, Any] = {
            "run_type": self.run_type,
            "statuses": self.statuses,
            "previous_statuses": self.previous_statuses,
            "fail_on": self.fail_on,
        }
        validate_statuses(**statuses)
        check_instant("since", self.since)
        if all(map(_is_known, statuses.values())):
            SessionCondition(meter_id="any", **{**statuses, "previous_statuses": self.previous_statuses or ()})
        if self.poke_interval < 0.1:
            raise ValueError("poke_interval must be at least 0.1 seconds")
        for name in ("never_fail", "silent_fail", "exponential_backoff", "max_wait"):
            if getattr(self, name):
                raise ValueError(f"{name} is not supported: {_REFUSED[name]}")
        if self.mode == "reschedule" and not self.deferrable and not AIRFLOW_V_3_3_PLUS:
            raise ValueError(
                "mode='reschedule' needs Airflow 3.3, which keeps what a wait has seen between two pokes: "
                "use deferrable=True or mode='poke'"
            )

    def _start_from_trigger(self) -> None:
        """Have Airflow start this task in the triggerer; on the instance, for on the class it would be for all."""
        from airflow.triggers.base import StartTriggerArgs

        since = self.since.isoformat() if isinstance(self.since, datetime) else self.since
        if self.session_id is None and since is None:
            since = _SINCE_TEMPLATE
        arguments = {name: getattr(self, name) for name in self.template_fields} | {"since": since}
        for name, value in arguments.items():
            _check_in_triggerer(name, value)
        backstop = self.timeout + BACKSTOP.total_seconds()
        if self.execution_timeout is not None:
            backstop = min(backstop, self.execution_timeout.total_seconds())
        self.start_trigger_args = StartTriggerArgs(
            trigger_cls="airflow_mediation_provider.triggers.meter_session.MeterSessionStartTrigger",
            trigger_kwargs={
                **{name: list(value) if isinstance(value, tuple) else value for name, value in arguments.items()},
                "run_type": str(self.run_type),
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
        return {
            "exclusive": self.exclusive,
            "require_certain": self.require_certain,
            "max_unreachable": self.max_unreachable,
            "settle": self.settle,
        }

    def execute(self, context: Context) -> dict[str, Any] | None:
        """Look once, then wait as the mode says.

        :return: the session as JSON, with ``evidence`` and ``certain``
        """
        try:
            wait = self.new_wait(context)
        except ValueError as error:
            return self._finish(context, WaitResult(end=WaitEnd.MISCONFIGURED, message=str(error)))
        push_session_links(context, self.hook, str(self.meter_id), wait.condition.session_id)
        return self._finish(context, self._await_session(context, wait, may_end_in_trigger=True))

    def new_wait(self, context: Context) -> SessionWait:
        """Return the wait as the task's arguments have it.

        :raises ValueError: one of them was rendered to nonsense
        """
        self.session_id = session_id_of(self.session_id, given=self._named)
        return make_wait(
            meter_id=self.meter_id,
            version=self.version,
            session_id=self.session_id,
            run_type=self.run_type,
            statuses=self.statuses,
            previous_statuses=self.previous_statuses,
            fail_on=self.fail_on,
            since=instant("since", self.since) or self._default_since(context),
            until=self._wait_until(context),
            created_at=utcnow(),
            **self._wait_options(),
        )

    def execute_complete(self, context: Context, event: Any = None) -> dict[str, Any] | None:
        """Go on with what the trigger reports."""
        result = self.read_event(event)
        if result is None:
            self.log.warning("The trigger's event holds no result: asking Zuora again.")
            return self.execute(context)
        return self._finish(context, result)

    def _finish(self, context: Context, result: WaitResult) -> dict[str, Any] | None:
        """Return the session or end the task, alike in every mode; ``soft_fail`` hides no wrong setup."""
        found = (result.session or {}).get("session_id")
        if found and not self.session_id:
            push_session_links(context, self.hook, str(self.meter_id), found)
        if self.soft_fail and result.end in (WaitEnd.FAILED, WaitEnd.TIMED_OUT):
            raise AirflowSkipException(result.message)
        self.raise_for(result)
        self.log.info(result.message)
        return result.session

    @staticmethod
    def _default_since(context: Context) -> datetime:
        """Return the start of the data interval, or when the run was due where it has none."""
        dag_run = context["dag_run"]
        return dag_run.data_interval_start or dag_run.run_after


_REFUSED: Final = {
    "never_fail": "it would hide a wrong setup and an unreachable Zuora; use soft_fail",
    "silent_fail": "passing errors never end the wait, and lasting ones must be seen",
    "exponential_backoff": "the sensor paces itself",
    "max_wait": "the sensor paces itself",
}


def _is_known(value: Any) -> bool:
    """Say whether an argument is what it will be when the task runs."""
    if isinstance(value, list | tuple | set):
        return all(map(_is_known, value))
    return not is_template(value)


def _check_in_triggerer(name: str, value: Any) -> None:
    """Refuse an argument that the triggerer cannot render.

    :raises ValueError: it needs an XCom or something else that only a worker has, or this Airflow renders nothing there
    """
    instead = "use deferrable=True without start_from_trigger"
    if isinstance(value, list | tuple):
        for item in value:
            _check_in_triggerer(name, item)
    elif isinstance(value, str):
        if not is_template(value):
            return
        if not AIRFLOW_V_3_3_PLUS:
            raise ValueError(f"start_from_trigger needs Airflow 3.3 where {name} is a template ({value}): {instead}")
        if found := _NOT_IN_TRIGGERER.search(value):
            raise ValueError(f"start_from_trigger: {name} uses {found[0]!r}, which only a worker can render: {instead}")
    elif value is not None:
        raise ValueError(f"start_from_trigger: {name} is the output of a task, which only a worker can read: {instead}")
