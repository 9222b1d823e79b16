"""Run a meter: one session per generation, found again after whatever happened to the task, and waited for."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any, ClassVar, Final

from airflow.sdk import BaseOperator, conf

from airflow_mediation_provider.links import SESSION_LINKS, push_session_links
from airflow_mediation_provider.operators.arguments import (
    check_flags,
    check_meter,
    check_text,
    loaded,
    run_type_of,
    seconds,
    status_names,
)
from airflow_mediation_provider.operators.kill import StopOnKillMixin, other_session_lives
from airflow_mediation_provider.operators.run_call import FIRST_STATUS, only_session_since
from airflow_mediation_provider.operators.run_start import RunStartMixin
from airflow_mediation_provider.operators.run_state import CLEARED, Phase, RunState, why_new_generation
from airflow_mediation_provider.operators.sources import (
    validate_event_store_source_options,
    validate_runtime_source_configs,
    validate_source_options,
)
from airflow_mediation_provider.operators.stop import StopMeterOperator
from airflow_mediation_provider.protocol.condition import DEFAULT_VERSION, SessionCondition
from airflow_mediation_provider.protocol.status import SUCCESS, TERMINAL, RunType
from airflow_mediation_provider.protocol.transition import SessionTransition, Source
from airflow_mediation_provider.protocol.wait import CLOCK_SKEW, SessionWait, WaitEnd, WaitResult
from airflow_mediation_provider.waiting import SessionWaitMixin

if TYPE_CHECKING:
    from collections.abc import Sequence

    from airflow.sdk import Context


__all__ = ["RunMeterOperator", "StopMeterOperator"]

_REPLY_LOST: Final = "The reply that named the session was lost, so nothing proves that it is the one that was started."


class RunMeterOperator(SessionWaitMixin, RunStartMixin, StopOnKillMixin, BaseOperator):
    """Run a meter of Zuora Mediation and wait for its session; the session is the XCom.

    A session is started once per *generation*: a worker that dies, a lost reply, a restarted triggerer, Zuora being out
    of reach, and the retries that follow from these find the session again. A retry after the session FAILED, and a
    user's *Clear*, start a new one. See ``run_state``.

    Airflow 3.2 keeps nothing between two tries. There Zuora's ``uniqueKey`` alone prevents a second start: a retry that
    finds its key used may not learn the session's id, a retry of a DEBUG run starts one more test, and a DAG run that
    was deleted and made again under the same run id finds the key of the old one.

    :param meter_id: the meter; its id is in the URL of its page in Zuora. Templated
    :param version: the meter's version; Zuora documents ``0.0.1`` alone. Templated
    :param run_type: ``NORMAL``, or ``DEBUG`` for a test that writes nothing downstream. A DEBUG call is never repeated,
        because Zuora documents no ``uniqueKey`` for it: where its reply is lost, the session stays unknown
    :param runtime_source_configs: sources for this run alone, as Zuora's ``runtimeSourceConfigs``. Templated
    :param source_options: the older ``sourceOptions``. Templated
    :param event_store_source_options: the older ``eventStoreSourceOptions``. Templated
    :param wait_for_completion: ``False``: return the session as Zuora's reply describes it, just begun
    :param statuses: the session's statuses that are a success; COMPLETED (DEBUG: TESTING_PASSED) unless ``fail_on`` is
        given, then each terminal status that is not in it
    :param fail_on: the statuses that fail the task; each other terminal one unless given. ``fail_on=()`` makes every
        end of the session a success of the task, so that a ``MeterSessionBranchOperator`` can decide
    :param deferrable: wait in the triggerer; ``[operators] default_deferrable`` unless given
    :param poke_interval: seconds between two looks at the status
    :param timeout: seconds from the start of the session after which the task fails, without a retry
    :param max_unreachable: seconds without a good answer from Zuora after which the task fails; a retry goes on
    :param require_certain: fail where only a poll that another run could have masked tells how the session ended
    :param exclusive: your promise that nothing else starts this meter meanwhile, which makes a poll's answer certain
    :param settle: seconds for which a status that Zuora reports may be out of date: no wait ends sooner
    :param wait_for_capacity: when five meters of the tenant run already, try again later instead of failing
    :param capacity_timeout: seconds to try that; the retry after it goes on trying
    :param stop_meter_on_kill: stop the meter when a user marks the task or clears it while it runs. Zuora can only stop
        every NORMAL run of the meter version, so this is refused while another live session of it is known
    :param stop_meter_on_timeout: stop the meter likewise when ``timeout`` has passed
    :param mediation_conn_id: connection of type ``mediation``
    :raises ValueError: when the DAG is parsed: an argument is empty or impossible

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
        meter_id: str,
        version: str = "0.0.1",
        run_type: RunType | str = RunType.NORMAL,
        runtime_source_configs: Sequence[dict[str, Any]] | str | None = None,
        source_options: Sequence[dict[str, Any]] | str | None = None,
        event_store_source_options: Sequence[dict[str, Any]] | str | None = None,
        wait_for_completion: bool = True,
        statuses: Sequence[str] | str | None = None,
        fail_on: Sequence[str] | str | None = None,
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
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
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
        # What on_kill looks at; it may run before execute() does.
        self._context: Context | None = None
        self._state: RunState | None = None
        check_meter(meter_id, version)
        check_text("mediation_conn_id", mediation_conn_id)
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
        condition = self._condition("any", DEFAULT_VERSION)
        endless = TERMINAL[self.run_type].difference(condition.statuses or (), condition.fail_on or ())
        if endless:
            names = ", ".join(sorted(endless))
            raise ValueError(f"{names}: a session that ends so is neither in statuses nor in fail_on: add it to one")

    def execute(self, context: Context) -> dict[str, Any] | None:
        """Start the session of this generation, or find it again, and wait for it.

        :return: the session as JSON, with ``evidence`` and ``certain``
        """
        return self._run(context)

    def _run(self, context: Context) -> dict[str, Any] | None:
        self._context = context
        memory = self._memory(context)
        kept = memory.load()
        ti, request = context["ti"], self._request()
        reason = why_new_generation(
            kept,
            max_tries=ti.max_tries,
            retries=self.retries or 0,
            mediation_conn_id=self.mediation_conn_id,
            request=request,
        )
        if kept is None or reason is not None:
            self.log.info("Running meter %s as a new session: %s.", self.meter_id, reason)
            if kept is not None and kept.may_be_live:
                self._leave_behind(kept, cleared=reason == CLEARED)
            return self._go_on(context, memory.save(self._begin(context, request)), {})
        if kept.phase is Phase.DONE:
            self.log.info("An earlier try has the result already: session %s.", kept.session_id or "(unknown)")
            push_session_links(context, self.hook, str(self.meter_id), kept.session_id, kept.run_id)
            return kept.result
        if kept.phase is Phase.CALLING:
            self.log.info("Going on with the start of an earlier try, which got no answer.")
        else:
            self.log.info("Going on with the session of an earlier try: %s.", kept.session_id or "(unknown)")
        if kept.request != request:
            self.log.warning("The sources changed since that session was called for: they count from the next one.")
        return self._go_on(context, kept, {})

    def execute_complete(self, context: Context, event: Any = None) -> dict[str, Any] | None:
        """Go on with what the trigger reports."""
        self._context = context
        self._state = state = self._memory(context).load()
        result = self.read_event(event)
        if result is None:
            self.log.warning("The trigger's event holds no result: asking Zuora again.")
            return self._run(context)
        return self._finish(context, state, result)

    def start_again(
        self, context: Context, event: Any = None, *, since: dict[str, str], state: dict[str, Any] | None = None
    ) -> dict[str, Any] | None:
        """Go on after a pause before the call; the timer's event says nothing.

        :param since: when which kind of pause began
        :param state: the state, where Airflow does not keep it
        """
        del event
        self._context = context
        kept = self._memory(context).load() or (RunState.from_dict(state) if state else None)
        return self._run(context) if kept is None else self._go_on(context, kept, since)

    def _go_on(self, context: Context, state: RunState, since: dict[str, str]) -> dict[str, Any] | None:
        """Start the session if it is not started yet; then show it, and wait for it."""
        if state.phase is Phase.CALLING:
            state = self._start(context, state, since)
            self._say_started(state)
        self._state = state
        push_session_links(context, self.hook, str(self.meter_id), state.session_id, state.run_id)
        self._report_run(state)
        if not self.wait_for_completion:
            return self._returned(context, state, self._reply(state))
        wait = SessionWait(
            self._condition(str(self.meter_id), self.version, state=state, until=self._deadline(context, state)),
            started_at=self._started_at(state),
            run_status=state.session["status"] if state.session and state.session_id else None,
            baseline=state.baseline,
            exclusive=self.exclusive,
            require_certain=self.require_certain,
            max_unreachable=timedelta(seconds=self.max_unreachable),
            settle=timedelta(seconds=self.settle),
            created_at=datetime.now(UTC),
        )
        result = self._await_session(
            context, wait, stop_on_kill=self.stop_meter_on_kill and not other_session_lives(state)
        )
        return self._finish(context, state, result)

    def _say_started(self, state: RunState) -> None:
        if state.phase is Phase.STARTED:
            self.log.info("Session %s of meter %s started.", state.session_id, self.meter_id)
        else:
            self.log.warning(
                "Zuora was asked to run meter %s at %s, but its reply was lost: the session is not known, so the result"
                " is not certain. No second session is started; clear the task to start one on purpose.",
                self.meter_id,
                state.called_at,
            )
        if other_session_lives(state):
            self.log.warning(
                "The meter was already %s when this run was called for: another session of it may live, and the meter's"
                " status speaks for either.",
                state.baseline,
            )

    # -- the end --------------------------------------------------------------------------------------------------

    def _finish(self, context: Context, state: RunState | None, result: WaitResult) -> dict[str, Any] | None:
        """Return the session, or raise why not; write down first what a retry has to know of it."""
        session = dict(result.session or {})
        if session and state is not None and state.session_id is None:
            # Whatever is proven of a session: that it is the one whose reply was lost, is not.
            session |= {"session_id": session.get("session_id") or self._hint(state), "certain": False}
            if self.require_certain and result.end in (WaitEnd.MET, WaitEnd.FAILED):
                result = replace(result, end=WaitEnd.UNCERTAIN, message=f"{result.message} {_REPLY_LOST}")
        if result.end is WaitEnd.MET:
            self.log.info(result.message)
            return self._returned(context, state, session)
        if result.end is WaitEnd.TIMED_OUT and self.stop_meter_on_timeout and state is not None:
            self._state = state
            self._stop_meter("the timeout passed")
        if result.end is WaitEnd.FAILED:
            from airflow_mediation_provider.exceptions import MeterRunFailed

            if state is not None:
                self._memory(context).save(state.dead(str(session.get("status"))))
            raise MeterRunFailed(result.message, session=session)
        return self.raise_for(result)

    def _returned(self, context: Context, state: RunState | None, result: dict[str, Any]) -> dict[str, Any]:
        if state is not None:
            self._memory(context).save(state.done(result))
        return result

    def _started_at(self, state: RunState) -> datetime | None:
        """Return when the session started; of an unnamed one, when it was called for, if it is known that it did."""
        started = SessionTransition.from_dict(state.session).started_at if state.session else None
        if started is not None and state.called_at is not None and started < state.called_at - CLOCK_SKEW:
            # No session starts before it is called for: Zuora's clock is off, and its time would protect nothing.
            started = state.called_at
        certainly = state.session is not None or state.unique_key is not None
        return started or (state.called_at if certainly else None)

    def _reply(self, state: RunState) -> dict[str, Any]:
        """Return the session as Zuora's reply describes it; where the reply was lost, as it would have."""
        if state.session is not None and state.session_id:
            return {**state.session, "evidence": str(Source.RUN), "certain": True}
        # Not the meter's status: that may still be the end of the session before, and a branch would follow it.
        transition = SessionTransition(
            meter_id=str(self.meter_id),
            session_id=self._hint(state),
            run_type=self.run_type,
            status=FIRST_STATUS[self.run_type],
            observed_at=state.called_at or datetime.now(UTC),
            source=Source.RUN,
        )
        return {**transition.to_dict(), "evidence": str(Source.RUN), "certain": False}

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
            run_type=self.run_type,
            statuses=self.statuses,
            fail_on=self.fail_on,
            since=state.called_at if state and session_id is None else None,
            until=until,
        )

    def _statuses(self, statuses: Sequence[str] | str | None) -> tuple[str, ...]:
        names = status_names("statuses", statuses)
        if names is not None:
            return names
        if self.fail_on is None:
            return (SUCCESS[self.run_type],)
        return tuple(sorted(TERMINAL[self.run_type] - set(self.fail_on)))

    def _check_sources(self) -> None:
        validate_runtime_source_configs(self.runtime_source_configs)
        validate_source_options(self.source_options, debug=self.run_type is RunType.DEBUG)
        validate_event_store_source_options(self.event_store_source_options)

    def _request(self) -> dict[str, Any]:
        """Return the arguments of the call, checked now that they are rendered."""
        sources = ("runtime_source_configs", "source_options", "event_store_source_options")
        try:
            check_meter(self.meter_id, self.version)
            for name in sources:
                setattr(self, name, loaded(name, getattr(self, name)))
            self._check_sources()
        except ValueError as error:
            from airflow_mediation_provider.exceptions import MediationMisconfigured

            raise MediationMisconfigured(str(error)) from error
        given = {name: getattr(self, name) for name in sources}
        return {
            "meter_id": str(self.meter_id).strip(),
            "version": str(self.version),
            "run_type": str(self.run_type),
            **{name: list(value) for name, value in given.items() if value},
        }
