"""Run a meter: start one session per generation, find it again after a crash or retry, and wait for its end."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime, timedelta
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, ClassVar, Final, Unpack

from airflow.sdk import BaseOperator, conf

from airflow_mediation_provider.feed.reports import REPORT_SECONDS, report_note
from airflow_mediation_provider.links import SESSION_LINKS, push_session_links
from airflow_mediation_provider.operators.stop import StopMeterOperator
from airflow_mediation_provider.protocol.sessions.session_result import session_result
from airflow_mediation_provider.protocol.status import (
    ANY_TERMINAL,
    ENDS_BY_POLL,
    FIRST_STATUS,
    IDLE,
    SUCCESS,
    RunType,
    run_type_of,
)
from airflow_mediation_provider.protocol.times import CLOCK_SKEW
from airflow_mediation_provider.protocol.transition import SessionTransition, Source
from airflow_mediation_provider.protocol.waits.condition import SessionCondition, validate_statuses
from airflow_mediation_provider.protocol.waits.wait import SessionWait, WaitEnd, WaitResult
from airflow_mediation_provider.protocol.zuora.errors import MediationError
from airflow_mediation_provider.protocol.zuora.requests import DEFAULT_VERSION
from airflow_mediation_provider.tasks.arguments import (
    check_connection,
    check_flags,
    check_meter,
    loaded,
    refuse_templates,
    seconds,
    status_names,
)
from airflow_mediation_provider.tasks.state import Tries
from airflow_mediation_provider.worker.run_start import (
    RunStarter,
    only_session_since,
    validate_event_store_source_options,
    validate_runtime_source_configs,
    validate_source_options,
)
from airflow_mediation_provider.worker.run_state import CLEARED, KeptRun, RunPhase, RunState, why_new_generation
from airflow_mediation_provider.worker.run_stop import RunStopper
from airflow_mediation_provider.worker.waiting import SessionWaitMixin

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from airflow.sdk import Context

    from airflow_mediation_provider.feed.worker import WaitFeed
    from airflow_mediation_provider.protocol.sessions.session_result import SessionResult
    from airflow_mediation_provider.tasks.arguments import Id, OneRunType, OperatorArguments, Sources, Statuses

__all__ = ["RunMeterOperator", "StopMeterOperator"]

_REPLY_LOST: Final = "The reply that named the session was lost, so nothing proves that it is the one that was started."


class RunMeterOperator(SessionWaitMixin, BaseOperator):
    """Run a meter of Zuora Mediation and wait for its session; the session is the XCom.

    One session is started per *generation*. After a worker died, a reply was lost, a triggerer restarted or Zuora was
    unreachable, the next try finds the session again. A retry after the session FAILED, and a user's *Clear*, begin a
    new generation, and start a new session. ::

        RunMeterOperator(task_id="run", meter_id="1001", deferrable=True, fail_on=())

    Airflow 3.2 keeps nothing between two tries. There Zuora's ``uniqueKey`` alone prevents a second start: a retry that
    finds its key used may not get the session's id, a retry of a DEBUG run starts one more test, and a Dag run that was
    deleted and created again under the same run id finds the key of the old one.

    :param meter_id: the meter; its id is in the URL of its page in Zuora. Templated
    :param version: the meter's version; Zuora documents ``0.0.1`` alone. Templated
    :param run_type: ``NORMAL``, or ``DEBUG`` for a test that writes nothing downstream. A DEBUG call is never repeated,
        because Zuora documents no ``uniqueKey`` for it: where its reply is lost, the session stays unknown
    :param runtime_source_configs: sources for this run alone, as Zuora's ``runtimeSourceConfigs``. Templated
    :param source_options: the older ``sourceOptions``. Templated
    :param event_store_source_options: the older ``eventStoreSourceOptions``. Templated
    :param wait_for_completion: ``False``: return the session as Zuora's reply describes it, just begun
    :param statuses: the statuses that are a success. Unless given: COMPLETED (DEBUG: TESTING_PASSED); if ``fail_on`` is
        given, each status in which this run type can end and that is not in it. So give CANCELED in ``fail_on`` too,
        unless a canceled session is a success
    :param fail_on: the statuses that fail the task; unless given, each terminal one that is not in ``statuses``.
        ``fail_on=()`` makes every end of the session a success of the task, so that a branch operator can
        decide
    :param deferrable: wait in the triggerer; ``[operators] default_deferrable`` unless given
    :param poke_interval: seconds between two polls of the status
    :param timeout: seconds from the start of the session after which the task fails, without a retry
    :param max_unreachable: seconds without a good answer from Zuora after which the task fails; a retry
        continues the wait
    :param require_certain: fail if only a poll shows how the session ended, and another run may have masked it
    :param exclusive: your promise that nothing else starts this meter during the wait: a poll can then be certain
    :param settle: seconds for which a status that Zuora reports may be out of date: no poll ends the wait sooner
    :param wait_for_capacity: when five meters of the tenant run already, try again later instead of failing
    :param capacity_timeout: seconds to try that before the task fails; a retry continues to try
    :param stop_meter_on_kill: stop the meter when the task is marked as failed or skipped, or removed, while it waits,
        and when it is cleared. Zuora can only stop every NORMAL run of the meter version, so this is refused, with the
        reason in the log, unless the stop policy allows it: see ``docs/stops.md``
    :param stop_meter_on_timeout: stop the meter likewise when ``timeout`` has passed
    :param mediation_conn_id: connection of type ``mediation``. Templated
    :raises ValueError: when the Dag is parsed: an argument is empty or impossible

    https://developer.zuora.com/v1-api-reference/api/meters/runspecificversionofmeter
    """

    template_fields: Sequence[str] = (
        "meter_id",
        "version",
        "runtime_source_configs",
        "source_options",
        "event_store_source_options",
        "mediation_conn_id",
    )
    template_fields_renderers: ClassVar[dict[str, str]] = {
        "runtime_source_configs": "json",
        "source_options": "json",
        "event_store_source_options": "json",
    }
    operator_extra_links = SESSION_LINKS
    ui_color = "#d7efe4"

    def __init__(
        self,
        *,
        meter_id: Id,
        version: str = DEFAULT_VERSION,
        run_type: OneRunType = RunType.NORMAL,
        runtime_source_configs: Sources | None = None,
        source_options: Sources | None = None,
        event_store_source_options: Sources | None = None,
        wait_for_completion: bool = True,
        statuses: Statuses | None = None,
        fail_on: Statuses | None = None,
        deferrable: bool = conf.getboolean("operators", "default_deferrable", fallback=False),
        poke_interval: timedelta | float = 60,
        timeout: timedelta | float = timedelta(days=1),
        max_unreachable: timedelta | float = timedelta(hours=1),
        require_certain: bool = False,
        exclusive: bool = False,
        settle: timedelta | float = 30,
        wait_for_capacity: bool = True,
        capacity_timeout: timedelta | float = timedelta(hours=6),
        stop_meter_on_kill: bool = False,
        stop_meter_on_timeout: bool = False,
        mediation_conn_id: str = "mediation_default",
        **kwargs: Unpack[OperatorArguments],
    ) -> None:
        super().__init__(**kwargs)
        refuse_templates(run_type=run_type, statuses=statuses, fail_on=fail_on)
        self.meter_id = meter_id
        self.version = version
        self.run_type = run_type_of(run_type)
        self.runtime_source_configs = runtime_source_configs
        self.source_options = source_options
        self.event_store_source_options = event_store_source_options
        self.wait_for_completion = wait_for_completion
        self.fail_on = status_names("fail_on", fail_on)
        self.statuses = self._statuses(statuses)
        self.deferrable = deferrable
        self.poke_interval = seconds("poke_interval", poke_interval, least=0.1)
        self.timeout = seconds("timeout", timeout, least=1)
        self.max_unreachable = seconds("max_unreachable", max_unreachable)
        self.require_certain = require_certain
        self.exclusive = exclusive
        self.settle = seconds("settle", settle)
        self.wait_for_capacity = wait_for_capacity
        self.capacity_timeout = seconds("capacity_timeout", capacity_timeout)
        self.stop_meter_on_kill = stop_meter_on_kill
        self.stop_meter_on_timeout = stop_meter_on_timeout
        self.mediation_conn_id = mediation_conn_id
        # Read by on_kill, which may run before execute().
        self._context: Context | None = None
        self._followed: tuple[SessionWait, WaitFeed] | None = None
        check_meter(meter_id, version)
        check_connection(mediation_conn_id)
        check_flags(
            wait_for_completion=wait_for_completion,
            deferrable=deferrable,
            require_certain=require_certain,
            exclusive=exclusive,
            wait_for_capacity=wait_for_capacity,
            stop_meter_on_kill=stop_meter_on_kill,
            stop_meter_on_timeout=stop_meter_on_timeout,
        )
        self._check_sources()
        if not wait_for_completion and (statuses is not None or fail_on is not None):
            raise ValueError(
                "statuses and fail_on need wait_for_completion=True: without it the session has no end yet"
            )
        validate_statuses(run_type=self.run_type, statuses=self.statuses, fail_on=self.fail_on)
        condition = self._condition("any", DEFAULT_VERSION)
        stated = condition.fail_on if self.fail_on is None else self.fail_on
        endless = ENDS_BY_POLL[self.run_type].difference(self.statuses, stated or ())
        if endless:
            names = ", ".join(sorted(endless))
            raise ValueError(f"{names}: a session may end so, and this is neither in statuses nor in fail_on: add it")

    def _kept_run(self, context: Context) -> KeptRun:
        return KeptRun.of(context, self.timeout + self.capacity_timeout + self.max_unreachable)

    def _starter(self, context: Context) -> RunStarter:
        return RunStarter(
            self,
            context,
            self._kept_run(context),
            capacity_timeout=self.capacity_timeout if self.wait_for_capacity else 0,
            # A session that ended in a status of success is not dead: the earlier try lost only its result.
            failures=ANY_TERMINAL - set(self.statuses),
        )

    @property
    def _stopper(self) -> RunStopper:
        return RunStopper(self, on_kill=self.stop_meter_on_kill, on_timeout=self.stop_meter_on_timeout)

    def on_kill(self) -> None:
        """Stop the meter, if that was asked for and allowed, when the task is ended from outside."""
        if self._context is not None:
            self._stopper.kill(self._context)

    def execute(self, context: Context) -> SessionResult | None:
        """Start the session of this generation, or find it again, and wait for it.

        :return: the session
        """
        return self._run(context)

    def _run(self, context: Context) -> SessionResult | None:
        self._context = context
        memory = self._kept_run(context)
        kept = memory.load()
        try:
            request = self._request()
        except MediationError:
            # Airflow reads the links of each task, and would log an error.
            push_session_links(context, self.hook, str(self.meter_id), None)
            raise
        reason = why_new_generation(
            kept,
            Tries.of(context["ti"], self.retries),
            mediation_conn_id=self.mediation_conn_id,
            request=request,
        )
        if kept is None or reason is not None:
            self.log.info("Asking Zuora to run meter %s as a new session (%s).", self.meter_id, reason)
            if kept is not None and kept.may_be_live:
                self._stopper.leave_behind(kept, cleared=reason == CLEARED)
            return self._go_on(context, memory.save(self._starter(context).begin(request)), {})
        if kept.phase is RunPhase.DONE:
            self.log.info("An earlier try has the result already: session %s.", kept.session_id or "(unknown)")
            push_session_links(context, self.hook, str(self.meter_id), kept.session_id, kept.run_id)
            # The process that kept it may have ended before it reported it.
            self._report_end(context, kept.result)
            return kept.result
        if kept.phase is RunPhase.CALLING:
            self.log.info("Going on with the start of an earlier try, which got no answer.")
        else:
            self.log.info("Going on with the session of an earlier try: %s.", kept.session_id or "(unknown)")
        if kept.request != request:
            self.log.warning("The sources changed since that session started: the next one gets the new ones.")
        return self._go_on(context, kept, {})

    def execute_complete(self, context: Context, event: Any = None) -> SessionResult | None:
        """Go on with what the trigger reports."""
        self._context = context
        state = self._kept_run(context).load()
        result = self.read_event(event)
        if result is None:
            self.log.warning("The trigger's event contains no result: polling Zuora.")
            return self._run(context)
        return self._finish(context, state, result, event)

    def start_again(
        self, context: Context, event: Any = None, *, since: dict[str, Any], state: dict[str, Any] | None = None
    ) -> SessionResult | None:
        """Go on after a pause before the call; the timer's event has no content.

        :param since: when which kind of pause began
        :param state: the state, where Airflow does not keep it
        """
        del event
        self._context = context
        kept = self._kept_run(context).load() or (RunState.from_dict(state) if state else None)
        return self._run(context) if kept is None else self._go_on(context, kept, since)

    def _go_on(self, context: Context, state: RunState, since: dict[str, Any]) -> SessionResult | None:
        """Start the session if it is not started yet; then show it, and wait for it."""
        starter = self._starter(context)
        if state.phase is RunPhase.CALLING:
            try:
                state = starter.start(state, since)
            except MediationError as error:
                push_session_links(context, self.hook, str(self.meter_id), None)
                self._note(context, {"meter_id": self.meter_id}, f"The meter was not started: {error}")
                raise
            self._log_started(state)
        push_session_links(context, self.hook, str(self.meter_id), state.session_id, state.run_id)
        starter.report(state)
        if not self.wait_for_completion:
            reply = self._reply(state)
            self._note(context, reply, "The meter was started; the task does not wait for the session's end.")
            return self._returned(context, state, reply)
        wait = SessionWait(
            self._condition(str(self.meter_id), self.version, state=state, until=self._deadline(context, state)),
            started_at=self._started_at(state),
            run_status=state.session["status"] if state.session and state.session_id else None,
            baseline=state.baseline,
            called_at=state.called_at,
            exclusive=self.exclusive,
            require_certain=self.require_certain,
            max_unreachable=timedelta(seconds=self.max_unreachable),
            settle=timedelta(seconds=self.settle),
            created_at=datetime.now(UTC),
        )
        return self._finish(context, state, self._await_session(context, wait, stop_on_kill=self.stop_meter_on_kill))

    def _begun(self, wait: SessionWait, feed: WaitFeed) -> None:
        self._stopper.warn_if_never(wait, feed)

    def _note(self, context: Context, session: Mapping[str, Any], message: str) -> None:
        """Report the outcome of the run call for the pages, where no wait shows it."""
        caller = self._feed_caller(seconds=REPORT_SECONDS)
        report_note(caller, self.mediation_conn_id, context["ti"], "run", session, message)

    def _log_started(self, state: RunState) -> None:
        if state.phase is RunPhase.STARTED:
            self.log.info("Session %s of meter %s started.", state.session_id, self.meter_id)
        else:
            self.log.warning(
                "Zuora was asked to run meter %s at %s, but its reply was lost: the session is not known, so the result"
                " is not certain. No second session is started; clear the task to start one on purpose.",
                self.meter_id,
                state.called_at,
            )
        if state.baseline is not None and state.baseline not in IDLE:
            self.log.warning(
                "The meter was already %s when this run was called for: another session of it may be live, and the"
                " meter's status may be that of either.",
                state.baseline,
            )

    # -- the end --------------------------------------------------------------------------------------------------

    def _finish(
        self,
        context: Context,
        state: RunState | None,
        result: WaitResult,
        event: Mapping[str, Any] = MappingProxyType({}),
    ) -> SessionResult | None:
        """Return the session, or raise why not; store first what a retry needs of it.

        :param event: of the trigger, where the result is from there
        """
        session = result.session
        if session and state is not None and state.session_id is None:
            # Nothing proves that the session is the one whose reply was lost.
            session = {**session, "session_id": session["session_id"] or self._hint(state), "certain": False}
            if self.require_certain and result.end in (WaitEnd.MET, WaitEnd.FAILED):
                result = replace(result, end=WaitEnd.UNCERTAIN, message=f"{result.message} {_REPLY_LOST}")
        self._report_end(context, session)
        if result.end is WaitEnd.MET and session:
            self.log.info(result.message)
            return self._returned(context, state, session)
        if result.end is WaitEnd.TIMED_OUT and self.stop_meter_on_timeout:
            self._stopper.at_deadline(context, event)
        if result.end is WaitEnd.FAILED:
            from airflow_mediation_provider.exceptions import MeterRunFailed

            if state is not None and session:
                self._kept_run(context).save(state.dead(session["status"]))
            raise MeterRunFailed(result.message + self._advice(), session=session)
        return self.raise_for(result)

    def _advice(self) -> str:
        """Return what to set where a branch was to decide: a task that failed keeps it from running."""
        from airflow_mediation_provider.operators.branch import MeterSessionBranchOperator

        dag = self.get_dag()
        following = [dag.get_task(each) for each in self.downstream_task_ids] if dag else []
        if any(isinstance(each, MeterSessionBranchOperator) for each in following):
            return " Set fail_on=() on this task, so that the branch after it decides."
        return ""

    def _returned(self, context: Context, state: RunState | None, result: SessionResult) -> SessionResult:
        if state is not None:
            self._kept_run(context).save(state.done(result))
        return result

    def _started_at(self, state: RunState) -> datetime | None:
        """Return when the session started; of an unnamed one, when it was called for, if it is known that it did."""
        started = SessionTransition.from_dict(state.session).started_at if state.session else None
        if started is not None and state.called_at is not None and started < state.called_at - CLOCK_SKEW:
            # No session starts before it is called for: Zuora's clock is off, and its time would protect nothing.
            started = state.called_at
        certainly = state.session is not None or state.unique_key is not None
        return started or (state.called_at if certainly else None)

    def _reply(self, state: RunState) -> SessionResult:
        """Return the session as Zuora's reply describes it; where the reply was lost, as it would have."""
        if state.session is not None and state.session_id:
            return self._result(SessionTransition.from_dict(state.session), certain=True)
        # Not the meter's status: that may still be the end of the session before, and a branch would follow it.
        transition = SessionTransition(
            meter_id=str(self.meter_id),
            session_id=self._hint(state),
            run_type=self.run_type,
            status=FIRST_STATUS[self.run_type],
            observed_at=state.called_at or datetime.now(UTC),
            source=Source.RUN,
        )
        return self._result(transition, certain=False)

    def _result(self, transition: SessionTransition, *, certain: bool) -> SessionResult:
        return session_result(
            transition,
            evidence=Source.RUN,
            certain=certain,
            version=self.version,
            mediation_conn_id=self.mediation_conn_id,
        )

    def _hint(self, state: RunState) -> str | None:
        if state.called_at is None:
            return None
        return only_session_since(self.hook, state.request, state.called_at, datetime.now(UTC))

    # -- the arguments --------------------------------------------------------------------------------------------

    def _deadline(self, context: Context, state: RunState) -> datetime:
        """Return ``timeout`` after the call, on a retry after its start: what came before does not count."""
        started = context["ti"].start_date or datetime.now(UTC)
        return max(started.astimezone(UTC), state.called_at or started) + timedelta(seconds=self.timeout)

    def _condition(
        self, meter_id: str, version: str, *, state: RunState | None = None, until: datetime | None = None
    ) -> SessionCondition:
        session_id = state.session_id if state else None
        return SessionCondition(
            meter_id=meter_id,
            version=version,
            session_id=session_id,
            run_types=(self.run_type,),
            statuses=self.statuses,
            fail_on=self._failing(),
            since=state.called_at if state and session_id is None else None,
            until=until,
        )

    def _statuses(self, statuses: Statuses | None) -> tuple[str, ...]:
        names = status_names("statuses", statuses)
        if names is not None:
            return names
        if self.fail_on is None:
            return (SUCCESS[self.run_type],)
        # What fails is named: an end that this run type is not documented to have is not one of the others.
        ends = ENDS_BY_POLL[self.run_type] if self.fail_on else ANY_TERMINAL
        return tuple(sorted(ends - set(self.fail_on)))

    def _failing(self) -> tuple[str, ...] | None:
        """Return the statuses that fail the task: those given, and each terminal one in no argument."""
        if self.fail_on is None:
            return None
        return (*self.fail_on, *sorted(ANY_TERMINAL.difference(self.fail_on, self.statuses)))

    def _check_sources(self) -> None:
        validate_runtime_source_configs(self.runtime_source_configs)
        validate_source_options(self.source_options, debug=self.run_type is RunType.DEBUG)
        validate_event_store_source_options(self.event_store_source_options)

    def _request(self) -> dict[str, Any]:
        """Return the arguments of the call, checked now that they are rendered."""
        sources = ("runtime_source_configs", "source_options", "event_store_source_options")
        from airflow_mediation_provider.exceptions import fail_permanently

        with fail_permanently():
            self.take_arguments()
            for name in sources:
                setattr(self, name, loaded(name, getattr(self, name)))
            self._check_sources()
        given = {name: getattr(self, name) for name in sources}
        return {
            "meter_id": self.meter_id,
            "version": self.version,
            "run_type": str(self.run_type),
            **{name: list(value) for name, value in given.items() if value},
        }
