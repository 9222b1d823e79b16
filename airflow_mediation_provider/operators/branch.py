"""Branch on how a session ended: one status, one way on through the DAG."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any

from airflow.sdk import conf
from airflow.sdk.bases.branch import BaseBranchOperator
from airflow.sdk.exceptions import DownstreamTasksSkipped

from airflow_mediation_provider.links import SESSION_LINKS, push_session_links
from airflow_mediation_provider.operators.arguments import (
    check_flags,
    check_instant,
    check_meter,
    check_session,
    check_session_id,
    check_text,
    instant,
    run_type_of,
    seconds,
    session_id_of,
    session_of,
)
from airflow_mediation_provider.protocol.condition import SessionCondition, validate_statuses
from airflow_mediation_provider.protocol.status import DEBUG_ONLY, TERMINAL, RunType, SessionStatus
from airflow_mediation_provider.protocol.transition import SessionTransition
from airflow_mediation_provider.protocol.wait import SessionWait, WaitEnd, WaitResult
from airflow_mediation_provider.waiting import SessionWaitMixin

if TYPE_CHECKING:
    from airflow.sdk import Context

Branch = str | Sequence[str]


class MeterSessionBranchOperator(SessionWaitMixin, BaseBranchOperator):
    """Follow the branch of a session's status, and skip the others.

    The session comes from ``session``, the output of a ``RunMeterOperator`` or ``MeterSessionSensor``; or the operator
    waits for it by itself, with the arguments of the sensor. Give a ``RunMeterOperator`` before it ``fail_on=()``, so
    that it succeeds with a session that FAILED. A branch is a task id, a task group id, or a list of such; ``[]`` skips
    all that follows.

    :param session: the session as JSON: ``run.output``. Templated
    :param meter_id: instead of ``session``: wait for a session of this meter. Templated
    :param version: the meter's version. Templated
    :param session_id: with ``meter_id``: this session, by its id or as ``run.output``. Templated
    :param since: with ``meter_id``: the first session that starts at or after this instant; the start of the data
        interval unless given, else the run's ``run_after``. Templated
    :param run_type: with ``meter_id``: ``NORMAL`` or ``DEBUG``
    :param on_completed: the branch of COMPLETED
    :param on_failed: the branch of FAILED
    :param on_canceled: the branch of CANCELED
    :param branches: status to branch, for any status: ``{"TESTING_PASSED": "go", "PAUSED": "resume"}``. The operator
        waits until the session is in one of them, or in a terminal status
    :param default: the branch of a terminal status that has none; without it such a status fails the task
    :param on_timeout: the branch to follow when ``timeout`` has passed; without it the task fails
    :param deferrable: wait in the triggerer; ``[operators] default_deferrable`` unless given
    :param poke_interval: seconds between two looks at the status
    :param timeout: seconds to wait
    :param max_unreachable: seconds without a good answer from Zuora after which the task fails, to be retried
    :param require_certain: fail where only a poll that another run could have masked tells the status
    :param exclusive: your promise that nothing else starts this meter meanwhile
    :param settle: seconds for which a status that Zuora reports may be out of date: no wait ends sooner
    :param mediation_conn_id: connection of type ``mediation``
    :raises ValueError: when the DAG is parsed: an argument is unknown or impossible
    """

    template_fields: Sequence[str] = ("session", "meter_id", "version", "session_id", "since", "mediation_conn_id")
    operator_extra_links = SESSION_LINKS
    ui_color = "#e0e4f5"

    def __init__(
        self,
        *,
        session: Any = None,
        meter_id: str | None = None,
        version: str = "0.0.1",
        session_id: str | Mapping[str, Any] | None = None,
        since: datetime | str | None = None,
        run_type: RunType | str = RunType.NORMAL,
        on_completed: Branch | None = None,
        on_failed: Branch | None = None,
        on_canceled: Branch | None = None,
        branches: Mapping[str, Branch] | None = None,
        default: Branch | None = None,
        on_timeout: Branch | None = None,
        deferrable: bool = conf.getboolean("operators", "default_deferrable", fallback=False),
        poke_interval: timedelta | float = 60,
        timeout: timedelta | float = timedelta(days=7),
        max_unreachable: timedelta | float = timedelta(hours=1),
        require_certain: bool = False,
        exclusive: bool = False,
        settle: timedelta | float = 30,
        mediation_conn_id: str = "mediation_default",
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        self.session = session
        self.meter_id = meter_id
        self.version = version
        self.session_id = session_id
        self.since = since
        self.run_type = run_type_of(run_type)
        self.branches = _branches(on_completed, on_failed, on_canceled, branches)
        self.default = default
        self.on_timeout = on_timeout
        self.deferrable = deferrable
        self.poke_interval = seconds("poke_interval", poke_interval, least=0.1)
        self.timeout = seconds("timeout", timeout, least=1)
        self.max_unreachable = seconds("max_unreachable", max_unreachable)
        self.require_certain = require_certain
        self.exclusive = exclusive
        self.settle = seconds("settle", settle)
        self.mediation_conn_id = mediation_conn_id
        self._named = session_id is not None
        check_text("mediation_conn_id", mediation_conn_id)
        check_flags(deferrable=deferrable, require_certain=require_certain, exclusive=exclusive)
        self._check(default, on_timeout)

    def _check(self, default: Branch | None, on_timeout: Branch | None) -> None:
        if not self.branches and default is None:
            raise ValueError("no branch is given: use on_completed, on_failed, on_canceled, branches or default")
        for name, branch in {**self.branches, "default": default, "on_timeout": on_timeout}.items():
            _check_branch(name, branch)
        if (self.session is None) == (self.meter_id is None):
            raise ValueError("give either session (the output of a task) or meter_id (to wait for one), and only one")
        if self.session is not None:
            if self.session_id is not None or self.since is not None:
                raise ValueError("session_id and since go with meter_id; a given session has its own")
            for status in self.branches:
                if status not in _EVERY_STATUS:
                    raise ValueError(f"branches: {status!r} is no status; allowed are {', '.join(_EVERY_STATUS)}")
            check_session(self.session)
            return
        check_meter(self.meter_id, self.version)
        check_session_id(self.session_id)
        if self.session_id is not None and self.since is not None:
            raise ValueError("session_id and since exclude each other: a session is either named or found by its start")
        check_instant("since", self.since)
        try:
            validate_statuses(run_type=self.run_type, statuses=[*self.branches, *TERMINAL[self.run_type]])
        except ValueError as error:
            raise ValueError(str(error).replace("statuses:", "branches:", 1)) from None

    def execute(self, context: Context) -> Any:
        """Branch on the session's status, waiting for one that has a branch where that has not come yet."""
        return self._run(context)

    def _run(self, context: Context) -> Any:
        from airflow_mediation_provider.exceptions import MediationMisconfigured

        try:
            session, condition = self._question(context)
            self._check_tasks()
        except ValueError as error:
            raise MediationMisconfigured(str(error)) from error
        if condition is None:
            push_session_links(context, self.hook, str(session["meter_id"]), session.get("session_id"))
            return self._branch(context, session)
        push_session_links(context, self.hook, condition.meter_id, condition.session_id)
        wait = SessionWait(
            condition,
            started_at=_started_at(session, condition),
            run_status=session.get("status"),
            exclusive=self.exclusive,
            require_certain=self.require_certain,
            max_unreachable=timedelta(seconds=self.max_unreachable),
            settle=timedelta(seconds=self.settle),
            created_at=datetime.now(UTC),
        )
        return self._finish(context, self._await_session(context, wait))

    def execute_complete(self, context: Context, event: Any = None) -> Any:
        """Go on with what the trigger reports."""
        result = self.read_event(event)
        if result is None:
            self.log.warning("The trigger's event holds no result: asking Zuora again.")
            return self._run(context)
        return self._finish(context, result)

    def _check_tasks(self) -> None:
        """Look up every branch before the wait: Airflow looks up the one that is followed, when it is too late."""
        dag = self.get_dag()
        if dag is None:
            return
        followers = self.get_flat_relative_ids(upstream=False)
        for name, branch in {**self.branches, "default": self.default, "on_timeout": self.on_timeout}.items():
            for each in [branch] if isinstance(branch, str) else branch or ():
                group = dag.task_group_dict.get(each)
                tasks = {each} if group is None else {root.task_id for root in group.roots}
                if not tasks <= set(dag.task_dict):
                    raise ValueError(
                        f"the branch of {name} is {each!r}, but the DAG has no such task or task group; the id of a"
                        " task within a group begins with the group's: 'group.task'"
                    )
                if tasks.isdisjoint(followers):
                    self.log.warning("The branch of %s, %s, does not come after this task: never skipped.", name, each)

    def _question(self, context: Context) -> tuple[dict[str, Any], SessionCondition | None]:
        """Return the session as far as it is given, and what to wait for; no condition where its status is enough."""
        session = {} if self.meter_id is not None else session_of(self.session)
        run_type = self.run_type
        if session:
            run_type = run_type_of(session.get("run_type") or RunType.NORMAL)
            if session["status"] in self._ends(run_type):
                return session, None
            meter_id, session_id = str(session["meter_id"]), session.get("session_id")
            since = instant("session['started_at']", session.get("started_at") or session.get("observed_at"))
        else:
            check_meter(self.meter_id, self.version)
            meter_id, session_id = str(self.meter_id), session_id_of(self.session_id, given=self._named)
            since = instant("since", self.since) or _start_of(context)
        condition = SessionCondition(
            meter_id=meter_id,
            version=self.version,
            session_id=session_id,
            run_type=run_type,
            statuses=self._ends(run_type),
            fail_on=(),
            since=None if session_id else since,
            until=max(self._wait_until(context), since or datetime.now(UTC)),
        )
        return session, condition

    def _ends(self, run_type: RunType) -> tuple[str, ...]:
        """Return the statuses at which the wait is over: those with a branch, and the terminal ones."""
        known = [status for status in self.branches if (status in DEBUG_ONLY) == (run_type is RunType.DEBUG)]
        return tuple(dict.fromkeys((*known, *sorted(TERMINAL[run_type]))))

    def _finish(self, context: Context, result: WaitResult) -> Any:
        if result.end is WaitEnd.TIMED_OUT and self.on_timeout is not None:
            self.log.warning("Following on_timeout: %s", result.message)
            return self.do_branch(context, self.on_timeout)
        if result.end is not WaitEnd.MET:
            self.raise_for(result)
        return self._branch(context, result.session or {})

    def _branch(self, context: Context, session: dict[str, Any]) -> Any:
        from airflow_mediation_provider.exceptions import MediationMisconfigured, MeterSessionUncertain

        status, name = session["status"], session.get("session_id") or "(unknown)"
        if self.require_certain and not session.get("certain", False):
            raise MeterSessionUncertain(
                f"Session {name} of meter {session.get('meter_id')} seems to be {status}, but that is not certain"
                f" (evidence: {session.get('evidence')}), and require_certain is set."
            )
        branch = self.branches.get(status, self.default)
        if branch is None:
            given = ", ".join(self.branches)
            raise MediationMisconfigured(
                f"Session {name} is {status}, which has no branch: the branches are for {given}. Add it to branches, or"
                " give a default."
            )
        self.log.info(
            "Session %s of meter %s is %s, by %s%s: following %s.",
            name,
            session.get("meter_id"),
            status,
            session.get("evidence", "what the task before said"),
            "" if session.get("certain", False) else ", and that is not certain",
            branch or "no branch",
        )
        context["ti"].xcom_push(key="session", value=session)
        return self.do_branch(context, branch)

    @staticmethod
    def _set_state_to_skipped(tasks: Sequence[str | tuple[str, int]], map_index: int | None) -> None:
        """Skip the branches that are not followed, also inside a mapped task group.

        There Airflow 3.2 and 3.3 leave it to a check of the scheduler that looks under the wrong map index, so that
        every branch would run (https://github.com/apache/airflow/issues/67265). The group's instances exist already.
        """
        del map_index
        if tasks:
            raise DownstreamTasksSkipped(tasks=tasks)


_EVERY_STATUS = tuple(str(status) for status in SessionStatus)


def _branches(
    on_completed: Branch | None,
    on_failed: Branch | None,
    on_canceled: Branch | None,
    others: Mapping[str, Branch] | None,
) -> dict[str, Branch]:
    """Return the branch of each status by its name."""
    if others is not None and not isinstance(others, Mapping):
        raise ValueError(f"branches must map statuses to task ids, not be a {type(others).__name__}")
    found = {str(status).strip().upper(): branch for status, branch in (others or {}).items()}
    for argument, status, branch in (
        ("on_completed", SessionStatus.COMPLETED, on_completed),
        ("on_failed", SessionStatus.FAILED, on_failed),
        ("on_canceled", SessionStatus.CANCELED, on_canceled),
    ):
        if branch is None:
            continue
        if status in found:
            raise ValueError(f"{status} has two branches: {argument} and branches[{str(status)!r}]")
        found[str(status)] = branch
    return found


def _check_branch(name: str, branch: object) -> None:
    if branch is None and name in ("default", "on_timeout"):
        return
    ids = [branch] if isinstance(branch, str) else branch
    if not isinstance(ids, list | tuple | set | frozenset) or not all(
        isinstance(item, str) and item.strip() for item in ids
    ):
        raise ValueError(f"the branch of {name} must be a task id, a task group id or a list of such, not {branch!r}")


def _started_at(session: dict[str, Any], condition: SessionCondition) -> datetime | None:
    """Return when a given session started; of one whose reply was lost, when it was called for."""
    if not session:
        return None
    given = SessionTransition.from_dict(session)
    # A test has no key that would tell whether its call started anything.
    called = given.observed_at if condition.session_id is None and given.run_type is RunType.NORMAL else None
    return given.started_at or called


def _start_of(context: Context) -> datetime | None:
    """Return the instant from which a session belongs to this run."""
    return context.get("data_interval_start") or context["dag_run"].run_after
